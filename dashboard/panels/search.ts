/** One box that finds sessions and events in the whole history, and lists the calls behind a figure. */

import { hashOf, sessionHref } from "../address.ts";
import { findEvents } from "../api.ts";
import { byId, create, createList, setAttribute, setText } from "../dom.ts";
import {
  CALL_KINDS,
  NO_FILTER,
  type TelemetryEvent,
  asText,
  hasWords,
  looksFailed,
  parseRecord,
  wordsIn,
  wordsOf,
} from "../events.ts";
import { HOUR_MS, formatCount, formatDuration, formatMoment, formatTimeOrDay } from "../format.ts";
import { type Rows, type SessionEntry, labelOf, statusOf } from "../rows.ts";
import { STATUS_WORDS } from "./sessions.ts";
import { type UsageQuery, nameOf } from "./usage.ts";

/** How long a person pauses before a question is asked. */
const DEBOUNCE_MS = 120;
const PAGE_HITS = 50;
const MAX_SESSIONS = 8;
/** Of the calls behind a figure: how many are looked at, and how many of each kind are listed. */
const LOOKED_AT_CALLS = 3_000;
const LISTED_CALLS = 10;
/** Of a long text, how much is shown before and after the first word that was found. */
const BEFORE_CHARS = 30;
const AFTER_CHARS = 300;
/** Fields that are told otherwise, or tell a person nothing. */
const UNTOLD = "id type session_id timestamp call_id tool sender outcome error".split(" ");
const HINT =
  "Any words: of a command, a path, an error. file:path finds the sessions that touched it.";

/** A line of the list. */
interface Hit {
  /** The list has a heading where it changes. */
  group: string;
  id: string | number;
  at: number;
  mark: string;
  name: string;
  /** Every second part is a word that was found. */
  parts: string[];
  length: number | null;
  sessionId: string;
  href: string;
}

/** All text in a value; JSON in a text is opened. Numbers tell little. */
function textsIn(value: unknown): string[] {
  const inner = typeof value === "string" ? parseRecord(value) : value;
  if (typeof value === "string" && inner === null) return [value];
  return Object.values(inner ?? {}).flatMap(textsIn);
}

/** What an event says around the first of `words`, cut where they are: ["run ", "bun", " test"]. */
export function partsOf(fields: Readonly<Record<string, unknown>>, words: readonly string[]) {
  const told = Object.entries(fields).filter(([name]) => !UNTOLD.includes(name));
  const texts = new Set(textsIn([fields.error, ...told.map(([, value]) => value)]));
  return cutAt([...texts].join(" · "), words);
}

function cutAt(text: string, words: readonly string[]): string[] {
  const wholes = words.map((word) => {
    const letters = [...word].map((letter) => `${letter}\\p{M}*`).join("");
    // In scripts without capitals each letter is a word.
    const isLetter = /^[\p{Lo}\p{So}]/u.test(word);
    return isLetter ? letters : `(?<![\\p{L}\\p{N}])${letters}(?![\\p{L}\\p{N}])`;
  });
  const pattern = new RegExp(`(${wholes.join("|") || "(?!)"})`, "giu");
  const all = text.normalize("NFD").replace(/\s+/g, " ");
  const from = Math.max(0, all.search(pattern) - BEFORE_CHARS);
  const [first = "", ...rest] = all.slice(from, from + AFTER_CHARS).split(pattern);
  const parts = [from === 0 ? first : first.replace(/^\S*/, "…"), ...rest];
  return parts.map((part) => part.normalize("NFC"));
}

function eventHit(group: string, event: TelemetryEvent, text: string): Hit {
  const { id, type, session_id: sessionId, at, fields } = event;
  const { kind, name, outcome } = wordsOf(event);
  const mark = `key key-${outcome === "exit" ? "exit" : looksFailed(event) ? "failed" : kind}`;
  const { duration_ms, waited_ms } = fields;
  const length = typeof duration_ms === "number" ? duration_ms - (Number(waited_ms) || 0) : null;
  // What is no call has no bar: the session's events are filtered to where it is.
  const [filter, spanId] = CALL_KINDS[type] ? [NO_FILTER, id] : [{ ...NO_FILTER, text }, null];
  const parts = partsOf(fields, wordsIn(text));
  const href = hashOf({ sessionId, filter, spanId });
  return { group, id, at, mark, name, parts, length, sessionId, href };
}

