/**
 * What is counted once, who waits, what survives retention and a restored backup: figures that were
 * wrong once, or could have been without anybody noticing. The server runs as a process of its own.
 */

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { cpSync, rmSync } from "node:fs";
import type { PostedEvent } from "./fixtures.ts";
import {
  getJson,
  makeTempDir,
  openStream,
  postBody,
  postEvent,
  removeTempDirs,
  type ServerProcess,
  spawnServer,
  startTestServer,
  tempDir,
  type TestStream,
  waitFor,
} from "./helpers.ts";

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;
const KEEP_ALL = { RETENTION_HOURS: "1000000" };

afterEach(removeTempDirs);

interface SessionRow {
  id: string;
  status: string;
  ended_at: string | null;
  waiting_since: string | null;
  event_count: number;
  tool_count: number;
  agent_count: number;
  error_count: number;
  info: Record<string, unknown>;
}

interface Usage {
  count: number;
  avg_duration_ms: number | null;
  total_duration_ms: number;
  error_count: number;
}

/** For the tests that need no server of their own: each has a session, and a name to count. */
let shared: ServerProcess;

beforeAll(async () => {
  shared = await spawnServer({ dataDir: makeTempDir() });
});

afterAll(async () => {
  await shared[Symbol.asyncDispose]();
  rmSync(shared.dataDir, { recursive: true });
});

const ago = (ms: number) => new Date(Date.now() - ms).toISOString();

/** Posts events of `session_id`, oldest first where the times say so: [how long ago, type, data]. */
async function post(
  session_id: string,
  events: [agoMs: number, type: string, data?: Record<string, unknown>][],
  server: { url: string } = shared,
): Promise<number[]> {
  const posted = events.map(([ms, type, data = {}]): PostedEvent => ({
    type,
    session_id,
    timestamp: ago(ms),
    data,
  }));
  const { status, body } = await postEvent(server, posted);
  expect([status, body.error]).toEqual([201, undefined]);
  return body.ids ?? [];
}

async function sessionOf(id: string, server: { url: string } = shared): Promise<SessionRow> {
  const { session } = await getJson<{ session: SessionRow }>(server, `/api/sessions/${id}`);
  return session;
}

/** The figures of a tool or an agent over the last `hours`; undefined where it has none. */
async function usageOf(
  kind: "tools" | "agents",
  name: string,
  { server = shared, hours = 24 }: { server?: { url: string }; hours?: number } = {},
): Promise<Usage | undefined> {
  const path = `/api/analytics/${kind}?hours=${hours}`;
  const answer = await getJson<Record<string, Usage[]>>(server, path);
  return answer[kind]?.find((row) => Object.values(row).includes(name));
}

