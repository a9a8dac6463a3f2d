/** The line at the top: how the page stands to the server, and the figures of now. */

import type { Overview } from "../../server.ts";
import { sessionHref } from "../address.ts";
import { byId, createPicture, drawBars, part, setAttribute, setText } from "../dom.ts";
import { MINUTE_MS, formatAge, formatCount } from "../format.ts";
import { type Rows, labelOf, questionOf } from "../rows.ts";

const PULSE_MINUTES = 60;

/** How the page stands to the server. */
export type Connection =
  | { state: "connecting" | "live" | "paused" }
  | { state: "waiting"; seconds: number; reason: string | null };

type Pulse = { count: number; errors: number }[];

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
  const oldPlugin = byId("old-plugin", HTMLParagraphElement);
  let pulse: Pulse = [];
  const picture = createPicture("pulse", (to, width, height) => {
    to.context.clearRect(0, 0, width, height);
    drawBars(to, pulse, { width, height: height - 4, base: height - 4, redPx: 3 });
  });
  connection.addEventListener("click", togglePause);

  /** The one that waits longest. */
  function showWaiting(rows: Rows, now: number): void {
    let first = null;
    let since = Infinity;
    for (const session of rows.sessions.values()) {
      const at = Date.parse(session.row.waiting_since ?? "");
      if (at < since) [first, since] = [session, at];
    }
    waitingLink.hidden = first === null;
    if (first === null) return;
    setAttribute(waitingLink, "href", sessionHref(first.row.id));
    setAttribute(waitingLink, "title", questionOf(rows, first) ?? labelOf(first));
    setText(part(waitingLink, "span", HTMLElement), labelOf(first));
    setText(part(waitingLink, "span + span", HTMLElement), `, ${formatAge(now - since)}`);
  }

  return {
    showConnection(at: Connection): void {
      const words = {
        connecting: ["Connecting", ""],
        live: ["Live", "Pause the stream"],
        paused: ["Paused", "Resume the stream"],
      };
      const [text = "", title = ""] =
        at.state === "waiting"
          ? [`Reconnecting in ${at.seconds} s`, at.reason ?? "Try again now"]
          : words[at.state];
      setAttribute(connection, "data-state", at.state);
      setText(connectionText, text);
      setAttribute(connection, "title", title);
    },
    show(overview: Overview, rows: Rows, now: number): void {
      setText(sessions, formatCount(overview.active_sessions));
      setText(agents, formatCount(overview.running_agents));
      setText(waitingCount, formatCount(overview.waiting));
      setAttribute(waiting, "data-waiting", String(overview.waiting));
      showWaiting(rows, now);
      setText(errorsLink, formatCount(overview.errors_last_hour));
      setAttribute(errors, "data-errors", String(Math.min(overview.errors_last_hour, 1)));
      oldPlugin.hidden = overview.old_plugin === null;
      setText(oldPlugin, `OpenCode’s plugin ${overview.old_plugin} is older than this server`);
      pulse = pulseOf(overview, now);
      picture.redraw();
      setText(rate, formatCount(perMinute(pulse, now)));
      const peak = Math.max(...pulse.map(({ count }) => count));
      const words = `Events per minute, last hour: at most ${formatCount(peak)}`;
      setAttribute(picture.canvas, "aria-label", words);
      const title = "PAI Observability";
      document.title = overview.waiting > 0 ? `(${overview.waiting} waiting) ${title}` : title;
    },
  };
}

/** The last sixty minutes, oldest first; the last one is not over yet. */
function pulseOf({ activity }: Overview, now: number): Pulse {
  const minutes = new Map(activity.map((minute) => [Date.parse(minute.timestamp), minute]));
  const thisMinute = now - (now % MINUTE_MS);
  return Array.from({ length: PULSE_MINUTES }, (_, index) => {
    const minute = minutes.get(thisMinute - (PULSE_MINUTES - 1 - index) * MINUTE_MS);
    return { count: minute?.count ?? 0, errors: minute?.error_count ?? 0 };
  });
}

/** The last sixty seconds: all of this minute, and the part of the one before that is still in them. */
function perMinute(pulse: Pulse, now: number): number {
  const [previous, current] = pulse.slice(-2);
  const elapsed = (now % MINUTE_MS) / MINUTE_MS;
  return Math.round((current?.count ?? 0) + (previous?.count ?? 0) * (1 - elapsed));
}
