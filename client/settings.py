"""How a client feeds a pipeline."""

import secrets
from dataclasses import dataclass

from contract import topics


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """How a client feeds a pipeline.

    ``window``: batches in flight; None means :func:`client.feed.default_window` of the plan.
    ``ready_timeout_s``: how long :meth:`Pipeline.open` waits for a plan and its devices.
    ``batch_timeout_s``: after this long a batch is declared dead; None never gives up.
    """

    name: str
    cluster: str = topics.DEFAULT_CLUSTER
    window: int | None = None
    ready_timeout_s: float = 60.0
    batch_timeout_s: float | None = None


def random_client_name() -> str:
    """A client name that no other run has."""
    return f"client-{secrets.token_hex(4)}"
