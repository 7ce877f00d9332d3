"""Is there a plan in which every stage reaches a given rate? Asked of HiGHS, an integer solver.

``z[span]`` says that a span is a stage, ``y[kind, span]`` how many devices of a kind serve it. The
stages are a path over the nodes. No clock decides here but the solver's own limit.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import highspy
import numpy as np

from planner.problem import Problem, StageChoice
from planner.solver.exact import Form
from planner.solver.grouping import Kind
from planner.solver.spans import Floats, Spans

MARGIN = 1e-6
"""The rate is asked for with this much less, as a share: more than the solver's own tolerance, so
that «there is none» holds for the rate itself."""


@dataclass(frozen=True)
class Answer:
    """Stages that reach the rate (to :data:`MARGIN`), or a proof that none do, or neither."""

    stages: tuple[StageChoice, ...] | None = None
    impossible: bool = False


@dataclass
class _Rows:
    """Constraints, each a lower and an upper limit and its coefficients, row by row."""

    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    start: list[int] = field(default_factory=lambda: [0])
    index: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)

    def add(self, lower: float, upper: float, columns: Sequence[int], values: Floats) -> None:
        """One constraint more."""
        self.lower.append(lower)
        self.upper.append(upper)
        self.index += columns
        self.value += values.tolist()
        self.start.append(len(self.index))


def ask(
    problem: Problem,
    form: Form,
    spans: Spans,
    kinds: Sequence[Kind],
    target: float,
    seconds: float,
) -> Answer:
    """Whether stages can all reach ``target`` batches a second, and the broker too.

    Args:
        problem: for the broker and the edges.
        form: what a plan may look like.
        spans: where stages may begin and end.
        kinds: with their rates for each span.
        target: batches a second.
        seconds: after so long the answer may be neither.
    """
    target *= 1 - MARGIN
    rates = np.array([kind.costs for kind in kinds])
    counts = np.array([kind.count for kind in kinds])
    useful = np.flatnonzero(_most(rates, counts, form) >= target)
    if not len(useful):
        return Answer(impossible=True)
    width = len(useful)
    rows = _rows(problem, form, spans, useful, rates, counts, target)
    program = highspy.HighsLp()
    program.num_col_ = width * (1 + len(kinds))
    program.num_row_ = len(rows.lower)
    program.col_cost_ = np.zeros(program.num_col_)
    program.col_lower_ = np.zeros(program.num_col_)
    most = np.where(form.replicas, counts, 1)
    program.col_upper_ = np.concatenate([np.ones(width), np.repeat(most, width)]).astype(float)
    program.row_lower_ = np.array(rows.lower)
    program.row_upper_ = np.array(rows.upper)
    program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    program.a_matrix_.start_ = np.array(rows.start)
    program.a_matrix_.index_ = np.array(rows.index)
    program.a_matrix_.value_ = np.array(rows.value)
    program.integrality_ = [highspy.HighsVarType.kInteger] * program.num_col_
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    for option, setting in (
        ("output_flag", False),
        ("threads", 1),
        ("random_seed", 0),
        ("time_limit", max(seconds, 0.01)),
    ):
        solver.setOptionValue(option, setting)
    solver.passModel(program)
    solver.run()
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Answer(impossible=True)
    if status != highspy.HighsModelStatus.kOptimal:
        return Answer()
    values = np.rint(np.array(solver.getSolution().col_value)).astype(int)
    chosen, taken = values[:width], values[width:].reshape(len(kinds), width)
    return Answer(_stages(spans, useful, kinds, chosen, taken))


def _most(rates: Floats, counts: np.typing.NDArray[np.int64], form: Form) -> Floats:
    """The most that a span can reach with the devices that it may have."""
    if not form.replicas:
        return np.asarray(rates.max(axis=0))
    return np.asarray(counts @ rates)


def _rows(
    problem: Problem,
    form: Form,
    spans: Spans,
    useful: np.typing.NDArray[np.int64],
    rates: Floats,
    counts: np.typing.NDArray[np.int64],
    target: float,
) -> _Rows:
    width, rows = len(useful), _Rows()
    one = np.ones(width)
    all_z = list(range(width))
    first, end = spans.first[useful], spans.end[useful]
    columns = np.arange(len(counts))[:, None] * width + width
    for node in range(len(spans.nodes)):
        out, into = np.flatnonzero(first == node), np.flatnonzero(end == node)
        balance = 1.0 if node == 0 else -1.0 if node == len(spans.nodes) - 1 else 0.0
        signs = np.concatenate([np.ones(len(out)), -np.ones(len(into))])
        rows.add(balance, balance, [*out.tolist(), *into.tolist()], signs)
    for column in range(width):
        serving = (columns[:, 0] + column).tolist()
        # What goes beyond the target does not help: clipped, the relaxation is tighter.
        shares = np.minimum(rates[:, useful[column]] / target, 1.0)
        if not form.replicas:
            shares = np.where(shares >= 1.0, 1.0, 0.0)
            rows.add(0.0, 0.0, [column, *serving], np.array([-1.0, *np.ones(len(counts))]))
        rows.add(0.0, np.inf, [column, *serving], np.array([-1.0, *shares]))
        for kind, count in enumerate(counts.tolist()):
            rows.add(-np.inf, 0.0, [column, serving[kind]], np.array([-float(count), 1.0]))
    for kind, count in enumerate(counts.tolist()):
        rows.add(0.0, float(count), list(range(width * (1 + kind), width * (2 + kind))), one)
    if form.max_devices < counts.sum():
        everyone = list(range(width, width * (1 + len(counts))))
        rows.add(0.0, float(form.max_devices), everyone, np.ones(len(everyone)))
    if form.num_stages is not None:
        rows.add(form.num_stages, form.num_stages, all_z, one)
    elif form.min_stages > 1:
        rows.add(form.min_stages, np.inf, all_z, one)
    burden = np.array([problem.broker.edge_ms(problem.edge_bytes[node]) for node in spans.nodes])
    # In shares of the broker's time between two batches: all of it is 1.
    rows.add(0.0, 1.0 - burden[0] * target / 1e3, all_z, burden[end] * target / 1e3)
    return rows


def _stages(
    spans: Spans,
    useful: np.typing.NDArray[np.int64],
    kinds: Sequence[Kind],
    chosen: np.typing.NDArray[np.int64],
    taken: np.typing.NDArray[np.int64],
) -> tuple[StageChoice, ...]:
    stores = [iter(kind.names) for kind in kinds]
    found = []
    for column in np.flatnonzero(chosen):
        names = [
            itertools.islice(store, int(number))
            for store, number in zip(stores, taken[:, column], strict=True)
        ]
        found.append(
            StageChoice(
                *spans.segments(int(useful[column])), tuple(itertools.chain.from_iterable(names))
            )
        )
    return tuple(sorted(found, key=lambda stage: stage.first))
