/** What a person looks for: events of long ago, what it cost, the calls behind a figure. */

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { isAbout, readEvent } from "../dashboard/events.ts";
import { hasWords, wordsIn } from "../dashboard/find.ts";
import { formatChange } from "../dashboard/format.ts";
import { lineOf } from "../dashboard/panels/feed.ts";
import { excerptOf } from "../dashboard/panels/search.ts";
import { createRows, takeSession, takeSpan } from "../dashboard/rows.ts";
import { type Page, call, openPage, post, postAll } from "./dashboard.ts";
import type { PostedEvent } from "./fixtures.ts";
import { getJson, hasChromium, startTestServer, type TestServer, waitFor } from "./helpers.ts";
import { NOW, iso, sessionRow, spanRow } from "./rows.ts";

setDefaultTimeout(20_000);

const DAY_MS = 86_400_000;

test.each([
  [{ args: { command: "bun test" } }, "TEST", "bun test"],
  [{ args: '{"filePath":"/src/a.ts"}' }, "a.ts", "/src/a.ts"],
  [{ title: "東京タワー" }, "京", "東京タワー"],
  [{ error: "bad", args: { a: "one", b: ["two"] } }, "two", "bad · one · two"],
  [{ text: `${"long ".repeat(99)}needle` }, "Needle", "… long long long long long needle"],
  [{ id: "x", tool: "x", n: 1 }, "x", ""],
])("the text around a word: %j, %s", (fields, text, excerpt) => {
  expect(excerptOf(fields, wordsIn(text)[0] ?? "")).toBe(excerpt);
});

test.each([
  [12, 10, "+20 %"],
  [5, 10, "−50 %"],
  [10, 10, "±0 %"],
  [50, 2, "×25"],
  [5, 0, ""],
  [null, 5, ""],
  [5, null, ""],
])("formatChange: %p from %p → %p", (now, before, text) => {
  expect(formatChange(now, before)).toBe(text);
});

test("hasWords lets through what the server's index finds: without accents, capitals and signs", () => {
  expect(hasWords('{"path":"/src/Búild.ts"}', wordsIn("build.TS *"))).toBe(true);
  expect(hasWords('{"path":"/src/build.ts"}', wordsIn("build js"))).toBe(false);
});

const NOTES = "/srv/app/docs/notes.md";
test.each([
  [{ files: [{ path: "docs/notes.md" }] }, true],
  [{ args: { filePath: NOTES } }, true],
  [{ args: { file_path: String.raw`C:\app\Docs\notes.md` } }, true],
  [{ args: `{"path":"./docs/notes.md","content":"cut he` }, true],
  [{ args: { filePath: "/srv/app/mydocs/notes.md" } }, false],
  [{ args: { filePath: "/srv/app/docs/notes.md.bak" } }, false],
  [{ args: { filePath: "/a.ts", newString: `{"path":"docs/notes.md"} docs/notes.md` } }, false],
  [{ args: { command: "cat docs/notes.md" }, error: "docs/notes.md" }, false],
])("%j → is about docs/notes.md: %p", (fields, expected) => {
  for (const typed of ["docs/notes.md", "./docs/notes.md", "/docs/notes.md"])
    expect(isAbout(fields, typed)).toBe(expected);
});

test("a line of the feed: an agent by its task where only the call that sent it out is here, a path from the session's directory", () => {
  const rows = createRows();
  takeSession(rows, sessionRow("s1", { info: { directory: "/srv/app" } }), 1);
  const lineAfter = (...events: { id: number; type: string; [field: string]: unknown }[]) => {
    const [first, ...others] = events.flatMap(
      (event) => readEvent({ session_id: "s1", timestamp: iso(NOW), ...event }) ?? [],
    );
    if (first === undefined) throw new Error("expected an event");
    const { name, text } = lineOf(rows, [first, ...others], null, NOW);
    return `${name}: ${text}`;
  };
  const args = { subagent_type: "engineer", description: "Mend it", prompt: "Mend all of it" };
  const ended = { call_id: "c", outcome: "failed" };
  const agent = { id: 9, type: "agent_complete", subagent_type: "engineer", ...ended };
  const task = { id: 8, type: "tool_use", tool: "task", args, ...ended };
  expect(lineAfter(agent, task)).toBe("Mend it: failed: engineer");
  takeSpan(rows, spanRow(8, { name: "task", call_id: "c", text: JSON.stringify(args) }), 8);
  expect(lineAfter(agent, task)).toBe("Mend it: failed: engineer");
  const call = (tool: string, given: object) =>
    lineAfter({ id: 7, type: "tool_use", tool, outcome: "failed", args: given });
  expect(call("edit", { filePath: NOTES })).toBe("edit: failed: docs/notes.md");
  expect(call("edit", { filePath: "/srv/apple/a.ts" })).toBe("edit: failed: /srv/apple/a.ts");
  expect(call("bash", { command: "/srv/app/run.sh" })).toBe("bash: failed: /srv/app/run.sh");
});

