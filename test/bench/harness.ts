/** What the benchmarks share: processes, rounds, and the rows of the table. */

import { rmSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { makeTempDir, type ServerProcess, spawnServer } from "../helpers.ts";
import {
  type Busy,
  type Job,
  type LoadJob,
  subscribe,
  type Task,
  type TaskResult,
} from "./client.ts";

// ─── Rows ────────────────────────────────────────────────────────────────────

/** One line of the table. */
export interface Row {
  what: string;
  unit: Unit;
  /** Of each round; the median counts. */
  measured: number[];
  /** Of the same run; the median counts. */
  floor: number[];
  targets: Target[];
  /** Whether every target must be reached, or one of them. */
  needs: "all" | "any";
}

export type Unit = "requests/s" | "events/s" | "deliveries/s" | "ms" | "MB";

export interface Target {
  of: "measured" | "ratio";
  is: "at least" | "under";
  value: number;
}

export interface Benchmark {
  name: string;
  /** What the floor is, in one line. */
  floor: string;
  /** @param size of a database; only where the benchmark has one */
  run: (report: Report, size?: number) => Promise<void>;
}

/** Prints while it goes: a row of the table, or a remark on how it was measured. */
export interface Report {
  row: (row: Row) => void;
  note: (text: string) => void;
}

export const ratioAtLeast = (value: number): Target => ({ of: "ratio", is: "at least", value });
export const ratioUnder = (value: number): Target => ({ of: "ratio", is: "under", value });
export const atLeast = (value: number): Target => ({ of: "measured", is: "at least", value });
export const under = (value: number): Target => ({ of: "measured", is: "under", value });

export function isReached({ targets, measured, floor, needs }: Row): boolean {
  const reached = ({ of, is, value }: Target) => {
    const actual = of === "ratio" ? median(measured) / median(floor) : median(measured);
    return is === "under" ? actual < value : actual >= value;
  };
  return needs === "all" ? targets.every(reached) : targets.some(reached);
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  const [low = NaN, high = NaN] = [sorted[middle - 1], sorted[middle]];
  return sorted.length % 2 === 1 ? high : (low + high) / 2;
}

export function megabytes(bytes: number): number {
  return Math.round(bytes / 1024 / 1024);
}

// ─── Processes ───────────────────────────────────────────────────────────────

const SERVER = join(import.meta.dir, "../../server.ts");
const FLOOR = join(import.meta.dir, "floor.ts");
const CLIENT = join(import.meta.dir, "client.ts");

const SERVER_CORE = 0;
const CLIENT_CORE = 1;

/**
 * The command that runs `file` on one core. Left to themselves, the scheduler puts server and
 * client on the same one for seconds at a time, and off it again: rounds then differ by half.
 * Where there is no taskset, or one core, it stays so.
 */
function bunCommand(file: string, core: number): string[] {
  const taskset = cpus().length > CLIENT_CORE ? Bun.which("taskset") : null;
  const pin = taskset === null ? [] : [taskset, "--cpu-list", String(core)];
  return [...pin, process.execPath, file];
}

/** A process on 127.0.0.1; a directory that wasn't given is temporary, and goes with it. */
async function start(
  file: string,
  given?: string,
  env: Record<string, string> = {},
): Promise<ServerProcess> {
  const dataDir = given ?? makeTempDir();
  const server = await spawnServer({
    dataDir,
    command: bunCommand(file, SERVER_CORE),
    env: { HOST: "127.0.0.1", MAX_SUBSCRIBERS: "10000", RETENTION_HOURS: "1000000", ...env },
  });
  const end = endable(async () => {
    await server[Symbol.asyncDispose]();
    if (given === undefined) rmSync(dataDir, { recursive: true, force: true });
  });
  return { ...server, [Symbol.asyncDispose]: end };
}

const ends = new Set<() => unknown>();

/** `end`, which `endAll` calls where nobody has before. */
export function endable<Result>(end: () => Result): () => Result {
  const once = () => {
    ends.delete(once);
    return end();
  };
  ends.add(once);
  return once;
}

/** Ends what still runs: for a run that is broken off. */
export async function endAll(): Promise<void> {
  await Promise.all([...ends].map((end) => end()));
}

/** The server of this project, with the durability that it has by default. */
export const startServer = (dataDir?: string, env?: Record<string, string>) =>
  start(SERVER, dataDir, env);

export const startFloor = () => start(FLOOR);

/** What a client needs to know of a server. */
export interface Endpoint {
  port: number;
  pid: number;
}

/** Longer than any job: a client that hangs is ended. */
const CLIENT_LIMIT_MS = 120_000;

/** Runs `jobs` at the same time in one client process. */
export async function runClient<Jobs extends Job[]>(
  { port, pid }: Endpoint,
  ...jobs: Jobs
): Promise<TaskResult<Jobs>> {
  const task: Task = { port, pid, jobs };
  const child = Bun.spawn([...bunCommand(CLIENT, CLIENT_CORE), JSON.stringify(task)], {
    stdout: "pipe",
    stderr: "pipe",
    timeout: CLIENT_LIMIT_MS,
    killSignal: "SIGKILL",
  });
  const [output, errors, exitCode] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  if (exitCode !== 0) throw new Error(`the client ended with ${exitCode}: ${errors}`);
  return JSON.parse(output);
}

/** One job alone: its result, and how busy both sides were. */
export async function runJob<J extends Job>(endpoint: Endpoint, job: J) {
  const { results, ...busy } = await runClient(endpoint, job);
  return { ...results[0], ...busy };
}

export const LOAD: LoadJob = {
  kind: "load",
  connections: 1,
  sessions: 1,
  get: null,
  eventsPerPost: 1,
  perSecond: null,
  seconds: 2,
};

/**
 * What others feel meanwhile: a read of the dashboard's, at a steady rate, until the other jobs are
 * done; over so many connections that none waits for another one's answer.
 */
export const PROBE: LoadJob = {
  ...LOAD,
  connections: 64,
  get: "/api/sessions?limit=10",
  perSecond: 500,
  seconds: null,
};

/** Milliseconds from the start of the server's process to its first answer. */
export async function timeStart(dataDir: string): Promise<number> {
  const port = freePort();
  const isUp = () =>
    fetch(`http://127.0.0.1:${port}/health`).then(
      (response) => response.ok,
      () => false,
    );
  const begin = performance.now();
  const starting = startServer(dataDir, { PORT: String(port) });
  while (!(await isUp())) await Bun.sleep(1);
  const ms = performance.now() - begin;
  await using _ = await starting;
  return ms;
}

function freePort(): number {
  const server = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  server.stop();
  return server.port;
}

/** Event streams that nothing is sent on, until disposed of. */
export async function openStreams({ port }: { port: number }, count: number): Promise<Disposable> {
  const streams = await Promise.all(
    Array.from({ length: count }, () => subscribe(port, "/api/events/stream", () => undefined)),
  );
  return { [Symbol.dispose]: () => streams.forEach((stream) => stream.close()) };
}

/** `rounds` measurements of each, in turn, so that what else the machine does hits both alike. */
export async function alternate<Floor, Measured>(
  rounds: number,
  measureFloor: () => Promise<Floor>,
  measure: () => Promise<Measured>,
): Promise<{ floors: Floor[]; measured: Measured[] }> {
  const floors: Floor[] = [];
  const measured: Measured[] = [];
  for (let round = 0; round < rounds; round++) {
    floors.push(await measureFloor());
    measured.push(await measure());
  }
  return { floors, measured };
}

/** From here on a process has no core to spare: its own pauses are the rest. */
const LIMIT_PERCENT = 70;

/** How much of a core each side used, in the middle of the rounds, and which of them was the limit. */
export function busyText(rounds: readonly Busy[]): string {
  const share = (of: (round: Busy) => number | null) =>
    Math.round(median(rounds.map((round) => of(round) ?? NaN)) * 100);
  const server = share((round) => round.serverBusy);
  const client = share((round) => round.clientBusy);
  const limit = client > server && client > LIMIT_PERCENT ? ": the client was the limit" : "";
  return `server ${server} %, client ${client} % of a core${limit}`;
}
