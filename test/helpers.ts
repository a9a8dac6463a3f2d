/** What the tests share: a real server on a free port, real sockets, a real database file. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Config, type Log, loadConfig, startServer } from "../server.ts";

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
  const base = { ...loadConfig({ PORT: "0", HOST: "127.0.0.1" }), ...config, dataDir };
  let running = startServer(base, { now, log });
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
      running = startServer({ ...base, port }, { now, log });
      isStopped = false;
    },
    async [Symbol.asyncDispose]() {
      await stop();
      rmSync(dataDir, { recursive: true, force: true });
    },
  };
}

/** Posts `body` as JSON; an object with `ids` or `id` comes back, or `error`. */
export async function postEvent(
  server: { url: string },
  body: unknown,
  headers: Record<string, string> = {},
): Promise<{ status: number; body: { id?: number; ids?: number[]; error?: string } }> {
  const response = await fetch(`${server.url}/api/events`, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
  return { status: response.status, body: await response.json() };
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
  return {
    response,
    frames,
    events: () =>
      frames.filter((frame): frame is Frame & { data: string } => frame.data !== undefined),
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

function parseFrame(block: string): Frame {
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

/** Waits until `condition` holds, looking every few milliseconds; fails after `timeoutMs`. */
export async function waitFor(
  condition: () => boolean | Promise<boolean>,
  what: string,
  timeoutMs = 5_000,
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain for ${what}`);
    await Bun.sleep(5);
  }
}
