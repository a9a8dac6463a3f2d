/** What was used how often and for how long, as a table under a chart of the activity. */

import type { Activity, UsageStats } from "../../server.ts";
import { get } from "../api.ts";
import { byId, choose } from "../dom.ts";
import { asText } from "../events.ts";
import { formatCost, formatCount, formatDuration, joined } from "../format.ts";
import { type Column, createTable } from "../table.ts";
import { createActivityChart } from "./activity.ts";

/** As the server has it: by tool, by type of agent, or by model and provider. */
export type UsageRow = Omit<UsageStats, "name"> & {
  tool?: string;
  subagent_type?: string;
  model?: string;
  provider?: string | null;
  avg_first_token_ms?: number | null;
  cost?: number;
};

type Named = Partial<Record<"tool" | "subagent_type" | "model" | "provider", unknown>>;

/** Of a row, or of an event of its kind. A model of two providers is two rows. */
export function nameOf({ tool, subagent_type, model, provider }: Named): string {
  return asText(tool ?? subagent_type) ?? joined([asText(model), asText(provider)]);
}

const KINDS = { tools: "Tool", agents: "Agent", models: "Model" } as const;
type Kind = keyof typeof KINDS;

export interface UsageQuery {
  kind: Kind;
  hours: number;
}

const isKind = (kind: string | undefined): kind is Kind => kind !== undefined && kind in KINDS;

const EACH: Column<UsageRow>[] = [
  { head: "Count", value: (row) => row.count, format: formatCount, isBar: true },
  { head: "p50", value: (row) => row.p50_duration_ms, format: formatDuration },
  { head: "p95", value: (row) => row.p95_duration_ms, format: formatDuration, isBar: true },
];
const CALLS: Column<UsageRow>[] = [
  { head: "Worked", value: workedOf, format: formatDuration, isBar: true },
  { head: "Waited", value: (row) => row.waited_ms || null, format: formatDuration },
];
const MODELS: Column<UsageRow>[] = [
  { head: "1st token", value: (row) => row.avg_first_token_ms ?? null, format: formatDuration },
  { head: "Cost", value: (row) => row.cost ?? null, format: formatCost, isBar: true },
];
const ERRORS: Column<UsageRow> = {
  head: "Errors",
  value: (row) => row.error_count,
  format: formatCount,
};

/** Without the waits for the person. */
function workedOf({ avg_duration_ms, total_duration_ms, waited_ms }: UsageRow): number | null {
  return avg_duration_ms === null ? null : total_duration_ms - waited_ms;
}

export interface UsageOptions {
  changed: () => void;
  /** The calls of a row are wanted. */
  opened: (name: string, query: UsageQuery) => void;
}

export function createUsage({ changed, opened }: UsageOptions) {
  const query: UsageQuery = { kind: "tools", hours: 1 };
  const showTable = createTable<UsageRow>("usage", (name) => opened(name, query));
  const chart = createActivityChart();
  /** By name, of as many hours before these. */
  let before = new Map<string, UsageRow>();

  choose(byId("usage-kind", HTMLDivElement), (button) => {
    if (isKind(button.dataset.kind)) query.kind = button.dataset.kind;
    changed();
  });
  choose(byId("usage-hours", HTMLDivElement), (button) => {
    query.hours = Number(button.dataset.hours);
    changed();
  });

  return {
    query,
    async loadBefore(): Promise<void> {
      const { kind, hours } = query;
      const response = await get(`/api/analytics/${kind}`, { hours, before_hours: hours });
      const body: Partial<Record<Kind, UsageRow[]>> = await response.json();
      if (kind !== query.kind || hours !== query.hours) return; // another choice was made meanwhile
      before = new Map(body[kind]?.map((row) => [nameOf(row), row]));
    },
    show(rows: readonly UsageRow[], activity: readonly Activity[], now: number): void {
      showTable(
        KINDS[query.kind],
        [...EACH, ...(query.kind === "models" ? MODELS : CALLS), ERRORS],
        rows.map((row) => ({ name: nameOf(row), row, before: before.get(nameOf(row)) })),
      );
      chart.show(activity, query.hours, now);
    },
  };
}
