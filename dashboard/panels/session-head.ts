/** The head of a session's page: what it is, how it stands, what it took. */

import { hashOf, sessionHref } from "../address.ts";
import type { Cause, Need } from "../attention.ts";
import { get, sessionPath } from "../api.ts";
import { byId, createList, fill, set } from "../dom.ts";
import { type TelemetryEvent, asText, errorText, isRecord, shownWhole } from "../events.ts";
import {
  UNKNOWN,
  formatAge,
  formatAgo,
  formatCompact,
  formatCost,
  formatCount,
  formatDuration,
  formatMoment,
  formatNoun,
  joined,
  shortId,
  shortPath,
  wordOf,
} from "../format.ts";
import {
  type Rows,
  type SessionEntry,
  type Status,
  doingOf,
  isFailedSpan,
  labelOf,
  spansOf,
  statusOf,
} from "../rows.ts";
import { countOf } from "../tree.ts";
import { contextOf } from "../turns.ts";

/** How long the button says that it has copied. */
const CONFIRM_MS = 1_500;
const DELETE_QUESTION =
  "Delete this session and all below it from the server: events, figures, costs? There is no way back.";

type Fact = ReturnType<typeof factsOf>[number];

export function createSessionHead() {
  const section = byId("session-head", HTMLElement);
  const copyButton = byId("session-copy", HTMLButtonElement);
  let openId = "";
  copyButton.hidden = !isSecureContext; // only localhost and https have a clipboard
  copyButton.addEventListener("click", async () => {
    const asked = get(sessionPath(openId)).then((response) => response.text());
    const text = await asked.catch(() => null);
    if (text === null) return; // the stream says what is wrong
    const problem = await navigator.clipboard.writeText(text).catch(String);
    copyButton.textContent = problem ? "Not copied: press it again" : "Copied";
    setTimeout(() => (copyButton.textContent = "Copy as JSON"), CONFIRM_MS);
  });
  byId("session-delete", HTMLButtonElement).addEventListener("click", async () => {
    const id = openId;
    if (!confirm(DELETE_QUESTION)) return;
    const problem = await get(sessionPath(id), {}, "DELETE").then(() => null, String);
    if (problem) alert(`It wasn't deleted: ${problem}`);
    else if (openId === id) location.hash = "#/"; // the stream takes it out of the page
  });

  const showFacts = createList<Fact>("session-facts", "fact-row", (root) => {
    return ({ key, value, title = null, href = null, share }) => {
      fill(root, { dt: key, a: { text: value ?? UNKNOWN, title, href } });
      set(root, { "data-bar": share !== undefined, "--share": share ?? 0 });
    };
  });

  function show(status: Status | Cause, facts: Fact[], contents: Parameters<typeof fill>[1]): void {
    section.hidden = false;
    section.dataset.status = status;
    fill(section, { "#session-dot": { "data-status": status }, ...contents });
    showFacts(facts);
  }

  return {
    hide(): void {
      section.hidden = true;
    },
    /** @param told its latest session_error is among them */
    show(rows: Rows, session: SessionEntry, told: TelemetryEvent[], needs: Need[], now: number) {
      const { id, info } = session.row;
      openId = id;
      const need = needs.find((each) => rows.family.has(each.session.row.id));
      const latest = told.findLast(({ type }) => type !== "session_compacted");
      const model = spansOf(rows, id).model.findLast(isFailedSpan);
      const failed = statusOf(session) === "failed" ? (model?.row.error ?? null) : null;
      const reason = latest?.type === "session_error" ? errorText(latest.fields.error) : failed;
      show(need?.cause ?? statusOf(session), factsOf(rows, session, now), {
        "#session-name": { text: labelOf(session), title: id },
        "#session-agent": asText(info.agent),
        "#session-status": joined(
          [needSentence(need, session, now), statusSentence(rows, session, now)],
          " ",
        ),
        "#session-error": reason && shownWhole(reason),
        "#session-actions": { hidden: null },
        "#session-trace": { href: `${sessionPath(id)}/trace.json` },
      });
    },
    showMissing(id: string): void {
      show("stale", [], {
        "#session-name": `No session ${shortId(id)}`,
        "#session-agent": null,
        "#session-status": "It may have been deleted after the retention time.",
        "#session-error": null,
        "#session-actions": { hidden: true },
      });
    },
  };
}

function factsOf(rows: Rows, session: SessionEntry, now: number) {
  const { row, startedAt } = session;
  const { model, directory } = row.info;
  const parent = rows.sessions.get(row.parent_session_id ?? "") ?? null;
  const context = contextOf(rows, row.id);
  const path = asText(directory);
  const since = formatMoment(startedAt, now);
  const errors = { own: row.error_count, total: countOf(rows, row.id, "error_count") };
  const isItself = row.is_excused && errors.total === 0;
  const withOwn = (format: (value: number | null) => string, { own, total }: typeof row.cost) =>
    joined([format(total), own === total || own === null ? null : `own ${format(own)}`]);
  const facts = [
    { key: "Worked", value: workedOf(session, now), title: `Since ${since}` },
    { key: "Cost", value: withOwn(formatCost, row.cost) },
    { key: "Tokens", value: withOwn(formatCompact, row.tokens) },
    context && {
      key: "Context",
      value: `${Math.round(context.share * 100)} % of ${formatCompact(context.limit)}`,
      title: `${formatCompact(context.used)} tokens`,
      share: context.share, // of a bar under it
    },
    {
      key: "Errors",
      value: isItself ? "its own failure" : withOwn(formatCount, errors),
      title: isItself ? "Counted as that of the call that sent it out" : null,
      href: isItself || errors.total > 0 ? hashOf({ sessionId: row.id, tab: "errors" }) : null,
    },
    { key: "Model", value: asText(isRecord(model) ? (model.name ?? model.id ?? model) : model) },
    { key: "Directory", value: path && shortPath(path), title: path },
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

/** How its latest turn ended, where its status doesn't say it. */
export function reasonOf(session: SessionEntry): string | null {
  const { reason } = session.row.info;
  return statusOf(session) === "completed" && reason !== "completed" ? asText(reason) : null;
}

export const statusWord = (status: Status | Cause) =>
  status === "completed" ? "Done" : wordOf(status);

/** That it is slow, or what one below it needs; null: the status tells it. */
function needSentence(need: Need | undefined, session: SessionEntry, now: number): string | null {
  const isOwn = need?.session === session;
  if (need === undefined || (isOwn && need.cause !== "silent")) return null;
  const what = joined([isOwn ? null : labelOf(need.session), need.text], ": ");
  return `${what}, ${formatAge(now - need.since)}.`;
}

function statusSentence(rows: Rows, session: SessionEntry, now: number): string {
  const { waiting_since, working_since, last_event_at, status, is_lost } = session.row;
  const doing = doingOf(rows, session, now);
  const does = doing === null ? null : joined([doing.text, doing.time], ", ");
  const sinceMs = now - Date.parse(waiting_since ?? working_since ?? last_event_at);
  const age = formatAge(sinceMs);
  if (waiting_since !== null) return `Waits for you, ${age}. ${does ?? ""}`;
  if (status === "stale") return is_lost ? (does ?? "Lost contact") : `Stale, silent for ${age}`;
  const since = working_since !== null ? `for ${age}` : formatAgo(sinceMs);
  return joined([`${statusWord(statusOf(session))} ${since}`, does ?? reasonOf(session)]);
}
