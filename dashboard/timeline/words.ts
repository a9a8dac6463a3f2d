/** The timeline in words: the labels of the lanes, the readout of a bar, the list inside the canvas for those who don't see it. */

import { sessionHref } from "../address.ts";
import { byId, createList, part, setAttribute, setText } from "../dom.ts";
import { EVENT_LABELS, argsSummary, isEventType, outcomeWord } from "../events.ts";
import {
  formatAge,
  formatDuration,
  formatMoment,
  formatNoun,
  joined,
  sessionName,
} from "../format.ts";
import { type Rows, type SpanEntry, isFailedSpan, isMoment, shownEnd, statusOf } from "../rows.ts";
import type { Bar, Lane, View } from "./layout.ts";

/** Bars told as text inside the canvas, and how often that list is written anew. */
const MAX_TEXT_ITEMS = 60;
const TEXT_INTERVAL_MS = 500;

/** One bar in words: what, how it went, how long, when, where. */
export function describe(rows: Rows, span: SpanEntry, now: number): string {
  return joined([headOf(span, now), factsOf(rows, span, now)]);
}

function headOf(span: SpanEntry, now: number): string {
  const { row, start } = span;
  const running = row.kind === "wait" ? "not answered yet" : "running";
  return joined([
    whatOf(span),
    span.end === null ? running : outcomeWord(row.outcome, row.attributes?.exit_code),
    isMoment(span) ? "length not known" : formatDuration(shownEnd(span, now) - start),
  ]);
}

function factsOf(rows: Rows, span: SpanEntry, now: number): string {
  const { row, start } = span;
  const session = rows.sessions.get(row.session_id);
  const to = span.end === null ? "now" : formatMoment(shownEnd(span, now), now);
  return joined([
    row.waited_ms ? `${formatDuration(row.waited_ms)} of it waiting for you` : null,
    isMoment(span) ? to : `${formatMoment(start, now)} to ${to}`,
    session === undefined ? null : sessionName(session.row),
  ]);
}

function whatOf({ row: { kind, name } }: SpanEntry): string {
  if (kind === "agent") return `Agent ${name}`;
  if (kind === "model") return `Model ${name}`;
  if (kind === "wait") return `Waits for you: ${name}`;
  return kind === "mark" && isEventType(name) ? EVENT_LABELS[name] : name;
}

export function createWords() {
  const textList = byId("timeline-text", HTMLUListElement);
  const readoutHead = byId("readout-head", HTMLDivElement);
  const readoutFacts = byId("readout-facts", HTMLDivElement);
  const readoutError = byId("readout-error", HTMLDivElement);
  const readoutText = byId("readout-text", HTMLDivElement);
  const said = byId("timeline-said", HTMLParagraphElement);
  const note = byId("timeline-note", HTMLSpanElement);
  const showLabels = createList<Label>("lane-labels", "lane-label", createLabel);
  let textWrittenAt = 0;

  return {
    /** The labels of the lanes that can be seen. @param tops where the lanes begin */
    writeLabels(lanes: readonly Lane[], tops: readonly number[], view: View): void {
      const { scrollTop, height, now } = view;
      showLabels(
        lanes
          .map((lane, index) => ({
            ...{ key: lane.key, lane, now },
            ...{ top: tops[index] ?? 0, end: tops[index + 1] ?? 0 },
          }))
          .filter(({ top, end }) => end >= scrollTop && top <= scrollTop + height),
      );
    },

    /** What the window holds. @param length of it, where no button says so */
    writeNote(lanes: readonly Lane[], length: number | null, missingBefore: string | null): void {
      const agents = lanes.filter((lane) => lane.kind === "agent").length;
      const words = joined([
        formatNoun(lanes.length - agents, "session"),
        formatNoun(agents, "agent"),
        length === null ? null : formatDuration(length),
        missingBefore === null ? null : `calls before ${missingBefore} not loaded`,
      ]);
      setText(note, lanes.length === 0 ? "" : words);
    },

    writeReadout(rows: Rows, span: SpanEntry, now: number): void {
      setText(readoutHead, headOf(span, now));
      setText(readoutFacts, factsOf(rows, span, now));
      setText(readoutError, span.row.error ?? "");
      setText(readoutText, argsSummary(span.row.text) ?? "");
    },

    /** For those who don't see it: what was selected. */
    say(rows: Rows, span: SpanEntry | null, now: number): void {
      const words = span && [describe(rows, span, now), span.row.error, argsSummary(span.row.text)];
      setText(said, joined(words ?? [], ". "));
    },

    /** The latest bars of the window, agents first. */
    writeText(rows: Rows, bars: readonly Bar[], now: number): void {
      if (now - textWrittenAt < TEXT_INTERVAL_MS) return;
      textWrittenAt = now;
      const rank = ({ span }: Bar) =>
        span.row.kind === "agent" ? 2 : span.row.kind === "model" ? 0 : 1;
      const told = [...bars]
        .sort((a, b) => rank(b) - rank(a) || b.span.start - a.span.start)
        .slice(0, MAX_TEXT_ITEMS);
      while (textList.children.length > told.length) textList.lastElementChild?.remove();
      for (const [index, { span, x, y, width, height }] of told.entries()) {
        const item = textList.children[index] ?? textList.appendChild(document.createElement("li"));
        setText(item, describe(rows, span, now));
        setAttribute(item, "data-kind", span.row.kind);
        setAttribute(item, "data-rect", [x, y, width, height].map(Math.round).join(" "));
      }
    },
  };
}

