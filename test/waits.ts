/**
 * How long other requests wait while something is going on: measured on a thread of its own, so that
 * neither reading nor parsing in the test counts.
 */

import { Worker } from "node:worker_threads";
import { isSoak } from "./helpers.ts";
import type { Probe } from "./probe.ts";

/**
 * The longest time that a request took, in milliseconds, while `action` ran.
 *
 * It is the (lower) median of `repetitions` runs: what the server does comes back in each of them, what the
 * machine does meanwhile doesn't. Where Linux tells it, the time is that for which the server had a
 * core while the request waited: the same on a machine that is busy with other tests. The soak has
 * the machine for itself, and measures by the clock.
 */
export async function longestWait(
  { port, pid }: { port: number; pid: number },
  action: (repetition: number) => Promise<unknown>,
  repetitions = isSoak ? 3 : 1,
): Promise<number> {
  const probe: Probe = { port, pid, isByClock: isSoak };
  // A file of its own: the thread would load the server with the helpers.
  const worker = new Worker(new URL("./probe.ts", import.meta.url), { workerData: probe });
  const next = () => new Promise<number>((resolve) => worker.once("message", resolve));
  await next(); // it has had its first answer
  const longest: number[] = [];
  for (let repetition = 0; repetition < repetitions; repetition++) {
    worker.postMessage("begin");
    await next();
    await action(repetition);
    const answer = next();
    worker.postMessage("end");
    longest.push(await answer);
  }
  await worker.terminate();
  return longest.toSorted((a, b) => a - b)[Math.floor((repetitions - 1) / 2)] ?? 0;
}
