/** The dashboard's state, without a browser: events in, what is shown out. */

import { describe, expect, test } from "bun:test";
import {
  type DashboardState,
  EVENT_TYPES as LISTED_TYPES,
  MAX_FEED_EVENTS,
  MAX_SPANS,
  type TelemetryEvent,
  costOf,
  createState,
  familyOf,
  foldEvent,
  hashOf,
  headline,
  isRunning,
  labelOf,
  lanesOf,
  loadActivity,
  loadDetail,
  loadHistory,
  loadSessions,
  matchesFilter,
  readEvent,
  routeOf,
  sessionTree,
  shownEnd,
  statusOf,
  summaryOf,
  tokensOf,
} from "../dashboard/state.ts";
import {
  formatAge,
  formatCost,
  formatCount,
  formatDay,
  formatDuration,
  formatTime,
  formatTimeOrDay,
} from "../dashboard/format.ts";
import { EVENT_TYPES, type Session } from "../server.ts";
import { getJson, postEvent, startTestServer } from "./helpers.ts";
import { openCodeHooks, seededRandom, sessionEvents, shuffled } from "./fixtures.ts";

const NOW = Date.parse("2026-01-01T12:00:00Z");
const SECOND_MS = 1_000;
const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;

let lastId = 0;

function event(
  type: string,
  at: number,
  data: Record<string, unknown> = {},
  session_id = "s1",
): TelemetryEvent {
  const read = readEvent({
    id: ++lastId,
    type,
    session_id,
    timestamp: new Date(at).toISOString(),
    ...data,
  });
  if (read === null) throw new Error(`not an event: ${type}`);
  return read;
}

function folded(...events: TelemetryEvent[]): DashboardState {
  const state = createState();
  for (const item of events) foldEvent(state, item);
  return state;
}

function only<T>(items: Iterable<T>): T {
  const [item, ...rest] = items;
  if (item === undefined || rest.length > 0) throw new Error("expected exactly one");
  return item;
}

