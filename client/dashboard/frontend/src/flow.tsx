// The pipeline as it runs: client, stages with their devices, client; what crosses between them.

import type { CSSProperties } from "preact";

import { ConditionBadge, Temperature, isGone } from "./device";
import { age, bytes, count, duration, figure, percent, rate } from "./format";
import type { BrokerMessage, DeviceMessage, StageMessage, ViewMessage } from "./messages";

const DETAILED_REPLICAS = 4; // more of them in a stage are drawn small

/** A share as a custom property, from which the style sheet makes a width and a colour. */
function busy(share: number | null | undefined): CSSProperties {
  return { "--busy": String(Math.round(Math.min(1, Math.max(0, share ?? 0)) * 100)) } as CSSProperties;
}

/** A stage of many devices takes more of the row than the others, and less of the page's height. */
function breadth(stage: StageMessage): CSSProperties {
  return { "--breadth": String(Math.max(1, stage.devices.length / DETAILED_REPLICAS)) } as CSSProperties;
}

export function Flow({ view, stale }: { view: ViewMessage; stale: boolean }) {
  const { plan } = view;
  const devices = new Map(view.devices.map((device) => [device.device, device]));
  const spare = view.devices.filter((device) => device.stage_index === null);
  const first = plan?.stages[0];
  const last = plan?.stages[plan.stages.length - 1];
  return (
    <section class="panel" aria-labelledby="flow">
      <h2 id="flow">Pipeline</h2>
      {plan && first && last ? (
        <ol class="flow" data-testid="flow">
          <li class="step end">
            <Client view={view} />
          </li>
          {plan.stages.map((stage, index) => {
            const before = plan.stages[index - 1];
            return (
              <li class="step" key={stage.stage_index} style={breadth(stage)}>
                <Edge
                  bytesPerS={before ? before.bytes_out_per_s : first.bytes_in_per_s}
                  batchesPerS={stale ? 0 : stage.batches_per_s}
                  codec={before?.codec ?? null}
                  broken={stage.ready_devices === 0}
                />
                <Stage stage={stage} devices={devices} />
              </li>
            );
          })}
          <li class="step end">
            <Edge
              bytesPerS={last.bytes_out_per_s}
              batchesPerS={stale ? 0 : last.batches_per_s}
              codec={null}
              broken={false}
            />
            <Results view={view} />
          </li>
        </ol>
      ) : (
        <p class="absent">No plan is published: <code>shardline publish PLAN</code></p>
      )}
      {spare.length > 0 && (
        <div class="spares">
          <h3>{plan ? "Not in the plan" : "Devices"}</h3>
          <ul class="chips few">
            {spare.map((device) => (
              <li key={device.device}>
                <Chip device={device} detailed={false} />
              </li>
            ))}
          </ul>
        </div>
      )}
      <Broker broker={view.broker} />
    </section>
  );
}

function Client({ view }: { view: ViewMessage }) {
  const feeding = view.pipelines.filter((pipeline) => pipeline.is_fresh);
  const named = feeding.slice(0, 3).map((pipeline) => pipeline.client);
  return (
    <div class="card client">
      <h3>{feeding.length > 1 ? `${feeding.length} clients` : "Client"}</h3>
      {feeding.length ? (
        <p class="name" title={named.join(", ")}>
          {named.join(", ")}
          {feeding.length > 3 && " …"}
        </p>
      ) : (
        <p class="name quiet">feeds nothing</p>
      )}
      <p>
        <b>{count(feeding.reduce((sum, { metrics }) => sum + metrics.ledger.in_flight, 0))}</b> in flight
      </p>
    </div>
  );
}

function Results({ view }: { view: ViewMessage }) {
  const ofTexts = view.plan?.unit === "tokens";
  return (
    <div class="card client">
      <h3>Results</h3>
      <p>
        <b>{figure(ofTexts ? view.sample.tokens_per_s : view.sample.images_per_s)}</b>{" "}
        {ofTexts ? "tokens/s" : "images/s"}
      </p>
      <p>
        <b>{duration(ofTexts ? view.sample.first_token_ms : view.sample.latency_ms_p50)}</b>{" "}
        {ofTexts ? "first token" : "median"}
      </p>
    </div>
  );
}

