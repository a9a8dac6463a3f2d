/** The line at the top: who needs the person, the figures of now, and how the page stands to the server. */

import type { Overview } from "../../server.ts";
import { sessionHref } from "../address.ts";
import type { Need } from "../attention.ts";
import { byId, part, setAttribute, setText } from "../dom.ts";
import { MINUTE_MS, formatAge, formatCost, formatCount } from "../format.ts";
import { labelOf } from "../rows.ts";

const TITLE = "PAI Observability";

/** How the page stands to the server. */
export type Connection =
  | { state: "connecting" | "live" | "paused" }
  | { state: "waiting"; seconds: number; reason: string | null };

const CONNECTION_WORDS = {
  connecting: ["Connecting", ""],
  live: ["Live", "Pause the stream"],
  paused: ["Paused", "Resume the stream"],
} as const;

export function createHeader(togglePause: () => void) {
  const connection = byId("connection", HTMLButtonElement);
  const needLink = byId("stat-needs-link", HTMLAnchorElement);
  const errors = byId("stat-errors-link", HTMLAnchorElement);
  const icon = part(document, "link[rel=icon]", HTMLLinkElement);
  const plainIcon = icon.href;
  connection.addEventListener("click", togglePause);

  return {
    showConnection(at: Connection): void {
      const [text, title] =
        at.state === "waiting"
          ? [`Reconnecting in ${at.seconds} s`, at.reason ?? "Try again now"]
          : CONNECTION_WORDS[at.state];
      setText("connection-text", text);
      setAttribute(connection, "title", title);
      for (const element of [connection, byId("connection-dot", HTMLElement)])
        setAttribute(element, "data-status", at.state);
    },
    /** Also in the tab, where a page is that isn't shown. */
    showNeeds(needs: readonly Need[], now: number): void {
      const count = new Set(needs.map(({ root }) => root)).size;
      const [first] = needs;
      const age = first && `${labelOf(first.session)}, ${formatAge(now - first.since)}`;
      setText("stat-needs-count", formatCount(count));
      setText("stat-needs-name", age ?? "");
      setText("stat-needs-text", first?.text ?? "");
      setAttribute(needLink, "data-status", first?.cause ?? null);
      setAttribute(needLink, "href", first ? sessionHref(first.session.row.id) : "#/");
      setAttribute(needLink, "title", first?.text ?? null);
      document.title = count === 0 ? TITLE : `(${count}) ${TITLE}`;
      const dot = encodeURIComponent("<circle cx='11' cy='11' r='5' fill='#e0a030'/></svg>");
      const dotted = plainIcon.replace("%3C/svg%3E", dot);
      setAttribute(icon, "href", count === 0 ? plainIcon : dotted);
    },
    /** @param spent US dollars today; null: not known */
    show(overview: Overview, spent: number | null, now: number): void {
      const { running_agents, errors_last_hour, old_plugin } = overview;
      setText("stat-agents", formatCount(running_agents));
      setText("stat-cost", formatCost(spent));
      setText(errors, formatCount(errors_last_hour));
      setAttribute(errors, "data-status", errors_last_hour > 0 ? "failed" : null);
      const old = old_plugin && `OpenCode’s plugin ${old_plugin} is older than this server`;
      setText("old-plugin", old);
      setText("stat-rate", formatCount(perMinute(overview, now)));
    },
  };
}

/** The last sixty seconds: all of this minute, and the part of the one before that is still in them. */
function perMinute({ activity }: Overview, now: number): number {
  const elapsed = now % MINUTE_MS;
  const countAt = (at: number) =>
    activity.findLast(({ timestamp }) => Date.parse(timestamp) === at)?.count ?? 0;
  const current = countAt(now - elapsed);
  return Math.round(current + countAt(now - elapsed - MINUTE_MS) * (1 - elapsed / MINUTE_MS));
}
