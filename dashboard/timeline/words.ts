/** The timeline in words: the labels of the lanes, the readout of a bar, the list inside the canvas for those who don't see it. */

import { sessionHref } from "../address.ts";
import { byId, create, createList, part, setAttribute, setText } from "../dom.ts";
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

/** One bar in words: what, how it went and how long; when and where; why it failed; what it was about. */
export function describe(rows: Rows, span: SpanEntry, now: number): string[] {
  const { row, start, end } = span;
  const running = row.kind === "wait" ? "not answered yet" : "running";
  const session = rows.sessions.get(row.session_id);
  const to = end === null ? "now" : formatMoment(end, now);
  return [
    joined([
      whatOf(span),
      end === null ? running : outcomeWord(row.outcome, row.attributes?.exit_code),
      isMoment(span) ? "length not known" : formatDuration(shownEnd(span, now) - start),
    ]),
    joined([
      row.waited_ms ? `${formatDuration(row.waited_ms)} of it waiting for you` : null,
      isMoment(span) ? to : `${formatMoment(start, now)} to ${to}`,
      session === undefined ? null : sessionName(session.row),
    ]),
    row.error ?? "",
    argsSummary(row.text) ?? "",
  ];
}

function whatOf({ row: { kind, name } }: SpanEntry): string {
  if (kind === "agent") return `Agent ${name}`;
  if (kind === "model") return `Model ${name}`;
  if (kind === "wait") return `Waits for you: ${name}`;
  return kind === "mark" && isEventType(name) ? EVENT_LABELS[name] : name;
}

export function createWords() {
  const textList = byId("timeline-text", HTMLUListElement);
  const readout = ["head", "facts", "error", "text"].map((name) => `readout-${name}`);
  const showLabels = createList<Label>("lane-labels", "lane-label", createLabel);
  let textWrittenAt = 0;

  return {
    /** The labels of the lanes that can be seen. */
    writeLabels(lanes: readonly Lane[], { scrollTop, height, now }: View): void {
      const seen = lanes.filter(
        (lane) => lane.top + lane.height >= scrollTop && lane.top <= scrollTop + height,
      );
      showLabels(seen.map((lane) => ({ key: lane.key, lane, now })));
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
      setText("timeline-note", lanes.length === 0 ? "" : words);
    },

    writeReadout(rows: Rows, span: SpanEntry, now: number): void {
      const words = describe(rows, span, now);
      for (const [index, id] of readout.entries()) setText(id, words[index] ?? "");
    },

    /** For those who don't see it: what was selected. */
    say(rows: Rows, span: SpanEntry | null, now: number): void {
      const words = span === null ? [] : describe(rows, span, now);
      setText("timeline-said", words.filter((word) => word !== "").join(". "));
    },

    /** The latest bars of the window. */
    writeText(rows: Rows, bars: readonly Bar[], now: number): void {
      if (now - textWrittenAt < TEXT_INTERVAL_MS) return;
      textWrittenAt = now;
      const latest = bars.toSorted((a, b) => b.span.start - a.span.start).slice(0, MAX_TEXT_ITEMS);
      const items = latest.map(({ span, x, y, width, height }) => {
        const item = create("li", { text: joined(describe(rows, span, now).slice(0, 2)) });
        item.dataset.kind = span.row.kind;
        item.dataset.rect = [x, y, width, height].map(Math.round).join(" ");
        return item;
      });
      textList.replaceChildren(...items);
    },
  };
}

interface Label {
  key: string;
  lane: Lane;
  now: number;
}

function createLabel(root: HTMLElement, find: (query: string) => HTMLElement) {
  const link = part(root, "a", HTMLAnchorElement);
  return ({ lane, now }: Label) => {
    const { session, label, badge, kind, depth, key } = lane;
    const { state, beside } = stateOf(lane, now);
    root.style.transform = `translateY(${lane.top}px)`;
    root.style.height = `${lane.height}px`;
    root.style.paddingInlineStart = `${Math.min(depth, 4) * 14}px`;
    setAttribute(root, "data-kind", kind);
    setAttribute(root, "data-status", state);
    setAttribute(find(".dot"), "data-status", state);
    setAttribute(link, "href", sessionHref(session.row.id));
    const between = key === session.row.id ? ": " : ", agent of ";
    const title = kind === "session" ? label : `${label}${between}${sessionName(session.row)}`;
    setAttribute(link, "title", title);
    setText(find(".lane-name"), label);
    setText(find(".lane-badge"), badge ?? "");
    setText(find(".lane-sub"), beside);
  };
}

/** How a lane is; beside its name how long it waits, that it was lost, how long its agent runs or ran last. */
export function stateOf({ session, spans, key }: Lane, now: number) {
  const { id, waiting_since, is_lost, now: doing } = session.row;
  if (key === id && waiting_since !== null)
    return { state: "waiting", beside: formatAge(now - Date.parse(waiting_since)) };
  const retrying = key === id && doing?.kind === "retry" ? "retrying" : null;
  const agent = spans.agent.find(({ end }) => end === null) ?? spans.agent.at(-1);
  if (agent === undefined)
    return { state: retrying ?? statusOf(session), beside: is_lost ? "lost" : "" };
  const { outcome } = agent.row;
  const ended = isFailedSpan(agent) ? "failed" : outcome === "cancelled" ? outcome : "completed";
  return {
    state: agent.end === null ? (retrying ?? "running") : ended,
    beside: formatDuration(isMoment(agent) ? null : shownEnd(agent, now) - agent.start),
  };
}
