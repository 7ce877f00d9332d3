// What the drawing and the table say of a device in the same words.

import { words } from "./format";
import type { Condition, DeviceMessage } from "./messages";

const ICONS: Record<Condition, string> = {
  offline: "✕",
  stopped: "■",
  silent: "?",
  failed: "✕",
  unseen: "✕",
  loading: "…",
  ready: "✓",
  idle: "○",
};

const GONE: ReadonlySet<Condition> = new Set(["offline", "stopped", "silent", "failed", "unseen"]);

/** Whether it serves nothing, and somebody should look at it. */
export function isGone(device: DeviceMessage): boolean {
  return GONE.has(device.condition);
}

export function ConditionBadge({ condition }: { condition: Condition }) {
  const kind = GONE.has(condition) ? "bad" : condition === "ready" ? "good" : "idle";
  return (
    <span class={`badge ${kind}`}>
      <span aria-hidden="true">{ICONS[condition]}</span> {condition}
    </span>
  );
}

/** What slows the board down now, and what did since it started. */
export function throttling(device: DeviceMessage): { now: string[]; earlier: string[] } {
  const flags = device.metrics?.throttled ?? [];
  const earlier = flags.filter((flag) => flag.endsWith("_earlier"));
  return { now: flags.filter((flag) => !flag.endsWith("_earlier")).map(words), earlier: earlier.map(words) };
}

export function Temperature({ device }: { device: DeviceMessage }) {
  const celsius = device.metrics?.temperature_celsius;
  const { now, earlier } = throttling(device);
  return (
    <>
      {celsius != null && <span class={celsius >= 80 ? "hot" : ""}>{Math.round(celsius)} °C</span>}
      {now.length > 0 && <strong class="hot"> ⚠ {now.join(", ")}</strong>}
      {now.length === 0 && earlier.length > 0 && <span class="quiet"> {earlier.join(", ")}</span>}
    </>
  );
}
