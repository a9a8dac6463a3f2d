/**
 * The panels beside the timeline, as elements. A panel looks its elements up once and has one `show`
 * that writes what it is given; what isn't different from before isn't touched. Everything that was
 * posted is written as text. A panel knows nothing of the network: what the person does goes to the
 * callbacks it was created with.
 */

import type { Activity, AgentRun, ToolCall, UsageStats } from "../server.ts";
import {
  byId,
  contextOf,
  createColors,
  createRows,
  createSize,
  fitCanvas,
  part,
  setAttribute,
  setText,
  templateRow,
} from "./dom.ts";
import {
  UNKNOWN,
  formatAge,
  formatCompact,
  formatCost,
  formatCount,
  formatDay,
  formatDuration,
  formatMinute,
  formatMoment,
  formatNoun,
  formatTimeOrDay,
} from "./format.ts";
import {
  type DashboardState,
  EVENT_LABELS,
  EVENT_TYPES,
  type FeedFilter,
  type Headline,
  type SessionRow,
  type SessionState,
  type Status,
  type TelemetryEvent,
  argsSummary,
  asText,
  costOf,
  durationOf,
  hasFailed,
  isEventType,
  isRecord,
  isRunning,
  labelOf,
  parentOf,
  parseRecord,
  shortId,
  statusOf,
  summaryOf,
  tokensOf,
} from "./state.ts";
import { toolFamily } from "./timeline.ts";

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;

const STATUS_WORDS: Record<Status, string> = {
  active: "Active",
  waiting: "Waiting",
  completed: "Done",
  stale: "Stale",
};

/** Rows that a list starts with, and that "Show more" adds. */
const PAGE_ROWS = 60;
/** Scrolled further than this, the feed stays where it is. */
const HELD_PX = 8;
/** Characters of a value that is shown whole: more would stop the page. */
const MAX_SHOWN_CHARS = 100_000;

export function sessionHref(id: string): string {
  return `#/session/${encodeURIComponent(id)}`;
}

// ─── Connection and header ───────────────────────────────────────────────────

/** How the page stands to the server. */
export type Connection =
  | { state: "connecting" | "live" | "paused" }
  | { state: "waiting"; seconds: number; reason: string | null };

export function createHeader({ togglePause }: { togglePause: () => void }) {
  const connection = byId("connection", HTMLButtonElement);
  const connectionText = byId("connection-text", HTMLSpanElement);
  const sessions = byId("stat-sessions", HTMLElement);
  const agents = byId("stat-agents", HTMLElement);
  const waiting = byId("stat-waiting", HTMLDivElement);
  const waitingCount = byId("stat-waiting-count", HTMLSpanElement);
  const waitingLink = byId("stat-waiting-link", HTMLAnchorElement);
  const rate = byId("stat-rate", HTMLSpanElement);
  const errors = byId("stat-errors", HTMLDivElement);
  const errorsLink = byId("stat-errors-link", HTMLAnchorElement);
  const pulse = byId("pulse", HTMLCanvasElement);
  const context = contextOf(pulse);
  let minutes: Headline["pulse"] = [];
  const drawMinutes = () => drawPulse(context, size, color, minutes);
  const color = createColors(() => drawMinutes());
  const size = createSize(pulse, () => {
    fitCanvas(pulse, context, size.width, size.height);
    drawMinutes();
  });
  connection.addEventListener("click", togglePause);

  return {
    showConnection(now: Connection): void {
      setAttribute(connection, "data-state", now.state);
      setText(
        connectionText,
        now.state === "waiting"
          ? `Reconnecting in ${now.seconds} s`
          : { connecting: "Connecting", live: "Live", paused: "Paused" }[now.state],
      );
      setAttribute(
        connection,
        "title",
        now.state === "live"
          ? "Pause the stream"
          : now.state === "paused"
            ? "Resume the stream"
            : now.state === "waiting"
              ? (now.reason ?? "Try again now")
              : "",
      );
    },
    show(head: Headline, now: number): void {
      setText(sessions, formatCount(head.activeSessions));
      setText(agents, formatCount(head.runningAgents));
      setText(waitingCount, formatCount(head.waiting.length));
      setAttribute(waiting, "data-waiting", String(head.waiting.length));
      const [first] = head.waiting;
      waitingLink.hidden = first === undefined;
      if (first !== undefined) {
        setAttribute(waitingLink, "href", sessionHref(first.id));
        setAttribute(waitingLink, "title", first.question ?? labelOf(first));
        setText(waitingLink, `${labelOf(first)}, ${formatAge(now - first.askedAt)}`);
      }
      setText(rate, formatCount(head.eventsPerMinute));
      setText(errorsLink, formatCount(head.errorsLastHour));
      setAttribute(errors, "data-errors", String(Math.min(head.errorsLastHour, 1)));
      minutes = head.pulse;
      drawMinutes();
      setAttribute(
        pulse,
        "aria-label",
        `Events per minute, last hour: at most ${formatCount(Math.max(...minutes.map(({ count }) => count)))}`,
      );
      document.title =
        head.waiting.length > 0
          ? `(${head.waiting.length} waiting) PAI Observability`
          : "PAI Observability";
    },
  };
}

