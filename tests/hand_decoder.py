"""A decoder small enough to compute by hand: blocks of grouped-query attention in 1 to 4 stages.

Learned positions in stage 0, rotary ones in every block, so that a wrong position shows. The
reference is numpy in float64, without a cache.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from contract.decoder import CacheSpec, Decoding, TokenInput
from contract.plan import (
    ModelInfo,
    Plan,
    Replica,
    StageSpec,
    Verification,
    compute_plan_id,
    place,
)
from contract.tensor_spec import TensorSpec
from shards.manifest import ShardManifest
from shards.writer import ByteRange, ShardFiles, write_manifest, write_shard_files

Weights = dict[str, np.ndarray]
END_TOKEN = 3


@dataclass(frozen=True)
class Shape:
    """Sizes of a hand-made decoder."""

    vocabulary: int = 37
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    blocks: int = 4
    inner: int = 48
    context: int = 48

    @property
    def head(self) -> int:
        return self.hidden // self.heads


TINY = Shape()


def hand_weights(shape: Shape = TINY, seed: int = 0) -> Weights:
    generator = np.random.default_rng(seed)

    def draw(*sizes: int, scale: float = 1.0) -> np.ndarray:
        return (generator.standard_normal(sizes) * scale / sizes[0] ** 0.5).astype(np.float32)

    kv = shape.kv_heads * shape.head
    weights = {
        "embedding": generator.standard_normal((shape.vocabulary, shape.hidden)).astype(np.float32),
        "positions": generator.standard_normal((shape.context, shape.hidden)).astype(np.float32),
    }
    for block in range(shape.blocks):
        weights |= {
            f"{block}.query": draw(shape.hidden, shape.hidden, scale=2),
            f"{block}.key": draw(shape.hidden, kv, scale=2),
            f"{block}.value": draw(shape.hidden, kv),
            f"{block}.out": draw(shape.hidden, shape.hidden),
            f"{block}.up": draw(shape.hidden, shape.inner),
            f"{block}.down": draw(shape.inner, shape.hidden),
        }
    return weights | {"head": draw(shape.hidden, shape.vocabulary, scale=3)}


def rotary(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    angles = np.outer(
        np.arange(shape.context), 100.0 ** (-np.arange(shape.head // 2) / (shape.head // 2))
    )
    return np.cos(angles), np.sin(angles)


def hand_logits(tokens: np.ndarray, shape: Shape = TINY, seed: int = 0) -> np.ndarray:
    """Logits of the whole model at every position: (rows, N) int64 -> (rows, N, vocabulary)."""
    weights = {name: w.astype(np.float64) for name, w in hand_weights(shape, seed).items()}
    rows, length = tokens.shape
    x = weights["embedding"][tokens] + weights["positions"][:length]
    mask = np.where(np.tril(np.ones((length, length), bool)), 0.0, -np.inf)
    cos, sin = (table[:length] for table in rotary(shape))

    def heads(y: np.ndarray, count: int) -> np.ndarray:
        return y.reshape(rows, length, count, shape.head).transpose(0, 2, 1, 3)

    def turned(y: np.ndarray) -> np.ndarray:
        a, b = np.split(y, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    for block in range(shape.blocks):
        y = _norm(x)
        query = turned(heads(y @ weights[f"{block}.query"], shape.heads))
        repeats = shape.heads // shape.kv_heads
        key = turned(heads(y @ weights[f"{block}.key"], shape.kv_heads)).repeat(repeats, axis=1)
        value = heads(y @ weights[f"{block}.value"], shape.kv_heads).repeat(repeats, axis=1)
        scores = query @ key.transpose(0, 1, 3, 2) / shape.head**0.5 + mask
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = shares / shares.sum(-1, keepdims=True) @ value
        x = x + mixed.transpose(0, 2, 1, 3).reshape(x.shape) @ weights[f"{block}.out"]
        x = x + np.maximum(_norm(x) @ weights[f"{block}.up"], 0) @ weights[f"{block}.down"]
    return _norm(x) @ weights["head"]


def _norm(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def hand_greedy(prompt: np.ndarray, count: int, shape: Shape = TINY, seed: int = 0) -> np.ndarray:
    """The ``count`` best tokens after each row of ``prompt``, without any end."""
    tokens = prompt
    for _ in range(count):
        best = hand_logits(tokens, shape, seed)[:, -1].argmax(-1)
        tokens = np.concatenate([tokens, best[:, None]], axis=1)
    return tokens[:, prompt.shape[1] :]


def prompts(rows: int, length: int, seed: int = 0, shape: Shape = TINY) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(END_TOKEN + 1, shape.vocabulary, (rows, length), dtype=np.int64)


class _Graph:
    """Nodes and initialisers of one stage."""

    def __init__(self, shape: Shape, weights: Weights) -> None:
        self.shape, self.weights = shape, weights
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {
            "ones": np.ones(shape.hidden, np.float32),
            "cos": rotary(shape)[0].astype(np.float32),
            "sin": rotary(shape)[1].astype(np.float32),
        }
        self.used: list[str] = []

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def times(self, x: str, weight: str, output: str) -> str:
        self.used.append(weight)
        return self.node("MatMul", [x, weight], output)

    def norm(self, x: str, output: str) -> str:
        return self.node("LayerNormalization", [x, "ones"], output, epsilon=1e-5)

    def embed(self) -> str:
        """Positions are recomputed from the cache inputs: total - tokens to total - 1."""
        self.used += ["embedding", "positions"]
        self.constants |= {"zero": np.int64(0), "one": np.int64(1)}
        self.constants["axis"] = np.array([0], np.int64)
        self.node("Shape", ["token_ids"], "tokens_1d", start=1, end=2)
        self.node("Squeeze", ["tokens_1d", "axis"], "tokens")
        self.node("Cast", ["total_sequence_length"], "total", to=TensorProto.INT64)
        self.node("Sub", ["total", "tokens"], "first")
        self.node("Range", ["first", "total", "one"], "where")
        self.node("Gather", ["positions", "where"], "learned")
        self.node("Gather", ["embedding", "token_ids"], "embedded")
        return self.node("Add", ["embedded", "learned"], "x")

    def block(self, x: str, block: int, layer: int, output: str) -> str:
        name = f"{block}."
        y = self.norm(x, name + "y")
        parts = [self.times(y, name + p, name + p + "_of") for p in ("query", "key", "value")]
        caches = [f"past_key.{layer}", f"past_value.{layer}"]
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [*parts, *caches, "seqlens_k", "total_sequence_length", "cos", "sin"],
                [name + "mixed", f"present_key.{layer}", f"present_value.{layer}"],
                domain="com.microsoft",
                num_heads=self.shape.heads,
                kv_num_heads=self.shape.kv_heads,
                do_rotary=1,
            )
        )
        self.times(name + "mixed", name + "out", name + "projected")
        self.node("Add", [x, name + "projected"], name + "attended")
        self.norm(name + "attended", name + "z")
        self.times(name + "z", name + "up", name + "raised")
        self.node("Relu", [name + "raised"], name + "bent")
        self.times(name + "bent", name + "down", name + "lowered")
        return self.node("Add", [name + "attended", name + "lowered"], output)

    def head(self, x: str) -> str:
        self.constants["last"] = np.int64(-1)
        self.node("Gather", [x, "last"], "at_last", axis=1)
        self.norm("at_last", "normed")
        return self.times("normed", "head", "logits")

    def serialise(
        self, ranges: dict[str, ByteRange], given: TensorSpec, gives: TensorSpec, layers: int
    ) -> bytes:
        shape = self.shape
        cache = ("batch", shape.kv_heads, shape.context, shape.head)
        kinds = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}

        def value(name: str, kind: int, sizes: tuple[int | str, ...]) -> Any:
            return helper.make_tensor_value_info(name, kind, sizes)

        inputs = [
            value(given.name, kinds[given.dtype], given.shape),
            value("seqlens_k", TensorProto.INT32, ("batch",)),
            value("total_sequence_length", TensorProto.INT32, ()),
        ]
        outputs = [value(gives.name, kinds[gives.dtype], gives.shape)]
        for layer in range(layers):
            for part in ("key", "value"):
                inputs.append(value(f"past_{part}.{layer}", TensorProto.FLOAT, cache))
                outputs.append(value(f"present_{part}.{layer}", TensorProto.FLOAT, cache))
        constants = [
            helper.make_tensor(
                name,
                helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype),
                np.asarray(array).shape,
                np.asarray(array).tobytes(),
                raw=True,
            )
            for name, array in self.constants.items()
        ]
        graph = helper.make_graph(
            self.nodes,
            "stage",
            inputs,
            outputs,
            constants + [_outside(name, self.weights[name], ranges[name]) for name in self.used],
        )
        domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=domains)
        model.ir_version = 10
        return bytes(model.SerializeToString())


def _outside(name: str, array: np.ndarray, where: ByteRange) -> Any:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", "weights.safetensors"),
        ("offset", str(where.offset)),
        ("length", str(where.length)),
    ):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _write_stage(
    folder: Path, shape: Shape, weights: Weights, blocks: range, given: TensorSpec, last: bool
) -> tuple[ShardFiles, TensorSpec]:
    graph = _Graph(shape, weights)
    x = graph.embed() if given.name == "token_ids" else given.name
    hidden = TensorSpec(
        name=f"hidden_{blocks.stop}", dtype="float32", shape=("batch", "tokens", shape.hidden)
    )
    for layer, block in enumerate(blocks):
        ends = block + 1 == blocks.stop and not last
        x = graph.block(x, block, layer, hidden.name if ends else f"x_{block}")
    gives = hidden
    if last:
        graph.head(x)
        gives = TensorSpec(name="logits", dtype="float32", shape=("batch", shape.vocabulary))
    files = write_shard_files(
        folder,
        {name: weights[name] for name in graph.used},
        lambda ranges: graph.serialise(dict(ranges), given, gives, len(blocks)),
    )
    return files, gives


def make_hand_plan(
    folder: Path,
    num_stages: int = 3,
    devices: tuple[str, ...] | None = None,
    cluster: str = "default",
    name: str = "hand",
    shape: Shape = TINY,
    seed: int = 0,
    rows: int = 3,
    sequences: int = 4,
    chunk_tokens: int = 5,
    end_tokens: tuple[int, ...] = (END_TOKEN,),
    codec: str = "float32",
) -> Plan:
    """Write a plan of a hand-made decoder to ``folder/name`` and return it, placed on devices.

    ``devices``: ``pi-0``, ``pi-1``, … by default. ``rows`` is the plan's batch size. ``codec`` is
    that of the hidden states.
    """
    weights = hand_weights(shape, seed)
    borders = [round(shape.blocks * i / num_stages) for i in range(num_stages + 1)]
    given = TensorSpec(name="token_ids", dtype="int64", shape=("batch", "tokens"))
    target, stages = folder / name, []
    for index in range(num_stages):
        blocks = range(borders[index], borders[index + 1])
        last = index + 1 == num_stages
        files, gives = _write_stage(target / f"stage-{index}", shape, weights, blocks, given, last)
        stages.append(
            StageSpec(
                stage_index=index,
                first_segment=blocks.start,
                end_segment=blocks.stop,
                inputs=(given,),
                outputs=(gives,),
                codec="float32" if last else codec,  # type: ignore[arg-type]
                graph=files.graph,
                weights=files.weights,
                weight_bytes=files.weights.size_bytes,
                flops_per_image=1,
                cache=CacheSpec(layers=len(blocks), kv_heads=shape.kv_heads, head_size=shape.head),
            )
        )
        given = gives
    digest = f"{seed:064x}"
    decoding = Decoding(
        context_tokens=shape.context, sequences=sequences, chunk_tokens=chunk_tokens
    )
    plan = Plan(
        plan_id=compute_plan_id(digest, stages, decoding, rows),
        name=name,
        model=ModelInfo(
            name="tests:hand",
            weights=f"random seed {seed}",
            digest=digest,
            input=TokenInput(
                architecture="hand", vocabulary_size=shape.vocabulary, end_tokens=end_tokens
            ),
        ),
        batch_size=rows,
        stages=tuple(stages),
        decoding=decoding,
        verified_with={"onnxruntime": "test"},
        verification=Verification(
            reference="numpy",
            images=1,
            tolerance=1e-4,
            max_abs_difference=0.0,
            max_abs_reference=1.0,
            spread_between_images=1.0,
            top1_agreement=1.0,
            conclusive=True,
        ),
    )
    for stage in stages:
        write_manifest(
            target / stage.folder,
            ShardManifest(
                plan_id=plan.plan_id,
                stage_index=stage.stage_index,
                graph=stage.graph,
                weights=stage.weights,
                inputs=stage.inputs,
                outputs=stage.outputs,
                verified_with={"onnxruntime": "test"},
            ),
        )
    names = devices or tuple(f"pi-{index}" for index in range(num_stages))
    plan = place(plan, [[Replica(device=device)] for device in names], cluster)
    (target / "plan.json").write_text(plan.to_json())
    return plan
