/**
 * The timeline's two canvases. What is drawn where comes from layout.ts; what is told by colour has a
 * shape too (see the legend).
 */

import { shown } from "../dom.ts";
import { argsSummary, oneLine, toolFamily } from "../events.ts";
import {
  MINUTE_MS,
  SECOND_MS,
  formatDay,
  formatMinute,
  formatMoment,
  formatTime,
  joined,
} from "../format.ts";
import { isFailedSpan, isMoment } from "../rows.ts";
import {
  type Bar,
  type Lane,
  type View,
  barsOf,
  clamp,
  groundOf,
  ticksOf,
  toMs,
  toX,
} from "./layout.ts";

export const AXIS_PX = 26;
/** Lower bars have no room for a name. */
const MIN_TEXT_PX = 11;
/** A call's arguments in less than this say nothing. */
const MIN_ARGS_PX = 32;
/** Between two lines of a hatch. */
const HATCH_PX = 6;
const FAILED_HATCH = "rgba(0, 0, 0, 0.25)";

type Color = (name: `--${string}`) => string;

/** What a picture shows. */
export interface Scene {
  view: View;
  lanes: readonly Lane[];
  /** Calls before this time are at the server, but not here; 0: all are here. */
  coveredFrom: number;
  selectedId: number | null;
  hoveredId: number | null;
  /** Where the pointer is; null: it isn't on the canvas. */
  pointerX: number | null;
}

/** A canvas to draw on, as wide as the window. */
interface Brush {
  context: CanvasRenderingContext2D;
  view: View;
  color: Color;
}

/** Draws, and says what it has drawn where. */
export function drawTimeline(
  context: CanvasRenderingContext2D,
  axis: CanvasRenderingContext2D,
  color: Color,
  scene: Scene,
): Bar[] {
  const { view } = scene;
  const brush: Brush = { context, view, color };
  const offset = new Date(view.end).getTimezoneOffset() * MINUTE_MS;
  const ticks = ticksOf(view, offset);
  context.clearRect(0, 0, view.width, view.height);
  for (const tick of ticks) drawLine(brush, toX(view, tick.at), "--grid");
  drawUncovered(brush, scene.coveredFrom);
  const drawn: Bar[] = [];
  for (const lane of scene.lanes) {
    const top = lane.top - view.scrollTop;
    if (top + lane.height < 0 || top > view.height) continue;
    drawGround(brush, lane);
    const bars = barsOf(lane, view);
    for (const bar of bars) drawBar(brush, bar);
    drawn.push(...bars);
  }
  drawLine(brush, toX(view, view.now), "--accent");
  if (scene.pointerX !== null) drawLine(brush, scene.pointerX, "--ink-2", 0.5);
  for (const bar of drawn) drawSelection(brush, bar, scene);
  drawAxis({ ...brush, context: axis }, scene, ticks);
  return drawn;
}

/** Where older calls are at the server, but not here. */
function drawUncovered({ context, color, view }: Brush, coveredFrom: number): void {
  if (coveredFrom === 0) return;
  context.globalAlpha = 0.5;
  context.fillStyle = color("--lane");
  context.fillRect(0, 0, clamp(toX(view, coveredFrom), 0, view.width), view.height);
  context.globalAlpha = 1;
}

function drawGround(brush: Brush, lane: Lane): void {
  const { context, color, view } = brush;
  if (lane.depth === 0 && lane.top > 0) {
    context.fillStyle = color("--grid");
    context.fillRect(0, Math.round(lane.top - view.scrollTop), view.width, 1);
  }
  const ground = groundOf(lane, view);
  if (ground !== null) fillBar(brush, ground, color("--lane"), 4);
}

// ─── Bars ────────────────────────────────────────────────────────────────────

function drawBar(brush: Brush, bar: Bar): void {
  const { color } = brush;
  const { x, y, width, height, span } = bar;
  switch (span.row.kind) {
    case "agent":
      drawAgent(brush, bar);
      break;
    case "wait":
      fillWait(brush, bar);
      strokeBar(brush, bar, color("--wait"));
      break;
    case "model":
      fillBar(brush, bar, color(isFailedSpan(span) ? "--failed" : "--control"), 2);
      break;
    case "tool":
      drawTool(brush, bar);
      break;
    case "mark":
      drawCross(brush, x + width / 2, y + height / 2);
      return; // a cross needs no flag
  }
  drawOutcome(brush, bar);
}

