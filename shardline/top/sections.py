"""What stands above the tables: whose view it is, the way of a batch, the rate. Pure."""

from rich.text import Text

from client.watch.view import ClusterView, PipelineView
from shardline import figures
from shardline.top import amounts
from shardline.top.drawing import (
    ACCENT,
    ARROW,
    BAD,
    DIM,
    GOOD,
    TITLE,
    WARN,
    curve,
    cut,
    plain,
)

CURVE_WIDTH = 60
MAX_CLIENTS_SHOWN = 3


def header(view: ClusterView, broker: str, width: int) -> Text:
    """Whose view this is: the cluster, its broker, the plan."""
    line = Text.assemble(
        ("shardline top", TITLE), "  ", plain(view.cluster, ACCENT), plain(f" at {broker}")
    )
    if view.plan is None:
        line.append_text(plain("  no plan", WARN))
    else:
        plan = view.plan
        stages = f"{plan.num_stages} stage{'s' * (plan.num_stages > 1)}, batch {plan.batch_size}"
        line.append_text(
            Text.assemble("  ", plain(plan.name, TITLE), plain(f" {plan.plan_id[:8]}"))
        )
        line.append_text(plain(f"  {stages}", DIM))
    line.no_wrap = True
    line.truncate(width, overflow="ellipsis")
    return line


def banner(view: ClusterView, trouble: str | None) -> Text | None:
    """What the reader has to know before believing any figure; None where there is nothing."""
    if not view.is_connected:
        why = f" ({trouble})" if trouble else ""
        return plain(
            f"no connection for {view.connection_age_s:.0f} s: shown is what was last heard{why}",
            f"{BAD} reverse",
        )
    return plain(trouble, f"{WARN} reverse") if trouble else None


def shown_clients(view: ClusterView) -> tuple[PipelineView, ...]:
    """The clients that feed now, the quickest first; else the one that did so last."""
    fresh = [pipeline for pipeline in view.pipelines if pipeline.is_fresh]
    if fresh:
        return tuple(sorted(fresh, key=lambda p: -p.metrics.rate))
    last = min(view.pipelines, key=lambda p: p.metrics_age_s, default=None)
    return () if last is None else (last,)


def flow(view: ClusterView, width: int) -> Text:
    """The way of a batch: client, the devices of each stage, client."""
    fresh = [pipeline.client for pipeline in shown_clients(view) if pipeline.is_fresh]
    who = "+".join(fresh[:2]) + ("+…" if len(fresh) > 2 else "") if fresh else "(no client)"
    stages = []
    for index in range(view.plan.num_stages if view.plan else 0):
        names = view.stage_devices(index)
        more = f"+{len(names) - 2} more" if len(names) > 2 else ""
        stages.append(f"{index} {'+'.join(names[:2]) or '(nobody)'}{more}")
    way = f" {ARROW} ".join([who, *stages, who] if stages else [who])
    return Text.assemble(("pipeline", TITLE), "  ", plain(cut(way, width - 10)))


def throughput(view: ClusterView, width: int) -> list[Text]:
    """The rate, the latency and the window of each client that feeds."""
    clients = shown_clients(view)
    if not clients:
        return [plain("  nobody feeds the pipeline", DIM)]
    lines = []
    for client in clients[:MAX_CLIENTS_SHOWN]:
        lines += _throughput(view, client, width, is_alone=len(clients) == 1)
    if len(clients) > MAX_CLIENTS_SHOWN:
        rest = clients[MAX_CLIENTS_SHOWN:]
        rate = figures.rate(sum(client.metrics.rate for client in rest))
        unit = rest[0].metrics.unit
        lines.append(plain(f"  {len(rest)} more clients, {rate} {unit}/s together", DIM))
    return lines


def _throughput(
    view: ClusterView, client: PipelineView, width: int, *, is_alone: bool
) -> list[Text]:
    metrics = client.metrics
    latency = [
        f"{name} {figures.ms(value)}"
        for name, value in (
            ("p50", metrics.latency_ms_p50),
            ("p95", metrics.latency_ms_p95),
            ("p99", metrics.latency_ms_p99),
        )
    ]
    unit = f"{metrics.unit}/s"
    if metrics.unit == "tokens":
        latency = [f"to the first token {figures.ms(metrics.first_token_ms)}"]
    room = width - len(f"  {figures.rate(metrics.rate)} {unit}    ")
    room -= len("latency ") + len("  ".join(latency))
    points = curve([m.rate for m in client.history], min(CURVE_WIDTH, max(0, room)))
    first = Text.assemble(
        "  ",
        (figures.rate(metrics.rate), TITLE if client.is_fresh else DIM),
        f" {unit}  ",
        (points, GOOD if client.is_fresh else DIM),
        "  " if points else "",
        ("latency ", DIM),
        "  ".join(latency),
    )
    window = [
        f"{client.client}: window {metrics.window}",
        f"{metrics.ledger.in_flight} in flight",
    ]
    if not client.is_fresh:
        now = ", not feeding now" if view.is_connected else ""
        window.append(f"last heard {amounts.age(client.metrics_age_s)} ago{now}")
    elif is_alone and view.plan is not None and view.plan.prediction is not None:
        predicted = view.plan.prediction
        window.append(f"predicted {figures.rate(predicted.images_per_s)} {unit}")
        if predicted.window != metrics.window and metrics.unit == "images":  # else it is sequences
            window.append(f"with window {predicted.window}")
    return [first, plain(f"  {', '.join(window)}", DIM if client.is_fresh else WARN)]
