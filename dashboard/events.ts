/** Events in the words of the page: what they are called, what they say on one line, which of them a filter lets through. */

import type { EventType } from "../server.ts";
import { fold, hasWords, wordsIn } from "./find.ts";
import { formatCount, joined, relativePath } from "./format.ts";

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
  model_response: "Model",
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

export const isEventType = (value: unknown): value is EventType =>
  typeof value === "string" && Object.hasOwn(EVENT_LABELS, value);

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

/** It asks something of the person, or tells that it was answered. */
const isWait = (type: EventType) => type.startsWith("input_");

/** Shown as failures by what they are. */
export const FAILURE_TYPES = ["session_error", "tool_blocked", "security_block"];

export type TelemetryEvent = NonNullable<ReturnType<typeof readEvent>>;

/** The event in a frame of the stream or an item of the history; null where it isn't one. */
export function readEvent(raw: unknown) {
  if (!isRecord(raw)) return null;
  const { id, type, session_id, timestamp } = raw;
  if (typeof id !== "number" || typeof session_id !== "string" || !isEventType(type)) return null;
  const at = typeof timestamp === "string" ? Date.parse(timestamp) : NaN; // milliseconds since 1970
  const fields: Readonly<Record<string, unknown>> = raw; // as it was sent, envelope included
  return Number.isNaN(at) ? null : { id, type, session_id, at, fields };
}

/** How its line is shown where no row of the server says whether it failed. */
export function looksFailed({ type, fields }: Pick<TelemetryEvent, "type" | "fields">): boolean {
  if (FAILURE_TYPES.includes(type)) return true;
  if (typeof fields.outcome === "string") return isFailure(fields.outcome);
  return typeof fields.success === "boolean" ? !fields.success : Boolean(fields.error);
}

/** The outcomes that are drawn in red. */
export const isFailure = (outcome: string | null): boolean =>
  outcome === "failed" || outcome === "exit";

/** How a call went, where there is something to say: "failed", "exit 1", "denied", "cancelled". */
export function outcomeWord(outcome: unknown, exitCode: unknown): string | null {
  if (typeof outcome !== "string" || outcome === "ok") return null;
  return outcome === "exit" && typeof exitCode === "number" ? `exit ${exitCode}` : outcome;
}

// ─── Words ───────────────────────────────────────────────────────────────────

export type Words = ReturnType<typeof wordsOf>;

/**
 * An event, or a span in the same shape, in words; `kind` gives its mark and its colour, `reason` is whole.
 *
 * @param directory of the session: paths in it are told from there
 */
export function wordsOf(
  { type, fields }: Pick<TelemetryEvent, "type" | "fields">,
  directory: unknown = null,
) {
  const failed = looksFailed({ type, fields });
  const ended = asText(fields.outcome) ?? (failed ? "failed" : null);
  const outcome = CALL_KINDS[type] === undefined ? null : ended;
  const { kind, name, text: told } = subjectOf(type, fields, failed);
  const text = kind === "run" ? told : told && relativePath(told, directory);
  return {
    kind,
    outcome,
    name: oneLine(name ?? EVENT_LABELS[type]),
    text: oneLine(joined([outcomeWord(outcome, fields.exit_code), text], ": ")),
    reason: errorText(fields.error),
  };
}

function subjectOf(type: EventType, fields: TelemetryEvent["fields"], failed: boolean) {
  const [tool, agent] = [asText(fields.tool), asText(fields.subagent_type)];
  switch (CALL_KINDS[type]) {
    case "tool": {
      const text = filesSummary(fields.files) ?? argsSummary(fields.args);
      return { kind: toolFamily(tool ?? ""), name: tool, text };
    }
    case "agent": {
      // There may be many of a type: a person knows them by what they are to do.
      const { description, prompt, args } = fields; // these of the call that sent it out
      const task = asText(description) ?? asText(prompt) ?? argsSummary(args);
      return { kind: "agent", name: task ?? agent, text: task && agent };
    }
    case "model":
      return { kind: "model", name: null, text: asText(fields.model) };
  }
  const said = "title detail message reason text content prompt directory reply kind".split(" ");
  const text = said.map((field) => asText(fields[field])).find((told) => told !== null) ?? null;
  const mark = isWait(type) ? "wait" : type === "session_compacted" ? "compacted" : "note";
  return { kind: failed ? "failed" : mark, name: null, text };
}

