/** What models took: the API's sums against a plain sum over the export; and what a deletion takes back. */

import { Database } from "bun:sqlite";
import { afterEach, describe, expect, test } from "bun:test";
import { type PostedEvent, seededRandom, sessionEvents, shuffled } from "./fixtures.ts";
import {
  databasePath,
  getJson,
  isSoak,
  openStream,
  openTestStore,
  postEvent,
  removeTempDirs,
  startTestServer,
  waitFor,
} from "./helpers.ts";
import { parseEvent } from "../server.ts";

afterEach(removeTempDirs);

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const NOW = Date.parse("2026-05-20T10:00:00Z");
const PARTS = ["input", "output", "reasoning", "cache_read", "cache_write"] as const;
const BY = ["day", "model", "agent", "directory"] as const;

type Tokens = Record<string, number>;
interface Spend {
  cost: number;
  tokens: Tokens;
}
type SpendRow = Spend & Record<string, unknown>;
interface ModelRow extends Spend {
  model: string;
  provider: string | null;
  count: number;
  total_duration_ms: number;
  avg_first_token_ms: number | null;
  error_count: number;
}
interface Exported {
  id: number;
  type: string;
  session_id: string;
  timestamp: string;
  call_id: string;
  model: string;
  provider?: string;
  agent?: string;
  directory?: string;
  cost?: number;
  tokens?: Tokens;
  first_token_ms?: number;
  duration_ms?: number;
  success?: boolean;
}

const start = (now = NOW) =>
  startTestServer({ config: { retentionHours: 400 * 24 }, now: () => now });

async function exported(server: { url: string }): Promise<Exported[]> {
  const headers = { Accept: "application/x-ndjson" };
  const response = await fetch(`${server.url}/api/events?after=0`, { headers });
  const lines = (await response.text()).split("\n").filter(Boolean);
  return lines.map((line) => JSON.parse(line));
}

const spendBy = async (server: { url: string }, by: string, more = "&days=400") =>
  (await getJson<{ spend: SpendRow[] }>(server, `/api/analytics/spend?by=${by}${more}`)).spend;

/** The answers that count, one for each call, each with the directory of its session. */
function answers(events: Exported[]) {
  const calls = Map.groupBy(
    events.filter(({ type }) => type === "model_response"),
    ({ session_id, call_id }) => `${session_id} ${call_id}`,
  );
  const directories = new Map<string, { at: string; directory: string }>();
  for (const { session_id, timestamp: at, directory } of events) {
    const known = directories.get(session_id);
    if (directory && (!known || at > known.at || (at === known.at && directory > known.directory)))
      directories.set(session_id, { at, directory });
  }
  return [...calls.values()].map((all) => {
    const [last] = all.toSorted((a, b) => (a.timestamp < b.timestamp ? 1 : -1));
    if (last === undefined) throw new Error("a call without events");
    const directory = directories.get(last.session_id)?.directory ?? null;
    return { ...last, directory, day: last.timestamp.slice(0, 10) };
  });
}

/** A plain sum, in thousandths of a cent so that no order matters. */
function sum(rows: { cost?: number; tokens?: Tokens }[]): Spend {
  const nanodollars = rows.reduce((all, { cost = 0 }) => all + Math.round(cost * 1e9), 0);
  const tokens = Object.fromEntries(
    PARTS.map((part) => [part, rows.reduce((all, row) => all + (row.tokens?.[part] ?? 0), 0)]),
  );
  const total = Object.values(tokens).reduce((all, part) => all + part, 0);
  return { cost: nanodollars / 1e9, tokens: { total, ...tokens } };
}

const grouped = <T extends { cost?: number; tokens?: Tokens }>(
  rows: T[],
  keyOf: (row: T) => string,
) => Object.fromEntries([...Map.groupBy(rows, keyOf)].map(([key, all]) => [key, sum(all)]));

