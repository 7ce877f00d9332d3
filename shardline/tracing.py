"""Gets traces of batches: by listening to a client that feeds the pipeline, or by feeding it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from broker.split import Elsewhere
from broker.transport import Connect
from client.batch import Batch, BatchResult
from client.measure import made_up_batch
from client.pipeline import Pipeline
from client.settings import ClientSettings
from client.watch.observer import Observer
from client.watch.view import ClusterView, PipelineView
from contract.errors import DeliveryError, PlanError
from contract.trace import BatchTrace, ClockOffset, TraceMetrics

POLL_S = 0.1
CLOCK_PATIENCE_S = 2.5
"""Clocks come with the message after next: a client asks for them as soon as it feeds."""
FEED_S = 2.5
"""At least: until the pipeline is full, every clock was asked a few times, and a message is out."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Gathered:
    """Traces of one client, oldest first, and the clocks that it has measured.

    ``model``: name of the plan, None where it was not heard. ``others``: clients that feed, too.
    """

    client: str
    model: str | None
    traces: tuple[BatchTrace, ...]
    clocks: tuple[ClockOffset, ...]
    others: tuple[str, ...] = ()


def listen(
    connect: Connect,
    cluster: str,
    name: str,
    client: str | None,
    batches: int,
    timeout_s: float,
    progress: Progress,
) -> Gathered:
    """Listen until a client has told of so many batches, or the time is up and it told of some.

    Args:
        connect: with an observer's credentials.
        cluster: the cluster to listen to.
        name: of this process at the broker.
        client: whose batches; None takes whoever has told of the most.
        batches: how many.
        timeout_s: how long to wait.
        progress: called as time passes.

    Raises:
        DeliveryError: nobody feeds the pipeline, or who does publishes no traces.
        PlanError: no plan is published.
        BrokerUnreachableError, NotAuthorisedError: no connection.
    """
    started = time.monotonic()
    enough_since: float | None = None
    with Observer(connect, cluster, name) as observer:
        while True:
            view = observer.view()
            chosen = choose(view, client)
            waited_s = time.monotonic() - started
            if chosen is not None and len(chosen.traces) >= batches:
                enough_since = waited_s if enough_since is None else enough_since
                if _knows_clocks(chosen, batches) or waited_s - enough_since > CLOCK_PATIENCE_S:
                    break
            if waited_s > timeout_s:
                break
            have = 0 if chosen is None else len(chosen.traces)
            progress(f"{have} of {batches} batches", min(1.0, have / batches))
            time.sleep(POLL_S)
    if chosen is None or not chosen.traces:
        raise nothing_heard(view, cluster, client, timeout_s)
    others = tuple(p.client for p in view.pipelines if p.is_fresh and p.client != chosen.client)
    model = None if view.plan is None else view.plan.name
    return Gathered(chosen.client, model, chosen.traces[-batches:], chosen.clocks, others)


def choose(view: ClusterView, client: str | None) -> PipelineView | None:
    """The client to show: the one that was asked for, or who has told of the most batches."""
    if client is not None:
        return next((p for p in view.pipelines if p.client == client), None)
    return max(view.pipelines, key=lambda p: len(p.traces), default=None)


def _knows_clocks(chosen: PipelineView, batches: int) -> bool:
    known = {clock.device for clock in chosen.clocks}
    return all(known.issuperset(trace.route) for trace in chosen.traces[-batches:])


def nothing_heard(
    view: ClusterView, cluster: str, client: str | None, waited_s: float
) -> DeliveryError | PlanError:
    """Why there is nothing to show, and what to do."""
    if view.plan is None:
        return PlanError(
            f"no plan is published in cluster {cluster!r} after {waited_s:g} s; run "
            "`shardline publish PLAN`"
        )
    feeding = [p.client for p in view.pipelines if p.is_fresh]
    if client is not None and client not in feeding:
        who = f"; {', '.join(feeding)} does" if feeding else ""
        return DeliveryError(
            f"client {client!r} does not feed the pipeline within {waited_s:g} s{who}"
        )
    if not feeding:
        return DeliveryError(
            f"nothing feeds the pipeline of cluster {cluster!r} within {waited_s:g} s; run "
            "`shardline infer`, or let `shardline trace --feed` feed made-up batches with a "
            "client's credentials"
        )
    return DeliveryError(
        f"{', '.join(feeding)} feeds the pipeline and tells of no batch within {waited_s:g} s: it "
        "runs with --no-traces, no batch has ended, or the broker's access rights are of an "
        "earlier version: run `shardline deploy render` again and copy the broker's folder"
    )


def feed(
    settings: ClientSettings,
    connect: Connect,
    elsewhere: Elsewhere | None,
    batches: int,
    timeout_s: float,
    progress: Progress,
) -> Gathered:
    """Feed made-up batches with a full window until that many were traced.

    Raises:
        DeliveryError: a stage has no ready device, a batch has no result, or none came in time.
        PlanError: no plan is published.
        BrokerUnreachableError, NotAuthorisedError: no connection.
    """
    with Pipeline(settings, connect, elsewhere=elsewhere) as pipeline:
        plan = pipeline.open()
        told: list[TraceMetrics] = []
        pipeline.tracer.on_trace = told.append
        started = time.monotonic()

        def is_done() -> bool:
            passed_s = time.monotonic() - started
            have = _count(told)
            progress("feeding", min(1.0, passed_s / FEED_S, have / batches))
            return passed_s > timeout_s or (passed_s >= FEED_S and have >= batches)

        def work(batch: Batch) -> Iterator[Batch]:
            while not is_done():
                yield batch

        for end in pipeline.run(work(made_up_batch(plan))):
            if not isinstance(end, BatchResult):
                raise DeliveryError(
                    f"batch {end.batch_id} has no result: {end.reason}: {end.detail}"
                )
    # The last message tells of the end, when the pipeline runs empty: only if there is no other.
    full = told[:-1] if _count(told[:-1]) >= batches else told
    traces = [trace for message in full for trace in message.batches]
    if not traces:
        raise DeliveryError(
            f"no batch came back within {timeout_s:g} s; run with a longer --timeout"
        )
    return Gathered(settings.name, plan.name, tuple(traces[-batches:]), full[-1].clocks)


def _count(told: Sequence[TraceMetrics]) -> int:
    return sum(len(message.batches) for message in told)
