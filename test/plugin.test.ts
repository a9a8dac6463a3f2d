import { describe, expect, test } from "bun:test";
import {
  ObservabilityPlugin,
  type OpenCodeEvent,
  type TelemetryEvent,
} from "../plugin/observability.ts";
import { openCodeHooks } from "./fixtures.ts";
import { getJson, startTestServer, waitFor } from "./helpers.ts";

const { createTranslator, createSender, createHooks } = ObservabilityPlugin;

const ROOT = "ses_dfcfdbf59ffenf7LHREH8H0mPO";
const GENERAL = "ses_dfcfdb8ecffeOpQZ91jt0CfWWi";
const EXPLORE = "ses_dfcfdb8d3ffeaC6X9tmuyHPhBg";

/** What the event hook got in a real run: a root session and two subagents in parallel. */
const CAPTURE = openCodeHooks()
  .filter(({ hook }) => hook === "event")
  .map(({ at, input }) => ({ at, event: input.event as OpenCodeEvent }));

function translateAll(lines: { at: number; event: OpenCodeEvent }[]): TelemetryEvent[] {
  const translate = createTranslator();
  return lines.flatMap(({ at, event }) => translate(event, at));
}

/** What a translator makes of these events, which come one millisecond after the other. */
function translated(...events: OpenCodeEvent[]): TelemetryEvent[] {
  return translateAll(events.map((event, index) => ({ at: 5_001 + index, event })));
}

/** What a session has used up after some steps of the captured run. */
const tokens = (steps: number) => ({
  input: steps * 100,
  output: steps * 10,
  reasoning: 0,
  cache: { read: 0, write: 0 },
});