async function compareWithExport(server: { url: string }): Promise<number> {
  const all = answers(await exported(server));
  for (const by of BY) {
    const rows = await spendBy(server, by);
    const told = rows.map(({ cost, tokens, [by]: key }) => [String(key), { cost, tokens }]);
    expect([by, Object.fromEntries(told)]).toEqual([
      by,
      grouped(all, (row) => String(row[by] ?? null)),
    ]);
    expect(new Set(told.map(([key]) => key)).size).toBe(told.length);
    const order = rows.map(({ cost, day }) => (by === "day" ? Date.parse(String(day)) : -cost));
    expect(order).toEqual(order.toSorted((a, b) => a - b));
  }
  const { models } = await getJson<{ models: ModelRow[] }>(
    server,
    "/api/analytics/models?hours=9600",
  );
  const told = models.map((row) => [
    `${row.model} ${row.provider}`,
    { cost: row.cost, tokens: row.tokens },
  ]);
  const key = (row: Exported) => `${row.model} ${row.provider ?? null}`;
  expect(Object.fromEntries(told)).toEqual(
    grouped(
      all.map((row) => row as Exported),
      key,
    ),
  );
  for (const { model, provider, ...row } of models) {
    const own = all.filter((it) => it.model === model && (it.provider ?? null) === provider);
    const firsts = own.flatMap(({ first_token_ms }) => first_token_ms ?? []);
    const average = firsts.reduce((all, ms) => all + ms, 0) / firsts.length;
    expect(row).toMatchObject({
      count: own.length,
      error_count: own.filter(({ success }) => success === false).length,
      total_duration_ms: own.reduce((all, { duration_ms = 0 }) => all + duration_ms, 0),
      avg_first_token_ms: firsts.length > 0 ? average : null,
    });
  }
  return all.length;
}

/** Posts of a few sessions over some days; each answer may be told twice, and its session's directory late. */
function randomPosts(seed: number): PostedEvent[] {
  const random = seededRandom(seed);
  const pick = <T>(items: readonly T[]) => items[Math.floor(random() * items.length)] as T;
  let serial = 0;
  const posts: PostedEvent[] = [];
  for (let session = 0; session < 4; session++) {
    const session_id = `s${session}`;
    let at = NOW - 20 * DAY - Math.floor(random() * 5 * DAY); // all end before NOW, each at another time
    const event = (type: string, data: Record<string, unknown>) => {
      at += 1 + Math.floor(random() * 9 * HOUR);
      posts.push({ id: `e${serial++}`, type, session_id, timestamp: at, data });
    };
    for (let index = 0; index < 8; index++) {
      if (random() < 0.3) event("session_update", { directory: pick(["/a", "/b", "/c"]) });
      const call_id = `m${Math.floor(random() * 6)}`;
      const [model, provider] = pick([
        ["opus", "x"],
        ["opus", "y"],
        ["haiku", undefined],
      ] as const);
      const agent = pick(["build", "plan", undefined]);
      if (random() < 0.5) event("model_request", { call_id, model, provider, agent });
      const tokens = Object.fromEntries(
        PARTS.filter(() => random() < 0.7).map((part) => [part, Math.floor(random() * 1e5)]),
      );
      const first_token_ms = random() < 0.5 ? Math.floor(random() * 900) : undefined;
      const cost = random() < 0.8 ? Math.round(random() * 1e6) / 1e6 : undefined;
      const answer = { call_id, model, provider, agent, tokens, cost, first_token_ms };
      event("model_response", { ...answer, duration_ms: 10, success: random() < 0.9 });
      if (random() < 0.3) event("tool_use", { tool: "bash", duration_ms: 5 });
    }
  }
  return posts;
}

