"""Loads, keeps or drops a device's shard, as the newest plan says.

Called by the thread that computes, between two batches: a shard is never swapped under one.
"""

import time
from collections.abc import Callable
from dataclasses import replace

from broker.self_test import check_packet_size
from broker.split import SplitConnection
from contract import topics
from contract.errors import PlanError, ShardlineError
from contract.plan import Plan, StageSpec, parse_plan
from contract.status import EventKind, ShardState
from stage.announcer import Announcer
from stage.fetcher import Fetcher
from stage.loader import ShardLoader
from stage.memory import release_free_memory
from stage.runner import StageRunner
from stage.work import LoadedStage

EDGE_RETRY_S = 5.0
"""Pause after a plan whose edge brokers do not answer: after a power cut they may start last."""


class PlanFollower:
    """Of one device."""

    def __init__(
        self,
        device: str,
        cluster: str,
        connection: SplitConnection,
        announcer: Announcer,
        runner: StageRunner,
        loader: ShardLoader,
        fetcher: Fetcher,
        report: Callable[[EventKind, str], None],
    ) -> None:
        self._device, self._plan_topic = device, topics.plan_topic(cluster)
        self._connection, self._announcer, self._runner = connection, announcer, runner
        self._loader, self._fetcher, self._report = loader, fetcher, report
        self._unserved: bytes | None = None  # a plan whose edge brokers did not answer
        self._retry_at = 0.0

    def retry_in_s(self) -> float | None:
        """When :meth:`retry` is due; None if every plan so far could be served or refused."""
        return None if self._unserved is None else max(0.0, self._retry_at - time.monotonic())

    def retry(self) -> None:
        """Follow the plan whose edge brokers did not answer once more."""
        if self._unserved is not None:
            self.follow(self._unserved)

    def follow(self, payload: bytes) -> None:
        """Serve what the plan says for this device; empty when the plan was retired.

        A plan that cannot be read changes nothing; one that cannot be served is told in the status.
        """
        try:
            plan = parse_plan(payload, self._plan_topic) if payload else None
        except PlanError as error:
            self._report(EventKind.MESSAGE_REJECTED, str(error))
            return
        spec = plan.stage_of(self._device) if plan is not None else None
        problem = self._reach_the_edges(plan, spec)
        self._unserved = payload if problem else None
        self._retry_at = time.monotonic() + EDGE_RETRY_S
        if plan is None or spec is None:
            self._unload()
            self._announcer.set_shard(ShardState.IDLE)
            return
        replica = plan.replica_of(self._device)
        prepack = replica is None or replica.prepack
        if problem is None and self._keep(plan, spec, prepack):
            return
        self._unload()
        if problem is not None:
            self._fail(plan, spec, problem)
        else:
            self._load(plan, spec, prepack)

    def _keep(self, plan: Plan, spec: StageSpec, prepack: bool) -> bool:
        """Whether what is in memory serves this plan too; from now on it does."""
        loaded = self._runner.loaded
        if loaded is None or (loaded.plan.plan_id, loaded.spec.stage_index, loaded.prepack) != (
            plan.plan_id,
            spec.stage_index,
            prepack,
        ):
            return False
        self._runner.load(
            replace(
                loaded,
                plan=plan,
                spec=spec,
                max_message_bytes=plan.max_message_bytes(),
                earlier_feeders=loaded.feeders,
            )
        )
        return True

    def _unload(self) -> None:
        loaded = self._runner.loaded
        if loaded is None:
            return
        self._runner.load(None)
        loaded.engine.close()
        del loaded
        release_free_memory()

    def _load(self, plan: Plan, spec: StageSpec, prepack: bool) -> None:
        self._announcer.set_shard(ShardState.LOADING, plan, spec)
        self._fetcher.use(frozenset((spec.graph.sha256, spec.weights.sha256)))
        try:
            check_packet_size(plan, self._connection.max_packet_bytes)
            engine = self._loader.load(plan, spec, prepack)
        except ShardlineError as error:
            self._fail(plan, spec, str(error))
            return
        self._runner.load(LoadedStage(plan, spec, engine, plan.max_message_bytes(), prepack))
        self._announcer.set_shard(ShardState.READY, plan, spec)
        self._report(EventKind.SHARD_READY, f"stage {spec.stage_index} of plan {plan.plan_id}")

    def _reach_the_edges(self, plan: Plan | None, spec: StageSpec | None) -> str | None:
        """Open links to the brokers of this stage's edges; what keeps us from it, if anything.

        A language model's tokens come back to the first stage by the edge of the results.
        After a failure the links are those of the plan before: whoever still sends by them is told
        that we are not ready.
        """
        addresses: dict[int, str] = {}
        if plan is not None and spec is not None:
            edges = {spec.stage_index, spec.stage_index + 1}
            if plan.decoding is not None and not spec.stage_index:
                edges.add(plan.num_stages)
            addresses = plan.edge_addresses(edges)
        try:
            self._connection.use(addresses, plan.num_stages if plan is not None else 0)
        except ShardlineError as error:
            return str(error)
        return None

    def _fail(self, plan: Plan, spec: StageSpec, error: str) -> None:
        self._announcer.set_shard(ShardState.FAILED, plan, spec, error)
        self._report(EventKind.SHARD_FAILED, error)
