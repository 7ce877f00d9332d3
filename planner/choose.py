"""From a request to choices: stages, devices and codecs, the best first.

The first choice whose answers stay accurate enough becomes the plan; the last carries everything in
float32, which changes no answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from contract.codec import encoded_bytes
from contract.errors import PartitionError
from contract.plan import Codec
from contract.prediction import Prediction, SegmentCosts, Strategy, Verdict
from planner.codec_choice import codec_candidates, relax, work_bytes
from planner.decide import Decision, StageTimer, decide
from planner.formulate import Site, formulate, stand_ins
from planner.graph import SegmentedGraph
from planner.partition import Rules, partition
from planner.predict import predict
from planner.problem import Problem, StageChoice
from planner.profiler import Profile, profile_segments, time_stages
from planner.progress import Progress, silent
from planner.request import PlanRequest
from planner.split import boundaries_of
from planner.verdict import weigh

MEASURED_ROUNDS_MS = 500.0
"""How long the rounds of one measurement of stages may take, unless three take longer."""
MIN_ROUNDS, MAX_ROUNDS = 3, 9


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


def choose(graph: SegmentedGraph, request: PlanRequest, progress: Progress = silent) -> list[Choice]:
    """Everything that is worth building, the best first.

    Raises:
        PartitionError: nothing that is asked for is possible; says what would be.
    """
    rules = rules_of(graph, request)
    profile = request.profile or profile_segments(
        graph, request.batch_size, request.threads, progress=progress
    )
    count = rules.num_stages or 1
    site = request.site(profile) if request.site else stand_ins(profile.segment_ms, count)
    problem = formulate(graph, site, request.batch_size)
    if request.codec != "auto":
        problem = with_codecs(problem, graph, dict.fromkeys(_inner_edges(problem), request.codec))
    timer = None if request.profile else _timer(graph, profile)
    decision, verdict = _decide(problem, rules, request.strategy, profile, timer, site, progress)
    forced: Codec = "float32" if request.codec == "auto" else request.codec
    first = _choice(decision, verdict, site, [forced] * (len(decision.stages) - 1))
    if request.codec != "auto" or not site.are_known:
        return [first]
    return [*_with_lossy_codecs(graph, first, rules), first]


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
    if request.site is None:  # devices are only stood in for: one for each stage
        rules = replace(rules, strategy="single" if rules.num_stages == 1 else "pipeline")
    return rules


def with_codecs(
    problem: Problem, graph: SegmentedGraph, codecs: Mapping[int, Codec]
) -> Problem:
    """The same problem with these inner edges in other codecs than float32."""
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
    strategy: Strategy | None,
    profile: Profile,
    timer: StageTimer | None,
    site: Site,
    progress: Progress,
) -> tuple[Decision, Verdict | None]:
    """Decide by the recommended strategy, or by the one that was asked for."""
    measured = partial(
        decide, segment_ms=profile.segment_ms, time_stages=timer, progress=progress
    )
    if not site.are_known or rules.boundaries or rules.num_stages or rules.method != "exact":
        decision = measured(problem, rules)
        verdict = _weigh(decision.problem, rules, strategy, site) if site.are_known else None
        return decision, verdict
    verdict = _weigh(problem, rules, strategy, site)
    decision = measured(problem, replace(rules, strategy=verdict.chosen))
    again = _weigh(decision.problem, rules, strategy, site)
    if again.chosen != verdict.chosen:  # the stages turned out dearer than the whole model said
        decision = measured(decision.problem, replace(rules, strategy=again.chosen))
    return decision, again


def _weigh(problem: Problem, rules: Rules, strategy: Strategy | None, site: Site) -> Verdict:
    return weigh(
        problem,
        partial(partition, problem),
        objective=rules.objective,
        seconds=rules.seconds,
        chosen=strategy,
        based_on=site.based_on,
    )


def _with_lossy_codecs(graph: SegmentedGraph, first: Choice, rules: Rules) -> list[Choice]:
    """Choices that are faster than ``first`` by carrying less, the fastest first."""
    problem, site = first.decision.problem, first.site
    rules = replace(rules, strategy=first.verdict.chosen if first.verdict else rules.strategy)
    decisions: dict[Codec, Decision] = {}

    def rate_with(codec: Codec) -> float:
        packed = with_codecs(problem, graph, dict.fromkeys(_inner_edges(problem), codec))
        decisions[codec] = Decision(packed, partition(packed, rules))
        return decisions[codec].rate

    choices = []
    for codec in codec_candidates(first.decision.rate, rate_with):
        decision = decisions[codec]
        cuts = decision.boundaries[1:-1]
        stages = decision.stages

        def rate_of(codecs: Sequence[Codec], cuts: Sequence[int] = cuts, stages: tuple[StageChoice, ...] = stages) -> float:
            mixed = with_codecs(problem, graph, dict(zip(cuts, codecs, strict=True)))
            return Decision.of(mixed, stages).rate

        codecs = relax([codec] * len(cuts), rate_of)
        mixed = with_codecs(problem, graph, dict(zip(cuts, codecs, strict=True)))
        choices.append(_choice(Decision.of(mixed, stages), first.verdict, site, codecs))
    return choices


def _choice(
    decision: Decision, verdict: Verdict | None, site: Site, codecs: Sequence[Codec]
) -> Choice:
    full: tuple[Codec, ...] = (*codecs, "float32")
    prediction = None
    if site.are_known:
        prediction = predict(decision.problem, decision.solution, None, full, site.based_on)
    return Choice(decision, full, site, prediction, verdict)


def _inner_edges(problem: Problem) -> range:
    return range(1, problem.num_segments)


def _timer(graph: SegmentedGraph, profile: Profile) -> StageTimer:
    rounds = round(MEASURED_ROUNDS_MS / max(profile.whole_ms, 1e-3))
    rounds = min(max(rounds, MIN_ROUNDS), MAX_ROUNDS)

    def measure(ranges: Sequence[tuple[int, int]]) -> Sequence[float]:
        return time_stages(graph, ranges, profile.batch_size, profile.threads, rounds)

    return measure
