/**
 * From POST to delivery, at a steady rate of single events.
 *
 *     bun run bench delivery
 *
 * Floor: a bare stream server that passes each body on as it is, to the same subscribers at the
 * same rate. Timed from when a POST was due to when each subscriber's bytes are there, in one
 * client process with one clock; the client's own lateness counts in both.
 */

import type { DeliveryJob } from "./client.ts";
import {
  alternate,
  type Benchmark,
  busyText,
  runJob,
  startFloor,
  startServer,
  under,
} from "./harness.ts";

const ROUNDS = 3;
const JOB: DeliveryJob = {
  kind: "delivery",
  subscribers: 100,
  perSecond: 1_000,
  postPath: "/api/events",
  seconds: 3,
};

export const delivery: Benchmark = {
  name: "delivery",
  floor: "a bare stream that passes each body on",
  async run(report) {
    await using floor = await startFloor();
    await using server = await startServer();
    const { floors, measured } = await alternate(
      ROUNDS,
      () => runJob(floor, { ...JOB, postPath: "/pass-on" }),
      () => runJob(server, JOB),
    );
    for (const percentile of ["p50", "p99"] as const)
      report.row({
        what: `${JOB.perSecond} events/s to ${JOB.subscribers} subscribers, ${percentile}`,
        unit: "ms",
        measured: measured.map((result) => result[percentile]),
        floor: floors.map((result) => result[percentile]),
        targets: percentile === "p99" ? [under(10)] : [],
        needs: "all",
      });
    report.note(`measured: ${busyText(measured)}; floor: ${busyText(floors)}`);
  },
};
