/** Who may ask: Host, Origin, Sec-Fetch-Site and token, over raw sockets and from real Chromium. */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  getJson,
  hasChromium,
  openBrowser,
  openStream,
  postEvent,
  sendRaw,
  startTestServer,
  statusOf,
  type TestServer,
  waitFor,
} from "./helpers.ts";

const ALLOWED_ORIGIN = "http://app.example:5173";
const TOKEN = `odd;chars,"in"%20a=token/+&${"t".repeat(16)}`;
const EVENT = { type: "tool_use", session_id: "s1", data: { tool: "bash" } };

let server: TestServer;
let guarded: TestServer;

beforeAll(async () => {
  server = await startTestServer({
    config: {
      allowedHosts: ["devbox.example", "tunnel.example:8443"],
      allowedOrigins: [ALLOWED_ORIGIN],
    },
  });
  guarded = await startTestServer({
    config: { authToken: TOKEN, allowedOrigins: [ALLOWED_ORIGIN] },
  });
  await postEvent(server, EVENT);
});

afterAll(async () => {
  await server[Symbol.asyncDispose]();
  await guarded[Symbol.asyncDispose]();
});

/** `GET path` with the header lines as they are; PORT in them is the port of the server. */
async function statusFor(headers: string[], target = "/api/sessions", method = "GET") {
  const lines = [`${method} ${target} HTTP/1.1`, ...headers, "Connection: close", "", ""];
  return statusOf(
    await sendRaw(server, lines.join("\r\n").replaceAll("PORT", String(server.port))),
  );
}

describe("Host", () => {
  test.each<[string, number]>([
    ["Host: localhost:PORT", 200],
    ["Host: localhost", 200],
    ["Host: LOCALHOST:PORT", 200],
    ["Host: 127.0.0.1:PORT", 200],
    ["Host: 127.0.0.1:9999", 200], // a tunnel may map the port
    ["Host: [::1]:PORT", 200],
    ["Host: [::1]", 200],
    ["Host: devbox.example", 200], // ALLOWED_HOSTS without a port: any
    ["Host: DEVBOX.example:1234", 200],
    ["Host: tunnel.example:8443", 200], // ALLOWED_HOSTS with a port: that one
    ["Host: tunnel.example:8444", 403],
    ["Host: tunnel.example", 403],
    ["Host: evil.devbox.example", 403],
    ["Host: devbox.example.evil.example", 403],
    ["Host: evil.example", 403], // DNS rebinding: nothing but Host gives it away
    ["Host: evil.example:PORT", 403],
    ["Host: localhost.evil.example:PORT", 403],
    ["Host: 127.0.0.1.evil.example:PORT", 403],
    ["Host: 0.0.0.0:PORT", 403],
    ["Host: 192.168.1.5:PORT", 403],
    ["Host: [::]:PORT", 403],
    ["Host: [::ffff:192.168.1.5]:PORT", 403],
    ["Host: ::1", 400],
    ["Host: localhost:", 400],
    ["Host: localhost:port", 400],
    ["Host: localhost/evil", 400],
    ["Host: http://localhost", 400],
    ["Host: user@localhost", 400],
    ["Host: localhost, evil.example", 400],
    ["Host: localhost\r\nHost: evil.example", 400],
    ["Host: ", 400],
    ["X-No-Host: 1", 400],
  ])("%j → %i", async (header, status) => {
    expect(await statusFor([header])).toBe(status);
  });

  test.each(["localhost:99999", "127.0.0.999", "127.999.999.999:80", "[127.0.0.1]", "[::1::2]"])(
    "%s, of which no URL can be made → 400 or 403 on every route",
    async (host) => {
      for (const path of [
        "/",
        "/health",
        "/api/sessions",
        "/api/analytics/tools?hours=1",
        "/nowhere",
      ])
        expect(await statusFor([`Host: ${host}`], path), path).toBeOneOf([400, 403]);
    },
  );
});

