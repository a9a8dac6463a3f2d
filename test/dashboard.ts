/** The dashboard in a real Chromium, as tests drive it. */

import { type PostedEvent } from "./fixtures.ts";
import { getJson, openBrowser, postEvent, waitFor } from "./helpers.ts";

export interface Page extends Disposable {
  /** The text of the first element that matches; null: there is none, or it isn't shown. */
  text: (selector: string) => Promise<string | null>;
  texts: (selector: string) => Promise<string[]>;
  count: (selector: string) => Promise<number>;
  attribute: (selector: string, name: string) => Promise<string | null>;
  run: <T>(expression: string) => Promise<T>;
  click: (selector: string) => Promise<void>;
  type: (selector: string, text: string) => Promise<void>;
  press: (key: string) => Promise<void>;
  hover: (x: number, y: number) => Promise<void>;
  goto: (path: string) => Promise<void>;
  /** `heard` gets the parameters of a DevTools event as JSON. */
  listen: (type: `${string}.${string}`, heard: (json: string) => void) => void;
  cdp: <T>(method: string, params?: Record<string, unknown>) => Promise<T>;
  /** Errors, and requests to elsewhere, that the page has made. */
  problems: string[];
}

interface PageOptions {
  path?: string;
  width?: number;
  height?: number;
  scheme?: "light" | "dark";
  /** Where it is reduced, the timeline goes on once a second and leaves the machine to the other tests. */
  motion?: "reduce" | "no-preference";
  /** Run in the page before its own script. */
  before?: string;
}

/**
 * Tabs whose page was closed and that are empty again: the next page takes one of them. A new tab starts
 * a process, which costs more than all that most tests do in it.
 */
const emptyTabs: Bun.WebView[] = [];

async function openTab(width: number, height: number): Promise<Bun.WebView> {
  for (let tab = emptyTabs.shift(); tab !== undefined; tab = emptyTabs.shift())
    try {
      if (await tab.evaluate<boolean>("true")) return tab;
    } catch {} // of an earlier test file: closed by then
  const view = openBrowser({ width, height });
  await view.navigate("about:blank");
  // Without the browser's own bars, which it draws anew for each page.
  const { windowId } = await view.cdp<{ windowId: number }>("Browser.getWindowForTarget");
  await view.cdp("Browser.setWindowBounds", { windowId, bounds: { windowState: "fullscreen" } });
  return view;
}

