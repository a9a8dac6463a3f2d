/** What was used how often and for how long, as a table under a chart of the activity. */

import type { Activity, UsageStats } from "../../server.ts";
import { get } from "../api.ts";
import { choose } from "../dom.ts";
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

const KINDS = { tools: "Tools", agents: "Agents", models: "Models" } as const;
const HOURS = { 1: "1 h", 24: "24 h", 168: "7 d" } as const;
type Kind = keyof typeof KINDS;

export interface UsageQuery {
  kind: Kind;
  hours: number;
}

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

/** @param changed something else is to be loaded @param opened the calls of a row are wanted */
export function createUsage(
  changed: () => void,
  opened: (name: string, query: UsageQuery) => void,
) {
  const query: UsageQuery = { kind: "tools", hours: 1 };
  const showTable = createTable<UsageRow>("usage", (name) => opened(name, query));
  const showActivity = createActivityChart();
  let asked = 0;

  choose("usage-kind", KINDS, query.kind, (kind) => {
    query.kind = kind;
    changed();
  });
  choose("usage-hours", HOURS, "1", (hours) => {
    query.hours = Number(hours);
    changed();
  });

  return {
    /** @returns what it shows; null: another choice was made meanwhile */
    async load(now: number): Promise<{ kind: Kind; rows: UsageRow[] } | null> {
      const mine = ++asked;
      const { kind, hours } = query;
      const getUsed = async (before_hours: number) => {
        const response = await get(`/api/analytics/${kind}`, { hours, before_hours });
        const body: Partial<Record<Kind, UsageRow[]>> = await response.json();
        return body[kind] ?? [];
      };
      const [rows, earlier, counts] = await Promise.all([
        getUsed(0),
        getUsed(hours),
        get("/api/analytics/activity", { hours }),
      ]);
      const { activity }: { activity: Activity[] } = await counts.json();
      if (mine !== asked) return null;
      const before = new Map(earlier.map((row) => [nameOf(row), row]));
      showTable({
        name: KINDS[kind],
        columns: [...EACH, ...(kind === "models" ? MODELS : CALLS), ERRORS],
        rows: rows.map((row) => ({ name: nameOf(row), row, before: before.get(nameOf(row)) })),
        none: "Nothing in this period.",
      });
      showActivity(activity, hours, now);
      return { kind, rows };
    },
  };
}
