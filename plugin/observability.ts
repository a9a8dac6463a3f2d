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
 * OBSERVABILITY_CONTENT says how much leaves: `none`, `args` (the default) or `full`, see Content.
 * OBSERVABILITY_REDACT=off sends secrets as they are; else they are masked.
 *
 * The life of a fact:
 *
 *     OpenCode's hooks ──▶ translator ──▶ content ──▶ queue ──▶ POST /api/events, in order, in batches
 *
 * - Times, durations and failures are OpenCode's own. A fact has one id, however often OpenCode
 *   repeats it and however often it is posted: the server stores it once.
 * - A provider's options, headers and keys are never read.
 * - No hook waits, throws or prints. Without a server events wait in memory, up to a bound. While
 *   no session runs there is no timer and no request.
 */

import { createHash, randomUUID } from "node:crypto";

// ─── Settings ────────────────────────────────────────────────────────────────

const OBSERVABILITY_SERVER = process.env.OBSERVABILITY_SERVER ?? "http://localhost:3001";
const OBSERVABILITY_TOKEN = process.env.OBSERVABILITY_TOKEN;
const OBSERVABILITY_CONTENT = process.env.OBSERVABILITY_CONTENT ?? "args";
const OBSERVABILITY_REDACT = process.env.OBSERVABILITY_REDACT ?? "on";

/** Of this file, so that the server can tell an old copy. */
const PLUGIN_VERSION = "2.0.0";

/** Arguments, prompts and the like are cut here: enough to recognise a call by. */
const MAX_TEXT_CHARS = 4_096;
/** Read beyond the cut, so that a secret that lies across it is known as one. */
const CUT_MARGIN_CHARS = 512;
const MAX_ARGS_DEPTH = 20;
/** The server takes names of 256, and a call's has the id of its message before it. */
const MAX_NAME_CHARS = 256;
const MAX_CALL_ID_CHARS = 128;

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

/** A sender that is silent for three of these is lost. */
const BEAT_MS = 10_000;
/** The first beats, 40 s: by then a predecessor that was killed a moment ago is known as lost. */
const MAX_PREDECESSOR_CHECKS = 5;

/** The translator's memory, a few MB. Forgetting is harmless: a repeat has the same id. */
const MAX_SESSIONS = 1_000;
const MAX_SENT_IDS = 10_000;
/** An agent that asks an agent that asks …: OpenCode's own limit is far below. */
const MAX_GENERATIONS = 16;

// ─── Types ───────────────────────────────────────────────────────────────────

/** An event as `POST /api/events` takes it; `timestamp` in milliseconds since 1970. */
export interface TelemetryEvent {
  id: string;
  type:
    | `session_${"start" | "update" | "end" | "error" | "compacted"}`
    | `tool_${"start" | "use"}`
    | `agent_${"spawn" | "complete"}`
    | `model_${"request" | "response"}`
    | `input_${"requested" | "resolved"}`
    | "turn_start"
    | "retry";
  session_id: string;
  timestamp: number;
  data: Data;
}

type Data = Record<string, unknown>;

/** Without what is undefined. */
function known(data: Data): Data {
  return Object.fromEntries(Object.entries(data).filter(([, value]) => value !== undefined));
}

const textOf = (value: unknown) => (typeof value === "string" ? value : undefined);

/** A clock that was set back between the two makes no negative duration. */
const elapsed = (start: number, end: number) => Math.max(0, end - start);

/** Maps and sets keep the order in which their keys came. */
function forgetOldest(memory: Map<string, unknown> | Set<string>, limit: number): void {
  for (const key of memory.keys()) {
    if (memory.size <= limit) return;
    memory.delete(key);
  }
}

// ─── OpenCode 1.18: what is read ─────────────────────────────────────────────
// Fields not named here are left alone. Declared rather than imported, so that this file is all
// there is to copy.

type Tokens = Record<"input" | "output" | "reasoning", number> & {
  cache: { read: number; write: number };
};

interface SessionInfo {
  id: string;
  parentID?: string;
  title?: string;
  directory?: string;
  agent?: string;
  model?: { id: string };
  tokens?: Tokens;
  cost?: number;
  time: { created: number };
}

interface FileDiff {
  file: string;
  additions: number;
  deletions: number;
}

interface UserMessage {
  role: "user";
  id: string;
  sessionID: string;
  agent?: string;
  model?: { modelID: string };
  time: { created: number };
  /** Comes once the turn has changed files. */
  summary?: { diffs?: FileDiff[] };
}

/** One step: a request to the model, its answer, and the tools that it called. */
interface AssistantMessage {
  role: "assistant";
  id: string;
  sessionID: string;
  agent?: string;
  modelID: string;
  providerID: string;
  cost: number;
  tokens: Tokens;
  time: { created: number; completed?: number };
  finish?: string;
  error?: OpenCodeError;
}

interface OpenCodeError {
  name: string;
  data?: { message?: string };
}

interface ToolCall {
  /** Whatever the model wrote. */
  input: Partial<Record<"subagent_type" | "description" | "prompt" | "content" | "error", unknown>>;
  metadata?: {
    /** Of a command; null: it was killed. */
    exit?: number | null;
    interrupted?: boolean;
    /** Of a task: its child session, and whether its agent goes on after the call has ended. */
    sessionId?: string;
    background?: boolean;
    /** Of an edit; of a write: whether the file was there before; of a patch. */
    filediff?: FileDiff;
    filepath?: string;
    exists?: boolean;
    files?: { relativePath?: string; filePath?: string; additions?: number; deletions?: number }[];
  };
}

type EndedCall = ToolCall & { time: { start: number; end: number } } & (
    { status: "completed"; output?: string } | { status: "error"; error: string }
  );
type BegunCall = EndedCall | (ToolCall & { status: "running"; time: { start: number } });

interface ToolPart<State = BegunCall | { status: "pending" }> {
  id: string;
  type: "tool";
  sessionID: string;
  messageID: string;
  callID: string;
  tool: string;
  state: State;
}

interface OtherPart {
  id: string;
  type: "text" | "reasoning" | "file" | "step-start" | "step-finish" | "patch" | "compaction";
  sessionID: string;
  messageID: string;
  text?: string;
  /** OpenCode itself has put it in. */
  synthetic?: boolean;
  /** With an end once it is whole. */
  time?: { start: number; end?: number };
}

interface Request {
  id: string;
  sessionID: string;
  /** The call that waits for the answer. */
  tool?: { messageID: string; callID: string };
}