describe("what models took", () => {
  const COUNT = isSoak ? 200 : 12;
  test(`${COUNT} random histories: the sums are those of the export, in any order, repeated, deleted, restarted`, async () => {
    for (let seed = 1; seed <= COUNT; seed++) {
      const random = seededRandom(1_000 + seed);
      await using server = await start();
      // A call is told to be of another model by a later half of it alone; the model of a call stays.
      const posts = randomPosts(seed).filter(
        ({ type }) => type !== "model_request" || random() < 0.2,
      );
      const plain = posts.filter(({ type }) => type !== "model_request");
      for (const batch of [shuffled(plain, random), shuffled(plain, random).slice(0, 9)])
        for (let from = 0; from < batch.length; from += 7) {
          const { status } = await postEvent(server, batch.slice(from, from + 7));
          expect([200, 201]).toContain(status);
        }
      expect(await compareWithExport(server)).toBeGreaterThan(8);
      if (seed % 2) await server.restart();
      const gone = await fetch(`${server.url}/api/sessions/s${seed % 4}`, { method: "DELETE" });
      expect(gone.status).toBe(204);
      await compareWithExport(server);
      expect((await postEvent(server, shuffled(plain, random))).status).toBe(201);
      await compareWithExport(server);
    }
  }, 60_000);

  test("while a session is being deleted none of its events is found, and an agent that comes takes nothing from what its call counted for", async () => {
    using store = openTestStore();
    const event = (type: string, data: Record<string, unknown>, session_id = "s") =>
      parseEvent({ type, session_id, timestamp: NOW - HOUR, data }, NOW);
    const call = (call_id: string, tool: string, duration_ms: number) =>
      event("tool_use", { call_id, tool, duration_ms });
    const many = Array.from({ length: 3_000 }, (_, index) => call(`c${index}`, "bash", 5));
    store.append([many, [call("last", "task", 10_000)]]);
    const agent = { call_id: "last", subagent_type: "general", duration_ms: 9_000 };
    let steps = 0;
    const ALL = { after: null, before: null, sessionId: null, type: null, q: null, tool: null };
    const found: Promise<string[]>[] = [];
    const told = () => {
      if (steps++ > 0) return;
      store.append([[event("agent_spawn", agent)]]);
      const events = store.listEvents({ ...ALL, from: 0, to: Infinity }, "newest first", 10);
      found.push(Array.fromAsync(events, ({ type }) => type));
    };
    await store.prune(0, undefined, told, ["s"]);
    expect(steps).toBeGreaterThan(2);
    expect(await Promise.all(found)).toEqual([["agent_spawn"]]);
    store.append([
      [event("tool_use", { call_id: "x", tool: "task", duration_ms: 1_000 }, "other")],
    ]);
    const tools = store.usageStats("tool", NOW - DAY, NOW);
    expect(await Array.fromAsync(tools, ({ name, sums }) => [name, sums.total_ms])).toEqual([
      ["task", 1_000],
    ]);
  });

  test("days outlive retention, and its sessions; 400 of them are kept", async () => {
    using store = openTestStore();
    const answer = (at: number, session_id: string, cost: number): PostedEvent => ({
      type: "model_response",
      session_id,
      timestamp: at,
      data: { call_id: "m", model: "opus", cost, tokens: { input: 5 } },
    });
    const days = (now: number) =>
      Array.fromAsync(store.usageStats("spend", now - 1_000 * DAY, now, "day"), (row) => [
        row.name,
        row.sums.nanodollars,
      ]);
    const posts = [answer(NOW - 9 * DAY, "old", 0.25), answer(NOW - DAY, "new", 0.5)];
    store.append([posts.map((post) => parseEvent(post, NOW))]);
    const both = [
      ["2026-05-11", 25e7],
      ["2026-05-19", 5e8],
    ];
    expect(await days(NOW)).toEqual(both);
    expect(await store.prune(NOW - 7 * DAY)).toBe(1);
    expect(await days(NOW)).toEqual(both);
    expect(
      await Array.fromAsync(store.usageStats("model", NOW - 30 * DAY, NOW), ({ count }) => count),
    ).toEqual([1]);
    const late = {
      ...answer(NOW - 8 * DAY, "new", 1),
      data: { call_id: "late", model: "opus", cost: 1 },
    };
    store.append([[parseEvent(late, NOW)]]);
    both.splice(1, 0, ["2026-05-12", 1e9]);
    expect(await days(NOW)).toEqual(both);
    await store.prune(NOW + 380 * DAY);
    expect(await days(NOW)).toEqual(both);
    await store.prune(NOW + 395 * DAY);
    expect(await days(NOW)).toEqual(both.slice(2));
    using db = new Database(databasePath(store.dataDir));
    expect(db.query("SELECT DISTINCT period_ms FROM usage").values()).toEqual([[DAY]]);
  });

  test("`sessionId` → of it and all below it, as its events say", async () => {
    await using server = await start();
    const answer = (session_id: string, model: string, cost: number, call_id = "m") => ({
      ...{ type: "model_response", session_id, timestamp: NOW - DAY },
      data: { call_id, model, cost, tokens: { input: 2, output: 1 } },
    });
    const child = (session_id: string, parent_session_id: string) => ({
      ...{ type: "session_start", session_id, timestamp: NOW - DAY },
      data: { parent_session_id, directory: `/${session_id}` },
    });
    await postEvent(server, [
      ...[child("b", "a"), child("c", "b"), child("other", "none")],
      ...Array.from({ length: 700 }, (_, index) => answer("a", "opus", 0.01, `m${index}`)),
      ...[answer("b", "haiku", 1), answer("c", "haiku", 2), answer("other", "opus", 9)],
    ]);
    const rows = async (by: string, id: string) =>
      (await spendBy(server, by, `&sessionId=${id}`)).map((row) => [
        ...[row[by as "model"], row.count, row.cost, row.tokens.total],
      ]);
    expect(await rows("model", "a")).toEqual([
      ["opus", 700, 7, 2_100],
      ["haiku", 2, 3, 6],
    ]);
    expect(await rows("model", "b")).toEqual([["haiku", 2, 3, 6]]);
    expect(await rows("directory", "b")).toEqual([
      ["/c", 1, 2, 3],
      ["/b", 1, 1, 3],
    ]);
    expect(await rows("model", "unknown")).toEqual([]);
  });

  test("`days` and `before_hours` → whole days of UTC, the running one is the last", async () => {
    await using server = await start();
    const posts = Array.from({ length: 6 }, (_, day) => ({
      type: "model_response",
      session_id: "s",
      timestamp: NOW - day * DAY,
      data: { call_id: `m${day}`, model: "opus", cost: 2 ** day },
    }));
    expect((await postEvent(server, posts)).status).toBe(201);
    const costs = async (more: string) =>
      (await spendBy(server, "day", more)).map(({ cost }) => cost);
    expect(await costs("&days=1")).toEqual([1]);
    expect(await costs("&days=3")).toEqual([4, 2, 1]);
    expect(await costs("&days=2&before_hours=48")).toEqual([8, 4]);
    expect(await costs("")).toEqual([32, 16, 8, 4, 2, 1]);
    for (const wrong of ["days=0", "days=401", "days=x", "by=tool", "before_hours=-1"]) {
      const response = await fetch(`${server.url}/api/analytics/spend?${wrong}`);
      expect([wrong, response.status]).toEqual([wrong, 400]);
    }
  });

  test("amounts that are none → as not told; the sums stay whole", async () => {
    await using server = await start();
    const odd = {
      input: 1e300,
      output: -3,
      reasoning: "many",
      cache_read: null,
      nanodollars: 7,
      total: {},
    };
    const data = { call_id: "m", model: "opus", tokens: odd, cost: 0.5 };
    const post = { type: "model_response", session_id: "s", timestamp: NOW, data };
    expect((await postEvent(server, post)).status).toBe(201);
    expect(await spendBy(server, "model")).toEqual([
      {
        model: "opus",
        count: 1,
        cost: 0.5,
        tokens: {
          total: 7,
          input: 0,
          output: 0,
          reasoning: 0,
          cache_read: 0,
          cache_write: 0,
        },
      },
    ]);
  });
});

