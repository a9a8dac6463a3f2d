/**
 * A session in Chrome's trace event format, for ui.perfetto.dev and chrome://tracing:
 * GET /api/sessions/:sessionId/trace.json
 *
 *     a session, or an agent's own      a process: `process_name` is its agent and title
 *       its calls of one kind           threads: `tool`, and where they overlap `tool 2`, `tool 3`
 *         a call                        a complete event, "X", with what is known of it as `args`
 *     from an agent's call to what it did    an arrow, "s" to "f"
 *
 * On a thread nothing overlaps, because the format wants the events of one nested. Times are microseconds
 * since 1970. Events come in the order in which the rows are read, which the format leaves free.
 */

import type { Session, Store } from "../server.ts";

const MICROSECONDS = 1_000; // in a millisecond

type Interval = { start: number; end: number };
type Thread = { tid: number; taken: Interval[] }; // the latest first
type Place = { pid: number; tid: number; ts: number };

/** Whether nothing on this thread overlaps with `call`, which has it from then on. */
function take({ taken }: Thread, call: Interval): boolean {
  const after = taken.findLastIndex(({ start }) => start >= call.start); // rows come nearly in this order
  const [later, earlier] = [taken[after], taken[after + 1]];
  if ((later && later.start < call.end) || (earlier && earlier.end > call.start)) return false;
  taken.splice(after + 1, 0, call);
  return true;
}

const withoutNulls = (values: object) =>
  Object.fromEntries(Object.entries(values).filter(([, value]) => value != null));

function nameOf({ id, info }: Session): string {
  const said = [info.agent, info.title].filter((it) => typeof it === "string" && it.trim() !== "");
  return said.length > 0 ? said.join(": ") : id;
}

/**
 * The events of a session and those below it, as they are read.
 * @param now milliseconds: the end of what runs
 */
export async function* traceEvents(
  store: Pick<Store, "listSessions" | "listSpans">,
  sessionId: string,
  now: number,
) {
  const begun = new Map<string, Place>(); // where the first call of a session is
  const agents: { child: string; place: Place }[] = []; // where an agent was called
  let pid = 0;
  let firstAt: number | undefined;
  for await (const session of store.listSessions({ status: null, sessionId }, Infinity, now)) {
    pid++;
    yield metadata("process_name", pid, 0, { name: nameOf(session) });
    const startedAt = Date.parse(session.started_at);
    firstAt ??= startedAt;
    const sort_index = Math.round((startedAt - firstAt) / 1_000); // is a small number there
    yield metadata("process_sort_index", pid, 0, { sort_index });
    const threads = new Map<string, Thread[]>(); // by kind
    let tid = 0;
    const calls = { sessionId: session.id, before: null, isOpen: false };
    for await (const span of store.listSpans(calls, Infinity, now)) {
      const { id, kind, name, started_at, ended_at, outcome, duration_ms: _, ...rest } = span;
      const start = Date.parse(started_at);
      const end = Math.max(start, ended_at === null ? now : Date.parse(ended_at));
      const known = threads.get(kind) ?? [];
      threads.set(kind, known);
      let thread = known.find((it) => take(it, { start, end }));
      if (thread === undefined) {
        thread = { tid: ++tid, taken: [{ start, end }] };
        known.push(thread);
        const number = known.length > 1 ? ` ${known.length}` : "";
        yield metadata("thread_name", pid, tid, { name: kind + number });
      }
      const place = { pid, tid: thread.tid, ts: start * MICROSECONDS };
      const { child_session_id: child, attributes, ...facts } = rest;
      if (child !== null) agents.push({ child, place });
      if (place.ts < (begun.get(session.id)?.ts ?? Infinity)) begun.set(session.id, place);
      const args = { ...facts, ...attributes, child_session_id: child };
      yield {
        ...{ ph: "X", name, cat: kind, ...place, dur: (end - start) * MICROSECONDS },
        args: withoutNulls({ id, outcome: outcome ?? "running", ...args }),
      };
    }
  }
  for (const [id, { child, place }] of agents.entries()) {
    const to = begun.get(child);
    if (to === undefined) continue; // it has done nothing yet, or is no session of these
    const arrow = { name: "agent", cat: "agent", id };
    yield { ph: "s", ...arrow, ...place };
    yield { ph: "f", bp: "e", ...arrow, ...to, ts: Math.max(to.ts, place.ts) };
  }
}

const metadata = (name: string, pid: number, tid: number, args: object) => ({
  ...{ ph: "M", name, pid, tid, args },
});
