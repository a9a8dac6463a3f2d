/** The timeline's two canvases. What is told by colour has a shape too (see the legend). */

import { shown } from "../dom.ts";
import { argsSummary, oneLine, toolFamily } from "../events.ts";
import { MINUTE_MS, SECOND_MS, formatDay, formatMinute, formatTime, joined } from "../format.ts";
import { isFailedSpan, isMoment } from "../rows.ts";
import {
  type Bar,
  type Box,
  type Lane,
  type View,
  barsOf,
  groundOf,
  ticksOf,
  toX,
} from "./layout.ts";

export const AXIS_PX = 26;
/** A call's arguments in less than this say nothing. */
const MIN_ARGS_PX = 32;
/** Less has no room for text. */
const MIN_TEXT_PX = 18;
const MAX_WIDTHS = 1_000;
const widths = new Map<string, number>();
/** Between two lines of a hatch. */
const HATCH_PX = 6;

type Color = `--${string}`;

/** A shape, by SVG's path, around the point that it tells of. */
interface Sign {
  path: Path2D;
  fill?: Color;
  stroke: Color;
  lineWidth: number;
}

const CROSS: Sign = { path: new Path2D("M-4-4 4 4M-4 4 4-4"), stroke: "--failed", lineWidth: 2 };
/** Of calls of which only the moment is known: a bar's length would be a lie. */
const RING = new Path2D("M-2.5 0a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0-5 0");
const TRIANGLE = new Path2D("M-4-5H5L.5 2z");
const NO_ENTRY = new Path2D("M-3-1a4 4 0 1 0 8 0a4 4 0 1 0-8 0M-1.5-1h5");
/** How a call ended; what was cut off has a line at its end. */
const OUTCOMES: Partial<Record<string, Sign>> = {
  failed: { path: TRIANGLE, fill: "--failed", stroke: "--surface", lineWidth: 1 },
  exit: { path: TRIANGLE, fill: "--surface", stroke: "--failed", lineWidth: 1.5 },
  denied: { path: NO_ENTRY, fill: "--surface", stroke: "--ink-2", lineWidth: 1.5 },
};

/** A canvas to draw on, as wide as the window. */
interface Brush {
  context: CanvasRenderingContext2D;
  view: View;
  color: (name: Color) => string;
}

/** Draws these lanes, and says what it has drawn where. */
export function drawTimeline(
  brush: Brush,
  axis: CanvasRenderingContext2D,
  lanes: readonly Lane[],
): Bar[] {
  const { context, view } = brush;
  const ticks = ticksOf(view, new Date(view.end).getTimezoneOffset() * MINUTE_MS);
  context.clearRect(0, 0, view.width, view.height);
  for (const tick of ticks) drawLine(brush, toX(view, tick.at), "--grid");
  for (const lane of lanes) drawGround(brush, lane);
  const drawn = lanes.flatMap((lane) => barsOf(lane, view));
  for (const bar of drawn) drawBar(brush, bar);
  drawLine(brush, toX(view, view.now), "--accent");
  for (const bar of drawn) {
    const { id } = bar.span.row;
    if (id === view.hoveredId) strokeBox(brush, bar, "--ink", 1, 1.5);
    if (id === view.selectedId) strokeBox(brush, bar, "--accent", 2, 1.5);
  }
  drawAxis({ ...brush, context: axis }, ticks);
  return drawn;
}

function drawGround(brush: Brush, lane: Lane): void {
  const { view } = brush;
  const line = { x: 0, y: Math.round(lane.top - view.scrollTop), width: view.width, height: 1 };
  if (lane.depth === 0 && lane.top > 0) fillBox(brush, line, "--grid");
  const ground = groundOf(lane, view);
  if (ground !== null) fillBox(brush, ground, "--lane", 4);
}

// ─── Bars ────────────────────────────────────────────────────────────────────

function drawBar(brush: Brush, bar: Bar): void {
  const { x, y, width, height, span } = bar;
  const { kind, outcome } = span.row;
  if (kind === "mark") return drawSign(brush, CROSS, x + width / 2, y + height / 2);
  if (kind === "agent") drawAgent(brush, bar);
  if (kind === "tool") drawTool(brush, bar);
  if (kind === "model") fillBox(brush, bar, isFailedSpan(span) ? "--failed" : "--control", 2);
  if (kind === "wait") {
    fillWait(brush, bar);
    strokeBox(brush, bar, "--wait");
  }
  const sign = OUTCOMES[outcome ?? ""];
  if (sign !== undefined) drawSign(brush, sign, x, y);
  const atEnd = { x: x + width - 1, y: y - 3, width: 3, height: height + 6 };
  if (outcome === "cancelled") fillBox(brush, atEnd, "--ink-2");
}

function drawAgent(brush: Brush, bar: Bar): void {
  const { context } = brush;
  const color = isFailedSpan(bar.span) ? "--failed" : "--agent";
  context.globalAlpha = 0.2;
  fillBox(brush, bar, color, 3);
  context.globalAlpha = 1;
  fillBox(brush, { ...bar, width: Math.min(3, bar.width) }, color);
  strokeBox(brush, bar, color);
}

