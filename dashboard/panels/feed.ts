/** The live feed: what happened, a line for each thing, newest first; filtered, and held while one reads. */

import { hashOf, sessionHref } from "../address.ts";
import { PAGE_ROWS, byId, createEnd, setText } from "../dom.ts";
import {
  EVENT_LABELS,
  EVENT_TYPES,
  type FeedFilter,
  NO_FILTER,
  type Thing,
  argsSummary,
  filterOf,
  keyOfThing,
  mergedThing,
  prettyJson,
  wordsOf,
} from "../events.ts";
import type { createHistory } from "../history.ts";
import { formatCount, formatDuration, shortId } from "../format.ts";
import { type Rows, barOf, hasFailed, isRunning, labelOf } from "../rows.ts";
import { type Line, createLines } from "./line.ts";

/** Scrolled further than this, the feed stays where it is. */
const HELD_PX = 8;

/** @param loadOlder so that there are as many lines */
export function createFeed(
  history: ReturnType<typeof createHistory>,
  filterChanged: (filter: FeedFilter) => void,
  loadOlder: (limit: number) => void,
  changed: () => void,
) {
  const scroll = byId("feed-scroll", HTMLDivElement);
  const type = byId("feed-type", HTMLSelectElement);
  const text = byId("feed-text", HTMLInputElement);
  const end = createEnd(scroll, "No event matches.", "Load older", () => loadOlder(end.limit));
  const showLines = createLines(byId("feed-list", HTMLOListElement), changed);
  let filter = NO_FILTER;

  type.append(new Option("All events", ""), new Option("Failures", "failed"));
  for (const eventType of EVENT_TYPES) type.append(new Option(EVENT_LABELS[eventType], eventType));
  for (const control of [type, text])
    control.addEventListener("input", () => filterChanged(filterOf(type.value, text.value.trim())));
  scroll.addEventListener("scrollend", changed);

  return {
    showFilter(wanted: FeedFilter): void {
      filter = wanted;
      end.limit = PAGE_ROWS;
      type.value = filter.type ?? "";
      if (text.value.trim() !== filter.text) text.value = filter.text;
    },
    /** @param isOfOne on a session's page: of that one alone */
    show(rows: Rows, isOfOne: boolean, now: number): void {
      const isHeld = scroll.scrollTop > HELD_PX; // nothing moves while the person reads
      const { things, waiting, hasOlder } = history.page(end.limit, isHeld);
      showLines(things.map((thing) => lineOf(rows, thing, isOfOne ? filter : null, now)));
      const count = `${formatCount(waiting.count)}${waiting.isMore ? "+" : ""}`;
      setText("feed-note", waiting.count > 0 ? `${count} new` : "");
      end.show(things.length, hasOlder);
    },
  };
}

/** @param filter of a session's page, on which its bar is selected; null: of all sessions */
export function lineOf(rows: Rows, thing: Thing, filter: FeedFilter | null, now: number): Line {
  const [{ id, session_id, at }] = thing;
  const owner = rows.sessions.get(session_id);
  const label = owner === undefined ? shortId(session_id) : labelOf(owner);
  const directory = owner?.row.info.directory;
  const { type, fields } = mergedThing(thing);
  const span = thing.map((event) => barOf(rows, event)).find((found) => found !== undefined);
  const text = argsSummary(span?.row.text); // of a call that began before what is here
  const isOpen = span !== undefined && isRunning(rows, span);
  const length = isOpen ? now - span.start : fields.duration_ms;
  const time = typeof length === "number" ? formatDuration(length) : "";
  const spanId = span?.row.id ?? null;
  const place = filter === null ? {} : ({ filter, tab: "events" } as const);
  return {
    ...wordsOf({ type, fields: { args: text, description: text, ...fields } }, directory),
    key: keyOfThing(thing),
    at,
    now,
    length: isOpen ? `runs ${time}` : time,
    isFailed: thing.some((event) => hasFailed(rows, event)),
    href: hashOf({ sessionId: session_id, spanId, ...place }),
    ...(filter === null && { session: { label, href: sessionHref(session_id) } }),
    detail: async () => thing.map((event) => prettyJson(event.fields)).join("\n"),
    version: `${id} ${thing.length}`,
  };
}
