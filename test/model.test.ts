/** The slow model itself, by a few examples that are worked out by hand. */

import { expect, test } from "bun:test";
import { answers, type LoggedEvent, type SessionAnswer, type SpanAnswer } from "./model.ts";

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
const START = Date.parse("2026-03-01T12:00:00Z");

type Told = [type: string, minute: number, data?: Record<string, unknown>, session_id?: string];

/** What is answered about `events`, in the order in which they were stored, `hours` after the first minute. */
function answer(events: Told[], hours = 0.75) {
  const log = events.map(([type, minute, data = {}, session_id = "s"], index): LoggedEvent => ({
    id: index + 1,
    client_id: null,
    session_id,
    type,
    timestamp: START + minute * MINUTE_MS,
    data,
  }));
  const { sessions, spans } = answers(log, START + hours * HOUR_MS);
  const session = (id: string): Partial<SessionAnswer> =>
    sessions.find((row) => row.id === id) ?? {};
  const span = (id: number): Partial<SpanAnswer> => spans.find((row) => row.id === id) ?? {};
  return { session, span, spans };
}

const at = (minute: number) => new Date(START + minute * MINUTE_MS).toISOString();

test("an end that comes before its start → one span, with the length between them", () => {
  const { span, spans } = answer([
    ["tool_use", 3, { tool: "bash", call_id: "c" }],
    ["tool_start", 1, { tool: "bash", call_id: "c", args: "ls" }],
  ]);
  expect(spans.length).toBe(1);
  expect(span(1)).toMatchObject({
    started_at: at(1),
    ended_at: at(3),
    duration_ms: 2 * MINUTE_MS,
    outcome: "ok",
    text: "ls",
  });
});

test("completions without a call_id → end the agents of their type, the longest-running first", () => {
  const { span } = answer([
    ["agent_complete", 5, { subagent_type: "a" }],
    ["agent_spawn", 2, { subagent_type: "a" }],
    ["agent_spawn", 1, { subagent_type: "a" }],
    ["agent_spawn", 0, { subagent_type: "b" }],
    ["agent_complete", 1, { subagent_type: "a" }],
  ]);
  expect(span(3)).toMatchObject({ ended_at: at(1), duration_ms: 0 });
  expect(span(2)).toMatchObject({ ended_at: at(5), duration_ms: 3 * MINUTE_MS });
  expect(span(4)).toMatchObject({ ended_at: null, outcome: null });
});

test("a failed agent, its call and its child session's own errors → one error", () => {
  const { session } = answer([
    ["tool_use", 2, { tool: "task", call_id: "c", success: false }],
    ["agent_spawn", 0, { subagent_type: "a", call_id: "c", child_session_id: "child" }],
    ["agent_complete", 2, { call_id: "c", outcome: "failed" }],
    ["session_error", 1, {}, "child"],
    ["model_response", 1, { call_id: "m", outcome: "failed" }, "child"],
  ]);
  expect(session("s")).toMatchObject({ error_count: 1, is_excused: false });
  expect(session("child")).toMatchObject({ error_count: 0, is_excused: true });
});

test("turns → cut by their starts and by the session's ends, without the pauses", () => {
  const { session } = answer([
    ["turn_start", 0],
    ["message_user", 1],
    ["session_end", 3],
    ["session_update", 4],
    ["turn_start", 10],
    ["message_user", 12],
    ["turn_start", 15],
    ["session_update", 16],
  ]);
  expect(session("s")).toMatchObject({
    ...{ turn_count: 3, worked_ms: 9 * MINUTE_MS, status: "active" },
    working_since: at(15),
  });
});

test.each([
  ["message_user", 0.99, "active"],
  ["message_user", 1, "stale"],
  ["tool_start", 23, "active"],
  ["tool_start", 24, "stale"],
])("the last was %s, %p hours ago → %s", (type, hours, status) => {
  const { session, span } = answer([[type, 0, { tool: "bash", call_id: "c" }]], hours);
  expect<string | undefined>(session("s").status).toBe(status);
  if (hours === 24)
    expect(span(1)).toMatchObject({ outcome: "cancelled", duration_ms: 24 * HOUR_MS });
});
