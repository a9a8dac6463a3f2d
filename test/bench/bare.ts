/**
 * What SQLite alone does: one prepared INSERT in a loop, into a database with the same tables and
 * indexes: the store's own file, made by the store and opened bare, with the same durability. Its
 * rows are ready before the clock starts: it receives, parses and checks nothing, and keeps neither
 * sessions nor counts. The server does all of that.
 */

import { Database } from "bun:sqlite";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { openStore, parseEvent } from "../../server.ts";
import { seededRandom } from "../fixtures.ts";
import { makeTempDir } from "../helpers.ts";
import { serialText, toolUse } from "./events.ts";
import { endable } from "./harness.ts";

/** @param events in one transaction, of `sessions` in turn */
export function openBareLoop(events: number, sessions: number) {
  const directory = makeTempDir();
  const store = openStore(directory);
  const ids = Array.from({ length: sessions }, (_, n) => `ses_bare_${n}`);
  store.append([
    ids.map((session_id) => parseEvent({ type: "session_start", session_id }, Date.now())),
  ]);
  store.close();
  const db = new Database(join(directory, "observability.db"), { strict: true });
  for (const setting of ["synchronous = FULL", "foreign_keys = ON", "wal_autocheckpoint = 1600"])
    db.run(`PRAGMA ${setting}`); // as the server's
  const insert = db.query<unknown, (string | number | boolean | null)[]>(
    `INSERT INTO events (client_id, session_id, type, timestamp, name, call_id, duration_ms, failed, data)
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
  );
  const random = seededRandom(1);
  let serial = 0;

  /** One batch as the store gets it. */
  function makeBatch() {
    return Array.from({ length: events }, () =>
      parseEvent(
        toolUse(ids[serial % sessions] ?? "", "floor", serialText(serial++), Date.now(), random),
        Date.now(),
      ),
    );
  }
  const insertBatch = db.transaction((batch: ReturnType<typeof makeBatch>) => {
    for (const event of batch)
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
      let inserted = 0;
      while (spent < seconds * 1_000) {
        const batch = makeBatch();
        const start = performance.now();
        insertBatch.immediate(batch);
        spent += performance.now() - start;
        inserted += batch.length;
      }
      return (inserted * 1_000) / spent;
    },
    [Symbol.dispose]: endable(() => {
      db.close();
      rmSync(directory, { recursive: true, force: true });
    }),
  };
}
