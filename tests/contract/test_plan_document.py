"""The plan: its JSON, its id, its consistency, and the topic map that follows from a placement."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from contract import topics
from contract.activation import encode
from contract.codec import CODECS, Codec, compress
from contract.errors import PlanError, ShardlineError
from contract.plan import (
    MAX_PLAN_BYTES,
    Plan,
    Replica,
    compute_plan_id,
    load_plan,
    parse_plan,
    place,
)
from contract.tensor_spec import TensorSpec
from tests.tiny import make_tiny_plan


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_tiny_plan(tmp_path_factory.mktemp("plan"))


def changed(plan: Plan, edit: Any, fix_id: bool = True) -> str:
    """The plan's JSON with an edit; with the id that fits the stages, unless told not to."""
    document = json.loads(plan.to_json())
    edit(document)
    if fix_id:
        try:
            stages = [
                type(plan.stages[0]).model_validate_json(json.dumps(s)) for s in document["stages"]
            ]
            document["plan_id"] = compute_plan_id(
                document["model"]["digest"], stages, plan.decoding, plan.batch_size
            )
        except ValidationError:
            pass
    return json.dumps(document)


def test_a_plan_survives_json(plan: Plan) -> None:
    assert parse_plan(plan.to_json(), "here") == plan
    assert parse_plan(plan.to_json().encode(), "here") == plan


def test_a_plan_is_loaded_by_its_file_and_by_its_folder(tmp_path: Path) -> None:
    plan = make_tiny_plan(tmp_path)
    assert load_plan(tmp_path / "tiny") == plan
    assert load_plan(tmp_path / "tiny" / "plan.json") == plan


@pytest.mark.parametrize("name", ["nowhere", "nowhere/plan.json"])
def test_a_plan_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(PlanError, match="nowhere") as caught:
        load_plan(tmp_path / name)
    assert "shardline plan" in str(caught.value)


def test_the_plan_id_is_frozen() -> None:
    """Devices of different age compute it for the same plan: another value breaks them all."""
    from contract.plan import ShardFile, StageSpec

    stage = StageSpec(
        stage_index=0,
        first_segment=0,
        end_segment=1,
        inputs=(TensorSpec(name="x", dtype="uint8", shape=("batch", 3)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 2)),),
        graph=ShardFile(sha256="a" * 64, size_bytes=1),
        weights=ShardFile(sha256="b" * 64, size_bytes=2),
        weight_bytes=2,
        flops_per_image=3,
    )
    assert compute_plan_id("c" * 64, [stage]) == "f0f262cfee535978"


def _set(path: str, value: object) -> Any:
    def edit(document: Any) -> None:
        *parents, last = path.split(".")
        for key in parents:
            document = document[int(key)] if key.isdigit() else document[key]
        document[int(last) if last.isdigit() else last] = value

    return edit


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.digest", "another model"),
        ("stages.0.graph.sha256", "1" * 64),
        ("stages.2.graph.size_bytes", 1),
        ("stages.1.weights.sha256", "2" * 64),
        ("stages.1.weights.size_bytes", 1),
        ("stages.0.inputs.0.name", "picture"),
        ("stages.0.inputs.0.dtype", "float32"),
        ("stages.0.inputs.0.shape.2", 5),
        ("stages.2.outputs.0.name", "scores"),
        ("stages.0.codec", "float16"),
    ],
)
def test_the_plan_id_changes_with_what_is_computed(plan: Plan, path: str, value: object) -> None:
    other = parse_plan(changed(plan, _set(path, value)), "here")
    assert other.plan_id != plan.plan_id
    with pytest.raises(PlanError, match="plan_id"):
        parse_plan(changed(plan, _set(path, value), fix_id=False), "here")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "another-name"),
        ("batch_size", 3),
        ("placement", []),
        ("topic_map", []),
        ("stages.0.predicted_ms_per_batch", 3.5),
        ("stages.0.flops_per_image", 7),
        ("verified_with", {"torch": "9"}),
        ("model.labels", []),
    ],
)
def test_the_plan_id_stays_with_what_is_only_told(plan: Plan, path: str, value: object) -> None:
    assert parse_plan(changed(plan, _set(path, value)), "here").plan_id == plan.plan_id


def test_the_plan_id_stays_when_the_stages_move(plan: Plan) -> None:
    moved = place(plan, [[Replica(device=name)] for name in ("a", "b", "c")], "elsewhere")
    assert moved.plan_id == plan.plan_id
    assert moved.stages == plan.stages


