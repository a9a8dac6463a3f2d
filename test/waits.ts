/**
 * How long other requests wait while something is going on: measured on a thread of its own, so that
 * neither reading nor parsing in the test counts.
 */

import { parentPort, Worker, workerData } from "node:worker_threads";

/** Between two requests: a probe that never rests would take a core for itself. */
const PACE_MS = 1;

interface Probe {
  port: number;
}

/**
 * The longest time that a request took, in milliseconds, while `action` ran.
 *
 * It is the median of `repetitions` runs: what the server does comes back in each of them, what the
 * machine does meanwhile doesn't.
 */
export async function longestWait(
  { port }: { port: number },
  action: (repetition: number) => Promise<unknown>,
  repetitions = 3,
): Promise<number> {
  const probe = new Worker(new URL(import.meta.url), { workerData: { port } satisfies Probe });
  const next = () => new Promise<number>((resolve) => probe.once("message", resolve));
  await next(); // it has had its first answer
  const longest: number[] = [];
  for (let repetition = 0; repetition < repetitions; repetition++) {
    probe.postMessage("begin");
    await next();
    await action(repetition);
    const answer = next();
    probe.postMessage("end");
    longest.push(await answer);
  }
  await probe.terminate();
  return longest.toSorted((a, b) => a - b)[Math.floor((repetitions - 1) / 2)] ?? 0;
}

/** Asks for /health on one connection, one request after the other. */
function runProbe({ port }: Probe, tell: (longestMs: number) => void): void {
  let asked = 0;
  let longest = 0;
  /** To be told with the next answer: a wait that began before `end` belongs to it. */
  let isTelling = true;
  const ask = (socket: Bun.Socket) => {
    asked = performance.now();
    socket.write("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
  };
  void Bun.connect({
    hostname: "127.0.0.1",
    port,
    socket: {
      open: ask,
      data(socket) {
        longest = Math.max(longest, performance.now() - asked);
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

const probe: Probe | null | undefined = workerData;
if (probe?.port !== undefined) runProbe(probe, (longest) => parentPort?.postMessage(longest));
