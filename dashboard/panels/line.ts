/** One line of what happened, in the feed and under a turn: native <details>, read when it is opened. */

import { createList, fill, part, set, setText } from "../dom.ts";
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
  /** It is to be opened. */
  isSought?: boolean;
  /** Of all sessions: which one it was. */
  session?: { label: string; href: string };
  /** Where it lies within its turn, from 0 to 1. */
  bar?: { from: number; share: number };
  /** What is shown when it is open, and asked for anew when `version` is another. */
  detail: () => Promise<string>;
  version: string;
  /** Of an agent: its session's page, and its own calls, which are shown when it is open. */
  nested?: { href: string; lines: () => readonly Line[] };
}

/** The lines of `container`. @param changed one was opened or closed */
export function createLines(container: HTMLElement, changed: () => void) {
  return createList<Line>(container, "line", (root, find) => {
    const details = part(root, "details", HTMLDetailsElement);
    /** Most lines have none: their list is made when one is opened. */
    let showNested: ReturnType<typeof createLines> | null = null;
    let shownVersion = "";
    details.addEventListener("toggle", changed);

    async function showDetail({ version, detail }: Line): Promise<void> {
      if (shownVersion === version) return;
      shownVersion = version;
      const told = await detail().catch(() => null);
      if (told === null)
        shownVersion = ""; // asked for again
      else if (shownVersion === version) setText(find("details > pre"), shownWhole(told));
    }

    return (line: Line) => {
      const { at, now, kind, outcome, isFailed, reason, bar, nested } = line;
      const { label = null, href = null } = line.session ?? {};
      set(root, { "data-failed": isFailed, "data-selected": line.isSelected ?? false });
      fill(root, {
        ".line-time": { href: line.href },
        time: { text: formatTimeOrDay(at, now), title: formatMoment(at, now) },
        ".key": { class: `key key-${kind} key-${outcome ?? "ok"}` },
        ".line-name": { text: line.name, title: line.name },
        ".line-text": { text: line.text, title: line.text },
        ".line-length": line.length,
        ".line-track": {
          hidden: bar === undefined || null,
          "--mark": `var(--${isFailed ? "failed" : kind})`,
          "--from": bar?.from ?? 0,
          "--share": bar?.share ?? 0,
        },
        ".reason": reason && shownWhole(reason),
        ".line-session": { text: label, title: label, href },
        ".line-child": { text: nested ? "Open its session" : null, href: nested?.href ?? null },
      });
      if (line.isSought) details.open = true;
      if (!details.open) return;
      void showDetail(line);
      if (nested !== undefined) (showNested ??= createLines(find("ol"), changed))(nested.lines());
    };
  });
}
