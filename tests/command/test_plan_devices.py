"""`shardline plan --devices`: from a file of devices to a verdict, a plan, answers to what-if."""

import json
from pathlib import Path

import pytest

from tests.conftest import Run

MODEL = ("tests.planner.small_models:Plain", "--weights", "random", "--input", "32x32")
DRAWER = """
devices:
  - {name: quick, kind: other-amd64, speed: 2.0}
  - {name: slow, kind: other-amd64, count: 2}
broker: {link: 100 Mbit/s}
"""


@pytest.fixture
def drawer(tmp_path: Path) -> Path:
    path = tmp_path / "drawer.yaml"
    path.write_text(DRAWER)
    return path


def test_a_device_file_gives_a_placed_plan_with_its_verdict(
    run: Run, drawer: Path, tmp_path: Path
) -> None:
    done = run("plan", *MODEL, "--devices", drawer, "--name", "d", "--out", tmp_path)
    assert done.code == 0, done
    assert "recommended" in done.out
    assert "optimal" in done.out
    plan = json.loads((tmp_path / "d" / "plan.json").read_text())
    assert plan["verdict"]["chosen"] == plan["verdict"]["recommended"]
    assert plan["prediction"]["based_on"].startswith("other-amd64: this machine's times")
    placed = {replica["device"] for spot in plan["placement"] for replica in spot["replicas"]}
    assert placed <= {"quick", "slow-0", "slow-1"}
    page = tmp_path / "page.html"
    assert run("show", tmp_path / "d", "--html", page).code == 0
    assert plan["verdict"]["reason"].split(";")[0] in page.read_text()


def test_a_strategy_is_taken_and_the_recommendation_still_told(
    run: Run, drawer: Path, tmp_path: Path
) -> None:
    options = ("--devices", drawer, "--name", "d", "--out", tmp_path, "--strategy", "pipeline")
    done = run("plan", *MODEL, *options, "--json")
    assert done.code == 0, done
    plan = json.loads(done.out)
    assert plan["verdict"]["chosen"] == "pipeline"
    assert len(plan["stages"]) >= 2
    assert all(len(spot["replicas"]) == 1 for spot in plan["placement"])


def test_what_if_builds_nothing_and_answers(run: Run, drawer: Path, tmp_path: Path) -> None:
    done = run("plan", *MODEL, "--devices", drawer, "--what-if", "--out", tmp_path / "none")
    assert done.code == 0, done
    assert "3 devices" in done.out
    assert not (tmp_path / "none").exists()
    answers = json.loads(run("plan", *MODEL, "--devices", drawer, "--what-if", "--json").out)
    assert [one["devices"] for one in answers["scaling"]] == [1, 2, 3]
    assert answers["advice"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--what-if",), ["--what-if needs --devices"]),
        (("--strategy", "pipeline"), ["--strategy needs --devices"]),
        (("--strategy", "x", "--devices", "drawer.yaml"), ["--strategy 'x'", "replicas"]),
        (("--codec", "zip"), ["--codec 'zip'", "int8"]),
        (("--objective", "x"), ["--objective 'x'", "latency"]),
        (("--devices", "none.yaml"), ["none.yaml", "cannot read"]),
        (("--devices", "none.json"), ["none.json", "shardline profile"]),
        (("--device", "a", "--devices", "drawer.yaml"), ["--device and --devices"]),
        (("--devices", "drawer.yaml", "--calibration", "nowhere"), ["nowhere", "no pictures"]),
    ],
)
def test_options_that_cannot_be_used_are_told(
    run: Run, drawer: Path, arguments: tuple[str, ...], told: list[str]
) -> None:
    done = run("plan", *MODEL, *arguments)
    assert done.code == 2, done
    assert all(words in done.err for words in told), done.err
    assert "Traceback" not in done.err


def test_a_device_without_enough_memory_is_told_with_what_would_do(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "tight.yaml").write_text(
        "devices:\n  - {name: pi-a, kind: raspberry-pi-zero-2-w, memory: 16m}\n"
    )
    done = run("plan", *MODEL, "--devices", "tight.yaml")
    assert done.code == 6, done
    assert "pi-a" in done.err
    assert "MB" in done.err


def test_a_profile_of_another_model_is_refused(run: Run, tmp_path: Path) -> None:
    timings = {"batch_size": 1, "segment_ms": [1.0], "whole_ms": 1.0}
    device = {
        "device": "pi-a",
        "kind": "a board",
        "machine": "aarch64",
        "engine": "onnxruntime",
        "engine_version": "1",
        "cores": 4,
        "threads": 4,
        "memory_available_bytes": 10**9,
        "base_bytes": 10**8,
        "timings": [timings],
        "relay_message_ms": 0.5,
        "relay_byte_ms": 1e-6,
        "time_unix_s": 0.0,
    }
    profile = {
        "format_version": 1,
        "digest": "0" * 64,
        "model": "torchvision:other",
        "batch_sizes": [1],
        "devices": [device],
        "time_unix_s": 0.0,
    }
    (tmp_path / "other.json").write_text(json.dumps(profile))
    done = run("plan", *MODEL, "--devices", "other.json")
    assert done.code == 2, done
    assert "torchvision:other" in done.err
    assert "shardline profile" in done.err
