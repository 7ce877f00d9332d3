"""What the harness puts into a stage's process: points to crash at, and mechanisms switched off."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

import contract.activation
import shards.reader
import stage.loader
import stage.runner
from broker.connection import PahoConnection
from broker.transport import Delivery
from contract import topics
from contract.errors import WireFormatError
from contract.plan import parse_plan
from contract.status import ShardState
from stage.agent import StageAgent
from stage.plan_follower import PlanFollower
from stage.runner import StageRunner
from tests.faults.patching import Context, patch

POINTS = (
    "received",  # on the network thread, not queued yet
    "taken",  # by the compute thread
    "checked",  # header, codec and plan fit
    "computing",
    "computed",
    "publishing",
    "published",  # handed to the connection; the broker has not acknowledged
    "confirmed",  # the broker has the output, and still has the input
    "acknowledging",
    "acknowledged",
)
"""The states of one batch at one stage, in order, in each of which a stage may die."""
LOSING_POINTS = POINTS[1:6]
"""Those at which the batch exists nowhere but in this process, once its input is acknowledged."""
POISON = 255
"""An image of this value in every pixel is poison to a stage with that patch."""


def watch(context: Context) -> None:
    """What every stage under test has: crash points, and a log of what it computed."""
    crash = context.triggers.crash_at
    log = os.open(
        context.triggers.folder / f"computes.{context.name}",
        os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    )

    def at(point: str) -> None:
        crash(f"{context.name}.{point}")

    def process(original: Any, runner: StageRunner, *arguments: Any) -> None:
        at("taken")
        original(runner, *arguments)

    def run(original: Any, runner: StageRunner, key: Any, activation: Any, *rest: Any) -> None:
        at("checked")
        header = activation.header
        line = f"{header.stage_index} {header.batch_id.epoch:016x} {header.batch_id.seq}\n"
        os.write(log, line.encode())  # with one system call: it outlives us
        original(runner, key, activation, *rest)

    def publish(original: Any, runner: StageRunner, *arguments: Any) -> None:
        at("publishing")
        original(runner, *arguments)
        at("published")

    def published(original: Any, runner: StageRunner, *arguments: Any) -> None:
        at("confirmed")
        original(runner, *arguments)

    def acknowledge(original: Any, deliveries: list[Delivery]) -> None:
        at("acknowledging")
        original(deliveries)
        at("acknowledged")

    around_deliveries(context, lambda _delivery: at("received"))
    context.wrap(StageRunner, "process", process)
    context.wrap(StageRunner, "_run", run)
    context.wrap(StageRunner, "_publish", publish)
    context.wrap(StageRunner, "_published", published)
    context.wrap(stage.runner, "_acknowledge", acknowledge)
    around_engine(context, lambda: at("computing"), lambda: at("computed"))


def around_deliveries(context: Context, before: Callable[[Delivery], None]) -> None:
    """Do something with every input on the network thread, before the stage hears of it."""

    def connect(original: Any, self: Any, address: Any, settings: Any, callbacks: Any) -> None:
        def hear(delivery: Delivery) -> None:
            if is_input(delivery):
                before(delivery)
            callbacks.on_delivery(delivery)

        original(self, address, settings, replace(callbacks, on_delivery=hear))

    context.wrap(PahoConnection, "__init__", connect)


def is_input(delivery: Delivery) -> bool:
    try:
        return topics.parse_topic(delivery.topic).kind == "input"
    except WireFormatError:
        return False


class WatchedEngine:
    """An engine with something before and after each run."""

    def __init__(self, inner: Any, before: Any, after: Any) -> None:
        self._inner, self._before, self._after = inner, before, after
        self.name, self.version = inner.name, inner.version

    def run(self, inputs: Any) -> Any:
        self._before(inputs)
        outputs = self._inner.run(inputs)
        self._after(inputs)
        return outputs

    def close(self) -> None:
        self._inner.close()


def around_engine(context: Context, before: Any = None, after: Any = None) -> None:
    """Let every engine that is loaded from now on do this around each run."""

    def load(original: Any, *arguments: Any) -> WatchedEngine:
        return WatchedEngine(
            original(*arguments),
            lambda _inputs: before() if before else None,
            lambda _inputs: after() if after else None,
        )

    context.wrap(stage.loader, "load_engine", load)


@patch
def slow(context: Context, milliseconds: str) -> None:
    """Each run takes so much longer. In the middle of it the harness may hold it."""
    name, triggers = context.name, context.triggers

    def before() -> None:
        time.sleep(float(milliseconds) / 1000)
        if triggers.take(f"hold.{name}"):
            triggers.set(f"held.{name}")
            time.sleep(60)  # until it is killed

    around_engine(context, before)


@patch
def poison(context: Context, _argument: str) -> None:
    """An image of 255 in every pixel ends the process: ``exit``, ``segv`` or ``kill``, as asked."""
    way = context.triggers.folder / "poison"

    def before(inputs: Any) -> None:
        tensor = next(iter(inputs.values()))
        if tensor.dtype != np.uint8 or not len(tensor) or not bool((tensor == POISON).all()):
            return
        how = way.read_text() if way.exists() else "kill"
        if how == "exit":
            os._exit(77)
        os.kill(os.getpid(), signal.SIGSEGV if how == "segv" else signal.SIGKILL)
        time.sleep(10)

    def load(original: Any, *arguments: Any) -> WatchedEngine:
        return WatchedEngine(original(*arguments), before, lambda _inputs: None)

    context.wrap(stage.loader, "load_engine", load)


@patch
def balloon(context: Context, megabytes: str) -> None:
    """When asked, something in the same container takes all the memory that there is."""
    name, triggers, taken = context.name, context.triggers, []

    def before() -> None:
        if triggers.take(f"balloon.{name}"):
            for _ in range(int(megabytes)):
                taken.append(np.ones(1_000_000, np.uint8))
            taken.clear()  # the limit was higher: nothing happened

    around_engine(context, before)


@patch
def deaf(context: Context, seconds: str) -> None:
    """A later plan reaches the memory late: the status says the new one, the old one computes."""
    first: list[str] = []
    until: list[float] = []
    held: list[bytes] = []

    def follow(original: Any, follower: PlanFollower, payload: bytes) -> None:
        plan = parse_plan(payload, "plan") if payload else None
        if plan is None or not first or plan.plan_id == first[0]:
            first[:] = [plan.plan_id] if plan is not None else []
            original(follower, payload)
            return
        held[:] = [payload]
        until[:] = [time.monotonic() + float(seconds)]
        follower._announcer.set_shard(ShardState.READY, plan, plan.stage_of(context.name))

    def process(original: Any, agent: StageAgent, received: Any) -> None:
        original(agent, received)
        if held and time.monotonic() > until[0]:
            payload = held.pop()
            first.clear()
            agent._follower.follow(payload)

    context.wrap(PlanFollower, "follow", follow)
    context.wrap(StageAgent, "_process", process)


# Controls: a mechanism of the product switched off.


@patch
def acknowledge_at_receipt(context: Context, _argument: str) -> None:
    """The input is acknowledged before anything is done with it."""
    around_deliveries(context, lambda delivery: delivery.ack())


@patch
def trust_shards(context: Context, _argument: str) -> None:
    """No file is hashed before it is loaded."""
    context.replace(shards.reader, "_check_file", lambda _path, _expected: None)


@patch
def trust_plans(context: Context, _argument: str) -> None:
    """Batches of any plan are computed with whatever is loaded, even a stale one."""

    def refusal(original: Any, runner: StageRunner, address: Any, header: Any) -> Any:
        found = original(runner, address, header)
        return None if found and found[0] in ("plan_mismatch", "stale") else found

    context.wrap(StageRunner, "_refusal", refusal)


@patch
def trust_headers(context: Context, _argument: str) -> None:
    """Memory for a tensor is taken as its header says, before that is checked."""

    def parse(original: Any, document: Any, payload: bytes, start: int) -> Any:
        for entry in document.values():
            count = int(np.prod([float(size) for size in entry["shape"]]))
            np.full(min(count, 300_000_000), 1, np.uint8)
        return original(document, payload, start)

    context.wrap(contract.activation, "_parse_tensors", parse)


@patch
def trust_bytes(context: Context, _argument: str) -> None:
    """No checksum is compared: what came is taken for what was sent."""
    # The decoder compares with what it computes; computed over nothing but the message's own words.

    def decode(original: Any, payload: bytes, max_bytes: int | None = None) -> Any:
        forged = bytearray(payload)
        where = contract.activation._CHECKSUM
        if len(forged) >= where.stop:
            digest = contract.activation.xxhash.xxh3_64(payload[: where.start])
            digest.update(b"0" * 16)
            digest.update(payload[where.stop :])
            forged[where] = digest.hexdigest().encode()
        return original(bytes(forged), max_bytes)

    import client.acceptance

    for module in (stage.runner, client.acceptance):
        context.wrap(module, "decode", decode)


def flip(payload: bytes, generator: random.Random, only_tensors: bool) -> bytes:
    """Damage a message: one bit anywhere, or cut off; or one that makes a number huge."""
    damaged = bytearray(payload)
    if only_tensors:
        damaged[-1 - 4 * generator.randrange(4)] ^= 0x40  # an exponent's highest bit, or nearly
        return bytes(damaged)
    if generator.random() < 0.5:
        return bytes(damaged[: generator.randrange(len(damaged))])
    damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
    return bytes(damaged)


@patch
def no_self_test(context: Context, _argument: str) -> None:
    """A process takes for granted that it hears what is sent to it."""
    import broker.self_test

    context.replace(broker.self_test.SelfTest, "run", lambda *_arguments, **_named: None)


@patch
def no_name_guard(context: Context, _argument: str) -> None:
    """A process does not notice another one of its name."""
    import broker.name_guard

    context.replace(broker.name_guard.NameGuard, "_judge", lambda _self, _greeting: None)


@patch
def no_crash_marker(context: Context, _argument: str) -> None:
    """A process does not know what its predecessor died of."""
    import stage.crash_marker

    context.replace(stage.crash_marker.CrashMarker, "deaths", lambda _self, _batch: 0)
