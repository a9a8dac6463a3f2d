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

export function createHeader({ togglePause }: { togglePause: () => void }) {
  const connection = byId("connection", HTMLButtonElement);
  const connectionText = byId("connection-text", HTMLSpanElement);
  const needing = byId("stat-needs", HTMLDivElement);
  const needCount = byId("stat-needs-count", HTMLSpanElement);
  const needLink = byId("stat-needs-link", HTMLAnchorElement);
  const needName = byId("stat-needs-name", HTMLSpanElement);
  const needText = byId("stat-needs-text", HTMLSpanElement);
  const agents = byId("stat-agents", HTMLElement);
  const cost = byId("stat-cost", HTMLElement);
  const rate = byId("stat-rate", HTMLSpanElement);
  const errors = byId("stat-errors", HTMLDivElement);
  const errorsLink = byId("stat-errors-link", HTMLAnchorElement);
  const oldPlugin = byId("old-plugin", HTMLParagraphElement);
  const icon = part(document, "link[rel=icon]", HTMLLinkElement);
  const plainIcon = icon.href;
  connection.addEventListener("click", togglePause);

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
    /** Also in the tab, where a page is that isn't shown. */
    showNeeds(needs: readonly Need[], now: number): void {
      const count = new Set(needs.map(({ root }) => root)).size;
      const [first] = needs;
      setText(needCount, formatCount(count));
      setAttribute(needing, "data-cause", first?.cause ?? "");
      const href = first === undefined ? "#/" : sessionHref(first.session.row.id);
      setAttribute(needLink, "href", href);
      setAttribute(needLink, "title", first?.text ?? "");
      const age = first === undefined ? "" : `, ${formatAge(now - first.since)}`;
      setText(needName, first === undefined ? "" : labelOf(first.session) + age);
      setText(needText, first?.text ?? "");
      document.title = count === 0 ? TITLE : `(${count}) ${TITLE}`;
      const dot = encodeURIComponent("<circle cx='11' cy='11' r='5' fill='#e0a030'/></svg>");
      const dotted = plainIcon.replace("%3C/svg%3E", dot);
      setAttribute(icon, "href", count === 0 ? plainIcon : dotted);
    },
    /** @param spent US dollars today; null: not known */
    show(overview: Overview, spent: number | null, now: number): void {
      setText(agents, formatCount(overview.running_agents));
      setText(part(cost, "dd", HTMLElement), formatCost(spent));
      cost.hidden = spent === null;
      setText(errorsLink, formatCount(overview.errors_last_hour));
      setAttribute(errors, "data-errors", String(Math.min(overview.errors_last_hour, 1)));
      oldPlugin.hidden = overview.old_plugin === null;
      setText(oldPlugin, `OpenCode’s plugin ${overview.old_plugin} is older than this server`);
      setText(rate, formatCount(perMinute(overview, now)));
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
