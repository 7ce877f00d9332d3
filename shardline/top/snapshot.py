"""One moment of a cluster: as plain text for people, as a document for scripts."""

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from client.watch.bound import find_bound
from client.watch.observer import Observer
from client.watch.view import ClusterView, DeviceView, PipelineView
from shardline.top import counts, sections
from shardline.top.devices import ORDERS, rows, table
from shardline.top.drawing import in_ascii, plain
from shardline.top.screen import bound_text
from shardline.top.stages import stages

FORMAT_VERSION = 1
EVENTS_SHOWN = 10
ONE_SECOND_S = 1.2
"""Whoever publishes once a second has done so after it."""
AT_MOST_S = 3.0
PIPE_WIDTH = 140
_POLL_S = 0.05


def first_second(observer: Observer, sleep: Callable[[float], None] = time.sleep) -> ClusterView:
    """A view that holds the metrics of a second: of every device that is online, if they come.

    Raises:
        BrokerError: the broker has refused us something.
    """
    started = time.monotonic()
    while True:
        view, waited_s = observer.view(), time.monotonic() - started
        silent = [d.name for d in view.devices if d.is_online and not d.history]
        if waited_s >= AT_MOST_S or (waited_s >= ONE_SECOND_S and not silent):
            return view
        sleep(_POLL_S)


def snapshot_text(view: ClusterView, broker: str, width: int) -> str:
    """All stages and devices, the last events, and what bounds the throughput: no colours."""
    found = sorted(rows(view), key=ORDERS["stage"])
    banner = sections.banner(view, None)
    num_stages = view.plan.num_stages if view.plan is not None else 0
    parts = [
        [sections.header(view, broker, width), *([banner] if banner is not None else [])],
        [sections.flow(view, width), *sections.throughput(view, width)],
        stages(view, num_stages, width),
        table(view, found, width) if found else [plain("devices  none were heard of")],
        [*counts.ledger(view, width), *counts.broker(view, width)],
        counts.events(view, EVENTS_SHOWN, width),
        bound_text(find_bound(view), width),
    ]
    blocks = ["\n".join(line.plain.rstrip() for line in part) for part in parts if part]
    return "\n\n".join(blocks) + "\n"


def write_text(text: str, file: TextIO | None = None) -> None:
    """Print it, in letters that the reader's terminal knows."""
    file = file or sys.stdout
    file.write(text if is_utf(file) else in_ascii(text))


def is_utf(file: TextIO) -> bool:
    """Whether ``file`` takes any letter."""
    return (file.encoding or "").lower().replace("-", "").startswith("utf")


def snapshot_document(view: ClusterView) -> dict[str, Any]:
    """The same for a script; docs/watch.md describes it."""
    bound = find_bound(view)
    return {
        "format_version": FORMAT_VERSION,
        "cluster": view.cluster,
        "is_connected": view.is_connected,
        "connection_age_s": round(view.connection_age_s, 1),
        "plan": None if view.plan is None else _plan(view),
        "pipelines": [_pipeline(pipeline) for pipeline in view.pipelines],
        "devices": [_device(device) for device in view.devices],
        "broker": {name: getattr(view.broker, name) for name in view.broker.__dataclass_fields__},
        "events": [event.model_dump(mode="json") for event in view.events],
        "bound": {
            "kind": str(bound.kind),
            "what": bound.what,
            "helps": list(bound.helps),
            "stage_index": bound.stage_index,
            "devices": list(bound.devices),
        },
        "ignored": view.ignored,
    }


def _plan(view: ClusterView) -> dict[str, Any]:
    plan = view.plan
    assert plan is not None
    predicted = plan.prediction
    return {
        "plan_id": plan.plan_id,
        "name": plan.name,
        "batch_size": plan.batch_size,
        "stages": [list(view.stage_devices(index)) for index in range(plan.num_stages)],
        "predicted_images_per_s": None if predicted is None else predicted.images_per_s,
        "predicted_window": None if predicted is None else predicted.window,
    }


def _pipeline(pipeline: PipelineView) -> dict[str, Any]:
    return {
        "client": pipeline.client,
        "is_fresh": pipeline.is_fresh,
        "metrics_age_s": round(pipeline.metrics_age_s, 1),
        "metrics": pipeline.metrics.model_dump(mode="json"),
    }


def _device(device: DeviceView) -> dict[str, Any]:
    age_s = device.metrics_age_s
    return {
        "device": device.name,
        "is_online": device.is_online,
        "is_fresh": device.is_fresh,
        "metrics_age_s": None if age_s is None else round(age_s, 1),
        "status": None if device.status is None else device.status.model_dump(mode="json"),
        "metrics": None if device.metrics is None else device.metrics.model_dump(mode="json"),
    }
