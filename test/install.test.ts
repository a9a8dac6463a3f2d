/** What is done once on a machine: the words after the server's name, the package, the executable. */

import { afterEach, describe, expect, test } from "bun:test";
import { Database } from "bun:sqlite";
import * as fs from "node:fs";
import { join } from "node:path";
import { scripts } from "../package.json";
import {
  describeService,
  formatEnv,
  parseEnv,
  PLUGIN_VERSION,
  pluginFor,
  userDataDir,
} from "../plugin/install.ts";
import { loadConfig } from "../server.ts";
import {
  databasePath,
  postEvent,
  removeTempDirs,
  spawnServer,
  startTestServer,
  startWriters,
  tempDir,
  waitFor,
} from "./helpers.ts";

afterEach(removeTempDirs);

const PROJECT = join(import.meta.dir, "..");
const SERVER = [process.execPath, join(PROJECT, "server.ts")];
const TOKEN = "0123456789abcdef0123456789abcdef";
const toolEvent = () => ({
  type: "tool_use",
  session_id: "s-1",
  data: { tool: "bash", call_id: "c-1" },
});
const hasVerifier = Bun.which("systemd-analyze") !== null;

/** A home of its own, empty: nothing of this one's is read or written. */
function makeHome() {
  const home = tempDir();
  const opencode = join(home, "opencode");
  const at = (...parts: string[]) => join(opencode, ...parts);
  const spawn = async (cmd: string[], env: Record<string, string> = {}, cwd = home) => {
    const child = Bun.spawn({
      cmd,
      cwd,
      env: { PATH: process.env.PATH ?? "", HOME: home, XDG_CONFIG_HOME: home, ...env },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    });
    const [stdout, stderr, exitCode] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    return { exitCode, said: stdout + stderr };
  };
  return {
    home,
    spawn,
    plugin: at("plugins", "observability.ts"),
    old: at("plugin", "observability.ts"),
    settings: at("pai-observability.json"),
    /** Its files, without those that Bun keeps for itself. */
    files: () =>
      fs
        .readdirSync(home, { recursive: true, withFileTypes: true })
        .filter((it) => it.isFile() && !it.parentPath.includes(".bun"))
        .map((it) => it.name)
        .toSorted(),
    /** What `command` says to these words, and its exit code. */
    run: (words: string, env: Record<string, string> = {}, command = SERVER, cwd = home) =>
      spawn([...command, ...words.split(" ")], env, cwd),
  };
}

const read = (path: string) => fs.readFileSync(path, "utf8");
const modeOf = (path: string) => (fs.statSync(path).mode & 0o777).toString(8);
const write = (path: string, text: string) => Bun.write(path, text);
const withVersion = (version: string) => pluginFor("http://x:1").replace(PLUGIN_VERSION, version);

test.each([
  ["--help", 0, "connect"],
  ["frobnicate", 2, "frobnicate: not understood"],
  ["backup", 2, "backup: not understood"],
  ["backup --help", 0, "backup FILE"],
  ["backup --all", 2, "backup --all: not understood"],
  ["service start", 2, "service start: not understood"],
  ["doctor --force", 2, "doctor --force: not understood"],
])("bun server.ts %s → exit code %i, and which words there are", async (words, code, said) => {
  const result = await makeHome().run(words);
  expect(result.exitCode).toBe(code);
  expect(result.said).toContain(said);
  expect(result.said).toContain("service install|remove");
});

