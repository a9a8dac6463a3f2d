/** The environment: what is read from it, what is refused, and how that is said. */

import { describe, expect, test } from "bun:test";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Config, loadConfig, StartError } from "../server.ts";
import { makeTempDir, runToExit } from "./helpers.ts";

const TOKEN = "0123456789abcdef0123456789abcdef";

const DEFAULTS: Config = {
  port: 3001,
  host: "localhost",
  dataDir: "./data",
  retentionHours: 168,
  logLevel: "info",
  authToken: null,
  allowedHosts: [],
  allowedOrigins: [],
  maxSubscribers: 256,
  paiPort: 8889,
  isPaiEnabled: true,
  followers: {
    OTEL_EXPORTER_OTLP_ENDPOINT: "",
    OTEL_EXPORTER_OTLP_HEADERS: "",
    NOTIFY_URL: "",
    NOTIFY_AFTER: "20",
  },
};

const VARIABLES = [
  "PORT",
  "HOST",
  "DATA_DIR",
  "RETENTION_HOURS",
  "LOG_LEVEL",
  "AUTH_TOKEN",
  "ALLOWED_HOSTS",
  "ALLOWED_ORIGINS",
  "MAX_SUBSCRIBERS",
  "OTEL_EXPORTER_OTLP_ENDPOINT",
  "OTEL_EXPORTER_OTLP_HEADERS",
  "NOTIFY_URL",
  "NOTIFY_AFTER",
];

/** One line per problem of `env`. */
function problemsOf(env: Record<string, string>): string[] {
  try {
    loadConfig(env);
  } catch (error) {
    if (error instanceof StartError) return error.message.split("\n");
    throw error;
  }
  return [];
}

