/** What was used how often and for how long, against the time before. */

import type { UsageStats } from "../../server.ts";
import { getStats } from "../api.ts";
import { choose } from "../dom.ts";
import { asText } from "../events.ts";
import { formatCost, formatCount, formatDuration, joined } from "../format.ts";
import { type Column, createTable } from "../table.ts";

/** As the server has it: by tool, by type of agent, or by model and provider. */
export type UsageRow = Omit<UsageStats, "name"> & {
  avg_first_token_ms?: number | null;
  cost?: number;
};

/** Of a row, or of an event of its kind. A model of two providers is two rows. */
export function nameOf(row: Readonly<Record<string, unknown>>): string {
  const { tool, subagent_type, model, provider } = row;
  return asText(tool ?? subagent_type) ?? joined([asText(model), asText(provider)]);
}

const KINDS = { tools: "Tools", agents: "Agents", models: "Models" } as const;
const HOURS = { 1: "1 h", 24: "24 h", 168: "7 d" } as const;
export type Kind = keyof typeof KINDS;

const CALLS: Column<UsageRow>[] = [
  { head: "Worked", value: (row) => workedOf(row) || null, format: formatDuration, isBar: true },
  { head: "Waited", value: (row) => row.waited_ms || null, format: formatDuration },
];
const MODELS: Column<UsageRow>[] = [
  { head: "1st token", value: (row) => row.avg_first_token_ms ?? null, format: formatDuration },
  { head: "Cost", value: (row) => row.cost ?? null, format: formatCost, isBar: true },
];
const columnsOf = (kind: Kind): Column<UsageRow>[] => [
  { head: "Count", value: (row) => row.count, format: formatCount, isBar: true },
  // Nothing is left of a call whose agent counts for its time.
  { head: "p50", value: (row) => row.p50_duration_ms || null, format: formatDuration },
  { head: "p95", value: (row) => row.p95_duration_ms || null, format: formatDuration, isBar: true },
  ...(kind === "models" ? MODELS : CALLS),
  { head: "Errors", value: (row) => row.error_count, format: formatCount },
];

/** Without the waits for the person. */
function workedOf({ avg_duration_ms, total_duration_ms, waited_ms }: UsageRow): number | null {
  return avg_duration_ms === null ? null : total_duration_ms - waited_ms;
}

/** @param changed something else is to be loaded @param opened the calls of a row are wanted */
export function createUsage(
  changed: () => void,
  opened: (name: string, kind: Kind, hours: number) => void,
) {
  const kinds = choose("usage-kind", KINDS, "tools", changed);
  const periods = choose("usage-hours", HOURS, "1", changed);
  const query = () => ({ kind: kinds.value, hours: Number(periods.value) });
  const showTable = createTable<UsageRow>("usage", (name) =>
    opened(name, kinds.value, Number(periods.value)),
  );

  /** @returns what it shows; null: another choice was made meanwhile */
  return async () => {
    const { kind, hours } = query();
    const [rows, before] = await Promise.all([
      getStats<UsageRow>(kind, { hours }),
      getStats<UsageRow>(kind, { hours, before_hours: hours }),
    ]);
    if (kind !== query().kind || hours !== query().hours) return null;
    const none = "Nothing in this period.";
    showTable({ name: KINDS[kind], columns: columnsOf(kind), rows, before, nameOf, none });
    return { kind, rows };
  };
}
