/**
 * Which sessions need the person, why and since when: one rule for the list, the header, the tab's title
 * and the notifications.
 *
 *     waiting    a question or a permission is open
 *     retrying   the model's provider refuses
 *     lost       its process is gone, in the middle of its work
 *     silent     a call runs for longer than its tool does in 95 of 100 cases, or nothing came for 5 minutes
 *     failed     it has ended with an error
 *
 * An agent lifts the session that sent it out. Its failure doesn't: that session hears of it, and goes on.
 */

import { asText, oneLine } from "./events.ts";
import { HOUR_MS, MINUTE_MS, formatDuration, joined, wordOf } from "./format.ts";
import { type Rows, type SessionEntry, doingOf, spansOf } from "./rows.ts";
import { type TreeNode, treeOf } from "./tree.ts";

/** The most urgent first. */
const CAUSES = ["waiting", "retrying", "lost", "silent", "failed"] as const;
export type Cause = (typeof CAUSES)[number];

export type Need = ReturnType<typeof needsOf>[number];

const SILENT_MS = 5 * MINUTE_MS;
/** A call that runs for less is nothing to look at, however short the others were. */
const MIN_SLOW_MS = MINUTE_MS;
/** Who was lost, or failed, before a night's sleep is history. */
const RECENT_MS = 12 * HOUR_MS;

/** By tool, in ms: 95 of 100 of its calls take less; null: not known yet. */
export type Usual = ReadonlyMap<string, number> | null;

/** By cause, then the oldest first; `root`: the session itself, or the one at the top above it. */
export function needsOf(rows: Rows, usual: Usual, now: number) {
  const needs = treeOf(rows).order.flatMap((node) => {
    const need = needOf(rows, node, usual, now);
    let root = node;
    while (need !== null && root.parent !== null) root = root.parent;
    return need === null ? [] : { session: node.entry, root, ...need };
  });
  const rank = ({ cause }: { cause: Cause }) => CAUSES.indexOf(cause);
  return needs.sort((a, b) => rank(a) - rank(b) || a.since - b.since);
}

/** By the session's id; of one at the top the most urgent here and below. */
export function needsBySession(needs: readonly Need[]): Map<string, Need> {
  const found = new Map<string, Need>();
  for (const need of needs.toReversed())
    found.set(need.session.row.id, need).set(need.root.entry.row.id, need);
  return found;
}

function needOf(rows: Rows, node: TreeNode, usual: Usual, now: number) {
  const { entry: session, parent, latest, children } = node;
  const { status, is_lost, stale_at, last_event_at, waiting_since, now: open, info } = session.row;
  const told = (cause: Cause, since: number, text: string) => ({ cause, since, text });
  const { text = null, time = null } = doingOf(rows, session, now) ?? {};
  const does = joined([text, time], ", ");
  const endedAt = Date.parse(stale_at ?? last_event_at);
  const isRecent = now - endedAt < RECENT_MS;
  if (waiting_since !== null)
    return told("waiting", Date.parse(waiting_since), does || "Waits for you");
  if (open?.kind === "retry") {
    const words = joined([time && wordOf(time), text], ": "); // the end of a long one isn't seen
    return told("retrying", Date.parse(open.started_at), words);
  }
  if (is_lost && isRecent) return told("lost", endedAt, does);
  if (status === "active") {
    if (children.some(({ goesOn }) => goesOn)) return null; // it waits for them
    const { agent, wait } = spansOf(rows, session.row.id);
    // How long an agent's call takes is told without its agent.
    const isCall = open?.kind === "tool" && !agent.some(({ end }) => end === null);
    const p95 = isCall ? usual?.get(open.name ?? "") : undefined;
    const isSilent = now - latest >= SILENT_MS;
    if (!isCall || p95 === undefined)
      return isSilent ? told("silent", latest, joined(["Silent", text], ": ")) : null;
    // What it has waited for the person is not its length.
    const since = Math.max(Date.parse(open.started_at), wait.at(-1)?.end ?? 0);
    if (now - since < Math.max(MIN_SLOW_MS, p95)) return null;
    return told("silent", since, `Slow, usually under ${formatDuration(p95)}: ${text}`);
  }
  if (status !== "completed" || parent !== null || !isRecent) return null;
  const { row = null } = latestOf(rows, session) ?? {};
  const error = row?.outcome === "failed" ? (row.error ?? "no reason") : null;
  if (info.reason === undefined ? error === null : info.reason !== "error") return null;
  return told("failed", endedAt, `Failed: ${oneLine(error ?? asText(info.error) ?? "no reason")}`);
}

/** What was over last. */
function latestOf(rows: Rows, { row }: SessionEntry) {
  const { tool, agent, model, mark } = spansOf(rows, row.id);
  const latest = [mark, model, agent, tool].flatMap((spans) => spans.slice(-1));
  return latest.sort((a, b) => (b.end ?? Infinity) - (a.end ?? Infinity))[0];
}
