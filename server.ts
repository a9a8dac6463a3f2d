#!/usr/bin/env bun
/**
 * PAI Observability: see live what your coding-agent sessions do.
 *
 *     bun start                          http://localhost:3001
 *
 * A plugin posts an event when something begins or ends: a session, a tool call, a subagent. This
 * file is the whole server. The life of an event:
 *
 *     POST ──▶ guard ──▶ parse ──▶ batch ──▶ commit: log + folds ──▶ acknowledge
 *                                               └──▶ publish: frames, and the rows they changed
 *
 * Config      the environment, checked; all bad values reported at once
 * Log         one line each, never a payload
 * Events      unknown JSON in, a TelemetryEvent out, or an error that names the field
 * Spans       the one fold: what belongs together, and what it counts for
 * Store       all SQL: the log, the folds (writer), the answers (reader), retention
 * Hub         fan-out: a subscriber is a cursor on the log
 * Ingest      group commit: one turn of the event loop, one transaction
 * Guard       who may ask: Host, Origin, token, content type, size
 * Routes      one table, handlers of a few lines
 * Lifecycle   startServer, timers, signals, main
 *
 * A section calls only what stands above it.
 */

import { Database, SQLiteError } from "bun:sqlite";
import { timingSafeEqual } from "node:crypto";
import { chmodSync, closeSync, mkdirSync, openSync, readdirSync } from "node:fs";
import { join } from "node:path";
import dashboard from "./dashboard/index.html";
import { version } from "./package.json";

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;

const sliceQueue: (() => void)[] = [];

/**
 * Between two slices of long work: resolves in a turn of the event loop of its own, so that
 * requests are answered in between, and long answers side by side take turns.
 */
function nextSlice(): Promise<void> {
  const run = () => {
    sliceQueue.shift()?.();
    if (sliceQueue.length > 0) setImmediate(run);
  };
  return new Promise((resolve) => {
    if (sliceQueue.push(resolve) === 1) setImmediate(run);
  });
}

// ─── Config ──────────────────────────────────────────────────────────────────
// Reads the environment once, at the start. Nothing else in this file does.

const LOG_LEVELS = ["debug", "info", "warn", "error"] as const;
type LogLevel = (typeof LOG_LEVELS)[number];

const MIN_TOKEN_CHARS = 32;

/** `name`, `name:port`, `[v6]` or `[v6]:port`; group 1 is the name. */
const HOST_HEADER = /^(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?$/i;

/** A reason not to start that the user can mend: one line per problem, no stack trace. */
export class StartError extends Error {
  constructor(readonly problems: string[]) {
    super(problems.join("\n"));
  }
}

/** A parser that gives undefined for what it doesn't take. */
const wholeNumber = (min: number, max: number) => (text: string) =>
  /^\d{1,9}$/.test(text) && Number(text) >= min && Number(text) <= max ? Number(text) : undefined;

export type Config = ReturnType<typeof loadConfig>;

/**
 * The configuration in `env`. An empty value counts as not set.
 *
 * @throws StartError with one line per bad variable: its name, its value, what is accepted
 */
export function loadConfig(env: Record<string, string | undefined>) {
  const problems: string[] = [];

  /** @param parse undefined: not what is `accepted` */
  function read<T>(
    name: string,
    fallback: T,
    accepted: string,
    parse: (text: string) => T | undefined,
  ): T {
    const text = env[name]?.trim();
    if (!text) return fallback;
    const value = parse(text);
    if (value !== undefined) return value;
    const shown = name === "AUTH_TOKEN" ? "(not shown)" : JSON.stringify(text);
    problems.push(`${name}=${shown}: expected ${accepted}`);
    return fallback;
  }

  const list = (isItem: (item: string) => boolean) => (text: string) => {
    const items = text.split(",").flatMap((item) => item.trim() || []);
    return items.every(isItem) ? items : undefined;
  };

  const config = {
    port: read(
      "PORT",
      3001,
      "a whole number from 0 (any free port) to 65535",
      wholeNumber(0, 65_535),
    ),
    /** A host name or address; `localhost` is both 127.0.0.1 and ::1. */
    host: read("HOST", "localhost", "a host name or an address, without a port", (text) =>
      /^([\w.-]+|\[?[0-9a-f:.]+\]?)$/i.test(text) ? text.replace(/^\[|\]$/g, "") : undefined,
    ),
    dataDir: read("DATA_DIR", "./data", "a directory", (text) => text),
    retentionHours: read(
      "RETENTION_HOURS",
      168,
      "a number of hours above 0, fractions allowed",
      (text) => (Number(text) > 0 && Number(text) <= 1e6 ? Number(text) : undefined),
    ),
    logLevel: read<LogLevel>("LOG_LEVEL", "info", LOG_LEVELS.join(", "), (text) =>
      LOG_LEVELS.find((level) => level === text.toLowerCase()),
    ),
    /** Wanted from every client but on /health; null: nobody is asked. */
    authToken: read<string | null>(
      "AUTH_TOKEN",
      null,
      `at least ${MIN_TOKEN_CHARS} printable characters without spaces`,
      (text) => (text.length >= MIN_TOKEN_CHARS && /^[\x21-\x7e]+$/.test(text) ? text : undefined),
    ),
    /** Accepted in the Host header beside the loopback names, lower case. */
    allowedHosts: read<string[]>(
      "ALLOWED_HOSTS",
      [],
      "host names, comma-separated, each with or without a port",
      (text) => list((item) => HOST_HEADER.test(item))(text.toLowerCase()),
    ),
    /** Other origins whose pages may read and write, as browsers send them. */
    allowedOrigins: read<string[]>(
      "ALLOWED_ORIGINS",
      [],
      "exact origins, comma-separated, such as http://localhost:5173",
      list((item) => URL.parse(item)?.origin === item),
    ),
    maxSubscribers: read(
      "MAX_SUBSCRIBERS",
      256,
      "a whole number from 1 to 100000",
      wholeNumber(1, 100_000),
    ),
  };
  if (!isLoopback(config.host) && !env.AUTH_TOKEN?.trim())
    problems.push(
      `HOST=${JSON.stringify(config.host)}: not a loopback name, so other machines could read your prompts: set AUTH_TOKEN (at least ${MIN_TOKEN_CHARS} characters) as well, or use localhost`,
    );
  if (problems.length > 0) throw new StartError(problems);
  return config;
}

const isLoopback = (host: string) => /^(localhost|127(\.\d{1,3}){3}|::1)$/i.test(host);

// ─── Log ─────────────────────────────────────────────────────────────────────
// One line per message. Never a payload: prompts and arguments are private.

export type Log = Record<LogLevel, (message: string) => void>;

/** Writes messages of `level` and above; warnings and errors go to stderr. */
export function createLog(level: LogLevel): Log {
  const threshold = LOG_LEVELS.indexOf(level);
  const writer = (at: LogLevel, write: (line: string) => void) => (message: string) => {
    if (LOG_LEVELS.indexOf(at) >= threshold)
      write(`${new Date().toISOString()} ${at} ${escapeControls(message)}`);
  };
  return {
    debug: writer("debug", console.log),
    info: writer("info", console.log),
    warn: writer("warn", console.error),
    error: writer("error", console.error),
  };
}

/** So that a name with a line break in it can't forge a line, nor move the cursor of a terminal. */
function escapeControls(text: string): string {
  return text.replace(
    /[\x00-\x1f\x7f-\x9f\u2028\u2029]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

// ─── Events ──────────────────────────────────────────────────────────────────
// Unknown JSON in, a TelemetryEvent out, or an HttpError that names the field.
// Pure. The dialect of pai-unified.ts is translated here, at the edge: nothing
// below knows that it exists.

/** An answer other than success: `message` says what was wrong and where. */
export class HttpError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly headers: Record<string, string> = {},
  ) {
    super(message);
  }
}

type Fields = Record<string, unknown>;

const isRecord = (value: unknown): value is Fields =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const isEventType = (value: unknown): value is EventType =>
  typeof value === "string" && Object.hasOwn(EVENT_TYPES, value);
const isOutcome = (value: unknown): value is Outcome =>
  typeof value === "string" && OUTCOMES.some((outcome) => outcome === value);
const isName = (value: unknown) =>
  typeof value === "string" && value.length > 0 && value.length <= MAX_ID_CHARS;
const numberOrNull = (value: unknown) => (typeof value === "number" ? value : null);
/** Well-formed, because SQLite keeps UTF-8: a lone surrogate would come back as another string. */
const textOrNull = (value: unknown) => (typeof value === "string" ? value.toWellFormed() : null);
/** Whole milliseconds: a sum of fractions would depend on the order of arrival. */
const wholeMs = (value: unknown) => (typeof value === "number" ? Math.round(value) : null);

const MAX_ID_CHARS = 256;
/** Of a fact, as text or JSON: it is short by nature, and the event keeps it whole. */
const MAX_FACT_CHARS = 4_096;
/** Of the preview of a task call: the emitter cuts it at 200. */
const MAX_PREVIEW_CHARS = 4_096;
/** Thirty years: nothing that a session does takes longer, and sums of it stay exact. */
const MAX_DURATION_MS = 1e12;
/** Deeper JSON than this is refused: JSON.stringify and SQLite's own functions give up at some depth. */
const MAX_DEPTH = 64;
/** The newest date that JavaScript can name. */
const MAX_DATE_MS = 8.64e15;
/** Epoch numbers below this are seconds: as seconds it is the year 5138, as milliseconds 1973. */
const EPOCH_SECONDS_LIMIT = 1e11;
const ISO_WITH_OFFSET = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)$/;

/** What a field must be. Null and absent mean the same: not known. */
interface Field {
  expected: string;
  accepts: (value: unknown) => boolean;
  required?: true;
}

const field = (expected: string, accepts: Field["accepts"]): Field => ({ expected, accepts });
const required = (known: Field): Field => ({ ...known, required: true });
const either = (one: Field, other: Field) =>
  field(`${one.expected} or ${other.expected}`, (it) => one.accepts(it) || other.accepts(it));
const amount = (what: string, max: number) =>
  field(`${what} from 0 to ${max}`, (it) => typeof it === "number" && it >= 0 && it <= max);

const NAME = field(`a string of 1 to ${MAX_ID_CHARS} characters`, isName);
const NEEDED_NAME = required(NAME);
/** Of a session or an event: no URL can name `.` and `..`. */
const ID = field(
  `${NAME.expected}, other than "." and ".."`,
  (value) => isName(value) && value !== "." && value !== "..",
);
const NEEDED_ID = required(ID);
const EXPORTED_ID = field(
  "a whole number above 0, as an exported event has it",
  (value) => Number.isSafeInteger(value) && Number(value) > 0,
);
const TEXT = field("a string", (value) => typeof value === "string");
const FLAG = field("true or false", (value) => typeof value === "boolean");
const NUMBER = field("a number", Number.isFinite);
const OBJECT = field("an object", isRecord);
const LIST = field("an array", Array.isArray);
const DURATION = amount("a number", MAX_DURATION_MS);
/** Nine digits behind the point and their sums stay exact: see `nanodollars`. */
const COST = amount("a number of US dollars", 1e6);
const TIME = field(
  "ISO 8601 with an offset (2026-01-01T12:00:00Z), or epoch seconds or milliseconds, after 1970",
  (value) => !Number.isNaN(timeOf(value)),
);

const OUTCOMES = ["ok", "failed", "exit", "denied", "cancelled"] as const;
/** How a call ended; `exit`: a command that ended with another code than 0. */
export type Outcome = (typeof OUTCOMES)[number];

/** What is known of a session as a whole: the newest value of each counts. */
const SESSION_FACTS = {
  title: TEXT,
  directory: TEXT,
  agent: TEXT,
  model: either(TEXT, OBJECT),
  parent_session_id: NAME,
  tokens: either(NUMBER, OBJECT),
  cost: NUMBER,
  todos: LIST,
  changes: OBJECT,
  sender: NAME,
} satisfies Record<string, Field>;

const OUTCOME = field(`one of ${OUTCOMES.join(", ")}`, isOutcome);
const ENDED = { duration_ms: DURATION, outcome: OUTCOME, success: FLAG };
const TOOL_RESULT = { waited_ms: DURATION, exit_code: NUMBER, files: LIST };
const AGENT_CALL = { ...ENDED, call_id: NAME, child_session_id: NAME };
const MODEL_CALL = { call_id: NEEDED_NAME, model: NAME, provider: TEXT, agent: TEXT };

/**
 * Every accepted type and the fields of its `data` that are checked; other fields are kept as
 * they are. A new type is one line here: it is then stored, streamed and listed.
 */
export const EVENT_TYPES = {
  session_start: SESSION_FACTS,
  session_update: SESSION_FACTS,
  session_end: { ...SESSION_FACTS, reason: TEXT, duration_seconds: DURATION },
  session_error: {},
  session_compacted: {},
  turn_start: { prompt: TEXT, agent: TEXT, model: either(TEXT, OBJECT) },
  tool_start: { tool: NEEDED_NAME, call_id: NEEDED_NAME },
  tool_use: { tool: NEEDED_NAME, call_id: NAME, ...ENDED, ...TOOL_RESULT },
  agent_spawn: { subagent_type: NEEDED_NAME, description: TEXT, prompt: TEXT, ...AGENT_CALL },
  agent_complete: { subagent_type: NAME, ...AGENT_CALL },
  model_request: MODEL_CALL,
  model_response: {
    ...MODEL_CALL,
    ...ENDED,
    first_token_ms: DURATION,
    tokens: either(NUMBER, OBJECT),
    cost: COST,
    finish_reason: TEXT,
    context_limit: NUMBER,
  },
  input_requested: { request_id: NEEDED_NAME, kind: TEXT, call_id: NAME },
  input_resolved: { request_id: NEEDED_NAME, kind: TEXT, outcome: OUTCOME, success: FLAG },
  retry: { attempt: NUMBER, message: TEXT, retry_at: TIME },
  tool_blocked: {},
  security_block: {},
  security_warn: {},
  message_user: {},
  message_assistant: {},
  rating_explicit: {},
  rating_implicit: {},
  voice_sent: {},
  learning_captured: {},
  isc_validated: {},
  context_loaded: {},
} satisfies Record<string, Record<string, Field>>;

export type EventType = keyof typeof EVENT_TYPES;

const ONE_TYPE = `one of ${Object.keys(EVENT_TYPES).join(", ")}`;
/** The same as a list per type, made once: an event is checked in a microsecond. */
const CHECKED_FIELDS = new Map(
  Object.entries(EVENT_TYPES).map(([type, fields]) => [
    type,
    Object.entries<Field>(fields).map(([name, field]) => ({ name, path: `data.${name}`, field })),
  ]),
);

/** An event as the store takes it. Times are milliseconds UTC since 1970. */
export interface TelemetryEvent {
  /** The poster's own id: the same one again in the same session stores nothing. */
  client_id: string | null;
  /** The id that a line of the export has: where that very event is stored, it is the same one. */
  exported_id: number | null;
  session_id: string;
  type: EventType;
  timestamp: number;
  /** The tool or the subagent_type. */
  name: string | null;
  call_id: string | null;
  duration_ms: number | null;
  /** As its own fields say; what a span counts for is decided by `merge`. */
  failed: boolean;
  /** Its part of a span; null: it is none. */
  half: Half | null;
  /** What it says of its session as a whole, if anything. */
  facts: Record<string, unknown> | null;
  /** The posted data, a JSON object as text. */
  data: string;
  /** An agent of which this tool call is the only trace: stored with it, or not at all. */
  implied?: TelemetryEvent;
  /** Its failure is the implied agent's too, and counts there. */
  isToldByAgent?: true;
}

/** Of a streamed event: a field of `data` so named is kept as `data_<name>`, or where that is taken too, `data_data_<name>`. */
const ENVELOPE = ["id", "type", "session_id", "timestamp"] as const;

/**
 * The event that `body`, parsed JSON of any kind, describes.
 *
 * @param receivedAt milliseconds: the timestamp where none is given, and the latest one accepted
 * @throws HttpError 400 naming the field and what was expected of it
 */
export function parseEvent(body: unknown, receivedAt: number): TelemetryEvent {
  if (!isRecord(body)) throw invalid("event", "a JSON object", body);
  if (isDeeperThan(body, MAX_DEPTH))
    throw new HttpError(400, `event: nested deeper than ${MAX_DEPTH} levels`);
  const isDialect = Object.hasOwn(body, "event_type") && body.type == null;
  const posted = isDialect ? translateDialect(body) : body;
  const { id, type, session_id, timestamp, data, ...rest } = posted;
  if (!isEventType(type)) throw invalid(isDialect ? "event_type" : "type", ONE_TYPE, type);
  check("session_id", NEEDED_ID, session_id);
  check("id", typeof id === "number" ? EXPORTED_ID : ID, id);
  if (data != null && !isRecord(data)) throw invalid("data", "a JSON object", data);

  const fields: Fields = { ...rest, ...data };
  for (const { name, path, field } of CHECKED_FIELDS.get(type) ?? [])
    check(path, field, fields[name]);
  if (type === "agent_complete" && fields.call_id == null && fields.subagent_type == null)
    throw invalid("data.call_id", "the call_id of an agent_spawn, or data.subagent_type");
  for (const name of ENVELOPE)
    if (Object.hasOwn(fields, name)) {
      let free = `data_${name}`;
      while (Object.hasOwn(fields, free)) free = `data_${free}`;
      fields[free] = fields[name];
      delete fields[name];
    }

  const seconds = numberOrNull(checked(type, fields, "duration_seconds"));
  const milliseconds = checked(type, fields, "duration_ms");
  const duration_ms = wholeMs(seconds === null ? milliseconds : seconds * SECOND_MS);
  const at = parseTimestamp(timestamp, receivedAt);
  const event: TelemetryEvent = {
    client_id: typeof id === "number" ? String(id) : textOrNull(id),
    exported_id: numberOrNull(id),
    session_id: textOrNull(session_id) ?? "",
    type,
    timestamp: at,
    name: textOrNull(checked(type, fields, "tool") ?? checked(type, fields, "subagent_type")),
    call_id: textOrNull(checked(type, fields, "call_id")),
    duration_ms,
    failed: hasFailed(type, fields),
    half: halfOf(type, at, fields),
    facts: sessionFacts(type, fields),
    data: "",
  };
  // Documented on the stream of a tool_use: there even where it isn't known.
  if (type === "tool_use" || milliseconds !== null) fields.duration_ms = duration_ms;
  if (fields.duration_seconds === null) delete fields.duration_seconds;
  event.data = JSON.stringify(fields);
  if (isDialect && type === "tool_use" && /^(mcp_)?task$/i.test(event.name ?? "")) {
    event.implied = impliedAgent(event, fields);
    event.isToldByAgent = true;
  }
  return event;
}

/** A stored event, read back: what `parseEvent` once made of it. */
function restoreEvent(row: LogRow): TelemetryEvent {
  const fields: Fields = JSON.parse(row.data);
  const { type, timestamp, failed } = row;
  const [half, facts] = isEventType(type)
    ? [halfOf(type, timestamp, fields), sessionFacts(type, fields)]
    : [null, null];
  return { ...row, exported_id: null, failed: Boolean(failed), half, facts };
}

/** A field that `type` declares, so that it was checked; null where it isn't there. */
function checked(type: EventType, fields: Fields, name: string): unknown {
  return name in EVENT_TYPES[type] ? (fields[name] ?? null) : null;
}

/**
 * ISO 8601 with an offset, or epoch seconds or milliseconds, as milliseconds.
 *
 *     absent or null               time of receipt
 *     "2026-01-01T12:00:00+01:00"  1767265200000
 *     1767265200                   1767265200000 (seconds)
 *     1767265200000.7              1767265200000
 *     later than receipt           time of receipt: a poster's clock may run ahead
 *     "2026-01-01T12:00:00"        400: whose noon?
 */
function parseTimestamp(value: unknown, receivedAt: number): number {
  if (value == null) return receivedAt;
  const ms = timeOf(value);
  if (Number.isNaN(ms)) throw invalid("timestamp", TIME.expected, value);
  return Math.min(ms, receivedAt);
}

/** Milliseconds; NaN for what is no time. */
function timeOf(value: unknown): number {
  let ms = NaN;
  if (typeof value === "number") ms = value < EPOCH_SECONDS_LIMIT ? value * SECOND_MS : value;
  else if (typeof value === "string" && ISO_WITH_OFFSET.test(value) && isDay(value.slice(0, 10)))
    ms = Date.parse(value);
  return ms >= 1 && ms <= MAX_DATE_MS ? Math.trunc(ms) : NaN;
}

/** Date.parse takes the 30th of February for the 2nd of March. */
function isDay(date: string): boolean {
  const ms = Date.parse(date);
  return !Number.isNaN(ms) && iso(ms).startsWith(date);
}

/** `success` decides where it is given; else an `error` does. */
function hasFailed(type: EventType, fields: Fields): boolean {
  if (typeof fields.success === "boolean") return !fields.success;
  return type === "session_error" || Boolean(fields.error);
}

