/** Where things stand in the timeline, without a browser: rows in, lanes and bars out. */

import { describe, expect, test } from "bun:test";
import { type Rows, type SpanEntry, createRows, takeSession, takeSpan } from "../dashboard/rows.ts";
import {
  type Lane,
  type View,
  barAt,
  barsOf,
  groundOf,
  lanesOf,
  ticksOf,
  toX,
  walk,
} from "../dashboard/timeline/layout.ts";
import { NOW_MARGIN, createWindow, fitted, windowOf } from "../dashboard/timeline/window.ts";
import { describe as inWords, stateOf } from "../dashboard/timeline/words.ts";
import type { Session, Span } from "../server.ts";
import { openCodeHooks } from "./fixtures.ts";
import { NOW, iso, sessionRow, spanRow } from "./rows.ts";

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;

/** One pixel is a millisecond, the left edge is NOW. */
const VIEW: View = {
  end: NOW + 1_000,
  length: 1_000,
  now: NOW + 900,
  width: 1_000,
  height: 400,
  scrollTop: 0,
  isNarrow: false,
  selectedId: null,
  hoveredId: null,
};

let lastId = 0;

function rowsWith(...sessions: (Partial<Session> & { id: string })[]): Rows {
  const rows = createRows();
  for (const session of sessions) takeSession(rows, sessionRow(session.id, session), 1);
  return rows;
}

/** @param from milliseconds after NOW @param to the same; null: it runs */
function add(rows: Rows, from: number, to: number | null, more: Partial<Span> = {}): SpanEntry {
  const id = ++lastId;
  const times = {
    started_at: iso(NOW + from),
    ended_at: to === null ? null : iso(NOW + to),
    duration_ms: to === null ? null : to - from,
    outcome: to === null ? null : ("ok" as const),
  };
  takeSpan(rows, spanRow(id, { ...times, ...more }), 1);
  const entry = rows.spans.get(id);
  if (entry === undefined) throw new Error("the span wasn't taken");
  return entry;
}

const lanes = (rows: Rows, from = 0, to = 1_000) =>
  lanesOf(rows, { ...VIEW, end: NOW + to, length: to - from });

/** The bars of the only lane. */
function barsIn(rows: Rows, view: Partial<View> = {}) {
  const shown = { ...VIEW, ...view };
  const [lane, ...others] = lanesOf(rows, shown);
  if (lane === undefined || others.length > 0) throw new Error("expected one lane");
  return barsOf(lane, shown);
}

