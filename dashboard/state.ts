/**
 * What the dashboard knows: a fold of events, kept in bounded buffers.
 *
 * No DOM, no clock, no network: the same calls in the same order give the same state, so it is tested
 * without a browser. It is loaded once from the GET routes (`loadSessions`, `loadHistory`, …), then
 * `foldEvent` takes the stream from exactly that point. What depends on the time of day (stale,
 * running, per minute) is derived when read, from the `now` that is passed in.
 */

import type { Activity, AgentRun, EventType, Session, ToolCall } from "../server.ts";

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;

/** As the server: an active session without an event for this long is stale. */
const STALE_MS = HOUR_MS;

/** Events that the feed can show without asking the server: at some 300 bytes each, under 1 MB. */
export const MAX_FEED_EVENTS = 2_000;
/** Bars in memory: at some 500 bytes each, under 10 MB. The timeline asks the server for older ones. */
export const MAX_SPANS = 12_000;
/** Let go at once, so that the cost of finding the oldest is spread over many events. */
const EVICT_SPANS = 2_000;
/** Sessions in memory: what one answer of the server holds, and as many again from the stream. */
const MAX_SESSIONS = 2_000;
const MAX_MINUTES = 120;
/** Of arguments, prompts and errors, for the readout. The rest is fetched when it is opened. */
const MAX_TEXT_CHARS = 300;
/** Completions of one session whose spawn hasn't come: it was lost, or is older than what is loaded. */
const MAX_OPEN_ENDS = 1_000;

/** Every type of event, in the words of the page. A type that the server adds is missing here at compile time. */
export const EVENT_LABELS: Record<EventType, string> = {
  session_start: "Session started",
  session_update: "Session updated",
  session_end: "Session ended",
  session_error: "Session error",
  tool_use: "Tool",
  agent_spawn: "Agent started",
  agent_complete: "Agent finished",
  input_requested: "Waits for you",
  input_resolved: "Answered",
  tool_blocked: "Tool blocked",
  security_block: "Security block",
  security_warn: "Security warning",
  message_user: "Your message",
  message_assistant: "Reply",
  rating_explicit: "Rating",
  rating_implicit: "Mood rating",
  voice_sent: "Voice",
  learning_captured: "Learning",
  isc_validated: "Criteria checked",
  context_loaded: "Context loaded",
};

export const EVENT_TYPES = Object.keys(EVENT_LABELS).filter(isEventType);

/** Events drawn as a mark of their own: something went wrong that is no call. */
const MARKS: ReadonlySet<EventType> = new Set<EventType>([
  "session_error",
  "tool_blocked",
  "security_block",
  "security_warn",
]);

// ─── Types ───────────────────────────────────────────────────────────────────

export interface TelemetryEvent {
  id: number;
  type: EventType;
  session_id: string;
  /** Milliseconds since 1970. */
  at: number;
  /** The whole event as it was sent, envelope included. */
  fields: Readonly<Record<string, unknown>>;
}

/** Something that took time in a session: a bar of the timeline. */
export interface Span {
  /** Of the event that told of it first. */
  id: number;
  kind: "tool" | "agent" | "wait" | "mark";
  sessionId: string;
  /** The tool, the subagent_type, what is waited for, or the type of a mark. */
  name: string;
  /** Milliseconds since 1970. */
  start: number;
  /** null: not known to have ended. */
  end: number | null;
  /** False where only a moment is known, not a length. */
  isTimed: boolean;
  hasFailed: boolean;
  callId: string | null;
  /** The session in which an agent works. */
  childId: string | null;
  /** Arguments or prompt, cut. */
  text: string | null;
  error: string | null;
}

interface Completion {
  id: number;
  name: string | null;
  callId: string | null;
  at: number;
  duration: number | null;
  hasFailed: boolean;
  childId: string | null;
  error: string | null;
}

/** To one request, or by the end of the session to all. */
interface Answer {
  at: number;
  requestId: string | null;
}

type Fact = { at: number; value: unknown };

/** Times are milliseconds since 1970; 0 where there was none yet. */
export interface SessionState {
  id: string;
  startedAt: number;
  lastEventAt: number;
  lastActivityAt: number;
  lastEndAt: number;
  askedAt: number;
  answeredAt: number;
  /** What the latest request asks. */
  question: string | null;
  eventCount: number;
  toolCount: number;
  agentCount: number;
  errorCount: number;
  facts: Map<string, Fact>;
  /** These four by start. */
  tools: Span[];
  agents: Span[];
  waits: Span[];
  marks: Span[];
  /** By call_id: ends that were told before, or after, their spawn. */
  ends: Map<string, Completion>;
  unkeyedEnds: Completion[];
  answers: Answer[];
  /** All its calls are loaded, however old. */
  isWhole: boolean;
}

export type Status = "waiting" | "active" | "completed" | "stale";

