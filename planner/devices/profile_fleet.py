"""Lets the devices of a fleet measure a model: who is there, what each can hold, times and links.

Compute is measured on one device of each kind, all kinds at once; links one device after the other,
then all together, which shows what the broker can carry.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunningError
from functools import partial
from typing import TypeVar

from broker.transport import Callbacks, Connect, ConnectionSettings, Delivery
from contract import topics
from contract.command import Examination, Examine, LinkProbe, ProbeLink
from contract.errors import DeliveryError, WireFormatError
from contract.fleet import FleetView
from contract.profile import FleetProfile
from contract.status import DeviceState, ShardState, parse_status
from planner.devices.dialogue import Dialogue
from planner.devices.measure_device import ProfileRequest, measure_device, new_id
from planner.devices.profile_cache import KindTimings, ProfileCache, TimingsKey
from planner.devices.profile_report import (
    broker_figures,
    describe_device,
    kind_of,
    timings_key,
    usable_memory,
)
from planner.graph import SegmentedGraph
from planner.progress import Progress, silent

EXAMINE_PATIENCE_S = 15.0
PATIENCE_S = 60.0
"""A device that measures says so every two seconds, on a busy board a little later."""
PROBE_PATIENCE_S = 60.0
"""Beyond the time that a probe was asked to take: it answers at its end only."""
SETTLE_S = 0.5
"""For the retained statuses of all devices to come in."""

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class FleetProfiler:
    """A connection of the planner. Use as a context manager."""

    def __init__(
        self, connect: Connect, cluster: str, name: str, cache: ProfileCache | None = None
    ) -> None:
        """Connect and listen to the devices.

        Raises:
            BrokerUnreachableError, NotAuthorisedError: no connection.
        """
        self._cluster, self._name = cluster, name
        self._cache = cache or ProfileCache()
        self._fleet = FleetView()
        self._dialogues: dict[str, Dialogue] = {}
        self._stopping = threading.Event()
        self._connection = connect(
            ConnectionSettings(name=name), Callbacks(on_delivery=self._on_delivery)
        )
        for topic_filter in (
            topics.status_filter(cluster),
            topics.answer_filter(cluster, name),
            topics.blob_filter(cluster, name),
        ):
            self._connection.subscribe(topic_filter)

    def __enter__(self) -> "FleetProfiler":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stopping.set()
        self._connection.close(forget_session=True)

    def profile(
        self,
        graph: SegmentedGraph,
        request: ProfileRequest,
        timeout_s: float,
        progress: Progress = silent,
    ) -> FleetProfile:
        """Measure ``graph`` on the devices.

        Args:
            graph: the canonical model in segments.
            request: what to measure.
            timeout_s: how long to wait for the devices to be online.
            progress: called with what is being done.

        Raises:
            DeliveryError: a device is not there, or does not answer.
            ShardError: a device cannot keep the graph.
            EngineError: a device cannot run the model; says which and why.
        """
        progress("looking for devices", 0.0)
        devices = self._wait_for_devices(request.devices, timeout_s)
        for device in devices:
            self._dialogues[device] = Dialogue(
                self._connection, self._cluster, self._name, device, self._fleet, self._stopping
            )
        found = dict(zip(devices, self._all_at_once(devices, self._examine), strict=True))
        timings = self._timings(graph, request, found, progress)
        alone = []
        for index, device in enumerate(devices):
            progress(f"probing the link of {device}", 0.8 + 0.15 * index / len(devices))
            alone.append(
                self._probe(device, ProbeLink(request_id=new_id(), seconds=request.probe_s))
            )
        progress("probing all links at once", 0.95)
        together = self._all_at_once(
            devices,
            lambda device: self._probe(
                device,
                ProbeLink(request_id=new_id(), seconds=request.probe_s, only_through=True),
            ),
        )
        broker = broker_figures(alone, together)
        progress("probing all links at once", 1.0)
        return FleetProfile(
            digest=graph.model.info.digest,
            model=graph.model.info.name,
            batch_sizes=tuple(sorted(set(request.batch_sizes))),
            devices=tuple(
                describe_device(device, found[device], timings[kind_of(found[device])], link)
                for device, link in zip(devices, alone, strict=True)
            ),
            broker_bytes_per_s=broker.bytes_per_s,
            broker_saturated=broker.saturated,
            time_unix_s=round(time.time(), 3),
        )

    def _timings(
        self,
        graph: SegmentedGraph,
        request: ProfileRequest,
        found: dict[str, Examination],
        progress: Progress,
    ) -> dict[str, list[KindTimings]]:
        """Times of each kind for every batch size: from the cache, or measured."""
        timings: dict[str, list[KindTimings]] = {}
        missing: list[tuple[str, TimingsKey]] = []
        for kind, device in self._representatives(found).items():
            timings[kind] = []
            for batch_size in sorted(set(request.batch_sizes)):
                key = timings_key(graph.model.info.digest, found[device], batch_size)
                kept = None if request.refresh else self._cache.get(key)
                if kept is not None and _suffices(kept, graph, request):
                    timings[kind].append(kept)
                else:
                    missing.append((device, key))
        shares = dict.fromkeys((device for device, _ in missing), 0.0)

        def tell(device: str, share: float) -> None:
            shares[device] = share
            progress(f"measuring on {device}", 0.8 * sum(shares.values()) / len(shares))

        def measure(device: str) -> list[KindTimings]:
            keys = [key for name, key in missing if name == device]
            timings = measure_device(
                self._dialogues[device], graph, found[device], keys, request, partial(tell, device)
            )
            for one in timings:
                self._keep(one)
            return timings

        chosen = list(shares)
        for measured in self._all_at_once(chosen, measure):
            for one in measured:
                timings[one.key.kind].append(one)
        return timings

    def _representatives(self, found: dict[str, Examination]) -> dict[str, str]:
        """For each kind the device to measure: an idle one before others, then most memory."""

        def rank(device: str) -> tuple[bool, int, str]:
            status = self._fleet.get(device)
            idle = status is not None and status.shard is ShardState.IDLE
            return (not idle, -usable_memory(found[device]), device)

        chosen: dict[str, str] = {}
        for device in sorted(found, key=rank):
            chosen.setdefault(kind_of(found[device]), device)
        return chosen

    def _keep(self, timings: KindTimings) -> None:
        if timings.busy:
            log.warning(
                "device %s held a shard while it measured: its times may be too long, and are not "
                "kept for the next time",
                timings.measured_on,
            )
        else:
            self._cache.put(timings)

    def _examine(self, device: str) -> Examination:
        request = Examine(request_id=new_id())
        return self._dialogues[device].ask(request, Examination, EXAMINE_PATIENCE_S)

    def _probe(self, device: str, probe: ProbeLink) -> LinkProbe:
        """What came of a probe; one that failed costs a warning and the link's figures."""
        try:
            answer = self._dialogues[device].ask(probe, LinkProbe, probe.seconds + PROBE_PATIENCE_S)
        except DeliveryError as error:
            if self._stopping.is_set():
                raise
            answer = LinkProbe(request_id=probe.request_id, error=str(error)[:2000])
        if answer.error is not None:
            log.warning("the link of %s is not known: %s", device, answer.error)
        return answer

    def _wait_for_devices(self, wanted: Sequence[str] | None, timeout_s: float) -> list[str]:
        deadline = time.monotonic() + timeout_s
        settled = time.monotonic() + SETTLE_S
        while True:
            online = sorted(
                status.device
                for status in self._fleet.statuses()
                if status.state is DeviceState.ONLINE
            )
            missing = [device for device in wanted or () if device not in online]
            now_s = time.monotonic()
            if now_s > settled and online and not missing:
                return list(dict.fromkeys(wanted)) if wanted is not None else online
            if now_s > deadline:
                states = ", ".join(f"{d} is {self._fleet.describe(d)}" for d in missing)
                raise DeliveryError(
                    f"{states or 'no device is online'} in cluster {self._cluster!r} after "
                    f"{timeout_s:g} s; start `shardline stage` on these devices"
                )
            time.sleep(0.05)

    def _all_at_once(self, devices: Sequence[str], work: Callable[[str], Result]) -> list[Result]:
        """Do the same with several devices, each in a thread; the first failure ends it."""
        if not devices:
            return []
        pool = ThreadPoolExecutor(len(devices), thread_name_prefix="profile")
        try:
            futures = [pool.submit(work, device) for device in devices]
            while not all(future.done() for future in futures):
                for future in futures:
                    _raise_early(future)
            return [future.result() for future in futures]
        except BaseException:
            self._stopping.set()  # Ctrl-C, or a failure of one: nobody waits for the others
            raise
        finally:
            pool.shutdown(wait=True)

    def _on_delivery(self, delivery: Delivery) -> None:
        """On the network thread: statuses are small, the rest is for the device's own thread."""
        try:
            topic = topics.parse_topic(delivery.topic)
            if topic.kind == "status":
                self._fleet.update(parse_status(delivery.payload, topic.sender))
        except WireFormatError:
            delivery.ack()
            return  # somebody else's message on a topic of ours tells us nothing
        dialogue = self._dialogues.get(topic.sender or "")
        if topic.kind in ("answer", "blob") and dialogue is not None:
            dialogue.on_delivery(delivery)
        else:
            delivery.ack()


def _raise_early(future: "Future[Result]") -> None:
    """Wait a little for it; if it failed, raise why."""
    try:
        future.result(timeout=0.1)
    except StillRunningError:
        if future.done():
            raise


def _suffices(kept: KindTimings, graph: SegmentedGraph, request: ProfileRequest) -> bool:
    """Whether what was kept answers the request."""
    sustained = request.sustained_s == 0 or kept.sustained_share is not None
    return len(kept.timings.segment_ms) == graph.num_segments and sustained