describe("lanes", () => {
  test("the two parallel subagents of the captured run overlap, each in a lane of its own", () => {
    const rows = rowsWith({ id: "s1" });
    const [first, second] = capturedAgents();
    if (first === undefined || second === undefined) throw new Error("two agents were captured");
    for (const { type, start, end } of [first, second])
      add(rows, start - NOW, end - NOW, { kind: "agent", name: type });
    const end = second.end + 1_000;
    const view = { ...VIEW, end, length: end - first.start + 1_000, now: second.end };
    const found = lanesOf(rows, view);
    const agents = found.filter((lane) => lane.kind === "agent");
    expect(agents.map((lane) => lane.label).toSorted()).toEqual(["explore", "general"]);
    const [a, b] = agents.flatMap((lane) => lane.spans.agent);
    if (a === undefined || b === undefined) throw new Error("each lane has its agent");
    expect(Math.min(a.end ?? 0, b.end ?? 0)).toBeGreaterThan(Math.max(a.start, b.start));
  });

  test("agents that follow each other share a lane, and what is outside of the window has none", () => {
    const rows = rowsWith({ id: "s1", last_event_at: iso(NOW + 3_000), status: "completed" });
    const agent = { kind: "agent", name: "a" } as const;
    add(rows, 0, 1_000, agent);
    const last = add(rows, 2_000, 3_000, agent);
    add(rows, 2_500, 3_000, agent);
    expect(lanes(rows, 0, 5_000)).toHaveLength(3);
    expect(lanes(rows, 0, 1_500)).toHaveLength(2);
    expect(lanes(rows, -9_000, -8_000)).toHaveLength(0);
    const shared = lanes(rows, 0, 5_000).find((lane) => lane.spans.agent.length === 2);
    expect(shared?.spans.agent.at(-1)).toBe(last);
  });

  test("an agent with a session of its own is drawn there, and the call that spawned it nowhere else", () => {
    const rows = rowsWith({ id: "s1" }, { id: "kid", parent_session_id: "s1" });
    const agent = { kind: "agent", name: "a", call_id: "c", child_session_id: "kid" } as const;
    const run = add(rows, 0, 90, { ...agent, text: "Find it" });
    add(rows, 0, 90, { name: "task", call_id: "c" });
    add(rows, 40, 50, { session_id: "kid", name: "read" });
    const picture = (family: string[] = []) => {
      rows.family = new Set(family);
      return lanes(rows, 0, 100).map(({ key, label, badge, depth, spans }) => [
        key,
        label,
        badge,
        depth,
        spans.tool.length,
        spans.agent,
      ]);
    };
    const child = ["kid", "Find it", "a", 1, 1, [run]];
    expect(picture()).toEqual([["s1", "s1", null, 0, 0, []], child]);
    expect(picture(["kid"])).toEqual([child]);
    // Without a task it has its session's title.
    takeSpan(rows, spanRow(run.row.id, { ...agent, started_at: iso(NOW) }), 2);
    const info = { title: "Find it (@a subagent)" };
    takeSession(rows, sessionRow("kid", { parent_session_id: "s1", info }), 2);
    expect(picture(["kid"])[0]?.slice(0, 3)).toEqual(["kid", "Find it", "a"]);
  });

  test("what goes on stands above what has ended, what started later above what started earlier", () => {
    const at = (ms: number) => ({ started_at: iso(NOW + ms), last_event_at: iso(NOW + ms + 9) });
    const rows = rowsWith(
      { id: "old", ...at(0), status: "completed" },
      { id: "ended", ...at(50), status: "completed" },
      { id: "first", ...at(10) },
      { id: "second", ...at(20) },
      { id: "below", ...at(900), status: "stale", parent_session_id: "old" },
    );
    const keys = (from: number, to: number) => lanes(rows, from, to).map((lane) => lane.key);
    expect(keys(0, 1_000)).toEqual(["second", "first", "ended", "old", "below"]);
    // A child has its parent's lane above it, though nothing of that is in the window.
    expect(keys(890, 905)).toEqual(["second", "first", "old", "below"]);
  });

  test.each([
    ["chain", false],
    ["circle", true],
  ])(
    "2,000 sessions in a %s: a picture takes a few milliseconds, and shows them all",
    (_, isCircle) => {
      const draw = (count: number) => {
        const rows = createRows();
        for (let index = 0; index < count; index++) {
          const above = index === 0 ? (isCircle ? count - 1 : null) : index - 1;
          const parent_session_id = above === null ? null : `s${above}`;
          takeSession(rows, sessionRow(`s${index}`, { parent_session_id }), 1);
          add(rows, 0, 500, { session_id: `s${index}` });
        }
        expect(lanes(rows)).toHaveLength(count);
        const times = Array.from({ length: 9 }, () => {
          const from = performance.now();
          const found = lanes(rows);
          for (const lane of found.slice(0, 20)) barsOf(lane, VIEW);
          return performance.now() - from;
        });
        return Math.min(...times); // the others have waited for other programs, too
      };
      draw(500); // warms up
      // 1 ms here; 250 ms with a walk up the parents of each.
      expect(draw(2_000)).toBeLessThan(25);
    },
  );
});

