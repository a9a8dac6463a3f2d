/** The HTTP API over real sockets: what POST answers, what each GET route reads, and every error. */

import { Database } from "bun:sqlite";
import { afterAll, afterEach, beforeAll, describe, expect, jest, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { version } from "../package.json";
import type { Activity, Session, Span, UsageStats } from "../server.ts";
import type { AgentRun, ToolCall } from "./helpers.ts";
import { paiPosts, type PostedEvent, seededRandom, sessionEvents, shuffled } from "./fixtures.ts";
import {
  getJson,
  openStream,
  postBody,
  postEvent,
  sendRaw,
  startTestServer,
  statusOf,
  type TestServer,
} from "./helpers.ts";

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const MIB = 1024 * 1024;
const NDJSON = "application/x-ndjson";

/** The clock of the servers in these tests: half past a minute. */
const NOW = Date.parse("2026-01-02T12:00:30Z");

interface Details {
  session: Session;
  tools: ToolCall[];
  agents: AgentRun[];
}

interface HistoryEvent extends Record<string, unknown> {
  id: number;
  type: string;
  session_id: string;
}

afterEach(() => {
  jest.useRealTimers();
});

const startAt = (now = NOW) => startTestServer({ now: () => now });

/** The least event: of session "s", at the time of receipt. */
const EVENT = { type: "session_start", session_id: "s" };

/** An event of session "s", `minutesAgo`. */
function ago(minutesAgo: number, type: string, data: Record<string, unknown> = {}): PostedEvent {
  return { type, session_id: "s", timestamp: NOW - minutesAgo * MINUTE, data };
}

async function postAll(server: TestServer, events: unknown[]): Promise<number[]> {
  const { status, body } = await postEvent(server, events);
  expect(status).toBe(201);
  return body.ids ?? [];
}

async function eventsStored(server: TestServer): Promise<number> {
  return (await getJson<{ events: number }>(server, "/health")).events;
}

async function history(server: TestServer, query = ""): Promise<HistoryEvent[]> {
  return (await getJson<{ events: HistoryEvent[] }>(server, `/api/events${query}`)).events;
}

async function exported(server: TestServer, query: string): Promise<HistoryEvent[]> {
  const response = await fetch(`${server.url}/api/events${query}`, {
    headers: { Accept: NDJSON },
  });
  expect(response.headers.get("content-type")).toBe(NDJSON);
  const lines = (await response.text()).split("\n");
  expect(lines.pop()).toBe("");
  return lines.map((line) => JSON.parse(line));
}

const ndjson = (events: unknown[]) => events.map((event) => `${JSON.stringify(event)}\n`).join("");

/** Sends `body` in pieces of 64 KiB without a Content-Length. */
function chunked(body: Uint8Array<ArrayBuffer>): ReadableStream<Uint8Array> {
  let from = 0;
  return new ReadableStream({
    pull(controller) {
      controller.enqueue(body.subarray(from, (from += 65_536)));
      if (from >= body.length) controller.close();
    },
  });
}

/** An event as JSON of exactly `bytes` bytes. */
function eventOfSize(bytes: number): Uint8Array<ArrayBuffer> {
  const empty = JSON.stringify({ ...EVENT, data: { padding: "" } });
  const padding = "x".repeat(bytes - empty.length);
  return new TextEncoder().encode(JSON.stringify({ ...EVENT, data: { padding } }));
}

describe("POST /api/events", () => {
  test.each(["/api/events", "/events"])("one event to %s → 201 with its id alone", async (path) => {
    await using server = await startAt();
    const { status, headers, body } = await postBody(
      server,
      JSON.stringify(EVENT),
      "application/json",
      path,
    );
    expect(status).toBe(201);
    expect(headers.get("content-type")).toBe("application/json");
    expect(body).toEqual({ id: expect.any(Number) });
    expect(await history(server)).toMatchObject([{ ...body, ...EVENT }]);
  });

  test("the same id again → 200 with the id first given, and nothing new", async () => {
    await using server = await startAt();
    const event = { ...EVENT, id: "e1" };
    const first = await postEvent(server, event);
    const again = await postEvent(server, { ...event, data: { title: "other" } });
    expect(again).toEqual({ status: 200, body: first.body });
    expect(await history(server)).toHaveLength(1);
  });

  test("100 posts of the same id at once → one event, one 201, everybody gets its id", async () => {
    await using server = await startAt();
    const event = { ...EVENT, id: "e1" };
    const answers = await Promise.all(Array.from({ length: 100 }, () => postEvent(server, event)));
    expect(answers.filter(({ status }) => status === 201)).toHaveLength(1);
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(99);
    expect(new Set(answers.map(({ body }) => body.id)).size).toBe(1);
    expect(await eventsStored(server)).toBe(1);
  });

  test("an array → 201 with an id each, in their order", async () => {
    await using server = await startAt();
    const names = ["a", "b", "c"];
    const ids = await postAll(
      server,
      names.map((session_id) => ({ ...EVENT, session_id })),
    );
    const stored = await history(server, "?after=0");
    expect(stored.map(({ id }) => id)).toEqual(ids);
    expect(stored.map(({ session_id }) => session_id)).toEqual(names);
  });

  test("an array with known and new ids → 201; with known ones only → 200; empty → 200", async () => {
    await using server = await startAt();
    const event = (id: string) => ({ ...EVENT, id });
    const [first] = await postAll(server, [event("a")]);
    const mixed = await postEvent(server, [event("a"), event("b"), event("b")]);
    expect(mixed.status).toBe(201);
    const [known, added, repeated] = mixed.body.ids ?? [];
    expect(known).toBe(first as number);
    expect(repeated).toBe(added as number);
    expect(await postEvent(server, [event("b"), event("a")])).toMatchObject({
      status: 200,
      body: { ids: [added, first] },
    });
    expect(await postEvent(server, [])).toEqual({ status: 200, body: { ids: [] } });
  });

  test.each([
    ["lines with LF", ndjson([EVENT, EVENT])],
    ["no line end at the last", `${JSON.stringify(EVENT)}\n${JSON.stringify(EVENT)}`],
    ["CR LF and empty lines", `\r\n${JSON.stringify(EVENT)}\r\n\r\n${JSON.stringify(EVENT)}\r\n`],
  ])("NDJSON, %s → 201 with an id each", async (_, body) => {
    await using server = await startAt();
    const answer = await postBody(server, body, `${NDJSON}; charset=utf-8`);
    expect(answer.status).toBe(201);
    expect(answer.body).toEqual({ ids: [expect.any(Number), expect.any(Number)] });
    expect(await eventsStored(server)).toBe(2);
  });

  test("NDJSON of one line → 201 with ids: it is a batch", async () => {
    await using server = await startAt();
    const { body } = await postBody(server, ndjson([EVENT]), NDJSON);
    expect(body).toEqual({ ids: [expect.any(Number)] });
  });

  const BAD_THIRD = [
    ["type", { type: "no", session_id: "s" }, /^event 2: type: expected one of /],
    ["session_id", { type: "session_start" }, /^event 2: session_id: expected .*missing/],
    [
      "data.tool",
      { type: "tool_use", session_id: "s" },
      /^event 2: data\.tool: expected .*missing/,
    ],
    ["timestamp", { ...EVENT, timestamp: "noon" }, /^event 2: timestamp: expected .*"noon"/],
    ["event", 17, /^event 2: event: expected a JSON object; got 17/],
  ] as const;

  test.each(BAD_THIRD)(
    "a batch whose third event has a bad %s → 400 with index and field, nothing is stored",
    async (_, bad, message) => {
      await using server = await startAt();
      const events = [EVENT, EVENT, bad, EVENT];
      for (const answer of [
        await postEvent(server, events),
        await postBody(server, ndjson(events), NDJSON),
      ]) {
        expect(answer.status).toBe(400);
        expect(answer.body).toEqual({ error: expect.stringMatching(message) });
      }
      expect(await eventsStored(server)).toBe(0);
    },
  );

  test("NDJSON with a line that is no JSON → 400 with its index, nothing is stored", async () => {
    await using server = await startAt();
    const answer = await postBody(server, `${ndjson([EVENT])}{"type":\n`, NDJSON);
    expect(answer.status).toBe(400);
    expect(answer.body.error).toStartWith("event 1: malformed JSON: ");
    expect(await eventsStored(server)).toBe(0);
  });

  test("a session, 50 writers at once, each event twice, shuffled → as when posted in order", async () => {
    const events = [...sessionEvents("one", { from: NOW - HOUR }), ...sessionEvents("two")];
    const posts = [...events, ...paiPosts().map(({ body }) => body)];
    const later = Date.parse("2026-12-01T00:00:00Z");
    const read = async (server: TestServer) => {
      const { sessions } = await getJson<{ sessions: Session[] }>(server, "/api/sessions");
      const details = sessions.map(({ id }) => getJson<Details>(server, `/api/sessions/${id}`));
      return {
        sessions,
        details: (await Promise.all(details)).map(({ session, tools, agents }) => ({
          session,
          calls: [...tools, ...agents].map(({ id: _, ...call }) => call),
        })),
        tools: await getJson(server, "/api/analytics/tools?hours=9000"),
        agents: await getJson(server, "/api/analytics/agents?hours=9000"),
        activity: await getJson(server, "/api/analytics/activity?hours=9000"),
      };
    };
    await using inOrder = await startAt(later);
    for (const post of posts) await postEvent(inOrder, post);
    await using atOnce = await startAt(later);
    const arriving = shuffled([...posts, ...posts], seededRandom(2));
    await Promise.all(
      Array.from({ length: 50 }, async () => {
        for (let post = arriving.pop(); post; post = arriving.pop())
          expect((await postEvent(atOnce, post)).status).toBeOneOf([200, 201]);
      }),
    );
    const expected = await read(inOrder);
    expect(expected.sessions).toHaveLength(4);
    expect(await read(atOnce)).toEqual(expected);
  });

  /** The commits in the write-ahead log: frames that carry the size of the database. */
  function commitsInLog({ dataDir }: TestServer): number {
    const log = readFileSync(join(dataDir, "observability.db-wal"));
    const frameBytes = 24 + log.readUInt32BE(8);
    const salt = log.subarray(16, 24);
    let commits = 0;
    for (let frame = 32; frame + frameBytes <= log.length; frame += frameBytes)
      if (salt.equals(log.subarray(frame + 8, frame + 16)) && log.readUInt32BE(frame + 4) > 0)
        commits++;
    return commits;
  }

  test("64 posts at once → far fewer commits; one after the other → one each", async () => {
    jest.useFakeTimers(); // or what the text index commits, by a timer, would count
    await using server = await startAt();
    const before = commitsInLog(server);
    await Promise.all(Array.from({ length: 64 }, () => postEvent(server, EVENT)));
    const together = commitsInLog(server) - before;
    expect(together).toBeGreaterThan(0);
    expect(together).toBeLessThan(32);
    for (let index = 0; index < 5; index++) await postEvent(server, EVENT);
    expect(commitsInLog(server) - before - together).toBe(5);
  });

  test("a transaction that SQLite refuses → 503, nothing stored or streamed, then it goes on", async () => {
    await using server = await startAt();
    const stream = await openStream(server);
    const beside = new Database(join(server.dataDir, "observability.db"));
    beside.run("CREATE TRIGGER no BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'no'); END");
    const refused = await Promise.all(
      Array.from({ length: 5 }, () => postBody(server, JSON.stringify([EVENT, EVENT]))),
    );
    for (const { status, headers, body } of refused) {
      expect(status).toBe(503);
      expect(headers.get("retry-after")).toMatch(/^\d+$/);
      expect(body).toEqual({ error: expect.any(String) });
    }
    expect(await eventsStored(server)).toBe(0);
    beside.run("DROP TRIGGER no");
    beside.close();
    const { body } = await postEvent(server, EVENT);
    await stream.waitForEvents(1);
    expect(stream.events().map(({ id }) => id)).toEqual([String(body.id)]);
  });
});

describe("POST /api/events, refused", () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await startAt();
  });
  afterAll(() => server[Symbol.asyncDispose]());

  const JSON_TYPE = "application/json";
  const utf8 = (text: string) => new TextEncoder().encode(text);
  const invalidUtf8 = Uint8Array.from([...utf8('{"type":"'), 0xff, 0xfe, ...utf8('"}')]);
  const deep = (levels: number) => "[".repeat(levels) + "]".repeat(levels);
  const wrapped = (json: string) =>
    `{"type":"message_user","session_id":"s","data":{"in":${json}}}`;

  test.each<[name: string, status: number, error: RegExp, body: BodyInit, type: string | null]>([
    ["no body", 400, /^malformed JSON: /, "", JSON_TYPE],
    ["half an object", 400, /^malformed JSON: /, '{"type":', JSON_TYPE],
    ["two objects", 400, /^malformed JSON: /, "{}{}", JSON_TYPE],
    ["NaN", 400, /^malformed JSON: /, wrapped("NaN"), JSON_TYPE],
    ["a string", 400, /^event: expected a JSON object/, '"session_start"', JSON_TYPE],
    ["null", 400, /^event: expected a JSON object; got null/, "null", JSON_TYPE],
    ["an empty object", 400, /^type: expected one of /, "{}", JSON_TYPE],
    ["invalid UTF-8", 400, /UTF-8/, invalidUtf8, JSON_TYPE],
    ["UTF-16", 400, /^malformed JSON|UTF-8/, Buffer.from('{"a":1}', "utf16le"), JSON_TYPE],
    ["NUL bytes", 400, /^malformed JSON: /, "\0\0\0", JSON_TYPE],
    ["an array in an array", 400, /^event 0: event: expected a JSON object/, "[[]]", JSON_TYPE],
    ["64 levels and one", 400, /^event: nested deeper than 64/, wrapped(deep(63)), JSON_TYPE],
    ["500,000 levels", 400, /^event: nested deeper than 64/, wrapped(deep(500_000)), JSON_TYPE],
    ["500,000 levels of arrays", 400, /^event 0: event: expected/, deep(500_000), JSON_TYPE],
    ["500,000 levels in NDJSON", 400, /^event 0: event: nested/, wrapped(deep(500_000)), NDJSON],
    ["an unclosed 1 MiB of [", 400, /^malformed JSON: /, "[".repeat(MIB), JSON_TYPE],
    ["text/plain", 415, /^Content-Type: .*got text\/plain/, JSON.stringify(EVENT), "text/plain"],
    ["no content type", 415, /^Content-Type: .*got none/, utf8(JSON.stringify(EVENT)), null],
    ["a form", 415, /^Content-Type: /, "a=b", "application/x-www-form-urlencoded"],
    ["a JSON-like type", 415, /^Content-Type: /, "{}", "application/jsonp"],
    ["1 MiB and a byte", 413, /1048576 bytes/, eventOfSize(MIB + 1), JSON_TYPE],
    ["2 MiB without a length", 413, /1048576 bytes/, chunked(eventOfSize(2 * MIB)), JSON_TYPE],
    ["2 MiB of NDJSON", 413, /1048576 bytes/, ndjson([EVENT]).repeat(50_000), NDJSON],
  ])("%s → %d that says why", async (_, status, error, body, type) => {
    const answer = await postBody(server, body, type);
    expect(answer.body).toEqual({ error: expect.stringMatching(error) });
    expect(answer.status).toBe(status);
    expect(await eventsStored(server)).toBe(0);
  });

  test("a Content-Length over 1 MiB → 413 before the body is sent", async () => {
    const answer = await sendRaw(
      server,
      "POST /api/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
        "Content-Length: 1048577\r\n\r\n{",
    );
    expect(statusOf(answer)).toBe(413);
  });

  test("a body that says it is compressed → 415", async () => {
    const response = await fetch(`${server.url}/api/events`, {
      method: "POST",
      headers: { "Content-Type": JSON_TYPE, "Content-Encoding": "gzip" },
      body: Bun.gzipSync(JSON.stringify(EVENT)),
    });
    expect(response.status).toBe(415);
  });
});

