/** The live feed: events as they come, newest first, filtered, held and opened. */

import { hashOf, sessionHref } from "../address.ts";
import {
  type ListRow,
  byId,
  createList,
  createMore,
  part,
  setAttribute,
  setText,
  shown,
} from "../dom.ts";
import {
  CALL_KINDS,
  EVENT_LABELS,
  EVENT_TYPES,
  type FeedFilter,
  type TelemetryEvent,
  asText,
  durationOf,
  isEventType,
  oneLine,
  prettyJson,
  shownWhole,
  summaryOf,
  toolFamily,
} from "../events.ts";
import { UNKNOWN, formatCount, formatDuration, formatMoment, formatTimeOrDay } from "../format.ts";
import { type Rows, type SessionEntry, barOf, hasFailed, labelOf, shortId } from "../rows.ts";

/** Scrolled further than this, the feed stays where it is. */
const HELD_PX = 8;
/** Names that the field of the tool offers: a list of thousands would stop the page. */
const MAX_OFFERED_NAMES = 500;

export interface FeedOptions {
  filterChanged: (filter: FeedFilter) => void;
  loadOlder: () => void;
  changed: () => void;
}

interface Item {
  event: TelemetryEvent;
  failed: boolean;
  label: string;
  /** Where its bar is. */
  href: string;
  /** Its reason is told whole. */
  isWhole: boolean;
  isExpanded: boolean;
  now: number;
}

export function createFeed({ filterChanged, loadOlder, changed }: FeedOptions) {
  const scroll = byId("feed-scroll", HTMLDivElement);
  const note = byId("feed-note", HTMLSpanElement);
  const pause = byId("feed-pause", HTMLButtonElement);
  const type = byId("feed-type", HTMLSelectElement);
  const tool = byId("feed-tool", HTMLInputElement);
  const session = byId("feed-session", HTMLSelectElement);
  const text = byId("feed-text", HTMLInputElement);
  const empty = byId("feed-empty", HTMLParagraphElement);
  const older = createMore("feed-older", loadOlder);
  const toolNames = byId("tool-names", HTMLDataListElement);
  const expanded = new Set<number>();
  let isPaused = false;
  let offered = "";
  let shownFilter: FeedFilter = { type: null, tool: "", sessionId: null, text: "" };
  /** As of the last scroll event: reading it from the element would ask for a layout. */
  let scrollTop = 0;

  const toggle = (id: number) => {
    if (!expanded.delete(id)) expanded.add(id);
    changed();
  };
  const showItems = createList<Item>(
    "feed-list",
    "feed-row",
    ({ event }) => event.id,
    (root) => createRow(root, toggle),
  );
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
  byId("feed-filter", HTMLFormElement).addEventListener("submit", (event) =>
    event.preventDefault(),
  );
  pause.addEventListener("click", () => {
    isPaused = !isPaused;
    if (!isPaused) scroll.scrollTop = 0;
    changed();
  });
  scroll.addEventListener(
    "scroll",
    () => {
      const wasHeld = scrollTop > HELD_PX;
      scrollTop = scroll.scrollTop;
      if (wasHeld !== scrollTop > HELD_PX) changed();
    },
    { passive: true },
  );

  return {
    /** Nothing moves while the person has paused it, or reads further down. */
    isHeld: () => isPaused || scrollTop > HELD_PX,
    limit: () => older.limit,
    /** Puts `filter` into the controls. @param sessions to choose from */
    showFilter(
      filter: FeedFilter,
      sessions: readonly SessionEntry[],
      isSessionPage: boolean,
    ): void {
      older.reset();
      shownFilter = filter;
      type.value = filter.type ?? "";
      if (tool.value.trim() !== filter.tool) tool.value = filter.tool;
      if (text.value.trim() !== filter.text) text.value = filter.text;
      session.hidden = isSessionPage;
      session.replaceChildren(
        ...[...session.options].slice(0, 1),
        ...sessions.map((entry) => new Option(shown(labelOf(entry)), entry.row.id)),
      );
      const { sessionId } = filter;
      if (sessionId !== null && sessions.every(({ row }) => row.id !== sessionId))
        session.append(new Option(shown(shortId(sessionId)), sessionId));
      session.value = sessionId ?? "";
    },
    /** @param names most used first */
    offerToolNames(names: readonly string[]): void {
      const isOffered = (name: string) => shown(name) === name;
      const next = names.filter(isOffered).slice(0, MAX_OFFERED_NAMES).sort();
      if (next.join("\n") === offered) return;
      offered = next.join("\n");
      toolNames.replaceChildren(...next.map((name) => new Option(name, name)));
    },
    /**
     * @param events newest first
     * @param waiting how many newer ones there are, and whether there may be more
     */
    show(
      rows: Rows,
      events: readonly TelemetryEvent[],
      waiting: { count: number; isMore: boolean },
      hasOlder: boolean,
      now: number,
    ): void {
      showItems(
        events.map((event) => {
          const owner = rows.sessions.get(event.session_id);
          const label = owner === undefined ? shortId(event.session_id) : labelOf(owner);
          const failed = hasFailed(rows, event);
          const spanId = barOf(rows, event)?.row.id ?? null;
          const href = hashOf({ sessionId: event.session_id, filter: shownFilter, spanId });
          const isWhole = shownFilter.type === "failed";
          return { event, failed, label, href, isWhole, isExpanded: expanded.has(event.id), now };
        }),
      );
      setAttribute(pause, "aria-pressed", String(isPaused));
      setText(pause, isPaused ? "Resume" : "Pause");
      const count = `${formatCount(waiting.count)}${waiting.isMore ? "+" : ""}`;
      setText(note, waiting.count > 0 ? `${count} new` : isPaused ? "Paused" : "");
      empty.hidden = events.length > 0;
      older.show(hasOlder);
    },
  };
}

