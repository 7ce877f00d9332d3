"""Numbers and texts of other processes have bounds, and none of them can do more than be read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contract.activation import MAX_STAGES, decode
from contract.blob import parse_blob
from contract.command import Examination, GeneratedWeight, Measured, parse_command
from contract.errors import PlanError, WireFormatError
from contract.plan import MAX_BATCH_SIZE, Plan, parse_plan
from contract.printable import MAX_DETAIL, printable
from contract.status import DeviceState, DeviceStatus, parse_status
from contract.tensor_spec import TensorSpec
from tests.contract.test_activation_malformed import document, sealed, with_metadata, with_tensor
from tests.contract.test_blob_and_command import SHA, measure
from tests.tiny import make_tiny_plan

EVIL = "\x1b[2J\x1b]0;owned\x07 \r\n\x7f\x9b31m \u2028\u202e end"
"""Clears a screen, sets a title, begins a line, colours, turns the direction of reading."""


def test_what_is_not_printable_is_written_out() -> None:
    assert printable("all is well – ½ «ok» 🙂") == "all is well – ½ «ok» 🙂"
    assert printable("a\nb\x1b[31m") == r"a\nb\x1b[31m"
    assert printable("a\nb\tc", keep="\n") == "a\nb\\tc"
    assert printable(EVIL + "\ud800").isprintable()


@given(st.text(alphabet=st.characters()))
def test_made_printable_twice_is_the_same(text: str) -> None:
    once = printable(text)
    assert once.isprintable()
    assert printable(once) == once
    once.encode()  # lone surrogates are gone, too


def status(**changes: object) -> bytes:
    good = json.loads(
        DeviceStatus(device="pi-0", state=DeviceState.ONLINE, boot=1).model_dump_json()
    )
    return json.dumps({**good, **changes}).encode()


def test_what_a_device_says_of_itself_is_one_printable_line() -> None:
    capabilities = dict.fromkeys(("machine", "engine", "engine_version"), EVIL)
    capabilities |= {"cores": 1, "memory_bytes": 1, "shardline_version": EVIL}  # type: ignore[dict-item]
    found = parse_status(status(error=EVIL * 500, plan_id=EVIL, capabilities=capabilities))
    assert found.error is not None
    assert found.capabilities is not None
    assert len(found.error) == MAX_DETAIL
    texts = [found.error, found.plan_id, *found.capabilities.model_dump().values()]
    assert all(text.isprintable() for text in texts if isinstance(text, str))
    assert parse_status(found.model_dump_json().encode()) == found  # as whoever sent it made it


def test_an_error_of_a_measurement_is_one_printable_line() -> None:
    payload = {"kind": "measured", "request_id": "0" * 16, "error": EVIL}
    found = parse_command(json.dumps(payload).encode())
    assert isinstance(found, Measured)
    assert str(found.error).isprintable()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_a_clock_that_tells_no_time_is_refused(number: float) -> None:
    good: dict[str, Any] = dict.fromkeys(Examination.model_fields)
    good |= dict.fromkeys(("memory_controller", "cache_writable"), True)
    good |= dict.fromkeys(("memory_total_bytes", "memory_available_bytes"), 1)
    good |= dict.fromkeys(("shardline_version", "machine", "kernel", "engine"), "x")
    good |= dict.fromkeys(("engine_version", "cache_dir", "kernel_command_line"), "x")
    good |= {"kind": "examination", "format_version": 1, "request_id": "0" * 16, "cores": 4}
    good |= {"unix_time_s": 1.0}
    assert parse_command(json.dumps(good).encode())
    for field, wrong in (("unix_time_s", number), ("cores", 0), ("memory_total_bytes", -1)):
        with pytest.raises(WireFormatError, match=field):
            parse_command(json.dumps({**good, field: wrong}).encode())


@pytest.mark.parametrize("offset", [2**63, 2**64, 10**30])
def test_an_offset_that_no_file_has_is_refused(offset: int) -> None:
    """It went to the file system as it was, and ended the planner."""
    request = {"kind": "request", "format_version": 1, "sha256": SHA, "offset": 0, "length": 1}
    assert parse_blob(json.dumps({**request, "offset": 2**63 - 1}).encode())
    with pytest.raises(WireFormatError, match="offset"):
        parse_blob(json.dumps({**request, "offset": offset}).encode())


@pytest.mark.parametrize("done", [10**400, -1, 2**63])
def test_a_progress_of_more_than_any_file_is_refused(done: int) -> None:
    progress = {"kind": "fetch_progress", "request_id": "0" * 16, "total_bytes": 1}
    assert parse_command(json.dumps({**progress, "done_bytes": 1}).encode())
    with pytest.raises(WireFormatError, match="done_bytes"):
        parse_command(json.dumps({**progress, "done_bytes": done}).encode())


def test_weights_that_would_be_written_many_times_over_are_refused() -> None:
    """2,000 weights of 10 GB each fit into a command, and into one place of a file of 10 GB."""
    weight = GeneratedWeight(offset=0, length=100, dtype="float32", scale=0.1)
    measure(weights=(weight,))
    with pytest.raises(ValidationError, match="overlap"):
        measure(weights=(weight, weight))


def test_a_route_of_more_devices_than_a_plan_can_have_is_refused() -> None:
    many = ",".join(["pi"] * (MAX_STAGES + 1))
    with pytest.raises(WireFormatError, match="at most 256"):
        decode(with_metadata(route=many))
    decode(with_metadata(route=many.removesuffix(",pi"), stage="0", trace=""))


def test_offsets_that_only_python_takes_for_numbers_are_refused() -> None:
    """true is 1 in Python and nowhere else: two readers would read two messages."""
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [False, True]}
    with pytest.raises(WireFormatError, match="offsets"):
        decode(with_tensor(entry, b"x"))
    changed = document()
    changed["x"] = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    changed["y"] = {"dtype": "U8", "shape": [1], "data_offsets": [True, 2]}
    with pytest.raises(WireFormatError, match="offsets"):
        decode(sealed(json.dumps(changed, separators=(",", ":")).encode(), b"xy"))


def test_a_tensor_has_as_many_dimensions_as_can_travel() -> None:
    TensorSpec(name="x", dtype="uint8", shape=("batch",) * 8)
    with pytest.raises(ValidationError):
        TensorSpec(name="x", dtype="uint8", shape=("batch",) * 9)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_tiny_plan(tmp_path_factory.mktemp("plan"))


def changed(plan: Plan, change: Callable[[dict[str, Any]], None]) -> str:
    """The plan with a change in its document that its id does not rest on."""
    edited = json.loads(plan.to_json())
    change(edited)
    return json.dumps(edited)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", MAX_BATCH_SIZE + 1),
        ("batch_size", 10**9),
        ("batch_size", 10**400),
        ("stages", []),
    ],
)
def test_a_plan_out_of_bounds_is_refused(plan: Plan, field: str, value: object) -> None:
    parse_plan(changed(plan, lambda d: None), "test")
    with pytest.raises(PlanError, match=field):
        parse_plan(changed(plan, lambda d: d.__setitem__(field, value)), "test")


@pytest.mark.parametrize("speed", ["NaN", "Infinity", "-1", "0", "1e999"])
def test_a_speed_that_is_no_speed_is_refused(plan: Plan, speed: str) -> None:
    """The client divides by it: a plan of infinite speeds ended it."""
    text = plan.to_json().replace('"speed": 1.0', f'"speed": {speed}', 1)
    assert text != plan.to_json()
    with pytest.raises(PlanError, match="speed"):
        parse_plan(text, "test")


def test_a_plan_whose_messages_nobody_can_carry_is_refused(plan: Plan) -> None:
    """Each device would make room for a full batch before the first one comes."""
    larger = plan.model_dump()
    wide = {"name": "hidden_0", "dtype": "float32", "shape": ("batch", 2**40)}
    larger["stages"][0]["outputs"] = larger["stages"][1]["inputs"] = (wide,)
    with pytest.raises(ValidationError, match="MQTT carries at most"):
        Plan.model_validate(larger)


@pytest.mark.parametrize("side", ["height", "width", "resize"])
def test_pictures_have_a_largest_size(plan: Plan, side: str) -> None:
    def grow(edited: dict[str, Any]) -> None:
        edited["model"]["input"][side] = 10**6

    with pytest.raises(PlanError, match=side):
        parse_plan(changed(plan, grow), "test")


def test_what_is_wrong_with_a_document_is_told_in_one_short_printable_line(plan: Plan) -> None:
    text = plan.to_json().replace('"name": "tiny"', '"' + "\\u001b" * 5000 + '": "tiny"', 1)
    with pytest.raises(PlanError) as caught:
        parse_plan(text, "test")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_file_of_a_plan_is_named_by_numbers_and_hashes_only(plan: Plan, tmp_path: Path) -> None:
    """Nothing in a plan is a path: its name and tensors may be anything."""
    text = plan.to_json().replace('"name": "tiny"', '"name": "../../../tmp/evil"', 1)
    found = parse_plan(text, "test")
    assert [stage.folder for stage in found.stages] == ["stage-0", "stage-1", "stage-2"]
