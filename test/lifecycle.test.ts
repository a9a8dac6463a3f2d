/** The real process: how it starts, refuses to start, survives kill -9, and ends. */

import { Database } from "bun:sqlite";
import { afterAll, afterEach, describe, expect, test } from "bun:test";
import {
  appendFileSync,
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { networkInterfaces } from "node:os";
import { join } from "node:path";
import { type PostedEvent, seededRandom, sessionEvents } from "./fixtures.ts";
import {
  copyProject,
  databasePath,
  getJson,
  isSoak,
  makeTempDir,
  openStream,
  postEvent,
  removeTempDirs,
  runToExit,
  spawnServer,
  startWriters,
  tempDir,
  waitFor,
} from "./helpers.ts";

const PROJECT = join(import.meta.dir, "..");
const KILLS = isSoak ? 20 : 5;
/** Within the retention of every start here. */
const FROM = Date.now() - 3_600_000;

afterEach(removeTempDirs);

const MADE = makeTempDir();
afterAll(() => rmSync(MADE, { recursive: true }));

/** A directory with a database of a few hundred pages in it, closed properly: a copy of the first. */
async function makeDatabase(): Promise<string> {
  if (!existsSync(databasePath(MADE))) await fillDatabase(MADE);
  const dataDir = tempDir();
  cpSync(MADE, dataDir, { recursive: true });
  return dataDir;
}

async function fillDatabase(dataDir: string): Promise<void> {
  await using server = await spawnServer({ dataDir });
  const events = Array.from({ length: 40 }, (_, index) =>
    sessionEvents(`s${index}`, { from: FROM }),
  ).flat();
  for (let from = 0; from < events.length; from += 500)
    expect((await postEvent(server, events.slice(from, from + 500))).status).toBe(201);
  expect((await server.end("SIGTERM")).exitCode).toBe(0);
}

/** One line on stderr, nothing on stdout, exit code 1: what the user gets where it can't start. */
async function expectOneLine(dataDir: string, env: Record<string, string> = {}): Promise<string> {
  const { exitCode, stdout, stderr } = await runToExit({ dataDir, env });
  expect({ exitCode, stdout, lines: stderr.split("\n").length - 1, stderr }).toMatchObject({
    exitCode: 1,
    stdout: "",
    lines: 1,
  });
  return stderr;
}

describe("start", () => {
  test("says in one line where it listens, and nothing else", async () => {
    await using server = await spawnServer({ dataDir: tempDir() });
    expect((await fetch(`${server.url}/health`)).status).toBe(200);
    expect(server.output().split("\n")).toEqual([
      expect.stringMatching(/ http:\/\/localhost:\d+$/),
      "",
    ]);
  });

  test("HOST=localhost answers on 127.0.0.1 and on ::1", async () => {
    const hasIPv6 = Object.values(networkInterfaces())
      .flat()
      .some((network) => network?.address === "::1");
    await using server = await spawnServer({ dataDir: tempDir(), env: { HOST: "localhost" } });
    for (const host of hasIPv6 ? ["127.0.0.1", "[::1]"] : ["127.0.0.1"])
      expect((await fetch(`http://${host}:${server.port}/health`)).status).toBe(200);
  });

  test("reads .env, and the environment goes before it", async () => {
    const dataDir = tempDir();
    writeFileSync(
      join(dataDir, ".env"),
      `AUTH_TOKEN=${"t".repeat(32)}\nMAX_SUBSCRIBERS=7\nLOG_LEVEL=loud\n`,
    );
    await using server = await spawnServer({ dataDir, env: { LOG_LEVEL: "info" } });
    expect((await fetch(`${server.url}/api/sessions`)).status).toBe(401);
  });

  test("the page has its script and style on both loopback addresses, whichever is asked first", async () => {
    await using server = await spawnServer({ dataDir: tempDir(), env: { HOST: "localhost" } });
    for (const host of ["[::1]", "127.0.0.1"]) {
      const origin = `http://${host}:${server.port}`;
      const html = await (await fetch(origin)).text();
      const files = [...html.matchAll(/(?:src|href)="(\/[^"]+\.(?:js|css))"/g)].map(
        ([, path]) => path,
      );
      expect(files).toHaveLength(2);
      for (const file of files) expect((await fetch(origin + file)).status).toBe(200);
    }
  });

  test("a moment after the start the page is bundled, before anybody asks for it", async () => {
    await using asked = await spawnServer({ dataDir: tempDir() });
    await using server = await spawnServer({ dataDir: tempDir() });
    const [script] = (await (await fetch(asked.url)).text()).match(/\/[\w-]+\.js/) ?? [];
    expect(script).toBeDefined();
    const isThere = async () => (await fetch(`${server.url}${script}`)).status === 200;
    await waitFor(isThere, "the page's script");
  });

  test("an empty HOST listens on the loopback addresses alone", async () => {
    await using server = await spawnServer({ dataDir: tempDir(), env: { HOST: "" } });
    const outside = Object.values(networkInterfaces())
      .flat()
      .filter((network) => network?.family === "IPv4" && !network.internal);
    for (const network of outside)
      await expect(fetch(`http://${network?.address}:${server.port}/health`)).rejects.toThrow();
    expect((await fetch(`http://127.0.0.1:${server.port}/health`)).status).toBe(200);
  });

  test("the directory is 0700 and every file in it 0600, whatever the umask", async () => {
    const dataDir = join(tempDir(), "deep", "data");
    await using server = await spawnServer({
      dataDir,
      cwd: tempDir(),
      command: [
        "sh",
        "-c",
        `umask 000; exec "$0" "$1"`,
        process.execPath,
        join(PROJECT, "server.ts"),
      ],
    });
    await postEvent(server, sessionEvents("s1", { from: FROM }));
    const modes = readdirSync(dataDir).map((name) => [
      name,
      (statSync(join(dataDir, name)).mode & 0o777).toString(8),
    ]);
    expect((statSync(dataDir).mode & 0o777).toString(8)).toBe("700");
    expect(modes.map(([name]) => name)).toEqual(
      expect.arrayContaining(["observability.db", "observability.db-wal", "observability.db-shm"]),
    );
    expect(modes.filter(([, mode]) => mode !== "600")).toEqual([]);
  });

  test("what isn't its own file keeps its mode: a link's target, and a folder whose name begins as its own", async () => {
    const dataDir = tempDir();
    const target = join(tempDir(), "target");
    writeFileSync(target, "");
    chmodSync(target, 0o644);
    symlinkSync(target, join(dataDir, "observability.db-linked"));
    mkdirSync(join(dataDir, "observability.db.old"));
    chmodSync(join(dataDir, "observability.db.old"), 0o755);
    await using _ = await spawnServer({ dataDir });
    const mode = (path: string) => (statSync(path).mode & 0o777).toString(8);
    expect(mode(target)).toBe("644");
    expect(mode(join(dataDir, "observability.db.old"))).toBe("755");
    expect(mode(databasePath(dataDir))).toBe("600");
  });

  test("a database that was put there readable for all is 0600 after the start", async () => {
    const dataDir = await makeDatabase();
    chmodSync(databasePath(dataDir), 0o644);
    await using server = await spawnServer({ dataDir });
    await postEvent(server, sessionEvents("s1", { from: FROM }));
    for (const name of readdirSync(dataDir).filter((name) => name.startsWith("observability.db")))
      expect([name, (statSync(join(dataDir, name)).mode & 0o777).toString(8)]).toEqual([
        name,
        "600",
      ]);
  });
});