/** Of JSON, in which an argument that tells most is looked for. */
const SEARCHED_CHARS = 4_096;
const SUMMARY_ARGS =
  "command pattern filePath file_path path url query question description prompt".split(" ");

/** What a call has changed: "src/a.ts +2 −1, b.md +3 −0"; null: no file that is told. */
function filesSummary(files: unknown): string | null {
  if (!Array.isArray(files)) return null;
  const told = files.filter(isRecord).map(({ path, additions, deletions }) => {
    const lines = typeof additions === "number" ? `+${additions} −${Number(deletions)}` : null;
    return joined([asText(path), lines], " ");
  });
  return told.join(", ") || null;
}

/** The one argument that tells most of a call, else all of them as JSON. JSON that was cut short will do. */
export function argsSummary(args: unknown): string | null {
  const parsed = typeof args === "string" ? parseRecord(args) : args;
  const values = isRecord(parsed) ? SUMMARY_ARGS.map((name) => parsed[name]) : [];
  const told = values.find((value) => typeof value === "string" && value !== "");
  if (typeof told === "string") return told;
  const json = asText(parsed ?? args);
  if (json === null || json === "{}") return null;
  return telling(json.slice(0, SEARCHED_CHARS)) ?? json;
}

/** `{"filePath":"a.ts","oldString":"…` → `a.ts`; of todos all: `Read it, Mend it` */
function telling(cutJson: string): string | null {
  if (!cutJson.startsWith("{")) return null;
  if (cutJson.startsWith('{"todos":')) return valuesOf(cutJson, "content").join(", ") || null;
  const named = SUMMARY_ARGS.map((name) => valuesOf(cutJson, name)[0]);
  return named.find((value) => value !== undefined) ?? null;
}

/** The texts in JSON that stand under this name, or under one of `a|b`. */
const valuesOf = (cutJson: string, name: string) =>
  [...cutJson.matchAll(new RegExp(`"(?:${name})":"((?:[^"\\\\]|\\\\.)+)`, "g"))]
    .map(([, value]) => asText(parseRecord(`{"value":"${value}"}`)?.value))
    .filter((value) => value !== null);

/** Whether a call was about a file: a path that it was given, or has changed, is `path` or ends with `/path`. */
export function isAbout({ files, args }: TelemetryEvent["fields"], path: string): boolean {
  const plain = (text: string) => `/${fold(text.replaceAll("\\", "/")).replace(/^(\.?\/)+/, "")}`;
  const told = valuesOf(`${asText(files)} ${asText(args)}`, "filePath|file_path|path");
  return told.some((known) => plain(known).endsWith(plain(path)));
}

/** So much of a text as a row of a table can show. */
export const oneLine = (text: string): string => text.slice(0, 300).replace(/[ \t\r\n]+/g, " ");

/** Indented; a text that is itself JSON is opened up, or it would be a line of backslashes. */
export function prettyJson(value: unknown): string {
  const open = (_: string, inner: unknown) =>
    typeof inner === "string" ? (parseRecord(inner) ?? inner) : inner;
  return shownWhole(JSON.stringify(value, open, 2));
}

export function shownWhole(text: string): string {
  const missing = text.length - MAX_SHOWN_CHARS;
  if (missing <= 0) return text;
  return `${text.slice(0, MAX_SHOWN_CHARS)}\n… ${formatCount(missing)} more characters`;
}

/** What kind of work a tool does, by its name: four colours can be told apart, twenty can't. */
export function toolFamily(name: string): "run" | "read" | "write" | "other" {
  if (/todo|web|http|fetch/i.test(name)) return "other";
  if (/bash|shell|exec|command|terminal|powershell/i.test(name)) return "run";
  if (/edit|write|patch/i.test(name)) return "write";
  if (/read|grep|glob|list|^ls$|view|find|search/i.test(name)) return "read";
  return "other";
}