const ANALYTICS = ["tools", "agents", "models", "activity"].map(
  (name) => `/api/analytics/${name}?hours=9000`,
);
const figuresOf = (server: { url: string }) =>
  Promise.all(
    [...ANALYTICS, ...BY.map((by) => `/api/analytics/spend?by=${by}&days=400`)].map((path) =>
      getJson(server, path),
    ),
  );
const remove = async (server: { url: string }, path: string) =>
  (await fetch(`${server.url}/api/sessions${path}`, { method: "DELETE" })).status;

describe("DELETE /api/sessions", () => {
  /** A session with a subagent's, which has one, too; failures told once; models. */
  function family(id: string, seed: number): PostedEvent[] {
    const from = NOW - 2 * HOUR * seed;
    const model = (session_id: string): PostedEvent => ({
      type: "model_response",
      session_id,
      timestamp: from + 1,
      data: { call_id: "m", model: "opus", agent: "build", cost: 0.1, tokens: { input: 7 } },
    });
    const child = { type: "session_start", timestamp: from, session_id: `child-of-${id}` };
    const grandchild = { ...child, session_id: `grandchild-of-${id}` };
    return [
      ...sessionEvents(id, { seed, from }),
      {
        type: "agent_spawn",
        session_id: id,
        timestamp: from,
        data: { subagent_type: "E", call_id: "x", success: false },
      },
      {
        type: "tool_use",
        session_id: id,
        timestamp: from,
        data: { tool: "task", call_id: "x", success: false },
      },
      { type: "tool_blocked", session_id: id, timestamp: from, data: { error: "no" } },
      { type: "session_error", session_id: id, timestamp: from, data: { error: "no" } },
      { ...child, data: { parent_session_id: id, directory: "/p" } },
      { ...grandchild, data: { parent_session_id: child.session_id, directory: "/p" } },
      ...[id, child.session_id, grandchild.session_id].map(model),
    ];
  }

  test("/:sessionId → gone with all below it, and what they counted for; 404 when there is none", async () => {
    await using server = await start();
    await using other = await start();
    expect((await postEvent(server, [...family("a", 1), ...family("b", 2)])).status).toBe(201);
    expect((await postEvent(other, family("b", 2))).status).toBe(201);
    expect(await figuresOf(server)).not.toEqual(await figuresOf(other));
    expect(await remove(server, "/a")).toBe(204);
    expect(await figuresOf(server)).toEqual(await figuresOf(other));
    const left = await exported(server);
    expect(new Set(left.map(({ session_id }) => session_id))).toEqual(
      new Set(["b", "child-of-b", "grandchild-of-b"]),
    );
    expect(await getJson(server, "/health")).toMatchObject({ events: left.length });
    for (const gone of ["/a", "/child-of-a", "/grandchild-of-a", "/nobody", "/%22"])
      expect(await remove(server, gone)).toBe(404);
    await server.restart();
    expect(await figuresOf(server)).toEqual(await figuresOf(other));
    expect(await remove(server, "/child-of-b")).toBe(204);
    const { sessions } = await getJson<{ sessions: { id: string }[] }>(server, "/api/sessions");
    expect(sessions.map(({ id }) => id)).toEqual(["b"]);
  });

  test("?prefix= → those whose ids begin so, and all below them; without one 400, and nothing is deleted", async () => {
    await using server = await start();
    for (const id of ["demo-1", "demo-2", "demo", "mydemo-3"])
      expect((await postEvent(server, family(id, 1))).status).toBe(201);
    for (const query of ["", "?prefix=", "?id=demo"]) expect(await remove(server, query)).toBe(400);
    expect(await remove(server, "?prefix=nothing")).toBe(204);
    expect(await remove(server, "?prefix=demo-")).toBe(204);
    const { sessions } = await getJson<{ sessions: { id: string }[] }>(server, "/api/sessions");
    expect(sessions.map(({ id }) => id).sort()).toEqual(
      ["demo", "mydemo-3"].flatMap((id) => [`child-of-${id}`, id, `grandchild-of-${id}`]).sort(),
    );
  });

  test("a stream with rows is told; one that comes back and missed what is gone gets a reset", async () => {
    await using server = await start();
    const note = { type: "message_user", session_id: "b", timestamp: NOW };
    const { body } = await postEvent(server, [note, ...family("a", 1), note]);
    const [first = 0] = body.ids ?? [];
    const stream = await openStream(server, "?include=rows");
    expect(await remove(server, "/a")).toBe(204);
    const told = () =>
      stream
        .events()
        .flatMap(({ event, data }) =>
          event === "session_deleted" ? JSON.parse(data).session_id : [],
        );
    await waitFor(() => told().length === 3, "three deletions");
    expect(told().sort()).toEqual(["a", "child-of-a", "grandchild-of-a"]);
    expect(stream.events().some(({ event }) => event === "reset")).toBe(false);
    stream.close();
    const late = await openStream(server, "", { "Last-Event-ID": String(first) });
    expect((await late.waitForEvents(1))[0]?.event).toBe("reset");
    late.close();
    const head = await openStream(server, "", { "Last-Event-ID": String(body.ids?.at(-1)) });
    await postEvent(server, { type: "message_user", session_id: "b", timestamp: NOW });
    expect((await head.waitForEvents(1))[0]?.event).toBe("message_user");
    head.close();
  });

  test("a session that goes on → begins anew, with nothing of before", async () => {
    await using server = await start();
    const event = { type: "model_response", session_id: "s", timestamp: NOW };
    const data = { call_id: "m", model: "opus", cost: 1, tokens: { input: 1 } };
    await postEvent(server, { ...event, data });
    expect(await remove(server, "/s")).toBe(204);
    await postEvent(server, { ...event, data: { ...data, cost: 3 } });
    expect(await spendBy(server, "day")).toMatchObject([{ cost: 3, tokens: { total: 1 } }]);
    const { session } = await getJson<{ session: object }>(server, "/api/sessions/s");
    expect(session).toMatchObject({ event_count: 1, cost: { own: 3, total: 3 } });
  });

  const LARGE = isSoak ? 20_000 : 10_000;
  test(`one of ${LARGE} events holds nobody up for long`, async () => {
    await using server = await startTestServer();
    const call = (index: number) => ({
      type: "tool_use",
      session_id: "large",
      data: { tool: "bash", call_id: `c${index}`, args: "x".repeat(100), duration_ms: index },
    });
    for (let from = 0; from < LARGE; from += 2_500) {
      const batch = Array.from({ length: 2_500 }, (_, index) => call(from + index));
      expect((await postEvent(server, batch)).status).toBe(201);
    }
    let longest = 0;
    const deletion = remove(server, "/large");
    let isOver = false;
    void deletion.then(() => (isOver = true));
    while (!isOver) {
      const at = performance.now();
      await (await fetch(`${server.url}/health`)).text();
      longest = Math.max(longest, performance.now() - at);
    }
    expect(await deletion).toBe(204);
    console.log(`longest request while ${LARGE} events are deleted: ${Math.round(longest)} ms`);
    expect(longest).toBeLessThan(1_000);
    expect(await exported(server)).toEqual([]);
  }, 30_000);
});
