"""Hands a plan to the devices: places its stages, hands out their shards, publishes it, waits."""

import time
from collections.abc import Sequence
from pathlib import Path

from broker.mailbox import Mailbox
from broker.transport import Callbacks, Connect, ConnectionSettings
from contract import topics
from contract.blob import BlobRequest, parse_blob
from contract.command import MAX_COMMAND_BYTES, FetchProgress, parse_command
from contract.errors import DeliveryError, ShardError, WireFormatError
from contract.fleet import FleetView, is_live
from contract.plan import Plan, Replica, place
from contract.status import DeviceState, parse_status
from planner.chunks import ChunkSender
from planner.handout import HandOut
from planner.progress import Progress
from shards.source import shard_source

RETAINED_WITHIN_S = 0.3
"""Time for the broker to hand over what it has retained: nothing tells that it was the last."""


class Publisher:
    """A connection of the planner. Use as a context manager."""

    def __init__(self, connect: Connect, cluster: str, name: str) -> None:
        """Connect and listen to the devices.

        Raises:
            BrokerUnreachableError, NotAuthorisedError: no connection.
        """
        self._cluster = cluster
        self._inbox = Mailbox(MAX_COMMAND_BYTES)  # the largest of what devices send us
        self._fleet = FleetView()
        self._name = name
        self._handing_out: HandOut | None = None
        self._connection = connect(
            ConnectionSettings(name=name), Callbacks(on_delivery=self._inbox.put)
        )
        self._chunks = ChunkSender(self._connection, cluster, name)
        for topic_filter in (
            topics.status_filter(cluster),
            topics.answer_filter(cluster, name),
            topics.blob_filter(cluster, name),
        ):
            self._connection.subscribe(topic_filter)

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._connection.close(forget_session=True)

    def place_on_online(self, plan: Plan, timeout_s: float) -> Plan:
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
                return place(plan, [[Replica(device=name)] for name in chosen], self._cluster)
            if time.monotonic() > deadline:
                raise DeliveryError(
                    f"plan {plan.name} has {plan.num_stages} stages, {len(online)} devices are "
                    f"online in cluster {self._cluster!r} ({', '.join(online) or 'none'}) after "
                    f"{timeout_s:g} s; start `shardline stage` on more devices, or plan fewer "
                    "stages"
                )
            self._listen()

    def hand_out(self, plan: Plan, folder: Path, patience_s: float, progress: Progress) -> None:
        """Give every device of a placed plan its shard, unless it has it; the running plan goes on.

        Args:
            folder: the folder that `shardline plan` wrote.
            patience_s: how long a device may get nowhere before this is given up.
            progress: called with each device's share.

        Raises:
            ShardError: a file is not in ``folder``, or a device cannot keep its shard.
            DeliveryError: a device does not answer, or gets no further.
        """
        self._chunks.source = shard_source(plan, folder)
        work = self._handing_out = HandOut(plan, time.monotonic())
        try:
            while work.unfinished():
                now_s = time.monotonic()
                for device in work.due(now_s):
                    topic = topics.command_topic(self._cluster, device, self._name)
                    request = work.fetches[device].model_dump_json().encode()
                    self._connection.publish(topic, request)
                self._listen()
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

    def publish(self, plan: Plan) -> None:
        """Publish the plan, retained, and wait until the broker has it.

        Raises:
            NotAuthorisedError: the broker does not let us.
            DeliveryError: the broker does not acknowledge.
        """
        topic = topics.plan_topic(self._cluster)
        self._settle()
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
            self._listen()

    def _settle(self) -> None:
        """Take in the retained statuses, so that what fails from now on is news."""
        deadline = time.monotonic() + RETAINED_WITHIN_S
        while time.monotonic() < deadline:
            self._listen()

    def _listen(self) -> None:
        delivery = self._inbox.get(timeout_s=0.1)
        if delivery is None:
            return
        try:
            topic = topics.parse_topic(delivery.topic)
            if topic.kind == "status":
                self._fleet.update(parse_status(delivery.payload, topic.sender))
            elif topic.kind == "answer" and self._handing_out is not None:
                answer = parse_command(delivery.payload)
                if isinstance(answer, FetchProgress):
                    self._handing_out.take(topic.sender, answer, time.monotonic())
            elif topic.kind == "blob" and topic.sender and self._handing_out is not None:
                request = parse_blob(delivery.payload)
                if isinstance(request, BlobRequest):
                    self._chunks.serve(request, topic.sender)
        except WireFormatError:
            pass  # somebody else's message on a topic of ours tells us nothing
        delivery.ack()


def place_on(plan: Plan, devices: Sequence[str], cluster: str) -> Plan:
    """One stage for each named device, in the order given.

    Raises:
        PlanError: not one device for each stage, or one named twice.
        SettingsError: a text that cannot be the name of a device.
    """
    names = [topics.check_name("device", device) for device in devices]
    return place(plan, [[Replica(device=name)] for name in names], cluster)
