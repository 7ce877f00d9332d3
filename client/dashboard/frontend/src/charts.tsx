import { Chart } from "./chart";
import { duration, figure, rate } from "./format";
import type { History, PlanMessage } from "./messages";

export function Charts({ history, plan }: { history: History; plan: PlanMessage | null }) {
  const times = history.time_unix_s;
  const ofTexts = plan?.unit === "tokens";
  return (
    <div class="charts">
      <Chart
        id="throughput"
        title="Throughput"
        times={times}
        format={figure}
        lines={[
          ofTexts
            ? { label: "tokens/s", color: "one", fill: true, column: history.tokens_per_s }
            : { label: "images/s", color: "one", fill: true, column: history.images_per_s },
        ]}
      />
      <Chart
        id="latency"
        title={ofTexts ? "Time to the first token" : "Latency of a batch"}
        times={times}
        format={duration}
        lines={
          ofTexts
            ? [{ label: "median", color: "one", column: history.first_token_ms }]
            : [
                { label: "p50", color: "one", column: history.latency_ms_p50 },
                { label: "p95", color: "two", dash: [7, 4], column: history.latency_ms_p95 },
                { label: "p99", color: "three", dash: [2, 3], column: history.latency_ms_p99 },
              ]
        }
      />
      <Chart
        id="links"
        title="Links of all devices"
        times={times}
        format={rate}
        lines={[
          { label: "in", color: "one", column: history.bytes_in_per_s },
          { label: "out", color: "two", dash: [7, 4], column: history.bytes_out_per_s },
        ]}
      />
    </div>
  );
}
