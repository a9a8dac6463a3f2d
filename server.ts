#!/usr/bin/env bun
/**
 * PAI Observability: see live what your coding-agent sessions do. This file is the whole server:
 * `bun start`, then http://localhost:3001. A plugin posts an event when something begins or ends,
 * be it a session, a tool call or a subagent. The life of an event:
 *
 *     POST ──▶ guard ──▶ parse ──▶ batch ──▶ commit: log + folds ──▶ acknowledge
 *                                               └──▶ publish: frames, and the rows they changed
 *
 * Config      the environment, checked; all bad values reported at once
 * Log         one line each, never a payload
 * Events      unknown JSON in, a TelemetryEvent out, or an error that names the field
 * Spans       the one fold: what belongs together, and what it counts for
 * Store       all SQL: the log, the folds (writer), the answers (reader), search, retention
 * Hub         fan-out: a subscriber is a cursor on the log
 * Ingest      group commit: one turn of the event loop, one transaction
 * Guard       who may ask: Host, Origin, token, content type, size
 * Routes      one table, handlers of a few lines
 * Lifecycle   startServer, timers, signals, main
 *
 * A section calls only what stands above it; Events alone asks Spans, for the names of fields.
 */

import { Database, SQLiteError } from "bun:sqlite";
import { appendFileSync, chmodSync, mkdirSync, readdirSync, realpathSync, statSync } from "node:fs";
import { join } from "node:path";
import { dashboardFile, dashboardPage } from "./dashboard/bundle.ts";
import { textIn, wordsIn } from "./dashboard/find.ts";
import { createLogin, loginPage } from "./dashboard/login.ts";
import { createMetrics, METRICS_TYPE } from "./follow/metrics.ts";
import { FOLLOWER_VARIABLES, startFollowers } from "./follow/start.ts";
import { traceEvents } from "./follow/trace.ts";
import { version } from "./package.json";
import { agentOfTask, fromPai } from "./plugin/pai.ts";
import { defaultDataDir, PLUGIN_VERSION, pluginFor, runCommand } from "./plugin/install.ts";
import { createSenders, type Heard, type Senders, type Sent } from "./plugin/senders.ts";
import { STALE_MS, STALE_OPEN_MS, UNHEARD_MS } from "./plugin/senders.ts";

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;
const iso = (ms: number) => new Date(ms).toISOString();
const minuteOf = (ms: number) => ms - (ms % MINUTE_MS);

let lastSlice = Promise.resolve();
/** Between two slices of long work: a turn of the event loop, so that requests and other long answers have theirs. */
const nextSlice = () =>
  (lastSlice = lastSlice.then(() => new Promise((resolve) => setImmediate(resolve))));

// ─── Config ──────────────────────────────────────────────────────────────────
// Reads the environment once, at the start. Nothing else in this file does.

const LOG_LEVELS = ["debug", "info", "warn", "error"] as const;
type LogLevel = (typeof LOG_LEVELS)[number];

