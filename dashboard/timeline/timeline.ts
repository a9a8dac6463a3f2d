/**
 * The timeline: lanes over time. Only what is in the window is drawn, so memory and time follow what
 * can be seen. Everything that the canvas shows can be reached by keyboard, and is read out below; the
 * labels at the left are elements, because they are links.
 */

import { byId, contextOf, createColors, fitCanvas, setAttribute } from "../dom.ts";
import { MINUTE_MS, SECOND_MS, formatMoment } from "../format.ts";
import { type Rows, type SpanEntry, isLive, shownEnd } from "../rows.ts";
import { AXIS_PX, createPainter } from "./draw.ts";
import { type TimelineActions, listenToKeys, listenToPointer } from "./input.ts";
import {
  type Bar,
  type Lane,
  type View,
  barAt,
  clamp,
  laneIndexOf,
  lanesOf,
  toMs,
  topsOf,
  walk,
} from "./layout.ts";
import { createWindow } from "./window.ts";
import { createWords } from "./words.ts";

export interface TimelineOptions {
  rows: () => Rows;
  /** Milliseconds since 1970. */
  now: () => number;
  openSession: (id: string) => void;
  /** The window reaches back beyond what is loaded. */
  wantsOlder: () => void;
  /** The window or the selection has changed: draw in the next frame. */
  requestDraw: () => void;
}

export function createTimeline(options: TimelineOptions) {
  const { rows, now, openSession, wantsOlder, requestDraw } = options;
  const scroller = byId("timeline-scroll", HTMLDivElement);
  const body = byId("timeline-body", HTMLDivElement);
  const canvasBox = byId("timeline-canvas-box", HTMLDivElement);
  const canvas = byId("timeline-canvas", HTMLCanvasElement);
  const axis = byId("timeline-axis", HTMLCanvasElement);
  const emptyNote = byId("timeline-empty", HTMLParagraphElement);
  const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
  const context = contextOf(canvas);
  const axisContext = contextOf(axis);
  const color = createColors(() => {
    painter.readColors();
    requestDraw();
  });
  const painter = createPainter(context, axisContext, color);
  const words = createWords();
  const window = createWindow(rows, now, requestDraw);
  const writeButtons = listenToButtons(window);

  let lanes: Lane[] = [];
  let tops: number[] = [];
  let drawn: Bar[] = [];
  let hovered: Bar | null = null;
  let pointerX: number | null = null;
  let selectedId: number | null = null;
  /** To be selected once it is here. */
  let wantedId: number | null = null;
  /** As of the last event: reading it from the elements would ask for a layout. */
  const screen = { width: 0, height: 0, scrollTop: 0, isNarrow: false };
  const viewAt = (at: number): View => ({ ...window.now(), ...screen, now: at });

  function openSpan({ row }: SpanEntry): void {
    const child = row.child_session_id;
    openSession(child !== null && rows().sessions.has(child) ? child : row.session_id);
  }

  /** Brings a span into the window and its lane into sight. */
  function select(span: SpanEntry, laneIndex: number): void {
    selectedId = span.row.id;
    hovered = null;
    const { end, length } = window.now();
    const [from, to] = [span.start, shownEnd(span, now())];
    const isInside = from >= end - length && to <= end;
    if (to < end - length || from > end || (to - from < length && !isInside)) {
      const middle = (from + to) / 2;
      window.show(middle - length / 2, middle + length / 2);
    }
    const top = tops[laneIndex] ?? 0;
    const bottom = tops[laneIndex + 1] ?? top;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (bottom > scroller.scrollTop + screen.height)
      scroller.scrollTop = bottom - screen.height;
    requestDraw();
  }

  const actions: TimelineActions = {
    ...window,
    width: () => screen.width,
    barAt: (x, y) => barAt(drawn, x, y),
    msAt: (x) => toMs(viewAt(now()), x),
    walk(key) {
      const next = walk(lanes, selectedId, key);
      if (next !== null) select(next.span, next.laneIndex);
    },
    select(bar) {
      selectedId = bar?.span.row.id ?? null;
      requestDraw();
    },
    hover(bar, x) {
      hovered = bar;
      pointerX = x;
      requestDraw();
    },
    open: (bar) => bar !== null && openSpan(bar.span),
    openSelected() {
      const span = selectedId === null ? undefined : rows().spans.get(selectedId);
      if (span !== undefined) openSpan(span);
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
    fitCanvas(canvas, context, width, height);
    fitCanvas(axis, axisContext, width, AXIS_PX);
    requestDraw();
  }).observe(scroller);
  document.fonts?.ready.then(requestDraw);

  function draw(): void {
    const { width, height, isNarrow } = screen;
    if (width === 0 || height === 0) return;
    const at = now();
    const { end, length } = window.at(at);
    const from = end - length;
    const { coveredFrom, spans } = rows();
    lanes = lanesOf(rows(), window.scope(), from, end, at);
    tops = topsOf(lanes, isNarrow);
    const wanted = `${Math.max(tops.at(-1) ?? 0, height)}px`;
    if (body.style.height !== wanted) body.style.height = wanted;
    emptyNote.hidden = lanes.length > 0;

    const view = viewAt(at);
    const hoveredId = hovered?.span.row.id ?? null;
    drawn = painter.draw({ view, lanes, tops, coveredFrom, selectedId, hoveredId, pointerX });
    words.writeLabels(lanes, tops, view);
    const missing = coveredFrom > from ? formatMoment(coveredFrom, at) : null;
    words.writeNote(lanes, writeButtons() ? null : length, missing);
    const selected = selectedId === null ? undefined : spans.get(selectedId);
    words.writeReadout(rows(), hovered?.span ?? selected ?? null, at);
    words.writeText(rows(), drawn, at);
    if (coveredFrom > from) wantsOlder();
    const span = wantedId === null ? undefined : spans.get(wantedId);
    if (span === undefined) return;
    const laneIndex = laneIndexOf(lanes, span.row.id);
    // Where its lane isn't shown this moves the window, and is done once more to scroll there.
    if (laneIndex >= 0 || selectedId === wantedId) wantedId = null;
    select(span, laneIndex);
  }

  return {
    draw,
    fit: window.fit,
    showLoaded: window.showLoaded,
    setScope: window.setScope,
    /** Selects a bar as soon as it is here. */
    wantSpan(id: number): void {
      wantedId = id;
      requestDraw();
    },
    reset(): void {
      selectedId = null;
      wantedId = null;
      window.reset();
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
  const ranges = [
    ...byId("timeline-ranges", HTMLDivElement).querySelectorAll<HTMLButtonElement>("button"),
  ];
  const lengthOf = (button: HTMLButtonElement) => Number(button.dataset.minutes) * MINUTE_MS;
  const isShown = (button: HTMLButtonElement) =>
    Math.abs(lengthOf(button) - window.now().length) < SECOND_MS;
  for (const button of ranges)
    button.addEventListener("click", () => window.setLength(lengthOf(button)));
  byId("zoom-fit", HTMLButtonElement).addEventListener("click", window.fit);
  follow.addEventListener("click", window.toggleFollow);
  byId("timeline-latest", HTMLButtonElement).addEventListener("click", window.showLatest);
  return () => {
    for (const button of ranges) setAttribute(button, "aria-pressed", String(isShown(button)));
    setAttribute(follow, "aria-pressed", String(window.follows()));
    return ranges.some(isShown);
  };
}
