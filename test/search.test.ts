/** Search over the whole history, and how its index keeps up: with posts, deletions, kills and migrations. */

import { Database } from "bun:sqlite";
import { afterEach, describe, expect, test } from "bun:test";
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { parseEvent } from "../server.ts";
import type { PostedEvent } from "./fixtures.ts";
import {
  databasePath,
  getJson,
  isSoak,
  openTestStore,
  postEvent,
  removeTempDirs,
  spawnServer,
  startTestServer,
  startWriters,
  type TestServer,
  tempDir,
  waitFor,
} from "./helpers.ts";

afterEach(removeTempDirs);

const START = Date.parse("2026-01-01T12:00:00Z");

interface Found {
  id: number;
  type: string;
  session_id: string;
  timestamp: string;
}
interface Answer {
  events: Found[];
  indexed_to?: number;
}

async function search(server: { url: string }, query: Record<string, string>): Promise<Answer> {
  return getJson<Answer>(server, `/api/events?${new URLSearchParams(query)}`);
}

/** Waits until the index has all that is stored. */
async function indexed(server: { url: string }): Promise<void> {
  const isBehind = async () => (await search(server, { q: "nothing" })).indexed_to !== undefined;
  await waitFor(async () => !(await isBehind()), "the index to have all events", 60_000);
}

/** Event ids are answered in a post's order: which of `events` a search finds, newest first. */
async function startWith(events: PostedEvent[]): Promise<{
  server: TestServer;
  find: (query: Record<string, string> | string) => Promise<number[]>;
}> {
  const server = await startTestServer({ config: { retentionHours: 1e6 } });
  const { body } = await postEvent(server, events);
  await indexed(server);
  return {
    server,
    async find(query) {
      const given = typeof query === "string" ? { q: query } : query;
      const { events } = await search(server, given);
      return events.map(({ id }) => body.ids?.indexOf(id) ?? -1);
    },
  };
}

const call = (tool: string, args: unknown, more: Partial<PostedEvent> = {}): PostedEvent => ({
  type: "tool_use",
  session_id: "s",
  timestamp: START,
  data: { tool, args },
  ...more,
});