describe("POST /api/events, accepted", () => {
  test.each<[name: string, body: BodyInit, type: string]>([
    ["a BOM before it", `\ufeff${JSON.stringify(EVENT)}`, "application/json"],
    ["blanks around it", ` \r\n\t${JSON.stringify(EVENT)}\n `, "application/json"],
    ["a charset in the type", JSON.stringify(EVENT), "application/json; charset=utf-8"],
    ["the type in capitals", JSON.stringify(EVENT), "Application/JSON"],
    ["exactly 1 MiB", eventOfSize(MIB), "application/json"],
    ["exactly 1 MiB without a length", chunked(eventOfSize(MIB)), "application/json"],
  ])("an event with %s → 201", async (_, body, type) => {
    await using server = await startAt();
    expect((await postBody(server, body, type)).status).toBe(201);
    expect(await eventsStored(server)).toBe(1);
  });

  /** Each is one event; what comes back in the history is `expected`. */
  test.each<[name: string, json: string, expected: Record<string, unknown>]>([
    [
      "64 levels",
      `{"type":"message_user","session_id":"s","data":{"in":${"[".repeat(62)}${"]".repeat(62)}}}`,
      { in: expect.any(Array) },
    ],
    [
      "lone surrogates",
      '{"type":"tool_use","session_id":"s","data":{"tool":"\\udc00","args":"\\ud83d"}}',
      { session_id: "s", tool: "\udc00", args: "\ud83d" },
    ],
    [
      "1e308",
      '{"type":"session_update","session_id":"s","data":{"cost":1e308,"any":-1e308}}',
      { cost: 1e308, any: -1e308 },
    ],
    ["1e999", '{"type":"message_user","session_id":"s","data":{"any":1e999}}', { any: null }],
    [
      "control characters",
      '{"type":"tool_use","session_id":"a\\u0000b\\r\\n","data":{"tool":"\\u2028\\u0000"}}',
      { session_id: "a\0b\r\n", tool: "\u2028\0" },
    ],
    [
      "names of the envelope in data",
      '{"type":"message_user","session_id":"s","data":{"id":1,"type":"x","session_id":"y","timestamp":0}}',
      { session_id: "s", data_id: 1, data_type: "x", data_session_id: "y", data_timestamp: 0 },
    ],
    [
      "duplicate keys",
      '{"type":"voice_sent","type":"message_user","session_id":"s"}',
      { type: "message_user" },
    ],
  ])("%s → 201, comes back as posted, and every route still answers", async (_, json, expected) => {
    await using server = await startAt();
    expect((await postBody(server, json)).status).toBe(201);
    const [event] = await history(server);
    expect(event).toMatchObject(expected);
    for (const path of [
      "/api/sessions",
      `/api/sessions/${encodeURIComponent(event?.session_id ?? "")}`,
      "/api/analytics/tools",
      "/api/analytics/agents",
      "/api/analytics/activity",
    ])
      expect((await fetch(server.url + path)).status).toBe(200);
  });

  test("__proto__ keys anywhere → 201, data like any other, in every answer", async () => {
    await using server = await startAt();
    const json = `{"type":"tool_use","session_id":"__proto__","__proto__":{"a":1},
      "data":{"tool":"__proto__","args":{"__proto__":{"x":1}},"constructor":null}}`;
    expect((await postBody(server, json)).status).toBe(201);
    const raw = await (await fetch(`${server.url}/api/events`)).text();
    expect(raw).toContain('"__proto__":{"a":1}');
    expect(raw).toContain('"args":{"__proto__":{"x":1}}');
    expect(await getJson(server, "/api/sessions/__proto__")).toMatchObject({
      session: { id: "__proto__", tool_count: 1 },
      tools: [{ tool: "__proto__", args: '{"__proto__":{"x":1}}' }],
    });
    expect(await getJson(server, "/api/analytics/tools")).toMatchObject({
      tools: [{ tool: "__proto__", count: 1 }],
    });
    expect((await fetch(`${server.url}/api/sessions/toString`)).status).toBe(404);
  });
});