describe("connect", () => {
  test("writes the plugin that a server at this address hands out; --dry-run only says so", async () => {
    const { run, plugin, files } = makeHome();
    const dry = await run("connect --dry-run", { PORT: "4321" });
    expect(dry).toMatchObject({
      exitCode: 0,
      said: expect.stringContaining(`would write ${plugin}`),
    });
    expect(files()).toEqual([]);
    expect((await run("connect", { PORT: "4321" })).said).toContain("restart OpenCode");
    expect(read(plugin)).toBe(pluginFor("http://localhost:4321"));
    expect((await run("connect", { PORT: "4321" })).said).toContain("already");
    expect(files()).toEqual(["observability.ts"]);
  });

  test("an older one is replaced, and goes from the old place; a newer one stays without --force", async () => {
    const { run, plugin, old, files } = makeHome();
    await write(plugin, withVersion("2.9.0"));
    await write(old, withVersion("1.0.0"));
    expect((await run("connect")).said).toContain(`2.9.0 → ${PLUGIN_VERSION}`);
    expect(files()).toEqual(["observability.ts"]);
    await write(plugin, withVersion("99.0.0"));
    expect((await run("connect")).said).toContain("99.0.0 is newer");
    expect(read(plugin)).toBe(withVersion("99.0.0"));
    expect((await run("connect --force")).said).toContain(`99.0.0 → ${PLUGIN_VERSION}`);
    expect(read(plugin)).toBe(pluginFor("http://localhost:3001"));
  });

  test("a file of somebody else is kept beside it, a link is replaced and not followed", async () => {
    const { home, run, plugin, old, files } = makeHome();
    await write(join(home, "mine.ts"), withVersion("2.0.0"));
    await write(plugin, "export default 1");
    await write(old, "export default 2");
    expect((await run("connect")).said).toContain("which isn't ours");
    const [kept = ""] = files().filter((name) => name.endsWith(".bak"));
    expect(read(join(home, "opencode", "plugins", kept))).toBe("export default 1");
    expect(read(old)).toBe("export default 2");
    fs.rmSync(plugin);
    fs.symlinkSync(join(home, "mine.ts"), plugin);
    await run("connect");
    expect(read(join(home, "mine.ts"))).toBe(withVersion("2.0.0"));
    expect(read(plugin)).toBe(pluginFor("http://localhost:3001"));
  });

  test("AUTH_TOKEN reaches the plugin's settings, for you alone; what else they say stays, and is told", async () => {
    const { run, settings } = makeHome();
    await write(settings, '{"content":"none","server":"http://elsewhere:1"}');
    const { said } = await run("connect", { AUTH_TOKEN: TOKEN });
    expect(JSON.parse(read(settings))).toEqual({
      content: "none",
      server: "http://elsewhere:1",
      token: TOKEN,
    });
    expect(modeOf(settings)).toBe("600");
    expect(said).toContain("!! it posts to http://elsewhere:1");
    expect(said).not.toContain(TOKEN);
    await write(settings, "{");
    expect(await run("connect", { AUTH_TOKEN: TOKEN })).toMatchObject({ exitCode: 1 });
    expect(read(settings)).toBe("{");
  });
});