type Status =
  { type: "busy" | "idle" } | { type: "retry"; attempt: number; message: string; next: number };

type OfSession = { sessionID: string };
type OfRequest = { sessionID: string; requestID: string };

interface Properties {
  "session.created": { info: SessionInfo };
  "session.updated": { info: SessionInfo };
  "session.deleted": { info: SessionInfo };
  "session.status": { sessionID: string; status: Status };
  "session.idle": OfSession;
  "session.compacted": OfSession;
  "session.error": { sessionID?: string; error?: OpenCodeError };
  "message.updated": { info: UserMessage | AssistantMessage };
  "message.part.updated": { part: ToolPart | OtherPart; time?: number };
  "todo.updated": { sessionID: string; todos: { content: string; status: string }[] };
  "permission.asked": Request & { permission: string; patterns: string[] };
  "permission.replied": OfRequest & { reply: string };
  "question.asked": Request & { questions: { question: string }[] };
  "question.replied": OfRequest & { answers: string[][] };
  "question.rejected": OfRequest;
}

/** What the hook `event` gets; `id` names this one announcement. */
export type OpenCodeEvent = {
  [Type in keyof Properties]: { id?: string; type: Type; properties: Properties[Type] };
}[keyof Properties];

/** What the hook `chat.params` gets of a model that is about to be asked. */
interface AskedModel {
  id: string;
  providerID: string;
  limit?: { context?: number };
}

/** OpenCode's tool that runs a subagent, in a child session. */
const TASK_TOOL = "task";
/** In place of a call that can't be made: there is no such tool, or its arguments don't fit. */
const INVALID_TOOL = "invalid";
/** The person stopped it. */
const ABORT_ERROR = "MessageAbortedError";

// ─── OpenCode 1.18: outcomes ─────────────────────────────────────────────────
// What became of a call, told from its last state alone. The words are OpenCode's own.

/** A task has the words of its child's failure. */
const DENIED =
  /^(?:Subagent failed \([^)]*\): )?The user (rejected permission|has specified a rule|dismissed)/;
const CANCELLED = /^(Tool execution aborted|Task cancelled)/;
/** What OpenCode adds to the output of a command that it killed. */
const SHELL_NOTE = /<shell_metadata>\s*([^<]*?)\s*<\/shell_metadata>\s*$/;
const SHELL_NOTE_CHARS = 1_000;

type Ending =
  | { outcome: "ok" | "denied" | "cancelled" }
  | { outcome: "exit"; exit_code: number }
  | { outcome: "failed"; error: string };

/**
 * | Last state                                | Outcome                                         |
 * |-------------------------------------------|-------------------------------------------------|
 * | completed                                 | ok                                              |
 * | completed, metadata.exit other than 0     | exit                                            |
 * | completed, metadata.exit null: was killed | cancelled by the person; failed: time was over  |
 * | error: the person or a rule refused it    | denied                                          |
 * | error: aborted                            | cancelled                                       |
 * | error                                     | failed                                          |
 * | any, of the tool `invalid`                | failed                                          |
 */
function endingOf(tool: string, call: EndedCall): Ending {
  const { exit, interrupted } = call.metadata ?? {};
  if (call.status === "error") {
    if (DENIED.test(call.error)) return { outcome: "denied" };
    if (interrupted || CANCELLED.test(call.error)) return { outcome: "cancelled" };
    return { outcome: "failed", error: call.error };
  }
  // It completes: what it returns tells the model what is wrong.
  if (tool === INVALID_TOOL) return { outcome: "failed", error: textOf(call.input.error) ?? tool };
  if (typeof exit === "number" && exit !== 0) return { outcome: "exit", exit_code: exit };
  if (exit !== null) return { outcome: "ok" };
  const [, note = ""] = SHELL_NOTE.exec(call.output?.slice(-SHELL_NOTE_CHARS) ?? "") ?? [];
  if (note.startsWith("User aborted")) return { outcome: "cancelled" };
  return { outcome: "failed", error: note || "killed" };
}

/** The files that a call has changed, without their content; undefined: none. */
function filesOf({ input, metadata = {} }: ToolCall, directory = "") {
  const { filediff, filepath, exists, files } = metadata;
  const file = (path = "", additions?: number, deletions?: number) =>
    known({
      path: path.startsWith(`${directory}/`) ? path.slice(directory.length + 1) : path,
      additions,
      deletions,
    });
  if (files)
    return files.map((it) => file(it.relativePath ?? it.filePath, it.additions, it.deletions));
  if (filediff) return [file(filediff.file, filediff.additions, filediff.deletions)];
  if (filepath === undefined || exists === undefined) return undefined;
  // A write: of a file that was there OpenCode doesn't say what has changed.
  const isNew = !exists && typeof input.content === "string";
  return [isNew ? file(filepath, lineCount(input.content as string), 0) : file(filepath)];
}

function lineCount(text: string): number {
  let count = text === "" || text.endsWith("\n") ? 0 : 1;
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) count += 1;
  return count;
}

// ─── OpenCode 1.18: translator ───────────────────────────────────────────────
// OpenCode's events in, ours out, with all that they say: what of it leaves is not decided here. No
// clock, no network, no environment: the time comes in with each event. It remembers what it has
// said, so that the many repeats of a fact become one event.

/** US dollars and tokens. */
type Usage = Record<(typeof USAGE_FIELDS)[number], number>;
const USAGE_FIELDS = ["cost", "input", "output", "reasoning", "cache_read", "cache_write"] as const;

interface SessionState {
  info?: SessionInfo;
  /** Heard from its beginning, so that what is counted of it is all. */
  isWhole?: boolean;
  todos?: { content: string; status: string }[];
  /** What each of its turns has changed, by the id of the prompt. */
  diffs: Map<string, FileDiff[]>;
  /** As last told. */
  facts: Data;
  /** As OpenCode last announced it; of steps that are over but not in it yet; what a fork copied. */
  usage: Usage;
  pending: Usage;
  copied: Usage;
  /** Undefined: nothing is known of its turns. */
  turn?: "new" | "running" | "ended";
  reason: "completed" | "interrupted" | "error";
  /** The latest prompt, and its turn_start, which waits for OpenCode to take it up. */
  user?: UserMessage;
  prompt?: TelemetryEvent | undefined;
  step?: Step | undefined;
  /** A session_error, which waits for the step that it ends: that will tell of it. */
  held?: TelemetryEvent | undefined;
  /** The latest of this turn. */
  error?: string | undefined;
}

