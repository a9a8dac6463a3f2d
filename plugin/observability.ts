/**
 * PAI Observability for OpenCode: posts what a session does, while it does it.
 *
 * Install: copy this file to `~/.config/opencode/plugin/` (every project) or `.opencode/plugin/`
 * (one project). A running server hands it out:
 *
 *     curl -f --create-dirs -o ~/.config/opencode/plugin/observability.ts \
 *       localhost:3001/plugin/observability.ts
 *
 * OBSERVABILITY_SERVER says where the server is; OBSERVABILITY_TOKEN is its AUTH_TOKEN, if any.
 *
 * The life of a fact:
 *
 *     OpenCode's `event` hook ──▶ translator ──▶ queue ──▶ POST /api/events, in order, in batches
 *
 * - Times, durations and failures are OpenCode's own. A fact has one id, however often OpenCode
 *   repeats it and however often it is posted: the server stores it once.
 * - What leaves: titles and directories of sessions, names of agents and models, tokens, cost,
 *   arguments of tools, prompts of subagents, messages of errors, what the person is asked and what
 *   the answer was. What a tool returned, the conversation, and a provider's options, headers and
 *   keys are never read.
 * - No hook waits, throws or prints. Without a server events wait in memory, up to a bound.
 */

const OBSERVABILITY_SERVER = process.env.OBSERVABILITY_SERVER ?? "http://localhost:3001";
const OBSERVABILITY_TOKEN = process.env.OBSERVABILITY_TOKEN;

/** Arguments, prompts and the like are cut here: enough to recognise a call by. */
const MAX_TEXT_CHARS = 4_096;
/** The server's limit for ids and names. */
const MAX_NAME_CHARS = 256;

/** What waits for a server that is away: minutes of busy work, about 1 MB. */
const MAX_QUEUED_EVENTS = 1_000;
/** One POST, whichever comes first; the server takes 1 MiB. */
const MAX_BATCH_EVENTS = 100;
const MAX_BATCH_BYTES = 512 * 1024;
/** A server on this machine answers in milliseconds: one that needs a second hangs. */
const POST_TIMEOUT_MS = 1_000;
/** The pause after a failed POST doubles from the first to the second. */
const MIN_RETRY_MS = 250;
const MAX_RETRY_MS = 5_000;
/** OpenCode's exit waits for `dispose`, which has half a second. */
const FLUSH_MS = 400;

/** The translator's memory, a few MB. Forgetting is harmless: a repeat has the same id. */
const MAX_SESSIONS = 1_000;
const MAX_SENT_IDS = 10_000;

/** OpenCode's tool that runs a subagent, in a child session. */
const TASK_TOOL = "task";

// ─── Types ───────────────────────────────────────────────────────────────────
// What is read of OpenCode's events (1.18), and what is sent. Fields not named here are left alone.
// Declared rather than imported, so that this file is all there is to copy.

interface SessionInfo {
  id: string;
  parentID?: string;
  title?: string;
  directory?: string;
  agent?: string;
  model?: { id: string };
  tokens?: object;
  cost?: number;
  time: { created: number };
}

interface ToolCall {
  /** Whatever the model wrote. */
  input: { subagent_type?: unknown; prompt?: unknown };
  /** Of a task: its child session, and whether its agent goes on after the call has ended. */
  metadata?: { sessionId?: string; background?: boolean };
}

type ToolState =
  | { status: "pending" }
  | (ToolCall & { status: "running"; time: { start: number } })
  | (ToolCall & { status: "completed"; time: { start: number; end: number } })
  | (ToolCall & { status: "error"; time: { start: number; end: number }; error: string });

interface ToolPart {
  id: string;
  type: "tool";
  sessionID: string;
  callID: string;
  tool: string;
  state: ToolState;
}

interface SessionError {
  name: string;
  data?: { message?: string };
}

