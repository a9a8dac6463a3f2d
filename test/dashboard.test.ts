/**
 * The dashboard in a real Chromium, against the real server.
 *
 *     bun test test/dashboard.test.ts
 *     SOAK=1 bun test test/dashboard.test.ts    with the load for its full 30 s
 *
 * Skipped, with the reason, where there is no Chromium; with CI=true that is a failure.
 */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { shown } from "../dashboard/dom.ts";
import {
  type Page,
  bars,
  call,
  factsOf,
  openPage,
  post,
  postAll,
  setHidden,
  subscribers,
} from "./dashboard.ts";
import { type PostedEvent, openCodeHooks, sessionEvents } from "./fixtures.ts";
import {
  getJson,
  hasChromium,
  isSoak,
  spawnServer,
  startTestServer,
  tempDir,
  type TestServer,
  waitFor,
} from "./helpers.ts";

/** Only the soak holds the page to its times: by default the machine may be busy with other things. */
const SLACK = isSoak ? 1 : 4;
const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
/** A frame longer than this is seen as a stutter. */
const MAX_FRAME_MS = 50;
const MAX_HEAP_BYTES = 100 * 1024 * 1024;

setDefaultTimeout(isSoak ? 90_000 : 20_000);

// ─── Tests ───────────────────────────────────────────────────────────────────

test.each([
  ["ls \u202e/ fr- mr", "ls \\u202E/ fr- mr"],
  ["a\u200bb\u200cc\u200dd\ufeffe\u00ad", "a\\u200Bb\\u200Cc\\u200Dd\\uFEFFe\\u00AD"],
  ["\u0000\u001b[31m\u0085\r!", "\\u0000\\u001B[31m\\u0085\\u000D!"],
  [
    "\u2066\u2069\u200e\u200f\u061c\u2028\u2029",
    "\\u2066\\u2069\\u200E\\u200F\\u061C\\u2028\\u2029",
  ],
  ["ok\u{e0041}\ufe0f", "ok\\u{E0041}\\uFE0F"],
])("shown → what hides or turns round as its number: %#", (text, expected) => {
  expect(shown(text)).toBe(expected);
});

test.each([
  "one\ttwo\r\nthree",
  "مرحبا بالعالم ١٢",
  "שלום עולם",
  "می\u200cخواهم, क्\u200dष",
  "👩\u200d💻 👩🏽\u200d💻 🏳\ufe0f\u200d🌈 1\ufe0f⃣ ❤\ufe0f",
  "\u{1f3f4}\u{e0067}\u{e0062}\u{e0077}\u{e006c}\u{e0073}\u{e007f}",
  "葛\u{e0100} 한국어 日本語 ไทย é",
])("shown → ordinary text as it is: %#", (text) => {
  expect(shown(text)).toBe(text);
});