function drawPulse(
  context: CanvasRenderingContext2D,
  { width, height }: { width: number; height: number },
  color: (name: `--${string}`) => string,
  minutes: Headline["pulse"],
): void {
  const peak = Math.max(1, ...minutes.map((minute) => minute.count));
  const step = width / minutes.length;
  const base = height - 4;
  context.clearRect(0, 0, width, height);
  for (const [index, { count, errors }] of minutes.entries()) {
    const x = index * step;
    const bar = count === 0 ? 1 : Math.max(2, (count / peak) * base);
    context.fillStyle = color(count === 0 ? "--grid" : "--accent");
    context.fillRect(x, base - bar, Math.max(1, step - 1), bar);
    if (errors === 0) continue;
    context.fillStyle = color("--failed");
    context.fillRect(x, base + 1, Math.max(1, step - 1), 3);
  }
}

// ─── Sessions ────────────────────────────────────────────────────────────────

export interface SessionFilter {
  text: string;
  status: Status | null;
}

export function createSessions({ changed }: { changed: () => void }) {
  const note = byId("sessions-note", HTMLSpanElement);
  const text = byId("sessions-text", HTMLInputElement);
  const empty = byId("sessions-empty", HTMLParagraphElement);
  const more = byId("sessions-more", HTMLButtonElement);
  const statusButtons = [
    ...byId("status-filter", HTMLDivElement).querySelectorAll<HTMLButtonElement>("button"),
  ];
  const clone = templateRow("session-row", HTMLLIElement);
  const filter: SessionFilter = { text: "", status: null };
  let limit = PAGE_ROWS;

  /** Parents whose ended children are shown. */
  const open = new Set<string>();

  const showRows = createRows<ShownRow, SessionItem>(
    byId("session-list", HTMLOListElement),
    ({ row }) => (row.kind === "session" ? row.session.id : `ended ${row.parent.id}`),
    () =>
      createSessionItem(clone(), (id) => {
        if (!open.delete(id)) open.add(id);
        changed();
      }),
    updateSessionItem,
  );

  text.addEventListener("input", () => {
    filter.text = text.value;
    changed();
  });
  for (const button of statusButtons)
    button.addEventListener("click", () => {
      const status = statusOfButton(button);
      filter.status = filter.status === status ? null : status;
      changed();
    });
  more.addEventListener("click", () => {
    limit += PAGE_ROWS;
    changed();
  });

  return {
    filter,
    open,
    show(
      rows: readonly SessionRow[],
      counts: Record<Status, number>,
      roots: number,
      all: number,
      openId: string | null,
      now: number,
    ): void {
      showRows(rows.slice(0, limit).map((row) => ({ row, openId, now })));
      more.hidden = rows.length <= limit;
      empty.hidden = rows.length > 0;
      const below = all - roots;
      setText(
        note,
        `${formatCount(roots)}${below === 0 ? "" : ` and ${formatCount(below)} of agents`}`,
      );
      for (const button of statusButtons) {
        const status = statusOfButton(button);
        setAttribute(button, "aria-pressed", String(status === filter.status));
        setText(button, `${STATUS_WORDS[status]} ${formatCount(counts[status])}`);
      }
    },
  };
}

function statusOfButton(button: HTMLButtonElement): Status {
  const { status } = button.dataset;
  return status === "active" || status === "waiting" || status === "completed" ? status : "stale";
}

interface ShownRow {
  row: SessionRow;
  openId: string | null;
  now: number;
}

interface SessionItem {
  root: HTMLLIElement;
  link: HTMLAnchorElement;
  dot: HTMLElement;
  label: HTMLElement;
  errors: HTMLElement;
  age: HTMLElement;
  meta: HTMLElement;
  ended: HTMLButtonElement;
  /** Whose ended children the button shows. */
  parentId: string;
}

function createSessionItem(root: HTMLLIElement, toggle: (id: string) => void): SessionItem {
  const row: SessionItem = {
    root,
    link: part(root, "a", HTMLAnchorElement),
    dot: part(root, ".dot", HTMLElement),
    label: part(root, ".session-label", HTMLElement),
    errors: part(root, ".session-errors", HTMLElement),
    age: part(root, ".session-age", HTMLElement),
    meta: part(root, ".session-meta", HTMLElement),
    ended: part(root, ".session-ended", HTMLButtonElement),
    parentId: "",
  };
  row.ended.addEventListener("click", () => toggle(row.parentId));
  return row;
}

function updateSessionItem(item: SessionItem, { row, openId, now }: ShownRow): void {
  setAttribute(item.root, "data-depth", String(Math.min(row.depth, 3)));
  const isEnded = row.kind === "ended";
  item.link.hidden = isEnded;
  item.ended.hidden = !isEnded;
  if (isEnded) {
    item.parentId = row.parent.id;
    setText(item.ended, `${formatCount(row.count)} ended`);
    setAttribute(item.ended, "aria-expanded", String(row.isOpen));
    setAttribute(item.root, "data-status", "completed");
    return;
  }
  const { session, status } = row;
  const label = labelOf(session);
  const errors = formatNoun(session.errorCount, "error");
  setAttribute(item.root, "data-status", status);
  setAttribute(item.link, "href", sessionHref(session.id));
  setAttribute(item.link, "aria-current", session.id === openId ? "page" : "false");
  setAttribute(item.dot, "data-status", status);
  setAttribute(item.dot, "aria-label", STATUS_WORDS[status]);
  setText(item.label, label);
  setText(item.errors, session.errorCount === 0 ? "" : formatCount(session.errorCount));
  setAttribute(item.errors, "title", errors);
  setText(item.age, formatAge(Math.max(0, now - session.lastEventAt)));
  const isAsking = status === "waiting" && session.question !== null;
  setText(item.meta, isAsking ? `Asks: ${session.question}` : sessionMeta(session));
  setAttribute(
    item.link,
    "title",
    `${label}\n${STATUS_WORDS[status]} · ${sessionMeta(session)} · ${errors}\n${session.id}`,
  );
}

