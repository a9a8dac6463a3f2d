/**
 * Batches of 100 events per POST.
 *
 *     bun run bench batch
 *
 * Floor: one prepared INSERT in a loop, in transactions of as many events, into a database with
 * the same tables and indexes: the store's own file, made by the store and opened bare, with the
 * same durability. Its rows are ready before the clock starts: it receives, parses and checks
 * nothing, and keeps no counts. The server does all of that.
 */

import { Database } from "bun:sqlite";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { openStore, parseEvent } from "../../server.ts";
import { seededRandom } from "../fixtures.ts";
import { makeTempDir } from "../helpers.ts";
import { pick, serialText, toolUse } from "./events.ts";
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
    using bare = openBareLoop();
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

function openBareLoop() {
  const directory = makeTempDir();
  const store = openStore(directory);
  const sessions = Array.from({ length: CONNECTIONS }, (_, n) => `ses_${n}`);
  store.append([
    sessions.map((session_id) => parseEvent({ type: "session_start", session_id }, Date.now())),
  ]);
  store.close();
  const db = new Database(join(directory, "observability.db"), { strict: true });
  db.run("PRAGMA synchronous = FULL");
  db.run("PRAGMA foreign_keys = ON");
  const insert = db.query<unknown, (string | number | boolean | null)[]>(
    `INSERT INTO events (client_id, session_id, type, timestamp, name, call_id, duration_ms, failed, data)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
  );
  const random = seededRandom(1);
  let serial = 0;

  /** One batch as the store gets it. */
  function makeBatch() {
    return Array.from({ length: BATCH_EVENTS }, () =>
      parseEvent(
        toolUse(pick(sessions, random), "floor", serialText(serial++), Date.now(), random),
        Date.now(),
      ),
    );
  }
  const insertBatch = db.transaction((events: ReturnType<typeof makeBatch>) => {
    for (const event of events)
      insert.run(
        event.client_id,
        event.session_id,
        event.type,
        event.timestamp,
        event.name,
        event.call_id,
        event.duration_ms,
        event.failed,
        event.data,
      );
  });
  return {
    /** Events per second of inserting; what making them takes isn't counted. */
    insertFor(seconds: number): number {
      let spent = 0;
      let events = 0;
      while (spent < seconds * 1_000) {
        const batch = makeBatch();
        const start = performance.now();
        insertBatch.immediate(batch);
        spent += performance.now() - start;
        events += batch.length;
      }
      return (events * 1_000) / spent;
    },
    [Symbol.dispose]() {
      db.close();
      rmSync(directory, { recursive: true, force: true });
    },
  };
}
