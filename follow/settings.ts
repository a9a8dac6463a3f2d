/** What the programs of this directory are told: the server as first argument, the rest in the environment. */

import { join } from "node:path";
import { FOLLOWER_VARIABLES } from "./start.ts";

const { PORT = "", AUTH_TOKEN = "", DATA_DIR = "" } = process.env;

/** True as a program, and as a worker of the server; false where another file imports it. */
export const isRun = (isMain: boolean) => isMain || !Bun.isMainThread;

/** The value of a variable; one that the server wouldn't take ends the program. */
export function variable(name: keyof typeof FOLLOWER_VARIABLES): string {
  const [absent, format, expected] = FOLLOWER_VARIABLES[name];
  const value = process.env[name]?.trim() || absent;
  if (format.test(value)) return value;
  console.error(`${name}: expected ${expected}`);
  process.exit(1);
}

/** @param target where it sends what it follows */
export function settings(name: string, target: string) {
  const server = (process.argv[2] ?? `http://localhost:${PORT || 3001}`).replace(/\/+$/, "");
  if (Bun.isMainThread) console.log(`${name}: from ${server} to ${target}`);
  return {
    server,
    token: AUTH_TOKEN,
    file: join(DATA_DIR || "./data", `observability.db.${name}`), // goes when the database is reset
    log(message: string): void {
      const escaped = message.replace(/[\p{Cc}\u2028\u2029]/gu, " ");
      console.error(`${new Date().toISOString()} warn ${name}: ${escaped}`);
    },
  };
}

/** A request; what fails is told with its address, as that of the server isn't the only one. */
export function send(url: string, init: RequestInit): Promise<Response> {
  return fetch(url, init).catch((error: Error) => {
    throw new Error(`${new URL(url).origin}: ${error.message}`);
  });
}

/** Why a request failed: as a status that may be told to wait, in seconds. */
export function tryLater({ status, headers }: Response, text: string): Error {
  const pauseMs = 1_000 * (Number(headers.get("retry-after")) || 0);
  return Object.assign(new Error(`${status} ${text.slice(0, 200)}`), { pauseMs });
}
