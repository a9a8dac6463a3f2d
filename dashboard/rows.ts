/**
 * The replica: the server's rows of sessions and spans as it sent them, and the latest events. Nothing
 * is counted, paired or concluded here; the newest row of an id wins.
 *
 * A row's version is the id of an event that it has seen: of a GET the `Last-Event-ID` in its header, of
 * the stream the last `id:` before it. Rows of an older version than what is here are left out, so a GET
 * that is answered late does no harm.
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
import { formatAge, formatAgo, formatDuration, joined, shortId } from "./format.ts";
import type { Tree } from "./tree.ts";

/** Events that the feed can show without asking the server: at some 300 bytes each, under 1 MB. */
export const MAX_FEED_EVENTS = 2_000;
/** Bars in memory: at some 800 bytes each, 10 MB. The timeline asks the server for older ones. */
export const MAX_SPANS = 12_000;
/** Let go at once, so that the cost of finding the oldest is spread over many rows. */
const EVICT_SPANS = 2_000;
/** Sessions in memory, beside those of the page that is open: what one answer holds, and as many again. */
export const MAX_SESSIONS = 2_000;

/** Events drawn as a cross: something went wrong that is no call. */
const MARK_TYPES = [...FAILURE_TYPES, "security_warn"];

export type SessionEntry = ReturnType<typeof sessionEntry>;

/** A session's row, and its times in milliseconds since 1970. */
const sessionEntry = (row: Session, version: number) => ({
  ...{ row, version },
  startedAt: Date.parse(row.started_at),
  lastEventAt: Date.parse(row.last_event_at),
});

/** What the timeline draws: a span of the server's, or an event of the feed in the same shape. */
export type SpanRow = Omit<Span, "kind"> & { kind: Span["kind"] | "mark" };

export type SpanEntry = ReturnType<typeof spanEntry>;

/** A span's row, and its times in milliseconds since 1970; without an end it is open. */
const spanEntry = (row: SpanRow, version: number) => ({
  ...{ row, version },
  start: Date.parse(row.started_at),
  end: row.ended_at === null ? null : Date.parse(row.ended_at),
});

export type Stretch = Pick<SpanEntry, "start" | "end">;

/** The spans of one session, by start. */
export type SpanGroup = Record<SpanRow["kind"], SpanEntry[]>;
type SpanGroups = { bySession: Map<string, SpanGroup>; byCall: Map<string, SpanEntry> };

export type Rows = ReturnType<typeof createRows>;

export function createRows() {
  return {
    /** The newest event that is in here. */
    head: 0,
    /** Of the sessions as they are (see tree.ts); null: one has changed since. */
    tree: null as Tree | null,
    sessions: new Map<string, SessionEntry>(),
    spans: new Map<number, SpanEntry>(),
    /** Of the spans as they are; null: one has changed since. */
    groups: null as SpanGroups | null,
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
    /** The open session and all below it: they stay, and the timeline shows them alone; empty: none is open. */
    family: new Set<string>(),
  };
}

// ─── Sessions ────────────────────────────────────────────────────────────────

export function takeSession(rows: Rows, row: Session, version: number): void {
  const known = rows.sessions.get(row.id);
  if (version < (known?.version ?? rows.deleted.get(row.id) ?? 0)) return;
  rows.sessions.set(row.id, sessionEntry(row, version));
  rows.tree = null;
  if (rows.sessions.size > MAX_SESSIONS + rows.family.size) forgetSessions(rows);
}

/** The server has deleted it: its spans and its events go too. */
export function deleteSession(rows: Rows, id: string, version: number): void {
  rows.deleted.set(id, Math.max(version, rows.sessions.get(id)?.version ?? 0) + 1);
  dropSessions(rows, new Set([id]));
  rows.feed = rows.feed.filter((event) => event.session_id !== id);
}

/** Those that ended first, by their last event; those that go on after them; those that wait last. */
function forgetSessions(rows: Rows): void {
  const worth = ({ row }: SessionEntry) =>
    row.waiting_since !== null ? 2 : row.status === "active" ? 1 : 0;
  const gone = [...rows.sessions.values()]
    .filter(({ row }) => !rows.family.has(row.id))
    .sort((a, b) => worth(a) - worth(b) || a.lastEventAt - b.lastEventAt)
    .slice(0, MAX_SESSIONS / 10);
  dropSessions(rows, new Set(gone.map(({ row }) => row.id)));
}

