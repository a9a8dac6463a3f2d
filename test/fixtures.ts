/** Events to test and measure with. The same seed gives the same events on every machine. */

import { readFileSync } from "node:fs";
import type { OpenCode2Event, OpenCodeEvent } from "../plugin/observability.ts";

export interface PostedEvent {
  id?: string;
  type: string;
  session_id: string;
  timestamp?: string | number;
  data?: Record<string, unknown>;
}

/** The posts of an unmodified pai-unified.ts: one run, split by it into two sessions. */
export function paiPosts(): { path: string; body: PostedEvent & { event_type: string } }[] {
  return readNdjson("pai-unified-posts.ndjson");
}

/** What OpenCode 1.18 handed its plugins in a run with two parallel subagents. */
export function openCodeHooks(): { at: number; hook: string; input: Record<string, unknown> }[] {
  return readNdjson("opencode-hooks.ndjson");
}

/** What the event hook of OpenCode 1.18.33 got in a run of everything, as far as it is read. */
export function openCodeEvents(): { at: number; event: OpenCodeEvent }[] {
  return readNdjson("opencode-1.18.ndjson");
}

/**
 * What `event.subscribe` of OpenCode 2 gave in a run of the same, as far as it is read: that of July
 * 2026 is a real run, the derived one is that run with the release's names and fields.
 */
export function openCode2Events(
  name: "2026-07" | "derived",
): { at: number; event: OpenCode2Event }[] {
  return readNdjson(`opencode-2-${name}.ndjson`);
}

function readNdjson<T>(name: string): T[] {
  const text = readFileSync(new URL(`./fixtures/${name}`, import.meta.url), "utf8");
  return text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
}

/** Random numbers from 0 to 1 (mulberry32). */
export function seededRandom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** `items` in another order, drawn by `random`. */
export function shuffled<T>(items: readonly T[], random: () => number): T[] {
  return items
    .map((item) => ({ item, key: random() }))
    .sort((a, b) => a.key - b.key)
    .map(({ item }) => item);
}

const TOOLS = ["bash", "read", "edit", "grep", "glob", "webfetch", "write", "task"];
const AGENTS = ["Engineer", "Architect", "general", "explore"];

/**
 * A session that works, spawns `agents` subagents that overlap, asks once, fails sometimes, and ends.
 *
 * @param from time of its first event, in milliseconds
 */
export function sessionEvents(
  sessionId: string,
  { seed = 1, tools = 20, agents = 3, from = Date.parse("2026-01-01T12:00:00Z") } = {},
): PostedEvent[] {
  const random = seededRandom(seed);
  const pick = <T>(items: readonly T[]) => items[Math.floor(random() * items.length)] as T;
  let at = from;
  let serial = 0;
  const event = (type: string, data: Record<string, unknown>, timestamp = at): PostedEvent => ({
    id: `${sessionId}/${serial++}`,
    type,
    session_id: sessionId,
    timestamp,
    data,
  });
  const events = [
    event("session_start", { title: `Session ${seed}`, directory: "/home/dev/project" }),
  ];
  for (let index = 0; index < tools; index++) {
    const duration_ms = Math.round(random() * 900);
    at += duration_ms + Math.round(random() * 400);
    const hasFailed = random() < 0.1;
    events.push(
      event("tool_use", {
        tool: pick(TOOLS),
        args: { command: `step ${index}` },
        duration_ms,
        call_id: `call_${index}`,
        success: !hasFailed,
        ...(hasFailed ? { error: "exit code 1" } : {}),
      }),
    );
  }
  for (let index = 0; index < agents; index++) {
    const call_id = `agent_${index}`;
    const duration_ms = 2_000 + Math.round(random() * 8_000);
    const start = at + index * 100;
    events.push(
      event(
        "agent_spawn",
        { subagent_type: pick(AGENTS), prompt: `Do part ${index}`, call_id },
        start,
      ),
    );
    events.push(
      event(
        "agent_complete",
        { call_id, duration_ms, success: random() > 0.2 },
        start + duration_ms,
      ),
    );
  }
  at += 15_000;
  events.push(
    event("input_requested", { request_id: "req_1", kind: "permission", detail: "bash" }),
  );
  at += 1_000;
  events.push(event("input_resolved", { request_id: "req_1", kind: "permission" }));
  events.push(
    event("session_update", { title: `Session ${seed}, done`, tokens: { input: 300 }, cost: 0.02 }),
  );
  at += 500;
  events.push(event("session_end", {}));
  return events;
}
