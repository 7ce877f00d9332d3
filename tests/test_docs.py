"""The pages of docs/ name what the code has: topics, fields, exit codes; their links lead on."""

import re
from pathlib import Path

import pytest

from contract import topics
from contract.activation import _METADATA_KEYS, Hop
from contract.clock import ClockAnswer, ClockRequest
from contract.errors import ExitCode
from contract.metrics import (
    EARLIER,
    THROTTLED_NOW,
    DeviceMetrics,
    Ledger,
    PipelineMetrics,
    StageMetrics,
)
from contract.nack import Nack, NackReason
from contract.plan import Plan, StageSpec
from contract.status import Capabilities, DeviceState, DeviceStatus, Event, EventKind, ShardState
from contract.trace import BatchTrace, ClockOffset, TraceMetrics

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").rglob("*.md")])


def page(name: str) -> str:
    return (DOCS / name).read_text()


def missing(words: "set[str] | list[str]", text: str) -> list[str]:
    """Those that the text does not name as code."""
    return sorted(w for w in words if not re.search(rf"[`\"/ ]{re.escape(w)}[`\"/: ,]", text))


@pytest.mark.parametrize(
    "model",
    [
        *(DeviceMetrics, PipelineMetrics, StageMetrics, Ledger, DeviceStatus, Event),
        *(TraceMetrics, BatchTrace, ClockOffset, ClockRequest, ClockAnswer),
    ],
)
def test_every_published_field_is_described(model: type[DeviceMetrics]) -> None:
    assert missing(set(model.model_fields), page("topics.md")) == []


def test_every_word_that_a_message_may_hold_is_described() -> None:
    assert missing([str(k) for k in EventKind], page("topics.md")) == []
    assert missing([str(s) for s in (*DeviceState, *ShardState)], page("topics.md")) == []
    assert missing(set(Capabilities.model_fields), page("topics.md")) == []
    assert missing([*Hop._fields, *THROTTLED_NOW, EARLIER], page("topics.md")) == []


def test_every_topic_is_described() -> None:
    text = page("topics.md")
    levels = ("plan", "status", "in", "command", "result", "nack", "blob", "metrics", "event")
    for level in (*levels, "trace", "clock"):
        assert re.search(rf"shardline/<cluster>/[^\n`]*\b{level}\b", text), level
    assert topics.metrics_filter() in text


def test_every_field_of_the_wire_is_described() -> None:
    text = page("wire-format.md")
    assert missing(set(_METADATA_KEYS), text) == []
    assert missing(set(Nack.model_fields), text) == []
    assert missing([str(reason) for reason in NackReason], text) == []


def test_every_field_of_a_plan_is_described() -> None:
    text = page("plan-schema.md")
    assert missing(set(Plan.model_fields) | set(StageSpec.model_fields), text) == []


def test_every_exit_code_is_described() -> None:
    text = page("settings.md")
    for code in ExitCode:
        assert re.search(rf"\b{code.value}\b", text), code


def test_the_readme_says_where_models_come_from() -> None:
    (sentence,) = re.findall(
        r"Models come from [^.]+(?:\.\w[^.]*)*\.", (ROOT / "README.md").read_text()
    )
    for kind in ("torchvision", "an ONNX file", "`hf:DIR`", "`torch.nn.Module`"):
        assert kind in sentence, kind


@pytest.mark.parametrize("file", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_links_to_files_lead_somewhere(file: Path) -> None:
    text = re.sub(r"```.*?```", "", file.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (file.parent / target).exists(), f"{file.name}: {target}"
