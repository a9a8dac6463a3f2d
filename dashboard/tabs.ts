/**
 * The tabs of a browser share one stream, because the browser has six connections to a server for all of
 * them. One leads: it holds a lock (Web Locks), has the stream, and hands on what comes (BroadcastChannel).
 *
 *     leads     until it is closed, hidden or paused, or another takes the lock
 *     follows   waits for the lock; gets it, and goes on from its own last event
 *     behind    has missed something: takes the lock, and goes on from its own last event
 *
 * What comes twice in that way changes nothing. Only tabs that are shown take part, so no browser slows
 * their timers down. Where there are no locks (http:// and no loopback name) each tab leads itself.
 */

const NAME = "event-stream";
/** How often a leader speaks. A follower that misses it for so many ticks takes the lock: the leader hangs. */
const TICK_MS = 1_000;
const MAX_SILENT_TICKS = 3;

/**
 * @param lead the lock is this tab's
 * @param follow it was, and is another's
 * @param say what it says as a leader
 */
export function createTabs<Said extends object>(
  lead: () => void,
  follow: () => void,
  hear: (said: Said) => void,
  say: () => Said,
) {
  let channel: BroadcastChannel | null = null;
  let leads = false;
  /** Greater with each leader: one that hung doesn't know yet that it isn't. */
  let term = 0;
  let silentTicks = 0;
  /** Gives the lock back, or waits for it no longer. */
  let release = () => {};

  function startLeading(): void {
    leads = true;
    term = Math.max(term + 1, Date.now() + Math.random());
    lead();
  }

  function stopLeading(): void {
    leads = false;
    follow();
    askForLock();
  }

  function leaveChannel(): void {
    channel?.close();
    channel = null;
  }

  /** @param steal at once, whoever has it */
  function askForLock(steal = false): void {
    release();
    silentTicks = 0;
    const unwanted = new AbortController();
    const { signal } = unwanted;
    release = () => unwanted.abort();
    const hold = () => {
      if (signal.aborted) return;
      startLeading();
      return new Promise((done) => signal.addEventListener("abort", done));
    };
    navigator.locks.request(NAME, steal ? { steal } : { signal }, hold).catch(({ name }) => {
      if (signal.aborted) return;
      if (name !== "AbortError") {
        leaveChannel(); // locks are forbidden here: as where there are none
        startLeading();
      } else if (leads) stopLeading();
      else askForLock(true); // it was taken before this tab had heard that it had it
    });
  }

  function receive({ data }: MessageEvent<(Said & { term: number }) | null>): void {
    if (data === null) return send(); // one who has just come
    if (data.term < term) return;
    if (leads) stopLeading();
    term = data.term;
    silentTicks = 0;
    hear(data);
  }

  function send(): void {
    const said = say();
    if (leads) channel?.postMessage({ ...said, term });
  }

  setInterval(() => {
    if (leads) send();
    // Ticks, not time: a computer that slept wakes with none of them.
    else if (channel !== null && ++silentTicks > MAX_SILENT_TICKS) askForLock(true);
  }, TICK_MS);

  return {
    leads: () => leads,
    send,
    takeLock: () => askForLock(true),
    /** Takes part: hears from now on what the leader says. */
    join(): void {
      if (navigator.locks === undefined) leads = true;
      if (leads || channel !== null) return;
      channel = new BroadcastChannel(NAME);
      channel.addEventListener("message", receive);
      channel.postMessage(null);
      askForLock();
    },
    leave(): void {
      send();
      release();
      leaveChannel();
      leads = false;
    },
  };
}