/** `id` names this one announcement; older versions have none. */
export type OpenCodeEvent = { id?: string } & (
  | { type: "session.created" | "session.updated"; properties: { info: SessionInfo } }
  | { type: "session.status"; properties: { sessionID: string; status: { type: string } } }
  | { type: "session.idle"; properties: { sessionID: string } }
  | { type: "session.error"; properties: { sessionID?: string; error?: SessionError } }
  | { type: "message.part.updated"; properties: { part: ToolPart | { type: "text" } } }
  | {
      type: "permission.asked";
      properties: { id: string; sessionID: string; permission: string; patterns: string[] };
    }
  | {
      type: "permission.replied";
      properties: { sessionID: string; requestID: string; reply: string };
    }
  // The permission events of older versions.
  | { type: "permission.updated"; properties: { id: string; sessionID: string; title: string } }
  | {
      type: "permission.replied";
      properties: { sessionID: string; permissionID: string; response: string };
    }
  | {
      type: "question.asked";
      properties: { id: string; sessionID: string; questions: { question: string }[] };
    }
  | {
      type: "question.replied";
      properties: { sessionID: string; requestID: string; answers: string[][] };
    }
  | { type: "question.rejected"; properties: { sessionID: string; requestID: string } }
);

/** An event as `POST /api/events` takes it; `timestamp` in milliseconds since 1970. */
export interface TelemetryEvent {
  id: string;
  type:
    | "session_start"
    | "session_update"
    | "session_end"
    | "session_error"
    | "tool_use"
    | "agent_spawn"
    | "agent_complete"
    | "input_requested"
    | "input_resolved";
  session_id: string;
  timestamp: number;
  data: Data;
}

type Data = Record<string, unknown>;

// ─── Translator ──────────────────────────────────────────────────────────────
// OpenCode's events in, ours out. No clock, no network, no environment: the time comes in with each
// event. It remembers what it has said, so that the many repeats of a fact become one event.

interface SessionState {
  /** When OpenCode created it, once that is known. */
  created?: number;
  facts: Data;
  /** What this process last told of its turns, if anything. */
  turn?: "running" | "ended";
}

/** What may still come when a turn has ended; it doesn't begin another. */
const LATE_TYPES = new Set<TelemetryEvent["type"]>(["tool_use", "agent_complete", "session_error"]);

/** The agent of a task that was sent to the background: it ends when its child session idles. */
interface BackgroundAgent {
  part: ToolPart;
  child: string;
  start: number;
  error?: string;
}

/**
 * Returns `translate(event, now)`: the events that one event of OpenCode stands for, often none.
 *
 * | OpenCode                                   | Sent                                            |
 * |--------------------------------------------|-------------------------------------------------|
 * | session.created                            | session_start, at its creation                  |
 * | session.updated: facts have changed        | session_update with all facts: one that is lost |
 * |                                            | is made good by the next                        |
 * | session.updated: first heard of it         | session_start at its creation, session_update   |
 * | session.status busy, after the turn's end  | session_start: it runs again                    |
 * | session.idle                               | session_end; again after what comes late        |
 * | session.error                              | session_error                                   |
 * | tool part of a task, its child is known    | agent_spawn, at the call's start                |
 * | tool part completed or error               | tool_use, at the call's end; of a task also     |
 * |                                            | agent_complete                                  |
 * | permission.asked, question.asked           | input_requested                                 |
 * | permission.replied, question.replied,      | input_resolved                                  |
 * | question.rejected                          |                                                 |
 */