interface EdgeProps {
  bytesPerS: number | null;
  batchesPerS: number | null;
  codec: string | null;
  broken: boolean;
}

function Edge({ bytesPerS, batchesPerS, codec, broken }: EdgeProps) {
  const pace = !batchesPerS || bytesPerS === null ? "still" : batchesPerS < 2 ? "slow" : batchesPerS < 20 ? "steady" : "fast";
  return (
    <div class={`edge ${broken ? "broken" : pace}`}>
      <span class="codec">{codec && codec !== "float32" ? codec : ""}</span>
      <span class="track" aria-hidden="true">
        <i />
        <i />
        <i />
      </span>
      <span class="rate">{rate(bytesPerS)}</span>
    </div>
  );
}

interface StageProps {
  stage: StageMessage;
  devices: Map<string, DeviceMessage>;
}

function Stage({ stage, devices }: StageProps) {
  const its = stage.devices.flatMap((name) => devices.get(name) ?? []);
  const empty = stage.ready_devices === 0;
  const kind = empty ? "empty" : stage.is_bottleneck ? "bottleneck" : "";
  return (
    <article class={`card stage ${kind}`} style={busy(stage.utilisation)} data-stage={stage.stage_index}>
      {(empty || stage.is_bottleneck) && <span class="tag">{empty ? "no device" : "bottleneck"}</span>}
      <header>
        <h3>Stage {stage.stage_index}</h3>
        <span class="busy">{stage.utilisation === null ? "" : `${percent(stage.utilisation)} busy`}</span>
      </header>
      <p class="facts">
        <span>
          <b>{duration(stage.compute_ms)}</b> a batch
        </span>{" "}
        <span>
          waits <b>{duration(stage.wait_ms)}</b>
        </span>
      </p>
      <ul class={`chips ${its.length <= DETAILED_REPLICAS ? "detailed" : "small"}`}>
        {its.map((device) => (
          <li key={device.device}>
            <Chip device={device} detailed={its.length <= DETAILED_REPLICAS} />
          </li>
        ))}
      </ul>
    </article>
  );
}

function Chip({ device, detailed }: { device: DeviceMessage; detailed: boolean }) {
  const { metrics } = device;
  const gone = isGone(device);
  const works = device.condition === "ready" || device.condition === "idle";
  const heard = device.metrics_age_s === null ? "" : `heard ${age(device.metrics_age_s)} ago`;
  return (
    <div
      class={`chip ${gone ? "gone" : device.condition}`}
      style={busy(works ? metrics?.utilisation : 0)}
      data-device={device.device}
      data-condition={device.condition}
      title={device.error ?? device.device}
    >
      <span class="name">
        <bdi>{device.device}</bdi>
      </span>
      {device.condition === "ready" ? (
        <b class="busy">{percent(metrics?.utilisation)}</b>
      ) : (
        <ConditionBadge condition={device.condition} />
      )}
      {detailed && (
        <span class="more">
          {gone || !metrics ? (
            (device.error ?? heard)
          ) : (
            <>
              {bytes(metrics.rss_bytes)}
              {metrics.temperature_celsius != null && " · "}
              <Temperature device={device} />
            </>
          )}
        </span>
      )}
    </div>
  );
}

function Broker({ broker }: { broker: BrokerMessage }) {
  const dropped = broker.messages_dropped;
  return (
    <p class="broker">
      <b>MQTT broker</b> <span class="quiet">every arrow goes in and out of it</span>
      <span>
        {rate(broker.bytes_received_per_s)} in · {rate(broker.bytes_sent_per_s)} out
      </span>
      <span>{count(broker.clients_connected)} connections</span>
      <span>up {age(broker.uptime_s)}</span>
      <span class={dropped ? "hot" : ""}>{count(dropped)} dropped</span>
    </p>
  );
}
