/** What other programs read: Prometheus its metrics, Perfetto and its like a session's trace. */

import { afterAll, describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { sessionEvents } from "./fixtures.ts";
import {
  getJson,
  postEvent,
  removeTempDirs,
  startTestServer,
  tempDir,
  waitFor,
} from "./helpers.ts";

afterAll(removeTempDirs);

const model = (call_id: string, data: object) => ({
  ...{ type: "model_response", session_id: "s", id: call_id },
  data: { call_id, model: "claude", ...data },
});

describe("GET /metrics", () => {
  const read = async (server: { url: string }) => {
    const response = await fetch(`${server.url}/metrics`);
    expect(response.headers.get("content-type")).toBe("text/plain; version=0.0.4; charset=utf-8");
    return response.text();
  };
  /** The value of each sample, by its name and labels. */
  const samplesOf = (text: string) =>
    Object.fromEntries(
      [...text.matchAll(/^(\w.*) (\S+)$/gm)].map(([, name = "", value]) => [name, Number(value)]),
    );

  test("→ what is stored now, and what was counted since the start: each event and span once", async () => {
    let now = Date.now();
    await using server = await startTestServer({ now: () => now });
    const tokens = { input: 10, output: 5, reasoning: 0, cache_read: 3 };
    const events = [
      { type: "input_requested", session_id: "s", data: { request_id: "r" } },
      { type: "tool_start", session_id: "s", data: { tool: "bash", call_id: "t" } },
      { type: "tool_use", session_id: "s", data: { tool: "bash", call_id: "t", outcome: "exit" } },
      model("m1", { tokens, cost: 0.1 }),
      model("m2", { tokens: { input: 1 }, cost: 0.2 }),
      model("m3", { tokens: 7, model: 'a "b"\\\n', outcome: "failed" }),
      { type: "session_start", session_id: "lost", data: { sender: "p" } },
      { type: "session_end", session_id: "over" },
    ];
    await postEvent(server, events);
    await postEvent(server, [events[3], { ...events[2], id: "again" }]);
    const text = await read(server);
    const found = samplesOf(text);
    expect(found).toMatchObject({
      pai_stored_events: 9,
      'pai_sessions{status="active"}': 2,
      'pai_sessions{status="completed"}': 1,
      pai_sessions_waiting: 1,
      pai_subscribers: 0,
      'pai_events_total{type="model_response"}': 3,
      'pai_events_total{type="tool_use"}': 2,
      'pai_spans_total{kind="tool",outcome="exit"}': 1,
      'pai_spans_total{kind="model",outcome="ok"}': 2,
      'pai_spans_total{kind="model",outcome="failed"}': 1,
      'pai_model_tokens_total{model="claude",type="input"}': 11,
      'pai_model_tokens_total{model="claude",type="cache_read"}': 3,
      'pai_model_tokens_total{model="a \\"b\\"\\\\\\n",type="unknown"}': 7,
      'pai_model_cost_dollars_total{model="claude"}': 0.3,
      pai_commits_failed_total: 0,
      'pai_commit_duration_seconds_bucket{le="+Inf"}': 2,
      pai_commit_duration_seconds_count: 2,
    });
    const buckets = Object.entries(found).filter(([name]) => name.includes("_bucket"));
    const counts = buckets.map(([, count]) => count);
    expect(counts).toEqual(counts.toSorted((a, b) => a - b));

    // What retention, time and a restart change; then more models than have a label each.
    now += 40_000;
    await server.restart();
    now += 40_000;
    const many = Array.from({ length: 105 }, (_, index) =>
      model(`n${index}`, { model: `model-${index}`, tokens: 1 }),
    );
    await postEvent(server, many);
    const later = samplesOf(await read(server));
    expect(later).toMatchObject({
      pai_stored_events: 9 + many.length,
      'pai_sessions{status="active"}': 1,
      'pai_sessions{status="stale"}': 1,
      'pai_spans_total{kind="model",outcome="ok"}': 105,
      'pai_model_tokens_total{model="model-99",type="unknown"}': 1,
      'pai_model_tokens_total{model="other",type="unknown"}': 5,
    });
    expect(Object.keys(later).filter((name) => name.includes("model-100"))).toEqual([]);
  });

  const hasPrometheus = Bun.which("prometheus") !== null && Bun.which("promtool") !== null;
  if (!hasPrometheus) console.warn("skipped: Prometheus itself, for want of it in PATH");
  test.skipIf(!hasPrometheus)(
    "a real Prometheus takes them by the README's configuration, and promtool has nothing to say",
    async () => {
      const authToken = "x".repeat(32);
      await using server = await startTestServer({ config: { authToken } });
      const headers = { Authorization: `Bearer ${authToken}` };
      await postEvent(server, [...sessionEvents("s"), model("m", { tokens: 7, cost: 1 })], headers);
      const scraped = await (await fetch(`${server.url}/metrics`, { headers })).text();
      const promtool = Bun.spawn(["promtool", "check", "metrics"], {
        ...{ stdin: new Blob([scraped]), stdout: "pipe", stderr: "pipe" },
      });
      const said = await new Response(promtool.stdout).text();
      const complained = await new Response(promtool.stderr).text();
      expect([said, complained, await promtool.exited]).toEqual(["", "", 0]);

      const readme = await Bun.file(join(import.meta.dir, "../README.md")).text();
      const config = /^scrape_configs:\n(?: .*\n)+/m.exec(readme)?.[0] ?? "";
      const directory = tempDir();
      const file = join(directory, "prometheus.yml");
      const ours = config
        .replace("localhost:3001", `127.0.0.1:${server.port}`)
        .replace(/(credentials: ).*/, `$1${authToken}`);
      expect(ours).toContain(String(server.port));
      expect(ours).toContain(authToken);
      writeFileSync(file, `global: { scrape_interval: 200ms, scrape_timeout: 200ms }\n${ours}`);
      const free = Bun.serve({ port: 0, hostname: "127.0.0.1", fetch: () => new Response() });
      const { port } = free;
      await free.stop(true);
      const listen = `--web.listen-address=127.0.0.1:${port}`;
      const storage = `--storage.tsdb.path=${directory}`;
      const soon = "--scrape.discovery-reload-interval=100ms"; // else it waits for 5 s
      const prometheus = Bun.spawn(
        ["prometheus", `--config.file=${file}`, listen, storage, soon, "--log.level=error"],
        { stdout: "ignore", stderr: "ignore" },
      );
      const ask = async (query: string): Promise<string | undefined> => {
        const path = `/api/v1/query?query=${encodeURIComponent(query)}`;
        const answer = await fetch(`http://127.0.0.1:${port}${path}`).catch(() => null);
        if (!answer?.ok) return undefined;
        const { data } = (await answer.json()) as { data: { result: { value: [0, string] }[] } };
        return data.result[0]?.value[1];
      };
      try {
        const query = 'sum(pai_spans_total{kind="tool"})';
        await waitFor(async () => (await ask(query)) !== undefined, "the spans", 20_000);
        expect(await ask(query)).toBe("20");
        expect(await ask('pai_model_cost_dollars_total{model="claude"}')).toBe("1");
        const slowest = "histogram_quantile(1, pai_commit_duration_seconds_bucket)";
        expect(Number(await ask(slowest))).toBeGreaterThan(0);
      } finally {
        prometheus.kill();
        await prometheus.exited;
      }
    },
    30_000,
  );
});

describe("GET /api/sessions/:sessionId/trace.json", () => {
  interface TraceEvent {
    ph: string;
    name: string;
    pid: number;
    tid: number;
    ts: number;
    dur: number;
    args: Record<string, unknown>;
  }

  test("→ each span once, in tracks of its session in which nothing overlaps, agents by arrows", async () => {
    const from = Date.parse("2026-01-01T12:00:00Z");
    const now = from + 3_600_000;
    await using server = await startTestServer({
      ...{ now: () => now, config: { retentionHours: 1e6 } },
    });
    const child = (event: object) => ({ ...event, session_id: "child" });
    const spawn = { subagent_type: "explore", description: "Find it", call_id: "a" };
    const at = (ms: number, type: string, data: object) => ({
      ...{ type, session_id: "root", timestamp: from + ms, data },
    });
    await postEvent(server, [
      ...sessionEvents("root", { from }).slice(0, -1),
      at(1_000, "agent_spawn", { ...spawn, child_session_id: "child" }),
      child(at(1_100, "session_start", { parent_session_id: "root", agent: "explore" })),
      child(at(2_000, "tool_start", { tool: "read", call_id: "t1", args: "x" })),
      child(at(2_500, "tool_start", { tool: "grep", call_id: "t2" })),
      child(at(3_000, "tool_use", { tool: "read", call_id: "t1", outcome: "failed", error: "no" })),
      at(now - from - 1_000, "model_request", { call_id: "m", model: "claude" }),
      { type: "tool_use", session_id: "other", data: { tool: "bash" } },
    ]);
    const answer = await getJson<{ traceEvents: TraceEvent[] }>(
      server,
      "/api/sessions/root/trace.json",
    );
    const ofPhase = (ph: string) => answer.traceEvents.filter((event) => event.ph === ph);
    const calls = ofPhase("X");
    const spans: { id: number }[] = [];
    for (const id of ["root", "child"])
      spans.push(
        ...(await getJson<{ spans: typeof spans }>(server, `/api/spans?sessionId=${id}&limit=1000`))
          .spans,
      );
    const idsOf = (rows: { id?: unknown }[]) => rows.map(({ id }) => id).toSorted();
    expect(spans.length).toBe(28);
    expect(idsOf(calls.map(({ args }) => args))).toEqual(idsOf(spans));

    // The format: "X" of one thread are nested; times are microseconds; each thread has one name.
    for (const { ts, dur } of calls) expect([ts, dur].every(Number.isSafeInteger)).toBe(true);
    const threads = Map.groupBy(calls, ({ pid, tid }) => `${pid} ${tid}`);
    for (const [, ofThread] of threads) {
      const inOrder = ofThread.toSorted((a, b) => a.ts - b.ts || a.dur - b.dur);
      for (const [index, { ts, dur }] of inOrder.entries())
        expect(ts + dur).toBeLessThanOrEqual(inOrder[index + 1]?.ts ?? Infinity);
    }
    const named = ofPhase("M").filter(({ name }) => name === "thread_name");
    expect(named.map(({ pid, tid }) => `${pid} ${tid}`).toSorted()).toEqual(
      [...threads.keys()].toSorted(),
    );
    expect(named.length).toBeGreaterThan(6); // of those, agents that overlap have several
    const processes = ofPhase("M").filter(({ name }) => name === "process_name");
    expect(processes.map(({ args }) => args.name).toSorted()).toEqual([
      "Session 1, done",
      "explore",
    ]);

    const byId = (id: string) => calls.find(({ args }) => args.call_id === id);
    expect(byId("t1")).toMatchObject({
      ...{ name: "read", cat: "tool", ts: (from + 2_000) * 1_000, dur: 1_000_000 },
      args: { outcome: "failed", error: "no", text: "x", session_id: "child", call_id: "t1" },
    });
    expect(byId("t2")?.tid).not.toBe(byId("t1")?.tid);
    expect(byId("m")).toMatchObject({ dur: 1_000_000, args: { outcome: "running" } }); // to now
    const agent = calls.find(({ args }) => args.child_session_id === "child");
    const place = (event?: TraceEvent) => [event?.pid, event?.tid, event?.ts];
    expect(ofPhase("s").map((event) => place(event))).toEqual([place(agent)]);
    expect(ofPhase("f").map((event) => place(event))).toEqual([place(byId("t1"))]);
  });

  test("→ 404 for a session that isn't there", async () => {
    await using server = await startTestServer();
    const { status } = await fetch(`${server.url}/api/sessions/nope/trace.json`);
    expect(status).toBe(404);
  });
});
