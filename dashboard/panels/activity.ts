/** Events over time, with a cursor that reads their values. */

import type { Activity } from "../../server.ts";
import { type Picture, byId, createPicture, setText } from "../dom.ts";
import { formatCount, formatDay, formatMinute, formatNoun } from "../format.ts";

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;

/** In as many bars as can be told apart. */
export function createActivityChart() {
  const readout = byId("activity-readout", HTMLOutputElement);
  let buckets: { start: number; count: number; errors: number }[] = [];
  let lengthMs = MINUTE_MS;
  let cursor: number | null = null;
  const { canvas, redraw } = createPicture("activity", draw);

  function draw({ context, color }: Picture, width: number, height: number): void {
    if (buckets.length === 0) return;
    context.clearRect(0, 0, width, height);
    const base = height - 22;
    const top = 14;
    const peak = Math.max(1, ...buckets.map((bucket) => bucket.count));
    const step = width / buckets.length;
    context.fillStyle = color("--grid");
    context.fillRect(0, base, width, 1);
    for (const [index, { count, errors }] of buckets.entries()) {
      const x = index * step;
      const w = Math.max(1, step - 1);
      const h = count === 0 ? 0 : Math.max(2, (count / peak) * (base - top));
      context.fillStyle = color(index === cursor ? "--ink" : "--accent");
      context.fillRect(x, base - h, w, h);
      if (errors === 0) continue;
      context.fillStyle = color("--failed");
      context.fillRect(x, base + 2, w, 4);
    }
    context.fillStyle = color("--ink-2");
    const first = buckets[0]?.start ?? 0;
    const span = buckets.length * lengthMs;
    for (const share of [0, 0.25, 0.5, 0.75]) {
      const at = first + span * share;
      context.fillText(
        span > 30 * HOUR_MS ? `${formatDay(at)}, ${formatMinute(at)}` : formatMinute(at),
        share * width,
        height - 6,
      );
    }
    context.textAlign = "right";
    context.fillText("now", width, height - 6);
    context.textAlign = "left";
  }

  function read(): void {
    const bucket = cursor === null ? undefined : buckets[cursor];
    if (bucket === undefined) {
      const total = buckets.reduce((sum, { count }) => sum + count, 0);
      const peak = Math.max(...buckets.map(({ count }) => count));
      const unit = lengthMs === MINUTE_MS ? "minute" : lengthMs === HOUR_MS ? "hour" : "15 minutes";
      setText(readout, `${formatNoun(total, "event")}, peak ${formatCount(peak)} per ${unit}`);
    } else {
      const from = formatMinute(bucket.start);
      const to = formatMinute(bucket.start + lengthMs);
      const day = lengthMs === HOUR_MS ? `${formatDay(bucket.start)}, ` : "";
      setText(
        readout,
        `${day}${from} to ${to}: ${formatNoun(bucket.count, "event")}, ${formatNoun(bucket.errors, "error")}`,
      );
    }
    redraw();
  }

  canvas.addEventListener("pointermove", (event) => {
    cursor = Math.min(
      buckets.length - 1,
      Math.floor((event.offsetX / canvas.clientWidth) * buckets.length),
    );
    read();
  });
  const leave = () => {
    cursor = null;
    read();
  };
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("blur", leave);
  canvas.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    const last = buckets.length - 1;
    const from = cursor ?? (event.key === "ArrowLeft" ? last + 1 : -1);
    cursor = Math.max(0, Math.min(last, from + (event.key === "ArrowLeft" ? -1 : 1)));
    read();
  });

  return {
    show(activity: readonly Activity[], hours: number, now: number): void {
      lengthMs = hours <= 1 ? MINUTE_MS : hours <= 24 ? 15 * MINUTE_MS : HOUR_MS;
      const count = Math.round((hours * HOUR_MS) / lengthMs);
      const last = now - (now % lengthMs);
      buckets = Array.from({ length: count }, (_, index) => ({
        start: last - (count - 1 - index) * lengthMs,
        count: 0,
        errors: 0,
      }));
      const first = buckets[0]?.start ?? 0;
      for (const minute of activity) {
        const bucket = buckets[Math.floor((Date.parse(minute.timestamp) - first) / lengthMs)];
        if (bucket === undefined) continue;
        bucket.count += minute.count;
        bucket.errors += minute.error_count;
      }
      read();
    },
  };
}
