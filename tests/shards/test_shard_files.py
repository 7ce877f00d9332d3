"""Shards at rest: written whole or not at all, and never loaded before they are verified."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import shards.session
from contract.errors import (
    PlanMismatchError,
    ShardAbsentError,
    ShardError,
    ShardHashMismatchError,
    ShardMissingError,
    WeightsError,
)
from contract.plan import Plan
from shards.manifest import load_manifest
from shards.reader import find_shard, read_shard
from shards.weights_file import read_layout, read_metadata
from shards.writer import atomic_folder, describe_file, write_manifest, write_shard_files
from tests.tiny import make_tiny_plan, tiny_weights


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_tiny_plan(tmp_path)


@pytest.fixture
def stage_1(tmp_path: Path, plan: Plan) -> Path:
    return tmp_path / "tiny" / "stage-1"


def test_what_is_written_is_read(plan: Plan, stage_1: Path) -> None:
    shard = read_shard(stage_1, plan, 1)
    assert shard.manifest.plan_id == plan.plan_id
    assert shard.manifest.inputs == plan.stages[1].inputs
    weights = safetensors.numpy.load_file(shard.weights_path)
    np.testing.assert_array_equal(weights["weight"], tiny_weights()[1])
    assert {p.name for p in stage_1.iterdir()} == {
        "graph.onnx",
        "weights.safetensors",
        "manifest.json",
    }


def test_the_graph_is_told_where_each_tensor_lies(tmp_path: Path) -> None:
    weights = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3).T,  # not contiguous
        "a": np.arange(4, dtype=np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    told: dict[str, Any] = {}

    def make_graph(ranges: Any) -> bytes:
        told.update(ranges)
        return b"graph"

    files = write_shard_files(tmp_path / "stage-0", weights, make_graph)
    data = (tmp_path / "stage-0" / "weights.safetensors").read_bytes()
    assert set(told) == set(weights)
    for name, where in told.items():
        assert data[where.offset : where.offset + where.length] == weights[name].tobytes()
    assert files.graph == describe_file(tmp_path / "stage-0" / "graph.onnx")
    assert files.weights.size_bytes == len(data)


def test_a_file_is_described_by_its_hash_and_size(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    described = describe_file(tmp_path / "f")
    assert described.sha256.startswith("ba7816bf8f01cfea414140de5dae2223")
    assert described.size_bytes == 3


@pytest.mark.parametrize("name", ["graph.onnx", "weights.safetensors", "manifest.json"])
def test_a_missing_file_is_named(plan: Plan, stage_1: Path, name: str) -> None:
    (stage_1 / name).unlink()
    with pytest.raises(ShardMissingError, match=name):
        read_shard(stage_1, plan, 1)


@pytest.mark.parametrize("name", ["graph.onnx", "weights.safetensors"])
def test_a_folder_in_the_place_of_a_file_is_named(plan: Plan, stage_1: Path, name: str) -> None:
    (stage_1 / name).unlink()
    (stage_1 / name).mkdir()
    with pytest.raises(ShardMissingError, match=name):
        read_shard(stage_1, plan, 1)


@pytest.mark.parametrize("name", ["graph.onnx", "weights.safetensors"])
@pytest.mark.parametrize("position", [0, 40, -1])
def test_one_flipped_bit_is_found(plan: Plan, stage_1: Path, name: str, position: int) -> None:
    path = stage_1 / name
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ShardHashMismatchError, match=f"{name}.*copy it again"):
        read_shard(stage_1, plan, 1)


@pytest.mark.parametrize("name", ["graph.onnx", "weights.safetensors"])
@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b""])
def test_another_length_is_found(plan: Plan, stage_1: Path, name: str, change: Any) -> None:
    path = stage_1 / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ShardHashMismatchError, match=name):
        read_shard(stage_1, plan, 1)


def test_files_are_judged_by_the_plan_and_not_by_the_manifest(plan: Plan, stage_1: Path) -> None:
    """A manifest that was changed along with the weights does not help."""
    path = stage_1 / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    manifest = load_manifest(stage_1)
    write_manifest(stage_1, manifest.model_copy(update={"weights": describe_file(path)}))
    with pytest.raises(ShardHashMismatchError):
        read_shard(stage_1, plan, 1)


def test_a_shard_of_another_plan_is_refused(plan: Plan, stage_1: Path, tmp_path: Path) -> None:
    other = make_tiny_plan(tmp_path, seed=1, name="other")
    with pytest.raises(PlanMismatchError) as caught:
        read_shard(tmp_path / "other" / "stage-1", plan, 1)
    assert (caught.value.expected, caught.value.actual) == (plan.plan_id, other.plan_id)


def test_swapped_stage_folders_are_refused(plan: Plan, stage_1: Path) -> None:
    with pytest.raises(ShardError, match="expected the shard of stage 2, got stage 1"):
        read_shard(stage_1, plan, 2)


def test_a_manifest_with_other_tensors_is_refused(plan: Plan, stage_1: Path) -> None:
    manifest = load_manifest(stage_1)
    write_manifest(stage_1, manifest.model_copy(update={"inputs": plan.stages[2].inputs}))
    with pytest.raises(ShardError, match="not those of the plan"):
        read_shard(stage_1, plan, 1)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "\x00\xff", "[" * 10_000, '{"format_version": 2}', " " * 2_000_000]
)
def test_a_broken_manifest_is_refused(plan: Plan, stage_1: Path, text: str) -> None:
    (stage_1 / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ShardError, match=r"manifest\.json"):
        read_shard(stage_1, plan, 1)


@pytest.mark.parametrize("damage", ["weights", "graph", "plan"])
def test_nothing_is_opened_before_the_hashes_fit(
    tmp_path: Path, plan: Plan, stage_1: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither onnxruntime nor safetensors sees a file that has not passed."""
    from shards.cache import ShardCache
    from stage.loader import ShardLoader

    def explode(*_arguments: object, **_more: object) -> None:
        raise AssertionError("a file was opened before it was verified")

    monkeypatch.setattr(shards.session.onnxruntime, "InferenceSession", explode)
    for name in ("load", "load_file"):
        monkeypatch.setattr(safetensors.numpy, name, explode)
    if damage == "plan":
        shutil.rmtree(stage_1)
        make_tiny_plan(tmp_path, seed=1, name="other")
        shutil.copytree(tmp_path / "other" / "stage-1", stage_1)
    else:
        file = stage_1 / ("weights.safetensors" if damage == "weights" else "graph.onnx")
        file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    loader = ShardLoader(tmp_path, ShardCache(tmp_path / "cache", 10**9), "onnxruntime", 1, True)
    with pytest.raises(ShardAbsentError if damage == "plan" else ShardError):
        loader.load(plan, plan.stages[1])


