"""ResNet50 on four made-up Pis, as a plan that holds everything, to test and show the report.

Shapes, weights and FLOPs are the model's own; the times follow from them at an assumed rate, by the
planner's cost model. What was «measured» is made up. Run as a module, it writes ``plan.json``:

    python -m tests.resnet50_example FOLDER
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from contract.plan import (
    ImageInput,
    ModelInfo,
    Plan,
    Replica,
    ShardFile,
    StageSpec,
    Verification,
    compute_plan_id,
    place,
)
from contract.prediction import (
    Alternative,
    DeviceMeasurement,
    DevicePrediction,
    EdgeMeasurement,
    EdgePrediction,
    Measurement,
    Prediction,
    SegmentCosts,
    Strategy,
    Verdict,
)
from contract.tensor_spec import TensorSpec
from planner import cost_model
from planner.problem import (
    MB,
    BrokerCosts,
    ClientCosts,
    DeviceCosts,
    Link,
    Problem,
    RelayCosts,
    StageChoice,
)

BATCH = 4
FLOPS_PER_MS = 16e6
"""What one assumed Pi computes in a millisecond; the front of the model is slower, see below."""

Layer = tuple[str, tuple[int, ...], int, int]
"""Cut at its end, its shape, its weights, its FLOPs for one image."""


def layers() -> list[Layer]:
    """ResNet50's segments between legal cuts, at 224x224."""
    found: list[Layer] = [
        ("relu", (64, 112, 112), 64 * 3 * 49 + 64, 2 * 64 * 3 * 49 * 112 * 112),
        ("max_pool2d", (64, 56, 56), 0, 9 * 64 * 56 * 56),
    ]
    channels, side, relu = 64, 56, 0
    for planes, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            before, shrink = side, stride if block == 0 else 1
            side //= shrink
            weights = channels * planes + 9 * planes * planes + 4 * planes * planes + 6 * planes
            flops = 2 * channels * planes * before**2 + 26 * planes * planes * side**2
            if block == 0:
                weights += 4 * channels * planes
                flops += 8 * channels * planes * side**2
            channels, relu = 4 * planes, relu + 3
            found.append((f"relu_{relu}", (channels, side, side), weights, flops))
    found += [("mean", (2048,), 0, 2048 * 49), ("", (1000,), 2_049_000, 2 * 2_049_000)]
    return found


def times(slowness: float = 1.0) -> tuple[float, ...]:
    """Ms for one batch of each segment: large tensors at the front cost more than their FLOPs."""
    return tuple(
        slowness * BATCH * (flops / FLOPS_PER_MS + 4e-6 * _elements(shape) + 0.01)
        for _, shape, _, flops in layers()
    )


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def problem(int8_edge: int | None = None) -> Problem:
    """Four Pis, one of them older, on 100 Mbit/s to 1 Gbit/s; int8 on one edge."""
    edge_bytes = [3 * 224 * 224 * BATCH, *(4 * BATCH * _elements(s) for _, s, _, _ in layers())]
    if int8_edge is not None:
        edge_bytes[int8_edge] //= 4
    relay = RelayCosts(0.4, 5.5e-6)
    fast = Link(112e6, 112e6, 0.25)
    devices = [
        DeviceCosts(f"pi-{index}", times(), relay, fast, memory_bytes=limit)
        for index, limit in enumerate((1600 * MB, 1600 * MB, 700 * MB))
    ]
    old = Link(11.5e6, 11.5e6, 0.4)
    devices.append(DeviceCosts("pi-attic", times(1.35), relay, old, memory_bytes=300 * MB))
    return Problem(
        devices=tuple(devices),
        weight_bytes=tuple(4 * weights for _, _, weights, _ in layers()),
        activation_bytes=tuple(3 * size for size in edge_bytes[1:]),
        edge_bytes=tuple(edge_bytes),
        batch_size=BATCH,
        broker=BrokerCosts(112e6, RelayCosts(0.05, 1e-6)),
        client=ClientCosts(RelayCosts(0.1, 1.4e-6), fast),
    )


