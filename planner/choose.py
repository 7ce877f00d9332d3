"""From a request to choices: stages, devices and codecs, the best first.

The first choice whose answers stay accurate enough becomes the plan; the last carries everything in
float32, which changes no answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from contract.codec import encoded_bytes
from contract.errors import PartitionError
from contract.plan import Codec
from contract.prediction import Prediction, SegmentCosts, Verdict
from planner.codec_choice import codec_candidates, relax_codecs, work_bytes
from planner.decide import Decision, StageTimer, decide
from planner.formulate import Site, formulate, stand_ins
from planner.graph import SegmentedGraph
from planner.partition import partition
from planner.predict import predict
from planner.problem import Problem, Solution
from planner.profiler import RUNS_IN_A_TURN, Profile, profile_segments, time_stages
from planner.progress import Progress, silent
from planner.request import PlanRequest
from planner.rules import Rules
from planner.split import boundaries_of
from planner.verdict import reason_for, rules_for, weigh

MEASURED_ROUNDS_MS = 500.0
"""How long the rounds of one measurement of stages may take, unless three take longer."""
MIN_ROUNDS, MAX_ROUNDS = 3, 7


@dataclass(frozen=True)
class Choice:
    """What could be built. ``codecs`` has one entry for each stage's outputs.

    ``prediction`` and ``verdict`` are None where no device is known.
    """

    decision: Decision
    codecs: tuple[Codec, ...]
    site: Site
    prediction: Prediction | None = None
    verdict: Verdict | None = None

    @property
    def is_lossy(self) -> bool:
        """Whether some activation does not travel as it is."""
        return any(codec != "float32" for codec in self.codecs)


_solve = lru_cache(maxsize=64)(partition)
"""The same question comes up several times while one plan is made."""


def choose(
    graph: SegmentedGraph, request: PlanRequest, progress: Progress = silent
) -> list[Choice]:
    """Everything that is worth building, the best first.

    Raises:
        PartitionError: nothing that is asked for is possible; says what would be.
    """
    rules = rules_of(graph, request)
    profile, site, problem = formulate_request(graph, request, rules, progress)
    forced: Codec = "float32" if request.codec == "auto" else request.codec
    problem = with_codecs(problem, graph, dict.fromkeys(inner_edges(problem), forced))
    measure = partial(
        decide,
        segment_ms=profile.segment_ms,
        time_stages=_timer(graph, profile) if request.refine else None,
        solve=_solve,
        progress=progress,
    )
    codecs = codec_of_edges(problem, dict.fromkeys(inner_edges(problem), forced))
    if rules.method == "exact":
        decision, verdict = _decide(problem, rules, codecs, measure, site)
    else:
        decision, verdict = measure(problem, rules), None
    first = _choice(decision, verdict, site, [forced] * (len(decision.stages) - 1))
    if request.codec != "auto" or not site.are_known:
        return [first]
    return [*_with_lossy_codecs(graph, first, rules), first]


def formulate_request(
    graph: SegmentedGraph, request: PlanRequest, rules: Rules, progress: Progress = silent
) -> tuple[Profile, Site, Problem]:
    """This machine's times, the devices by them, and the problem, all activations in float32.

    Raises:
        EngineError: onnxruntime cannot run the model.
    """
    profile = request.profile or profile_segments(
        graph, request.batch_size, request.threads, progress=progress
    )
    count = rules.num_stages or 1
    site = request.site(profile) if request.site else stand_ins(profile.segment_ms, count)
    return profile, site, formulate(graph, site, request.batch_size)


def rules_of(graph: SegmentedGraph, request: PlanRequest) -> Rules:
    """What the request asks of the partitioner.

    Raises:
        PartitionError: there are fewer segments than stages, or no such cut point.
    """
    rules = Rules(
        strategy=request.strategy or "mixed",
        objective=request.objective,
        method=request.partitioner,
        seconds=request.plan_seconds,
    )
    if request.cuts is not None:
        boundaries = tuple(boundaries_of(graph, request.cuts))
        rules = replace(rules, boundaries=boundaries, num_stages=len(boundaries) - 1)
    elif request.num_stages is not None or request.site is None:
        stages = 1 if request.num_stages is None else request.num_stages
        if stages < 1:
            raise PartitionError(f"{stages} stages asked for, expected at least 1")
        if stages > graph.num_segments:
            raise PartitionError(
                f"{stages} stages need {stages - 1} cut points, the model has "
                f"{graph.num_segments - 1}; ask for at most {graph.num_segments} stages"
            )
        rules = replace(rules, num_stages=stages)
    if rules.method != "exact" and rules.num_stages != 1:
        rules = replace(rules, strategy="pipeline")  # what the quick methods can do
    if request.site is None:  # devices are only stood in for: one for each stage
        rules = replace(rules, strategy="single" if rules.num_stages == 1 else "pipeline")
    return rules


def with_codecs(problem: Problem, graph: SegmentedGraph, codecs: Mapping[int, Codec]) -> Problem:
    """The same problem with these inner edges in other codecs than float32."""
    if graph.model.decoding is not None:
        return problem  # hidden states travel as they are
    travel, work = list(problem.edge_bytes), list(problem.edge_work_bytes or problem.edge_bytes)
    for edge, codec in codecs.items():
        spec = graph.cuts[edge - 1].spec
        plain = encoded_bytes("float32", (spec,), problem.batch_size)
        travel[edge] = encoded_bytes(codec, (spec,), problem.batch_size)
        work[edge] = work_bytes(codec, plain)
    return replace(problem, edge_bytes=tuple(travel), edge_work_bytes=tuple(work))


def segment_curve(graph: SegmentedGraph, problem: Problem) -> tuple[SegmentCosts, ...]:
    """The segments as the plan keeps them, with the times of the fastest device."""
    fastest = min(problem.devices, key=lambda device: sum(device.segment_ms))
    names = [*graph.cut_names, ""]
    return tuple(
        SegmentCosts(
            cut=names[segment.index],
            ms=round(fastest.segment_ms[segment.index], 4),
            weight_bytes=segment.weight_bytes,
            output_bytes=segment.output_bytes_per_image * problem.batch_size,
        )
        for segment in graph.segments
    )


def _decide(
    problem: Problem,
    rules: Rules,
    codecs: Sequence[Codec],
    measure: Callable[[Problem, Rules], Decision],
    site: Site,
) -> tuple[Decision, Verdict | None]:
    """Decide by the strategy that is asked for, or by the recommended one."""
    if not site.are_known:
        return measure(problem, rules), None
    chosen = weigh(problem, partial(_solve, problem), rules, codecs, site.based_on).verdict.chosen
    decision = measure(problem, rules_for(chosen, rules))
    solve = partial(_solve, decision.problem)
    weighed = weigh(decision.problem, solve, rules, codecs, site.based_on)
    if weighed.verdict.chosen != chosen:  # its stages are dearer than the whole model's times said
        chosen = weighed.verdict.chosen
        decision = measure(problem, rules_for(chosen, rules))  # corrected once, not twice
    return decision, weighed.verdict.model_copy(update={"chosen": chosen})


def _with_lossy_codecs(graph: SegmentedGraph, first: Choice, rules: Rules) -> list[Choice]:
    """Choices that are better than ``first`` by carrying less, the best first.

    For the objective «latency» batches a second are those of one batch at a time.
    """
    problem, site = first.decision.problem, first.site
    if first.verdict is not None:
        rules = rules_for(first.verdict.chosen, rules)
    solutions: dict[Codec, Solution] = {}

    def decided(packed: Problem, solution: Solution) -> Decision:
        return Decision.of(packed, solution, rules.objective)

    def rate_with(codec: Codec) -> float:
        packed = with_codecs(problem, graph, dict.fromkeys(inner_edges(problem), codec))
        solutions[codec] = _solve(packed, rules)
        return decided(packed, solutions[codec]).rate

    choices = []
    for codec in codec_candidates(rate_with):
        solution = solutions[codec]
        cuts = [stage.end for stage in solution.stages[:-1]]

        def packed(codecs: Sequence[Codec], cuts: Sequence[int] = cuts) -> Problem:
            return with_codecs(problem, graph, dict(zip(cuts, codecs, strict=True)))

        def rate_of(
            codecs: Sequence[Codec],
            packed: Callable[[Sequence[Codec]], Problem] = packed,
            solution: Solution = solution,
        ) -> float:
            return decided(packed(codecs), solution).rate

        codecs = relax_codecs((codec,) * len(cuts), rate_of)
        decision = decided(packed(codecs), solution)
        choices.append(_choice(decision, first.verdict, site, codecs))
    return choices


def _choice(
    decision: Decision, verdict: Verdict | None, site: Site, codecs: Sequence[Codec]
) -> Choice:
    """``codecs``: of every cut of the decision."""
    prediction = None
    if site.are_known:
        cuts = decision.boundaries[1:-1]
        edges = codec_of_edges(decision.problem, dict(zip(cuts, codecs, strict=True)))
        prediction = predict(decision.problem, decision.solution, None, edges, site.based_on)
    if verdict is not None:
        alternatives = tuple(
            alternative.model_copy(update={"prediction": prediction})
            if alternative.strategy == verdict.chosen
            else alternative
            for alternative in verdict.alternatives
        )
        # A codec makes the chosen one better than it was when all were weighed: say so.
        found = {each.strategy: each.prediction for each in alternatives if each.prediction}
        reason = reason_for(verdict.recommended, decision.problem, found, decision.objective)
        verdict = verdict.model_copy(update={"alternatives": alternatives, "reason": reason})
    return Choice(decision, (*codecs, "float32"), site, prediction, verdict)


def inner_edges(problem: Problem) -> range:
    """The edges that a cut may lie on: all but inputs and results."""
    return range(1, problem.num_segments)


def codec_of_edges(problem: Problem, codecs: Mapping[int, Codec]) -> tuple[Codec, ...]:
    """The codec of every edge of a problem, by the codecs of some of them."""
    return tuple(codecs.get(edge, "float32") for edge in range(problem.num_segments + 1))


def _timer(graph: SegmentedGraph, profile: Profile) -> StageTimer:
    rounds = round(MEASURED_ROUNDS_MS / max((RUNS_IN_A_TURN + 1) * profile.whole_ms, 1e-3))
    rounds = min(max(rounds, MIN_ROUNDS), MAX_ROUNDS)

    def measure(ranges: Sequence[tuple[int, int]]) -> Sequence[float]:
        return time_stages(graph, ranges, profile.batch_size, profile.threads, rounds)

    return measure