describe("translator: the captured run", () => {
  const untitled = {
    title: "New session - 2026-11-22T11:26:48.998Z",
    directory: "/home/dev/project",
    cost: 0,
  };
  const root = { ...untitled, title: "Title", agent: "build", model: "mock" };
  const general = {
    title: "map the code (@general subagent)",
    directory: "/home/dev/project",
    agent: "general",
    parent_session_id: ROOT,
    cost: 0,
  };
  const explore = { ...general, title: "read docs (@explore subagent)", agent: "explore" };
  const ls = { command: "ls -la", description: "List files" };

  test("gives exactly these events", () => {
    const event = (
      session_id: string,
      type: TelemetryEvent["type"],
      id: string,
      timestamp: number,
      data: Record<string, unknown>,
    ): TelemetryEvent => ({ id, type, session_id, timestamp, data });

    expect(translateAll(CAPTURE)).toStrictEqual([
      event(ROOT, "session_start", `${ROOT}:session_start`, 1795346808998, {
        ...untitled,
        tokens: tokens(0),
      }),
      event(ROOT, "session_update", "evt_2030240ea001vSAXeSW7hvJfeK", 1795346809070, {
        ...untitled,
        agent: "build",
        model: "mock",
        tokens: tokens(0),
      }),
      event(ROOT, "session_update", "evt_2030243e5001gxGapN5AHIFE0D", 1795346809831, {
        ...root,
        tokens: tokens(0),
      }),
      event(ROOT, "tool_use", "prt_203024633001c2DMR5PcxZS7NH:tool_use", 1795346810506, {
        tool: "bash",
        args: ls,
        call_id: "call_2",
        duration_ms: 77,
        success: true,
      }),
      event(ROOT, "session_update", "evt_2030246c7001UcL0W8Eon6D8Om", 1795346810569, {
        ...root,
        tokens: tokens(1),
      }),
      event(GENERAL, "session_start", `${GENERAL}:session_start`, 1795346810643, {
        ...general,
        tokens: tokens(0),
      }),
      event(ROOT, "agent_spawn", "prt_20302470c0011nywHnJKeNm9LH:agent_spawn", 1795346810645, {
        subagent_type: "general",
        prompt: "Look around the repo and report",
        call_id: "call_3_0",
        child_session_id: GENERAL,
      }),
      event(GENERAL, "session_update", "evt_20302471b001MmQOsUIJc3k4ya", 1795346810652, {
        ...general,
        model: "mock",
        tokens: tokens(0),
      }),
      event(EXPLORE, "session_start", `${EXPLORE}:session_start`, 1795346810668, {
        ...explore,
        tokens: tokens(0),
      }),
      event(ROOT, "agent_spawn", "prt_203024728001SkefJRSUOiYkHE:agent_spawn", 1795346810671, {
        subagent_type: "explore",
        prompt: "Read the docs and report",
        call_id: "call_3_1",
        child_session_id: EXPLORE,
      }),
      event(EXPLORE, "session_update", "evt_203024733001UPRXQPxtR8FQPy", 1795346810677, {
        ...explore,
        model: "mock",
        tokens: tokens(0),
      }),
      event(ROOT, "tool_use", "prt_20302473f0019BEz2r62ybruSq:tool_use", 1795346810719, {
        tool: "read",
        args: { filePath: "/nonexistent/file.txt" },
        call_id: "call_3_2",
        duration_ms: 27,
        success: false,
        error: "File not found: /nonexistent/file.txt",
      }),
      event(GENERAL, "tool_use", "prt_2030247a5001vu45kGQkgw1uNu:tool_use", 1795346810826, {
        tool: "bash",
        args: ls,
        call_id: "call_4",
        duration_ms: 32,
        success: true,
      }),
      event(EXPLORE, "tool_use", "prt_2030247fe00170ByMo9cua2MA4:tool_use", 1795346810909, {
        tool: "bash",
        args: ls,
        call_id: "call_5",
        duration_ms: 27,
        success: true,
      }),
      event(GENERAL, "session_update", "evt_203024850001iHY3gRvUJNxQCS", 1795346810961, {
        ...general,
        model: "mock",
        tokens: tokens(1),
      }),
      event(EXPLORE, "session_update", "evt_2030248d0001MjXQ16xmwcI0Sg", 1795346811090, {
        ...explore,
        model: "mock",
        tokens: tokens(1),
      }),
      event(GENERAL, "session_end", "evt_20302494b002cU6URy8WGEpPHO", 1795346811211, {
        tokens: tokens(1),
        cost: 0,
      }),
      event(ROOT, "tool_use", "prt_20302470c0011nywHnJKeNm9LH:tool_use", 1795346811214, {
        tool: "task",
        args: {
          description: "map the code",
          prompt: "Look around the repo and report",
          subagent_type: "general",
        },
        call_id: "call_3_0",
        duration_ms: 569,
        success: true,
      }),
      event(
        ROOT,
        "agent_complete",
        "prt_20302470c0011nywHnJKeNm9LH:agent_complete",
        1795346811214,
        { subagent_type: "general", call_id: "call_3_0", duration_ms: 569, success: true },
      ),
      event(GENERAL, "session_update", "evt_203024951001XnTUl61TzqCYsj", 1795346811218, {
        ...general,
        model: "mock",
        tokens: tokens(2),
      }),
      event(EXPLORE, "session_end", "evt_2030249a5001ZscChTTxcnnu1i", 1795346811301, {
        tokens: tokens(1),
        cost: 0,
      }),
      event(ROOT, "tool_use", "prt_203024728001SkefJRSUOiYkHE:tool_use", 1795346811303, {
        tool: "task",
        args: {
          description: "read docs",
          prompt: "Read the docs and report",
          subagent_type: "explore",
        },
        call_id: "call_3_1",
        duration_ms: 632,
        success: true,
      }),
      event(
        ROOT,
        "agent_complete",
        "prt_203024728001SkefJRSUOiYkHE:agent_complete",
        1795346811303,
        { subagent_type: "explore", call_id: "call_3_1", duration_ms: 632, success: true },
      ),
      event(EXPLORE, "session_update", "evt_2030249ab0012xvEcxQb31fEjq", 1795346811309, {
        ...explore,
        model: "mock",
        tokens: tokens(2),
      }),
      event(ROOT, "session_update", "evt_2030249e4001Js16ZF0BYO52NV", 1795346811365, {
        ...root,
        tokens: tokens(2),
      }),
      event(ROOT, "session_end", "evt_203024a46002vo9DCrCzWfRp5j", 1795346811462, {
        tokens: tokens(2),
        cost: 0,
      }),
      event(ROOT, "session_update", "evt_203024a49001rgr27MLiudZ3ao", 1795346811466, {
        ...root,
        tokens: tokens(3),
      }),
    ]);
  });

  test("gives nothing new when OpenCode repeats each event, or the whole run", () => {
    const twice = CAPTURE.flatMap((line) => [line, line]);
    expect(translateAll(twice)).toStrictEqual(translateAll(CAPTURE));
    expect(translateAll([...CAPTURE, ...CAPTURE])).toStrictEqual(translateAll(CAPTURE));
  });

  test("gives events that the server's contract allows", () => {
    const events = translateAll(CAPTURE);
    expect(new Set(events.map(({ id }) => id)).size).toBe(events.length);
    for (const { id, data } of events) {
      expect(id.length).toBeLessThanOrEqual(256);
      for (const name of ["id", "type", "session_id", "timestamp"])
        expect(data).not.toHaveProperty(name);
    }
  });

  test("lets neither what a tool returned nor the conversation out", () => {
    const sent = JSON.stringify(translateAll(CAPTURE));
    expect(JSON.stringify(CAPTURE)).toContain("drwxr-xr-x");
    expect(sent).not.toContain("drwxr-xr-x");
    expect(sent).not.toContain("then look around in parallel");
  });
});

const SESSION = { id: "ses_1", title: "First", directory: "/project", time: { created: 1_000 } };
const created: OpenCodeEvent = {
  id: "evt_created",
  type: "session.created",
  properties: { info: SESSION },
};
const updated = (id: string, facts: object = {}): OpenCodeEvent => ({
  id,
  type: "session.updated",
  properties: { info: { ...SESSION, ...facts } },
});
const busy = (id: string, sessionID = "ses_1"): OpenCodeEvent => ({
  id,
  type: "session.status",
  properties: { sessionID, status: { type: "busy" } },
});
const idle = (id: string, sessionID = "ses_1"): OpenCodeEvent => ({
  id,
  type: "session.idle",
  properties: { sessionID },
});

