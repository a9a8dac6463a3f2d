/**
 * Single-event POSTs over keep-alive connections, each that of one agent.
 *
 *     bun run bench post
 *
 * Floor: a bare Bun.serve route that parses the same body with req.json() and answers JSON with
 * the same status. Fair, because both are processes of their own, get the same requests from the
 * same client, and take turns: medians of ROUNDS rounds of each. The server does all that it does
 * by default: it commits with synchronous=FULL before it answers. The latency is that of an open
 * loop at half of the measured load: timed from when a request was due, not from when it was sent.
 *
 * A second floor says how far the server could come at all, being one thread: the time of a request
 * on the bare route and that of an event in the bare INSERT loop of bare.ts, added up; the loop's
 * transactions have one event per connection, which is what a batch has at best. A commit writes a
 * page of the index on session_id for each session in it: hence the cases with fewer sessions.
 *
 * And the crowd: agents that post one event a second each, all on connections of their own. It
 * needs `ulimit -n` above 10,000.
 */

import { openBareLoop } from "./bare.ts";
import {
  alternate,
  type Benchmark,
  busyText,
  type Endpoint,
  LOAD,
  median,
  ratioAtLeast,
  type Report,
  runJob,
  startFloor,
  startServer,
  under,
} from "./harness.ts";

const ROUNDS = 5;
const SECONDS = 1.5;
const CASES = [
  { connections: 64, sessions: 64, targets: [ratioAtLeast(0.35)] },
  { connections: 64, sessions: 1, targets: [] },
  { connections: 256, sessions: 256, targets: [ratioAtLeast(0.5)] },
  { connections: 256, sessions: 64, targets: [] },
];
const BARE_SECONDS = 1;
const CROWD = 10_000;

export const post: Benchmark = {
  name: "post",
  floor: "a bare Bun.serve route that parses the same JSON",
  async run(report) {
    await using floor = await startFloor();
    await using server = await startServer();
    for (const each of CASES) await measure(each, floor, server, report);
    await measureCrowd(floor, server, report);
  },
};

async function measure(
  { connections, sessions, targets }: (typeof CASES)[number],
  floor: Endpoint,
  server: Endpoint,
  report: Report,
): Promise<void> {
  const job = { ...LOAD, connections, sessions, seconds: SECONDS };
  const { floors, measured } = await alternate(
    ROUNDS,
    () => runJob(floor, job),
    () => runJob(server, job),
  );
  const perSecond = measured.map((round) => round.perSecond);
  report.row({
    what: `single POST, ${connections} connections, sessions: ${sessions}`,
    unit: "requests/s",
    measured: perSecond,
    floor: floors.map((round) => round.perSecond),
    targets,
    needs: "all",
  });
  report.note(`measured: ${busyText(measured)}; floor: ${busyText(floors)}`);

  const half = median(perSecond) / 2;
  const paced = { ...job, perSecond: half };
  const latencies = await alternate(
    ROUNDS,
    () => runJob(floor, paced),
    () => runJob(server, paced),
  );
  report.row({
    what: `  p99 at ${Math.round(half)} requests/s`,
    unit: "ms",
    measured: latencies.measured.map((round) => round.p99),
    floor: latencies.floors.map((round) => round.p99),
    targets: [under(15)],
    needs: "all",
  });

  using bare = openBareLoop(connections, sessions);
  const insertTimes = Array.from({ length: ROUNDS }, () => 1 / bare.insertFor(BARE_SECONDS));
  report.row({
    what: "  against that route plus a bare INSERT",
    unit: "requests/s",
    measured: perSecond,
    floor: floors.map((round) => 1 / (1 / round.perSecond + median(insertTimes))),
    targets: [],
    needs: "all",
  });
}

async function measureCrowd(floor: Endpoint, server: Endpoint, report: Report): Promise<void> {
  const job = { ...LOAD, connections: CROWD, sessions: CROWD, perSecond: CROWD, seconds: SECONDS };
  const { floors, measured } = await alternate(
    ROUNDS,
    () => runJob(floor, job),
    () => runJob(server, job),
  );
  report.row({
    what: `${CROWD.toLocaleString("en")} agents, one event a second each, p99`,
    unit: "ms",
    measured: measured.map((round) => round.p99),
    floor: floors.map((round) => round.p99),
    targets: [],
    needs: "all",
  });
  report.note(`measured: ${busyText(measured)}; floor: ${busyText(floors)}`);
}