test("EVENT_TYPES lists what the server accepts", () => {
  expect<string[]>(LISTED_TYPES.toSorted()).toEqual(Object.keys(EVENT_TYPES).toSorted());
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

describe("foldEvent", () => {
  test("a tool call's bar ends at its timestamp and starts its duration earlier", () => {
    const state = folded(event("tool_use", NOW, { tool: "bash", duration_ms: 1_500 }));
    const span = only(state.spans.values());
    expect(span).toMatchObject({ start: NOW - 1_500, end: NOW, isTimed: true, hasFailed: false });
  });

  test("a tool call without a duration is a moment, not a bar of length 0", () => {
    const state = folded(event("tool_use", NOW, { tool: "bash", duration_ms: null }));
    expect(only(state.spans.values())).toMatchObject({ start: NOW, end: NOW, isTimed: false });
  });

  test("an agent runs from its spawn to the completion of the same call_id", () => {
    const spawn = event("agent_spawn", NOW, { subagent_type: "explore", call_id: "c" });
    const end = event("agent_complete", NOW + 4_000, { call_id: "c", success: false });
    const state = folded(spawn);
    const session = only(state.sessions.values());
    const span = only(state.spans.values());
    expect(isRunning(span, session, NOW + 1_000)).toBeTrue();
    expect(shownEnd(span, session, NOW + 1_000)).toBe(NOW + 1_000);
    foldEvent(state, end);
    expect(span).toMatchObject({ start: NOW, end: NOW + 4_000, hasFailed: true });
    expect(isRunning(span, session, NOW + 5_000)).toBeFalse();
  });

  test("a completion's own duration → that long a bar, before the agents that began later", () => {
    const early = () => event("agent_spawn", NOW, { subagent_type: "a", call_id: "1" });
    const late = () => event("agent_spawn", NOW + 10, { subagent_type: "b", call_id: "2" });
    const end = () => event("agent_complete", NOW + 20, { call_id: "2", duration_ms: 5_000 });
    for (const order of [
      [early, late, end],
      [end, late, early],
    ]) {
      const session = only(folded(...order.map((make) => make())).sessions.values());
      expect(session.agents.map((span) => [span.name, span.start, span.end])).toEqual([
        ["b", NOW + 20 - 5_000, NOW + 20],
        ["a", NOW, null],
      ]);
    }
  });

  test("an agent's own duration or success says that it has ended", () => {
    const state = folded(
      event("agent_spawn", NOW, { subagent_type: "a", duration_ms: 2_000 }),
      event("agent_spawn", NOW, { subagent_type: "b", success: true }),
    );
    const [timed, untimed] = [...state.spans.values()];
    expect(timed).toMatchObject({ start: NOW - 2_000, end: NOW });
    expect(untimed).toMatchObject({ end: NOW, isTimed: false });
    expect(headline(state, NOW).runningAgents).toBe(0);
  });

  test("completions without a call_id end the first open agent of their type", () => {
    const state = folded(
      event("agent_spawn", NOW, { subagent_type: "a" }),
      event("agent_spawn", NOW + 10, { subagent_type: "b" }),
      event("agent_spawn", NOW + 20, { subagent_type: "a" }),
      event("agent_complete", NOW + 500, { subagent_type: "a" }),
    );
    expect([...state.spans.values()].map((span) => span.end)).toEqual([NOW + 500, null, null]);
  });

  test("an event that is in already changes nothing", () => {
    const call = event("tool_use", NOW, { tool: "bash" });
    const state = folded(call, call);
    expect(only(state.sessions.values()).toolCount).toBe(1);
    expect(state.feed).toHaveLength(1);
  });

  test("any order of the same events gives the same sessions and bars", () => {
    const posted = [
      ...sessionEvents("a", { seed: 1 }),
      ...sessionEvents("b", { seed: 2, agents: 5 }),
    ];
    const picture = (order: typeof posted) => {
      const state = createState();
      for (const [index, { type, session_id, timestamp, data }] of order.entries()) {
        const read = readEvent({
          id: index + 1,
          type,
          session_id,
          timestamp: new Date(timestamp ?? 0).toISOString(),
          ...data,
        });
        if (read !== null) foldEvent(state, read);
      }
      return {
        spans: [...state.spans.values()]
          .map(({ id: _, ...span }) => JSON.stringify(span))
          .toSorted(),
        sessions: [...state.sessions.values()]
          .map((session) => [
            session.id,
            statusOf(session, NOW + HOUR_MS / 2),
            labelOf(session),
            session.startedAt,
            session.lastEventAt,
            session.toolCount,
            session.agentCount,
            session.errorCount,
            costOf(session),
          ])
          .toSorted(),
      };
    };
    const expected = picture(posted);
    const random = seededRandom(7);
    for (let round = 0; round < 20; round++)
      expect(picture(shuffled(posted, random))).toEqual(expected);
  });

  test("buffers are bounded, the newest stay, what runs stays", () => {
    const state = folded(event("agent_spawn", NOW, { subagent_type: "a", call_id: "open" }, "s0"));
    for (let index = 0; index < MAX_SPANS * 2; index++)
      foldEvent(
        state,
        event("tool_use", NOW + index, { tool: "read", duration_ms: 1 }, `s${index % 9}`),
      );
    expect(state.spans.size).toBeLessThanOrEqual(MAX_SPANS);
    expect(state.feed.length).toBeLessThanOrEqual(MAX_FEED_EVENTS * 1.25);
    expect(state.feed.at(-1)?.id).toBe(lastId);
    expect(state.spans.get(lastId)).toBeDefined();
    expect([...state.spans.values()].filter((span) => span.kind === "agent")).toHaveLength(1);
    const kept = [...state.sessions.values()].flatMap((session) => session.tools);
    expect(kept).toHaveLength(state.spans.size - 1);
    expect(state.coveredFrom).toBeGreaterThan(NOW);
  });
});

describe("statusOf", () => {
  test.each<[string, [string, number][], number, string]>([
    ["active", [["session_start", 0]], 1, "active"],
    [
      "completed by its end",
      [
        ["session_start", 0],
        ["session_end", 5],
      ],
      6,
      "completed",
    ],
    [
      "an update is no activity",
      [
        ["session_end", 5],
        ["session_update", 6],
      ],
      7,
      "completed",
    ],
    [
      "a later event reopens it",
      [
        ["session_end", 5],
        ["tool_use", 6],
      ],
      7,
      "active",
    ],
    ["stale after an hour", [["tool_use", 0]], HOUR_MS, "stale"],
    ["waiting", [["input_requested", 5]], 6, "waiting"],
    ["waiting, even when silent for long", [["input_requested", 5]], 2 * HOUR_MS, "waiting"],
    [
      "answered",
      [
        ["input_requested", 5],
        ["input_resolved", 6],
      ],
      7,
      "active",
    ],
    [
      "answered, told the other way round",
      [
        ["input_resolved", 6],
        ["input_requested", 5],
      ],
      7,
      "active",
    ],
    [
      "ended while waiting",
      [
        ["input_requested", 5],
        ["session_end", 6],
      ],
      7,
      "completed",
    ],
  ])("%s", (_, events, now, expected) => {
    const state = folded(...events.map(([type, at]) => event(type, NOW + at, { tool: "bash" })));
    expect<string>(statusOf(only(state.sessions.values()), NOW + now)).toBe(expected);
  });

  test("agrees with the server, for every order of the same events", async () => {
    await using server = await startTestServer({ now: () => NOW + HOUR_MS / 2 });
    const random = seededRandom(3);
    for (let index = 0; index < 12; index++)
      await postEvent(
        server,
        shuffled(sessionEvents(`s${index}`, { seed: index, tools: 3, from: NOW }), random).slice(
          0,
          4 + (index % 9),
        ),
      );
    const state = createState();
    const { events } = await getJson<{ events: unknown[] }>(
      server,
      "/api/events?after=0&limit=1000",
    );
    for (const raw of events) {
      const read = readEvent(raw);
      if (read !== null) foldEvent(state, read);
    }
    const { sessions } = await getJson<{ sessions: Session[] }>(server, "/api/sessions");
    expect(sessions).toHaveLength(12);
    for (const row of sessions) {
      const session = state.sessions.get(row.id);
      if (session === undefined) throw new Error(`${row.id} is missing`);
      expect<string>(statusOf(session, NOW + HOUR_MS / 2)).toBe(
        row.waiting_since === null ? row.status : "waiting",
      );
      expect({
        tools: session.toolCount,
        agents: session.agentCount,
        errors: session.errorCount,
        events: session.eventCount,
        start: new Date(session.startedAt).toISOString(),
      }).toEqual({
        tools: row.tool_count,
        agents: row.agent_count,
        errors: row.error_count,
        events: row.event_count,
        start: row.started_at,
      });
    }
  });
});

describe("loading", () => {
  const row = (id: string, more: Partial<Session> = {}): Session => ({
    id,
    started_at: new Date(NOW).toISOString(),
    ended_at: null,
    status: "active",
    tool_count: 2,
    agent_count: 1,
    event_count: 3,
    error_count: 0,
    last_event_at: new Date(NOW + 10).toISOString(),
    waiting_since: null,
    parent_session_id: null,
    info: {},
    ...more,
  });

  test("the history adds bars and feed, not counts; the stream goes on from the head", () => {
    const state = createState();
    const old = [
      event("tool_use", NOW, { tool: "read", duration_ms: 5 }),
      event("tool_use", NOW + 5, { tool: "bash", duration_ms: 5 }),
      event("agent_spawn", NOW + 10, { subagent_type: "a", call_id: "c" }),
    ];
    loadSessions(state, [row("s1")], lastId);
    loadHistory(state, old.toReversed(), true);
    for (const known of old) foldEvent(state, known);
    foldEvent(state, event("tool_use", NOW + 20, { tool: "bash" }));
    const session = only(state.sessions.values());
    expect(session.toolCount).toBe(3);
    expect(session.eventCount).toBe(4);
    expect(state.spans.size).toBe(4);
    expect(state.feed.map(({ id }) => id)).toEqual(old.map(({ id }) => id).concat(lastId));
  });

  test("the answer about one session adds what the window lacked, and ends what ran", () => {
    const state = createState();
    const spawn = event("agent_spawn", NOW, { subagent_type: "a", call_id: "c" });
    loadSessions(state, [row("s1")], lastId);
    loadHistory(state, [spawn], false);
    expect(headline(state, NOW + 20).runningAgents).toBe(1);
    const call = { call_id: null, success: null, error: null };
    loadDetail(
      state,
      "s1",
      [
        {
          ...call,
          id: 1,
          tool: "read",
          args: "{}",
          timestamp: row("x").started_at,
          duration_ms: 5,
        },
      ],
      [
        {
          ...call,
          id: spawn.id,
          subagent_type: "a",
          prompt: null,
          timestamp: row("x").started_at,
          duration_ms: 5_000,
          child_session_id: null,
          completed_at: new Date(NOW + 9).toISOString(),
          success: true,
        },
      ],
    );
    expect(headline(state, NOW + 20).runningAgents).toBe(0);
    expect(state.spans.size).toBe(2);
    expect(state.spans.get(spawn.id)).toMatchObject({ start: NOW - 5_000 + 9, end: NOW + 9 });
  });

  test("counts per minute: events up to the head of the answer are in it, later ones are added", () => {
    const state = createState();
    loadSessions(state, [row("s1")], 100);
    loadActivity(state, [{ timestamp: row("x").started_at, count: 7, error_count: 1 }], 105);
    lastId = 104;
    foldEvent(state, event("tool_use", NOW + 1, { tool: "a" }));
    foldEvent(state, event("tool_use", NOW + 2, { tool: "a", success: false }));
    const { pulse, errorsLastHour } = headline(state, NOW + 30 * SECOND_MS);
    expect(pulse.at(-1)).toEqual({ start: NOW, count: 8, errors: 2 });
    expect(errorsLastHour).toBe(2);
  });
});

describe("headline", () => {
  test("active sessions without their children, running agents, who waits longest, events per minute", () => {
    const state = folded(
      event("session_start", NOW - 50 * SECOND_MS, {}, "root"),
      event("agent_spawn", NOW - 40 * SECOND_MS, { subagent_type: "a", call_id: "1" }, "root"),
      event("agent_spawn", NOW - 40 * SECOND_MS, { subagent_type: "a", call_id: "2" }, "root"),
      event("agent_complete", NOW - 9 * SECOND_MS, { call_id: "1" }, "root"),
      event("session_start", NOW - 40 * SECOND_MS, { parent_session_id: "root" }, "child"),
      event("input_requested", NOW - 5 * SECOND_MS, { kind: "permission", detail: "rm" }, "late"),
      event("input_requested", NOW - 8 * SECOND_MS, { kind: "question" }, "early"),
      event("agent_spawn", NOW - 2 * HOUR_MS, { subagent_type: "a" }, "stale"),
      event("session_end", NOW - 6 * SECOND_MS, {}, "done"),
    );
    const head = headline(state, NOW - 1);
    expect(head.activeSessions).toBe(3);
    expect(head.runningAgents).toBe(1);
    expect(head.waiting.map(({ id }) => id)).toEqual(["early", "late"]);
    expect(head.waiting.at(-1)?.question).toBe("rm");
    expect(head.eventsPerMinute).toBe(8);
    expect(head.pulse).toHaveLength(60);
  });
});

describe("sessionTree", () => {
  const ids = (state: DashboardState, filter = {}, open: string[] = []) =>
    sessionTree(state, { text: "", status: null, ...filter }, new Set(open), NOW + 60_000).map(
      (row) =>
        row.kind === "session" ? `${"-".repeat(row.depth)}${row.session.id}` : `+${row.count}`,
    );
  const parent = { parent_session_id: "a" };
  const family = () =>
    folded(
      event("session_start", NOW, { title: "Fix the login" }, "a"),
      event("session_start", NOW + 5, { title: "Write notes" }, "b"),
      event("session_start", NOW + 6, parent, "a1"),
      event("session_start", NOW + 7, parent, "a2"),
      event("session_end", NOW + 8, {}, "a2"),
    );

  test("latest activity first, a child keeps its parent up; ended children are folded away", () => {
    expect(ids(family())).toEqual(["a", "-a1", "+1", "b"]);
    expect(ids(family(), {}, ["a"])).toEqual(["a", "-a1", "+1", "-a2", "b"]);
  });

  test("a filter finds ended children too, and shows their parent", () => {
    expect(ids(family(), { status: "completed" })).toEqual(["a", "-a2"]);
    expect(ids(family(), { text: "LOGIN" })).toEqual(["a"]);
    expect(ids(family(), { text: "nowhere" })).toEqual([]);
  });

  test("sessions that name each other as parents are all shown, once", () => {
    const state = folded(
      event("session_start", NOW, { parent_session_id: "y" }, "x"),
      event("session_start", NOW + 1, { parent_session_id: "x" }, "y"),
      event("session_start", NOW + 2, { parent_session_id: "z" }, "z"),
      event("session_start", NOW + 3, { parent_session_id: "gone" }, "orphan"),
    );
    expect(
      ids(state)
        .map((id) => id.replace(/^-+/, ""))
        .toSorted(),
    ).toEqual(["orphan", "x", "y", "z"]);
    expect([...familyOf(state, "x")].toSorted()).toEqual(["x", "y"]);
  });
});

describe("lanesOf", () => {
  test("the two parallel subagents of the captured run overlap, each in a lane of its own", () => {
    const state = createState();
    for (const agent of capturedAgents()) {
      foldEvent(
        state,
        event("agent_spawn", agent.start, { subagent_type: agent.type, call_id: agent.call }),
      );
      foldEvent(state, event("agent_complete", agent.end, { call_id: agent.call, success: true }));
    }
    const [first, second] = capturedAgents();
    if (first === undefined || second === undefined) throw new Error("two agents were captured");
    const lanes = lanesOf(state, null, first.start - 1_000, second.end + 1_000, second.end);
    const agents = lanes.filter((lane) => lane.kind === "agent");
    expect(agents.map((lane) => lane.label).toSorted()).toEqual(["explore", "general"]);
    const [a, b] = agents.flatMap((lane) => lane.agents);
    if (a === undefined || b === undefined) throw new Error("each lane has its agent");
    expect(Math.min(a.end ?? 0, b.end ?? 0)).toBeGreaterThan(Math.max(a.start, b.start));
  });

  test("agents that follow each other share a lane, and what is outside of the window has none", () => {
    const state = folded(
      event("agent_spawn", NOW + 1_000, { subagent_type: "a", duration_ms: 1_000 }),
      event("agent_spawn", NOW + 3_000, { subagent_type: "a", duration_ms: 1_000 }),
      event("agent_spawn", NOW + 3_000, { subagent_type: "a", duration_ms: 500 }),
    );
    expect(lanesOf(state, null, NOW, NOW + 5_000, NOW + 5_000)).toHaveLength(3);
    expect(lanesOf(state, null, NOW, NOW + 1_500, NOW + 5_000)).toHaveLength(2);
    expect(lanesOf(state, null, NOW - 9_000, NOW - 8_000, NOW + 5_000)).toHaveLength(0);
  });

  test("an agent with a session of its own is drawn there, and the call that spawned it nowhere else", () => {
    const state = folded(
      event("session_start", NOW, {}, "root"),
      event(
        "agent_spawn",
        NOW,
        { subagent_type: "a", call_id: "c", child_session_id: "kid" },
        "root",
      ),
      event("session_start", NOW, { parent_session_id: "root" }, "kid"),
      event("tool_use", NOW + 50, { tool: "read", duration_ms: 10 }, "kid"),
      event("tool_use", NOW + 90, { tool: "task", call_id: "c", duration_ms: 90 }, "root"),
    );
    const lanes = lanesOf(state, null, NOW - 1, NOW + 100, NOW + 100);
    expect(lanes.map((lane) => [lane.key, lane.label, lane.tools.length])).toEqual([
      ["root", "root", 0],
      ["kid", "a", 1],
    ]);
  });
});

describe("words", () => {
  test("a session's name: title, or directory, or the tail of its id", () => {
    const name = (data: Record<string, unknown>, id = "ses_dfcfdbf59ffenf7L") =>
      labelOf(only(folded(event("session_start", NOW, data, id)).sessions.values()));
    expect(name({ title: "Fix it", directory: "/a/b" })).toBe("Fix it");
    expect(name({ title: " ", directory: "/home/dev/shop/" })).toBe("shop");
    expect(name({})).toBe("…9ffenf7L");
  });

  test("tokens are summed, unless their total is given; unknown is null", () => {
    const tokens = (value: unknown) =>
      tokensOf(only(folded(event("session_start", NOW, { tokens: value })).sessions.values()));
    expect(tokens({ input: 3, output: 4, cache: { read: 5, write: 6 } })).toBe(18);
    expect(tokens({ input: 3, total: 3 })).toBe(3);
    expect(tokens(7)).toBe(7);
    expect(tokens(undefined)).toBeNull();
  });

  test("a call in one line is its telling argument, or all of them", () => {
    const summary = (args: unknown) => summaryOf(event("tool_use", NOW, { tool: "t", args }));
    expect(summary('{"command":"ls -l","cwd":"/"}')).toBe("ls -l");
    expect(summary({ a: 1 })).toBe('{"a":1}');
    expect(summary('{"command":"cut sho')).toBe('{"command":"cut sho');
    expect(summary(null)).toBeNull();
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

describe("the address", () => {
  test("route → hash → route", () => {
    const route = {
      sessionId: "a/b?c #d",
      filter: { type: "tool_use", tool: "mcp_bash", sessionId: "x&y", text: "50 % = ½" },
    } as const;
    expect(routeOf(hashOf(route))).toEqual(route);
  });

  test("what it doesn't understand is left out", () => {
    const none = { type: null, tool: "", sessionId: null, text: "" };
    expect(routeOf("")).toEqual({ sessionId: null, filter: none });
    expect(routeOf("#/session/%E0%A4?type=nonsense")).toEqual({
      sessionId: "%E0%A4",
      filter: none,
    });
    expect(hashOf(routeOf("#/elsewhere"))).toBe("#/");
  });

  test("the feed's filter: type, failures, tool, session, text anywhere", () => {
    const call = event("tool_use", NOW, {
      tool: "mcp_bash",
      error: "exit 1",
      args: { x: "Needle" },
    });
    const all = { type: null, tool: "", sessionId: null, text: "" } as const;
    expect(matchesFilter(call, all)).toBeTrue();
    expect(
      matchesFilter(call, { ...all, type: "failed", tool: "BASH", text: "needle" }),
    ).toBeTrue();
    expect(matchesFilter(call, { ...all, type: "agent_spawn" })).toBeFalse();
    expect(matchesFilter(call, { ...all, sessionId: "other" })).toBeFalse();
    expect(matchesFilter(call, { ...all, text: "haystack" })).toBeFalse();
  });
});

/** The `task` calls in the captured traffic: when each began and ended. */
function capturedAgents(): { call: string; type: string; start: number; end: number }[] {
  const agents = new Map<string, { call: string; type: string; start: number; end: number }>();
  for (const { input } of openCodeHooks()) {
    const text = JSON.stringify(input);
    if (!text.includes('"tool":"task"') || !text.includes('"status":"completed"')) continue;
    const call = /"callID":"([^"]+)"/.exec(text)?.[1];
    const type = /"subagent_type":"([^"]+)"/.exec(text)?.[1];
    const time = /"time":\{"start":(\d+),"end":(\d+)/.exec(text);
    if (call && type && time)
      agents.set(call, { call, type, start: Number(time[1]), end: Number(time[2]) });
  }
  return [...agents.values()];
}
