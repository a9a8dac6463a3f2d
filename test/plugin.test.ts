import { describe, expect, test } from "bun:test";
import plugin, {
  createHooks1,
  createReporter,
  createSender,
  createShape,
  createTranslator1,
  type OpenCodeEvent,
  type TelemetryEvent,
} from "../plugin/observability.ts";
import { openCodeEvents } from "./fixtures.ts";
import { getJson, isSoak, startTestServer, waitFor } from "./helpers.ts";

/** The hooks of OpenCode 1.18, as its only instance has them. Its exit waits for `dispose` as long as it may take. */
function createHooks(
  options: Parameters<typeof createReporter>[1],
  directory?: string,
  disposeMs = 400,
) {
  const reporter = createReporter(createTranslator1(), options);
  if (directory !== undefined) reporter.join(directory, () => {});
  return { ...createHooks1(reporter), dispose: () => reporter.close(disposeMs) };
}

/**
 * What the event hook got of OpenCode 1.18.33 in a real run: agents in agents, a retry, permissions,
 * a question, two aborts, a compaction, the person's own command, and a second session that fails.
 */
const CAPTURE = openCodeEvents();
const ROOT = "ses_df1ad8f3dffej1X44OJ76axWHf";
const FAILING = "ses_df1ad1cddffeqnBA4JkhHdmcAG";
const NESTING = "ses_df1ad8727ffeVrrp0yHnVZDCeH";

function translateAll(lines: { at: number; event: OpenCodeEvent }[]): TelemetryEvent[] {
  const { translate } = createTranslator1();
  return lines.flatMap(({ at, event }) => translate(event, at));
}

/** What a translator makes of these events, which come one millisecond after the other. */
function translated(...events: OpenCodeEvent[]): TelemetryEvent[] {
  return translateAll(events.map((event, index) => ({ at: 5_001 + index, event })));
}

/** The type and data of each event, but for what every event has. */
const said = (
  events: TelemetryEvent[],
  ...types: TelemetryEvent["type"][]
): [string, Record<string, unknown>][] =>
  events.filter(({ type }) => types.includes(type)).map(({ type, data }) => [type, data]);

describe("translator: the captured run", () => {
  const events = translateAll(CAPTURE);
  const ofType = (type: TelemetryEvent["type"], session: string) =>
    events.filter((event) => event.type === type && event.session_id === session);

  test("gives exactly these events", () => {
    const counts: Record<string, number> = {};
    for (const { type } of events) counts[type] = (counts[type] ?? 0) + 1;
    expect(counts).toEqual({
      session_start: 12,
      session_update: 31,
      session_end: 12,
      session_compacted: 1,
      turn_start: 7,
      tool_start: 20,
      tool_use: 20,
      agent_spawn: 3,
      agent_complete: 3,
      model_request: 23,
      model_response: 22,
      input_requested: 4,
      input_resolved: 4,
      retry: 1,
    });
  });

  test("says what became of each call", () => {
    const calls = ofType("tool_use", ROOT).map(({ data }) =>
      [data.tool, data.outcome, data.exit_code, data.duration_ms, data.waited_ms].join(" ").trim(),
    );
    expect(calls).toEqual([
      "read failed  29",
      "task ok  2100",
      "task ok  2285",
      "todowrite ok  3",
      "bash ok  433",
      "read ok  19",
      "edit ok  921 905",
      "question ok  1113 1113",
      "todowrite ok  3",
      "bash exit 1 22",
      "write ok  917 907",
      "bash denied  911 908",
      "bash cancelled  1933",
      "task failed  7",
      "bash ok  22",
      "bash ok  311",
    ]);
  });

  test("says of a call that changed files which, without their content", () => {
    const files = ofType("tool_use", ROOT).flatMap(({ data }) => data.files ?? []);
    expect(files).toEqual([
      { path: "README.md", additions: 1, deletions: 1 },
      { path: "notes.md", additions: 1, deletions: 0 },
    ]);
  });

  test("names an agent by its description, with its child session", () => {
    const [spawn] = ofType("agent_spawn", ROOT);
    expect(spawn?.data).toEqual({
      subagent_type: "general",
      description: "Survey the tests",
      prompt: "CHILD-NEST: report on the tests",
      call_id: "msg_20e52745e001TRXhcb415kwo7G:call_2_0",
      child_session_id: NESTING,
    });
    expect(ofType("agent_complete", ROOT)[1]?.data).toEqual({
      subagent_type: "general",
      call_id: "msg_20e52745e001TRXhcb415kwo7G:call_2_0",
      duration_ms: 2_285,
      outcome: "ok",
    });
  });

  test("ends a step with its answer, not with its tools", () => {
    const [response] = ofType("model_response", ROOT);
    expect(response).toEqual({
      id: "msg_20e52745e001TRXhcb415kwo7G:model_response",
      type: "model_response",
      session_id: ROOT,
      timestamp: 1795536615739,
      data: {
        call_id: "msg_20e52745e001TRXhcb415kwo7G",
        model: "mock",
        provider: "mock",
        agent: "build",
        duration_ms: 378,
        first_token_ms: 172,
        tokens: { input: 762, output: 50, reasoning: 0, cache_read: 512, cache_write: 0 },
        cost: 0.0031896,
        finish_reason: "tool-calls",
        outcome: "ok",
        text: "I'll survey in parallel.",
      },
    });
  });

  test("measures the first token of a retried request from the last try", () => {
    const [retry] = ofType("retry", ROOT);
    expect(retry?.data).toEqual({
      attempt: 1,
      message: "Rate limit exceeded, retry later",
      retry_at: 1795536620060,
    });
    const response = ofType("model_response", ROOT)[1];
    expect(response?.data).toMatchObject({ duration_ms: 2_280, first_token_ms: 130 });
    const requests = ofType("model_request", ROOT).filter(
      ({ data }) => data.call_id === response?.data.call_id,
    );
    expect(requests.map(({ timestamp }) => timestamp)).toEqual([1795536618034, 1795536620061]);
  });

  test("ends each turn with its reason, and with the cost of the last step in it", () => {
    const ends = ofType("session_end", ROOT).map(({ data }) => [data.reason, data.cost]);
    expect(ends).toEqual([
      ["completed", 0.0302652],
      ["completed", 0.0402984],
      ["completed", 0.045504], // the person has refused a call
      ["interrupted", 0.045504],
      ["interrupted", 0.045504],
      ["completed", 0.0567972],
      ["completed", 0.0626328], // compaction
      ["completed", 0.0626328], // the person's own command
    ]);
  });

  test("has the cost of its steps in the cost of the session", () => {
    const steps = ofType("model_response", ROOT).map(({ data }) => Number(data.cost ?? 0));
    expect(steps.reduce((sum, cost) => sum + cost)).toBeCloseTo(0.0626328, 9);
  });

  test("tells of a failed request once, as that of its model", () => {
    const failed = events.filter(({ session_id }) => session_id === FAILING);
    expect(said(failed, "session_error", "model_response", "session_end")).toEqual([
      [
        "model_response",
        expect.objectContaining({
          outcome: "failed",
          error: "Invalid request: model does not exist",
        }),
      ],
      ["session_end", expect.objectContaining({ reason: "error" })],
    ]);
  });

  test("tells of todos and changes as facts of the session", () => {
    const data = ofType("session_update", ROOT).at(-1)?.data;
    expect(data?.changes).toEqual({ files: 2, additions: 2, deletions: 1 });
    expect(data?.todos).toEqual([
      { content: "Survey", status: "completed" },
      { content: "Edit README", status: "completed" },
      { content: "Ask", status: "completed" },
    ]);
  });

  test("gives nothing new when OpenCode repeats each event", () => {
    expect(translateAll(CAPTURE.flatMap((line) => [line, line]))).toStrictEqual(events);
  });

  test("gives each event an id of its own, of a length that the server takes", () => {
    expect(new Set(events.map(({ id }) => id)).size).toBe(events.length);
    expect(Math.max(...events.map(({ id }) => id.length))).toBeLessThanOrEqual(256);
  });
});

