"""Opens a pipeline in one call, for programs and for the command."""

from broker.connection import Connector
from broker.tls import own_certificate
from broker.transport import TlsFiles, parse_address
from client.pipeline import Pipeline
from client.settings import ClientSettings, random_client_name
from contract.topics import DEFAULT_CLUSTER


def open_pipeline(
    broker: str,
    *,
    username: str | None = None,
    password: str | None = None,
    tls: TlsFiles | None = None,
    cluster: str = DEFAULT_CLUSTER,
    name: str | None = None,
    window: int | None = None,
    ready_timeout_s: float = 60.0,
) -> Pipeline:
    """Connect to ``broker`` (host or host:port) and wait for a plan with ready devices.

    Args:
        tls: files of a connection by TLS; with a certificate, whom it names is the user.
        name: this client's name, unique at the broker; it is the MQTT client id and, on a fleet
            with access control, must be the user name. Made up when None.
        window: batches in flight; None means :func:`client.feed.default_window` of the plan.

    Raises:
        BrokerUnreachableError, NotAuthorisedError: no connection.
        PlanError, ShardError, DeliveryError: no plan, a failed shard, or devices that stay away.
        SettingsError: an address or a file of ``tls`` that cannot be used.
    """
    if tls is not None and tls.cert_file is not None and tls.key_file is not None:
        username = own_certificate(tls.cert_file, tls.key_file).common_name
    settings = ClientSettings(
        name=name or username or random_client_name(),
        cluster=cluster,
        window=window,
        ready_timeout_s=ready_timeout_s,
    )
    connect = Connector(parse_address(broker, username, password, tls))
    pipeline = Pipeline(settings, connect, elsewhere=connect.elsewhere)
    try:
        pipeline.open()
    except BaseException:
        pipeline.close()
        raise
    return pipeline
