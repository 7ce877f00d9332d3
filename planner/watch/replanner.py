"""From devices that are left to the plan that they shall run: weighs, and builds if need be.

Nothing here talks to anybody. It runs in a thread of its own, beside the loop of the service; its
progress callback may raise to end it early.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from contract.command import Examination
from contract.errors import ModelError, PartitionError, PlanError
from contract.plan import Plan
from planner.build import build_plan
from planner.choose import Choice, choose, with_codecs
from planner.devices.profile_cache import ProfileCache
from planner.formulate import Site, formulate
from planner.graph import SegmentedGraph, segment_graph
from planner.problem import Problem, Solution, StageChoice
from planner.profiler import Profile
from planner.progress import Progress
from planner.rejoin import as_imported, refuse_decoders, rejoin
from planner.request import PlanRequest
from planner.watch.candidates import (
    as_it_runs,
    codecs_of_cuts,
    moved,
    on_devices,
    placed,
    rate_of,
)
from planner.watch.costs import profile_of_plan, site_of_cache, site_of_plan, with_memory
from planner.watch.family import Built, Family
from planner.watch.reaction import Finding, Need, Rates, Way, choose_way, is_same

log = logging.getLogger(__name__)

SiteOfFile = Callable[[SegmentedGraph, Profile], Site]
"""The devices that a file tells of, for a model and the times of its segments."""


@dataclass(frozen=True)
class Question:
    """What runs, what it lacks, and what is known of the devices that may be used."""

    current: Plan
    finding: Finding
    examinations: Mapping[str, Examination]


@dataclass(frozen=True)
class Proposal:
    """A plan that is built and placed, and why it is better, in words. Rates in images a second."""

    built: Built
    why: str
    images_per_s: float


@dataclass(frozen=True)
class _Terms:
    """All that one question is answered with."""

    graph: SegmentedGraph
    site: Site
    plain: Problem  # every activation as float32

    def problem_of(self, plan: Plan) -> Problem:
        """With the codecs of a plan's cuts."""
        return with_codecs(self.plain, self.graph, codecs_of_cuts(plan))


