"""What a solution has to keep to: the user's wishes, as the partitioner takes them."""

from dataclasses import dataclass
from typing import Literal

from contract.prediction import Strategy

Objective = Literal["throughput", "latency"]
Method = Literal["exact", "greedy", "even"]


@dataclass(frozen=True)
class Rules:
    """How the devices may be used.

    ``boundaries`` fixes the cuts (segment indices from 0 to the number of segments, both included),
    so that only devices are chosen. ``seconds`` is how long may be spent where the problem is too
    large to be solved exactly; smaller ones take what they take. ``min_stages`` counts only where
    ``num_stages`` is None.
    """

    strategy: Strategy = "mixed"
    num_stages: int | None = None
    boundaries: tuple[int, ...] | None = None
    objective: Objective = "throughput"
    method: Method = "exact"
    seconds: float = 10.0
    max_devices: int | None = None
    min_stages: int = 1
