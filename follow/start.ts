/** Runs what follows the stream inside the server: each in a thread of its own, where its variable is set. */

const RESTART_PAUSE_MS = 5_000; // after a crash, which is a line in the log and nothing more
const LAST_ANSWER_MS = 200;

/** What they read of the environment: its value where it isn't set, what it must look like, and that in words. */
export const FOLLOWER_VARIABLES = {
  OTEL_EXPORTER_OTLP_ENDPOINT: ["", /^https?:\/\/[^\s/]+\S*$/, "a URL"],
  OTEL_EXPORTER_OTLP_HEADERS: ["", /=/, "name=value, …"],
  NOTIFY_URL: ["", /^https?:\/\/[^\s/]+\/\S*[^\s/]\/*$/, "a URL of ntfy, with a topic"],
  NOTIFY_AFTER: ["20", /^\d{1,6}$/, "a whole number of seconds"],
} satisfies Record<string, [absent: string, format: RegExp, expected: string]>;
const FOLLOWERS = { OTEL_EXPORTER_OTLP_ENDPOINT: "otlp", NOTIFY_URL: "ntfy" };

interface FollowerOptions {
  server: string; // its URL
  programs: URL; // this directory, as server.ts sees it: in an executable the bundle has another place
  env: Record<string, string>; // all that they know of the environment
  log: (message: string) => void;
}

/** @returns ends them */
export function startFollowers({ server, programs, env, log }: FollowerOptions) {
  const url = server.replace(/\/\/(0\.0\.0\.0|\[::\])(?=:)/, "//localhost"); // these are no names of it
  const workers = new Map<string, Worker>();

  function start(name: string): void {
    const worker = new Worker(new URL(`${name}.ts`, programs), { argv: [url], env, ref: false });
    worker.onerror = ({ message }) =>
      log(`${name}: ${/^error: .*/m.exec(message)?.[0] ?? message}`);
    const restart = () => void (workers.has(name) && start(name));
    worker.addEventListener("close", () => setTimeout(restart, RESTART_PAUSE_MS).unref());
    workers.set(name, worker);
  }

  for (const [variable, name] of Object.entries(FOLLOWERS)) if (env[variable]) start(name);

  return async () => {
    const ending = [...workers.values()];
    workers.clear();
    // Their streams are closed. What they have just sent would come twice without its answer.
    if (ending.length > 0) await Bun.sleep(LAST_ANSWER_MS);
    for (const worker of ending) worker.terminate();
  };
}