describe("refuses to start with one line and exit code 1", () => {
  test("per bad variable, each naming the variable, its value and what is accepted", async () => {
    const { exitCode, stdout, stderr } = await runToExit({
      dataDir: tempDir(),
      env: {
        PORT: "70000",
        HOST: "0.0.0.0",
        RETENTION_HOURS: "-1",
        LOG_LEVEL: "loud",
        MAX_SUBSCRIBERS: "many",
        ALLOWED_HOSTS: "a b",
        ALLOWED_ORIGINS: "http://localhost:5173/",
      },
    });
    expect(exitCode).toBe(1);
    expect(stdout).toBe("");
    expect(stderr.trimEnd().split("\n").toSorted()).toEqual([
      expect.stringMatching(/^ALLOWED_HOSTS="a b": expected ./),
      expect.stringMatching(/^ALLOWED_ORIGINS="http:\/\/localhost:5173\/": expected ./),
      expect.stringMatching(/^HOST="0.0.0.0": .*AUTH_TOKEN/),
      expect.stringMatching(/^LOG_LEVEL="loud": expected .*debug/),
      expect.stringMatching(/^MAX_SUBSCRIBERS="many": expected ./),
      expect.stringMatching(/^PORT="70000": expected ./),
      expect.stringMatching(/^RETENTION_HOURS="-1": expected ./),
    ]);
  });

  test("where the port is in use", async () => {
    using other = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
    const line = await expectOneLine(tempDir(), { PORT: String(other.port) });
    expect(line).toMatch(new RegExp(`^PORT=${other.port}: in use`));
  });

  test("where another server runs on the same directory, which goes on", async () => {
    const dataDir = tempDir();
    await using server = await spawnServer({ dataDir });
    expect(await expectOneLine(dataDir)).toMatch(/^DATA_DIR=.*another server/);
    expect((await postEvent(server, sessionEvents("s1", { from: FROM }))).status).toBe(201);
  });

  test("where another server runs on the file that this directory links to", async () => {
    const first = tempDir();
    const second = tempDir();
    await using _ = await spawnServer({ dataDir: first });
    symlinkSync(databasePath(first), databasePath(second));
    expect(await expectOneLine(second)).toContain("another server is running on it");
  });

  test("where the directory can't be made", async () => {
    const file = join(tempDir(), "file");
    writeFileSync(file, "");
    const { exitCode, stderr } = await runToExit({
      dataDir: join(file, "data"),
      cwd: tempDir(),
    });
    expect({ exitCode, lines: stderr.split("\n").length - 1 }).toEqual({ exitCode: 1, lines: 1 });
    expect(stderr).toMatch(/^DATA_DIR=/);
  });

  test("where the database is of a newer version, and leaves its bytes alone", async () => {
    const dataDir = await makeDatabase();
    const database = new Database(databasePath(dataDir));
    database.run("PRAGMA user_version = 99");
    database.close();
    const before = readFileSync(databasePath(dataDir));
    const line = await expectOneLine(dataDir);
    expect(line).toContain(databasePath(dataDir));
    expect(line).toContain("newer");
    expect(readFileSync(databasePath(dataDir)).equals(before)).toBe(true);
  });

  /** Pages are 4,096 bytes. */
  test.each<[string, (path: string) => void]>([
    ["is no database", (path) => writeFileSync(path, "hello\n".repeat(1_000))],
    ["has a garbage header", (path) => overwrite(path, 0, 100)],
    ["is all zeros", (path) => writeFileSync(path, new Uint8Array(8_192))],
    ["ends in its header", (path) => truncateSync(path, 50)],
    ["ends after its first page", (path) => truncateSync(path, 4_096)],
    ["ends in the middle", (path) => truncateSync(path, Math.floor(statSync(path).size / 2))],
    ["has garbage in its first pages", (path) => overwrite(path, 4_096, 40_960)],
    ["has garbage in its second half", (path) => overwrite(path, statSync(path).size / 2)],
    ["has four pages of garbage in its middle", (path) => overwrite(path, 163_840, 180_224)],
    ["belongs to another program", makeForeign],
  ])("where the database %s; it names the file and leaves its bytes alone", async (_, damage) => {
    const dataDir = await makeDatabase();
    const path = databasePath(dataDir);
    damage(path);
    const before = readFileSync(path);
    const line = await expectOneLine(dataDir);
    expect(line).toContain(path);
    expect(line).toMatch(/move it away|another DATA_DIR/);
    expect(readFileSync(path).equals(before)).toBe(true);
  });
});

