/** A table of figures by name: sorted by its heads, each figure with how it differs from the time before. */

import { PAGE_ROWS, byId, cloneOf, create, createEnd, createList, fill, part, set } from "./dom.ts";
import { UNKNOWN, formatChange } from "./format.ts";

export interface Column<T> {
  head: string;
  /** Null: not known. */
  value: (row: T) => number | null;
  format: (value: number) => string;
  isBar?: boolean;
}

interface Table<T> {
  /** What the rows are. */
  name: string;
  columns: readonly Column<T>[];
  rows: readonly T[];
  /** Each has another. */
  nameOf: (row: T) => string;
  /** The rows of the time before, to compare. */
  before?: readonly T[];
  /** What is said where there are none. */
  none: string;
}

/** @param id of the element that the table is in @param opened a row of this name was pressed */
export function createTable<T>(id: string, opened?: (name: string) => void) {
  const root = byId(id, HTMLElement).appendChild(cloneOf("table"));
  const [heads, body] = [part(root, "tr", HTMLElement), part(root, "tbody", HTMLElement)];
  const end = createEnd(root, "", "Show more", show);
  const sorting = { at: 1, isAscending: false };
  let table: Table<T> = { name: "", columns: [], rows: [], nameOf: String, none: "" };
  /** Of each column with bars its largest figure. */
  let largest: readonly number[] = [];
  /** The rows of the time before, by name. */
  let earlier: ReadonlyMap<string, T> = new Map();

  heads.addEventListener("click", ({ target }) => {
    if (!(target instanceof HTMLButtonElement)) return;
    const at = Number(target.value);
    // Numbers are first wanted large, names from A.
    sorting.isAscending = at === sorting.at ? !sorting.isAscending : at === 0;
    sorting.at = at;
    show();
  });
  body.addEventListener("click", ({ target }) => {
    if (target instanceof HTMLButtonElement) opened?.(target.value);
  });

  const showHeads = createList<{ key: number; head: string }>(heads, "table-head", (cell) => {
    return ({ key: at, head }) => {
      const [order, arrow] = sorting.isAscending ? ["ascending", "↑"] : ["descending", "↓"];
      const isSorted = at === sorting.at;
      const column = at === 0 ? "name" : head;
      set(cell, { "data-column": column, "aria-sort": isSorted ? order : "none" });
      fill(cell, { button: { value: at, text: isSorted ? `${head} ${arrow}` : head } });
    };
  });

  const showRows = createList<{ key: string; row: T }>(body, "table-row", (line) => {
    const button = part(line, "button", HTMLButtonElement);
    button.disabled = opened === undefined;
    const cells = table.columns.map((column) => {
      const cell = line.appendChild(create("td"));
      cell.append(create("span", { class: "number" }), create("small"));
      return { ...column, cell };
    });
    return ({ row }) => {
      const name = table.nameOf(row);
      const past = earlier.get(name);
      set(button, { text: name, title: name });
      button.value = name;
      for (const [index, { cell, head, value, format }] of cells.entries()) {
        const [now, then] = [value(row), past === undefined ? null : value(past)];
        const title = then === null ? null : `${format(then)} in the time before`;
        fill(cell, {
          ".number": now === null ? UNKNOWN : format(now),
          small: { text: formatChange(now, then), title },
        });
        const share = (now ?? 0) / (largest[index] || Infinity);
        set(cell, { "data-bad": head === "Errors" && now !== 0, "--share": share });
      }
    };
  });

  function show(): void {
    const { name, columns, rows, nameOf, before = [], none } = table;
    const names = [name, ...columns.map(({ head }) => head)];
    sorting.at = Math.min(sorting.at, columns.length);
    showHeads(rows.length > 0 ? names.map((head, key) => ({ key, head })) : []);
    const column = columns[sorting.at - 1];
    const sign = sorting.isAscending ? 1 : -1;
    const valueOf = (row: T) => column?.value(row) ?? -1;
    // By code units: of 20,000 names localeCompare takes 150 ms.
    const byName = (a: T, b: T) => (nameOf(a) < nameOf(b) ? -1 : 1);
    const byColumn = (a: T, b: T) =>
      column ? sign * (valueOf(a) - valueOf(b)) || byName(a, b) : sign * byName(a, b);
    largest = columns.map(({ value, isBar }) =>
      isBar ? Math.max(...rows.map((row) => value(row) ?? 0)) : 0,
    );
    earlier = new Map(before.map((row) => [nameOf(row), row]));
    const shown = rows.toSorted(byColumn).slice(0, end.limit);
    showRows(shown.map((row) => ({ key: `${name} ${nameOf(row)}`, row })));
    end.show(rows.length, rows.length > end.limit, none);
  }

  return (next: Table<T>): void => {
    if (next.name !== table.name) end.limit = PAGE_ROWS;
    table = next;
    show();
  };
}
