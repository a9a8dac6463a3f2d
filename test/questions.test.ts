/**
 * Five questions to the page, about a run that was prepared: where the answers stand, and how many
 * clicks away. The seconds are printed: they are the page's own, a person adds those for reading.
 */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { openPage, type Page, postAll } from "./dashboard.ts";
import type { PostedEvent } from "./fixtures.ts";
import { hasChromium, startTestServer, type TestServer, waitFor } from "./helpers.ts";

setDefaultTimeout(20_000);

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;

describe.skipIf(!hasChromium)("five questions", () => {
  let server: TestServer;
  const pages: Page[] = [];
  let isClicked = false;

  beforeAll(async () => {
    server = await startTestServer();
    await postAll(server, preparedRun(Date.now()));
    for (const width of [1440, 380]) pages.push(await openPage(server, { width, height: 800 }));
  });

  afterAll(async () => {
    for (const page of pages) page[Symbol.dispose]();
    await server[Symbol.asyncDispose]();
  });

  test.each<[question: string, clicks: string[], answer: RegExp]>([
    ["Which agent is stuck?", [], /Run long tests.*Slow, usually under 4\.\d s: bash/],
    ["What is it doing right now?", [], /Run long tests.*bash: bun test/],
    ["What is the other one doing?", [], /Find the callers.*grep: importOrders/],
    ["What did today cost?", [], /Cost today ?\$0\.\d\d/],
    ["What did it cost?", ["Rewrite the importer"], /Cost\D*\$0\.28/],
    ["What failed, and why?", [], /Deploy to staging.*Failed: Insufficient quota/],
    ["Why exactly?", ["Deploy to staging"], /Insufficient quota: add credit to project 4711/],
    ["What did it change?", ["Rewrite the importer", "Files"], /src\/import\.ts\D*\+40\D*−3/],
  ])("%s", async (question, clicks, answer) => {
    for (const page of pages) {
      // The same page, but where the last question left it as it was.
      const askedAt = isClicked
        ? await page.run<number>(`location.hash = "#/", performance.now()`)
        : 0;
      for (const words of clicks) await clickOn(page, words);
      const width = await page.run<number>("innerWidth");
      await waitFor(() => isSeen(page, answer), `${answer} at ${width} px`);
      const ms = (await page.run<number>("performance.now()")) - askedAt;
      console.log(
        `${question} ${width} px: ${clicks.length} clicks, ${Math.round(ms)} ms from the start`,
      );
      expect(page.problems).toEqual([]);
    }
    isClicked = clicks.length > 0;
  });
});

/** Whether an element with that text is wholly in view, without scrolling. */
const isSeen = (page: Page, text: RegExp) =>
  page.run<boolean>(
    `[...document.querySelectorAll("body *:not(script, canvas *)")].some((e) => {
      const { top, left, bottom, right } = e.getBoundingClientRect();
      const isIn = top >= 0 && left >= 0 && bottom <= innerHeight && right <= innerWidth;
      return isIn && e.checkVisibility() && ${text}.test(e.textContent.replace(/\\s+/g, " "));
    })`,
  );

/** Clicks on the first link or label that begins with `words` and is in view. */
async function clickOn(page: Page, words: string): Promise<void> {
  const isClicked = `(() => {
    const found = [...document.querySelectorAll("a, label, button")].find((e) =>
      e.checkVisibility() && e.textContent.trim().startsWith(${JSON.stringify(words)}) &&
      e.getBoundingClientRect().bottom <= innerHeight);
    found?.click();
    return found !== undefined;
  })()`;
  await waitFor(() => page.run<boolean>(isClicked), `“${words}” to click on`);
}

/** A run with three agents, of which one is stuck and one is done, beside one that has failed. */
function preparedRun(now: number): PostedEvent[] {
  const event = (agoMs: number, session_id: string, type: string, data: object): PostedEvent => ({
    type,
    session_id,
    timestamp: now - agoMs,
    data: { ...data },
  });
  const answer = (agoMs: number, id: string, cost: number) =>
    event(agoMs, id, "model_response", {
      ...{ call_id: `${id}-m`, model: "mock", cost, duration_ms: 2_000 },
      tokens: { input: 1_000, output: 100 },
    });
  const agent = (agoMs: number, id: string, description: string, subagent_type: string) => [
    event(agoMs, "main", "agent_spawn", {
      ...{ call_id: id, child_session_id: id, description, subagent_type },
    }),
    event(agoMs, id, "session_start", {
      ...{ parent_session_id: "main", title: `${description} (@${subagent_type} subagent)` },
      ...{ directory: "/home/me/shop", agent: subagent_type },
    }),
  ];
  return [
    // What is usual: a command takes some seconds.
    ...Array.from({ length: 40 }, (_, index) =>
      event(20 * MINUTE_MS + index * SECOND_MS, "earlier", "tool_use", {
        ...{ tool: "bash", call_id: `earlier-${index}`, duration_ms: 1_000 + index * 80 },
      }),
    ),
    event(19 * MINUTE_MS, "earlier", "session_end", { reason: "completed" }),
    event(16 * MINUTE_MS, "main", "session_start", {
      ...{ title: "Rewrite the importer", directory: "/home/me/shop", agent: "build" },
    }),
    event(16 * MINUTE_MS, "main", "turn_start", { prompt: "Rewrite the importer" }),
    answer(15.5 * MINUTE_MS, "main", 0.05),
    ...agent(15 * MINUTE_MS, "tests", "Run long tests", "general"),
    answer(14.5 * MINUTE_MS, "tests", 0.01),
    event(14 * MINUTE_MS, "tests", "tool_start", {
      ...{ tool: "bash", call_id: "long", args: { command: "bun test --all" } },
    }),
    ...agent(12 * MINUTE_MS, "parser", "Fix the parser", "general"),
    answer(11 * MINUTE_MS, "parser", 0.2),
    event(10 * MINUTE_MS, "parser", "tool_use", {
      ...{ tool: "edit", call_id: "edit", duration_ms: 12 },
      files: [{ path: "/home/me/shop/src/import.ts", additions: 40, deletions: 3 }],
    }),
    event(9 * MINUTE_MS, "main", "agent_complete", { call_id: "parser", success: true }),
    event(9 * MINUTE_MS, "parser", "session_end", { reason: "completed" }),
    ...agent(MINUTE_MS, "callers", "Find the callers", "explore"),
    answer(30 * SECOND_MS, "callers", 0.02),
    event(2 * SECOND_MS, "callers", "tool_start", {
      ...{ tool: "grep", call_id: "grep", args: { pattern: "importOrders" } },
    }),
    event(8 * MINUTE_MS, "deploy", "session_start", {
      ...{ title: "Deploy to staging", directory: "/home/me/shop" },
    }),
    event(7 * MINUTE_MS, "deploy", "model_response", {
      ...{ call_id: "refused", model: "mock", cost: 0.5, outcome: "failed", duration_ms: 900 },
      error: "Insufficient quota: add credit to project 4711",
    }),
    event(7 * MINUTE_MS, "deploy", "session_end", { reason: "error" }),
  ];
}
