/**
 * The load generator: raw sockets, HTTP/1.1 with keep-alive, one request at a time on each. A
 * process of its own, so that it runs on another core than the server:
 *
 *     bun test/bench/client.ts '{"port": 3001, "pid": 1234, "jobs": [...]}'
 *
 * Runs the jobs at the same time, writes their results as one line of JSON, and ends. It counts
 * bytes and parses nothing that it needn't: `clientBusy` says how much of a core it used all the
 * same, `serverBusy` how much the server did. Whichever is near 1 is the limit.
 */

import { readFileSync } from "node:fs";
import { seededRandom } from "../fixtures.ts";
import { SERIAL_CHARS, serialText, toolUse } from "./events.ts";

export interface Task {
  port: number;
  /** Of the server's process, for `serverBusy`. */
  pid: number;
  jobs: Job[];
}

/** Requests over `connections`, each that of one agent. */
export interface LoadJob {
  kind: "load";
  connections: number;
  /** Of the agents together; as many as connections: each has its own. */
  sessions: number;
  /** What is asked for; null: POST /api/events. */
  get: string | null;
  /** Events in one POST; 1 is sent as an object, more as an array. */
  eventsPerPost: number;
  /** Open loop: sent when due, whatever the answers do, and timed from then. Null: as fast as answered. */
  perSecond: number | null;
  /** Measured time, after the warm-up; null: until the other jobs are done. */
  seconds: number | null;
}

export interface LoadResult {
  kind: "load";
  /** Answered requests. */
  perSecond: number;
  p50: number;
  p99: number;
  samples: number;
}

/** Batches to `postPath`, each when all subscribers have most of those before; counted where they arrive. */
export interface FanoutJob {
  kind: "fanout";
  subscribers: number;
  eventsPerPost: number;
  postPath: string;
  seconds: number;
}

export interface FanoutResult {
  kind: "fanout";
  /** Frames that arrived, at all subscribers together. */
  perSecond: number;
  frameBytes: number;
}

/** Single events to `postPath` at a given rate, timed from when each was due to when each subscriber has it. */
export interface DeliveryJob {
  kind: "delivery";
  subscribers: number;
  perSecond: number;
  postPath: string;
  seconds: number;
}

export interface DeliveryResult {
  kind: "delivery";
  p50: number;
  p99: number;
  samples: number;
}

/** One stream after the other that reads `events` missed events and is then closed. */
export interface ResumeJob {
  kind: "resume";
  path: string;
  events: number;
  rounds: number;
}

export interface ResumeResult {
  kind: "resume";
  /** Of each round. */
  perSecond: number[];
}

export type Job = LoadJob | FanoutJob | DeliveryJob | ResumeJob;
export type JobResult = LoadResult | FanoutResult | DeliveryResult | ResumeResult;
type ResultOf<J extends Job> = Extract<JobResult, { kind: J["kind"] }>;

/** Processor time over time, of one core; null where the system doesn't say. */
export interface Busy {
  clientBusy: number | null;
  serverBusy: number | null;
}

export interface TaskResult<Jobs extends Job[] = Job[]> extends Busy {
  results: { [Index in keyof Jobs]: ResultOf<Jobs[Index]> };
}

const WARM_UP_MS = 500;
/** How finely an open loop keeps time; what it is late counts as latency. */
const TICK_MS = 1;
/** Different requests per connection, sent in turn. */
const VARIANTS = 8;

// ─── Connections ─────────────────────────────────────────────────────────────

interface Connection {
  send: (request: Uint8Array) => void;
  close: () => void;
}

/** @param onData every chunk that arrives; it must not be kept */
async function connect(port: number, onData: (chunk: Buffer) => void): Promise<Connection> {
  let unsent: Uint8Array = new Uint8Array(0);
  let isOurs = false;
  const socket = await Bun.connect({
    hostname: "127.0.0.1",
    port,
    socket: {
      data: (_, chunk) => onData(chunk),
      drain(socket) {
        unsent = unsent.subarray(socket.write(unsent));
      },
      close() {
        if (!isOurs) fail("the server closed a connection");
      },
      error: (_, error) => fail(error.message),
    },
  });
  return {
    send(request) {
      const written = socket.write(request);
      if (written < request.byteLength) unsent = request.slice(written);
    },
    close() {
      isOurs = true;
      socket.terminate();
    },
  };
}