describe("GET /health", () => {
  test("→ ok, uptime in seconds, the time, the version, and counts", async () => {
    let now = NOW;
    await using server = await startTestServer({ now: () => now });
    const stream = await openStream(server);
    await postAll(server, [EVENT, EVENT, EVENT]);
    now += 1_234;
    expect(await getJson(server, "/health")).toEqual({
      status: "ok",
      uptime: expect.any(Number),
      timestamp: "2026-01-02T12:00:31.234Z",
      version,
      subscribers: 1,
      events: 3,
      database_bytes: expect.any(Number),
    });
    now -= 60_000; // somebody sets the clock
    const { uptime } = await getJson<{ uptime: number }>(server, "/health");
    expect(uptime).toBeGreaterThan(0);
    expect(uptime).toBeLessThan(5);
    stream.close();
  });

  test("after a restart → the events of before are counted, the bytes are those of the file", async () => {
    await using server = await startAt();
    await postAll(server, sessionEvents("s"));
    await server.restart();
    const health = await getJson<{ events: number; database_bytes: number }>(server, "/health");
    expect(health.events).toBe(sessionEvents("s").length);
    const file = Bun.file(join(server.dataDir, "observability.db"));
    expect(health.database_bytes).toBe(file.size);
  });
});

describe("GET /api/sessions", () => {
  test("one session → the documented fields and ours, of the documented types", async () => {
    await using server = await startAt();
    await postAll(server, [
      ago(9, "session_start", { title: "Fix it", directory: "/p", model: "opus", mood: "good" }),
      ago(8, "tool_use", { tool: "bash", duration_ms: 5, success: false }),
      ago(7, "agent_spawn", { subagent_type: "Engineer" }),
      ago(6, "session_update", { tokens: { input: 5 }, cost: 0.02, parent_session_id: "p" }),
      ago(5, "input_requested", { request_id: "r", kind: "permission" }),
    ]);
    expect(await getJson<unknown>(server, "/api/sessions")).toEqual({
      sessions: [
        {
          id: "s",
          started_at: "2026-01-02T11:51:30.000Z",
          ended_at: null,
          status: "active",
          stale_at: null,
          is_lost: false,
          tool_count: 1,
          agent_count: 1,
          event_count: 5,
          error_count: 1,
          is_excused: false,
          last_event_at: "2026-01-02T11:55:30.000Z",
          waiting_since: "2026-01-02T11:55:30.000Z",
          parent_session_id: "p",
          info: {
            title: "Fix it",
            directory: "/p",
            model: "opus",
            tokens: { input: 5 },
            cost: 0.02,
          },
          now: {
            kind: "wait",
            name: "permission",
            text: null,
            started_at: "2026-01-02T11:55:30.000Z",
          },
          cost: { own: 0.02, total: 0.02 },
          tokens: { own: 5, total: 5 },
          turn_count: 0,
          working_since: "2026-01-02T11:51:30.000Z",
          worked_ms: 4 * MINUTE,
        },
      ],
    });
  });

  test("no session → an empty list", async () => {
    await using server = await startAt();
    expect(await getJson<unknown>(server, "/api/sessions")).toEqual({ sessions: [] });
  });

  test("150 sessions → latest activity first: 100 of them, or as many as limit says", async () => {
    await using server = await startAt();
    const events = Array.from({ length: 150 }, (_, index) => ({
      ...ago(index + 1, "session_start"),
      session_id: `s${index}`,
    }));
    await postAll(server, shuffled(events, seededRandom(1)));
    const ids = async (query: string) =>
      (await getJson<{ sessions: Session[] }>(server, `/api/sessions${query}`)).sessions.map(
        ({ id }) => id,
      );
    const expected = events.map(({ session_id }) => session_id);
    expect(await ids("")).toEqual(expected.slice(0, 100));
    expect(await ids("?limit=1")).toEqual(["s0"]);
    expect(await ids("?limit=1000")).toEqual(expected);
    await postEvent(server, { type: "message_user", session_id: "s149" });
    expect(await ids("?limit=3")).toEqual(["s149", "s0", "s1"]);
  });
});

