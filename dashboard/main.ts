/**
 * The wiring: what comes over the network goes into the state, what is in the state goes onto the
 * page, what the person does goes into the address.
 *
 *     GET routes ──▶ load ──▶ state ──▶ panels, timeline
 *     stream ──▶ pending ──▶ fold ──┘   at most once per frame
 *
 * The stream goes on from the very event that the loaded lists end with. A hidden page lets go of
 * its stream, because a browser allows only six connections to a server, and goes on when shown.
 */

import type { Activity, AgentRun, Session, ToolCall, UsageStats } from "../server.ts";
import { byId } from "./dom.ts";
import {
  type DashboardState,
  EVENT_TYPES,
  type FeedFilter,
  type Route,
  type SessionState,
  type Status,
  type TelemetryEvent,
  MAX_SPANS,
  createState,
  familyOf,
  foldEvent,
  hashOf,
  headline,
  isLive,
  loadActivity,
  loadDetail,
  loadHistory,
  loadSession,
  loadSessions,
  matchesFilter,
  readEvent,
  rootsOf,
  routeOf,
  sessionTree,
  statusOf,
} from "./state.ts";
import { createTimeline } from "./timeline.ts";
import {
  type Connection,
  type UsageRow,
  createCalls,
  createEmptyState,
  createFeed,
  createHeader,
  createSessionHead,
  createSessions,
  createUsage,
} from "./view.ts";

/** What one answer of the server holds at most. */
const PAGE_EVENTS = 1_000;
const MAX_LISTED_SESSIONS = 1_000;
/** Of one frame, spent on folding events; the rest of its 16 ms is for drawing. */
const FOLD_BUDGET_MS = 6;
/** Text that changes faster than this can't be read. */
const PANELS_INTERVAL_MS = 250;
/** Unless it is moved: then every frame. */
const TIMELINE_INTERVAL_MS = 100;
/** Ages and running durations count seconds. */
const TICK_MS = 1_000;
const USAGE_INTERVAL_MS = 10_000;
const DETAIL_INTERVAL_MS = 2_000;
const FIRST_RETRY_MS = 1_000;
const MAX_RETRY_MS = 15_000;
/** Sessions whose agents are asked for, because they started before the loaded events. */
const MAX_COMPLETED_SESSIONS = 20;
/** A feed with fewer is filled from the history at once: about a screen. */
const FULL_FEED_EVENTS = 50;
/** Older events that "Load older" keeps. */
const MAX_OLDER_EVENTS = 5_000;
/** Room that loading older calls leaves for new ones. */
const MAX_LOADED_SPANS = MAX_SPANS * 0.8;

const empty = byId("empty", HTMLElement);
const layout = byId("layout", HTMLElement);
const analytics = byId("analytics", HTMLElement);
const notice = byId("notice", HTMLParagraphElement);

let state = createState();
let isLoaded = false;
let route: Route = routeOf(location.hash);
/** Of the session that is open. */
let detail: { id: string; tools: ToolCall[]; agents: AgentRun[]; isMissing: boolean } | null = null;

const header = createHeader({ togglePause });
const sessions = createSessions({ changed: requestPanelsNow });
const sessionHead = createSessionHead({ copy: async (id) => (await get(sessionPath(id))).text() });
const feed = createFeed({
  filterChanged: (filter) => {
    location.replace(hashOf({ ...route, filter }));
  },
  loadOlder: () => void loadOlderFeed(),
  changed: requestPanelsNow,
});
const usage = createUsage({ changed: () => void loadUsage() });
const calls = createCalls({ changed: requestPanelsNow });
const timeline = createTimeline({
  state: () => state,
  now: Date.now,
  openSession: (id) => {
    location.hash = hashOf({ sessionId: id, filter: route.filter });
  },
  wantsOlder: () => void loadOlderCalls(),
  requestDraw: requestTimeline,
});
createEmptyState(location.origin);

// ─── Asking the server ───────────────────────────────────────────────────────

class ServerError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

