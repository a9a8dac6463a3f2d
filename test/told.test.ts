/** What the page tells a person who doesn't look, and how it is set, in a real Chromium. */

import { expect, setDefaultTimeout, test } from "bun:test";
import { call, openPage, post, setHidden, subscribers } from "./dashboard.ts";
import { hasChromium, startTestServer, waitFor } from "./helpers.ts";

setDefaultTimeout(20_000);

/** The browser's notifications as a list, and a day's cost. */
const BEFORE = `
  window.told = [];
  window.Notification = class extends EventTarget {
    static permission = "default";
    static async requestPermission() { return (this.permission = "granted"); }
    constructor(title, { body, tag }) { super(); told.push(Object.assign(this, { words: title + ": " + body, tag })); }
    close() {}
  };
  const ask = fetch;
  window.fetch = (path) => path.startsWith("/api/analytics/spend")
    ? Promise.resolve(new Response('{"spend":[{"day":"2026-01-01","cost":1.25}]}')) : ask(path);
`;

test.skipIf(!hasChromium)(
  "empty, then what needs the person, in the tab too; theme and keys",
  async () => {
    await using server = await startTestServer();
    using page = await openPage(server, { before: BEFORE });
    const shows = (selector: string, text: string) =>
      waitFor(async () => (await page.text(selector)) === text, `${selector}: ${text}`);

    // Three steps, each told when it is reached.
    await shows("#server-seen", `It answers at ${server.url}`);
    await shows("#plugin-seen", "Install it, then start OpenCode.");
    const say = (sender: string, version: string) =>
      fetch(`${server.url}/api/senders`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ sender, name: "opencode", version }),
      });
    await say("p", "99.1.0");
    await waitFor(
      async () =>
        /^Plugin seen (just now|\d s ago), opencode 99\.1\.0$/.test(
          (await page.text("#plugin-seen")) ?? "",
        ),
      "the plugin",
    );
    expect(await page.attribute("#step-plugin", "data-done")).toBe("true");

    // The theme is the person's, and is set before anything is seen.
    expect(await (await fetch(server.url)).text()).toContain('<script blocking="render"');
    const ground = () => page.run<string>("getComputedStyle(document.body).backgroundColor");
    const dark = await ground();
    await page.click("#theme");
    expect(await page.attribute("#theme", "aria-label")).toBe("Theme: light");
    expect(await ground()).not.toBe(dark);
    await page.goto("/?again");
    await waitFor(async () => (await page.attribute("body", "data-view")) === "empty", "the page");
    expect(await ground()).not.toBe(dark);
    await page.click("#theme");
    expect(await ground()).toBe(dark);

    // Who needs the person, in the header, the title and the icon.
    await waitFor(async () => (await subscribers(server)) === 1, "the stream");
    await page.click("#notify");
    await waitFor(
      async () => (await page.attribute("#notify", "aria-pressed")) === "true",
      "the bell",
    );
    const wait = (session_id: string, request_id: string) => ({
      type: "input_requested",
      session_id,
      data: {
        ...{ request_id, call_id: request_id, kind: "question" },
        detail: `Which one? ${"Of many ".repeat(40)}`,
      },
    });
    await post(server, [
      { type: "session_start", session_id: "top", data: { title: "At the top" } },
      {
        type: "session_start",
        session_id: "child",
        data: { title: "Look (@explore subagent)", parent_session_id: "top", agent: "explore" },
      },
      call("bash", {}, "other"),
      { type: "tool_start", session_id: "child", data: { tool: "question", call_id: "r" } },
      wait("child", "r"),
    ]);
    await waitFor(
      async () => (await page.run<string>("document.title")).startsWith("(1) "),
      "title",
    );
    expect(await page.attribute("link[rel=icon]", "href")).toContain("circle");
    expect(await page.text("#stat-needs-name")).toStartWith("Look, ");
    expect(await page.text("#stat-needs-text")).toStartWith("Asks: Which one? Of many");
    for (const width of [380, 720, 1440]) {
      const metrics = { width, height: 900, deviceScaleFactor: 1, mobile: false };
      await page.cdp("Emulation.setDeviceMetricsOverride", metrics);
      expect(
        await page.run<number>("document.documentElement.scrollWidth - innerWidth"),
      ).toBeLessThan(1);
      expect(await page.run<number>(`document.querySelector(".header").offsetHeight`)).toBeLessThan(
        100,
      );
    }
    await shows("#stat-cost", "$1.25");
    expect(await page.text("#old-plugin")).toBeNull();
    expect(await page.texts(".session-row h3:not([hidden])")).toEqual(["Attention 1", "Running 1"]);
    expect(await page.texts(".session-row .badge")).toEqual(["", "explore", ""]);

    // Keys.
    await page.press("?");
    await waitFor(async () => (await page.text("#keys")) !== null, "the keys");
    await page.press("Escape");
    await waitFor(async () => (await page.text("#keys")) === null, "no keys");
    await page.press("n");
    await waitFor(
      async () => (await page.run<string>("location.hash")) === "#/session/child",
      "it",
    );
    await waitFor(
      async () => (await page.texts(".turn .line-length")).join().startsWith("waits "),
      "the call that waits",
    );
    expect(await page.attribute(".turn .line .key", "class")).toContain("key-wait");
    const data = { tool: "question", call_id: "r", outcome: "cancelled" };
    await post(server, { type: "tool_use", session_id: "child", data });
    await waitFor(
      async () =>
        (await page.attribute(".turn .line .key", "class")) === "key key-other key-cancelled",
      "the call that is over, though its question is open",
    );
    // The page of the session that has sent it out says so first.
    await page.run(`location.hash = "#/session/top"`);
    await waitFor(
      async () =>
        /^Look: Asks: Which one\?.* Active /.test((await page.text("#session-status")) ?? ""),
      "what its agent asks",
    );
    expect(await page.attribute("#session-dot", "data-status")).toBe("waiting");
    expect(await page.attribute(".lane-label .dot", "data-status")).toBe("waiting");
    await page.run(`location.hash = "#/"`);
    await page.press("/");
    await page.press("n");
    expect(await page.run<string>("document.activeElement.value")).toBe("n");
    await page.press("Escape");
    await waitFor(async () => (await page.text("#search")) === null, "no search");

    // Nothing of what was shown is told, and each of what comes later once.
    await page.click("#connection");
    await shows("#connection-text", "Paused");
    await post(server, [
      wait("other", "q"),
      { type: "session_start", session_id: "broken", data: { title: "Broken" } },
      { type: "session_end", session_id: "broken", data: { reason: "error" } },
      { type: "session_end", session_id: "child" },
    ]);
    const told = () => page.run<string[]>("told.map(({ words }) => words).sort()");
    expect(await told()).toEqual([]);
    await setHidden(page, true);
    await waitFor(async () => (await told()).length === 3, "notifications");
    expect(await told()).toEqual([
      "At the top: All its agents are done",
      "Broken: Failed: no reason",
      expect.stringMatching(/^other: Asks: Which one\? Of many/),
    ]);
    expect(await page.run<string>("document.title")).toBe("(2) PAI Observability");
    await page.run(
      `told.find(({ tag }) => tag.startsWith("failed")).dispatchEvent(new Event("click"))`,
    );
    expect(await page.run<string>("location.hash")).toBe("#/session/broken");
    await post(server, [wait("later", "q")]);
    await page.run(
      `(() => { const since = performance.now.bind(performance); performance.now = () => since() + 20_000; })()`,
    );
    await waitFor(async () => (await told()).length > 3, "the next look");
    expect(await told()).toHaveLength(4);

    // An OpenCode whose plugin is older than the server.
    await say("old", "2.0.0");
    await setHidden(page, false);
    await page.click("#connection");
    await post(server, call("bash", {}, "other"));
    await waitFor(
      async () => (await page.text("#old-plugin"))?.includes("2.0.0 is older") ?? false,
      "the notice",
    );
    expect(page.problems).toEqual([]);
  },
);
