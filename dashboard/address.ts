/** The part of the address after #: which page is open, and how the feed is filtered. So a view can be kept. */

import { type FeedFilter, isEventType } from "./events.ts";

export interface Route {
  /** Of the session page; null: the overview. */
  sessionId: string | null;
  filter: FeedFilter;
  /** The bar that is selected in its timeline. */
  spanId: number | null;
}

/** `#/session/<id>?type=tool_use&tool=bash&session=<id>&q=text&span=7`; what it doesn't understand is left out. */
export function routeOf(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#/, "").split("?");
  const params = new URLSearchParams(query);
  const [, page, id] = path.split("/");
  const type = params.get("type");
  return {
    sessionId: page === "session" && id ? decode(id) : null,
    filter: {
      type: type === "failed" || isEventType(type) ? type : null,
      tool: params.get("tool") ?? "",
      sessionId: params.get("session") || null,
      text: params.get("q") ?? "",
    },
    spanId: Number(params.get("span")) || null,
  };
}

export function hashOf({ sessionId, filter, spanId }: Route): string {
  const params = new URLSearchParams();
  if (filter.type !== null) params.set("type", filter.type);
  if (filter.tool !== "") params.set("tool", filter.tool);
  if (filter.sessionId !== null) params.set("session", filter.sessionId);
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
