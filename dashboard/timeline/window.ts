/** The time that the timeline shows, and how it moves: by itself, with now, or by hand. */

import { MINUTE_MS, SECOND_MS } from "../format.ts";
import type { Rows } from "../rows.ts";
import { type Window, NOW_MARGIN, fitted, windowOf, zoomed } from "./layout.ts";

const DEFAULT_LENGTH_MS = 15 * MINUTE_MS;
/** How often a window that fits looks whether it still does. */
const REFIT_MS = SECOND_MS;
/** It grows at once, and shrinks where so little of it is needed. */
const SHRINK_SHARE = 1 / 4;

export function createWindow(rows: () => Rows, now: () => number, changed: () => void) {
  let shown: Window = { length: DEFAULT_LENGTH_MS, end: now() + DEFAULT_LENGTH_MS * NOW_MARGIN };
  let follows = true;
  /** Around what goes on, until the person moves it. */
  let fits = true;
  let fittedAt = -Infinity;

  function set(next: Window): void {
    shown = next;
    fits = false;
    changed();
  }

  /** From there to there, and follows now no longer. */
  function show(from: number, to: number): void {
    follows = false;
    set(windowOf(from, to, now()));
  }

  function fit(): void {
    fits = true;
    fittedAt = -Infinity;
    changed();
  }

  function refit(at: number): void {
    const next = fitted(rows(), at);
    const isFirst = fittedAt === -Infinity;
    fittedAt = at;
    if (next === null) return;
    const { length } = next.window;
    const isCalm = length <= shown.length && length > shown.length * SHRINK_SHARE;
    if (isFirst || !next.follows || !follows || !isCalm) shown = next.window;
    ({ follows } = next);
  }

  return {
    show,
    fit,
    /** As it is; where it moves by itself, as it is at `at`. */
    at(at: number): Window {
      if (fits && at - fittedAt >= REFIT_MS) refit(at);
      if (follows) shown = { ...shown, end: at + shown.length * NOW_MARGIN };
      return shown;
    },
    now: (): Window => shown,
    follows: () => follows,
    fits: () => fits,
    toggleFollow(): void {
      follows = !follows;
      set(shown);
    },
    pan(share: number): void {
      const to = shown.end + share * shown.length;
      show(to - shown.length, to);
    },
    zoom(factor: number, anchor = follows ? now() : shown.end - shown.length / 2): void {
      set(zoomed(shown, factor, anchor, now()));
    },
    /** This long: up to now, unless the person has moved it elsewhere. */
    setLength(length: number): void {
      follows ||= fits;
      const to = follows ? now() + length * NOW_MARGIN : shown.end;
      set(windowOf(to - length, to, now()));
    },
  };
}
