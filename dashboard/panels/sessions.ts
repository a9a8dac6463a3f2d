/** The list of sessions at the left: who needs the person, who runs, who has ended; children under their parents. */

import { sessionHref } from "../address.ts";
import type { Need } from "../attention.ts";
import { byId, createEnd, createList, fill, set, setText } from "../dom.ts";
import { asText } from "../events.ts";
import { formatAge, formatCost, formatCount, formatNoun, joined, shortPath } from "../format.ts";
import { type Rows, type SessionEntry, doingOf, labelOf, statusOf } from "../rows.ts";
import { type ListLine, countOf, sessionList, treeOf } from "../tree.ts";
import { reasonOf, statusWord } from "./session-head.ts";

type Item = ListLine & { key: string; rows: Rows; isCurrent: boolean; now: number };

export function createSessions(changed: () => void) {
  const text = byId("sessions-text", HTMLInputElement);
  const end = createEnd(byId("sessions", HTMLElement), "No session matches.", "Show more", changed);
  /** Parents whose ended children are shown. */
  const open = new Set<string>();
  text.addEventListener("input", changed);

  const showLines = createList<Item>("session-list", "session-row", (root, find) => {
    let key = "";
    find("button").addEventListener("click", () => {
      if (!open.delete(key)) open.add(key);
      changed();
    });
    return (item) => {
      const { session, need, endedCount, group, depth, isOpen, rows, isCurrent, now } = item;
      const { id, info } = session.row;
      const status = need?.cause ?? statusOf(session);
      const errorCount = countOf(rows, id, "error_count");
      const isOwn = need?.session === session; // else an agent's, which says why
      const doing = isOwn ? { text: need.text, time: null } : doingOf(rows, session, now);
      const all = figuresOf(rows, session);
      const hasFigures = depth === 0 || endedCount > 0; // another child's are its parent's
      const since = need?.since ?? session.lastEventAt;
      key = item.key;
      const shown = isOwn ? status : statusOf(session);
      set(root, { "data-depth": depth, "--depth": Math.min(depth, 3), "data-status": shown });
      fill(root, {
        a: {
          href: sessionHref(id),
          "aria-current": isCurrent ? "page" : null,
          title: joined([labelOf(session), doing?.text ?? all, id], "\n"),
        },
        h3: group,
        ".dot": { "data-status": status, "aria-label": statusWord(status) },
        ".session-label": labelOf(session),
        ".badge": depth === 0 ? "" : (asText(info.agent) ?? ""),
        ".session-errors": {
          title: formatNoun(errorCount, "error"),
          hidden: errorCount === 0 || null,
        },
        ".session-errors span": formatCount(errorCount),
        ".session-age": formatAge(Math.max(0, now - since)),
        ".session-doing": doing?.text ?? (hasFigures ? all : reasonOf(session)),
        ".session-time": doing?.time == null ? "" : `, ${doing.time}`,
        button: {
          "aria-label": `${formatNoun(endedCount, "agent")} that ended`,
          "aria-expanded": isOpen,
          hidden: endedCount === 0 || null,
        },
        "button span": `${formatCount(endedCount)} ${isOpen ? "▾" : "▸"}`,
      });
    };
  });

  /** @param openId of the session page */
  return (rows: Rows, needs: readonly Need[], openId: string | null, now: number): void => {
    const tree = treeOf(rows);
    const lines = sessionList(tree, text.value, open, needs);
    const itemOf = (line: ListLine) => {
      const { id } = line.session.row;
      return { ...line, key: id, rows, isCurrent: id === openId, now };
    };
    showLines(lines.slice(0, end.limit).map(itemOf));
    end.show(lines.length, lines.length > end.limit);
    const below = tree.order.length - tree.roots.length;
    const agents = below === 0 ? null : formatNoun(below, "agent");
    setText("sessions-note", joined([formatCount(tree.roots.length), agents]));
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
