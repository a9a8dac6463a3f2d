/**
 * The fold a second time, as slowly as it can be said: from the whole list of stored events to what
 * the GET routes answer. It groups, sorts and filters, keeps nothing between two questions, and
 * shares no line with the server, so that the two can disagree.
 */

import type { PostedEvent } from "./fixtures.ts";

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;

/** An event as the log has it. */
export interface LoggedEvent {
  id: number;
  client_id: string | null;
  session_id: string;
  type: string;
  /** Milliseconds. */
  timestamp: number;
  data: Record<string, unknown>;
}

/** `posted` as it is stored: times and durations are whole milliseconds, none lies in the future. */
export function normalised(posted: PostedEvent, receivedAt: number): Omit<LoggedEvent, "id"> {
  const data = { ...posted.data };
  if (typeof data.duration_ms === "number") data.duration_ms = Math.round(data.duration_ms);
  else if (posted.type === "tool_use") data.duration_ms = null;
  return {
    client_id: posted.id ?? null,
    session_id: posted.session_id,
    type: posted.type,
    timestamp: Math.min(milliseconds(posted.timestamp ?? receivedAt), receivedAt),
    data,
  };
}

function milliseconds(timestamp: string | number): number {
  if (typeof timestamp === "string") return Date.parse(timestamp);
  return timestamp < 1e11 ? timestamp * 1_000 : timestamp;
}

/** The events that are left once the sessions without one since `cutoff` are deleted. */
export function pruned(log: LoggedEvent[], cutoff: number): LoggedEvent[] {
  return [...bySession(log).values()]
    .filter((events) => lastTime(events) >= cutoff)
    .flat()
    .sort((a, b) => a.id - b.id);
}

// -- Spans

type Kind = "tool" | "agent" | "model" | "wait";

const STARTS: Record<string, Kind> = {
  tool_start: "tool",
  agent_spawn: "agent",
  model_request: "model",
  input_requested: "wait",
};
const ENDS: Record<string, Kind> = {
  tool_use: "tool",
  agent_complete: "agent",
  model_response: "model",
  input_resolved: "wait",
};

/** A span as its events tell it: nothing here depends on its session, or on the time of day. */
export interface ToldSpan {
  /** Of its first stored event. */
  id: number;
  session_id: string;
  kind: Kind;
  /** Its call_id or request_id; null: its one event is all that it has. */
  key: string | null;
  start: LoggedEvent | null;
  end: LoggedEvent | null;
  name: string;
  started_at: number;
  /** Null: it is open. */
  ended_at: number | null;
  duration_ms: number | null;
  outcome: string | null;
  /** It failed, or ended with another code than 0. */
  isError: boolean;
  /** An agent of which only the completion is known is none. */
  isCounted: boolean;
  waited_ms: number | null;
  child_session_id: string | null;
}

/** The spans of one session. */
function toldSpans(events: LoggedEvent[]): ToldSpan[] {
  const halves = events.filter((event) => kindOf(event) !== null && !isAnonymousEnd(event));
  const groups = Map.groupBy(halves, (event) =>
    JSON.stringify(keyOf(event) === null ? event.id : [kindOf(event), keyOf(event)]),
  );
  const pairs = [...groups.values()].map((group) => ({
    id: Math.min(...group.map((event) => event.id)),
    start: group.filter((event) => event.type in STARTS).sort(byStartOrder)[0] ?? null,
    end: group.filter((event) => event.type in ENDS).sort(byEndOrder)[0] ?? null,
  }));

  // A completion without a call_id ends the agent of its type that has run longest.
  for (const end of events.filter(isAnonymousEnd).sort(byTimeAndText)) {
    const [spawn] = pairs
      .filter((pair) => pair.end === null)
      .flatMap(({ start }) => start ?? [])
      .filter(
        (start) =>
          start.type === "agent_spawn" &&
          !isOver(start) &&
          start.data.subagent_type === end.data.subagent_type &&
          start.timestamp <= end.timestamp,
      )
      .sort(byTimeAndText);
    const agent = pairs.find(({ start }) => start !== null && start === spawn);
    if (agent !== undefined) agent.end = end;
  }
  return pairs.map(({ id, start, end }) => told(id, start, end));
}