describe("who waits", () => {
  test("two questions open, one answered → the session waits for the other, then for none", async () => {
    const asked = ago(4 * MINUTE_MS);
    await postEvent(shared, {
      type: "input_requested",
      session_id: "two-questions",
      timestamp: asked,
      data: { request_id: "q1", kind: "question" },
    });
    await post("two-questions", [
      [3 * MINUTE_MS, "input_requested", { request_id: "q2", kind: "permission" }],
      [2 * MINUTE_MS, "input_resolved", { request_id: "q2", reply: "once" }],
    ]);
    expect((await sessionOf("two-questions")).waiting_since).toBe(asked);
    await post("two-questions", [[MINUTE_MS, "input_resolved", { request_id: "q1" }]]);
    expect((await sessionOf("two-questions")).waiting_since).toBeNull();
  });

  test("an answer that arrives before its question → nobody waits", async () => {
    await post("answered-first", [
      [2 * MINUTE_MS, "input_resolved", { request_id: "q1" }],
      [3 * MINUTE_MS, "input_requested", { request_id: "q1", kind: "question" }],
    ]);
    expect((await sessionOf("answered-first")).waiting_since).toBeNull();
  });

  test("a question of a session that is dead for days → stale, and nobody waits", async () => {
    await post("dead", [[3 * DAY_MS, "input_requested", { request_id: "q1", kind: "question" }]]);
    expect(await sessionOf("dead")).toMatchObject({ status: "stale", waiting_since: null });
  });

  test("a question of a turn that has ended → nobody waits", async () => {
    await post("ended", [
      [3 * MINUTE_MS, "input_requested", { request_id: "q1", kind: "question" }],
      [2 * MINUTE_MS, "session_end"],
      [MINUTE_MS, "tool_use", { tool: "read" }], // it goes on
    ]);
    expect(await sessionOf("ended")).toMatchObject({ status: "active", waiting_since: null });
  });

  test("?status=waiting → finds a session behind 1,100 newer ones, and that alone", async () => {
    const dataDir = tempDir();
    await using server = await spawnServer({ dataDir });
    const question = { request_id: "q1", kind: "question" };
    await post("hidden", [[30 * MINUTE_MS, "input_requested", question]], server);
    await post("over", [[20 * MINUTE_MS, "session_end"]], server);
    await post("silent", [[2 * DAY_MS, "tool_use", { tool: "read" }]], server);
    const newer = Array.from({ length: 1_100 }, (_, n) => ({
      type: "session_start",
      session_id: `newer-${n}`,
    }));
    expect((await postEvent(server, newer)).status).toBe(201);
    const list = async (query: string) => {
      const path = `/api/sessions?${query}`;
      return (await getJson<{ sessions: SessionRow[] }>(server, path)).sessions.map(({ id }) => id);
    };
    expect(await list("limit=1000")).not.toContain("hidden");
    expect(await list("status=waiting")).toEqual(["hidden"]);
    expect(await list("status=completed")).toEqual(["over"]);
    expect(await list("status=stale")).toEqual(["silent"]);
    expect(await list("status=active&limit=1000")).toHaveLength(1_000);
    const wrong = await fetch(`${server.url}/api/sessions?status=asleep`);
    expect(wrong.status).toBe(400);
  });
});