describe("bars", () => {
  test("a call's bar is as long as it took; what runs grows to now", () => {
    const rows = rowsWith({ id: "s1" });
    add(rows, 100, 200);
    add(rows, 300, null);
    // A pixel stays free behind what has ended, so that calls can be told apart.
    expect(barsIn(rows).map(({ x, width }) => [x, width])).toEqual([
      [100, 99],
      [300, 600],
    ]);
    expect(barsIn(rows, { now: NOW + 950 }).at(-1)?.width).toBe(650);
    expect(barsIn(rows, { scrollTop: 10 }).map(({ y }) => y)).toEqual([-5, -5]);
  });

  test("a model's bar ends with its latest call, not with its step, which goes on until that is over", () => {
    const rows = rowsWith({ id: "s1" });
    const models = () => lanes(rows)[0]?.spans.model.map(({ start, end }) => [start, end]);
    const cutOff = { kind: "model", outcome: "cancelled" } as const;
    add(rows, 0, 500, cutOff);
    add(rows, 100, 400); // its call
    add(rows, 550, 590, cutOff); // that called none
    add(rows, 600, null, { kind: "model" });
    const lane = (end: number | null) => [
      [NOW, NOW + 100],
      [NOW + 550, NOW + 590],
      [NOW + 600, end],
    ];
    expect(models()).toEqual(lane(null));
    add(rows, 700, 750);
    add(rows, 720, null, { call_id: "task" });
    add(rows, 720, null, { call_id: "task", kind: "agent" });
    expect(models()).toEqual(lane(NOW + 720));
  });

  test("calls at the same time have rows of their own, five at most; a hairline opens none", () => {
    const rows = rowsWith({ id: "s1" });
    add(rows, 0, 50);
    expect(barsIn(rows)[0]?.height).toBe(18);
    for (let index = 0; index < 7; index++) add(rows, 100 + index, 200 + index);
    add(rows, 300, 400);
    add(rows, 350, 351);
    const [lane] = lanes(rows);
    if (lane === undefined) throw new Error("a lane");
    expect([lane.rowHeight, lane.height]).toEqual([13, 5 * 14 - 1 + 10]);
    const rowOf = ({ y, height }: { y: number; height: number }) => (y - 5) / (height + 1);
    expect(barsIn(rows).map(rowOf)).toEqual([0, 0, 1, 2, 3, 4, 4, 4, 0, 1]);
    // A wide window has room for higher ones.
    expect(barsIn(rows, { width: 2_000 })[0]?.height).toBe(18);
  });

  test("what falls on pixels that are taken is left out, unless it failed", () => {
    const rows = rowsWith({ id: "s1" });
    for (let index = 0; index < 50; index++) add(rows, index, index + 1);
    add(rows, 51, 52, { outcome: "exit" });
    const far = { length: 100_000, end: NOW + 100_000 };
    expect(barsIn(rows, far)).toHaveLength(2);
    expect(barsIn(rows)).toHaveLength(51);
    const { id } = add(rows, 53, 54).row;
    for (const kept of [{ selectedId: id }, { hoveredId: id }])
      expect(barsIn(rows, { ...far, ...kept }).at(-1)?.span.row.id).toBe(id);
  });

  test("agents and waits under the models, those under the calls, marks over them", () => {
    const rows = rowsWith({ id: "s1" });
    add(rows, 10, 40, { kind: "wait" });
    const tool = add(rows, 0, 90);
    add(rows, 5, 60, { kind: "model", name: "opus" });
    const bars = barsIn(rows);
    expect(bars.map(({ span }) => span.row.kind)).toEqual(["wait", "model", "tool"]);
    const [wait, model, call] = bars;
    if (!wait || !model || !call) throw new Error("three bars");
    // The lane is 18 px high: a wait stands over it, a model is a thin line in its middle.
    expect([wait.y, wait.height]).toEqual([3, 22]);
    expect([model.y, model.height]).toEqual([12, 4]);
    expect([call.y, call.height]).toEqual([5, 18]);
    expect(barAt(bars, 20, 14)?.span).toBe(tool);
  });

  test("what a call waits for is drawn in its bar", () => {
    const rows = rowsWith({ id: "s1" });
    const asking = add(rows, 100, 300, { call_id: "a", waited_ms: 90 });
    add(rows, 200, 400, { call_id: "b", waited_ms: 50 });
    add(rows, 120, 210, { kind: "wait", call_id: "a" });
    add(rows, 500, null, { call_id: "c" });
    add(rows, 550, null, { kind: "wait", call_id: "c" });
    add(rows, 10, 20, { kind: "wait", call_id: "elsewhere" });
    const bars = barsIn(rows);
    expect(bars.map(({ span: { row }, x }) => [row.kind, x])).toEqual([
      ["wait", 10],
      ["tool", 100],
      ["wait", 120],
      ["tool", 200],
      ["tool", 500],
      ["wait", 550],
    ]);
    const [, call, inCall, , , open] = bars;
    expect(call?.span).toBe(asking);
    expect([inCall?.y, inCall?.height]).toEqual([call?.y, call?.height]);
    expect([inCall?.width, open?.width]).toEqual([90, 350]);
    // A name isn't written where its call waits.
    expect(bars.map(({ freePx }) => freePx)).toEqual([
      undefined,
      110,
      undefined,
      0,
      400,
      undefined,
    ]);
  });

  test("models that fall on pixels that are taken are left out", () => {
    const rows = rowsWith({ id: "s1" });
    for (let index = 0; index < 100; index++) add(rows, index, index + 1, { kind: "model" });
    expect(barsIn(rows, { length: 100_000, end: NOW + 100_000 }).length).toBeLessThanOrEqual(2);
  });

  test("the pointer finds a bar four pixels beside it, and the smaller of two", () => {
    const rows = rowsWith({ id: "s1" }, { id: "kid", parent_session_id: "s1" });
    const run = { kind: "agent", name: "a", child_session_id: "kid" } as const;
    const agent = add(rows, 0, 500, run);
    const inner = add(rows, 100, 200, { session_id: "kid" });
    const [, lane] = lanes(rows);
    if (lane === undefined) throw new Error("the agent's lane");
    const place = (found: Lane) => barsOf({ ...found, rowsTop: 105 }, VIEW);
    const bars = place(lane);
    const at = (x: number, y: number) => barAt(bars, x, y)?.span ?? null;
    expect([at(150, 110), at(202, 110)]).toEqual([inner, inner]);
    expect([at(50, 110), at(502, 110)]).toEqual([agent, agent]);
    expect([at(506, 110), at(150, 90)]).toEqual([null, null]);
    // A finger is wider, and has the nearest.
    const next = add(rows, 215, 216, { session_id: "kid" });
    const all = lanes(rows)[1];
    const under = (x: number) => barAt(all ? place(all) : [], x, 110, true)?.span;
    expect([under(206), under(210), under(510)]).toEqual([inner, next, agent]);
  });

  test("a session's ground reaches to now while it goes on, else to its last event", () => {
    const ground = (status: Session["status"], more: Partial<Session> = {}) => {
      const [lane] = lanes(rowsWith({ id: "s1", status, last_event_at: iso(NOW + 400), ...more }));
      return lane && groundOf(lane, VIEW)?.width;
    };
    expect([ground("active"), ground("stale"), ground("completed")]).toEqual([900, 400, 400]);
    // Its sender was lost then, and its calls end there.
    const stale_at = iso(NOW + 600);
    expect(ground("stale", { stale_at, is_lost: true })).toBe(600);
    expect(ground("stale", { stale_at })).toBe(400);
  });
});