describe("GET /api/sessions/:sessionId", () => {
  test("a session → the documented fields; args as a JSON string; ends paired", async () => {
    await using server = await startAt();
    await postAll(server, [
      ago(9, "session_start"),
      ago(8, "tool_use", { tool: "bash", args: { command: "ls" }, duration_ms: 150 }),
      ago(7, "agent_spawn", { subagent_type: "Engineer", prompt: "Build it", call_id: "c" }),
      ago(6, "agent_complete", { call_id: "c", duration_ms: 5_000 }),
      ago(5, "session_end"),
    ]);
    const details = await getJson<Details>(server, "/api/sessions/s");
    expect(details).toEqual({
      session: expect.objectContaining({
        id: "s",
        started_at: "2026-01-02T11:51:30.000Z",
        ended_at: "2026-01-02T11:55:30.000Z",
        status: "completed",
      }),
      tools: [
        expect.objectContaining({
          tool: "bash",
          args: '{"command":"ls"}',
          timestamp: "2026-01-02T11:52:30.000Z",
          duration_ms: 150,
        }),
      ],
      agents: [
        expect.objectContaining({
          subagent_type: "Engineer",
          prompt: "Build it",
          timestamp: "2026-01-02T11:53:30.000Z",
          duration_ms: 5_000,
        }),
      ],
    });
    const { sessions } = await getJson<{ sessions: Session[] }>(server, "/api/sessions");
    expect([details.session]).toEqual(sessions);
  });

  test.each([
    ["a/b"],
    ["a b"],
    ["100%"],
    ["%2F"],
    ["a+b"],
    ["?q=1#f"],
    ["häß 日本 😀"],
    ["x\0y"],
    ["a\r\nb"],
    ["\u2028"],
    [" "],
    ["a\\b"],
    ["stream"],
    ["ü".repeat(256)],
  ])("the session id %j → found under its URL encoding", async (id) => {
    await using server = await startAt();
    await postEvent(server, { ...EVENT, session_id: id });
    const path = `/api/sessions/${encodeURIComponent(id)}`;
    expect((await getJson<Details>(server, path)).session.id).toBe(id);
  });

  test.each([["nobody"], ["%"], ["%ZZ"], ["%ff"], ["%00"], ["x".repeat(5_000)]])(
    "/api/sessions/%s → 404 in JSON",
    async (path) => {
      await using server = await startAt();
      await postEvent(server, EVENT);
      const response = await fetch(`${server.url}/api/sessions/${path}`);
      expect(response.status).toBe(404);
      const { error } = await response.json();
      expect(error).toStartWith("no session ");
      expect(error.length).toBeLessThan(400);
    },
  );
});