describe("what counts once", () => {
  const FAILED = { success: false, error: "no model" };

  test("an agent whose spawn and completion both say how long it took, and that it failed", async () => {
    const said = { subagent_type: "said-twice", call_id: "c1", duration_ms: 5_000, ...FAILED };
    await post("said-twice", [
      [2 * MINUTE_MS, "agent_spawn", said],
      [MINUTE_MS, "agent_complete", said],
    ]);
    expect(await usageOf("agents", "said-twice")).toMatchObject({
      count: 1,
      avg_duration_ms: 5_000,
      total_duration_ms: 5_000,
      error_count: 1,
    });
    expect(await sessionOf("said-twice")).toMatchObject({ agent_count: 1, error_count: 1 });
  });

  test("a completion that is repeated without an id", async () => {
    const call = { subagent_type: "repeated", call_id: "c1" };
    const completion = { ...call, duration_ms: 7_000, ...FAILED };
    await post("repeated", [[3 * MINUTE_MS, "agent_spawn", call]]);
    for (let n = 0; n < 3; n++) await post("repeated", [[MINUTE_MS, "agent_complete", completion]]);
    expect(await usageOf("agents", "repeated")).toMatchObject({
      count: 1,
      avg_duration_ms: 7_000,
      total_duration_ms: 7_000,
      error_count: 1,
    });
    expect(await sessionOf("repeated")).toMatchObject({ agent_count: 1, error_count: 1 });
  });

  test("a tool call that is repeated without an id", async () => {
    const call = { tool: "repeated-tool", call_id: "c1", duration_ms: 30, ...FAILED };
    for (let n = 0; n < 3; n++) await post("repeated-tool", [[MINUTE_MS, "tool_use", call]]);
    expect(await usageOf("tools", "repeated-tool")).toMatchObject({
      count: 1,
      total_duration_ms: 30,
      error_count: 1,
    });
    expect(await sessionOf("repeated-tool")).toMatchObject({ tool_count: 1, error_count: 1 });
  });

  test("a subagent that fails: one error, not also its call's and its child session's", async () => {
    await post("parent", [
      [
        4 * MINUTE_MS,
        "agent_spawn",
        { subagent_type: "failing", call_id: "c1", child_session_id: "child" },
      ],
      [2 * MINUTE_MS, "tool_use", { tool: "task", call_id: "c1", ...FAILED }],
      [2 * MINUTE_MS, "agent_complete", { call_id: "c1", ...FAILED }],
    ]);
    await post("child", [[3 * MINUTE_MS, "session_error", { error: "no model" }]]);
    expect(await sessionOf("parent")).toMatchObject({ error_count: 1 });
    expect(await sessionOf("child")).toMatchObject({ error_count: 0, is_excused: true });
  });

  test("a subagent whose model fails: one error, its agent's, in whatever order its events come", async () => {
    await using server = await spawnServer({ dataDir: tempDir() });
    const told: [session: string, type: string, data: object][] = [
      ["parent", "agent_spawn", { subagent_type: "failing", call_id: "c1" }],
      ["parent", "agent_complete", { call_id: "c1", ...FAILED }],
      ["child", "model_request", { call_id: "m1", model: "mock" }],
      ["child", "model_response", { call_id: "m1", model: "mock", ...FAILED }],
    ];
    const orders = permutations(told);
    for (const [index, order] of orders.entries()) {
      for (const [session, type, data] of order) {
        const child = type === "agent_spawn" ? { child_session_id: `child-${index}` } : {};
        await post(`${session}-${index}`, [[MINUTE_MS, type, { ...data, ...child }]], server);
      }
      expect(await sessionOf(`parent-${index}`, server)).toMatchObject({
        error_count: 1,
        is_excused: false,
      });
      expect(await sessionOf(`child-${index}`, server)).toMatchObject({
        error_count: 0,
        is_excused: true,
      });
    }
    const overview = await getJson<{ errors_last_hour: number }>(server, "/api/overview");
    expect(overview.errors_last_hour).toBe(orders.length);
    // Without an agent that failed it is the session's.
    await post("child-of-none", [[MINUTE_MS, "model_response", { call_id: "m1", ...FAILED }]]);
    expect(await sessionOf("child-of-none")).toMatchObject({ error_count: 1, is_excused: false });
  });

  test("the figures of an agent are the same in whatever order its events come, and none is a maximum", async () => {
    const events: [agoMs: number, type: string, name: string | null, data: object][] = [
      [9 * MINUTE_MS, "agent_spawn", "first", {}],
      [8 * MINUTE_MS, "agent_spawn", "second", { duration_ms: 4_000 }],
      [7 * MINUTE_MS, "agent_complete", null, {}],
      [6 * MINUTE_MS, "agent_complete", null, { duration_ms: 2_000, success: false }],
    ];
    const orders = permutations(events);
    for (const [index, order] of orders.entries())
      for (const [ms, type, name, data] of order) {
        const subagent_type = name === null ? {} : { subagent_type: `${name}-${index}` };
        const call = { ...subagent_type, call_id: "c1", ...data };
        await post(`order-${index}`, [[ms, type, call]]);
      }
    const { agents } = await getJson<{ agents: (Usage & { subagent_type: string })[] }>(
      shared,
      "/api/analytics/agents",
    );
    const figures = orders.map((_, index) =>
      agents
        .filter(({ subagent_type }) => /^(first|second)-/.test(subagent_type))
        .filter(({ subagent_type }) => subagent_type.endsWith(`-${index}`))
        .map((row) => ({ ...row, subagent_type: row.subagent_type.replace(/\d+$/, "") })),
    );
    expect(figures[0]).toEqual([
      expect.objectContaining({ subagent_type: "first-", count: 1, avg_duration_ms: 2_000 }),
    ]);
    expect(figures).toEqual(figures.map(() => figures[0] ?? []));
    expect(Object.keys(figures[0]?.[0] ?? {}).sort()).toEqual([
      "avg_duration_ms",
      "count",
      "error_count",
      "p50_duration_ms",
      "p95_duration_ms",
      "subagent_type",
      "total_duration_ms",
      "waited_ms",
    ]);
  });

  test("a task's figures are without its agent's time, in whatever order they come, and go with its session", async () => {
    await using server = await startTestServer();
    const events: [agoMs: number, type: string, data: object][] = [
      [90_000, "tool_start", { tool: "task" }],
      [89_000, "agent_spawn", { subagent_type: "general" }],
      [80_000, "agent_complete", { duration_ms: 9_000 }],
      [79_900, "tool_use", { tool: "task", duration_ms: 10_100, waited_ms: 100 }],
    ];
    const orders = permutations(events);
    const figures = (path: string) => getJson<object>(server, `/api/analytics/${path}`);
    const sums = { count: 1, avg_duration_ms: 1_100, total_duration_ms: 1_100, waited_ms: 100 };
    for (const [index, order] of [...orders, ...orders].entries()) {
      const posts = order.map(
        ([ms, type, data]) => [ms, type, { call_id: "c1", ...data }] as const,
      );
      const batches = index < orders.length ? [posts] : posts.map((one) => [one]);
      for (const batch of batches)
        await post(
          "s",
          batch.map((one) => [...one]),
          server,
        );
      const told = { tools: [{ tool: "task", ...sums }] };
      expect(await figures("tools")).toMatchObject(told);
      expect(await figures("agents")).toMatchObject({ agents: [{ total_duration_ms: 9_000 }] });
      await fetch(`${server.url}/api/sessions/s`, { method: "DELETE" });
      expect(await figures("tools")).toEqual({ tools: [] });
    }
    // In the background a call is over before its agent.
    await post(
      "s",
      [[9_000, "agent_spawn", { call_id: "c2", duration_ms: 5_000, subagent_type: "g" }]],
      server,
    );
    await post(
      "s",
      [[9_000, "tool_use", { call_id: "c2", duration_ms: 20, tool: "task" }]],
      server,
    );
    expect(await figures("tools")).toMatchObject({ tools: [{ count: 1, total_duration_ms: 0 }] });
  }, 20_000);
});

