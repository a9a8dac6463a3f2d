/** Where everything stands in the timeline: lanes, bars, ticks. Pure: tested without a browser. */

import { asText, oneLine } from "../events.ts";
import { HOUR_MS, MINUTE_MS, SECOND_MS } from "../format.ts";
import {
  type Rows,
  type SpanEntry,
  type SpanGroup,
  type Stretch,
  byStart,
  emptyGroup,
  endOf,
  isFailedSpan,
  isShown,
  labelOf,
  shownEnd,
  spansOf,
  toolsOf,
} from "../rows.ts";
import { type TreeNode, treeOf } from "../tree.ts";
import { type Window, clamp } from "./window.ts";

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
const MARK_PX = 8;
/** A shorter bar is drawn this long. */
const MIN_BAR_PX = 2;
/** Bars end here, beyond the canvas: it is slow with one of a million pixels. */
const EDGE_PX = 8;
/** How far from a bar a mouse may be; a finger's tip is wider. */
const SLOP_PX = 4;
const TOUCH_SLOP_PX = 12;

/** Lengths between two lines of the axis. */
const TICKS_MS = [
  ...[100, 200, 500],
  ...[1, 2, 5, 10, 15, 30].map((seconds) => seconds * SECOND_MS),
  ...[1, 2, 5, 10, 15, 30].map((minutes) => minutes * MINUTE_MS),
  ...[1, 2, 3, 6, 12, 24, 48, 168].map((hours) => hours * HOUR_MS),
];
const MIN_TICK_PX = 88;

/** The window on the screen. */
export interface View extends Window {
  now: number;
  width: number;
  height: number;
  scrollTop: number;
  /** The labels stand over the lanes. */
  isNarrow: boolean;
  /** Drawn also where they fall on pixels that are taken. */
  selectedId: number | null;
  /** Where the pointer is, or the arrow keys. */
  hoveredId: number | null;
}

export const toX = ({ end, length, width }: View, ms: number): number =>
  ((ms - end + length) / length) * width;

const isInWindow = ({ end, length, now }: View, stretch: Stretch): boolean =>
  stretch.start <= end && shownEnd(stretch, now) >= end - length;

/** The lines of the axis. @param offset of the viewer's zone in milliseconds: days and hours are theirs, not UTC's */
export function ticksOf({ end, length, width }: View, offset: number) {
  const step =
    TICKS_MS.find((candidate) => (candidate / length) * width >= MIN_TICK_PX) ?? 672 * HOUR_MS;
  const ticks = [];
  for (let at = Math.ceil((end - length - offset) / step) * step + offset; at <= end; at += step)
    ticks.push({ at, isDay: (at - offset) % (24 * HOUR_MS) === 0 });
  return ticks;
}

// ─── Lanes ───────────────────────────────────────────────────────────────────

/** A row of the timeline: a session, or a subagent of it, with what is drawn there. */
type LaneHead = ReturnType<typeof sessionLane>;

export type Lane = ReturnType<typeof placeLane>;

/**
 * The lanes with something in the window. What goes on stands above what has ended, what started
 * later above what started earlier: new events don't disturb that order.
 */
export function lanesOf(rows: Rows, view: View): Lane[] {
  const { order, nodes } = treeOf(rows);
  const agents = order.flatMap(({ entry }) => spansOf(rows, entry.row.id).agent);
  /** Those whose work is a session below, which has a lane; the others have lanes of their own. */
  const withSession = Map.groupBy(agents, ({ row }) => {
    const child = nodes.get(row.child_session_id ?? "");
    return child?.parent?.entry.row.id === row.session_id ? child : null;
  });
  const others = withSession.get(null)?.filter((span) => isInWindow(view, span)) ?? [];
  const othersOf = Map.groupBy(others, ({ row }) => row.session_id);
  const shown = new Set<TreeNode>();
  for (const node of order.toReversed()) {
    const { entry, parent } = node;
    const stretch = { start: entry.startedAt, end: endOf(entry, view.now) };
    if (isInWindow(view, stretch) || othersOf.has(entry.row.id)) shown.add(node);
    if (shown.has(node) && parent !== null) shown.add(parent);
  }
  let top = 0;
  return order
    .filter((node) => shown.has(node) && isShown(rows, node.entry.row.id))
    .flatMap((node) => [
      sessionLane(rows, node, withSession.get(node) ?? []),
      ...agentLanes(node, othersOf.get(node.entry.row.id) ?? [], view.now),
    ])
    .map((head) => {
      const lane = placeLane(head, top, view);
      top += lane.height;
      return lane;
    });
}

