/** Notifications of the browser: who waits for the person, what failed, whose agents are done. */

import { sessionHref } from "../address.ts";
import type { Need } from "../attention.ts";
import { byId, kept, set, shown } from "../dom.ts";
import { type SessionEntry, labelOf } from "../rows.ts";
import type { Tree } from "../tree.ts";

export function createNotify() {
  const button = byId("notify", HTMLButtonElement);
  const isPossible = isSecureContext && "Notification" in window;
  let isOn = isPossible && kept("notify") === "on" && Notification.permission === "granted";
  /** What was so before, by its tag: each is told once. */
  const known = new Set<string>();

  function show(): void {
    const isDenied = isPossible && Notification.permission === "denied";
    const words = isDenied ? "This browser blocks the page's notifications" : "Notify me";
    const title = `${words}: who waits, what failed, whose agents are done`;
    set(button, { "aria-label": words, title, "aria-pressed": isOn });
  }

  async function tell(tag: string, session: SessionEntry, text: string): Promise<void> {
    // Only a tab that is shown holds a lock (see tabs.ts): the person looks at it.
    const locks = await navigator.locks?.query();
    if (locks?.held?.length) return;
    const told = new Notification(shown(labelOf(session)), { body: shown(text), tag });
    told.addEventListener("click", () => {
      focus();
      location.hash = sessionHref(session.row.id);
      told.close();
    });
  }

  button.hidden = !isPossible;
  button.addEventListener("click", async () => {
    isOn = !isOn && (await Notification.requestPermission()) === "granted";
    kept("notify", isOn ? "on" : "off");
    show();
  });
  show();

  /** Tells what is new, unless the page is shown. */
  return (needs: readonly Need[], { roots }: Tree): void => {
    const causes = new Map<string, [SessionEntry, string]>();
    for (const { session, cause, since, text } of needs)
      if (cause === "waiting" || cause === "failed")
        causes.set(`${cause} ${session.row.id} ${since}`, [session, text]);
    for (const { entry, children } of roots)
      if (children.length > 0 && !children.some(({ goesOn }) => goesOn))
        causes.set(`done ${entry.row.id} ${children.length}`, [entry, "All its agents are done"]);
    for (const [tag, cause] of causes) {
      if (isOn && document.hidden && !known.has(tag)) void tell(tag, ...cause);
      known.add(tag);
    }
  };
}