const SESSION = { id: "ses_1", title: "First", directory: "/project", time: { created: 1_000 } };
const created: OpenCodeEvent = {
  id: "evt_created",
  type: "session.created",
  properties: { info: SESSION },
};
const createdChild: OpenCodeEvent = {
  id: "evt_child",
  type: "session.created",
  properties: { info: { ...SESSION, id: "ses_2", parentID: "ses_1" } },
};
const status = (id: string, type: "busy" | "idle", sessionID = "ses_1"): OpenCodeEvent => ({
  id,
  type: "session.status",
  properties: { sessionID, status: { type } },
});
const busy = (id: string, sessionID = "ses_1") => status(id, "busy", sessionID);
const idle = (id: string, sessionID = "ses_1"): OpenCodeEvent => ({
  id,
  type: "session.idle",
  properties: { sessionID },
});
const failure = (name: string, sessionID = "ses_1"): OpenCodeEvent => ({
  id: `evt_${name}`,
  type: "session.error",
  properties: { sessionID, error: { name, data: { message: `${name}!` } } },
});

function step(info: object, sessionID = "ses_1"): OpenCodeEvent {
  const none = { input: 0, output: 0, reasoning: 0, cache: { read: 0, write: 0 } };
  const { time, ...rest } = { time: { created: 4_000 }, ...info };
  const message = { id: "msg_1", sessionID, modelID: "large", providerID: "some" };
  return {
    type: "message.updated",
    properties: { info: { role: "assistant", ...message, cost: 0, tokens: none, time, ...rest } },
  };
}

type State = Record<string, unknown> & { status: "running" | "completed" | "error" };

function toolPart(
  tool: string,
  state: State,
  callID = "call_1",
  sessionID = "ses_1",
): OpenCodeEvent {
  const whole = { input: {}, time: { start: 4_000, end: 5_000 }, ...state };
  const ids = { id: "prt_1", sessionID, messageID: "msg_1" };
  const event = {
    type: "message.part.updated",
    properties: { part: { ...ids, type: "tool", callID, tool, state: whole } },
  };
  return event as unknown as OpenCodeEvent;
}

const brief = (events: TelemetryEvent[]) =>
  events.map(({ type, session_id, timestamp }) => `${type} ${session_id} ${timestamp}`);

