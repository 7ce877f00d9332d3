"""Puts the stages of a built plan together again: the whole canonical model, from its shards alone.

The tensors at the cuts have the same names on both sides, and so have weights that several stages
hold. Neither the model's own file nor torch is needed, so a planner that only has a plan's folder
can cut the model at other places (docs/adr/0028).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from onnx import NodeProto, TensorProto

from contract.errors import PlanError
from contract.plan import Plan, TokenInput
from planner.batch_root import ROOT, root_node
from planner.canonical import CanonicalModel
from planner.fold import read_initializers
from planner.graph import split_derived
from planner.importers.imported_model import Array, ImportedModel
from planner.onnx_graph import (
    external_tensor,
    load_graph,
    make_model,
    read_opsets,
    to_bytes,
)
from planner.prefix import NORMALISED
from planner.probe import probe
from planner.scratch import ScratchFolder
from planner.verify import run_shards
from shards.manifest import GRAPH_FILE, WEIGHTS_FILE
from shards.reader import read_shard

Constant = TypeVar("Constant")
"""An array, or an initialiser that stays in the graph."""


@dataclass(frozen=True)
class _Part:
    """One stage as it was read: its own nodes, those that it computes again, its constants."""

    body: tuple[NodeProto, ...]
    derived: tuple[NodeProto, ...]
    inline: Mapping[str, TensorProto]
    weights: Mapping[str, Array]
    opsets: Mapping[str, int]


def rejoin(folder: Path, plan: Plan) -> CanonicalModel:
    """The model that ``plan`` was cut from; its weights are mapped, not read into memory.

    Its digest is the plan's. Its bytes are those of the graph that was cut but for one thing: what
    every stage computes again (see :mod:`planner.graph`) stands at the front.

    Args:
        folder: of the plan, with all its shards.
        plan: as `shardline plan` built it.

    Raises:
        ShardError: a shard is missing or damaged.
        PlanError: the shards do not make one model, or it is a language model.
        ModelError: onnxruntime cannot run it.
        EnvironmentMissingError: there is no room for it in the folder of temporary files.
    """
    refuse_decoders(plan)
    parts = [_read(folder, plan, index) for index in range(plan.num_stages)]
    inputs, outputs = plan.stages[0].inputs, plan.stages[-1].outputs
    inline = _united(plan, (part.inline for part in parts))
    weights = _united(plan, (part.weights for part in parts))
    nodes = _nodes(plan, parts)
    scratch = ScratchFolder()
    shard = scratch.path / "whole"
    places = scratch.write_weights(shard / WEIGHTS_FILE, weights)
    constants = {
        **inline,
        **{
            name: external_tensor(name, array.dtype, array.shape, places[name])
            for name, array in weights.items()
        },
    }
    initializers = [constants[name] for name in sorted(constants)]
    opsets = {domain: version for part in parts for domain, version in part.opsets.items()}
    model = make_model(nodes, inputs, outputs, initializers, opsets)
    (shard / GRAPH_FILE).write_bytes(to_bytes(model))
    arrays = read_initializers(model, shard)
    return CanonicalModel(
        info=plan.model,
        folder=scratch,
        graph=model,
        weights={name: arrays[name] for name in places},
        places=places,
        tensors=probe(model, inputs[0], shard / "probe.onnx"),
        scopes={},
        prefix_nodes=_prefix_nodes(parts[0].body),
        inputs=inputs,
        outputs=outputs,
    )


def refuse_decoders(plan: Plan) -> None:
    """Language models are not put together again: their caches are numbered stage by stage.

    Raises:
        PlanError: ``plan`` is one's.
    """
    if plan.decoding is not None:
        raise PlanError(
            f"plan {plan.name}: is a language model's, which is not planned anew by itself; "
            "publish it without --watch, and plan again from the model's folder for other devices"
        )


def as_imported(folder: Path, plan: Plan, model: CanonicalModel, threads: int) -> ImportedModel:
    """``model`` with a reference: the shards that it was put together from.

    They were compared with the original framework when they were built. So an error of putting them
    together shows in the shards that are cut next, as does one of cutting.
    """

    def reference(batch: Array) -> dict[str, Array]:
        return run_shards(folder, plan, batch, threads, plan.batch_size)

    assert not isinstance(plan.model.input, TokenInput)
    return ImportedModel(
        name=plan.model.name,
        weights=plan.model.weights,
        folder=model.folder,
        graph_path=model.graph_path,
        reference=reference,
        reference_name=f"the shards of plan {plan.plan_id}, themselves compared with "
        f"{plan.verification.reference}",
        input=plan.model.input,
        labels=plan.model.labels,
        labels_mean_something=plan.model.labels_mean_something,
    )


def _read(folder: Path, plan: Plan, index: int) -> _Part:
    stage = plan.stages[index]
    shard = read_shard(folder / stage.folder, plan, index)
    model = load_graph(shard.graph_path)
    arrays = read_initializers(model, shard.folder)
    external = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    }
    body, derived = split_derived(model.graph.node, stage.inputs[0].name)
    own = {node.output[0] for node in body}
    return _Part(
        body=tuple(body),
        derived=tuple(
            node
            for node in model.graph.node
            if node.output[0] in derived and node.output[0] not in own
        ),
        inline={t.name: t for t in model.graph.initializer if t.name not in external},
        weights={name: array for name, array in arrays.items() if name in external},
        opsets=read_opsets(model),
    )


def _nodes(plan: Plan, parts: Sequence[_Part]) -> list[NodeProto]:
    """All nodes, what is derived once and first, reading the batch from the model's own input."""
    derived: dict[str, NodeProto] = {}
    for part in parts:
        for node in part.derived:
            derived.setdefault(node.output[0], node)
    if ROOT in derived:
        derived = {ROOT: root_node(plan.stages[0].inputs[0].name), **_without_root(derived)}
    nodes = [*derived.values(), *(node for part in parts for node in part.body)]
    names = [name for node in nodes for name in node.output if name]
    if len(names) != len(set(names)):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise _not_one_model(plan, f"several stages compute {', '.join(twice[:3])}")
    return nodes


def _without_root(derived: Mapping[str, NodeProto]) -> dict[str, NodeProto]:
    return {name: node for name, node in derived.items() if name != ROOT}


def _united(plan: Plan, each: Iterable[Mapping[str, Constant]]) -> dict[str, Constant]:
    """All constants by name, each once.

    Raises:
        PlanError: two stages give one name to different constants.
    """
    found: dict[str, Constant] = {}
    for constants in each:
        for name, constant in constants.items():
            if not _equal(found.setdefault(name, constant), constant):
                raise _not_one_model(plan, f"two stages have different constants called {name}")
    return found


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if isinstance(one, TensorProto) or isinstance(other, TensorProto):
        return bool(one == other)
    return one.dtype == other.dtype and bool(np.array_equal(one, other, equal_nan=True))


def _not_one_model(plan: Plan, why: str) -> PlanError:
    return PlanError(
        f"plan {plan.name}: its stages cannot be put together again ({why}); only plans that "
        "`shardline plan` built can be planned anew"
    )


def _prefix_nodes(body: Sequence[NodeProto]) -> int:
    """How many nodes at the front are the preprocessing, which is never cut off."""
    for index, node in enumerate(body):
        if NORMALISED in node.output:
            return index + 1
    return 0
