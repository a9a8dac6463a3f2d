/** The part of the address after #: which page is open, and how the feed is filtered. So a view can be kept. */

import { type FeedFilter, NO_FILTER, isEventType } from "./events.ts";

/** What a session's page shows below its timeline. */
export const TABS = ["calls", "files", "todos", "cost", "events"] as const;
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

/** `#/session/<id>?tab=events&type=tool_use&tool=bash&q=text&span=7`; what it doesn't understand is left out. */
export function routeOf(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#/, "").split("?");
  const params = new URLSearchParams(query);
  const [, page, id] = path.split("/");
  const type = params.get("type");
  const filter: FeedFilter = {
    type: type === "failed" || isEventType(type) ? type : null,
    tool: params.get("tool") ?? "",
    sessionId: null,
    text: params.get("q") ?? "",
  };
  const isFiltered = JSON.stringify(filter) !== JSON.stringify(NO_FILTER);
  return {
    sessionId: page === "session" && id ? decode(id) : null,
    tab: TABS.find((tab) => tab === params.get("tab")) ?? (isFiltered ? "events" : "calls"),
    filter,
    spanId: Number(params.get("span")) || null,
    ...(page === "spend" ? { isSpend: true } : {}),
  };
}

export function hashOf({ sessionId, tab = "calls", filter, spanId }: Route): string {
  const params = new URLSearchParams();
  if (sessionId !== null && tab !== "calls") params.set("tab", tab);
  if (filter.type !== null) params.set("type", filter.type);
  if (filter.tool !== "") params.set("tool", filter.tool);
  if (filter.text !== "") params.set("q", filter.text);
  if (spanId !== null) params.set("span", String(spanId));
  const path = sessionId === null ? "#/" : sessionHref(sessionId);
  return params.size === 0 ? path : `${path}?${params}`;
}

/** Of the list of what failed in a session. */
export const errorsHref = (id: string) => `${sessionHref(id)}?type=failed`;

export function sessionHref(id: string): string {
  return `#/session/${encodeURIComponent(id)}`;
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
