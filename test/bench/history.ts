/**
 * Ten million events in twenty thousand sessions: what reading costs, held against the same with
 * a hundred thousand.
 *
 *     bun run bench history            10,000,000 events
 *     bun run bench history 2000000    as many
 *
 * Floor: the same server with the same requests on the small database. The two take turns, each a
 * process of its own; both files are in the system's cache, as they are where somebody looks.
 * Both databases come from one seeded generator, and span the same week. At the start the server
 * checks a small file as a whole, a large one not: the floor has that in it.
 */

import { residentBytes } from "../helpers.ts";
import { generatedStore, LARGE_SESSION, LARGE_SESSION_EVENTS } from "./generate.ts";
import {
  alternate,
  type Benchmark,
  type Endpoint,
  LOAD,
  megabytes,
  PROBE,
  ratioUnder,
  type Report,
  runClient,
  runJob,
  startServer,
  timeStart,
  under,
} from "./harness.ts";

const EVENTS = 10_000_000;
const SMALL_EVENTS = 100_000;
const ROUNDS = 3;
const SECONDS = 1.5;
/** Until what the answers left behind is collected. */
const SETTLE_MS = 3_000;

const READS = {
  "tools, 24 h": "/api/analytics/tools?hours=24",
  "tools, 168 h": "/api/analytics/tools?hours=168",
  "agents, 24 h": "/api/analytics/agents?hours=24",
  "agents, 168 h": "/api/analytics/agents?hours=168",
  "session list, 100": "/api/sessions?limit=100",
  "activity, 24 h": "/api/analytics/activity?hours=24",
  "activity, 168 h": "/api/analytics/activity?hours=168",
  "models, 168 h": "/api/analytics/models?hours=168",
  "spend, 30 days, by directory": "/api/analytics/spend?by=directory",
  "search: a frequent word": "/api/events?q=bash",
  "search: a missing word": "/api/events?q=nowhere",
  "search: two frequent words that never meet": "/api/events?q=webfetch%20todowrite",
};

export const history: Benchmark = {
  name: "history",
  floor: `the same with ${SMALL_EVENTS.toLocaleString("en")} events`,
  async run(report, size = EVENTS) {
    const small = await generatedStore(SMALL_EVENTS, report.note);
    const large = await generatedStore(size, report.note);
    const starts = await alternate(
      ROUNDS,
      () => timeStart(small),
      () => timeStart(large),
    );
    report.row({
      what: `${size.toLocaleString("en")} events: start to the first answer`,
      unit: "ms",
      measured: starts.measured,
      floor: starts.floors,
      targets: [under(300)],
      needs: "all",
    });
    await using floor = await startServer(small);
    await using server = await startServer(large);
    for (const [what, path] of Object.entries(READS))
      await compare(`${what}, p99`, path, floor, server, report);
    await compare("/health, p99", "/health", floor, server, report);
    await readLarge(floor, server, report);
    const peak = megabytes(residentBytes(server.pid));
    await Bun.sleep(SETTLE_MS);
    report.row({
      what: "memory after all of these",
      unit: "MB",
      measured: [megabytes(residentBytes(server.pid))],
      floor: [megabytes(residentBytes(floor.pid))],
      targets: [under(150)],
      needs: "all",
    });
    report.note(`memory right after the last answer: ${peak} MB`);
  },
};

async function compare(
  what: string,
  path: string,
  floor: Endpoint,
  server: Endpoint,
  report: Report,
): Promise<void> {
  const p99 = async (process: Endpoint) =>
    (await runJob(process, { ...LOAD, get: path, seconds: SECONDS })).p99;
  const { floors, measured } = await alternate(
    ROUNDS,
    () => p99(floor),
    () => p99(server),
  );
  report.row({
    what,
    unit: "ms",
    measured: measured,
    floor: floors,
    targets: [under(10), ratioUnder(2)],
    needs: "all",
  });
}

async function readLarge(floor: Endpoint, server: Endpoint, report: Report): Promise<void> {
  const details = { ...LOAD, get: `/api/sessions/${LARGE_SESSION}`, seconds: SECONDS };
  const round = async (process: Endpoint) => (await runClient(process, details, PROBE)).results;
  const { floors, measured } = await alternate(
    ROUNDS,
    () => round(floor),
    () => round(server),
  );
  report.row({
    what: `session of ${LARGE_SESSION_EVENTS.toLocaleString("en")} events, median`,
    unit: "ms",
    measured: measured.map(([session]) => session.p50),
    floor: floors.map(([session]) => session.p50),
    targets: [under(100)],
    needs: "all",
  });
  report.row({
    what: "  other requests meanwhile, p99",
    unit: "ms",
    measured: measured.map(([, others]) => others.p99),
    floor: floors.map(([, others]) => others.p99),
    targets: [under(50)],
    needs: "all",
  });
}
