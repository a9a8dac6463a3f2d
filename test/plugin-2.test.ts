import { describe, expect, test } from "bun:test";
import plugin, {
  type Context2,
  type OpenCode2Event,
  type Session2,
  type TelemetryEvent,
  createReporter,
  createShape,
  createTranslator2,
  follow2,
} from "../plugin/observability.ts";
import { openCode2Events, seededRandom } from "./fixtures.ts";
import { getJson, startTestServer, waitFor } from "./helpers.ts";

/**
 * What a plugin got of OpenCode 2 of July 2026 in a real run: agents in agents and in the background, a
 * retry, permissions, a form, two interruptions, a compaction, the person's own command, a failure, a
 * fork, a deletion. The first three events of ROOT were missed. DERIVED is JULY with the release's names.
 */
const JULY = openCode2Events("2026-07");
const DERIVED = openCode2Events("derived");
const ROOT = "ses_df1a9c53affeELmzNKmiPKgROw";
const FORK = "ses_df1a95a08ffeR3fDcnd7Eu2Bxg";
const played = { now: () => (JULY.at(-1)?.at ?? 0) + 1_000 };

type Line = { at: number; event: OpenCode2Event };

/** What OpenCode says of the sessions whose beginning was missed. */
const SESSIONS: Record<string, Partial<Session2>> = {
  [ROOT]: {
    title: "New session",
    agent: "build",
    model: { id: "mock", providerID: "mock" },
    location: { directory: "/home/dev/project" },
    time: { created: 1795536862000, updated: 1795536862000 },
  },
  [FORK]: {
    title: "Renamed by hand (fork #1)",
    location: { directory: "/home/dev/project" },
    time: { created: 1795536889336, updated: 1795536889336 },
  },
};

const get = async ({ sessionID }: { sessionID: string }) =>
  ({ id: sessionID, ...SESSIONS[sessionID] }) as Session2;

/** A stream that gives what is pushed, and doesn't end: `isLeft` once whoever reads it has gone. */
function createStream() {
  const pushed: OpenCode2Event[] = [];
  const state = { isLeft: false };
  let wake = () => {};
  async function* subscribe() {
    try {
      for (;;) {
        while (pushed.length > 0) yield pushed.shift()!;
        await new Promise<void>((resolve) => (wake = resolve));
      }
    } finally {
      state.isLeft = true;
    }
  }
  return {
    ...{ state, subscribe },
    push(...events: OpenCode2Event[]) {
      pushed.push(...events);
      wake();
    },
  };
}

/** The run as a plugin heard it, through one reporter; OpenCode exits at the end. */
async function play(server: string, lines: Line[], content = "args"): Promise<void> {
  let at = 0;
  const schedule = () => () => {};
  const options = { server, content, sender: "the sender", now: () => at, schedule };
  const reporter = createReporter(createTranslator2(), options);
  const stream = createStream();
  const leave = follow2({ event: stream, session: { get } }, reporter);
  for (const line of lines) {
    at = line.at;
    stream.push(line.event);
    await Bun.sleep(0);
  }
  leave();
  await Bun.sleep(0);
  expect(await reporter.close(1_000)).toBeUndefined();
}

interface Row {
  id: string;
  status: string;
  event_count: number;
  cost: { own: number | null };
  tokens: { own: number | null };
  info: Record<string, unknown>;
}
interface Span {
  session_id: string;
  kind: string;
  name: string;
  call_id: string;
  started_at: string;
  ended_at: string;
  outcome: string;
  duration_ms: number;
}

const listed = async (server: { url: string }) =>
  (await getJson<{ sessions: Row[] }>(server, "/api/sessions")).sessions;
const spansOf = async (server: { url: string }) =>
  (await getJson<{ spans: Span[] }>(server, "/api/spans?limit=500")).spans;

/** A span as one line, without what differs with the clock by which the model was asked. */
const brief = ({ session_id, kind, name, call_id, outcome }: Span) =>
  [session_id, kind, kind === "model" ? "" : name, call_id, outcome].join(" ");

