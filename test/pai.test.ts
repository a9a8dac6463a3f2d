/** The dialect of an unmodified pai-unified.ts: captured posts, and what its emitter (3.0.1) can send. */

import { afterAll, describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseEvent, type Session, type TelemetryEvent } from "../server.ts";
import type { AgentRun, ToolCall } from "./helpers.ts";
import { paiPosts } from "./fixtures.ts";
import {
  getJson,
  removeTempDirs,
  spawnServer,
  startTestServer,
  tempDir,
  type TestServer,
  waitFor,
} from "./helpers.ts";

const RECEIVED = Date.parse("2026-11-22T12:00:00Z");
const FIRST = "ses_mwrqunt8_d6lbbp";
const SECOND = "ses_mwrquqxa_hf1zxy";

afterAll(removeTempDirs);

interface Details {
  session: Session;
  tools: ToolCall[];
  agents: AgentRun[];
}

async function postTo(server: { url: string }, path: string, body: unknown): Promise<Response> {
  return fetch(server.url + path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
}

/** A server after a run of the emitter: every captured post, as it was. */
async function serverWithCaptures(): Promise<TestServer> {
  const server = await startTestServer({ now: () => RECEIVED });
  for (const { path, body } of paiPosts())
    expect((await postTo(server, path, body)).status).toBe(201);
  return server;
}

function fromPai(
  event_type: unknown,
  data: Record<string, unknown> = {},
): TelemetryEvent & { fields: Record<string, unknown> } {
  const event = parseEvent({ id: "e", session_id: "s", event_type, data }, RECEIVED);
  return { ...event, fields: JSON.parse(event.data) };
}

describe("captured posts", () => {
  test("POST /events with each → exactly the two sessions that they tell of", async () => {
    await using server = await serverWithCaptures();
    const common = {
      status: "completed",
      stale_at: null,
      is_lost: false,
      error_count: 0,
      is_excused: false,
      waiting_since: null,
      parent_session_id: null,
      info: { directory: "/home/dev/project", model: "mock" },
      now: null,
      cost: { own: null, total: null },
      tokens: { own: null, total: null },
      turn_count: 0,
      working_since: null,
    };
    expect(await getJson<unknown>(server, "/api/sessions")).toEqual({
      sessions: [
        {
          ...common,
          id: SECOND,
          started_at: "2026-11-22T11:18:56.206Z",
          last_event_at: "2026-11-22T11:18:56.446Z",
          ended_at: "2026-11-22T11:18:56.446Z",
          tool_count: 0,
          agent_count: 0,
          event_count: 3,
          worked_ms: 240,
        },
        {
          ...common,
          id: FIRST,
          started_at: "2026-11-22T11:18:52.173Z",
          last_event_at: "2026-11-22T11:18:56.067Z",
          ended_at: "2026-11-22T11:18:56.067Z",
          tool_count: 3,
          agent_count: 1,
          event_count: 17, // 16 posts, one of them a task call, which is an agent too
          worked_ms: 3_894,
        },
      ],
    });
  });

  test("POST /events with each → the tools and the one subagent of the first session", async () => {
    await using server = await serverWithCaptures();
    const { tools, agents } = await getJson<Details>(server, `/api/sessions/${FIRST}`);
    const taskArgs =
      '{"description":"look around","prompt":"Look around the repo and report","subagent_type":"general"}';
    expect(tools.map(({ tool, args, timestamp }) => [tool, args, timestamp])).toEqual([
      ["bash", '{"command":"ls -la","description":"List files"}', "2026-11-22T11:18:55.106Z"],
      ["bash", '{"command":"ls -la","description":"List files"}', "2026-11-22T11:18:55.693Z"],
      ["task", taskArgs, "2026-11-22T11:18:56.041Z"],
    ]);
    for (const call of tools) expect(call).toMatchObject({ duration_ms: null, outcome: "ok" });
    expect(agents).toEqual([
      {
        id: expect.any(Number),
        session_id: FIRST,
        kind: "agent",
        name: "general",
        subagent_type: "general",
        text: "Look around the repo and report",
        prompt: "Look around the repo and report",
        timestamp: "2026-11-22T11:18:56.041Z",
        started_at: "2026-11-22T11:18:56.041Z",
        ended_at: "2026-11-22T11:18:56.041Z",
        duration_ms: null,
        waited_ms: null,
        outcome: "ok",
        call_id: "b1e5d788-51ec-41c2-b752-d6265a88903a", // the post's id: it has no other
        child_session_id: null,
        error: null,
        tokens: null,
        cost: null,
        attributes: null,
      },
    ]);
    const second = await getJson<Details>(server, `/api/sessions/${SECOND}`);
    expect(second).toMatchObject({ tools: [], agents: [] });
  });

  test("POST /events with each → both analytics count them, averages unknown", async () => {
    await using server = await serverWithCaptures();
    const unknown = {
      avg_duration_ms: null,
      total_duration_ms: 0,
      p50_duration_ms: null,
      p95_duration_ms: null,
      waited_ms: 0,
      error_count: 0,
    };
    expect(await getJson<unknown>(server, "/api/analytics/tools?hours=1")).toEqual({
      tools: [
        { tool: "bash", count: 2, ...unknown },
        { tool: "task", count: 1, ...unknown },
      ],
    });
    expect(await getJson<unknown>(server, "/api/analytics/agents?hours=1")).toEqual({
      agents: [{ subagent_type: "general", count: 1, ...unknown }],
    });
  });

  test("every captured post again → 200 with the id first given, and nothing is counted twice", async () => {
    await using server = await serverWithCaptures();
    const before = await getJson(server, "/api/sessions");
    const ids: number[] = [];
    for (const { path, body } of paiPosts()) {
      const response = await postTo(server, path, body);
      expect(response.status).toBe(200);
      ids.push((await response.json()).id);
    }
    expect(ids).toEqual([...new Set(ids)].sort((a, b) => a - b));
    expect(await getJson(server, "/api/sessions")).toEqual(before);
    expect(await getJson(server, "/health")).toMatchObject({ events: 20 });
  });

  test("model options and headers with a key → nowhere in the answers or the files", async () => {
    await using server = await startTestServer();
    const secret = "sk-never-store-this";
    const model = {
      id: "opus",
      name: "Opus",
      providerID: "anthropic",
      options: { apiKey: secret },
      headers: { Authorization: `Bearer ${secret}` },
    };
    for (const event_type of ["session.start", "session.end", "message.user"]) {
      const post = { id: event_type, session_id: "s", event_type, data: { model, platform: "os" } };
      expect((await postTo(server, "/events", post)).status).toBe(201);
    }
    const history = await (await fetch(`${server.url}/api/events`)).text();
    expect(history).not.toContain(secret);
    expect(history).toContain('"model":"Opus"');
    for (const name of readdirSync(server.dataDir))
      expect(readFileSync(join(server.dataDir, name)).includes(secret)).toBe(false);
  });
});

describe("names", () => {
  test.each([
    ["session.start", "session_start"],
    ["session.update", "session_update"],
    ["session.end", "session_end"],
    ["session.error", "session_error"],
    ["tool.blocked", "tool_blocked"],
    ["security.block", "security_block"],
    ["security.warn", "security_warn"],
    ["message.user", "message_user"],
    ["message.assistant", "message_assistant"],
    ["rating.explicit", "rating_explicit"],
    ["rating.implicit", "rating_implicit"],
    ["voice.sent", "voice_sent"],
    ["learning.captured", "learning_captured"],
    ["isc.validated", "isc_validated"],
    ["context.loaded", "context_loaded"],
    ["session.compacted", "session_compacted"],
    ["turn.start", "turn_start"],
    ["session_start", "session_start"],
  ])("event_type %s → %s", (event_type, type) => {
    const event = fromPai(event_type, { tool: "bash", reason: "rm -rf", score: 9 });
    expect(event.type as string).toBe(type);
    expect(event.fields).toEqual({ tool: "bash", reason: "rm -rf", score: 9 });
    expect(event).toMatchObject({ client_id: "e", session_id: "s" });
    expect(event.implied).toBeUndefined();
  });

  test.each([["tool.executed"], ["tool"], [""], [null], [5], [{}]])(
    "event_type %j → 400 that names event_type",
    (event_type) => {
      expect(() => fromPai(event_type)).toThrow(/^event_type: expected one of session_start, /);
    },
  );

  test("type beside event_type → type counts, event_type is kept", () => {
    const both = { type: "message_user", event_type: "tool.execute", session_id: "s" };
    const event = parseEvent(both, RECEIVED);
    expect(event.type).toBe("message_user");
    expect(JSON.parse(event.data)).toEqual({ event_type: "tool.execute" });
  });

  test("data that is no object → 400 that names data", () => {
    const post = { session_id: "s", event_type: "tool.execute", data: ["bash"] };
    expect(() => parseEvent(post, RECEIVED)).toThrow(/^data: expected a JSON object; got an array/);
  });
});

describe("fields", () => {
  test("agent.spawn and agent.complete → one agent, of whatever order they come in", async () => {
    await using server = await startTestServer({ now: () => RECEIVED });
    const said = { task_id: "task_1", agent_type: "Engineer" };
    const post = (event_type: string, timestamp: string, data: object) =>
      postTo(server, "/events", { session_id: "s", event_type, timestamp, data });
    await post("agent.complete", "2026-11-22T11:00:05Z", { ...said, success: false });
    await post("agent.spawn", "2026-11-22T11:00:00Z", said);
    const { session, agents } = await getJson<Details>(server, "/api/sessions/s");
    expect(session).toMatchObject({ agent_count: 1, error_count: 1 });
    expect(agents).toMatchObject([
      { subagent_type: "Engineer", duration_ms: 5_000, outcome: "failed" },
    ]);
  });

  test("tool.execute → tool_use, the preview as its args", () => {
    const event = fromPai("tool.execute", {
      tool: "bash",
      args_keys: ["command"],
      args_preview: '{"command":"ls"}',
      duration_ms: 12,
      success: false,
      result_length: 0,
    });
    expect(event).toMatchObject({ type: "tool_use", name: "bash", duration_ms: 12, failed: true });
    expect(event.fields).toMatchObject({ args: '{"command":"ls"}', result_length: 0 });
    expect(event.fields).not.toHaveProperty("args_preview");
  });

  test("agent.spawn → agent_spawn, agent_type and task_id under our names", () => {
    const event = fromPai("agent.spawn", {
      task_id: "task_1",
      agent_type: "Engineer",
      prompt_length: 120,
    });
    expect(event).toMatchObject({ type: "agent_spawn", name: "Engineer", call_id: "task_1" });
    expect(event.fields).toEqual({
      subagent_type: "Engineer",
      call_id: "task_1",
      prompt_length: 120,
    });
  });

  test("agent.complete → agent_complete with its duration and failure", () => {
    const event = fromPai("agent.complete", {
      task_id: "task_1",
      agent_type: "Engineer",
      duration_ms: 5000,
      success: false,
      error: "aborted",
    });
    expect(event).toMatchObject({
      type: "agent_complete",
      name: "Engineer",
      call_id: "task_1",
      duration_ms: 5000,
      failed: true,
    });
  });

  test.each([["agent.spawn"], ["agent.complete"]])(
    "%s without agent_type, as the emitter sends it → unknown",
    (event_type) => {
      expect(fromPai(event_type, { prompt_length: 5 }).name).toBe("unknown");
    },
  );

  test("session.start → its working directory, and of its model only the name", () => {
    const event = fromPai("session.start", {
      model: { id: "opus-4", name: "Opus 4", api: { url: "https://…" }, headers: {} },
      working_directory: "/home/dev",
      platform: "linux",
    });
    expect(event.facts).toEqual({ directory: "/home/dev", model: "Opus 4" });
    expect(event.fields).toEqual({ directory: "/home/dev", model: "Opus 4", platform: "linux" });
  });

  test.each([
    [{ id: "opus-4" }, "opus-4"],
    ["opus-4", "opus-4"],
    [{ providerID: "anthropic" }, undefined],
    [null, undefined],
  ])("session.start with model %j → %j", (model, expected) => {
    expect(fromPai("session.start", { model }).facts?.model).toBe(expected);
  });

  test("session.end with duration_ms → duration_seconds; its eventType and timestamp are data", () => {
    const event = fromPai("session.end", {
      duration_ms: 2500,
      eventType: "session.deleted",
      timestamp: "2026-11-22T11:00:00Z",
    });
    expect(event).toMatchObject({ type: "session_end", duration_ms: 2500, timestamp: RECEIVED });
    expect(event.fields).toMatchObject({
      duration_seconds: 2.5,
      eventType: "session.deleted",
      data_timestamp: "2026-11-22T11:00:00Z",
    });
  });
});

describe("task calls", () => {
  test.each(["task", "Task", "TASK", "mcp_task", "Mcp_Task"])(
    "tool.execute with tool %s → a tool and an agent",
    (tool) => {
      const event = fromPai("tool.execute", { tool, call_id: "c", duration_ms: 9, success: false });
      expect(event).toMatchObject({ type: "tool_use", name: tool });
      expect(event.implied).toMatchObject({
        type: "agent_spawn",
        client_id: null,
        session_id: "s",
        timestamp: event.timestamp,
        call_id: "c",
        duration_ms: 9,
        failed: true,
      });
    },
  );

  test.each(["bash", "tasks", "my_task", "mcp_tasks", "multitask"])(
    "tool.execute with tool %s → no agent",
    (tool) => {
      expect(fromPai("tool.execute", { tool }).implied).toBeUndefined();
    },
  );

  test("a tool_use of our own vocabulary with tool task → no agent: its spawn is its own event", () => {
    const post = { type: "tool_use", session_id: "s", data: { tool: "task", args: "{}" } };
    expect(parseEvent(post, RECEIVED).implied).toBeUndefined();
  });

  test.each<[preview: string | undefined, type: string, prompt: string | null]>([
    ['{"subagent_type":"Engineer","prompt":"Build it"}', "Engineer", "Build it"],
    ['{"prompt":"Build it","subagent_type":"Engineer"}', "Engineer", "Build it"],
    ['{ "subagent_type" : "Engineer" , "prompt" : "Build it" }', "Engineer", "Build it"],
    // Cut short: in the prompt, in an escape, in a \u escape, in a key, in the type, at once.
    ['{"subagent_type":"Engineer","prompt":"Build', "Engineer", "Build"],
    ['{"subagent_type":"Engineer","prompt":"one\\ntwo\\', "Engineer", "one\ntwo"],
    ['{"subagent_type":"Engineer","prompt":"caf\\u00', "Engineer", "caf"],
    ['{"subagent_type":"Engineer","prompt":"', "Engineer", ""],
    ['{"subagent_type":"Engineer","pro', "Engineer", null],
    ['{"subagent_type":"Engineer"', "Engineer", null],
    ['{"prompt":"Build it","subagent_type":"Engin', "unknown", "Build it"],
    ['{"prompt":"Build it","subagent_ty', "unknown", "Build it"],
    ["{", "unknown", null],
    // Escapes, and a prompt that looks like JSON.
    ['{"subagent_type":"caf\\u00e9"}', "café", null],
    ['{"prompt":"say \\"hi\\"","subagent_type":"A"}', "A", 'say "hi"'],
    [
      '{"prompt":"{\\"subagent_type\\":\\"Fake\\"}","subagent_type":"Real"}',
      "Real",
      '{"subagent_type":"Fake"}',
    ],
    ['{"prompt":"{\\"subagent_type\\":\\"Fake\\"', "unknown", '{"subagent_type":"Fake"'],
    // No type to read.
    ['{"subagent_type":""}', "unknown", null],
    ['{"subagent_type":null,"prompt":5}', "unknown", null],
    ["Engineer", "unknown", null],
    ["", "unknown", null],
    [undefined, "unknown", null],
  ])("preview %j → subagent_type %j, prompt %j", (args_preview, type, prompt) => {
    const { implied } = fromPai("tool.execute", { tool: "task", args_preview });
    expect(implied?.name).toBe(type);
    expect(JSON.parse(implied?.data ?? "null")).toMatchObject({ subagent_type: type, prompt });
  });

  test.each<[said: string, call_id: string, data: Record<string, unknown>]>([
    ["neither", "e", {}],
    ["a task_id", "t", { task_id: "t" }],
    ["a call_id", "c", { call_id: "c" }],
  ])("a task call that says %s → the call_id of it and of its agent is %j", (_, call_id, data) => {
    const event = fromPai("tool.execute", { tool: "task", ...data });
    expect(event).toMatchObject({ call_id, fields: { call_id }, implied: { call_id } });
  });

  test("another call without task_id → no call_id", () => {
    expect(fromPai("tool.execute", { tool: "bash" }).call_id).toBeNull();
  });

  test.each<[id: string | null, data: Record<string, unknown>]>([
    ["e", {}],
    ["e", { call_id: "c" }],
    [null, { call_id: "c" }],
  ])(
    "a task call with id %j and %j that failed → a tool, an agent, one error",
    async (id, data) => {
      await using server = await startTestServer({ now: () => RECEIVED });
      const task = { tool: "task", success: false, duration_ms: 9, ...data };
      const post = { id, session_id: "s", event_type: "tool.execute", data: task };
      expect((await postTo(server, "/events", post)).status).toBe(201);
      expect(await getJson(server, "/api/sessions/s")).toMatchObject({
        session: { tool_count: 1, agent_count: 1, error_count: 1 },
      });
    },
  );

  test("a batch whose later event is bad → neither the task call nor its agent is stored", async () => {
    await using server = await startTestServer();
    const task = { session_id: "s", event_type: "tool.execute", data: { tool: "task" } };
    expect((await postTo(server, "/events", [task, { ...task, data: {} }])).status).toBe(400);
    expect(await getJson(server, "/health")).toMatchObject({ events: 0 });
    expect((await postTo(server, "/events", [task, task])).status).toBe(201);
    expect(await getJson(server, "/api/sessions/s")).toMatchObject({
      session: { tool_count: 2, agent_count: 2 },
    });
  });
});

describe("the port that the emitter posts to where nothing else is said", () => {
  const occupy = () =>
    Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response("another program") });
  const start = (port: number) =>
    spawnServer({
      dataDir: tempDir(),
      env: { PAI_OBSERVABILITY_ENABLED: "true", PAI_OBSERVABILITY_PORT: String(port) },
    });

  test("takes the captured posts, and says its health; nothing else is there", async () => {
    const other = occupy();
    const port = other.port ?? 0;
    await other.stop(true);
    await using server = await start(port);
    const emitter = { url: `http://localhost:${port}` };
    for (const { path, body } of paiPosts())
      expect((await postTo(emitter, path, body)).status).toBe(201);
    const health = await getJson<{ events: number }>(server, "/health");
    expect(health.events).toBeGreaterThan(paiPosts().length);
    expect(await getJson(emitter, "/health")).toMatchObject({ events: health.events });
    for (const path of ["/", "/api/sessions", "/api/events", "/plugin/observability.ts"])
      expect([path, (await fetch(emitter.url + path)).status]).toEqual([path, 404]);
    expect((await postTo(emitter, "/api/events", {})).status).toBe(404);
    expect((await server.end("SIGTERM")).exitCode).toBe(0);
  });

  test("is another program's → a line in the log, and the server runs", async () => {
    const other = occupy();
    await using server = await start(other.port ?? 0);
    await waitFor(
      () => server.output().includes(`warn PAI_OBSERVABILITY_PORT=${other.port}: `),
      "the line in the log",
    );
    expect(await getJson(server, "/health")).toMatchObject({ status: "ok" });
    await other.stop(true);
  });
});