function drawTool(brush: Brush, bar: Bar): void {
  const { context } = brush;
  const { span, x, y, width, height, freePx = 0 } = bar;
  const failed = isFailedSpan(span);
  if (isMoment(span)) {
    const stroke = failed ? "--failed" : "--ink-2";
    return drawSign(brush, { path: RING, stroke, lineWidth: 1.5 }, x, y + height / 2);
  }
  const { name, text } = span.row;
  fillBox(brush, bar, failed ? "--failed" : `--${toolFamily(name)}`, 2);
  if (width - freePx < MIN_TEXT_PX) return; // most are: measured is what may have room
  // A name that is cut says less than none; of what it was called with a part says something.
  const room = width - freePx - 8 - widthOf(context, shown(name));
  if (room < 0) return;
  const words = room < MIN_ARGS_PX ? name : oneLine(joined([name, argsSummary(text)], ": "));
  drawText(brush, words, { ...bar, x: x + freePx + 4, width: width - freePx - 6 });
}

function drawSign({ context, color }: Brush, sign: Sign, x: number, y: number): void {
  context.save();
  context.translate(x, y);
  context.fillStyle = color(sign.fill ?? "--lane");
  context.fill(sign.path);
  context.strokeStyle = color(sign.stroke);
  context.lineWidth = sign.lineWidth;
  context.stroke(sign.path);
  context.restore();
}

function fillBox({ context, color }: Brush, box: Box, fill: Color, radius = 0): void {
  const { x, y, width, height } = box;
  context.fillStyle = color(fill);
  if (width < 4) return context.fillRect(x, y, width, height);
  context.beginPath();
  context.roundRect(x, y, width, height, radius);
  context.fill();
}

/** Hatched with diagonal lines. */
function fillWait(brush: Brush, box: Box): void {
  const { context, color } = brush;
  const { x, y, width, height } = box;
  fillBox(brush, box, "--wait-soft", 3);
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.beginPath();
  for (let at = x - height; at < x + width; at += HATCH_PX) {
    context.moveTo(at, y + height);
    context.lineTo(at + height, y);
  }
  context.strokeStyle = color("--wait");
  context.lineWidth = 1.25;
  context.stroke();
  context.restore();
}

/** @param outset how far beyond its edge */
function strokeBox(brush: Brush, box: Box, ink: Color, lineWidth = 1, outset = -0.5): void {
  const { context, color } = brush;
  const [width, height] = [box.width + 2 * outset, box.height + 2 * outset];
  context.strokeStyle = color(ink);
  context.lineWidth = lineWidth;
  context.beginPath();
  context.roundRect(box.x - outset, box.y - outset, Math.max(0, width), height, 3);
  context.stroke();
}

function drawText({ context, color, view }: Brush, text: string, box: Box): void {
  const left = Math.max(box.x, 4);
  const room = Math.min(box.x + box.width, view.width) - left;
  if (room < MIN_TEXT_PX) return;
  context.fillStyle = color("--bar-ink");
  context.fillText(fitText(context, shown(text), room), left, box.y + box.height / 2 + 0.5);
}

/** Of names, which are few: to measure one takes longer than to draw its bar. */
function widthOf(context: CanvasRenderingContext2D, name: string): number {
  const width = widths.get(name) ?? context.measureText(name).width;
  if (widths.size < MAX_WIDTHS) widths.set(name, width);
  return width;
}

/** As much of `text` as fits into `room` pixels. */
function fitText(context: CanvasRenderingContext2D, text: string, room: number): string {
  const { width } = context.measureText(text);
  if (width <= room) return text;
  let start = text.slice(0, Math.floor((text.length * room) / width));
  while (start !== "" && context.measureText(`${start}…`).width > room) start = start.slice(0, -1);
  return start.length < 2 ? "" : `${start.trimEnd()}…`;
}

// ─── Over the bars, and the axis ─────────────────────────────────────────────

/** At a time, over the whole height. */
function drawLine(brush: Brush, x: number, ink: Color): void {
  fillBox(brush, { x: Math.round(x), y: 0, width: 1, height: brush.view.height }, ink);
}

function drawAxis(brush: Brush, ticks: ReturnType<typeof ticksOf>): void {
  const { context, color, view } = brush;
  const { width, length } = view;
  context.clearRect(0, 0, width, AXIS_PX);
  const nowX = toX(view, view.now);
  for (const { at, isDay } of ticks) {
    const x = toX(view, at);
    const text = isDay ? formatDay(at) : timeOf(at, length);
    const right = x + 5 + context.measureText(text).width;
    if (right > width || (right > nowX - 26 && x < nowX + 26)) continue;
    fillBox(brush, { x: Math.round(x), y: AXIS_PX - 8, width: 1, height: 8 }, "--grid");
    context.fillStyle = color("--ink-2");
    context.fillText(text, x + 5, AXIS_PX / 2 + 1);
  }
  if (nowX < 0 || nowX > width) return;
  const pill = { y: 4, width: context.measureText("now").width + 10, height: AXIS_PX - 8 };
  const x = Math.min(nowX - pill.width / 2, width - pill.width);
  fillBox(brush, { ...pill, x }, "--accent", 4);
  context.fillStyle = color("--surface");
  context.fillText("now", x + 5, AXIS_PX / 2 + 1);
}

/** As exact as a window of this length needs it. */
function timeOf(at: number, length: number): string {
  if (length >= 8 * MINUTE_MS) return formatMinute(at);
  if (length >= 8 * SECOND_MS) return formatTime(at);
  return `${formatTime(at)}.${String(at % SECOND_MS).padStart(3, "0")}`;
}
