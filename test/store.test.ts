/** The log, its folds, and the batch that feeds them: on a real database file, without a server. */

import { Database } from "bun:sqlite";
import { afterEach, describe, expect, jest, spyOn, test } from "bun:test";
import { rmSync, statSync } from "node:fs";
import { join } from "node:path";
import {
  type AgentRun,
  createHub,
  createIngest,
  type EventFilter,
  openStore,
  parseEvent,
  type Receipt,
  type Store,
  type StoredEvent,
  type ToolCall,
} from "../server.ts";
import { paiPosts, type PostedEvent, seededRandom, sessionEvents, shuffled } from "./fixtures.ts";
import {
  getJson,
  makeTempDir,
  openTestStore,
  postEvent,
  startTestServer,
  type TestServer,
  type TestStore,
  waitFor,
} from "./helpers.ts";

const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;

/** The time of the first event in most tests: a whole hour. */
const START = Date.parse("2026-01-01T12:00:00Z");
/** Later than every event: when they are received. */
const RECEIVED = Date.parse("2026-12-01T00:00:00Z");

const ALL: EventFilter = { after: null, before: null, sessionId: null, type: null };

type Post = Omit<PostedEvent, "type"> & { type?: string };

function parsePosts(posts: Post[]) {
  return posts.map((post) => parseEvent(post, RECEIVED));
}

/** Stores `posts` in one transaction, as one post of a batch. */
function append(store: Pick<Store, "append">, posts: Post[]): Receipt {
  return store.append([parsePosts(posts)]).receipts[0] as Receipt;
}

/** An event of session "s", `minutes` after START. */
function at(minutes: number, type: string, data: Record<string, unknown> = {}): PostedEvent {
  return { type, session_id: "s", timestamp: START + minutes * MINUTE, data };
}

function history(store: Store): StoredEvent[] {
  return store.page(ALL, "oldest first", 100_000, Infinity).events;
}

async function agentsOf(store: Store): Promise<AgentRun[]> {
  return (await store.findSession("s", RECEIVED))?.agents ?? [];
}

/** A second connection to the database: another process, as far as SQLite is concerned. */
function openBeside({ dataDir }: { dataDir: string }): Database {
  return new Database(join(dataDir, "observability.db"), { readwrite: true });
}

/** Makes SQLite itself refuse every event of the session "poison", until it is undone. */
function poison(store: TestStore): Disposable {
  const beside = openBeside(store);
  beside.run(
    `CREATE TRIGGER poison BEFORE INSERT ON events WHEN NEW.session_id = 'poison'
     BEGIN SELECT RAISE(ABORT, 'poisoned'); END`,
  );
  return {
    [Symbol.dispose]() {
      beside.run("DROP TRIGGER poison");
      beside.close();
    },
  };
}

describe("append", () => {
  test("what is acknowledged is on disk: every commit waits for it", () => {
    const run = spyOn(Database.prototype, "run");
    using store = openTestStore();
    const path = join(store.dataDir, "observability.db");
    const connections: unknown[] = run.mock.contexts;
    run.mockRestore();
    const own = connections.filter((db) => db instanceof Database && db.filename === path).at(-1);
    if (!(own instanceof Database)) throw new Error("the store has no connection");
    const settings = ["synchronous", "journal_mode", "foreign_keys", "wal_autocheckpoint"];
    expect(settings.map((name) => own.query(`PRAGMA ${name}`).values()[0]?.[0])).toEqual([
      2, // FULL
      "wal",
      1,
      1_600,
    ]);
  });

  test("events of several posts → a receipt for each, with increasing ids", () => {
    using store = openTestStore();
    const posts = [[at(0, "session_start"), at(1, "message_user")], [], [at(2, "session_end")]];
    const { receipts, added } = store.append(posts.map(parsePosts));
    expect(receipts.map(({ ids, stored }) => [ids.length, stored])).toEqual([
      [2, 2],
      [0, 0],
      [1, 1],
    ]);
    const ids = receipts.flatMap((receipt) => receipt.ids);
    expect(ids).toEqual([...new Set(ids)].sort((a, b) => a - b));
    expect(added.map(({ id }) => id)).toEqual(ids);
    expect(history(store).map(({ id }) => id)).toEqual(ids);
  });

  test("an id that is known, from before or from the same batch → its first id, nothing new", () => {
    using store = openTestStore();
    const event = { ...at(0, "tool_use", { tool: "bash", duration_ms: 10 }), id: "e1" };
    const first = append(store, [event, event]);
    expect(first).toEqual({ ids: [first.ids[0] ?? 0, first.ids[0] ?? 0], stored: 1 });
    const again = append(store, [{ ...event, session_id: "other" }]);
    expect(again).toEqual({ ids: [first.ids[0] ?? 0], stored: 0 });
    expect(store.listSessions(10, RECEIVED)).toMatchObject([{ id: "s", event_count: 1 }]);
    expect(store.usageStats("tool_use", START)).toMatchObject([
      { count: 1, total_duration_ms: 10 },
    ]);
    expect(store.activity(START)).toMatchObject([{ count: 1 }]);
    expect(store.size().events).toBe(1);
  });

  test("a refusal by SQLite halfway → nothing of the transaction is there, and it goes on after", () => {
    using store = openTestStore();
    const batch = [at(0, "session_start"), { ...at(1, "session_start"), session_id: "poison" }];
    {
      using _ = poison(store);
      expect(() => append(store, batch)).toThrow("poisoned");
    }
    expect(history(store)).toEqual([]);
    expect(store.listSessions(10, RECEIVED)).toEqual([]);
    expect(store.activity(START)).toEqual([]);
    expect(store.size().events).toBe(0);
    expect(append(store, batch).stored).toBe(2);
  });

  test("the database file → WAL, indexes on session_id and timestamp, events go with their session", () => {
    using store = openTestStore();
    append(store, sessionEvents("s"));
    const beside = openBeside(store);
    expect(beside.query("PRAGMA journal_mode").get()).toEqual({ journal_mode: "wal" });
    const indexed = beside
      .query<{ name: string }, []>(
        `SELECT column.name FROM pragma_index_list('events') AS i, pragma_index_info(i.name) AS column
         WHERE column.seqno = 0 AND NOT i.partial`,
      )
      .all();
    expect(indexed.map(({ name }) => name)).toContain("session_id");
    expect(indexed.map(({ name }) => name)).toContain("timestamp");
    beside.run("PRAGMA foreign_keys = ON");
    beside.run("DELETE FROM sessions");
    expect(beside.query("SELECT * FROM events").all()).toEqual([]);
    beside.close();
  });
});