type Format = Pick<RegExp, "test">; // what a text must look like
type Rule = readonly [format: Format, expected: string];
const wholeNumber = (min: number, max: number): Rule => [
  { test: (text) => /^\d{1,9}$/.test(text) && Number(text) >= min && Number(text) <= max },
  `a whole number from ${min} to ${max}`,
];
const HOURS = /^(?=.*[1-9])\d{0,9}(\.\d{1,20})?$/; // above 0
const HOST = /^([\w.-]+|\[?[0-9a-f:.]+\]?)$/i;
const HOST_HEADER = /^(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?$/i; // group 1: name, or [v6]
const LEVEL = new RegExp(`^(${LOG_LEVELS.join("|")})$`, "i");
const TRUE_OR_FALSE: Rule = [/^(true|false)$/i, "true or false"];
const TOKEN = /^[\x21-\x7e]{32,}$/;
const ORIGIN: Format = { test: (text) => URL.parse(text)?.origin === text };
const items = (list: string) => list.split(",").flatMap((item) => item.trim() || []);
const list = (one: Format): Format => ({ test: (text) => items(text).every((it) => one.test(it)) });
const bare = (host: string) => host.replace(/^\[|\]$/g, ""); // an IPv6 address without its brackets
const isLoopback = (host: string) => /^(localhost|127(\.\d{1,3}){3}|::1)$/i.test(bare(host));

/** A reason not to start that the user can mend: one line per problem, no stack trace. */
export class StartError extends Error {}

export type Config = ReturnType<typeof loadConfig>;

/** The configuration in `env`; an empty value counts as not set. @throws StartError, one line per bad variable */
export function loadConfig(env: Record<string, string | undefined>) {
  const problems: string[] = [];
  function read(name: string, absent: string, ...[format, expected]: Rule): string {
    const text = env[name]?.trim() || absent;
    if (text === absent || format.test(text)) return text;
    const shown = /TOKEN|HEADERS/.test(name) ? "(not shown)" : JSON.stringify(text);
    problems.push(`${name}=${shown}: expected ${expected}`);
    return absent;
  }

  const config = {
    port: Number(read("PORT", "3001", ...wholeNumber(0, 65_535))),
    host: bare(read("HOST", "localhost", HOST, "a host name or an address, without a port")),
    dataDir: read("DATA_DIR", defaultDataDir(), /./, "a directory"),
    retentionHours: Number(read("RETENTION_HOURS", "168", HOURS, "a number of hours above 0")),
    logLevel: read("LOG_LEVEL", "info", LEVEL, LOG_LEVELS.join(", ")).toLowerCase(),
    authToken: read("AUTH_TOKEN", "", TOKEN, "at least 32 printable characters, no spaces") || null,
    allowedHosts: items(
      read("ALLOWED_HOSTS", "", list(HOST_HEADER), "host names, comma-separated").toLowerCase(),
    ),
    allowedOrigins: items(read("ALLOWED_ORIGINS", "", list(ORIGIN), "origins, comma-separated")),
    maxSubscribers: Number(read("MAX_SUBSCRIBERS", "256", ...wholeNumber(1, 100_000))),
    paiPort: Number(read("PAI_OBSERVABILITY_PORT", "8889", ...wholeNumber(0, 65_535))),
    isPaiEnabled: /^true$/i.test(read("PAI_OBSERVABILITY_ENABLED", "true", ...TRUE_OR_FALSE)),
    followers: Object.fromEntries(
      Object.entries(FOLLOWER_VARIABLES).map(([name, rule]) => [name, read(name, ...rule)]),
    ),
  };
  if (!isLoopback(config.host) && !env.AUTH_TOKEN?.trim())
    problems.push(
      `HOST=${JSON.stringify(config.host)}: not a loopback name, so other machines could read your prompts: set AUTH_TOKEN (at least 32 characters) as well, or use localhost`,
    );
  if (problems.length > 0) throw new StartError(problems.join("\n"));
  return config;
}

// ─── Log ─────────────────────────────────────────────────────────────────────
// One line per message. Never a payload: prompts and arguments are private.

export type Log = Record<LogLevel, (message: string) => void>;

/**
 * Writes messages of `level` and above; warnings and errors go to stderr. It never waits for who reads
 * them: while that one is behind, lines are left out, and then counted.
 */
export function createLog(level: string): Log {
  const out = createWriteLine(process.stdout);
  const err = createWriteLine(process.stderr);
  const lowest = LOG_LEVELS.findIndex((name) => name === level);
  const at = (name: LogLevel) => (message: string) => {
    if (LOG_LEVELS.indexOf(name) < lowest) return;
    // Or a name with a line break in it could forge a line, or move the cursor of a terminal.
    const escaped = message.replace(/[\p{Cc}\u2028\u2029]/gu, escapeChar);
    const write = name === "debug" || name === "info" ? out : err;
    write(`${new Date().toISOString()} ${name} ${escaped}`);
  };
  return { debug: at("debug"), info: at("info"), warn: at("warn"), error: at("error") };
}

function createWriteLine(stream: NodeJS.WriteStream) {
  let isFull = false;
  let leftOutCount = 0;
  stream.on("error", () => {}); // nobody reads it any more
  stream.on("drain", () => {
    isFull = false;
    if (leftOutCount > 0) write(`${leftOutCount} lines were left out: nobody read them`);
    leftOutCount = 0;
  });
  function write(line: string): void {
    if (isFull) leftOutCount++;
    else isFull = !stream.write(`${line}\n`);
  }
  return write;
}

const escapeChar = (char: string) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`;

// ─── Events ──────────────────────────────────────────────────────────────────
// Unknown JSON in, a TelemetryEvent out, or an HttpError that names the field. Pure. The dialect of
// pai-unified.ts is translated at this edge, by plugin/pai.ts: nothing below knows that it exists.

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
const isOutcome = (value: unknown): value is Outcome => OUTCOMES.some((known) => known === value);
const isName = (value: unknown) =>
  typeof value === "string" && value.length > 0 && value.length <= MAX_ID_CHARS;
const isId = (value: unknown) => isName(value) && !/^\.\.?$|\p{Surrogate}/u.test(String(value));
const numberOrNull = (value: unknown) => (typeof value === "number" ? value : null);
/** Well-formed, because SQLite keeps UTF-8: a lone surrogate would come back as another string. */
const textOrNull = (value: unknown) => (typeof value === "string" ? value.toWellFormed() : null);
/** Whole milliseconds, or other units: a sum of fractions would depend on the order of arrival. */
const whole = (value: unknown, units = 1) =>
  typeof value === "number" ? Math.round(value * units) : null;

const MAX_ID_CHARS = 256;
const MAX_FACT_CHARS = 4_096; // of a fact or a preview: short by nature; the event keeps all
const MAX_DEPTH = 64; // JSON.stringify and SQLite's own functions give up at some depth
const EPOCH_SECONDS_LIMIT = 1e11; // from here on milliseconds: as such it is 1973, as seconds 5138
const ISO_WITH_OFFSET = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)$/;

/** What a field must be. Null and absent mean the same: not known. */
type Field = { expected: string; accepts: (value: unknown) => boolean; isRequired?: true };

const field = (expected: string, accepts: Field["accepts"]): Field => ({ expected, accepts });
const required = (known: Field): Field => ({ ...known, isRequired: true });
const either = (one: Field, other: Field) =>
  field(`${one.expected} or ${other.expected}`, (it) => one.accepts(it) || other.accepts(it));
const amount = (what: string, min: number, max: number) =>
  field(`${what} from ${min} to ${max}`, (it) => typeof it === "number" && it >= min && it <= max);

const NAME = field(`a string of 1 to ${MAX_ID_CHARS} characters`, isName);
const NEEDED_NAME = required(NAME);
const ID = field(`${NAME.expected}, other than "." and ".."`, isId); // no URL can name these two; well-formed, or two could be stored as one
const TEXT = field("a string", (value) => typeof value === "string");
const FLAG = field("true or false", (value) => typeof value === "boolean");
const NUMBER = field("a number", Number.isFinite);
const OBJECT = field("an object", isRecord);
const LIST = field("an array", Array.isArray);
const DURATION = amount("a number", 0, 1e12); // ms, thirty years: nothing takes longer, and sums of it stay exact
const TOKENS = amount("a number of tokens", 0, 1e12); // likewise; a number that is none counts as not known
const COST = amount("a number of US dollars", 0, 1e6); // so that sums of `nanodollars` stay exact
const TIME = field(
  "ISO 8601 with an offset (2026-01-01T12:00:00Z), or epoch seconds or milliseconds, after 1970",
  (value) => !Number.isNaN(timeOf(value)),
);

/** How a call ended; `exit`: a command that ended with another code than 0. */
const OUTCOMES = ["ok", "failed", "exit", "denied", "cancelled"] as const;
type Outcome = (typeof OUTCOMES)[number];

const ENVELOPE = { session_id: required(ID), id: ID, timestamp: TIME };
const SESSION_FACTS = {
  ...{ title: TEXT, directory: TEXT, agent: TEXT, model: either(TEXT, OBJECT) },
  ...{ parent_session_id: NAME, sender: NAME, tokens: either(NUMBER, OBJECT), cost: NUMBER },
  ...{ todos: LIST, changes: OBJECT },
};
const LAST_FACTS = { ...SESSION_FACTS, reason: TEXT };
const OUTCOME = field(`one of ${OUTCOMES.join(", ")}`, isOutcome);
const ANSWER = { outcome: OUTCOME, success: FLAG };
const ENDED = { ...ANSWER, duration_ms: DURATION };
const TOOL_RESULT = { ...ENDED, waited_ms: DURATION, exit_code: NUMBER, files: LIST };
const TOOL_CALL = { tool: NEEDED_NAME, call_id: NAME, ...TOOL_RESULT };
const AGENT_TASK = { subagent_type: NEEDED_NAME, description: TEXT, prompt: TEXT };
const AGENT_CALL = { ...ENDED, call_id: NAME, child_session_id: NAME };
const MODEL_CALL = { call_id: NEEDED_NAME, model: NAME, provider: TEXT, agent: TEXT };
const MODEL_USAGE = { first_token_ms: DURATION, tokens: either(NUMBER, OBJECT), cost: COST };
const MODEL_RESULT = { ...ENDED, ...MODEL_USAGE, finish_reason: TEXT, context_limit: NUMBER };
const RETRY_FIELDS = { attempt: NUMBER, message: TEXT, retry_at: TIME };
const INPUT = { request_id: NEEDED_NAME, kind: TEXT };

interface Declaration {
  fields?: Record<string, Field>; // that are checked; others are kept
  facts?: Record<string, Field>; // likewise, of the session as a whole: the newest value of each counts
  kind?: SpanKind; // of the span that it is a half of
  side?: "start" | "end";
}

/** Every accepted type. A new one is one line here. */
export const EVENT_TYPES = {
  session_start: { facts: SESSION_FACTS },
  session_update: { facts: SESSION_FACTS },
  session_end: { facts: LAST_FACTS, fields: { duration_seconds: DURATION } },
  session_error: {},
  session_compacted: {},
  turn_start: { fields: { prompt: TEXT, agent: TEXT, model: either(TEXT, OBJECT) } },
  tool_start: { kind: "tool", side: "start", fields: { tool: NEEDED_NAME, call_id: NEEDED_NAME } },
  tool_use: { kind: "tool", side: "end", fields: TOOL_CALL },
  agent_spawn: { kind: "agent", side: "start", fields: { ...AGENT_TASK, ...AGENT_CALL } },
  agent_complete: { kind: "agent", side: "end", fields: { subagent_type: NAME, ...AGENT_CALL } },
  model_request: { kind: "model", side: "start", fields: MODEL_CALL },
  model_response: { kind: "model", side: "end", fields: { ...MODEL_CALL, ...MODEL_RESULT } },
  input_requested: { kind: "wait", side: "start", fields: { ...INPUT, call_id: NAME } },
  input_resolved: { kind: "wait", side: "end", fields: { ...INPUT, ...ANSWER } },
  retry: { fields: RETRY_FIELDS },
  ...{ tool_blocked: {}, security_block: {}, security_warn: {}, voice_sent: {} },
  ...{ message_user: {}, message_assistant: {}, rating_explicit: {}, rating_implicit: {} },
  ...{ learning_captured: {}, isc_validated: {}, context_loaded: {} },
} satisfies Record<string, Declaration>;

export type EventType = keyof typeof EVENT_TYPES;
const DECLARED: Record<EventType, Declaration> = EVENT_TYPES;
const TYPE_NAMES = Object.keys(EVENT_TYPES).filter(isEventType);

/** An event as the store takes it; `implied`: the agent behind a task call, stored with it or not at all. */
export type TelemetryEvent = ReturnType<typeof parseOwn> & { implied?: TelemetryEvent };

/**
 * The event that `body`, parsed JSON of any kind, describes.
 * @param receivedAt milliseconds: stands for a timestamp that is absent, or later than this
 * @throws HttpError 400 naming the field and what was expected of it
 */
export function parseEvent(body: unknown, receivedAt: number): TelemetryEvent {
  if (!isRecord(body)) throw invalid("event", "a JSON object", body);
  if (isDeeperThan(body, MAX_DEPTH))
    throw new HttpError(400, `event: nested deeper than ${MAX_DEPTH} levels`);
  if (!Object.hasOwn(body, "event_type") || body.type != null) return parseOwn(body, receivedAt);
  const event = parseOwn(fromPai(body), receivedAt, "event_type");
  const agent = agentOfTask(event);
  return agent === null ? event : { ...event, implied: parseOwn(agent, event.timestamp) };
}

function parseOwn(body: Fields, receivedAt: number, typeName = "type") {
  const { id, type, session_id, timestamp, data, ...rest } = body;
  if (!isEventType(type)) throw invalid(typeName, `one of ${TYPE_NAMES.join(", ")}`, type);
  // A number is the id that an exported event has.
  const client_id = Number.isSafeInteger(id) && Number(id) > 0 ? String(id) : id;
  check(ENVELOPE, { session_id, id: client_id, timestamp });
  if (data != null && !isRecord(data)) throw invalid("data", "a JSON object", data);

  const { kind, facts = {}, fields: declared = {} } = DECLARED[type];
  const fields: Fields = { ...rest, ...data };
  check(facts, fields, "data.");
  check(declared, fields, "data.");
  if (type === "agent_complete" && fields.call_id == null && fields.subagent_type == null)
    throw invalid("data.call_id", "the call_id of an agent_spawn, or data.subagent_type");
  const { success, error } = fields;
  for (const name of ["id", "type", "session_id", "timestamp"]) {
    // A frame has its own: data's goes by data_id, or where that is taken too, data_data_id.
    let free = name;
    while (Object.hasOwn(fields, free)) free = `data_${free}`;
    if (free !== name) fields[free] = fields[name];
    delete fields[name];
  }
  const milliseconds = declared?.duration_ms ? fields.duration_ms : null;
  const seconds = declared?.duration_seconds ? fields.duration_seconds : null;
  const duration_ms = whole(milliseconds) ?? whole(seconds, SECOND_MS);
  // Documented on the stream of a tool_use: there even where it isn't known.
  if (type === "tool_use" || milliseconds != null) fields.duration_ms = duration_ms;
  if (fields.duration_seconds === null) delete fields.duration_seconds;
  return {
    client_id: textOrNull(client_id), // the same one again in the same session stores nothing
    session_id: textOrNull(session_id) ?? "",
    type,
    timestamp: timestamp == null ? receivedAt : Math.min(timeOf(timestamp), receivedAt), // milliseconds UTC since 1970
    name: kind ? textOrNull(fields[SPAN_FIELDS[kind].name]) : null,
    call_id: kind ? textOrNull(fields.call_id) : null,
    duration_ms,
    failed: typeof success === "boolean" ? !success : type === "session_error" || Boolean(error),
    facts: factsOf(type, fields),
    fields,
    data: JSON.stringify(fields),
  };
}

/** What an event says of its session as a whole. */
function factsOf(type: EventType, fields: Fields): Fields {
  const said = (known = {}) => shortFields(Object.keys(known), (name) => fields[name]);
  return type === "retry" ? { retry: said(RETRY_FIELDS) } : said(DECLARED[type].facts);
}

function restoreEvent(row: LogRow): LoggedEvent {
  const fields: Fields = JSON.parse(row.data);
  return { ...row, failed: Boolean(row.failed), facts: factsOf(row.type, fields), fields };
}

const INTERVAL = amount("milliseconds", 1_000, 3_600_000);
const SENDER = { sender: NEEDED_NAME, name: NAME, version: NAME, bye: FLAG, every_ms: INTERVAL };

/** What a sender says of itself: that it lives, or (`bye`) that it ends. @throws HttpError 400 */
export function parseSender(body: unknown): Heard {
  if (!isRecord(body)) throw invalid("sender", "a JSON object", body);
  check(SENDER, body);
  return {
    sender: textOrNull(body.sender) ?? "",
    every_ms: numberOrNull(body.every_ms),
    ...{ name: textOrNull(body.name), version: textOrNull(body.version), bye: body.bye === true },
  };
}

const isDay = (it: string) => Number(it.slice(8)) <= 28 || new Date(it).toJSON()?.startsWith(it);
/** A time in milliseconds; NaN for what is none, such as noon of February 30, or noon without an offset: whose? */
function timeOf(value: unknown): number {
  let ms = NaN;
  if (typeof value === "number") ms = value < EPOCH_SECONDS_LIMIT ? value * SECOND_MS : value;
  else if (typeof value === "string" && ISO_WITH_OFFSET.test(value) && isDay(value.slice(0, 10)))
    ms = Date.parse(value);
  const whole = new Date(ms).getTime(); // NaN beyond the newest date that JavaScript can name
  return whole >= 1 ? whole : NaN;
}

/** What `told` says of `names`, cut. */
function shortFields(names: readonly string[], told: (name: string) => unknown): Fields {
  const said: Fields = {};
  for (const name of names) {
    const value = cutFact(told(name));
    if (value != null) said[name] = value;
  }
  return said;
}

/** A longer text is cut, a list keeps the leading items that fit, a longer object goes. */
function cutFact(value: unknown): unknown {
  if (typeof value === "string") return value.slice(0, MAX_FACT_CHARS).toWellFormed();
  if (isRecord(value)) return JSON.stringify(value).length <= MAX_FACT_CHARS ? value : null;
  if (!Array.isArray(value)) return value;
  let chars = 1; // the brackets; each item comes with a comma or a bracket
  return value.filter((item) => (chars += JSON.stringify(item).length + 1) <= MAX_FACT_CHARS);
}

function isDeeperThan(value: object, levels: number): boolean {
  if (levels === 0) return true;
  for (const part of Array.isArray(value) ? value : Object.values(value))
    if (typeof part === "object" && part !== null && isDeeperThan(part, levels - 1)) return true;
  return false;
}

function check<K extends string>(declared: Record<K, Field>, fields: Fields, prefix = ""): void {
  for (const name in declared) {
    const { expected, accepts, isRequired } = declared[name];
    const value = fields[name];
    if (value == null ? isRequired : !accepts(value)) throw invalid(prefix + name, expected, value);
  }
}

/** Of a text that was given, which may be long, only the beginning is shown; of JSON its kind. */
function invalid(name: string, expected: string, value?: unknown): HttpError {
  let got = isRecord(value) ? "an object" : Array.isArray(value) ? "an array" : String(value);
  if (typeof value === "string") {
    got = JSON.stringify(value.slice(0, 40).toWellFormed());
    if (value.length > 40) got += ` (${value.length} characters)`;
  }
  const problem = value === undefined ? "it is missing" : `got ${got}`;
  return new HttpError(400, `${name}: expected ${expected}; ${problem}`);
}

// ─── Spans ───────────────────────────────────────────────────────────────────
// The one fold. A span is whatever has a beginning and an end; all events of one call are one span,
// in whatever order and however often they come. Pure: it knows no database, and counts nothing that
// couldn't be taken back.

const MODEL_SAYS = "provider agent first_token_ms tokens finish_reason context_limit".split(" ");
/** Which fields of its events a span shows; `text`: the first of them that is there. */
const SPAN_FIELDS = {
  tool: { key: "call_id", name: "tool", text: ["args"], attributes: ["exit_code", "files"] },
  agent: { key: "call_id", name: "subagent_type", text: ["description", "prompt"], attributes: [] },
  model: { key: "call_id", name: "model", text: [], attributes: MODEL_SAYS },
  wait: { key: "request_id", name: "kind", text: ["detail"], attributes: ["call_id"] },
};
export type SpanKind = keyof typeof SPAN_FIELDS;
const MAX_SPAN_TEXT_CHARS = 300; // characters of text and error that a span's row carries; the log has all of them

/** How it ended, as one of its events says; null: that says nothing of it. */
function outcomeOf({ type, duration_ms, failed, fields }: TelemetryEvent): Outcome | null {
  const { outcome, success, error } = fields;
  const saysOutcome = outcome != null || success != null || duration_ms !== null || Boolean(error);
  if (DECLARED[type].side !== "end" && !(type === "agent_spawn" && saysOutcome)) return null;
  return isOutcome(outcome) ? outcome : failed ? "failed" : "ok";
}

function spanText(value: unknown): string | null {
  if (value == null) return null;
  const text = typeof value === "string" ? value : (JSON.stringify(value) ?? "");
  return text.slice(0, MAX_SPAN_TEXT_CHARS).toWellFormed();
}

/** A number of tokens: itself, an object's `total`, or the sum of all numbers in it that can be one. */
function tokenCount(value: unknown): number | null {
  if (!isRecord(value)) return TOKENS.accepts(value) ? whole(value) : null;
  if (TOKENS.accepts(value.total)) return whole(value.total);
  const parts = Object.values(value).flatMap((part) => tokenCount(part) ?? []);
  return parts.length === 0 ? null : tokenCount(parts.reduce((sum, part) => sum + part));
}

/** The events of a span that count; at least one is there. */
type Halves = { start: LoggedEvent | null; end: LoggedEvent | null };
const NO_HALVES: Halves = { start: null, end: null };

/** `span` with `event`: the earliest start counts, and the latest end; at the same time that of the greater `data`. */
function merge(span: Halves, event: LoggedEvent): Halves {
  const { side = "end" } = DECLARED[event.type];
  const known = span[side] ?? { timestamp: side === "end" ? -Infinity : Infinity, data: "" };
  const later_ms = event.timestamp - known.timestamp;
  const lead_ms = side === "end" ? later_ms : -later_ms;
  const leads = lead_ms > 0 || (lead_ms === 0 && event.data > known.data);
  return leads ? { ...span, [side]: event } : span;
}

type SpanKey = { session_id: string; kind: SpanKind; key: string | null };
type SpanRow = ReturnType<typeof spanRow>;

/** A span as the store keeps it: the columns of its row. */
function spanRow({ id, session_id, kind, key }: SpanKey & Id, halves: Halves, changed_id: number) {
  const { start, end } = halves;
  const first = (name: string) => start?.fields[name] ?? end?.fields[name];
  const last = (name: string) => end?.fields[name] ?? start?.fields[name];
  const beganAt = [start, end].flatMap((it) => (it ? it.timestamp - (it.duration_ms ?? 0) : []));
  const started_at = Math.min(...beganAt);
  const [began, outcome] = [start && outcomeOf(start), end && outcomeOf(end)];
  const shown = SPAN_FIELDS[kind];
  return {
    ...{ id, session_id, kind, key, started_at }, // id: of its first stored event
    ended_at: end?.timestamp ?? (began && start ? start.timestamp : null), // null: open
    name: spanText(first(shown.name)) ?? (kind === "wait" ? "input" : "unknown"),
    duration_ms:
      end?.duration_ms ?? start?.duration_ms ?? (start && end ? end.timestamp - started_at : null),
    waited_ms: kind === "tool" ? whole(end?.fields.waited_ms) : null,
    // A spawn that failed on the spot has failed, whatever its completion says.
    outcome: (outcome === "ok" ? began : null) ?? outcome ?? began,
    text: spanText(shown.text.map(first).find((text) => text != null)),
    error: spanText(end?.fields.error || start?.fields.error || null),
    child_session_id: kind === "agent" ? textOrNull(first("child_session_id")) : null,
    nanodollars: kind === "model" ? whole(end?.fields.cost, 1e9) : null,
    tokens: kind === "model" ? tokenCount(end?.fields.tokens) : null,
    attributes: JSON.stringify(shortFields(shown.attributes, last)),
    ...{ start_id: start?.id ?? null, end_id: end?.id ?? null, changed_id },
    is_paired: kind === "agent" && end?.call_id === null ? 1 : 0,
  };
}

/** Outcomes that count as an error. Another rule, here or in `contribution`, needs a migration that folds anew. */
const ERRORS: readonly unknown[] = ["failed", "exit"];
const hasErred = (span?: SpanRow | null) => span != null && ERRORS.includes(span.outcome);

const TOKEN_KINDS = ["total", "input", "output", "reasoning", "cache_read", "cache_write"];
type Sums = Record<string, number>; // that can be added and taken back

/** A completion whose agent was never told of is no agent. */
const isCounted = ({ kind, start_id }: SpanRow) => kind !== "agent" || start_id !== null;

/** What a span counts for: at most one call, one duration and one error; of a call less what its `agent` counts for. */
function contribution(span: SpanRow, directory: string | null, agent?: SpanRow | null) {
  const { kind, name, duration_ms, tokens, nanodollars } = span;
  const count = isCounted(span) ? 1 : 0;
  const timed = count === 1 && duration_ms !== null ? 1 : 0;
  const agent_ms = agent && isCounted(agent) ? (agent.duration_ms ?? 0) : 0;
  const total_ms = timed * Math.max(0, (duration_ms ?? 0) - agent_ms);
  // Its agent's wait is in the agent's time.
  const waited_ms = count * Math.min(span.waited_ms ?? 0, agent_ms > 0 ? total_ms : Infinity);
  const errors = hasErred(span) && !hasErred(agent) ? 1 : 0;
  const isModel = kind === "model";
  const at = span.ended_at ?? span.started_at; // in whose periods it counts
  const sums: Sums = { count, timed, total_ms, waited_ms, errors };
  if (timed) sums[durationStep(total_ms - waited_ms)] = 1;
  const spent: Sums = { count };
  const names = { usage: name, spend: "" };
  if (isModel) {
    const { provider = null, agent = null, ...said }: Fields = JSON.parse(span.attributes);
    const told: Fields = { ...Object(said.tokens), total: tokens };
    for (const part of TOKEN_KINDS) spent[part] = tokenCount(told[part]) ?? 0;
    spent.nanodollars = nanodollars ?? 0;
    const first_token_ms = whole(said.first_token_ms);
    Object.assign(sums, spent, { first_tokens: first_token_ms === null ? 0 : 1 }); // how many are known
    sums.first_token_ms = first_token_ms ?? 0;
    names.usage = JSON.stringify({ model: name, provider });
    names.spend = JSON.stringify({ day: iso(at).slice(0, 10), model: name, agent, directory });
  }
  return {
    ...{ kind, at, names, sums, spent },
    session: {
      tool_count: kind === "tool" ? 1 : 0,
      agent_count: kind === "agent" ? count : 0,
      ...{ error_count: isModel ? 0 : errors, own_errors: isModel ? errors : 0 },
      ...{ model_tokens: tokens ?? 0, told_tokens: tokens === null ? 0 : 1 }, // how many models told theirs
      ...{ model_nanodollars: nanodollars ?? 0, told_nanodollars: nanodollars === null ? 0 : 1 },
    },
  };
}

/** Adds the numbers of `by` to those of `to`; `sign` -1: takes back what was added before. */
function addTo<K extends string>(to: NoInfer<Record<K, number>>, by: Record<K, number>, sign = 1) {
  for (const name in by) to[name] = (to[name] ?? 0) + sign * by[name];
}

// Durations are counted in steps of 9 %, so that a percentile over any window is a sum of counts
// that can be added and taken back. Its error is at most half a step.
const STEP = Math.log(1.09);

/** 0 for less than a millisecond, then 1 for 1 to 1.09 ms, and so on. */
const durationStep = (ms: number) => (ms < 1 ? 0 : 1 + Math.floor(Math.log(ms) / STEP));

/** The duration that `share` of all don't exceed, by how many `sums` has of each step; null: there are none. */
function percentile(sums: Sums, share: number): number | null {
  const ascending = Object.entries(sums).filter(([step]) => /^\d/.test(step)); // as an object gives such keys
  let left = Math.max(1, Math.ceil(ascending.reduce((sum, [, count]) => sum + count, 0) * share));
  const found = ascending.find(([, count]) => (left -= count) <= 0);
  if (found === undefined) return null;
  return found[0] === "0" ? 0 : Math.round(Math.exp((Number(found[0]) - 0.5) * STEP));
}

// ─── Store ───────────────────────────────────────────────────────────────────
// All SQL. The events are an append-only log; spans, sessions and usage are folds of it, kept in the
// same transaction, and come out the same in whatever order events arrive. It knows nothing of
// requests or streams, and refuses to touch a file that it doesn't understand.

const APPLICATION_ID = 0x50414f42; // "PAOB" in the header of the file: SQLite's way to tell whose database it is

// Each brings the schema to the version of its index + 1 (PRAGMA user_version): a change appends one.
// What changes the folds, or what counts, has them folded anew: from the log, as `unfolded` says.
const MIGRATIONS = [
  `PRAGMA application_id = ${APPLICATION_ID};
   CREATE TABLE events (
     id          INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again: a cursor stays unambiguous
     client_id   TEXT,
     session_id  TEXT    NOT NULL REFERENCES sessions (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
     type        TEXT    NOT NULL, timestamp INTEGER NOT NULL,
     name        TEXT,             call_id   TEXT,
     duration_ms INTEGER,          failed    INTEGER NOT NULL,
     data        TEXT    NOT NULL
   );
   CREATE INDEX events_session_id ON events (session_id);
   CREATE INDEX events_timestamp ON events (timestamp); -- specified; nothing here asks it
   CREATE TABLE watermark (event_id INTEGER NOT NULL); -- events up to it may be gone: a cursor below it is told so
   -- Ids start at the time of creation, in microseconds: cursors from an earlier database of this directory are below.
   INSERT INTO sqlite_sequence (name, seq) VALUES ('events', CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000);
   INSERT INTO watermark SELECT seq FROM sqlite_sequence WHERE name = 'events';`,

  `DROP INDEX IF EXISTS events_client_id; DROP INDEX IF EXISTS events_type; DROP INDEX IF EXISTS events_agent_call;
   CREATE UNIQUE INDEX events_client_id ON events (client_id, session_id) WHERE client_id IS NOT NULL;
   CREATE INDEX events_type ON events (type) -- most events are of these four: a page of one is found without
     WHERE type <> 'tool_use' AND type <> 'tool_start' AND type <> 'model_request' AND type <> 'model_response';
   CREATE INDEX events_pairing ON events (session_id, name, timestamp) WHERE type = 'agent_complete' AND call_id IS NULL;
   CREATE INDEX events_cuts ON events (session_id, timestamp, type) WHERE type = 'session_end' OR type = 'turn_start';
   CREATE INDEX events_errors ON events (timestamp) WHERE type = 'session_error';
   CREATE TABLE unfolded (next_id INTEGER NOT NULL);
   -- The sessions that are gone, the latest 10,000: who missed more is below the watermark.
   CREATE TABLE deletions (
     id            INTEGER PRIMARY KEY AUTOINCREMENT,
     session_id    TEXT    NOT NULL UNIQUE,
     relatives     TEXT    NOT NULL, -- sessions whose rows it changed, a JSON array
     last_event_id INTEGER NOT NULL, head INTEGER NOT NULL -- the newest event at that time
   );
   CREATE TRIGGER deletions_bounded AFTER INSERT ON deletions WHEN EXISTS (SELECT 1 FROM deletions WHERE id <= NEW.id - 10000) BEGIN
     UPDATE watermark SET event_id = MAX(event_id, (SELECT MAX(head) FROM deletions WHERE id <= NEW.id - 10000));
     DELETE FROM deletions WHERE id <= NEW.id - 10000;
   END;
   ALTER TABLE watermark ADD COLUMN cutoff     INTEGER NOT NULL DEFAULT 0; -- of the latest retention, milliseconds
   ALTER TABLE watermark ADD COLUMN keyed_from INTEGER NOT NULL DEFAULT 0;
   -- Ids that no event has: each start goes on at its time. A cursor among them is from after a backup that was put back.
   CREATE TABLE gaps (from_id INTEGER NOT NULL, to_id INTEGER NOT NULL);`,

  "", // changed the folds, as the next does
  `CREATE VIRTUAL TABLE search USING fts5 (words, content = '', contentless_delete = 1, detail = none, tokenize = 'ascii');
   CREATE TRIGGER events_search AFTER DELETE ON events BEGIN DELETE FROM search WHERE rowid = OLD.id; END;
   ALTER TABLE watermark ADD COLUMN indexed_to INTEGER NOT NULL DEFAULT 0; -- events up to it are in there
   ALTER TABLE deletions ADD COLUMN counted_from INTEGER; -- by a person: its events from this id on count as yet; NULL: by retention
   ALTER TABLE deletions ADD COLUMN directory TEXT;       -- that its models count for

   -- What is folded from the log.
   DROP TABLE IF EXISTS sessions; DROP TABLE IF EXISTS spans; DROP TABLE IF EXISTS span_keys; DROP TABLE IF EXISTS usage;
   CREATE TABLE sessions (
     id            TEXT PRIMARY KEY, parent_id TEXT, sender TEXT,
     is_over       INTEGER,                      -- NULL: deleted, and its events are going
     event_count   INTEGER NOT NULL, last_event_at INTEGER NOT NULL,
     last_end_at   INTEGER NOT NULL,             -- session_end; 0: none
     tokens        INTEGER,          cost  REAL, -- its own; in US dollars
     deleted_to    INTEGER NOT NULL,             -- events up to this id are being deleted; 0: none are
     changed_id    INTEGER NOT NULL,             -- the newest event of another session that changed its row; 0: none
     fold          TEXT    NOT NULL              -- all of it, as JSON: see newFold
   );
   CREATE INDEX sessions_by_activity ON sessions (is_over, last_event_at, id);
   CREATE INDEX sessions_parent_id ON sessions (parent_id) WHERE parent_id IS NOT NULL;
   CREATE INDEX sessions_sender ON sessions (sender) WHERE sender IS NOT NULL AND is_over = 0;
   CREATE INDEX sessions_changed ON sessions (changed_id) WHERE changed_id > 0;
   CREATE INDEX sessions_deleted ON sessions (deleted_to) WHERE deleted_to > 0;
   CREATE TABLE spans (
     id          INTEGER PRIMARY KEY REFERENCES events (id) ON DELETE CASCADE, -- its first stored event
     session_id  TEXT    NOT NULL,
     kind        TEXT    NOT NULL, key       TEXT,    -- tool, agent, model, wait; call_id, or the request_id of a wait
     name        TEXT    NOT NULL, outcome   TEXT,
     started_at  INTEGER NOT NULL, ended_at  INTEGER, -- NULL: open
     duration_ms INTEGER,          waited_ms INTEGER,
     text        TEXT,             error     TEXT,
     tokens      INTEGER,          nanodollars INTEGER,
     child_session_id TEXT,        attributes TEXT NOT NULL, -- JSON
     start_id    INTEGER,          end_id    INTEGER, -- the events that count: the earliest start, the latest end
     is_paired   INTEGER NOT NULL,                    -- 1: its end is an agent_complete without a call_id, and may yet be another's
     changed_id  INTEGER NOT NULL                     -- the newest event that changed it
   );
   CREATE INDEX spans_open ON spans (session_id, started_at) WHERE ended_at IS NULL;
   CREATE INDEX spans_waiting ON spans (session_id, started_at) WHERE ended_at IS NULL AND kind = 'wait';
   CREATE INDEX spans_pairing ON spans (session_id, name)
     WHERE kind = 'agent' AND start_id IS NOT NULL AND (ended_at IS NULL OR is_paired);
   CREATE INDEX spans_child ON spans (child_session_id) WHERE child_session_id IS NOT NULL;
   CREATE INDEX spans_changed ON spans (changed_id) WHERE changed_id > id;
   CREATE INDEX spans_errors ON spans (ended_at) WHERE kind = 'model' AND outcome IN ('failed', 'exit');
   -- An index of the spans before keyed_from, written a few thousand at once: kept with each commit, it would be half of that.
   CREATE TABLE span_keys (session_id TEXT, key TEXT, kind TEXT, id INTEGER NOT NULL, PRIMARY KEY (session_id, key, kind)) WITHOUT ROWID;
   CREATE TABLE usage (
     kind      TEXT    NOT NULL, name  TEXT    NOT NULL, -- tool, agent, model, spend, or '' for events of any type
     period_ms INTEGER NOT NULL, start INTEGER NOT NULL, -- a minute, an hour or a day
     sums      TEXT    NOT NULL,                         -- JSON: see contribution
     count     INTEGER AS (sums ->> 'count') STORED, errors INTEGER AS (sums ->> 'errors') STORED,
     PRIMARY KEY (kind, period_ms, start, name)
   ) WITHOUT ROWID;`,

  // Has all folded anew, but for what was spent: the log hasn't all of that.
  `DELETE FROM events WHERE id IN (SELECT events.id FROM sessions JOIN events ON session_id = sessions.id AND events.id <= deleted_to WHERE deleted_to > 0);
   UPDATE deletions SET counted_from = last_event_id + 1 WHERE counted_from IS NOT NULL;
   ALTER TABLE unfolded ADD COLUMN keeps_spend INTEGER NOT NULL DEFAULT 0;
   DELETE FROM usage WHERE kind <> 'spend' OR EXISTS (SELECT 1 FROM unfolded);
   DELETE FROM sessions; DELETE FROM spans; DELETE FROM span_keys; DELETE FROM unfolded; UPDATE watermark SET keyed_from = 0;
   INSERT INTO unfolded SELECT 0, EXISTS (SELECT 1 FROM usage) FROM events LIMIT 1;`,
];

const MAX_GENERATIONS = 16; // how far down a session's totals go, and how far up an event changes them
const SLICE_ROWS = 500; // rows read between two turns of others: a few milliseconds

type Id = { id: number };
/** An event that is in the log, and how the log has it. */
type LoggedEvent = TelemetryEvent & Id;
type LogRow = Omit<LoggedEvent, "fields" | "facts" | "implied" | "failed"> & { failed: number };
type Shown = "id" | "session_id" | "timestamp" | "duration_ms" | "data";
/** What a client gets of it; `started_at`: of its session, where it is a session_end, else null. */
export type StoredEvent = Pick<LogRow, Shown> & { type: string; started_at: number | null };

type Binds = Record<string, string | number | boolean | null>;
type Sql = ReturnType<typeof createSql>;

Database.MAX_QUERY_CACHE_SIZE = 200; // each statement is prepared once: Bun keeps them by their text
/** `+$name` in a statement: for `$name` alone SQLite plans it anew with each value, where a partial index might serve. */
function createSql(db: Database) {
  return <Row>(text: string) => db.query<Row, Binds>(text);
}

const HAS_ERRED = `outcome IN (${ERRORS.map((outcome) => `'${outcome}'`).join(", ")})`;

/** Writes a whole row of `table`, new or known by its `key`: the row is the binds. */
function upsert(sql: Sql, table: string, key: string) {
  const columns = sql<{ name: string }>("SELECT name FROM pragma_table_info($table)");
  const names = columns.all({ table }).map(({ name }) => name);
  // A key that is set, even to itself, makes SQLite look for rows that refer to it.
  const others = names.filter((name) => !key.split(", ").includes(name));
  return sql(`INSERT INTO ${table} (${names.join(", ")}) VALUES ($${names.join(", $")})
     ON CONFLICT (${key}) DO UPDATE SET ${others.map((name) => `${name} = excluded.${name}`).join(", ")}`);
}

// -- Usage: how often and how long, per minute, hour and day; what models took, per day

const PERIODS_MS = [DAY_MS, HOUR_MS, MINUTE_MS];
const KEPT_PERIODS_MS: Record<string, number[]> = { "": [MINUTE_MS], spend: [DAY_MS] }; // of others all
const SPEND_KEPT_MS = 400 * DAY_MS; // whatever the retention of events

type UsageKey = { kind: string; period_ms: number; start: number; name: string };
type UsageRow = UsageKey & { sums: string };
type Cell = UsageKey & { sums: Sums };
type Contribution = ReturnType<typeof contribution>;
type CountedEvent = Pick<LoggedEvent | LogRow, "type" | "timestamp" | "failed">;
type Usage = ReturnType<typeof createUsage>;

const toCell = <R extends UsageRow>(row: R): R & Cell => ({ ...row, sums: JSON.parse(row.sums) });

/** Counts what spans and events contribute; written with `flush`, in the transaction of the batch. */
function createUsage(sql: Sql) {
  const key = "kind, period_ms, start, name";
  const select = sql<UsageRow>(`
    SELECT * FROM usage WHERE (${key}) = ($kind, $period_ms, $start, $name)`);
  const write = upsert(sql, "usage", key);
  const selectKept = sql<{ cutoff: number; keeps_spend: number }>(`
    SELECT cutoff, EXISTS (SELECT 1 FROM unfolded WHERE keeps_spend) AS keeps_spend FROM watermark`);
  const added = new Map<string, Cell>(); // per minute, since the latest flush: a batch adds to few of them, often

  /** Adds to what was at `at`, or (`sign` -1) takes it back. */
  function addAt(at: number, kind: string, name: string, by: Sums, sign = 1): void {
    const start = minuteOf(at);
    const text = `${kind} ${start} ${name}`;
    const cell = added.get(text) ?? { kind, name, period_ms: MINUTE_MS, start, sums: {} };
    added.set(text, cell);
    addTo(cell.sums, by, sign);
  }

  const addSpend = ({ at, names, spent }: Contribution, sign: number) =>
    addAt(at, "spend", names.spend, spent, sign);

  return {
    /** An event, and its error where it is no span's. @returns that */
    addEvent({ type, timestamp, failed }: CountedEvent, sign: number): number {
      const errors = failed && !DECLARED[type].kind && type !== "session_error" ? 1 : 0;
      addAt(timestamp, "", "", { count: 1, errors }, sign);
      return errors;
    },
    /** What a span counts for; with `fold`, that of its session, in that too. `sign` -1: takes it back. */
    add(part: Contribution, sign: number, fold?: SessionFold): void {
      const { kind, at, names, sums, session } = part;
      if (fold) addTo(fold, session, sign);
      const errors = session.error_count;
      if (errors > 0) addAt(at, "", "", { errors }, sign);
      if (kind !== "wait") addAt(at, kind, names.usage, sums, sign);
      if (kind === "model") addSpend(part, sign);
    },
    addSpend,
    flush(): void {
      const { cutoff = 0, keeps_spend } = selectKept.get({}) ?? {};
      const cells = new Map<string, Cell>();
      for (const { kind, name, start: at, sums } of added.values())
        for (const period_ms of KEPT_PERIODS_MS[kind] ?? PERIODS_MS) {
          const key = { kind, period_ms, start: at - (at % period_ms), name };
          const text = `${kind} ${period_ms} ${key.start} ${name}`;
          const cell = cells.get(text) ?? toCell(select.get(key) ?? { ...key, sums: "{}" });
          cells.set(text, cell);
          addTo(cell.sums, sums);
        }
      added.clear();
      // Of what is deleted nothing counts or is taken back; what was spent outlives it.
      for (const cell of cells.values())
        if (cell.kind === "spend" ? !keeps_spend : cell.start + cell.period_ms > cutoff)
          write.run({ ...cell, sums: JSON.stringify(cell.sums) });
    },
    forget: () => added.clear(),
  };
}

// -- Sessions

/** What a session's events say, in whatever order: all that its row is made of. Times of 0: none. */
const newFold = (id: string) => ({
  ...{ id, deleted_to: 0 }, // see the schema
  started_at: Number.MAX_SAFE_INTEGER,
  ...{ last_event_at: 0, last_end_at: 0, last_model_at: 0 },
  last_activity_at: 0, // any event but session_end and session_update
  ...{ event_count: 0, turn_count: 0, tool_count: 0, agent_count: 0 },
  error_count: 0, // without its own
  own_errors: 0, // session_error, and models that failed: none where the session is a failed agent's
  ...{ model_tokens: 0, told_tokens: 0, model_nanodollars: 0, told_nanodollars: 0 }, // see contribution
  worked_ms: 0, // from each turn_start to the next cut of its time: another one, or a session_end
  first_end_at: 0, // where the first cut is a session_end
  last_cut: { at: 0, type: "" },
  facts: {} as Record<string, [at: number, value: unknown]>, // when each was said, and what: the newest counts; so do retries
  ...{ parent_id: null as string | null, sender: null as string | null },
  ...{ tokens: null as number | null, cost: null as number | null },
  directory: null as string | null, // in whose name its models are counted
});
type SessionFold = ReturnType<typeof newFold>;
type Cut = { at: number; type: string };

const isOver = ({ last_end_at, last_activity_at }: SessionFold) =>
  last_end_at > 0 && last_end_at >= last_activity_at;

const MAX_CACHED_SESSIONS = 1_000; // sessions whose rows are kept at hand: those that work now

/** The sessions that a batch touches: read once, folded, and written with `flush`. */
function createSessions(sql: Sql, usage: Usage) {
  const select = sql<{ fold: string }>("SELECT fold FROM sessions WHERE id = $id");
  const write = upsert(sql, "sessions", "id");
  // A row that is told otherwise from event $head on, although that is of another session.
  const mark = sql("UPDATE sessions SET changed_id = $head WHERE id = $id");
  const cuts = (comparison: string, order: string) =>
    sql<Cut>(`SELECT timestamp AS at, type FROM events
       WHERE session_id = +$session_id AND (type = 'session_end' OR type = 'turn_start')
         AND (timestamp, type) ${comparison} (+$timestamp, +$type) AND id < +$id AND id > +$deleted_to
       ORDER BY timestamp ${order}, type ${order} LIMIT 1`);
  const selectCutBefore = cuts("<=", "DESC");
  const selectCutAfter = cuts(">", "ASC");
  const cached = new Map<string, SessionFold>();
  const touched = new Map<string, number>(); // by id: the time of the last event before this batch; Infinity: none; 0: it ends in it

  /** Whoever asks for a session changes it. */
  function open(id: string): SessionFold {
    const fold: SessionFold =
      cached.get(id) ?? JSON.parse(select.get({ id })?.fold ?? "null") ?? newFold(id);
    cached.set(id, fold);
    if (!touched.has(id)) touched.set(id, fold.last_event_at || Infinity);
    return fold;
  }

  /** Work is from a turn_start to the next cut, and before the first session_end: see `toSession`. */
  function cut(fold: SessionFold, { id, type, timestamp, session_id }: LoggedEvent): void {
    const binds = { id, type, timestamp, session_id, deleted_to: fold.deleted_to };
    const here = { at: timestamp, type };
    const before = selectCutBefore.get(binds);
    const after = selectCutAfter.get(binds);
    const work = (from: Cut | null, to: Cut | null) =>
      from?.type === "turn_start" && to ? to.at - from.at : 0;
    fold.worked_ms += work(before, here) + work(here, after) - work(before, after);
    if (before === null) fold.first_end_at = type === "session_end" ? timestamp : 0;
    if (after === null) fold.last_cut = here;
    if (type === "turn_start") fold.turn_count++;
  }

  return {
    ...{ touched, open, mark },
    /** One more event that is in the log. */
    add(event: LoggedEvent): void {
      const { type, timestamp: at, facts } = event;
      const { kind } = DECLARED[type];
      const fold = open(event.session_id);
      fold.event_count++;
      fold.started_at = Math.min(fold.started_at, at);
      fold.last_event_at = Math.max(fold.last_event_at, at);
      if (type === "session_end") fold.last_end_at = Math.max(fold.last_end_at, at);
      else if (type !== "session_update")
        fold.last_activity_at = Math.max(fold.last_activity_at, at);
      if (type === "session_end" || type === "turn_start") cut(fold, event);
      if (type === "session_end") touched.set(fold.id, 0);
      if (kind === "model") fold.last_model_at = Math.max(fold.last_model_at, at);
      for (const [name, value] of Object.entries(facts)) {
        const [since, known] = fold.facts[name] ?? [-1, null];
        // At the same time the greater text, so that the order of arrival doesn't matter.
        if (at > since || (at === since && JSON.stringify(value) > JSON.stringify(known)))
          fold.facts[name] = [at, value];
      }
      if (type === "session_error") fold.own_errors++;
      fold.error_count += usage.addEvent(event, 1);
    },
    /** Events up to `deleted_to` are as good as gone, and it with them. */
    empty: (id: string, deleted_to: number) =>
      void Object.assign(open(id), newFold(id), { deleted_to }),
    flush(head: number): void {
      for (const id of touched.keys()) {
        const fold = open(id);
        const { facts, parent_id, model_tokens, model_nanodollars } = fold;
        const modelCost = fold.told_nanodollars > 0 ? model_nanodollars / 1e9 : null;
        fold.cost = numberOrNull(facts.cost?.[1]) ?? modelCost;
        fold.tokens = tokenCount(facts.tokens?.[1]) ?? (fold.told_tokens > 0 ? model_tokens : null);
        fold.parent_id = textOrNull(facts.parent_session_id?.[1]);
        fold.sender = textOrNull(facts.sender?.[1]);
        if (parent_id !== null && parent_id !== fold.parent_id) mark.run({ id: parent_id, head });
        const is_over = fold.event_count > 0 ? isOver(fold) : null;
        const { facts: _, last_cut: __, directory: ___, ...columns } = fold;
        write.run({ ...columns, is_over, changed_id: 0, fold: JSON.stringify(fold) });
      }
      touched.clear();
      if (cached.size > MAX_CACHED_SESSIONS) cached.clear();
    },
    forget: () => [touched, cached].forEach((known) => known.clear()),
  };
}

// -- Spans: which events of the log belong together

const MAX_RECENT_KEYS = 2_048; // keys that the table hasn't yet: written at once, in order, they touch few pages
const MAX_PAIRED = 1_000; // agents of one type in one session that are paired with completions without a call_id

const keyText = ({ session_id: id, kind, key }: SpanKey) => `${id.length} ${id} ${key} ${kind}`;

/** A span that a batch touches; `old`: as it was before; null: it wasn't. */
type TouchedSpan = { old: SpanRow | null; row: SpanRow; halves: Halves };

function createSpans(sql: Sql, sessions: ReturnType<typeof createSessions>, usage: Usage) {
  const selectById = sql<SpanRow>("SELECT * FROM spans WHERE id = $id");
  const selectEvent = sql<LogRow>("SELECT * FROM events WHERE id = $id");
  const write = upsert(sql, "spans", "id");
  const selectEnds = sql<LogRow>(`SELECT * FROM events
     WHERE session_id = $session_id AND name = $name AND type = 'agent_complete' AND call_id IS NULL
       AND id > $deleted_to
     ORDER BY timestamp, data LIMIT ${MAX_PAIRED}`);
  const selectUnended = sql<SpanRow>(`SELECT spans.* FROM spans JOIN events ON events.id = start_id
     WHERE spans.session_id = +$session_id AND spans.name = +$name AND kind = 'agent'
       AND start_id IS NOT NULL AND (ended_at IS NULL OR is_paired)
     ORDER BY timestamp, data LIMIT ${MAX_PAIRED}`);
  const selectModels = sql<SpanRow>(`SELECT spans.* FROM events CROSS JOIN spans USING (id)
     WHERE events.session_id = $session_id AND id > $deleted_to AND kind = 'model'`);
  const selectKey = sql<Id>(`
    SELECT id FROM span_keys WHERE session_id = $session_id AND key = $key AND kind = $kind`);
  const unkeyed = `SELECT session_id, key, kind, id FROM spans
     WHERE id >= (SELECT keyed_from FROM watermark) AND key IS NOT NULL`;
  const touched = new Map<number, TouchedSpan>(); // by id
  const groups = new Map<string, [session_id: string, name: string | null]>(); // agents of a type, to be paired anew
  const recent = new Map<string, number>(); // ids of spans by the text of their key, until the table has it
  const ended = new Set<SpanRow>(); // since the latest flush has begun

  /** After the start, and after a transaction that was undone. */
  function forget(): void {
    for (const known of [touched, groups, recent, ended]) known.clear();
    for (const row of sql<SpanKey & Id>(`${unkeyed} ORDER BY id`).iterate({}))
      recent.set(keyText(row), row.id);
  }
  forget();

  const pairLater = (session_id: string, name: string | null) =>
    void groups.set(`${session_id.length} ${session_id} ${name}`, [session_id, name]);

  /** The span of `row`, from now on touched; null: it is deleted, or there is none. */
  function load(row: SpanRow | null): TouchedSpan | null {
    if (row === null || row.id <= sessions.open(row.session_id).deleted_to) return null;
    const ids = row.is_paired ? [row.start_id] : [row.start_id, row.end_id];
    const events = ids.flatMap((id) => selectEvent.get({ id }) ?? []);
    const span = { old: row, row, halves: events.map(restoreEvent).reduce(merge, NO_HALVES) };
    touched.set(row.id, span);
    return span;
  }

  const idOf = (key: SpanKey) => recent.get(keyText(key)) ?? selectKey.get(key)?.id;

  function find(key: SpanKey): TouchedSpan | null {
    const id = idOf(key);
    return id === undefined ? null : (touched.get(id) ?? load(selectById.get({ id })));
  }

  /** Agents of a type, in the order of their starts, get the completions without a call_id, in theirs. */
  function pair(session_id: string, name: string | null, head: number): void {
    const { deleted_to } = sessions.open(session_id);
    const ends = selectEnds.all({ session_id, name, deleted_to });
    if (ends.length === 0) return;
    const left = ends.values();
    for (const row of selectUnended.all({ session_id, name })) {
      const span = touched.get(row.id) ?? load(row);
      if (span === null) continue;
      const { start } = span.halves;
      // The next that isn't older; one that was there before any of them is nobody's.
      const end = left.find(({ timestamp }) => start !== null && timestamp >= start.timestamp);
      if (span.row.end_id === (end?.id ?? null)) continue;
      span.row = spanRow(span.row, { start, end: end ? restoreEvent(end) : null }, head);
      write.run(span.row);
    }
  }

  /** Moves what a span counts for from what it was to what it is. */
  function count({ old, row }: TouchedSpan, head: number, hasAgents: boolean): void {
    if (row.outcome !== null && !old?.outcome) ended.add(row);
    const session = sessions.open(row.session_id);
    // An agent's time and error are those of its call, too. What `find` loads here is among the touched
    // from then on, so `flush` comes to it, and counts it again.
    if (row.key && row.kind === "agent") find({ ...row, kind: "tool" });
    const mayHaveAgent = hasAgents || session.agent_count > 0 || hasErred(old) || hasErred(row);
    const isAsked = row.key && row.kind === "tool" && mayHaveAgent; // a question that costs 6 % of a batch
    const agent = isAsked ? find({ ...row, kind: "agent" }) : null;
    const before = old && contribution(old, session.directory, agent?.old);
    const after = contribution(row, session.directory, agent?.row);
    if (before) usage.add(before, -1, session);
    usage.add(after, 1, session);
    // Its agent's failure makes a child's own errors none.
    for (const span of hasErred(old) || hasErred(row) ? [old, row] : [])
      if (span?.child_session_id) sessions.mark.run({ id: span.child_session_id, head });
  }

  return {
    ...{ forget, ended },
    /** Counts what a session's models spent for its directory as it is now. */
    respend(session_id: string): void {
      const session = sessions.open(session_id);
      const { directory, deleted_to } = session;
      session.directory = textOrNull(session.facts.directory?.[1]);
      if (session.directory === directory) return;
      for (const span of selectModels.iterate({ session_id, deleted_to })) {
        usage.addSpend(contribution(span, directory), -1);
        usage.addSpend(contribution(span, session.directory), 1);
      }
    },
    /** Takes back what the span that began with event `id` counts for, if there is one. */
    takeBack(id: number, directory: string | null, last: number): void {
      const row = selectById.get({ id });
      if (row === null) return;
      const agentId = row.kind === "tool" && row.key ? idOf({ ...row, kind: "agent" }) : undefined;
      // One that began after the deletion is of the session that began anew.
      const agent =
        agentId === undefined || agentId > last ? null : selectById.get({ id: agentId });
      usage.add(contribution(row, directory, agent), -1);
    },
    add(event: LoggedEvent): void {
      const { session_id, type, name, id } = event;
      const { kind } = DECLARED[type];
      const key = kind ? textOrNull(event.fields[SPAN_FIELDS[kind].key]) : null;
      if (kind === undefined || (kind === "wait" && key === null)) return; // older logs have such waits
      if (type === "agent_complete" && key === null) return pairLater(session_id, name);
      const span = { session_id, kind, key, id };
      const known = key === null ? null : find(span);
      const halves = merge(known?.halves ?? NO_HALVES, event);
      const row = spanRow(known?.row ?? span, halves, id);
      touched.set(row.id, { old: known?.old ?? null, row, halves });
      if (known === null && key !== null) recent.set(keyText(span), id);
    },
    /** Writes what was added, pairs what is to be paired, and moves the counts from old to new. */
    flush(head: number): void {
      ended.clear();
      for (const { old, row } of touched.values()) {
        if (row === old) continue;
        write.run(row);
        if (row.kind !== "agent") continue;
        pairLater(row.session_id, row.name);
        if (old !== null) pairLater(old.session_id, old.name);
      }
      for (const [session_id, name] of groups.values()) pair(session_id, name, head);
      const hasAgents = touched.values().some(({ row }) => row.kind === "agent");
      for (const span of touched.values()) count(span, head, hasAgents);
      touched.clear();
      groups.clear();
      if (recent.size < MAX_RECENT_KEYS) return;
      // The newer last: it takes the place of one that is being deleted.
      sql(`INSERT OR REPLACE INTO span_keys ${unkeyed} ORDER BY session_id, key, kind, id`).run({});
      sql("UPDATE watermark SET keyed_from = (SELECT MAX(id) + 1 FROM spans)").run({});
      recent.clear();
    },
  };
}

// -- The writer

/** What became of one post: the ids of its events, in order, and how many rows were new. */
export type Receipt = { ids: number[]; stored: number };

const FOLDED_ROWS = 2_000; // events in one transaction of `foldAnew`
const PROGRESS_MS = 2 * SECOND_MS; // between two lines in the log that say how far it is

function createWriter(db: Database, sql: Sql, senders: Senders, log: Pick<Log, "info">) {
  const insertEvent = sql(`
     INSERT INTO events (client_id, session_id, type, timestamp, name, call_id, duration_ms, failed, data)
     VALUES ($client_id, $session_id, $type, $timestamp, $name, $call_id, $duration_ms, $failed, $data)
     ON CONFLICT (client_id, session_id) WHERE client_id IS NOT NULL DO NOTHING`);
  const selectLast = sql<{ at: number }>("SELECT last_event_at AS at FROM sessions WHERE id = $id");
  // By the id that its client gave; or of a line of the export, posted back to where it came from.
  const selectKnown = sql<Id>(`
    SELECT id FROM events WHERE client_id = $client_id AND session_id = $session_id
     UNION ALL SELECT id FROM events WHERE id = $client_id AND session_id = $session_id`);
  const tellOpen = sql(`UPDATE spans SET changed_id = $head WHERE id IN (
       SELECT id FROM spans WHERE session_id = $id AND ended_at IS NULL ORDER BY started_at DESC LIMIT ${SLICE_ROWS})`);
  const usage = createUsage(sql);
  const sessions = createSessions(sql, usage);
  const spans = createSpans(sql, sessions, usage);
  const { ino } = statSync(db.filename);

  /** Folds a logged event: the same whether it comes from a post or from the log. */
  function add(event: LoggedEvent): void {
    sessions.add(event);
    spans.add(event);
  }

  function flush(head: number, now: number): void {
    for (const id of sessions.touched.keys()) spans.respend(id);
    spans.flush(head);
    // What is open is told as over where its session has ended, and anew where it was stale, or may be.
    for (const [id, lastAt] of sessions.touched) {
      const { last_event_at, sender } = sessions.open(id);
      const stale_at = senders.staleAt({ sender, last_event_at: lastAt }, false, now);
      if (lastAt === 0 || stale_at <= Math.max(now, last_event_at)) tellOpen.run({ id, head });
    }
    sessions.flush(head);
    usage.flush();
  }

  /** Rows at hand may not be those of the tables: a transaction was undone, or rows were deleted. */
  const forget = () => [sessions, spans, usage].forEach((folds) => folds.forget());

  /** @throws what `step` throws; then nothing of it is there */
  function commit<Result>(step: () => Result): Result {
    try {
      return db.transaction(step).immediate();
    } catch (error) {
      forget();
      throw error;
    }
  }

  /** Adds what is new of `event` to `added`. @returns its id */
  function insert(event: TelemetryEvent, added: LoggedEvent[], now: number): number {
    // While its clock ran ahead, a machine told times that are yet to come: an end is after them.
    const last = event.type === "session_end" ? selectLast.get({ id: event.session_id }) : null;
    if (last !== null && last.at > now) event.timestamp = last.at;
    const { facts: _, fields: __, implied, ...row } = event;
    const exported = /^\d{15,16}$/.test(row.client_id ?? "") ? selectKnown.get(row) : null;
    if (exported !== null) return exported.id;
    const { changes, lastInsertRowid } = insertEvent.run(row);
    if (changes === 0) return selectKnown.get(row)?.id ?? 0;
    const id = Number(lastInsertRowid);
    const logged = Object.assign(event, { id });
    added.push(logged);
    add(logged); // before the next is in the log, where it would have to be passed over
    if (implied) insert(implied, added, now);
    return id;
  }

  /** Folds what an earlier version has logged, in steps that a killed process need not repeat. */
  function foldAnew(): void {
    const selectProgress = sql<{ done: number; total: number }>(`
      SELECT TOTAL(id < next_id) AS done, COUNT(*) AS total FROM unfolded CROSS JOIN events`);
    const selectPage = sql<LogRow>(`
      SELECT * FROM events WHERE id >= (SELECT next_id FROM unfolded) ORDER BY id LIMIT ${FOLDED_ROWS}`);
    let { done, total } = selectProgress.get({}) ?? { done: 0, total: 0 };
    for (let saidAt = -Infinity; done < total;) {
      if (performance.now() - saidAt >= PROGRESS_MS) {
        saidAt = performance.now();
        log.info(`new schema: ${done} of ${total} events folded`);
      }
      commit(() => {
        const page = selectPage.all({}).map(restoreEvent);
        const id = page.at(-1)?.id ?? 0;
        page.forEach(add);
        flush(id, 0);
        sql("UPDATE unfolded SET next_id = $id + 1").run({ id });
        done += page.length;
      });
    }
    db.run("DELETE FROM unfolded");
    forget(); // with what was spent, where that was kept
  }
  foldAnew();

  // Kept beside the tables: counting ten million rows takes a second.
  const stored = sql<{ events: number }>(`
    SELECT TOTAL(event_count) + (
       SELECT COUNT(*) FROM sessions JOIN events ON session_id = sessions.id AND events.id <= deleted_to
       WHERE deleted_to > 0) AS events
     FROM sessions`).get({}) ?? { events: 0 };

  return {
    ...{ sessions, spans, usage, stored, commit, forget },
    /**
     * Stores the events of `posts` in one transaction: all, or none and the error of SQLite. An event
     * whose id is known in its session adds nothing; it is answered with the id first given.
     * @returns a receipt per post, the events that were new, and the spans that ended with them
     */
    append(posts: TelemetryEvent[][], now = Date.now()) {
      // Deleted under a running server, it would take all that is posted with it.
      if (statSync(db.filename, { throwIfNoEntry: false })?.ino !== ino)
        throw new HttpError(503, `${db.filename} was deleted or replaced: start the server again`);
      const added: LoggedEvent[] = [];
      const receipts = commit(() => {
        const receipts = posts.map((events): Receipt => {
          const before = added.length;
          const ids = events.map((event) => insert(event, added, now));
          return { ids, stored: added.length - before };
        });
        flush(added.at(-1)?.id ?? 0, now);
        return receipts;
      });
      stored.events += added.length;
      for (const { facts, timestamp } of added)
        if (typeof facts.sender === "string") senders.hearIn(facts.sender, timestamp, now);
      return { receipts, added, ended: [...spans.ended] };
    },
  };
}

// -- Search: an index of the log's words, in its pauses

const INDEX_INTERVAL_MS = 100; // of which it takes a third at most, and 2 ms where somebody waits, or events came meanwhile

function createSearch(db: Database, sql: Sql) {
  const selectNext = sql<LogRow>(`
    SELECT * FROM events WHERE id > (SELECT indexed_to FROM watermark) ORDER BY id`);
  const selectLag = sql<{ indexed_to: number }>(`
    SELECT indexed_to FROM watermark WHERE indexed_to < (SELECT MAX(id) FROM events)`);
  const insert = sql("INSERT INTO search (rowid, words) VALUES ($id, $words)");
  const advance = sql("UPDATE watermark SET indexed_to = $id");
  const indexUntil = db.transaction((until: number) => {
    for (const { id, data } of selectNext.iterate({})) {
      insert.run({ id, words: [...new Set(wordsIn(textIn(JSON.parse(data))))].join(" ") });
      advance.run({ id });
      if (performance.now() > until) return;
    }
  });
  return {
    /** Goes on for some `ms`. What fails is tried again the next time: a post says what is wrong. */
    index(ms: number): void {
      try {
        indexUntil.immediate(performance.now() + ms);
      } catch {}
    },
    /** The newest event that is indexed; undefined: the newest there is. */
    indexedTo: () => selectLag.get({})?.indexed_to,
  };
}

// -- The reader

type Status = "active" | "completed" | "stale";
/** Of one session, or of all; `before`: an id, exclusive. */
type Filter = { sessionId: string | null; before: number | null };
type TextFilter = { q: string | null; tool: string | null; from: number; to: number }; // [from, to): milliseconds
export type EventFilter = Filter & TextFilter & { after: number | null; type: EventType | null };
type Order = "oldest first" | "newest first";

type UsageKind = "tool" | "agent" | "model" | "spend";
type Reader = ReturnType<typeof createReader>;
type Item<Items> = Items extends AsyncIterable<infer One> ? One : never;
/** What the routes and the stream give; its fields are told in the README. */
export type Session = NonNullable<ReturnType<Reader["toSession"]>>;
export type Span = NonNullable<ReturnType<Reader["toSpan"]>>;
export type UsageStats = Omit<Item<ReturnType<Reader["usageStats"]>>, "sums">;
export type Activity = ReturnType<Reader["activity"]>[number];
export type Overview = Awaited<ReturnType<Reader["overview"]>>;

const BULK_TYPES = ["tool_use", "tool_start", "model_request", "model_response"]; // most of the log: no index has them
const LAST = Number.MAX_SAFE_INTEGER; // the later of all ids and times

/**
 * What `pick` makes of rows (null: nothing), up to `limit`. They are read by the page, between which
 * others have their turn: the columns of a page's last row are the binds of the next.
 */
async function* paged<Row extends Binds, Picked>(
  select: { all(from: Binds): Row[] },
  from: Binds,
  limit: number,
  pick: (row: Row) => Picked | null,
) {
  for (let left = limit; ; await nextSlice()) {
    const rows = select.all(from);
    for (const row of rows) {
      const picked = pick(row);
      if (picked === null) continue;
      yield picked;
      if (--left === 0) return;
    }
    if (rows.length < SLICE_ROWS) return;
    from = { ...from, ...rows.at(-1) };
  }
}

function createReader(sql: Sql, senders: Senders) {
  // Open, and begun after the session's latest end: else it was cancelled by that.
  const runs = `session_id = sessions.id AND ended_at IS NULL AND started_at > last_end_at
       AND spans.id > deleted_to`;
  const excuseOf = (id: string) =>
    `EXISTS (SELECT 1 FROM spans WHERE child_session_id = ${id} AND kind = 'agent' AND ${HAS_ERRED})`;
  const selectSession = sql<{
    fold: string;
    newest_id: number | null;
    waiting_since: number | null;
    is_excused: number; // its own errors
    is_parent: number;
  }>(`SELECT fold, ${excuseOf("sessions.id")} AS is_excused,
       EXISTS (SELECT 1 FROM sessions AS child WHERE child.parent_id = sessions.id) AS is_parent,
       (SELECT MIN(started_at) FROM spans WHERE ${runs} AND kind = 'wait') AS waiting_since,
       (SELECT id FROM spans WHERE ${runs}
         ORDER BY started_at DESC, kind DESC, key DESC, name DESC, text DESC LIMIT 1) AS newest_id
     FROM sessions WHERE id = $id AND is_over IS NOT NULL`);
  const family = `WITH RECURSIVE family (id, generation) AS (
       VALUES ($id, 0) UNION SELECT sessions.id, generation + 1 FROM family JOIN sessions ON parent_id = family.id
       WHERE generation < ${MAX_GENERATIONS}) SELECT id FROM family`;
  const selectTotals = sql<Pick<SessionFold, "tokens" | "cost">>(`
    SELECT SUM(tokens + 0.0) AS tokens, ROUND(SUM(cost), 9) AS cost FROM sessions WHERE id IN (${family})`);
  // `cut_at`: the first end of its session since an open one began.
  const selectSpan = sql<SpanRow & Sent & { cut_at: number | null }>(`
    SELECT spans.*, sender, last_event_at, IIF(ended_at IS NULL, (
      SELECT timestamp FROM events WHERE session_id = sessions.id AND id > deleted_to
        AND (type = 'session_end' OR type = 'turn_start') AND type = 'session_end' -- the first as events_cuts has it
        AND timestamp >= started_at ORDER BY timestamp LIMIT 1), NULL) AS cut_at
    FROM spans JOIN sessions ON sessions.id = session_id WHERE spans.id = +$id AND spans.id > deleted_to`);
  const eventColumns = `id, type, session_id, timestamp, duration_ms, data, IIF(type = 'session_end',
     (SELECT fold ->> 'started_at' FROM sessions WHERE sessions.id = session_id), NULL) AS started_at`;
  const selectEvent = sql<StoredEvent>(`SELECT ${eventColumns} FROM events WHERE id = $id
     AND id > (SELECT deleted_to FROM sessions WHERE sessions.id = session_id)`);
  const head = () =>
    sql<{ seq: number }>("SELECT seq FROM sqlite_sequence WHERE name = 'events'").get({})?.seq ?? 0;

  /** A session as it is now; null: there is none. */
  function toSession(sessionId: string, now: number) {
    const row = selectSession.get({ id: sessionId });
    if (row === null) return null;
    const fold: SessionFold = JSON.parse(row.fold);
    const { id, started_at, last_event_at, last_end_at, first_end_at, last_cut, own_errors } = fold;
    const { tool_count, agent_count, event_count, turn_count } = fold;
    const stale_at = senders.staleAt(fold, row.newest_id !== null, now);
    const status: Status = isOver(fold) ? "completed" : now >= stale_at ? "stale" : "active";
    const isActive = status === "active";
    // Since the latest cut, see there; of a session without one all is work.
    const begun_at = last_cut.at === 0 ? started_at : last_cut.at;
    const isWorking = !isOver(fold) && last_cut.type !== "session_end";
    const latest_ms = isWorking ? last_event_at - begun_at : 0;
    const { parent_session_id: _, retry: __, ...facts } = fold.facts;
    const told = Object.entries(facts).sort(([a], [b]) => (a < b ? -1 : 1));
    const total = row.is_parent ? selectTotals.get({ id }) : fold;
    const is_excused = own_errors > 0 && row.is_excused === 1;
    return {
      id,
      started_at: iso(started_at),
      ended_at: isOver(fold) ? iso(last_end_at) : null,
      status,
      stale_at: status === "stale" ? iso(stale_at) : null,
      is_lost: status === "stale" && fold.sender !== null,
      ...{ tool_count, agent_count, event_count, turn_count }, // those that run are counted too
      error_count: fold.error_count + (is_excused ? 0 : own_errors),
      is_excused, // its agent's failure is told as one with its own errors
      last_event_at: iso(last_event_at),
      waiting_since: isActive && row.waiting_since ? iso(row.waiting_since) : null, // since when it waits for the person; null: it doesn't
      parent_session_id: fold.parent_id,
      info: Object.fromEntries(told.map(([name, [, value]]) => [name, value])),
      now: isActive ? activeness(fold, selectSpan.get({ id: row.newest_id })) : null,
      cost: { own: fold.cost, total: total?.cost ?? null }, // US dollars; total: with all below it; null: not known
      tokens: { own: fold.tokens, total: total?.tokens ?? null },
      working_since: isActive && isWorking ? iso(begun_at) : null, // null: no turn goes on
      worked_ms: fold.worked_ms + Math.max(0, first_end_at - started_at) + latest_ms, // within turns, to the latest event
    };
  }

  type SessionFilter = { status: Status | "waiting" | null; sessionId: string | null };
  /** The latest by activity, or (`sessionId`) of one session and those below it. `waiting`: active, for the person. */
  function listSessions({ status, sessionId }: SessionFilter, limit: number, now: number) {
    // Those that are over and those that aren't, each in the order of the index: SQLite merges them.
    const halves = status === null ? [0, 1] : [status === "completed" ? 1 : 0];
    const selects = halves.map(
      (is_over) => `SELECT last_event_at AS before, id AS before_id FROM sessions
         WHERE ${sessionId === null ? "" : `id IN (${family}) AND +`}is_over = ${is_over}
           AND (last_event_at, id) < ($before, $before_id)`,
    );
    const select = sql<{ before_id: string }>(`${selects.join(" UNION ALL ")}
      ORDER BY before DESC, before_id DESC LIMIT ${SLICE_ROWS}`);
    const from = { id: sessionId, before: LAST, before_id: "" };
    return paged(select, from, limit, ({ before_id }) => {
      const session = toSession(before_id, now);
      if (status === "waiting") return session?.waiting_since ? session : null;
      return status === null || status === session?.status ? session : null;
    });
  }

  /** Sessions by status, and what the active ones do: `roots` are those that aren't agents of a known session. */
  async function countSessions(now: number) {
    const select = sql<Sent & Record<"is_open" | "waiting" | "agents" | "roots", number>>(`
      SELECT last_event_at AS before, id AS before_id, sender, last_event_at,
         EXISTS (SELECT 1 FROM spans WHERE ${runs}) AS is_open,
         EXISTS (SELECT 1 FROM spans WHERE ${runs} AND kind = 'wait') AS waiting,
         (SELECT COUNT(*) FROM spans WHERE ${runs} AND kind = 'agent') AS agents,
         NOT EXISTS (SELECT 1 FROM sessions AS parent WHERE id = sessions.parent_id AND is_over IS NOT NULL) AS roots
       FROM sessions WHERE is_over = 0 AND (last_event_at, id) < ($before, $before_id)
       ORDER BY before DESC, before_id DESC LIMIT ${SLICE_ROWS}`);
    const over = sql<{ count: number }>("SELECT COUNT(*) AS count FROM sessions WHERE is_over = 1");
    const completed = over.get({})?.count ?? 0;
    const counts = { active: 0, stale: 0, completed, waiting: 0, agents: 0, roots: 0 };
    for await (const row of paged(select, { before: LAST, before_id: "" }, LAST, (row) => row)) {
      const { is_open, waiting, agents, roots } = row;
      if (now >= senders.staleAt(row, is_open === 1, now)) counts.stale++;
      else addTo(counts, { active: 1, waiting, agents, roots });
    }
    return counts;
  }

  /** What the head of the page says. */
  async function overview(now: number) {
    const { roots, waiting, agents } = await countSessions(now);
    const counts = { active_sessions: roots, waiting, running_agents: agents };
    const lastHour = activity(now - HOUR_MS, now + MINUTE_MS);
    const errors_last_hour = lastHour.reduce((sum, { error_count }) => sum + error_count, 0);
    const old_plugin = senders.olderVersion("opencode", PLUGIN_VERSION, now);
    return { ...counts, errors_last_hour, activity: lastHour, old_plugin };
  }

  /** A span as it is now; null: there is none. An open one is over since its session ended, or became stale. */
  function toSpan(spanId: number, now: number) {
    const row = selectSpan.get({ id: spanId });
    if (row === null) return null;
    const { id, session_id, kind, name, started_at, text, error, child_session_id } = row;
    const over_at = row.cut_at ?? senders.staleAt(row, true, now);
    const cancelled = row.ended_at === null && over_at <= now ? over_at : null;
    const ended_at = row.ended_at ?? cancelled;
    const said: Record<string, unknown> = JSON.parse(row.attributes);
    const { tokens = null, call_id = kind === "wait" ? null : row.key, ...attributes } = said;
    return {
      ...{ id, session_id, kind, name, call_id: textOrNull(call_id) },
      started_at: iso(started_at),
      ended_at: ended_at === null ? null : iso(ended_at), // null: it runs
      duration_ms: cancelled === null ? row.duration_ms : cancelled - started_at,
      waited_ms: row.waited_ms,
      outcome: cancelled === null ? row.outcome : "cancelled",
      ...{ text, error, child_session_id, tokens },
      cost: row.nanodollars === null ? null : row.nanodollars / 1e9,
      attributes: Object.keys(attributes).length > 0 ? attributes : null, // exit_code, files, provider and the like
    };
  }

  type SpanFilter = Filter & { isOpen: boolean }; // what runs now alone
  /** The newest first. Of a session all events are passed over, so that a page is bounded also where few are spans. */
  function listSpans({ sessionId, before, isOpen }: SpanFilter, limit: number, now: number) {
    // By the index of what is open, which is little: most sessions have none.
    const running = `spans WHERE id IN (SELECT spans.id FROM spans CROSS JOIN sessions ON ${runs}
       WHERE is_over = 0 ${sessionId === null ? "" : "AND session_id = $sessionId"})`;
    const ofOne = "events WHERE session_id = $sessionId";
    const source = isOpen ? running : sessionId === null ? "spans WHERE TRUE" : ofOne;
    const select = sql<{ before: number }>(`
      SELECT id AS before FROM ${source} AND id < $before ORDER BY id DESC LIMIT ${SLICE_ROWS}`);
    return paged(select, { sessionId, before: before ?? LAST }, limit, (row) => {
      const span = toSpan(row.before, now);
      return isOpen && span?.ended_at ? null : span;
    });
  }

  type PageRange = { sessionId: string | null; after: number; to: number };
  /** Stored events after `after` up to `to`, at most `limit`, or of `maxChars` characters. `isDone`: these are all. */
  function pageOf({ sessionId, after, to }: PageRange, limit: number, maxChars: number) {
    const select = sql<StoredEvent>(`
      SELECT ${eventColumns} FROM events WHERE id > $after AND id <= $to
       ${sessionId === null ? "" : "AND session_id = $sessionId"} ORDER BY id`);
    const events: StoredEvent[] = [];
    let chars = 0;
    for (const event of select.iterate({ sessionId, after, to })) {
      events.push(event);
      chars += event.data.length;
      if (events.length >= limit || chars >= maxChars) return { events, isDone: false };
    }
    return { events, isDone: true };
  }

  /** With all terms of `q`; the index finds them where it can: of all sessions, the newest first. */
  function listEvents(filter: EventFilter, order: Order, limit: number) {
    const { sessionId, type, q, tool, from, to } = filter;
    const terms = (q ?? "").split(/\s+/).flatMap((term) => wordsIn(term).join(" ") || []);
    const match = wordsIn(q ?? tool ?? "").join(" ");
    const [bound, direction] = order === "newest first" ? ["before", "DESC"] : ["after", "ASC"];
    const isIndexed = sessionId === null && type !== null && !BULK_TYPES.includes(type);
    // So worded that SQLite sees that its partial index serves. Other types are picked below, and not
    // by SQLite: it may have to pass over a million of others, and nobody has a turn meanwhile.
    const ofType = `AND type = $type ${BULK_TYPES.map((bulk) => `AND type <> '${bulk}'`).join(" ")}`;
    const found = `AND id IN (SELECT rowid FROM search WHERE search MATCH $match AND rowid > $after AND rowid < $before
       ORDER BY rowid DESC LIMIT ${SLICE_ROWS})`;
    const isSearch = match !== "" && sessionId === null && order === "newest first";
    const select = sql<Pick<LogRow, "id" | "type" | "name" | "timestamp">>(`
      SELECT id, id AS ${bound}, type, name, timestamp FROM events WHERE id > $after AND id < $before
         ${sessionId === null ? "" : "AND session_id = $sessionId"} ${isSearch ? found : isIndexed ? ofType : ""}
       ORDER BY id ${direction} LIMIT ${SLICE_ROWS}`);
    const { after, before } = { after: filter.after ?? 0, before: filter.before ?? LAST };
    return paged(select, { sessionId, type, match, after, before }, limit, (row) => {
      const isOfType = type === null || type === row.type;
      const isOfTool = tool === null || (row.name === tool && DECLARED[row.type].kind === "tool");
      if (!isOfType || !isOfTool || row.timestamp < from || row.timestamp >= to) return null;
      const event = selectEvent.get(row); // null: deleted meanwhile
      if (event === null || terms.length === 0) return event;
      const text = ` ${wordsIn(textIn(JSON.parse(event.data))).join(" ")} `;
      return terms.every((term) => text.includes(` ${term} `)) ? event : null;
    });
  }

  /** The id of the `n`-th event after `cursor`, or before it (n < 0); of the last, or 0, where there are fewer. */
  function nthFrom(cursor: number, n: number): number {
    const side = n > 0 ? "> $cursor ORDER BY id" : "< $cursor ORDER BY id DESC";
    const select = sql<Id>(`SELECT id FROM events WHERE id ${side} LIMIT 1 OFFSET $skipped`);
    return select.get({ cursor, skipped: Math.abs(n) - 1 })?.id ?? (n > 0 ? head() : 0);
  }

  /** One session; null where there is none. Its calls, oldest first, are read as they are taken. */
  async function findSession(sessionId: string, now: number) {
    const session = toSession(sessionId, now);
    if (session === null) return null;
    const until = head();
    const select = sql<{ before: number; id: number; kind: SpanKind | null; at: number }>(`
      SELECT events.id AS before, spans.id, kind, IIF(kind = 'tool', IFNULL(ended_at, started_at), started_at) AS at
       FROM events LEFT JOIN spans ON spans.id = events.id AND (kind = 'tool' OR (kind = 'agent' AND start_id IS NOT NULL))
       WHERE events.session_id = $sessionId AND events.id < $before ORDER BY before DESC LIMIT ${SLICE_ROWS}`);
    const from = { sessionId, before: until + 1 };
    const places = await Array.fromAsync(paged(select, from, LAST, (row) => row.kind && row));
    places.sort((a, b) => a.at - b.at || a.id - b.id);
    const selectCall = sql<{ value: string | null; at: number }>(`
      SELECT (SELECT timestamp FROM events WHERE id = IIF(kind = 'tool', IFNULL(end_id, start_id), start_id)) AS at,
         (SELECT IIF(json_type(data -> $field) = 'text', data ->> $field, data -> $field) FROM events
           WHERE id IN (start_id, end_id) AND data ->> $field IS NOT NULL ORDER BY id = end_id LIMIT 1) AS value
       FROM spans WHERE id = $id`);

    /** Spans of a kind, their name as `name`, and with what its start has in `field`, or else its end. */
    function* calls(wanted: SpanKind, name: string, field: string) {
      for (const { id, kind } of places) {
        const call = kind === wanted ? selectCall.get({ id, field }) : null;
        const span = call && toSpan(id, now); // null: deleted meanwhile
        if (span)
          yield { ...span, timestamp: iso(call.at), [name]: span.name, [field]: call.value };
      }
    }
    return {
      session,
      head: until, // the newest event when it was read; what came since isn't in it
      tools: calls("tool", "tool", "args"), // args: JSON text; null: none were posted
      agents: calls("agent", "subagent_type", "prompt"),
    };
  }

  /** These spans, and these sessions with those above them, whose totals have a part in them: as they are now. */
  function rowsOf(sessionIds: string[], spans: Id[], now: number) {
    const lineage = sql<{ id: string }>(`WITH RECURSIVE lineage (id, generation) AS (
         SELECT value, 0 FROM json_each($ids)
         UNION SELECT parent_id, generation + 1 FROM lineage JOIN sessions USING (id)
         WHERE generation < ${MAX_GENERATIONS})
       SELECT DISTINCT id FROM lineage`);
    const sessions = lineage.all({ ids: JSON.stringify(sessionIds) });
    return {
      sessions: sessions.flatMap(({ id }) => toSession(id, now) ?? []),
      spans: spans.flatMap(({ id }) => toSpan(id, now) ?? []),
    };
  }

  /** The rows that the events after `after` up to `to` have changed. */
  function changedRows(after: number, to: number, now: number) {
    const sessions = sql<{ id: string }>(`
      SELECT session_id AS id FROM events WHERE id > $after AND id <= $to
      UNION SELECT id FROM sessions WHERE changed_id > 0 AND changed_id > $after AND changed_id <= $to`);
    const spans = sql<Id>(`
      SELECT id FROM spans WHERE id > $after AND id <= $to
      UNION SELECT id FROM spans WHERE changed_id > id AND changed_id > $after AND changed_id <= $to`);
    const ids = sessions.all({ after, to }).map(({ id }) => id);
    return rowsOf(ids, spans.all({ after, to }), now);
  }

  /** The rows that time alone has changed: of sessions that became stale after `from`, the latest. */
  function staleRows(from: number, now: number) {
    const turned = senders.turned(from, now);
    // By their senders; or by their age, also where the sender isn't heard.
    const select = sql<{ id: string }>(`
      SELECT id, last_event_at FROM sessions INDEXED BY sessions_sender WHERE is_over = 0 AND sender IS NOT NULL
        ${turned === null ? "" : "AND sender IN (SELECT value FROM json_each($turned))"}
      UNION SELECT sessions.id, last_event_at FROM json_each('[${UNHEARD_MS}, ${STALE_MS}, ${STALE_OPEN_MS}]') CROSS JOIN sessions
        WHERE is_over = 0 AND last_event_at > $from - value AND last_event_at <= $now - value
          AND (sender IS NULL) = (value >= ${STALE_MS})
      ORDER BY last_event_at DESC LIMIT ${SLICE_ROWS}`);
    const open = sql<Id>(`SELECT id FROM spans
       WHERE session_id IN (SELECT value FROM json_each($ids)) AND ended_at IS NULL
       ORDER BY id DESC LIMIT ${SLICE_ROWS}`);
    const ids = select.all({ from, now, turned: JSON.stringify(turned) }).map(({ id }) => id);
    return rowsOf(ids, open.all({ ids: JSON.stringify(ids) }), now);
  }

  /** What was counted in [from, to), at whole minutes; of `spend` in whole days. */
  async function* cellsOf(kind: UsageKind, from: number, to: number) {
    const select = sql<UsageRow & { sign: number }>(`SELECT *, $sign AS sign FROM usage
       WHERE kind = $kind AND period_ms = $period_ms AND start < $end AND (start, name) > ($start, $name)
       ORDER BY start, name LIMIT ${SLICE_ROWS}`);
    const { cutoff = 0 } = sql<{ cutoff: number }>("SELECT cutoff FROM watermark").get({}) ?? {};
    const keptFrom = minuteOf(cutoff); // before it minutes are gone: the hour and the day of it are not whole

    /** Days between those nearest to both ends, then hours and minutes that they lack, or (`sign` -1) have too much. */
    function* split(from: number, to: number, sign = 1, periods = PERIODS_MS): Generator<Binds> {
      const [period_ms, ...shorter] = periods;
      if (period_ms === undefined || from === to) return;
      if (from > to) return yield* split(to, from, -sign, periods);
      const nearest = (at: number) => {
        const boundary = Math.round(at / period_ms) * period_ms;
        return boundary < keptFrom ? boundary + period_ms : boundary;
      };
      yield { period_ms, start: nearest(from), end: nearest(to), sign };
      yield* split(from, nearest(from), sign, shorter);
      yield* split(nearest(to), to, sign, shorter);
    }
    const kept = (at: number) => Math.max(minuteOf(at), keptFrom);
    const days = [{ period_ms: DAY_MS, start: from, end: to, sign: 1 }];
    for (const period of kind === "spend" ? days : split(kept(from), kept(to + MINUTE_MS - 1)))
      yield* paged(select, { kind, name: "", ...period }, Infinity, toCell);
  }

  /** The same of what the models of a session and all below it spent. */
  async function* spentBelow(id: string) {
    const members = sql<{ member: string; directory: string | null }>(`
      SELECT id AS member, fold ->> 'directory' AS directory FROM sessions WHERE is_over IS NOT NULL AND id IN (${family})`);
    const select = sql<SpanRow & { before: number }>(`
      SELECT spans.*, events.id AS before FROM events LEFT JOIN spans ON spans.id = events.id AND kind = 'model'
       WHERE events.session_id = $member AND events.id < $before ORDER BY before DESC LIMIT ${SLICE_ROWS}`);
    for (const { member, directory } of members.all({ id })) {
      const spans = paged(select, { member, before: LAST }, LAST, (row) => row.kind && row);
      for await (const span of spans) {
        const { names, spent } = contribution(span, directory);
        yield { name: names.spend, sums: spent, sign: 1 };
      }
    }
  }

  /** Per tool, agent or model, the most frequent first; or (`by`) what was spent, in all or by the session `of` and all below it. */
  async function* usageStats(kind: UsageKind, from: number, to: number, by?: string, of?: string) {
    const stats = new Map<string, Sums>();
    for await (const cell of of ? spentBelow(of) : cellsOf(kind, from, to)) {
      const name: string = by ? JSON.parse(cell.name)[by] || null : cell.name;
      const sums = stats.get(name) ?? { count: 0 };
      stats.set(name, sums);
      // As addTo does; but for…in takes a fifth longer over the many steps, whose names are numbers.
      for (const part of Object.keys(cell.sums))
        sums[part] = (sums[part] ?? 0) + cell.sign * (cell.sums[part] ?? 0);
    }
    const used = [...stats].filter(([, { count = 0 }]) => count > 0);
    if (!by) used.sort(([a, { count: x = 0 }], [b, { count: y = 0 }]) => y - x || (a < b ? -1 : 1));
    for (const [name, sums] of used) {
      const { count = 0, timed = 0, total_ms = 0, waited_ms = 0, errors: error_count = 0 } = sums;
      yield {
        ...{ name, sums, count, error_count, waited_ms, total_duration_ms: total_ms },
        avg_duration_ms: timed === 0 ? null : total_ms / timed, // null: none is known
        p50_duration_ms: percentile(sums, 0.5), // less what was waited for the person; within 5 %
        p95_duration_ms: percentile(sums, 0.95),
      };
    }
  }

  /** Events per minute in [from, to), oldest first; a minute without any has no row. */
  function activity(from: number, to: number) {
    const ownErrors = (table: "events" | "spans", at: string, isError: string) =>
      `(SELECT COUNT(*) FROM ${table} AS own WHERE ${isError} AND ${at} >= start
          AND ${at} < start + period_ms AND NOT ${excuseOf("own.session_id")})`;
    const select = sql<{ start: number; count: number; error_count: number }>(`
      SELECT start, count, errors + ${ownErrors("events", "timestamp", "type = 'session_error'")}
         + ${ownErrors("spans", "ended_at", `kind = 'model' AND ${HAS_ERRED}`)} AS error_count
       FROM usage WHERE kind = '' AND count > 0 AND period_ms = ${MINUTE_MS} AND start >= $from AND start < $to ORDER BY start`);
    const minutes = select.all({ from: minuteOf(from), to });
    return minutes.map(({ start, ...counts }) => ({ timestamp: iso(start), ...counts }));
  }

  return {
    ...{ head, pageOf, nthFrom, listEvents, listSessions, findSession, overview, countSessions },
    ...{ toSession, toSpan, listSpans, rowsOf, changedRows, staleRows, usageStats, activity },
  };
}

/** What a session does now: the retry that it waits for, or its newest open call. */
function activeness({ facts, last_end_at, last_model_at }: SessionFold, newest: SpanRow | null) {
  const [at, retry] = facts.retry ?? [0, null];
  const isNewest = at > Math.max(last_end_at, newest?.started_at ?? 0) && at >= last_model_at;
  if (isNewest && isRecord(retry)) {
    const { message, attempt, retry_at } = retry;
    return {
      ...{ kind: "retry" as const, name: null, text: spanText(message), started_at: iso(at) },
      attempt: numberOrNull(attempt),
      retry_at: timeOf(retry_at) ? iso(timeOf(retry_at)) : null,
    };
  }
  if (newest === null) return null;
  const { kind, name, text, started_at } = newest;
  return { kind, name, text, started_at: iso(started_at) };
}

// -- Retention

const PRUNE_STEP_MS = 1; // of one step, between which others have their turn; its commit takes up to twenty times that
const PRUNE_ROWS = 25; // rows deleted at once: under a millisecond, also where each is on pages of its own
const PRUNE_PAUSE_MS = 5; // while requests come: so that all that came meanwhile are answered before it goes on

function createRetention(db: Database, sql: Sql, writer: ReturnType<typeof createWriter>) {
  const { sessions, spans, usage, stored, commit, forget } = writer;
  const deleteEvents = sql(`DELETE FROM events WHERE id IN (
       SELECT events.id FROM sessions JOIN events ON session_id = sessions.id AND events.id <= deleted_to
       WHERE deleted_to > 0 LIMIT ${PRUNE_ROWS})`);
  const finish = [
    `DELETE FROM span_keys WHERE (session_id, key, kind) IN (
       SELECT session_id, key, kind FROM sessions JOIN span_keys ON session_id = sessions.id AND span_keys.id <= deleted_to
       WHERE deleted_to > 0 LIMIT ${PRUNE_ROWS})`,
    "DELETE FROM sessions WHERE deleted_to > 0 AND event_count = 0",
    "UPDATE sessions SET deleted_to = 0, fold = json_set(fold, '$.deleted_to', 0) WHERE deleted_to > 0",
  ];
  const selectDoomed = sql<{ id: string; parent_id: string | null; last: number }>(`
    SELECT id, parent_id, (SELECT MAX(id) FROM events WHERE session_id = sessions.id) AS last
     FROM sessions WHERE is_over IN (0, 1) AND (id = $asked OR last_event_at < $cutoff) LIMIT 1`);
  const selectChildren = sql<{ id: string }>("SELECT id FROM sessions WHERE parent_id = $id");
  type Counting = { session_id: string; directory: string | null; last: number };
  const selectCounting = sql<Counting>(`
    SELECT session_id, directory, last_event_id AS last FROM deletions WHERE counted_from <= last_event_id LIMIT 1`);
  const selectCounted = sql<CountedEvent & Id>(`
    SELECT events.id, type, timestamp, failed FROM deletions JOIN events USING (session_id)
     WHERE session_id = $session_id AND events.id >= counted_from AND events.id <= last_event_id
     ORDER BY events.id LIMIT ${PRUNE_ROWS}`);
  const setCounted = sql("UPDATE deletions SET counted_from = $next WHERE session_id = $id");
  const deleteUsage = sql(`DELETE FROM usage WHERE (kind, period_ms, start, name) IN (
       SELECT kind, period_ms, start, name FROM usage
       WHERE start + IIF(kind = 'spend', ${SPEND_KEPT_MS}, period_ms) <= $cutoff LIMIT ${PRUNE_ROWS})`);
  const timeSql = "SELECT timestamp AS at FROM events WHERE id <= $cursor ORDER BY id DESC LIMIT 1";
  const selectDeletions = sql<{ session_id: string; relatives: string }>(`
    SELECT session_id, relatives FROM deletions WHERE id > $after ORDER BY id`);
  const selectGap = sql("SELECT 1 FROM gaps WHERE from_id < $cursor AND to_id > $cursor");
  const selectBreak = sql(`SELECT 1 FROM watermark WHERE $cursor < event_id OR EXISTS (
       SELECT 1 FROM deletions WHERE id > $after AND last_event_id > $cursor
         AND ($session_id IS NULL OR session_id = $session_id) AND (counted_from OR IFNULL((${timeSql}), 0) < cutoff))`);
  const setIndex = (values: string) => sql(`INSERT INTO search (search, rank) VALUES ${values}`);
  const selectAge = sql("SELECT MAX(last_event_at) AS at FROM sessions HAVING at < $cutoff");
  type Done = { sessions: number; events: number };
  let isStopped = false;

  /** Merges some of the text index that is mostly gone; and, once nothing is to be deleted any more, shrinks the file. */
  function tidy(isMore: boolean): boolean {
    setIndex("('merge', 16)").run({}); // so many pages, as below: a millisecond or two
    if (isMore) return true;
    const free = pragma(db, "freelist_count");
    sql("PRAGMA incremental_vacuum(16)").all({});
    return pragma(db, "freelist_count") < free;
  }

  /** What a person deletes counts no longer: some of its events, and what began with them. */
  function takeBack({ session_id, directory, last }: Counting) {
    const events = selectCounted.all({ session_id });
    for (const event of events) {
      usage.addEvent(event, -1);
      spans.takeBack(event.id, directory, last);
    }
    usage.flush();
    setCounted.run({ id: session_id, next: (events.at(-1)?.id ?? LAST - 1) + 1 });
    return true;
  }

  /**
   * Deletes some events of a session that is empty, or empties the next that is asked for, or has expired: it is gone
   * then for all who ask, and begins anew should it come to life. @returns whether there was anything to do
   */
  function pruneNext(cutoff: number, asked: string[], done: Done): boolean {
    const counting = selectCounting.get({});
    if (counting !== null) return takeBack(counting);
    const eventCount = deleteEvents.run({}).changes;
    done.events += eventCount;
    if (eventCount > 0 || finish.some((text) => sql(text).run({}).changes > 0)) return true;
    const id = asked.pop();
    const doomed = selectDoomed.get({ asked: id ?? null, cutoff });
    if (doomed === null) return id !== undefined || deleteUsage.run({ cutoff }).changes > 0;
    if (id !== undefined) asked.push(...selectChildren.all({ id }).map((child) => child.id));
    // Its ancestors' totals had a part in it, and a failed agent of its own had excused a child's errors.
    sql(`INSERT OR REPLACE INTO deletions (session_id, relatives, last_event_id, counted_from, directory, head)
     SELECT $id, json_group_array(relative), $last, IIF($is_asked, 0, NULL), (SELECT fold ->> 'directory' FROM sessions WHERE id = $id),
       (SELECT seq FROM sqlite_sequence WHERE name = 'events')
     FROM (
       SELECT $parent_id AS relative
       UNION SELECT child_session_id FROM events CROSS JOIN spans ON spans.id = events.id
         WHERE events.session_id = $id AND ${HAS_ERRED}
     ) WHERE relative IS NOT NULL`).run({ ...doomed, is_asked: id !== undefined });
    sessions.empty(doomed.id, doomed.last);
    sessions.flush(doomed.last);
    done.sessions++;
    return true;
  }

  return {
    /**
     * Deletes the sessions without an event since `cutoff` (milliseconds), and those `asked` for with all below
     * them; pauses while `isAsked`; `told`: after each step. What is left when it is stopped goes the next time.
     * @returns how many sessions were deleted
     */
    async prune(cutoff: number, isAsked = () => false, told = () => {}, asked: string[] = []) {
      if (isStopped) return 0;
      sql("UPDATE watermark SET cutoff = MAX(cutoff, $cutoff)").run({ cutoff });
      setIndex("('automerge', 0), ('deletemerge', 50)").run({}); // by itself it would merge a lot at once
      forget();
      let count = 0;
      for (let isMore = true; isMore && !isStopped;) {
        const done = { sessions: 0, events: 0 };
        const until = performance.now() + PRUNE_STEP_MS;
        commit(() => {
          do isMore = pruneNext(cutoff, asked, done);
          while (isMore && performance.now() < until);
          isMore = tidy(isMore);
        });
        sessions.forget(); // what is at hand of those that are gone
        count += done.sessions;
        stored.events -= done.events;
        told();
        if (isMore) await (isAsked() ? Bun.sleep(PRUNE_PAUSE_MS) : nextSlice());
      }
      setIndex("('automerge', 4)").run({});
      if (count > 0 && !isStopped) sql("PRAGMA wal_checkpoint(TRUNCATE)").all({});
      return count;
    },
    /** There are sessions, and none had an event since `cutoff`. */
    isAllExpired: (cutoff: number) => selectAge.get({ cutoff }) !== null,
    stopPruning: () => void (isStopped = true), // one that goes on ends with its step
    /** Sessions deleted after the deletion of id `after`, with those whose rows this changed, as JSON. */
    deletionsSince: (after: number) => selectDeletions.all({ after }),
    /** The newest deletion that whoever has all up to event `cursor` was told of. */
    deletionAt: (cursor = Infinity) =>
      sql<Id>("SELECT MAX(id) AS id FROM deletions WHERE head < $cursor").get({ cursor })?.id ?? 0,
    /** No event of this database was ever given this id, nor was it the newest when a server started. */
    isUnknown: (cursor: number) => selectGap.get({ cursor }) !== null,
    /** When the newest event up to `cursor` was, in milliseconds; 0: there is none. */
    timeAt: (cursor: number) => sql<{ at: number }>(timeSql).get({ cursor })?.at ?? 0,
    /**
     * Whether events after `cursor` are gone that a stream of `session_id` (null: of all) would have
     * had, by the deletions since `after`. What came later than retention allows was gone as it came:
     * it breaks nothing for who has newer events.
     */
    isBroken: (cursor: number, session_id: string | null, after: number) =>
      selectBreak.get({ cursor, session_id, after }) !== null,
  };
}

// -- The whole

export type Store = ReturnType<typeof openStore>;

/**
 * Opens `observability.db` in `dir`, creating both where they don't exist, and holds a lock on `dir`
 * until `close`. A file of an earlier version is brought to this one, which may take a while: `log`
 * is told how far it is.
 * @throws StartError where another server has it, the file is corrupt, or its schema is newer
 */
export function openStore(dir: string, log: Pick<Log, "info"> = { info() {} }, now = Date.now()) {
  const path = join(dir, "observability.db");
  const { db, lock } = takeDirectory(dir, path);
  const close = () => [db, lock].forEach((it) => it.close());
  try {
    migrate(db, path);
    const sql = createSql(db);
    const senders = createSenders(now);
    const writer = createWriter(db, sql, senders, log);
    db.run("PRAGMA foreign_keys = ON"); // CASCADE needs it; a migration drops what others refer to
    db.run("PRAGMA busy_timeout = 0"); // waiting would stop every request: Ingest tries again instead
    return {
      ...senders,
      ...createSearch(db, sql),
      ...createReader(sql, senders),
      ...createRetention(db, sql, writer),
      append: writer.append,
      eventCount: () => writer.stored.events,
      size: () => ({ ...writer.stored, bytes: pragma(db, "page_count") * pragma(db, "page_size") }),
      close, // the same, and lets go of the directory
    };
  } catch (error) {
    close();
    if (error instanceof StartError) throw error;
    const reason = isBusy(error)
      ? "locked by another process; end it, then start again"
      : error instanceof SQLiteError && /^SQLITE_(FULL|IOERR)/.test(error.code ?? "")
        ? `the disk is full, or fails (${messageOf(error)}); make room, then start again`
        : `not a database that this server can use (${messageOf(error).replace(/\s+/g, " ")}); move it away or put a backup in its place, then start again (a copy of a running server's file lacks what is in its -wal). Nothing was deleted`;
    throw new StartError(`${path}: ${reason}`);
  }
}

/** The database at `path` and a lock on it; the directory, and our files in it, are for their owner only. */
function takeDirectory(dir: string, path: string) {
  try {
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    // Before SQLite gives them a wider mode; that of the database is also that of -wal and -shm.
    appendFileSync(path, "", { mode: 0o600 });
    const lockPath = `${realpathSync(path)}.lock`; // one, also where two directories link to the file
    appendFileSync(lockPath, "", { mode: 0o600 });
    const entries = readdirSync(dir, { withFileTypes: true });
    const ours = entries.filter((it) => it.isFile() && it.name.startsWith("observability.db")); // no link, no folder
    // A directory that was there already is left as it is where it holds other things than ours.
    if (entries.every((it) => it.name === ".gitkeep" || ours.includes(it))) chmodSync(dir, 0o700);
    for (const { name } of ours) chmodSync(join(dir, name), 0o600);
    // A transaction in a database of its own: the system ends it with the process, however that ends.
    const lock = new Database(lockPath);
    lock.run("PRAGMA journal_mode = MEMORY"); // nothing is written: no journal file
    lock.run("BEGIN EXCLUSIVE");
    return { lock, db: new Database(path, { strict: true }) };
  } catch (error) {
    const reason = isBusy(error)
      ? "another server is running on it; stop that one, or set another DATA_DIR"
      : `expected a directory that this user can write to (${messageOf(error)})`;
    throw new StartError(`DATA_DIR=${JSON.stringify(dir)}: ${reason}`);
  }
}

const MAX_CHECKED_PAGES = 16_384; // 64 MB, read in some 100 ms: a larger file isn't checked, so that it starts as fast

/** The file, at the latest schema. @throws StartError where it isn't ours, or newer; another error where it is corrupt */
function migrate(db: Database, path: string): void {
  db.run("PRAGMA busy_timeout = 2000"); // at the start only: another process may still be closing it
  const pages = pragma(db, "page_count");
  if (pages > 0 && pragma(db, "application_id") !== APPLICATION_ID)
    throw new StartError(
      `${path}: the database of another program, or a copy without its -wal; set another DATA_DIR`,
    );
  const schema = pragma(db, "user_version");
  if (schema > MIGRATIONS.length)
    throw new StartError(
      `${path}: written by a newer version of this server (schema ${schema}, this one knows ${MIGRATIONS.length}): use that version, or another DATA_DIR. Nothing was changed`,
    );
  if (pages > 0 && pages <= MAX_CHECKED_PAGES) {
    const check = db.query<{ quick_check: string }, []>("PRAGMA quick_check(1)").get();
    if (check?.quick_check !== "ok") throw new Error(check?.quick_check);
  }
  db.run("PRAGMA auto_vacuum = INCREMENTAL"); // retention lets go of the pages that it has freed, once it has freed all
  db.run("PRAGMA journal_mode = WAL"); // readers and the writer don't wait for each other
  db.run("PRAGMA synchronous = FULL"); // an acknowledgement outlives a power cut
  db.run("PRAGMA wal_autocheckpoint = 1600"); // pages, 6.5 MB: 5 to 8 % more posts than with SQLite's 1,000
  db.run("PRAGMA cache_size = -16000"); // KB: the keys of the calls of a hundred sessions that work now
  db.run(`PRAGMA journal_size_limit = ${8 * 1024 * 1024}`); // bytes: a log that once grew is cut again
  const steps = MIGRATIONS.map((text, index) => `${text} PRAGMA user_version = ${index + 1};`);
  // Ids go on at the present time, in microseconds: see the table of gaps.
  const openNewIds = `
    INSERT INTO gaps SELECT seq, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000
      FROM sqlite_sequence WHERE name = 'events';
    DELETE FROM gaps WHERE to_id <= from_id + 1;
    UPDATE sqlite_sequence SET seq = MAX(seq, IFNULL((SELECT MAX(to_id) FROM gaps), 0)) WHERE name = 'events';`;
  for (const step of [...steps.slice(schema), openNewIds])
    db.transaction(() => db.run(step)).immediate();
}

/** A setting of the file that is a number. */
const pragma = (db: Database, name: string) =>
  db.query<Record<string, number>, []>(`PRAGMA ${name}`).get()?.[name] ?? 0;

/** Another process has the database, for now. */
const isBusy = (error: unknown) =>
  error instanceof SQLiteError && (error.code ?? "").startsWith("SQLITE_BUSY");

const messageOf = (error: unknown) => (error instanceof Error ? error.message : String(error));

// ─── Hub ─────────────────────────────────────────────────────────────────────
// Fan-out. The database is the queue, a subscriber a place in it. What comes next is read from the log,
// a page at a time, and once for all who stand at the same place with the same filter:
//
//     a subscriber that     gets its next page
//     has caught up         when a batch is committed
//     is behind, or back    when its stream pulls, once its socket has room
//
// So a slow client costs bounded memory and loses nothing; SQLite is synchronous: between history and live
// is no gap. With rows, those that its events changed follow a page, as they are now: twice does no harm.

const QUEUE_BYTES = 64 * 1024; // that wait for one client before it gets no more; in characters, a page or a piece of an answer
const PAGE_EVENTS = 500; // of one page: a few milliseconds
const PAGE_EVENTS_WITH_ROWS = 100; // each may change a session's row, a tenth of a millisecond
const PAGES_PER_TURN = 4; // of all streams; a batch brings at most two, so a stream that is behind gains on the log
const MAX_KEPT_PAGES = 64; // for others at the same place
const HEARTBEAT_MS = 15 * SECOND_MS; // under the idle timeout of the server, and of proxies
const SWEEP_INTERVAL_MS = 5 * SECOND_MS; // how late a page may be told that a session has become stale
const RETRY_MS = 1_000; // how long a browser waits before it comes back
const DELETED = "events after the last event id were deleted";
const QUEUE = new ByteLengthQueuingStrategy({ highWaterMark: QUEUE_BYTES });
const encoder = new TextEncoder();
const HEARTBEAT = encoder.encode(":\n\n");

/** What a subscriber was told of. */
interface Place {
  cursor: number; // events up to this id,
  rows: number; // rows that events up to this id have changed,
  deletion: number; // deletions up to this id,
  time: number; // and, with rows, what time alone has changed, up to this time
  isLoaded?: boolean; // it may have loaded all just now: told to do so again, it would without end
}

interface Subscriber {
  readonly sessionId: string | null; // null: of all sessions
  readonly hasRows: boolean; // it gets the rows that change, too
  readonly controller: ReadableStreamDefaultController<Uint8Array>;
  place: Place; // the very object `latest`: it was told everything
}

type Rows = ReturnType<Store["rowsOf"]>;
type Clock = () => number; // in milliseconds
type Hub = ReturnType<typeof createHub>;

/** A stored event as clients get it: flat JSON. A session_end without `duration_seconds` gets it from the start. */
export function eventJson(event: StoredEvent): string {
  const { id, type, session_id, timestamp, started_at, duration_ms, data } = event;
  let text = `{"id":${id},"type":"${type}","session_id":${JSON.stringify(session_id)},"timestamp":"${iso(timestamp)}"`;
  if (started_at !== null && duration_ms === null)
    text += `,"duration_seconds":${(timestamp - started_at) / SECOND_MS}`;
  return text + (data === "{}" ? "}" : `,${data.slice(1)}`);
}

/** A frame of text/event-stream: JSON has no CR or LF, which end a line there, so no field breaks out of it. */
export const encodeFrame = (event: StoredEvent) =>
  `id: ${event.id}\nevent: ${event.type}\ndata: ${eventJson(event)}\n\n`;
const frame = (name: string, data: object) => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`;
/** Tells a client that events before id `head` are missing, and why. */
const resetFrame = (reason: string, head: number) =>
  `id: ${head}\n${frame("reset", { reason, last_event_id: head })}`;

/** @param onError told why a stream ends whose log the store can't read; its client comes back with its last id */
export function createHub(store: Store, onError = (_: unknown) => {}, now: Clock = Date.now) {
  const subscribers = new Set<Subscriber>();
  const pages = new Map<string, { chunk: Uint8Array; place: Place }>(); // by place and filter, since the last batch
  const staleRows = new Map<number, Rows>(); // by the time since when: the same for streams of any session
  let pagesThisTurn = 0;
  let latest: Place = { cursor: 0, rows: 0, deletion: 0, time: 0 }; // replaced, never changed

  /** What comes after the place of a subscriber, and the place after that. */
  function nextPage({ sessionId, hasRows, place }: Subscriber) {
    let { cursor, rows } = place;
    const { deletion, time, isLoaded } = place;
    let text = "";
    const tell = (name: "session" | "span" | "session_deleted", id: string, row: object) => {
      if (sessionId === null || sessionId === id) text += frame(name, row);
    };
    const tellRows = ({ sessions, spans }: Rows) => {
      for (const row of sessions) tell("session", row.id, row);
      for (const row of spans) tell("span", row.session_id, row);
    };
    if (deletion < latest.deletion && store.isBroken(cursor, sessionId, deletion)) {
      cursor = rows = latest.cursor;
      text += resetFrame(DELETED, cursor);
    }
    if (hasRows && deletion < latest.deletion) {
      const deletions = store.deletionsSince(deletion);
      for (const { session_id } of deletions) tell("session_deleted", session_id, { session_id });
      const relatives = deletions.flatMap(({ relatives }): string[] => JSON.parse(relatives));
      tellRows(store.rowsOf(relatives, [], now()));
    }
    // With the millisecond that was told last: more may have turned in it since.
    if (hasRows && time < latest.time) {
      const stale = staleRows.get(time) ?? store.staleRows(time - 1, latest.time);
      staleRows.set(time, stale);
      tellRows(stale);
      const isCut = Object.values(stale).some(({ length }) => length >= SLICE_ROWS);
      if (isCut && sessionId === null && !isLoaded)
        text += resetFrame("more fell silent at once than is told", cursor);
    }
    const until = hasRows ? store.nthFrom(cursor, PAGE_EVENTS_WITH_ROWS) : latest.cursor;
    const range = { sessionId, after: cursor, to: until };
    const { events, isDone } = store.pageOf(range, PAGE_EVENTS, QUEUE_BYTES);
    cursor = (isDone ? null : events.at(-1)?.id) ?? until;
    for (const event of events) text += encodeFrame(event);
    if (hasRows) tellRows(store.changedRows(rows, cursor, now()));
    if (hasRows && text !== "") text += `id: ${cursor}\n\n`; // no event: says that all up to it was told
    const next = cursor === latest.cursor ? latest : { ...latest, cursor, rows: cursor };
    return { chunk: encoder.encode(text), place: next };
  }

  /** Sends a subscriber its next page, where it has room; where the store throws, its stream ends. */
  function fill(subscriber: Subscriber): void {
    const { sessionId, hasRows, controller } = subscriber;
    if ((controller.desiredSize ?? 0) <= 0) return;
    const key = JSON.stringify([subscriber.place, hasRows, sessionId]);
    try {
      const page = pages.get(key) ?? nextPage(subscriber);
      if (pages.size < MAX_KEPT_PAGES) pages.set(key, page);
      subscriber.place = page.place;
      // A stream pulls again only once something was sent: what comes may be of other sessions.
      send(subscriber, page.chunk.length > 0 || page.place === latest ? page.chunk : HEARTBEAT);
    } catch (error) {
      onError(error);
      subscribers.delete(subscriber);
      controller.close();
    }
  }

  function send({ controller }: Subscriber, chunk: Uint8Array): void {
    try {
      if (chunk.length > 0 && (controller.desiredSize ?? 0) > 0) controller.enqueue(chunk);
    } catch {} // it was cancelled in this turn of the event loop; cancel() takes it from the set
  }

  /** Looks for what there is to tell, and tells those who had been told all before. */
  function publish(time = latest.time): void {
    const before = latest;
    try {
      const cursor = store.head();
      const place = { cursor, rows: cursor, deletion: store.deletionAt(), time };
      if (Bun.deepEquals(place, latest)) return;
      latest = place;
    } catch (error) {
      return onError(error); // nobody's request: the next sweep looks again
    }
    pages.clear();
    staleRows.clear();
    for (const subscriber of subscribers) if (subscriber.place === before) fill(subscriber);
  }
  publish(now());

  /** The place of a client that has the events up to `lastEventId`, or why it can't go on from there without a gap. */
  function placeAfter(lastEventId: string, sessionId: string | null): Place | string {
    const cursor = Number(lastEventId);
    if (!/^\d{1,16}$/.test(lastEventId)) return "the last event id is not a number";
    if (cursor > latest.cursor) return "the last event id is ahead: it is of another database";
    if (cursor === 0) return { ...latest, cursor, rows: cursor }; // it has nothing that could be out of date
    if (store.isUnknown(cursor))
      return "the last event id is none of this database: a backup was put in its place";
    if (store.isBroken(cursor, sessionId, 0)) return DELETED;
    // The connection may have been cut between the latest events that it has and their rows.
    const rows = store.nthFrom(cursor, -PAGE_EVENTS_WITH_ROWS);
    const time = store.timeAt(cursor) - SWEEP_INTERVAL_MS;
    const isLoaded = cursor === latest.cursor;
    return { cursor, rows, deletion: store.deletionAt(cursor), time, isLoaded };
  }

  return {
    size: () => subscribers.size,
    /**
     * The events of a session, or of all (null), and the rows that change (`hasRows`), after `lastEventId`, then live;
     * null: live only. Where that can't be, a frame `reset` says why, and from which id on the stream goes.
     */
    subscribe(sessionId: string | null, lastEventId: string | null, hasRows = false) {
      const found = lastEventId === null ? latest : placeAfter(lastEventId, sessionId);
      const isReset = typeof found === "string";
      const place = isReset ? latest : found;
      // An id alone is no event, but where one resumes. A reset has its own: cut between the two, one would never know.
      const start = isReset ? `\n${resetFrame(found, place.cursor)}` : `id: ${place.cursor}\n\n`;
      const hello = `: PAI Observability ${version}\nretry: ${RETRY_MS}\n${start}`;
      let subscriber: Subscriber;
      const source: UnderlyingDefaultSource<Uint8Array> = {
        start(controller) {
          subscriber = { sessionId, hasRows, controller, place };
          subscribers.add(subscriber);
          send(subscriber, encoder.encode(hello));
        },
        pull() {
          if (subscriber.place === latest) return;
          fill(subscriber);
          if (pagesThisTurn === 0) setImmediate(() => (pagesThisTurn = 0));
          pagesThisTurn += hasRows ? PAGES_PER_TURN : 1;
          if (pagesThisTurn >= PAGES_PER_TURN) return new Promise((done) => setImmediate(done));
        },
        cancel: () => void subscribers.delete(subscriber),
      };
      return new ReadableStream(source, QUEUE);
    },
    publish, // tells of committed events and deletions; with `time`, also of what is otherwise by then
    /** Keeps quiet streams open, and lets the idle timeout find those that nobody reads. */
    heartbeat: () => subscribers.forEach((subscriber) => send(subscriber, HEARTBEAT)),
    /** Ends every stream; a browser comes back by itself. */
    close(): void {
      for (const { controller } of subscribers) controller.close();
      subscribers.clear();
    },
  };
}

// ─── Ingest ──────────────────────────────────────────────────────────────────
// Group commit: what arrives in one turn of the event loop shares one transaction, one fsync and one chunk
// for every subscriber. Nothing is acknowledged or published that isn't committed.

const MAX_BATCH_TURNS = 2; // more, while posts arrive: one fsync serves 64 of 64 busy connections rather than 40
const BUSY_LIMIT_MS = 2 * SECOND_MS; // how long a batch waits for another process to let go of the database
const BUSY_RETRY_MS = 20;
const MAX_BATCH_EVENTS = 5_000; // of one transaction, or post: some 40 ms, in which nobody else is answered
const MAX_PENDING_EVENTS = 20_000; // that may wait meanwhile: at 1 KB each, some tens of megabytes
const RETRY_LATER = { "Retry-After": "2" };

type PendingPost = PromiseWithResolvers<Receipt> & { events: TelemetryEvent[]; since: number };
type Ingest = ReturnType<typeof createIngest>;

export function createIngest(store: Pick<Store, "append">, hub: Pick<Hub, "publish">, now: Clock) {
  const pending: PendingPost[] = [];
  const metrics = createMetrics();
  let pendingEventCount = 0;
  let failure: string | undefined; // of the latest batch; undefined: it was stored

  /** Closes the batch once a turn of the event loop has brought nothing more. */
  function collect(turnsLeft: number, postCount: number): void {
    if (turnsLeft === 0 || pending.length === postCount) commit();
    else setImmediate(collect, turnsLeft - 1, pending.length);
  }

  /** Answers as many posts, in their order, as one transaction holds; false where it could answer none. */
  function commit(): boolean {
    const posts: PendingPost[] = [];
    let eventCount = 0;
    for (const post of pending) {
      if (posts.length > 0 && eventCount + post.events.length > MAX_BATCH_EVENTS) break;
      eventCount += post.events.length;
      posts.push(post);
    }
    const [oldest] = posts;
    if (oldest === undefined) return false;
    try {
      const batch = posts.map(({ events }) => events);
      const { receipts } = metrics.measured(store).append(batch, now());
      failure = undefined;
      receipts.forEach((receipt, index) => posts[index]?.resolve(receipt));
      hub.publish();
    } catch (error) {
      failure = messageOf(error);
      if (isBusy(error) && now() - oldest.since < BUSY_LIMIT_MS) {
        setTimeout(commit, BUSY_RETRY_MS);
        return false;
      }
      for (const { reject } of posts) reject(error);
    }
    pendingEventCount -= eventCount;
    pending.splice(0, posts.length);
    if (pending.length > 0) setImmediate(commit);
    return true;
  }

  return {
    ...{ metrics, failure: () => failure },
    /** Resolves once committed, rejects with the error of SQLite. @throws HttpError 503 where too many wait */
    submit(events: TelemetryEvent[]): Promise<Receipt> {
      if (pendingEventCount > 0 && pendingEventCount + events.length > MAX_PENDING_EVENTS)
        throw new HttpError(503, "too many events wait to be stored; try again", RETRY_LATER);
      pendingEventCount += events.length;
      const post = { events, since: now(), ...Promise.withResolvers<Receipt>() };
      if (pending.push(post) === 1) setImmediate(collect, MAX_BATCH_TURNS, 1);
      return post.promise;
    },
    /** Commits, or refuses, what waits; not what a locked database keeps waiting. */
    flush(): void {
      while (commit());
    },
  };
}

// ─── Guard ───────────────────────────────────────────────────────────────────
// Who may ask. A page in a browser must not read or write here unless it is ours: other sites can
// reach a server on localhost, by forms and by DNS rebinding too. Knows nothing of events.

const MAX_BODY_BYTES = 1024 * 1024;
const MAX_REFUSED = 1_000;
const JSON_TYPE = "application/json";
const NDJSON = "application/x-ndjson";
const decoder = new TextDecoder("utf-8", { fatal: true });
const CORS_HEADERS = {
  "Access-Control-Allow-Methods": "GET, POST, DELETE",
  "Access-Control-Allow-Headers": "Authorization, Content-Type, Last-Event-ID",
  "Access-Control-Expose-Headers": "Last-Event-ID, Retry-After",
  "Access-Control-Max-Age": "600",
  Vary: "Origin",
};

type Guard = ReturnType<typeof createGuard>;

function createGuard({ authToken, allowedHosts, allowedOrigins }: Config, now: Clock, log: Log) {
  const refused = new Set<string>(); // clients, by their User-Agent: a line of the log for each
  const login = authToken === null ? null : createLogin(authToken, now);

  return {
    /** The CORS headers of an allowed origin, else none. @throws HttpError 400, or 403 for a foreign page */
    checkOrigin({ headers, method, url }: Request): Record<string, string> {
      const host = headers.get("host")?.toLowerCase() ?? "";
      const name = HOST_HEADER.exec(host)?.[1]; // two headers arrive joined by a comma, which no name has
      if (name === undefined || !URL.canParse(`http://${host}`))
        throw new HttpError(400, "Host: expected one host name, with or without a port");
      const isAllowed = allowedHosts.includes(name) || allowedHosts.includes(host);
      if (!isAllowed && !isLoopback(name))
        throw new HttpError(403, `Host: ${name} is not ours; ALLOWED_HOSTS can add it`);
      const origin = headers.get("origin");
      if (origin !== null) {
        if (allowedOrigins.includes(origin))
          return { "Access-Control-Allow-Origin": origin, ...CORS_HEADERS };
        if (origin === `http://${host}` || (isAllowed && origin === `https://${host}`)) return {};
        throw new HttpError(403, "Origin: not a page of this server; ALLOWED_ORIGINS can add it");
      }
      if (!/^(cross|same)-site$/.test(headers.get("sec-fetch-site") ?? "")) return {};
      // A link from elsewhere may open the dashboard, as a whole page.
      const fetched = [method, headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")];
      if (`${fetched.join(" ")} ${new URL(url).pathname}` === "GET navigate document /") return {};
      throw new HttpError(403, "Sec-Fetch-Site: not a page of this server");
    },
    /** A cookie that stands for the token in the query; null: none is given, or wanted. @throws HttpError 401 */
    loginCookie(req: Request): string | null {
      const cookie = login?.cookieFor(req) ?? null;
      if (cookie === "") throw new HttpError(401, "token: not the AUTH_TOKEN of this server");
      return cookie;
    },
    /** @throws HttpError 401 where a token is wanted and neither header nor cookie has it */
    checkToken({ headers }: Request): void {
      const bearer = /^Bearer +(\S+)$/i.exec(headers.get("authorization") ?? "")?.[1];
      if (login === null || login.isToken(bearer) || login.hasCookie(headers)) return;
      const client = headers.get("user-agent")?.slice(0, 100) ?? "";
      if (!refused.has(client) && refused.size < MAX_REFUSED)
        log.warn(`401: ${client} sends no token, or a wrong one`);
      if (refused.size < MAX_REFUSED) refused.add(client);
      const problem = "expected Bearer and the AUTH_TOKEN; in a browser, open /?token=… once";
      throw new HttpError(401, `Authorization: ${problem}`, { "WWW-Authenticate": "Bearer" });
    },
  };
}

