/** The event stream: its frames on a real socket, and the hub that hands them out. */

import { afterEach, describe, expect, jest, test } from "bun:test";
import { createHub, encodeFrame, EVENT_TYPES, parseEvent, type StoredEvent } from "../server.ts";
import { seededRandom, sessionEvents, shuffled } from "./fixtures.ts";
import {
  getJson,
  openStream,
  openTestStore,
  parseFrame,
  postEvent,
  startTestServer,
  type TestStore,
  waitFor,
} from "./helpers.ts";

const NOW = Date.parse("2026-01-01T12:00:00Z");
const ISO_NOW = "2026-01-01T12:00:00.000Z";

const startNow = () => startTestServer({ now: () => NOW });

function parsed<T = Record<string, unknown>>(frame: { data: string }): T {
  return JSON.parse(frame.data);
}

describe("GET /api/events/stream", () => {
  test("→ an event stream that no cache keeps, with a comment and retry at once", async () => {
    await using server = await startNow();
    const stream = await openStream(server);
    expect(stream.response.headers.get("content-type")).toBe("text/event-stream");
    expect(stream.response.headers.get("cache-control")).toBe("no-store");
    const [first] = stream.frames;
    expect(first?.comments).toHaveLength(1);
    expect(first?.retry).toMatch(/^\d+$/);
    expect(first?.event).toBeUndefined();
    expect(stream.events()).toEqual([]);
    stream.close();
  });

  test.each<[type: string, data: Record<string, unknown>, expected: Record<string, unknown>]>([
    ["session_start", { title: "Fix it" }, { title: "Fix it" }],
    ["tool_use", { tool: "mcp_bash", duration_ms: 150 }, { tool: "mcp_bash", duration_ms: 150 }],
    ["tool_use", { tool: "mcp_bash" }, { tool: "mcp_bash", duration_ms: null }],
    [
      "tool_use",
      { tool: "read", args: { path: "/a" }, success: false, error: "gone" },
      { tool: "read", args: { path: "/a" }, duration_ms: null, success: false, error: "gone" },
    ],
    [
      "agent_spawn",
      { subagent_type: "Engineer", prompt: "Build it" },
      { subagent_type: "Engineer", prompt: "Build it" },
    ],
    ["session_end", { duration_seconds: 300 }, { duration_seconds: 300 }],
    ["session_end", {}, { duration_seconds: 0 }],
    ["rating_explicit", { score: 9, own: { deep: [1] } }, { score: 9, own: { deep: [1] } }],
  ])("%s with %j → a frame of that name with flat data", async (type, data, expected) => {
    await using server = await startNow();
    const stream = await openStream(server);
    const { body } = await postEvent(server, { type, session_id: "session-123", data });
    const [frame] = await stream.waitForEvents(1);
    expect(frame).toMatchObject({ event: type, id: String(body.id), comments: [] });
    expect(frame && parsed(frame)).toEqual({
      id: body.id,
      type,
      session_id: "session-123",
      timestamp: ISO_NOW,
      ...expected,
    });
    stream.close();
  });

  test("every accepted type → a frame of its name", async () => {
    await using server = await startNow();
    const stream = await openStream(server);
    const types = Object.keys(EVENT_TYPES);
    const data = { tool: "bash", subagent_type: "general", call_id: "c", request_id: "r" };
    await postEvent(
      server,
      types.map((type) => ({ type, session_id: "s", data })),
    );
    const frames = await stream.waitForEvents(types.length);
    expect(frames.map(({ event }) => event)).toEqual(types);
    stream.close();
  });

  test("?include=rows → after the frames of a batch, the rows that it changed, as GET has them", async () => {
    await using server = await startNow();
    const [plain, all, one] = await Promise.all(
      ["", "?include=rows", "?include=rows&sessionId=s"].map((query) => openStream(server, query)),
    );
    const event = (session_id: string, type: string, data = {}) => ({ session_id, type, data });
    await postEvent(server, [
      event("s", "session_start", { parent_session_id: "parent" }),
      event("parent", "session_start"),
      event("s", "tool_start", { tool: "bash", call_id: "c" }),
    ]);
    const frames = (await all?.waitForEvents(6)) ?? [];
    expect(frames.slice(0, 3)).toEqual((await plain?.waitForEvents(3)) ?? []);
    const rows = frames.slice(3);
    expect(rows.map(({ id, event }) => [id, event])).toEqual([
      [undefined, "session"],
      [undefined, "session"],
      [undefined, "span"],
    ]);
    const { sessions } = await getJson<{ sessions: { id: string }[] }>(server, "/api/sessions");
    const { spans } = await getJson<{ spans: object[] }>(server, "/api/spans");
    const sent: object[] = rows.map((frame) => parsed(frame));
    expect(sent.toSorted(byText)).toEqual([...sessions, ...spans].toSorted(byText));

    const own = (await one?.waitForEvents(4)) ?? [];
    expect(own.map(({ event }) => event)).toEqual([
      "session_start",
      "tool_start",
      "session",
      "span",
    ]);
    for (const stream of [plain, all, one]) stream?.close();
  });

  test("?include=rows → the session row again when time alone has made it stale", async () => {
    let now = NOW;
    jest.useFakeTimers(); // the interval of the server runs on them
    await using server = await startTestServer({ now: () => now });
    await postEvent(server, { type: "session_start", session_id: "s" });
    const chunks = readChunks(await fetch(`${server.url}/api/events/stream?include=rows`));
    await chunks.next();
    now += 3_600_000;
    jest.advanceTimersByTime(5_000);
    const text = await chunks.next();
    jest.useRealTimers();
    expect(text).toStartWith("event: session\ndata: {");
    const [, row = ""] = /^data: (.*)$/m.exec(text) ?? [];
    expect(JSON.parse(row)).toMatchObject({ id: "s", status: "stale" });
  });

  test("a session_end → duration_seconds since the earliest event, though that arrived later", async () => {
    await using server = await startNow();
    const stream = await openStream(server);
    const event = (type: string, secondsAgo: number) =>
      postEvent(server, { type, session_id: "s", timestamp: NOW - secondsAgo * 1_000 });
    await event("tool_blocked", 100);
    await event("session_end", 10);
    await event("session_start", 310);
    await event("session_end", 5);
    const ends = (await stream.waitForEvents(4)).filter(({ event }) => event === "session_end");
    expect(ends.map((frame) => parsed(frame).duration_seconds)).toEqual([90, 305]);
    stream.close();
  });

  test("50 writers at once → every stream gets each event once, ids increasing, as they were answered", async () => {
    await using server = await startNow();
    const streams = await Promise.all(Array.from({ length: 5 }, () => openStream(server)));
    const posts = shuffled(
      [...sessionEvents("a"), ...sessionEvents("b", { seed: 2 })],
      seededRandom(5),
    );
    const expected = new Map<string, string>();
    await Promise.all(
      Array.from({ length: 50 }, async () => {
        for (let post = posts.pop(); post; post = posts.pop()) {
          const { body } = await postEvent(server, post);
          expected.set(String(body.id), post.session_id);
        }
      }),
    );
    const inOrder = [...expected].sort(([a], [b]) => Number(a) - Number(b));
    for (const stream of streams) {
      const frames = await stream.waitForEvents(expected.size);
      expect(frames.map((frame) => [frame.id, parsed(frame).session_id])).toEqual(inOrder);
      stream.close();
    }
  });

  test("a post that repeats an id, and a batch that is refused → nothing on the stream", async () => {
    await using server = await startNow();
    const stream = await openStream(server);
    const event = { type: "session_start", session_id: "s", id: "e1" };
    await postEvent(server, event);
    await postEvent(server, event);
    await postEvent(server, [{ ...event, id: "e2" }, { type: "no" }]);
    const { body } = await postEvent(server, { ...event, id: "last" });
    const frames = await stream.waitForEvents(2);
    expect(frames.map(({ id }) => id)).toEqual([expect.any(String), String(body.id)]);
    stream.close();
  });

  test("a task call of the dialect → a tool_use, and the agent_spawn behind it", async () => {
    await using server = await startNow();
    const stream = await openStream(server);
    await postEvent(server, {
      event_type: "tool.execute",
      session_id: "s",
      data: { tool: "task", args_preview: '{"subagent_type":"general","prompt":"Look' },
    });
    const [tool, agent] = await stream.waitForEvents(2);
    expect(tool && parsed(tool)).toMatchObject({ type: "tool_use", tool: "task" });
    expect(agent).toMatchObject({ event: "agent_spawn" });
    expect(agent && parsed(agent)).toMatchObject({ subagent_type: "general", prompt: "Look" });
    stream.close();
  });

  test.each([["a"], ["a b/c?d&e#f%"], ["a\r\nid: 9\n\ndata: x"], ["häß 😀\0"]])(
    "sessionId=%j → that session's events alone",
    async (sessionId) => {
      await using server = await startNow();
      const stream = await openStream(server, `?${new URLSearchParams({ sessionId })}`);
      const other = await openStream(server, "?sessionId=other");
      const all = await openStream(server);
      const ids: (number | undefined)[] = [];
      for (const session_id of ["x", sessionId, "other", sessionId])
        ids.push((await postEvent(server, { type: "message_user", session_id })).body.id);
      const batch = ["other", "x", sessionId].map((session_id) => ({
        type: "voice_sent",
        session_id,
      }));
      ids.push(...((await postEvent(server, batch)).body.ids ?? []));
      const idsOf = async (of: typeof stream, count: number) =>
        (await of.waitForEvents(count)).map(({ id }) => ids.indexOf(Number(id)));
      expect(await idsOf(all, 7)).toEqual([0, 1, 2, 3, 4, 5, 6]);
      expect(await idsOf(stream, 3)).toEqual([1, 3, 6]);
      expect(await idsOf(other, 2)).toEqual([2, 4]);
      for (const { close } of [stream, other, all]) close();
    },
  );

  test.each([
    ["\n"],
    ["\r"],
    ["\r\n"],
    ["\n\n"],
    ["\0"],
    ["\u2028"],
    ["\u2029"],
    ["\u0085"],
    ["\ufeff"],
  ])("%j in every field → arrives as data, one frame for each event", async (breaker) => {
    await using server = await startNow();
    const stream = await openStream(server);
    const text = `${breaker}x${breaker}event: evil${breaker}id: 1${breaker}data: {}${breaker}`;
    const data = { tool: text, args: { [text]: [text] }, call_id: text, error: text, [text]: text };
    const event = { id: text, type: "tool_use", session_id: text, data };
    const { status, body } = await postEvent(server, event);
    expect(status).toBe(201);
    const last = await postEvent(server, { type: "session_start", session_id: "s" });
    const frames = await stream.waitForEvents(2);
    expect(frames.map(({ id, event }) => [id, event])).toEqual([
      [String(body.id), "tool_use"],
      [String(last.body.id), "session_start"],
    ]);
    expect(frames[0] && parsed(frames[0])).toMatchObject({ session_id: text, ...data });
    stream.close();
  });

  test("a stream that its client drops → no subscriber is left", async () => {
    await using server = await startNow();
    const subscribers = async () =>
      (await getJson<{ subscribers: number }>(server, "/health")).subscribers;
    const streams = await Promise.all(Array.from({ length: 3 }, () => openStream(server)));
    expect(await subscribers()).toBe(3);
    for (const stream of streams) stream.close();
    await waitFor(async () => (await subscribers()) === 0, "the subscribers to go");
  });

  test("a server that stops → ends its streams", async () => {
    await using server = await startNow();
    const stream = await openStream(server);
    await postEvent(server, { type: "session_start", session_id: "s" });
    await server.stop();
    await stream.ended;
    expect(stream.events()).toHaveLength(1);
  });

  afterEach(() => {
    jest.useRealTimers();
  });

  test("a minute without events → a comment every 15 s", async () => {
    jest.useFakeTimers(); // the interval of the server runs on them
    const server = await startNow();
    const response = await fetch(`${server.url}/api/events/stream`);
    const chunks = readChunks(response);
    await chunks.next();
    jest.advanceTimersByTime(14_999);
    jest.advanceTimersByTime(1);
    expect(await chunks.next()).toBe(":\n\n");
    jest.advanceTimersByTime(45_000);
    let comments = "";
    while (comments.length < 9) comments += await chunks.next();
    expect(comments).toBe(":\n\n:\n\n:\n\n");
    jest.useRealTimers();
    await server[Symbol.asyncDispose]();
  });
});