const FACT_NAMES = Object.keys(SESSION_FACTS);
const FACTS: Partial<Record<EventType, readonly string[]>> = {
  session_start: FACT_NAMES,
  session_update: FACT_NAMES,
  session_end: [...FACT_NAMES, "reason"],
};

function sessionFacts(type: EventType, fields: Fields) {
  const names = FACTS[type];
  return names === undefined ? null : shortFields(names, fields);
}

/** Those of the fields `names` that say something, cut; null: none does. */
function shortFields(names: readonly string[], fields: Fields) {
  let said: Fields | null = null;
  for (const name of names) {
    const value = fields[name] == null ? null : cutFact(fields[name]);
    if (value != null) (said ??= {})[name] = value;
  }
  return said;
}

/** A longer text is cut, a list keeps the leading items that fit, an object goes. */
function cutFact(value: unknown): unknown {
  if (typeof value === "string") return value.slice(0, MAX_FACT_CHARS).toWellFormed();
  if (typeof value !== "object" || value === null) return value;
  if (!Array.isArray(value))
    return JSON.stringify(value).length <= MAX_FACT_CHARS ? value : undefined;
  let chars = 1; // the brackets; each item comes with a comma or a bracket
  return value.filter((item) => (chars += JSON.stringify(item).length + 1) <= MAX_FACT_CHARS);
}

/**
 * The same event in our words. Source: the emitter of PAI-OpenCode 3.0.1 and captured posts.
 *
 *     event_type "tool.execute"   type "tool_use"; other dots become underscores
 *     agent_type                  subagent_type, "unknown" where it was left out
 *     task_id                     call_id
 *     args_preview                args: JSON text, cut at 200 characters
 *     working_directory           directory
 *     model {…}                   its name: OpenCode's options and headers can hold keys
 *     duration_ms of session.end  duration_seconds
 */
function translateDialect(body: Fields): Fields {
  const { event_type, type: _, ...event } = body;
  const name = event_type === "tool.execute" ? "tool_use" : event_type;
  const type = typeof name === "string" ? name.replaceAll(".", "_") : name;
  const posted = event.data ?? {};
  if (!isRecord(posted)) return { ...event, type };
  const { agent_type, task_id, args_preview, working_directory, ...data } = posted;
  if (task_id != null) data.call_id = task_id;
  if (args_preview != null) data.args = args_preview;
  if (working_directory != null) data.directory = working_directory;
  if (agent_type != null) data.subagent_type = agent_type;
  else if (type === "agent_spawn" || type === "agent_complete") data.subagent_type ??= "unknown";
  if (isRecord(data.model)) data.model = data.model.name ?? data.model.id;
  if (type === "session_end" && typeof data.duration_ms === "number")
    data.duration_seconds = data.duration_ms / SECOND_MS;
  return { ...event, type, data };
}

/** The subagent behind a `task` call of the dialect, which is posted when the agent is done. */
function impliedAgent(call: TelemetryEvent, fields: Fields): TelemetryEvent {
  const preview = (textOrNull(fields.args) ?? "").slice(0, MAX_PREVIEW_CHARS);
  const subagent_type = previewField(preview, "subagent_type", "whole");
  const name = NAME.accepts(subagent_type) ? subagent_type : "unknown";
  const data = {
    subagent_type: name,
    prompt: previewField(preview, "prompt", "cut"),
    duration_ms: call.duration_ms,
    call_id: call.call_id,
    success: !call.failed,
  };
  return {
    ...call,
    client_id: null,
    exported_id: null,
    type: "agent_spawn",
    name,
    half: halfOf("agent_spawn", call.timestamp, data),
    facts: null,
    data: JSON.stringify(data),
  };
}

/**
 * A string field of JSON text that may break off anywhere; null where it isn't there.
 *
 * @param want "whole": only a value that is there to its end; "cut": as much of it as there is
 */
function previewField(preview: string, key: string, want: "whole" | "cut"): string | null {
  const [, text, quote] =
    preview.match(new RegExp(`"${key}"\\s*:\\s*"((?:[^"\\\\]|\\\\.)*)("?)`)) ?? [];
  if (text === undefined || (want === "whole" && !quote)) return null;
  try {
    return String(JSON.parse(`"${text.replace(/\\u[0-9a-f]{0,3}$/i, "")}"`));
  } catch {
    return text; // an escape or a control character that JSON doesn't know: as it was sent
  }
}

function isDeeperThan(value: unknown, levels: number): boolean {
  if (typeof value !== "object" || value === null) return false;
  if (levels === 0) return true;
  for (const key in value) if (isDeeperThan(Reflect.get(value, key), levels - 1)) return true;
  return false;
}

function check(name: string, field: Field, value: unknown): void {
  if (value == null ? field.required : !field.accepts(value))
    throw invalid(name, field.expected, value);
}

function invalid(name: string, expected: string, value?: unknown): HttpError {
  const got = value === undefined ? "it is missing" : `got ${excerpt(value)}`;
  return new HttpError(400, `${name}: expected ${expected}; ${got}`);
}

/** A value in a message: only the beginning of a text, which may be long. */
function excerpt(value: unknown): string {
  if (typeof value === "string") {
    const length = value.length > 40 ? ` (${value.length} characters)` : "";
    return JSON.stringify(value.slice(0, 40).toWellFormed()) + length;
  }
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  return Array.isArray(value) ? "an array" : value === null ? "null" : "an object";
}

// ─── Spans ───────────────────────────────────────────────────────────────────
// The one fold. A span is whatever has a beginning and an end; all events of one call are one span,
// in whatever order and however often they come. Pure: it knows no database, and counts nothing that
// couldn't be taken back. Everything that pairs or counts calls does it through these functions.

/** In the order in which an open one is told first, of those that began in the same millisecond. */
const SPAN_KINDS = ["model", "agent", "tool", "wait"] as const;
export type SpanKind = (typeof SPAN_KINDS)[number];

const HALVES: Partial<Record<EventType, [kind: SpanKind, side: "start" | "end"]>> = {
  tool_start: ["tool", "start"],
  tool_use: ["tool", "end"],
  agent_spawn: ["agent", "start"],
  agent_complete: ["agent", "end"],
  model_request: ["model", "start"],
  model_response: ["model", "end"],
  input_requested: ["wait", "start"],
  input_resolved: ["wait", "end"],
};

/** Where the events of a kind say what a span shows. `text`: the first of them that is there. */
const SPAN_FIELDS: Record<SpanKind, { name: string; text: string[]; attributes: string[] }> = {
  tool: { name: "tool", text: ["args"], attributes: ["exit_code", "files"] },
  agent: { name: "subagent_type", text: ["description", "prompt"], attributes: [] },
  model: {
    name: "model",
    text: [],
    attributes: ["provider", "agent", "first_token_ms", "tokens", "finish_reason", "context_limit"],
  },
  wait: { name: "kind", text: ["detail"], attributes: [] },
};
/** Characters of text and error that a span's row carries; the log has all of them. */
const MAX_SPAN_TEXT_CHARS = 300;
/** The name of a span none of whose events says one. */
const UNNAMED = { tool: "unknown", agent: "unknown", model: "unknown", wait: "input" };

/**
 * What an event with these fields says of its span; null where its type is none of a span, and for
 * a wait without request_id (older logs have such), which nothing could end.
 */
function halfOf(type: EventType, at: number, fields: Fields) {
  const known = HALVES[type];
  if (known === undefined) return null;
  const [kind, side] = known;
  const key = textOrNull(kind === "wait" ? fields.request_id : fields.call_id);
  if (kind === "wait" && key === null) return null;
  const { name, text } = SPAN_FIELDS[kind];
  const duration_ms = wholeMs(checked(type, fields, "duration_ms"));
  const { outcome, success, error } = fields;
  const isOver = outcome != null || success != null || duration_ms !== null || Boolean(error);
  return {
    kind,
    side,
    /** The call_id, or the request_id of a wait; null: it has none. */
    key,
    at,
    name: textOrNull(fields[name]),
    duration_ms,
    waited_ms: type === "tool_use" ? wholeMs(fields.waited_ms) : null,
    /** Null: it doesn't say that the span is over, as an agent_spawn may. */
    outcome: side === "end" || (type === "agent_spawn" && isOver) ? outcomeOf(fields) : null,
    text: firstText(text, fields),
    error: error ? spanText(error) : null,
    child_session_id: kind === "agent" ? textOrNull(fields.child_session_id) : null,
    /** Whole, so that sums are exact in any order. */
    nanodollars: type === "model_response" ? nanodollarsOf(fields.cost) : null,
    tokens: type === "model_response" ? tokenCount(fields.tokens) : null,
    /** What is only shown, as JSON. */
    attributes: attributesOf(kind, fields),
  };
}

/** What one event says of its span. */
type Half = NonNullable<ReturnType<typeof halfOf>>;

/** `outcome` decides where it is given, then `success`, then `error`. */
function outcomeOf({ outcome, success, error }: Fields): Outcome {
  if (isOutcome(outcome)) return outcome;
  return (typeof success === "boolean" ? success : !error) ? "ok" : "failed";
}

function firstText(names: readonly string[], fields: Fields): string | null {
  for (const name of names) if (fields[name] != null) return spanText(fields[name]);
  return null;
}

function spanText(value: unknown): string | null {
  if (value == null) return null;
  const text = typeof value === "string" ? value : (JSON.stringify(value) ?? "");
  return text.slice(0, MAX_SPAN_TEXT_CHARS).toWellFormed();
}

function attributesOf(kind: SpanKind, fields: Fields): string | null {
  const { call_id } = fields;
  // Of the call that waits for the person, which is another span.
  if (kind === "wait") return call_id == null ? null : JSON.stringify({ waiting_call_id: call_id });
  const said = shortFields(SPAN_FIELDS[kind].attributes, fields);
  return said === null ? null : JSON.stringify(said);
}

const nanodollarsOf = (cost: unknown) => (typeof cost === "number" ? Math.round(cost * 1e9) : null);

/** A number of tokens: itself, an object's `total`, or the sum of all numbers in it. */
function tokenCount(value: unknown): number | null {
  if (typeof value === "number") return Math.round(value);
  if (!isRecord(value)) return null;
  if (typeof value.total === "number") return Math.round(value.total);
  const parts = Object.values(value).flatMap((part) => tokenCount(part) ?? []);
  return parts.length === 0 ? null : parts.reduce((sum, part) => sum + part);
}

type StoredHalf = Half & { id: number; data: string };
type Halves = { start: StoredHalf | null; end: StoredHalf | null };

/**
 * `span` with `half`, whichever comes first, however often: of several starts the earliest counts,
 * of several ends the latest; of two at the same time that with the greater `data`.
 */
function merge(span: Halves, half: StoredHalf): Halves {
  const known = span[half.side];
  if (known !== null) {
    const lead = (known.at - half.at) * (half.side === "start" ? 1 : -1);
    if (lead < 0 || (lead === 0 && half.data <= known.data)) return span;
  }
  return half.side === "start" ? { start: half, end: span.end } : { start: span.start, end: half };
}

/** When the call began, as `half` alone has it. */
const beginOf = (half: StoredHalf | null) =>
  half === null ? Infinity : half.at - (half.duration_ms ?? 0);

/** A span as the store keeps it, with the names of its columns. */
type SpanRow = ReturnType<typeof spanRow>;
type SpanKey = Pick<Half, "kind" | "key"> & { id: number; session_id: string };

/** The row of a span, of which one half at least is there. */
function spanRow({ id, session_id, kind, key }: SpanKey, { start, end }: Halves, is_paired = 0) {
  const started_at = Math.min(beginOf(start), beginOf(end));
  const measured_ms = start && end ? end.at - started_at : null;
  // A spawn that failed on the spot has failed, whatever its completion says.
  const outcome = end?.outcome === "ok" ? (start?.outcome ?? end.outcome) : end?.outcome;
  return {
    /** Of its first stored event. */
    id,
    session_id,
    kind,
    key,
    name: start?.name ?? end?.name ?? null,
    started_at,
    /** Null: open. */
    ended_at: end?.at ?? (start?.outcome ? start.at : null),
    duration_ms: end?.duration_ms ?? start?.duration_ms ?? measured_ms,
    waited_ms: end?.waited_ms ?? null,
    outcome: outcome ?? start?.outcome ?? null,
    text: start?.text ?? end?.text ?? null,
    error: end?.error ?? start?.error ?? null,
    child_session_id: start?.child_session_id ?? end?.child_session_id ?? null,
    nanodollars: end?.nanodollars ?? null,
    tokens: end?.tokens ?? null,
    attributes:
      start?.attributes && end?.attributes
        ? JSON.stringify({ ...JSON.parse(start.attributes), ...JSON.parse(end.attributes) })
        : (end?.attributes ?? start?.attributes ?? null),
    start_id: start?.id ?? null,
    end_id: end?.id ?? null,
    /** 1: its end is an agent_complete without a call_id, which may yet turn out to be another's. */
    is_paired,
  };
}

type Contribution = ReturnType<typeof contribution>;

/**
 * What a span counts for: at most one call, one duration, one error.
 *
 * @param isToldByAgent the same failure is that of an agent, and counts there
 */
function contribution(span: SpanRow, isToldByAgent = false) {
  const { kind, duration_ms } = span;
  return {
    kind,
    name: span.name ?? UNNAMED[kind],
    /** Counted in the minute of its end; until then in that of its start. */
    at: span.ended_at ?? span.started_at,
    // A completion whose agent was never told of is no agent.
    count: kind === "agent" && span.start_id === null ? 0 : 1,
    duration_ms,
    waited_ms: span.waited_ms ?? 0,
    errors: hasErred(span) && !isToldByAgent ? 1 : 0,
    nanodollars: span.nanodollars ?? 0,
    tokens: span.tokens ?? 0,
  };
}

const hasErred = (span: Pick<SpanRow, "outcome"> | null) =>
  span?.outcome === "failed" || span?.outcome === "exit";

/** An agent that only an agent_complete of its own could end: one without a call_id may end it. */
function isOpenToPairing({ kind, start_id, ended_at, is_paired }: SpanRow): boolean {
  return kind === "agent" && start_id !== null && (ended_at === null || is_paired === 1);
}

// Durations are counted in steps of 9 %, so that a percentile over any window is a sum of counts
// that can be added and taken back. Its error is at most half a step.
const STEP = Math.log(1.09);

/** 0 for less than a millisecond, then 1 for 1 to 1.09 ms, and so on: at most 322 (`MAX_DURATION_MS`). */
const durationStep = (ms: number) => (ms < 1 ? 0 : 1 + Math.floor(Math.log(ms) / STEP));

/** The durations at `shares` of all, ascending; `steps` are pairs of a step and a count, in any order. */
function percentiles(steps: readonly number[], shares: readonly number[]): (number | null)[] {
  const counts = new Map<number, number>();
  let total = 0;
  for (let index = 0; index < steps.length; index += 2) {
    const [step = 0, count = 0] = [steps[index], steps[index + 1]];
    counts.set(step, (counts.get(step) ?? 0) + count);
    total += count;
  }
  const sorted = [...counts].sort(([a], [b]) => a - b);
  return shares.map((share) => {
    let left = Math.max(1, Math.ceil(total * share));
    const found = sorted.find(([, count]) => (left -= count) <= 0);
    if (found === undefined) return null;
    return found[0] === 0 ? 0 : Math.round(Math.exp((found[0] - 0.5) * STEP));
  });
}

// ─── Store ───────────────────────────────────────────────────────────────────
// All SQL. The events are an append-only log; spans, sessions and usage are folds of it, kept in the
// same transaction, and come out the same in whatever order events arrive. It knows nothing of
// requests or streams, and refuses to touch a file that it doesn't understand.

/** "PAOB" in the header of the file: SQLite's way to tell whose database it is. */
const APPLICATION_ID = 0x50414f42;

/** Each entry brings the schema to the version of its index + 1 (PRAGMA user_version). */
const MIGRATIONS = [
  `PRAGMA application_id = ${APPLICATION_ID};
   CREATE TABLE events (
     id          INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again: a cursor stays unambiguous
     client_id   TEXT,
     session_id  TEXT    NOT NULL REFERENCES sessions (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
     type        TEXT    NOT NULL,
     timestamp   INTEGER NOT NULL,
     name        TEXT,
     call_id     TEXT,
     duration_ms INTEGER,
     failed      INTEGER NOT NULL,
     data        TEXT    NOT NULL
   );
   CREATE INDEX events_session_id ON events (session_id);
   CREATE INDEX events_timestamp ON events (timestamp);
   -- Events up to this id may be gone: a cursor below it can't be served in full.
   CREATE TABLE watermark (event_id INTEGER NOT NULL);
   -- Ids start at the time of creation, in microseconds, so that a cursor from an earlier database of this
   -- directory lies below the watermark, rather than quietly pointing at other events.
   INSERT INTO sqlite_sequence (name, seq) VALUES ('events', CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000);
   INSERT INTO watermark SELECT seq FROM sqlite_sequence WHERE name = 'events';`,

  `DROP INDEX IF EXISTS events_client_id; -- a client's id counts within its session
   CREATE UNIQUE INDEX events_client_id ON events (client_id, session_id) WHERE client_id IS NOT NULL;
   DROP INDEX IF EXISTS events_type; -- most events are of these four: a page of one is found without
   CREATE INDEX events_type ON events (type)
     WHERE type <> 'tool_use' AND type <> 'tool_start' AND type <> 'model_request' AND type <> 'model_response';
   DROP INDEX IF EXISTS events_agent_call;
   CREATE INDEX events_pairing ON events (session_id, name, timestamp) WHERE type = 'agent_complete' AND call_id IS NULL;

   -- All below but the last three tables is made from the log: \`foldAnew\` does it again.
   DROP TABLE IF EXISTS sessions;
   CREATE TABLE sessions (
     id                TEXT PRIMARY KEY,
     started_at        INTEGER NOT NULL DEFAULT 9007199254740991,
     last_event_at     INTEGER NOT NULL DEFAULT 0, -- 0: none, here and below
     last_activity_at  INTEGER NOT NULL DEFAULT 0, -- any event but session_end and session_update
     last_end_at       INTEGER NOT NULL DEFAULT 0, -- session_end
     last_model_at     INTEGER NOT NULL DEFAULT 0, -- model_request, model_response
     retried_at        INTEGER NOT NULL DEFAULT 0,
     retry             TEXT    NOT NULL DEFAULT '{}', -- the data of that event
     event_count       INTEGER NOT NULL DEFAULT 0,
     tool_count        INTEGER NOT NULL DEFAULT 0,
     agent_count       INTEGER NOT NULL DEFAULT 0,
     error_count       INTEGER NOT NULL DEFAULT 0,
     session_errors    INTEGER NOT NULL DEFAULT 0, -- session_error: beside the others,
     is_excused        INTEGER NOT NULL DEFAULT 0, -- because 1 says that they are its agent's error
     turn_count        INTEGER NOT NULL DEFAULT 0, -- before the latest cut, see the table of turns
     worked_ms         INTEGER NOT NULL DEFAULT 0, -- likewise
     turn_started_at   INTEGER NOT NULL DEFAULT 0, -- after it
     cut_at            INTEGER NOT NULL DEFAULT -1,
     is_cut_end        INTEGER NOT NULL DEFAULT 0,
     parent_id         TEXT,
     tokens            INTEGER, -- its own, as its cost in US dollars
     cost              REAL,
     model_tokens      INTEGER NOT NULL DEFAULT 0,
     metered_spans     INTEGER NOT NULL DEFAULT 0, -- that say their tokens
     model_nanodollars INTEGER NOT NULL DEFAULT 0,
     priced_spans      INTEGER NOT NULL DEFAULT 0, -- that say their cost
     info              TEXT    NOT NULL DEFAULT '{}', -- {"<fact>": [<timestamp>, <value>]}
     is_over           INTEGER GENERATED ALWAYS AS (last_end_at > 0 AND last_end_at >= last_activity_at) VIRTUAL
   );
   CREATE INDEX sessions_by_activity ON sessions (is_over, last_event_at, id);
   CREATE INDEX sessions_parent_id ON sessions (parent_id) WHERE parent_id IS NOT NULL;
   CREATE TABLE spans (
     id               INTEGER PRIMARY KEY REFERENCES events (id) ON DELETE CASCADE, -- its first stored event
     session_id       TEXT    NOT NULL,
     kind             TEXT    NOT NULL, -- tool, agent, model, wait
     key              TEXT,             -- call_id, or the request_id of a wait
     name             TEXT,
     started_at       INTEGER NOT NULL,
     ended_at         INTEGER,          -- NULL: open
     duration_ms      INTEGER,
     waited_ms        INTEGER,
     outcome          TEXT,
     text             TEXT,
     error            TEXT,
     child_session_id TEXT,
     nanodollars      INTEGER,
     tokens           INTEGER,
     attributes       TEXT,
     start_id         INTEGER,          -- the events that count: the earliest start,
     end_id           INTEGER,          -- the latest end
     is_paired        INTEGER NOT NULL  -- 1: that is an agent_complete without a call_id
   );
   CREATE INDEX spans_open ON spans (session_id, kind, started_at) WHERE ended_at IS NULL;
   CREATE INDEX spans_pairing ON spans (session_id, name, ended_at, started_at)
     WHERE kind = 'agent' AND start_id IS NOT NULL AND (ended_at IS NULL OR is_paired);
   CREATE INDEX spans_child ON spans (child_session_id) WHERE child_session_id IS NOT NULL;
   -- Finds the span of an event. Written a few thousand at once, in order: as an index, kept with each
   -- commit, it would be half of what a commit writes. Spans from keyed_from on are not in it yet.
   CREATE TABLE span_keys (session_id TEXT, key TEXT, kind TEXT, id INTEGER NOT NULL, PRIMARY KEY (session_id, key, kind)) WITHOUT ROWID;
   -- What was done before each cut of a session's time, back to the cut before it.
   CREATE TABLE turns (
     session_id TEXT    NOT NULL REFERENCES sessions (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
     at         INTEGER NOT NULL,
     is_end     INTEGER NOT NULL, -- 1: a session_end; 0: a turn_start, which is itself of the next turn
     first_at   INTEGER NOT NULL, -- of activity; 0: nothing was done
     last_at    INTEGER NOT NULL,
     PRIMARY KEY (session_id, at, is_end)
   ) WITHOUT ROWID;
   DROP TABLE IF EXISTS usage;
   CREATE TABLE usage (
     kind      TEXT    NOT NULL, -- tool, agent, model, or '' for events of any type
     period_ms INTEGER NOT NULL, -- a minute, an hour or a day
     start     INTEGER NOT NULL,
     name      TEXT    NOT NULL,
     count     INTEGER NOT NULL,
     timed     INTEGER NOT NULL, -- how many durations are known
     total_ms  INTEGER NOT NULL,
     waited_ms INTEGER NOT NULL,
     errors    INTEGER NOT NULL,
     steps     BLOB    NOT NULL, -- of durations less what was waited: pairs of a step and a count, 16 bits each
     PRIMARY KEY (kind, period_ms, start, name)
   ) WITHOUT ROWID;
   CREATE TABLE unfolded (next_id INTEGER NOT NULL);
   INSERT INTO unfolded SELECT 0 FROM events LIMIT 1;

   -- What retention took: which sessions, and up to which event.
   CREATE TABLE deletions (
     id            INTEGER PRIMARY KEY AUTOINCREMENT,
     session_id    TEXT    NOT NULL UNIQUE,
     parent_id     TEXT,
     last_event_id INTEGER NOT NULL,
     head          INTEGER NOT NULL, -- the newest event at that time
     is_whole      INTEGER NOT NULL  -- 0: some of its events are still there
   );
   ALTER TABLE watermark ADD COLUMN head       INTEGER NOT NULL DEFAULT 0; -- of the deletions that are no longer listed
   ALTER TABLE watermark ADD COLUMN cutoff     INTEGER NOT NULL DEFAULT 0; -- of the latest retention, milliseconds
   ALTER TABLE watermark ADD COLUMN keyed_from INTEGER NOT NULL DEFAULT 0;
   -- Ids that no event has: each start goes on at its time, so that after an older backup is put in place no id
   -- comes again, and a cursor from the time after that backup is recognised.
   CREATE TABLE gaps (from_id INTEGER NOT NULL, to_id INTEGER NOT NULL);`,
];

