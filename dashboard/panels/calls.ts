/** A session's turns, newest first, and below each what it did: a waterfall, with the calls of its agents. */

import type { EventType } from "../../server.ts";
import { hashOf, sessionHref } from "../address.ts";
import { getCall } from "../api.ts";
import { byId, createEnd, createFold, createList, part, setText } from "../dom.ts";
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
  doingOf,
  isFailedSpan,
  isMoment,
  shownEnd,
  statusOf,
} from "../rows.ts";
import { countOf } from "../tree.ts";
import { type Turn, callsOf, turnsOf } from "../turns.ts";
import { type Line, createLines } from "./line.ts";

/** Calls of a turn or of an agent that are shown at first, the latest; and added by each "Show more". */
const PAGE_CALLS = 100;
/** Characters of an error that a span's row has: a longer one is read from its events. */
const CUT_ERROR_CHARS = 300;

interface Item {
  key: number;
  turn: Turn;
  isOpen: boolean;
  lines: readonly Line[];
  now: number;
}

/** @param loadSpans more calls of this session than are loaded are wanted */
export function createCalls(changed: () => void, loadSpans: (sessionId: string) => void) {
  const section = byId("calls", HTMLElement);
  const open = { keys: new Set<string | number>(), changed };
  /** Turns that the person has opened or closed; of the others the latest is open. */
  const chosen = new Map<number, boolean>();
  const limits = new Map<number, number>();
  /** Errors that were longer than a row has room for, by the key of their line. */
  const errors = new Map<string, string>();
  let selected: { id: number; isShown: boolean } | null = null;
  let sessionId = "";
  const end = createEnd(section, () => loadSpans(sessionId));
  const limitOf = (id: number) => limits.get(id) ?? PAGE_CALLS;

  const showTurns = createList<Item>("turns", "turn", (root, find) => {
    const more = find("button");
    const showLines = createLines(find("ol"), open);
    let shownId = 0;
    const setOpen = createFold(part(root, "details", HTMLDetailsElement), (isOpen) => {
      chosen.set(shownId, isOpen);
      changed();
    });
    more.addEventListener("click", () => {
      limits.set(shownId, limitOf(shownId) + PAGE_CALLS);
      changed();
    });
    return ({ turn, isOpen, lines, now }) => {
      shownId = turn.id;
      setOpen(isOpen);
      setText(find(".turn-title"), turn.title);
      for (const [index, figure] of figuresOf(turn, now).entries())
        setText(find(`.turn-figures :nth-child(${index + 1})`), figure ?? "");
      const earlier = turn.calls.length - lines.length;
      setText(more, isOpen && earlier > 0 ? `Show ${earlier} earlier` : null);
      showLines(lines);
    };
  });

  /** Why it failed, whole: what its row lacks is asked for once. */
  function reasonOf(span: SpanEntry): string | null {
    const { id, error, ended_at } = span.row;
    if (error === null || error.length < CUT_ERROR_CHARS) return error;
    const key = `${id} ${ended_at}`;
    if (!errors.has(key)) {
      errors.set(key, error);
      getCall(span).then(
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
    const agent = rows.sessions.get(child ?? "");
    const words = wordsOf(eventOf(row));
    const isOpen = open.keys.has(row.id);
    if (child !== null && isOpen) loadSpans(child);
    const below = child !== null && isOpen ? callsOf(rows, child).slice(-PAGE_CALLS) : [];
    const lines: Line[] = below.map((call) => lineOf(rows, turn, call, now));
    return {
      ...words,
      ...(agent && {
        kind: statusOf(agent) === "waiting" ? "wait" : "agent",
        text: joined([words.text || null, workOf(rows, agent, now)]),
      }),
      reason: reasonOf(span),
      key: row.id,
      at: start,
      now,
      length: joined([waited, time === null ? null : `${end === null ? "runs " : ""}${time}`]),
      isFailed: isFailedSpan(span),
      isSelected: row.id === selected?.id,
      href: hashOf({ sessionId, filter: NO_FILTER, spanId: row.id }),
      bar: {
        from: Math.min(1, Math.max(0, start - turn.start) / length),
        share: (end_ms - start) / length,
      },
      detail: async () => detailOf(span, await getCall(span)),
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
          return { key: turn.id, turn, isOpen, lines, now };
        }),
      );
      end.show(turns.length, hasOlder);
      if (isNew && selected?.isShown)
        section.querySelector("[data-selected=true]")?.scrollIntoView({ block: "nearest" });
    },
  };
}

/** What stands beside its title; null: nothing to say. */
function figuresOf(turn: Turn, now: number): (string | null)[] {
  const { calls, errorCount, tokens, cost, start, end, goesOn } = turn;
  const count = (kind: SpanRow["kind"]) => calls.filter(({ row }) => row.kind === kind).length;
  const told = (count: number, noun: string) => (count === 0 ? null : formatNoun(count, noun));
  // Of one that is too long ago its calls aren't here.
  const time = end === start ? null : formatDuration(end - start);
  return [
    told(errorCount, "error"),
    joined([told(count("agent"), "agent"), told(count("tool"), "call")]),
    tokens === null ? null : `${formatCompact(tokens)} tok`,
    cost === null ? null : formatCost(cost),
    goesOn && time !== null ? `runs ${time}` : time,
    formatMoment(start, now),
  ];
}

/** What an agent does, what went wrong and what it took. */
function workOf(rows: Rows, agent: SessionEntry, now: number): string {
  const { id, cost } = agent.row;
  const errorCount = countOf(rows, id, "error_count");
  const doing = doingOf(rows, agent, now);
  return joined([
    errorCount === 0 ? null : formatNoun(errorCount, "error"),
    cost.total === null ? null : formatCost(cost.total),
    doing && joined([doing.text, doing.time], ", "),
  ]);
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
