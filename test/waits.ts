/**
 * How long other requests wait while something is going on: measured on a thread of its own, so that
 * neither reading nor parsing in the test counts.
 */

import { existsSync, readFileSync } from "node:fs";
import { parentPort, Worker, workerData } from "node:worker_threads";
import { isSoak } from "./helpers.ts";

/** Between two requests: a probe that never rests would take a core for itself. */
const PACE_MS = 1;

interface Probe {
  port: number;
  pid: number;
}

/**
 * The longest time that a request took, in milliseconds, while `action` ran.
 *
 * It is the (lower) median of `repetitions` runs: what the server does comes back in each of them, what the
 * machine does meanwhile doesn't. Where Linux tells it, the time is that for which the server had a
 * core while the request waited: the same on a machine that is busy with other tests. The soak has
 * the machine for itself, and measures by the clock.
 */
export async function longestWait(
  { port, pid }: Probe,
  action: (repetition: number) => Promise<unknown>,
  repetitions = isSoak ? 3 : 1,
): Promise<number> {
  const worker = new Worker(new URL(import.meta.url), { workerData: { port, pid } });
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

/** Asks for /health on one connection, one request after the other. */
function runProbe({ port, pid }: Probe, tell: (longestMs: number) => void): void {
  const clock = coreTime(pid);
  let asked = 0;
  let longest = 0;
  /** To be told with the next answer: a wait that began before `end` belongs to it. */
  let isTelling = true;
  const ask = (socket: Bun.Socket) => {
    asked = clock();
    socket.write("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
  };
  void Bun.connect({
    hostname: "127.0.0.1",
    port,
    socket: {
      open: ask,
      data(socket) {
        longest = Math.max(longest, clock() - asked);
        if (isTelling) {
          tell(longest);
          isTelling = false;
          longest = 0;
        }
        setTimeout(ask, PACE_MS, socket);
      },
      close: () => tell(Infinity),
    },
  });
  parentPort?.on("message", () => (isTelling = true));
}

/** A clock, in milliseconds, that runs while the main thread of process `pid` has a core. */
function coreTime(pid: number): () => number {
  const path = `/proc/${pid}/task/${pid}/schedstat`;
  if (isSoak || !existsSync(path)) return () => performance.now();
  return () => Number(readFileSync(path, "latin1").split(" ")[0]) / 1e6;
}

const probe: Probe | null | undefined = workerData;
if (probe?.port !== undefined) runProbe(probe, (longest) => parentPort?.postMessage(longest));