describe("GET /api/analytics", () => {
  const USES = [
    ago(1, "tool_use", { tool: "bash", duration_ms: 100 }),
    ago(2, "tool_use", { tool: "bash", duration_ms: 300 }),
    ago(3, "tool_use", { tool: "bash", success: false }),
    ago(4, "tool_use", { tool: "read" }),
    ago(5, "agent_spawn", { subagent_type: "Engineer", call_id: "c" }),
    ago(4, "agent_complete", { call_id: "c" }),
    ago(3, "agent_spawn", { subagent_type: "Engineer" }),
    ago(3, "agent_spawn", { subagent_type: "general" }),
  ];

  test("/tools → most used first, averages over known durations, null where none is known", async () => {
    await using server = await startAt();
    await postAll(server, USES);
    const { tools } = await getJson<{ tools: UsageStats[] }>(server, "/api/analytics/tools");
    expect(tools as object[]).toEqual([
      {
        tool: "bash",
        count: 3,
        avg_duration_ms: 200,
        total_duration_ms: 400,
        p50_duration_ms: expect.any(Number),
        p95_duration_ms: expect.any(Number),
        waited_ms: 0,
        error_count: 1,
      },
      {
        tool: "read",
        count: 1,
        avg_duration_ms: null,
        total_duration_ms: 0,
        p50_duration_ms: null,
        p95_duration_ms: null,
        waited_ms: 0,
        error_count: 0,
      },
    ]);
    expect(tools[0]?.p50_duration_ms).toBeWithin(90, 110);
    expect(tools[0]?.p95_duration_ms).toBeWithin(270, 330);
  });

  test("/agents → most spawned first, with what their completions say", async () => {
    await using server = await startAt();
    await postAll(server, USES);
    const { agents } = await getJson<{ agents: unknown[] }>(server, "/api/analytics/agents");
    expect(agents).toMatchObject([
      { subagent_type: "Engineer", count: 2, avg_duration_ms: MINUTE },
      { subagent_type: "general", count: 1, avg_duration_ms: null },
    ]);
  });

  test("/activity → events a minute, of any type", async () => {
    await using server = await startAt();
    await postAll(server, USES);
    const { activity } = await getJson<{ activity: unknown[] }>(server, "/api/analytics/activity");
    expect(activity).toEqual(
      [1, 2, 3, 1, 1].map((count, index) => ({
        timestamp: `2026-01-02T11:5${5 + index}:00.000Z`,
        count,
        error_count: index === 2 ? 1 : 0,
      })),
    );
  });

  test("/activity?before_hours= → that window, which the one from there on goes on", async () => {
    await using server = await startAt();
    const minutesAgo = [0, 1, 59, 60, 61, 119, 120, 121];
    await postAll(
      server,
      minutesAgo.map((minutes) => ago(minutes, "message_user")),
    );
    const path = "/api/analytics/activity?hours=1";
    const { activity } = await getJson<{ activity: Activity[] }>(server, `${path}&before_hours=1`);
    expect(activity.map(({ timestamp }) => timestamp)).toEqual([
      "2026-01-02T10:00:00.000Z",
      "2026-01-02T10:01:00.000Z",
      "2026-01-02T10:59:00.000Z",
    ]);
  });

  // The clock stands at 12:00:30, so that a window of an hour begins at 11:00:30.
  test.each([
    ["", ["day", "hour", "minute", "now"]],
    ["?hours=24", ["day", "hour", "minute", "now"]],
    ["?hours=23.99", ["hour", "minute", "now"]],
    ["?hours=1", ["hour", "minute", "now"]],
    ["?hours=0.5", ["minute", "now"]],
    ["?hours=.02", ["minute", "now"]],
    ["?hours=0.001", ["now"]],
    ["?hours=25", ["all", "day", "hour", "minute", "now"]],
    ["?hours=999999999", ["all", "day", "hour", "minute", "now"]],
    // Into the past: the windows beside each other have nothing in common, and leave nothing out.
    ["?hours=1&before_hours=0", ["hour", "minute", "now"]],
    ["?hours=1&before_hours=1", []],
    ["?hours=23&before_hours=1", ["day"]],
    ["?hours=24&before_hours=24", ["all"]],
    ["?hours=24&before_hours=0.01", ["all", "day", "hour"]],
    ["?hours=0.5&before_hours=.99", ["hour"]],
  ])("/tools%s → the tools of that window", async (query, expected) => {
    await using server = await startAt();
    await postAll(server, [
      ago(24 * 60 + 1, "tool_use", { tool: "all" }),
      ago(24 * 60, "tool_use", { tool: "day" }),
      ago(60, "tool_use", { tool: "hour" }),
      ago(1, "tool_use", { tool: "minute" }),
      ago(0, "tool_use", { tool: "now" }),
    ]);
    const path = `/api/analytics/tools${query}`;
    const { tools } = await getJson<{ tools: { tool: string }[] }>(server, path);
    expect(tools.map(({ tool }) => tool)).toEqual(expected);
  });
});

