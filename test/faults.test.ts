/**
 * What goes wrong around a server: a full disk, a lock, a reader that stays, retention at the
 * wrong time, damage, garbage on the wire. The server runs as a process of its own.
 */

import { Database } from "bun:sqlite";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import {
  closeSync,
  constants,
  cpSync,
  fsyncSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { EVENT_TYPES } from "../server.ts";
import { paiPosts, seededRandom, sessionEvents } from "./fixtures.ts";
import {
  databasePath,
  getJson,
  isSoak,
  makeTempDir,
  openStream,
  postBody,
  postEvent,
  removeTempDirs,
  sendRaw,
  type ServerProcess,
  runToExit,
  spawnServer,
  startWriters,
  statusOf,
  tempDir,
  waitFor,
} from "./helpers.ts";

const SERVER = join(import.meta.dir, "..", "server.ts");
const MB = 1024 * 1024;
const HOUR_MS = 3_600_000;

afterEach(removeTempDirs);

const fileSize = (path: string) => statSync(path, { throwIfNoEntry: false })?.size ?? 0;
const eventCount = async (server: { url: string }) =>
  (await getJson<{ events: number }>(server, "/health")).events;

const GET_ROUTES = [
  "/",
  "/health",
  "/api/sessions",
  "/api/spans",
  "/api/overview",
  "/api/events",
  "/api/analytics/tools",
  "/api/analytics/agents",
  "/api/analytics/activity",
  "/plugin/observability.ts",
];

async function expectAllRoutes(server: { url: string }): Promise<void> {
  for (const route of GET_ROUTES)
    expect([route, (await fetch(server.url + route)).status]).toEqual([route, 200]);
  const { sessions } = await getJson<{ sessions: { id: string }[] }>(
    server,
    "/api/sessions?limit=1000",
  );
  for (const { id } of sessions)
    expect([
      id,
      (await fetch(`${server.url}/api/sessions/${encodeURIComponent(id)}`)).status,
    ]).toEqual([id, 200]);
}

/** Figures of the soak, for the README. */
function report(line: string): void {
  if (isSoak) console.log(line);
}

/** Asks for `paths` in turn, one at a time, until stopped; the longest time that one took, in ms. */
function startProbe(server: { url: string }, paths: string[]) {
  let isStopped = false;
  let longest = 0;
  const ended = (async () => {
    for (let n = 0; !isStopped; n++) {
      const start = performance.now();
      const response = await fetch(server.url + paths[n % paths.length]);
      await response.arrayBuffer();
      longest = Math.max(longest, performance.now() - start);
      expect(response.status).toBe(200);
      await Bun.sleep(5); // the pace
    }
  })();
  return async () => {
    isStopped = true;
    await ended;
    return longest;
  };
}

/** Unique recent events. */
function serialEvents(session: string) {
  let serial = 0;
  return () => ({
    id: `${session}/${serial++}`,
    type: "tool_use",
    session_id: session,
    data: { tool: "bash", duration_ms: 5 },
  });
}

function storedClientIds(dataDir: string): Set<string | null> {
  using database = new Database(databasePath(dataDir), { readonly: true });
  return new Set(
    database
      .query<{ client_id: string | null }, []>("SELECT client_id FROM events")
      .all()
      .map((row) => row.client_id),
  );
}

describe("retention", () => {
  const EXPIRED = isSoak ? 400_000 : 12_000;
  const KILLS = isSoak ? 30 : 5;
  const KEPT = 100;
  const SHRINK_LIMIT_MS = isSoak ? 120_000 : 60_000; // a deadline: what it takes is measured

  let expired: string;

  /** A database with EXPIRED events of the year 2020 in sessions of many sizes, and KEPT of now. */
  beforeAll(async () => {
    expired = makeTempDir();
    await using server = await spawnServer({
      dataDir: expired,
      env: { RETENTION_HOURS: "1000000" },
    });
    const random = seededRandom(400);
    for (let from = 0; from < EXPIRED; from += 1_000) {
      const batch = Array.from({ length: 1_000 }, () => ({
        type: "tool_use",
        session_id: `old-${Math.floor(random() ** 3 * 200)}`,
        timestamp: "2020-01-01T12:00:00Z",
        data: { tool: "bash", args: "x".repeat(200), duration_ms: 100 },
      }));
      expect((await postEvent(server, batch)).status).toBe(201);
    }
    await postEvent(server, Array.from({ length: KEPT }, serialEvents("kept")));
    expect((await server.end("SIGTERM")).exitCode).toBe(0);
  }, 60_000);

  afterAll(() => rmSync(expired, { recursive: true }));

  function copyExpired(): string {
    const dataDir = tempDir();
    cpSync(expired, dataDir, { recursive: true });
    const file = openSync(databasePath(dataDir), "r+");
    fsyncSync(file); // or the server's first one would wait for all that was copied
    closeSync(file);
    return dataDir;
  }

  const isShrunk = (dataDir: string, before: number) => () =>
    fileSize(databasePath(dataDir)) <= before * 0.3;

  test(`of ${EXPIRED} events while others are posted: nobody waits, the log stays small, the file shrinks`, async () => {
    const dataDir = copyExpired();
    const before = fileSize(databasePath(dataDir));
    await using server = await spawnServer({ dataDir, env: { RETENTION_HOURS: "1" } });
    const next = serialEvents("live");
    const started = performance.now();
    const posts: number[] = [];
    let isPosting = true;
    const acknowledged: string[] = [];
    const writers = Array.from({ length: 4 }, async () => {
      while (isPosting) {
        const event = next();
        const start = performance.now();
        expect((await postEvent(server, event)).status).toBe(201);
        posts.push(performance.now() - start);
        acknowledged.push(event.id);
        await Bun.sleep(2); // the pace
      }
    });
    const stopProbe = startProbe(server, [
      "/health",
      "/api/sessions?limit=5",
      "/api/analytics/tools",
    ]);
    let largestLog = 0;
    await waitFor(
      async () => {
        largestLog = Math.max(largestLog, fileSize(`${databasePath(dataDir)}-wal`));
        // Of those that write, each may have one more that isn't acknowledged yet.
        const expired = (await eventCount(server)) - KEPT - acknowledged.length;
        return expired <= writers.length && isShrunk(dataDir, before)();
      },
      "the events to go, and the file to shrink",
      SHRINK_LIMIT_MS,
    ).finally(() => (isPosting = false));
    const duration = performance.now() - started;
    await Promise.all(writers);
    const longest = Math.max(...posts, await stopProbe());
    const median = posts.toSorted((a, b) => a - b)[Math.floor(posts.length / 2)] ?? 0;
    const after = fileSize(databasePath(dataDir));
    report(
      `retention of ${EXPIRED} events in ${(duration / 1_000).toFixed(1)} s: longest request ${longest.toFixed(0)} ms, ` +
        `median POST ${median.toFixed(1)} ms of ${posts.length}, WAL ${(largestLog / MB).toFixed(1)} MB, ` +
        `file ${(before / MB).toFixed(1)} MB → ${(after / MB).toFixed(1)} MB`,
    );
    // Without the soak the machine may be busy: then what counts is that nobody waits for the end of it.
    expect(longest).toBeLessThan(isSoak ? 50 : duration / 2);
    if (isSoak) expect(median).toBeLessThan(20);
    expect(largestLog).toBeLessThan(16 * MB);
    const wanted = KEPT + acknowledged.length;
    await waitFor(
      async () => (await eventCount(server)) <= wanted,
      "the last expired events to go",
    );
    expect(await eventCount(server)).toBe(wanted);
    const stored = storedClientIds(dataDir);
    expect(acknowledged.filter((id) => !stored.has(id))).toEqual([]);
    expect(acknowledged.length).toBeGreaterThan(0);
  }, 180_000);

  test(`killed in the middle ${KILLS} times: no orphan, no wrong count, and the next run finishes`, async () => {
    const dataDir = copyExpired();
    const before = fileSize(databasePath(dataDir));
    const random = seededRandom(30);
    const left: number[] = [];
    for (let kill = 0; kill < KILLS; kill++) {
      await using server = await spawnServer({ dataDir, env: { RETENTION_HOURS: "1" } });
      await Bun.sleep(random() * (isSoak ? 1_500 : 30)); // the moment, not a wait for something
      await server.end("SIGKILL");
      left.push(expectNoOrphan(dataDir));
    }
    expect(left).toEqual(left.toSorted((a, b) => b - a));
    // Some were in the middle indeed.
    expect(left.filter((count) => count > KEPT && count < EXPIRED + KEPT).length).toBeGreaterThan(
      1,
    );
    await using server = await spawnServer({ dataDir, env: { RETENTION_HOURS: "1" } });
    await waitFor(
      async () => (await eventCount(server)) <= KEPT,
      "the expired events to go",
      SHRINK_LIMIT_MS,
    );
    await waitFor(isShrunk(dataDir, before), "the file to shrink", SHRINK_LIMIT_MS);
    expect(await eventCount(server)).toBe(KEPT);
    expect(expectNoOrphan(dataDir)).toBe(KEPT);
    await expectAllRoutes(server);
  }, 240_000);

  /** @returns how many events there are */
  function expectNoOrphan(dataDir: string): number {
    using database = new Database(databasePath(dataDir), { readonly: true });
    expect(database.query("PRAGMA foreign_key_check").all()).toEqual([]);
    expect(database.query("PRAGMA quick_check").all()).toEqual([{ quick_check: "ok" }]);
    const counts = database
      .query<Record<"event_count" | "tool_count" | "kept" | "stored" | "isListed", number>, []>(
        `SELECT
           id,
           event_count,
           fold ->> 'tool_count' AS tool_count,
           is_over IS NOT NULL AS isListed,
           (SELECT COUNT(*) FROM events WHERE session_id = sessions.id AND id > deleted_to) AS kept,
           (SELECT COUNT(*) FROM events WHERE session_id = sessions.id) AS stored
         FROM sessions`,
      )
      .all();
    // Each is whole, or emptied: nobody sees it, and all of its events are to go.
    expect(
      counts.filter(
        ({ event_count, tool_count, isListed, kept, stored }) =>
          event_count !== kept ||
          tool_count !== kept ||
          kept !== (isListed === 1 ? stored : 0) ||
          (isListed === 1 && kept === 0),
      ),
    ).toEqual([]);
    return counts.reduce((sum, row) => sum + row.stored, 0);
  }
});

const isLinux = process.platform === "linux";
/** A file system of its own for one process: it goes with the process. */
const unshare = [
  "unshare",
  ...(process.getuid?.() === 0 ? [] : ["--user", "--map-root-user"]),
  "--mount",
];
const canMount =
  isLinux &&
  Bun.spawnSync([...unshare, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/tmp"]).success;
if (!canMount)
  console.warn("skipped: the tests on a full disk, as this user can't mount a small one");
if (!isLinux)
  console.warn("skipped: the tests with limits on file sizes and descriptors, for want of Linux");

describe("disk full", () => {
  const SERVER = [process.execPath, join(import.meta.dir, "..", "server.ts")];
  const MOUNT = `mount -t tmpfs -o size=8m,mode=700 tmpfs "$DATA_DIR" && head -c 3000000 /dev/zero > "$DATA_DIR/ballast" && exec "$@"`;
  // The signal would end the process; without it a write beyond the limit fails.
  const LIMIT = `trap "" XFSZ && ulimit -S -f 8000 && exec "$@"`;

  const spawnOnSmallDisk = () =>
    spawnServer({ dataDir: tempDir(), command: [...unshare, "sh", "-c", MOUNT, "sh", ...SERVER] });

  /** Posts until it is refused. */
  async function fill(server: ServerProcess, acknowledged: number[]) {
    for (let n = 0; n < 500; n++) {
      const { status, body } = await postEvent(server, {
        type: "tool_use",
        session_id: `s${n % 10}`,
        data: { tool: "bash", args: "x".repeat(50_000) },
      });
      if (status !== 201) return { status, body };
      acknowledged.push(body.id ?? 0);
    }
    throw new Error("the disk did not get full");
  }

  async function expectToGoOn(server: ServerProcess, refusal: number[], makeRoom: () => void) {
    const live = await openStream(server);
    const acknowledged: number[] = [];
    const { status, body } = await fill(server, acknowledged);
    expect(refusal).toContain(status);
    expect(body).toEqual({ error: expect.stringMatching(/disk/) });
    expect(acknowledged.length).toBeGreaterThan(10);

    await expectAllRoutes(server);
    const resumed = await openStream(server, `?lastEventId=${acknowledged[0]}`);
    const idsOf = (stream: typeof live) => stream.events().map(({ id }) => Number(id));
    await waitFor(() => resumed.events().length === acknowledged.length - 1, "what was stored");
    for (let n = 0; n < 5; n++)
      expect(refusal).toContain((await fill(server, acknowledged)).status);

    makeRoom();
    const { status: again, body: stored } = await postEvent(server, {
      type: "message_user",
      session_id: "after",
    });
    expect(again).toBe(201);
    acknowledged.push(stored.id ?? 0);
    await waitFor(() => live.events().length === acknowledged.length, "the live stream to go on");
    await waitFor(
      () => resumed.events().length === acknowledged.length - 1,
      "the other stream too",
    );
    expect(idsOf(live)).toEqual(acknowledged);
    expect(idsOf(resumed)).toEqual(acknowledged.slice(1));
    expect((await server.end("SIGTERM")).exitCode).toBe(0);
  }

  test.skipIf(!canMount)(
    "POST → 507 in JSON, reads and streams go on, and it recovers without a restart",
    async () => {
      await using server = await spawnOnSmallDisk();
      await expectToGoOn(server, [507], () =>
        rmSync(`/proc/${server.pid}/root${server.dataDir}/ballast`),
      );
    },
    15_000,
  );

  test.skipIf(!isLinux)(
    "where a limit on the size of files stops it: the same, with 507 or 503",
    async () => {
      await using server = await spawnServer({
        dataDir: tempDir(),
        command: ["sh", "-c", LIMIT, "sh", ...SERVER],
      });
      await expectToGoOn(server, [503, 507], () => {
        const { success } = Bun.spawnSync([
          "prlimit",
          "--pid",
          String(server.pid),
          "--fsize=unlimited:",
        ]);
        expect(success).toBe(true);
      });
    },
    15_000,
  );

  test.skipIf(!canMount).each([1_024, 1_004])(
    "a start with %d KB of 1,024 taken says so",
    async (taken) => {
      const mount = `mount -t tmpfs -o size=1m,mode=700 tmpfs "$DATA_DIR" && head -c ${taken}k /dev/zero > "$DATA_DIR/ballast" && exec "$@"`;
      const { exitCode, stderr } = await runToExit({
        dataDir: tempDir(),
        command: [...unshare, "sh", "-c", mount, "sh", ...SERVER],
      });
      expect(stderr).toMatch(
        /^\S+observability\.db: the disk is full, or fails \(.*make room.*\n$/,
      );
      expect(exitCode).toBe(1);
    },
  );

  test.skipIf(!canMount)("SIGTERM still exits 0, without a stack trace", async () => {
    await using server = await spawnOnSmallDisk();
    await fill(server, []);
    expect((await server.end("SIGTERM")).exitCode).toBe(0);
    expect(server.output()).not.toMatch(/^ +at /m);
  });
});

function lock(dataDir: string, mode: "IMMEDIATE" | "EXCLUSIVE"): Database {
  const database = new Database(databasePath(dataDir));
  database.run("PRAGMA busy_timeout = 1000"); // the server itself may be writing, at its start
  database.run(`BEGIN ${mode}`);
  return database;
}

describe("another process", () => {
  const LOCK_MS = isSoak ? 10_000 : 2_000;
  const READ_MS = isSoak ? 60_000 : 200;

  test(`locks the database for ${LOCK_MS} ms: no other request waits, POST → 503 with Retry-After, nothing acknowledged is lost`, async () => {
    const dataDir = tempDir();
    await using server = await spawnServer({ dataDir });
    await postEvent(server, sessionEvents("s1", { from: Date.now() - HOUR_MS }));
    const next = serialEvents("s2");
    const acknowledged: string[] = [];
    const refused: string[] = [];
    const post = async () => {
      const event = next();
      const response = await fetch(`${server.url}/api/events`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(event),
      });
      if (response.status === 201) return acknowledged.push(event.id);
      expect(response.status).toBe(503);
      expect(Number(response.headers.get("retry-after"))).toBeGreaterThan(0);
      expect(await response.json()).toEqual({ error: expect.stringContaining("locked") });
      return refused.push(event.id);
    };
    await post();
    using database = lock(dataDir, "EXCLUSIVE");
    const released = Date.now() + LOCK_MS;
    const stopProbe = startProbe(server, [...GET_ROUTES, "/api/sessions/s1"]);
    await Promise.all(
      Array.from({ length: 8 }, async () => {
        while (Date.now() < released) await post();
      }),
    );
    const resumed = await openStream(server, "?lastEventId=0");
    await waitFor(() => resumed.events().length > 20, "a stream during the lock");
    const longest = await stopProbe();
    expect(refused.length).toBeGreaterThanOrEqual(8);
    expect(acknowledged).toHaveLength(1);
    const degraded = { status: "degraded", reason: expect.stringContaining("locked") };
    expect(await getJson(server, "/health")).toMatchObject(degraded);
    database.run("ROLLBACK");
    await post();
    expect(await getJson(server, "/health")).toMatchObject({ status: "ok" });
    expect(acknowledged).toHaveLength(2);
    report(
      `database locked for ${LOCK_MS} ms: longest other request ${longest.toFixed(0)} ms, ${refused.length} posts refused`,
    );
    expect(longest).toBeLessThan(isSoak ? 250 : 1_000);
    const stored = storedClientIds(dataDir);
    expect(acknowledged.filter((id) => !stored.has(id))).toEqual([]);
    expect(refused.filter((id) => stored.has(id))).toEqual([]);
    resumed.close();
  }, 30_000);

  test("locks it for a moment: POST waits, and succeeds", async () => {
    const dataDir = tempDir();
    await using server = await spawnServer({ dataDir });
    using database = lock(dataDir, "IMMEDIATE");
    let isAnswered = false;
    const posts = Promise.all(
      Array.from({ length: 5 }, async (_, n) => {
        const { status } = await postEvent(server, { type: "message_user", session_id: `s${n}` });
        isAnswered = true;
        return status;
      }),
    );
    // Asked after them, and on the same thread: so they have been tried meanwhile.
    for (let n = 0; n < 50; n++) await eventCount(server);
    expect(isAnswered).toBe(false);
    database.run("COMMIT");
    expect(await posts).toEqual([201, 201, 201, 201, 201]);
  });

  test(`reads in one transaction for ${READ_MS} ms: posts go on, and the write-ahead log shrinks after`, async () => {
    const dataDir = tempDir();
    await using server = await spawnServer({ dataDir });
    const event = {
      type: "tool_use",
      session_id: "s1",
      data: { tool: "bash", args: "x".repeat(8_000) },
    };
    const post = async () =>
      expect(
        (
          await postEvent(
            server,
            Array.from({ length: 100 }, () => event),
          )
        ).status,
      ).toBe(201);
    const log = () => fileSize(`${databasePath(dataDir)}-wal`);
    await post();
    using database = new Database(databasePath(dataDir), { readonly: true });
    database.run("BEGIN");
    const count = database.query<{ n: number }, []>("SELECT COUNT(*) AS n FROM events");
    expect(count.get()?.n).toBe(100);
    const until = Date.now() + READ_MS;
    while (Date.now() < until || log() < 16 * MB) {
      await post();
      if (isSoak) await Bun.sleep(250); // the pace
    }
    const largest = log();
    expect(count.get()?.n).toBe(100); // its snapshot
    database.run("COMMIT");
    for (let n = 0; n < 3; n++) await post();
    report(
      `a reader for ${READ_MS} ms: WAL ${(largest / MB).toFixed(1)} MB, after it ${(log() / MB).toFixed(1)} MB`,
    );
    expect(log()).toBeLessThan(9 * MB);
  }, 90_000);
});

test("shutdown with 100 streams, 10 of them stalled, a long session that is half read, and posts in flight: exit 0 within 2 s, every acknowledged event there", async () => {
  const dataDir = tempDir();
  await using server = await spawnServer({ dataDir });
  const open = async (isReading: boolean, path = "/api/events/stream") => {
    const socket = await Bun.connect({
      hostname: "127.0.0.1",
      port: server.port,
      socket: { data() {}, error() {}, close() {} },
    });
    if (!isReading) socket.pause();
    socket.write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
    return socket;
  };
  const sockets = await Promise.all(Array.from({ length: 100 }, (_, index) => open(index >= 10)));
  await waitFor(
    async () => (await getJson<{ subscribers: number }>(server, "/health")).subscribers === 100,
    "a hundred streams",
  );
  // More than the kernel takes for a client that doesn't read.
  const event = {
    type: "tool_use",
    session_id: "s1",
    data: { tool: "bash", args: "x".repeat(10_000) },
  };
  for (let n = 0; n < 10; n++)
    await postEvent(
      server,
      Array.from({ length: 90 }, () => event),
    );
  for (const path of ["/api/sessions/s1", "/api/sessions/s1", "/api/spans?limit=1000"])
    sockets.push(await open(false, path));
  const writers = startWriters(server, serialEvents("s2"));
  await waitFor(() => writers.acknowledged.size > 50, "posts in flight");
  const { exitCode, ms } = await server.end("SIGTERM");
  await writers.ended;
  for (const socket of sockets) socket.terminate();
  report(`shutdown with 100 streams, 10 stalled: ${ms.toFixed(0)} ms`);
  expect(exitCode).toBe(0);
  expect(ms).toBeLessThan(isSoak ? 2_000 : 6_000); // those that stall are not waited for
  const stored = storedClientIds(dataDir);
  expect([...writers.acknowledged].filter((id) => !stored.has(id))).toEqual([]);
  expect(writers.refused).toEqual([]);
  expect(server.output()).not.toMatch(/ warn | error |^ +at /m);
}, 15_000);

test("damage to the file of a running server: 503, a log line, streams that end and leave nothing behind, exit 0", async () => {
  const dataDir = tempDir();
  const path = databasePath(dataDir);
  const event = {
    type: "tool_use",
    session_id: "s1",
    data: { tool: "bash", args: "x".repeat(400) },
  };
  await using first = await spawnServer({ dataDir });
  for (let n = 0; n < 6; n++)
    await postEvent(
      first,
      Array.from({ length: 1_500 }, () => event),
    );
  await first.end("SIGTERM");

  await using server = await spawnServer({ dataDir });
  const bytes = readFileSync(path);
  // More than SQLite has in its cache.
  writeFileSync(path, bytes.fill(0x5a, Math.floor(bytes.length * 0.1), bytes.length));
  const session = await fetch(`${server.url}/api/sessions/s1`);
  expect(session.status).toBe(503);
  expect(await session.json()).toEqual({ error: expect.stringContaining("database") });
  for (let n = 0; n < 3; n++) {
    // Refused, or it ends: the client knows that it hasn't all.
    const stream = await fetch(`${server.url}/api/events/stream?lastEventId=0`);
    const text = await stream.text();
    expect(stream.status).toBeOneOf([200, 503]);
    if (stream.status === 200) continue;
    expect(JSON.parse(text)).toEqual({ error: expect.stringContaining("database") });
    expect(Number(stream.headers.get("retry-after"))).toBeGreaterThan(0);
  }
  await fetch(`${server.url}/api/events?after=0`, { headers: { Accept: "application/x-ndjson" } })
    .then((response) => response.text())
    .catch(() => "broken off");
  expect(await getJson(server, "/health")).toMatchObject({ subscribers: 0 });
  expect((await server.end("SIGTERM")).exitCode).toBe(0);
  expect(server.output()).toMatch(/ error .*database/);
  expect(server.output()).not.toMatch(/^ +at /m);
}, 15_000);

test.skipIf(process.platform === "win32")(
  "a reader of the log that stops reading: every request is answered, and the log says how many lines are missing",
  async () => {
    const dataDir = tempDir();
    const pipe = join(dataDir, "log");
    Bun.spawnSync(["mkfifo", pipe]);
    // Both ends, so that opening waits for nobody; nobody reads until the test does.
    const log = openSync(pipe, constants.O_RDWR | constants.O_NONBLOCK);
    const child = Bun.spawn([process.execPath, join(import.meta.dir, "..", "server.ts")], {
      cwd: dataDir,
      env: {
        PATH: process.env.PATH,
        PORT: "0",
        DATA_DIR: join(dataDir, "data"),
        LOG_LEVEL: "debug",
      },
      stdio: ["ignore", log, log],
    });
    let text = "";
    const read = () => {
      const bytes = Buffer.alloc(1 << 20);
      try {
        text += bytes.toString("utf8", 0, readSync(log, bytes));
      } catch {} // there is nothing to read
      return text;
    };
    await waitFor(() => / on http:\S+\n/.test(read()), "the URL");
    const url = / on (http:\S+)\n/.exec(text)?.[1] ?? "";
    // A line each, of more than a pipe and a buffer hold.
    const path = `/${"x".repeat(1_000)}`;
    for (let n = 0; n < 400; n++) expect((await fetch(url + path)).status).toBe(404);
    expect((await getJson<{ status: string }>({ url }, "/health")).status).toBe("ok");
    await waitFor(() => /\d+ lines were left out/.test(read()), "the line that says so");
    child.kill("SIGTERM");
    await waitFor(() => read().includes("SIGTERM: stopping"), "the last line");
    expect(await child.exited).toBe(0);
    const told = text.match(/x{1000}/g)?.length ?? 0;
    const leftOut = [...text.matchAll(/(\d+) lines were left out/g)];
    expect(told + leftOut.reduce((sum, [, count]) => sum + Number(count), 0)).toBe(400);
    closeSync(log);
  },
);

test.skipIf(!isLinux)(
  "out of descriptors: the page is a 503, what needs none is answered, and all is as before once there are some",
  async () => {
    await using server = await spawnServer({
      dataDir: tempDir(),
      command: ["sh", "-c", 'ulimit -n 64; exec "$0" "$1"', process.execPath, SERVER],
    });
    const descriptors = () => readdirSync(`/proc/${server.pid}/fd`).length;
    const request = (path: string) => `GET ${path} HTTP/1.1\r\nHost: localhost\r\n`;
    const open = async (text: string) => {
      const answers: string[] = [];
      const data = (_: unknown, bytes: Buffer) => void answers.push(bytes.toString());
      const socket = await Bun.connect({
        hostname: "127.0.0.1",
        port: server.port,
        socket: { data },
      });
      socket.write(text);
      /** The answer to `path` on this connection. */
      const ask = async (path: string) => {
        const before = answers.length;
        socket.write(`${request(path)}\r\n`);
        // What is left of a long answer before it may come first.
        const status = () => statusOf(answers.slice(before).join(""));
        await waitFor(() => status() > 0, path);
        return status();
      };
      return { ask, end: () => socket.end() };
    };
    const kept = await open("");
    expect(await kept.ask("/health")).toBe(200);
    // Half a request each: a connection that has sent nothing takes none yet.
    const halves = [];
    while (descriptors() < 64) {
      const before = descriptors();
      halves.push(await open(request("/health")));
      await waitFor(() => descriptors() > before, "a descriptor that is taken");
    }
    expect(await kept.ask("/")).toBe(503);
    expect(await kept.ask("/plugin/observability.ts")).toBe(200);
    expect(await kept.ask("/api/sessions")).toBe(200);
    for (const { end } of halves) end();
    await waitFor(() => descriptors() < 60, "descriptors that are free again");
    expect(await kept.ask("/")).toBe(200);
    kept.end();
    expect((await server.end("SIGTERM")).exitCode).toBe(0);
  },
  15_000,
);

test("the database is deleted under a running server → 503, and /health says so: nothing is acknowledged that would be lost", async () => {
  const dataDir = tempDir();
  await using server = await spawnServer({ dataDir });
  const event = { type: "message_user", session_id: "s" };
  expect((await postEvent(server, event)).status).toBe(201);
  for (const name of readdirSync(dataDir)) rmSync(join(dataDir, name));
  expect(await postEvent(server, event)).toMatchObject({
    status: 503,
    body: { error: expect.stringContaining("was deleted or replaced") },
  });
  expect(await getJson(server, "/health")).toMatchObject({ status: "degraded" });
  expect((await server.end("SIGTERM")).exitCode).toBe(0);
});

describe("garbage", () => {
  const HOST = "Host: localhost\r\n";
  const JSON_TYPE = "Content-Type: application/json\r\n";
  const POST = `POST /api/events HTTP/1.1\r\n${HOST}${JSON_TYPE}`;
  const get = (target: string, headers = "") => `GET ${target} HTTP/1.1\r\n${HOST}${headers}\r\n`;
  const post = (headers: string, body = "") => `${POST}${headers}\r\n${body}`;

  /** Requests that are wrong in some way: none is a server's error, none stores anything. */
  const MALFORMED: [string, string | Uint8Array][] = [
    ["nothing", ""],
    ["an empty line", "\r\n"],
    ["many empty lines", "\r\n".repeat(1_000)],
    ["one word", "hello\r\n\r\n"],
    ["no version", "GET /health\r\n\r\n"],
    ["version 0.9", `GET /health HTTP/0.9\r\n${HOST}\r\n`],
    ["version 1.0 without a Host", "GET /api/sessions HTTP/1.0\r\n\r\n"],
    ["version 2.0", `GET /health HTTP/2.0\r\n${HOST}\r\n`],
    ["version 9.9", `GET /health HTTP/9.9\r\n${HOST}\r\n`],
    ["an HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    ["a TLS hello", Uint8Array.of(0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 13, 10, 13, 10)],
    ["random bytes", Uint8Array.from({ length: 4_096 }, seededBytes(1))],
    ["NUL bytes", new Uint8Array(1_024)],
    ["line feeds alone", "GET /api/nowhere HTTP/1.1\nHost: localhost\n\n"],
    ["a lower-case method", `get /health HTTP/1.1\r\n${HOST}\r\n`],
    ["an unknown method", `BREW /health HTTP/1.1\r\n${HOST}\r\n`],
    ["TRACE", `TRACE /health HTTP/1.1\r\n${HOST}\r\n`],
    ["CONNECT", `CONNECT localhost:80 HTTP/1.1\r\n${HOST}\r\n`],
    ["DELETE", `DELETE /api/sessions/nobody HTTP/1.1\r\n${HOST}\r\n`],
    ["PROPFIND", `PROPFIND / HTTP/1.1\r\n${HOST}\r\n`],
    ["OPTIONS *", `OPTIONS * HTTP/1.1\r\n${HOST}\r\n`],
    ["a method of 10 KB", `${"A".repeat(10_240)} / HTTP/1.1\r\n${HOST}\r\n`],
    ["no Host", "GET /api/sessions HTTP/1.1\r\n\r\n"],
    ["an empty Host", "GET /api/sessions HTTP/1.1\r\nHost:\r\n\r\n"],
    ["two Hosts", `GET /api/sessions HTTP/1.1\r\n${HOST}Host: localhost:1\r\n\r\n`],
    [
      "a Host with a port beyond all",
      "GET /api/sessions HTTP/1.1\r\nHost: localhost:99999\r\n\r\n",
    ],
    ["a Host that is no address", "GET /api/sessions HTTP/1.1\r\nHost: 127.0.0.999\r\n\r\n"],
    ["a Host in brackets", "GET /api/events HTTP/1.1\r\nHost: [127.0.0.1]\r\n\r\n"],
    ["a Host of control characters", "GET /api/sessions HTTP/1.1\r\nHost: \x01\x02\r\n\r\n"],
    ["a header without a colon", get("/health", "NoColon\r\n")],
    ["a header without a name", get("/health", ": value\r\n")],
    ["a space before the colon", get("/health", "X-Header : value\r\n")],
    ["a folded header", get("/health", "X-Header: a\r\n b\r\n")],
    ["a header of NUL", get("/api/nowhere", "X-Header: a\0b\r\n")],
    ["a header of 100 KB", get("/health", `X-Header: ${"a".repeat(102_400)}\r\n`)],
    ["5,000 headers", get("/health", "X-Header: a\r\n".repeat(5_000))],
    ["a cookie of garbage", get("/api/nowhere", "Cookie: =;;;%%%=%zz; \xff\r\n")],
    ["an Authorization of garbage", get("/api/nowhere", "Authorization: \xff\xfe %00\r\n")],
    ["a URL of 100 KB", get(`/${"a".repeat(102_400)}`)],
    ["a query of 10 KB", get(`/api/sessions?limit=${"9".repeat(10_240)}`)],
    ["a session id of 10 KB", get(`/api/sessions/${"a".repeat(10_240)}`)],
    ["a cut escape", get("/api/sessions/%E0%A4%A")],
    ["an escape that is none", get("/api/sessions/%zz")],
    ["an escape that is no UTF-8", get("/api/sessions/%ff%fe")],
    ["an escaped NUL", get("/api/sessions/%00")],
    ["an escaped line break", get("/api/sessions/%0d%0aX-Header:%20a")],
    ["bytes that are no ASCII in the path", get("/api/sessions/\xe9\xff")],
    ["a space in the path", get("/api/ses sions")],
    ["a path out of the root", get("/../../etc/passwd")],
    ["an escaped path out of the root", get("/plugin/..%2f..%2fserver.ts")],
    ["a path of slashes", get("//////")],
    ["a path with two slashes in front", get("//evil.example/api/sessions")],
    ["another site's URL", get("http://evil.example/nowhere")],
    ["a URL of another scheme", get("file:///etc/passwd")],
    ["parameters of garbage", get("/api/events?after=%zz&before=&limit=-1&type=%00")],
    ["limits of every kind", get("/api/sessions?limit=1e3")],
    ["hours that are no number", get("/api/analytics/tools?hours=NaN")],
    ["hours beyond all", get(`/api/analytics/agents?hours=${"9".repeat(400)}`)],
    [
      "an upgrade to a websocket",
      get(
        "/api/nowhere",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
      ),
    ],
    ["two lengths", post("Content-Length: 2\r\nContent-Length: 5\r\n", "{}abc")],
    [
      "a length and chunks",
      post("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", "2\r\n{}\r\n0\r\n\r\n"),
    ],
    ["a negative length", post("Content-Length: -1\r\n", "{}")],
    ["a length that is no number", post("Content-Length: two\r\n", "{}")],
    ["a length with a sign", post("Content-Length: +2\r\n", "{}")],
    ["a length beyond all", post(`Content-Length: ${"9".repeat(30)}\r\n`, "{}")],
    ["a length of 5 GB", post("Content-Length: 5000000000\r\n", "{}")],
    ["no length", post("", "{}")],
    ["a length of none", post("Content-Length: 0\r\n")],
    ["a body shorter than its length", post("Content-Length: 200\r\n", '{"type":"tool_use"')],
    ["a body longer than its length", post("Content-Length: 2\r\n", '{}{"type":"tool_use"}')],
    [
      "a chunk size that is no number",
      post("Transfer-Encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n"),
    ],
    ["a chunk size beyond all", post("Transfer-Encoding: chunked\r\n", `${"f".repeat(20)}\r\n{}`)],
    ["a chunk that is cut", post("Transfer-Encoding: chunked\r\n", "50\r\n{}")],
    ["an unknown transfer encoding", post("Transfer-Encoding: gzip\r\n", "{}")],
    ["a compressed body", post("Content-Encoding: gzip\r\nContent-Length: 2\r\n", "{}")],
    ["an Expect that nobody meets", post("Expect: 200-maybe\r\nContent-Length: 2\r\n", "{}")],
    ["a body for a GET", get("/api/nowhere", "Content-Length: 5\r\n") + "hello"],
    ["a body that is no JSON", post("Content-Length: 5\r\n", "hello")],
    ["two requests, the second cut", get("/api/nowhere") + "GET /api/sess"],
    ["a request behind a refused one", `DELETE / HTTP/1.1\r\n${HOST}\r\n${get("/api/nowhere")}`],
  ];

  function seededBytes(seed: number): () => number {
    const random = seededRandom(seed);
    return () => Math.floor(random() * 256);
  }

  test(`${MALFORMED.length} malformed requests, and slow ones: no 500, no hang, nothing stored, every route 200 after`, async () => {
    await using server = await spawnServer({ dataDir: tempDir() });
    await postEvent(server, sessionEvents("s1", { from: Date.now() - HOUR_MS }));
    const events = await eventCount(server);
    const slow = await Promise.all(
      Array.from({ length: 20 }, (_, n) =>
        trickle(server, n % 2 === 0 ? get("/health") : `${POST}Content-Length: 9000\r\n\r\n{`),
      ),
    );
    const stopProbe = startProbe(server, ["/health"]);
    const answers = await Promise.all(
      // What waits for more bytes is not answered, and cut off later.
      MALFORMED.map(async ([name, request]) => ({
        name,
        answer: await sendRaw(server, request, 400),
      })),
    );
    const longest = await stopProbe();
    for (const stop of slow) stop();
    for (const { name, answer } of answers)
      for (const [, status] of answer.matchAll(/^HTTP\/1\.1 (\d{3})/gm))
        expect([name, status]).toEqual([name, expect.stringMatching(/^(100|200|204|4\d\d|505)$/)]);
    report(`${MALFORMED.length} malformed requests: longest /health ${longest.toFixed(0)} ms`);
    expect(longest).toBeLessThan(isSoak ? 100 : 2_000); // beside other tests: no hang
    expect(server.output()).not.toMatch(/ error |^ +at /m);
    await expectAllRoutes(server);
    expect(await eventCount(server)).toBe(events);
  }, 15_000);

  /** Sends `request` byte by byte. */
  async function trickle(server: ServerProcess, request: string) {
    const socket = await Bun.connect({
      hostname: "127.0.0.1",
      port: server.port,
      socket: { data() {}, error() {}, close() {} },
    });
    let sent = 0;
    const timer = setInterval(() => socket.write(request[sent++] ?? " "), 10);
    return () => {
      clearInterval(timer);
      socket.terminate();
    };
  }

  const BODIES = isSoak ? 2_000 : 800;
  test(`${BODIES} bodies mutated from valid ones: no 500, what is accepted can be read back everywhere`, async () => {
    await using server = await spawnServer({ dataDir: tempDir() });
    const random = seededRandom(2_000);
    const valid = [
      // Without its id, by which all but the first would be known already.
      ...sessionEvents("s1", { from: Date.now() - HOUR_MS }).map(({ id: _, ...event }) => event),
      ...paiPosts().map(({ body }) => body),
      ...Object.keys(EVENT_TYPES).map((type) => ({
        type,
        session_id: "s2",
        data: { tool: "a", subagent_type: "b", call_id: "c", request_id: "r" },
      })),
    ];
    const live = await openStream(server);
    const stopProbe = startProbe(server, ["/health"]);
    const statuses = new Map<number, number>();
    let accepted = 0;
    for (let from = 0; from < BODIES; from += 40)
      await Promise.all(
        Array.from({ length: 40 }, async () => {
          const body = mutated(pick(valid, random), random);
          const type = random() < 0.1 ? "application/x-ndjson" : "application/json";
          const answer = await postBody(server, body, type);
          statuses.set(answer.status, (statuses.get(answer.status) ?? 0) + 1);
          expect(answer.status, JSON.stringify(body.slice(0, 500))).toBeOneOf([200, 201, 400, 413]);
          if (answer.status === 400) expect(answer.body.error?.length).toBeGreaterThan(10);
          if (answer.status === 201) accepted++;
        }),
      );
    const longest = await stopProbe();
    report(
      `${BODIES} mutated bodies: ${JSON.stringify(Object.fromEntries(statuses))}, longest /health ${longest.toFixed(0)} ms`,
    );
    expect(longest).toBeLessThan(isSoak ? 100 : 2_000); // beside other tests: no hang
    // Neither all refused nor all accepted: it tests both.
    expect(accepted).toBeGreaterThan(BODIES * 0.1);
    expect(statuses.get(400)).toBeGreaterThan(BODIES * 0.1);
    await expectAllRoutes(server);
    const events = await eventCount(server);
    const exported = await fetch(`${server.url}/api/events?after=0`, {
      headers: { Accept: "application/x-ndjson" },
    });
    const lines = (await exported.text()).trimEnd().split("\n");
    expect(lines).toHaveLength(events);
    const replayed = await openStream(server, "?lastEventId=0");
    const wanted = lines.map(parseStored);
    expect(wanted.filter(({ type }) => !Object.hasOwn(EVENT_TYPES, String(type)))).toEqual([]);
    for (const stream of [live, replayed]) {
      await waitFor(() => stream.events().length >= events, "all of them on the stream");
      expect(stream.events().map(({ data }) => parseStored(data))).toEqual(wanted);
      stream.close();
    }
    expect(server.output()).not.toMatch(/ error |^ +at /m);
  }, 30_000);
});

/** Without the duration of a session, which is derived when it is read. */
function parseStored(json: string): Record<string, unknown> {
  const { duration_seconds: _, ...event }: Record<string, unknown> = JSON.parse(json);
  return event;
}

function pick<T>(items: readonly T[], random: () => number): T {
  return items[Math.floor(random() * items.length)] as T;
}

/** Values that have broken parsers, stores and streams before. */
const NASTY: (() => unknown)[] = [
  () => null,
  () => true,
  () => 0,
  () => -1,
  () => -0,
  () => 0.1,
  () => 1e308,
  () => 2 ** 53 + 2,
  () => 1e21,
  () => "",
  () => " ",
  () => "\0",
  () => "a\r\nb\n\nid: 1\ndata: x\n\n",
  () => "\u2028\u2029",
  () => "\ud800",
  () => "\udc00\ud800",
  () => "\ufeff",
  () => "🧵".repeat(200),
  () => "x".repeat(257),
  () => "x".repeat(20_000),
  () => "'; DROP TABLE events; --",
  () => "%s%n$1",
  () => "__proto__",
  () => "constructor",
  () => "2026-01-01T12:00:00",
  () => "2026-02-31T25:61:00Z",
  () => "+275760-09-13T00:00:00.001Z",
  () => [],
  () => [[]],
  () => ({}),
  () => ({ toString: 1, toJSON: 1, length: -1 }),
  () => nested(63),
  () => nested(70),
  () => nested(5_000),
  () => JSON.parse('{"__proto__": {"type": "tool_use"}, "constructor": {"prototype": 1}}'),
];

function nested(levels: number): unknown {
  let value: unknown = 1;
  for (let level = 0; level < levels; level++) value = level % 2 === 0 ? [value] : { a: value };
  return value;
}

const FIELDS = [
  "id",
  "type",
  "event_type",
  "session_id",
  "timestamp",
  "data",
  "tool",
  "subagent_type",
  "agent_type",
  "call_id",
  "task_id",
  "args",
  "args_preview",
  "duration_ms",
  "duration_seconds",
  "success",
  "outcome",
  "exit_code",
  "waited_ms",
  "files",
  "error",
  "description",
  "prompt",
  "detail",
  "child_session_id",
  "title",
  "tokens",
  "cost",
  "todos",
  "changes",
  "model",
  "first_token_ms",
  "retry_at",
  "message",
  "parent_session_id",
  "request_id",
  "__proto__",
  "constructor",
  "toString",
  "",
];

/** `event` with one to three of its fields, or of its characters, made wrong. */
function mutated(event: object, random: () => number): string {
  const copy: Record<string, unknown> = structuredClone({ ...event });
  let text = "";
  for (let left = 1 + Math.floor(random() * 3); left > 0; left--) {
    const inner = copy.data;
    const target: Record<string, unknown> = isRecord(inner) && random() < 0.6 ? inner : copy;
    const field = pick(
      random() < 0.5 && Object.keys(target).length > 0 ? Object.keys(target) : FIELDS,
      random,
    );
    const way = random();
    if (way < 0.2) delete target[field];
    else
      Object.defineProperty(target, field, {
        value: pick(NASTY, random)(),
        enumerable: true,
        configurable: true,
        writable: true,
      });
  }
  text = JSON.stringify(copy);
  const way = random();
  const at = Math.floor(random() * text.length);
  if (way < 0.05) return text.slice(0, at);
  if (way < 0.1) return text.slice(0, at) + text.slice(at + 1);
  if (way < 0.15)
    return text.slice(0, at) + String.fromCharCode(Math.floor(random() * 65_536)) + text.slice(at);
  if (way < 0.2) return text.slice(0, at) + text.slice(at, at + 20) + text.slice(at);
  if (way < 0.23) return `[${text},${text}]`;
  if (way < 0.24) return `${text}\n${text}`;
  if (way < 0.245) return "[".repeat(500_000);
  if (way < 0.25)
    return `{"type":"message_user","session_id":"s3","data":{"a":${"[".repeat(250_000)}${"]".repeat(250_000)}}}`;
  if (way < 0.26) return text.replace(/"x*"/, `"${"y".repeat(1_100_000)}"`);
  return text;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
