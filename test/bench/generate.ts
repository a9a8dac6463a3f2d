/**
 * A database of many events in many sessions, made through the store's own `append`, and kept in
 * the system's temporary directory for the next run.
 *
 *     bun test/bench/generate.ts 10000000      makes it, and prints where it is
 *
 * The events of LIVE_SESSIONS sessions overlap at any time; they end at the time of generation and
 * spread over a week before it. About 500 make a session; one, LARGE_SESSION, has 20,000.
 */

import { Database } from "bun:sqlite";
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openStore, parseEvent, type TelemetryEvent } from "../../server.ts";
import { type PostedEvent, seededRandom } from "../fixtures.ts";
import { makeTempDir } from "../helpers.ts";
import { agentComplete, agentSpawn, modelResponse, serialText, toolUse } from "./events.ts";
import { megabytes } from "./harness.ts";

export const LARGE_SESSION = "ses_large";
export const LARGE_SESSION_EVENTS = 20_000;
/** The large session has one in so many of the newest events. */
const LARGE_ONE_IN = 4;

const SPAN_MS = 168 * 60 * 60 * 1_000;
const SESSION_EVENTS = 500;
const LIVE_SESSIONS = 100;
const EVENTS_PER_TRANSACTION = 5_000;
/** Of one step of the text index, which the server takes in the pauses. */
const INDEX_MS = 33;
const SEED = 1;
/** Older than this, too much of it would lie outside of the windows that are measured. */
const MAX_AGE_MS = 6 * 60 * 60 * 1_000;
const PREFIX = "made";
/** Of the events of a session: subagents' starts, and as many completions. */
const SPAWN_SHARE = 0.03;
/** Of the events of a session: what models took. */
const MODEL_SHARE = 0.1;
const CACHE = join(tmpdir(), "bench-of-pai-observability");

interface LiveSession {
  id: string;
  sent: number;
  size: number;
  /** Subagents that were spawned and are not complete. */
  calls: string[];
}

/** Events in the order of time; the newest is of `until`, in milliseconds. */
function* generateEvents(count: number, until: number): Generator<PostedEvent> {
  const random = seededRandom(SEED);
  const live: LiveSession[] = [];
  let sessions = 0;
  const openSession = (): LiveSession => ({
    id: `ses_${serialText(sessions++)}`,
    sent: 0,
    size: Math.round(SESSION_EVENTS * (0.5 + random())),
    calls: [],
  });
  for (let left = count - 1; left >= 0; left--) {
    const timestamp = Math.round(until - (SPAN_MS * left) / count);
    const serial = serialText(left);
    if (left < LARGE_SESSION_EVENTS * LARGE_ONE_IN && left % LARGE_ONE_IN === 0) {
      yield toolUse(LARGE_SESSION, PREFIX, serial, timestamp, random);
      continue;
    }
    const slot = Math.floor(random() * LIVE_SESSIONS);
    const session = (live[slot] ??= openSession());
    yield nextEvent(session, serial, timestamp, random);
    if (session.sent === session.size) delete live[slot];
  }
}

/** Starts, works, now and then with subagents, and ends. */
function nextEvent(
  session: LiveSession,
  serial: string,
  timestamp: number,
  random: () => number,
): PostedEvent {
  const { id, sent, size, calls } = session;
  session.sent++;
  if (sent === 0)
    return {
      id: `${id}:session_start`,
      type: "session_start",
      session_id: id,
      timestamp,
      data: {
        title: `Session ${id}`,
        directory: `/home/dev/project${id.slice(-1)}`,
        model: "a-model",
      },
    };
  if (sent === size - 1)
    return { id: `${id}:session_end`, type: "session_end", session_id: id, timestamp };
  const chance = random();
  if (chance < SPAWN_SHARE) {
    const call = `call_${serial}`;
    calls.push(call);
    return agentSpawn(id, call, timestamp, random);
  }
  const call = chance < 2 * SPAWN_SHARE ? calls.shift() : undefined;
  if (call !== undefined) return agentComplete(id, call, timestamp, random);
  if (chance > 1 - MODEL_SHARE) return modelResponse(id, `model_${serial}`, timestamp, random);
  return toolUse(id, PREFIX, serial, timestamp, random);
}

/** Another schema, or another generator, makes another database. */
async function cacheKey(): Promise<string> {
  const directory = makeTempDir();
  openStore(directory).close();
  using db = new Database(join(directory, "observability.db"));
  const schema = [
    "SELECT sql FROM sqlite_schema",
    "PRAGMA user_version",
    "PRAGMA application_id",
  ].map((sql) => db.query(sql).values());
  rmSync(directory, { recursive: true });
  const sources = [import.meta.path, join(import.meta.dir, "events.ts")];
  const texts = await Promise.all(sources.map((path) => Bun.file(path).text()));
  return Bun.hash(JSON.stringify([...schema, texts])).toString(36);
}

/** @returns the data directory of a database with `count` events, made now or by an earlier run */
export async function generatedStore(count: number, note: (text: string) => void): Promise<string> {
  const directory = join(CACHE, `${count}-${await cacheKey()}`);
  if (isFresh(directory)) return directory;
  mkdirSync(CACHE, { recursive: true });
  for (const name of readdirSync(CACHE))
    if (name.startsWith(`${count}-`)) rmSync(join(CACHE, name), { recursive: true });

  const unfinished = `${directory}.unfinished`;
  const start = performance.now();
  const store = openStore(unfinished);
  const now = Date.now();
  let events: TelemetryEvent[] = [];
  for (const event of generateEvents(count, now)) {
    events.push(parseEvent(event, now));
    if (events.length < EVENTS_PER_TRANSACTION) continue;
    store.append([events]);
    events = [];
  }
  store.append([events]);
  const indexStart = performance.now();
  while (store.indexedTo() !== undefined) store.index(INDEX_MS);
  const indexSeconds = (performance.now() - indexStart) / 1_000;
  const { bytes } = store.size();
  store.close();
  renameSync(unfinished, directory);
  const seconds = (performance.now() - start) / 1_000;
  note(
    `made ${count.toLocaleString("en")} events in ${seconds.toFixed(0)} s: ${megabytes(bytes).toLocaleString("en")} MB; ` +
      `of these seconds ${indexSeconds.toFixed(0)} for the text index, ${indexShare(directory)} % of the file`,
  );
  return directory;
}

/** How much of the file is the text index. */
function indexShare(directory: string): string {
  using db = new Database(join(directory, "observability.db"));
  const [bytes] = db
    .query(
      `SELECT 100.0 * TOTAL(pgsize) FILTER (WHERE name LIKE 'search%') / TOTAL(pgsize) FROM dbstat`,
    )
    .values()[0] as [number];
  return bytes.toFixed(1);
}

function isFresh(directory: string): boolean {
  const path = join(directory, "observability.db");
  if (!existsSync(path)) return false;
  using db = new Database(path);
  const row = db
    .query<{ newest: number | null }, []>("SELECT MAX(last_event_at) AS newest FROM sessions")
    .get();
  return Date.now() - (row?.newest ?? 0) < MAX_AGE_MS;
}

if (import.meta.main)
  console.log(await generatedStore(Number(process.argv[2] ?? 10_000_000), console.error));