/** The text of a POST, and whether it is NDJSON. @throws HttpError 400 no UTF-8, 413 too large, 415 no JSON */
async function readBody(req: Request) {
  const type = req.headers.get("content-type")?.split(";")[0]?.trim().toLowerCase() ?? "none";
  if (type !== JSON_TYPE && type !== NDJSON)
    throw new HttpError(415, `Content-Type: expected ${JSON_TYPE} or ${NDJSON}; got ${type}`);
  if ((req.headers.get("content-encoding") ?? "identity") !== "identity")
    throw new HttpError(415, "Content-Encoding: expected none");
  const tooLarge = `body: expected at most ${MAX_BODY_BYTES} bytes; send several`;
  const length = req.headers.get("content-length");
  if (Number(length) > MAX_BODY_BYTES) throw new HttpError(413, tooLarge);
  const chunks: Uint8Array[] = [];
  let size = 0;
  // Of a known length it is one chunk, which is quicker.
  for await (const chunk of length === null ? (req.body ?? []) : [await req.bytes()]) {
    if ((size += chunk.byteLength) > MAX_BODY_BYTES) throw new HttpError(413, tooLarge);
    chunks.push(chunk);
  }
  try {
    return { text: decoder.decode(Buffer.concat(chunks)), isNdjson: type === NDJSON };
  } catch {
    throw new HttpError(400, "body: expected UTF-8");
  }
}

