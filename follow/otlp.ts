/**
 * Spans for an OpenTelemetry collector, as OTLP/HTTP JSON with the semantic conventions for generative
 * AI (as of semantic-conventions 1.41.1). `bun start` runs it where OTEL_EXPORTER_OTLP_ENDPOINT is set;
 * alone, also on another machine:
 *
 *     OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 bun follow/otlp.ts http://localhost:3001
 *
 * A session and those below it are one trace:
 *
 *     invoke_agent               a run of a session: from its first event to its session_end
 *       chat                     a model's answer
 *       execute_tool
 *         wait                   for the person
 *       invoke_agent             an agent; below it the runs of its own session
 *
 * A span is sent once, when it has ended, and stays as it was then. Its ids are hashes of what it is, so
 * that one which is sent again after a kill is the same. Arguments, prompts and titles are not sent.
 */

import { version } from "../package.json";
import type { Session, Span } from "../server.ts";
import { follow, type Frame, openCursor } from "./follow.ts";
import { isRun, send, settings, tryLater, variable } from "./settings.ts";

const POST_TIMEOUT_MS = 10_000;
const MAX_REMEMBERED = 20_000; // sessions; usually those that the server keeps
const INTERNAL = 1; // of OTLP's SpanKind
const CLIENT = 3;
const STATUS_ERROR = 2;
const SCHEMA_URL = "https://opentelemetry.io/schemas/1.41.1";

const keyOf = (sessionId: string) => `s${sessionId}`; // no name that every object has

/** From a session's first event, or its first after an end, to its end; `end`: 0 while it goes on. Milliseconds. */
type Run = { id: number; start: number; end: number };

const NO_MEMORY = {
  open: {} as Record<string, string>, // the session of each span that was told as running, by its id
  runs: {} as Record<string, Run>, // the latest of each session
  agents: {} as Record<string, string>, // the id of the agent's span, by the session that the agent is
};
type Memory = typeof NO_MEMORY;

// ─── OTLP: names and encoding ────────────────────────────────────────────────

/** Where the conventions have another name for a provider than OpenCode. */
const PROVIDERS: Record<string, string> = {
  "amazon-bedrock": "aws.bedrock",
  azure: "azure.ai.openai",
  google: "gcp.gemini",
  "google-vertex": "gcp.vertex_ai",
  mistral: "mistral_ai",
  xai: "x_ai",
};

type Value = string | number | string[] | { doubleValue: number } | null;

/** `value` as OTLP's AnyValue; a number is a 64-bit integer, which in JSON is a string. */
function anyValue(value: NonNullable<Value>): object {
  if (typeof value === "string") return { stringValue: value };
  if (typeof value === "number") return { intValue: String(Math.round(value)) };
  return Array.isArray(value) ? { arrayValue: { values: value.map(anyValue) } } : value;
}
const double = (value: number | null) => (value === null ? null : { doubleValue: value });

const attributesOf = (values: Record<string, Value>) =>
  Object.entries(values).flatMap(([key, value]) =>
    value === null ? [] : { key, value: anyValue(value) },
  );

const runId = (sessionId: string, { id }: Run) => spanId("run", sessionId, id);
const hash = (bytes: number, ...parts: unknown[]) =>
  new Bun.CryptoHasher("sha256")
    .update(JSON.stringify(parts))
    .digest("hex")
    .slice(0, 2 * bytes);
const spanId = (...parts: unknown[]) => hash(8, ...parts);
const nanoseconds = (ms: number) => `${ms}000000`;
const text = (value: unknown) => (typeof value === "string" ? value : null);
const number = (value: unknown) => (typeof value === "number" ? value : null);

/** A call is known by its id; what has none, by its row. */
const idOf = ({ id, session_id, kind, call_id }: Span) =>
  spanId(kind, session_id, kind === "wait" ? id : (call_id ?? id));

