"""How much memory activations take while a segment runs. Pure: looks at the graph alone."""

import math

import numpy as np

from planner.graph import SegmentedGraph
from planner.onnx_graph import node_inputs


def peak_activation_bytes(graph: SegmentedGraph, batch_size: int, tokens: int = 1) -> list[int]:
    """For each segment, the most bytes that its live tensors take at once, at a batch size.

    ``tokens``: of each sequence, where the model takes tokens.

    A tensor is live from the node that makes it to the last one that reads it, in graph order. An
    engine may do better by computing in place, and worse by keeping what it has allocated.
    """
    sizes = {
        name: math.prod(tensor.size(batch_size, tokens))
        * (4 if tensor.dtype is None else np.dtype(tensor.dtype).itemsize)
        for name, tensor in graph.model.tensors.items()
    }
    last_use: dict[str, int] = {}
    for position, node in enumerate(graph.body):
        last_use.update(dict.fromkeys(node_inputs(node), position))
    last_use.update(dict.fromkeys((spec.name for spec in graph.model.outputs), len(graph.body)))
    live = {spec.name: sizes.get(spec.name, 0) for spec in graph.model.inputs}
    used = sum(live.values())
    peaks = []
    for segment in graph.segments:
        peak = used
        for position in range(segment.first_node, segment.end_node):
            for name in graph.body[position].output:
                if name in sizes and name not in live:
                    live[name] = sizes[name]
                    used += sizes[name]
            peak = max(peak, used)
            for name in [n for n in live if last_use.get(n, -1) <= position]:
                used -= live.pop(name)
        peaks.append(peak)
    return peaks