function sessionMeta(session: SessionState): string {
  const tokens = tokensOf(session);
  const cost = costOf(session);
  return [
    formatNoun(session.toolCount, "tool"),
    session.agentCount === 0 ? null : formatNoun(session.agentCount, "agent"),
    tokens === null ? null : `${formatCompact(tokens)} tok`,
    cost === null ? null : formatCost(cost),
  ]
    .filter((word) => word !== null)
    .join(" · ");
}

// ─── Session page: its head ──────────────────────────────────────────────────

export function createSessionHead({ copy }: { copy: (id: string) => Promise<string> }) {
  const section = byId("session-head", HTMLElement);
  const dot = byId("session-dot", HTMLSpanElement);
  const name = byId("session-name", HTMLHeadingElement);
  const facts = byId("session-facts", HTMLDListElement);
  const copyButton = byId("session-copy", HTMLButtonElement);
  let openId = "";

  copyButton.addEventListener("click", () => confirmCopy(copyButton, copy(openId)));

  const showFacts = createRows<[string, string, string | null], FactItem>(
    facts,
    ([term]) => term,
    createFactItem,
    (row, [term, value, href]) => {
      setText(row.term, term);
      setText(row.link, href === null ? "" : value);
      setText(row.value, href === null ? value : "");
      if (href !== null) setAttribute(row.link, "href", href);
      row.link.hidden = href === null;
    },
  );

  return {
    hide(): void {
      section.hidden = true;
    },
    /** @param session null: the server doesn't have it */
    show(id: string, session: SessionState | null, state: DashboardState, now: number): void {
      openId = id;
      section.hidden = false;
      copyButton.hidden = session === null;
      if (session === null) {
        setText(name, `No session ${shortId(id)}`);
        setAttribute(dot, "data-status", "stale");
        showFacts([["What now", "It may have been deleted after the retention time", null]]);
        return;
      }
      const status = statusOf(session, now);
      const isOver = status === "completed";
      const parentId = parentOf(session);
      const parent = parentId === null ? undefined : state.sessions.get(parentId);
      const fact = (key: string) => asText(session.facts.get(key)?.value);
      const model = session.facts.get("model")?.value;
      setText(name, labelOf(session));
      setAttribute(dot, "data-status", status);
      const rows: [string, string | null, string | null][] = [
        ["Status", statusSentence(session, status, now), null],
        ["Started", formatMoment(session.startedAt, now), null],
        [
          isOver ? "Took" : "For",
          formatDuration((isOver ? session.lastEndAt : now) - session.startedAt),
          null,
        ],
        ["Tools", formatCount(session.toolCount), null],
        ["Agents", formatCount(session.agentCount), null],
        ["Errors", formatCount(session.errorCount), null],
        ["Tokens", formatCompact(tokensOf(session)), null],
        ["Cost", formatCost(costOf(session)), null],
        ["Agent", fact("agent"), null],
        ["Model", isRecord(model) ? asText(model.name ?? model.id ?? model) : fact("model"), null],
        ["Directory", fact("directory"), null],
        ["Id", session.id, null],
        ...(parent === undefined
          ? []
          : [
              ["Part of", labelOf(parent), sessionHref(parent.id)] satisfies [
                string,
                string,
                string,
              ],
            ]),
      ];
      showFacts(rows.map(([term, value, href]) => [term, value ?? UNKNOWN, href]));
    },
  };
}

function statusSentence(session: SessionState, status: Status, now: number): string {
  switch (status) {
    case "waiting":
      return `Waits for you since ${formatAge(now - session.askedAt)}: ${session.question ?? "an answer"}`;
    case "stale":
      return `Stale, silent for ${formatAge(now - session.lastEventAt)}`;
    default:
      return STATUS_WORDS[status];
  }
}

interface FactItem {
  root: HTMLElement;
  term: HTMLElement;
  value: HTMLElement;
  link: HTMLAnchorElement;
}

function createFactItem(): FactItem {
  const root = document.createElement("div");
  const term = document.createElement("dt");
  const definition = document.createElement("dd");
  const value = document.createElement("span");
  const link = document.createElement("a");
  definition.append(value, link);
  root.append(term, definition);
  return { root, term, value, link };
}

// ─── Feed ────────────────────────────────────────────────────────────────────

export interface FeedOptions {
  filterChanged: (filter: FeedFilter) => void;
  loadOlder: () => void;
  changed: () => void;
}

