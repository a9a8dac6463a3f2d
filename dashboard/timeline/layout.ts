/** Where everything stands in the timeline: lanes, bars, ticks, the window. Pure: tested without a browser. */

import { oneLine } from "../events.ts";
import { HOUR_MS, MINUTE_MS, SECOND_MS, sessionName } from "../format.ts";
import {
  EMPTY_GROUP,
  type Rows,
  type SessionEntry,
  type SpanEntry,
  type SpanGroup,
  isFailedSpan,
  isLive,
  shownEnd,
  spansOf,
} from "../rows.ts";
import { type TreeNode, treeOf } from "../tree.ts";

const MIN_LENGTH_MS = 200;
/** A month: more than any retention that is usual. */
const MAX_LENGTH_MS = 31 * 24 * HOUR_MS;
/** Of the window, kept free at the right of now, so that growing bars are seen to end there. */
export const NOW_MARGIN = 0.03;

/** Work without a pause as long as this belongs together, and is shown together. */
const PAUSE_MS = 30 * SECOND_MS;
/** Of all sessions, the work that is shown at first; someone always works. */
const MAX_FITTED_MS = 15 * MINUTE_MS;
/** Of a session's whole time, that its latest work must fill to be seen in it. */
const MIN_SHARE = 1 / 8;
/** As much of a long wait for the person is seen, of the work before it. */
const WAIT_SHARE = 1 / 3;
/** Lengths of a window that ends now: it grows in steps, so that bars don't shrink all the time. */
const FITTED_MS = [
  ...[0.5, 1, 2, 3, 5, 10, 15, 20, 30, 45].map((minutes) => minutes * MINUTE_MS),
  ...[1, 1.5, 2, 3, 4, 6, 9, 12, 18, 24, 36, 72, 168].map((hours) => hours * HOUR_MS),
];

/** Of a lane, by itself and where calls at the same time stand below each other. */
const ROW_PX = { session: 18, agent: 14, shared: 13 };
/** A window as wide as this has room for higher rows. */
const WIDE_PX = 1_500;
const WIDE_ROW_PX = 5;
const LANE_PAD_PX = 5;
/** Where the labels stand over the lanes instead of beside them. */
const LABEL_PX = 18;
const SLOT_GAP_PX = 1;
/** Calls at the same time that can be told apart; a sixth is drawn over the fifth. */
const MAX_SLOTS = 5;
/** Of the window: a shorter call opens no row of its own. */
const HAIRLINE_SHARE = 1 / 200;
/** A model that answers: a line behind the calls, as it is what happens between them. */
const MODEL_PX = 4;
/** A shorter bar is drawn this long. */
const MIN_BAR_PX = 2;
/** How far from a bar a mouse may be; a finger's tip is wider. */
const SLOP_PX = 4;
const TOUCH_SLOP_PX = 12;

/** Lengths between two lines of the axis. */
const TICKS_MS = [
  100,
  200,
  500,
  ...[1, 2, 5, 10, 15, 30].map((seconds) => seconds * SECOND_MS),
  ...[1, 2, 5, 10, 15, 30].map((minutes) => minutes * MINUTE_MS),
  ...[1, 2, 3, 6, 12, 24, 48, 168].map((hours) => hours * HOUR_MS),
];
const MIN_TICK_PX = 88;

// ─── The window ──────────────────────────────────────────────────────────────

/** The time that is shown, in milliseconds. */
export interface Window {
  end: number;
  length: number;
}

/** From and to, where they can be shown: not too short, not too long, at most half of it in the future. */
export function windowOf(from: number, to: number, now: number): Window {
  const length = clamp(to - from, MIN_LENGTH_MS, MAX_LENGTH_MS);
  return { length, end: Math.min((from + to) / 2 + length / 2, now + length / 2) };
}

/** @param anchor the time that stays where it is */
export function zoomed(
  { end, length }: Window,
  factor: number,
  anchor: number,
  now: number,
): Window {
  const next = clamp(length * factor, MIN_LENGTH_MS, MAX_LENGTH_MS);
  const from = anchor - ((anchor - end + length) / length) * next;
  return windowOf(from, from + next, now);
}

/**
 * The window around what goes on, or went on last: all work up to the latest pause. Waiting for the
 * person is a pause, of which some is seen. Of a session's page it is the whole session, where its latest
 * work is seen in it.
 *
 * @returns null: there are no sessions
 */
