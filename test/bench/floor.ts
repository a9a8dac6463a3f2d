/**
 * The bare servers that the real one is held against: what Bun itself does with the same requests
 * and bytes, with nothing checked, stored or remembered. A process of its own, as the server is:
 *
 *     bun test/bench/floor.ts
 */

import { encodeFrame, parseEvent } from "../../server.ts";

const encoder = new TextEncoder();
const subscribers = new Set<ReadableStreamDefaultController<Uint8Array>>();
/** What /publish sends: the frames of the first batch that was posted to it. */
let shared: Uint8Array | undefined;

function publish(chunk: Uint8Array): Response {
  for (const subscriber of subscribers) subscriber.enqueue(chunk);
  return Response.json({ id: 1 }, { status: 201 });
}

function subscribe(): ReadableStream<Uint8Array> {
  let subscriber: ReadableStreamDefaultController<Uint8Array>;
  return new ReadableStream({
    start(controller) {
      subscriber = controller;
      subscribers.add(subscriber);
      subscriber.enqueue(encoder.encode(":\n\n"));
    },
    cancel() {
      subscribers.delete(subscriber);
    },
  });
}

/** The frames that the server would send for a batch, with ids as long as its own. */
function framesOf(batch: unknown[]): Uint8Array {
  const now = Date.now();
  const frames = batch.map((body, index) =>
    encodeFrame({ ...parseEvent(body, now), id: now + index, started_at: null }),
  );
  return encoder.encode(frames.join(""));
}

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  development: false,
  routes: {
    "/health": { GET: () => Response.json({ status: "ok" }) },
    "/api/events": {
      POST: async (req) => {
        const body: unknown = await req.json();
        const answer = Array.isArray(body) ? { ids: body.map((_, id) => id) } : { id: 1 };
        return Response.json(answer, { status: 201 });
      },
    },
    "/api/events/stream": {
      GET: () => new Response(subscribe(), { headers: { "Content-Type": "text/event-stream" } }),
    },
    "/publish": {
      POST: async (req) => {
        const body = await req.text();
        shared ??= framesOf(JSON.parse(body));
        return publish(shared);
      },
    },
    "/pass-on": {
      POST: async (req) => publish(encoder.encode(`data: ${await req.text()}\n\n`)),
    },
  },
});
console.log(`floor on ${server.url}`);
