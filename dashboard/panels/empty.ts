/** What a page without sessions says: what is there already, and what to do next. */

import { get } from "../api.ts";
import { byId, setAttribute, setText } from "../dom.ts";
import { formatAge, joined } from "../format.ts";

interface Sender {
  name: string | null;
  version: string | null;
  last_heard_at: string;
}

export function createEmptyState() {
  const { origin } = location; // the commands name the same server
  const step = byId("step-plugin", HTMLLIElement);
  setText("server-seen", `It answers at ${origin}`);
  setText(
    "command-plugin",
    `curl -f --create-dirs -o ~/.config/opencode/plugins/observability.ts '${origin}/plugin/observability.ts'`,
  );
  setText(
    "command-curl",
    `curl '${origin}/api/events' -H 'Content-Type: application/json' -d '{"type":"session_start","session_id":"hello","data":{"title":"Hello"}}'`,
  );

  /** Asks the server whether it has heard a plugin. */
  return async (now: number): Promise<void> => {
    const { senders }: { senders: Sender[] } = await (await get("/api/senders")).json();
    const latest = senders.at(-1); // heard last
    setAttribute(step, "data-done", latest !== undefined);
    if (latest === undefined) return;
    const age = formatAge(Math.max(0, now - Date.parse(latest.last_heard_at)));
    const words = `Plugin seen ${age === "now" ? "just now" : `${age} ago`}`;
    const name = joined([latest.name, latest.version], " ");
    setText("plugin-seen", joined([words, name], ", "));
  };
}