function permutations<T>(items: T[]): T[][] {
  if (items.length <= 1) return [items];
  return items.flatMap((item, at) =>
    permutations(items.toSpliced(at, 1)).map((rest) => [item, ...rest]),
  );
}

describe("how long, and whether it failed", () => {
  test("an agent without a call_id → its length is in its session and in the analytics", async () => {
    await post("no-call-id", [
      [9 * MINUTE_MS, "agent_spawn", { subagent_type: "no-call-id" }],
      [7 * MINUTE_MS, "agent_complete", { subagent_type: "no-call-id" }],
    ]);
    const { agents } = await getJson<{ agents: { duration_ms: number }[] }>(
      shared,
      "/api/sessions/no-call-id",
    );
    const [agent] = agents;
    // The two times are read a moment after each other.
    expect(agent?.duration_ms).toBeWithin(2 * MINUTE_MS - 50, 2 * MINUTE_MS + 50);
    expect(await usageOf("agents", "no-call-id")).toMatchObject({
      count: 1,
      avg_duration_ms: agent?.duration_ms ?? -1,
      total_duration_ms: agent?.duration_ms ?? -1,
    });
  });

  test("error: false → no failure, anywhere", async () => {
    await post("error-false", [
      [MINUTE_MS, "tool_use", { tool: "error-false", call_id: "c1", error: false }],
    ]);
    expect(await sessionOf("error-false")).toMatchObject({ error_count: 0 });
    expect(await usageOf("tools", "error-false")).toMatchObject({ count: 1, error_count: 0 });
    const { spans } = await getJson<{ spans: object[] }>(
      shared,
      "/api/spans?sessionId=error-false",
    );
    expect(spans).toEqual([expect.objectContaining({ outcome: "ok", error: null })]);
  });

  test("a session_update right after the end of a turn → the session stays completed", async () => {
    await post("updated", [
      [5 * MINUTE_MS, "session_start"],
      [3 * MINUTE_MS, "session_end"],
      [2 * MINUTE_MS, "session_update", { title: "Done" }],
    ]);
    const session = await sessionOf("updated");
    expect(session).toMatchObject({ status: "completed", info: { title: "Done" } });
    expect(session.ended_at).not.toBeNull();
  });
});

