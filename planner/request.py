"""What a plan is to be: everything that a person can ask for, in the planner's own terms."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from contract.plan import Codec, Replica
from contract.prediction import Strategy
from contract.topics import DEFAULT_CLUSTER
from planner.formulate import Site
from planner.onnx_graph import Array
from planner.profiler import Profile
from planner.rules import Method, Objective

MAX_ACCURACY_DROP = 0.5
"""Points of accuracy that lossy codecs may cost."""
PLAN_SECONDS = 10.0


@dataclass(frozen=True)
class Calibration:
    """Images on which the cost of a lossy codec is measured.

    ``images`` is (N, …) as stage 0 takes them; ``labels`` has one entry for each, None where it is
    not known, and may be empty.
    """

    images: Array
    labels: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class PlanRequest:
    """What a plan is to be.

    ``cuts`` names the cut points; without it, ``num_stages`` stages are chosen by ``partitioner``,
    or as many as ``strategy`` (the recommended one where it is None) finds best for the ``site``:
    the devices, given this machine's times. Without a site, as many devices like this machine as
    there are stages are assumed; such a plan is placed later.

    ``profile`` are this machine's times, measured if they are None. ``refine`` runs the chosen
    stages here as well, and decides again by what they take. ``devices`` are the replicas of every
    stage in order, whatever was assumed. ``codec`` «auto» lets the planner choose for each link.
    The plan goes to ``out_dir / name``.
    """

    name: str
    out_dir: Path
    num_stages: int | None = None
    cuts: tuple[str, ...] | None = None
    batch_size: int = 1
    threads: int = 1
    partitioner: Method = "exact"
    strategy: Strategy | None = None
    objective: Objective = "throughput"
    plan_seconds: float = PLAN_SECONDS
    site: Callable[[Profile], Site] | None = None
    profile: Profile | None = None
    refine: bool = True
    devices: tuple[tuple[Replica, ...], ...] | None = None
    codec: Codec | Literal["auto"] = "auto"
    max_accuracy_drop: float = MAX_ACCURACY_DROP
    calibration: Calibration | None = None
    cluster: str = DEFAULT_CLUSTER
