/**
 * Messages to a phone or a desktop by ntfy (https://ntfy.sh, or a server of yours): an agent has waited for
 * the person for NOTIFY_AFTER seconds (20), a session has failed, all agents of a session are done.
 * `bun start` runs it where NOTIFY_URL is set; alone, also on another machine:
 *
 *     NOTIFY_URL=https://ntfy.sh/my-secret-topic bun follow/ntfy.ts http://localhost:3001
 *
 * A user and password, or a token as password, stand in the URL: https://:tk_…@ntfy.example.com/topic
 *
 * One message for one cause. What is to be sent is kept in the cursor's file until ntfy has it. Should that
 * be known only to ntfy, it is sent again with the same `sequence_id`: from ntfy 2.16 on one notification.
 */

import type { Session, Span } from "../server.ts";
import { follow, type Frame, openCursor } from "./follow.ts";
import { isRun, send, settings, tryLater, variable } from "./settings.ts";

const TICK_MS = 1_000; // how late a message may be
const REQUEST_TIMEOUT_MS = 10_000;
const MAX_PAUSE_MS = 60_000; // between two tries: doubles up to it
const MAX_OUTBOX = 100; // messages that wait for ntfy: the oldest go
const MAX_TITLE_CHARS = 200;
const MAX_MESSAGE_CHARS = 1_000; // of more than 4,096 bytes ntfy makes an attachment
const HIGH = 4; // of ntfy's priorities, 1 to 5
const DEFAULT = 3;

type Message = { title: string; message: string; priority: number; tags: string[]; click: string };
type Wait = { session_id: string; title: string; question: string; since: number; isTold: boolean };

const NO_MEMORY = {
  outbox: [] as (Message & { sequence_id: string })[],
  waits: {} as Record<string, Wait>, // that are open, by the id of their span; `since`: milliseconds
  failed: {} as Record<string, true>, // the sessions whose failure in this turn was told
  agents: {} as Record<string, number>, // how many agents a session had when they were done
};
const keyOf = (sessionId: string) => `s${sessionId}`; // no name that every object has
const sequenceId = (...cause: unknown[]) =>
  new Bun.CryptoHasher("sha256").update(JSON.stringify(cause)).digest("hex").slice(0, 32);

function titleOf({ id, info }: Session): string {
  const { title, directory } = info;
  if (typeof title === "string" && title.trim() !== "") return title;
  return (typeof directory === "string" && /[^\\/]+(?=[\\/]*$)/.exec(directory)?.[0]) || id;
}

/** An error as it was posted: a text, or an object with one. */
function errorText(error: unknown): string | null {
  if (typeof error === "string") return error;
  if (typeof error !== "object" || error === null) return null;
  const { message, data, name }: Record<string, unknown> = { ...error };
  return errorText(message) ?? errorText(data) ?? errorText(name);
}

