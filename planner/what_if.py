"""What would change if: fewer devices, other codecs, something bought, another window.

The first three are solutions of a changed problem by the same rules, for the highest rate; the last
is the chosen plan by the simulation. Rates in images a second; a gain of 0.5 is half as much again
as the best plan of the problem as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from pydantic import Field

from contract.errors import PartitionError
from contract.frozen import FrozenModel
from contract.plan import Codec
from contract.prediction import Strategy
from planner.cost_model import batches_per_s, bottleneck
from planner.edge_codecs import CODECS, best_codecs
from planner.problem import Problem, Solution
from planner.progress import Progress, silent
from planner.purchases import Offer, offers
from planner.rules import Rules
from planner.simulation.under_load import JITTER, UnderLoad, WindowRate, under_load, window_rates
from planner.verdict import figure, strategy_of

HELPS_FROM = 0.02
"""A gain below this is nothing: predictions are not that good."""

Solve = Callable[[Problem, Rules], Solution]


class AtMost(FrozenModel):
    """The best plan of at most ``devices`` devices, or why there is none."""

    devices: int = Field(gt=0)
    used: int | None = None
    strategy: Strategy | None = None
    images_per_s: float | None = None
    problem: str | None = None


class CodecRate(FrozenModel):
    """The best plan when every activation between stages travels in this codec."""

    codec: Codec
    strategy: Strategy
    images_per_s: float
    gain: float


class EdgeCodec(FrozenModel):
    """Edge ``k`` carries the inputs of stage ``k``, in this codec."""

    edge: int = Field(gt=0)
    codec: Codec
    bytes_per_batch: int


class EdgeCodecs(FrozenModel):
    """The best codec for each link between stages, in the best of the plans of one codec."""

    edges: tuple[EdgeCodec, ...]
    images_per_s: float
    gain: float


class Purchase(FrozenModel):
    """Something to buy, and the best plan with it."""

    what: str
    images_per_s: float
    gain: float


class WhatIf(FrozenModel):
    """All answers. ``images_per_s`` is the best plan of the problem as it is, by the same rules."""

    images_per_s: float
    scaling: tuple[AtMost, ...]
    codecs: tuple[CodecRate, ...]
    edge_codecs: EdgeCodecs
    purchases: tuple[Purchase, ...]
    advice: str
    windows: tuple[WindowRate, ...]
    under_load: UnderLoad


def what_if(
    problem: Problem,
    solve: Solve,
    rules: Rules,
    solution: Solution,
    with_codec: Callable[[Codec], Problem],
    window: int | None = None,
    jitter: float = JITTER,
    progress: Progress = silent,
) -> WhatIf:
    """Ask everything: one solution for each number of devices, each codec, each thing to buy.

    Args:
        problem: what everything costs.
        solve: the partitioner; raises PartitionError where nothing is possible.
        rules: what the user asked for. The objective is the throughput here in any case.
        solution: the chosen plan, possible by these rules.
        with_codec: the problem when all activations between stages travel in a codec.
        window: batches in flight; None for the client's default.
        jitter: coefficient of variation of computing times in the simulation.
        progress: called as solutions come.
    """
    rules = replace(rules, objective="throughput")
    questions = _Questions(problem, solve, rules, solution, progress)
    scaling = questions.scaling()
    codecs, edge_codecs = questions.codecs({codec: with_codec(codec) for codec in CODECS})
    purchases = questions.purchases()
    progress("what if", 1.0)
    return WhatIf(
        images_per_s=questions.best_rate * problem.batch_size,
        scaling=scaling,
        codecs=codecs,
        edge_codecs=edge_codecs,
        purchases=purchases,
        advice=advise(purchases, bottleneck(problem, questions.best.stages)),
        windows=window_rates(problem, solution),
        under_load=under_load(problem, solution, window, jitter),
    )


def advise(purchases: tuple[Purchase, ...], limit: str) -> str:
    """What to buy next, in one sentence. ``purchases`` begin with the best."""
    if not purchases or purchases[0].gain < HELPS_FROM:
        return f"nothing helps: no purchase gains {HELPS_FROM:.0%}; the bottleneck is {limit}"
    best = purchases[0]
    return (
        f"{best.what} helps most: {figure(best.images_per_s)} images/s, {best.gain:.0%} more; "
        f"the bottleneck is {limit}"
    )


@dataclass
class _Questions:
    """Solves changed problems; ``best`` is the best known plan of the problem as it is."""

    problem: Problem
    solve: Solve
    rules: Rules
    best: Solution
    progress: Progress
    solved: int = 0

    @property
    def best_rate(self) -> float:
        return batches_per_s(self.problem, self.best.stages)

    def scaling(self) -> tuple[AtMost, ...]:
        most = min(len(self.problem.devices), self.rules.max_devices or len(self.problem.devices))
        rows: list[AtMost] = []
        best: Solution | None = None  # what fewer devices can do, more can
        for count in range(1, most + 1):
            try:
                found = self._ask(self.problem, replace(self.rules, max_devices=count))
            except PartitionError as error:
                if best is None:
                    rows.append(AtMost(devices=count, problem=str(error)))
                    continue
                found = best
            best = found if best is None else self._better(best, found)
            rows.append(
                AtMost(
                    devices=count,
                    used=sum(len(stage.devices) for stage in best.stages),
                    strategy=strategy_of(best.stages),
                    images_per_s=self._images_per_s(self.problem, best),
                )
            )
        if best is not None:
            self.best = self._better(self.best, best)
        return tuple(rows)

    def codecs(self, problems: dict[Codec, Problem]) -> tuple[tuple[CodecRate, ...], EdgeCodecs]:
        rows: list[CodecRate] = []
        plans: list[Solution] = []
        for codec, changed in problems.items():
            plan = self._with(changed, self.rules)
            plans.append(plan)
            rate = self._images_per_s(changed, plan)
            rows.append(
                CodecRate(
                    codec=codec,
                    strategy=strategy_of(plan.stages),
                    images_per_s=rate,
                    gain=self._gain(rate),
                )
            )
        best = max(range(len(rows)), key=lambda index: rows[index].images_per_s)
        stages = plans[best].stages
        chosen, batches = best_codecs(self.problem, problems, stages)
        rate = batches * self.problem.batch_size
        edges = tuple(
            EdgeCodec(
                edge=index,
                codec=chosen[stage.first],
                bytes_per_batch=problems[chosen[stage.first]].edge_bytes[stage.first],
            )
            for index, stage in enumerate(stages)
            if index
        )
        return tuple(rows), EdgeCodecs(edges=edges, images_per_s=rate, gain=self._gain(rate))

    def purchases(self) -> tuple[Purchase, ...]:
        rows = [self._purchase(offer) for offer in offers(self.problem)]
        return tuple(sorted(rows, key=lambda row: -row.gain))

    def _purchase(self, offer: Offer) -> Purchase:
        most = self.rules.max_devices
        more = None if most is None else most + offer.devices
        rules = replace(self.rules, max_devices=more)
        rate = self._images_per_s(offer.problem, self._with(offer.problem, rules))
        return Purchase(what=offer.what, images_per_s=rate, gain=self._gain(rate))

    def _with(self, changed: Problem, rules: Rules) -> Solution:
        """The best known plan of a changed problem: the present one may do as well as a new one."""
        try:
            found = self._ask(changed, rules)
        except PartitionError:
            return self.best
        return self._better(found, self.best, changed)

    def _ask(self, problem: Problem, rules: Rules) -> Solution:
        self.solved += 1
        expected = len(self.problem.devices) + len(CODECS) + len(list(offers(self.problem)))
        self.progress("what if", min(0.99, self.solved / (expected + 1)))
        return self.solve(problem, rules)

    def _better(self, one: Solution, other: Solution, problem: Problem | None = None) -> Solution:
        where = problem or self.problem
        rates = [batches_per_s(where, each.stages) for each in (one, other)]
        return other if rates[1] > rates[0] else one

    def _images_per_s(self, problem: Problem, solution: Solution) -> float:
        return batches_per_s(problem, solution.stages) * problem.batch_size

    def _gain(self, images_per_s: float) -> float:
        return images_per_s / (self.best_rate * self.problem.batch_size) - 1