export function fitted(rows: Rows, now: number): { window: Window; follows: boolean } | null {
  const isOverview = rows.family.size === 0;
  const sessions = [...rows.sessions.values()].filter(({ row }) => isShown(rows, row.id));
  if (sessions.length === 0) return null;
  const work = sessions.flatMap((session) => workOf(rows, session, now));
  work.sort((a, b) => b.end - a.end);
  const last = work[0]?.end ?? Math.max(...sessions.map(({ lastEventAt }) => lastEventAt));
  let [from, to] = [last, last];
  for (const { start, end } of work) {
    if (end < from - PAUSE_MS) break;
    from = Math.min(from, start);
  }
  const follows = sessions.some(isLive) && now - last <= Math.max(PAUSE_MS, 3 * (last - from));
  if (!isOverview) {
    const first = sessions.reduce((at, { startedAt }) => Math.min(at, startedAt), from);
    const end = Math.max(...sessions.map((entry) => endOf(entry, now)));
    if (to - from >= (end - first) * MIN_SHARE) [from, to] = [first, end];
  } else from = Math.max(from, last - MAX_FITTED_MS);
  if (!follows) {
    const pad = Math.max((to - from) * NOW_MARGIN, SECOND_MS);
    const isWaiting = sessions.some(({ row }) => row.waiting_since !== null);
    const after = isWaiting ? Math.max(pad, (to - from) * WAIT_SHARE) : pad;
    return { window: windowOf(from - pad, to + after, now), follows };
  }
  const needed = (now - from) / (1 - 2 * NOW_MARGIN);
  const wanted = isOverview ? Math.min(needed, MAX_FITTED_MS) : needed;
  const length = FITTED_MS.find((candidate) => candidate >= wanted) ?? MAX_LENGTH_MS;
  return { window: { length, end: now + length * NOW_MARGIN }, follows };
}

/** Of a session's page only what belongs to it. */
const isShown = ({ family }: Rows, id: string) => family.size === 0 || family.has(id);

/** When something was done: while it waits for the person, nothing is. */
function workOf(rows: Rows, { row }: SessionEntry, now: number): { start: number; end: number }[] {
  const { tool, model, agent } = spansOf(rows, row.id);
  const until = row.waiting_since === null ? now : Date.parse(row.waiting_since);
  return [...tool, ...model, ...agent].map((span) => ({
    start: span.start,
    end: shownEnd(span, until),
  }));
}

/** The window on the screen. */
export interface View extends Window {
  now: number;
  width: number;
  height: number;
  scrollTop: number;
  /** The labels stand over the lanes. */
  isNarrow: boolean;
  /** Drawn also where it falls on pixels that are taken: it is selected. */
  keptId: number | null;
}

export const toX = ({ end, length, width }: View, ms: number): number =>
  ((ms - end + length) / length) * width;

export const toMs = ({ end, length, width }: View, x: number): number =>
  end - length + (x / width) * length;

/** The lines of the axis. @param offset of the viewer's zone in milliseconds: days and hours are theirs, not UTC's */
export function ticksOf(
  { end, length, width }: View,
  offset: number,
): { at: number; isDay: boolean }[] {
  const step =
    TICKS_MS.find((candidate) => (candidate / length) * width >= MIN_TICK_PX) ?? 672 * HOUR_MS;
  const ticks = [];
  for (let at = Math.ceil((end - length - offset) / step) * step + offset; at <= end; at += step)
    ticks.push({ at, isDay: (at - offset) % (24 * HOUR_MS) === 0 });
  return ticks;
}

// ─── Lanes ───────────────────────────────────────────────────────────────────

/** A row of the timeline: a session, or a subagent of it, with what is drawn there. */
interface LaneHead {
  key: string;
  session: SessionEntry;
  kind: "session" | "agent";
  depth: number;
  label: string;
  /** The type of its agent, where the label doesn't say it. */
  badge: string | null;
  /** Its agents are those that work here: several where they follow each other. */
  spans: Readonly<SpanGroup>;
}

/** With its calls in the window, each with its row; and where it stands, in pixels below the top of the first. */
export interface Lane extends LaneHead {
  calls: { span: SpanEntry; slot: number }[];
  top: number;
  height: number;
  /** Of the rows of its calls together, and of each. */
  rowsTop: number;
  rowsHeight: number;
  rowHeight: number;
}

/**
 * The lanes with something in the window. What goes on stands above what has ended, what started
 * later above what started earlier: new events don't disturb that order.
 */
