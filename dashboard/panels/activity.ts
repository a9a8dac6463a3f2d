/** Events over time, in as many bars as can be told apart. */

import type { Activity } from "../../server.ts";
import { HOUR_MS, MINUTE_MS, formatCount, formatDay, formatMinute, formatNoun } from "../format.ts";
import { createChart } from "./chart.ts";

export function createActivityChart() {
  const showChart = createChart("activity");

  return (activity: readonly Activity[], hours: number, now: number): void => {
    const [length, unit] =
      hours <= 1
        ? [MINUTE_MS, "minute"]
        : hours <= 24
          ? [15 * MINUTE_MS, "15 minutes"]
          : [HOUR_MS, "hour"];
    const size = Math.round((hours * HOUR_MS) / length);
    const first = now - (now % length) - (size - 1) * length;
    const buckets = Array.from({ length: size }, (_, index) => ({
      start: first + index * length,
      count: 0,
      errors: 0,
    }));
    for (const { timestamp, count, error_count } of activity) {
      const bucket = buckets[Math.floor((Date.parse(timestamp) - first) / length)];
      if (bucket === undefined) continue;
      bucket.count += count;
      bucket.errors += error_count;
    }
    const all = buckets.reduce((sum, { count }) => sum + count, 0);
    const peak = Math.max(...buckets.map(({ count }) => count));
    showChart({
      title: "Activity",
      words: `${formatNoun(all, "event")}, peak ${formatCount(peak)} per ${unit}`,
      bars: buckets.map(({ start, count, errors }) => {
        const day = hours > 24 ? `${formatDay(start)}, ` : "";
        const time = `${day}${formatMinute(start)}`;
        const told = `${formatNoun(count, "event")}, ${formatNoun(errors, "error")}`;
        const words = `${time} to ${formatMinute(start + length)}: ${told}`;
        return { value: count, hasFailed: errors > 0, words, label: time };
      }),
    });
  };
}
