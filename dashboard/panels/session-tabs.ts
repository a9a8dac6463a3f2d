/** What a session's page shows below its timeline: which tab, and of files, todos and cost a table. */

import { TABS, type Tab } from "../address.ts";
import { byId, part, setText } from "../dom.ts";
import { asText, isRecord } from "../events.ts";
import { UNKNOWN, formatCompact, formatCost, formatCount, formatNoun } from "../format.ts";
import type { Rows, SessionEntry } from "../rows.ts";
import { familyOf } from "../tree.ts";
import { TOKEN_KINDS, filesOf, modelsOf } from "../turns.ts";

interface Table {
  head: readonly string[];
  rows: readonly (readonly string[])[];
  /** What is said where there are no rows. */
  empty: string;
}

const TODO_WORDS: Record<string, string> = {
  completed: "✓ Done",
  in_progress: "▸ Doing",
  pending: "○ To do",
  cancelled: "– Dropped",
};

export function createSessionTabs({ chosen }: { chosen: (tab: Tab) => void }) {
  const group = byId("tabs", HTMLElement);
  const panel = byId("session-table", HTMLElement);
  const table = part(panel, "table", HTMLTableElement);
  const headRow = part(table, "thead tr", HTMLElement);
  const body = part(table, "tbody", HTMLTableSectionElement);
  const empty = part(panel, "p", HTMLParagraphElement);
  const [calls, feed] = [byId("calls", HTMLElement), byId("feed", HTMLElement)];
  let written = "";
  const radios = TABS.map((tab) => {
    const radio = part(group, `[value="${tab}"]`, HTMLInputElement);
    radio.addEventListener("change", () => {
      scrollTo({ top: group.offsetTop }); // on a narrow screen what was asked for is below
      chosen(tab);
    });
    return { tab, radio, count: radio.nextElementSibling?.nextElementSibling ?? group };
  });

  function showTable({ head, rows, empty: none }: Table): void {
    setText(empty, none);
    empty.hidden = rows.length > 0;
    table.hidden = rows.length === 0;
    const next = JSON.stringify([head, rows]);
    if (next === written) return;
    written = next;
    headRow.replaceChildren(...head.map((text) => createCell("th", "col", text)));
    body.replaceChildren();
    for (const [first = "", ...cells] of rows)
      body
        .insertRow()
        .append(createCell("th", "row", first), ...cells.map((text) => createCell("td", "", text)));
  }

  return {
    hide(): void {
      group.hidden = panel.hidden = calls.hidden = true;
      feed.hidden = false;
    },
    show(rows: Rows, session: SessionEntry, tab: Tab): void {
      const { id, info, cost, tool_count, agent_count, event_count } = session.row;
      const family = familyOf(rows, id);
      const files = filesOf(rows, family, info.directory);
      const todos = Array.isArray(info.todos) ? info.todos.filter(isRecord) : [];
      const done = todos.filter(({ status }) => status === "completed").length;
      const counts: Record<Tab, string> = {
        calls: formatCount(Math.max(tool_count, agent_count)), // an agent's call is both
        files: formatCount(files.length),
        todos: todos.length === 0 ? "0" : `${done}/${todos.length}`,
        cost: formatCost(cost.total),
        events: formatCount(event_count),
      };
      group.hidden = false;
      for (const { tab: of, radio, count } of radios) {
        radio.checked = of === tab;
        setText(count, counts[of]);
      }
      calls.hidden = tab !== "calls";
      feed.hidden = tab !== "events";
      panel.hidden = !calls.hidden || !feed.hidden;
      panel.dataset.tab = tab;
      if (tab === "files") {
        const signed = (sign: string, lines: number | null) =>
          lines === null ? UNKNOWN : `${sign}${formatCount(lines)}`;
        showTable({
          head: ["File", "Edits", "Added", "Removed"],
          rows: files.map(({ path, edits, additions, deletions }) => [
            path,
            formatCount(edits),
            signed("+", additions),
            signed("−", deletions),
          ]),
          empty: changesOf(info) ?? "No file was changed, as far as is told.",
        });
      } else if (tab === "todos")
        showTable({
          head: ["State", "Todo"],
          rows: todos.map(({ content, status }) => [
            TODO_WORDS[String(status)] ?? asText(status) ?? UNKNOWN,
            asText(content) ?? UNKNOWN,
          ]),
          empty: "It keeps no todos.",
        });
      else if (tab === "cost") showTable(costTable(rows, session, family));
    },
  };
}

function createCell(kind: "th" | "td", scope: string, text: string): HTMLElement {
  const cell = document.createElement(kind);
  cell.scope = scope;
  setText(cell, text);
  return cell;
}

function costTable(rows: Rows, { row }: SessionEntry, family: ReadonlySet<string>): Table {
  const blank = ["", "", "", "", "", ""];
  const models = modelsOf(rows, family).map((used) => [
    used.name,
    formatCount(used.answers),
    ...TOKEN_KINDS.map((kind) => formatCompact(used[kind])),
    formatCompact(used.total),
    formatCost(used.cost),
  ]);
  const sum = (name: string, of: "own" | "total") => [
    name,
    ...blank,
    formatCompact(row.tokens[of]),
    formatCost(row.cost[of]),
  ];
  const sums = [sum("This session", "own"), sum("With its agents", "total")];
  return {
    head: [
      "Model",
      "Answers",
      "Input",
      "Output",
      "Reasoning",
      "Cache read",
      "Cache write",
      "Tokens",
      "Cost",
    ],
    rows: row.tokens.total === null && models.length === 0 ? [] : [...models, ...sums],
    empty: "No model has told of its tokens.",
  };
}

/** "2 files, +5 −1"; null: it has changed none. */
function changesOf({ changes }: Record<string, unknown>): string | null {
  if (!isRecord(changes) || typeof changes.files !== "number") return null;
  return `${formatNoun(changes.files, "file")}, +${asText(changes.additions)} −${asText(changes.deletions)}`;
}