function sessionHit(entry: SessionEntry, words: readonly string[]): Hit {
  const { id, info } = entry.row;
  return {
    ...{ group: "Sessions", id, at: entry.lastEventAt, mark: "dot" },
    name: STATUS_WORDS[statusOf(entry)],
    parts: cutAt(`${labelOf(entry)} · ${asText(info.directory) ?? id}`, words),
    ...{ length: null, sessionId: id, href: sessionHref(id) },
  };
}

interface Item {
  key: string;
  hit: Hit;
  isFirst: boolean;
  isSelected: boolean;
  entry: SessionEntry | undefined;
}

/** @param seekSession a hit is here, but not its session */
export function createSearch(rows: () => Rows, seekSession: (id: string) => void) {
  const dialog = byId("search", HTMLDialogElement);
  const input = byId("search-text", HTMLInputElement);
  const list = byId("search-hits", HTMLOListElement);
  const more = byId("search-more", HTMLButtonElement);
  const showHits = createList<Item>(list, "search-hit", (_root, find) => {
    let shownParts: string[] = [];
    return ({ key, hit, isFirst, isSelected, entry }) => {
      const { group, at, mark, name, parts, length, sessionId, href } = hit;
      const [link, icon] = [find("a"), find("i")];
      const session = mark === "dot" ? "" : entry === undefined ? sessionId : labelOf(entry);
      link.id = `hit-${key}`;
      setAttribute(link, "href", href);
      setAttribute(link, "title", formatMoment(at, Date.now()));
      setAttribute(link, "aria-selected", isSelected);
      setAttribute(icon, "class", mark);
      setAttribute(icon, "data-status", mark === "dot" && entry ? statusOf(entry) : null);
      setText(find("h3"), isFirst ? group : null);
      setText(find("time"), formatTimeOrDay(at, Date.now()));
      setText(find("strong"), name);
      setText(find(".hit-length"), length === null ? "" : formatDuration(length));
      setText(find(".hit-session"), session);
      if (shownParts === parts) return;
      shownParts = parts;
      const nodes = parts.map((said, index) => create(index % 2 ? "mark" : "span", said));
      find(".hit-text").replaceChildren(...nodes);
    };
  });
  /** The number of the latest question: an answer to an earlier one counts for nothing. */
  let asked = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let text = "";
  let isOfFile = false;
  let found: Hit[] = [];
  const known = new Set<string>();
  let before: number | undefined;
  let selected = 0;

  function sessionHits(): Hit[] {
    const words = wordsIn(text);
    if (words.length === 0 || isOfFile || input.hidden) return [];
    const isMatch = ({ row: { id, info } }: SessionEntry) =>
      hasWords(`${asText(info.title)}\n${asText(info.directory)}\n${id}`, words);
    const sessions = [...rows().sessions.values()].filter(isMatch);
    sessions.sort((a, b) => b.lastEventAt - a.lastEventAt);
    return sessions.slice(0, MAX_SESSIONS).map((entry) => sessionHit(entry, words));
  }

  /** @returns how many lines there are */
  function show(): number {
    if (!dialog.open) return 0;
    const hits = [...sessionHits(), ...found];
    selected = Math.max(0, Math.min(selected, hits.length - 1));
    showHits(
      hits.map((hit, index) => {
        const entry = rows().sessions.get(hit.sessionId);
        if (entry === undefined) seekSession(hit.sessionId);
        const isFirst = hit.group !== hits[index - 1]?.group;
        const key = `${hit.group} ${hit.id}`;
        return { key, hit, isFirst, isSelected: index === selected, entry };
      }),
    );
    const active = list.querySelector("[aria-selected=true]")?.id ?? "";
    for (const focused of [input, list]) setAttribute(focused, "aria-activedescendant", active);
    return hits.length;
  }

  /** Adds pages to what was found, until there is something new or there are no more. */
  async function find(mine: number): Promise<void> {
    const length = found.length;
    more.hidden = true;
    setText("search-note", "Searching…");
    for (;;) {
      const limit = isOfFile ? 10 * PAGE_HITS : PAGE_HITS;
      const { events, isIndexed } = await findEvents({ q: text, before, limit });
      if (mine !== asked) return;
      before = events.at(-1)?.id;
      for (const event of events) {
        // Of those that touched a file each session is listed once, with its latest call; else each call once.
        const kind = CALL_KINDS[event.type];
        const { call_id = event.id } = event.fields;
        const key = isOfFile ? event.session_id : `${event.session_id} ${kind} ${asText(call_id)}`;
        if (known.has(key) || (isOfFile && kind !== "tool")) continue;
        known.add(key);
        found.push(eventHit(isOfFile ? "Sessions that touched it" : "Events", event, text));
      }
      const isDone = before === undefined;
      if (found.length === length && !isDone) continue;
      more.hidden = isDone;
      const isNone = show() === 0 && isDone;
      const none = isNone ? "No session or event matches. " : "";
      return setText(
        "search-note",
        none + (isIndexed ? "" : "The newest events are still being indexed."),
      );
    }
  }

  /** Begins a list; what is found for an earlier one comes too late. @returns its number */
  function begin(words: string): number {
    clearTimeout(timer);
    [found, before, selected, more.hidden] = [[], undefined, 0, true];
    known.clear();
    setText("search-note", words);
    show();
    return ++asked;
  }

  async function findCalls(mine: number, name: string, { kind, hours }: UsageQuery): Promise<void> {
    const types = { tools: "tool_use", agents: "agent_complete", models: "model_response" };
    const wanted = { type: types[kind], [kind === "tools" ? "tool" : "q"]: name };
    const now = Date.now();
    const start = now - hours * HOUR_MS;
    const from = new Date(start).toISOString();
    const calls: TelemetryEvent[] = [];
    let isDone = false;
    while (!isDone && calls.length < LOOKED_AT_CALLS) {
      const { events } = await findEvents({ ...wanted, from, before });
      if (mine !== asked) return;
      calls.push(...events.filter(({ fields }) => nameOf(fields) === name));
      before = events.at(-1)?.id;
      isDone = before === undefined;
    }
    const timed = calls.map((event) => eventHit("Slowest", event, ""));
    const slow = timed.filter(({ length }) => length !== null);
    slow.sort((a, b) => (b.length ?? 0) - (a.length ?? 0));
    const bad = calls.filter(looksFailed).map((event) => eventHit("Failed", event, ""));
    found = [...slow.slice(0, LISTED_CALLS), ...bad.slice(0, LISTED_CALLS)];
    show();
    const since = formatMoment(isDone ? start : (calls.at(-1)?.at ?? start), now);
    const all = `${isDone ? "all" : "the latest"} ${formatCount(calls.length)}`;
    setText("search-note", `Of ${all} since ${since}; ${formatCount(bad.length)} of them failed.`);
  }

  async function run(mine: number, work: Promise<void>): Promise<void> {
    await work.catch((error: unknown) => {
      const reason = error instanceof Error ? error.message : String(error);
      if (mine === asked) setText("search-note", `The server can't tell: ${reason}`);
    });
  }

  function ask(): void {
    isOfFile = /^\s*file:/i.test(input.value);
    text = input.value.replace(/^\s*file:/i, "").trim();
    const isAsked = wordsIn(text).length > 0;
    const mine = begin(isAsked ? "Searching…" : HINT);
    if (isAsked) timer = setTimeout(() => void run(mine, find(mine)), DEBOUNCE_MS);
  }

  /** @param heading of a list that isn't searched; null: the box is */
  function open(heading: string | null): void {
    input.hidden = heading !== null;
    setText("search-title", heading);
    if (!dialog.open) dialog.showModal();
    if (heading === null) input.select();
    else list.focus();
  }

  function openSearch(): void {
    open(null);
    ask();
  }

  input.addEventListener("input", ask);
  more.addEventListener("click", () => void run(asked, find(asked)));
  byId("search-open", HTMLButtonElement).addEventListener("click", openSearch);
  list.addEventListener("click", ({ target, ctrlKey, metaKey, shiftKey }) => {
    const isElsewhere = ctrlKey || metaKey || shiftKey; // in another tab
    if (target instanceof Element && target.closest("a") && !isElsewhere) dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key] ?? 0;
    const isEnter = event.key === "Enter" && !event.isComposing && event.target !== more;
    if (step === 0 && !isEnter) return;
    event.preventDefault();
    selected += step;
    show();
    const line = list.querySelector<HTMLElement>("[aria-selected=true]");
    if (isEnter) line?.click();
    else line?.scrollIntoView({ block: "nearest" });
  });

  return {
    open: openSearch,
    /** Again, with the sessions that are here now. */
    show,
    /** The slowest and the failed of the latest calls of a tool, an agent or a model. */
    showCalls(name: string, query: UsageQuery): void {
      open(name);
      const mine = begin("Searching…");
      void run(mine, findCalls(mine, name, query));
    },
  };
}
