"""A model so small that a test can compute it by hand: three Gemm stages on 2x3 grey images."""

import itertools
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from contract.codec import Codec
from contract.plan import (
    ImageInput,
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
from shards.writer import ByteRange, write_manifest, write_shard_files

HEIGHT, WIDTH, CLASSES = 2, 3, 4
SIZES = (HEIGHT * WIDTH, 16, 12, CLASSES)
INPUT = TensorSpec(name="image", dtype="uint8", shape=("batch", 1, HEIGHT, WIDTH))


def tiny_weights(seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [
        generator.standard_normal(shape).astype(np.float32) * 0.5
        for shape in itertools.pairwise(SIZES)
    ]


def tiny_answer(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """What the whole model says; images (N, 1, 2, 3) uint8 -> (N, 4) float32."""
    x = images.astype(np.float32).reshape(len(images), -1) / np.float32(255)
    for weight in tiny_weights(seed):
        x = np.maximum(x @ weight, 0)
    return x


def _graph(index: int, spec_in: TensorSpec, spec_out: TensorSpec, where: ByteRange) -> bytes:
    nodes = []
    flat = "flat"
    if index == 0:
        nodes += [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["flat_bytes"], axis=1),
            helper.make_node("Mul", ["flat_bytes", "scale"], ["flat"]),
        ]
    else:
        flat = spec_in.name
    nodes += [
        helper.make_node("MatMul", [flat, "weight"], ["product"]),
        helper.make_node("Relu", ["product"], [spec_out.name]),
    ]
    weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=SIZES[index : index + 2])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", "weights.safetensors"),
        ("offset", str(where.offset)),
        ("length", str(where.length)),
    ):
        weight.external_data.add(key=key, value=value)
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [1 / 255])
    kinds = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}
    graph = helper.make_graph(
        nodes,
        f"stage-{index}",
        [helper.make_tensor_value_info(spec_in.name, kinds[spec_in.dtype], spec_in.shape)],
        [helper.make_tensor_value_info(spec_out.name, kinds[spec_out.dtype], spec_out.shape)],
        [weight, scale],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return model.SerializeToString()


def _ballast(count: int, seed: int) -> dict[str, np.ndarray]:
    if not count:
        return {}
    return {"ballast": np.frombuffer(np.random.default_rng(seed).bytes(count), np.uint8)}


def make_tiny_plan(
    folder: Path,
    seed: int = 0,
    name: str = "tiny",
    devices: tuple[str, ...] = ("pi-0", "pi-1", "pi-2"),
    batch_size: int = 8,
    cluster: str = "default",
    ballast_bytes: int = 0,
    codecs: tuple[Codec, ...] = ("float32", "float32"),
) -> Plan:
    """Write a three-stage plan to ``folder/name`` and return it, placed on ``devices``.

    ``codecs`` are those of the outputs of stages 0 and 1. ``ballast_bytes`` makes every weights
    file so much larger, with a tensor that no node uses.
    """
    specs = [
        INPUT,
        TensorSpec(name="hidden_0", dtype="float32", shape=("batch", SIZES[1])),
        TensorSpec(name="hidden_1", dtype="float32", shape=("batch", SIZES[2])),
        TensorSpec(name="logits", dtype="float32", shape=("batch", CLASSES)),
    ]
    stages, target = [], folder / name
    for index, weight in enumerate(tiny_weights(seed)):
        files = write_shard_files(
            target / f"stage-{index}",
            {"weight": weight} | _ballast(ballast_bytes, seed + index),
            lambda ranges, i=index: _graph(i, specs[i], specs[i + 1], ranges["weight"]),
        )
        stages.append(
            StageSpec(
                stage_index=index,
                first_segment=index,
                end_segment=index + 1,
                inputs=(specs[index],),
                outputs=(specs[index + 1],),
                codec=(*codecs, "float32")[index],
                graph=files.graph,
                weights=files.weights,
                weight_bytes=weight.nbytes,
                flops_per_image=2 * weight.size,
            )
        )
    digest = "0" * 63 + str(seed)
    plan_id = compute_plan_id(digest, stages)
    plan = Plan(
        plan_id=plan_id,
        name=name,
        model=ModelInfo(
            name="tests:tiny",
            weights=f"random seed {seed}",
            digest=digest,
            input=ImageInput(
                channels=1,
                height=HEIGHT,
                width=WIDTH,
                resize=HEIGHT,
                interpolation="bilinear",
                mean=(0.0,),
                std=(1.0,),
            ),
            labels=("zero", "one", "two", "three"),
        ),
        batch_size=batch_size,
        stages=tuple(stages),
        verified_with={"onnxruntime": "test"},
        verification=Verification(
            reference="numpy",
            images=4,
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
                plan_id=plan_id,
                stage_index=stage.stage_index,
                graph=stage.graph,
                weights=stage.weights,
                inputs=stage.inputs,
                outputs=stage.outputs,
                verified_with={"onnxruntime": "test"},
            ),
        )
    if devices:
        plan = place(plan, [[Replica(device=device)] for device in devices], cluster)
    (target / "plan.json").write_text(plan.to_json())
    return plan
