/** The button that deletes the open session, after a question. */

import { deleteSession } from "../api.ts";
import { byId, setText } from "../dom.ts";

/** @param sessionId of the session page */
export function createDelete(sessionId: () => string | null): void {
  const question = byId("delete", HTMLDivElement);
  const note = byId("delete-note", HTMLParagraphElement);
  const usual = note.textContent ?? "";
  question.addEventListener("toggle", () => setText(note, usual));
  byId("delete-confirm", HTMLButtonElement).addEventListener("click", async () => {
    const id = sessionId();
    if (id === null) return;
    try {
      await deleteSession(id); // the stream takes it out of the page
      question.hidePopover();
      if (sessionId() === id) location.hash = "#/";
    } catch (error) {
      setText(note, `It wasn't deleted: ${error instanceof Error ? error.message : String(error)}`);
    }
  });
}
