#!/usr/bin/env bun
/**
 * PAI Observability: see live what your coding-agent sessions do.
 *
 *     bun start                          http://localhost:3001
 *
 * A plugin posts an event when a session starts, a tool has run, a subagent is
 * spawned, a session ends. This file is the whole server. The life of an event:
 *
 *     POST ──▶ guard ──▶ parse ──▶ batch ──▶ commit ──▶ acknowledge
 *                                               └─────▶ publish ──▶ every subscriber
 *
 * Config      the environment, checked; all bad values reported at once
 * Log         one line each, never a payload
 * Events      unknown JSON in, a TelemetryEvent out, or an error that names the field
 * Store       all SQL: the append-only log, the folds, retention
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

/** Between two slices of long work, so that whoever else waits has a turn of the event loop. */
const nextTurn = () => new Promise<void>((resolve) => setImmediate(resolve));

// ─── Config ──────────────────────────────────────────────────────────────────
// Reads the environment once, at the start. Nothing else in this file does.

export interface Config {
  port: number;
  /** A host name or address; `localhost` is both 127.0.0.1 and ::1. */
  host: string;
  dataDir: string;
  retentionHours: number;
  logLevel: LogLevel;
  /** Wanted from every client but on /health; null: nobody is asked. */
  authToken: string | null;
  /** Accepted in the Host header beside the loopback names, lower case. */
  allowedHosts: string[];
  /** Other origins whose pages may read and write, as browsers send them. */
  allowedOrigins: string[];
  maxSubscribers: number;
}

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

/**
 * The configuration in `env`. An empty value counts as not set.
 *
 * @throws StartError with one line per bad variable: its name, its value, what is accepted
 */
export function loadConfig(env: Record<string, string | undefined>): Config {
  const problems: string[] = [];

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

  const wholeNumber = (min: number, max: number) => (text: string) =>
    /^\d{1,9}$/.test(text) && Number(text) >= min && Number(text) <= max ? Number(text) : undefined;
  const list = (isItem: (item: string) => boolean) => (text: string) => {
    const items = text
      .split(",")
      .map((item) => item.trim())
      .filter((item) => item !== "");
    return items.every(isItem) ? items : undefined;
  };

  const config: Config = {
    port: read(
      "PORT",
      3001,
      "a whole number from 0 (any free port) to 65535",
      wholeNumber(0, 65_535),
    ),
    host: read("HOST", "localhost", "a host name or an address, without a port", (text) =>
      /^([\w.-]+|\[?[0-9a-f:.]+\]?)$/i.test(text) ? text : undefined,
    ).replace(/^\[|\]$/g, ""),
    dataDir: read("DATA_DIR", "./data", "a directory", (text) => text),
    retentionHours: read(
      "RETENTION_HOURS",
      168,
      "a number of hours above 0, fractions allowed",
      (text) => (Number(text) > 0 && Number(text) <= 1e6 ? Number(text) : undefined),
    ),
    logLevel: read("LOG_LEVEL", "info", LOG_LEVELS.join(", "), (text) =>
      LOG_LEVELS.find((level) => level === text.toLowerCase()),
    ),
    authToken: read<string | null>(
      "AUTH_TOKEN",
      null,
      `at least ${MIN_TOKEN_CHARS} printable characters without spaces`,
      (text) => (text.length >= MIN_TOKEN_CHARS && /^[\x21-\x7e]+$/.test(text) ? text : undefined),
    ),
    allowedHosts: read<string[]>(
      "ALLOWED_HOSTS",
      [],
      "host names, comma-separated, each with or without a port",
      list((item) => HOST_HEADER.test(item)),
    ).map((item) => item.toLowerCase()),
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
      `HOST=${JSON.stringify(config.host)}: not a loopback name, so other machines could read your prompts: ` +
        `set AUTH_TOKEN (at least ${MIN_TOKEN_CHARS} characters) as well, or use localhost`,
    );
  if (problems.length > 0) throw new StartError(problems);
  return config;
}

function isLoopback(host: string): boolean {
  return /^(localhost|127(\.\d{1,3}){3}|::1)$/i.test(host);
}

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

/** What a field of `data` must be. Null and absent mean the same: not known. */
interface Field {
  expected: string;
  accepts: (value: unknown) => boolean;
  required?: true;
}

const MAX_ID_CHARS = 256;
/** Thirty years: nothing that a session does takes longer, and sums of it stay exact. */
const MAX_DURATION_MS = 1e12;

const NAME: Field = {
  expected: `a string of 1 to ${MAX_ID_CHARS} characters`,
  accepts: (value) => typeof value === "string" && value.length > 0 && value.length <= MAX_ID_CHARS,
};
const REQUIRED_NAME: Field = { ...NAME, required: true };
const TEXT: Field = {
  expected: "a string",
  accepts: (value) => typeof value === "string",
};
const FLAG: Field = {
  expected: "true or false",
  accepts: (value) => typeof value === "boolean",
};
const NUMBER: Field = {
  expected: "a number",
  accepts: (value) => typeof value === "number" && Number.isFinite(value),
};
const DURATION: Field = {
  expected: `a number from 0 to ${MAX_DURATION_MS}`,
  accepts: (value) => typeof value === "number" && value >= 0 && value <= MAX_DURATION_MS,
};
const TEXT_OR_OBJECT: Field = {
  expected: "a string or an object",
  accepts: (value) => typeof value === "string" || isRecord(value),
};
const NUMBER_OR_OBJECT: Field = {
  expected: "a number or an object",
  accepts: (value) => NUMBER.accepts(value) || isRecord(value),
};

/** What is known of a session as a whole: the newest value of each counts. */
const SESSION_FACTS = {
  title: TEXT,
  directory: TEXT,
  agent: TEXT,
  model: TEXT_OR_OBJECT,
  parent_session_id: NAME,
  tokens: NUMBER_OR_OBJECT,
  cost: NUMBER,
} satisfies Record<string, Field>;

/**
 * Every accepted type and the fields of its `data` that are checked; other fields are kept as
 * they are. A new type is one line here: it is then stored, streamed and listed.
 */
export const EVENT_TYPES = {
  session_start: SESSION_FACTS,
  session_update: SESSION_FACTS,
  session_end: { ...SESSION_FACTS, duration_seconds: DURATION },
  session_error: {},
  tool_use: {
    tool: REQUIRED_NAME,
    duration_ms: DURATION,
    call_id: NAME,
    success: FLAG,
  },
  agent_spawn: {
    subagent_type: REQUIRED_NAME,
    prompt: TEXT,
    duration_ms: DURATION,
    call_id: NAME,
    child_session_id: NAME,
    success: FLAG,
  },
  agent_complete: {
    subagent_type: NAME,
    duration_ms: DURATION,
    call_id: NAME,
    success: FLAG,
  },
  input_requested: { request_id: NAME, kind: TEXT },
  input_resolved: { request_id: NAME, kind: TEXT },
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

/** The same as a list per type, made once: an event is checked in a microsecond. */
const CHECKED_FIELDS = new Map(
  Object.entries(EVENT_TYPES).map(([type, fields]) => [type, Object.entries<Field>(fields)]),
);

/** An event as the store takes it. Times are milliseconds UTC since 1970. */
export interface TelemetryEvent {
  /** The poster's own id: the same one again stores nothing. */
  client_id: string | null;
  session_id: string;
  type: EventType;
  timestamp: number;
  /** The tool or the subagent_type. */
  name: string | null;
  call_id: string | null;
  duration_ms: number | null;
  failed: boolean;
  /** What it says of its session as a whole, if anything. */
  facts: Record<string, unknown> | null;
  /** The posted data, a JSON object as text. */
  data: string;
  /** An agent of which this tool call is the only trace: stored with it, or not at all. */
  implied?: TelemetryEvent;
}

/** Deeper JSON than this is refused: JSON.stringify and SQLite's own functions give up at some depth. */
const MAX_DEPTH = 64;

/** The newest date that JavaScript can name, in milliseconds. */
const MAX_DATE_MS = 8.64e15;

/** Epoch numbers below this are seconds: as seconds it is the year 5138, as milliseconds 1973. */
const EPOCH_SECONDS_LIMIT = 1e11;

const ISO_WITH_OFFSET = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)$/;