export function createFeed({ filterChanged, loadOlder, changed }: FeedOptions) {
  const scroll = byId("feed-scroll", HTMLDivElement);
  const note = byId("feed-note", HTMLSpanElement);
  const pause = byId("feed-pause", HTMLButtonElement);
  const type = byId("feed-type", HTMLSelectElement);
  const tool = byId("feed-tool", HTMLInputElement);
  const session = byId("feed-session", HTMLSelectElement);
  const text = byId("feed-text", HTMLInputElement);
  const empty = byId("feed-empty", HTMLParagraphElement);
  const older = byId("feed-older", HTMLButtonElement);
  const toolNames = byId("tool-names", HTMLDataListElement);
  const clone = templateRow("feed-row", HTMLLIElement);
  const expanded = new Set<number>();
  let isPaused = false;
  let limit = PAGE_ROWS;

  for (const eventType of EVENT_TYPES) type.append(new Option(EVENT_LABELS[eventType], eventType));

  const showRows = createRows<FeedItem, FeedRow>(
    byId("feed-list", HTMLOListElement),
    ({ event }) => event.id,
    () =>
      createFeedRow(clone(), (id) => {
        if (!expanded.delete(id)) expanded.add(id);
        changed();
      }),
    updateFeedRow,
  );

  const readFilter = () =>
    filterChanged({
      type: type.value === "failed" || isEventType(type.value) ? type.value : null,
      tool: tool.value.trim(),
      sessionId: session.value || null,
      text: text.value.trim(),
    });
  for (const control of [type, tool, session, text]) control.addEventListener("input", readFilter);
  byId("feed-filter", HTMLFormElement).addEventListener("submit", (event) =>
    event.preventDefault(),
  );
  pause.addEventListener("click", () => {
    isPaused = !isPaused;
    if (!isPaused) scroll.scrollTop = 0;
    changed();
  });
  /** As of the last scroll event: reading it from the element would ask for a layout. */
  let scrollTop = 0;
  scroll.addEventListener(
    "scroll",
    () => {
      const wasHeld = scrollTop > HELD_PX;
      scrollTop = scroll.scrollTop;
      if (wasHeld !== scrollTop > HELD_PX) changed();
    },
    { passive: true },
  );
  older.addEventListener("click", () => {
    limit += PAGE_ROWS;
    loadOlder();
  });

  return {
    /** Nothing moves while the person has paused it, or reads further down. */
    isHeld: () => isPaused || scrollTop > HELD_PX,
    limit: () => limit,
    /** Puts `filter` into the controls. */
    showFilter(
      filter: FeedFilter,
      sessions: readonly SessionState[],
      isSessionPage: boolean,
    ): void {
      limit = PAGE_ROWS;
      type.value = filter.type ?? "";
      if (tool.value.trim() !== filter.tool) tool.value = filter.tool;
      if (text.value.trim() !== filter.text) text.value = filter.text;
      session.hidden = isSessionPage;
      const first = session.options[0];
      session.replaceChildren(
        ...(first === undefined ? [] : [first]),
        ...sessions.map((option) => new Option(labelOf(option), option.id)),
      );
      if (filter.sessionId !== null && sessions.every((option) => option.id !== filter.sessionId))
        session.append(new Option(shortId(filter.sessionId), filter.sessionId));
      session.value = filter.sessionId ?? "";
    },
    showToolNames(names: readonly string[]): void {
      if (toolNames.children.length === names.length) return;
      toolNames.replaceChildren(...names.map((name) => new Option(name, name)));
    },
    /**
     * @param events newest first
     * @param waiting how many newer ones there are, and whether there may be more
     */
    show(
      events: readonly TelemetryEvent[],
      waiting: { count: number; isMore: boolean },
      hasOlder: boolean,
      state: DashboardState,
      now: number,
    ): void {
      showRows(
        events.map((event) => {
          const owner = state.sessions.get(event.session_id);
          return {
            event,
            label: owner === undefined ? shortId(event.session_id) : labelOf(owner),
            isExpanded: expanded.has(event.id),
            now,
          };
        }),
      );
      setAttribute(pause, "aria-pressed", String(isPaused));
      const isHeld = isPaused || scrollTop > HELD_PX;
      const count = `${formatCount(waiting.count)}${waiting.isMore ? "+" : ""}`;
      setText(pause, isPaused ? "Resume" : "Pause");
      setText(note, isHeld && waiting.count > 0 ? `${count} new` : isPaused ? "Paused" : "");
      empty.hidden = events.length > 0;
      older.hidden = !hasOlder;
    },
  };
}

interface FeedItem {
  event: TelemetryEvent;
  label: string;
  isExpanded: boolean;
  now: number;
}

interface FeedRow {
  root: HTMLLIElement;
  time: HTMLTimeElement;
  what: HTMLButtonElement;
  key: HTMLElement;
  name: HTMLElement;
  summary: HTMLElement;
  duration: HTMLElement;
  session: HTMLAnchorElement;
  detail: HTMLPreElement | null;
  /** What it shows: an event never changes, so most rows are never written twice. */
  shownId: number;
}

function createFeedRow(root: HTMLLIElement, toggle: (id: number) => void): FeedRow {
  const row: FeedRow = {
    root,
    time: part(root, "time", HTMLTimeElement),
    what: part(root, ".feed-what", HTMLButtonElement),
    key: part(root, ".key", HTMLElement),
    name: part(root, ".feed-name", HTMLElement),
    summary: part(root, ".feed-summary", HTMLElement),
    duration: part(root, ".feed-duration", HTMLElement),
    session: part(root, ".feed-session", HTMLAnchorElement),
    detail: null,
    shownId: 0,
  };
  row.what.addEventListener("click", () => toggle(row.shownId));
  return row;
}

