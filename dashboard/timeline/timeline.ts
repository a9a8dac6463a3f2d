/**
 * The timeline: lanes over time. Only what is in the window is drawn, so memory and time follow what
 * can be seen. Everything that the canvas shows can be reached by keyboard, and is told beside it; the
 * labels at the left are elements, because they are links.
 */

import type { Need } from "../attention.ts";
import { byId, contextOf, createColors, fitCanvas, set } from "../dom.ts";
import { MINUTE_MS, SECOND_MS, formatMoment } from "../format.ts";
import { type Rows, type SpanEntry, isLive, shownEnd } from "../rows.ts";
import { AXIS_PX, drawTimeline } from "./draw.ts";
import { type Point, type TimelineActions, listenToKeys, listenToPointer } from "./input.ts";
import { type Bar, type Lane, barAt, laneOf, lanesOf, walk } from "./layout.ts";
import { clamp, createWindow } from "./window.ts";
import { createWords } from "./words.ts";

/** Where the lanes need so little of their part of the page, it shrinks; never while the person moves them. */
const SHRINK_SHARE = 0.7;
/** What moves by itself is drawn this often. */
const MOVE_MS = 100;
const READOUT_GAP_PX = 12;

interface TimelineOptions {
  rows: () => Rows;
  /** Who needs the person, by the session's id. */
  needs: () => ReadonlyMap<string, Need>;
  openSession: (id: string, spanId: number) => void;
  /** The person has chosen a bar; null: none. It is told back by `wantSpan`. */
  spanSelected: (id: number | null) => void;
  /** The window reaches back beyond what is loaded. */
  wantsOlder: () => void;
  /** The window or the selection has changed: draw in the next frame. */
  requestDraw: () => void;
}

