"""Hands a plan to the devices: places its stages, hands out their shards, publishes it, waits."""

import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from broker.drop_watch import describe_drops, watch_drops
from broker.mailbox import Connected, Mailbox
from broker.reporter import EventReporter
from broker.self_test import SelfTest, check_packet_size
from broker.transport import Callbacks, Connect, Connection, ConnectionSettings, Delivery
from contract import topics
from contract.blob import BlobRequest, parse_blob
from contract.command import (
    MAX_COMMAND_BYTES,
    Examination,
    Examine,
    FetchProgress,
    parse_command,
)
from contract.errors import BrokerError, DeliveryError, ShardError, WireFormatError
from contract.fleet import FleetView, is_live
from contract.plan import MAX_PLAN_BYTES, EdgeBroker, Plan, Replica, place
from contract.status import DeviceState, DeviceStatus, EventKind, parse_status
from planner.chunks import ChunkSender
from planner.handout import HandOut
from planner.progress import Progress
from shards.source import shard_source

RETAINED_WITHIN_S = 0.3
"""Time for the broker to hand over what it has retained: nothing tells that it was the last."""
SELF_TEST_WITHIN_S = 30.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Watcher:
    """What whoever watches a fleet wants to hear, always on the thread that owns the publisher.

    ``on_status``: a device's status, and whether it comes from the broker's memory. ``on_sign``: a
    device has just published metrics. ``on_plan``: a message on the plan topic, and whether the
    broker remembered it. ``on_connected``: the connection stands (again).
    """

    on_status: Callable[[DeviceStatus, bool], None]
    on_sign: Callable[[str], None]
    on_plan: Callable[[bytes, bool], None]
    on_connected: Callable[[], None]


