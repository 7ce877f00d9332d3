// Every device in a table, which on a phone is a list of cards.

import { useState } from "preact/hooks";

import { ConditionBadge, Temperature, isGone } from "./device";
import { age, bytes, count, duration, percent, rate } from "./format";
import type { DeviceMessage, History, ViewMessage } from "./messages";
import { Sparkline } from "./sparkline";

interface Column {
  name: string;
  kind?: string;
  key: (device: DeviceMessage) => number | string;
}

const ABSENT = -1;
const MANY = 12; // beyond it, a phone shows the most important figures of each
const COLUMNS: Column[] = [
  { name: "device", kind: "text", key: (d) => d.device },
  { name: "stage", key: (d) => d.stage_index ?? Infinity },
  { name: "state", kind: "text", key: (d) => `${isGone(d) ? 0 : 1} ${d.condition}` },
  { name: "busy", kind: "wide", key: (d) => -(d.metrics?.utilisation ?? ABSENT) },
  { name: "a batch", key: (d) => -(d.metrics?.compute_ms_mean ?? ABSENT) },
  { name: "queue", key: (d) => -(d.metrics?.queue_depth ?? ABSENT) },
  { name: "memory", kind: "wide", key: (d) => -(d.metrics?.rss_bytes ?? ABSENT) },
  { name: "heat", key: (d) => -(d.metrics?.temperature_celsius ?? ABSENT) },
  { name: "in", key: (d) => -(d.metrics?.bytes_in_per_s ?? ABSENT) },
  { name: "out", key: (d) => -(d.metrics?.bytes_out_per_s ?? ABSENT) },
  { name: "reconnects", key: (d) => -(d.metrics?.reconnects_total ?? ABSENT) },
];

/** The server's order is by stage, then by name. */
function sorted(devices: DeviceMessage[], column: Column | null, reversed: boolean): DeviceMessage[] {
  if (column === null) return devices;
  const compare = (a: DeviceMessage, b: DeviceMessage) => {
    const [left, right] = [column.key(a), column.key(b)];
    if (typeof left === "string") return left.localeCompare(String(right), "en", { numeric: true });
    return left - Number(right);
  };
  const ordered = [...devices].sort(compare);
  return reversed ? ordered.reverse() : ordered;
}

export function Devices({ view, history }: { view: ViewMessage; history: History }) {
  const [column, setColumn] = useState<Column | null>(null);
  const [reversed, setReversed] = useState(false);
  const sortBy = (chosen: Column) => {
    setReversed(chosen === column && !reversed);
    setColumn(chosen);
  };
  const order = (shown: Column) => (shown !== column ? "none" : reversed ? "descending" : "ascending");
  return (
    <section class="panel" aria-labelledby="devices">
      <h2 id="devices">
        Devices <span class="quiet">{view.devices.length}</span>
      </h2>
      {view.devices.length === 0 ? (
        <p class="absent">No device was heard in this cluster yet: <code>shardline stage</code></p>
      ) : (
        <table class={`devices ${view.devices.length > MANY ? "many" : ""}`} data-testid="devices">
          <thead>
            <tr>
              {COLUMNS.map((shown) => (
                <th key={shown.name} class={shown.kind ?? ""} scope="col" aria-sort={order(shown)}>
                  <button type="button" onClick={() => sortBy(shown)}>
                    {shown.name}
                    <span aria-hidden="true">{shown !== column ? "" : reversed ? " ▴" : " ▾"}</span>
                  </button>
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {sorted(view.devices, column, reversed).map((device) => (
              <Row key={device.device} device={device} history={history} />
            ))}
          </tbody>
        </table>
      )}
    </section>
  );
}

function Row({ device, history }: { device: DeviceMessage; history: History }) {
  const { metrics } = device;
  const old = !device.is_fresh && metrics ? "old" : "";
  return (
    <tr class={isGone(device) ? "gone" : ""} data-row={device.device}>
      <th scope="row" class="text">
        {device.device}
        {device.machine && (
          <small class="quiet">
            {device.machine}, {count(device.cores)} cores
          </small>
        )}
      </th>
      <td data-name="stage">{device.stage_index ?? "–"}</td>
      <td data-name="state" class="text">
        <ConditionBadge condition={device.condition} />
        {isGone(device) && (
          <small class="hot">
            {device.error ?? (device.metrics_age_s === null ? "" : `heard ${age(device.metrics_age_s)} ago`)}
          </small>
        )}
      </td>
      <td data-name="busy" class={`wide ${old}`}>
        <Sparkline column={history.utilisation[device.device] ?? []} />
        <b>{percent(metrics?.utilisation)}</b>
      </td>
      <td data-name="a batch" class={old}>{duration(metrics?.compute_ms_mean)}</td>
      <td data-name="queue" class={old}>{count(metrics?.queue_depth)}</td>
      <td data-name="memory" class={`wide ${old}`}>
        <Memory device={device} />
      </td>
      <td data-name="heat" class={old}>
        {metrics?.temperature_celsius == null && !metrics?.throttled?.length ? "–" : <Temperature device={device} />}
      </td>
      <td data-name="in" class={old}>{rate(metrics?.bytes_in_per_s)}</td>
      <td data-name="out" class={old}>{rate(metrics?.bytes_out_per_s)}</td>
      <td data-name="reconnects" class={metrics?.reconnects_total ? "" : "quiet"}>
        {count(metrics?.reconnects_total)}
      </td>
    </tr>
  );
}

/** The agent's memory, what else is taken on the machine, and the whole. */
function Memory({ device }: { device: DeviceMessage }) {
  const { metrics, memory_bytes: total } = device;
  if (!metrics) return <>–</>;
  if (!total) return <b>{bytes(metrics.rss_bytes)}</b>;
  const own = Math.min(1, metrics.rss_bytes / total);
  const taken = Math.max(own, Math.min(1, 1 - metrics.memory_available_bytes / total));
  const tight = metrics.memory_available_bytes < 0.1 * total;
  return (
    <>
      <span
        class={`meter ${tight ? "tight" : ""}`}
        title={`${bytes(metrics.memory_available_bytes)} available of ${bytes(total)}`}
      >
        <i class="taken" style={{ width: `${taken * 100}%` }} />
        <i class="own" style={{ width: `${own * 100}%` }} />
      </span>
      <b>{bytes(metrics.rss_bytes)}</b> <span class="quiet">of {bytes(total)}</span>
    </>
  );
}