describe("Origin", () => {
  test.each<[string[], number]>([
    [["Host: localhost:PORT", "Origin: http://localhost:PORT"], 200],
    [["Host: 127.0.0.1:PORT", "Origin: http://127.0.0.1:PORT"], 200],
    [["Host: [::1]:PORT", "Origin: http://[::1]:PORT"], 200],
    [["Host: devbox.example", "Origin: http://devbox.example"], 200],
    [["Host: localhost:PORT", `Origin: ${ALLOWED_ORIGIN}`], 200],
    [["Host: localhost:PORT", "Origin: http://127.0.0.1:PORT"], 403],
    [["Host: 127.0.0.1:PORT", "Origin: http://localhost:PORT"], 403],
    [["Host: localhost:PORT", "Origin: http://localhost:5173"], 403],
    [["Host: localhost:PORT", "Origin: http://localhost"], 403],
    [["Host: localhost:PORT", "Origin: https://localhost:PORT"], 403],
    [["Host: devbox.example", "Origin: https://devbox.example"], 200], // a proxy with TLS before it
    [["Host: devbox.example", "Origin: https://other.example"], 403],
    [["Host: localhost:PORT", "Origin: http://evil.example"], 403],
    [["Host: localhost:PORT", "Origin: null"], 403], // a sandboxed frame, a file
    [["Host: localhost:PORT", "Origin: "], 403],
    [["Host: localhost:PORT", "Origin: http://localhost:PORT.evil.example"], 403],
    [["Host: localhost:PORT", "Origin: http://localhost:PORT/"], 403],
    [["Host: localhost:PORT", "Origin: http://app.example"], 403],
    [["Host: localhost:PORT", `Origin: ${ALLOWED_ORIGIN}0`], 403],
    [["Host: localhost:PORT", `Origin: ${ALLOWED_ORIGIN}.evil.example`], 403],
    [["Host: localhost:PORT", `Origin: ${ALLOWED_ORIGIN}`, "Origin: http://evil.example"], 403],
    [["Host: evil.example", "Origin: http://evil.example"], 403],
    [["Host: evil.example", `Origin: ${ALLOWED_ORIGIN}`], 403],
  ])("%j → %i", async (headers, status) => {
    expect(await statusFor(headers)).toBe(status);
  });
});

describe("Sec-Fetch-Site", () => {
  const NAVIGATION = ["Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"];
  test.each<[string, string[], number]>([
    ["GET /api/sessions", ["Sec-Fetch-Site: same-origin"], 200],
    ["GET /api/sessions", ["Sec-Fetch-Site: none"], 200],
    ["GET /api/sessions", ["Sec-Fetch-Site: same-site"], 403],
    ["GET /api/sessions", ["Sec-Fetch-Site: cross-site"], 403],
    ["GET /api/sessions", ["Sec-Fetch-Site: cross-site", "Origin: null"], 403],
    ["GET /api/sessions", ["Sec-Fetch-Site: cross-site", `Origin: ${ALLOWED_ORIGIN}`], 200],
    ["GET /api/sessions", ["Sec-Fetch-Site: same-site", `Origin: ${ALLOWED_ORIGIN}`], 200],
    ["GET /", ["Sec-Fetch-Site: cross-site", ...NAVIGATION], 200], // a link to the dashboard
    ["GET /?x=/y", ["Sec-Fetch-Site: same-site", ...NAVIGATION], 200],
    ["GET /", ["Sec-Fetch-Site: cross-site"], 403],
    [
      "GET /",
      ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: script"],
      403,
    ],
    [
      "GET /",
      ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"],
      403,
    ],
    ["GET /api/sessions", ["Sec-Fetch-Site: cross-site", ...NAVIGATION], 403],
    ["GET /api/events/stream", ["Sec-Fetch-Site: cross-site", ...NAVIGATION], 403],
    ["POST /api/events", ["Sec-Fetch-Site: cross-site", ...NAVIGATION, "Content-Length: 0"], 403],
    ["POST /", ["Sec-Fetch-Site: cross-site", ...NAVIGATION, "Content-Length: 0"], 403],
  ])("%s with %j → %i", async (request, headers, status) => {
    const [method, target] = request.split(" ");
    expect(await statusFor(["Host: localhost:PORT", ...headers], target, method)).toBe(status);
  });
});