function told(id: number, start: LoggedEvent | null, end: LoggedEvent | null): ToldSpan {
  const first = must(start ?? end);
  const kind = must(kindOf(first));
  const isOverSpawn = start !== null && isOver(start);
  const halves = [start, end].filter((half) => half !== null);
  const started_at = Math.min(
    ...halves.map((half) => half.timestamp - (number(half.data.duration_ms) ?? 0)),
  );
  const ended_at = end?.timestamp ?? (isOverSpawn ? start.timestamp : null);
  let outcome = ended_at === null ? null : outcomeOf(must(end ?? start));
  if (isOverSpawn && outcome === "ok") outcome = outcomeOf(start);
  const nameField = { tool: "tool", agent: "subagent_type", model: "model", wait: "kind" }[kind];
  const noName = { tool: "", agent: "unknown", model: "unknown", wait: "input" }[kind];
  return {
    id,
    session_id: first.session_id,
    kind,
    key: keyOf(first),
    start,
    end,
    name: string(start?.data[nameField]) ?? string(end?.data[nameField]) ?? noName,
    started_at,
    ended_at,
    duration_ms:
      number(end?.data.duration_ms) ??
      number(start?.data.duration_ms) ??
      (start !== null && end !== null ? end.timestamp - started_at : null),
    outcome,
    isError: outcome === "failed" || outcome === "exit",
    isCounted: kind !== "agent" || start !== null,
    waited_ms: number(end?.data.waited_ms),
    child_session_id: string(start?.data.child_session_id) ?? string(end?.data.child_session_id),
  };
}

function kindOf(event: LoggedEvent): Kind | null {
  return STARTS[event.type] ?? ENDS[event.type] ?? null;
}

function keyOf(event: LoggedEvent): string | null {
  return string(kindOf(event) === "wait" ? event.data.request_id : event.data.call_id);
}

function isAnonymousEnd(event: LoggedEvent): boolean {
  return event.type === "agent_complete" && keyOf(event) === null;
}

/** A spawn that was told when the agent was done already. */
function isOver({ type, data }: LoggedEvent): boolean {
  return (
    type === "agent_spawn" &&
    [data.duration_ms, data.success, data.outcome, data.error].some((value) => value != null)
  );
}

function outcomeOf({ data }: LoggedEvent): string {
  if (typeof data.outcome === "string") return data.outcome;
  if (typeof data.success === "boolean") return data.success ? "ok" : "failed";
  return data.error ? "failed" : "ok";
}

/** The earliest counts; at equal times the greater text. */
function byStartOrder(a: LoggedEvent, b: LoggedEvent): number {
  return a.timestamp - b.timestamp || byText(b, a) || a.id - b.id;
}

/** The latest counts; at equal times the greater text. */
function byEndOrder(a: LoggedEvent, b: LoggedEvent): number {
  return b.timestamp - a.timestamp || byText(b, a) || a.id - b.id;
}

function byTimeAndText(a: LoggedEvent, b: LoggedEvent): number {
  return a.timestamp - b.timestamp || byText(a, b) || a.id - b.id;
}

function byText(a: LoggedEvent, b: LoggedEvent): number {
  return compare(JSON.stringify(a.data), JSON.stringify(b.data));
}

// -- Errors

interface Fault {
  session_id: string;
  at: number;
}

/** What counts as an error, each cause once. */
function faults(log: LoggedEvent[], spans: ToldSpan[]): Fault[] {
  const failedAgents = spans.filter((span) => span.kind === "agent" && span.isError);
  return [
    ...spans
      .filter((span) => span.isError && !isExcused(span, failedAgents))
      .filter((span) => span.kind !== "model" || !isFailedAgents(span.session_id, failedAgents))
      .map((span) => ({ session_id: span.session_id, at: must(span.ended_at) })),
    ...log
      .filter((event) => kindOf(event) === null && isFailure(event))
      .filter(
        ({ type, session_id }) =>
          type !== "session_error" || !isFailedAgents(session_id, failedAgents),
      )
      .map((event) => ({ session_id: event.session_id, at: event.timestamp })),
  ];
}

