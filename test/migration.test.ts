/**
 * Databases of earlier versions: a real file of each is migrated, and is then what a new database
 * would be to which the same events were posted.
 */

import { Database } from "bun:sqlite";
import { afterEach, describe, expect, test } from "bun:test";
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { type Log, openStore, parseEvent } from "../server.ts";
import {
  databasePath,
  getJson,
  isSoak,
  openStream,
  postEvent,
  removeTempDirs,
  spawnServer,
  startTestServer,
  tempDir,
  waitFor,
} from "./helpers.ts";

/** Made by fixtures/make-database.ts. */
const FIXTURE = join(import.meta.dir, "fixtures/schema-1.db");
/** The time of the last event in it. */
const NOW = Date.parse("2026-11-22T11:40:00Z");
/** What a server of today refuses: a question without an id, and a session that no URL can name. */
const NO_LONGER_ACCEPTED = ["asks-without-id", ".."];

const HOUR = 3_600_000;
const KEEP_ALL = { RETENTION_HOURS: "1000000" };

afterEach(removeTempDirs);

interface ExportedEvent {
  id: number;
  type: string;
  session_id: string;
}

interface StoredRow {
  id: number;
  session_id: string;
  type: string;
  timestamp: number;
}

/** The fixture as the database of a data directory. */
function copyFixture(): string {
  const dataDir = tempDir();
  copyFileSync(FIXTURE, databasePath(dataDir));
  return dataDir;
}

/** What is stored in a file of schema 1, read beside any server. */
function storedRows(dataDir: string): StoredRow[] {
  using database = new Database(databasePath(dataDir));
  return database
    .query<StoredRow, []>("SELECT id, session_id, type, timestamp FROM events ORDER BY id")
    .all();
}

/** A server in this process whose clock stands still: what depends on the time of day is the same. */
function startAtNow(dataDir?: string, log?: Log) {
  return startTestServer({
    config: { retentionHours: Number(KEEP_ALL.RETENTION_HOURS) },
    now: () => NOW,
    ...(dataDir === undefined ? {} : { dataDir }),
    ...(log === undefined ? {} : { log }),
  });
}

async function exportedEvents(server: { url: string }): Promise<ExportedEvent[]> {
  const response = await fetch(`${server.url}/api/events?after=0`, {
    headers: { Accept: "application/x-ndjson" },
  });
  const lines = (await response.text()).trimEnd().split("\n");
  return lines.map((line) => JSON.parse(line));
}

/** `value` without the ids that a database gives: they are numbers. */
function withoutIds(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutIds);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([name, item]) => name !== "id" || typeof item !== "number")
      .map(([name, item]) => [name, withoutIds(item)]),
  );
}

/** Everything that is folded from the events, as the routes give it, but of the sessions in `except`. */
async function foldedRows(server: { url: string }, except: string[] = []) {
  const all = await getJson<{ sessions: { id: string }[] }>(server, "/api/sessions?limit=1000");
  const sessions = all.sessions.filter(({ id }) => !except.includes(id));
  const details = await Promise.all(
    sessions.map(({ id }) => getJson(server, `/api/sessions/${encodeURIComponent(id)}`)),
  );
  const spans = await Promise.all(
    sessions.map(({ id }) =>
      getJson(server, `/api/spans?limit=1000&sessionId=${encodeURIComponent(id)}`),
    ),
  );
  return withoutIds({ sessions, details, spans });
}

const ANALYTICS = ["tools", "agents", "activity"].flatMap((name) => [
  `/api/analytics/${name}?hours=1`,
  `/api/analytics/${name}?hours=2000`,
]);

async function analyticsOf(server: { url: string }) {
  return Promise.all(ANALYTICS.map((path) => getJson(server, path)));
}

/** Lines of a log that say how far a migration is: how many events are folded, and of how many. */
function progress(output: string): { done: number; total: number }[] {
  return [...output.matchAll(/new schema: (\d+) of (\d+) events/g)].map(([, done, total]) => ({
    done: Number(done),
    total: Number(total),
  }));
}