describe.skipIf(!hasChromium)("the dashboard", () => {
  let server: TestServer;
  let shared: Page | undefined;

  /** One page of `server` for the tests that can go on from where another left it. */
  const openOverview = async (): Promise<Page> => {
    shared ??= await openPage(server);
    await shared.run(`void (location.hash = "#/")`);
    await waitFor(
      async () => (await shared?.attribute("body", "data-view")) === "overview",
      "the overview",
    );
    return shared;
  };

  beforeAll(async () => {
    server = await startTestServer();
    const from = Date.now() - 2 * MINUTE_MS;
    await post(server, [
      ...sessionEvents("first", { seed: 1, from }),
      ...sessionEvents("second", { seed: 2, from: from + 10 * SECOND_MS }),
      {
        type: "session_start",
        session_id: "child",
        data: { title: "Look around", parent_session_id: "third" },
      },
      { type: "session_start", session_id: "third", data: { title: "Third of them" } },
      call(
        "bash",
        { args: { command: "echo needle" }, success: false, error: "exit code 7" },
        "third",
      ),
      {
        type: "input_requested",
        session_id: "third",
        data: { request_id: "r", kind: "permission", detail: "rm -rf dist" },
      },
    ]);
  });

  afterAll(async () => {
    shared?.[Symbol.dispose]();
    await server[Symbol.asyncDispose]();
  });

  test("the first event turns the empty state into the live view within a second", async () => {
    await using fresh = await startTestServer();
    using page = await openPage(fresh, { width: 380 });
    expect(await page.run<string[]>(`(${overflowing})()`)).toEqual([]);
    expect(await page.text("#command-plugin")).toContain(`${fresh.url}/plugin/observability.ts`);
    expect(await page.text("#command-curl")).toContain(`${fresh.url}/api/events`);
    await waitFor(async () => (await subscribers(fresh)) === 1, "the stream");
    expect(await page.text("#layout")).toBeNull();

    const postedAt = performance.now();
    await post(fresh, { type: "session_start", session_id: "s1", data: { title: "Hello" } });
    await waitFor(
      async () =>
        (await page.text(".session-label")) === "Hello" && (await page.text("#empty")) === null,
      "the live view",
      SECOND_MS,
    );
    expect(performance.now() - postedAt).toBeLessThan(SLACK * SECOND_MS);
    expect(page.problems).toEqual([]);
  });

  test("two parallel subagents of the captured run overlap in the timeline", async () => {
    await using fresh = await startTestServer();
    await post(fresh, capturedAgents(Date.now() - 30 * SECOND_MS));
    using page = await openPage(fresh);
    await page.click("#zoom-fit");
    await waitFor(
      async () => (await bars(page)).filter(({ width }) => width > 100).length === 2,
      "two bars that fill the window",
    );
    const [a, b] = await bars(page);
    if (a === undefined || b === undefined) throw new Error("two bars");
    expect([a.kind, b.kind]).toEqual(["agent", "agent"]);
    expect(Math.min(a.x + a.width, b.x + b.width)).toBeGreaterThan(Math.max(a.x, b.x));
    expect(Math.min(a.y + a.height, b.y + b.height)).toBeLessThanOrEqual(Math.max(a.y, b.y));

    // Both are on the screen where the list says: the pointer finds them.
    const canvas: { left: number; top: number } = await page.run(
      `(({ left, top }) => ({ left, top }))(document.querySelector("#timeline-canvas").getBoundingClientRect())`,
    );
    for (const bar of [a, b]) {
      await page.hover(canvas.left + bar.x + bar.width / 2, canvas.top + bar.y + bar.height / 2);
      await waitFor(async () => {
        const told = [await page.text("#readout-head"), await page.text("#readout-facts")];
        return told.join(" · ") === bar.text;
      }, `the readout of ${bar.text}`);
    }
    expect([a.text, b.text].map((text) => /^Agent (\w+)/.exec(text)?.[1]).toSorted()).toEqual([
      "explore",
      "general",
    ]);
  });

  test("a hidden tab lets go of its stream, and goes on from there when shown", async () => {
    await using fresh = await startTestServer();
    await post(fresh, call("a"));
    using page = await openPage(fresh);
    await waitFor(async () => (await subscribers(fresh)) === 1, "the stream");
    await setHidden(page, true);
    await waitFor(async () => (await subscribers(fresh)) === 0, "the stream to be let go");
    expect(await page.text("#connection-text")).toBe("Paused");
    await post(fresh, [call("b"), call("c")]);
    await setHidden(page, false);
    await waitFor(
      async () => (await page.texts(".line-name")).join() === "c,b,a",
      "what was missed",
    );
  });

  test('"Load older" → every event in turn, and gone where there are no more', async () => {
    await using fresh = await startTestServer();
    await post(
      fresh,
      Array.from({ length: 90 }, (_, index) => call(`tool ${index}`)),
    );
    using page = await openPage(fresh);
    const hasRows = (count: number) =>
      waitFor(async () => (await page.count("#feed-list .line")) === count, `${count} rows`);
    for (const count of [40, 80]) {
      await hasRows(count);
      await page.run(`document.querySelector("#feed .more").scrollIntoView()`);
      await page.click("#feed .more");
    }
    await hasRows(90);
    await waitFor(async () => (await page.text("#feed .more")) === null, "no button");
    expect((await page.texts(".line-name")).at(-1)).toBe("tool 0");
    await page.run(`document.querySelector("#feed-scroll").scrollTop = 0`);
    await post(
      fresh,
      Array.from({ length: 40 }, (_, index) => call(`new ${index}`)),
    );
    await hasRows(120); // the oldest ten have to make room
    await waitFor(
      async () => (await page.text("#feed .more")) === "Load older",
      "the button again",
    );
    await page.run(`location.hash = "#/?type=session_end"`);
    await waitFor(async () => (await page.text("#feed .more")) === null, "no button");
    expect(page.problems).toEqual([]);
  });

  test("the feed: filter kept in the address, held and counted while scrolled, expand to the full data", async () => {
    await using fresh = await startTestServer();
    await post(fresh, [
      call("read"),
      call("bash", { args: { command: "ls" } }),
      call("grep", {}, "s2"),
    ]);
    using page = await openPage(fresh);
    const names = () => page.texts(".line-name");
    await waitFor(async () => (await names()).length === 3, "three rows");
    expect(await names()).toEqual(["grep", "bash", "read"]);

    await page.type("#feed-text", "bash");
    await waitFor(async () => (await names()).join() === "bash", "the filter");
    expect(await page.run<string>("location.hash")).toBe("#/?q=bash");
    await page.run(`location.hash = "#/?q=grep"`);
    await waitFor(async () => (await names()).join() === "grep", "the filter from the address");
    expect(await page.run<string>(`document.querySelector("#feed-text").value`)).toBe("grep");
    await page.run(`location.hash = "#/session/s1?tab=events&type=tool_use"`);
    await waitFor(async () => (await names()).join() === "bash,read", "session and type");
    await page.run(`location.hash = "#/?q=${encodeURIComponent('"ls"')}"`);
    await waitFor(async () => (await names()).join() === "bash", "text");
    await page.run(`location.hash = "#/"`);
    await waitFor(async () => (await names()).length === 3, "all again");

    const scrollTo = (px: number) =>
      page.run(`new Promise((drawn) => {
        const scroll = document.querySelector("#feed-scroll");
        const draw = () => requestAnimationFrame(() => requestAnimationFrame(drawn));
        scroll.addEventListener("scrollend", draw, { once: true });
        scroll.scrollTop = ${px};
      })`);
    await page.run(`document.querySelector("#feed-list").style.height = "9999px"`);
    await scrollTo(100);
    await post(fresh, [call("edit"), call("write")]);
    await waitFor(async () => (await page.text("#feed-note")) === "2 new", "what waits");
    expect(await names()).toHaveLength(3);
    await scrollTo(0);
    await waitFor(async () => (await names()).join() === "write,edit,grep,bash,read", "both");

    await page.click(".line:nth-child(4) summary");
    const data = async () => (await page.text(".line:nth-child(4) details > pre")) ?? "";
    await waitFor(async () => (await data()) !== "", "the data");
    expect(JSON.parse(await data())).toMatchObject({
      type: "tool_use",
      tool: "bash",
      args: { command: "ls" },
      duration_ms: 40,
    });
    expect(await page.attribute(".line:nth-child(4) .line-session", "href")).toBe("#/session/s1");
    expect(page.problems).toEqual([]);
  });

  test("whatever is posted is shown as typed, in every field", async () => {
    await using fresh = await startTestServer();
    const evil = (field: string) => `<img src=x onerror="window.hacked='${field}'"><b>${field}</b>`;
    const text = (...names: string[]) =>
      Object.fromEntries(names.map((name) => [name, evil(name)]));
    const session_id = evil("session_id");
    await post(fresh, [
      {
        type: "session_start",
        session_id,
        data: text("title", "directory", "agent", "model", "extra"),
      },
      {
        type: "tool_use",
        session_id,
        data: { ...text("tool", "args", "call_id", "error"), success: false },
      },
      {
        type: "agent_spawn",
        session_id,
        data: { ...text("subagent_type", "prompt", "child_session_id"), call_id: "c" },
      },
      {
        type: "agent_complete",
        session_id,
        data: { ...text("error"), call_id: "c", success: false },
      },
      { type: "session_error", session_id, data: text("error", "message") },
      { type: "tool_blocked", session_id, data: text("reason") },
      { type: "message_user", session_id, data: text("content") },
      { type: "input_requested", session_id, data: text("request_id", "kind", "detail") },
      { type: "input_resolved", session_id: "other", data: text("request_id", "kind", "reply") },
      {
        type: "session_start",
        session_id: evil("id only"),
        data: { parent_session_id: session_id },
      },
    ]);
    using page = await openPage(fresh);
    await waitFor(
      async () => (await page.count("#feed-list .line")) === 8,
      "the feed: an agent with its session is one line",
    );
    await page.run(`document.querySelectorAll(".line summary").forEach((line) => line.click())`);
    await waitFor(
      async () => (await page.texts(".line details > pre")).every((data) => data !== ""),
      "all of it opened",
    );
    await waitFor(
      async () => (await page.text("#stat-needs-name"))?.startsWith(evil("title")) ?? false,
      "who waits",
    );
    const shown = (await page.texts(".line details > pre")).join("\n");
    for (const field of ["prompt", "args", "detail", "reply", "extra", "content", "reason"])
      expect(shown).toContain(JSON.stringify(evil(field)));
    await page.run(`document.querySelector("#timeline-scroll").focus()`);
    await page.press("ArrowLeft");
    await waitFor(
      async () => (await page.text("#readout-head"))?.includes("<img") ?? false,
      "the readout",
    );
    await page.run(`location.hash = "#/session/${encodeURIComponent(session_id)}"`);
    await waitFor(async () => (await page.count(".turn .line")) === 5, "the session's page");
    await page.run(`document.querySelectorAll(".turn .line summary").forEach((e) => e.click())`);
    await waitFor(
      async () =>
        (await page.texts(".turn details > pre")).join().includes(JSON.stringify(evil("args"))),
      "args",
    );
    expect(await page.text("#session-name")).toBe(evil("title"));

    expect(await page.count("img, b, iframe, object")).toBe(0);
    expect(await page.run<unknown>("window.hacked ?? null")).toBeNull();
    expect(page.problems).toEqual([]);
  });

  test("text that lies is shown as what it is, wherever it stands", async () => {
    await using fresh = await startTestServer();
    const lie = "ls \u202e/ fr- mr";
    const told = String.raw`ls \u202E/ fr- mr`;
    const ordinary = "مرحبا עברית 👩‍💻";
    await post(fresh, [
      { type: "session_start", session_id: "s1\u200b", data: { title: `T\u2066${lie}` } },
      { type: "session_start", session_id: "s2", data: { title: ordinary } },
      call(ordinary, {}, "s2"),
      {
        ...call(
          `bash\u200f\ufeff`,
          { args: { command: lie }, duration_ms: 4 * MINUTE_MS },
          "s1\u200b",
        ),
        timestamp: Date.now() - SECOND_MS,
      },
      call("bash", { success: false, error: `e\u0007\u001b[31m\u2028${lie}` }, "s1\u200b"),
      {
        type: "input_requested",
        session_id: "s1\u200b",
        data: { request_id: "r", kind: "permission", detail: lie },
      },
    ]);
    using page = await openPage(fresh);
    await waitFor(
      async () => (await page.count("#feed-list .line")) === 5,
      "the feed: one line for two starts",
    );
    await waitFor(async () => (await page.text("#stat-needs-name")) !== "", "who waits");
    const title = String.raw`T\u2066${told}`;
    const tool = String.raw`bash\u200F\uFEFF`;
    const error = String.raw`e\u0007\u001B[31m\u2028${told}`;
    expect(await page.texts(".session-doing")).toContain(`Asks: ${told}`);
    expect(await page.texts(".session-label")).toEqual(expect.arrayContaining([title, ordinary]));
    expect(await page.text("#stat-needs-name")).toStartWith(title);
    expect(await page.text("#stat-needs-text")).toBe(`Asks: ${told}`);
    expect(await page.texts(".line-name")).toEqual(expect.arrayContaining([tool, ordinary]));
    expect(await page.texts(".line-text")).toContain(told);
    expect(await page.texts(".reason")).toContain(error);
    await waitFor(async () => (await page.count("#usage tbody tr")) === 3, "usage");
    expect(await page.attribute("#usage tbody tr:nth-child(1) button", "title")).not.toBeNull();

    // On the canvas, and in what is said of its bars.
    await page.run(`(() => {
      const { prototype } = CanvasRenderingContext2D;
      const draw = prototype.fillText;
      window.drawn = new Set();
      prototype.fillText = function (text, ...at) { drawn.add(text); return draw.call(this, text, ...at); };
    })()`);
    await page.click('#timeline-ranges [data-minutes="5"]');
    await waitFor(
      () => page.run<boolean>(`drawn.has(${JSON.stringify(`${tool}: ${told}`)})`),
      "the bar's text",
    );
    const bar = (await bars(page)).find(({ text }) => text.startsWith(tool));
    if (bar === undefined) throw new Error("no bar");
    const canvas: { left: number; top: number } = await page.run(
      `(({ left, top }) => ({ left, top }))(document.querySelector("#timeline-canvas").getBoundingClientRect())`,
    );
    await page.hover(canvas.left + bar.x + bar.width / 2, canvas.top + bar.y + bar.height / 2);
    await waitFor(async () => (await page.text("#readout-text")) === told, "the readout");
    expect(await page.text("#readout-head")).toStartWith(tool);

    await page.run(`location.hash = "#/session/${encodeURIComponent("s1\u200b")}"`);
    await waitFor(async () => (await page.count(".turn .line")) === 3, "the session's page");
    expect(await page.text("#session-name")).toBe(title);
    expect(await page.attribute("#session-name", "title")).toBe(String.raw`s1\u200B`);
    await page.run(`document.querySelectorAll(".line summary").forEach((e) => e.click())`);
    await waitFor(
      async () => (await page.texts(".turn .line details > pre")).every((told) => told !== ""),
      "all of it opened",
    );
    const hidden = /[\p{Cc}\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/u;
    const everything = await page.run<string[]>(
      `[document.title, ...[...document.querySelectorAll("*")].flatMap((e) => [...e.attributes].filter((a) => a.name !== "value").map((a) => a.value).concat([...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data)))]`,
    );
    const lies = everything
      .map((text) => text.replace(/[\n\t]/g, ""))
      .filter((text) => hidden.test(text));
    expect(lies).toEqual([]);
    // What is written from right to left turns nothing round beside it.
    expect(
      await page.run<string[]>(
        `[...new Set([...document.body.querySelectorAll("*")].map((e) => getComputedStyle(e).unicodeBidi))]`,
      ),
    ).toEqual(["isolate"]);
    expect(page.problems).toEqual([]);
  });

  // These wait more than they work: together.

  test.concurrent("a running agent's bar grows until its completion", async () => {
    await using fresh = await startTestServer();
    await post(fresh, {
      type: "agent_spawn",
      session_id: "s1",
      timestamp: Date.now() - 5 * SECOND_MS,
      data: { subagent_type: "explore", call_id: "c" },
    });
    using page = await openPage(fresh, { motion: "no-preference" });
    await waitFor(async () => (await page.text("#stat-agents")) === "1", "the running agent");
    await waitFor(async () => (await bars(page)).length === 1, "its bar");
    const width = async () => (await bars(page))[0]?.width ?? 0;
    const first = await width();
    await waitFor(async () => (await width()) > first, "the bar to grow");
    await post(fresh, {
      type: "agent_complete",
      session_id: "s1",
      data: { call_id: "c", success: false },
    });
    await waitFor(async () => (await page.text("#stat-agents")) === "0", "its end");
    await waitFor(
      async () => (await bars(page))[0]?.text.includes("failed") ?? false,
      "its failure",
    );
  });

  test.concurrent(
    "a restart of the server: a countdown, then every event once and in order",
    async () => {
      await using fresh = await startTestServer();
      await post(fresh, call("a"));
      using page = await openPage(fresh);
      const names = async () => (await page.texts(".line-name")).toReversed().join("");
      await waitFor(async () => (await subscribers(fresh)) === 1, "the stream");
      await post(fresh, call("b"));
      await waitFor(async () => (await names()) === "ab", "two events");
      await fresh.stop();
      await waitFor(
        async () => /^Reconnecting in \d+ s$/.test((await page.text("#connection-text")) ?? ""),
        "the countdown",
      );
      await fresh.restart();
      await post(fresh, [call("c"), call("d")]);
      await waitFor(async () => (await names()) === "abcd", "what was missed");
      expect(await page.text("#connection-text")).toBe("Live");
      await post(fresh, call("e"));
      await waitFor(async () => (await names()) === "abcde", "what is new");
      await waitFor(async () => (await page.text(".session-meta")) === "5 tools", "the count");
    },
  );

  test.concurrent("a page that was away learns what was deleted and what fell silent", async () => {
    let aheadMs = 0;
    await using fresh = await startTestServer({ now: () => Date.now() + aheadMs });
    const old = Date.now() - 169 * 60 * MINUTE_MS;
    await post(fresh, [
      { ...call("gone", {}, "old"), timestamp: old },
      { ...call("a", {}, "silent"), timestamp: Date.now() - MINUTE_MS },
      call("kept"),
    ]);
    using page = await openPage(fresh);
    const dots = () =>
      page.run<string>(
        `[...document.querySelectorAll(".session-row a")].map((a) => a.querySelector(".session-label").textContent + " " + a.querySelector(".dot").ariaLabel).sort().join()`,
      );
    await waitFor(
      async () => (await dots()) === "old Stale,s1 Active,silent Active",
      "three sessions",
    );
    await fresh.stop();
    await waitFor(async () => (await page.text("#connection-text")) !== "Live", "the interruption");
    aheadMs = 60 * MINUTE_MS - 30 * SECOND_MS;
    await fresh.restart(); // retention runs at the start
    await waitFor(async () => (await dots()) === "s1 Active,silent Stale", "what is left of them");
    const feed = async () => (await page.texts(".line-name")).join();
    await waitFor(async () => (await feed()) === "kept,a", "the feed without what is gone");
    expect(page.problems).toEqual([]);
  });

  // The others one after the other: keys and the pointer go to one page at a time.

  test("the header says what runs, who waits, what failed", async () => {
    const page = await openOverview();
    await waitFor(async () => (await page.text("#stat-needs-count")) === "1", "the one who waits");
    expect(await page.text("#stat-needs-name")).toStartWith("Third of them, ");
    expect(await page.texts(".session-row h3:not([hidden])")).toEqual(["Attention 1", "Ended 2"]);
    await waitFor(async () => (await page.text("#connection")) === "Live", "the stream");
    await waitFor(async () => Number(await page.text("#stat-errors-link")) > 0, "what failed");
    expect(await page.texts(".session-label")).toEqual(
      expect.arrayContaining(["Third of them", "Look around", "Session 1, done"]),
    );
    expect(page.problems).toEqual([]);
  });

  test("the timeline by keyboard: walk through the calls, zoom, move, follow, open", async () => {
    const page = await openOverview();
    await waitFor(
      async () => (await page.attribute("#zoom-fit", "aria-pressed")) === "true",
      "what goes on",
    );
    const note = () => page.text("#timeline-note");
    await page.click('[data-minutes="15"]');
    await waitFor(async () => (await bars(page)).length > 10, "the bars");
    await page.run(`document.querySelector("#timeline-scroll").focus()`);
    await page.press("+");
    await waitFor(async () => (await note())?.endsWith("10 m 00 s") ?? false, "10 minutes");
    await page.press("-");
    await waitFor(
      async () => (await page.attribute('[data-minutes="15"]', "aria-pressed")) === "true",
      "15 minutes again",
    );
    await page.press("a");
    await waitFor(
      async () => (await page.attribute("#follow", "aria-pressed")) === "false",
      "the past",
    );
    await page.press("f");
    await waitFor(async () => (await page.attribute("#follow", "aria-pressed")) === "true", "now");

    await page.press("ArrowRight");
    const head = () => page.text("#readout-head");
    await waitFor(async () => (await head()) !== null, "the readout of a call");
    const first = await head();
    await waitFor(async () => {
      await page.press("ArrowDown"); // again where the lanes moved under the cursor
      return (await head()) !== first;
    }, "another lane");
    await waitFor(async () => {
      const said = (await page.text("#timeline-said")) ?? "";
      return said.startsWith((await head())?.split(" · ")[0] ?? "-");
    }, "the same for those who don't see it");
    const hash = () => page.run<string>("location.hash");
    expect(await hash()).toBe("#/");
    await page.press("Enter");
    await waitFor(async () => /^#\/\?span=\d+$/.test(await hash()), "the call in the address");
    await page.press("Escape");
    await waitFor(async () => (await hash()) === "#/" && (await head()) === null, "none");
    await page.press("ArrowRight");
    await page.press("Enter");
    await waitFor(async () => (await hash()).includes("span="), "a call again");
    await waitFor(async () => (await head()) !== null, "its readout");
    await page.press("Enter");
    await waitFor(
      async () => (await page.attribute("body", "data-view")) === "session",
      "its session",
    );
    const fits = () => page.attribute("#zoom-fit", "aria-pressed");
    await waitFor(async () => (await fits()) === "false", "a window that keeps the call in sight");
  });

  test("wheel and drag zoom and pan the timeline", async () => {
    const page = await openOverview();
    await page.click('[data-minutes="15"]');
    await waitFor(async () => (await bars(page)).length > 10, "the bars");
    const box: { left: number; top: number } = await page.run(
      `(({ left, top }) => ({ left, top }))(document.querySelector("#timeline-canvas").getBoundingClientRect())`,
    );
    const at = { x: box.left + 400, y: box.top + 100 };
    const wheel = (deltaX: number, deltaY: number) =>
      page.cdp("Input.dispatchMouseEvent", { type: "mouseWheel", ...at, deltaX, deltaY });
    await wheel(0, -100);
    await waitFor(
      async () => (await page.attribute('[data-minutes="15"]', "aria-pressed")) === "false",
      "a zoom",
    );
    expect(await page.attribute("#follow", "aria-pressed")).toBe("true");
    const mouse = (type: string, x: number) =>
      page.cdp("Input.dispatchMouseEvent", {
        type,
        x,
        y: at.y,
        button: "left",
        buttons: 1,
        clickCount: 1,
      });
    await mouse("mousePressed", at.x);
    await mouse("mouseMoved", at.x + 120);
    await mouse("mouseReleased", at.x + 120);
    await waitFor(
      async () => (await page.attribute("#follow", "aria-pressed")) === "false",
      "a pan",
    );
  });

  test("380 px: a finger pans, two zoom, a tap tells the call above it, straight down scrolls the page", async () => {
    using page = await openPage(server, { width: 380, height: 700 });
    await page.cdp("Emulation.setTouchEmulationEnabled", { enabled: true, maxTouchPoints: 2 });
    await page.click('[data-minutes="15"]');
    await waitFor(async () => (await bars(page)).length > 10, "the bars");
    const touch = (type: string, ...touchPoints: { x: number; y: number }[]) =>
      page.cdp("Input.dispatchTouchEvent", { type: `touch${type}`, touchPoints });
    /** A finger at each x, on its way to the x after it. */
    const swipe = async (paths: [number, number][], fromY: number, toY = fromY) => {
      const at = (share: number) =>
        paths.map(([from, to]) => ({
          x: from + share * (to - from),
          y: fromY + share * (toY - fromY),
        }));
      await touch("Start", ...at(0));
      for (const share of [1 / 4, 1 / 2, 3 / 4, 1]) await touch("Move", ...at(share));
      await touch("End");
    };
    const box: { top: number } = await page.run(
      `(({ top }) => ({ top }))(document.querySelector("#timeline-canvas").getBoundingClientRect())`,
    );
    const pressed = (id: string) => page.attribute(`#${id}`, "aria-pressed");
    const note = () => page.text("#timeline-note");

    let [y, barTop] = [0, 0];
    await waitFor(async () => {
      const bar = (await bars(page)).find(({ kind, x, y }) => kind === "tool" && x > 9 && y < 300);
      if (bar === undefined) return false;
      barTop = box.top + bar.y;
      y = barTop + bar.height / 2;
      await touch("Start", { x: bar.x + bar.width / 2, y });
      await touch("End");
      return (await page.text("#readout-head")) !== null;
    }, "the readout of a call");
    const { top, left, right, bottom }: Record<string, number> = await page.run(
      `document.querySelector("#readout").getBoundingClientRect().toJSON()`,
    );
    expect(Math.min(left ?? -1, top ?? -1, 380 - (right ?? 999))).toBeGreaterThanOrEqual(0);
    expect(bottom).toBeLessThan(barTop);
    expect(await page.run<string>("location.hash")).toStartWith("#/?span=");

    expect(await pressed("follow")).toBe("true");
    await swipe([[320, 250]], y);
    await waitFor(async () => (await pressed("follow")) === "false", "a pan");
    expect(await page.run<number>("scrollY")).toBe(0);
    const before = await note();
    const fingers: [number, number][] = [
      [150, 80],
      [200, 300],
    ];
    await swipe(fingers, y);
    await waitFor(async () => (await note()) !== before, "a zoom");
    expect(await page.run<number>("visualViewport.scale")).toBe(1);
    await page.run(`document.querySelector("#timeline-scroll").scrollTop = 9_999`);
    const shown = await note();
    for (let times = 0; times < 2; times++) await swipe([[200, 203]], 500, 150);
    await waitFor(async () => (await page.run<number>("scrollY")) > 100, "the page to scroll");
    expect(await note()).toBe(shown);
    expect(page.problems).toEqual([]);
  });

  test("sessions: who needs the person on top, found by text; a click opens the session's page", async () => {
    const page = await openOverview();
    await waitFor(async () => (await page.count(".session-row")) >= 4, "the list");
    const labels = () => page.texts(".session-label");
    expect((await labels())[0]).toBe("Third of them");
    expect(await page.text(".session-meta")).toBe("Asks: rm -rf dist");
    await page.type("#sessions-text", "session 1");
    await waitFor(async () => (await labels()).join() === "Session 1, done", "the text");

    await page.click(".session-row a");
    await waitFor(
      async () => (await page.count(".turn .line")) === 24,
      "calls, agents, a question",
    );
    expect(await page.run<string>("location.hash")).toBe("#/session/first");
    expect(await page.text("#session-name")).toBe("Session 1, done");
    expect(await page.text("#session-status")).toStartWith("Done ");
    const facts = (await factsOf(page)).join(" ");
    expect(facts).toContain("Cost$0.02");
    expect(facts).toContain("Model–");
    expect(await page.texts(".turn .line-name")).toContain("Do part 1");
    await page.click(".turn .line summary");
    await waitFor(
      async () => (await page.text(".turn .line details > pre"))?.includes("step 0") ?? false,
      "args",
    );
    // The tabs are radio buttons: arrows go through them, and the address has them.
    await page.run(`document.querySelector("#tabs :checked").focus()`);
    for (const tab of ["errors", "files"]) {
      await page.press("ArrowRight");
      await waitFor(async () => (await page.text(`#${tab}`)) !== null, tab);
      expect(await page.run<string>("location.hash")).toBe(`#/session/first?tab=${tab}`);
    }
    await page.run(`document.querySelector('#tabs [value="cost"]').click()`);
    await waitFor(
      async () => (await page.text("#cost p")) === "No model has told of its tokens.",
      "the cost",
    );
    await page.run(`location.hash = "#/session/first"`);
    await waitFor(async () => (await bars(page)).length >= 20, "the whole session's timeline");
    expect(await page.texts(".lane-name")).toContain("Session 1, done");
    expect(await page.texts(".lane-name")).not.toContain("Third of them");

    await page.run(
      `navigator.clipboard.writeText = (text) => { document.body.dataset.copied = text; return Promise.resolve(); }`,
    );
    await page.click("#session-copy");
    await waitFor(async () => (await page.text("#session-copy")) === "Copied", "the copy");
    const copied: { tools: unknown[] } = JSON.parse(
      (await page.attribute("body", "data-copied")) ?? "",
    );
    expect(copied.tools).toHaveLength(20);

    await page.run(`location.hash = "#/session/nowhere"`);
    await waitFor(
      async () => (await page.text("#session-name")) === "No session nowhere",
      "no session",
    );
    expect(await page.text("#feed-title")).toBeNull(); // which is of all sessions
    expect(page.problems).toEqual([]);
  });

  test("usage: sorted by any column, over three periods", async () => {
    const page = await openOverview();
    const column = (index: number) => page.texts(`#usage tbody td:nth-child(${index})`);
    await waitFor(async () => (await column(2)).length > 4, "the table");
    const numbers = (await column(2)).map(Number);
    expect(numbers).toEqual(numbers.toSorted((a, b) => b - a));
    await page.click('#usage [data-column="name"] button');
    await waitFor(async () => {
      const names = await page.texts("#usage tbody th");
      return names.join() === names.toSorted().join();
    }, "the names in order");
    expect(await page.attribute('#usage [data-column="name"]', "aria-sort")).toBe("ascending");
    await page.click('#usage-hours [value="168"]');
    await page.click('#usage-kind [value="agents"]');
    await waitFor(
      async () => (await page.text("#usage thead button"))?.startsWith("Agent") ?? false,
      "agents",
    );
    expect(await page.texts("#usage tbody th")).toContain("Engineer");
  });

  test.each([380, 1440])(
    "%d px, light and dark: nothing overflows, every text has a contrast of 4.5",
    async (width) => {
      const page = await openOverview();
      const metrics = { width, height: 900, deviceScaleFactor: 1, mobile: false };
      await page.cdp("Emulation.setDeviceMetricsOverride", metrics);
      for (const path of ["#/", "#/session/first"]) {
        await page.run(`location.hash = ${JSON.stringify(path)}`);
        const row = path === "#/" ? "#usage tbody tr" : ".turn .line";
        await waitFor(async () => (await page.count(row)) > 0, row);
        expect(
          await page.run<number>(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth",
          ),
        ).toBe(0);
        expect(await page.run<string[]>(`(${overflowing})()`)).toEqual([]);
        for (const scheme of ["light", "dark"]) {
          await page.cdp("Emulation.setEmulatedMedia", {
            features: [{ name: "prefers-color-scheme", value: scheme }],
          });
          expect(await page.run<string[]>(`(${lowContrast})()`)).toEqual([]);
        }
      }
      expect(page.problems).toEqual([]);
    },
  );

  test("the page's policy stops inline script and other origins", async () => {
    using page = await openOverview();
    shared = undefined; // the last of them
    const outcome: string[] = await page.run(`new Promise((resolve) => {
      const violations = [];
      document.addEventListener("securitypolicyviolation", (event) => {
        violations.push(event.effectiveDirective);
        if (violations.length === 2) resolve(violations);
      });
      const script = document.createElement("script");
      script.textContent = "window.hacked = true";
      document.body.append(script);
      fetch("http://127.0.0.1:9/").catch(() => undefined);
    })`);
    expect(outcome.toSorted()).toEqual(["connect-src", "script-src-elem"]);
    expect(await page.run<unknown>("window.hacked ?? null")).toBeNull();
  });

  test("what runs is listed and drawn until it ends, and is said in words", async () => {
    await using fresh = await startTestServer();
    const long = `echo ${"x".repeat(400)} end`;
    const from = Date.now() - 20 * SECOND_MS;
    await post(fresh, [
      {
        type: "model_request",
        session_id: "s1",
        timestamp: from,
        data: { call_id: "m", model: "opus" },
      },
      {
        type: "model_response",
        session_id: "s1",
        timestamp: from + 5 * SECOND_MS,
        data: { call_id: "m" },
      },
      {
        type: "tool_start",
        session_id: "s1",
        timestamp: from + 6 * SECOND_MS,
        data: { tool: "bash", call_id: "c", args: { command: long } },
      },
    ]);
    using page = await openPage(fresh, { path: "/#/session/s1", motion: "no-preference" });
    await waitFor(
      async () => (await page.texts(".turn .line-length")).join().startsWith("runs"),
      "it",
    );
    const words = async () =>
      (await bars(page)).map(({ text }) => text.split(" · ").slice(0, 2).join());
    await waitFor(
      async () => (await words()).join(" ") === "bash,running Model opus,5.0 s",
      "the bars",
    );
    await page.click('#timeline-ranges [data-minutes="5"]');
    // From one look to the next: where the window is another, so is the bar.
    let [last, growths] = [Infinity, 0];
    await waitFor(async () => {
      const width = (await bars(page))[0]?.width ?? 0;
      growths += width > last ? 1 : 0;
      last = width;
      return growths === 3;
    }, "the bar to grow");
    await page.click(".turn .line summary");
    const detail = async () => (await page.text(".turn .line details > pre")) ?? "";
    await waitFor(
      async () => (await detail()).includes(`${long}"`),
      "the whole arguments, of which the row has the first 300 characters",
    );

    const error = `${"y".repeat(400)} end`;
    await post(fresh, {
      type: "tool_use",
      session_id: "s1",
      data: { tool: "bash", call_id: "c", outcome: "exit", exit_code: 2, error },
    });
    await waitFor(
      async () => (await words()).join(" ") === "bash,exit 2 Model opus,5.0 s",
      "its end",
    );
    await waitFor(
      async () => (await page.text(".turn .reason")) === `${error.slice(0, 300)}…`,
      "the error, as far as the row has it",
    );
    await waitFor(async () => (await detail()).includes(`"exit_code": 2`), "how it ended");
    expect(await detail()).toContain(`${long}"`);
    expect(await detail()).toContain(error);
    expect(await page.count(".turn .line[data-failed=true]")).toBe(1);
    expect(await factsOf(page)).toContain("Errors1");
    expect(page.problems).toEqual([]);
  });

  test("the list says what a session does now; a click on its errors, why they were and where", async () => {
    await using fresh = await startTestServer();
    const from = Date.now() - 38 * SECOND_MS;
    const told = (type: string, seconds: number, data: Record<string, unknown>) =>
      post(fresh, { type, session_id: "s1", timestamp: from + seconds * SECOND_MS, data });
    await told("turn_start", 0, {});
    await told("model_request", 0, { call_id: "m", model: "opus" });
    using page = await openPage(fresh);
    const does = (expected: RegExp) =>
      waitFor(
        async () => expected.test((await page.text(".session-meta")) ?? ""),
        String(expected),
      );
    await does(/^opus thinks, (3\d|4\d|5\d) s$/);
    await told("model_response", 5, { call_id: "m", outcome: "ok" });
    await told("tool_start", 6, { tool: "bash", call_id: "c", args: { command: "npm test" } });
    await does(/^bash: npm test, (3\d|4\d|5\d) s$/);
    const retry_at = Date.now() + 30 * MINUTE_MS;
    await told("retry", 7, { attempt: 3, message: "Rate limited", retry_at });
    await does(/^Attempt 3, next try in \d+ m: Rate limited$/);

    const error = `${"y\n".repeat(300)} end`;
    const ended = { tool: "bash", call_id: "c", outcome: "exit", exit_code: 1, error };
    await told("tool_use", 8, ended);
    await told("tool_use", 9, { tool: "edit", call_id: "d", outcome: "denied" });
    await waitFor(async () => (await page.text(".session-errors")) === "1", "the error");
    await page.click(".session-row a");
    await page.click('#session-facts a[href$="?tab=errors"]');
    await waitFor(
      async () => (await page.texts("#errors .reason")).join() === error,
      "the whole reason, and that alone",
    );
    expect(await page.run<string>("location.hash")).toBe("#/session/s1?tab=errors");
    await waitFor(
      async () => /Worked[345]\d s in 1 turn/.test((await factsOf(page)).join()),
      "the time of its work, which goes on",
    );
    await told("agent_spawn", 1, { subagent_type: "early", call_id: "a" });
    await told("agent_complete", 2, { call_id: "a", outcome: "failed", error: "why" });
    const failures = () => page.count("#errors .line");
    await waitFor(async () => (await failures()) === 2, "its agent's failure");
    // Neither is in the window any more, and the agent's lane is gone with it.
    for (let times = 0; times < 8; times++) await page.click("#zoom-in");
    await waitFor(async () => (await page.texts(".lane-name")).join() === "s1", "one lane");
    await page.click("#errors .line:last-child .line-time");
    await waitFor(async () => (await page.count(".lane-name")) === 2, "the agent's lane");
    expect(await page.text("#readout-head")).toStartWith("Agent early · failed · 1.0 s");
    await page.click("#errors .line:first-child .line-time");
    await waitFor(
      async () => (await page.text("#readout-head"))?.startsWith("bash · exit 1 · ") ?? false,
      "its bar",
    );
    await waitFor(async () => (await page.count("#errors [open]")) === 2, "both, opened");
    await page.click("#errors .line:first-child summary");
    await told("tool_use", 10, { tool: "z", call_id: "z" });
    await waitFor(async () => (await page.text("#tabs :first-child")) === "Calls 3", "a redraw");
    expect(await page.count("#errors [open]")).toBe(1);
    await page.run(`location.hash = "#/session/s1"`);
    await waitFor(
      async () =>
        (await page.texts(".turn .line-text")).join() === "failed,exit 1: npm test,denied,",
      "its calls",
    );
    expect((await page.texts(".turn .reason")).join()).toStartWith("why,y\ny\n");
    const narrow = { width: 380, height: 500, deviceScaleFactor: 1, mobile: false };
    await page.cdp("Emulation.setDeviceMetricsOverride", narrow);
    await page.click('#session-facts a[href$="?tab=errors"]');
    await waitFor(async () => (await failures()) === 2, "the list again");
    const topOf = `document.querySelector("#tabs").getBoundingClientRect().top`;
    await waitFor(async () => (await page.run<number>(topOf)) < 250, "it in sight");
    await told("session_end", 12, {
      reason: "interrupted",
      todos: [{ content: "Test it", status: "in_progress" }],
      changes: { files: 2, additions: 5, deletions: 1 },
    });
    await waitFor(
      async () => /^Done .* · interrupted$/.test((await page.text("#session-status")) ?? ""),
      "how it ended",
    );
    expect(await factsOf(page)).toContain("Worked12 s in 1 turn");
    await page.run(`location.hash = "#/session/s1?tab=todos"`);
    await waitFor(
      async () => (await page.texts("#todos li")).join() === "▸ DoingTest it",
      "its todos",
    );
    await page.run(`location.hash = "#/session/s1?tab=files"`);
    await waitFor(
      async () => (await page.text("#files p")) === "2 files, +5 −1",
      "what it changed",
    );
    expect(page.problems).toEqual([]);
  });

  test("the page of a failed agent, of a session whose agents had errors, of one that is silent: each says why", async () => {
    await using fresh = await startTestServer();
    const agent = (call_id: string, child_session_id: string, outcome: string): PostedEvent[] => [
      {
        type: "agent_spawn",
        session_id: "top",
        data: { subagent_type: "explore", description: "Look", call_id, child_session_id },
      },
      {
        type: "session_start",
        session_id: child_session_id,
        data: { title: `Of ${child_session_id}`, parent_session_id: "top" },
      },
      { type: "agent_complete", session_id: "top", data: { call_id, outcome } },
    ];
    await post(fresh, [
      ...agent("a", "broken", "failed"),
      {
        type: "model_response",
        session_id: "broken",
        data: { call_id: "m", model: "opus", outcome: "failed", error: "No credit" },
      },
      { type: "session_end", session_id: "broken", data: { reason: "error" } },
      ...agent("b", "fine", "ok"),
      call("bash", { outcome: "exit", exit_code: 2 }, "fine"),
      {
        type: "model_request",
        session_id: "quiet",
        timestamp: Date.now() - 6 * MINUTE_MS,
        data: { call_id: "m", model: "opus" },
      },
    ]);
    using page = await openPage(fresh, { path: "/#/session/broken" });
    const shows = (selector: string, expected: RegExp) =>
      waitFor(async () => expected.test((await page.text(selector)) ?? ""), String(expected));
    await shows("#session-status", /^Failed /);
    await shows("#session-error", /^No credit$/);
    expect(await factsOf(page)).toContain("Errorsits own failure");
    await page.run(`location.hash = "#/session/top?tab=errors"`);
    await waitFor(async () => (await page.count("#errors .line")) === 2, "both");
    expect(await page.texts("#errors .line-session")).toEqual(["", "Of fine"]);
    await page.run(`location.hash = "#/session/quiet"`);
    await shows("#session-status", /^Silent: opus thinks, 6 m\. Active /);
    expect(page.problems).toEqual([]);
  });

  test("an ended session stays ended after an update, also when loaded anew", async () => {
    await using fresh = await startTestServer();
    await post(fresh, [call("a"), { type: "session_end", session_id: "s1" }]);
    using page = await openPage(fresh);
    const status = () => page.attribute(".session-row .dot", "aria-label");
    await waitFor(async () => (await status()) === "Done", "its end");
    await post(fresh, { type: "session_update", session_id: "s1", data: { title: "Later" } });
    await waitFor(async () => (await page.text(".session-label")) === "Later", "the update");
    expect(await status()).toBe("Done");
    await page.goto("/?again");
    await waitFor(async () => (await page.text(".session-label")) === "Later", "the page");
    expect(await status()).toBe("Done");
  });

  test("what failed long ago, also in a session below: as many lines as the tab counts, once they are here", async () => {
    await using fresh = await startTestServer();
    const timestamp = Date.now() - 60 * MINUTE_MS;
    const failed = { outcome: "failed", error: "why" };
    await post(fresh, [
      { ...call("bash", failed, "s1"), timestamp },
      { type: "session_start", session_id: "kid", timestamp, data: { parent_session_id: "s1" } },
      { type: "session_error", session_id: "kid", timestamp, data: { error: "its own" } },
      ...Array.from({ length: 500 }, () => call("later", {}, "s2")),
    ]);
    const before = `{
      const ask = fetch;
      window.fetch = async (path, ...more) => {
        if (/spans.*(sessionId|before)=|session_error/.test(path))
          await new Promise((tell) => (window.goOn ??= []).push(tell));
        return ask(path, ...more);
      };
    }`;
    using page = await openPage(fresh, { path: "/#/session/s1?tab=errors", before });
    await waitFor(async () => (await page.text("#errors p")) === "Not loaded.", "that more is");
    await page.run(`goOn.push = (tell) => tell(), goOn.forEach((tell) => tell())`);
    const reasons = async () => (await page.texts("#errors .reason")).sort().join();
    await waitFor(async () => (await reasons()) === "its own,why", "both");
    expect(await page.text('#tabs label:has([value="errors"]) small')).toBe("2");
    expect(page.problems).toEqual([]);
  });

  test("a call of an agent, by its address: its turn and its agent are opened, and it is selected", async () => {
    await using fresh = await startTestServer();
    const agent = { subagent_type: "explore", call_id: "a", child_session_id: "kid" };
    const kid = { parent_session_id: "s1", title: "Look for it", cost: 0.25 };
    const timestamp = Date.now() - 5 * MINUTE_MS; // the timeline fits what is later
    const inner = { args: { command: "ls" }, outcome: "failed", duration_ms: 0 };
    await post(fresh, [
      { type: "turn_start", session_id: "s1", timestamp, data: { prompt: "Look around" } },
      { type: "agent_spawn", session_id: "s1", timestamp, data: agent },
      { type: "session_start", session_id: "kid", timestamp, data: kid },
      { ...call("inner", inner, "kid"), timestamp },
      { type: "turn_start", session_id: "s1", data: {} },
      call("later", { duration_ms: SECOND_MS }, "s1"),
      // With them the turns aren't among the events that are loaded first, while the call is.
      ...Array(250).fill({ type: "voice_sent", session_id: "s1" }),
    ]);
    const path = "/api/spans?sessionId=kid";
    const { spans } = await getJson<{ spans: { id: number }[] }>(fresh, path);
    const before = `{
      const ask = fetch;
      window.fetch = async (path, ...more) => {
        if (path.includes("type=turn_start")) await new Promise((tell) => (window.tellTurns = tell));
        return ask(path, ...more);
      };
    }`;
    using page = await openPage(fresh, { path: `/#/session/s1?span=${spans[0]?.id}`, before });
    const isSelected = async () =>
      (await page.text(".line .line[data-selected=true] .line-name")) === "inner";
    await waitFor(isSelected, "the call");
    await page.run("tellTurns()");
    const turns = async () => (await page.texts(".turn-title")).join();
    await waitFor(async () => (await turns()) === "Turn 2,Look around", "its turns");
    await waitFor(isSelected, "the call in its turn");
    await page.run(
      "new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))",
    );
    expect(await page.attribute("#follow", "aria-pressed")).toBe("false"); // its bar stays in sight
    expect(await page.attribute(".line-child", "href")).toBe("#/session/kid");
    // What it failed at and took is seen where it was sent out: a line of it, list, head and turn.
    expect(await page.text(".line .line-text")).toBe("1 error · $0.25");
    expect(await page.texts(".session-errors")).toEqual(["1", "1"]);
    expect(await factsOf(page)).toContain("Errors1 · own 0");
    expect((await page.texts(".turn-figures :first-child")).sort()).toEqual(["", "1 error"]);
    await page.click(".line-child");
    await waitFor(async () => (await page.text("#session-name")) === "Look for it", "its page");
    // Over: of a parent the figures are with those below, of a child how it ended.
    const below = { parent_session_id: "kid", title: "Look closer" };
    const end = (session_id: string, reason: string) => {
      return { type: "session_end", session_id, data: { reason } };
    };
    await post(fresh, [
      { type: "session_start", session_id: "grandkid", data: below },
      ...[end("grandkid", "interrupted"), end("kid", "completed"), end("s1", "completed")],
    ]);
    const rows = async () => (await page.texts(".session-meta")).join();
    for (const expected of ["2 tools · $0.25", "2 tools · $0.25,1 tool · $0.25"]) {
      await waitFor(async () => (await rows()) === expected, expected);
      await page.click(".session-row:last-child .session-ended");
    }
    await waitFor(async () => (await rows()).endsWith(",interrupted"), "how it ended");
    expect(page.problems).toEqual([]);
  });

  test("failures are listed also behind 3,000 calls that went well; an error of false is none", async () => {
    await using fresh = await startTestServer();
    await postAll(fresh, [
      call("good", { error: false }),
      call("bad", { error: "exit 1" }),
      call("worse", { outcome: "failed", error: "why" }),
      ...Array.from({ length: 3_000 }, () => call("good", {}, "later")),
    ]);
    using page = await openPage(fresh, { path: "/#/?type=failed" });
    await waitFor(
      async () => (await page.texts("#feed-list .reason")).join() === "why,exit 1",
      "why",
    );
    expect(await page.texts(".line-name")).toEqual(["worse", "bad"]);
    await waitFor(async () => (await page.text("#stat-errors-link")) === "2", "their count");
    await page.run(`location.hash = "#/session/s1"`);
    await waitFor(async () => (await page.count(".turn .line")) === 3, "all calls");
    expect(await page.count(".turn .line[data-failed=true]")).toBe(2);
  });

  test("an answer that comes late doesn't overwrite what the stream brought since", async () => {
    await using fresh = await startTestServer();
    await post(fresh, call("a"));
    using page = await openPage(fresh);
    await waitFor(async () => (await page.text(".session-meta")) === "1 tool", "the session");
    await page.run(`(() => {
      const ask = fetch;
      window.late = [];
      window.fetch = async (path) => {
        const answer = await ask(path);
        if (path.startsWith("/api/sessions?")) await new Promise((resolve) => late.push(resolve));
        return answer;
      };
    })()`);
    await page.run(`location.hash = "#/session/s1"`);
    await waitFor(async () => (await page.run<number>("late.length")) === 1, "the answer");
    await post(fresh, call("b"));
    const tools = () => page.text("#tabs label");
    await waitFor(async () => (await tools()) === "Calls 2", "the second call");
    await page.run(`(async () => {
      for (const resolve of late) resolve();
      for (let frame = 0; frame < 20; frame++) await new Promise(requestAnimationFrame);
    })()`);
    expect(await tools()).toBe("Calls 2");
    expect(await page.text(".session-meta")).toBe("2 tools");
  });

  test("what comes between two of the answers that it loads is there, once", async () => {
    await using fresh = await startTestServer();
    await post(fresh, call("a"));
    // The list of sessions has seen the second call, the history hasn't.
    const before = `{
      const ask = fetch;
      let told;
      const isTold = new Promise((resolve) => (told = resolve));
      window.fetch = async (path, ...more) => {
        if (path === "/api/sessions?limit=1000") {
          await isTold;
          const headers = { "Content-Type": "application/json" };
          const body = ${JSON.stringify(JSON.stringify(call("b")))};
          await ask("/api/events", { method: "POST", headers, body });
        }
        const answer = await ask(path, ...more);
        if (path.startsWith("/api/events?")) told();
        return answer;
      };
    }`;
    using page = await openPage(fresh, { before });
    await waitFor(async () => (await page.text(".session-meta")) === "2 tools", "both calls");
    await waitFor(async () => (await page.texts(".line-name")).join() === "b,a", "their lines");
    await waitFor(async () => (await bars(page)).length === 2, "their bars");
  });

  test("behind 1,000 newer sessions: who waits is listed, and any is found by its address", async () => {
    await using fresh = await startTestServer();
    const hourAgo = Date.now() - 50 * MINUTE_MS;
    await postAll(fresh, [
      {
        type: "input_requested",
        session_id: "waits",
        timestamp: hourAgo,
        data: { request_id: "r", kind: "question", detail: "Which one?" },
      },
      ...[1, 2, 3].map((index) => ({
        ...call(`tool ${index}`, { success: index > 1 }, "hidden"),
        timestamp: hourAgo + index,
      })),
      { type: "session_end", session_id: "hidden", timestamp: hourAgo + 9 },
      ...Array.from({ length: 1_000 }, (_, index) => ({
        ...call("read", {}, `newer ${index}`),
        timestamp: Date.now() - 20 * MINUTE_MS + index,
      })),
      // Around this the timeline fits: it asks for no older ones.
      { ...call("read", {}, "newer 0"), timestamp: Date.now() - 5 * MINUTE_MS },
      ...Array.from({ length: 1_000 }, (_, index): PostedEvent => ({
        type: "session_end",
        session_id: `newer ${index}`,
        timestamp: Date.now() - 4 * MINUTE_MS + index,
      })),
    ]);
    using page = await openPage(fresh);
    await waitFor(
      async () => (await page.text("#stat-needs-name"))?.startsWith("waits") ?? false,
      "the one who waits",
    );
    const labels = () => page.texts(".session-label");
    expect((await labels())[0]).toBe("waits");
    expect(await page.text(".session-meta")).toBe("Asks: Which one?");
    await page.type("#sessions-text", "hidden");
    await waitFor(async () => (await labels()).length === 0, "no other");

    await page.run(`location.hash = "#/session/hidden"`);
    const facts = async () => (await factsOf(page)).join(" ");
    await waitFor(
      async () => (await page.text("#tabs label")) === "Calls 3" && / Errors1 /.test(await facts()),
      "the server's figures",
    );
    expect(await page.text("#session-status")).toStartWith("Done");
    await waitFor(async () => (await page.count(".turn .line")) === 3, "its calls");
    await post(fresh, call("once more", {}, "hidden"));
    await waitFor(async () => (await page.text("#tabs label")) === "Calls 4", "the fourth");
    expect(await page.text("#session-status")).toStartWith("Active");
    expect(page.problems).toEqual([]);
  });

  test("2,000 sessions that are each other's parents in a circle: all counted, no long frame", async () => {
    await using fresh = await startTestServer();
    const count = 2_000;
    const events = Array.from({ length: count }, (_, index): PostedEvent => ({
      type: "session_start",
      session_id: `s${index}`,
      data: { parent_session_id: `s${(index + 1) % count}` },
    }));
    // Half of them are there, the other half comes: one list of the server holds a thousand.
    await postAll(fresh, events.slice(count / 2));
    using page = await openPage(fresh);
    const endTrace = await startTrace(page);
    await postAll(fresh, events.slice(0, count / 2));
    const note = () => page.text("#sessions-note");
    await waitFor(async () => (await note()) === "1 · 1,999 agents", "the list");
    expect(await page.count(".session-row")).toBe(40);
    await waitFor(
      async () =>
        (await page.text("#timeline-note"))?.startsWith("1 session · 1,999 agents") ?? false,
      "lanes",
    );
    await page.run(`document.querySelector("#timeline-scroll").scrollTop = 30_000`);
    await waitFor(async () => (await page.count(".lane-label")) > 5, "the lanes far below");
    const longest = Math.max(...(await endTrace()).map(({ cpu }) => cpu));
    console.log(`  a circle of 2,000: the longest task took ${longest.toFixed(1)} ms`);
    expect(longest).toBeLessThan(SLACK * MAX_FRAME_MS);
    expect(page.problems).toEqual([]);
  });

  const NAMES = isSoak ? 20_000 : 3_000;
  test(`${NAMES} names of tools: a page of them is shown, and no task is long`, async () => {
    await using fresh = await startTestServer();
    await postAll(
      fresh,
      Array.from({ length: NAMES }, (_, index) => call(`tool ${(index * 7_919) % NAMES}`)),
    );
    using page = await openPage(fresh);
    const rows = () => page.count("#usage tbody tr");
    await waitFor(async () => (await rows()) === 40, "the table");
    const endTrace = await startTrace(page);
    await page.click('#usage-hours [value="24"]');
    await page.click('#usage [data-column="name"] button');
    await waitFor(async () => (await page.text("#usage tbody th")) === "tool 0", "the first name");
    await page.run(`document.querySelector("#usage .more").click()`);
    await waitFor(async () => (await rows()) === 80, "more of it");
    const longest = Math.max(...(await endTrace()).map(({ cpu }) => cpu));
    console.log(`  ${NAMES} names: the longest task took ${longest.toFixed(1)} ms`);
    expect(longest).toBeLessThan(SLACK * MAX_FRAME_MS);
    expect(page.problems).toEqual([]);
  });

  const WEEK = isSoak ? 50_000 : 10_000;
  const PER_SESSION = WEEK / 200;
  const MAX_PAINT_MS = 150;
  const MAX_OPEN_MS = 300;
  test(`a week of ${WEEK} events in 200 sessions: painted in 150 ms, open in 300 ms`, async () => {
    await using fresh = await spawnServer({ dataDir: tempDir() }); // whose core isn't the test's
    const now = Date.now();
    const week = 7 * 24 * 60 * MINUTE_MS;
    const events = Array.from({ length: WEEK }, (_, index): PostedEvent => {
      const timestamp = now - week + (index / WEEK) * week;
      const session_id = `session-${Math.floor(index / PER_SESSION)}`;
      return index % PER_SESSION === 0
        ? {
            type: "session_start",
            session_id,
            timestamp,
            data: { title: `Session ${index / PER_SESSION}` },
          }
        : { ...call("bash", { args: { command: `step ${index}` } }, session_id), timestamp };
    });
    await postAll(fresh, events);
    // What the page itself says: a question from here is only answered between two of its tasks.
    const before = `{
      const look = (_, observer) => {
        if (document.querySelectorAll(".session-row").length < 40 || !document.querySelector(".line")) return;
        observer.disconnect();
        requestAnimationFrame(() => setTimeout(() => { window.openedAt_ = performance.now(); }));
      };
      new MutationObserver(look).observe(document, { childList: true, subtree: true });
    }`;
    using page = await openPage(fresh, { path: "/health", before });
    await fetch(fresh.url); // as the server does itself a moment after its start: the page is bundled
    // The best of three visits at most: other programs may take the processor in one.
    let [painted, opened] = [Infinity, Infinity];
    const isSlow = () => painted >= SLACK * MAX_PAINT_MS || opened >= SLACK * MAX_OPEN_MS;
    for (let visit = 1; visit <= 3 && isSlow(); visit++) {
      await page.goto(`/?visit=${visit}`);
      await waitFor(() => page.run<boolean>("window.openedAt_ > 0"), "the list and the feed");
      opened = Math.min(opened, await page.run<number>("openedAt_"));
      const paint = `performance.getEntriesByName("first-contentful-paint")[0].startTime`;
      painted = Math.min(painted, await page.run<number>(paint));
    }
    const times = `painted in ${Math.round(painted)} ms, open in ${Math.round(opened)} ms`;
    console.log(`  ${WEEK} events in 200 sessions: ${times}`);
    expect(painted).toBeLessThan(SLACK * MAX_PAINT_MS);
    expect(opened).toBeLessThan(SLACK * MAX_OPEN_MS);
  });

  test(`1,000 events/s for ${isSoak ? 30 : 1} s: no frame over 50 ms, heap under 100 MB`, async () => {
    await using fresh = await startTestServer();
    await post(fresh, call("read"));
    using page = await openPage(fresh, { motion: "no-preference" });
    await waitFor(async () => (await subscribers(fresh)) === 1, "the stream");
    await page.run(
      `(() => { window.frames_ = 0; const next = () => { frames_++; requestAnimationFrame(next); }; next(); })()`,
    );
    const endTrace = await startTrace(page);
    const seconds = isSoak ? 30 : 1;
    const startedAt = performance.now();
    let sent = 0;
    let heap = 0;
    while (sent < seconds * 1_000) {
      const due = Math.min(seconds * 1_000, Math.floor(performance.now() - startedAt));
      const batch: PostedEvent[] = [];
      for (; sent < due; sent++) batch.push(loadEvent(sent));
      if (batch.length > 0) await post(fresh, batch);
      const { usedSize } = await page.cdp<{ usedSize: number }>("Runtime.getHeapUsage");
      heap = Math.max(heap, usedSize);
      await Bun.sleep(10); // the load is a rate, not a condition to wait for
    }
    await post(fresh, call("the-last"));
    await waitFor(
      async () => (await page.text("#feed-list .line-name")) === "the-last",
      "the last of them",
    );
    const tasks = await endTrace();
    const frames = await page.run<number>("frames_");
    const longest = (of: "cpu" | "wall") => Math.max(...tasks.map((task) => task[of]));
    console.log(
      `  ${sent} events: ${frames} frames, the longest task of the page took ${longest("cpu").toFixed(1)} ms of its thread ` +
        `(${longest("wall").toFixed(1)} ms by the clock); heap at most ${(heap / 1e6).toFixed(1)} MB`,
    );
    // Of its thread: by the clock a task also takes what other programs on this machine take from it.
    expect(longest("cpu")).toBeLessThanOrEqual(SLACK * MAX_FRAME_MS);
    expect(frames).toBeGreaterThan(seconds * 20);
    expect(heap).toBeLessThan(MAX_HEAP_BYTES);
    const rows = await page.count("*");
    expect(rows).toBeLessThan(5_000);
  });
});

/**
 * Traces the page's main thread, which draws its frames; ends with how long each task was, in
 * milliseconds of the thread's own time and of the clock.
 */
async function startTrace(page: Page): Promise<() => Promise<{ cpu: number; wall: number }[]>> {
  interface TraceEvent {
    name: string;
    pid: number;
    tid: number;
    dur?: number;
    tdur?: number;
    args?: { name?: string };
  }
  const events: TraceEvent[] = [];
  let isComplete = false;
  page.listen("Tracing.dataCollected", (json) => {
    const { value }: { value: TraceEvent[] } = JSON.parse(json);
    events.push(...value.filter(({ name }) => name === "RunTask" || name === "thread_name"));
  });
  page.listen("Tracing.tracingComplete", () => (isComplete = true));
  await page.cdp("Tracing.start", {
    transferMode: "ReportEvents",
    traceConfig: {
      includedCategories: ["disabled-by-default-devtools.timeline", "__metadata"],
      excludedCategories: ["*"],
    },
  });
  return async () => {
    await page.cdp("Tracing.end");
    await waitFor(() => isComplete, "the trace");
    const threadOf = ({ pid, tid }: TraceEvent) => `${pid} ${tid}`;
    const main = new Set(
      events
        .filter(({ name, args }) => name === "thread_name" && args?.name === "CrRendererMain")
        .map(threadOf),
    );
    return events
      .filter((event) => event.name === "RunTask" && main.has(threadOf(event)))
      .map(({ dur = 0, tdur = 0 }) => ({ cpu: tdur / 1_000, wall: dur / 1_000 }));
  };
}

function loadEvent(index: number): PostedEvent {
  const session_id = `load-${index % 40}`;
  if (index % 50 === 0)
    return {
      type: "agent_spawn",
      session_id,
      data: { subagent_type: "explore", prompt: `part ${index}`, call_id: `c${index}` },
    };
  const hasFailed = index % 30 === 0;
  return call(
    ["bash", "read", "edit", "grep", "glob"][index % 5] ?? "bash",
    {
      args: { command: `step ${index}`, note: "x".repeat(100) },
      duration_ms: (index * 37) % 900,
      success: !hasFailed,
      ...(hasFailed ? { error: "exit code 1" } : {}),
    },
    session_id,
  );
}

/** The `task` calls of the captured traffic as events, the first starting at `from`. */
function capturedAgents(from: number): PostedEvent[] {
  const calls = new Map<string, { type: string; start: number; end: number }>();
  for (const { input } of openCodeHooks()) {
    const text = JSON.stringify(input);
    if (!text.includes('"tool":"task"') || !text.includes('"status":"completed"')) continue;
    const id = /"callID":"([^"]+)"/.exec(text)?.[1];
    const type = /"subagent_type":"([^"]+)"/.exec(text)?.[1];
    const time = /"time":\{"start":(\d+),"end":(\d+)/.exec(text);
    if (id && type && time) calls.set(id, { type, start: Number(time[1]), end: Number(time[2]) });
  }
  const first = Math.min(...[...calls.values()].map(({ start }) => start));
  const spawned = [...calls].flatMap(([call_id, { type, start, end }]): PostedEvent[] => [
    {
      type: "agent_spawn",
      session_id: "captured",
      timestamp: from + start - first,
      data: { subagent_type: type, call_id },
    },
    {
      type: "agent_complete",
      session_id: "captured",
      timestamp: from + end - first,
      data: { call_id, duration_ms: end - start, success: true },
    },
  ]);
  return [...spawned, { type: "session_end", session_id: "captured", timestamp: from + SECOND_MS }];
}