function updateFeedRow(row: FeedRow, { event, label, isExpanded, now }: FeedItem): void {
  setText(row.session, label);
  setAttribute(row.what, "aria-expanded", String(isExpanded));
  if (row.shownId !== event.id) {
    row.shownId = event.id;
    const failed = hasFailed(event);
    row.time.dateTime = new Date(event.at).toISOString();
    setText(row.time, formatTimeOrDay(event.at, now));
    setAttribute(row.time, "title", formatMoment(event.at, now));
    setAttribute(row.root, "data-failed", String(failed));
    row.key.className = `key key-${failed ? "failed" : keyOf(event)}`;
    setText(row.name, nameOf(event));
    setText(row.summary, oneLine(summaryOf(event) ?? ""));
    const duration = durationOf(event);
    setText(row.duration, duration === null ? "" : formatDuration(duration));
    setAttribute(row.session, "href", sessionHref(event.session_id));
    row.detail?.remove();
    row.detail = null;
  }
  if (isExpanded && row.detail === null) {
    row.detail = document.createElement("pre");
    row.detail.tabIndex = 0;
    row.detail.textContent = prettyJson(event.fields);
    row.root.append(row.detail);
  } else if (!isExpanded && row.detail !== null) {
    row.detail.remove();
    row.detail = null;
  }
}

function keyOf({ type, fields }: TelemetryEvent): string {
  if (type === "tool_use") return toolFamily(asText(fields.tool) ?? "");
  if (type === "agent_spawn" || type === "agent_complete") return "agent";
  if (type === "input_requested") return "wait";
  return "note";
}

function nameOf({ type, fields }: TelemetryEvent): string {
  if (type === "tool_use") return asText(fields.tool) ?? UNKNOWN;
  if (type === "agent_spawn" || type === "agent_complete")
    return asText(fields.subagent_type) ?? "agent";
  return EVENT_LABELS[type];
}

/** Indented; a text that is itself JSON is opened up, or it would be a line of backslashes. */
function prettyJson(value: unknown): string {
  const text = JSON.stringify(
    value,
    (_, inner: unknown) => (typeof inner === "string" ? (parseRecord(inner) ?? inner) : inner),
    2,
  );
  return text.length <= MAX_SHOWN_CHARS
    ? text
    : `${text.slice(0, MAX_SHOWN_CHARS)}\n… ${formatCount(text.length - MAX_SHOWN_CHARS)} more characters`;
}

function oneLine(text: string): string {
  return text.slice(0, 300).replace(/\s+/g, " ");
}

// ─── Usage ───────────────────────────────────────────────────────────────────

export type UsageRow = UsageStats & { name: string };
type UsageColumn = "name" | "count" | "avg_duration_ms" | "total_duration_ms" | "error_count";

export interface UsageQuery {
  kind: "tools" | "agents";
  hours: number;
}

export function createUsage({ changed }: { changed: (query: UsageQuery) => void }) {
  const query: UsageQuery = { kind: "tools", hours: 1 };
  const table = byId("usage-table", HTMLTableElement);
  const nameHead = byId("usage-name", HTMLButtonElement);
  const empty = byId("usage-empty", HTMLParagraphElement);
  const clone = templateRow("usage-row", HTMLTableRowElement);
  const chart = createActivityChart();
  let rows: UsageRow[] = [];
  let column: UsageColumn = "count";
  let isAscending = false;

  const showRows = createRows<UsageRow & { most: UsageRow }, UsageItem>(
    byId("usage-rows", HTMLTableSectionElement),
    ({ name }) => name,
    () => createUsageItem(clone()),
    updateUsageItem,
  );

  const heads = [...table.querySelectorAll("th[data-column]")].filter(
    (head) => head instanceof HTMLTableCellElement,
  );
  for (const head of heads)
    head.querySelector("button")?.addEventListener("click", () => {
      const clicked = usageColumn(head.dataset.column);
      // Numbers are first wanted large, names from A.
      isAscending = clicked === column ? !isAscending : clicked === "name";
      column = clicked;
      showSorted();
    });
  choose(byId("usage-kind", HTMLDivElement), (button) => {
    query.kind = button.dataset.kind === "agents" ? "agents" : "tools";
    changed(query);
  });
  choose(byId("usage-hours", HTMLDivElement), (button) => {
    query.hours = Number(button.dataset.hours);
    changed(query);
  });

  function showSorted(): void {
    for (const head of heads)
      setAttribute(
        head,
        "aria-sort",
        head.dataset.column !== column ? "none" : isAscending ? "ascending" : "descending",
      );
    const most: UsageRow = {
      name: "",
      count: Math.max(1, ...rows.map((row) => row.count)),
      avg_duration_ms: Math.max(1, ...rows.map((row) => row.avg_duration_ms ?? 0)),
      total_duration_ms: Math.max(1, ...rows.map((row) => row.total_duration_ms)),
      max_duration_ms: 0,
      error_count: 0,
    };
    const sign = isAscending ? 1 : -1;
    const sorted = rows.toSorted((a, b) => {
      if (column === "name") return sign * a.name.localeCompare(b.name);
      return sign * ((a[column] ?? -1) - (b[column] ?? -1)) || a.name.localeCompare(b.name);
    });
    showRows(sorted.map((row) => ({ ...row, most })));
    empty.hidden = rows.length > 0;
  }

  return {
    query,
    show(next: UsageRow[], activity: Activity[], now: number): void {
      rows = next;
      setText(nameHead, query.kind === "tools" ? "Tool" : "Agent");
      showSorted();
      chart.show(activity, query.hours, now);
    },
  };
}