def predict(
    of: Problem, stages: Sequence[StageChoice], bound: float | None, codecs: dict[int, str]
) -> Prediction:
    """The cost model's figures; ``bound`` is in images/s, None for the rate itself."""
    per_s = cost_model.batches_per_s(of, stages)
    edges = cost_model.cut_edges(stages)
    devices = []
    for index, stage in enumerate(stages):
        rate = cost_model.stage_rate(of, stage)
        for name in stage.devices:
            costs = cost_model.stage_costs(of, of.device(name), stage.first, stage.end)
            assert costs is not None
            share = 1e3 / costs.busy_ms / rate
            devices.append(
                DevicePrediction(
                    device=name,
                    stage_index=index,
                    share=min(1.0, share),
                    compute_ms=costs.compute_ms,
                    relay_ms=costs.relay_ms,
                    transfer_ms=max(costs.down_ms, costs.up_ms),
                    utilisation=per_s * share * costs.busy_ms / 1e3,
                    memory_bytes=costs.memory_bytes,
                    memory_limit_bytes=of.device(name).memory_bytes,
                    prepack=costs.prepack,
                )
            )
    ends = [None, *(stage.devices[0] for stage in stages), None]
    alone = cost_model.latency_ms(of, stages)
    window = 2 * len(devices) + 2
    return Prediction(
        images_per_s=per_s * BATCH,
        latency_ms=alone,
        loaded_latency_ms=max(alone, window / per_s * 1e3),
        window=window,
        bottleneck=cost_model.bottleneck(of, stages),
        bound_images_per_s=per_s * BATCH if bound is None else bound,
        broker_bytes_per_image=2 * sum(of.edge_bytes[edge] for edge in edges) / BATCH,
        devices=tuple(devices),
        edges=tuple(
            EdgePrediction(
                edge=index,
                codec=codecs.get(index, "float32"),
                bytes_per_batch=of.edge_bytes[edge],
                transfer_ms=cost_model.transfer_ms(of, edge, ends[index], ends[index + 1]),
                broker_ms=of.broker.edge_ms(of.edge_bytes[edge]),
            )
            for index, edge in enumerate(edges)
        ),
        based_on="ResNet50's shapes and FLOPs, at the rates of four made-up Raspberry Pis; "
        "what is called measured is made up, too",
    )


CUTS = (10, 15)
DEVICES = (("pi-0", "pi-1"), ("pi-2",), ("pi-attic",))
BOUND_IMAGES_PER_S = 6.8820
"""The best of all ways to use the four in up to four stages, found by trying all of them."""


def resnet50_plan() -> Plan:
    """The mixed plan: three stages, the second on two devices, int8 where it sends most."""
    count = len(layers())
    costs = problem(int8_edge=CUTS[0])
    stages = [
        StageChoice(first, end, devices)
        for (first, end), devices in zip(
            itertools.pairwise((0, *CUTS, count)), DEVICES, strict=True
        )
    ]
    mixed = predict(costs, stages, BOUND_IMAGES_PER_S, {1: "int8"})
    plan = place(
        unplaced(stages), [[Replica(device=d) for d in names] for names in DEVICES], "default"
    )
    return Plan.model_validate(
        {
            **dict(plan),
            "segments": segments(),
            "prediction": mixed,
            "verdict": _verdict(mixed),
            "measurement": _measurement(mixed),
        }
    )


