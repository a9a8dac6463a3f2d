/** A session's turns, newest first, and below each what it did: a waterfall, with the calls of its agents. */

import type { EventType } from "../../server.ts";
import { hashOf, sessionHref } from "../address.ts";
import { type ListRow, byId, createList, createMore, part, setText } from "../dom.ts";
import {
  NO_FILTER,
  type TelemetryEvent,
  asText,
  errorText,
  isEventType,
  prettyJson,
  wordsOf,
} from "../events.ts";
import {
  formatCompact,
  formatCost,
  formatDuration,
  formatMoment,
  formatNoun,
  joined,
} from "../format.ts";
import {
  type Rows,
  type SessionEntry,
  type SpanEntry,
  type SpanRow,
  isFailedSpan,
  isMoment,
  shownEnd,
} from "../rows.ts";
import { type Turn, callsOf, turnsOf } from "../turns.ts";
import { type Line, type OpenLines, createLines } from "./line.ts";

/** Calls of a turn or of an agent that are shown at first, the latest; and added by each "Show more". */
const PAGE_CALLS = 100;
/** Characters of an error that a span's row has: a longer one is read from its events. */
const CUT_ERROR_CHARS = 300;

export interface CallsOptions {
  changed: () => void;
  /** The events of a call, from the server. */
  loadCall: (span: SpanEntry) => Promise<readonly TelemetryEvent[]>;
  /** More calls of this session than are loaded are wanted. */
  loadSpans: (sessionId: string) => void;
}

interface Item {
  turn: Turn;
  isOpen: boolean;
  earlier: number;
  lines: readonly Line[];
  now: number;
}

export function createCalls({ changed, loadCall, loadSpans }: CallsOptions) {
  const section = byId("calls", HTMLElement);
  const empty = byId("calls-empty", HTMLParagraphElement);
  const open = { keys: new Set<string | number>(), changed };
  /** Turns that the person has opened or closed; of the others the latest is open. */
  const chosen = new Map<number, boolean>();
  const limits = new Map<number, number>();
  /** Errors that were longer than a row has room for, by the key of their line. */
  const errors = new Map<string, string>();
  let selected: { id: number; isShown: boolean } | null = null;
  let sessionId = "";
  const older = createMore("calls-older", () => loadSpans(sessionId));
  const showTurns = createList<Item>(
    "turns",
    "turn",
    ({ turn }) => turn.id,
    (root) => createTurn(root, open, chosen, (id) => limits.set(id, limitOf(id) + PAGE_CALLS)),
  );
  const limitOf = (id: number) => limits.get(id) ?? PAGE_CALLS;

  /** Why it failed, whole: what its row lacks is asked for once. */
  function reasonOf(span: SpanEntry): string | null {
    const { id, error, ended_at } = span.row;
    if (error === null || error.length < CUT_ERROR_CHARS) return error;
    const key = `${id} ${ended_at}`;
    if (!errors.has(key)) {
      errors.set(key, error);
      loadCall(span).then(
        (events) => {
          const whole = events.map(({ fields }) => errorText(fields.error));
          errors.set(key, whole.findLast((told) => told !== null) ?? error);
          changed();
        },
        () => errors.delete(key), // asked for again
      );
    }
    return errors.get(key) ?? error;
  }

  function lineOf(rows: Rows, turn: Turn, span: SpanEntry, now: number): Line {
    const { row, start, end } = span;
    const end_ms = shownEnd(span, now);
    const length = Math.max(1, turn.end - turn.start);
    const waited = row.waited_ms ? `waited ${formatDuration(row.waited_ms)}` : null;
    const time = isMoment(span)
      ? null
      : formatDuration(end === null ? now - start : row.duration_ms);
    const child = row.kind === "agent" ? row.child_session_id : null;
    const isOpen = open.keys.has(row.id);
    if (child !== null && isOpen) loadSpans(child);
    const below = child !== null && isOpen ? callsOf(rows, child).slice(-PAGE_CALLS) : [];
    const lines: Line[] = below.map((call) => lineOf(rows, turn, call, now));
    return {
      ...wordsOf(eventOf(row)),
      reason: reasonOf(span),
      key: row.id,
      at: start,
      length: joined([waited, time === null ? null : `${end === null ? "runs " : ""}${time}`]),
      isFailed: isFailedSpan(span),
      isSelected: row.id === selected?.id,
      href: hashOf({ sessionId, filter: NO_FILTER, spanId: row.id }),
      bar: {
        from: Math.min(1, Math.max(0, start - turn.start) / length),
        share: (end_ms - start) / length,
      },
      detail: async () => detailOf(span, await loadCall(span)),
      version: String(row.ended_at),
      ...(child === null ? {} : { nested: { href: sessionHref(child), lines } }),
    };
  }

  return {
    reset(): void {
      for (const kept of [open.keys, chosen, limits, errors]) kept.clear();
      selected = null;
    },
    /** Opens the turn of a call, once it is here, and brings it into sight. */
    select(id: number): void {
      selected = { id, isShown: false };
    },
    /** @param hasOlder the server has calls that aren't loaded */
    show(
      rows: Rows,
      session: SessionEntry,
      told: readonly TelemetryEvent[],
      hasOlder: boolean,
      now: number,
    ): void {
      sessionId = session.row.id;
      const turns = turnsOf(rows, session, told, now);
      const latest = turns.at(-1)?.id;
      const isNew = selected !== null && !selected.isShown;
      for (const { id, calls } of isNew ? turns : []) {
        if (selected === null) break;
        // Or the agent that it is a call of.
        const sought = rows.spans.get(selected.id)?.row.session_id;
        const at = calls.findIndex(
          ({ row }) => row.id === selected?.id || row.child_session_id === sought,
        );
        if (at < 0) continue;
        open.keys.add(calls[at]?.row.id ?? 0);
        chosen.set(id, true);
        limits.set(id, Math.max(limitOf(id), calls.length - at));
        selected.isShown = true;
      }
      showTurns(
        turns.toReversed().map((turn) => {
          const isOpen = chosen.get(turn.id) ?? turn.id === latest;
          const calls = isOpen ? turn.calls.slice(-limitOf(turn.id)) : [];
          const lines = calls.map((call) => lineOf(rows, turn, call, now));
          return { turn, isOpen, earlier: turn.calls.length - calls.length, lines, now };
        }),
      );
      older.show(hasOlder);
      empty.hidden = turns.length > 0;
      if (isNew && selected?.isShown)
        section.querySelector("[data-selected=true]")?.scrollIntoView({ block: "nearest" });
    },
  };
}