function fail(message: string): never {
  console.error(`client: ${message}`);
  process.exit(1);
}

const NOTHING: Buffer = Buffer.alloc(0);
const CHUNKED = "Transfer-Encoding: chunked";
/** JSON has no line break of its own, so nothing else in an answer looks like it. */
const LAST_CHUNK = "\r\n0\r\n\r\n";

/** A connection that calls `onAnswer` when an answer is there in full; any but a 2xx is the end. */
function connectForAnswers(port: number, onAnswer: () => void): Promise<Connection> {
  let missing = 0;
  /** The last characters of an answer of unknown length; null: it has one. */
  let tail: string | null = null;
  /** Of a head that comes in pieces, as that of a large answer may. */
  let partial = NOTHING;
  return connect(port, (data) => {
    let chunk = data;
    if (missing === 0 && tail === null) {
      if (partial.byteLength > 0) chunk = Buffer.concat([partial, data]);
      const head = chunk.indexOf("\r\n\r\n");
      if (head < 0) {
        partial = Buffer.from(chunk); // a copy: what arrived must not be kept
        return;
      }
      if (chunk[9] !== 0x32) fail(`not a 2xx answer: ${chunk.toString("latin1")}`);
      partial = NOTHING;
      if (chunk.subarray(0, head).includes(CHUNKED)) tail = "";
      else missing = head + 4 + contentLength(chunk);
    }
    if (tail !== null) {
      const last = chunk.toString("latin1", Math.max(0, chunk.byteLength - LAST_CHUNK.length));
      tail = (tail + last).slice(-LAST_CHUNK.length);
      if (tail !== LAST_CHUNK) return;
      tail = null;
      onAnswer();
      return;
    }
    missing -= chunk.byteLength;
    if (missing < 0) fail("more bytes than the Content-Length");
    if (missing === 0) onAnswer();
  });
}

function contentLength(chunk: Buffer): number {
  const label = "Content-Length: ";
  const at = chunk.indexOf(label);
  if (at < 0) fail(`no Content-Length: ${chunk.toString("latin1", 0, 400)}`);
  let length = 0;
  for (let index = at + label.length; chunk[index] !== 0x0d; index++)
    length = length * 10 + (chunk[index] ?? 0) - 0x30;
  return length;
}

/** An event stream; resolves once its head is there, which `onData` doesn't get. */
export async function subscribe(
  port: number,
  path: string,
  onData: (chunk: Buffer) => void,
): Promise<Connection> {
  const { promise: opened, resolve: open } = Promise.withResolvers<void>();
  let isOpen = false;
  let head = "";
  const connection = await connect(port, (chunk) => {
    if (isOpen) return onData(chunk);
    head += chunk.toString("latin1");
    if (!head.includes("\r\n\r\n")) return;
    if (head[9] !== "2") fail(`not a 2xx answer: ${head}`);
    isOpen = true;
    open();
  });
  connection.send(getRequest(path).bytes);
  await opened;
  return connection;
}

/** Counts the empty lines that end a frame, also those that a chunk's end cuts in two. */
function createFrameCounter(): (chunk: Buffer) => number {
  let endsInLine = false;
  return (chunk) => {
    let frames = 0;
    let at = endsInLine && chunk[0] === 0x0a ? 0 : -1;
    if (at === 0) frames++;
    for (at = chunk.indexOf("\n\n", at + 1); at >= 0; at = chunk.indexOf("\n\n", at + 2)) frames++;
    endsInLine = chunk.at(-1) === 0x0a && chunk.at(-2) !== 0x0a;
    return frames;
  };
}

// ─── Requests ────────────────────────────────────────────────────────────────

/** Of every run its own, so that no id was posted before. */
const RUN = crypto.randomUUID().slice(0, 8);
/** What `stamp` writes over: a serial, and a time in milliseconds; no other number has its digits. */
const SERIAL_PLACE = "#".repeat(SERIAL_CHARS);
const TIME_PLACE = 1_111_111_111_111;

/** A request that is sent often; `stamp` writes into its events what makes each one another. */
interface Request {
  bytes: Buffer;
  stamp: (due: number) => void;
}

let serial = 0;

function getRequest(path: string): Request {
  return {
    bytes: Buffer.from(`GET ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n`),
    stamp() {},
  };
}

