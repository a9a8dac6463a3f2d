/** What a session's page shows below its timeline: which tab, and of files, todos and cost a table. */

import { TABS, type Tab, sessionHref } from "../address.ts";
import { byId, createList, part, setText } from "../dom.ts";
import { asText, isRecord } from "../events.ts";
import { UNKNOWN, formatCost, formatCount, formatNoun, wordOf } from "../format.ts";
import { type Rows, type SessionEntry, labelOf } from "../rows.ts";
import { type Column, createTable } from "../table.ts";
import { familyOf } from "../tree.ts";
import { type ChangedFile, filesOf, tokensOf } from "../turns.ts";
import { SPEND_COLUMNS, type Spend, getSessionSpend } from "./spend.ts";

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
const COST_COLUMNS: readonly Column<Spend>[] = [
  ...SPEND_COLUMNS,
  { head: "Answers", value: ({ count }) => count ?? null, format: formatCount },
];

type TabItem = { key: Tab; isShown: boolean; count: string };
type Todo = { key: number; state: string; text: string };

export function createSessionTabs(chosen: (tab: Tab) => void, changed: () => void) {
  const panelOf = (id: string) => byId(id, HTMLElement);
  const [group, panel] = [panelOf("tabs"), panelOf("session-table")];
  const [calls, feed] = [panelOf("calls"), panelOf("feed")];
  const tables = { files: panelOf("files"), todos: panelOf("todos"), cost: panelOf("cost") };
  const showFiles = createTable<ChangedFile>("files");
  const showCost = createTable<Spend>("cost");
  const showAgents = createTable<Spend>("cost", (id) => (location.hash = sessionHref(id)));
  /** By model, as the server said it when `key` was what the session had taken. */
  let spent: { key: string; models: Spend[] } = { key: "", models: [] };
  let isAsking = false;
  const showTodos = createList<Todo>("todos", "todo", (_root, find) => {
    return ({ state, text }) => {
      setText(find(".todo-state"), state);
      setText(find(".todo-text"), text);
    };
  });
  const showTabs = createList<TabItem>("tabs", "tab", (root, find) => {
    const radio = part(root, "input", HTMLInputElement);
    let shown: Tab;
    radio.addEventListener("change", () => {
      scrollTo({ top: group.offsetTop }); // on a narrow screen what was asked for is below
      chosen(shown);
    });
    return ({ key, isShown, count }) => {
      radio.value = shown = key;
      radio.checked = isShown;
      setText(find("span"), wordOf(key));
      setText(find("small"), count);
    };
  });

  async function askSpent(id: string, key: string): Promise<void> {
    if (isAsking || spent.key === key) return;
    isAsking = true;
    try {
      spent = { key, models: await getSessionSpend(id) };
      changed();
    } catch {
      // asked again with the next tick
    } finally {
      isAsking = false;
    }
  }

  return {
    hide(): void {
      group.hidden = panel.hidden = calls.hidden = true;
      feed.hidden = false;
    },
    show(rows: Rows, session: SessionEntry, tab: Tab): void {
      const { id, info, cost, tokens, tool_count, agent_count, event_count } = session.row;
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
      showTabs(TABS.map((key) => ({ key, isShown: key === tab, count: counts[key] })));
      calls.hidden = tab !== "calls";
      feed.hidden = tab !== "events";
      panel.hidden = !calls.hidden || !feed.hidden;
      for (const [of, table] of Object.entries(tables)) table.hidden = of !== tab;
      if (tab === "files")
        showFiles({
          name: "File",
          columns: FILE_COLUMNS,
          rows: files.map((row) => ({ name: row.path, row })),
          none: changesOf(info) ?? "No file was changed, as far as is told.",
        });
      if (tab === "todos") {
        const told = todos.map(({ status, content }) => ({
          state: TODO_WORDS[String(status)] ?? asText(status) ?? UNKNOWN,
          text: asText(content) ?? UNKNOWN,
        }));
        if (told.length === 0) told.push({ state: "", text: "It keeps no todos." });
        showTodos(told.map((todo, key) => ({ ...todo, key })));
      }
      if (tab === "cost") {
        const sum = (name: string, of: "own" | "total") => {
          return { name, row: spentBy(session, of), isTotal: true };
        };
        void askSpent(id, `${id} ${tokens.total} ${cost.total}`);
        const known = spent.key.startsWith(`${id} `) ? spent.models : [];
        const models = known.map((row) => ({ name: row.model ?? UNKNOWN, row }));
        const sums = [sum("This session", "own"), sum("With its agents", "total")];
        showCost({
          name: "Model",
          columns: COST_COLUMNS,
          rows: tokens.total === null && models.length === 0 ? [] : [...sums, ...models],
          none: "No model has told of its tokens.",
        });
        family.delete(id);
        const agents = [...family].flatMap((agent) => rows.sessions.get(agent) ?? []);
        showAgents({
          name: "Agent",
          columns: COST_COLUMNS,
          rows: agents.map((agent) => {
            return { id: agent.row.id, name: labelOf(agent), row: spentBy(agent, "own") };
          }),
          none: "It has sent out no agent.",
        });
      }
    },
  };
}

function spentBy({ row: { info, cost, tokens } }: SessionEntry, of: "own" | "total"): Spend {
  const kinds = of === "own" ? tokensOf(info.tokens) : {};
  return { cost: cost[of], tokens: { ...kinds, total: tokens[of] ?? undefined } };
}

/** "2 files, +5 −1"; null: it has changed none. */
function changesOf({ changes }: Record<string, unknown>): string | null {
  if (!isRecord(changes) || typeof changes.files !== "number") return null;
  return `${formatNoun(changes.files, "file")}, +${asText(changes.additions)} −${asText(changes.deletions)}`;
}
