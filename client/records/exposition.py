"""Serves metrics to Prometheus, by its own library."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from client.records.prometheus import ClusterCollector
from client.watch.view import ClusterView
from contract.errors import SettingsError

DEFAULT_HOST = "127.0.0.1"


def parse_listen(text: str) -> tuple[str, int]:
    """``PORT`` or ``HOST:PORT`` (an IPv6 address in brackets); without a host, loopback.

    Raises:
        SettingsError: not such a text.
    """
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if separator else DEFAULT_HOST
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise SettingsError(
            f"--prometheus {text!r}: expected PORT or HOST:PORT, for example 9464 or 0.0.0.0:9464"
        )
    return host, int(port)


@contextmanager
def serving(listen: str, look: Callable[[], ClusterView]) -> Iterator[str]:
    """Answer at `http://HOST:PORT/metrics` with what ``look`` sees, in threads; that address.

    Port 0 is any free one.

    Raises:
        SettingsError: not an address, or nothing can listen there.
    """
    host, port = parse_listen(listen)
    registry = CollectorRegistry()
    registry.register(ClusterCollector(look))
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, UnicodeError) as error:  # the latter from names that no host can have
        why = error.strerror if isinstance(error, OSError) else "no host can be called so"
        raise SettingsError(
            f"--prometheus {listen}: cannot listen there ({why}); choose another port, "
            "or an address of this machine"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    try:
        yield f"http://{shown}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
