"""The best codec for each link of a plan, by the predicted rate alone. Pure.

Whether an answer survives a codec is measured elsewhere; here it is only asked what it would gain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from contract.plan import Codec
from planner.cost_model import batches_per_s
from planner.problem import Problem, StageChoice

CODECS: tuple[Codec, ...] = ("float32", "float16", "int8-per-channel", "int8")
"""From the least lossy. All of :data:`contract.plan.Codec`."""

WORTH = 0.01
"""A lossier codec that gains less than this share of the rate is not worth it."""

Assignment = Mapping[int, Codec]
"""The codec of each of a problem's edges that a cut lies on; others as they are."""


def with_codecs(
    problem: Problem, problems: Mapping[Codec, Problem], assignment: Assignment
) -> Problem:
    """The problem where each edge travels as assigned.

    ``problems`` has, for each codec, the problem in which every edge that can travels in it.
    """
    sizes = list(problem.edge_bytes)
    work = [problem.work_bytes(edge) for edge in range(len(sizes))]
    for edge, codec in assignment.items():
        sizes[edge] = problems[codec].edge_bytes[edge]
        work[edge] = problems[codec].work_bytes(edge)
    return replace(problem, edge_bytes=tuple(sizes), edge_work_bytes=tuple(work))


def best_codecs(
    problem: Problem, problems: Mapping[Codec, Problem], stages: Sequence[StageChoice]
) -> tuple[dict[int, Codec], float]:
    """A codec for each edge between two stages, and the batches a second with them.

    Starts from every uniform choice and changes one edge at a time while that helps; then every
    edge goes back to the least lossy codec that costs no more than :data:`WORTH` in all.
    """
    edges = [stage.first for stage in stages[1:]]

    def rate(assignment: Assignment) -> float:
        return batches_per_s(with_codecs(problem, problems, assignment), stages)

    best: dict[int, Codec] = dict.fromkeys(edges, CODECS[0])
    for uniform in CODECS:
        assignment: dict[int, Codec] = dict.fromkeys(edges, uniform)
        while True:
            changed: list[dict[int, Codec]] = [
                {**assignment, edge: codec} for edge in edges for codec in CODECS
            ]
            better = max(changed, key=rate, default=assignment)
            if rate(better) <= rate(assignment) * (1 + 1e-9):
                break
            assignment = better
        if rate(assignment) > rate(best) * (1 + 1e-9):
            best = assignment
    enough = rate(best) * (1 - WORTH)
    for edge in edges:
        for codec in CODECS[: CODECS.index(best[edge])]:
            if rate({**best, edge: codec}) >= enough:
                best = {**best, edge: codec}
                break
    return best, rate(best)
