/**
 * Batches of 100 events per POST.
 *
 *     bun run bench batch
 *
 * Floor: the bare INSERT loop of bare.ts, in transactions of as many events.
 */

import { openBareLoop } from "./bare.ts";
import {
  alternate,
  atLeast,
  type Benchmark,
  busyText,
  LOAD,
  ratioAtLeast,
  runClient,
  startServer,
} from "./harness.ts";

const ROUNDS = 5;
const BATCH_EVENTS = 100;
const CONNECTIONS = 16;
const SECONDS = 2;

export const batch: Benchmark = {
  name: "batch",
  floor: "a bare INSERT loop into the same tables, in transactions of as many",
  async run(report) {
    await using server = await startServer();
    using bare = openBareLoop(BATCH_EVENTS, CONNECTIONS);
    const { floors, measured } = await alternate(
      ROUNDS,
      async () => bare.insertFor(SECONDS),
      async () => {
        const { results, ...busy } = await runClient(server, {
          ...LOAD,
          connections: CONNECTIONS,
          sessions: CONNECTIONS,
          eventsPerPost: BATCH_EVENTS,
          seconds: SECONDS,
        });
        return { perSecond: results[0].perSecond * BATCH_EVENTS, ...busy };
      },
    );
    report.row({
      what: `batches of ${BATCH_EVENTS}, ${CONNECTIONS} connections`,
      unit: "events/s",
      measured: measured.map((round) => round.perSecond),
      floor: floors,
      targets: [atLeast(150_000), ratioAtLeast(0.6)],
      needs: "any",
    });
    report.note(`measured: ${busyText(measured)}`);
  },
};
