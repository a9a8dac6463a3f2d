/** What the dashboard knows and says, without a browser: rows in, what is shown out. */

import { describe, expect, spyOn, test } from "bun:test";
import { hashOf, routeOf } from "../dashboard/address.ts";
import {
  EVENT_TYPES as LISTED_TYPES,
  type FeedFilter,
  NO_FILTER,
  type TelemetryEvent,
  argsSummary,
  keyOfThing,
  matchesFilter,
  mergedThing,
  readEvent,
  thingsOf,
  wordsOf,
} from "../dashboard/events.ts";
import {
  formatAge,
  formatCost,
  formatCount,
  formatDay,
  formatDuration,
  formatTime,
  formatTimeOrDay,
} from "../dashboard/format.ts";
import { createHistory } from "../dashboard/history.ts";
import {
  MAX_FEED_EVENTS,
  MAX_SESSIONS,
  MAX_SPANS,
  type Rows,
  barOf,
  createRows,
  doingOf,
  hasFailed,
  isWhole,
  labelOf,
  spansOf,
  statusOf,
  takeEvent,
  takeMarks,
  takeFrame,
  takeSession,
  takeSpan,
  takeSpanPage,
} from "../dashboard/rows.ts";
import { createCursor } from "../dashboard/stream.ts";
import { needsOf } from "../dashboard/attention.ts";
import { shortPath } from "../dashboard/format.ts";
import { countOf, familyOf, sessionList, treeOf } from "../dashboard/tree.ts";
import { contextOf, failuresOf, filesOf, turnsOf } from "../dashboard/turns.ts";
import { EVENT_TYPES, type Session, type Span } from "../server.ts";
import { NOW, iso, sessionRow, spanRow } from "./rows.ts";

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;

let lastId = 1_000;

function event(
  type: string,
  data: Record<string, unknown> = {},
  at = NOW,
  session_id = "s1",
): TelemetryEvent {
  const read = readEvent({ id: ++lastId, type, session_id, timestamp: iso(at), ...data });
  if (read === null) throw new Error(`not an event: ${type}`);
  return read;
}

function rowsWith(...sessions: (Partial<Session> & { id: string })[]): Rows {
  const rows = createRows();
  for (const session of sessions) takeSession(rows, sessionRow(session.id, session), 1);
  return rows;
}

function entryOf(rows: Rows, id: string) {
  const entry = rows.sessions.get(id);
  if (entry === undefined) throw new Error(`${id} is missing`);
  return entry;
}

test("EVENT_TYPES lists what the server accepts", () => {
  expect<string[]>(LISTED_TYPES.toSorted()).toEqual(Object.keys(EVENT_TYPES).toSorted());
});

test("what failed in a session and below it, the latest first: as many as the server counts", () => {
  const rows = rowsWith(
    { id: "s1", status: "completed" },
    { id: "kid", parent_session_id: "s1", is_excused: true, info: { reason: "error" } },
    { id: "other" },
  );
  takeSession(rows, sessionRow("kid", { ...entryOf(rows, "kid").row, status: "completed" }), 2);
  const failed = (id: number, session_id: string, more: Partial<Span> = {}) =>
    takeSpan(
      rows,
      spanRow(id, { session_id, started_at: iso(NOW + id), outcome: "failed", ...more }),
      1,
    );
  failed(1, "s1", { outcome: "exit" });
  failed(2, "s1", { kind: "agent", call_id: "c", child_session_id: "kid" });
  failed(3, "s1", { call_id: "c" }); // the agent's own call
  failed(4, "kid");
  failed(5, "kid", { kind: "model" }); // why the agent has failed
  failed(6, "other");
  failed(7, "s1", { outcome: "denied" });
  const ids = (id: string) => failuresOf(rows, id).map(({ row }) => row.id);
  expect(ids("s1")).toEqual([4, 2, 1]);
  expect(ids("kid")).toEqual([5, 4]); // on its own page its own failure, too
  expect(statusOf(entryOf(rows, "kid"))).toBe("failed");
  expect(statusOf(entryOf(rows, "s1"))).toBe("completed");
});

describe("readEvent → null for what is no event", () => {
  test.each([
    [null],
    ["text"],
    [[]],
    [{}],
    [{ id: 1, type: "nonsense", session_id: "s", timestamp: "2026-01-01T12:00:00Z" }],
    [{ id: 1, type: "toString", session_id: "s", timestamp: "2026-01-01T12:00:00Z" }],
    [{ id: "1", type: "tool_use", session_id: "s", timestamp: "2026-01-01T12:00:00Z" }],
    [{ id: 1, type: "tool_use", session_id: "s", timestamp: "noon" }],
  ])("%j", (raw) => {
    expect(readEvent(raw)).toBeNull();
  });
});

