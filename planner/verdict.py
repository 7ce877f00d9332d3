"""Which way to use the devices: the four strategies side by side, and why one is recommended."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from contract.errors import PartitionError
from contract.plan import Codec
from contract.prediction import Alternative, Prediction, Strategy, Verdict
from planner.cost_model import memory_bytes
from planner.predict import predict
from planner.problem import MB, Problem, Solution, StageChoice
from planner.rules import Objective, Rules

SIMPLER_WINS_WITHIN = 0.03
"""A simpler strategy is recommended when it is so close to the best: predictions are no better than
that, and fewer parts fail less often."""
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
"""From the simplest."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """The verdict, and the solution behind each alternative that there is."""

    verdict: Verdict
    solutions: Mapping[Strategy, Solution]

    @property
    def chosen(self) -> Solution:
        """The solution of the chosen strategy."""
        return self.solutions[self.verdict.chosen]


def strategy_of(stages: Sequence[StageChoice]) -> Strategy:
    """What a solution is, by its stages."""
    if all(len(stage.devices) == 1 for stage in stages):
        return "single" if len(stages) == 1 else "pipeline"
    return "replicas" if len(stages) == 1 else "mixed"


def weigh(
    problem: Problem,
    solve: Callable[[Rules], Solution],
    rules: Rules,
    codecs: Sequence[Codec],
    based_on: str,
    window: int | None = None,
) -> Weighed:
    """Solve for every strategy, and recommend one.

    What ``rules`` asks for is chosen; «mixed» allows anything, and so leaves the choice to the
    same weighing. Pipelines and mixed plans are looked at with two stages at least, since one makes
    them replicas; a number of stages and fixed cuts bind them, and not the other two.

    Args:
        problem: what everything costs.
        solve: a solution that keeps to rules; raises PartitionError where there is none.
        rules: what the user asked for.
        codecs: see :func:`planner.predict.predict`.
        based_on: see there.
        window: see there.

    Raises:
        PartitionError: no strategy is possible, or not the one that was asked for.
    """
    solutions: dict[Strategy, Solution] = {}
    alternatives: list[Alternative] = []
    errors: dict[Strategy, PartitionError] = {}
    for strategy in STRATEGIES:
        try:
            solution = solve(rules_for(strategy, rules))
            prediction = predict(problem, solution, window, codecs, based_on)
        except PartitionError as error:
            errors[strategy] = error
            alternatives.append(Alternative(strategy=strategy, problem=str(error)))
            continue
        solutions[strategy] = solution
        alternatives.append(Alternative(strategy=strategy, prediction=prediction))
    found = {each.strategy: each.prediction for each in alternatives if each.prediction}
    allowed = _allowed(rules)
    candidates = {name: its for name, its in found.items() if name in allowed}
    if not candidates:
        # The most that was allowed says best what is missing; one device cannot have two stages.
        raise errors[allowed[-1] if len(problem.devices) > 1 else allowed[0]]
    recommended = recommend(found, rules.objective)
    verdict = Verdict(
        alternatives=tuple(alternatives),
        recommended=recommended,
        chosen=recommend(candidates, rules.objective),
        reason=reason_for(recommended, problem, found, rules.objective),
    )
    return Weighed(verdict, solutions)


def reason_for(
    strategy: Strategy,
    problem: Problem,
    found: Mapping[Strategy, Prediction],
    objective: Objective,
) -> str:
    """Why a strategy is recommended, in one sentence with the figures that decided."""
    return f"{strategy}: {_Reason(problem, found, objective).text(strategy)}"


def recommend(found: Mapping[Strategy, Prediction], objective: Objective) -> Strategy:
    """The simplest strategy that is as good as the best, within :data:`SIMPLER_WINS_WITHIN`."""
    if objective == "latency":
        best = min(each.latency_ms for each in found.values())
        limit = best / (1 - SIMPLER_WINS_WITHIN)
        good = {name for name, each in found.items() if each.latency_ms <= limit}
    else:
        best = max(each.images_per_s for each in found.values())
        limit = best * (1 - SIMPLER_WINS_WITHIN)
        good = {name for name, each in found.items() if each.images_per_s >= limit}
    return next(strategy for strategy in STRATEGIES if strategy in good)


def _allowed(rules: Rules) -> tuple[Strategy, ...]:
    """The strategies that are what was asked for."""
    if rules.strategy != "mixed":
        return (rules.strategy,)
    asked = rules.num_stages if rules.boundaries is None else len(rules.boundaries) - 1
    if asked == 1:
        return "single", "replicas"
    if asked is not None or rules.min_stages > 1:
        return "pipeline", "mixed"
    return STRATEGIES


def rules_for(strategy: Strategy, rules: Rules) -> Rules:
    """What ``rules`` means when one strategy is looked at."""
    if strategy in ("single", "replicas"):
        if strategy == rules.strategy:
            return rules
        return replace(rules, strategy=strategy, num_stages=None, boundaries=None, min_stages=1)
    return replace(rules, strategy=strategy, min_stages=max(2, rules.min_stages))


@dataclass(frozen=True)
class _Reason:
    """One sentence with the figures that decided."""

    problem: Problem
    found: Mapping[Strategy, Prediction]
    objective: Objective

    def text(self, chosen: Strategy) -> str:
        parts = [self._what_it_gives(chosen)]
        if "single" not in self.found:
            parts.insert(0, self._why_not_one_device())
        if self._is_beaten(chosen):
            parts.append(f"what is less simple gains less than {SIMPLER_WINS_WITHIN:.0%}")
        limit = self.found[chosen].bottleneck
        if not limit.startswith("stage"):
            parts.append(f"{limit} is the bottleneck")
        carried = self.found[chosen].broker_bytes_per_image / MB
        parts.append(f"the broker carries {figure(carried)} MB {self._each()}")
        return "; ".join(parts)

    def _what_it_gives(self, chosen: Strategy) -> str:
        its = self.found[chosen]
        value = (
            f"{figure(its.latency_ms)} ms for a batch alone"
            if self.objective == "latency"
            else f"{figure(its.images_per_s)} {self.problem.unit}s/s"
        )
        if chosen == "single":
            return f"{its.devices[0].device} alone gives {value}, {self._more_devices()}"
        return f"{_who(chosen, its)} {value}{self._against_others(chosen)}"

    def _each(self) -> str:
        return "an image" if self.problem.unit == "image" else "a token"

    def _is_beaten(self, chosen: Strategy) -> bool:
        """Whether it is recommended for being simple, and one cannot see that from the rest."""
        if chosen == "single":
            return False
        if self.objective == "latency":
            least = min(its.latency_ms for its in self.found.values())
            return least * (1 + 1e-6) < self.found[chosen].latency_ms
        best = max(its.images_per_s for its in self.found.values())
        return best > self.found[chosen].images_per_s * (1 + 1e-6)

    def _more_devices(self) -> str:
        if len(self.problem.devices) == 1:
            return "and there is no other device"
        if self.objective == "latency":
            return f"and no pipeline is more than {SIMPLER_WINS_WITHIN:.0%} quicker"
        return f"and further devices add less than {SIMPLER_WINS_WITHIN:.0%}"

    def _against_others(self, chosen: Strategy) -> str:
        """Beside one device, and beside the best of the other strategies."""
        others = [
            name for name in STRATEGIES if name in self.found and name not in (chosen, "mixed")
        ]
        texts = {
            "single": "one device",
            "replicas": "the replicas",
            "pipeline": "the best pipeline",
        }
        compared = [f"{self._ratio(chosen, name)} {texts[name]}" for name in others]
        if not compared:
            return ""
        *before, last = compared
        return f", {', '.join(before)} and {last}" if before else f", {last}"

    def _ratio(self, chosen: Strategy, other: Strategy) -> str:
        its, their = self.found[chosen], self.found[other]
        of = " that of" if self.objective == "latency" else ""
        ratio = (
            its.latency_ms / their.latency_ms
            if self.objective == "latency"
            else its.images_per_s / their.images_per_s
        )
        return f"{figure(ratio)} x{of}"

    def _why_not_one_device(self) -> str:
        """The whole model on the device that comes nearest to holding it."""
        whole = self.problem.num_segments
        needed = {
            device.name: memory_bytes(
                self.problem, device, 0, whole, prepack=device.unpacked_ms is None
            )
            for device in self.problem.devices
        }
        free = {device.name: device.memory_bytes or 0 for device in self.problem.devices}
        nearest = min(needed, key=lambda name: (needed[name] - free[name], name))
        need, limit = math.ceil(needed[nearest] / MB), free[nearest] // MB
        if self.problem.state_bytes is not None:
            weights, state = self.problem.weights(0, whole), self.problem.state(0, whole)
            return (
                f"the whole model needs {math.ceil(weights / MB):,} MB for weights and "
                f"{math.ceil(state / MB):,} MB for {self.problem.state_words}, with the engine "
                f"{need:,} MB: it does not fit {nearest}'s {limit:,} MB"
            )
        if free[nearest] == max(free.values()):
            return f"the whole model needs {need} MB and no device has more than {limit} MB free"
        return (
            f"the whole model needs {need} MB on {nearest}, which has {limit} MB free and comes "
            "nearest to it"
        )


def figure(value: float) -> str:
    """A figure for people: two digits or more after the first where it is small, no exponent."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def _who(strategy: Strategy, prediction: Prediction) -> str:
    devices = len(prediction.devices)
    if strategy == "replicas":
        return f"{devices} devices with the whole model each give together"
    return f"{devices} devices in {len(prediction.edges) - 1} stages give"
