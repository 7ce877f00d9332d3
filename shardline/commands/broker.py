"""`shardline broker`: the embedded broker on its own."""

from typing import Annotated

from shardline import options
from shardline.options import option


def run(
    port: Annotated[
        int, option("--port", "Loopback port (0: any free one).", min=0, max=65535)
    ] = 1883,
    verbose: options.Verbose = False,
) -> None:
    """Run Mosquitto on 127.0.0.1 until Ctrl-C: to try things on one machine, without passwords."""
    from broker.embedded import EmbeddedBroker
    from contract.errors import BrokerStartError
    from shardline.console import out, set_up_logging

    set_up_logging(verbose)
    with EmbeddedBroker(port or None) as running:
        out.print(f"broker on {running.address}; stop it with Ctrl-C", soft_wrap=True)
        status = running.wait()
        raise BrokerStartError(f"mosquitto ended with status {status}:\n{running.log_tail()}")
