/** The list of sessions at the left: children under their parents, found by text and by status. */

import { errorsHref, sessionHref } from "../address.ts";
import { type ListRow, byId, createList, createMore, part, setAttribute, setText } from "../dom.ts";
import {
  formatAge,
  formatCompact,
  formatCost,
  formatCount,
  formatNoun,
  joined,
} from "../format.ts";
import { type Rows, type SessionEntry, type Status, doingOf, labelOf, statusOf } from "../rows.ts";
import { type ListLine, type SessionFilter, sessionList, treeOf } from "../tree.ts";

export const STATUS_WORDS: Record<Status, string> = {
  active: "Active",
  waiting: "Waiting",
  completed: "Done",
  stale: "Stale",
};

const STATUSES: readonly Status[] = ["active", "waiting", "completed", "stale"];

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
  const statusFilter = byId("status-filter", HTMLDivElement);
  const filter: SessionFilter = { text: "", status: null };
  /** Parents whose ended children are shown. */
  const open = new Set<string>();

  const toggle = (id: string) => {
    if (!open.delete(id)) open.add(id);
    changed();
  };
  const showItems = createList<Item>(
    "session-list",
    "session-row",
    ({ line }) => (line.kind === "session" ? line.session.row.id : `ended ${line.parent.row.id}`),
    (root) => createRow(root, toggle),
  );
  text.addEventListener("input", () => {
    filter.text = text.value;
    changed();
  });
  const buttons = STATUSES.map((status) => {
    const button = statusFilter.appendChild(document.createElement("button"));
    button.type = "button";
    button.dataset.status = status;
    button.addEventListener("click", () => {
      filter.status = filter.status === status ? null : status;
      changed();
    });
    return { button, status };
  });

  return {
    show(rows: Rows, openId: string | null, now: number): void {
      const tree = treeOf(rows);
      const lines = sessionList(tree, filter, open);
      showItems(lines.slice(0, more.limit).map((line) => ({ line, rows, openId, now })));
      more.show(lines.length > more.limit);
      empty.hidden = lines.length > 0;
      const below = tree.order.length - tree.roots.length;
      setText(
        note,
        `${formatCount(tree.roots.length)}${below === 0 ? "" : ` and ${formatCount(below)} of agents`}`,
      );
      // Child sessions are their parents' agents, as in the header; but one that waits, waits for the person.
      const listed = tree.order.filter(
        ({ entry, parent }) => parent === null || statusOf(entry) === "waiting",
      );
      for (const { button, status } of buttons) {
        const count = listed.filter(({ entry }) => statusOf(entry) === status).length;
        setAttribute(button, "aria-pressed", String(status === filter.status));
        setText(button, `${STATUS_WORDS[status]} ${formatCount(count)}`);
      }
    },
  };
}

function createRow(root: HTMLElement, toggle: (id: string) => void): ListRow<Item> {
  const link = part(root, "a", HTMLAnchorElement);
  const dot = part(root, ".dot", HTMLElement);
  const name = part(root, ".session-label", HTMLElement);
  const errors = part(root, ".session-errors", HTMLElement);
  const age = part(root, ".session-age", HTMLElement);
  const meta = part(root, ".session-doing", HTMLElement);
  const time = part(root, ".session-time", HTMLElement);
  const ended = part(root, ".session-ended", HTMLButtonElement);
  let sessionId = "";
  /** Whose ended children the button shows. */
  let parentId = "";
  link.addEventListener("click", (event) => {
    if (event.target !== errors) return;
    event.preventDefault();
    location.hash = errorsHref(sessionId);
  });
  ended.addEventListener("click", () => toggle(parentId));

  return {
    root,
    update({ line, rows, openId, now }) {
      const depth = String(Math.min(line.depth, 3));
      setAttribute(root, "data-depth", depth);
      root.style.setProperty("--depth", depth);
      link.hidden = line.kind === "ended";
      ended.hidden = line.kind !== "ended";
      if (line.kind === "ended") {
        parentId = line.parent.row.id;
        setText(ended, `${formatCount(line.count)} ended`);
        setAttribute(ended, "aria-expanded", String(line.isOpen));
        setAttribute(root, "data-status", "completed");
        return;
      }
      const { session } = line;
      const { id, error_count } = session.row;
      const status = statusOf(session);
      const [label, figures] = [labelOf(session), figuresOf(session)];
      const failures = formatNoun(error_count, "error");
      const doing = doingOf(rows, session, now);
      const text = doing?.text ?? (line.depth === 0 ? figures : ""); // a child's figures are its parent's
      sessionId = id;
      setAttribute(root, "data-status", status);
      setAttribute(link, "href", sessionHref(id));
      setAttribute(link, "aria-current", id === openId ? "page" : "false");
      const words = joined([STATUS_WORDS[status], figures, failures]);
      setAttribute(link, "title", `${label}\n${words}\n${id}`);
      setAttribute(dot, "data-status", status);
      setAttribute(dot, "aria-label", STATUS_WORDS[status]);
      setText(name, label);
      setText(errors, error_count === 0 ? "" : formatCount(error_count));
      setAttribute(errors, "title", failures);
      setText(age, formatAge(Math.max(0, now - session.lastEventAt)));
      setText(meta, text);
      setText(time, doing?.time == null ? "" : `, ${doing.time}`);
    },
  };
}

/** Tokens and cost are with those of all sessions below. */
function figuresOf({ row: { tool_count, agent_count, tokens, cost } }: SessionEntry): string {
  return joined([
    formatNoun(tool_count, "tool"),
    agent_count === 0 ? null : formatNoun(agent_count, "agent"),
    tokens.total === null ? null : `${formatCompact(tokens.total)} tok`,
    cost.total === null ? null : formatCost(cost.total),
  ]);
}
