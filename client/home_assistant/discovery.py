"""Discovery messages of Home Assistant: which of our topics to show as what. Pure.

The format of device discovery is https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery.
What is shown is read from the topics that are published anyway, by templates; nothing that a device
says of itself becomes a part of a template or of a topic.
"""

import json
from typing import Any

from client.watch.view import ClusterView, DeviceView
from contract import topics
from contract.metrics import THROTTLED_NOW
from contract.status import DeviceState
from contract.version import SHARDLINE_VERSION

EXPIRE_S = 15
"""Metrics come once a second: what is older is shown as unavailable."""
MAX_TEXT = 100
_IS_ONLINE = f"value_json.state == '{DeviceState.ONLINE}'"
Component = dict[str, Any]


def _sensor(name: str, template: str, **more: str | int) -> Component:
    return {
        "platform": "sensor",
        "name": name,
        "value_template": f"{{{{ {template} }}}}",
        "state_class": "measurement",
        "expire_after": EXPIRE_S,
        **more,
    }


def _bytes(name: str, template: str) -> Component:
    shown = {"unit_of_measurement": "B", "suggested_unit_of_measurement": "MB"}
    return _sensor(name, template, device_class="data_size", **shown)


def _device_sensors() -> dict[str, Component]:
    field = "value_json."
    return {
        "temperature": _sensor(
            "Temperature",
            f"{field}temperature_celsius",
            device_class="temperature",
            unit_of_measurement="°C",
        ),
        "memory": _bytes("Memory", f"{field}rss_bytes"),
        "memory_available": _bytes("Memory available", f"{field}memory_available_bytes"),
        "throughput": _sensor("Throughput", f"{field}images_per_s", unit_of_measurement="images/s"),
        "utilisation": _sensor(
            "Utilisation", f"({field}utilisation * 100) | round(1)", unit_of_measurement="%"
        ),
        "throttled": {
            "platform": "binary_sensor",
            "name": "Throttled",
            "device_class": "problem",
            "value_template": (
                "{% set flags = value_json.throttled | default(none) %}"
                "{{ 'None' if flags is none else 'ON' if flags | select('in', "
                f"{list(THROTTLED_NOW)}) | list else 'OFF' }}}}"
            ),
            "expire_after": EXPIRE_S,
        },
    }


def _pipeline_sensors() -> dict[str, Component]:
    field = "value_json."
    counted = {"unit_of_measurement": "batches", "state_class": "total_increasing"}
    return {
        "throughput": _sensor("Throughput", f"{field}images_per_s", unit_of_measurement="images/s"),
        "tokens": _sensor(
            "Tokens", f"{field}tokens_per_s | default(none)", unit_of_measurement="tokens/s"
        ),
        "latency": _sensor(
            "Latency (95th percentile)",
            f"{field}latency_ms_p95",
            device_class="duration",
            unit_of_measurement="ms",
        ),
        "delivered": _sensor("Delivered", f"{field}ledger.delivered", **counted),
        "lost": _sensor("Lost", f"{field}ledger.lost", unit_of_measurement="batches"),
        "dead": _sensor("Dead", f"{field}ledger.dead", unit_of_measurement="batches"),
    }


def _document(cluster: str, name: str, device: Component, parts: dict[str, Component]) -> bytes:
    identity = f"shardline.{cluster}.{name}"  # no name has a dot
    components = {
        key: {"unique_id": f"{identity}.{key}", **component} for key, component in parts.items()
    }
    document = {
        "device": {"identifiers": [identity], "manufacturer": "Shardline", **device},
        "origin": {"name": "shardline", "sw_version": SHARDLINE_VERSION},
        "components": components,
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def device_discovery(cluster: str, device: DeviceView) -> bytes:
    """What to show of a device: figures while it is online, and always whether it is."""
    status_topic = topics.status_topic(cluster, device.name)
    available = {
        "availability_topic": status_topic,
        "availability_template": f"{{{{ 'online' if {_IS_ONLINE} else 'offline' }}}}",
    }
    state = {"state_topic": topics.metrics_topic(cluster, device.name)}
    parts = {key: {**part, **state, **available} for key, part in _device_sensors().items()}
    parts["online"] = {
        "platform": "binary_sensor",
        "name": "Online",
        "device_class": "connectivity",
        "state_topic": status_topic,
        "value_template": f"{{{{ 'ON' if {_IS_ONLINE} else 'OFF' }}}}",
    }
    about: Component = {"name": device.name, "via_device": f"shardline.{cluster}.pipeline"}
    if device.status is not None and device.status.capabilities is not None:
        has = device.status.capabilities
        about["model"] = f"{has.machine}, {has.cores} cores, {has.engine}"[:MAX_TEXT]
        about["sw_version"] = has.shardline_version[:MAX_TEXT]
    return _document(cluster, device.name, about, parts)


def pipeline_discovery(cluster: str) -> bytes:
    """What to show of the pipeline: what the client says that spoke last, whatever its name."""
    state = {"state_topic": topics.pipeline_metrics_filter(cluster)}
    parts = {key: {**part, **state} for key, part in _pipeline_sensors().items()}
    return _document(cluster, "pipeline", {"name": f"Pipeline {cluster}"}, parts)


def discovery_messages(view: ClusterView) -> dict[str, bytes]:
    """All that Home Assistant shall find of a cluster, by topic."""
    cluster = view.cluster
    return {
        topics.pipeline_discovery_topic(cluster): pipeline_discovery(cluster),
        **{
            topics.discovery_topic(cluster, device.name): device_discovery(cluster, device)
            for device in view.devices
            if device.status is not None
        },
    }