function createTranslator() {
  const sessions = new Map<string, SessionState>();
  const sent = new Set<string>();
  const background = new Map<string, BackgroundAgent>();
  let unnamed = 0;

  function stateOf(sessionId: string): SessionState {
    const state = sessions.get(sessionId) ?? { facts: {} };
    sessions.delete(sessionId);
    sessions.set(sessionId, state);
    forgetOldest(sessions, MAX_SESSIONS);
    return state;
  }

  /** An id for what a session does again and again, like ending a turn. */
  function idOf(event: OpenCodeEvent, sessionId: string, now: number): string {
    return event.id ?? `${sessionId}:${event.type}:${now}:${++unnamed}`;
  }

  function onSession(event: OpenCodeEvent, info: SessionInfo, now: number): TelemetryEvent[] {
    const session = stateOf(info.id);
    const data = factsOf(info);
    const isChanged = JSON.stringify(data) !== JSON.stringify(session.facts);
    session.facts = data;
    session.created = info.time.created;

    const session_id = info.id;
    const start: TelemetryEvent = {
      id: `${session_id}:session_start`,
      type: "session_start",
      session_id,
      timestamp: info.time.created,
      data,
    };
    if (event.type === "session.created") {
      session.turn = "running";
      return [start];
    }
    if (!isChanged) return [start];
    // Not at time.updated: a session that gets its title keeps the old one (OpenCode 1.18.33). And
    // beside the start, because the server may know that from an earlier process, with older facts.
    const id = idOf(event, session_id, now);
    return [start, { id, type: "session_update", session_id, timestamp: now, data }];
  }

  function onBusy(event: OpenCodeEvent, session_id: string, now: number): TelemetryEvent[] {
    const session = stateOf(session_id);
    if (session.turn === "running") return [];
    session.turn = "running";
    const id = idOf(event, session_id, now);
    return [{ id, type: "session_start", session_id, timestamp: now, data: session.facts }];
  }

  function onIdle(event: OpenCodeEvent, session_id: string, now: number): TelemetryEvent[] {
    const events: TelemetryEvent[] = [];
    for (const [partId, { part, child, start, error }] of background) {
      if (child !== session_id) continue;
      background.delete(partId);
      events.push(agentComplete(part, start, now, error));
    }

    const session = stateOf(session_id);
    if (session.turn === "ended") return events; // said again, as after an error (OpenCode 1.18.33)
    session.turn = "ended";
    return [...events, sessionEnd(idOf(event, session_id, now), session_id, now)];
  }

  function sessionEnd(id: string, session_id: string, now: number): TelemetryEvent {
    const { tokens, cost } = stateOf(session_id).facts;
    const data = known({ tokens, cost });
    return { id, type: "session_end", session_id, timestamp: now, data };
  }

  function onError(
    event: OpenCodeEvent,
    session_id: string,
    error: SessionError,
    now: number,
  ): TelemetryEvent[] {
    // All that is read: a provider's error also holds its response, with headers.
    const message = error.data?.message ?? error.name;
    for (const agent of background.values()) if (agent.child === session_id) agent.error = message;
    const id = idOf(event, session_id, now);
    const data = { error_name: error.name, ...limited("error", message) };
    return [{ id, type: "session_error", session_id, timestamp: now, data }];
  }

  function onToolPart(part: ToolPart): TelemetryEvent[] {
    const { state, sessionID: session_id } = part;
    if (state.status === "pending") return [];
    // A fork of a session begins with copies of its calls: they were told where they ran.
    if (state.time.start < (stateOf(session_id).created ?? 0)) return [];

    const isTask = part.tool === TASK_TOOL;
    const isOver = state.status !== "running";
    const child = state.metadata?.sessionId;
    const events: TelemetryEvent[] = [];
    // Without a child a task doesn't run yet: it may wait for a permission. One that ends like that
    // is told of then.
    if (isTask && (child !== undefined || isOver)) events.push(agentSpawn(part, state, child));
    if (!isOver) return events;

    events.push(toolUse(part, state));
    if (!isTask) return events;
    const { start, end } = state.time;
    if (state.status === "error") return [...events, agentComplete(part, start, end, state.error)];
    if (state.metadata?.background !== true || child === undefined)
      return [...events, agentComplete(part, start, end)];
    if (!sent.has(agentCompleteId(part))) {
      background.set(part.id, { part, child, start });
      forgetOldest(background, MAX_SESSIONS);
    }
    return events;
  }

  function eventsOf(event: OpenCodeEvent, now: number): TelemetryEvent[] {
    switch (event.type) {
      case "session.created":
      case "session.updated":
        return onSession(event, event.properties.info, now);
      case "session.status": {
        const { sessionID, status } = event.properties;
        return status.type === "busy" ? onBusy(event, sessionID, now) : [];
      }
      case "session.idle":
        return onIdle(event, event.properties.sessionID, now);
      case "session.error": {
        const { sessionID, error } = event.properties;
        return sessionID && error ? onError(event, sessionID, error, now) : [];
      }
      case "message.part.updated": {
        const { part } = event.properties;
        return part.type === "tool" ? onToolPart(part) : [];
      }
      case "permission.asked": {
        const { id, sessionID, permission, patterns } = event.properties;
        const detail = `${permission}: ${patterns.join(", ")}`;
        return [inputRequested("permission", id, sessionID, detail, now)];
      }
      case "permission.updated": {
        const { id, sessionID, title } = event.properties;
        return [inputRequested("permission", id, sessionID, title, now)];
      }
      case "permission.replied": {
        const { properties } = event;
        const [id, reply] =
          "requestID" in properties
            ? [properties.requestID, properties.reply]
            : [properties.permissionID, properties.response];
        return [inputResolved("permission", id, properties.sessionID, reply, now)];
      }
      case "question.asked": {
        const { id, sessionID, questions } = event.properties;
        const detail = questions.map(({ question }) => question).join("\n");
        return [inputRequested("question", id, sessionID, detail, now)];
      }
      case "question.replied": {
        const { requestID, sessionID, answers } = event.properties;
        return [inputResolved("question", requestID, sessionID, answers.flat().join(", "), now)];
      }
      case "question.rejected": {
        const { requestID, sessionID } = event.properties;
        return [inputResolved("question", requestID, sessionID, "reject", now)];
      }
      default:
        return [];
    }
  }

  return function translate(event: OpenCodeEvent, now: number): TelemetryEvent[] {
    const fresh = eventsOf(event, now).filter(({ id }) => !sent.has(id));
    for (const { id } of fresh) sent.add(id);
    forgetOldest(sent, MAX_SENT_IDS);
    // An aborted call and a background agent end after their session's turn (OpenCode 1.18.33).
    // Without another end after them the session would count as active.
    const late = fresh.findLast(
      ({ type, session_id }) => LATE_TYPES.has(type) && stateOf(session_id).turn === "ended",
    );
    if (late) fresh.push(sessionEnd(`${late.id}:session_end`, late.session_id, now));
    return fresh;
  };
}