type ToolState = Parameters<typeof toolPart>[1];

function toolPart(
  tool: string,
  state: {
    status: "running" | "completed" | "error";
    input?: object;
    metadata?: { sessionId?: string; background?: boolean };
    error?: string;
    start?: number;
  },
  callID = "call_1",
): OpenCodeEvent {
  const { status, input = {}, metadata = {}, error = "failed", start = 4_000 } = state;
  const time = { start, end: 5_000 };
  const shared = { input, metadata, time };
  return {
    type: "message.part.updated",
    properties: {
      part: {
        id: "prt_1",
        type: "tool",
        sessionID: "ses_1",
        callID,
        tool,
        state: status === "error" ? { ...shared, status, error } : { ...shared, status },
      },
    },
  };
}

const brief = (events: TelemetryEvent[]) =>
  events.map(({ type, session_id, timestamp }) => `${type} ${session_id} ${timestamp}`);

describe("translator: sessions", () => {
  test.each([
    ["its title", { title: "Second" }, { title: "Second" }],
    ["its agent", { agent: "plan" }, { agent: "plan" }],
    ["its model", { model: { id: "large", providerID: "some" } }, { model: "large" }],
    ["its directory", { directory: "/other" }, { directory: "/other" }],
    ["its parent", { parentID: "ses_0" }, { parent_session_id: "ses_0" }],
    ["its tokens", { tokens: { input: 7 } }, { tokens: { input: 7 } }],
    ["its cost", { cost: 0.25 }, { cost: 0.25 }],
  ])("a session.updated that changes %s gives a session_update with all facts", (_, info, fact) => {
    const [, ...events] = translated(created, updated("evt_1", info), updated("evt_2", info));
    expect(events).toStrictEqual([
      {
        id: "evt_1",
        type: "session_update",
        session_id: "ses_1",
        timestamp: 5_002,
        data: { title: "First", directory: "/project", ...fact },
      },
    ]);
  });

  test("a session.updated that changes no fact gives nothing", () => {
    const other = { time: { created: 1_000, updated: 2_000 }, summary: { additions: 3 } };
    expect(translated(created, updated("evt_1", other))).toHaveLength(1);
  });

  test("a session first heard of when it is updated started when it was created", () => {
    expect(brief(translated(updated("evt_1"), updated("evt_2"), busy("evt_3")))).toEqual([
      "session_start ses_1 1000",
      "session_update ses_1 5001",
      "session_start ses_1 5003", // it may have ended in an earlier process
    ]);
  });

  test("each turn ends once, under its own id, and the next begins with a session_start", () => {
    const turns = [busy("evt_1"), idle("evt_2"), idle("evt_3"), busy("evt_4"), idle("evt_5")];
    const events = translated(created, ...turns, updated("evt_6"));
    expect(brief(events)).toEqual([
      "session_start ses_1 1000",
      "session_end ses_1 5003",
      "session_start ses_1 5005",
      "session_end ses_1 5006",
    ]);
    expect(events.map(({ id }) => id)).toEqual(["ses_1:session_start", "evt_2", "evt_4", "evt_5"]);
  });

  test("without OpenCode's event ids each turn still ends under an id of its own", () => {
    const turn = [busy("evt_1"), idle("evt_2")];
    for (const event of turn) delete event.id;
    const lines = [...turn, ...turn].map((event) => ({ at: 5_000, event }));
    expect(new Set(translateAll(lines).map(({ id }) => id)).size).toBe(4);
  });

  test("what still comes after the end of a turn is followed by another end", () => {
    const aborted = toolPart("bash", { status: "error", error: "Tool execution aborted" });
    const events = translated(created, busy("evt_1"), idle("evt_2"), aborted, idle("evt_3"));
    expect(brief(events)).toEqual([
      "session_start ses_1 1000",
      "session_end ses_1 5003",
      "tool_use ses_1 5000",
      "session_end ses_1 5004",
    ]);
    expect(new Set(events.map(({ id }) => id)).size).toBe(4);
  });

  test("session.error gives its name and message, and nothing else that a provider said", () => {
    const error = {
      name: "APIError",
      data: {
        message: "Invalid key",
        statusCode: 401,
        responseHeaders: { "set-cookie": "secret" },
        responseBody: "secret",
        metadata: { url: "https://secret" },
      },
    };
    const failed: OpenCodeEvent = {
      id: "evt_1",
      type: "session.error",
      properties: { sessionID: "ses_1", error },
    };
    expect(translated(failed)).toStrictEqual([
      {
        id: "evt_1",
        type: "session_error",
        session_id: "ses_1",
        timestamp: 5_001,
        data: { error_name: "APIError", error: "Invalid key" },
      },
    ]);
  });

  test.each([
    ["of no session", { error: { name: "UnknownError" } }],
    ["without an error", { sessionID: "ses_1" }],
  ])("a session.error %s gives nothing", (_, properties) => {
    expect(translated({ type: "session.error", properties })).toEqual([]);
  });

  test("a provider's options and headers stay, wherever they are", () => {
    const options = { apiKey: "secret", headers: { authorization: "secret" } };
    const info = { model: { id: "large", options }, provider: { options }, metadata: options };
    const [, update] = translated(created, updated("evt_1", info));
    expect(update?.data.model).toBe("large");
    expect(JSON.stringify(update)).not.toContain("secret");
  });
});

