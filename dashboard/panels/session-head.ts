/** The head of a session's page: what it is, how it stands, what it took. */

import { errorsHref, sessionHref } from "../address.ts";
import { byId, confirmCopy, createList, part, setAttribute, setText } from "../dom.ts";
import { type TelemetryEvent, asText, errorText, isRecord, shownWhole } from "../events.ts";
import {
  UNKNOWN,
  formatAge,
  formatCompact,
  formatCost,
  formatDuration,
  formatMoment,
  formatNoun,
  joined,
} from "../format.ts";
import { type Rows, type SessionEntry, doingOf, labelOf, shortId, statusOf } from "../rows.ts";
import { contextOf } from "../turns.ts";
import { STATUS_WORDS } from "./sessions.ts";

/** Null: not known. */
interface Fact {
  term: string;
  value: string | null;
  title?: string | null;
  href?: string | undefined;
  /** Of a bar under it, from 0 to 1. */
  share?: number;
}

export function createSessionHead({ copy }: { copy: (id: string) => Promise<string> }) {
  const section = byId("session-head", HTMLElement);
  const dot = byId("session-dot", HTMLSpanElement);
  const name = byId("session-name", HTMLHeadingElement);
  const agent = byId("session-agent", HTMLSpanElement);
  const status = byId("session-status", HTMLParagraphElement);
  const error = byId("session-error", HTMLPreElement);
  const copyButton = byId("session-copy", HTMLButtonElement);
  const trace = byId("session-trace", HTMLAnchorElement);
  let openId = "";
  copyButton.addEventListener("click", () => void confirmCopy(copyButton, copy(openId)));

  const showFacts = createList<Fact>(
    "session-facts",
    "fact-row",
    ({ term }) => term,
    (root) => {
      const term = part(root, "dt", HTMLElement);
      const link = part(root, "a", HTMLAnchorElement);
      return {
        root,
        update({ term: named, value, title, href, share }) {
          setText(term, named);
          setText(link, value ?? UNKNOWN);
          setAttribute(link, "title", title ?? "");
          if (href === undefined) link.removeAttribute("href");
          else setAttribute(link, "href", href);
          setAttribute(root, "data-bar", String(share !== undefined));
          root.style.setProperty("--share", String(share ?? 0));
        },
      };
    },
  );

  return {
    hide(): void {
      section.hidden = true;
    },
    /** @param told its latest session_error is among them */
    show(rows: Rows, session: SessionEntry, told: readonly TelemetryEvent[], now: number): void {
      const { id, info } = session.row;
      openId = id;
      section.hidden = false;
      copyButton.hidden = trace.hidden = false;
      setAttribute(trace, "href", `/api/sessions/${encodeURIComponent(id)}/trace.json`);
      setText(name, labelOf(session));
      setAttribute(name, "title", id);
      setText(agent, asText(info.agent) ?? "");
      setAttribute(dot, "data-status", statusOf(session));
      setAttribute(section, "data-status", statusOf(session));
      setText(status, statusSentence(rows, session, now));
      const failed = told.findLast(({ type }) => type !== "session_compacted");
      const reason = failed?.type === "session_error" ? errorText(failed.fields.error) : null;
      setText(error, shownWhole(reason ?? ""));
      error.hidden = reason === null;
      showFacts(factsOf(rows, session, now));
    },
    /** The server doesn't have it. */
    showMissing(id: string): void {
      section.hidden = false;
      copyButton.hidden = trace.hidden = error.hidden = true;
      setText(name, `No session ${shortId(id)}`);
      setText(agent, "");
      setAttribute(dot, "data-status", "stale");
      setText(status, "It may have been deleted after the retention time.");
      showFacts([]);
    },
  };
}

function factsOf(rows: Rows, session: SessionEntry, now: number): Fact[] {
  const { row, startedAt } = session;
  const { model, directory } = row.info;
  const parent = rows.sessions.get(row.parent_session_id ?? "");
  const context = contextOf(rows, row.id);
  const path = asText(directory);
  const withOwn = (format: (value: number | null) => string, { own, total }: typeof row.cost) =>
    joined([format(total), own === total || own === null ? null : `own ${format(own)}`]);
  const facts: Fact[] = [
    {
      term: "Worked",
      value: workedOf(session, now),
      title: `Since ${formatMoment(startedAt, now)}`,
    },
    { term: "Cost", value: withOwn(formatCost, row.cost) },
    { term: "Tokens", value: withOwn(formatCompact, row.tokens) },
  ];
  if (context !== null) {
    const share = Math.min(1, context.used / context.limit);
    const value = `${Math.round(share * 100)} % of ${formatCompact(context.limit)}`;
    facts.push({ term: "Context", value, title: `${formatCompact(context.used)} tokens`, share });
  }
  if (row.error_count > 0)
    facts.push({ term: "Errors", value: String(row.error_count), href: errorsHref(row.id) });
  facts.push(
    { term: "Model", value: asText(isRecord(model) ? (model.name ?? model.id ?? model) : model) },
    { term: "Directory", value: path?.split(/[\\/]/).slice(-2).join("/") ?? null, title: path },
  );
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

function statusSentence(rows: Rows, session: SessionEntry, now: number): string {
  const { waiting_since, working_since, status, is_lost } = session.row;
  const doing = doingOf(rows, session, now);
  const does = doing === null ? null : joined([doing.text, doing.time], ", ");
  const age = formatAge(
    now - Date.parse(waiting_since ?? working_since ?? session.row.last_event_at),
  );
  if (waiting_since !== null) return `Waits for you, ${age}. ${does ?? ""}`;
  if (status === "stale") return is_lost ? (does ?? "Lost contact") : `Stale, silent for ${age}`;
  const since = working_since !== null ? `for ${age}` : age === "now" ? "just now" : `${age} ago`;
  return joined([`${STATUS_WORDS[status]} ${since}`, does ?? reasonOf(session)]);
}