describe("doctor", () => {
  test("all is well → exit code 0, a line for each check, no trace", async () => {
    await using server = await startTestServer({ config: { authToken: TOKEN } });
    const { run } = makeHome();
    const env = { PORT: String(server.port), DATA_DIR: server.dataDir, HOST: "127.0.0.1" };
    await run("connect", { ...env, AUTH_TOKEN: TOKEN });
    expect((await run("doctor", env)).said).toContain("-- OpenCode hasn't reported");
    const alive = { sender: "one", name: "opencode", version: PLUGIN_VERSION };
    const json = { Authorization: `Bearer ${TOKEN}`, "Content-Type": "application/json" };
    const heard = { method: "POST", headers: json, body: JSON.stringify(alive) };
    await fetch(`${server.url}/api/senders`, heard);
    const { exitCode, said } = await run("doctor", env);
    expect(said).not.toContain("!!");
    expect(said).toContain("ok OpenCode has reported");
    for (const what of ["Bun", "plugin", "server", "version", "clocks", "test event", "database"])
      expect(said).toContain(`ok ${what} `.replace("test event ", "test event:"));
    expect(exitCode).toBe(0);
    const headers = { Authorization: `Bearer ${TOKEN}` };
    const ask = async (path: string) => (await fetch(server.url + path, { headers })).json();
    expect(await ask("/api/events")).toEqual({ events: [] });
    expect(await ask("/api/senders")).toMatchObject({ senders: [alive] });
  });

  test("a wrong token, a plugin that isn't there, a second one, a file that others may read, a wrong clock", async () => {
    const now = () => Date.now() - 3_600_000;
    await using server = await startTestServer({ config: { authToken: TOKEN }, now });
    const { home, run, old } = makeHome();
    await write(old, withVersion("1.0.0"));
    await write(`${home}/.opencode`, "not a directory");
    fs.chmodSync(databasePath(server.dataDir), 0o644);
    const { exitCode, said } = await run("doctor", {
      PORT: String(server.port),
      DATA_DIR: server.dataDir,
      HOST: "127.0.0.1",
    });
    for (const what of ["plugin not there", old, "clocks", "test event", "others may read"])
      expect(said).toMatch(new RegExp(`^!! ${what}`, "m"));
    expect(said).toMatch(/^!! test event: 401 /m);
    expect(exitCode).toBe(1);
  });

  test("no server, another program's port, a corrupt database → what to do; --dry-run asks nobody", async () => {
    let requestCount = 0;
    using other = Bun.serve({ port: 0, fetch: () => (requestCount++, new Response("hello")) });
    const { home, run } = makeHome();
    const env = { PORT: String(other.port), DATA_DIR: home };
    expect((await run("doctor --dry-run", env)).said).toContain("would ask");
    expect(requestCount).toBe(0);
    await write(databasePath(home), "no database");
    const { said } = await run("doctor", env);
    expect(said).toMatch(/^!! server .*another program/m);
    expect(said).toMatch(/^!! database /m);
    fs.rmSync(databasePath(home));
    {
      using db = new Database(databasePath(home));
      db.run("CREATE TABLE t (text)");
    }
    const file = fs.readFileSync(databasePath(home));
    fs.writeFileSync(databasePath(home), file.fill(7, 4_096)); // SQLite says so in several lines
    const damaged = await run("doctor", env);
    expect(damaged.said).toMatch(/^!! database .*put a backup back$/m);
    const nobody = await run("doctor", { PORT: "1", DATA_DIR: home });
    expect(nobody.said).toMatch(/^!! server http:\/\/localhost:1: no answer.*: start it there$/m);
    const elsewhere = { ...env, PORT: "1", OBSERVABILITY_SERVER: `http://localhost:${other.port}` };
    expect((await run("doctor", elsewhere)).said).toContain(
      "this PORT and HOST say http://localhost:1",
    );
  });
});

describe("backup", () => {
  test("while events come in → a whole copy, for you alone, which a server takes", async () => {
    await using server = await startTestServer();
    const { home, run } = makeHome();
    let count = 0;
    const writers = startWriters(server, () => ({ ...toolEvent(), id: `e-${count++}` }));
    await waitFor(() => writers.acknowledged.size > 200, "200 events");
    const before = new Set(writers.acknowledged);
    const copy = join(home, "copy.db");
    const env = { DATA_DIR: server.dataDir };
    expect((await run("backup copy.db --dry-run", env)).said).toContain("would copy");
    expect(fs.existsSync(copy)).toBe(false);
    const { exitCode, said } = await run("backup copy.db", env);
    writers.stop();
    await writers.ended;
    expect({ exitCode, said }).toEqual({
      exitCode: 0,
      said: expect.stringContaining("put it back"),
    });
    expect(modeOf(copy)).toBe("600");
    expect(writers.refused).toEqual([]);

    const again = await run("backup copy.db", env);
    expect(again).toMatchObject({ exitCode: 1, said: expect.stringContaining("already") });

    const dataDir = tempDir();
    fs.renameSync(copy, databasePath(dataDir));
    await using restored = await startTestServer({ dataDir });
    expect((await fetch(`${restored.url}/health`)).status).toBe(200);
    using db = new Database(databasePath(dataDir), { readonly: true });
    const ids = db.query<{ client_id: string }, []>("SELECT client_id FROM events").all();
    const stored = new Set(ids.map(({ client_id }) => client_id));
    expect(before.difference(stored).size).toBe(0);
  }, 20_000);

  test("of no database, or into no directory → exit code 1, and nothing is left", async () => {
    await using server = await startTestServer();
    const { run, files } = makeHome();
    for (const [words, dataDir] of [
      ["backup copy.db", tempDir()],
      ["backup no/copy.db", server.dataDir],
    ] as const)
      expect(await run(words, { DATA_DIR: dataDir })).toMatchObject({ exitCode: 1 });
    expect(files()).toEqual([]);
  });
});

