/**
 * Who posts, and until when each is taken to live: what makes the difference between a call that runs and
 * one whose process is gone. Kept in memory alone, in the server.
 */

const SECOND_MS = 1_000;
/** An active session without an event for this long is stale where its sender is unknown: its process may be gone. */
export const STALE_MS = 3_600 * SECOND_MS;
/** The same while a call is open: a build may take long. */
export const STALE_OPEN_MS = 24 * STALE_MS;

const SENDER_INTERVAL_MS = 10 * SECOND_MS; // of a sender that hasn't said its own
const MISSED_INTERVALS = 3; // of silence, after which a sender is lost
/** How long one that hasn't said its own interval may be silent. */
export const UNHEARD_MS = MISSED_INTERVALS * SENDER_INTERVAL_MS;
const MAX_SENDERS = 10_000;
const UNSAID = { every_ms: null, name: null, version: null };

/** What a sender says of itself; `bye`: that it ends. */
export interface Heard {
  sender: string;
  every_ms: number | null;
  name: string | null;
  version: string | null;
  bye: boolean;
}
type Sender = Heard & { heard_at: number; back_at: number }; // milliseconds
/** Who has sent what is known of a session, and until when. */
export type Sent = { sender: string | null; last_event_at: number };
export type Senders = ReturnType<typeof createSenders>;
const silenceOf = (known?: Sender) => MISSED_INTERVALS * (known?.every_ms ?? SENDER_INTERVAL_MS);

/** After a start, at `startedAt`, each sender has its intervals to be heard. All times are milliseconds UTC. */
export function createSenders(startedAt: number) {
  const senders = new Map<string, Sender>();
  const unheardAt = startedAt + UNHEARD_MS;

  /** When a session was, or will be, stale: its sender lost, or where it has none, itself silent for too long. */
  function staleAt({ sender, last_event_at }: Sent, isOpen: boolean, now: number): number {
    if (sender === null) return last_event_at + (isOpen ? STALE_OPEN_MS : STALE_MS);
    const known = senders.get(sender);
    if (known === undefined && now < unheardAt) return Infinity;
    // One that isn't heard was lost soon after the session's last event.
    return Math.max(known?.heard_at ?? 0, last_event_at) + (known?.bye ? 0 : silenceOf(known));
  }
  const isLost = (sender: string, now: number) =>
    staleAt({ sender, last_event_at: 0 }, false, now) <= now;

  /** That `sender` lives, and what it says of itself. @returns whether no other says the same, and whether it is back, or gone */
  function hear(sender: string, now: number, said?: Heard) {
    const known = senders.get(sender);
    const isBack = known === undefined || isLost(sender, now);
    const back_at = isBack ? now : known.back_at; // a new one's sessions may have been told as lost
    const what = said?.bye === false ? said : (known ?? UNSAID); // a bye says no more than that
    const isSame = (it: Sender) => it.name === what.name && it.version === what.version;
    const isNew = said !== undefined && !senders.values().some(isSame);
    senders.delete(sender); // to be the last: the first was heard least lately
    senders.set(sender, { ...what, sender, bye: said?.bye ?? false, heard_at: now, back_at });
    const [oldest = ""] = senders.keys();
    if (senders.size > MAX_SENDERS) senders.delete(oldest);
    return { isNew, isTurned: isBack || said?.bye === true };
  }

  return {
    ...{ staleAt, hear },
    /** In an event of `at`: one of long ago, or of before its bye, doesn't say that a sender lives. */
    hearIn(sender: string, at: number, now: number): void {
      const known = senders.get(sender);
      const isOld = now - at >= silenceOf(known);
      if (!isOld && !(known?.bye && at <= known.heard_at)) hear(sender, now);
    },
    /** Senders that were lost after `from`, or came back; null: it may be any, as those that aren't heard count as lost from now on. */
    turned(from: number, now: number): string[] | null {
      const isIn = (at: number) => at > from && at <= now;
      if (isIn(unheardAt)) return null;
      const turned = [...senders.values()].filter(({ sender, back_at }) =>
        [back_at, staleAt({ sender, last_event_at: 0 }, false, now)].some(isIn),
      );
      return turned.map(({ sender }) => sender);
    },
    /** The version of one named `name` that lives, where it is older than `version`; null: there is none. */
    olderVersion(name: string, version: string, now: number): string | null {
      const isOlder = (it: Sender) =>
        it.name === name && Bun.semver.satisfies(it.version ?? "", `<${version}`);
      const older = senders.values().find((it) => isOlder(it) && !isLost(it.sender, now));
      return older?.version ?? null;
    },
    listSenders: (now: number) =>
      [...senders.values()].map(({ heard_at, back_at: _, bye: __, ...said }) => ({
        ...said,
        last_heard_at: new Date(heard_at).toISOString(),
        is_lost: isLost(said.sender, now),
      })),
  };
}
