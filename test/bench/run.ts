/**
 * The benchmarks: what the server does, held against a floor that is measured in the same run.
 *
 *     bun run bench                 all
 *     bun run bench post fanout     some
 *     bun run bench history 2000000 a number is the size of the large database
 *
 * Each module's header says what its floor is, and why the comparison is fair. No figure is kept
 * anywhere: the table is of this machine, now.
 */

import { cpus, loadavg } from "node:os";
import { batch } from "./batch.ts";
import { delivery } from "./delivery.ts";
import { fanout } from "./fanout.ts";
import {
  type Benchmark,
  endAll,
  isReached,
  median,
  type Row,
  type Target,
  type Unit,
} from "./harness.ts";
import { history } from "./history.ts";
import { memory } from "./memory.ts";
import { post } from "./post.ts";
import { resume } from "./resume.ts";

const BENCHMARKS: Benchmark[] = [post, batch, fanout, delivery, resume, history, memory];

const WIDTHS = [48, 24, 24, 7, 44, 6];

const isSize = (arg: string) => /^\d+$/.test(arg);

function line(cells: string[]): string {
  return cells.map((cell, index) => cell.padEnd(WIDTHS[index] ?? 0)).join(" ");
}

function number(value: number): string {
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

const amount = (value: number, unit: Unit) => `${number(value)} ${unit}`;

/** How far the rounds lie apart: on a machine that does other things, further. */
function rangeText(rounds: number[]): string {
  return rounds.length === 1
    ? ""
    : `${number(Math.min(...rounds))} to ${number(Math.max(...rounds))}`;
}

function targetText(unit: Unit) {
  return ({ of, is, value }: Target) => {
    const sign = is === "under" ? "<" : "≥";
    return of === "ratio" ? `ratio ${sign} ${value}` : `${sign} ${amount(value, unit)}`;
  };
}

function print(row: Row): void {
  const { what, unit, measured, floor, targets, needs } = row;
  console.log(
    line([
      what,
      amount(median(measured), unit),
      amount(median(floor), unit),
      (median(measured) / median(floor)).toFixed(2),
      targets.map(targetText(unit)).join(needs === "all" ? " and " : " or "),
      targets.length === 0 ? "" : isReached(row) ? "ok" : "SHORT",
      rangeText(measured),
    ]),
  );
}

const args = process.argv.slice(2);
const names = args.filter((arg) => !isSize(arg));
const size = args.find(isSize);
const unknown = names.filter((name) => !BENCHMARKS.some((benchmark) => benchmark.name === name));
if (unknown.length > 0) {
  console.error(
    `no benchmark ${unknown.join(", ")}; there are ${BENCHMARKS.map((benchmark) => benchmark.name).join(", ")}`,
  );
  process.exit(1);
}

for (const signal of ["SIGINT", "SIGTERM"])
  process.once(signal, () => endAll().finally(() => process.exit(1)));

console.log(
  `Bun ${Bun.version}, ${cpus().length} × ${cpus()[0]?.model ?? "unknown processor"}, ` +
    `load before: ${loadavg()[0]?.toFixed(1)}\n`,
);
console.log(line(["", "measured", "floor", "ratio", "target", "", "rounds"]));
for (const { name, floor, run } of BENCHMARKS) {
  if (names.length > 0 && !names.includes(name)) continue;
  console.log(`\n${name}: floor is ${floor}`);
  const start = performance.now();
  await run(
    { row: print, note: (text) => console.log(`  ${text}`) },
    size === undefined ? undefined : Number(size),
  );
  console.log(`  took ${((performance.now() - start) / 1_000).toFixed(0)} s`);
}