/** @throws ServerError with what the server says is wrong */
async function get(path: string): Promise<Response> {
  const response = await fetch(path);
  if (response.ok) return response;
  const body: { error?: string } = await response.json().catch(() => ({}));
  throw new ServerError(response.status, body.error ?? `${path}: ${response.status}`);
}

function sessionPath(id: string): string {
  return `/api/sessions/${encodeURIComponent(id)}`;
}

async function getEvents(query: Record<string, string | number | null>): Promise<TelemetryEvent[]> {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(query))
    if (value !== null) params.set(name, String(value));
  const { events }: { events: unknown[] } = await (await get(`/api/events?${params}`)).json();
  return events.map(readEvent).filter((event) => event !== null);
}

/** The whole state anew, from the GET routes. The stream goes on from `head` of what it returns. */
async function loadState(): Promise<DashboardState> {
  const next = createState();
  const list = await get(`/api/sessions?limit=${MAX_LISTED_SESSIONS}`);
  const head = Number(list.headers.get("Last-Event-ID"));
  const { sessions: rows }: { sessions: Session[] } = await list.json();
  loadSessions(next, rows, head);
  const [events, counts] = await Promise.all([
    getEvents({ limit: PAGE_EVENTS, before: head + 1 }),
    get("/api/analytics/activity?hours=1"),
  ]);
  loadHistory(next, events, events.length === 0);
  const { activity }: { activity: Activity[] } = await counts.json();
  // Asked for after the list, so it has all of its events; where it says how many more, none counts twice.
  loadActivity(next, activity, Number(counts.headers.get("Last-Event-ID") ?? head));
  return next;
}

/** The calls of sessions that go on, and began before the events that are loaded: their agents may still run. */
async function completeLiveSessions(of: DashboardState): Promise<void> {
  const now = Date.now();
  const lacking = [...of.sessions.values()]
    .filter((session) => session.agentCount > session.agents.length && isLive(session, now))
    .slice(0, MAX_COMPLETED_SESSIONS);
  for (const { id } of lacking) {
    const answer: { tools: ToolCall[]; agents: AgentRun[] } = await (
      await get(sessionPath(id))
    ).json();
    if (of !== state) return;
    loadDetail(of, id, [], answer.agents);
    requestPanels();
  }
}

let isLoadingCalls = false;

/** One page of older events at a time, while the timeline shows a time before the loaded ones. */
async function loadOlderCalls(): Promise<void> {
  const of = state;
  if (isLoadingCalls || of.oldestId === 0 || of.spans.size > MAX_LOADED_SPANS) return;
  isLoadingCalls = true;
  try {
    const events = await getEvents({ limit: PAGE_EVENTS, before: of.oldestId });
    if (of === state) loadHistory(of, events, events.length === 0);
  } catch {
    of.oldestId = 0; // asked again after the next load; the stream says what is wrong
  } finally {
    isLoadingCalls = false;
    requestTimeline();
  }
}

let usageAsked = 0;

async function loadUsage(): Promise<void> {
  if (!isLoaded || route.sessionId !== null || document.hidden) return;
  const asked = ++usageAsked;
  const { kind, hours } = usage.query;
  try {
    const [stats, counts] = await Promise.all([
      get(`/api/analytics/${kind}?hours=${hours}`),
      get(`/api/analytics/activity?hours=${hours}`),
    ]);
    const body: {
      tools?: (UsageStats & { tool: string })[];
      agents?: (UsageStats & { subagent_type: string })[];
    } = await stats.json();
    const { activity }: { activity: Activity[] } = await counts.json();
    if (asked !== usageAsked) return; // another choice was made meanwhile
    const rows: UsageRow[] = [
      ...(body.tools ?? []).map(({ tool, ...row }) => ({ name: tool, ...row })),
      ...(body.agents ?? []).map(({ subagent_type, ...row }) => ({ name: subagent_type, ...row })),
    ];
    usage.show(rows, activity, Date.now());
    if (kind === "tools") feed.showToolNames(rows.map((row) => row.name).sort());
  } catch {
    // The stream says what is wrong; asked again with the next tick.
  }
}

