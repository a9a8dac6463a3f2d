import { afterEach, describe, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import plugin, {
  type Client1,
  type OpenCodeEvent,
  type Session2,
  type StoredMessage,
  type StoredMessage2,
  type TelemetryEvent,
  createHooks1,
  createReached,
  createReporter,
  createTranslator1,
  createTranslator2,
  readPast1,
  readPast2,
  readSettings,
} from "../plugin/observability.ts";
import { openCodeEvents } from "./fixtures.ts";
import { getJson, removeTempDirs, startTestServer, tempDir, waitFor } from "./helpers.ts";

afterEach(removeTempDirs);

const CAPTURE = openCodeEvents();
const DIRECTORY = "/home/dev/project";
const START = CAPTURE[0]?.at ?? 0;
const END = CAPTURE.at(-1)?.at ?? 0;
/** Later than a step may pause in the middle of its turn. */
const LATER = END + 120_000;

type Line = { at: number; event: OpenCodeEvent };

/** The captured run `count` times, one after the other, each with ids of its own. */
function repeated(count: number, every: number): Line[] {
  return Array.from({ length: count }, (_, index) =>
    CAPTURE.map((line): Line => {
      const text = JSON.stringify(line)
        .replace(/\b(ses|msg|prt|evt|per|que)_\w+/g, `$&x${index}`)
        .replace(/\b1795536\d{6}\b/g, (at) => String(Number(at) + index * every));
      return JSON.parse(text) as Line;
    }),
  ).flat();
}

/** OpenCode's client over a store that knows what was announced so far. */
function createClient() {
  const sessions = new Map<
    string,
    NonNullable<Awaited<ReturnType<Client1["session"]["list"]>>["data"]>[0]
  >();
  const messages = new Map<string, Map<string, StoredMessage>>();
  const asked: string[] = [];
  const client: Client1 = {
    session: {
      async list({ query }) {
        asked.push("list");
        const latest = [...sessions.values()].sort(
          (a, b) => (b.time.updated ?? 0) - (a.time.updated ?? 0),
        );
        return { data: latest.slice(0, query.limit) };
      },
      async messages({ path: { id } }) {
        asked.push(id);
        return { data: structuredClone([...(messages.get(id)?.values() ?? [])]) };
      },
    },
  };
  function messageOf(sessionId: string, id: string): StoredMessage {
    const of = messages.getOrInsertComputed(sessionId, () => new Map());
    return of.getOrInsertComputed(id, () => ({ info: {}, parts: [] }) as never);
  }
  function announce({ event }: Line): void {
    if (event.type === "session.created" || event.type === "session.updated")
      sessions.set(event.properties.info.id, event.properties.info);
    if (event.type === "session.deleted") sessions.delete(event.properties.info.id);
    if (event.type === "message.updated") {
      const { info } = event.properties;
      messageOf(info.sessionID, info.id).info = info;
    }
    if (event.type !== "message.part.updated") return;
    const { part } = event.properties;
    const { parts } = messageOf(part.sessionID, part.messageID);
    const at = parts.findIndex(({ id }) => id === part.id);
    parts.splice(at < 0 ? parts.length : at, 1, part);
  }
  return { client, announce, asked };
}

function createPlugin(server: string, reachedPath: string, now: () => number) {
  const options = { server, reachedPath, sender: "the sender", now };
  const reporter = createReporter(createTranslator1(), options);
  const { join, translator } = reporter;
  const { waitedMs } = translator;
  return { ...createHooks1(reporter), join, waitedMs, close: () => reporter.close(2_000) };
}

interface Row {
  id: string;
  status: string;
  event_count: number;
  turn_count: number;
  error_count: number;
  cost: { own: number };
  info: Record<string, unknown>;
}
type Span = Record<"session_id" | "kind" | "name" | "call_id" | "outcome", string> & {
  waited_ms: number | null;
};

const listed = async ({ url }: { url: string }) =>
  (await getJson<{ sessions: Row[] }>({ url }, "/api/sessions?limit=1000")).sessions;

/** All spans, each as one line; the person's waits aside, where they can't be known. */
async function spansOf({ url }: { url: string }, hasWaits = true): Promise<string[]> {
  const lines: string[] = [];
  for (const { id } of await listed({ url })) {
    const path = `/api/spans?limit=1000&sessionId=${id}`;
    const { spans } = await getJson<{ spans: Span[] }>({ url }, path);
    for (const { session_id, kind, name, call_id, outcome, waited_ms } of spans) {
      const waited = hasWaits ? waited_ms : null;
      const line = [session_id, kind, name, call_id, outcome, waited].join(" ");
      if (hasWaits || kind !== "wait") lines.push(line);
    }
  }
  return lines.sort();
}

/** Every stored event, without its time: when a request was sent the past knows less exactly. */
async function eventsOf({ url }: { url: string }): Promise<string[]> {
  const answer = await fetch(`${url}/api/events?after=0`, {
    headers: { accept: "application/x-ndjson" },
  });
  const lines = (await answer.text()).trim().split("\n");
  return lines
    .map((line) => JSON.parse(line) as Record<string, unknown>)
    .map((it) => [it.type, it.session_id, it.call_id, it.request_id, it.dropped_events].join(" "))
    .sort();
}

const factsOf = (rows: Row[]) =>
  rows
    .map(({ id, status, turn_count, error_count, cost, info }) =>
      JSON.stringify([
        id,
        status,
        turn_count,
        error_count,
        cost.own,
        info.title,
        info.changes,
        info.todos,
      ]),
    )
    .sort();

describe("past: OpenCode 1.18", () => {
  test("an hour of 5,000 events without the server: each is there in the end, once", async () => {
    const lines = repeated(14, 257_000);
    expect(lines.length).toBeGreaterThan(5_000);
    const now = { at: START - 1_000 };
    const clock = () => now.at;
    const server = { now: () => START + 7_200_000 };

    await using undisturbed = await startTestServer(server);
    // One process after the other: all at once would be more than a queue holds.
    for (let index = 0; index < 14; index++) {
      const hooks = createPlugin(undisturbed.url, join(tempDir(), "reached.json"), clock);
      for (const line of lines.slice(index * CAPTURE.length, (index + 1) * CAPTURE.length)) {
        now.at = line.at;
        await hooks.event(line);
      }
      await hooks.close();
    }

    await using away = await startTestServer(server);
    now.at = START - 1_000;
    const { client, announce } = createClient();
    const hooks = createPlugin(away.url, join(tempDir(), "reached.json"), clock);
    const reads: number[] = [];
    hooks.join(
      DIRECTORY,
      () => {},
      (since, at) => {
        reads.push(since);
        return readPast1(client, since, at, hooks.waitedMs);
      },
    );
    await waitFor(() => reads.length === 1, "the past of the start");
    await away.stop();
    for (const line of lines) {
      now.at = line.at;
      announce(line);
      await hooks.event(line);
    }
    await away.restart();
    const expected = await eventsOf(undisturbed);
    const isUpdate = (line: string) => line.startsWith("session_update ");
    await waitFor(
      async () =>
        (await eventsOf(away)).filter((it) => !isUpdate(it)).length >=
        expected.filter((it) => !isUpdate(it)).length,
      "all events",
      30_000,
    );
    await hooks.close();
    const stored = await eventsOf(away);
    expect(stored.filter((it) => !isUpdate(it))).toEqual(expected.filter((it) => !isUpdate(it)));
    expect(await spansOf(away)).toEqual(await spansOf(undisturbed));
    expect(factsOf(await listed(away))).toEqual(factsOf(await listed(undisturbed)));
    expect(reads).toHaveLength(2); // at the start, and once when it was back
  }, 60_000);

  test("what happened before the plugin was there is told as it would have been", async () => {
    await using live = await startTestServer({ now: () => LATER });
    await using late = await startTestServer({ now: () => LATER });
    const { client, announce } = createClient();
    let at = START;
    const hooks = createPlugin(live.url, join(tempDir(), "reached.json"), () => at);
    for (const line of CAPTURE) {
      at = line.at;
      announce(line);
      await hooks.event(line);
    }
    await hooks.close();
    const other = createPlugin(late.url, join(tempDir(), "reached.json"), () => LATER);
    other.join(
      DIRECTORY,
      () => {},
      (...of) => readPast1(client, ...of),
    );
    const expected = await spansOf(live, false);
    await waitFor(async () => (await spansOf(late)).length === expected.length, "all spans");
    await other.close();
    expect(await spansOf(late, false)).toEqual(expected);
    expect(factsOf(await listed(late))).toEqual(factsOf(await listed(live)));
  });

  test("told live, then from the store by another process: nothing is there twice", async () => {
    await using server = await startTestServer({ now: () => LATER });
    const { client, announce, asked } = createClient();
    let at = START;
    const hooks = createPlugin(server.url, join(tempDir(), "reached.json"), () => at);
    for (const line of CAPTURE) {
      at = line.at;
      announce(line);
      await hooks.event(line);
    }
    await hooks.close();
    const before = [await spansOf(server), factsOf(await listed(server))];
    const events = await eventsOf(server);
    for (let process = 0; process < 2; process++) {
      const other = createPlugin(server.url, join(tempDir(), "reached.json"), () => LATER);
      asked.length = 0;
      let isTold = false;
      other.join(
        DIRECTORY,
        () => {},
        async function* (...of) {
          yield* readPast1(client, ...of);
          isTold = true; // and stored: the next session is asked for after that
        },
      );
      await waitFor(() => isTold, "the past");
      expect(asked).toHaveLength(1 + 5);
      await other.close();
    }
    expect([await spansOf(server), factsOf(await listed(server))]).toEqual(before);
    // One update of each session's facts, at most.
    const news = (await eventsOf(server)).length - events.length;
    expect(news).toBeLessThanOrEqual(5);
  });

  test("the first time it tells the last 7 days, then what came since the server was reached", async () => {
    const path = join(tempDir(), "state", "reached.json");
    const day = 24 * 3_600_000;
    let at = 100 * day;
    const reached = createReached(path, "http://one", () => at);
    expect(await reached.since(DIRECTORY)).toBe(93 * day);
    await reached.write([DIRECTORY]);
    at += day;
    await createReached(path, "http://two", () => at).write([DIRECTORY]);
    const next = createReached(path, "http://one", () => at);
    expect(await next.since(DIRECTORY)).toBe(100 * day);
    expect(await next.since("/elsewhere")).toBe(94 * day);
    for (const broken of ["{", "null"]) {
      writeFileSync(path, broken);
      expect(await next.since(DIRECTORY)).toBe(94 * day);
    }
  });

  test("what a process that ends hasn't told of the past, the next one tells", async () => {
    await using server = await startTestServer({ now: () => LATER });
    const path = join(tempDir(), "reached.json");
    const hooks = createPlugin(server.url, path, () => LATER);
    const gate = Promise.withResolvers<void>();
    let isReading = false;
    let readCount = 0;
    hooks.join(
      DIRECTORY,
      () => {},
      async function* () {
        isReading = true;
        await gate.promise;
        for (; readCount < 9; readCount++) yield [];
      },
    );
    await waitFor(() => isReading, "the past");
    for (const line of CAPTURE.slice(0, 9)) await hooks.event(line); // it closes once they are stored
    const closed = hooks.close();
    gate.resolve();
    await closed;
    const next = createReached(path, server.url, () => LATER);
    expect(await next.since(DIRECTORY)).toBe(LATER - 7 * 24 * 3_600_000);
    expect(readCount).toBeLessThan(2);
  });

  test("a session that wasn't at work since is not read; the latest come first, 200 at most", async () => {
    const info = (index: number) => ({
      id: `ses_${index}`,
      time: { created: index, updated: index },
    });
    const asked: string[] = [];
    const client: Client1 = {
      session: {
        list: async () => ({ data: Array.from({ length: 300 }, (_, index) => info(index)) }),
        messages: async ({ path: { id } }) => (asked.push(id), { data: [] }),
      },
    };
    const told = await Array.fromAsync(readPast1(client, 50, 1_000));
    expect(told).toHaveLength(200);
    expect([asked[0], asked.at(-1)]).toEqual(["ses_299", "ses_100"]);
    asked.length = 0;
    await Array.fromAsync(readPast1(client, 290, 1_000));
    expect(asked).toHaveLength(10);
  });

  test.each([
    ["a turn that goes on in another process", 1_000, []],
    ["a turn that ended after its tools, as with a refusal", 100_000, ["session_end"]],
  ])("%s", async (_, later, ends) => {
    const time = { created: 1_000, completed: 2_000 };
    const none = { input: 0, output: 0, reasoning: 0, cache: { read: 0, write: 0 } };
    const message = {
      modelID: "m",
      providerID: "p",
      cost: 0,
      tokens: none,
      finish: "tool-calls",
      time,
    };
    const client: Client1 = {
      session: {
        list: async () => ({ data: [{ id: "ses_1", time: { created: 500, updated: 2_000 } }] }),
        messages: async () => ({
          data: [
            { info: { ...message, role: "assistant", id: "msg_1", sessionID: "ses_1" }, parts: [] },
          ],
        }),
      },
    };
    const [events = []] = await Array.fromAsync(readPast1(client, 0, 2_000 + later));
    expect(events.map(({ type }) => type).filter((type) => type === "session_end")).toEqual(
      ends as never,
    );
  });

  test("OpenCode isn't asked before its plugin is there, nor with OBSERVABILITY_BACKFILL=0", async () => {
    await using server = await startTestServer();
    const { client, asked } = createClient();
    for (const [backfill, expected] of [
      [0, []],
      [1, ["list"]],
    ] as const) {
      process.env.XDG_STATE_HOME = tempDir();
      const input = { directory: DIRECTORY, client };
      const hooks = await plugin.server(input, { server: server.url, backfill });
      expect(asked).toEqual([]);
      if (backfill === 1) await waitFor(() => asked.length > 0, "the past");
      expect(asked).toEqual([...expected]);
      await hooks.dispose();
    }
    delete process.env.XDG_STATE_HOME;
  });
});

describe("past: OpenCode 2", () => {
  const model = { id: "mock", providerID: "mock" };
  const tokens = { input: 10, output: 5, reasoning: 0, cache: { read: 0, write: 0 } };
  const session: Session2 = {
    ...{ id: "ses_1", title: "Mend it", agent: "build", model, cost: 0.5, tokens },
    location: { directory: DIRECTORY },
    time: { created: 1_000, updated: 9_000 },
  };
  const call = (id: string, name: string, state: object, at: number) => ({
    ...{ type: "tool", id, name, time: { created: at, ran: at + 10, completed: at + 500 } },
    state: { status: "completed", input: {}, ...state },
  });
  const messages = [
    { id: "msg_1", type: "user", text: "Do it", time: { created: 1_100 } },
    {
      ...{
        id: "msg_2",
        type: "assistant",
        agent: "build",
        model,
        finish: "tool-calls",
        cost: 0.25,
      },
      ...{ tokens, time: { created: 1_500, completed: 3_000 } },
      content: [
        call("call_1", "shell", { structured: { exit: 1 }, content: [{ text: "boom" }] }, 1_600),
        call(
          "call_2",
          "subagent",
          { metadata: { sessionID: "ses_2", status: "completed" } },
          1_700,
        ),
        call("call_3", "edit", { error: { type: "unknown", message: "No" } }, 1_800),
      ],
    },
    {
      ...{ id: "msg_3", type: "assistant", agent: "build", model, finish: "stop", cost: 0.25 },
      ...{ tokens, time: { created: 4_000, completed: 5_000 }, content: [] },
    },
  ] as StoredMessage2[];

  function startApi(pages: object[][]) {
    const asked: string[] = [];
    const server = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      fetch(req) {
        const { pathname, searchParams } = new URL(req.url);
        asked.push(`${pathname}?${searchParams}`);
        if (req.headers.get("authorization") !== `Basic ${btoa("opencode:secret")}`)
          return new Response(null, { status: 401 });
        if (pathname !== "/api/session") return Response.json({ data: messages, cursor: {} });
        const page = Number(searchParams.get("cursor") ?? 0);
        const next = page + 1 < pages.length ? String(page + 1) : null;
        return Response.json({ data: pages[page], cursor: { next } });
      },
    });
    return { asked, url: server.url.href, [Symbol.asyncDispose]: () => server.stop(true) };
  }

  test("is read from OpenCode's HTTP API, page by page, under the ids that are live", async () => {
    const old = { ...session, id: "ses_old", time: { created: 1, updated: 2 } };
    await using api = startApi([[old], [session]]);
    const told = await Array.fromAsync(
      readPast2({ url: api.url, password: "secret" }, DIRECTORY, 500, 100_000),
    );
    expect(api.asked).toEqual([
      "/api/session?directory=%2Fhome%2Fdev%2Fproject&order=desc",
      "/api/session?cursor=1",
      "/api/session/ses_1/message?order=asc",
    ]);
    const past = told.flat();
    expect(past.map(({ id }) => id)).toEqual([
      "ses_1:session_start",
      "msg_1:turn_start",
      "msg_2:model_request",
      ...["tool_start", "tool_use"].map((what) => `msg_2:call_1:${what}`),
      ...["tool_start", "agent_spawn", "tool_use", "agent_complete"].map(
        (what) => `msg_2:call_2:${what}`,
      ),
      ...["tool_start", "tool_use"].map((what) => `msg_2:call_3:${what}`),
      "msg_2:model_response",
      "msg_3:model_request",
      "msg_3:model_response",
      "ses_1:session_update:9000",
      "msg_1:session_end",
    ]);

    const { translate } = createTranslator2();
    let serial = 0;
    const said = (type: string, created: number, data: object) =>
      translate({ id: `evt_${serial++}`, type, created, data: { sessionID: "ses_1", ...data } });
    const of = { assistantMessageID: "msg_2", id: "call_1" };
    const live: TelemetryEvent[] = [
      ...said("session.created", 1_000, { title: "Mend it", agent: "build", model }),
      ...said("session.inbox.enqueued", 1_100, {
        inboxID: "msg_1",
        item: { type: "user", payload: { text: "Do it" } },
      }),
      ...said("session.execution.started", 1_100, {}),
      ...said("session.inbox.delivered", 1_100, { inboxID: "msg_1" }),
      ...said("session.step.started", 1_500, {
        assistantMessageID: "msg_2",
        agent: "build",
        model,
      }),
      ...said("session.tool.input.started", 1_600, { ...of, name: "shell" }),
      ...said("session.tool.called", 1_610, { ...of, input: {} }),
      ...said("session.tool.success", 2_100, {
        ...of,
        metadata: { exit: 1 },
        content: [{ text: "boom" }],
      }),
    ];
    for (const event of live.filter(({ type }) => /^(tool|turn|model)_/.test(type)))
      expect(past.find(({ id }) => id === event.id)).toEqual(event);
  });

  test("a compaction and a wait for the person are told as they were live", async () => {
    const waited = messages[1]?.content?.[0]?.time as { ran: number; completed: number };
    const compaction = {
      id: "msg_4",
      type: "compaction",
      time: { created: 6_000, completed: 7_000 },
    };
    const { translate, waitedMs } = createTranslator2();
    let serial = 0;
    const said = (type: string, created: number, data: object) =>
      translate({ id: `evt_${serial++}`, type, created, data: { sessionID: "ses_1", ...data } });
    const source = { messageID: "msg_2", id: "call_1" };
    said("permission.asked", waited.ran, { id: "per_1", action: "shell", source });
    said("permission.replied", waited.ran + 100, { requestID: "per_1", reply: "once" });
    said("session.compaction.started", 6_000, { inboxID: "msg_4" });
    const [, compacted] = said("session.compaction.ended", 7_000, {});

    messages.push(compaction as StoredMessage2);
    await using api = startApi([[session]]);
    const read = readPast2({ url: api.url, password: "secret" }, DIRECTORY, 0, 100_000, waitedMs);
    const past = (await Array.fromAsync(read)).flat();
    messages.pop();
    expect(compacted?.type).toBe("session_compacted");
    expect(past.find(({ type }) => type === "session_compacted")).toEqual(compacted);
    const call = past.find(({ id }) => id === "msg_2:call_1:tool_use");
    expect(call?.data).toMatchObject({ duration_ms: 490, waited_ms: 100 });
  });

  test("of an API that refuses nothing is told, and nothing fails", async () => {
    await using api = startApi([[session]]);
    const read = Array.fromAsync(readPast2({ url: api.url, password: "wrong" }, DIRECTORY, 0, 1));
    await expect(read).rejects.toThrow();
  });
});