/** The call that started an agent which failed: the agent is the error. */
function isExcused(span: ToldSpan, failedAgents: ToldSpan[]): boolean {
  return (
    span.kind === "tool" &&
    span.key !== null &&
    failedAgents.some((agent) => agent.key === span.key && agent.session_id === span.session_id)
  );
}

/** The session of an agent which failed: of its own errors that one tells. */
function isFailedAgents(session_id: string, failedAgents: ToldSpan[]): boolean {
  return failedAgents.some((agent) => agent.child_session_id === session_id);
}

function isFailure({ type, data }: LoggedEvent): boolean {
  if (type === "session_error") return true;
  return typeof data.success === "boolean" ? !data.success : Boolean(data.error);
}

// -- Sessions

type Totals = { own: number | null; total: number | null };

export interface SessionAnswer {
  id: string;
  started_at: string;
  ended_at: string | null;
  status: "active" | "completed" | "stale";
  stale_at: string | null;
  is_lost: boolean;
  tool_count: number;
  agent_count: number;
  event_count: number;
  error_count: number;
  is_excused: boolean;
  last_event_at: string;
  waiting_since: string | null;
  parent_session_id: string | null;
  info: Record<string, unknown>;
  now: Record<string, unknown> | null;
  cost: Totals;
  tokens: Totals;
  turn_count: number;
  working_since: string | null;
  worked_ms: number;
}

export interface SpanAnswer {
  id: number;
  session_id: string;
  kind: Kind;
  name: string;
  call_id: string | null;
  started_at: string;
  ended_at: string | null;
  duration_ms: number | null;
  waited_ms: number | null;
  outcome: string | null;
  text: string | null;
  error: string | null;
  child_session_id: string | null;
  tokens: unknown;
  cost: number | null;
  attributes: Record<string, unknown> | null;
}

/** Everything that the routes answer about `log` at `now`, both in any order where none is said. */
export interface Answers {
  /** The latest activity first. */
  sessions: SessionAnswer[];
  /** The newest first. */
  spans: SpanAnswer[];
  told: ToldSpan[];
  faults: Fault[];
  log: LoggedEvent[];
  now: number;
}

export function answers(log: LoggedEvent[], now: number): Answers {
  const told = [...bySession(log).values()].flatMap(toldSpans);
  const allFaults = faults(log, told);
  const failedAgents = told.filter((span) => span.kind === "agent" && span.isError);
  const toldBySession = Map.groupBy(told, (span) => span.session_id);
  const faultsBySession = Map.groupBy(allFaults, (fault) => fault.session_id);
  const spans: SpanAnswer[] = [];
  const sessions: SessionAnswer[] = [];
  for (const [id, events] of bySession(log)) {
    const own = toldBySession.get(id) ?? [];
    const state = stateOf(events, own, now);
    spans.push(...own.map((span) => spanAnswer(span, state)));
    const hasOwnError =
      events.some(({ type }) => type === "session_error") ||
      own.some(({ kind, isError }) => kind === "model" && isError);
    sessions.push({
      ...sessionAnswer(id, events, own, faultsBySession.get(id)?.length ?? 0, state),
      is_excused: hasOwnError && isFailedAgents(id, failedAgents),
    });
  }
  addTotals(sessions);
  sessions.sort((a, b) => compare(b.last_event_at, a.last_event_at) || compare(b.id, a.id));
  spans.sort((a, b) => b.id - a.id);
  return { sessions, spans, told, faults: allFaults, log, now };
}

interface State {
  status: "active" | "completed" | "stale";
  /** When it became so; null: it is not stale. */
  stale_at: number | null;
  /** Of every session_end, oldest first. */
  ends: number[];
  open: ToldSpan[];
}

function stateOf(events: LoggedEvent[], spans: ToldSpan[], now: number): State {
  const ends = timesOf(events, (event) => event.type === "session_end");
  const activity = timesOf(
    events,
    (event) => event.type !== "session_end" && event.type !== "session_update",
  );
  const open = spans.filter(
    (span) => span.ended_at === null && ends.every((end) => end < span.started_at),
  );
  const lastEnd = ends.at(-1);
  if (lastEnd !== undefined && lastEnd >= (activity.at(-1) ?? -Infinity))
    return { status: "completed", stale_at: null, ends, open };
  const staleAt = lastTime(events) + (open.length > 0 ? 24 : 1) * HOUR_MS;
  return now >= staleAt
    ? { status: "stale", stale_at: staleAt, ends, open }
    : { status: "active", stale_at: null, ends, open };
}

