"""A dashboard that serves, in a thread of the test's process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

import client.dashboard.hub
from broker.transport import Connect
from client.dashboard.app import make_app
from client.dashboard.guard import Token
from client.dashboard.hub import Explain, Hub
from client.dashboard.serve import Bind, DashboardServer, listen
from client.watch.observer import Observer


@dataclass
class Served:
    url: str
    hub: Hub
    server: DashboardServer
    failures: list[BaseException]


@contextmanager
def serving(
    connect: Connect,
    cluster: str,
    *,
    token: Token | None = None,
    explain: Explain | None = None,
    max_browsers: int = client.dashboard.hub.MAX_BROWSERS,
) -> Iterator[Served]:
    """The dashboard of a cluster, on a free port."""
    with (
        listen(Bind("127.0.0.1", 0)) as listener,
        Observer(connect, cluster, f"observer-of-{cluster}") as observer,
    ):
        hub = Hub(observer.view, explain=explain, max_browsers=max_browsers)
        server = DashboardServer(hub, make_app(hub, token=token), listener)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        failures: list[BaseException] = []

        def run() -> None:
            try:
                server.run()
            except BaseException as error:  # noqa: BLE001 the test looks at it
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield Served(url, hub, server, failures)
        finally:
            server.stop()
            thread.join(timeout=15)
            assert not thread.is_alive(), "it does not end"


Serve = Callable[..., Served]


@pytest.fixture
def serve(connect: Connect, cluster: str) -> Iterator[Serve]:
    """Starts dashboards of this test's cluster; they end with it."""
    with ExitStack() as stack:
        yield lambda via=connect, **options: stack.enter_context(serving(via, cluster, **options))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten looks a second: nobody wants to wait for whole ones."""
    monkeypatch.setattr(client.dashboard.hub, "INTERVAL_S", 0.1)