function overwrite(path: string, from: number, to = statSync(path).size): void {
  writeFileSync(path, readFileSync(path).fill(0x5a, from, to));
}

function makeForeign(path: string): void {
  rmSync(path);
  const database = new Database(path);
  database.run("CREATE TABLE recipes (name TEXT)");
  database.run("INSERT INTO recipes VALUES ('bread')");
  database.close();
}

describe("kill -9", () => {
  test(`while eight writers post, at ${KILLS} random moments: each acknowledged event is there, none twice, the folds right`, async () => {
    const random = seededRandom(9);
    const dataDir = tempDir();
    const posts = endlessEvents();
    const acknowledged = new Set<string>();
    let again: PostedEvent[] = [];
    for (let kill = 0; kill < KILLS; kill++) {
      await using server = await spawnServer({ dataDir });
      expectSound(dataDir, acknowledged);
      const writers = startWriters(server, () => (again.pop() as Identified) ?? posts.next().value);
      await waitFor(() => writers.acknowledged.size > 8, "some events");
      await Bun.sleep(random() * 40); // the moment, not a wait for something
      await server.end("SIGKILL");
      await writers.ended;
      expect(writers.refused).toEqual([]);
      for (const id of writers.acknowledged) acknowledged.add(id);
      again = [...again, ...writers.unanswered];
    }
    await using server = await spawnServer({ dataDir });
    for (const event of again) {
      expect((await postEvent(server, event)).status).toBeOneOf([200, 201]);
      acknowledged.add(event.id ?? "");
    }
    expect(acknowledged.size).toBeGreaterThan(KILLS * 8);
    expect(expectSound(dataDir, acknowledged)).toBe(acknowledged.size);
    expect((await getJson<{ events: number }>(server, "/health")).events).toBe(acknowledged.size);
  }, 60_000);
});

