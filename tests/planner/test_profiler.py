"""Kernel times of the fused whole model, given to the segments that the kernels stand for."""

import pytest

from planner.profiler import attribute_kernels

SEGMENT_OF = {"conv": 0, "relu": 1, "pool": 2, "output": 3}


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        ([("conv", 1.0), ("relu", 2.0), ("pool", 3.0), ("output", 4.0)], [1.0, 2.0, 3.0, 4.0]),
        # a convolution fused with its activation is named after the activation
        ([("relu_nchwc", 3.0), ("pool", 1.0), ("output", 1.0)], [0.0, 3.0, 1.0, 1.0]),
        # a change of layout has a name of onnxruntime's own: it counts with what follows
        ([("reorder", 0.5), ("conv", 1.0), ("reorder", 0.25), ("pool", 1.0)], [1.5, 0, 1.25, 0]),
        # or with the last one that was named, at the end
        ([("conv", 1.0), ("output", 2.0), ("reorder", 0.5)], [1.0, 0, 0, 2.5]),
        ([("nothing known", 2.0)], [2.0, 0, 0, 0]),
    ],
)  # fmt: skip
def test_every_kernel_counts_once_and_with_the_segment_it_stands_for(
    kernels: list[tuple[str, float]], expected: list[float]
) -> None:
    times = attribute_kernels(kernels, SEGMENT_OF, 4)
    assert times == pytest.approx(expected)
    assert sum(times) == pytest.approx(sum(duration for _, duration in kernels))