let isLoadingDetail = false;
let detailRevision = -1;
let detailLoadedAt = 0;

/** The open session and those below it, with all their calls. */
async function loadOpenSession(): Promise<void> {
  const id = route.sessionId;
  const of = state;
  if (id === null || !isLoaded || isLoadingDetail) return;
  isLoadingDetail = true;
  const startedAt = performance.now();
  detailRevision = of.sessions.get(id)?.eventCount ?? 0;
  try {
    const answer: { session: Session; tools: ToolCall[]; agents: AgentRun[] } = await (
      await get(sessionPath(id))
    ).json();
    if (of !== state || id !== route.sessionId) return;
    const isFirst = detail?.id !== id;
    loadSession(of, answer.session);
    detail = { id, tools: answer.tools, agents: answer.agents, isMissing: false };
    const family = familyOf(of, id);
    of.pinned = family;
    loadDetail(of, id, answer.tools, answer.agents);
    if (isFirst) {
      for (const child of family) {
        const session = of.sessions.get(child);
        if (child === id || session === undefined || session.isWhole) continue;
        const below: typeof answer = await (await get(sessionPath(child))).json();
        if (of !== state || id !== route.sessionId) return;
        loadDetail(of, child, below.tools, below.agents);
      }
      timeline.setScope(family);
      timeline.fit();
    }
  } catch (error) {
    if (error instanceof ServerError && error.status === 404 && id === route.sessionId)
      detail = { id, tools: [], agents: [], isMissing: true };
  } finally {
    isLoadingDetail = false;
    // A large session is asked for less often.
    detailLoadedAt = performance.now() + 9 * (performance.now() - startedAt);
    requestPanels();
    if (id !== route.sessionId) void loadOpenSession();
  }
}

// ─── The stream ──────────────────────────────────────────────────────────────

let source: EventSource | null = null;
let pending: string[] = [];
let isPausedByPerson = false;
let retryMs = FIRST_RETRY_MS;
let retryTimer: ReturnType<typeof setTimeout> | undefined;

function showConnection(connection: Connection): void {
  header.showConnection(connection);
}

async function connect(): Promise<void> {
  clearTimeout(retryTimer);
  if (document.hidden || isPausedByPerson) return;
  try {
    if (!isLoaded) {
      const next = await loadState();
      state = next;
      isLoaded = true;
      showLoaded();
    }
    openStream();
  } catch (error) {
    retry(error instanceof ServerError ? error.message : null);
  }
}

function openStream(): void {
  foldPending(Infinity);
  source?.close();
  const stream = new EventSource(`/api/events/stream?lastEventId=${state.head}`);
  source = stream;
  const receive = (event: MessageEvent<string>) => {
    pending.push(event.data);
    requestFrame();
  };
  for (const type of EVENT_TYPES) stream.addEventListener(type, receive);
  stream.addEventListener("reset", () => {
    // What is here can't be continued: from the beginning, but without an empty page in between.
    closeStream();
    isLoaded = false;
    void connect();
  });
  stream.addEventListener("open", () => {
    retryMs = FIRST_RETRY_MS;
    showConnection({ state: "live" });
  });
  stream.addEventListener("error", () => {
    if (source !== stream) return;
    closeStream();
    retry(null);
  });
}

function closeStream(): void {
  source?.close();
  source = null;
}

/** The browser would come back by itself, but can't say when. */
function retry(reason: string | null): void {
  const at = performance.now() + retryMs;
  retryMs = Math.min(MAX_RETRY_MS, retryMs * 2);
  notice.hidden = reason === null;
  notice.textContent = reason;
  const count = () => {
    const seconds = Math.ceil((at - performance.now()) / 1_000);
    if (seconds <= 0) {
      showConnection({ state: "connecting" });
      void connect();
      return;
    }
    showConnection({ state: "waiting", seconds, reason });
    retryTimer = setTimeout(count, Math.min(1_000, Math.max(1, at - performance.now())));
  };
  clearTimeout(retryTimer);
  count();
}