describe("the window", () => {
  test("it is no shorter than 200 ms, no longer than a month, and half in the future at most", () => {
    expect(windowOf(NOW - 50, NOW - 40, NOW).length).toBe(200);
    expect(windowOf(0, NOW, NOW).length).toBe(31 * 24 * HOUR_MS);
    expect(windowOf(NOW, NOW + 100_000, NOW)).toEqual({ length: 100_000, end: NOW + 50_000 });
  });

  test("zooming keeps the anchor where it is", () => {
    const shown = createWindow(
      () => createRows(),
      () => NOW + 900,
      () => {},
    );
    shown.show(NOW, NOW + 1_000);
    expect(toX(VIEW, NOW + 250)).toBe(250);
    shown.zoom(1 / 2, NOW + 250);
    const view = { ...VIEW, ...shown.now() };
    expect(view.length).toBe(500);
    expect(toX(view, NOW + 250)).toBeCloseTo(250, 5);
  });

  test("it fits what goes on: all work up to the latest pause, in a window of a round length", () => {
    const rows = rowsWith({ id: "a" }, { id: "b" });
    const fit = (seconds: number, family: string[] = []) => {
      rows.family = new Set(family);
      return fitted(rows, NOW + seconds * SECOND_MS);
    };
    const work = (session_id: string, from: number, to: number | null, more: Partial<Span> = {}) =>
      add(rows, from * SECOND_MS, to && to * SECOND_MS, { session_id, ...more });
    expect(fitted(createRows(), NOW)).toBeNull();
    work("a", 0, 40);
    work("a", 300, 308);
    work("b", 310, 315);
    const at315 = NOW + 315 * SECOND_MS;
    const following = (length: number, end: number) => ({
      follows: true,
      window: { length, end: end + length * NOW_MARGIN },
    });
    expect(fit(315)).toEqual(following(30_000, at315));
    // Of a session's page the whole is shown only where its latest work is seen in it.
    expect(fit(315, ["a"])).toEqual(following(30_000, at315));
    work("a", 260, 299);
    expect(fit(315, ["a"])).toEqual(following(10 * MINUTE_MS, at315));
    // From its beginning, where its first call soon follows that.
    const asks = rowsWith({ id: "a", waiting_since: iso(NOW + 9_000) });
    add(asks, 9_000, null, { session_id: "a" });
    asks.family = new Set(["a"]);
    expect(fitted(asks, NOW + HOUR_MS)?.window).toEqual({ end: NOW + 12_000, length: 13_000 });
    // It goes on, and grows in steps; of the pause in which it waits for the person some is seen.
    const long = work("b", 320, null);
    expect(fit(400)?.window.length).toBe(3 * MINUTE_MS);
    expect(fit(7_200)?.window.length).toBe(15 * MINUTE_MS);
    expect(fit(7_200, ["b"])?.window.length).toBe(3 * HOUR_MS);
    takeSession(rows, sessionRow("b", { waiting_since: iso(NOW + 340_000) }), 2);
    const quiet = fit(7_200);
    expect(quiet?.follows).toBe(false);
    const pad = 80_000 * NOW_MARGIN;
    expect(quiet?.window.end).toBeCloseTo(NOW + 340_000 + 80_000 / 3, 2);
    expect(quiet?.window.length).toBeCloseTo(80_000 + pad + 80_000 / 3, 2);
    expect(long.end).toBeNull();
  });

  test("while it fits, it grows at once with what goes on, and shrinks where little of it is needed", () => {
    const rows = rowsWith({ id: "a" });
    const long = add(rows, 0, null, { session_id: "a" });
    const shown = createWindow(
      () => rows,
      () => NOW,
      () => {},
    );
    const lengthAt = (seconds: number) => shown.at(NOW + seconds * SECOND_MS).length;
    const first = lengthAt(20);
    const grown = lengthAt(300);
    expect(grown).toBeGreaterThan(first);
    takeSpan(rows, { ...long.row, ended_at: iso(NOW + 301_000) }, 2);
    add(rows, 400 * SECOND_MS, null, { session_id: "a" });
    expect(lengthAt(402)).toBeLessThan(grown);
    shown.zoom(1 / 2, NOW);
    const chosen = lengthAt(403);
    expect(lengthAt(900)).toBe(chosen);
  });

  test("without calls it is around the latest event; of a lost session until it was lost", () => {
    const rows = rowsWith({ id: "a", status: "completed", last_event_at: iso(NOW + 10_000) });
    expect(fitted(rows, NOW + HOUR_MS)?.window).toEqual({ end: NOW + 11_000, length: 2_000 });
    const lost = { status: "stale", is_lost: true, stale_at: iso(NOW + 30_000) } as const;
    const others = rowsWith({ id: "a", ...lost });
    add(others, 0, 30_000, { session_id: "a" });
    others.family = new Set(["a"]);
    const fit = fitted(others, NOW + HOUR_MS);
    expect(fit).toEqual({ follows: false, window: { end: NOW + 31_000, length: 32_000 } });
  });

  test("ticks: far enough apart for their labels, at round times of the viewer's zone", () => {
    const view = { ...VIEW, end: NOW + 2 * HOUR_MS, length: 15 * MINUTE_MS };
    const ticks = ticksOf(view, 0);
    expect(ticks.map(({ at }) => (at - view.end) / MINUTE_MS)).toEqual([
      -14, -12, -10, -8, -6, -4, -2, 0,
    ]);
    const days = ticksOf({ ...VIEW, length: 48 * HOUR_MS }, -2 * HOUR_MS);
    expect(days.filter(({ isDay }) => isDay).map(({ at }) => iso(at).slice(11, 16))).toEqual([
      "22:00",
      "22:00",
    ]);
  });
});

