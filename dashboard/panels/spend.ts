/** What models took: per day, and by model, agent, project or day against the time before. The numbers are the agent's own. */

import { get } from "../api.ts";
import { byId, choose, createList, part, setAttribute, setText } from "../dom.ts";
import { asText } from "../events.ts";
import { formatChange, formatCompact, formatCost, formatDay } from "../format.ts";
import { type Column, createTable } from "../table.ts";

const CHART_DAYS = 30;
const DAY_MS = 86_400_000;

const PARTS = {
  total: "Tokens",
  input: "Input",
  output: "Output",
  reasoning: "Reasoning",
  cache_read: "Cache read",
  cache_write: "Cache write",
} as const;

/** As the server sums it up; of a day (UTC), a model, an agent or a directory. */
interface Spend extends Partial<Record<By, string | null>> {
  cost: number;
  tokens: Record<string, number>;
}

const BY = { model: "Model", agent: "Agent", directory: "Project", day: "Day" } as const;
type By = keyof typeof BY;

const isBy = (by: string | undefined): by is By => by !== undefined && by in BY;

const COLUMNS: readonly Column<Spend>[] = [
  { head: "Cost", value: (row) => row.cost, format: formatCost, isBar: true },
  ...Object.entries(PARTS).map(([part, head]) => ({
    head,
    value: ({ tokens }: Spend) => tokens[part] ?? 0,
    format: formatCompact,
    isBar: part === "total",
  })),
];

async function getSpend(by: By, days: number, before_hours = 0): Promise<Spend[]> {
  const response = await get("/api/analytics/spend", { by, days, before_hours });
  return (await response.json()).spend;
}

function sumOf(rows: readonly Spend[]): Spend {
  const sum = (of: (row: Spend) => number) => rows.reduce((all, row) => all + of(row), 0);
  const total = Object.fromEntries(
    Object.keys(PARTS).map((name) => [name, sum(({ tokens }) => tokens[name] ?? 0)]),
  );
  return { cost: sum(({ cost }) => cost), tokens: total };
}

interface Bar {
  row: Spend;
  /** The greatest cost of a day. */
  most: number;
  isChosen: boolean;
}

/** @param changed another period or another grouping is wanted */
export function createSpend({ changed }: { changed: () => void }) {
  const periods = byId("spend-days", HTMLDivElement);
  const chart = byId("spend-chart", HTMLOListElement);
  const showTable = createTable<Spend>("spend");
  const shown: { by: By; days: number } = { by: "model", days: CHART_DAYS };
  let asked = 0;

  choose(periods, (button) => {
    shown.days = Number(button.dataset.days);
    changed();
  });
  choose(byId("spend-by", HTMLDivElement), (button) => {
    if (isBy(button.dataset.by)) shown.by = button.dataset.by;
    changed();
  });
  const keyOf = ({ row }: Bar) => row.day ?? "";
  const showBars = createList<Bar>("spend-chart", "spend-day", keyOf, (root) => ({
    root,
    update({ row: { day, cost, tokens }, most, isChosen }) {
      const label = formatDay(Date.parse(`${day}T12:00`)); // that day, in any zone
      const told = `${label}: ${formatCost(cost)}, ${formatCompact(tokens.total ?? 0)} tokens`;
      root.style.setProperty("--share", String(cost / (most || Infinity)));
      setAttribute(root, "data-chosen", String(isChosen));
      setText(part(root, "strong", HTMLElement), label);
      setText(part(root, "span", HTMLElement), told);
    },
  }));

  /** Each against as many days before; `byDay`: 60 of them, today last. */
  function showPeriods(byDay: readonly Spend[]): void {
    for (const button of periods.querySelectorAll("button")) {
      const count = Number(button.dataset.days);
      const now = sumOf(byDay.slice(-count)).cost;
      const before = sumOf(byDay.slice(-2 * count, -count)).cost;
      const change = formatChange(now, before);
      const time = count === 1 ? "yesterday" : `the ${count} before`;
      setText(part(button, "strong", HTMLElement), formatCost(now));
      setText(part(button, "small", HTMLElement), change && `${change} against ${time}`);
      setAttribute(button, "title", `${formatCost(before)} ${time}`);
    }
  }

  /** @param byDay today last */
  function showChart(byDay: readonly Spend[]): void {
    const most = Math.max(...byDay.map(({ cost }) => cost));
    const firstChosen = byDay.length - shown.days;
    setAttribute(chart, "data-most", formatCost(most));
    showBars(byDay.map((row, index) => ({ row, most, isChosen: index >= firstChosen })));
  }

  return {
    async load(now: number): Promise<void> {
      const mine = ++asked;
      const { by, days } = shown;
      const [told, rows, before] = await Promise.all([
        getSpend("day", 2 * CHART_DAYS),
        getSpend(by, days),
        getSpend(by, days, 24 * days),
      ]);
      if (mine !== asked) return; // another choice was made meanwhile
      const known = new Map(told.map((row) => [row.day, row]));
      const byDay = Array.from({ length: 2 * CHART_DAYS }, (_, index) => {
        const at = now - (2 * CHART_DAYS - 1 - index) * DAY_MS;
        const day = new Date(at).toISOString().slice(0, 10);
        return known.get(day) ?? { day, ...sumOf([]) };
      });
      showPeriods(byDay);
      showChart(byDay.slice(-CHART_DAYS));
      const earlier = new Map(before.map((row) => [row[by], row]));
      const named = rows.map((row) => ({
        name: asText(row[by]) ?? "Not told",
        row,
        before: earlier.get(row[by]),
      }));
      const total = { name: "Total", row: sumOf(rows), before: sumOf(before), isTotal: true };
      showTable(BY[by], COLUMNS, [total, ...named]);
    },
  };
}
