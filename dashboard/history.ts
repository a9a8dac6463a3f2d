/** What the feed shows: the latest events, held or not, and older ones, asked for page by page. */

import { PAGE_ROWS, findEvents } from "./api.ts";
import { type FeedFilter, type TelemetryEvent, createThings, matchesFilter } from "./events.ts";
import { type Rows, hasFailed, takeMarks } from "./rows.ts";

/** A feed with fewer is filled from the server at once: about a screen. */
const FULL_FEED_EVENTS = 50;
/** Older events that "Load older" keeps. */
const MAX_OLDER_EVENTS = 5_000;

export interface HistoryOptions {
  rows: () => Rows;
  /** As it is set; on a session's page the feed is its own. */
  filter: () => FeedFilter;
  /** An event is here, but not its session. */
  seekSession: (id: string) => void;
}

export function createHistory({ rows, filter, seekSession }: HistoryOptions) {
  /** What the feed held when it was held; null: it moves. */
  let held: { events: readonly TelemetryEvent[]; head: number } | null = null;
  /** Older than what is in the rows, for the filter as it is; newest first. */
  let older: TelemetryEvent[] = [];
  let isOlderDone = false;

  /** Of all sessions not also what the lines of agents say, and what only tells of a new title. */
  function isMatch(event: TelemetryEvent, wanted: FeedFilter): boolean {
    const isAll = wanted.type === null && wanted.sessionId === null && wanted.text === "";
    const { parent_session_id } = rows().sessions.get(event.session_id)?.row ?? {};
    const isAgents = parent_session_id != null && /^session_(start|end)$/.test(event.type);
    if (isAll && (isAgents || event.type === "session_update")) return false;
    return matchesFilter(event, wanted, (tested) => hasFailed(rows(), tested));
  }

  /** Of what is here, the things that the filter lets through: newest first, at most `limit`. */
  function found(limit: number) {
    const wanted = filter();
    const { sessions, feed } = rows();
    const latest = held?.events ?? feed;
    const first = latest[0]?.id ?? Infinity;
    const { things, add } = createThings(wanted.type === null);
    for (const event of [...latest.toReversed(), ...older.filter(({ id }) => id < first)]) {
      if (things.length >= limit) break;
      if (!isMatch(event, wanted)) continue;
      // Not before its session is known; that of a deleted one never is.
      if (sessions.has(event.session_id)) add(event);
      else seekSession(event.session_id);
    }
    // A model's answer is told after the calls in it.
    return things.sort(([a], [b]) => b.at - a.at);
  }

  async function loadPage(): Promise<void> {
    const wanted = filter();
    const { feed, head } = rows();
    const { events: page, isIndexed } = await findEvents({
      before: older.at(-1)?.id ?? feed[0]?.id ?? head + 1,
      type: wanted.type === "failed" ? null : wanted.type,
      sessionId: wanted.sessionId,
      q: `${wanted.text} ${wanted.tool}`.trim() || null,
    });
    if (JSON.stringify(wanted) !== JSON.stringify(filter())) return;
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
      const { feed, head, sessions } = rows();
      if (!isHeld) held = null;
      else held ??= { events: feed.slice(), head };
      const things = found(limit + 1);
      const since = held?.head ?? Infinity;
      const wanted = filter();
      const isNewer = (event: TelemetryEvent) =>
        event.id > since && sessions.has(event.session_id) && isMatch(event, wanted);
      return {
        things: things.slice(0, limit),
        hasOlder: things.length > limit || (!isOlderDone && older.length < MAX_OLDER_EVENTS),
        waiting: { count: feed.filter(isNewer).length, isMore: (feed[0]?.id ?? 0) > since },
      };
    },
    /** Where what is here isn't enough for `limit` lines, loads a page. */
    async loadOlder(limit: number): Promise<void> {
      if (found(limit).length < limit && older.length < MAX_OLDER_EVENTS) await loadPage();
    },
    /** What is here may hold little of a narrow filter. */
    async fill(): Promise<void> {
      // What failed may be far apart; and only an empty page says that there is no more.
      const pages = filter().type === "failed" ? MAX_OLDER_EVENTS / PAGE_ROWS : 2;
      for (let page = pages; page > 0 && !isOlderDone; page--)
        await this.loadOlder(FULL_FEED_EVENTS);
    },
  };
}
