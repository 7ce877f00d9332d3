import type { ComponentChildren } from "preact";

import { count, duration, figure } from "./format";
import type { ViewMessage } from "./messages";

interface TileProps {
  name: string;
  value: string;
  kind?: string;
  children: ComponentChildren;
}

function Tile({ name, value, kind = "", children }: TileProps) {
  return (
    <div class={`tile ${kind}`}>
      <dt>{name}</dt>
      <dd class="value">{value}</dd>
      <dd class="note">{children}</dd>
    </div>
  );
}

export function Tiles({ view }: { view: ViewMessage }) {
  const { sample, ledger, plan } = view;
  const feeding = view.pipelines.filter((pipeline) => pipeline.is_fresh);
  const window = feeding.reduce((sum, pipeline) => sum + pipeline.metrics.window, 0);
  const placed = view.devices.filter((device) => device.stage_index !== null);
  const ready = placed.filter((device) => device.condition === "ready").length;
  const idle = view.devices.filter((device) => device.condition === "idle").length;
  const planned = plan?.predicted_images_per_s;
  const inFlight = feeding.reduce((sum, pipeline) => sum + pipeline.metrics.ledger.in_flight, 0);
  const lost = ledger?.lost ?? 0;
  const ofTexts = plan?.unit === "tokens";
  return (
    <dl class="tiles" data-testid="tiles">
      <Tile
        name={ofTexts ? "tokens a second" : "images a second"}
        value={figure(ofTexts ? sample.tokens_per_s : sample.images_per_s)}
      >
        {planned != null ? `planned ${figure(planned)}` : clients(feeding.length)}
      </Tile>
      {ofTexts ? (
        <Tile name="first token, median" value={duration(sample.first_token_ms)}>
          of a text {duration(sample.latency_ms_p50)}
        </Tile>
      ) : (
        <Tile name="latency, median" value={duration(sample.latency_ms_p50)}>
          p95 {duration(sample.latency_ms_p95)} · p99 {duration(sample.latency_ms_p99)}
        </Tile>
      )}
      <Tile name="in flight" value={count(inFlight)}>
        {!window
          ? "nobody feeds"
          : ofTexts
            ? `batches, room for ${count(window)} texts`
            : `batches, window ${count(window)}`}
      </Tile>
      <Tile name="delivered" value={count(ledger?.delivered)}>
        batches of {count(ledger?.submitted)}
      </Tile>
      <Tile name="lost" value={count(ledger ? lost : null)} kind={ledger ? (lost ? "bad" : "good") : ""}>
        {!ledger ? "no client was heard" : lost ? "✕ must be 0" : "✓ nothing lost"}
      </Tile>
      <Tile
        name="devices ready"
        value={placed.length ? `${ready} of ${placed.length}` : count(view.devices.length)}
        kind={ready < placed.length ? "bad" : ""}
      >
        {placed.length ? `${plan?.stages.length ?? 0} stages, ${idle} idle` : "no plan yet"}
      </Tile>
    </dl>
  );
}

function clients(feeding: number): string {
  return feeding === 1 ? "by 1 client" : `by ${feeding} clients`;
}