export function lanesOf(rows: Rows, view: View): Lane[] {
  const { now, end, length } = view;
  const { order, nodes } = treeOf(rows);
  const isInWindow = (from: number, to: number) => from <= end && to >= end - length;
  const shown = new Set<TreeNode>();
  const agentsOf = new Map<TreeNode, SpanEntry[]>();
  const slotsOf = new Map<TreeNode, SpanEntry[][]>();
  for (const node of order.toReversed()) {
    const { row, startedAt } = node.entry;
    const slots: SpanEntry[][] = [];
    for (const span of spansOf(rows, row.id).agent) {
      const child = nodes.get(span.row.child_session_id ?? "");
      if (child?.parent === node) agentsOf.set(child, [...(agentsOf.get(child) ?? []), span]);
      else if (isInWindow(span.start, shownEnd(span, now))) packSpan(slots, span, now);
    }
    if (!isShown(rows, row.id)) continue;
    slotsOf.set(node, slots);
    if (slots.length > 0 || isInWindow(startedAt, endOf(node.entry, now))) shown.add(node);
    if (shown.has(node) && node.parent !== null) shown.add(node.parent);
  }
  const heads: LaneHead[] = [];
  for (const node of order) {
    const slots = slotsOf.get(node);
    if (slots === undefined || !shown.has(node)) continue;
    heads.push(sessionLane(rows, node, agentsOf.get(node) ?? []), ...agentLanes(node, slots));
  }
  let top = 0;
  return heads.map((head) => {
    const lane = placeLane(head, top, view);
    top += lane.height;
    return lane;
  });
}

function placeLane(head: LaneHead, top: number, view: View): Lane {
  const { calls, rowCount } = packCalls(head.spans.tool, view);
  const wider = view.width < WIDE_PX ? 0 : WIDE_ROW_PX;
  const rowHeight = ROW_PX[rowCount > 1 ? "shared" : head.kind] + wider;
  const rowsHeight = rowCount * (rowHeight + SLOT_GAP_PX) - SLOT_GAP_PX;
  const label = view.isNarrow ? LABEL_PX : 0;
  const height = rowsHeight + 2 * LANE_PAD_PX + label;
  const rowsTop = top + LANE_PAD_PX + label;
  return Object.assign(head, { calls, top, height, rowsTop, rowsHeight, rowHeight });
}

/** Where the lane of a session ends. */
function endOf(entry: SessionEntry, now: number): number {
  const { is_lost, stale_at } = entry.row;
  const to = isLive(entry) ? now : is_lost ? Date.parse(stale_at ?? "") : 0;
  return Math.max(to || 0, entry.lastEventAt);
}

/** Agents of one type that follow each other share a lane; those that overlap don't. */
function packSpan(slots: SpanEntry[][], span: SpanEntry, now: number): void {
  const slot = slots.find((spans) => {
    const last = spans.at(-1);
    return last?.row.name === span.row.name && shownEnd(last, now) <= span.start;
  });
  if (slot === undefined) slots.push([span]);
  else slot.push(span);
}

/** A call has the first row that is free when it begins. */
function packCalls(tools: readonly SpanEntry[], view: View) {
  const hairline = view.length * HAIRLINE_SHARE;
  const takenTo: number[] = [];
  const calls: Lane["calls"] = [];
  for (const span of tools) {
    const end = shownEnd(span, view.now);
    if (end < view.end - view.length) continue;
    if (span.start > view.end) break;
    let slot = takenTo.findIndex((until) => until <= span.start);
    const mayOpen = takenTo.length < (end - span.start < hairline ? 1 : MAX_SLOTS);
    if (slot < 0) slot = takenTo.length - (mayOpen ? 0 : 1);
    takenTo[slot] = Math.max(takenTo[slot] ?? 0, end);
    calls.push({ span, slot });
  }
  return { calls, rowCount: Math.max(1, takenTo.length) };
}

function sessionLane(rows: Rows, { entry, depth }: TreeNode, agents: SpanEntry[]): LaneHead {
  const spans = spansOf(rows, entry.row.id);
  const agentCalls = new Set(spans.agent.map(({ row }) => row.call_id));
  agentCalls.delete(null);
  // The call that spawned an agent has the agent's lane.
  const isShown = ({ row }: SpanEntry) => !agentCalls.has(row.call_id);
  const tool = agentCalls.size === 0 ? spans.tool : spans.tool.filter(isShown);
  return {
    key: entry.row.id,
    session: entry,
    kind: agents.length === 0 ? "session" : "agent",
    depth,
    ...namesOf(agents, sessionName(entry.row)),
    spans: { ...spans, tool, agent: agents, model: answered(spans) },
  };
}

