export const PLUGIN_VERSION = "3.2.0";
const DEFAULT_SERVER = "http://localhost:3001"; // a server that hands this file out puts its own address here

/**
 * PAI Observability for OpenCode 1.18 and 2: posts what a session does, while it does it.
 *
 * Install: copy this file to `~/.config/opencode/plugins/` (every project) or `.opencode/plugins/`
 * (one project), not both. A running server hands it out:
 *
 *     curl -f --create-dirs -o ~/.config/opencode/plugins/observability.ts \
 *       http://localhost:3001/plugin/observability.ts
 *
 * A setting is looked for in the plugin's options, in the environment, in `pai-observability.json` in
 * OpenCode's config directory, in this order:
 *
 * | Option, JSON | Environment            | Default        |                                          |
 * |--------------|------------------------|----------------|------------------------------------------|
 * | server       | OBSERVABILITY_SERVER   | DEFAULT_SERVER | where the server is                      |
 * | token        | OBSERVABILITY_TOKEN    | none           | its AUTH_TOKEN                           |
 * | content      | OBSERVABILITY_CONTENT  | args           | how much leaves: none, args or full      |
 * | redact       | OBSERVABILITY_REDACT   | on             | off: secrets leave as they are           |
 * | backfill     | OBSERVABILITY_BACKFILL | on             | 0: what the server has missed stays away |
 *
 * The life of a fact:
 *
 *     OpenCode 1.18 ──▶ translator ──▶ ledger ─┬▶ content ──▶ queue ──▶ POST /api/events
 *     OpenCode 2 ──▶ order ──▶ translator ─────┘                      in order, in batches
 *
 * - Each generation of OpenCode has one section, with all that is read of it and its translator. What
 *   the generations have in common is the ledger's: sessions, turns, calls, waits, outcomes.
 * - Times, durations and failures are OpenCode's own. A fact has one id, however often OpenCode
 *   repeats it and however often it is posted: the server stores it once.
 * - A provider's options, headers and keys are never read.
 * - No hook waits, throws or prints. Without a server events wait in memory, up to a bound; what that
 *   loses, and what happened before, is told later from OpenCode's own store (see Past). While no
 *   session runs and nothing waits to be sent there is no timer and no request.
 */

