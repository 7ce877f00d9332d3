"""Builds the plans of the scaling study: one model on 1, 2, 4, 8 equal devices, and replicas.

Today's planner cuts them by its own measurement of this machine; nothing here predicts.
"""

from collections.abc import Sequence
from pathlib import Path

from contract.plan import PLAN_FILE, Plan, Replica, load_plan, place
from planner.build import build_plan
from planner.canonical import canonicalise
from planner.graph import segment_graph
from planner.importers import ImportOptions, import_model
from planner.request import PlanRequest


def plan_folder(folder: Path, model: str, stages: int, batch: int) -> Path:
    """Where the plan of so many stages lies."""
    return folder / f"{model.replace('_', '-')}-{batch}-{stages}"


def build(folder: Path, model: str, stage_counts: Sequence[int], batch: int) -> list[Path]:
    """Write the plans that are not there yet, on devices d0, d1, …; their folders."""
    folders = [plan_folder(folder, model, stages, batch) for stages in stage_counts]
    missing = [
        (path, stages)
        for path, stages in zip(folders, stage_counts, strict=True)
        if not (path / PLAN_FILE).is_file()
    ]
    if missing:
        imported = import_model(f"torchvision:{model}", ImportOptions(weights="random"))
        graph = segment_graph(canonicalise(imported))
        for path, stages in missing:
            devices = tuple((Replica(device=f"d{index}"),) for index in range(stages))
            request = PlanRequest(
                path.name, folder, num_stages=stages, batch_size=batch, devices=devices
            )
            build_plan(imported, graph, request)
    return folders


def replicas_of(whole: Path, target: Path, replicas: Sequence[Replica], cluster: str) -> Plan:
    """A plan of one stage on several devices, written beside links to the same shard."""
    plan = place(load_plan(whole), [list(replicas)], cluster)
    plan = plan.model_copy(update={"name": target.name})
    target.mkdir(parents=True, exist_ok=True)
    link = target / "stage-0"
    if not link.is_symlink():
        link.symlink_to((whole / "stage-0").resolve())
    (target / PLAN_FILE).write_text(plan.to_json() + "\n")
    return plan