/** An agent is called by its task, beside it its type; where several follow each other, it is the last one's. */
function namesOf(agents: readonly SpanEntry[], other?: string): Pick<Lane, "label" | "badge"> {
  const { name = null, text = null } = agents.at(-1)?.row ?? {};
  const label = (text === null ? other : oneLine(text)) ?? name ?? "";
  return { label, badge: name === label ? null : name };
}

/**
 * Models with their end where they called their latest tool: that a step is over is told after its
 * calls, and of one that was cut off among them never.
 */
function answered({ model, tool }: Readonly<SpanGroup>): SpanEntry[] {
  return model.map((span) => {
    if (span.end !== null && span.row.outcome !== "cancelled") return span;
    const call = tool.findLast(({ start }) => start <= (span.end ?? Infinity));
    return call === undefined || call.start < span.start ? span : { ...span, end: call.start };
  });
}

function agentLanes({ entry, depth }: TreeNode, slots: SpanEntry[][]): LaneHead[] {
  const runs = ({ spans }: LaneHead) => Number(spans.agent.some(({ end }) => end === null));
  const startOf = ({ spans }: LaneHead) => spans.agent.at(-1)?.start ?? 0;
  return slots
    .map((agent, slot): LaneHead => ({
      key: `${entry.row.id}\n${agent[0]?.row.name}\n${slot}`,
      session: entry,
      kind: "agent",
      depth: depth + 1,
      ...namesOf(agent),
      spans: { ...EMPTY_GROUP, agent },
    }))
    .sort((a, b) => runs(b) - runs(a) || startOf(b) - startOf(a));
}

// ─── Bars ────────────────────────────────────────────────────────────────────

/** A span on the screen, in pixels of the canvas. */
export interface Bar {
  span: SpanEntry;
  lane: Lane;
  x: number;
  y: number;
  width: number;
  height: number;
  /** Of a call, at its beginning: waiting of which no bar tells. */
  waitedPx?: number;
  /** How far from its left all waiting is over, and its name has room. */
  freePx?: number;
}

/** The ground of a session's lane, under its bars; null: the lane is an agent's within its parent's session. */
export function groundOf(lane: Lane, view: View): Omit<Bar, "span"> | null {
  const { session, rowsTop, rowsHeight } = lane;
  if (lane.key !== session.row.id) return null;
  const x = toX(view, session.startedAt);
  const width = toX(view, endOf(session, view.now)) - x;
  return { lane, x, y: rowsTop - view.scrollTop - 2, width, height: rowsHeight + 4 };
}

/** The bars of a lane in the order in which they are drawn. */
export function barsOf(lane: Lane, view: View): Bar[] {
  const { rowsTop, rowsHeight: height, rowHeight } = lane;
  const y = rowsTop - view.scrollTop;
  const wide = { lane, y: y - 2, height: height + 4 };
  const thin = { lane, y: y + (rowHeight - MODEL_PX) / 2, height: MODEL_PX };
  const [bars, calls]: [Bar[], Bar[]] = [[], []];
  const waits = Map.groupBy(lane.spans.wait, ({ row }) => row.call_id);
  placeCalls(calls, waits, lane, y, view);
  placeSpans(bars, lane.spans.agent, wide, view);
  placeSpans(bars, [...waits.values()].flat(), wide, view);
  placeSpans(bars, lane.spans.model, thin, view);
  bars.push(...calls);
  for (const span of lane.spans.mark) {
    const x = toX(view, span.start);
    if (x >= -8 && x <= view.width + 8) bars.push({ span, lane, x: x - 4, y, width: 8, height });
  }
  return bars;
}

const isKept = (span: SpanEntry, { keptId }: View) => isFailedSpan(span) || span.row.id === keptId;

/** What is shorter than a pixel and adds none to what is drawn is left out, unless it is to be found. */
function placeSpans(
  bars: Bar[],
  spans: readonly SpanEntry[],
  place: Omit<Bar, "span" | "x" | "width">,
  view: View,
): void {
  let takenTo = -Infinity;
  for (const span of spans) {
    const x = toX(view, span.start);
    const x2 = toX(view, shownEnd(span, view.now));
    if (x2 < 0 || x > view.width) continue;
    if (x2 - x < 1 && x2 < takenTo + 1 && !isKept(span, view)) continue;
    takenTo = Math.max(takenTo, x2, x + MIN_BAR_PX);
    bars.push({ span, ...place, x, width: Math.max(MIN_BAR_PX, x2 - x) });
  }
}