describe("a database of schema 1", () => {
  test("is migrated when a server starts on it, the log says how far it is, and the next start has nothing to do", async () => {
    const dataDir = copyFixture();
    const before = storedRows(dataDir);
    {
      await using server = await spawnServer({ dataDir, env: KEEP_ALL });
      expect(progress(server.output())).toContainEqual({ done: 0, total: before.length });
      const events = await exportedEvents(server);
      expect(events.map(({ id, session_id, type }) => ({ id, session_id, type }))).toEqual(
        before.map(({ id, session_id, type }) => ({ id, session_id, type })),
      );
      expect(await getJson(server, "/health")).toMatchObject({ events: before.length });
      expect((await server.end("SIGTERM")).exitCode).toBe(0);
    }
    await using again = await spawnServer({ dataDir, env: KEEP_ALL });
    expect(await exportedEvents(again)).toHaveLength(before.length);
    expect(progress(again.output())).toEqual([]);
  });

  test("gives the rows and figures of a new one to which its events were posted", async () => {
    await using migrated = await startAtNow(copyFixture());
    await using fresh = await startAtNow();
    const events = (await exportedEvents(migrated)).filter(
      ({ session_id }) => !NO_LONGER_ACCEPTED.includes(session_id),
    );
    expect(events.length).toBeGreaterThan(200);
    expect((await postEvent(fresh, events)).status).toBe(201);
    expect(await foldedRows(migrated, NO_LONGER_ACCEPTED)).toEqual(await foldedRows(fresh));
    // It is the fixture that is compared, and not nothing.
    const { sessions } = await getJson<{ sessions: object[] }>(migrated, "/api/sessions");
    expect(sessions).toContainEqual(
      expect.objectContaining({ id: "asks", waiting_since: "2026-11-22T11:26:00.000Z" }),
    );
    expect(sessions).toContainEqual(
      expect.objectContaining({ id: "completed-and-updated", status: "completed" }),
    );
    expect(sessions).toContainEqual(
      expect.objectContaining({ id: "abandoned", status: "stale", waiting_since: null }),
    );
    expect(sessions).toContainEqual(
      expect.objectContaining({ id: "failed-subagent", error_count: 1, agent_count: 1 }),
    );
  });

  test("gives the analytics of a new one to which its events were posted", async () => {
    const dataDir = copyFixture();
    removeFromSchema1(dataDir, NO_LONGER_ACCEPTED);
    await using migrated = await startAtNow(dataDir);
    await using fresh = await startAtNow();
    expect((await postEvent(fresh, await exportedEvents(migrated))).status).toBe(201);
    const figures = await analyticsOf(migrated);
    expect(figures).toEqual(await analyticsOf(fresh));
    expect(figures[0]).toMatchObject({
      tools: expect.arrayContaining([expect.objectContaining({ tool: "read" })]),
    });
  });

  test("with what is refused today → kept, counted as events, and nobody waits for a question without an id", async () => {
    await using server = await startAtNow(copyFixture());
    const { sessions } = await getJson<{ sessions: object[] }>(server, "/api/sessions?limit=1000");
    expect(sessions).toContainEqual(
      expect.objectContaining({ id: "asks-without-id", event_count: 2, waiting_since: null }),
    );
    expect(sessions).toContainEqual(
      expect.objectContaining({ id: "..", event_count: 2, tool_count: 1 }),
    );
  });

  test("and a client's last event id of before → resumes exactly; one whose events were deleted → reset", async () => {
    const dataDir = copyFixture();
    const ids = storedRows(dataDir).map(({ id }) => id);
    await using server = await spawnServer({ dataDir, env: KEEP_ALL });
    const { body } = await postEvent(server, { type: "message_user", session_id: "after" });
    const all = [...ids, body.id ?? 0];
    for (const at of [0, 100, ids.length - 1]) {
      const stream = await openStream(server, "", { "Last-Event-ID": String(ids[at]) });
      const wanted = all.slice(at + 1);
      await waitFor(() => stream.events().length >= wanted.length, "what came since");
      expect(stream.events().map(({ id }) => Number(id))).toEqual(wanted);
      expect(stream.events().filter(({ event }) => event === "reset")).toEqual([]);
      stream.close();
    }
    const pruned = await openStream(server, `?lastEventId=${(ids[0] ?? 0) - 5}`);
    expect((await pruned.waitForEvents(1))[0]?.event).toBe("reset");
    pruned.close();
  });

  const COUNT = isSoak ? 600_000 : 10_000;
  test(`of ${COUNT} events, killed in the middle of the migration → the next start finishes it, with the same rows`, async () => {
    const dataDir = copyFixture();
    enlarge(dataDir, COUNT);
    const undisturbed = tempDir();
    copyFileSync(databasePath(dataDir), databasePath(undisturbed));
    const before = storedRows(dataDir).length;

    await killWhileMigrating(dataDir);
    const lines: string[] = [];
    const keep = (line: string) => void lines.push(line);
    const log = { debug: keep, info: keep, warn: keep, error: keep };
    await using server = await startAtNow(dataDir, log);
    const [{ done, total } = { done: -1, total: -1 }] = progress(lines.join("\n"));
    expect(total).toBe(before);
    expect(done).toBeGreaterThan(0); // it was killed in the middle, and what it did stays
    expect(done).toBeLessThan(total);
    expect(await getJson(server, "/health")).toMatchObject({ events: before });
    await using wanted = await startAtNow(undisturbed);
    expect(await foldedRows(server, [".."])).toEqual(await foldedRows(wanted, [".."]));
    expect(await analyticsOf(server)).toEqual(await analyticsOf(wanted));
  }, 120_000);
});

