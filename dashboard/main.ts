/**
 * The wiring: rows that come over the network go into the replica, what is in it goes onto the page,
 * what the person does goes into the address.
 *
 *     GET routes ──▶ load ──▶ rows ──▶ panels, timeline
 *     stream ──▶ pending ──────┘   at most once per frame
 */

import type { Activity, Overview } from "../server.ts";
import { type Route, hashOf, routeOf } from "./address.ts";
import { get, getCall, getOverview, getSessionText } from "./api.ts";
import { byId, setText } from "./dom.ts";
import type { FeedFilter } from "./events.ts";
import { createFrames } from "./frames.ts";
import { createHistory } from "./history.ts";
import {
  loadFamily,
  loadFamilySpans,
  loadOlderSpans,
  loadRows,
  loadSpansOf,
  seekSession,
} from "./load.ts";
import { createCalls } from "./panels/calls.ts";
import { createEmptyState } from "./panels/empty.ts";
import { createFeed } from "./panels/feed.ts";
import { createHeader } from "./panels/header.ts";
import { createSessionHead } from "./panels/session-head.ts";
import { createSessions } from "./panels/sessions.ts";
import { type UsageRow, createUsage, nameOf } from "./panels/usage.ts";
import { type Frame, createRows, isWhole, takeFrame } from "./rows.ts";
import { createStream } from "./stream.ts";
import { createTimeline } from "./timeline/timeline.ts";
import { familyOf } from "./tree.ts";

/** Of one frame, spent on taking rows; the rest of its 16 ms is for drawing. */
const TAKE_BUDGET_MS = 6;
/** Ages and running durations count seconds. */
const TICK_MS = 1_000;
const USAGE_INTERVAL_MS = 10_000;
/** The figures of the header, while something comes and while nothing does. */
const OVERVIEW_INTERVAL_MS = 1_000;
const QUIET_OVERVIEW_INTERVAL_MS = 10_000;
/** Sessions that are asked for at the same time: a browser has six connections to a server. */
const MAX_SEEKS = 3;
/** Sessions that the feed's filter offers. */
const OFFERED_SESSIONS = 50;

const empty = byId("empty", HTMLElement);
const layout = byId("layout", HTMLElement);
const analytics = byId("analytics", HTMLElement);
const notice = byId("notice", HTMLParagraphElement);

let rows = createRows();
let isLoaded = false;
let pending: Frame[] = [];
let overview: Overview | null = null;
let route: Route = routeOf(location.hash);
/** The session page, once its session and all below it were asked for. */
let opened: { id: string; isAnswered: boolean; isLoading: boolean } | null = null;

const header = createHeader({ togglePause: () => stream.toggle() });
const sessions = createSessions({ changed: () => frames.requestPanelsNow() });
const sessionHead = createSessionHead({ copy: getSessionText });
const feed = createFeed({
  filterChanged: (filter) => location.replace(hashOf({ ...route, filter })),
  loadOlder: () => void ask(history.loadOlder(feed.limit())),
  changed: () => frames.requestPanelsNow(),
});
const usage = createUsage({ changed: () => void ask(loadUsage()) });
const calls = createCalls({
  changed: () => frames.requestPanelsNow(),
  loadCall: getCall,
  loadOlder: () => void loadOlderCalls(),
});
const timeline = createTimeline({
  rows: () => rows,
  now: Date.now,
  openSession: (id) => {
    location.hash = hashOf({ sessionId: id, filter: route.filter, spanId: null });
  },
  wantsOlder: () => void loadOlderBars(),
  requestDraw: () => frames.requestTimeline(),
});
const history = createHistory({ rows: () => rows, filter: feedFilter, seekSession: seek });
const frames = createFrames({
  panels: { main: showMain, sessions: showSessions, header: showHeader },
  timeline,
  prepare() {
    takePending(TAKE_BUDGET_MS);
    if (isLoaded) showPage();
    return isLoaded;
  },
  isBehind: () => pending.length > 0,
});
const stream = createStream({
  async load(isWanted) {
    takePending(Infinity);
    if (isLoaded) return null;
    const loaded = await Promise.all([loadRows(), getOverview()]);
    if (!isWanted()) return null;
    [rows, overview] = loaded;
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
    rows.asked.clear();
    wantOverview();
    void ask(loadUsage());
  },
  reset() {
    isLoaded = false; // but without an empty page in between
  },
  show(connection) {
    header.showConnection(connection);
    if (connection.state === "connecting") return; // what was wrong may still be
    const problem = connection.state === "waiting" ? connection.reason : null;
    notice.hidden = problem === null;
    setText(notice, problem ?? "");
  },
});
createEmptyState(location.origin);

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
  wantOverview();
  frames.requestPanels();
}

