"""`shardline broker`: the embedded broker on its own."""

import signal
import sys
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
    from contract.errors import BrokerError
    from shardline.console import out, set_up_logging

    set_up_logging(verbose)
    with EmbeddedBroker(port or None) as running:
        out.print(f"broker on {running.address}; stop it with Ctrl-C", soft_wrap=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that it is stopped in order
        status = running.wait()
        last_words = running.log_tail().splitlines()[-1]
        raise BrokerError(
            f"mosquitto on {running.address} ended by itself with status {status}; start it again, "
            f"clients come back by themselves. Its last words: {last_words}"
        )