/** An active session without an event for this long is stale: its process may be gone. */
const STALE_MS = HOUR_MS;
/** The same while a call is open: a build may take long. */
const STALE_OPEN_MS = DAY_MS;
/** How far down a session's totals go, and how far up an event changes them. */
const MAX_GENERATIONS = 16;
/** Rows read, and rows passed over, between two turns of others: a few milliseconds. */
const SLICE_ROWS = 500;
const SLICE_SCANNED = 5_000;
/** Open spans of one session that are told again because the session ended: the newest. */
const MAX_RETOLD = 500;

/** A stored event, as the log has it. */
export type StoredEvent = {
  id: number;
  type: string;
  session_id: string;
  timestamp: number;
  duration_ms: number | null;
  data: string;
  /** Of its session; only where the type is session_end, else null. */
  started_at: number | null;
};

/** The columns that an event is restored from. */
type LogRow = Pick<
  TelemetryEvent,
  "client_id" | "session_id" | "type" | "timestamp" | "name" | "call_id" | "duration_ms" | "data"
> & { id: number; failed: number };

type Binds = Record<string, string | number | boolean | null | Uint8Array>;
type Order = "oldest first" | "newest first";

/** Writes a whole row of `table`, new or known by its `key`: the row is the binds. */
function upsert(db: Database, table: string, key: string) {
  const select = db.query<{ name: string }, Binds>("SELECT name FROM pragma_table_info($table)");
  const columns = select.all({ table }).map(({ name }) => name);
  // A key that is set, even to itself, makes SQLite look for rows that refer to it.
  const others = columns.filter((name) => !key.split(", ").includes(name));
  return db.query<unknown, Binds>(
    `INSERT INTO ${table} (${columns.join(", ")}) VALUES (${columns.map((name) => `$${name}`).join(", ")})
     ON CONFLICT (${key}) DO UPDATE SET ${others.map((name) => `${name} = excluded.${name}`).join(", ")}`,
  );
}

// -- Usage: how often and how long, per minute, hour and day

const PERIODS_MS = [MINUTE_MS, HOUR_MS, DAY_MS] as const;
/** One more than the step of the longest duration. */
const MAX_STEPS = durationStep(MAX_DURATION_MS) + 1;
/** Cells that are kept at hand: those of now, so that a batch reads none. */
const MAX_CACHED_CELLS = 2_000;

const NO_USAGE = { count: 0, timed: 0, total_ms: 0, waited_ms: 0, errors: 0 };
type UsageKey = { kind: string; period_ms: number; start: number; name: string };
type UsageRow = UsageKey & typeof NO_USAGE & { steps: Uint8Array };
/** A row with its steps spread out. */
type UsageCell = { row: UsageRow; counts: Uint32Array };

/** Counts what spans and events contribute; written with `flush`, in the transaction of the batch. */
function createUsage(db: Database) {
  const select = db.query<UsageRow, Binds>(
    "SELECT * FROM usage WHERE kind = $kind AND period_ms = $period_ms AND start = $start AND name = $name",
  );
  const write = upsert(db, "usage", "kind, period_ms, start, name");
  const selectCutoff = db.query<{ cutoff: number }, []>("SELECT cutoff FROM watermark");
  const cached = new Map<string, UsageCell>();
  const changed = new Set<UsageCell>();
  let cutoff = selectCutoff.get()?.cutoff ?? 0;

  /** Null where the period is over and deleted: then it neither counts nor can be taken back. */
  function cellAt(kind: string, period_ms: number, at: number, name: string): UsageCell | null {
    const start = at - (at % period_ms);
    if (start + period_ms <= cutoff) return null;
    const text = `${kind} ${period_ms} ${start} ${name}`;
    let cell = cached.get(text);
    if (cell === undefined) {
      const key = { kind, period_ms, start, name };
      const row = select.get(key) ?? { ...key, ...NO_USAGE, steps: new Uint8Array() };
      cell = { row, counts: new Uint32Array(MAX_STEPS) };
      const pairs = stepPairs(row.steps);
      for (let i = 0; i < pairs.length; i += 2) {
        const [step = 0, count = 0] = [pairs[i], pairs[i + 1]];
        cell.counts[step] = (cell.counts[step] ?? 0) + count;
      }
      cached.set(text, cell);
    }
    changed.add(cell);
    return cell;
  }

  /** After a transaction that was undone, or rows that were deleted. */
  function forget(): void {
    cached.clear();
    changed.clear();
    cutoff = selectCutoff.get()?.cutoff ?? 0;
  }

  return {
    forget,
    /** @param sign -1 takes back what was added before */
    add(
      { kind, name, at, count, duration_ms, waited_ms, errors }: Contribution,
      sign: 1 | -1,
    ): void {
      if (kind === "wait" || (count === 0 && errors === 0)) return;
      const isTimed = duration_ms !== null && count > 0;
      const step = isTimed ? durationStep(Math.max(0, duration_ms - waited_ms)) : 0;
      for (const period_ms of PERIODS_MS) {
        const cell = cellAt(kind, period_ms, at, name);
        if (cell === null) continue;
        cell.row.count += sign * count;
        cell.row.errors += sign * errors;
        cell.row.waited_ms += sign * count * waited_ms;
        if (!isTimed) continue;
        cell.row.timed += sign;
        cell.row.total_ms += sign * duration_ms;
        cell.counts[step] = (cell.counts[step] ?? 0) + sign;
      }
    },
    /** Events, and errors, of any kind in the minute of `at`. */
    addActivity(at: number, count: number, errors: number): void {
      const cell = cellAt("", MINUTE_MS, at, "");
      if (cell === null) return;
      cell.row.count += count;
      cell.row.errors += errors;
    },
    flush(): void {
      for (const { row, counts } of changed) {
        const pairs: number[] = [];
        for (let step = 0; step < MAX_STEPS; step++)
          for (let left = counts[step] ?? 0; left > 0; left -= MAX_STEP_COUNT)
            pairs.push(step, Math.min(left, MAX_STEP_COUNT));
        row.steps = new Uint8Array(new Uint16Array(pairs).buffer);
        write.run(row);
      }
      changed.clear();
      if (cached.size > MAX_CACHED_CELLS) forget();
    },
  };
}

/** Of a step in one pair; where there are more, the step comes again. */
const MAX_STEP_COUNT = 65_535;

/** Pairs of a step and a count. */
function stepPairs(steps: Uint8Array): Uint16Array {
  return new Uint16Array(steps.slice().buffer); // a copy begins at an even address
}

// -- Sessions

type SessionRow = {
  id: string;
  retry: string;
  parent_id: string | null;
  tokens: number | null;
  cost: number | null;
  info: string;
} & Record<
  | "started_at"
  | "last_event_at"
  | "last_activity_at"
  | "last_end_at"
  | "last_model_at"
  | "retried_at"
  | "event_count"
  | "tool_count"
  | "agent_count"
  | "error_count"
  | "session_errors"
  | "is_excused"
  | "turn_count"
  | "worked_ms"
  | "turn_started_at"
  | "cut_at"
  | "is_cut_end"
  | "model_tokens"
  | "metered_spans"
  | "model_nanodollars"
  | "priced_spans"
  | "is_over",
  number
>;

/** When each fact was said, and what: `{"title": [1767265200000, "Fix the bug"]}`. */
type Facts = Record<string, [at: number, value: unknown]>;

/** Sessions whose rows are kept at hand: those that work now. */
const MAX_CACHED_SESSIONS = 1_000;

/** The rows of the sessions that a batch touches: read once, folded, and written with `flush`. */
function createSessionFold(db: Database, usage: ReturnType<typeof createUsage>) {
  const select = db.query<SessionRow, Binds>("SELECT * FROM sessions WHERE id = $id");
  const write = upsert(db, "sessions", "id");
  const hasFailedAgent =
    "EXISTS (SELECT 1 FROM spans WHERE child_session_id = $id AND kind = 'agent' AND outcome IN ('failed', 'exit'))";
  const selectExcused = db.query<{ is_excused: number }, Binds>(
    `SELECT ${hasFailedAgent} AS is_excused`,
  );
  const insert = db.query<SessionRow, Binds>(
    `INSERT INTO sessions (id, is_excused) VALUES ($id, ${hasFailedAgent}) RETURNING *`,
  );
  const selectErrors = db.query<{ timestamp: number }, Binds>(
    "SELECT timestamp FROM events WHERE session_id = $id AND type = 'session_error'",
  );
  const turns = createTurns(db);
  const cached = new Map<string, SessionRow>();
  const touched = new Map<string, SessionRow>();
  /** Sessions that had one of these below them before. */
  const leftParents = new Set<string>();

  function find(id: string): SessionRow | null {
    const row = touched.get(id) ?? cached.get(id) ?? select.get({ id });
    if (row !== null) touched.set(id, row);
    return row;
  }

  function open(id: string): SessionRow {
    const row = find(id) ?? insert.get({ id });
    if (row === null) throw new Error("a row that was inserted isn't there");
    touched.set(id, row);
    return row;
  }

  return {
    touched,
    leftParents,
    open,
    startOf: (id: string) => (cached.get(id) ?? select.get({ id }))?.started_at ?? null,
    /** One more event of its session. */
    add(event: TelemetryEvent): void {
      const { type, timestamp: at } = event;
      const row = open(event.session_id);
      row.event_count++;
      row.started_at = Math.min(row.started_at, at);
      row.last_event_at = Math.max(row.last_event_at, at);
      if (type === "session_end") {
        row.last_end_at = Math.max(row.last_end_at, at);
        turns.cut(row, at, 1);
      } else if (type !== "session_update") {
        row.last_activity_at = Math.max(row.last_activity_at, at);
        if (type === "turn_start") turns.cut(row, at, 0);
        turns.add(row, at);
      }
      if (event.half?.kind === "model") row.last_model_at = Math.max(row.last_model_at, at);
      if (type === "retry" && at >= row.retried_at) {
        if (at > row.retried_at || event.data > row.retry) row.retry = event.data;
        row.retried_at = at;
      }
      if (event.facts !== null) addFacts(row, event.facts, at);
      let errors = 0;
      if (type === "session_error") {
        row.session_errors++;
        errors = 1 - row.is_excused;
      } else if (event.failed && HALVES[type] === undefined) {
        row.error_count++;
        errors = 1;
      }
      usage.addActivity(at, 1, errors);
    },
    /** @param sign -1 takes back what was added before */
    addSpan(row: SessionRow, part: Contribution, { nanodollars, tokens }: SpanRow, sign: 1 | -1) {
      if (part.kind === "tool") row.tool_count += sign;
      if (part.kind === "agent") row.agent_count += sign * part.count;
      row.error_count += sign * part.errors;
      row.model_tokens += sign * part.tokens;
      row.model_nanodollars += sign * part.nanodollars;
      if (tokens !== null) row.metered_spans += sign;
      if (nanodollars !== null) row.priced_spans += sign;
    },
    /** A session's own errors are no others than its agent's, where that one failed. */
    excuse(id: string): void {
      const row = find(id);
      const is_excused = selectExcused.get({ id })?.is_excused ?? 0;
      if (row === null || row.is_excused === is_excused) return;
      row.is_excused = is_excused;
      for (const { timestamp } of selectErrors.all({ id }))
        usage.addActivity(timestamp, 0, is_excused ? -1 : 1);
    },
    flush(): void {
      for (const row of touched.values()) {
        const facts: Facts = row.info === "{}" ? {} : JSON.parse(row.info);
        row.tokens = tokenCount(facts.tokens?.[1]) ?? (row.metered_spans ? row.model_tokens : null);
        row.cost =
          numberOrNull(facts.cost?.[1]) ?? (row.priced_spans ? row.model_nanodollars / 1e9 : null);
        const parent = textOrNull(facts.parent_session_id?.[1]);
        if (row.parent_id !== null && row.parent_id !== parent) leftParents.add(row.parent_id);
        row.parent_id = parent;
        write.run(row);
        cached.set(row.id, row);
      }
      if (cached.size > MAX_CACHED_SESSIONS) cached.clear();
    },
    /** The batch is over. @param isUndone the rows are not as they were written, or as they are at hand */
    settle(isUndone: boolean): void {
      if (isUndone) cached.clear();
      touched.clear();
      leftParents.clear();
    },
  };
}

/** The newest value of each fact; at the same time the greater JSON text, so that order doesn't matter. */
function addFacts(row: SessionRow, said: Record<string, unknown>, at: number): void {
  const facts: Facts = JSON.parse(row.info);
  for (const [name, value] of Object.entries(said)) {
    const [since, known] = facts[name] ?? [-1, null];
    if (at > since || (at === since && JSON.stringify(value) > JSON.stringify(known)))
      facts[name] = [at, value];
  }
  const sorted = Object.entries(facts).sort(([a], [b]) => (a < b ? -1 : 1));
  row.info = JSON.stringify(Object.fromEntries(sorted));
}

// -- Turns: a session's time, cut by each session_end and turn_start

/** What was done between two cuts; 0: nothing. */
type Piece = { first_at: number; last_at: number };
/** Activity at the time of an end is before it; at that of a start, after it. */
type Cut = { at: number; is_end: number };

const NOTHING_DONE: Piece = { first_at: 0, last_at: 0 };
const isBefore = (at: number, cut: Cut) => at < cut.at || (at === cut.at && cut.is_end === 1);

/**
 * Keeps `turn_count` and `worked_ms` of a session up to its latest cut in its row, and each piece
 * before a cut in a row of its own, so that what comes late finds its piece. In the order of time
 * only a cut writes.
 */
function createTurns(db: Database) {
  const selectNext = db.query<Cut & Piece, Binds>(
    `SELECT * FROM turns WHERE session_id = $session_id AND (at, is_end) >= ($at, $is_end)
     ORDER BY at, is_end LIMIT 1`,
  );
  const write = upsert(db, "turns", "session_id, at, is_end");
  // The + leads to the index on timestamp: what is looked for is near, others' events are few.
  const activity = (aggregate: "MIN" | "MAX") =>
    db.query<{ at: number | null }, Binds>(
      `SELECT ${aggregate}(timestamp) AS at FROM events
       WHERE +session_id = $session_id AND timestamp >= $from AND timestamp <= $to
         AND type NOT IN ('session_end', 'session_update')`,
    );
  const selectFirst = activity("MIN");
  const selectLast = activity("MAX");

  function count(row: SessionRow, cut: Cut, { first_at, last_at }: Piece, sign: 1 | -1): void {
    if (first_at === 0) return;
    row.turn_count += sign;
    row.worked_ms += sign * ((cut.is_end ? cut.at : last_at) - first_at);
  }

  function split(session_id: string, cut: Cut, piece: Piece): [before: Piece, after: Piece] {
    const { first_at, last_at } = piece;
    if (first_at === 0 || isBefore(last_at, cut)) return [{ first_at, last_at }, NOTHING_DONE];
    if (!isBefore(first_at, cut)) return [NOTHING_DONE, { first_at, last_at }];
    const end = cut.is_end ? cut.at : cut.at - 1;
    const last = selectLast.get({ session_id, from: first_at, to: end })?.at;
    const first = selectFirst.get({ session_id, from: end + 1, to: last_at })?.at;
    return [
      { first_at, last_at: last ?? first_at },
      { first_at: first ?? last_at, last_at },
    ];
  }

  return {
    /** Something was done at `at`; `row.last_activity_at` has it already. */
    add(row: SessionRow, at: number): void {
      if (!isBefore(at, { at: row.cut_at, is_end: row.is_cut_end })) {
        row.turn_started_at = Math.min(row.turn_started_at || at, at);
        return;
      }
      const found = selectNext.get({ session_id: row.id, at, is_end: 1 });
      if (found === null || (at >= found.first_at && at <= found.last_at)) return;
      const next = {
        first_at: Math.min(found.first_at || at, at),
        last_at: Math.max(found.last_at, at),
      };
      write.run({ session_id: row.id, at: found.at, is_end: found.is_end, ...next });
      count(row, found, found, -1);
      count(row, found, next, 1);
    },
    cut(row: SessionRow, at: number, is_end: number): void {
      const cut = { at, is_end };
      const session_id = row.id;
      const next = selectNext.get({ session_id, ...cut });
      if (next?.at === at && next.is_end === is_end) return;
      const open = {
        first_at: row.turn_started_at,
        last_at: row.turn_started_at && row.last_activity_at,
      };
      const [before, after] = split(session_id, cut, next ?? open);
      write.run({ session_id, ...cut, ...before });
      count(row, cut, before, 1);
      if (next === null) {
        row.cut_at = at;
        row.is_cut_end = is_end;
        row.turn_started_at = after.first_at;
        return;
      }
      write.run({ session_id, at: next.at, is_end: next.is_end, ...after });
      count(row, next, next, -1);
      count(row, next, after, 1);
    },
  };
}

// -- Spans: which events of the log belong together

/** Keys at hand that the table hasn't: written at once they touch few pages, in some milliseconds. */
const MAX_RECENT_KEYS = 2_048;
/** Completions without a call_id that one late event can pair anew: more would hold others up. */
const MAX_PAIRED_ANEW = 1_000;

type Key = Pick<SpanRow, "session_id" | "kind" | "key">;

function keyText({ session_id, kind, key }: Key): string {
  return `${session_id}\0${key}\0${kind}`;
}

