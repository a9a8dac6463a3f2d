/** What the feed shows: the latest events, held or not, and older ones, asked for page by page. */

import { PAGE_ROWS, findEvents } from "./api.ts";
import { type FeedFilter, type TelemetryEvent, matchesFilter, thingsOf } from "./events.ts";
import { type Rows, hasFailed, takeMarks } from "./rows.ts";

/** A feed with fewer is filled from the server at once: about a screen. */
const FULL_FEED_EVENTS = 50;
/** Older events that "Load older" keeps. */
const MAX_OLDER_EVENTS = 5_000;

/** @param seekSession an event is here, but not its session */
export function createHistory(
  rows: () => Rows,
  filter: () => FeedFilter,
  seekSession: (id: string) => void,
) {
  /** What the feed held when it was held; null: it moves. */
  let held: readonly TelemetryEvent[] | null = null;
  /** Older than what is in the rows, for the filter as it is; newest first. */
  let older: TelemetryEvent[] = [];
  let isOlderDone = false;

  /** Of all sessions not also what the lines of agents say, and what only tells of a new title. */
  function isMatch(event: TelemetryEvent): boolean {
    const wanted = filter();
    const isAll = wanted.type === null && wanted.sessionId === null && wanted.text === "";
    const { parent_session_id } = rows().sessions.get(event.session_id)?.row ?? {};
    const isAgents = parent_session_id != null && /^session_(start|end)$/.test(event.type);
    if (isAll && (isAgents || event.type === "session_update")) return false;
    return matchesFilter(event, wanted, (tested) => hasFailed(rows(), tested));
  }

  /** Not before its session is known; that of a deleted one never is. */
  function isKnown({ session_id }: TelemetryEvent): boolean {
    if (rows().sessions.has(session_id)) return true;
    seekSession(session_id);
    return false;
  }

  /** Of what is here, the things that the filter lets through, newest first. */
  function found() {
    const latest = held ?? rows().feed;
    const first = latest[0]?.id ?? Infinity;
    const events = [...latest.toReversed(), ...older.filter(({ id }) => id < first)].values();
    const shown = events.filter(isMatch).filter(isKnown);
    // A model's answer is told after the calls in it.
    return thingsOf(shown, filter().type === null).sort(([a], [b]) => b.at - a.at);
  }

  /** Where what is here isn't enough for `limit` lines, loads a page. */
  async function loadOlder(limit: number): Promise<void> {
    if (found().length >= limit || older.length >= MAX_OLDER_EVENTS) return;
    const [wanted, of] = [filter(), older];
    const { list: page, isIndexed } = await findEvents({
      before: older.at(-1)?.id ?? rows().feed[0]?.id ?? rows().head + 1,
      type: wanted.type === "failed" ? null : wanted.type,
      sessionId: wanted.sessionId,
      q: wanted.text || null,
    });
    if (older !== of) return; // of another filter, or another page has come meanwhile
    older = [...older, ...page];
    isOlderDone = page.length === 0 && isIndexed;
    takeMarks(rows(), page);
  }

  return {
    /** The filter is another, or the rows are. */
    reset(): void {
      held = null;
      older = [];
      isOlderDone = false;
    },
    /** @param isHeld nothing is to move: newer events are counted */
    page(limit: number, isHeld: boolean) {
      const { feed } = rows();
      held = isHeld ? (held ?? feed.slice()) : null;
      const since = held?.at(-1)?.id ?? (isHeld ? 0 : Infinity);
      const newer = feed.filter((event) => event.id > since && isMatch(event)).filter(isKnown);
      const things = found();
      return {
        things: things.slice(0, limit),
        hasOlder: things.length > limit || (!isOlderDone && older.length < MAX_OLDER_EVENTS),
        waiting: { count: newer.length, isMore: (feed[0]?.id ?? 0) > since },
      };
    },
    loadOlder,
    /** What is here may hold little of a narrow filter. */
    async fill(): Promise<void> {
      // What failed may be far apart; and only an empty page says that there is no more.
      const pages = filter().type === "failed" ? MAX_OLDER_EVENTS / PAGE_ROWS : 2;
      for (let page = pages; page > 0 && !isOlderDone; page--) await loadOlder(FULL_FEED_EVENTS);
    },
  };
}