function dropSessions(rows: Rows, ids: ReadonlySet<string>): void {
  for (const id of ids) {
    rows.sessions.delete(id);
    rows.cursors.delete(id);
  }
  for (const [id, { row }] of rows.spans) if (ids.has(row.session_id)) rows.spans.delete(id);
  rows.tree = rows.groups = null;
}

// ─── Spans ───────────────────────────────────────────────────────────────────

export const emptyGroup = (): SpanGroup => ({ tool: [], agent: [], model: [], wait: [], mark: [] });

export const byStart = (a: SpanEntry, b: SpanEntry) => a.start - b.start || a.row.id - b.row.id;

/** All at once when they are first drawn; what comes then is put in its place. */
function groupsOf(rows: Rows): SpanGroups {
  if (rows.groups !== null) return rows.groups;
  rows.groups = { bySession: new Map(), byCall: new Map() };
  for (const entry of [...rows.spans.values()].sort(byStart)) group(rows.groups, entry);
  return rows.groups;
}

function group({ bySession, byCall }: SpanGroups, entry: SpanEntry): void {
  const { session_id, kind, call_id } = entry.row;
  const spans = bySession.get(session_id) ?? emptyGroup();
  const before = spans[kind].findLastIndex((other) => byStart(other, entry) <= 0);
  spans[kind].splice(before + 1, 0, entry);
  bySession.set(session_id, spans);
  const key = callKey(session_id, kind, call_id);
  const known = call_id === null ? entry : byCall.get(key);
  if (known === undefined || byStart(known, entry) < 0) byCall.set(key, entry);
}

export const spansOf = (rows: Rows, sessionId: string): Readonly<SpanGroup> =>
  groupsOf(rows).bySession.get(sessionId) ?? emptyGroup();

/** Its calls; an agent stands for the one that sent it out. */
export function toolsOf(rows: Rows, sessionId: string): SpanEntry[] {
  const { tool, agent } = spansOf(rows, sessionId);
  const spawned = new Set(agent.map(({ row }) => row.call_id ?? row.id));
  return tool.filter(({ row }) => !spawned.has(row.call_id ?? ""));
}

export function takeSpan(rows: Rows, row: SpanRow, version: number): void {
  const known = rows.spans.get(row.id);
  if (version < (known?.version ?? rows.deleted.get(row.session_id) ?? 0)) return;
  const entry = spanEntry(row, version);
  // The same in its place: most of what comes ends a call that is here.
  if (known?.start === entry.start && known.row.call_id === row.call_id)
    return void Object.assign(known, entry);
  rows.spans.set(row.id, entry);
  if (known !== undefined) rows.groups = null;
  else if (rows.groups !== null) group(rows.groups, entry);
  // In steps, also where much is open and little can go: finding the oldest costs the length of all.
  const isStep = known === undefined && rows.spans.size % EVICT_SPANS === 0;
  if (isStep && rows.spans.size >= MAX_SPANS) evictSpans(rows);
}

/** Takes a page of the spans of all sessions, newest first. @param page empty: the server has no older ones */
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

/** @param call_id as an event has it, whatever that is */
const callKey = (session_id: string, kind: string, call_id: unknown) =>
  `${session_id}\n${kind}\n${call_id}`;

