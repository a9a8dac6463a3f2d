/** The log, its folds, and the batch that feeds them: on a real database file, without a server. */

import { Database } from "bun:sqlite";
import { afterEach, describe, expect, jest, spyOn, test } from "bun:test";
import { rmSync, statSync, truncateSync } from "node:fs";
import { join } from "node:path";
import {
  createHub,
  createIngest,
  type EventFilter,
  openStore,
  parseEvent,
  type Receipt,
  type Store,
  type StoredEvent,
  type UsageStats,
} from "../server.ts";
import type { AgentRun, ToolCall } from "./helpers.ts";
import { paiPosts, type PostedEvent, seededRandom, sessionEvents, shuffled } from "./fixtures.ts";
import {
  databasePath,
  getJson,
  isSoak,
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
/** When the tests of one session read it: what is open still runs. */
const NOW = START + 10 * MINUTE;
/** Later than every event: when they are received. */
const RECEIVED = Date.parse("2026-12-01T00:00:00Z");

const ALL: EventFilter = {
  ...{ after: null, before: null, sessionId: null, type: null },
  ...{ q: null, tool: null, from: 0, to: Infinity },
};

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
  const all = { sessionId: null, after: 0, to: store.head() };
  return store.pageOf(all, 100_000, Infinity).events;
}

function listSessions(store: Store, now = RECEIVED) {
  return Array.fromAsync(store.listSessions({ status: null, sessionId: null }, 1_000, now));
}

/** A session with all of its calls; null where there is none. */
async function detailsOf(store: Store, id = "s", now = NOW) {
  const found = await store.findSession(id, now);
  if (found === null) return null;
  const { session, head } = found;
  return {
    session,
    head,
    tools: (await Array.fromAsync(found.tools)) as ToolCall[],
    agents: (await Array.fromAsync(found.agents)) as AgentRun[],
  };
}

async function agentsOf(store: Store): Promise<AgentRun[]> {
  return (await detailsOf(store))?.agents ?? [];
}

function usageOf(store: Store, kind: "tool" | "agent", from = START, to = RECEIVED) {
  return Array.fromAsync(store.usageStats(kind, from, to), ({ sums: _, ...stats }) => stats);
}

const minuteOf = (time: number) => time - (time % MINUTE);

const eventsPerMinute = (store: Store, from = START) => store.activity(from, RECEIVED);

type Stats = Omit<UsageStats, "sums">;
type Percentiles = Pick<UsageStats, "p50_duration_ms" | "p95_duration_ms">;