class Publisher:
    """A connection of the planner. Use as a context manager."""

    def __init__(
        self, connect: Connect, cluster: str, name: str, watcher: Watcher | None = None
    ) -> None:
        """Connect and listen to the devices.

        With a ``watcher`` it also listens to the plan's topic and to the devices' metrics.

        Raises:
            BrokerUnreachableError, NotAuthorisedError: no connection.
            NotAuthorisedError: the broker keeps from us what is ours to read.
        """
        self._cluster = cluster
        # The largest of what devices send us, or of what a watcher hears.
        self._inbox = Mailbox(max(MAX_COMMAND_BYTES, MAX_PLAN_BYTES if watcher else 0))
        self._fleet = FleetView()
        self._name, self._watcher = name, watcher
        self._handing_out: HandOut | None = None
        self._asked: str | None = None  # the request of an examination that is under way
        self._examined: dict[str, Examination] = {}
        self_test = SelfTest(name, topics.planner_self_topics(cluster, name))
        callbacks = Callbacks(
            on_delivery=self._inbox.put,
            on_connected=lambda _session_present: self._inbox.note(Connected()),
            on_failed=self._inbox.note,
        )
        self._connection = connect(
            ConnectionSettings(name=name),
            watch_drops(self_test.wrap(callbacks), self._note_dropped),
        )
        self._reporter = EventReporter(cluster, name, self._connection)
        self._chunks = ChunkSender(self._connection, cluster, name)
        for topic_filter in (
            topics.status_filter(cluster),
            topics.answer_filter(cluster, name),
            topics.blob_filter(cluster, name),
            topics.BROKER_DROPPED,
            *((topics.plan_topic(cluster), topics.metrics_filter(cluster)) if watcher else ()),
        ):
            self._connection.subscribe(topic_filter)
        try:
            self_test.run(self._connection, timeout_s=SELF_TEST_WITHIN_S)
        except BrokerError:
            self._connection.close(forget_session=True)
            raise

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.close(forget_session=True)

    @property
    def connection(self) -> Connection:
        """For whoever has more to say to the broker under this name."""
        return self._connection

    @property
    def fleet(self) -> FleetView:
        """What the devices say of themselves."""
        return self._fleet

    def place_on_online(
        self, plan: Plan, timeout_s: float, edge_brokers: Sequence[EdgeBroker] = ()
    ) -> Plan:
        """One stage for each device that is online, in the order of their names.

        Raises:
            DeliveryError: fewer devices than stages are online when the time is up.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            online = sorted(
                status.device
                for status in self._fleet.statuses()
                if status.state is DeviceState.ONLINE
            )
            if len(online) >= plan.num_stages:
                chosen = online[: plan.num_stages]
                replicas = [[Replica(device=name)] for name in chosen]
                return place(plan, replicas, self._cluster, edge_brokers)
            if time.monotonic() > deadline:
                raise DeliveryError(
                    f"plan {plan.name} has {plan.num_stages} stages, {len(online)} devices are "
                    f"online in cluster {self._cluster!r} ({', '.join(online) or 'none'}) after "
                    f"{timeout_s:g} s; start `shardline stage` on more devices, or plan fewer "
                    "stages"
                )
            self.listen()

    def hand_out(
        self,
        plan: Plan,
        folder: Path,
        patience_s: float,
        progress: Progress,
        devices: Collection[str] | None = None,
    ) -> None:
        """Give every device of a placed plan its shard, unless it has it; the running plan goes on.

        Args:
            plan: placed.
            folder: the folder that `shardline plan` wrote.
            patience_s: how long a device may get nowhere before this is given up.
            progress: called with each device's share.
            devices: only these of the plan's; None for all.

        Raises:
            ShardError: a file is not in ``folder``, or a device cannot keep its shard.
            DeliveryError: a device does not answer, or gets no further.
        """
        self._chunks.source = shard_source(plan, folder)
        work = self._handing_out = HandOut(plan, time.monotonic(), devices)
        try:
            while work.unfinished():
                now_s = time.monotonic()
                for device in work.due(now_s):
                    topic = topics.command_topic(self._cluster, device, self._name)
                    request = work.fetches[device].model_dump_json().encode()
                    self._connection.publish(topic, request)
                self.listen()
                failure = work.failure()
                if failure is not None:
                    raise ShardError(failure)
                for device in work.fetches:
                    progress(f"shard for {device}", work.share(device))
                stuck = work.stuck(now_s, patience_s)
                if stuck:
                    states = ", ".join(f"{d} is {self._fleet.describe(d)}" for d in stuck)
                    raise DeliveryError(
                        f"no progress for {patience_s:g} s: {states}; start `shardline stage` on "
                        "these devices and look at their logs (nothing was published: the plan "
                        "before goes on)"
                    )
        finally:
            self._handing_out = None

    def examine(self, devices: Collection[str], patience_s: float) -> Mapping[str, Examination]:
        """What these devices say of their machines, of as many as answer in time."""
        request = Examine(request_id=secrets.token_hex(8))
        self._asked, self._examined = request.request_id, {}
        for device in sorted(devices):
            topic = topics.command_topic(self._cluster, device, self._name)
            self._connection.publish(topic, request.model_dump_json().encode())
        deadline = time.monotonic() + patience_s
        while set(devices) - self._examined.keys() and time.monotonic() < deadline:
            self.listen()
        self._asked = None
        return {name: its for name, its in self._examined.items() if name in devices}

    def publish(self, plan: Plan) -> None:
        """Publish the plan, retained, and wait until the broker has it.

        Raises:
            NotAuthorisedError: the broker does not let us.
            MessageTooLargeError: the broker would not take the plan's batches.
            DeliveryError: the broker does not acknowledge.
        """
        check_packet_size(plan, self._connection.max_packet_bytes)
        topic = topics.plan_topic(self._cluster)
        self.settle()
        self._fleet.forget_failures()
        future = self._connection.publish(topic, plan.to_message().encode(), retain=True)
        try:
            future.result(timeout=10)
        except TimeoutError:
            raise DeliveryError(f"{topic}: the broker has not acknowledged the plan") from None

    def wait_until_ready(self, plan: Plan, timeout_s: float, progress: Progress) -> None:
        """Wait until every device of the plan has its shard in memory.

        Raises:
            ShardError: a device cannot load its shard; says which and why.
            DeliveryError: some are not ready in time; says which and what they do instead.
        """
        devices = [r.device for spot in plan.placement for r in spot.replicas]
        deadline = time.monotonic() + timeout_s
        while True:
            ready = [d for d in devices if is_live(self._fleet.get(d), plan)]
            progress("waiting for the devices", len(ready) / len(devices))
            if len(ready) == len(devices):
                return
            failure = self._fleet.failure(plan)
            if failure is not None:
                raise ShardError(failure)
            if time.monotonic() > deadline:
                missing = ", ".join(
                    f"{d} is {self._fleet.describe(d)}" for d in devices if d not in ready
                )
                raise DeliveryError(
                    f"not ready after {timeout_s:g} s: {missing}; start `shardline stage` on these "
                    "devices and look at their logs (the plan stays published until you publish "
                    "another)"
                )
            self.listen()

    def _note_dropped(self, count: int) -> None:
        self._reporter.report(EventKind.MESSAGES_DROPPED, describe_drops(count, "the broker"))

    def settle(self) -> None:
        """Take in what is retained, so that what is heard from now on is news."""
        deadline = time.monotonic() + RETAINED_WITHIN_S
        while time.monotonic() < deadline:
            self.listen()

    def listen(self) -> None:
        """Take in one message, if one comes soon."""
        heard = self._inbox.get(timeout_s=POLL_S)
        if heard is None:
            self._reporter.flush()
        elif isinstance(heard, BrokerError):
            raise heard
        elif isinstance(heard, Connected):
            if self._watcher is not None:
                self._watcher.on_connected()
        else:
            with suppress(WireFormatError):  # somebody else's message on a topic of ours
                self._take(topics.parse_topic(heard.topic), heard)
            heard.ack()

    def _take(self, topic: topics.Topic, delivery: Delivery) -> None:
        watcher = self._watcher
        if topic.kind == "status":
            status = parse_status(delivery.payload, topic.sender)
            self._fleet.update(status)
            if watcher is not None:
                watcher.on_status(status, delivery.retained)
        elif topic.kind == "answer":
            self._take_answer(topic.sender, delivery.payload)
        elif topic.kind == "blob" and topic.sender and self._handing_out is not None:
            request = parse_blob(delivery.payload)
            if isinstance(request, BlobRequest):
                self._chunks.serve(request, topic.sender)
        elif topic.kind == "metrics" and topic.sender and watcher is not None:
            watcher.on_sign(topic.sender)
        elif topic.kind == "plan" and watcher is not None:
            watcher.on_plan(delivery.payload, delivery.retained)

    def _take_answer(self, sender: str | None, payload: bytes) -> None:
        if self._handing_out is None and self._asked is None:
            return
        answer = parse_command(payload)
        if isinstance(answer, FetchProgress) and self._handing_out is not None:
            self._handing_out.take(sender, answer, time.monotonic())
        elif isinstance(answer, Examination) and sender and answer.request_id == self._asked:
            self._examined[sender] = answer


def place_on(plan: Plan, devices: Sequence[str], cluster: str) -> Plan:
    """One stage for each named device, in the order given.

    Raises:
        PlanError: not one device for each stage, or one named twice.
        SettingsError: a text that cannot be the name of a device.
    """
    names = [topics.check_name("device", device) for device in devices]
    return place(plan, [[Replica(device=name)] for name in names], cluster)
