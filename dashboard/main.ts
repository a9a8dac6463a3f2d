/**
 * The wiring: rows that come over the network go into the replica, what is in it goes onto the page,
 * what the person does goes into the address.
 *
 *     GET routes ──▶ load ──▶ rows ──▶ panels, timeline
 *     stream ──▶ pending ──────┘   at most once per frame
 */

import { type Tab, hashOf, routeOf } from "./address.ts";
import { getEvents } from "./api.ts";
import { type Need, type Usual, needsBySession, needsOf } from "./attention.ts";
import { byId } from "./dom.ts";
import type { TelemetryEvent } from "./events.ts";
import { createFrames } from "./frames.ts";
import { createHistory } from "./history.ts";
import {
  loadFamily,
  loadFamilySpans,
  loadOlderSpans,
  loadRows,
  loadSpansOf,
  refreshSessions,
  seekSpan,
} from "./load.ts";
import { createCalls } from "./panels/calls.ts";
import { createControls } from "./panels/controls.ts";
import { createEmptyState } from "./panels/empty.ts";
import { createFeed } from "./panels/feed.ts";
import { createHeader } from "./panels/header.ts";
import { createNotify } from "./panels/notify.ts";
import { createSearch } from "./panels/search.ts";
import { createSessionHead } from "./panels/session-head.ts";
import { createSessionTabs } from "./panels/session-tabs.ts";
import { createSessions } from "./panels/sessions.ts";
import { createSpend } from "./panels/spend.ts";
import { createUsage, nameOf } from "./panels/usage.ts";
import { type Frame, createRows, isWhole, takeFrame, takeMarks } from "./rows.ts";
import { createStream } from "./stream.ts";
import { createTimeline } from "./timeline/timeline.ts";
import { familyOf, treeOf } from "./tree.ts";

/** Of one frame, spent on taking rows; the rest of its 16 ms is for drawing. */
const TAKE_BUDGET_MS = 6;
/** Ages and running durations count seconds. */
const TICK_MS = 1_000;
/** The figures, while nothing comes; else with each tick. */
const FIGURES_INTERVAL_MS = 10_000;
/** A page that isn't shown has no stream, but a title, an icon and notifications. */
const HIDDEN_INTERVAL_MS = 15_000;
/** Of fewer calls of a tool nothing follows for how long the next may take. */
const MIN_USUAL_CALLS = 20;
/** What tells of a session's turns. */
const MILESTONES = ["turn_start", "session_compacted", "session_error"];
/** Sessions that are asked for at the same time: a browser has six connections to a server. */
const MAX_SEEKS = 3;

let rows = createRows();
let isLoaded = false;
let pending: Frame[] = [];
let usualMs: Usual = null;
/** By the session's id, for the timeline, which is drawn more often than they change. */
let needs: ReadonlyMap<string, Need> = new Map();
let route = routeOf(location.hash);
/** The session page, once its session and all below it were asked for. */
let opened: { id: string; isLoading: boolean } | null = null;
/** Its milestones, of each type the latest, by id. */
const milestones = new Map<number, TelemetryEvent>();

const notify = createNotify();
const redraw = () => frames.requestPanelsNow();
const refresh = () => void ask(loadFigures());
const header = createHeader(() => stream.toggle());
const showList = createSessions(redraw);
const sessionHead = createSessionHead();
const feedFilter = () => ({ ...route.filter, sessionId: route.sessionId });
const history = createHistory(() => rows, feedFilter, seek);
const feed = createFeed(
  history,
  (filter) => location.replace(hashOf({ ...route, filter })),
  (limit) => void ask(history.loadOlder(limit)),
  redraw,
);
const search = createSearch(() => rows, seek);
createControls(search.open);
const loadSpend = createSpend(refresh);
const loadTable = createUsage(refresh, search.showCalls);
const calls = createCalls(redraw, (id) => void loadCallsOf(id));
const showTab = (tab: Tab) => location.replace(hashOf({ sessionId: route.sessionId, tab }));
const sessionTabs = createSessionTabs(showTab, redraw);
const timeline = createTimeline({
  rows: () => rows,
  needs: () => needs,
  openSession: (sessionId, spanId) => {
    location.hash = hashOf({ sessionId, filter: route.filter, spanId });
  },
  spanSelected: (spanId) => location.replace(hashOf({ ...route, spanId })),
  wantsOlder: () => void loadOlderBars(),
  requestDraw: () => frames.requestTimeline(),
});
const frames = createFrames({
  panels: [showNeeds, showMain, showSessions],
  timeline,
  prepare() {
    takePending(TAKE_BUDGET_MS);
    if (isLoaded) showPage();
    return isLoaded;
  },
});
const stream = createStream({
  async load(isWanted) {
    takePending(Infinity);
    if (isLoaded) return null;
    const loaded = await loadRows();
    if (!isWanted()) return null;
    rows = loaded;
    pending = [];
    isLoaded = true;
    showLoaded();
    return rows.head;
  },
  received(frame) {
    pending.push(frame);
    frames.request();
  },
  opened() {
    sought.clear();
    refresh();
  },
  reset() {
    isLoaded = false; // but without an empty page in between
  },
  show: header.showConnection,
});
const lookForPlugin = createEmptyState();