describe("service", () => {
  const command = ['/opt/my "bun"', "/opt/100% $x/server.ts"];
  const on = (platform: NodeJS.Platform) =>
    describeService({
      ...{ platform, command, env: {}, user: 501 },
      ...{ home: "/home/me", directory: "/home/me/service & <co>" },
    });

  test("Linux: a unit of the user, with what systemd would expand or split escaped", () => {
    const { path, text, install, remove } = on("linux");
    expect(path).toBe("/home/me/.config/systemd/user/pai-observability.service");
    expect(text).toContain(String.raw`ExecStart="/opt/my \"bun\"" "/opt/100%% $$x/server.ts"`);
    expect(text).toContain("\nWorkingDirectory=/home/me/service & <co>\n");
    expect([...install, ...remove].map((it) => it.join(" "))).toEqual([
      "systemctl --user daemon-reload",
      "systemctl --user enable --now pai-observability.service",
      "systemctl --user disable --now pai-observability.service",
    ]);
  });

  test("macOS: a launch agent, well-formed", () => {
    const { path, text, install, remove } = on("darwin");
    expect(path).toBe("/home/me/Library/LaunchAgents/local.pai-observability.plist");
    expect(text).toContain("<string>/home/me/service &amp; &lt;co&gt;</string>");
    expect(text).toContain('<string>/opt/my "bun"</string><string>/opt/100% $x/server.ts</string>');
    expect(install.flat()).toEqual(["launchctl", "bootstrap", "gui/501", path ?? ""]);
    expect(remove.flat()).toEqual(["launchctl", "bootout", "gui/501/local.pai-observability"]);
    const open: string[] = [];
    for (const [, slash, name = ""] of text.matchAll(/<(\/?)(\w+)(?: version="1.0")?>/g))
      if (slash === "") open.push(name);
      else expect(name).toBe(open.pop() ?? "");
    expect(open).toEqual([]);
  });

  test("Windows: a task at logon, in PowerShell's quotes", () => {
    const { path, text, install } = on("win32");
    expect(path).toBeNull();
    expect(text).toContain(
      `Execute = '/opt/my "bun"'; WorkingDirectory = '/home/me/service & <co>'`,
    );
    expect(text).toContain(`$action.Argument = '"/opt/100% $x/server.ts"'`);
    expect(text).toContain("Register-ScheduledTask -Force -TaskName pai-observability");
    expect(install).toEqual([["powershell.exe", "-NoProfile", "-Command", text]]);
  });

  test.skipIf(!hasVerifier)("systemd has nothing against the unit", async () => {
    const { home } = makeHome();
    const directory = join(home, "ser%vice");
    const { text } = describeService({
      ...{ platform: "linux", home, env: {}, user: 0 },
      ...{ command: [process.execPath, '/$a b%/"c"\\server.ts'], directory },
    });
    const unit = join(home, "pai-observability.service");
    await write(unit, text);
    const { stdout, stderr, exitCode } = Bun.spawnSync(
      ["systemd-analyze", "verify", "--user", unit],
      { env: { PATH: process.env.PATH ?? "", HOME: home, XDG_RUNTIME_DIR: home } },
    );
    expect({ exitCode, said: `${stdout}${stderr}` }).toEqual({ exitCode: 0, said: "" });
  });

  test("--dry-run writes nothing, and shows no token", async () => {
    const { run, files } = makeHome();
    const env = { AUTH_TOKEN: TOKEN, PORT: "4321", RETENTION_HOURS: "" };
    const { exitCode, said } = await run("service install --dry-run", env);
    expect(exitCode).toBe(0);
    expect(said).toMatch(/^would write .*\.env: PORT, AUTH_TOKEN, DATA_DIR$/m);
    expect(said).not.toContain(TOKEN);
    expect((await run("service remove", env)).said).toContain("there is no service");
    expect(files()).toEqual([]);
  });

  test("without the system's own program → said, exit code 1; what it would run with counts for the others; remove clears away", async () => {
    const { home, run, files } = makeHome();
    const env = { PATH: home, AUTH_TOKEN: TOKEN, PORT: "4321" };
    const places = { XDG_DATA_HOME: home };
    const installed = await run("service install", { ...env, ...places });
    expect(installed).toMatchObject({
      exitCode: 1,
      said: expect.stringContaining("!! there is no"),
    });
    const envFile = join(userDataDir(process.platform, home, places), "service", ".env");
    expect(modeOf(envFile)).toBe("600");
    expect(read(envFile)).toContain(`AUTH_TOKEN=${TOKEN}\n`);

    // In another shell, where nothing is set.
    const doctor = await run("doctor --dry-run", { PATH: home, ...places });
    expect(doctor.said).toContain(`as in ${envFile}: PORT, DATA_DIR, AUTH_TOKEN\n`);
    expect(doctor.said).toContain("would ask http://localhost:4321/health");
    const set = await run("doctor --dry-run", { PATH: home, PORT: "4322", ...places });
    expect(set.said).toContain("would ask http://localhost:4322/health");
    const again = await run("service install --dry-run", { PATH: home, PORT: "4321", ...places });
    expect(again.said).toContain("no longer set: AUTH_TOKEN\n");

    const removed = await run("service remove", { ...env, ...places });
    expect(removed).toMatchObject({
      exitCode: 1,
      said: expect.stringContaining("the data stays"),
    });
    expect(files()).toEqual([]);
  });

  test("what is set now is what the service reads: Bun finds each value again in its .env", async () => {
    const { home, spawn } = makeHome();
    const values = {
      ...{
        A: "a$HOME",
        B: "it's",
        C: 'x"y',
        D: "a#b c",
        E: "${PATH}",
        F: "C:\\new\\data",
        G: "C:\\",
      },
      H: "tok!@#$%^&*()_+{}|:<>?-=[]\\;,./~'",
    };
    await write(join(home, ".env"), formatEnv(values));
    const print = "for (const it of 'ABCDEFGH') console.log(process.env[it])";
    const { said } = await spawn([process.execPath, "-e", print]);
    expect(said.trimEnd().split("\n")).toEqual(Object.values(values));
    expect(parseEnv(formatEnv(values))).toEqual(values);
    expect(() => formatEnv({ A: "a\nB=c" })).toThrow("A: ");
  });
});

