/**
 * Follows the event stream of a server from a cursor that is kept in a file. In a script of your own:
 *
 *     import { follow, openCursor } from "./follow.ts";
 *     const cursor = openCursor("./errors.cursor", { id: null, memory: {} });
 *     await follow({ server: "http://localhost:3001", cursor, receive(frames) {
 *       for (const { type, data } of frames) if (type === "session_error") console.log(data);
 *     } });
 *
 * Frames are events, named by their type, then the rows that they changed (`session`, `span`,
 * `session_deleted`), or `reset`: events before it are gone. Once `receive` has resolved, the cursor moves;
 * where it throws or is killed, it gets the same again. Rows of the latest 100 events come twice, too.
 */

import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";

const [FIRST_PAUSE_MS, MAX_PAUSE_MS] = [500, 60_000]; // doubled with each failure in a row; an error may have a longer `pauseMs`
const MAX_SILENCE_MS = 45_000; // the server says something every 15 s
const CLOSED = new Error("the server has closed the stream"); // told where it does so again: one that stops ends its followers, too
export type Frame = { type: string; data: Record<string, unknown> };
/** `id`: events up to it were received; null: none yet, and only new ones are wanted. 0: all that are stored. */
export type Place<Memory> = { id: number | null; memory: Memory };

/** The place kept in `file`; where there is none, `place`. What is in `memory`, JSON, is kept with it. */
export function openCursor<Memory>(file: string, place: Place<Memory>) {
  mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
  if (existsSync(file)) Object.assign(place, JSON.parse(readFileSync(file, "utf8")));
  const keep = () => {
    writeFileSync(`${file}.new`, JSON.stringify(place), { mode: 0o600, flush: true });
    renameSync(`${file}.new`, file);
  };
  keep(); // so that a file that can't be written is told at once
  return { place, keep };
}

export interface FollowOptions<Memory> {
  server: string;
  token?: string | undefined; // its AUTH_TOKEN
  cursor: { place: Place<Memory>; keep: () => void };
  receive: (frames: Frame[], place: Place<Memory>) => void | Promise<void>;
  log?: (message: string) => void; // told when it can't go on, and when it does
}

/** Follows until the process ends, whatever fails. */
export async function follow<Memory>(options: FollowOptions<Memory>): Promise<never> {
  const { server, token, cursor, receive, log = console.error } = options;
  const headers: Record<string, string> = token ? { Authorization: `Bearer ${token}` } : {};
  let problem = "";
  for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(MAX_PAUSE_MS, 2 * pauseMs)) {
    const openedAt = performance.now();
    const connection = new AbortController();
    const watch = setTimeout(() => connection.abort(), MAX_SILENCE_MS);
    try {
      const url = `${server}/api/events/stream?include=rows&lastEventId=${cursor.place.id ?? ""}`;
      const { status, body } = await fetch(url, { headers, signal: connection.signal });
      if (status !== 200 || body === null) throw new Error(`${server} answered ${status}`);
      for await (const { frames, id } of readPages(body)) {
        watch.refresh();
        if (frames.length > 0) await receive(frames, cursor.place);
        if (id === null) continue;
        cursor.place.id = id;
        cursor.keep();
        if (frames.length === 0) continue; // so begins each connection: what failed before may fail again
        if (problem !== "") log("goes on");
        [problem, pauseMs] = ["", FIRST_PAUSE_MS];
      }
      throw CLOSED;
    } catch (error) {
      clearTimeout(watch);
      connection.abort();
      if (performance.now() - openedAt > MAX_SILENCE_MS) pauseMs = FIRST_PAUSE_MS; // it held, though quiet
      const { message, pauseMs: wantedMs = 0 } = error as Error & { pauseMs?: number };
      const isNews = message !== problem && (error !== CLOSED || pauseMs > FIRST_PAUSE_MS);
      if (isNews) log(`${(problem = message)}; tries again`);
      await Bun.sleep(Math.max(pauseMs * (0.5 + Math.random()), wantedMs));
    }
  }
}

/** For each piece of the stream what it completes: pages of events with their rows, and up to which id they go. */
async function* readPages(body: ReadableStream<BufferSource>) {
  const page: Frame[] = [];
  let rest = "";
  for await (const piece of body.pipeThrough(new TextDecoderStream())) {
    const blocks = (rest + piece).split("\n\n");
    rest = blocks.pop() ?? "";
    const whole: { frames: Frame[]; id: number | null } = { frames: [], id: null };
    for (const block of blocks) {
      const [, id] = /^id: (\d+)$/m.exec(block) ?? [];
      const [, type, data] = /^event: (.+)\ndata: (.+)$/m.exec(block) ?? [];
      if (type && data) page.push({ type, data: JSON.parse(data) });
      if (id === undefined || (type !== undefined && type !== "reset")) continue;
      whole.frames.push(...page.splice(0)); // an id alone ends a page; a reset has its own
      whole.id = Number(id);
    }
    yield whole;
  }
}
