/**
 * When what is drawn. One frame at a time is asked for, whatever happens in between, and one panel is
 * written in it: a busy stream is spread over the frames. What the person does is answered in the next ones.
 */

/** Text that changes faster than this can't be read. */
const PANELS_INTERVAL_MS = 250;
/** Unless it is moved: then every frame. */
const TIMELINE_INTERVAL_MS = 100;

export interface FramesOptions {
  /** In the order in which they are written. */
  panels: Record<string, () => void>;
  timeline: { draw: () => void; nextDraw: () => number | null };
  /** Before anything is drawn. @returns whether there is something to draw */
  prepare: () => boolean;
  /** More has been received than fitted into this frame. */
  isBehind: () => boolean;
}

export function createFrames(options: FramesOptions) {
  const { panels, timeline, prepare, isBehind } = options;
  const drawnAt = new Map<string, number>();
  const dirty = new Set<string>();
  let isRequested = false;
  let isTimelineTouched = false;
  let isTimelineDirty = true;
  let timelineDrawnAt = -Infinity;
  let laterTimer: ReturnType<typeof setTimeout> | undefined;

  function request(): void {
    if (isRequested || document.hidden) return;
    isRequested = true;
    requestAnimationFrame(frame);
  }

  function requestPanels(): void {
    for (const panel of Object.keys(panels)) dirty.add(panel);
    isTimelineDirty = true;
    request();
  }

  function frame(): void {
    isRequested = false;
    if (!prepare()) return;
    const at = performance.now();
    const dueAt = (panel: string) => (drawnAt.get(panel) ?? -Infinity) + PANELS_INTERVAL_MS;
    // In the order in which they were asked for: each has its turn.
    const due = [...dirty].find((panel) => dueAt(panel) <= at);
    const isTimelineDue = isTimelineDirty && at - timelineDrawnAt >= TIMELINE_INTERVAL_MS;
    if (isTimelineTouched || (isTimelineDue && due === undefined)) {
      isTimelineTouched = false;
      isTimelineDirty = false;
      timelineDrawnAt = at;
      timeline.draw();
    }
    if (due !== undefined) {
      dirty.delete(due);
      drawnAt.set(due, at);
      panels[due]?.();
    }

    const waits = [...dirty].map((panel) => dueAt(panel) - at);
    if (isTimelineDirty) waits.push(timelineDrawnAt + TIMELINE_INTERVAL_MS - at);
    const wait = Math.min(...waits);
    const growth = timeline.nextDraw();
    clearTimeout(laterTimer);
    if (isBehind() || wait <= 0) request();
    else if (growth !== null || wait < Infinity)
      laterTimer = setTimeout(
        () => {
          isTimelineDirty = true;
          request();
        },
        Math.min(wait, growth ?? Infinity),
      );
  }

  return {
    request,
    /** The person moves in the timeline: it is drawn in this frame. */
    requestTimeline(): void {
      isTimelineTouched = true;
      request();
    },
    requestPanels,
    /** As `requestPanels`, at once. */
    requestPanelsNow(): void {
      drawnAt.clear();
      requestPanels();
    },
  };
}
