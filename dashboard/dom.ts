/** The few helpers that every panel needs. Elements are looked up once; text is only ever text. */

/** The element with this id. @throws where index.html lacks it, or it is another kind of element */
export const byId = <T extends HTMLElement>(id: string, type: new () => T): T =>
  part(document, `#${id}`, type);

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

/** What each element has been given: touching the DOM costs even where nothing changes. */
const written = new WeakMap<Element, string | null>();

/** @param target an element, or its id @param text null: hides it */
export function setText(target: Element | string, text: string | null): void {
  const element = typeof target === "string" ? byId(target, HTMLElement) : target;
  if (written.get(element) === text) return;
  written.set(element, text);
  element.toggleAttribute("hidden", text === null);
  element.textContent = shown(text ?? "");
}

/** By name: attributes, custom properties (`--share`), and its `text`; null: without it. */
type Contents = Readonly<Record<string, string | number | boolean | null>>;

export function set(element: HTMLElement, contents: Contents): void {
  for (const [name, value] of Object.entries(contents)) {
    const text = value === null ? null : String(value);
    if (name === "text") setText(element, text);
    else if (name.startsWith("--")) element.style.setProperty(name, text);
    else if (text === null) element.removeAttribute(name);
    else if (element.getAttribute(name) !== shown(text)) element.setAttribute(name, shown(text));
  }
}

/** Writes into what is in `root`, by selector: its text alone, or more of it. */
export function fill(root: ParentNode, parts: Readonly<Record<string, string | null | Contents>>) {
  for (const [query, contents] of Object.entries(parts)) {
    const isText = contents === null || typeof contents === "string";
    set(part(root, query, HTMLElement), isText ? { text: contents } : contents);
  }
}

export function create<K extends keyof HTMLElementTagNameMap>(tag: K, contents: Contents = {}) {
  const element = document.createElement(tag);
  set(element, contents);
  return element;
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

/** The one element in `root` that matches. @throws where there is none */
export function part<T extends Element>(root: ParentNode, query: string, type: new () => T): T {
  const element = root.querySelector(query);
  if (!(element instanceof type)) throw new Error(`${query} is missing`);
  return element;
}

/** A copy of the element with this class in index.html's <template>. */
export function cloneOf(name: string): HTMLElement {
  const { content } = byId("templates", HTMLTemplateElement);
  return document.importNode(part(content, `.${name}`, HTMLElement), true);
}

/**
 * Keeps the children of an element, or of the one with this id, as one row per item, in order. A row
 * stays with its key: what the person has opened, selected or focused in it stays so.
 *
 * @param create prepares a copy of `template` (see cloneOf), in which `find` finds what matches; what
 *   it returns writes an item into it
 */
export function createList<T extends { key: string | number }>(
  id: string | HTMLElement,
  template: string,
  create: (root: HTMLElement, find: (query: string) => HTMLElement) => (item: T) => void,
): (items: readonly T[]) => void {
  const container = typeof id === "string" ? byId(id, HTMLElement) : id;
  container.replaceChildren(); // the <template> of a table has its own rows in it
  let rows = new Map<string | number, { root: HTMLElement; update: (item: T) => void }>();
  const createRow = () => {
    const root = cloneOf(template);
    return { root, update: create(root, (query) => part(root, query, HTMLElement)) };
  };
  return (items) => {
    const next: typeof rows = new Map();
    for (const { key } of items) next.set(key, rows.get(key) ?? createRow());
    for (const [key, { root }] of rows) if (!next.has(key)) root.remove();
    rows = next;
    let at = container.firstElementChild;
    for (const { root } of rows.values())
      if (root === at) at = at.nextElementSibling;
      else container.insertBefore(root, at);
    for (const item of items) rows.get(item.key)?.update(item);
  };
}

/** Rows that a list starts with, and that "Show more" adds. */
export const PAGE_ROWS = 40;

/** Puts below a list in `root` what is said where it has no rows, and the button that shows more of them. */
export function createEnd(root: HTMLElement, none: string, text: string, changed: () => void) {
  const empty = root.appendChild(create("p", { class: "panel-empty", hidden: true }));
  const more = root.appendChild(create("button", { class: "button more", text, hidden: true }));
  const end = {
    limit: PAGE_ROWS,
    show(count: number, hasMore: boolean, words = none): void {
      more.hidden = !hasMore;
      setText(empty, count > 0 || hasMore ? null : words);
    },
  };
  more.addEventListener("click", () => {
    end.limit += PAGE_ROWS;
    changed();
  });
  return end;
}

/** Of the canvas with this id. */
export function contextOf(id: string): CanvasRenderingContext2D {
  const context = byId(id, HTMLCanvasElement).getContext("2d");
  if (context === null) throw new Error("this browser has no 2D canvas");
  return context;
}

/** Gives a canvas as many pixels as the screen has for these CSS pixels; style.css gives its size. */
export function fitCanvas(context: CanvasRenderingContext2D, width: number, height: number): void {
  const { canvas } = context;
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  context.textBaseline = "middle";
}

/**
 * The colours of style.css, for canvases: `read("--ink")`. Kept until the theme changes,
 * because asking for a style makes the browser lay out whatever was changed before.
 *
 * @param changed called when they are others
 */
export function createColors(changed: () => void) {
  const known = new Map<string, string>();
  const probe = document.body.appendChild(create("i", { hidden: true }));
  const forget = () => {
    known.clear();
    changed();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", forget);
  addEventListener("themechange", forget);
  return (name: `--${string}`): string => {
    let color = known.get(name);
    if (color === undefined) {
      probe.style.color = `var(${name})`;
      color = getComputedStyle(probe).color;
      known.set(name, color);
    }
    return color;
  };
}

/** A button for each of `labels` in the element with this id, one of them pressed. @returns which */
export function choose<K extends string>(
  id: string,
  labels: Readonly<Record<K, string>>,
  value: NoInfer<K>,
  changed: () => void,
) {
  const group = byId(id, HTMLElement);
  const choice: { value: K } = { value };
  for (const name in labels) {
    const button = create("button", { text: labels[name], "aria-pressed": name === value });
    button.value = name;
    group.append(button);
    button.addEventListener("click", () => {
      choice.value = name;
      for (const each of group.querySelectorAll("button"))
        set(each, { "aria-pressed": each === button });
      changed();
    });
  }
  return choice;
}
