/** What the page asks the server for. Rows come with their version: which events they have seen (see rows.ts). */

import type { Overview, Session, Span } from "../server.ts";
import { type TelemetryEvent, readEvent } from "./events.ts";
import type { SpanEntry } from "./rows.ts";

/** What one answer of the server holds at most. */
export const PAGE_ROWS = 1_000;
/** Of the events of a session after the first of a call, how many are looked at for the others of that call. */
const SEARCHED_EVENTS = 200;

type Query = Record<string, string | number | null | undefined>;

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

export interface Answer<T> {
  list: T[];
  version: number;
  /** The newest events were looked at, too. */
  isIndexed: boolean;
}

async function getList<T>(name: "sessions" | "spans" | "events", query: Query): Promise<Answer<T>> {
  const response = await get(`/api/${name}`, { limit: PAGE_ROWS, ...query });
  const { [name]: list, indexed_to } = await response.json();
  const version = Number(response.headers.get("Last-Event-ID"));
  return { list, version, isIndexed: indexed_to === undefined };
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

/** With all below it. */
export async function deleteSession(id: string): Promise<void> {
  await get(`/api/sessions/${encodeURIComponent(id)}`, {}, "DELETE");
}

export async function getOverview(): Promise<Overview> {
  return (await get("/api/overview")).json();
}

/** US dollars spent today; null: not known. */
export async function getSpent(): Promise<number | null> {
  const response = await get("/api/analytics/spend", { days: 1, by: "day" }).catch(() => null);
  const { spend }: { spend?: { cost: number | null }[] } = (await response?.json()) ?? {};
  return spend?.reduce((sum, { cost }) => sum + (cost ?? 0), 0) ?? null;
}

/** The long form of a session, with all its calls, as the server writes it. */
export async function getSessionText(id: string): Promise<string> {
  return (await get(`/api/sessions/${encodeURIComponent(id)}`)).text();
}

/** The events of a call, whole: its first, and those of the same call soon after it. */
export async function getCall({ row }: SpanEntry): Promise<TelemetryEvent[]> {
  const { id, session_id: sessionId, call_id } = row;
  const near = await getEvents({ sessionId, after: id - 1, limit: SEARCHED_EVENTS });
  return near.filter(
    (event) => event.id === id || (call_id !== null && event.fields.call_id === call_id),
  );
}

/** What tells of a session's turns. */
export const MILESTONES = ["turn_start", "session_compacted", "session_error"];

/** Of these the latest of each type. */
export async function getMilestones(sessionId: string): Promise<TelemetryEvent[]> {
  const pages = await Promise.all(MILESTONES.map((type) => getEvents({ sessionId, type })));
  return pages.flat();
}
