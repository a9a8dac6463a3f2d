/** Fills the replica from the GET routes: at first, with what is older, and with what a page needs. */

import { getEvents, getSessions, getSpans } from "./api.ts";
import { CALL_KINDS } from "./events.ts";
import {
  type Rows,
  MAX_SPANS,
  createRows,
  deleteSession,
  isWhole,
  takeFeed,
  takeSession,
  takeSpan,
  takeSpanPage,
} from "./rows.ts";

/** Room that loading older spans leaves for new ones. */
const MAX_LOADED_SPANS = MAX_SPANS * 0.8;
/** Sessions below the open one whose spans are asked for, the latest: each is a request or two. */
const MAX_LOADED_FAMILY = 200;

type Answer = Awaited<ReturnType<typeof getSessions>>;

function takeSessions(rows: Rows, { list, version }: Answer): void {
  for (const row of list) takeSession(rows, row, version);
}

/** All anew. The stream goes on from `head` of what it returns. */
export async function loadRows(): Promise<Rows> {
  const rows = createRows();
  const latest = await getSessions({});
  rows.head = latest.version;
  // Those that wait or go on may be behind all that the list of the latest holds.
  const [waiting, active, spans, open, events] = await Promise.all([
    getSessions({ status: "waiting" }),
    getSessions({ status: "active" }),
    getSpans({}),
    getSpans({ open: 1 }),
    getEvents({ before: rows.head + 1 }),
  ]);
  for (const answer of [latest, waiting, active]) takeSessions(rows, answer);
  takeSpanPage(rows, spans.list, spans.version);
  for (const row of open.list) takeSpan(rows, row, open.version);
  takeFeed(rows, events);
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
  rows.pinned = new Set([id, ...answer.list.map((row) => row.id)]);
  takeSessions(rows, answer);
  const isThere = answer.list.some((row) => row.id === id);
  if (!isThere) deleteSession(rows, id, answer.version);
  return isThere;
}

/** A session of which an event or a span is here, but not its row: it is asked for once. */
export async function seekSession(rows: Rows, id: string): Promise<void> {
  if (rows.asked.has(id) || rows.deleted.has(id)) return;
  rows.asked.add(id);
  const answer = await getSessions({ sessionId: id });
  rows.asked.delete(id); // where it was forgotten, it can be asked for again
  takeSessions(rows, answer);
  if (!rows.sessions.has(id)) deleteSession(rows, id, answer.version);
}

/** One page more of the spans of all sessions. */
export async function loadOlderSpans(rows: Rows): Promise<void> {
  if (rows.oldestSpanId === 0 || rows.spans.size > MAX_LOADED_SPANS) return;
  const { list, version } = await getSpans({ before: rows.oldestSpanId });
  takeSpanPage(rows, list, version);
}

/** One page more of the spans of a session. @returns how many there were */
export async function loadSpansOf(rows: Rows, sessionId: string): Promise<number> {
  const { list, version } = await getSpans({ sessionId, before: rows.cursors.get(sessionId) });
  for (const row of list) takeSpan(rows, row, version);
  rows.cursors.set(sessionId, list.at(-1)?.id ?? 0);
  return list.length;
}

/** Pages of spans that are looked through for the one of an event. */
const MAX_SOUGHT_PAGES = 10;

/**
 * Loads the span that an event of a call belongs to: that of its first event, so as many spans back as
 * have begun meanwhile. @returns the span's id; `eventId` where it is that of a span, or of no call
 */
export async function seekSpan(rows: Rows, sessionId: string, eventId: number): Promise<number> {
  const seek = { sessionId, after: eventId - 1, limit: 1 };
  const [event] = rows.spans.has(eventId) ? [] : await getEvents(seek);
  const kind = event?.id === eventId ? CALL_KINDS[event.type] : undefined;
  const callId = event?.fields.call_id;
  let before = eventId + 1;
  for (let page = 0; kind !== undefined && page < MAX_SOUGHT_PAGES && before > 0; page++) {
    const { list, version } = await getSpans({ sessionId, before });
    for (const row of list) takeSpan(rows, row, version);
    const found = list.find(
      (row) => row.id === eventId || (row.kind === kind && row.call_id === callId),
    );
    if (found !== undefined) return found.id;
    before = list.at(-1)?.id ?? 0;
  }
  return eventId;
}

/** The spans of a session and of those below it, until all or many are here. @param isWanted false: enough */
export async function loadFamilySpans(
  rows: Rows,
  id: string,
  family: ReadonlySet<string>,
  isWanted: () => boolean,
): Promise<void> {
  let room = MAX_LOADED_SPANS;
  const others = [...family]
    .map((member) => rows.sessions.get(member))
    .filter((entry) => entry !== undefined && entry.row.id !== id)
    .sort((a, b) => (b?.lastEventAt ?? 0) - (a?.lastEventAt ?? 0))
    .slice(0, MAX_LOADED_FAMILY);
  for (const entry of [rows.sessions.get(id), ...others])
    while (entry !== undefined && room > 0 && isWanted() && !isWhole(rows, entry))
      room -= await loadSpansOf(rows, entry.row.id);
}
