/**
 * A client that comes back after 100,000 missed events, and what others feel of it.
 *
 *     bun run bench resume
 *
 * Floor: a bare loop that reads the same rows from the same file, a page at a time, and does
 * nothing with them: neither frames nor a socket. Fair as a limit of what any server on this log
 * could send. The others' requests are timed in the same client process, at a steady rate, while
 * one stream after the other resumes, and without any.
 */

import { Database } from "bun:sqlite";
import { join } from "node:path";
import { generatedStore } from "./generate.ts";
import {
  alternate,
  atLeast,
  type Benchmark,
  busyText,
  median,
  PROBE,
  runClient,
  runJob,
  startServer,
  under,
} from "./harness.ts";

const EVENTS = 100_000;
const ROUNDS = 3;
/** In one client process, one after the other, so that the probe has time. */
const STREAMS = 10;
const PAGE_ROWS = 500;

export const resume: Benchmark = {
  name: "resume",
  floor:
    "a bare loop that reads the same rows in pages; for the latency: the same, nobody resuming",
  async run(report) {
    const directory = await generatedStore(EVENTS, report.note);
    const readRates = Array.from({ length: ROUNDS * STREAMS }, () => readAll(directory));
    await using server = await startServer(directory);
    const { floors, measured } = await alternate(
      ROUNDS,
      () => runJob(server, { ...PROBE, seconds: 2 }),
      () =>
        runClient(
          server,
          {
            kind: "resume",
            path: "/api/events/stream?lastEventId=0",
            events: EVENTS,
            rounds: STREAMS,
          },
          PROBE,
        ),
    );
    report.row({
      what: `resume of ${EVENTS.toLocaleString("en")} events`,
      unit: "events/s",
      measured: measured.map(({ results }) => median(results[0].perSecond)),
      floor: readRates,
      targets: [atLeast(500_000)],
      needs: "all",
    });
    report.row({
      what: "  other requests meanwhile, p99",
      unit: "ms",
      measured: measured.map(({ results }) => results[1].p99),
      floor: floors.map((result) => result.p99),
      targets: [under(20)],
      needs: "all",
    });
    report.note(busyText(measured));
  },
};

/** Events per second. */
function readAll(directory: string): number {
  using db = new Database(join(directory, "observability.db"), { readonly: true });
  const select = db.query<{ id: number }, [number, number]>(
    `SELECT id, type, session_id, timestamp, duration_ms, data
     FROM events
     WHERE id > ?
     ORDER BY id
     LIMIT ?`,
  );
  const start = performance.now();
  let rows = 0;
  let after = 0;
  for (;;) {
    const page = select.all(after, PAGE_ROWS);
    rows += page.length;
    after = page.at(-1)?.id ?? after;
    if (page.length < PAGE_ROWS) return (rows * 1_000) / (performance.now() - start);
  }
}