describe("loadConfig", () => {
  test("an empty environment → the documented defaults", () => {
    expect(loadConfig({})).toEqual(DEFAULTS);
  });

  test.each(["", "  ", "\t"])("every variable set to %j → the same as not set", (value) => {
    expect(loadConfig(Object.fromEntries(VARIABLES.map((name) => [name, value])))).toEqual(
      DEFAULTS,
    );
  });

  test.each<[env: Record<string, string>, expected: Partial<Config>]>([
    [{ PORT: "0" }, { port: 0 }],
    [{ PORT: "65535" }, { port: 65_535 }],
    [{ PORT: " 8080 " }, { port: 8080 }],
    [{ HOST: "127.0.0.1" }, { host: "127.0.0.1" }],
    [{ HOST: "LOCALHOST" }, { host: "LOCALHOST" }],
    [{ HOST: "::1" }, { host: "::1" }],
    [{ HOST: "[::1]" }, { host: "::1" }],
    [{ DATA_DIR: "/var/lib/pai data" }, { dataDir: "/var/lib/pai data" }],
    [{ RETENTION_HOURS: "0.5" }, { retentionHours: 0.5 }],
    [{ RETENTION_HOURS: "1" }, { retentionHours: 1 }],
    [{ LOG_LEVEL: "debug" }, { logLevel: "debug" }],
    [{ LOG_LEVEL: "WARN" }, { logLevel: "warn" }],
    [{ LOG_LEVEL: "error" }, { logLevel: "error" }],
    [{ AUTH_TOKEN: TOKEN }, { authToken: TOKEN }],
    [
      { HOST: "0.0.0.0", AUTH_TOKEN: TOKEN },
      { host: "0.0.0.0", authToken: TOKEN },
    ],
    [
      { HOST: "box.lan", AUTH_TOKEN: TOKEN },
      { host: "box.lan", authToken: TOKEN },
    ],
    [{ ALLOWED_HOSTS: "Box.lan, box.lan:8080" }, { allowedHosts: ["box.lan", "box.lan:8080"] }],
    [
      { ALLOWED_ORIGINS: "http://localhost:5173,https://pai.example" },
      { allowedOrigins: ["http://localhost:5173", "https://pai.example"] },
    ],
    [{ MAX_SUBSCRIBERS: "1" }, { maxSubscribers: 1 }],
  ])("%j → %j", (env, expected) => {
    expect(loadConfig(env)).toEqual({ ...DEFAULTS, ...expected });
  });

  test.each([
    ["PORT", "http", "whole number"],
    ["PORT", "65536", "65535"],
    ["PORT", "-1", "whole number"],
    ["PORT", "3001.5", "whole number"],
    ["PORT", "0x10", "whole number"],
    ["PORT", "99999999999999999999", "65535"],
    ["HOST", "http://localhost", "host name"],
    ["HOST", "localhost:3001", "without a port"],
    ["HOST", "two words", "host name"],
    ["RETENTION_HOURS", "0", "above 0"],
    ["RETENTION_HOURS", "-5", "above 0"],
    ["RETENTION_HOURS", "a week", "number of hours"],
    ["RETENTION_HOURS", "NaN", "number of hours"],
    ["RETENTION_HOURS", "Infinity", "number of hours"],
    ["LOG_LEVEL", "loud", "debug, info, warn, error"],
    ["ALLOWED_HOSTS", "http://box.lan", "host names"],
    ["ALLOWED_HOSTS", "box.lan, two words", "host names"],
    ["ALLOWED_ORIGINS", "localhost:5173", "origins"],
    ["ALLOWED_ORIGINS", "http://localhost:5173/", "origins"],
    ["ALLOWED_ORIGINS", "*", "origins"],
    ["MAX_SUBSCRIBERS", "0", "whole number from 1"],
    ["MAX_SUBSCRIBERS", "many", "whole number from 1"],
    ["OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", "a URL"],
    ["NOTIFY_URL", "https://ntfy.sh/", "with a topic"],
    ["NOTIFY_AFTER", "soon", "number of seconds"],
  ])("%s=%j → one line with the name, the value and what is accepted", (name, value, accepted) => {
    // With a token, so that a HOST that can't be read is the only problem of it.
    const problems = problemsOf({ AUTH_TOKEN: TOKEN, [name]: value });
    expect(problems).toHaveLength(1);
    expect(problems[0]).toStartWith(`${name}=${JSON.stringify(value)}: expected `);
    expect(problems[0]).toContain(accepted);
    expect(problems[0]).not.toContain("\n");
  });

  test("three bad variables → a line for each of them at once", () => {
    const problems = problemsOf({ PORT: "x", RETENTION_HOURS: "y", LOG_LEVEL: "z", HOST: "::1" });
    expect(problems.map((line) => line.split("=")[0])).toEqual([
      "PORT",
      "RETENTION_HOURS",
      "LOG_LEVEL",
    ]);
  });

  test.each([["short"], [TOKEN.slice(1)], [`${TOKEN} ${TOKEN}`], [`${TOKEN}é`]])(
    "AUTH_TOKEN=%j → refused, and not shown",
    (token) => {
      const problems = problemsOf({ AUTH_TOKEN: token });
      expect(problems).toHaveLength(1);
      expect(problems[0]).toMatch(/^AUTH_TOKEN=.*: expected at least 32 /);
      expect(problems[0]).not.toContain(token);
    },
  );

  test.each(["0.0.0.0", "::", "192.168.1.10", "box.lan", "localhost.evil.test", "127.evil.test"])(
    "HOST=%s without AUTH_TOKEN → refused, naming both variables",
    (host) => {
      const problems = problemsOf({ HOST: host });
      expect(problems).toHaveLength(1);
      expect(problems[0]).toStartWith(`HOST="${host}": `);
      expect(problems[0]).toContain("AUTH_TOKEN");
    },
  );

  test.each(["localhost", "127.0.0.1", "127.1.2.3", "::1", "[::1]"])(
    "HOST=%s without AUTH_TOKEN → accepted: only this machine reaches it",
    (host) => {
      expect(problemsOf({ HOST: host })).toEqual([]);
    },
  );
});

describe("bun server.ts", () => {
  test("bad values in the environment and in .env → exit code 1, a line for each, no stack trace", async () => {
    const dataDir = makeTempDir();
    try {
      writeFileSync(join(dataDir, ".env"), "LOG_LEVEL=loud\nRETENTION_HOURS=\n");
      const { exitCode, stdout, stderr } = await runToExit({ dataDir, env: { PORT: "http" } });
      expect(stderr).toMatch(
        /^PORT="http": expected [^\n]+\nLOG_LEVEL="loud": expected debug, info, warn, error\n$/,
      );
      expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: "" });
    } finally {
      rmSync(dataDir, { recursive: true, force: true });
    }
  });
});
