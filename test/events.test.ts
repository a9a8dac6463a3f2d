/** From unknown JSON to an event, or to an error that names the field. Pure: no server needed. */

import { describe, expect, test } from "bun:test";
import { EVENT_TYPES, HttpError, parseEvent, type TelemetryEvent } from "../server.ts";

const RECEIVED = Date.parse("2026-01-01T12:00:00Z");

/** Every accepted type with the least that it needs. */
const MINIMAL = {
  session_start: {},
  session_update: {},
  session_end: {},
  session_error: {},
  session_compacted: {},
  turn_start: {},
  tool_start: { tool: "bash", call_id: "call_1" },
  tool_use: { tool: "bash" },
  agent_spawn: { subagent_type: "Engineer" },
  agent_complete: { call_id: "call_1" },
  model_request: { call_id: "call_1" },
  model_response: { call_id: "call_1" },
  input_requested: { request_id: "request_1" },
  input_resolved: { request_id: "request_1" },
  retry: {},
  tool_blocked: {},
  security_block: {},
  security_warn: {},
  message_user: {},
  message_assistant: {},
  rating_explicit: {},
  rating_implicit: {},
  voice_sent: {},
  learning_captured: {},
  isc_validated: {},
  context_loaded: {},
} satisfies Record<string, Record<string, unknown>>;

type Type = keyof typeof MINIMAL;

function parse(type: Type, data: Record<string, unknown> = {}, rest = {}): TelemetryEvent {
  return parseEvent(
    { type, session_id: "s", data: { ...MINIMAL[type], ...data }, ...rest },
    RECEIVED,
  );
}

function dataOf(event: TelemetryEvent): Record<string, unknown> {
  return JSON.parse(event.data);
}

/** The message of the 400 that `run` is answered with. */
function refusal(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (error instanceof HttpError && error.status === 400) return error.message;
    throw error;
  }
  throw new Error("it was accepted");
}

/** `levels` objects, one in the other. */
function nested(levels: number): unknown {
  return levels === 0 ? 1 : { in: nested(levels - 1) };
}

describe("types", () => {
  test("the table in server.ts → exactly the documented types", () => {
    expect(Object.keys(EVENT_TYPES).sort()).toEqual(Object.keys(MINIMAL).sort());
  });

  test.each(Object.keys(MINIMAL) as Type[])("%s → accepted with the least it needs", (type) => {
    expect(parse(type)).toMatchObject({ type, session_id: "s", timestamp: RECEIVED });
  });

  test.each([
    ["tool_used"],
    ["Tool_Use"],
    ["tool.execute"],
    [""],
    ["constructor"],
    ["toString"],
    ["__proto__"],
    [null],
    [undefined],
    [7],
    [["tool_use"]],
    [{}],
  ])("type %j → 400 with the accepted ones", (type) => {
    const message = refusal(() => parseEvent({ type, session_id: "s" }, RECEIVED));
    expect(message).toStartWith("type: expected one of ");
    for (const accepted of Object.keys(MINIMAL)) expect(message).toContain(accepted);
  });

  test.each([[null], [[]], ["session_start"], [17], [true]])(
    "an event that is %j → 400: expected a JSON object",
    (body) => {
      expect(refusal(() => parseEvent(body, RECEIVED))).toStartWith(
        "event: expected a JSON object; got ",
      );
    },
  );
});