/** Starts a server, and kills it once it has folded some of the events. */
async function killWhileMigrating(dataDir: string): Promise<void> {
  const child = Bun.spawn({
    cmd: [process.execPath, join(import.meta.dir, "..", "server.ts")],
    cwd: dataDir,
    env: { PATH: process.env.PATH ?? "", PORT: "0", DATA_DIR: dataDir, ...KEEP_ALL },
    stdio: ["ignore", "ignore", "inherit"],
  });
  using database = new Database(databasePath(dataDir), { readonly: true });
  const hasFolded = () => {
    try {
      return database.query("SELECT 1 FROM unfolded WHERE next_id > 0").get() !== null;
    } catch {
      return false; // there is no such table yet, or it is being made
    }
  };
  await waitFor(hasFolded, "the first events to be folded");
  child.kill("SIGKILL");
  await child.exited;
}

/** Deletes sessions, and counts anew what is counted of all. */
function removeFromSchema1(dataDir: string, sessions: string[]): void {
  using database = new Database(databasePath(dataDir));
  database.run("PRAGMA foreign_keys = ON");
  for (const id of sessions) database.run("DELETE FROM sessions WHERE id = ?", [id]);
  countUsage(database);
}

/** Adds `count` tool calls to a file of schema 1, in ten sessions that are two to eight days old. */
function enlarge(dataDir: string, count: number): void {
  using database = new Database(databasePath(dataDir));
  database.run("PRAGMA foreign_keys = ON");
  database.transaction(() => {
    database.run(
      `WITH RECURSIVE serial (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM serial WHERE n < ? - 1)
       INSERT INTO events (client_id, session_id, type, timestamp, name, call_id, duration_ms, failed, data)
       SELECT
         'large/' || n,
         'large-' || (n % 10),
         'tool_use',
         ? + n * 8000,
         'tool_' || (n % 7),
         'call_' || n,
         n % 900,
         n % 11 = 0,
         json_object('tool', 'tool_' || (n % 7), 'args', 'step ' || n, 'call_id', 'call_' || n,
                     'success', json(IIF(n % 11 = 0, 'false', 'true')), 'duration_ms', n % 900)
       FROM serial`,
      [count, NOW - 8 * 24 * 3_600_000],
    );
    database.run(
      `INSERT INTO sessions (
         id, started_at, last_event_at, last_activity_at, last_end_at, asked_at, answered_at,
         event_count, tool_count, agent_count, error_count, info
       )
       SELECT session_id, MIN(timestamp), MAX(timestamp), MAX(timestamp), 0, 0, 0,
              COUNT(*), COUNT(*), 0, SUM(failed), '{}'
       FROM events
       WHERE session_id LIKE 'large-%'
       GROUP BY session_id`,
    );
    countUsage(database);
  })();
}

/** What that version counts of the tool calls and of all events of a file, whoever wrote them. */
function countUsage(database: Database): void {
  database.run("DELETE FROM usage WHERE type IN ('', 'tool_use')");
  for (const span of [60_000, 3_600_000])
    database.run(
      `INSERT INTO usage (type, span, start, name, count, timed, total_ms, max_ms, errors)
       SELECT type, ?1, timestamp / ?1 * ?1, name, COUNT(*), COUNT(duration_ms),
              IFNULL(SUM(duration_ms), 0), MAX(duration_ms), SUM(failed)
       FROM events
       WHERE type = 'tool_use'
       GROUP BY 1, 3, 4`,
      [span],
    );
  database.run(
    `INSERT INTO usage (type, span, start, name, count, timed, total_ms, max_ms, errors)
     SELECT '', 60000, timestamp / 60000 * 60000, '', COUNT(*), 0, 0, NULL, SUM(failed)
     FROM events
     GROUP BY 1, 3`,
  );
}

