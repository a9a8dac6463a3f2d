/** The tabs of a browser, which share one stream: in a real Chromium, against the real server. */

import { describe, expect, test } from "bun:test";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { type Page, call, openPage, post, setHidden, subscribers } from "./dashboard.ts";
import { hasChromium, postEvent, startTestServer, waitFor as waitForWithin } from "./helpers.ts";

/** Eight pages side by side, beside other tests: a deadline, not a promise. */
const waitFor = (condition: () => boolean | Promise<boolean>, what: string, timeoutMs = 20_000) =>
  waitForWithin(condition, what, timeoutMs);

describe.skipIf(!hasChromium)("tabs", () => {
  // Each of these is the only one with its server: tabs of one address share a stream. The first leaves
  // its eight tabs to the others.

  const names = async (page: Page) => (await page.texts(".line-name")).toReversed().join();
  const numbers = (count: number) => Array.from({ length: count }, (_, index) => index).join();
  const isLive = async (page: Page) => (await page.text("#connection-text")) === "Live";
  const openLive = async (...of: Parameters<typeof openPage>) => {
    const page = await openPage(...of);
    await waitFor(() => isLive(page), "the tab to be live");
    return page;
  };

  test("eight tabs share one stream; the next takes it over, none misses an event, and another database each loads anew", async () => {
    await using fresh = await startTestServer();
    await post(fresh, call("0"));
    const pages = await Promise.all(
      Array.from({ length: 8 }, () => openPage(fresh, { width: 800 })),
    );
    const all = (condition: (page: Page) => Promise<boolean>, what: string) =>
      Promise.all(
        pages.map((page, tab) => waitFor(() => condition(page), `${what} in tab ${tab}`, 15_000)),
      );
    await all(isLive, "the stream");
    await post(fresh, call("1"));
    await all(async (page) => (await names(page)) === "0,1", "the new event");
    expect(await subscribers(fresh)).toBe(1);
    const answers = await Promise.all(
      pages.map((page) => page.run<number>(`fetch("/health").then(({ status }) => status)`)),
    );
    expect(answers).toEqual(pages.map(() => 200));
    for (const page of pages.splice(0, 3)) page[Symbol.dispose]();

    // While events come, the one that has the stream is closed, hidden, paused.
    let count = 2;
    const during = async (what: string, act: () => unknown) => {
      const acted = act();
      for (const end = count + 5; count < end; count++) await post(fresh, call(String(count)));
      await acted;
      await all(async (page) => (await names(page)) === numbers(count), what);
    };
    const last = pages.pop();
    if (last === undefined) throw new Error("eight tabs");
    await during("what came while one that followed was hidden", () => setHidden(last, true));
    pages.push(last);
    await during("what came when it was shown, and took over", () => setHidden(last, false));
    pages.pop();
    await during("what came when it was closed", () => last[Symbol.dispose]());
    const [hidden, paused] = pages.splice(1, 2);
    if (hidden === undefined || paused === undefined) throw new Error("two more tabs");
    await during("what came when the next was hidden", () => setHidden(hidden, true));
    await during("what came when the one after that was paused", () => paused.click("#connection"));
    pages.push(hidden, paused);
    await during("what came when both were back", async () => {
      await setHidden(hidden, false);
      await paused.click("#connection");
    });
    await all(async (page) => (await page.text(".session-meta")) === `${count} tools`, "counts");
    await waitFor(async () => (await subscribers(fresh)) === 1, "one stream");

    await fresh.stop();
    for (const suffix of ["", "-wal", "-shm"])
      rmSync(join(fresh.dataDir, `observability.db${suffix}`), { force: true });
    await fresh.restart();
    await post(fresh, call("new", {}, "after"));
    await all(async (page) => (await names(page)) === "new", "the new one only");
    await all(
      async (page) => (await page.texts(".session-label")).join() === "after",
      "its session only",
    );
    await waitFor(async () => (await subscribers(fresh)) === 1, "one stream");
    for (const page of pages) {
      expect(page.problems).toEqual([]);
      page[Symbol.dispose]();
    }
  }, 60_000);

  test.concurrent(
    "a tab that hangs with the stream loses it to another",
    async () => {
      await using fresh = await startTestServer();
      await post(fresh, call("0"));
      using first = await openLive(fresh);
      using second = await openLive(fresh);
      await first.cdp("Debugger.enable");
      const hung = first.run("(() => { debugger; })()");
      await post(fresh, call("1"));
      await waitFor(async () => (await names(second)) === "0,1", "the event");
      await first.cdp("Debugger.disable");
      await hung;
      // What a tab says that doesn't know yet that it no longer leads.
      const late = { ...call("late"), id: 9e15, timestamp: new Date().toISOString(), tool: "late" };
      const frames = [{ type: "tool_use", id: 1, data: JSON.stringify(late) }];
      const said = { term: 1, connection: { state: "live" }, from: 0, frames };
      await first.run(`new BroadcastChannel("event-stream").postMessage(${JSON.stringify(said)})`);
      await post(fresh, call("2"));
      for (const page of [first, second])
        await waitFor(async () => (await names(page)) === "0,1,2", "both to go on");
      await waitFor(async () => (await subscribers(fresh)) === 1, "one stream");
    },
    60_000,
  );

  test.concurrent(
    "a tab that has missed something goes on from its own last event",
    async () => {
      await using fresh = await startTestServer();
      await post(fresh, call("0"));
      const leader = await openLive(fresh);
      using next = await openLive(fresh);
      using deaf = await openLive(fresh, {
        before: `BroadcastChannel.prototype.addEventListener = function (type, heard) {
        EventTarget.prototype.addEventListener.call(this, type, (event) => window.isDeaf || heard(event));
      }`,
      });
      await deaf.run("window.isDeaf = true");
      for (const tool of ["1", "2", "3"]) {
        await post(fresh, call(tool));
        await waitFor(async () => (await names(next)).endsWith(tool), "each by itself");
      }
      await deaf.run("window.isDeaf = false");
      leader[Symbol.dispose]();
      await waitFor(async () => (await names(deaf)) === "0,1,2,3", "what it has missed");
      await post(fresh, call("4"));
      for (const page of [next, deaf])
        await waitFor(async () => (await names(page)) === "0,1,2,3,4", "both to go on");
      await waitFor(async () => (await subscribers(fresh)) === 1, "one stream");
    },
    60_000,
  );

  test("what comes while a tab loads is there once it has loaded", async () => {
    await using fresh = await startTestServer();
    await post(fresh, call("0"));
    using _ = await openLive(fresh);
    // Between the first answer, which says up to where the others go, and what it does with it.
    const before = `{
      const ask = fetch;
      let isPosted = false;
      window.fetch = async (...asked) => {
        const answer = await ask(...asked);
        if (isPosted) return answer;
        isPosted = true;
        const heard = new Promise((resolve) =>
          new BroadcastChannel("event-stream").addEventListener("message", ({ data }) =>
            JSON.stringify(data?.frames ?? "").includes("tool_use") && resolve()));
        const headers = { "Content-Type": "application/json" };
        const body = ${JSON.stringify(JSON.stringify(call("1")))};
        await ask("/api/events", { method: "POST", headers, body });
        await heard;
        return answer;
      };
    }`;
    using second = await openPage(fresh, { before });
    await waitFor(async () => (await names(second)) === "0,1", "the event");
    await waitFor(async () => (await second.text(".session-meta")) === "2 tools", "the count");
  }, 60_000);

  test.each([
    ["without locks", "delete Navigator.prototype.locks"], // as on http:// and a name that is not loopback
    [
      "whose locks are forbidden", // as where the browser keeps nothing for sites
      `LockManager.prototype.request = () => Promise.reject(new DOMException("", "SecurityError"))`,
    ],
  ])(
    "tabs %s have a stream each",
    async (_, before) => {
      await using fresh = await startTestServer();
      await post(fresh, call("0"));
      const counted = `${before}; window.streams = 0; window.EventSource = class extends EventSource {
        constructor(url) { super(url); window.streams++; }
      }`;
      using first = await openPage(fresh, { before: counted });
      using second = await openPage(fresh, { before: counted });
      await waitFor(async () => (await subscribers(fresh)) === 2, "two streams");
      for (const tool of ["1", "2", "3"]) {
        await post(fresh, call(tool));
        for (const page of [first, second])
          await waitFor(async () => (await names(page)).endsWith(tool), "the event");
      }
      for (const page of [first, second]) expect(await page.run<number>("window.streams")).toBe(1);
    },
    60_000,
  );

  test("an EventSource of the browser's own resumes across a restart of the server", async () => {
    await using fresh = await startTestServer();
    using page = await openPage(fresh, { path: "/health" });
    await page.run(`new Promise((resolve) => {
      window.seen = [];
      const source = new EventSource("/api/events/stream");
      source.addEventListener("tool_use", (event) => seen.push(Number(event.lastEventId)));
      source.addEventListener("reset", () => seen.push("reset"));
      source.onopen = resolve;
    })`);
    const posted: number[] = [];
    const postCalls = async (count: number) => {
      const { body } = await postEvent(fresh, Array(count).fill(call("bash")));
      posted.push(...(body.ids ?? []));
    };
    const seen = () => page.run<(number | "reset")[]>("seen");
    await postCalls(30);
    await fresh.stop();
    await fresh.restart();
    await postCalls(30);
    await waitFor(async () => (await seen()).length >= 60, "what the browser missed");
    await postCalls(1);
    await waitFor(async () => (await seen()).length >= 61, "the live event");
    expect(await seen()).toEqual(posted);
  }, 15_000);
});