describe("fields", () => {
  const LONG = "x".repeat(257);
  const A_NAME = "a string of 1 to 256 characters; ";
  const AN_ID = 'a string of 1 to 256 characters, other than "." and ".."; ';
  const ANY_TYPE: Type[] = ["session_start", "tool_use", "rating_explicit"];
  const FACTS: Type[] = ["session_start", "session_update", "session_end"];
  const CALLS: Type[] = ["tool_use", "agent_spawn", "agent_complete"];
  const MODELS: Type[] = ["model_request", "model_response"];
  const TIMED: Type[] = [...CALLS, "model_response"];
  const ENDS: Type[] = [...TIMED, "input_resolved"];
  const INPUTS: Type[] = ["input_requested", "input_resolved"];

  /** Types, field, bad values, and what the message says was expected. */
  const BAD: [types: Type[], field: string, values: unknown[], expected: string][] = [
    [["tool_start", "tool_use"], "tool", [null, undefined, "", 5, {}, LONG], A_NAME],
    [["agent_spawn"], "subagent_type", [null, undefined, "", 5, LONG], A_NAME],
    [["agent_complete"], "subagent_type", ["", 5, LONG], A_NAME],
    [CALLS, "call_id", ["", 5, [], LONG], A_NAME],
    [["tool_start", ...MODELS], "call_id", [null, undefined, "", 5, [], LONG], A_NAME],
    [TIMED, "duration_ms", [-1, "150", NaN, Infinity, 1e308, {}, true], "a number from 0 to"],
    [["tool_use"], "waited_ms", [-1, "150", Infinity, 1e308], "a number from 0 to"],
    [["tool_use"], "exit_code", ["1", {}, NaN], "a number"],
    [["tool_use"], "files", ["a.ts", {}], "an array"],
    [ENDS, "success", ["true", 1, {}], "true or false"],
    [ENDS, "outcome", ["fine", "OK", 0, true, {}], "one of ok, failed, exit, denied, cancelled"],
    [["agent_spawn"], "description", [5, {}], "a string"],
    [["agent_spawn"], "prompt", [5, {}, ["do it"]], "a string"],
    [["agent_spawn", "agent_complete"], "child_session_id", [5, "", LONG], A_NAME],
    [MODELS, "model", [5, "", { id: "opus" }, LONG], A_NAME],
    [MODELS, "provider", [5, {}], "a string"],
    [MODELS, "agent", [5, {}], "a string"],
    [["model_response"], "first_token_ms", [-1, "5"], "a number from 0 to"],
    [["model_response"], "tokens", ["300", ["1"], true, Infinity], "a number or an object"],
    [["model_response"], "cost", ["1", {}, -0.01, NaN, 1e7], "a number of US dollars from 0 to"],
    [["model_response"], "finish_reason", [5, {}], "a string"],
    [["model_response"], "context_limit", ["200k", {}], "a number"],
    [["retry"], "attempt", ["1", {}], "a number"],
    [["retry"], "message", [5, {}], "a string"],
    [["retry"], "retry_at", ["soon", "2026-01-01T12:00:00", 0, {}], "ISO 8601 with an offset"],
    [["turn_start"], "prompt", [5, {}], "a string"],
    [["turn_start"], "agent", [5, {}], "a string"],
    [["turn_start"], "model", [5, ["opus"]], "a string or an object"],
    [FACTS, "title", [5, {}, []], "a string"],
    [FACTS, "directory", [5, {}], "a string"],
    [FACTS, "agent", [5, {}], "a string"],
    [FACTS, "model", [5, ["opus"]], "a string or an object"],
    [FACTS, "parent_session_id", [5, "", LONG], A_NAME],
    [FACTS, "tokens", ["300", ["1"], true, Infinity], "a number or an object"],
    [FACTS, "cost", ["0.02", {}, NaN, Infinity], "a number"],
    [FACTS, "todos", ["none", {}], "an array"],
    [FACTS, "changes", [5, []], "an object"],
    [FACTS, "sender", [5, "", LONG], A_NAME],
    [["session_end"], "reason", [5, {}], "a string"],
    [["session_end"], "duration_seconds", ["300", -1, 1e308], "a number from 0 to"],
    [INPUTS, "request_id", [null, undefined, "", 5, LONG], A_NAME],
    [INPUTS, "kind", [5, {}], "a string"],
    [["input_requested"], "call_id", [5, "", LONG], A_NAME],
  ];
  const badRows = BAD.flatMap(([types, field, values, expected]) =>
    types.flatMap((type) => values.map((value) => ({ type, field, value, expected }))),
  );

  test.each(badRows)(
    "$type with data.$field = $value → 400",
    ({ type, field, value, expected }) => {
      const message = refusal(() => parse(type, { [field]: value }));
      expect(message).toStartWith(`data.${field}: expected ${expected}`);
    },
  );

  const BAD_SESSION_IDS = [null, undefined, "", ".", "..", 5, {}, LONG];
  test.each(ANY_TYPE.flatMap((type) => BAD_SESSION_IDS.map((id) => [type, id])))(
    "%s with session_id %j → 400",
    (type, session_id) => {
      expect(refusal(() => parseEvent({ type, session_id }, RECEIVED))).toStartWith(
        `session_id: expected ${AN_ID}`,
      );
    },
  );

  const BAD_IDS = ["", ".", "..", true, {}, LONG, 0, -5, 1.5, 2 ** 53, NaN];
  test.each(BAD_IDS.map((id) => [id]))("id %j → 400", (id) => {
    expect(refusal(() => parse("session_start", {}, { id }))).toStartWith(
      `id: expected ${AN_ID}got `,
    );
  });

  test.each([
    ["17", "17"],
    [17, "17"],
    [1767265200000001, "1767265200000001"],
    [Number.MAX_SAFE_INTEGER, "9007199254740991"],
  ])("id %j, a text or a number as the export has → that of the client, %j", (id, expected) => {
    expect(parse("session_start", {}, { id }).client_id).toBe(expected);
  });

  test.each([["text"], [[]], [5], [true]])("data %j → 400", (data) => {
    expect(refusal(() => parse("session_start", {}, { data }))).toStartWith(
      "data: expected a JSON object; got ",
    );
  });

  test("an agent_complete without call_id and subagent_type → 400: whose end?", () => {
    expect(refusal(() => parse("agent_complete", { call_id: undefined }))).toStartWith(
      "data.call_id: expected ",
    );
  });

  test("an id of 10 KB → 400 with its length, not with all of it", () => {
    const message = refusal(() => parse("session_start", {}, { id: "x".repeat(10_240) }));
    expect(message).toContain("10240 characters");
    expect(message.length).toBeLessThan(200);
  });

  test("ids and names of 256 characters → accepted whole", () => {
    const name = "ü".repeat(256);
    expect(
      parse("tool_use", { tool: name, call_id: name }, { id: name, session_id: name }),
    ).toMatchObject({ client_id: name, session_id: name, name, call_id: name });
  });

  test("no data, and null for every field that is not required → the same as absent", () => {
    const bare = { type: "session_start", session_id: "s" };
    const { data: _, ...expected } = parseEvent(bare, RECEIVED);
    const nulls = {
      ...bare,
      id: null,
      timestamp: null,
      data: { title: null, cost: null, tokens: null, model: null },
    };
    expect(parseEvent(nulls, RECEIVED)).toMatchObject({ ...expected, fields: nulls.data });
    expect(parseEvent({ ...bare, data: null }, RECEIVED).data).toBe("{}");
  });

  test("a tool_use with everything → the columns of the log, and the data as posted", () => {
    const data = {
      tool: "bash",
      args: { command: "ls" },
      duration_ms: 150,
      call_id: "call_1",
      success: false,
      error: "exit code 1",
    };
    const event = parse("tool_use", data, { id: "e1", timestamp: "2026-01-01T11:59:00Z" });
    expect({ ...event, data: dataOf(event) }).toEqual({
      client_id: "e1",
      session_id: "s",
      type: "tool_use",
      timestamp: RECEIVED - 60_000,
      name: "bash",
      call_id: "call_1",
      duration_ms: 150,
      failed: true,
      facts: {},
      fields: data,
      data,
    });
  });

  test.each([
    ["a string", '{"command": "ls"}'],
    ["an object", { command: "ls" }],
    ["an array", ["ls", "-l"]],
    ["a number", 1e308],
    ["null", null],
  ])("args that are %s → kept as they are", (_, args) => {
    expect(dataOf(parse("tool_use", { args })).args).toEqual(args);
  });

  test.each([
    [0, 0],
    [150.4, 150],
    [150.5, 151],
    [1e12, 1e12],
  ])("duration_ms %d → %d: whole milliseconds", (duration_ms, expected) => {
    expect(parse("tool_use", { duration_ms }).duration_ms).toBe(expected);
  });

  test("a session_end with duration_seconds → its duration in milliseconds", () => {
    expect(parse("session_end", { duration_seconds: 300 }).duration_ms).toBe(300_000);
  });

  test("cost 1e308 → kept: it is a number", () => {
    expect(parse("session_update", { cost: 1e308 }).facts).toEqual({ cost: 1e308 });
  });

  test.each<[type: Type, data: Record<string, unknown>, failed: boolean]>([
    ["tool_use", {}, false],
    ["tool_use", { success: true }, false],
    ["tool_use", { success: false }, true],
    ["tool_use", { error: "exit code 1" }, true],
    ["tool_use", { error: null }, false],
    ["tool_use", { error: "" }, false],
    ["tool_use", { error: false }, false],
    ["tool_use", { success: true, error: "a warning on stderr" }, false],
    ["agent_complete", { success: false }, true],
    ["agent_spawn", { error: { name: "Aborted" } }, true],
    ["session_error", {}, true],
    ["session_start", {}, false],
  ])("%s with %j → failed: %p", (type, data, failed) => {
    expect(parse(type, data).failed).toBe(failed);
  });

  test.each<[type: Type, facts: boolean]>([
    ["session_start", true],
    ["session_update", true],
    ["session_end", true],
    ["message_user", false],
    ["context_loaded", false],
  ])("%s with a title → says a fact of its session: %p", (type, says) => {
    expect(parse(type, { title: "Fix it" }).facts).toEqual(says ? { title: "Fix it" } : {});
  });
});