describe("status", () => {
  const NOW = START + 10 * MINUTE;

  const iso = (minute: number | null) =>
    minute === null ? null : new Date(START + minute * MINUTE).toISOString();

  test.each<[arriving: string, status: string, ended: number | null, waiting: number | null]>([
    // A session exists from its first event of any type, and until its end is told.
    ["0 session_start", "active", null, null],
    ["0 tool_use", "active", null, null],
    ["0 session_update", "active", null, null],
    ["0 session_start, 5 session_end", "completed", 5, null],
    ["5 session_end, 0 session_start", "completed", 5, null],
    ["5 session_end", "completed", 5, null],
    // The end counts where nothing is later; a session_update is no activity.
    ["5 session_end, 5 tool_use", "completed", 5, null],
    ["5 tool_use, 5 session_end", "completed", 5, null],
    ["5 session_end, 6 message_user", "active", null, null],
    ["6 message_user, 5 session_end", "active", null, null],
    ["5 session_end, 6 agent_complete", "active", null, null],
    ["5 session_end, 6 session_start", "active", null, null],
    ["5 session_end, 6 session_update", "completed", 5, null],
    ["5 session_end, 6 message_user, 7 session_end", "completed", 7, null],
    ["7 session_end, 5 session_end", "completed", 7, null],
    // Stale after an hour without an event; an end stays an end.
    ["-49.99 session_start", "active", null, null],
    ["-50 session_start", "stale", null, null],
    ["-120 session_start, 9 session_update", "active", null, null],
    ["-120 session_start, -110 session_end", "completed", -110, null],
    ["-120 session_end, -110 tool_use", "stale", null, null],
    // It waits while the latest question is later than the latest answer and end.
    ["1 input_requested", "active", null, 1],
    ["1 input_requested, 2 tool_use", "active", null, 1],
    ["1 input_requested, 2 input_resolved", "active", null, null],
    ["2 input_resolved, 1 input_requested", "active", null, null],
    ["1 input_requested, 1 input_resolved", "active", null, null],
    ["1 input_requested, 2 input_resolved, 3 input_requested", "active", null, 3],
    ["3 input_requested, 1 input_requested", "active", null, 3],
    ["1 input_requested, 2 session_end", "completed", 2, null],
    ["1 session_end, 2 input_requested", "active", null, 2],
    ["-60 input_requested", "stale", null, -60],
  ])(
    "%s → at minute 10 %s, ended at %p, waiting since %p",
    async (arriving, status, ended, waiting) => {
      using store = openTestStore();
      const events = arriving.split(", ").map((event) => event.split(" "));
      for (const [minute, type = ""] of events)
        append(store, [at(Number(minute), type, { tool: "bash", call_id: "c" })]);
      const minutes = events.map(([minute]) => Number(minute));
      const expected = {
        status,
        ended_at: iso(ended),
        waiting_since: iso(waiting),
        started_at: iso(Math.min(...minutes)),
        last_event_at: iso(Math.max(...minutes)),
      };
      expect(store.listSessions(10, NOW)).toMatchObject([expected]);
      expect((await store.findSession("s", NOW))?.session).toMatchObject(expected);
    },
  );

  test("counts → only tool_use as tools, only agent_spawn as agents, failures as errors", () => {
    using store = openTestStore();
    append(store, [
      at(0, "tool_use", { tool: "bash" }),
      at(1, "tool_use", { tool: "bash", success: false }),
      at(2, "tool_blocked", { tool: "bash" }),
      at(3, "agent_spawn", { subagent_type: "general" }),
      at(4, "agent_complete", { subagent_type: "general", error: "aborted" }),
      at(5, "session_error"),
    ]);
    expect(store.listSessions(10, RECEIVED)).toMatchObject([
      { tool_count: 2, agent_count: 1, event_count: 6, error_count: 3 },
    ]);
  });
});