/** Which span a call's events belong to: the table of keys, and before it those of lately. */
function createKeys(db: Database) {
  const select = db.query<{ id: number }, Binds>(
    "SELECT id FROM span_keys WHERE session_id = $session_id AND key = $key AND kind = $kind",
  );
  const insert = db.query<unknown, Binds>(
    "INSERT OR REPLACE INTO span_keys VALUES ($session_id, $key, $kind, $id)",
  );
  const setKeyedFrom = db.query<unknown, Binds>("UPDATE watermark SET keyed_from = $id + 1");
  const selectRecent = db.query<Key & { id: number }, []>(
    `SELECT session_id, key, kind, id FROM spans
     WHERE id >= (SELECT keyed_from FROM watermark) AND key IS NOT NULL ORDER BY id`,
  );
  const recent = new Map<string, Key & { id: number }>();
  for (const row of selectRecent.iterate()) recent.set(keyText(row), row);
  let added: string[] = [];
  let isWritten = false;

  return {
    /** The id of its span, which may be deleted; null: it has none. */
    find({ session_id, kind, key }: Key): number | null {
      const known = recent.get(keyText({ session_id, kind, key }));
      return known?.id ?? select.get({ session_id, kind, key })?.id ?? null;
    },
    add({ session_id, kind, key, id }: SpanRow, text: string): void {
      recent.set(text, { session_id, kind, key, id });
      added.push(text);
    },
    /** In the transaction of what was added. */
    flush(): void {
      if (recent.size < MAX_RECENT_KEYS) return;
      let id = 0;
      for (const text of [...recent.keys()].sort()) {
        const row = recent.get(text);
        if (row === undefined) continue;
        insert.run(row);
        id = Math.max(id, row.id);
      }
      setKeyedFrom.run({ id });
      isWritten = true;
    },
    /** The transaction is over. @param isUndone what was added in it is not there */
    settle(isUndone: boolean): void {
      if (isUndone) for (const text of added) recent.delete(text);
      else if (isWritten) recent.clear();
      isWritten = false;
      added = [];
    },
  };
}

/** A span that a batch touches. */
type TouchedSpan = {
  /** As it was before the batch; null: it wasn't. */
  old: SpanRow | null;
  row: SpanRow;
  halves: Halves;
  isToldByAgent: boolean;
};

/** Agents of one type in one session, to be paired with the completions since `from`. */
type Group = { session_id: string; name: string; from: number };

