"""What a solution has to keep to: the user's wishes, as the partitioner takes them."""

from dataclasses import dataclass
from typing import Literal

from contract.prediction import Strategy

Objective = Literal["throughput", "latency"]
Method = Literal["exact", "greedy", "even"]


@dataclass(frozen=True)
class Rules:
    """How the devices may be used. ``boundaries`` fixes the cuts: only devices are chosen then.

    ``seconds`` is what a solver may take where no exact method is quick enough.
    """

    strategy: Strategy = "mixed"
    num_stages: int | None = None
    boundaries: tuple[int, ...] | None = None
    objective: Objective = "throughput"
    method: Method = "exact"
    seconds: float = 10.0
    max_devices: int | None = None
    min_stages: int = 1