/** Every route, and every kind of error. */
const REQUESTS: [string, string, number][] = [
  ["GET", "/", 200],
  ["GET", "/health", 200],
  ["HEAD", "/health", 200],
  ["GET", "/metrics", 200],
  ["GET", "/api/sessions", 200],
  ["GET", "/api/sessions/s1", 200],
  ["GET", "/api/sessions/s1/trace.json", 200],
  ["GET", "/api/events", 200],
  ["GET", "/api/events/stream", 200],
  ["HEAD", "/api/events/stream", 200],
  ["GET", "/api/spans", 200],
  ["GET", "/api/overview", 200],
  ["GET", "/api/analytics/tools", 200],
  ["GET", "/api/analytics/agents", 200],
  ["GET", "/api/analytics/activity", 200],
  ["GET", "/plugin/observability.ts", 200],
  ["OPTIONS", "/api/events", 204],
  ["POST", "/api/events", 415],
  ["POST", "/events", 415],
  ["GET", "/api/sessions?limit=0", 400],
  ["GET", "/api/sessions/unknown", 404],
  ["GET", "/nowhere", 404],
  ["DELETE", "/api/sessions", 400],
  ["DELETE", "/api/sessions/unknown", 404],
  ["DELETE", "/api/spans", 405],
];

describe("on every route", () => {
  test.each(REQUESTS)(
    "%s %s → %i, not to be cached, sniffed, referred or embedded",
    async (method, path, status) => {
      const abort = new AbortController();
      const response = await fetch(server.url + path, { method, signal: abort.signal });
      abort.abort();
      expect(response.status).toBe(status);
      expect(response.headers.toJSON()).toMatchObject({
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
      });
      expect(
        [...response.headers.keys()].filter((name) => name.startsWith("access-control")),
      ).toEqual([]);
    },
  );

  test.each(REQUESTS)(
    "%s %s → 403 for a foreign Host, a foreign Origin, a foreign site",
    async (method, path) => {
      for (const header of [
        "Host: evil.example",
        "Origin: http://evil.example",
        "Sec-Fetch-Site: cross-site",
      ])
        expect([
          header,
          await statusFor(
            header.startsWith("Host") ? [header] : ["Host: localhost", header],
            path,
            method,
          ),
        ]).toEqual([header, 403]);
    },
  );

  test.each(REQUESTS.filter(([, path]) => path !== "/health"))(
    "%s %s → 401 without the token, its own status with it",
    async (method, path, status) => {
      if (method === "OPTIONS") status = 204;
      const abort = new AbortController();
      const ask = async (headers: Record<string, string>) => {
        const response = await fetch(guarded.url + path, { method, headers, signal: abort.signal });
        return response.status;
      };
      // A preflight can't carry it, and tells nothing.
      const refused = method === "OPTIONS" ? 204 : 401;
      expect(await ask({})).toBe(refused);
      expect(await ask({ Authorization: `Bearer ${"w".repeat(32)}` })).toBe(refused);
      expect(await ask({ Authorization: `Bearer ${TOKEN}` })).toBe(
        path.startsWith("/api/sessions/s1") ? 404 : status,
      );
      abort.abort();
    },
  );
});

describe("ALLOWED_ORIGINS", () => {
  test.each([
    ["a success", "GET", "/api/sessions", 200],
    ["an error", "GET", "/api/sessions?limit=0", 400],
    ["an unknown route", "GET", "/nowhere", 404],
    ["a preflight", "OPTIONS", "/api/events", 204],
  ])("%s carries the CORS headers for it", async (_, method, path, status) => {
    const response = await fetch(server.url + path, {
      method,
      headers: { Origin: ALLOWED_ORIGIN },
    });
    expect(response.status).toBe(status);
    expect(response.headers.toJSON()).toMatchObject({
      "access-control-allow-origin": ALLOWED_ORIGIN,
      "access-control-allow-methods": "GET, POST, DELETE",
      "access-control-allow-headers": expect.stringMatching(
        /Authorization.*Content-Type.*Last-Event-ID/,
      ),
      "access-control-expose-headers": expect.stringContaining("Last-Event-ID"),
      vary: "Origin",
    });
    expect(response.headers.has("access-control-allow-credentials")).toBe(false);
  });

  test("a preflight of another origin is refused, without CORS headers", async () => {
    const response = await fetch(`${server.url}/api/events`, {
      method: "OPTIONS",
      headers: { Origin: "http://evil.example", "Access-Control-Request-Method": "POST" },
    });
    expect(response.status).toBe(403);
    expect(
      [...response.headers.keys()].filter((name) => name.startsWith("access-control")),
    ).toEqual([]);
  });

  test("with a token, the preflight passes without it and the 401 can be read", async () => {
    const headers = { Origin: ALLOWED_ORIGIN };
    expect((await fetch(`${guarded.url}/api/events`, { method: "OPTIONS", headers })).status).toBe(
      204,
    );
    const response = await fetch(`${guarded.url}/api/sessions`, { headers });
    expect(response.status).toBe(401);
    expect(response.headers.get("access-control-allow-origin")).toBe(ALLOWED_ORIGIN);
  });
});

