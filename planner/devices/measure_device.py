"""Lets one device measure a model, block by block, at every batch size that is asked for."""

import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from contract.command import Examination, Fetch, Measure, Measured
from contract.errors import EngineError
from contract.plan import ShardFile
from planner.devices.dialogue import Dialogue
from planner.devices.profile_blocks import (
    Block,
    BlockAnswer,
    choose_blocks,
    combine,
    make_block,
    memory_figures,
    weight_limit,
)
from planner.devices.profile_cache import KindTimings, TimingsKey
from planner.devices.profile_report import usable_memory
from planner.graph import SegmentedGraph
from shards.manifest import GRAPH_FILE
from shards.writer import describe_file

PATIENCE_S = 60.0
"""A device that measures says so every two seconds, on a busy board a little later."""


@dataclass(frozen=True)
class ProfileRequest:
    """What to measure.

    ``devices``: None for all that are online. ``budget_s`` is for each kind of runs of each block.
    ``refresh`` measures again what the cache has. ``sustained_s`` of 0 leaves that out.
    """

    batch_sizes: tuple[int, ...] = (1,)
    devices: tuple[str, ...] | None = None
    refresh: bool = False
    sustained_s: float = 0.0
    budget_s: float = 2.0
    probe_s: float = 3.0


class _Heard(NamedTuple):
    """A block's answer, and the whole message that it came in."""

    block: BlockAnswer
    message: Measured


def measure_device(
    dialogue: Dialogue,
    graph: SegmentedGraph,
    examination: Examination,
    keys: Sequence[TimingsKey],
    request: ProfileRequest,
    tell: Callable[[float], None],
) -> list[KindTimings]:
    """All blocks of a model on one device, one after the other.

    Args:
        dialogue: with the device.
        graph: the model in segments.
        examination: what the device said of its memory.
        keys: one for each batch size.
        request: for how long.
        tell: called with the share that is done.

    Raises:
        DeliveryError: the device does not answer.
        ShardError: it cannot keep a graph.
        EngineError: it cannot run one; says which segments and why.
    """
    ranges = choose_blocks(graph, weight_limit(usable_memory(examination)))
    flops = [sum(s.flops_per_image for s in graph.segments[first:end]) for first, end in ranges]
    heard: dict[TimingsKey, list[_Heard]] = {key: [] for key in keys}
    for index, (first, end) in enumerate(ranges):
        block = make_block(graph, first, end)
        sustained_s = request.sustained_s if index == flops.index(max(flops)) else 0.0
        file = _hand_out(dialogue, graph, block)
        for number, key in enumerate(keys):
            tell((index + number / len(keys)) / len(ranges))
            message = dialogue.ask(
                Measure(
                    request_id=new_id(),
                    graph=file,
                    weights_size_bytes=block.weights_size_bytes,
                    weights=block.weights,
                    inputs=block.inputs,
                    batch_size=key.batch_size,
                    budget_s=request.budget_s,
                    sustained_s=sustained_s,
                ),
                Measured,
                PATIENCE_S,
            )
            if message.timings is None:
                raise EngineError(
                    f"device {dialogue.device} did not measure segments {first} to {end - 1} of "
                    f"{graph.model.info.name} at batch {key.batch_size}: {message.error}"
                )
            answer = BlockAnswer(first, end, block.weight_bytes, message.timings)
            heard[key].append(_Heard(answer, message))
    tell(1.0)
    return [_summarise(graph, dialogue.device, key, blocks) for key, blocks in heard.items()]


def new_id() -> str:
    """A request's id."""
    return secrets.token_hex(8)


def _hand_out(dialogue: Dialogue, graph: SegmentedGraph, block: Block) -> ShardFile:
    with tempfile.TemporaryDirectory(prefix="shardline-block-") as folder:
        path = Path(folder) / GRAPH_FILE
        path.write_bytes(block.graph)
        file = describe_file(path)
        fetch = Fetch(
            request_id=new_id(),
            plan_id=graph.model.info.digest[:16],
            stage_index=0,
            files=(file,),
        )
        dialogue.hand_out(path, fetch, PATIENCE_S)
    return file


def _summarise(
    graph: SegmentedGraph, device: str, key: TimingsKey, heard: Sequence[_Heard]
) -> KindTimings:
    blocks = [one.block for one in heard]
    memory = memory_figures(blocks)
    shares = [block.timings.sustained_share for block in blocks]
    return KindTimings(
        key=key,
        measured_on=device,
        timings=combine(graph, key.batch_size, blocks),
        base_bytes=memory.base_bytes,
        packing_factor=memory.packing_factor,
        unpacked_factor=memory.unpacked_factor,
        activation_bytes=memory.activation_bytes,
        sustained_share=min((share for share in shares if share is not None), default=None),
        temperature_before_celsius=heard[0].message.temperature_before_celsius,
        temperature_after_celsius=heard[-1].message.temperature_after_celsius,
        throttled=heard[-1].message.throttled,
        busy=any(one.message.busy for one in heard),
        time_unix_s=round(time.time(), 3),
    )