/** Lets go of the oldest spans; open ones stay, and those of the open page up to twice the limit. */
function evictSpans(rows: Rows): void {
  const isOpen = ({ row }: SpanEntry) =>
    rows.family.has(row.session_id) && rows.spans.size < 2 * MAX_SPANS;
  const gone = [...rows.spans.values()]
    .filter((entry) => entry.end !== null && !isOpen(entry))
    .sort((a, b) => (a.end ?? 0) - (b.end ?? 0))
    .slice(0, rows.spans.size - MAX_SPANS + EVICT_SPANS);
  for (const { row, end } of gone) {
    rows.spans.delete(row.id);
    rows.cursors.delete(row.session_id);
    rows.coveredFrom = Math.max(rows.coveredFrom, end ?? 0);
    // What is gone can be asked for again, with all that is older.
    rows.oldestSpanId = Math.max(rows.oldestSpanId, row.id + 1);
  }
  rows.groups = null;
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

/** What the timeline marks with a cross comes from the events: no span tells of it. */
export function takeMarks(rows: Rows, events: readonly TelemetryEvent[]): void {
  for (const event of events)
    if (MARK_TYPES.includes(event.type)) takeSpan(rows, markOf(event).row, event.id);
}

/** A moment that no span tells of. */
export function markOf(event: TelemetryEvent): SpanEntry {
  const { id, type, session_id, at, fields } = event;
  const time = new Date(at).toISOString();
  const nothing = { call_id: null, child_session_id: null, duration_ms: null, waited_ms: null };
  const row: SpanRow = {
    ...{ id, session_id, kind: "mark", name: type, started_at: time, ended_at: time },
    ...{ ...nothing, tokens: null, cost: null, attributes: null },
    outcome: looksFailed(event) ? "failed" : null,
    text: asText(fields.reason ?? fields.message ?? fields.tool)?.slice(0, 300) ?? null,
    error: errorText(fields.error)?.slice(0, 300) ?? null,
  };
  return spanEntry(row, id);
}

const callOf = (rows: Rows, { session_id, fields }: TelemetryEvent, kind = "") =>
  groupsOf(rows).byCall.get(callKey(session_id, kind, fields.call_id));

const spanOf = (rows: Rows, event: TelemetryEvent) =>
  rows.spans.get(event.id) ?? callOf(rows, event, CALL_KINDS[event.type]);

/** The bar that tells of an event, of a call that has spawned an agent the agent's; undefined: none is here. */
export const barOf = (rows: Rows, event: TelemetryEvent) =>
  callOf(rows, event, "agent") ?? spanOf(rows, event);

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

/** Told apart: of those that are active who asks something of the person, of those that are over who failed. */
export type Status = "waiting" | "failed" | Session["status"];

export function statusOf({ row: { status, waiting_since, info } }: SessionEntry): Status {
  if (waiting_since !== null) return "waiting";
  return status === "completed" && info.reason === "error" ? "failed" : status;
}

/** What OpenCode puts behind a title: of an agent's session, and of one that it has no title for yet. */
const TITLE_SUFFIX = / ?\(@[^()]+ subagent\)$| - \d{4}-\d\d-\d\dT[\d:.]+Z$/;

/** What a person knows a session by: its title, or its directory's name, or its id. */
export function labelOf({ row: { id, info } }: SessionEntry): string {
  const title = typeof info.title === "string" ? info.title.trim().replace(TITLE_SUFFIX, "") : "";
  const directory = typeof info.directory === "string" ? info.directory.split(/[\\/]/) : [];
  return title || directory.findLast((part) => part !== "") || shortId(id);
}

export const isLive = ({ row }: SessionEntry) => row.status === "active";

/** Where its lane ends. */
export function endOf(session: SessionEntry, now: number): number {
  const { is_lost, stale_at } = session.row;
  const to = isLive(session) ? now : is_lost ? Date.parse(stale_at ?? "") : 0;
  return Math.max(to || 0, session.lastEventAt);
}

/** In the timeline: on a session's page only what belongs to it. */
export const isShown = ({ family }: Rows, id: string) => family.size === 0 || family.has(id);

/** What a session does now, and for how long, or when it goes on; null: nothing that is told. */
export function doingOf(rows: Rows, session: SessionEntry, now: number) {
  const { is_lost, stale_at, now: doing } = session.row;
  if (is_lost)
    return { text: `Lost contact ${formatAgo(now - Date.parse(stale_at ?? ""))}`, time: null };
  if (statusOf(session) === "waiting") {
    const wait = spansOf(rows, session.row.id).wait.find(({ end }) => end === null)?.row ?? doing;
    const question = wait?.kind === "wait" ? (wait.text ?? wait.name) : null;
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
const hasAnswered = (rows: Rows, sessionId: string, askedAt: number) =>
  (spansOf(rows, sessionId).tool.at(-1)?.start ?? 0) >= askedAt;

export const isRunning = (rows: Rows, { row, start, end }: SpanEntry) =>
  end === null && !(row.kind === "model" && hasAnswered(rows, row.session_id, start));

/** Drawn in red. */
export const isFailedSpan = ({ row }: SpanEntry) => isFailure(row.outcome);

/** Where a bar ends on the screen: an open one now. */
export const shownEnd = ({ start, end }: Stretch, now: number) => end ?? Math.max(start, now);

/** A call of which only the moment is known. */
export const isMoment = ({ row }: SpanEntry) =>
  row.duration_ms === null && row.started_at === row.ended_at;