function drawAgent(brush: Brush, bar: Bar): void {
  const { context } = brush;
  const { span, lane, x, y, width, height } = bar;
  const failed = isFailedSpan(span);
  const color = brush.color(failed ? "--failed" : "--agent");
  context.save();
  context.globalAlpha = 0.2;
  fillBar(brush, bar, color, 3);
  context.globalAlpha = 0.35;
  if (failed) hatchBar(brush, bar, FAILED_HATCH);
  context.restore();
  context.fillStyle = color;
  context.fillRect(x, y, Math.min(3, width), height);
  strokeBar(brush, bar, color);
  if (lane.spans.tool.length + lane.spans.model.length === 0) {
    const text = oneLine(argsSummary(span.row.text) ?? span.row.name);
    drawText(brush, text, { ...bar, x: x + 8, width: width - 12 }, "--agent-ink");
  }
}

function drawTool(brush: Brush, bar: Bar): void {
  const { context, color } = brush;
  const { span, x, y, width, height, waitedPx = 0, freePx = 0 } = bar;
  const failed = isFailedSpan(span);
  if (isMoment(span)) {
    // An open ring: a bar's length would be a lie.
    context.strokeStyle = color(failed ? "--failed" : "--ink-2");
    context.lineWidth = 1.5;
    context.beginPath();
    context.arc(x, y + height / 2, 2.5, 0, 2 * Math.PI);
    context.stroke();
    return;
  }
  const { name, text, outcome } = span.row;
  // What wasn't done to its end is pale.
  context.globalAlpha = outcome === "cancelled" || outcome === "denied" ? 0.5 : 1;
  fillBar(brush, bar, color(failed ? "--failed" : `--${toolFamily(name)}`), 2);
  context.globalAlpha = 1;
  if (failed && width > 5) hatchBar(brush, bar, FAILED_HATCH);
  if (waitedPx >= 1) fillWait(brush, { ...bar, width: waitedPx });
  // A name that is cut says less than none; of what it was called with a part says something.
  const room = width - freePx - 8 - context.measureText(shown(name)).width;
  if (height < MIN_TEXT_PX || room < 0) return;
  const words = room < MIN_ARGS_PX ? name : joined([name, argsSummary(text)], ": ");
  const box = { ...bar, x: x + freePx + 4, width: width - freePx - 6 };
  drawText(brush, oneLine(words), box, "--bar-ink");
}

/** How it ended, as a shape that is there at any zoom: over its start, or, where it was cut off, at its end. */
function drawOutcome({ context, color }: Brush, { span, x, y, width, height }: Bar): void {
  const { outcome } = span.row;
  if (outcome === null || outcome === "ok") return;
  const isRed = isFailedSpan(span);
  context.fillStyle = color(isRed ? "--failed" : "--ink-2");
  if (outcome === "cancelled") return context.fillRect(x + width - 1, y - 3, 3, height + 6);
  context.strokeStyle = color(outcome === "failed" ? "--surface" : isRed ? "--failed" : "--ink-2");
  if (outcome !== "failed") context.fillStyle = color("--surface");
  context.lineWidth = outcome === "failed" ? 1 : 1.5;
  context.beginPath();
  if (isRed) {
    context.moveTo(x - 4, y - 5);
    context.lineTo(x + 5, y - 5);
    context.lineTo(x + 0.5, y + 2);
    context.closePath();
  } else {
    context.arc(x + 1, y - 1, 4, 0, 2 * Math.PI);
    context.moveTo(x - 1.5, y - 1);
    context.lineTo(x + 3.5, y - 1);
  }
  context.fill();
  context.stroke();
}

function drawCross({ context, color }: Brush, x: number, y: number): void {
  context.strokeStyle = color("--failed");
  context.lineWidth = 2;
  context.beginPath();
  for (const dy of [4, -4]) {
    context.moveTo(x - 4, y - dy);
    context.lineTo(x + 4, y + dy);
  }
  context.stroke();
}

type Box = Pick<Bar, "x" | "y" | "width" | "height">;

/** Of a box, left and right as far as they are seen: a canvas is slow with a bar of a million pixels. */
function sides({ x, width }: Box, { view }: Brush): [number, number] {
  return [Math.max(-8, x), Math.min(view.width + 8, x + width)];
}

function fillBar(brush: Brush, box: Box, fill: string, radius: number): void {
  const { context } = brush;
  const [left, right] = sides(box, brush);
  if (right <= left) return;
  context.fillStyle = fill;
  if (right - left < 4) return context.fillRect(left, box.y, right - left, box.height);
  context.beginPath();
  context.roundRect(left, box.y, right - left, box.height, radius);
  context.fill();
}

/** Diagonal lines. */
function hatchBar(brush: Brush, box: Box, color: string): void {
  const { context } = brush;
  const { y, height } = box;
  const [left, right] = sides(box, brush);
  if (right <= left) return;
  context.save();
  context.beginPath();
  context.roundRect(left, y, right - left, height, 2);
  context.clip();
  context.beginPath();
  for (let x = left - height; x < right; x += HATCH_PX) {
    context.moveTo(x, y + height);
    context.lineTo(x + height, y);
  }
  context.strokeStyle = color;
  context.lineWidth = 1.25;
  context.stroke();
  context.restore();
}

