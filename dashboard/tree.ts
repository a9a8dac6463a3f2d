/** Which session is below which. Without recursion: a chain of parents may be as long as the list. */

import { type Need, needsBySession } from "./attention.ts";
import { formatCount } from "./format.ts";
import { type Rows, type SessionEntry, isLive, labelOf } from "./rows.ts";

export interface TreeNode {
  entry: SessionEntry;
  /** null: it has none that is known. A circle of parents is cut above the one that would stand last. */
  parent: TreeNode | null;
  children: TreeNode[];
  depth: number;
  /** Here and below. */
  error_count: number;
  tool_count: number;
  /** The latest event here and below, in milliseconds since 1970. */
  latest: number;
  /** It, or one below it, is active. */
  goesOn: boolean;
}

export type Tree = ReturnType<typeof buildTree>;

export const treeOf = (rows: Rows): Tree => (rows.tree ??= buildTree(rows.sessions));

function buildTree(sessions: ReadonlyMap<string, SessionEntry>) {
  const nodes = new Map<string | null, TreeNode>();
  for (const [id, entry] of sessions) {
    const { error_count, tool_count } = entry.row;
    const below = { error_count, tool_count, latest: entry.lastEventAt, goesOn: isLive(entry) };
    nodes.set(id, { entry, parent: null, children: [], depth: 0, ...below });
  }
  const all = [...nodes.values()].sort(byLife);
  for (const node of all) {
    node.parent = nodes.get(node.entry.row.parent_session_id) ?? null;
    node.parent?.children.push(node);
  }
  const order = new Set<TreeNode>();
  for (const node of all) if (node.parent === null) place(node, order);
  // What has no place now is in a circle, or below one.
  for (const node of all.toReversed()) {
    if (order.has(node)) continue;
    node.parent?.children.splice(node.parent.children.indexOf(node), 1);
    node.parent = null;
    place(node, order);
  }
  for (const { parent, error_count, tool_count, latest, goesOn } of [...order].reverse())
    if (parent !== null) {
      parent.error_count += error_count;
      parent.tool_count += tool_count;
      parent.latest = Math.max(parent.latest, latest);
      parent.goesOn ||= goesOn;
    }
  const roots = all.filter(({ parent }) => parent === null);
  return {
    /** Parents before their children, in the order of the timeline. */
    order: [...order],
    /** Latest activity first, as the list has them. */
    roots: roots.sort((a, b) => b.latest - a.latest),
    /** By their session's id. */
    nodes,
  };
}

/** What goes on first, then what started later. */
const byLife = ({ entry: a }: TreeNode, { entry: b }: TreeNode) =>
  Number(isLive(b)) - Number(isLive(a)) || b.startedAt - a.startedAt;

/** At the end of `order`, with all below it. */
function place(top: TreeNode, order: Set<TreeNode>): void {
  const stack = [top];
  for (let node = stack.pop(); node !== undefined; node = stack.pop()) {
    order.add(node);
    node.depth = node.parent === null ? 0 : node.parent.depth + 1;
    stack.push(...node.children.toReversed());
  }
}

/** A session and all below it, also where they are in a circle. */
export function familyOf(rows: Rows, id: string): Set<string> {
  const below = Map.groupBy(rows.sessions.values(), ({ row }) => row.parent_session_id);
  const family = new Set([id]);
  // The loop takes in what is added meanwhile.
  for (const member of family) for (const { row } of below.get(member) ?? []) family.add(row.id);
  return family;
}

/** Of a session and all below it: one cause is one error, the server sees to that. */
export const countOf = (rows: Rows, id: string, of: "error_count" | "tool_count"): number =>
  treeOf(rows).nodes.get(id)?.[of] ?? 0;

// ─── The list of sessions ────────────────────────────────────────────────────

export type ListLine = ReturnType<typeof sessionList>[number];

/**
 * Who needs the person, the most urgent first; then who runs, then who has ended, latest activity first.
 * Children (and theirs) stand under their parent, which they keep up with them.
 *
 * @param text what is searched for: its children are shown also where they have ended
 * @param open parents whose ended children are shown
 */
export function sessionList(
  { roots, order }: Tree,
  text: string,
  open: ReadonlySet<string>,
  needs: readonly Need[],
) {
  const found = findSessions(order, text.trim().toLowerCase());
  const needOf = needsBySession(needs);
  const urgent = new Set(needs.map(({ root }) => root));
  const others = roots.filter((root) => !urgent.has(root));
  const groups = {
    Attention: [...urgent],
    Running: others.filter(({ goesOn }) => goesOn),
    Ended: others.filter(({ goesOn }) => !goesOn),
  };
  const lines = [];
  for (const [name, members] of Object.entries(groups)) {
    const stack = members.filter((node) => found?.has(node) ?? true).toReversed();
    /** The head of the group, over its first line: "Running 3" */
    let group: string | null = `${name} ${formatCount(stack.length)}`;
    for (let node = stack.pop(); node !== undefined; node = stack.pop()) {
      const { entry: session, depth, children } = node;
      /** Folded away, unless it is open. */
      const ended = found === null ? children.filter(({ goesOn }) => !goesOn) : [];
      const isOpen = open.has(session.row.id);
      /** Why it, or one below it, needs the person. */
      const need = needOf.get(session.row.id);
      lines.push({ session, group, depth, need, endedCount: ended.length, isOpen });
      group = null;
      if (isOpen) stack.push(...ended.toReversed());
      stack.push(...children.filter((child) => found?.has(child) ?? child.goesOn).toReversed());
    }
  }
  return lines;
}

/** What matches, and the parents of it, so that a child is never without its place; null: nothing is searched for. */
function findSessions(order: readonly TreeNode[], needle: string): Set<TreeNode> | null {
  if (needle === "") return null;
  const found = new Set<TreeNode>();
  for (const node of order.toReversed()) {
    const { row } = node.entry;
    const text = `${labelOf(node.entry)}\n${row.info.directory ?? ""}\n${row.id}`;
    if (text.toLowerCase().includes(needle)) found.add(node);
    if (node.parent !== null && found.has(node)) found.add(node.parent);
  }
  return found;
}