function sessionAnswer(
  id: string,
  events: LoggedEvent[],
  spans: ToldSpan[],
  error_count: number,
  state: State,
): Omit<SessionAnswer, "is_excused"> {
  const times = timesOf(events, () => true);
  const isOn = state.status === "active";
  const waits = state.open
    .filter((span) => span.kind === "wait")
    .map((span) => span.started_at)
    .sort((a, b) => a - b);
  const facts = factsOf(events);
  const { parent_session_id, ...info } = facts;
  const models = spans.filter((span) => span.kind === "model");
  const own = (fact: unknown, field: "tokens" | "cost") =>
    amount(fact) ?? sum(models.map((span) => amount(span.end?.data[field])));
  return {
    id,
    started_at: iso(must(times[0])),
    ended_at: state.status === "completed" ? iso(must(state.ends.at(-1))) : null,
    status: state.status,
    stale_at: state.stale_at === null ? null : iso(state.stale_at),
    is_lost: false,
    tool_count: spans.filter((span) => span.kind === "tool").length,
    agent_count: spans.filter((span) => span.kind === "agent" && span.isCounted).length,
    event_count: events.length,
    error_count,
    last_event_at: iso(must(times.at(-1))),
    waiting_since: isOn && waits[0] !== undefined ? iso(waits[0]) : null,
    parent_session_id: string(parent_session_id),
    info,
    now: isOn ? nowOf(events, state) : null,
    cost: { own: own(facts.cost, "cost"), total: null },
    tokens: { own: own(facts.tokens, "tokens"), total: null },
    ...turnsOf(events, state),
  };
}

/** What the session does: its newest open call, or that the provider refuses, whichever is newer. */
function nowOf(events: LoggedEvent[], { open, ends }: State): Record<string, unknown> | null {
  const call = open.toSorted((a, b) => b.started_at - a.started_at || compareCalls(b, a))[0];
  const isModel = ({ type }: LoggedEvent) => type === "model_request" || type === "model_response";
  const retry = events
    .filter((event) => event.type === "retry")
    .filter(
      ({ timestamp }) =>
        ends.every((end) => end < timestamp) &&
        events.every((event) => !isModel(event) || event.timestamp <= timestamp),
    )
    .sort(byEndOrder)[0];
  if (retry !== undefined && (call === undefined || retry.timestamp > call.started_at))
    return {
      kind: "retry",
      name: null,
      text: retry.data.message ?? null,
      started_at: iso(retry.timestamp),
      attempt: retry.data.attempt ?? null,
      retry_at: retry.data.retry_at ?? null,
    };
  if (call === undefined) return null;
  return {
    kind: call.kind,
    name: call.name,
    text: textOf(call),
    started_at: iso(call.started_at),
  };
}

/** Of calls that began at the same time: what a person would rather know, then any fixed order. */
function compareCalls(a: ToldSpan, b: ToldSpan): number {
  const rank = ({ kind }: ToldSpan) => ["agent", "model", "tool", "wait"].indexOf(kind);
  return (
    rank(a) - rank(b) ||
    compare(a.key ?? "", b.key ?? "") ||
    compare(a.name, b.name) ||
    compare(textOf(a) ?? "", textOf(b) ?? "")
  );
}

const FACTS = [
  "title",
  "directory",
  "agent",
  "model",
  "tokens",
  "cost",
  "todos",
  "changes",
  "sender",
  "parent_session_id",
];

function factsOf(events: LoggedEvent[]): Record<string, unknown> {
  const facts: Record<string, unknown> = {};
  for (const name of [...FACTS, "reason"]) {
    const isTeller = ({ type }: LoggedEvent) =>
      type === "session_end" ||
      (name !== "reason" && (type === "session_start" || type === "session_update"));
    const newest = events
      .filter((event) => isTeller(event) && event.data[name] != null)
      .map((event) => ({ at: event.timestamp, value: cut(event.data[name]) }))
      .sort((a, b) => b.at - a.at || compare(JSON.stringify(b.value), JSON.stringify(a.value)))[0];
    if (newest !== undefined) facts[name] = newest.value;
  }
  return facts;
}

