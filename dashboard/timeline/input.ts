/** What the person does in the timeline: pointer, wheel and keys, as calls of what they mean. */

import { type Bar, type WalkKey, type Window, clamp } from "./layout.ts";
import type { createWindow } from "./window.ts";

const ZOOM_STEP = 1.5;
/** How far the pointer may move in a click. */
const CLICK_PX = 4;

/** What pointer, wheel and keys do, beside moving the window. */
export interface TimelineActions extends ReturnType<typeof createWindow> {
  barAt: (point: Point) => Bar | null;
  walk: (key: WalkKey) => void;
  select: (bar: Bar | null) => void;
  /** Where the pointer is; null: it isn't on the canvas, or moves it. */
  hover: (point: Point | null) => void;
  open: (bar: Bar | null) => void;
  enter: () => void;
  scrollBy: (px: number) => void;
}

/** On the canvas. */
export interface Point {
  x: number;
  y: number;
  isTouch: boolean;
}

export function listenToPointer(canvas: HTMLCanvasElement, actions: TimelineActions): void {
  const pointers = new Map<number, Point>();
  /** It moves the window: no click comes of it. */
  let isDragging = false;
  /** Where fingers or mouse stood, and the window, when their number was last another. */
  let grip: (Window & { at: Point; spread: number }) | null = null;
  let lastY = 0;

  const pointOf = (event: MouseEvent): Point => {
    const box = canvas.getBoundingClientRect();
    const isTouch = event instanceof PointerEvent && event.pointerType !== "mouse";
    return { x: event.clientX - box.left, y: event.clientY - box.top, isTouch };
  };
  const timeAt = (x: number, { end, length }: Window) =>
    end - length * (1 - x / canvas.clientWidth);
  /** The middle of all that touches, and how far apart it is. */
  const hold = () => {
    const [first, second = first] = pointers.values();
    if (first === undefined || second === undefined) return null;
    const at = { ...first, x: (first.x + second.x) / 2, y: (first.y + second.y) / 2 };
    return { at, spread: Math.hypot(first.x - second.x, first.y - second.y) };
  };
  const takeGrip = () => {
    const held = hold();
    grip = held && { ...held, ...actions.now() };
    lastY = held?.at.y ?? 0;
    if (pointers.size > 1) isDragging = true;
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const point = pointOf(event);
    pointers.set(event.pointerId, point);
    canvas.setPointerCapture(event.pointerId);
    takeGrip();
    actions.hover(isDragging ? null : point);
  });

  canvas.addEventListener("pointermove", (event) => {
    const point = pointOf(event);
    if (pointers.has(event.pointerId)) pointers.set(event.pointerId, point);
    const held = hold();
    if (grip === null || held === null) {
      canvas.classList.toggle("on-bar", actions.barAt(point) !== null);
      return actions.hover(point);
    }
    const dx = held.at.x - grip.at.x;
    const dy = held.at.y - grip.at.y;
    if (!isDragging && Math.max(Math.abs(dx), Math.abs(dy)) < CLICK_PX) return;
    isDragging = true;
    actions.hover(null);
    // Straight down it scrolls, and goes on following now.
    if (grip.spread > 0 || Math.abs(dx) >= CLICK_PX || !actions.follows()) {
      const length = grip.length * (grip.spread > 0 ? grip.spread / Math.max(1, held.spread) : 1);
      const from = timeAt(grip.at.x, grip) - (held.at.x / canvas.clientWidth) * length;
      actions.show(from, from + length);
    }
    if (!point.isTouch) actions.scrollBy(lastY - point.y);
    lastY = point.y;
  });

  const end = (event: PointerEvent) => {
    if (!pointers.delete(event.pointerId)) return;
    const point = pointOf(event);
    const isClick = !isDragging && event.type === "pointerup";
    takeGrip();
    if (pointers.size === 0) isDragging = false;
    if (isClick) actions.select(actions.barAt(point));
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => actions.hover(null));
  canvas.addEventListener("dblclick", (event) => actions.open(actions.barAt(pointOf(event))));

  canvas.addEventListener(
    "wheel",
    (event) => {
      const isPageScrolling = document.documentElement.scrollHeight > innerHeight + 1;
      const isSideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
      if (isPageScrolling && !isSideways && !event.ctrlKey) return;
      event.preventDefault();
      if (isSideways) {
        const px = event.shiftKey ? event.deltaY || event.deltaX : event.deltaX;
        actions.pan(px / canvas.clientWidth);
      } else {
        const anchor = actions.follows() ? undefined : timeAt(pointOf(event).x, actions.now());
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
    Enter: actions.enter,
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
