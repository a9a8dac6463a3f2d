/** What models took: per day, and by model, agent, project or day against the time before. The numbers are the agent's own. */

import { type Query, getStats } from "../api.ts";
import { byId, choose, create, fill, set, setText } from "../dom.ts";
import { asText } from "../events.ts";
import { DAY_MS, formatChange, formatCompact, formatCost, formatDay, wordOf } from "../format.ts";
import { type Column, createTable } from "../table.ts";
import { TOKEN_KINDS } from "../turns.ts";

const CHART_DAYS = 30;

/** As the server sums it up; of a day (UTC), a model, an agent or a directory. */
export interface Spend extends Partial<Record<By, string | null>> {
  cost: number | null;
  tokens: Partial<Record<string, number>>;
}

const BY = { model: "Model", agent: "Agent", directory: "Project", day: "Day" } as const;
type By = keyof typeof BY;

/** In days. */
const PERIODS = { 1: "Today", 7: "7 days", 30: "30 days" } as const;

export const SPEND_COLUMNS: readonly Column<Spend>[] = [
  { head: "Cost", value: (row) => row.cost, format: formatCost, isBar: true },
  ...["total", ...TOKEN_KINDS].map((part) => ({
    head: part === "total" ? "Tokens" : wordOf(part),
    value: ({ tokens }: Spend) => tokens[part] ?? null,
    format: formatCompact,
    isBar: part === "total",
  })),
];

export const getSpend = (by: By, query: Query) => getStats<Spend>("spend", { by, ...query });

/** Of a day of UTC: it has the same name in any zone. */
const dayName = (day: string | null | undefined) => formatDay(Date.parse(`${day}T12:00`));
export const costOf = (rows: readonly Spend[]) =>
  rows.reduce((sum, { cost }) => sum + (cost ?? 0), 0);

/** @param changed another period or another grouping is wanted */
export function createSpend(changed: () => void) {
  const showTable = createTable<Spend>("spend");
  const periods = choose("spend-days", PERIODS, "30", changed);
  const groups = choose("spend-by", BY, "model", changed);
  const buttons = byId("spend-days", HTMLDivElement).querySelectorAll("button");
  for (const button of buttons) button.append(" ", create("strong"), " ", create("small"));
  const bars = Array.from({ length: CHART_DAYS }, () => create("i"));
  byId("spend-bars", HTMLDivElement).append(...bars);
  const query = () => ({ by: groups.value, days: Number(periods.value) });

  /** Each against as many days before. */
  function showPeriods(byDay: readonly Spend[]): void {
    for (const button of buttons) {
      const days = Number(button.value);
      const now = costOf(byDay.slice(-days));
      const before = costOf(byDay.slice(-2 * days, -days));
      const change = formatChange(now, before);
      const time = days === 1 ? "all of yesterday" : `the ${days} before`;
      set(button, { title: `${formatCost(before)} ${time}` });
      fill(button, { strong: formatCost(now), small: change && `${change} against ${time}` });
    }
  }

  /** A bar for each; it says what it is where the pointer is on it. */
  function showDays(byDay: readonly Spend[]): void {
    const most = Math.max(...byDay.map(({ cost }) => cost ?? 0));
    for (const [index, bar] of bars.entries()) {
      const { day, cost = 0, tokens } = byDay[index] ?? {};
      const title = `${dayName(day)}: ${formatCost(cost)}, ${formatCompact(tokens?.total ?? 0)} tokens`;
      const isFaint = index < CHART_DAYS - query().days; // not of the time that is asked for
      set(bar, { title, "data-faint": isFaint, "--share": (cost ?? 0) / (most || 1) });
    }
    const [first, last] = [byDay[0], byDay.at(-1)].map((row) => dayName(row?.day));
    setText("spend-note", `${first} to ${last}, at most ${formatCost(most)} a day`);
  }

  return async (now: number): Promise<void> => {
    const { by, days } = query();
    const [told, rows, before] = await Promise.all([
      getSpend("day", { days: 2 * CHART_DAYS }),
      getSpend(by, { days }),
      getSpend(by, { days, before_hours: 24 * days }),
    ]);
    if (by !== query().by || days !== query().days) return; // another choice was made meanwhile
    const known = new Map(told.map((row) => [row.day, row]));
    const byDay = Array.from({ length: 2 * CHART_DAYS }, (_, index) => {
      const at = now - (2 * CHART_DAYS - 1 - index) * DAY_MS;
      const day = new Date(at).toISOString().slice(0, 10);
      return known.get(day) ?? { day, cost: 0, tokens: {} };
    });
    showPeriods(byDay); // today last
    showDays(byDay.slice(-CHART_DAYS));
    const none = "No model has answered in this time.";
    const nameOf = (row: Spend) => asText(row[by]) ?? "Not told";
    showTable({ name: BY[by], columns: SPEND_COLUMNS, rows, before, nameOf, none });
  };
}
