/**
 * Resident memory, as the system counts it: idle, and with 1,000 streams open.
 *
 *     bun run bench memory
 *
 * Floor: the bare stream server, doing the same: what Bun itself takes. That of ten million events
 * is measured where they are, in `history`.
 */

import { residentBytes } from "../helpers.ts";
import {
  type Benchmark,
  megabytes,
  openStreams,
  startFloor,
  startServer,
  type Target,
  under,
} from "./harness.ts";

const ROUNDS = 3;
const STREAMS: [count: number, target: Target][] = [
  [0, under(60)],
  [1_000, under(120)],
];
/** Until what a start leaves behind is collected, or would be. */
const SETTLE_MS = 1_000;

export const memory: Benchmark = {
  name: "memory",
  floor: "the bare stream server",
  async run(report) {
    for (const [count, target] of STREAMS)
      report.row({
        what: count === 0 ? "idle" : `${count.toLocaleString("en")} subscribers`,
        unit: "MB",
        measured: await residentMegabytes(startServer, count),
        floor: await residentMegabytes(startFloor, count),
        targets: [target],
        needs: "all",
      });
  },
};

async function residentMegabytes(start: typeof startFloor, streams: number): Promise<number[]> {
  const rounds: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    await using server = await start();
    using _ = await openStreams(server, streams);
    await Bun.sleep(SETTLE_MS);
    rounds.push(megabytes(residentBytes(server.pid)));
  }
  return rounds;
}
