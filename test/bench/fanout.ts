/**
 * Batches to many subscribers, all of them in one client process.
 *
 *     bun run bench fanout
 *
 * Floor: a bare stream server that enqueues the same bytes, encoded once and shared, to the same
 * subscribers; it neither parses, stores nor encodes. Fair, because both are driven by the same
 * client in the same way: the next batch is posted when no more than a few are on their way, and
 * what counts is what has arrived. The events are the smallest that are documented: a tool's name
 * and duration.
 */

import { residentBytes } from "../helpers.ts";
import type { FanoutJob } from "./client.ts";
import {
  alternate,
  atLeast,
  type Benchmark,
  busyText,
  median,
  megabytes,
  ratioAtLeast,
  runJob,
  startFloor,
  startServer,
} from "./harness.ts";

const ROUNDS = 5;
const JOB: FanoutJob = {
  kind: "fanout",
  subscribers: 1_000,
  eventsPerPost: 100,
  postPath: "/api/events",
  seconds: 2,
};

export const fanout: Benchmark = {
  name: "fanout",
  floor: "a bare stream that sends the same bytes, one shared chunk per batch",
  async run(report) {
    await using floor = await startFloor();
    await using server = await startServer();
    const { floors, measured } = await alternate(
      ROUNDS,
      () => runJob(floor, { ...JOB, postPath: "/publish" }),
      () => runJob(server, JOB),
    );
    report.row({
      what: `${JOB.subscribers} subscribers, batches of ${JOB.eventsPerPost}`,
      unit: "deliveries/s",
      measured: measured.map((result) => result.perSecond),
      floor: floors.map((result) => result.perSecond),
      targets: [ratioAtLeast(0.7), atLeast(3_000_000)],
      needs: "all",
    });
    const frameBytes = median(measured.map((result) => result.frameBytes));
    report.note(
      `frames of ${Math.round(frameBytes)} bytes; measured: ${busyText(measured)}; floor: ${busyText(floors)}`,
    );
    report.note(`the server's memory afterwards: ${megabytes(residentBytes(server.pid))} MB`);
  },
};
