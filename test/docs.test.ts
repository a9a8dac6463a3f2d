/** What the README says is so, and nothing that is so is missing there. */

import { describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { EVENT_TYPES, loadConfig } from "../server.ts";
import { scripts } from "../package.json";

const PROJECT = join(import.meta.dir, "..");
const read = (name: string) => readFileSync(join(PROJECT, name), "utf8");
const readme = read("README.md");

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

test("each script that the README names is in package.json", () => {
  const named = [...readme.matchAll(/\bbun run ([\w:-]+)/g)].map(([, name = ""]) => name);
  expect(named.length).toBeGreaterThan(2);
  expect(named.filter((name) => !(name in scripts))).toEqual([]);
});

test("each file that the README links to, or lists, exists", () => {
  const linked = [...readme.matchAll(/\]\((?!https?:|#)([^)\s]+)\)/g)].map(([, path = ""]) => path);
  const [, structure = ""] = section("Project structure").split("```");
  const listed = structure
    .trim()
    .split("\n")
    .map((line) => line.split(" ")[0] ?? "");
  expect(listed.length).toBeGreaterThan(4);
  expect([...linked, ...listed].filter((path) => !existsSync(join(PROJECT, path)))).toEqual([]);
});
