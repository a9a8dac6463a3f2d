/** A table of figures by name: sorted by its heads, each figure with how it differs from the time before. */

import { byId, createList, createMore, part, setAttribute, setText } from "./dom.ts";
import { UNKNOWN, formatChange } from "./format.ts";

export interface Column<T> {
  head: string;
  /** Null: not known. */
  value: (row: T) => number | null;
  format: (value: number) => string;
  /** Its figures have bars. */
  isBar?: boolean;
}

export interface Figures<T> {
  name: string;
  row: T;
  /** Of the time before, to compare. */
  before: T | undefined;
  /** Stands first, wherever it is sorted to. */
  isTotal?: boolean;
}

type Item<T> = Figures<T> & { most: number[] };

/** @param id of its elements: `${id}-heads`, `-rows`, `-more`, `-empty`. @param opened a row was pressed */
export function createTable<T>(id: string, opened?: (name: string) => void) {
  const empty = byId(`${id}-empty`, HTMLParagraphElement);
  const more = createMore(`${id}-more`, show);
  const sorting = { at: 1, isAscending: false };
  let heads: string[] = [];
  let columns: readonly Column<T>[] = [];
  let rows: readonly Figures<T>[] = [];

  const showHeads = createList<number>(`${id}-heads`, "table-head", Number, (root) => {
    const button = part(root, "button", HTMLButtonElement);
    let at = 0;
    button.addEventListener("click", () => {
      // Numbers are first wanted large, names from A.
      sorting.isAscending = at === sorting.at ? !sorting.isAscending : at === 0;
      sorting.at = at;
      show();
    });
    return {
      root,
      update(index) {
        at = index;
        setText(button, heads[at] ?? "");
        setAttribute(root, "data-column", at === 0 ? "name" : (heads[at] ?? ""));
        const order = sorting.isAscending ? "ascending" : "descending";
        setAttribute(root, "aria-sort", at === sorting.at ? order : "none");
      },
    };
  });
  const keyOf = ({ name, isTotal }: Item<T>) => `${isTotal} ${name}`;
  const showRows = createList<Item<T>>(`${id}-rows`, "table-row", keyOf, (root) => {
    const button = part(root, "button", HTMLButtonElement);
    const cell = part(root, "td", HTMLElement);
    let shownName = "";
    button.addEventListener("click", () => opened?.(shownName));
    return {
      root,
      update({ name, row, before, most, isTotal = false }) {
        shownName = name;
        setText(button, name);
        setAttribute(part(root, "th", HTMLElement), "title", name);
        button.disabled = opened === undefined || isTotal;
        setAttribute(root, "data-total", String(isTotal));
        while (root.children.length > heads.length) root.lastElementChild?.remove();
        while (root.children.length < heads.length) root.append(cell.cloneNode(true));
        for (const [index, { head, value, format }] of columns.entries()) {
          const at = root.children[index + 1] ?? cell;
          const [now, then] = [value(row), before === undefined ? null : value(before)];
          const change = part(at, "small", HTMLElement);
          setText(part(at, ".number", HTMLElement), now === null ? UNKNOWN : format(now));
          setText(change, formatChange(now, then));
          setAttribute(change, "title", then === null ? "" : `${format(then)} in the time before`);
          setAttribute(at, "data-bad", String(head === "Errors" && now !== 0));
          const share = isTotal ? 0 : (now ?? 0) / (most[index] || Infinity);
          part(at, ".bar", HTMLElement).style.setProperty("--share", String(share));
        }
      },
    };
  });

  function show(): void {
    showHeads([...heads.keys()]);
    const column = columns[sorting.at - 1];
    const sign = sorting.isAscending ? 1 : -1;
    const valueOf = ({ row }: Figures<T>) => column?.value(row) ?? -1;
    // By code units: of 20,000 names localeCompare takes 150 ms.
    const byName = (a: Figures<T>, b: Figures<T>) => (a.name < b.name ? -1 : 1);
    const byColumn = (a: Figures<T>, b: Figures<T>) =>
      column ? sign * (valueOf(a) - valueOf(b)) || byName(a, b) : sign * byName(a, b);
    const named = rows.filter(({ isTotal }) => !isTotal).sort(byColumn);
    const most = columns.map(({ value, isBar }) =>
      isBar ? Math.max(...named.map(({ row }) => value(row) ?? 0)) : 0,
    );
    const total = named.length > 1 ? rows.filter(({ isTotal }) => isTotal) : [];
    showRows([...total, ...named.slice(0, more.limit)].map((figures) => ({ ...figures, most })));
    more.show(named.length > more.limit);
    empty.hidden = named.length > 0;
  }

  /** @param name what the rows are */
  return (name: string, nextColumns: readonly Column<T>[], next: readonly Figures<T>[]): void => {
    if (name !== heads[0]) more.reset();
    columns = nextColumns;
    heads = [name, ...columns.map(({ head }) => head)];
    sorting.at = Math.min(sorting.at, columns.length);
    rows = next;
    show();
  };
}
