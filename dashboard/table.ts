/** A table of figures by name: sorted by its heads, each figure with how it differs from the time before. */

import {
  PAGE_ROWS,
  byId,
  cloneOf,
  createEnd,
  createList,
  part,
  setAttribute,
  setText,
} from "./dom.ts";
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
  /** What a name may be several times, and what `opened` gets instead. */
  id?: string;
  row: T;
  /** Of the time before, to compare. */
  before?: T | undefined;
  /** Stands first, wherever it is sorted to. */
  isTotal?: boolean;
}

export interface Table<T> {
  /** What the rows are. */
  name: string;
  columns: readonly Column<T>[];
  rows: readonly Figures<T>[];
  /** What is said where there are none. */
  none: string;
}

type Head = { key: number; head: string };
type Item<T> = Figures<T> & { key: string; most: number[] };

/** @param id of the element that the table is in @param opened a row was pressed, of this id or name */
export function createTable<T>(id: string, opened?: (of: string) => void) {
  const root = byId(id, HTMLElement).appendChild(cloneOf("table"));
  const end = createEnd(root, show);
  const sorting = { at: 1, isAscending: false };
  let table: Table<T> = { name: "", columns: [], rows: [], none: "" };

  const headRow = part(root, "tr", HTMLElement);
  const showHeads = createList<Head>(headRow, "table-head", (cell, find) => {
    let shown = 0;
    find("button").addEventListener("click", () => {
      // Numbers are first wanted large, names from A.
      sorting.isAscending = shown === sorting.at ? !sorting.isAscending : shown === 0;
      sorting.at = shown;
      show();
    });
    return ({ key: at, head }) => {
      shown = at;
      const [order, arrow] = sorting.isAscending ? ["ascending", "↑"] : ["descending", "↓"];
      const isSorted = at === sorting.at;
      setText(find("button"), isSorted ? `${head} ${arrow}` : head);
      setAttribute(cell, "data-column", at === 0 ? "name" : head);
      setAttribute(cell, "aria-sort", isSorted ? order : "none");
    };
  });
  const body = part(root, "tbody", HTMLElement);
  const showRows = createList<Item<T>>(body, "table-row", (line, find) => {
    const [button, cell] = [part(line, "button", HTMLButtonElement), find("td")];
    let shown = "";
    button.addEventListener("click", () => opened?.(shown));
    return ({ name, id = name, row, before, most, isTotal = false }) => {
      const { columns } = table;
      shown = id;
      setText(button, name, name);
      button.disabled = opened === undefined || isTotal;
      setAttribute(line, "data-total", isTotal);
      while (line.children.length > columns.length + 1) line.lastElementChild?.remove();
      while (line.children.length < columns.length + 1) line.append(cell.cloneNode(true));
      for (const [index, { head, value, format }] of columns.entries()) {
        const at = line.children[index + 1] ?? cell;
        const [now, then] = [value(row), before === undefined ? null : value(before)];
        setText(part(at, ".number", HTMLElement), now === null ? UNKNOWN : format(now));
        const compared = then === null ? null : `${format(then)} in the time before`;
        setText(part(at, "small", HTMLElement), formatChange(now, then), compared);
        setAttribute(at, "data-bad", head === "Errors" && now !== 0);
        const share = isTotal ? 0 : (now ?? 0) / (most[index] || Infinity);
        part(at, ".bar", HTMLElement).style.setProperty("--share", String(share));
      }
    };
  });

  function show(): void {
    const { name, columns, rows, none } = table;
    const heads = [name, ...columns.map(({ head }) => head)];
    sorting.at = Math.min(sorting.at, columns.length);
    showHeads(rows.length > 0 ? heads.map((head, key) => ({ key, head })) : []);
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
    const totals = rows.filter(({ isTotal }) => isTotal);
    showRows(
      [...totals, ...named.slice(0, end.limit)].map((row) => ({
        ...row,
        key: `${row.isTotal} ${row.id ?? row.name}`,
        most,
      })),
    );
    end.show(rows.length, named.length > end.limit, none);
  }

  return (next: Table<T>): void => {
    if (next.name !== table.name) end.limit = PAGE_ROWS;
    table = next;
    show();
  };
}
