/** Bars over time, with a cursor that reads them: a range, so that the arrow keys move it, too. */

import { createList, part, setAttribute, setText } from "../dom.ts";

export interface Bar {
  value: number;
  hasFailed?: boolean;
  /** Not of the time that is asked for. */
  isFaint?: boolean;
  /** What the cursor reads. */
  words: string;
  /** Below it, where there is room. */
  label: string;
}

interface Picture {
  title: string;
  /** While the cursor reads no bar. */
  words: string;
  bars: readonly Bar[];
}

/** @param id of the element that the chart is in */
export function createChart(id: string): (picture: Picture) => void {
  const show = createList<Picture & { key: string }>(id, "chart", createFigure);
  return (picture) => show([{ ...picture, key: id }]);
}

function createFigure(root: HTMLElement, find: (query: string) => HTMLElement) {
  const cursor = part(root, "input", HTMLInputElement);
  const svg = part(root, "svg", SVGSVGElement);
  let shown: Picture = { title: "", words: "", bars: [] };

  /** @param at the bar under the cursor */
  function draw(at: number | null): void {
    const { bars } = shown;
    const words = bars[at ?? -1]?.words ?? shown.words;
    setText(find("output"), words);
    setAttribute(cursor, "aria-valuetext", words);
    const most = Math.max(...bars.map(({ value }) => value)) || 1;
    // One wide for each bar; of 100 the bars have 90, the failures the last 5.
    const paths = { faint: "", bar: "", failed: "", read: "" };
    for (const [index, { value, hasFailed, isFaint }] of bars.entries()) {
      const height = value === 0 ? 1 : Math.max(3, (value / most) * 90);
      const kind = index === at ? "read" : isFaint ? "faint" : "bar";
      paths[kind] += `M${index} 91v-${height}h.8v${height}z`;
      if (hasFailed) paths.failed += `M${index} 95h.8v5h-.8z`;
    }
    setAttribute(svg, "viewBox", `0 0 ${bars.length} 100`);
    for (const [index, d] of Object.values(paths).entries())
      setAttribute(part(svg, `path:nth-child(${index + 1})`, SVGPathElement), "d", d);
  }

  cursor.addEventListener("input", () => draw(cursor.valueAsNumber));
  cursor.addEventListener("pointermove", ({ offsetX }) => {
    cursor.valueAsNumber = Math.floor((offsetX / cursor.clientWidth) * shown.bars.length);
    draw(cursor.valueAsNumber);
  });
  for (const type of ["pointerleave", "blur"]) cursor.addEventListener(type, () => draw(null));

  return (picture: Picture) => {
    shown = picture;
    const { title, bars } = picture;
    setText(find("figcaption span"), title);
    setAttribute(cursor, "aria-label", title);
    const isUnread = cursor.value === cursor.max; // it begins at now
    cursor.max = String(bars.length - 1);
    if (isUnread) cursor.value = cursor.max;
    for (const [index, label] of root.querySelectorAll(".chart-axis :not(:last-child)").entries())
      setText(label, bars[Math.floor((bars.length * index) / 4)]?.label ?? "");
    draw(cursor.matches(":hover, :focus-visible") ? cursor.valueAsNumber : null);
  };
}
