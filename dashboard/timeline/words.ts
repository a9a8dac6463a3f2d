/** The timeline in words: the labels of the lanes, the readout of a bar, the list inside the canvas for those who don't see it. */

import { sessionHref } from "../address.ts";
import type { Cause, Need } from "../attention.ts";
import { byId, create, createList, fill, set, setText } from "../dom.ts";
import { EVENT_LABELS, argsSummary, isEventType, outcomeWord } from "../events.ts";
import { formatAge, formatDuration, formatMoment, formatNoun, joined } from "../format.ts";
import {
  type Rows,
  type SpanEntry,
  endOf,
  isFailedSpan,
  isMoment,
  labelOf,
  shownEnd,
  statusOf,
} from "../rows.ts";
import type { Bar, Lane } from "./layout.ts";

/** Bars told as text inside the canvas, and how often that list is written anew. */
const MAX_TEXT_ITEMS = 60;
const TEXT_INTERVAL_MS = 500;

/** One bar in words: what, how it went and how long; when and where; why it failed; what it was about. */
export function describe(rows: Rows, span: SpanEntry, now: number): string[] {
  const { row, start, end } = span;
  const { kind, name } = row;
  const isLabelled = kind === "mark" && isEventType(name);
  const what = isLabelled ? EVENT_LABELS[name] : `${KIND_WORDS[kind] ?? ""}${name}`;
  const running = kind === "wait" ? "not answered yet" : "running";
  const session = rows.sessions.get(row.session_id);
  const to = end === null ? "now" : formatMoment(end, now);
  const how = end === null ? running : outcomeWord(row.outcome, row.attributes?.exit_code);
  const waited = row.waited_ms && `${formatDuration(row.waited_ms)} of it waiting for you`;
  const [length, when] = isMoment(span)
    ? ["length not known", to]
    : [formatDuration(shownEnd(span, now) - start), `${formatMoment(start, now)} to ${to}`];
  return [
    joined([what, how, length]),
    joined([waited, when, session ? labelOf(session) : null]),
    row.error ?? "",
    argsSummary(row.text) ?? "",
  ];
}

/** Before its name; a tool's says enough. */
const KIND_WORDS: Record<string, string> = {
  agent: "Agent ",
  model: "Model ",
  wait: "Waits for you: ",
};

export function createWords() {
  const textList = byId("timeline-text", HTMLUListElement);
  const readout = ["head", "facts", "error", "text"].map((name) => `readout-${name}`);
  const showLabels = createList<Label>("lane-labels", "lane-label", createLabel);
  let textWrittenAt = 0;

  return {
    /** @param needs by the session's id: the list of sessions shows the same */
    writeLabels(lanes: readonly Lane[], needs: ReadonlyMap<string, Need>, now: number): void {
      showLabels(lanes.map((lane) => ({ ...lane, cause: needs.get(lane.key)?.cause, now })));
    },

    /** What the window holds. @param length of it, where no button says so */
    writeNote(lanes: readonly Lane[], length: number | null, missingBefore: string | null): void {
      const agents = lanes.filter((lane) => lane.kind === "agent").length;
      const sessions = lanes.length - agents; // none on an agent's page
      const counts = [sessions && formatNoun(sessions, "session"), formatNoun(agents, "agent")];
      const missing = missingBefore && `calls before ${missingBefore} not loaded`;
      const words = joined([...counts, length && formatDuration(length), missing]);
      setText("timeline-note", lanes.length === 0 ? "" : words);
    },

    writeReadout(rows: Rows, span: SpanEntry, now: number): void {
      const words = describe(rows, span, now);
      for (const [index, id] of readout.entries()) setText(id, words[index] ?? "");
    },

    /** For those who don't see it: what was selected. */
    say(rows: Rows, span: SpanEntry | null, now: number): void {
      setText("timeline-said", joined(span === null ? [] : describe(rows, span, now), ". "));
    },

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

type Label = Lane & { cause: Cause | undefined; now: number };

const createLabel = (root: HTMLElement) => (lane: Label) => {
  const { session, label, badge, kind, depth, top, height, cause, now } = lane;
  const { state: own, beside } = stateOf(lane, now);
  const state = cause ?? own;
  root.style.transform = `translateY(${top}px)`;
  root.style.height = `${height}px`;
  root.style.paddingInlineStart = `${Math.min(depth, 4) * 14}px`;
  set(root, { "data-kind": kind, "data-status": state });
  fill(root, {
    a: { href: sessionHref(session.row.id), title: label },
    ".dot": { "data-status": state },
    ".lane-name": label,
    ".lane-badge": badge ?? "",
    ".lane-sub": beside,
  });
};

/** How a lane is; beside its name how long it waits, that it was lost, how long its agent runs or ran last. */
export function stateOf({ session, spans, key, depth }: Lane, now: number) {
  const { id, waiting_since, is_lost, now: doing } = session.row;
  if (key === id && waiting_since !== null)
    return { state: "waiting", beside: formatAge(now - Date.parse(waiting_since)) };
  const retrying = key === id && doing?.kind === "retry" ? "retrying" : null;
  const agent = spans.agent.find(({ end }) => end === null) ?? spans.agent.at(-1);
  if (agent === undefined) {
    const length = depth === 0 ? "" : formatDuration(endOf(session, now) - session.startedAt);
    return { state: retrying ?? statusOf(session), beside: is_lost ? "lost" : length };
  }
  const { outcome } = agent.row;
  const ended = isFailedSpan(agent) ? "failed" : outcome === "cancelled" ? outcome : "completed";
  return {
    state: agent.end === null ? (retrying ?? "running") : ended,
    beside: formatDuration(isMoment(agent) ? null : shownEnd(agent, now) - agent.start),
  };
}