interface Label {
  key: string;
  lane: Lane;
  top: number;
  end: number;
  now: number;
}

function createLabel(root: HTMLElement) {
  const link = part(root, "a", HTMLAnchorElement);
  const dot = part(root, ".dot", HTMLElement);
  const name = part(root, ".lane-name", HTMLElement);
  const type = part(root, ".lane-badge", HTMLElement);
  const sub = part(root, ".lane-sub", HTMLElement);
  return ({ lane, top, end, now }: Label) => {
    const { session, label, badge, kind, depth, key } = lane;
    const state = stateOf(lane);
    root.style.transform = `translateY(${top}px)`;
    root.style.height = `${end - top}px`;
    root.style.paddingInlineStart = `${Math.min(depth, 4) * 14}px`;
    setAttribute(root, "data-kind", kind);
    setAttribute(root, "data-status", state);
    setAttribute(dot, "data-status", state);
    setAttribute(link, "href", sessionHref(session.row.id));
    const between = key === session.row.id ? ": " : ", agent of ";
    const title = kind === "session" ? label : `${label}${between}${sessionName(session.row)}`;
    setAttribute(link, "title", title);
    setText(name, label);
    setText(type, badge ?? "");
    setText(sub, lengthInWords(lane, now));
  };
}

/** Since when it waits for the person, in its own lane; null: it doesn't. */
function waitingSince({ key, session: { row } }: Lane): string | null {
  return key === row.id ? row.waiting_since : null;
}

function stateOf(lane: Lane): string {
  const { session, spans, kind } = lane;
  if (kind === "session" || waitingSince(lane) !== null) return statusOf(session);
  if (spans.agent.some((span) => span.end === null)) return "running";
  return spans.agent.slice(-1).some(isFailedSpan) ? "failed" : "completed";
}

/** That it was lost, how long it waits, else how long its agent runs or ran last. */
export function lengthInWords(lane: Lane, now: number): string {
  const since = waitingSince(lane);
  if (since !== null) return formatAge(now - Date.parse(since));
  if (lane.session.row.is_lost && lane.kind === "session") return "lost";
  const { agent } = lane.spans;
  const span = agent.find(({ end }) => end === null) ?? agent.at(-1);
  if (span === undefined) return "";
  return formatDuration(isMoment(span) ? null : shownEnd(span, now) - span.start);
}