// ─── Things ──────────────────────────────────────────────────────────────────

/** The events of one thing that happened, newest first: those of a call, of an agent with its call, of a question. */
export type Thing = [TelemetryEvent, ...TelemetryEvent[]];

const SESSION_TYPES: EventType[] = ["session_start", "session_update", "session_end"];

/** Null: the event stands alone. */
function thingKey({ type, session_id, fields }: TelemetryEvent): string | null {
  const kind = isWait(type) ? "wait" : CALL_KINDS[type];
  const id = kind === "wait" ? fields.request_id : fields.call_id;
  if (kind === undefined || id == null) return null;
  return `${session_id}\n${kind === "model" || kind === "wait" ? kind : "call"}\n${asText(id)}`;
}

/** A name that stays the same when the thing goes on. */
export const keyOfThing = (thing: Thing): string | number =>
  thingKey(thing[0]) ?? thing.at(-1)?.id ?? 0;

/** What events, given newest first, tell of. @param isQuiet those of sessions, one after the other, are one thing */
export function thingsOf(events: Iterable<TelemetryEvent>, isQuiet: boolean): Thing[] {
  let quietId: number | null = null;
  const things = Map.groupBy(events, (event) => {
    const isOfSession = isQuiet && SESSION_TYPES.includes(event.type);
    quietId = isOfSession ? (quietId ?? event.id) : null;
    return quietId ?? thingKey(event) ?? event.id;
  });
  return [...things.values()].filter((events): events is Thing => events.length > 0);
}

/** A thing as one event: of an agent the agent's, of several sessions how many began and ended. */
export function mergedThing(thing: Thing): Pick<TelemetryEvent, "type" | "fields"> {
  const { type } =
    thing.find((event) => CALL_KINDS[event.type] === "agent") ??
    thing.find((event) => event.type === "session_end") ??
    thing[0];
  const count = (of: EventType) => thing.filter((event) => event.type === of).length;
  const [started, ended] = [count("session_start"), count("session_end")];
  const told = [ended && `${ended} ended`, started && `${started} started`];
  if (started + ended > 1) return { type, fields: { title: joined(told, ", ") } };
  return { type, fields: Object.assign({}, ...thing.toReversed().map(({ fields }) => fields)) };
}

// ─── Filter ──────────────────────────────────────────────────────────────────

export type FeedFilter = ReturnType<typeof filterOf>;

/** @param type what isn't one is left out; "failed": events of any type that tell of a failure */
export const filterOf = (type: string | null, text: string) => ({
  type: type === "failed" || isEventType(type) ? type : null,
  sessionId: null as string | null,
  text,
});

export const NO_FILTER = filterOf(null, "");

/** @param hasFailed whether the event is shown as a failure */
export function matchesFilter(
  event: TelemetryEvent,
  { type, sessionId, text }: FeedFilter,
  hasFailed: (event: TelemetryEvent) => boolean,
): boolean {
  if (sessionId !== null && event.session_id !== sessionId) return false;
  if (type === "failed" ? !hasFailed(event) : type !== null && event.type !== type) return false;
  return text === "" || hasWords(JSON.stringify(event.fields), wordsIn(text));
}

// ─── Unknown values ──────────────────────────────────────────────────────────

export const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Any value on one line: a string as it is, all else as JSON. Null: nothing to show. */
export function asText(value: unknown): string | null {
  if (value === null || value === undefined || value === "") return null;
  return typeof value === "string" ? value : JSON.stringify(value);
}

/** An error as text; `false` says that there was none. */
export const errorText = (value: unknown): string | null =>
  value === false ? null : asText(value);

/** The object in a JSON text; null where it is something else, or cut short. */
export function parseRecord(text: string): Record<string, unknown> | null {
  try {
    return text.startsWith("{") ? JSON.parse(text) : null;
  } catch {
    return null;
  }
}