class Replanner:
    """Answers questions about one family of plans, one at a time."""

    def __init__(
        self,
        family: Family,
        cluster: str,
        *,
        site_of_file: SiteOfFile | None = None,
        cache: ProfileCache | None = None,
        threads: int = 1,
    ) -> None:
        """``site_of_file`` goes before ``cache``, and that before the plan's own figures.

        Raises:
            PlanError: the family is of a language model.
        """
        refuse_decoders(family.base.plan)
        self._family, self._cluster = family, cluster
        self._site_of_file, self._cache = site_of_file, cache or ProfileCache()
        self._threads = threads

    def propose(self, question: Question, progress: Progress) -> Proposal | None:
        """What to run instead; None if nothing is worth the change.

        Raises:
            PartitionError: the devices cannot hold the model in any way; says what they lack.
            ShardlineError: the plan's shards are damaged, or the new ones cannot be written.
        """
        base = self._family.base
        progress("putting the model together", 0.0)
        model = rejoin(base.folder, base.plan)
        graph = segment_graph(model)
        profile = profile_of_plan(base.plan, graph)
        site = self._site(graph, profile, question)
        terms = _Terms(graph, site, formulate(graph, site, base.plan.batch_size))
        current, finding = question.current, question.finding
        here = terms.problem_of(current)
        known_names = {device.name for device in site.devices}
        live = finding.pool & known_names
        same = self._moved(here, current, live)
        built, solution = self._best_known(terms)
        request = self._request(profile, site)
        new, problem = self._best_new(graph, request, progress)
        rates = Rates(
            now=rate_of(here, as_it_runs(current, live)),
            moved=None if same is None else rate_of(here, same),
            known=None
            if built is None or solution is None
            else rate_of(terms.problem_of(built.plan), solution.stages),
            new=None if new is None else _rate(new),
        )
        way = choose_way(finding.need, rates)
        log.info("%s: %s by %s (%s)", finding.why, way.value, site.based_on, rates)
        if way is Way.MOVE and same is not None:
            return self._as_moved(here, question, same, rates, site.based_on)
        if way is Way.KNOWN and built is not None and solution is not None:
            there = self._placed(terms, built, solution, current)
            return None if is_same(there.plan, current) else _proposal(there, "a plan from before")
        if way is Way.NEW and new is not None:
            made = self._build(graph, request, new, progress)
            return None if is_same(made.plan, current) else _proposal(made, "a new plan")
        if problem is not None and finding.need is Need.RECOVER:
            raise problem
        return None

    def _site(self, graph: SegmentedGraph, profile: Profile, question: Question) -> Site:
        """The devices that may be used, by the best figures that there are without measuring.

        Raises:
            PartitionError: the file that was given tells of none of them.
        """
        plan = self._family.base.plan
        devices = {name: question.examinations.get(name) for name in sorted(question.finding.pool)}
        if self._site_of_file is not None:
            site = self._site_of_file(graph, profile)
            mine = tuple(device for device in site.devices if device.name in devices)
            if not mine:
                raise PartitionError(
                    f"the file of --devices tells of none of {', '.join(devices) or 'no device'}; "
                    "name the devices there as they are called in the cluster"
                )
            return replace(site, devices=mine)
        if not devices:
            raise PartitionError("no device is there; start `shardline stage` on some")
        measured = site_of_cache(self._cache, plan, graph.num_segments, devices)
        known = measured or site_of_plan(plan, profile.segment_ms, devices)
        return with_memory(known, question.current, question.examinations)

    def _moved(
        self, problem: Problem, current: Plan, live: frozenset[str]
    ) -> tuple[StageChoice, ...] | None:
        """The stages that run, with spare devices for those that have none; None for nothing."""
        stages = as_it_runs(current, live)
        if all(stage.devices for stage in stages):
            return None
        serving = {device for stage in stages for device in stage.devices}
        return moved(problem, current, live, sorted(live - serving))

    def _best_known(self, terms: _Terms) -> tuple[Built | None, Solution | None]:
        """The plan that is best on these devices, of those that are built."""
        best: tuple[float, Built, Solution] | None = None
        for built in self._family.known():
            if built.boundaries[-1] != terms.graph.num_segments:
                continue
            problem = terms.problem_of(built.plan)
            solution = on_devices(problem, built.boundaries)
            if solution is None:
                continue
            rate = rate_of(problem, solution.stages)
            if best is None or rate > best[0]:  # among equals the one that was asked for
                best = (rate, built, solution)
        return (None, None) if best is None else best[1:]

    def _request(self, profile: Profile, site: Site) -> PlanRequest:
        base = self._family.base.plan
        lossy = any(stage.codec != "float32" for stage in base.stages)
        return PlanRequest(
            name=base.name,
            out_dir=self._family.base.folder,  # until the cuts are known
            batch_size=base.batch_size,
            threads=self._threads,
            site=lambda _profile: site,
            profile=profile,
            refine=False,  # the machine is not idle, and the plan's figures were corrected already
            codec="auto" if lossy else "float32",
            cluster=self._cluster,
        )

    @staticmethod
    def _best_new(
        graph: SegmentedGraph, request: PlanRequest, progress: Progress
    ) -> tuple[Choice | None, PartitionError | None]:
        try:
            return choose(graph, request, progress)[0], None
        except PartitionError as error:
            return None, error

    def _as_moved(
        self,
        problem: Problem,
        question: Question,
        stages: tuple[StageChoice, ...],
        rates: Rates,
        based_on: str,
    ) -> Proposal | None:
        current = question.current
        built = self._family.find(current)
        if built is None:
            raise PlanError(f"plan {current.plan_id} is not below {self._family.base.folder}")
        rate = (rates.moved or 0.0) / problem.batch_size
        plan = placed(
            current,
            problem,
            Solution(stages, rate, rate),
            self._cluster,
            based_on,
            keep=current,
            edge_brokers=current.edge_brokers,
        )
        return _proposal(Built(plan, built.folder), "the same stages")

    def _placed(self, terms: _Terms, built: Built, solution: Solution, current: Plan) -> Built:
        problem = terms.problem_of(built.plan)
        # Other cuts have other edges: then all go by the main broker.
        edges = current.edge_brokers if built.plan.plan_id == current.plan_id else ()
        plan = placed(
            built.plan,
            problem,
            solution,
            self._cluster,
            terms.site.based_on,
            edge_brokers=edges,
        )
        return Built(plan, built.folder)

    def _build(
        self, graph: SegmentedGraph, request: PlanRequest, choice: Choice, progress: Progress
    ) -> Built:
        """Write and verify the shards of a choice.

        Raises:
            PlanError: the folder cannot be written.
            VerificationError: the shards do not compute what those of the base compute.
        """
        base = self._family.base
        names = [device.name for device in choice.site.devices]
        request = replace(
            request, out_dir=self._family.folder_for(choice.decision.boundaries, names)
        )
        imported = as_imported(base.folder, base.plan, graph.model, self._threads)
        try:
            plan = build_plan(imported, graph, request, progress)
        except OSError as error:
            raise PlanError(
                f"{request.out_dir}: cannot write a new plan ({error.strerror or error}); the "
                "folder of the plan must be writable, and have room for the model once more"
            ) from error
        made = Built(plan, request.out_dir / request.name)
        self._family.tidy(keep=made.folder)
        return made


def _rate(choice: Choice) -> float:
    if choice.prediction is None:
        raise ModelError("a plan for known devices has a prediction")
    return choice.prediction.images_per_s


def _proposal(built: Built, what: str) -> Proposal:
    plan = built.plan
    rate = plan.prediction.images_per_s if plan.prediction is not None else 0.0
    stages = "1 stage" if plan.num_stages == 1 else f"{plan.num_stages} stages"
    devices = len({r.device for spot in plan.placement for r in spot.replicas})
    where = "1 device" if devices == 1 else f"{devices} devices"
    return Proposal(built, f"{what}: {stages} on {where}", rate)
