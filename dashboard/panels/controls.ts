/** The theme, and the keys that work wherever the focus is. */

import { byId, kept, setAttribute, setText } from "../dom.ts";

const THEMES = ["system", "light", "dark"];

export function createControls(openSearch: () => void): void {
  const theme = byId("theme", HTMLButtonElement);
  const keys = byId("keys", HTMLDialogElement);
  let at = Math.max(0, THEMES.indexOf(kept("theme")));

  function showTheme(): void {
    const name = THEMES[at] ?? "";
    document.documentElement.dataset.theme = name;
    setText(theme, "◐○●"[at] ?? "", `Theme: ${name}`);
    setAttribute(theme, "aria-label", `Theme: ${name}`);
    dispatchEvent(new Event("themechange"));
  }

  theme.addEventListener("click", () => {
    at = (at + 1) % THEMES.length;
    kept("theme", THEMES[at] ?? "");
    showTheme();
  });
  showTheme();

  byId("keys-open", HTMLButtonElement).addEventListener("click", () => keys.showModal());
  document.addEventListener("keydown", (event) => {
    const { key, target, ctrlKey, metaKey, altKey } = event;
    const isTyping = target instanceof Element && target.closest("input, select, dialog");
    const isControl = ctrlKey || metaKey;
    if (altKey || (isTyping && !isControl)) return;
    const wanted = `${isControl ? "Ctrl " : ""}${key.toLowerCase()}`;
    if (wanted === "/" || wanted === "Ctrl k") openSearch();
    else if (wanted === "?") keys.showModal();
    else if (wanted === "n") byId("stat-needs-link", HTMLAnchorElement).click();
    else return;
    event.preventDefault();
  });
}