describe("translator: outcomes", () => {
  const killed = (note: string) => ({
    status: "completed" as const,
    metadata: { exit: null },
    output: `some\n\n<shell_metadata>\n${note}\n</shell_metadata>`,
  });
  test.each<[string, State, Record<string, unknown>]>([
    ["completed", { status: "completed" }, { outcome: "ok" }],
    ["exit 0", { status: "completed", metadata: { exit: 0 } }, { outcome: "ok" }],
    ["exit 3", { status: "completed", metadata: { exit: 3 } }, { outcome: "exit", exit_code: 3 }],
    ["killed by the person", killed("User aborted the command"), { outcome: "cancelled" }],
    ["out of time", killed("exceeding timeout"), { outcome: "failed", error: "exceeding timeout" }],
    ["an error", { status: "error", error: "No" }, { outcome: "failed", error: "No" }],
    [
      "a refused permission",
      { status: "error", error: "The user rejected permission to use this tool." },
      { outcome: "denied" },
    ],
    [
      "a refused permission in a subagent",
      { status: "error", error: "Subagent failed (task_id: ses_2): The user rejected permission" },
      { outcome: "denied" },
    ],
    ["an abort", { status: "error", error: "Tool execution aborted" }, { outcome: "cancelled" }],
    ["an aborted task", { status: "error", error: "Task cancelled" }, { outcome: "cancelled" }],
  ])("of a call: %s", (_, state, ending) => {
    const [event] = translated(toolPart("bash", state));
    const { outcome, exit_code, error } = event?.data ?? {};
    expect({ outcome, exit_code, error }).toEqual({
      exit_code: undefined,
      error: undefined,
      ...ending,
    } as never);
  });

  test("of a call that can't be made: failed, though OpenCode completes it", () => {
    const error = "Model tried to call unavailable tool 'look'.";
    const call = { status: "completed" as const, input: { tool: "look", error } };
    const [event] = translated(toolPart("invalid", call));
    expect(event?.data).toMatchObject({ tool: "invalid", outcome: "failed", error });
  });

  test("a failed subagent: its model tells of the error, and no session_error once more", () => {
    const child = { sessionId: "ses_2" };
    const error = { name: "APIError", data: { message: "APIError!" } };
    const events = translated(
      created,
      createdChild,
      busy("evt_1", "ses_2"),
      step({}, "ses_2"),
      busy("evt_2", "ses_2"),
      failure("APIError", "ses_2"),
      idle("evt_3", "ses_2"),
      step({ error, time: { created: 4_000, completed: 5_005 } }, "ses_2"),
      toolPart("task", { status: "error", error: "Subagent failed: APIError!", metadata: child }),
    );
    const told = ["session_error", "model_response", "tool_use", "agent_complete"] as const;
    expect(said(events, ...told).map(([type, { outcome }]) => [type, outcome])).toEqual([
      ["model_response", "failed"],
      ["tool_use", "failed"],
      ["agent_complete", "failed"],
    ]);
  });

  test("an abort is no error", () => {
    const events = translated(
      created,
      busy("evt_1"),
      failure("MessageAbortedError"),
      idle("evt_2"),
    );
    expect(said(events, "session_error", "session_end")).toEqual([
      ["session_end", { reason: "interrupted" }],
    ]);
  });

  test("an error that no step tells of is the session's, by name and message alone", () => {
    const headers = { responseHeaders: { "set-cookie": "secret" }, responseBody: "secret" };
    const error = { name: "APIError", data: { message: "Invalid key", ...headers } };
    const events = translated(created, {
      id: "evt_1",
      type: "session.error",
      properties: { sessionID: "ses_1", error },
    });
    expect(said(events, "session_error")).toEqual([
      ["session_error", { error_name: "APIError", error: "Invalid key" }],
    ]);
  });

  test("an error of which its step says nothing is told with the step's end", () => {
    const steps = [busy("evt_1"), step({}), busy("evt_2"), failure("UnknownError")];
    const events = translated(created, ...steps, step({ finish: "stop" }));
    expect(said(events, "session_error")).toHaveLength(1);
  });
});

describe("translator: sessions and agents", () => {
  test("each turn ends once, under its own id, and the next begins with a session_start", () => {
    const turns = [busy("evt_1"), idle("evt_2"), idle("evt_3"), busy("evt_4"), idle("evt_5")];
    const events = translated(created, ...turns);
    expect(brief(events)).toEqual([
      "session_start ses_1 1000",
      "session_end ses_1 5003",
      "session_start ses_1 5005",
      "session_end ses_1 5006",
    ]);
    expect(events.map(({ id }) => id)).toEqual(["ses_1:session_start", "evt_2", "evt_4", "evt_5"]);
  });

  test("a turn that is aborted ends with its step", () => {
    const error = { name: "MessageAbortedError" };
    const before = [
      created,
      busy("evt_1"),
      step({}),
      busy("evt_2"),
      failure("MessageAbortedError"),
    ];
    const aborted = toolPart("bash", { status: "error", error: "Tool execution aborted" });
    const end = step({ error, time: { created: 4_000, completed: 5_009 } });
    const events = translated(...before, idle("evt_3"), aborted, end, idle("evt_4"));
    expect(brief(events)).toEqual([
      "session_start ses_1 1000",
      "model_request ses_1 5004",
      "tool_use ses_1 5000",
      "model_response ses_1 5004",
      "session_end ses_1 5008",
    ]);
  });

  test("what a fork copies is neither its call nor its cost", () => {
    const tokens = { input: 9, output: 1, reasoning: 0, cache: { read: 0, write: 0 } };
    const copied = step({ finish: "stop", cost: 0.5, tokens, time: { created: 900 } });
    const call = toolPart("bash", { status: "completed", time: { start: 999, end: 1_000 } });
    const updated: OpenCodeEvent = {
      id: "evt_1",
      type: "session.updated",
      properties: { info: { ...SESSION, cost: 0.75, tokens } },
    };
    const events = translated(created, copied, call, copied, updated);
    expect(said(events, "tool_use", "model_response")).toEqual([]);
    expect(events.at(-1)?.data.cost).toBe(0.25);
  });

  test("the person's own command asks no model", () => {
    const events = translated(
      created,
      busy("evt_1"),
      step({}),
      step({ time: { created: 4_000, completed: 4_500 } }),
      idle("evt_2"),
    );
    expect(said(events, "model_request", "model_response")).toEqual([]);
  });

  test.each([
    ["idles", undefined, "ok"],
    ["fails", "UnknownError", "failed"],
    ["is aborted", "MessageAbortedError", "cancelled"],
  ])("the agent of a task in the background ends when its session %s", (_, error, outcome) => {
    const metadata = { sessionId: "ses_2", background: true };
    const events = translated(
      created,
      createdChild,
      busy("evt_1", "ses_2"),
      toolPart("task", { status: "running", metadata }),
      toolPart("task", { status: "completed", metadata }),
      ...(error === undefined ? [] : [failure(error, "ses_2")]),
      idle("evt_2", "ses_2"),
      idle("evt_3", "ses_2"),
    );
    const ends = events.filter(({ type }) => type === "agent_complete");
    expect(ends.map(({ data }) => data.outcome)).toEqual([outcome]);
  });

  test("a task without a child is a call, and no agent", () => {
    const events = translated(toolPart("task", { status: "error", error: "No such agent" }));
    expect(brief(events)).toEqual(["tool_use ses_1 5000"]);
  });

  test("a subagent's wait for the person is one of its task, too", () => {
    const asks: OpenCodeEvent = {
      type: "permission.asked",
      properties: {
        id: "per_1",
        sessionID: "ses_2",
        permission: "bash",
        patterns: ["ls"],
        tool: { messageID: "msg_2", callID: "call_2" },
      },
    };
    const replies: OpenCodeEvent = {
      type: "permission.replied",
      properties: { sessionID: "ses_2", requestID: "per_1", reply: "once" },
    };
    const task = { metadata: { sessionId: "ses_2" }, time: { start: 5_000, end: 6_000 } };
    const { translate } = createTranslator1();
    translate(toolPart("task", { status: "running", ...task }), 5_000);
    translate(asks, 5_100);
    translate(replies, 5_400);
    const events = translate(toolPart("task", { status: "completed", ...task }), 6_000);
    expect(said(events, "tool_use")).toMatchObject([["tool_use", { waited_ms: 300 }]]);
  });

  test("an agent has changed what its calls have changed, not what others have meanwhile", () => {
    const filediff = { file: "/project/own.ts", additions: 2, deletions: 1 };
    const edit: State = { status: "completed", metadata: { filediff } };
    const summary = { diffs: [{ file: "other.ts", additions: 9, deletions: 9 }] };
    const ids = { id: "msg_0", sessionID: "ses_2" };
    const events = translated(createdChild, toolPart("edit", edit, "call_1", "ses_2"), {
      type: "message.updated",
      properties: { info: { role: "user", ...ids, time: { created: 5_000 }, summary } },
    });
    const changes = { files: 1, additions: 2, deletions: 1 };
    expect(said(events, "session_update")).toMatchObject([["session_update", { changes }]]);
  });

  test.each([
    ["once", "ok"],
    ["reject", "denied"],
  ])("a permission that is replied with %s → its wait was %s", (reply, outcome) => {
    const replied: OpenCodeEvent = {
      type: "permission.replied",
      properties: { sessionID: "ses_1", requestID: "per_1", reply },
    };
    const events = translated(busy("evt_1"), replied);
    expect(said(events, "input_resolved")).toMatchObject([["input_resolved", { reply, outcome }]]);
  });

  test("a request that an abort has left open is not answered after the end", () => {
    const replied: OpenCodeEvent = {
      type: "permission.replied",
      properties: { sessionID: "ses_1", requestID: "per_1", reply: "reject" },
    };
    expect(translated(busy("evt_1"), idle("evt_2"), replied).map(({ type }) => type)).toEqual([
      "session_start",
      "session_end",
    ]);
  });

  test("calls that a model numbers anew in each answer stay apart; a long id becomes short", () => {
    const id = (callID: string) =>
      translated(toolPart("bash", { status: "completed" }, callID))[0]?.data.call_id;
    expect(id("call_0")).toBe("msg_1:call_0");
    expect(String(id("x".repeat(2_000))).length).toBeLessThan(128);
    expect(id("x".repeat(2_000))).not.toBe(id("x".repeat(2_001)));
  });

  test("a model's limit is learned from the hook before it is asked", () => {
    const { learn, translate } = createTranslator1();
    learn({ id: "large", providerID: "some", limit: { context: 200_000 } });
    expect(translate(step({ finish: "stop" }), 5_000)[0]?.data.context_limit).toBe(200_000);
  });
});

