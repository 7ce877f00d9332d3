"""The published per-architecture splitting rules, over every cut point that the graph alone gives.

The blocks are those of the torch modules, and a cut is located by its values: what the modules
compute is recorded with hooks and compared with the tensors of the canonical graph. No name that
the planner makes is trusted.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper
from torch import nn

from planner.importers.torch_module import TorchReference
from planner.onnx_graph import load_graph, to_bytes
from tests.planner.conftest import Cached
from tests.planner.test_split_equals_whole import NAMED

BLOCKS = re.compile("BasicBlock|Bottleneck|InvertedResidual|Inception[A-E]")
"""Classes of torchvision whose inside must stay whole."""


@dataclass
class Made:
    """One output of one call of a module; flat, since a view of it is the same data."""

    module: str
    values: np.ndarray


def torch_module(model: Cached) -> nn.Module:
    reference = model.imported.reference
    cells = [cell.cell_contents for cell in reference.__closure__ or ()]  # type: ignore[attr-defined]
    return next(cell for cell in cells if isinstance(cell, TorchReference)).module


def record(model: Cached) -> list[Made]:
    """Outputs of all modules for one image, in the order in which they were computed."""
    module, made = torch_module(model), []
    handles = [
        child.register_forward_hook(
            # A copy: activations that work in place overwrite their input.
            lambda _m, _i, out, name=name: made.append(Made(name, out.detach().numpy().flatten()))
        )
        for name, child in module.named_modules()
        if name
    ]
    TorchReference(module, ["output"], model.imported.input)(model.batch[:1])
    for handle in handles:
        handle.remove()
    return made


def cut_values(model: Cached) -> dict[str, np.ndarray]:
    """What the canonical graph has at every cut point for the same image."""
    graph = ModelProto()
    graph.CopyFrom(model.graph.model.graph)
    del graph.graph.output[:]
    graph.graph.output.extend(
        helper.make_tensor_value_info(cut.name, TensorProto.FLOAT, None) for cut in model.graph.cuts
    )
    path = model.graph.model.shard_path / "every-cut.onnx"
    path.write_bytes(to_bytes(graph))
    session = onnxruntime.InferenceSession(str(path))
    values = session.run(None, {"image": model.batch[:1]})
    return {cut.name: value.flatten() for cut, value in zip(model.graph.cuts, values, strict=True)}


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.abs(a - b).max() <= 1e-4 * max(np.abs(b).max(), 1e-6)


def is_block(module: nn.Module) -> bool:
    """Whether the module has a path around or beside another, which a cut inside would sever.

    An inverted residual that changes the size has none: it is three convolutions in a row.
    """
    residual = getattr(module, "use_res_connect", True)
    return bool(BLOCKS.fullmatch(type(module).__name__)) and residual


@pytest.mark.parametrize("torchvision_model", NAMED, indirect=True)
def test_no_block_is_ever_cut_inside(torchvision_model: Cached) -> None:
    modules = dict(torch_module(torchvision_model).named_modules())
    made = record(torchvision_model)

    blocks = {name for name, module in modules.items() if is_block(module)}
    answers = [m.values for m in made if m.module in blocks]
    for cut, values in cut_values(torchvision_model).items():
        makers = [m.module for m in made if same(values, m.values)]
        # The sum of both paths, before the block's last activation: nothing is left to sever.
        is_sum = any(same(np.maximum(values, 0), answer) for answer in answers)
        assert makers or is_sum, f"{cut}: no module computes this tensor"
        inside = all(blocks.intersection(_parents(maker)) for maker in makers)
        assert is_sum or not inside, f"{cut}: inside {makers}"


@pytest.mark.parametrize("torchvision_model", NAMED, indirect=True)
def test_a_cut_is_possible_behind_every_block(torchvision_model: Cached) -> None:
    modules = dict(torch_module(torchvision_model).named_modules())
    cuts = list(cut_values(torchvision_model).values())
    for made in record(torchvision_model):
        if BLOCKS.fullmatch(type(modules[made.module]).__name__):
            assert any(same(values, made.values) for values in cuts), made.module


@pytest.mark.parametrize("torchvision_model", ["vgg16", "alexnet"], indirect=True)
def test_plain_chains_can_be_cut_after_every_relu_and_pooling(
    torchvision_model: Cached,
) -> None:
    modules = dict(torch_module(torchvision_model).named_modules())
    cuts = list(cut_values(torchvision_model).values())
    wanted = [
        made
        for made in record(torchvision_model)
        if isinstance(modules[made.module], nn.ReLU | nn.MaxPool2d)
    ]
    assert len(wanted) >= 10
    for made in wanted:
        assert any(same(values, made.values) for values in cuts), made.module


@pytest.mark.parametrize("torchvision_model", NAMED, indirect=True)
def test_every_weight_is_in_exactly_one_shard(torchvision_model: Cached, tmp_path: Path) -> None:
    plan = torchvision_model.plan(tmp_path, num_stages=5)
    floats: list[str] = []
    elements = 0
    for stage in plan.stages:
        graph = load_graph(tmp_path / "m" / stage.folder / "graph.onnx")
        for tensor in graph.graph.initializer:
            if tensor.data_type == tensor.FLOAT and not tensor.name.startswith("shardline/"):
                if len(tensor.dims) == 0:
                    continue  # bounds of Clip: parameters of an operator, not weights
                floats.append(tensor.name)
                elements += int(np.prod(tensor.dims))
    assert len(floats) == len(set(floats))
    assert plan.tied_weights == ()
    assert elements == sum(_folded_elements(torch_module(torchvision_model)))
    assert sum(stage.weight_bytes for stage in plan.stages) == (
        torchvision_model.graph.model.weight_bytes
    )


def _folded_elements(module: nn.Module) -> Iterator[int]:
    """Parameters once BatchNorm is part of the convolution: every one of them then has a bias."""
    auxiliary = {
        id(inner)
        for outer in module.modules()
        if type(outer).__name__ == "InceptionAux"
        for inner in outer.modules()
    }
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and id(layer) not in auxiliary:
            yield layer.weight.numel() + layer.weight.shape[0]


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
