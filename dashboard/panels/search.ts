/** One box that finds sessions and events in the whole history, and lists the calls behind a figure. */

import { hashOf, sessionHref } from "../address.ts";
import { PAGE_ROWS, findEvents } from "../api.ts";
import { byId, createList, fill, setText } from "../dom.ts";
import {
  CALL_KINDS,
  NO_FILTER,
  type TelemetryEvent,
  asText,
  isAbout,
  looksFailed,
  parseRecord,
} from "../events.ts";
import { hasWords, wordsIn } from "../find.ts";
import { HOUR_MS, formatCount, formatDuration, formatMoment } from "../format.ts";
import { type Rows, type SessionEntry, labelOf, statusOf } from "../rows.ts";
import { lineOf } from "./feed.ts";
import { type Line, createLines } from "./line.ts";
import { statusWord } from "./session-head.ts";
import { type Kind, nameOf } from "./usage.ts";

/** How long a person pauses before a question is asked. */
const DEBOUNCE_MS = 120;
const PAGE_HITS = 50;
/** Asked for at once where they hold few hits: as many mentions of a file may be none that touched it. */
const MAX_PAGES = 20;
const MAX_SESSIONS = 8;
/** Of the calls behind a figure: how many are looked at, and how many of each kind are listed. */
const LOOKED_AT_CALLS = 3_000;
const LISTED_CALLS = 10;
/** Of a long text, how much is shown before the first word that was found, and in all. */
const BEFORE_CHARS = 30;
const EXCERPT_CHARS = 300;
/** Fields that are told otherwise, or tell a person nothing. */
const UNTOLD = "id type session_id timestamp call_id tool sender outcome error".split(" ");
const HINT =
  "Any words: of a command, a path, an error. file:path finds the sessions that touched it.";

/** All text in a value; JSON in a text is opened. Numbers tell little. */
function textsIn(value: unknown): string[] {
  const inner = typeof value === "string" ? parseRecord(value) : value;
  if (typeof value === "string" && inner === null) return [value];
  return Object.values(inner ?? {}).flatMap(textsIn);
}

/** What an event says around `word`: "… of a path /src/a.ts · bun test" */
export function excerptOf(fields: Readonly<Record<string, unknown>>, word: string): string {
  const told = Object.entries(fields).filter(([name]) => !UNTOLD.includes(name));
  const texts = new Set(textsIn([fields.error, ...told.map(([, value]) => value)]));
  const text = [...texts].join(" · ").replace(/\s+/g, " ");
  const from = Math.max(0, text.toLowerCase().indexOf(word) - BEFORE_CHARS);
  const part = text.slice(from, from + EXCERPT_CHARS);
  return from === 0 ? part : part.replace(/^\S*/, "…");
}

// ─── What is found ───────────────────────────────────────────────────────────

/** A line, the session that it is of, and the heading that it stands under. */
type Hit = ReturnType<typeof eventHit>;

/** Page by page, also such as have no hit. */
type Search = AsyncGenerator<{ hits: readonly Hit[]; note: string }, void>;

/** Without the wait for the person; null: not told. */
function workedOf({ fields: { duration_ms, waited_ms } }: TelemetryEvent): number | null {
  return typeof duration_ms === "number" ? duration_ms - (Number(waited_ms) || 0) : null;
}

function eventHit(group: string, event: TelemetryEvent, text: string) {
  const { id, type, session_id: sessionId, fields } = event;
  // What is no call has no bar: the session's events are filtered to where it is.
  const place = CALL_KINDS[type] ? { spanId: id } : { filter: { ...NO_FILTER, text } };
  const href = hashOf({ sessionId, ...place });
  const worked = workedOf(event);
  const told = {
    href,
    text: excerptOf(fields, wordsIn(text)[0] ?? ""),
    reason: null, // it is in the text
    length: worked === null ? "" : formatDuration(worked),
  };
  const lineAt = (rows: Rows, now: number): Line => ({
    ...lineOf(rows, [event], null, now),
    ...told,
  });
  return { group, sessionId, lineAt };
}

