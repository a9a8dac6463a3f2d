/** Fills the replica from the GET routes: at first, with what is older, and with what a page needs. */

import type { Session, Span } from "../server.ts";
import { type Answer, findEvents, getEvents, getSessions, getSpans } from "./api.ts";
import {
  type Rows,
  MAX_SPANS,
  barOf,
  createRows,
  deleteSession,
  isWhole,
  takeMarks,
  takeSession,
  takeSpan,
  takeSpanPage,
} from "./rows.ts";

/** Asked for at first, so that the page is soon open: the feed's first lines, and the calls of the last minutes. */
const FIRST_EVENTS = 200;
const FIRST_SPANS = 400;
/** Room that loading older spans leaves for new ones. */
const MAX_LOADED_SPANS = MAX_SPANS * 0.8;

function takeSessions(rows: Rows, { list, version }: Answer<Session>): void {
  for (const row of list) takeSession(rows, row, version);
}

function takeSpans(rows: Rows, { list, version }: Answer<Span>): void {
  for (const row of list) takeSpan(rows, row, version);
}

/** All anew. The stream goes on from `head` of what it returns. */
export async function loadRows(): Promise<Rows> {
  const rows = createRows();
  const [history, spans, open, ...sessions] = await Promise.all([
    findEvents({ limit: FIRST_EVENTS }),
    getSpans({ limit: FIRST_SPANS }),
    getSpans({ open: 1 }),
    getSessions({}),
    // Those that wait or go on may be behind all that the list of the latest holds.
    getSessions({ status: "waiting" }),
    getSessions({ status: "active" }),
  ]);
  // What came while they were answered is in some of them: the stream brings it to the others.
  rows.head = Math.min(...[history, spans, open, ...sessions].map(({ version }) => version));
  for (const answer of sessions) takeSessions(rows, answer);
  takeSpanPage(rows, spans.list, spans.version);
  takeSpans(rows, open);
  rows.feed = history.list.filter(({ id }) => id <= rows.head).reverse();
  takeMarks(rows, rows.feed);
  return rows;
}

/** Those that go on, and the latest, for a page without a stream. */
export async function refreshSessions(rows: Rows): Promise<void> {
  const answers = [getSessions({ status: "active" }), getSessions({ limit: 100 })];
  for (const answer of await Promise.all(answers)) takeSessions(rows, answer);
}

/** A session and all below it. @returns whether the server has it */
export async function loadFamily(rows: Rows, id: string): Promise<boolean> {
  const answer = await getSessions({ sessionId: id });
  const isOpen = rows.family.has(id); // else the person has left it meanwhile
  if (isOpen) for (const row of answer.list) rows.family.add(row.id);
  takeSessions(rows, answer);
  const isThere = answer.list.some((row) => row.id === id);
  if (!isThere) deleteSession(rows, id, answer.version);
  return isThere;
}

/** One page more of the spans of all sessions. */
export async function loadOlderSpans(rows: Rows): Promise<void> {
  if (rows.oldestSpanId === 0 || rows.spans.size > MAX_LOADED_SPANS) return;
  const { list, version } = await getSpans({ before: rows.oldestSpanId });
  takeSpanPage(rows, list, version);
}

/** One page more of the spans of a session. @returns how many there were */
export async function loadSpansOf(rows: Rows, sessionId: string): Promise<number> {
  const answer = await getSpans({ sessionId, before: rows.cursors.get(sessionId) });
  takeSpans(rows, answer);
  rows.cursors.set(sessionId, answer.list.at(-1)?.id ?? 0);
  return answer.list.length;
}

/** The spans of the open session and of those below it, until all or many are here, or none is wanted. */
export async function loadFamilySpans(rows: Rows, isWanted: () => boolean): Promise<void> {
  let room = MAX_LOADED_SPANS;
  const entries = [...rows.family].flatMap((id) => rows.sessions.get(id) ?? []);
  for (const entry of entries)
    while (room > 0 && isWanted() && !isWhole(rows, entry))
      room -= await loadSpansOf(rows, entry.row.id);
}

/**
 * Loads the span that an event belongs to, which has the id of the first event of its call: so as many
 * spans back as have begun meanwhile. @returns its id; `eventId` where it is that, or there is none
 */
export async function seekSpan(rows: Rows, sessionId: string, eventId: number): Promise<number> {
  if (rows.spans.has(eventId)) return eventId;
  const [[event], answer] = await Promise.all([
    getEvents({ sessionId, after: eventId - 1, limit: 1 }),
    getSpans({ sessionId, before: eventId + 1 }),
  ]);
  takeSpans(rows, answer);
  const span = event?.id === eventId ? barOf(rows, event) : undefined;
  return span?.row.id ?? eventId;
}