function cut(value: unknown): unknown {
  if (typeof value === "string") return value.slice(0, 4_096);
  if (!Array.isArray(value)) return value;
  let length = value.length;
  while (JSON.stringify(value.slice(0, length)).length > 4_096) length--;
  return value.slice(0, length);
}

/**
 * Work is from each turn_start to the next cut of the session's time, a turn_start or a session_end,
 * and what was before the first session_end where no turn_start was said.
 */
function turnsOf(events: LoggedEvent[], { status }: State) {
  const cuts = events
    .filter(({ type }) => type === "turn_start" || type === "session_end")
    .sort((a, b) => a.timestamp - b.timestamp || compare(a.type, b.type));
  const start = must(timesOf(events, () => true)[0]);
  const last = cuts.at(-1);
  const latest = status === "completed" ? last?.timestamp : lastTime(events);
  const pieces = [
    ...(cuts[0]?.type === "turn_start" ? [] : [[start, cuts[0]?.timestamp ?? latest]]),
    ...cuts.flatMap(({ type, timestamp }, index) =>
      type === "turn_start" ? [[timestamp, cuts[index + 1]?.timestamp ?? latest]] : [],
    ),
  ];
  const goesOn = status === "active" && last?.type !== "session_end";
  return {
    turn_count: cuts.filter(({ type }) => type === "turn_start").length,
    working_since: goesOn ? iso(last?.timestamp ?? start) : null,
    worked_ms: pieces.reduce((sum, [from = 0, to = from]) => sum + Math.max(0, to - from), 0),
  };
}

/** Totals over a session and all below it, each once, whatever circles its parents make. */
function addTotals(sessions: SessionAnswer[]): void {
  for (const session of sessions) {
    const family = familyOf(session.id, sessions);
    session.cost.total = sum(family.map(({ cost }) => cost.own));
    session.tokens.total = sum(family.map(({ tokens }) => tokens.own));
  }
}

export function familyOf(id: string, sessions: SessionAnswer[]): SessionAnswer[] {
  let family = sessions.filter((session) => session.id === id);
  for (;;) {
    const ids = new Set(family.map((session) => session.id));
    const next = sessions.filter(
      (session) =>
        ids.has(session.id) ||
        (session.parent_session_id !== null && ids.has(session.parent_session_id)),
    );
    if (next.length === family.length) return family;
    family = next;
  }
}

/** A span as its session leaves it: what is open when that ended, or went silent, was cancelled. */
function spanAnswer(span: ToldSpan, state: State): SpanAnswer {
  const { id, session_id, kind, key, start, end, name, started_at, waited_ms } = span;
  let { ended_at, duration_ms, outcome } = span;
  if (ended_at === null) {
    ended_at = state.ends.find((at) => at >= started_at) ?? state.stale_at;
    if (ended_at !== null) {
      duration_ms = ended_at - started_at;
      outcome = "cancelled";
    }
  }
  const response = kind === "model" ? end : null;
  return {
    id,
    session_id,
    kind,
    name,
    call_id: kind === "wait" ? (string(start?.data.call_id) ?? string(end?.data.call_id)) : key,
    started_at: iso(started_at),
    ended_at: ended_at === null ? null : iso(ended_at),
    duration_ms,
    waited_ms,
    outcome,
    text: textOf(span),
    error: limited(asText(end?.data.error) ?? asText(start?.data.error)),
    child_session_id: span.child_session_id,
    tokens: response?.data.tokens ?? null,
    cost: number(response?.data.cost),
    attributes: attributesOf(span),
  };
}

function textOf({ kind, start, end }: ToldSpan): string | null {
  const of = (half: LoggedEvent | null): string | null => {
    if (half === null) return null;
    const { args, description, prompt, detail } = half.data;
    if (kind === "tool") return args == null ? null : asText(args, true);
    if (kind === "agent") return string(description) ?? string(prompt);
    return kind === "wait" ? string(detail) : null;
  };
  return limited(of(start) ?? of(end));
}