/** The sessions that have these words in their title, directory or id, the latest first. */
function sessionHits({ sessions }: Rows, text: string): Hit[] {
  const words = wordsIn(text);
  const isMatch = ({ row: { id, info } }: SessionEntry) =>
    hasWords(`${asText(info.title)}\n${asText(info.directory)}\n${id}`, words);
  const found = [...sessions.values()].filter(isMatch);
  const latest = found.sort((a, b) => b.lastEventAt - a.lastEventAt).slice(0, MAX_SESSIONS);
  return latest.map((entry) => {
    const { id, info } = entry.row;
    const line = {
      ...{ key: id, version: "", at: entry.lastEventAt, href: sessionHref(id) },
      ...{ kind: "note", outcome: null, reason: null, isFailed: false, length: "" },
      name: statusWord(statusOf(entry)),
      text: `${labelOf(entry)} · ${asText(info.directory) ?? id}`,
      detail: async () => "",
    };
    return { group: "Sessions", sessionId: id, lineAt: (_, now) => ({ ...line, now }) };
  });
}

/** Stored events, newest first, page by page; the last page is empty. */
async function* pagesOf(query: Parameters<typeof findEvents>[0]) {
  let before: number | undefined;
  do {
    const page = await findEvents({ ...query, before });
    before = page.list.at(-1)?.id;
    yield page;
  } while (before !== undefined);
}

/** Events with these words, each call once; or of the calls that touched a file the latest of each session. */
async function* findText(text: string, isOfFile: boolean): Search {
  const known = new Set<string>();
  for await (const page of pagesOf({ q: text, limit: isOfFile ? PAGE_ROWS : PAGE_HITS })) {
    const hits: Hit[] = [];
    for (const event of page.list) {
      const kind = CALL_KINDS[event.type];
      const { call_id = event.id } = event.fields;
      const key = isOfFile ? event.session_id : `${event.session_id} ${kind} ${asText(call_id)}`;
      const isWanted = !isOfFile || (kind === "tool" && isAbout(event.fields, text));
      if (known.has(key) || !isWanted) continue;
      known.add(key);
      hits.push(eventHit(isOfFile ? "Sessions that touched it" : "Events", event, text));
    }
    const note = page.isIndexed ? "" : "The newest events are still being indexed.";
    yield { hits, note };
  }
}

/** The slowest and the failed of the latest calls of a tool, an agent or a model. */
async function* findCalls(name: string, kind: Kind, hours: number): Search {
  const types = { tools: "tool_use", agents: "agent_complete", models: "model_response" };
  const wanted = { type: types[kind], [kind === "tools" ? "tool" : "q"]: name };
  const now = Date.now();
  const start = now - hours * HOUR_MS;
  const from = new Date(start).toISOString();
  const calls: TelemetryEvent[] = [];
  for await (const { list: events } of pagesOf({ ...wanted, from })) {
    calls.push(...events.filter(({ fields }) => nameOf(fields) === name));
    if (calls.length >= LOOKED_AT_CALLS) break;
  }
  const isAll = calls.length < LOOKED_AT_CALLS;
  const since = isAll ? start : (calls.at(-1)?.at ?? start);
  const timed = calls.filter((call) => workedOf(call) !== null);
  const slow = timed.sort((a, b) => (workedOf(b) ?? 0) - (workedOf(a) ?? 0));
  const failed = calls.filter(looksFailed);
  const hitsOf = (group: string, list: TelemetryEvent[]) =>
    list.slice(0, LISTED_CALLS).map((call) => eventHit(group, call, ""));
  const all = `${isAll ? "all" : "the latest"} ${formatCount(calls.length)}`;
  yield {
    hits: [...hitsOf("Slowest", slow), ...hitsOf("Failed", failed)],
    note: `Of ${all} since ${formatMoment(since, now)}; ${formatCount(failed.length)} of them failed.`,
  };
}

// ─── The box ─────────────────────────────────────────────────────────────────