function fillWait(brush: Brush, box: Box): void {
  fillBar(brush, box, brush.color("--wait-soft"), 3);
  hatchBar(brush, box, brush.color("--wait"));
}

/** What is open has no line at its right. */
function strokeBar(brush: Brush, bar: Bar, color: string): void {
  const { context } = brush;
  const { y, height } = bar;
  const [left, right] = sides(bar, brush);
  if (right - left <= 1) return;
  context.strokeStyle = color;
  context.lineWidth = 1;
  context.beginPath();
  if (bar.span.end === null) {
    context.moveTo(right - 0.5, y + 0.5);
    context.lineTo(left + 0.5, y + 0.5);
    context.lineTo(left + 0.5, y + height - 0.5);
    context.lineTo(right - 0.5, y + height - 0.5);
  } else context.roundRect(left + 0.5, y + 0.5, right - left - 1, height - 1, 3);
  context.stroke();
}

function drawText(brush: Brush, text: string, box: Box, color: `--${string}`): void {
  const { context, view } = brush;
  const left = Math.max(box.x, 4);
  const room = Math.min(box.width - (left - box.x), view.width - left);
  if (room < 18) return;
  context.fillStyle = brush.color(color);
  context.fillText(fitText(context, shown(text), room), left, box.y + box.height / 2 + 0.5);
}

/** As much of `text` as fits into `room` pixels. */
function fitText(context: CanvasRenderingContext2D, text: string, room: number): string {
  // No glyph of the fonts used is narrower than 2 px: what is far too long is never measured.
  let start = text.slice(0, Math.ceil(room / 2));
  const { width } = context.measureText(start);
  if (start === text && width <= room) return text;
  start = start.slice(0, Math.floor((start.length * room) / width));
  while (start !== "" && context.measureText(`${start}…`).width > room) start = start.slice(0, -1);
  return start.length < 2 ? "" : `${start.trimEnd()}…`;
}

// ─── Over the bars, and the axis ─────────────────────────────────────────────

/** At a time, over the whole height. */
function drawLine(brush: Brush, x: number, color: `--${string}`, alpha = 1): void {
  const { context, view } = brush;
  context.globalAlpha = alpha;
  context.fillStyle = brush.color(color);
  context.fillRect(Math.round(x), 0, 1, view.height);
  context.globalAlpha = 1;
}

function drawSelection(brush: Brush, bar: Bar, { selectedId, hoveredId }: Scene): void {
  const { id } = bar.span.row;
  if (id !== selectedId && id !== hoveredId) return;
  const { context, color } = brush;
  const [left, right] = sides(bar, brush);
  context.strokeStyle = color(id === selectedId ? "--accent" : "--ink");
  context.lineWidth = id === selectedId ? 2 : 1;
  context.beginPath();
  context.roundRect(left - 1.5, bar.y - 1.5, right - left + 3, bar.height + 3, 4);
  context.stroke();
}

function drawAxis(brush: Brush, { pointerX }: Scene, ticks: ReturnType<typeof ticksOf>): void {
  const { context, color, view } = brush;
  const { width, length } = view;
  context.clearRect(0, 0, width, AXIS_PX);
  const nowX = toX(view, view.now);
  const isNowShown = nowX >= 0 && nowX <= width;
  const labelOf = (tick: number) =>
    length >= 8 * MINUTE_MS
      ? formatMinute(tick)
      : length >= 8 * SECOND_MS
        ? formatTime(tick)
        : `${formatTime(tick)}.${String(tick % SECOND_MS).padStart(3, "0")}`;
  for (const tick of ticks) {
    const x = toX(view, tick.at);
    const text = tick.isDay ? formatDay(tick.at) : labelOf(tick.at);
    const right = x + 5 + context.measureText(text).width;
    if (right > width || (isNowShown && right > nowX - 26 && x < nowX + 26)) continue;
    context.fillStyle = color("--grid");
    context.fillRect(Math.round(x), AXIS_PX - 8, 1, 8);
    context.fillStyle = color("--ink-2");
    context.fillText(text, x + 5, AXIS_PX / 2 + 1);
  }
  if (isNowShown) drawPill(brush, nowX, "now", "--accent");
  if (pointerX !== null)
    drawPill(brush, pointerX, formatMoment(toMs(view, pointerX), view.now), "--ink");
}

function drawPill(brush: Brush, x: number, text: string, fill: `--${string}`): void {
  const { context, color, view } = brush;
  const width = context.measureText(text).width + 10;
  const left = clamp(x - width / 2, 0, view.width - width);
  context.fillStyle = color(fill);
  context.beginPath();
  context.roundRect(left, 4, width, AXIS_PX - 8, 4);
  context.fill();
  context.fillStyle = color("--surface");
  context.fillText(text, left + 5, AXIS_PX / 2 + 1);
}
