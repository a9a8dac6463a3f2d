/**
 * What is done once on a machine, each by a word after the server's name:
 *
 *     bun server.ts connect             puts the plugin where OpenCode looks for it
 *     bun server.ts doctor              says what is wrong, and what to do
 *     bun server.ts backup FILE         a whole copy of the database, while the server runs
 *     bun server.ts service install     starts the server with you: systemd, launchd, Task Scheduler
 *     bun server.ts service remove
 *
 * With --dry-run nothing is changed or sent, only said. All read the server's own environment; what isn't
 * set there, all but the last two take from the service's file, where one is installed.
 */

import { Database } from "bun:sqlite";
import * as fs from "node:fs";
import { homedir, tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { devDependencies, version } from "../package.json";
import type { Config, loadConfig } from "../server.ts";
import pluginText from "./observability.ts" with { type: "text" };

type Environment = Record<string, string | undefined>;

const NAME = "pai-observability";
const USAGE = `Without a word the server starts. Words, each also with --dry-run:
  connect [--force]       puts the plugin where OpenCode looks for it
  doctor                  says what is wrong, and what to do
  backup FILE             copies the database while the server runs
  service install|remove  starts the server with you`;

// ─── The plugin ──────────────────────────────────────────────────────────────

const PLUGIN = String(pluginText); // as it is handed out, also by an executable, which has no files
const DEFAULT_SERVER = /(?<=^const DEFAULT_SERVER = )"([^"]*)"/m;
const versionOf = (text: string) => /^export const PLUGIN_VERSION = "(.*)"/m.exec(text)?.[1];
const isOurs = (text: string) => text.includes("PAI Observability for OpenCode");

export const PLUGIN_VERSION = versionOf(PLUGIN) ?? "";

/** The plugin that posts to `address`, unless its settings say otherwise. */
export const pluginFor = (address: string) =>
  PLUGIN.replace(DEFAULT_SERVER, () => JSON.stringify(address));