type Identified = PostedEvent & { id: string };

/** Sessions one after the other: events that fold into every column. */
function* endlessEvents(): Generator<Identified, never> {
  for (let serial = 0; ; serial++)
    for (const event of sessionEvents(`session-${serial}`, { seed: serial, from: FROM }))
      yield { ...event, id: event.id ?? "" };
}

/**
 * The database has each of `acknowledged` once, is intact, and its folds are what its log gives.
 *
 * @returns how many events it has
 */
function expectSound(dataDir: string, acknowledged: Set<string>): number {
  using database = new Database(databasePath(dataDir), { readonly: true });
  expect(database.query("PRAGMA integrity_check").all()).toEqual([{ integrity_check: "ok" }]);
  expect(database.query("PRAGMA foreign_key_check").all()).toEqual([]);
  const ids = database
    .query<{ client_id: string }, []>("SELECT client_id FROM events")
    .all()
    .map((row) => row.client_id);
  const stored = new Set(ids);
  expect(ids.length).toBe(stored.size);
  expect([...acknowledged].filter((id) => !stored.has(id))).toEqual([]);
  expect(database.query(FOLDED_SESSIONS).all()).toEqual(database.query(SESSIONS_OF_LOG).all());
  expect(database.query(FOLDED_SPANS).all()).toEqual(database.query(SPANS_OF_LOG).all());
  expect(database.query(FOLDED_USAGE).all()).toEqual(database.query(USAGE_OF_LOG).all());
  return ids.length;
}

const FOLDED_SESSIONS = `
  SELECT
    id,
    fold ->> 'started_at'                               AS started_at,
    last_event_at,
    fold ->> 'last_activity_at'                         AS last_activity_at,
    last_end_at,
    event_count,
    fold ->> 'tool_count'                               AS tool_count,
    fold ->> 'agent_count'                              AS agent_count,
    fold ->> 'error_count' + fold ->> 'own_errors'      AS error_count
  FROM sessions
  ORDER BY id`;

const SESSIONS_OF_LOG = `
  SELECT
    session_id                                                                   AS id,
    MIN(timestamp)                                                               AS started_at,
    MAX(timestamp)                                                               AS last_event_at,
    MAX(IIF(type IN ('session_end', 'session_update'), 0, timestamp))            AS last_activity_at,
    MAX(IIF(type = 'session_end', timestamp, 0))                                 AS last_end_at,
    COUNT(*)                                                                     AS event_count,
    SUM(type = 'tool_use')                                                       AS tool_count,
    SUM(type = 'agent_spawn')                                                    AS agent_count,
    SUM(failed)                                                                  AS error_count
  FROM events
  GROUP BY session_id
  ORDER BY id`;

