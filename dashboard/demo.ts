/**
 * A demonstration: what eight coding-agent sessions would report, posted to a running server.
 *
 *     bun dashboard/demo.ts                         the past hour, then live until Ctrl-C
 *     bun dashboard/demo.ts --once                  the past hour only
 *     bun dashboard/demo.ts http://localhost:4000   to another server; or set PORT
 *
 * Where the server has an AUTH_TOKEN, it is taken from the environment here, too.
 *
 * Each session is a small actor on a virtual clock. The clock first runs through the past hour as
 * fast as it can, then with the real one. The same seed tells the same story; the ids carry the
 * time of the start, so that each run adds its own. All of them begin with "demo-".
 */

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
/** Longer than an hour, so that one session has gone stale. */
const HISTORY_MS = 84 * MINUTE_MS;
const BATCH_EVENTS = 500;
const LIVE_STEP_MS = 250;
/** How long the first question stays open, so that there is time to see it. */
const LIVE_WAIT_MS = 2 * MINUTE_MS;
/** How long before now the states begin that are there to be seen. */
const STATE_LEAD_MS = 40 * SECOND_MS;

interface DemoEvent {
  id: string;
  type: string;
  session_id: string;
  timestamp: number;
  data: Record<string, unknown>;
}

/** What an actor yields: how long until it goes on, in milliseconds. */
type Actor = Generator<number, void>;