// ─── Routes ──────────────────────────────────────────────────────────────────
// One table. A handler is a few lines and holds no SQL; it throws an HttpError, and one place answers it.

type RoutedRequest = Request & { params?: Record<string, string> }; // what the path names with a colon
type Handler = (query: Query, req: RoutedRequest) => Response | Promise<Response>;
type Routes = Record<string, Handler>; // by method and path
type Query = ReturnType<typeof createQuery>;
type Lists = Record<string, Iterable<object> | AsyncIterable<object | string>>; // of an answer, by their names
type Parts = { config: Config; guard: Guard; store: Store; hub: Hub; ingest: Ingest; log: Log };

const DEFAULT_LIMIT = 100;
const PLAIN_TEXT = { "Content-Type": "text/plain; charset=utf-8" };
const NO_ROUTE = new HttpError(404, "no such route");
const PUBLIC_PATHS = ["/", "/health"]; // without a token; "/" asks for it itself, because it also takes it
const ANY_PATH = "/*"; // that no other route has
const PAGE_HEADERS = {
  "Content-Type": "text/html; charset=utf-8",
  "X-Frame-Options": "DENY",
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
};
const COMMON_HEADERS = {
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Cache-Control": "no-store",
};

const reply = (body: BodyInit | null, headers: Record<string, string>, status = 200) =>
  new Response(body, { status, headers: { ...COMMON_HEADERS, ...headers } });