function attributesOf({ kind, start, end }: ToldSpan): Record<string, unknown> | null {
  const names = {
    tool: ["exit_code", "files"],
    agent: [],
    model: ["provider", "agent", "first_token_ms", "finish_reason", "context_limit"],
    wait: [],
  }[kind];
  const known = names
    .map((name) => [name, end?.data[name] ?? (kind === "model" ? start?.data[name] : null)])
    .filter(([, value]) => value != null);
  return known.length > 0 ? Object.fromEntries(known) : null;
}

// -- One session, whole

export interface DetailsAnswer {
  tools: Record<string, unknown>[];
  agents: Record<string, unknown>[];
}

/** The fields of a session's tools and agents that the contract speaks of. */
export function details({ told, spans }: Answers, sessionId: string): DetailsAnswer {
  const rows = (kind: Kind) =>
    told
      .filter((span) => span.session_id === sessionId && span.kind === kind && span.isCounted)
      .map((span) => ({ span, answer: must(spans.find((answer) => answer.id === span.id)) }));
  return {
    tools: rows("tool").map(({ span, answer }) => ({
      tool: span.name,
      args: asText(span.start?.data.args ?? span.end?.data.args ?? null, true),
      timestamp: span.ended_at === null ? answer.started_at : answer.ended_at,
      duration_ms: answer.duration_ms,
      call_id: span.key,
      started_at: answer.started_at,
      outcome: answer.outcome,
      waited_ms: answer.waited_ms,
    })),
    agents: rows("agent").map(({ span, answer }) => ({
      subagent_type: span.name,
      prompt: string(span.start?.data.prompt),
      duration_ms: answer.duration_ms,
      call_id: span.key,
      child_session_id: span.child_session_id,
      started_at: answer.started_at,
      outcome: answer.outcome,
    })),
  };
}

// -- Analytics

export interface UsageAnswer {
  name: string;
  count: number;
  /** The known ones. */
  durations: number[];
  /** The same, less the time that they waited for a person; sorted. */
  unwaited: number[];
  waited_ms: number;
  error_count: number;
}

/** Milliseconds; from is included, to isn't. */
export interface Window {
  from: number;
  to: number;
}

/** The window of `hours` and `before_hours`, at whole minutes. */
export function windowOf(now: number, hours: number, beforeHours = 0): Window {
  const minute = (at: number) => Math.floor(at / MINUTE_MS) * MINUTE_MS;
  return {
    from: minute(now - (beforeHours + hours) * HOUR_MS),
    to: beforeHours === 0 ? Infinity : minute(now - beforeHours * HOUR_MS),
  };
}

/** How often tools, or agents, were used, in no order. */
export function usage({ told }: Answers, kind: Kind, { from, to }: Window): UsageAnswer[] {
  const agents = told.filter((span) => span.kind === "agent" && span.isCounted);
  const failedAgents = told.filter((span) => span.kind === "agent" && span.isError);
  const spans = told.filter((span) => {
    const at = span.ended_at ?? span.started_at;
    return span.kind === kind && at >= from && at < to;
  });
  return [...Map.groupBy(spans, (span) => span.name)]
    .map(([name, all]) => {
      const counted = all.filter((span) => span.isCounted);
      const timed = counted.filter((span) => span.duration_ms !== null);
      return {
        name,
        count: counted.length,
        durations: timed.map((span) => ownDuration(span, agents)),
        unwaited: timed
          .map((span) => Math.max(0, ownDuration(span, agents) - ownWait(span, agents)))
          .sort((a, b) => a - b),
        waited_ms: counted.reduce((total, span) => total + ownWait(span, agents), 0),
        error_count: all.filter((span) => span.isError && !isExcused(span, failedAgents)).length,
      };
    })
    .filter(({ count }) => count > 0);
}

function agentMs(span: ToldSpan, agents: ToldSpan[]): number {
  const isIts = ({ key, session_id }: ToldSpan) =>
    key !== null && key === span.key && session_id === span.session_id;
  return span.kind === "tool" ? (agents.find(isIts)?.duration_ms ?? 0) : 0;
}

