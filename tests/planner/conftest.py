"""Each torchvision model is imported once in a session, and only one is in memory at a time."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from contract.plan import Plan
from planner.build import build_plan
from planner.canonical import canonicalise
from planner.graph import SegmentedGraph, segment_graph
from planner.importers import ImportedModel, ImportOptions, import_model
from planner.profiler import Profile
from planner.progress import silent
from planner.request import PlanRequest
from planner.verify import verification_batch

Array = npt.NDArray[np.generic]
SMALL = "tests.planner.small_models"


@dataclass
class Cached:
    """An imported model in segments, and what its original says about ``batch``."""

    imported: ImportedModel
    graph: SegmentedGraph
    batch: Array
    expected: dict[str, Array]

    def plan(self, folder: Path, **request: object) -> Plan:
        made_up = flops_profile(self.graph)
        settings = {"name": "m", "out_dir": folder, "profile": made_up, "refine": False}
        progress = request.pop("progress", silent)
        merged = PlanRequest(**{**settings, **request})  # type: ignore[arg-type]
        return build_plan(self.imported, self.graph, merged, progress)  # type: ignore[arg-type]


def flops_profile(graph: SegmentedGraph) -> Profile:
    """Stands in for a measurement, so that a test cuts at the same places every time."""
    times = tuple(segment.flops_per_image / 1e7 for segment in graph.segments)
    return Profile(times, sum(times), batch_size=1, threads=1, rounds=0)


def prepare(spec: str, options: ImportOptions) -> Cached:
    imported = import_model(spec, options)
    graph = segment_graph(canonicalise(imported))
    batch = verification_batch(imported.input, graph.model.inputs[0])
    expected = imported.reference(batch)
    original = imported.reference

    def remembered(array: Array) -> dict[str, Array]:
        return expected if np.array_equal(array, batch) else original(array)

    return Cached(replace(imported, reference=remembered), graph, batch, expected)


@pytest.fixture(scope="session")
def torchvision_model(request: pytest.FixtureRequest) -> Cached:
    """Indirect: the parameter is a name. pytest groups tests by it, so one is alive at a time."""
    return prepare(f"torchvision:{request.param}", ImportOptions(weights="random"))


@pytest.fixture(scope="session")
def small() -> Callable[[str], Cached]:
    """Models of small_models.py on 32x32 images, by name, imported once."""
    made: dict[str, Cached] = {}

    def get(name: str) -> Cached:
        if name not in made:
            options = ImportOptions(weights="random", input_size=(32, 32))
            made[name] = prepare(f"{SMALL}:{name}", options)
        return made[name]

    return get
