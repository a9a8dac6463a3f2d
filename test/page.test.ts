/** What a browser gets: the page and what it loads, behind the guard; the login; a bundle that fails. */

import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  copyProject,
  getJson,
  sendRaw,
  spawnServer,
  startTestServer,
  statusOf,
  tempDir,
  type TestServer,
  waitFor,
} from "./helpers.ts";

const DAY_MS = 86_400_000;
const START = Date.parse("2026-01-01T12:00:00Z");
const BROWSER = { Accept: "text/html,application/xhtml+xml" };

/** Odd characters that a Bearer may have, and that an address takes for something else. */
const TOKENS = [
  `plus+and/slash=${"t".repeat(20)}`,
  `percent%41and%zz${"t".repeat(20)}`,
  `amp&and;"quotes"${"t".repeat(20)}`,
];

let server: TestServer;
let guarded: TestServer;
let now = START;

beforeAll(async () => {
  server = await startTestServer();
  guarded = await startTestServer({
    config: { authToken: TOKENS[0] as string, allowedHosts: ["box.example"] },
    now: () => now,
  });
});

afterAll(async () => {
  await server[Symbol.asyncDispose]();
  await guarded[Symbol.asyncDispose]();
});

/** What the page loads, as it says. */
async function linkedPaths(headers: Record<string, string> = {}): Promise<string[]> {
  const page = await (await fetch(headers.Cookie ? guarded.url : server.url, { headers })).text();
  return [...page.matchAll(/(?:src|href)="(\/[^"]+)"/g)].map(([, path]) => path ?? "");
}

/** The name and value of the cookie that a login sets. */
async function logIn(target: { url: string } = guarded, headers = {}): Promise<string> {
  const address = `${target.url}/?token=${encodeURIComponent(TOKENS[0] as string)}`;
  const response = await fetch(address, { redirect: "manual", headers });
  return response.headers.get("set-cookie") ?? "";
}
const sent = (cookie: string) => ({ Cookie: cookie.split(";")[0] ?? "" });

describe("the page", () => {
  test("and all that it loads → no other page can frame it, and it loads nothing from elsewhere", async () => {
    const response = await fetch(server.url);
    expect(response.headers.get("content-type")).toBe("text/html; charset=utf-8");
    expect(response.headers.get("x-frame-options")).toBe("DENY");
    expect(response.headers.get("content-security-policy")).toMatch(
      /^default-src 'none';.*frame-ancestors 'none'$/,
    );
    const paths = await linkedPaths();
    expect(paths.map((path) => path.replace(/.*\./, "")).toSorted()).toEqual(["css", "js"]);
    for (const path of paths) {
      const file = await fetch(server.url + path);
      expect([path, file.status]).toEqual([path, 200]);
      expect(file.headers.get("content-type")).toMatch(/^text\/(css|javascript)/);
      expect(file.headers.get("x-content-type-options")).toBe("nosniff");
      expect((await file.text()).length).toBeGreaterThan(1_000);
    }
  });

  test("→ what it loads is refused to a foreign Host, Origin or site, and without the token", async () => {
    const cookie = sent(await logIn());
    const ours = await linkedPaths();
    const theirs = await linkedPaths(cookie);
    expect(theirs).toEqual(ours);
    for (const path of [...ours, "/dashboard.html"]) {
      for (const header of [
        "Host: evil.example",
        "Host: localhost\r\nOrigin: http://evil.example",
        "Host: localhost\r\nSec-Fetch-Site: cross-site",
      ]) {
        const answer = await sendRaw(
          server,
          `GET ${path} HTTP/1.1\r\n${header}\r\nConnection: close\r\n\r\n`,
        );
        expect([path, header, statusOf(answer)]).toEqual([path, header, 403]);
      }
      const status = async (headers = {}) => (await fetch(guarded.url + path, { headers })).status;
      expect(await status()).toBe(401);
      expect(await status(cookie)).toBe(path === "/dashboard.html" ? 404 : 200);
    }
  });

  test("that can't be bundled → 503, a line in the log, and the next request tries again", async () => {
    const project = copyProject();
    const script = join(project, "dashboard", "main.ts");
    const whole = readFileSync(script, "utf8");
    appendFileSync(script, '\nimport "./missing.ts";\n');
    await using broken = await spawnServer({
      dataDir: tempDir(),
      command: [process.execPath, join(project, "server.ts")],
    });
    for (const _ of [1, 2]) {
      const response = await fetch(broken.url);
      expect(response.status).toBe(503);
      expect(await response.json()).toEqual({ error: expect.stringContaining("bundled") });
    }
    await waitFor(() => / error dashboard: /.test(broken.output()), "the line in the log");
    expect((await getJson(broken, "/health")).status).toBe("ok");
    writeFileSync(script, whole);
    const mended = await fetch(broken.url);
    expect([mended.status, (await mended.text()).includes("<script")]).toEqual([200, true]);
  });
});

