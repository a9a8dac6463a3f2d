/** Rows as the server sends them, for the tests of the dashboard. */

import type { Session, Span } from "../server.ts";

export const NOW = Date.parse("2026-01-01T12:00:00Z");

export const iso = (ms: number) => new Date(ms).toISOString();

/** A session that began NOW and goes on. */
export function sessionRow(id: string, more: Partial<Session> = {}): Session {
  return {
    id,
    started_at: iso(NOW),
    ended_at: null,
    status: "active",
    stale_at: null,
    is_lost: false,
    tool_count: 0,
    agent_count: 0,
    event_count: 1,
    error_count: 0,
    is_excused: false,
    last_event_at: iso(NOW),
    waiting_since: null,
    parent_session_id: null,
    info: {},
    now: null,
    cost: { own: null, total: null },
    tokens: { own: null, total: null },
    turn_count: 1,
    working_since: null,
    worked_ms: 0,
    ...more,
  };
}

/** A tool call of the session s1, at the moment NOW. */
export function spanRow(id: number, more: Partial<Span> = {}): Span {
  return {
    id,
    session_id: "s1",
    kind: "tool",
    name: "bash",
    call_id: null,
    started_at: iso(NOW),
    ended_at: iso(NOW),
    duration_ms: null,
    waited_ms: null,
    outcome: "ok",
    text: null,
    error: null,
    child_session_id: null,
    tokens: null,
    cost: null,
    attributes: null,
    ...more,
  };
}
