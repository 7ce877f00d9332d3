"""Opens a pipeline in one call, for programs and for the command."""

from pathlib import Path

from broker.connection import Connector
from broker.transport import parse_address
from client.journal import Journal, Synchronous
from client.pipeline import Pipeline
from client.settings import ClientSettings, random_client_name
from contract.topics import DEFAULT_CLUSTER


def open_pipeline(
    broker: str,
    *,
    username: str | None = None,
    password: str | None = None,
    cluster: str = DEFAULT_CLUSTER,
    name: str | None = None,
    window: int | None = None,
    ready_timeout_s: float = 60.0,
    journal: Path | None = None,
    journal_sync: Synchronous = "normal",
) -> Pipeline:
    """Connect to ``broker`` (host or host:port) and wait for a plan with ready devices.

    Args:
        name: this client's name, unique at the broker; it is the MQTT client id and, on a fleet
            with access control, must be the user name. Made up when None, or what the journal says.
        window: batches in flight; None means :func:`client.feed.default_window` of the plan.
        journal: a file in which every batch is written down, its input included. Opened again, the
            pipeline's next run first sends what was left open; skip as many of your own batches as
            ``counts().submitted`` says. Read it with :class:`client.journal_reader.JournalReader`.
        journal_sync: see :class:`client.journal.Journal`.

    Raises:
        BrokerUnreachableError, NotAuthorisedError: no connection.
        PlanError, ShardError, DeliveryError: no plan, a failed shard, or devices that stay away.
        JournalError: the journal is used by another process, of another model, or damaged.
    """
    written = None if journal is None else Journal(journal, journal_sync)
    try:
        wanted = name or username
        settings = ClientSettings(
            name=(wanted or random_client_name())
            if written is None
            else written.client_name(wanted),
            cluster=cluster,
            window=window,
            ready_timeout_s=ready_timeout_s,
        )
        connect = Connector(parse_address(broker, username, password))
        if written is not None:
            written.take_source("", "")  # its batches are not to be had from a source
        pipeline = Pipeline(settings, connect, elsewhere=connect.elsewhere, journal=written)
    except BaseException:
        if written is not None:
            written.close()
        raise
    try:
        pipeline.open()
    except BaseException:
        pipeline.close()
        raise
    return pipeline