/** Names that a streamed event has for itself; a field of `data` so named is kept as `data_<name>`. */
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
  const { id, type, session_id, timestamp, data, ...rest } = isDialect
    ? translateDialect(body)
    : body;

  if (!isEventType(type))
    throw invalid(
      isDialect ? "event_type" : "type",
      `one of ${Object.keys(EVENT_TYPES).join(", ")}`,
      type,
    );
  check("session_id", REQUIRED_NAME, session_id);
  check("id", NAME, id);
  if (data != null && !isRecord(data)) throw invalid("data", "a JSON object", data);

  const fields: Record<string, unknown> = { ...rest, ...data };
  for (const [name, field] of CHECKED_FIELDS.get(type) ?? [])
    check(`data.${name}`, field, fields[name]);
  if (type === "agent_complete" && fields.call_id == null && fields.subagent_type == null)
    throw invalid(
      "data.call_id",
      "the call_id of an agent_spawn, or data.subagent_type",
      undefined,
    );
  for (const name of ENVELOPE)
    if (Object.hasOwn(fields, name)) {
      fields[`data_${name}`] = fields[name];
      delete fields[name];
    }

  /** A field that this type declares, so that it was checked. */
  const declared = (name: string) => (name in EVENT_TYPES[type] ? (fields[name] ?? null) : null);
  // Whole milliseconds: a sum of fractions would depend on the order of arrival.
  const seconds = numberOrNull(declared("duration_seconds"));
  const milliseconds =
    seconds === null ? numberOrNull(declared("duration_ms")) : seconds * SECOND_MS;
  const duration = milliseconds === null ? null : Math.round(milliseconds);
  const event: TelemetryEvent = {
    client_id: textOrNull(id),
    session_id: textOrNull(session_id) ?? "",
    type,
    timestamp: parseTimestamp(timestamp, receivedAt),
    name: textOrNull(declared("tool") ?? declared("subagent_type")),
    call_id: textOrNull(declared("call_id")),
    duration_ms: duration,
    failed: hasFailed(type, fields),
    facts: sessionFacts(type, fields),
    data: "",
  };
  // Documented on the stream of a tool_use: there even where it isn't known.
  if (type === "tool_use" || declared("duration_ms") !== null) fields.duration_ms = duration;
  if (fields.duration_seconds === null) delete fields.duration_seconds;
  event.data = JSON.stringify(fields);
  if (isDialect && type === "tool_use" && /^(mcp_)?task$/i.test(event.name ?? ""))
    event.implied = impliedAgent(event, fields);
  return event;
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
  let ms = NaN;
  if (typeof value === "number") ms = value < EPOCH_SECONDS_LIMIT ? value * SECOND_MS : value;
  else if (typeof value === "string" && ISO_WITH_OFFSET.test(value) && isDay(value.slice(0, 10)))
    ms = Date.parse(value);
  if (!(ms >= 1 && ms <= MAX_DATE_MS))
    throw invalid(
      "timestamp",
      "ISO 8601 with an offset (2026-01-01T12:00:00Z), or epoch seconds or milliseconds, after 1970",
      value,
    );
  return Math.min(Math.trunc(ms), receivedAt);
}

/** Date.parse takes the 30th of February for the 2nd of March. */
function isDay(date: string): boolean {
  const ms = Date.parse(date);
  return !Number.isNaN(ms) && iso(ms).startsWith(date);
}

/** `success` decides where it is given; else an `error` does. */
function hasFailed(type: EventType, fields: Record<string, unknown>): boolean {
  if (typeof fields.success === "boolean") return !fields.success;
  return type === "session_error" || Boolean(fields.error);
}

