/**
 * Random histories, posted in random batches with restarts and retention in between: what the GET
 * routes answer must be what the slow model in model.ts makes of the same events, and what a client
 * of the stream that comes and goes has kept.
 */

import { expect, test } from "bun:test";
import { type PostedEvent, seededRandom, shuffled } from "./fixtures.ts";
import {
  type Frame,
  getJson,
  isSoak,
  openStream,
  postEvent,
  startTestServer,
  type TestServer,
  type TestStream,
  waitFor,
} from "./helpers.ts";
import {
  activity,
  type Answers,
  answers,
  details,
  familyOf,
  type LoggedEvent,
  normalised,
  overview,
  pruned,
  type SessionAnswer,
  type SpanAnswer,
  usage,
  type UsageAnswer,
  windowOf,
} from "./model.ts";

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;

const GROUPS = isSoak ? 120 : 4;
const HISTORIES_PER_GROUP = 160;
/** Groups whose servers run side by side: while one waits for its retention, another goes on. */
const LANES = 2;
/** All at once: each waits for seconds, until its server tells what time has changed. */
const STREAM_LANES = 6;
/** How long a failure may take to be made small. */
const SHRINK_MS = 60_000;
const TIMEOUT_MS = isSoak ? 2_400_000 : 240_000;
/** A row that time alone has changed may take 5 s; the rest is for a busy machine. */
const PATIENCE_MS = 12_000;

const STREAM_GROUPS = isSoak ? 20 : 1;
const HISTORIES_PER_STREAM = 50;
const ORDER_GROUPS = isSoak ? 20 : 1;
const HISTORIES_PER_ORDER = 50;

const RETENTION_HOURS = 48;
const START = Date.parse("2026-03-01T12:00:30.500Z");

// -- Histories

/** How a history differs from one that any order of arrival must leave the same. */
interface Manner {
  /** The same id for different events, no timestamp, or one in the future: arrival decides. */
  isMessy: boolean;
}

type Random = () => number;

function dice(random: Random) {
  const pick = <T>(items: readonly T[]) => items[Math.floor(random() * items.length)] as T;
  return {
    random,
    pick,
    chance: (probability: number) => random() < probability,
    /** The field, mostly, else nothing. */
    maybe: <T>(name: string, items: readonly T[], probability = 0.6): Record<string, unknown> =>
      random() < probability ? { [name]: pick(items) } : {},
    whole: (from: number, to: number) => from + Math.floor(random() * (to - from + 1)),
  };
}

type Dice = ReturnType<typeof dice>;

const LONG_TEXT = "a long text, ".repeat(40);
const TEXTS = ["do it", "x", "line\nbreak", LONG_TEXT];
const CALLS = ["c1", "c2", "c3"];
const DURATIONS = [0, 0.4, 0.5, 2.5, 250, 1_000.6, 30_000, 7_200_000];
const ARGS = ["ls", { command: "ls" }, { path: LONG_TEXT, lines: [1, 2] }, ["-l"], 7];
const TOKENS = [
  { input: 10, output: 5 },
  { input: 1, output: 2, reasoning: 3, cache_read: 4, cache_write: 5 },
  { total: 40, input: 1 },
  { input: 0 },
];
const COSTS = [0, 0.0123, 0.5, 1.1];

/** How a call went, said in one of the ways that there are, or not said. */
function verdict({ pick, maybe }: Dice): Record<string, unknown> {
  return pick<() => Record<string, unknown>>([
    () => ({}),
    () => ({}),
    () => ({ success: true }),
    () => ({ success: false, ...maybe("error", ["broken"]) }),
    () => ({ error: pick(["no such file", LONG_TEXT, { code: 7 }]) }),
    () => ({ outcome: pick(["ok", "failed", "exit", "denied", "cancelled"]) }),
    () => ({ outcome: pick(["ok", "failed"]), success: true, ...maybe("error", ["both"]) }),
  ])();
}

function facts({ maybe, pick, chance }: Dice, sessions: string[]): Record<string, unknown> {
  return {
    ...maybe("title", ["One", "Two", null, "t".repeat(5_000)], 0.4),
    ...maybe("directory", ["/a", "/b"], 0.2),
    ...maybe("agent", ["build", "plan"], 0.2),
    ...maybe("model", ["sonnet", { id: "opus" }], 0.2),
    ...maybe(
      "tokens",
      [7, { input: 3, cache: { read: 2, write: 1 } }, { total: 9, input: 2 }],
      0.2,
    ),
    ...maybe("cost", COSTS, 0.2),
    ...maybe("changes", [{ files: 1, additions: 2, deletions: 3 }], 0.1),
    ...maybe("reason", ["completed", "error"], 0.2),
    ...maybe("parent_session_id", [...sessions, "nobody"], 0.35),
    ...(chance(0.1) ? { todos: todos(pick([0, 2, 20])) } : {}),
    ...(chance(0.03) ? { error: "a fact that failed" } : {}),
  };
}

function todos(count: number) {
  return Array.from({ length: count }, (_, index) => ({
    content: `${index} ${LONG_TEXT}`,
    status: "open",
  }));
}

type Make = (dice: Dice, sessions: string[]) => Record<string, unknown>;

const callId = ({ maybe }: Dice, probability = 0.8) => maybe("call_id", CALLS, probability);