function factsOf(info: SessionInfo): Data {
  return known({
    title: info.title,
    directory: info.directory,
    agent: info.agent,
    model: info.model?.id,
    parent_session_id: info.parentID,
    tokens: info.tokens,
    cost: info.cost,
  });
}

function toolUse(
  part: ToolPart,
  state: Extract<ToolState, { status: "completed" | "error" }>,
): TelemetryEvent {
  const { start, end } = state.time;
  const args = JSON.stringify(state.input);
  return {
    id: `${part.id}:tool_use`,
    type: "tool_use",
    session_id: part.sessionID,
    timestamp: end,
    data: {
      tool: part.tool,
      ...(args.length <= MAX_TEXT_CHARS ? { args: state.input } : limited("args", args)),
      call_id: callId(part),
      duration_ms: elapsed(start, end),
      success: state.status === "completed",
      ...(state.status === "error" ? limited("error", state.error) : {}),
    },
  };
}

function agentSpawn(
  part: ToolPart,
  state: Exclude<ToolState, { status: "pending" }>,
  child: string | undefined,
): TelemetryEvent {
  const { prompt } = state.input;
  return {
    id: `${part.id}:agent_spawn`,
    type: "agent_spawn",
    session_id: part.sessionID,
    timestamp: state.time.start,
    data: known({
      subagent_type: subagentType(state),
      ...(typeof prompt === "string" ? limited("prompt", prompt) : {}),
      call_id: callId(part),
      child_session_id: child,
    }),
  };
}

function agentComplete(part: ToolPart, start: number, end: number, error?: string): TelemetryEvent {
  return {
    id: agentCompleteId(part),
    type: "agent_complete",
    session_id: part.sessionID,
    timestamp: end,
    data: {
      subagent_type: subagentType(part.state),
      call_id: callId(part),
      duration_ms: elapsed(start, end),
      success: error === undefined,
      ...(error === undefined ? {} : limited("error", error)),
    },
  };
}

function agentCompleteId(part: ToolPart): string {
  return `${part.id}:agent_complete`;
}

/** Some providers' ids for calls carry a kilobyte of state. */
function callId({ callID, id }: ToolPart): string {
  return isName(callID) ? callID : id;
}

