/** Who needs the person, without a browser: rows in; sessions, causes and reasons out. */

import { expect, test } from "bun:test";
import { needsOf } from "../dashboard/attention.ts";
import { createRows, takeSession, takeSpan } from "../dashboard/rows.ts";
import type { Session, Span } from "../server.ts";
import { NOW, iso, sessionRow, spanRow } from "./rows.ts";

const MINUTE_MS = 60_000;
const ago = (minutes: number) => iso(NOW - minutes * MINUTE_MS);

function needs(sessions: Record<string, Partial<Session>>, spans: Partial<Span>[] = []): string[] {
  const rows = createRows();
  for (const [id, session] of Object.entries(sessions))
    takeSession(rows, sessionRow(id, session), 1);
  for (const [index, span] of spans.entries()) takeSpan(rows, spanRow(index + 1, span), 1);
  const usual = new Map([["bash", 8 * MINUTE_MS] as const, ["read", 100] as const]);
  return needsOf(rows, usual, NOW).map(({ session, root, cause, since, text }) => {
    const minutes = (NOW - since) / MINUTE_MS;
    return `${root.entry.row.id}/${session.row.id} ${cause} ${minutes} m: ${text}`;
  });
}

const call = (name: string, minutes: number, more: Partial<NonNullable<Session["now"]>> = {}) => ({
  last_event_at: ago(minutes),
  now: { kind: "tool", name, text: null, started_at: ago(minutes), ...more } as Session["now"],
});
const ended = (minutes: number, info: Session["info"]): Partial<Session> => ({
  status: "completed",
  last_event_at: ago(minutes),
  info,
});

test.each<[string, Partial<Session>, Partial<Span>[], string | null]>([
  ["that goes on", { last_event_at: ago(4) }, [], null],
  [
    "that waits",
    { waiting_since: ago(2) },
    [{ kind: "wait", text: "rm -rf dist", ended_at: null }],
    "waiting 2 m: Asks: rm -rf dist",
  ],
  ["that waits, for what isn't told", { waiting_since: ago(2) }, [], "waiting 2 m: Waits for you"],
  [
    "that is refused",
    call("", 1, { kind: "retry", name: null, text: "Rate limited", attempt: 2 }),
    [],
    "retrying 1 m: Attempt 2: Rate limited",
  ],
  [
    "that is lost",
    { status: "stale", is_lost: true, stale_at: ago(3) },
    [],
    "lost 3 m: Lost contact 3 m ago",
  ],
  ["lost yesterday", { status: "stale", is_lost: true, stale_at: ago(13 * 60) }, [], null],
  ["stale without a sender", { status: "stale", stale_at: ago(3) }, [], null],
  ["without a word for 5 minutes", { last_event_at: ago(5) }, [], "silent 5 m: Silent"],
  [
    "whose model has thought for 6 minutes",
    call("opus", 6, { kind: "model" }),
    [],
    "silent 6 m: Silent: opus thinks",
  ],
  ["whose call is usual", call("bash", 7), [], null],
  [
    "whose call takes longer than usual",
    call("bash", 8),
    [],
    "silent 8 m: Slow, usually under 8 m 00 s: bash",
  ],
  [
    "whose call has waited for the person",
    call("bash", 9),
    [{ kind: "wait", started_at: ago(9), ended_at: ago(2) }],
    null,
  ],
  [
    "whose call runs an agent: its usual time is told without that",
    call("read", 4),
    [{ kind: "agent", started_at: ago(4), ended_at: null }],
    null,
  ],
  ["whose call takes under a minute", call("read", 0.9), [], null],
  ["whose call is of an unknown tool", call("new", 4), [], null],
  ["that was done", ended(1, { reason: "completed" }), [{ outcome: "failed" }], null],
  ["that was stopped", ended(1, { reason: "interrupted" }), [{ outcome: "failed" }], null],
  ["that ended with an error", ended(1, { reason: "error" }), [], "failed 1 m: Failed: no reason"],
  [
    "whose latest outcome failed",
    ended(1, {}),
    [
      { outcome: "ok", ended_at: ago(3) },
      { kind: "model", outcome: "failed", error: "no\ncredit", ended_at: ago(2) },
    ],
    "failed 1 m: Failed: no credit",
  ],
  [
    "that went on after a failure",
    ended(1, {}),
    [
      { outcome: "failed", ended_at: ago(3) },
      { kind: "model", ended_at: ago(2) },
    ],
    null,
  ],
  ["whose last command had another exit code", ended(1, {}), [{ outcome: "exit" }], null],
  ["failed yesterday", ended(13 * 60, { reason: "error" }), [], null],
])("a session %s", (_, session, spans, expected) => {
  expect(needs({ s1: session }, spans)).toEqual(expected === null ? [] : [`s1/s1 ${expected}`]);
});

test("the most urgent first, then the oldest; an agent lifts the session at the top", () => {
  const below = (parent_session_id: string) => ({ parent_session_id });
  const list = needs({
    failed: ended(60, { reason: "error" }),
    silent: { last_event_at: ago(9) },
    // It waits for its agent, and hears of a failure of its.
    busy: call("bash", 30),
    agent: { ...below("busy") },
    nested: { ...below("agent"), waiting_since: ago(1) },
    broken: { ...ended(1, { reason: "error" }), ...below("busy") },
    also: { waiting_since: ago(2) },
  });
  expect(list.map((line) => line.split(":")[0])).toEqual([
    "also/also waiting 2 m",
    "busy/nested waiting 1 m",
    "silent/silent silent 9 m",
    "failed/failed failed 60 m",
  ]);
});
