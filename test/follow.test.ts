/**
 * What follows the stream, each as a process of its own or inside the server: nothing is lost and nothing
 * comes twice, whoever is away, and what leaves has the form that its receiver wants.
 */

import { afterAll, describe, expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { cpSync, existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { follow, openCursor } from "../follow/follow.ts";
import { generatedStore } from "./bench/generate.ts";
import { sessionEvents } from "./fixtures.ts";
import {
  getJson,
  isSoak,
  postEvent,
  removeTempDirs,
  spawnServer,
  startTestServer,
  tempDir,
  waitFor,
} from "./helpers.ts";

const children: Bun.Subprocess[] = [];
afterAll(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL"); // also of a test that failed
  removeTempDirs();
});
setDefaultTimeout(30_000); // processes start, and pauses between tries double

const PROJECT = join(import.meta.dir, "..");
const WAIT_MS = 20_000;

type Fields = Record<string, unknown>;
type Event = { type: string; session_id: string; data?: Fields; timestamp?: number };

async function post(server: { url: string }, events: Event[], headers = {}): Promise<number> {
  const { status, body } = await postEvent(server, events, headers);
  expect(status).toBe(201);
  return body.ids?.at(-1) ?? 0;
}

/** Up to which event the follower of this file has everything. */
function cursorOf(file: string): number {
  return existsSync(file) ? (JSON.parse(readFileSync(file, "utf8")).id ?? 0) : 0;
}

const memoryOf = (file: string) => JSON.parse(readFileSync(file, "utf8")).memory;

interface Follower extends AsyncDisposable {
  file: string;
  output: () => string;
  kill: () => Promise<void>;
  reached: (id: number) => Promise<void>;
  exited: Promise<number>;
}

/** `bun follow/<name>.ts`, as a person starts it. */
function spawnFollower(
  name: string,
  server: { url: string },
  dataDir: string,
  env: Fields,
): Follower {
  const child = Bun.spawn({
    cmd: [process.execPath, join(PROJECT, `follow/${name}.ts`), server.url],
    cwd: dataDir,
    env: { PATH: process.env.PATH ?? "", DATA_DIR: dataDir, ...(env as Record<string, string>) },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  children.push(child);
  let output = "";
  const collected = (async () => {
    for await (const chunk of child.stderr) output += new TextDecoder().decode(chunk);
  })();
  const file = join(dataDir, `observability.db.${name}`);
  const kill = async () => {
    child.kill("SIGKILL");
    await child.exited;
    await collected;
  };
  return {
    ...{ file, kill, output: () => output, exited: child.exited },
    reached: (id) => waitFor(() => cursorOf(file) >= id, `${name} to reach ${id}`, WAIT_MS),
    [Symbol.asyncDispose]: kill,
  };
}

// ─── A collector, and an ntfy, that check what they get ──────────────────────

interface OtlpSpan {
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  name: string;
  kind: number;
  startTimeUnixNano: string;
  endTimeUnixNano: string;
  attributes: { key: string; value: Fields }[];
  status: { code?: number; message?: string };
}

/** The members of OTLP's messages, and what each is in JSON: a name that isn't here is an error. */
function checkKeys(
  what: string,
  value: object,
  known: Record<string, (it: never) => boolean>,
): void {
  for (const [key, member] of Object.entries(value))
    if (!known[key]?.(member as never))
      throw new Error(`${what}.${key}: ${JSON.stringify(member)}`);
}

const isText = (it: unknown) => typeof it === "string";
const isAny = () => true;
const isNanoseconds = (it: unknown) => typeof it === "string" && /^\d{16,20}$/.test(it);
const isId = (bytes: number) => (it: string) =>
  new RegExp(`^[0-9a-f]{${2 * bytes}}$`).test(it) && !/^0+$/.test(it);
const VALUES = {
  stringValue: isText,
  intValue: (it: unknown) => typeof it === "string" && /^-?\d+$/.test(it),
  doubleValue: Number.isFinite,
  arrayValue: ({ values }: { values: object[] }) => values.every(isValue),
};
function isValue(value: object): boolean {
  checkKeys("value", value, VALUES);
  return Object.keys(value).length === 1;
}
const isAttributes = (list: { key: string; value: object }[]) =>
  list.every(
    ({ key, value, ...rest }) => isText(key) && isValue(value) && !Object.keys(rest).length,
  ) && new Set(list.map(({ key }) => key)).size === list.length;
const SPAN = {
  traceId: isId(16),
  spanId: isId(8),
  parentSpanId: isId(8),
  name: (it: string) => isText(it) && it !== "",
  kind: (it: number) => Number.isInteger(it) && it >= 1 && it <= 5,
  startTimeUnixNano: isNanoseconds,
  endTimeUnixNano: isNanoseconds,
  attributes: isAttributes,
  status: ({ code = 0, message = "" }) => [0, 1, 2].includes(code) && isText(message),
};

/** The spans of a request. @throws where it isn't one as the protocol has it */
function readRequest(body: { resourceSpans: Fields[] }): OtlpSpan[] {
  checkKeys("request", body, { resourceSpans: Array.isArray });
  return body.resourceSpans.flatMap((resourceSpans) => {
    const { resource, scopeSpans } = resourceSpans as { resource: object; scopeSpans: Fields[] };
    checkKeys("resourceSpans", resourceSpans, { resource: isAny, scopeSpans: Array.isArray });
    checkKeys("resource", resource, { attributes: isAttributes });
    return scopeSpans.flatMap((scopeSpan) => {
      checkKeys("scopeSpans", scopeSpan, { scope: isAny, spans: Array.isArray, schemaUrl: isText });
      const { spans, scope } = scopeSpan as { spans: OtlpSpan[]; scope: object };
      checkKeys("scope", scope, { name: isText, version: isText });
      for (const span of spans) {
        checkKeys("span", span, SPAN);
        const missing = Object.keys(SPAN).filter((key) => !(key in span) && key !== "parentSpanId");
        if (missing.length > 0) throw new Error(`span without ${missing}`);
        if (BigInt(span.endTimeUnixNano) < BigInt(span.startTimeUnixNano)) throw new Error("time");
      }
      if (spans.length === 0) throw new Error("an empty envelope");
      return spans;
    });
  });
}

type Answer = (spans: OtlpSpan[]) => Response | Promise<Response> | null;

/** A collector on a port of its own, which it keeps when it is stopped and started. */
function startCollector() {
  const spans: OtlpSpan[] = [];
  const bodies: Fields[] = [];
  const problems: string[] = [];
  const headers: Headers[] = [];
  let requestCount = 0;
  /** What it answers instead of taking the spans. */
  let answer: Answer = () => null;
  const serve = (port: number) =>
    Bun.serve({
      ...{ hostname: "127.0.0.1", port },
      async fetch(req) {
        requestCount++;
        headers.push(req.headers);
        if (`${req.method} ${new URL(req.url).pathname}` !== "POST /v1/traces")
          problems.push(`${req.method} ${req.url}`);
        if (req.headers.get("content-type") !== "application/json") problems.push("content-type");
        try {
          const body = (await req.json()) as { resourceSpans: Fields[] };
          const read = readRequest(body);
          bodies.push(body);
          const told = await answer(read);
          if (told === null || told.ok) spans.push(...read);
          return told ?? Response.json({});
        } catch (error) {
          problems.push(String(error));
          return new Response(String(error), { status: 400 });
        }
      },
    });
  let running = serve(0);
  const port = running.port ?? 0;
  return {
    ...{ spans, bodies, problems, headers, url: `http://127.0.0.1:${port}` },
    requestCount: () => requestCount,
    answerWith: (next: Answer) => void (answer = next),
    stop: () => running.stop(true),
    start: () => void (running = serve(port)),
    waitForSpans: (count: number) =>
      waitFor(() => spans.length >= count, `${count} spans, of ${spans.length}`, WAIT_MS),
    async [Symbol.asyncDispose]() {
      await running.stop(true);
      expect(problems).toEqual([]);
    },
  };
}

const attribute = (span: OtlpSpan | undefined, name: string) => {
  const value = span?.attributes.find(({ key }) => key === name)?.value;
  return value && Object.values(value)[0];
};

/** Each span was sent once. */
function expectNoneTwice(spans: OtlpSpan[]): void {
  const seen = new Map<string, string>();
  const twice = spans.filter(({ spanId, name }) => {
    const isKnown = seen.has(spanId);
    seen.set(spanId, name);
    return isKnown;
  });
  expect(twice).toEqual([]);
}

/** All spans of the server that have ended. */
async function endedSpans(server: {
  url: string;
}): Promise<{ id: number; ended_at: string | null }[]> {
  const all: { id: number; ended_at: string | null }[] = [];
  for (let before = ""; ; before = `&before=${all.at(-1)?.id}`) {
    const path = `/api/spans?limit=1000${before}`;
    const { spans } = await getJson<{ spans: typeof all }>(server, path);
    if (spans.length === 0) return all.filter(({ ended_at }) => ended_at !== null);
    all.push(...spans);
  }
}

// ─── Traffic ─────────────────────────────────────────────────────────────────

/** A turn of a session: a model's answer, a tool, a subagent in a session of its own. 5 spans and 2 runs. */
function turn(session_id: string, index: number): Event[] {
  const child = `${session_id}-child-${index}`;
  const call = (what: string) => `${what}-${index}`;
  return [
    { type: "turn_start", session_id, data: { agent: "build" } },
    { type: "model_request", session_id, data: { call_id: call("m"), model: "claude" } },
    { type: "model_response", session_id, data: { call_id: call("m"), model: "claude" } },
    { type: "tool_start", session_id, data: { tool: "bash", call_id: call("t") } },
    { type: "tool_use", session_id, data: { tool: "bash", call_id: call("t"), success: true } },
    {
      ...{ type: "agent_spawn", session_id },
      data: { subagent_type: "explore", call_id: call("a"), child_session_id: child },
    },
    { type: "session_start", session_id: child, data: { parent_session_id: session_id } },
    { type: "tool_start", session_id: child, data: { tool: "read", call_id: call("r") } },
    { type: "input_requested", session_id: child, data: { request_id: "q", call_id: call("r") } },
    { type: "input_resolved", session_id: child, data: { request_id: "q" } },
    { type: "tool_use", session_id: child, data: { tool: "read", call_id: call("r") } },
    { type: "session_end", session_id: child, data: { reason: "completed" } },
    { type: "agent_complete", session_id, data: { call_id: call("a"), success: true } },
    { type: "session_end", session_id, data: { reason: "completed" } },
  ];
}
const SPANS_OF_TURN = 5 + 2;

// ─── Tests ───────────────────────────────────────────────────────────────────

describe("follow", () => {
  const typesOf = (frames: { type: string }[]) =>
    frames.map(({ type }) => type).filter((type) => type !== "session" && type !== "span");

  test.concurrent(
    "what throws gets the same again; the cursor waits for it, and goes on in a new process",
    async () => {
      await using server = await startTestServer();
      const file = join(tempDir(), "state", "my.cursor");
      const taken: unknown[] = [];
      const logged: string[] = [];
      let tries = 0;
      void follow({
        server: server.url,
        cursor: openCursor(file, { id: null, memory: { count: 0 } }),
        log: (message) => logged.push(message),
        receive(frames, { memory }) {
          if (++tries < 3) throw new Error("not yet");
          memory.count += frames.length;
          taken.push(
            ...frames.filter(({ type }) => type === "tool_use").map(({ data }) => data.id),
          );
        },
      });
      await waitFor(() => cursorOf(file) > 0, "the first connection");
      const before = cursorOf(file);
      const event = { type: "tool_use", session_id: "s", data: { tool: "bash" } };
      const id = await post(server, [event]);
      await waitFor(() => taken.length > 0, "the event");
      expect(taken).toEqual([id]);
      expect(tries).toBe(3);
      expect(logged).toEqual(["not yet; tries again", "goes on"]);
      await waitFor(() => cursorOf(file) === id, "the file");
      expect(before).toBeLessThan(id);
      const { memory } = openCursor(file, { id: null, memory: { count: 0 } }).place;
      expect(memory.count).toBe(3); // the event, its session's row, its span's
    },
  );

  test.concurrent("the server restarts while events come → each comes once, in order", async () => {
    await using server = await startTestServer();
    const file = join(tempDir(), "my.cursor");
    const taken: unknown[] = [];
    void follow({
      server: server.url,
      cursor: openCursor(file, { id: 0, memory: null }),
      log() {},
      receive: (frames) =>
        void taken.push(
          ...frames.flatMap(({ type, data }) => (type === "tool_use" ? data.id : [])),
        ),
    });
    const ids: number[] = [];
    for (let round = 0; round < 5; round++) {
      for (let count = 0; count < 50; count++)
        ids.push(
          await post(server, [{ type: "tool_use", session_id: "s", data: { tool: "bash" } }]),
        );
      await server.restart();
    }
    await waitFor(() => taken.length >= ids.length, "all events", WAIT_MS);
    expect(taken).toEqual(ids);
  });

  test.concurrent("with AUTH_TOKEN, and what can't be continued is a reset", async () => {
    const authToken = "x".repeat(32);
    await using server = await startTestServer({ config: { authToken } });
    const file = join(tempDir(), "my.cursor");
    writeFileSync(file, '{"id":5,"memory":null}');
    const taken: string[] = [];
    void follow({
      ...{ server: server.url, token: authToken },
      cursor: openCursor(file, { id: 0, memory: null }),
      receive: (frames) => void taken.push(...typesOf(frames)),
    });
    await waitFor(() => taken.length > 0, "the reset");
    const event = { type: "session_start", session_id: "s" };
    await post(server, [event], { Authorization: `Bearer ${authToken}` });
    await waitFor(() => taken.length > 1, "the event");
    expect(taken).toEqual(["reset", "session_start"]);
  });

  test.concurrent("a file that is no cursor is refused, and left as it is", () => {
    const file = join(tempDir(), "my.cursor");
    writeFileSync(file, "half a fi");
    expect(() => openCursor(file, { id: 0, memory: null })).toThrow(SyntaxError);
    expect(readFileSync(file, "utf8")).toBe("half a fi");
  });
});

describe("follow/otlp.ts", () => {
  const otlp = (server: { url: string }, collector: { url: string }, dataDir: string, env = {}) =>
    spawnFollower("otlp", server, dataDir, { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, ...env });

  test.concurrent(
    "a session with a subagent → one trace, each span below the one that it is part of",
    async () => {
      await using server = await startTestServer();
      await using collector = startCollector();
      const OTEL_EXPORTER_OTLP_HEADERS = "authorization=Bearer%20secret, x-team=a";
      await using follower = otlp(server, collector, tempDir(), { OTEL_EXPORTER_OTLP_HEADERS });
      await post(server, turn("root", 0));
      await collector.waitForSpans(SPANS_OF_TURN);
      const { spans } = collector;
      const byName = (name: string, conversation?: string) =>
        spans.find(
          (span) =>
            span.name === name &&
            (conversation === undefined ||
              attribute(span, "gen_ai.conversation.id") === conversation),
        );
      const tree = (span: OtlpSpan, depth = 0): string[] => [
        `${"  ".repeat(depth)}${span.name}`,
        ...spans
          .filter(({ parentSpanId }) => parentSpanId === span.spanId)
          .toSorted((a, b) => (a.name < b.name ? -1 : 1))
          .flatMap((child) => tree(child, depth + 1)),
      ];
      expect(
        spans.filter(({ parentSpanId }) => parentSpanId === undefined).flatMap((it) => tree(it)),
      ).toEqual([
        "invoke_agent",
        "  chat claude",
        "  execute_tool bash",
        "  invoke_agent explore",
        "    invoke_agent",
        "      execute_tool read",
        "        wait input",
      ]);
      expect(new Set(spans.map(({ traceId }) => traceId)).size).toBe(1);
      expect(attribute(byName("execute_tool bash"), "gen_ai.tool.call.id")).toBe("t-0");
      expect(attribute(byName("execute_tool read"), "gen_ai.conversation.id")).toBe("root-child-0");
      expect(collector.headers[0]?.get("authorization")).toBe("Bearer secret");
      expect(collector.headers[0]?.get("x-team")).toBe("a");
      expect(follower.output()).toBe("");
    },
  );

  test.concurrent(
    "a model's answer → chat, with all tokens as the conventions count them",
    async () => {
      await using server = await startTestServer();
      await using collector = startCollector();
      await using _ = otlp(server, collector, tempDir());
      const tokens = { input: 10, output: 20, reasoning: 5, cache_read: 100, cache_write: 7 };
      const data = { call_id: "m", model: "gemini-x", provider: "google", agent: "build", tokens };
      const told = {
        ...data,
        cost: 1,
        first_token_ms: 2_000,
        duration_ms: 3_000,
        finish_reason: "stop",
      };
      await post(server, [
        { type: "model_response", session_id: "s", data: told },
        {
          ...{ type: "tool_use", session_id: "s" },
          data: { tool: "bash", outcome: "exit", exit_code: 2, error: "no such file" },
        },
      ]);
      await collector.waitForSpans(2);
      const [chat, tool] = collector.spans;
      expect(chat).toMatchObject({ name: "chat gemini-x", kind: 3, status: {} });
      expect(
        Object.fromEntries(chat?.attributes.map(({ key, value }) => [key, value]) ?? []),
      ).toEqual({
        "gen_ai.operation.name": { stringValue: "chat" },
        "gen_ai.provider.name": { stringValue: "gcp.gemini" },
        "gen_ai.request.model": { stringValue: "gemini-x" },
        "gen_ai.agent.name": { stringValue: "build" },
        "gen_ai.conversation.id": { stringValue: "s" },
        "gen_ai.response.finish_reasons": { arrayValue: { values: [{ stringValue: "stop" }] } },
        "gen_ai.response.time_to_first_chunk": { doubleValue: 2 },
        "gen_ai.usage.input_tokens": { intValue: "117" },
        "gen_ai.usage.output_tokens": { intValue: "25" },
        "gen_ai.usage.cache_read.input_tokens": { intValue: "100" },
        "gen_ai.usage.cache_creation.input_tokens": { intValue: "7" },
        "gen_ai.usage.reasoning.output_tokens": { intValue: "5" },
        "pai.cost_usd": { doubleValue: 1 },
        "pai.outcome": { stringValue: "ok" },
      });
      expect(tool?.status).toEqual({ code: 2, message: "no such file" });
      expect(attribute(tool, "error.type")).toBe("exit");
      expect(attribute(tool, "process.exit.code")).toBe("2");
    },
  );

  test.concurrent(
    "collector, server and follower end and come back while sessions work → each span once",
    async () => {
      const dataDir = tempDir();
      await using server = await startTestServer();
      await using collector = startCollector();
      let follower = otlp(server, collector, dataDir);
      const roundCount = isSoak ? 30 : 6;
      const turnCount = isSoak ? 200 : 20;
      let head = 0;
      for (let round = 0; round < roundCount; round++) {
        // What is open when something ends is told as running before, and as ended after.
        const halves = Array.from({ length: turnCount }, (_, index) => turn(`s-${index}`, round));
        for (const events of halves) head = await post(server, events.slice(0, 7));
        // All is idle: a kill between an answer and the file would repeat spans, see below.
        if (round % 3 !== 2) await follower.reached(head);
        if (round % 3 === 0) await collector.stop();
        if (round % 3 === 1) await follower.kill();
        if (round % 3 === 2) await server.restart();
        for (const events of halves) head = await post(server, events.slice(7));
        if (round % 3 === 0) collector.start();
        if (round % 3 === 1) follower = otlp(server, collector, dataDir);
      }
      await waitFor(
        () => cursorOf(follower.file) >= head,
        "the last event",
        isSoak ? 300_000 : 30_000,
      );
      const expected = roundCount * turnCount * SPANS_OF_TURN;
      expect(collector.spans.length).toBe(expected);
      expectNoneTwice(collector.spans);
      expect((await endedSpans(server)).length).toBe(roundCount * turnCount * 5);
      const traces = new Set(collector.spans.map(({ traceId }) => traceId));
      expect(traces.size).toBe(turnCount); // one for each root session
      const known = new Set(collector.spans.map(({ spanId }) => spanId));
      expect(
        collector.spans.filter((it) => it.parentSpanId && !known.has(it.parentSpanId)),
      ).toEqual([]);
      await follower.kill();
    },
    400_000,
  );

  test.skipIf(!isSoak)(
    "the protocol's own definition takes each request, and gives the same back",
    async () => {
      const directory = tempDir(); // its package is no dependency of ours; the last version with the definition as a module
      const cmd = [process.execPath, "add", "@opentelemetry/otlp-transformer@0.205.0"];
      if (Bun.spawnSync(cmd, { cwd: directory }).exitCode !== 0)
        return console.warn("skipped: the definition of OTLP, for want of a package registry");
      const path = "node_modules/@opentelemetry/otlp-transformer/build/src/generated/root.js";
      const { opentelemetry } = require(join(directory, path));
      const Request = opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest;
      await using server = await startTestServer();
      await using collector = startCollector();
      await using follower = otlp(server, collector, tempDir());
      await post(server, [...turn("s", 0), ...(sessionEvents("t") as Event[])]);
      await follower.reached(await post(server, turn("s", 1)));
      /** Ids are hex in JSON, and bytes in the definition. */
      const withIds = (value: unknown, to: (id: never) => unknown): unknown => {
        if (Array.isArray(value)) return value.map((item) => withIds(item, to));
        if (typeof value !== "object" || value === null) return value;
        const entries = Object.entries(value).map(([key, it]) => [
          key,
          /^(trace|span|parentSpan)Id$/.test(key) ? to(it as never) : withIds(it, to),
        ]);
        return Object.fromEntries(entries);
      };
      expect(collector.bodies.length).toBeGreaterThan(0);
      for (const body of collector.bodies) {
        const message = Request.fromObject(withIds(body, (id: string) => Buffer.from(id, "hex")));
        expect(Request.verify(message)).toBe(null);
        const decoded = Request.decode(Request.encode(message).finish());
        const json = Request.toObject(decoded, { longs: String, enums: Number, bytes: Buffer });
        const again = withIds(json, (id: Buffer) => Buffer.from(id).toString("hex"));
        expect(JSON.parse(JSON.stringify(again))).toEqual(body);
      }
    },
  );

  test.skipIf(!isSoak)(
    "the conventions, in the version that it names, have each of its names",
    async () => {
      const source = readFileSync(join(PROJECT, "follow/otlp.ts"), "utf8");
      const [, version = ""] = /schemas\/([\d.]+)"/.exec(source) ?? [];
      const directory = tempDir();
      const cmd = [process.execPath, "add", `@opentelemetry/semantic-conventions@${version}`];
      if (Bun.spawnSync(cmd, { cwd: directory }).exitCode !== 0)
        return console.warn("skipped: the semantic conventions, for want of a package registry");
      const path = "node_modules/@opentelemetry/semantic-conventions/build/src/index-incubating.js";
      const known = new Set(Object.values(require(join(directory, path))));
      const names = [...source.matchAll(/"((?:gen_ai|error|process|service)\.[a-z_.]+)":/g)];
      const operations = [...source.matchAll(/operation\.name": "(\w+)"/g)];
      const [providers = ""] = /PROVIDERS: .*?\n};/s.exec(source) ?? [];
      const words = [...names, ...operations, ...providers.matchAll(/: "(.*)"/g)];
      expect(words.length).toBeGreaterThan(20);
      expect(words.map(([, word]) => word).filter((word) => !known.has(word))).toEqual([]);
    },
  );

  test.skipIf(!isSoak)(
    "a week of traffic, the collector killed ten times → each ended span is there, by its id",
    async () => {
      const dataDir = tempDir();
      cpSync(await generatedStore(100_000, console.log), dataDir, { recursive: true });
      await using server = await startTestServer({ dataDir, config: { retentionHours: 1_000 } });
      const expected = (await endedSpans(server)).length;
      const { events } = await getJson<{ events: { id: number }[] }>(server, "/api/events?limit=1");
      const head = events[0]?.id ?? Infinity;
      const file = join(tempDir(), "received"); // a line for each span: its id, and whether it is a run
      const COLLECTOR = `
        const [file, port] = process.argv.slice(1);
        const server = Bun.serve({ port: Number(port), hostname: "127.0.0.1", async fetch(req) {
          const spans = (await req.json()).resourceSpans.flatMap((it) => it.scopeSpans).flatMap((it) => it.spans);
          const isRun = ({ attributes }) => !attributes.some(({ key }) => key === "pai.outcome");
          require("fs").appendFileSync(file, spans.map((it) => it.spanId + (isRun(it) ? " run" : "") + "\\n").join(""));
          return Response.json({});
        } });
        console.log(server.port);`;
      const startCollectorProcess = async (port: string) => {
        const cmd = [process.execPath, "-e", COLLECTOR, file, port];
        const child = Bun.spawn({ cmd, stdout: "pipe", stderr: "inherit" });
        children.push(child);
        for await (const chunk of child.stdout)
          return { child, port: new TextDecoder().decode(chunk).trim() };
        throw new Error("the collector ended");
      };
      const received = () =>
        existsSync(file) ? readFileSync(file, "utf8").split("\n").slice(0, -1) : [];
      let { child, port } = await startCollectorProcess("0");
      await using follower = otlp(server, { url: `http://127.0.0.1:${port}` }, dataDir);
      for (let kill = 1; kill <= 10; kill++) {
        await waitFor(() => received().length >= (kill * expected) / 11, `kill ${kill}`, 120_000);
        child.kill("SIGKILL");
        await child.exited;
        ({ child } = await startCollectorProcess(port));
      }
      await waitFor(() => cursorOf(follower.file) >= head, "the last event", 120_000);
      const all = received();
      const distinct = new Set(all.filter((line) => !line.endsWith(" run")));
      console.log(
        `a week, 10 kills: ${expected} ended spans, ${distinct.size} at the collector; ${new Set(all).size - distinct.size} runs; ${all.length - new Set(all).size} sent again`,
      );
      expect(distinct.size).toBe(expected);
    },
    900_000,
  );

  test.concurrent(
    "killed before it knows that a request was taken → it is sent again, the same to the byte",
    async () => {
      const dataDir = tempDir();
      await using server = await startTestServer();
      await using collector = startCollector();
      const first: OtlpSpan[] = [];
      collector.answerWith((spans) => {
        first.push(...spans);
        return new Promise(() => {}); // it has them, and never says so
      });
      const killed = otlp(server, collector, dataDir);
      await post(server, turn("s", 0));
      await waitFor(() => first.length === SPANS_OF_TURN, "the request", WAIT_MS);
      await killed.kill();
      collector.answerWith(() => null);
      await using _ = otlp(server, collector, dataDir);
      await collector.waitForSpans(SPANS_OF_TURN);
      expect(collector.spans).toEqual(first);
    },
  );

  test.concurrent(
    "429 and 503 are tried again, when they say; a 400 is skipped; a part that was rejected is logged",
    async () => {
      await using server = await startTestServer();
      await using collector = startCollector();
      const times: number[] = [];
      const answers = [
        new Response("slow down", { status: 429, headers: { "Retry-After": "2" } }),
        new Response("later", { status: 503 }),
      ];
      collector.answerWith(() => {
        times.push(performance.now());
        return answers.shift() ?? null;
      });
      await using follower = otlp(server, collector, tempDir());
      const tool = (session_id: string) => ({
        type: "tool_use",
        session_id,
        data: { tool: "bash" },
      });
      await post(server, [tool("a")]);
      await collector.waitForSpans(1);
      expect(times.length).toBe(3);
      expect((times[1] ?? 0) - (times[0] ?? 0)).toBeGreaterThan(1_900);

      collector.answerWith(() => new Response("no", { status: 400 }));
      await follower.reached(await post(server, [tool("b")]));
      collector.answerWith(() =>
        Response.json({ partialSuccess: { rejectedSpans: "1", errorMessage: "too old" } }),
      );
      await follower.reached(await post(server, [tool("c")]));
      collector.answerWith(() => null);
      await follower.reached(await post(server, [tool("d")]));
      expect(collector.spans.map((span) => attribute(span, "gen_ai.conversation.id"))).toEqual([
        "a",
        "c",
        "d",
      ]);
      expect(follower.output()).toContain("400: 1 spans skipped: no");
      expect(follower.output()).toContain("too old");
    },
  );

  test.concurrent(
    "a session whose process was killed → its run and its open call end as the server says",
    async () => {
      let now = Date.now();
      await using server = await startTestServer({ now: () => now });
      await using collector = startCollector();
      await using follower = otlp(server, collector, tempDir());
      const begun = now;
      const head = await post(server, [
        { type: "session_start", session_id: "s", data: { sender: "p" } },
        { type: "tool_start", session_id: "s", data: { tool: "bash", call_id: "t" } },
      ]);
      await follower.reached(head);
      expect(collector.requestCount()).toBe(0);
      now += 60_000; // its sender is silent: lost after 30 s
      await collector.waitForSpans(2);
      const lengths = collector.spans.map(
        ({ endTimeUnixNano }) => Number(BigInt(endTimeUnixNano) / 1_000_000n) - begun,
      );
      expect(lengths).toEqual([30_000, 30_000]);
      expect(
        collector.spans.map((it) => attribute(it, "pai.outcome") ?? attribute(it, "pai.reason")),
      ).toEqual(["lost", "cancelled"]);
    },
  );

  test.concurrent(
    "inside the server: each on with its variable; a crash is a line in the log, and it starts anew",
    async () => {
      const dataDir = tempDir();
      await using collector = startCollector();
      await using receiver = startNtfy();
      const file = join(dataDir, "observability.db.otlp");
      writeFileSync(file, "half a fi");
      const AUTH_TOKEN = "x".repeat(32);
      const NOTIFY_URL = receiver.url;
      const env = { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, AUTH_TOKEN, NOTIFY_URL };
      const headers = { Authorization: `Bearer ${AUTH_TOKEN}` };
      let server = await spawnServer({ dataDir, env });
      await waitFor(() => server.output().includes(" error otlp: "), "the line", WAIT_MS);
      expect(server.output().match(/ error otlp: .*/)?.[0]).toContain("JSON");
      const noticed = join(dataDir, "observability.db.ntfy");
      await waitFor(() => cursorOf(noticed) > 0, "ntfy's first connection", WAIT_MS);
      await post(server, turn("s", 0), headers);
      writeFileSync(file, '{"id":0}');
      await collector.waitForSpans(SPANS_OF_TURN);
      await receiver.waitForNotices(1);
      const { exitCode } = await server.end("SIGTERM");
      expect(exitCode).toBe(0);
      expect(server.output()).not.toContain(" warn "); // it has closed their streams
      server = await spawnServer({ dataDir, env });
      await post(server, turn("s", 1), headers);
      await collector.waitForSpans(2 * SPANS_OF_TURN);
      await receiver.waitForNotices(2);
      await server.end("SIGKILL");
      expect(receiver.titles()).toEqual(["Done: s", "Done: s"]);
      expect(receiver.notices[1]?.click).toBe(`${server.url}/#/session/s`);
      expectNoneTwice(collector.spans);
      expect(collector.spans.length).toBe(2 * SPANS_OF_TURN);
    },
  );
});

// ─── ntfy ────────────────────────────────────────────────────────────────────

interface Notice {
  topic: string;
  title: string;
  message: string;
  priority: number;
  tags: string[];
  click: string;
  sequence_id: string;
}

/** Takes what ntfy's "publish as JSON" takes, by its documentation and `publishMessage` in its server. */
function startNtfy() {
  const notices: Notice[] = [];
  const problems: string[] = [];
  const authorizations: (string | null)[] = [];
  let status = 200;
  let requestCount = 0;
  const MEMBERS = {
    topic: (it: string) => /^[-_A-Za-z0-9]{1,64}$/.test(it),
    title: (it: string) => isText(it) && it !== "",
    message: (it: string) => isText(it) && Buffer.byteLength(it) <= 4_096,
    priority: (it: number) => [1, 2, 3, 4, 5].includes(it),
    tags: (it: string[]) => Array.isArray(it) && it.every((tag) => /^\w+$/.test(tag)),
    click: (it: string) => URL.canParse(it),
    sequence_id: (it: string) => /^[-_A-Za-z0-9]{1,64}$/.test(it),
  };
  const server = Bun.serve({
    ...{ hostname: "127.0.0.1", port: 0 },
    async fetch(req) {
      requestCount++;
      authorizations.push(req.headers.get("authorization"));
      if (status !== 200) return new Response("later", { status });
      try {
        if (`${req.method} ${new URL(req.url).pathname}` !== "POST /") throw new Error(req.url);
        const notice = (await req.json()) as Notice;
        checkKeys("notice", notice, MEMBERS);
        const missing = Object.keys(MEMBERS).filter((key) => !(key in notice));
        if (missing.length > 0) throw new Error(`without ${missing}`);
        notices.push(notice);
        return Response.json({ id: "x", event: "message" });
      } catch (error) {
        problems.push(String(error));
        return new Response(String(error), { status: 400 });
      }
    },
  });
  const { port } = server;
  return {
    ...{ notices, authorizations, port, url: `http://127.0.0.1:${port}/my_topic` },
    requestCount: () => requestCount,
    answerWith: (next: number) => void (status = next),
    titles: () => notices.map(({ title }) => title),
    waitForNotices: (count: number) =>
      waitFor(() => notices.length >= count, `${count} notices, of ${notices.length}`, WAIT_MS),
    async [Symbol.asyncDispose]() {
      await server.stop(true);
      expect(problems).toEqual([]);
    },
  };
}

describe("follow/ntfy.ts", () => {
  const ntfy = (server: { url: string }, NOTIFY_URL: string, dataDir: string, NOTIFY_AFTER = "1") =>
    spawnFollower("ntfy", server, dataDir, { NOTIFY_URL, NOTIFY_AFTER });
  const ask = (session_id: string, request_id: string) => [
    { type: "session_start", session_id, data: { title: `Title of ${session_id}` } },
    { type: "input_requested", session_id, data: { request_id, detail: "rm -rf build?" } },
  ];
  const end = (session_id: string, reason: string) => ({
    type: "session_end",
    session_id,
    data: { reason },
  });

  test.concurrent(
    "a wait longer than NOTIFY_AFTER → one message; one that was answered before → none",
    async () => {
      await using server = await startTestServer();
      await using receiver = startNtfy();
      const dataDir = tempDir();
      const withPassword = receiver.url.replace("//", "//:tk_secret@");
      let follower = ntfy(server, withPassword, dataDir);
      await waitFor(() => cursorOf(follower.file) > 0, "the first connection", WAIT_MS);
      await post(server, [...ask("quick", "q1"), ...ask("slow", "q2")]);
      await post(server, [
        { type: "input_resolved", session_id: "quick", data: { request_id: "q1" } },
      ]);
      await receiver.waitForNotices(1);
      expect(receiver.notices).toEqual([
        {
          topic: "my_topic",
          title: "Waits for you: Title of slow",
          message: "rm -rf build?",
          priority: 4,
          tags: ["hourglass_flowing_sand"],
          click: `${server.url}/#/session/slow`,
          sequence_id: expect.any(String),
        },
      ]);
      expect(receiver.authorizations).toEqual([`Basic ${btoa(":tk_secret")}`]);

      // Told again is nothing, by a new process or a new connection: another cause is.
      await waitFor(() => memoryOf(follower.file).outbox.length === 0, "the file", WAIT_MS);
      await follower.kill();
      await server.restart();
      follower = ntfy(server, withPassword, dataDir);
      await post(server, ask("slow", "q3"));
      await receiver.waitForNotices(2);
      expect(new Set(receiver.notices.map(({ sequence_id }) => sequence_id)).size).toBe(2);
      await follower.kill();
    },
  );

  test.concurrent(
    "a session that failed → one message, whether told by its error, its end or both; an agent's → none",
    async () => {
      await using server = await startTestServer();
      await using receiver = startNtfy();
      await using follower = ntfy(server, receiver.url, tempDir());
      await waitFor(() => cursorOf(follower.file) > 0, "the first connection", WAIT_MS);
      const head = await post(server, [
        { type: "session_start", session_id: "both" },
        {
          type: "session_error",
          session_id: "both",
          data: { error: { name: "APIError", data: { message: "no credit" } } },
        },
        end("both", "error"),
        {
          type: "model_response",
          session_id: "model",
          data: { call_id: "m", error: "overloaded" },
        },
        end("model", "error"),
        { type: "session_start", session_id: "agent", data: { parent_session_id: "model" } },
        end("agent", "error"),
        { type: "turn_start", session_id: "stopped" },
        end("stopped", "interrupted"),
      ]);
      await follower.reached(head);
      await receiver.waitForNotices(2);
      expect(receiver.notices.map(({ title, message }) => [title, message])).toEqual([
        ["Failed: both", "no credit"],
        ["Failed: model", "overloaded"],
      ]);
      // In its next turn it is another cause.
      await post(server, [{ type: "turn_start", session_id: "both" }, end("both", "error")]);
      await receiver.waitForNotices(3);
      expect(receiver.titles()).toEqual(["Failed: both", "Failed: model", "Failed: both"]);
    },
  );

  test.concurrent(
    "all agents of a session are done → one message, and one more for the next ones",
    async () => {
      await using server = await startTestServer();
      await using receiver = startNtfy();
      await using follower = ntfy(server, receiver.url, tempDir());
      await waitFor(() => cursorOf(follower.file) > 0, "the first connection", WAIT_MS);
      const [last] = turn("s", 0).slice(-1);
      if (last === undefined) throw new Error("an empty turn");
      await post(server, turn("s", 0).slice(0, -1));
      await follower.reached(await post(server, [end("alone", "completed")]));
      expect(receiver.notices).toEqual([]); // its agent is done, but it goes on
      await post(server, [last]);
      await receiver.waitForNotices(1);
      const again = [{ type: "turn_start", session_id: "s" }, end("s", "completed")];
      await follower.reached(await post(server, again)); // without an agent
      await post(server, [...turn("s", 1).slice(0, -1), ...turn("s", 2)]);
      await receiver.waitForNotices(2);
      expect(
        receiver.notices.map(({ title, message, priority }) => [title, message, priority]),
      ).toEqual([
        ["Done: s", "Its agent is done.", 3],
        ["Done: s", "All 2 agents are done.", 3],
      ]);
    },
  );

  test.concurrent(
    "ntfy is away, its follower is killed meanwhile → told once it is back, but not what is answered by then",
    async () => {
      await using server = await startTestServer();
      await using receiver = startNtfy();
      const dataDir = tempDir();
      receiver.answerWith(503);
      const first = ntfy(server, receiver.url, dataDir);
      await waitFor(() => cursorOf(first.file) > 0, "the first connection", WAIT_MS);
      await post(server, [
        ...ask("s", "q"),
        { type: "turn_start", session_id: "f" },
        end("f", "error"),
      ]);
      await waitFor(() => receiver.requestCount() > 1, "a second try", WAIT_MS);
      await first.kill();
      await using second = ntfy(server, receiver.url, dataDir);
      await second.reached(
        await post(server, [
          { type: "input_resolved", session_id: "s", data: { request_id: "q" } },
        ]),
      );
      receiver.answerWith(200);
      await receiver.waitForNotices(1);
      expect(receiver.titles()).toEqual(["Failed: f"]);
      expect(memoryOf(second.file).waits).toEqual({});
    },
  );
});

test.concurrent.each([
  ["otlp", {}, "OTEL_EXPORTER_OTLP_ENDPOINT: expected a URL"],
  ["ntfy", { NOTIFY_URL: "http://localhost" }, "NOTIFY_URL: expected a URL of ntfy, with a topic"],
  ["ntfy", { NOTIFY_URL: "http://localhost/t", NOTIFY_AFTER: "soon" }, "NOTIFY_AFTER: expected"],
])("%s alone with %j → says what is wrong, and ends", async (name, env, said) => {
  await using follower = spawnFollower(name, { url: "http://localhost:1" }, tempDir(), env);
  await waitFor(() => follower.output().includes(said), said, WAIT_MS);
  expect(await follower.exited).toBe(1);
});

test("a collector that can't be reached is named", async () => {
  await using server = await startTestServer();
  await post(server, turn("s", 0));
  const env = { OTEL_EXPORTER_OTLP_ENDPOINT: "http://localhost:1/otel" };
  await using follower = spawnFollower("otlp", server, tempDir(), env);
  await waitFor(() => follower.output().includes("http://localhost:1: "), "its address", WAIT_MS);
});

test.each([
  ["a quiet stream is cut every hour → each time it is soon opened again", 3_600_000, []],
  [
    "each stream is cut at once → that is told, once",
    1,
    ["the server has closed the stream; tries again"],
  ],
])("%s", async (_, heldMs, told) => {
  let now = 0;
  await using server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: () => new Response("id: 1\n\n"),
  });
  const { promise: isDone, resolve: done } = Promise.withResolvers<void>();
  const pauses: number[] = [];
  const logged: string[] = [];
  using _clock = spyOn(performance, "now").mockImplementation(() => (now += heldMs));
  using _sleep = spyOn(Bun, "sleep").mockImplementation((ms) => {
    if (pauses.push(Number(ms)) < 8) return Promise.resolve();
    done();
    return new Promise(() => {});
  });
  const cursor = { place: { id: 0, memory: {} }, keep() {} };
  const log = (message: string) => logged.push(message);
  void follow({ server: server.url.origin, cursor, receive() {}, log });
  await isDone;
  expect(Math.max(...pauses) < 1_000).toBe(heldMs > 1);
  expect(logged).toEqual(told);
});
