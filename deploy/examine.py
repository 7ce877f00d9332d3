"""Asks every device of a fleet what it knows of its machine, by messages."""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from broker.mailbox import Mailbox
from broker.transport import Callbacks, Connect, ConnectionSettings, Delivery
from contract import topics
from contract.command import MAX_COMMAND_BYTES, Examination, Examine, parse_command
from contract.errors import WireFormatError
from contract.fleet import FleetView
from contract.status import DeviceStatus, parse_status
from deploy.check import Answer

ASK_AGAIN_S = 2.0
_POLL_S = 0.1


class Heard(NamedTuple):
    """What came of one device: its last status and its answer, if any."""

    status: DeviceStatus | None
    answer: Answer | None


class _Sent(NamedTuple):
    """A question under way: to whom, and when, by our clock and by the unfailing one."""

    device: str
    unix_s: float
    monotonic_s: float


def examine_fleet(
    connect: Connect,
    cluster: str,
    name: str,
    devices: Sequence[str],
    timeout_s: float,
    progress: Callable[[str, float], None],
) -> dict[str, Heard]:
    """Ask all devices at once and wait for their answers, ``timeout_s`` seconds at most.

    Raises:
        BrokerUnreachableError, NotAuthorisedError: no connection.
    """
    inbox = Mailbox(MAX_COMMAND_BYTES)
    connection = connect(ConnectionSettings(name=name), Callbacks(on_delivery=inbox.put))
    fleet, answers, sent = FleetView(), dict[str, Answer](), dict[str, _Sent]()
    try:
        connection.subscribe(topics.status_filter(cluster))
        connection.subscribe(topics.answer_filter(cluster, name))
        started = time.monotonic()
        asked_s = float("-inf")
        while len(answers) < len(devices) and time.monotonic() - started < timeout_s:
            if time.monotonic() - asked_s > ASK_AGAIN_S:
                asked_s = time.monotonic()
                for device in devices:
                    if device not in answers:
                        request = Examine(request_id=secrets.token_hex(8))
                        sent[request.request_id] = _Sent(device, time.time(), time.monotonic())
                        connection.publish(
                            topics.command_topic(cluster, device, name),
                            request.model_dump_json().encode(),
                        )
            progress("asking the devices", len(answers) / len(devices))
            heard = inbox.get(timeout_s=_POLL_S)
            if isinstance(heard, Delivery):
                _take(heard, fleet, answers, sent)
                heard.ack()
    finally:
        connection.close(forget_session=True)
    return {device: Heard(fleet.get(device), answers.get(device)) for device in devices}


def _take(
    delivery: Delivery, fleet: FleetView, answers: dict[str, Answer], sent: dict[str, _Sent]
) -> None:
    try:
        topic = topics.parse_topic(delivery.topic)
        if topic.kind == "status":
            fleet.update(parse_status(delivery.payload, topic.sender))
            return
        message = parse_command(delivery.payload)
    except WireFormatError:
        return  # somebody else's message on a topic of ours tells us nothing
    if not isinstance(message, Examination):
        return
    question = sent.get(message.request_id)
    if question is not None and question.device == topic.sender:
        # As NTP does (RFC 5905): the device's clock is read half-way between question and answer.
        took_s = time.monotonic() - question.monotonic_s
        offset_s = message.unix_time_s - (question.unix_s + took_s / 2)
        answers.setdefault(question.device, Answer(message, offset_s, took_s / 2))
