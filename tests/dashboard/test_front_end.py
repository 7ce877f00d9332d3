"""The built front end: it is what its sources say, small, and asks nobody else for anything."""

import hashlib
import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pydantic import BaseModel

from client.dashboard import messages
from client.dashboard.guard import OPEN_PATHS
from client.dashboard.history import SAMPLES_KEPT
from contract.metrics import DeviceMetrics, Ledger, PipelineMetrics, StageMetrics
from contract.status import Event, EventKind

ROOT = Path(__file__).parents[2]
ROOM = ROOT / "client" / "dashboard"
FRONTEND, STATIC = ROOM / "frontend", ROOM / "static"
LIST = FRONTEND / "built.sha256"
MAX_BYTES = 300_000


def files() -> dict[str, str]:
    """Every source and every built file, with its hash."""
    found = [p for folder in (FRONTEND, STATIC) for p in folder.rglob("*") if p.is_file()]
    return {
        str(path.relative_to(ROOM)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
        if path != LIST
    }


def test_what_is_shipped_was_built_from_these_sources() -> None:
    lines = (line.partition("  ") for line in LIST.read_text().splitlines())
    assert {name: digest for digest, _, name in lines} == files(), "run `make dashboard`"


def test_it_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in STATIC.rglob("*") if path.is_file()}
    assert 0 < sum(sizes.values()) < MAX_BYTES, sizes


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.inline: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        for name, value in attrs:
            if name in ("src", "href", "action"):
                self.links.append(value or "")
            if name.startswith("on") or name == "style":
                self.inline.append(f"{tag} {name}")

    def handle_data(self, data: str) -> None:
        if self._open in ("script", "style") and data.strip():
            self.inline.append(data)


@pytest.mark.parametrize("name", ["index.html", "login.html"])
def test_a_page_has_no_inline_script_and_no_foreign_file(name: str) -> None:
    """What the content security policy would refuse."""
    page = Page((STATIC / name).read_text())
    assert page.inline == []
    for link in page.links:
        assert link.startswith(OPEN_PATHS), link
        if link.startswith("/static/"):
            assert (STATIC / link.removeprefix("/static/")).is_file(), link


def test_no_built_file_names_another_host() -> None:
    allowed = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml"}
    allowed |= {"http://www.w3.org/1999/xlink", "http://www.w3.org/1998/Math/MathML"}
    for path in STATIC.rglob("*"):
        if path.is_file():
            found = set(re.findall(r"https?://[\w./-]+", path.read_text()))
            assert found <= allowed, path.name


def test_the_lock_is_of_these_versions_and_names_no_registry() -> None:
    package = json.loads((FRONTEND / "package.json").read_text())
    text = (FRONTEND / "package-lock.json").read_text()
    lock = json.loads(text)
    assert "://" not in re.sub(r'"(url|funding)": "[^"]*"', "", text)
    assert "resolved" not in text
    for name, version in {**package["dependencies"], **package["devDependencies"]}.items():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version), f"{name} is not pinned"
        entry = lock["packages"][f"node_modules/{name}"]
        assert entry["version"] == version
        assert entry["integrity"].startswith("sha512-")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert package["version"] == lock["version"] == version


# The two sides of the wire

SCRIPT = (FRONTEND / "src" / "messages.ts").read_text()
MODELS: list[type[BaseModel]] = [
    *(DeviceMetrics, StageMetrics, Ledger, PipelineMetrics, Event),
    *(messages.Headline, messages.DeviceMessage, messages.StageMessage, messages.PlanMessage),
    *(messages.PipelineMessage, messages.BrokerMessage, messages.Sample, messages.History),
    messages.ViewMessage,
]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_the_browser_knows_the_fields_that_are_sent(model: type[BaseModel]) -> None:
    found = re.search(rf"export interface {model.__name__} {{(.*?)\n}}", SCRIPT, flags=re.S)
    assert found, model.__name__
    assert re.findall(r"^  (\w+):", found[1], flags=re.M) == list(model.model_fields)


@pytest.mark.parametrize("words", [messages.Condition, messages.Level])
def test_the_browser_knows_the_words_that_are_sent(
    words: type[messages.Condition] | type[messages.Level],
) -> None:
    found = re.search(rf"export type {words.__name__} =([^;]+);", SCRIPT)
    assert found
    assert re.findall(r'"(\w+)"', found[1]) == [str(word) for word in words]


def test_history_is_equally_long_on_both_sides() -> None:
    text = (FRONTEND / "src" / "history.ts").read_text()
    assert f"SECONDS_KEPT = {SAMPLES_KEPT};" in text


def test_events_that_have_a_colour_are_events() -> None:
    text = (FRONTEND / "src" / "events.tsx").read_text()
    named = {
        word
        for group in re.findall(r"new Set\(\[(.*?)\]", text)
        for word in re.findall(r'"(\w+)"', group)
    }
    assert named <= {str(kind) for kind in EventKind}
    assert len(named) >= 8
