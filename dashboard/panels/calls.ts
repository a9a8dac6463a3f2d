/** A session's turns, newest first, and below each what it did: a waterfall, with the calls of its agents. */

import type { EventType } from "../../server.ts";
import { hashOf, sessionHref } from "../address.ts";
import { getCall } from "../api.ts";
import { byId, createEnd, createList, part, setText } from "../dom.ts";
import {
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
  labelOf,
  shownEnd,
  spansOf,
  statusOf,
} from "../rows.ts";
import { countOf } from "../tree.ts";
import { type Turn, callsOf, failuresOf, turnsOf } from "../turns.ts";
import { type Line, createLines } from "./line.ts";

/** Calls of a turn or of an agent that are shown at first, the latest; and added by each "Show more". */
const PAGE_CALLS = 100;
/** Characters of an error that a span's row has: opened, its line shows the whole. */
const CUT_ERROR_CHARS = 300;

type Item = Turn & { key: string; isLatest: boolean };

/** @param loadSpans more calls of this session than are loaded are wanted */
export function createCalls(changed: () => void, loadSpans: (sessionId: string) => void) {
  let rows: Rows;
  let sessionId = "";
  let now = 0;
  let selectedId: number | null = null;
  /** Once it is here, its turn is opened and it is brought into sight. */
  let isSought = false;
  const loadOlder = () => loadSpans(sessionId);
  const end = createEnd(byId("calls", HTMLElement), "No calls yet.", "Load older", loadOlder);
  const showErrors = createLines(byId("error-lines", HTMLElement), changed);
  /** Of spans, by their version: what a row has no room for. */
  const errors = new Map<string, string>();
  const errorsEnd = createEnd(byId("errors", HTMLElement), "Nothing failed.", "Show more", changed);

  const showTurns = createList<Item>("turns", "turn", (root, find) => {
    const details = part(root, "details", HTMLDetailsElement);
    const showLines = createLines(find("ol"), changed);
    let wasLatest = false;
    let limit = PAGE_CALLS;
    details.addEventListener("toggle", changed);
    find("button").addEventListener("click", () => {
      limit += PAGE_CALLS;
      changed();
    });
    return (turn) => {
      const { title, calls, isLatest } = turn;
      const found = isSought ? calls.findIndex(isSelectedIn) : -1;
      if (isLatest !== wasLatest) details.open = wasLatest = isLatest;
      if (found >= 0) {
        details.open = true;
        limit = Math.max(limit, calls.length - found);
      }
      setText(find(".turn-title"), title);
      for (const [index, figure] of figuresOf(turn, now).entries())
        setText(find(`.turn-figures :nth-child(${index + 1})`), figure ?? "");
      const earlier = calls.length - limit;
      setText(find("button"), earlier > 0 ? `Show ${earlier} earlier` : null);
      if (details.open) showLines(calls.slice(-limit).map((call) => lineOf(call, turn)));
      if (found < 0) return;
      isSought = false;
      root.querySelector("[data-selected=true]")?.scrollIntoView({ block: "nearest" });
    };
  });

  function take(all: Rows, { row }: SessionEntry, at: number): void {
    if (row.id !== sessionId) errors.clear();
    [rows, sessionId, now] = [all, row.id, at];
  }

  /** The question that a call is held up by. */
  function waitOf({ row: { session_id, call_id }, end }: SpanEntry): SpanEntry | undefined {
    if (end !== null || call_id === null) return undefined;
    const { wait } = spansOf(rows, session_id);
    return wait.find(({ row, end }) => end === null && row.call_id === call_id);
  }

  /** It is the selected one, or the agent that did it. */
  function isSelectedIn({ row }: SpanEntry): boolean {
    const owner = rows.spans.get(selectedId ?? 0)?.row.session_id;
    return row.id === selectedId || (row.child_session_id ?? "") === owner;
  }

  /** As far as it is here, and soon the whole: a row has the beginning. */
  function wholeError(span: SpanEntry): string | null {
    const { error } = span.row;
    const key = versionOf(span);
    if (error !== null && error.length >= CUT_ERROR_CHARS && !errors.has(key)) {
      errors.set(key, error);
      const take = (events: readonly TelemetryEvent[]) => {
        const told = events.map(({ fields }) => errorText(fields.error));
        errors.set(key, told.findLast((text) => text !== null) ?? error);
        changed();
      };
      getCall(span).then(take, () => errors.delete(key)); // asked for again
    }
    return errors.get(key) ?? error;
  }

  /** @param turn in which it has its place; null: it stands alone */
  function lineOf(span: SpanEntry, turn: Turn | null): Line {
    const { row, start, end } = span;
    const wait = waitOf(span);
    const time = formatDuration(end === null ? now - (wait?.start ?? start) : row.duration_ms);
    const verb = end !== null ? "" : wait ? "waits " : "runs ";
    const took = isMoment(span) ? null : `${verb}${time}`;
    const waited = row.waited_ms ? `waited ${formatDuration(row.waited_ms)}` : null;
    const child = row.kind === "agent" ? row.child_session_id : null;
    const agent = rows.sessions.get(child ?? "");
    const directory = rows.sessions.get(row.session_id)?.row.info.directory;
    const words = wordsOf(eventOf(row), directory);
    const linesBelow = (id: string) => {
      loadSpans(id);
      const below = callsOf(rows, id).slice(-PAGE_CALLS);
      return below.map((call) => lineOf(call, turn));
    };
    const length = turn && Math.max(1, turn.end - turn.start);
    return {
      ...words,
      ...(wait && { kind: "wait" }),
      ...(agent && {
        kind: statusOf(agent) === "waiting" ? "wait" : "agent",
        text: joined([words.text || null, workOf(rows, agent, now)]),
      }),
      key: row.id,
      at: start,
      now,
      length: joined([waited, took]),
      isFailed: isFailedSpan(span),
      isSelected: row.id === selectedId,
      isSought: isSought && isSelectedIn(span),
      href: hashOf({ sessionId, spanId: row.id }),
      ...(length && {
        bar: {
          from: Math.min(1, Math.max(0, start - turn.start) / length),
          share: (shownEnd(span, now) - start) / length,
        },
      }),
      detail: async () => detailOf(span, await getCall(span)),
      version: versionOf(span),
      ...(child && { nested: { href: sessionHref(child), lines: () => linesBelow(child) } }),
    };
  }

  return {
    /** Opens the turn of a call, once it is here, and brings it into sight. */
    select(id: number | null): void {
      selectedId = id;
      isSought = id !== null;
    },
    /** @param hasOlder the server has calls that aren't loaded */
    show(all: Rows, session: SessionEntry, told: TelemetryEvent[], hasOlder: boolean, at: number) {
      take(all, session, at);
      const turns = turnsOf(rows, session, told, now).toReversed();
      const itemOf = (turn: Turn, index: number) => {
        return { ...turn, key: `${sessionId} ${turn.id}`, isLatest: index === 0 };
      };
      showTurns(turns.map(itemOf));
      end.show(turns.length, hasOlder);
    },
    /** What failed in it and below it. */
    showErrors(all: Rows, session: SessionEntry, at: number): void {
      take(all, session, at);
      const failures = failuresOf(rows, sessionId);
      const lines = failures.slice(0, errorsEnd.limit).map((span): Line => {
        const owner = rows.sessions.get(span.row.session_id);
        const isBelow = owner !== undefined && owner !== session;
        return {
          ...lineOf(span, null),
          reason: wholeError(span),
          href: hashOf({ sessionId, tab: "errors", spanId: span.row.id }),
          ...(isBelow && { session: { label: labelOf(owner), href: sessionHref(owner.row.id) } }),
        };
      });
      showErrors(lines);
      if (failures.some(isSelectedIn)) isSought = false;
      const words = countOf(rows, sessionId, "error_count") > 0 ? "Not loaded." : undefined;
      errorsEnd.show(lines.length, lines.length < failures.length, words);
    },
  };
}

const versionOf = ({ row }: SpanEntry) => `${row.id} ${row.ended_at}`;

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
  const isCut = error !== null && error.length >= CUT_ERROR_CHARS;
  const why = isCut ? `${error}…` : error;
  return { type, fields: { ...attributes, ...named, ...said, error: why, outcome } };
}

/** Of a call its whole arguments and what came of it, of an agent what it was asked. */
function detailOf({ row }: SpanEntry, events: readonly TelemetryEvent[]): string {
  const { id, type, session_id, timestamp, call_id, prompt, ...fields } = Object.assign(
    {},
    ...events.map((event) => event.fields),
  );
  return row.kind === "agent" ? (asText(prompt) ?? row.text ?? "") : prettyJson(fields);
}