describe("GET /api/spans", () => {
  const CALLS = [
    ago(9, "tool_start", { tool: "bash", args: { command: "ls" }, call_id: "c1" }),
    ago(8, "agent_spawn", { subagent_type: "Engineer", description: "Build it", call_id: "c2" }),
    ago(7, "tool_use", { tool: "bash", call_id: "c1", outcome: "exit", exit_code: 1 }),
    { ...ago(6, "model_request", { call_id: "m1", model: "opus" }), session_id: "other" },
    ago(5, "input_requested", { request_id: "r1", kind: "question", detail: "Really?" }),
  ];

  const spans = async (server: TestServer, query = "") =>
    (await getJson<{ spans: Span[] }>(server, `/api/spans${query}`)).spans;
  const kinds = (found: Span[]) => found.map(({ kind }) => kind);

  test("→ whatever has a beginning and an end, newest first, an event pair as one", async () => {
    await using server = await startAt();
    await postAll(server, CALLS);
    const found = await spans(server);
    expect(kinds(found)).toEqual(["wait", "model", "agent", "tool"]);
    expect(found[3]).toEqual({
      id: expect.any(Number),
      session_id: "s",
      kind: "tool",
      name: "bash",
      call_id: "c1",
      started_at: "2026-01-02T11:51:30.000Z",
      ended_at: "2026-01-02T11:53:30.000Z",
      duration_ms: 2 * MINUTE,
      waited_ms: null,
      outcome: "exit",
      text: '{"command":"ls"}',
      error: null,
      child_session_id: null,
      tokens: null,
      cost: null,
      attributes: { exit_code: 1 },
    });
    expect(found[0]).toMatchObject({ name: "question", text: "Really?", ended_at: null });
  });

  test("?sessionId= and ?open=1 → those of a session, and what runs now", async () => {
    await using server = await startAt();
    await postAll(server, CALLS);
    expect(kinds(await spans(server, "?sessionId=other"))).toEqual(["model"]);
    expect(kinds(await spans(server, "?open=1"))).toEqual(["wait", "model", "agent"]);
    expect(kinds(await spans(server, "?sessionId=s&open=1"))).toEqual(["wait", "agent"]);
    await postEvent(server, ago(1, "session_end"));
    expect(kinds(await spans(server, "?open=1"))).toEqual(["model"]);
    expect((await spans(server, "?sessionId=s")).map(({ outcome }) => outcome)).toEqual([
      "cancelled",
      "cancelled",
      "exit",
    ]);
  });

  test("?limit=&before= → page by page, each once, until one is empty", async () => {
    await using server = await startAt();
    await postAll(server, CALLS);
    for (const filter of ["", "&sessionId=s"]) {
      const whole = await spans(server, `?limit=1000${filter}`);
      const found: Span[] = [];
      for (;;) {
        const before = found.length > 0 ? `&before=${found.at(-1)?.id}` : "";
        const page = await spans(server, `?limit=2${before}${filter}`);
        if (page.length === 0) break;
        expect(page.length).toBeLessThanOrEqual(2);
        found.push(...page);
      }
      expect(found).toEqual(whole);
    }
  });
});