export interface DashboardState {
  /** The newest event that is in here. */
  head: number;
  /** The newest event that the counts per minute had when they were loaded. */
  minutesHead: number;
  /** Grows with every change: what is drawn can be compared with it. */
  revision: number;
  sessions: Map<string, SessionState>;
  /** By id, so that what is loaded twice is there once. */
  spans: Map<number, Span>;
  /** Oldest first, the latest MAX_FEED_EVENTS. */
  feed: TelemetryEvent[];
  minutes: Map<number, { count: number; errors: number }>;
  /** Older events are at the server under smaller ids; 0: there are none. */
  oldestId: number;
  /** The calls since this time are loaded; 0: all are. */
  coveredFrom: number;
  /** Sessions whose spans stay: those that are open on the page. */
  pinned: ReadonlySet<string>;
}

export function createState(): DashboardState {
  return {
    head: 0,
    minutesHead: 0,
    revision: 0,
    sessions: new Map(),
    spans: new Map(),
    feed: [],
    minutes: new Map(),
    oldestId: 0,
    coveredFrom: 0,
    pinned: new Set(),
  };
}

// ─── Reading what the server sends ───────────────────────────────────────────

/** The event in a frame of the stream or an item of the history; null where it isn't one. */
export function readEvent(raw: unknown): TelemetryEvent | null {
  if (!isRecord(raw)) return null;
  const { id, type, session_id, timestamp } = raw;
  if (typeof id !== "number" || typeof session_id !== "string" || !isEventType(type)) return null;
  const at = typeof timestamp === "string" ? Date.parse(timestamp) : NaN;
  return Number.isNaN(at) ? null : { id, type, session_id, at, fields: raw };
}