describe("the newest row wins", () => {
  test("a row of an older version changes nothing, one of the same or a newer one does", () => {
    const rows = createRows();
    const seen = (tool_count: number, version: number) => {
      takeSession(rows, sessionRow("s1", { tool_count }), version);
      return entryOf(rows, "s1").row.tool_count;
    };
    expect([seen(5, 50), seen(4, 40), seen(6, 50), seen(7, 51)]).toEqual([5, 5, 6, 7]);
    takeSpan(rows, spanRow(1, { ended_at: iso(NOW + 9) }), 50);
    takeSpan(rows, spanRow(1, { ended_at: null }), 49);
    expect(rows.spans.get(1)?.end).toBe(NOW + 9);
  });

  test("a deleted session goes with its spans and its events, and a late answer doesn't bring it back", () => {
    const rows = rowsWith({ id: "s1" }, { id: "s2" });
    takeSpan(rows, spanRow(1), 10);
    takeSpan(rows, spanRow(2, { session_id: "s2" }), 10);
    takeEvent(rows, event("tool_use", { tool: "a" }));
    const kept = event("session_error", {}, NOW, "s2");
    takeEvent(rows, kept);
    takeFrame(rows, { type: "session_deleted", data: '{"session_id":"s1"}', id: kept.id });
    expect([...rows.sessions.keys()]).toEqual(["s2"]);
    expect([...rows.spans.keys()]).toEqual([2, kept.id]);
    expect(rows.feed).toEqual([kept]);
    takeSession(rows, sessionRow("s1"), kept.id);
    takeSpan(rows, spanRow(1), kept.id);
    expect(rows.sessions.has("s1")).toBeFalse();
    expect(rows.spans.has(1)).toBeFalse();
    takeSession(rows, sessionRow("s1"), kept.id + 1);
    expect(rows.sessions.has("s1")).toBeTrue();
  });

  test("frames: rows have the version of the id before them; what is no event changes nothing", () => {
    const rows = createRows();
    const frame = (type: string, data: unknown, id: number) =>
      takeFrame(rows, { type, data: JSON.stringify(data), id });
    const told = event("tool_use", { tool: "a" });
    frame("tool_use", told.fields, told.id);
    frame("session", sessionRow("s1", { tool_count: 1 }), told.id);
    frame("span", spanRow(told.id), told.id);
    expect(rows.feed).toEqual([told]);
    expect(entryOf(rows, "s1")).toMatchObject({ version: told.id, row: { tool_count: 1 } });
    // The stream has come back and has sent no id yet: what it sends is newer than what it has sent.
    frame("session", sessionRow("s1", { tool_count: 2 }), 0);
    expect(entryOf(rows, "s1")).toMatchObject({ version: told.id, row: { tool_count: 2 } });
    const before = structuredClone(rows);
    for (const data of [null, 7, [], {}, "text"]) frame("tool_use", data, told.id + 1);
    expect(rows).toEqual(before);
  });
});

test("a stream that was cut goes on before the last batch, whose rows may not all have come", () => {
  const cursor = createCursor(10);
  const take = (type: string, id: number) => {
    cursor.take({ type, id });
    return cursor.resumeFrom();
  };
  expect([take("tool_use", 11), take("tool_use", 12), take("session", 12)]).toEqual([10, 10, 10]);
  expect([take("span", 12), take("tool_use", 13), take("session", 13)]).toEqual([10, 12, 12]);
  expect([take("session_deleted", 13), take("tool_use", 14)]).toEqual([12, 13]);
});

describe("spans", () => {
  test("a session's spans are in the order of their starts, also where a row moves one", () => {
    const rows = rowsWith({ id: "s1" });
    const at = (id: number, start: number) =>
      takeSpan(rows, spanRow(id, { started_at: iso(NOW + start), ended_at: iso(NOW + 99) }), 1);
    at(1, 10);
    at(2, 5);
    at(3, 20);
    at(1, 30);
    expect(spansOf(rows, "s1").tool.map(({ row }) => row.id)).toEqual([2, 3, 1]);
    expect(spansOf(rows, "nowhere").tool).toEqual([]);
  });

  test("they are bounded; the newest stay, and what is open, and those of the open page", () => {
    const rows = rowsWith({ id: "s0" }, { id: "page" });
    rows.family = new Set(["page"]);
    takeSpan(rows, spanRow(1, { session_id: "s0", kind: "agent", ended_at: null }), 1);
    takeSpan(rows, spanRow(2, { session_id: "page" }), 1);
    spansOf(rows, "s0"); // as if drawn: from then on each is put in its place
    const count = MAX_SPANS * 2;
    for (let id = 3; id < count; id++) {
      const time = iso(NOW + id);
      const row = { session_id: `s${id % 9}`, started_at: time, ended_at: time };
      takeSpan(rows, spanRow(id, row), 1);
      takeSession(rows, sessionRow(row.session_id), 1);
    }
    expect(rows.spans.size).toBeLessThanOrEqual(MAX_SPANS);
    expect(rows.spans.has(count - 1)).toBeTrue();
    expect([rows.spans.has(1), rows.spans.has(2), rows.spans.has(3)]).toEqual([true, true, false]);
    const kept = [...rows.sessions.keys()].flatMap((id) => Object.values(spansOf(rows, id)).flat());
    expect(kept).toHaveLength(rows.spans.size);
    expect(rows.coveredFrom).toBeGreaterThan(NOW);
    expect(rows.spans.has(rows.oldestSpanId - 1)).toBeFalse();
    expect(rows.spans.has(rows.oldestSpanId)).toBeTrue();
  });

  test("a page says from when on they are loaded; an empty one, that all are", () => {
    const later = { started_at: iso(NOW + MINUTE_MS), tool_count: 1 };
    const rows = rowsWith(
      { id: "s1", tool_count: 3 },
      { id: "s2", tool_count: 0 },
      { id: "s3", ...later },
    );
    takeSpanPage(rows, [spanRow(9, { ended_at: iso(NOW + 90) }), spanRow(7)], 10);
    expect(rows).toMatchObject({ oldestSpanId: 7, coveredFrom: NOW });
    expect(isWhole(rows, entryOf(rows, "s1"))).toBeFalse();
    expect(isWhole(rows, entryOf(rows, "s2"))).toBeTrue();
    // It began within what is covered, but late events of others have pushed its call off the page.
    expect(isWhole(rows, entryOf(rows, "s3"))).toBeFalse();
    takeSpanPage(rows, [], 10);
    expect(rows).toMatchObject({ oldestSpanId: 0, coveredFrom: 0 });
    expect(isWhole(rows, entryOf(rows, "s1"))).toBeTrue();
  });
});

