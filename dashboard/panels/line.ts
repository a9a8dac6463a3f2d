/** One line of what happened, in the feed and under a turn: native <details>, read when it is opened. */

import { createFold, createList, part, setAttribute, setText } from "../dom.ts";
import { type Words, shownWhole } from "../events.ts";
import { formatMoment, formatTimeOrDay } from "../format.ts";

export interface Line extends Words {
  key: string | number;
  /** Milliseconds since 1970, as `now`. */
  at: number;
  now: number;
  length: string;
  isFailed: boolean;
  /** The address that selects its bar. */
  href: string;
  isSelected?: boolean;
  /** Of all sessions: which one it was. */
  session?: { label: string; href: string };
  /** Where it lies within its turn, from 0 to 1. */
  bar?: { from: number; share: number };
  /** What is shown when it is open, and asked for anew when `version` is another. */
  detail: () => Promise<string>;
  version: string;
  /** An open agent's own calls, and its session's page. */
  nested?: { lines: readonly Line[]; href: string };
}

/** Which lines are open. */
export interface OpenLines {
  keys: Set<string | number>;
  changed: () => void;
}

/** The lines of `container`. */
export function createLines(container: HTMLElement, open: OpenLines) {
  return createList<Line>(container, "line", (root, find) => createLine(root, find, open));
}

function createLine(root: HTMLElement, find: (query: string) => HTMLElement, open: OpenLines) {
  const [bar, time, key, track] = [find("a"), find("time"), find(".key"), find(".line-track")];
  const [session, detail, child] = [
    find(".line-session"),
    find("details > pre"),
    find(".line-child"),
  ];
  const texts = [
    ["name", find(".line-name")],
    ["text", find(".line-text")],
    ["length", find(".line-length")],
    ["reason", find(".reason")],
  ] as const;
  let showNested: ReturnType<typeof createLines> | null = null;
  let shown: Line | null = null;
  /** Which state of which line `detail` has. */
  let read = "";
  const setOpen = createFold(part(root, "details", HTMLDetailsElement), (isOpen) => {
    if (shown === null) return;
    if (isOpen) open.keys.add(shown.key);
    else open.keys.delete(shown.key);
    open.changed();
  });

  async function showDetail(line: Line): Promise<void> {
    const wanted = `${line.key} ${line.version}`;
    if (read === wanted) return;
    read = wanted;
    const told = await line.detail().catch(() => null);
    if (told === null)
      read = ""; // asked for again
    else if (read === wanted) setText(detail, shownWhole(told));
  }

  return (line: Line) => {
    if (shown?.key !== line.key) {
      setText(detail, "");
      read = "";
    }
    setText(time, formatTimeOrDay(line.at, line.now), formatMoment(line.at, line.now));
    setAttribute(bar, "href", line.href);
    setAttribute(key, "class", `key key-${line.kind} key-${line.outcome ?? "ok"}`);
    for (const [field, element] of texts)
      if (shown?.[field] !== line[field]) setText(element, line[field] && shownWhole(line[field]));
    setAttribute(root, "data-failed", line.isFailed);
    setAttribute(root, "data-selected", line.isSelected ?? false);
    setText(session, line.session?.label ?? null);
    setAttribute(session, "href", line.session?.href ?? null);
    track.hidden = line.bar === undefined;
    track.style.setProperty("--mark", `var(--${line.isFailed ? "failed" : line.kind})`);
    track.style.setProperty("--from", String(line.bar?.from ?? 0));
    track.style.setProperty("--share", String(line.bar?.share ?? 0));
    child.hidden = line.nested === undefined;
    setAttribute(child, "href", line.nested?.href ?? null);
    // Most lines have none: their list is made with the first.
    if (line.nested?.lines.length) showNested ??= createLines(find("ol"), open);
    showNested?.(line.nested?.lines ?? []);
    shown = line;
    const isOpen = open.keys.has(line.key);
    setOpen(isOpen);
    if (isOpen) void showDetail(line);
  };
}