describe("ids and facts", () => {
  test.each([".", ".."])(
    "session_id %p → 400, nothing is stored: no URL can name it",
    async (id) => {
      const { status, body } = await postEvent(shared, { type: "session_start", session_id: id });
      expect(status).toBe(400);
      expect(body.error).toContain("session_id");
      const { sessions } = await getJson<{ sessions: SessionRow[] }>(
        shared,
        "/api/sessions?limit=1000",
      );
      expect(sessions.map((session) => session.id)).not.toContain(id);
    },
  );

  test("data with id and data_id, or with several such names → the event keeps each value", async () => {
    const data = {
      id: "inner id",
      data_id: "inner data_id",
      data_data_id: "inner data_data_id",
      type: "inner type",
      data_type: "inner data_type",
    };
    await postEvent(shared, { type: "message_user", session_id: "names", data });
    const { events } = await getJson<{ events: Record<string, unknown>[] }>(
      shared,
      "/api/events?sessionId=names",
    );
    expect(events).toHaveLength(1);
    expect(events[0]).toMatchObject({ type: "message_user", session_id: "names" });
    expect(Object.values(events[0] ?? {})).toEqual(expect.arrayContaining(Object.values(data)));
  });

  test("long facts → strings and lists are cut, an object that is too long isn't kept", async () => {
    const LIMIT = 4_096;
    const todos = Array.from({ length: 200 }, (_, n) => ({
      content: `step ${n} ${"x".repeat(100)}`,
      status: "pending",
    }));
    await post("long-facts", [
      [MINUTE_MS, "session_start", { title: "t".repeat(10_000), directory: "d".repeat(LIMIT) }],
      [MINUTE_MS, "session_update", { todos, model: { name: "m".repeat(10_000) } }],
    ]);
    const { info } = await sessionOf("long-facts");
    expect(info.title).toBe("t".repeat(LIMIT));
    expect(info.directory).toBe("d".repeat(LIMIT));
    expect(info).not.toHaveProperty("model");
    const kept = Array.isArray(info.todos) ? info.todos : [];
    expect(kept).toEqual(todos.slice(0, kept.length));
    expect(JSON.stringify(kept).length).toBeLessThanOrEqual(LIMIT);
    expect(JSON.stringify(todos.slice(0, kept.length + 1)).length).toBeGreaterThan(LIMIT);
  });

  test("a retry at a time that is cut, a wait of a long kind → rows all the same, and short ones", async () => {
    const retry_at = `2030-01-01T00:00:00.${"0".repeat(5_000)}Z`;
    const kind = "k".repeat(900_000);
    await post("long-time", [
      [MINUTE_MS, "input_requested", { request_id: "r", kind }],
      [MINUTE_MS - 1, "retry", { attempt: 1, retry_at }],
    ]);
    expect(await sessionOf("long-time")).toMatchObject({ now: { kind: "retry", retry_at: null } });
    const { spans } = await getJson<{ spans: { name: string }[] }>(
      shared,
      "/api/spans?sessionId=long-time",
    );
    expect(spans.map(({ name }) => name)).toEqual(["k".repeat(300)]);
  });
});