/** Every type, how often it comes, and its data. */
const MAKERS: Record<string, [weight: number, make: Make]> = {
  tool_start: [
    8,
    (d) => ({ tool: d.pick(["bash", "read", "task"]), ...callId(d, 1), ...d.maybe("args", ARGS) }),
  ],
  tool_use: [
    12,
    (d) => ({
      tool: d.pick(["bash", "read", "task"]),
      ...callId(d),
      ...d.maybe("args", ARGS),
      ...d.maybe("duration_ms", DURATIONS),
      ...d.maybe("waited_ms", [0, 100, 9_000], 0.2),
      ...d.maybe("exit_code", [0, 2], 0.2),
      ...d.maybe("files", [["a.ts", "b.ts"]], 0.1),
      ...verdict(d),
    }),
  ],
  agent_spawn: [
    12,
    (d, sessions) => ({
      subagent_type: d.pick(["Engineer", "explore"]),
      ...callId(d, 0.6),
      ...d.maybe("description", TEXTS, 0.3),
      ...d.maybe("prompt", TEXTS, 0.5),
      ...d.maybe("child_session_id", [...sessions, "nobody"], 0.4),
      ...(d.chance(0.3) ? { ...d.maybe("duration_ms", DURATIONS), ...verdict(d) } : {}),
    }),
  ],
  agent_complete: [
    12,
    (d, sessions) => {
      const subagent_type = d.pick(["Engineer", "explore"]);
      const call_id = d.pick(CALLS);
      return {
        ...d.pick([{ subagent_type }, { call_id }, { subagent_type, call_id }]),
        ...d.maybe("duration_ms", DURATIONS),
        ...d.maybe("child_session_id", sessions, 0.2),
        ...verdict(d),
      };
    },
  ],
  model_request: [
    6,
    (d) => ({
      ...callId(d, 1),
      ...d.maybe("model", ["sonnet", "opus"]),
      ...d.maybe("provider", ["anthropic", "local"]),
      ...d.maybe("agent", ["build"], 0.3),
    }),
  ],
  model_response: [
    6,
    (d) => ({
      ...callId(d, 1),
      ...d.maybe("model", ["sonnet", "opus"]),
      ...d.maybe("provider", ["anthropic", "local"]),
      ...d.maybe("duration_ms", DURATIONS),
      ...d.maybe("first_token_ms", [5, 600], 0.3),
      ...d.maybe("tokens", TOKENS),
      ...d.maybe("cost", COSTS),
      ...d.maybe("finish_reason", ["stop"], 0.3),
      ...d.maybe("context_limit", [200_000], 0.3),
      ...verdict(d),
    }),
  ],
  input_requested: [
    6,
    (d) => ({
      request_id: d.pick(CALLS),
      ...callId(d, 0.4),
      ...d.maybe("kind", ["permission", "question"]),
      ...d.maybe("detail", TEXTS),
    }),
  ],
  input_resolved: [
    4,
    (d) => ({
      request_id: d.pick(CALLS),
      ...d.maybe("kind", ["permission", "question"]),
      ...d.maybe("reply", ["once", "reject"]),
    }),
  ],
  retry: [
    4,
    (d) => ({
      ...d.maybe("attempt", [1, 2]),
      ...d.maybe("message", ["overloaded", "rate limit"]),
      ...d.maybe("retry_at", ["2026-03-01T13:00:00.000Z"]),
    }),
  ],
  turn_start: [6, (d) => ({ ...d.maybe("prompt", TEXTS), ...d.maybe("model", ["sonnet"], 0.2) })],
  session_start: [5, facts],
  session_update: [6, facts],
  session_end: [
    7,
    (d, sessions) => ({ ...facts(d, sessions), ...d.maybe("duration_seconds", [0, 12.5], 0.3) }),
  ],
  session_error: [4, (d) => d.maybe("error", ["overflow", { name: "Aborted" }])],
  session_compacted: [1, () => ({})],
  ...Object.fromEntries(
    [
      "tool_blocked",
      "security_block",
      "security_warn",
      "message_user",
      "message_assistant",
      "rating_explicit",
      "rating_implicit",
      "voice_sent",
      "learning_captured",
      "isc_validated",
      "context_loaded",
    ].map((type): [string, [number, Make]] => [
      type,
      [
        0.5,
        (d) => ({ ...d.maybe("text", TEXTS), ...d.maybe("call_id", CALLS, 0.2), ...verdict(d) }),
      ],
    ]),
  ),
};

const TYPES = Object.keys(MAKERS);
const TOTAL_WEIGHT = TYPES.reduce((sum, type) => sum + weightOf(type), 0);

const FAMILY_TYPES = ["session_start", "session_update", "model_response", "agent_complete"];

function weightOf(type: string): number {
  return MAKERS[type]?.[0] ?? 0;
}

function pickType(random: Random): string {
  let left = random() * TOTAL_WEIGHT;
  return TYPES.find((type) => (left -= weightOf(type)) < 0) ?? "message_user";
}

/** A few times, many of them equal or a millisecond apart, none later than `now`. */
function timesBefore(now: number, { pick, whole }: Dice): number[] {
  const ages = [0, 90 * SECOND_MS, 30 * MINUTE_MS, HOUR_MS, HOUR_MS, 3 * HOUR_MS, 26 * HOUR_MS];
  const steps = [0, 1, 500, SECOND_MS, SECOND_MS, MINUTE_MS, 10 * MINUTE_MS, HOUR_MS, 24 * HOUR_MS];
  let at = now - pick([...ages, 40 * HOUR_MS]);
  return Array.from({ length: whole(3, 9) }, () => (at = Math.min(now, at + pick(steps))));
}

/** `at` in one of the forms that are accepted. */
function written(at: number, { pick, chance }: Dice): string | number {
  if (at % SECOND_MS === 0 && chance(0.3)) return at / SECOND_MS;
  return pick([
    at,
    at,
    new Date(at).toISOString(),
    new Date(at + 2 * HOUR_MS).toISOString().replace("Z", "+02:00"),
  ]);
}

/**
 * The events of a few sessions, whose ids begin with `prefix`, split by when they arrive: those of
 * `phases[i]` while it is `times[i]`. Late ones are about earlier times as well.
 */
