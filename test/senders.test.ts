/** Who posts, and until when it is taken to live: a killed process doesn't seem to run on. */

import { expect, spyOn, test } from "bun:test";
import { PLUGIN_VERSION, createSender } from "../plugin/observability.ts";
import type { Session, Span } from "../server.ts";
import {
  getJson,
  openStream,
  postBody,
  postEvent,
  startTestServer,
  type TestServer,
  waitFor,
} from "./helpers.ts";

const START = Date.parse("2026-01-01T12:00:00Z");
const SECOND = 1_000;
const iso = (ms: number) => new Date(ms).toISOString();

/** A server whose clock is `clock.now`. */
async function startAt(clock: { now: number }): Promise<TestServer> {
  return await startTestServer({ now: () => clock.now });
}

const hear = (server: TestServer, said: object) =>
  postBodyStatus(server, { sender: "p1", every_ms: 10_000, ...said });

async function postBodyStatus(server: TestServer, body: object): Promise<number> {
  const response = await fetch(`${server.url}/api/senders`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  return response.status;
}

/** What a server has logged at info and above. */
function startLog() {
  const lines: string[] = [];
  const add = (line: string) => void lines.push(line);
  return { lines, log: { debug() {}, info: add, warn: add, error: add } };
}

test("each version of a sender is logged once, whatever the number of its processes", async () => {
  const { lines, log } = startLog();
  await using server = await startTestServer({ log });
  for (const sender of ["p1", "p1", "p2", "p1"])
    await hear(server, { sender, name: "opencode", version: "1.0.0" });
  await hear(server, { name: "opencode", version: "1.0.1" });
  expect(lines).toEqual(["sender: opencode 1.0.0", "sender: opencode 1.0.1"]);
});

test("a plugin that lives and is older than the server's is told of, until it is gone", async () => {
  await using server = await startTestServer();
  const old = async () =>
    (await getJson<{ old_plugin: string | null }>(server, "/api/overview")).old_plugin;
  await hear(server, { name: "opencode", version: PLUGIN_VERSION });
  await hear(server, { sender: "p2", name: "another", version: "0.0.1" });
  await hear(server, { sender: "p3", name: "opencode", version: "no version" });
  expect(await old()).toBeNull();
  await hear(server, { sender: "p4", name: "opencode", version: "2.0.0" });
  expect(await old()).toBe("2.0.0");
  await hear(server, { sender: "p4", bye: true });
  expect(await old()).toBeNull();
});

test("a refused token is one line of the log for each program, and not one for each request", async () => {
  const { lines, log } = startLog();
  await using server = await startTestServer({ log, config: { authToken: "t".repeat(32) } });
  const hooks = createSender({ server: server.url, token: "wrong" });
  const refused: string[] = [];
  const told = createSender({
    ...{ server: server.url, token: "wrong" },
    onRefused: () => refused.push("told"),
  });
  const event = {
    id: "e",
    type: "turn_start",
    session_id: "s",
    timestamp: START,
    data: {},
  } as const;
  for (const sender of [hooks, told]) sender.send([event]);
  await waitFor(() => refused.length > 0 && lines.length > 0, "the refusal");
  await told.close(600);
  await hooks.close(600);
  expect(refused).toEqual(["told"]);
  expect(lines).toEqual([
    `401: pai-observability/${PLUGIN_VERSION} sends no token, or a wrong one`,
  ]);
});

test.each([
  ["http", {}],
  ["https", { "x-forwarded-proto": "https" }],
])(
  "GET /plugin/observability.ts → posts to the %s address that it came from",
  async (scheme, headers) => {
    await using server = await startTestServer();
    const host = `localhost:${server.port}`;
    const answer = await fetch(`${server.url}/plugin/observability.ts`, {
      headers: { host, ...headers },
    });
    const lines = (await answer.text()).split("\n");
    expect(lines[0]).toContain(`PLUGIN_VERSION = "${PLUGIN_VERSION}"`);
    expect(lines[1]).toStartWith(`const DEFAULT_SERVER = "${scheme}://${host}";`);
    const own = await Bun.file(new URL("../plugin/observability.ts", import.meta.url)).text();
    expect(lines.slice(2)).toEqual(own.split("\n").slice(2));
  },
);

/** A session of the sender p1 with a call that runs. */
async function post(server: TestServer): Promise<void> {
  const session = { session_id: "s", timestamp: START };
  await postEvent(server, [
    { type: "session_start", ...session, data: { sender: "p1" } },
    { type: "tool_start", ...session, data: { tool: "bash", call_id: "c1" } },
  ]);
}

async function sessionOf(server: TestServer): Promise<Session> {
  const { sessions } = await getJson<{ sessions: Session[] }>(server, "/api/sessions");
  const [session] = sessions;
  if (session === undefined) throw new Error("no session");
  return session;
}

async function spanOf(server: TestServer): Promise<Span> {
  const { spans } = await getJson<{ spans: Span[] }>(server, "/api/spans");
  const [span] = spans;
  if (span === undefined) throw new Error("no span");
  return span;
}

test("three intervals of silence → its session is stale and lost, its call was cancelled then, nothing runs", async () => {
  const clock = { now: START };
  await using server = await startAt(clock);
  await post(server);
  clock.now = START + 5 * SECOND;
  expect(await hear(server, { name: "OpenCode", version: "1.18.33" })).toBe(204);
  const lostAt = START + 35 * SECOND;
  clock.now = lostAt - 1;
  expect(await sessionOf(server)).toMatchObject({
    status: "active",
    stale_at: null,
    is_lost: false,
  });
  expect(await spanOf(server)).toMatchObject({ ended_at: null, outcome: null });
  expect(await getJson(server, "/api/overview")).toMatchObject({ active_sessions: 1 });

  clock.now = lostAt;
  expect(await sessionOf(server)).toMatchObject({
    status: "stale",
    stale_at: iso(lostAt),
    is_lost: true,
    now: null,
  });
  expect(await spanOf(server)).toMatchObject({
    ended_at: iso(lostAt),
    outcome: "cancelled",
    duration_ms: 35 * SECOND,
  });
  expect(await getJson(server, "/api/overview")).toMatchObject({ active_sessions: 0 });
  expect(await getJson(server, "/api/spans?open=1")).toEqual({ spans: [] });
  expect(await getJson(server, "/api/sessions?status=stale")).toMatchObject({
    sessions: [{ id: "s" }],
  });
  expect(await getJson(server, "/api/senders")).toEqual({
    senders: [
      {
        sender: "p1",
        name: "OpenCode",
        version: "1.18.33",
        every_ms: 10_000,
        last_heard_at: iso(START + 5 * SECOND),
        is_lost: true,
      },
    ],
  });
});

test("a sender that lives → no silence makes its session stale; a session without one is stale in an hour", async () => {
  const clock = { now: START };
  await using server = await startAt(clock);
  await post(server);
  await postEvent(server, { type: "message_user", session_id: "other", timestamp: START });
  clock.now = START + 3 * 3_600 * SECOND;
  await hear(server, {});
  const { sessions } = await getJson<{ sessions: Session[] }>(server, "/api/sessions");
  const statusOf = (id: string) => sessions.find((session) => session.id === id)?.status;
  expect([statusOf("s"), statusOf("other")]).toEqual(["active", "stale"]);
});

test("bye → lost at once; heard again → it goes on", async () => {
  const clock = { now: START };
  await using server = await startAt(clock);
  await post(server);
  clock.now += SECOND;
  expect(await hear(server, { bye: true })).toBe(204);
  expect(await sessionOf(server)).toMatchObject({ status: "stale", stale_at: iso(clock.now) });
  clock.now += SECOND;
  await hear(server, {});
  expect(await sessionOf(server)).toMatchObject({ status: "active", stale_at: null });
  expect(await spanOf(server)).toMatchObject({ ended_at: null });
});

test("an event that names a sender → it was heard", async () => {
  const clock = { now: START };
  await using server = await startAt(clock);
  clock.now = START + 3_600 * SECOND;
  await postEvent(server, { type: "session_start", session_id: "s", data: { sender: "p2" } });
  expect(await sessionOf(server)).toMatchObject({ status: "active" });
  clock.now += 30 * SECOND;
  expect(await sessionOf(server)).toMatchObject({ status: "stale", is_lost: true });
});

test("after a start each sender has three intervals to be heard; then it was lost soon after its last event", async () => {
  const clock = { now: START };
  await using server = await startAt(clock);
  await post(server);
  clock.now = START + 7_200 * SECOND;
  await server.restart();
  clock.now += 29 * SECOND;
  expect(await sessionOf(server)).toMatchObject({ status: "active" });
  clock.now += SECOND;
  expect(await sessionOf(server)).toMatchObject({
    status: "stale",
    stale_at: iso(START + 30 * SECOND),
  });
  await hear(server, {});
  expect(await sessionOf(server)).toMatchObject({ status: "active" });
});

test("a stream with rows → is told when a sender is gone, and when it is back", async () => {
  const clock = { now: START };
  await using server = await startAt(clock);
  await post(server);
  const stream = await openStream(server, "?include=rows");
  const lastRow = (event: string) =>
    JSON.parse(stream.frames.findLast((frame) => frame.event === event)?.data ?? "null");
  clock.now += SECOND;
  await hear(server, { bye: true });
  await waitFor(() => lastRow("session")?.is_lost === true, "the session is told as lost");
  await waitFor(() => lastRow("span")?.outcome === "cancelled", "its call is told as cancelled");
  clock.now += SECOND;
  await hear(server, {});
  await waitFor(() => lastRow("session")?.status === "active", "the session is told as active");
  await waitFor(() => lastRow("span")?.outcome === null, "its call is told as running");
  stream.close();
});

test.each([
  [[], "sender: expected a JSON object; got an array"],
  [{}, "sender: expected a string of 1 to 256 characters; it is missing"],
  [{ sender: "" }, 'sender: expected a string of 1 to 256 characters; got ""'],
  [{ sender: "p", every_ms: 10 }, "every_ms: expected milliseconds from 1000 to 3600000; got 10"],
  [{ sender: "p", bye: "yes" }, 'bye: expected true or false; got "yes"'],
  [{ sender: "p", version: 2 }, "version: expected a string of 1 to 256 characters; got 2"],
])("POST /api/senders %j → 400 that says why", async (body, error) => {
  await using server = await startAt({ now: START });
  const answer = await postBody(server, JSON.stringify(body), "application/json", "/api/senders");
  expect(answer).toMatchObject({ status: 400, body: { error } });
});

test("a sender that lives, silent for over a day → its session is in every list of what goes on", async () => {
  const clock = { now: START };
  await using server = await startAt(clock);
  await post(server);
  clock.now = START + 30 * 3_600 * SECOND;
  await hear(server, {});
  for (const path of ["/api/sessions?status=active", "/api/sessions"])
    expect(await getJson(server, path)).toMatchObject({ sessions: [{ id: "s" }] });
  expect(await getJson(server, "/api/spans?open=1")).toMatchObject({ spans: [{ name: "bash" }] });
  expect(await getJson(server, "/api/overview")).toMatchObject({ active_sessions: 1 });
});

test("bye → what the sender said of itself stays", async () => {
  await using server = await startAt({ now: START });
  await hear(server, { name: "OpenCode", version: "1.18.33", every_ms: 60_000 });
  await postBodyStatus(server, { sender: "p1", bye: true });
  expect(await getJson(server, "/api/senders")).toMatchObject({
    senders: [{ name: "OpenCode", version: "1.18.33", every_ms: 60_000, is_lost: true }],
  });
});

test("after a start, a sender heard for the first time when it was told as lost → its session is told as back", async () => {
  const clock = { now: START };
  await using server = await startAt(clock);
  await post(server);
  await server.restart();
  const stream = await openStream(server, "?include=rows");
  const statuses = () =>
    stream.frames
      .filter(({ event }) => event === "session")
      .map(({ data = "" }) => JSON.parse(data).status);
  clock.now = START + 45 * SECOND;
  await hear(server, { sender: "other" });
  await waitFor(() => statuses().at(-1) === "stale", "the session is told as stale");
  clock.now += SECOND;
  await hear(server, {});
  await waitFor(() => statuses().at(-1) === "active", "the session is told as active");
  stream.close();
});

test("two senders that go in the same millisecond → the sessions of both are told as lost", async () => {
  const clock = { now: START };
  await using server = await startAt(clock);
  for (const sender of ["p1", "p2"])
    await postEvent(server, { type: "session_start", session_id: sender, data: { sender } });
  const stream = await openStream(server, "?include=rows");
  clock.now += SECOND;
  await hear(server, { bye: true });
  await hear(server, { sender: "p2", bye: true });
  clock.now += SECOND;
  await hear(server, { sender: "other" });
  const lost = () =>
    stream.frames
      .filter(({ event }) => event === "session")
      .map(({ data = "" }): Session => JSON.parse(data))
      .filter(({ is_lost }) => is_lost)
      .map(({ id }) => id);
  await waitFor(() => lost().includes("p1") && lost().includes("p2"), "both are told as lost");
  stream.close();
});

test("an event that names no sender, in a lost session → its calls are told as running again", async () => {
  const clock = { now: START };
  await using server = await startAt(clock);
  await post(server);
  const stream = await openStream(server, "?include=rows");
  const lastSpan = () =>
    JSON.parse(stream.frames.findLast(({ event }) => event === "span")?.data ?? "null");
  clock.now += 60 * SECOND;
  await hear(server, { sender: "other" });
  await waitFor(() => lastSpan()?.outcome === "cancelled", "the call is told as cancelled");
  clock.now += SECOND;
  await postEvent(server, { type: "message_user", session_id: "s" });
  await waitFor(() => lastSpan()?.outcome === null, "the call is told as running");
  stream.close();
});

test("a sender that isn't heard since a restart → its session is told as lost 30 s after each event", async () => {
  const clock = { now: START };
  await using server = await startAt(clock);
  await post(server);
  await server.restart();
  clock.now += 60 * SECOND;
  const stream = await openStream(server, "?include=rows");
  const lastStatus = () =>
    JSON.parse(stream.frames.findLast(({ event }) => event === "session")?.data ?? "{}").status;
  await hear(server, { sender: "another" }); // time goes on, past that in which all could be heard
  await postEvent(server, { type: "message_user", session_id: "s" }); // names no sender
  await waitFor(() => lastStatus() === "active", "the session is told as active");
  clock.now += 31 * SECOND;
  await hear(server, { sender: "other" });
  await waitFor(() => lastStatus() === "stale", "the session is told as lost");
  stream.close();
});

test("an event of long ago, or of before its bye → doesn't say that its sender lives", async () => {
  const clock = { now: START };
  await using server = await startAt(clock);
  await post(server);
  clock.now += 10 * SECOND;
  await hear(server, { bye: true });
  const late = { type: "session_update", session_id: "s", data: { sender: "p1" } };
  await postEvent(server, { ...late, timestamp: START + 9 * SECOND });
  expect(await sessionOf(server)).toMatchObject({ status: "stale" });
  await postEvent(server, { ...late, data: { sender: "old" }, timestamp: START - 3_600 * SECOND });
  expect(await getJson(server, "/api/senders")).toMatchObject({ senders: [{ sender: "p1" }] });
});

test("an event that comes late from a sender with longer intervals → its session is told as lost in the end", async () => {
  const clock = { now: START };
  await using server = await startAt(clock);
  const stream = await openStream(server, "?include=rows");
  await hear(server, { every_ms: 60_000 });
  clock.now += 110 * SECOND;
  const timestamp = START + 70 * SECOND;
  const data = { sender: "p1" };
  await postEvent(server, { type: "session_start", session_id: "s", timestamp, data });
  for (let passed = 110; passed < 320; passed += 10) {
    clock.now = START + passed * SECOND;
    await hear(server, { sender: `p${passed}` }); // which publishes
  }
  const isLost = ({ event, data = "" }: { event?: string; data?: string }) =>
    event === "session" && JSON.parse(data).is_lost;
  await waitFor(() => stream.frames.some(isLost), "that it is lost");
  stream.close();
});

test("clients that return to the same event at different times → each is told what was silent by then", async () => {
  const clock = { now: START };
  await using server = await startAt(clock);
  const note = (session_id: string) => ({ type: "voice_sent", session_id, timestamp: clock.now });
  await postEvent(server, note("silent"));
  clock.now = START + 3_600 * SECOND - 1;
  // More than a client that returns is told the rows of once more.
  const { body } = await postEvent(
    server,
    Array.from({ length: 150 }, () => note("other")),
  );
  const cursor = String(body.ids?.at(-1));
  const returned = async () => {
    const stream = await openStream(server, "?include=rows", { "Last-Event-ID": cursor });
    await waitFor(() => stream.frames.some(({ event }) => event === "session"), "the rows");
    const rows = stream.frames.filter(({ event }) => event === "session");
    stream.close();
    return rows
      .map(({ data = "" }): Session => JSON.parse(data))
      .map(({ id, status }) => `${id} ${status}`);
  };
  await hear(server, { sender: "someone" });
  expect(await returned()).not.toContain("silent stale");
  clock.now += 2 * SECOND;
  await hear(server, { sender: "another" });
  expect(await returned()).toContain("silent stale");
});

test("more sessions are lost at once than the stream tells rows of → it says so, and a client loads them anew", async () => {
  await using server = await startTestServer();
  const stream = await openStream(server, "?include=rows");
  const one = (_: unknown, index: number) => ({
    type: "session_start",
    session_id: `s${index}`,
    data: { sender: "many" },
  });
  await postEvent(server, Array.from({ length: 501 }, one));
  await hear(server, { sender: "many", bye: true });
  await waitFor(() => stream.frames.some(({ event }) => event === "reset"), "the reset");
  stream.close();
});

test("a client that has loaded what so many sessions lost → goes on from there, and isn't told to load it again", async () => {
  await using server = await startTestServer();
  const one = (_: unknown, index: number) => ({
    type: "session_start",
    session_id: `s${index}`,
    data: { sender: "many" },
  });
  const { body } = await postEvent(server, Array.from({ length: 501 }, one));
  await hear(server, { sender: "many", bye: true });
  const resumed = async (index: number) => {
    const stream = await openStream(server, "?include=rows", {
      "Last-Event-ID": String(body.ids?.at(index)),
    });
    await waitFor(() => stream.frames.some(({ event }) => event === "session"), "the rows");
    const { body: last } = await postEvent(server, { type: "voice_sent", session_id: "s0" });
    await waitFor(
      () => stream.frames.some(({ id }) => id === String(last.id)),
      "what comes after all that it has missed",
    );
    stream.close();
    return stream.frames.map(({ event }) => event);
  };
  expect(await resumed(-1)).not.toContain("reset");
  expect(await resumed(-2)).toContain("reset"); // it was away meanwhile
});

test("more open calls are lost at once than the stream tells rows of → it says so", async () => {
  await using server = await startTestServer();
  const stream = await openStream(server, "?include=rows");
  const one = (_: unknown, index: number) => ({
    type: "tool_start",
    session_id: `s${index % 3}`,
    data: { tool: "bash", call_id: `c${index}`, sender: "many" },
  });
  await postEvent(server, [
    ...["s0", "s1", "s2"].map((session_id) => ({
      ...{ type: "session_start", session_id, data: { sender: "many" } },
    })),
    ...Array.from({ length: 501 }, one),
  ]);
  await hear(server, { sender: "many", bye: true });
  await waitFor(() => stream.frames.some(({ event }) => event === "reset"), "the reset");
  stream.close();
});

test("a beat of one that lives changes nothing: no row is looked for", async () => {
  await using server = await startTestServer();
  const looked = spyOn(Bun, "deepEquals"); // which publishing begins with
  await hear(server, { sender: "one" });
  const before = looked.mock.calls.length;
  expect(before).toBeGreaterThan(0);
  for (let beat = 0; beat < 5; beat++) await hear(server, { sender: "one" });
  expect(looked.mock.calls.length).toBe(before);
  await hear(server, { sender: "one", bye: true });
  expect(looked.mock.calls.length).toBe(before + 1);
  looked.mockRestore();
});

test("a session that fell silent just before a client's last event → the client is told when it returns", async () => {
  const clock = { now: START };
  await using server = await startAt(clock);
  await postEvent(server, { type: "voice_sent", session_id: "silent", timestamp: START });
  clock.now = START + 3_601 * SECOND;
  const notes = Array.from({ length: 150 }, () => ({ type: "voice_sent", session_id: "other" }));
  const { body } = await postEvent(server, notes);
  await hear(server, { sender: "someone" });
  const stream = await openStream(server, "?include=rows", {
    "Last-Event-ID": String(body.ids?.at(-1)),
  });
  const isTold = ({ event, data = "" }: { event?: string; data?: string }) =>
    event === "session" && JSON.parse(data).id === "silent";
  await waitFor(() => stream.frames.some(isTold), "that it is stale");
  stream.close();
});