function subagentType(state: ToolState): string {
  const type = state.status === "pending" ? undefined : state.input.subagent_type;
  return isName(type) ? type : "unknown";
}

function isName(value: unknown): value is string {
  return typeof value === "string" && value.length > 0 && value.length <= MAX_NAME_CHARS;
}

/** A clock that was set back between the two makes no negative duration. */
function elapsed(start: number, end: number): number {
  return Math.max(0, end - start);
}

type InputKind = "permission" | "question";

function inputRequested(
  kind: InputKind,
  request_id: string,
  session_id: string,
  detail: string,
  now: number,
): TelemetryEvent {
  const data = { request_id, kind, ...limited("detail", detail) };
  return {
    id: `${request_id}:input_requested`,
    type: "input_requested",
    session_id,
    timestamp: now,
    data,
  };
}

function inputResolved(
  kind: InputKind,
  request_id: string,
  session_id: string,
  reply: string,
  now: number,
): TelemetryEvent {
  const data = { request_id, kind, ...limited("reply", reply) };
  return {
    id: `${request_id}:input_resolved`,
    type: "input_resolved",
    session_id,
    timestamp: now,
    data,
  };
}

/** A text under its name. `…_cut` marks one that was cut, `…_length` is its whole length. */
function limited(name: string, text: string): Data {
  if (text.length <= MAX_TEXT_CHARS) return { [name]: text };
  // Not through the middle of a surrogate pair.
  const cut = text.slice(0, MAX_TEXT_CHARS).replace(/[\ud800-\udbff]$/, "");
  return { [name]: cut, [`${name}_cut`]: true, [`${name}_length`]: text.length };
}

/** Without what is undefined. */
function known(data: Data): Data {
  return Object.fromEntries(Object.entries(data).filter(([, value]) => value !== undefined));
}

/** Maps and sets keep the order in which their keys came. */
function forgetOldest(memory: Map<string, unknown> | Set<string>, limit: number): void {
  for (const key of memory.keys()) {
    if (memory.size <= limit) return;
    memory.delete(key);
  }
}

// ─── Sender ──────────────────────────────────────────────────────────────────
// A bounded queue and one POST at a time, so that events arrive in order. It tries again for as
// long as OpenCode runs, and never throws, prints or keeps OpenCode alive: no server is normal.

interface QueuedEvent {
  /** Serialised when it was sent: OpenCode may change its objects later. */
  json: string;
  /** The lost events that it reports in `dropped_events`. */
  reported: number;
}

/**
 * | Answer                                    | Outcome | What follows                            |
 * |-------------------------------------------|---------|-----------------------------------------|
 * | 2xx                                       | stored  | the next batch                          |
 * | 400, 413                                  | refused | never will be: its events one by one,   |
 * |                                           |         | and the one refused again is dropped    |
 * | any other; none within 1 s; no connection | failed  | the same again, after a pause           |
 */
type Outcome = "stored" | "refused" | "failed";

interface Connection {
  /** Where the server is, like "http://localhost:3001". */
  server: string;
  token?: string | undefined;
}

/**
 * `send` queues events and returns at once. `close` goes on posting until all is stored, a POST
 * begun since fails, or `withinMs` are over; what is sent afterwards is ignored.
 *
 * A full queue drops its oldest event. Dropped events are counted in `data.dropped_events` of the
 * next one sent.
 */
