/** What the person does in the timeline: pointer, wheel and keys, as calls of what they mean. */

import { type Bar, type WalkKey, clamp } from "./layout.ts";
import type { createWindow } from "./window.ts";

const ZOOM_STEP = 1.5;
/** How far the pointer may move in a click. */
const CLICK_PX = 4;

/** What pointer, wheel and keys do, beside moving the window. */
export interface TimelineActions extends ReturnType<typeof createWindow> {
  /** In pixels. */
  width: () => number;
  barAt: (x: number, y: number) => Bar | null;
  /** The time at a pixel. */
  msAt: (x: number) => number;
  walk: (key: WalkKey) => void;
  select: (bar: Bar | null) => void;
  /** @param pointerX where a mouse is; null: it isn't on the canvas */
  hover: (bar: Bar | null, pointerX: number | null) => void;
  open: (bar: Bar | null) => void;
  openSelected: () => void;
  scrollBy: (px: number) => void;
}

interface Point {
  x: number;
  y: number;
}

export function listenToPointer(canvas: HTMLCanvasElement, actions: TimelineActions): void {
  const pointers = new Map<number, Point>();
  let isDragging = false;
  /** Where the last pointer went down, and where the window was. */
  let drag: { from: Point; last: Point; end: number } | null = null;
  let pinch: { distance: number; length: number; at: number } | null = null;

  const pointOf = (event: MouseEvent): Point => {
    const box = canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };
  /** How far two fingers are apart, and their middle; null: they aren't two. */
  const fingers = () => {
    const [first, second] = pointers.values();
    if (first === undefined || second === undefined) return null;
    return { distance: Math.abs(first.x - second.x) || 1, middle: (first.x + second.x) / 2 };
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const from = pointOf(event);
    pointers.set(event.pointerId, from);
    canvas.setPointerCapture(event.pointerId);
    const { length, end } = actions.now();
    const both = fingers();
    drag = both === null ? { from, last: from, end } : null;
    if (both !== null) pinch = { distance: both.distance, length, at: actions.msAt(both.middle) };
  });

  canvas.addEventListener("pointermove", (event) => {
    const point = pointOf(event);
    if (pointers.has(event.pointerId)) pointers.set(event.pointerId, point);
    const { length } = actions.now();
    const width = actions.width();
    const both = fingers();
    if (pinch !== null && both !== null) {
      const next = (pinch.length * pinch.distance) / both.distance;
      const from = pinch.at - (both.middle / width) * next;
      actions.show(from, from + next);
    } else if (drag !== null) {
      const dx = point.x - drag.from.x;
      const dy = point.y - drag.from.y;
      if (!isDragging && Math.max(Math.abs(dx), Math.abs(dy)) < CLICK_PX) return;
      isDragging = true;
      actions.hover(null, null);
      // Straight down it scrolls, and goes on following now.
      if (Math.abs(dx) >= CLICK_PX || !actions.follows()) {
        const to = drag.end - (dx / width) * length;
        actions.show(to - length, to);
      }
      if (event.pointerType === "mouse") actions.scrollBy(drag.last.y - point.y);
      drag.last = point;
    } else {
      const bar = actions.barAt(point.x, point.y);
      canvas.classList.toggle("on-bar", bar !== null);
      actions.hover(bar, event.pointerType === "mouse" ? point.x : null);
    }
  });

  const end = (event: PointerEvent) => {
    if (!pointers.delete(event.pointerId)) return;
    const isClick = !isDragging && pinch === null && event.type === "pointerup";
    if (pointers.size === 0) isDragging = false;
    if (pointers.size < 2) pinch = null;
    drag = null;
    const { x, y } = pointOf(event);
    if (isClick) actions.select(actions.barAt(x, y));
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => actions.hover(null, null));
  canvas.addEventListener("dblclick", (event) => {
    const { x, y } = pointOf(event);
    actions.open(actions.barAt(x, y));
  });

  canvas.addEventListener(
    "wheel",
    (event) => {
      const isPageScrolling = document.documentElement.scrollHeight > innerHeight + 1;
      const isSideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
      if (isPageScrolling && !isSideways && !event.ctrlKey) return;
      event.preventDefault();
      if (isSideways) {
        const px = event.shiftKey ? event.deltaY || event.deltaX : event.deltaX;
        actions.pan(px / actions.width());
      } else {
        const anchor = actions.follows() ? undefined : actions.msAt(pointOf(event).x);
        actions.zoom(Math.exp(clamp(event.deltaY, -100, 100) / 300), anchor);
      }
    },
    { passive: false },
  );
}

export function listenToKeys(scroller: HTMLElement, actions: TimelineActions): void {
  const walk = (key: WalkKey) => () => actions.walk(key);
  const zoomIn = () => actions.zoom(1 / ZOOM_STEP);
  const zoomOut = () => actions.zoom(ZOOM_STEP);
  const keys: Record<string, () => void> = {
    ArrowLeft: walk("ArrowLeft"),
    ArrowRight: walk("ArrowRight"),
    ArrowUp: walk("ArrowUp"),
    ArrowDown: walk("ArrowDown"),
    "+": zoomIn,
    "=": zoomIn,
    w: zoomIn,
    "-": zoomOut,
    _: zoomOut,
    s: zoomOut,
    a: () => actions.pan(-1 / 4),
    d: () => actions.pan(1 / 4),
    f: actions.toggleFollow,
    "0": actions.fit,
    Home: actions.fit,
    End: actions.showLatest,
    Enter: actions.openSelected,
    Escape: () => actions.select(null),
  };
  scroller.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target !== scroller) return;
    const act = keys[event.key] ?? keys[event.key.toLowerCase()];
    if (act === undefined) return;
    act();
    event.preventDefault();
  });
  document.querySelector("#zoom-in")?.addEventListener("click", zoomIn);
  document.querySelector("#zoom-out")?.addEventListener("click", zoomOut);
}
