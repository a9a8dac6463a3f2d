/**
 * Which session is below which: one tree for a revision of the sessions, built without recursion in
 * O(n log n), because a chain of parents may be as long as the list.
 */

import type { Need } from "./attention.ts";
import { formatCount } from "./format.ts";
import { type Rows, type SessionEntry, isLive, labelOf } from "./rows.ts";

export interface TreeNode {
  entry: SessionEntry;
  /** null: it has none that is known. A circle of parents is cut above the one that started first. */
  parent: TreeNode | null;
  /** What goes on first, then what started later. */
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

export interface Tree {
  /** Parents before their children, in the order of the timeline. */
  order: TreeNode[];
  /** In the order of the list: latest activity first. */
  roots: TreeNode[];
  /** By their session's id. */
  nodes: Map<string, TreeNode>;
  /** By the id of their parent, known or not. */
  byParent: Map<string | null, TreeNode[]>;
}

const trees = new WeakMap<Rows, { revision: number; tree: Tree }>();

export function treeOf(rows: Rows): Tree {
  let built = trees.get(rows);
  if (built?.revision !== rows.sessionsRevision) {
    built = { revision: rows.sessionsRevision, tree: buildTree(rows) };
    trees.set(rows, built);
  }
  return built.tree;
}

function buildTree(rows: Rows): Tree {
  const nodes = new Map<string, TreeNode>();
  for (const [id, entry] of rows.sessions) {
    const { error_count, tool_count } = entry.row;
    const below = { error_count, tool_count, latest: entry.lastEventAt, goesOn: isLive(entry) };
    nodes.set(id, { entry, parent: null, children: [], depth: 0, ...below });
  }
  const parentOf = ({ entry }: TreeNode) => entry.row.parent_session_id;
  for (const node of nodes.values()) node.parent = nodes.get(parentOf(node) ?? "") ?? null;
  cutCircles([...nodes.values()]);
  const tops: TreeNode[] = [];
  for (const node of nodes.values()) (node.parent?.children ?? tops).push(node);
  const order = preorder(tops);
  for (const { parent, error_count, tool_count, latest, goesOn } of order.toReversed())
    if (parent !== null) {
      parent.error_count += error_count;
      parent.tool_count += tool_count;
      parent.latest = Math.max(parent.latest, latest);
      parent.goesOn ||= goesOn;
    }
  const roots = tops.toSorted((a, b) => b.latest - a.latest || byId(a, b));
  return { order, roots, nodes, byParent: Map.groupBy(order, parentOf) };
}

function cutCircles(nodes: readonly TreeNode[]): void {
  /** By which walk up its parents a node was first met. */
  const walks = new Map<TreeNode, TreeNode>();
  for (const start of nodes) {
    let at: TreeNode | null = start;
    for (; at !== null && !walks.has(at); at = at.parent) walks.set(at, start);
    if (at === null || walks.get(at) !== start) continue;
    let first = at;
    for (let next = at.parent; next !== null && next !== at; next = next.parent)
      if (byStart(next, first) < 0) first = next;
    first.parent = null;
  }
}

const byId = (a: TreeNode, b: TreeNode) => (a.entry.row.id < b.entry.row.id ? -1 : 1);

function byStart(a: TreeNode, b: TreeNode): number {
  return a.entry.startedAt - b.entry.startedAt || byId(a, b);
}

function preorder(tops: TreeNode[]): TreeNode[] {
  const byLife = (a: TreeNode, b: TreeNode) =>
    Number(isLive(b.entry)) - Number(isLive(a.entry)) || byStart(b, a);
  const order: TreeNode[] = [];
  const stack = tops.sort(byLife).toReversed();
  for (let node = stack.pop(); node !== undefined; node = stack.pop()) {
    order.push(node);
    node.depth = node.parent === null ? 0 : node.parent.depth + 1;
    stack.push(...node.children.sort(byLife).toReversed());
  }
  return order;
}

/** A session and all below it, also where they are in a circle. */
export function familyOf(rows: Rows, id: string): Set<string> {
  const { byParent } = treeOf(rows);
  const family = new Set([id]);
  for (const member of family)
    // a set's loop takes in what is added meanwhile
    for (const { entry } of byParent.get(member) ?? []) family.add(entry.row.id);
  return family;
}

/** Of a session and all below it: one cause is one error, the server sees to that. */
export function countOf(rows: Rows, id: string, of: "error_count" | "tool_count"): number {
  return treeOf(rows).nodes.get(id)?.[of] ?? 0;
}

// ─── The list of sessions ────────────────────────────────────────────────────

/** A session in the list. */
export interface ListLine {
  session: SessionEntry;
  /** The head of the group that it is the first of: "Running 3" */
  group: string | null;
  depth: number;
  /** Why it, or one below it, needs the person. */
  need: Need | undefined;
  /** Its children that have ended are folded away, unless `isOpen`. */
  endedCount: number;
  isOpen: boolean;
}

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
): ListLine[] {
  const found = findSessions(order, text.trim().toLowerCase());
  // Of a session at the top, the most urgent here and below.
  const needOf = new Map<SessionEntry, Need>();
  for (const need of needs.toReversed()) needOf.set(need.session, need).set(need.root.entry, need);
  const urgent = new Set(needs.map(({ root }) => root));
  const others = roots.filter((root) => !urgent.has(root));
  const groups = {
    Attention: [...urgent],
    Running: others.filter(({ goesOn }) => goesOn),
    Ended: others.filter(({ goesOn }) => !goesOn),
  };
  const lines: ListLine[] = [];
  for (const [name, members] of Object.entries(groups)) {
    const stack = members.filter((node) => found?.has(node) ?? true).toReversed();
    let group: string | null = `${name} ${formatCount(stack.length)}`;
    for (let node = stack.pop(); node !== undefined; node = stack.pop()) {
      const { entry: session, depth, children } = node;
      const ended = found === null ? children.filter(({ goesOn }) => !goesOn) : [];
      const isOpen = open.has(session.row.id);
      const need = needOf.get(session);
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
