/** What a page without sessions says: what is there already, and what to do next. */

import type { Store } from "../../server.ts";
import { getJson } from "../api.ts";
import { fill, setText } from "../dom.ts";
import { formatAgo, joined } from "../format.ts";

type Sender = ReturnType<Store["listSenders"]>[number];

export function createEmptyState() {
  const { origin } = location; // the commands name the same server
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
    const { senders } = await getJson<{ senders: Sender[] }>("/api/senders");
    const latest = senders.at(-1); // heard last
    fill(document, { "#step-plugin": { "data-done": latest !== undefined } });
    if (latest === undefined) return;
    const words = `Plugin seen ${formatAgo(now - Date.parse(latest.last_heard_at))}`;
    const name = joined([latest.name, latest.version], " ");
    setText("plugin-seen", joined([words, name], ", "));
  };
}