describe("info", () => {
  const infoOf = async (store: Store): Promise<Record<string, unknown>> => {
    const session = (await store.findSession("s", RECEIVED))?.session;
    return { ...session?.info, parent: session?.parent_session_id };
  };

  test("each fact → from its latest timestamp, whichever arrived last", async () => {
    using store = openTestStore();
    append(store, [at(5, "session_update", { title: "new", cost: 2 })]);
    append(store, [at(0, "session_start", { title: "old", directory: "/a", cost: 1 })]);
    append(store, [at(3, "session_update", { directory: "/b", parent_session_id: "p1" })]);
    append(store, [at(9, "session_end", { tokens: { input: 3 } })]);
    expect(await infoOf(store)).toEqual({
      title: "new",
      directory: "/b",
      cost: 2,
      tokens: { input: 3 },
      parent: "p1",
    });
  });

  test("null and absent facts → don't wipe what is known", async () => {
    using store = openTestStore();
    append(store, [at(0, "session_start", { title: "kept", model: { id: "opus" } })]);
    append(store, [at(1, "session_update", { title: null }), at(2, "session_update")]);
    expect(await infoOf(store)).toEqual({ title: "kept", model: { id: "opus" }, parent: null });
  });

  test.each([[["a", "b"]], [["b", "a"]]])(
    "two values of a fact at the same time, as %p → the same one",
    async (titles) => {
      using store = openTestStore();
      for (const title of titles) append(store, [at(0, "session_update", { title })]);
      expect((await infoOf(store)).title).toBe("b");
    },
  );

  test("titles in other types of events → no fact of the session", async () => {
    using store = openTestStore();
    append(store, [at(0, "message_user", { title: "no" }), at(1, "session_error", { cost: 5 })]);
    expect(await infoOf(store)).toEqual({ parent: null });
  });
});

describe("details", () => {
  test("tools → oldest first, args as JSON text or the posted string, with what is known", async () => {
    using store = openTestStore();
    append(store, [
      at(2, "tool_use", { tool: "c", args: "ls -l", success: false, error: "exit code 1" }),
      at(0, "tool_use", {
        tool: "a",
        args: { command: "ls" },
        duration_ms: 150,
        call_id: "call_1",
      }),
      at(1, "tool_use", { tool: "b", args: [1, null], success: true, duration_ms: 0 }),
      at(3, "tool_use", { tool: "d" }),
    ]);
    const nothing = { args: null, duration_ms: null, call_id: null, success: null, error: null };
    const minute = (n: number) => new Date(START + n * MINUTE).toISOString();
    const tools = (await store.findSession("s", RECEIVED))?.tools.map(withoutId);
    expect(tools).toEqual([
      {
        ...nothing,
        tool: "a",
        timestamp: minute(0),
        args: '{"command":"ls"}',
        duration_ms: 150,
        call_id: "call_1",
      },
      {
        ...nothing,
        tool: "b",
        timestamp: minute(1),
        args: "[1,null]",
        duration_ms: 0,
        success: true,
      },
      {
        ...nothing,
        tool: "c",
        timestamp: minute(2),
        args: "ls -l",
        success: false,
        error: "exit code 1",
      },
      { ...nothing, tool: "d", timestamp: minute(3) },
    ]);
  });

  test("a long session → read in slices: others have their turn, and it is that of the start", async () => {
    using store = openTestStore();
    const calls = Array.from({ length: 2_200 }, (_, index) =>
      at(2_200 - index, "tool_use", { tool: `${index}` }),
    );
    append(store, calls);
    let turns = 0;
    let next = setImmediate(function count() {
      if (++turns === 2) append(store, [at(0, "tool_use", { tool: "late" })]);
      next = setImmediate(count);
    });
    const { head } = store.bounds();
    const [found, second] = await Promise.all([
      store.findSession("s", RECEIVED),
      store.findSession("s", RECEIVED),
    ]);
    clearImmediate(next);
    expect(turns).toBeGreaterThanOrEqual(4);
    expect(found).toMatchObject({ session: { tool_count: 2_200 }, head });
    expect(second).toMatchObject({ session: { tool_count: 2_201 }, head: head + 1 }); // after it
    expect(second?.tools).toHaveLength(2_201);
    expect(found?.tools.map(({ tool }) => Number(tool))).toEqual(
      calls.map((_, index) => 2_199 - index),
    );
  });

  test("a store that is closed while a long session is read → null, no error", async () => {
    const dataDir = makeTempDir();
    const store = openStore(dataDir);
    append(
      store,
      Array.from({ length: 1_200 }, (_, index) => at(index, "tool_use", { tool: "bash" })),
    );
    const reads = [store.findSession("s", RECEIVED), store.findSession("s", RECEIVED)];
    await new Promise((resolve) => setImmediate(resolve));
    store.close();
    expect(await Promise.all(reads)).toEqual([null, null]);
    rmSync(dataDir, { recursive: true });
  });

  test("an unknown session → null", async () => {
    using store = openTestStore();
    expect(await store.findSession("s", RECEIVED)).toBeNull();
  });
});