const countsOf = (lines: string[]) => {
  const counts: Record<string, number> = {};
  for (const line of lines) counts[line] = (counts[line] ?? 0) + 1;
  return counts;
};

describe("OpenCode 2, the captured run and a server", () => {
  test.each([
    ["July 2026", JULY],
    ["the release, derived", DERIVED],
  ])("is nine sessions, all over, with their cost and tokens (%s)", async (_, lines) => {
    await using server = await startTestServer(played);
    await play(server.url, lines);
    const rows = (await listed(server)).sort((a, b) => (a.id < b.id ? -1 : 1));
    expect(rows.map(({ status, info, cost, tokens }) => [status, info.title, cost.own, tokens.own]))
      // prettier-ignore
      .toEqual([
        ["completed", "Parallel survey of the repository", 0.0136872, 4852],
        ["completed", "Background survey", 0.0133092, 4738],
        ["completed", "Renamed by hand (fork #1)", 0.0200268, 7126],
        // The release's event has no title and no usage of 0.
        [
          "completed",
          lines === JULY ? "New session - 2026-11-24T16:14:48.499Z" : undefined,
          lines === JULY ? 0 : null,
          lines === JULY ? 0 : null,
        ],
        ["completed", "Background survey", 0.0114192, 4168],
        ["completed", "Count the leaves", 0.0070092, 2838],
        ["completed", "Survey the docs", 0.0068832, 2800],
        ["completed", "Survey the tests", 0.0071352, 2876],
        ["completed", "Renamed by hand", 0.072666, 27346],
      ]);
    expect(rows.at(-1)).toMatchObject({
      started_at: "2026-11-24T16:14:22.000Z", // its beginning was missed, and asked for
      ...{ tool_count: 14, agent_count: 3, turn_count: 6, error_count: 2 },
      parent_session_id: null,
      info: {
        ...{ agent: "build", model: "mock", directory: "/home/dev/project", reason: "completed" },
        changes: { files: 2, additions: 2, deletions: 1 },
      },
    });
    expect(rows.map(({ info }) => info.reason)).toEqual([
      ...["completed", "completed", "completed", "error", "completed"],
      ...["completed", "completed", "completed", "completed"],
    ]);
  });

  test("has these spans, none of them open", async () => {
    await using server = await startTestServer(played);
    await play(server.url, JULY);
    const spans = await spansOf(server);
    expect(countsOf(spans.map(({ kind, name, outcome }) => `${kind} ${name} ${outcome}`))).toEqual({
      "agent explore ok": 1,
      "agent general ok": 4,
      "model mock cancelled": 1, // its answer was broken off
      "model mock failed": 1,
      "model mock ok": 27,
      "model unknown ok": 1, // the compaction: July doesn't say of which model
      "tool edit ok": 1,
      "tool question ok": 1,
      "tool read failed": 1,
      "tool read ok": 1,
      "tool shell cancelled": 1,
      "tool shell denied": 1,
      "tool shell exit": 1,
      "tool shell ok": 9,
      "tool subagent ok": 5,
      "tool write ok": 1,
      "wait permission denied": 1,
      "wait permission ok": 2,
      "wait question ok": 1,
    });
    const edit = spans.find(({ name }) => name === "edit");
    expect(edit).toMatchObject({ duration_ms: 926, waited_ms: 910 });
  });

  test("has the same spans under the release's names", async () => {
    await using july = await startTestServer(played);
    await using release = await startTestServer(played);
    await play(july.url, JULY);
    await play(release.url, DERIVED);
    const [expected, spans] = [await spansOf(july), await spansOf(release)];
    expect(spans.map(brief).sort()).toEqual(expected.map(brief).sort());
    // When a request was sent only the release says; July's is the event before.
    for (const span of spans) {
      const same = expected.find((other) => brief(other) === brief(span));
      expect(Math.abs(span.duration_ms - (same?.duration_ms ?? 0))).toBeLessThanOrEqual(5);
    }
  });

  test("has the same spans when its events come in any order within 50 ms", async () => {
    await using ordered = await startTestServer(played);
    await play(ordered.url, JULY);
    const expected = await spansOf(ordered);
    for (const seed of [1, 2, 3]) {
      const random = seededRandom(seed);
      const late = JULY.map(({ event }) => ({ event, at: event.created + random() * 50 }));
      late.sort((a, b) => a.at - b.at);
      await using server = await startTestServer(played);
      await play(server.url, late);
      const spans = await spansOf(server);
      const exact = (span: Span) => `${brief(span)} ${span.started_at} ${span.ended_at}`;
      expect(spans.map(exact).sort()).toEqual(expected.map(exact).sort());
      const ends = (rows: Row[]) =>
        rows.map(({ id, status, cost }) => [id, status, cost.own]).sort();
      expect(ends(await listed(server))).toEqual(ends(await listed(ordered)));
    }
  });

  test("through three instances at once has nothing twice; the last flushes within 1 s", async () => {
    await using once = await startTestServer(played);
    await play(once.url, JULY);
    await using server = await startTestServer();
    const streams = [createStream(), createStream(), createStream()];
    const cleanups = [];
    for (const event of streams)
      cleanups.push(
        await plugin.setup({
          options: { server: server.url, backfill: 0 },
          location: { directory: "/home/dev/project" },
          session: { get },
          event,
        }),
      );
    for (const { event } of JULY) for (const { push } of streams) push(event);
    await Bun.sleep(0);
    for (const cleanup of cleanups.slice(0, 2)) await cleanup?.();
    const start = performance.now();
    await cleanups[2]?.();
    expect(performance.now() - start).toBeLessThan(1_000);
    expect((await spansOf(server)).map(brief).sort()).toEqual(
      (await spansOf(once)).map(brief).sort(),
    );
    const senders = (await listed(server)).map(({ info }) => info.sender);
    expect(new Set(senders).size).toBe(1);
    const counts = (rows: Row[]) =>
      rows
        .map(({ id, status, cost, ...row }) => [
          id,
          status,
          cost.own,
          Reflect.get(row, "turn_count"),
        ])
        .sort();
    expect(counts(await listed(server))).toEqual(counts(await listed(once)));
  });
});