test("sessions are bounded: those that ended longest ago go first, those that wait stay", () => {
  const rows = rowsWith(
    { id: "waits", waiting_since: iso(NOW - HOUR_MS), last_event_at: iso(NOW - HOUR_MS) },
    { id: "works", last_event_at: iso(NOW - HOUR_MS) },
  );
  for (let index = 0; index < MAX_SESSIONS; index++) {
    const last_event_at = iso(NOW + index);
    takeSession(rows, sessionRow(`s${index}`, { status: "completed", last_event_at }), 1);
  }
  expect(rows.sessions.size).toBeLessThanOrEqual(MAX_SESSIONS);
  const ids = ["waits", "works", "s0", `s${MAX_SESSIONS - 1}`];
  expect(ids.map((id) => rows.sessions.has(id))).toEqual([true, true, false, true]);
});

describe("the feed", () => {
  test("an event that is here already changes nothing; the latest are kept", () => {
    const rows = createRows();
    const told = event("tool_use", { tool: "a" });
    takeEvent(rows, told);
    takeEvent(rows, told);
    expect(rows.feed).toEqual([told]);
    for (let index = 0; index < MAX_FEED_EVENTS * 2; index++) takeEvent(rows, event("voice_sent"));
    expect(rows.feed.length).toBeLessThanOrEqual(MAX_FEED_EVENTS * 1.25);
    expect(rows.feed.at(-1)?.id).toBe(lastId);
  });

  test("what went wrong and is no call is marked in the timeline", () => {
    const rows = rowsWith({ id: "s1" });
    const page = [event("session_error", { error: "overloaded" }), event("message_user")];
    rows.feed = page;
    takeMarks(rows, page);
    takeEvent(rows, event("security_warn", { reason: "odd" }));
    expect(rows.feed.map(({ type }) => type)).toEqual([
      "session_error",
      "message_user",
      "security_warn",
    ]);
    expect(spansOf(rows, "s1").mark.map(({ row }) => [row.name, row.error, row.text])).toEqual([
      ["session_error", "overloaded", null],
      ["security_warn", null, "odd"],
    ]);
  });

  test("a call's line is red where its span failed: that of its end, not that of its start", () => {
    const rows = rowsWith({ id: "s1" });
    const begun = event("tool_start", { tool: "a", call_id: "c" }, NOW);
    const ended = event("tool_use", { tool: "a", call_id: "c", success: true }, NOW + 9);
    const alone = event("tool_use", { tool: "a", success: false }, NOW + 9);
    const row = { call_id: "c", ended_at: iso(NOW + 9), outcome: "failed" } as const;
    takeSpan(rows, spanRow(begun.id, row), lastId);
    takeSpan(rows, spanRow(alone.id, { ended_at: iso(NOW + 9), outcome: "ok" }), lastId);
    expect([begun, ended, alone].map((told) => hasFailed(rows, told))).toEqual([
      false,
      true,
      false,
    ]);
  });

  test.each<[string, Record<string, unknown>, boolean]>([
    ["tool_use", { error: false }, false],
    ["tool_use", { error: "exit 1" }, true],
    ["tool_use", { error: "a warning", success: true }, false],
    ["tool_use", { outcome: "denied", success: false }, false],
    ["agent_complete", { success: false }, true],
    ["message_user", {}, false],
    ["session_error", {}, true],
    ["tool_blocked", { reason: "rm -rf" }, true],
    ["security_block", {}, true],
    ["security_warn", {}, false],
  ])("without a span: %s %j → %p", (type, data, expected) => {
    expect(hasFailed(createRows(), event(type, { tool: "a", ...data }))).toBe(expected);
  });

  test("its filter: type, failures, session, text anywhere", () => {
    const call = event("tool_use", { tool: "mcp_bash", args: { x: "Needle" } });
    const all = { type: null, sessionId: null, text: "" } as const;
    const isMatch = (filter: object) => matchesFilter(call, { ...all, ...filter }, () => true);
    expect(isMatch({})).toBeTrue();
    expect(isMatch({ type: "failed", text: "BASH needle" })).toBeTrue();
    expect(matchesFilter(call, { ...all, type: "failed" }, () => false)).toBeFalse();
    expect(isMatch({ type: "agent_spawn" })).toBeFalse();
    expect(isMatch({ sessionId: "other" })).toBeFalse();
    expect(isMatch({ text: "haystack" })).toBeFalse();
  });
});

