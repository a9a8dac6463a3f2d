/**
 * The timeline: lanes over time. Only what is in the window is drawn, so memory and time follow what
 * can be seen. Everything that the canvas shows can be reached by keyboard, and is told beside it; the
 * labels at the left are elements, because they are links.
 */

import { byId, contextOf, createColors, fitCanvas, setAttribute } from "../dom.ts";
import { MINUTE_MS, SECOND_MS, formatMoment } from "../format.ts";
import { type Rows, type SpanEntry, isLive, shownEnd } from "../rows.ts";
import { AXIS_PX, drawTimeline } from "./draw.ts";
import { type Point, type TimelineActions, listenToKeys, listenToPointer } from "./input.ts";
import { type Bar, type Lane, type View, barAt, clamp, laneOf, lanesOf, walk } from "./layout.ts";
import { createWindow } from "./window.ts";
import { createWords } from "./words.ts";

/** Where the lanes need so little of their part of the page, it shrinks; never while the person moves them. */
const SHRINK_SHARE = 0.7;
const READOUT_GAP_PX = 12;
/** With less below the pointer, the readout is above it. */
const READOUT_ROOM_PX = 240;

export interface TimelineOptions {
  rows: () => Rows;
  /** Milliseconds since 1970. */
  now: () => number;
  openSession: (id: string, spanId: number) => void;
  /** The person has chosen a bar; null: none. It is told back by `wantSpan`. */
  spanSelected: (id: number | null) => void;
  /** The window reaches back beyond what is loaded. */
  wantsOlder: () => void;
  /** The window or the selection has changed: draw in the next frame. */
  requestDraw: () => void;
}

