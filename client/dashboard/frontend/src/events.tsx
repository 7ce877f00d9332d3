import { clock, count, words } from "./format";
import type { Event } from "./messages";

const BAD = new Set(["device_lost", "batch_dead", "shard_failed", "plan_impossible"]);
const WARNING = new Set(["message_rejected", "batch_retried", "messages_dropped"]);
const GOOD = new Set(["shard_ready", "device_back"]);

function kindOf(event: Event): string {
  if (BAD.has(event.kind)) return "bad";
  if (WARNING.has(event.kind)) return "warning";
  return GOOD.has(event.kind) ? "good" : "idle";
}

export function Events({ events }: { events: Event[] }) {
  const latestFirst = [...events].reverse();
  return (
    <section class="panel" aria-labelledby="events">
      <h2 id="events">Events</h2>
      {events.length === 0 ? (
        <p class="absent">None since the dashboard was started.</p>
      ) : (
        <div class="events" role="log" tabIndex={0} aria-labelledby="events" data-testid="events">
          <ol>
          {latestFirst.map((event, index) => (
            <li key={`${event.time_unix_s} ${event.sender} ${events.length - index}`}>
              <time>{clock(event.time_unix_s)}</time>
              <span class={`badge ${kindOf(event)}`}>
                {words(event.kind)}
                {event.count > 1 && ` ×${count(event.count)}`}
              </span>
              <b>{event.sender}</b>
              <p>{event.detail}</p>
            </li>
          ))}
          </ol>
        </div>
      )}
    </section>
  );
}
