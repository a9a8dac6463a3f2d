/** What the programs of this directory are told: the server as first argument, the rest in the environment. */

import { join } from "node:path";

const { PORT = "", AUTH_TOKEN = "", DATA_DIR = "" } = process.env;

/** True as a program, and as a worker of the server; false where another file imports it. */
export const isRun = (isMain: boolean) => isMain || !Bun.isMainThread;

export function settings(name: string) {
  return {
    server: (process.argv[2] ?? `http://localhost:${PORT || 3001}`).replace(/\/+$/, ""),
    token: AUTH_TOKEN,
    file: join(DATA_DIR || "./data", `observability.db.${name}`), // goes when the database is reset
    log(message: string): void {
      const escaped = message.replace(/[\p{Cc}\u2028\u2029]/gu, " ");
      console.error(`${new Date().toISOString()} warn ${name}: ${escaped}`);
    },
  };
}

/** Why a request failed: as a status that may be told to wait, in seconds. */
export function tryLater({ status, headers }: Response, text: string): Error {
  const pauseMs = 1_000 * (Number(headers.get("retry-after")) || 0);
  return Object.assign(new Error(`${status} ${text.slice(0, 200)}`), { pauseMs });
}
