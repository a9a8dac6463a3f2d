/** What the page asks the server for. Rows come with their version: which events they have seen (see rows.ts). */

import type { Session, Span } from "../server.ts";
import { type TelemetryEvent, readEvent } from "./events.ts";
import type { SpanEntry } from "./rows.ts";

/** What one answer of the server holds at most. */
export const PAGE_ROWS = 1_000;
/** Of the events of a session after the first of a call, how many are looked at for the others of that call. */
const SEARCHED_EVENTS = 200;

export type Query = Record<string, string | number | null | undefined>;

/** @throws TypeError where there is no answer, else with what the server says is wrong */
export async function get(path: string, query: Query = {}, method = "GET"): Promise<Response> {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(query))
    if (value !== null && value !== undefined) params.set(name, String(value));
  const response = await fetch(params.size === 0 ? path : `${path}?${params}`, { method });
  if (response.ok) return response;
  const body: { error?: string } = await response.json().catch(() => ({}));
  throw new Error(body.error ?? `${path}: ${response.status}`);
}

export async function getJson<T>(path: string, query: Query = {}): Promise<T> {
  return (await get(path, query)).json();
}

/** What the server has summed up under this name: "tools", "spend". */
export const getStats = async <T>(name: string, query: Query) =>
  (await getJson<Record<string, T[]>>(`/api/analytics/${name}`, query))[name] ?? [];

export type Answer<T> = Awaited<ReturnType<typeof getList<T>>>;

async function getList<T>(name: "sessions" | "spans" | "events", query: Query) {
  const response = await get(`/api/${name}`, { limit: PAGE_ROWS, ...query });
  const body = await response.json();
  const list: T[] = body[name];
  const version = Number(response.headers.get("Last-Event-ID"));
  /** The newest events were looked at, too. */
  const isIndexed = body.indexed_to === undefined;
  return { list, version, isIndexed };
}

export const getSessions = (query: Query) => getList<Session>("sessions", query);

/** Newest first; an answer may be short, and yet not the last. */
export const getSpans = (query: Query) => getList<Span>("spans", query);

/** Newest first, up to an empty page. */
export async function findEvents(query: Query): Promise<Answer<TelemetryEvent>> {
  const { list, ...answer } = await getList<unknown>("events", query);
  return { ...answer, list: list.map(readEvent).filter((event) => event !== null) };
}

export const getEvents = async (query: Query) => (await findEvents(query)).list;

/** Where the server has the long form of a session, with all its calls; to delete it deletes all below it, too. */
export const sessionPath = (id: string): string => `/api/sessions/${encodeURIComponent(id)}`;

/** The events of a call, whole: its first, and those of the same call soon after it. */
export async function getCall({ row }: SpanEntry): Promise<TelemetryEvent[]> {
  const { id, session_id: sessionId, call_id } = row;
  const near = await getEvents({ sessionId, after: id - 1, limit: SEARCHED_EVENTS });
  return near.filter(
    (event) => event.id === id || (call_id !== null && event.fields.call_id === call_id),
  );
}