describe("encodeFrame", () => {
  const stored: StoredEvent = {
    id: 17,
    type: "session_end",
    session_id: "s",
    timestamp: NOW,
    duration_ms: null,
    data: "{}",
    started_at: NOW - 1_500,
  };

  test.each<[event: Partial<StoredEvent>, data: string]>([
    [{}, '"duration_seconds":1.5'],
    [{ data: '{"own":1}' }, '"duration_seconds":1.5,"own":1'],
    [{ data: '{"duration_seconds":9}', duration_ms: 9_000 }, '"duration_seconds":9'],
  ])("a session_end with %j → %s", (event, data) => {
    expect(encodeFrame({ ...stored, ...event })).toBe(
      `id: 17\nevent: session_end\ndata: {"id":17,"type":"session_end","session_id":"s","timestamp":"${ISO_NOW}",${data}}\n\n`,
    );
  });

  test("line ends in an id → escaped: three lines and an empty one", () => {
    const frame = encodeFrame({ ...stored, session_id: "a\r\n\u2028\0b" });
    expect(frame.split(/\r\n|\r|\n/)).toHaveLength(5);
    const { data = "" } = parseFrame(frame.trimEnd());
    expect(JSON.parse(data).session_id).toBe("a\r\n\u2028\0b");
  });
});