import { createHash, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { homedir } from "node:os";
import { dirname, join } from "node:path";

// ─── Bounds ──────────────────────────────────────────────────────────────────

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
/** The pause before OpenCode 2's stream is opened again doubles from MIN_RETRY_MS up to this. */
const MAX_LISTEN_PAUSE_MS = 60_000;
/** The exit of OpenCode 1.18 waits half a second for `dispose`; that of 2 for longer (9 s were seen). */
const FLUSH_MS = 400;
const FLUSH_2_MS = 800;

/** A sender that is silent for three of these is lost. */
const BEAT_MS = 10_000;
/** The first beats, 40 s: by then a predecessor that was killed a moment ago is known as lost. */
const MAX_PREDECESSOR_CHECKS = 5;

/** What is told of the past at most: the server keeps 7 days, unless told otherwise. */
const MAX_PAST_MS = 7 * 24 * 3_600_000;
const MAX_PAST_SESSIONS = 200;
const MAX_PAST_DURATION_MS = 20_000;
/** A call that was on its way when the server was last reached is told anew. */
const PAST_MARGIN_MS = 60_000;
/** How often, at most, the time at which the server was reached is written down. */
const REACHED_INTERVAL_MS = 60_000;

/** The translators' memory, a few MB. Forgetting is harmless: a repeat has the same id. */
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

// ─── Ledger ──────────────────────────────────────────────────────────────────
// What every generation of OpenCode has: sessions and their facts, turns, steps, calls, agents, waits
// for the person. It gives our events, and remembers what it has said, so that the many repeats of a
// fact become one event. No clock, no network, no environment: the time comes in with each call.

/** As both generations say it. */
type Tokens = Record<"input" | "output" | "reasoning", number> & {
  cache: { read: number; write: number };
};

/** US dollars and tokens. */
type Usage = Record<(typeof USAGE_FIELDS)[number], number>;
const USAGE_FIELDS = ["cost", "input", "output", "reasoning", "cache_read", "cache_write"] as const;

interface FileChange {
  path: string;
  additions?: number | undefined;
  deletions?: number | undefined;
}

/** What OpenCode says of a session. */
interface Description {
  created: number;
  usage?: Usage | undefined;
  /** title, directory, agent, model, parent_session_id */
  facts: Data;
}

interface SessionState {
  /** Undefined: of this session nothing has been said yet but what happens in it. */
  created?: number;
  facts: Data;
  /** Heard from its beginning, so that what is counted of it is all. Undefined: not heard of yet. */
  isWhole?: boolean;
  /** What has been changed, by the prompt or the call that it was. */
  changes: Map<string, FileChange[]>;
  /** As last told. */
  told: Data;
  /** As OpenCode last announced it; of steps that are over but not in it yet; what a fork copied. */
  usage?: Usage | undefined;
  pending: Usage;
  copied: Usage;
  /** Undefined: nothing is known of its turns. */
  turn?: "new" | "running" | "ended";
  reason: "completed" | "interrupted" | "error";
  /** When its turn, or what came of it last, was heard to begin. */
  begunAt?: number;
  /** The latest prompt's id, and its turn_start, which waits for OpenCode to take it up. */
  promptId?: string;
  prompt?: TelemetryEvent | undefined;
  step?: Step | undefined;
  /** Since when OpenCode could ask the model. */
  readyAt?: number | undefined;
  /** A session_error, which waits for the step that it ends: that will tell of it. */
  held?: TelemetryEvent | undefined;
  /** The latest of this turn. */
  error?: string | undefined;
}

/** One step: a request to the model and its answer. The tools that it called run on after that. */
interface Step {
  /** The id of its message. */
  id: string;
  session_id: string;
  model: { model?: string; provider?: string; agent?: string };
  /** When the model was asked first and last, how often, and when its answer's first byte came. */
  begun?: number;
  asked?: number;
  requests: number;
  first?: number | undefined;
  isRetrying?: boolean;
  /** The latest sign of its answer. */
  answered?: number;
  /** What the model has said, by part. */
  texts: Map<string, string>;
}

interface StepEnd {
  usage?: Usage | undefined;
  finish?: string | undefined;
  ending: Ending;
  context_limit?: number | undefined;
}

interface Call {
  /** Of its events, which add what they are. */
  id: string;
  session_id: string;
  call_id: string;
  tool: string;
  args: Data;
  start: number;
  /** The session of the agent that it runs; without one no agent runs. */
  child?: string | undefined;
  agent: { type: unknown; description: unknown; prompt: unknown };
  /** The agent goes on after the call has ended. */
  isInBackground?: boolean;
}

interface CallEnd {
  end: number;
  ending: Ending;
  files?: FileChange[] | undefined;
  output?: string | undefined;
}

type Ending =
  | { outcome: "ok" | "denied" | "cancelled" }
  | { outcome: "exit"; exit_code: number }
  | { outcome: "failed"; error: string };

/** What OpenCode says of a call that is over. */
interface Verdict {
  error?: string | undefined;
  isDenied?: boolean;
  isCancelled?: boolean;
  /** Of a command. */
  exit?: number | null | undefined;
}

/**
 * What became of a call: the first that applies.
 *
 * | Said of it                        | Outcome   |
 * |-----------------------------------|-----------|
 * | the person or a rule refused it   | denied    |
 * | it was stopped, or its command    | cancelled |
 * | an error                          | failed    |
 * | a command's exit code, other than 0 | exit    |
 * | else                              | ok        |
 */
function endingOf({ error, isDenied, isCancelled, exit }: Verdict): Ending {
  if (isDenied) return { outcome: "denied" };
  if (isCancelled) return { outcome: "cancelled" };
  if (error !== undefined) return { outcome: "failed", error };
  if (typeof exit === "number" && exit !== 0) return { outcome: "exit", exit_code: exit };
  return { outcome: "ok" };
}

/** What may still come when a turn has ended; it doesn't begin another. */
const LATE_TYPES = /^(tool_use|agent_complete|model_response|session_error)$/;

type InputKind = "permission" | "question";

/**
 * `tell` gives of the events that the other functions make those that haven't been told yet.
 *
 * @param waitedMs by call: for how long it has waited for the person, in its subagents too
 */
function createLedger(waitedMs: Map<string, number>) {
  const sessions = new Map<string, SessionState>();
  const sent = new Set<string>();
  const isTold = (id: string) => sent.has(id);
  const calls = createCalls(waitedMs, isTold, (id) => stateOf(id).turn === "ended");

  function stateOf(sessionId: string): SessionState {
    const none = usageOf({});
    const state = sessions.get(sessionId) ?? {
      ...{ facts: {}, told: {}, changes: new Map(), reason: "completed" },
      ...{ pending: none, copied: none },
    };
    sessions.delete(sessionId);
    sessions.set(sessionId, state);
    forgetOldest(sessions, MAX_SESSIONS);
    return state;
  }

  // -- Sessions

  /** Its own. The figure of OpenCode 1.18 lacks the last step until after the end. */
  function usedBy({ usage, pending, copied }: SessionState): Data {
    if (usage === undefined && pending.cost === 0) return {};
    return figures(plus(plus(usage ?? usageOf({}), pending), copied, -1));
  }

  function factsOf(session: SessionState): Data {
    const { facts, changes, isWhole } = session;
    const changed = isWhole && changes.size > 0 ? sumOf([...changes.values()].flat()) : undefined;
    return known({ ...facts, ...usedBy(session), changes: changed });
  }

  /** A session_update with all facts, where one is new: one that is lost is made good by the next. */
  function update(id: string, session_id: string, now: number): TelemetryEvent[] {
    const session = stateOf(session_id);
    const facts = factsOf(session);
    if (JSON.stringify(facts) === JSON.stringify(session.told)) return [];
    session.told = facts;
    return [eventOf("session_update", id, session_id, now, facts)];
  }

  function describe(
    id: string,
    session_id: string,
    { created, usage, facts }: Description,
    isNew: boolean,
    now: number,
  ): TelemetryEvent[] {
    const session = stateOf(session_id);
    if (usage) {
      const news = plus(usage, session.usage ?? usageOf({}), -1);
      session.pending = plus(session.pending, news, -1);
      session.usage = usage;
    }
    session.created = created;
    Object.assign(session.facts, known(facts));
    if (isNew) {
      session.turn ??= "new";
      session.isWhole = true;
      session.told = factsOf(session);
    }
    // An update too: the server may know its start from an earlier process, with older facts.
    const updates = isNew ? [] : update(id, session_id, now);
    const startId = `${session_id}:session_start`;
    return [eventOf("session_start", startId, session_id, created, session.told), ...updates];
  }

  function change(session_id: string, by: string, files: FileChange[]): void {
    const { changes } = stateOf(session_id);
    if (files.length === 0 && !changes.has(by)) return;
    changes.set(by, files);
    forgetOldest(changes, MAX_SESSIONS);
  }

  // -- Turns

  function beginTurn(id: string, session_id: string, now: number): TelemetryEvent[] {
    const session = stateOf(session_id);
    const events: TelemetryEvent[] = [];
    session.begunAt = now;
    if (session.turn !== "running") {
      if (session.turn !== "new")
        events.push(eventOf("session_start", id, session_id, now, session.told));
      Object.assign(session, { turn: "running", reason: "completed", error: undefined });
    }
    // The task of an agent isn't the person's.
    if (session.prompt && session.facts.parent_session_id === undefined)
      events.push(session.prompt);
    session.prompt = undefined;
    return events;
  }

  /** `events` are the end of its agent, where that has gone on in the background, and its own. */
  function endTurn(id: string, session_id: string, now: number): TelemetryEvent[] {
    const session = stateOf(session_id);
    const { reason, error = reason } = session;
    const outcome = reason === "completed" ? "ok" : "cancelled";
    const ending: Ending = reason === "error" ? { outcome: "failed", error } : { outcome };
    const events = calls.endAgent(session_id, now, ending);
    if (session.turn === "ended") return events; // said again, as after an error (OpenCode 1.18.33)
    session.turn = "ended";
    // Aborted or failed: the end of its step is still to come, and then its own (OpenCode 1.18.33).
    if (!session.step) events.push(sessionEnd(id, session_id, now));
    return events;
  }

  /** By its prompt, where that hasn't ended yet: so the past tells the same end. */
  function sessionEnd(id: string, session_id: string, now: number): TelemetryEvent {
    const session = stateOf(session_id);
    const { promptId, reason } = session;
    const own = `${promptId}:session_end`;
    const endId = promptId === undefined || sent.has(own) ? id : own;
    return eventOf("session_end", endId, session_id, now, { reason, ...usedBy(session) });
  }

  /** One cause, one error. Where a step is open its end will tell of it, so that it counts for its model. */
  function fail(id: string, session_id: string, error_name: string, error: string, now: number) {
    const session = stateOf(session_id);
    session.reason = "error";
    if (session.error === error) return [];
    session.error = error;
    const event = eventOf("session_error", id, session_id, now, { error_name, error });
    if (session.step === undefined) return [event];
    session.held = event;
    return [];
  }

  // -- Steps

  function request(step: Step, at: number): TelemetryEvent {
    step.begun ??= at;
    step.asked = at;
    step.first = undefined;
    step.isRetrying = false;
    step.requests += 1;
    const id = `${step.id}:model_request${step.requests === 1 ? "" : `:${step.requests}`}`;
    return eventOf("model_request", id, step.session_id, at, { call_id: step.id, ...step.model });
  }

  function respond(step: Step, start: number, end: number, of: StepEnd): TelemetryEvent[] {
    const { id, session_id, model, first, texts } = step;
    const session = stateOf(session_id);
    if (session.step?.id === id) session.step = undefined;
    const { held } = session;
    session.held = undefined;
    const { ending, usage, finish, context_limit } = of;
    const hasFailed = ending.outcome === "failed";
    if (hasFailed) Object.assign(session, { error: ending.error, reason: "error" });
    const begun = step.begun ?? start;
    const ended = Math.max(begun, (hasFailed ? undefined : step.answered) ?? end);
    const response = eventOf("model_response", `${id}:model_response`, session_id, ended, {
      call_id: id,
      ...model,
      duration_ms: ended - begun,
      first_token_ms: first && elapsed(step.asked ?? begun, first),
      ...(usage && figures(usage)),
      finish_reason: finish,
      ...ending,
      context_limit,
      text: texts.size > 0 ? [...texts.values()].join("\n") : undefined,
    });
    return held && !hasFailed ? [held, response] : [response];
  }

  function sign(step: Step, at: number): void {
    step.answered = Math.max(step.answered ?? 0, at);
  }

  // -- All

  function tell(events: TelemetryEvent[], now: number): TelemetryEvent[] {
    const fresh = events.filter(({ id }) => !sent.has(id));
    for (const { id } of fresh) sent.add(id);
    // An aborted step and a background agent end after their session's turn. Without another end
    // after them the session would count as active.
    const late = fresh.findLast(({ type, session_id }) => {
      const { turn, step } = stateOf(session_id);
      return LATE_TYPES.test(type) && turn === "ended" && !step;
    });
    if (late) {
      const end = sessionEnd(`${late.id}:session_end`, late.session_id, now);
      sent.add(end.id);
      fresh.push(end);
    }
    forgetOldest(sent, MAX_SENT_IDS);
    return fresh;
  }

  /** The ends of sessions that still run; `directory`: of those that run there. */
  function interrupt(now: number, directory?: string): TelemetryEvent[] {
    return [...sessions].flatMap(([id, session]) => {
      const isElsewhere = directory !== undefined && session.facts.directory !== directory;
      if ((session.turn !== "running" && !session.step) || isElsewhere) return [];
      Object.assign(session, { turn: "ended", reason: "interrupted", step: undefined });
      const data = { reason: "interrupted", ...usedBy(session) };
      return [eventOf("session_end", `${id}:interrupted:${now}`, id, now, data)];
    });
  }

  /** Of what is told from OpenCode's store: the end of a turn that wasn't heard. */
  function settle({ type, session_id, timestamp }: TelemetryEvent): void {
    const session = sessions.get(session_id);
    const isEnd = type === "session_end" && timestamp > (session?.begunAt ?? Infinity);
    if (session?.turn === "running" && isEnd)
      Object.assign(session, { turn: "ended", step: undefined });
  }

  /** A session that waits for the person is one that runs. */
  const isRunning = () => sessions.values().some(({ turn }) => turn === "running");

  return {
    ...{ stateOf, update, describe, change, beginTurn, endTurn, fail },
    ...{ request, respond, sign, ...calls },
    ...{ tell, interrupt, settle, isRunning, isTold },
    /** An event that has been told elsewhere. */
    skip: (id: string) => void sent.add(id),
  };
}

/** Calls of tools, the agents that some of them run, and how long they wait for the person. */
function createCalls(
  waitedMs: Map<string, number>,
  isTold: (id: string) => boolean,
  isOver: (session_id: string) => boolean,
) {
  /** By child session: the call that runs its agent. */
  const tasks = new Map<string, Call>();
  /** By request: the call that waits, and since when. */
  const waits = new Map<string, { call: string; since: number }>();

  function begin(call: Call): TelemetryEvent[] {
    const { id, session_id, start, tool, call_id, args } = call;
    const event = eventOf("tool_start", `${id}:tool_start`, session_id, start, {
      ...{ tool, call_id, args },
    });
    return [event, ...spawn(call)];
  }

  function spawn(call: Call): TelemetryEvent[] {
    if (call.child === undefined) return [];
    tasks.set(call.child, call);
    forgetOldest(tasks, MAX_SESSIONS);
    return [
      eventOf("agent_spawn", `${call.id}:agent_spawn`, call.session_id, call.start, {
        subagent_type: subagentType(call),
        description: textOf(call.agent.description),
        prompt: textOf(call.agent.prompt),
        call_id: call.call_id,
        child_session_id: call.child,
      }),
    ];
  }

  function end(call: Call, { end: at, ending, files, output }: CallEnd): TelemetryEvent[] {
    const { id, session_id, call_id, tool, args, start, child } = call;
    const duration_ms = elapsed(start, at);
    const waited_ms = Math.min(waitedBy(call_id, at), duration_ms) || undefined;
    const data = { tool, call_id, args, duration_ms, waited_ms, ...ending, files, output };
    const event = eventOf("tool_use", `${id}:tool_use`, session_id, at, data);
    const isOver = child !== undefined && !call.isInBackground;
    return [...spawn(call), event, ...(isOver ? [agentComplete(call, at, ending)] : [])];
  }

  /** The agent that runs in this session, where its call ended before it did. */
  function endAgent(child: string, at: number, ending: Ending): TelemetryEvent[] {
    const task = tasks.get(child);
    return task?.isInBackground ? [agentComplete(task, at, ending)] : [];
  }

  /** To its end, where it was aborted while it waited: then there is no answer. */
  function waitedBy(call: string, at: number): number {
    let waited = waitedMs.get(call) ?? 0;
    for (const wait of waits.values()) if (wait.call === call) waited += elapsed(wait.since, at);
    return waited;
  }

  function asked(
    kind: InputKind,
    request_id: string,
    session_id: string,
    call_id: string | undefined,
    detail: string,
    now: number,
  ): TelemetryEvent[] {
    const id = `${request_id}:input_requested`;
    if (call_id !== undefined && !isTold(id)) waits.set(request_id, { call: call_id, since: now });
    forgetOldest(waits, MAX_SESSIONS);
    return [eventOf("input_requested", id, session_id, now, { request_id, kind, detail, call_id })];
  }

  function answered(
    kind: InputKind,
    request_id: string,
    session_id: string,
    reply: string,
    now: number,
  ): TelemetryEvent[] {
    const wait = waits.get(request_id);
    waits.delete(request_id);
    let [call, session] = [wait?.call, session_id];
    for (let depth = 0; wait && call !== undefined && depth < MAX_GENERATIONS; depth++) {
      waitedMs.set(call, (waitedMs.get(call) ?? 0) + elapsed(wait.since, now));
      const task = tasks.get(session);
      [call, session] = [task?.call_id, task?.session_id ?? ""];
    }
    forgetOldest(waitedMs, MAX_SESSIONS);
    // One that an abort has left open is over, whenever it is answered.
    if (isOver(session_id)) return [];
    const id = `${request_id}:input_resolved`;
    const outcome = reply === "reject" ? "denied" : "ok";
    return [eventOf("input_resolved", id, session_id, now, { request_id, kind, reply, outcome })];
  }

  return { begin, spawn, end, endAgent, asked, answered };
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

function sumOf(changes: FileChange[]): Data {
  const sum = (name: "additions" | "deletions") =>
    changes.reduce((total, change) => total + (change[name] ?? 0), 0);
  const files = new Set(changes.map(({ path }) => path)).size;
  return { files, additions: sum("additions"), deletions: sum("deletions") };
}

const newStep = (id: string, session_id: string, model: Step["model"]): Step => ({
  ...{ id, session_id, model, requests: 0, texts: new Map() },
});

function agentComplete(call: Call, at: number, ending: Ending): TelemetryEvent {
  return eventOf("agent_complete", `${call.id}:agent_complete`, call.session_id, at, {
    subagent_type: subagentType(call),
    call_id: call.call_id,
    duration_ms: elapsed(call.start, at),
    ...ending,
  });
}

/**
 * With the message's id: some models count their calls anew in each answer. Of ids that carry a
 * kilobyte of state, as some providers' do, a hash.
 */
function callId(messageID: string, callID: string): string {
  const isLong = callID.length > MAX_CALL_ID_CHARS;
  return `${messageID}:${isLong ? createHash("sha256").update(callID).digest("hex") : callID}`;
}

function subagentType({ agent: { type } }: Call): string {
  return typeof type === "string" && type && type.length <= MAX_NAME_CHARS ? type : "unknown";
}

/** Within the project as from its directory. */
function relative(path: string, directory: unknown): string {
  const isInside = typeof directory === "string" && path.startsWith(`${directory}/`);
  return isInside ? path.slice(directory.length + 1) : path;
}

function lineCount(text: string): number {
  let count = text === "" || text.endsWith("\n") ? 0 : 1;
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) count += 1;
  return count;
}

// ─── OpenCode 1.18 ───────────────────────────────────────────────────────────
// What is read of it, its translator, its past. Fields not named here are left alone. Declared rather
// than imported, so that this file is all there is to copy.

interface SessionInfo {
  id: string;
  parentID?: string;
  title?: string;
  directory?: string;
  agent?: string;
  model?: { id: string };
  tokens?: Tokens;
  cost?: number;
  time: { created: number; updated?: number };
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

type Message = UserMessage | AssistantMessage;

interface OpenCodeError {
  name: string;
  data?: { message?: string };
}

interface ToolCall {
  /** Whatever the model wrote. */
  input: Partial<
    Record<"subagent_type" | "description" | "prompt" | "content" | "error" | "todos", unknown>
  >;
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
type Todo = { content: string; status: string };

interface Properties {
  "session.created": { info: SessionInfo };
  "session.updated": { info: SessionInfo };
  "session.deleted": { info: SessionInfo };
  "session.status": { sessionID: string; status: Status };
  "session.idle": OfSession;
  "session.compacted": OfSession;
  "session.error": { sessionID?: string; error?: OpenCodeError };
  "message.updated": { info: Message };
  "message.part.updated": { part: ToolPart | OtherPart; time?: number };
  "todo.updated": { sessionID: string; todos: Todo[] };
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
const TODO_TOOL = "todowrite";
/** In place of a call that can't be made: there is no such tool, or its arguments don't fit. */
const INVALID_TOOL = "invalid";
/** The person stopped it. */
const ABORT_ERROR = "MessageAbortedError";

/** A task has the words of its child's failure. */
const DENIED =
  /^(?:Subagent failed \([^)]*\): )?The user (rejected permission|has specified a rule|dismissed)/;
const CANCELLED = /^(Tool execution aborted|Task cancelled)/;
/** What OpenCode adds to the output of a command that it killed. */
const SHELL_NOTE = /<shell_metadata>\s*([^<]*?)\s*<\/shell_metadata>\s*$/;
const SHELL_NOTE_CHARS = 1_000;

/** Told from a call's last state alone. The words are OpenCode's own. */
function verdictOf(tool: string, call: EndedCall): Verdict {
  const { exit, interrupted = false } = call.metadata ?? {};
  if (call.status === "error") {
    const { error } = call;
    return {
      error,
      isDenied: DENIED.test(error),
      isCancelled: interrupted || CANCELLED.test(error),
    };
  }
  // It completes: what it returns tells the model what is wrong.
  if (tool === INVALID_TOOL) return { error: textOf(call.input.error) ?? tool };
  if (exit !== null) return { exit };
  // Killed: by the person, or because its time was over.
  const [, note = ""] = SHELL_NOTE.exec(call.output?.slice(-SHELL_NOTE_CHARS) ?? "") ?? [];
  return { error: note || "killed", isCancelled: note.startsWith("User aborted") };
}

/** The files that a call has changed, without their content; undefined: none. */
function filesOf({ input, metadata = {} }: ToolCall, directory: unknown) {
  const { filediff, filepath, exists, files } = metadata;
  const file = (path = "", additions?: number, deletions?: number): FileChange => ({
    ...{ path: relative(path, directory), additions, deletions },
  });
  if (files)
    return files.map((it) => file(it.relativePath ?? it.filePath, it.additions, it.deletions));
  if (filediff) return [file(filediff.file, filediff.additions, filediff.deletions)];
  if (filepath === undefined || exists === undefined) return undefined;
  // A write: of a file that was there OpenCode doesn't say what has changed.
  const isNew = !exists && typeof input.content === "string";
  return [isNew ? file(filepath, lineCount(input.content as string), 0) : file(filepath)];
}

/**
 * `translate(event, now)` gives the events that one event of OpenCode stands for, often none.
 *
 * | OpenCode                                | Sent                                                 |
 * |-----------------------------------------|------------------------------------------------------|
 * | session.created                         | session_start, at its creation                       |
 * | session.updated, todo.updated, the      | session_update with all facts, where one is new      |
 * | changes in a user message               |                                                      |
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
function createTranslator1(waitedMs = new Map<string, number>()) {
  const ledger = createLedger(waitedMs);
  const { stateOf, update, sign, tell, interrupt, settle, isRunning } = ledger;
  const contextLimits = new Map<string, number>();
  /** By session: its latest prompt, without the patches in its summary. */
  const prompts = new Map<string, Omit<UserMessage, "summary">>();

  /** A fork begins with copies of messages and calls: they were told where they ran. */
  const isCopy = ({ created = 0 }: SessionState, at: number) => at < created;

  const onSession = (id: string, info: SessionInfo, isNew: boolean, now: number) =>
    ledger.describe(
      id,
      info.id,
      {
        created: info.time.created,
        usage: info.cost === undefined ? undefined : usageOf(info),
        facts: {
          title: info.title,
          directory: info.directory,
          agent: info.agent,
          model: info.model?.id,
          parent_session_id: info.parentID,
        },
      },
      isNew,
      now,
    );

  function onBusy(id: string, session_id: string, now: number): TelemetryEvent[] {
    const events = ledger.beginTurn(id, session_id, now);
    const { step } = stateOf(session_id);
    if (step && (step.asked === undefined || step.isRetrying))
      events.push(ledger.request(step, now));
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
    const retryId = step ? `${step.id}:retry:${attempt}` : id;
    return [eventOf("retry", retryId, session_id, now, { attempt, message, retry_at })];
  }

  /** OpenCode tells of an error on the session first, then on its step. */
  function onError(id: string, session_id: string, error: OpenCodeError, now: number) {
    if (error.name !== ABORT_ERROR)
      return ledger.fail(id, session_id, error.name, messageOf(error), now);
    stateOf(session_id).reason = "interrupted";
    return [];
  }

  function onUserMessage(
    id: string,
    { summary, ...info }: UserMessage,
    now: number,
  ): TelemetryEvent[] {
    const session = stateOf(info.sessionID);
    const { created } = info.time;
    if (isCopy(session, created)) return [];
    if (created >= (prompts.get(info.sessionID)?.time.created ?? 0)) {
      prompts.set(info.sessionID, info);
      forgetOldest(prompts, MAX_SESSIONS);
      session.promptId = info.id;
    }
    // An agent's are those of all that work in its directory meanwhile: its calls tell of its own.
    const diffs = session.facts.parent_session_id === undefined ? (summary?.diffs ?? []) : [];
    const files = diffs.map(({ file, additions, deletions }) => ({
      ...{ path: file, additions, deletions },
    }));
    ledger.change(info.sessionID, info.id, files);
    return update(id, info.sessionID, now);
  }

  /** Not what OpenCode itself puts in. */
  function onPrompt({ sessionID, messageID, synthetic, text }: OtherPart): void {
    const session = stateOf(sessionID);
    const user = prompts.get(sessionID);
    const id = `${messageID}:turn_start`;
    if (user?.id !== messageID || synthetic || session.prompt?.id === id || ledger.isTold(id))
      return;
    const data = { prompt: text, agent: user.agent, model: user.model?.modelID };
    session.prompt = eventOf("turn_start", id, sessionID, user.time.created, data);
  }

  function onStep(info: AssistantMessage, now: number): TelemetryEvent[] {
    const session = stateOf(info.sessionID);
    const { id, time, finish, error, agent, modelID, providerID } = info;
    if (ledger.isTold(`${id}:model_response`)) return [];
    if (isCopy(session, time.created)) {
      session.copied = plus(session.copied, usageOf(info));
      ledger.skip(`${id}:model_response`);
      return [];
    }
    const isOpen = session.step?.id === id;
    const model = {
      model: modelID,
      provider: providerID,
      ...(agent === undefined ? {} : { agent }),
    };
    const step = (isOpen && session.step) || newStep(id, info.sessionID, model);
    if (finish === undefined && error === undefined && time.completed === undefined) {
      session.step = step;
      return [];
    }
    // The person's own command: no model was asked.
    if (finish === undefined && error === undefined && step.asked === undefined) {
      if (isOpen) session.step = undefined;
      return [];
    }
    let ending: Ending = { outcome: "ok" };
    if (error && error.name !== ABORT_ERROR)
      ending = { outcome: "failed", error: messageOf(error) };
    else if (finish === undefined) {
      ending = { outcome: "cancelled" };
      session.reason = "interrupted";
    }
    const usage = finish === undefined ? undefined : usageOf(info);
    if (usage) session.pending = plus(session.pending, usage);
    const context_limit = contextLimits.get(`${providerID}/${modelID}`);
    const of = { ending, usage, finish, context_limit };
    return ledger.respond(step, time.created, time.completed ?? now, of);
  }

  function onPart(part: OtherPart, at: number): TelemetryEvent[] {
    const { step } = stateOf(part.sessionID);
    const { type, text = "", time } = part;
    if (step?.id !== part.messageID) {
      if (type === "text" || type === "file") onPrompt(part);
      return [];
    }
    if (type === "step-start") {
      const events = step.asked === undefined ? [ledger.request(step, at)] : [];
      step.first ??= at;
      return events;
    }
    if (time?.end === undefined) return [];
    sign(step, time.end);
    if (type === "text") step.texts.set(part.id, text);
    return [];
  }

  function onToolPart(part: ToolPart<BegunCall>): TelemetryEvent[] {
    const { id, state, sessionID: session_id, messageID, tool } = part;
    const { time, input, metadata } = state;
    const session = stateOf(session_id);
    if (isCopy(session, time.start)) return [];
    if (session.step?.id === messageID) sign(session.step, time.start);
    const call: Call = {
      ...{ id, session_id, tool, args: input, start: time.start },
      call_id: callId(messageID, part.callID),
      child: tool === TASK_TOOL ? metadata?.sessionId : undefined,
      agent: {
        type: input.subagent_type,
        description: input.description,
        prompt: input.prompt,
      },
      isInBackground: state.status === "completed" && metadata?.background === true,
    };
    if (state.status === "running") return ledger.begin(call);
    const files = filesOf(state, session.facts.directory);
    if (files && session.facts.parent_session_id !== undefined)
      ledger.change(session_id, call.call_id, files);
    return ledger.end(call, {
      end: state.time.end,
      ending: endingOf(verdictOf(tool, state)),
      files,
      output: state.status === "completed" ? state.output : undefined,
    });
  }

  function onAsked(kind: InputKind, { id, sessionID, tool }: Request, detail: string, now: number) {
    const call_id = tool && callId(tool.messageID, tool.callID);
    return ledger.asked(kind, id, sessionID, call_id, detail, now);
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
        return ledger.endTurn(id, event.properties.sessionID, now);
      case "session.deleted": {
        const session = stateOf(event.properties.info.id);
        if (session.turn !== "running") return [];
        session.reason = "interrupted";
        return ledger.endTurn(id, event.properties.info.id, now);
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
      case "todo.updated": {
        const { sessionID, todos } = event.properties;
        const told = todos.map(({ content, status }) => ({ content, status }));
        Object.assign(stateOf(sessionID).facts, { todos: told });
        return update(id, sessionID, now);
      }
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
      case "permission.replied": {
        const { requestID, sessionID, reply } = event.properties;
        return ledger.answered("permission", requestID, sessionID, reply, now);
      }
      case "question.replied": {
        const { requestID, sessionID, answers } = event.properties;
        return ledger.answered("question", requestID, sessionID, answers.flat().join(", "), now);
      }
      case "question.rejected": {
        const { requestID, sessionID } = event.properties;
        return ledger.answered("question", requestID, sessionID, "reject", now);
      }
      default:
        return [];
    }
  }

  function learn({ id, providerID, limit }: AskedModel): void {
    if (limit?.context) contextLimits.set(`${providerID}/${id}`, limit.context);
    forgetOldest(contextLimits, MAX_SESSIONS);
  }

  return {
    translate: (event: OpenCodeEvent, now: number) => tell(eventsOf(event, now), now),
    ...{ interrupt, settle, isRunning, learn, waitedMs },
  };
}

/** All that is read of it: a provider's error also holds its response, with headers. */
const messageOf = ({ name, data }: OpenCodeError) => data?.message ?? name;

const isBegun = (part: ToolPart): part is ToolPart<BegunCall> => part.state.status !== "pending";

/** What is called of OpenCode's client. */
export interface Client1 {
  session: {
    list(options: { query: { limit: number } }): Promise<{ data?: SessionInfo[] }>;
    messages(options: { path: { id: string } }): Promise<{ data?: StoredMessage[] }>;
  };
  app?: { log?(options: { body: { service: string; level: string; message: string } }): unknown };
}

export interface StoredMessage {
  info: Message;
  parts: (ToolPart | OtherPart)[];
}

/** The sessions that were at work since then, the latest first, each as its translated events. */
async function* readPast1(
  { session }: Client1,
  since: number,
  now: number,
  waitedMs?: Map<string, number>,
) {
  const { translate } = createTranslator1(waitedMs);
  const { data: sessions = [] } = await session.list({ query: { limit: MAX_PAST_SESSIONS } });
  const updatedAt = ({ time }: SessionInfo) => time.updated ?? time.created;
  const recent = sessions.filter((info) => updatedAt(info) >= since);
  recent.sort((a, b) => updatedAt(b) - updatedAt(a));
  for (const info of recent.slice(0, MAX_PAST_SESSIONS)) {
    const { data: messages = [] } = await session.messages({ path: { id: info.id } });
    yield settled(
      replay1(info, messages, now).flatMap(([event, at]) => translate(event, at)),
      updatedAt(info),
    );
  }
}

/** The events, and when each came, that a session as it is stored was announced with. */
function replay1(info: SessionInfo, messages: StoredMessage[], now: number) {
  const sessionID = info.id;
  const { created, updated = created } = info.time;
  const events: [OpenCodeEvent, number][] = [];
  function say<Type extends keyof Properties>(
    at: number,
    type: Type,
    properties: Properties[Type],
  ): void {
    const id = `${sessionID}:past:${events.length}`;
    events.push([{ id, type, properties } as OpenCodeEvent, at]);
  }
  const busy = { sessionID, status: { type: "busy" as const } };

  const { cost: _, tokens: __, ...unused } = info;
  say(created, "session.created", { info: unused });
  let last: Message | undefined;
  let end = created;
  for (const { info: message, parts } of messages) {
    const at = message.time.created;
    const isOwn = at >= created; // a fork begins with copies
    if (message.role === "user" && last?.role === "assistant")
      say(end, "session.idle", { sessionID });
    last = message;
    if (message.role === "user") say(at, "message.updated", { info: message });
    else {
      const { finish, error, ...begun } = message;
      say(at, "message.updated", { info: { ...begun, time: { created: at } } });
      const wasAsked = finish ?? error ?? parts.find(({ type }) => type === "step-start");
      if (isOwn && wasAsked !== undefined) say(at, "session.status", busy);
    }
    for (const part of parts) {
      if (part.type === "step-start") continue; // when the first byte came isn't stored
      if (part.type === "tool" && isBegun(part)) {
        const { state, tool } = part;
        const running = { ...part, state: { ...state, status: "running" as const } };
        say(state.time.start, "message.part.updated", { part: running });
        if (tool === TODO_TOOL && state.status === "completed" && Array.isArray(state.input.todos))
          say(state.time.start, "todo.updated", { sessionID, todos: state.input.todos });
      }
      say(at, "message.part.updated", { part });
    }
    end = Math.max(end, (message.role === "assistant" && message.time.completed) || at);
    if (message.role === "assistant") say(end, "message.updated", { info: message });
    else if (isOwn) say(at, "session.status", busy);
  }
  say(updated, "session.updated", { info });
  if (last?.role !== "assistant" || last.time.created < created) return events;
  // After a step that called tools comes another at once, unless the turn is over.
  const isOver = last.finish !== "tool-calls" || now - end >= PAST_MARGIN_MS;
  if (last.time.completed !== undefined && isOver) say(end, "session.idle", { sessionID });
  return events;
}

// ─── OpenCode 2 ──────────────────────────────────────────────────────────────
// What is read of it, its translator, the order of its events, its past. The release's names count;
// `ofRelease` knows those of July 2026 that were others.

/** What the stream `event.subscribe` gives. */
export interface OpenCode2Event {
  id: string;
  type: string;
  created: number;
  data: Data2;
  location?: { directory?: string };
  /** The session's own count of its events. */
  durable?: { seq: number };
}

/** The fields that are read, of whichever event. */
interface Data2 {
  id?: string;
  sessionID?: string;
  assistantMessageID?: string;
  parentID?: string;
  title?: string;
  agent?: string;
  model?: { id: string; providerID?: string };
  location?: { directory?: string };
  inboxID?: string;
  item?: { type: string; payload?: { text?: string; metadata?: SubagentNotice } };
  reason?: string;
  error?: Error2;
  /** When a step's request was sent; `created` is when its answer's first byte came. */
  started?: number;
  finish?: string;
  cost?: number;
  tokens?: Tokens;
  files?: string[];
  ordinal?: number;
  text?: string;
  name?: string;
  input?: Data;
  metadata?: CallMetadata;
  /** What a call returned. */
  content?: Content2;
  attempt?: number;
  at?: number;
  shell?: Shell2;
  action?: string;
  resources?: string[];
  source?: CallRef;
  requestID?: string;
  reply?: string;
  form?: { id: string; sessionID: string; metadata?: { tool?: CallRef }; fields?: Field2[] };
  answer?: Record<string, unknown>;
}

interface Error2 {
  type: string;
  message: string;
}
type Content2 = { text?: string }[];
type CallRef = { messageID?: string; id?: string; callID?: string };
type Field2 = { title?: string; description?: string };

interface CallMetadata {
  /** Of a command. */
  exit?: number;
  timeout?: boolean;
  /** Of a subagent: its session; `running`: it goes on after the call has ended. */
  sessionID?: string;
  status?: string;
  /** Of an edit, a patch; of a write. */
  files?: { file: string; additions?: number; deletions?: number }[];
  operation?: string;
  resource?: string;
  existed?: boolean;
}

/** In the parent's inbox, when an agent in the background is over. */
interface SubagentNotice {
  source?: string;
  childID?: string;
  state?: string;
}

/** The person's own command. */
interface Shell2 {
  id: string;
  command: string;
  status?: string;
  exit?: number;
  time?: { started: number; completed?: number };
}

/** A session, as `session.get` and the HTTP API give it. */
export interface Session2 extends Data2 {
  id: string;
  time: { created: number; updated?: number };
}

/** The types that were others in July 2026. */
const JULY_TYPES: Record<string, string> = {
  "session.input.admitted": "session.inbox.enqueued",
  "session.input.promoted": "session.inbox.delivered",
  "permission.v2.asked": "permission.asked",
  "permission.v2.replied": "permission.replied",
};

/** OpenCode's tool that runs a subagent, in a child session. */
const SUBAGENT_TOOL = "subagent";
const SHELL_TOOL = "shell";
const ABORTED = "aborted";

/** `event` with the release's names for what July 2026 called otherwise. */
function ofRelease(event: OpenCode2Event): OpenCode2Event {
  const { info, callID, inputID, structured, ...data } = event.data as Record<string, any>;
  if (callID !== undefined) data.id = callID;
  if (inputID !== undefined) data.inboxID = inputID;
  if (structured !== undefined) data.metadata = structured;
  if (event.type === "session.created") {
    Object.assign(data, { ...info, ...data });
    data.location ??= { directory: info?.directory };
  }
  if (event.type === "session.input.admitted") {
    const { type, data: payload } = data.input ?? {};
    data.item = { type, payload };
  }
  return { ...event, type: JULY_TYPES[event.type] ?? event.type, data };
}

const callRef = ({ messageID = "", id, callID = id }: CallRef) => callId(messageID, callID ?? "");

/** The files that a call has changed; undefined: none. */
function filesOf2(
  args: Data,
  metadata: CallMetadata,
  directory: unknown,
): FileChange[] | undefined {
  const { files, operation, resource, existed } = metadata;
  if (files)
    return files.map(({ file, additions, deletions }) => ({
      ...{ path: relative(file, directory), additions, deletions },
    }));
  if (operation !== "write" || resource === undefined) return undefined;
  const isNew = existed === false && typeof args.content === "string";
  const counts = isNew ? { additions: lineCount(args.content as string), deletions: 0 } : {};
  return [{ path: relative(resource, directory), ...counts }];
}

/** Calls of tools, the person's own commands, permissions and forms. */
function createCalls2(ledger: ReturnType<typeof createLedger>) {
  const { stateOf, sign } = ledger;
  /** By call id: calls that aren't over, with what is known of them. */
  const calls = new Map<string, Call>();
  /** By permission asked for: the call that waits; and calls that the person has refused. */
  const asking = new Map<string, string>();
  const refused = new Set<string>();

  function onCall(type: string, { data, created: at }: OpenCode2Event, session_id: string) {
    const { assistantMessageID = "", id = "", name, input, metadata = {}, error, content } = data;
    const session = stateOf(session_id);
    const { step } = session;
    const call_id = callId(assistantMessageID, id);
    const call = calls.get(call_id) ?? {
      ...{ id: call_id, session_id, call_id, tool: "unknown", args: {}, start: at },
      agent: { type: undefined, description: undefined, prompt: undefined },
    };
    if (name !== undefined) call.tool = name;
    if (input !== undefined && type === "called") {
      const { agent, description, prompt } = input;
      Object.assign(call, { args: input, start: at, agent: { type: agent, description, prompt } });
    }
    if (call.tool === SUBAGENT_TOOL) call.child = metadata.sessionID ?? call.child;
    const isOver = type === "success" || type === "failed";
    if (!isOver) {
      calls.set(call_id, call);
      forgetOldest(calls, MAX_SESSIONS);
      if (type !== "progress" && step?.id === assistantMessageID) sign(step, at);
      if (type === "called") return ledger.begin(call);
      return type === "progress" ? ledger.spawn(call) : [];
    }
    calls.delete(call_id);
    call.isInBackground = call.child !== undefined && metadata.status === "running";
    const files = filesOf2(call.args, metadata, session.facts.directory);
    if (files) ledger.change(session_id, call_id, files);
    const isTimeOver = metadata.timeout === true ? "its time was over" : undefined;
    const ending = endingOf({
      error: error?.message ?? isTimeOver,
      isDenied: refused.has(call_id),
      isCancelled: error?.type === ABORTED,
      exit: metadata.exit,
    });
    const output = content?.flatMap(({ text }) => text ?? []).join("\n");
    return ledger.end(call, { end: at, ending, files, output });
  }

  function onShell(type: string, { data, created: at }: OpenCode2Event, session_id: string) {
    if (data.shell === undefined) return [];
    const { id, command, status, exit, time } = data.shell;
    const call: Call = {
      ...{ id, session_id, call_id: id, tool: SHELL_TOOL, args: { command } },
      start: time?.started ?? at,
      agent: { type: undefined, description: undefined, prompt: undefined },
    };
    if (type === "started") return ledger.begin(call);
    const error = exit === undefined ? (status ?? "killed") : undefined;
    const ending = endingOf({ error, exit });
    return ledger.end(call, { end: time?.completed ?? at, ending });
  }

  function onAsked({ type, data, created: at }: OpenCode2Event): TelemetryEvent[] {
    if (type === "permission.asked") {
      const { id = "", sessionID = "", action, resources = [], source } = data;
      const call = source && callRef(source);
      const detail = `${action}: ${resources.join(", ")}`;
      if (call !== undefined) asking.set(id, call);
      forgetOldest(asking, MAX_SESSIONS);
      return ledger.asked("permission", id, sessionID, call, detail, at);
    }
    const { id, sessionID, metadata, fields = [] } = data.form ?? { id: "", sessionID: "global" };
    if (!sessionID.startsWith("ses_")) return []; // OpenCode's own: of no session
    const detail = fields.map(({ description, title }) => description ?? title ?? "").join("\n");
    return ledger.asked(
      "question",
      id,
      sessionID,
      metadata?.tool && callRef(metadata.tool),
      detail,
      at,
    );
  }

  function onAnswered({ type, data, created: at }: OpenCode2Event): TelemetryEvent[] {
    const { sessionID = "", requestID, id = "", reply = "", answer = {} } = data;
    if (type === "permission.replied") {
      const call = asking.get(requestID ?? id);
      if (call !== undefined && reply === "reject") refused.add(call);
      forgetOldest(refused, MAX_SESSIONS);
      return ledger.answered("permission", requestID ?? id, sessionID, reply, at);
    }
    const answers = type === "form.cancelled" ? "reject" : Object.values(answer).flat().join(", ");
    return ledger.answered("question", id, sessionID, answers, at);
  }

  return { onCall, onShell, onAsked, onAnswered };
}

/**
 * `translate(event)` gives the events that one event of OpenCode stands for, often none. All times are
 * OpenCode's, by `created`.
 *
 * | OpenCode                                | Sent                                                 |
 * |-----------------------------------------|------------------------------------------------------|
 * | session.created                         | session_start                                        |
 * | session.renamed, moved, usage.updated,  | session_update with all facts, where one is new      |
 * | agent.selected, model.selected          |                                                      |
 * | session.execution.started               | session_start, where it runs again                   |
 * | session.execution.succeeded, failed,    | session_end with its reason; before it session_error |
 * | interrupted; session.deleted            | where no step has told of it; agent_complete of an   |
 * |                                         | agent in the background                              |
 * | session.inbox.delivered                 | turn_start of the person's prompt, with the step     |
 * | session.step.started                    | model_request, at the time it was sent               |
 * | session.step.ended, failed              | model_response, at the end of the answer             |
 * | session.retry.scheduled                 | retry; the next step.started is a model_request again|
 * | session.compaction.started, ended,      | model_request, model_response; session_compacted     |
 * | failed                                  |                                                      |
 * | session.tool.called                     | tool_start; its name is that of tool.input.started   |
 * | session.tool.progress                   | agent_spawn, once a subagent has its session         |
 * | session.tool.success, failed            | tool_use; agent_complete, unless in the background   |
 * | session.shell.started, ended            | tool_start, tool_use: the person's own command       |
 * | permission.asked, form.created          | input_requested                                      |
 * | permission.replied, form.replied,       | input_resolved                                       |
 * | form.cancelled                          |                                                      |
 *
 * `strangers` gives the sessions whose beginning was missed, each once; `complete` takes what OpenCode
 * says of one.
 */
function createTranslator2(waitedMs = new Map<string, number>()) {
  const ledger = createLedger(waitedMs);
  const { stateOf, update, sign, tell, interrupt, settle, isRunning } = ledger;
  const { onCall, onShell, onAsked, onAnswered } = createCalls2(ledger);
  /** The events that came: several streams have the same ones. */
  const heard = new Set<string>();
  /** By inbox id: what waits for its session. A text is the person's. */
  const inbox = new Map<string, string | null>();
  /** By session: its compaction that goes on. */
  const compactions = new Map<string, Step>();
  let missed: string[] = [];

  const describe = (
    id: string,
    { title, location, agent, model, parentID, cost, tokens, ...info }: Session2,
    isNew: boolean,
    at: number,
  ) => {
    // What an update has said is newer.
    const isFirst = cost !== undefined && stateOf(info.id).usage === undefined;
    const usage = isFirst ? usageOf({ cost, ...(tokens && { tokens }) }) : undefined;
    return ledger.describe(
      id,
      info.id,
      {
        created: info.time.created,
        usage,
        facts: {
          ...{ title, agent, directory: location?.directory },
          ...{ model: model?.id, parent_session_id: parentID },
        },
      },
      isNew,
      at,
    );
  };

  function learnFacts(id: string, session_id: string, facts: Data, at: number) {
    for (const [name, fact] of Object.entries(facts))
      if (fact !== undefined) stateOf(session_id).facts[name] = fact;
    return update(id, session_id, at);
  }

  /** The first that is heard of a session. */
  function meet(session_id: string, { location, durable }: OpenCode2Event): void {
    missed.push(session_id);
    const session = stateOf(session_id);
    if (location?.directory !== undefined) session.facts.directory ??= location.directory;
    // Nothing has been done yet: the first step of a session is its fifth event (July 2026).
    session.isWhole = durable !== undefined && durable.seq < 5;
  }

  // -- Turns and steps

  function onDelivered(session_id: string, inboxID: string, at: number): void {
    const session = stateOf(session_id);
    session.readyAt = at;
    session.promptId = inboxID;
    const text = inbox.get(inboxID);
    inbox.delete(inboxID);
    // One that was put in before anything was heard is taken for the person's.
    const isPrompt = typeof text === "string" || (text === undefined && session.turn === undefined);
    if (!isPrompt) return;
    const { agent, model } = session.facts;
    const id = `${inboxID}:turn_start`;
    session.prompt = eventOf("turn_start", id, session_id, at, {
      ...{ prompt: text ?? undefined, agent, model },
    });
  }

  function onExecuted(type: string, { id, data, created: at }: OpenCode2Event, session_id: string) {
    const session = stateOf(session_id);
    const events: TelemetryEvent[] = [];
    session.step = undefined;
    if (type === "failed") {
      const { type: name = "error", message = "" } = data.error ?? {};
      events.push(...ledger.fail(`${id}:session_error`, session_id, name, message, at));
    } else if (type === "interrupted") session.reason = "interrupted";
    return [...events, ...ledger.endTurn(id, session_id, at)];
  }

  function onStepStarted(session_id: string, { id, data, created: at }: OpenCode2Event) {
    const { assistantMessageID = id, agent, model, started } = data;
    const events = ledger.beginTurn(`${id}:session_start`, session_id, at);
    const session = stateOf(session_id);
    if (session.step?.id !== assistantMessageID)
      session.step = newStep(assistantMessageID, session_id, modelOf2(model, agent));
    const asked = Math.min(started ?? session.readyAt ?? at, at);
    events.push(ledger.request(session.step, asked));
    session.step.first = at;
    const { facts } = session;
    const used = { agent: facts.agent ?? agent, model: facts.model ?? model?.id };
    return [...events, ...learnFacts(`${id}:session_update`, session_id, used, at)];
  }

  function onStepEnded(session_id: string, { id, data, created: at }: OpenCode2Event) {
    const { assistantMessageID = id, error, cost, tokens, finish, files = [] } = data;
    const session = stateOf(session_id);
    const isOpen = session.step?.id === assistantMessageID;
    const step = (isOpen && session.step) || newStep(assistantMessageID, session_id, {});
    const start = session.readyAt ?? at;
    session.readyAt = at;
    // What was aborted with its tokens told had answered: its tools were stopped.
    const isAborted = error?.type === ABORTED;
    const isCancelled = isAborted && tokens === undefined;
    const verdict = { error: isAborted ? undefined : error?.message, isCancelled };
    const usage = tokens && usageOf({ cost: cost ?? 0, tokens });
    const changed = [...session.changes.values()].flat();
    const others = files.filter((file) => !changed.some(({ path }) => path === file));
    ledger.change(
      session_id,
      assistantMessageID,
      others.map((path) => ({ path })),
    );
    const of = { ending: endingOf(verdict), usage, finish };
    return ledger.respond(step, start, at, of);
  }

  function onCompaction(
    type: string,
    { id, data, created: at }: OpenCode2Event,
    session_id: string,
  ) {
    // The id of its stored message.
    const stepId = data.inboxID ?? id.replace(/^evt_/, "msg_");
    const model = modelOf2(data.model, "compaction");
    if (type === "started") {
      const step = newStep(stepId, session_id, model);
      compactions.set(session_id, step);
      forgetOldest(compactions, MAX_SESSIONS);
      return [ledger.request(step, at)];
    }
    const step = compactions.get(session_id) ?? newStep(stepId, session_id, model);
    compactions.delete(session_id);
    stateOf(session_id).readyAt = at;
    step.model = { ...step.model, ...model };
    const { cost, tokens, error } = data;
    const usage = tokens && usageOf({ cost: cost ?? 0, tokens });
    const isCancelled = error?.type === ABORTED;
    const ending = endingOf({ error: error?.message, isCancelled });
    const events = ledger.respond(step, at, at, { ending, usage });
    const compactedId = `${step.id}:session_compacted`;
    if (type === "ended")
      events.push(eventOf("session_compacted", compactedId, session_id, at, {}));
    return events;
  }

  // -- All

  function eventsOf(event: OpenCode2Event): TelemetryEvent[] {
    const { id, type, data, created: at } = event;
    const session_id = data.sessionID ?? data.form?.sessionID ?? "";
    if (!session_id.startsWith("ses_")) return [];
    const session = stateOf(session_id);
    const what = type.slice(type.lastIndexOf(".") + 1);
    switch (type) {
      case "session.created":
        return describe(id, { ...data, id: session_id, time: { created: at } }, true, at);
      case "session.forked": // its messages are its parent's, and nothing of them is announced
        session.isWhole = true;
        return [];
      case "session.renamed":
        return learnFacts(id, session_id, { title: data.title }, at);
      case "session.agent.selected":
        return learnFacts(id, session_id, { agent: data.agent }, at);
      case "session.model.selected":
        return learnFacts(id, session_id, { model: data.model?.id }, at);
      case "session.moved":
        return learnFacts(id, session_id, { directory: data.location?.directory }, at);
      case "session.usage.updated":
        session.usage = usageOf(data);
        return update(id, session_id, at);
      case "session.deleted":
        if (session.turn !== "running") return [];
        return onExecuted("interrupted", event, session_id);
      case "session.inbox.enqueued": {
        const { type: kind, payload = {} } = data.item ?? {};
        inbox.set(data.inboxID ?? id, kind === "user" ? (payload.text ?? "") : null);
        forgetOldest(inbox, MAX_SESSIONS);
        const { source, childID = "", state } = payload.metadata ?? {};
        if (source !== SUBAGENT_TOOL) return [];
        const verdict = { isCancelled: state !== "completed" && state !== "error" };
        const error = state === "error" ? { error: state } : {};
        return ledger.endAgent(childID, at, endingOf({ ...verdict, ...error }));
      }
      case "session.inbox.delivered":
        onDelivered(session_id, data.inboxID ?? id, at);
        return [];
      case "session.inbox.cancelled":
        inbox.delete(data.inboxID ?? id);
        return [];
      case "session.execution.started":
        session.readyAt = at;
        return ledger.beginTurn(id, session_id, at);
      case "session.execution.succeeded":
      case "session.execution.failed":
      case "session.execution.interrupted":
        return onExecuted(what, event, session_id);
      case "session.compaction.started":
      case "session.compaction.ended":
      case "session.compaction.failed":
        return onCompaction(what, event, session_id);
      case "session.tool.input.started":
      case "session.tool.input.ended":
      case "session.tool.called":
      case "session.tool.progress":
      case "session.tool.success":
      case "session.tool.failed":
        return onCall(what, event, session_id);
      case "session.shell.started":
      case "session.shell.ended":
        return onShell(what, event, session_id);
      case "session.step.started":
        return onStepStarted(session_id, event);
      case "session.step.ended":
      case "session.step.failed":
        return onStepEnded(session_id, event);
      case "session.step.streamed":
      case "session.reasoning.ended":
      case "session.text.ended": {
        const { step } = session;
        if (step === undefined || step.id !== data.assistantMessageID) return [];
        sign(step, at);
        if (data.text !== undefined && type === "session.text.ended")
          step.texts.set(String(data.ordinal), data.text);
        return [];
      }
      case "session.retry.scheduled": {
        const { assistantMessageID = id, attempt = 2, at: retry_at, error } = data;
        session.readyAt = retry_at;
        // OpenCode counts tries; its first retry is the second.
        const retry = { attempt: attempt - 1, message: error?.message, retry_at };
        return [
          eventOf("retry", `${assistantMessageID}:retry:${attempt - 1}`, session_id, at, retry),
        ];
      }
      case "permission.asked":
      case "form.created":
        return onAsked(event);
      case "permission.replied":
      case "form.replied":
      case "form.cancelled":
        return onAnswered(event);
      default:
        return [];
    }
  }

  function translate(said: OpenCode2Event): TelemetryEvent[] {
    if (heard.has(said.id)) return [];
    heard.add(said.id);
    forgetOldest(heard, MAX_SENT_IDS);
    const event = ofRelease(said);
    const { sessionID } = event.data;
    if (event.type.startsWith("session.") && event.type !== "session.created")
      if (sessionID !== undefined && stateOf(sessionID).isWhole === undefined)
        meet(sessionID, event);
    return tell(eventsOf(event), event.created);
  }

  function strangers(): string[] {
    const ids = missed;
    missed = [];
    return ids;
  }

  return {
    ...{ translate, strangers, interrupt, settle, isRunning, waitedMs },
    complete: (info: Session2, now: number) =>
      tell(describe(`${info.id}:session_update:${info.time.updated}`, info, false, now), now),
  };
}

const modelOf2 = (model: Data2["model"], agent: string | undefined) =>
  known({ model: model?.id, provider: model?.providerID, agent }) as Step["model"];

/** Events come within 37 ms of their creation (measured, July 2026): by then none is missing. */
const ORDER_MS = 50;
const MAX_HELD_EVENTS = 1_000;

/** Hands events to `release` in the order of their creation, once each has been held for ORDER_MS. */
function createOrder(
  release: (event: OpenCode2Event) => void,
  now: () => number,
  schedule: Schedule,
) {
  let held: { event: OpenCode2Event; since: number }[] = [];
  let cancel: (() => void) | undefined;

  function flush(isLast = false): void {
    cancel?.();
    cancel = undefined;
    held.sort(
      ({ event: a }, { event: b }) => a.created - b.created || (a.id < b.id ? -1 : 1), // ids ascend
    );
    const due = now() - ORDER_MS;
    const count = isLast ? held.length : held.findLastIndex(({ since }) => since <= due) + 1;
    for (const { event } of held.splice(0, count)) release(event);
    if (held.length > 0) cancel = schedule(flush, ORDER_MS);
  }

  return {
    add(event: OpenCode2Event): void {
      const since = now();
      if (held.length >= MAX_HELD_EVENTS || (held[0] && held[0].since <= since - ORDER_MS))
        flush(held.length >= MAX_HELD_EVENTS);
      held.push({ event, since });
      cancel ??= schedule(flush, ORDER_MS);
    },
    flush: () => flush(true),
  };
}

/** OpenCode's own HTTP API. */
export interface Api2 {
  url: string;
  password?: string;
}

/** A message, as the API gives it. */
export interface StoredMessage2 extends Omit<Data2, "content"> {
  id: string;
  type: string;
  text?: string;
  /** Of the person's own command. */
  shellID?: string;
  command?: string;
  status?: string;
  exit?: number;
  content?: { type: string; id?: string; name?: string; state?: StoredCall2; time?: StoredTimes }[];
  time: { created: number; completed?: number };
}
type StoredTimes = { created: number; ran?: number; completed?: number };
type StoredCall2 = {
  status: string;
  input?: unknown;
  metadata?: CallMetadata;
  structured?: CallMetadata;
  content?: Content2;
  error?: Error2;
};

/** The sessions of a directory that were at work since then, as `readPast1` gives them. */
async function* readPast2(
  api: Api2,
  directory: string,
  since: number,
  now: number,
  waitedMs?: Map<string, number>,
) {
  const authorization = `Basic ${Buffer.from(`opencode:${api.password}`).toString("base64")}`;
  async function* pages<Item>(path: string, query: Record<string, string>): AsyncGenerator<Item> {
    for (let page = query; ;) {
      const url = new URL(`${path}?${new URLSearchParams(page)}`, api.url);
      const headers = api.password === undefined ? {} : { authorization };
      const answer = await fetch(url, {
        headers,
        signal: AbortSignal.timeout(MAX_PAST_DURATION_MS),
      });
      const { data, cursor } = (await answer.json()) as {
        data: Item[];
        cursor?: { next?: string };
      };
      yield* data;
      if (cursor?.next == null || data.length === 0) return;
      page = { cursor: cursor.next };
    }
  }
  const { translate } = createTranslator2(waitedMs);
  let left = MAX_PAST_SESSIONS;
  for await (const info of pages<Session2>("/api/session", { directory, order: "desc" })) {
    const updatedAt = info.time.updated ?? info.time.created;
    if (updatedAt < since) continue;
    const messages: StoredMessage2[] = [];
    const path = `/api/session/${info.id}/message`;
    for await (const message of pages<StoredMessage2>(path, { order: "asc" }))
      messages.push(message);
    yield settled([...replay2(info, messages, now)].flatMap(translate), updatedAt);
    if ((left -= 1) === 0) return;
  }
}

/** The events that a session as it is stored was announced with. */
function* replay2(
  info: Session2,
  messages: StoredMessage2[],
  now: number,
): Generator<OpenCode2Event> {
  const sessionID = info.id;
  let serial = 0;
  const said = (type: string, created: number, data: Data2 = {}, id?: string): OpenCode2Event => ({
    ...{ id: id ?? `${sessionID}:past:${serial++}`, type: `session.${type}`, created },
    data: { sessionID, ...data },
  });
  const { created, updated = created } = info.time;
  const { cost = 0, tokens, id: _, ...facts } = info;
  yield said("created", created, facts);
  let end = created;
  let lastStep: StoredMessage2 | undefined;
  for (const message of messages) {
    const { id, type, time, agent, model, error, finish } = message;
    if (time.created < created) continue; // a fork's are its parent's
    if (type === "user" || type === "synthetic") {
      if (lastStep) yield said("execution.succeeded", end);
      lastStep = undefined;
      const item = { type, payload: { text: message.text ?? "" } };
      yield said("inbox.enqueued", time.created, { inboxID: id, item });
      yield said("execution.started", time.created);
      yield said("inbox.delivered", time.created, { inboxID: id });
    }
    const { completed } = time;
    end = Math.max(end, completed ?? time.created);
    if (type === "shell") {
      const { shellID = id, command = "", status = "exited", exit } = message;
      const shell = { id: shellID, command, status, ...(exit === undefined ? {} : { exit }) };
      const times = { started: time.created, ...(completed === undefined ? {} : { completed }) };
      yield said("shell.started", time.created, { shell: { ...shell, time: times } });
      if (completed !== undefined)
        yield said("shell.ended", completed, { shell: { ...shell, time: times } });
    }
    if (type === "compaction") {
      yield said("compaction.started", time.created, { inboxID: id });
      if (completed !== undefined) yield said("compaction.ended", completed, { inboxID: id });
    }
    if (type !== "assistant") continue;
    lastStep = message;
    const of = { assistantMessageID: id };
    yield said("step.started", time.created, { ...of, ...known({ agent, model }) });
    for (const { type: kind, id: callID = "", name, state, time: at } of message.content ?? []) {
      if (kind !== "tool" || !name || !at || !state) continue;
      const call = { ...of, id: callID };
      yield said("tool.input.started", at.created, { ...call, name });
      if (at.ran === undefined) continue;
      yield said("tool.called", at.ran, { ...call, input: (state.input ?? {}) as Data });
      const metadata = state.metadata ?? state.structured ?? {};
      const { content = [] } = state;
      if (metadata.sessionID !== undefined)
        yield said("tool.progress", at.ran, { ...call, metadata });
      if (at.completed === undefined) continue;
      if (state.error)
        yield said("tool.failed", at.completed, { ...call, metadata, error: state.error });
      else yield said("tool.success", at.completed, { ...call, metadata, content });
    }
    if (completed === undefined) continue;
    const used = known({ cost: message.cost, tokens: message.tokens });
    if (error) yield said("step.failed", completed, { ...of, ...used, error });
    else yield said("step.ended", completed, { ...of, ...used, ...known({ finish }) });
  }
  yield said("usage.updated", updated, { cost, ...(tokens && { tokens }) });
  if (lastStep?.time.completed === undefined) return;
  const { error, finish } = lastStep;
  if (finish === "tool-calls" && now - end < PAST_MARGIN_MS) return;
  if (error === undefined) yield said("execution.succeeded", end);
  else if (error.type === ABORTED) yield said("execution.interrupted", end);
  else yield said("execution.failed", end, { error });
}

// ─── Content ─────────────────────────────────────────────────────────────────
// What of an event leaves: a choice of the person, the same for every generation of OpenCode. Names,
// kinds, ids, times, counts, outcomes, the status of todos, exit codes and directories leave always.

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
  "pass(?:word|wd|phrase)(?:[_-]\\w{1,16})?|(?<=[_-])pass|pwd|secret(?:[_-]\\w{1,16}){0,2}" +
  '|token|credentials?|(?<=(?<![\\w.])_|")auth' +
  "|(?:api|access|account|private|auth|encryption|master|signing|subscription)[_-]?key" +
  "(?:[_-](?:id|base))?";
/** Of a field: its whole value is one. */
const IS_SECRET = new RegExp(`(?:${SECRET_NAME}|authorization|cookies?)$`, "i");
/** What is assigned to these and begins with a slash is a path, unless it is base64: with `+` or `=`. */
const PATH =
  "(?<=(?:pwd|credentials?|private[_-]?key|file|dir|path)[\"'\\\\\\s:=]{1,9})" +
  "\\/(?![^\\s\"']{0,200}[=+])";

/** Each with what stays. Every repetition is bounded: 4,608 characters take well below 1 ms. */
const SECRETS: [RegExp, string][] = [
  // A private key, or the end of one whose beginning was cut off.
  [
    /-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----[^]*?(?:-----END [A-Z0-9 ]{0,36}-----|$)/g,
    MASK,
  ],
  [/^[\w+/=\s\\-]*-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----/, MASK],
  // Headers.
  [/\b(bearer\s{1,9})[\w.~+/=-]{8,}/gi, `$1${MASK}`],
  [/\b(authorization["'\\]{0,3}\s?[:=]\s?["'\\]{0,3}(?:\w{1,12} )?)[\w.~+/=-]{8,}/gi, `$1${MASK}`],
  [
    /((?:cookie["'\\]{0,3}\s?[:=]|\s(?:-b|--cookie)[=\s])\s?["'\\]{0,3}\w[\w.-]{0,99}=)[^\n"'\\]{3,}/gi,
    `$1${MASK}`,
  ],
  // Keys by their form: OpenAI, Anthropic, Stripe; GitHub, GitLab; Slack; AWS; Google; Hugging Face,
  // npm, PyPI, Groq, xAI, SendGrid, Vault, DigitalOcean, Shopify, Square, Atlassian, Linear, Notion,
  // Replicate, Perplexity, Supabase, age; a JSON web token.
  [/\b[spr]k[-_](?=[\w-]{0,60}\d)[\w-]{16,}/g, MASK],
  [/\b(?:gh[pousr]_|github_pat_|gl(?:pat|rt|dt|cbt|ptt|ft|soat)-)[\w-]{16,}/g, MASK],
  [/\b(?:xox[a-z]|xapp)-[\w-]{10,}/g, MASK],
  [/\b(?:AKIA|ASIA)[0-9A-Z]{16}\b/g, MASK],
  [/\b(?:AIza[\w-]{30,}|(?:ya29\.|GOCSPX-)[\w-]{20,})/g, MASK],
  [/\b(?:hf_|npm_|pypi-|gsk_|xai-|SG\.|hvs\.|dop_v1_|shp[a-z]{2}_)[\w.-]{20,}/g, MASK],
  [/\b(?:whsec_|sq0[a-z]{3}-|ATATT3x|lin_api_|ntn_|r8_|pplx-|sbp_)[\w-]{20,}/g, MASK],
  [/\bAGE-SECRET-KEY-\w{20,}/g, MASK],
  [/(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?/g, MASK],
  // In a URL: a password, a token as its user, a key or a signature, a webhook.
  [/\b([a-z][a-z0-9+.-]{0,20}:\/\/[^\s:@/"']{0,100}:)[^\s/"']{1,300}(?=@)/gi, `$1${MASK}`],
  [/\b([a-z][a-z0-9+.-]{0,20}:\/\/)[^\s:@/"']{20,300}(?=@)/gi, `$1${MASK}`],
  [/((?:[?&](?:key|code|sig)|[?&,\s](?:X-\w{3,5}-)?Signature)=)[\w%+/=~.-]{16,}/gi, `$1${MASK}`],
  [/\b(hooks\.slack\.com\/\w{1,20}\/|discord\.com\/api\/webhooks\/)[\w/-]{20,}/g, `$1${MASK}`],
  // In an option.
  [/(\s(?:-[fgikLsSv]{0,6}u|--user)[=\s]\s?["']?[^\s:"']{1,100}:)[^\s"']{1,300}/g, `$1${MASK}`],
  [
    new RegExp(
      `((?<![\\w-])--?[\\w-]{0,40}?(?:${SECRET_NAME})\\s{1,9})(?![$*-])` +
        `(?:"[^"]*"|'[^']*'|\\S{1,500})`,
      "gi",
    ),
    `$1${MASK}`,
  ],
  // `-p`, but not the ports of `docker run --name mysql -p 3306:3306`, and not `find mysql -print`.
  [
    new RegExp(
      "\\b((?:sshpass|(?:docker|podman) login|(?:mysql|mariadb|mongo)\\w{0,10})" +
        "\\s(?:[^\\n|;&]{0,200}?\\s)?-p\\s?)(?![$-]|(?:rint|rune)\\b)" +
        "(?!(?:\\d{1,3}(?:\\.\\d{1,3}){3}:)?\\d{1,5}(?:[:\\s]|$))" +
        "(?:\"[^\"\\n]{1,300}\"|'[^'\\n]{1,300}'|[^\\s\"']{3,300})",
      "g",
    ),
    `$1${MASK}`,
  ],
  // In an assignment, in XML, in SQL, in .netrc.
  [
    new RegExp(
      `((?:${SECRET_NAME})["'\\\\]{0,3}(?:\\s{0,9}(?::=|=>|[:=])\\s{0,9}|%3D))(?![$*]|${PATH})` +
        `(?:(\\\\?["'])(?!\\2|[$*])(?:(?!\\2)(?:\\\\.|[^\\n\\\\])){1,5000}(?:\\2|)` +
        `|[^\\s"',;&\\\\]{3,500})`,
      "gi",
    ),
    `$1${MASK}`,
  ],
  [/((?:_KEY|\bPASS)=["']?)(?![$/~.])(?=\S{0,60}\d)[^\s"',;&]{8,500}/g, `$1${MASK}`],
  [new RegExp(`(<(?:${SECRET_NAME})>)[^<\\s]{1,500}(?=</)`, "gi"), `$1${MASK}`],
  [/\b((?:password|identified\s(?:with\s\w{1,40}\s)?by)\s{1,9}["'])[^"'\n]{1,300}/gi, `$1${MASK}`],
  [
    /((?:\bmachine\s{1,9}\S{1,100}|\bdefault|\n)\s{0,9}login\s{1,9}\S{1,100}\s{1,9}password\s{1,9})\S{1,300}/g,
    `$1${MASK}`,
  ],
];

/** Of a todo: OpenCode's words. Another is the model's own text. */
const STATUS = /^(pending|in_progress|completed|cancelled)$/;

/** Of a todo or a changed file all but what it says. */
const countsOf = ({ status, additions, deletions }: Data) =>
  known({ status: STATUS.test(String(status)) ? status : undefined, additions, deletions });

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

  /** Of a long text its beginning, or its end. A secret at the edge of what is read goes with it. */
  function readable(text: string, isTail = false): string {
    const window = MAX_TEXT_CHARS + CUT_MARGIN_CHARS;
    if (text.length <= window) return clean(text);
    return isTail
      ? clean(text.slice(-window)).slice(CUT_MARGIN_CHARS)
      : clean(text.slice(0, window)).slice(0, -CUT_MARGIN_CHARS);
  }

  function shapedText(name: string, text: string): Data {
    const isTail = name === "output"; // how it ended says most
    const cleaned = readable(text, isTail);
    const cut = isTail ? cleaned.slice(-MAX_TEXT_CHARS) : cleaned.slice(0, MAX_TEXT_CHARS);
    if (text.length <= MAX_TEXT_CHARS && cut === cleaned) return { [name]: cut };
    // Not through the middle of a surrogate pair.
    const whole = cut.replace(/^[\udc00-\udfff]|[\ud800-\udbff]$/g, "");
    return { [name]: whole, [`${name}_cut`]: true, [`${name}_length`]: text.length };
  }

  /** Of a value however large only as much as is kept is looked at. */
  function copyOf(value: unknown, budget: { chars: number }, depth = 0): unknown {
    budget.chars -= typeof value === "string" ? value.length : 4;
    if (typeof value === "string") return readable(value);
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
      const isSecret = clean === mask && IS_SECRET.test(key);
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
  const headers = {
    "content-type": "application/json",
    "user-agent": `pai-observability/${PLUGIN_VERSION}`,
    ...(token ? { authorization: `Bearer ${token}` } : {}),
  };
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
        headers,
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
  id: string;
  timestamp: number;
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

/** The ids of what OpenCode's own store has too, so that it can be told later. */
const IS_STORED = /:(tool_start|tool_use|agent_\w+|model_re\w+|turn_start)$/;

interface SenderOptions extends Connection {
  /** The server has taken a batch. */
  onStored?: () => void;
  /** The server has refused the token; once. */
  onRefused?: () => void;
  /** An event of that time, which OpenCode's store has, is dropped. @returns whether it is told later */
  onDropped?: (timestamp: number) => boolean;
}

/**
 * `send` queues events and returns at once. `close` goes on posting until all is stored, a POST
 * begun since fails, or `withinMs` are over; what is sent afterwards is ignored.
 *
 * A full queue drops its oldest event; of what OpenCode's own store has first, because that can be told
 * later. Other dropped events are counted in `data.dropped_events` of the next one sent.
 */
function createSender({ onStored, onRefused, onDropped, ...connection }: SenderOptions) {
  const call = createClient(connection);
  let isRefused = false;
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
      if (queue.length === MAX_QUEUED_EVENTS) drop();
      const { id, timestamp } = event;
      const data = dropped > 0 ? { ...event.data, dropped_events: dropped } : event.data;
      queue.push({ json: JSON.stringify({ ...event, data }), id, timestamp, reported: dropped });
      dropped = 0;
    }
    if (queue.length > 0) draining ??= drain();
  }

  function drop(): void {
    const stored = queue.findIndex(({ id }, index) => index >= inFlight && IS_STORED.test(id));
    const [event] = queue.splice(stored < 0 ? inFlight : stored, 1);
    if (event === undefined) return;
    if (stored >= 0 && onDropped?.(event.timestamp)) dropped += event.reported;
    else countDropped([event]);
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
      else onStored?.();
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
    if (status === 401 && !isRefused) onRefused?.();
    isRefused ||= status === 401;
    if (status >= 200 && status < 300) return "stored";
    return status === 400 || status === 413 ? "refused" : "failed";
  }

  function pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      endPause = resolve;
      setTimeout(resolve, ms).unref();
    });
  }

  /** @returns whether all was stored */
  async function close(withinMs: number): Promise<boolean> {
    let isLate = false;
    isClosing = true;
    endPause();
    const deadline = setTimeout(() => {
      isLate = true;
      queue.length = 0;
      attempt.abort();
    }, withinMs);
    await draining;
    clearTimeout(deadline);
    return !isLate && queue.length === 0;
  }

  return {
    ...{ send, close },
    isEmpty: () => queue.length === 0,
    /** Resolves when it is empty. */
    drained: () => draining ?? Promise.resolve(),
  };
}

// ─── Presence ────────────────────────────────────────────────────────────────
// Says that this process lives, at its start and while one of its sessions runs, so that the server knows
// what a process that was killed has left open. A server without it answers 404.

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
  const alive = { sender, every_ms: BEAT_MS, name: "opencode", version: PLUGIN_VERSION };
  let cancel: (() => void) | undefined;
  let beats = 0;

  /** That its process lives. */
  const hello = () => call("/api/senders", JSON.stringify(alive));

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
    void hello();
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

  return { hello, update, bye };
}

// ─── Past ────────────────────────────────────────────────────────────────────
// What the server has missed, from OpenCode's own store: at the start, what happened since it was last
// reached; when it is back, what the queue has lost. Under the ids that it had, or would have had, so
// that nothing is there twice. Permissions, questions and retries aren't stored, and stay away.

/** The events of one session after the other, the latest first. */
type ReadPast = (since: number, now: number) => AsyncIterable<TelemetryEvent[]>;

interface PastOptions {
  read: ReadPast;
  now: () => number;
  send: (events: TelemetryEvent[]) => void;
  /** Resolves when nothing waits to be sent. */
  drained: () => Promise<void>;
  /** What is sent now is lost. */
  isClosed: () => boolean;
}

/** `want` says since when the past is to be told, `tell` that the server can be reached. */
function createPast({ read, now, send, drained, isClosed }: PastOptions) {
  let wanted: number | undefined;
  let isTelling = false;

  function want(since: number): void {
    wanted = Math.min(wanted ?? since, since);
  }

  async function tell(): Promise<void> {
    if (wanted === undefined || isTelling) return;
    const since = wanted - PAST_MARGIN_MS;
    let deadline = now() + MAX_PAST_DURATION_MS;
    isTelling = true;
    wanted = undefined;
    try {
      for await (const events of read(since, now())) {
        const missed = events.filter((event) => isMissed(event, since));
        for (let at = 0; at < missed.length; at += MAX_BATCH_EVENTS) {
          send(missed.slice(at, at + MAX_BATCH_EVENTS));
          const sentAt = now();
          await drained(); // a server that goes away meanwhile costs no time
          deadline += now() - sentAt;
        }
        if (now() > deadline || isClosed()) break;
      }
    } catch {
      // OpenCode's store can't be read: what happens from now on is told all the same.
    } finally {
      isTelling = false;
    }
    if (!isClosed()) await tell(); // what was wanted meanwhile
  }

  return { want, tell, isWanted: () => wanted !== undefined || isTelling };
}

/** Of all the updates of a session's facts the last, and of its starts the first. */
function settled(events: TelemetryEvent[], updatedAt: number): TelemetryEvent[] {
  const last = events.findLast(({ type }) => type === "session_update");
  return events.flatMap((event) => {
    const { id, type, session_id } = event;
    if (type === "session_start" && id !== `${session_id}:session_start`) return [];
    if (type !== "session_update") return [event];
    const updateId = `${session_id}:session_update:${updatedAt}`;
    return event === last ? [{ ...event, id: updateId, timestamp: updatedAt }] : [];
  });
}

/** A session's facts are told whatever their time: without them what it did would have no name. */
const isMissed = ({ type, timestamp }: TelemetryEvent, since: number) =>
  timestamp >= since || type === "session_start" || type === "session_update";

/**
 * When each server was last reached from each directory, in a file of OpenCode's state directory, so
 * that the next process knows since when to tell. A file that is lost costs a repetition.
 */
function createReached(path: string, server: string, now: () => number) {
  type Times = Record<string, Record<string, number>>;
  let writtenAt = 0;

  async function readTimes(): Promise<Times> {
    try {
      return (JSON.parse(await readFile(path, "utf8")) ?? {}) as Times;
    } catch {
      return {};
    }
  }

  return {
    async since(directory: string): Promise<number> {
      const first = now() - MAX_PAST_MS;
      return Math.max(first, (await readTimes())[server]?.[directory] ?? first);
    },
    /** Not more often than once in REACHED_INTERVAL_MS, unless it is the last time. */
    async write(directories: Iterable<string>, isLast = false): Promise<void> {
      const at = now();
      if (!isLast && at - writtenAt < REACHED_INTERVAL_MS) return;
      writtenAt = at;
      const times = await readTimes();
      const known = Object.entries(times[server] ?? {}).filter(([, it]) => it > at - MAX_PAST_MS);
      for (const directory of directories) known.push([directory, at]);
      try {
        await mkdir(dirname(path), { recursive: true });
        await writeFile(path, JSON.stringify({ ...times, [server]: Object.fromEntries(known) }));
      } catch {}
    },
  };
}

// ─── Plugin ──────────────────────────────────────────────────────────────────
// All of it, wired to OpenCode. Nothing that goes wrong here reaches it. One process has one reporter,
// whatever the number of its directories: OpenCode sets the plugin up for each.

const NAME = "pai-observability";

interface Options extends Connection, ContentChoice {
  /** The clock, in milliseconds since 1970. */
  now?: () => number;
  schedule?: Schedule;
  sender?: string;
  /** Where it is written down when the server was reached; none: nowhere. */
  reachedPath?: string;
}

/** What of a translator its reporter asks. */
interface Translator {
  interrupt(now: number, directory?: string): TelemetryEvent[];
  settle(event: TelemetryEvent): void;
  isRunning(): boolean;
}

/** The events that say facts of their session. */
const FACT_TYPES = new Set<TelemetryEvent["type"]>([
  "session_start",
  "session_update",
  "session_end",
]);

/** What a process has once: it takes a translator's events, and sees to the rest. */
function createReporter<Of extends Translator>(translator: Of, options: Options) {
  const { now = Date.now, schedule = onTimer, sender = randomUUID(), server, token } = options;
  const connection = { server, token };
  const directories = new Set<string>();
  const pasts = new Map<string, ReturnType<typeof createPast>>();
  const reached = options.reachedPath ? createReached(options.reachedPath, server, now) : undefined;
  const shape = createShape(options);
  let isClosed = false;
  let log = (_message: string) => {};

  const isPastTold = () => pasts.size > 0 && pasts.values().every(({ isWanted }) => !isWanted());

  /** Only where all is told: else the next process begins where this one did. */
  async function noteReached(): Promise<void> {
    if (isClosed || !queue.isEmpty() || !isPastTold()) return;
    await reached?.write(pasts.keys());
  }

  const queue = createSender({
    ...connection,
    onStored() {
      void noteReached();
      for (const past of pasts.values()) void past.tell().then(() => noteReached());
    },
    onRefused: () => log(`${server} refuses the token (401): set OBSERVABILITY_TOKEN`),
    onDropped(timestamp) {
      for (const { want } of pasts.values()) want(timestamp);
      return pasts.size > 0;
    },
  });
  const presence = createPresence({
    ...{ ...connection, sender, directories, schedule },
    send: queue.send,
  });

  function send(events: TelemetryEvent[]): void {
    if (isClosed) return;
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
    ...{ translator, now, schedule, send, options },
    /** A directory that OpenCode works in, how to write to its log, and how to read its store. */
    join(directory: string | undefined, logTo: typeof log, read?: ReadPast) {
      log = logTo;
      if (directory === undefined || isClosed) return;
      directories.add(directory);
      const said = presence.hello(); // so that the page can say that it is there, before any session
      if (!read || pasts.has(directory)) return;
      const past = createPast({
        ...{ read, now, drained: queue.drained, isClosed: () => isClosed },
        // Not with our name: whoever told of it first may live.
        send(events) {
          queue.send(events.map(shape));
          events.forEach(translator.settle);
          presence.update(translator.isRunning());
        },
      });
      pasts.set(directory, past);
      void guarded(async () => {
        past.want(await (reached ? reached.since(directory) : now() - MAX_PAST_MS));
        if ((await said)?.status === 204) await past.tell().then(() => noteReached());
      })();
    },
    /** What has happened there since then wasn't heard, or not all of it. */
    retell(directory: string | undefined, since: number): void {
      const past = directory === undefined ? undefined : pasts.get(directory);
      past?.want(since);
      void past?.tell();
    },
    interrupt: (directory?: string) => send(translator.interrupt(now(), directory)),
    async close(withinMs: number): Promise<void> {
      send(translator.interrupt(now()));
      // What of the past isn't told by now won't be.
      const isUpToDate = isPastTold();
      isClosed = true;
      const closed = queue.close(withinMs);
      const [isStored] = await Promise.all([closed, Promise.race([presence.bye(), closed])]);
      if (isStored && isUpToDate) await reached?.write(pasts.keys(), true);
    },
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

// -- Settings

/** A variable that is empty isn't set: else they would be files of the project. */
const configDirectory = ({ OPENCODE_CONFIG_DIR, XDG_CONFIG_HOME }: NodeJS.ProcessEnv) =>
  OPENCODE_CONFIG_DIR || join(XDG_CONFIG_HOME || join(homedir(), ".config"), "opencode");

/** The first that is set: option, environment, file, default. */
function readSettings(given: unknown, env: NodeJS.ProcessEnv = process.env) {
  const options = (given ?? {}) as Data;
  const path = join(configDirectory(env), `${NAME}.json`);
  let file: Data = {};
  let problem: string | undefined;
  try {
    file = (JSON.parse(readFileSync(path, "utf8")) ?? {}) as Data;
  } catch (error) {
    if (error instanceof SyntaxError) problem = `${path} is no JSON, and left alone`;
  }
  const setting = (name: string): string | undefined => {
    const value = options[name] ?? env[`OBSERVABILITY_${name.toUpperCase()}`] ?? file[name];
    return value === undefined || value === null ? undefined : String(value);
  };
  const isOff = (name: string) => /^(0|off|false)$/i.test(setting(name) ?? "");
  return {
    server: setting("server") || DEFAULT_SERVER,
    token: setting("token"),
    content: setting("content") ?? "args",
    redact: isOff("redact") ? "off" : "on",
    hasPast: !isOff("backfill"),
    problem,
  };
}

function reachedPathOf({ XDG_STATE_HOME }: NodeJS.ProcessEnv): string {
  return join(XDG_STATE_HOME || join(homedir(), ".local/state"), "opencode", `${NAME}.json`);
}

// -- One reporter for all directories

const SENDER = randomUUID();
const shared: { reporter?: unknown; instances: number } = { instances: 0 };

/** The reporter of this process, made by the first of its directories. */
function shareReporter<Of extends Translator>(createTranslator: () => Of, given: unknown) {
  const { hasPast, problem, ...settings } = readSettings(given);
  const isFirst = shared.reporter === undefined;
  const reachedPath = hasPast ? { reachedPath: reachedPathOf(process.env) } : {};
  shared.reporter ??= createReporter(createTranslator(), {
    ...settings,
    ...reachedPath,
    sender: SENDER,
  });
  shared.instances += 1;
  const reporter = shared.reporter as ReturnType<typeof createReporter<Of>>;
  return {
    ...{ reporter, hasPast, problem: isFirst ? problem : undefined }, // told once
    /** What runs there has ended; with the last directory the reporter goes. */
    async leave(directory = "", withinMs: number): Promise<void> {
      shared.instances -= 1;
      if (shared.instances > 0) return reporter.interrupt(directory);
      shared.reporter = undefined;
      await reporter.close(withinMs);
    },
  };
}

// -- OpenCode 1.18

/** The hooks of OpenCode 1.18, which waits for none of them. */
const createHooks1 = ({
  translator,
  now,
  send,
}: ReturnType<typeof createReporter<ReturnType<typeof createTranslator1>>>) => ({
  event: guarded(({ event }: { event: OpenCodeEvent }) => send(translator.translate(event, now()))),
  "chat.params": guarded(({ model }: { model: AskedModel }) => translator.learn(model)),
});

async function server(input: { directory?: string; client?: Client1 }, options?: unknown) {
  const { directory, client } = input;
  const { reporter, hasPast, problem, leave } = shareReporter(createTranslator1, options);
  const log = (message: string) =>
    void guarded(async () => {
      await client?.app?.log?.({ body: { service: NAME, level: "warn", message } });
    })();
  const read: ReadPast | undefined =
    client && hasPast
      ? (...of) => readPast1(client, ...of, reporter.translator.waitedMs)
      : undefined;
  if (problem) log(problem);
  // Later: until this function has returned OpenCode's client doesn't answer (1.18.33).
  onTimer(() => reporter.join(directory, log, read), 0);
  return {
    ...createHooks1(reporter),
    dispose: () => leave(directory, FLUSH_MS),
  };
}

// -- OpenCode 2

/** What is used of the context that OpenCode 2 sets a plugin up with. */
export interface Context2 {
  options?: unknown;
  location?: { directory?: string };
  app?: { server?: Api2 };
  event?: { subscribe?(options: { signal: AbortSignal }): AsyncIterable<OpenCode2Event> };
  session?: { get?(of: { sessionID: string }): Promise<Session2> };
}

/**
 * Feeds what one instance hears into the translator, from one stream after the other. What happened
 * between them is told from OpenCode's store. @returns how to leave
 */
function follow2(
  context: Context2,
  {
    translator,
    now,
    schedule,
    send,
    retell,
  }: ReturnType<typeof createReporter<ReturnType<typeof createTranslator2>>>,
) {
  const order = createOrder(release, now, schedule);
  const leaving = new AbortController();

  function release(event: OpenCode2Event): void {
    try {
      send(translator.translate(event));
      for (const sessionID of translator.strangers()) void complete(sessionID);
    } catch {}
  }

  const complete = guarded(async (sessionID: string) => {
    const info = await context.session?.get?.({ sessionID });
    if (info?.time?.created !== undefined) send(translator.complete(info, now()));
  });

  let pauseMs = MIN_RETRY_MS;
  let endedAt: number | undefined;

  const hear = guarded(async () => {
    const events = context.event?.subscribe?.({ signal: leaving.signal }) ?? [];
    for await (const event of events) {
      // The stream of an instance that OpenCode has given up may go on (July 2026).
      if (leaving.signal.aborted) break;
      if (event?.type?.endsWith(".delta") !== false) continue;
      order.add(event);
      tellGap();
      endedAt = undefined;
    }
  });

  /** When a stream is opened, which may say nothing more, and again when it has begun. */
  function tellGap(): void {
    if (endedAt === undefined) return;
    retell(context.location?.directory, endedAt);
    endedAt = now();
  }

  async function listen(): Promise<void> {
    if (leaving.signal.aborted) return;
    const openedAt = now();
    tellGap();
    await hear();
    endedAt ??= now();
    if (now() - openedAt > MAX_LISTEN_PAUSE_MS) pauseMs = MIN_RETRY_MS;
    schedule(() => void listen(), pauseMs);
    pauseMs = Math.min(pauseMs * 2, MAX_LISTEN_PAUSE_MS);
  }
  void listen();

  return () => {
    order.flush();
    leaving.abort();
  };
}

async function setup(context: Context2) {
  // OpenCode 1.18 calls it too, and the previews on npm have no events.
  if (typeof context?.event?.subscribe !== "function") return;
  const { reporter, hasPast, problem, leave } = shareReporter(createTranslator2, context.options);
  const directory = context.location?.directory;
  const api = context.app?.server;
  const read: ReadPast | undefined =
    api && directory !== undefined && hasPast
      ? (...of) => readPast2(api, directory, ...of, reporter.translator.waitedMs)
      : undefined;
  const log = (message: string) => console.error(`${NAME}: ${message}`);
  if (problem) log(problem);
  onTimer(() => reporter.join(directory, log, read), 0);
  const leaveStream = follow2(context, reporter);
  return async function cleanup(): Promise<void> {
    leaveStream();
    await leave(directory, FLUSH_2_MS);
  };
}

/** OpenCode 1.18 calls `server` (and `setup`), OpenCode 2 `setup`; both without `this`. */
export default { id: NAME, server, setup };

/** For the tests and install.ts: both generations leave named exports alone. */
export {
  configDirectory,
  createClient,
  createTranslator1,
  createTranslator2,
  createShape,
  createSender,
  createReporter,
  createHooks1,
  createReached,
  follow2,
  readSettings,
  readPast1,
  readPast2,
};
