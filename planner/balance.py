"""Balances a fixed number of equal devices: segments into stages by time alone, without memory.

Pure, and the same answer on every machine. :mod:`planner.partition` decides for a whole fleet; this
is its small sister, used while the times themselves are still being corrected by measuring.

All methods take the measured time of every segment and the bytes of a batch at every cut, and give
boundaries: segment indices from 0 to the number of segments, one more than there are stages. Stage
k is the half-open range ``boundaries[k]`` to ``boundaries[k + 1]``.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

from contract.errors import PartitionError
from planner.cost_model import stage_ms

Method = Literal["exact", "greedy", "even"]


def partition(
    segment_ms: Sequence[float],
    edge_bytes: Sequence[int],
    num_stages: int,
    method: Method = "exact",
    slack: float = 0.0,
) -> list[int]:
    """Boundaries of ``num_stages`` stages.

    ``exact`` minimises the time of the slowest stage, relaying included, and among equals the
    bytes carried. ``greedy`` closes a stage when its share of the work is reached. ``even`` gives
    every stage the same number of segments.

    Args:
        segment_ms: time of each segment for one batch.
        edge_bytes: bytes of a batch before the first segment, at each cut, and after the last
            segment: one more than there are segments.
        num_stages: at least 1.
        method: see above.
        slack: how much slower than the best, as a share, ``exact`` may be for fewer bytes. Times
            that were measured carry a few percent of noise, which must not decide between a cut of
            50 KB and one of 450 KB.

    Raises:
        PartitionError: there are fewer segments than stages.
    """
    count = len(segment_ms)
    if len(edge_bytes) != count + 1:
        raise ValueError(f"{count} segments have {count + 1} edges, got {len(edge_bytes)}")
    if num_stages < 1:
        raise PartitionError(f"{num_stages} stages asked for, expected at least 1")
    if num_stages > count:
        raise PartitionError(
            f"{num_stages} stages need {num_stages - 1} cut points, the model has {count - 1}; "
            f"ask for at most {count} stages"
        )
    match method:
        case "exact":
            return _exact(segment_ms, edge_bytes, num_stages, slack)
        case "greedy":
            return _greedy(segment_ms, num_stages)
        case "even":
            return [index * count // num_stages for index in range(num_stages + 1)]


def bottleneck_ms(
    segment_ms: Sequence[float], edge_bytes: Sequence[int], boundaries: Sequence[int]
) -> float:
    """Time of the slowest stage for one batch, relaying included."""
    return max(stage_times(segment_ms, edge_bytes, boundaries))


def stage_times(
    segment_ms: Sequence[float], edge_bytes: Sequence[int], boundaries: Sequence[int]
) -> list[float]:
    """Time of each stage for one batch in ms, relaying included."""
    return [
        stage_ms(sum(segment_ms[first:end]), edge_bytes[first], edge_bytes[end])
        for first, end in pairwise(boundaries)
    ]


def _exact(
    segment_ms: Sequence[float], edge_bytes: Sequence[int], num_stages: int, slack: float
) -> list[int]:
    """Dynamic programming over (stages used, segments covered); O(stages * segments^2).

    Two passes: the smallest bottleneck first, then, among the partitions that reach it, the fewest
    bytes. In one pass a prefix with a better bottleneck would hide one with fewer bytes that is
    just as good in the end.
    """
    limit, _ = _best(segment_ms, edge_bytes, num_stages, float("inf"))
    _, boundaries = _best(segment_ms, edge_bytes, num_stages, limit * (1 + slack))
    return boundaries


def _best(
    segment_ms: Sequence[float], edge_bytes: Sequence[int], num_stages: int, limit: float
) -> tuple[float, list[int]]:
    """With no limit, the smallest bottleneck; under a limit, the partition of fewest bytes."""
    count = len(segment_ms)
    before = [0.0, *accumulate(segment_ms)]  # before[i]: time of segments 0 to i
    unlimited = limit == float("inf")
    nothing = (float("inf"), -1)
    # best[end]: cost of segments 0..end in the stages so far, and where the last of them begins
    best = [nothing] * (count + 1)
    best[0] = (0.0, 0)
    table = [best]
    for _ in range(num_stages):
        previous, best = best, [nothing] * (count + 1)
        for end in range(1, count + 1):
            for first in range(end):
                if previous[first] == nothing:
                    continue
                time = stage_ms(before[end] - before[first], edge_bytes[first], edge_bytes[end])
                if unlimited:
                    cost = max(previous[first][0], time)
                elif time <= limit:
                    cost = previous[first][0] + edge_bytes[end]
                else:
                    continue
                if cost < best[end][0]:
                    best[end] = (cost, first)
        table.append(best)
    boundaries = [count]
    for stage in range(num_stages, 0, -1):
        boundaries.append(table[stage][boundaries[-1]][1])
    return best[count][0], boundaries[::-1]


def _greedy(segment_ms: Sequence[float], num_stages: int) -> list[int]:
    """Close stage k where the work done is nearest to k shares, leaving enough for the rest."""
    count = len(segment_ms)
    before = [0.0, *accumulate(segment_ms)]
    boundaries = [0]
    for stage in range(1, num_stages):
        target = before[-1] * stage / num_stages
        candidates = range(boundaries[-1] + 1, count - (num_stages - stage) + 1)
        boundaries.append(min(candidates, key=lambda end: abs(before[end] - target)))
    return [*boundaries, count]