describe("content", () => {
  const event = (type: TelemetryEvent["type"], data: Record<string, unknown>): TelemetryEvent => ({
    id: "event",
    type,
    session_id: "ses_1",
    timestamp: 1_000,
    data,
  });

  const todos = [{ content: "Tidy up", status: "pending" }];
  const files = [{ path: "a.ts", additions: 1, deletions: 2 }];
  const NONE = { todos: [{ status: "pending" }], files: [{ additions: 1, deletions: 2 }] };
  test.each<[TelemetryEvent["type"], string, unknown, unknown, unknown, unknown]>([
    ["session_update", "title", "Mend it", undefined, "Mend it", "Mend it"],
    ["session_update", "directory", "/project", "/project", "/project", "/project"],
    ["session_update", "todos", todos, NONE.todos, todos, todos],
    ["tool_start", "args", { command: "ls" }, undefined, { command: "ls" }, { command: "ls" }],
    ["tool_use", "tool", "bash", "bash", "bash", "bash"],
    ["tool_use", "exit_code", 1, 1, 1, 1],
    ["tool_use", "error", "No", undefined, "No", "No"],
    ["tool_use", "files", files, NONE.files, files, files],
    ["tool_use", "output", "total 0", undefined, undefined, "total 0"],
    ["agent_spawn", "description", "Look", undefined, "Look", "Look"],
    ["agent_spawn", "prompt", "Look", undefined, "Look", "Look"],
    ["turn_start", "prompt", "Do it", undefined, undefined, "Do it"],
    ["model_response", "text", "Done", undefined, undefined, "Done"],
    ["retry", "message", "Too many", undefined, "Too many", "Too many"],
    ["input_requested", "detail", "bash: ls", undefined, "bash: ls", "bash: ls"],
    ["input_resolved", "reply", "Blue", undefined, "Blue", "Blue"],
  ])("%s: %s leaves as chosen", (type, name, value, none, args, full) => {
    const leaves = (content: string) =>
      createShape({ content })(event(type, { [name]: value })).data[name];
    expect([leaves("none"), leaves("args"), leaves("full")]).toEqual([none, args, full]);
    expect(leaves("a misspelt mode")).toEqual(none as never);
  });

  test("a todo's status is one of OpenCode's words, or the model's own, which is content", () => {
    const [todo] = [{ content: "Tidy up", status: "blocked: no key for acme.com" }];
    const leaves = (content: string) =>
      createShape({ content })(event("session_update", { todos: [todo] })).data.todos;
    expect([leaves("none"), leaves("args")]).toEqual([[{}], [todo]]);
  });

  test("the answer to a permission is one of three words, and leaves in every mode", () => {
    const shape = createShape({ content: "none" });
    const { data } = shape(event("input_resolved", { kind: "permission", reply: "once" }));
    expect(data.reply).toBe("once");
  });

  const LONG = "ä".repeat(5_000);
  test.each<[string, string, unknown, Record<string, unknown>]>([
    ["4,096 characters stay whole", "error", LONG.slice(0, 4_096), { error: LONG.slice(0, 4_096) }],
    [
      "a longer text is cut",
      "error",
      LONG,
      { error: LONG.slice(0, 4_096), error_cut: true, error_length: 5_000 },
    ],
    [
      "of what a tool returned the end stays",
      "output",
      `${LONG}end`,
      { output: `${LONG.slice(0, 4_093)}end`, output_cut: true, output_length: 5_003 },
    ],
    [
      "a surrogate pair isn't cut in two",
      "error",
      `${"x".repeat(4_095)}😀`,
      { error: "x".repeat(4_095), error_cut: true, error_length: 4_097 },
    ],
    [
      "long arguments become their JSON, cut",
      "args",
      { content: LONG },
      { args: JSON.stringify({ content: LONG }).slice(0, 4_096), args_cut: true },
    ],
  ])("%s", (_, name, value, data) => {
    const shape = createShape({ content: "full" });
    expect(shape(event("tool_use", { [name]: value })).data).toEqual(data);
  });

  test("of what the model says the whole length is told", () => {
    const part = {
      id: "prt_1",
      sessionID: "ses_1",
      messageID: "msg_1",
      time: { start: 1, end: 2 },
    };
    const text: OpenCodeEvent = {
      type: "message.part.updated",
      properties: { part: { ...part, type: "text", text: "x".repeat(10_000) } },
    };
    const [response] = translated(step({}), text, step({ finish: "stop" }));
    const { data } = createShape({ content: "full" })(response!);
    expect([data.text_cut, data.text_length]).toEqual([true, 10_000]);
  });

  test("of a list that is too long the rest leaves as counts", () => {
    const many = Array.from({ length: 100 }, (_, index) => ({
      content: `${index} ${"x".repeat(96)}`,
      status: "pending",
    }));
    const { todos } = createShape({})(event("session_update", { todos: many })).data;
    const left = todos as typeof many;
    expect(left).toHaveLength(100);
    expect(left[0]).toEqual(many[0]!);
    expect(left[99]).toEqual({ status: "pending" } as never);
    const texts = left.map(({ content = "" }) => content).join("");
    expect(texts.length).toBeGreaterThan(3_000);
    expect(texts.length).toBeLessThanOrEqual(4_096);
  });

  test("arguments of any size and depth take less than 1 ms", () => {
    let deep: unknown = "x";
    for (let depth = 0; depth < 5_000; depth++) deep = [deep];
    const wide = Array.from({ length: 100_000 }, (_, index) => ({ index, text: "y".repeat(100) }));
    const args = { deep, wide, long: "z".repeat(10_000_000) };
    const shape = createShape({});
    const durations = Array.from({ length: 50 }, () => {
      const start = performance.now();
      shape(event("tool_use", { args }));
      return performance.now() - start;
    });
    expect(durations.toSorted((a, b) => a - b)[25]).toBeLessThan(1);
  });

  // Put together here, so that no scanner takes them for real.
  const digits = "0123456789abcdefghij0123456789abcdefghij";
  const key = (what: string) => `-----${what} RSA PRIVATE KEY-----`;
  test.each([
    ["a bearer token", `curl -H "Authorization: Bearer ${digits}" x`, digits],
    ["basic authorization", "Authorization: Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA"],
    ["a key of OpenAI's form", `use sk-${digits} now`, digits],
    ["a key of Anthropic's form", `use sk-ant-api03-${digits} now`, digits],
    ["a token of GitHub's form", `git clone ghp_${digits}`, digits],
    ["a token of GitLab's form", `glpat-${digits}`, digits],
    ["a token of Slack's form", `xoxb-${digits}`, digits],
    ["a key id of AWS's form", `AKIA${"0123456789ABCDEF"}`, "0123456789ABCDEF"],
    ["a key of Google's form", `AIza${digits}`, digits],
    ["a JSON web token", `eyJ${digits}.eyJ${digits}.${digits}`, digits],
    ["a private key", `${key("BEGIN")}\nMIIEabcdef\n${key("END")}`, "MIIEabcdef"],
    ["a private key that is cut off", `${key("BEGIN")}\nMIIEabcdef`, "MIIEabcdef"],
    ["the rest of a private key", `MIIEabcdef\n${key("END")}`, "MIIEabcdef"],
    ["a password in a URL", "psql postgres://me:hunter22@host/db", "hunter22"],
    ["an assignment", "DB_PASSWORD=hunter22 ./run", "hunter22"],
    ["a quoted assignment", 'password = "hunter 22 and more"', "and more"],
    ["JSON", '{"api_key": "hunter22"}', "hunter22"],
    ["JSON in a string", '{\\"token\\":\\"hunter22\\"}', "hunter22"],
    ["a header", "X-Api-Key: hunter22", "hunter22"],
    ["an option", "mysql --password hunter22 db", "hunter22"],
    ["curl's user", "curl -u me:hunter22 x", "hunter22"],
    ["curl's user, with other letters", "curl -sSu me:hunter22 x", "hunter22"],
    ["a key that begins like a path", "API_KEY=/abc/def== ./run", "/abc/def"],
    ["the same of AWS", "AWS_SECRET_ACCESS_KEY=/wJalr/XUtn+FEMI ./run", "XUtn"],
    ["a private key that begins like a path", "PrivateKey = /wJalr/XUtn=", "XUtn"],
    ["any other key of the environment", "STRIPE_KEY=live0123456789abcd ./run", "0123456789"],
    ["a password by its short name", "DB_PASS=hunter22 ./run --pass hunter22", "hunter22"],
    ["an assignment by :=", 'password := "hunter22"', "hunter22"],
    ["an element of XML", "<password>hunter22</password>", "hunter22"],
    ["a part of a URL", "redirect?to=x%3Ftoken%3Dhunter22", "hunter22"],
    ["a password of SQL", "ALTER USER me WITH PASSWORD 'hunter22'", "hunter22"],
    ["a quote in what is quoted", '{"password": "a\\"hunter22"}', "hunter22"],
    ["a quoted text of 600 characters", `password="${"x".repeat(590)}"`, "x".repeat(99)],
    ["a login of .netrc", "machine h login me password hunter22", "hunter22"],
    [
      "a login of .netrc on lines of its own",
      "machine h\n  login me\n  password hunter22",
      "hunter22",
    ],
    ["an option with more before it", "vault --db-root-token hunter22", "hunter22"],
    ["sshpass", "sshpass -p hunter22 ssh h", "hunter22"],
    ["a login of Docker", "docker login -u me -p hunter22", "hunter22"],
    ["a password of MySQL", "mysql -u root -phunter22 db", "hunter22"],
    ["a header of cookies", "Cookie: theme=dark; sid=hunter22", "hunter22"],
    ["a cookie that is set", "document.cookie = 'sid=hunter22; path=/'", "hunter22"],
    ["curl's cookie", "curl -b 'sid=hunter22' x", "hunter22"],
    ["a token as the user of a URL", `git clone https://${digits}@host/x.git`, digits],
    ["a password with @ in a URL", "psql postgres://me:hun@ter22@host/db", "ter22"],
    ["a signed URL", `https://host/x?se=1&sig=${digits}`, digits],
    ["a webhook", `curl https://hooks.slack.com/services/T0/B0/${digits}`, digits],
    ["a signature of AWS", `Authorization: AWS4-HMAC-SHA256 a=b, Signature=${digits}`, digits],
    ["a key of PGP", `${key("BEGIN").replace("KEY", "KEY BLOCK")}\nlQOYabcdef`, "lQOYabcdef"],
    ["an app's token of Slack's form", `xapp-1-A0-${digits}`, digits],
    ["a token of Vault's form", `hvs.${digits}`, digits],
  ])("%s is masked, unless that is turned off", (_, text, secret) => {
    for (const args of [{ command: text }, text]) {
      const sent = JSON.stringify(createShape({})(event("tool_use", { args })));
      expect(sent).not.toContain(secret);
      expect(sent).toContain("***");
    }
    const open = createShape({ redact: "off" })(event("tool_use", { args: { command: text } }));
    expect(open.data.args).toEqual({ command: text });
  });

  test("a secret by its name in the arguments, and one across the cut", () => {
    const shape = createShape({ content: "full" });
    expect(shape(event("tool_use", { args: { secret: "hunter22", n: 1 } })).data.args).toEqual({
      secret: "***",
      n: 1,
    });
    const text = `${"x ".repeat(2_040)} Bearer ${digits}`;
    expect(JSON.stringify(shape(event("tool_use", { error: text })))).not.toContain("0123");
  });

  test.each(["Authorization", "cookie", "password", "credentials"])(
    "the value of %s in the arguments is masked, whatever it is",
    (name) => {
      for (const value of ["Basic dXNlcjpwdw==", 4_711, ["hunter22"], { key: "hunter22" }]) {
        const args = { headers: { [name]: value } };
        const { data } = createShape({})(event("tool_use", { args }));
        expect(data.args).toEqual({ headers: { [name]: "***" } });
      }
    },
  );

  test("a secret at the edge of what is read doesn't leave in part, however much is masked", () => {
    const shape = createShape({ content: "full" });
    const masked = `${key("BEGIN")}\n${"M".repeat(1_000)}\n${key("END")} `;
    const start =
      `${masked}${"x ".repeat(3_000)}`.slice(0, 4_600) + `ghp_${digits}${" y".repeat(9)}`;
    const end = `${"x ".repeat(99)}ghp_${digits}${`${" y".repeat(3_000)} ${masked}`.slice(-4_580)}`;
    for (const data of [{ prompt: start }, { args: { start } }, { output: end }]) {
      const sent = JSON.stringify(shape(event("tool_use", data)));
      expect(sent).toContain("***");
      expect(sent).not.toMatch(/ghp_|ghij/);
    }
  });

  test("what looks like the beginning of a thousand secrets takes less than 0.5 ms", () => {
    const args = { command: "-eyJ".repeat(1_100) };
    const shape = createShape({});
    const durations = Array.from({ length: 20 }, () => {
      const start = performance.now();
      shape(event("tool_use", { args }));
      return performance.now() - start;
    });
    expect(Math.min(...durations)).toBeLessThan(0.5);
  });

  test.each([
    "git status --short",
    "max_tokens: 4096, tokens=12",
    "cd /home/dev && PWD=/home/dev ls",
    "curl https://example.com:8080/path",
    "echo $PASSWORD; TOKEN=$TOKEN ./run",
    "the author of disk-usage-of-the-year-2026",
    "KEY_FILE=/etc/x MONKEY=/bin/x PATH=/usr/bin OLDPWD=/home/dev ./run",
    "TOKEN_FILE=/run/secrets/token SSH_KEY=/home/me/.ssh/id_rsa SORT_KEY=name_of_it ./run",
    "ssl --private-key=/etc/ssl/key.pem credentials: /home/me/.aws/credentials",
    "ssh -p 2222 git@host; docker run -p 8080:80 x; mkdir -p src/components",
    "git clone ssh://git@github.com/x/y; cookies: yes; http://localhost:8080/@scope/x?key=name",
    "git diff -b --stat=80 src && bun test; find mysql -print; docker run mysql -p 127.0.0.1:3306:3306",
    "Write a two-pass parser; per-token cost; Mend the login form password validation",
    "git checkout -b feature; curl -b cookies.txt x; bypass: 12; 12 pass; auth: none",
  ])("%s stays", (command) => {
    expect(createShape({})(event("tool_use", { args: { command } })).data.args).toEqual({
      command,
    });
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
  /** The bodies of the posts to /api/senders; a server that doesn't have it answers 404. */
  const beats: Record<string, unknown>[] = [];
  const stored: TelemetryEvent[] = [];
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port,
    async fetch(req) {
      const body = await req.text();
      if (new URL(req.url).pathname !== "/api/events") {
        if (req.method === "POST") beats.push(JSON.parse(body));
        return new Response("{}", { status: 404 });
      }
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
    beats,
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
    await sender.close(10_000);
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
  test("its file exports what both generations take: an id, a server, a setup", () => {
    expect(plugin).toEqual({
      id: "pai-observability",
      server: expect.any(Function),
      setup: expect.any(Function),
    });
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
    // Beside other tests what is slow is the scheduler's doing; the soak has the machine for itself.
    durations.sort((a, b) => a - b);
    expect(durations[Math.floor(durations.length * (isSoak ? 0.99 : 0.9))]).toBeLessThan(1);
  });

  test("dispose is over within 500 ms, although the server hangs", async () => {
    await using receiver = startReceiver(never);
    const hooks = createHooks({ server: receiver.url });
    await hooks.event({ event: created });
    const start = performance.now();
    await hooks.dispose();
    expect(performance.now() - start).toBeLessThan(isSoak ? 500 : 2_000);
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

  test("a refused token is told once, in OpenCode's own log", async () => {
    await using receiver = startReceiver(() => 401);
    const told: unknown[] = [];
    const app = { log: async (entry: object) => told.push(entry) };
    const session = { list: async () => ({ data: [] }), messages: async () => ({ data: [] }) };
    const options = { server: receiver.url, token: "wrong", backfill: 0 };
    const hooks = await plugin.server({ directory: "/project", client: { app, session } }, options);
    await hooks.event({ event: created });
    await waitFor(() => receiver.posts.length >= 2, "a second try");
    await hooks.dispose();
    expect(told).toEqual([
      {
        body: {
          service: "pai-observability",
          level: "warn",
          message: `${receiver.url} refuses the token (401): set OBSERVABILITY_TOKEN`,
        },
      },
    ]);
  });

  /** A process that loads the plugin as OpenCode does, and ends when its standard input does. */
  function runPlugin(env: Record<string, string>) {
    const script = `
      const { default: plugin } = await import("./plugin/observability.ts");
      const hooks = await plugin.server({});
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

describe("presence", () => {
  /** Timers that fire when told to. */
  function startClock() {
    const timers = new Map<number, { action: () => void; ms: number }>();
    let serial = 0;
    return {
      timers: () => [...timers.values()].map(({ ms }) => ms),
      schedule(action: () => void, ms: number) {
        const id = serial++;
        timers.set(id, { action, ms });
        return () => void timers.delete(id);
      },
      fire() {
        for (const [id, { action }] of [...timers]) if (timers.delete(id)) action();
      },
    };
  }

  test("beats every 10 s while a session runs, has no timer while none does, and says bye", async () => {
    await using receiver = startReceiver();
    const clock = startClock();
    const hooks = createHooks({
      server: receiver.url,
      sender: "the sender",
      schedule: clock.schedule,
    });
    await hooks.event({ event: created });
    expect(clock.timers()).toEqual([]);
    await hooks.event({ event: busy("evt_1") });
    expect(clock.timers()).toEqual([0]);
    clock.fire();
    expect(clock.timers()).toEqual([10_000]);
    clock.fire();
    await waitFor(() => receiver.beats.length === 2, "two beats");
    expect(receiver.beats[0]).toEqual({
      sender: "the sender",
      every_ms: 10_000,
      name: "opencode",
      version: expect.any(String),
    });
    await hooks.event({ event: idle("evt_2") });
    expect(clock.timers()).toEqual([]);
    await hooks.dispose();
    expect(receiver.beats.slice(2)).toEqual([{ sender: "the sender", bye: true }]);
    expect(receiver.stored.map(({ data }) => data.sender)).toEqual(
      receiver.stored.map(() => "the sender"),
    );
  });

  test("a process that starts is seen before it has a session", async () => {
    await using server = await startTestServer();
    createHooks({ server: server.url }, "/project");
    const seen = () => getJson<{ senders: unknown[] }>(server, "/api/senders");
    await waitFor(async () => (await seen()).senders.length > 0, "the plugin to be seen");
    expect(await seen()).toMatchObject({ senders: [{ name: "opencode", is_lost: false }] });
  });

  test("what comes after the end starts no timer", async () => {
    const scheduled: number[] = [];
    const schedule = (_: () => void, ms: number) => (scheduled.push(ms), () => {});
    const hooks = createHooks({ server: "http://127.0.0.1:9", schedule });
    await hooks.dispose();
    const properties = { sessionID: "ses_1", status: { type: "busy" as const } };
    await hooks.event({ event: { id: "evt_1", type: "session.status", properties } });
    expect(scheduled).toEqual([]);
  });

  test("a process that ends says that its running sessions are interrupted", async () => {
    await using receiver = startReceiver();
    const hooks = createHooks({ server: receiver.url });
    await hooks.event({ event: created });
    await hooks.event({ event: busy("evt_1") });
    await hooks.dispose();
    expect(receiver.stored.at(-1)).toMatchObject({
      type: "session_end",
      session_id: "ses_1",
      data: { reason: "interrupted" },
    });
  });

  test("ends what a lost predecessor left open in this project, and nothing else", async () => {
    const [at, heard_at] = ["2026-01-01T12:00:00.000Z", "2026-01-01T12:05:00.000Z"];
    const session = (id: string, sender: unknown, directory = "/project") => ({
      ...{ id, last_event_at: at },
      info: { sender, directory },
    });
    const stored: TelemetryEvent[] = [];
    await using server = Bun.serve({
      hostname: "127.0.0.1",
      port: 0,
      routes: {
        "/api/senders": {
          GET: () =>
            Response.json({
              senders: [
                { sender: "lost", last_heard_at: heard_at, is_lost: true },
                { sender: "alive", last_heard_at: heard_at, is_lost: false },
              ],
            }),
          POST: () => new Response(null, { status: 204 }),
        },
        "/api/sessions": (req) =>
          Response.json({
            sessions: req.url.endsWith("?status=stale")
              ? [
                  session("ses_lost", "lost"),
                  session("ses_unheard", "before the server's start"),
                  session("ses_sibling", "alive"),
                  session("ses_own", "own"),
                  session("ses_nobody", undefined),
                  session("ses_elsewhere", "lost", "/other"),
                ]
              : [],
          }),
        "/api/events": async (req) => {
          stored.push(...((await req.json()) as TelemetryEvent[]));
          return Response.json({}, { status: 201 });
        },
      },
    });
    const hooks = createHooks({ server: server.url.href, sender: "own" }, "/project");
    await hooks.event({ event: busy("evt_1") });
    const ends = () => stored.filter(({ data }) => data.reason === "interrupted");
    await waitFor(() => ends().length === 2, "two ends");
    expect(ends().map(({ session_id, timestamp }) => [session_id, timestamp])).toEqual([
      ["ses_lost", Date.parse(heard_at) + 1],
      ["ses_unheard", Date.parse(at) + 1],
    ]);
    await hooks.event({ event: idle("evt_2") });
  });
});

describe("plugin and server", () => {
  interface Row {
    id: string;
    status: string;
    error_count: number;
    tool_count: number;
    agent_count: number;
    cost: { own: number; total: number };
    info: Record<string, unknown>;
  }
  const played = { now: () => (CAPTURE.at(-1)?.at ?? 0) + 1_000 };

  /** The captured run, as OpenCode announced it; OpenCode exits at the end. */
  async function play(server: string, content = "args"): Promise<void> {
    let at = 0;
    const options = { server, content, sender: "the sender", now: () => at };
    const hooks = createHooks(options, undefined, 10_000); // so that all of it is posted
    for (const line of CAPTURE) {
      at = line.at;
      await hooks.event(line);
    }
    await hooks.dispose();
  }

  const listed = async (server: { url: string }) =>
    (await getJson<{ sessions: Row[] }>(server, "/api/sessions")).sessions;
  const spansOf = async (server: { url: string }, id: string) =>
    (
      await getJson<{ spans: { kind: string; outcome: string | null }[] }>(
        server,
        `/api/spans?limit=500&sessionId=${id}`,
      )
    ).spans;

  test.each(["none", "args", "full"])("the captured run is five sessions (%s)", async (content) => {
    await using server = await startTestServer(played);
    await play(server.url, content);
    const rows = Object.fromEntries((await listed(server)).map((row) => [row.id, row]));
    expect(Object.keys(rows)).toHaveLength(5);
    expect(Object.values(rows).map(({ status }) => status)).toEqual(Array(5).fill("completed"));
    expect(rows[ROOT]).toMatchObject({
      error_count: 3, // a file not found, a command's exit code, a task that was refused
      tool_count: 16,
      agent_count: 2,
      info: { sender: "the sender", changes: { files: 2, additions: 2, deletions: 1 } },
    });
    expect(rows[ROOT]?.cost.own).toBeCloseTo(0.0626328, 9);
    expect(rows[ROOT]?.cost.total).toBeCloseTo(0.0626328 + 3 * 0.0072612, 9);
    expect(rows[FAILING]).toMatchObject({ error_count: 1, info: { reason: "error" } });
    expect(rows[ROOT]?.info.title).toBe(content === "none" ? undefined : "Renamed by hand");
  });

  test("the captured run leaves no span open, and as many of each outcome as there were", async () => {
    await using server = await startTestServer(played);
    await play(server.url);
    const counts: Record<string, number> = {};
    for (const { kind, outcome } of await spansOf(server, ROOT))
      counts[`${kind} ${outcome}`] = (counts[`${kind} ${outcome}`] ?? 0) + 1;
    expect(counts).toEqual({
      "tool ok": 11,
      "tool failed": 2,
      "tool exit": 1,
      "tool denied": 1,
      "tool cancelled": 1,
      "agent ok": 2,
      "model ok": 13,
      "model cancelled": 2,
      "wait ok": 3,
      "wait denied": 1,
    });
  });

  test("neither what a tool returned nor the conversation is stored, unless chosen", async () => {
    const stored = async (content: string) => {
      await using server = await startTestServer(played);
      await play(server.url, content);
      return JSON.stringify(await getJson(server, "/api/events?limit=1000"));
    };
    const [none, args, full] = [await stored("none"), await stored("args"), await stored("full")];
    const texts: [string, boolean[]][] = [
      ["SURVEY the repository with two agents", [false, false, true]],
      ["The survey is complete", [false, false, true]],
      ["hi\\nthere", [false, false, true]],
      ["CHILD-NEST: report", [false, true, true]],
      ["git push origin main", [false, true, true]],
    ];
    for (const [text, leaves] of texts)
      expect([text, [none, args, full].map((log) => log.includes(text))]).toEqual([text, leaves]);
  });

  test("the same run again, from another process, changes no row", async () => {
    await using server = await startTestServer(played);
    await play(server.url);
    const before = [await listed(server), await spansOf(server, ROOT)];
    await play(server.url);
    expect([await listed(server), await spansOf(server, ROOT)]).toEqual(before);
  });

  test("a server that stops, answers 500 and comes back has the same rows", async () => {
    await using undisturbed = await startTestServer(played);
    await play(undisturbed.url);

    await using server = await startTestServer(played);
    let at = 0;
    const hooks = createHooks({ server: server.url, sender: "the sender", now: () => at });
    for (const [index, line] of CAPTURE.entries()) {
      if (index === 20) {
        await waitFor(async () => (await listed(server)).length > 0, "the first events");
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
    const expected = await listed(undisturbed);
    await waitFor(async () => Bun.deepEquals(await listed(server), expected), "the same rows");
  });
});