# Where a shard is looked for


def test_a_shard_is_found_in_the_stage_folder_the_plan_folder_and_above(
    plan: Plan, stage_1: Path, tmp_path: Path
) -> None:
    for start in (stage_1, stage_1.parent, tmp_path):
        assert find_shard(start, plan, 1).resolve() == stage_1.resolve()


def test_a_shard_is_found_among_those_of_other_plans(plan: Plan, tmp_path: Path) -> None:
    for seed, name in ((1, "another"), (2, "zebra")):
        make_tiny_plan(tmp_path, seed=seed, name=name)
    assert find_shard(tmp_path, plan, 1) == tmp_path / "tiny" / "stage-1"


def test_a_shard_is_found_beside_a_broken_one_of_another_plan(plan: Plan, tmp_path: Path) -> None:
    broken = tmp_path / "another" / "stage-1"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("half a mani")
    assert find_shard(tmp_path, plan, 1) == tmp_path / "tiny" / "stage-1"


def test_only_shards_of_other_plans_is_told_as_such(plan: Plan, tmp_path: Path) -> None:
    make_tiny_plan(tmp_path / "shelf", seed=1, name="other")
    with pytest.raises(PlanMismatchError, match="copy stage-1 of plan 'tiny'"):
        find_shard(tmp_path / "shelf", plan, 1)