/** Random numbers from 0 to 1 (xorshift32). */
function createRandom(seed: number): () => number {
  let state = seed | 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

/** Actors on one clock, and the events that they have told so far. */
function createWorld(startedAt: number, run: string) {
  let clock = startedAt;
  let serial = 0;
  let queue: { at: number; actor: Actor }[] = [];
  let told: DemoEvent[] = [];
  return {
    run,
    now: () => clock,
    tell(type: string, session_id: string, data: Record<string, unknown>): void {
      told.push({ id: `demo-${run}-${serial++}`, type, session_id, timestamp: clock, data });
    },
    start(actor: Actor, delayMs = 0): void {
      queue.push({ at: clock + delayMs, actor });
    },
    /** Lets everything happen that is due until `time`; returns what was told. */
    advance(time: number): DemoEvent[] {
      for (;;) {
        const next = queue.reduce<(typeof queue)[number] | null>(
          (first, entry) => (first === null || entry.at < first.at ? entry : first),
          null,
        );
        if (next === null || next.at > time) break;
        clock = next.at;
        const { done, value } = next.actor.next();
        if (done) queue = queue.filter((entry) => entry !== next);
        else next.at = clock + Math.max(1, Math.round(value));
      }
      clock = time;
      const events = told;
      told = [];
      return events;
    },
  };
}

type World = ReturnType<typeof createWorld>;

interface Tool {
  tool: string;
  /** Usual length, in milliseconds. */
  usual: number;
  args: (pick: <T>(items: readonly T[]) => T) => Record<string, unknown>;
  /** Share of calls that fail. */
  fails: number;
  error: string;
}

const FILES = [
  "src/auth/session.ts",
  "src/auth/login.test.ts",
  "src/billing/invoice.ts",
  "src/queue/retry.ts",
  "src/worker/pool.ts",
  "src/ui/theme.css",
  "docs/release-notes.md",
  "migrations/0042_invoices.sql",
] as const;

const TOOLS: readonly Tool[] = [
  {
    tool: "read",
    usual: 60,
    args: (pick) => ({ filePath: pick(FILES) }),
    fails: 0.004,
    error: "File not found",
  },
  {
    tool: "grep",
    usual: 180,
    args: (pick) => ({
      pattern: pick(["retry", "setTimeout", "deprecated", "createSession", "invoice_id"]),
      path: "src",
    }),
    fails: 0.004,
    error: "Invalid pattern",
  },
  {
    tool: "glob",
    usual: 90,
    args: (pick) => ({ pattern: pick(["**/*.test.ts", "src/**/*.ts", "docs/*.md"]) }),
    fails: 0,
    error: "",
  },
  {
    tool: "edit",
    usual: 240,
    args: (pick) => ({
      filePath: pick(FILES),
      oldString: "await retry()",
      newString: "await retry({ attempts: 3 })",
    }),
    fails: 0.02,
    error: "oldString was not found in the file",
  },
  {
    tool: "bash",
    usual: 9_000,
    args: (pick) => ({
      command: pick([
        "bun test",
        "git status --short",
        "bun run build",
        "git diff --stat",
        "psql -f migrations/0042_invoices.sql",
        "docker compose up -d db",
      ]),
    }),
    fails: 0.04,
    error: "2 tests failed",
  },
  {
    tool: "webfetch",
    usual: 2_400,
    args: (pick) => ({
      url: pick(["https://example.com/docs/upgrade", "https://example.org/rfc/9457"]),
    }),
    fails: 0.05,
    error: "404 Not Found",
  },
  {
    tool: "write",
    usual: 150,
    args: (pick) => ({ filePath: pick(FILES), content: "…" }),
    fails: 0,
    error: "",
  },
];

const failureOf = (tool: string) =>
  tool === "bash" ? { outcome: "exit", exit_code: 1 } : { outcome: "failed" };

const LONG_COMMAND =
  "bun test --timeout 60000 --coverage --coverage-reporter=lcov test/integration/checkout test/integration/billing && bun run report --format=html --out=coverage/index.html";
const LONG_ERROR = `2 tests failed:\n${Array.from({ length: 12 }, (_, line) => `  test/integration/checkout/${line}.test.ts: expected 200, received 503`).join("\n")}`;

const ASKED_COMMANDS = [
  "rm -rf dist && bun run build",
  "git push --force-with-lease",
  "docker system prune -f",
];

/** How often each tool is used, in their order. */
const TOOL_WEIGHTS = [30, 16, 8, 18, 20, 3, 5] as const;

const AGENTS: readonly { subagent_type: string; prompts: readonly string[] }[] = [
  {
    subagent_type: "explore",
    prompts: [
      "Find every caller of createSession",
      "Map the billing tables and who writes them",
      "List the places where timers are left open",
    ],
  },
  {
    subagent_type: "engineer",
    prompts: [
      "Cover the retry queue with tests",
      "Write the migration and its rollback",
      "Replace the polling loop with a subscription",
    ],
  },
  {
    subagent_type: "reviewer",
    prompts: ["Review the diff for races", "Check the error paths of the login flow"],
  },
  {
    subagent_type: "researcher",
    prompts: [
      "What changed in the upgrade guide between the two versions?",
      "Compare three ways to backfill without locking",
    ],
  },
];

/** What the person asks for, the first of each session beside its title. */
const PROMPTS = [
  "Go on, and run the tests after each step.",
  "That broke the build. Find out why, and mend it where it began; don't work around it.",
  "Now the same for the other call sites.",
  "Send out reviewers before you change anything else.",
  "Write down what you have learned in docs/release-notes.md, briefly.",
] as const;

const TODOS = [
  "Reproduce it",
  "Find the cause",
  "Mend it, with a test",
  "Run the whole suite",
  "Write it down",
] as const;

const CONTEXT_LIMIT = 200_000;

interface Plan {
  title: string;
  directory: string;
  model: string;
  /** Minutes before now at which it begins. */
  began: number;
  /** How many turns it takes; Infinity: it goes on live. */
  turns: number;
  /** Share of turns that send out agents. */
  delegates: number;
  /** Minutes before now at which it asks for a permission. */
  asks?: number;
  /** What it does for the first minutes of the live part. */
  shows?: "command" | "thinks" | "retries";
  /** Minutes before now at which it falls silent. */
  silent?: number;
}

const PLANS: readonly Plan[] = [
  {
    title: "Fix the flaky login test",
    directory: "/home/dev/shop",
    model: "claude-sonnet-4-5",
    began: 58,
    turns: Infinity,
    delegates: 0.2,
    shows: "command",
  },
  {
    title: "Migrate billing to Postgres 17",
    directory: "/home/dev/billing",
    model: "claude-opus-4-5",
    began: 47,
    turns: Infinity,
    delegates: 0.5,
    shows: "thinks",
  },
  {
    title: "Make the retry queue idempotent",
    directory: "/home/dev/worker",
    model: "claude-sonnet-4-5",
    began: 25,
    turns: Infinity,
    delegates: 0.45,
    shows: "retries",
  },
  {
    title: "Upgrade CI to the new runners",
    directory: "/home/dev/infra",
    model: "claude-sonnet-4-5",
    began: 21,
    turns: Infinity,
    delegates: 0.15,
    asks: 3.2,
  },
  {
    title: "Write release notes for 2.4",
    directory: "/home/dev/shop",
    model: "claude-haiku-4-5",
    began: 52,
    turns: 4,
    delegates: 0,
  },
  {
    title: "Dark mode for the settings page",
    directory: "/home/dev/shop",
    model: "claude-sonnet-4-5",
    began: 39,
    turns: 7,
    delegates: 0.3,
  },
  {
    title: "Review pull request 482",
    directory: "/home/dev/worker",
    model: "claude-opus-4-5",
    began: 13,
    turns: 2,
    delegates: 1,
  },
  {
    title: "Memory leak in the worker pool",
    directory: "/home/dev/worker",
    model: "claude-opus-4-5",
    began: 83,
    turns: Infinity,
    delegates: 0,
    silent: 70,
  },
];

/** Prices per million tokens, roughly, so that costs differ as they would. */
const PRICES: Record<string, number> = {
  "claude-opus-4-5": 9,
  "claude-sonnet-4-5": 5,
  "claude-haiku-4-5": 1.5,
};

interface Session {
  id: string;
  facts: Record<string, unknown>;
  model: string;
  /** Tokens that its model is given with each request; compacted where they come near the limit. */
  context: number;
}

function createStory(world: World, random: () => number, now: number) {
  const pick = <T>(items: readonly T[]): T => {
    const item = items[Math.floor(random() * items.length)];
    if (item === undefined) throw new Error("nothing to pick from");
    return item;
  };
  const between = (low: number, high: number) => low + random() * (high - low);
  /** Most are near the usual length, some ten times as long. */
  const around = (usual: number) =>
    Math.round(usual * Math.exp((random() + random() + random() - 1.4) * 1.6));
  let calls = 0;
  let children = 0;

  /** @param done of its todos, how many */
  function update(session: Session, done = 0): void {
    world.tell("session_update", session.id, {
      ...session.facts,
      todos: TODOS.map((content, index) => ({
        content,
        status: index < done ? "completed" : index === done ? "in_progress" : "pending",
      })),
    });
  }

  function pickTool(): Tool {
    let at = random() * TOOL_WEIGHTS.reduce((sum, weight) => sum + weight, 0);
    for (const [index, weight] of TOOL_WEIGHTS.entries()) {
      at -= weight;
      const tool = TOOLS[index];
      if (at < 0 && tool !== undefined) return tool;
    }
    return pick(TOOLS);
  }

  /** One call, told when it is over. */
  function* call(session: Session): Actor {
    const { tool, usual, args, fails, error } = pickTool();
    const duration_ms = around(usual);
    const given = args(pick);
    const call_id = `call_${calls++}`;
    const hasFailed = random() < fails;
    world.tell("tool_start", session.id, { tool, args: given, call_id });
    yield duration_ms;
    const path = tool === "edit" || tool === "write" ? given.filePath : undefined;
    const lines = () => Math.round(around(6));
    const files = [{ path, additions: 1 + lines(), deletions: tool === "edit" ? lines() : 0 }];
    world.tell("tool_use", session.id, {
      tool,
      args: given,
      call_id,
      duration_ms,
      ...(path === undefined || hasFailed ? {} : { files }),
      ...(hasFailed ? { ...failureOf(tool), error } : { outcome: "ok" }),
    });
  }

  /** A model's answer: `length` milliseconds, or as long as is usual. */
  function* think(session: Session, length = between(1_000, 14_000)): Actor {
    const call = {
      call_id: `call_${calls++}`,
      model: session.model,
      provider: "anthropic",
      agent: session.facts.agent,
    };
    world.tell("model_request", session.id, call);
    yield length;
    const added = Math.round(between(500, 5_000));
    const output = Math.round(length / 12);
    const input = Math.round(between(20, 400));
    const price = (PRICES[session.model] ?? 5) / 1e6;
    const tokens = {
      ...{ input, output, reasoning: Math.round(output / 3) },
      ...{ cache_read: session.context, cache_write: added },
    };
    session.context += added;
    world.tell("model_response", session.id, {
      ...call,
      duration_ms: Math.round(length),
      first_token_ms: Math.round(length / 4),
      tokens,
      cost: (input + output * 5 + session.context / 10) * price,
      context_limit: CONTEXT_LIMIT,
      outcome: "ok",
    });
    if (session.context < CONTEXT_LIMIT * 0.9) return;
    world.tell("session_compacted", session.id, {});
    session.context = 24_000;
  }

  /** A call that the person is asked for first: it is allowed, or denied. */
  function* askedCall(session: Session, waited_ms: number, isDenied: boolean): Actor {
    const call_id = `call_${calls++}`;
    const command = pick(ASKED_COMMANDS);
    const call = { tool: "bash", call_id, args: { command } };
    const ran_ms = isDenied ? 0 : around(6_000);
    world.tell("tool_start", session.id, call);
    yield* ask(session, waited_ms, command, call_id, isDenied ? "reject" : "once");
    yield ran_ms;
    world.tell("tool_use", session.id, {
      ...call,
      waited_ms: Math.round(waited_ms),
      duration_ms: Math.round(waited_ms + ran_ms),
      ...(isDenied
        ? { outcome: "denied", error: "The user rejected permission to use this tool" }
        : { outcome: "ok" }),
    });
  }

  /** The provider refuses three times, a little longer each time. */
  function* refused(session: Session, waitMs: number): Actor {
    for (let attempt = 1; attempt <= 3; attempt++) {
      world.tell("retry", session.id, {
        attempt,
        message: "Rate limited",
        retry_at: world.now() + waitMs * attempt,
      });
      yield waitMs * attempt;
    }
  }

  /** One state from now on, for a while, so that there is time to see it; then again. */
  const STATES: Record<NonNullable<Plan["shows"]>, (session: Session) => Actor> = {
    *command(session) {
      const call_id = `call_${calls++}`;
      const call = { tool: "bash", call_id, args: { command: LONG_COMMAND } };
      world.tell("tool_start", session.id, call);
      yield LIVE_WAIT_MS * 3;
      const ended = { outcome: "exit", exit_code: 1, error: LONG_ERROR };
      world.tell("tool_use", session.id, { ...call, duration_ms: LIVE_WAIT_MS * 3, ...ended });
    },
    thinks: (session) => think(session, LIVE_WAIT_MS),
    retries: (session) => refused(session, LIVE_WAIT_MS / 4),
  };

  /** Thinks, calls, sometimes several at once. */
  function* work(session: Session, count: number): Actor {
    for (let index = 0; index < count; index++) {
      if (random() < 0.02) yield* refused(session, 4_000);
      yield* think(session);
      if (random() < 0.03) yield* askedCall(session, between(3_000, 30_000), random() < 0.4);
      else if (random() < 0.2) {
        let open = Math.round(between(2, 3));
        for (let parallel = open; parallel > 0; parallel--)
          world.start(
            (function* () {
              yield* call(session);
              open--;
            })(),
          );
        while (open > 0) yield 100;
      } else yield* call(session);
    }
  }

  /** A subagent in a session of its own. */
  function* subagent(parent: Session, kind: (typeof AGENTS)[number], done: () => void): Actor {
    const prompt = pick(kind.prompts);
    const call_id = `call_${calls++}`;
    const child: Session = {
      id: `demo-${world.run}-child-${children++}`,
      facts: {
        title: `${prompt} (@${kind.subagent_type} subagent)`,
        directory: parent.facts.directory,
        agent: kind.subagent_type,
        model: parent.model,
        parent_session_id: parent.id,
      },
      model: parent.model,
      context: 9_000,
    };
    const startedAt = world.now();
    const hasFailed = random() < 0.09;
    world.tell("agent_spawn", parent.id, {
      subagent_type: kind.subagent_type,
      prompt,
      call_id,
      child_session_id: child.id,
    });
    world.tell("session_start", child.id, child.facts);
    yield* work(child, Math.round(between(5, 26)));
    if (hasFailed)
      world.tell("session_error", child.id, { error: "The model is overloaded; try again later" });
    world.tell("session_end", child.id, {});
    const duration_ms = world.now() - startedAt;
    world.tell("tool_use", parent.id, {
      tool: "task",
      args: { subagent_type: kind.subagent_type, prompt },
      call_id,
      duration_ms,
      success: !hasFailed,
      ...(hasFailed ? { error: "The subagent ended with an error" } : {}),
    });
    world.tell("agent_complete", parent.id, {
      subagent_type: kind.subagent_type,
      call_id,
      duration_ms,
      ...(hasFailed
        ? { outcome: "failed", error: "The model is overloaded; try again later" }
        : { outcome: "ok" }),
    });
    done();
  }

  function* ask(
    session: Session,
    untilMs: number,
    command = pick(ASKED_COMMANDS),
    call_id?: string,
    reply = "once",
  ): Actor {
    const request = { request_id: `req_${calls++}`, kind: "permission", call_id };
    world.tell("input_requested", session.id, { ...request, detail: `bash: ${command}` });
    yield untilMs;
    world.tell("input_resolved", session.id, { ...request, reply });
  }

  return function* session(plan: Plan, index: number): Actor {
    const self: Session = {
      id: `demo-${world.run}-${index + 1}`,
      facts: { title: plan.title, directory: plan.directory, agent: "build", model: plan.model },
      model: plan.model,
      context: 14_000,
    };
    /** When it stops to ask, if it does so in the history. */
    const asksAt = plan.asks === undefined ? Infinity : now - plan.asks * MINUTE_MS;
    const silentAt = plan.silent === undefined ? Infinity : now - plan.silent * MINUTE_MS;
    let hasAsked = plan.asks === undefined;
    for (let turn = 0; turn < plan.turns; turn++) {
      if (turn === 0) world.tell("session_start", self.id, self.facts);
      const prompt = turn === 0 ? `${plan.title}, please.` : pick(PROMPTS);
      world.tell("turn_start", self.id, { prompt, agent: "build", model: self.model });
      update(self, Math.min(turn, TODOS.length));
      for (let steps = Math.round(between(4, 14)); steps > 0; steps--) {
        yield* work(self, 1);
        if (world.now() > silentAt) return; // as a process does that was killed
        if (world.now() >= now - STATE_LEAD_MS && plan.shows) yield* STATES[plan.shows](self);
        if (hasAsked || world.now() < asksAt) continue;
        hasAsked = true;
        yield* ask(self, Math.max(0, now + LIVE_WAIT_MS - world.now()));
      }
      const isShowing = plan.shows !== undefined && world.now() > now - 5 * MINUTE_MS;
      if (random() < plan.delegates && !isShowing) {
        let open = Math.round(between(2, 4.4));
        for (let count = open; count > 0; count--) {
          world.start(
            subagent(self, pick(AGENTS), () => {
              open--;
            }),
            Math.round(between(0, 1_500)),
          );
        }
        while (open > 0) yield 200;
        yield* work(self, Math.round(between(2, 6)));
      }
      if (random() < 0.15) yield* ask(self, between(4_000, 40_000));
      update(self, Math.min(turn, TODOS.length));
      // The person stops it now and then, in the middle of a call: that was cancelled.
      if (random() < 0.3)
        world.tell("tool_start", self.id, {
          tool: "bash",
          call_id: `call_${calls++}`,
          args: { command: "bun run e2e --headed" },
        });
      yield 9_000;
      world.tell("session_end", self.id, {});
      if (turn + 1 < plan.turns) yield between(8_000, 90_000);
    }
  };
}

const token = process.env.AUTH_TOKEN;
const AUTHORIZATION: Record<string, string> = token ? { Authorization: `Bearer ${token}` } : {};

class Refusal extends Error {}

/** Takes out of `events` what the server has. @throws Refusal, or the error of fetch where the server can't be reached */
async function post(url: string, events: DemoEvent[]): Promise<void> {
  while (events.length > 0) {
    const batch = events.slice(0, BATCH_EVENTS);
    const response = await fetch(`${url}/api/events`, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...AUTHORIZATION },
      body: JSON.stringify(batch),
    });
    if (!response.ok) throw new Refusal(`${response.status} ${await response.text()}`);
    events.splice(0, batch.length);
  }
}

if (import.meta.main) {
  const args = process.argv.slice(2);
  const given = args.find((argument) => !argument.startsWith("--"));
  const url = (given ?? `http://localhost:${process.env.PORT || 3001}`).replace(/\/$/, "");
  const now = Date.now();
  const world = createWorld(now - HISTORY_MS, now.toString(36));
  const story = createStory(world, createRandom(20260101), now);
  for (const [index, plan] of PLANS.entries())
    world.start(story(plan, index), HISTORY_MS - plan.began * MINUTE_MS);
  try {
    const events = world.advance(now);
    const count = events.length;
    await post(url, events);
    console.log(`${count} events of the past hour are at ${url}`);
    if (!args.includes("--once")) {
      console.log("Live until Ctrl-C");
      for (;;) {
        await Bun.sleep(LIVE_STEP_MS);
        events.push(...world.advance(Date.now()));
        // A server that is away gets them once it is back; it knows by their ids those that it has.
        await post(url, events).catch((error) => {
          if (error instanceof Refusal) throw error;
        });
      }
    }
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    console.error(`${url}: ${reason}${error instanceof Refusal ? "" : ". Is the server running?"}`);
    process.exit(1);
  }
}