describe("settings", () => {
  const write = (json: string) => {
    const directory = tempDir();
    writeFileSync(join(directory, "pai-observability.json"), json);
    return { OPENCODE_CONFIG_DIR: directory };
  };

  test("option, environment, file, default: the first that is set", () => {
    const file = write('{"server": "http://file", "token": "of the file", "content": "none"}');
    const env = { ...file, OBSERVABILITY_SERVER: "http://env", OBSERVABILITY_TOKEN: "of the env" };
    expect(readSettings({ server: "http://option" }, env)).toMatchObject({
      ...{ server: "http://option", token: "of the env", content: "none" },
      ...{ redact: "on", hasPast: true, problem: undefined },
    });
    expect(readSettings(undefined, { OPENCODE_CONFIG_DIR: tempDir() })).toMatchObject({
      ...{ server: "http://localhost:3001", token: undefined, content: "args" },
    });
  });

  test.each([
    [{ backfill: 0 }, {}],
    [{ backfill: false }, {}],
    [{}, { OBSERVABILITY_BACKFILL: "0" }],
  ])("the past is turned off by %j %j", (options, env) => {
    expect(readSettings(options, { OPENCODE_CONFIG_DIR: tempDir(), ...env }).hasPast).toBe(false);
  });

  test("a file that is no JSON is said to be none", () => {
    expect(readSettings({}, write("server = x")).problem).toContain("pai-observability.json");
  });

  test.each(["null", "[]", '{"server": null, "token": null}', '{"server": ""}'])(
    "a file of %s sets nothing",
    (json) => {
      expect(readSettings({}, write(json))).toMatchObject({
        ...{ server: "http://localhost:3001", token: undefined, content: "args" },
      });
    },
  );

  test("a file of the project is none of them, though a variable is empty", () => {
    const before = process.cwd();
    const project = tempDir();
    mkdirSync(join(project, "opencode"));
    for (const path of ["opencode", "."])
      writeFileSync(join(project, path, "pai-observability.json"), '{"server": "http://project"}');
    try {
      process.chdir(project);
      const env = { OPENCODE_CONFIG_DIR: "", XDG_CONFIG_HOME: "", OBSERVABILITY_SERVER: "" };
      expect(readSettings({}, env).server).toBe("http://localhost:3001");
    } finally {
      process.chdir(before);
    }
  });

  test("they are in OpenCode's config directory, wherever that is", () => {
    const home = tempDir();
    const { problem } = readSettings({}, { XDG_CONFIG_HOME: home });
    expect(problem).toBeUndefined();
  });
});
