/** Numbers and times as people read them, in the viewer's zone. What isn't known is an en dash, never 0. */

export const UNKNOWN = "–";

const HOME = /^(\/home\/|\/Users\/|[A-Z]:\\Users\\)[^\\/]+|^\/root(?![^/])/;

export const SECOND_MS = 1_000;
export const MINUTE_MS = 60 * SECOND_MS;
export const HOUR_MS = 60 * MINUTE_MS;
export const DAY_MS = 24 * HOUR_MS;

// 24 hours in every locale: half as wide as with AM and PM, and sorts as text.
const clock = (timeStyle: "short" | "medium") =>
  new Intl.DateTimeFormat(undefined, { timeStyle, hourCycle: "h23" }).format;
const number = ({ format }: Intl.NumberFormat) => {
  return (value: number | null) => (value === null ? UNKNOWN : format(value));
};

/** "14:03:07" */
export const formatTime = clock("medium");

/** "14:03" */
export const formatMinute = clock("short");

/** "Nov 20" */
export const formatDay = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" })
  .format;

/** 12345 → "12,345" */
export const formatCount = number(new Intl.NumberFormat());

/** 12345 → "12.3K" */
export const formatCompact = number(
  new Intl.NumberFormat(undefined, { notation: "compact", maximumSignificantDigits: 3 }),
);

/** US dollars, as posted: 0.4217 → "$0.42", 0.0004 → "<$0.01" */
export function formatCost(value: number | null): string {
  if (value === null) return UNKNOWN;
  return value > 0 && value < 0.01 ? "<$0.01" : `$${value.toFixed(2)}`;
}

/** How `now` differs from `before`: 12 and 10 → "+20 %", 50 and 2 → "×25"; "" where there is nothing to compare. */
export function formatChange(now: number | null, before: number | null): string {
  if (now === null || before === null || before <= 0) return "";
  if (now >= 10 * before) return `×${formatCompact(now / before)}`;
  const percent = Math.round((now / before - 1) * 100);
  return `${percent > 0 ? "+" : percent < 0 ? "−" : "±"}${Math.abs(percent)} %`;
}

/** A length of time: "<1 ms", "150 ms", "1.2 s", "44 s", "3 m 04 s", "2 h 05 m", "3 d 4 h" */
export function formatDuration(ms: number | null): string {
  if (ms === null) return UNKNOWN;
  if (ms > 0 && ms < 1) return "<1 ms";
  if (ms < SECOND_MS - 0.5) return `${Math.round(ms)} ms`;
  if (ms < 10 * SECOND_MS - 50) return `${(ms / SECOND_MS).toFixed(1)} s`;
  if (ms < MINUTE_MS - 500) return `${Math.round(ms / SECOND_MS)} s`;
  const seconds = Math.round(ms / SECOND_MS);
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} m ${pad(seconds % 60)} s`;
  const minutes = Math.round(ms / MINUTE_MS);
  if (minutes < 1_440) return `${Math.floor(minutes / 60)} h ${pad(minutes % 60)} m`;
  const hours = Math.round(ms / HOUR_MS);
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

const pad = (value: number) => String(value).padStart(2, "0");

/** How long ago, in one unit: "now", "12 s", "4 m", "2 h", "3 d" */
export function formatAge(ms: number): string {
  if (ms < 2 * SECOND_MS) return "now";
  if (ms < MINUTE_MS) return `${Math.floor(ms / SECOND_MS)} s`;
  if (ms < HOUR_MS) return `${Math.floor(ms / MINUTE_MS)} m`;
  if (ms < DAY_MS) return `${Math.floor(ms / HOUR_MS)} h`;
  return `${Math.floor(ms / DAY_MS)} d`;
}

/** "just now", "4 m ago" */
export function formatAgo(ms: number): string {
  const age = formatAge(ms);
  return age === "now" ? "just now" : `${age} ago`;
}

/** With the day where that isn't `now`'s: "Nov 20, 14:03:07" */
export const formatMoment = (ms: number, now: number) =>
  formatDay(ms) === formatDay(now) ? formatTime(ms) : `${formatDay(ms)}, ${formatTime(ms)}`;

/** For a narrow column: the time in the last twelve hours, before them the day. */
export const formatTimeOrDay = (ms: number, now: number) =>
  now - ms < 12 * HOUR_MS ? formatTime(ms) : formatDay(ms);

/** "1 tool", "12 tools" */
export const formatNoun = (count: number, noun: string) =>
  `${formatCount(count)} ${noun}${count === 1 ? "" : "s"}`;

/** "cache_read" → "Cache read" */
export const wordOf = (name: string) =>
  name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");

/** "a · b", of what there is to say. */
export const joined = (words: readonly (string | number | null)[], separator = " · ") =>
  words.filter(Boolean).join(separator);

/** Of an id its tail: the heads of several are alike. */
export const shortId = (id: string) => (id.length <= 12 ? id : `…${id.slice(-8)}`);

/** In /srv/app: /srv/app/src/a.ts → src/a.ts; what is elsewhere stays whole. */
export const relativePath = (path: string, directory: unknown) =>
  path.startsWith(`${directory}/`) ? path.slice(`${directory}/`.length) : path;

/** As short as it still says where it is: /home/ada/shop → ~/shop, /srv/builds/2024/app → …/2024/app */
export function shortPath(path: string): string {
  const parts = path.replace(HOME, "~").split(/[\\/]/);
  const names = parts.filter((part) => part !== "" && part !== "~");
  if (names.length > 2) return `…/${names.slice(-2).join("/")}`;
  return parts.join("/").replace(/(?<=.)\/$/, "");
}
