/**
 * The timeline: lanes over time, drawn on a canvas. Only what is in the window is drawn, so memory and
 * time follow what can be seen. The labels at the left are elements, because they are links.
 *
 * Everything that the canvas shows by colour has a shape too (see the legend), can be reached by
 * keyboard, and is read out below; the bars in the window are also a list inside the canvas element.
 */

import {
  formatAge,
  formatDay,
  formatDuration,
  formatMinute,
  formatMoment,
  formatNoun,
  formatTime,
} from "./format.ts";
import {
  byId,
  contextOf,
  createColors,
  fitCanvas,
  setAttribute,
  setText,
  templateRow,
} from "./dom.ts";
import {
  EVENT_LABELS,
  type DashboardState,
  type Lane,
  type Span,
  argsSummary,
  isEventType,
  isLive,
  isRunning,
  labelOf,
  lanesOf,
  shownEnd,
  statusOf,
} from "./state.ts";

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;

const DEFAULT_LENGTH_MS = 15 * MINUTE_MS;
const MIN_LENGTH_MS = 200;
/** A month: more than any retention that is usual. */
const MAX_LENGTH_MS = 31 * 24 * HOUR_MS;
/** Of the window, kept free at the right of now, so that growing bars are seen to end there. */
const NOW_MARGIN = 0.03;
const ZOOM_STEP = 1.5;

const AXIS_PX = 26;
/** What the bars of a lane share; calls at the same time make them thinner, not the lane higher. */
const SESSION_BARS_PX = 18;
const AGENT_BARS_PX = 14;
const LANE_PAD_PX = 5;
const SLOT_GAP_PX = 1;
/** Calls at the same time that can be told apart; a sixth is drawn over the fifth. */
const MAX_SLOTS = 5;
/** Lower bars have no room for a name. */
const MIN_TEXT_PX = 11;
/** Where the labels stand over the lanes instead of beside them. */
const LABEL_PX = 18;
/** A shorter bar is drawn this long. */
const MIN_BAR_PX = 2;
/** How far from a bar the pointer may be. */
const SLOP_PX = 4;
/** How far the pointer may move in a click. */
const CLICK_PX = 4;

/** Bars told as text inside the canvas, and how often that list is written anew. */
const MAX_TEXT_ITEMS = 60;
const TEXT_INTERVAL_MS = 500;

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

/** What kind of work a tool does, by its name: four colours can be told apart, twenty can't. */
export function toolFamily(name: string): "run" | "read" | "write" | "other" {
  if (/todo|web|http|fetch/i.test(name)) return "other";
  if (/bash|shell|exec|command|terminal|powershell/i.test(name)) return "run";
  if (/edit|write|patch/i.test(name)) return "write";
  if (/read|grep|glob|list|^ls$|view|find|search/i.test(name)) return "read";
  return "other";
}

export interface TimelineOptions {
  state: () => DashboardState;
  /** Milliseconds since 1970. */
  now: () => number;
  openSession: (id: string) => void;
  /** The window reaches back beyond what is loaded. */
  wantsOlder: () => void;
  /** The window or the selection has changed: draw in the next frame. */
  requestDraw: () => void;
}

export type Timeline = ReturnType<typeof createTimeline>;

interface DrawnBar {
  span: Span;
  lane: Lane;
  x: number;
  y: number;
  width: number;
  height: number;
}

type Theme = Record<
  | "ink"
  | "muted"
  | "line"
  | "lane"
  | "run"
  | "read"
  | "write"
  | "other"
  | "agent"
  | "agentInk"
  | "failed"
  | "wait"
  | "barInk"
  | "accent"
  | "surface",
  string
> & { hatch: CanvasPattern | null; waitHatch: CanvasPattern | null };

