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
 */

import {
  alternate,
  type Benchmark,
  busyText,
  type Endpoint,
  LOAD,
  median,
  ratioAtLeast,
  type Report,
  runClient,
  startFloor,
  startServer,
  under,
} from "./harness.ts";

const ROUNDS = 5;
const SECONDS = 1.5;
const CASES = [
  { connections: 64, sessions: 64, minRatio: 0.35 },
  { connections: 256, sessions: 64, minRatio: 0.5 },
  { connections: 256, sessions: 256, minRatio: 0.5 },
];

export const post: Benchmark = {
  name: "post",
  floor: "a bare Bun.serve route that parses the same JSON",
  async run(report) {
    await using floor = await startFloor();
    await using server = await startServer();
    for (const each of CASES) await measure(each, floor, server, report);
  },
};

async function measure(
  { connections, sessions, minRatio }: (typeof CASES)[number],
  floor: Endpoint,
  server: Endpoint,
  report: Report,
): Promise<void> {
  const job = { ...LOAD, connections, sessions, seconds: SECONDS };
  const load = async (process: Endpoint) => {
    const { results, ...busy } = await runClient(process, job);
    return { ...results[0], ...busy };
  };
  const { floors, measured } = await alternate(
    ROUNDS,
    () => load(floor),
    () => load(server),
  );
  const perSecond = measured.map((round) => round.perSecond);
  report.row({
    what: `single POST, ${connections} connections, ${sessions} sessions`,
    unit: "requests/s",
    measured: perSecond,
    floor: floors.map((round) => round.perSecond),
    targets: [ratioAtLeast(minRatio)],
    needs: "all",
  });
  report.note(`measured: ${busyText(measured)}; floor: ${busyText(floors)}`);

  const half = median(perSecond) / 2;
  const paced = async (process: Endpoint) =>
    (await runClient(process, { ...job, perSecond: half })).results[0];
  const latencies = await alternate(
    ROUNDS,
    () => paced(floor),
    () => paced(server),
  );
  report.row({
    what: `  p99 at ${Math.round(half)} requests/s`,
    unit: "ms",
    measured: latencies.measured.map((round) => round.p99),
    floor: latencies.floors.map((round) => round.p99),
    targets: [under(15)],
    needs: "all",
  });
}
