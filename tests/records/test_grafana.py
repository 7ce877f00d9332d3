"""The Grafana dashboard names metrics and labels that there are, and can be imported anywhere."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from client.records.prometheus import FAMILIES

FILE = Path(__file__).parents[2] / "deploy" / "grafana" / "shardline.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
KNOWN = {family.name: {"cluster", *family.labels} for family in FAMILIES}


def expressions() -> list[str]:
    shown = [target["expr"] for panel in PANELS for target in panel["targets"]]
    chosen = [v["definition"] for v in DASHBOARD["templating"]["list"] if "definition" in v]
    return shown + chosen


def test_every_metric_of_a_panel_exists() -> None:
    named = {name for text in expressions() for name in re.findall(r"shardline_\w+", text)}
    assert named
    assert named <= KNOWN.keys()


def test_every_label_of_a_panel_exists() -> None:
    for text in expressions():
        for name, chosen in re.findall(r"(shardline_\w+)\{([^}]*)\}", text):
            assert set(re.findall(r"(\w+)\s*[!=]~?\"", chosen)) <= KNOWN[name], text
        for target in (t for panel in PANELS for t in panel["targets"] if t["expr"] == text):
            written = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            names = re.findall(r"shardline_\w+", text)
            assert all(written <= KNOWN[name] for name in names), text


def test_counters_are_shown_as_rates_and_nothing_else_is() -> None:
    for text in expressions():
        for name in re.findall(r"shardline_\w+", text):
            assert (f"rate({name}" in text) == name.endswith("_total"), text


def test_every_metric_of_devices_and_of_the_pipeline_is_shown_or_is_left_out_on_purpose() -> None:
    shown = " ".join(expressions())
    left_out = {
        *("shardline_device_info", "shardline_device_uptime_seconds", "shardline_plan_info"),
        *("shardline_device_compute_seconds", "shardline_device_wait_seconds"),
        *("shardline_device_publish_seconds", "shardline_device_queued_messages"),
        *("shardline_device_batches_total", "shardline_device_images_per_second"),
        *("shardline_pipeline_batches_per_second", "shardline_broker_uptime_seconds"),
        "shardline_watch_ignored_messages_total",
        *("shardline_device_tokens_per_second", "shardline_device_cached_sequences"),
    }
    assert {name for name in KNOWN if not re.search(rf"{name}\b", shown)} == left_out


@pytest.mark.parametrize("panel", PANELS, ids=[f"{p['id']} {p['title']}" for p in PANELS])
def test_a_panel_says_what_it_shows_and_asks_the_chosen_source(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    for asked in (panel, *panel["targets"]):
        assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["fieldConfig"]["defaults"].get("unit") or panel["type"] == "state-timeline"


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_nothing_of_where_it_was_made_is_in_it() -> None:
    assert DASHBOARD["id"] is None
    assert all(variable["current"] == {} for variable in DASHBOARD["templating"]["list"])
    assert "http" not in FILE.read_text()