// ─── What comes from the server ──────────────────────────────────────────────

/** @param budgetMs what isn't done then waits for the next frame */
function takePending(budgetMs: number): void {
  if (pending.length === 0) return;
  const until = performance.now() + budgetMs;
  let done = 0;
  for (const frame of pending) {
    takeFrame(rows, frame);
    if (++done % 16 === 0 && performance.now() > until) break;
  }
  pending = pending.slice(done);
  frames.requestPanels(); // and with them the next frame
}

/** Waits for what the page can do without: where it fails, the stream says what is wrong. */
async function ask(work: Promise<unknown>): Promise<void> {
  await work.catch(() => undefined);
  frames.requestPanels();
}

let askedAt = -Infinity;
let askedHead = -1;
let isAsking = false;

/** The figures of the header, and of the table that is shown. */
async function loadFigures(): Promise<void> {
  if (!isLoaded || document.hidden) return;
  askedAt = performance.now();
  askedHead = rows.head; // what comes while it is asked for may not be in the answer
  isAsking = true;
  const answers = [header.load(Date.now()), route.isSpend ? loadSpend(Date.now()) : loadUsage()];
  await Promise.all(answers).finally(() => (isAsking = false));
}

/** On a session's page it isn't shown, but what is usual must be known. */
async function loadUsage(): Promise<void> {
  if (route.sessionId !== null && usualMs !== null) return;
  const used = await loadTable();
  if (used?.kind !== "tools") return;
  const told = used.rows.filter(({ count }) => count >= MIN_USUAL_CALLS);
  usualMs = new Map(told.map((row) => [nameOf(row), row.p95_duration_ms ?? Infinity]));
}

/** Sessions that the server is asked for, or was in vain since the stream is open. */
const sought = new Set<string>();
let seeks = 0;

/** A row of a session is here, but not the session's own. */
function seek(id: string): void {
  if (seeks >= MAX_SEEKS || sought.has(id) || rows.deleted.has(id)) return;
  seeks++;
  sought.add(id);
  void ask(loadFamily(rows, id).then(() => sought.delete(id))).finally(() => seeks--);
}

let isLoadingBars = false;

/** One page at a time, while the timeline shows a time before the spans that are here. */
async function loadOlderBars(): Promise<void> {
  if (isLoadingBars || !stream.isOpen()) return;
  isLoadingBars = true;
  const of = rows;
  const before = of.oldestSpanId;
  await loadOlderSpans(of).catch(() => undefined); // asked again with the next picture
  isLoadingBars = false;
  if (of.oldestSpanId !== before) frames.requestTimeline(); // else nothing was asked for: it would ask for ever
}

/** The open session and all below it, then their spans. */
async function openSession(): Promise<void> {
  const id = route.sessionId;
  if (id === null || !isLoaded || opened?.id === id) return;
  const of = rows;
  const page = { id, isLoading: true };
  opened = page;
  of.family = familyOf(of, id);
  const isWanted = () => opened === page && rows === of;
  try {
    const asked = MILESTONES.map((type) => getEvents({ sessionId: id, type }));
    const failed = getEvents({ type: "session_error" }); // also of those below it
    const [isThere, errors, ...pages] = await Promise.all([loadFamily(of, id), failed, ...asked]);
    if (!isThere || !isWanted()) return;
    const told = pages.flat();
    for (const event of told) milestones.set(event.id, event);
    if (route.spanId !== null) calls.select(route.spanId); // only now its turn is known
    takeMarks(of, [...told, ...errors.filter(({ session_id }) => of.family.has(session_id))]);
    if (route.spanId === null) timeline.fit();
    await loadFamilySpans(of, isWanted);
    if (isWanted() && route.spanId === null) timeline.fit();
  } catch {
    if (opened === page) opened = null; // asked again with the next tick
  } finally {
    page.isLoading = false;
    frames.requestPanels();
  }
}

/** A page more of the calls of a session that is shown, where not all are here. */
async function loadCallsOf(id: string): Promise<void> {
  const [page, session] = [opened, rows.sessions.get(id)];
  if (page === null || page.isLoading || session === undefined || isWhole(rows, session)) return;
  page.isLoading = true;
  await ask(loadSpansOf(rows, id));
  page.isLoading = false;
}

// ─── Drawing ─────────────────────────────────────────────────────────────────

