/** One line of what happened, in the feed and under a turn: native <details>, read when it is opened. */

import { type ListRow, createList, part, setAttribute, setText } from "../dom.ts";
import { type Words, shownWhole } from "../events.ts";
import { formatMoment, formatTimeOrDay } from "../format.ts";

export interface Line extends Words {
  key: string | number;
  /** Milliseconds since 1970. */
  at: number;
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

/** The lines of `container`: shows them at `now`. */
export function createLines(container: HTMLElement, open: OpenLines) {
  let shownAt = 0;
  const show = createList<Line>(
    container,
    "line-row",
    ({ key }) => key,
    (root) => createLine(root, open, () => shownAt),
  );
  return (lines: readonly Line[], now: number) => {
    shownAt = now;
    show(lines);
  };
}

function createLine(root: HTMLElement, open: OpenLines, now: () => number): ListRow<Line> {
  const bar = part(root, ".line-time", HTMLAnchorElement);
  const time = part(root, "time", HTMLTimeElement);
  const details = part(root, "details", HTMLDetailsElement);
  const key = part(root, ".key", HTMLElement);
  const track = part(root, ".line-track", HTMLElement);
  const session = part(root, ".line-session", HTMLAnchorElement);
  const reason = part(root, ".reason", HTMLPreElement);
  const detail = part(root, "details > pre", HTMLPreElement);
  const child = part(root, ".line-child", HTMLAnchorElement);
  const showNested = createNested(part(root, "ol", HTMLOListElement), open);
  const texts = [
    ["name", part(root, ".line-name", HTMLElement)],
    ["text", part(root, ".line-text", HTMLElement)],
    ["length", part(root, ".line-length", HTMLElement)],
    ["reason", reason],
  ] as const;
  let shown: Line | null = null;
  let wasOpen = false;
  /** Which state of which line `detail` has. */
  let read = "";
  details.addEventListener("toggle", () => {
    if (shown === null || details.open === wasOpen) return;
    wasOpen = details.open;
    if (!open.keys.delete(shown.key)) open.keys.add(shown.key);
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

  return {
    root,
    update(line) {
      if (shown?.at !== line.at) time.dateTime = new Date(line.at).toISOString();
      if (shown?.key !== line.key) {
        setText(detail, "");
        read = "";
      }
      const isOpen = open.keys.has(line.key);
      if (isOpen !== wasOpen) details.open = wasOpen = isOpen;
      setText(time, formatTimeOrDay(line.at, now()));
      setAttribute(time, "title", formatMoment(line.at, now()));
      setAttribute(bar, "href", line.href);
      setAttribute(key, "class", `key key-${line.kind} key-${line.outcome ?? "ok"}`);
      for (const [field, element] of texts)
        if (shown?.[field] !== line[field]) setText(element, shownWhole(line[field] ?? ""));
      reason.hidden = line.reason === null;
      setAttribute(root, "data-failed", String(line.isFailed));
      setAttribute(root, "data-selected", String(line.isSelected ?? false));
      session.hidden = line.session === undefined;
      setText(session, line.session?.label ?? "");
      setAttribute(session, "href", line.session?.href ?? "");
      track.hidden = line.bar === undefined;
      track.style.setProperty("--mark", `var(--${line.isFailed ? "failed" : line.kind})`);
      track.style.setProperty("--from", String(line.bar?.from ?? 0));
      track.style.setProperty("--share", String(line.bar?.share ?? 0));
      child.hidden = line.nested === undefined;
      setAttribute(child, "href", line.nested?.href ?? "");
      showNested(line.nested?.lines ?? [], now());
      shown = line;
      if (isOpen) void showDetail(line);
    },
  };
}

/** Most lines have none: their list is made with the first. */
function createNested(container: HTMLElement, open: OpenLines) {
  let show: ReturnType<typeof createLines> | null = null;
  return (lines: readonly Line[], now: number) => {
    if (lines.length > 0) show ??= createLines(container, open);
    show?.(lines, now);
  };
}
