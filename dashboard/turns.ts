/** What a session's page reads from the rows: its turns and their calls, the files that were changed, the models that were asked. */

import { type TelemetryEvent, asText, isRecord } from "./events.ts";
import { relativePath } from "./format.ts";
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

export type Turn = ReturnType<typeof createTurn>;

/** @param id of the event that began it; 0: nothing tells when it began */
const createTurn = (id: number, title: string, start: number) => ({
  ...{ id, title, start, goesOn: false },
  /** So far, where it goes on. */
  end: start,
  /** By start; what else went wrong and where the context was compacted are among them. */
  calls: new Array<SpanEntry>(),
  /** As the figures below with those of its agents. */
  errorCount: 0,
  /** Null: not told. */
  tokens: null as number | null,
  cost: null as number | null,
});

/** @param told the session's turn_start and session_compacted events, oldest first */
export function turnsOf(
  rows: Rows,
  { row, startedAt }: SessionEntry,
  told: readonly TelemetryEvent[],
  now: number,
): Turn[] {
  const begun = told.filter(({ type }) => type === "turn_start");
  const title = begun.length === 0 ? "All calls" : "Before the first turn";
  const first = createTurn(0, title, startedAt);
  const before = Math.max(0, row.turn_count - begun.length); // that are too long ago to be here
  const titled = begun.map(({ id, fields, at }, index) =>
    createTurn(id, asText(fields.prompt) ?? `Turn ${before + index + 1}`, at),
  );
  const turns = [first, ...titled];
  const turnAt = (at: number) => turns.findLast(({ start }) => start <= at) ?? first;

  const compacted = told.filter(({ type }) => type === "session_compacted").map(markOf);
  /** Agents whose own errors are in a turn: one may be sent out again. */
  const counted = new Set<string>();
  for (const call of [...callsOf(rows, row.id), ...compacted].sort(byStart)) {
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
      turn.tokens = plus(turn.tokens, tokensOf(model.tokens));
      turn.cost = plus(turn.cost, model.cost);
    }
  const latest = turns.at(-1) ?? first;
  latest.goesOn ||= row.working_since !== null;
  if (latest.goesOn) latest.end = Math.max(latest.end, now);
  return turns.filter(({ id, calls, tokens }) => id > 0 || calls.length > 0 || tokens !== null);
}

/** What a session did, by start: of an agent not also the call that spawned it, of models what runs or failed. */
export function callsOf(rows: Rows, id: string): SpanEntry[] {
  const { tool, agent, model, wait, mark } = spansOf(rows, id);
  const calls = new Set(tool.map(({ row }) => row.call_id));
  return [
    ...toolsOf(rows, id),
    ...agent,
    ...model.filter((span) => isRunning(rows, span) || isFailedSpan(span)),
    ...wait.filter(({ row }) => row.call_id === null || !calls.has(row.call_id)),
    ...mark,
  ].sort(byStart);
}

/** What failed in a session and below it, the latest first: one cause is one, as the server counts them. */
export function failuresOf(rows: Rows, id: string): SpanEntry[] {
  return [...familyOf(rows, id)]
    .flatMap((member) => {
      const { agent, model, mark } = spansOf(rows, member);
      const isExcused = member !== id && rows.sessions.get(member)?.row.is_excused; // its agent's is told
      return [...toolsOf(rows, member), ...agent, ...(isExcused ? [] : [...model, ...mark])];
    })
    .filter(isFailedSpan)
    .sort((a, b) => byStart(b, a));
}

export const TOKEN_KINDS = ["input", "output", "reasoning", "cache_read", "cache_write"] as const;

/** Of these kinds. @param told of a model's span: a number, or one of each kind. Null: not told */
function tokensOf(told: unknown, kinds: readonly string[] = TOKEN_KINDS): number | null {
  if (!isRecord(told)) return typeof told === "number" ? told : null;
  return kinds.reduce((sum, kind) => sum + (Number(told[kind]) || 0), 0);
}

/** How much of its context the newest model of a session was given; null: not told. */
export function contextOf(rows: Rows, id: string) {
  const newest = spansOf(rows, id).model.findLast(({ row }) => isRecord(row.tokens))?.row;
  const limit = newest?.attributes?.context_limit;
  if (newest === undefined || typeof limit !== "number" || limit <= 0) return null;
  const used = tokensOf(newest.tokens, ["input", "cache_read", "cache_write"]) ?? 0;
  return { used, limit, share: Math.min(1, used / limit) };
}

/** A sum of what is told; null: nothing is. */
const plus = (sum: number | null, value: unknown): number | null =>
  typeof value === "number" ? (sum ?? 0) + value : sum;

export type ChangedFile = ReturnType<typeof filesOf>[number];

/** The files that these sessions have changed, by their paths relative to `directory`; null: not told. */
export function filesOf(rows: Rows, family: ReadonlySet<string>, directory: unknown) {
  const calls = [...family].flatMap((id) => spansOf(rows, id).tool);
  const changes = calls.flatMap(({ row }) => row.attributes?.files).filter(isRecord);
  const files = Map.groupBy(changes, ({ path }) => relativePath(asText(path) ?? "", directory));
  return [...files].map(([path, edits]) => ({
    path,
    edits: edits.length,
    additions: edits.map(({ additions }) => additions).reduce(plus, null),
    deletions: edits.map(({ deletions }) => deletions).reduce(plus, null),
  }));
}
