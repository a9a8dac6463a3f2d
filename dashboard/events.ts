/** Events in the words of the page: what they are called, what they say on one line, which of them a filter lets through. */

import type { EventType } from "../server.ts";
import { formatCount, joined } from "./format.ts";

/** Characters of a value that is shown whole: more would stop the page. */
const MAX_SHOWN_CHARS = 100_000;

/** Every type of event, in the words of the page. A type that the server adds is missing here at compile time. */
export const EVENT_LABELS: Record<EventType, string> = {
  session_start: "Session started",
  session_update: "Session updated",
  session_end: "Session ended",
  session_error: "Session error",
  session_compacted: "Compacted",
  turn_start: "Turn started",
  tool_start: "Tool started",
  tool_use: "Tool",
  agent_spawn: "Agent started",
  agent_complete: "Agent finished",
  model_request: "Model asked",
  model_response: "Model answered",
  retry: "Retry",
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

/** What a type of event begins or ends. */
export const CALL_KINDS: Partial<Record<EventType, "tool" | "agent" | "model">> = {
  tool_start: "tool",
  tool_use: "tool",
  agent_spawn: "agent",
  agent_complete: "agent",
  model_request: "model",
  model_response: "model",
};

/** Shown as failures by what they are. */
export const FAILURE_TYPES = ["session_error", "tool_blocked", "security_block"];

export interface TelemetryEvent {
  id: number;
  type: EventType;
  session_id: string;
  /** Milliseconds since 1970. */
  at: number;
  /** The whole event as it was sent, envelope included. */
  fields: Readonly<Record<string, unknown>>;
}

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

/** How its line is shown where no row of the server says whether it failed. */
export function looksFailed({ type, fields }: TelemetryEvent): boolean {
  if (FAILURE_TYPES.includes(type)) return true;
  if (typeof fields.outcome === "string") return isFailure(fields.outcome);
  return typeof fields.success === "boolean" ? !fields.success : Boolean(fields.error);
}

/** The outcomes that are drawn in red. */
export function isFailure(outcome: string | null): boolean {
  return outcome === "failed" || outcome === "exit";
}

/** How a call went, where there is something to say: "failed", "exit 1", "denied", "cancelled". */
export function outcomeWord(outcome: unknown, exitCode: unknown): string | null {
  if (typeof outcome !== "string" || outcome === "ok") return null;
  return outcome === "exit" && typeof exitCode === "number" ? `exit ${exitCode}` : outcome;
}

/** How long it took, in milliseconds; null: not said. */
export function durationOf({ type, fields }: TelemetryEvent): number | null {
  const [value, unit] =
    type === "session_end" ? [fields.duration_seconds, 1_000] : [fields.duration_ms, 1];
  return typeof value === "number" ? value * unit : null;
}

// ─── Words ───────────────────────────────────────────────────────────────────

/** What an event is about, on one line; null: its type says it all. */
export function summaryOf({ type, fields }: TelemetryEvent): string | null {
  const outcome = outcomeWord(fields.outcome, fields.exit_code);
  const said = (text: string | null) => joined([outcome, text], ": ") || null;
  switch (type) {
    case "tool_start":
      return `started: ${argsSummary(fields.args) ?? "no arguments"}`;
    case "tool_use":
      return said(
        errorText(fields.error) ?? filesSummary(fields.files) ?? argsSummary(fields.args),
      );
    case "agent_spawn":
      return `started: ${asText(fields.description) ?? asText(fields.prompt) ?? "no prompt"}`;
    case "agent_complete":
      if (fields.success === false) return `failed: ${errorText(fields.error) ?? "no reason"}`;
      return said(errorText(fields.error)) ?? "finished";
    case "model_request":
    case "model_response":
      return said(errorText(fields.error) ?? asText(fields.model));
    case "session_start":
    case "session_update":
      return asText(fields.title) ?? asText(fields.directory);
    case "input_requested":
      return asText(fields.detail) ?? asText(fields.kind);
    case "input_resolved":
      return asText(fields.reply) ?? asText(fields.kind);
    default:
      return (
        errorText(fields.error) ??
        asText(fields.message) ??
        asText(fields.reason) ??
        asText(fields.text) ??
        asText(fields.content) ??
        asText(fields.prompt)
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
  "question",
  "description",
  "prompt",
];

/** What a call has changed: "src/a.ts +2 −1, b.md +3 −0"; null: no file that is told. */
export function filesSummary(files: unknown): string | null {
  if (!Array.isArray(files)) return null;
  const told = files.filter(isRecord).map(({ path, additions, deletions }) => {
    const lines = typeof additions === "number" ? `+${additions} −${Number(deletions)}` : null;
    return joined([asText(path), lines], " ");
  });
  return told.join(", ") || null;
}

/** "1 of 3 done: Mend it"; null: there are none. */
export function todosSummary(todos: unknown): string | null {
  const all = Array.isArray(todos) ? todos.filter(isRecord) : [];
  if (all.length === 0) return null;
  const done = all.filter(({ status }) => status === "completed").length;
  const current = all.find(({ status }) => status === "in_progress");
  const count = `${formatCount(done)} of ${formatCount(all.length)} done`;
  return joined([count, asText(current?.content)], ": ");
}

/** The one argument that tells most of a call, else all of them as JSON. JSON that was cut short will do. */
export function argsSummary(args: unknown): string | null {
  const parsed = typeof args === "string" ? parseRecord(args) : args;
  if (isRecord(parsed)) {
    for (const name of SUMMARY_ARGS) {
      const value = parsed[name];
      if (typeof value === "string" && value !== "") return value;
    }
    const json = JSON.stringify(parsed);
    return json === "{}" ? null : (todosSummary(parsed.todos) ?? telling(json) ?? json);
  }
  return (typeof args === "string" ? telling(args) : null) ?? asText(args);
}

/** `{"filePath":"a.ts","oldString":"…` → `a.ts` */
function telling(cutJson: string): string | null {
  if (!cutJson.startsWith("{")) return null;
  for (const name of SUMMARY_ARGS) {
    const value = new RegExp(`"${name}":"((?:[^"\\\\]|\\\\.)+)`).exec(cutJson)?.[1];
    const parsed = value === undefined ? null : parseRecord(`{"value":"${value}"}`);
    if (typeof parsed?.value === "string") return parsed.value;
  }
  return null;
}

/** So much of a text as a row of a table can show. */
export function oneLine(text: string): string {
  return text.slice(0, 300).replace(/[ \t\r\n]+/g, " ");
}

/** Indented; a text that is itself JSON is opened up, or it would be a line of backslashes. */
export function prettyJson(value: unknown): string {
  const open = (_: string, inner: unknown) =>
    typeof inner === "string" ? (parseRecord(inner) ?? inner) : inner;
  return shownWhole(JSON.stringify(value, open, 2));
}

export function shownWhole(text: string): string {
  const missing = text.length - MAX_SHOWN_CHARS;
  return missing <= 0
    ? text
    : `${text.slice(0, MAX_SHOWN_CHARS)}\n… ${formatCount(missing)} more characters`;
}

/** What kind of work a tool does, by its name: four colours can be told apart, twenty can't. */
export function toolFamily(name: string): "run" | "read" | "write" | "other" {
  if (/todo|web|http|fetch/i.test(name)) return "other";
  if (/bash|shell|exec|command|terminal|powershell/i.test(name)) return "run";
  if (/edit|write|patch/i.test(name)) return "write";
  if (/read|grep|glob|list|^ls$|view|find|search/i.test(name)) return "read";
  return "other";
}

// ─── Filter ──────────────────────────────────────────────────────────────────

export interface FeedFilter {
  /** "failed": events of any type that tell of a failure. */
  type: EventType | "failed" | null;
  tool: string;
  sessionId: string | null;
  text: string;
}

/** @param hasFailed whether the event is shown as a failure */
export function matchesFilter(
  event: TelemetryEvent,
  { type, tool, sessionId, text }: FeedFilter,
  hasFailed: (event: TelemetryEvent) => boolean,
): boolean {
  if (sessionId !== null && event.session_id !== sessionId) return false;
  if (type === "failed" ? !hasFailed(event) : type !== null && event.type !== type) return false;
  if (tool !== "") {
    const name = textOrNull(event.fields.tool) ?? textOrNull(event.fields.subagent_type) ?? "";
    if (!name.toLowerCase().includes(tool.toLowerCase())) return false;
  }
  return text === "" || JSON.stringify(event.fields).toLowerCase().includes(text.toLowerCase());
}

// ─── Unknown values ──────────────────────────────────────────────────────────

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function textOrNull(value: unknown): string | null {
  return typeof value === "string" && value !== "" ? value : null;
}

/** Any value on one line: a string as it is, all else as JSON. Null: nothing to show. */
export function asText(value: unknown): string | null {
  if (value === null || value === undefined || value === "") return null;
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** An error as text; `false` says that there was none. */
export function errorText(value: unknown): string | null {
  return value === false ? null : asText(value);
}

/** The object in a JSON text; null where it is something else, or cut short. */
export function parseRecord(text: string): Record<string, unknown> | null {
  if (!text.startsWith("{")) return null;
  const value = parseJson(text);
  return isRecord(value) ? value : null;
}

/** Null for what is no JSON. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