/** A step that isn't over. */
interface Step {
  info: AssistantMessage;
  /** When the model was asked first and last, how often, and when its answer's first byte came. */
  begun?: number;
  asked?: number;
  requests: number;
  first?: number | undefined;
  isRetrying?: boolean;
  /** The latest sign of its answer: tools run on after that. */
  answered?: number;
  /** What the model has said, by part. */
  texts: Map<string, string>;
}

/** What may still come when a turn has ended; it doesn't begin another. */
const LATE_TYPES = /^(tool_use|agent_complete|model_response|session_error)$/;

/**
 * `translate(event, now)` gives the events that one event of OpenCode stands for, often none.
 *
 * | OpenCode                                | Sent                                                 |
 * |-----------------------------------------|------------------------------------------------------|
 * | session.created                         | session_start, at its creation                       |
 * | session.updated, todo.updated, the      | session_update with all facts, where one is new: one |
 * | changes in a user message               | that is lost is made good by the next                |
 * | session.status busy                     | session_start, where it runs again; turn_start of a  |
 * |                                         | new prompt; model_request of a new step              |
 * | session.status retry                    | retry; the next busy is a model_request again        |
 * | session.idle, session.deleted           | session_end; again after what comes late             |
 * | session.error                           | session_error, unless its step tells of it           |
 * | session.compacted                       | session_compacted                                    |
 * | assistant message with finish or error  | model_response, at the end of the answer             |
 * | tool part running                       | tool_start; agent_spawn, once a task has its child   |
 * | tool part completed or error            | tool_use, at its end; agent_complete, of a task that |
 * |                                         | has a child and didn't go to the background          |
 * | permission or question asked            | input_requested                                      |
 * | permission or question replied, rejected| input_resolved                                       |
 *
 * `interrupt` gives the ends of sessions that still run; `learn` takes note of a model's limit.
 */