/** That of what is stored the stream brings the events of these ids, and no reset; then closes it. */
async function expectFrom(stream: TestStream, ids: number[]): Promise<void> {
  const stored = () => stream.events().filter(({ id }) => id !== undefined);
  await waitFor(() => stored().length >= ids.length, "what came since");
  expect(stored().map(({ event, id }) => [event, Number(id)])).toEqual(
    ids.map((id) => ["message_user", id]),
  );
  stream.close();
}

/** Fills a server that keeps all, and starts another on the same data with `env`. */
async function restarted(
  started: AsyncDisposableStack,
  fill: (server: ServerProcess) => Promise<unknown>,
  env: Record<string, string>,
): Promise<ServerProcess> {
  const dataDir = tempDir();
  await using before = await spawnServer({ dataDir, env: KEEP_ALL });
  await fill(before);
  expect((await before.end("SIGTERM")).exitCode).toBe(0);
  return started.use(await spawnServer({ dataDir, env }));
}

describe("retention", () => {
  test("a spawn that comes after its completion's figures were pruned → takes nothing from those that are kept", async () => {
    await using started = new AsyncDisposableStack();
    const server = await restarted(
      started,
      (before) =>
        post(
          "s1",
          [
            [10 * HOUR_MS, "agent_spawn", { subagent_type: "Late", call_id: "c1" }],
            [8 * HOUR_MS, "agent_complete", { call_id: "c1" }],
            [0, "tool_use", { tool: "read" }],
          ],
          before,
        ),
      { RETENTION_HOURS: "2" },
    );
    await waitFor(
      async () => (await usageOf("agents", "Late", { server })) === undefined,
      "the figures to be pruned",
    );
    const late = { subagent_type: "Late", call_id: "c1", duration_ms: 5_000 };
    const another = { subagent_type: "Late", call_id: "c2", duration_ms: 1_000 };
    await post(
      "s1",
      [
        [11 * HOUR_MS, "agent_spawn", late],
        [0, "agent_spawn", another],
      ],
      server,
    );
    expect(await usageOf("agents", "Late", { server })).toMatchObject({
      count: 1,
      avg_duration_ms: 1_000,
      total_duration_ms: 1_000,
      error_count: 0,
    });
    expect(await sessionOf("s1", server)).toMatchObject({ agent_count: 2, error_count: 0 });
  });

  test("figures of the hour in which the limit lies → are kept as long as what they count", async () => {
    const hour = Math.floor(Date.now() / HOUR_MS) * HOUR_MS;
    const cutoff = hour - 2 * HOUR_MS + 20 * MINUTE_MS;
    const sinceMs = (time: number) => Date.now() - time;
    await using started = new AsyncDisposableStack();
    const server = await restarted(
      started,
      (before) =>
        post(
          "s1",
          [
            [sinceMs(cutoff) + 8 * HOUR_MS, "tool_use", { tool: "ancient" }],
            [sinceMs(cutoff) - 10 * MINUTE_MS, "tool_use", { tool: "recent", duration_ms: 5 }],
            [0, "tool_use", { tool: "read" }],
          ],
          before,
        ),
      { RETENTION_HOURS: String((Date.now() - cutoff) / HOUR_MS) },
    );
    await waitFor(
      async () => (await usageOf("tools", "ancient", { server })) === undefined,
      "the figures of before to be pruned",
    );
    expect(await usageOf("tools", "recent", { server })).toMatchObject({
      count: 1,
      total_duration_ms: 5,
    });
  });

  test("of one late event, older than all that is kept → a client that returns resumes without a reset", async () => {
    await using started = new AsyncDisposableStack();
    let kept: number[] = [];
    const fill = async (before: ServerProcess) => {
      kept = await post("s1", Array(3).fill([HOUR_MS, "message_user"]), before);
      await post("late", [[30 * DAY_MS, "message_user"]], before);
      kept.push(...(await post("s1", Array(3).fill([0, "message_user"]), before)));
    };
    const server = await restarted(started, fill, {});
    await waitFor(
      async () => (await getJson<{ events: number }>(server, "/health")).events === 6,
      "the retention",
    );
    for (const filter of ["", "&sessionId=s1"])
      for (const at of [0, 2]) {
        const stream = await openStream(server, `?lastEventId=${kept[at]}${filter}`);
        await expectFrom(stream, kept.slice(at + 1));
      }
  });
});