/** Waits for what the page can do without: where it fails, the stream says what is wrong. */
async function ask(work: Promise<unknown>): Promise<void> {
  await work.catch(() => undefined);
  frames.requestPanels();
}

let overviewAskedAt = 0;
let overviewTimer: ReturnType<typeof setTimeout> | undefined;

/** The figures are others: they are asked for soon, and once for all that comes until then. */
function wantOverview(): void {
  if (overviewTimer !== undefined || document.hidden) return;
  const wait = overviewAskedAt + OVERVIEW_INTERVAL_MS - performance.now();
  overviewTimer = setTimeout(
    async () => {
      overviewAskedAt = performance.now();
      await ask(getOverview().then((figures) => (overview = figures)));
      overviewTimer = undefined;
    },
    Math.max(0, wait),
  );
}

let usageAsked = 0;
let usageAskedAt = 0;
let usageHead = -1;

async function loadUsage(): Promise<void> {
  if (!isLoaded || route.sessionId !== null || document.hidden) return;
  const asked = ++usageAsked;
  usageAskedAt = performance.now();
  usageHead = rows.head;
  const { kind, hours } = usage.query;
  const [stats, counts] = await Promise.all([
    get(`/api/analytics/${kind}`, { hours }),
    get("/api/analytics/activity", { hours }),
  ]);
  const body: { tools?: UsageRow[]; agents?: UsageRow[] } = await stats.json();
  const { activity }: { activity: Activity[] } = await counts.json();
  if (asked !== usageAsked) return; // another choice was made meanwhile
  const used = body.tools ?? body.agents ?? [];
  usage.show(used, activity, Date.now());
  if (kind === "tools") feed.offerToolNames(used.map(nameOf));
}

let seeks = 0;

/** A row of a session is here, but not the session's own. */
function seek(id: string): void {
  if (seeks >= MAX_SEEKS || rows.asked.has(id) || rows.deleted.has(id)) return;
  seeks++;
  void ask(seekSession(rows, id)).finally(() => seeks--);
}

let isLoadingBars = false;

/** One page at a time, while the timeline shows a time before the spans that are here. */
async function loadOlderBars(): Promise<void> {
  if (isLoadingBars) return;
  isLoadingBars = true;
  const of = rows;
  await loadOlderSpans(of).catch(() => {
    of.oldestSpanId = 0; // asked again after the next load; the stream says what is wrong
  });
  isLoadingBars = false;
  frames.requestTimeline();
}

/** The open session and all below it, then their spans. */
async function openSession(): Promise<void> {
  const id = route.sessionId;
  if (id === null || !isLoaded || opened?.id === id) return;
  const of = rows;
  const page = { id, isAnswered: false, isLoading: true };
  opened = page;
  const isWanted = () => opened === page && rows === of;
  try {
    const isThere = await loadFamily(of, id);
    page.isAnswered = true;
    if (!isThere || !isWanted()) return;
    showFamily(id);
    timeline.fit();
    await loadFamilySpans(of, id, familyOf(of, id), isWanted);
    if (isWanted()) timeline.fit();
  } catch {
    if (opened === page && !page.isAnswered) opened = null; // asked again with the next tick
  } finally {
    page.isLoading = false;
    frames.requestPanels();
  }
}

async function loadOlderCalls(): Promise<void> {
  const page = opened;
  if (page === null || page.isLoading) return;
  page.isLoading = true;
  await ask(loadSpansOf(rows, page.id));
  page.isLoading = false;
}

// ─── Drawing ─────────────────────────────────────────────────────────────────