test.each([
  ["linux", {}, "/h/.local/share/pai-observability"],
  ["linux", { XDG_DATA_HOME: "/d" }, "/d/pai-observability"],
  ["darwin", {}, "/h/Library/Application Support/pai-observability"],
  ["win32", { LOCALAPPDATA: "/l" }, "/l/pai-observability"],
] as const)("data of a package on %s with %j → %s", (platform, env, directory) => {
  expect(userDataDir(platform, "/h", env)).toBe(directory);
});

test("in a checkout data goes where it is documented", () => {
  expect(loadConfig({}).dataDir).toBe("./data");
});

test("HOST=0.0.0.0 with ALLOWED_HOSTS and a token: reached by that name with it alone, and doctor is content", async () => {
  const allowed = { allowedHosts: ["host.docker.internal"], authToken: TOKEN };
  await using server = await startTestServer({ config: { host: "0.0.0.0", ...allowed } });
  const ask = async (host: string, token: string) => {
    const headers = { Host: `${host}:${server.port}`, Authorization: `Bearer ${token}` };
    return (await fetch(`http://127.0.0.1:${server.port}/api/sessions`, { headers })).status;
  };
  expect(await ask("host.docker.internal", TOKEN)).toBe(200);
  expect(await ask("host.docker.internal", "x")).toBe(401);
  expect(await ask("elsewhere", TOKEN)).toBe(403);
  const { run } = makeHome();
  const env = { HOST: "0.0.0.0", PORT: String(server.port), DATA_DIR: server.dataDir };
  await run("connect", { ...env, AUTH_TOKEN: TOKEN });
  expect((await run("doctor", { ...env, AUTH_TOKEN: TOKEN })).said).not.toContain("!!");
});