/** `rows`, with the percentiles of `exact` where they are within the 10 % that a histogram may be off. */
function exactWhereNear(rows: UsageStats[], exact: Percentiles[]): UsageStats[] {
  return rows.map((row, index) => {
    const nearest = (name: keyof Percentiles) => {
      const [value, wanted] = [row[name], exact[index]?.[name] ?? null];
      if (value === null || wanted === null) return value;
      return Math.abs(value - wanted) <= wanted * 0.1 ? wanted : value;
    };
    return {
      ...row,
      p50_duration_ms: nearest("p50_duration_ms"),
      p95_duration_ms: nearest("p95_duration_ms"),
    };
  });
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
    expect(added.length).toBe(3);
    expect(history(store).map(({ id }) => id)).toEqual(ids);
  });

  test("an id that its session knows, from before or from the same batch → its first id, nothing new", async () => {
    using store = openTestStore();
    const event = { ...at(0, "tool_use", { tool: "bash", duration_ms: 10 }), id: "e1" };
    const first = append(store, [event, event]);
    expect(first).toEqual({ ids: [first.ids[0] ?? 0, first.ids[0] ?? 0], stored: 1 });
    const again = append(store, [{ ...event, timestamp: START + HOUR }]);
    expect(again).toEqual({ ids: [first.ids[0] ?? 0], stored: 0 });
    expect(await listSessions(store)).toMatchObject([{ id: "s", event_count: 1 }]);
    expect(await usageOf(store, "tool")).toMatchObject([{ count: 1, total_duration_ms: 10 }]);
    expect(eventsPerMinute(store)).toMatchObject([{ count: 1 }]);
    expect(store.size().events).toBe(1);
  });

  test("the same id in another session → another event", async () => {
    using store = openTestStore();
    const event = { ...at(0, "tool_use", { tool: "bash" }), id: "e1" };
    const other = { ...event, session_id: "other" };
    const { ids, stored } = append(store, [event, other, other, event]);
    expect(stored).toBe(2);
    expect(new Set(ids).size).toBe(2);
    expect(ids.slice(2)).toEqual(ids.slice(0, 2).toReversed());
    expect(await listSessions(store)).toMatchObject([{ event_count: 1 }, { event_count: 1 }]);
  });

  test("a refusal by SQLite halfway → nothing of the transaction is there, and it goes on after", async () => {
    using store = openTestStore();
    const batch = [at(0, "session_start"), { ...at(1, "session_start"), session_id: "poison" }];
    {
      using _ = poison(store);
      expect(() => append(store, batch)).toThrow("poisoned");
    }
    expect(history(store)).toEqual([]);
    expect(await listSessions(store)).toEqual([]);
    expect(eventsPerMinute(store)).toEqual([]);
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
    ["-120 session_start, -110 session_end, -40 session_update", "completed", -110, null],
    // Stale after an hour without an event; an end stays an end.
    ["-49.99 session_start", "active", null, null],
    ["-50 session_start", "stale", null, null],
    ["-120 session_start, 9 session_update", "active", null, null],
    ["-120 session_start, -110 session_end", "completed", -110, null],
    ["-120 session_end, -110 tool_use", "stale", null, null],
    // While a call is open, after a day.
    ["-60 tool_start", "active", null, null],
    ["-60 agent_spawn", "active", null, null],
    ["-60 model_request", "active", null, null],
    ["-60 input_requested", "active", null, -60],
    ["-1429.99 tool_start", "active", null, null],
    ["-1430 tool_start", "stale", null, null],
    ["-1429.99 input_requested", "active", null, -1429.99],
    ["-1430 input_requested", "stale", null, null],
    ["-60 tool_start, -50 tool_use", "stale", null, null],
    ["-70 tool_start, -60 session_end, -50 message_user", "stale", null, null],
    // It waits since its oldest question that has no answer, and no end after it.
    ["1 input_requested", "active", null, 1],
    ["1 input_requested, 2 tool_use", "active", null, 1],
    ["1 input_requested, 2 input_resolved", "active", null, null],
    ["2 input_resolved, 1 input_requested", "active", null, null],
    ["1 input_requested, 1 input_resolved", "active", null, null],
    ["1 input_requested, 2 input_resolved, 3 input_requested b", "active", null, 3],
    ["3 input_requested, 1 input_requested", "active", null, 1],
    ["3 input_requested, 1 input_requested b", "active", null, 1],
    ["1 input_requested, 2 input_requested b, 3 input_resolved", "active", null, 2],
    ["1 input_requested, 2 input_requested b, 3 input_resolved b", "active", null, 1],
    ["3 input_resolved b, 1 input_requested", "active", null, 1],
    ["1 input_requested, 2 session_end", "completed", 2, null],
    ["1 input_requested, 2 session_end, 3 message_user", "active", null, null],
    ["1 input_requested, 2 session_end, 3 input_requested b", "active", null, 3],
    ["1 session_end, 2 input_requested", "active", null, 2],
  ])(
    "%s → at minute 10 %s, ended at %p, waiting since %p",
    async (arriving, status, ended, waiting) => {
      using store = openTestStore();
      const events = arriving.split(", ").map((event) => event.split(" "));
      for (const [minute, type = "", request_id = "a"] of events)
        append(store, [
          at(Number(minute), type, {
            request_id,
            tool: "bash",
            subagent_type: "general",
            call_id: "c",
          }),
        ]);
      const minutes = events.map(([minute]) => Number(minute));
      const expected = {
        status,
        ended_at: iso(ended),
        waiting_since: iso(waiting),
        started_at: iso(Math.min(...minutes)),
        last_event_at: iso(Math.max(...minutes)),
      };
      expect(await listSessions(store, NOW)).toMatchObject([expected]);
      expect((await store.findSession("s", NOW))?.session).toMatchObject(expected);
    },
  );

  test("counts → only tool_use as tools, only agent_spawn as agents, failures as errors", async () => {
    using store = openTestStore();
    append(store, [
      at(0, "tool_use", { tool: "bash" }),
      at(1, "tool_use", { tool: "bash", success: false }),
      at(2, "tool_blocked", { tool: "bash" }),
      at(3, "agent_spawn", { subagent_type: "general" }),
      at(4, "agent_complete", { subagent_type: "general", error: "aborted" }),
      at(5, "session_error"),
    ]);
    expect(await listSessions(store)).toMatchObject([
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
      at(4, "tool_start", { tool: "e", args: { path: "/a" }, call_id: "call_2" }),
      at(5, "tool_start", { tool: "f", args: "make", call_id: "call_3" }),
      at(6, "tool_use", { tool: "f", outcome: "exit", waited_ms: 9_000, call_id: "call_3" }),
    ]);
    const minute = (n: number) => new Date(START + n * MINUTE).toISOString();
    /** That has said no duration: it ended at once. */
    const call = (tool: string, n: number, args: string | null = null) => ({
      session_id: "s",
      kind: "tool" as const,
      ...{ name: tool, tool, args, text: args },
      ...{ started_at: minute(n), ended_at: minute(n), timestamp: minute(n) },
      outcome: "ok" as const,
      ...{ call_id: null, duration_ms: null, waited_ms: null, error: null },
      ...{ child_session_id: null, tokens: null, cost: null, attributes: null },
    });
    expect((await detailsOf(store))?.tools.map(withoutId)).toEqual([
      {
        ...call("a", 0, '{"command":"ls"}'),
        started_at: new Date(START - 150).toISOString(),
        duration_ms: 150,
        call_id: "call_1",
      },
      { ...call("b", 1, "[1,null]"), duration_ms: 0 },
      {
        ...call("c", 2, "ls -l"),
        outcome: "failed",
        error: "exit code 1",
      },
      call("d", 3),
      {
        ...call("e", 4, '{"path":"/a"}'), // it runs
        ended_at: null,
        call_id: "call_2",
        outcome: null,
      },
      {
        ...call("f", 6, "make"),
        started_at: minute(5),
        duration_ms: MINUTE,
        waited_ms: 9_000,
        call_id: "call_3",
        outcome: "exit",
      },
    ]);
  });

  test("a long argument, prompt or error → args and prompt whole, text and error their first 300 characters", async () => {
    using store = openTestStore();
    const long = "0123456789".repeat(100);
    const call = { args: long, prompt: long, error: long, success: false };
    append(store, [
      at(0, "tool_use", { tool: "bash", ...call }),
      at(0, "agent_spawn", { subagent_type: "general", ...call }),
    ]);
    const start = long.slice(0, 300);
    expect(await detailsOf(store)).toMatchObject({
      tools: [{ args: long, text: start, error: start, outcome: "failed" }],
      agents: [{ prompt: long, text: start, error: start, outcome: "failed" }],
    });
  });

  test("a long session → read in slices: others have their turn, and it is that of the start", async () => {
    using store = openTestStore();
    const COUNT = 11_000;
    const calls = Array.from({ length: COUNT }, (_, index) =>
      at(COUNT - index, "tool_use", { tool: `${index}` }),
    );
    append(store, calls);
    const head = store.head();
    let turns = 0;
    let next = setImmediate(function count() {
      if (++turns === 2) append(store, [at(0, "tool_use", { tool: "late" })]);
      next = setImmediate(count);
    });
    const found = await Promise.all([detailsOf(store), detailsOf(store)]);
    clearImmediate(next);
    expect(turns).toBeGreaterThanOrEqual(4);
    for (const session of found) {
      expect(session).toMatchObject({ session: { tool_count: COUNT }, head });
      expect(session?.tools.map(({ tool }) => Number(tool))).toEqual(
        calls.map((_, index) => COUNT - 1 - index),
      );
    }
    const after = await detailsOf(store);
    expect(after).toMatchObject({ session: { tool_count: COUNT + 1 }, head: head + 1 });
    expect(after?.tools).toHaveLength(COUNT + 1);
  });

  test("an unknown session → null", async () => {
    using store = openTestStore();
    expect(await store.findSession("s", NOW)).toBeNull();
  });
});

