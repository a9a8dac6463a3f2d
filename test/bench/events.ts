/**
 * Events to measure with: 200 to 300 bytes each, as the plugin posts them. Made from a seed, so that
 * floor and server, and every run, get the same.
 */

import type { PostedEvent } from "../fixtures.ts";

const TOOLS = [
  "bash",
  "read",
  "edit",
  "write",
  "grep",
  "glob",
  "list",
  "webfetch",
  "todowrite",
  "task",
  "skill",
  "mcp_search",
];
const AGENTS = ["Engineer", "Architect", "Researcher", "general", "explore"];
const ARGS = [
  { command: "bun test test/store.test.ts", description: "Run the tests of the store" },
  { filePath: "/home/dev/project/src/server.ts", offset: 120, limit: 80 },
  { pattern: "export function \\w+", path: "/home/dev/project/src", include: "*.ts" },
  { filePath: "/home/dev/project/README.md", oldString: "Quick start", newString: "Start" },
];

export function pick<T>(items: readonly T[], random: () => number): T {
  return items[Math.floor(random() * items.length)] as T;
}

/** Eight characters, so that a client can write the next serial over it in place. */
export const SERIAL_CHARS = 8;

export function serialText(serial: number): string {
  return String(serial).padStart(SERIAL_CHARS, "0");
}

/** A tool call; its id and its call_id end in `serial`, eight characters that make them unique within `prefix`. */
export function toolUse(
  session_id: string,
  prefix: string,
  serial: string,
  timestamp: number,
  random: () => number,
): PostedEvent {
  return {
    id: `prt_${prefix}_${serial}`,
    type: "tool_use",
    session_id,
    timestamp,
    data: {
      tool: pick(TOOLS, random),
      args: pick(ARGS, random),
      duration_ms: Math.round(random() * 2_000),
      call_id: `call_${prefix}_${serial}`,
      success: random() > 0.05,
    },
  };
}

/** A subagent's start; its completion has the same `call_id`. */
export function agentSpawn(
  session_id: string,
  call_id: string,
  timestamp: number,
  random: () => number,
): PostedEvent {
  return {
    id: `prt_${call_id}:agent_spawn`,
    type: "agent_spawn",
    session_id,
    timestamp,
    data: {
      subagent_type: pick(AGENTS, random),
      prompt: "Find where the sessions are folded, and say which indexes each read needs.",
      call_id,
    },
  };
}

/** What a model took: of a few models and agents. */
export function modelResponse(
  session_id: string,
  call_id: string,
  timestamp: number,
  random: () => number,
): PostedEvent {
  const tokens = (most: number) => Math.round(random() * most);
  return {
    id: `prt_${call_id}:model_response`,
    type: "model_response",
    session_id,
    timestamp,
    data: {
      call_id,
      model: pick(["model-large", "model-small", "model-fast"], random),
      provider: "provider",
      agent: pick(AGENTS, random),
      duration_ms: tokens(30_000),
      first_token_ms: tokens(2_000),
      tokens: {
        input: tokens(20_000),
        output: tokens(2_000),
        reasoning: tokens(2_000),
        cache_read: tokens(100_000),
        cache_write: tokens(5_000),
      },
      cost: tokens(200_000) / 1e6,
      finish_reason: "stop",
    },
  };
}

export function agentComplete(
  session_id: string,
  call_id: string,
  timestamp: number,
  random: () => number,
): PostedEvent {
  return {
    id: `prt_${call_id}:agent_complete`,
    type: "agent_complete",
    session_id,
    timestamp,
    data: { call_id, duration_ms: Math.round(random() * 60_000), success: random() > 0.05 },
  };
}
