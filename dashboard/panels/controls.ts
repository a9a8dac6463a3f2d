/** The theme, and the keys that work wherever the focus is. */

import { byId, kept, set } from "../dom.ts";

const THEMES = ["system", "light", "dark"];

export function createControls(openSearch: () => void): void {
  const theme = byId("theme", HTMLButtonElement);

  function showTheme(at: number): void {
    const name = kept("theme", THEMES[at % THEMES.length]);
    document.documentElement.dataset.theme = name;
    const label = `Theme: ${name}`;
    set(theme, { text: "◐○●".charAt(at % THEMES.length), title: label, "aria-label": label });
    dispatchEvent(new Event("themechange"));
  }

  const at = () => Math.max(0, THEMES.indexOf(kept("theme")));
  theme.addEventListener("click", () => showTheme(at() + 1));
  showTheme(at());

  document.addEventListener("keydown", (event) => {
    const { key, target, ctrlKey, metaKey, altKey } = event;
    const isTyping = target instanceof Element && target.closest("input, select, dialog");
    const isControl = ctrlKey || metaKey;
    if (altKey || (isTyping && !isControl)) return;
    const wanted = `${isControl ? "Ctrl " : ""}${key.toLowerCase()}`;
    if (wanted === "/" || wanted === "Ctrl k") openSearch();
    else if (wanted === "?") byId("keys", HTMLDivElement).togglePopover();
    else if (wanted === "n") byId("stat-needs-link", HTMLAnchorElement).click();
    else return;
    event.preventDefault();
  });
}
