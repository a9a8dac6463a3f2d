/** The time that the timeline shows, and how it moves: by hand, or with now. */

import { MINUTE_MS } from "../format.ts";
import type { Rows, SessionEntry } from "../rows.ts";
import { type Window, NOW_MARGIN, fitted, latestOf, windowOf, zoomed } from "./layout.ts";

const DEFAULT_LENGTH_MS = 15 * MINUTE_MS;

export function createWindow(rows: () => Rows, now: () => number, changed: () => void) {
  let shown: Window = { length: DEFAULT_LENGTH_MS, end: now() + DEFAULT_LENGTH_MS * NOW_MARGIN };
  let follows = true;
  /** The person has moved the window: it stays where they put it. */
  let isMoved = false;
  /** Only these sessions; null: all. */
  let scope: ReadonlySet<string> | null = null;

  function set(next: Window): void {
    shown = next;
    isMoved = true;
    changed();
  }

  function setFollow(on: boolean): void {
    follows = on;
    changed();
  }

  function sessionsInScope(): SessionEntry[] {
    const all = [...rows().sessions.values()];
    return scope === null ? all : all.filter(({ row }) => scope?.has(row.id));
  }

  /** From there to there, and follows now no longer. */
  function show(from: number, to: number): void {
    setFollow(false);
    set(windowOf(from, to, now()));
  }

  function showLatest(): void {
    const { length } = shown;
    const last = latestOf(sessionsInScope());
    if (last === 0 || now() - last < length / 2) return setFollow(true);
    show(last - length * 0.9, last + length * 0.1);
  }

  return {
    show,
    showLatest,
    /** As it is; where now is followed, as it is at `at`. */
    at(at: number): Window {
      if (follows) shown = { ...shown, end: at + shown.length * NOW_MARGIN };
      return shown;
    },
    now: (): Window => shown,
    follows: () => follows,
    toggleFollow: () => setFollow(!follows),
    scope: () => scope,
    setScope(sessions: ReadonlySet<string> | null): void {
      scope = sessions;
    },
    pan(share: number): void {
      const to = shown.end + share * shown.length;
      show(to - shown.length, to);
    },
    zoom(factor: number, anchor = follows ? now() : shown.end - shown.length / 2): void {
      set(zoomed(shown, factor, anchor, now()));
    },
    /** This long, up to where it ends now. */
    setLength(length: number): void {
      const to = follows ? now() + length * NOW_MARGIN : shown.end;
      set(windowOf(to - length, to, now()));
    },
    /** All that is loaded, or the whole session where one is open. */
    fit(): void {
      const isPart = scope === null && rows().coveredFrom > 0;
      const starts = isPart ? [...rows().spans.values()].map(({ start }) => start) : [];
      const since = starts.reduce((first, start) => Math.min(first, start), isPart ? now() : 0);
      const next = fitted(sessionsInScope(), since, now());
      if (next === null) return;
      setFollow(next.follows);
      set(next.window);
    },
    /** Something was loaded: puts the window where something happened, unless the person has moved it. */
    showLoaded(): void {
      if (isMoved) return;
      showLatest();
      isMoved = false;
    },
    /** Back to the latest, at the usual length. */
    reset(): void {
      shown = { ...shown, length: DEFAULT_LENGTH_MS };
      follows = true;
      showLatest();
      isMoved = false;
    },
  };
}
