/** What the documents say is so, nothing that is so is missing there, and their commands work. */

import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { scripts } from "../package.json";
import { EVENT_TYPES, loadConfig } from "../server.ts";
import {
  copyProject,
  getJson,
  postEvent,
  removeTempDirs,
  spawnServer,
  tempDir,
  waitFor,
} from "./helpers.ts";

afterAll(removeTempDirs);

const PROJECT = join(import.meta.dir, "..");
const read = (name: string) => readFileSync(join(PROJECT, name), "utf8");
const readme = read("README.md");
const DOCUMENTS = ["README.md", "test/README.md", "test/bench/README.md"];

/** The text under a heading, up to the next one of its level. */
function section(heading: string): string {
  const [, text] = readme.split(`\n## ${heading}\n`);
  return text?.split(/^## /m)[0] ?? "";
}

/** The rows of the table in `text`, without its head: cells as they are written. */
function table(text: string): string[][] {
  return [...text.matchAll(/^\| (.*) \|$/gm)]
    .map(([, row = ""]) => row.split(" | ").map((cell) => cell.trim()))
    .filter(([cell = ""]) => cell.startsWith("`"));
}

const unquoted = (cell = "") => cell.replaceAll("`", "");

describe("routes", () => {
  /** `GET /health`, from the table of `createRoutes`. */
  const [, source = ""] = read("server.ts").split("function createRoutes(");
  const [body = ""] = source.split("\n}\n");
  const routes = [...body.matchAll(/^ {4}"([A-Z]+ \/[^"]*)": /gm)]
    .map(([, route = ""]) => route)
    .toSorted();

  test("the README's table lists each route of server.ts, and no other", () => {
    expect(routes.length).toBeGreaterThan(8);
    expect(
      table(section("API"))
        .map(([cell]) => unquoted(cell))
        .toSorted(),
    ).toEqual(routes);
  });

  test("each route that the README names anywhere is one of them", () => {
    const named = [...readme.matchAll(/\b(GET|POST|PUT|DELETE|PATCH) (\/[^\s`?]*)/g)].map(
      ([, method, path]) => `${method} ${path}`,
    );
    expect(named.filter((route) => !routes.includes(route))).toEqual([]);
  });

  test("each URL that the README shows is one of them", () => {
    const patterns = routes.map(
      (route) => new RegExp(`^${route.replace(/^\w+ /, "").replace(/:\w+/g, "[^/]+")}$`),
    );
    const paths = [
      ...readme.matchAll(/http:\/\/localhost:(?:3001|\$PAI_OBSERVABILITY_PORT)(\/[^\s"'`>?)]*)/g),
    ].map(([, path = ""]) => path);
    expect(paths.length).toBeGreaterThan(8);
    expect(paths.filter((path) => !patterns.some((pattern) => pattern.test(path)))).toEqual([]);
  });
});

describe("configuration", () => {
  const rows = table(section("Configuration"));
  const documented = rows.map(([name]) => unquoted(name)).toSorted();
  const example = Object.fromEntries(
    [...read(".env.example").matchAll(/^([A-Z_]+)=(.*)$/gm)].map(([, name, value]) => [
      name,
      value,
    ]),
  );

  test("the README lists each variable that server.ts reads, and no other", () => {
    const asked = new Set<string>();
    const environment = new Proxy<Record<string, string>>(
      {},
      { get: (_, name) => void asked.add(String(name)) },
    );
    loadConfig(environment);
    expect(documented).toEqual([...asked].toSorted());
  });

  test(".env.example lists the same", () => {
    expect(Object.keys(example).toSorted()).toEqual(documented);
  });

  test("server.ts reads the environment nowhere else", () => {
    const uses = read("server.ts").match(/process\.env(?!\.NO_PROXY = )|Bun\.env/g);
    expect(uses).toEqual(["process.env"]); // loadConfig(process.env)
  });

  test("the defaults in the README and in .env.example are those of server.ts", () => {
    const defaults = Object.fromEntries(
      rows.map(([name, value]) => [unquoted(name), unquoted(value)]),
    );
    expect(loadConfig(defaults)).toEqual(loadConfig({}));
    expect(loadConfig(example)).toEqual(loadConfig({}));
    expect(defaults).toEqual(example);
  });
});

test("the README names each type of event, and its table no other", () => {
  const named = new Set([...section("Events").matchAll(/`(\w+)`/g)].map(([, name]) => name));
  expect(Object.keys(EVENT_TYPES).filter((type) => !named.has(type))).toEqual([]);
  const tabled = table(section("Events")).map(([type]) => unquoted(type));
  expect(tabled.length).toBeGreaterThan(5);
  expect(tabled.filter((type) => !(type in EVENT_TYPES))).toEqual([]);
});

