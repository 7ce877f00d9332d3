"""What the harness puts into the client's process, and into whoever publishes."""

import random
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import client.acceptance
import client.feed
import client.ledger
import client.pipeline
import client.retry
import client.settings
from broker.connection import PahoConnection
from broker.transport import ConnectionSettings, PublishOutcome
from client.ledger import Entry, Ledger
from contract import topics
from contract.errors import WireFormatError
from tests.faults import scaled
from tests.faults.patching import Context, patch
from tests.faults.stage_patches import flip

PRODUCT_KEEPALIVE_S = ConnectionSettings(name="any").keepalive_s


def scale_times(context: Context) -> None:
    """Shorten what the product waits for, in every process of the pipeline under test."""
    for name in ("MIN_DEADLINE_S", "MAX_DEADLINE_S", "MAX_REFUSAL_DELAY_S"):
        context.replace(client.retry, name, getattr(scaled, name))

    def spread(paho: Any) -> None:
        paho.reconnect_delay_set(
            random.uniform(*scaled.LEAST_RECONNECT_S), random.uniform(*scaled.MOST_RECONNECT_S)
        )

    context.replace(PahoConnection, "_spread_reconnects", staticmethod(spread))

    def connect(original: Any, self: Any, address: Any, settings: Any, callbacks: Any) -> None:
        if settings.keepalive_s == PRODUCT_KEEPALIVE_S:  # else a control wants it otherwise
            settings = replace(settings, keepalive_s=scaled.KEEPALIVE_S)
        original(self, address, settings, callbacks)

    context.wrap(PahoConnection, "__init__", connect)


def change_settings(context: Context, **changes: Any) -> None:
    """Connect with other settings than the product's own."""

    def connect(original: Any, self: Any, address: Any, settings: Any, callbacks: Any) -> None:
        original(self, address, replace(settings, **changes), callbacks)

    context.wrap(PahoConnection, "__init__", connect)


def is_data(topic: str) -> bool:
    """Whether a topic carries a batch or a result."""
    try:
        return topics.parse_topic(topic).kind in ("input", "result")
    except WireFormatError:
        return False


# Faults at whoever publishes.


@patch
def thrice(context: Context, _argument: str) -> None:
    """Every batch and every result is published three times."""

    def publish(original: Any, self: Any, topic: str, payload: bytes, **named: Any) -> Any:
        if is_data(topic):
            for _ in range(2):
                original(self, topic, payload, **named)
        return original(self, topic, payload, **named)

    context.wrap(PahoConnection, "publish", publish)


@patch
def damage(context: Context, argument: str) -> None:
    """One message in so many is damaged after its checksum was made; ``20:tensors``, ``20:any``."""
    one_in, _, what = argument.partition(":")
    generator = random.Random(context.name)

    def publish(original: Any, self: Any, topic: str, payload: bytes, **named: Any) -> Any:
        due = is_data(topic) and context.triggers.is_set("damage")
        if due and generator.randrange(int(one_in)) == 0:
            context.triggers.tally("damaged")
            payload = flip(payload, generator, what == "tensors")
        return original(self, topic, payload, **named)

    context.wrap(PahoConnection, "publish", publish)


@patch
def shuffle(context: Context, size: str) -> None:
    """Batches are held until there are so many (or 20 ms long) and sent in a random order."""
    generator, lock = random.Random(context.name), threading.Lock()
    held: list[tuple[Any, Any, Future[PublishOutcome]]] = []

    def send(original: Any, parcel: list[Any]) -> None:
        generator.shuffle(parcel)
        for self_and, named, promised in parcel:
            original(*self_and, **named).add_done_callback(
                lambda done, promised=promised: _pass_on(done, promised)
            )

    def take() -> list[Any]:
        with lock:
            parcel, held[:] = list(held), []
        return parcel

    def publish(original: Any, self: Any, topic: str, payload: bytes, **named: Any) -> Any:
        if not is_data(topic) or not context.triggers.is_set("shuffle"):
            return original(self, topic, payload, **named)
        promised: Future[PublishOutcome] = Future()
        with lock:
            held.append(((self, topic, payload), named, promised))
            first, full = len(held) == 1, len(held) >= int(size)
        if full:
            send(original, take())
        elif first:
            threading.Timer(0.02, lambda: send(original, take())).start()
        return promised

    context.wrap(PahoConnection, "publish", publish)


def _pass_on(done: "Future[PublishOutcome]", promised: "Future[PublishOutcome]") -> None:
    error = done.exception()
    if error is not None:
        promised.set_exception(error)
    else:
        promised.set_result(done.result())