function togglePause(): void {
  if (source === null && !isPausedByPerson) {
    retryMs = FIRST_RETRY_MS;
    void connect(); // while it counts down: now
    return;
  }
  isPausedByPerson = !isPausedByPerson;
  resumeOrPause();
}

function resumeOrPause(): void {
  if (document.hidden || isPausedByPerson) {
    clearTimeout(retryTimer);
    closeStream();
    showConnection({ state: "paused" });
  } else {
    showConnection({ state: "connecting" });
    void connect();
  }
}

/** Null for what is no JSON: a frame that a proxy has cut must not stop those behind it. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** @param budgetMs what isn't done then waits for the next frame */
function foldPending(budgetMs: number): void {
  if (pending.length === 0) return;
  const until = performance.now() + budgetMs;
  let done = 0;
  while (done < pending.length) {
    const event = readEvent(parseJson(pending[done++] ?? ""));
    if (event !== null) foldEvent(state, event);
    if (done % 16 === 0 && performance.now() > until) break;
  }
  pending = done === pending.length ? [] : pending.slice(done);
  requestPanels();
}

// ─── Drawing ─────────────────────────────────────────────────────────────────
// One frame at a time is asked for, whatever happens in between, and one panel is written in it: a
// busy stream is spread over the frames. What the person does is answered in the next ones.

const PANELS = {
  header: () => header.show(headline(state, Date.now()), Date.now()),
  sessions: showSessions,
  main: showMain,
};
type Panel = keyof typeof PANELS;
const PANEL_ORDER: readonly Panel[] = ["main", "sessions", "header"];

let isFrameRequested = false;
let isTimelineTouched = false;
let timelineDrawnAt = -Infinity;
let isTimelineDirty = true;
const dirtyPanels = new Set<Panel>();
const panelDrawnAt: Record<Panel, number> = { header: 0, sessions: 0, main: 0 };
let laterTimer: ReturnType<typeof setTimeout> | undefined;

function requestFrame(): void {
  if (isFrameRequested || document.hidden) return;
  isFrameRequested = true;
  requestAnimationFrame(frame);
}

/** The person moves in the timeline: it is drawn in this frame. */
function requestTimeline(): void {
  isTimelineTouched = true;
  requestFrame();
}

function requestPanels(): void {
  for (const panel of PANEL_ORDER) dirtyPanels.add(panel);
  isTimelineDirty = true;
  requestFrame();
}

/** As `requestPanels`, at once. */
function requestPanelsNow(): void {
  for (const panel of PANEL_ORDER) panelDrawnAt[panel] = 0;
  requestPanels();
}

function frame(): void {
  isFrameRequested = false;
  foldPending(FOLD_BUDGET_MS);
  if (!isLoaded) return;
  showPage();
  const at = performance.now();
  if (state.sessions.size === 0) dirtyPanels.delete("sessions");
  const due = [...dirtyPanels].find((panel) => at - panelDrawnAt[panel] >= PANELS_INTERVAL_MS);
  const isTimelineDue = isTimelineDirty && at - timelineDrawnAt >= TIMELINE_INTERVAL_MS;
  if (isTimelineTouched || (isTimelineDue && due === undefined)) {
    isTimelineTouched = false;
    isTimelineDirty = false;
    timelineDrawnAt = at;
    timeline.draw();
  }
  if (due !== undefined) {
    dirtyPanels.delete(due);
    panelDrawnAt[due] = at;
    PANELS[due]();
  }

  const waits = [...dirtyPanels].map((panel) => panelDrawnAt[panel] + PANELS_INTERVAL_MS - at);
  if (isTimelineDirty) waits.push(timelineDrawnAt + TIMELINE_INTERVAL_MS - at);
  const wait = Math.min(...waits);
  const growth = timeline.nextDraw();
  clearTimeout(laterTimer);
  if (pending.length > 0 || wait <= 0) requestFrame();
  else if (growth !== null || wait < Infinity)
    laterTimer = setTimeout(
      () => {
        isTimelineDirty = true;
        requestFrame();
      },
      Math.min(wait, growth ?? Infinity),
    );
}