function makeHistory(
  prefix: string,
  times: number[],
  { isMessy }: Manner,
  random: Random,
): PostedEvent[][] {
  const d = dice(random);
  const isFamily = d.chance(0.2); // whose parents change, and with them the totals of others
  const sessions = ["a", "b", "c"]
    .slice(0, isFamily ? 3 : d.pick([1, 1, 2, 3]))
    .map((name) => prefix + name);
  const pools = times.map((now) => timesBefore(now, d));
  const phases: PostedEvent[][] = times.map(() => []);
  const all: PostedEvent[] = [];
  const firstOnly = d.chance(0.3); // so that some are old when the retention comes
  const count = d.pick([1, 2, 3, 4, 5, 6, 7, 9, 16]);
  for (let serial = 0; serial < count; serial++) {
    const phase = firstOnly ? 0 : d.pick([0, 0, ...times.keys()]);
    const type = isFamily && d.chance(0.5) ? d.pick(FAMILY_TYPES) : pickType(random);
    const at = d.pick(pools[d.chance(0.6) ? phase : 0] ?? []);
    const event: PostedEvent = {
      ...(d.chance(0.4) ? { id: `${serial}` } : {}),
      type,
      session_id: d.pick(sessions),
      timestamp: written(at, d),
      data: MAKERS[type]?.[1](d, sessions) ?? {},
    };
    const earlier = all[Math.floor(random() * all.length)];
    if (isMessy && d.chance(0.03)) event.timestamp = (times[phase] ?? 0) + 5 * MINUTE_MS;
    if (isMessy && d.chance(0.03)) delete event.timestamp;
    if (isMessy && d.chance(0.03) && earlier?.id !== undefined) event.id = earlier.id;
    all.push(event);
    phases[phase]?.push(event);
    const isAgain = d.chance(0.12);
    if (isAgain) phases[d.pick([...times.keys()].slice(phase))]?.push(event);
  }
  return phases.map((events) => (d.chance(0.3) ? events : shuffled(events, random)));
}

// -- Scripts: what happens to a server

type Step =
  | { do: "post"; batches: PostedEvent[][] }
  | { do: "clock"; now: number }
  | { do: "restart" }
  | { do: "compare" }
  /** The client of the stream comes, or goes, when it has taken that share of what has come. */
  | { do: "connect" }
  | { do: "disconnect"; share: number };

/** `count` histories side by side, their arrivals mixed. */
function makeScript(seed: number, count: number): Step[] {
  const random = seededRandom(seed);
  const d = dice(random);
  const second = START + d.pick([HOUR_MS - 1, HOUR_MS, 2 * HOUR_MS, 25 * HOUR_MS]);
  const third = second + d.pick([26, 30, 40]) * HOUR_MS;
  const times = [START, second, third];
  const skipped = d.pick([0, 1]); // a phase after which nothing is compared: that takes its time
  const histories = Array.from({ length: count }, (_, index) =>
    makeHistory(`${seed}-${index}-`, times, { isMessy: true }, random),
  );
  const steps: Step[] = [];
  for (const [phase, now] of times.entries()) {
    steps.push({ do: "clock", now });
    if (phase === 2 || d.chance(0.3)) steps.push({ do: "restart" });
    const arrivals = interleaved(
      histories.map((history) => history[phase] ?? []),
      random,
    );
    const posts = inBatches(arrivals, d).map((batches): Step => ({ do: "post", batches }));
    if (phase === 1 && seed % 16 === 0)
      posts.unshift({ do: "post", batches: [manyCalls(`${seed}-many-a`, now)] });
    const restartAt = d.pick([null, Math.floor(posts.length / 2), posts.length]);
    steps.push(...(restartAt === null ? posts : posts.toSpliced(restartAt, 0, { do: "restart" })));
    const later = d.pick([0, MINUTE_MS, ...(phase === 0 ? [] : [61 * MINUTE_MS, 25 * HOUR_MS])]);
    steps.push({ do: "clock", now: now + later });
    if (phase !== skipped) steps.push({ do: "compare" });
  }
  return steps;
}

/** More than a server would look for in memory alone: what comes after them is of calls long stored. */
function manyCalls(session_id: string, timestamp: number): PostedEvent[] {
  return Array.from({ length: 2_500 }, (_, index) => ({
    type: "tool_use",
    session_id,
    timestamp: timestamp - index,
    data: { tool: "bash", call_id: `many-${index}`, duration_ms: index },
  }));
}

/** One list, in which each of `lists` keeps its order. */
function interleaved<T>(lists: T[][], random: Random): T[] {
  return lists
    .flatMap((list) => {
      const keys = list.map(random).sort((a, b) => a - b);
      return list.map((item, index) => ({ item, key: keys[index] ?? 0 }));
    })
    .sort((a, b) => a.key - b.key)
    .map(({ item }) => item);
}

/** Posts of one batch, or of a few that are under way at once. */
function inBatches(
  events: PostedEvent[],
  { pick, chance }: Dice,
  sizes = [1, 2, 10, 50, 200],
): PostedEvent[][][] {
  const posts: PostedEvent[][][] = [];
  for (let from = 0; from < events.length;) {
    const batches: PostedEvent[][] = [];
    for (let width = chance(0.3) ? 3 : 1; width > 0 && from < events.length; width--) {
      const size = pick(sizes);
      batches.push(events.slice(from, from + size));
      from += size;
    }
    // Which of two batches comes first is open: an id in both could stand for either event.
    const ids = batches.map((batch) => new Set(batch.flatMap((event) => idOf(event) ?? [])));
    const isClear = ids.every((set, index) =>
      ids.slice(index + 1).every((s) => s.isDisjointFrom(set)),
    );
    if (isClear) posts.push(batches);
    else posts.push(...batches.map((batch) => [batch]));
  }
  return posts;
}

function idOf({ id, session_id }: PostedEvent): string | null {
  return id === undefined ? null : `${session_id} ${id}`;
}

/** What a script does to a server, and the log that the server should have then. */
interface Run {
  server: TestServer;
  log: LoggedEvent[];
  /** Of the events that have an id of the client's. */
  ids: Map<string, number>;
  clock: { now: number };
  /** What the log said of the retention. */
  prunes: string[];
}

