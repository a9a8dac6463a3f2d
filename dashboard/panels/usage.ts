/** What was used how often and for how long, as a table under a chart of the activity. */

import type { Activity, UsageStats } from "../../server.ts";
import {
  type ListRow,
  byId,
  choose,
  createList,
  createMore,
  createSorting,
  part,
  setAttribute,
  setText,
} from "../dom.ts";
import { formatCount, formatDuration } from "../format.ts";
import { createActivityChart } from "./activity.ts";

/** As the server has it: by tool, or by type of agent. */
export type UsageRow = UsageStats & { tool?: string; subagent_type?: string };

export function nameOf({ tool, subagent_type }: UsageRow): string {
  return tool ?? subagent_type ?? "";
}

export interface UsageQuery {
  kind: "tools" | "agents";
  hours: number;
}

const COLUMNS = ["count", "name", "avg_duration_ms", "total_duration_ms", "error_count"] as const;

const BAR_COLUMNS = ["count", "avg_duration_ms", "total_duration_ms"] as const;

export function createUsage({ changed }: { changed: () => void }) {
  const query: UsageQuery = { kind: "tools", hours: 1 };
  const nameHead = byId("usage-name", HTMLButtonElement);
  const empty = byId("usage-empty", HTMLParagraphElement);
  const more = createMore("usage-more", showSorted);
  const chart = createActivityChart();
  const sorting = createSorting(byId("usage-table", HTMLTableElement), COLUMNS, showSorted);
  let rows: readonly UsageRow[] = [];

  const showRows = createList<Item>("usage-rows", "usage-row", ({ row }) => nameOf(row), createRow);
  choose(byId("usage-kind", HTMLDivElement), (button) => {
    query.kind = button.dataset.kind === "agents" ? "agents" : "tools";
    more.reset();
    changed();
  });
  choose(byId("usage-hours", HTMLDivElement), (button) => {
    query.hours = Number(button.dataset.hours);
    changed();
  });

  function showSorted(): void {
    const most = BAR_COLUMNS.map((column) =>
      rows.reduce((greatest, row) => Math.max(greatest, row[column] ?? 0), 1),
    );
    const { column, isAscending } = sorting;
    const sign = isAscending ? 1 : -1;
    // By code units: of 20,000 names localeCompare takes 150 ms.
    const byName = (a: UsageRow, b: UsageRow) => (nameOf(a) < nameOf(b) ? -1 : 1);
    const sorted = rows.toSorted((a, b) =>
      column === "name"
        ? sign * byName(a, b)
        : sign * ((a[column] ?? -1) - (b[column] ?? -1)) || byName(a, b),
    );
    showRows(sorted.slice(0, more.limit).map((row) => ({ row, most })));
    more.show(sorted.length > more.limit);
    empty.hidden = sorted.length > 0;
  }

  return {
    query,
    show(next: readonly UsageRow[], activity: readonly Activity[], now: number): void {
      rows = next;
      setText(nameHead, query.kind === "tools" ? "Tool" : "Agent");
      showSorted();
      chart.show(activity, query.hours, now);
    },
  };
}

interface Item {
  row: UsageRow;
  /** The greatest of each of BAR_COLUMNS: a full bar. */
  most: number[];
}

function createRow(root: HTMLElement): ListRow<Item> {
  const name = part(root, "th", HTMLElement);
  const bars = root.querySelectorAll<HTMLElement>(".bar");
  const numbers = [...root.querySelectorAll<HTMLElement>(".number")];
  return {
    root,
    update({ row, most }) {
      const { count, avg_duration_ms: average, total_duration_ms: total, error_count } = row;
      setText(name, nameOf(row));
      setAttribute(name, "title", nameOf(row));
      const texts = [
        formatCount(count),
        formatDuration(average),
        formatDuration(average === null ? null : total),
        formatCount(error_count),
      ];
      for (const [index, number] of numbers.entries()) setText(number, texts[index] ?? "");
      numbers.at(-1)?.classList.toggle("failed", error_count > 0);
      for (const [index, column] of BAR_COLUMNS.entries())
        bars[index]?.style.setProperty("--share", String((row[column] ?? 0) / (most[index] ?? 1)));
    },
  };
}