def _drop(path: str) -> Any:
    def edit(document: Any) -> None:
        *parents, last = path.split(".")
        for key in parents:
            document = document[int(key)] if key.isdigit() else document[key]
        del document[int(last) if last.isdigit() else last]

    return edit


def _swap_stages(document: Any) -> None:
    document["stages"].reverse()


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(_set("stages.1.first_segment", 2), id="a segment in no stage"),
        pytest.param(_set("stages.1.end_segment", 3), id="a segment in two stages"),
        pytest.param(_drop("stages.1"), id="a stage missing"),
        pytest.param(_swap_stages, id="stages out of order"),
        pytest.param(_set("stages", []), id="no stage"),
        pytest.param(_set("stages.1.stage_index", 0), id="a stage number twice"),
        pytest.param(_set("stages.1.inputs.0.shape.1", 17), id="a tensor of another shape"),
        pytest.param(_set("stages.1.inputs.0.name", "other"), id="a tensor of another name"),
        pytest.param(_set("stages.1.inputs.0.dtype", "float16"), id="a tensor of another dtype"),
        pytest.param(_set("stages.0.inputs", []), id="a stage without input"),
        pytest.param(_set("placement.1.replicas.0.device", "pi-0"), id="a device twice"),
        pytest.param(_drop("placement.2"), id="a stage without a device"),
        pytest.param(_set("placement.2.replicas", []), id="a stage with no replica"),
        pytest.param(_set("placement.1.stage_index", 2), id="a placement out of order"),
        pytest.param(_set("placement.1.replicas.0.speed", 0), id="a speed of zero"),
        pytest.param(_set("placement.1.replicas.0.speed", -1.0), id="a negative speed"),
        pytest.param(_set("format_version", 1), id="another format version"),
        pytest.param(_drop("verification"), id="a field missing"),
        pytest.param(_set("shiny", 1), id="a field unknown"),
        pytest.param(_set("batch_size", 0), id="an empty batch"),
        pytest.param(_set("batch_size", "8"), id="a number as text"),
        pytest.param(_set("stages.0.codec", "int9"), id="an unknown codec"),
        pytest.param(_set("stages.2.codec", "int8"), id="results in another codec"),
        pytest.param(_set("stages.0.graph.sha256", "x" * 64), id="a hash that is none"),
        pytest.param(_set("stages.0.inputs.0.dtype", "float33"), id="an unknown dtype"),
        pytest.param(_set("stages.0.inputs.0.shape.2", "width"), id="an unknown dimension"),
        pytest.param(_set("model.input.channels", 2), id="two channels"),
        pytest.param(_set("model.input.kind", "sound"), id="an unknown input"),
    ],
)
def test_an_inconsistent_plan_is_refused(plan: Plan, edit: Any) -> None:
    with pytest.raises(PlanError, match="shardline plan") as caught:
        parse_plan(changed(plan, edit), "the topic of plans")
    assert "the topic of plans" in str(caught.value)


def test_a_negative_dimension_is_refused(plan: Plan) -> None:
    """A device would allocate it."""

    def edit(document: Any) -> None:
        document["stages"][0]["inputs"][0]["shape"] = ["batch", -1, 2, 3]

    with pytest.raises(PlanError):
        parse_plan(changed(plan, edit), "here")


@pytest.mark.parametrize("device", ["", "+", "#", "a/b", "pipeline"])
def test_a_device_that_is_no_name_is_refused(plan: Plan, device: str) -> None:
    with pytest.raises(PlanError):
        parse_plan(changed(plan, _set("placement.0.replicas.0.device", device)), "here")


@pytest.mark.parametrize("plan_id", ["", "0" * 16, "g" * 16, "0" * 17, None, 7])
def test_a_plan_id_of_other_stages_is_refused(plan: Plan, plan_id: object) -> None:
    with pytest.raises(PlanError):
        parse_plan(changed(plan, _set("plan_id", plan_id), fix_id=False), "here")


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"plan",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"a":' * 10_000,
        b'{"plan_id": NaN}',
    ],
    ids=lambda payload: repr(payload[:12]),
)
def test_what_is_no_plan_is_refused(payload: bytes) -> None:
    with pytest.raises(PlanError, match="the topic of plans"):
        parse_plan(payload, "the topic of plans")


def test_every_truncation_of_a_plan_is_refused(plan: Plan) -> None:
    text = plan.to_json()
    for length in range(0, len(text), 7):
        with pytest.raises(PlanError):
            parse_plan(text[:length], "here")


