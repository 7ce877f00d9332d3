"""Rows 19 and 20: messages that are damaged, or that lie about their size."""

import json
import time

import xxhash

from broker.transport import Callbacks, ConnectionSettings
from contract import topics
from contract.activation import BatchId, Header, encode
from contract.errors import MessageTooLargeError
from contract.status import Event, EventKind
from tests.faults.feed import Feed
from tests.faults.known_answers import numbered_batches
from tests.faults.network_faults import within_the_budget
from tests.faults.pipeline_under_test import ALL, CLUSTER, FEEDER, Setup, Site
from tests.faults.row import Figures, Row, Trial
from tests.stage.harness import Listener

DAMAGE_S = 0.6
ONE_IN = 12
LARGEST_PACKET_BYTES = 65_536
LIES = (2**40, 2**28, 2**62)
"""Elements that a header claims; 2^28 bytes would fit into this machine's memory."""
GROWTH_BYTES = 60e6


def damaged(site: Site, trial: Trial) -> Figures:
    """One message in twelve, of everybody's, is cut off or has a bit flipped."""
    observer = Listener(site.connect(), "observer", topics.event_filter(CLUSTER))

    def inject() -> None:
        site.triggers.set("damage")
        time.sleep(DAMAGE_S)
        site.triggers.clear("damage")
        feed.struck(site.triggers.count("damaged"))

    feed = Feed(site, trial, inject)
    figures = feed.run()
    within_the_budget(site, figures)
    events = [Event.model_validate_json(delivery.payload) for delivery in observer.heard]
    observer.close()
    told = [event for event in events if event.kind is EventKind.MESSAGE_REJECTED]
    figures.require(told, "no event told of a rejected message")
    return figures


def lying_message(site: Site, elements: int) -> bytes:
    """A message in the right format, with a checksum that fits, and a shape that is a lie."""
    batch = next(numbered_batches(0))
    header = Header(
        plan_id=site.plan.plan_id,
        batch_id=BatchId(1, 0),
        attempt=0,
        low=0,
        stage_index=0,
        route=tuple(site.devices),
        client=FEEDER,
        sent_us=0,
    )
    payload = encode(header, batch.tensors)
    size = int.from_bytes(payload[:8], "little")
    document = json.loads(payload[8 : 8 + size])
    document["image"]["shape"] = [elements]
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    forged = bytearray(len(text).to_bytes(8, "little") + text + payload[8 + size :])
    where = slice(37, 53)  # contract/activation.py says so
    forged[where] = b"0" * 16
    forged[where] = xxhash.xxh3_64(bytes(forged)).hexdigest().encode()
    return bytes(forged)


def too_large(site: Site, trial: Trial) -> Figures:
    """Headers that lie about a shape, and a packet above what the broker accepts."""
    rogue = site.connect()(
        ConnectionSettings(name="rogue"), Callbacks(on_delivery=lambda delivery: delivery.ack())
    )
    before = {name: child.high_water_bytes() for name, child in site.stages.items()}
    problems: list[str] = []

    def inject() -> None:
        for elements in LIES:
            lie = lying_message(site, elements)
            for index, device in enumerate(site.devices):
                topic = topics.input_topic(CLUSTER, device, site.plan.plan_id, index, "rogue")
                rogue.publish(topic, lie).result(timeout=10)
                feed.struck()
            rogue.publish(topics.result_topic(CLUSTER, FEEDER, "rogue"), lie).result(timeout=10)
            feed.struck()
        topic = topics.result_topic(CLUSTER, "nobody", "rogue")
        try:
            rogue.publish(topic, bytes(2 * LARGEST_PACKET_BYTES))
            problems.append("an oversized packet was sent")
        except MessageTooLargeError:
            feed.struck()
        try:
            rogue.publish(topic, b"small").result(timeout=2)
        except TimeoutError:
            problems.append("a small message behind it never left")
        if rogue.reconnects:
            problems.append(f"{rogue.reconnects} reconnects")

    feed = Feed(site, trial, inject)
    try:
        figures = feed.run()
    finally:
        rogue.close(forget_session=True)
    figures.problems += problems
    for name, child in site.stages.items():
        growth = child.high_water_bytes() - before[name]
        figures.require(growth < GROWTH_BYTES, f"{name} took {growth / 1e6:.0f} MB for a lie")
    return figures


ROWS = (
    Row(
        19,
        "messages are cut off or have a bit flipped",
        "the launcher damages one message in twelve after its checksum was made, for 0.6 s",
        "the checksum over header and tensors; the client's retry",
        "nobody compares the checksum: wrong answers",
        lambda is_control: Setup(
            stage_patches={ALL: _damage(is_control)}, client_patches=_damage(is_control)
        ),
        damaged,
        harm="wrong",
        is_timed=False,
    ),
    Row(
        20,
        "messages are larger than allowed, or say so",
        "headers of 2^28 to 2^62 elements with a right checksum; a packet of twice the limit",
        "lengths are checked before memory is taken; the broker's limit before anything is sent",
        "memory is taken as headers say, and the limit is not read: 250 MB, endless reconnects",
        lambda is_control: Setup(
            conf=lambda text, _folder: text.replace(
                "max_packet_size 268435455", f"max_packet_size {LARGEST_PACKET_BYTES}"
            ),
            stage_patches={ALL: ("trust_headers",)} if is_control else {},
            client_patches=("no_size_check",) if is_control else (),
        ),
        too_large,
        harm="rule",
        is_timed=False,
    ),
)


def _damage(is_control: bool) -> tuple[str, ...]:
    return (f"damage:{ONE_IN}:tensors", "trust_bytes") if is_control else (f"damage:{ONE_IN}:any",)
