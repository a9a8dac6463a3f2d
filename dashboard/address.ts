/** The part of the address after #: which page is open, and how the feed is filtered. So a view can be kept. */

import { NO_FILTER, filterOf } from "./events.ts";

/** What a session's page shows below its timeline. */
export const TABS = ["calls", "errors", "files", "todos", "cost", "events"] as const;
export type Tab = (typeof TABS)[number];

export type Route = ReturnType<typeof routeOf>;

/** `#/session/<id>?tab=events&type=tool_use&q=text&span=7`; what it doesn't understand is left out. */
export function routeOf(hash: string) {
  const [path = "", query = ""] = hash.replace(/^#/, "").split("?");
  const params = new URLSearchParams(query);
  const [, page, id = ""] = path.split("/");
  // Unlike decodeURIComponent it takes whatever a person types.
  const sessionId = new URLSearchParams(`id=${id.replaceAll("+", "%2B")}`).get("id");
  const filter = filterOf(params.get("type"), params.get("q") ?? "");
  const isFiltered = JSON.stringify(filter) !== JSON.stringify(NO_FILTER);
  return {
    /** Of the session page; null: the overview. */
    sessionId: (page === "session" && sessionId) || null,
    /** Of the session page; the events where they are filtered. */
    tab: TABS.find((tab) => tab === params.get("tab")) ?? (isFiltered ? "events" : "calls"),
    filter,
    /** The bar that is selected in its timeline; or an event of its call, which is then replaced by it. */
    spanId: Number(params.get("span")) || null,
    /** The page of what was spent. */
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