function createSpanFold(
  db: Database,
  keys: ReturnType<typeof createKeys>,
  sessions: ReturnType<typeof createSessionFold>,
  usage: ReturnType<typeof createUsage>,
) {
  const selectById = db.query<SpanRow, Binds>("SELECT * FROM spans WHERE id = $id");
  const write = upsert(db, "spans", "id");
  const selectLogged = db.query<LogRow, Binds>("SELECT * FROM events WHERE id = $id");
  const selectEnds = db.query<LogRow, Binds>(
    `SELECT * FROM events
     WHERE session_id = $session_id AND name = $name AND timestamp >= $from AND type = 'agent_complete' AND call_id IS NULL
     ORDER BY timestamp, data LIMIT $limit`,
  );
  const agents = `SELECT * FROM spans
     WHERE session_id = $session_id AND name = $name AND kind = 'agent' AND start_id IS NOT NULL`;
  const selectPaired = db.query<SpanRow, Binds>(`${agents} AND ended_at >= $from AND is_paired`);
  const selectUnpaired = db.query<SpanRow, Binds>(
    `${agents} AND ended_at IS NULL
     ORDER BY started_at, (SELECT data FROM events WHERE events.id = start_id) LIMIT $limit`,
  );
  const touched = new Map<string | number, TouchedSpan>();
  const groups = new Map<string, Group>();

  function storedHalf(id: number | null): StoredHalf | null {
    const row = id === null ? null : selectLogged.get({ id });
    const half = row === null ? null : restoreEvent(row).half;
    return row === null || half === null ? null : { ...half, id: row.id, data: row.data };
  }

  /** The halves of a row that has one: they are what the row says, and the log need not be read. */
  function onlyHalf(row: SpanRow): Halves {
    const side = row.start_id === null ? "end" : "start";
    const id = row.start_id ?? row.end_id ?? row.id;
    const half = { ...row, side, id, at: row.ended_at ?? row.started_at, data: "" } as const;
    return side === "start" ? { start: half, end: null } : { start: null, end: half };
  }

  function touch(row: SpanRow): TouchedSpan {
    const mapKey = row.key === null ? row.id : keyText(row);
    let span = touched.get(mapKey);
    if (span === undefined) {
      const halves =
        row.start_id === null || row.end_id === null
          ? onlyHalf(row)
          : { start: storedHalf(row.start_id), end: row.is_paired ? null : storedHalf(row.end_id) };
      span = { old: row, row, halves, isToldByAgent: false };
      touched.set(mapKey, span);
    }
    return span;
  }

  function findByKey(key: Key, text = keyText(key)): TouchedSpan | null {
    const known = touched.get(text);
    if (known !== undefined) return known;
    const id = keys.find(key);
    const row = id === null ? null : selectById.get({ id });
    return row === null ? null : touch(row);
  }

  function pairAnew(session_id: string, name: string | null, from: number): void {
    if (name === null) return;
    const key = `${session_id}\0${name}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, { session_id, name, from });
    else group.from = Math.min(group.from, from);
  }

  /** Its agents, in the order of their starts, get the completions since `from`, in theirs. */
  function pair({ session_id, name, from }: Group): void {
    const ends = selectEnds.all({ session_id, name, from, limit: MAX_PAIRED_ANEW });
    const candidates = [
      ...selectPaired.all({ session_id, name, from }),
      ...selectUnpaired.all({ session_id, name, limit: ends.length }),
    ].map((row) => {
      const span = touch(row);
      const start = span.halves.start?.data ? span.halves.start : storedHalf(row.start_id);
      return { span, start, at: start?.at ?? row.started_at, data: start?.data ?? "" };
    });
    candidates.sort((a, b) => a.at - b.at || (a.data < b.data ? -1 : 1));
    let next = 0;
    for (const end of ends) {
      const agent = candidates[next];
      if (agent === undefined) break;
      if (agent.at > end.timestamp) continue; // it was there before any of them: nobody's
      next++;
      const half = restoreEvent(end).half;
      const { span, start } = agent;
      if (half === null || span.row.end_id === end.id) continue;
      span.row = spanRow(span.row, { start, end: { ...half, id: end.id, data: end.data } }, 1);
      write.run(span.row);
    }
    for (const { span, start } of candidates.slice(next)) {
      if (!span.row.is_paired) continue;
      span.row = spanRow(span.row, { start, end: null });
      write.run(span.row);
    }
  }

  function move(old: SpanRow | null, row: SpanRow, wasTold: boolean, isTold: boolean): void {
    if (old === row && wasTold === isTold) return;
    const session = sessions.open(row.session_id);
    for (const sign of [-1, 1] as const) {
      const span = sign < 0 ? old : row;
      if (span === null) continue;
      const part = contribution(span, sign < 0 ? wasTold : isTold);
      sessions.addSpan(session, part, span, sign);
      usage.add(part, sign);
      if (part.errors > 0) usage.addActivity(part.at, 0, sign * part.errors);
    }
  }

  return {
    touched,
    /** One more event that is in the log under `id`, with its half. */
    add(event: TelemetryEvent, half: Half, id: number): void {
      const { session_id, data, isToldByAgent = false } = event;
      const { kind, key } = half;
      if (key === null && kind === "agent" && half.side === "end") {
        pairAnew(session_id, half.name, half.at);
        return;
      }
      const stored: StoredHalf = { ...half, id, data };
      const text = key === null ? "" : keyText({ session_id, kind, key });
      const known = key === null ? null : findByKey({ session_id, kind, key }, text);
      if (known === null) {
        const halves = merge({ start: null, end: null }, stored);
        const row = spanRow({ id, session_id, kind, key }, halves);
        touched.set(text || id, { old: null, row, halves, isToldByAgent });
        if (text !== "") keys.add(row, text);
        return;
      }
      const same = known.halves[half.side];
      if (same !== null && same.data === "") same.data = storedHalf(same.id)?.data ?? "";
      known.halves = merge(known.halves, stored);
      known.row = spanRow(known.row, known.halves);
    },
    /** Writes what was added, pairs what is to be paired, and moves the counts from old to new. */
    settle(): void {
      for (const { old, row } of touched.values()) {
        if (row === old) continue;
        write.run(row);
        if (row.kind !== "agent") continue;
        if (old !== null && isOpenToPairing(old))
          pairAnew(old.session_id, old.name, old.started_at);
        if (isOpenToPairing(row)) pairAnew(row.session_id, row.name, row.started_at);
      }
      for (const group of groups.values()) pair(group);
      // One cause, one error: the call of an agent that failed. Its other half may be long stored.
      for (const { old, row } of [...touched.values()])
        if (row.kind === "agent" && row.key !== null && hasErred(old) !== hasErred(row))
          findByKey({ ...row, kind: "tool" });
      const children = new Set<string>();
      for (const { old, row, isToldByAgent } of touched.values()) {
        const isError = hasErred(old) || hasErred(row);
        const agent =
          isError && row.kind === "tool" && row.key !== null
            ? findByKey({ ...row, kind: "agent" })
            : null;
        move(old, row, hasErred(agent?.old ?? null), isToldByAgent || hasErred(agent?.row ?? null));
        if (isError && old?.child_session_id) children.add(old.child_session_id);
        if (isError && row.child_session_id) children.add(row.child_session_id);
      }
      for (const id of children) sessions.excuse(id);
    },
    clear(): void {
      touched.clear();
      groups.clear();
    },
  };
}

// -- The writer

/** What became of one post: the ids of its events, in order, and how many rows were new. */
export type Receipt = { ids: number[]; stored: number };

/** The rows that a batch changed, beside those of the parents of its sessions. */
export type Changed = {
  sessionIds: Set<string>;
  spanIds: Set<number>;
  /** Sessions in which what is open may be told as over, or as going on again. */
  turnedIds: Set<string>;
};

/** Events in one transaction of `foldAnew`, and how often it says how far it is. */
const FOLDED_ROWS = 2_000;
const PROGRESS_MS = 2 * SECOND_MS;

function createWriter(db: Database, keys: ReturnType<typeof createKeys>) {
  const insertEvent = db.query<unknown, Binds>(
    `INSERT INTO events (client_id, session_id, type, timestamp, name, call_id, duration_ms, failed, data)
     VALUES ($client_id, $session_id, $type, $timestamp, $name, $call_id, $duration_ms, $failed, $data)
     ON CONFLICT (client_id, session_id) WHERE client_id IS NOT NULL DO NOTHING`,
  );
  const selectByClientId = db.query<{ id: number }, Binds>(
    "SELECT id FROM events WHERE client_id = $client_id AND session_id = $session_id",
  );
  const selectExported = db.query<{ id: number }, Binds>(
    "SELECT id FROM events WHERE id = $id AND session_id = $session_id",
  );
  const usage = createUsage(db);
  const sessions = createSessionFold(db, usage);
  const spans = createSpanFold(db, keys, sessions, usage);

  /** Folds logged events: the same whether they come from a post or from the log. */
  function fold(events: (TelemetryEvent & { id: number })[]): Changed {
    const before = new Map<string, number>();
    const turnedIds = new Set<string>();
    for (const event of events) {
      const { session_id } = event;
      if (!before.has(session_id)) before.set(session_id, sessions.open(session_id).last_event_at);
      if (event.type === "session_end") turnedIds.add(session_id);
      sessions.add(event);
      if (event.half !== null) spans.add(event, event.half, event.id);
    }
    spans.settle();
    sessions.flush();
    usage.flush();
    keys.flush();
    for (const [id, at] of before)
      if ((sessions.touched.get(id)?.last_event_at ?? 0) - at >= STALE_MS) turnedIds.add(id);
    const spanIds = new Set<number>();
    for (const { old, row } of spans.touched.values()) if (row !== old) spanIds.add(row.id);
    const sessionIds = new Set([...sessions.touched.keys(), ...sessions.leftParents]);
    sessions.settle(false);
    spans.clear();
    return { sessionIds, spanIds, turnedIds };
  }

  /** After a transaction that was undone, or rows that were deleted. */
  function forget(): void {
    sessions.settle(true);
    spans.clear();
    usage.forget();
    keys.settle(true);
  }

  /** @throws what `step` throws; then nothing of it is there */
  function commit<Result>(step: () => Result): Result {
    try {
      const result = db.transaction(step).immediate();
      keys.settle(false);
      return result;
    } catch (error) {
      forget();
      throw error;
    }
  }

  function insert(event: TelemetryEvent, added: (TelemetryEvent & StoredEvent)[]): number {
    const { client_id, session_id, type, timestamp, name, call_id, duration_ms } = event;
    const { exported_id, failed, data, implied } = event;
    const known = exported_id === null ? null : selectExported.get({ id: exported_id, session_id });
    if (known !== null) return known.id;
    const { changes, lastInsertRowid } = insertEvent.run({
      client_id,
      session_id,
      type,
      timestamp,
      name,
      call_id,
      duration_ms,
      failed,
      data,
    });
    if (changes === 0) return selectByClientId.get({ client_id, session_id })?.id ?? 0;
    const id = Number(lastInsertRowid);
    added.push(Object.assign(event, { id, started_at: null }));
    if (implied) insert(implied, added);
    return id;
  }

  return {
    sessions,
    commit,
    forget,
    /** In a transaction: an agent of this session was deleted, and may have failed. */
    excuse(id: string): void {
      sessions.excuse(id);
      sessions.flush();
      sessions.settle(false);
      usage.flush();
    },
    /**
     * Stores the events of `posts` in one transaction: all, or none and the error of SQLite. An event
     * whose id is known in its session adds nothing; it is answered with the id first given.
     *
     * @returns a receipt per post, the events that were new, and what they changed
     */
    append: (posts: TelemetryEvent[][]) =>
      commit(() => {
        const added: (TelemetryEvent & StoredEvent)[] = [];
        const receipts = posts.map((events): Receipt => {
          const before = added.length;
          const ids = events.map((event) => insert(event, added));
          return { ids, stored: added.length - before };
        });
        const changed = fold(added);
        for (const event of added)
          if (event.type === "session_end") event.started_at = sessions.startOf(event.session_id);
        return { receipts, added: added as StoredEvent[], changed };
      }),
    /** Folds what an earlier version has logged, in steps that a killed process need not repeat. */
    foldAnew(log: Pick<Log, "info">): void {
      const next = db.query<{ next_id: number }, []>("SELECT next_id FROM unfolded");
      const page = db.query<LogRow, Binds>(
        "SELECT * FROM events WHERE id >= $from ORDER BY id LIMIT $limit",
      );
      const setNext = db.query<unknown, Binds>("UPDATE unfolded SET next_id = $id + 1");
      const count = (where: string) =>
        db.query<{ n: number }, []>(`SELECT COUNT(*) AS n FROM events ${where}`).get()?.n ?? 0;
      if (next.get() === null) return;
      const total = count("");
      let done = count("WHERE id < (SELECT next_id FROM unfolded)");
      for (let rows = 1, saidAt = -PROGRESS_MS; rows > 0; done += rows) {
        if (performance.now() - saidAt >= PROGRESS_MS) {
          saidAt = performance.now();
          log.info(`new schema: ${done} of ${total} events folded`);
        }
        rows = commit(() => {
          const events = page.all({ from: next.get()?.next_id ?? 0, limit: FOLDED_ROWS });
          fold(events.map((row) => Object.assign(restoreEvent(row), { id: row.id })));
          const last = events.at(-1);
          if (last === undefined) db.run("DELETE FROM unfolded");
          else setNext.run({ id: last.id });
          return events.length;
        });
      }
      log.info(`new schema: all ${total} events folded`);
    },
  };
}

// -- The reader

/** Which events, and from where: ids are exclusive, null means any. */
export type EventFilter = {
  after: number | null;
  before: number | null;
  sessionId: string | null;
  type: EventType | null;
};

/** `before`: a span's id; `isOpen`: what runs now alone. */
type SpanFilter = { sessionId: string | null; before: number | null; isOpen: boolean };

export type Status = "active" | "completed" | "stale";
type Range = { after: number; before: number };
type ListedSession = Pick<SessionRow, "id" | "last_event_at">;
type Item<Items> = Items extends AsyncGenerator<infer One> ? One : never;

/** What a session does now: its newest open call, or the retry that it waits for. */
export type Activeness = {
  kind: SpanKind | "retry";
  name: string | null;
  text: string | null;
  started_at: string;
  attempt?: number | null;
  retry_at?: string | null;
};

type Reader = ReturnType<typeof createReader>;
/** The rows that the routes and the stream give; their fields are told in the README. */
export type Session = ReturnType<Reader["toSession"]>;
export type Span = ReturnType<Reader["toSpan"]>;
export type SessionDetails = NonNullable<Awaited<ReturnType<Reader["findSession"]>>>;
export type ToolCall = Item<SessionDetails["tools"]>;
export type AgentRun = Item<SessionDetails["agents"]>;
export type UsageStats = Item<ReturnType<Reader["usageStats"]>>;
export type Activity = ReturnType<Reader["activity"]>[number];
export type Overview = Awaited<ReturnType<Reader["overview"]>>;

/** Characters of data in one answer that is made whole. */
const MAX_ANSWER_CHARS = 4 * 1024 * 1024;
/** The types that make up most of the log: they have no index, see the schema. */
const BULK_TYPES = new Set<string>(["tool_use", "tool_start", "model_request", "model_response"]);
/** So worded that SQLite sees that its partial index serves. */
const INDEXED_TYPE =
  "type = $type AND type <> 'tool_use' AND type <> 'tool_start' AND type <> 'model_request' AND type <> 'model_response'";
const SUMMED = ["count", "timed", "total_ms", "waited_ms", "errors"] as const;
const SQL_ORDER = { "oldest first": "ASC", "newest first": "DESC" } satisfies Record<Order, string>;

function createReader(db: Database, keys: ReturnType<typeof createKeys>) {
  const sql = <Row>(text: string) => db.query<Row, Binds>(text);
  const selectHead = sql<{ seq: number }>("SELECT seq FROM sqlite_sequence WHERE name = 'events'");
  const selectSession = sql<SessionRow>("SELECT * FROM sessions WHERE id = $id");
  const selectSpan = sql<SpanRow>("SELECT * FROM spans WHERE id = $id");
  const selectEvent = sql<StoredEvent>("SELECT * FROM events WHERE id = $id");
  const head = () => selectHead.get({})?.seq ?? 0;

  // -- Sessions

  // Begun after the session's latest end: else it was cancelled by that.
  const selectOpen = (order: string) =>
    sql<SpanRow>(`SELECT * FROM spans
     WHERE session_id = $id AND kind = $kind AND ended_at IS NULL AND started_at > $last_end_at
     ORDER BY ${order} LIMIT 1`);
  const selectOldestOpen = selectOpen("started_at");
  const selectNewestOpen = selectOpen("started_at DESC, key DESC, name DESC, text DESC");
  const selectChild = sql("SELECT 1 FROM sessions WHERE parent_id = $id LIMIT 1");
  const family = `WITH RECURSIVE family (id, generation) AS (
       VALUES ($id, 0)
       UNION SELECT sessions.id, generation + 1 FROM family JOIN sessions ON parent_id = family.id
       WHERE generation < ${MAX_GENERATIONS})`;
  const selectTotals = sql<{ tokens: number | null; cost: number | null }>(`${family}
     SELECT SUM(tokens) AS tokens, SUM(cost) AS cost FROM sessions WHERE id IN (SELECT id FROM family)`);
  const byActivity = `AND (last_event_at, id) < ($before, $before_id)`;
  const newestFirst = `ORDER BY last_event_at DESC, id DESC LIMIT ${SLICE_ROWS}`;
  const selectFamily = sql<ListedSession>(`${family} SELECT id, last_event_at FROM sessions
     WHERE id IN (SELECT id FROM family) ${byActivity} ${newestFirst}`);
  // Each half in the order of the index, which SQLite merges; $is_over of null: both.
  const latest = (is_over: 0 | 1) => `SELECT id, last_event_at FROM sessions
     WHERE is_over = ${is_over} AND $is_over IS NOT ${1 - is_over} AND last_event_at > $since ${byActivity}`;
  const selectLatest = sql<ListedSession>(`${latest(0)} UNION ALL ${latest(1)} ${newestFirst}`);
  const selectStaleSince = sql<{ id: string }>(`SELECT id FROM sessions
     WHERE is_over = 0 AND last_event_at > $from AND last_event_at <= $to
     ORDER BY last_event_at DESC LIMIT ${SLICE_ROWS}`);

  const staleAt = (row: SessionRow, isOpen: boolean) =>
    row.last_event_at + (isOpen ? STALE_OPEN_MS : STALE_MS);

  function toSession(row: SessionRow, now: number) {
    const { id, last_end_at, turn_started_at, tool_count, agent_count, event_count } = row;
    const calls = SPAN_KINDS.flatMap(
      (kind) => selectNewestOpen.get({ id, kind, last_end_at }) ?? [],
    );
    const isStale = now >= staleAt(row, calls.length > 0);
    const status: Status = row.is_over ? "completed" : isStale ? "stale" : "active";
    const isActive = status === "active";
    const wait = isActive ? selectOldestOpen.get({ id, kind: "wait", last_end_at }) : null;
    const { parent_session_id: _, ...facts }: Facts = JSON.parse(row.info);
    const total = selectChild.get({ id }) ? selectTotals.get({ id }) : row;
    return {
      id,
      started_at: iso(row.started_at),
      ended_at: row.is_over ? iso(last_end_at) : null,
      status,
      /** Those that run are counted too. */
      ...{ tool_count, agent_count, event_count },
      error_count: row.error_count + (row.is_excused ? 0 : row.session_errors),
      last_event_at: iso(row.last_event_at),
      /** Since when it waits for the person; null: it doesn't. */
      waiting_since: wait && iso(wait.started_at),
      parent_session_id: row.parent_id,
      info: Object.fromEntries(Object.entries(facts).map(([name, [, value]]) => [name, value])),
      now: isActive ? activeness(row, calls) : null,
      /** US dollars; total: with all below it; null: not known. */
      cost: { own: row.cost, total: dollars(total?.cost ?? null) },
      tokens: { own: row.tokens, total: total?.tokens ?? null },
      turn_count: row.turn_count + (turn_started_at ? 1 : 0),
      /** Within turns, to the latest event. */
      worked_ms: row.worked_ms + (turn_started_at && row.last_activity_at - turn_started_at),
    };
  }

  /** The latest sessions by activity, or (`sessionId`) of one with those below it; `status`: those alone. */
  async function* listSessions(
    { status, sessionId }: { status: Status | "waiting" | null; sessionId: string | null },
    limit: number,
    now: number,
  ) {
    const isLive = status === "active" || status === "waiting";
    const from = {
      id: sessionId,
      is_over: status && (status === "completed" ? 1 : 0),
      since: isLive ? now - STALE_OPEN_MS : -1,
      before: status === "stale" ? now - STALE_MS + 1 : Number.MAX_SAFE_INTEGER,
      before_id: "",
    };
    for (let left = limit; ; await nextSlice()) {
      const rows = (sessionId === null ? selectLatest : selectFamily).all(from);
      for (const { id } of rows) {
        const row = selectSession.get({ id });
        if (row === null) continue; // deleted meanwhile
        const session = toSession(row, now);
        const isWaiting = status === "waiting" && session.waiting_since !== null;
        if (status !== null && status !== session.status && !isWaiting) continue;
        yield session;
        if (--left === 0) return;
      }
      const last = rows.at(-1);
      if (last === undefined || rows.length < SLICE_ROWS) return;
      [from.before, from.before_id] = [last.last_event_at, last.id];
    }
  }

  /** What the head of the page says. Sessions whose parent is known are not counted: they are its agents. */
  async function overview(now: number) {
    let active_sessions = 0;
    let waiting = 0;
    const active = listSessions({ status: "active", sessionId: null }, Infinity, now);
    for await (const session of active) {
      const parent = session.parent_session_id;
      if (parent === null || selectSession.get({ id: parent }) === null) active_sessions++;
      if (session.waiting_since !== null) waiting++;
    }
    const running_agents = countAgents.get({ since: now - STALE_OPEN_MS })?.count ?? 0;
    const lastHour = activity(now - HOUR_MS, now + MINUTE_MS);
    const errors_last_hour = lastHour.reduce((sum, { error_count }) => sum + error_count, 0);
    return { active_sessions, waiting, running_agents, errors_last_hour, activity: lastHour };
  }

  // -- Spans

  const selectEndAfter = sql<{ at: number }>(`SELECT at FROM turns
     WHERE session_id = $session_id AND at >= $started_at AND is_end = 1 ORDER BY at LIMIT 1`);
  const selectOpenOf = sql<{ id: number }>(`SELECT id FROM spans
     WHERE session_id = $id AND ended_at IS NULL ORDER BY id DESC LIMIT ${MAX_RETOLD}`);
  const running = `FROM sessions JOIN spans ON session_id = sessions.id
     WHERE is_over = 0 AND last_event_at > $since AND ended_at IS NULL AND spans.started_at > last_end_at`;
  const selectRunning = sql<SpanRow>(`SELECT spans.* ${running}
     AND ($session_id IS NULL OR session_id = $session_id) AND spans.id < $before
     ORDER BY spans.id DESC LIMIT $limit`);
  const countAgents = sql<{ count: number }>(`SELECT COUNT(*) AS count ${running}
     AND kind = 'agent' AND start_id IS NOT NULL`);
  const selectNewest = sql<SpanRow>("SELECT * FROM spans WHERE id < $before ORDER BY id DESC");
  const selectSpansOf = sql<SpanRow>(`SELECT spans.*
     FROM events CROSS JOIN spans ON spans.id = events.id
     WHERE events.session_id = $session_id AND events.id > $after AND events.id < $before
     ORDER BY events.id DESC`);

  /** When an open span's session ended after it began, or became stale; null: it runs. */
  function whenCancelled({ session_id, started_at }: SpanRow, now: number): number | null {
    const session = selectSession.get({ id: session_id });
    if (session === null) return null;
    if (session.last_end_at >= started_at)
      return selectEndAfter.get({ session_id, started_at })?.at ?? null;
    const at = staleAt(session, true);
    return now >= at ? at : null;
  }

  function toSpan(row: SpanRow, now: number) {
    const { id, session_id, kind, started_at, waited_ms, text, error, child_session_id } = row;
    const cancelled = row.ended_at === null ? whenCancelled(row, now) : null;
    const ended_at = row.ended_at ?? cancelled;
    const said: Record<string, unknown> = JSON.parse(row.attributes ?? "{}");
    const { tokens = null, waiting_call_id, ...attributes } = said;
    return {
      ...{ id, session_id, kind },
      name: row.name ?? UNNAMED[kind],
      call_id: kind === "wait" ? textOrNull(waiting_call_id) : row.key,
      started_at: iso(started_at),
      /** Null: it runs. */
      ended_at: ended_at === null ? null : iso(ended_at),
      duration_ms: cancelled === null ? row.duration_ms : cancelled - started_at,
      waited_ms,
      outcome: cancelled === null ? row.outcome : "cancelled",
      ...{ text, error, child_session_id, tokens },
      cost: row.nanodollars === null ? null : row.nanodollars / 1e9,
      /** exit_code, files, provider and the like, where they were said. */
      attributes: Object.keys(attributes).length > 0 ? attributes : null,
    };
  }

  /** The newest spans, of one session or of all; at most 4 MB of text. */
  async function listSpans({ sessionId, before, isOpen }: SpanFilter, limit: number, now: number) {
    const range = { ...rangeOf({ after: null, before }), session_id: sessionId, limit };
    const { taken, take } = createTaker(limit, MAX_ANSWER_CHARS, spanChars);
    if (isOpen) take(selectRunning.iterate({ ...range, since: now - STALE_OPEN_MS }));
    else if (sessionId === null) take(selectNewest.iterate(range));
    else
      for await (const slice of slices(sessionId, "newest first", range))
        if (take(selectSpansOf.iterate({ ...range, ...slice }))) break;
    return taken.map((row) => toSpan(row, now));
  }

  // -- Events

  const isIndexed = ({ sessionId, type }: EventFilter) =>
    sessionId === null && type !== null && !BULK_TYPES.has(type);

  /** Put together from fragments: with `? IS NULL OR …` no index would be used. */
  function readEvents(filter: EventFilter, order: Order) {
    const ofSession = filter.sessionId === null ? "" : "AND session_id = $sessionId";
    // The + keeps a page of a session, and of the types that have no index, in the order of ids.
    const ofType =
      filter.type === null ? "" : `AND ${isIndexed(filter) ? INDEXED_TYPE : "+type = $type"}`;
    return sql<StoredEvent>(`SELECT id, type, session_id, timestamp, duration_ms, data,
         CASE type WHEN 'session_end' THEN
           (SELECT started_at FROM sessions WHERE sessions.id = session_id) END AS started_at
       FROM events WHERE id > $after AND id < $before ${ofSession} ${ofType}
       ORDER BY id ${SQL_ORDER[order]}`).iterate({ ...filter, ...rangeOf(filter) });
  }

  /** Stored events of `filter`, at most `limit`, or of `maxChars` characters. `done`: there are no more. */
  function page(filter: EventFilter, order: Order, limit: number, maxChars: number) {
    const { taken: events, take } = createTaker(limit, maxChars, eventChars);
    return { events, done: !take(readEvents(filter, order)) };
  }

  /** Ranges of ids (both ends exclusive) that together cover `after` to `before`, each scanned at once. */
  async function* slices(sessionId: string | null, order: Order, { after, before }: Range) {
    const isOldestFirst = order === "oldest first";
    const selectEnd = sql<{ id: number }>(`SELECT id FROM events
       WHERE id > $after AND id < $before ${sessionId === null ? "" : "AND session_id = $sessionId"}
       ORDER BY id ${SQL_ORDER[order]} LIMIT 1 OFFSET ${SLICE_SCANNED}`);
    for (; ; await nextSlice()) {
      const end = selectEnd.get({ sessionId, after, before })?.id;
      if (end === undefined) break;
      yield isOldestFirst ? { after, before: end } : { after: end, before };
      if (isOldestFirst) after = end - 1;
      else before = end + 1;
    }
    yield { after, before };
  }

  /** As `page`, for filters that may pass over much: others have their turn meanwhile. */
  async function findEvents(filter: EventFilter, order: Order, limit: number, maxChars: number) {
    if (filter.type === null || isIndexed(filter)) return page(filter, order, limit, maxChars);
    const { taken: events, take } = createTaker(limit, maxChars, eventChars);
    for await (const slice of slices(filter.sessionId, order, rangeOf(filter)))
      if (take(readEvents({ ...filter, ...slice }, order))) return { events, done: false };
    return { events, done: true };
  }

  // -- One session, whole

  /** One session; null where there is none. Its calls, oldest first, are read as they are taken. */
  async function findSession(session_id: string, now: number) {
    const stored = selectSession.get({ id: session_id });
    if (stored === null) return null;
    const session = toSession(stored, now);
    const until = head();
    const order: { id: number; kind: SpanKind; at: number }[] = [];
    for await (const slice of slices(session_id, "oldest first", { after: 0, before: until + 1 }))
      for (const row of selectSpansOf.iterate({ ...slice, session_id })) {
        const { id, kind, started_at, ended_at } = row;
        order.push({ id, kind, at: (kind === "tool" ? ended_at : null) ?? started_at });
      }
    order.sort((a, b) => a.at - b.at || a.id - b.id);

    /** What tools and agents have in common, and what was posted at their start and end. */
    async function* callsOf(kind: "tool" | "agent") {
      for (const known of order) {
        if (known.kind !== kind) continue;
        const row = selectSpan.get({ id: known.id });
        // Deleted meanwhile, or the completion of an agent that was never told of.
        if (row === null || (kind === "agent" && row.start_id === null)) continue;
        const { name, started_at, duration_ms, outcome } = toSpan(row, now);
        const start = selectEvent.get({ id: row.start_id });
        const [said, saidLast] = [dataOf(start), dataOf(selectEvent.get({ id: row.end_id }))];
        const isSure = kind === "agent" || saidLast.success === true || saidLast.outcome === "ok";
        const call = {
          ...{ id: row.id, call_id: row.key, started_at, outcome },
          duration_ms: outcome === null ? null : duration_ms,
          success: hasErred(row) ? false : row.outcome === "ok" && isSure ? true : null,
          error: saidLast.error ?? said.error ?? null,
        };
        yield { call, name, row, start, said, saidLast };
      }
    }

    async function* tools() {
      for await (const { call, name, row, said, saidLast } of callsOf("tool")) {
        const args = said.args ?? saidLast.args ?? null;
        yield {
          ...call,
          tool: name,
          /** JSON text, or the string that was posted; null: none was. */
          args: typeof args === "string" || args === null ? args : JSON.stringify(args),
          /** Of its end; while it runs, of its start. */
          timestamp: iso(row.ended_at ?? row.started_at),
          waited_ms: row.waited_ms,
        };
      }
    }

    async function* agents() {
      for await (const { call, name, row, start, said } of callsOf("agent"))
        yield {
          ...call,
          subagent_type: name,
          description: textOrNull(said.description),
          prompt: textOrNull(said.prompt),
          timestamp: iso(start?.timestamp ?? row.started_at),
          child_session_id: row.child_session_id,
          /** When its completion says; null: it runs, or its end was never posted. */
          completed_at: row.end_id === null ? null : iso(row.ended_at ?? row.started_at),
        };
    }

    /** `head`: the newest event when it was read; what came since isn't in it. */
    return { session, head: until, tools: tools(), agents: agents() };
  }

  // -- The rows of a batch

  const selectSpans = sql<SpanRow>(
    "SELECT * FROM spans WHERE id IN (SELECT value FROM json_each($ids))",
  );
  const selectLineage = sql<SessionRow>(`WITH RECURSIVE lineage (id, generation) AS (
       SELECT value, 0 FROM json_each($ids)
       UNION SELECT parent_id, generation + 1 FROM lineage JOIN sessions USING (id)
       WHERE generation < ${MAX_GENERATIONS})
     SELECT * FROM sessions WHERE id IN (SELECT id FROM lineage)`);
  const selectGroup = sql<SpanRow>(`SELECT * FROM spans
     WHERE session_id = $session_id AND name = $name AND kind = 'agent' AND start_id IS NOT NULL
       AND (ended_at IS NULL OR is_paired) LIMIT ${MAX_RETOLD}`);
  const selectParents = sql<{ id: string | null }>(`
     SELECT DISTINCT data ->> 'parent_session_id' AS id FROM events
     WHERE session_id = $session_id AND type IN ('session_start', 'session_update', 'session_end')`);

  /** These rows as they are now, and those of the sessions above, whose totals have a part in it. */
  function rowsOf({ sessionIds, spanIds, turnedIds }: Changed, now: number) {
    const sessions = selectLineage.all({ ids: JSON.stringify([...sessionIds]) });
    // A late event in a session that stays stale moves the time at which it became so.
    const stale = sessions.filter(
      (row) => now - row.last_event_at >= STALE_MS && sessionIds.has(row.id),
    );
    const turned = new Set([...turnedIds, ...stale.map(({ id }) => id)]);
    const retold = [...turned].flatMap((id) => selectOpenOf.all({ id }).map((span) => span.id));
    const spans = selectSpans.all({ ids: JSON.stringify([...spanIds, ...retold]) });
    return {
      sessions: sessions.map((row) => toSession(row, now)),
      spans: spans.map((row) => toSpan(row, now)),
    };
  }

  /** What events of the log have changed. */
  function changedBy(events: StoredEvent[]): Changed {
    const turnedIds = new Set(events.map((event) => event.session_id));
    const sessionIds = new Set(turnedIds);
    const spanIds = new Set<number>();
    const movedIds = new Set<string>();
    for (const { id, type, session_id, timestamp, data } of events) {
      const half = isEventType(type) ? halfOf(type, timestamp, JSON.parse(data)) : null;
      if (half === null) {
        if (type.startsWith("session_") && data.includes('"parent_session_id"'))
          movedIds.add(session_id);
        continue;
      }
      const { kind, key } = half;
      const span = selectSpan.get({ id: key === null ? id : keys.find({ session_id, kind, key }) });
      // Other agents of its type may have got its completion, or it theirs.
      const name = half.name ?? span?.name ?? null;
      const group = kind === "agent" ? selectGroup.all({ session_id, name }) : [];
      for (const { id, child_session_id } of span === null ? group : [span, ...group]) {
        spanIds.add(id);
        if (child_session_id !== null) sessionIds.add(child_session_id);
      }
    }
    // They may have stood under another before.
    for (const session_id of movedIds)
      for (const { id } of selectParents.all({ session_id })) if (id !== null) sessionIds.add(id);
    return { sessionIds, spanIds, turnedIds };
  }

  /** What time alone has changed: sessions that became stale after `from`, the latest of them. */
  function changedByTime(from: number, to: number): Changed {
    const sessionIds = new Set<string>();
    for (const age of [STALE_MS, STALE_OPEN_MS])
      for (const { id } of selectStaleSince.all({ from: from - age, to: to - age }))
        sessionIds.add(id);
    return { sessionIds, spanIds: new Set(), turnedIds: sessionIds };
  }

  // -- Usage

  const selectUsage = sql<UsageRow>(`SELECT * FROM usage
     WHERE kind = $kind AND period_ms = $period_ms AND start < $end AND (start, name) > ($start, $name)
     ORDER BY start, name LIMIT ${SLICE_ROWS}`);
  const selectActivity = sql<UsageRow & { error_count: number }>(`
     SELECT *, errors AS error_count FROM usage
     WHERE kind = '' AND period_ms = ${MINUTE_MS} AND start >= $from AND start < $to ORDER BY start`);

  /** Per tool, agent or model in [from, to), at whole minutes: the most frequent first. */
  async function* usageStats(kind: "tool" | "agent" | "model", from: number, to: number) {
    const sums = new Map<string, typeof NO_USAGE & { name: string; steps: number[] }>();
    for (const period of periodsOf(from, to))
      for (let [start, name] = [period.start, ""]; ; await nextSlice()) {
        const rows = selectUsage.all({ ...period, kind, start, name });
        for (const row of rows) {
          const sum = sums.get(row.name) ?? { ...NO_USAGE, name: row.name, steps: [] };
          sums.set(row.name, sum);
          for (const field of SUMMED) sum[field] += row[field];
          sum.steps.push(...stepPairs(row.steps));
        }
        const last = rows.at(-1);
        if (last === undefined || rows.length < SLICE_ROWS) break;
        ({ start, name } = last);
      }
    const sorted = [...sums.values()].filter(({ count }) => count > 0);
    sorted.sort((a, b) => b.count - a.count || (a.name < b.name ? -1 : 1));
    for (const [index, sum] of sorted.entries()) {
      if (index % SLICE_ROWS === SLICE_ROWS - 1) await nextSlice();
      const { name, count, timed, total_ms, waited_ms, errors, steps } = sum;
      /** Less what was waited for the person; within 5 %. */
      const [p50_duration_ms = null, p95_duration_ms = null] = percentiles(steps, [0.5, 0.95]);
      yield {
        ...{ name, count },
        /** Of known durations, as the total; null: none is known. */
        avg_duration_ms: timed === 0 ? null : total_ms / timed,
        total_duration_ms: total_ms,
        ...{ p50_duration_ms, p95_duration_ms, waited_ms, error_count: errors },
      };
    }
  }

  /** Events per minute in [from, to), oldest first; a minute without any has no row. */
  function activity(from: number, to: number) {
    return selectActivity
      .all({ from: from - (from % MINUTE_MS), to })
      .map(({ start, count, error_count }) => ({ timestamp: iso(start), count, error_count }));
  }

  return {
    ...{
      head,
      page,
      findEvents,
      toSession,
      listSessions,
      findSession,
      overview,
      toSpan,
      listSpans,
    },
    ...{ rowsOf, changedBy, changedByTime, usageStats, activity },
  };
}

/** Takes rows up to `limit`, or until they exceed `maxChars`: an answer is bounded whatever was posted. */
function createTaker<Row>(limit: number, maxChars: number, charsOf: (row: Row) => number) {
  const taken: Row[] = [];
  let chars = 0;
  /** @returns whether it has all that it may have */
  function take(rows: Iterable<Row>): boolean {
    for (const row of rows) {
      taken.push(row);
      chars += charsOf(row);
      if (taken.length >= limit || chars >= maxChars) return true;
    }
    return false;
  }
  return { taken, take };
}

const eventChars = ({ data }: StoredEvent) => data.length;
const spanChars = ({ text, error, attributes }: SpanRow) =>
  (text?.length ?? 0) + (error?.length ?? 0) + (attributes?.length ?? 0);

const dataOf = (event: StoredEvent | null): Record<string, unknown> =>
  JSON.parse(event?.data ?? "{}");

const rangeOf = ({ after, before }: Pick<EventFilter, "after" | "before">): Range => ({
  after: after ?? 0,
  before: before ?? Number.MAX_SAFE_INTEGER,
});

/** The fewest rows that cover [from, to): whole days, and towards its ends hours, then minutes. */
function periodsOf(from: number, to: number) {
  const floor = (at: number, period_ms: number) => at - (at % period_ms);
  const ceil = (at: number, period_ms: number) => floor(at + period_ms - 1, period_ms);
  const periods: { period_ms: number; start: number; end: number }[] = [];
  let start = floor(from, MINUTE_MS);
  const steps = [
    { period_ms: MINUTE_MS, until: ceil(start, HOUR_MS) },
    { period_ms: HOUR_MS, until: ceil(start, DAY_MS) },
    ...[DAY_MS, HOUR_MS, MINUTE_MS].map((period_ms) => ({ period_ms, until: to })),
  ];
  for (const { period_ms, until } of steps) {
    const end = floor(Math.min(until, to), period_ms);
    if (end <= start) continue;
    periods.push({ period_ms, start, end });
    start = end;
  }
  return periods;
}

function activeness(row: SessionRow, calls: SpanRow[]): Activeness | null {
  const { retried_at, last_model_at, last_end_at } = row;
  const newest = calls.toSorted((a, b) => a.started_at - b.started_at).at(-1);
  if (retried_at > Math.max(last_end_at, newest?.started_at ?? 0) && retried_at >= last_model_at) {
    const { message, attempt, retry_at }: Record<string, unknown> = JSON.parse(row.retry);
    return {
      kind: "retry",
      name: null,
      text: spanText(message),
      started_at: iso(retried_at),
      attempt: numberOrNull(attempt),
      retry_at: retry_at == null ? null : iso(timeOf(retry_at)),
    };
  }
  if (newest === undefined) return null;
  const { kind, name, text, started_at } = newest;
  return { kind, name: name ?? UNNAMED[kind], text, started_at: iso(started_at) };
}

/** Sums of dollars to the nanodollar, so that the order of adding doesn't show. */
function dollars(sum: number | null): number | null {
  return sum === null || !Number.isFinite(sum * 1e9) ? sum : Math.round(sum * 1e9) / 1e9;
}

function iso(ms: number): string {
  return new Date(ms).toISOString();
}
// -- Retention

/** Of one step, between which others have their turn. */
const PRUNE_STEP_MS = 3;
/** Events deleted at once: under a millisecond. */
const PRUNE_ROWS = 100;
const VACUUM_PAGES = 50;
/** While requests come: so that all that came meanwhile are answered before it goes on. */
const PRUNE_PAUSE_MS = 5;
/** Deletions that are told one by one to who comes back; older ones are a `reset`. */
const MAX_DELETIONS = 10_000;

/** A session of which retention took events: all, or, for now, the oldest. */
export type Deletion = {
  id: number;
  session_id: string;
  parent_id: string | null;
  last_event_id: number;
  is_whole: number;
};

function createRetention(
  db: Database,
  { sessions, commit, forget, excuse }: ReturnType<typeof createWriter>,
  keys: ReturnType<typeof createKeys>,
) {
  const sql = <Row>(text: string) => db.query<Row, Binds>(text);
  const selectExpired = sql<SessionRow>(
    "SELECT * FROM sessions WHERE is_over IN (0, 1) AND last_event_at < $cutoff LIMIT 1",
  );
  const selectLast = sql<{ id: number }>(
    `SELECT MAX(id) AS id FROM (
       SELECT id FROM events WHERE session_id = $id ORDER BY id LIMIT ${PRUNE_ROWS})`,
  );
  const selectOldest = sql<{ type: string; failed: number }>(
    "SELECT type, failed FROM events WHERE session_id = $id AND id <= $last",
  );
  const selectSpans = sql<SpanRow>(
    `SELECT spans.* FROM events CROSS JOIN spans ON spans.id = events.id
     WHERE events.session_id = $id AND events.id <= $last`,
  );
  const selectSpan = sql<SpanRow>("SELECT * FROM spans WHERE id = $id");
  const selectChildren = sql<{ child: string }>(
    `SELECT DISTINCT child_session_id AS child FROM events CROSS JOIN spans ON spans.id = events.id
     WHERE events.session_id = $id AND child_session_id IS NOT NULL`,
  );
  const deleteEvents = sql("DELETE FROM events WHERE session_id = $id AND id <= $last");
  const deleteKeys = sql("DELETE FROM span_keys WHERE session_id = $id");
  const deleteSession = sql("DELETE FROM sessions WHERE id = $id");
  const insertDeletion = sql(
    `INSERT OR REPLACE INTO deletions (session_id, parent_id, last_event_id, head, is_whole)
     SELECT $id, $parent_id, $last, seq, $is_whole FROM sqlite_sequence WHERE name = 'events'`,
  );
  const unlisted = `deletions WHERE id <= (SELECT MAX(id) FROM deletions) - ${MAX_DELETIONS}`;
  const raiseWatermark = sql(
    `UPDATE watermark
     SET event_id = MAX(watermark.event_id, gone.event_id), head = MAX(watermark.head, gone.head)
     FROM (SELECT MAX(last_event_id) AS event_id, MAX(head) AS head FROM ${unlisted}) AS gone
     WHERE gone.head IS NOT NULL`,
  );
  const forgetDeletions = sql(`DELETE FROM ${unlisted}`);
  const setCutoff = sql("UPDATE watermark SET cutoff = MAX(cutoff, $cutoff)");
  const deleteUsage = sql(
    `DELETE FROM usage WHERE (kind, period_ms, start, name) IN (
       SELECT kind, period_ms, start, name FROM usage
       WHERE kind IN ('', 'tool', 'agent', 'model') AND period_ms IN (${PERIODS_MS.join(", ")})
         AND start + period_ms <= $cutoff LIMIT ${PRUNE_ROWS}
     )`,
  );
  const selectDeletions = sql<Deletion>("SELECT * FROM deletions WHERE id > $after ORDER BY id");
  const selectDeletionAt = sql<{ id: number | null }>(
    "SELECT MAX(id) AS id FROM deletions WHERE head < $cursor",
  );
  const selectBreak = sql(
    `SELECT 1 FROM watermark
     WHERE $cursor < event_id OR ($has_rows AND $cursor < head) OR (
       EXISTS (
         SELECT 1 FROM deletions WHERE id > $after AND last_event_id > $cursor
           AND ($session_id IS NULL OR session_id = $session_id)
       ) AND IFNULL((SELECT timestamp FROM events WHERE id <= $cursor ORDER BY id DESC LIMIT 1), 0) < cutoff
     )`,
  );
  const selectGap = sql("SELECT 1 FROM gaps WHERE from_id < $cursor AND to_id > $cursor");
  const selectTimeAt = sql<{ timestamp: number }>(
    "SELECT timestamp FROM events WHERE id <= $cursor ORDER BY id DESC LIMIT 1",
  );
  let isStopped = false;

  /** The same failure is that of an agent, and counts there. */
  function isTold({ session_id, kind, key }: SpanRow): boolean {
    if (kind !== "tool" || key === null) return false;
    return hasErred(selectSpan.get({ id: keys.find({ session_id, kind: "agent", key }) }));
  }

  /** Of a session that is too large for one step: its row is right after each, should it come to life again. */
  function deleteOldest(id: string, last: number): void {
    const events = selectOldest.all({ id, last });
    const row = sessions.open(id);
    for (const { type, failed } of events)
      if (type === "session_error") row.session_errors--;
      else if (failed && !(type in HALVES)) row.error_count--;
    for (const span of selectSpans.all({ id, last }))
      sessions.addSpan(row, contribution(span, isTold(span)), span, -1);
    row.event_count -= events.length;
    sessions.flush();
    sessions.settle(false); // or the next flush would bring it back once it is deleted
    deleteEvents.run({ id, last });
  }

  /** Deletes for some milliseconds, in one transaction. @returns how much; no events: nothing is left */
  function step(cutoff: number) {
    const until = performance.now() + PRUNE_STEP_MS;
    let sessionCount = 0;
    let eventCount = 0;
    do {
      const expired = selectExpired.get({ cutoff });
      if (expired === null) break;
      const { id, event_count, parent_id } = expired;
      const last = selectLast.get({ id })?.id ?? 0;
      const isWhole = event_count <= PRUNE_ROWS;
      insertDeletion.run({ id, parent_id, last, is_whole: isWhole });
      eventCount += Math.min(event_count, PRUNE_ROWS);
      if (!isWhole) deleteOldest(id, last);
      else {
        const children = selectChildren.all({ id });
        deleteSession.run({ id });
        deleteKeys.run({ id });
        sessions.settle(true); // or what is at hand of it could be written again
        for (const { child } of children) excuse(child);
        sessionCount++;
      }
    } while (performance.now() < until);
    raiseWatermark.run({});
    forgetDeletions.run({});
    return { sessionCount, eventCount };
  }

  return {
    /**
     * Deletes the sessions without an event since `cutoff` (milliseconds) with all that belongs to
     * them, then gives the pages back. At full speed while nobody asks, in small steps with pauses
     * while requests come; what is left when it is stopped goes the next time.
     *
     * @param isAsked whether a request came since the last call
     * @param told after each step, of how many events are gone
     * @returns how many sessions were deleted
     */
    async prune(cutoff: number, isAsked: () => boolean, told: (eventCount: number) => void) {
      /** Takes `next` again and again until it says that nothing is left. */
      async function inSteps(next: () => boolean): Promise<void> {
        while (!isStopped && next()) await (isAsked() ? Bun.sleep(PRUNE_PAUSE_MS) : nextSlice());
      }
      let count = 0;
      if (isStopped) return count;
      setCutoff.run({ cutoff });
      forget();
      await inSteps(() => {
        const { sessionCount, eventCount } = commit(() => step(cutoff));
        forget();
        count += sessionCount;
        told(eventCount);
        return eventCount > 0;
      });
      await inSteps(() => deleteUsage.run({ cutoff }).changes === PRUNE_ROWS);
      let free = isStopped ? 0 : pragma(db, "freelist_count");
      if (free === 0) return count;
      await inSteps(() => {
        const before = free;
        db.query(`PRAGMA incremental_vacuum(${VACUUM_PAGES})`).all();
        free = pragma(db, "freelist_count");
        return free > 0 && free < before;
      });
      if (!isStopped) db.query("PRAGMA wal_checkpoint(TRUNCATE)").all();
      return count;
    },
    /** A retention that goes on ends with its step. */
    stopPruning(): void {
      isStopped = true;
    },
    /** Deletions after that of id `after`, oldest first: at most MAX_DELETIONS. */
    deletionsSince: (after: number) => selectDeletions.all({ after }),
    /** The newest deletion that whoever has all up to event `cursor` was told of. */
    deletionAt: (cursor = Infinity) => selectDeletionAt.get({ cursor })?.id ?? 0,
    /** No event of this database was ever given this id, nor was it the newest when a server started. */
    isUnknown: (cursor: number) => selectGap.get({ cursor }) !== null,
    /** When the newest event up to `cursor` was, in milliseconds; 0: there is none. */
    timeAt: (cursor: number) => selectTimeAt.get({ cursor })?.timestamp ?? 0,
    /**
     * Whether events after `cursor` are gone that a stream of `session_id` (null: of all) would have
     * had: looks at the deletions since `after`. Events that came later than retention allows were gone
     * as they came: they break nothing.
     */
    isBroken: (cursor: number, session_id: string | null, after: number, has_rows: boolean) =>
      selectBreak.get({ cursor, session_id, after, has_rows }) !== null,
  };
}

// -- The whole

export type Store = ReturnType<typeof openStore>;

/**
 * Opens `observability.db` in `directory`, creating both where they don't exist, and holds a lock
 * on the directory until `close`. A file of an earlier version is brought to this one, which may take
 * a while: `log` is told how far it is.
 *
 * @throws StartError where another server has it, the file is corrupt, or its schema is newer
 */
export function openStore(directory: string, log: Pick<Log, "info"> = { info() {} }) {
  const path = join(directory, "observability.db");
  makePrivate(directory, path);
  const lock = acquireLock(directory);
  let opened: ReturnType<typeof openDatabase>;
  try {
    opened = openDatabase(path, log);
  } catch (error) {
    lock.close();
    throw asStartError(path, error);
  }
  const { db, keys, writer } = opened;
  const { prune, ...retention } = createRetention(db, writer, keys);
  /** Kept beside the table: counting ten million rows takes a second. */
  const counted = db.query<{ n: number }, []>("SELECT TOTAL(event_count) AS n FROM sessions").get();
  let eventCount = counted?.n ?? 0;

  return {
    ...createReader(db, keys),
    ...retention,
    append(posts: TelemetryEvent[][]) {
      const result = writer.append(posts);
      eventCount += result.added.length;
      return result;
    },
    /** @see createRetention */
    prune: (cutoff: number, isAsked = () => false, told = () => {}) =>
      prune(cutoff, isAsked, (deletedCount) => {
        eventCount -= deletedCount;
        told();
      }),
    /** Cheap at any size. */
    size: () => ({ events: eventCount, bytes: pragma(db, "page_count") * pragma(db, "page_size") }),
    /** Writes the log back into the database file and lets go of the directory. */
    close(): void {
      retention.stopPruning();
      try {
        db.query("PRAGMA wal_checkpoint(TRUNCATE)").all();
      } catch (error) {
        if (!(error instanceof SQLiteError)) throw error;
        // A full disk, or a lock: the -wal file stays, and the next start reads it.
      }
      db.close();
      lock.close();
    },
  };
}

/** The directory for its owner only, and the database file before SQLite gives it a wider mode. */
function makePrivate(directory: string, path: string): void {
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    // One that was there already is left as it is where it holds other things than ours.
    const isOurs = (name: string) => name === ".gitkeep" || name.startsWith("observability.db");
    if (readdirSync(directory).every(isOurs)) chmodSync(directory, 0o700);
    closeSync(openSync(path, "a", 0o600)); // SQLite gives -wal and -shm the mode of this file
    for (const name of readdirSync(directory).filter((name) => name.startsWith("observability.db")))
      chmodSync(join(directory, name), 0o600);
  } catch (error) {
    throw new StartError([
      `DATA_DIR=${JSON.stringify(directory)}: expected a directory that this user can write to (${messageOf(error)})`,
    ]);
  }
}

/**
 * A transaction that stays open, in a database of its own: the system releases it when the
 * process ends, however it ends.
 */
function acquireLock(directory: string): Database {
  const path = join(directory, "observability.db.lock");
  try {
    closeSync(openSync(path, "a", 0o600));
    const lock = new Database(path);
    lock.run("PRAGMA journal_mode = MEMORY"); // nothing is written: no journal file
    lock.run("BEGIN EXCLUSIVE");
    return lock;
  } catch (error) {
    throw new StartError([
      isBusy(error)
        ? `DATA_DIR=${JSON.stringify(directory)}: another server is running on it; stop that one, or set another DATA_DIR`
        : `${path}: can't be locked (${messageOf(error)})`,
    ]);
  }
}