describe("translator: tools and agents", () => {
  const task = (state: ToolState) =>
    toolPart("task", { input: { subagent_type: "explore", prompt: "Look" }, ...state });
  const child = { sessionId: "ses_2" };

  test("a running tool gives nothing, one that ends gives one tool_use at its end", () => {
    const running = toolPart("bash", { status: "running" });
    const completed = toolPart("bash", { status: "completed", input: { command: "ls" } });
    const events = translated(running, running, completed, completed);
    expect(events).toStrictEqual([
      {
        id: "prt_1:tool_use",
        type: "tool_use",
        session_id: "ses_1",
        timestamp: 5_000,
        data: {
          tool: "bash",
          args: { command: "ls" },
          call_id: "call_1",
          duration_ms: 1_000,
          success: true,
        },
      },
    ]);
  });

  test("a tool that ended before it started, after its clock was set back, took 0 ms", () => {
    const [event] = translated(toolPart("bash", { status: "completed", start: 6_000 }));
    expect(event?.data.duration_ms).toBe(0);
  });

  test("an agent_spawn waits for the child session, and comes once", () => {
    const waiting = task({ status: "running" });
    const running = task({ status: "running", metadata: child });
    expect(translated(waiting)).toEqual([]);
    const events = translated(waiting, running, running);
    expect(brief(events)).toEqual(["agent_spawn ses_1 4000"]);
    expect(events[0]?.data).toStrictEqual({
      subagent_type: "explore",
      prompt: "Look",
      call_id: "call_1",
      child_session_id: "ses_2",
    });
  });

  test("a task that fails before it has a child is a spawned and failed agent", () => {
    const events = translated(task({ status: "running" }), task({ status: "error", error: "No" }));
    expect(brief(events)).toEqual([
      "agent_spawn ses_1 4000",
      "tool_use ses_1 5000",
      "agent_complete ses_1 5000",
    ]);
    expect(events[1]?.data).toMatchObject({ success: false, error: "No" });
    expect(events[2]?.data).toStrictEqual({
      subagent_type: "explore",
      call_id: "call_1",
      duration_ms: 1_000,
      success: false,
      error: "No",
    });
  });

  test.each([
    ["idles", [], true],
    ["fails and idles", ["session.error"], false],
  ])(
    "the agent of a task in the background is complete when its session %s",
    (_, fails, success) => {
      const events = translated(
        created,
        busy("evt_1"),
        task({ status: "running", metadata: child }),
        task({ status: "completed", metadata: { ...child, background: true } }),
        idle("evt_2"),
        ...fails.map((): OpenCodeEvent => ({
          type: "session.error",
          properties: { sessionID: "ses_2", error: { name: "UnknownError" } },
        })),
        idle("evt_3", "ses_2"),
        idle("evt_4", "ses_2"),
      );
      const end = success ? 5_006 : 5_007;
      const complete = events.filter(({ type }) => type === "agent_complete");
      expect(brief(complete)).toEqual([`agent_complete ses_1 ${end}`]);
      expect(complete[0]?.data).toMatchObject({ duration_ms: end - 4_000, success });
      // The parent's turn had ended before: it does so again.
      expect(brief(events.slice(-1))).toEqual([`session_end ses_1 ${end}`]);
    },
  );

  test("the calls that a fork copies aren't its own", () => {
    const copied = toolPart("bash", { status: "completed", start: 999 });
    expect(brief(translated(created, copied))).toEqual(["session_start ses_1 1000"]);
  });

  test.each([
    ["no string", 7],
    ["empty", ""],
    ["too long", "x".repeat(257)],
  ])("a subagent_type that is %s is unknown", (_, subagent_type) => {
    const [spawn] = translated(
      toolPart("task", { status: "running", input: { subagent_type }, metadata: child }),
    );
    expect(spawn?.data.subagent_type).toBe("unknown");
  });

  test("a call_id longer than the server takes is replaced by the part's id", () => {
    const [event] = translated(toolPart("bash", { status: "completed" }, "x".repeat(257)));
    expect(event?.data.call_id).toBe("prt_1");
  });

  const LONG = "ä".repeat(5_000);
  const LONG_ARGS = JSON.stringify({ content: LONG });

  test("arguments, prompts and errors are cut at 4 KB, and say so", () => {
    const call = { input: { content: LONG }, error: LONG };
    const [event] = translated(toolPart("write", { status: "error", ...call }));
    expect(event?.data).toMatchObject({
      args: LONG_ARGS.slice(0, 4_096),
      args_cut: true,
      args_length: LONG_ARGS.length,
      error: "ä".repeat(4_096),
      error_cut: true,
      error_length: 5_000,
    });
    const [spawn] = translated(
      toolPart("task", { status: "running", input: { prompt: LONG }, metadata: child }),
    );
    expect(spawn?.data).toMatchObject({
      prompt: "ä".repeat(4_096),
      prompt_cut: true,
      prompt_length: 5_000,
    });
  });

  test.each([
    ["4,096 characters stay whole", "x".repeat(4_096), "x".repeat(4_096), undefined],
    ["4,097 are cut", "x".repeat(4_097), "x".repeat(4_096), true],
    ["a surrogate pair isn't cut in two", `${"x".repeat(4_095)}😀`, "x".repeat(4_095), true],
  ])("%s", (_, error, sent, cut) => {
    const [event] = translated(toolPart("bash", { status: "error", error }));
    expect(event?.data.error).toBe(sent);
    expect(event?.data.error_cut).toBe(cut);
  });
});