async function take(run: Run, step: Step): Promise<void> {
  const { server, clock, prunes } = run;
  if (step.do === "clock") clock.now = step.now;
  else if (step.do === "post") await posted(run, step.batches);
  else if (step.do === "restart") {
    const recent = pruned(run.log, clock.now - RETENTION_HOURS * HOUR_MS);
    const left = recent.length === 0 ? run.log : recent; // where all is old, a start doubts its clock
    const count = prunes.length;
    await server.restart();
    if (left.length < run.log.length) {
      // Only then: an old event that came earlier could go with the others.
      await waitFor(() => prunes.length > count, "the end of the retention", PATIENCE_MS);
      run.log = left;
      run.ids = new Map(
        left
          .filter(({ client_id }) => client_id !== null)
          .map((event) => [clientKey(event), event.id]),
      );
    }
    const { events } = await getJson<{ events: number }>(server, "/health");
    if (events !== left.length)
      throw new Error(`the retention leaves ${events} of ${left.length} events`);
  }
}

/** Posts `batches` at once, and adds to the log what is new, by the ids that the server gave it. */
async function posted(run: Run, batches: PostedEvent[][]): Promise<void> {
  const { server, log, ids, clock } = run;
  const stored = new Map<number, LoggedEvent>();
  await Promise.all(
    batches.map(async (batch) => {
      const { status, body } = await postEvent(server, batch);
      if (status !== 200 && status !== 201) throw new Error(`POST: ${status} ${body.error}`);
      const before = stored.size;
      for (const [index, event] of batch.entries()) {
        const id = body.ids?.[index] ?? 0;
        const logged = { id, ...normalised(event, clock.now) };
        const first = logged.client_id === null ? undefined : ids.get(clientKey(logged));
        if (first !== undefined) {
          if (first !== id) throw new Error(`POST: ${id} for an event that was stored as ${first}`);
          continue;
        }
        if (stored.has(id)) throw new Error(`POST: the id ${id} twice`);
        stored.set(id, logged);
        if (logged.client_id !== null) ids.set(clientKey(logged), id);
      }
      if (status !== (stored.size > before ? 201 : 200)) throw new Error(`POST: ${status}`);
    }),
  );
  const added = [...stored.values()].sort((a, b) => a.id - b.id);
  if (added[0] !== undefined && added[0].id <= (log.at(-1)?.id ?? 0))
    throw new Error(`POST: ${added[0].id} isn't above the ids before`);
  log.push(...added);
}

function clientKey({ session_id, client_id }: LoggedEvent): string {
  return `${session_id} ${client_id}`;
}

async function withServer<T>(use: (run: Run) => Promise<T>): Promise<T> {
  const clock = { now: START };
  const prunes: string[] = [];
  const ignore = () => {};
  const info = (message: string) => {
    if (message.startsWith("retention")) prunes.push(message);
  };
  await using server = await startTestServer({
    config: { retentionHours: RETENTION_HOURS },
    now: () => clock.now,
    log: { debug: ignore, info, warn: ignore, error: ignore },
  });
  return await use({ server, log: [], ids: new Map(), clock, prunes });
}

/** What the server and the model disagree about; null: nothing. */
function disagreement(script: Step[], sample: Random | null): Promise<string | null> {
  return withServer(async (run) => {
    try {
      for (const step of script) {
        await take(run, step);
        if (step.do === "compare") await compare(run, sample);
      }
      return null;
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    }
  });
}

// -- Comparing

class Disagreement extends Error {}

function same(what: string, actual: unknown, wanted: unknown): void {
  if (Bun.deepEquals(actual, wanted, true)) return;
  throw new Disagreement(
    `${what}:\n  has    ${JSON.stringify(actual)}\n  wanted ${JSON.stringify(wanted)}`,
  );
}

/** The same rows, in whatever order. */
function sameRows(what: string, actual: unknown[], wanted: unknown[]): void {
  if (Bun.deepEquals(actual, wanted, true)) return;
  const texts = (rows: unknown[]) => rows.map(canonical).sort();
  const [got, want] = [texts(actual), texts(wanted)];
  if (Bun.deepEquals(got, want)) return;
  const without = (rows: string[], others: string[]) => {
    const left = [...others];
    return rows.filter((row) => {
      const index = left.indexOf(row);
      if (index >= 0) left.splice(index, 1);
      return index < 0;
    });
  };
  const list = (rows: string[]) => rows.slice(0, 3).map((row) => `\n    ${row}`);
  throw new Disagreement(
    [
      `${what}:`,
      "\n  has",
      ...list(without(got, want)),
      "\n  lacks",
      ...list(without(want, got)),
    ].join(""),
  );
}

/** JSON with sorted keys. */
function canonical(value: unknown): string {
  return JSON.stringify(value, (_, part: unknown) =>
    typeof part === "object" && part !== null && !Array.isArray(part)
      ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
      : part,
  );
}

/** Sums of dollars may differ in the last bit. */
function rounded<T>(row: T): T {
  return JSON.parse(
    JSON.stringify(row, (key, value: unknown) =>
      typeof value === "number" && ["cost", "own", "total"].includes(key)
        ? Math.round(value * 1e9) / 1e9
        : value,
    ),
  );
}

const getSessions = async (server: TestServer, query = "") =>
  (await getJson<{ sessions: SessionAnswer[] }>(server, `/api/sessions?limit=1000${query}`))
    .sessions;

/** All pages. */
async function getSpans(server: TestServer, query = ""): Promise<SpanAnswer[]> {
  const all: SpanAnswer[] = [];
  for (;;) {
    const before = all.length > 0 ? `&before=${all.at(-1)?.id}` : "";
    const path = `/api/spans?limit=1000${before}${query}`;
    const { spans } = await getJson<{ spans: SpanAnswer[] }>(server, path);
    if (spans.length === 0) return all;
    all.push(...spans);
  }
}