// ─── Run in the page ─────────────────────────────────────────────────────────

/** Elements that reach out of the window and aren't cut or scrolled by what they are in. */
const overflowing = `() =>
  [...document.body.querySelectorAll("*")]
    .filter((element) => {
      if (!element.checkVisibility() || element.closest(".skip-link, canvas, datalist")) return false;
      const { left, right, width } = element.getBoundingClientRect();
      if (width === 0 || (left >= -0.5 && right <= innerWidth + 0.5)) return false;
      for (let at = element.parentElement; at !== null; at = at.parentElement)
        if (getComputedStyle(at).overflowX !== "visible") return false;
      return true;
    })
    .map((element) => element.id || element.className)`;

/** Texts whose contrast with what they stand on is under 4.5 (WCAG 2, AA). */
const lowContrast = `() => {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const rgba = (color) => {
    if (known.has(color)) return known.get(color);
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    known.set(color, [r, g, b, a / 255]);
    return known.get(color);
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const luminance = (color) => {
    const [r, g, b] = color.slice(0, 3).map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const layers = [];
    for (let at = element; at !== null; at = at.parentElement) layers.unshift(rgba(getComputedStyle(at).backgroundColor));
    return layers.reduce((under, layer) => over(layer, under), rgba("Canvas"));
  };
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = "var(--tint)";
  const bar = rgba(getComputedStyle(probe).color);
  probe.remove();
  return [...document.body.querySelectorAll("*")]
    .filter((element) => element.checkVisibility() && !element.closest(".skip-link, canvas, option, datalist"))
    .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim() !== ""))
    .map((element) => {
      const under = ground(element);
      // A number in a cell may stand on its bar.
      const grounds = [under, ...(element.matches(".number") ? [over(bar, under)] : [])];
      const ink = rgba(getComputedStyle(element).color);
      const ratio = Math.min(...grounds.map((back) => {
        const [light, dark] = [luminance(over(ink, back)), luminance(back)].sort((a, b) => b - a);
        return (light + 0.05) / (dark + 0.05);
      }));
      return { name: element.className || element.id || element.tagName, ratio };
    })
    .filter(({ ratio }) => ratio < 4.5)
    .map(({ name, ratio }) => name + " " + ratio.toFixed(2));
}`;
