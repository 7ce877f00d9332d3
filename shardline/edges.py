"""The brokers that a person names for a plan's edges: read, and tried before anything depends."""

from collections.abc import Sequence

from pydantic import ValidationError

from broker.connection import Connector
from broker.split import SplitConnection
from broker.transport import Callbacks, ConnectionSettings, TlsFiles, parse_address
from contract.errors import SettingsError
from contract.frozen import explain
from contract.plan import EdgeBroker
from deploy.inventory import host_and_port


def parse_edge_brokers(texts: Sequence[str], num_stages: int) -> tuple[EdgeBroker, ...]:
    """``["1=pi-8:1883"]`` as the field of a plan.

    Raises:
        SettingsError: not such a text, an edge that the plan does not have, or one named twice.
    """
    found: dict[int, EdgeBroker] = {}
    for text in texts:
        edge, separator, address = text.partition("=")
        if not separator or not edge.isascii() or not edge.isdigit():
            raise SettingsError(
                f"--edge-broker {text!r}: expected EDGE=HOST:PORT, for example 1=pi-8:1883"
            )
        if len(edge) > 4 or int(edge) > num_stages:
            raise SettingsError(
                f"--edge-broker {text!r}: expected an edge of 0 (the inputs of stage 0) to "
                f"{num_stages} (the results)"
            )
        if int(edge) in found:
            raise SettingsError(f"--edge-broker {text!r}: edge {int(edge)} has a broker already")
        try:
            found[int(edge)] = EdgeBroker(edge=int(edge), address=address)
        except ValidationError as error:
            raise SettingsError(f"--edge-broker {text!r}: {explain(error)}") from error
    return tuple(found[edge] for edge in sorted(found))


def with_ports(edges: Sequence[EdgeBroker], tls: TlsFiles | None) -> tuple[EdgeBroker, ...]:
    """The same with the port that is meant written out: a plan does not say whether TLS is used."""
    return tuple(
        edge.model_copy(update={"address": host_and_port(there.host, there.port)})
        for edge in edges
        for there in (parse_address(edge.address, tls=tls),)
    )


def try_edge_brokers(
    connect: Connector, name: str, edges: Sequence[EdgeBroker], num_stages: int
) -> None:
    """Connect to the brokers of a plan's edges, and leave again.

    A device that cannot reach one gives its shard up: better to know before a running plan does.

    Raises:
        BrokerUnreachableError, NotAuthorisedError: one does not let us in; says which.
        SettingsError: one is the main broker.
    """
    addresses = {broker.edge: broker.address for broker in edges}
    for edge, address in addresses.items():
        if connect.elsewhere(address) is None:
            raise SettingsError(
                f"--edge-broker {edge}={address}: that is --broker; leave the edge out, and it "
                "stays there"
            )
    if addresses:
        settings, callbacks = ConnectionSettings(name=name), Callbacks(lambda _delivery: None)
        connection = SplitConnection(connect, settings, callbacks, connect.elsewhere, ())
        try:
            connection.use(addresses, num_stages)
        finally:
            connection.close(forget_session=True)
