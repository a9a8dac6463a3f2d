/** The few helpers that every panel needs. Elements are looked up once; text is only ever text. */

/** The element with this id. @throws where index.html lacks it, or it is another kind of element */
export function byId<T extends HTMLElement>(id: string, type: new () => T): T {
  const element = document.getElementById(id);
  if (!(element instanceof type)) throw new Error(`#${id} is missing`);
  return element;
}

/** Where ordinary text has characters that aren't seen. */
const USUAL = [
  /[\t\n]|\r(?=\n)/, // at the end of a line
  /(?<=[\p{Script=Arabic}\p{M}\p{ExtPict}\p{EMod}])[\u200c\u200d]/u, // in Persian, Hindi, emoji
  /(?<=[\p{Emoji}\p{S}\p{Script=Han}])\p{VS}/u, // after what has several forms
  /(?<=\u{1f3f4}[\u{e0020}-\u{e007e}]{0,6})[\u{e0020}-\u{e007f}]/u, // in the flag of Wales
];
const HIDDEN = new RegExp(
  `(${USUAL.map(({ source }) => source).join("|")})|[\\p{Cc}\\p{DI}\\u2028\\u2029\\ufff9-\\ufffb]`,
  "gu",
);

/**
 * Text as it is shown: each control, invisible or override character as its number, so that nothing
 * is hidden and nothing reads as something else. `ls \u202e/ fr- mr` would read `ls rm -rf /`.
 */
export function shown(text: string): string {
  return text.replace(HIDDEN, (hidden: string, usual?: string) => {
    const code = hidden.codePointAt(0)?.toString(16).toUpperCase() ?? "";
    return usual ?? (code.length > 4 ? `\\u{${code}}` : `\\u${code.padStart(4, "0")}`);
  });
}

/** Touching the DOM costs even where nothing changes: so only what does is written. */
export function setText(element: Element, text: string): void {
  const next = shown(text);
  if (element.textContent !== next) element.textContent = next;
}

export function setAttribute(element: Element, name: string, value: string): void {
  const next = shown(value);
  if (element.getAttribute(name) !== next) element.setAttribute(name, next);
}

/** What this browser keeps for the page, after `value` if that is given; "" where it keeps nothing. */
export function kept(name: string, value?: string): string {
  try {
    if (value !== undefined) localStorage.setItem(name, value);
    return localStorage.getItem(name) ?? "";
  } catch {
    return value ?? "";
  }
}

/** The first element of a <template>, to be cloned for each row. */
export function templateRow(id: string): () => HTMLElement {
  const template = byId(id, HTMLTemplateElement);
  return () => {
    const row = template.content.firstElementChild?.cloneNode(true);
    if (!(row instanceof HTMLElement)) throw new Error(`#${id} is empty`);
    return row;
  };
}

/** The one element in `root` that matches. @throws where there is none */
export function part<T extends Element>(root: ParentNode, query: string, type: new () => T): T {
  const element = root.querySelector(query);
  if (!(element instanceof type)) throw new Error(`${query} is missing`);
  return element;
}

/** A row of a list: an element, and what writes an item into it. */
export interface ListRow<T> {
  root: HTMLElement;
  update: (item: T) => void;
}

/**
 * Keeps the children of an element, or of the one with this id, as one row per item, in order. A row stays with its key; rows
 * that are no longer needed are used for new items, so a feed that scrolls by creates none.
 *
 * @param create a row from a clone of the <template> `templateId`
 */
export function createList<T>(
  id: string | HTMLElement,
  templateId: string,
  keyOf: (item: T) => string | number,
  create: (root: HTMLElement) => ListRow<T>,
): (items: readonly T[]) => void {
  const container = typeof id === "string" ? byId(id, HTMLElement) : id;
  const clone = templateRow(templateId);
  let rows = new Map<string | number, ListRow<T>>();
  return (items) => {
    const next = new Map<string | number, ListRow<T>>();
    const wanted = new Set(items.map(keyOf));
    const spare = [...rows].filter(([key]) => !wanted.has(key)).map(([, row]) => row);
    for (const item of items) {
      const key = keyOf(item);
      const row = rows.get(key) ?? spare.pop() ?? create(clone());
      row.update(item);
      next.set(key, row);
    }
    for (const row of spare) row.root.remove();
    let at = container.firstElementChild;
    for (const row of next.values())
      if (row.root === at) at = at.nextElementSibling;
      else container.insertBefore(row.root, at);
    rows = next;
  };
}

/** Rows that a list starts with, and that "Show more" adds. */
const PAGE_ROWS = 60;

/** The button that shows more rows of a list. @param clicked there is room for more */
export function createMore(id: string, clicked: () => void) {
  const button = byId(id, HTMLButtonElement);
  const more = {
    limit: PAGE_ROWS,
    reset: () => void (more.limit = PAGE_ROWS),
    show: (hasMore: boolean) => void (button.hidden = !hasMore),
  };
  button.addEventListener("click", () => {
    more.limit += PAGE_ROWS;
    clicked();
  });
  return more;
}

/** Gives `canvas` as many pixels as the screen has for these CSS pixels; style.css gives its size. */
export function fitCanvas(
  canvas: HTMLCanvasElement,
  context: CanvasRenderingContext2D,
  width: number,
  height: number,
): void {
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  context.textBaseline = "middle";
}

export function contextOf(canvas: HTMLCanvasElement): CanvasRenderingContext2D {
  const context = canvas.getContext("2d");
  if (context === null) throw new Error("this browser has no 2D canvas");
  return context;
}

/**
 * The colours of style.css, for canvases: `read("--ink")`. Kept until the theme changes,
 * because asking for a style makes the browser lay out whatever was changed before.
 *
 * @param changed called when they are others
 */
export function createColors(changed: () => void): (name: `--${string}`) => string {
  const known = new Map<string, string>();
  const probe = document.body.appendChild(document.createElement("i"));
  probe.hidden = true;
  const forget = () => {
    known.clear();
    changed();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", forget);
  addEventListener("themechange", forget);
  return (name) => {
    let color = known.get(name);
    if (color === undefined) {
      probe.style.color = `var(${name})`;
      color = getComputedStyle(probe).color;
      known.set(name, color);
    }
    return color;
  };
}

/** One pressed button in a group; `chosen` hears of each press. */
export function choose(group: HTMLElement, chosen: (button: HTMLButtonElement) => void): void {
  const buttons = [...group.querySelectorAll<HTMLButtonElement>("button")];
  for (const button of buttons)
    button.addEventListener("click", () => {
      for (const other of buttons) setAttribute(other, "aria-pressed", String(other === button));
      chosen(button);
    });
}

/** How long a button says that it has copied. */
const CONFIRM_MS = 1_500;

/** Copies `text` for a press of `button`, which says whether it could. */
export async function confirmCopy(button: HTMLButtonElement, text: Promise<string>): Promise<void> {
  button.dataset.label ??= button.textContent ?? "";
  try {
    await copyText(await text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Can't copy here";
  }
  setTimeout(() => (button.textContent = button.dataset.label ?? ""), CONFIRM_MS);
}

async function copyText(text: string): Promise<void> {
  // Only secure contexts have a clipboard: localhost is one, another name over http isn't.
  if (navigator.clipboard !== undefined) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  if (!isCopied) throw new Error("no clipboard");
}