/** Where a message goes: ntfy takes JSON at its root, with the topic in it. */
function readTarget(notifyUrl: string) {
  const { origin, pathname, username, password } = new URL(notifyUrl);
  const [, root = "", topic = ""] = /^(.*\/)([^/]+)\/*$/.exec(pathname) ?? [];
  const user = [username, password].map(decodeURIComponent).join(":");
  const headers: Record<string, string> =
    user === ":" ? {} : { Authorization: `Basic ${btoa(user)}` };
  return { url: origin + root, topic, headers };
}

async function run(notifyUrl: string, afterMs: number): Promise<never> {
  const target = readTarget(notifyUrl);
  const { server, token, file, log } = settings("ntfy", target.url);
  const cursor = openCursor(file, { id: null, memory: NO_MEMORY }); // at first only what is new
  const { memory } = cursor.place;
  const hrefOf = (id: string) => `${server}/#/session/${encodeURIComponent(id)}`;

  async function ask<Answer>(path: string): Promise<Answer> {
    const headers: Record<string, string> = token ? { Authorization: `Bearer ${token}` } : {};
    const signal = AbortSignal.timeout(REQUEST_TIMEOUT_MS);
    const response = await fetch(server + path, { headers, signal });
    if (!response.ok) throw new Error(`${server} answered ${response.status}`);
    return response.json();
  }

  function tell(sequence_id: string, { title, message, ...rest }: Message): void {
    memory.outbox.push({
      title: title.slice(0, MAX_TITLE_CHARS).toWellFormed(),
      message: message.slice(0, MAX_MESSAGE_CHARS).toWellFormed(),
      ...rest,
      sequence_id,
    });
    memory.outbox.splice(0, memory.outbox.length - MAX_OUTBOX);
  }

  /** Sessions whose turn has just ended, with no agent of theirs at work, and at least one that is new. */
  async function findDone(ended: Iterable<Session>): Promise<Session[]> {
    const done: Session[] = [];
    for (const session of ended) {
      const known = memory.agents[keyOf(session.id)] ?? 0;
      if (session.status !== "completed" || session.agent_count <= known) continue;
      const path = `/api/sessions?limit=1000&sessionId=${encodeURIComponent(session.id)}`;
      const { sessions } = await ask<{ sessions: Session[] }>(path);
      if (sessions.every(({ status }) => status !== "active")) done.push(session);
    }
    return done;
  }

  /** Why the model of a session failed last: its session_end doesn't say it. */
  async function findError(sessionId: string): Promise<string> {
    const path = `/api/spans?limit=20&sessionId=${encodeURIComponent(sessionId)}`;
    const { spans } = await ask<{ spans: Span[] }>(path);
    const failed = spans.find(({ kind, outcome }) => kind === "model" && outcome === "failed");
    return failed?.error ?? "It ended with an error.";
  }

  async function receive(frames: Frame[]): Promise<void> {
    const sessions = new Map<string, Session>();
    for (const { type, data } of frames)
      if (type === "session") sessions.set(String(data.id), data as unknown as Session);
    const rootOf = (id: string, seen: string[] = []): Session | undefined => {
      const session = sessions.get(id);
      const parent = session?.parent_session_id;
      if (parent == null || !sessions.has(parent) || seen.includes(parent)) return session;
      return rootOf(parent, [...seen, id]);
    };
    // An agent's failure is its parent's to deal with.
    const isFailure = ({ type, data }: Frame) =>
      (type === "session_error" || (type === "session_end" && data.reason === "error")) &&
      sessions.get(String(data.session_id))?.parent_session_id === null;
    const ends = frames.filter(({ type }) => type === "session_end");
    const roots = new Set(ends.flatMap(({ data }) => rootOf(String(data.session_id)) ?? []));

    // What the server has to be asked comes first: from here to the end all is done, or nothing.
    const done = await findDone(roots);
    const errors = new Map<Frame, string>();
    for (const frame of frames.filter(isFailure)) {
      const { session_id, error } = frame.data;
      errors.set(frame, errorText(error) ?? (await findError(String(session_id))));
    }

    for (const frame of frames) {
      const { type, data } = frame;
      if (type === "span") takeSpan(data as unknown as Span, sessions);
      const id = String(data.session_id);
      const error = errors.get(frame);
      const session = sessions.get(id);
      if (error !== undefined && session && !memory.failed[keyOf(id)]) {
        const title = `Failed: ${titleOf(session)}`;
        const message = { title, message: error, priority: HIGH, tags: ["x"], click: hrefOf(id) };
        tell(sequenceId("failed", data.id), message);
        memory.failed[keyOf(id)] = true;
      }
      if (type === "session_end" || type === "turn_start") delete memory.failed[keyOf(id)];
      if (type === "session_deleted") forget(id);
      if (type === "reset") log(`some messages may be missing: ${data.reason}`);
    }
    for (const session of done) {
      const { id, agent_count, ended_at, info } = session;
      const count = agent_count - (memory.agents[keyOf(id)] ?? 0);
      memory.agents[keyOf(id)] = agent_count;
      if (info.reason === "error" || info.reason === "interrupted") continue; // was told, or is known
      const message = `${count === 1 ? "Its agent is" : `All ${count} agents are`} done.`;
      const title = `Done: ${titleOf(session)}`;
      const tags = ["white_check_mark"];
      tell(sequenceId("done", id, ended_at), {
        title,
        message,
        priority: DEFAULT,
        tags,
        click: hrefOf(id),
      });
    }
  }

  function takeSpan(span: Span, sessions: Map<string, Session>): void {
    const { id, kind, name, text, session_id, started_at, ended_at } = span;
    const session = sessions.get(session_id);
    if (kind !== "wait" || session === undefined) return;
    if (ended_at !== null) {
      delete memory.waits[id];
      memory.outbox = memory.outbox.filter((it) => it.sequence_id !== sequenceId("waits", id));
    } else
      memory.waits[id] ??= {
        ...{ session_id, title: titleOf(session), question: text ?? name },
        ...{ since: Date.parse(started_at), isTold: false },
      };
  }

  function forget(sessionId: string): void {
    delete memory.failed[keyOf(sessionId)];
    delete memory.agents[keyOf(sessionId)];
    for (const id in memory.waits)
      if (memory.waits[id]?.session_id === sessionId) delete memory.waits[id];
  }

  /** Puts into the outbox who has waited for too long, and still does. */
  async function tellWaits(): Promise<void> {
    for (const [id, wait] of Object.entries(memory.waits)) {
      const { session_id, title, question, since, isTold } = wait;
      if (isTold || Date.now() < since + afterMs) continue;
      const path = `/api/spans?open=1&limit=1000&sessionId=${encodeURIComponent(session_id)}`;
      const { spans } = await ask<{ spans: Span[] }>(path);
      if (memory.waits[id] === undefined) continue; // answered meanwhile
      if (spans.some((span) => String(span.id) === id)) {
        wait.isTold = true;
        const tags = ["hourglass_flowing_sand"];
        const click = hrefOf(session_id);
        const message = { title: `Waits for you: ${title}`, message: question, priority: HIGH };
        tell(sequenceId("waits", Number(id)), { ...message, tags, click });
      } else delete memory.waits[id];
      cursor.keep();
    }
  }

  async function sendNext(): Promise<boolean> {
    const [message] = memory.outbox;
    if (message === undefined) return false;
    const response = await send(target.url, {
      method: "POST",
      headers: { ...target.headers, "Content-Type": "application/json" },
      body: JSON.stringify({ topic: target.topic, ...message }),
      signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS),
    });
    const { status, ok } = response;
    const answer = await response.text();
    const isRefused = status >= 400 && status < 500 && status !== 429;
    if (isRefused) log(`${status}: a message was refused: ${answer.slice(0, 200)}`);
    else if (!ok) throw tryLater(response, answer);
    memory.outbox = memory.outbox.filter((it) => it.sequence_id !== message.sequence_id);
    cursor.keep();
    return true;
  }

  async function work(): Promise<never> {
    let problem = "";
    for (let pauseMs = TICK_MS; ; await Bun.sleep(pauseMs))
      try {
        await tellWaits();
        while (await sendNext());
        problem = "";
        pauseMs = TICK_MS;
      } catch (error) {
        const { message, pauseMs: wantedMs = 0 } = error as Error & { pauseMs?: number };
        if (message !== problem) log(`${message}; tries again`);
        problem = message;
        pauseMs = Math.max(wantedMs, Math.min(MAX_PAUSE_MS, 2 * pauseMs));
      }
  }
  const [never] = await Promise.all([follow({ server, token, cursor, log, receive }), work()]);
  return never;
}

if (isRun(import.meta.main))
  await run(variable("NOTIFY_URL"), 1_000 * Number(variable("NOTIFY_AFTER")));