/** Every GET route; of the routes of one session those of a few that `sample` draws (null: of all). */
async function compare({ server, log, clock }: Run, sample: Random | null): Promise<void> {
  const known = answers(log, clock.now);
  await compareLog(server, log);

  const sessions = await getSessions(server);
  sameSessions("sessions", sessions, known.sessions);
  const statuses = ["active", "waiting", "completed", "stale"];
  for (const status of sample === null
    ? statuses
    : shuffled(statuses, sample).slice(0, sample() < 0.5 ? 1 : 0))
    sameSessions(
      `sessions?status=${status}`,
      await getSessions(server, `&status=${status}`),
      known.sessions.filter((session) =>
        status === "waiting" ? session.waiting_since !== null : session.status === status,
      ),
    );

  sameSpans("spans", await getSpans(server), known.spans, known);
  sameSpans(
    "spans?open=1",
    await getSpans(server, "&open=1"),
    known.spans.filter(({ ended_at }) => ended_at === null),
    known,
  );

  const chosen = sample === null ? known.sessions : shuffled(known.sessions, sample).slice(0, 8);
  for (const { id } of chosen) {
    sameSessions(
      `sessions?sessionId=${id}`,
      await getSessions(server, `&sessionId=${id}`),
      known.sessions.filter((session) => familyOf(id, known.sessions).includes(session)),
    );
    sameSpans(
      `spans?sessionId=${id}`,
      await getSpans(server, `&sessionId=${id}`),
      known.spans.filter(({ session_id }) => session_id === id),
      known,
    );
    await compareDetails(server, id, known);
  }

  // None begins less than an hour after what the retention may have deleted.
  for (const [hours, before] of [
    [1, 0],
    [0.5, 0.25],
    [24, 0],
    [10, 12.5],
    [40, 2],
  ] as const) {
    const query = `hours=${hours}${before === 0 ? "" : `&before_hours=${before}`}`;
    const window = windowOf(clock.now, hours, before);
    const path = (name: string) => `/api/analytics/${name}?${query}`;
    const { tools } = await getJson<{ tools: UsageRow[] }>(server, path("tools"));
    const { agents } = await getJson<{ agents: UsageRow[] }>(server, path("agents"));
    compareUsage(path("tools"), tools, usage(known, "tool", window));
    compareUsage(path("agents"), agents, usage(known, "agent", window));
    same(
      path("activity"),
      (await getJson(server, path("activity"))).activity,
      activity(known, window),
    );
  }
  same("overview", await getJson(server, "/api/overview"), overview(known));
}

async function compareLog(server: TestServer, log: LoggedEvent[]): Promise<void> {
  const response = await fetch(`${server.url}/api/events?after=0`, {
    headers: { Accept: "application/x-ndjson" },
  });
  const lines = (await response.text()).split("\n").filter((line) => line !== "");
  const wanted = log.map(({ id, type, session_id, timestamp, data }) =>
    JSON.stringify({ id, type, session_id, timestamp: new Date(timestamp).toISOString(), ...data }),
  );
  const isEnd = (line: string) => line.includes('"type":"session_end"');
  // One that says no duration_seconds gets it from its session's start.
  const told = lines.map((line, index) =>
    isEnd(line) && !wanted[index]?.includes('"duration_seconds"')
      ? line.replace(/,"duration_seconds":[\d.-]+/, "")
      : line,
  );
  sameRows("events", told, wanted);
}

function sameSessions(what: string, actual: SessionAnswer[], wanted: SessionAnswer[]): void {
  const sorted = (rows: SessionAnswer[]) => rows.toSorted((a, b) => (a.id < b.id ? -1 : 1));
  if (!Bun.deepEquals(sorted(actual), sorted(wanted), true))
    sameRows(what, actual.map(rounded), wanted.map(rounded));
  for (const [index, session] of actual.entries())
    if (session.last_event_at > (actual[index - 1]?.last_event_at ?? session.last_event_at))
      throw new Disagreement(`${what}: ${session.id} is listed below one without newer activity`);
}

/** The same rows without their ids, which are those of the first events of their calls. */
function sameSpans(what: string, actual: SpanAnswer[], wanted: SpanAnswer[], known: Answers): void {
  const withoutId = ({ id: _, ...row }: SpanAnswer) => row;
  if (!Bun.deepEquals(actual, wanted, true))
    sameRows(what, actual.map(withoutId), wanted.map(withoutId));
  const ids = (rows: SpanAnswer[]) => rows.map(({ id }) => id);
  if (what !== "spans?open=1") same(`${what}: their ids, newest first`, ids(actual), ids(wanted));
  const told = new Map(known.told.map((span) => [span.id, span]));
  for (const { id, session_id, kind, name } of actual) {
    const span = told.get(id);
    if (span?.session_id !== session_id || span.kind !== kind || span.name !== name)
      throw new Disagreement(
        `${what}: ${kind} ${name} of ${session_id} has the id ${id} of another`,
      );
  }
}

async function compareDetails(server: TestServer, id: string, known: Answers): Promise<void> {
  const path = `/api/sessions/${id}`;
  const wanted = details(known, id);
  const { session, tools, agents } = await getJson<{
    session: SessionAnswer;
    tools: Record<string, unknown>[];
    agents: Record<string, unknown>[];
  }>(server, path);
  sameRows(path, [rounded(session)], [rounded(known.sessions.find((row) => row.id === id))]);
  /** The fields that the model knows, which it knows of every row. */
  const knownOf = (rows: Record<string, unknown>[], names: string[]) =>
    rows.map((row) => Object.fromEntries(names.map((name) => [name, row[name]])));
  for (const [name, actual, rows] of [
    ["tools", tools, wanted.tools],
    ["agents", agents, wanted.agents],
  ] as const) {
    const names = Object.keys(rows[0] ?? {});
    sameRows(`${path}: ${name}`, knownOf(actual, names), rows);
  }
}

interface UsageRow {
  tool?: string;
  subagent_type?: string;
  count: number;
  avg_duration_ms: number | null;
  total_duration_ms: number;
  p50_duration_ms: number | null;
  p95_duration_ms: number | null;
  waited_ms: number;
  error_count: number;
}