/**
 * The calls of a lane, each in its row. What adds less than a pixel to what is drawn is left out,
 * unless it is to be found. What a call waits for the person is drawn in its bar.
 *
 * @param waits by call_id; those of calls that are drawn are taken out
 */
function placeCalls(
  bars: Bar[],
  waits: Map<string | null, SpanEntry[]>,
  lane: Lane,
  y: number,
  view: View,
): void {
  const height = lane.rowHeight;
  const takenTo: number[] = [];
  for (const { span, slot } of lane.calls) {
    const x = toX(view, span.start);
    const width = Math.max(MIN_BAR_PX, toX(view, shownEnd(span, view.now)) - x);
    if (x + width < (takenTo[slot] ?? -Infinity) + 1 && !isKept(span, view)) continue;
    takenTo[slot] = x + width;
    // A gap of one pixel, where there is room, keeps calls apart that follow at once.
    const shown = width > 4 && span.end !== null ? width - 1 : width;
    const place = { lane, y: y + slot * (height + SLOT_GAP_PX), height };
    const { call_id, waited_ms } = span.row;
    const asked = call_id === null ? undefined : waits.get(call_id);
    const waitedPx = asked ? 0 : Math.min(shown, ((waited_ms ?? 0) / view.length) * view.width);
    const ends = asked?.map((wait) => toX(view, shownEnd(wait, view.now)) - x) ?? [];
    const freePx = Math.max(waitedPx, ...ends);
    bars.push({ span, ...place, x, width: shown, waitedPx, freePx });
    placeSpans(bars, asked ?? [], place, view);
    if (asked !== undefined) waits.delete(call_id);
  }
}

/** The bar under the pointer, or the nearest to it; null: none. */
export function barAt(bars: readonly Bar[], x: number, y: number, isTouch = false): Bar | null {
  const slop = isTouch ? TOUCH_SLOP_PX : SLOP_PX;
  let best: Bar | null = null;
  let least = slop;
  for (const bar of bars) {
    const dx = Math.max(bar.x - x, 0, x - (bar.x + bar.width));
    if (dx > slop || y < bar.y - 1 || y > bar.y + bar.height + 1) continue;
    // What is drawn later lies on top; an agent is around its calls, a model between them.
    const { kind } = bar.span.row;
    const distance = kind === "agent" || kind === "model" ? slop : dx;
    if (distance > least) continue;
    [best, least] = [bar, distance];
  }
  return best;
}

// ─── Walking ─────────────────────────────────────────────────────────────────

export type WalkKey = "ArrowLeft" | "ArrowRight" | "ArrowUp" | "ArrowDown";

/** All that is drawn in a lane, by start. */
function spansIn(lane: Lane): SpanEntry[] {
  return Object.values(lane.spans)
    .flat()
    .sort((a, b) => a.start - b.start || a.row.id - b.row.id);
}

/** Where a span is drawn; undefined: nowhere. */
export function laneOf(lanes: readonly Lane[], id: number): Lane | undefined {
  return lanes.find((lane) => spansIn(lane).some(({ row }) => row.id === id));
}

/** The span that an arrow key leads to: left and right in the lane, up and down to the nearest in time. */
export function walk(
  lanes: readonly Lane[],
  selectedId: number | null,
  key: WalkKey,
): SpanEntry | undefined {
  const isSelected = ({ row }: SpanEntry) => row.id === selectedId;
  const stops = lanes.map(spansIn).filter((spans) => spans.length > 0);
  const at = stops.findIndex((spans) => spans.some(isSelected));
  const spans = stops[at];
  if (spans === undefined) return stops[0]?.at(-1);
  const position = spans.findIndex(isSelected);
  if (key === "ArrowLeft") return spans[position - 1];
  if (key === "ArrowRight") return spans[position + 1];
  const from = spans[position]?.start ?? 0;
  const distance = ({ start }: SpanEntry) => Math.abs(start - from);
  return stops[key === "ArrowUp" ? at - 1 : at + 1]?.sort((a, b) => distance(a) - distance(b))[0];
}

export function clamp(value: number, min: number, max: number): number {
  return Math.min(max, Math.max(min, value));
}