describe.skipIf(!hasChromium)("the page", () => {
  let server: TestServer;
  let page: Page;
  const OLD = Date.now() - 6 * DAY_MS;

  const answer = (at: number, index: number, cost: number): PostedEvent => ({
    type: "model_response",
    session_id: `spent-${index}`,
    timestamp: at,
    data: {
      call_id: "m",
      model: ["opus", "haiku"][index % 2],
      agent: "build",
      cost,
      tokens: { input: 100 * index, output: 10, reasoning: 5, cache_read: 1_000, cache_write: 1 },
    },
  });
  const typeIn = (text: string) =>
    page.run(
      `(() => { const box = document.querySelector("#search-text"); box.value = ${JSON.stringify(text)}; box.dispatchEvent(new Event("input")); })()`,
    );
  const search = async (text: string) => {
    await typeIn(text);
    const isOver = async () => (await page.text("#search-note")) !== "Searching…";
    await waitFor(isOver, `an answer for ${text}`);
    return page.texts("#search .line");
  };

  beforeAll(async () => {
    server = await startTestServer();
    const old = { session_id: "old", timestamp: OLD };
    const start = { tool: "edit", call_id: "c1", args: { filePath: "src/needle.ts" } };
    await postAll(server, [
      { ...old, type: "session_start", data: { title: "Long ago <b>" } },
      { ...old, type: "tool_start", data: start },
      {
        ...old,
        type: "tool_use",
        data: { ...start, duration_ms: 7, args: { pattern: "needle of hay" } },
      },
      { ...old, type: "turn_start", data: { prompt: "a needle, please" } },
      {
        ...{ type: "tool_use", session_id: "wrote", timestamp: OLD },
        data: { tool: "write", args: { filePath: NOTES }, files: [{ path: "docs/notes.md" }] },
      },
      // More than one answer holds that only mention it.
      ...Array.from({ length: 1_001 }, (_, index) => {
        const text = `See ${NOTES} ${index < 50 ? "fifty" : ""} ${index < 60 ? "sixty" : ""}`;
        const args = { filePath: `/srv/app/${index}.ts`, newString: text };
        const mention = { type: "tool_use", session_id: "mentions", timestamp: OLD };
        return { ...mention, data: { tool: "edit", args } };
      }),
      ...Array.from({ length: 2_600 }, (_, index) =>
        call("bash", { call_id: `b${index}`, duration_ms: index, success: index !== 17 }, "new"),
      ),
      { type: "session_start", session_id: "spent-0", data: { directory: "/srv/shop" } },
      ...[0, 1, 2, 8, 20, 40].map((days, index) =>
        answer(Date.now() - days * DAY_MS, index, 1.5 + index),
      ),
      // So many that the page hasn't the old one when it is loaded.
      ...Array.from({ length: 1_000 }, (_, n) => ({ type: "session_start", session_id: `n${n}` })),
    ]);
    const isIndexed = async () =>
      (await getJson<{ indexed_to?: number }>(server, "/api/events?q=x")).indexed_to === undefined;
    await waitFor(isIndexed, "the index");
    page = await openPage(server);
  });

  afterAll(async () => {
    expect(page.problems).toEqual([]);
    page[Symbol.dispose]();
    await server[Symbol.asyncDispose]();
  });

  test("search: what isn't loaded is found by keyboard, and opened at its call", async () => {
    await page.run(
      `document.dispatchEvent(new KeyboardEvent("keydown", { key: "k", ctrlKey: true, cancelable: true }))`,
    );
    expect(await page.run<string>(`document.activeElement.id`)).toBe("search-text");
    await search("ago LONG");
    const headings = () => page.texts("#search h3:not([hidden])");
    await waitFor(async () => (await headings()).join() === "Sessions,Events", "the old session");
    expect(await search("Needle")).toHaveLength(2); // a call once, by its end
    await waitFor(
      async () =>
        (await page.texts("#search .line-session")).every((name) => name === "Long ago <b>"),
      "the session's name",
    );
    for (const _ of [1, 2]) await page.press("ArrowDown");
    expect(await page.text("#search .line:has(:focus) .line-text")).toContain("hay");
    await page.press("Enter");
    const { spans } = await getJson<{ spans: { id: number }[] }>(
      server,
      "/api/spans?sessionId=old",
    );
    await waitFor(
      async () =>
        (await page.run<string>("location.hash")) === `#/session/old?span=${spans[0]?.id}`,
      "the span of the call in the address",
    );
    expect(await page.text("#search")).toBeNull();
    await waitFor(async () => (await page.text("#readout-head")) !== "", "the selected call");

    await page.click("#search-open");
    expect(await search("file:src/needle.ts")).toHaveLength(1);
    expect(await page.attribute("#search .line-session", "title")).toBe("Long ago <b>");
    for (const typed of ["docs/notes.md", "notes.md", NOTES]) {
      expect(await search(`file:${typed}`)).toHaveLength(1);
      expect(await page.text("#search .line-name")).toBe("write");
      expect(await page.attribute("#search .line-text", "title")).toStartWith(NOTES);
      expect(await page.text("#search-more")).toBeNull(); // there is no more
    }
    expect(await search("file:app/7.ts")).toHaveLength(1);
    expect(await search("file:otes.md")).toHaveLength(0);
    expect(await search("fifty")).toHaveLength(50);
    expect(await page.text("#search-more")).toBeNull();
    expect(await search("sixty")).toHaveLength(50);
    await page.run(`document.querySelector("#search-more").click()`);
    await waitFor(async () => (await page.count("#search .line")) === 60, "more");
    expect(await page.text("#search-more")).toBeNull();
    expect(await search("ago LONG")).toHaveLength(2);
    expect(await headings()).toEqual(["Sessions", "Events"]);
    expect(await search("needle")).toHaveLength(2);
    expect(await headings()).toEqual(["Events"]);
    for (const odd of ['"', "*", "-a-", "🙈", "東京", "NEAR(", "file:", "'; DROP", "\\", "zzzz"]) {
      await search(odd);
      expect(await page.text("#search-note")).not.toContain("can't tell");
    }
    expect(await page.text("#search-note")).toBe("No session or event matches.");
    await page.press("Escape");
    expect(await page.text("#search")).toBeNull();
  });

  test("an answer that comes after the next question counts for nothing", async () => {
    // The first request's answer is there, and waits to be handed over; then it is read to its end.
    await page.run(`(() => {
      const ask = fetch;
      window.fetch = async (path, init) => {
        window.fetch = ask;
        const answer = await ask(path, init);
        const body = await answer.json();
        answer.json = async () => (setTimeout(() => (window.isRead = true)), body);
        await new Promise((handOver) => (window.handOver = handOver));
        return answer;
      };
    })()`);
    await page.click("#search-open");
    await typeIn("needle");
    await waitFor(() => page.run<boolean>("'handOver' in window"), "the first answer");
    await search("zzzz");
    await page.run("handOver()");
    await waitFor(() => page.run<boolean>("window.isRead === true"), "the first answer to be read");
    expect(await page.texts("#search .line")).toEqual([]);
    expect(await page.text("#search-note")).toBe("No session or event matches.");
    await page.press("Escape");
  });

  test("the feed's filters ask the server: of what isn't loaded, and before they say that there is none", async () => {
    await page.run(`void (location.hash = "#/?q=HAY")`);
    await waitFor(
      async () => (await page.count("#feed-list .line")) === 1,
      "the event of long ago",
    );
    await page.run(`void (location.hash = "#/?q=zzzz")`);
    await waitFor(async () => (await page.text("#feed .panel-empty")) !== null, "no event matches");
  });

  test("a row of the figures opens its slowest and its failed calls, and says of how many", async () => {
    await page.run(`void (location.hash = "#/")`);
    await waitFor(async () => (await page.count("#usage tbody tr")) === 1, "usage");
    await page.click("#usage tbody button");
    await waitFor(async () => (await page.texts("#search .line")).length === 11, "the calls");
    expect(await page.texts("#search .line-length")).toContain("2.6 s");
    expect(await page.text("#search-note")).toContain("Of all 2,600");
    expect(await page.text("#search-note")).toContain("1 of them failed");
    await page.press("Escape");
    await page.click('#usage-kind [value="models"]');
    await page.click('#usage-hours [value="24"]');
    await waitFor(async () => (await page.texts("#usage tbody th")).includes("opus"), "models");
  });

  test("spend: as the API sums it up, against the time before", async () => {
    await page.click("#connection"); // paused: it is asked for all the same
    await page.click('.header a[href="#/spend"]');
    await waitFor(async () => (await page.text("#spend-days strong")) !== null, "what was spent");
    await page.click("#connection");
    type Row = { model: string; cost: number };
    const costs = async (days: number, before = 0) => {
      const query = `by=model&days=${days}&before_hours=${before * 24}`;
      const url = `/api/analytics/spend?${query}`;
      const { spend } = await getJson<{ spend: Row[] }>(server, url);
      return spend;
    };
    const sum = (rows: Row[]) => rows.reduce((all, { cost }) => all + cost, 0);
    for (const days of [1, 7, 30]) {
      const button = `#spend-days [value="${days}"]`;
      await page.click(button);
      const [rows, before] = [await costs(days), await costs(days, days)];
      const wanted = rows.map(({ model, cost }) => `${model} $${cost.toFixed(2)}`);
      await waitFor(async () => {
        const names = await page.texts("#spend tbody th");
        const figures = await page.texts("#spend tbody td:nth-child(2) .number");
        return names.map((name, index) => `${name} ${figures[index]}`).join() === wanted.join();
      }, `${days} days: ${wanted}`);
      expect(await page.text(`${button} strong`)).toBe(`$${sum(rows).toFixed(2)}`);
      expect(await page.text(`${button} small`)).toStartWith(formatChange(sum(rows), sum(before)));
    }
    expect(await page.count("#spend-bars i")).toBe(30);
    await page.click('#spend thead [data-column="Input"] button');
    const inputs = await page.texts("#spend tbody td:nth-child(4) .number");
    expect(inputs).toEqual(["600", "400"]);
    await page.click('#spend-by [value="directory"]');
    await waitFor(
      async () => (await page.texts("#spend tbody th")).join() === "Not told,/srv/shop",
      "directories",
    );
    await page.run(`void (location.hash = "#/session/spent-1?tab=cost")`);
    const cost = async () => (await page.texts("#cost tbody :is(th, .number)")).join();
    await waitFor(async () => (await cost()) === "haiku,$2.50,1.12K,100,10,5,1K,1", "its cost");
  });

  test("a session is deleted after a question, and the page goes back", async () => {
    await post(server, call("bash", {}, "gone"));
    await page.run(`void (location.hash = "#/session/gone")`);
    await page.run(`window.confirm = (question) => (document.body.dataset.asked = question)`);
    await page.click("#session-delete");
    expect(await page.attribute("body", "data-asked")).toContain("all below it");
    await waitFor(async () => (await page.run("location.hash")) === "#/", "the overview");
    expect((await fetch(`${server.url}/api/sessions/gone`)).status).toBe(404);
    await waitFor(
      async () => !(await page.texts(".session-label")).includes("gone"),
      "the list without it",
    );
  });

  test("usage: the figures stand apart at each width; of a call whose agent counts for its time there is none", async () => {
    const long = { duration_ms: 4_331_000, waited_ms: 2_166_000 };
    const [call_id, duration_ms, subagent_type] = ["t", 5_000, "engineer"];
    await post(server, [
      ...["webfetch", "todowrite"].map((tool) => call(tool, long)),
      { type: "agent_spawn", session_id: "s1", data: { call_id, subagent_type } },
      call("task", { call_id, duration_ms }),
      {
        type: "agent_complete",
        session_id: "s1",
        data: { call_id, subagent_type, duration_ms },
      },
    ]);
    await page.click('#usage-kind [value="tools"]');
    const names = () => page.texts("#usage tbody th");
    await waitFor(async () => (await names()).includes("task"), "the table");
    const row = (await names()).indexOf("task") + 1;
    const figures = await page.texts(`#usage tbody tr:nth-child(${row}) .number`);
    expect(figures).toEqual(["1", "–", "–", "–", "–", "0"]);
    for (const width of [1440, 1280, 380]) {
      const metrics = { width, height: 900, deviceScaleFactor: 1, mobile: false };
      await page.cdp("Emulation.setDeviceMetricsOverride", metrics);
      const gaps = await page.run<number[]>(`[...document.querySelectorAll("#usage tr")].flatMap(
        (row) => [...row.children].map((cell) => {
          const text = document.createRange();
          text.selectNodeContents(cell.querySelector(".number, button"));
          return text.getBoundingClientRect();
        }).map(({ left }, index, all) => left - (all[index - 1]?.right ?? -99)))`);
      expect([width, Math.min(...gaps) >= 8]).toEqual([width, true]);
    }
  });
});