describe("walking", () => {
  test("left and right in the lane, up and down to the nearest in time", () => {
    const rows = rowsWith({ id: "s1", started_at: iso(NOW + 1) }, { id: "s2" }, { id: "s0" });
    const [a, b] = [add(rows, 100, 110), add(rows, 300, 310, { kind: "model" })];
    const [c, d] = [0, 290].map((at) => add(rows, at, at + 5, { session_id: "s0" }));
    const found = lanes(rows);
    expect(found.map((lane) => lane.key)).toEqual(["s1", "s2", "s0"]);
    const from = (span: SpanEntry | undefined, key: "Left" | "Right" | "Up" | "Down") =>
      walk(found, span?.row.id ?? null, `Arrow${key}`);
    expect(from(undefined, "Left")).toBe(b);
    expect([from(b, "Left"), from(a, "Right"), from(b, "Right")]).toEqual([a, b, undefined]);
    // The lane between has nothing to stop at.
    expect([from(b, "Down"), from(a, "Down"), from(c, "Up")]).toEqual([d, c, a]);
    expect(from(c, "Down")).toBeUndefined();
  });
});

test("beside a lane: that its session was lost, since when it waits, how long its agent runs", () => {
  const beside = (more: Partial<Session>, agent = false) => {
    const rows = rowsWith({ id: "s1", ...more });
    if (agent) add(rows, 0, null, { kind: "agent", name: "a" });
    const lane = lanes(rows).at(-1);
    return lane && stateOf(lane, NOW + 5_000).beside;
  };
  expect(beside({})).toBe("");
  expect(beside({ waiting_since: iso(NOW) })).toBe("5 s");
  expect(beside({ status: "stale", stale_at: iso(NOW + 9), is_lost: true })).toBe("lost");
  expect(beside({}, true)).toBe("5.0 s");
});

