/**
 * The connection to the event stream: opened, paused by the person, let go of by a hidden page, opened
 * again after a failure, and shared with the other tabs of the browser (see tabs.ts).
 */

import { EVENT_TYPES } from "./events.ts";
import type { Connection } from "./panels/header.ts";
import type { Frame } from "./rows.ts";
import { createTabs } from "./tabs.ts";

const FIRST_RETRY_SECONDS = 1;
const MAX_RETRY_SECONDS = 15;
const ROW_TYPES = ["session", "span", "session_deleted"];

interface StreamOptions {
  /** Loads what the stream goes on from. @returns the id of its newest event; null: it was loaded before, or isn't wanted */
  load: (isWanted: () => boolean) => Promise<number | null>;
  received: (frame: Frame) => void;
  /** The stream is open, or open again. */
  opened: () => void;
  /** What is there can't be continued: `load` has to load it anew. */
  reset: () => void;
  show: (connection: Connection) => void;
}

/**
 * Where the stream goes on after it was cut: before the last batch, because the rows that follow the
 * events of a batch may not all have come. Its events, come twice, change nothing.
 */
export function createCursor(head: number) {
  let resumeFrom = head;
  /** The latest event of which a row has come. */
  let rowsOf = head;
  return {
    resumeFrom: () => resumeFrom,
    take({ type, id }: Pick<Frame, "type" | "id">): void {
      if (id > rowsOf) resumeFrom = rowsOf;
      if (ROW_TYPES.includes(type)) rowsOf = Math.max(rowsOf, id);
    },
  };
}

export function createStream({ load, received, opened, reset, show }: StreamOptions) {
  let source: EventSource | null = null;
  let isPausedByPerson = false;
  let retrySeconds = FIRST_RETRY_SECONDS;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let cursor = createCursor(0);
  /** A follower's is its leader's. */
  let connection: Connection = { state: "connecting" };
  /** Where the stream began (0: it hasn't), and what came of it that the other tabs haven't heard. */
  let from = 0;
  const frames: Frame[] = [];
  let attempts = 0;
  /** What was heard since the page began to load; null: it is loaded. */
  let backlog: Said[] | null = null;
  /** Something came that this tab hasn't heard: until it leads, it takes nothing. */
  let isBehind = false;

  /** What a leader says: how it stands to the server, and each frame once. */
  const say = () => ({ connection, from, frames: frames.splice(0) });
  type Said = ReturnType<typeof say>;
  const tabs = createTabs(lead, follow, hear, say);

  const isOff = () => document.hidden || isPausedByPerson;

  function tell(next: Connection): void {
    const isOpened = next.state === "live" && connection.state !== "live";
    connection = next;
    show(connection);
    tabs.send();
    if (isOpened) opened();
  }

  async function connect(): Promise<void> {
    clearTimeout(timer);
    if (isOff()) return;
    const attempt = ++attempts;
    const isWanted = () => attempt === attempts;
    backlog = [];
    tabs.join(); // before it loads: what comes after that is heard
    try {
      const head = await load(isWanted);
      if (!isWanted()) return;
      if (head !== null) cursor = createCursor(head);
      const heard = backlog;
      backlog = null;
      if (tabs.leads()) open();
      else if (head === null) catchUp();
      else heard.forEach(hear);
    } catch (error) {
      const isToldWhy = error instanceof Error && !(error instanceof TypeError);
      if (isWanted()) retry(isToldWhy ? error.message : null);
    }
  }

  function lead(): void {
    isBehind = false;
    if (backlog === null) open();
  }

  function follow(): void {
    close();
    if (backlog === null) clearTimeout(timer);
  }

  function catchUp(): void {
    isBehind = true;
    tabs.takeLock();
  }

  function hear(said: Said): void {
    if (isBehind) return;
    if (backlog !== null) return void backlog.push(said);
    if (said.from > cursor.resumeFrom()) return catchUp();
    tell(said.connection);
    said.frames.forEach(take);
  }

  function take(frame: Frame): void {
    if (frame.type === "reset") {
      close();
      reset();
      return void connect();
    }
    cursor.take(frame);
    received(frame);
  }

  function open(): void {
    close();
    tabs.send(); // what came of the stream before
    from = cursor.resumeFrom();
    tabs.send();
    source = new EventSource(`/api/events/stream?include=rows&lastEventId=${from}`);
    const receive = ({ type, data, lastEventId }: MessageEvent<string>) => {
      const frame = { type, data, id: Number(lastEventId) };
      // Those that come together go together.
      if (frames.push(frame) === 1) setTimeout(tabs.send);
      take(frame);
    };
    for (const type of ["reset", ...ROW_TYPES, ...EVENT_TYPES])
      source.addEventListener(type, receive);
    source.addEventListener("open", () => {
      retrySeconds = FIRST_RETRY_SECONDS;
      tell({ state: "live" });
    });
    source.addEventListener("error", () => {
      close();
      retry(null);
    });
  }

  function close(): void {
    source?.close();
    source = null;
  }

  /** The browser would come back by itself, but can't say when. */
  function retry(reason: string | null): void {
    countDown(retrySeconds, reason);
    retrySeconds = Math.min(MAX_RETRY_SECONDS, 2 * retrySeconds);
  }

  function countDown(seconds: number, reason: string | null): void {
    clearTimeout(timer);
    if (seconds > 0) {
      tell({ state: "waiting", seconds, reason });
      timer = setTimeout(countDown, 1_000, seconds - 1, reason);
    } else {
      tell({ state: "connecting" });
      void connect();
    }
  }

  /** Takes up the stream again, or lets go of it: the page was hidden or shown, paused or resumed. */
  function resumeOrPause(): void {
    if (!isOff()) return countDown(0, null);
    clearTimeout(timer);
    attempts++;
    isBehind = false;
    close();
    tabs.leave();
    tell({ state: "paused" });
  }

  document.addEventListener("visibilitychange", resumeOrPause);
  addEventListener("online", () => tabs.leads() && source === null && void connect());

  return {
    start: resumeOrPause,
    isOpen: () => connection.state === "live",
    /** The person's button: pauses or resumes; while it counts down, tries at once. */
    toggle(): void {
      if (connection.state === "waiting") {
        retrySeconds = FIRST_RETRY_SECONDS;
        return void connect();
      }
      isPausedByPerson = !isPausedByPerson;
      resumeOrPause();
    },
  };
}