test("a stream with rows of one session → isn't held up by 350 events of others", async () => {
  await using server = await startTestServer();
  const stream = await openStream(server, "?include=rows&sessionId=mine");
  await postEvent(
    server,
    Array.from({ length: 350 }, () => ({ type: "voice_sent", session_id: "other" })),
  );
  await postEvent(server, { type: "message_user", session_id: "mine" });
  await waitFor(
    () => stream.frames.some(({ event }) => event === "session"),
    "the event of its session, and the row",
  );
  stream.close();
});

describe("hub", () => {
  /** Stores events of `sessions`, one each, and publishes them as one batch. */
  function publish(store: TestStore, hub: ReturnType<typeof createHub>, sessions: string[]) {
    const events = sessions.map((session_id) =>
      parseEvent({ type: "message_user", session_id, data: { text: "x".repeat(1_000) } }, NOW),
    );
    const { receipts } = store.append([events]);
    hub.publish();
    return receipts.flatMap(({ ids }) => ids);
  }

  /** A subscriber of `hub` that has had its first block, as a reader of its chunks. */
  async function subscribe(hub: ReturnType<typeof createHub>, sessionId: string | null = null) {
    const reader = hub.subscribe(sessionId, null).getReader();
    const chunk = async () => (await reader.read()).value ?? new Uint8Array();
    const text = async () => new TextDecoder().decode(await chunk());
    return { first: await text(), chunk, text, reader };
  }

  /** All that is left in a stream that has ended. */
  async function readAll(text: () => Promise<string>): Promise<string> {
    let all = "";
    for (let chunk = await text(); chunk !== ""; chunk = await text()) all += chunk;
    return all;
  }

  const idsIn = (text: string) => [...text.matchAll(/^id: (\d+)$/gm)].map(([, id]) => Number(id));

  test("a subscriber → first a comment, retry and the id from which it goes on", async () => {
    using store = openTestStore();
    const hub = createHub(store);
    const [, last] = publish(store, hub, ["a", "b"]);
    const { first } = await subscribe(hub);
    expect(first).toMatch(/^: .+\nretry: \d+\nid: \d+\n\n$/);
    expect(idsIn(first)).toEqual([last ?? 0]);
  });

  test("a batch → one chunk, encoded once, the same bytes for every subscriber", async () => {
    using store = openTestStore();
    const hub = createHub(store);
    const [one, two] = [await subscribe(hub), await subscribe(hub)];
    const ids = publish(store, hub, ["a", "b", "c"]);
    const chunk = await one.chunk();
    expect(await two.chunk()).toBe(chunk);
    expect(idsIn(new TextDecoder().decode(chunk))).toEqual(ids);
  });

  test("a batch of several sessions → to a subscriber of one, its events in one chunk", async () => {
    using store = openTestStore();
    const hub = createHub(store);
    const [one, two] = [await subscribe(hub, "a"), await subscribe(hub, "a")];
    publish(store, hub, ["b", "c"]);
    const ids = publish(store, hub, ["b", "a", "c", "a"]);
    const chunk = await one.chunk();
    expect(idsIn(new TextDecoder().decode(chunk))).toEqual([ids[1] ?? 0, ids[3] ?? 0]);
    expect(await two.chunk()).toBe(chunk);
  });

  test("a subscriber that doesn't read → its queue stays bounded", async () => {
    using store = openTestStore();
    const hub = createHub(store);
    const { text } = await subscribe(hub);
    for (let batch = 0; batch < 40; batch++) publish(store, hub, Array(10).fill("s"));
    hub.close(); // so that reading on ends with what waited
    expect((await readAll(text)).length).toBeLessThan(80_000); // 64 KiB and a batch, not 400 KB
  });

  test("a subscriber that reads again → gets what it missed, once, in order, then live events", async () => {
    using store = openTestStore();
    const hub = createHub(store);
    const [stalled, live] = [await subscribe(hub), await subscribe(hub)];
    const expected: number[] = [];
    const received: number[] = [];
    for (let batch = 0; batch < 40; batch++) {
      expected.push(...publish(store, hub, Array(10).fill("s")));
      received.push(...idsIn(await live.text()));
    }
    expect(received).toEqual(expected);
    const caughtUp: number[] = [];
    while (caughtUp.length < expected.length) caughtUp.push(...idsIn(await stalled.text()));
    expect(caughtUp).toEqual(expected);
    const next = publish(store, hub, ["s"]);
    expect(idsIn(await stalled.text())).toEqual(next);
  });

  test("a stream that catches up → others have a turn of the event loop after a few pages", async () => {
    using store = openTestStore();
    const hub = createHub(store);
    for (let page = 0; page < 20; page++) publish(store, hub, Array(64).fill("s"));
    const head = store.head();
    let turns = 0;
    let next = setImmediate(function count() {
      turns++;
      next = setImmediate(count);
    });
    const reader = hub.subscribe(null, "0").getReader();
    const turnsAtPage: number[] = [];
    for (let text = ""; !text.includes(`{"id":${head},`);) {
      text = new TextDecoder().decode((await reader.read()).value);
      if (text.includes(`{"id":`)) turnsAtPage.push(turns);
    }
    clearImmediate(next);
    expect(turnsAtPage.length).toBe(20);
    expect(new Set(turnsAtPage).size).toBeGreaterThanOrEqual(5);
  });

  test("two pages of new events in each turn of the event loop → a stream that is behind catches up", async () => {
    using store = openTestStore();
    const hub = createHub(store);
    const expected: number[] = [];
    const publishPage = () => expected.push(...publish(store, hub, Array(64).fill("s")));
    for (let page = 0; page < 20; page++) publishPage();
    let turns = 0;
    let next = setImmediate(function bring() {
      if (++turns > 100) return;
      publishPage();
      publishPage();
      next = setImmediate(bring);
    });
    const reader = hub.subscribe(null, "0").getReader();
    const received: number[] = [];
    do received.push(...idsIn(new TextDecoder().decode((await reader.read()).value)));
    while (received.at(-1) !== expected.at(-1));
    clearImmediate(next);
    expect(turns).toBeLessThan(100);
    expect(received.filter((id) => id >= (expected[0] ?? 0))).toEqual(expected);
  });

  test("heartbeat → a comment to every live subscriber", async () => {
    using store = openTestStore();
    const hub = createHub(store);
    const [one, two] = [await subscribe(hub), await subscribe(hub, "a")];
    hub.heartbeat();
    expect([await one.text(), await two.text()]).toEqual([":\n\n", ":\n\n"]);
  });

  test("heartbeats to a subscriber that doesn't read → its queue stays bounded", async () => {
    using store = openTestStore();
    const hub = createHub(store);
    const { text } = await subscribe(hub);
    for (let beat = 0; beat < 40_000; beat++) hub.heartbeat();
    hub.close();
    expect((await readAll(text)).length).toBeLessThan(70_000);
  });

  test("a log that can't be read → the stream ends, the error is told, no subscriber is left", async () => {
    const store = openTestStore();
    const errors: unknown[] = [];
    const hub = createHub(store, (error) => errors.push(error));
    for (let page = 0; page < 20; page++) publish(store, hub, Array(64).fill("s"));
    const reader = hub.subscribe(null, "0").getReader();
    await reader.read(); // the first block; the log is read as it is taken
    expect(hub.size()).toBe(1);
    store[Symbol.dispose]();
    let isDone = false;
    while (!isDone) isDone = (await reader.read()).done;
    expect(errors).toHaveLength(1);
    expect(hub.size()).toBe(0);
  });

  test("a subscriber that cancels → is counted no more, and gets nothing", async () => {
    using store = openTestStore();
    const hub = createHub(store);
    const [one, two] = [await subscribe(hub), await subscribe(hub)];
    expect(hub.size()).toBe(2);
    await one.reader.cancel();
    expect(hub.size()).toBe(1);
    const ids = publish(store, hub, ["s"]);
    expect(idsIn(await two.text())).toEqual(ids);
  });

  test("close → every stream ends, after what was sent to it", async () => {
    using store = openTestStore();
    const hub = createHub(store);
    const { text, reader } = await subscribe(hub);
    const ids = publish(store, hub, ["s"]);
    hub.close();
    expect(hub.size()).toBe(0);
    expect(idsIn(await text())).toEqual(ids);
    expect((await reader.read()).done).toBe(true);
  });
});

function byText(a: object, b: object): number {
  return JSON.stringify(a) < JSON.stringify(b) ? -1 : 1;
}

/** The chunks of a response as text, one for each `next`. */
function readChunks(response: Response): { next: () => Promise<string> } {
  const reader = response.body?.getReader();
  const decoder = new TextDecoder();
  return { next: async () => decoder.decode((await reader?.read())?.value, { stream: true }) };
}
