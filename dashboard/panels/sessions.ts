/** The list of sessions at the left: who needs the person, who runs, who has ended; children under their parents. */

import { errorsHref, sessionHref } from "../address.ts";
import type { Cause, Need } from "../attention.ts";
import { type ListRow, byId, createList, createMore, part, setAttribute, setText } from "../dom.ts";
import { asText } from "../events.ts";
import { formatAge, formatCost, formatCount, formatNoun, joined, shortPath } from "../format.ts";
import { type Rows, type SessionEntry, type Status, doingOf, labelOf, statusOf } from "../rows.ts";
import { type ListLine, sessionList, treeOf } from "../tree.ts";

export const STATUS_WORDS: Record<Status | Cause, string> = {
  active: "Active",
  waiting: "Waiting",
  completed: "Done",
  stale: "Stale",
  retrying: "Retrying",
  lost: "Lost",
  silent: "Silent",
  failed: "Failed",
};

interface Item {
  line: ListLine;
  rows: Rows;
  /** Of the session page. */
  openId: string | null;
  now: number;
}

export function createSessions({ changed }: { changed: () => void }) {
  const note = byId("sessions-note", HTMLSpanElement);
  const text = byId("sessions-text", HTMLInputElement);
  const empty = byId("sessions-empty", HTMLParagraphElement);
  const more = createMore("sessions-more", changed);
  /** Parents whose ended children are shown. */
  const open = new Set<string>();

  const toggle = (id: string) => {
    if (!open.delete(id)) open.add(id);
    changed();
  };
  const showItems = createList<Item>(
    "session-list",
    "session-row",
    ({ line }) => line.session.row.id,
    (root) => createRow(root, toggle),
  );
  text.addEventListener("input", changed);

  return {
    show(rows: Rows, needs: readonly Need[], openId: string | null, now: number): void {
      const tree = treeOf(rows);
      const lines = sessionList(tree, text.value, open, needs);
      showItems(lines.slice(0, more.limit).map((line) => ({ line, rows, openId, now })));
      more.show(lines.length > more.limit);
      empty.hidden = lines.length > 0;
      const below = tree.order.length - tree.roots.length;
      const agents = below === 0 ? null : formatNoun(below, "agent");
      setText(note, joined([formatCount(tree.roots.length), agents]));
    },
  };
}

function createRow(root: HTMLElement, toggle: (id: string) => void): ListRow<Item> {
  const group = part(root, "h3", HTMLHeadingElement);
  const link = part(root, "a", HTMLAnchorElement);
  const dot = part(root, ".dot", HTMLElement);
  const name = part(root, ".session-label", HTMLElement);
  const badge = part(root, ".badge", HTMLElement);
  const errors = part(root, ".session-errors", HTMLElement);
  const age = part(root, ".session-age", HTMLElement);
  const meta = part(root, ".session-doing", HTMLElement);
  const time = part(root, ".session-time", HTMLElement);
  const ended = part(root, ".session-ended", HTMLButtonElement);
  let sessionId = "";
  link.addEventListener("click", (event) => {
    if (event.target !== errors) return;
    event.preventDefault();
    location.hash = errorsHref(sessionId);
  });
  ended.addEventListener("click", () => toggle(sessionId));

  return {
    root,
    update({ line, rows, openId, now }) {
      const { session, need, endedCount } = line;
      const { id, error_count, info } = session.row;
      const depth = String(Math.min(line.depth, 3));
      const status = need?.cause ?? statusOf(session);
      const failures = formatNoun(error_count, "error");
      const isOwn = need?.session === session; // else an agent's, which says why
      const doing = isOwn ? { text: need.text, time: null } : doingOf(rows, session, now);
      const figures = line.depth === 0 ? figuresOf(session) : ""; // a child's are its parent's
      sessionId = id;
      setText(group, line.group ?? "");
      group.hidden = line.group === null;
      ended.hidden = endedCount === 0;
      root.style.setProperty("--depth", depth);
      setAttribute(root, "data-depth", depth);
      setAttribute(root, "data-status", isOwn ? status : statusOf(session));
      setAttribute(link, "href", sessionHref(id));
      setAttribute(link, "aria-current", id === openId ? "page" : "false");
      const words = joined([STATUS_WORDS[status], figuresOf(session), failures]);
      setAttribute(link, "title", joined([labelOf(session), doing?.text ?? null, words, id], "\n"));
      setAttribute(dot, "data-status", status);
      setAttribute(dot, "aria-label", STATUS_WORDS[status]);
      setText(name, labelOf(session));
      setText(badge, line.depth === 0 ? "" : (asText(info.agent) ?? ""));
      setText(errors, error_count === 0 ? "" : formatCount(error_count));
      setAttribute(errors, "title", failures);
      setText(age, formatAge(Math.max(0, now - (need?.since ?? session.lastEventAt))));
      setText(meta, doing?.text ?? figures);
      setText(time, doing?.time == null ? "" : `, ${doing.time}`);
      setText(ended, formatCount(endedCount));
      setAttribute(ended, "aria-label", `${formatNoun(endedCount, "agent")} that ended`);
      setAttribute(ended, "aria-expanded", String(line.isOpen));
    },
  };
}

/** Cost is with that of all sessions below. */
function figuresOf({ row: { tool_count, cost, info } }: SessionEntry): string {
  return joined([
    typeof info.directory === "string" ? shortPath(info.directory) : null,
    formatNoun(tool_count, "tool"),
    cost.total === null ? null : formatCost(cost.total),
  ]);
}
