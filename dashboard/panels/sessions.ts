/** The list of sessions at the left: who needs the person, who runs, who has ended; children under their parents. */

import { errorsHref, sessionHref } from "../address.ts";
import type { Cause, Need } from "../attention.ts";
import { byId, createEnd, createList, setAttribute, setText } from "../dom.ts";
import { asText } from "../events.ts";
import { formatAge, formatCost, formatCount, formatNoun, joined, shortPath } from "../format.ts";
import { type Rows, type SessionEntry, type Status, doingOf, labelOf, statusOf } from "../rows.ts";
import { type ListLine, countOf, sessionList, treeOf } from "../tree.ts";

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

type Item = ListLine & { key: string };

export function createSessions(changed: () => void) {
  const text = byId("sessions-text", HTMLInputElement);
  const end = createEnd(byId("sessions", HTMLElement), changed);
  /** Parents whose ended children are shown. */
  const open = new Set<string>();
  let rows: Rows;
  /** Of the session page. */
  let openId: string | null = null;
  let now = 0;

  const showLines = createList<Item>("session-list", "session-row", (root, find) => {
    const [link, dot, errors] = [find("a"), find(".dot"), find(".session-errors")];
    const ended = find("button");
    let sessionId = "";
    errors.addEventListener("click", (event) => {
      if (rows.sessions.get(sessionId)?.row.error_count === 0) return; // its agents' are among its calls
      event.preventDefault(); // it is in the link
      location.hash = errorsHref(sessionId);
    });
    ended.addEventListener("click", () => {
      if (!open.delete(sessionId)) open.add(sessionId);
      changed();
    });
    return ({ session, need, endedCount, group, depth, isOpen }) => {
      const { id, info } = session.row;
      const status = need?.cause ?? statusOf(session);
      const errorCount = countOf(rows, id, "error_count");
      const failures = formatNoun(errorCount, "error");
      const isOwn = need?.session === session; // else an agent's, which says why
      const doing = isOwn ? { text: need.text, time: null } : doingOf(rows, session, now);
      const all = figuresOf(rows, session);
      const hasFigures = depth === 0 || endedCount > 0; // another child's are its parent's
      const words = joined([STATUS_WORDS[status], all, failures]);
      const since = need?.since ?? session.lastEventAt;
      sessionId = id;
      root.style.setProperty("--depth", String(Math.min(depth, 3)));
      setAttribute(root, "data-depth", depth);
      setAttribute(root, "data-status", isOwn ? status : statusOf(session));
      setAttribute(link, "href", sessionHref(id));
      setAttribute(link, "aria-current", id === openId ? "page" : null);
      setAttribute(link, "title", joined([labelOf(session), doing?.text ?? null, words, id], "\n"));
      setAttribute(dot, "data-status", status);
      setAttribute(dot, "aria-label", STATUS_WORDS[status]);
      setText(find("h3"), group);
      setText(find(".session-label"), labelOf(session));
      setText(find(".badge"), depth === 0 ? "" : (asText(info.agent) ?? ""));
      setText(find(".session-errors span"), formatCount(errorCount));
      errors.hidden = errorCount === 0;
      setAttribute(errors, "title", failures);
      setText(find(".session-age"), formatAge(Math.max(0, now - since)));
      setText(find(".session-doing"), doing?.text ?? (hasFigures ? all : reasonOf(session)));
      setText(find(".session-time"), doing?.time == null ? "" : `, ${doing.time}`);
      setText(find("button span"), `${formatCount(endedCount)} ${isOpen ? "▾" : "▸"}`);
      ended.hidden = endedCount === 0;
      setAttribute(ended, "aria-label", `${formatNoun(endedCount, "agent")} that ended`);
      setAttribute(ended, "aria-expanded", isOpen);
    };
  });
  text.addEventListener("input", changed);

  return {
    /** @param id of the session page */
    show(shown: Rows, needs: readonly Need[], id: string | null, at: number): void {
      [rows, openId, now] = [shown, id, at];
      const tree = treeOf(rows);
      const lines = sessionList(tree, text.value, open, needs);
      showLines(lines.slice(0, end.limit).map((line) => ({ key: line.session.row.id, ...line })));
      end.show(lines.length, lines.length > end.limit);
      const below = tree.order.length - tree.roots.length;
      const agents = below === 0 ? null : formatNoun(below, "agent");
      setText("sessions-note", joined([formatCount(tree.roots.length), agents]));
    },
  };
}

/** With those of all sessions below. */
function figuresOf(rows: Rows, session: SessionEntry): string {
  const { id, cost, info } = session.row;
  return joined([
    reasonOf(session),
    typeof info.directory === "string" ? shortPath(info.directory) : null,
    formatNoun(countOf(rows, id, "tool_count"), "tool"),
    cost.total === null ? null : formatCost(cost.total),
  ]);
}

/** How its latest turn ended, where there is something to say. */
export function reasonOf({ row: { status, info } }: SessionEntry): string | null {
  return status === "completed" && info.reason !== "completed" ? asText(info.reason) : null;
}