describe("GET /api/overview", () => {
  test("→ what runs, waits and failed, in the last hour a minute at a time", async () => {
    await using server = await startAt();
    await postAll(server, [
      ago(61, "tool_use", { tool: "bash", success: false }), // too long ago
      ago(9, "agent_spawn", { subagent_type: "Engineer", call_id: "c1" }),
      ago(8, "agent_spawn", { subagent_type: "Engineer", call_id: "c2" }),
      ago(7, "agent_complete", { call_id: "c2", success: false }),
      { ...ago(6, "session_start", { parent_session_id: "s" }), session_id: "child" },
      { ...ago(5, "input_requested", { request_id: "r1" }), session_id: "child" },
      { ...ago(5, "session_end"), session_id: "over" },
    ]);
    expect(await getJson<unknown>(server, "/api/overview")).toEqual({
      active_sessions: 1,
      waiting: 1,
      running_agents: 1,
      errors_last_hour: 1,
      activity: [
        [9, 1, 0],
        [8, 1, 0],
        [7, 1, 1],
        [6, 1, 0],
        [5, 2, 0],
      ].map(([minutesAgo = 0, count, error_count]) => ({
        timestamp: new Date(NOW - 30_000 - minutesAgo * MINUTE).toISOString(),
        count,
        error_count,
      })),
      old_plugin: null,
    });
  });
});

describe("GET /api/events", () => {
  /** Six events of two sessions and two types, and their ids. */
  async function filledServer() {
    const server = await startAt();
    const ids = await postAll(
      server,
      ["a", "b", "a", "b", "a", "b"].map((session_id, index) => ({
        type: index < 4 ? "message_user" : "voice_sent",
        session_id,
        timestamp: NOW - index * MINUTE, // ids are the order, not these
      })),
    );
    return { server, ids, [Symbol.asyncDispose]: server[Symbol.asyncDispose] };
  }

  /** `query` with #n for the id of the event n. */
  const withIds = (query: string, ids: number[]) =>
    query.replace(/#(\d)/g, (_, index) => String(ids[Number(index)]));

  test.each<[query: string, expected: number[]]>([
    ["", [5, 4, 3, 2, 1, 0]],
    ["?limit=2", [5, 4]],
    ["?sessionId=a", [4, 2, 0]],
    ["?type=message_user", [3, 2, 1, 0]],
    ["?type=message_user&sessionId=b", [3, 1]],
    ["?before=#3", [2, 1, 0]],
    ["?before=#3&limit=1", [2]],
    ["?after=#3", [4, 5]],
    ["?after=0", [0, 1, 2, 3, 4, 5]],
    ["?after=0&limit=2", [0, 1]],
    ["?after=#0&before=#5&sessionId=a", [2, 4]],
    ["?after=#5", []],
    ["?sessionId=nobody", []],
  ])("%s → events %j: newest first, or from `after` on", async (query, expected) => {
    await using filled = await filledServer();
    const events = await history(filled.server, withIds(query, filled.ids));
    expect(events.map(({ id }) => filled.ids.indexOf(id))).toEqual(expected);
  });

  test("a stored event → as the stream would send it", async () => {
    await using server = await startAt();
    const stream = await openStream(server);
    await postAll(server, sessionEvents("s"));
    const events = await history(server, "?after=0");
    await stream.waitForEvents(events.length);
    expect(events).toEqual(stream.events().map(({ data }) => JSON.parse(data)));
    stream.close();
  });

  test("a session_end → duration_seconds since the start, or the one that was posted", async () => {
    await using server = await startAt();
    await postAll(server, [
      ago(3, "session_end"),
      ago(5, "session_start"),
      ago(2, "session_end", { duration_seconds: 7.25 }),
      { ...ago(1, "session_end", { duration_seconds: null }), session_id: "only an end" },
    ]);
    expect(await history(server, "?type=session_end&after=0")).toMatchObject([
      { duration_seconds: 120 },
      { duration_seconds: 7.25 },
      { duration_seconds: 0 },
    ]);
  });

  test.each<[query: string, expected: number[]]>([
    ["?after=0", [0, 1, 2, 3, 4, 5]],
    ["?after=#2", [3, 4, 5]],
    ["?after=0&sessionId=b", [1, 3, 5]],
    ["?after=0&type=voice_sent", [4, 5]],
    ["?after=0&before=#2", [0, 1]],
    ["?after=0&limit=2", [0, 1]],
    ["?after=#5", []],
    ["", [0, 1, 2, 3, 4, 5]],
  ])("%s as NDJSON → events %j, oldest first", async (query, expected) => {
    await using filled = await filledServer();
    const events = await exported(filled.server, withIds(query, filled.ids));
    expect(events.map(({ id }) => filled.ids.indexOf(id))).toEqual(expected);
  });

  test("an export of many pages → all, once, without what arrives meanwhile, and goes on after=", async () => {
    await using server = await startAt();
    const ids = await postAll(server, Array(600).fill(EVENT));
    // More than the sockets take at once, so that most of it is read after the later events.
    const large = { type: "message_user", session_id: "large", data: { text: "x".repeat(32_000) } };
    for (let batch = 0; batch < 13; batch++)
      ids.push(...(await postAll(server, Array(25).fill(large))));
    const response = await fetch(`${server.url}/api/events?after=0`, {
      headers: { Accept: NDJSON },
    });
    const late = await postAll(server, [EVENT, EVENT]);
    const lines = (await response.text()).trim().split("\n");
    expect(lines.map((line) => JSON.parse(line).id)).toEqual(ids);
    const idsOf = async (query: string) => (await exported(server, query)).map(({ id }) => id);
    expect(await idsOf(`?after=${ids.at(-1)}`)).toEqual(late);
    expect(await idsOf("?after=0&limit=610")).toEqual(ids.slice(0, 610));
    expect(await history(server)).toHaveLength(100);
    expect(await history(server, "?limit=1000&sessionId=s")).toHaveLength(602);
  });
});

describe("query parameters", () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await startAt();
  });
  afterAll(() => server[Symbol.asyncDispose]());

  const BAD_NUMBERS = ["", "0", "-1", "abc", "NaN", "Infinity", "1e3", "0x10", "1,5", " "];
  const rows = [
    [
      "limit",
      ["/api/sessions", "/api/events", "/api/spans"],
      [...BAD_NUMBERS, "1001", "1.5", "99999999999"],
    ],
    [
      "hours",
      ["tools", "agents", "activity"].map((name) => `/api/analytics/${name}`),
      [...BAD_NUMBERS, "0.0", ".", "1.2.3", "9".repeat(400)],
    ],
    ["after", ["/api/events"], ["", "-1", "abc", "1.5", "9".repeat(30)]],
    [
      "before_hours",
      ["tools", "agents", "activity"].map((name) => `/api/analytics/${name}`),
      [...BAD_NUMBERS.filter((text) => text !== "0"), ".", "1.2.3", "9".repeat(400)],
    ],
    ["status", ["/api/sessions"], ["", "open", "Active", "toString"]],
    ["before", ["/api/events", "/api/spans"], ["", "-1", "abc", "1.5", "9".repeat(30)]],
    ["type", ["/api/events"], ["", "tool.execute", "toString", "__proto__"]],
  ] as const;
  const badRows = rows.flatMap(([name, paths, values]) =>
    paths.flatMap((path) => values.map((value) => [path, name, value] as const)),
  );

  test.each(badRows)("%s?%s=%s → 400 that names it", async (path, name, value) => {
    const response = await fetch(`${server.url}${path}?${new URLSearchParams({ [name]: value })}`);
    expect(response.status).toBe(400);
    expect((await response.json()).error).toStartWith(`${name}: expected `);
  });
});