function createTranslator() {
  const sessions = new Map<string, SessionState>();
  const sent = new Set<string>();
  const contextLimits = new Map<string, number>();
  /** By child session: the task that it is of. */
  const tasks = new Map<string, ToolPart<BegunCall>>();
  /** By request: the call that waits, and since when. */
  const waits = new Map<string, { call: string; since: number }>();
  /** By call: for how long it has waited for the person, in its subagents too. */
  const waitedMs = new Map<string, number>();

  function stateOf(sessionId: string): SessionState {
    const none = usageOf({});
    const state = sessions.get(sessionId) ?? {
      ...{ diffs: new Map(), facts: {}, reason: "completed" },
      ...{ usage: none, pending: none, copied: none },
    };
    sessions.delete(sessionId);
    sessions.set(sessionId, state);
    forgetOldest(sessions, MAX_SESSIONS);
    return state;
  }

  /** A fork begins with copies of messages and calls: they were told where they ran. */
  const isCopy = (session: SessionState, at: number) => at < (session.info?.time.created ?? 0);

  // -- Sessions

  /** Its own. OpenCode's figure lacks the last step until after the end. */
  function usedBy({ info, usage, pending, copied }: SessionState): Data {
    if (info?.cost === undefined && pending.cost === 0) return {};
    return figures(plus(plus(usage, pending), copied, -1));
  }

  function factsOf(session: SessionState): Data {
    const { info, todos, diffs, isWhole } = session;
    return known({
      title: info?.title,
      directory: info?.directory,
      agent: info?.agent,
      model: info?.model?.id,
      parent_session_id: info?.parentID,
      ...usedBy(session),
      todos: todos?.map(({ content, status }) => ({ content, status })),
      changes: isWhole && diffs.size > 0 ? changesOf([...diffs.values()].flat()) : undefined,
    });
  }

  function update(id: string, session_id: string, now: number): TelemetryEvent[] {
    const session = stateOf(session_id);
    const facts = factsOf(session);
    if (JSON.stringify(facts) === JSON.stringify(session.facts)) return [];
    session.facts = facts;
    return [eventOf("session_update", id, session_id, now, facts)];
  }

  function onSession(id: string, info: SessionInfo, isNew: boolean, now: number) {
    const session = stateOf(info.id);
    const usage = usageOf(info);
    session.pending = plus(session.pending, plus(usage, session.usage, -1), -1);
    session.usage = usage;
    session.info = info;
    if (isNew) {
      session.turn ??= "new";
      session.isWhole = true;
      session.facts = factsOf(session);
    }
    // An update too: the server may know its start from an earlier process, with older facts. Not at
    // time.updated: a session that gets its title keeps the old one (OpenCode 1.18.33).
    const updates = isNew ? [] : update(id, info.id, now);
    const startId = `${info.id}:session_start`;
    const start = eventOf("session_start", startId, info.id, info.time.created, session.facts);
    return [start, ...updates];
  }

  function onBusy(id: string, session_id: string, now: number): TelemetryEvent[] {
    const session = stateOf(session_id);
    const events: TelemetryEvent[] = [];
    if (session.turn !== "running") {
      if (session.turn !== "new")
        events.push(eventOf("session_start", id, session_id, now, session.facts));
      Object.assign(session, { turn: "running", reason: "completed", error: undefined });
    }
    if (session.prompt) events.push(session.prompt);
    session.prompt = undefined;
    const { step } = session;
    if (step && (step.asked === undefined || step.isRetrying)) events.push(modelRequest(step, now));
    return events;
  }

  function onRetry(
    id: string,
    session_id: string,
    { attempt, message, next: retry_at }: Extract<Status, { type: "retry" }>,
    now: number,
  ): TelemetryEvent[] {
    const { step } = stateOf(session_id);
    if (step) step.isRetrying = true;
    const retryId = step ? `${step.info.id}:retry:${attempt}` : id;
    return [eventOf("retry", retryId, session_id, now, { attempt, message, retry_at })];
  }

  function onIdle(id: string, session_id: string, now: number): TelemetryEvent[] {
    const session = stateOf(session_id);
    const events: TelemetryEvent[] = [];
    const task = tasks.get(session_id);
    if (task && isInBackground(task.state)) {
      const { reason, error } = session;
      const ending: Ending =
        reason === "error"
          ? { outcome: "failed", error: error ?? reason }
          : { outcome: reason === "completed" ? "ok" : "cancelled" };
      events.push(agentComplete(task, now, ending));
    }
    if (session.turn === "ended") return events; // said again, as after an error (OpenCode 1.18.33)
    session.turn = "ended";
    // Aborted or failed: the end of its step is still to come, and then its own (OpenCode 1.18.33).
    if (!session.step) events.push(sessionEnd(id, session_id, now));
    return events;
  }

  function sessionEnd(id: string, session_id: string, now: number): TelemetryEvent {
    const session = stateOf(session_id);
    const data = { reason: session.reason, ...usedBy(session) };
    return eventOf("session_end", id, session_id, now, data);
  }

  /**
   * One cause, one error. OpenCode tells of one on the session first, then on its step: that one
   * tells, so that it counts for its model.
   */
  function onError(id: string, session_id: string, error: OpenCodeError, now: number) {
    const session = stateOf(session_id);
    const isAbort = error.name === ABORT_ERROR;
    session.reason = isAbort ? "interrupted" : "error";
    const message = messageOf(error);
    if (isAbort || session.error === message) return [];
    session.error = message;
    const data = { error_name: error.name, error: message };
    const event = eventOf("session_error", id, session_id, now, data);
    if (session.step === undefined) return [event];
    session.held = event;
    return [];
  }

  // -- Messages

  function onUserMessage(id: string, info: UserMessage, now: number): TelemetryEvent[] {
    const session = stateOf(info.sessionID);
    if (isCopy(session, info.time.created)) return [];
    session.user = info;
    const diffs = info.summary?.diffs ?? [];
    if (diffs.length === 0 && !session.diffs.has(info.id)) return [];
    const counts = diffs.map(({ file, additions, deletions }) => ({ file, additions, deletions }));
    session.diffs.set(info.id, counts);
    forgetOldest(session.diffs, MAX_SESSIONS);
    return update(id, info.sessionID, now);
  }

  /** The person's own: neither the task of an agent, nor what OpenCode itself puts in. */
  function onPrompt({ sessionID, messageID, synthetic, text }: OtherPart): void {
    const session = stateOf(sessionID);
    const { user, info } = session;
    const id = `${messageID}:turn_start`;
    if (user?.id !== messageID || synthetic || info?.parentID !== undefined) return;
    if (session.prompt?.id === id || sent.has(id)) return;
    const data = { prompt: text, agent: user.agent, model: user.model?.modelID };
    session.prompt = eventOf("turn_start", id, sessionID, user.time.created, data);
  }

  function modelRequest(step: Step, at: number): TelemetryEvent {
    const { info } = step;
    step.begun ??= at;
    step.asked = at;
    step.first = undefined;
    step.isRetrying = false;
    step.requests += 1;
    const id = `${info.id}:model_request${step.requests === 1 ? "" : `:${step.requests}`}`;
    return eventOf("model_request", id, info.sessionID, at, modelOf(info));
  }

  function onStep(info: AssistantMessage, now: number): TelemetryEvent[] {
    const session = stateOf(info.sessionID);
    const { time, finish, error } = info;
    const id = `${info.id}:model_response`;
    if (sent.has(id)) return [];
    if (isCopy(session, time.created)) {
      session.copied = plus(session.copied, usageOf(info));
      sent.add(id);
      return [];
    }
    const step: Step | undefined = session.step?.info.id === info.id ? session.step : undefined;
    if (finish === undefined && error === undefined && time.completed === undefined) {
      session.step = step ?? { info, requests: 0, texts: new Map() };
      return [];
    }
    if (step) session.step = undefined;
    const { held } = session;
    session.held = undefined;
    // The person's own command: no model was asked.
    if (finish === undefined && error === undefined && step?.asked === undefined) return [];

    let ending: Ending = { outcome: "ok" };
    if (error && error.name !== ABORT_ERROR) {
      session.error = messageOf(error);
      ending = { outcome: "failed", error: session.error };
    } else if (finish === undefined) {
      ending = { outcome: "cancelled" };
      session.reason = "interrupted";
    }
    const usage = finish === undefined ? undefined : usageOf(info);
    if (usage) session.pending = plus(session.pending, usage);
    const start = step?.begun ?? time.created;
    const answered = ending.outcome === "failed" ? undefined : step?.answered;
    const end = Math.max(start, answered ?? time.completed ?? now);
    const response = eventOf("model_response", id, info.sessionID, end, {
      ...modelOf(info),
      duration_ms: end - start,
      first_token_ms: step?.first && elapsed(step.asked ?? start, step.first),
      ...(usage && figures(usage)),
      finish_reason: finish,
      ...ending,
      context_limit: contextLimits.get(`${info.providerID}/${info.modelID}`),
      text: step && step.texts.size > 0 ? [...step.texts.values()].join("\n") : undefined,
    });
    return held && error === undefined ? [held, response] : [response];
  }

  function onPart(part: OtherPart, at: number): TelemetryEvent[] {
    const { step } = stateOf(part.sessionID);
    const { type, text = "", time } = part;
    if (step?.info.id !== part.messageID) {
      if (type === "text" || type === "file") onPrompt(part);
      return [];
    }
    if (type === "step-start") {
      const events = step.asked === undefined ? [modelRequest(step, at)] : [];
      step.first ??= at;
      return events;
    }
    if (time?.end === undefined) return [];
    step.answered = Math.max(step.answered ?? 0, time.end);
    if (type === "text") step.texts.set(part.id, text);
    return [];
  }

  // -- Tools and agents

  function onToolPart(part: ToolPart<BegunCall>): TelemetryEvent[] {
    const { state, sessionID: session_id } = part;
    const { start } = state.time;
    const session = stateOf(session_id);
    if (isCopy(session, start)) return [];
    const { step } = session;
    if (step?.info.id === part.messageID) step.answered = Math.max(step.answered ?? 0, start);

    const events: TelemetryEvent[] = [];
    const call = { tool: part.tool, call_id: callId(part), args: state.input };
    if (state.status === "running")
      events.push(eventOf("tool_start", `${part.id}:tool_start`, session_id, start, call));
    // Without a child no agent runs: a permission is missing, or there is no such agent.
    const child = part.tool === TASK_TOOL ? state.metadata?.sessionId : undefined;
    if (child !== undefined) {
      tasks.set(child, part);
      forgetOldest(tasks, MAX_SESSIONS);
      events.push(agentSpawn(part, child));
    }
    if (state.status === "running") return events;

    const { end } = state.time;
    const ending = endingOf(part.tool, state);
    const duration_ms = elapsed(start, end);
    const data = {
      ...call,
      duration_ms,
      waited_ms: Math.min(waitedBy(call.call_id, end), duration_ms) || undefined,
      ...ending,
      files: filesOf(state, session.info?.directory),
      output: state.status === "completed" ? state.output : undefined,
    };
    events.push(eventOf("tool_use", `${part.id}:tool_use`, session_id, end, data));
    if (child !== undefined && !isInBackground(state))
      events.push(agentComplete(part, end, ending));
    return events;
  }

  /** To its end, where it was aborted while it waited: then there is no answer. */
  function waitedBy(call: string, end: number): number {
    let waited = waitedMs.get(call) ?? 0;
    for (const wait of waits.values()) if (wait.call === call) waited += elapsed(wait.since, end);
    return waited;
  }

  // -- Permissions and questions

  type InputKind = "permission" | "question";

  function onAsked(kind: InputKind, request: Request, detail: string, now: number) {
    const { id: request_id, sessionID, tool } = request;
    const id = `${request_id}:input_requested`;
    const call_id = tool && callId(tool);
    if (call_id !== undefined && !sent.has(id))
      waits.set(request_id, { call: call_id, since: now });
    forgetOldest(waits, MAX_SESSIONS);
    return [eventOf("input_requested", id, sessionID, now, { request_id, kind, detail, call_id })];
  }

  function onAnswered(kind: InputKind, of: OfRequest, reply: string, now: number) {
    const { requestID: request_id, sessionID } = of;
    const wait = waits.get(request_id);
    waits.delete(request_id);
    let [call, session] = [wait?.call, sessionID];
    for (let depth = 0; wait && call !== undefined && depth < MAX_GENERATIONS; depth++) {
      waitedMs.set(call, (waitedMs.get(call) ?? 0) + elapsed(wait.since, now));
      const task = tasks.get(session);
      [call, session] = [task && callId(task), task?.sessionID ?? ""];
    }
    forgetOldest(waitedMs, MAX_SESSIONS);
    // One that an abort has left open is over, whenever it is answered.
    if (stateOf(sessionID).turn === "ended") return [];
    const id = `${request_id}:input_resolved`;
    const outcome = reply === "reject" ? "denied" : "ok";
    return [eventOf("input_resolved", id, sessionID, now, { request_id, kind, reply, outcome })];
  }

  function eventsOf(event: OpenCodeEvent, now: number): TelemetryEvent[] {
    const of = "sessionID" in event.properties ? event.properties.sessionID : "";
    const id = event.id ?? `${of}:${event.type}:${now}`;
    switch (event.type) {
      case "session.created":
      case "session.updated":
        return onSession(id, event.properties.info, event.type === "session.created", now);
      case "session.status": {
        const { sessionID, status } = event.properties;
        if (status.type === "retry") return onRetry(id, sessionID, status, now);
        return status.type === "busy" ? onBusy(id, sessionID, now) : [];
      }
      case "session.idle":
        return onIdle(id, event.properties.sessionID, now);
      case "session.deleted": {
        const session = stateOf(event.properties.info.id);
        if (session.turn !== "running") return [];
        session.reason = "interrupted";
        return onIdle(id, event.properties.info.id, now);
      }
      case "session.compacted":
        return [eventOf("session_compacted", id, event.properties.sessionID, now, {})];
      case "session.error": {
        const { sessionID, error } = event.properties;
        return sessionID && error ? onError(id, sessionID, error, now) : [];
      }
      case "message.updated": {
        const { info } = event.properties;
        return info.role === "user" ? onUserMessage(id, info, now) : onStep(info, now);
      }
      case "message.part.updated": {
        const { part, time = now } = event.properties;
        if (part.type !== "tool") return onPart(part, time);
        return isBegun(part) ? onToolPart(part) : [];
      }
      case "todo.updated":
        stateOf(event.properties.sessionID).todos = event.properties.todos;
        return update(id, event.properties.sessionID, now);
      case "permission.asked": {
        const { permission, patterns } = event.properties;
        return onAsked(
          "permission",
          event.properties,
          `${permission}: ${patterns.join(", ")}`,
          now,
        );
      }
      case "question.asked": {
        const detail = event.properties.questions.map(({ question }) => question).join("\n");
        return onAsked("question", event.properties, detail, now);
      }
      case "permission.replied":
        return onAnswered("permission", event.properties, event.properties.reply, now);
      case "question.replied": {
        const reply = event.properties.answers.flat().join(", ");
        return onAnswered("question", event.properties, reply, now);
      }
      case "question.rejected":
        return onAnswered("question", event.properties, "reject", now);
      default:
        return [];
    }
  }

  function translate(event: OpenCodeEvent, now: number): TelemetryEvent[] {
    const fresh = eventsOf(event, now).filter(({ id }) => !sent.has(id));
    for (const { id } of fresh) sent.add(id);
    forgetOldest(sent, MAX_SENT_IDS);
    // An aborted step and a background agent end after their session's turn (OpenCode 1.18.33).
    // Without another end after them the session would count as active.
    const late = fresh.findLast(({ type, session_id }) => {
      const { turn, step } = stateOf(session_id);
      return LATE_TYPES.test(type) && turn === "ended" && !step;
    });
    if (late) fresh.push(sessionEnd(`${late.id}:session_end`, late.session_id, now));
    return fresh;
  }

  function interrupt(now: number, directory?: string): TelemetryEvent[] {
    return [...sessions].flatMap(([id, session]) => {
      const isElsewhere = directory !== undefined && session.info?.directory !== directory;
      if ((session.turn !== "running" && !session.step) || isElsewhere) return [];
      Object.assign(session, { turn: "ended", reason: "interrupted", step: undefined });
      return [sessionEnd(`${id}:interrupted:${now}`, id, now)];
    });
  }

  function learn({ id, providerID, limit }: AskedModel): void {
    if (limit?.context) contextLimits.set(`${providerID}/${id}`, limit.context);
    forgetOldest(contextLimits, MAX_SESSIONS);
  }

  /** A session that waits for the person is one that runs. */
  const isRunning = () => sessions.values().some(({ turn }) => turn === "running");

  return { translate, interrupt, learn, isRunning };
}

