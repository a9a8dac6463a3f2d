/** The part of the address after #: which page is open, and how the feed is filtered. So a view can be kept. */

import { type FeedFilter, NO_FILTER, isEventType } from "./events.ts";

/** What a session's page shows below its timeline. */
export const TABS = ["calls", "errors", "files", "todos", "cost", "events"] as const;
export type Tab = (typeof TABS)[number];

export interface Route {
  /** Of the session page; null: the overview. */
  sessionId: string | null;
  /** Of the session page; the events where they are filtered. */
  tab?: Tab;
  filter: FeedFilter;
  /** The bar that is selected in its timeline; or an event of its call, which is then replaced by it. */
  spanId: number | null;
  /** The page of what was spent. */
  isSpend?: boolean;
}

/** `#/session/<id>?tab=events&type=tool_use&q=text&span=7`; what it doesn't understand is left out. */
export function routeOf(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#/, "").split("?");
  const params = new URLSearchParams(query);
  const [, page, id = ""] = path.split("/");
  // Unlike decodeURIComponent it takes whatever a person types.
  const sessionId = new URLSearchParams(`id=${id.replaceAll("+", "%2B")}`).get("id");
  const type = params.get("type");
  const filter: FeedFilter = {
    type: type === "failed" || isEventType(type) ? type : null,
    sessionId: null,
    text: params.get("q") ?? "",
  };
  const isFiltered = JSON.stringify(filter) !== JSON.stringify(NO_FILTER);
  return {
    sessionId: (page === "session" && sessionId) || null,
    tab: TABS.find((tab) => tab === params.get("tab")) ?? (isFiltered ? "events" : "calls"),
    filter,
    spanId: Number(params.get("span")) || null,
    ...(page === "spend" ? { isSpend: true } : {}),
  };
}

export function hashOf(route: Partial<Route>): string {
  const { sessionId = null, tab = "calls", filter = NO_FILTER, spanId = null } = route;
  const { type, text: q } = filter;
  const shownTab = sessionId === null || tab === "calls" ? "" : tab;
  const told = { tab: shownTab, type, q, span: spanId };
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(told)) if (value) params.set(name, String(value));
  const path = sessionId === null ? "#/" : sessionHref(sessionId);
  return params.size === 0 ? path : `${path}?${params}`;
}

export const sessionHref = (id: string): string => `#/session/${encodeURIComponent(id)}`;