export function createTimeline({
  state,
  now,
  openSession,
  wantsOlder,
  requestDraw,
}: TimelineOptions) {
  const scroller = byId("timeline-scroll", HTMLDivElement);
  const body = byId("timeline-body", HTMLDivElement);
  const canvasBox = byId("timeline-canvas-box", HTMLDivElement);
  const canvas = byId("timeline-canvas", HTMLCanvasElement);
  const axis = byId("timeline-axis", HTMLCanvasElement);
  const labels = byId("lane-labels", HTMLOListElement);
  const cloneLabel = templateRow("lane-label", HTMLLIElement);
  const textList = byId("timeline-text", HTMLUListElement);
  const emptyNote = byId("timeline-empty", HTMLParagraphElement);
  const note = byId("timeline-note", HTMLSpanElement);
  const readout = byId("readout", HTMLDivElement);
  const readoutHead = byId("readout-head", HTMLDivElement);
  const readoutText = byId("readout-text", HTMLDivElement);
  const followButton = byId("follow", HTMLButtonElement);
  const rangeButtons = [
    ...byId("timeline-ranges", HTMLDivElement).querySelectorAll<HTMLButtonElement>("button"),
  ];
  const context = contextOf(canvas);
  const axisContext = contextOf(axis);
  const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

  const color = createColors(() => {
    theme = readTheme(context, color);
    requestDraw();
  });
  let theme = readTheme(context, color);
  let scope: ReadonlySet<string> | null = null;
  let length = DEFAULT_LENGTH_MS;
  let end = now() + length * NOW_MARGIN;
  let follows = true;
  /** The person has moved the window: it stays where they put it. */
  let isMoved = false;
  let lanes: Lane[] = [];
  let laneTops: number[] = [];
  let totalHeight = 0;
  let drawn: DrawnBar[] = [];
  let hovered: DrawnBar | null = null;
  let pointerX: number | null = null;
  let selectedId: number | null = null;
  /** As of the last scroll event: reading it from the element would ask for a layout. */
  let scrollTop = 0;
  let width = 0;
  let height = 0;
  let isNarrow = false;
  let textWrittenAt = 0;
  const labelRows = new Map<string, ReturnType<typeof createLabel>>();

  // ── The window ─────────────────────────────────────────────────────────────

  const start = () => end - length;
  const toX = (ms: number) => ((ms - start()) / length) * width;
  const toMs = (x: number) => start() + (x / width) * length;

  function setWindow(from: number, to: number): void {
    length = clamp(to - from, MIN_LENGTH_MS, MAX_LENGTH_MS);
    end = Math.min((from + to) / 2 + length / 2, now() + length / 2);
    isMoved = true;
    requestDraw();
  }

  function setFollow(on: boolean): void {
    follows = on;
    followButton.setAttribute("aria-pressed", String(on));
    requestDraw();
  }

  function pan(ms: number): void {
    setFollow(false);
    setWindow(start() + ms, end + ms);
  }

  /** @param anchor the time that stays where it is; now, while it is followed */
  function zoom(factor: number, anchor = follows ? now() : end - length / 2): void {
    const next = clamp(length * factor, MIN_LENGTH_MS, MAX_LENGTH_MS);
    const from = anchor - ((anchor - start()) / length) * next;
    setWindow(from, from + next);
  }

  /** Shows all that is loaded, or the whole session where one is open. */
  function fit(): void {
    const sessions = [...state().sessions.values()].filter(
      (session) => scope === null || scope.has(session.id),
    );
    if (sessions.length === 0) return;
    const at = now();
    const first = Math.min(
      ...sessions.map((session) =>
        scope === null ? Math.max(session.startedAt, state().coveredFrom) : session.startedAt,
      ),
    );
    const isOpen = sessions.some((session) => isLive(session, at));
    const last = isOpen ? at : Math.max(...sessions.map((session) => session.lastEventAt));
    const pad = Math.max(last - first, SECOND_MS) * NOW_MARGIN;
    setFollow(isOpen);
    setWindow(first - pad, last + pad);
  }

  function showLatest(): void {
    const last = Math.max(
      0,
      ...[...state().sessions.values()]
        .filter((session) => scope === null || scope.has(session.id))
        .map((session) => session.lastEventAt),
    );
    if (last === 0 || now() - last < length / 2) return setFollow(true);
    setFollow(false);
    setWindow(last - length * 0.9, last + length * 0.1);
  }

  // ── Layout ─────────────────────────────────────────────────────────────────

  const barsHeight = (lane: Lane) => (lane.kind === "session" ? SESSION_BARS_PX : AGENT_BARS_PX);
  const laneHeight = (lane: Lane) => 2 * LANE_PAD_PX + barsHeight(lane) + (isNarrow ? LABEL_PX : 0);

  function layOut(at: number): void {
    lanes = lanesOf(state(), scope, start(), end, at);
    laneTops = [];
    totalHeight = 0;
    for (const lane of lanes) {
      laneTops.push(totalHeight);
      totalHeight += laneHeight(lane);
    }
    const wanted = `${Math.max(totalHeight, height)}px`;
    if (body.style.height !== wanted) body.style.height = wanted;
    emptyNote.hidden = lanes.length > 0;
  }

  function resize(): void {
    width = canvasBox.clientWidth;
    height = Math.max(0, scroller.clientHeight - AXIS_PX);
    isNarrow = canvasBox.offsetLeft === 0; // style.css has put the labels over the lanes
    canvasBox.style.height = `${height}px`;
    fitCanvas(canvas, context, width, height);
    fitCanvas(axis, axisContext, width, AXIS_PX);
    requestDraw();
  }

  // ── Drawing ────────────────────────────────────────────────────────────────

  function draw(): void {
    if (width === 0 || height === 0) return;
    const at = now();
    if (follows) end = at + length * NOW_MARGIN;
    layOut(at);
    const top = scrollTop;
    drawn = [];
    context.clearRect(0, 0, width, height);
    drawGrid();
    drawUncovered();
    for (const [index, lane] of lanes.entries()) {
      const y = (laneTops[index] ?? 0) - top;
      if (y + laneHeight(lane) >= 0 && y <= height) drawLane(lane, y, at);
    }
    drawNow(at);
    drawCursor();
    drawSelection();
    drawAxis(at);
    writeLabels(at);
    writeControls();
    writeReadout(at);
    if (at - textWrittenAt >= TEXT_INTERVAL_MS) {
      textWrittenAt = at;
      writeText(at);
    }
    if (state().coveredFrom > start()) wantsOlder();
  }

  function drawGrid(): void {
    context.fillStyle = theme.line;
    for (const tick of ticks()) context.fillRect(Math.round(toX(tick.at)), 0, 1, height);
  }

  /** Where older events are at the server, but not here. */
  function drawUncovered(): void {
    const x = Math.min(width, toX(state().coveredFrom));
    if (state().coveredFrom === 0 || x <= 0) return;
    context.save();
    context.globalAlpha = 0.5;
    context.fillStyle = theme.lane;
    context.fillRect(0, 0, x, height);
    context.restore();
  }

  function drawLane(lane: Lane, top: number, at: number): void {
    const { session } = lane;
    const y = top + LANE_PAD_PX + (isNarrow ? LABEL_PX : 0);
    const room = barsHeight(lane);
    if (lane.depth === 0 && top > 0) {
      context.fillStyle = theme.line;
      context.fillRect(0, Math.round(top), width, 1);
    }
    const isSessionLane = lane.key === session.id;
    if (isSessionLane) {
      const live = isLive(session, at);
      const x = toX(session.startedAt);
      const to = toX(live ? Math.max(at, session.lastEventAt) : session.lastEventAt);
      fillBar(x, y - 2, to - x, room + 4, theme.lane, 4);
    }
    for (const span of lane.agents) drawAgent(lane, span, y, room, at);
    for (const span of lane.waits) drawWait(lane, span, y, room, at);
    drawTools(lane, y, room);
    for (const span of lane.marks) {
      const x = toX(span.start);
      if (x < -8 || x > width + 8) continue;
      drawCross(x, y + room / 2);
      drawn.push({ span, lane, x: x - 4, y, width: 8, height: room });
    }
  }

  function drawAgent(lane: Lane, span: Span, y: number, laneBars: number, at: number): void {
    const x = toX(span.start);
    const x2 = toX(shownEnd(span, ownerOf(span) ?? lane.session, at));
    if (x2 < 0 || x > width) return;
    const w = Math.max(MIN_BAR_PX, x2 - x);
    const isRunningNow = isAgentRunning(span, at);
    const color = span.hasFailed ? theme.failed : theme.agent;
    const top = y - 2;
    const h = laneBars + 4;
    context.save();
    context.globalAlpha = 0.2;
    fillBar(x, top, w, h, color, 3);
    context.restore();
    if (span.hasFailed && theme.hatch !== null) {
      context.save();
      context.globalAlpha = 0.35;
      fillBar(x, top, w, h, theme.hatch, 3);
      context.restore();
    }
    context.fillStyle = color;
    context.fillRect(x, top, Math.min(3, w), h);
    strokeBar(x, top, w, h, color, isRunningNow);
    if (lane.tools.length === 0)
      drawText(argsSummary(span.text) ?? span.name, x + 8, y, w - 12, laneBars, theme.agentInk);
    if (span.hasFailed) drawFlag(x, top);
    drawn.push({ span, lane, x, y: top, width: w, height: h });
  }

  function drawWait(lane: Lane, span: Span, y: number, laneBars: number, at: number): void {
    const x = toX(span.start);
    const x2 = toX(shownEnd(span, lane.session, at));
    if (x2 < 0 || x > width) return;
    const w = Math.max(MIN_BAR_PX, x2 - x);
    if (theme.waitHatch !== null) fillBar(x, y - 2, w, laneBars + 4, theme.waitHatch, 3);
    strokeBar(x, y - 2, w, laneBars + 4, theme.wait, isRunning(span, lane.session, at));
    drawn.push({ span, lane, x, y: y - 2, width: w, height: laneBars + 4 });
  }

  /**
   * The calls of a lane. One by itself has the lane's full height; those that overlap share it. What
   * falls on pixels that are taken already costs no drawing.
   */
  function drawTools(lane: Lane, y: number, room: number): void {
    const from = start();
    let cluster: Span[] = [];
    let clusterEnd = -Infinity;
    const takenTo: number[] = [];
    const drawCluster = () => {
      const slots: number[] = [];
      const placed = cluster.map((span) => {
        let slot = slots.findIndex((until) => until <= span.start);
        if (slot < 0) slot = Math.min(slots.length, MAX_SLOTS - 1);
        slots[slot] = span.end ?? span.start;
        return { span, slot };
      });
      const pitch = (room + SLOT_GAP_PX) / slots.length;
      for (const { span, slot } of placed)
        drawTool(lane, span, y + slot * pitch, pitch - SLOT_GAP_PX, takenTo, slot);
    };
    for (const span of lane.tools) {
      const spanEnd = span.end ?? span.start;
      if (spanEnd < from) continue;
      if (span.start > end) break;
      if (span.start >= clusterEnd) {
        drawCluster();
        cluster = [];
      }
      cluster.push(span);
      clusterEnd = Math.max(clusterEnd, spanEnd);
    }
    drawCluster();
  }

  function drawTool(
    lane: Lane,
    span: Span,
    y: number,
    h: number,
    takenTo: number[],
    slot: number,
  ): void {
    const x = toX(span.start);
    const w = Math.max(MIN_BAR_PX, toX(span.end ?? span.start) - x);
    if (x + w <= (takenTo[slot] ?? -Infinity) && !span.hasFailed) return;
    takenTo[slot] = x + w;
    // A gap of one pixel, where there is room, keeps calls apart that follow at once.
    const shown = w > 4 ? w - 1 : w;
    if (!span.isTimed) drawMoment(x, y + h / 2, span.hasFailed ? theme.failed : theme.muted);
    else {
      fillBar(x, y, shown, h, span.hasFailed ? theme.failed : theme[toolFamily(span.name)], 2);
      if (span.hasFailed && theme.hatch !== null && shown > 5)
        fillBar(x, y, shown, h, theme.hatch, 2);
      // A name that is cut says less than none.
      if (h >= MIN_TEXT_PX && context.measureText(span.name).width <= shown - 8)
        drawText(span.name, x + 4, y, shown - 6, h, theme.barInk);
    }
    if (span.hasFailed) drawFlag(x, y);
    drawn.push({ span, lane, x, y, width: shown, height: h });
  }

  /** A call of which only the moment is known: an open ring, as its length would be a lie. */
  function drawMoment(x: number, y: number, color: string): void {
    context.strokeStyle = color;
    context.lineWidth = 1.5;
    context.beginPath();
    context.arc(x, y, 2.5, 0, 2 * Math.PI);
    context.stroke();
  }

  /** Over the start of what failed: a shape that is there at any zoom. */
  function drawFlag(x: number, y: number): void {
    context.fillStyle = theme.failed;
    context.strokeStyle = theme.surface;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x - 4, y - 5);
    context.lineTo(x + 5, y - 5);
    context.lineTo(x + 0.5, y + 2);
    context.closePath();
    context.fill();
    context.stroke();
  }

  function drawCross(x: number, y: number): void {
    context.strokeStyle = theme.failed;
    context.lineWidth = 2;
    context.beginPath();
    for (const [dx, dy] of [
      [4, 4],
      [4, -4],
    ] as const) {
      context.moveTo(x - dx, y - dy);
      context.lineTo(x + dx, y + dy);
    }
    context.stroke();
  }

  function fillBar(
    x: number,
    y: number,
    w: number,
    h: number,
    fill: string | CanvasPattern,
    radius: number,
  ): void {
    const x1 = Math.max(-8, x);
    const x2 = Math.min(width + 8, x + w);
    if (x2 <= x1) return;
    context.fillStyle = fill;
    if (x2 - x1 < 4) return context.fillRect(x1, y, x2 - x1, h);
    context.beginPath();
    context.roundRect(x1, y, x2 - x1, h, radius);
    context.fill();
  }

  /** @param isOpen it goes on: no line at its right */
  function strokeBar(
    x: number,
    y: number,
    w: number,
    h: number,
    color: string,
    isOpen: boolean,
  ): void {
    const x1 = Math.max(-8, x) + 0.5;
    const x2 = Math.min(width + 8, x + w) - 0.5;
    if (x2 <= x1) return;
    context.strokeStyle = color;
    context.lineWidth = 1;
    context.beginPath();
    if (isOpen) {
      context.moveTo(x2, y + 0.5);
      context.lineTo(x1, y + 0.5);
      context.lineTo(x1, y + h - 0.5);
      context.lineTo(x2, y + h - 0.5);
    } else context.roundRect(x1, y + 0.5, x2 - x1, h - 1, 3);
    context.stroke();
  }

  function drawText(
    text: string,
    x: number,
    y: number,
    room: number,
    h: number,
    color: string,
  ): void {
    const left = Math.max(x, 4);
    const shown = Math.min(room - (left - x), width - left);
    if (shown < 18) return;
    context.fillStyle = color;
    context.fillText(fitText(context, text, shown), left, y + h / 2 + 0.5);
  }

  function drawNow(at: number): void {
    const x = toX(at);
    if (x < 0 || x > width) return;
    context.fillStyle = theme.accent;
    context.fillRect(Math.round(x), 0, 1, height);
  }

  function drawCursor(): void {
    if (pointerX === null || isDragging) return;
    context.save();
    context.globalAlpha = 0.5;
    context.fillStyle = theme.muted;
    context.fillRect(Math.round(pointerX), 0, 1, height);
    context.restore();
  }

  function drawSelection(): void {
    for (const bar of drawn) {
      const isSelected = bar.span.id === selectedId;
      if (!isSelected && bar.span !== hovered?.span) continue;
      context.strokeStyle = isSelected ? theme.accent : theme.ink;
      context.lineWidth = isSelected ? 2 : 1;
      context.beginPath();
      context.roundRect(
        Math.max(-8, bar.x) - 1.5,
        bar.y - 1.5,
        Math.min(width + 8, bar.x + bar.width) - Math.max(-8, bar.x) + 3,
        bar.height + 3,
        4,
      );
      context.stroke();
    }
  }

  function* ticks(): Generator<{ at: number; isDay: boolean }> {
    const step =
      TICKS_MS.find((candidate) => (candidate / length) * width >= MIN_TICK_PX) ?? 672 * HOUR_MS;
    // Days and hours of the viewer's zone, not of UTC.
    const offset = new Date(end).getTimezoneOffset() * MINUTE_MS;
    const first = Math.ceil((start() - offset) / step) * step + offset;
    for (let at = first; at <= end; at += step)
      yield { at, isDay: (at - offset) % (24 * HOUR_MS) === 0 };
  }

  function drawAxis(at: number): void {
    const ctx = axisContext;
    ctx.clearRect(0, 0, width, AXIS_PX);
    const nowX = toX(at);
    const isNowShown = nowX >= 0 && nowX <= width;
    const labelOfTick = (tick: number) =>
      length < MINUTE_MS * 8
        ? length < SECOND_MS * 8
          ? `${formatTime(tick)}.${String(tick % SECOND_MS).padStart(3, "0")}`
          : formatTime(tick)
        : formatMinute(tick);
    for (const tick of ticks()) {
      const x = toX(tick.at);
      const text = tick.isDay ? formatDay(tick.at) : labelOfTick(tick.at);
      const w = ctx.measureText(text).width;
      if (x + 5 + w > width || (isNowShown && x + 5 + w > nowX - 26 && x < nowX + 26)) continue;
      ctx.fillStyle = theme.line;
      ctx.fillRect(Math.round(x), AXIS_PX - 8, 1, 8);
      ctx.fillStyle = theme.muted;
      ctx.fillText(text, x + 5, AXIS_PX / 2 + 1);
    }
    if (isNowShown) drawPill(ctx, nowX, "now", theme.accent, theme.surface);
    if (pointerX !== null && !isDragging)
      drawPill(ctx, pointerX, formatMoment(toMs(pointerX), at), theme.ink, theme.surface);
  }

  function drawPill(
    ctx: CanvasRenderingContext2D,
    x: number,
    text: string,
    fill: string,
    ink: string,
  ): void {
    const w = ctx.measureText(text).width + 10;
    const left = clamp(x - w / 2, 0, width - w);
    ctx.fillStyle = fill;
    ctx.beginPath();
    ctx.roundRect(left, 4, w, AXIS_PX - 8, 4);
    ctx.fill();
    ctx.fillStyle = ink;
    ctx.fillText(text, left + 5, AXIS_PX / 2 + 1);
  }

  // ── Labels, readout, text ──────────────────────────────────────────────────

  /** An agent that has a session of its own is drawn there, but told of by its parent. */
  function ownerOf(span: Span): Lane["session"] | undefined {
    return state().sessions.get(span.sessionId);
  }

  function isAgentRunning(span: Span, at: number): boolean {
    const owner = ownerOf(span);
    return owner !== undefined && isRunning(span, owner, at);
  }

  function createLabel() {
    const item = cloneLabel();
    const parts = item.querySelectorAll<HTMLElement>("a, .dot, .lane-name, .lane-sub");
    const [link, dot, name, sub] = parts;
    if (!(link instanceof HTMLAnchorElement) || !dot || !name || !sub)
      throw new Error("#lane-label is incomplete");
    return { item, link, dot, name, sub };
  }

  function writeLabels(at: number): void {
    const top = scrollTop;
    const shown = new Set<string>();
    for (const [index, lane] of lanes.entries()) {
      const y = laneTops[index] ?? 0;
      const h = laneHeight(lane);
      if (y + h < top || y > top + height) continue;
      shown.add(lane.key);
      let row = labelRows.get(lane.key);
      if (row === undefined) {
        row = createLabel();
        labelRows.set(lane.key, row);
        labels.append(row.item);
      }
      const running = lane.agents.find((span) => isAgentRunning(span, at));
      const status = statusOf(lane.session, at);
      const dotState =
        lane.key === lane.session.id && status === "waiting"
          ? "waiting"
          : lane.kind === "session"
            ? status
            : running !== undefined
              ? "running"
              : lane.agents.at(-1)?.hasFailed
                ? "failed"
                : "completed";
      row.item.style.transform = `translateY(${y}px)`;
      row.item.style.height = `${h}px`;
      row.item.style.paddingInlineStart = `${Math.min(lane.depth, 4) * 14}px`;
      setAttribute(row.item, "data-kind", lane.kind);
      setAttribute(row.item, "data-status", dotState);
      setAttribute(row.dot, "data-status", dotState);
      setAttribute(row.link, "href", `#/session/${encodeURIComponent(lane.session.id)}`);
      const title = lane.kind === "agent" ? agentTitle(lane) : lane.label;
      setAttribute(row.link, "title", title);
      setText(row.name, lane.label);
      setText(
        row.sub,
        status === "waiting" && lane.key === lane.session.id
          ? formatAge(at - lane.session.askedAt)
          : running !== undefined
            ? formatDuration(at - running.start)
            : lane.kind === "agent"
              ? formatDuration(lengthOfLast(lane))
              : "",
      );
    }
    for (const [key, row] of labelRows)
      if (!shown.has(key)) {
        row.item.remove();
        labelRows.delete(key);
      }
  }

  function lengthOfLast(lane: Lane): number | null {
    const last = lane.agents.at(-1);
    if (last === undefined || last.end === null || last.end === last.start) return null;
    return last.end - last.start;
  }

  function agentTitle(lane: Lane): string {
    return lane.key === lane.session.id
      ? `${lane.label}: ${labelOf(lane.session)}`
      : `${lane.label}, agent of ${labelOf(lane.session)}`;
  }

  function writeControls(): void {
    for (const button of rangeButtons) {
      const minutes = Number(button.dataset.minutes);
      setAttribute(
        button,
        "aria-pressed",
        String(Math.abs(minutes * MINUTE_MS - length) < SECOND_MS),
      );
    }
    setAttribute(followButton, "aria-pressed", String(follows));
    const agents = lanes.filter((lane) => lane.kind === "agent").length;
    const isPreset = rangeButtons.some((button) => button.ariaPressed === "true");
    const { coveredFrom } = state();
    const words = [
      formatNoun(lanes.length - agents, "session"),
      formatNoun(agents, "agent"),
      isPreset ? null : formatDuration(length),
      coveredFrom > start() ? `calls before ${formatMoment(coveredFrom, now())} not loaded` : null,
    ];
    setText(note, lanes.length === 0 ? "" : words.filter((word) => word !== null).join(" · "));
  }

  function writeReadout(at: number): void {
    const span = hovered?.span ?? (selectedId === null ? null : state().spans.get(selectedId));
    const session = span == null ? undefined : state().sessions.get(span.sessionId);
    if (span == null || session === undefined) {
      setAttribute(readout, "data-kind", "legend");
      setText(readoutHead, "");
      setText(readoutText, "");
      return;
    }
    setAttribute(readout, "data-kind", span.hasFailed ? "failed" : span.kind);
    setText(readoutHead, describe(span, session, at));
    setText(
      readoutText,
      [span.error === null ? null : `Error: ${span.error}`, argsSummary(span.text)]
        .filter((part) => part !== null)
        .join("   "),
    );
  }

  /** One bar in words: what, how it went, how long, when, where. */
  function describe(span: Span, session: Lane["session"], at: number): string {
    const runs = isRunning(span, session, at);
    const to = shownEnd(span, session, at);
    const what =
      span.kind === "agent"
        ? `Agent ${span.name}`
        : span.kind === "wait"
          ? `Waits for you: ${span.name}`
          : span.kind === "mark" && isEventType(span.name)
            ? EVENT_LABELS[span.name]
            : span.name;
    const outcome = span.hasFailed
      ? "failed"
      : runs
        ? span.kind === "wait"
          ? "not answered yet"
          : "running"
        : null;
    const length = !span.isTimed
      ? "length not known"
      : span.end === null && !runs
        ? "end not known"
        : formatDuration(to - span.start);
    const when = span.isTimed
      ? `${formatMoment(span.start, at)} to ${runs ? "now" : formatMoment(to, at)}`
      : formatMoment(span.start, at);
    return [what, outcome, length, when, labelOf(session)]
      .filter((part) => part !== null)
      .join(" · ");
  }

  /** What the window shows, as text for those who don't see it: the latest bars, agents first. */
  function writeText(at: number): void {
    const told = [...drawn]
      .sort(
        (a, b) =>
          Number(b.span.kind === "agent") - Number(a.span.kind === "agent") ||
          b.span.start - a.span.start,
      )
      .slice(0, MAX_TEXT_ITEMS);
    while (textList.children.length > told.length) textList.lastElementChild?.remove();
    for (const [index, bar] of told.entries()) {
      let item = textList.children[index];
      if (!(item instanceof HTMLLIElement)) {
        item = document.createElement("li");
        textList.append(item);
      }
      const session = state().sessions.get(bar.span.sessionId) ?? bar.lane.session;
      setText(item, describe(bar.span, session, at));
      const { x, y, width: w, height: h } = bar;
      setAttribute(item, "data-kind", bar.span.kind);
      setAttribute(item, "data-rect", [x, y, w, h].map(Math.round).join(" "));
    }
  }

  // ── Pointer ────────────────────────────────────────────────────────────────

  const pointers = new Map<number, { x: number; y: number }>();
  let isDragging = false;
  let dragFrom: { x: number; y: number; end: number; scrollTop: number } | null = null;
  let pinch: { distance: number; length: number; at: number } | null = null;

  function barAt(x: number, y: number): DrawnBar | null {
    let best: DrawnBar | null = null;
    for (const bar of drawn) {
      const dx = Math.max(bar.x - x, 0, x - (bar.x + bar.width));
      if (dx > SLOP_PX || y < bar.y - 1 || y > bar.y + bar.height + 1) continue;
      // What is drawn later lies on top; a call is inside its agent's bar.
      if (best === null || dx === 0 || bar.width <= best.width) best = bar;
    }
    return best;
  }

  function pointOf(event: MouseEvent): { x: number; y: number } {
    const box = canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    pointers.set(event.pointerId, pointOf(event));
    canvas.setPointerCapture(event.pointerId);
    const [first, second] = [...pointers.values()];
    if (first && second) {
      const middle = (first.x + second.x) / 2;
      pinch = { distance: Math.abs(first.x - second.x) || 1, length, at: toMs(middle) };
      dragFrom = null;
    } else dragFrom = { ...pointOf(event), end, scrollTop: scroller.scrollTop };
  });

  canvas.addEventListener("pointermove", (event) => {
    const point = pointOf(event);
    if (pointers.has(event.pointerId)) pointers.set(event.pointerId, point);
    const [first, second] = [...pointers.values()];
    if (pinch !== null && first && second) {
      const distance = Math.abs(first.x - second.x) || 1;
      const next = clamp((pinch.length * pinch.distance) / distance, MIN_LENGTH_MS, MAX_LENGTH_MS);
      const from = pinch.at - ((first.x + second.x) / 2 / width) * next;
      setFollow(false);
      setWindow(from, from + next);
      return;
    }
    if (dragFrom !== null) {
      const dx = point.x - dragFrom.x;
      if (!isDragging && Math.abs(dx) < CLICK_PX && Math.abs(point.y - dragFrom.y) < CLICK_PX)
        return;
      isDragging = true;
      if (Math.abs(dx) >= CLICK_PX) setFollow(false);
      const to = dragFrom.end - (dx / width) * length;
      if (!follows) setWindow(to - length, to);
      if (event.pointerType === "mouse")
        scroller.scrollTop = dragFrom.scrollTop - point.y + dragFrom.y;
      return;
    }
    pointerX = event.pointerType === "mouse" ? point.x : null;
    hovered = barAt(point.x, point.y);
    canvas.classList.toggle("on-bar", hovered !== null);
    requestDraw();
  });

  function endPointer(event: PointerEvent): void {
    if (!pointers.delete(event.pointerId)) return;
    const wasDragging = isDragging || pinch !== null;
    if (pointers.size === 0) isDragging = false;
    if (pointers.size < 2) pinch = null;
    dragFrom = null;
    if (!wasDragging && event.type === "pointerup") {
      const { x, y } = pointOf(event);
      selectedId = barAt(x, y)?.span.id ?? null;
    }
    requestDraw();
  }
  canvas.addEventListener("pointerup", endPointer);
  canvas.addEventListener("pointercancel", endPointer);
  canvas.addEventListener("pointerleave", () => {
    pointerX = null;
    hovered = null;
    requestDraw();
  });
  canvas.addEventListener("dblclick", (event) => {
    const { x, y } = pointOf(event);
    const bar = barAt(x, y);
    if (bar !== null) openSpan(bar.span);
  });

  canvas.addEventListener(
    "wheel",
    (event) => {
      const isPageScrolling = document.documentElement.scrollHeight > innerHeight + 1;
      const sideways = event.shiftKey ? event.deltaY || event.deltaX : event.deltaX;
      const isSideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
      if (isPageScrolling && !isSideways && !event.ctrlKey) return;
      event.preventDefault();
      if (isSideways) return pan((sideways / width) * length);
      const { x } = pointOf(event);
      zoom(Math.exp(clamp(event.deltaY, -100, 100) / 300), follows ? undefined : toMs(x));
    },
    { passive: false },
  );

  scroller.addEventListener(
    "scroll",
    () => {
      scrollTop = scroller.scrollTop;
      requestDraw();
    },
    { passive: true },
  );

  // ── Keyboard ───────────────────────────────────────────────────────────────

  function openSpan(span: Span): void {
    const child = span.childId;
    openSession(child !== null && state().sessions.has(child) ? child : span.sessionId);
  }

  const spansOf = (lane: Lane) =>
    [...lane.tools, ...lane.agents, ...lane.waits, ...lane.marks].sort(
      (a, b) => a.start - b.start || a.id - b.id,
    );

  function select(span: Span, laneIndex: number): void {
    selectedId = span.id;
    hovered = null;
    const at = now();
    const from = span.start;
    const lane = lanes[laneIndex];
    const owner = ownerOf(span) ?? lane?.session;
    const to = owner === undefined ? from : shownEnd(span, owner, at);
    if (to < start() || from > end || (to - from < length && (from < start() || to > end))) {
      setFollow(false);
      const middle = (from + to) / 2;
      setWindow(middle - length / 2, middle + length / 2);
    }
    const top = laneTops[laneIndex] ?? 0;
    const bottom = top + (lane === undefined ? 0 : laneHeight(lane));
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (bottom > scroller.scrollTop + height) scroller.scrollTop = bottom - height;
    requestDraw();
  }

  function walk(key: "ArrowLeft" | "ArrowRight" | "ArrowUp" | "ArrowDown"): void {
    const index = lanes.findIndex((lane) => spansOf(lane).some((span) => span.id === selectedId));
    const lane = lanes[index];
    if (lane === undefined) {
      const first = lanes.findIndex((candidate) => spansOf(candidate).length > 0);
      const latest = lanes
        .slice(first, first + 1)
        .flatMap(spansOf)
        .at(-1);
      if (latest !== undefined) select(latest, first);
      return;
    }
    const spans = spansOf(lane);
    const position = spans.findIndex((span) => span.id === selectedId);
    if (key === "ArrowLeft" || key === "ArrowRight") {
      const next = spans[position + (key === "ArrowLeft" ? -1 : 1)];
      if (next !== undefined) select(next, index);
      return;
    }
    const step = key === "ArrowUp" ? -1 : 1;
    const from = spans[position]?.start ?? end;
    for (let at = index + step; at >= 0 && at < lanes.length; at += step) {
      const candidates = lanes.slice(at, at + 1).flatMap(spansOf);
      const nearest = candidates.reduce<Span | null>(
        (best, span) =>
          best === null || Math.abs(span.start - from) < Math.abs(best.start - from) ? span : best,
        null,
      );
      if (nearest !== null) return select(nearest, at);
    }
  }

  scroller.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target !== scroller) return;
    switch (event.key) {
      case "ArrowLeft":
      case "ArrowRight":
      case "ArrowUp":
      case "ArrowDown":
        walk(event.key);
        break;
      case "+":
      case "=":
      case "w":
        zoom(1 / ZOOM_STEP);
        break;
      case "-":
      case "_":
      case "s":
        zoom(ZOOM_STEP);
        break;
      case "a":
      case "A":
        pan(-length / 4);
        break;
      case "d":
      case "D":
        pan(length / 4);
        break;
      case "f":
      case "F":
        setFollow(!follows);
        break;
      case "0":
      case "Home":
        fit();
        break;
      case "End":
        showLatest();
        break;
      case "Enter": {
        const span = selectedId === null ? undefined : state().spans.get(selectedId);
        if (span === undefined) return;
        openSpan(span);
        break;
      }
      case "Escape":
        selectedId = null;
        requestDraw();
        break;
      default:
        return;
    }
    event.preventDefault();
  });

  // ── Buttons ────────────────────────────────────────────────────────────────

  for (const button of rangeButtons)
    button.addEventListener("click", () => {
      const next = Number(button.dataset.minutes) * MINUTE_MS;
      const anchor = follows ? now() + next * NOW_MARGIN : end;
      setWindow(anchor - next, anchor);
    });
  byId("zoom-in", HTMLButtonElement).addEventListener("click", () => zoom(1 / ZOOM_STEP));
  byId("zoom-out", HTMLButtonElement).addEventListener("click", () => zoom(ZOOM_STEP));
  byId("zoom-fit", HTMLButtonElement).addEventListener("click", fit);
  followButton.addEventListener("click", () => setFollow(!follows));
  byId("timeline-latest", HTMLButtonElement).addEventListener("click", showLatest);

  new ResizeObserver(resize).observe(scroller);
  document.fonts?.ready.then(requestDraw);

  return {
    draw,
    fit,
    /** Puts the window where something happened, unless the person has moved it. */
    showLoaded(): void {
      if (!isMoved) {
        showLatest();
        isMoved = false;
      }
    },
    /** @param sessions only these; null: all */
    setScope(sessions: ReadonlySet<string> | null): void {
      const isSame =
        scope === sessions ||
        (scope !== null &&
          sessions !== null &&
          scope.size === sessions.size &&
          scope.isSubsetOf(sessions));
      if (isSame) return;
      scope = sessions;
      requestDraw();
    },
    /** Back to the latest, at the usual length. */
    reset(): void {
      length = DEFAULT_LENGTH_MS;
      selectedId = null;
      isMoved = false;
      follows = true;
      showLatest();
      isMoved = false;
    },
    /** In how many milliseconds the picture will be another though nothing has been received; null: never. */
    nextDraw(): number | null {
      const at = now();
      const moves =
        follows ||
        lanes.some((lane) => lane.session.lastEventAt <= end && isLive(lane.session, at));
      if (!moves || width === 0) return null;
      const pixelMs = length / width;
      return clamp(pixelMs, reducedMotion.matches ? SECOND_MS : 33, SECOND_MS);
    },
    /** The window, for tests and for the address. */
    window: () => ({ from: start(), to: end, follows }),
  };
}