test("each script that the documents name is in package.json", () => {
  const named = [
    ...DOCUMENTS.map(read)
      .join("")
      .matchAll(/\bbun run ([\w:-]+)/g),
  ].map(([, name = ""]) => name);
  expect(named.length).toBeGreaterThan(2);
  expect(named.filter((name) => !(name in scripts))).toEqual([]);
});

test("each file that a document links to, or lists, exists, and each heading", () => {
  const linked = DOCUMENTS.flatMap((name) =>
    [...read(name).matchAll(/\]\((?!https?:|#)([^)\s]+)\)/g)].map(([, path = ""]) =>
      join(dirname(name), path),
    ),
  );
  const headings = [...readme.matchAll(/^#+ (.*)/gm)].map(([, text = ""]) =>
    text
      .toLowerCase()
      .replace(/[^\w -]/g, "")
      .replaceAll(" ", "-"),
  );
  const anchors = [...readme.matchAll(/\]\(#([^)]+)\)/g)].map(([, anchor = ""]) => anchor);
  expect(anchors.filter((anchor) => !headings.includes(anchor))).toEqual([]);
  const [, structure = ""] = section("Project structure").split("```");
  const listed = structure
    .trim()
    .split("\n")
    .map((line) => line.split(" ")[0] ?? "");
  expect(listed.length).toBeGreaterThan(4);
  expect([...linked, ...listed].filter((path) => !existsSync(join(PROJECT, path)))).toEqual([]);
});

test("each figure that the README takes from the promises and the performance stands there", () => {
  const figuresOf = (text: string) =>
    [...text.matchAll(/\d[\d.,]*(?<=\d)(?: (?:ms|million))?/g)].map(([figure]) => figure);
  const parts = section("Promises and performance").split("\n\n[`");
  for (const [index, name] of ["test/README.md", "test/bench/README.md"].entries()) {
    const named = figuresOf([...(parts[index] ?? "").matchAll(/^- .*/gm)].join("\n"));
    const known = figuresOf(read(name));
    expect(named.length).toBeGreaterThan(3);
    expect(named.filter((figure) => !known.includes(figure))).toEqual([]);
  }
});

// ─── Commands ────────────────────────────────────────────────────────────────

/** Why a command that begins so isn't run here. Every other one is. */
const NOT_RUN: Record<string, string> = {
  "bun run check": "it would run this",
  "bun test": "likewise",
  "bun run bench": "it takes eight minutes",
  "bun run build": "test/install.test.ts runs it, and what it makes",
  "bun run service": "it would be this user's service; test/install.test.ts has its texts",
  "pai-observability service": "likewise",
  "bun follow/": "test/follow.test.ts runs it, against receivers of its own",
  "bunx ./": "named as what fails",
  "npx -y": "it loads Bun from a registry",
  "npm install": "likewise",
  "git pull": "it needs the repository's home",
  "docker build": "it needs Docker, and loads an image",
  "docker run": "likewise",
  opencode: "it needs OpenCode, and a model",
  "lsof -i": "it isn't everywhere, and nothing of this project",
  "PowerShell: ": "there is none here, as the README says",
};
if (Bun.which("sqlite3") === null) {
  console.warn("skipped: the export to SQLite, for want of sqlite3 in PATH");
  for (const name of ["after=", "curl -sSf", "sqlite3"]) NOT_RUN[name] = "there is none here";
}
const reasonOf = (command: string) => {
  const words = command.replace(/^([A-Z_]+=\S+ )+/, ""); // without variables
  return Object.keys(NOT_RUN).find((it) => command.startsWith(it) || words.startsWith(it));
};

const WAIT_MS = 30_000; // for a machine that does much else

/** Goes on until it is ended, and does what it should once it has said this. */
const isServer = (command = "") => /\bbun (start|run dev)$|^bunx /.test(command);
const isClient = (command = "") => /^bun run demo$|^curl -N /.test(command);
const IS_UP = / on http:|Live until|^data: /m;

/** The commands of a block: one goes on in the next line after a backslash, a pipe, or within quotes. */
function commandsOf(block: string): string[] {
  const commands = [""];
  for (const line of block.trim().split("\n")) {
    const command = commands.pop() + line.replace(/ # .*/, "");
    const isOpen = /[\\|]$/.test(command) || command.split('"').length % 2 === 0;
    commands.push(...(isOpen ? [`${command}\n`] : [command, ""]));
  }
  return commands.slice(0, -1);
}

const BLOCK = /^```bash\n(.*?)^```$/.source;
const POWERSHELL = /^```powershell\n(.*?)^```$/.source;
const IN_A_SENTENCE = /`((?:[A-Z_]+=\S+ )*(?:bunx?|np[xm]|curl|head|opencode) [^`]+)`/.source;

/** What stands in a block of its own, or in a sentence, in their order. */
const blocks = DOCUMENTS.flatMap((name) =>
  [...read(name).matchAll(new RegExp(`${BLOCK}|${POWERSHELL}|${IN_A_SENTENCE}`, "gms"))].map(
    ([, block, powershell, command]) =>
      powershell
        ? commandsOf(powershell).map((line) => `PowerShell: ${line}`)
        : commandsOf(block ?? command ?? ""),
  ),
);

function freePort(): number {
  using server = Bun.serve({ port: 0, fetch: () => new Response() });
  return server.port ?? 0;
}

test("each command of the documents is run, or named with the reason why not", async () => {
  const project = copyProject();
  const home = tempDir();
  const start = (port = 0) => {
    const command = [process.execPath, join(project, "server.ts")];
    return spawnServer({
      ...{ dataDir: "./data", cwd: project, command },
      env: { PORT: `${port}` },
    });
  };
  let server = await start();
  const spawn = (commands: string[], env: Record<string, string> = {}) => {
    const script = commands
      .join("\n")
      .replaceAll(":3001", `:${server.port}`)
      .replaceAll("PORT=3002", `PORT=${freePort()}`);
    const strict = 'set -eo pipefail; curl() { command curl -sSf "$@"; }';
    const PATH = `${join(home, "bin")}:${process.env.PATH}`; // where bun add --global puts a command
    return Bun.spawn(["bash", "-c", `${strict}\n${script}`], {
      env: { ...{ PATH, HOME: home, BUN_INSTALL: home, PORT: `${server.port}` }, ...env },
      ...{ cwd: project, stdin: "ignore", stdout: "pipe", stderr: "pipe" },
      ...{ timeout: WAIT_MS, detached: true },
    });
  };
  const run = async (commands: string[]) => {
    const child = spawn(commands);
    const said = await Promise.all(
      [child.stdout, child.stderr].map((it) => new Response(it).text()),
    );
    expect({ commands, exitCode: await child.exited, said }).toMatchObject({ exitCode: 0 });
  };
  const runUntilUp = async (commands: string[], env?: Record<string, string>) => {
    const child = spawn(commands, env);
    let said = "";
    const collect = async (stream: ReadableStream<Uint8Array>) => {
      for await (const chunk of stream) said += new TextDecoder().decode(chunk);
    };
    const collected = Promise.all([child.stdout, child.stderr].map(collect));
    await waitFor(() => IS_UP.test(said) || child.exitCode !== null, commands.join("; "), WAIT_MS);
    if (child.exitCode === null) process.kill(-child.pid, "SIGTERM"); // with all that it has started
    await collected;
    expect({ commands, said }).toMatchObject({ said: expect.stringMatching(IS_UP) });
  };
  const sessionIds = async () => {
    const { sessions } = await getJson<{ sessions: { id: string }[] }>(server, "/api/sessions");
    return sessions.map(({ id }) => id);
  };

  const reasons = new Set<string>();
  const done = new Set<string>();
  const servers: Promise<void>[] = [];
  try {
    for (const block of blocks) {
      for (const command of block) reasons.add(reasonOf(command) ?? "");
      const commands = block.filter((command) => reasonOf(command) === undefined);
      const text = commands.join("\n");
      if (commands.length === 0 || done.has(text)) continue;
      done.add(text);
      if (isServer(commands.at(-1))) {
        const env = { PORT: "0", DATA_DIR: tempDir(), PAI_OBSERVABILITY_ENABLED: "false" };
        servers.push(runUntilUp(commands, env));
      } else if (isClient(commands.at(-1))) await runUntilUp(commands);
      else if (text.startsWith("rm ")) {
        // The server is to be stopped for it.
        await postEvent(server, { type: "session_end", session_id: "after-the-backup" });
        await server.end("SIGTERM");
        await run(commands);
        server = await start(server.port);
        const isRestored = text.includes("cp observability-backup.db");
        expect((await sessionIds()).includes("session-123")).toBe(isRestored);
        expect(await sessionIds()).not.toContain("after-the-backup");
      } else await run(commands);
      if (text.includes("prefix=demo-"))
        expect((await sessionIds()).filter((id) => id.startsWith("demo-"))).toEqual([]);
    }
    await Promise.all(servers);
  } finally {
    await server[Symbol.asyncDispose]();
  }
  expect(Object.keys(NOT_RUN).filter((it) => !reasons.has(it))).toEqual([]);
}, 120_000);