describe("translator: permissions and questions", () => {
  const questions = [{ question: "Which colour?" }, { question: "Which size?" }];
  test.each<[string, OpenCodeEvent, Record<string, unknown>]>([
    [
      "permission.asked",
      {
        type: "permission.asked",
        properties: {
          id: "req_1",
          sessionID: "ses_1",
          permission: "bash",
          patterns: ["rm *", "ls"],
        },
      },
      { type: "input_requested", kind: "permission", detail: "bash: rm *, ls" },
    ],
    [
      "permission.updated, as older versions say",
      {
        type: "permission.updated",
        properties: { id: "req_1", sessionID: "ses_1", title: "rm *" },
      },
      { type: "input_requested", kind: "permission", detail: "rm *" },
    ],
    [
      "permission.replied",
      {
        type: "permission.replied",
        properties: { sessionID: "ses_1", requestID: "req_1", reply: "once" },
      },
      { type: "input_resolved", kind: "permission", reply: "once" },
    ],
    [
      "permission.replied of older versions",
      {
        type: "permission.replied",
        properties: { sessionID: "ses_1", permissionID: "req_1", response: "always" },
      },
      { type: "input_resolved", kind: "permission", reply: "always" },
    ],
    [
      "question.asked",
      { type: "question.asked", properties: { id: "req_1", sessionID: "ses_1", questions } },
      { type: "input_requested", kind: "question", detail: "Which colour?\nWhich size?" },
    ],
    [
      "question.replied",
      {
        type: "question.replied",
        properties: { sessionID: "ses_1", requestID: "req_1", answers: [["Red", "Blue"], ["L"]] },
      },
      { type: "input_resolved", kind: "question", reply: "Red, Blue, L" },
    ],
    [
      "question.rejected",
      { type: "question.rejected", properties: { sessionID: "ses_1", requestID: "req_1" } },
      { type: "input_resolved", kind: "question", reply: "reject" },
    ],
  ])("%s", (_, event, { type, ...data }) => {
    expect(translated(event, event)).toStrictEqual([
      {
        id: `req_1:${type}`,
        type,
        session_id: "ses_1",
        timestamp: 5_001,
        data: { request_id: "req_1", ...data },
      },
    ] as TelemetryEvent[]);
  });
});

/** A status, or a whole response. */
type Answer = number | Response;

/** A server that keeps what it answers 201 to. `answer` gets the number of the POST, from 0. */
function startReceiver(
  answer: (post: number, ids: string[]) => Answer | Promise<Answer> = () => 201,
  port = 0,
) {
  const posts: { at: number; bytes: number; headers: Headers; ids: string[] }[] = [];
  const stored: TelemetryEvent[] = [];
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port,
    async fetch(req) {
      const body = await req.text();
      const events: TelemetryEvent[] = JSON.parse(body);
      const ids = events.map(({ id }) => id);
      posts.push({
        at: performance.now(),
        bytes: Buffer.byteLength(body),
        headers: req.headers,
        ids,
      });
      const answered = await answer(posts.length - 1, ids);
      if (answered === 201) stored.push(...events);
      return typeof answered === "number" ? new Response("{}", { status: answered }) : answered;
    },
  });
  return {
    url: server.url.href,
    port: server.port ?? 0,
    posts,
    stored,
    ids: () => stored.map(({ id }) => id),
    [Symbol.asyncDispose]: () => server.stop(true),
  };
}

/** A server that closes each connection at once. */
function startBrokenServer() {
  let connections = 0;
  const listener = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: {
      open(socket) {
        connections += 1;
        socket.end();
      },
      data() {},
    },
  });
  return {
    url: `http://127.0.0.1:${listener.port}`,
    port: listener.port,
    wasTried: () => waitFor(() => connections > 0, "a connection"),
    [Symbol.dispose]: () => listener.stop(true),
  };
}

/** A port on which nothing listens. */
async function closedPort(): Promise<number> {
  await using receiver = startReceiver();
  return receiver.port;
}

const never = () => new Promise<Response>(() => {});

const numbered = (from: number, to: number, data = {}): TelemetryEvent[] =>
  Array.from({ length: to - from }, (_, index) => ({
    id: `event ${from + index}`,
    type: "tool_use",
    session_id: "ses_1",
    timestamp: 1_000,
    data: { tool: "bash", ...data },
  }));
const idsOf = (events: TelemetryEvent[]) => events.map(({ id }) => id);