function usageColumn(text: string | undefined): UsageColumn {
  switch (text) {
    case "count":
    case "avg_duration_ms":
    case "total_duration_ms":
    case "error_count":
      return text;
    default:
      return "name";
  }
}

interface UsageItem {
  root: HTMLTableRowElement;
  name: HTMLElement;
  bars: HTMLElement[];
  numbers: HTMLElement[];
}

function createUsageItem(root: HTMLTableRowElement): UsageItem {
  return {
    root,
    name: part(root, "th", HTMLElement),
    bars: [...root.querySelectorAll<HTMLElement>(".bar")],
    numbers: [...root.querySelectorAll<HTMLElement>(".number")],
  };
}

function updateUsageItem(row: UsageItem, { most, ...item }: UsageRow & { most: UsageRow }): void {
  setText(row.name, item.name);
  setAttribute(row.name, "title", item.name);
  const isTimed = item.avg_duration_ms !== null;
  const texts = [
    formatCount(item.count),
    formatDuration(item.avg_duration_ms),
    formatDuration(isTimed ? item.total_duration_ms : null),
    formatCount(item.error_count),
  ];
  for (const [index, number] of row.numbers.entries()) setText(number, texts[index] ?? "");
  row.numbers.at(-1)?.classList.toggle("failed", item.error_count > 0);
  const shares = [
    item.count / most.count,
    (item.avg_duration_ms ?? 0) / (most.avg_duration_ms ?? 1),
    item.total_duration_ms / most.total_duration_ms,
  ];
  for (const [index, bar] of row.bars.entries())
    bar.style.setProperty("--share", String(shares[index] ?? 0));
}

/** Events over time in as many bars as can be told apart, with a cursor that reads their values. */
function createActivityChart() {
  const canvas = byId("activity", HTMLCanvasElement);
  const readout = byId("activity-readout", HTMLOutputElement);
  const context = contextOf(canvas);
  let buckets: { start: number; count: number; errors: number }[] = [];
  let lengthMs = MINUTE_MS;
  let cursor: number | null = null;
  const color = createColors(draw);
  const size = createSize(canvas, () => {
    fitCanvas(canvas, context, size.width, size.height);
    draw();
  });

  function draw(): void {
    const { width, height } = size;
    if (width === 0 || buckets.length === 0) return;
    context.clearRect(0, 0, width, height);
    const base = height - 22;
    const top = 14;
    const peak = Math.max(1, ...buckets.map((bucket) => bucket.count));
    const step = width / buckets.length;
    context.fillStyle = color("--grid");
    context.fillRect(0, base, width, 1);
    for (const [index, { count, errors }] of buckets.entries()) {
      const x = index * step;
      const w = Math.max(1, step - 1);
      const h = count === 0 ? 0 : Math.max(2, (count / peak) * (base - top));
      context.fillStyle = color(index === cursor ? "--ink" : "--accent");
      context.fillRect(x, base - h, w, h);
      if (errors === 0) continue;
      context.fillStyle = color("--failed");
      context.fillRect(x, base + 2, w, 4);
    }
    context.fillStyle = color("--ink-2");
    const first = buckets[0]?.start ?? 0;
    const span = buckets.length * lengthMs;
    for (const share of [0, 0.25, 0.5, 0.75]) {
      const at = first + span * share;
      context.fillText(
        span > 30 * HOUR_MS ? `${formatDay(at)}, ${formatMinute(at)}` : formatMinute(at),
        share * width,
        height - 6,
      );
    }
    context.textAlign = "right";
    context.fillText("now", width, height - 6);
    context.textAlign = "left";
  }

  function read(): void {
    const bucket = cursor === null ? undefined : buckets[cursor];
    if (bucket === undefined) {
      const total = buckets.reduce((sum, { count }) => sum + count, 0);
      const peak = buckets.reduce((most, { count }) => Math.max(most, count), 0);
      const unit = lengthMs === MINUTE_MS ? "minute" : lengthMs === HOUR_MS ? "hour" : "15 minutes";
      setText(readout, `${formatNoun(total, "event")}, peak ${formatCount(peak)} per ${unit}`);
    } else {
      const from = formatMinute(bucket.start);
      const to = formatMinute(bucket.start + lengthMs);
      const day = lengthMs === HOUR_MS ? `${formatDay(bucket.start)}, ` : "";
      setText(
        readout,
        `${day}${from} to ${to}: ${formatNoun(bucket.count, "event")}, ${formatNoun(bucket.errors, "error")}`,
      );
    }
    draw();
  }

  canvas.addEventListener("pointermove", (event) => {
    cursor = Math.min(
      buckets.length - 1,
      Math.floor((event.offsetX / canvas.clientWidth) * buckets.length),
    );
    read();
  });
  const leave = () => {
    cursor = null;
    read();
  };
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("blur", leave);
  canvas.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    const last = buckets.length - 1;
    const from = cursor ?? (event.key === "ArrowLeft" ? last + 1 : -1);
    cursor = Math.max(0, Math.min(last, from + (event.key === "ArrowLeft" ? -1 : 1)));
    read();
  });

  return {
    show(activity: Activity[], hours: number, now: number): void {
      lengthMs = hours <= 1 ? MINUTE_MS : hours <= 24 ? 15 * MINUTE_MS : HOUR_MS;
      const count = Math.round((hours * HOUR_MS) / lengthMs);
      const last = now - (now % lengthMs);
      buckets = Array.from({ length: count }, (_, index) => ({
        start: last - (count - 1 - index) * lengthMs,
        count: 0,
        errors: 0,
      }));
      const first = buckets[0]?.start ?? 0;
      for (const minute of activity) {
        const bucket = buckets[Math.floor((Date.parse(minute.timestamp) - first) / lengthMs)];
        if (bucket === undefined) continue;
        bucket.count += minute.count;
        bucket.errors += minute.error_count;
      }
      read();
    },
  };
}

