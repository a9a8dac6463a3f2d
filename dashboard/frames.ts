/**
 * When what is drawn. One frame at a time is asked for, whatever happens in between, and one part of the
 * page is written in it, beside what is urgent: a busy stream is spread over the frames.
 */

/** Text that changes faster than this can't be read. */
const PANELS_INTERVAL_MS = 250;
/** Unless it is moved: then every frame. */
const TIMELINE_INTERVAL_MS = 100;

export interface FramesOptions {
  panels: readonly (() => void)[];
  timeline: { draw: () => void; nextDraw: () => number | null };
  /** Before anything is drawn. @returns whether there is something to draw */
  prepare: () => boolean;
  /** More has been received than fitted into this frame. */
  isBehind: () => boolean;
}

interface Part {
  draw: () => void;
  intervalMs: number;
  isDirty: boolean;
  /** In the next frame, whatever else is written in it. */
  isUrgent: boolean;
  /** Not before, on the clock of `performance.now()`. */
  dueAt: number;
}

export function createFrames({ panels, timeline, prepare, isBehind }: FramesOptions) {
  const partOf = (draw: () => void, intervalMs: number): Part => {
    return { draw, intervalMs, isDirty: true, isUrgent: false, dueAt: 0 };
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

  function requestPanels(): void {
    for (const part of parts) part.isDirty = true;
    request();
  }

  function write(part: Part, at: number): void {
    part.isDirty = part.isUrgent = false;
    part.dueAt = at + part.intervalMs;
    part.draw();
  }

  function frame(): void {
    isRequested = false;
    if (!prepare()) return;
    const at = performance.now();
    for (const part of parts) if (part.isUrgent) write(part, at);
    // The one that has waited longest: each has its turn.
    const [next] = parts.filter(({ isDirty }) => isDirty).sort((a, b) => a.dueAt - b.dueAt);
    if (next !== undefined && next.dueAt <= at) write(next, at);

    const due = parts.filter(({ isDirty }) => isDirty).map(({ dueAt }) => dueAt - at);
    const wait = Math.min(...due, timeline.nextDraw() ?? Infinity);
    clearTimeout(laterTimer);
    if (isBehind() || wait <= 0) request();
    else if (wait < Infinity)
      laterTimer = setTimeout(() => {
        picture.isDirty = true;
        request();
      }, wait);
  }

  return {
    request,
    /** The person moves in the timeline: it is drawn in this frame. */
    requestTimeline(): void {
      picture.isUrgent = true;
      request();
    },
    requestPanels,
    /** What the person has asked for, and what was loaded: all in one frame, which is one layout. */
    requestPanelsNow(): void {
      for (const part of parts) part.isUrgent = true;
      request();
    },
  };
}
