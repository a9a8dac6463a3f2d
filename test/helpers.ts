/** What the tests share: a real server on a free port, real sockets, a real database file. */

import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type Config,
  type Log,
  loadConfig,
  openStore,
  type Store,
  startServer,
} from "../server.ts";
import type { PostedEvent } from "./fixtures.ts";

export interface TestServer {
  url: string;
  port: number;
  dataDir: string;
  stop: () => Promise<void>;
  /** Starts it again on the same data directory and port. */
  restart: () => Promise<void>;
  [Symbol.asyncDispose]: () => Promise<void>;
}

const SILENT: Log = { debug() {}, info() {}, warn() {}, error() {} };

export function makeTempDir(): string {
  return mkdtempSync(join(tmpdir(), "pai-observability-"));
}

const tempDirs: string[] = [];

/** One that goes with the test, in a file that says afterEach(removeTempDirs). */
export function tempDir(): string {
  const directory = makeTempDir();
  tempDirs.push(directory);
  return directory;
}

export function removeTempDirs(): void {
  for (const directory of tempDirs.splice(0)) rmSync(directory, { recursive: true, force: true });
}

export const databasePath = (directory: string) => join(directory, "observability.db");

export interface TestStore extends Store, Disposable {
  dataDir: string;
}

/** A store in a temporary directory, which goes when it is disposed of. */
export function openTestStore(): TestStore {
  const dataDir = makeTempDir();
  const store = openStore(dataDir);
  return {
    ...store,
    dataDir,
    [Symbol.dispose]() {
      store.close();
      rmSync(dataDir, { recursive: true, force: true });
    },
  };
}

/** Many servers run at once here: the port of PAI's emitter is one test's. */
const ALONE = { PAI_OBSERVABILITY_ENABLED: "false" };

/** A server on 127.0.0.1 with a temporary directory, which goes when it is disposed of. */
export async function startTestServer({
  config = {},
  dataDir = makeTempDir(),
  now = Date.now,
  log = SILENT,
}: {
  config?: Partial<Config>;
  dataDir?: string;
  now?: () => number;
  log?: Log;
} = {}): Promise<TestServer> {
  const env = { PORT: "0", HOST: "127.0.0.1", ...ALONE };
  const base = { ...loadConfig(env), ...config, dataDir };
  let running = startServer(base, log, now);
  const port = Number(new URL(running.url).port);
  let isStopped = false;
  const stop = async () => {
    if (isStopped) return;
    isStopped = true;
    await running.stop();
  };
  return {
    url: running.url,
    port,
    dataDir,
    stop,
    async restart() {
      await stop();
      running = startServer({ ...base, port }, log, now);
      isStopped = false;
    },
    async [Symbol.asyncDispose]() {
      await stop();
      rmSync(dataDir, { recursive: true, force: true });
    },
  };
}

export interface PostAnswer {
  id?: number;
  ids?: number[];
  error?: string;
}

/** Posts `body` as JSON; an object with `ids` or `id` comes back, or `error`. */
export async function postEvent(
  server: { url: string },
  body: unknown,
  headers: Record<string, string> = {},
): Promise<{ status: number; body: PostAnswer }> {
  const response = await fetch(`${server.url}/api/events`, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
  return { status: response.status, body: await response.json() };
}

/** Posts `body` as it is; what came back, with its headers. */
export async function postBody(
  server: { url: string },
  body: BodyInit,
  contentType: string | null = "application/json",
  path = "/api/events",
): Promise<{ status: number; headers: Headers; body: PostAnswer }> {
  const response = await fetch(server.url + path, {
    method: "POST",
    headers: contentType === null ? {} : { "Content-Type": contentType },
    body,
  });
  return { status: response.status, headers: response.headers, body: await response.json() };
}

export async function getJson<T = Record<string, unknown>>(
  server: { url: string },
  path: string,
): Promise<T> {
  const response = await fetch(server.url + path);
  if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
  return response.json();
}

export interface Frame {
  id?: string;
  event?: string;
  data?: string;
  retry?: string;
  comments: string[];
}

export interface TestStream {
  response: Response;
  /** Every block that ended in an empty line, in order. */
  frames: Frame[];
  /** The frames that carry data. */
  events: () => (Frame & { data: string })[];
  /** Waits until there are `count` frames with data, and gives them all. */
  waitForEvents: (count: number) => Promise<(Frame & { data: string })[]>;
  close: () => void;
  ended: Promise<void>;
}

/** Opens an event stream; resolves once its first block (a comment at least) has arrived. */
export async function openStream(
  server: { url: string },
  query = "",
  headers: Record<string, string> = {},
): Promise<TestStream> {
  const abort = new AbortController();
  const response = await fetch(`${server.url}/api/events/stream${query}`, {
    headers,
    signal: abort.signal,
  });
  if (response.status !== 200 || response.body === null)
    throw new Error(`stream: ${response.status} ${await response.text()}`);
  const frames: Frame[] = [];
  const ended = readFrames(response.body, frames).catch(() => undefined);
  await waitFor(() => frames.length > 0, "the first block of the stream");
  const events = () =>
    frames.filter((frame): frame is Frame & { data: string } => frame.data !== undefined);
  return {
    response,
    frames,
    events,
    async waitForEvents(count) {
      await waitFor(() => events().length >= count, `${count} events on the stream`);
      return events();
    },
    close: () => abort.abort(),
    ended,
  };
}

/** The parsing rules of the WHATWG specification, for LF line ends as this server sends them. */
async function readFrames(body: ReadableStream<Uint8Array>, frames: Frame[]): Promise<void> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of body) {
    rest += decoder.decode(chunk, { stream: true });
    const blocks = rest.split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) frames.push(parseFrame(block));
  }
}

