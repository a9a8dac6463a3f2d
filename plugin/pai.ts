/**
 * What PAI-OpenCode 3.0.1 posts by its `pai-unified.ts`, in the words of this server. Pure, and without a check:
 * what comes out is checked as everybody's events are.
 */

type Fields = Record<string, unknown>;

const isRecord = (value: unknown): value is Fields =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const TASK_TOOL = /^(mcp_)?task$/i; // all that is posted of a subagent is its call, once it is done
const MAX_PREVIEW_CHARS = 4_096;

/**
 * | theirs                  | ours               |
 * | ----------------------- | ------------------ |
 * | event_type tool.execute | type tool_use      |
 * | event_type agent.spawn  | type agent_spawn   |
 * | agent_type              | subagent_type      |
 * | task_id, args_preview   | call_id, args      |
 * | working_directory       | directory          |
 */
export function fromPai({ event_type, ...event }: Fields): Fields {
  const name = event_type === "tool.execute" ? "tool_use" : event_type;
  const type = typeof name === "string" ? name.replaceAll(".", "_") : name;
  if (event.data != null && !isRecord(event.data)) return { ...event, type };
  const { task_id, args_preview, working_directory, agent_type, ...data } = event.data ?? {};
  data.call_id = task_id ?? data.call_id;
  data.args = args_preview ?? data.args; // JSON text, cut at 200 characters
  data.directory = working_directory ?? data.directory;
  data.subagent_type = agent_type ?? data.subagent_type;
  if (type === "agent_spawn" || type === "agent_complete") data.subagent_type ??= "unknown";
  if (isRecord(data.model)) data.model = data.model.name ?? data.model.id; // the rest can hold keys
  if (type === "session_end" && typeof data.duration_ms === "number")
    data.duration_seconds = data.duration_ms / 1_000;
  // Its agent's too: one cause is one error.
  if (isTask({ type, ...data }) && event.id) data.call_id ??= String(event.id);
  return { ...event, type, data };
}

const isTask = ({ type, tool }: Fields) => type === "tool_use" && TASK_TOOL.test(String(tool));

interface Call {
  type: string;
  session_id: string;
  duration_ms: number | null;
  call_id: string | null;
  failed: boolean;
  fields: Fields;
}

/**
 * The agent_spawn of the subagent behind a task call, as far as the preview of its arguments tells: JSON
 * that may break off anywhere. Null: it is another call.
 */
export function agentOfTask({ type, session_id, fields, failed, ...call }: Call): Fields | null {
  if (!isTask({ ...fields, type })) return null;
  const { duration_ms, call_id } = call;
  const preview = typeof fields.args === "string" ? fields.args.slice(0, MAX_PREVIEW_CHARS) : "";
  const read = (pattern: RegExp): string | null =>
    JSON.parse(pattern.exec(preview)?.[1]?.concat('"') ?? "null");
  const name = read(/"subagent_type"\s*:\s*("(?:[^"\\\p{Cc}]|\\["\\/bfnrt]|\\u[\da-f]{4})*)"/iu);
  const prompt = read(/"prompt"\s*:\s*("(?:[^"\\\p{Cc}]|\\["\\/bfnrt]|\\u[\da-f]{4})*)/iu);
  const subagent_type = name && name.length <= 256 ? name : "unknown";
  const data = { subagent_type, prompt, duration_ms, call_id, success: !failed };
  return { type: "agent_spawn", session_id, data };
}