describe("OpenCode 2, setup", () => {
  test.each([
    ["no events (OpenCode 1.18 and the previews)", {}],
    ["an event domain without a stream", { event: {} }],
    ["nothing", undefined],
  ])("does nothing in a context with %s", async (_, context) => {
    expect(await plugin.setup(context as Context2)).toBeUndefined();
  });

  test("flushes within 1 s although the server hangs, and leaves the stream of its instance", async () => {
    await using server = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      fetch: () => new Promise<Response>(() => {}),
    });
    const stream = createStream();
    const cleanup = await plugin.setup({
      options: { server: server.url.href, backfill: 0 },
      event: stream,
    });
    for (const { event } of JULY.slice(0, 20)) stream.push(event);
    await Bun.sleep(0);
    const start = performance.now();
    await cleanup?.();
    expect(performance.now() - start).toBeLessThan(1_000);
    stream.push(...JULY.slice(20, 22).map(({ event }) => event)); // it goes on, as in July 2026
    await waitFor(() => stream.state.isLeft, "the end of its loop");
  });

  test("an instance that OpenCode gives up ends what runs there, and nothing elsewhere", async () => {
    await using server = await startTestServer();
    const streams = { "/home/dev/one": createStream(), "/home/dev/two": createStream() };
    const cleanups = await Promise.all(
      Object.entries(streams).map(([directory, event]) =>
        plugin.setup({
          ...{ options: { server: server.url, backfill: 0 }, location: { directory }, event },
        }),
      ),
    );
    for (const [directory, { push }] of Object.entries(streams)) {
      const sessionID = `ses_${directory.slice(-3)}`;
      const of = { created: Date.now(), location: { directory }, data: { sessionID } };
      push({ ...of, id: `evt_${sessionID}`, type: "session.execution.started" });
    }
    const statuses = async () => (await listed(server)).map(({ id, status }) => `${id} ${status}`);
    await waitFor(async () => (await statuses()).length === 2, "both sessions");
    await cleanups[0]?.();
    const isOver = async () => (await statuses()).includes("ses_one completed");
    await waitFor(isOver, "the end of the session there");
    expect(await statuses()).toContain("ses_two active");
    await cleanups[1]?.();
  });

  test("a stream that ends is opened again, after pauses that grow to a minute; nothing is told twice", async () => {
    await using server = await startTestServer(played);
    let [at, opened] = [0, 0];
    const pauses: number[] = [];
    let [wake, heldMs] = [() => {}, 0];
    async function* subscribe() {
      opened += 1;
      // As one that begins anew each time might.
      for (const line of JULY.slice(0, 32 * opened)) {
        at = Math.max(at, line.at);
        yield line.event;
        if (at === line.at) await Bun.sleep(0);
      }
      at += heldMs;
      if (opened % 2) throw new Error("the stream has failed");
    }
    const schedule = (action: () => void, ms: number) => {
      if (ms >= 250 && ms !== 10_000) [wake] = [action, pauses.push(ms)];
      return () => {};
    };
    const reporter = createReporter(createTranslator2(), {
      ...{ server: server.url, sender: "the sender", now: () => at, schedule },
    });
    const leave = follow2({ event: { subscribe }, session: { get } }, reporter);
    for (let time = 1; time <= 10; time++) {
      await waitFor(() => pauses.length === time, "the end of a stream");
      heldMs = time === 9 ? 60_001 : 0;
      wake();
    }
    await waitFor(() => pauses.length === 11, "the end of the last stream");
    expect(pauses).toEqual([250, 500, 1e3, 2e3, 4e3, 8e3, 16e3, 32e3, 60e3, 250, 500]);
    leave();
    wake();
    await Bun.sleep(0);
    expect(opened).toBe(11);
    await reporter.close(1_000);
    await using once = await startTestServer(played);
    await play(once.url, JULY);
    const exact = ({ started_at, ended_at, ...span }: Span) =>
      `${brief(span as Span)} ${started_at} ${ended_at}`;
    expect((await spansOf(server)).map(exact)).toEqual((await spansOf(once)).map(exact));
    const counts = (rows: Row[]) => rows.map(({ id, event_count }) => [id, event_count]).sort();
    expect(counts(await listed(server))).toEqual(counts(await listed(once)));
  });

  test("what happened between two streams is told from OpenCode's store", async () => {
    await using server = await startTestServer(played);
    const directory = "/home/dev/project";
    const asked: number[] = [];
    let [at, opened] = [1_000_000_000, 0];
    let reopen: (() => void) | undefined;
    let [goOn, close] = [() => {}, () => {}];
    async function* subscribe() {
      // The second says nothing at first.
      if (++opened === 2) await new Promise<void>((resolve) => (goOn = resolve));
      for (const line of JULY.slice(opened, opened + 1)) yield line.event;
      if (opened === 2) await new Promise<void>((resolve) => (close = resolve));
    }
    const schedule = (action: () => void, ms: number) => {
      if (ms === 250) reopen = action;
      return () => {};
    };
    const reporter = createReporter(createTranslator2(), {
      ...{ server: server.url, sender: "the sender", now: () => at, schedule },
    });
    let told = Promise.resolve();
    async function* read(since: number) {
      yield [];
      asked.push(since);
      await told;
    }
    reporter.join(directory, () => {}, read);
    await waitFor(() => asked.length === 1, "the past");
    const leave = follow2({ event: { subscribe }, location: { directory } }, reporter);
    await waitFor(() => reopen !== undefined, "the end of the stream");
    const endedAt = at;
    at += 3_600_000;
    const { promise, resolve: finish } = Promise.withResolvers<void>();
    told = promise;
    reopen?.();
    await waitFor(() => asked.length === 2, "the past, again");
    goOn();
    await Bun.sleep(0);
    finish();
    await waitFor(() => asked.length === 3, "what has happened until it was heard");
    expect(asked.slice(1)).toEqual([endedAt - 60_000, at - 60_000]);
    close();
    leave();
    await reporter.close(1_000);
  });

  test("a turn that ended between two streams isn't interrupted at the exit", async () => {
    await using server = await startTestServer(played);
    const directory = "/home/dev/project";
    const [sessionID, created] = ["ses_1", Date.now() - 9_000];
    const said = { id: "evt_1", type: "session.execution.started", created, data: { sessionID } };
    const of = {
      type: "session_end",
      session_id: sessionID,
      data: { reason: "completed" },
    } as const;
    const end = { ...of, id: "evt_2:session_end", timestamp: created + 5_000 };
    let reopen: (() => void) | undefined;
    let opened = 0;
    async function* subscribe() {
      if (++opened === 1) yield said;
      else await new Promise(() => {});
    }
    async function* read() {
      yield opened > 1 || reopen ? [end] : [];
    }
    const schedule = (action: () => void, ms: number) => {
      if (ms === 250) reopen = action;
      else if (ms < 250) queueMicrotask(action);
      return () => {};
    };
    const reporter = createReporter(createTranslator2(), {
      ...{ server: server.url, sender: "the sender", schedule },
    });
    reporter.join(directory, () => {}, read);
    const leave = follow2({ event: { subscribe }, location: { directory } }, reporter);
    const states = async () =>
      (await listed(server)).map((row) => `${row.status} ${row.info.reason}`);
    await waitFor(async () => (await states()).join().startsWith("active"), "the turn");
    await waitFor(() => reopen !== undefined, "the end of the stream");
    reopen?.();
    await waitFor(async () => (await states()).join() === "completed completed", "its end");
    expect(reporter.translator.isRunning()).toBe(false);
    leave();
    await reporter.close(1_000);
    expect(await states()).toEqual(["completed completed"]);
  });

  test("the end of an earlier turn, told from the store, doesn't end the one that runs", () => {
    const { translate, settle, isRunning } = createTranslator2();
    const [sessionID, created] = ["ses_1", Date.now()];
    const said = { id: "evt_9", type: "session.execution.started", created, data: { sessionID } };
    translate(said);
    const endAt = (timestamp: number) =>
      settle({
        ...{ id: "evt_2", session_id: sessionID, data: {} },
        type: "session_end",
        timestamp,
      });
    endAt(created - 1);
    expect(isRunning()).toBe(true);
    endAt(created + 1);
    expect(isRunning()).toBe(false);
  });

  test("survives a stream that fails, a session that isn't there, and events of another shape", async () => {
    const stored: TelemetryEvent[] = [];
    await using server = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      async fetch(req) {
        if (new URL(req.url).pathname === "/api/events")
          stored.push(...((await req.json()) as TelemetryEvent[]));
        return Response.json({}, { status: 201 });
      },
    });
    async function* subscribe(): AsyncGenerator<OpenCode2Event> {
      for (const strange of [null, {}, { id: "evt_x", created: 0 }])
        yield strange as OpenCode2Event;
      yield { id: "evt_0", type: "session.step.started", created: 1 } as OpenCode2Event;
      yield { id: "evt_1", type: "session.tool.called", created: 2, data: { sessionID: "ses_1" } };
      yield { id: "evt_2", type: "session.unheard.of", created: 3, data: { sessionID: "ses_1" } };
      throw new Error("the stream has failed");
    }
    const cleanup = await plugin.setup({
      options: { server: server.url.href, backfill: 0 },
      event: { subscribe },
      session: { get: () => Promise.reject(new Error("no such session")) },
    });
    await Bun.sleep(0);
    await cleanup?.();
    expect(stored.map(({ type }) => type)).toEqual(["tool_start"]);
  });
});