const FOLDED_SPANS = `
  SELECT session_id, kind, key, started_at, ended_at
  FROM spans
  ORDER BY session_id, kind, key`;

const SPANS_OF_LOG = `
  SELECT
    session_id,
    CASE
      WHEN type = 'tool_use' THEN 'tool'
      WHEN type IN ('agent_spawn', 'agent_complete') THEN 'agent'
      ELSE 'wait'
    END                                                                              AS kind,
    COALESCE(call_id, data ->> 'request_id')                                         AS key,
    MIN(timestamp - COALESCE(duration_ms, 0))                                        AS started_at,
    MAX(IIF(type IN ('tool_use', 'agent_complete', 'input_resolved'), timestamp, NULL)) AS ended_at
  FROM events
  WHERE type IN ('tool_use', 'agent_spawn', 'agent_complete', 'input_requested', 'input_resolved')
  GROUP BY session_id, kind, key
  ORDER BY session_id, kind, key`;

const FOLDED_USAGE = `
  SELECT
    kind, period_ms, start, name,
    IFNULL(sums ->> 'count', 0)    AS count,
    IFNULL(sums ->> 'timed', 0)    AS timed,
    IFNULL(sums ->> 'total_ms', 0) AS total_ms,
    IFNULL(sums ->> 'errors', 0)   AS errors
  FROM usage
  WHERE sums ->> 'count' > 0 OR sums ->> 'errors' > 0
  ORDER BY kind, period_ms, start, name`;

/** An agent counts once, under the name of its spawn: in the time of its completion, where that is there. */
const USAGE_OF_LOG = `
  WITH counted (kind, timestamp, name, count, duration_ms, failed) AS (
    SELECT '', timestamp, '', 1, NULL, failed FROM events
    UNION ALL
    SELECT 'tool', timestamp, name, 1, duration_ms, failed
    FROM events
    WHERE type = 'tool_use'
    UNION ALL
    SELECT
      'agent',
      COALESCE(done.timestamp, spawn.timestamp),
      spawn.name,
      1,
      done.duration_ms,
      COALESCE(done.failed, 0)
    FROM (SELECT * FROM events WHERE type = 'agent_spawn') AS spawn
    LEFT JOIN (SELECT * FROM events WHERE type = 'agent_complete') AS done USING (session_id, call_id)
    UNION ALL
    -- One whose spawn isn't there, yet, is no agent; its failure is one.
    SELECT 'agent', timestamp, 'unknown', 0, NULL, 1
    FROM events AS done
    WHERE type = 'agent_complete' AND failed AND NOT EXISTS (
      SELECT 1 FROM events
      WHERE session_id = done.session_id AND call_id = done.call_id AND type = 'agent_spawn'
    )
  ),
  periods (period_ms) AS (VALUES (60000), (3600000), (86400000))
  SELECT
    kind,
    period_ms,
    timestamp - timestamp % period_ms AS start,
    name,
    SUM(count)                        AS count,
    COUNT(duration_ms)                AS timed,
    COALESCE(SUM(duration_ms), 0)     AS total_ms,
    SUM(failed)                       AS errors
  FROM counted
  JOIN periods ON kind <> '' OR period_ms = 60000 -- activity is told per minute only
  GROUP BY kind, period_ms, start, name
  ORDER BY kind, period_ms, start, name`;

