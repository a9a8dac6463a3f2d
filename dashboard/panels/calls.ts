/** A session's page: its calls of tools and its agents, drawn from their spans. What is opened is fetched whole. */

import { sessionHref } from "../address.ts";
import {
  type ListRow,
  byId,
  choose,
  createList,
  createMore,
  createSorting,
  part,
  setAttribute,
  setText,
} from "../dom.ts";
import {
  type TelemetryEvent,
  argsSummary,
  asText,
  errorText,
  filesSummary,
  oneLine,
  outcomeWord,
  parseRecord,
  prettyJson,
  shownWhole,
  toolFamily,
} from "../events.ts";
import {
  UNKNOWN,
  formatCount,
  formatDuration,
  formatMoment,
  formatTimeOrDay,
  joined,
} from "../format.ts";
import { type Rows, type SessionEntry, type SpanEntry, isFailedSpan, spansOf } from "../rows.ts";

export interface CallsOptions {
  changed: () => void;
  /** The events of a call, from the server. */
  loadCall: (span: SpanEntry) => Promise<readonly TelemetryEvent[]>;
  /** More than what is loaded is wanted. */
  loadOlder: () => void;
}

interface Item {
  span: SpanEntry;
  longest: number;
  now: number;
  isExpanded: boolean;
}

export function createCalls({ changed, loadCall, loadOlder }: CallsOptions) {
  const section = byId("calls", HTMLElement);
  const empty = byId("calls-empty", HTMLParagraphElement);
  const nameHead = byId("calls-name", HTMLButtonElement);
  const textHead = byId("calls-text", HTMLSpanElement);
  const kinds = byId("calls-kind", HTMLDivElement);
  const [toolsButton, agentsButton] = kinds.querySelectorAll("button");
  const expanded = new Set<number>();
  const sorting = createSorting(section, ["start", "name", "duration"], changed);
  let kind: "tool" | "agent" = "tool";
  let loaded = 0;

  const toggle = (id: number) => {
    if (!expanded.delete(id)) expanded.add(id);
    changed();
  };
  const showItems = createList<Item>(
    "call-rows",
    "call-row",
    ({ span }) => span.row.id,
    (root) => createRow(root, toggle, loadCall),
  );
  choose(kinds, (button) => {
    kind = button.dataset.kind === "agents" ? "agent" : "tool";
    changed();
  });
  const more = createMore("calls-more", () => {
    if (more.limit > loaded) loadOlder();
    changed();
  });

  return {
    hide(): void {
      section.hidden = true;
      expanded.clear();
      more.reset();
    },
    /** @param hasOlder the server has calls that aren't loaded */
    show(rows: Rows, { row }: SessionEntry, hasOlder: boolean, now: number): void {
      section.hidden = false;
      if (toolsButton) setText(toolsButton, `Tools ${formatCount(row.tool_count)}`);
      if (agentsButton) setText(agentsButton, `Agents ${formatCount(row.agent_count)}`);
      setText(nameHead, kind === "tool" ? "Tool" : "Agent");
      setText(textHead, kind === "tool" ? "Arguments" : "Prompt");
      const { column, isAscending } = sorting;
      const sign = isAscending ? 1 : -1;
      const calls = spansOf(rows, row.id)[kind].toSorted(
        (a, b) =>
          sign *
          ((column === "name"
            ? a.row.name.localeCompare(b.row.name)
            : column === "duration"
              ? (durationOf(a, now) ?? -1) - (durationOf(b, now) ?? -1)
              : a.start - b.start) || a.row.id - b.row.id),
      );
      loaded = calls.length;
      const longest = calls.reduce((most, span) => Math.max(most, durationOf(span, now) ?? 0), 1);
      showItems(
        calls
          .slice(0, more.limit)
          .map((span) => ({ span, longest, now, isExpanded: expanded.has(span.row.id) })),
      );
      more.show(loaded > more.limit || hasOlder);
      empty.hidden = loaded > 0;
    },
  };
}

/** Of what runs, so far. */
function durationOf({ row, start, end }: SpanEntry, now: number): number | null {
  return end === null ? Math.max(0, now - start) : row.duration_ms;
}

function createRow(
  root: HTMLElement,
  toggle: (id: number) => void,
  loadCall: CallsOptions["loadCall"],
): ListRow<Item> {
  const time = part(root, "time", HTMLTimeElement);
  const key = part(root, ".key", HTMLElement);
  const title = part(root, ".call-name", HTMLElement);
  const open = part(root, ".call-open", HTMLButtonElement);
  const bar = part(root, ".bar", HTMLElement);
  const number = part(root, ".number", HTMLElement);
  let shownId = 0;
  let detail: HTMLElement | null = null;
  /** Which state of which call the detail shows. */
  let detailOf = "";
  open.addEventListener("click", () => toggle(shownId));

  function showDetail(span: SpanEntry, isExpanded: boolean): void {
    const wanted = isExpanded ? `${span.row.id} ${span.row.ended_at}` : "";
    if (detailOf === wanted) return;
    detailOf = wanted;
    detail?.remove();
    detail = null;
    if (!isExpanded) return;
    const shown = document.createElement("div");
    shown.className = "call-detail";
    detail = shown;
    open.after(shown);
    writeDetail(shown, span, []);
    loadCall(span).then(
      (events) => writeDetail(shown, span, events),
      () => undefined, // what the row says of it is shown; opened again, it is asked for again
    );
  }

  return {
    root,
    update({ span, longest, now, isExpanded }) {
      const { id, kind, name, error, text, ended_at, outcome, attributes } = span.row;
      const failed = isFailedSpan(span);
      const duration = durationOf(span, now);
      shownId = id;
      setText(time, formatTimeOrDay(span.start, now));
      setAttribute(time, "title", formatMoment(span.start, now));
      const color = kind === "agent" ? "agent" : toolFamily(name);
      key.className = `key key-${color} key-${outcome ?? "ok"}`;
      setText(title, name);
      setAttribute(root, "data-failed", String(failed));
      const done = kind === "agent" ? text : filesSummary(attributes?.files);
      const summary = error ?? done ?? argsSummary(text);
      const told = joined([outcomeWord(outcome, attributes?.exit_code), summary], ": ");
      setText(open, oneLine(told || UNKNOWN));
      setAttribute(open, "aria-expanded", String(isExpanded));
      setText(number, `${ended_at === null ? "runs " : ""}${formatDuration(duration)}`);
      bar.style.setProperty("--share", String((duration ?? 0) / longest));
      showDetail(span, isExpanded);
    },
  };
}

/** @param events its events, whole; none where they aren't there yet */
function writeDetail(
  detail: HTMLElement,
  { row }: SpanEntry,
  events: readonly TelemetryEvent[],
): void {
  const input = row.kind === "agent" ? "prompt" : "args";
  const given = events.map(({ fields }) => fields[input]).find((value) => asText(value) !== null);
  const text = asText(given) ?? row.text;
  const error =
    events.map(({ fields }) => errorText(fields.error)).find((told) => told !== null) ?? row.error;
  const args = text === null || row.kind === "agent" ? null : parseRecord(text);
  detail.replaceChildren();
  if (error !== null) addText(detail, `Error: ${error}`);
  if (text !== null) addText(detail, args === null ? text : prettyJson(args));
  if (row.child_session_id === null) return;
  const link = document.createElement("a");
  link.href = sessionHref(row.child_session_id);
  link.textContent = "Open its session";
  detail.append(link);
}

function addText(detail: HTMLElement, text: string): void {
  const pre = document.createElement("pre");
  setText(pre, shownWhole(text));
  detail.append(pre);
}