function compareUsage(what: string, actual: UsageRow[], wanted: UsageAnswer[]): void {
  const nameOf = (row: UsageRow) => row.tool ?? row.subagent_type ?? "";
  sameRows(
    what,
    actual.map((row) => ({
      name: nameOf(row),
      count: row.count,
      total: row.total_duration_ms,
      average: row.avg_duration_ms === null ? null : Math.round(row.avg_duration_ms),
      waited_ms: row.waited_ms,
      error_count: row.error_count,
    })),
    wanted.map((row) => {
      const total = row.durations.reduce((sum, duration) => sum + duration, 0);
      return {
        name: row.name,
        count: row.count,
        total,
        average: row.durations.length === 0 ? null : Math.round(total / row.durations.length),
        waited_ms: row.waited_ms,
        error_count: row.error_count,
      };
    }),
  );
  for (const [index, row] of actual.entries()) {
    if (row.count > (actual[index - 1]?.count ?? row.count))
      throw new Disagreement(`${what}: ${nameOf(row)} is listed below one of a lower count`);
    const values = wanted.find(({ name }) => name === nameOf(row))?.unwaited ?? [];
    for (const [share, value] of [
      [0.5, row.p50_duration_ms],
      [0.95, row.p95_duration_ms],
    ] as const)
      if (!isPercentile(value, share, values))
        throw new Disagreement(
          `${what}: ${share * 100} % of ${nameOf(row)} [${values}] is ${value}`,
        );
  }
}

/** Within 10 % of one of the values, or between the two, that may be called so; null where there is none. */
function isPercentile(value: number | null, share: number, sorted: number[]): boolean {
  if (value === null || sorted.length === 0) return value === null && sorted.length === 0;
  const rank = share * (sorted.length - 1);
  const low = sorted[Math.floor(rank)] ?? 0;
  const high = sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length))] ?? 0;
  return value >= low * 0.9 - 1 && value <= high * 1.1 + 1;
}

// -- Making a failure small

/** `script` with as few events and steps as `fails` needs, found by leaving out ever smaller parts. */
async function shrunk(
  script: Step[],
  fails: (script: Step[]) => Promise<boolean>,
): Promise<Step[]> {
  const deadline = performance.now() + SHRINK_MS;
  let events = eventsOf(script).map((_, index) => index);
  const only = (kept: number[]) => onlyEvents(script, (_, index) => kept.includes(index));
  for (const share of [2, 4, 8, 16, 32, 64, 128, Infinity]) {
    const size = Math.ceil(events.length / share) || 1;
    for (let from = 0; from < events.length && performance.now() < deadline;) {
      const rest = events.toSpliced(from, size);
      if (await fails(only(rest))) events = rest;
      else from += size;
    }
  }
  let smallest = only(events);
  for (let index = smallest.length - 1; index >= 0 && performance.now() < deadline; index--) {
    const rest = smallest.toSpliced(index, 1);
    if (await fails(rest)) smallest = rest;
  }
  return smallest;
}

function eventsOf(script: Step[]): PostedEvent[] {
  return script.flatMap((step) => (step.do === "post" ? step.batches.flat() : []));
}

/** What all its session ids begin with. */
function historyOf({ session_id }: PostedEvent): string {
  return session_id.split("-").slice(0, 2).join("-");
}

/** There for its number alone. */
function isFiller({ session_id }: PostedEvent): boolean {
  return session_id.includes("-many-");
}

/** `script` without the events that aren't wanted. */
function onlyEvents(
  script: Step[],
  isWanted: (event: PostedEvent, index: number) => boolean,
): Step[] {
  let index = 0;
  return script
    .map((step): Step => {
      if (step.do !== "post") return step;
      const batches = step.batches.map((batch) =>
        batch.filter((event) => isWanted(event, index++)),
      );
      return { do: "post", batches: batches.filter((batch) => batch.length > 0) };
    })
    .filter((step) => step.do !== "post" || step.batches.length > 0);
}

/** A script to read, and to do again by hand. */
function printed(script: Step[]): string {
  const line = (event: PostedEvent) =>
    `    ${JSON.stringify(event)}`.replaceAll(LONG_TEXT, "LONG_TEXT");
  return script
    .map((step) => {
      if (step.do === "clock") return `clock ${new Date(step.now).toISOString()}`;
      if (step.do === "disconnect") return `disconnect after ${step.share} of what has come`;
      if (step.do !== "post") return step.do;
      const batches = step.batches.map((batch) =>
        [
          ...batch.slice(0, 100).map(line),
          ...(batch.length > 100 ? [`    and ${batch.length - 100} more`] : []),
        ].join("\n"),
      );
      return `post\n${batches.join("\n  and at once\n")}`;
    })
    .join("\n");
}

async function failure(
  seed: number,
  script: Step[],
  message: string,
  run: (script: Step[]) => Promise<string | null>,
): Promise<Error> {
  // Mostly one history is enough.
  const alone = [...new Set(eventsOf(script).map(historyOf))].map((history) =>
    onlyEvents(script, (event) => historyOf(event) === history || isFiller(event)),
  );
  let failing: Step[] | null = null;
  await inLanes(
    alone.length,
    async (index) => {
      const part = alone[index] ?? [];
      if (failing === null && (await run(part)) !== null) failing ??= part;
    },
    16,
  );
  const small = await shrunk(failing ?? script, async (part) => (await run(part)) !== null);
  const shown = (await run(small)) ?? message;
  return new Error(`seed ${seed}:\n${printed(small)}\n\n${shown}`);
}

/** Takes the jobs, a few at a time. */
async function inLanes(
  count: number,
  job: (index: number) => Promise<void>,
  lanes = LANES,
): Promise<void> {
  let next = 0;
  const lane = async () => {
    while (next < count) await job(next++);
  };
  await Promise.all(Array.from({ length: lanes }, lane));
}

// -- The client of a stream