function eventOf(
  type: TelemetryEvent["type"],
  id: string,
  session_id: string,
  timestamp: number,
  data: Data,
): TelemetryEvent {
  return { id, type, session_id, timestamp, data: known(data) };
}

function usageOf({ cost, tokens }: { cost?: number; tokens?: Tokens }): Usage {
  const { input = 0, output = 0, reasoning = 0, cache } = tokens ?? {};
  const { read: cache_read = 0, write: cache_write = 0 } = cache ?? {};
  return { cost: cost ?? 0, input, output, reasoning, cache_read, cache_write };
}

/** `one` and `sign` times `other`; no field falls below 0. */
function plus(one: Usage, other: Usage, sign = 1): Usage {
  const sum = { ...one };
  for (const name of USAGE_FIELDS) sum[name] = Math.max(0, one[name] + sign * other[name]);
  return sum;
}

/** Dollars to a billionth: beyond that they are the errors of sums. */
function figures({ cost, ...tokens }: Usage): Data {
  return { tokens, cost: Math.round(cost * 1e9) / 1e9 };
}

function changesOf(diffs: FileDiff[]): Data {
  const sum = (name: "additions" | "deletions") =>
    diffs.reduce((total, diff) => total + (diff[name] ?? 0), 0);
  const files = new Set(diffs.map(({ file }) => file)).size;
  return { files, additions: sum("additions"), deletions: sum("deletions") };
}

