/** What models took: per day, and by model, agent, project or day against the time before. The numbers are the agent's own. */

import { get } from "../api.ts";
import { choose, create, setAttribute } from "../dom.ts";
import { asText } from "../events.ts";
import { formatChange, formatCompact, formatCost, formatDay, wordOf } from "../format.ts";
import { type Column, createTable } from "../table.ts";
import { TOKEN_KINDS } from "../turns.ts";
import { createChart } from "./chart.ts";

const CHART_DAYS = 30;
const DAY_MS = 86_400_000;

const PARTS = ["total", ...TOKEN_KINDS];

/** As the server sums it up; of a day (UTC), a model, an agent or a directory. */
export interface Spend extends Partial<Record<By, string | null>> {
  /** How many answers. */
  count?: number;
  cost: number | null;
  tokens: Partial<Record<string, number>>;
}

const BY = { model: "Model", agent: "Agent", directory: "Project", day: "Day" } as const;
type By = keyof typeof BY;

/** In days. */
const PERIODS = { 1: "Today", 7: "7 days", 30: "30 days" } as const;

export const SPEND_COLUMNS: readonly Column<Spend>[] = [
  { head: "Cost", value: (row) => row.cost, format: formatCost, isBar: true },
  ...PARTS.map((part) => ({
    head: part === "total" ? "Tokens" : wordOf(part),
    value: ({ tokens }: Spend) => tokens[part] ?? null,
    format: formatCompact,
    isBar: part === "total",
  })),
];

async function getSpend(by: By, query: Record<string, string | number>): Promise<Spend[]> {
  const response = await get("/api/analytics/spend", { by, ...query });
  return (await response.json()).spend;
}

/** By model: what a session and all below it took. */
export const getSessionSpend = (sessionId: string) => getSpend("model", { sessionId });

function sumOf(rows: readonly Spend[]): Spend {
  const sum = (of: (row: Spend) => number | null) =>
    rows.reduce((all, row) => all + (of(row) ?? 0), 0);
  const total = Object.fromEntries(
    PARTS.map((name) => [name, sum(({ tokens }) => tokens[name] ?? null)]),
  );
  return { cost: sum(({ cost }) => cost), tokens: total };
}

/** @param changed another period or another grouping is wanted */
export function createSpend(changed: () => void) {
  const showChart = createChart("spend-chart");
  const showTable = createTable<Spend>("spend");
  const shown: { by: By; days: number } = { by: "model", days: CHART_DAYS };
  let asked = 0;

  const periods = choose("spend-days", PERIODS, "30", (days) => {
    shown.days = Number(days);
    changed();
  });
  choose("spend-by", BY, shown.by, (by) => {
    shown.by = by;
    changed();
  });

  /** Each against as many days before; `byDay`: 60 of them, today last. */
  function showPeriods(byDay: readonly Spend[]): void {
    for (const button of periods) {
      const count = Number(button.value);
      const now = sumOf(byDay.slice(-count)).cost;
      const before = sumOf(byDay.slice(-2 * count, -count)).cost;
      const change = formatChange(now, before);
      const time = count === 1 ? "all of yesterday" : `the ${count} before`;
      const sum = create("strong", formatCost(now));
      const against = create("small", change && `${change} against ${time}`);
      button.replaceChildren(button.firstChild ?? "", " ", sum, " ", against);
      setAttribute(button, "title", `${formatCost(before)} ${time}`);
    }
  }

  /** @param byDay today last */
  function showDays(byDay: readonly Spend[]): void {
    const bars = byDay.map(({ day, cost, tokens }, index) => {
      const label = formatDay(Date.parse(`${day}T12:00`)); // that day, in any zone
      const words = `${label}: ${formatCost(cost)}, ${formatCompact(tokens.total ?? 0)} tokens`;
      return { value: cost ?? 0, isFaint: index < byDay.length - shown.days, words, label };
    });
    const most = formatCost(Math.max(...byDay.map(({ cost }) => cost ?? 0)));
    showChart({ title: `At most ${most} a day`, words: bars.at(-1)?.words ?? "", bars });
  }

  return {
    async load(now: number): Promise<void> {
      const mine = ++asked;
      const { by, days } = shown;
      const [told, rows, before] = await Promise.all([
        getSpend("day", { days: 2 * CHART_DAYS }),
        getSpend(by, { days }),
        getSpend(by, { days, before_hours: 24 * days }),
      ]);
      if (mine !== asked) return; // another choice was made meanwhile
      const known = new Map(told.map((row) => [row.day, row]));
      const byDay = Array.from({ length: 2 * CHART_DAYS }, (_, index) => {
        const at = now - (2 * CHART_DAYS - 1 - index) * DAY_MS;
        const day = new Date(at).toISOString().slice(0, 10);
        return known.get(day) ?? { day, ...sumOf([]) };
      });
      showPeriods(byDay);
      showDays(byDay.slice(-CHART_DAYS));
      const earlier = new Map(before.map((row) => [row[by], row]));
      const named = rows.map((row) => ({
        name: asText(row[by]) ?? "Not told",
        row,
        before: earlier.get(row[by]),
      }));
      const total = { name: "Total", row: sumOf(rows), before: sumOf(before), isTotal: true };
      showTable({
        name: BY[by],
        columns: SPEND_COLUMNS,
        rows: named.length > 1 ? [total, ...named] : named,
        none: "No model has answered in this time.",
      });
    },
  };
}
