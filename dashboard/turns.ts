/** What a session's page reads from the rows: its turns and their calls, the files that were changed, the models that were asked. */

import { type TelemetryEvent, asText, isRecord } from "./events.ts";
import {
  type Rows,
  type SessionEntry,
  type SpanEntry,
  byStart,
  isFailedSpan,
  isRunning,
  markOf,
  shownEnd,
  spansOf,
  toolsOf,
} from "./rows.ts";
import { countOf, familyOf } from "./tree.ts";

export interface Turn {
  /** Of the event that began it; 0: nothing tells when it began. */
  id: number;
  title: string;
  start: number;
  /** So far, where it goes on. */
  end: number;
  goesOn: boolean;
  /** By start; what else went wrong and where the context was compacted are among them. */
  calls: SpanEntry[];
  /** As the figures below with those of its agents. */
  errorCount: number;
  /** Null: not told. */
  tokens: number | null;
  cost: number | null;
}

/** @param told the session's turn_start and session_compacted events, oldest first */
export function turnsOf(
  rows: Rows,
  { row, startedAt }: SessionEntry,
  told: readonly TelemetryEvent[],
  now: number,
): Turn[] {
  const begun = told.filter(({ type }) => type === "turn_start");
  begun.sort((a, b) => a.at - b.at || a.id - b.id);
  const create = (id: number, title: string, start: number): Turn => {
    const figures = { errorCount: 0, tokens: null, cost: null };
    return { id, title, start, end: start, goesOn: false, calls: [], ...figures };
  };
  const first = create(0, begun.length === 0 ? "All calls" : "Before the first turn", startedAt);
  const before = Math.max(0, row.turn_count - begun.length); // that are too long ago to be here
  const titled = begun.map(({ id, fields, at }, index) =>
    create(id, asText(fields.prompt) ?? `Turn ${before + index + 1}`, at),
  );
  const turns = [first, ...titled];
  const turnAt = (at: number) => turns.findLast(({ start }) => start <= at) ?? first;

  const compacted = told.filter(({ type }) => type === "session_compacted").map(markOf);
  /** Agents whose own errors are in a turn: one may be sent out again. */
  const counted = new Set<string>();
  for (const call of callsOf(rows, row.id, compacted)) {
    const turn = turnAt(call.start);
    const child = call.row.child_session_id ?? "";
    turn.calls.push(call);
    if (isFailedSpan(call)) turn.errorCount++;
    if (!counted.has(child)) turn.errorCount += countOf(rows, child, "error_count");
    counted.add(child);
  }
  for (const span of Object.values(spansOf(rows, row.id)).flat()) {
    const turn = turnAt(span.start);
    turn.end = Math.max(turn.end, shownEnd(span, now));
    turn.goesOn ||= span.end === null;
  }
  for (const id of familyOf(rows, row.id))
    for (const { row: model, start } of spansOf(rows, id).model) {
      const turn = turnAt(start);
      turn.tokens = plus(turn.tokens, tokensOf(model.tokens).total);
      turn.cost = plus(turn.cost, model.cost);
    }
  const latest = turns.at(-1) ?? first;
  latest.goesOn ||= row.working_since !== null;
  if (latest.goesOn) latest.end = Math.max(latest.end, now);
  return turns.filter(({ id, calls, tokens }) => id > 0 || calls.length > 0 || tokens !== null);
}

/** What a session did, by start: of an agent not also the call that spawned it, of models what runs or failed. */
export function callsOf(rows: Rows, id: string, more: readonly SpanEntry[] = []): SpanEntry[] {
  const { tool, agent, model, wait, mark } = spansOf(rows, id);
  const calls = new Set(tool.map(({ row }) => row.call_id));
  return [
    ...toolsOf(rows, id),
    ...agent,
    ...model.filter((span) => isRunning(rows, span) || isFailedSpan(span)),
    ...wait.filter(({ row }) => row.call_id === null || !calls.has(row.call_id)),
    ...mark,
    ...more,
  ].sort(byStart);
}

// ─── Tokens ──────────────────────────────────────────────────────────────────

export const TOKEN_KINDS = ["input", "output", "reasoning", "cache_read", "cache_write"] as const;

type Tokens = Partial<Record<(typeof TOKEN_KINDS)[number] | "total", number>>;

/** @param told of a model's span, or as a fact of a session: a number, or one of each kind. Empty: it isn't told */
export function tokensOf(told: unknown): Tokens {
  if (typeof told === "number") return { total: told };
  if (!isRecord(told)) return {};
  const tokens = TOKEN_KINDS.map((kind) => [kind, Number(told[kind]) || 0] as const);
  const total = tokens.reduce((sum, [, count]) => sum + count, 0);
  return { ...Object.fromEntries(tokens), total };
}

/** How much of its context the newest model of a session was given; null: not told. */
export function contextOf(rows: Rows, id: string) {
  const newest = spansOf(rows, id).model.findLast(({ row }) => isRecord(row.tokens))?.row;
  const limit = newest?.attributes?.context_limit;
  if (newest === undefined || typeof limit !== "number" || limit <= 0) return null;
  const { input = 0, cache_read = 0, cache_write = 0 } = tokensOf(newest.tokens);
  const used = input + cache_read + cache_write;
  return { used, limit, share: Math.min(1, used / limit) };
}

/** A sum of what is told; null: nothing is. */
const plus = (sum: number | null, value: unknown): number | null =>
  typeof value === "number" ? (sum ?? 0) + value : sum;

// ─── Files ───────────────────────────────────────────────────────────────────

/** A file that was changed: how often, and by how many lines; null: that isn't told. */
export interface ChangedFile {
  path: string;
  edits: number;
  additions: number | null;
  deletions: number | null;
}

/** The files that these sessions have changed, their paths relative to `directory`. */
export function filesOf(
  rows: Rows,
  family: ReadonlySet<string>,
  directory: unknown,
): ChangedFile[] {
  const root = `${asText(directory) ?? ""}/`;
  const files = new Map<string, ChangedFile>();
  for (const { row } of [...family].flatMap((id) => spansOf(rows, id).tool)) {
    const told = row.attributes?.files;
    for (const changed of Array.isArray(told) ? told.filter(isRecord) : []) {
      const whole = asText(changed.path) ?? "";
      const path = whole.startsWith(root) ? whole.slice(root.length) : whole;
      const file = files.get(path) ?? { path, edits: 0, additions: null, deletions: null };
      files.set(path, file);
      file.edits++;
      file.additions = plus(file.additions, changed.additions);
      file.deletions = plus(file.deletions, changed.deletions);
    }
  }
  return [...files.values()];
}
