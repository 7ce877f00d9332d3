"""The command: exit codes, one clear line for every error, right files, real settings."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from broker.embedded import EmbeddedBroker
from broker.transport import Connect, ConnectionSettings
from contract.errors import ExitCode
from tests.conftest import Done, Run, StartStage
from tests.tiny import HEIGHT, WIDTH, make_tiny_plan, tiny_answer

ROOT = Path(__file__).parent.parent.parent


def in_a_process(*arguments: object, cwd: Path, **env: str) -> Done:
    """The command as a person runs it: a new process, its own environment."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SHARDLINE_")}
    done = subprocess.run(
        [sys.executable, "-m", "shardline", *map(str, arguments)],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def one_line(done: Done, code: ExitCode, *words: str) -> None:
    """It ended with this code and one line that says these words, and with no traceback."""
    assert done.code == code, done
    assert "Traceback" not in done.out + done.err
    lines = [line for line in done.err.splitlines() if "Error: " in line]
    assert len(lines) == 1, done.err
    for word in words:
        assert word in lines[0]


@pytest.fixture
def plan_folder(tmp_path: Path) -> Path:
    make_tiny_plan(tmp_path, devices=())
    return tmp_path / "tiny"


@pytest.fixture
def array(tmp_path: Path) -> np.ndarray:
    generator = np.random.default_rng(5)
    array = generator.integers(0, 256, (19, 1, HEIGHT, WIDTH), dtype=np.uint8)
    np.save(tmp_path / "rows.npy", array)
    return array


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Grey pictures of the model's own size, in folders named as classes; one is broken."""
    folder = tmp_path / "pictures"
    generator = np.random.default_rng(6)
    for label in ("zero", "one", "unknown"):
        (folder / label).mkdir(parents=True)
        for index in range(3):
            pixels = generator.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")
    (folder / "one" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    return folder


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second for a broker that is not there, instead of ten."""
    quick = partial(ConnectionSettings, connect_timeout_s=0.5)
    monkeypatch.setattr("client.pipeline.ConnectionSettings", quick)
    monkeypatch.setattr("planner.publish.ConnectionSettings", quick)


# Results


def test_local_inference_writes_json_lines_that_are_right(
    run: Run, plan_folder: Path, array: np.ndarray, tmp_path: Path
) -> None:
    done = run("infer", "rows.npy", "--local", plan_folder, "--out", "out.jsonl", "--top-k", 2)
    assert done.code == 0, done
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [f"rows.npy[{i}]" for i in range(19)]
    best = tiny_answer(array).argmax(axis=1)
    names = ("zero", "one", "two", "three")
    for row, expected in zip(rows, best, strict=True):
        assert row["label"] is None
        assert [set(entry) for entry in row["top"]] == [{"class", "label", "score"}] * 2
        assert row["top"][0]["class"] == expected
        assert row["top"][0]["label"] == names[expected]
        assert 1 >= row["top"][0]["score"] >= row["top"][1]["score"] > 0
        assert row["latency_ms"] > 0
    assert len({row["batch_id"] for row in rows}) == 3  # batches of 8
    told = " ".join(done.out.split())
    assert "3 delivered" in told
    assert "0 lost" in told


def test_local_inference_writes_csv_that_is_right(
    run: Run, plan_folder: Path, array: np.ndarray, tmp_path: Path
) -> None:
    done = run("infer", "rows.npy", "--local", plan_folder, "--out", "out.csv", "--top-k", 2)
    assert done.code == 0, done
    with (tmp_path / "out.csv").open(newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header == [
        *("batch_id", "image", "label", "top1", "score1", "top2", "score2", "latency_ms", "error")
    ]
    assert len(rows) == 19
    assert all(len(row) == len(header) for row in rows)
    names = ("zero", "one", "two", "three")
    assert [row[3] for row in rows] == [names[i] for i in tiny_answer(array).argmax(axis=1)]


def test_rows_on_stdout_are_nothing_but_rows(
    run: Run, plan_folder: Path, array: np.ndarray
) -> None:
    done = run("infer", "rows.npy", "--local", plan_folder, "--out", "-")
    assert done.code == 0
    assert len([json.loads(line) for line in done.out.splitlines()]) == 19


def test_a_summary_as_json_is_json(run: Run, plan_folder: Path, array: np.ndarray) -> None:
    done = run("infer", "rows.npy", "--local", plan_folder / "plan.json", "--json")
    assert done.code == 0
    summary = json.loads(done.out)
    assert (summary["images"], summary["skipped"]) == (19, 0)
    assert summary["ledger"]["submitted"] == summary["ledger"]["delivered"] == 3
    assert summary["accuracy"] is None


def test_pictures_are_labelled_by_their_folders_and_a_broken_one_is_skipped(
    run: Run, plan_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    done = run("infer", pictures, "--local", plan_folder, "--json", "--out", "out.jsonl")
    assert done.code == 0, done
    summary = json.loads(done.out)
    assert (summary["images"], summary["skipped"], summary["labelled"]) == (9, 1, 6)
    assert "broken.png" in done.err
    assert "Traceback" not in done.err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    labels = {row["image"]: row["label"] for row in rows}
    assert labels["one/0.png"] == "one"
    assert labels["zero/2.png"] == "zero"
    assert labels["unknown/1.png"] is None
    correct = sum(row["label"] == row["top"][0]["label"] for row in rows if row["label"])
    assert summary["correct"] == correct


def test_inference_over_a_broker_gives_the_same_rows(
    run: Run,
    plan_folder: Path,
    array: np.ndarray,
    tmp_path: Path,
    shared_broker: EmbeddedBroker,
    connect: Connect,
    cluster: str,
    unique: str,
    start_stage: StartStage,
) -> None:
    devices = [f"pi-{i}-{unique}" for i in range(3)]
    for device in devices:
        start_stage(device, plan_folder)
    reach = ["--broker", shared_broker.address, "--cluster", cluster]
    named = [word for device in devices for word in ("--device", device)]
    published = run("publish", plan_folder, *named, *reach, "--json")
    assert published.code == 0, published
    placed = json.loads(published.out)
    assert [p["replicas"][0]["device"] for p in placed["placement"]] == devices
    over = run("infer", "rows.npy", *reach, "--out", "over.jsonl")
    assert over.code == 0, over
    assert run("infer", "rows.npy", "--local", plan_folder, "--out", "local.jsonl").code == 0
    both = [
        [
            (row["image"], row["top"])
            for row in map(json.loads, (tmp_path / f).read_text().split("\n")[:-1])
        ]
        for f in ("over.jsonl", "local.jsonl")
    ]
    assert both[0] == both[1]
    assert len(both[0]) == 19


def test_a_plan_is_shown_as_a_table_and_as_json(run: Run, plan_folder: Path) -> None:
    table = run("show", plan_folder)
    assert table.code == 0
    assert "hidden_1" in table.out
    assert "not placed yet" in table.out
    document = json.loads(run("show", plan_folder, "--json").out)
    assert document == json.loads((plan_folder / "plan.json").read_text())


# Errors


def test_an_unknown_model_is_named(run: Run) -> None:
    one_line(run("plan", "torchvision:resnet81"), ExitCode.MODEL, "resnet81", "resnet18")
    one_line(run("plan", "nothing.onnx"), ExitCode.MODEL, "nothing.onnx")


@pytest.mark.parametrize(
    "arguments",
    [
        ["infer", "x", "--no-such-option"],
        ["no-such-command"],
        ["infer"],
        ["stage"],
        ["infer", "x", "--top-k", "0"],
        ["infer", "x", "--window", "many"],
        ["broker", "--port", "70000"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_two_and_no_traceback(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.code == ExitCode.SETTINGS
    assert "Traceback" not in done.err
    assert done.err.strip()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "torchvision:resnet18", "--input", "32by32"], ["--input", "32x32"]),
        (["plan", "torchvision:resnet18", "--input", "0x32"], ["--input"]),
        (["plan", "torchvision:resnet18", "--mean", "a,b"], ["--mean", "0.5,0.5,0.5"]),
        (["plan", "torchvision:resnet18", "--model-arg", "x"], ["--model-arg", "NAME=VALUE"]),
        (["plan", "torchvision:resnet18", "--preprocess", "x"], ["--preprocess"]),
        (["plan", "torchvision:resnet18", "--partitioner", "x"], ["--partitioner", "exact"]),
        (["plan", "m", "--stages", "2", "--cut", "x"], ["--stages", "--cut"]),
        (["infer", "x", "--whole", "m", "--local", "p"], ["--local", "--whole"]),
        (["infer", "x", "--broker", "a:b:c"], ["host:port"]),
        (["infer", "x", "--password-file", "nowhere"], ["--password-file", "nowhere"]),
        (["stage", "--device", "a/b"], ["device", "a/b"]),
        (["stage", "--device", "pi", "--engine", "abacus"], ["abacus", "onnxruntime"]),
        (["stage", "--device", "pi", "--cluster", "+"], ["cluster"]),
    ],
    ids=lambda value: " ".join(value) if len(value) > 2 else None,
)
def test_a_setting_that_cannot_be_used_is_named(
    run: Run, arguments: list[str], words: list[str]
) -> None:
    one_line(run(*arguments), ExitCode.SETTINGS, *words)


def test_no_broker_is_told_with_the_address(run: Run, plan_folder: Path, impatient: None) -> None:
    for arguments in (["infer", "dummy:1"], ["publish", plan_folder]):
        done = run(*arguments, "--broker", "127.0.0.1:1")
        one_line(done, ExitCode.BROKER, "127.0.0.1:1", "shardline broker")


def test_no_plan_is_told(run: Run, shared_broker: EmbeddedBroker, cluster: str) -> None:
    done = run(
        *("infer", "dummy:1", "--broker", shared_broker.address),
        *("--cluster", cluster, "--ready-timeout", "2"),  # its own topics have to be heard in it
    )
    one_line(done, ExitCode.PLAN_OR_SHARD, cluster, "shardline publish")


def test_no_devices_are_told(
    run: Run, plan_folder: Path, shared_broker: EmbeddedBroker, cluster: str
) -> None:
    reach = ["--broker", shared_broker.address, "--cluster", cluster, "--ready-timeout", "0.3"]
    one_line(run("publish", plan_folder, *reach), ExitCode.DELIVERY, "3 stages", "shardline stage")
    done = run("publish", plan_folder, *reach, *("--device", "a", "--device", "b", "--device", "c"))
    one_line(done, ExitCode.DELIVERY, "a is not seen")
    done = run("publish", plan_folder, *reach, "--device", "a")
    one_line(done, ExitCode.PLAN_OR_SHARD, "3 stages")


@pytest.mark.parametrize(
    "command", [["show", "x"], ["publish", "x"], ["infer", "dummy:1", "--local", "x"]]
)
def test_a_folder_without_a_plan_is_told(run: Run, command: list[str]) -> None:
    one_line(run(*command), ExitCode.PLAN_OR_SHARD, "x", "shardline plan")


def test_a_missing_shard_is_told_by_its_file(run: Run, plan_folder: Path) -> None:
    (plan_folder / "stage-1" / "weights.safetensors").unlink()
    done = run("infer", "dummy:1", "--local", plan_folder)
    one_line(done, ExitCode.PLAN_OR_SHARD, "stage-1/weights.safetensors", "shardline plan")


def test_a_corrupt_shard_is_told_by_its_file(run: Run, plan_folder: Path) -> None:
    weights = plan_folder / "stage-2" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 64
    weights.write_bytes(bytes(data))
    done = run("infer", "dummy:1", "--local", plan_folder)
    one_line(done, ExitCode.PLAN_OR_SHARD, "stage-2/weights.safetensors", "sha256", "copy it again")


def test_a_shard_of_another_plan_is_told(run: Run, plan_folder: Path, tmp_path: Path) -> None:
    make_tiny_plan(tmp_path, seed=1, name="other", devices=())
    shutil.rmtree(plan_folder / "stage-1")
    shutil.copytree(tmp_path / "other" / "stage-1", plan_folder / "stage-1")
    done = run("infer", "dummy:1", "--local", plan_folder)
    one_line(done, ExitCode.PLAN_OR_SHARD, "expected plan", "got plan")


def _npy(path: Path, array: Any) -> None:
    np.save(path, array, allow_pickle=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: _npy(p, np.zeros((2, 1, 3, 3), np.uint8)), ["expected uint8", "(2, 1, 3, 3)"]),
        (lambda p: _npy(p, np.zeros((2, 1, 2, 3), np.float32)), ["expected uint8", "float32"]),
        (lambda p: _npy(p, np.zeros((0, 1, 2, 3), np.uint8)), ["expected uint8"]),
        (lambda p: _npy(p, np.array([{"a": 1}], object)), ["bad.npy"]),
        (lambda p: p.write_bytes(b"not an array"), ["bad.npy"]),
        (lambda p: p.write_bytes(b""), ["bad.npy"]),
        (lambda p: p.write_bytes(b"PK\x03\x04 half a zip"), ["bad.npy"]),
        (lambda p: None, ["bad.npy"]),
    ],
    ids=["shape", "dtype", "no row", "pickled", "text", "empty", "zip", "missing"],
)
def test_an_array_that_cannot_be_used_is_told(
    run: Run, plan_folder: Path, tmp_path: Path, make: Callable[[Path], None], words: list[str]
) -> None:
    make(tmp_path / "bad.npy")
    one_line(run("infer", "bad.npy", "--local", plan_folder), ExitCode.SETTINGS, *words)


@pytest.mark.parametrize(
    "source", ["nowhere", "*.jpg", "dummy:", "dummy:0", "dummy:x", "plain.txt"]
)
def test_a_source_that_holds_nothing_is_told(
    run: Run, plan_folder: Path, tmp_path: Path, source: str
) -> None:
    (tmp_path / "plain.txt").write_text("no picture")
    one_line(run("infer", source, "--local", plan_folder), ExitCode.SETTINGS)


def test_a_batch_larger_than_the_plan_s_is_told(run: Run, plan_folder: Path) -> None:
    done = run("infer", "dummy:1", "--local", plan_folder, "--batch", 9)
    one_line(done, ExitCode.SETTINGS, "--batch 9", "8")


def test_an_output_file_of_another_kind_is_refused_and_left_alone(
    run: Run, plan_folder: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "notes.txt"
    precious.write_text("my notes")
    done = run("infer", "dummy:1", "--local", plan_folder, "--out", precious)
    one_line(done, ExitCode.SETTINGS, ".jsonl")
    assert precious.read_text() == "my notes"


def test_an_output_folder_that_is_not_there_is_told(run: Run, plan_folder: Path) -> None:
    done = run("infer", "dummy:1", "--local", plan_folder, "--out", "no/where.csv")
    one_line(done, ExitCode.SETTINGS, "no/where.csv")


# Settings


def test_a_setting_comes_from_the_environment_and_a_flag_wins(
    run: Run, plan_folder: Path, array: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARDLINE_LOCAL", str(plan_folder))
    monkeypatch.setenv("SHARDLINE_BATCH", "5")
    assert json.loads(run("infer", "rows.npy", "--json").out)["ledger"]["submitted"] == 4
    by_flag = run("infer", "rows.npy", "--json", "--batch", "1")
    assert json.loads(by_flag.out)["ledger"]["submitted"] == 19


def test_a_setting_comes_from_the_env_file_and_the_environment_wins(
    plan_folder: Path, array: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(f"SHARDLINE_LOCAL={plan_folder}\nSHARDLINE_BATCH=5\n")
    by_file = in_a_process("infer", "rows.npy", "--json", cwd=tmp_path)
    assert by_file.code == 0, by_file
    assert json.loads(by_file.out)["ledger"]["submitted"] == 4
    by_env = in_a_process("infer", "rows.npy", "--json", cwd=tmp_path, SHARDLINE_BATCH="1")
    assert json.loads(by_env.out)["ledger"]["submitted"] == 19


def test_an_error_in_a_real_process_is_one_line_and_its_code(tmp_path: Path) -> None:
    done = in_a_process("show", "nowhere", cwd=tmp_path)
    one_line(done, ExitCode.PLAN_OR_SHARD, "nowhere")
    assert len(done.err.splitlines()) == 1


def commands() -> dict[str, Any]:
    from shardline.app import app

    group = typer.main.get_command(app)
    return dict(group.commands)


def options() -> list[tuple[str, Any]]:
    return [
        (name, parameter)
        for name, command in commands().items()
        for parameter in command.params
        if parameter.param_type_name == "option"
    ]


def test_every_command_of_the_design_is_there() -> None:
    assert set(commands()) == {
        *("demo", "plan", "profile", "show", "publish", "verify", "stage", "infer", "broker"),
        *("doctor", "deploy", "journal", "trace", "top", "metrics", "dashboard"),
        *("generate", "serve"),
    }


TWO_MEANINGS = {
    ("plan", "--device"): "DEVICES",
    ("plan", "--devices"): "DEVICE_FILE",
    ("publish", "--device"): "DEVICES",
    ("publish", "--devices"): "DEVICE_FILE",
    ("profile", "--device"): "DEVICES",
    ("profile", "--batch"): "PROFILE_BATCHES",
    ("profile", "--out"): "PROFILE",
    ("infer", "--out"): "RESULTS",
    ("generate", "--top-k"): "SAMPLE_TOP_K",
    ("generate", "--seed"): "SAMPLE_SEED",
    ("generate", "--sequences"): "TEXTS",
    ("serve", "--host"): "SERVE_HOST",
    ("serve", "--port"): "SERVE_PORT",
    ("metrics", "--profile"): "METRICS_PROFILE",
    ("metrics", "--seconds"): "METRICS_SECONDS",
}
"""Where one flag means another thing than in other commands, its variable has another name."""


def test_every_option_is_also_an_environment_variable() -> None:
    found = options()
    assert len(found) > 50
    for command, option in found:
        flag = next(text for text in option.opts if text.startswith("--"))
        if flag == "--help":
            continue
        name = TWO_MEANINGS.get((command, flag), flag.removeprefix("--").replace("-", "_").upper())
        assert option.envvar == f"SHARDLINE_{name}", f"{command} {flag}"


def test_every_option_has_a_help_text() -> None:
    assert [f"{c} {o.opts}" for c, o in options() if not o.help] == []


def test_every_environment_variable_is_documented() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    documented = set(re.findall(r"SHARDLINE_[A-Z_]+", text))
    variables = {str(option.envvar) for _, option in options() if option.envvar}
    assert variables | {"SHARDLINE_PASSWORD"} <= documented


def test_the_doctor_is_content_here(run: Run) -> None:
    done = run("doctor", "--json")
    findings = json.loads(done.out)
    assert {finding["what"] for finding in findings} >= {"python", "mosquitto", "onnxruntime"}
    assert done.code == 0, findings


def test_help_is_given_without_loading_anything_heavy(run: Run) -> None:
    for name in commands():
        done = run(name, "--help")
        assert done.code == 0
        assert "--help" in done.out
