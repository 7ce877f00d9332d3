"""A graph may name the weights file beside it, and no other file of the machine."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import onnx
import pytest
from onnx import TensorProto, helper

from contract.errors import PlanMismatchError, ShardError, ShardMissingError
from contract.plan import ShardFile
from shards.external_data import check_external_data
from shards.reader import read_shard
from shards.writer import describe_file
from tests.tiny import make_tiny_plan

EVIL = "../../../../etc/passwd"
SIZE = 1000


def outside(location: str = EVIL, **places: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **places}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(*nodes: onnx.NodeProto, **parts: object) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", [], [], **parts)  # type: ignore[arg-type]
    return helper.make_model(graph)


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor)


def in_a_branch(tensor: TensorProto) -> onnx.ModelProto:
    branch = helper.make_graph([], "branch", [], [], [tensor])
    return model(helper.make_node("If", ["a"], ["b"], then_branch=branch, else_branch=branch))


def in_a_list(tensor: TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Anything", [], ["c"])
    node.attribute.add(name="t", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)
    return model(node)


def in_a_function(tensor: TensorProto) -> onnx.ModelProto:
    found = model()
    function = helper.make_function(
        "d", "F", [], ["c"], [constant(tensor)], [helper.make_opsetid("", 20)]
    )
    found.functions.append(function)
    return found


def in_sparse_values(tensor: TensorProto) -> onnx.ModelProto:
    found = model()
    sparse = found.graph.sparse_initializer.add()
    sparse.values.CopyFrom(tensor)
    return found


def in_training(tensor: TensorProto) -> onnx.ModelProto:
    found = model()
    found.training_info.add().algorithm.initializer.append(tensor)
    return found


PLACES: dict[str, Callable[[TensorProto], onnx.ModelProto]] = {
    "an initializer": lambda tensor: model(initializer=[tensor]),
    "a constant": lambda tensor: model(constant(tensor)),
    "a branch": in_a_branch,
    "a list of tensors": in_a_list,
    "a function": in_a_function,
    "sparse values": in_sparse_values,
    "training": in_training,
}


def written(folder: Path, content: bytes) -> Path:
    path = folder / "graph.onnx"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("place", PLACES)
def test_a_file_of_another_name_is_refused_wherever_it_is_named(tmp_path: Path, place: str) -> None:
    good = PLACES[place](outside("weights.safetensors", offset="992", length="8"))
    check_external_data(written(tmp_path, good.SerializeToString()), SIZE)
    evil = PLACES[place](outside())
    with pytest.raises(ShardError, match=r"graph\.onnx.*etc/passwd.*weights\.safetensors"):
        check_external_data(written(tmp_path, evil.SerializeToString()), SIZE)


@pytest.mark.parametrize(
    "places",
    [
        {"offset": "993", "length": "8"},
        {"offset": "1001"},
        {"length": "1001"},
        {"offset": "-1"},
        {"offset": "0x10"},
        {"offset": "9" * 30},
        {"offset": "٣"},
        {"length": ""},
    ],
    ids=repr,
)
def test_bytes_that_the_file_does_not_have_are_refused(
    tmp_path: Path, places: dict[str, str]
) -> None:
    """An engine maps the file: what lies behind its end would kill the process."""
    found = model(initializer=[outside("weights.safetensors", **places)])
    with pytest.raises(ShardError):
        check_external_data(written(tmp_path, found.SerializeToString()), SIZE)


@pytest.mark.parametrize(
    "location",
    ["", "weights.safetensors\0", "./weights.safetensors", "/weights.safetensors", "WEIGHTS"],
)
def test_a_name_that_is_nearly_right_is_refused(tmp_path: Path, location: str) -> None:
    found = model(initializer=[outside(location)])
    with pytest.raises(ShardError):
        check_external_data(written(tmp_path, found.SerializeToString()), SIZE)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    tensor = outside("weights.safetensors")
    tensor.external_data.add(key="location", value=EVIL)
    with pytest.raises(ShardError, match="twice"):
        check_external_data(
            written(tmp_path, model(initializer=[tensor]).SerializeToString()), SIZE
        )


def test_a_tag_that_other_readers_cut_off_is_refused(tmp_path: Path) -> None:
    """2^32 above the field of the graph: a reader of 32 bits would go in, and we would not."""
    graph = model(initializer=[outside()]).graph.SerializeToString()
    tag, varint = (7 << 3 | 2) + (1 << 32), bytearray()
    while tag > 0x7F:
        varint.append(tag & 0x7F | 0x80)
        tag >>= 7
    varint.append(tag)
    content = bytes(varint) + bytes([len(graph)]) + graph
    with pytest.raises(ShardError):
        check_external_data(written(tmp_path, content), SIZE)


@pytest.mark.parametrize(
    "content",
    [
        b"not onnx at all",
        b"\x3a\xff\xff\xff\xff\x0f location",
        b"\x3a" + b"\xff" * 20,
        b"\x0b",
        b"\x09\x00",
    ],
)
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ShardError, match=r"graph\.onnx"):
        check_external_data(written(tmp_path, content), SIZE)


def test_a_graph_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ShardMissingError):
        check_external_data(tmp_path / "graph.onnx", SIZE)
    check_external_data(written(tmp_path, b""), SIZE)  # names nothing; no engine loads it


def test_a_shard_whose_hashes_fit_and_whose_graph_leads_outside_is_refused(tmp_path: Path) -> None:
    """Who wrote the plan wrote the graph, too: the hashes say nothing about what it names."""
    plan = make_tiny_plan(tmp_path)
    folder = tmp_path / plan.name / "stage-1"
    read_shard(folder, plan, 1)
    graph = folder / "graph.onnx"
    graph.write_bytes(graph.read_bytes().replace(b"weights.safetensors", b"../../../etc/passwd"))
    stages = list(plan.stages)
    stages[1] = stages[1].model_copy(update={"graph": describe_file(graph)})
    evil = plan.model_copy(update={"stages": tuple(stages)})
    with pytest.raises(ShardError, match="etc/passwd") as caught:
        read_shard(folder, evil, 1)
    assert not isinstance(caught.value, PlanMismatchError)
    assert isinstance(stages[1].graph, ShardFile)


def test_damage_anywhere_ends_in_one_sentence(tmp_path: Path) -> None:
    plan = make_tiny_plan(tmp_path)
    whole = (tmp_path / plan.name / "stage-1" / "graph.onnx").read_bytes()
    dice = Random(5)
    for _ in range(2000):
        damaged = bytearray(whole)
        for _ in range(dice.randrange(1, 4)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        with suppress(ShardError):
            check_external_data(written(tmp_path, bytes(damaged)), 10**6)