export function isEventType(value: unknown): value is EventType {
  return typeof value === "string" && Object.hasOwn(EVENT_LABELS, value);
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** `success` decides where it is given; else an `error` does. As the server. */
export function hasFailed({ type, fields }: TelemetryEvent): boolean {
  if (typeof fields.success === "boolean") return !fields.success;
  return type === "session_error" || (fields.error ?? "") !== "";
}

/** How long it took, in milliseconds; null: not said. */
export function durationOf({ type, fields }: TelemetryEvent): number | null {
  if (type === "session_end")
    return typeof fields.duration_seconds === "number" ? fields.duration_seconds * SECOND_MS : null;
  return numberOrNull(fields.duration_ms);
}

/** Any value on one line: a string as it is, all else as JSON. Null: nothing to show. */
export function asText(value: unknown): string | null {
  if (value === null || value === undefined || value === "") return null;
  return typeof value === "string" ? value : JSON.stringify(value);
}

// ─── Loading ─────────────────────────────────────────────────────────────────

/** Takes the list of sessions; their counts include every event up to `head`. */
export function loadSessions(state: DashboardState, sessions: Session[], head: number): void {
  for (const row of sessions) loadSession(state, row);
  state.head = head;
  state.minutesHead = head;
  state.revision++;
}

/** Takes one session, as it is at `state.head`; one that is in here already stays. */
export function loadSession(state: DashboardState, row: Session): void {
  if (state.sessions.has(row.id)) return;
  const lastEventAt = Date.parse(row.last_event_at);
  const session = createSession(row.id, Date.parse(row.started_at));
  session.lastEventAt = lastEventAt;
  session.lastEndAt = row.ended_at === null ? 0 : Date.parse(row.ended_at);
  // The list doesn't say which event was the latest; for the status this is as good.
  session.lastActivityAt = row.ended_at === null ? lastEventAt : 0;
  session.askedAt = row.waiting_since === null ? 0 : Date.parse(row.waiting_since);
  session.eventCount = row.event_count;
  session.toolCount = row.tool_count;
  session.agentCount = row.agent_count;
  session.errorCount = row.error_count;
  for (const [name, value] of Object.entries(row.info))
    session.facts.set(name, { at: lastEventAt, value });
  if (row.parent_session_id !== null)
    session.facts.set("parent_session_id", { at: lastEventAt, value: row.parent_session_id });
  state.sessions.set(row.id, session);
  state.revision++;
}

/**
 * Takes a page of the history, in any order: calls and feed, not the counts, which the list of
 * sessions has. Events newer than `state.head` are left to the stream.
 *
 * @param isLast the server has no older events
 */
export function loadHistory(
  state: DashboardState,
  events: TelemetryEvent[],
  isLast: boolean,
): void {
  const older = events.filter((event) => event.id <= state.head).sort((a, b) => a.id - b.id);
  for (const event of older) {
    const session = state.sessions.get(event.session_id);
    if (session === undefined) continue; // beyond the list, which holds the latest
    foldTimes(session, event);
    foldSpans(state, session, event);
  }
  const firstInFeed = state.feed[0]?.id ?? Infinity;
  const room = MAX_FEED_EVENTS - state.feed.length;
  if (room > 0) state.feed.unshift(...older.filter((event) => event.id < firstInFeed).slice(-room));
  const first = older[0];
  if (isLast) {
    state.oldestId = 0;
    state.coveredFrom = 0;
  } else if (first !== undefined) {
    state.oldestId = first.id;
    state.coveredFrom = first.at;
  }
  evict(state);
  state.revision++;
}

/** Takes the answer of /api/sessions/:id: all its calls, however old. */
export function loadDetail(
  state: DashboardState,
  sessionId: string,
  tools: ToolCall[],
  agents: AgentRun[],
): void {
  const session = state.sessions.get(sessionId);
  if (session === undefined) return;
  for (const call of tools) {
    const end = Date.parse(call.timestamp);
    addSpan(state, session, {
      id: call.id,
      kind: "tool",
      sessionId,
      name: call.tool,
      start: end - (call.duration_ms ?? 0),
      end,
      isTimed: call.duration_ms !== null,
      hasFailed: call.success === false,
      callId: call.call_id,
      childId: null,
      text: cut(call.args),
      error: cut(asText(call.error)),
    });
  }
  for (const run of agents) {
    const at = Date.parse(run.timestamp);
    const completedAt = run.completed_at === null ? null : Date.parse(run.completed_at);
    const times =
      completedAt !== null
        ? {
            start:
              run.duration_ms === null ? Math.min(at, completedAt) : completedAt - run.duration_ms,
            end: completedAt,
            isTimed: true,
          }
        : agentTimes(at, run.duration_ms, run.success !== null);
    addSpan(state, session, {
      id: run.id,
      kind: "agent",
      sessionId,
      name: run.subagent_type,
      ...times,
      hasFailed: run.success === false,
      callId: run.call_id,
      childId: run.child_session_id,
      text: cut(run.prompt),
      error: cut(asText(run.error)),
    });
  }
  session.isWhole = true;
  state.revision++;
}

/** Takes the counts per minute, which include every event up to `head`. */
export function loadActivity(state: DashboardState, activity: Activity[], head: number): void {
  state.minutes.clear();
  for (const { timestamp, count, error_count } of activity)
    state.minutes.set(Date.parse(timestamp), { count, errors: error_count });
  state.minutesHead = head;
  state.revision++;
}

// ─── The fold ────────────────────────────────────────────────────────────────

/** Takes one event of the stream. One that is in here already changes nothing. */
export function foldEvent(state: DashboardState, event: TelemetryEvent): void {
  if (event.id <= state.head) return;
  state.head = event.id;
  state.revision++;

  let session = state.sessions.get(event.session_id);
  if (session === undefined) {
    session = createSession(event.session_id, event.at);
    session.isWhole = true;
    state.sessions.set(event.session_id, session);
    forgetSessions(state);
  }
  const failed = hasFailed(event);
  session.eventCount++;
  if (event.type === "tool_use") session.toolCount++;
  if (event.type === "agent_spawn") session.agentCount++;
  if (failed) session.errorCount++;
  foldTimes(session, event);
  if (
    event.type === "session_start" ||
    event.type === "session_update" ||
    event.type === "session_end"
  )
    foldFacts(session, event);
  foldSpans(state, session, event);

  if (event.id > state.minutesHead) {
    const start = event.at - (event.at % MINUTE_MS);
    const minute = state.minutes.get(start) ?? { count: 0, errors: 0 };
    minute.count++;
    if (failed) minute.errors++;
    state.minutes.set(start, minute);
    if (state.minutes.size > MAX_MINUTES) state.minutes.delete(Math.min(...state.minutes.keys()));
  }

  state.feed.push(event);
  // In steps of a quarter: cutting the front off an array costs its length.
  if (state.feed.length > MAX_FEED_EVENTS * 1.25) state.feed = state.feed.slice(-MAX_FEED_EVENTS);
  evict(state);
}

/** The rules of the server's fold: what is latest counts, in whatever order it comes. */
function foldTimes(session: SessionState, { type, at, fields }: TelemetryEvent): void {
  session.startedAt = Math.min(session.startedAt, at);
  session.lastEventAt = Math.max(session.lastEventAt, at);
  if (type === "session_end") session.lastEndAt = Math.max(session.lastEndAt, at);
  // An update is no activity: one is sent right after a turn has ended.
  else if (type !== "session_update") session.lastActivityAt = Math.max(session.lastActivityAt, at);
  if (type === "input_resolved") session.answeredAt = Math.max(session.answeredAt, at);
  if (type === "input_requested" && at >= session.askedAt) {
    session.askedAt = at;
    session.question = cut(asText(fields.detail) ?? asText(fields.kind));
  }
}

const FACTS = [
  "title",
  "directory",
  "agent",
  "model",
  "parent_session_id",
  "tokens",
  "cost",
] as const;

function foldFacts(session: SessionState, { at, fields }: TelemetryEvent): void {
  for (const name of FACTS) {
    const value = fields[name];
    if (value === null || value === undefined) continue;
    const known = session.facts.get(name);
    // At the same time the greater JSON text wins, as at the server.
    const isNewer =
      known === undefined ||
      at > known.at ||
      (at === known.at && JSON.stringify(value) > JSON.stringify(known.value));
    if (isNewer) session.facts.set(name, { at, value });
  }
}

function foldSpans(state: DashboardState, session: SessionState, event: TelemetryEvent): void {
  const { id, type, at, fields } = event;
  const base = {
    id,
    sessionId: session.id,
    hasFailed: hasFailed(event),
    callId: textOrNull(fields.call_id),
    error: cut(asText(fields.error)),
  };
  switch (type) {
    case "tool_use": {
      const duration = durationOf(event);
      addSpan(state, session, {
        ...base,
        kind: "tool",
        name: textOrNull(fields.tool) ?? "",
        start: at - (duration ?? 0),
        end: at,
        isTimed: duration !== null,
        childId: null,
        text: cut(asText(fields.args)),
      });
      break;
    }
    case "agent_spawn":
      addSpan(state, session, {
        ...base,
        kind: "agent",
        name: textOrNull(fields.subagent_type) ?? "unknown",
        ...agentTimes(at, durationOf(event), typeof fields.success === "boolean"),
        childId: textOrNull(fields.child_session_id),
        text: cut(asText(fields.prompt)),
      });
      break;
    case "agent_complete":
      addCompletion(session, {
        ...base,
        name: textOrNull(fields.subagent_type),
        at,
        duration: durationOf(event),
        childId: textOrNull(fields.child_session_id),
      });
      break;
    case "input_requested":
      addSpan(state, session, {
        ...base,
        kind: "wait",
        name: textOrNull(fields.kind) ?? "input",
        start: at,
        end: null,
        isTimed: true,
        callId: textOrNull(fields.request_id),
        childId: null,
        text: cut(asText(fields.detail)),
      });
      break;
    default:
      if (MARKS.has(type))
        addSpan(state, session, {
          ...base,
          kind: "mark",
          name: type,
          start: at,
          end: at,
          isTimed: false,
          hasFailed: true,
          childId: null,
          text: cut(asText(fields.reason ?? fields.message ?? fields.tool)),
        });
  }
  if (type === "input_resolved" || type === "session_end") {
    const answer = { at, requestId: textOrNull(fields.request_id) };
    session.answers.push(answer);
    if (session.answers.length > MAX_OPEN_ENDS) session.answers.shift();
    for (const wait of session.waits) endWait(wait, answer);
  }
}

/** An agent's timestamp is its start, unless it has its own duration: then its end. */
function agentTimes(at: number, duration: number | null, isKnownToHaveEnded: boolean) {
  if (duration !== null) return { start: at - duration, end: at, isTimed: true };
  return { start: at, end: isKnownToHaveEnded ? at : null, isTimed: !isKnownToHaveEnded };
}

function addSpan(state: DashboardState, session: SessionState, span: Span): void {
  const known = state.spans.get(span.id);
  if (known !== undefined) {
    // The same call, read again with its end.
    if (known.kind === "agent" && known.end === null && span.end !== null) {
      Object.assign(known, { end: span.end, hasFailed: span.hasFailed, error: span.error });
      moveStart(session.agents, known, span.start);
    }
    return;
  }
  state.spans.set(span.id, span);
  switch (span.kind) {
    case "tool":
      insertByStart(session.tools, span);
      break;
    case "agent":
      insertByStart(session.agents, span);
      pairAgent(session, span);
      break;
    case "wait":
      insertByStart(session.waits, span);
      for (const answer of session.answers) endWait(span, answer);
      break;
    case "mark":
      insertByStart(session.marks, span);
  }
}

function addCompletion(session: SessionState, end: Completion): void {
  if (end.callId !== null) {
    if (!session.ends.has(end.callId)) session.ends.set(end.callId, end);
    const [oldest] = session.ends.keys();
    if (session.ends.size > MAX_OPEN_ENDS && oldest !== undefined) session.ends.delete(oldest);
    const agent = session.agents.find((span) => span.callId === end.callId);
    if (agent !== undefined) pairAgent(session, agent);
    return;
  }
  if (session.unkeyedEnds.some((known) => known.id === end.id)) return;
  session.unkeyedEnds.push(end);
  session.unkeyedEnds.sort((a, b) => a.at - b.at || a.id - b.id);
  if (session.unkeyedEnds.length > MAX_OPEN_ENDS) session.unkeyedEnds.shift();
  for (const agent of session.agents) if (agent.end === null) pairAgent(session, agent);
}

/** A completion belongs to the spawn of its call_id; without one, to the first open one of its type. */
function pairAgent(session: SessionState, agent: Span): void {
  if (agent.end !== null && agent.isTimed) return;
  let end: Completion | undefined;
  if (agent.callId !== null) end = session.ends.get(agent.callId);
  if (end === undefined) {
    const index = session.unkeyedEnds.findIndex(
      (known) => known.name === agent.name && known.at >= agent.start,
    );
    if (index >= 0) [end] = session.unkeyedEnds.splice(index, 1);
  }
  if (end === undefined) return;
  agent.end = Math.max(agent.start, end.at);
  if (end.duration !== null) moveStart(session.agents, agent, agent.end - end.duration);
  agent.isTimed = true;
  agent.hasFailed ||= end.hasFailed;
  agent.error ??= end.error;
  agent.childId ??= end.childId;
}

/** A wait ends with the first answer to its request, or with the session; either may be told before it. */
function endWait(wait: Span, { at, requestId }: Answer): void {
  const isMeant = requestId === null || wait.callId === null || wait.callId === requestId;
  if (isMeant && at >= wait.start && (wait.end === null || wait.end > at)) wait.end = at;
}

function insertByStart(spans: Span[], span: Span): void {
  spans.splice(indexByStart(spans, span.start), 0, span);
}

/** `span` is in `spans`, and stays in the order of their starts. */
function moveStart(spans: Span[], span: Span, start: number): void {
  spans.splice(spans.indexOf(span), 1);
  span.start = start;
  insertByStart(spans, span);
}

/** The index of the first span that starts later; in `spans`, sorted by start. */
function indexByStart(spans: Span[], start: number): number {
  let low = 0;
  let high = spans.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((spans[middle]?.start ?? Infinity) <= start) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Lets go of the oldest spans where there are too many; running and pinned ones stay. */
function evict(state: DashboardState): void {
  if (state.spans.size <= MAX_SPANS) return;
  const candidates = [...state.spans.values()]
    .filter((span) => span.end !== null && !state.pinned.has(span.sessionId))
    .sort((a, b) => (a.end ?? 0) - (b.end ?? 0))
    .slice(0, state.spans.size - MAX_SPANS + EVICT_SPANS);
  const gone = new Set(candidates);
  const affected = new Set<string>();
  for (const span of gone) {
    state.spans.delete(span.id);
    affected.add(span.sessionId);
    state.coveredFrom = Math.max(state.coveredFrom, span.end ?? 0);
  }
  for (const id of affected) {
    const session = state.sessions.get(id);
    if (session === undefined) continue;
    const isKept = (span: Span) => !gone.has(span);
    session.tools = session.tools.filter(isKept);
    session.agents = session.agents.filter(isKept);
    session.waits = session.waits.filter(isKept);
    session.marks = session.marks.filter(isKept);
    session.isWhole = false;
    for (const [callId, end] of session.ends)
      if (end.at < state.coveredFrom) session.ends.delete(callId);
    session.unkeyedEnds = session.unkeyedEnds.filter((end) => end.at >= state.coveredFrom);
  }
  // What is gone could be asked for again, but not by id from where the history was left.
  state.oldestId = Math.max(state.oldestId, ...candidates.map((span) => span.id));
}

function forgetSessions(state: DashboardState): void {
  if (state.sessions.size <= MAX_SESSIONS) return;
  const oldest = [...state.sessions.values()]
    .filter((session) => !state.pinned.has(session.id))
    .sort((a, b) => a.lastEventAt - b.lastEventAt)
    .slice(0, MAX_SESSIONS / 10);
  for (const session of oldest) {
    state.sessions.delete(session.id);
    for (const spans of [session.tools, session.agents, session.waits, session.marks])
      for (const span of spans) state.spans.delete(span.id);
  }
}

function createSession(id: string, startedAt: number): SessionState {
  return {
    id,
    startedAt,
    lastEventAt: startedAt,
    lastActivityAt: 0,
    lastEndAt: 0,
    askedAt: 0,
    answeredAt: 0,
    question: null,
    eventCount: 0,
    toolCount: 0,
    agentCount: 0,
    errorCount: 0,
    facts: new Map(),
    tools: [],
    agents: [],
    waits: [],
    marks: [],
    ends: new Map(),
    unkeyedEnds: [],
    answers: [],
    isWhole: false,
  };
}

// ─── Derived when read ───────────────────────────────────────────────────────

/** Waiting wins over all else: it is the one state that asks something of the person. */
export function statusOf(session: SessionState, now: number): Status {
  if (session.askedAt > Math.max(session.answeredAt, session.lastEndAt)) return "waiting";
  if (session.lastEndAt > 0 && session.lastEndAt >= session.lastActivityAt) return "completed";
  return now - session.lastEventAt >= STALE_MS ? "stale" : "active";
}

/** The title, or the directory's name, or the id's tail: the heads of ids are alike. */
export function labelOf(session: SessionState): string {
  const title = session.facts.get("title")?.value;
  if (typeof title === "string" && title.trim() !== "") return title;
  const directory = session.facts.get("directory")?.value;
  const name = typeof directory === "string" ? directory.split(/[\\/]/).findLast((p) => p) : null;
  return name ?? shortId(session.id);
}

export function shortId(id: string): string {
  return id.length <= 12 ? id : `…${id.slice(-8)}`;
}

export function parentOf(session: SessionState): string | null {
  return textOrNull(session.facts.get("parent_session_id")?.value);
}

/** All tokens together; null: not known. */
export function tokensOf(session: SessionState): number | null {
  const tokens = session.facts.get("tokens")?.value;
  if (isRecord(tokens) && typeof tokens.total === "number") return tokens.total;
  return sumOfNumbers(tokens);
}

export function costOf(session: SessionState): number | null {
  return numberOrNull(session.facts.get("cost")?.value);
}

/** Running: no completion, no duration, no `success` is known, and its session goes on. */
export function isRunning(span: Span, session: SessionState, now: number): boolean {
  if (span.end !== null) return false;
  const status = statusOf(session, now);
  if (span.kind === "wait") return status === "waiting";
  return status !== "completed" && now - session.lastEventAt < STALE_MS;
}

/** Where a bar ends on the screen: a running one now, one whose end was never told with its session. */
export function shownEnd(span: Span, session: SessionState, now: number): number {
  if (span.end !== null) return span.end;
  if (isRunning(span, session, now)) return Math.max(span.start, now);
  return Math.max(span.start, session.lastEventAt);
}

export interface Headline {
  activeSessions: number;
  runningAgents: number;
  /** Longest waiting first. */
  waiting: SessionState[];
  eventsPerMinute: number;
  errorsLastHour: number;
  /** The last sixty minutes, oldest first; the last one is not over yet. */
  pulse: { start: number; count: number; errors: number }[];
}

/** What the header says. Child sessions are their parents' agents: they count there. */
export function headline(state: DashboardState, now: number): Headline {
  let activeSessions = 0;
  let runningAgents = 0;
  const waiting: SessionState[] = [];
  for (const session of state.sessions.values()) {
    const status = statusOf(session, now);
    if (status === "waiting") waiting.push(session);
    if (status === "completed" || now - session.lastEventAt >= STALE_MS) continue;
    const parent = parentOf(session);
    if (parent === null || !state.sessions.has(parent)) activeSessions++;
    for (const agent of session.agents) if (isRunning(agent, session, now)) runningAgents++;
  }
  waiting.sort((a, b) => a.askedAt - b.askedAt);

  const thisMinute = now - (now % MINUTE_MS);
  const pulse = Array.from({ length: 60 }, (_, index) => {
    const start = thisMinute - (59 - index) * MINUTE_MS;
    return { start, ...(state.minutes.get(start) ?? { count: 0, errors: 0 }) };
  });
  // The last minute as a sliding window: all of this one and the part of the one before that is still in it.
  const [previous, current] = pulse.slice(-2);
  const elapsed = (now - thisMinute) / MINUTE_MS;
  return {
    activeSessions,
    runningAgents,
    waiting,
    eventsPerMinute: Math.round((current?.count ?? 0) + (previous?.count ?? 0) * (1 - elapsed)),
    errorsLastHour: pulse.reduce((sum, minute) => sum + minute.errors, 0),
    pulse,
  };
}

/** A line of the session list. */
export type SessionRow =
  | { kind: "session"; session: SessionState; status: Status; depth: number }
  /** The ended children of `parent`, shown or not. */
  | { kind: "ended"; parent: SessionState; count: number; isOpen: boolean; depth: number };

/**
 * Sessions by latest activity, children (and theirs) under their parent, which they keep up with
 * them. Children that have ended are folded into one line, unless something is searched for.
 *
 * @param open parents whose ended children are shown
 */
export function sessionTree(
  state: DashboardState,
  filter: { text: string; status: Status | null },
  open: ReadonlySet<string>,
  now: number,
): SessionRow[] {
  const children = childrenByParent(state);
  const latest = new Map<string, number>();
  const latestOf = (session: SessionState): number => {
    const known = latest.get(session.id);
    if (known !== undefined) return known;
    latest.set(session.id, session.lastEventAt); // ends a circle of parents
    const value = (children.get(session.id) ?? []).reduce(
      (at, child) => Math.max(at, latestOf(child)),
      session.lastEventAt,
    );
    latest.set(session.id, value);
    return value;
  };
  const needle = filter.text.trim().toLowerCase();
  const isFiltered = needle !== "" || filter.status !== null;
  const rows: SessionRow[] = [];
  const seen = new Set<string>();
  const visit = (session: SessionState, depth: number): void => {
    if (seen.has(session.id)) return;
    seen.add(session.id);
    const status = statusOf(session, now);
    const isMatch =
      (filter.status === null || filter.status === status) &&
      (needle === "" || searchText(session).includes(needle));
    const index = rows.length;
    if (isMatch) rows.push({ kind: "session", session, status, depth });
    const below = (children.get(session.id) ?? []).sort(
      (a, b) => b.startedAt - a.startedAt || (a.id < b.id ? 1 : -1),
    );
    const goesOn = (child: SessionState): boolean => {
      const its = statusOf(child, now);
      return its === "active" || its === "waiting";
    };
    for (const child of below) if (isFiltered || goesOn(child)) visit(child, depth + 1);
    const ended = isFiltered ? [] : below.filter((child) => !goesOn(child) && !seen.has(child.id));
    if (ended.length > 0) {
      const isOpen = open.has(session.id);
      rows.push({ kind: "ended", parent: session, count: ended.length, isOpen, depth: depth + 1 });
      if (isOpen) for (const child of ended) visit(child, depth + 1);
      else for (const child of ended) seen.add(child.id);
    }
    // A parent of a match is shown too, so that a child is never without its place.
    if (!isMatch && rows.length > index)
      rows.splice(index, 0, { kind: "session", session, status, depth });
  };
  rootsOf(state)
    .sort((a, b) => latestOf(b) - latestOf(a) || (a.id < b.id ? -1 : 1))
    .forEach((session) => visit(session, 0));
  return rows;
}

function searchText(session: SessionState): string {
  const directory = asText(session.facts.get("directory")?.value) ?? "";
  return `${labelOf(session)}\n${directory}\n${session.id}`.toLowerCase();
}

/** Sessions without a parent that is known; those in a circle of parents too. */
export function rootsOf(state: DashboardState): SessionState[] {
  return [...state.sessions.values()].filter((session) => {
    const seen = new Set([session.id]);
    for (let at = parentOf(session); at !== null;) {
      if (seen.has(at)) return true;
      seen.add(at);
      const parent = state.sessions.get(at);
      if (parent === undefined) return seen.size === 2;
      at = parentOf(parent);
      if (at === null) return false;
    }
    return true;
  });
}

export function childrenByParent(state: DashboardState): Map<string, SessionState[]> {
  const children = new Map<string, SessionState[]>();
  for (const session of state.sessions.values()) {
    const parent = parentOf(session);
    if (parent === null) continue;
    const siblings = children.get(parent);
    if (siblings === undefined) children.set(parent, [session]);
    else siblings.push(session);
  }
  return children;
}

/** A session and all below it. */
export function familyOf(state: DashboardState, id: string): Set<string> {
  const children = childrenByParent(state);
  const family = new Set([id]);
  for (const member of family)
    // a set's loop takes in what is added meanwhile
    for (const child of children.get(member) ?? []) family.add(child.id);
  return family;
}

// ─── Lanes ───────────────────────────────────────────────────────────────────

/** A row of the timeline: a session, or a subagent of it, with what is drawn there. */
export interface Lane {
  key: string;
  session: SessionState;
  kind: "session" | "agent";
  depth: number;
  label: string;
  /** The agent that works here. Several where they follow each other without a session of their own. */
  agents: Span[];
  tools: Span[];
  waits: Span[];
  marks: Span[];
}

/**
 * The lanes with something between `from` and `to` (milliseconds). What goes on stands above what
 * has ended, what started later above what started earlier: new events don't disturb that order.
 *
 * @param scope only these sessions; null: all
 */
export function lanesOf(
  state: DashboardState,
  scope: ReadonlySet<string> | null,
  from: number,
  to: number,
  now: number,
): Lane[] {
  const children = childrenByParent(state);
  const lanes: Lane[] = [];
  const seen = new Set<string>();
  const byLife = (a: SessionState, b: SessionState) =>
    Number(isLive(b, now)) - Number(isLive(a, now)) ||
    b.startedAt - a.startedAt ||
    (a.id < b.id ? -1 : 1);
  const isShown = (span: Span, session: SessionState) =>
    span.start <= to && shownEnd(span, session, now) >= from;

  const visit = (session: SessionState, depth: number, agent: Span | null): void => {
    if (seen.has(session.id)) return;
    seen.add(session.id);
    const below = children.get(session.id) ?? [];
    const childIds = new Set(below.map((child) => child.id));
    const agentCalls = new Set(session.agents.map((span) => span.callId));
    const index = lanes.length;
    const isInScope = scope === null || scope.has(session.id);

    const slots: Span[][] = [];
    const byChild = new Map<string, Span>();
    for (const span of session.agents) {
      if (span.childId !== null && childIds.has(span.childId)) byChild.set(span.childId, span);
      else if (isInScope && isShown(span, session)) packLane(slots, span, session, now);
    }
    const laneOfSlot = (spans: Span[], slot: number): Lane => ({
      key: `${session.id}\n${spans[0]?.name}\n${slot}`,
      session,
      kind: "agent",
      depth: depth + 1,
      label: spans[0]?.name ?? "",
      agents: spans,
      tools: [],
      waits: [],
      marks: [],
    });
    const isOpen = (span: Span) => isRunning(span, session, now);
    slots
      .map((spans, slot) => ({ spans, slot }))
      .sort(
        (a, b) =>
          Number(b.spans.some(isOpen)) - Number(a.spans.some(isOpen)) ||
          (b.spans.at(-1)?.start ?? 0) - (a.spans.at(-1)?.start ?? 0),
      )
      .forEach(({ spans, slot }) => lanes.push(laneOfSlot(spans, slot)));
    for (const child of below.sort(byLife)) visit(child, depth + 1, byChild.get(child.id) ?? null);

    if (!isInScope) return;
    const end = isLive(session, now) ? Math.max(now, session.lastEventAt) : session.lastEventAt;
    if (lanes.length === index && (session.startedAt > to || end < from)) return;
    lanes.splice(index, 0, {
      key: session.id,
      session,
      kind: agent === null ? "session" : "agent",
      depth,
      label: agent?.name ?? labelOf(session),
      agents: agent === null ? [] : [agent],
      // The call that spawned an agent has the agent's lane.
      tools:
        agentCalls.size === 0
          ? session.tools
          : session.tools.filter((span) => span.callId === null || !agentCalls.has(span.callId)),
      waits: session.waits,
      marks: session.marks,
    });
  };
  rootsOf(state)
    .sort(byLife)
    .forEach((session) => visit(session, 0, null));
  return lanes;
}

/** Agents of one type that follow each other share a lane; those that overlap don't. */
function packLane(slots: Span[][], span: Span, session: SessionState, now: number): void {
  const slot = slots.find((spans) => {
    const last = spans.at(-1);
    return (
      last !== undefined && last.name === span.name && shownEnd(last, session, now) <= span.start
    );
  });
  if (slot === undefined) slots.push([span]);
  else slot.push(span);
}

/** It goes on, so its lane reaches to now. */
export function isLive(session: SessionState, now: number): boolean {
  return statusOf(session, now) !== "completed" && now - session.lastEventAt < STALE_MS;
}

// ─── Feed ────────────────────────────────────────────────────────────────────

export interface FeedFilter {
  /** "failed": events of any type that tell of a failure. */
  type: EventType | "failed" | null;
  tool: string;
  sessionId: string | null;
  text: string;
}

export function matchesFilter(event: TelemetryEvent, filter: FeedFilter): boolean {
  const { type, tool, sessionId, text } = filter;
  if (sessionId !== null && event.session_id !== sessionId) return false;
  if (type === "failed" ? !hasFailed(event) : type !== null && event.type !== type) return false;
  if (tool !== "") {
    const name = textOrNull(event.fields.tool) ?? textOrNull(event.fields.subagent_type) ?? "";
    if (!name.toLowerCase().includes(tool.toLowerCase())) return false;
  }
  return text === "" || JSON.stringify(event.fields).toLowerCase().includes(text.toLowerCase());
}

/** What an event is about, on one line; null: its type says it all. */
export function summaryOf({ type, fields }: TelemetryEvent): string | null {
  switch (type) {
    case "tool_use":
      return asText(fields.error) ?? argsSummary(fields.args);
    case "agent_spawn":
      return `started: ${asText(fields.prompt) ?? "no prompt"}`;
    case "agent_complete":
      return fields.success === false
        ? `failed: ${asText(fields.error) ?? "no reason"}`
        : "finished";
    case "session_start":
    case "session_update":
      return asText(fields.title) ?? asText(fields.directory);
    case "input_requested":
      return asText(fields.detail) ?? asText(fields.kind);
    case "input_resolved":
      return asText(fields.reply) ?? asText(fields.kind);
    default:
      return (
        asText(fields.error) ??
        asText(fields.message) ??
        asText(fields.reason) ??
        asText(fields.text) ??
        asText(fields.content)
      );
  }
}

const SUMMARY_ARGS = [
  "command",
  "pattern",
  "filePath",
  "file_path",
  "path",
  "url",
  "query",
  "description",
  "prompt",
];

/** The one argument that tells most of a call, else all of them as JSON. */
export function argsSummary(args: unknown): string | null {
  const parsed = typeof args === "string" ? parseRecord(args) : args;
  if (isRecord(parsed)) {
    for (const name of SUMMARY_ARGS) {
      const value = parsed[name];
      if (typeof value === "string" && value !== "") return value;
    }
    return Object.keys(parsed).length === 0 ? null : JSON.stringify(parsed);
  }
  return asText(args);
}

/** The object in a JSON text; null where it is something else, or cut short. */
export function parseRecord(text: string): Record<string, unknown> | null {
  if (!text.startsWith("{")) return null;
  try {
    const value: unknown = JSON.parse(text);
    return isRecord(value) ? value : null;
  } catch {
    return null;
  }
}

// ─── The address ─────────────────────────────────────────────────────────────

/** What the part of the address after # says: which page, and how the feed is filtered. */
export interface Route {
  /** Of the session page; null: the overview. */
  sessionId: string | null;
  filter: FeedFilter;
}

/** `#/session/<id>?type=tool_use&tool=bash&session=<id>&q=text`; what it doesn't understand is left out. */
export function routeOf(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#/, "").split("?");
  const params = new URLSearchParams(query);
  const [, page, id] = path.split("/");
  const type = params.get("type");
  return {
    sessionId: page === "session" && id ? decode(id) : null,
    filter: {
      type: type === "failed" || isEventType(type) ? type : null,
      tool: params.get("tool") ?? "",
      sessionId: params.get("session") || null,
      text: params.get("q") ?? "",
    },
  };
}

export function hashOf({ sessionId, filter }: Route): string {
  const params = new URLSearchParams();
  if (filter.type !== null) params.set("type", filter.type);
  if (filter.tool !== "") params.set("tool", filter.tool);
  if (filter.sessionId !== null) params.set("session", filter.sessionId);
  if (filter.text !== "") params.set("q", filter.text);
  const path = sessionId === null ? "#/" : `#/session/${encodeURIComponent(sessionId)}`;
  return params.size === 0 ? path : `${path}?${params}`;
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// ─── Small things ────────────────────────────────────────────────────────────

function textOrNull(value: unknown): string | null {
  return typeof value === "string" && value !== "" ? value : null;
}

function numberOrNull(value: unknown): number | null {
  return typeof value === "number" ? value : null;
}

function sumOfNumbers(value: unknown): number | null {
  if (typeof value === "number") return value;
  if (!isRecord(value)) return null;
  return Object.values(value).reduce<number | null>((sum, inner) => {
    const part = sumOfNumbers(inner);
    return part === null ? sum : (sum ?? 0) + part;
  }, null);
}

/** Cut to MAX_TEXT_CHARS, in memory of its own: a slice would keep the whole text alive. */
function cut(text: string | null): string | null {
  if (text === null || text.length <= MAX_TEXT_CHARS) return text;
  return `${[...text.slice(0, MAX_TEXT_CHARS)].join("")}…`;
}