/** Empty state, overview or session page. */
function showPage(): void {
  const isEmpty = rows.sessions.size === 0;
  const view = isEmpty ? "empty" : route.sessionId === null ? "overview" : "session";
  if (document.body.dataset.view === view) return;
  document.body.dataset.view = view;
  empty.hidden = !isEmpty;
  layout.hidden = isEmpty;
  analytics.hidden = route.sessionId !== null;
  if (view === "overview") void ask(loadUsage());
}

function showHeader(): void {
  if (overview !== null) header.show(overview, rows, Date.now());
}

function showSessions(): void {
  if (rows.sessions.size > 0) sessions.show(rows, route.sessionId, Date.now());
}

/** The feed, and on a session's page its head and calls. */
function showMain(): void {
  const now = Date.now();
  for (const id of rows.groups.keys()) if (!rows.sessions.has(id)) seek(id);
  if (route.sessionId !== null) showSession(route.sessionId, now);
  const { events, waiting, hasOlder } = history.page(feed.limit(), feed.isHeld());
  feed.show(rows, events, waiting, hasOlder, now);
}

function showSession(id: string, now: number): void {
  const session = rows.sessions.get(id);
  const isAnswered = opened?.id === id && opened.isAnswered;
  if (session === undefined) {
    calls.hide();
    if (isAnswered) sessionHead.showMissing(id);
    return;
  }
  const hasOlder = isAnswered && opened?.isLoading === false && !isWhole(rows, session);
  sessionHead.show(rows, session, now);
  calls.show(rows, session, hasOlder, now);
  showFamily(id);
}

/** The timeline shows this session and what is below it, and their rows stay. */
function showFamily(id: string): void {
  rows.pinned = familyOf(rows, id);
  timeline.setScope(rows.pinned);
}

// ─── The address, the clock, the tab ─────────────────────────────────────────

/** On a session's page the feed is its own. */
function feedFilter(): FeedFilter {
  return route.sessionId === null ? route.filter : { ...route.filter, sessionId: route.sessionId };
}

function showFilter(): void {
  const latest = [...rows.sessions.values()]
    .sort((a, b) => b.lastEventAt - a.lastEventAt)
    .slice(0, OFFERED_SESSIONS);
  feed.showFilter(route.filter, latest, route.sessionId !== null);
}

function showRoute(): void {
  const previous = route;
  route = routeOf(location.hash);
  if (JSON.stringify(previous) !== JSON.stringify(route)) history.reset();
  showFilter();
  if (previous.sessionId !== route.sessionId) {
    opened = null;
    rows.pinned = new Set();
    sessionHead.hide();
    calls.hide();
    if (route.sessionId === null) {
      timeline.setScope(null);
      timeline.reset();
    } else {
      showFamily(route.sessionId);
      timeline.fit();
      void openSession();
    }
    scrollTo(0, 0);
  }
  if (route.spanId !== null) timeline.wantSpan(route.spanId);
  // On a narrow screen it is further down.
  if (route.filter.type === "failed" && previous.filter.type !== "failed")
    byId("feed-scroll", HTMLDivElement).scrollIntoView({ block: "nearest" });
  if (isLoaded) void ask(history.fill());
  frames.requestPanelsNow();
}

function showLoaded(): void {
  opened = null;
  history.reset();
  showFilter();
  if (route.spanId !== null) timeline.wantSpan(route.spanId);
  if (route.sessionId === null) timeline.showLoaded();
  else void openSession();
  void ask(history.fill());
  void ask(loadUsage());
  frames.requestPanelsNow();
}

addEventListener("hashchange", showRoute);
document.addEventListener("visibilitychange", () => frames.requestPanels());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => frames.requestPanels());
byId("feed-session", HTMLSelectElement).addEventListener("focus", showFilter);
byId("skip-link", HTMLAnchorElement).addEventListener("click", (event) => {
  event.preventDefault(); // the part after # is the page's address
  byId("timeline-scroll", HTMLDivElement).focus();
});

setInterval(() => {
  frames.requestPanels();
  if (!stream.isOpen()) return;
  const at = performance.now();
  if (at - overviewAskedAt >= QUIET_OVERVIEW_INTERVAL_MS) wantOverview();
  if (at - usageAskedAt >= USAGE_INTERVAL_MS && usageHead !== rows.head) void ask(loadUsage());
  void openSession();
}, TICK_MS);

stream.start();
