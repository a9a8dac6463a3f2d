/** What a page without sessions says: what is there already, and what to do next. */

import { get } from "../api.ts";
import { byId, confirmCopy, setAttribute, setText } from "../dom.ts";
import { formatAge, joined } from "../format.ts";

interface Sender {
  name: string | null;
  version: string | null;
  last_heard_at: string;
  is_lost: boolean;
}

/** @param origin where this page came from: the commands name the same server */
export function createEmptyState(origin: string) {
  const step = byId("step-plugin", HTMLLIElement);
  const seen = byId("plugin-seen", HTMLParagraphElement);
  setText(byId("server-seen", HTMLParagraphElement), `It answers at ${origin}`);
  setText(
    byId("command-plugin", HTMLElement),
    `curl -f --create-dirs -o ~/.config/opencode/plugins/observability.ts '${origin}/plugin/observability.ts'`,
  );
  setText(
    byId("command-curl", HTMLElement),
    `curl '${origin}/api/events' -H 'Content-Type: application/json' -d '{"type":"session_start","session_id":"hello","data":{"title":"Hello"}}'`,
  );
  for (const button of document.querySelectorAll<HTMLButtonElement>("button.copy"))
    button.addEventListener("click", () => {
      const source = document.getElementById(button.dataset.copy ?? "");
      void confirmCopy(button, Promise.resolve(source?.textContent ?? ""));
    });

  return {
    /** Asks the server whether a plugin lives. */
    async look(now: number): Promise<void> {
      const { senders }: { senders: Sender[] } = await (await get("/api/senders")).json();
      const latest = senders.at(-1); // heard last
      setAttribute(step, "data-done", String(latest?.is_lost === false));
      if (latest === undefined) return;
      const age = formatAge(Math.max(0, now - Date.parse(latest.last_heard_at)));
      const words = `Plugin seen ${age === "now" ? "just now" : `${age} ago`}`;
      const name = joined([latest.name, latest.version], " ");
      setText(seen, joined([words, name, latest.is_lost ? "then it left" : null], ", "));
    },
  };
}
