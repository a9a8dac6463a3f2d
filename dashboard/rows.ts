/**
 * The replica: the server's rows of sessions and spans as it sent them, and the latest events. Nothing
 * is counted, paired or concluded here; the newest row of an id wins.
 *
 * A row's version is the id of an event that it has seen: of a GET the `Last-Event-ID` in its header, of
 * the stream the last `id:` before it. Rows of an older version than what is here are left out, so a GET
 * that is answered late does no harm.
 *
 * No DOM, no clock, no network: tested without a browser.
 */

import type { Session, Span } from "../server.ts";
import {
  CALL_KINDS,
  FAILURE_TYPES,
  type TelemetryEvent,
  argsSummary,
  asText,
  errorText,
  isFailure,
  looksFailed,
  oneLine,
  readEvent,
} from "./events.ts";
import { formatAge, formatDuration, joined, sessionName } from "./format.ts";

/** Events that the feed can show without asking the server: at some 300 bytes each, under 1 MB. */
export const MAX_FEED_EVENTS = 2_000;
/** Bars in memory: at some 800 bytes each, 10 MB. The timeline asks the server for older ones. */
export const MAX_SPANS = 12_000;
/** Let go at once, so that the cost of finding the oldest is spread over many rows. */
const EVICT_SPANS = 2_000;
/** Sessions in memory, beside those of the page that is open: what one answer holds, and as many again. */
export const MAX_SESSIONS = 2_000;
/** Deleted sessions that a late answer can't bring back. */
const MAX_DELETED = 2_000;

/** Events drawn as a cross: something went wrong that is no call. */
const MARK_TYPES = [...FAILURE_TYPES, "security_warn"];

/** A session's row, and its times in milliseconds since 1970. */
export interface SessionEntry {
  row: Session;
  version: number;
  startedAt: number;
  lastEventAt: number;
}

/** What the timeline draws: a span of the server's, or an event of the feed in the same shape. */
export type SpanRow = Omit<Span, "kind"> & { kind: Span["kind"] | "mark" };

/** A span's row, and its times in milliseconds since 1970; without an end it is open. */
export interface SpanEntry {
  row: SpanRow;
  version: number;
  start: number;
  end: number | null;
}

/** The spans of one session, by start. */
export type SpanGroup = Record<SpanRow["kind"], SpanEntry[]>;

export type Rows = ReturnType<typeof createRows>;

export function createRows() {
  return {
    /** The newest event that is in here. */
    head: 0,
    /** Grows when a session's row changes. */
    sessionsRevision: 0,
    sessions: new Map<string, SessionEntry>(),
    spans: new Map<number, SpanEntry>(),
    groups: new Map<string, SpanGroup>(),
    /** The spans with a call_id, by `callKey`. */
    calls: new Map<string, SpanEntry>(),
    /** Oldest first, the latest MAX_FEED_EVENTS. */
    feed: new Array<TelemetryEvent>(),
    /** Deleted sessions, with the version from which on a row of them counts again. */
    deleted: new Map<string, number>(),
    /** Older spans are at the server under smaller ids; 0: there are none. */
    oldestSpanId: 0,
    /** The spans since this time are loaded; 0: all are. */
    coveredFrom: 0,
    /** Of sessions whose spans were asked for: the id before which there are more; 0: all are here. */
    cursors: new Map<string, number>(),
    /** Sessions that the server was asked for, because something of them is here. */
    asked: new Set<string>(),
    /** The open session and all below it: they stay, and the timeline shows them alone; empty: none is open. */
    family: new Set<string>(),
  };
}

// ─── Sessions ────────────────────────────────────────────────────────────────

export function takeSession(rows: Rows, row: Session, version: number): void {
  const known = rows.sessions.get(row.id);
  if (version < (known?.version ?? rows.deleted.get(row.id) ?? 0)) return;
  rows.sessions.set(row.id, {
    row,
    version,
    startedAt: Date.parse(row.started_at),
    lastEventAt: Date.parse(row.last_event_at),
  });
  rows.sessionsRevision++;
  if (rows.sessions.size > MAX_SESSIONS + rows.family.size) forgetSessions(rows);
}

