// The last three minutes, kept as columns: the first message brings them, each later one a second.

import type { Figure, History, ViewMessage } from "./messages";

export const SECONDS_KEPT = 180;

const COLUMNS = [
  "images_per_s",
  "tokens_per_s",
  "first_token_ms",
  "latency_ms_p50",
  "latency_ms_p95",
  "latency_ms_p99",
  "bytes_in_per_s",
  "bytes_out_per_s",
] as const;

/** The history with the second of `view` at its end; a new object, so that views notice. */
export function withSecond(before: History, view: ViewMessage): History {
  const after = { ...before, time_unix_s: push(before.time_unix_s, view.sample.time_unix_s) };
  for (const name of COLUMNS) after[name] = push(before[name], view.sample[name]);
  const seconds = after.time_unix_s.length;
  after.utilisation = {};
  for (const { device, metrics, is_fresh } of view.devices) {
    const known = is_fresh && view.is_connected && metrics ? metrics.utilisation : null;
    const column = push(before.utilisation[device] ?? [], known);
    // A device that was not there from the beginning has nothing to show for that time.
    const absent = seconds - column.length;
    after.utilisation[device] =
      absent > 0 ? [...Array<Figure>(absent).fill(null), ...column] : column.slice(-seconds);
  }
  return after;
}

function push<T>(column: T[], value: T): T[] {
  return [...column.slice(-(SECONDS_KEPT - 1)), value];
}
