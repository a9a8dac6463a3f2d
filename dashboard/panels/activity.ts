/** Events over time, with a cursor that reads their values. */

import type { Activity } from "../../server.ts";
import { byId, part, setAttribute, setText } from "../dom.ts";
import { HOUR_MS, MINUTE_MS, formatCount, formatDay, formatMinute, formatNoun } from "../format.ts";

/** In as many bars as can be told apart. */
export function createActivityChart() {
  const readout = byId("activity-readout", HTMLOutputElement);
  const cursor = byId("activity", HTMLInputElement);
  const chart = part(document, "#activity-chart", SVGSVGElement);
  const axis = byId("activity-axis", HTMLElement);
  let buckets: { start: number; count: number; errors: number }[] = [];
  let lengthMs = MINUTE_MS;

  /** @param at the bucket under the cursor */
  function draw(at: number | null): void {
    const unit = lengthMs === MINUTE_MS ? "minute" : lengthMs === HOUR_MS ? "hour" : "15 minutes";
    const all = buckets.reduce((sum, { count }) => sum + count, 0);
    const peak = Math.max(...buckets.map(({ count }) => count));
    const bucket = at === null ? undefined : buckets[at];
    let words = `${formatNoun(all, "event")}, peak ${formatCount(peak)} per ${unit}`;
    if (bucket !== undefined) {
      const { start, count, errors } = bucket;
      const day = lengthMs === HOUR_MS ? `${formatDay(start)}, ` : "";
      const time = `${formatMinute(start)} to ${formatMinute(start + lengthMs)}`;
      words = `${day}${time}: ${formatNoun(count, "event")}, ${formatNoun(errors, "error")}`;
    }
    setText(readout, words);
    setAttribute(cursor, "aria-valuetext", words);

    // One wide for each bucket; of 100 the bars have 90, the errors the last 5.
    const paths = { bars: "", errors: "", cursor: "" };
    for (const [index, { count, errors }] of buckets.entries()) {
      const height = count === 0 ? 1 : Math.max(3, (count / Math.max(1, peak)) * 90);
      paths[index === at ? "cursor" : "bars"] += `M${index} 91v-${height}h.8v${height}z`;
      if (errors > 0) paths.errors += `M${index} 95h.8v5h-.8z`;
    }
    setAttribute(chart, "viewBox", `0 0 ${buckets.length} 100`);
    for (const [index, d] of Object.values(paths).entries())
      setAttribute(part(chart, `path:nth-child(${index + 1})`, SVGPathElement), "d", d);
  }

  cursor.addEventListener("input", () => draw(cursor.valueAsNumber));
  cursor.addEventListener("pointermove", ({ offsetX }) => {
    cursor.valueAsNumber = Math.floor((offsetX / cursor.clientWidth) * buckets.length);
    draw(cursor.valueAsNumber);
  });
  for (const type of ["pointerleave", "blur"]) cursor.addEventListener(type, () => draw(null));

  return {
    show(activity: readonly Activity[], hours: number, now: number): void {
      lengthMs = hours <= 1 ? MINUTE_MS : hours <= 24 ? 15 * MINUTE_MS : HOUR_MS;
      const count = Math.round((hours * HOUR_MS) / lengthMs);
      const first = now - (now % lengthMs) - (count - 1) * lengthMs;
      const start = (index: number) => first + index * lengthMs;
      buckets = Array.from({ length: count }, (_, at) => ({
        start: start(at),
        count: 0,
        errors: 0,
      }));
      for (const minute of activity) {
        const bucket = buckets[Math.floor((Date.parse(minute.timestamp) - first) / lengthMs)];
        if (bucket === undefined) continue;
        bucket.count += minute.count;
        bucket.errors += minute.error_count;
      }
      for (const [index, label] of [...axis.children].slice(0, 4).entries()) {
        const at = start((count * index) / 4);
        setText(label, hours > 30 ? `${formatDay(at)}, ${formatMinute(at)}` : formatMinute(at));
      }
      cursor.max = String(count - 1);
      const isRead = cursor.matches(":hover, :focus-visible");
      draw(isRead ? cursor.valueAsNumber : null);
    },
  };
}