function readTheme(
  context: CanvasRenderingContext2D,
  read: (name: `--${string}`) => string,
): Theme {
  return {
    ink: read("--ink"),
    muted: read("--ink-2"),
    line: read("--grid"),
    lane: read("--lane"),
    run: read("--run"),
    read: read("--read"),
    write: read("--write"),
    other: read("--other"),
    agent: read("--agent"),
    agentInk: read("--agent-ink"),
    failed: read("--failed"),
    wait: read("--wait"),
    barInk: read("--bar-ink"),
    accent: read("--accent"),
    surface: read("--surface"),
    hatch: hatch(context, "rgba(0, 0, 0, 0.42)", null),
    waitHatch: hatch(context, read("--wait"), read("--wait-soft")),
  };
}

/** Diagonal lines, as a pattern that repeats every 6 pixels. */
function hatch(
  context: CanvasRenderingContext2D,
  color: string,
  background: string | null,
): CanvasPattern | null {
  const size = 6;
  const tile = document.createElement("canvas");
  tile.width = size;
  tile.height = size;
  const ctx = contextOf(tile);
  if (background !== null) {
    ctx.fillStyle = background;
    ctx.fillRect(0, 0, size, size);
  }
  ctx.strokeStyle = color;
  ctx.lineWidth = 1.25;
  ctx.beginPath();
  for (const x of [-size, 0, size]) {
    ctx.moveTo(x - 1, size + 1);
    ctx.lineTo(x + size + 1, -1);
  }
  ctx.stroke();
  return context.createPattern(tile, "repeat");
}

/** As much of `text` as fits into `room` pixels. */
function fitText(context: CanvasRenderingContext2D, text: string, room: number): string {
  // No glyph of the fonts used is narrower than 2 px: what is far too long is never measured.
  let shown = text.slice(0, Math.ceil(room / 2));
  if (shown === text && context.measureText(shown).width <= room) return shown;
  let low = 0;
  let high = shown.length;
  while (low < high) {
    const middle = (low + high + 1) >>> 1;
    if (context.measureText(`${shown.slice(0, middle)}…`).width <= room) low = middle;
    else high = middle - 1;
  }
  shown = shown.slice(0, low).trimEnd();
  return low < 2 ? "" : `${shown}…`;
}

function clamp(value: number, min: number, max: number): number {
  return Math.min(max, Math.max(min, value));
}