export async function openPage(
  server: { url: string },
  {
    path = "/",
    width = 1440,
    height = 900,
    scheme = "dark",
    motion = "reduce",
    before = "",
  }: PageOptions = {},
): Promise<Page> {
  const view = await openTab(width, height);
  const problems: string[] = [];
  const listeners = new AbortController();
  const listen = (type: `${string}.${string}`, heard: (json: string) => void) =>
    view.addEventListener(type, (event) => heard(JSON.stringify(Reflect.get(event, "data"))), {
      signal: listeners.signal,
    });
  listen("Runtime.exceptionThrown", (json) => problems.push(json));
  listen("Log.entryAdded", (json) => {
    // A request to elsewhere is one: the page's policy forbids it. A server that is away is an error of the
    // network's: that is expected here.
    if (json.includes('"level":"error"') && !json.includes('"source":"network"'))
      problems.push(json);
  });
  for (const domain of ["Runtime", "Log"]) await view.cdp(`${domain}.enable`);
  await view.cdp("Emulation.setDeviceMetricsOverride", {
    width,
    height,
    deviceScaleFactor: 1,
    mobile: false,
  });
  await view.cdp("Emulation.setEmulatedMedia", {
    features: [
      { name: "prefers-color-scheme", value: scheme },
      { name: "prefers-reduced-motion", value: motion },
    ],
  });
  await view.cdp("Emulation.setTouchEmulationEnabled", { enabled: false });
  const script = await view.cdp<{ identifier: string }>("Page.addScriptToEvaluateOnNewDocument", {
    source: before,
  });
  await view.navigate(server.url + path);

  const page: Page = {
    problems,
    run: (expression) => view.evaluate(expression),
    text: (selector) =>
      view.evaluate(
        `(() => { const e = document.querySelector(${JSON.stringify(selector)}); return e?.checkVisibility() ? e.textContent.trim() : null; })()`,
      ),
    texts: (selector) =>
      view.evaluate(
        `[...document.querySelectorAll(${JSON.stringify(selector)})].map((e) => e.textContent.trim())`,
      ),
    count: (selector) =>
      view.evaluate(`document.querySelectorAll(${JSON.stringify(selector)}).length`),
    attribute: (selector, name) =>
      view.evaluate(
        `document.querySelector(${JSON.stringify(selector)})?.getAttribute(${JSON.stringify(name)}) ?? null`,
      ),
    click: (selector) => view.click(selector, { timeout: 5_000 }),
    async type(selector, text) {
      await view.click(selector, { timeout: 5_000 });
      await view.type(text);
    },
    press: (key) => view.press(key),
    async hover(x, y) {
      await view.cdp("Input.dispatchMouseEvent", { type: "mouseMoved", x, y });
    },
    goto: (next) => view.navigate(server.url + next),
    listen,
    cdp: (method, params) => view.cdp(method, params),
    [Symbol.dispose]() {
      listeners.abort();
      const empty = async () => {
        await view.navigate("about:blank");
        await view.cdp("Page.removeScriptToEvaluateOnNewDocument", script);
      };
      // One that hangs never comes back, and nobody waits for it.
      void empty().then(
        () => emptyTabs.push(view),
        () => view.close(),
      );
    },
  };
  await waitFor(
    async () => (await page.attribute("body", "data-view")) !== "loading",
    "the page to have loaded",
  );
  return page;
}

/** The bars that the timeline shows, from the list inside its canvas. */
export async function bars(
  page: Page,
): Promise<{ kind: string; text: string; x: number; y: number; width: number; height: number }[]> {
  const items: { kind: string; text: string; rect: string }[] = await page.run(
    `[...document.querySelectorAll("#timeline-text li")].map((e) => ({ kind: e.dataset.kind, text: e.textContent, rect: e.dataset.rect }))`,
  );
  return items.map(({ kind, text, rect }) => {
    const [x = 0, y = 0, width = 0, height = 0] = rect.split(" ").map(Number);
    return { kind, text, x, y, width, height };
  });
}

/** What the head of a session's page says, each with its name. */
export function factsOf(page: Page): Promise<string[]> {
  return page.run(
    `[...document.querySelectorAll("#session-facts > div")].map((fact) => [...fact.children].map((e) => e.textContent).join(""))`,
  );
}

export function setHidden(page: Page, isHidden: boolean): Promise<unknown> {
  return page.run(
    `(() => { Object.defineProperty(document, "hidden", { configurable: true, get: () => ${isHidden} }); document.dispatchEvent(new Event("visibilitychange")); })()`,
  );
}

/** A session that has just used some tools, all at one time so that their order is theirs. */
export function call(
  tool: string,
  data: Record<string, unknown> = {},
  session_id = "s1",
): PostedEvent {
  return { type: "tool_use", session_id, data: { tool, duration_ms: 40, ...data } };
}

export async function post(
  server: { url: string },
  events: PostedEvent | PostedEvent[],
): Promise<void> {
  const { status, body } = await postEvent(server, events);
  if (status !== 201) throw new Error(body.error ?? `status ${status}`);
}

export async function postAll(server: { url: string }, events: PostedEvent[]): Promise<void> {
  for (let index = 0; index < events.length; index += 1_000)
    await post(server, events.slice(index, index + 1_000));
}

export const subscribers = async (server: { url: string }) =>
  (await getJson<{ subscribers: number }>(server, "/health")).subscribers;