// ─── Session page: its calls ─────────────────────────────────────────────────

interface Call {
  id: number;
  name: string;
  kind: "tool" | "agent";
  start: number;
  duration: number | null;
  isRunning: boolean;
  hasFailed: boolean;
  text: string | null;
  error: string | null;
  childId: string | null;
}

type CallColumn = "start" | "name" | "duration";

export function createCalls({ changed }: { changed: () => void }) {
  const section = byId("calls", HTMLElement);
  const more = byId("calls-more", HTMLButtonElement);
  const empty = byId("calls-empty", HTMLParagraphElement);
  const nameHead = byId("calls-name", HTMLButtonElement);
  const textHead = byId("calls-text", HTMLSpanElement);
  const kinds = byId("calls-kind", HTMLDivElement);
  const [toolsButton, agentsButton] = kinds.querySelectorAll("button");
  const clone = templateRow("call-row", HTMLTableRowElement);
  const expanded = new Set<number>();
  let kind: "tools" | "agents" = "tools";
  let column: CallColumn = "start";
  let isAscending = false;
  let limit = PAGE_ROWS;

  const showRows = createRows<CallItem, CallRow>(
    byId("call-rows", HTMLTableSectionElement),
    ({ call }) => call.id,
    () =>
      createCallRow(clone(), (id) => {
        if (!expanded.delete(id)) expanded.add(id);
        changed();
      }),
    updateCallRow,
  );
  const heads = [...section.querySelectorAll("th[data-column]")].filter(
    (head) => head instanceof HTMLTableCellElement,
  );
  for (const head of heads)
    head.querySelector("button")?.addEventListener("click", () => {
      const name = head.dataset.column;
      const clicked = name === "name" || name === "duration" ? name : "start";
      isAscending = clicked === column ? !isAscending : clicked === "name";
      column = clicked;
      changed();
    });
  choose(kinds, (button) => {
    kind = button.dataset.kind === "agents" ? "agents" : "tools";
    changed();
  });
  more.addEventListener("click", () => {
    limit += PAGE_ROWS;
    changed();
  });

  return {
    hide(): void {
      section.hidden = true;
      expanded.clear();
      limit = PAGE_ROWS;
    },
    show(
      tools: readonly ToolCall[],
      agents: readonly AgentRun[],
      state: DashboardState,
      now: number,
    ): void {
      section.hidden = false;
      if (toolsButton) setText(toolsButton, `Tools ${formatCount(tools.length)}`);
      if (agentsButton) setText(agentsButton, `Agents ${formatCount(agents.length)}`);
      setText(nameHead, kind === "tools" ? "Tool" : "Agent");
      setText(textHead, kind === "tools" ? "Arguments" : "Prompt");
      for (const head of heads)
        setAttribute(
          head,
          "aria-sort",
          head.dataset.column !== column ? "none" : isAscending ? "ascending" : "descending",
        );
      const calls =
        kind === "tools"
          ? tools.map(callOfTool)
          : agents.map((run) => callOfAgent(run, state, now));
      const sign = isAscending ? 1 : -1;
      calls.sort(
        (a, b) =>
          sign *
            (column === "name"
              ? a.name.localeCompare(b.name)
              : column === "duration"
                ? (a.duration ?? -1) - (b.duration ?? -1)
                : a.start - b.start) || sign * (a.id - b.id),
      );
      const longest = Math.max(1, ...calls.map((call) => call.duration ?? 0));
      showRows(
        calls
          .slice(0, limit)
          .map((call) => ({ call, longest, now, isExpanded: expanded.has(call.id) })),
      );
      more.hidden = calls.length <= limit;
      empty.hidden = calls.length > 0;
    },
  };
}

function callOfTool(call: ToolCall): Call {
  const end = Date.parse(call.timestamp);
  return {
    id: call.id,
    name: call.tool,
    kind: "tool",
    start: end - (call.duration_ms ?? 0),
    duration: call.duration_ms,
    isRunning: false,
    hasFailed: call.success === false,
    text: call.args,
    error: asText(call.error),
    childId: null,
  };
}

