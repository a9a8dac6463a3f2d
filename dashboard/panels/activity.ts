/** Events over time, with a cursor that reads their values. */

import type { Activity } from "../../server.ts";
import { type Picture, byId, createPicture, drawBars, setText } from "../dom.ts";
import { HOUR_MS, MINUTE_MS, formatCount, formatDay, formatMinute, formatNoun } from "../format.ts";

/** In as many bars as can be told apart. */
export function createActivityChart() {
  const readout = byId("activity-readout", HTMLOutputElement);
  let buckets: { start: number; count: number; errors: number }[] = [];
  let lengthMs = MINUTE_MS;
  let cursor: number | null = null;
  const { canvas, redraw } = createPicture("activity", draw);

  function draw(picture: Picture, width: number, height: number): void {
    const { context, color } = picture;
    if (buckets.length === 0) return;
    context.clearRect(0, 0, width, height);
    drawBars(picture, buckets, { width, height: height - 36, base: height - 22, redPx: 4 }, cursor);
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
    const unit = lengthMs === MINUTE_MS ? "minute" : lengthMs === HOUR_MS ? "hour" : "15 minutes";
    const all = buckets.reduce((sum, { count }) => sum + count, 0);
    const peak = Math.max(...buckets.map(({ count }) => count));
    let words = `${formatNoun(all, "event")}, peak ${formatCount(peak)} per ${unit}`;
    if (bucket !== undefined) {
      const { start, count, errors } = bucket;
      const day = lengthMs === HOUR_MS ? `${formatDay(start)}, ` : "";
      const time = `${formatMinute(start)} to ${formatMinute(start + lengthMs)}`;
      words = `${day}${time}: ${formatNoun(count, "event")}, ${formatNoun(errors, "error")}`;
    }
    setText(readout, words);
    redraw();
  }

  canvas.addEventListener("pointermove", (event) => {
    const at = Math.floor((event.offsetX / canvas.clientWidth) * buckets.length);
    cursor = Math.min(buckets.length - 1, at);
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