describe("agents", () => {
  const spawn = (minute: number, data: Record<string, unknown> = {}) =>
    at(minute, "agent_spawn", { subagent_type: "general", ...data });
  const end = (minute: number, data: Record<string, unknown>) => at(minute, "agent_complete", data);
  const iso = (minute: number) => new Date(START + minute * MINUTE).toISOString();

  test("a spawn alone → runs: no duration, no end, no success", async () => {
    using store = openTestStore();
    append(store, [spawn(0, { prompt: "Do it", call_id: "c1", child_session_id: "child" })]);
    expect((await agentsOf(store)).map(withoutId)).toEqual([
      {
        subagent_type: "general",
        prompt: "Do it",
        timestamp: iso(0),
        duration_ms: null,
        call_id: "c1",
        child_session_id: "child",
        completed_at: null,
        success: null,
        error: null,
      },
    ]);
  });

  test("overlapping agents of one type → each paired with the completion of its call_id", async () => {
    using store = openTestStore();
    append(store, [
      spawn(0, { call_id: "c1" }),
      spawn(1, { call_id: "c2" }),
      spawn(2, { call_id: "c3" }),
      end(3, { call_id: "c2", duration_ms: 120_000 }),
      end(5, { call_id: "c1", success: false, error: "aborted" }),
      end(6, { call_id: "of nobody" }),
    ]);
    const nothing = { duration_ms: null, completed_at: null, success: null, error: null };
    expect(await agentsOf(store)).toMatchObject([
      {
        call_id: "c1",
        duration_ms: 5 * MINUTE,
        completed_at: iso(5),
        success: false,
        error: "aborted",
      },
      { call_id: "c2", duration_ms: 120_000, completed_at: iso(3), success: true },
      { call_id: "c3", ...nothing },
    ]);
  });

  test("agents without call_id → paired by type and order of time", async () => {
    using store = openTestStore();
    append(store, [
      end(-1, { subagent_type: "general" }), // before any of them: nobody's
      end(4, { subagent_type: "general", duration_ms: 7 }),
      end(3, { subagent_type: "explore" }),
      spawn(1),
      spawn(2, { subagent_type: "explore" }),
      spawn(0),
      spawn(5),
      end(2.5, { subagent_type: "general" }),
    ]);
    expect(await agentsOf(store)).toMatchObject([
      { subagent_type: "general", timestamp: iso(0), completed_at: iso(2.5), duration_ms: 150_000 },
      { subagent_type: "general", timestamp: iso(1), completed_at: iso(4), duration_ms: 7 },
      { subagent_type: "explore", timestamp: iso(2), completed_at: iso(3), duration_ms: MINUTE },
      { subagent_type: "general", timestamp: iso(5), completed_at: null, duration_ms: null },
    ]);
  });

  test("two completions of one call_id, the later first → the earlier ends it", async () => {
    using store = openTestStore();
    append(store, [spawn(0, { call_id: "c1" }), end(9, { call_id: "c1" })]);
    append(store, [end(5, { call_id: "c1" })]);
    expect(await agentsOf(store)).toMatchObject([
      { completed_at: iso(5), duration_ms: 5 * MINUTE },
    ]);
  });

  test("a completion of another session with the same call_id → pairs with nobody here", async () => {
    using store = openTestStore();
    append(store, [
      spawn(0, { call_id: "c1" }),
      { ...end(1, { call_id: "c1", duration_ms: 5 }), session_id: "other" },
    ]);
    expect(await agentsOf(store)).toMatchObject([{ duration_ms: null, completed_at: null }]);
  });

  test.each<[name: string, events: PostedEvent[], avg: number | null]>([
    ["no completion", [spawn(0, { call_id: "c" })], null],
    ["the spawn's own", [spawn(0, { duration_ms: 9 })], 9],
    ["the completion's", [spawn(0, { call_id: "c" }), end(1, { call_id: "c", duration_ms: 9 })], 9],
    ["the time between", [spawn(0, { call_id: "c" }), end(1, { call_id: "c" })], MINUTE],
    ["never negative", [spawn(1, { call_id: "c" }), end(0, { call_id: "c" })], 0],
    [
      "the completion first",
      [end(1, { call_id: "c", subagent_type: "general" }), spawn(0, { call_id: "c" })],
      MINUTE,
    ],
    [
      "the spawn's own, and a completion without",
      [spawn(0, { call_id: "c", duration_ms: 9 }), end(1, { call_id: "c" })],
      9,
    ],
  ])("duration: %s → the same in details and analytics", async (_, events, expected) => {
    using store = openTestStore();
    for (const event of events) append(store, [event]);
    expect(await agentsOf(store)).toMatchObject([{ duration_ms: expected }]);
    expect(store.usageStats("agent_spawn", START)).toMatchObject([
      { name: "general", count: 1, avg_duration_ms: expected, total_duration_ms: expected ?? 0 },
    ]);
  });
});

