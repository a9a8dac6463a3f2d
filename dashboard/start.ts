/** What runs first: the theme is set before anything is shown, and that is painted before the rest takes its time. */

import { kept } from "./dom.ts";

/** A page that isn't shown is never painted. */
const MAX_PAINT_WAIT_MS = 500;

document.documentElement.dataset.theme = kept("theme");
await new Promise((painted) => {
  requestAnimationFrame(() => setTimeout(painted));
  setTimeout(painted, MAX_PAINT_WAIT_MS);
});
await import("./main.ts");