describe("timestamps", () => {
  test.each<[value: unknown, expected: string]>([
    [undefined, "2026-01-01T12:00:00.000Z"],
    [null, "2026-01-01T12:00:00.000Z"],
    ["2026-01-01T11:00:00Z", "2026-01-01T11:00:00.000Z"],
    ["2026-01-01T11:00Z", "2026-01-01T11:00:00.000Z"],
    ["2026-01-01T11:00:00.123Z", "2026-01-01T11:00:00.123Z"],
    ["2026-01-01T11:00:00.123987Z", "2026-01-01T11:00:00.123Z"],
    ["2026-01-01T12:00:00+01:00", "2026-01-01T11:00:00.000Z"],
    ["2026-01-01T12:00:00+0100", "2026-01-01T11:00:00.000Z"],
    ["2025-12-31T23:30:00-05:30", "2026-01-01T05:00:00.000Z"],
    [1767265200, "2026-01-01T11:00:00.000Z"],
    [1767265200.25, "2026-01-01T11:00:00.250Z"],
    [1767265200250, "2026-01-01T11:00:00.250Z"],
    [1767265200250.9, "2026-01-01T11:00:00.250Z"],
    [1, "1970-01-01T00:00:01.000Z"],
    // Later than receipt: clamped to it.
    ["2026-01-01T12:00:00.001Z", "2026-01-01T12:00:00.000Z"],
    ["2099-01-01T00:00:00Z", "2026-01-01T12:00:00.000Z"],
    [4070908800, "2026-01-01T12:00:00.000Z"],
    [4070908800000, "2026-01-01T12:00:00.000Z"],
  ])("%j → %s", (timestamp, expected) => {
    const event = parse("session_start", {}, { timestamp });
    expect(new Date(event.timestamp).toISOString()).toBe(expected);
  });

  test.each([
    ["2026-01-01T12:00:00"],
    ["2026-01-01"],
    ["2026-13-01T12:00:00Z"],
    ["2026-02-30T12:00:00Z"],
    ["2025-02-29T12:00:00Z"],
    ["2026-04-31T12:00:00+02:00"],
    ["yesterday"],
    ["1767265200"],
    ["2026-01-01T12:00:00Z; DROP TABLE events"],
    [""],
    [0],
    [-1],
    [1e308],
    [8.64e15 + 1],
    [NaN],
    [true],
    [{}],
    [[1767265200]],
  ])("%j → 400", (timestamp) => {
    expect(refusal(() => parse("session_start", {}, { timestamp }))).toStartWith(
      "timestamp: expected ISO 8601 with an offset",
    );
  });
});