describe("the login", () => {
  test.each(["/", "/api/sessions", "/nowhere"])(
    "%s without the token, in a browser → 401 with a page that asks for it",
    async (path) => {
      const response = await fetch(guarded.url + path, { headers: BROWSER });
      expect(response.status).toBe(401);
      expect(response.headers.get("content-type")).toBe("text/html; charset=utf-8");
      expect(response.headers.get("x-frame-options")).toBe("DENY");
      const page = await response.text();
      expect(page).toContain('name="token"');
      expect(page).not.toContain("Bearer"); // which is for programs
    },
  );

  test("with a wrong token, in a browser → 401 with the page, which says so, and no cookie", async () => {
    const wrong = "w".repeat(32);
    const response = await fetch(`${guarded.url}/?token=${wrong}`, { headers: BROWSER });
    expect(response.status).toBe(401);
    expect(response.headers.has("set-cookie")).toBe(false);
    const page = await response.text();
    expect(page).toContain("not the AUTH_TOKEN");
    expect(page).not.toContain(wrong);
  });

  test.each(TOKENS)("/?token= takes %s, as typed and as a form sends it", async (token) => {
    await using own = await startTestServer({ config: { authToken: token } });
    const asForm = new URLSearchParams({ token }).toString().slice("token=".length);
    for (const text of [token, encodeURIComponent(token), asForm]) {
      // Raw: `fetch` would encode what a person may type.
      const answer = await sendRaw(
        own,
        `GET /?token=${text} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n`,
      );
      expect([text, statusOf(answer)]).toEqual([text, 303]);
    }
  });

  test("sets a cookie that isn't the token, and ends by itself", async () => {
    const cookie = await logIn();
    expect(decodeURIComponent(cookie)).not.toContain(TOKENS[0] as string);
    expect(cookie).not.toMatch(/; *Secure/i);
    const ask = async () => (await fetch(guarded.url, { headers: sent(cookie) })).status;
    expect(await ask()).toBe(200);
    now = START + 29 * DAY_MS;
    expect(await ask()).toBe(200);
    now = START + 31 * DAY_MS;
    expect(await ask()).toBe(401);
    now = START;
  });

  test("sets a cookie that says nothing at another port or to another token, and can't be lengthened", async () => {
    const cookie = sent(await logIn()).Cookie;
    const [name = "", value = ""] = cookie.split("=");
    const [expires = "", mac = ""] = value.split(".");
    await using sameToken = await startTestServer({ config: { authToken: TOKENS[0] as string } });
    await using otherToken = await startTestServer({ config: { authToken: TOKENS[1] as string } });
    const ask = async (target: TestServer, Cookie: string) =>
      (await fetch(target.url, { headers: { Cookie } })).status;
    expect(name).toBe(`pai_observability_${guarded.port}`);
    expect(await ask(guarded, cookie)).toBe(200);
    expect(await ask(guarded, `${name}=${Number(expires) + 1}.${mac}`)).toBe(401);
    expect(await ask(guarded, `${name}=${expires}.`)).toBe(401);
    for (const other of [sameToken, otherToken]) {
      expect(await ask(other, cookie)).toBe(401);
      expect(await ask(other, `pai_observability_${other.port}=${value}`)).toBe(401);
    }
  });

  test("holds where a page at another port has set a cookie of the same name before it", async () => {
    const cookie = sent(await logIn()).Cookie;
    const [name] = cookie.split("=");
    const headers = { Cookie: `other=1; ${name}=bad; ${cookie}` };
    expect((await fetch(`${guarded.url}/api/sessions`, { headers })).status).toBe(200);
  });

  test("behind a proxy with TLS → a Secure cookie, and its pages are ours", async () => {
    const proxied = { Host: "box.example", "X-Forwarded-Proto": "https" };
    expect(await logIn(guarded, proxied)).toMatch(/; *Secure/i);
    const from = (origin: string) =>
      fetch(`${guarded.url}/api/sessions`, {
        headers: { Host: "box.example", Origin: origin, Authorization: `Bearer ${TOKENS[0]}` },
      });
    expect((await from("https://box.example")).status).toBe(200);
    expect((await from("https://evil.example")).status).toBe(403);
  });
});