const modelOf = ({ id, modelID, providerID, agent }: AssistantMessage): Data => ({
  call_id: id,
  model: modelID,
  provider: providerID,
  agent,
});

/** All that is read of it: a provider's error also holds its response, with headers. */
const messageOf = ({ name, data }: OpenCodeError) => data?.message ?? name;

const isBegun = (part: ToolPart): part is ToolPart<BegunCall> => part.state.status !== "pending";

const isInBackground = ({ status, metadata }: BegunCall) =>
  status === "completed" && metadata?.background === true;

function agentSpawn(part: ToolPart<BegunCall>, child_session_id: string): TelemetryEvent {
  const { input, time } = part.state;
  return eventOf("agent_spawn", `${part.id}:agent_spawn`, part.sessionID, time.start, {
    subagent_type: subagentType(part),
    description: textOf(input.description),
    prompt: textOf(input.prompt),
    call_id: callId(part),
    child_session_id,
  });
}

function agentComplete(part: ToolPart<BegunCall>, end: number, ending: Ending): TelemetryEvent {
  return eventOf("agent_complete", `${part.id}:agent_complete`, part.sessionID, end, {
    subagent_type: subagentType(part),
    call_id: callId(part),
    duration_ms: elapsed(part.state.time.start, end),
    ...ending,
  });
}

/**
 * With the message's id: some models count their calls anew in each answer. Of ids that carry a
 * kilobyte of state, as some providers' do, a hash.
 */
function callId({ messageID, callID }: { messageID: string; callID: string }): string {
  const isLong = callID.length > MAX_CALL_ID_CHARS;
  return `${messageID}:${isLong ? createHash("sha256").update(callID).digest("hex") : callID}`;
}

function subagentType({ state }: ToolPart<BegunCall>): string {
  const { subagent_type: type } = state.input;
  return typeof type === "string" && type && type.length <= MAX_NAME_CHARS ? type : "unknown";
}

// ─── Content ─────────────────────────────────────────────────────────────────
// What of an event leaves: a choice of the person, the same for every generation of OpenCode. Names,
// kinds, ids, times, counts, outcomes, exit codes and directories leave always.

const MODES = ["none", "args", "full"];

/** The fields that leave from a mode on; those of one type alone by `type.field`. */
const LEAVES_FROM: Record<string, string> = {
  title: "args",
  args: "args",
  description: "args",
  prompt: "args",
  detail: "args",
  reply: "args",
  error: "args",
  message: "args",
  todos: "args",
  files: "args",
  "turn_start.prompt": "full",
  text: "full",
  output: "full",
};

const MASK = "***";
const SECRET_NAME =
  "pass(?:word|wd|phrase)(?:[_-]\\w{1,16})?|pwd|secret(?:[_-]\\w{1,16}){0,2}|token|credentials?" +
  "|(?:api|access|private|auth|encryption)[_-]?key(?:[_-](?:id|base))?";
const IS_SECRET = new RegExp(`(?:${SECRET_NAME})$`, "i");