test("the feed: by time; of all sessions without their updates and the starts of agents", () => {
  const rows = rowsWith({ id: "s1" }, { id: "kid", parent_session_id: "s1" });
  const told = [
    ...[event("session_start"), event("agent_spawn", {}, NOW + 1)],
    ...[event("session_start", {}, NOW + 1, "kid"), event("session_update", {}, NOW + 1)],
    event("tool_use", {}, NOW + 9, "kid"),
    event("model_response", {}, NOW + 2), // told when its calls are over
    event("session_end", {}, NOW + 9, "kid"),
  ];
  for (const one of told) takeEvent(rows, one);
  const feed = (filter: Partial<FeedFilter>) =>
    createHistory(
      () => rows,
      () => ({ ...NO_FILTER, ...filter }),
      () => undefined,
    )
      .page(9, false)
      .things.map(([{ type }]) => type)
      .join(" ");
  expect(feed({})).toBe("tool_use model_response agent_spawn session_start");
  expect(feed({ sessionId: "kid" })).toBe("session_end tool_use session_start");
  expect(feed({ type: "session_update" })).toBe("session_update");
});

describe("the list of sessions", () => {
  const ids = (rows: Rows, text = "", open: string[] = []) =>
    sessionList(treeOf(rows), text, new Set(open), needsOf(rows, null, NOW)).flatMap(
      ({ session, group, depth, endedCount }) => [
        ...(group === null ? [] : [group]),
        `${"-".repeat(depth)}${session.row.id}${endedCount > 0 ? `+${endedCount}` : ""}`,
      ],
    );
  const at = (ms: number) => ({ started_at: iso(NOW + ms), last_event_at: iso(NOW + ms) });
  const below = { parent_session_id: "a" };
  const family = () =>
    rowsWith(
      { id: "a", ...at(0), info: { title: "Fix the login" } },
      { id: "b", ...at(5), info: { title: "Write notes" } },
      { id: "a1", ...at(6), ...below },
      { id: "a2", ...at(7), ...below, status: "completed" },
    );

  test("latest activity first, a child keeps its parent up; ended children are folded away", () => {
    expect(ids(family())).toEqual(["Running 2", "a+1", "-a1", "b"]);
    expect(ids(family(), "", ["a"])).toEqual(["Running 2", "a+1", "-a1", "-a2", "b"]);
  });

  test("a filter finds ended children too, and shows their parent", () => {
    expect(ids(family(), "A2")).toEqual(["Running 1", "a", "-a2"]);
    expect(ids(family(), "LOGIN")).toEqual(["Running 1", "a"]);
    expect(ids(family(), "nowhere")).toEqual([]);
  });

  test("what goes on below an ended session isn't folded away", () => {
    const rows = family();
    takeSession(rows, sessionRow("a21", { parent_session_id: "a2", ...at(8) }), 1);
    expect(ids(rows)).toEqual(["Running 2", "a", "-a1", "-a2", "--a21", "b"]);
  });

  test("who needs the person is on top, the oldest question first; then who runs, then who has ended", () => {
    const rows = family();
    const waits = (id: string, ms: number) => ({ id, ...at(0), waiting_since: iso(NOW + ms) });
    takeSession(rows, sessionRow("c", { status: "completed", ...at(9) }), 1);
    takeSession(rows, sessionRow("d", waits("d", -1)), 1);
    takeSession(rows, sessionRow("a21", { ...waits("a21", -2), parent_session_id: "a2" }), 1);
    const list = ["Attention 2", "a", "-a1", "-a2", "--a21", "d", "Running 1", "b", "Ended 1", "c"];
    expect(ids(rows)).toEqual(list);
  });

  test("sessions that name each other as parents are all shown, once, under the first of them", () => {
    const rows = rowsWith(
      { id: "y", ...at(1), parent_session_id: "x" },
      { id: "x", ...at(0), parent_session_id: "y" },
      { id: "z", ...at(2), parent_session_id: "z" },
      { id: "orphan", ...at(3), parent_session_id: "gone" },
    );
    expect(ids(rows)).toEqual(["Running 3", "orphan", "z", "x", "-y"]);
    for (const id of ["x", "y"]) expect([...familyOf(rows, id)].toSorted()).toEqual(["x", "y"]);
  });

  const COUNT = 2_000;
  test.each([
    ["chain", null],
    ["circle", `s${COUNT - 1}`],
  ])("a %s of 2,000 parents: all are shown, from one tree for a revision", (_, first) => {
    const rows = createRows();
    for (let index = 0; index < COUNT; index++) {
      const parent_session_id = index === 0 ? first : `s${index - 1}`;
      takeSession(rows, sessionRow(`s${index}`, { ...at(index), parent_session_id }), 1);
    }
    const lines = sessionList(treeOf(rows), "", new Set(), []);
    expect(lines).toHaveLength(COUNT);
    expect(lines.at(-1)).toMatchObject({ depth: COUNT - 1 });
    expect(familyOf(rows, "s0").size).toBe(COUNT);
    expect(treeOf(rows)).toBe(treeOf(rows));
    const before = treeOf(rows);
    takeSession(rows, sessionRow("s5", { ...at(5), status: "completed" }), 2);
    expect(treeOf(rows)).not.toBe(before);
  });
});