describe("any order", () => {
  const NOW = START + 8 * HOUR;

  /** Everything that can be read but the ids of events, which tell of the order. */
  async function snapshot(store: Store) {
    const sessions = store.listSessions(1_000, NOW);
    return {
      sessions,
      details: await Promise.all(
        sessions.map(async ({ id }) => {
          const found = await store.findSession(id, NOW);
          return {
            session: found?.session,
            tools: found?.tools.map(withoutId),
            agents: found?.agents.map(withoutId),
          };
        }),
      ),
      usage: [0.25, 1, 7.9, 8, 24].map((hours) => ({
        tools: store.usageStats("tool_use", NOW - hours * HOUR),
        agents: store.usageStats("agent_spawn", NOW - hours * HOUR),
        activity: store.activity(NOW - hours * HOUR),
      })),
      events: store.size().events,
    };
  }

  /** The snapshot after `posts` arrived in random batches. */
  async function snapshotOf(posts: Post[], random: () => number) {
    using store = openTestStore();
    for (let from = 0; from < posts.length;) {
      const size = 1 + Math.floor(random() * 40);
      append(store, posts.slice(from, from + size));
      from += size;
    }
    return await snapshot(store);
  }

  /** Two generated sessions, agents that only time and type pair, and the captured ones. */
  function variedPosts(): Post[] {
    const agents = Array.from({ length: 6 }, (_, index) => [
      { ...at(index, "agent_spawn", { subagent_type: `type ${index % 2}` }), id: `spawn ${index}` },
      {
        ...at(index + 1.5, "agent_complete", { subagent_type: `type ${index % 2}` }),
        id: `end ${index}`,
      },
    ]).flat();
    return [
      ...sessionEvents("one", { seed: 1, from: START }),
      ...sessionEvents("two", { seed: 2, from: START + 7 * HOUR }),
      ...agents,
      ...paiPosts().map(({ body }) => body),
    ];
  }

  test("sessions and captured posts, in 50 shuffled orders, each event twice → the same rows", async () => {
    const random = seededRandom(50);
    const posts = variedPosts();
    const expected = await snapshotOf(posts, () => 1);
    expect(expected.sessions.length).toBe(5);
    expect(expected.events).toBe(posts.length + 1); // and the agent behind the task call
    for (let order = 0; order < 50; order++)
      expect(await snapshotOf(shuffled([...posts, ...posts], random), random)).toEqual(expected);
  });

  test("a store that is closed and opened between any two posts → the same rows", async () => {
    const posts = variedPosts();
    const expected = await snapshotOf(posts, () => 1);
    const dataDir = makeTempDir();
    try {
      for (const post of posts) {
        const store = openStore(dataDir);
        append(store, [post]);
        store.close();
      }
      const store = openStore(dataDir);
      expect(await snapshot(store)).toEqual(expected);
      store.close();
    } finally {
      rmSync(dataDir, { recursive: true, force: true });
    }
  });

  /** Posts `posts` in 15 orders. Rows at the same time have no order of their own. */
  async function expectSameRows(posts: Post[], random: () => number): Promise<void> {
    const sorted = async (events: Post[]) => {
      const rows = await snapshotOf(events, random);
      const byText = (a: object, b: object) => compare(JSON.stringify(a), JSON.stringify(b));
      for (const { tools, agents } of rows.details) {
        tools?.sort(byText);
        agents?.sort(byText);
      }
      return rows;
    };
    const expected = await sorted(posts);
    for (let order = 0; order < 15; order++)
      expect(await sorted(shuffled(posts, random))).toEqual(expected);
  }

  test("150 random events at five times, in 15 shuffled orders → the same rows", async () => {
    const random = seededRandom(150);
    const posts = Array.from({ length: 150 }, (_, index) => ({
      id: `e${index}`,
      type: pick(random, [
        "session_start",
        "session_update",
        "session_end",
        "tool_use",
        "input_requested",
        "input_resolved",
        "session_error",
      ]),
      session_id: pick(random, ["a", "b", "c"]),
      timestamp: START + pick(random, [0, 1, 2, 3, 4]) * MINUTE,
      data: {
        tool: pick(random, ["bash", "read"]),
        duration_ms: pick(random, [null, 0, 10.4, 2_000]),
        success: pick(random, [true, false, null]),
        title: pick(random, ["x", "y", null]),
        tokens: pick(random, [5, { input: 3 }, null]),
      },
    }));
    await expectSameRows(posts, random);
  });

  test.each([
    ["with a call_id each", (pair: number) => `call ${pair}`],
    ["without a call_id", () => null],
    ["of which three each share a call_id", (pair: number) => `call ${pair % 10}`],
  ])("30 agents %s, in 15 shuffled orders → the same rows", async (_, callId) => {
    const random = seededRandom(30);
    const posts = Array.from({ length: 30 }, (_, pair) => {
      const spawnedAt = START + pair * MINUTE;
      const call_id = callId(pair);
      const subagent_type = pair % 2 === 0 ? "Engineer" : "general"; // the same within a call
      return [
        {
          id: `spawn ${pair}`,
          type: "agent_spawn",
          session_id: "s",
          timestamp: spawnedAt,
          data: { call_id, subagent_type, duration_ms: pick(random, [null, null, 7]) },
        },
        {
          id: `end ${pair}`,
          type: "agent_complete",
          session_id: "s",
          timestamp: spawnedAt + Math.round(random() * 9 * MINUTE),
          data: {
            call_id,
            subagent_type: call_id === null ? subagent_type : pick(random, [subagent_type, null]),
            duration_ms: pick(random, [null, 5_000]),
            success: pick(random, [true, false]),
          },
        },
      ];
    }).flat();
    await expectSameRows(posts, random);
  });
});