def test_an_oversized_plan_is_refused_unread(plan: Plan) -> None:
    document = plan.to_json().encode()
    document += b" " * (MAX_PLAN_BYTES + 1 - len(document))
    with pytest.raises(PlanError, match="at most"):
        parse_plan(document, "here")
    assert parse_plan(document[:-1], "here") == plan


def test_a_plan_cannot_be_changed_in_place(plan: Plan) -> None:
    with pytest.raises(ValidationError):
        plan.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "devices",
    [
        pytest.param([], id="none"),
        pytest.param([["a"], ["b"]], id="too few"),
        pytest.param([["a"], ["b"], ["c"], ["d"]], id="too many"),
        pytest.param([["a"], ["b"], ["a"]], id="one twice"),
        pytest.param([["a"], ["b", "b"], ["c"]], id="one twice at a stage"),
        pytest.param([["a"], [], ["c"]], id="a stage without"),
    ],
)
def test_a_placement_that_does_not_fit_is_refused(plan: Plan, devices: list[list[str]]) -> None:
    with pytest.raises(PlanError, match="tiny"):
        place(plan, [[Replica(device=name) for name in names] for names in devices], "home")


def test_a_placement_on_a_wildcard_is_refused(plan: Plan) -> None:
    with pytest.raises((ShardlineError, ValidationError)):
        place(plan, [[Replica(device=name)] for name in ("a", "+", "c")], "home")


def test_the_topic_map_leads_every_output_to_the_next_input(plan: Plan) -> None:
    devices = [["a"], ["b1", "b2"], ["c"]]
    placed = place(plan, [[Replica(device=d) for d in names] for names in devices], "home")
    lines = {line.device: line for line in placed.topic_map}
    assert [(line.stage_index, line.device) for line in placed.topic_map] == [
        (0, "a"),
        (1, "b1"),
        (1, "b2"),
        (2, "c"),
    ]
    for device, line in lines.items():
        assert line.subscribes == topics.input_filter("home", device)
    assert lines["a"].publishes == tuple(
        topics.input_topic("home", to, plan.plan_id, 1, "a") for to in ("b1", "b2")
    )
    assert lines["b2"].publishes == (topics.input_topic("home", "c", plan.plan_id, 2, "b2"),)
    assert lines["c"].publishes == (topics.result_topic("home", "CLIENT", "c"),)


def test_a_device_knows_its_stage(plan: Plan) -> None:
    placed = place(
        plan,
        [
            [Replica(device="a")],
            [Replica(device="b1"), Replica(device="b2")],
            [Replica(device="c")],
        ],
        "home",
    )
    found = {name: placed.stage_of(name) for name in ("a", "b1", "b2", "c", "d")}
    indices = {name: None if spec is None else spec.stage_index for name, spec in found.items()}
    assert indices == {"a": 0, "b1": 1, "b2": 1, "c": 2, "d": None}


def test_the_largest_message_of_a_plan_holds_a_full_batch(plan: Plan) -> None:
    from tests.contract.test_activation_format import HEADER

    full = encode(HEADER, {"hidden_0": np.zeros((plan.batch_size, 16), np.float32)})
    assert len(full) <= plan.max_message_bytes()
    assert plan.max_message_bytes(1) < plan.max_message_bytes(2)
    assert plan.max_message_bytes() - 64 * 1024 == plan.batch_size * 16 * 4


@pytest.mark.parametrize("codec", CODECS)
def test_the_largest_message_of_a_plan_holds_any_codec(plan: Plan, codec: Codec) -> None:
    """One value an image takes five bytes as int8, one more than as float32."""
    narrow = TensorSpec(name="hidden_1", dtype="float32", shape=("batch", 1))

    def edit(document: Any) -> None:
        document["stages"] = document["stages"][:2]
        document["placement"] = document["topic_map"] = []
        document["stages"][0] |= {
            "inputs": [narrow.model_copy(update={"name": "x"}).model_dump()],
            "outputs": [narrow.model_dump()],
            "codec": codec,
        }
        document["stages"][1] |= {
            "inputs": [narrow.model_dump()],
            "outputs": [narrow.model_copy(update={"name": "y"}).model_dump()],
        }

    thin = parse_plan(changed(plan, edit), "here")
    assert [thin.codec_of_edge(edge) for edge in range(3)] == ["float32", codec, "float32"]
    sent = compress(codec, {"hidden_1": np.ones((1000, 1), np.float32)})
    tensor_bytes = sum(tensor.nbytes for tensor in sent.values())
    assert thin.max_message_bytes(1000) - 64 * 1024 == max(4000, tensor_bytes)
    assert thin.stages[0].output_bytes_per_image * 1000 == tensor_bytes
