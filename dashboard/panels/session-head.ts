/** The head of a session's page: its name and its facts. */

import { errorsHref, sessionHref } from "../address.ts";
import { byId, confirmCopy, createList, part, setAttribute, setText } from "../dom.ts";
import { asText, isRecord, todosSummary } from "../events.ts";
import {
  UNKNOWN,
  formatAge,
  formatCompact,
  formatCost,
  formatCount,
  formatDuration,
  formatMoment,
  formatNoun,
  joined,
} from "../format.ts";
import { type Rows, type SessionEntry, doingOf, labelOf, shortId, statusOf } from "../rows.ts";
import { STATUS_WORDS } from "./sessions.ts";

/** Null: not known. */
interface Fact {
  term: string;
  value: string | null;
  href?: string | undefined;
}

export function createSessionHead({ copy }: { copy: (id: string) => Promise<string> }) {
  const section = byId("session-head", HTMLElement);
  const dot = byId("session-dot", HTMLSpanElement);
  const name = byId("session-name", HTMLHeadingElement);
  const copyButton = byId("session-copy", HTMLButtonElement);
  let openId = "";
  copyButton.addEventListener("click", () => void confirmCopy(copyButton, copy(openId)));

  const showFacts = createList<Fact>(
    "session-facts",
    "fact-row",
    ({ term }) => term,
    (root) => {
      const term = part(root, "dt", HTMLElement);
      const text = part(root, "span", HTMLElement);
      const link = part(root, "a", HTMLAnchorElement);
      return {
        root,
        update(fact) {
          const value = fact.value ?? UNKNOWN;
          setText(term, fact.term);
          setText(text, fact.href === undefined ? value : "");
          setText(link, fact.href === undefined ? "" : value);
          setAttribute(link, "href", fact.href ?? "");
          link.hidden = fact.href === undefined;
        },
      };
    },
  );

  return {
    hide(): void {
      section.hidden = true;
    },
    show(rows: Rows, session: SessionEntry, now: number): void {
      openId = session.row.id;
      section.hidden = false;
      copyButton.hidden = false;
      setText(name, labelOf(session));
      setAttribute(dot, "data-status", statusOf(session));
      showFacts(factsOf(rows, session, now));
    },
    /** The server doesn't have it. */
    showMissing(id: string): void {
      section.hidden = false;
      copyButton.hidden = true;
      setText(name, `No session ${shortId(id)}`);
      setAttribute(dot, "data-status", "stale");
      showFacts([{ term: "What now", value: "It may have been deleted after the retention time" }]);
    },
  };
}

function factsOf(rows: Rows, session: SessionEntry, now: number): Fact[] {
  const { row, startedAt } = session;
  const { agent, model, directory } = row.info;
  const parent = rows.sessions.get(row.parent_session_id ?? "");
  const facts: Fact[] = [
    { term: "Status", value: statusSentence(rows, session, now) },
    { term: "Started", value: formatMoment(startedAt, now) },
    { term: "Worked", value: workedOf(session, now) },
    { term: "Tools", value: formatCount(row.tool_count) },
    { term: "Agents", value: formatCount(row.agent_count) },
    {
      term: "Errors",
      value: formatCount(row.error_count),
      href: row.error_count === 0 ? undefined : errorsHref(row.id),
    },
    { term: "Tokens", value: formatCompact(row.tokens.total) },
    { term: "Cost", value: formatCost(row.cost.total) },
    { term: "Agent", value: asText(agent) },
    { term: "Model", value: asText(isRecord(model) ? (model.name ?? model.id ?? model) : model) },
    { term: "Directory", value: asText(directory) },
    { term: "Id", value: row.id },
  ];
  const more = { Todos: todosSummary(row.info.todos), Changes: changesOf(row.info) };
  for (const [term, value] of Object.entries(more)) if (value !== null) facts.push({ term, value });
  if (parent !== undefined)
    facts.push({ term: "Part of", value: labelOf(parent), href: sessionHref(parent.row.id) });
  return facts;
}

/** How its latest turn ended, where there is something to say. */
function reasonOf({ row: { status, info } }: SessionEntry): string | null {
  return status === "completed" && info.reason !== "completed" ? asText(info.reason) : null;
}

/** Without the pauses between its turns. */
function workedOf({ row, lastEventAt }: SessionEntry, now: number): string {
  const { worked_ms, working_since, turn_count } = row;
  const latest_ms = working_since === null ? 0 : Math.max(0, now - lastEventAt);
  const turns = turn_count === 0 ? null : formatNoun(turn_count, "turn");
  return joined([formatDuration(worked_ms + latest_ms), turns], " in ");
}

/** "2 files, +5 −1"; null: it has changed none. */
function changesOf({ changes }: Record<string, unknown>): string | null {
  if (!isRecord(changes) || typeof changes.files !== "number") return null;
  return `${formatNoun(changes.files, "file")}, +${asText(changes.additions)} −${asText(changes.deletions)}`;
}

function statusSentence(rows: Rows, session: SessionEntry, now: number): string {
  const { waiting_since, status, is_lost } = session.row;
  const doing = doingOf(rows, session, now);
  const does = doing === null ? null : joined([doing.text, doing.time], ", ");
  if (waiting_since !== null)
    return `Waits for you, ${formatAge(now - Date.parse(waiting_since))}. ${does ?? ""}`;
  return status === "stale" && !is_lost
    ? `Stale, silent for ${formatAge(now - session.lastEventAt)}`
    : joined([STATUS_WORDS[status], does ?? reasonOf(session)]);
}