describe("sender", () => {
  test("posts JSON arrays of at most 100 events, in order", async () => {
    await using receiver = startReceiver();
    const sender = createSender({ server: receiver.url });
    sender.send(numbered(0, 250));
    await waitFor(() => receiver.stored.length === 250, "250 events");
    expect(receiver.stored).toStrictEqual(numbered(0, 250));
    expect(receiver.posts.map(({ ids }) => ids.length)).toEqual([100, 100, 50]);
    expect(receiver.posts[0]?.headers.get("content-type")).toBe("application/json");
    expect(receiver.posts[0]?.headers.get("authorization")).toBeNull();
  });

  test("sends its token as Authorization: Bearer", async () => {
    await using receiver = startReceiver();
    const sender = createSender({ server: receiver.url, token: "the token" });
    sender.send(numbered(0, 1));
    await waitFor(() => receiver.stored.length === 1, "an event");
    expect(receiver.posts[0]?.headers.get("authorization")).toBe("Bearer the token");
  });

  test("posts less than 1 MiB at once, however large the events", async () => {
    await using receiver = startReceiver();
    const sender = createSender({ server: receiver.url });
    // The largest that the translator makes: control characters take six bytes each in JSON.
    const text = "\u0001".repeat(4_096);
    sender.send(numbered(0, 60, { args: text, error: text }));
    await waitFor(() => receiver.stored.length === 60, "60 events");
    expect(Math.max(...receiver.posts.map(({ bytes }) => bytes))).toBeLessThan(1024 * 1024);
  });

  test("a server that starts late gets all, in order, once", async () => {
    using broken = startBrokenServer();
    const sender = createSender({ server: broken.url });
    sender.send(numbered(0, 150));
    await broken.wasTried();
    broken[Symbol.dispose]();
    await using receiver = startReceiver(() => 201, broken.port);
    sender.send(numbered(150, 200));
    await waitFor(() => receiver.stored.length === 200, "200 events");
    expect(receiver.ids()).toEqual(idsOf(numbered(0, 200)));
  });

  test.concurrent.each([500, 503, 429, 401, 403, 404])(
    "after a %d it posts the same events again",
    async (status) => {
      await using receiver = startReceiver((post) => (post === 0 ? status : 201));
      const sender = createSender({ server: receiver.url });
      sender.send(numbered(0, 3));
      await waitFor(() => receiver.posts.length === 1, "the first POST");
      sender.send(numbered(3, 5));
      await waitFor(() => receiver.stored.length === 5, "5 events");
      expect(receiver.ids()).toEqual(idsOf(numbered(0, 5)));
    },
  );

  test("a server that hangs is left after a second, and asked again", async () => {
    await using receiver = startReceiver((post) => (post === 0 ? never() : 201));
    const sender = createSender({ server: receiver.url });
    sender.send(numbered(0, 3));
    await waitFor(() => receiver.stored.length === 3, "3 events");
    expect(receiver.ids()).toEqual(idsOf(numbered(0, 3)));
    const [first = 0, second = 0] = receiver.posts.map(({ at }) => at);
    expect(second - first).toBeGreaterThanOrEqual(1_000);
  });

  test("its pauses double: 250 ms, 500 ms", async () => {
    await using receiver = startReceiver((post) => (post < 2 ? 500 : 201));
    const sender = createSender({ server: receiver.url });
    sender.send(numbered(0, 1));
    await waitFor(() => receiver.stored.length === 1, "an event");
    const [first = 0, second = 0, third = 0] = receiver.posts.map(({ at }) => at);
    expect(second - first).toBeGreaterThanOrEqual(240);
    expect(third - second).toBeGreaterThanOrEqual(490);
  });

  test.each([400, 413])(
    "a %d costs only the event that is to blame, and is told of",
    async (status) => {
      await using receiver = startReceiver((_, ids) => (ids.includes("event 1") ? status : 201));
      const sender = createSender({ server: receiver.url });
      sender.send(numbered(0, 4));
      await waitFor(() => receiver.stored.length === 3, "the other events");
      sender.send(numbered(4, 6));
      await waitFor(() => receiver.stored.length === 5, "the next events");
      expect(receiver.ids()).toEqual(["event 0", "event 2", "event 3", "event 4", "event 5"]);
      expect(receiver.stored.map(({ data }) => data.dropped_events)).toEqual([
        undefined,
        undefined,
        undefined,
        1,
        undefined,
      ]);
      // All, one by one, and the two: nothing is tried without end.
      expect(receiver.posts.map(({ ids }) => ids.length)).toEqual([4, 1, 1, 1, 1, 2]);
    },
  );

  test("a full queue loses its oldest events, and tells how many", async () => {
    const port = await closedPort();
    const sender = createSender({ server: `http://127.0.0.1:${port}` });
    for (const event of numbered(0, 2_500)) sender.send([event]);
    await using receiver = startReceiver(() => 201, port);
    await waitFor(() => receiver.stored.length === 1_000, "what fits in the queue");
    expect(receiver.ids()).toEqual(idsOf(numbered(1_500, 2_500)));
    const told = receiver.stored.map(({ data }) => Number(data.dropped_events ?? 0));
    expect(told.reduce((sum, count) => sum + count)).toBe(1_500);
  });

  test.each([201, 500])(
    "a queue that overflows keeps the events in flight, which are answered with %d",
    async (status) => {
      const gate = Promise.withResolvers<number>();
      await using receiver = startReceiver((post) => (post === 0 ? gate.promise : 201));
      const sender = createSender({ server: receiver.url });
      sender.send(numbered(0, 100));
      await waitFor(() => receiver.posts.length === 1, "the first POST");
      sender.send(numbered(100, 1_100));
      gate.resolve(status);
      await waitFor(() => receiver.stored.length === 1_000, "what fits in the queue");
      expect(receiver.ids()).toEqual(idsOf([...numbered(0, 100), ...numbered(200, 1_100)]));
    },
  );

  test("follows no redirect", async () => {
    await using other = startReceiver();
    await using receiver = startReceiver(() => Response.redirect(other.url, 307));
    const sender = createSender({ server: receiver.url });
    sender.send(numbered(0, 1));
    await waitFor(() => receiver.posts.length === 2, "another try");
    expect(other.posts).toEqual([]);
  });

  test("close posts all that is queued, and what is sent afterwards is ignored", async () => {
    await using receiver = startReceiver();
    const sender = createSender({ server: receiver.url });
    sender.send(numbered(0, 450));
    await sender.close(450);
    sender.send(numbered(450, 451));
    await sender.close(450);
    expect(receiver.ids()).toEqual(idsOf(numbered(0, 450)));
  });

  test("close tries at once what waits to be tried again", async () => {
    await using receiver = startReceiver((post) => (post === 0 ? 500 : 201));
    const sender = createSender({ server: receiver.url });
    sender.send(numbered(0, 450));
    await waitFor(() => receiver.posts.length === 1, "the first POST");
    const start = performance.now();
    await sender.close(450);
    expect(performance.now() - start).toBeLessThan(200);
    expect(receiver.ids()).toEqual(idsOf(numbered(0, 450)));
  });

  test("close tries again what fails while it waits", async () => {
    const gate = Promise.withResolvers<number>();
    await using receiver = startReceiver((post) => (post === 0 ? gate.promise : 201));
    const sender = createSender({ server: receiver.url });
    sender.send(numbered(0, 1));
    await waitFor(() => receiver.posts.length === 1, "the first POST");
    const start = performance.now();
    const closed = sender.close(450);
    gate.resolve(500);
    await closed;
    expect(performance.now() - start).toBeLessThan(200);
    expect(receiver.ids()).toEqual(["event 0"]);
  });

  test("close doesn't wait for a server that is absent", async () => {
    const sender = createSender({ server: `http://127.0.0.1:${await closedPort()}` });
    sender.send(numbered(0, 450));
    const start = performance.now();
    await sender.close(450);
    expect(performance.now() - start).toBeLessThan(200);
  });
});