describe("AUTH_TOKEN", () => {
  const ask = (path: string, headers: Record<string, string> = {}) =>
    fetch(guarded.url + path, { headers, redirect: "manual" });

  test("/health is open", async () => {
    expect((await ask("/health")).status).toBe(200);
  });

  test.each([
    ["no header", {}],
    ["another token", { Authorization: `Bearer ${"w".repeat(TOKEN.length)}` }],
    ["a beginning of it", { Authorization: `Bearer ${TOKEN.slice(0, -1)}` }],
    ["more than it", { Authorization: `Bearer ${TOKEN}x` }],
    ["it without Bearer", { Authorization: TOKEN }],
    ["it as Basic", { Authorization: `Basic ${btoa(`user:${TOKEN}`)}` }],
    ["an empty Bearer", { Authorization: "Bearer " }],
    ["another cookie", { Cookie: `pai_observability_token=${"w".repeat(TOKEN.length)}` }],
    ["an empty cookie", { Cookie: "pai_observability_token=" }],
  ])("%s → 401 with WWW-Authenticate", async (_, headers) => {
    const response = await ask("/api/sessions", headers);
    expect(response.status).toBe(401);
    expect(response.headers.get("www-authenticate")).toBe("Bearer");
    expect(await response.text()).not.toContain(TOKEN);
  });

  test("a post without it stores nothing", async () => {
    expect((await postEvent(guarded, EVENT)).status).toBe(401);
    expect(await getJson(guarded, "/health")).toMatchObject({ events: 0 });
  });

  test("/?token= sets an HttpOnly, SameSite=Strict cookie, leaves the address bar, and opens everything", async () => {
    const login = await ask(`/?token=${encodeURIComponent(TOKEN)}`);
    expect(login.status).toBe(303);
    expect(login.headers.get("location")).toBe("/");
    const cookie = login.headers.get("set-cookie") ?? "";
    expect(cookie).toMatch(/; *HttpOnly/i);
    expect(cookie).toMatch(/; *SameSite=Strict/i);
    expect(cookie).toMatch(/; *Path=\//i);
    const headers = { Cookie: cookie.split(";")[0] ?? "" };
    expect((await ask("/", headers)).status).toBe(200);
    expect((await ask("/api/sessions", headers)).status).toBe(200);
    const stream = await openStream(guarded, "", headers);
    stream.close();
  });

  test("/?token= with the wrong one → 401 and no cookie", async () => {
    const response = await ask(`/?token=${"w".repeat(32)}`);
    expect(response.status).toBe(401);
    expect(response.headers.has("set-cookie")).toBe(false);
  });

  test("it is not taken from the address of any other route, where it would be logged", async () => {
    expect((await ask(`/api/sessions?token=${encodeURIComponent(TOKEN)}`)).status).toBe(401);
  });
});

test("the demo posts with the AUTH_TOKEN of its environment, and says why it can't without", async () => {
  await using own = await startTestServer({ config: { authToken: TOKEN } });
  const run = async (env: Record<string, string>) => {
    const { exited, stderr } = Bun.spawn(
      [process.execPath, "dashboard/demo.ts", "--once", own.url],
      { cwd: `${import.meta.dir}/..`, env: { PATH: process.env.PATH, ...env }, stderr: "pipe" },
    );
    return { exitCode: await exited, errors: await new Response(stderr).text() };
  };
  const refused = await run({});
  expect(refused).toEqual({ exitCode: 1, errors: expect.stringContaining("401") });
  expect(refused.errors).not.toContain("Is the server running?");
  expect(await run({ AUTH_TOKEN: TOKEN })).toEqual({ exitCode: 0, errors: "" });
  expect((await getJson<{ events: number }>(own, "/health")).events).toBeGreaterThan(1_000);
});

test("the demo goes on once its server is back; what it asks for is the command of the call", async () => {
  await using own = await startTestServer();
  const demo = Bun.spawn([process.execPath, "dashboard/demo.ts", own.url], {
    cwd: `${import.meta.dir}/..`,
    env: { PATH: process.env.PATH },
    stderr: "ignore",
  });
  try {
    let said = "";
    for await (const chunk of demo.stdout.pipeThrough(new TextDecoderStream()))
      if ((said += chunk).includes("Live")) break;
    type Told = { events: { call_id?: string; detail?: string; args?: { command: string } }[] };
    const told = async (type: string) =>
      (await getJson<Told>(own, `/api/events?limit=1000&type=${type}`)).events;
    const calls = new Map((await told("tool_start")).map(({ call_id, args }) => [call_id, args]));
    const asked = (await told("input_requested")).filter(({ call_id }) => calls.has(call_id));
    expect(asked.length).toBeGreaterThan(1);
    for (const { call_id, detail } of asked)
      expect(detail).toBe(`bash: ${calls.get(call_id)?.command}`);
    await own.stop();
    let tries = 0;
    const hangUp = (socket: Bun.Socket) => {
      tries++;
      socket.end();
    };
    const away = Bun.listen({
      ...{ hostname: "127.0.0.1", port: own.port },
      socket: { open: hangUp, data: () => {} },
    });
    await waitFor(() => tries > 1, "the demo to try again");
    away.stop(true);
    await own.restart();
    const count = async () => (await getJson<{ events: number }>(own, "/health")).events;
    const before = await count();
    await waitFor(async () => (await count()) > before, "what it told meanwhile");
  } finally {
    demo.kill();
    await demo.exited;
  }
});

describe.skipIf(!hasChromium)("in Chromium", () => {
  const html = { "Content-Type": "text/html" };
  let attacker: Bun.Server<undefined>;
  let page: Bun.WebView;
  beforeAll(() => {
    page = openBrowser();
    attacker = Bun.serve({
      port: 0,
      hostname: "127.0.0.1",
      fetch: () => new Response("<!doctype html><title>A page</title>", { headers: html }),
    });
  });
  afterAll(async () => {
    page.close();
    await attacker.stop(true);
  });

  /** What a page of another site can try; each try says what it got to read. */
  const attack = (target: string) => `(async () => {
    const body = JSON.stringify(${JSON.stringify(EVENT)});
    const api = ${JSON.stringify(target)} + "/api/events";
    const tries = {
      fetchText: () => fetch(api, { method: "POST", body }).then((r) => r.text()),
      fetchOpaque: () => fetch(api, { method: "POST", mode: "no-cors", body }).then((r) => r.text()),
      fetchJson: () => fetch(api, { method: "POST", headers: { "Content-Type": "application/json" }, body }).then((r) => r.text()),
      fetchNdjson: () => fetch(api, { method: "POST", headers: { "Content-Type": "application/x-ndjson" }, body }).then((r) => r.text()),
      read: () => fetch(api).then((r) => r.text()),
      readOpaque: () => fetch(api, { mode: "no-cors" }).then((r) => r.text()),
      script: () => new Promise((resolve) => {
        const script = document.createElement("script");
        script.onload = () => resolve("loaded");
        script.onerror = () => resolve("");
        script.src = api;
        document.body.append(script);
      }),
      stream: () => new Promise((resolve) => {
        const source = new EventSource(api + "/stream?lastEventId=0");
        source.addEventListener("tool_use", (event) => resolve(event.data));
        source.onopen = () => resolve("opened");
        source.onerror = () => { source.close(); resolve(""); };
      }),
      form: () => new Promise((resolve) => {
        document.body.insertAdjacentHTML("beforeend", '<iframe name="sink"></iframe><form target="sink" method="post" enctype="text/plain"><input></form>');
        const form = document.forms[0];
        form.action = api;
        form.elements[0].name = body.slice(0, -2) + ', "x": "';
        form.elements[0].value = '"}}';
        const frame = document.querySelector("iframe");
        frame.onload = () => { try { resolve(frame.contentDocument.body.textContent); } catch { resolve(""); } };
        form.submit();
      }),
      beacon: async () => { navigator.sendBeacon(api, body); return ""; },
      beaconJson: async () => { navigator.sendBeacon(api, new Blob([body], { type: "application/json" })); return ""; },
    };
    const read = {};
    for (const [name, attempt] of Object.entries(tries)) read[name] = await attempt().catch(() => "");
    return read;
  })()`;

  test.each([
    ["another port of the same host (same-site)", "127.0.0.1", "127.0.0.1"],
    ["another host (cross-site)", "localhost", "127.0.0.1"],
    ["another host (cross-site), the other way round", "127.0.0.1", "localhost"],
  ])(
    "a page of %s stores nothing and reads nothing",
    async (_, from, to) => {
      const refused: string[] = [];
      const debug = (message: string) => void refused.push(message.split(" ", 2).join(" "));
      await using target = await startTestServer({
        config: { host: "localhost" },
        log: { debug, info() {}, warn() {}, error() {} },
      });
      await postEvent(target, EVENT);
      await page.navigate(`http://${from}:${attacker.port}/`);
      const read = await page.evaluate<Record<string, string>>(
        attack(`http://${to}:${target.port}`),
      );
      expect(Object.keys(read)).toHaveLength(11);
      expect(Object.entries(read).filter(([, text]) => text !== "")).toEqual([]);
      // All of them arrived, the beacons too, which nobody can wait for in the page.
      const count = (line: string) => refused.filter((each) => each === line).length;
      await waitFor(() => count("403 POST") === 4 && count("403 OPTIONS") === 3, "the refusals");
      expect(await getJson(target, "/health")).toMatchObject({ events: 1, subscribers: 0 });
    },
    15_000,
  );

  test("a page of an allowed origin posts, reads, and streams", async () => {
    await using target = await startTestServer({
      config: { allowedOrigins: [`http://127.0.0.1:${attacker.port}`] },
    });
    await page.navigate(`http://127.0.0.1:${attacker.port}/`);
    const result = await page.evaluate(`(async () => {
      const api = ${JSON.stringify(target.url)} + "/api/events";
      const source = new EventSource(api + "/stream");
      await new Promise((resolve) => (source.onopen = resolve));
      const streamed = new Promise((resolve) =>
        source.addEventListener("tool_use", (event) => resolve(JSON.parse(event.data).tool)));
      const posted = await fetch(api, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(${JSON.stringify(EVENT)}),
      });
      const history = await fetch(api);
      const tool = await streamed;
      source.close();
      return {
        status: posted.status,
        events: (await history.json()).events.length,
        tool,
        resumesFrom: history.headers.get("Last-Event-ID") === String((await posted.json()).id),
      };
    })()`);
    expect(result).toEqual({ status: 201, events: 1, tool: "bash", resumesFrom: true });
  }, 15_000);

  test("the token typed into the page opens the dashboard, and the address bar has none", async () => {
    await page.navigate(guarded.url);
    await page.evaluate(`(() => {
      document.querySelector("input").value = ${JSON.stringify(TOKEN)};
      document.querySelector("button").click();
    })()`);
    const isOpen = () =>
      page.evaluate<boolean>(`document.querySelector("#stat-agents")?.textContent === "0"`);
    await waitFor(() => isOpen().catch(() => false), "the dashboard");
    expect(await page.evaluate<string>("location.pathname + location.search")).toBe("/");
  }, 15_000);

  test("/?token= leaves the address bar, and EventSource streams with the cookie", async () => {
    await page.navigate(`${guarded.url}/?token=${encodeURIComponent(TOKEN)}`);
    const result = await page.evaluate(`new Promise((resolve) => {
      const source = new EventSource("/api/events/stream");
      source.onopen = () => { source.close(); resolve([location.pathname + location.search, document.cookie]); };
      source.onerror = () => { source.close(); resolve("refused"); };
    })`);
    expect(result).toEqual(["/", ""]);
  }, 15_000);
});