test.each([
  [1_999, 2],
  [2_000, 2],
  [2_001, 2],
  [8_000, 2],
  [2_001, 3],
])(
  "%d events in a file of schema %d → folded anew, each once, and nothing is left to fold",
  (count, schema) => {
    const directory = tempDir();
    const calls = Math.ceil(count / 2); // first they all start
    const event = (index: number) => ({
      type: index < calls ? "tool_start" : "tool_use",
      session_id: `s${(index % calls) % 7}`,
      data: { tool: "bash", call_id: `c${index % calls}`, duration_ms: index },
    });
    const before = openStore(directory);
    before.append([Array.from({ length: count }, (_, index) => parseEvent(event(index), NOW))]);
    const rows = rowsOf(directory);
    before.close();
    using db = new Database(databasePath(directory));
    db.run(`UPDATE sessions SET fold = '{}'; PRAGMA user_version = ${schema};
      DROP TRIGGER events_search; DROP TABLE search; ALTER TABLE watermark DROP COLUMN indexed_to;
      ALTER TABLE deletions DROP COLUMN counted_from; ALTER TABLE deletions DROP COLUMN directory;
      ALTER TABLE unfolded DROP COLUMN keeps_spend`);
    for (let start = 0; start < 2; start++) openStore(directory).close();
    expect(rowsOf(directory)).toEqual(rows);
    expect(db.query("SELECT * FROM unfolded").all()).toEqual([]);
  },
);

/** What is made from the log. */
function rowsOf(directory: string): unknown[] {
  using db = new Database(databasePath(directory), { readonly: true });
  return ["sessions", "spans", "usage"].map((table) =>
    db.query(`SELECT * FROM ${table} ORDER BY 1, 2, 3, 4`).all(),
  );
}

/** A file of schema 4 in which a session of ten days ago is gone, but not what it spent. */
async function spentInSchema4(): Promise<string> {
  const directory = tempDir();
  const store = openStore(directory);
  const answer = (session_id: string, timestamp: number) =>
    parseEvent(
      {
        ...{ type: "model_response", session_id, timestamp },
        data: { call_id: session_id, model: "opus", cost: 0.5, tokens: { input: 7 } },
      },
      NOW,
    );
  store.append([[answer("gone", NOW - 10 * 24 * HOUR), answer("kept", NOW - HOUR)]]);
  await store.prune(NOW - 7 * 24 * HOUR);
  store.close();
  using db = new Database(databasePath(directory));
  db.run("ALTER TABLE unfolded DROP COLUMN keeps_spend; PRAGMA user_version = 4");
  return directory;
}

async function spentDays(directory: string): Promise<number[]> {
  const store = openStore(directory);
  const days = store.usageStats("spend", 0, NOW, "day");
  const counts = await Array.fromAsync(days, ({ sums }) => sums.nanodollars ?? 0);
  store.close();
  return counts;
}

test("a file of schema 4: what was spent is kept, also by sessions that are gone, and isn't counted twice", async () => {
  const directory = await spentInSchema4();
  expect(await spentDays(directory)).toEqual([5e8, 5e8]);
  const after = openStore(directory);
  const { events } = after.size();
  expect(events).toBe(1);
  const late = { type: "model_response", session_id: "kept", timestamp: NOW - HOUR };
  const data = { call_id: "another", model: "opus", cost: 0.25 };
  after.append([[parseEvent({ ...late, data }, NOW)]]);
  after.close();
  expect(await spentDays(directory)).toEqual([5e8, 7.5e8]);
});

test("a file that schema 4 was folding when it ended: what was spent is what the log says", async () => {
  const directory = await spentInSchema4();
  {
    using db = new Database(databasePath(directory));
    db.run("INSERT INTO unfolded SELECT MIN(id) FROM events");
  }
  expect(await spentDays(directory)).toEqual([5e8]);
});

test("a file of schema 4 of which a session was being deleted → that one doesn't come back", async () => {
  const directory = await spentInSchema4();
  {
    using db = new Database(databasePath(directory));
    db.run("UPDATE sessions SET deleted_to = (SELECT MAX(id) FROM events), is_over = NULL");
  }
  const store = openStore(directory);
  expect(store.size().events).toBe(0);
  expect(store.toSession("kept", NOW)).toBeNull();
  store.close();
});