function createSender({ server, token }: Connection) {
  const url = `${server.replace(/\/+$/, "")}/api/events`;
  const headers = {
    "content-type": "application/json",
    ...(token ? { authorization: `Bearer ${token}` } : {}),
  };
  const queue: QueuedEvent[] = [];
  /** The first events of the queue, while a POST carries them: they aren't dropped. */
  let inFlight = 0;
  let dropped = 0;
  let isClosing = false;
  let draining: Promise<void> | undefined;
  let attempt = new AbortController();
  let endPause = () => {};

  function send(events: TelemetryEvent[]): void {
    if (isClosing) return;
    for (const event of events) {
      if (queue.length === MAX_QUEUED_EVENTS) countDropped(queue.splice(inFlight, 1));
      const data = dropped > 0 ? { ...event.data, dropped_events: dropped } : event.data;
      queue.push({ json: JSON.stringify({ ...event, data }), reported: dropped });
      dropped = 0;
    }
    if (queue.length > 0) draining ??= drain();
  }

  /** What a dropped event reported is reported anew. */
  function countDropped(events: QueuedEvent[]): void {
    for (const { reported } of events) dropped += 1 + reported;
  }

  async function drain(): Promise<void> {
    let retryMs = MIN_RETRY_MS;
    let oneByOne = 0;
    await pause(0); // the hook returns first
    while (queue.length > 0) {
      const batch = nextBatch(oneByOne > 0 ? 1 : MAX_BATCH_EVENTS);
      const isLastTry = isClosing;
      inFlight = batch.length;
      const outcome = await post(batch);
      inFlight = 0;
      if (outcome === "failed") {
        if (isLastTry) break;
        await pause(isClosing ? 0 : retryMs);
        retryMs = Math.min(retryMs * 2, MAX_RETRY_MS);
        continue;
      }
      retryMs = MIN_RETRY_MS;
      if (outcome === "refused" && batch.length > 1) {
        oneByOne = batch.length;
        continue;
      }
      oneByOne = Math.max(0, oneByOne - 1);
      const done = queue.splice(0, batch.length);
      if (outcome === "refused") countDropped(done);
    }
    draining = undefined;
  }

  function nextBatch(maxEvents: number): string[] {
    const batch: string[] = [];
    let bytes = 0;
    for (const { json } of queue) {
      bytes += Buffer.byteLength(json);
      if (batch.length === maxEvents || (batch.length > 0 && bytes > MAX_BATCH_BYTES)) break;
      batch.push(json);
    }
    return batch;
  }

  async function post(batch: string[]): Promise<Outcome> {
    attempt = new AbortController();
    const timeout = setTimeout(() => attempt.abort(), POST_TIMEOUT_MS);
    timeout.unref();
    try {
      const response = await fetch(url, {
        method: "POST",
        headers,
        body: `[${batch.join(",")}]`,
        redirect: "manual", // to another server prompts don't go
        signal: attempt.signal,
      });
      await response.text(); // read to its end, the connection serves the next POST
      if (response.ok) return "stored";
      return response.status === 400 || response.status === 413 ? "refused" : "failed";
    } catch {
      return "failed";
    } finally {
      clearTimeout(timeout);
    }
  }

  function pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      endPause = resolve;
      setTimeout(resolve, ms).unref();
    });
  }

  async function close(withinMs: number): Promise<void> {
    isClosing = true;
    endPause();
    const deadline = setTimeout(() => {
      queue.length = 0;
      attempt.abort();
    }, withinMs);
    await draining;
    clearTimeout(deadline);
  }

  return { send, close };
}

// ─── Plugin ──────────────────────────────────────────────────────────────────
// The two, wired to OpenCode's hooks. Nothing that goes wrong here reaches OpenCode.

/** The hooks of one instance of OpenCode. `now` is the clock, in milliseconds since 1970. */
function createHooks({ now = Date.now, ...connection }: Connection & { now?: () => number }) {
  const translate = createTranslator();
  const sender = createSender(connection);
  return {
    // The one hook through which every fact passes; OpenCode doesn't wait for it.
    event: guarded(({ event }: { event: OpenCodeEvent }) => sender.send(translate(event, now()))),
    dispose: guarded(() => sender.close(FLUSH_MS)),
  };
}

/** An event of another shape than expected costs one fact, not a session. */
function guarded<Args extends unknown[]>(hook: (...args: Args) => void | Promise<void>) {
  return async (...args: Args): Promise<void> => {
    try {
      await hook(...args);
    } catch {}
  };
}

/**
 * The only value exported: OpenCode (1.18.33) calls every function that a plugin file exports, and
 * refuses a file that exports other values. What the tests need hangs on it.
 */
export const ObservabilityPlugin = Object.assign(
  async () => createHooks({ server: OBSERVABILITY_SERVER, token: OBSERVABILITY_TOKEN }),
  { createTranslator, createSender, createHooks },
);