function openDatabase(path: string, log: Pick<Log, "info">) {
  const db = new Database(path, { strict: true });
  try {
    db.run("PRAGMA busy_timeout = 2000"); // at the start only: another process may still be closing it
    const found = refuseForeign(db, path);
    if (found === 0) db.run("PRAGMA auto_vacuum = INCREMENTAL"); // only before the first table
    db.run("PRAGMA journal_mode = WAL"); // readers and the writer don't wait for each other
    db.run("PRAGMA synchronous = FULL"); // an acknowledgement outlives a power cut
    db.run("PRAGMA wal_autocheckpoint = 1600"); // pages, 6.5 MB: 5 to 8 % more posts than with SQLite's 1,000
    db.run("PRAGMA cache_size = -16000"); // KB: the keys of the calls of a hundred sessions that work now
    db.run(`PRAGMA journal_size_limit = ${8 * 1024 * 1024}`); // bytes: a log that once grew is cut again
    for (const [index, migration] of MIGRATIONS.entries())
      if (index >= found)
        db.transaction(() => {
          db.run(migration);
          db.run(`PRAGMA user_version = ${index + 1}`);
        }).immediate();
    db.transaction(() => db.run(OPEN_NEW_IDS)).immediate();
    const keys = createKeys(db);
    const writer = createWriter(db, keys);
    writer.foldAnew(log);
    db.run("PRAGMA foreign_keys = ON"); // CASCADE needs it; a migration drops what others refer to
    db.run("PRAGMA busy_timeout = 0"); // waiting would stop every request: Ingest tries again instead
    return { db, keys, writer };
  } catch (error) {
    db.close();
    throw error;
  }
}

/** Ids go on at the present time, in microseconds: see the table of gaps. */
const OPEN_NEW_IDS = `
  INSERT INTO gaps SELECT seq, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000
    FROM sqlite_sequence WHERE name = 'events';
  DELETE FROM gaps WHERE to_id <= from_id + 1;
  UPDATE sqlite_sequence SET seq = MAX(seq, IFNULL((SELECT MAX(to_id) FROM gaps), 0))
    WHERE name = 'events';`;

/** 64 MB, read in some 100 ms; a larger file isn't checked as a whole, so that it starts as fast. */
const MAX_CHECKED_PAGES = 16_384;

/**
 * The schema version of the file; 0 where it is new. Only reads.
 *
 * @throws StartError where it isn't ours, or newer; another error where it is corrupt
 */
function refuseForeign(db: Database, path: string): number {
  const pageCount = pragma(db, "page_count");
  if (pageCount === 0) return 0;
  if (pragma(db, "application_id") !== APPLICATION_ID)
    throw new StartError([`${path}: the database of another program; set another DATA_DIR`]);
  const schema = pragma(db, "user_version");
  if (schema > MIGRATIONS.length)
    throw new StartError([
      `${path}: written by a newer version of this server (schema ${schema}, this one knows ${MIGRATIONS.length}): use that version, or another DATA_DIR. Nothing was changed`,
    ]);
  if (pageCount > MAX_CHECKED_PAGES) return schema;
  const check = db.query<{ quick_check: string }, []>("PRAGMA quick_check(1)").get();
  if (check?.quick_check !== "ok") throw new Error(check?.quick_check);
  return schema;
}

/** A setting of the file that is a number. */
function pragma(db: Database, name: string): number {
  return db.query<Record<string, number>, []>(`PRAGMA ${name}`).get()?.[name] ?? 0;
}

function asStartError(path: string, error: unknown): StartError {
  if (error instanceof StartError) return error;
  const reason = messageOf(error).replace(/\s+/g, " ");
  return new StartError([
    isBusy(error)
      ? `${path}: locked by another process; end it, then start again`
      : `${path}: not a database that this server can use (${reason}); move it away or put a backup in its place, then start again. Nothing was deleted`,
  ]);
}

