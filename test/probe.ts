/** The thread of `longestWait`: asks for /health on one connection, one request after the other. */

import { existsSync, readFileSync } from "node:fs";
import { parentPort, workerData } from "node:worker_threads";

export interface Probe {
  port: number;
  pid: number;
  /** By the clock, rather than by the core that the server had. */
  isByClock: boolean;
}

/** Between two requests: a probe that never rests would take a core for itself. */
const PACE_MS = 1;

const probe: Probe = workerData;
const now = probe.isByClock ? () => performance.now() : coreTime(probe.pid);
let askedAt = 0;
let longestMs = 0;
/** To be told with the next answer: a wait that began before it was asked for belongs to it. */
let isTelling = true;

function ask(socket: Bun.Socket): void {
  askedAt = now();
  socket.write("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
}

parentPort?.on("message", () => (isTelling = true));
await Bun.connect({
  hostname: "127.0.0.1",
  port: probe.port,
  socket: {
    open: ask,
    data(socket) {
      longestMs = Math.max(longestMs, now() - askedAt);
      if (isTelling) {
        parentPort?.postMessage(longestMs);
        isTelling = false;
        longestMs = 0;
      }
      setTimeout(ask, PACE_MS, socket);
    },
    close: () => parentPort?.postMessage(Infinity),
  },
});

/** A clock, in milliseconds, that runs while the main thread of process `pid` has a core. */
function coreTime(pid: number): () => number {
  const path = `/proc/${pid}/task/${pid}/schedstat`;
  if (!existsSync(path)) return () => performance.now();
  return () => Number(readFileSync(path, "latin1").split(" ")[0]) / 1e6;
}