function createRow(root: HTMLElement, toggle: (id: number) => void): ListRow<Item> {
  const bar = part(root, ".feed-bar", HTMLAnchorElement);
  const time = part(root, "time", HTMLTimeElement);
  const what = part(root, ".feed-what", HTMLButtonElement);
  const key = part(root, ".key", HTMLElement);
  const name = part(root, ".feed-name", HTMLElement);
  const summary = part(root, ".feed-summary", HTMLElement);
  const length = part(root, ".feed-duration", HTMLElement);
  const session = part(root, ".feed-session", HTMLAnchorElement);
  let detail: HTMLPreElement | null = null;
  /** An event never changes, so most rows are never written twice. */
  let written: TelemetryEvent | null = null;
  what.addEventListener("click", () => written && toggle(written.id));

  function showEvent(event: TelemetryEvent, now: number): void {
    written = event;
    time.dateTime = new Date(event.at).toISOString();
    setText(time, formatTimeOrDay(event.at, now));
    setAttribute(time, "title", formatMoment(event.at, now));
    setText(name, nameOf(event));
    const duration = durationOf(event);
    setText(length, duration === null ? "" : formatDuration(duration));
    setAttribute(session, "href", sessionHref(event.session_id));
  }

  return {
    root,
    update({ event, failed, label, href, isWhole, isExpanded, now }) {
      const isOther = written?.id !== event.id;
      if (isOther) showEvent(event, now);
      if (isOther || root.dataset.whole !== String(isWhole)) {
        const said = summaryOf(event) ?? "";
        setText(summary, isWhole ? shownWhole(said) : oneLine(said));
        root.dataset.whole = String(isWhole);
      }
      setAttribute(bar, "href", href);
      setText(session, label);
      setAttribute(root, "data-failed", String(failed));
      setAttribute(key, "class", `key key-${failed ? "failed" : keyOf(event)}`);
      setAttribute(what, "aria-expanded", String(isExpanded));
      if (detail !== null && (isOther || !isExpanded)) {
        detail.remove();
        detail = null;
      }
      if (!isExpanded || detail !== null) return;
      detail = document.createElement("pre");
      detail.tabIndex = 0;
      setText(detail, prettyJson(event.fields));
      root.append(detail);
    },
  };
}

function keyOf({ type, fields }: TelemetryEvent): string {
  const kind = CALL_KINDS[type] ?? (type === "input_requested" ? "wait" : "note");
  return kind === "tool" ? toolFamily(asText(fields.tool) ?? "") : kind;
}

function nameOf({ type, fields }: TelemetryEvent): string {
  const kind = CALL_KINDS[type];
  if (kind === "tool") return asText(fields.tool) ?? UNKNOWN;
  return kind === "agent" ? (asText(fields.subagent_type) ?? "agent") : EVENT_LABELS[type];
}
