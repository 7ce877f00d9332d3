"""Small steps of a decoder's way to its canonical form, each by hand."""

import numpy as np
from onnx import helper

from contract.decoder import CacheSpec, Decoding
from planner.language.parameters import Parameter, fold_transposes, used_parameters
from planner.language.quantise import quantise_products
from planner.language.rewrite import divide
from planner.language.state import number_caches, state_inputs, state_outputs


def node(kind: str, inputs: list[str], output: str, **attributes: object):
    return helper.make_node(kind, inputs, [output], name=output, **attributes)


def test_a_product_with_a_reciprocal_is_a_division() -> None:
    nodes = [
        node("Sqrt", ["v"], "s"),
        node("Reciprocal", ["s"], "r"),
        node("Mul", ["x", "r"], "y"),
        node("Mul", ["w", "y"], "z"),
    ]
    divide(nodes)
    assert [(n.op_type, list(n.input)) for n in nodes[2:]] == [
        ("Div", ["x", "s"]),
        ("Mul", ["w", "y"]),
    ]
    other_way = [node("Reciprocal", ["s"], "r"), node("Mul", ["r", "x"], "y")]
    divide(other_way)
    assert (other_way[1].op_type, list(other_way[1].input)) == ("Div", ["x", "s"])


def test_a_reciprocal_that_others_read_stays() -> None:
    nodes = [
        node("Reciprocal", ["s"], "r"),
        node("Mul", ["x", "r"], "y"),
        node("Add", ["r", "y"], "z"),
    ]
    divide(nodes)
    assert [n.op_type for n in nodes] == ["Reciprocal", "Mul", "Add"]


def test_transposed_weights_are_stored_so_and_shared_ones_both_ways() -> None:
    parameters = {"a": Parameter("a", (2, 3)), "tied": Parameter("t", (5, 3))}
    nodes = [
        node("Gather", ["tied", "ids"], "x"),
        node("Transpose", ["a"], "at", perm=[1, 0]),
        node("MatMul", ["x", "at"], "y"),
        node("Transpose", ["tied"], "tt", perm=[1, 0]),
        node("MatMul", ["y", "tt"], "z"),
    ]
    fold_transposes(nodes, parameters)
    assert [(n.op_type, list(n.input)) for n in nodes] == [
        ("Gather", ["tied", "ids"]),
        ("MatMul", ["x", "a"]),
        ("MatMul", ["y", "tied/transposed"]),
    ]
    used = used_parameters(nodes, parameters)
    assert {name: each.spec.shape for name, each in used.items()} == {
        "a": (3, 2),
        "tied": (5, 3),
        "tied/transposed": (3, 5),
    }


def test_only_products_with_weights_that_are_worth_it_are_quantised() -> None:
    parameters = {"w": Parameter("w", (64, 48)), "small": Parameter("s", (8, 8))}
    nodes = [
        node("MatMul", ["x", "y"], "a"),  # of two activations
        node("MatMul", ["a", "small"], "b"),
        node("Gemm", ["b", "w", "bias"], "c"),
        node("Gemm", ["c", "w"], "d", transB=1),
        node("Gemm", ["d", "w"], "e", alpha=2.0),
    ]
    quantise_products(nodes, parameters, "int4")
    kinds = ["MatMul", "MatMul", "MatMulNBits", "Add", "MatMulNBits", "Gemm"]
    assert [n.op_type for n in nodes] == kinds
    assert list(nodes[3].input) == ["c/product", "bias"]
    sizes = {a.name: a.i for a in nodes[4].attribute}
    assert (sizes["K"], sizes["N"], sizes["bits"]) == (48, 64, 4)
    assert parameters[nodes[2].input[1]].spec == ("uint8", (48, 2, 16))
    assert parameters[nodes[2].input[2]].spec == ("float32", (96,))


def test_every_stage_counts_its_caches_from_zero() -> None:
    inputs = ["q", "k", "v", "past_key.7", "past_value.7", "seqlens_k", "total_sequence_length"]
    seventh = helper.make_node(
        "GroupQueryAttention",
        inputs,
        ["o", "present_key.7", "present_value.7"],
        domain="com.microsoft",
    )
    (numbered,) = number_caches([seventh])
    assert list(numbered.input[3:5]) == ["past_key.0", "past_value.0"]
    assert list(numbered.output) == ["o", "present_key.0", "present_value.0"]
    assert seventh.input[3] == "past_key.7"
    cache = CacheSpec(layers=1, kv_heads=2, head_size=16)
    decoding = Decoding(context_tokens=8, sequences=3, chunk_tokens=4)
    size = ("batch", 2, 8, 16)
    assert [(s.name, s.shape) for s in state_inputs(cache, decoding)] == [
        ("seqlens_k", ("batch",)),
        ("total_sequence_length", ()),
        ("past_key.0", size),
        ("past_value.0", size),
    ]
    assert [s.name for s in state_outputs(cache, decoding)] == ["present_key.0", "present_value.0"]
    (rows, *rest) = (3, 2, 8, 16)
    assert cache.bytes_of(decoding) == 2 * np.zeros((rows, *rest), np.float32).nbytes