const json = (body: unknown, headers = {}, status = 200) =>
  reply(JSON.stringify(body), { "Content-Type": JSON_TYPE, ...headers }, status);

const spentOf = ({ nanodollars = 0, first_token_ms = 0, first_tokens, ...sums }: Sums) => ({
  ...{ count: sums.count, cost: nanodollars / 1e9 },
  tokens: Object.fromEntries(TOKEN_KINDS.map((part) => [part, sums[part] ?? 0])),
  avg_first_token_ms: first_tokens === 0 ? null : first_tokens && first_token_ms / first_tokens, // by day it isn't counted
});

/** The text of an object with `members`, then `lists`; an item that is text is JSON already. */
async function* jsonPieces(members: object, lists: Lists) {
  let text = JSON.stringify(members).slice(0, -1);
  for (const [name, items] of Object.entries(lists)) {
    yield `${text}${text === "{" ? "" : ","}"${name}":[`;
    let comma = "";
    for await (const item of items) {
      yield comma + (typeof item === "string" ? item : JSON.stringify(item));
      comma = ",";
    }
    text = "]";
  }
  yield `${text}}`;
}

/** `text` as an answer: what is long goes piece by piece, at the client's pace; others have their turn in between. */
async function stream(text: AsyncGenerator<string>, headers: Record<string, string>, log: Log) {
  /** What comes next; empty at the end. */
  async function read() {
    let piece = "";
    while (piece.length < QUEUE_BYTES) {
      const { value, done } = await text.next();
      if (done) break;
      piece += value;
    }
    return piece;
  }
  let piece = await read();
  if (piece.length < QUEUE_BYTES) return reply(piece, headers);
  const source: UnderlyingDefaultSource<Uint8Array> = {
    async pull(controller) {
      try {
        if (piece === "") return controller.close();
        controller.enqueue(encoder.encode(piece));
        await nextSlice();
        piece = await read();
      } catch (error) {
        asHttpError(error, log);
        controller.error(); // broken off: it must not look complete
      }
    },
  };
  return reply(new ReadableStream(source, QUEUE), headers);
}

