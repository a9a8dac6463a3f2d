/** What the page asks the server for. Rows come with their version: which events they have seen (see rows.ts). */

import type { Overview, Session, Span } from "../server.ts";
import {
  CALL_KINDS,
  EVENT_TYPES,
  type TelemetryEvent,
  asText,
  errorText,
  readEvent,
} from "./events.ts";
import type { SpanEntry } from "./rows.ts";

/** What one answer of the server holds at most. */
export const PAGE_ROWS = 1_000;
/** Of the events of one type after the first of a call, how many are looked at for its other half. */
const SEARCHED_EVENTS = 100;

export class ServerError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

type Query = Record<string, string | number | null | undefined>;

/** @throws ServerError with what the server says is wrong */
export async function get(path: string, query: Query = {}): Promise<Response> {
  const params = new URLSearchParams();
  for (const [name, value] of Object.entries(query))
    if (value !== null && value !== undefined) params.set(name, String(value));
  const response = await fetch(params.size === 0 ? path : `${path}?${params}`);
  if (response.ok) return response;
  const body: { error?: string } = await response.json().catch(() => ({}));
  throw new ServerError(response.status, body.error ?? `${path}: ${response.status}`);
}

interface Answer<T> {
  list: T[];
  version: number;
}

async function getRows<T>(name: "sessions" | "spans", query: Query): Promise<Answer<T>> {
  const response = await get(`/api/${name}`, { limit: PAGE_ROWS, ...query });
  const body: Partial<Record<string, T[]>> = await response.json();
  return { list: body[name] ?? [], version: Number(response.headers.get("Last-Event-ID")) };
}

export const getSessions = (query: Query) => getRows<Session>("sessions", query);

/** Newest first; an answer may be short, and yet not the last. */
export const getSpans = (query: Query) => getRows<Span>("spans", query);

export async function getEvents(query: Query): Promise<TelemetryEvent[]> {
  const response = await get("/api/events", { limit: PAGE_ROWS, ...query });
  const { events }: { events: unknown[] } = await response.json();
  return events.map(readEvent).filter((event) => event !== null);
}

export async function getOverview(): Promise<Overview> {
  return (await get("/api/overview")).json();
}

/** The long form of a session, with all its calls, as the server writes it. */
export async function getSessionText(id: string): Promise<string> {
  return (await get(`/api/sessions/${encodeURIComponent(id)}`)).text();
}

/** The events of a call with its whole arguments and error: its first, and its other half where that says more. */
export async function getCall({ row }: SpanEntry): Promise<TelemetryEvent[]> {
  const { id, session_id: sessionId, call_id } = row;
  const [first] = await getEvents({ sessionId, after: id - 1, limit: 1 });
  if (first === undefined || first.id !== id) return [];
  const { args, prompt, error } = first.fields;
  const isAllSaid =
    (row.text === null || asText(args ?? prompt) !== null) &&
    (row.error === null || errorText(error) !== null);
  const kind = CALL_KINDS[first.type];
  if (isAllSaid || call_id === null || kind === undefined) return [first];
  const type = EVENT_TYPES.find((other) => other !== first.type && CALL_KINDS[other] === kind);
  const later = await getEvents({ sessionId, type, after: id, limit: SEARCHED_EVENTS });
  return [first, ...later.filter(({ fields }) => fields.call_id === call_id)];
}