/** @param nextSerial what is written over each SERIAL_PLACE; where it isn't given, the next number */
function postRequest(
  path: string,
  events: object[],
  nextSerial: (due: number) => number = () => serial++,
): Request {
  const body = JSON.stringify(events.length === 1 ? events[0] : events);
  const bytes = Buffer.from(
    `POST ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n` +
      `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
  const serials = placesOf(bytes, SERIAL_PLACE);
  const times = placesOf(bytes, String(TIME_PLACE));
  return {
    bytes,
    stamp(due) {
      for (const place of serials) bytes.write(serialText(nextSerial(due)), place, "latin1");
      const now = String(Date.now());
      for (const place of times) bytes.write(now, place, "latin1");
    },
  };
}

function placesOf(bytes: Buffer, text: string): number[] {
  const places: number[] = [];
  for (let at = bytes.indexOf(text); at >= 0; at = bytes.indexOf(text, at + 1)) places.push(at);
  return places;
}

function loadRequests({ get, sessions, eventsPerPost }: LoadJob, agent: number): Request[] {
  if (get !== null) return [getRequest(get)];
  const random = seededRandom(agent);
  const session_id = `ses_${RUN}_${agent % sessions}`;
  const event = () => toolUse(session_id, RUN, SERIAL_PLACE, TIME_PLACE, random);
  return Array.from({ length: VARIANTS }, () =>
    postRequest("/api/events", Array.from({ length: eventsPerPost }, event)),
  );
}

// ─── Jobs ────────────────────────────────────────────────────────────────────

interface Pool {
  /** Sends on the connection that is free for longest, or the next to become free. */
  send: (due: number) => void;
  /** When each was due that has no answer yet. */
  unanswered: () => number[];
  close: () => void;
}

/** @param onAnswer when a request that was due at `due` has its answer, and its connection is free again */
async function openPool(
  port: number,
  connections: number,
  requestsOf: (agent: number) => Request[],
  onAnswer: (due: number) => void,
): Promise<Pool> {
  const idle: ((due: number) => void)[] = [];
  const waiting: number[] = [];
  /** Of each agent's request; NaN while it has none. */
  const sent = new Float64Array(connections).fill(NaN);

  async function openAgent(agent: number): Promise<Connection> {
    const requests = requestsOf(agent);
    let turn = 0;
    const connection = await connectForAnswers(port, () => {
      const due = sent[agent] ?? NaN;
      const next = waiting.shift();
      if (next === undefined) {
        sent[agent] = NaN;
        idle.push(send);
      } else send(next);
      onAnswer(due);
    });
    function send(due: number): void {
      sent[agent] = due;
      const request = requests[turn++ % requests.length] as Request;
      request.stamp(due);
      connection.send(request.bytes);
    }
    idle.push(send);
    return connection;
  }

  const agents = await Promise.all(Array.from({ length: connections }, (_, n) => openAgent(n)));
  return {
    send(due) {
      const send = idle.shift();
      if (send === undefined) waiting.push(due);
      else send(due);
    },
    unanswered: () => [...waiting, ...sent].filter((due) => !Number.isNaN(due)),
    close: () => agents.forEach((agent) => agent.close()),
  };
}

/** Calls `send` with each time that something is due, until `isDone`; late rather than never. */
function pace(
  perSecond: number,
  send: (due: number) => void,
  isDone: () => boolean,
): Promise<void> {
  const start = performance.now();
  let sent = 0;
  return new Promise((resolve) => {
    const timer = setInterval(() => {
      if (isDone()) {
        clearInterval(timer);
        return resolve();
      }
      const due = () => start + (sent * 1_000) / perSecond;
      for (const now = performance.now(); due() <= now; sent++) send(due());
    }, TICK_MS);
  });
}

async function runLoad(port: number, job: LoadJob, othersDone: Promise<void>): Promise<LoadResult> {
  const latencies: number[] = [];
  let measureFrom = Infinity;
  let end = Infinity;
  const pool = await openPool(
    port,
    job.connections,
    (agent) => loadRequests(job, agent),
    (due) => {
      const now = performance.now();
      if (now >= measureFrom && now < end) latencies.push(now - due);
      if (job.perSecond === null && now < end) pool.send(now);
    },
  );
  measureFrom = performance.now() + (job.seconds === null ? 0 : WARM_UP_MS);
  if (job.seconds !== null) end = measureFrom + job.seconds * 1_000;
  void othersDone.then(() => (end = Math.min(end, performance.now())));
  const isDone = () => performance.now() >= end;
  if (job.perSecond === null) {
    for (let n = 0; n < job.connections; n++) pool.send(performance.now());
    while (!isDone()) await Bun.sleep(Math.min(end - performance.now(), 10));
  } else await pace(job.perSecond, pool.send, isDone);
  const perSecond = (latencies.length * 1_000) / (end - measureFrom);
  // What was never answered took at least as long as until now: to leave it out would flatter.
  const unanswered = pool.unanswered().map((due) => performance.now() - due);
  pool.close();
  return { kind: "load", perSecond, ...percentiles(latencies.concat(unanswered)) };
}

function percentiles(values: number[]): { p50: number; p99: number; samples: number } {
  const sorted = Float64Array.from(values).sort();
  const at = (part: number) =>
    sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? NaN;
  return { p50: at(0.5), p99: at(0.99), samples: values.length };
}

/** Frames are counted at one subscriber in so many: the others get the same bytes, which is checked. */
const COUNTED_ONE_IN = 100;
/** Batches that may be on their way to the subscribers, so that they are neither idle nor flooded. */
const BATCHES_ON_THE_WAY = 4;
const POSTERS = 2;

async function runFanout(port: number, job: FanoutJob): Promise<FanoutResult> {
  const received = new Float64Array(job.subscribers);
  const frames = new Float64Array(Math.ceil(job.subscribers / COUNTED_ONE_IN));
  const event = {
    type: "tool_use",
    session_id: `ses_${RUN}`,
    data: { tool: "bash", duration_ms: 150 },
  };
  let posted = 0;
  let free = POSTERS;
  let isPosting = false;
  const pool = await openPool(
    port,
    POSTERS,
    () => [
      postRequest(
        job.postPath,
        Array.from({ length: job.eventsPerPost }, () => event),
      ),
    ],
    () => {
      free++;
      post();
    },
  );
  function post(): void {
    const room = () => posted - Math.min(...frames) < BATCHES_ON_THE_WAY * job.eventsPerPost;
    while (isPosting && free > 0 && room()) {
      free--;
      posted += job.eventsPerPost;
      pool.send(0);
    }
  }
  const streams = await Promise.all(
    Array.from({ length: job.subscribers }, (_, index) => {
      const countFrames = index % COUNTED_ONE_IN === 0 ? createFrameCounter() : null;
      return subscribe(port, "/api/events/stream", (chunk) => {
        received[index] = (received[index] ?? 0) + chunk.byteLength;
        if (countFrames === null) return;
        const counted = index / COUNTED_ONE_IN;
        frames[counted] = (frames[counted] ?? 0) + countFrames(chunk);
        post();
      });
    }),
  );
  await Bun.sleep(WARM_UP_MS / 2); // what a new stream gets at once is there now, and not counted
  received.fill(0);
  frames.fill(0);

  const snapshot = () => ({
    at: performance.now(),
    bytes: received.reduce((sum, bytes) => sum + bytes, 0),
  });
  isPosting = true; // not before all are there: what came earlier would be missing at some
  post();
  await Bun.sleep(WARM_UP_MS);
  const before = snapshot();
  await Bun.sleep(job.seconds * 1_000);
  const after = snapshot();
  isPosting = false;
  for (const deadline = performance.now() + DRAIN_LIMIT_MS; Math.min(...frames) < posted;) {
    if (performance.now() > deadline) fail(`${posted} events posted, ${frames.join(" ")} arrived`);
    await Bun.sleep(10);
  }
  await Bun.sleep(WARM_UP_MS / 2);
  // Chunks may be cut differently at each subscriber, so their framing may differ by some bytes.
  const [least, most] = [Math.min(...received), Math.max(...received)];
  if (least < most * 0.99) fail(`one subscriber got ${least} bytes, another ${most}`);
  streams.forEach((stream) => stream.close());
  pool.close();
  const frameBytes = (received[0] ?? 0) / posted;
  return {
    kind: "fanout",
    perSecond: ((after.bytes - before.bytes) / frameBytes / (after.at - before.at)) * 1_000,
    frameBytes,
  };
}

const DRAIN_LIMIT_MS = 10_000;

async function runDelivery(port: number, job: DeliveryJob): Promise<DeliveryResult> {
  const latencies: number[] = [];
  const origin = performance.now();
  const measureFrom = origin + WARM_UP_MS * 2;
  const end = measureFrom + job.seconds * 1_000;
  const marker = `"due":"`;

  const streams = await Promise.all(
    Array.from({ length: job.subscribers }, () =>
      subscribe(port, "/api/events/stream", (chunk) => {
        const now = performance.now();
        for (let at = chunk.indexOf(marker); at >= 0; at = chunk.indexOf(marker, at + 1)) {
          const from = at + marker.length;
          const due = origin + Number(chunk.toString("latin1", from, from + SERIAL_CHARS)) / 1_000;
          if (due >= measureFrom && due < end) latencies.push(now - due);
        }
      }),
    ),
  );
  const pool = await openPool(
    port,
    job.subscribers,
    (agent) => {
      const event = {
        type: "tool_use",
        session_id: `ses_${RUN}_${agent}`,
        data: { tool: "bash", duration_ms: 150, due: SERIAL_PLACE },
      };
      // Microseconds since the origin: the event itself says when it was due.
      return [postRequest(job.postPath, [event], (due) => Math.round((due - origin) * 1_000))];
    },
    () => undefined,
  );
  await pace(job.perSecond, pool.send, () => performance.now() >= end);
  await Bun.sleep(WARM_UP_MS);
  const expected = job.subscribers * job.perSecond * job.seconds;
  // One that is cut in two by the end of a chunk isn't seen.
  if (latencies.length < expected * 0.99)
    fail(`${latencies.length} of ${expected} deliveries arrived`);
  streams.forEach((stream) => stream.close());
  pool.close();
  return { kind: "delivery", ...percentiles(latencies) };
}

async function runResume(port: number, job: ResumeJob): Promise<ResumeResult> {
  const perSecond: number[] = [];
  for (let round = 0; round < job.rounds; round++) {
    const { promise: complete, resolve } = Promise.withResolvers<void>();
    const countFrames = createFrameCounter();
    let frames = 0;
    const start = performance.now();
    const connection = await connect(port, (chunk) => {
      frames += countFrames(chunk);
      if (frames > job.events) resolve(); // the first one is the stream's own
    });
    connection.send(getRequest(job.path).bytes);
    await complete;
    perSecond.push((job.events * 1_000) / (performance.now() - start));
    connection.close();
  }
  return { kind: "resume", perSecond };
}

// ─── Main ────────────────────────────────────────────────────────────────────

function runJob(port: number, job: Job, othersDone: Promise<void>): Promise<JobResult> {
  switch (job.kind) {
    case "load":
      return runLoad(port, job, othersDone);
    case "fanout":
      return runFanout(port, job);
    case "delivery":
      return runDelivery(port, job);
    case "resume":
      return runResume(port, job);
  }
}

/** Processor time that `pid` has used, in seconds, by Linux's own count; elsewhere null. */
function cpuSeconds(pid: number): number | null {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, "latin1")
      .replace(/^.*\) /s, "")
      .split(" ");
    return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
  } catch {
    return null;
  }
}

const TICKS_PER_SECOND = 100;

if (import.meta.main) {
  const { port, pid, jobs }: Task = JSON.parse(process.argv[2] ?? "");
  const start = performance.now();
  const [clientStart, serverStart] = [cpuSeconds(process.pid), cpuSeconds(pid)];
  const { promise: othersDone, resolve } = Promise.withResolvers<void>();
  const running = jobs.map((job) => runJob(port, job, othersDone));
  const isBounded = (job: Job) => job.kind !== "load" || job.seconds !== null;
  await Promise.all(running.filter((_, index) => isBounded(jobs[index] as Job)));
  resolve();
  const results = await Promise.all(running);
  const busy = (id: number, before: number | null) =>
    before === null
      ? null
      : ((cpuSeconds(id) ?? NaN) - before) / ((performance.now() - start) / 1_000);
  const result: TaskResult = {
    results,
    clientBusy: busy(process.pid, clientStart),
    serverBusy: busy(pid, serverStart),
  };
  console.log(JSON.stringify(result));
  process.exit(0);
}