describe("stop", () => {
  test.each(["SIGINT", "SIGTERM"] as const)(
    "%s exits 0 within 2 s with open streams and posts in flight; each acknowledged event is there",
    async (signal) => {
      const dataDir = tempDir();
      await using server = await spawnServer({ dataDir });
      const streams = await Promise.all(
        ["", "?sessionId=session-1", "?lastEventId=0"].map((query) => openStream(server, query)),
      );
      const posts = endlessEvents();
      const writers = startWriters(server, () => posts.next().value);
      await waitFor(() => writers.acknowledged.size >= 100, "a hundred events");
      const { exitCode, ms } = await server.end(signal);
      await Promise.all([writers.ended, ...streams.map((stream) => stream.ended)]);
      expect(exitCode).toBe(0);
      expect(ms).toBeLessThan(isSoak ? 1_000 : 5_000); // nobody stalls here, so nobody has to be waited for
      expect(writers.refused).toEqual([]);
      expect(expectSound(dataDir, writers.acknowledged)).toBeGreaterThanOrEqual(100);
      expect(server.output()).not.toContain("error");
    },
  );

  test("by Ctrl-C on `bun start` in a terminal, from which two signals come: clean, each time", async () => {
    for (let time = 0; time < (isSoak ? 25 : 3); time++) {
      const dataDir = tempDir();
      let output = "";
      const decoder = new TextDecoder();
      const child = Bun.spawn([process.execPath, "start"], {
        cwd: PROJECT,
        env: { PATH: process.env.PATH ?? "", PORT: "0", DATA_DIR: dataDir },
        terminal: { data: (_, bytes) => void (output += decoder.decode(bytes, { stream: true })) },
      });
      const url = () => / on (http:\S+)/.exec(output)?.[1] ?? "";
      await waitFor(() => url() !== "", "the URL");
      await postEvent({ url: url() }, sessionEvents("s1", { from: FROM }));
      child.terminal?.write("\x03");
      expect(await child.exited).toBe(0);
      expect(output.match(/: stopping/g)).toHaveLength(1);
      expect(readdirSync(dataDir).filter((name) => /-(wal|shm)$/.test(name))).toEqual([]);
    }
  }, 60_000);

  test.each(["SIGINT", "SIGTERM"] as const)(
    "a second %s while it stops changes nothing",
    async (signal) => {
      const dataDir = tempDir();
      await using server = await spawnServer({ dataDir });
      await postEvent(server, sessionEvents("s1", { from: FROM }));
      process.kill(server.pid, signal);
      expect((await server.end(signal)).exitCode).toBe(0);
      expect(readdirSync(dataDir).filter((name) => /-(wal|shm)$/.test(name))).toEqual([]);
    },
  );

  test("leaves one file with everything in it, so that a copy of it is a backup", async () => {
    const dataDir = await makeDatabase();
    expect(statSync(databasePath(dataDir)).size).toBeGreaterThan(100_000);
    for (const suffix of ["-wal", "-journal"])
      if (existsSync(databasePath(dataDir) + suffix))
        expect(statSync(databasePath(dataDir) + suffix).size).toBe(0);
  });

  test("eight servers, each ended at the moment that it says where it is → exit 0", async () => {
    const exitCodes = await Promise.all(
      Array.from({ length: 8 }, async () => {
        await using server = await spawnServer({ dataDir: tempDir() });
        return (await server.end("SIGTERM")).exitCode;
      }),
    );
    expect(exitCodes).toEqual(Array(8).fill(0));
  });

  test("with the database locked by another process it still exits 0 within 2 s", async () => {
    const dataDir = await makeDatabase();
    await using server = await spawnServer({ dataDir });
    using database = new Database(databasePath(dataDir));
    database.run("PRAGMA busy_timeout = 1000"); // the server itself may be writing, at its start
    database.run("BEGIN EXCLUSIVE");
    const { exitCode, ms } = await server.end("SIGTERM");
    expect(exitCode).toBe(0);
    expect(ms).toBeLessThan(isSoak ? 2_000 : 6_000);
    expect(server.output()).not.toMatch(/^ +at /m);
  });
});

test("bun run dev starts again when server.ts changes", async () => {
  const project = copyProject();
  const dataDir = join(project, "data");
  mkdirSync(dataDir);
  await using server = await spawnServer({
    dataDir,
    cwd: project,
    command: [process.execPath, "run", "dev"],
  });
  await postEvent(server, sessionEvents("s1", { from: FROM }));
  const stream = await openStream(server);
  appendFileSync(join(project, "server.ts"), "\n// changed\n");
  const urls = () => [...server.output().matchAll(/ on (http:\S+)\n/g)].map(([, url]) => url ?? "");
  await waitFor(() => urls().length === 2, "the second start");
  await stream.ended;
  const sessions = await getJson<{ sessions: unknown[] }>(
    { url: urls()[1] ?? "" },
    "/api/sessions",
  );
  expect(sessions.sessions).toHaveLength(1);
  expect((await server.end("SIGINT")).exitCode).toBe(0);
});