describe("away from a checkout", () => {
  /** Starts `command` in an empty directory, and looks at what it serves and where its data goes. */
  async function tryOut(
    command: string[],
    env: Record<string, string> = {},
    isDone = () => true,
  ): Promise<void> {
    const { home, run, plugin } = makeHome();
    const cwd = tempDir();
    const dataHome = join(home, "share");
    const places = { HOME: home, XDG_CONFIG_HOME: home, XDG_DATA_HOME: dataHome };
    await using server = await spawnServer({
      ...{ dataDir: "", cwd, command },
      env: { ...places, ...env },
    });
    const page = await (await fetch(server.url)).text();
    const [, script = ""] = /src="(\/[^"]+)"/.exec(page) ?? [];
    expect((await (await fetch(server.url + script)).text()).length).toBeGreaterThan(10_000);
    const address = `http://localhost:${server.port}`;
    const handedOut = await (await fetch(`${address}/plugin/observability.ts`)).text();
    expect(handedOut).toBe(pluginFor(address));
    const running = { ...places, PORT: String(server.port) };
    const dry = await run("connect --dry-run", running, command, cwd);
    expect(dry.said).toContain(`would write ${plugin}: ${PLUGIN_VERSION}`);
    await run("connect", running, command, cwd);
    const doctor = await run("doctor", running, command, cwd);
    expect(doctor).toMatchObject({ exitCode: 0, said: expect.not.stringContaining("!!") });
    expect((await run("backup copy.db", running, command, cwd)).exitCode).toBe(0);
    expect(fs.readdirSync(cwd)).toEqual(["copy.db"]);
    expect(fs.existsSync(databasePath(join(dataHome, "pai-observability")))).toBe(true);
    expect((await postEvent(server, toolEvent())).status).toBe(201);
    await waitFor(isDone, "what follows the stream");
  }

  test("the package that bun pm pack makes runs, and keeps its data in the user's directory", async () => {
    const directory = tempDir();
    const bun = (args: string[], cwd: string) => {
      const env = { PATH: process.env.PATH ?? "", HOME: directory }; // it has a cache
      const { exitCode, stdout, stderr } = Bun.spawnSync([process.execPath, ...args], { cwd, env });
      expect({ exitCode, said: exitCode === 0 ? "" : `${stdout}${stderr}` }).toEqual({
        exitCode: 0,
        said: "",
      });
    };
    bun(["pm", "pack", "--quiet", "--destination", directory], PROJECT);
    const [tarball = ""] = fs.readdirSync(directory).filter((name) => !name.startsWith("."));
    expect(tarball).toMatch(/^pai-observability-.*\.tgz$/);
    bun(["add", join(directory, tarball)], directory);
    await tryOut([join(directory, "node_modules", ".bin", "pai-observability")]);
  }, 20_000);

  test("the executable that bun run build makes is all of it, what follows the stream included", async () => {
    const spans: string[] = [];
    using collector = Bun.serve({
      port: 0,
      async fetch(req) {
        spans.push(await req.text());
        return Response.json({});
      },
    });
    const file = join(tempDir(), "pai-observability");
    const [, ...build] = scripts.build.replace("dist/pai-observability", file).split(" ");
    const { exitCode } = Bun.spawnSync([process.execPath, ...build], { cwd: PROJECT });
    expect(exitCode).toBe(0);
    const env = { OTEL_EXPORTER_OTLP_ENDPOINT: `http://localhost:${collector.port}` };
    await tryOut([file], env, () => spans.join().includes("execute_tool bash"));
  }, 20_000);
});
