/** What a page without events says: how to get some. */

import { byId, confirmCopy } from "../dom.ts";

/** @param origin where this page came from: the commands name the same server */
export function createEmptyState(origin: string): void {
  byId("command-plugin", HTMLElement).textContent =
    `curl -f --create-dirs -o ~/.config/opencode/plugins/observability.ts '${origin}/plugin/observability.ts'`;
  byId("command-curl", HTMLElement).textContent =
    `curl '${origin}/api/events' -H 'Content-Type: application/json' -d '{"type":"session_start","session_id":"hello","data":{"title":"Hello"}}'`;
  for (const button of document.querySelectorAll<HTMLButtonElement>("button.copy"))
    button.addEventListener("click", () => {
      const source = document.getElementById(button.dataset.copy ?? "");
      void confirmCopy(button, Promise.resolve(source?.textContent ?? ""));
    });
}