describe("words", () => {
  test("waiting is told apart from active; what it asks is the text of its oldest open wait", () => {
    const rows = rowsWith({ id: "s1", waiting_since: iso(NOW) }, { id: "s2", status: "stale" });
    const wait = (id: number, row: Partial<Span>) =>
      takeSpan(rows, spanRow(id, { kind: "wait", name: "permission", ...row }), 1);
    wait(1, { text: "answered" });
    wait(2, { text: "rm -rf dist", ended_at: null });
    wait(3, { text: "later", started_at: iso(NOW + 5), ended_at: null });
    expect(statusOf(entryOf(rows, "s1"))).toBe("waiting");
    expect(statusOf(entryOf(rows, "s2"))).toBe("stale");
    const question = (id: string) => doingOf(rows, entryOf(rows, id), NOW)?.text;
    expect(question("s1")).toBe("Asks: rm -rf dist");
    const now = { kind: "wait", name: "question", text: "Which?", started_at: iso(NOW) } as const;
    takeSession(rows, sessionRow("s2", { waiting_since: iso(NOW), now }), 1);
    expect(question("s2")).toBe("Asks: Which?");
  });

  const since = (seconds: number) => iso(NOW - seconds * 1_000);
  const active = { name: null, text: null, started_at: since(38) };
  test.each<[string, Partial<Session>, string | null]>([
    [
      "a command",
      {
        now: { ...active, kind: "tool", name: "bash", text: '{"command":"npm\\n test"}' },
      },
      "bash: npm test, 38 s",
    ],
    [
      "a long one",
      { now: { ...active, kind: "tool", name: "bash", started_at: since(252) } },
      "bash, 4 m 12 s",
    ],
    ["a model", { now: { ...active, kind: "model", name: "opus" } }, "opus thinks, 38 s"],
    [
      "an agent",
      { now: { ...active, kind: "agent", name: "explore", text: "Find it" } },
      "explore: Find it, 38 s",
    ],
    [
      "a retry",
      {
        now: { ...active, kind: "retry", text: "Rate limited", attempt: 3, retry_at: since(-6) },
      },
      "Rate limited, attempt 3, next try in 6 s",
    ],
    [
      "a retry that is due",
      { now: { ...active, kind: "retry", attempt: null, retry_at: since(1) } },
      "Retry, next try now",
    ],
    [
      "a retry without a time",
      { now: { ...active, kind: "retry", attempt: null, retry_at: null } },
      "Retry",
    ],
    [
      "a question",
      {
        waiting_since: since(9),
        now: { ...active, kind: "wait", name: "permission", text: "rm -rf dist" },
      },
      "Asks: rm -rf dist",
    ],
    [
      "a lost sender",
      { status: "stale", is_lost: true, stale_at: since(12) },
      "Lost contact 12 s ago",
    ],
    [
      "one lost just now",
      { status: "stale", is_lost: true, stale_at: since(1) },
      "Lost contact just now",
    ],
    ["silence", { status: "stale", stale_at: since(12) }, null],
    ["nothing", {}, null],
  ])("what a session does now: %s", (_, more, expected) => {
    const rows = rowsWith({ id: "s1", ...more });
    const doing = doingOf(rows, entryOf(rows, "s1"), NOW);
    expect(doing && [doing.text, doing.time].filter((word) => word !== null).join(", ")).toBe(
      expected,
    );
  });

  test("a model whose calls are over thinks no more, though its step goes on", () => {
    const now = { kind: "model", name: "opus", text: null, started_at: iso(NOW) } as const;
    const rows = rowsWith({ id: "s1", now });
    takeSpan(rows, spanRow(1, { started_at: iso(NOW - 1), ended_at: iso(NOW) }), 1);
    expect(doingOf(rows, entryOf(rows, "s1"), NOW)?.text).toBe("opus thinks");
    takeSpan(rows, spanRow(2, { started_at: iso(NOW + 1), ended_at: iso(NOW + 2) }), 1);
    expect(doingOf(rows, entryOf(rows, "s1"), NOW + 3)).toBeNull();
  });

  test("of several agents that run how many, and since when, until it does something else", () => {
    const doing = (now: Partial<NonNullable<Session["now"]>>) => {
      const task = { kind: "tool", name: "task", text: "Look", started_at: iso(NOW + 2_000) };
      const rows = rowsWith({ id: "s1", now: { ...task, ...now } as Session["now"] });
      for (const id of [1, 2, 3]) {
        const open = { started_at: iso(NOW + id * 1_000), ended_at: id < 3 ? null : iso(NOW) };
        takeSpan(rows, spanRow(id, { ...open, kind: "agent" }), 1);
      }
      return doingOf(rows, entryOf(rows, "s1"), NOW + 9_000);
    };
    expect(doing({})).toEqual({ text: "2 agents run", time: "8.0 s" });
    expect(doing({ name: "bash", started_at: iso(NOW + 4_000) })?.text).toBe("bash: Look");
  });

  test.each<[string, Record<string, unknown>, [string, string, string | null]]>([
    [
      "tool_use",
      { tool: "bash", outcome: "exit", exit_code: 1, error: "2 failed", args: { command: "t" } },
      ["bash", "exit 1: t", "2 failed"],
    ],
    ["tool_use", { tool: "x", outcome: "denied", args: "rm" }, ["x", "denied: rm", null]],
    ["model_response", { outcome: "cancelled", model: "m" }, ["Model", "cancelled: m", null]],
    ["agent_complete", { success: false, error: "lost" }, ["Agent finished", "failed", "lost"]],
    ["agent_spawn", { subagent_type: "explore", prompt: "Find" }, ["Find", "explore", null]],
    ["session_error", { error: "Overloaded" }, ["Session error", "", "Overloaded"]],
    ["turn_start", { prompt: "Mend it" }, ["Turn started", "Mend it", null]],
  ])("in words: %s %j", (type, data, expected) => {
    const { name, text, reason } = wordsOf(event(type, data));
    expect([name, text, reason]).toEqual(expected);
  });

  test("events as things: a call, an agent with its call, a question are one; sessions beside each other too", () => {
    const things = (types: [string, Record<string, unknown>?][], isQuiet = true) => {
      const events = types.toReversed().map(([type, data]) => event(type, data));
      return thingsOf(events, isQuiet).map((thing) => {
        const { type, fields } = mergedThing(thing);
        return `${thing.length} ${type} ${fields.title ?? fields.outcome ?? ""}`.trim();
      });
    };
    const call = { tool: "task", call_id: "c" };
    const spawned = [
      ["tool_start", call],
      ["agent_spawn", { call_id: "c", subagent_type: "a" }],
      ["tool_use", { ...call, outcome: "ok" }],
      ["agent_complete", { call_id: "c", outcome: "failed" }],
    ] satisfies [string, Record<string, unknown>][];
    expect(things(spawned)).toEqual(["4 agent_complete failed"]);
    const asked = { request_id: "r", call_id: "c" };
    const mixed = [
      ["model_request", { call_id: "c" }],
      ["input_requested", asked],
      ["input_resolved", asked],
      ["tool_use", { tool: "x" }],
      ["tool_use", { tool: "x" }],
    ] satisfies [string, Record<string, unknown>][];
    expect(things(mixed)).toEqual([
      "1 tool_use",
      "1 tool_use",
      "2 input_resolved",
      "1 model_request",
    ]);
    const sessions: [string][] = [["session_start"], ["session_update"], ["session_end"]];
    expect(things([...sessions, ...sessions])).toEqual(["6 session_end 2 ended, 2 started"]);
    expect(things(sessions, false)).toHaveLength(3);
    // Its line stays the same one when it ends.
    const begun = event("tool_start", call);
    expect(keyOfThing([event("tool_use", call), begun])).toBe(keyOfThing([begun]));
  });

  test("an event's bar: its span's, and the agent's where the call has spawned one", () => {
    const rows = rowsWith({ id: "s1" });
    takeSpan(rows, spanRow(1, { call_id: "c" }), 1);
    takeSpan(rows, spanRow(2, { call_id: "task" }), 1);
    takeSpan(rows, spanRow(3, { kind: "agent", call_id: "task" }), 1);
    const bar = (type: string, data: Record<string, unknown>) =>
      barOf(rows, event(type, data))?.row.id;
    expect(bar("tool_use", { call_id: "c" })).toBe(1);
    expect(bar("tool_use", { call_id: "task" })).toBe(3);
    expect(bar("agent_complete", { call_id: "task" })).toBe(3);
    expect(bar("tool_use", {})).toBeUndefined();
    expect(bar("turn_start", { call_id: "c" })).toBeUndefined();
    // One cause is one failure: the agent's.
    const failed = { call_id: "task", ended_at: iso(NOW), outcome: "failed" } as const;
    takeSpan(rows, spanRow(2, failed), 2);
    takeSpan(rows, spanRow(3, { ...failed, kind: "agent" }), 2);
    expect(hasFailed(rows, event("tool_use", { call_id: "task" }))).toBeFalse();
    expect(hasFailed(rows, event("agent_complete", { call_id: "task" }))).toBeTrue();
  });

  test("of a failed agent's session its own errors are no failures, what else failed there is", () => {
    const failures = (is_excused: boolean) => {
      const rows = rowsWith({ id: "s1", is_excused });
      const failed = { call_id: "c", ended_at: iso(NOW), outcome: "failed" } as const;
      takeSpan(rows, spanRow(1, { ...failed, kind: "model" }), 1);
      takeSpan(rows, spanRow(2, failed), 1);
      const types = ["session_error", "model_response", "tool_use"];
      return types.filter((type) => hasFailed(rows, event(type, { call_id: "c" })));
    };
    expect(failures(false)).toEqual(["session_error", "model_response", "tool_use"]);
    expect(failures(true)).toEqual(["tool_use"]);
  });

  test("a session's name: title, or directory, or the tail of its id", () => {
    const id = "ses_dfcfdbf59ffenf7L";
    const name = (info: Session["info"]) => labelOf(entryOf(rowsWith({ id, info }), id));
    expect(name({ title: "Fix it", directory: "/a/b" })).toBe("Fix it");
    expect(name({ title: " ", directory: "/home/dev/shop/" })).toBe("shop");
    expect(name({ title: 7 })).toBe("…9ffenf7L");
    expect(name({ title: "Run long tests (@general subagent)" })).toBe("Run long tests");
    expect(name({ title: "(@general subagent)", directory: "/a/b" })).toBe("b");
    expect(name({ title: "New session - 2026-01-01T12:00:00.000Z" })).toBe("New session");
  });

  test.each([
    ["/home/ada/shop/", "~/shop"],
    ["/Users/ada", "~"],
    ["/root/work/app", "~/work/app"],
    ["/home/ada/clients/acme/shop", "…/acme/shop"],
    ["C:\\Users\\ada\\work\\shop", "~/work/shop"],
    ["/srv/builds/2024/app", "…/2024/app"],
    ["/srv/app", "/srv/app"],
    ["/", "/"],
    ["/rooted", "/rooted"],
    ["src/a.ts", "src/a.ts"],
  ])("shortPath %s → %s", (path, expected) => {
    expect(shortPath(path)).toBe(expected);
  });

  test.each<[string, Record<string, unknown>, string]>([
    ["tool_use", { args: '{"command":"ls -l","cwd":"/"}' }, "ls -l"],
    ["tool_use", { args: "{}", error: false }, ""],
    ["tool_start", { args: { pattern: "x" } }, "x"],
    [
      "tool_use",
      { args: { path: "/a/b" }, files: [{ path: "b", additions: 2, deletions: 1 }, { path: "c" }] },
      "b +2 −1, c",
    ],
    ["model_response", { model: "opus" }, "opus"],
    ["retry", { message: "overloaded", attempt: 2 }, "overloaded"],
    ["session_compacted", {}, ""],
  ])("%s %j in one line: %p", (type, data, expected) => {
    expect(wordsOf(event(type, data)).text).toBe(expected);
  });

  test.each<[unknown, string | null]>([
    [{ a: 1 }, '{"a":1}'],
    [{ path: "top", options: { command: "nested" } }, "top"],
    [{ questions: [{ question: "Which?", options: [{ description: "this" }] }] }, "Which?"],
    [
      {
        todos: [
          { content: "Read", status: "completed" },
          { content: "Mend", status: "in_progress" },
        ],
      },
      "Read, Mend",
    ],
    ['{"todos":[{"content":"Read","status":"pending"},{"content":"Me', "Read, Me"],
    [null, null],
    ['{"filePath":"a/b.ts","oldString":"cut sho', "a/b.ts"],
    ['{"command":"echo \\"hi\\" && cut sho', 'echo "hi" && cut sho'],
    ['{"n":1,"x":"cut sho', '{"n":1,"x":"cut sho'],
  ])("argsSummary %j → %p", (args, expected) => {
    expect(argsSummary(args)).toBe(expected);
  });

  test.each<[number | null, string]>([
    [null, "–"],
    [0, "0 ms"],
    [0.4, "<1 ms"],
    [150, "150 ms"],
    [999.6, "1.0 s"],
    [1_234, "1.2 s"],
    [9_960, "10 s"],
    [44_400, "44 s"],
    [59_960, "1 m 00 s"],
    [184_000, "3 m 04 s"],
    [7_500_000, "2 h 05 m"],
    [273_600_000, "3 d 4 h"],
  ])("formatDuration %p → %s", (ms, expected) => {
    expect(formatDuration(ms)).toBe(expected);
  });

  test("a time of the last twelve hours, also of yesterday's; before them the day", () => {
    expect(formatTimeOrDay(NOW - 11 * HOUR_MS, NOW)).toBe(formatTime(NOW - 11 * HOUR_MS));
    expect(formatTimeOrDay(NOW - 13 * HOUR_MS, NOW)).toBe(formatDay(NOW - 13 * HOUR_MS));
  });

  test("what isn't known is a dash, never 0", () => {
    expect([formatCount(null), formatCost(null)]).toEqual(["–", "–"]);
    expect([formatCost(0), formatCost(0.004), formatCost(1.239)]).toEqual([
      "$0.00",
      "<$0.01",
      "$1.24",
    ]);
    expect([formatAge(500), formatAge(61_000), formatAge(26 * HOUR_MS)]).toEqual([
      "now",
      "1 m",
      "1 d",
    ]);
  });
});

