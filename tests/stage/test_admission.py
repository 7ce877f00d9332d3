"""What a device lets into its queue, before anything of it is read; what it measures and loads."""

from pathlib import Path

import numpy as np
import pytest

from broker.transport import AckToken, Delivery
from contract import topics
from contract.clock import MAX_CLOCK_BYTES
from contract.command import MAX_COMMAND_BYTES
from contract.errors import EngineError
from contract.plan import MAX_PLAN_BYTES
from contract.status import MAX_STATUS_BYTES
from contract.tensor_spec import TensorSpec
from shards.cache import ShardCache
from stage.admission import kind_of, unwelcome
from stage.loader import ShardLoader
from stage.measure import MAX_INPUT_BYTES, make_inputs
from stage.measurer import _harmless
from tests.tiny import make_tiny_plan

INPUT = topics.input_topic("home", "pi-1", "0" * 16, 1, "pi-0")
PLAN = topics.plan_topic("home")
STATUS = topics.status_topic("home", "pi-1")
COMMAND = topics.command_topic("home", "pi-1", "planner")
BLOB = topics.blob_topic("home", "pi-1", "planner")
CLOCK = topics.clock_topic("home", "pi-1", "client-a")


def judged(topic: str, size: int = 1, limit: int | None = 1000, **changes: object) -> str | None:
    fields = {"qos": 1, "retained": False, **changes}
    token = AckToken(lambda: None)
    delivery = Delivery(topic, bytes(size), fields["qos"], fields["retained"], token)  # type: ignore[arg-type]
    return unwelcome(delivery, kind_of(topic), limit)


@pytest.mark.parametrize(
    ("topic", "limit"),
    [
        (INPUT, 1000),
        (PLAN, MAX_PLAN_BYTES),
        (STATUS, MAX_STATUS_BYTES),
        (COMMAND, MAX_COMMAND_BYTES),
        (CLOCK, MAX_CLOCK_BYTES),
    ],
)
def test_each_kind_has_its_largest_size(topic: str, limit: int) -> None:
    assert judged(topic, limit) is None
    assert f"at most {limit:,}" in str(judged(topic, limit + 1))


def test_without_a_plan_nothing_says_how_large_an_input_may_be() -> None:
    """It is refused for that, with its header read: the client is told."""
    assert judged(INPUT, 10**6, limit=None) is None


def test_what_is_retained_and_may_not_be_is_left_outside() -> None:
    for topic in (INPUT, COMMAND, BLOB, CLOCK, "somebody/else"):
        assert "retained" in str(judged(topic, retained=True))
    assert judged(PLAN, retained=True) is judged(STATUS, retained=True) is None


def test_only_the_plan_pieces_of_shards_and_questions_for_the_time_come_at_qos_0() -> None:
    for topic in (INPUT, STATUS, COMMAND):
        assert "QoS 0" in str(judged(topic, qos=0))
    assert judged(BLOB, qos=0) is judged(PLAN, qos=0) is judged(CLOCK, qos=0) is None


def test_inputs_that_grow_with_the_batch_in_each_dimension_are_counted_so() -> None:
    """4,096 images in three dimensions are 68 thousand million numbers, not 4,096."""
    cube = TensorSpec(name="x", dtype="uint8", shape=("batch",) * 3)
    with pytest.raises(EngineError, match="68,719,476,736 bytes"):
        make_inputs((cube,), 4096)
    assert make_inputs((cube,), 4)["x"].shape == (4, 4, 4)
    for dtype in ("uint8", "bool", "int64"):
        made = make_inputs((TensorSpec(name="x", dtype=dtype, shape=("batch", 3)),), 2)["x"]  # type: ignore[arg-type]
        assert made.dtype == np.dtype(dtype)
    assert MAX_INPUT_BYTES < 4096**3


def test_a_process_that_runs_a_graph_of_others_has_no_password() -> None:
    environment = {"SHARDLINE_PASSWORD": "secret", "SHARDLINE_BROKER": "x", "PATH": "/bin"}
    assert _harmless(environment) == {"PATH": "/bin"}


def test_a_batch_for_which_there_is_no_memory_fails_the_shard_and_not_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_tiny_plan(tmp_path)

    def no_room(*_arguments: object) -> object:
        raise MemoryError

    monkeypatch.setattr(np, "zeros", no_room)
    cache = ShardCache(tmp_path / "cache", 10**9)
    loader = ShardLoader(tmp_path, cache, "onnxruntime", 1, True)
    with pytest.raises(EngineError, match="smaller batch"):
        loader.load(plan, plan.stages[1])
