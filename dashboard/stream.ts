/**
 * The connection to the event stream: opened, paused by the person, let go of by a hidden page
 * (because a browser allows only six connections to a server), and opened again after a failure.
 */

import { ServerError } from "./api.ts";
import { EVENT_TYPES } from "./events.ts";
import type { Connection } from "./panels/header.ts";
import type { Frame } from "./rows.ts";

const FIRST_RETRY_MS = 1_000;
const MAX_RETRY_MS = 15_000;
const ROW_TYPES = ["session", "span", "session_deleted"];

export interface StreamOptions {
  /** Loads what the stream goes on from. @returns the id of its newest event; null: it was loaded before */
  load: () => Promise<number | null>;
  received: (frame: Frame) => void;
  /** The stream is open, or open again. */
  opened: () => void;
  /** What is there can't be continued: `load` has to load it anew. */
  reset: () => void;
  show: (connection: Connection) => void;
  /** What the server says is wrong; null: it doesn't answer, or all is well. */
  notify: (problem: string | null) => void;
}

/**
 * Where the stream goes on after it was cut: before the last batch, because the rows that follow the
 * events of a batch may not all have come. Its events, come twice, change nothing.
 */
export function createCursor(head: number) {
  let resumeFrom = head;
  let lastId = head;
  let hasRows = false;
  return {
    resumeFrom: () => resumeFrom,
    take({ type, id }: Pick<Frame, "type" | "id">): void {
      if (id > lastId) {
        if (hasRows) resumeFrom = lastId;
        hasRows = false;
        lastId = id;
      }
      hasRows ||= ROW_TYPES.includes(type);
    },
  };
}

export function createStream(options: StreamOptions) {
  const { load, received, opened, reset, show, notify } = options;
  let source: EventSource | null = null;
  let isPausedByPerson = false;
  let retryMs = FIRST_RETRY_MS;
  let retryTimer: ReturnType<typeof setTimeout> | undefined;
  let cursor = createCursor(0);

  const isOff = () => document.hidden || isPausedByPerson;

  async function connect(): Promise<void> {
    clearTimeout(retryTimer);
    if (isOff()) return;
    try {
      const head = await load();
      if (head !== null) cursor = createCursor(head);
      if (!isOff()) open();
    } catch (error) {
      retry(error instanceof ServerError ? error.message : null);
    }
  }

  function open(): void {
    source?.close();
    const stream = new EventSource(
      `/api/events/stream?include=rows&lastEventId=${cursor.resumeFrom()}`,
    );
    source = stream;
    const receive = ({ type, data, lastEventId }: MessageEvent<string>) => {
      const frame = { type, data, id: Number(lastEventId) };
      cursor.take(frame);
      received(frame);
    };
    for (const type of [...ROW_TYPES, ...EVENT_TYPES]) stream.addEventListener(type, receive);
    stream.addEventListener("reset", () => {
      close();
      reset();
      void connect();
    });
    stream.addEventListener("open", () => {
      retryMs = FIRST_RETRY_MS;
      show({ state: "live" });
      notify(null);
      opened();
    });
    stream.addEventListener("error", () => {
      if (source !== stream) return;
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
    const at = performance.now() + retryMs;
    retryMs = Math.min(MAX_RETRY_MS, retryMs * 2);
    notify(reason);
    const count = () => {
      const leftMs = at - performance.now();
      if (leftMs <= 0) {
        show({ state: "connecting" });
        void connect();
        return;
      }
      show({ state: "waiting", seconds: Math.ceil(leftMs / 1_000), reason });
      retryTimer = setTimeout(count, Math.min(1_000, Math.max(1, leftMs)));
    };
    clearTimeout(retryTimer);
    count();
  }

  /** Takes up the stream again, or lets go of it: the page was hidden or shown, paused or resumed. */
  function resumeOrPause(): void {
    if (isOff()) {
      clearTimeout(retryTimer);
      close();
      show({ state: "paused" });
    } else {
      show({ state: "connecting" });
      void connect();
    }
  }

  document.addEventListener("visibilitychange", resumeOrPause);
  addEventListener("online", () => source === null && void connect());

  return {
    start: resumeOrPause,
    isOpen: () => source !== null,
    /** The person's button: pauses or resumes; while it counts down, tries at once. */
    toggle(): void {
      if (source === null && !isPausedByPerson) {
        retryMs = FIRST_RETRY_MS;
        void connect();
        return;
      }
      isPausedByPerson = !isPausedByPerson;
      resumeOrPause();
    },
  };
}
