/** The head of a session's page: what it is, how it stands, what it took. */

import { errorsHref, sessionHref } from "../address.ts";
import type { Cause, Need } from "../attention.ts";
import { deleteSession, getSessionText } from "../api.ts";
import { byId, confirmCopy, createList, setAttribute, setText } from "../dom.ts";
import { type TelemetryEvent, asText, errorText, isRecord, shownWhole } from "../events.ts";
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
  shortId,
} from "../format.ts";
import { type Rows, type SessionEntry, type Status, doingOf, labelOf, statusOf } from "../rows.ts";
import { countOf } from "../tree.ts";
import { contextOf } from "../turns.ts";
import { STATUS_WORDS, reasonOf } from "./sessions.ts";

/** Null: not known. */
interface Fact {
  key: string;
  value: string | null;
  title?: string | null;
  href?: string | undefined;
  /** Of a bar under it, from 0 to 1. */
  share?: number;
}

export function createSessionHead() {
  const section = byId("session-head", HTMLElement);
  const copyButton = byId("session-copy", HTMLButtonElement);
  const actions = byId("session-actions", HTMLSpanElement);
  const trace = byId("session-trace", HTMLAnchorElement);
  let openId = "";
  copyButton.addEventListener("click", () => void confirmCopy(copyButton, getSessionText(openId)));
  listenToDelete(() => openId);

  const showFacts = createList<Fact>("session-facts", "fact-row", (root, find) => {
    return ({ key, value, title, href, share }) => {
      setText(find("dt"), key);
      setText(find("a"), value ?? UNKNOWN, title ?? null);
      setAttribute(find("a"), "href", href ?? null);
      setAttribute(root, "data-bar", share !== undefined);
      root.style.setProperty("--share", String(share ?? 0));
    };
  });

  function showStatus(shown: Status | Cause): void {
    section.hidden = false;
    for (const element of [section, byId("session-dot", HTMLElement)])
      setAttribute(element, "data-status", shown);
  }

  return {
    hide(): void {
      section.hidden = true;
    },
    /** @param told its latest session_error is among them */
    show(
      rows: Rows,
      session: SessionEntry,
      told: readonly TelemetryEvent[],
      needs: readonly Need[],
      now: number,
    ): void {
      const { id, info } = session.row;
      openId = id;
      actions.hidden = false;
      setAttribute(trace, "href", `/api/sessions/${encodeURIComponent(id)}/trace.json`);
      setText("session-name", labelOf(session), id);
      setText("session-agent", asText(info.agent));
      const need = needs.find(({ session: { row } }) => rows.family.has(row.id));
      showStatus(need?.cause ?? statusOf(session));
      const below = need?.session === session ? undefined : need;
      const first =
        below && `${labelOf(below.session)}: ${below.text}, ${formatAge(now - below.since)}.`;
      setText("session-status", joined([first ?? null, statusSentence(rows, session, now)], " "));
      const failed = told.findLast(({ type }) => type !== "session_compacted");
      const reason = failed?.type === "session_error" ? errorText(failed.fields.error) : null;
      setText("session-error", reason && shownWhole(reason));
      showFacts(factsOf(rows, session, now));
    },
    /** The server doesn't have it. */
    showMissing(id: string): void {
      actions.hidden = true;
      setText("session-name", `No session ${shortId(id)}`);
      showStatus("stale");
      setText("session-status", "It may have been deleted after the retention time.");
      for (const id of ["session-agent", "session-error"]) setText(id, null);
      showFacts([]);
    },
  };
}

/** The button that deletes it, after a question. */
function listenToDelete(sessionId: () => string): void {
  const question = byId("delete", HTMLDivElement);
  const note = byId("delete-note", HTMLParagraphElement);
  const usual = note.textContent;
  question.addEventListener("toggle", () => setText(note, usual));
  byId("delete-confirm", HTMLButtonElement).addEventListener("click", async () => {
    const id = sessionId();
    try {
      await deleteSession(id); // the stream takes it out of the page
      question.hidePopover();
      if (sessionId() === id) location.hash = "#/";
    } catch (error) {
      setText(note, `It wasn't deleted: ${error instanceof Error ? error.message : String(error)}`);
    }
  });
}

function factsOf(rows: Rows, session: SessionEntry, now: number): Fact[] {
  const { row, startedAt } = session;
  const { model, directory } = row.info;
  const parent = rows.sessions.get(row.parent_session_id ?? "") ?? null;
  const context = contextOf(rows, row.id);
  const path = asText(directory);
  const since = formatMoment(startedAt, now);
  const errors = { own: row.error_count, total: countOf(rows, row.id, "error_count") };
  const withOwn = (format: (value: number | null) => string, { own, total }: typeof row.cost) =>
    joined([format(total), own === total || own === null ? null : `own ${format(own)}`]);
  const facts: (Fact | null)[] = [
    { key: "Worked", value: workedOf(session, now), title: `Since ${since}` },
    { key: "Cost", value: withOwn(formatCost, row.cost) },
    { key: "Tokens", value: withOwn(formatCompact, row.tokens) },
    context && {
      key: "Context",
      value: `${Math.round(context.share * 100)} % of ${formatCompact(context.limit)}`,
      title: `${formatCompact(context.used)} tokens`,
      share: context.share,
    },
    errors.total === 0
      ? null
      : {
          key: "Errors",
          value: withOwn(formatCount, errors),
          href: errors.own > 0 ? errorsHref(row.id) : undefined, // the others are among its calls
        },
    { key: "Model", value: asText(isRecord(model) ? (model.name ?? model.id ?? model) : model) },
    { key: "Directory", value: path?.split(/[\\/]/).slice(-2).join("/") ?? null, title: path },
    parent && { key: "Part of", value: labelOf(parent), href: sessionHref(parent.row.id) },
  ];
  return facts.filter((fact) => fact !== null);
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