describe("a session's page", () => {
  const at = (ms: number, to = ms) => ({ started_at: iso(NOW + ms), ended_at: iso(NOW + to) });
  const tokens = { input: 10, output: 5, cache_read: 60, cache_write: 30 };

  test("its turns: calls by when they began, an agent once, tokens and cost with those of its agents", () => {
    const rows = rowsWith(
      { id: "s1", turn_count: 4, working_since: iso(NOW) },
      { id: "child", parent_session_id: "s1", error_count: 1 },
    );
    const told = [
      event("turn_start", { prompt: "Mend it" }, NOW + 10),
      event("session_compacted", {}, NOW + 25),
      event("turn_start", {}, NOW + 30),
    ];
    const model = { kind: "model", cost: 0.25, tokens } as const;
    const agent = { kind: "agent", child_session_id: "child" } as const;
    const spans: Partial<Span>[] = [
      at(5),
      { ...at(10, 20), call_id: "task" },
      { ...at(11, 20), ...agent, call_id: "task", outcome: "failed" },
      { ...at(12), call_id: "c" },
      { ...at(12), kind: "wait", call_id: "c" },
      { ...at(13), ...model },
      { ...at(14), ...model, session_id: "child" },
      // It has answered with the call below.
      { ...at(30), kind: "model", ended_at: null },
      { ...at(31), ended_at: null },
      { ...at(40), ...agent },
    ];
    for (const [index, more] of spans.entries()) takeSpan(rows, spanRow(index + 1, more), 1);
    const turns = turnsOf(rows, entryOf(rows, "s1"), told, NOW + 50);
    const shown = turns.map(({ title, start, end, goesOn, errorCount, ...turn }) => [
      ...[title, start - NOW, end - NOW, goesOn, errorCount, turn.tokens, turn.cost],
      turn.calls.map(({ row }) => (row.kind === "mark" ? row.name : row.kind)).join(),
    ]);
    expect(shown).toEqual([
      ["Before the first turn", 0, 5, false, 0, null, null, "tool"],
      ["Mend it", 10, 20, false, 2, 210, 0.5, "agent,tool,session_compacted"],
      ["Turn 4", 30, 50, true, 0, null, null, "tool,agent"],
    ]);
    expect(countOf(rows, "s1", "error_count")).toBe(1);
  });

  test("between two calls its turn goes on, to now", () => {
    const rows = rowsWith({ id: "s1", turn_count: 1, working_since: iso(NOW) });
    takeSpan(rows, spanRow(1, at(5)), 1);
    const told = [event("turn_start", {}, NOW)];
    const [turn] = turnsOf(rows, entryOf(rows, "s1"), told, NOW + 50);
    expect(turn).toMatchObject({ goesOn: true, end: NOW + 50 });
  });

  test("files, models and the context, of its agents too", () => {
    const rows = rowsWith({ id: "s1" }, { id: "child", parent_session_id: "s1" });
    const files = (path: string, additions?: number) => ({ files: [{ path, additions }] });
    const model = { kind: "model", name: "opus", tokens, cost: 0.5 } as const;
    const limit = { context_limit: 200 };
    takeSpan(rows, spanRow(1, { attributes: files("/src/app/a.ts", 3) }), 1);
    takeSpan(rows, spanRow(2, { attributes: files("a.ts", 4), session_id: "child" }), 1);
    takeSpan(rows, spanRow(3, { attributes: files("b.ts") }), 1);
    takeSpan(rows, spanRow(4, { ...model, attributes: limit }), 1);
    takeSpan(rows, spanRow(5, { ...model, tokens: 7, session_id: "child" }), 1);
    const family = familyOf(rows, "s1");
    expect(filesOf(rows, family, "/src/app")).toEqual([
      { path: "a.ts", edits: 2, additions: 7, deletions: null },
      { path: "b.ts", edits: 1, additions: null, deletions: null },
    ]);
    expect(contextOf(rows, "s1")).toEqual({ used: 100, limit: 200, share: 0.5 });
    expect(contextOf(rows, "child")).toBeNull();
  });
});