/** Of a call that started an agent: without the agent's, which is counted as that. */
const ownDuration = (span: ToldSpan, agents: ToldSpan[]) =>
  Math.max(0, (span.duration_ms ?? 0) - agentMs(span, agents));

/** For the person; not what its agent waited, which is in the agent's time. */
function ownWait(span: ToldSpan, agents: ToldSpan[]): number {
  const most = agentMs(span, agents) > 0 ? ownDuration(span, agents) : Infinity;
  return Math.min(span.waited_ms ?? 0, most);
}

export interface ActivityAnswer {
  timestamp: string;
  count: number;
  error_count: number;
}

/** Events and errors per minute, oldest first; a minute without either has no row. */
export function activity({ log, faults }: Answers, { from, to }: Window): ActivityAnswer[] {
  const minutes = new Map<number, ActivityAnswer>();
  const at = (time: number) => {
    const start = Math.floor(time / MINUTE_MS) * MINUTE_MS;
    const row = minutes.get(start) ?? { timestamp: iso(start), count: 0, error_count: 0 };
    minutes.set(start, row);
    return row;
  };
  for (const event of log) at(event.timestamp).count++;
  for (const fault of faults) at(fault.at).error_count++;
  return [...minutes]
    .filter(([start]) => start >= from && start < to)
    .sort(([a], [b]) => a - b)
    .map(([, row]) => row);
}

export interface OverviewAnswer {
  active_sessions: number;
  waiting: number;
  running_agents: number;
  errors_last_hour: number;
  activity: ActivityAnswer[];
  old_plugin: null;
}

export function overview(known: Answers): OverviewAnswer {
  const ids = new Set(known.sessions.map(({ id }) => id));
  const minutes = activity(known, windowOf(known.now, 1));
  return {
    active_sessions: known.sessions.filter(
      ({ status, parent_session_id }) =>
        status === "active" && !(parent_session_id !== null && ids.has(parent_session_id)),
    ).length,
    waiting: known.sessions.filter(({ waiting_since }) => waiting_since !== null).length,
    running_agents: known.spans.filter(
      ({ kind, ended_at }) => kind === "agent" && ended_at === null,
    ).length,
    errors_last_hour: minutes.reduce((count, row) => count + row.error_count, 0),
    activity: minutes,
    old_plugin: null,
  };
}

// -- Values

/** What has to be there. */
function must<T>(value: T | null | undefined): T {
  if (value == null) throw new Error("the model is wrong: nothing is there");
  return value;
}

function bySession(log: LoggedEvent[]): Map<string, LoggedEvent[]> {
  return Map.groupBy(log, (event) => event.session_id);
}

/** Oldest first. */
function timesOf(events: LoggedEvent[], is: (event: LoggedEvent) => boolean): number[] {
  return events
    .filter(is)
    .map((event) => event.timestamp)
    .sort((a, b) => a - b);
}

function lastTime(events: LoggedEvent[]): number {
  return Math.max(...events.map((event) => event.timestamp));
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function iso(ms: number): string {
  return new Date(ms).toISOString();
}

function string(value: unknown): string | null {
  return typeof value === "string" ? value : null;
}

function number(value: unknown): number | null {
  return typeof value === "number" ? value : null;
}

/** Null where none is known. */
function sum(values: (number | null)[]): number | null {
  const known = values.filter((value) => value !== null);
  return known.length > 0 ? known.reduce((total, value) => total + value, 0) : null;
}

/** A number, the total that an object says, or all numbers in it. */
function amount(value: unknown): number | null {
  if (typeof value !== "object" || value === null) return number(value);
  if ("total" in value && typeof value.total === "number") return value.total;
  return sum(Object.values(value).map(amount));
}

/** A string as it is, anything else as JSON; null where nothing is said. */
function asText(value: unknown, isEmptyKept = false): string | null {
  if (value == null || (!isEmptyKept && (value === "" || value === false))) return null;
  return typeof value === "string" ? value : JSON.stringify(value);
}

function limited(text: string | null): string | null {
  return text?.slice(0, 300) ?? null;
}
