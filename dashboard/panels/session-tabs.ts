/** What a session's page shows below its timeline: which tab, and of files, todos and cost a table. */

import { type Tab, TABS } from "../address.ts";
import { byId, create, createList, fill, part } from "../dom.ts";
import { asText, isRecord } from "../events.ts";
import { UNKNOWN, formatCost, formatCount, formatNoun, wordOf } from "../format.ts";
import type { Rows, SessionEntry } from "../rows.ts";
import { type Column, createTable } from "../table.ts";
import { countOf, familyOf } from "../tree.ts";
import { type ChangedFile, filesOf } from "../turns.ts";
import { SPEND_COLUMNS, type Spend, getSpend } from "./spend.ts";

const TODO_WORDS: Record<string, string> = {
  completed: "✓ Done",
  in_progress: "▸ Doing",
  pending: "○ To do",
  cancelled: "– Dropped",
};

const signed = (sign: string) => (lines: number) => `${sign}${formatCount(lines)}`;
const FILE_COLUMNS: readonly Column<ChangedFile>[] = [
  { head: "Edits", value: ({ edits }) => edits, format: formatCount },
  { head: "Added", value: ({ additions }) => additions, format: signed("+") },
  { head: "Removed", value: ({ deletions }) => deletions, format: signed("−") },
];

const pathOf = ({ path }: ChangedFile) => path;
const modelOf = ({ model }: Spend) => model ?? UNKNOWN;

export function createSessionTabs(chosen: (tab: Tab) => void, changed: () => void) {
  const [group, table] = [byId("tabs", HTMLElement), byId("session-table", HTMLElement)];
  const panelOf = (tab: Tab) => byId(tab === "events" ? "feed" : tab, HTMLElement);
  const showFiles = createTable<ChangedFile>("files");
  const showCost = createTable<Spend>("cost");
  const showTodos = createList<{ key: number; state: string; text: string }>(
    "todos",
    "todo",
    (root) => (todo) => fill(root, { ".todo-state": todo.state, ".todo-text": todo.text }),
  );
  /** What a session and all below it took, as the server said it when that was so much. */
  let spent: { of: string; models: Spend[] } = { of: "", models: [] };
  for (const tab of TABS) {
    const radio = create("input", { type: "radio", name: "tab", value: tab, class: "unseen" });
    const label = group.appendChild(create("label", { text: `${wordOf(tab)} ` }));
    label.append(radio, create("small"));
    radio.addEventListener("change", () => chosen(tab));
  }

  async function askSpent({ id, tokens, cost }: SessionEntry["row"]): Promise<void> {
    const of = `${id} ${tokens.total} ${cost.total}`;
    if (spent.of === of) return;
    const isSame = spent.of.startsWith(`${id} `);
    spent = { of, models: isSame ? spent.models : [] };
    const models = await getSpend("model", { sessionId: id }).catch(() => null);
    if (spent.of !== of) return;
    spent = models === null ? { ...spent, of: "" } : { of, models }; // asked again with the next tick
    changed();
  }

  /** @param tab null: none, as on the page of all sessions */
  function showTab(tab: Tab | null): void {
    group.hidden = tab === null;
    for (const each of TABS) panelOf(each).hidden = each !== (tab ?? "events");
    table.hidden = tab === null || tab === "calls" || tab === "events";
  }

  return {
    hide: () => showTab(null),
    show(rows: Rows, session: SessionEntry, tab: Tab): void {
      const { id, info, cost, tool_count, agent_count, event_count } = session.row;
      const family = familyOf(rows, id);
      const files = filesOf(rows, family, info.directory);
      const todos = Array.isArray(info.todos) ? info.todos.filter(isRecord) : [];
      const done = todos.filter(({ status }) => status === "completed").length;
      showTab(tab);
      part(group, `[value=${tab}]`, HTMLInputElement).checked = true;
      fill(group, {
        "[value=calls] + small": formatCount(Math.max(tool_count, agent_count)), // an agent's call is both
        "[value=errors] + small": formatCount(countOf(rows, id, "error_count")),
        "[value=files] + small": formatCount(files.length),
        "[value=todos] + small": todos.length === 0 ? "0" : `${done}/${todos.length}`,
        "[value=cost] + small": formatCost(cost.total),
        "[value=events] + small": formatCount(event_count),
      });
      if (tab === "files") {
        const none = changesOf(info) ?? "No file was changed, as far as is told.";
        showFiles({ name: "File", columns: FILE_COLUMNS, rows: files, nameOf: pathOf, none });
      }
      if (tab === "todos") {
        const told = todos.map(({ status, content }, key) => ({
          key,
          state: TODO_WORDS[String(status)] ?? asText(status) ?? UNKNOWN,
          text: asText(content) ?? UNKNOWN,
        }));
        const none = { key: 0, state: "", text: "It keeps no todos." };
        showTodos(told.length === 0 ? [none] : told);
      }
      if (tab === "cost") {
        void askSpent(session.row);
        const { models } = spent;
        const none = "No model has told of its tokens.";
        showCost({ name: "Model", columns: SPEND_COLUMNS, rows: models, nameOf: modelOf, none });
      }
    },
  };
}

/** "2 files, +5 −1"; null: it has changed none. */
function changesOf({ changes }: Record<string, unknown>): string | null {
  if (!isRecord(changes) || typeof changes.files !== "number") return null;
  return `${formatNoun(changes.files, "file")}, +${asText(changes.additions)} −${asText(changes.deletions)}`;
}