describe("methods and routes", () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await startAt();
    await postAll(server, sessionEvents("s"));
  });
  afterAll(() => server[Symbol.asyncDispose]());

  const READ_ROUTES = [
    "/health",
    "/api/sessions",
    "/api/sessions/s",
    "/api/spans",
    "/api/overview",
    "/api/events",
    "/api/events/stream",
    "/api/analytics/tools",
    "/api/analytics/agents",
    "/api/analytics/models",
    "/api/analytics/spend",
    "/api/analytics/activity",
  ];

  const wrong = [
    ...READ_ROUTES.flatMap((path) => ["PUT", "PATCH"].map((method) => [method, path])),
    ...READ_ROUTES.filter((path) => !path.startsWith("/api/sessions")).map((path) => [
      "DELETE",
      path,
    ]),
    ...READ_ROUTES.filter((path) => path !== "/api/events").map((path) => ["POST", path]),
    ...["GET", "HEAD", "PUT"].map((method) => [method, "/events"]),
  ] as [method: string, path: string][];

  test.each(wrong)("%s %s → 405, with the methods that it has in Allow", async (method, path) => {
    const response = await fetch(server.url + path, { method });
    expect(response.status).toBe(405);
    const allow = response.headers.get("allow")?.split(", ") ?? [];
    expect(allow).not.toContain(method);
    expect(allow).toContain(path === "/events" ? "POST" : "GET");
    if (path === "/api/events") expect(allow).toContain("POST");
    if (method !== "HEAD") expect(await response.json()).toEqual({ error: expect.any(String) });
  });

  test.each([
    ["/nope"],
    ["/api"],
    ["/api/"],
    ["/api/sessions/"],
    ["/api/sessions/a/b"],
    ["/api/analytics"],
    ["/health/"],
    ["/API/sessions"],
    ["/api/events/stream/x"],
  ])("GET %s → 404 in JSON", async (path) => {
    const response = await fetch(server.url + path);
    expect(response.status).toBe(404);
    expect(response.headers.get("content-type")).toBe("application/json");
    expect(await response.json()).toEqual({ error: expect.any(String) });
  });

  test.each(READ_ROUTES)("HEAD %s → the status and type of GET, without a body", async (path) => {
    const head = await fetch(server.url + path, { method: "HEAD" });
    const abort = new AbortController();
    const get = await fetch(server.url + path, { signal: abort.signal });
    expect(head.status).toBe(200);
    expect(head.headers.get("content-type")).toBe(get.headers.get("content-type"));
    expect(await head.text()).toBe("");
    abort.abort();
  });

  test("HEAD of a stream → leaves no subscriber behind", async () => {
    await using own = await startAt();
    await fetch(`${own.url}/api/events/stream`, { method: "HEAD" });
    expect(await getJson(own, "/health")).toMatchObject({ subscribers: 0 });
  });
});

describe("the Host header", () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await startAt();
  });
  afterAll(() => server[Symbol.asyncDispose]());

  test.each([
    ["none", ""],
    ["an empty one", "Host: \r\n"],
    ["one with a blank", "Host: local host\r\n"],
    ["one with a path", "Host: localhost/api\r\n"],
    ["two that differ", "Host: localhost\r\nHost: evil.test\r\n"],
    ["two that are the same", "Host: localhost\r\nHost: localhost\r\n"],
    ["bytes that are no text", "Host: \xff\xfe\r\n"],
  ])("%s → 400, and the server goes on", async (_, host) => {
    for (const line of ["GET /api/sessions", "GET /nope", "PUT /health"]) {
      const request = `${line} HTTP/1.1\r\n${host}Connection: close\r\n\r\n`;
      expect(statusOf(await sendRaw(server, Buffer.from(request, "latin1")))).toBe(400);
    }
    expect((await fetch(`${server.url}/health`)).status).toBe(200);
  });
});