/** The same as a module, by way of a file: a bundle can't have it both as text and as a module (Bun 1.4.5). */
async function importPlugin(address: string): Promise<typeof import("./observability.ts")> {
  const directory = fs.mkdtempSync(join(tmpdir(), `${NAME}-`));
  try {
    fs.writeFileSync(join(directory, "observability.ts"), pluginFor(address));
    return await import(join(directory, "observability.ts"));
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
}

// ─── Places ──────────────────────────────────────────────────────────────────

/** What programs keep for their user, by the customs of each system. */
export function userDataDir(platform: NodeJS.Platform, home: string, env: Environment): string {
  if (platform === "win32") return join(env.LOCALAPPDATA || join(home, "AppData", "Local"), NAME);
  if (platform === "darwin") return join(home, "Library", "Application Support", NAME);
  return join(env.XDG_DATA_HOME || join(home, ".local", "share"), NAME);
}

/** DATA_DIR, where that isn't set: a package and an executable have no directory to keep it in. */
export function defaultDataDir(): string {
  const isCheckout = !Bun.isStandaloneExecutable && !import.meta.dir.includes("node_modules");
  return isCheckout ? "./data" : userDataDir(process.platform, homedir(), process.env);
}

/** As clients of this machine call the server. */
function addressOf({ host, port }: Config): string {
  if (host === "0.0.0.0" || host === "::") return `http://localhost:${port}`;
  return `http://${host.includes(":") ? `[${host}]` : host}:${port}`;
}

/** Where the service runs: its `.env` has the variables that were set when it was installed. */
const serviceDirectory = () =>
  join(userDataDir(process.platform, homedir(), process.env), "service");

/** @throws where there is something that can't be looked at */
function isThere(path: string): boolean {
  try {
    return fs.statSync(path, { throwIfNoEntry: false }) !== undefined;
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOTDIR") return false;
    throw error;
  }
}

function readText(path: string): string | null {
  if (!isThere(path)) return null;
  if (!fs.statSync(path).isFile()) throw new Error(`${path}: not a file`);
  return fs.readFileSync(path, "utf8");
}

const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;

/** Whole or not at all: whoever reads it meanwhile has the old one. A link is replaced, not followed. */
function writeWhole(path: string, text: string, mode: number): void {
  fs.mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  fs.rmSync(`${path}.new`, { force: true });
  fs.writeFileSync(`${path}.new`, text, { mode, flag: "wx" });
  fs.renameSync(`${path}.new`, path);
}

// ─── Dispatch ────────────────────────────────────────────────────────────────

interface Command {
  config: Config;
  settings: Environment; // the server's variables that are set
  operand: string;
  isForced: boolean;
  isDryRun: boolean;
  /** Says `what`, and does it unless this is a dry run. */
  step: (what: string, act: () => void) => void;
}

const say = (line: string) => console.log(line);

/** Does what `word` names. @returns the exit code: 1 where something is wrong, 2 where it isn't understood */
export async function runCommand(word: string, rest: string[], load: typeof loadConfig) {
  const commands = new Map(Object.entries({ connect, doctor, backup, service }));
  const isDryRun = rest.includes("--dry-run");
  const isForced = word === "connect" && rest.includes("--force");
  const operands = rest.filter((it) => it !== "--dry-run" && !(isForced && it === "--force"));
  const command = commands.get(word);
  const [operand = ""] = operands;
  const isComplete =
    (word !== "service" || /^(install|remove)$/.test(operand)) &&
    operands.length === (word === "backup" || word === "service" ? 1 : 0) &&
    !operand.startsWith("-");
  if ([word, ...rest].some((it) => /^(--help|-h|help)$/.test(it))) return (say(USAGE), 0);
  if (command === undefined || !isComplete) {
    console.error(`${[word, ...rest].join(" ")}: not understood\n${USAGE}`);
    return 2;
  }
  const settings: Environment = {};
  const ofService = new Set<string>();
  const step = (what: string, act: () => void) => {
    say(isDryRun ? `would ${what}` : what);
    if (!isDryRun) act();
  };
  try {
    const envFile = join(serviceDirectory(), ".env");
    const serviceEnv = word === "service" ? {} : parseEnv(readText(envFile) ?? "");
    const valueOf = (name: string) => {
      const value = process.env[name]?.trim();
      if (value) settings[name] = value;
      else if (serviceEnv[name]) ofService.add(name);
      return value || serviceEnv[name];
    };
    const config = load(new Proxy<Environment>({}, { get: (_, name) => valueOf(String(name)) }));
    if (ofService.size > 0) say(`as in ${envFile}: ${[...ofService].join(", ")}`);
    return await command({ config, settings, operand, isForced, isDryRun, step });
  } catch (error) {
    console.error(error instanceof Error ? error.message : String(error));
    return 1;
  }
}

// ─── connect ─────────────────────────────────────────────────────────────────

/** Where OpenCode loads the plugin from; the rest are copies that disturb it. */
function pluginPaths(directory: string) {
  const at = (...parts: string[]) => join(...parts, "observability.ts");
  return {
    path: at(directory, "plugins"),
    old: at(directory, "plugin"), // of versions before 3
    ofProject: [at(".opencode", "plugins"), at(".opencode", "plugin")],
  };
}

/** What there is under our name. */
function readPlugin(path: string) {
  const text = readText(path);
  if (text === null || !isOurs(text)) return { text, version: null, server: null };
  return { text, version: versionOf(text) ?? "0.0.0", server: DEFAULT_SERVER.exec(text)?.[1] };
}

async function connect({ config, isForced, step }: Command): Promise<number> {
  if (config.port === 0) throw new Error("PORT=0 is another port at each start: set one");
  const address = addressOf(config);
  const plugin = await importPlugin(address);
  const directory = plugin.configDirectory(process.env);
  const { path, old } = pluginPaths(directory);
  const installed = readPlugin(path);
  const isNewer =
    installed.version !== null && Bun.semver.order(installed.version, PLUGIN_VERSION) > 0;

  if (isNewer && !isForced)
    say(`left ${path}: ${installed.version} is newer than ${PLUGIN_VERSION}; --force replaces it`);
  else if (installed.text === pluginFor(address))
    say(`${path} is ${PLUGIN_VERSION} already, and posts to ${address}`);
  else {
    if (installed.text !== null && installed.version === null) {
      const kept = `${path}.${Date.now()}.bak`;
      step(`keep ${path}, which isn't ours, as ${kept}`, () => fs.renameSync(path, kept));
    }
    const change = installed.version === null ? "" : `${installed.version} → `;
    step(`write ${path}: ${change}${PLUGIN_VERSION}, posts to ${address}`, () =>
      writeWhole(path, pluginFor(address), 0o644),
    );
  }
  if (readPlugin(old).version !== null)
    step(`remove ${old}: two copies disturb each other`, () => fs.rmSync(old));

  const before = plugin.readSettings({}, process.env);
  if (before.problem) throw new Error(`${before.problem}: mend it, then again`);
  const { authToken } = config;
  if (authToken !== null && before.token !== authToken) {
    const file = join(directory, `${NAME}.json`);
    const kept: object = JSON.parse(readText(file) ?? "{}");
    const text = `${JSON.stringify({ ...kept, token: authToken }, null, 2)}\n`;
    step(`write AUTH_TOKEN into ${file}`, () => writeWhole(file, text, 0o600));
  }
  if (before.server !== address)
    say(`!! it posts to ${before.server}: OBSERVABILITY_SERVER or ${NAME}.json says so`);
  say("next: restart OpenCode (2: opencode service restart), then: doctor");
  return 0;
}

// ─── doctor ──────────────────────────────────────────────────────────────────

const MAX_CLOCK_MS = 5_000; // of difference: less is hardly seen in a timeline
const MIN_FREE_BYTES = 1e9;
const MAX_CHECKED_BYTES = 1e9; // read in a second

const TEST_EVENT = JSON.stringify({ type: "doctor" }); // no such type: goes all the way, and leaves no trace
const NO_ANSWER = "no answer within a second";
const REMEDIES: Record<number, string> = {
  401: ": with AUTH_TOKEN set as the server has it, run connect",
  403: ": see ALLOWED_HOSTS",
};

type Check = (isRight: boolean, what: string, remedy: string) => void;

async function doctor({ config, isDryRun }: Command): Promise<number> {
  let exitCode = 0;
  const check: Check = (isRight, what, remedy) => {
    if (!isRight) exitCode = 1;
    say(isRight ? `ok ${what}` : `!! ${what}: ${remedy}`);
  };
  const address = addressOf(config);

  const { path, old, ofProject } = pluginPaths(
    (await importPlugin(address)).configDirectory(process.env),
  );
  const installed = readPlugin(path);
  const plugin = await importPlugin(installed.server ?? address);
  const { server, token, problem } = plugin.readSettings({}, process.env);
  if (isDryRun) {
    say(`would read ${path} and ${config.dataDir}`);
    say(`would ask ${server}/health, and post an event that is refused, so that nothing is stored`);
    return 0;
  }

  const needed = devDependencies["@types/bun"];
  const isBunNew = Bun.semver.satisfies(Bun.version, `>=${needed}`);
  check(isBunNew, `Bun ${Bun.version}`, `${needed} is needed: npm install --global bun@${needed}`);
  check(
    installed.version === PLUGIN_VERSION,
    `plugin ${installed.version ?? "not there"}, ${path}`,
    `${PLUGIN_VERSION} is here: run connect`,
  );
  const copies = [old, ...ofProject].filter((it) => readPlugin(it).version !== null);
  if (copies.length > 0)
    check(false, copies.join(" and "), "remove it: two copies disturb each other");
  if (problem) check(false, problem, "mend it, or remove it");

  if (server !== address)
    say(`-- the plugin posts to ${server}; this PORT and HOST say ${address}, as connect would`);
  const call = plugin.createClient({ server, token });
  const health = await call("/health");
  const { version: running, timestamp } = readHealth(health?.text);
  check(
    running !== undefined,
    `server ${server}`,
    health
      ? `answered ${health.status}: is that another program's port?`
      : `${NO_ANSWER}: start it there${server === address ? "" : `, or run connect; OBSERVABILITY_SERVER and ${NAME}.json count more than that`}`,
  );
  if (running !== undefined) {
    check(running === version, `version ${running} runs`, `${version} is here: restart the server`);
    const aheadMs = Date.now() - Date.parse(timestamp ?? "");
    const clocks = `clocks ${Math.abs(aheadMs)} ms apart`;
    check(Math.abs(aheadMs) < MAX_CLOCK_MS, clocks, "set this machine's and the server's by NTP");
    const test = await call("/api/events", TEST_EVENT);
    const isRead = test?.status === 400 && test.text.includes('"type: ');
    check(
      isRead,
      isRead ? "test event: taken, read, and refused for its type, as it should be" : "test event",
      test ? `${test.status} ${test.text.slice(0, 200)}${REMEDIES[test.status] ?? ""}` : NO_ANSWER,
    );
    const senders = await call("/api/senders");
    const isHeard = senders?.text.includes('"name":"opencode"') === true;
    say(
      isHeard
        ? "ok OpenCode has reported"
        : "-- OpenCode hasn't reported since the server was started: restart it, and ask it for something",
    );
  }
  checkData(resolve(config.dataDir), check);
  return exitCode;
}

function readHealth(text = ""): { version?: string; timestamp?: string } {
  try {
    const { status, version, timestamp } = JSON.parse(text);
    return status === "ok" ? { version, timestamp } : {};
  } catch {
    return {}; // another program's answer
  }
}

/** The files of a server that runs on this machine, with these settings. */
function checkData(directory: string, check: Check): void {
  const path = join(directory, "observability.db");
  if (!isThere(path))
    return say(`ok no database in ${directory}: the server is elsewhere, or hasn't been started`);
  const { bytes, problem } = inspect(path);
  const size = `${megabytes(bytes)}${bytes > MAX_CHECKED_BYTES ? ", too many to check now" : ""}`;
  check(problem === null, `database ${path}, ${size}`, `${problem}; put a backup back`);
  const open = fs
    .readdirSync(directory)
    .filter((name) => name.startsWith("observability.db"))
    .filter((name) => process.platform !== "win32" && isOpenToOthers(join(directory, name)));
  const rights = open.length > 0 ? `others may read ${open.join(", ")}` : "files are yours alone";
  check(open.length === 0, rights, `chmod 600 ${path}*`);
  const { bavail, bsize } = fs.statfsSync(directory);
  const isRoomy = bavail * bsize > MIN_FREE_BYTES;
  check(isRoomy, `${megabytes(bavail * bsize)} free`, "make room, or lower RETENTION_HOURS");
}

const isOpenToOthers = (path: string) => (fs.statSync(path).mode & 0o077) !== 0;

/** Of a database, with what is not yet in its file. */
const bytesOf = (path: string) =>
  fs.statSync(path).size + (fs.statSync(`${path}-wal`, { throwIfNoEntry: false })?.size ?? 0);

function inspect(path: string): { bytes: number; problem: string | null } {
  const bytes = bytesOf(path);
  try {
    using db = new Database(path, { readonly: true });
    db.run("PRAGMA busy_timeout = 2000");
    return { bytes, problem: bytes > MAX_CHECKED_BYTES ? null : quickCheck(db) };
  } catch (error) {
    return { bytes, problem: error instanceof Error ? error.message : String(error) };
  }
}

function quickCheck(db: Database): string | null {
  const found = db.query<{ quick_check: string }, []>("PRAGMA quick_check(1)").get()?.quick_check;
  return found === "ok" ? null : (found?.replaceAll("\n", " ") ?? "no answer of SQLite");
}

// ─── backup ──────────────────────────────────────────────────────────────────

/** The server goes on meanwhile: what it writes from now on isn't in the copy. 1 GB: 4 s, 40 MB of memory. */
function backup({ config, operand, step }: Command): number {
  const source = resolve(config.dataDir, "observability.db");
  const copy = resolve(operand);
  if (!isThere(source)) throw new Error(`${source}: there is no database`);
  if (isThere(copy)) throw new Error(`${copy} is there already: nothing was written`);
  step(`copy ${source} (${megabytes(bytesOf(source))}) to ${copy}, and check that`, () => {
    fs.closeSync(fs.openSync(copy, "wx", 0o600)); // SQLite would make it readable by others
    try {
      say(copyDatabase(source, copy));
    } catch (error) {
      fs.rmSync(copy);
      throw error;
    }
  });
  say(`To put it back: stop the server, remove ${source}*, copy the file there, start it.`);
  return 0;
}

/** @returns what the copy has. @throws where that isn't all */
function copyDatabase(source: string, copy: string): string {
  using db = new Database(source, { readonly: true, strict: true });
  db.run("PRAGMA busy_timeout = 2000");
  db.run("VACUUM INTO ?", [copy]);
  using copied = new Database(copy, { readonly: true });
  const counted = "SELECT COUNT(*) AS events, MAX(id) AS last FROM events";
  const has = copied.query<{ events: number; last: number | null }, []>(counted).get();
  // Meanwhile new ones may have come, and old ones gone.
  const left = db
    .query<{ events: number }, [number]>("SELECT COUNT(*) AS events FROM events WHERE id <= ?")
    .get(has?.last ?? 0);
  const problem = quickCheck(copied);
  if (problem !== null || has === null || left === null || has.events < left.events)
    throw new Error(`${copy}: not a whole copy (${problem ?? "events are missing"}); removed`);
  return `ok ${has.events} events, ${megabytes(fs.statSync(copy).size)}`;
}

// ─── service ─────────────────────────────────────────────────────────────────

interface ServiceOptions {
  platform: NodeJS.Platform;
  home: string;
  env: Environment; // for the places of files
  command: string[]; // what is started: a program with its arguments
  directory: string; // where it runs: its `.env` has the settings
  user: number; // its number, which launchd wants
}

interface Service {
  path: string | null; // of its file; null: the system keeps it
  text: string;
  install: string[][];
  remove: string[][];
  hint: string;
}

/** The service by the system's own means: nothing runs as root. */
export function describeService(options: ServiceOptions): Service {
  const { platform, home, env, command, directory, user } = options;
  if (platform === "win32") {
    const quote = (text = "") => `'${text.replaceAll("'", "''")}'`;
    const [program, ...args] = command;
    const argument = args.map((it) => `"${it}"`).join(" ");
    const powershell = (script: string) => ["powershell.exe", "-NoProfile", "-Command", script];
    const text = [
      `$action = @{ Execute = ${quote(program)}; WorkingDirectory = ${quote(directory)} }`,
      ...(args.length > 0 ? [`$action.Argument = ${quote(argument)}`] : []),
      "$settings = @{ ExecutionTimeLimit = [TimeSpan]::Zero; RestartCount = 999; RestartInterval = New-TimeSpan -Minutes 1 }",
      "$settings.AllowStartIfOnBatteries = $true; $settings.DontStopIfGoingOnBatteries = $true",
      `Register-ScheduledTask -Force -TaskName ${NAME} -Action (New-ScheduledTaskAction @action) -Settings (New-ScheduledTaskSettingsSet @settings) -Trigger (New-ScheduledTaskTrigger -AtLogOn -User $env:USERNAME) | Out-Null`,
      `Start-ScheduledTask -TaskName ${NAME}`,
    ].join("\n");
    const remove = `Stop-ScheduledTask -TaskName ${NAME}; Unregister-ScheduledTask -TaskName ${NAME} -Confirm:$false`;
    const hint = `Get-ScheduledTaskInfo ${NAME}`;
    return { path: null, text, install: [powershell(text)], remove: [powershell(remove)], hint };
  }
  if (platform === "darwin") {
    const label = `local.${NAME}`;
    const path = join(home, "Library", "LaunchAgents", `${label}.plist`);
    const escaped = (text: string) =>
      text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
    const string = (text: string) => `<string>${escaped(text)}</string>`;
    const log = string(join(directory, "server.log"));
    const text = `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key>${string(label)}
  <key>ProgramArguments</key>
  <array>${command.map(string).join("")}</array>
  <key>WorkingDirectory</key>${string(directory)}
  <key>RunAtLoad</key><true/>
  <key>KeepAlive</key><dict><key>SuccessfulExit</key><false/></dict>
  <key>StandardOutPath</key>${log}
  <key>StandardErrorPath</key>${log}
</dict>
</plist>
`;
    return {
      ...{ path, text },
      install: [["launchctl", "bootstrap", `gui/${user}`, path]],
      remove: [["launchctl", "bootout", `gui/${user}/${label}`]],
      hint: `launchctl print gui/${user}/${label}`,
    };
  }
  const unit = `${NAME}.service`;
  const plain = (text: string) => text.replaceAll("%", "%%");
  const word = (text: string) =>
    `"${plain(text).replace(/["\\]/g, "\\$&").replaceAll("$", "$$$$")}"`;
  const text = `[Unit]
Description=PAI Observability

[Service]
WorkingDirectory=${plain(directory)}
ExecStart=${command.map(word).join(" ")}
Restart=on-failure
RestartSec=5

[Install]
WantedBy=default.target
`;
  const systemctl = (...args: string[]) => ["systemctl", "--user", ...args];
  return {
    path: join(env.XDG_CONFIG_HOME || join(home, ".config"), "systemd", "user", unit),
    text,
    install: [systemctl("daemon-reload"), systemctl("enable", "--now", unit)],
    remove: [systemctl("disable", "--now", unit)],
    hint: `systemctl --user status ${NAME}; without you logged in it runs after: loginctl enable-linger`,
  };
}

/** A file that Bun reads as `values`, whatever is in them (it expands $, except after a backslash). */
export function formatEnv(values: Environment): string {
  const lines = Object.entries(values).map(([name, value = ""]) => {
    if (/^[\w./:\\,=-]*$/.test(value)) return `${name}=${value}\n`;
    const quote = ["'", '"', "`"].find((it) => !value.includes(it));
    if (quote === undefined || value.endsWith("\\") || /[\r\n]/.test(value))
      throw new Error(`${name}: a file of variables can't have this value`);
    return `${name}=${quote}${value.replaceAll("$", "\\$")}${quote}\n`;
  });
  return lines.join("");
}

/** What `formatEnv` has written. */
export function parseEnv(text: string): Environment {
  const lines = [...text.matchAll(/^(\w+)=(['"`]?)(.*)\2$/gm)];
  return Object.fromEntries(
    lines.map(([, name = "", , value = ""]) => [name, value.replaceAll("\\$", "$")]),
  );
}

function service({ config, settings, operand, isDryRun, step }: Command): number {
  const { platform, execPath, env } = process;
  const program = Bun.isStandaloneExecutable ? [] : [resolve(import.meta.dir, "../server.ts")];
  const command = [execPath, ...program];
  const directory = serviceDirectory();
  const user = process.getuid?.() ?? 0;
  const it = describeService({ platform, home: homedir(), env, command, directory, user });
  const envFile = join(directory, ".env");
  let exitCode = 0;
  const run = (cmd: string[], isNeeded = true) =>
    step(`run ${cmd.join(" ")}`, () => {
      const isFound = Bun.which(cmd[0] ?? "") !== null;
      if (!isFound) say(`!! there is no ${cmd[0]} here`);
      const stdio: ["ignore", "inherit", "inherit"] = ["ignore", "inherit", "inherit"];
      const isDone = isFound && Bun.spawnSync({ cmd, stdio }).success;
      if (!isDone && isNeeded) exitCode = 1;
    });

  if (operand === "remove") {
    if (it.path !== null && !isThere(it.path) && !isThere(directory))
      return (say(`there is no service: neither ${it.path} nor ${directory}`), 0);
    for (const cmd of it.remove) run(cmd);
    if (it.path !== null)
      step(`remove ${it.path}`, () => fs.rmSync(it.path ?? "", { force: true }));
    step(`remove ${directory}`, () => fs.rmSync(directory, { recursive: true, force: true }));
    say(`the data stays: ${resolve(config.dataDir)}`);
    return exitCode;
  }
  const isPassing = (part: string) =>
    part.startsWith(tmpdir()) || /[\\/](\.?bunx-|_npx[\\/])/.test(part);
  if (command.some(isPassing))
    say(
      `!! in a temporary place: ${command.join(" ")}; install it where it stays, and do this there`,
    );
  const kept = { ...settings, DATA_DIR: resolve(config.dataDir) };
  if (it.path === null || isThere(it.path)) for (const cmd of it.remove) run(cmd, false);
  const dropped = Object.keys(parseEnv(readText(envFile) ?? "")).filter((name) => !(name in kept));
  if (dropped.length > 0) say(`no longer set: ${dropped.join(", ")}`);
  step(`write ${envFile}: ${Object.keys(kept).join(", ")}`, () =>
    writeWhole(envFile, formatEnv(kept), 0o600),
  );
  say(`${it.path ?? "PowerShell"}:\n\n${it.text}`);
  if (it.path !== null) step(`write ${it.path}`, () => writeWhole(it.path ?? "", it.text, 0o644));
  for (const cmd of it.install) run(cmd);
  if (!isDryRun)
    say(exitCode === 0 ? `started; next: doctor. ${it.hint}` : "!! the system refused, see above");
  return exitCode;
}