export function createTimeline(options: TimelineOptions) {
  const { rows, now, openSession, spanSelected, wantsOlder, requestDraw } = options;
  const panel = byId("timeline", HTMLElement);
  const scroller = byId("timeline-scroll", HTMLDivElement);
  const body = byId("timeline-body", HTMLDivElement);
  const readout = byId("readout", HTMLDivElement);
  const canvasBox = byId("timeline-canvas-box", HTMLDivElement);
  const canvas = byId("timeline-canvas", HTMLCanvasElement);
  const axis = byId("timeline-axis", HTMLCanvasElement);
  const emptyNote = byId("timeline-empty", HTMLParagraphElement);
  const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
  const context = contextOf(canvas);
  const axisContext = contextOf(axis);
  const color = createColors(requestDraw);
  const words = createWords();
  const window = createWindow(rows, now, requestDraw);
  const writeButtons = listenToButtons(window);

  let lanes: Lane[] = [];
  let drawn: Bar[] = [];
  /** Where a pointer is. */
  let pointer: Point | null = null;
  /** Where the arrow keys are. */
  let cursorId: number | null = null;
  let selectedId: number | null = null;
  /** Of cursor or selection: it isn't when a mouse has come since. */
  let isTold = false;
  /** A finger did the latest. */
  let isTouch = false;
  /** To be brought into sight, once it is here. */
  let soughtId: number | null = null;
  let lanesHeight = 0;
  /** As of the last event: reading it from the elements would ask for a layout. */
  const screen = { width: 0, height: 0, scrollTop: 0, isNarrow: false };
  const viewAt = (at: number): View => {
    const keptId = cursorId ?? selectedId;
    return { ...window.now(), ...screen, now: at, keptId };
  };

  function openSpan({ row }: SpanEntry): void {
    const child = row.child_session_id;
    openSession(child !== null && rows().sessions.has(child) ? child : row.session_id, row.id);
  }

  /** Selects it, on the page and in the address. */
  function select(span: SpanEntry | null): void {
    cursorId = null;
    soughtId = null;
    selectedId = span?.row.id ?? null;
    tell(span);
    spanSelected(selectedId);
  }

  function tell(span: SpanEntry | null): void {
    isTold = span !== null;
    words.say(rows(), span, now());
    requestDraw();
  }

  /** Brings a span into the window and its lane into sight. */
  function bring(span: SpanEntry): void {
    pointer = null;
    isTouch = false;
    tell(span);
    const { end, length } = window.now();
    const [from, to] = [span.start, shownEnd(span, now())];
    const isInside = from >= end - length && to <= end;
    const isToMove = to < end - length || from > end || (to - from < length && !isInside);
    if (isToMove) {
      const middle = (from + to) / 2;
      window.show(middle - length / 2, middle + length / 2);
    }
    const lane = laneOf(lanes, span.row.id);
    // Its lane may be there only in the window that comes.
    if (lane !== undefined || !isToMove) soughtId = null;
    if (lane === undefined) return;
    const { top, height } = lane;
    scroller.scrollTop = clamp(scroller.scrollTop, top + height - screen.height, top);
  }

  const actions: TimelineActions = {
    ...window,
    barAt: ({ x, y, isTouch }) => barAt(drawn, x, y, isTouch),
    walk(key) {
      const next = walk(lanes, cursorId ?? selectedId, key);
      if (next === undefined) return;
      cursorId = next.row.id;
      bring(next);
    },
    select(bar) {
      select(bar?.span ?? null);
      isTold &&= isTouch; // of a mouse the pointer's readout tells it
    },
    hover(point) {
      pointer = point;
      if (point !== null) [isTold, isTouch] = [false, point.isTouch];
      requestDraw();
    },
    open: (bar) => bar !== null && openSpan(bar.span),
    enter() {
      const id = cursorId ?? selectedId;
      const span = id === null ? undefined : rows().spans.get(id);
      if (span === undefined) return;
      if (id === selectedId) openSpan(span);
      else select(span);
    },
    scrollBy: (px) => scroller.scrollBy(0, px),
  };
  listenToPointer(canvas, actions);
  listenToKeys(scroller, actions);
  scroller.addEventListener(
    "scroll",
    () => {
      screen.scrollTop = scroller.scrollTop;
      requestDraw();
    },
    { passive: true },
  );
  new ResizeObserver(() => {
    const width = canvasBox.clientWidth;
    const height = Math.max(0, scroller.clientHeight - AXIS_PX);
    // At the left edge: style.css has put the labels over the lanes.
    Object.assign(screen, { width, height, isNarrow: canvasBox.offsetLeft === 0 });
    canvasBox.style.height = `${height}px`;
    fitCanvas(context, width, height);
    fitCanvas(axisContext, width, AXIS_PX);
    requestDraw();
  }).observe(scroller);

  function draw(): void {
    const { width, height } = screen;
    if (width === 0 || height === 0) return;
    const at = now();
    const { end, length } = window.at(at);
    const from = end - length;
    const { coveredFrom, spans } = rows();
    const view = viewAt(at);
    lanes = lanesOf(rows(), view);
    const last = lanes.at(-1);
    const needed = last === undefined ? 0 : last.top + last.height;
    const isSmall = window.fits() && needed < lanesHeight * SHRINK_SHARE;
    if (isSmall || needed > lanesHeight) lanesHeight = needed;
    const wanted = `${lanesHeight}px`;
    if (body.style.height !== wanted) body.style.height = wanted;
    emptyNote.hidden = lanes.length > 0;

    const hovered = pointer && actions.barAt(pointer);
    const hoveredId = hovered?.span.row.id ?? cursorId;
    const pointerX = pointer === null || pointer.isTouch ? null : pointer.x;
    const scene = { view, lanes, coveredFrom, selectedId, hoveredId, pointerX };
    drawn = drawTimeline(context, axisContext, color, scene);
    const selected = isTold ? drawn.find(({ span }) => span.row.id === view.keptId) : undefined;
    const told = pointer === null ? selected : hovered;
    readout.hidden = !told;
    if (told) {
      placeReadout(told); // first: it reads the layout, which writing changes
      words.writeReadout(rows(), told.span, at);
    }
    words.writeLabels(lanes, view);
    const missing = coveredFrom > from ? formatMoment(coveredFrom, at) : null;
    words.writeNote(lanes, writeButtons() ? null : length, missing);
    words.writeText(rows(), drawn, at);
    if (coveredFrom > from) wantsOlder();
    const sought = soughtId === null ? undefined : spans.get(soughtId);
    if (sought !== undefined) bring(sought);
  }

  /** Beside the pointer, else beside the bar; style.css keeps it in the window from left to right. */
  function placeReadout({ x, y, width, height }: Bar): void {
    const box = canvas.getBoundingClientRect();
    const { left, top } = panel.getBoundingClientRect();
    const at = pointer?.x ?? clamp(x + Math.min(width / 2, 40), 0, screen.width);
    const above = box.top + (pointer?.y ?? y) - READOUT_GAP_PX;
    const below = box.top + (pointer?.y ?? y + height) + READOUT_GAP_PX;
    const room = innerHeight - below;
    // A finger hides what is below it.
    const isAbove = isTouch ? above > room / 4 : room < READOUT_ROOM_PX && above > room;
    readout.style.cssText = `--x: ${box.left + at - left}px; --y: ${(isAbove ? above : below) - top}px; --up: ${isAbove ? "100%" : "0%"}; max-height: ${(isAbove ? above : room) - 8}px`;
  }

  return {
    draw,
    fit: window.fit,
    /** All rows are others. */
    showLoaded: () => window.fits() && window.fit(),
    /** Selects a bar as soon as it is here; null: none is. */
    wantSpan(id: number | null): void {
      if (id === selectedId) return;
      cursorId = null;
      selectedId = id;
      soughtId = id;
      tell(null);
    },
    /** In how many milliseconds the picture will be another though nothing has been received; null: never. */
    nextDraw(): number | null {
      const { end, length } = window.now();
      const moves =
        window.follows() ||
        lanes.some(({ session }) => session.lastEventAt <= end && isLive(session));
      if (!moves || screen.width === 0) return null;
      return clamp(length / screen.width, reducedMotion.matches ? SECOND_MS : 33, SECOND_MS);
    },
  };
}

/** The buttons over the lanes. What comes back writes their state, and says whether one has the length that is shown. */
function listenToButtons(window: ReturnType<typeof createWindow>): () => boolean {
  const follow = byId("follow", HTMLButtonElement);
  const fit = byId("zoom-fit", HTMLButtonElement);
  const ranges = [
    ...byId("timeline-ranges", HTMLDivElement).querySelectorAll<HTMLButtonElement>("button"),
  ];
  const lengthOf = (button: HTMLButtonElement) => Number(button.dataset.minutes) * MINUTE_MS;
  const isShown = (button: HTMLButtonElement) =>
    Math.abs(lengthOf(button) - window.now().length) < SECOND_MS;
  for (const button of ranges)
    button.addEventListener("click", () => window.setLength(lengthOf(button)));
  for (const button of [fit, byId("timeline-latest", HTMLButtonElement)])
    button.addEventListener("click", window.fit);
  follow.addEventListener("click", window.toggleFollow);
  return () => {
    for (const button of ranges) setAttribute(button, "aria-pressed", String(isShown(button)));
    setAttribute(follow, "aria-pressed", String(window.follows()));
    setAttribute(fit, "aria-pressed", String(window.fits()));
    return ranges.some(isShown);
  };
}