/** Another process has the database, for now. */
function isBusy(error: unknown): boolean {
  return error instanceof SQLiteError && (error.code ?? "").startsWith("SQLITE_BUSY");
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

// ─── Hub ─────────────────────────────────────────────────────────────────────
// Fan-out. The database is the queue; a subscriber is only a cursor on it, in one of three states:
//
//     state    gets                                              until
//     live     each batch as it is committed, encoded once       its socket has no room: behind
//              for all
//     behind   pages of the log as its stream pulls; also who    a page is the last: live
//              has just come back with a Last-Event-ID
//     ended    nothing: it was cancelled, or the log can't be read
//
// So a slow client costs bounded memory and loses nothing, and as SQLite is synchronous here, there
// is no gap between history and live. With rows, each batch or page is followed by the rows that it
// changed, as they are now: to apply one twice, or a newer one early, changes nothing.

/** Bytes that wait for one subscriber before it stops being live. */
const SUBSCRIBER_QUEUE_BYTES = 64 * 1024;
/** Rows and characters of one page read from the log: a few milliseconds, and about the queue. */
const PAGE_ROWS = 500;
const PAGE_CHARS = 64 * 1024;
/**
 * Pages that all streams together read in one turn of the event loop; each stream reads at least
 * one. A batch brings at most two such pages, so a stream that is behind gains on the log: with one
 * page a turn it would stay behind for as long as 16 posters of batches go on.
 */
const PAGES_PER_TURN = 4;
/** Of a page that its rows follow: each may be a row of a session, a tenth of a millisecond. */
const PAGE_ROWS_WITH_ROWS = 100;
/** A batch that changes more rows than this goes to who wants rows page by page, from the log. */
const MAX_LIVE_ROWS = 200;
/** Under the idle timeout of the server, and of proxies. */
const HEARTBEAT_MS = 15 * SECOND_MS;
/** How long a browser waits before it comes back. */
const RETRY_MS = 1_000;

const DELETED = "events after the last event id were deleted";

const encoder = new TextEncoder();
const HEARTBEAT = encoder.encode(":\n\n");
const QUEUE = new ByteLengthQueuingStrategy({ highWaterMark: SUBSCRIBER_QUEUE_BYTES });

interface Subscriber {
  readonly sessionId: string | null;
  /** It gets the rows that change, too. */
  readonly hasRows: boolean;
  readonly controller: ReadableStreamDefaultController<Uint8Array>;
  /** It has everything that is stored, so the next batch can go straight to it. */
  isLive: boolean;
  /** What it was told of: events up to this id, */
  cursor: number;
  /** deletions up to this id, */
  deletion: number;
  /** and what time alone has changed, up to this time. */
  time: number;
}

/** Text for the subscribers of its session, and of all. */
type Frame = { sessionId: string; text: string };

export type Hub = ReturnType<typeof createHub>;

/**
 * A stored event as clients get it: flat JSON on one line, the envelope first, then its data.
 * A session_end that was posted without `duration_seconds` gets it from the session's start.
 */
export function eventJson(event: StoredEvent): string {
  const envelope = `{"id":${event.id},"type":"${event.type}","session_id":${JSON.stringify(event.session_id)},"timestamp":"${iso(event.timestamp)}"`;
  const duration =
    event.started_at === null || event.duration_ms !== null
      ? ""
      : `,"duration_seconds":${(event.timestamp - event.started_at) / SECOND_MS}`;
  return envelope + duration + (event.data === "{}" ? "}" : `,${event.data.slice(1)}`);
}

/**
 * A frame of text/event-stream. JSON.stringify escapes CR and LF, the only characters that end a
 * line there, so no field can break out of it.
 */
export function encodeFrame(event: StoredEvent): string {
  return `id: ${event.id}\nevent: ${event.type}\ndata: ${eventJson(event)}\n\n`;
}

/** A frame that moves no cursor: a row, or a deletion. */
function rowFrame(name: "session" | "span" | "session_deleted", sessionId: string, row: object) {
  return { sessionId, text: `event: ${name}\ndata: ${JSON.stringify(row)}\n\n` };
}

/** Tells a client that events are missing before id `head`, from which it goes on, and why. */
function resetFrame(reason: string, head: number): string {
  return `id: ${head}\nevent: reset\ndata: ${JSON.stringify({ reason, last_event_id: head })}\n\n`;
}

/**
 * @param onError told of what the store throws while a stream is filled; that stream ends, and its
 *   client comes back with the last id that it has
 */
export function createHub(
  store: Store,
  onError: (error: unknown) => void = () => {},
  now: () => number = Date.now,
) {
  const subscribers = new Set<Subscriber>();
  /** The newest deletion that live subscribers were told of. */
  let toldDeletion = store.deletionAt();
  let pagesThisTurn = 0;

  const hasRoom = ({ controller }: Subscriber) => (controller.desiredSize ?? 0) > 0;

  function send({ controller }: Subscriber, chunk: Uint8Array): void {
    if (chunk.length === 0) return;
    try {
      controller.enqueue(chunk);
    } catch {
      // It was cancelled in this turn of the event loop; cancel() takes it from the set.
    }
  }

  /** Does `step`; where the store throws, the stream ends. */
  function guarded(subscriber: Subscriber, step: () => void): void {
    try {
      step();
    } catch (error) {
      onError(error);
      subscribers.delete(subscriber);
      subscriber.controller.close();
    }
  }

  function textOf(frames: Frame[], wanted: string | null): string {
    const own = frames.filter(({ sessionId }) => wanted === null || sessionId === wanted);
    return own.map(({ text }) => text).join("");
  }

  function eventFrames(events: StoredEvent[]): Frame[] {
    return events.map((event) => ({ sessionId: event.session_id, text: encodeFrame(event) }));
  }

  function rowFrames(changed: Changed): Frame[] {
    const { sessions, spans } = store.rowsOf(changed, now());
    return [
      ...sessions.map((row) => rowFrame("session", row.id, row)),
      ...spans.map((row) => rowFrame("span", row.session_id, row)),
    ];
  }

  /** The sessions that are gone, and the rows of those above them, whose totals had a part in theirs. */
  function deletionFrames(deletions: Deletion[]): Frame[] {
    const whole = deletions.filter(({ is_whole }) => is_whole);
    const sessionIds = new Set(whole.flatMap(({ parent_id }) => parent_id ?? []));
    return [
      ...whole.map(({ session_id }) => rowFrame("session_deleted", session_id, { session_id })),
      ...rowFrames({ sessionIds, spanIds: new Set(), turnedIds: new Set() }),
    ];
  }

  /** Sends a subscriber that is behind its next page; live again where that was the last. */
  function fill(subscriber: Subscriber): void {
    const { sessionId, hasRows } = subscriber;
    const time = now();
    const deletions = store.deletionsSince(subscriber.deletion);
    const isBroken = () => store.isBroken(subscriber.cursor, sessionId, subscriber.deletion, false);
    if (deletions.length > 0 && isBroken()) {
      subscriber.cursor = store.head();
      send(subscriber, encoder.encode(resetFrame(DELETED, subscriber.cursor)));
    }
    const filter = { after: subscriber.cursor, before: null, sessionId, type: null };
    const limit = hasRows ? PAGE_ROWS_WITH_ROWS : PAGE_ROWS;
    const { events, done } = store.page(filter, "oldest first", limit, PAGE_CHARS);
    let text = events.map(encodeFrame).join("");
    if (hasRows) {
      const changed = rowFrames(store.changedByTime(subscriber.time, time));
      text =
        textOf([...deletionFrames(deletions), ...changed], sessionId) +
        text +
        textOf(rowFrames(store.changedBy(events)), sessionId);
    }
    send(subscriber, encoder.encode(text));
    subscriber.isLive = done;
    // The head is past what its filter left out.
    subscriber.cursor = (done ? null : events.at(-1)?.id) ?? store.head();
    subscriber.deletion = deletions.at(-1)?.id ?? subscriber.deletion;
    subscriber.time = time;
  }

  /** What a stream waits for after a page, so that others have their turn. */
  function afterPage(hasRows = false): Promise<void> | undefined {
    if (pagesThisTurn === 0) setImmediate(() => (pagesThisTurn = 0));
    pagesThisTurn += hasRows ? PAGES_PER_TURN : 1;
    if (pagesThisTurn < PAGES_PER_TURN) return;
    return new Promise((resolve) => setImmediate(resolve));
  }

  /** Why the log can't be continued from `cursor` without a gap; null: it can. */
  function refusal(cursor: string, sessionId: string | null, hasRows: boolean): string | null {
    if (!/^\d{1,16}$/.test(cursor)) return "the last event id is not a number";
    const id = Number(cursor);
    if (id > store.head()) return "the last event id is ahead of the log: from another database";
    if (id === 0) return null;
    if (store.isUnknown(id))
      return "the last event id is none of this database: a backup was put in its place";
    return store.isBroken(id, sessionId, 0, hasRows) ? DELETED : null;
  }

  /** The rows of the events up to `cursor`: its connection may have been cut between the two. */
  function rowsBefore(cursor: number, sessionId: string | null): Frame[] {
    const filter = { after: null, before: cursor + 1, sessionId, type: null };
    const { events } = store.page(filter, "newest first", MAX_LIVE_ROWS, PAGE_CHARS);
    return rowFrames(store.changedBy(events));
  }

  /**
   * Sends every live subscriber `frames`, and those with rows what `rows` gives, too; it is encoded
   * once for all who share a filter. One that has no room is behind from now on.
   *
   * @returns who has got it
   */
  function broadcast(frames: Frame[], rows: () => Frame[]): Subscriber[] {
    const reached: Subscriber[] = [];
    const chunks = new Map<string, Uint8Array>();
    let framesWithRows: Frame[] | null = null;
    for (const subscriber of subscribers)
      guarded(subscriber, () => {
        const { sessionId, hasRows, isLive } = subscriber;
        if (!isLive) return;
        const key = `${hasRows} ${sessionId ?? ""}`;
        const wanted = hasRows ? (framesWithRows ??= [...frames, ...rows()]) : frames;
        const chunk = chunks.get(key) ?? encoder.encode(textOf(wanted, sessionId));
        chunks.set(key, chunk);
        subscriber.isLive = chunk.length === 0 || hasRoom(subscriber);
        if (!subscriber.isLive) return;
        send(subscriber, chunk);
        reached.push(subscriber);
      });
    return reached;
  }

  return {
    get size() {
      return subscribers.size;
    },

    /**
     * The body of an event stream of one session, or of all (null).
     *
     * @param cursor the last event id that the client has: it gets what came since, then live
     *   events; "0": all that is stored; null: live events only. One that can't be served gives a
     *   frame `reset` that says why and from which id on the stream goes.
     * @param hasRows also the rows that events, or time, change
     */
    subscribe(sessionId: string | null, cursor: string | null, hasRows = false) {
      const head = store.head();
      const reason = cursor === null ? null : refusal(cursor, sessionId, hasRows);
      const isResuming = cursor !== null && reason === null;
      const from = isResuming ? Number(cursor) : head;
      const deletion = store.deletionAt(isResuming && from > 0 ? from : undefined);
      const time = isResuming ? store.timeAt(from) : now();
      // An id without data is no event, but where the client would resume from. Where it is refused the
      // reset says it: cut between the two, a client that had it from here would never know.
      const resumeFrom = reason === null ? `id: ${from}\n` : "";
      const hello = `: PAI Observability ${version}\nretry: ${RETRY_MS}\n${resumeFrom}\n`;
      const reset = reason === null ? "" : resetFrame(reason, head);
      const rows = isResuming && hasRows ? textOf(rowsBefore(from, sessionId), sessionId) : "";
      let subscriber: Subscriber;
      const source: UnderlyingDefaultSource<Uint8Array> = {
        start(controller) {
          const filter = { sessionId, hasRows, controller };
          subscriber = { ...filter, isLive: false, cursor: from, deletion, time };
          subscribers.add(subscriber);
          send(subscriber, encoder.encode(hello + reset + rows));
        },
        pull() {
          if (subscriber.isLive) return;
          guarded(subscriber, () => fill(subscriber));
          return afterPage(hasRows);
        },
        cancel: () => void subscribers.delete(subscriber),
      };
      return new ReadableStream(source, QUEUE);
    },

    /** The stored events of `filter`, oldest first, as NDJSON: read as fast as it is taken. */
    history(filter: EventFilter, limit: number) {
      let { after } = filter;
      let left = limit;
      const source: UnderlyingDefaultSource<Uint8Array> = {
        async pull(controller) {
          try {
            const page = { ...filter, after };
            const rows = Math.min(left, PAGE_ROWS);
            const { events, done } = await store.findEvents(page, "oldest first", rows, PAGE_CHARS);
            left -= events.length;
            after = events.at(-1)?.id ?? after;
            const lines = events.map((event) => `${eventJson(event)}\n`).join("");
            if (lines !== "") controller.enqueue(encoder.encode(lines));
            if (done || left === 0) controller.close();
          } catch (error) {
            onError(error);
            controller.error(); // broken off: it must not look complete
          }
          return afterPage();
        },
      };
      return new ReadableStream(source, QUEUE);
    },

    /**
     * Sends a committed batch, in the order of its ids, to every live subscriber that has room: a page
     * at once. The rows go with the first: who has no room for the next may then go on from the log.
     */
    publish(events: StoredEvent[], changed: Changed): void {
      if (subscribers.size === 0) return;
      if (changed.sessionIds.size + changed.spanIds.size > MAX_LIVE_ROWS)
        for (const subscriber of subscribers)
          if (subscriber.hasRows && subscriber.isLive) {
            subscriber.isLive = false;
            send(subscriber, HEARTBEAT); // so that its stream asks for the first page
          }
      for (let at = 0; at < events.length; at += PAGE_ROWS) {
        const page = events.slice(at, at + PAGE_ROWS);
        const reached = broadcast(eventFrames(page), () => (at === 0 ? rowFrames(changed) : []));
        for (const subscriber of reached) subscriber.cursor = page.at(-1)?.id ?? subscriber.cursor;
      }
    },

    /** Tells of sessions that time alone has made stale since `from` (milliseconds). */
    publishStale(from: number): void {
      const time = now();
      const reached = broadcast([], () => rowFrames(store.changedByTime(from, time)));
      for (const subscriber of reached) subscriber.time = time;
    },

    /** Tells of sessions that were deleted since it last did. */
    publishDeleted(): void {
      const deletions = store.deletionsSince(toldDeletion);
      toldDeletion = deletions.at(-1)?.id ?? toldDeletion;
      const reached = broadcast([], () => deletionFrames(deletions));
      for (const subscriber of reached) subscriber.deletion = toldDeletion;
    },

    /** Keeps quiet streams open, and lets the idle timeout find those that nobody reads. */
    heartbeat(): void {
      for (const subscriber of subscribers)
        if (subscriber.isLive && hasRoom(subscriber)) send(subscriber, HEARTBEAT);
    },

    /** Ends every stream; a browser comes back by itself. */
    close(): void {
      for (const { controller } of subscribers) controller.close();
      subscribers.clear();
    },
  };
}

// ─── Ingest ──────────────────────────────────────────────────────────────────
// Group commit: what arrives in one turn of the event loop shares one transaction, so one fsync
// serves all of it and one chunk tells every subscriber. Nothing is acknowledged or published
// that isn't committed.

/**
 * How many more turns of the event loop a batch stays open while posts keep arriving: the same
 * fsync then serves 64 of 64 busy connections rather than 40, a quarter more posts a second.
 */
const MAX_BATCH_TURNS = 2;
/** How long a batch waits for another process to let go of the database. */
const BUSY_LIMIT_MS = 2 * SECOND_MS;
const BUSY_RETRY_MS = 20;
/** Events of one transaction, and of one post: some 40 ms, in which nobody else is answered. */
const MAX_BATCH_EVENTS = 5_000;
/** Events that may wait meanwhile: at 1 KB each, some tens of megabytes. */
const MAX_PENDING_EVENTS = 20_000;

const RETRY_LATER = { "Retry-After": "2" };

type PendingPost = {
  events: TelemetryEvent[];
  since: number;
  resolve: (receipt: Receipt) => void;
  reject: (error: unknown) => void;
};

export function createIngest(
  store: Pick<Store, "append">,
  hub: Pick<Hub, "publish">,
  now: () => number,
) {
  const pending: PendingPost[] = [];
  let pendingEvents = 0;

  /** Closes the batch once a turn of the event loop has brought nothing more. */
  function collect(turnsLeft: number, postCount: number): void {
    if (turnsLeft > 0 && pending.length > postCount)
      setImmediate(collect, turnsLeft - 1, pending.length);
    else commit();
  }

  /** As many posts, in their order, as one transaction holds; the rest in the next turn. */
  function commit(): void {
    const posts: PendingPost[] = [];
    let events = 0;
    for (const post of pending) {
      if (posts.length > 0 && events + post.events.length > MAX_BATCH_EVENTS) break;
      events += post.events.length;
      posts.push(post);
    }
    const [oldest] = posts;
    if (oldest === undefined) return;
    let result: ReturnType<Store["append"]> | null = null;
    let failure: unknown;
    try {
      result = store.append(posts.map((post) => post.events));
    } catch (error) {
      if (isBusy(error) && now() - oldest.since < BUSY_LIMIT_MS) {
        setTimeout(commit, BUSY_RETRY_MS);
        return;
      }
      failure = error;
    }
    pendingEvents -= events;
    pending.splice(0, posts.length);
    if (pending.length > 0) setImmediate(commit);
    for (const [index, { resolve, reject }] of posts.entries()) {
      const receipt = result?.receipts[index];
      if (receipt === undefined) reject(failure);
      else resolve(receipt);
    }
    if (result !== null) hub.publish(result.added, result.changed);
  }

  return {
    /**
     * Resolves once the events are committed; rejects with the error of SQLite where the whole
     * batch failed.
     *
     * @throws HttpError 503 where too many wait for a locked database already
     */
    submit(events: TelemetryEvent[]): Promise<Receipt> {
      if (pendingEvents > 0 && pendingEvents + events.length > MAX_PENDING_EVENTS)
        throw new HttpError(
          503,
          "too many events are waiting to be stored; try again",
          RETRY_LATER,
        );
      pendingEvents += events.length;
      return new Promise((resolve, reject) => {
        if (pending.length === 0) setImmediate(collect, MAX_BATCH_TURNS, 1);
        pending.push({ events, since: now(), resolve, reject });
      });
    },
    /** Commits, or refuses, what waits. */
    flush(): void {
      let before: number;
      do {
        before = pending.length;
        commit();
      } while (pending.length < before); // as many: none, or the database is locked
    },
  };
}
// ─── Guard ───────────────────────────────────────────────────────────────────
// Who may ask. A page in a browser must not read or write here unless it is ours: other sites can
// reach a server on localhost, by forms and by DNS rebinding too. Knows nothing of events.

const MAX_BODY_BYTES = 1024 * 1024;
const TOKEN_COOKIE = "pai_observability_token";
const TOKEN_COOKIE_SECONDS = 30 * 24 * 3600;
const NDJSON = "application/x-ndjson";
const EVENT_STREAM = "text/event-stream";
const decoder = new TextDecoder("utf-8", { fatal: true });

export type Guard = ReturnType<typeof createGuard>;

const CORS_HEADERS = {
  "Access-Control-Allow-Methods": "GET, POST",
  "Access-Control-Allow-Headers": "Authorization, Content-Type, Last-Event-ID",
  "Access-Control-Expose-Headers": "Last-Event-ID, Retry-After",
  "Access-Control-Max-Age": "600",
  Vary: "Origin",
};

/** What checks a request before its route sees it. */
export function createGuard({ authToken, allowedHosts, allowedOrigins }: Config) {
  const digest = (text: string) => new Bun.CryptoHasher("sha256").update(text).digest();
  const wanted = authToken === null ? null : digest(authToken);
  /** In constant time: hashed first, because the comparison wants equal lengths. */
  const isToken = (given: string | null | undefined) =>
    wanted === null || (given != null && timingSafeEqual(digest(given), wanted));

  return {
    /**
     * Refuses what a page of another site, or a name that isn't ours, sends.
     *
     * @returns the CORS headers of an allowed origin, else none
     * @throws HttpError 400 or 403
     */
    checkOrigin(req: Request): Record<string, string> {
      const { headers } = req;
      const host = headers.get("host")?.toLowerCase() ?? "";
      const name = HOST_HEADER.exec(host)?.[1];
      // Two Host headers arrive joined by a comma, which no name matches.
      if (name === undefined || !URL.canParse(`http://${host}`))
        throw new HttpError(400, "Host: expected one host name, with or without a port");
      const isAllowed = allowedHosts.includes(name) || allowedHosts.includes(host);
      if (!isAllowed && !isLoopback(name.replace(/^\[|\]$/g, ""))) {
        const problem = `${name} is not a name of this server; ALLOWED_HOSTS can add it`;
        throw new HttpError(403, `Host: ${problem}`);
      }
      const origin = headers.get("origin");
      if (origin !== null && allowedOrigins.includes(origin))
        return { "Access-Control-Allow-Origin": origin, ...CORS_HEADERS };
      if (origin !== null && origin !== `http://${host}`)
        throw new HttpError(403, "Origin: not a page of this server; ALLOWED_ORIGINS can add it");
      const site = headers.get("sec-fetch-site");
      const isOpening =
        req.method === "GET" &&
        headers.get("sec-fetch-mode") === "navigate" &&
        headers.get("sec-fetch-dest") === "document" &&
        new URL(req.url).pathname === "/";
      if (origin === null && (site === "cross-site" || site === "same-site") && !isOpening)
        throw new HttpError(403, "Sec-Fetch-Site: not a page of this server");
      return {};
    },

    /**
     * The cookie that stands for the token from then on: a browser can send no header with an
     * EventSource. Null where no token is wanted.
     *
     * @throws HttpError 401 where it is the wrong one
     */
    loginCookie(given: string): string | null {
      if (wanted === null) return null;
      if (!isToken(given)) throw new HttpError(401, "token: not the AUTH_TOKEN of this server");
      const maxAge = TOKEN_COOKIE_SECONDS;
      const options = { maxAge, httpOnly: true, sameSite: "strict", path: "/" } as const;
      return new Bun.Cookie(TOKEN_COOKIE, given, options).serialize();
    },

    /** @throws HttpError 401 where a token is wanted and neither header nor cookie has it */
    checkToken({ headers }: Request): void {
      if (wanted === null) return;
      const bearer = /^Bearer +(\S+)$/i.exec(headers.get("authorization") ?? "")?.[1];
      const cookie = new Bun.CookieMap(headers.get("cookie") ?? "").get(TOKEN_COOKIE);
      if (isToken(bearer) || isToken(cookie)) return;
      const expected =
        "Bearer and the AUTH_TOKEN of this server; in a browser, open /?token=… once";
      throw new HttpError(401, `Authorization: expected ${expected}`, {
        "WWW-Authenticate": "Bearer",
      });
    },
  };
}

/** A body of unknown length; `check` gets the size so far. */
async function readChunks(req: Request, check: (bytes: number) => void): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of req.body ?? []) {
    check((size += chunk.byteLength));
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/**
 * The body of a POST as text, and whether it is NDJSON.
 *
 * @throws HttpError 400 invalid UTF-8, 413 more than MAX_BODY_BYTES, 415 not JSON
 */
async function readBody(req: Request) {
  const type = req.headers.get("content-type")?.split(";")[0]?.trim().toLowerCase() ?? "none";
  if (type !== "application/json" && type !== NDJSON)
    throw new HttpError(415, `Content-Type: expected application/json or ${NDJSON}; got ${type}`);
  if ((req.headers.get("content-encoding") ?? "identity") !== "identity")
    throw new HttpError(415, "Content-Encoding: expected none");
  const refuseOver = (size: number) => {
    if (size > MAX_BODY_BYTES)
      throw new HttpError(413, `body: expected at most ${MAX_BODY_BYTES} bytes; send several`);
  };
  const length = req.headers.get("content-length");
  refuseOver(Number(length));
  const bytes = length === null ? await readChunks(req, refuseOver) : await req.bytes();
  try {
    return { text: decoder.decode(bytes), isNdjson: type === NDJSON };
  } catch {
    throw new HttpError(400, "body: expected UTF-8");
  }
}

// ─── Routes ──────────────────────────────────────────────────────────────────
// One table. A handler is a few lines and holds no SQL; it throws an HttpError, and one place
// answers it.

type Params = Record<string, string>;
type Handler = (req: Request, params: Params) => Response | Promise<Response>;
type Methods = { GET?: Handler; POST?: Handler };

const DEFAULT_LIMIT = 100;
const MAX_LIMIT = 1_000;
const DEFAULT_HOURS = 24;
const STATUSES = ["active", "waiting", "completed", "stale"] as const;
/** An answer up to this is made whole; a longer one is sent as it is made, piece by piece. */
const PIECE_CHARS = 64 * 1024;

const COMMON_HEADERS = {
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cache-Control": "no-store",
};

const reply = (body: BodyInit | null, type: string, headers = {}, status = 200) =>
  new Response(body, { status, headers: { ...COMMON_HEADERS, "Content-Type": type, ...headers } });
const json = (body: unknown, status = 200, headers = {}) =>
  reply(JSON.stringify(body), "application/json", headers, status);

/**
 * `pieces` of JSON text as an answer. Whatever is long is read and sent piece by piece, at the pace of
 * the client, and others have their turn in between: see "Bounded" in the README.
 */
async function jsonPieces(
  pieces: AsyncGenerator<string>,
  headers: Record<string, string>,
  onError: (error: unknown) => void,
): Promise<Response> {
  const next = async () => {
    let text = "";
    while (text.length < PIECE_CHARS) {
      const { value, done } = await pieces.next();
      if (done) return { text, done };
      text += value;
    }
    return { text, done: false };
  };
  let { text, done } = await next();
  if (done) return reply(text, "application/json", headers);
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          controller.enqueue(encoder.encode(text));
          if (done) return controller.close();
          await nextSlice();
          ({ text, done } = await next());
        } catch (error) {
          onError(error);
          controller.error(); // broken off: it must not look complete
        }
      },
      cancel: () => void pieces.return(undefined),
    },
    new ByteLengthQueuingStrategy({ highWaterMark: PIECE_CHARS }),
  );
  return reply(body, "application/json", headers);
}