export function createTimeline(options: TimelineOptions) {
  const { rows, needs, openSession, spanSelected, wantsOlder, requestDraw } = options;
  const panel = byId("timeline", HTMLElement);
  const scroller = byId("timeline-scroll", HTMLDivElement);
  const body = byId("timeline-body", HTMLDivElement);
  const readout = byId("readout", HTMLDivElement);
  const canvasBox = byId("timeline-canvas-box", HTMLDivElement);
  const emptyNote = byId("timeline-empty", HTMLParagraphElement);
  const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
  const context = contextOf("timeline-canvas");
  const axisContext = contextOf("timeline-axis");
  const { canvas } = context;
  const color = createColors(requestDraw);
  const words = createWords();
  const window = createWindow(rows, Date.now, requestDraw);
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

  function select(span: SpanEntry | null): void {
    cursorId = null;
    soughtId = null;
    selectedId = span?.row.id ?? null;
    tell(span);
    spanSelected(selectedId);
  }

  function tell(span: SpanEntry | null): void {
    isTold = span !== null;
    words.say(rows(), span, Date.now());
    requestDraw();
  }

  /** Brings a span into the window and its lane into sight. */
  function bring(span: SpanEntry): void {
    pointer = null;
    isTouch = false;
    tell(span);
    const { end, length } = window.now();
    const [from, now] = [span.start, Date.now()];
    const to = Math.min(shownEnd(span, now), now + length / 2); // no window reaches further
    const isSeen = from >= end - length ? to <= end : to >= end;
    soughtId = isSeen ? null : span.row.id; // its lane may be there only in the next window
    if (!isSeen) return window.show((from + to - length) / 2, (from + to + length) / 2);
    const { top, height } = laneOf(lanes, span.row.id) ?? { top: scroller.scrollTop, height: 0 };
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
    enter() {
      const { spans, sessions } = rows();
      const span = spans.get(cursorId ?? selectedId ?? 0);
      if (span === undefined) return;
      const { id, session_id, child_session_id } = span.row;
      if (id !== selectedId) return select(span);
      openSession(sessions.get(child_session_id ?? "")?.row.id ?? session_id, id);
    },
    scrollBy: (px) => scroller.scrollBy(0, px),
  };
  listenToPointer(canvas, actions);
  listenToKeys(scroller, actions);
  scroller.addEventListener("scroll", () => {
    screen.scrollTop = scroller.scrollTop;
    requestDraw();
  });
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
    if (screen.width === 0 || screen.height === 0) return;
    const at = Date.now();
    const hovered = pointer && actions.barAt(pointer);
    const hoveredId = hovered?.span.row.id ?? cursorId;
    canvas.classList.toggle("on-bar", hovered !== null);
    const view = { ...window.at(at), ...screen, now: at, selectedId, hoveredId };
    const { coveredFrom, spans } = rows();
    lanes = lanesOf(rows(), view);
    const { top, height } = lanes.at(-1) ?? { top: 0, height: 0 };
    const needed = top + height;
    const isSmall = window.fits() && needed < lanesHeight * SHRINK_SHARE;
    if (isSmall || needed > lanesHeight) lanesHeight = needed;
    body.style.height = `${lanesHeight}px`;
    emptyNote.hidden = lanes.length > 0;

    const bottom = screen.scrollTop + screen.height;
    const seen = lanes.filter(
      (lane) => lane.top + lane.height >= screen.scrollTop && lane.top <= bottom,
    );
    drawn = drawTimeline({ context, color, view }, axisContext, seen);
    const isCursor = ({ span }: Bar) => span.row.id === (cursorId ?? selectedId);
    const told = pointer === null ? isTold && drawn.find(isCursor) : hovered;
    readout.hidden = !told;
    if (told) {
      placeReadout(told); // first: it reads the layout, which writing changes
      words.writeReadout(rows(), told.span, at);
    }
    words.writeLabels(seen, needs(), at);
    const isMissing = coveredFrom > view.end - view.length;
    const missing = isMissing ? formatMoment(coveredFrom, at) : null;
    words.writeNote(lanes, writeButtons() ? null : view.length, missing);
    words.writeText(rows(), drawn, at);
    if (isMissing) wantsOlder();
    const sought = spans.get(soughtId ?? 0);
    if (sought !== undefined) bring(sought);
  }

  /** Beside the pointer, else beside the bar; style.css keeps it in the window from left to right. */
  function placeReadout({ x, y, width, height }: Bar): void {
    const box = canvas.getBoundingClientRect();
    const { left, top } = panel.getBoundingClientRect();
    const at = box.left + (pointer?.x ?? clamp(x + Math.min(width / 2, 40), 0, screen.width));
    const above = box.top + (pointer?.y ?? y) - READOUT_GAP_PX;
    const below = box.top + (pointer?.y ?? y + height) + READOUT_GAP_PX;
    const room = innerHeight - below;
    // Where there is more room; a finger hides what is below it.
    const isAbove = above > (isTouch ? room / 4 : room);
    const [edge, up] = isAbove ? [above, "100%"] : [below, "0%"];
    readout.style.cssText = `--x: ${at - left}px; --y: ${edge - top}px; --up: ${up}; max-height: ${(isAbove ? above : room) - 8}px`;
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
      selectedId = soughtId = id;
      if (id !== null) window.pan(0); // it no longer fits what goes on: the bar has to stay in sight
      tell(null);
    },
    /** In how many milliseconds the picture will be another though nothing has been received; null: never. */
    nextDraw(): number | null {
      const moves = window.follows() || lanes.some(({ session }) => isLive(session));
      if (!moves || screen.width === 0) return null;
      const pixelMs = window.now().length / screen.width;
      return clamp(pixelMs, reducedMotion.matches ? SECOND_MS : MOVE_MS, SECOND_MS);
    },
  };
}

/** The buttons over the lanes. What comes back writes their state, and says whether one has the length that is shown. */
function listenToButtons(window: ReturnType<typeof createWindow>): () => boolean {
  const follow = byId("follow", HTMLButtonElement);
  const fit = byId("zoom-fit", HTMLButtonElement);
  const ranges = [...byId("timeline-ranges", HTMLDivElement).querySelectorAll("button")];
  const lengthOf = (button: HTMLButtonElement) => Number(button.dataset.minutes) * MINUTE_MS;
  const isShown = (button: HTMLButtonElement) =>
    Math.abs(lengthOf(button) - window.now().length) < SECOND_MS;
  for (const button of ranges)
    button.addEventListener("click", () => window.setLength(lengthOf(button)));
  return () => {
    for (const button of ranges) set(button, { "aria-pressed": isShown(button) });
    set(follow, { "aria-pressed": window.follows() });
    set(fit, { "aria-pressed": window.fits() });
    return ranges.some(isShown);
  };
}
