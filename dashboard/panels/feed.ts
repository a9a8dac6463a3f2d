/** The live feed: what happened, a line for each thing, newest first, filtered, held and opened. */

import { hashOf, sessionHref } from "../address.ts";
import { PAGE_ROWS, byId, createEnd, setAttribute, setText, shown } from "../dom.ts";
import {
  EVENT_LABELS,
  EVENT_TYPES,
  type FeedFilter,
  NO_FILTER,
  type Thing,
  isEventType,
  keyOfThing,
  mergedThing,
  prettyJson,
  wordsOf,
} from "../events.ts";
import { formatCount, formatDuration, shortId } from "../format.ts";
import { type Rows, type SessionEntry, barOf, hasFailed, isRunning, labelOf } from "../rows.ts";
import { type Line, createLines } from "./line.ts";

/** Scrolled further than this, the feed stays where it is. */
const HELD_PX = 8;
/** Names that the field of the tool offers: a list of thousands would stop the page. */
const MAX_OFFERED_NAMES = 500;

interface FeedPage {
  things: readonly Thing[];
  /** How many newer ones there are, and whether there may be more. */
  waiting: { count: number; isMore: boolean };
  /** The server has more. */
  hasOlder: boolean;
}

export interface FeedOptions {
  filterChanged: (filter: FeedFilter) => void;
  loadOlder: () => void;
  changed: () => void;
}

export function createFeed({ filterChanged, loadOlder, changed }: FeedOptions) {
  const scroll = byId("feed-scroll", HTMLDivElement);
  const pause = byId("feed-pause", HTMLButtonElement);
  const type = byId("feed-type", HTMLSelectElement);
  const tool = byId("feed-tool", HTMLInputElement);
  const session = byId("feed-session", HTMLSelectElement);
  const text = byId("feed-text", HTMLInputElement);
  const end = createEnd(scroll, loadOlder);
  const toolNames = byId("tool-names", HTMLDataListElement);
  let isPaused = false;
  let offered = "";
  let shownFilter = NO_FILTER;
  /** On a session's page: of that one alone. */
  let isOfOne = false;
  /** As of the last scroll event: reading it from the element would ask for a layout. */
  let scrollTop = 0;

  const open = { keys: new Set<string | number>(), changed };
  const showLines = createLines(byId("feed-list", HTMLOListElement), open);
  for (const eventType of EVENT_TYPES) type.append(new Option(EVENT_LABELS[eventType], eventType));
  for (const control of [type, tool, session, text])
    control.addEventListener("input", () =>
      filterChanged({
        type: type.value === "failed" || isEventType(type.value) ? type.value : null,
        tool: tool.value.trim(),
        sessionId: session.value || null,
        text: text.value.trim(),
      }),
    );
  pause.addEventListener("click", () => {
    isPaused = !isPaused;
    if (!isPaused) scroll.scrollTop = 0;
    changed();
  });
  scroll.addEventListener("scroll", () => {
    const wasHeld = scrollTop > HELD_PX;
    scrollTop = scroll.scrollTop;
    if (wasHeld !== scrollTop > HELD_PX) changed();
  });

  return {
    /** Nothing moves while the person has paused it, or reads further down. */
    isHeld: () => isPaused || scrollTop > HELD_PX,
    limit: () => end.limit,
    /** Puts `filter` into the controls. @param sessions to choose from */
    showFilter(
      filter: FeedFilter,
      sessions: readonly SessionEntry[],
      isSessionPage: boolean,
    ): void {
      end.limit = PAGE_ROWS;
      shownFilter = filter;
      type.value = filter.type ?? "";
      if (tool.value.trim() !== filter.tool) tool.value = filter.tool;
      if (text.value.trim() !== filter.text) text.value = filter.text;
      isOfOne = isSessionPage;
      session.hidden = isSessionPage;
      const labels = new Map([["", "All sessions"]]);
      for (const entry of sessions) labels.set(entry.row.id, labelOf(entry));
      const id = filter.sessionId ?? "";
      if (!labels.has(id)) labels.set(id, shortId(id));
      session.replaceChildren(...[...labels].map(([of, label]) => new Option(shown(label), of)));
      session.value = id;
    },
    /** @param names most used first */
    offerToolNames(names: readonly string[]): void {
      const isOffered = (name: string) => shown(name) === name;
      const next = names.filter(isOffered).slice(0, MAX_OFFERED_NAMES).sort();
      if (next.join("\n") === offered) return;
      offered = next.join("\n");
      toolNames.replaceChildren(...next.map((name) => new Option(name, name)));
    },
    show(rows: Rows, { things, waiting, hasOlder }: FeedPage, now: number): void {
      showLines(things.map((thing) => lineOf(rows, thing, shownFilter, isOfOne, now)));
      setAttribute(pause, "aria-pressed", isPaused);
      setText(pause, isPaused ? "Resume" : "Pause");
      const count = `${formatCount(waiting.count)}${waiting.isMore ? "+" : ""}`;
      setText("feed-note", waiting.count > 0 ? `${count} new` : isPaused ? "Paused" : "");
      end.show(things.length, hasOlder);
    },
  };
}

function lineOf(rows: Rows, thing: Thing, filter: FeedFilter, isOfOne: boolean, now: number): Line {
  const [{ id, session_id, at }] = thing;
  const owner = rows.sessions.get(session_id);
  const merged = mergedThing(thing);
  const span = thing.map((event) => barOf(rows, event)).find((found) => found !== undefined);
  const { duration_ms } = merged.fields;
  const text = span?.row.text; // of a call that began before what is here
  const sofar = span !== undefined && isRunning(rows, span) ? now - span.start : null;
  const length = sofar ?? (typeof duration_ms === "number" ? duration_ms : null);
  const label = owner === undefined ? shortId(session_id) : labelOf(owner);
  return {
    ...wordsOf({ ...merged, fields: { args: text, description: text, ...merged.fields } }),
    key: keyOfThing(thing),
    at,
    now,
    length: length === null ? "" : `${sofar === null ? "" : "runs "}${formatDuration(length)}`,
    isFailed: thing.some((event) => hasFailed(rows, event)),
    href: hashOf({
      sessionId: session_id,
      filter: isOfOne ? filter : NO_FILTER,
      spanId: span?.row.id ?? null,
      tab: isOfOne ? "events" : "calls",
    }),
    ...(isOfOne ? {} : { session: { label, href: sessionHref(session_id) } }),
    detail: async () => thing.map(({ fields }) => prettyJson(fields)).join("\n"),
    version: `${id} ${thing.length}`,
  };
}
