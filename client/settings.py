"""How a client feeds a pipeline."""

import secrets
from dataclasses import dataclass

from broker.mosquitto_conf import MAX_QUEUED_MESSAGES
from contract import topics
from contract.errors import SettingsError

QUEUED_FOR_EACH_IN_FLIGHT = 6
"""What a receiver's queue at the broker may hold of one open batch: late attempts are still on
their way when a batch is sent again, and results come twice."""
MAX_WINDOW = MAX_QUEUED_MESSAGES // QUEUED_FOR_EACH_IN_FLIGHT
"""Batches in flight at most: with more, a queue of the broker could overflow, which it does not
tell."""
MAX_PROMPT_MESSAGES = MAX_QUEUED_MESSAGES
"""Of one prompt: of a longer one the broker would drop the rest, however often it is sent."""
MAX_PROMPTS_MESSAGES = MAX_QUEUED_MESSAGES // 2
"""Of the prompts in flight together: each may be on its way a second time."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How a client feeds a pipeline.

    ``window``: batches in flight; None means :func:`client.feed.default_window` of the plan.
    ``ready_timeout_s``: how long :meth:`Pipeline.open` waits for a plan and its devices.
    ``batch_timeout_s``: after this long a batch is declared dead; None never gives up.
    ``traces``: whether to publish where each batch's time went.

    Raises:
        SettingsError: a window of more than :data:`MAX_WINDOW`.
    """

    name: str
    cluster: str = topics.DEFAULT_CLUSTER
    window: int | None = None
    ready_timeout_s: float = 60.0
    batch_timeout_s: float | None = None
    traces: bool = True

    def __post_init__(self) -> None:
        """Check the window."""
        if self.window is not None and not 1 <= self.window <= MAX_WINDOW:
            raise SettingsError(
                f"window {self.window}: expected 1 to {MAX_WINDOW}; the broker keeps "
                f"{MAX_QUEUED_MESSAGES:,} messages for a receiver and drops the rest in silence"
            )


def random_client_name() -> str:
    """A client name that no other run has."""
    return f"client-{secrets.token_hex(4)}"