/** @param top in pixels below that of the first lane, as `rowsTop`, where the rows of its calls begin */
function placeLane(head: LaneHead, top: number, view: View) {
  const kind = head.depth > 0 || head.spans.agent.length > 0 ? "agent" : "session";
  const { calls, rowCount } = packCalls(head.spans.tool, view);
  const wider = view.width < WIDE_PX ? 0 : WIDE_ROW_PX;
  const rowHeight = ROW_PX[rowCount > 1 ? "shared" : kind] + wider;
  const rowsHeight = rowCount * (rowHeight + SLOT_GAP_PX) - SLOT_GAP_PX;
  const label = view.isNarrow ? LABEL_PX : 0;
  const height = rowsHeight + 2 * LANE_PAD_PX + label;
  const rowsTop = top + LANE_PAD_PX + label;
  return { ...head, kind, calls, top, height, rowsTop, rowsHeight, rowHeight };
}

/** The calls in the window; each has the first row that is free when it begins. */
function packCalls(tools: readonly SpanEntry[], view: View) {
  const hairline = view.length * HAIRLINE_SHARE;
  const takenTo: number[] = [];
  const calls = new Array<{ span: SpanEntry; slot: number }>();
  for (const span of tools) {
    if (!isInWindow(view, span)) continue;
    const end = shownEnd(span, view.now);
    let slot = takenTo.findIndex((until) => until <= span.start);
    const mayOpen = takenTo.length < (end - span.start < hairline ? 1 : MAX_SLOTS);
    if (slot < 0) slot = takenTo.length - (mayOpen ? 0 : 1);
    takenTo[slot] = Math.max(takenTo[slot] ?? 0, end);
    calls.push({ span, slot });
  }
  return { calls, rowCount: Math.max(1, takenTo.length) };
}

function sessionLane(rows: Rows, { entry, depth }: TreeNode, agent: SpanEntry[]) {
  const { id } = entry.row;
  const spans = spansOf(rows, id);
  return {
    key: id,
    session: entry,
    depth,
    ...namesOf(agent, labelOf(entry), depth === 0 ? null : asText(entry.row.info.agent)),
    /** Its agents are those that work here: several where they follow each other. */
    spans: { ...spans, tool: toolsOf(rows, id), agent, model: answered(spans) },
  };
}

/**
 * An agent is called by its task, beside it its type; where several follow each other, it is the last one's.
 * @param type where the call that sent it out isn't here
 */