/** Empty state, overview or session page. */
function showPage(): void {
  const isEmpty = state.sessions.size === 0;
  const view = isEmpty ? "empty" : route.sessionId === null ? "overview" : "session";
  if (document.body.dataset.view === view) return;
  document.body.dataset.view = view;
  empty.hidden = !isEmpty;
  layout.hidden = isEmpty;
  analytics.hidden = route.sessionId !== null;
  if (view === "overview") {
    sessionHead.hide();
    calls.hide();
    void loadUsage();
  }
}

function showSessions(): void {
  const now = Date.now();
  const counts: Record<Status, number> = { active: 0, waiting: 0, completed: 0, stale: 0 };
  // Child sessions are their parents' agents, as in the header; but one that waits, waits for the person.
  const roots = new Set(rootsOf(state));
  for (const session of state.sessions.values()) {
    const status = statusOf(session, now);
    if (status === "waiting" || roots.has(session)) counts[status]++;
  }
  const rows = sessionTree(state, sessions.filter, sessions.open, now);
  sessions.show(rows, counts, roots.size, state.sessions.size, route.sessionId, now);
}

/** The feed, and on a session's page its head and calls. */
function showMain(): void {
  const now = Date.now();
  if (route.sessionId !== null) {
    const opened = detail?.id === route.sessionId ? detail : null;
    const session = state.sessions.get(route.sessionId) ?? null;
    if (session !== null || opened?.isMissing)
      sessionHead.show(route.sessionId, session, state, now);
    calls.show(opened?.tools ?? [], opened?.agents ?? [], state, now);
    timeline.setScope(familyOf(state, route.sessionId));
  }
  showFeed(now);
}

// ─── Feed ────────────────────────────────────────────────────────────────────

/** What the feed held when it was held; null: it moves. */
let held: { events: readonly TelemetryEvent[]; head: number } | null = null;
/** Older than what the state keeps, for the filter as it is. */
let older: TelemetryEvent[] = [];
let isOlderDone = false;

/** On a session's page the feed is its own. */
function feedFilter(): FeedFilter {
  return route.sessionId === null ? route.filter : { ...route.filter, sessionId: route.sessionId };
}

/** Of what is loaded, what the feed's filter lets through: newest first, at most `limit`. */
function loadedFeed(limit: number): TelemetryEvent[] {
  const filter = feedFilter();
  const source = held?.events ?? state.feed;
  const found: TelemetryEvent[] = [];
  for (let index = source.length - 1; index >= 0 && found.length < limit; index--) {
    const event = source[index];
    if (event !== undefined && matchesFilter(event, filter)) found.push(event);
  }
  const first = source[0]?.id ?? Infinity;
  for (const event of older) {
    if (found.length >= limit) break;
    if (event.id < first && matchesFilter(event, filter)) found.push(event);
  }
  return found;
}

function showFeed(now: number): void {
  if (!feed.isHeld()) held = null;
  else held ??= { events: state.feed.slice(), head: state.head };
  const filter = feedFilter();
  const limit = feed.limit();
  const events = loadedFeed(limit + 1);
  const hasOlder = events.length > limit || (!isOlderDone && older.length < MAX_OLDER_EVENTS);
  let waiting = 0;
  if (held !== null)
    for (let index = state.feed.length - 1; index >= 0; index--) {
      const event = state.feed[index];
      if (event === undefined || event.id <= held.head) break;
      if (matchesFilter(event, filter)) waiting++;
    }
  const isMore = held !== null && (state.feed[0]?.id ?? 0) > held.head;
  feed.show(events.slice(0, limit), { count: waiting, isMore }, hasOlder, state, now);
}

