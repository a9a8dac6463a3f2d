/**
 * When what is drawn. One frame at a time is asked for, whatever happens in between, and one part of the
 * page is written in it, beside what is urgent: a busy stream is spread over the frames.
 */

/** Text that changes faster than this can't be read. */
const PANELS_INTERVAL_MS = 250;
/** Unless it is moved: then every frame. */
const TIMELINE_INTERVAL_MS = 100;

interface FramesOptions {
  panels: readonly (() => void)[];
  /** In how many milliseconds it is another by itself; null: never. */
  timeline: { draw: () => void; nextDraw: () => number | null };
  /** Before anything is drawn. @returns whether there is something to draw */
  prepare: () => boolean;
}

export function createFrames({ panels, timeline, prepare }: FramesOptions) {
  /** Times are on the clock of `performance.now()`; what is urgent is due for ever. */
  const partOf = (draw: () => void, intervalMs: number) => {
    return { draw, intervalMs, drawnAt: -Infinity, dueAt: Infinity };
  };
  const picture = partOf(timeline.draw, TIMELINE_INTERVAL_MS);
  const parts = [...panels.map((draw) => partOf(draw, PANELS_INTERVAL_MS)), picture];
  let isRequested = false;
  let laterTimer: ReturnType<typeof setTimeout> | undefined;

  function request(): void {
    if (isRequested || document.hidden) return;
    isRequested = true;
    requestAnimationFrame(frame);
  }

  function frame(): void {
    isRequested = false;
    if (!prepare()) return;
    const at = performance.now();
    const due = parts.filter(({ dueAt }) => dueAt <= at).sort((a, b) => a.dueAt - b.dueAt);
    // Beside what is urgent the one that has waited longest: each has its turn.
    const next = due.find(({ dueAt }) => dueAt > -Infinity);
    for (const part of due.filter((one) => one === next || one.dueAt === -Infinity)) {
      part.drawnAt = at;
      part.dueAt = Infinity;
      part.draw();
    }
    picture.dueAt = Math.min(picture.dueAt, at + (timeline.nextDraw() ?? Infinity));
    const wait = Math.min(...parts.map(({ dueAt }) => dueAt)) - at;
    clearTimeout(laterTimer);
    if (wait <= 0) request();
    else if (wait < Infinity) laterTimer = setTimeout(request, wait);
  }

  return {
    request,
    /** The person moves in the timeline: it is drawn in this frame. */
    requestTimeline(): void {
      picture.dueAt = -Infinity;
      request();
    },
    requestPanels(): void {
      for (const part of parts) part.dueAt = Math.min(part.dueAt, part.drawnAt + part.intervalMs);
      request();
    },
    /** What the person has asked for, and what was loaded: all in one frame, which is one layout. */
    requestPanelsNow(): void {
      for (const part of parts) part.dueAt = -Infinity;
      request();
    },
  };
}