const A_TIME: Format = { test: (text) => !Number.isNaN(timeOf(text)) };
/** The query parameters that are numbers: what each must look like, and how an error says it. */
const NUMBER_PARAMS = {
  limit: wholeNumber(1, 1_000),
  after: [/^\d{1,16}$/, "the id of an event"],
  before: [/^\d{1,16}$/, "the id of an event"],
  hours: [HOURS, "a number above 0, fractions allowed"],
  from: [A_TIME, "ISO 8601 with an offset, such as 2026-01-01T12:00:00Z"],
  to: [A_TIME, "ISO 8601 with an offset, such as 2026-01-01T12:00:00Z"],
  days: wholeNumber(1, 400),
  before_hours: [/^(?=.)\d{0,9}(\.\d{1,9})?$/, "a number from 0, fractions allowed"],
} as const;

/** Reads the query of a URL. What isn't there is null, or `absent`. @throws HttpError 400 where it is wrong */
function createQuery(url: string) {
  let parsed: URLSearchParams | null = null;
  const get = (name: string) => (parsed ??= new URL(url).searchParams).get(name);
  const text = (name: string) => get(name) || null;

  function number<Absent>(name: keyof typeof NUMBER_PARAMS, absent: Absent): number | Absent {
    const given = get(name);
    if (given === null) return absent;
    const [format, expected] = NUMBER_PARAMS[name];
    if (!format.test(given)) throw invalid(name, expected, given);
    return format === A_TIME ? timeOf(given) : Number(given);
  }

  function choice<T extends string>(name: string, choices: readonly T[]): T | null {
    const given = get(name);
    const found = choices.find((one) => one === given) ?? null;
    if (found !== given) throw invalid(name, `one of ${choices.join(", ")}`, given);
    return found;
  }

  /** The `hours` that end `before_hours` ago, at whole minutes; where they end now, with all of this day: nothing is later. */
  function range(now: number): [from: number, to: number] {
    const hoursAgo = number("before_hours", 0);
    const end = now - hoursAgo * HOUR_MS;
    const start = end - number("hours", 24) * HOUR_MS;
    return [minuteOf(start), hoursAgo === 0 ? end - (end % DAY_MS) + DAY_MS : minuteOf(end)];
  }

  return { text, number, choice, range };
}

