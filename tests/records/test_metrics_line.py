"""The line a second of `shardline metrics`: who feeds, how fast, how busy the devices are."""

from client.watch.state import ClusterState
from client.watch.view import STALE_AFTER_S
from contract import topics
from contract.frozen import FrozenModel
from contract.metrics import DeviceMetrics, PipelineMetrics
from contract.status import DeviceState, DeviceStatus
from shardline.metrics_line import SHOWN, line_of
from tests.records.told import as_json, delivered, device_metrics, pipeline_metrics, status

CLUSTER = "home"


class Clock:
    now = 100.0


def line(*messages: FrozenModel, later_s: float = 0.0, connected: bool = True) -> str:
    clock = Clock()
    state = ClusterState(CLUSTER, lambda: clock.now)
    state.set_connected(connected)
    for message in messages:
        match message:
            case DeviceStatus():
                topic = topics.status_topic(CLUSTER, message.device)
            case DeviceMetrics():
                topic = topics.metrics_topic(CLUSTER, message.device)
            case PipelineMetrics():
                topic = topics.pipeline_metrics_topic(CLUSTER, message.client)
            case _:
                raise TypeError(type(message))
        assert state.take(delivered(topic, as_json(message)))
    clock.now += later_s
    return line_of(state.view(), "14:02:07").removeprefix("14:02:07  ")


def test_every_client_that_feeds_and_every_device() -> None:
    told = line(pipeline_metrics("a"), pipeline_metrics("b"), device_metrics("pi-0"))
    assert told == (
        "a 100 images/s  p50 30.0 ms  p95 50.0 ms  5 in flight  0 lost  |  "
        "b 100 images/s  p50 30.0 ms  p95 50.0 ms  5 in flight  0 lost  |  pi-0 stage 0 40 %"
    )


def test_before_the_first_result_there_is_no_latency() -> None:
    none = dict.fromkeys(("latency_ms_p50", "latency_ms_p95", "latency_ms_p99"))
    assert "p50 —  p95 —" in line(pipeline_metrics(**none))


def test_a_device_that_is_away_or_silent_is_called_so() -> None:
    told = line(
        status("pi-0", DeviceState.OFFLINE),
        device_metrics("pi-0"),
        status("pi-1"),
        device_metrics("pi-2", stage_index=None),
    )
    assert told == "nobody feeds the pipeline  |  pi-0 offline  pi-1 silent  pi-2 40 %"
    assert line(device_metrics("pi-0"), later_s=STALE_AFTER_S + 1).endswith("pi-0 silent")
    assert line(pipeline_metrics(), later_s=STALE_AFTER_S + 1).startswith("nobody feeds")


def test_fifty_devices_are_a_line_all_the_same() -> None:
    told = line(*(device_metrics(f"pi-{index}") for index in range(50)))
    assert told.count("stage 0 40 %") == SHOWN
    assert told.endswith(f"and {50 - SHOWN} more")


def test_without_a_connection_nothing_old_is_shown() -> None:
    told = line(device_metrics("pi-0"), connected=False, later_s=12.0)
    assert told == "no connection to the broker for 12 s"


def test_a_client_of_texts_is_told_by_its_tokens() -> None:
    told = line(pipeline_metrics("a", tokens_per_s=57.3, first_token_ms=182.0))
    assert told == "a 57.3 tokens/s  first token 182 ms  5 in flight  0 lost  |  no device is seen"