describe("OpenCode 2, translator", () => {
  let serial = 0;
  const event = (type: string, data: OpenCode2Event["data"], created = 1_000 + serial) => ({
    ...{ id: `evt_${serial++}`, type, created, data: { sessionID: "ses_1", ...data } },
  });
  const translated = (...events: OpenCode2Event[]) => {
    const { translate } = createTranslator2();
    return events.flatMap((one) => translate(one));
  };
  const said = (events: TelemetryEvent[], type: TelemetryEvent["type"]) =>
    events.filter((one) => one.type === type).map(({ data }) => data);
  const of = { assistantMessageID: "msg_1", id: "call_1" };
  const called = (name: string, input = {}) => [
    event("session.tool.input.started", { ...of, name }),
    event("session.tool.called", { ...of, input }),
  ];

  test.each<[string, OpenCode2Event["data"], Record<string, unknown>]>([
    ["exit 0", { metadata: { exit: 0 } }, { outcome: "ok" }],
    ["exit 3", { metadata: { exit: 3 } }, { outcome: "exit", exit_code: 3 }],
    ["out of time", { metadata: { timeout: true } }, { outcome: "failed" }],
    ["an error", { error: { type: "unknown", message: "No" } }, { outcome: "failed", error: "No" }],
    ["an abort", { error: { type: "aborted", message: "Stopped" } }, { outcome: "cancelled" }],
  ])("of a call: %s", (_, data, ending) => {
    const type = data.error ? "session.tool.failed" : "session.tool.success";
    const events = translated(...called("shell"), event(type, { ...of, ...data }));
    expect(said(events, "tool_use")[0]).toMatchObject(ending);
  });

  test("what a call returned is told, and leaves only where that is chosen", () => {
    const content = [
      { type: "text", text: "total 0" },
      { type: "file" },
      { type: "text", text: "." },
    ];
    const success = event("session.tool.success", { ...of, content } as never);
    const [end] = translated(...called("shell"), success).slice(-1);
    expect(end?.data.output).toBe("total 0\n.");
    expect(createShape({})(end!).data.output).toBeUndefined();
  });

  test("a call that never ran lasts from its first input to its failure", () => {
    const events = translated(
      event("session.tool.input.started", { ...of, name: "edit" }, 2_000),
      event("session.tool.failed", { ...of, error: { type: "unknown", message: "No" } }, 2_400),
    );
    expect(said(events, "tool_use")).toMatchObject([{ tool: "edit", duration_ms: 400 }]);
  });

  const child = { sessionID: "ses_2", status: "running" };
  test.each([
    ["session.execution.succeeded", {}, "ok"],
    ["session.execution.failed", { error: { type: "provider", message: "No" } }, "failed"],
    ["session.execution.interrupted", { reason: "user" }, "cancelled"],
  ])("an agent in the background ends with its session's %s", (type, data, outcome) => {
    const events = translated(
      ...called("subagent", { agent: "general", background: true }),
      event("session.tool.success", { ...of, metadata: child }),
      event("session.execution.started", { sessionID: "ses_2" }),
      event(type, { sessionID: "ses_2", ...data }),
    );
    expect(said(events, "agent_spawn")).toMatchObject([{ child_session_id: "ses_2" }]);
    expect(said(events, "agent_complete")).toMatchObject([{ outcome }]);
  });

  test("an agent in the background whose end wasn't heard ends with the notice to its parent", () => {
    const metadata = { source: "subagent", childID: "ses_2", state: "completed" };
    const item = { type: "synthetic", payload: { text: "", metadata } };
    const events = translated(
      ...called("subagent"),
      event("session.tool.success", { ...of, metadata: child }),
      event("session.inbox.enqueued", { inboxID: "msg_2", item }),
    );
    expect(said(events, "agent_complete")).toMatchObject([{ outcome: "ok" }]);
  });

  test("a turn that fails before its step tells of its error itself; else the step does", () => {
    const error = { type: "provider.auth", message: "No key" };
    const begun = event("session.execution.started", {});
    const early = translated(begun, event("session.execution.failed", { error }));
    expect(said(early, "session_error")).toEqual([
      { error_name: "provider.auth", error: "No key" },
    ]);
    const late = translated(
      event("session.execution.started", {}),
      event("session.step.started", { assistantMessageID: "msg_1" }),
      event("session.step.failed", { assistantMessageID: "msg_1", error }),
      event("session.execution.failed", { error }),
    );
    expect(said(late, "session_error")).toEqual([]);
    expect(said(late, "model_response")).toMatchObject([{ outcome: "failed", error: "No key" }]);
    expect(said(late, "session_end")).toMatchObject([{ reason: "error" }]);
  });

  test("a step whose beginning wasn't heard doesn't end the one before it", () => {
    const events = translated(
      event("session.step.started", { assistantMessageID: "msg_1" }),
      event("session.step.ended", { assistantMessageID: "msg_2", finish: "stop" }),
    );
    expect(said(events, "model_response")).toMatchObject([{ call_id: "msg_2" }]);
  });

  test("a step lasts from its request to its answer, whenever its tools end", () => {
    const step = { assistantMessageID: "msg_1" };
    const events = translated(
      event("session.step.started", { ...step, started: 5_000 }, 5_300),
      event("session.step.streamed", step, 6_000),
      event("session.step.ended", { ...step, finish: "tool-calls" }, 9_000),
    );
    expect(said(events, "model_response")).toMatchObject([
      { duration_ms: 1_000, first_token_ms: 300, finish_reason: "tool-calls" },
    ]);
  });

  test.each([
    [
      "ended",
      { model: { id: "small", providerID: "some" }, cost: 0.5 },
      { outcome: "ok", model: "small" },
    ],
    ["failed", { error: { type: "provider", message: "No" } }, { outcome: "failed", error: "No" }],
  ])("a compaction that has %s is an answer of its model", (what, data, answer) => {
    const events = translated(
      event("session.compaction.started", { reason: "auto" }),
      event(`session.compaction.${what}`, data),
    );
    expect(said(events, "model_response")).toMatchObject([{ agent: "compaction", ...answer }]);
    expect(said(events, "session_compacted")).toHaveLength(what === "ended" ? 1 : 0);
  });

  test("an event that two streams bring counts once, though its session went on between", () => {
    const started = event("session.execution.started", {});
    const ended = event("session.execution.succeeded", {});
    const { translate, isRunning } = createTranslator2();
    const events = [started, ended, started].flatMap((one) => translate(one));
    expect(events.map(({ type }) => type)).toEqual(["session_start", "session_end"]);
    expect(isRunning()).toBe(false);
  });

  test("of a session that was forgotten OpenCode is asked anew", () => {
    const { translate, strangers } = createTranslator2();
    const hear = (sessionID: string) =>
      translate(event("session.execution.started", { sessionID }));
    hear("ses_first");
    for (let index = 0; index < 1_000; index++) hear(`ses_${index}`);
    strangers();
    hear("ses_999");
    expect(strangers()).toEqual([]);
    hear("ses_first");
    expect(strangers()).toEqual(["ses_first"]);
  });

  test("what a prompt that was taken back would have begun is no turn", () => {
    const item = { type: "user", payload: { text: "Do it" } };
    const events = translated(
      event("session.inbox.enqueued", { inboxID: "msg_1", item }),
      event("session.inbox.cancelled", { inboxID: "msg_1" }),
      event("session.step.started", { assistantMessageID: "msg_2" }),
    );
    expect(said(events, "turn_start")).toEqual([]);
  });
});