function namesOf(agents: readonly SpanEntry[], other?: string, type: string | null = null) {
  const { name = type, text = null } = agents.at(-1)?.row ?? {};
  const label = (text === null ? other : oneLine(text)) ?? name ?? "";
  return { label, badge: name === label ? null : name }; // where it says more
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

/** Of agents without a session of their own. Those of one type that follow each other share a lane. */
function agentLanes({ entry, depth }: TreeNode, agents: SpanEntry[], now: number): LaneHead[] {
  const slots: SpanEntry[][] = [];
  for (const span of agents) {
    const free = slots.find((slot) =>
      slot.every(({ row, end }) => row.name === span.row.name && (end ?? now) <= span.start),
    );
    if (free === undefined) slots.push([span]);
    else free.push(span);
  }
  const runs = ({ spans }: LaneHead) => Number(spans.agent.some(({ end }) => end === null));
  const startOf = ({ spans }: LaneHead) => spans.agent.at(-1)?.start ?? 0;
  return slots
    .map((agent, slot): LaneHead => ({
      key: `${entry.row.id}\n${agent[0]?.row.name}\n${slot}`,
      session: entry,
      depth: depth + 1,
      ...namesOf(agent),
      spans: { ...emptyGroup(), agent },
    }))
    .sort((a, b) => runs(b) - runs(a) || startOf(b) - startOf(a));
}

// ─── Bars ────────────────────────────────────────────────────────────────────

/** In pixels of the canvas. */
export type Box = Pick<DOMRect, "x" | "y" | "width" | "height">;

export interface Bar extends Box {
  span: SpanEntry;
  lane: Lane;
  /** Of a call: how far from its left all waiting is over, and its name has room. */
  freePx?: number;
}

/** From there to there, as far as it is seen. */
function stretchOf(view: View, from: number, to: number) {
  const edgeX = (ms: number) => clamp(toX(view, ms), -EDGE_PX, view.width + EDGE_PX);
  return { x: edgeX(from), width: edgeX(to) - edgeX(from) };
}

/** The ground of a session's lane, under its bars; null: the lane is an agent's within its parent's session. */
export function groundOf({ key, session, rowsTop, rowsHeight }: Lane, view: View): Box | null {
  if (key !== session.row.id) return null;
  const stretch = stretchOf(view, session.startedAt, endOf(session, view.now));
  return { ...stretch, y: rowsTop - view.scrollTop - 2, height: rowsHeight + 4 };
}

/**
 * The bars of a lane in the order in which they are drawn. What is shorter than a pixel and adds none to
 * what is drawn is left out, unless it is to be found. What a call waits for is drawn in its bar.
 */
export function barsOf(lane: Lane, view: View): Bar[] {
  const { spans, rowsHeight: height, rowHeight } = lane;
  const y = lane.rowsTop - view.scrollTop;
  const keptIds = [view.selectedId, view.hoveredId];
  /** Up to where there are bars already, by how far from above. */
  const takenTo = new Map<number, number>();

  const isSeen = (span: SpanEntry) => isInWindow(view, span);

  function barOf(span: SpanEntry, y: number, height: number): Bar {
    const { x, width } = stretchOf(view, span.start, shownEnd(span, view.now));
    return { span, lane, x, y, width: Math.max(MIN_BAR_PX, width), height };
  }

  /** A bar of one that is seen; null: left out. */
  function placeOne(span: SpanEntry, y: number, height: number): Bar | null {
    const bar = barOf(span, y, height);
    const taken = takenTo.get(y) ?? -Infinity;
    const right = bar.x + bar.width;
    const isKept = isFailedSpan(span) || keptIds.includes(span.row.id);
    if (bar.width === MIN_BAR_PX && right < taken + 1 && !isKept) return null;
    takenTo.set(y, Math.max(taken, right));
    return bar;
  }

  const place = (y: number, height: number, all: readonly SpanEntry[]): Bar[] =>
    all.filter(isSeen).flatMap((span) => placeOne(span, y, height) ?? []);

  // Few lanes have any, and many calls: the set is made for those.
  const asking = spans.wait.length === 0 ? [] : lane.calls;
  const calls = new Set(asking.flatMap(({ span }) => span.row.call_id ?? []));
  const isOfCall = ({ row }: SpanEntry) => calls.has(row.call_id ?? "");
  const waits = Map.groupBy(spans.wait.filter(isOfCall), ({ row }) => row.call_id);

  function placeCall({ span, slot }: Lane["calls"][number]): Bar[] {
    const bar = placeOne(span, y + slot * (rowHeight + SLOT_GAP_PX), rowHeight);
    if (bar === null) return [];
    const { x } = bar;
    // A gap of one pixel, where there is room, keeps calls apart that follow at once.
    const width = bar.width > 4 && span.end !== null ? bar.width - 1 : bar.width;
    const waited = waits.get(span.row.call_id)?.filter(isSeen) ?? [];
    const asked = waited.map((wait) => barOf(wait, bar.y, rowHeight));
    const freePx = Math.max(0, ...asked.map((wait) => wait.x + wait.width - x));
    return [{ ...bar, width, freePx }, ...asked];
  }

  const agentsAndWaits = [...spans.agent, ...spans.wait.filter((span) => !isOfCall(span))];
  return [
    ...place(y - 2, height + 4, agentsAndWaits),
    ...place(y + (rowHeight - MODEL_PX) / 2, MODEL_PX, spans.model),
    ...lane.calls.flatMap(placeCall),
    ...place(y + (height - MARK_PX) / 2, MARK_PX, spans.mark),
  ];
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

/** All that is drawn in a lane, by start. */
const spansIn = ({ spans }: Lane) => Object.values(spans).flat().sort(byStart);

/** Where a span is drawn; undefined: nowhere. */
export const laneOf = (lanes: readonly Lane[], id: number): Lane | undefined =>
  lanes.find((lane) => spansIn(lane).some(({ row }) => row.id === id));

/** Where an arrow key leads to: left and right in the lane, up and down to the nearest in time. */
export function walk(lanes: readonly Lane[], selectedId: number | null, key: string) {
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
