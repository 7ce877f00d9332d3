"""`shardline serve` in this process, with a model that a test writes, and OpenAI's own client."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from client.dashboard.guard import Token
from client.dashboard.serve import Bind, listen
from client.generation.pipeline import TokenPipeline
from client.serving.engine import Engine
from client.serving.serve import ApiServer
from client.settings import ClientSettings
from client.tokenizer import TextTokenizer
from tests.conftest import eventually
from tests.generation.conftest import CLUSTER, Site
from tests.generation.fake_decoder import make_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
)


class Served:
    """A server on a port of its own."""

    def __init__(
        self, site: Site, folder: Path, key: str | None = None, template: str | None = TEMPLATE
    ) -> None:
        self.site, self.folder = site, folder
        self._clients: dict[str, openai.OpenAI] = {}
        sha256 = make_tokenizer(folder)
        assert sha256
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        settings = ClientSettings(name="server", cluster=CLUSTER, ready_timeout_s=0.5)
        self.engine = Engine(
            lambda: TokenPipeline(settings, site.broker.connect),
            lambda _plan: TextTokenizer(folder),
        )
        listener = listen(Bind("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = ApiServer(self.engine, listener, None if key is None else Token(key))
        self._thread = threading.Thread(target=self.server.run, name="web")
        self.engine.__enter__()
        self._thread.start()

    def wait(self) -> "Served":
        eventually(lambda: self.engine._ready is not None, "the model is found")
        return self

    def client(self, key: str = "none") -> openai.OpenAI:
        if key not in self._clients:
            self._clients[key] = openai.OpenAI(
                base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20
            )
        return self._clients[key]

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
        self.server.stop()
        self._thread.join(timeout=15)
        assert not self._thread.is_alive()
        self.engine.__exit__()


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers; they are stopped at the end of the test."""
    started: list[Served] = []

    def start(site: Site, **settings: str | None) -> Served:
        started.append(Served(site, tmp_path / "tokenizer", **settings))
        return started[-1]

    yield start
    for served in started:
        served.close()
        served.site.close()


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve(Site([["pi-0"], ["pi-1"]], context_tokens=256, chunk_tokens=64)).wait()