describe("usage", () => {
  interface Brute {
    name: string;
    count: number;
    timed: number;
    total: number;
    max: number | null;
    errors: number;
  }

  interface Use {
    name: string;
    timestamp: number;
    duration_ms: number | null;
    failed: boolean;
  }

  /** What a window from `since` should say, the slow way. */
  function bruteForce(uses: Use[], since: number) {
    const byName = new Map<string, Brute>();
    for (const { name, timestamp, duration_ms, failed } of uses) {
      if (timestamp < Math.floor(since / MINUTE) * MINUTE) continue;
      const row = byName.get(name) ?? { name, count: 0, timed: 0, total: 0, max: null, errors: 0 };
      byName.set(name, row);
      row.count++;
      if (failed) row.errors++;
      if (duration_ms === null) continue;
      row.timed++;
      row.total += duration_ms;
      row.max = Math.max(row.max ?? 0, duration_ms);
    }
    return [...byName.values()]
      .sort((a, b) => b.count - a.count || compare(a.name, b.name))
      .map(({ name, count, timed, total, max, errors }) => ({
        name,
        count,
        avg_duration_ms: timed === 0 ? null : total / timed,
        total_duration_ms: total,
        max_duration_ms: max,
        error_count: errors,
      }));
  }

  test("4,000 random events in 100 random windows → as counted one by one", () => {
    using store = openTestStore();
    const random = seededRandom(4_000);
    const newest = START + 17 * MINUTE + 31 * SECOND;
    const tools: Use[] = [];
    const agents: Use[] = [];
    const posts: PostedEvent[] = [];
    for (let index = 0; index < 3_000; index++) {
      // Denser towards now, so that short windows have something to count.
      const timestamp = Math.round(newest - random() ** 4 * 5 * 24 * HOUR);
      const post = (type: string, data: Record<string, unknown>, time = timestamp) =>
        posts.push({ type, session_id: `s${index % 9}`, timestamp: time, data });
      const failed = random() < 0.2;
      const known = pick(random, [
        null,
        0,
        Math.round(random() * 1e6),
        Math.round(random() * 1e12),
      ]);
      if (random() < 2 / 3) {
        const name = pick(random, ["bash", "read", "__proto__", "mcp_task", "edit"]);
        tools.push({ name, timestamp, duration_ms: known, failed });
        post("tool_use", { tool: name, duration_ms: known, success: !failed });
      } else {
        // Ends in the minute of its spawn: which of the two its duration belongs to is left open.
        const name = pick(random, ["Engineer", "general", "explore"]);
        const spawnedAt = timestamp - (timestamp % MINUTE);
        const took = Math.round(random() * 59_000);
        const call_id = `call ${index}`;
        const says = pick(random, ["all", "duration", "nothing"]);
        agents.push({
          name,
          timestamp: spawnedAt,
          duration_ms: says === "nothing" ? took : (known ?? took),
          failed,
        });
        post("agent_spawn", { subagent_type: name, call_id }, spawnedAt);
        post(
          "agent_complete",
          {
            call_id,
            success: !failed,
            ...(says === "nothing" ? {} : { duration_ms: known }),
            ...(says === "all" ? { subagent_type: name } : {}),
          },
          spawnedAt + took,
        );
      }
    }
    const arriving = shuffled(posts, random);
    for (let from = 0; from < arriving.length; from += 250)
      append(store, arriving.slice(from, from + 250));

    const windows = [0, MINUTE, HOUR, 24 * HOUR, 5 * 24 * HOUR, START, START - HOUR].map((ms) =>
      ms >= START - HOUR ? ms : newest - ms,
    );
    for (let index = 0; index < 93; index++)
      windows.push(newest - Math.round(random() ** 3 * 6 * 24 * HOUR));
    for (const since of windows) {
      expect(store.usageStats("tool_use", since)).toEqual(bruteForce(tools, since));
      expect(store.usageStats("agent_spawn", since)).toEqual(bruteForce(agents, since));
      const inWindow = ({ timestamp }: PostedEvent) =>
        Number(timestamp) >= Math.floor(since / MINUTE) * MINUTE;
      expect(store.activity(since).reduce((sum, { count }) => sum + count, 0)).toBe(
        posts.filter(inWindow).length,
      );
    }
  });

  test.each([
    ["in the window's first minute, before its second", 29.01, 1],
    ["a minute earlier", 28.99, 0],
  ])("a tool used %s → counted %s", (_, minute, count) => {
    using store = openTestStore();
    append(store, [at(minute, "tool_use", { tool: "bash" })]);
    expect(store.usageStats("tool_use", START + 29.5 * MINUTE)).toHaveLength(count);
    expect(store.activity(START + 29.5 * MINUTE)).toHaveLength(count);
  });

  test("durations known of some → the average over those; known of none → null", () => {
    using store = openTestStore();
    append(store, [
      ...[100, null, 300, null].map((duration_ms) => at(0, "tool_use", { tool: "a", duration_ms })),
      at(0, "tool_use", { tool: "b", success: false }),
    ]);
    expect(store.usageStats("tool_use", START)).toEqual([
      {
        name: "a",
        count: 4,
        avg_duration_ms: 200,
        total_duration_ms: 400,
        max_duration_ms: 300,
        error_count: 0,
      },
      {
        name: "b",
        count: 1,
        avg_duration_ms: null,
        total_duration_ms: 0,
        max_duration_ms: null,
        error_count: 1,
      },
    ]);
  });

  test("activity → a row a minute with events of any type, oldest first", () => {
    using store = openTestStore();
    append(store, [
      at(2.5, "message_user"),
      at(0, "session_start"),
      at(0.9, "tool_use", { tool: "bash", success: false }),
      at(2, "session_error"),
    ]);
    expect(store.activity(START)).toEqual([
      { timestamp: "2026-01-01T12:00:00.000Z", count: 2, error_count: 1 },
      { timestamp: "2026-01-01T12:02:00.000Z", count: 2, error_count: 1 },
    ]);
  });
});