@patch
def jump(context: Context, _argument: str) -> None:
    """The wall clock of this process is off by what the trigger file says, in seconds."""
    file = context.triggers.folder / f"clock.{context.name}"
    real, real_ns = time.time, time.time_ns

    def offset_s() -> float:
        try:
            return float(file.read_text() or 0)
        except FileNotFoundError:
            return 0.0

    context.replace(time, "time", lambda: real() + offset_s())
    context.replace(time, "time_ns", lambda: real_ns() + int(offset_s() * 1e9))


# Controls: a mechanism of the product switched off.


@patch
def no_retry(context: Context, _argument: str) -> None:
    """Nothing is ever sent a second time."""
    context.replace(client.retry.RetryBudget, "spend", lambda _self: False)


@patch
def no_session(context: Context, _argument: str) -> None:
    """The broker forgets this process with its connection."""
    change_settings(context, session_expiry_s=0)


@patch
def no_keepalive(context: Context, _argument: str) -> None:
    """Nobody notices a silent connection for a minute, which is what the broker insists on."""
    change_settings(context, keepalive_s=60)


@patch
def no_dedup(context: Context, _argument: str) -> None:
    """Every result that arrives counts."""
    ended: dict[Any, Entry] = {}

    def deliver(original: Any, ledger: Ledger, batch_id: Any) -> Entry | None:
        entry = ledger.find(batch_id)
        if entry is not None:
            ended[batch_id] = entry
        return original(ledger, batch_id) or ended.get(batch_id)

    context.wrap(Ledger, "deliver", deliver)


@patch
def any_epoch(context: Context, _argument: str) -> None:
    """A batch is known by its number alone, whichever run it is of."""

    def find(_original: Any, ledger: Ledger, batch_id: Any) -> Entry | None:
        return ledger._open.get(batch_id.seq)

    context.wrap(Ledger, "find", find)
    context.replace(Ledger, "knows", lambda _self, _batch_id: True)


@patch
def by_arrival(context: Context, _argument: str) -> None:
    """The next result is taken for the oldest open batch's, as one would without batch ids."""

    def deliver(original: Any, ledger: Ledger, batch_id: Any) -> Entry | None:
        oldest = next(iter(ledger._open.values()), None)
        return original(ledger, batch_id if oldest is None else oldest.batch_id)

    context.wrap(Ledger, "deliver", deliver)
    context.replace(Ledger, "find", lambda self, _id: next(iter(self._open.values()), None))


@patch
def any_plan(context: Context, _argument: str) -> None:
    """A result counts whichever plan it is of."""

    def decode(original: Any, payload: bytes, max_bytes: int | None = None) -> Any:
        activation = original(payload, None)
        feeds = any_plan.feeds  # type: ignore[attr-defined]
        if not feeds:
            return activation
        header = replace(activation.header, plan_id=feeds[-1])
        return activation._replace(header=header)

    def take(original: Any, watch: Any, plan: Any, now: float) -> bool:
        any_plan.feeds.append(plan.plan_id)  # type: ignore[attr-defined]
        original(watch, plan, now)
        return False  # nothing is sent again for the new plan

    any_plan.feeds = []  # type: ignore[attr-defined]
    context.wrap(client.acceptance, "decode", decode)
    context.wrap(client.feed.FeedWatch, "take_plan", take)


@patch
def eager(context: Context, milliseconds: str) -> None:
    """One short deadline for every attempt, and no budget for retries."""
    for name in ("MIN_DEADLINE_S", "MAX_DEADLINE_S"):
        context.replace(client.retry, name, float(milliseconds) / 1000)
    context.replace(client.retry, "P99_FACTOR", 0.0)
    context.replace(client.retry.RetryBudget, "spend", lambda _self: True)


@patch
def no_size_check(context: Context, _argument: str) -> None:
    """What the broker says of its largest packet is not heard."""

    def connected(original: Any, self: Any, paho: Any, data: Any, flags: Any, *rest: Any) -> None:
        reason, _properties = rest
        original(self, paho, data, flags, reason, None)

    context.wrap(PahoConnection, "_on_connect", connected)


@patch
def wall_clock(context: Context, _argument: str) -> None:
    """The client's timers run on the wall clock."""
    shim = SimpleNamespace(monotonic=lambda: time.time(), time=time.time, time_ns=time.time_ns)
    context.replace(client.pipeline, "time", shim)


@patch
def no_giving_up(context: Context, _argument: str) -> None:
    """However often a batch was refused, or its device died, it is sent again."""
    import client.receiving

    context.replace(client.receiving, "MAX_REFUSALS", 10**6)


@patch
def any_window(context: Context, _argument: str) -> None:
    """As many batches in flight as one asks for."""
    context.replace(client.settings, "MAX_WINDOW", 10**6)
