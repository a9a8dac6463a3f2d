/**
 * Batches of 100 events per POST.
 *
 *     bun run bench batch
 *
 * Floor: the bare INSERT loop of bare.ts, in transactions of as many events. The server joins the
 * batches that arrive together: so a second floor, in transactions of one batch per connection.
 */

import { openBareLoop } from "./bare.ts";
import {
  alternate,
  atLeast,
  type Benchmark,
  busyText,
  LOAD,
  ratioAtLeast,
  runJob,
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
    using joined = openBareLoop(BATCH_EVENTS * CONNECTIONS, CONNECTIONS);
    const { floors, measured } = await alternate(
      ROUNDS,
      async () => [bare.insertFor(SECONDS / 2), joined.insertFor(SECONDS / 2)] as const,
      async () => {
        const { perSecond, ...busy } = await runJob(server, {
          ...LOAD,
          connections: CONNECTIONS,
          sessions: CONNECTIONS,
          eventsPerPost: BATCH_EVENTS,
          seconds: SECONDS,
        });
        return { perSecond: perSecond * BATCH_EVENTS, ...busy };
      },
    );
    const perSecond = measured.map((round) => round.perSecond);
    report.row({
      what: `batches of ${BATCH_EVENTS}, ${CONNECTIONS} connections`,
      unit: "events/s",
      measured: perSecond,
      floor: floors.map(([separate]) => separate),
      targets: [atLeast(150_000), ratioAtLeast(0.6)],
      needs: "any",
    });
    report.row({
      what: `  against transactions of ${(BATCH_EVENTS * CONNECTIONS).toLocaleString("en")}`,
      unit: "events/s",
      measured: perSecond,
      floor: floors.map(([, together]) => together),
      targets: [],
      needs: "any",
    });
    report.note(`measured: ${busyText(measured)}`);
  },
};