export function parseFrame(block: string): Frame {
  const frame: Frame = { comments: [] };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "") frame.comments.push(value);
    else if (field === "data")
      frame.data = frame.data === undefined ? value : `${frame.data}\n${value}`;
    else if (field === "id" || field === "event" || field === "retry") frame[field] = value;
  }
  return frame;
}

/** Waits until `condition` holds, looking ever less often, every 25 ms at last; fails after `timeoutMs`. */
export async function waitFor(
  condition: () => boolean | Promise<boolean>,
  what: string,
  timeoutMs = 10_000,
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  for (let pauseMs = 1; !(await condition()); pauseMs = Math.min(pauseMs + 1, 25)) {
    if (performance.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain for ${what}`);
    await Bun.sleep(pauseMs);
  }
}

export interface ServerProcess {
  pid: number;
  url: string;
  port: number;
  dataDir: string;
  /** What it wrote so far, to stdout and stderr. */
  output: () => string;
  /** Ends it; its exit code and how long that took. */
  end: (signal: NodeJS.Signals) => Promise<{ exitCode: number; ms: number }>;
  [Symbol.asyncDispose]: () => Promise<void>;
}

const PROJECT = join(import.meta.dir, "..");

/** What the server needs of this project, in a directory of its own, where a test may change it. */
export function copyProject(): string {
  const project = tempDir();
  for (const name of "server.ts package.json tsconfig.json dashboard plugin follow".split(" "))
    cpSync(join(PROJECT, name), join(project, name), { recursive: true });
  return project;
}

interface ProcessOptions {
  dataDir: string;
  /** Beside PORT and DATA_DIR; nothing else of this environment but the PATH reaches it. */
  env?: Record<string, string>;
  /** What is run; the server of this project where it isn't given. */
  command?: string[];
  /** Where a `.env` would be read: the data directory where it isn't given. */
  cwd?: string;
}

function spawnProcess({ dataDir, env = {}, command, cwd = dataDir }: ProcessOptions) {
  return Bun.spawn({
    cmd: command ?? [process.execPath, join(PROJECT, "server.ts")],
    cwd,
    env: { PATH: process.env.PATH ?? "", PORT: "0", DATA_DIR: dataDir, ...ALONE, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
}

/** The server as a process of its own, once it has said its URL. Its directory stays. */
export async function spawnServer(options: ProcessOptions): Promise<ServerProcess> {
  const child = spawnProcess(options);
  let output = "";
  const collect = async (stream: ReadableStream<Uint8Array>) => {
    const decoder = new TextDecoder();
    for await (const chunk of stream) output += decoder.decode(chunk, { stream: true });
  };
  const collected = Promise.all([collect(child.stdout), collect(child.stderr)]);
  const url = () => / on (http:\S+)\n/.exec(output)?.[1];
  const end = async (signal: NodeJS.Signals) => {
    const start = performance.now();
    child.kill(signal);
    const exitCode = await child.exited;
    await collected;
    return { exitCode, ms: performance.now() - start };
  };
  await waitFor(
    () => url() !== undefined || child.exitCode !== null,
    "the URL of the server",
  ).catch(async (error: unknown) => {
    await end("SIGKILL");
    throw error;
  });
  if (url() === undefined) {
    await collected;
    throw new Error(`the server ended with ${child.exitCode}: ${output}`);
  }
  return {
    pid: child.pid,
    url: url() ?? "",
    port: Number(new URL(url() ?? "").port),
    dataDir: options.dataDir,
    output: () => output,
    end,
    async [Symbol.asyncDispose]() {
      if (child.exitCode === null) await end("SIGKILL");
    },
  };
}

/** A start that is expected to fail: what the server wrote, and its exit code. */
export async function runToExit(
  options: ProcessOptions,
): Promise<{ exitCode: number; stdout: string; stderr: string }> {
  const child = spawnProcess(options);
  const deadline = setTimeout(() => child.kill("SIGKILL"), 10_000);
  const [stdout, stderr, exitCode] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  clearTimeout(deadline);
  return { exitCode, stdout, stderr };
}

export interface Writers {
  /** Ids that the server acknowledged. */
  acknowledged: Set<string>;
  /** Posts without an answer: the server may have stored them or not. */
  unanswered: PostedEvent[];
  /** Statuses other than 200 and 201. */
  refused: number[];
  /** Resolves when all have ended: on `stop`, or because the server is gone. */
  ended: Promise<void>;
  stop: () => void;
}

/** Posts `next()`, one event after the other in each of `count` loops, until the server is gone. */
export function startWriters(
  server: { url: string },
  next: () => PostedEvent & { id: string },
  count = 8,
): Writers {
  let isStopped = false;
  const write = async () => {
    while (!isStopped) {
      const event = next();
      try {
        const { status } = await postEvent(server, event);
        if (status === 200 || status === 201) writers.acknowledged.add(event.id);
        else writers.refused.push(status);
      } catch {
        writers.unanswered.push(event);
        return;
      }
    }
  };
  const writers: Writers = {
    acknowledged: new Set(),
    unanswered: [],
    refused: [],
    ended: Promise.resolve(),
    stop: () => {
      isStopped = true;
    },
  };
  writers.ended = Promise.all(Array.from({ length: count }, write)).then(() => undefined);
  return writers;
}

/** Resident memory of a process, in bytes. */
export function residentBytes(pid: number): number {
  const status = `/proc/${pid}/status`;
  if (existsSync(status))
    return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(status, "utf8"))?.[1]) * 1024;
  const { stdout } = Bun.spawnSync(["ps", "-o", "rss=", "-p", String(pid)]);
  return Number(stdout.toString().trim()) * 1024;
}

/**
 * Sends `request` as it is, and gives what comes back until the server closes, one whole answer
 * with a Content-Length is there, or `timeoutMs` has passed.
 */
export async function sendRaw(
  { port }: { port: number },
  request: string | Uint8Array,
  timeoutMs = 2_000,
): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<void>();
  let answer = "";
  const socket = await Bun.connect({
    hostname: "127.0.0.1",
    port,
    socket: {
      data(_, chunk) {
        answer += chunk.toString("latin1");
        const [head = "", ...body] = answer.split("\r\n\r\n");
        const length = /^content-length: *(\d+)/im.exec(head)?.[1];
        if (length !== undefined && body.join("\r\n\r\n").length >= Number(length)) resolve();
      },
      close: () => resolve(),
      error: () => resolve(),
    },
  });
  socket.write(request);
  const timer = setTimeout(resolve, timeoutMs);
  await promise;
  clearTimeout(timer);
  socket.terminate();
  return answer;
}

/** The status in the answer of `sendRaw`; 0 where there is none. */
export function statusOf(answer: string): number {
  return Number(/^HTTP\/1\.1 (?!100)(\d{3})/m.exec(answer)?.[1] ?? 0);
}

const CHROMIUM_NAMES = ["google-chrome-stable", "google-chrome", "chromium-browser", "chromium"];

/**
 * Whether this machine has a Chromium to test with. Only outside of CI may it be missing: there
 * the tests run, and fail.
 */
export const hasChromium =
  process.env.CI === "true" || CHROMIUM_NAMES.some((name) => Bun.which(name) !== null);
if (!hasChromium) console.warn("skipped: the browser tests, for want of Chromium in PATH");

const CHROMIUM_FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  // Its own pages, loaded beside each tab of ours for who types into its address bar: a third of the time that
  // a tab takes (Chromium 156).
  "--disable-features=WebUIOmniboxPopup,WebUIOmniboxAimPopup",
];

/** A view in real Chromium. */
export function openBrowser(options: Bun.WebView.ConstructorOptions = {}): Bun.WebView {
  return new Bun.WebView({
    ...options,
    backend: { type: "chrome", url: false, argv: CHROMIUM_FLAGS },
  });
}

/** `SOAK=1 bun test` runs the long tests in full. */
export const isSoak = Boolean(process.env.SOAK);

type Found = NonNullable<Awaited<ReturnType<import("../server.ts").Store["findSession"]>>>;
type Item<Items> = Items extends Iterable<infer One> ? One : never;
/** The calls that `GET /api/sessions/:sessionId` lists. */
export type ToolCall = Item<Found["tools"]> & { tool: string; args: string | null };
export type AgentRun = Item<Found["agents"]> & { subagent_type: string; prompt: string | null };