describe("page", () => {
  /** Eight events: two sessions, two types, each combination twice. */
  function filled(): TestStore & { ids: number[] } {
    const store = openTestStore();
    const posts = ["message_user", "voice_sent"].flatMap((type) =>
      ["a", "b", "a", "b"].map((session_id) => ({ type, session_id })),
    );
    return { ...store, ids: append(store, posts).ids };
  }

  test.each<[filter: string, expected: number[]]>([
    ["{}", [0, 1, 2, 3, 4, 5, 6, 7]],
    ['{"sessionId": "a"}', [0, 2, 4, 6]],
    ['{"type": "voice_sent"}', [4, 5, 6, 7]],
    ['{"sessionId": "b", "type": "message_user"}', [1, 3]],
    ['{"after": 2}', [3, 4, 5, 6, 7]],
    ['{"before": 2}', [0, 1]],
    ['{"after": 1, "before": 6, "sessionId": "a"}', [2, 4]],
    ['{"sessionId": "nobody"}', []],
  ])("%s → events %p, in both orders", (filter, expected) => {
    using store = filled();
    const given: Partial<EventFilter> = JSON.parse(filter);
    const id = (index: number | null | undefined) =>
      index == null ? null : (store.ids[index] ?? null);
    const full = { ...ALL, ...given, after: id(given.after), before: id(given.before) };
    const indexes = (order: "oldest first" | "newest first") =>
      store.page(full, order, 100, Infinity).events.map((event) => store.ids.indexOf(event.id));
    expect(indexes("oldest first")).toEqual(expected);
    expect(indexes("newest first")).toEqual(expected.toReversed());
  });

  test("a limit of rows, or of characters → that much, and not done", () => {
    using store = filled();
    const first = store.page(ALL, "oldest first", 3, Infinity);
    expect(first.events.map(({ id }) => id)).toEqual(store.ids.slice(0, 3));
    expect(first.done).toBe(false);
    expect(store.page(ALL, "oldest first", 100, 1).events).toHaveLength(1);
    expect(store.page(ALL, "oldest first", 9, Infinity).done).toBe(true);
  });
});