def unplaced(choices: Sequence[StageChoice]) -> Plan:
    image = TensorSpec(name="image", dtype="uint8", shape=("batch", 3, 224, 224))
    tensors = [image] + [
        TensorSpec(name=name or "logits", dtype="float32", shape=("batch", *shape))
        for name, shape, _, _ in layers()
    ]
    specs = tuple(
        StageSpec(
            stage_index=index,
            first_segment=choice.first,
            end_segment=choice.end,
            inputs=(tensors[choice.first],),
            outputs=(tensors[choice.end],),
            codec="int8" if index == 0 and len(choices) > 1 else "float32",
            graph=ShardFile(sha256=f"{index:x}" * 64, size_bytes=40_000),
            weights=ShardFile(sha256=f"{index + 5:x}" * 64, size_bytes=1_000_000),
            weight_bytes=4 * sum(w for _, _, w, _ in layers()[choice.first : choice.end]),
            flops_per_image=sum(f for _, _, _, f in layers()[choice.first : choice.end]),
        )
        for index, choice in enumerate(choices)
    )
    return Plan(
        plan_id=compute_plan_id("5" * 64, specs),
        name="resnet50",
        model=ModelInfo(
            name="torchvision:resnet50",
            weights="torchvision IMAGENET1K_V2",
            digest="5" * 64,
            input=ImageInput(
                channels=3,
                height=224,
                width=224,
                resize=232,
                interpolation="bilinear",
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
            ),
        ),
        batch_size=BATCH,
        stages=specs,
        verified_with={"numpy": "2.4.6", "onnx": "1.23.2", "onnxruntime": "1.23.2"},
        verification=Verification(
            reference="torch 2.13.0+cpu",
            images=4,
            tolerance=1e-4,
            max_abs_difference=2.1e-6,
            max_abs_reference=8.4,
            spread_between_images=3.2,
            top1_agreement=1.0,
            conclusive=True,
        ),
    )


def segments() -> tuple[SegmentCosts, ...]:
    return tuple(
        SegmentCosts(
            cut=name, ms=ms, weight_bytes=4 * weights, output_bytes=4 * BATCH * _elements(shape)
        )
        for (name, shape, weights, _), ms in zip(layers(), times(), strict=True)
    )


def _verdict(mixed: Prediction) -> Verdict:
    count, costs = len(layers()), problem()
    single = predict(costs, [StageChoice(0, count, ("pi-0",))], None, {})
    replicas = predict(costs, [StageChoice(0, count, ("pi-0", "pi-1", "pi-2"))], None, {})
    line = [
        StageChoice(first, end, (device,))
        for (first, end), device in zip(
            itertools.pairwise((0, 6, 10, 14, count)),
            ("pi-0", "pi-1", "pi-attic", "pi-2"),
            strict=True,
        )
    ]
    found: dict[Strategy, Prediction] = {
        "single": single,
        "replicas": replicas,
        "pipeline": predict(costs, line, None, {}),
        "mixed": mixed,
    }
    times_better = mixed.images_per_s / single.images_per_s
    return Verdict(
        alternatives=tuple(
            Alternative(strategy=name, prediction=prediction) for name, prediction in found.items()
        ),
        recommended="mixed",
        chosen="mixed",
        reason="Made-up devices, real arithmetic: three stages, the first on two devices, reach "
        f"{mixed.images_per_s:.1f} images/s, {times_better:.1f} times one device alone; pi-attic, "
        "which cannot hold the whole model, takes the last one.",
    )


def _measurement(mixed: Prediction) -> Measurement:
    off = itertools.cycle((1.04, 0.97, 1.02, 1.07))
    return Measurement(
        time_unix_s=1_795_000_000.0,
        batches=400,
        window=mixed.window,
        images_per_s=mixed.images_per_s * 0.954,
        latency_ms=mixed.latency_ms * 1.061,
        loaded_latency_ms=mixed.loaded_latency_ms * 1.048,
        devices=tuple(
            DeviceMeasurement(
                device=device.device,
                stage_index=device.stage_index,
                batches=round(400 * device.share),
                compute_ms=device.compute_ms * next(off),
                utilisation=device.utilisation * 0.97,
                rss_bytes=round(device.memory_bytes * 0.93),
            )
            for device in mixed.devices
        ),
        edges=tuple(
            EdgeMeasurement(
                edge=edge.edge,
                bytes_per_batch=edge.bytes_per_batch + 416,
                transfer_ms=edge.transfer_ms * 1.12 + 0.3,
            )
            for edge in mixed.edges
        ),
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(resnet50_plan().to_json())