describe("plugin", () => {
  test("its file exports one function: OpenCode would call each", async () => {
    const exported = Object.values(await import("../plugin/observability.ts"));
    expect(exported.map((value) => typeof value)).toEqual(["function"]);
  });

  test("no hook takes 1 ms, although the server hangs", async () => {
    await using receiver = startReceiver(never);
    const durations: number[] = [];
    for (let round = 0; round < 10; round++) {
      const hooks = createHooks({ server: receiver.url });
      for (const { event } of CAPTURE) {
        const start = performance.now();
        await hooks.event({ event });
        durations.push(performance.now() - start);
      }
    }
    // Not the slowest: on a busy machine that is the scheduler's doing.
    durations.sort((a, b) => a - b);
    expect(durations[Math.floor(durations.length * 0.99)]).toBeLessThan(1);
  });

  test("dispose is over within 500 ms, although the server hangs", async () => {
    await using receiver = startReceiver(never);
    const hooks = createHooks({ server: receiver.url });
    await hooks.event({ event: created });
    const start = performance.now();
    await hooks.dispose();
    expect(performance.now() - start).toBeLessThan(500);
    expect(receiver.posts).toHaveLength(1);
  });

  test.each([
    ["nothing", "undefined"],
    ["no properties", '{ type: "session.created" }'],
    [
      "a part without a state",
      '{ type: "message.part.updated", properties: { part: { type: "tool" } } }',
    ],
    ["an unknown type", '{ type: "lsp.updated", properties: {} }'],
    [
      "a BigInt for a fact",
      '{ type: "session.updated", properties: { info: { id: "s", cost: 1n, time: {} } } }',
    ],
  ])("an event of another shape (%s) is passed over", async (_, source) => {
    await using receiver = startReceiver();
    const hooks = createHooks({ server: receiver.url });
    await hooks.event({ event: new Function(`return ${source}`)() });
    await hooks.event({ event: created });
    await hooks.dispose();
    expect(receiver.ids()).toEqual(["ses_1:session_start"]);
  });

  /** A process that loads the plugin as OpenCode does, and ends when its standard input does. */
  function runPlugin(env: Record<string, string>) {
    const script = `
      const { ObservabilityPlugin } = await import("./plugin/observability.ts");
      const hooks = await ObservabilityPlugin({});
      await hooks.event({ event: ${JSON.stringify(created)} });
      for await (const _ of Bun.stdin.stream()) {}`;
    return Bun.spawn([process.execPath, "-e", script], {
      cwd: `${import.meta.dir}/..`,
      env: { ...process.env, ...env },
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
    });
  }

  test("reads where its server is and its token from the environment", async () => {
    await using receiver = startReceiver();
    await using child = runPlugin({
      OBSERVABILITY_SERVER: receiver.url,
      OBSERVABILITY_TOKEN: "the token",
    });
    await waitFor(() => receiver.stored.length === 1, "an event");
    expect(receiver.ids()).toEqual(["ses_1:session_start"]);
    expect(receiver.posts[0]?.headers.get("authorization")).toBe("Bearer the token");
    child.stdin.end();
    expect(await child.exited).toBe(0);
  });

  test("without a server it prints nothing, and doesn't keep its process alive", async () => {
    using broken = startBrokenServer();
    await using child = runPlugin({ OBSERVABILITY_SERVER: broken.url });
    await broken.wasTried();
    const ended = performance.now();
    child.stdin.end();
    expect(await child.exited).toBe(0);
    expect(performance.now() - ended).toBeLessThan(1_000);
    expect(await new Response(child.stdout).text()).toBe("");
    expect(await new Response(child.stderr).text()).toBe("");
  });
});

