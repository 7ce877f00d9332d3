import { Charts } from "./charts";
import { Devices } from "./devices";
import { Events } from "./events";
import { Flow } from "./flow";
import { age } from "./format";
import { LedgerPanel } from "./ledger";
import type { Headline } from "./messages";
import type { State } from "./stream";
import { ThemeSwitch } from "./theme";
import { Tiles } from "./tiles";

const ICONS = { good: "✓", idle: "○", warning: "!", bad: "✕" };

/** `state`: undefined while the first message is to come, null when it has not come in time. */
export function App({ state }: { state: State | null | undefined }) {
  const headline = said(state);
  const stale = !state || state.lost_since_ms !== null || !state.view.is_connected;
  const plan = state?.view.plan;
  return (
    <>
      <header>
        <div class="bar">
          <h1>
            <img src="/static/icon.svg" alt="" width="28" height="28" />
            Shardline
          </h1>
          <p class="cluster">
            {state && (
              <>
                <span class="quiet">cluster</span> {state.view.cluster}
                {plan && (
                  <>
                    <span class="quiet"> · model</span> {plan.model}
                    <span class="quiet" title={`plan ${plan.plan_id}`}>
                      {" "}
                      · plan
                    </span>{" "}
                    <code>{plan.plan_id.slice(0, 8)}</code>
                  </>
                )}
              </>
            )}
          </p>
          <ThemeSwitch />
        </div>
      </header>
      <p class={`headline ${headline.level}`} role="status">
        <span class="icon" aria-hidden="true">
          {ICONS[headline.level]}
        </span>
        {headline.text}
      </p>
      {state && (
        <main class={stale ? "stale" : ""}>
          <Tiles view={state.view} />
          <Flow view={state.view} stale={stale} />
          <Charts key={state.view.plan?.unit ?? "images"} history={state.history} plan={state.view.plan} />
          <div class="words">
            <Advice advice={state.view.advice} />
            <LedgerPanel view={state.view} />
            <Events events={state.view.events} />
          </div>
          <Devices view={state.view} history={state.history} />
          <footer class="quiet">
            Read-only · one message a second · charts show the last 3 minutes
            {state.view.ignored > 0 && ` · ${state.view.ignored} messages ignored`}
          </footer>
        </main>
      )}
    </>
  );
}

/** The headline: the server's, unless the server itself is not heard. */
function said(state: State | null | undefined): Headline {
  if (state === undefined) return { level: "idle", text: "Waiting for the first message …" };
  if (state === null) return { level: "bad", text: "The dashboard does not answer; trying again" };
  if (state.lost_since_ms === null) return state.view.headline;
  const gone = age((Date.now() - state.lost_since_ms) / 1000);
  return {
    level: "bad",
    text: `No connection to the dashboard for ${gone}: shown is what it last sent; trying again`,
  };
}

/** Commands stand between backticks in sentences that terminals show, too. */
function withCode(sentence: string) {
  return sentence.split("`").map((part, index) => (index % 2 ? <code key={index}>{part}</code> : part));
}

function Advice({ advice }: { advice: string[] | null }) {
  if (advice === null) return null;
  return (
    <section class="panel advice" aria-labelledby="advice">
      <h2 id="advice">What bounds throughput now</h2>
      {advice.length ? (
        advice.map((sentence, index) => <p key={index}>{withCode(sentence)}</p>)
      ) : (
        <p class="quiet">Nothing to say yet.</p>
      )}
    </section>
  );
}