def test_no_shard_at_all_is_told_with_the_place_where_it_belongs(
    plan: Plan, tmp_path: Path
) -> None:
    for place in (tmp_path / "empty", tmp_path / "tiny" / "stage-0"):
        place.mkdir(exist_ok=True)
        with pytest.raises((ShardMissingError, PlanMismatchError), match="stage-1"):
            find_shard(place, plan, 1)


# A folder appears whole or not at all


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "plan"
    with atomic_folder(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert [p.name for p in target.parent.iterdir()] == ["plan"]


def test_a_failure_leaves_what_was_there_before(tmp_path: Path) -> None:
    target = tmp_path / "plan"
    with atomic_folder(target) as partial:
        (partial / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(target) as partial:  # noqa: PT012
        (partial / "a").write_text("new")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["plan"]


def test_a_failure_of_a_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "plan") as partial:  # noqa: PT012
        (partial / "a").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_replaces_the_old_one_entirely(tmp_path: Path) -> None:
    target = tmp_path / "plan"
    for name in ("a", "b"):
        with atomic_folder(target) as partial:
            (partial / name).write_text(name)
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["plan"]
    assert target.stat().st_mode & 0o777 == 0o755


# The layout of a safetensors file


def _file(tmp_path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    path = tmp_path / "w.safetensors"
    size = len(header) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + header + data)
    return path


def test_the_layout_says_where_each_tensor_lies(tmp_path: Path) -> None:
    tensors = {"a": np.arange(3, dtype=np.float32), "b": np.zeros((2, 2), np.int8)}
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(tensors, path, {"who": "test"})
    layout, data = read_layout(path), path.read_bytes()
    assert set(layout) == {"a", "b"}
    for name, entry in layout.items():
        assert data[entry.offset : entry.offset + entry.length] == tensors[name].tobytes()
        assert entry.shape == tensors[name].shape
    assert (layout["a"].dtype, layout["b"].dtype) == ("F32", "I8")
    assert read_metadata(path) == {"who": "test"}


def _entry(**changes: object) -> bytes:
    return json.dumps(
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}
    ).encode()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xff",
        b"[" * 5000,
        b'{"a": 1}',
        b'{"a": []}',
        b'{"a": {}}',
        b'{"a": null}',
        _entry(data_offsets=[0, 9]),
        _entry(data_offsets=[-1, 8]),
        _entry(data_offsets=[8, 0]),
        _entry(data_offsets=[0]),
        _entry(data_offsets="08"),
        _entry(data_offsets=None),
        _entry(data_offsets=[float("nan"), 8]),
        _entry(shape=None),
        _entry(shape=["x"]),
        _entry(shape=[float("inf")]),
        _entry(shape=2),
    ],
    ids=lambda header: repr(header)[:40],
)
def test_a_corrupt_header_is_refused(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        read_layout(_file(tmp_path, header, b"\0" * 8))


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**32, 2**63, 2**64 - 1])
def test_a_header_length_that_lies_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(WeightsError):
        read_layout(_file(tmp_path, _entry(), b"\0" * 8, length))


@pytest.mark.parametrize(
    "content", [b"", b"\1", b"\0" * 7, b"\x80\x04\x95", b"PK\x03\x04" + b"\0" * 50]
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    for read in (read_layout, read_metadata):
        with pytest.raises(WeightsError):
            read(tmp_path / "w.safetensors")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere"):
        read_layout(tmp_path / "nowhere")


@pytest.mark.parametrize("metadata", [b"[]", b"1", b'"x"', b"null"])
def test_metadata_of_another_form_is_refused_or_empty(tmp_path: Path, metadata: bytes) -> None:
    path = _file(tmp_path, b'{"__metadata__": ' + metadata + b"}")
    with contextlib.suppress(WeightsError):
        assert read_metadata(path) == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), json_values, max_size=3))
def test_a_header_of_random_json_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, object]
) -> None:
    path = _file(tmp_path_factory.getbasetemp(), json.dumps(document).encode(), b"\0" * 16)
    for read in (read_layout, read_metadata):
        with contextlib.suppress(WeightsError):
            read(path)


@given(st.binary(max_size=100))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError):
        read_layout(path)