describe("what is kept", () => {
  test("unknown fields of data → kept as they are", () => {
    const extra = { reason: "tired", nested: { deep: [1, { two: null }] }, "": "no name" };
    expect(dataOf(parse("session_end", extra))).toEqual(extra);
  });

  test("unknown fields beside data → kept in it, where data doesn't have them itself", () => {
    const event = parse("message_user", { text: "data's" }, { text: "top", host: "box" });
    expect(dataOf(event)).toEqual({ text: "data's", host: "box" });
  });

  test("a flat post without data → its fields are checked and kept like data's", () => {
    const flat = { type: "tool_use", session_id: "s", tool: "bash", duration_ms: 5 };
    expect(parseEvent(flat, RECEIVED)).toMatchObject({ name: "bash", duration_ms: 5 });
    expect(refusal(() => parseEvent({ ...flat, tool: 5 }, RECEIVED))).toStartWith("data.tool: ");
  });

  test("fields of data with a name of the envelope → kept as data_<name>", () => {
    const data = { id: 1, type: "cat", session_id: [2], timestamp: null, own: true };
    const event = parse("message_user", data, { id: "e1" });
    expect(event).toMatchObject({ client_id: "e1", type: "message_user", session_id: "s" });
    expect(dataOf(event)).toEqual({
      data_id: 1,
      data_type: "cat",
      data_session_id: [2],
      data_timestamp: null,
      own: true,
    });
  });

  test("__proto__ and constructor keys → data like any other, no prototype is touched", () => {
    const text = `{"type":"tool_use","session_id":"s","__proto__":{"type":"x","top":1},
      "data":{"tool":"bash","__proto__":{"polluted":true,"success":false},
              "constructor":{"prototype":{"polluted":true}}}}`;
    const event = parseEvent(JSON.parse(text), RECEIVED);
    expect(event).toMatchObject({ type: "tool_use", name: "bash", failed: false });
    expect(event.data).toContain('"__proto__":{"polluted":true,"success":false}');
    expect(event.data).toContain('"constructor":{"prototype":{"polluted":true}}');
    expect({}).not.toHaveProperty("polluted");
    expect(Object.getPrototypeOf(event)).toBe(Object.prototype);
  });

  test("a required field that only a __proto__ key has → 400: nothing is inherited", () => {
    const text = '{"type":"tool_use","session_id":"s","data":{"__proto__":{"tool":"bash"}}}';
    expect(refusal(() => parseEvent(JSON.parse(text), RECEIVED))).toStartWith("data.tool: ");
  });

  test("lone surrogates → refused in ids, well-formed in names, escaped in data", () => {
    for (const envelope of [{ session_id: "a\ud800" }, { id: "\udc00" }])
      expect(refusal(() => parse("message_user", {}, envelope))).toMatch(/^(session_id|id): /);
    const event = parse("tool_use", { tool: "\ud800x", note: "\udc00" });
    expect(event).toMatchObject({ name: "\ufffdx" });
    expect(event.data.isWellFormed()).toBe(true);
    expect(dataOf(event).note).toBe("\udc00");
  });

  test("64 levels of nesting → accepted; 65 → 400", () => {
    // The event and its data are the first two.
    const deepest = { in: nested(62) };
    expect(dataOf(parse("message_user", deepest))).toEqual(deepest);
    expect(refusal(() => parse("message_user", { in: nested(63) }))).toBe(
      "event: nested deeper than 64 levels",
    );
  });
});