/** @param seekSession a hit is here, but not its session */
export function createSearch(rows: () => Rows, seekSession: (id: string) => void) {
  const dialog = byId("search", HTMLDialogElement);
  const input = byId("search-text", HTMLInputElement);
  const more = byId("search-more", HTMLButtonElement);
  const showGroups = createList<{ key: string; hits: readonly Hit[] }>(
    "search-groups",
    "search-group",
    (root, find) => {
      const showLines = createLines(find("ol"), () => {});
      return ({ key: heading, hits }) => {
        fill(root, { h3: heading });
        showLines(hits.map(({ lineAt }) => lineAt(rows(), Date.now())));
      };
    },
  );
  /** Of the sessions that are here: more are, once events of others were found. */
  let findSessions = (): readonly Hit[] => [];
  let found: readonly Hit[] = [];
  /** Of those found, how many are shown. */
  let limit = 0;
  /** What is asked for: an answer to another counts for nothing. */
  let search: Search | null = null;
  let timer: ReturnType<typeof setTimeout> | undefined;

  function show(): void {
    if (!dialog.open) return;
    const hits = [...findSessions(), ...found.slice(0, limit)];
    const groups = [...Map.groupBy(hits, ({ group }) => group)];
    showGroups(groups.map(([key, hits]) => ({ key, hits })));
    for (const { sessionId } of hits) if (!rows().sessions.has(sessionId)) seekSession(sessionId);
  }

  /** Goes on until it has one hit more than it shows: then "Show more" has something to show. */
  async function findMore(): Promise<void> {
    const mine = search;
    more.hidden = true;
    setText("search-note", "Searching…");
    limit += PAGE_HITS;
    show();
    let [note, isDone] = ["", false];
    try {
      for (let pages = 0; !isDone && found.length <= limit && pages < MAX_PAGES; pages++) {
        const page = await mine?.next();
        if (mine !== search) return;
        isDone = page?.done ?? true;
        note = page?.value?.note ?? note;
        found = [...found, ...(page?.value?.hits ?? [])];
        show();
      }
      const isAll = found.length <= limit;
      const isNone = isDone && findSessions().length + found.length === 0;
      more.hidden = isDone && isAll;
      if (isNone) note = `No session or event matches. ${note}`;
      if (isAll && !isDone) note = "Older events weren't searched yet.";
      setText("search-note", note);
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      if (mine === search) setText("search-note", `The server can't tell: ${reason}`);
    }
  }

  /** @param next null: nothing is asked for */
  function begin(next: Search | null, sessions = (): readonly Hit[] => []): void {
    clearTimeout(timer);
    [found, findSessions, search, limit] = [[], sessions, next, 0];
    more.hidden = true;
    setText("search-note", next === null ? HINT : "Searching…");
    show();
    if (next !== null) timer = setTimeout(() => void findMore(), DEBOUNCE_MS);
  }

  function ask(): void {
    const isOfFile = /^\s*file:/i.test(input.value);
    const text = input.value.replace(/^\s*file:/i, "").trim();
    if (wordsIn(text).length === 0) return begin(null);
    begin(findText(text, isOfFile), () => (isOfFile ? [] : sessionHits(rows(), text)));
  }

  /** @param heading of a list that isn't searched; null: the box is */
  function open(heading: string | null): void {
    input.hidden = heading !== null;
    setText("search-title", heading);
    if (!dialog.open) dialog.showModal();
    input.select();
  }

  function openSearch(): void {
    open(null);
    ask();
  }

  input.addEventListener("input", ask);
  more.addEventListener("click", () => void findMore());
  byId("search-open", HTMLButtonElement).addEventListener("click", openSearch);
  // A press anywhere on a line opens where it was; with these keys in another tab.
  dialog.addEventListener("click", (event) => {
    const { target, ctrlKey, metaKey, shiftKey } = event;
    const link = target instanceof Element && target.closest(".line")?.querySelector("a");
    if (!link || ctrlKey || metaKey || shiftKey) return;
    event.preventDefault();
    dialog.close();
    location.hash = link.hash;
  });
  dialog.addEventListener("keydown", (event) => {
    const links = [...dialog.querySelectorAll<HTMLAnchorElement>(".line-time")];
    const at = links.findIndex((link) => link === document.activeElement);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key] ?? 0;
    if (event.key === "Enter" && event.target === input && !event.isComposing) links[0]?.click();
    if (step === 0) return;
    event.preventDefault();
    (links[at + step] ?? (step < 0 ? input : links[at]))?.focus();
  });

  return {
    open: openSearch,
    /** Again, with the sessions that are here now. */
    show,
    showCalls(name: string, kind: Kind, hours: number): void {
      open(name);
      begin(findCalls(name, kind, hours));
    },
  };
}
