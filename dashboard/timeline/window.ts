/** The time that the timeline shows: around what goes on, moving with now, or where the person has put it. */

import { HOUR_MS, MINUTE_MS, SECOND_MS } from "../format.ts";
import { type Rows, isLive, isShown, shownEnd, spansOf, endOf } from "../rows.ts";

const MIN_LENGTH_MS = 200;
/** A month: more than any retention that is usual. */
const MAX_LENGTH_MS = 31 * 24 * HOUR_MS;
/** Of the window, kept free at the right of now, so that growing bars are seen to end there. */
export const NOW_MARGIN = 0.03;

/** Work without a pause as long as this belongs together, and is shown together. */
const PAUSE_MS = 30 * SECOND_MS;
/** Of all sessions, the work that is shown at first; someone always works. */
const MAX_FITTED_MS = 15 * MINUTE_MS;
/** Of a session's whole time, that its latest work must fill to be seen in it. */
const MIN_SHARE = 1 / 8;
/** As much of a long wait for the person is seen, of the work before it. */
const WAIT_SHARE = 1 / 3;
/** Lengths of a window that ends now: it grows in steps, so that bars don't shrink all the time. */
const FITTED_MS = [
  ...[0.5, 1, 2, 3, 5, 10, 15, 20, 30, 45].map((minutes) => minutes * MINUTE_MS),
  ...[1, 1.5, 2, 3, 4, 6, 9, 12, 18, 24, 36, 72, 168].map((hours) => hours * HOUR_MS),
];
/** How often a window that fits looks whether it still does. */
const REFIT_MS = SECOND_MS;

/** The time that is shown, in milliseconds. */
export type Window = ReturnType<typeof windowOf>;

export const clamp = (value: number, min: number, max: number): number =>
  Math.min(max, Math.max(min, value));

/** From and to, where they can be shown: not too short, not too long, at most half of it in the future. */
export function windowOf(from: number, to: number, now: number) {
  const length = clamp(to - from, MIN_LENGTH_MS, MAX_LENGTH_MS);
  return { length, end: Math.min((from + to) / 2 + length / 2, now + length / 2) };
}

/**
 * The window around what goes on, or went on last: all work up to the latest pause. Waiting for the
 * person is a pause, of which some is seen. Of a session's page it is the whole session, where its latest
 * work is seen in it. Null: there are no sessions.
 */
export function fitted(rows: Rows, now: number): { window: Window; follows: boolean } | null {
  const isOverview = rows.family.size === 0;
  const sessions = [...rows.sessions.values()].filter(({ row }) => isShown(rows, row.id));
  if (sessions.length === 0) return null;
  // While it waits for the person, nothing is done.
  const work = sessions.flatMap(({ row: { id, waiting_since }, startedAt }) => {
    const { tool, model, agent } = spansOf(rows, id);
    const until = waiting_since === null ? now : Date.parse(waiting_since);
    const calls = [...tool, ...model, ...agent].map((span) => {
      return { start: span.start, end: shownEnd(span, until) };
    });
    return calls.length === 0 ? [] : [{ start: startedAt, end: startedAt }, ...calls];
  });
  work.sort((a, b) => b.end - a.end);
  const last = work[0]?.end ?? Math.max(...sessions.map(({ lastEventAt }) => lastEventAt));
  let [from, to] = [last, last];
  for (const { start, end } of work) {
    if (end < from - PAUSE_MS) break;
    from = Math.min(from, start);
  }
  const follows = sessions.some(isLive) && now - last <= Math.max(PAUSE_MS, 3 * (last - from));
  if (isOverview) from = Math.max(from, last - MAX_FITTED_MS);
  else {
    const first = sessions.reduce((at, { startedAt }) => Math.min(at, startedAt), from);
    const end = Math.max(...sessions.map((entry) => endOf(entry, now)));
    if (to - from >= (end - first) * MIN_SHARE) [from, to] = [first, end];
  }
  if (!follows) {
    const pad = Math.max((to - from) * NOW_MARGIN, SECOND_MS);
    const isWaiting = sessions.some(({ row }) => row.waiting_since !== null);
    const after = isWaiting ? Math.max(pad, (to - from) * WAIT_SHARE) : pad;
    return { window: windowOf(from - pad, to + after, now), follows };
  }
  const needed = (now - from) / (1 - 2 * NOW_MARGIN);
  const wanted = isOverview ? Math.min(needed, MAX_FITTED_MS) : needed;
  const length = FITTED_MS.find((candidate) => candidate >= wanted) ?? MAX_LENGTH_MS;
  return { window: { length, end: now + length * NOW_MARGIN }, follows };
}

export function createWindow(rows: () => Rows, now: () => number, changed: () => void) {
  let shown: Window = { length: MAX_FITTED_MS, end: now() + MAX_FITTED_MS * NOW_MARGIN };
  let follows = true;
  /** When it was last put around what goes on; null: the person has moved it. */
  let fittedAt: number | null = -Infinity;

  function set(next: Window): void {
    shown = next;
    fittedAt = null;
    changed();
  }

  /** From there to there, and follows now no longer. */
  function show(from: number, to: number): void {
    follows = false;
    set(windowOf(from, to, now()));
  }

  return {
    show,
    fit(): void {
      fittedAt = -Infinity;
      changed();
    },
    /** As it is; where it moves by itself, as it is at `at`. */
    at(at: number): Window {
      if (fittedAt !== null && at - fittedAt >= REFIT_MS) {
        fittedAt = at;
        ({ window: shown, follows } = fitted(rows(), at) ?? { window: shown, follows });
      }
      if (follows) shown = { ...shown, end: at + shown.length * NOW_MARGIN };
      return shown;
    },
    now: (): Window => shown,
    follows: () => follows,
    fits: () => fittedAt !== null,
    toggleFollow(): void {
      follows = !follows;
      set(shown);
    },
    pan(share: number): void {
      const to = shown.end + share * shown.length;
      show(to - shown.length, to);
    },
    /** @param anchor the time that stays where it is */
    zoom(factor: number, anchor = follows ? now() : shown.end - shown.length / 2): void {
      const { end, length } = shown;
      const next = clamp(length * factor, MIN_LENGTH_MS, MAX_LENGTH_MS);
      const from = anchor - ((anchor - end + length) / length) * next;
      set(windowOf(from, from + next, now()));
    },
    /** This long: up to now, unless the person has moved it elsewhere. */
    setLength(length: number): void {
      follows ||= fittedAt !== null;
      const to = follows ? now() + length * NOW_MARGIN : shown.end;
      set(windowOf(to - length, to, now()));
    },
  };
}