describe("agents", () => {
  const spawn = (minute: number, data: Record<string, unknown> = {}) =>
    at(minute, "agent_spawn", { subagent_type: "general", ...data });
  const end = (minute: number, data: Record<string, unknown>) => at(minute, "agent_complete", data);
  const iso = (minute: number) => new Date(START + minute * MINUTE).toISOString();

  test("a spawn alone → runs: no duration, no end, no outcome", async () => {
    using store = openTestStore();
    append(store, [spawn(0, { prompt: "Do it", call_id: "c1", child_session_id: "child" })]);
    expect((await agentsOf(store)).map(withoutId)).toEqual([
      {
        session_id: "s",
        kind: "agent",
        name: "general",
        subagent_type: "general",
        prompt: "Do it",
        text: "Do it",
        timestamp: iso(0),
        started_at: iso(0),
        ended_at: null,
        duration_ms: null,
        waited_ms: null,
        outcome: null,
        call_id: "c1",
        child_session_id: "child",
        error: null,
        tokens: null,
        cost: null,
        attributes: null,
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
    const nothing = { duration_ms: null, ended_at: null, outcome: null, error: null };
    expect(await agentsOf(store)).toMatchObject([
      {
        call_id: "c1",
        duration_ms: 5 * MINUTE,
        ended_at: iso(5),
        outcome: "failed",
        error: "aborted",
      },
      { call_id: "c2", duration_ms: 120_000, ended_at: iso(3), outcome: "ok" },
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
      { subagent_type: "general", timestamp: iso(0), ended_at: iso(2.5), duration_ms: 150_000 },
      { subagent_type: "general", timestamp: iso(1), ended_at: iso(4), duration_ms: 7 },
      { subagent_type: "explore", timestamp: iso(2), ended_at: iso(3), duration_ms: MINUTE },
      { subagent_type: "general", timestamp: iso(5), ended_at: null, duration_ms: null },
    ]);
  });

  test.each([[[9, 5]], [[5, 9]]])(
    "two completions of one call_id, at minutes %p → the later ends it",
    async (minutes) => {
      using store = openTestStore();
      append(store, [spawn(0, { call_id: "c1" })]);
      for (const minute of minutes) append(store, [end(minute, { call_id: "c1" })]);
      expect(await agentsOf(store)).toMatchObject([{ ended_at: iso(9), duration_ms: 9 * MINUTE }]);
      expect(await usageOf(store, "agent")).toMatchObject([
        { count: 1, total_duration_ms: 9 * MINUTE },
      ]);
    },
  );

  test("a completion of another session with the same call_id → pairs with nobody here", async () => {
    using store = openTestStore();
    append(store, [
      spawn(0, { call_id: "c1" }),
      { ...end(1, { call_id: "c1", duration_ms: 5 }), session_id: "other" },
    ]);
    expect(await agentsOf(store)).toMatchObject([{ duration_ms: null, ended_at: null }]);
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
    expect(await usageOf(store, "agent")).toMatchObject([
      { name: "general", count: 1, avg_duration_ms: expected, total_duration_ms: expected ?? 0 },
    ]);
  });
});

describe("any order", () => {
  const END = START + 8 * HOUR;

  /** Everything that can be read but the ids of events, which tell of the order. */
  async function snapshot(store: Store) {
    const sessions = await listSessions(store, END);
    return {
      sessions,
      details: await Promise.all(
        sessions.map(async ({ id }) => {
          const found = await detailsOf(store, id, END);
          return {
            session: found?.session,
            tools: found?.tools.map(withoutId),
            agents: found?.agents.map(withoutId),
          };
        }),
      ),
      usage: await Promise.all(
        [0.25, 1, 7.9, 8, 24].map(async (hours) => ({
          tools: await usageOf(store, "tool", END - hours * HOUR),
          agents: await usageOf(store, "agent", END - hours * HOUR),
          activity: eventsPerMinute(store, END - hours * HOUR),
        })),
      ),
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

  test("sessions and captured posts, in shuffled orders, each event twice → the same rows", async () => {
    const random = seededRandom(50);
    const posts = variedPosts();
    const expected = await snapshotOf(posts, () => 1);
    expect(expected.sessions.length).toBe(5);
    expect(expected.events).toBe(posts.length + 1); // and the agent behind the task call
    for (let order = 0; order < (isSoak ? 50 : 10); order++)
      expect(await snapshotOf(shuffled([...posts, ...posts], random), random)).toEqual(expected);
  }, 60_000);

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
  }, 60_000);
});

describe("usage", () => {
  interface Use {
    name: string;
    /** Of its end. */
    timestamp: number;
    duration_ms: number | null;
    waited_ms: number;
    failed: boolean;
  }

  /** What the window [from, to) should say, the slow way. */
  function bruteForce(uses: Use[], from: number, to: number): Stats[] {
    const inWindow = uses.filter(
      ({ timestamp }) => timestamp >= minuteOf(from) && timestamp < minuteOf(to),
    );
    return Object.entries(Object.groupBy(inWindow, ({ name }) => `"${name}"`))
      .map(([quoted, rows = []]) => {
        const timed = rows.flatMap(({ duration_ms }) => duration_ms ?? []);
        const total = timed.reduce((sum, duration) => sum + duration, 0);
        const active = rows
          .flatMap(({ duration_ms, waited_ms }) =>
            duration_ms === null ? [] : Math.max(0, duration_ms - waited_ms),
          )
          .sort((a, b) => a - b);
        const percentile = (share: number) => {
          return active[Math.ceil(active.length * share) - 1] ?? null;
        };
        return {
          name: String(JSON.parse(quoted)),
          count: rows.length,
          avg_duration_ms: timed.length === 0 ? null : total / timed.length,
          total_duration_ms: total,
          p50_duration_ms: percentile(0.5),
          p95_duration_ms: percentile(0.95),
          waited_ms: rows.reduce((sum, { waited_ms }) => sum + waited_ms, 0),
          error_count: rows.filter(({ failed }) => failed).length,
        };
      })
      .sort((a, b) => b.count - a.count || compare(a.name, b.name));
  }

  test("4,000 random events in 100 random windows → as counted one by one", async () => {
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
        const waited_ms = pick(random, [0, 0, Math.round(random() * 1e6)]);
        tools.push({ name, timestamp, duration_ms: known, waited_ms, failed });
        post("tool_use", { tool: name, duration_ms: known, waited_ms, success: !failed });
      } else {
        const name = pick(random, ["Engineer", "general", "explore"]);
        const took = Math.round(random() * 2 * HOUR);
        const spawnedAt = timestamp - took;
        const call_id = `call ${index}`;
        const says = pick(random, ["all", "duration", "nothing"]);
        agents.push({
          name,
          timestamp,
          duration_ms: says === "nothing" ? took : (known ?? took),
          waited_ms: 0,
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
          timestamp,
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
    for (const [index, from] of windows.entries()) {
      // Every other window ends now, the rest some time before.
      const to = index % 2 === 0 ? newest + MINUTE : from + random() * (newest - from);
      for (const [kind, uses] of [
        ["tool", tools],
        ["agent", agents],
      ] as const) {
        const expected = bruteForce(uses, from, to);
        expect(
          exactWhereNear(await usageOf(store, kind, minuteOf(from), minuteOf(to)), expected),
        ).toEqual(expected);
      }
      const inWindow = ({ timestamp }: PostedEvent) => Number(timestamp) >= minuteOf(from);
      expect(eventsPerMinute(store, from).reduce((sum, { count }) => sum + count, 0)).toBe(
        posts.filter(inWindow).length,
      );
    }
  });

  test.each([
    ["in the window's first minute, before its second", 29.01, 1],
    ["a minute earlier", 28.99, 0],
    ["in the minute before the window's end", 39.99, 1],
    ["in the minute of the window's end, before its second", 40.01, 0],
  ])("a tool used %s → counted as it should be", async (_, minute, count) => {
    // From minute 29.5 to 40.5, which ended an hour ago.
    await using server = await startTestServer({ now: () => START + 100.5 * MINUTE });
    await postEvent(server, at(minute, "tool_use", { tool: "bash" }));
    const path = `/api/analytics/tools?before_hours=1&hours=${(11 / 60).toFixed(9)}`;
    expect((await getJson<{ tools: object[] }>(server, path)).tools).toHaveLength(count);
  });

  test("an event in the window's first minute, before its second → counted; a minute earlier → not", () => {
    using store = openTestStore();
    append(store, [at(29.01, "message_user"), at(28.99, "message_user")]);
    expect(eventsPerMinute(store, START + 29.5 * MINUTE)).toMatchObject([{ count: 1 }]);
  });

  test("durations known of some → the average over those; known of none → null", async () => {
    using store = openTestStore();
    append(store, [
      ...[100, null, 300, null].map((duration_ms) => at(0, "tool_use", { tool: "a", duration_ms })),
      at(0, "tool_use", { tool: "b", success: false }),
    ]);
    const expected = [
      {
        name: "a",
        count: 4,
        avg_duration_ms: 200,
        total_duration_ms: 400,
        p50_duration_ms: 100,
        p95_duration_ms: 300,
        waited_ms: 0,
        error_count: 0,
      },
      {
        name: "b",
        count: 1,
        avg_duration_ms: null,
        total_duration_ms: 0,
        p50_duration_ms: null,
        p95_duration_ms: null,
        waited_ms: 0,
        error_count: 1,
      },
    ];
    expect(exactWhereNear(await usageOf(store, "tool"), expected)).toEqual(expected);
  });

  test("time that a tool waited for the person → in its average and total, not in how slow it is", async () => {
    using store = openTestStore();
    append(store, [
      at(0, "tool_use", { tool: "a", duration_ms: 60_000, waited_ms: 59_500 }),
      at(0, "tool_use", { tool: "a", duration_ms: 500 }),
      at(0, "tool_use", { tool: "a", duration_ms: 500, waited_ms: 700 }), // its clock is another
    ]);
    const expected = {
      avg_duration_ms: 61_000 / 3,
      total_duration_ms: 61_000,
      p50_duration_ms: 500,
      p95_duration_ms: 500,
      waited_ms: 60_200,
    };
    const found = exactWhereNear(await usageOf(store, "tool"), [expected]);
    expect(found).toMatchObject([expected]);
  });

  test("a tool that runs → counted in the minute of its start, and then in that of its end", async () => {
    using store = openTestStore();
    const counts = async () => {
      const [started, ended] = await Promise.all([
        usageOf(store, "tool", START, START + MINUTE),
        usageOf(store, "tool", START + 5 * MINUTE, START + 6 * MINUTE),
      ]);
      return [started, ended].map((rows) => rows.map(({ name, count }) => [name, count]));
    };
    append(store, [at(0, "tool_start", { tool: "bash", call_id: "c" })]);
    expect(await counts()).toEqual([[["bash", 1]], []]);
    append(store, [at(5, "tool_use", { tool: "bash", call_id: "c" })]);
    expect(await counts()).toEqual([[], [["bash", 1]]]);
  });

  test("activity → a row a minute with events of any type, oldest first", () => {
    using store = openTestStore();
    append(store, [
      at(2.5, "message_user"),
      at(0, "session_start"),
      at(0.9, "tool_use", { tool: "bash", success: false }),
      at(2, "session_error"),
    ]);
    expect(eventsPerMinute(store)).toEqual([
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
  ])("%s → events %p, in both orders", async (filter, expected) => {
    using store = filled();
    const given: Partial<EventFilter> = JSON.parse(filter);
    const id = (index: number | null | undefined) =>
      index == null ? null : (store.ids[index] ?? null);
    const full = { ...ALL, ...given, after: id(given.after), before: id(given.before) };
    const indexes = (events: StoredEvent[]) => events.map(({ id }) => store.ids.indexOf(id));
    const list = (order: "oldest first" | "newest first") =>
      Array.fromAsync(store.listEvents(full, order, 100));
    expect(indexes(await list("oldest first"))).toEqual(expected);
    expect(indexes(await list("newest first"))).toEqual(expected.toReversed());
    if (full.type !== null) return; // a page is of all types
    const to = full.before === null ? store.head() : full.before - 1;
    const range = { sessionId: full.sessionId, after: full.after ?? 0, to };
    const page = store.pageOf(range, 100, Infinity);
    expect(indexes(page.events)).toEqual(expected);
    expect(page.isDone).toBe(true);
  });

  test("a limit of rows, or of characters → that much, and not done", async () => {
    using store = filled();
    const pageOf = (limit: number, maxChars: number) => {
      const all = { sessionId: null, after: 0, to: store.head() };
      const { events, isDone } = store.pageOf(all, limit, maxChars);
      return [events.map(({ id }) => id), isDone];
    };
    expect(pageOf(3, Infinity)).toEqual([store.ids.slice(0, 3), false]);
    expect(pageOf(100, 1)).toEqual([store.ids.slice(0, 1), false]);
    expect(pageOf(9, Infinity)).toEqual([store.ids, true]);
    const list = async (order: "oldest first" | "newest first") =>
      (await Array.fromAsync(store.listEvents(ALL, order, 3))).map(({ id }) => id);
    expect(await list("oldest first")).toEqual(store.ids.slice(0, 3));
    expect(await list("newest first")).toEqual(store.ids.toReversed().slice(0, 3));
  });

  test("a long list → each once, in order, read in slices: others have their turn", async () => {
    using store = openTestStore();
    const { ids } = append(store, Array(2_100).fill(at(0, "message_user")));
    let turns = 0;
    let next = setImmediate(function count() {
      turns++;
      next = setImmediate(count);
    });
    const list = (order: "oldest first" | "newest first") =>
      Array.fromAsync(store.listEvents(ALL, order, Infinity));
    const oldestFirst = await list("oldest first");
    expect(turns).toBeGreaterThanOrEqual(3);
    clearImmediate(next);
    expect(oldestFirst.map(({ id }) => id)).toEqual(ids);
    expect((await list("newest first")).map(({ id }) => id)).toEqual(ids.toReversed());
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
    const sessions = (await listSessions(store)).map(({ id }) => id);
    expect(sessions.sort()).toEqual(["new", "resumed"]);
    expect(history(store)).toEqual(kept);
    expect(await store.findSession("old", RECEIVED)).toBeNull();
    expect(store.size().events).toBe(kept.length);
    const beside = openBeside(store);
    expect(beside.query("PRAGMA foreign_key_check").all()).toEqual([]);
    expect(beside.query("SELECT 1 FROM usage WHERE start < ?").all(START - 2 * DAY)).toEqual([]);
    beside.close();
  });

  test("sessions that are each too large for one step → gone for good, each counted once", async () => {
    using store = openTestStore();
    const COUNT = 215;
    const names = ["old-1", "old-2", "old-3"];
    for (const session_id of names)
      append(
        store,
        Array.from({ length: COUNT }, () => ({
          ...at(-10, "tool_use", { tool: "bash" }),
          session_id,
        })),
      );
    append(store, [at(0, "session_start")]);
    expect(await store.prune(START - MINUTE)).toBe(names.length);
    expect((await listSessions(store)).map(({ id }) => id)).toEqual(["s"]);
    expect(store.size().events).toBe(1);
  });

  test("a session that comes to life while its events go → begins anew, nothing of before is told", async () => {
    using store = openTestStore();
    append(store, [
      ...Array(9_000).fill(at(-10, "tool_use", { tool: "old", success: false })),
      // Last, so that the step doesn't reach them.
      at(-10, "tool_start", { tool: "old", call_id: "c" }),
      at(-10, "input_requested", { request_id: "r" }),
      at(-9, "agent_complete", { subagent_type: "general", success: false }),
    ]);
    const steps: number[] = [];
    // A machine that stalls: each look at the clock is after the end of the step.
    let stalledAt = performance.now();
    using _clock = spyOn(performance, "now").mockImplementation(() => (stalledAt += 1_000));
    await store.prune(START - MINUTE, undefined, () => {
      steps.push(store.size().events);
      if (steps.length === 2) store.stopPruning(); // emptied by the first step; by the next, fewer are left
    });
    expect(steps).toEqual([9_003, 8_978]);
    expect(await listSessions(store, NOW)).toEqual([]);
    expect(store.changedRows(0, store.head(), NOW)).toEqual({ sessions: [], spans: [] });
    append(store, [
      at(-9.5, "agent_spawn", { subagent_type: "general" }),
      at(0, "tool_use", { tool: "new", call_id: "c" }),
    ]);
    expect(await detailsOf(store)).toMatchObject({
      session: {
        started_at: new Date(START - 9.5 * MINUTE).toISOString(),
        ...{ event_count: 2, tool_count: 1, agent_count: 1, error_count: 0 },
        now: { kind: "agent", name: "general" },
        waiting_since: null,
      },
      tools: [{ tool: "new" }],
      agents: [{ ended_at: null }],
    });
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
    expect((await listSessions(store)).map(({ id }) => id)).toEqual(["s"]);
  });

  test("any window, at whole minutes → what a plain sum gives; after retention, too", async () => {
    using store = openTestStore();
    const random = seededRandom(11);
    const minutes = 5 * 24 * 60;
    const minute = () => Math.floor(random() * minutes);
    const calls = Array.from({ length: 2_000 }, () => ({
      ...at(0, "tool_use", { tool: "bash", duration_ms: Math.floor(random() * 1_000) }),
      timestamp: START + minute() * MINUTE,
    }));
    append(store, calls);
    for (const cutoff of [START, START + 1_000.5 * MINUTE]) {
      await store.prune(cutoff);
      for (let n = 0; n < 300; n++) {
        const [from = 0, to = 0] = [minute(), minute()]
          .map((it) => START + it * MINUTE)
          .toSorted((a, b) => a - b);
        const since = Math.max(from, minuteOf(cutoff));
        const inside = calls.filter(({ timestamp }) => timestamp >= since && timestamp < to);
        const [found] = await usageOf(store, "tool", from, to);
        expect([found?.count ?? 0, found?.total_duration_ms ?? 0]).toEqual([
          inside.length,
          inside.reduce((sum, { data }) => sum + Number(data?.duration_ms), 0),
        ]);
      }
    }
  });

  test.each(["2026-01-01T12:30:30.500Z", "2026-01-01T12:00:00Z", "2026-01-01T00:00:00Z"])(
    "a limit at %s → figures of a time wholly before it go, others stay and count what they did",
    async (time) => {
      using store = openTestStore();
      const cutoff = Date.parse(time);
      const used = [-2 * DAY, -DAY, -DAY + MINUTE, -HOUR, -MINUTE, -1, 0, 1, MINUTE, HOUR, DAY].map(
        (ms) => ({
          ...at(0, "tool_use", { tool: "bash", duration_ms: 7 }),
          timestamp: cutoff + ms,
        }),
      );
      append(store, used); // one session, which stays
      const windows = [0, MINUTE, HOUR].map((ms) => cutoff + ms);
      const figures = () => Promise.all(windows.map((from) => usageOf(store, "tool", from)));
      const before = await figures();
      expect(before.map(([row]) => row?.count)).toEqual([
        used.filter(({ timestamp }) => Number(timestamp) >= minuteOf(cutoff)).length,
        3,
        2,
      ]);

      expect(await store.prune(cutoff)).toBe(0);
      expect(await figures()).toEqual(before);
      using beside = openBeside(store);
      const rows = beside
        .query<{ kind: string; period_ms: number; start: number }, []>(
          "SELECT kind, period_ms, start FROM usage ORDER BY kind, period_ms, start",
        )
        .all();
      const wanted = [
        ["", MINUTE],
        ["tool", MINUTE],
        ["tool", HOUR],
        ["tool", DAY],
      ] as const;
      const starts = (period_ms: number) => [
        ...new Set(
          used.map(({ timestamp }) => Number(timestamp) - (Number(timestamp) % period_ms)),
        ),
      ];
      expect(rows).toEqual(
        wanted.flatMap(([kind, period_ms]) =>
          starts(period_ms)
            .filter((start) => start + period_ms > cutoff)
            .map((start) => ({ kind, period_ms, start })),
        ),
      );
    },
  );

  afterEach(() => {
    jest.useRealTimers();
  });

  const startedNow = { type: "session_start", session_id: "s" };

  test("a server that starts after a session has expired → deletes it", async () => {
    let now = START;
    await using server = await startTestServer({ now: () => now });
    await postEvent(server, startedNow);
    now += 7 * DAY + 1;
    await postEvent(server, { ...startedNow, session_id: "fresh" });
    await server.restart();
    await waitFor(async () => (await eventsStored(server)) === 1, "the session to go");
  });

  test("a server that starts where every session has expired → doubts its clock: it says so, and deletes them an hour later", async () => {
    let now = START;
    const warnings: string[] = [];
    const log = {
      debug() {},
      info() {},
      warn: (line: string) => void warnings.push(line),
      error() {},
    };
    jest.useFakeTimers();
    await using server = await startTestServer({ now: () => now, log });
    await postEvent(server, startedNow);
    now += 8 * DAY;
    await server.restart();
    jest.advanceTimersByTime(HOUR - 1);
    expect(await eventsStored(server)).toBe(1);
    expect(warnings).toEqual([expect.stringContaining("clock")]);
    jest.advanceTimersByTime(1);
    jest.useRealTimers();
    await waitFor(async () => (await eventsStored(server)) === 0, "the session to go");
  });

  test("a file that can't be read any more → a line in the log at the next sweep, and the server goes on", async () => {
    const errors: string[] = [];
    const error = (line: string) => void errors.push(line);
    jest.useFakeTimers();
    await using server = await startTestServer({
      log: { debug() {}, info() {}, warn() {}, error },
    });
    await postEvent(server, startedNow);
    const path = databasePath(server.dataDir);
    using other = new Database(path);
    other.run("CREATE TABLE other (id)"); // or it would read what it has in memory
    other.run("PRAGMA wal_checkpoint(TRUNCATE)");
    truncateSync(path, 8_192);
    jest.advanceTimersByTime(5_000);
    jest.useRealTimers();
    expect(errors).toContainEqual(expect.stringContaining("SQLITE_CORRUPT"));
    expect((await fetch(`${server.url}/health`)).status).toBe(503);
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
  function openIngest(store: TestStore) {
    const transactions: number[] = [];
    /** Of each call, what another connection sees by then that it didn't before. */
    const published: { id: number; session_id: string }[][] = [];
    const hub = createHub(store);
    const ingest = createIngest(
      {
        append(posts) {
          transactions.push(posts.length);
          return store.append(posts);
        },
      },
      {
        publish(time) {
          using beside = openBeside(store);
          const select = beside.query<{ id: number; session_id: string }, [number]>(
            "SELECT id, session_id FROM events WHERE id > ? ORDER BY id",
          );
          published.push(select.all(published.at(-1)?.at(-1)?.id ?? 0));
          hub.publish(time);
        },
      },
      () => RECEIVED,
    );
    const submit = (session_id: string) =>
      ingest.submit(parsePosts([{ type: "session_start", session_id }]));
    return { ingest, submit, transactions, published };
  }

  test("50 posts in one turn of the event loop → one transaction; the next turn → another", async () => {
    using store = openTestStore();
    const { submit, transactions, published } = openIngest(store);
    const names = Array.from({ length: 50 }, (_, index) => `s${index}`);
    const receipts = await Promise.all(names.map(submit));
    await submit("later");
    expect(transactions).toEqual([50, 1]);
    const sessions = published.map((batch) => batch.map(({ session_id }) => session_id));
    expect(sessions).toEqual([names, ["later"]]);
    expect(receipts.flatMap(({ ids }) => ids)).toEqual(published[0]?.map(({ id }) => id) ?? []);
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
    expect(published.flat().map(({ session_id }) => session_id)).toEqual(["a", "poison", "b"]);
    expect(store.activity(0, 2 * NOW).map(({ count }) => count)).toEqual([3]); // of what failed nothing counts
  });

  test("a store that is closed → every poster gets the error", async () => {
    const store = openTestStore();
    const { submit, published } = openIngest(store);
    store[Symbol.dispose]();
    const outcomes = await Promise.allSettled([submit("a"), submit("b")]);
    expect(outcomes.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
    expect(published).toEqual([]);
  });

  test("more than may wait for a locked database → 503 at once; when it is stored there is room again", async () => {
    using store = openTestStore();
    using beside = openBeside(store);
    const ingest = createIngest(store, createHub(store), Date.now);
    const batch = () =>
      parsePosts(Array.from({ length: 5_000 }, () => ({ type: "message_user", session_id: "s" })));
    beside.run("BEGIN EXCLUSIVE");
    const waiting = Array.from({ length: 4 }, () => ingest.submit(batch()));
    const one = () => ingest.submit(parsePosts([{ type: "message_user", session_id: "s" }]));
    expect(one).toThrow(
      expect.objectContaining({ status: 503, headers: { "Retry-After": expect.any(String) } }),
    );
    beside.run("ROLLBACK");
    expect((await Promise.all(waiting)).map(({ stored }) => stored)).toEqual(Array(4).fill(5_000));
    expect(await one()).toMatchObject({ stored: 1 });
    expect(await ingest.submit(batch())).toMatchObject({ stored: 5_000 });
    expect(store.size().events).toBe(25_001);
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

test("a session whose events came while the clock ran ahead → is over, and waits for nobody, once it has ended", async () => {
  let now = START + 8 * 24 * HOUR;
  await using server = await startTestServer({ now: () => now });
  const post = (type: string, data = {}) => postEvent(server, { type, session_id: "s", data });
  await post("session_start");
  await post("input_requested", { request_id: "r", kind: "question" });
  now = START; // somebody has set it right
  const read = async () => {
    const { sessions } = await getJson<{ sessions: Record<string, unknown>[] }>(
      server,
      "/api/sessions",
    );
    return sessions[0];
  };
  expect(await read()).toMatchObject({ status: "active", waiting_since: expect.any(String) });
  await post("session_end", { reason: "completed" });
  expect(await read()).toMatchObject({ status: "completed", waiting_since: null });
  await post("session_update", { title: "later" });
  await server.restart();
  expect(await read()).toMatchObject({ status: "completed", waiting_since: null });
});