/** One event, an array of them, or one per line (NDJSON). @throws HttpError 400 with the index of the bad one */
function parseBody(text: string, isNdjson: boolean, receivedAt: number) {
  const parsed = isNdjson ? text.split("\n").filter((line) => line.trim() !== "") : parseJson(text);
  if (!Array.isArray(parsed)) return { events: [parseEvent(parsed, receivedAt)], isBatch: false };
  if (parsed.length > MAX_BATCH_EVENTS)
    throw new HttpError(413, `body: expected at most ${MAX_BATCH_EVENTS} events; send several`);
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

function createRoutes(parts: Parts, now: Clock): Routes {
  const { config, guard, store, hub, ingest, log } = parts;
  const startedAt = performance.now(); // of a clock that nobody sets
  const headId = (head = store.head()) => ({ "Last-Event-ID": String(head) }); // where a stream goes on after it
  const streamJson = (lists: Lists, headers = {}, members = {}) =>
    stream(jsonPieces(members, lists), { "Content-Type": JSON_TYPE, ...headers }, log);

  async function* eventTexts(filter: EventFilter, order: Order, limit: number, end = "") {
    for await (const event of store.listEvents(filter, order, limit)) yield eventJson(event) + end;
  }
  async function* usage(kind: UsageKind, query: Query) {
    for await (const { name, sums, ...stats } of store.usageStats(kind, ...query.range(now())))
      if (kind === "model") yield { ...JSON.parse(name), ...stats, ...spentOf(sums) };
      else yield { [kind === "agent" ? "subagent_type" : "tool"]: name, ...stats };
  }

  const noSession = (id: string) =>
    new HttpError(404, `no session ${JSON.stringify(id.slice(0, MAX_ID_CHARS))}`);

  const postEvents: Handler = async (_query, req) => {
    const { text, isNdjson } = await readBody(req);
    const { events, isBatch } = parseBody(text, isNdjson, now());
    const { ids, stored } = await ingest.submit(events);
    return json(isBatch ? { ids } : { id: ids[0] }, {}, stored > 0 ? 201 : 200);
  };

  return {
    "GET /": async (_query, req) => {
      const cookie = guard.loginCookie(req);
      if (cookie !== null) return reply(null, { Location: "/", "Set-Cookie": cookie }, 303); // no token in the address bar
      guard.checkToken(req);
      const page = await dashboardPage(log.error);
      if (page) return reply(page, PAGE_HEADERS);
      throw new HttpError(503, "the page can't be bundled; the server's log has it", RETRY_LATER);
    },
    "GET /*": async (_query, { url }) => {
      const file = await dashboardFile(new URL(url).pathname);
      if (file === undefined) throw NO_ROUTE;
      return reply(file, { "Content-Type": file.type });
    },
    "GET /health": () => {
      const { events, bytes: database_bytes } = store.size();
      const uptime = (performance.now() - startedAt) / SECOND_MS;
      const reason = ingest.failure();
      return json({
        status: reason === undefined ? "ok" : "degraded",
        ...{ reason, uptime, timestamp: iso(now()), version },
        ...{ subscribers: hub.size(), events, database_bytes },
      });
    },
    "GET /metrics": async () => {
      const counts = { ...(await store.countSessions(now())), ...store.size() };
      return reply(ingest.metrics.read({ ...counts, subscribers: hub.size() }), METRICS_TYPE);
    },
    "POST /events": postEvents,
    "POST /api/events": postEvents,
    "GET /api/events": (query, req) => {
      const isExport = req.headers.get("accept")?.includes(NDJSON);
      const limit = query.number("limit", isExport ? Infinity : DEFAULT_LIMIT);
      const after = query.number("after", null);
      const before = Math.min(query.number("before", Infinity), store.head() + 1); // so that an export ends
      const type = query.choice("type", TYPE_NAMES);
      const [sessionId, q, tool] = [query.text("sessionId"), query.text("q"), query.text("tool")];
      const [from, to] = [query.number("from", 0), query.number("to", Infinity)];
      const filter = { after, before, sessionId, type, q, tool, from, to };
      if (isExport) {
        const lines = eventTexts(filter, "oldest first", limit, "\n");
        return stream(lines, { "Content-Type": NDJSON }, log);
      }
      const order = after === null ? "newest first" : "oldest first";
      const indexed_to = q === null && tool === null ? undefined : store.indexedTo();
      return streamJson({ events: eventTexts(filter, order, limit) }, headId(), { indexed_to });
    },
    "GET /api/events/stream": (query, req) => {
      if (hub.size() >= config.maxSubscribers)
        throw new HttpError(503, `${hub.size()} streams, which is MAX_SUBSCRIBERS`, RETRY_LATER);
      const cursor = req.headers.get("last-event-id") || query.text("lastEventId");
      const hasRows = query.text("include")?.split(",").includes("rows") ?? false;
      const frames = hub.subscribe(query.text("sessionId"), cursor, hasRows);
      return reply(frames, { "Content-Type": "text/event-stream", "X-Accel-Buffering": "no" }); // for nginx
    },
    "GET /api/sessions": (query) => {
      const status = query.choice("status", ["active", "waiting", "completed", "stale"]);
      const filter = { status, sessionId: query.text("sessionId") };
      const sessions = store.listSessions(filter, query.number("limit", DEFAULT_LIMIT), now());
      return streamJson({ sessions }, headId());
    },
    "GET /api/sessions/:sessionId": async (_query, { params: { sessionId = "" } = {} }) => {
      const found = await store.findSession(sessionId, now());
      if (found === null) throw noSession(sessionId);
      const { head, session, tools, agents } = found;
      return streamJson({ tools, agents }, headId(head), { session });
    },
    "DELETE /api/sessions/:sessionId": async (_query, { params: { sessionId = "" } = {} }) => {
      const count = await store.prune(0, undefined, hub.publish, [sessionId]);
      if (count === 0) throw noSession(sessionId);
      return reply(null, {}, 204);
    },
    "DELETE /api/sessions": async (query) => {
      const prefix = query.text("prefix");
      if (prefix === null) throw invalid("prefix", "the beginning of ids");
      const all = store.listSessions({ status: null, sessionId: null }, LAST, now());
      const ids = await Array.fromAsync(all, ({ id }) => id);
      const asked = ids.filter((id) => id.startsWith(prefix));
      await store.prune(0, undefined, hub.publish, asked);
      return reply(null, {}, 204);
    },
    "GET /api/sessions/:sessionId/trace.json": (_query, { params: { sessionId = "" } = {} }) => {
      if (store.toSession(sessionId, now()) === null) throw noSession(sessionId);
      return streamJson({ traceEvents: traceEvents(store, sessionId, now()) });
    },
    "GET /api/spans": (query) => {
      const isOpen = query.text("open") === "1";
      const before = query.number("before", null);
      const filter = { sessionId: query.text("sessionId"), before, isOpen };
      const limit = query.number("limit", DEFAULT_LIMIT);
      return streamJson({ spans: store.listSpans(filter, limit, now()) }, headId());
    },
    "GET /api/senders": () => json({ senders: store.listSenders(now()) }),
    "POST /api/senders": async (_query, req) => {
      const heard = parseSender(parseJson((await readBody(req)).text));
      const { sender, name, version } = heard;
      const { isNew, isTurned } = store.hear(sender, now(), heard);
      if (isNew) log.info(`sender: ${name ?? sender} ${version ?? ""}`);
      if (isTurned) hub.publish(now());
      return reply(null, {}, 204);
    },
    "GET /api/overview": async () => json(await store.overview(now())),
    "GET /api/analytics/tools": (query) => streamJson({ tools: usage("tool", query) }),
    "GET /api/analytics/agents": (query) => streamJson({ agents: usage("agent", query) }),
    "GET /api/analytics/models": (query) => streamJson({ models: usage("model", query) }),
    "GET /api/analytics/spend": async (query) => {
      const by = query.choice("by", ["day", "model", "agent", "directory"]) ?? "day";
      const at = now() - query.number("before_hours", 0) * HOUR_MS;
      const from = at - (at % DAY_MS) - (query.number("days", 30) - 1) * DAY_MS;
      const sessionId = query.text("sessionId") ?? undefined;
      const stats = store.usageStats("spend", from, at + 1, by, sessionId);
      const spend = await Array.fromAsync(stats, (it) => ({ [by]: it.name, ...spentOf(it.sums) }));
      return json({ spend: by === "day" ? spend : spend.sort((a, b) => b.cost - a.cost) });
    },
    "GET /api/analytics/activity": (query) =>
      json({ activity: store.activity(...query.range(now())) }, headId()),
    "GET /plugin/observability.ts": (_query, { headers }) => {
      const scheme = headers.get("x-forwarded-proto") === "https" ? "https" : "http";
      return reply(pluginFor(`${scheme}://${headers.get("host")}`), PLAIN_TEXT); // it posts to where it came from
    },
  };
}

/** Answers at `path`, or with what went wrong: nothing else turns errors into answers. */
function createAnswer(path: string, routes: Routes, { guard, log }: Parts) {
  const handlerOf = (method: string) => routes[`${method === "HEAD" ? "GET" : method} ${path}`];
  const methods = ["GET", "HEAD", "POST", "DELETE"].filter(handlerOf);
  const allow = { Allow: [...methods, "OPTIONS"].join(", ") };

  return async (req: RoutedRequest) => {
    const { method, url } = req;
    const isPreflight = method === "OPTIONS" && path !== ANY_PATH;
    let cors: Record<string, string> = {};
    let response: Response;
    try {
      cors = guard.checkOrigin(req);
      if (!isPreflight && !PUBLIC_PATHS.includes(path)) guard.checkToken(req);
      const handler = isPreflight ? () => reply(null, allow, 204) : handlerOf(method);
      if (!handler && path === ANY_PATH) throw NO_ROUTE;
      if (!handler) throw new HttpError(405, `${method} is not for this route`, allow);
      response = await handler(createQuery(url), req); // to HEAD Bun leaves out the body, and cancels a stream
    } catch (error) {
      const { status, message, headers } = asHttpError(error, log);
      const [reason] = message.split(/; got |(?<=malformed JSON): |(?<=no session) /); // what it had is private
      log.debug(`${status} ${method} ${url.replace(/\?.*/s, "")}: ${reason}`);
      const isAsked = status === 401 && req.headers.get("accept")?.includes("text/html");
      response = isAsked
        ? reply(loginPage(url.includes("token=") ? message : ""), PAGE_HEADERS, status)
        : json({ error: message }, headers, status);
    }
    for (const name in cors) response.headers.set(name, cors[name] ?? "");
    return response;
  };
}

/** The answer that `error` means. Logs what isn't the client's fault. */
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

const IDLE_TIMEOUT_SECONDS = 40; // longer than two heartbeats, so that only streams that nobody reads reach it
const LOOPBACK = ["127.0.0.1", "::1"];
const BUNDLE_AFTER_MS = 500; // of the start: so that the first visit needn't wait for it, nor the start
const STOP_LIMIT_MS = 1_500; // only clients that don't read are still there then

const isInUse = (error: unknown) =>
  error instanceof Error && "code" in error && error.code === "EADDRINUSE";

/** Starts the server. @returns its URL, and how to stop it: in 2 s, all acknowledged in the file. @throws StartError */
export function startServer(config: Config, log: Log, now: Clock = Date.now) {
  const { host, port, paiPort, isPaiEnabled } = config;
  const store = openStore(config.dataDir, log, now());
  const hub = createHub(store, (error) => void asHttpError(error, log), now);
  const ingest = createIngest(store, hub, now);
  const parts = { config, guard: createGuard(config, now, log), store, hub, ingest, log };
  const servers: Bun.Server<undefined>[] = [];
  const routes = createRoutes(parts, now);
  const paths = Object.keys(routes).map((route) => route.replace(/^\w+ /, ""));
  const listen = (hostname: string, port: number, paths: string[], rest: Routes) =>
    Bun.serve({
      hostname,
      port,
      development: false,
      reusePort: false, // on without development, so that two servers share a port (Bun 1.4.5)
      idleTimeout: IDLE_TIMEOUT_SECONDS,
      maxRequestBodySize: Number.MAX_SAFE_INTEGER, // readBody has the limit, and answers in JSON
      routes: Object.fromEntries(
        paths.map((path) => [path, createAnswer(path, routes, parts)] as const),
      ),
      fetch: createAnswer(ANY_PATH, rest, parts),
    });
  // Both loopback addresses for `localhost`: a client may try either first.
  for (const hostname of host.toLowerCase() === "localhost" ? LOOPBACK : [host])
    try {
      servers.push(listen(hostname, servers[0]?.port ?? port, paths, routes));
    } catch (error) {
      // A machine may lack IPv6; but where another program has its port, localhost would mean two servers.
      if (servers.length > 0 && (!isInUse(error) || port === 0)) continue;
      for (const server of servers) server.stop(true);
      store.close();
      const problem = isInUse(error)
        ? `PORT=${port}: in use on ${hostname}; find by whom with "lsof -i :${port}", or set another PORT`
        : `HOST=${JSON.stringify(host)}, PORT=${port}: can't listen there (${messageOf(error)})`;
      throw new StartError(problem);
    }
  // Where the emitter of PAI-OpenCode posts to, if nothing else was said to it.
  for (const hostname of isPaiEnabled && paiPort !== servers[0]?.port ? LOOPBACK : [])
    try {
      servers.push(listen(hostname, paiPort, ["/events", "/health"], {}));
    } catch (error) {
      const say = isInUse(error) ? log.warn : log.debug; // without IPv6 there is no ::1
      say(`PAI_OBSERVABILITY_PORT=${paiPort}: not on ${hostname} (${messageOf(error)})`);
    }

  /** Somebody waits for an answer; a stream, which never ends, doesn't. */
  const isAsked = () => servers.reduce((sum, it) => sum + it.pendingRequests, 0) > hub.size();
  let lastCount = 0;
  const isPause = () => lastCount === (lastCount = store.eventCount()) && !isAsked();
  const cutoff = () => now() - config.retentionHours * HOUR_MS;
  const prune = async () => {
    try {
      const sessionCount = await store.prune(cutoff(), isAsked, hub.publish);
      if (sessionCount > 0) log.info(`retention: ${sessionCount} sessions deleted`);
    } catch (error) {
      log.warn(`retention: ${messageOf(error)}; tried again in an hour`);
    }
  };
  const isDoubtful = store.isAllExpired(cutoff());
  if (isDoubtful)
    log.warn("retention: all sessions are too old; if the clock is right, they go in an hour");
  let pruning = isDoubtful ? Promise.resolve() : prune();
  const timers = [
    setInterval(() => (pruning = pruning.then(prune)), HOUR_MS),
    setInterval(() => store.index(isPause() ? INDEX_INTERVAL_MS / 3 : 2), INDEX_INTERVAL_MS),
    setInterval(hub.heartbeat, HEARTBEAT_MS),
    setInterval(() => hub.publish(now()), SWEEP_INTERVAL_MS),
  ];

  const url = `http://${host.includes(":") ? `[${host}]` : host}:${servers[0]?.port}`;
  const env = { ...config.followers, AUTH_TOKEN: config.authToken ?? "", DATA_DIR: config.dataDir };
  const programs = new URL("./follow/", import.meta.url);
  const stopFollowers = startFollowers({ server: url, programs, env, log: log.error });

  async function stop(): Promise<void> {
    timers.forEach(clearInterval);
    const finished = Promise.all(servers.map((server) => server.stop()));
    ingest.flush();
    hub.close();
    await Promise.race([finished, Bun.sleep(STOP_LIMIT_MS)]);
    await Promise.all(servers.map((server) => server.stop(true)));
    await stopFollowers();
    ingest.flush();
    store.stopPruning();
    await pruning;
    store.close();
  }

  return { url, stop };
}

if (import.meta.main) {
  process.env.NO_PROXY = "*"; // it fetches from itself alone: the page's bundle
  const [word, ...rest] = process.argv.slice(2);
  if (word !== undefined) process.exit(await runCommand(word, rest, loadConfig));
  try {
    const config = loadConfig(process.env);
    const log = createLog(config.logLevel);
    const server = startServer(config, log);
    let isStopping = false;
    const exit = async (signal: string) => {
      if (isStopping) return;
      isStopping = true;
      log.info(`${signal}: stopping`);
      await server.stop();
      process.exit(0);
    };
    // Ctrl-C arrives twice under `bun start`: from the terminal, and from that.
    for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, exit);
    setTimeout(dashboardPage, BUNDLE_AFTER_MS, log.error);
    log.info(`PAI Observability ${version} on ${server.url}`); // last: whoever reads it may end it
  } catch (error) {
    if (!(error instanceof StartError)) throw error;
    console.error(error.message);
    process.exit(1);
  }
}