/** The server has deleted it: its spans and its events go too. */
export function deleteSession(rows: Rows, id: string, version: number): void {
  rows.deleted.delete(id); // to the end of the order
  rows.deleted.set(id, Math.max(version, rows.sessions.get(id)?.version ?? 0) + 1);
  const [oldest] = rows.deleted.keys();
  if (rows.deleted.size > MAX_DELETED && oldest !== undefined) rows.deleted.delete(oldest);
  dropSession(rows, id);
  rows.feed = rows.feed.filter((event) => event.session_id !== id);
}

/** Those that ended first, by their last event; those that go on after them; those that wait last. */
function forgetSessions(rows: Rows): void {
  const worth = ({ row }: SessionEntry) =>
    row.waiting_since !== null ? 2 : row.status === "active" ? 1 : 0;
  [...rows.sessions.values()]
    .filter(({ row }) => !rows.family.has(row.id))
    .sort((a, b) => worth(a) - worth(b) || a.lastEventAt - b.lastEventAt)
    .slice(0, MAX_SESSIONS / 10)
    .forEach(({ row }) => dropSession(rows, row.id));
}

function dropSession(rows: Rows, id: string): void {
  rows.sessions.delete(id);
  rows.cursors.delete(id);
  for (const entry of Object.values(rows.groups.get(id) ?? {}).flat()) forgetSpan(rows, entry);
  rows.groups.delete(id);
  rows.sessionsRevision++;
}

// ─── Spans ───────────────────────────────────────────────────────────────────

const emptyGroup = (): SpanGroup => ({ tool: [], agent: [], model: [], wait: [], mark: [] });

export const EMPTY_GROUP: Readonly<SpanGroup> = emptyGroup();

export function spansOf(rows: Rows, sessionId: string): Readonly<SpanGroup> {
  return rows.groups.get(sessionId) ?? EMPTY_GROUP;
}

export function takeSpan(rows: Rows, row: SpanRow, version: number): void {
  const known = rows.spans.get(row.id);
  if (version < (known?.version ?? rows.deleted.get(row.session_id) ?? 0)) return;
  const start = Date.parse(row.started_at);
  const end = row.ended_at === null ? null : Date.parse(row.ended_at);
  const entry = known ?? { row, version, start, end };
  const spans = groupOf(rows, row.session_id)[row.kind];
  if (known !== undefined && known.start !== start) spans.splice(spans.indexOf(known), 1);
  if (known?.start !== start) spans.splice(indexByStart(spans, start), 0, entry);
  Object.assign(entry, { row, version, start, end });
  rows.spans.set(row.id, entry);
  if (row.call_id !== null && row.kind !== "wait")
    rows.calls.set(callKey(row.session_id, row.kind, row.call_id), entry);
  // In steps, also where much is open and little can go: finding the oldest costs the length of all.
  const isStep = known === undefined && rows.spans.size % EVICT_SPANS === 0;
  if (isStep && rows.spans.size >= MAX_SPANS) evictSpans(rows);
}

/**
 * Takes a page of the spans of all sessions, newest first, as the server sends them.
 *
 * @param page empty: the server has no older ones
 */
export function takeSpanPage(rows: Rows, page: readonly Span[], version: number): void {
  const last = page.at(-1);
  rows.oldestSpanId = last?.id ?? 0;
  rows.coveredFrom = last === undefined ? 0 : Date.parse(last.ended_at ?? last.started_at);
  for (const row of page) takeSpan(rows, row, version);
}

/**
 * All spans of this session are here: no page has to be asked for. What time is covered doesn't say
 * it: events that came late have newer ids than those of a session that began after them.
 */
export function isWhole(rows: Rows, { row }: SessionEntry): boolean {
  if (rows.cursors.get(row.id) === 0 || rows.oldestSpanId === 0) return true;
  const { tool, agent } = spansOf(rows, row.id);
  return tool.length >= row.tool_count && agent.length >= row.agent_count;
}

function groupOf(rows: Rows, sessionId: string): SpanGroup {
  let group = rows.groups.get(sessionId);
  if (group === undefined) {
    group = emptyGroup();
    rows.groups.set(sessionId, group);
  }
  return group;
}

