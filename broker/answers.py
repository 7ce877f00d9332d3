"""What a broker's answers mean: reason codes in, errors and outcomes out (MQTT 5, section 2.4)."""

import socket
from collections.abc import Sequence

from paho.mqtt.reasoncodes import ReasonCode

from broker.transport import BrokerAddress, PublishOutcome
from contract.errors import BrokerError, BrokerUnreachableError, NotAuthorisedError

_BAD_CREDENTIALS = frozenset({0x86, 0x87, 0x8A})  # bad user name or password, not authorised, ban
_NO_MATCHING_SUBSCRIBERS = 0x10
_SESSION_TAKEN_OVER = 0x8E


def is_final(answer: ReasonCode) -> bool:
    """Whether a refused connection stays refused; others pass: the broker is busy, or starting."""
    return answer.value in _BAD_CREDENTIALS


def is_taken_over(answer: ReasonCode) -> bool:
    """Whether the connection ended because another process came with our name."""
    return bool(answer.value == _SESSION_TAKEN_OVER)


def connection_refusal(address: BrokerAddress, answer: ReasonCode) -> BrokerError:
    """What it means that the broker does not let us in."""
    if is_final(answer):
        return NotAuthorisedError(
            f"the broker at {address} refuses user {address.username!r}: {answer}; check the user "
            "name and the password"
        )
    return BrokerUnreachableError(f"the broker at {address} refuses the connection: {answer}")


def subscription_refusal(
    address: BrokerAddress, name: str, topic_filter: str, answers: Sequence[ReasonCode]
) -> NotAuthorisedError | None:
    """What the answer to a subscription means where it is no; None where it is yes."""
    refused = next((answer for answer in answers if answer.is_failure), None)
    if refused is None:
        return None
    return NotAuthorisedError(
        f"the broker at {address} refuses {name!r} the subscription to {topic_filter}: {refused}; "
        "give it the right to read there, see docs/deploy.md"
    )


def publish_outcome(address: BrokerAddress, topic: str, answer: ReasonCode) -> PublishOutcome:
    """What became of a message.

    Raises:
        NotAuthorisedError: the broker has refused it.
    """
    if answer.value == _NO_MATCHING_SUBSCRIBERS:
        return PublishOutcome.NO_SUBSCRIBER
    if answer.is_failure:
        raise NotAuthorisedError(f"the broker at {address} refused {topic}: {answer}")
    return PublishOutcome.ACCEPTED


def no_answer(address: BrokerAddress, waited_s: float) -> BrokerUnreachableError:
    """What it means that none has come: asks the system, whose words paho keeps to itself."""
    return BrokerUnreachableError(
        f"cannot reach the broker at {address} within {waited_s:.0f} s "
        f"({_why_unreachable(address)}); is it running and is the address right? "
        "Try `shardline broker`, or check --broker"
    )


def _why_unreachable(address: BrokerAddress) -> str:
    try:
        socket.create_connection((address.host, address.port), timeout=1).close()
    except OSError as error:
        return error.strerror or str(error)
    if address.tls is not None:
        return "something answers there, and ends the connection before TLS or MQTT 5 stands"
    return "something answers there, but not as an MQTT 5 broker; by TLS it may: --ca-file"