/** What the conventions say of a span, and in what words. */
function describe(span: Span): { name: string; kind: number; values: Record<string, Value> } {
  const { kind, name, call_id, tokens, cost, attributes } = span;
  const said: Record<string, unknown> = attributes ?? {};
  if (kind === "tool") {
    const values = {
      "gen_ai.operation.name": "execute_tool",
      "gen_ai.tool.name": name,
      "gen_ai.tool.call.id": call_id,
      "process.exit.code": number(said.exit_code),
    };
    return { name: `execute_tool ${name}`, kind: INTERNAL, values };
  }
  if (kind === "agent") {
    const values = { "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": name };
    return { name: `invoke_agent ${name}`, kind: INTERNAL, values };
  }
  if (kind === "wait") return { name: `wait ${name}`, kind: INTERNAL, values: {} };
  const provider = text(said.provider) ?? "_OTHER";
  const first_token_ms = number(said.first_token_ms);
  const finish_reason = text(said.finish_reason);
  const parts: Record<string, unknown> = typeof tokens === "object" && tokens ? { ...tokens } : {};
  const sum = (...names: string[]) =>
    names.every((part) => number(parts[part]) === null)
      ? null
      : names.reduce((total, part) => total + (number(parts[part]) ?? 0), 0);
  const values = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": PROVIDERS[provider] ?? provider,
    "gen_ai.request.model": name,
    "gen_ai.agent.name": text(said.agent),
    "gen_ai.response.finish_reasons": finish_reason === null ? null : [finish_reason],
    "gen_ai.response.time_to_first_chunk": double(first_token_ms && first_token_ms / 1_000), // seconds
    // Here as everywhere in the conventions: all of them, those of the cache and of reasoning too.
    "gen_ai.usage.input_tokens": sum("input", "cache_read", "cache_write"),
    "gen_ai.usage.output_tokens": sum("output", "reasoning"),
    "gen_ai.usage.cache_read.input_tokens": sum("cache_read"),
    "gen_ai.usage.cache_creation.input_tokens": sum("cache_write"),
    "gen_ai.usage.reasoning.output_tokens": sum("reasoning"),
    "pai.cost_usd": double(cost),
  };
  return { name: `chat ${name}`, kind: CLIENT, values };
}

const statusOf = (isError: boolean, message: string | null) =>
  isError ? { code: STATUS_ERROR, ...(message === null ? {} : { message }) } : {};

// ─── From frames to spans ────────────────────────────────────────────────────

/** The spans that have ended with `frames`; `memory` is changed to what is to be known after them. */
export function takeFrames(frames: Frame[], lastId: number, memory: Memory) {
  const sessions = new Map<string, Session>();
  const spans = new Map<number, Span>(); // the newest row of each
  const runs = new Map<string, Run[]>(); // of a session, those that these frames may be of
  const ended: object[] = [];
  for (const { type, data } of frames) {
    if (type === "session") sessions.set(String(data.id), data as unknown as Session);
    if (type === "span") spans.set(Number(data.id), data as unknown as Span);
  }
  for (const span of spans.values())
    if (span.child_session_id !== null) memory.agents[keyOf(span.child_session_id)] = idOf(span);

  /** The topmost session above it, and the one right above. */
  function lineageOf(sessionId: string) {
    const lineage = [sessionId];
    for (let id = sessionId; ; lineage.unshift(id)) {
      const parent = sessions.get(id)?.parent_session_id;
      if (parent == null || lineage.includes(parent)) break;
      id = parent;
    }
    return { root: lineage[0], parent: lineage.at(-2) };
  }

  /** The id of the run in which something of this session began at `ms`. */
  function runAt(sessionId: string, ms: number): string | undefined {
    const known =
      runs.get(sessionId) ?? [memory.runs[keyOf(sessionId)]].flatMap((run) => run ?? []);
    const run = known.findLast(({ start }) => start <= ms) ?? known[0];
    return run && runId(sessionId, run);
  }

  const toSpan = (sessionId: string, id: string, parentId: string | undefined) => ({
    traceId: hash(16, "trace", lineageOf(sessionId).root),
    spanId: id,
    ...(parentId === undefined ? {} : { parentSpanId: parentId }),
  });

  function endRun(sessionId: string, run: Run, end: number, reason: unknown): void {
    run.end = end;
    const session = sessions.get(sessionId);
    if (session === undefined) return; // deleted meanwhile
    const { agent, model } = session.info;
    const name = text(agent);
    const { parent } = lineageOf(sessionId);
    const parentId =
      memory.agents[keyOf(sessionId)] ??
      (parent === undefined ? undefined : runAt(parent, run.start));
    ended.push({
      ...toSpan(sessionId, runId(sessionId, run), parentId),
      name: name === null ? "invoke_agent" : `invoke_agent ${name}`,
      kind: INTERNAL,
      startTimeUnixNano: nanoseconds(run.start),
      endTimeUnixNano: nanoseconds(Math.max(run.start, end)),
      attributes: attributesOf({
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "_OTHER",
        "gen_ai.conversation.id": sessionId,
        "gen_ai.agent.name": name,
        "gen_ai.request.model": text(model),
        "error.type": reason === "error" ? "error" : null,
        "pai.reason": text(reason),
      }),
      status: statusOf(reason === "error", null),
    });
  }

  function takeEvent(
    type: string,
    { id, session_id, timestamp, duration_ms, reason }: Frame["data"],
  ) {
    const sessionId = String(session_id);
    const key = keyOf(sessionId);
    const at = Date.parse(String(timestamp));
    const run = memory.runs[key];
    if (type === "session_end") {
      if (run?.end === 0) endRun(sessionId, run, Math.max(at, run.start), reason);
      return;
    }
    if (type === "session_update" || run?.end === 0 || (run && at <= run.end)) return; // what is late begins no run
    const start = Math.max(run?.end ?? 0, at - (number(duration_ms) ?? 0));
    const next = { id: Number(id), start, end: 0 };
    runs.set(sessionId, [...(runs.get(sessionId) ?? (run ? [run] : [])), next]);
    memory.runs[key] = next;
  }

  for (const { type, data } of frames) {
    if (type === "session_deleted") forget(memory, String(data.session_id));
    else if (type !== "session" && type !== "span" && type !== "reset") takeEvent(type, data);
  }
  // One that was killed has no session_end.
  for (const { id, status, stale_at } of sessions.values()) {
    const run = memory.runs[keyOf(id)];
    if (status === "stale" && run?.end === 0) endRun(id, run, Date.parse(stale_at ?? ""), "lost");
  }
  for (const span of spans.values()) {
    const { id, session_id, started_at, ended_at, call_id, outcome, error } = span;
    // What isn't newer was told before: as running, or it was sent.
    if (id <= lastId && memory.open[id] === undefined) continue;
    if (ended_at === null) {
      memory.open[id] = session_id;
      continue;
    }
    delete memory.open[id];
    const { name, kind, values } = describe(span);
    const isError = outcome === "failed" || outcome === "exit";
    const start = Date.parse(started_at);
    const isOfCall = span.kind === "wait" && call_id !== null;
    const parentId = isOfCall ? spanId("tool", session_id, call_id) : runAt(session_id, start);
    ended.push({
      ...toSpan(session_id, idOf(span), parentId),
      name,
      kind,
      startTimeUnixNano: nanoseconds(start),
      endTimeUnixNano: nanoseconds(Math.max(start, Date.parse(ended_at))),
      attributes: attributesOf({
        ...values,
        "gen_ai.conversation.id": session_id,
        "error.type": isError ? outcome : null,
        "pai.outcome": outcome,
        "pai.waited_ms": span.waited_ms,
      }),
      status: statusOf(isError, error),
    });
  }
  for (const known of [memory.runs, memory.agents])
    for (const key of Object.keys(known).slice(0, -MAX_REMEMBERED)) delete known[key];
  return ended;
}