/** The index of the first span that starts later; in `spans`, sorted by start. */
export function indexByStart(spans: readonly { start: number }[], start: number): number {
  let low = 0;
  let high = spans.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((spans[middle]?.start ?? Infinity) <= start) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** @param call_id as an event has it, whatever that is */
function callKey(session_id: string, kind: string, call_id: unknown): string {
  return `${session_id}\n${kind}\n${call_id}`;
}

function forgetSpan(rows: Rows, { row }: SpanEntry): void {
  rows.spans.delete(row.id);
  rows.calls.delete(callKey(row.session_id, row.kind, row.call_id));
}

/** Lets go of the oldest spans; open ones stay, and those of the open page up to twice the limit. */
function evictSpans(rows: Rows): void {
  const isOpen = ({ row }: SpanEntry) =>
    rows.family.has(row.session_id) && rows.spans.size < 2 * MAX_SPANS;
  const gone = [...rows.spans.values()]
    .filter((entry) => entry.end !== null && !isOpen(entry))
    .sort((a, b) => (a.end ?? 0) - (b.end ?? 0))
    .slice(0, rows.spans.size - MAX_SPANS + EVICT_SPANS);
  for (const entry of gone) {
    forgetSpan(rows, entry);
    rows.cursors.delete(entry.row.session_id);
    rows.coveredFrom = Math.max(rows.coveredFrom, entry.end ?? 0);
    // What is gone can be asked for again, with all that is older.
    rows.oldestSpanId = Math.max(rows.oldestSpanId, entry.row.id + 1);
  }
  for (const group of rows.groups.values())
    for (const kind of ["tool", "agent", "model", "wait", "mark"] as const)
      group[kind] = group[kind].filter(({ row }) => rows.spans.has(row.id));
}

// ─── Events ──────────────────────────────────────────────────────────────────

/** Takes an event of the stream. One that is in here already changes nothing. */
export function takeEvent(rows: Rows, event: TelemetryEvent): void {
  if (event.id <= rows.head) return;
  rows.head = event.id;
  rows.feed.push(event);
  // In steps of a quarter: cutting the front off an array costs its length.
  if (rows.feed.length > MAX_FEED_EVENTS * 1.25) rows.feed = rows.feed.slice(-MAX_FEED_EVENTS);
  takeMarks(rows, [event]);
}

/** Takes a page of the history up to the head, newest first, for a feed that is empty. */
export function takeFeed(rows: Rows, page: readonly TelemetryEvent[]): void {
  rows.feed = page.toReversed();
  takeMarks(rows, page);
}

/** What the timeline marks with a cross comes from the events: no span tells of it. */
export function takeMarks(rows: Rows, events: readonly TelemetryEvent[]): void {
  for (const event of events)
    if (MARK_TYPES.includes(event.type)) takeSpan(rows, markOf(event).row, event.id);
}

/** A moment that no span tells of. */
export function markOf(event: TelemetryEvent): SpanEntry {
  const { id, type, session_id, at, fields } = event;
  const time = new Date(at).toISOString();
  const row: SpanRow = {
    ...{ id, session_id, kind: "mark", name: type, call_id: null },
    ...{ started_at: time, ended_at: time, duration_ms: null, waited_ms: null },
    outcome: looksFailed(event) ? "failed" : null,
    text: asText(fields.reason ?? fields.message ?? fields.tool)?.slice(0, 300) ?? null,
    error: errorText(fields.error)?.slice(0, 300) ?? null,
    ...{ child_session_id: null, tokens: null, cost: null, attributes: null },
  };
  return { row, version: id, start: at, end: at };
}

/** The bar that tells of an event; undefined: none that is here. */
export function barOf(rows: Rows, event: TelemetryEvent): SpanEntry | undefined {
  const { call_id } = event.fields;
  // Of a call that has spawned an agent there is the agent's.
  return rows.calls.get(callKey(event.session_id, "agent", call_id)) ?? spanOf(rows, event);
}

function spanOf(rows: Rows, { id, type, session_id, fields }: TelemetryEvent) {
  const key = callKey(session_id, CALL_KINDS[type] ?? "", fields.call_id);
  return rows.spans.get(id) ?? rows.calls.get(key);
}

/**
 * Whether the feed shows an event as a failure: as the end of a span that failed; where there is no
 * span, as it looks. As many lines as the server counts errors: one cause, one line.
 */
export function hasFailed(rows: Rows, event: TelemetryEvent): boolean {
  const { type, session_id } = event;
  const isOwnError = type === "session_error" || type === "model_response";
  if (isOwnError && rows.sessions.get(session_id)?.row.is_excused) return false;
  const span = spanOf(rows, event);
  if (span === undefined) return looksFailed(event);
  if (span !== barOf(rows, event)) return false; // its agent's line says it
  return isFailure(span.row.outcome) && span.end === event.at;
}

// ─── Frames of the stream ────────────────────────────────────────────────────

export interface Frame {
  type: string;
  data: string;
  /** The last `id:` of the stream before it; 0: there was none. */
  id: number;
}

/** Takes what came over the stream, which is as the server's types say. */
export function takeFrame(rows: Rows, { type, data, id }: Frame): void {
  const value = JSON.parse(data);
  // The server has sent us `head` before, so its rows include it.
  const version = Math.max(id, rows.head);
  if (type === "session") return takeSession(rows, value, version);
  if (type === "span") return takeSpan(rows, value, version);
  if (type === "session_deleted") return deleteSession(rows, value.session_id, version);
  const event = readEvent(value);
  if (event !== null) takeEvent(rows, event);
}

// ─── Read from a row ─────────────────────────────────────────────────────────

/** Waiting is told apart from active: it is the one state that asks something of the person. */
export type Status = "waiting" | Session["status"];

export function statusOf({ row }: SessionEntry): Status {
  return row.waiting_since === null ? row.status : "waiting";
}

export const labelOf = ({ row }: SessionEntry) => sessionName(row);

/** Its lane reaches to now. */
export function isLive({ row }: SessionEntry): boolean {
  return row.status === "active";
}

/** What a session that waits asks; null: not said. */
export function questionOf(rows: Rows, { row }: SessionEntry): string | null {
  const wait = spansOf(rows, row.id).wait.find((span) => span.end === null)?.row;
  if (wait !== undefined) return wait.text ?? wait.name;
  return row.now?.kind === "wait" ? (row.now.text ?? row.now.name) : null;
}

/** What a session does now. */
export interface Doing {
  text: string;
  /** For how long, or when it goes on. */
  time: string | null;
}

/** In words; null: nothing that is told. */
export function doingOf(rows: Rows, session: SessionEntry, now: number): Doing | null {
  const { is_lost, stale_at, now: doing } = session.row;
  if (is_lost) {
    const age = formatAge(now - Date.parse(stale_at ?? ""));
    return { text: `Lost contact ${age === "now" ? "just now" : `${age} ago`}`, time: null };
  }
  if (statusOf(session) === "waiting") {
    const question = questionOf(rows, session);
    return question === null ? null : { text: `Asks: ${oneLine(question)}`, time: null };
  }
  if (doing === null) return null;
  const { kind, name, text, started_at } = doing;
  if (kind === "retry") {
    const { attempt, retry_at } = doing;
    const wait = retry_at == null ? null : formatAge(Date.parse(retry_at) - now);
    const next = wait === null ? null : wait === "now" ? "next try now" : `next try in ${wait}`;
    const time = joined([attempt == null ? null : `attempt ${attempt}`, next], ", ");
    return { text: oneLine(text ?? "Retry"), time: time || null };
  }
  const startedAt = Date.parse(started_at);
  // Its calls are over: the next step is about to begin.
  if (kind === "model" && hasAnswered(rows, session.row.id, startedAt)) return null;
  const agents = spansOf(rows, session.row.id).agent.filter(({ end }) => end === null);
  const [first, ...others] = agents;
  if (first !== undefined && others.some(({ start }) => start >= startedAt))
    return { text: `${agents.length} agents run`, time: formatDuration(now - first.start) };
  const call = joined([name, argsSummary(text)], ": ");
  return {
    text: kind === "model" ? `${name ?? "Model"} thinks` : oneLine(call),
    time: formatDuration(Math.max(0, now - startedAt)),
  };
}

/** Whether the model asked then has answered with calls: OpenCode ends its step after them. */
function hasAnswered(rows: Rows, sessionId: string, askedAt: number): boolean {
  return (spansOf(rows, sessionId).tool.at(-1)?.start ?? 0) >= askedAt;
}

export function isRunning(rows: Rows, { row, start, end }: SpanEntry): boolean {
  return end === null && !(row.kind === "model" && hasAnswered(rows, row.session_id, start));
}

/** The call of this span, in red where it failed. */
export function isFailedSpan({ row }: SpanEntry): boolean {
  return isFailure(row.outcome);
}

/** Where a bar ends on the screen: an open one now. */
export function shownEnd({ start, end }: SpanEntry, now: number): number {
  return end ?? Math.max(start, now);
}

/** A call of which only the moment is known. */
export function isMoment({ row }: SpanEntry): boolean {
  return row.duration_ms === null && row.started_at === row.ended_at;
}