describe("plugin and server", () => {
  interface Detail {
    session: { id: string };
    tools: { tool: string; error: string | null; duration_ms: number }[];
    agents: { subagent_type: string; duration_ms: number }[];
  }
  const played = { now: () => (CAPTURE.at(-1)?.at ?? 0) + 1_000 };

  /** The captured run, as OpenCode announced it; OpenCode exits at the end. */
  async function play(server: string): Promise<void> {
    let at = 0;
    const hooks = createHooks({ server, now: () => at });
    for (const line of CAPTURE) {
      at = line.at;
      await hooks.event(line);
    }
    await hooks.dispose();
  }

  async function rows(server: { url: string }) {
    const { sessions } = await getJson<{ sessions: { id: string }[] }>(server, "/api/sessions");
    const details = await Promise.all(
      sessions.map(({ id }) => getJson<Detail>(server, `/api/sessions/${id}`)),
    );
    return { sessions, details };
  }

  test("the captured run is one completed session with two children", async () => {
    await using server = await startTestServer(played);
    await play(server.url);
    const { sessions, details } = await rows(server);

    const facts = { status: "completed", parent_session_id: ROOT };
    expect(sessions).toHaveLength(3);
    expect(sessions).toEqual(
      expect.arrayContaining([
        expect.objectContaining({
          id: ROOT,
          status: "completed",
          started_at: "2026-11-22T11:26:48.998Z",
          parent_session_id: null,
          info: expect.objectContaining({ title: "Title", model: "mock", tokens: tokens(3) }),
        }),
        expect.objectContaining({ ...facts, id: GENERAL }),
        expect.objectContaining({ ...facts, id: EXPLORE }),
      ]),
    );

    const tools = details.flatMap((detail) => detail.tools);
    expect(tools.map(({ tool }) => tool).sort()).toEqual([
      "bash",
      "bash",
      "bash",
      "read",
      "task",
      "task",
    ]);
    expect(tools.filter(({ error }) => error)).toMatchObject([
      { tool: "read", error: "File not found: /nonexistent/file.txt" },
    ]);
    expect(details.find(({ session }) => session.id === ROOT)?.agents).toMatchObject([
      { subagent_type: "general", duration_ms: 1795346811214 - 1795346810645 },
      { subagent_type: "explore", duration_ms: 1795346811303 - 1795346810671 },
    ]);
    expect(details.flatMap((detail) => detail.agents)).toHaveLength(2);
  });

  test("the same run again, from another process, changes no row", async () => {
    await using server = await startTestServer(played);
    await play(server.url);
    const before = await rows(server);
    await play(server.url);
    expect(await rows(server)).toEqual(before);
  });

  test("a server that stops, answers 500 and comes back has the same rows", async () => {
    await using undisturbed = await startTestServer(played);
    await play(undisturbed.url);

    await using server = await startTestServer(played);
    const sessions = async () => (await rows(server)).sessions;
    let at = 0;
    const hooks = createHooks({ server: server.url, now: () => at });
    for (const [index, line] of CAPTURE.entries()) {
      if (index === 20) {
        await waitFor(async () => (await sessions()).length === 1, "the first events");
        await server.stop();
      }
      at = line.at;
      await hooks.event(line);
    }
    {
      await using failing = startReceiver(() => 500, server.port);
      await waitFor(() => failing.posts.length > 0, "a failed POST");
    }
    await server.restart();
    // With their counts of events, tools and agents: nothing is lost, nothing there twice.
    const expected = (await rows(undisturbed)).sessions;
    await waitFor(async () => Bun.deepEquals(await sessions(), expected), "the same rows");
  });
});