/** The text of an object with `members`, then `lists`, which are read an item at a time. */
async function* jsonObject(lists: Record<string, AsyncGenerator<object>>, members: object = {}) {
  yield JSON.stringify(members).slice(0, -1);
  let comma = Object.keys(members).length > 0 ? "," : "";
  for (const [name, items] of Object.entries(lists)) {
    yield `${comma}"${name}":[`;
    comma = "";
    for await (const item of items) {
      yield comma + JSON.stringify(item);
      comma = ",";
    }
    yield "]";
    comma = ",";
  }
  yield "}";
}

/** Read without a token: "/" asks for it itself, because it also takes it. */
const PUBLIC_ROUTES = ["/", "/health"];
/** Bun's bundle of the page. It passes by every handler, so "/" fetches it from here and guards it. */
const DASHBOARD_ROUTE = "/dashboard.html";

/** What the routes need of the rest. `now` is the clock, in milliseconds. */
interface Context {
  config: Config;
  guard: Guard;
  dashboardHtml: () => Promise<string>;
  store: Store;
  hub: Hub;
  ingest: ReturnType<typeof createIngest>;
  now: () => number;
  startedAt: number;
  /** Told of what goes wrong while an answer is sent. */
  onError: (error: unknown) => void;
}

function createRoutes(context: Context): Record<string, Methods> {
  const { config, guard, dashboardHtml, store, hub, ingest, now, startedAt, onError } = context;
  /** Where a stream goes on after this answer, as a header: see the README, "From history to live". */
  const headId = (head = store.head()) => ({ "Last-Event-ID": String(head) });
  const pieces = (body: AsyncGenerator<string>, headers = {}) => jsonPieces(body, headers, onError);

  const getPage: Handler = async (req) => {
    const token = query(req).get("token");
    const cookie = token === null ? null : guard.loginCookie(token);
    if (cookie !== null)
      return new Response(null, {
        status: 303, // so that the token leaves the address bar
        headers: { ...COMMON_HEADERS, Location: "/", "Set-Cookie": cookie },
      });
    guard.checkToken(req);
    return reply(await dashboardHtml(), "text/html; charset=utf-8");
  };

  const getHealth = () => {
    const { events, bytes } = store.size();
    return json({
      status: "ok",
      uptime: (now() - startedAt) / SECOND_MS,
      timestamp: iso(now()),
      version,
      subscribers: hub.size,
      events,
      database_bytes: bytes,
    });
  };

  const postEvents: Handler = async (req) => {
    const { text, isNdjson } = await readBody(req);
    const { events, isBatch } = parseBody(text, isNdjson, now());
    const { ids, stored } = await ingest.submit(events);
    return json(isBatch ? { ids } : { id: ids[0] }, stored > 0 ? 201 : 200);
  };

  const getEvents: Handler = async (req) => {
    const params = query(req);
    const filter = filterParams(params);
    if (req.headers.get("accept")?.includes(NDJSON)) {
      const limit = limitParam(params, Infinity);
      const before = Math.min(filter.before ?? Infinity, store.head() + 1);
      return reply(hub.history({ ...filter, before }, limit), NDJSON);
    }
    const order = filter.after === null ? "newest first" : "oldest first";
    const limit = limitParam(params);
    const { events } = await store.findEvents(filter, order, limit, MAX_ANSWER_CHARS);
    const text = `{"events":[${events.map(eventJson).join(",")}]}`;
    return reply(text, "application/json", headId());
  };

  const streamEvents: Handler = (req) => {
    if (hub.size >= config.maxSubscribers) {
      const problem = `already ${hub.size} streams; MAX_SUBSCRIBERS allows more`;
      throw new HttpError(503, problem, RETRY_LATER);
    }
    const params = query(req);
    const cursor = req.headers.get("last-event-id") || params.get("lastEventId") || null;
    const hasRows = params.get("include")?.split(",").includes("rows") ?? false;
    const frames = hub.subscribe(params.get("sessionId") || null, cursor, hasRows);
    return reply(frames, EVENT_STREAM, { "X-Accel-Buffering": "no" }); // or nginx holds events back
  };

  const getSessions: Handler = (req) => {
    const params = query(req);
    const limit = limitParam(params);
    const filter = { status: statusParam(params), sessionId: params.get("sessionId") || null };
    const sessions = store.listSessions(filter, limit, now());
    return pieces(jsonObject({ sessions }), headId());
  };

  const getSession: Handler = async (_req, { sessionId: id = "" }) => {
    const found = await store.findSession(id, now());
    if (found === null)
      throw new HttpError(404, `no session ${JSON.stringify(id.slice(0, MAX_ID_CHARS))}`);
    const { head, session, tools, agents } = found;
    return pieces(jsonObject({ tools, agents }, { session }), headId(head));
  };

  const getSpans: Handler = async (req) => {
    const params = query(req);
    const sessionId = params.get("sessionId") || null;
    const isOpen = params.get("open") === "1";
    const filter = { sessionId, before: idParam(params, "before"), isOpen };
    const head = store.head();
    const spans = await store.listSpans(filter, limitParam(params), now());
    return json({ spans }, 200, headId(head));
  };

  /** @param rename gives each row its documented name */
  const getUsage =
    (list: string, kind: "tool" | "agent", rename: (name: string) => object): Handler =>
    (req) => {
      const { from, to } = windowParams(query(req), now());
      async function* rows() {
        for await (const { name, ...stats } of store.usageStats(kind, from, to))
          yield { ...rename(name), ...stats };
      }
      return pieces(jsonObject({ [list]: rows() }));
    };

  const getActivity: Handler = (req) => {
    const { from, to } = windowParams(query(req), now());
    return json({ activity: store.activity(from, to) }, 200, headId());
  };

  const getPlugin = () => {
    const file = Bun.file(new URL("./plugin/observability.ts", import.meta.url));
    return reply(file, "text/plain; charset=utf-8");
  };

  return {
    "/": { GET: getPage },
    "/health": { GET: getHealth },
    "/events": { POST: postEvents },
    "/api/events": { POST: postEvents, GET: getEvents },
    "/api/events/stream": { GET: streamEvents },
    "/api/sessions": { GET: getSessions },
    "/api/sessions/:sessionId": { GET: getSession },
    "/api/spans": { GET: getSpans },
    "/api/overview": { GET: async () => json(await store.overview(now())) },
    "/api/analytics/tools": { GET: getUsage("tools", "tool", (tool) => ({ tool })) },
    "/api/analytics/agents": {
      GET: getUsage("agents", "agent", (subagent_type) => ({ subagent_type })),
    },
    "/api/analytics/activity": { GET: getActivity },
    "/plugin/observability.ts": { GET: getPlugin },
  };
}

/** One event, an array of them, or one per line (NDJSON). @throws HttpError 400 with the index of the bad one */
function parseBody(text: string, isNdjson: boolean, receivedAt: number) {
  const parsed = isNdjson ? text.split("\n").filter((line) => line.trim() !== "") : parseJson(text);
  if (!Array.isArray(parsed)) return { events: [parseEvent(parsed, receivedAt)], isBatch: false };
  if (parsed.length > MAX_BATCH_EVENTS) {
    const expected = `at most ${MAX_BATCH_EVENTS} events, got ${parsed.length}; send several`;
    throw new HttpError(413, `body: expected ${expected}`);
  }
  const events = parsed.map((item: unknown, index) => {
    try {
      return parseEvent(isNdjson ? parseJson(String(item)) : item, receivedAt);
    } catch (error) {
      if (!(error instanceof HttpError)) throw error;
      throw new HttpError(error.status, `event ${index}: ${error.message}`);
    }
  });
  return { events, isBatch: true };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new HttpError(400, `malformed JSON: ${messageOf(error)}`);
  }
}

const query = (req: Request) => new URL(req.url).searchParams;

/** A query parameter as `read` has it; `absent` where it isn't there. @throws HttpError 400 where that is undefined */
function param<T, Absent>(
  params: URLSearchParams,
  name: string,
  absent: Absent,
  expected: string,
  read: (text: string) => T | undefined,
): T | Absent {
  const text = params.get(name);
  if (text === null) return absent;
  const value = read(text);
  if (value === undefined) throw invalid(name, expected, text);
  return value;
}

const limitParam = (params: URLSearchParams, absent = DEFAULT_LIMIT) =>
  param(params, "limit", absent, `a whole number from 1 to ${MAX_LIMIT}`, (text) =>
    /^\d{1,4}$/.test(text) && Number(text) >= 1 && Number(text) <= MAX_LIMIT
      ? Number(text)
      : undefined,
  );

const idParam = (params: URLSearchParams, name: "after" | "before") =>
  param(params, name, null, "the id of an event", (text) =>
    /^\d{1,16}$/.test(text) ? Number(text) : undefined,
  );

const statusParam = (params: URLSearchParams) =>
  param(params, "status", null, `one of ${STATUSES.join(", ")}`, (text) =>
    STATUSES.find((status) => status === text),
  );

function filterParams(params: URLSearchParams): EventFilter {
  const type = param(params, "type", null, ONE_TYPE, (text) =>
    isEventType(text) ? text : undefined,
  );
  const sessionId = params.get("sessionId") || null;
  return { after: idParam(params, "after"), before: idParam(params, "before"), sessionId, type };
}

const hoursParam = (params: URLSearchParams, name: string, absent: number, canBe0 = false) =>
  param(
    params,
    name,
    absent,
    `a number ${canBe0 ? "from" : "above"} 0, fractions allowed`,
    (text) => {
      const hours = /^(?=.)\d{0,9}(\.\d{1,9})?$/.test(text) ? Number(text) : NaN;
      return hours > 0 || (hours === 0 && canBe0) ? hours : undefined;
    },
  );

/** The `hours` that end `before_hours` ago, at whole minutes; where they end now, with the running one. */
function windowParams(params: URLSearchParams, now: number): { from: number; to: number } {
  const before = hoursParam(params, "before_hours", 0, true);
  const hours = hoursParam(params, "hours", DEFAULT_HOURS);
  const minute = (at: number) => Math.floor(at / MINUTE_MS) * MINUTE_MS;
  const end = now - before * HOUR_MS;
  return { from: minute(end - hours * HOUR_MS), to: minute(before === 0 ? end + MINUTE_MS : end) };
}

/** What answers requests: by a handler, or with what went wrong. Nothing else turns errors into answers. */
function createAnswer(guard: Guard, log: Log) {
  async function handle(req: Request, params: Params, methods: Methods | null, isPublic: boolean) {
    if (req.method === "OPTIONS" && methods !== null) {
      const headers = { ...COMMON_HEADERS, Allow: allowed(methods) };
      return new Response(null, { status: 204, headers });
    }
    if (!isPublic) guard.checkToken(req);
    if (methods === null) throw new HttpError(404, "no such route");
    const isHead = req.method === "HEAD";
    const method = isHead ? "GET" : req.method;
    const handler = method === "GET" || method === "POST" ? methods[method] : undefined;
    if (handler === undefined) {
      const headers = { Allow: allowed(methods) };
      throw new HttpError(405, `${req.method} is not for this route`, headers);
    }
    const response = await handler(req, params);
    const type = response.headers.get("Content-Type");
    if (!isHead || (type !== NDJSON && type !== EVENT_STREAM)) return response;
    // Bun leaves out the body of an answer to HEAD; a stream would go on without a reader.
    await response.body?.cancel();
    return new Response(null, response);
  }

  return async (req: Request, params: Params, methods: Methods | null, isPublic: boolean) => {
    let cors: Record<string, string> = {};
    let response: Response;
    try {
      cors = guard.checkOrigin(req);
      response = await handle(req, params, methods, isPublic);
    } catch (error) {
      const { status, message, headers } = asHttpError(error, log);
      // What was got is the client's, and private.
      const [reason] = message.split(/; got |(?<=malformed JSON): |(?<=no session) /);
      log.debug(`${status} ${req.method} ${req.url.replace(/\?.*/s, "")}: ${reason}`);
      response = json({ error: message }, status, headers);
    }
    for (const [name, value] of Object.entries(cors)) response.headers.set(name, value);
    return response;
  };
}

function allowed(methods: object): string {
  return [...Object.keys(methods), ...("GET" in methods ? ["HEAD"] : []), "OPTIONS"].join(", ");
}

function asHttpError(error: unknown, log: Log): HttpError {
  if (error instanceof HttpError) return error;
  if (isBusy(error))
    return new HttpError(503, "the database is locked by another process; try again", RETRY_LATER);
  if (error instanceof SQLiteError) {
    log.error(`database: ${error.code ?? ""} ${error.message}`);
    return error.code === "SQLITE_FULL"
      ? new HttpError(507, "the disk is full: nothing was stored; make room, it goes on by itself")
      : new HttpError(503, `the database can't be used now: ${error.message}`, RETRY_LATER);
  }
  if (error instanceof Error && error.name === "AbortError")
    return new HttpError(400, "the request broke off");
  log.error(`bug: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
  return new HttpError(500, "an error of this server, not of the request; its log has it");
}

// ─── Lifecycle ───────────────────────────────────────────────────────────────
// Puts it together, and takes it apart again so that nothing acknowledged is lost.

const PRUNE_INTERVAL_MS = HOUR_MS;
/** How late a page may be told that a session has become stale. */
const SWEEP_INTERVAL_MS = 5 * SECOND_MS;
/** Longer than two heartbeats, so that only streams that nobody reads reach it. */
const IDLE_TIMEOUT_SECONDS = 40;
/** What is still open then belongs to clients that don't read; the rest was done in milliseconds. */
const STOP_LIMIT_MS = 1_500;

export interface RunningServer {
  url: string;
  /** Flushes, ends the streams, checkpoints and closes; within 2 s. */
  stop: () => Promise<void>;
}

/**
 * Starts the server. Opens nothing before it is called; what it opened is closed again where it throws.
 *
 * @param now the clock, in milliseconds
 * @throws StartError
 */
export function startServer(
  config: Config,
  { now = Date.now, log = createLog(config.logLevel) }: { now?: () => number; log?: Log } = {},
): RunningServer {
  const store = openStore(config.dataDir, log);
  const onError = (error: unknown) => void asHttpError(error, log);
  const hub = createHub(store, onError, now);
  const ingest = createIngest(store, hub, now);
  const guard = createGuard(config);
  const answer = createAnswer(guard, log);
  // From each: Bun bundles the page's script and style for a listener when its page is asked for.
  const dashboardHtml = async () => {
    const pages = await Promise.all(servers.map(({ url }) => fetch(new URL(DASHBOARD_ROUTE, url))));
    return pages[0]?.text() ?? "";
  };
  const startedAt = now();
  const parts = { config, guard, dashboardHtml, store, hub, ingest, now, startedAt, onError };
  /** Requests since retention last asked: it rests while there are any. */
  let requestCount = 0;
  const routes = Object.entries(createRoutes(parts)).map(([path, methods]) => {
    const isPublic = PUBLIC_ROUTES.includes(path);
    return [
      path,
      (req: Bun.BunRequest) => {
        requestCount++;
        return answer(req, req.params, methods, isPublic);
      },
    ] as const;
  });

  const serve = (hostname: string, port: number) =>
    Bun.serve({
      hostname,
      port,
      development: false,
      reusePort: false, // development: false turns it on, and two servers share a port (Bun 1.4.5)
      idleTimeout: IDLE_TIMEOUT_SECONDS,
      maxRequestBodySize: Number.MAX_SAFE_INTEGER, // readBody has the limit, and answers in JSON
      routes: { ...Object.fromEntries(routes), [DASHBOARD_ROUTE]: dashboard },
      fetch: (req) => answer(req, {}, null, false),
    });

  let servers: Bun.Server<undefined>[];
  try {
    servers = listen(config, serve);
  } catch (error) {
    store.close();
    throw error;
  }

  const isAsked = () => {
    const wasAsked = requestCount > 0;
    requestCount = 0;
    return wasAsked;
  };
  let pruning = Promise.resolve();
  const prune = () => {
    pruning = pruning
      .then(() => store.prune(now() - config.retentionHours * HOUR_MS, isAsked, hub.publishDeleted))
      .then(
        (sessions) => sessions > 0 && log.info(`retention: ${sessions} sessions deleted`),
        (error) => log.warn(`retention: ${messageOf(error)}; tried again in an hour`),
      )
      .then(() => undefined);
  };
  prune();
  let sweptAt = now();
  const sweep = () => {
    const since = sweptAt;
    sweptAt = now();
    hub.publishStale(since);
  };
  const timers = [
    setInterval(prune, PRUNE_INTERVAL_MS),
    setInterval(hub.heartbeat, HEARTBEAT_MS),
    setInterval(sweep, SWEEP_INTERVAL_MS),
  ];

  async function stop(): Promise<void> {
    timers.forEach(clearInterval);
    const finished = Promise.all(servers.map((server) => server.stop()));
    ingest.flush();
    hub.close();
    await Promise.race([finished, Bun.sleep(STOP_LIMIT_MS)]);
    await Promise.all(servers.map((server) => server.stop(true)));
    ingest.flush();
    store.stopPruning();
    await pruning;
    store.close();
  }

  const shown = config.host.includes(":") ? `[${config.host}]` : config.host;
  return { url: `http://${shown}:${servers[0]?.port}`, stop };
}

/** Both loopback addresses for `localhost`: a client may try either first. */
function listen(
  { host, port }: Config,
  serve: (hostname: string, port: number) => Bun.Server<undefined>,
): Bun.Server<undefined>[] {
  const isBoth = host.toLowerCase() === "localhost";
  const servers: Bun.Server<undefined>[] = [];
  for (const hostname of isBoth ? ["127.0.0.1", "::1"] : [host])
    try {
      servers.push(serve(hostname, servers[0]?.port ?? port));
    } catch (error) {
      const code = error instanceof Error && "code" in error ? error.code : "";
      // A machine may lack IPv6; but where another program has its port, localhost would mean two servers.
      if (servers.length > 0 && (code !== "EADDRINUSE" || port === 0)) continue;
      for (const server of servers) server.stop(true);
      throw new StartError([
        code === "EADDRINUSE"
          ? `PORT=${port}: in use on ${hostname}; find by whom with "lsof -i :${port}", or set another PORT`
          : `HOST=${JSON.stringify(host)}, PORT=${port}: can't listen there (${messageOf(error)})`,
      ]);
    }
  return servers;
}

if (import.meta.main) {
  process.env.NO_PROXY = "*"; // it fetches from itself alone: the page's bundle
  try {
    const config = loadConfig(process.env);
    const log = createLog(config.logLevel);
    const server = startServer(config, { log });
    const exit = async (signal: string) => {
      log.info(`${signal}: stopping`);
      await server.stop();
      process.exit(0);
    };
    process.once("SIGINT", exit);
    process.once("SIGTERM", exit);
    log.info(`PAI Observability ${version} on ${server.url}`); // last: whoever reads it may end it
  } catch (error) {
    if (!(error instanceof StartError)) throw error;
    for (const problem of error.problems) console.error(problem);
    process.exit(1);
  }
}