describe("GET /api/events?q=", () => {
  test("all terms must be there, in any field, in any order; the newest first", async () => {
    const { server, find } = await startWith([
      call("bash", { command: "bun test store" }),
      call("edit", {
        filePath: "/home/dev/server.ts",
        newString: 'store\nreader\t"quoted" C:\\new',
      }),
      call("bash", { command: "ls" }, { data: { tool: "bash", error: "no such store" } }),
      {
        type: "session_start",
        session_id: "t",
        data: { title: "Store", todos: [{ content: "read" }] },
      },
    ]);
    await using _ = server;
    expect(await find("store")).toEqual([3, 2, 1, 0]);
    expect(await find("store bash")).toEqual([2, 0]);
    expect(await find("BASH  Test")).toEqual([0]);
    expect(await find("read")).toEqual([3]);
    expect(await find("reader quoted new")).toEqual([1]); // what JSON escapes stands by itself
    expect(await find("stor")).toEqual([]); // words, not their beginnings
    expect(await find("filePath command")).toEqual([]); // names of fields are none
    expect(await find("nowhere")).toEqual([]);
  });

  test("a term of several words → as it stands", async () => {
    const { server, find } = await startWith([
      call("edit", { filePath: "/src/server.ts" }),
      call("edit", { filePath: "/src/ts/server" }),
      call("edit", { filePath: "/src/server/ts.md" }),
    ]);
    await using _ = server;
    expect(await find("server.ts")).toEqual([2, 0]); // a dot and a slash are alike
    expect(await find("src/server.ts")).toEqual([2, 0]);
    expect(await find("ts/server")).toEqual([1]);
    expect(await find("server ts")).toEqual([2, 1, 0]);
    expect(await find("/src/server.ts")).toEqual([2, 0]);
  });

  test("scripts without spaces, accents, pictographs", async () => {
    const { server, find } = await startWith([
      call("bash", "東京タワーへ行く"),
      call("bash", "京都と東の道"),
      call("bash", "Crème brûlée ÉCOLE"),
      call("bash", "done🎉 👩‍💻"),
      call("bash", "Ünïcödé ﬁle Ⅻ"),
      call("bash", "안녕하세요"),
      call("bash", "Acme™"),
    ]);
    await using _ = server;
    expect(await find("東京")).toEqual([0]);
    expect(await find("京都")).toEqual([1]);
    expect(await find("タワー 行く")).toEqual([0]);
    expect(await find("東")).toEqual([1, 0]);
    expect(await find("acmetm 𝐀cme™")).toEqual([6]);
    expect(await find("creme brulee")).toEqual([2]);
    expect(await find("CRÈME école")).toEqual([2]);
    expect(await find("🎉")).toEqual([3]);
    expect(await find("done")).toEqual([3]);
    expect(await find("💻 done")).toEqual([3]);
    expect(await find("unicode file")).toEqual([4]);
    expect(await find("안녕")).toEqual([5]);
    expect(await find("녕안")).toEqual([]);
  });

  const TYPED = [
    '"',
    '""',
    "'",
    "*",
    "bash*",
    "-bash",
    "+",
    "a OR b",
    "NOT x",
    "(",
    ")",
    "a AND",
    "NEAR(a b, 2)",
    "𝐍𝐎𝐓",
    "𝐀𝐍𝐃 x",
    "^a",
    "words:bash",
    "{a}: b",
    "\\",
    "%",
    "_",
    "--",
    ";",
    "\u0000",
    "\ud800",
    "🎉*",
    "東*",
    'a"b',
    "'; DROP TABLE events",
    "rank",
    "search",
    "a".repeat(5_000),
    "b ".repeat(3_000),
    Array.from({ length: 2_000 }, (_, i) => `w${i}`).join(" "),
    "\u00ad",
    "\u200b",
    "\u202e",
    "İ",
    "ß",
    "\ufdfa",
    "᪐",
    "\u{1f1e6}\u{1f1e8}",
  ];
  test("nothing that a person types is an error", async () => {
    const { server } = await startWith([call("bash", "a b"), call("read", "x")]);
    await using _ = server;
    for (const typed of TYPED)
      for (const name of ["q", "tool"]) {
        const query = new URLSearchParams({ [name]: typed });
        const response = await fetch(`${server.url}/api/events?${query}`);
        expect([typed.slice(0, 40), response.status]).toEqual([typed.slice(0, 40), 200]);
        await response.json();
      }
  });

  test("signs alone → as if nothing was asked for; beside words they don't matter", async () => {
    const { server, find } = await startWith([call("bash", "a"), call("read", "b")]);
    await using _ = server;
    expect(await find('" * -')).toEqual([1, 0]);
    expect(await find('"bash" - *')).toEqual([0]);
  });

  test("pages by `before` and `limit`, each hit once", async () => {
    const count = 1_230;
    const { server, find } = await startWith(
      Array.from({ length: count }, (_, index) => call("bash", index % 3 === 0 ? "fizz" : "other")),
    );
    await using _ = server;
    const wanted = Array.from({ length: count / 3 }, (_, index) => (count / 3 - 1 - index) * 3);
    expect(await find({ q: "fizz", limit: "1000" })).toEqual(wanted);
    const paged: number[] = [];
    for (let before = ""; ;) {
      const page = await search(server, { q: "fizz", limit: "100", ...(before && { before }) });
      if (page.events.length === 0) break;
      paged.push(...page.events.map(({ id }) => id));
      before = String(paged.at(-1));
    }
    const all = await search(server, { q: "fizz", limit: "1000" });
    expect(paged).toEqual(all.events.map(({ id }) => id));
  });

  test("with `sessionId`, `type`, `tool`, `from` and `to`, in any combination, both orders and as NDJSON", async () => {
    const events = Array.from({ length: 64 }, (_, index) =>
      call(index & 1 ? "bash" : "read", index & 2 ? "needle" : "hay", {
        session_id: index & 4 ? "a" : "b",
        type: index & 8 ? "tool_use" : "tool_start",
        timestamp: START + (index >> 4) * 60_000,
        data: {
          tool: index & 1 ? "bash" : "read",
          args: index & 2 ? "needle bash" : "hay",
          call_id: `c${index}`,
        },
      }),
    );
    const { server, find } = await startWith(events);
    await using _ = server;
    const minute = (index: number) => new Date(START + index * 60_000).toISOString();
    for (let mask = 1; mask < 64; mask++) {
      const query = {
        ...(mask & 1 && { q: "needle" }),
        ...(mask & 2 && { sessionId: "a" }),
        ...(mask & 4 && { type: "tool_use" }),
        ...(mask & 8 && { tool: "bash" }),
        ...(mask & 16 && { from: minute(1) }),
        ...(mask & 32 && { to: minute(3) }),
      };
      const wanted = events.flatMap((event, index) => {
        const at = index >> 4;
        const isWanted =
          (!(mask & 1) || index & 2) &&
          (!(mask & 2) || event.session_id === "a") &&
          (!(mask & 4) || event.type === "tool_use") &&
          (!(mask & 8) || event.data?.tool === "bash") &&
          (!(mask & 16) || at >= 1) &&
          (!(mask & 32) || at < 3);
        return isWanted ? [index] : [];
      });
      expect([query, await find(query)]).toEqual([query, wanted.toReversed()]);
      expect([query, await find({ ...query, after: "0" })]).toEqual([query, wanted]);
      const response = await fetch(
        `${server.url}/api/events?${new URLSearchParams({ ...query })}`,
        {
          headers: { Accept: "application/x-ndjson" },
        },
      );
      const lines = (await response.text()).split("\n").filter(Boolean);
      expect(lines).toHaveLength(wanted.length);
    }
  });

  test.each(["from", "to"])("`%s` that is no time → 400 that says what is", async (name) => {
    await using server = await startTestServer();
    for (const given of ["yesterday", "2026-01-01", "2026-02-30T00:00:00Z", "-1"]) {
      const response = await fetch(`${server.url}/api/events?${name}=${given}`);
      expect(response.status).toBe(400);
      expect(await response.json()).toEqual({
        error: expect.stringContaining(`${name}: expected`),
      });
    }
  });
});

