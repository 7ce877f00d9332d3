// Where every batch is.

import { count, duration, figure } from "./format";
import type { Ledger, PipelineMessage, ViewMessage } from "./messages";

const PARTS = ["delivered", "in_flight", "dead", "lost"] as const;
const NAMES: Record<keyof Ledger, string> = {
  submitted: "submitted",
  delivered: "delivered",
  in_flight: "in flight",
  dead: "given up, with a reason",
  lost: "lost",
  retried: "sent again",
  duplicates_dropped: "duplicates dropped",
};

export function LedgerPanel({ view }: { view: ViewMessage }) {
  const { ledger, pipelines } = view;
  return (
    <section class="panel" aria-labelledby="ledger">
      <h2 id="ledger">Ledger</h2>
      {ledger === null ? (
        <p class="verdict">No client was heard yet: <code>shardline infer SOURCE</code></p>
      ) : (
        <p class={`verdict ${ledger.lost ? "bad" : "good"}`} data-testid="verdict">
          {ledger.lost
            ? `✕ ${count(ledger.lost)} ${ledger.lost === 1 ? "batch is" : "batches are"} lost: this must be 0`
            : "✓ Nothing lost: every batch is accounted for"}
        </p>
      )}
      <div class="parts" aria-hidden="true">
        {PARTS.map((part) => (
          <i key={part} class={part} style={{ flexGrow: ledger?.[part] ?? 0 }} />
        ))}
      </div>
      <dl class="ledger">
        {(Object.keys(NAMES) as (keyof Ledger)[]).map((name) => (
          <div key={name} class={name}>
            <dt>{NAMES[name]}</dt>
            <dd>{count(ledger?.[name])}</dd>
          </div>
        ))}
      </dl>
      {pipelines.length > 1 && <Clients pipelines={pipelines} ofTexts={view.plan?.unit === "tokens"} />}
    </section>
  );
}

function Clients({ pipelines, ofTexts }: { pipelines: PipelineMessage[]; ofTexts: boolean }) {
  return (
    <table class="clients">
      <thead>
        <tr>
          <th scope="col">client</th>
          <th scope="col">{ofTexts ? "tokens/s" : "images/s"}</th>
          <th scope="col">{ofTexts ? "first token" : "median"}</th>
          <th scope="col">in flight</th>
        </tr>
      </thead>
      <tbody>
        {pipelines.map(({ client, is_fresh, metrics }) => (
          <tr key={client} class={is_fresh ? "" : "old"}>
            <th scope="row">
              {client} {!is_fresh && <small class="quiet">not feeding</small>}
            </th>
            <td>{is_fresh ? figure(ofTexts ? metrics.tokens_per_s : metrics.images_per_s) : "–"}</td>
            <td>{is_fresh ? duration(ofTexts ? metrics.first_token_ms : metrics.latency_ms_p50) : "–"}</td>
            <td>{count(metrics.ledger.in_flight)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