describe("the address", () => {
  test("route → hash → route", () => {
    const route = {
      sessionId: "a/b?c #d",
      tab: "files",
      filter: { type: "tool_use", sessionId: null, text: "50 % = ½ & x" },
      spanId: 7,
    } as const;
    expect(routeOf(hashOf(route))).toEqual(route);
  });

  test("what it doesn't understand is left out", () => {
    const none = { type: null, sessionId: null, text: "" };
    expect(routeOf("")).toEqual({ sessionId: null, tab: "calls", filter: none, spanId: null });
    expect(routeOf("#/session/s?type=failed").tab).toBe("events"); // where they are filtered
    expect(routeOf("#/session/%E0%A4?type=nonsense&span=x&tab=x")).toEqual({
      sessionId: "\ufffd",
      tab: "calls",
      filter: none,
      spanId: null,
    });
    expect(hashOf(routeOf("#/elsewhere"))).toBe("#/");
  });
});

test("older events that two questions ask for at once, or an earlier filter, are listed once", async () => {
  const rows = rowsWith({ id: "s1" });
  rows.head = 100;
  let text = "a";
  const filter = () => ({ ...NO_FILTER, sessionId: "s1", text });
  const history = createHistory(
    () => rows,
    filter,
    () => {},
  );
  using _ = spyOn(globalThis, "fetch").mockImplementation((async (url: string) => {
    const query = new URLSearchParams(url.split("?")[1]);
    const before = Number(query.get("before"));
    const ids = before > 3 ? [3, 2, 1] : [];
    const events = ids.map((id) => ({
      ...{ id, session_id: "s1", type: "tool_use", timestamp: iso(NOW + id) },
      ...{ tool: "bash", call_id: `c${id}`, note: "a ab" },
    }));
    return Response.json({ events }, { headers: { "Last-Event-ID": "100" } });
  }) as typeof fetch);
  const filled = [history.fill()];
  text = "ab";
  history.reset();
  filled.push(history.fill(), history.fill());
  await Promise.all(filled);
  const { things } = history.page(50, false);
  expect(things.map((events) => events.map(({ id }) => id))).toEqual([[3], [2], [1]]);
});