/** Empty state, overview, spend or session page: style.css says what each shows. */
function showPage(): void {
  const page = route.isSpend ? "spend" : route.sessionId === null ? "overview" : "session";
  const view = rows.sessions.size === 0 ? "empty" : page;
  const shown = document.body.dataset.view;
  if (shown === view) return;
  document.body.dataset.view = view;
  if (view !== "session" && shown !== "loading") refresh(); // then as soon as the stream is open
}

const needsNow = () => needsOf(rows, usualMs, Date.now());

/** Also where the page isn't shown. */
function showNeeds(): void {
  const all = needsNow();
  needs = needsBySession(all);
  header.showNeeds(all, Date.now());
  notify(all, treeOf(rows));
}

function showSessions(): void {
  if (rows.sessions.size > 0) showList(rows, needsNow(), route.sessionId, Date.now());
}

/** The feed, and on a session's page its head and calls. */
function showMain(): void {
  const isOfOne = route.sessionId !== null;
  // First: where it is scrolled to asks for the layout.
  if (!isOfOne || route.tab === "events") feed.show(rows, isOfOne, Date.now());
  search.show();
  for (const { row } of rows.spans.values())
    if (!rows.sessions.has(row.session_id)) seek(row.session_id);
  if (route.sessionId !== null) showSession(route.sessionId, Date.now());
}

function showSession(id: string, now: number): void {
  const session = rows.sessions.get(id);
  if (session === undefined) {
    sessionTabs.hide();
    byId("feed", HTMLElement).hidden = true; // which is of all sessions
    byId("session-table", HTMLElement).hidden = false;
    if (rows.deleted.has(id)) sessionHead.showMissing(id);
    return;
  }
  const hasOlder = opened?.isLoading === false && !isWhole(rows, session);
  for (const event of rows.feed)
    if (event.session_id === id && MILESTONES.includes(event.type)) milestones.set(event.id, event);
  const told = [...milestones.values()].sort((a, b) => a.at - b.at || a.id - b.id);
  sessionHead.show(rows, session, told, needsNow(), now);
  sessionTabs.show(rows, session, route.tab);
  if (route.tab === "calls") calls.show(rows, session, told, hasOlder, now);
  if (route.tab === "errors") calls.showErrors(rows, session, now);
  rows.family = familyOf(rows, id);
}

// ─── The address, the clock, the tab ─────────────────────────────────────────

/** The address may have any event of a call: the span that it is of takes its place. */
async function seekSelected(): Promise<void> {
  const { sessionId, spanId } = route;
  if (sessionId === null || spanId === null) return;
  const found = await seekSpan(rows, sessionId, spanId);
  const isWanted = found !== spanId && route.spanId === spanId;
  if (isWanted) location.replace(hashOf({ ...route, spanId: found }));
}

function showRoute(): void {
  const previous = route;
  route = routeOf(location.hash);
  if (hashOf({ ...previous, spanId: null }) !== hashOf({ ...route, spanId: null })) history.reset();
  if (previous.sessionId !== route.sessionId) {
    opened = null;
    rows.family = new Set();
    milestones.clear();
    sessionHead.hide();
    sessionTabs.hide();
    timeline.wantSpan(null);
    timeline.fit();
    scrollTo(0, 0);
  } else if (route.sessionId !== null && route.tab !== previous.tab)
    scrollTo({ top: byId("tabs", HTMLElement).offsetTop });
  // On a narrow screen it is further down.
  if (route.filter.type === "failed" && previous.filter.type !== "failed")
    byId("feed-scroll", HTMLDivElement).scrollIntoView({ block: "nearest" });
  showWanted();
}

function showLoaded(): void {
  opened = null;
  history.reset();
  if (route.sessionId === null) timeline.showLoaded();
  showWanted();
}

/** What the address asks for. */
function showWanted(): void {
  feed.showFilter(route.filter);
  timeline.wantSpan(route.spanId);
  calls.select(route.spanId);
  frames.requestPanelsNow();
  if (!isLoaded) return;
  void openSession();
  void ask(seekSelected());
  void ask(history.fill());
}

addEventListener("hashchange", showRoute);
document.addEventListener("visibilitychange", () => frames.requestPanels());
byId("skip-link", HTMLAnchorElement).addEventListener("click", (event) => {
  event.preventDefault(); // the part after # is the page's address
  byId("timeline-scroll", HTMLDivElement).focus();
});

let refreshedAt = -Infinity;

setInterval(() => {
  frames.requestPanels();
  const at = performance.now();
  if (document.hidden && isLoaded && at - refreshedAt >= HIDDEN_INTERVAL_MS) {
    refreshedAt = at;
    void ask(refreshSessions(rows).then(showNeeds));
  }
  if (!stream.isOpen()) return;
  if (document.body.dataset.view === "empty") void ask(lookForPlugin(Date.now()));
  const isOld = at - askedAt >= FIGURES_INTERVAL_MS || askedHead !== rows.head;
  if (isOld && !isAsking) refresh();
  void openSession();
}, TICK_MS);

stream.start();
