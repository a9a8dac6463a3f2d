/**
 * What the server counts, in the words of Prometheus (text format 0.0.4): GET /metrics.
 *
 * Counters, `…_total`, count what was committed since the process has started, as Prometheus wants it:
 * a scrape adds up a few hundred numbers however long the log is, and retention takes nothing back.
 * Gauges say how it is now. A label has few values: types, kinds and outcomes are the server's own words,
 * and of the models' names, which are the clients', the first MAX_MODELS count by themselves.
 */

import { version } from "../package.json";
import type { Store } from "../server.ts";

export const METRICS_TYPE = { "Content-Type": "text/plain; version=0.0.4; charset=utf-8" };
const MAX_MODELS = 100;
const REST = "other"; // the models after those
const TOKEN_TYPES = ["input", "output", "reasoning", "cache_read", "cache_write"];
/** Upper bounds of the histogram: from a commit to a fast disk to one that makes others wait. */
const COMMIT_SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1];

type Append = Pick<Store, "append">;
type Ended = ReturnType<Store["append"]>["ended"];
type Labels = Record<string, string>;
type Sample = [labels: Labels, value: number];

/** How it is at the time of the scrape. */
export interface Gauges {
  events: number;
  bytes: number;
  active: number; // sessions
  completed: number;
  stale: number;
  waiting: number; // of the active ones
  subscribers: number;
}

/** Sums by their labels. */
function createCounter() {
  const sums = new Map<string, Sample>();
  return {
    add(labels: Labels, amount = 1): void {
      const key = JSON.stringify(labels);
      const known = sums.get(key);
      if (known) known[1] += amount;
      else sums.set(key, [labels, amount]);
    },
    samples: (unit = 1): Sample[] =>
      [...sums.values()].map(([labels, sum]) => [labels, sum / unit]),
  };
}

/** A model's tokens by type; of one that tells no more than a number: of an unknown type. */
function tokensOf({ tokens, attributes }: Ended[number]): [type: string, count: number][] {
  const parts: Record<string, unknown> = JSON.parse(attributes).tokens ?? {};
  const known = TOKEN_TYPES.flatMap((type): [string, number][] => {
    const count = parts[type];
    return typeof count === "number" && count > 0 ? [[type, count]] : [];
  });
  return known.length > 0 || !tokens ? known : [["unknown", tokens]];
}

export function createMetrics() {
  const events = createCounter();
  const spans = createCounter();
  const tokens = createCounter();
  const nanodollars = createCounter(); // whole numbers, so that no sum of many is off
  const models = new Set<string>();
  const buckets = COMMIT_SECONDS.map(() => 0); // of each bound, not of those below it
  const commits = { seconds: 0, count: 0, failed: 0 };

  function modelOf(name: string): string {
    if (models.size < MAX_MODELS) models.add(name);
    return models.has(name) ? name : REST;
  }

  function countCommit(seconds: number): void {
    commits.seconds += seconds;
    commits.count++;
    const index = COMMIT_SECONDS.findIndex((bound) => seconds <= bound);
    if (index >= 0) buckets[index] = (buckets[index] ?? 0) + 1;
  }

  return {
    /** `store`, with what it commits counted. */
    measured: ({ append }: Append): Append => ({
      append(posts, now) {
        const startedAt = performance.now();
        commits.failed++; // unless it comes to its end
        const committed = append(posts, now);
        commits.failed--;
        countCommit((performance.now() - startedAt) / 1_000);
        for (const [type, { length }] of Map.groupBy(committed.added, (event) => event.type))
          events.add({ type }, length);
        for (const span of committed.ended) {
          const { kind, outcome, name } = span;
          spans.add({ kind, outcome: outcome ?? "" });
          if (kind !== "model") continue;
          const model = modelOf(name);
          for (const [type, count] of tokensOf(span)) tokens.add({ model, type }, count);
          if (span.nanodollars) nanodollars.add({ model }, span.nanodollars);
        }
        return committed;
      },
    }),

    /** The answer to a scrape. */
    read({ events: stored, bytes, subscribers, waiting, ...sessions }: Gauges): string {
      const { active, completed, stale } = sessions;
      const histogram: Sample[] = [];
      let below = 0;
      for (const [index, bound] of COMMIT_SECONDS.entries())
        histogram.push([{ le: String(bound) }, (below += buckets[index] ?? 0)]);
      histogram.push([{ le: "+Inf" }, commits.count]);
      const commitSeconds = "pai_commit_duration_seconds";
      return [
        gauge("pai_build_info", "Which version runs; always 1.", [[{ version }, 1]]),
        gauge("pai_stored_events", "Events in the database. Retention deletes the old ones.", [
          [{}, stored],
        ]),
        gauge("pai_database_bytes", "Size of the database file, without its write-ahead log.", [
          [{}, bytes],
        ]),
        gauge(
          "pai_sessions",
          "Stored sessions by status; stale: its sender is lost, or it was silent for too long.",
          Object.entries({ active, completed, stale }).map(([status, count]) => [
            { status },
            count,
          ]),
        ),
        gauge("pai_sessions_waiting", "Active sessions that wait for the person.", [[{}, waiting]]),
        gauge("pai_subscribers", "Open event streams.", [[{}, subscribers]]),
        counter(
          "pai_events_total",
          "Events stored since the process started, by type; one that is sent again isn't.",
          events.samples(),
        ),
        counter(
          "pai_spans_total",
          "Calls, agents, model answers and waits that were told as over since the process started. What a session's end cancels isn't.",
          spans.samples(),
        ),
        counter(
          "pai_model_tokens_total",
          "Tokens of model answers since the process started, as their sender tells them.",
          tokens.samples(),
        ),
        counter(
          "pai_model_cost_dollars_total",
          "Cost of model answers since the process started, in US dollars, as their sender tells it.",
          nanodollars.samples(1e9),
        ),
        counter(
          "pai_commits_failed_total",
          "Transactions that were refused: disk full, or locked.",
          [[{}, commits.failed]],
        ),
        family(commitSeconds, "histogram", "Duration of a transaction of events, with its fsync."),
        samples(`${commitSeconds}_bucket`, histogram),
        samples(`${commitSeconds}_sum`, [[{}, commits.seconds]]),
        samples(`${commitSeconds}_count`, [[{}, commits.count]]),
      ].join("");
    },
  };
}

const escaped = (text: string) => text.replace(/[\\"]/g, "\\$&").replaceAll("\n", "\\n");

const family = (name: string, type: "gauge" | "counter" | "histogram", help: string) =>
  `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n`;

function samples(name: string, values: Sample[]): string {
  const lines = values.map(([labels, value]) => {
    const pairs = Object.entries(labels).map(([label, text]) => `${label}="${escaped(text)}"`);
    return `${name}${pairs.length > 0 ? `{${pairs}}` : ""} ${value}\n`;
  });
  return lines.join("");
}

const gauge = (name: string, help: string, values: Sample[]) =>
  family(name, "gauge", help) + samples(name, values);
const counter = (name: string, help: string, values: Sample[]) =>
  family(name, "counter", help) + samples(name, values);
