/** What the person does in the timeline: pointer, wheel and keys, as calls of what they mean. */

import type { Bar } from "./layout.ts";
import { clamp, type createWindow } from "./window.ts";

const ZOOM_STEP = 1.5;
/** How far the pointer may move in a click. */
const CLICK_PX = 4;

/** What pointer, wheel and keys do, beside moving the window. */
export interface TimelineActions extends ReturnType<typeof createWindow> {
  barAt: (point: Point) => Bar | null;
  walk: (key: string) => void;
  select: (bar: Bar | null) => void;
  /** Where the pointer is; null: it isn't on the canvas, or moves it. */
  hover: (point: Point | null) => void;
  enter: () => void;
  scrollBy: (px: number) => void;
}

export type Point = ReturnType<typeof pointOf>;

const pointOf = ({ offsetX: x, offsetY: y, pointerType }: PointerEvent) => {
  return { x, y, isTouch: pointerType !== "mouse" };
};

export function listenToPointer(canvas: HTMLCanvasElement, actions: TimelineActions): void {
  /** Fingers, or a pressed mouse, where they are. */
  const pointers = new Map<number, Point>();
  let pressedAt = { x: 0, y: 0 };
  /** They move the window, and no click comes of it; straight down they only scroll. */
  let isDragging = false;
  let isPanning = false;

  const timeAt = (x: number) => {
    const { end, length } = actions.now();
    return end - length * (1 - x / canvas.clientWidth);
  };
  /** The middle of what touches, and how far apart it is. */
  const hold = () => {
    const [first = pressedAt, second = first] = pointers.values();
    const spread = Math.hypot(first.x - second.x, first.y - second.y);
    return { x: (first.x + second.x) / 2, spread };
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const point = pointOf(event);
    pointers.set(event.pointerId, point);
    canvas.setPointerCapture(event.pointerId);
    isDragging = isPanning = pointers.size > 1;
    pressedAt = point;
    actions.hover(isDragging ? null : point);
  });

  canvas.addEventListener("pointermove", (event) => {
    const point = pointOf(event);
    const last = pointers.get(event.pointerId);
    if (last === undefined) return actions.hover(point);
    const dx = Math.abs(point.x - pressedAt.x);
    isPanning ||= dx >= CLICK_PX;
    isDragging ||= isPanning || Math.abs(point.y - pressedAt.y) >= CLICK_PX;
    if (!isDragging) return;
    actions.hover(null);
    const before = hold();
    pointers.set(event.pointerId, point);
    const after = hold();
    if (isPanning) {
      const zoom = pointers.size > 1 ? before.spread / Math.max(1, after.spread) : 1;
      const length = actions.now().length * zoom;
      const from = timeAt(before.x) - (after.x / canvas.clientWidth) * length;
      actions.show(from, from + length);
    }
    if (!point.isTouch) actions.scrollBy(last.y - point.y);
  });

  const end = (event: PointerEvent) => {
    if (!pointers.delete(event.pointerId)) return;
    const isClick = !isDragging && event.type === "pointerup";
    isDragging &&= pointers.size > 0;
    if (isClick) actions.select(actions.barAt(pointOf(event)));
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  canvas.addEventListener("pointerleave", () => actions.hover(null));

  canvas.addEventListener(
    "wheel",
    (event) => {
      const { deltaX, deltaY, ctrlKey, offsetX } = event;
      const isPageScrolling = document.documentElement.scrollHeight > innerHeight + 1;
      const isSideways = Math.abs(deltaX) > Math.abs(deltaY);
      if (isPageScrolling && !isSideways && !ctrlKey) return;
      event.preventDefault();
      if (isSideways) return actions.pan(deltaX / canvas.clientWidth);
      const anchor = actions.follows() ? undefined : timeAt(offsetX);
      actions.zoom(Math.exp(clamp(deltaY, -100, 100) / 300), anchor);
    },
    { passive: false },
  );
}

/** Also to the buttons with a `data-key`: they do what that key does. */
export function listenToKeys(scroller: HTMLElement, actions: TimelineActions): void {
  const zoomIn = () => actions.zoom(1 / ZOOM_STEP);
  const keys: Record<string, () => void> = {
    "+": zoomIn,
    "=": zoomIn, // the same key without shift
    "-": () => actions.zoom(ZOOM_STEP),
    a: () => actions.pan(-1 / 4),
    d: () => actions.pan(1 / 4),
    f: actions.toggleFollow,
    "0": actions.fit,
    Enter: actions.enter,
    Escape: () => actions.select(null),
  };
  scroller.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target !== scroller) return;
    const walk = event.key.startsWith("Arrow") ? () => actions.walk(event.key) : undefined;
    const act = walk ?? keys[event.key] ?? keys[event.key.toLowerCase()];
    if (act === undefined) return;
    act();
    event.preventDefault();
  });
  for (const button of document.querySelectorAll<HTMLElement>("[data-key]"))
    button.addEventListener("click", () => keys[button.dataset.key ?? ""]?.());
}