/**
 * `script`, in smaller posts, with a client of the stream that compares at times, and at the end. In
 * the last jump in time it is there, in the others it isn't: it may not go in the seconds after one, in
 * which a server tells what time has changed.
 *
 * @param session_id of the events after which it goes, at times
 */
function withClient(script: Step[], session_id: string, random: Random): Step[] {
  const d = dice(random);
  const isClock = ({ do: what }: Step) => what === "clock";
  const lastJump = script.findLastIndex(isClock);
  const notes: Step = { do: "post", batches: [manyNotes(session_id)] };
  let isConnected = false;
  function turn(): Step[] {
    isConnected = !isConnected;
    if (isConnected) return [{ do: "connect" }];
    const share = d.chance(0.5) ? 1 : random();
    return [...(d.chance(0.5) ? [notes] : []), { do: "disconnect", share }];
  }
  return script.flatMap((step, index): Step[] => {
    if (step.do === "compare") return index > lastJump ? [step] : [];
    if (step.do !== "post") return isConnected === index >= lastJump ? [step] : [...turn(), step];
    const posts = step.batches.flatMap((events) => inBatches(events, d, [1, 2, 5, 10]));
    return posts.flatMap((batches): Step[] => {
      const turned = d.chance(0.1) ? turn() : [];
      const compared: Step[] = isConnected && d.chance(0.3) ? [{ do: "compare" }] : [];
      return [...turned, { do: "post", batches }, ...compared];
    });
  });
}

/** More events than a client that returns is told the rows of once more. */
function manyNotes(session_id: string): PostedEvent[] {
  return Array.from({ length: 600 }, () => ({ type: "voice_sent", session_id }));
}

/**
 * Keeps the rows that `include=rows` brings, the newest of each id, and the last event id: all that
 * a page has when its connection is cut, wherever that happens to be.
 */
function createReplica(server: TestServer) {
  let sessions = new Map<string, SessionAnswer>();
  let spans = new Map<number, SpanAnswer>();
  let cursor = "0";
  let stream: TestStream | null = null;
  let appliedCount = 0;
  let isReset = false;

  async function connect(): Promise<void> {
    if (stream !== null) return;
    appliedCount = 0;
    stream = await openStream(server, "?include=rows", { "Last-Event-ID": cursor });
  }

  /** Takes a share of the frames that have come since. */
  function apply(share = 1): void {
    const frames = stream?.frames ?? [];
    const until = appliedCount + Math.round(share * (frames.length - appliedCount));
    for (const frame of frames.slice(appliedCount, until)) applyFrame(frame);
    appliedCount = until;
  }

  function applyFrame({ id, event, data = "null" }: Frame): void {
    if (id !== undefined) cursor = id;
    const row = JSON.parse(data);
    if (event === "reset") isReset = true;
    else if (event === "session") sessions.set(row.id, row);
    else if (event === "span") spans.set(row.id, row);
    else if (event === "session_deleted") {
      sessions.delete(row.session_id);
      for (const [spanId, span] of spans)
        if (span.session_id === row.session_id) spans.delete(spanId);
    }
  }

  /** @param share of the frames that came since the last look, once event `lastId` is among them */
  async function disconnect(share: number, lastId: number): Promise<void> {
    if (stream === null) return;
    const { frames, close, ended } = stream;
    const newest = () => Number(frames.findLast(({ id }) => id !== undefined)?.id ?? cursor);
    await waitFor(() => newest() >= lastId, `event ${lastId} on the stream`, PATIENCE_MS);
    apply(share);
    close();
    await ended;
    stream = null;
  }

  /** What a client does that has missed something: it reads everything, and goes on from there. */
  async function reload(): Promise<void> {
    isReset = false;
    await disconnect(1, 0);
    const response = await fetch(`${server.url}/api/sessions?limit=1000`);
    const rows: { sessions: SessionAnswer[] } = await response.json();
    cursor = response.headers.get("Last-Event-ID") ?? "";
    sessions = new Map(rows.sessions.map((row) => [row.id, row]));
    spans = new Map((await getSpans(server)).map((row) => [row.id, row]));
    await connect();
  }

  return {
    connect,
    disconnect,
    /**
     * @param lastId of the newest stored event
     * @throws Disagreement where the rows aren't in time those that the routes give
     */
    async compare(lastId: number): Promise<void> {
      if (stream === null) return;
      const rows = await getSessions(server);
      const allSpans = await getSpans(server);
      const hasCaughtUp = async () => {
        apply();
        if (isReset) await reload();
        return (
          Number(cursor) >= lastId &&
          Bun.deepEquals(sessions, new Map(rows.map((row) => [row.id, row]))) &&
          Bun.deepEquals(spans, new Map(allSpans.map((row) => [row.id, row])))
        );
      };
      await waitFor(hasCaughtUp, "the rows of the stream", PATIENCE_MS).catch(() => undefined);
      if (await hasCaughtUp()) return;
      if (Number(cursor) < lastId)
        throw new Disagreement(`the stream stays at ${cursor} of ${lastId}`);
      sameRows("sessions of the stream, those of the route", [...sessions.values()], rows);
      sameRows("spans of the stream, those of the route", [...spans.values()], allSpans);
    },
  };
}

/** As `disagreement`, between what a client of the stream has kept and the routes. */
function disagreementOfStream(script: Step[]): Promise<string | null> {
  return withServer(async (run) => {
    const replica = createReplica(run.server);
    try {
      for (const step of script) {
        const lastId = run.log.at(-1)?.id ?? 0;
        if (step.do === "connect") await replica.connect();
        else if (step.do === "disconnect") await replica.disconnect(step.share, lastId);
        else if (step.do === "compare") await replica.compare(lastId);
        else await take(run, step);
      }
      return null;
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    } finally {
      await replica.disconnect(0, 0);
    }
  });
}

// -- Orders

