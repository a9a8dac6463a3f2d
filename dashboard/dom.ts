/** The few helpers that every panel needs. Elements are looked up once; text is only ever text. */

/** The element with this id. @throws where index.html lacks it, or it is another kind of element */
export function byId<T extends HTMLElement>(id: string, type: new () => T): T {
  const element = document.getElementById(id);
  if (!(element instanceof type)) throw new Error(`#${id} is missing`);
  return element;
}

/** Touching the DOM costs even where nothing changes: so only what does is written. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element: Element, name: string, value: string): void {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** The first element of a <template>, to be cloned for each row. */
export function templateRow<T extends HTMLElement>(id: string, type: new () => T): () => T {
  const template = byId(id, HTMLTemplateElement);
  return () => {
    const row = template.content.firstElementChild?.cloneNode(true);
    if (!(row instanceof type)) throw new Error(`#${id} is empty`);
    return row;
  };
}

/** The one element in `root` that matches. @throws where there is none */
export function part<T extends HTMLElement>(
  root: ParentNode,
  selector: string,
  type: new () => T,
): T {
  const element = root.querySelector(selector);
  if (!(element instanceof type)) throw new Error(`${selector} is missing`);
  return element;
}

/**
 * Keeps the children of `container` as one row per item, in order. A row stays with its key; rows
 * that are no longer needed are used for new items, so a feed that scrolls by creates none.
 */
export function createRows<T, R extends { root: HTMLElement }>(
  container: HTMLElement,
  keyOf: (item: T) => string | number,
  create: () => R,
  update: (row: R, item: T) => void,
): (items: readonly T[]) => void {
  let rows = new Map<string | number, R>();
  return (items) => {
    const next = new Map<string | number, R>();
    const wanted = new Set(items.map(keyOf));
    const spare = [...rows].filter(([key]) => !wanted.has(key)).map(([, row]) => row);
    for (const item of items) {
      const key = keyOf(item);
      const row = rows.get(key) ?? spare.pop() ?? create();
      update(row, item);
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
 * The colours of style.css, for canvases: `read("--ink")`. Kept until the system's preference
 * changes, because asking for a style makes the browser lay out whatever was changed before.
 *
 * @param changed called when they are others
 */
export function createColors(changed: () => void): (name: `--${string}`) => string {
  const known = new Map<string, string>();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    known.clear();
    changed();
  });
  return (name) => {
    let color = known.get(name);
    if (color === undefined) {
      color = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
      known.set(name, color);
    }
    return color;
  };
}

/** The size of an element as the last layout had it: `clientWidth` would ask for one more. */
export function createSize(
  element: Element,
  changed: () => void,
): { width: number; height: number } {
  const size = { width: 0, height: 0 };
  new ResizeObserver(([entry]) => {
    if (entry === undefined) return;
    size.width = entry.contentRect.width;
    size.height = entry.contentRect.height;
    changed();
  }).observe(element);
  return size;
}