/** Shows more of what is loaded; where that isn't enough, loads a page. */
async function loadOlderFeed(): Promise<void> {
  requestPanels();
  if (loadedFeed(feed.limit()).length === feed.limit()) return;
  const filter = feedFilter();
  const before = older.at(-1)?.id ?? state.feed[0]?.id ?? state.head + 1;
  if (older.length >= MAX_OLDER_EVENTS) return;
  try {
    const page = await getEvents({
      limit: PAGE_EVENTS,
      before,
      type: filter.type === "failed" ? null : filter.type,
      sessionId: filter.sessionId,
    });
    if (JSON.stringify(filter) !== JSON.stringify(feedFilter())) return;
    older = [...older, ...page];
    isOlderDone = page.length === 0;
  } catch {
    // The button is still there.
  }
  requestPanels();
}

// ─── The address, the clock, the tab ─────────────────────────────────────────

function latestSessions(): SessionState[] {
  return [...state.sessions.values()].sort((a, b) => b.lastEventAt - a.lastEventAt).slice(0, 50);
}

function showRoute(): void {
  const previous = route;
  route = routeOf(location.hash);
  if (
    JSON.stringify(previous.filter) !== JSON.stringify(route.filter) ||
    previous.sessionId !== route.sessionId
  ) {
    older = [];
    isOlderDone = false;
    held = null;
  }
  feed.showFilter(route.filter, latestSessions(), route.sessionId !== null);
  if (previous.sessionId !== route.sessionId) {
    detail = null;
    state.pinned = new Set();
    if (route.sessionId === null) {
      timeline.setScope(null);
      timeline.reset();
    } else {
      timeline.setScope(familyOf(state, route.sessionId));
      timeline.fit();
      void loadOpenSession();
    }
    scrollTo(0, 0);
  }
  if (isLoaded) fillFeed();
  requestPanelsNow();
}

/** What the state has kept of all sessions may hold little of a narrow filter; of none, it may be all. */
function fillFeed(): void {
  const { sessionId, type, tool, text } = feedFilter();
  const isNarrow = sessionId !== null || (type !== null && type !== "failed");
  const isNone = sessionId === null && type === null && tool === "" && text === "";
  if ((isNarrow || isNone) && loadedFeed(FULL_FEED_EVENTS).length < FULL_FEED_EVENTS)
    void loadOlderFeed();
}

function showLoaded(): void {
  notice.hidden = true;
  older = [];
  isOlderDone = false;
  held = null;
  detail = null;
  feed.showFilter(route.filter, latestSessions(), route.sessionId !== null);
  if (route.sessionId === null) timeline.showLoaded();
  else void loadOpenSession();
  fillFeed();
  requestPanelsNow();
  void loadUsage();
  void completeLiveSessions(state).catch(() => undefined);
}

addEventListener("hashchange", showRoute);
document.addEventListener("visibilitychange", () => {
  resumeOrPause();
  if (!document.hidden) {
    requestPanels();
    void loadUsage();
  }
});
addEventListener("online", () => source === null && void connect());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", requestPanels);
byId("feed-session", HTMLSelectElement).addEventListener("focus", () =>
  feed.showFilter(route.filter, latestSessions(), route.sessionId !== null),
);
byId("skip-link", HTMLAnchorElement).addEventListener("click", (event) => {
  event.preventDefault(); // the part after # is the page's address
  byId("timeline-scroll", HTMLDivElement).focus();
});

let usageLoadedAt = 0;
let usageHead = 0;
setInterval(() => {
  requestPanels();
  const at = performance.now();
  if (source !== null && at - usageLoadedAt >= USAGE_INTERVAL_MS && usageHead !== state.head) {
    usageLoadedAt = at;
    usageHead = state.head;
    void loadUsage();
  }
  const open = route.sessionId === null ? undefined : state.sessions.get(route.sessionId);
  if (
    open !== undefined &&
    open.eventCount !== detailRevision &&
    at - detailLoadedAt >= DETAIL_INTERVAL_MS &&
    !document.hidden
  )
    void loadOpenSession();
}, TICK_MS);

if (document.hidden) showConnection({ state: "paused" });
void connect();