/** What differs between answers to the same events in several orders and batchings; null: nothing. */
async function disagreementOfOrders(events: PostedEvent[], seed: number): Promise<string | null> {
  const d = dice(seededRandom(seed));
  const post = (batches: PostedEvent[][]): Step => ({ do: "post", batches });
  const mixed = inBatches(shuffled(events, d.random), d).map(post);
  const scripts: Step[][] = [
    [post([events])],
    events.toReversed().map((event) => post([[event]])),
    [...mixed.slice(0, mixed.length / 2), { do: "restart" }, ...mixed.slice(mixed.length / 2)],
  ];
  const given = await Promise.all(
    scripts.map((script) =>
      withServer(async (run) => {
        for (const step of script) await take(run, step);
        const times: unknown[][] = [];
        for (const hours of [0, 1, 25]) {
          run.clock.now = START + hours * HOUR_MS;
          times.push(await answersWithoutIds(run.server));
        }
        return times;
      }),
    ),
  );
  const [first, ...others] = given;
  for (const [index, other] of others.entries())
    for (const [time, rows] of other.entries())
      try {
        sameRows(`order 1 and order ${index + 2}, time ${time + 1}`, first?.[time] ?? [], rows);
      } catch (error) {
        return error instanceof Error ? error.message : String(error);
      }
  return null;
}

/** All that the routes say, as rows whose order doesn't matter. */
async function answersWithoutIds(server: TestServer): Promise<unknown[]> {
  const withoutId = ({ id: _, ...row }: { id?: unknown }) => row;
  const sessions = await getSessions(server);
  const spans = await getSpans(server);
  const wholes = await Promise.all(
    sessions.map(async ({ id }) => {
      const { session, tools, agents } = await getJson<{
        session: SessionAnswer;
        tools: { id: number }[];
        agents: { id: number }[];
      }>(server, `/api/sessions/${id}`);
      const rows = [...tools, ...agents].map((row) => ({ of: id, ...withoutId(row) }));
      return [{ session }, ...rows];
    }),
  );
  const others = await Promise.all(
    ["analytics/tools", "analytics/agents", "analytics/activity", "overview"].map((path) =>
      getJson(server, `/api/${path}`),
    ),
  );
  return [...sessions, ...spans.map(withoutId), ...wholes.flat(), ...others];
}

// -- Tests

test.concurrent(
  `${GROUPS * HISTORIES_PER_GROUP} random histories → the answers of the model`,
  async () => {
    await inLanes(GROUPS, async (index) => {
      const seed = 1 + index;
      const script = makeScript(seed, HISTORIES_PER_GROUP);
      const message = await disagreement(script, seededRandom(seed));
      if (message !== null)
        throw await failure(seed, script, message, (part) => disagreement(part, null));
    });
  },
  TIMEOUT_MS,
);

test.concurrent(
  `a client of the stream that comes and goes → the rows of the routes, and no others`,
  async () => {
    await inLanes(
      STREAM_GROUPS,
      async (index) => {
        const seed = 10_001 + index;
        const script = withClient(
          makeScript(seed, HISTORIES_PER_STREAM),
          `${seed}-many-b`,
          seededRandom(seed),
        );
        const message = await disagreementOfStream(script);
        if (message !== null) throw await failure(seed, script, message, disagreementOfStream);
      },
      STREAM_LANES,
    );
  },
  TIMEOUT_MS,
);

test.concurrent(
  "the same posts in any order, in any batches → the same answers, but for ids",
  async () => {
    await inLanes(ORDER_GROUPS, async (index) => {
      const seed = 20_001 + index;
      const random = seededRandom(seed);
      const events = Array.from({ length: HISTORIES_PER_ORDER }, (_, history) =>
        makeHistory(`${seed}-${history}-`, [START], { isMessy: false }, random),
      ).flat(2);
      const message = await disagreementOfOrders(events, seed);
      if (message !== null) {
        const script: Step[] = [{ do: "post", batches: [events] }];
        throw await failure(seed, script, message, (part) =>
          disagreementOfOrders(eventsOf(part), seed),
        );
      }
    });
  },
  TIMEOUT_MS,
);

const OLD = START - 40 * HOUR_MS;
const one = (type: string, session_id: string, timestamp: number, data = {}): PostedEvent => ({
  type,
  session_id,
  timestamp,
  data,
});
const posts = (...events: PostedEvent[]): Step[] =>
  events.map((event) => ({ do: "post", batches: [[event]] }));

const LATER: Step[] = [
  { do: "clock", now: START + 20 * HOUR_MS },
  ...posts(one("message_user", "fresh", START + 20 * HOUR_MS)),
  { do: "restart" },
];

test.each<[string, Step[]]>([
  [
    "retention deletes the agent that excused a session, and then an error comes",
    [
      ...posts(
        one("message_user", "child", START),
        one("agent_complete", "gone", OLD, {
          call_id: "c1",
          child_session_id: "child",
          outcome: "failed",
        }),
      ),
      ...LATER,
      ...posts(one("session_error", "child", START)),
    ],
  ],
  [
    "retention deletes a session, and then the one whose agent excused it",
    [
      {
        do: "post",
        batches: [
          [
            one("agent_complete", "b", OLD, {
              call_id: "c1",
              child_session_id: "b",
              outcome: "failed",
            }),
            one("agent_spawn", "a", OLD, {
              subagent_type: "explore",
              call_id: "c2",
              child_session_id: "b",
            }),
          ],
        ],
      },
      ...LATER,
    ],
  ],
  [
    "two agents begin at once, and one completion without a call_id is between their calls' halves",
    posts(
      one("agent_spawn", "s", OLD, { subagent_type: "explore" }),
      one("agent_spawn", "s", OLD, { subagent_type: "explore", call_id: "c1" }),
      one("tool_use", "s", OLD, { tool: "task", call_id: "c1", success: false }),
      one("agent_complete", "s", OLD, { subagent_type: "explore", error: "broken" }),
    ),
  ],
])("found by the long run: %s → the answers of the model", async (_, script) => {
  expect(await disagreement([...script, { do: "compare" }], null)).toBe(null);
});