describe("prune", () => {
  const DAY = 24 * HOUR;

  test("sessions without an event since the limit → gone with all that belongs to them", async () => {
    using store = openTestStore();
    append(store, [
      ...sessionEvents("old", { from: START - 10 * DAY }),
      ...sessionEvents("resumed", { seed: 2, from: START - 10 * DAY }),
      { type: "message_user", session_id: "resumed", timestamp: START },
      ...sessionEvents("new", { seed: 3, from: START }),
    ]);
    const kept = history(store).filter(({ session_id }) => session_id !== "old");
    expect(await store.prune(START - DAY)).toBe(1);
    const sessions = store.listSessions(10, RECEIVED).map(({ id }) => id);
    expect(sessions.sort()).toEqual(["new", "resumed"]);
    expect(history(store)).toEqual(kept);
    expect(await store.findSession("old", RECEIVED)).toBeNull();
    expect(store.size().events).toBe(kept.length);
    const beside = openBeside(store);
    expect(beside.query("PRAGMA foreign_key_check").all()).toEqual([]);
    expect(beside.query("SELECT 1 FROM usage WHERE start < ?").all(START - 2 * DAY)).toEqual([]);
    beside.close();
  });

  test("a database of mostly old events → its file shrinks", async () => {
    using store = openTestStore();
    const padding = "x".repeat(2_000);
    append(
      store,
      Array.from({ length: 1_500 }, (_, index) => ({
        ...at(-10, "message_user", { padding }),
        session_id: `s${index % 3}`,
      })),
    );
    append(store, [at(0, "session_start")]);
    const beside = openBeside(store);
    beside.query("PRAGMA wal_checkpoint").all();
    beside.close();
    const size = () => statSync(join(store.dataDir, "observability.db")).size;
    const before = size();
    expect(before).toBeGreaterThan(3e6);
    await store.prune(START - MINUTE);
    expect(size()).toBeLessThan(before / 3);
    expect(store.listSessions(10, RECEIVED).map(({ id }) => id)).toEqual(["s"]);
  });

  afterEach(() => {
    jest.useRealTimers();
  });

  const startedNow = { type: "session_start", session_id: "s" };

  test("a server that starts after a session has expired → deletes it", async () => {
    let now = START;
    await using server = await startTestServer({ now: () => now });
    await postEvent(server, startedNow);
    now += 7 * DAY + 1;
    await server.restart();
    await waitFor(async () => (await eventsStored(server)) === 0, "the session to go");
  });

  test("a server under which a session expires → deletes it within the hour", async () => {
    let now = START;
    jest.useFakeTimers(); // its interval runs on them
    await using server = await startTestServer({ now: () => now });
    await postEvent(server, startedNow);
    now += 7 * DAY + 1;
    jest.advanceTimersByTime(HOUR - 1);
    expect(await eventsStored(server)).toBe(1);
    jest.advanceTimersByTime(1);
    jest.useRealTimers();
    await waitFor(async () => (await eventsStored(server)) === 0, "the session to go");
  });
});

async function eventsStored(server: TestServer): Promise<number> {
  return (await getJson<{ events: number }>(server, "/health")).events;
}

describe("ingest", () => {
  /** A real store and hub, and what went into them. */
  function openIngest(store: Store) {
    const transactions: number[] = [];
    const published: StoredEvent[] = [];
    const hub = createHub(store);
    const ingest = createIngest(
      {
        append(posts) {
          transactions.push(posts.length);
          return store.append(posts);
        },
      },
      {
        publish(events) {
          // Committed before it is told: another connection would see it.
          expect(history(store)).toEqual(expect.arrayContaining(events.map(storedPart)));
          published.push(...events);
          hub.publish(events);
        },
      },
      () => RECEIVED,
    );
    const submit = (session_id: string) =>
      ingest.submit(parsePosts([{ type: "session_start", session_id }]));
    return { ingest, submit, transactions, published };
  }

  const storedPart = ({ id, session_id, type }: StoredEvent) =>
    expect.objectContaining({ id, session_id, type });

  test("50 posts in one turn of the event loop → one transaction; the next turn → another", async () => {
    using store = openTestStore();
    const { submit, transactions, published } = openIngest(store);
    const names = Array.from({ length: 50 }, (_, index) => `s${index}`);
    const receipts = await Promise.all(names.map(submit));
    await submit("later");
    expect(transactions).toEqual([50, 1]);
    expect(published.map(({ session_id }) => session_id)).toEqual([...names, "later"]);
    expect(receipts.flatMap(({ ids }) => ids)).toEqual(published.slice(0, 50).map(({ id }) => id));
  });

  test("a post → is answered only once another connection sees its event", async () => {
    using store = openTestStore();
    const beside = openBeside(store);
    const { submit } = openIngest(store);
    await submit("s");
    expect(beside.query("SELECT session_id FROM events").all()).toEqual([{ session_id: "s" }]);
    beside.close();
  });

  test("a transaction that fails → every poster in it gets the error, nothing is published", async () => {
    using store = openTestStore();
    const { submit, transactions, published } = openIngest(store);
    {
      using _ = poison(store);
      const outcomes = await Promise.allSettled(["a", "poison", "b"].map(submit));
      expect(transactions).toEqual([3]);
      for (const outcome of outcomes)
        expect(outcome).toMatchObject({ status: "rejected", reason: { message: "poisoned" } });
    }
    expect(published).toEqual([]);
    expect(history(store)).toEqual([]);
    await Promise.all(["a", "poison", "b"].map(submit));
    expect(published.map(({ session_id }) => session_id)).toEqual(["a", "poison", "b"]);
  });

  test("a store that is closed → every poster gets the error", async () => {
    const store = openTestStore();
    const { submit, published } = openIngest(store);
    store[Symbol.dispose]();
    const outcomes = await Promise.allSettled([submit("a"), submit("b")]);
    expect(outcomes.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    expect(published).toEqual([]);
  });

  test("flush → commits what waits, at once", async () => {
    using store = openTestStore();
    const { ingest, submit } = openIngest(store);
    const waiting = submit("s");
    expect(history(store)).toHaveLength(0);
    ingest.flush();
    expect(history(store)).toHaveLength(1);
    expect(await waiting).toMatchObject({ stored: 1 });
  });
});

function withoutId<T extends ToolCall | AgentRun>({ id: _, ...rest }: T): Omit<T, "id"> {
  return rest;
}

function pick<T>(random: () => number, items: readonly T[]): T {
  return items[Math.floor(random() * items.length)] as T;
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
