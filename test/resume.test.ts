/** The stream loses nothing: resuming, catching up, restarts, clients that don't read, resets. */

import { afterEach, describe, expect, test } from "bun:test";
import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { createHub, openStore, parseEvent } from "../server.ts";
import { seededRandom } from "./fixtures.ts";
import {
  getJson,
  isSoak,
  openStream,
  postEvent,
  removeTempDirs,
  residentBytes,
  sendRaw,
  spawnServer,
  startTestServer,
  statusOf,
  tempDir,
  type TestStream,
  waitFor,
} from "./helpers.ts";

const MB = 1024 * 1024;
const HOUR_MS = 3_600_000;

afterEach(removeTempDirs);

const note = (session_id: string, n: number, timestamp?: number) => ({
  type: "message_user",
  session_id,
  timestamp,
  data: { n },
});

const notes = (session_id: string, count: number, timestamp?: number) =>
  Array.from({ length: count }, (_, n) => note(session_id, n, timestamp));

/** The ids of the events that the server has, oldest first. */
async function storedIds(server: { url: string }, query = ""): Promise<number[]> {
  const response = await fetch(`${server.url}/api/events?after=0${query}`, {
    headers: { Accept: "application/x-ndjson" },
  });
  return [...(await response.text()).matchAll(/^\{"id":(\d+)/gm)].map(([, id]) => Number(id));
}

/** The id from which a stream goes on that begins now. */
async function headOf(server: { url: string }): Promise<number> {
  return headIn(await fetch(`${server.url}/api/sessions?limit=1`));
}

const headIn = (response: Response) => Number(response.headers.get("Last-Event-ID"));

const subscribers = async (server: { url: string }) =>
  (await getJson<{ subscribers: number }>(server, "/health")).subscribers;

/** A client that keeps the ids it was sent over any number of connections. */
function createClient(sessionId: string | null, by: "header" | "query") {
  const ids: (number | "reset")[] = [];
  let cursor = "0";
  return {
    ids,
    filter: sessionId === null ? "" : `&sessionId=${sessionId}`,
    /** Connects where it left off, and drops the connection when `until` says. */
    async connect(server: { url: string }, until: (stream: TestStream) => Promise<unknown>) {
      const params = new URLSearchParams();
      if (sessionId !== null) params.set("sessionId", sessionId);
      if (by === "query") params.set("lastEventId", cursor);
      const headers: Record<string, string> = by === "header" ? { "Last-Event-ID": cursor } : {};
      const stream = await openStream(server, `?${params}`, headers);
      await until(stream);
      stream.close();
      await stream.ended;
      for (const { event, id = "" } of stream.events()) {
        ids.push(event === "reset" ? "reset" : Number(id));
        cursor = id;
      }
    },
    /** Connects once more, until it has what is stored now. */
    async catchUp(server: { url: string }) {
      const wanted = await storedIds(server, this.filter);
      if (ids.at(-1) !== wanted.at(-1))
        await this.connect(server, (stream) =>
          waitFor(() => stream.events().at(-1)?.id === String(wanted.at(-1)), "the last event"),
        );
      return wanted;
    },
  };
}

/**
 * A stream on a raw socket that reads only when told: the ids it was sent, in order.
 * Reads HTTP/1.1 chunks, and the `id:` lines of events in them.
 */
async function openRawStream(port: number, isReading: boolean) {
  const ids: number[] = [];
  let head: string | null = "";
  let chunk: Buffer = Buffer.alloc(0);
  let text = "";
  const read = (data: Buffer) => {
    chunk = chunk.length === 0 ? data : Buffer.concat([chunk, data]);
    if (head !== null) {
      const end = chunk.indexOf("\r\n\r\n");
      if (end < 0) return;
      head = null;
      chunk = chunk.subarray(end + 4);
    }
    for (;;) {
      const line = chunk.indexOf("\r\n");
      if (line < 0) break;
      const end = line + 2 + Number.parseInt(chunk.toString("latin1", 0, line), 16);
      if (chunk.length < end + 2) break;
      text += chunk.toString("latin1", line + 2, end);
      chunk = chunk.subarray(end + 2);
    }
    const complete = text.lastIndexOf("\n\n") + 2;
    for (const [, id] of text.slice(0, complete).matchAll(/^id: (\d+)\nevent: /gm))
      ids.push(Number(id));
    text = text.slice(complete);
  };
  const socket = await Bun.connect({
    hostname: "127.0.0.1",
    port,
    // Bun hands out a buffer that it uses again.
    socket: { data: (_, data) => read(Buffer.from(data)), error() {}, close() {} },
  });
  if (!isReading) socket.pause();
  socket.write("GET /api/events/stream HTTP/1.1\r\nHost: localhost\r\n\r\n");
  return { ids, resume: () => socket.resume(), close: () => socket.terminate() };
}

describe("Last-Event-ID", () => {
  test("200 random disconnects and resumes under 500 events/s, filtered and not: no gap, no duplicate, in order", async () => {
    await using server = await startTestServer();
    const random = seededRandom(200);
    const clients = [
      createClient(null, "header"),
      createClient(null, "query"),
      createClient("s0", "header"),
      createClient("s1", "query"),
    ];
    let isPosting = true;
    const load = (async () => {
      while (isPosting) {
        const batch = Array.from({ length: 10 }, (_, n) => note(`s${Math.floor(random() * 3)}`, n));
        expect((await postEvent(server, batch)).status).toBe(201);
        await Bun.sleep(20); // the pace: 10 events every 20 ms
      }
    })();
    await Promise.all(
      clients.map(async (client) => {
        for (let round = 0; round < 50; round++)
          await client.connect(server, () => Bun.sleep(random() * 40));
      }),
    );
    isPosting = false;
    await load;
    expect((await storedIds(server)).length).toBeGreaterThan(300);
    for (const client of clients) {
      const wanted = await client.catchUp(server);
      expect(client.ids).toEqual(wanted);
    }
  }, 30_000);

  test("a server that ends, or is killed, under connected clients: they resume exactly", async () => {
    const dataDir = tempDir();
    const clients = [createClient(null, "header"), createClient("s1", "query")];
    await using started = new AsyncDisposableStack();
    let server = started.use(await spawnServer({ dataDir }));
    const env = { PORT: String(server.port) };
    for (const signal of ["SIGTERM", "SIGKILL", "SIGTERM"] as const) {
      const connections = clients.map((client) => client.connect(server, (stream) => stream.ended));
      await waitFor(async () => (await subscribers(server)) === 2, "both clients");
      for (let n = 0; n < 40; n++) await postEvent(server, note(`s${n % 2}`, n));
      await server.end(signal);
      await Promise.all(connections);
      server = started.use(await spawnServer({ dataDir, env }));
      await postEvent(server, [note("s0", -1), note("s1", -2)]);
    }
    for (const [index, client] of clients.entries()) {
      const wanted = await client.catchUp(server);
      expect(wanted).toHaveLength([126, 63][index] ?? 0);
      expect(client.ids).toEqual(wanted);
    }
  }, 15_000);
});

describe("from history to live", () => {
  test.each([
    "/api/sessions",
    "/api/sessions/s1",
    "/api/spans",
    "/api/events",
    "/api/analytics/activity",
  ])("GET %s → with the id of the newest event that is in it", async (path) => {
    await using server = await startTestServer();
    for (let n = 0; n < 3; n++) {
      const { body } = await postEvent(server, note("s1", n));
      expect(headIn(await fetch(server.url + path))).toBe(body.id ?? 0);
    }
  });

  test("a long session, read while events come → what it hasn't is after its id", async () => {
    await using server = await startTestServer();
    const call = { type: "tool_use", session_id: "s1", data: { tool: "bash" } };
    for (let n = 0; n < 6; n++) await postEvent(server, Array(1_000).fill(call));
    const reading = Array.from({ length: 3 }, () => fetch(`${server.url}/api/sessions/s1`));
    for (let n = 0; n < 30; n++) await postEvent(server, call);
    for (const response of await Promise.all(reading)) {
      const { tools }: { tools: unknown[] } = await response.json();
      const after = await getJson<{ events: unknown[] }>(
        server,
        `/api/events?sessionId=s1&after=${headIn(response)}`,
      );
      expect(tools.length + after.events.length).toBe(6_030);
    }
  });
});

describe("a client that doesn't read", () => {
  const COUNT = isSoak ? 30_000 : 12_000;
  const WARM_UP = 5_000;
  test(`ten of them beside five that do, ${COUNT} events of 1 KB: the five get all, memory stays, then the ten get all`, async () => {
    const dataDir = tempDir();
    await using server = await spawnServer({ dataDir });
    await fetch(server.url); // the page is bundled now, and not while memory is watched
    const event = {
      type: "tool_use",
      session_id: "s1",
      data: { tool: "bash", args: "x".repeat(880) },
    };
    const post = async (count: number) => {
      for (let left = count; left > 0; left -= 250)
        await postEvent(
          server,
          Array.from({ length: Math.min(left, 250) }, () => event),
        );
    };
    const open = (count: number, isReading: boolean) =>
      Promise.all(Array.from({ length: count }, () => openRawStream(server.port, isReading)));
    const readers = await open(5, true);
    await post(WARM_UP); // so that code and caches have their size before it is measured
    const stalled = await open(10, false);
    await waitFor(async () => (await subscribers(server)) === 15, "fifteen streams");
    const before = residentBytes(server.pid);
    let peak = before;
    const sampler = setInterval(() => (peak = Math.max(peak, residentBytes(server.pid))), 20);
    await post(COUNT);
    const wanted = (await storedIds(server)).slice(WARM_UP);
    await waitFor(
      () => readers.every(({ ids }) => ids.length >= WARM_UP + COUNT),
      "the five",
      isSoak ? 60_000 : 10_000,
    );
    clearInterval(sampler);
    report(`ten stalled streams, ${COUNT} events: RSS +${((peak - before) / MB).toFixed(1)} MB`);
    // Ten that were kept whole would be 120.
    expect((peak - before) / MB).toBeLessThan(isSoak ? 40 : 80);
    for (const { ids } of readers) expect(ids.slice(WARM_UP)).toEqual(wanted);

    expect(Math.max(...stalled.map(({ ids }) => ids.length))).toBe(0);
    for (const { resume } of stalled) resume();
    await waitFor(
      () => stalled.every(({ ids }) => ids.length >= COUNT),
      "the ten",
      isSoak ? 60_000 : 10_000,
    );
    for (const { ids } of stalled) expect(ids).toEqual(wanted);
    for (const { close } of [...readers, ...stalled]) close();
    await waitFor(async () => (await subscribers(server)) === 0, "the streams to be gone");
  }, 120_000);
});

function report(line: string): void {
  if (isSoak) console.log(line);
}

describe("subscribers", () => {
  const CYCLES = isSoak ? 25_000 : 1_500;
  const WARM_UP = isSoak ? 5_000 : 500; // the heap finds its size
  test(`${CYCLES} connects and drops leave no subscriber and no memory behind`, async () => {
    const dataDir = tempDir();
    await using server = await spawnServer({ dataDir });
    await postEvent(server, notes("s1", 200));
    const request = "GET /api/events/stream?lastEventId=0 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    /** Gone at once, after half a request, after the first bytes, or closed politely after them. */
    const drop = async (way: number) => {
      const { promise, resolve } = Promise.withResolvers<void>();
      const socket = await Bun.connect({
        hostname: "127.0.0.1",
        port: server.port,
        socket: { data: () => resolve(), error: () => resolve(), close: () => resolve() },
      });
      socket.write(way === 1 ? request.slice(0, 40) : request);
      if (way >= 2) await promise;
      if (way === 3) socket.end();
      else socket.terminate();
    };
    const cycle = async (count: number) => {
      for (let done = 0; done < count; done += 20)
        await Promise.all(Array.from({ length: 20 }, (_, index) => drop(index % 4)));
      await waitFor(async () => (await subscribers(server)) === 0, "no subscriber to be left");
    };
    await cycle(WARM_UP);
    const before = residentBytes(server.pid);
    await cycle(CYCLES - WARM_UP);
    const growth = (residentBytes(server.pid) - before) / MB;
    report(`${CYCLES - WARM_UP} connect-and-drop cycles: RSS ${growth.toFixed(1)} MB more`);
    expect(growth).toBeLessThan(15);
  }, 60_000);

  test("beyond MAX_SUBSCRIBERS → 503 with Retry-After, until one leaves", async () => {
    await using server = await startTestServer({ config: { maxSubscribers: 3 } });
    const streams = await Promise.all([1, 2, 3].map(() => openStream(server)));
    const refused = await fetch(`${server.url}/api/events/stream`);
    expect(refused.status).toBe(503);
    expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(0);
    expect(await refused.json()).toEqual({ error: expect.stringContaining("MAX_SUBSCRIBERS") });
    expect((await fetch(`${server.url}/api/sessions`)).status).toBe(200);
    streams[0]?.close();
    await waitFor(async () => (await subscribers(server)) === 2, "one to leave");
    (await openStream(server)).close();
    for (const stream of streams) stream.close();
  });

  test("HEAD takes no place among them", async () => {
    await using server = await startTestServer({ config: { maxSubscribers: 1 } });
    for (let n = 0; n < 3; n++)
      expect(
        statusOf(
          await sendRaw(
            server,
            "HEAD /api/events/stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
          ),
        ),
      ).toBe(200);
    expect(await subscribers(server)).toBe(0);
  });
});

describe("reset", () => {
  /** A frame that says why and from where on, once, and then what is posted from then on. */
  async function expectReset(server: { url: string }, stream: TestStream, reason: RegExp) {
    const head = await headOf(server);
    const { body } = await postEvent(server, note("s1", 1));
    await waitFor(() => stream.events().length === 2, "the reset and the live event", 2_000);
    const [reset, live] = stream.events();
    expect(reset).toMatchObject({ event: "reset", id: String(head) });
    // Nothing before it moves the client's id: cut there, it comes back with its own, and is told.
    expect(stream.frames.find((frame) => frame.id !== undefined)).toBe(reset);
    expect(JSON.parse(reset?.data ?? "")).toEqual({
      reason: expect.stringMatching(reason),
      last_event_id: head,
    });
    expect(live).toMatchObject({ event: "message_user", id: String(body.id) });
    stream.close();
  }

  test.each<[string, (head: number) => string, RegExp]>([
    ["ahead of the log", (head) => String(head + 1), /ahead/],
    ["far ahead of the log", () => "9007199254740991", /ahead/],
    ["from before this database", () => "5", /deleted|another database/],
    ["not a number", () => "abc", /not a number/],
    ["a number and more", (head) => `${head}x`, /not a number/],
    ["negative", () => "-1", /not a number/],
    ["a fraction", (head) => `${head}.5`, /not a number/],
    ["in exponents", () => "1e3", /not a number/],
    ["hexadecimal", () => "0x10", /not a number/],
    ["10 KB of digits", () => "1".repeat(10_240), /not a number/],
    ["10 KB of letters", () => "a".repeat(10_240), /not a number/],
  ])("a cursor that is %s", async (_, cursor, reason) => {
    await using server = await startTestServer();
    await postEvent(server, notes("s1", 3));
    const value = async () => cursor((await storedIds(server)).at(-1) ?? 0);
    for (const open of [
      async () => openStream(server, "", { "Last-Event-ID": await value() }),
      async () => openStream(server, `?lastEventId=${await value()}`),
      async () => openStream(server, `?sessionId=s1&lastEventId=${await value()}`),
    ])
      await expectReset(server, await open(), reason);
  });

  test("a cursor after which events were pruned", async () => {
    let now = Date.now() - 200 * HOUR_MS;
    await using server = await startTestServer({ now: () => now });
    const { body } = await postEvent(server, notes("old", 10));
    now = Date.now();
    await postEvent(server, notes("s1", 10));
    await server.restart();
    await waitFor(async () => (await storedIds(server)).length === 10, "the retention");
    const [first, ...pruned] = body.ids ?? [];
    for (const cursor of [first, pruned.at(-2)])
      await expectReset(server, await openStream(server, `?lastEventId=${cursor}`), /deleted/);
    const served = await openStream(server, `?lastEventId=${pruned.at(-1)}`);
    const wanted = await storedIds(server);
    await waitFor(() => served.events().length === wanted.length, "what came after the pruned");
    expect(served.events().map(({ id }) => Number(id))).toEqual(wanted);
    served.close();
  });

  test("a cursor of a database that was deleted and made again soon, however many events either has", async () => {
    await using server = await startTestServer();
    for (let batch = 0; batch < 5; batch++) await postEvent(server, notes("s1", 1_000));
    const old = await storedIds(server);
    await server.stop();
    for (const name of readdirSync(server.dataDir))
      if (name.startsWith("observability.db")) rmSync(join(server.dataDir, name));
    await server.restart();
    await postEvent(server, notes("s1", 40));
    const ids = new Set(await storedIds(server));
    // One that is an id of the new database too would be taken for that, and silently.
    for (const cursor of [old[0], old.at(-1), old.find((id) => ids.has(id))])
      if (cursor !== undefined)
        await expectReset(
          server,
          await openStream(server, `?lastEventId=${cursor}`),
          /deleted|another/,
        );
  });

  test("a client whose events are pruned while it catches up is told so, rather than given a gap", async () => {
    const dataDir = tempDir();
    const store = openStore(dataDir);
    const hub = createHub(store);
    const event = (session_id: string, timestamp: number) =>
      parseEvent(
        { type: "message_user", session_id, timestamp, data: { text: "x".repeat(1_000) } },
        Date.now(),
      );
    const start = store.head();
    store.append([Array.from({ length: 1_000 }, () => event("old", 1_000_000_000))]);
    store.append([[event("new", Date.now())]]);
    hub.publish();
    const reader = hub.subscribe(null, String(start)).getReader();
    const decoder = new TextDecoder();
    let text = "";
    const read = async () => {
      text += decoder.decode((await reader.read()).value, { stream: true });
    };
    while (!text.includes("event: message_user")) await read();
    await store.prune(Date.now() - HOUR_MS, undefined, () => hub.publish());
    while (!text.includes(`id: ${store.head()}\n`)) await read();
    store.append([[event("new", Date.now())]]);
    hub.publish();
    while (!text.includes(`id: ${store.head()}\n`)) await read();
    const [before = "", after = ""] = text.split(/^id: \d+\nevent: reset$/m);
    const ids = (frames: string) =>
      [...frames.matchAll(/^id: (\d+)\nevent: message_user$/gm)].map(([, id]) => Number(id));
    expect(ids(before)).toEqual(ids(before).map((_, index) => start + 1 + index));
    expect(ids(before).length).toBeLessThan(1_000);
    expect(ids(after).at(-1)).toBe(store.head());
    await reader.cancel();
    store.close();
  });
});
