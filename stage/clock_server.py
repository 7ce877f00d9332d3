"""Answers whoever asks this device for the time, on the network thread: a batch in work does not
count. What its clock says is a fact of the device and nothing that is decided by.
"""

import time

from broker.transport import Connection, Delivery
from contract import topics
from contract.clock import ClockAnswer, ClockRequest, parse_clock
from contract.errors import BrokerError, WireFormatError
from stage.work import now_us

MAX_ANSWERS_PER_S = 100
"""A client asks four times at its start and then every ten seconds: hundreds of them have room."""


class ClockServer:
    """Serves the clock topic of one device."""

    def __init__(self, cluster: str, device: str, connection: Connection) -> None:
        self._cluster, self._device, self._connection = cluster, device, connection
        self._second, self._answers = 0, 0

    def answer(self, delivery: Delivery) -> str | None:
        """Answer a question; what is wrong with it, None if it was answered."""
        received_us = now_us()
        try:
            asker = topics.parse_topic(delivery.topic).sender
            question = parse_clock(delivery.payload)
        except WireFormatError as error:
            return str(error)
        if not isinstance(question, ClockRequest):
            return "an answer about the time, and nothing was asked"
        if asker is None or asker == self._device:
            return "a device does not ask itself for the time"
        if not self._may_answer():
            return f"more than {MAX_ANSWERS_PER_S} questions for the time in a second"
        topic = topics.clock_topic(self._cluster, asker, self._device)
        answer = ClockAnswer(number=question.number, received_us=received_us, sent_us=now_us())
        try:
            self._connection.publish(topic, answer.model_dump_json().encode(), qos=0)
        except BrokerError:
            return None  # whoever asks hears nothing, and asks again
        return None

    def _may_answer(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._answers = second, 0
        self._answers += 1
        return self._answers <= MAX_ANSWERS_PER_S
