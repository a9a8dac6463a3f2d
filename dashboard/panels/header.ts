/** The line at the top: who needs the person, the figures of now, and how the page stands to the server. */

import type { Overview } from "../../server.ts";
import { sessionHref } from "../address.ts";
import { getJson } from "../api.ts";
import type { Need } from "../attention.ts";
import { byId, fill, part, set } from "../dom.ts";
import { MINUTE_MS, formatAge, formatCost, formatCount } from "../format.ts";
import { labelOf } from "../rows.ts";
import { costOf, getSpend } from "./spend.ts";

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
  const icon = part(document, "link[rel=icon]", HTMLLinkElement);
  const [plainIcon, plainTitle] = [icon.href, document.title];
  const dot = encodeURIComponent("<circle cx='11' cy='11' r='5' fill='#e0a030'/></svg>");
  byId("connection", HTMLButtonElement).addEventListener("click", togglePause);

  return {
    showConnection(at: Connection): void {
      const [text, title] =
        at.state === "waiting"
          ? [`Reconnecting in ${at.seconds} s`, at.reason ?? "Try again now"]
          : CONNECTION_WORDS[at.state];
      fill(document, {
        "#connection": { title, "data-status": at.state },
        "#connection-dot": { "data-status": at.state },
        "#connection-text": text,
      });
      if (at.state === "connecting") return; // what was wrong may still be
      fill(document, { "#notice": at.state === "waiting" ? at.reason : null });
    },
    /** Also in the tab, where a page is that isn't shown. */
    showNeeds(needs: readonly Need[], now: number): void {
      const count = new Set(needs.map(({ root }) => root)).size;
      const [first] = needs;
      const age = first && `${labelOf(first.session)}, ${formatAge(now - first.since)}`;
      fill(document, {
        "#stat-needs-count": formatCount(count),
        "#stat-needs-name": age ?? "",
        "#stat-needs-text": first?.text ?? "",
        "#stat-needs-link": {
          "data-status": first?.cause ?? null,
          href: first ? sessionHref(first.session.row.id) : "#/",
          title: first?.text ?? null,
        },
      });
      document.title = count === 0 ? plainTitle : `(${count}) ${plainTitle}`;
      set(icon, { href: count === 0 ? plainIcon : plainIcon.replace("%3C/svg%3E", dot) });
    },
    async load(now: number): Promise<void> {
      const asked = getSpend("day", { days: 1 }).then(costOf, () => null);
      const [overview, spent] = await Promise.all([getJson<Overview>("/api/overview"), asked]);
      const { running_agents, errors_last_hour, old_plugin } = overview;
      const status = errors_last_hour > 0 ? "failed" : null;
      fill(document, {
        "#stat-agents": formatCount(running_agents),
        "#stat-cost": formatCost(spent),
        "#stat-errors-link": { text: formatCount(errors_last_hour), "data-status": status },
        "#old-plugin": old_plugin && `OpenCode’s plugin ${old_plugin} is older than this server`,
        "#stat-rate": formatCount(perMinute(overview, now)),
      });
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