function sessionFacts(
  type: EventType,
  fields: Record<string, unknown>,
): Record<string, unknown> | null {
  if (type !== "session_start" && type !== "session_update" && type !== "session_end") return null;
  const facts = Object.keys(SESSION_FACTS)
    .filter((name) => fields[name] != null)
    .map((name) => [name, fields[name]]);
  return facts.length > 0 ? Object.fromEntries(facts) : null;
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
function translateDialect(body: Record<string, unknown>): Record<string, unknown> {
  const { event_type, type: _, ...event } = body;
  const type =
    event_type === "tool.execute"
      ? "tool_use"
      : typeof event_type === "string"
        ? event_type.replaceAll(".", "_")
        : event_type;
  if (!isRecord(event.data ?? {})) return { ...event, type };
  const { agent_type, task_id, args_preview, working_directory, ...data } = isRecord(event.data)
    ? event.data
    : {};
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
function impliedAgent(call: TelemetryEvent, fields: Record<string, unknown>): TelemetryEvent {
  const preview = textOrNull(fields.args) ?? "";
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
    type: "agent_spawn",
    name,
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

function isEventType(value: unknown): value is EventType {
  return typeof value === "string" && Object.hasOwn(EVENT_TYPES, value);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
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

function invalid(name: string, expected: string, value: unknown): HttpError {
  const got =
    value === undefined
      ? "it is missing"
      : typeof value === "string"
        ? `got ${JSON.stringify(value.slice(0, 40).toWellFormed())}${value.length > 40 ? ` (${value.length} characters)` : ""}`
        : typeof value === "number" || typeof value === "boolean"
          ? `got ${value}`
          : `got ${Array.isArray(value) ? "an array" : value === null ? "null" : "an object"}`;
  return new HttpError(400, `${name}: expected ${expected}; ${got}`);
}

/** Well-formed, because SQLite keeps UTF-8: a lone surrogate would come back as another string. */
function textOrNull(value: unknown): string | null {
  return typeof value === "string" ? value.toWellFormed() : null;
}

function numberOrNull(value: unknown): number | null {
  return typeof value === "number" ? value : null;
}

// ─── Store ───────────────────────────────────────────────────────────────────
// All SQL. The events are an append-only log; sessions and usage are folds of it, kept in the
// same transaction, and come out the same in whatever order events arrive. It knows nothing of
// requests or streams, and refuses to touch a file that it doesn't understand.

/** "PAOB" in the header of the file: SQLite's way to tell whose database it is. */
const APPLICATION_ID = 0x50414f42;

/** Each entry brings the schema to the version of its index + 1 (PRAGMA user_version). */
const MIGRATIONS = [
  `PRAGMA application_id = ${APPLICATION_ID};

   CREATE TABLE sessions (
     id               TEXT PRIMARY KEY,
     started_at       INTEGER NOT NULL,
     last_event_at    INTEGER NOT NULL,
     -- 0 where there was none yet, so that MAX needs no care for NULL:
     last_activity_at INTEGER NOT NULL, -- any event but session_end and session_update
     last_end_at      INTEGER NOT NULL, -- session_end
     asked_at         INTEGER NOT NULL, -- input_requested
     answered_at      INTEGER NOT NULL, -- input_resolved
     event_count      INTEGER NOT NULL,
     tool_count       INTEGER NOT NULL,
     agent_count      INTEGER NOT NULL,
     error_count      INTEGER NOT NULL,
     info             TEXT    NOT NULL  -- {"<fact>": [<timestamp>, <value>]}
   );
   CREATE INDEX sessions_last_event_at ON sessions (last_event_at, id);

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
   CREATE UNIQUE INDEX events_client_id ON events (client_id) WHERE client_id IS NOT NULL;
   CREATE INDEX events_session_id ON events (session_id);
   CREATE INDEX events_timestamp ON events (timestamp);
   -- Most events are tool calls, so a page of those is found without an index:
   CREATE INDEX events_type ON events (type) WHERE type <> 'tool_use';
   CREATE INDEX events_agent_call ON events (session_id, call_id, type)
     WHERE call_id IS NOT NULL AND type IN ('agent_spawn', 'agent_complete');

   CREATE TABLE usage (
     type     TEXT    NOT NULL, -- tool_use, agent_spawn, or '' for events of any type
     span     INTEGER NOT NULL, -- a minute or an hour, in milliseconds
     start    INTEGER NOT NULL,
     name     TEXT    NOT NULL,
     count    INTEGER NOT NULL,
     timed    INTEGER NOT NULL, -- how many durations are known
     total_ms INTEGER NOT NULL,
     max_ms   INTEGER,
     errors   INTEGER NOT NULL,
     PRIMARY KEY (type, span, start, name)
   ) WITHOUT ROWID;

   -- Events up to this id may be gone: a cursor below it can't be served in full.
   CREATE TABLE watermark (event_id INTEGER NOT NULL);

   -- Ids start at the time of creation, in microseconds, so that a cursor from an earlier database of this
   -- directory lies below the watermark, rather than quietly pointing at other events.
   INSERT INTO sqlite_sequence (name, seq) VALUES ('events', CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000);
   INSERT INTO watermark SELECT seq FROM sqlite_sequence WHERE name = 'events';`,
];

/** An active session without an event for this long is stale: its process may be gone. */
const STALE_MS = HOUR_MS;

/** More spawns or completions than this of one agent call are a mistake: the rest isn't paired. */
const MAX_CALL_EVENTS = 10;

/** Calls of one session that are read and translated at a time: a millisecond. */
const SLICE_ROWS = 500;

/** Rows deleted, or pages given back, between two pauses of the retention: some milliseconds. */
const PRUNE_ROWS = 100;
const VACUUM_PAGES = 50;
/** So that requests that came meanwhile are all answered before it goes on. */
const PRUNE_PAUSE_MS = 5;

/** A stored event, as the log has it. */
export interface StoredEvent {
  id: number;
  type: string;
  session_id: string;
  timestamp: number;
  duration_ms: number | null;
  data: string;
  /** Of its session; only where the type is session_end, else null. */
  started_at: number | null;
}

/** What became of one post: the ids of its events, in order, and how many rows were new. */
export interface Receipt {
  ids: number[];
  stored: number;
}

/** Which events, and from where: ids are exclusive, null means any. */
export interface EventFilter {
  after: number | null;
  before: number | null;
  sessionId: string | null;
  type: EventType | null;
}

export interface Session {
  id: string;
  started_at: string;
  ended_at: string | null;
  status: "active" | "completed" | "stale";
  tool_count: number;
  agent_count: number;
  event_count: number;
  error_count: number;
  last_event_at: string;
  /** Since when it waits for the person; null: it doesn't. */
  waiting_since: string | null;
  parent_session_id: string | null;
  info: Record<string, unknown>;
}

export interface ToolCall {
  id: number;
  tool: string;
  /** JSON text, or the string that was posted; null: none was. */
  args: string | null;
  timestamp: string;
  duration_ms: number | null;
  call_id: string | null;
  success: boolean | null;
  error: unknown;
}

export interface AgentRun {
  id: number;
  subagent_type: string;
  prompt: string | null;
  timestamp: string;
  duration_ms: number | null;
  call_id: string | null;
  child_session_id: string | null;
  /** When its completion says; null: it runs, or its end was never posted. */
  completed_at: string | null;
  success: boolean | null;
  error: unknown;
}

export interface SessionDetails {
  session: Session;
  tools: ToolCall[];
  agents: AgentRun[];
  /** The newest event when it was read: what came since isn't in it. */
  head: number;
}

/** How often something was used and how long it took; averages over known durations only. */
export interface UsageStats {
  count: number;
  avg_duration_ms: number | null;
  total_duration_ms: number;
  max_duration_ms: number | null;
  error_count: number;
}

export interface Activity {
  timestamp: string;
  count: number;
  error_count: number;
}

interface SessionRow {
  id: string;
  started_at: number;
  last_event_at: number;
  last_activity_at: number;
  last_end_at: number;
  asked_at: number;
  answered_at: number;
  event_count: number;
  tool_count: number;
  agent_count: number;
  error_count: number;
  info: string;
}

/** What pairing a spawn with its completion needs of either. */
type AgentCallRow = Pick<TelemetryEvent, "timestamp" | "name" | "call_id" | "duration_ms"> & {
  type: string;
  failed: boolean | number;
};

type CallRow = AgentCallRow & { id: number; data: string };

interface UsageDelta {
  type: string;
  span: number;
  start: number;
  name: string;
  count: number;
  timed: number;
  total_ms: number;
  max_ms: number | null;
  errors: number;
}

/** When each fact was said, and what: `{"title": [1767265200000, "Fix the bug"]}`. */
type Facts = Record<string, [at: number, value: unknown]>;

type Bind = string | number | boolean | null;

export type Store = ReturnType<typeof openStore>;

/**
 * Opens `observability.db` in `directory`, creating both where they don't exist, and holds a lock
 * on the directory until `close`.
 *
 * @throws StartError where another server has it, the file is corrupt, or its schema is newer
 */
export function openStore(directory: string) {
  const path = join(directory, "observability.db");
  makePrivate(directory, path);
  const lock = acquireLock(directory);
  let db: Database;
  let closed = false;
  /** Kept beside the table: counting ten million rows takes a second. */
  let stored: number;
  try {
    db = openDatabase(path);
    stored = countEvents(db);
  } catch (error) {
    lock.close();
    throw asStartError(path, error);
  }

  const insertEvent = db.query<unknown, Bind[]>(
    `INSERT INTO events (client_id, session_id, type, timestamp, name, call_id, duration_ms, failed, data)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (client_id) WHERE client_id IS NOT NULL DO NOTHING`,
  );
  const selectByClientId = db.query<{ id: number }, Bind[]>(
    "SELECT id FROM events WHERE client_id = ?",
  );
  const upsertSession = db.query<unknown, Bind[]>(
    `INSERT INTO sessions (
       id, started_at, last_event_at, last_activity_at, last_end_at, asked_at, answered_at,
       event_count, tool_count, agent_count, error_count, info
     )
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (id) DO UPDATE SET
       started_at       = MIN(started_at, excluded.started_at),
       last_event_at    = MAX(last_event_at, excluded.last_event_at),
       last_activity_at = MAX(last_activity_at, excluded.last_activity_at),
       last_end_at      = MAX(last_end_at, excluded.last_end_at),
       asked_at         = MAX(asked_at, excluded.asked_at),
       answered_at      = MAX(answered_at, excluded.answered_at),
       event_count      = event_count + excluded.event_count,
       tool_count       = tool_count + excluded.tool_count,
       agent_count      = agent_count + excluded.agent_count,
       error_count      = error_count + excluded.error_count,
       info             = IIF(excluded.info = '{}', info, excluded.info)`,
  );
  const selectSession = db.query<SessionRow, Bind[]>("SELECT * FROM sessions WHERE id = ?");
  const upsertUsage = db.query<unknown, Bind[]>(
    `INSERT INTO usage (type, span, start, name, count, timed, total_ms, max_ms, errors)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
     ON CONFLICT (type, span, start, name) DO UPDATE SET
       count    = count + excluded.count,
       timed    = timed + excluded.timed,
       total_ms = total_ms + excluded.total_ms,
       max_ms   = MAX(COALESCE(max_ms, excluded.max_ms), COALESCE(excluded.max_ms, max_ms)),
       errors   = errors + excluded.errors`,
  );
  /** Rows of one agent call and type that are older than an id, oldest first. */
  const selectAgentCall = db.query<AgentCallRow, Bind[]>(
    `SELECT type, timestamp, name, call_id, duration_ms, failed
     FROM events
     WHERE session_id = ? AND call_id = ? AND type = ? AND id < ?
       AND call_id IS NOT NULL AND type IN ('agent_spawn', 'agent_complete')
     ORDER BY id
     LIMIT ?`,
  );
  const selectHead = db.query<{ seq: number }, []>(
    "SELECT seq FROM sqlite_sequence WHERE name = 'events'",
  );
  const selectWatermark = db.query<{ event_id: number }, []>("SELECT event_id FROM watermark");

  // -- Writing

  const appendInTransaction = db.transaction((posts: TelemetryEvent[][]) => {
    const added: (TelemetryEvent & StoredEvent)[] = [];
    const usage = new Map<string, UsageDelta>();

    function insert(event: TelemetryEvent): number {
      const { changes, lastInsertRowid } = insertEvent.run(
        event.client_id,
        event.session_id,
        event.type,
        event.timestamp,
        event.name,
        event.call_id,
        event.duration_ms,
        event.failed,
        event.data,
      );
      if (changes === 0) return selectByClientId.get(event.client_id)?.id ?? 0;
      const id = Number(lastInsertRowid);
      added.push({ ...event, id, started_at: null });
      countUsage(usage, event, otherEnds(event, id));
      if (event.implied) insert(event.implied);
      return id;
    }

    const receipts = posts.map((events): Receipt => {
      const before = added.length;
      const ids = events.map(insert);
      return { ids, stored: added.length - before };
    });
    foldSessions(added);
    for (const row of usage.values())
      upsertUsage.run(
        row.type,
        row.span,
        row.start,
        row.name,
        row.count,
        row.timed,
        row.total_ms,
        row.max_ms,
        row.errors,
      );
    return { receipts, added };
  });

  /** What is stored already of the agent call that `event` belongs to. */
  function otherEnds(event: TelemetryEvent, id: number): AgentCallRow[] {
    if (event.call_id === null) return [];
    const earlier = (type: EventType) =>
      selectAgentCall.all(event.session_id, event.call_id, type, id, MAX_CALL_EVENTS);
    if (event.type === "agent_complete") return earlier("agent_spawn");
    if (event.type === "agent_spawn")
      return [...earlier("agent_spawn"), ...earlier("agent_complete")];
    return [];
  }

  function foldSessions(added: (TelemetryEvent & StoredEvent)[]): void {
    for (const [id, events] of Map.groupBy(added, (event) => event.session_id)) {
      const latest = (of: (event: TelemetryEvent) => boolean) =>
        events.reduce((at, e) => (of(e) ? Math.max(at, e.timestamp) : at), 0);
      const count = (of: (event: TelemetryEvent) => boolean) =>
        events.reduce((n, e) => (of(e) ? n + 1 : n), 0);
      upsertSession.run(
        id,
        events.reduce((at, e) => Math.min(at, e.timestamp), Infinity),
        latest(() => true),
        latest((e) => e.type !== "session_end" && e.type !== "session_update"),
        latest((e) => e.type === "session_end"),
        latest((e) => e.type === "input_requested"),
        latest((e) => e.type === "input_resolved"),
        events.length,
        count((e) => e.type === "tool_use"),
        count((e) => e.type === "agent_spawn"),
        count((e) => e.failed),
        mergedInfo(id, events),
      );
      for (const event of events)
        if (event.type === "session_end")
          event.started_at = selectSession.get(id)?.started_at ?? null;
    }
  }

  /** The session's facts with those of `events`, as JSON; "{}" where they say none. */
  function mergedInfo(id: string, events: TelemetryEvent[]): string {
    if (events.every((event) => event.facts === null)) return "{}";
    const facts: Facts = JSON.parse(selectSession.get(id)?.info ?? "{}");
    for (const event of events)
      for (const [name, value] of Object.entries(event.facts ?? {}))
        if (isNewer(event.timestamp, value, facts[name])) facts[name] = [event.timestamp, value];
    // In the order of the names: the same text in whatever order they came.
    return JSON.stringify(
      Object.fromEntries(Object.entries(facts).sort(([a], [b]) => (a < b ? -1 : 1))),
    );
  }

  // -- Reading

  /** The newest id given, and the one up to which events may be gone. */
  function bounds(): { head: number; watermark: number } {
    return {
      head: selectHead.get()?.seq ?? 0,
      watermark: selectWatermark.get()?.event_id ?? 0,
    };
  }

  /**
   * Stored events of `filter`, at most `limit`, and no more once their data exceeds `maxChars`
   * characters, so that a page is bounded whatever was posted. `done`: there are no more.
   */
  function page(
    filter: EventFilter,
    order: "oldest first" | "newest first",
    limit: number,
    maxChars: number,
  ): { events: StoredEvent[]; done: boolean } {
    // Put together from these fragments only: with `? IS NULL OR …` no index would be used.
    const where = ["id > ? AND id < ?"];
    const values: (string | number)[] = [
      filter.after ?? 0,
      filter.before ?? Number.MAX_SAFE_INTEGER,
    ];
    if (filter.sessionId !== null) {
      where.push("session_id = ?");
      values.push(filter.sessionId);
    }
    if (filter.type !== null) {
      // The + keeps a session's page on the session's index.
      where.push(filter.sessionId === null ? "type = ?" : "+type = ?");
      if (filter.sessionId === null && filter.type !== "tool_use") where.push("type <> 'tool_use'");
      values.push(filter.type);
    }
    const rows = db
      .query<StoredEvent, (string | number)[]>(
        `SELECT
           id,
           type,
           session_id,
           timestamp,
           duration_ms,
           data,
           CASE type WHEN 'session_end' THEN (SELECT started_at FROM sessions WHERE sessions.id = session_id) END AS started_at
         FROM events
         WHERE ${where.join(" AND ")}
         ORDER BY id ${order === "oldest first" ? "ASC" : "DESC"}
         LIMIT ?`,
      )
      .iterate(...values, limit);
    const events: StoredEvent[] = [];
    let chars = 0;
    for (const row of rows) {
      events.push(row);
      chars += row.data.length;
      if (chars >= maxChars) return { events, done: false };
    }
    return { events, done: events.length < limit };
  }

  /** The latest sessions by activity; `now` in milliseconds, for the status. */
  function listSessions(limit: number, now: number): Session[] {
    return db
      .query<SessionRow, Bind[]>(
        "SELECT * FROM sessions ORDER BY last_event_at DESC, id DESC LIMIT ?",
      )
      .all(limit)
      .map((row) => toSession(row, now));
  }

  const selectCalls = db.query<CallRow, Bind[]>(
    `SELECT id, type, timestamp, name, call_id, duration_ms, failed, data
     FROM events
     WHERE session_id = ? AND id > ? AND id <= ?
       AND type IN ('tool_use', 'agent_spawn', 'agent_complete')
     ORDER BY id
     LIMIT ?`,
  );

  /** The long session that is read now, and those that wait for it. */
  let reading: Promise<unknown> = Promise.resolve();

  /**
   * One session with its tool calls and agents, oldest first, as of event `head`; null where there
   * is none. A long one is read in slices, so that others go on meanwhile, and after any other long
   * one: side by side, all of them would hold half an answer in memory.
   */
  function findSession(id: string, now: number): Promise<SessionDetails | null> {
    const row = selectSession.get(id);
    if (row === null || row.tool_count + row.agent_count <= SLICE_ROWS) return readSession(id, now);
    const read = reading.then(() => readSession(id, now));
    reading = read.catch(() => undefined);
    return read;
  }

  async function readSession(id: string, now: number): Promise<SessionDetails | null> {
    const row = closed ? null : selectSession.get(id);
    if (row === null) return null;
    const { head } = bounds();
    const tools: ToolCall[] = [];
    const agentCalls: CallRow[] = [];
    for (let after = 0; ;) {
      const calls = selectCalls.all(id, after, head, SLICE_ROWS);
      for (const call of calls)
        if (call.type === "tool_use") tools.push(toToolCall(call));
        else agentCalls.push(call);
      if (calls.length < SLICE_ROWS) break;
      after = calls.at(-1)?.id ?? head;
      await nextTurn();
      if (closed) return null; // nobody is there to be told
    }
    tools.sort(byTime);
    return {
      session: toSession(row, now),
      tools,
      agents: pairAgents(agentCalls.sort(byTime)),
      head,
    };
  }

  // A window starts at a whole minute: its first, partial hour comes from the minute rows, the
  // rest from the hour rows, so a week over twelve tools reads about 2,500 rows.
  const selectUsage = db.query<UsageStats & { name: string }, Bind[]>(
    `SELECT
       name,
       SUM(count)                              AS count,
       TOTAL(total_ms) / NULLIF(SUM(timed), 0) AS avg_duration_ms,
       TOTAL(total_ms)                         AS total_duration_ms,
       MAX(max_ms)                             AS max_duration_ms,
       SUM(errors)                             AS error_count
     FROM (
       SELECT * FROM usage WHERE type = ? AND span = ? AND start >= ? AND start < ?
       UNION ALL
       SELECT * FROM usage WHERE type = ? AND span = ? AND start >= ?
     )
     GROUP BY name
     HAVING SUM(count) > 0
     ORDER BY 2 DESC, 1`,
  );

  /** Tools used, or agents spawned, since `since` (milliseconds), the most frequent first. */
  function usageStats(type: "tool_use" | "agent_spawn", since: number) {
    const minute = since - (since % MINUTE_MS);
    const hour = Math.ceil(since / HOUR_MS) * HOUR_MS;
    return selectUsage.all(type, MINUTE_MS, minute, hour, type, HOUR_MS, hour);
  }

  /** Events per minute since `since` (milliseconds), oldest first; a minute without any has no row. */
  function activity(since: number): Activity[] {
    return db
      .query<{ start: number; count: number; errors: number }, Bind[]>(
        `SELECT start, count, errors
         FROM usage
         WHERE type = '' AND span = ? AND start >= ?
         ORDER BY start`,
      )
      .all(MINUTE_MS, since - (since % MINUTE_MS))
      .map((row) => ({
        timestamp: iso(row.start),
        count: row.count,
        error_count: row.errors,
      }));
  }

  // -- Retention

  const selectExpired = db.query<{ id: string }, Bind[]>(
    "SELECT id FROM sessions WHERE last_event_at < ? ORDER BY last_event_at LIMIT 1",
  );
  const raiseWatermark = db.query<unknown, Bind[]>(
    "UPDATE watermark SET event_id = MAX(event_id, ?)",
  );
  const deleteEvents = db.query<{ id: number; type: string; failed: number }, Bind[]>(
    `DELETE FROM events
     WHERE id IN (SELECT id FROM events WHERE session_id = ? LIMIT ?)
     RETURNING id, type, failed`,
  );

  const deleteUsage = db.query<unknown, Bind[]>(
    `DELETE FROM usage
     WHERE (type, span, start, name) IN (
       SELECT type, span, start, name
       FROM usage
       WHERE type IN ('', 'tool_use', 'agent_spawn') AND span IN (60000, 3600000) AND start <= ?
       LIMIT ?
     )`,
  );

  /**
   * Deletes up to PRUNE_ROWS events of expired sessions, and the sessions that are then empty.
   * A larger session goes in several steps; its counts are right after each, in case an event
   * brings it back to life, or the process is killed, in between.
   */
  const pruneStep = db.transaction((cutoff: number) => {
    let rows = 0;
    let sessions = 0;
    while (rows < PRUNE_ROWS) {
      const expired = selectExpired.get(cutoff);
      if (expired === null) break;
      const room = PRUNE_ROWS - rows;
      const deleted = deleteEvents.all(expired.id, room);
      rows += deleted.length;
      raiseWatermark.run(Math.max(0, ...deleted.map((row) => row.id)));
      if (deleted.length < room) {
        db.query("DELETE FROM sessions WHERE id = ?").run(expired.id);
        sessions++;
        continue;
      }
      const count = (of: (row: { type: string; failed: number }) => boolean) =>
        deleted.filter(of).length;
      db.query(
        `UPDATE sessions SET
           event_count = event_count - ?,
           tool_count  = tool_count - ?,
           agent_count = agent_count - ?,
           error_count = error_count - ?
         WHERE id = ?`,
      ).run(
        deleted.length,
        count((row) => row.type === "tool_use"),
        count((row) => row.type === "agent_spawn"),
        count((row) => row.failed === 1),
        expired.id,
      );
    }
    return { rows, sessions };
  });

  /**
   * Deletes the sessions without an event since `cutoff` (milliseconds) with all that belongs to
   * them, then gives the pages back. Takes turns with everything else; stops early on `close`, and
   * goes on from there the next time.
   *
   * @returns how many sessions were deleted
   */
  async function prune(cutoff: number): Promise<number> {
    let sessions = 0;
    await inSteps(() => {
      const step = pruneStep.immediate(cutoff);
      sessions += step.sessions;
      stored -= step.rows;
      return step.rows === PRUNE_ROWS;
    });
    await inSteps(() => deleteUsage.run(cutoff - HOUR_MS, PRUNE_ROWS).changes === PRUNE_ROWS);
    let free = pragma("freelist_count");
    if (free === 0) return sessions;
    await inSteps(() => {
      const before = free;
      db.query(`PRAGMA incremental_vacuum(${VACUUM_PAGES})`).all();
      free = pragma("freelist_count");
      return free > 0 && free < before;
    });
    if (!closed) db.query("PRAGMA wal_checkpoint(TRUNCATE)").all();
    return sessions;
  }

  /** Takes `step` again and again, with pauses, until it says that nothing is left. */
  async function inSteps(step: () => boolean): Promise<void> {
    while (!closed && step()) await Bun.sleep(PRUNE_PAUSE_MS);
  }

  function pragma(name: "freelist_count" | "page_count" | "page_size"): number {
    return db.query<Record<string, number>, []>(`PRAGMA ${name}`).get()?.[name] ?? 0;
  }

  // -- The whole

  return {
    /**
     * Stores the events of `posts` in one transaction: all, or none and the error of SQLite.
     * An event whose client_id is known adds nothing; its id is the one first given.
     *
     * @returns a receipt per post, and the events that were new
     */
    append(posts: TelemetryEvent[][]): {
      receipts: Receipt[];
      added: StoredEvent[];
    } {
      const result = appendInTransaction.immediate(posts);
      stored += result.added.length;
      return result;
    },
    page,
    listSessions,
    findSession,
    usageStats,
    activity,
    prune,
    bounds,
    /** Cheap at any size. */
    size(): { events: number; bytes: number } {
      return {
        events: stored,
        bytes: pragma("page_count") * pragma("page_size"),
      };
    },
    /** Writes the log back into the database file and lets go of the directory. */
    close(): void {
      closed = true;
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

function openDatabase(path: string): Database {
  const db = new Database(path, { strict: true });
  try {
    db.run("PRAGMA busy_timeout = 2000"); // at the start only: another process may still be closing it
    const found = refuseForeign(db, path);
    if (found === 0) db.run("PRAGMA auto_vacuum = INCREMENTAL"); // only before the first table
    db.run("PRAGMA journal_mode = WAL"); // readers and the writer don't wait for each other
    db.run("PRAGMA synchronous = FULL"); // an acknowledgement outlives a power cut
    db.run("PRAGMA foreign_keys = ON"); // off by default; CASCADE needs it
    db.run("PRAGMA wal_autocheckpoint = 1600"); // pages, 6.5 MB: 5 to 8 % more posts than with SQLite's 1,000
    db.run(`PRAGMA journal_size_limit = ${8 * 1024 * 1024}`); // bytes: a log that once grew is cut again
    for (const [index, migration] of MIGRATIONS.entries())
      if (index >= found)
        db.transaction(() => {
          db.run(migration);
          db.run(`PRAGMA user_version = ${index + 1}`);
        }).immediate();
    db.run("PRAGMA busy_timeout = 0"); // waiting would stop every request: Ingest tries again instead
    return db;
  } catch (error) {
    db.close();
    throw error;
  }
}

/**
 * The schema version of the file; 0 where it is new. Only reads.
 *
 * @throws StartError where it isn't ours, or newer; SQLiteError where it is corrupt
 */
function refuseForeign(db: Database, path: string): number {
  const pragma = (name: string) =>
    Object.values(db.query<Record<string, unknown>, []>(`PRAGMA ${name}`).get() ?? {})[0];
  const pages = Number(pragma("page_count"));
  if (pages === 0) return 0;
  if (pragma("application_id") !== APPLICATION_ID)
    throw new StartError([`${path}: the database of another program; set another DATA_DIR`]);
  const schema = Number(pragma("user_version"));
  if (schema > MIGRATIONS.length)
    throw new StartError([
      `${path}: written by a newer version of this server (schema ${schema}, this one knows ${MIGRATIONS.length}): use that version, or another DATA_DIR. Nothing was changed`,
    ]);
  const found = pages <= MAX_CHECKED_PAGES ? pragma("quick_check(1)") : "ok";
  if (found !== "ok") throw new StartError([unusable(path, String(found))]);
  return schema;
}

/** 64 MB, read in some 100 ms; a larger file isn't checked as a whole, so that it starts as fast. */
const MAX_CHECKED_PAGES = 16_384;

function unusable(path: string, reason: string): string {
  return `${path}: not a database that this server can use (${reason.replace(/\s+/g, " ")}); move it away or put a backup in its place, then start again. Nothing was deleted`;
}

function countEvents(db: Database): number {
  return db.query<{ n: number }, []>("SELECT TOTAL(event_count) AS n FROM sessions").get()?.n ?? 0;
}

function asStartError(path: string, error: unknown): StartError {
  if (error instanceof StartError) return error;
  return new StartError([
    isBusy(error)
      ? `${path}: locked by another process; end it, then start again`
      : unusable(path, messageOf(error)),
  ]);
}

/** Another process has the database, for now. */
function isBusy(error: unknown): boolean {
  return error instanceof SQLiteError && (error.code ?? "").startsWith("SQLITE_BUSY");
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/**
 * Adds what `event` counts for to `usage`.
 *
 * An agent is counted by its spawn and timed by its completion. A completion that says its type
 * and duration, or has no call_id, counts by itself; any other with the first spawn of its call,
 * whichever is stored first.
 *
 * @param others what is stored already of the same agent call
 */
function countUsage(
  usage: Map<string, UsageDelta>,
  event: TelemetryEvent,
  others: AgentCallRow[],
): void {
  function add(
    type: "" | "tool_use" | "agent_spawn",
    name: string,
    of: { timestamp: number; failed: boolean | number },
    duration: number | null,
    {
      count = 0,
      times = 1,
      isPosted = true,
    }: { count?: 0 | 1; times?: 1 | -1; isPosted?: boolean } = {},
  ) {
    for (const span of type === "" ? [MINUTE_MS] : [MINUTE_MS, HOUR_MS]) {
      const index = Math.floor(of.timestamp / span);
      const key = `${type} ${span} ${index} ${name}`;
      let row = usage.get(key);
      if (row === undefined) {
        const start = index * span;
        row = { type, span, start, name, count: 0, timed: 0, total_ms: 0, max_ms: null, errors: 0 };
        usage.set(key, row);
      }
      row.count += count;
      if (of.failed) row.errors += times;
      if (duration === null) continue;
      row.timed += times;
      row.total_ms += times * duration;
      // Of durations that were posted: one that was worked out may be taken back, its maximum can't.
      if (isPosted) row.max_ms = Math.max(row.max_ms ?? 0, duration);
    }
  }

  const standsAlone = (end: AgentCallRow) =>
    end.call_id === null || (end.name !== null && end.duration_ms !== null);
  const addPair = (spawn: AgentCallRow, end: AgentCallRow, times: 1 | -1) => {
    const duration = end.duration_ms ?? agentDuration(spawn, end);
    const isPosted = end.duration_ms !== null;
    add("agent_spawn", end.name ?? spawn.name ?? "unknown", end, duration, { times, isPosted });
  };
  const [first] = others.filter((row) => row.type === "agent_spawn").sort(bySpawnOrder);

  add("", "", event, null, { count: 1 });
  switch (event.type) {
    case "tool_use":
      add(event.type, event.name ?? "", event, event.duration_ms, { count: 1 });
      break;
    case "agent_spawn":
      add(event.type, event.name ?? "", event, event.duration_ms, { count: 1 });
      if (first !== undefined && bySpawnOrder(first, event) <= 0) break;
      for (const end of others) {
        if (end.type !== "agent_complete" || standsAlone(end)) continue;
        if (first !== undefined) addPair(first, end, -1); // a call posted twice, the later one first
        addPair(event, end, 1);
      }
      break;
    case "agent_complete":
      if (standsAlone(event)) add("agent_spawn", event.name ?? "unknown", event, event.duration_ms);
      else if (first !== undefined) addPair(first, event, 1);
      break;
  }
}

/** The same first spawn of a call in whatever order they were stored. */
function bySpawnOrder(a: AgentCallRow, b: AgentCallRow): number {
  const key = (spawn: AgentCallRow) => `${spawn.name} ${spawn.duration_ms}`;
  return a.timestamp - b.timestamp || (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0);
}

/** How long an agent took whose completion doesn't say: null where the spawn says it itself. */
function agentDuration(spawn: AgentCallRow, end: AgentCallRow): number | null {
  return spawn.duration_ms === null ? Math.max(0, end.timestamp - spawn.timestamp) : null;
}

/** At the same time the greater JSON text wins, so that the order of arrival doesn't. */
function isNewer(
  at: number,
  value: unknown,
  known: [at: number, value: unknown] | undefined,
): boolean {
  if (known === undefined || at !== known[0]) return known === undefined || at > known[0];
  return JSON.stringify(value) > JSON.stringify(known[1]);
}

/** Oldest first. */
function byTime(
  a: { timestamp: number | string; id: number },
  b: { timestamp: number | string; id: number },
): number {
  return a.timestamp < b.timestamp ? -1 : a.timestamp > b.timestamp ? 1 : a.id - b.id;
}

function toSession(row: SessionRow, now: number): Session {
  const hasEnded = row.last_end_at > 0 && row.last_end_at >= row.last_activity_at;
  const waits = row.asked_at > Math.max(row.answered_at, row.last_end_at);
  const facts: Facts = JSON.parse(row.info);
  const { parent_session_id, ...info } = Object.fromEntries(
    Object.entries(facts).map(([name, [, value]]) => [name, value]),
  );
  return {
    id: row.id,
    started_at: iso(row.started_at),
    ended_at: hasEnded ? iso(row.last_end_at) : null,
    status: hasEnded ? "completed" : now - row.last_event_at >= STALE_MS ? "stale" : "active",
    tool_count: row.tool_count,
    agent_count: row.agent_count,
    event_count: row.event_count,
    error_count: row.error_count,
    last_event_at: iso(row.last_event_at),
    waiting_since: waits ? iso(row.asked_at) : null,
    parent_session_id: textOrNull(parent_session_id),
    info,
  };
}

function toToolCall(row: CallRow): ToolCall {
  const data: Record<string, unknown> = JSON.parse(row.data);
  const args = data.args ?? null;
  return {
    id: row.id,
    tool: row.name ?? "",
    args: typeof args === "string" || args === null ? args : JSON.stringify(args),
    timestamp: iso(row.timestamp),
    duration_ms: row.duration_ms,
    call_id: row.call_id,
    success: row.failed ? false : data.success === true ? true : null,
    error: data.error ?? null,
  };
}

/**
 * The agents of a session, from its calls in the order of time. A spawn is completed by the first
 * completion of its call_id that is not another's; without one, of its type that is not older.
 */
function pairAgents(calls: CallRow[]): AgentRun[] {
  const callKey = (row: CallRow) => (row.call_id === null ? typeKey(row) : `call ${row.call_id}`);
  const typeKey = (row: CallRow) => `type ${row.name}`;
  const open = Map.groupBy(
    calls.filter((call) => call.type === "agent_complete"),
    callKey,
  );
  const takeEnd = (key: string, since: number) => {
    const ends = open.get(key) ?? [];
    const index = ends.findIndex((row) => row.timestamp >= since);
    return index < 0 ? undefined : ends.splice(index, 1)[0];
  };

  return calls
    .filter((call) => call.type === "agent_spawn")
    .map((spawn) => {
      const end =
        takeEnd(callKey(spawn), spawn.call_id === null ? spawn.timestamp : 0) ??
        takeEnd(typeKey(spawn), spawn.timestamp);
      const data: Record<string, unknown> = JSON.parse(spawn.data);
      const endData: Record<string, unknown> = end === undefined ? {} : JSON.parse(end.data);
      const succeeded = data.success === true || end !== undefined;
      return {
        id: spawn.id,
        subagent_type: spawn.name ?? "unknown",
        prompt: textOrNull(data.prompt),
        timestamp: iso(spawn.timestamp),
        duration_ms:
          spawn.duration_ms ??
          end?.duration_ms ??
          (end === undefined ? null : agentDuration(spawn, end)),
        call_id: spawn.call_id,
        child_session_id: textOrNull(data.child_session_id ?? endData.child_session_id),
        completed_at: end === undefined ? null : iso(end.timestamp),
        success: spawn.failed || end?.failed ? false : succeeded ? true : null,
        error: endData.error ?? data.error ?? null,
      };
    });
}

function iso(ms: number): string {
  return new Date(ms).toISOString();
}

// ─── Hub ─────────────────────────────────────────────────────────────────────
// Fan-out. The database is the queue; a subscriber is only a cursor on it. A live subscriber with
// room gets the frames of a batch, encoded once for all; one without room stops being live and is
// filled from the log, page by page, as its stream pulls, until it has caught up. Resuming from
// Last-Event-ID is the same path. So a slow client costs bounded memory and loses nothing, and as
// SQLite is synchronous here, there is no gap between history and live.

/** Bytes that wait for one subscriber before it stops being live. */
const SUBSCRIBER_QUEUE_BYTES = 64 * 1024;
/** Rows and characters of one page read from the log: a few milliseconds, and about the queue. */
const PAGE_ROWS = 500;
const PAGE_CHARS = 64 * 1024;
/**
 * Read in a turn of the event loop for all streams together, though each gets one. More than a
 * batch brings, or a stream that is behind would stay so.
 */
const PAGES_PER_TURN = 4;
/** Under the idle timeout of the server, and of proxies. */
const HEARTBEAT_MS = 15 * SECOND_MS;
/** How long a browser waits before it comes back. */
const RETRY_MS = 1_000;

const DELETED = "events after the last event id were deleted, or it is from another database";

const encoder = new TextEncoder();
const HEARTBEAT = encoder.encode(":\n\n");

interface Subscriber {
  readonly sessionId: string | null;
  readonly controller: ReadableStreamDefaultController<Uint8Array>;
  /** The id up to which it was sent everything. */
  cursor: number;
  /** It has everything that is stored, so the next batch can go straight to it. */
  live: boolean;
  /** The store's, when its cursor was last found to be above it, or 0. */
  watermark: number;
}

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

/** Tells a client that events are missing before id `head`, from which it goes on, and why. */
function resetFrame(reason: string, head: number): string {
  return `id: ${head}\nevent: reset\ndata: ${JSON.stringify({ reason, last_event_id: head })}\n\n`;
}

/**
 * A frame of text/event-stream. JSON.stringify escapes CR and LF, the only characters that end a
 * line there, so no field can break out of it.
 */
export function encodeFrame(event: StoredEvent): string {
  return `id: ${event.id}\nevent: ${event.type}\ndata: ${eventJson(event)}\n\n`;
}

/**
 * @param onError told of what the store throws while a stream is filled; that stream ends, and its
 *   client comes back with the last id that it has
 */
export function createHub(
  store: Pick<Store, "page" | "bounds">,
  onError: (error: unknown) => void = () => {},
) {
  const subscribers = new Set<Subscriber>();
  let pagesThisTurn = 0;

  function send({ controller }: Subscriber, chunk: Uint8Array): void {
    try {
      controller.enqueue(chunk);
    } catch {
      // It was cancelled in this turn of the event loop; cancel() takes it from the set.
    }
  }

  /** Sends one page from the log; live again where it was the last. */
  function fill(subscriber: Subscriber): void {
    const { head, watermark } = store.bounds();
    const wasPruned = watermark > subscriber.watermark && watermark > subscriber.cursor;
    subscriber.watermark = watermark;
    if (wasPruned) {
      subscriber.cursor = head;
      send(subscriber, encoder.encode(resetFrame(DELETED, head)));
    }
    const { events, done } = store.page(
      { after: subscriber.cursor, before: null, sessionId: subscriber.sessionId, type: null },
      "oldest first",
      PAGE_ROWS,
      PAGE_CHARS,
    );
    const last = events.at(-1);
    if (last !== undefined) {
      subscriber.cursor = last.id;
      send(subscriber, encoder.encode(events.map(encodeFrame).join("")));
    }
    if (done) {
      subscriber.cursor = head; // past what its filter left out
      subscriber.live = true;
    }
  }

  /** What a stream waits for after a page, so that others have their turn. */
  function afterPage(): Promise<void> | undefined {
    if (pagesThisTurn === 0) setImmediate(() => (pagesThisTurn = 0));
    return ++pagesThisTurn < PAGES_PER_TURN ? undefined : nextTurn();
  }

  /** Why the log can't be continued from `cursor` without a gap; null: it can. */
  function refusal(cursor: string): string | null {
    const { head, watermark } = store.bounds();
    if (!/^\d{1,16}$/.test(cursor)) return "the last event id is not a number";
    if (Number(cursor) > head)
      return "the last event id is ahead of the log: from another database";
    if (Number(cursor) < watermark && Number(cursor) !== 0) return DELETED;
    return null;
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
     */
    subscribe(sessionId: string | null, cursor: string | null): ReadableStream<Uint8Array> {
      let subscriber: Subscriber;
      return new ReadableStream<Uint8Array>(
        {
          start(controller) {
            const { head, watermark } = store.bounds();
            const reason = cursor === null ? null : refusal(cursor);
            const from = cursor === null || reason !== null ? head : Number(cursor);
            subscriber = { sessionId, controller, cursor: from, live: false, watermark };
            subscribers.add(subscriber);
            // An id without data is no event, but where the client would resume from.
            const hello = `: PAI Observability ${version}\nretry: ${RETRY_MS}\nid: ${from}\n\n`;
            const reset = reason === null ? "" : resetFrame(reason, head);
            controller.enqueue(encoder.encode(hello + reset));
          },
          pull(controller) {
            if (subscriber.live) return;
            try {
              fill(subscriber);
            } catch (error) {
              onError(error);
              subscribers.delete(subscriber);
              controller.close();
            }
            return afterPage();
          },
          cancel() {
            subscribers.delete(subscriber);
          },
        },
        new ByteLengthQueuingStrategy({ highWaterMark: SUBSCRIBER_QUEUE_BYTES }),
      );
    },

    /** The stored events of `filter`, oldest first, as NDJSON: read as fast as it is taken. */
    history(filter: EventFilter, limit: number): ReadableStream<Uint8Array> {
      let after = filter.after;
      let left = limit;
      return new ReadableStream<Uint8Array>(
        {
          pull(controller) {
            try {
              const rows = Math.min(left, PAGE_ROWS);
              const { events, done } = store.page(
                { ...filter, after },
                "oldest first",
                rows,
                PAGE_CHARS,
              );
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
        },
        new ByteLengthQueuingStrategy({ highWaterMark: SUBSCRIBER_QUEUE_BYTES }),
      );
    },

    /** Sends a committed batch, in the order of its ids, to every live subscriber that has room. */
    publish(events: StoredEvent[]): void {
      const last = events.at(-1);
      if (last === undefined || subscribers.size === 0) return;
      const frames = events.map(encodeFrame);
      const all = encoder.encode(frames.join(""));
      const bySession = new Map<string, Uint8Array>();
      const ofSession = (sessionId: string) => {
        let chunk = bySession.get(sessionId);
        if (chunk === undefined) {
          chunk = encoder.encode(
            frames.filter((_, index) => events[index]?.session_id === sessionId).join(""),
          );
          bySession.set(sessionId, chunk);
        }
        return chunk;
      };
      for (const subscriber of subscribers) {
        if (!subscriber.live) continue;
        const chunk = subscriber.sessionId === null ? all : ofSession(subscriber.sessionId);
        if (chunk.byteLength === 0) subscriber.cursor = last.id;
        else if ((subscriber.controller.desiredSize ?? 0) > 0) {
          send(subscriber, chunk);
          subscriber.cursor = last.id;
        } else subscriber.live = false;
      }
    },

    /** Keeps quiet streams open, and lets the idle timeout find those that nobody reads. */
    heartbeat(): void {
      for (const subscriber of subscribers)
        if (subscriber.live && (subscriber.controller.desiredSize ?? 0) > 0)
          send(subscriber, HEARTBEAT);
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
/** Events that may wait meanwhile: at 1 KB each, some tens of megabytes. */
const MAX_PENDING_EVENTS = 20_000;

const RETRY_LATER = { "Retry-After": "2" };

interface PendingPost {
  events: TelemetryEvent[];
  since: number;
  resolve: (receipt: Receipt) => void;
  reject: (error: unknown) => void;
}

export function createIngest(
  store: Pick<Store, "append">,
  hub: Pick<Hub, "publish">,
  now: () => number,
) {
  let pending: PendingPost[] = [];
  let pendingEvents = 0;

  /** Closes the batch once a turn of the event loop has brought nothing more. */
  function collect(turnsLeft: number, seen: number): void {
    if (turnsLeft > 0 && pending.length > seen)
      setImmediate(collect, turnsLeft - 1, pending.length);
    else flush();
  }

  function flush(): void {
    const batch = pending;
    const oldest = batch[0];
    if (oldest === undefined) return;
    let result: ReturnType<Store["append"]>;
    try {
      result = store.append(batch.map((post) => post.events));
    } catch (error) {
      if (isBusy(error) && now() - oldest.since < BUSY_LIMIT_MS) {
        setTimeout(flush, BUSY_RETRY_MS);
        return;
      }
      open();
      for (const post of batch) post.reject(error);
      return;
    }
    open();
    for (const [index, post] of batch.entries())
      post.resolve(result.receipts[index] ?? { ids: [], stored: 0 });
    hub.publish(result.added);
  }

  /** Starts the next batch. */
  function open(): void {
    pending = [];
    pendingEvents = 0;
  }

  return {
    /**
     * Resolves once the events are committed; rejects with the error of SQLite where the whole
     * batch failed.
     *
     * @throws HttpError 503 where too many wait for a locked database already
     */
    submit(events: TelemetryEvent[]): Promise<Receipt> {
      if (pendingEvents + events.length > MAX_PENDING_EVENTS && pendingEvents > 0)
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
    flush,
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

export function createGuard(config: Config) {
  const digest = (text: string) => new Bun.CryptoHasher("sha256").update(text).digest();
  const wanted = config.authToken === null ? null : digest(config.authToken);
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
      const host = req.headers.get("host")?.toLowerCase() ?? "";
      const name = HOST_HEADER.exec(host)?.[1];
      // Two Host headers arrive joined by a comma, which no name matches.
      if (name === undefined || !URL.canParse(`http://${host}`))
        throw new HttpError(400, "Host: expected one host name, with or without a port");
      if (
        !isLoopback(name.replace(/^\[|\]$/g, "")) &&
        !config.allowedHosts.includes(name) &&
        !config.allowedHosts.includes(host)
      )
        throw new HttpError(
          403,
          `Host: ${name} is not a name of this server; ALLOWED_HOSTS can add it`,
        );

      const origin = req.headers.get("origin");
      if (origin !== null && config.allowedOrigins.includes(origin))
        return {
          "Access-Control-Allow-Origin": origin,
          "Access-Control-Allow-Methods": "GET, POST",
          "Access-Control-Allow-Headers": "Authorization, Content-Type, Last-Event-ID",
          "Access-Control-Expose-Headers": "Last-Event-ID, Retry-After",
          "Access-Control-Max-Age": "600",
          Vary: "Origin",
        };
      if (origin !== null && origin !== `http://${host}`)
        throw new HttpError(403, "Origin: not a page of this server; ALLOWED_ORIGINS can add it");
      const site = req.headers.get("sec-fetch-site");
      const isOpening =
        req.method === "GET" &&
        req.headers.get("sec-fetch-mode") === "navigate" &&
        req.headers.get("sec-fetch-dest") === "document" &&
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
      return new Bun.Cookie(TOKEN_COOKIE, given, {
        maxAge: TOKEN_COOKIE_SECONDS,
        httpOnly: true,
        sameSite: "strict",
        path: "/",
      }).serialize();
    },

    /** @throws HttpError 401 where a token is wanted and neither header nor cookie has it */
    checkToken(req: Request): void {
      if (wanted === null) return;
      const bearer = /^Bearer +(\S+)$/i.exec(req.headers.get("authorization") ?? "")?.[1];
      const cookie = new Bun.CookieMap(req.headers.get("cookie") ?? "").get(TOKEN_COOKIE);
      if (!isToken(bearer) && !isToken(cookie))
        throw new HttpError(
          401,
          "Authorization: expected Bearer and the AUTH_TOKEN of this server; in a browser, open /?token=… once",
          { "WWW-Authenticate": "Bearer" },
        );
    },
  };
}

/**
 * The body of a POST as text, and whether it is NDJSON.
 *
 * @throws HttpError 400 invalid UTF-8, 413 more than MAX_BODY_BYTES, 415 not JSON
 */
async function readBody(req: Request): Promise<{ text: string; isNdjson: boolean }> {
  const type = req.headers.get("content-type")?.split(";")[0]?.trim().toLowerCase();
  if (type !== "application/json" && type !== NDJSON)
    throw new HttpError(
      415,
      `Content-Type: expected application/json or ${NDJSON}; got ${type ?? "none"}`,
    );
  if ((req.headers.get("content-encoding") ?? "identity") !== "identity")
    throw new HttpError(415, "Content-Encoding: expected none");
  const tooLarge = () =>
    new HttpError(413, `body: expected at most ${MAX_BODY_BYTES} bytes; send several`);
  const length = req.headers.get("content-length");
  let bytes: Uint8Array;
  if (length !== null) {
    if (Number(length) > MAX_BODY_BYTES) throw tooLarge();
    bytes = await req.bytes();
  } else {
    const chunks: Uint8Array[] = [];
    let size = 0;
    for await (const chunk of req.body ?? []) {
      size += chunk.byteLength;
      if (size > MAX_BODY_BYTES) throw tooLarge();
      chunks.push(chunk);
    }
    bytes = Buffer.concat(chunks);
  }
  try {
    return { text: decoder.decode(bytes), isNdjson: type === NDJSON };
  } catch {
    throw new HttpError(400, "body: expected UTF-8");
  }
}

// ─── Routes ──────────────────────────────────────────────────────────────────
// One table. A handler is a few lines and holds no SQL; it throws an HttpError, and one place
// answers it.

type Method = "GET" | "POST";
type Params = Record<string, string>;
type Handler = (req: Request, params: Params) => Response | Promise<Response>;
type RouteTable = Record<string, Partial<Record<Method, Handler>>>;

const DEFAULT_LIMIT = 100;
const MAX_LIMIT = 1_000;
const DEFAULT_HOURS = 24;
/** Characters of data in one answer of the history, whatever its limit. */
const MAX_ANSWER_CHARS = 4 * 1024 * 1024;

const COMMON_HEADERS = {
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cache-Control": "no-store",
};
const STREAMED = [NDJSON, EVENT_STREAM];
const JSON_HEADERS = { ...COMMON_HEADERS, "Content-Type": "application/json" };

function json(body: unknown, status = 200, headers?: Record<string, string>): Response {
  return new Response(JSON.stringify(body), {
    status,
    headers: headers === undefined ? JSON_HEADERS : { ...JSON_HEADERS, ...headers },
  });
}

/** Read without a token: "/" asks for it itself, because it also takes it. */
const PUBLIC_ROUTES = ["/", "/health"];
/** Bun's bundle of the page. It passes by every handler, so "/" fetches it from here and guards it. */
const DASHBOARD_ROUTE = "/dashboard.html";

/** What the routes need of the rest. `now` is the clock, in milliseconds. */
interface Context {
  config: Config;
  guard: Guard;
  /** The HTML of the page. */
  dashboardHtml: () => Promise<string>;
  store: Store;
  hub: Hub;
  ingest: ReturnType<typeof createIngest>;
  now: () => number;
  startedAt: number;
}

function createRoutes(context: Context): RouteTable {
  const { config, guard, dashboardHtml, store, hub, ingest, now, startedAt } = context;
  /** Where a stream goes on after this answer, as a header: see the README, "From history to live". */
  const headId = (head = store.bounds().head) => ({ "Last-Event-ID": String(head) });
  const since = (req: Request) => now() - hoursParam(query(req)) * HOUR_MS;

  const postEvents: Handler = async (req) => {
    const { text, isNdjson } = await readBody(req);
    const { events, isBatch } = parseBody(text, isNdjson, now());
    const { ids, stored } = await ingest.submit(events);
    return json(isBatch ? { ids } : { id: ids[0] }, stored > 0 ? 201 : 200);
  };

  return {
    "/": {
      GET: async (req) => {
        const token = query(req).get("token");
        const cookie = token === null ? null : guard.loginCookie(token);
        if (cookie !== null)
          return new Response(null, {
            status: 303, // so that the token leaves the address bar
            headers: { ...COMMON_HEADERS, Location: "/", "Set-Cookie": cookie },
          });
        guard.checkToken(req);
        return new Response(await dashboardHtml(), {
          headers: { ...COMMON_HEADERS, "Content-Type": "text/html; charset=utf-8" },
        });
      },
    },
    "/health": {
      GET: () => {
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
      },
    },
    "/events": { POST: postEvents },
    "/api/events": {
      POST: postEvents,
      GET: (req) => {
        const params = query(req);
        const filter = filterParams(params);
        if (req.headers.get("accept")?.includes(NDJSON)) {
          const limit = params.has("limit") ? limitParam(params) : Infinity;
          const before = Math.min(filter.before ?? Infinity, store.bounds().head + 1);
          return new Response(hub.history({ ...filter, before }, limit), {
            headers: { ...COMMON_HEADERS, "Content-Type": NDJSON },
          });
        }
        const { events } = store.page(
          filter,
          filter.after === null ? "newest first" : "oldest first",
          limitParam(params),
          MAX_ANSWER_CHARS,
        );
        return new Response(`{"events":[${events.map(eventJson).join(",")}]}`, {
          headers: { ...JSON_HEADERS, ...headId() },
        });
      },
    },
    "/api/events/stream": {
      GET: (req) => {
        if (hub.size >= config.maxSubscribers)
          throw new HttpError(
            503,
            `already ${hub.size} streams; MAX_SUBSCRIBERS allows more`,
            RETRY_LATER,
          );
        const params = query(req);
        const cursor = req.headers.get("last-event-id") || params.get("lastEventId") || null;
        return new Response(hub.subscribe(params.get("sessionId") || null, cursor), {
          headers: {
            ...COMMON_HEADERS,
            "Content-Type": EVENT_STREAM,
            "X-Accel-Buffering": "no", // or nginx holds events back
          },
        });
      },
    },
    "/api/sessions": {
      GET: (req) =>
        json({ sessions: store.listSessions(limitParam(query(req)), now()) }, 200, headId()),
    },
    "/api/sessions/:sessionId": {
      GET: async (_req, params) => {
        const id = params.sessionId ?? "";
        const found = await store.findSession(id, now());
        if (found === null)
          throw new HttpError(404, `no session ${JSON.stringify(id.slice(0, MAX_ID_CHARS))}`);
        const { head, ...details } = found;
        return json(details, 200, headId(head));
      },
    },
    "/api/analytics/tools": {
      GET: (req) =>
        json({
          tools: store
            .usageStats("tool_use", since(req))
            .map(({ name, ...stats }) => ({ tool: name, ...stats })),
        }),
    },
    "/api/analytics/agents": {
      GET: (req) =>
        json({
          agents: store
            .usageStats("agent_spawn", since(req))
            .map(({ name, ...stats }) => ({ subagent_type: name, ...stats })),
        }),
    },
    "/api/analytics/activity": {
      GET: (req) => json({ activity: store.activity(since(req)) }, 200, headId()),
    },
    "/plugin/observability.ts": {
      GET: () =>
        new Response(Bun.file(new URL("./plugin/observability.ts", import.meta.url)), {
          headers: { ...COMMON_HEADERS, "Content-Type": "text/plain; charset=utf-8" },
        }),
    },
  };
}

/** One event, an array of them, or one per line (NDJSON). @throws HttpError 400 with the index of the bad one */
function parseBody(
  text: string,
  isNdjson: boolean,
  receivedAt: number,
): { events: TelemetryEvent[]; isBatch: boolean } {
  const parseAt = (index: number, read: () => unknown) => {
    try {
      return parseEvent(read(), receivedAt);
    } catch (error) {
      if (error instanceof HttpError)
        throw new HttpError(error.status, `event ${index}: ${error.message}`);
      throw error;
    }
  };
  if (isNdjson) {
    const lines = text.split("\n").filter((line) => line.trim() !== "");
    return {
      events: lines.map((line, index) => parseAt(index, () => parseJson(line))),
      isBatch: true,
    };
  }
  const body = parseJson(text);
  if (!Array.isArray(body)) return { events: [parseEvent(body, receivedAt)], isBatch: false };
  return { events: body.map((item, index) => parseAt(index, () => item)), isBatch: true };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new HttpError(400, `malformed JSON: ${messageOf(error)}`);
  }
}

function query(req: Request): URLSearchParams {
  return new URL(req.url).searchParams;
}

function limitParam(params: URLSearchParams): number {
  const text = params.get("limit");
  if (text === null) return DEFAULT_LIMIT;
  if (!/^\d{1,4}$/.test(text) || Number(text) < 1 || Number(text) > MAX_LIMIT)
    throw invalid("limit", `a whole number from 1 to ${MAX_LIMIT}`, text);
  return Number(text);
}

function hoursParam(params: URLSearchParams): number {
  const text = params.get("hours");
  if (text === null) return DEFAULT_HOURS;
  if (!/^\d{0,9}(\.\d{1,9})?$/.test(text) || !(Number(text) > 0))
    throw invalid("hours", "a number above 0, fractions allowed", text);
  return Number(text);
}

function filterParams(params: URLSearchParams): EventFilter {
  const id = (name: "after" | "before") => {
    const text = params.get(name);
    if (text === null) return null;
    if (!/^\d{1,16}$/.test(text)) throw invalid(name, "the id of an event", text);
    return Number(text);
  };
  const type = params.get("type");
  if (type !== null && !isEventType(type))
    throw invalid("type", `one of ${Object.keys(EVENT_TYPES).join(", ")}`, type);
  const sessionId = params.get("sessionId") || null;
  return { after: id("after"), before: id("before"), sessionId, type };
}

/** The answer to `req`: of its handler, or of what went wrong. Nothing else turns errors into answers. */
async function answer(
  req: Request,
  params: Params,
  methods: Partial<Record<Method, Handler>> | undefined,
  guard: Guard,
  isPublic: boolean,
  log: Log,
): Promise<Response> {
  let cors: Record<string, string> = {};
  let response: Response;
  try {
    cors = guard.checkOrigin(req);
    if (req.method === "OPTIONS" && methods !== undefined)
      response = new Response(null, {
        status: 204,
        headers: { ...COMMON_HEADERS, Allow: allowed(methods) },
      });
    else {
      if (!isPublic) guard.checkToken(req);
      if (methods === undefined) throw new HttpError(404, "no such route");
      const isHead = req.method === "HEAD";
      const method = isHead ? "GET" : req.method;
      const handler = method === "GET" || method === "POST" ? methods[method] : undefined;
      if (handler === undefined)
        throw new HttpError(405, `${req.method} is not for this route`, {
          Allow: allowed(methods),
        });
      response = await handler(req, params);
      // Bun leaves out the body of an answer to HEAD; a stream would go on without a reader.
      if (isHead && STREAMED.includes(response.headers.get("Content-Type") ?? "")) {
        await response.body?.cancel();
        response = new Response(null, response);
      }
    }
  } catch (error) {
    const { status, message, headers } = asHttpError(error, log);
    // What was got is the client's, and private.
    const [reason] = message.split(/; got |(?<=malformed JSON): |(?<=no session) /);
    log.debug(`${status} ${req.method} ${req.url.replace(/\?.*/s, "")}: ${reason}`);
    response = json({ error: message }, status, headers);
  }
  for (const [name, value] of Object.entries(cors)) response.headers.set(name, value);
  return response;
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
  const store = openStore(config.dataDir);
  const hub = createHub(store, (error) => asHttpError(error, log));
  const ingest = createIngest(store, hub, now);
  const guard = createGuard(config);
  const routes = createRoutes({
    config,
    guard,
    // From each: Bun bundles the page's script and style for a listener when its page is asked for.
    dashboardHtml: async () => {
      const pages = await Promise.all(
        servers.map(({ url }) => fetch(new URL(DASHBOARD_ROUTE, url))),
      );
      return pages[0]?.text() ?? "";
    },
    store,
    hub,
    ingest,
    now,
    startedAt: now(),
  });

  const serve = (hostname: string, port: number) =>
    Bun.serve({
      hostname,
      port,
      development: false,
      reusePort: false, // development: false turns it on, and two servers share a port (Bun 1.4.5)
      idleTimeout: IDLE_TIMEOUT_SECONDS,
      maxRequestBodySize: Number.MAX_SAFE_INTEGER, // readBody has the limit, and answers in JSON
      routes: {
        ...Object.fromEntries(
          Object.entries(routes).map(([path, methods]) => [
            path,
            (req: Bun.BunRequest) =>
              answer(req, req.params, methods, guard, PUBLIC_ROUTES.includes(path), log),
          ]),
        ),
        [DASHBOARD_ROUTE]: dashboard,
      },
      fetch: (req) => answer(req, {}, undefined, guard, false, log),
    });

  let servers: Bun.Server<undefined>[];
  try {
    servers = listen(config, serve);
  } catch (error) {
    store.close();
    throw error;
  }

  let pruning = Promise.resolve();
  const prune = () => {
    pruning = pruning
      .then(() => store.prune(now() - config.retentionHours * HOUR_MS))
      .then(
        (sessions) => sessions > 0 && log.info(`retention: ${sessions} sessions deleted`),
        (error) => log.warn(`retention: ${messageOf(error)}; tried again in an hour`),
      )
      .then(() => undefined);
  };
  prune();
  const timers = [setInterval(prune, PRUNE_INTERVAL_MS), setInterval(hub.heartbeat, HEARTBEAT_MS)];

  async function stop(): Promise<void> {
    timers.forEach(clearInterval);
    const finished = Promise.all(servers.map((server) => server.stop()));
    ingest.flush();
    hub.close();
    await Promise.race([finished, Bun.sleep(STOP_LIMIT_MS)]);
    await Promise.all(servers.map((server) => server.stop(true)));
    ingest.flush();
    store.close();
    await pruning;
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
