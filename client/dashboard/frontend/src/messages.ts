// What the server sends: client/dashboard/messages.py and contract/metrics.py, name by name.
// A test compares the two (tests/dashboard/test_front_end.py).

export type Condition =
  | "offline" | "stopped" | "silent" | "failed" | "unseen" | "loading" | "ready" | "idle";

export type Level = "good" | "idle" | "warning" | "bad";

export interface DeviceMetrics {
  format_version: number;
  device: string;
  time_unix_s: number;
  uptime_s: number;
  plan_id: string | null;
  stage_index: number | null;
  shard: string;
  batches_total: number;
  images_total: number;
  batches_per_s: number;
  images_per_s: number;
  compute_ms_mean: number | null;
  wait_ms_mean: number | null;
  publish_ms_mean: number | null;
  utilisation: number;
  queue_depth: number;
  bytes_in_total: number;
  bytes_out_total: number;
  bytes_in_per_s: number;
  bytes_out_per_s: number;
  rejected_total: number;
  nacks_total: number;
  duplicates_total: number;
  reconnects_total: number;
  cpu_percent: number;
  rss_bytes: number;
  memory_available_bytes: number;
  temperature_celsius: number | null;
  throttled: string[] | null;
  tokens_per_s: number | null;
  cache_bytes: number | null;
  cache_sequences: number | null;
  cache_evictions_total: number | null;
}

export interface StageMetrics {
  stage_index: number;
  compute_ms_p50: number | null;
  wait_ms_p50: number | null;
  utilisation: number;
  bubble_s: number;
}

export interface Ledger {
  submitted: number;
  delivered: number;
  in_flight: number;
  retried: number;
  duplicates_dropped: number;
  dead: number;
  lost: number;
}

export interface PipelineMetrics {
  format_version: number;
  client: string;
  time_unix_s: number;
  plan_id: string;
  window: number;
  batches_per_s: number;
  images_per_s: number;
  latency_ms_p50: number | null;
  latency_ms_p95: number | null;
  latency_ms_p99: number | null;
  stages: StageMetrics[];
  ledger: Ledger;
  tokens_per_s: number | null;
  first_token_ms: number | null;
  near_ties_total: number | null;
}

export interface Event {
  format_version: number;
  kind: string;
  sender: string;
  time_unix_s: number;
  detail: string;
  count: number;
}

export interface Headline {
  level: Level;
  text: string;
}

export interface DeviceMessage {
  device: string;
  condition: Condition;
  stage_index: number | null;
  is_fresh: boolean;
  metrics_age_s: number | null;
  metrics: DeviceMetrics | null;
  memory_bytes: number | null;
  machine: string | null;
  cores: number | null;
  error: string | null;
}

export interface StageMessage {
  stage_index: number;
  devices: string[];
  ready_devices: number;
  weight_bytes: number;
  codec: string;
  utilisation: number | null;
  compute_ms: number | null;
  wait_ms: number | null;
  queue_depth: number | null;
  batches_per_s: number | null;
  bytes_in_per_s: number | null;
  bytes_out_per_s: number | null;
  is_bottleneck: boolean;
}

export interface PlanMessage {
  plan_id: string;
  name: string;
  model: string;
  batch_size: number;
  unit: "images" | "tokens";
  predicted_images_per_s: number | null;
  stages: StageMessage[];
}

export interface PipelineMessage {
  client: string;
  is_fresh: boolean;
  metrics_age_s: number;
  metrics: PipelineMetrics;
}

export interface BrokerMessage {
  uptime_s: number | null;
  clients_connected: number | null;
  messages_dropped: number | null;
  bytes_received_per_s: number | null;
  bytes_sent_per_s: number | null;
}

export type Figure = number | null;

export interface Sample {
  time_unix_s: number;
  images_per_s: Figure;
  tokens_per_s: Figure;
  first_token_ms: Figure;
  latency_ms_p50: Figure;
  latency_ms_p95: Figure;
  latency_ms_p99: Figure;
  bytes_in_per_s: Figure;
  bytes_out_per_s: Figure;
}

export interface History {
  time_unix_s: number[];
  images_per_s: Figure[];
  tokens_per_s: Figure[];
  first_token_ms: Figure[];
  latency_ms_p50: Figure[];
  latency_ms_p95: Figure[];
  latency_ms_p99: Figure[];
  bytes_in_per_s: Figure[];
  bytes_out_per_s: Figure[];
  utilisation: Record<string, Figure[]>;
}

export interface ViewMessage {
  format_version: number;
  time_unix_s: number;
  cluster: string;
  is_connected: boolean;
  connection_age_s: number;
  headline: Headline;
  plan: PlanMessage | null;
  devices: DeviceMessage[];
  pipelines: PipelineMessage[];
  ledger: Ledger | null;
  events: Event[];
  broker: BrokerMessage;
  advice: string[] | null;
  ignored: number;
  sample: Sample;
  history: History | null;
}