describe("the index", () => {
  /** What the words of all events would find, against what the index has. */
  function compareWithLog(dataDir: string): void {
    using db = new Database(databasePath(dataDir));
    const ids = (sql: string) =>
      db
        .query<{ id: number }, []>(sql)
        .all()
        .map(({ id }) => id);
    expect(ids(`SELECT rowid AS id FROM search WHERE search MATCH 'bash' ORDER BY rowid`)).toEqual(
      ids("SELECT id FROM events WHERE data LIKE '%bash%' ORDER BY id"),
    );
    expect(ids("SELECT id FROM search_docsize ORDER BY id")).toEqual(
      ids("SELECT id FROM events WHERE id <= (SELECT indexed_to FROM watermark) ORDER BY id"),
    );
    db.run("INSERT INTO search (search) VALUES ('integrity-check')");
  }

  test("isn't there yet → the answer says up to where it goes, and finds what is in it", async () => {
    using store = openTestStore();
    const post = (events: PostedEvent[]) =>
      store.append([events.map((event) => parseEvent(event, Date.now()))]).receipts[0]?.ids ?? [];
    const find = async () => {
      const filter = { sessionId: null, before: null, after: null, type: null };
      const wanted = { ...filter, q: "needle", tool: null, from: 0, to: Infinity };
      const found = store.listEvents(wanted, "newest first", 10);
      return (await Array.fromAsync(found)).map(({ id }) => id);
    };
    expect(store.indexedTo()).toBeUndefined();
    const [first = 0] = post([call("bash", "needle")]);
    store.index(1_000);
    expect(store.indexedTo()).toBeUndefined();
    const [second = 0] = post([call("bash", "needle")]);
    expect(store.indexedTo()).toBe(first);
    expect(await find()).toEqual([first]);
    store.index(1_000);
    expect(await find()).toEqual([second, first]);
    expect(store.indexedTo()).toBeUndefined();
  });

  test("goes on in small steps", () => {
    using store = openTestStore();
    const events = Array.from({ length: 5_000 }, (_, index) => call("bash", `needle ${index}`));
    store.append([events.map((event) => parseEvent(event, Date.now()))]);
    let steps = 0;
    for (; store.indexedTo() !== undefined; steps++) store.index(1);
    expect(steps).toBeGreaterThan(3);
    compareWithLog(store.dataDir);
  });

  test("loses what retention deletes", async () => {
    using store = openTestStore();
    const events = Array.from({ length: 1_000 }, (_, index) =>
      call("bash", "x", {
        session_id: `s${index % 10}`,
        timestamp: START + (index % 10) * 3_600_000,
      }),
    );
    store.append([events.map((event) => parseEvent(event, Date.now()))]);
    store.index(1_000);
    expect(await store.prune(START + 5 * 3_600_000)).toBe(5);
    compareWithLog(store.dataDir);
    expect(store.size().events).toBe(500);
  });

  test("gets small again with what retention deletes, as the file does", async () => {
    using store = openTestStore();
    for (let batch = 0; batch < 10; batch++) {
      const events = Array.from({ length: 1_000 }, (_, index) =>
        call("bash", `word${(index * 7_919) % 10_007} of${batch}`, {
          session_id: `s${batch}`,
          timestamp: START + batch * 3_600_000,
        }),
      );
      store.append([events.map((event) => parseEvent(event, Date.now()))]);
      store.index(1_000);
    }
    const sizes = () => {
      using db = new Database(databasePath(store.dataDir));
      const [[index = null] = [], [free = null] = [], [merge = null] = []] = [
        "SELECT SUM(LENGTH(block)) FROM search_data",
        "PRAGMA freelist_count",
        "SELECT v FROM search_config WHERE k = 'automerge'",
      ].flatMap((text) => db.query(text).values());
      return { index: Number(index), free, merge };
    };
    const before = sizes();
    const { bytes } = store.size();
    let during: ReturnType<typeof sizes> | undefined;
    await store.prune(START + 8.5 * 3_600_000, undefined, () => (during ??= sizes()));
    expect(during?.merge).toBe(0); // SQLite's own merging, all at once, waits
    const after = sizes();
    expect(after.index).toBeLessThan(before.index / 2); // unmerged it would be three times as large as before
    expect([after.free, after.merge]).toEqual([0, 4]);
    expect(store.size().bytes).toBeLessThan(bytes / 3);
    compareWithLog(store.dataDir);
  });

  const KILLS = isSoak ? 20 : 4;
  test(`killed ${KILLS} times while it is fed and emptied → has exactly what the log has`, async () => {
    const dataDir = tempDir();
    let serial = 0;
    for (let kill = 0; kill < KILLS; kill++) {
      await using server = await spawnServer({ dataDir });
      const writers = startWriters(server, () => ({
        ...call("bash", `n${serial}`, { timestamp: Date.now(), session_id: `s${serial % 5}` }),
        id: `e${serial++}`,
      }));
      await waitFor(() => writers.acknowledged.size > 200 * (kill + 1), "posts");
      void fetch(`${server.url}/api/sessions/s${kill % 5}`, { method: "DELETE" }).catch(() => {});
      await waitFor(() => writers.acknowledged.size > 200 * (kill + 1) + 20 * kill, "posts");
      await server.end("SIGKILL");
      await writers.ended;
    }
    await using server = await spawnServer({ dataDir });
    await indexed(server);
    expect((await server.end("SIGTERM")).exitCode).toBe(0);
    compareWithLog(dataDir);
  }, 60_000);

  test("of a database of schema 1 → built after the start, while requests are answered", async () => {
    const dataDir = tempDir();
    copyFileSync(join(import.meta.dir, "fixtures/schema-1.db"), databasePath(dataDir));
    await using server = await spawnServer({ dataDir, env: { RETENTION_HOURS: "1000000" } });
    await indexed(server);
    const { events } = await search(server, { q: "read", limit: "1000" });
    expect(events.length).toBeGreaterThan(5);
    expect((await server.end("SIGTERM")).exitCode).toBe(0);
    using db = new Database(databasePath(dataDir));
    const [all = null] = db.query("SELECT COUNT(*) FROM events").values()[0] ?? [];
    expect(db.query("SELECT COUNT(*) FROM search_docsize").values()[0]).toEqual([all]);
  });
});