function forget({ open, runs, agents }: Memory, sessionId: string): void {
  delete runs[keyOf(sessionId)];
  delete agents[keyOf(sessionId)];
  for (const id in open) if (open[id] === sessionId) delete open[id];
}

// ─── Sending ─────────────────────────────────────────────────────────────────

/** `a=1,b=2`, with values as in a URL. */
const readHeaders = (list: string) =>
  Object.fromEntries(
    list.split(",").flatMap((pair) => {
      const [, name, value] = /^\s*([^=\s]+)\s*=(.*)$/.exec(pair) ?? [];
      return name === undefined ? [] : [[name, decodeURIComponent((value ?? "").trim())]];
    }),
  );

/** Sends `spans`; resolves once the collector has them, or never wants them. Rejects where it is to be tried again. */
async function sendSpans(endpoint: string, spans: object[], log: (message: string) => void) {
  const { OTEL_EXPORTER_OTLP_HEADERS = "" } = process.env;
  const resource = {
    attributes: attributesOf({ "service.name": "pai-observability", "service.version": version }),
  };
  const scope = { name: "pai-observability", version };
  const request = {
    resourceSpans: [{ resource, scopeSpans: [{ scope, spans, schemaUrl: SCHEMA_URL }] }],
  };
  const response = await send(`${endpoint}/v1/traces`, {
    method: "POST",
    headers: { ...readHeaders(OTEL_EXPORTER_OTLP_HEADERS), "Content-Type": "application/json" },
    body: JSON.stringify(request),
    signal: AbortSignal.timeout(POST_TIMEOUT_MS),
  });
  const { status } = response;
  const answer = await response.text();
  const isRefused = status >= 400 && status < 500 && status !== 429;
  if (isRefused) log(`${status}: ${spans.length} spans skipped: ${answer.slice(0, 200)}`);
  else if (!response.ok) throw tryLater(response, answer);
  else if (answer.includes("partialSuccess")) log(`accepted in part: ${answer.slice(0, 200)}`);
}

if (isRun(import.meta.main)) {
  const endpoint = variable("OTEL_EXPORTER_OTLP_ENDPOINT").replace(/\/+$/, "");
  const { server, token, file, log } = settings("otlp", endpoint);
  await follow({
    ...{ server, token, log },
    cursor: openCursor(file, { id: 0, memory: NO_MEMORY }), // at first all that is stored
    async receive(frames, place) {
      const memory = structuredClone(place.memory);
      for (const { type, data } of frames)
        if (type === "reset") log(`some spans are missing: ${data.reason}`);
      const spans = takeFrames(frames, place.id ?? 0, memory);
      if (spans.length > 0) await sendSpans(endpoint, spans, log);
      place.memory = memory;
    },
  });
}