function callOfAgent(run: AgentRun, state: DashboardState, now: number): Call {
  const span = state.spans.get(run.id);
  const owner = span === undefined ? undefined : state.sessions.get(span.sessionId);
  const runs = span !== undefined && owner !== undefined && isRunning(span, owner, now);
  const start = span?.start ?? Date.parse(run.timestamp);
  return {
    id: run.id,
    name: run.subagent_type,
    kind: "agent",
    start,
    duration: runs ? now - start : run.duration_ms,
    isRunning: runs,
    hasFailed: run.success === false,
    text: run.prompt,
    error: asText(run.error),
    childId: run.child_session_id,
  };
}

interface CallItem {
  call: Call;
  longest: number;
  now: number;
  isExpanded: boolean;
}

interface CallRow {
  root: HTMLTableRowElement;
  time: HTMLTimeElement;
  key: HTMLElement;
  name: HTMLElement;
  open: HTMLButtonElement;
  bar: HTMLElement;
  number: HTMLElement;
  detail: HTMLElement | null;
  shownId: number;
}

function createCallRow(root: HTMLTableRowElement, toggle: (id: number) => void): CallRow {
  const row: CallRow = {
    root,
    time: part(root, "time", HTMLTimeElement),
    key: part(root, ".key", HTMLElement),
    name: part(root, ".call-name", HTMLElement),
    open: part(root, ".call-open", HTMLButtonElement),
    bar: part(root, ".bar", HTMLElement),
    number: part(root, ".number", HTMLElement),
    detail: null,
    shownId: 0,
  };
  row.open.addEventListener("click", () => toggle(row.shownId));
  return row;
}

function updateCallRow(row: CallRow, { call, longest, now, isExpanded }: CallItem): void {
  if (row.shownId !== call.id) {
    row.detail?.remove();
    row.detail = null;
  }
  row.shownId = call.id;
  setText(row.time, formatTimeOrDay(call.start, now));
  setAttribute(row.time, "title", formatMoment(call.start, now));
  row.key.className = `key key-${call.hasFailed ? "failed" : call.kind === "agent" ? "agent" : toolFamily(call.name)}`;
  setText(row.name, call.name);
  setAttribute(row.root, "data-failed", String(call.hasFailed));
  const summary = call.error ?? (call.kind === "agent" ? call.text : argsSummary(call.text));
  setText(row.open, oneLine(summary ?? UNKNOWN));
  setAttribute(row.open, "aria-expanded", String(isExpanded));
  setText(row.number, `${call.isRunning ? "runs " : ""}${formatDuration(call.duration)}`);
  row.bar.style.setProperty("--share", String((call.duration ?? 0) / longest));
  if (isExpanded && row.detail === null) {
    row.detail = createCallDetail(call);
    row.open.after(row.detail);
  } else if (!isExpanded && row.detail !== null) {
    row.detail.remove();
    row.detail = null;
  }
}

function createCallDetail(call: Call): HTMLElement {
  const detail = document.createElement("div");
  detail.className = "call-detail";
  const add = (text: string) => {
    const pre = document.createElement("pre");
    pre.textContent = text.slice(0, MAX_SHOWN_CHARS);
    detail.append(pre);
  };
  if (call.error !== null) add(`Error: ${call.error}`);
  const args = call.text === null || call.kind === "agent" ? null : parseRecord(call.text);
  if (args !== null) add(prettyJson(args));
  else if (call.text !== null) add(call.text);
  if (call.childId !== null) {
    const link = document.createElement("a");
    link.href = sessionHref(call.childId);
    link.textContent = "Open its session";
    detail.append(link);
  }
  return detail;
}

// ─── Empty state, notice, copying ────────────────────────────────────────────

/** @param origin where this page came from: the commands name the same server */
export function createEmptyState(origin: string): void {
  byId("command-plugin", HTMLElement).textContent =
    `curl -f --create-dirs -o ~/.config/opencode/plugin/observability.ts '${origin}/plugin/observability.ts'`;
  byId("command-curl", HTMLElement).textContent =
    `curl '${origin}/api/events' -H 'Content-Type: application/json' -d '{"type":"session_start","session_id":"hello","data":{"title":"Hello"}}'`;
  for (const button of document.querySelectorAll<HTMLButtonElement>("button.copy"))
    button.addEventListener("click", () => {
      const source = document.getElementById(button.dataset.copy ?? "");
      void confirmCopy(button, Promise.resolve(source?.textContent ?? ""));
    });
}

/** How long a button says that it has copied. */
const CONFIRM_MS = 1_500;

async function confirmCopy(button: HTMLButtonElement, text: Promise<string>): Promise<void> {
  const label = button.dataset.label ?? button.textContent ?? "";
  button.dataset.label = label;
  try {
    await copyText(await text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Can't copy here";
  }
  setTimeout(() => (button.textContent = label), CONFIRM_MS);
}

async function copyText(text: string): Promise<void> {
  // Only secure contexts have a clipboard: localhost is one, another name over http isn't.
  if (navigator.clipboard !== undefined) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  if (!isCopied) throw new Error("no clipboard");
}

/** One pressed button in a group; `chosen` hears of each press. */
function choose(group: HTMLElement, chosen: (button: HTMLButtonElement) => void): void {
  const buttons = [...group.querySelectorAll<HTMLButtonElement>("button")];
  for (const button of buttons)
    button.addEventListener("click", () => {
      for (const other of buttons) setAttribute(other, "aria-pressed", String(other === button));
      chosen(button);
    });
}