function createTurn(
  root: HTMLElement,
  open: OpenLines,
  chosen: Map<number, boolean>,
  showMore: (id: number) => void,
): ListRow<Item> {
  const details = part(root, "details", HTMLDetailsElement);
  const title = part(root, ".turn-title", HTMLElement);
  const figures = [...root.querySelectorAll(".turn-figures span")];
  const more = part(root, "button", HTMLButtonElement);
  const showLines = createLines(part(root, "ol", HTMLOListElement), open);
  let shownId = 0;
  let wasOpen = false;
  details.addEventListener("toggle", () => {
    if (details.open === wasOpen) return;
    wasOpen = details.open;
    chosen.set(shownId, wasOpen);
    open.changed();
  });
  more.addEventListener("click", () => {
    showMore(shownId);
    open.changed();
  });

  return {
    root,
    update({ turn, isOpen, earlier, lines, now }) {
      shownId = turn.id;
      if (isOpen !== wasOpen) details.open = wasOpen = isOpen;
      setText(title, turn.title);
      const agents = turn.calls.filter(({ row }) => row.kind === "agent").length;
      const calls = turn.calls.filter(({ row }) => row.kind === "tool").length;
      const told = [
        turn.errorCount === 0 ? "" : formatNoun(turn.errorCount, "error"),
        joined([
          agents === 0 ? null : formatNoun(agents, "agent"),
          calls === 0 ? null : formatNoun(calls, "call"),
        ]),
        turn.tokens === null ? "" : `${formatCompact(turn.tokens)} tok`,
        turn.cost === null ? "" : formatCost(turn.cost),
        // Of one that is too long ago its calls aren't here.
        turn.end === turn.start
          ? ""
          : `${turn.goesOn ? "runs " : ""}${formatDuration(turn.end - turn.start)}`,
        formatMoment(turn.start, now),
      ];
      for (const [index, figure] of figures.entries()) setText(figure, told[index] ?? "");
      setText(more, `Show ${earlier} earlier`);
      more.hidden = earlier === 0 || !isOpen;
      showLines(lines, now);
    },
  };
}

const EVENT_OF: Record<SpanRow["kind"], EventType> = {
  tool: "tool_use",
  agent: "agent_complete",
  model: "model_response",
  wait: "input_requested",
  mark: "session_error",
};

/** A span in the shape of the event that ends it. */
function eventOf({ kind, name, text, error, outcome, attributes }: SpanRow) {
  const type = kind === "mark" && isEventType(name) ? name : EVENT_OF[kind];
  const named = { tool: name, subagent_type: name, model: name };
  const said = { args: text, description: text, detail: text };
  return { type, fields: { ...attributes, ...named, ...said, error, outcome } };
}

/** Of a call its whole arguments and what came of it, of an agent what it was asked. */
function detailOf({ row }: SpanEntry, events: readonly TelemetryEvent[]): string {
  const { id, type, session_id, timestamp, call_id, prompt, ...fields } = Object.assign(
    {},
    ...events.map((event) => event.fields),
  );
  return row.kind === "agent" ? (asText(prompt) ?? row.text ?? "") : prettyJson(fields);
}