test("a backup that is restored → a client of before it resumes exactly, one of after it is told to reset", async () => {
  const dataDir = tempDir();
  const backup = tempDir();
  await using started = new AsyncDisposableStack();
  const start = async () => started.use(await spawnServer({ dataDir }));
  const notes = (server: ServerProcess, count: number) =>
    post("s1", Array(count).fill([0, "message_user"]), server);

  let server = await start();
  const before = await notes(server, 5);
  await server.end("SIGTERM");
  cpSync(dataDir, backup, { recursive: true });
  server = await start();
  const lost = await notes(server, 5);
  await server.end("SIGTERM");
  rmSync(dataDir, { recursive: true });
  cpSync(backup, dataDir, { recursive: true });
  server = await start();

  const cursors = [lost[0], lost[2], lost.at(-1)];
  const expectResets = async () => {
    for (const cursor of cursors) {
      const stream = await openStream(server, "", { "Last-Event-ID": String(cursor) });
      const [first] = await stream.waitForEvents(1);
      expect([cursor, first?.event]).toEqual([cursor, "reset"]);
      stream.close();
    }
  };
  await expectResets();
  const after = await notes(server, 8);
  expect(after.filter((id) => lost.includes(id))).toEqual([]);
  await expectResets();
  await server.end("SIGTERM");
  server = await start(); // as any other start
  await expectResets();

  const all = [...before, ...after];
  for (const at of [0, 2, 4, 6, 12]) {
    const stream = await openStream(server, "", { "Last-Event-ID": String(all[at]) });
    await expectFrom(stream, all.slice(at + 1));
  }
}, 15_000);

test("numbers of tokens that can be none → not known, and the sums of the others stay exact", async () => {
  await using server = await spawnServer({ dataDir: tempDir(), env: KEEP_ALL });
  const absurd = { tokens: 9e18 };
  await postEvent(server, [
    { type: "session_start", session_id: "parent", data: absurd },
    {
      type: "session_start",
      session_id: "child",
      data: { ...absurd, parent_session_id: "parent" },
    },
  ]);
  expect(await sessionOf("parent", server)).toMatchObject({ tokens: { own: null, total: null } });
  let second = 1_700_000_000;
  const answer = (call_id: string, tokens: string) =>
    `{"type":"model_response","session_id":"s","timestamp":${second++},"data":{"call_id":"${call_id}","tokens":${tokens}}}`;
  for (const body of [
    answer("one", "5"),
    answer("four", JSON.stringify({ ...Array(20_000).fill(1e12) })), // their sum can be none, too
    answer("four", "1"),
    answer("five", "9e14"), // of ten such the sum isn't exact
    answer("two", "1e300"),
    answer("two", "10"),
    answer("three", '{"input":1e999}'),
    answer("three", '{"input":-3,"output":7}'),
  ])
    expect((await postBody(server, body)).status).toBe(201);
  expect(await sessionOf("s", server)).toMatchObject({ tokens: { own: 23 } });
});

test("ids with a NUL in them → the calls of two sessions stay apart", async () => {
  await post("a\0x", [[MINUTE_MS, "tool_use", { tool: "nul", call_id: "k" }]]);
  await post("a", [[MINUTE_MS, "tool_use", { tool: "nul", call_id: "x\0k" }]]);
  expect(await usageOf("tools", "nul")).toMatchObject({ count: 2 });
});