test("an agent's lane is one also where the call that sent it out isn't here", () => {
  const info = { title: "Look (@explore subagent)", agent: "explore" };
  const rows = rowsWith(
    { id: "s1", info: { title: "Do it", agent: "build" } },
    { id: "kid", parent_session_id: "s1", info },
  );
  const found = lanes(rows).map((lane) => {
    return [lane.kind, lane.label, lane.badge, stateOf(lane, NOW + 5_000).beside];
  });
  expect(found).toEqual([
    ["session", "Do it", null, ""],
    ["agent", "Look", "explore", "5.0 s"],
  ]);
});

test("an agent's lane: that its model is refused; of one that was stopped another mark than of one that is done", () => {
  const state = (to: number | null, outcome: Span["outcome"], now: Session["now"] = null) => {
    const rows = rowsWith({ id: "s1" }, { id: "kid", parent_session_id: "s1", now });
    add(rows, 0, to, { kind: "agent", child_session_id: "kid", outcome });
    const lane = lanes(rows).at(-1);
    return lane && stateOf(lane, NOW + 50).state;
  };
  const retry = { kind: "retry", name: null, text: null, started_at: iso(NOW) } as Session["now"];
  expect([state(null, null), state(null, null, retry)]).toEqual(["running", "retrying"]);
  const ended = [state(9, "ok"), state(9, "failed"), state(9, "cancelled")];
  expect(ended).toEqual(["completed", "failed", "cancelled"]);
});

describe("a bar in words", () => {
  test.each<[string, number, number | null, Partial<Span>, string]>([
    ["an end", 0, 500, {}, "bash · 500 ms"],
    ["a failure", 0, 500, { outcome: "failed" }, "bash · failed · 500 ms"],
    [
      "an exit code",
      0,
      500,
      { outcome: "exit", attributes: { exit_code: 2 } },
      "bash · exit 2 · 500 ms",
    ],
    [
      "a call that waited",
      0,
      500,
      { waited_ms: 400 },
      "bash · 500 ms · 400 ms of it waiting for you",
    ],
    ["denied", 0, 500, { outcome: "denied" }, "bash · denied · 500 ms"],
    ["cancelled", 0, 500, { outcome: "cancelled" }, "bash · cancelled · 500 ms"],
    ["a running agent", 0, null, { kind: "agent", name: "x" }, "Agent x · running · 900 ms"],
    ["a model", 0, 9, { kind: "model", name: "opus" }, "Model opus · 9 ms"],
    [
      "an open wait",
      0,
      null,
      { kind: "wait", name: "permission" },
      "Waits for you: permission · not answered yet · 900 ms",
    ],
    ["a moment", 5, 5, { duration_ms: null }, "bash · length not known"],
  ])("%s", (_, from, to, more, expected) => {
    const rows = rowsWith({ id: "s1", info: { title: "Fix it" } });
    const words = inWords(rows, add(rows, from, to, more), VIEW.now)
      .slice(0, 2)
      .join(" · ");
    expect(words).toStartWith(`${expected} · `);
    expect(words).toEndWith(" · Fix it");
  });
});

/** The `task` calls in the captured traffic: when each began and ended. */
function capturedAgents(): { type: string; start: number; end: number }[] {
  const agents = new Map<string, { type: string; start: number; end: number }>();
  for (const { input } of openCodeHooks()) {
    const text = JSON.stringify(input);
    if (!text.includes('"tool":"task"') || !text.includes('"status":"completed"')) continue;
    const call = /"callID":"([^"]+)"/.exec(text)?.[1];
    const type = /"subagent_type":"([^"]+)"/.exec(text)?.[1];
    const time = /"time":\{"start":(\d+),"end":(\d+)/.exec(text);
    if (call && type && time)
      agents.set(call, { type, start: Number(time[1]), end: Number(time[2]) });
  }
  return [...agents.values()];
}