/** Each with what stays. Every repetition is bounded: 4,608 characters take well below 1 ms. */
const SECRETS: [RegExp, string][] = [
  // A private key, or the end of one whose beginning was cut off.
  [/-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY-----[^]*?(?:-----END [A-Z0-9 ]{0,30}KEY-----|$)/g, MASK],
  [/^[\w+/=\s\\-]*-----END [A-Z0-9 ]{0,30}PRIVATE KEY-----/, MASK],
  [/\b(bearer\s{1,9})[\w.~+/=-]{8,}/gi, `$1${MASK}`],
  [/\b(authorization["'\\]{0,3}\s?[:=]\s?["'\\]{0,3}(?:\w{1,12} )?)[\w.~+/=-]{8,}/gi, `$1${MASK}`],
  // Keys by their form: OpenAI, Anthropic, Stripe; GitHub, GitLab; Slack; AWS; Google; Hugging Face,
  // npm, PyPI, Groq, xAI, SendGrid; a JSON web token.
  [/\b[spr]k[-_](?=[\w-]{0,60}\d)[\w-]{16,}/g, MASK],
  [/\b(?:gh[pousr]_|github_pat_|glpat-)\w{16,}/g, MASK],
  [/\bxox[a-z]-[\w-]{10,}/g, MASK],
  [/\b(?:AKIA|ASIA)[0-9A-Z]{16}\b/g, MASK],
  [/\b(?:AIza[\w-]{30,}|ya29\.[\w-]{20,})/g, MASK],
  [/\b(?:hf_|npm_|pypi-|gsk_|xai-|SG\.)[\w.-]{20,}/g, MASK],
  [/\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?/g, MASK],
  // A password in a URL, in an option, in an assignment.
  [/\b([a-z][a-z0-9+.-]{0,20}:\/\/[^\s:@/"']{0,100}:)[^\s@/"']{1,300}(?=@)/gi, `$1${MASK}`],
  [/(\s(?:-u|--user)[=\s]\s?["']?[^\s:"']{1,100}:)[^\s"']{1,300}/g, `$1${MASK}`],
  [
    new RegExp(`(--?(?:${SECRET_NAME})\\s{1,9})(?![$*-])(?:"[^"]*"|'[^']*'|\\S{1,500})`, "gi"),
    `$1${MASK}`,
  ],
  [
    new RegExp(
      `((?:${SECRET_NAME})["'\\\\]{0,3}\\s{0,9}[:=]\\s{0,9})(?![$/*])` +
        `(?:(\\\\?["'])(?!\\2|[$*])(?:(?!\\2)[^\\n]){1,500}(?:\\2|$)|[^\\s"',;&\\\\]{3,500})`,
      "gi",
    ),
    `$1${MASK}`,
  ],
];

/** Of a todo or a changed file all but what it says. */
const countsOf = ({ status, additions, deletions }: Data) =>
  known({ status, additions, deletions });

/** `text` with *** for what has the form of a secret. */
function mask(text: string): string {
  let masked = text;
  for (const [secret, replacement] of SECRETS) masked = masked.replace(secret, replacement);
  return masked;
}

interface ContentChoice {
  /** One of MODES; another is taken for `none`. */
  content?: string;
  /** "off": secrets leave too. */
  redact?: string;
}

/**
 * Returns `shape(event)`: the event as it leaves. Texts are cut at 4 KB; `…_cut` marks one that was,
 * `…_length` is its whole length. Of todos and files those beyond 4 KB leave as in `none`.
 *
 * |                                      | none   | args | full           |
 * |--------------------------------------|--------|------|----------------|
 * | titles, arguments, errors            | –      | yes  | yes            |
 * | prompt and description of a subagent | –      | yes  | yes            |
 * | what the person is asked, answers    | –      | yes  | yes            |
 * | todos, files                         | counts | yes  | yes            |
 * | the person's prompts                 | –      | –    | yes            |
 * | what the model says                  | –      | –    | yes            |
 * | what a tool returned                 | –      | –    | its last 4 KB  |
 */
function createShape({ content = "args", redact = "on" }: ContentChoice) {
  const mode = MODES.indexOf(content);
  const clean = redact === "off" ? (text: string) => text : mask;

  function shapedText(name: string, text: string): Data {
    const window = MAX_TEXT_CHARS + CUT_MARGIN_CHARS;
    const isTail = name === "output"; // how it ended says most
    const cleaned = clean(isTail ? text.slice(-window) : text.slice(0, window));
    const cut = isTail ? cleaned.slice(-MAX_TEXT_CHARS) : cleaned.slice(0, MAX_TEXT_CHARS);
    if (text.length <= MAX_TEXT_CHARS && cut === cleaned) return { [name]: cut };
    // Not through the middle of a surrogate pair.
    const whole = cut.replace(/^[\udc00-\udfff]|[\ud800-\udbff]$/g, "");
    return { [name]: whole, [`${name}_cut`]: true, [`${name}_length`]: text.length };
  }

  /** Of a value however large only as much as is kept is looked at. */
  function copyOf(value: unknown, budget: { chars: number }, depth = 0): unknown {
    budget.chars -= typeof value === "string" ? value.length : 4;
    if (typeof value === "string") return clean(value.slice(0, MAX_TEXT_CHARS + CUT_MARGIN_CHARS));
    if (typeof value !== "object" || value === null) return value;
    if (depth === MAX_ARGS_DEPTH) return null;
    if (Array.isArray(value)) {
      const items: unknown[] = [];
      for (const item of value) if (budget.chars > 0) items.push(copyOf(item, budget, depth + 1));
      return items;
    }
    const copy: Data = {};
    for (const [key, field] of Object.entries(value)) {
      if (budget.chars <= 0) break;
      budget.chars -= key.length;
      const isSecret = typeof field === "string" && clean === mask && IS_SECRET.test(key);
      copy[key] = isSecret ? MASK : copyOf(field, budget, depth + 1);
    }
    return copy;
  }

  function shaped(name: string, value: unknown): Data {
    if (typeof value === "string") return shapedText(name, value);
    const budget = { chars: MAX_TEXT_CHARS };
    if (Array.isArray(value)) {
      // Every item, so that they can be counted.
      const items = value.map((item) => {
        const copy = budget.chars > 0 ? copyOf(item, budget) : undefined;
        return copy !== undefined && budget.chars >= 0 ? copy : countsOf(item);
      });
      return { [name]: items };
    }
    const copy = copyOf(value, budget);
    const json = JSON.stringify(copy) ?? "";
    if (budget.chars > 0 && json.length <= MAX_TEXT_CHARS) return { [name]: copy };
    const cut = json.slice(0, MAX_TEXT_CHARS).replace(/[\ud800-\udbff]$/, "");
    return { [name]: cut, [`${name}_cut`]: true };
  }

  return function shape(event: TelemetryEvent): TelemetryEvent {
    const data: Data = {};
    for (const [name, value] of Object.entries(event.data)) {
      const from = LEAVES_FROM[`${event.type}.${name}`] ?? LEAVES_FROM[name];
      // One of three words, where the person was asked for a permission.
      const isWord = name === "reply" && event.data.kind === "permission";
      if (from === undefined || isWord) data[name] = value;
      else if (MODES.indexOf(from) <= mode) Object.assign(data, shaped(name, value));
      else if (Array.isArray(value)) data[name] = value.map(countsOf);
    }
    return { ...event, data };
  };
}

// ─── Sender ──────────────────────────────────────────────────────────────────
// A bounded queue and one POST at a time, so that events arrive in order. It tries again for as
// long as OpenCode runs, and never throws, prints or keeps OpenCode alive: no server is normal.

interface Connection {
  /** Where the server is, like "http://localhost:3001". */
  server: string;
  token?: string | undefined;
}

/** Returns `call(path, body, signal)`: a GET, or with a body a POST; undefined: no answer within 1 s. */
function createClient({ server, token }: Connection) {
  const base = server.replace(/\/+$/, "");
  const authorization = token ? { authorization: `Bearer ${token}` } : undefined;
  return async function call(
    path: string,
    body?: string,
    signal?: AbortSignal,
  ): Promise<{ status: number; text: string } | undefined> {
    const attempt = new AbortController();
    const abort = () => attempt.abort();
    const timeout = setTimeout(abort, POST_TIMEOUT_MS);
    timeout.unref();
    signal?.addEventListener("abort", abort);
    try {
      const response = await fetch(base + path, {
        method: body === undefined ? "GET" : "POST",
        headers: { "content-type": "application/json", ...authorization },
        ...(body === undefined ? {} : { body }),
        redirect: "manual", // to another server prompts don't go
        signal: attempt.signal,
      });
      // Read to its end, the connection serves the next call.
      return { status: response.status, text: await response.text() };
    } catch {
      return undefined;
    } finally {
      clearTimeout(timeout);
      signal?.removeEventListener("abort", abort);
    }
  };
}

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
type PostOutcome = "stored" | "refused" | "failed";

/**
 * `send` queues events and returns at once. `close` goes on posting until all is stored, a POST
 * begun since fails, or `withinMs` are over; what is sent afterwards is ignored.
 *
 * A full queue drops its oldest event. Dropped events are counted in `data.dropped_events` of the
 * next one sent.
 */
function createSender(connection: Connection) {
  const call = createClient(connection);
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

  async function post(batch: string[]): Promise<PostOutcome> {
    attempt = new AbortController();
    const answer = await call("/api/events", `[${batch.join(",")}]`, attempt.signal);
    if (answer === undefined) return "failed";
    const { status } = answer;
    if (status >= 200 && status < 300) return "stored";
    return status === 400 || status === 413 ? "refused" : "failed";
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

// ─── Presence ────────────────────────────────────────────────────────────────
// Says that this process lives while one of its sessions runs, so that the server knows what a
// process that was killed has left open. Nothing depends on it: a server without it answers 404.

/** Runs `action` once, after `ms`, unless it is cancelled by what it returns. */
type Schedule = (action: () => void, ms: number) => () => void;

const onTimer: Schedule = (action, ms) => {
  const timer = setTimeout(action, ms);
  timer.unref();
  return () => clearTimeout(timer);
};

interface PresenceOptions extends Connection {
  /** One for each process. */
  sender: string;
  /** The projects of this process. */
  directories: Set<string>;
  schedule?: Schedule;
  send: (events: TelemetryEvent[]) => void;
}

/** `update` is told whether a session runs; `bye` says that the process goes. */
function createPresence({ sender, directories, schedule = onTimer, send, ...to }: PresenceOptions) {
  const call = createClient(to);
  let cancel: (() => void) | undefined;
  let beats = 0;

  function update(isRunning: boolean): void {
    if (isRunning)
      cancel ??= schedule(beat, 0); // the hook returns first
    else stop();
  }

  function stop(): void {
    cancel?.();
    cancel = undefined;
  }

  function beat(): void {
    cancel = schedule(beat, BEAT_MS);
    beats += 1;
    const alive = { sender, every_ms: BEAT_MS, name: "opencode", version: PLUGIN_VERSION };
    void call("/api/senders", JSON.stringify(alive));
    if (beats <= MAX_PREDECESSOR_CHECKS) void endPredecessors().catch(() => {});
  }

  /**
   * Ends the sessions of this project that the server calls stale, and whose sender it calls lost or
   * doesn't know. A sibling that lives is neither: it beats while it has one that runs. Where it is
   * one nevertheless, as after a long sleep, its next event is later than this end, and reopens.
   */
  async function endPredecessors(): Promise<void> {
    const [senders, sessions] = [await list("senders"), await list("sessions", "?status=stale")];
    if (senders === undefined || sessions === undefined) return;
    const known = new Map(senders.map((it) => [it.sender, it]));
    const ends = sessions.flatMap(({ id, last_event_at, info }): TelemetryEvent[] => {
      const isOurs = info.sender === sender || !directories.has(info.directory);
      const by = known.get(info.sender);
      if (isOurs || typeof info.sender !== "string" || by?.is_lost === false) return [];
      // It lived for as long as it was heard: a command may have run for an hour since its last event.
      const heard_at = Date.parse(by?.last_heard_at ?? last_event_at);
      const timestamp = Math.max(Date.parse(last_event_at), heard_at) + 1;
      const data = { reason: "interrupted" };
      return [
        { id: `${id}:lost:${timestamp}`, type: "session_end", session_id: id, timestamp, data },
      ];
    });
    send(ends);
  }

  /** Undefined: the server doesn't have it. */
  async function list(what: "senders" | "sessions", query = ""): Promise<any[] | undefined> {
    const answer = await call(`/api/${what}${query}`);
    return answer?.status === 200 ? JSON.parse(answer.text)[what] : undefined;
  }

  async function bye(): Promise<void> {
    stop();
    if (beats > 0) await call("/api/senders", JSON.stringify({ sender, bye: true }));
  }

  return { update, bye };
}

// ─── Plugin ──────────────────────────────────────────────────────────────────
// All of it, wired to OpenCode's hooks. Nothing that goes wrong here reaches OpenCode.

interface Options extends Connection, ContentChoice {
  /** The clock, in milliseconds since 1970. */
  now?: () => number;
  schedule?: Schedule;
  sender?: string;
  directories?: Set<string>;
}

/** The events that say facts of their session. */
const FACT_TYPES = new Set<TelemetryEvent["type"]>([
  "session_start",
  "session_update",
  "session_end",
]);

/** The hooks that all instances of one process share. */
function createHooks({
  now = Date.now,
  sender = randomUUID(),
  directories = new Set<string>(),
  ...options
}: Options) {
  const translator = createTranslator();
  const shape = createShape(options);
  const queue = createSender(options);
  const presence = createPresence({ ...options, sender, directories, send: queue.send });

  function send(events: TelemetryEvent[]): void {
    queue.send(
      events.map((event) => {
        const shaped = shape(event);
        if (FACT_TYPES.has(event.type)) shaped.data.sender = sender;
        return shaped;
      }),
    );
    presence.update(translator.isRunning());
  }

  return {
    // The one hook through which every fact passes; OpenCode doesn't wait for it.
    event: guarded(({ event }: { event: OpenCodeEvent }) =>
      send(translator.translate(event, now())),
    ),
    "chat.params": guarded(({ model }: { model: AskedModel }) => translator.learn(model)),
    /** An instance goes, and with it the sessions of its directory. */
    interrupt: guarded((directory: string) => send(translator.interrupt(now(), directory))),
    dispose: guarded(async () => {
      send(translator.interrupt(now()));
      const closed = queue.close(FLUSH_MS);
      await Promise.all([closed, Promise.race([presence.bye(), closed])]);
    }),
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

const SENDER = randomUUID();
const directories = new Set<string>();
let shared: ReturnType<typeof createHooks> | undefined;
let instances = 0;

/** Once for each directory that OpenCode works in: all share one sender. */
async function plugin({ directory }: { directory?: string }) {
  shared ??= createHooks({
    server: OBSERVABILITY_SERVER,
    token: OBSERVABILITY_TOKEN,
    content: OBSERVABILITY_CONTENT,
    redact: OBSERVABILITY_REDACT,
    sender: SENDER,
    directories,
  });
  const { interrupt, dispose, ...hooks } = shared;
  if (directory !== undefined) directories.add(directory);
  instances += 1;
  return {
    ...hooks,
    async dispose(): Promise<void> {
      instances -= 1;
      if (instances > 0) return interrupt(directory ?? "");
      shared = undefined;
      await dispose();
    },
  };
}

/**
 * The only value exported: OpenCode (1.18.33) calls every function that a plugin file exports, and
 * refuses a file that exports other values. What the tests need hangs on it.
 */
export const ObservabilityPlugin = Object.assign(plugin, {
  createTranslator,
  createShape,
  createSender,
  createHooks,
});
