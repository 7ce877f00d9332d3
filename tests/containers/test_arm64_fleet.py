"""The way people use it, under emulation: a broker, a planner, three arm64 stages, a client."""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.plan import load_plan
from tests.containers.fleet import (
    DIGITS,
    WEIGHTS_IN_PLANNER,
    ContainerFleet,
    run,
    secret_lines,
    shardline,
    until,
)

DEVICES = ("pi-0", "pi-1", "pi-2")
COPIES = 6


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerFleet]:
    folder = tmp_path_factory.mktemp("arm64")
    with ContainerFleet(folder, DEVICES, kind="raspberry-pi-4", arch="arm64") as fleet:
        fleet.start("hub", *DEVICES)
        fleet.planner(
            *("plan", "torchvision:mobilenet_v2", "--weights", WEIGHTS_IN_PLANNER),
            *("--stages", "3", "--batch", "8", "--name", "digits"),
        )
        fleet.planner("publish", "shards/built/digits", "--ready-timeout", "180")
        yield fleet


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The whole model's answer to each held-out picture, on this machine."""
    out = tmp_path_factory.mktemp("whole") / "rows.jsonl"
    shardline(
        *("infer", str(DIGITS / "held_out"), "--whole", "torchvision:mobilenet_v2"),
        *("--weights", str(DIGITS / "weights.safetensors"), "--out", str(out)),
        timeout_s=300,
    )
    return top1(out)


def top1(rows: Path) -> dict[str, int]:
    """The best class of each picture, by the picture's name within its folder."""
    answers = {}
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        answers["/".join(Path(row["image"]).parts[-2:])] = row["top"][0]["class"]
    return answers


def test_the_stages_really_are_arm64(fleet: ContainerFleet) -> None:
    for device in DEVICES:
        container = fleet.container(device)
        assert run("docker", "exec", container, "uname", "-m").stdout.strip() == "aarch64"
    statuses = fleet.observe("shardline/default/device/+/status", 3)
    assert {s["capabilities"]["machine"] for s in statuses} == {"aarch64"}
    assert {s["shard"] for s in statuses} == {"ready"}


def test_each_container_is_non_root_read_only_and_limited(fleet: ContainerFleet) -> None:
    for machine, service in (("hub", "broker"), *((device, "stage") for device in DEVICES)):
        container = fleet.container(machine, service)
        host = json.loads(fleet.inspect(container, "{{json .HostConfig}}"))
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["Memory"] > 0
        assert host["LogConfig"]["Config"]["max-size"]
        assert run("docker", "exec", container, "id", "-u").stdout.strip() == "1000"
        refused = run("docker", "exec", container, "touch", "/opt/x", check=False)
        assert refused.returncode != 0


def test_every_container_becomes_healthy(fleet: ContainerFleet) -> None:
    fleet.wait_healthy("hub", "broker")
    for device in DEVICES:
        fleet.wait_healthy(device, "stage")


def test_the_shards_came_over_the_broker_into_the_volume(fleet: ContainerFleet) -> None:
    plan = load_plan(fleet.folder / "planner" / "shards" / "built" / "digits")
    for index, device in enumerate(DEVICES):
        listed = run(
            "docker", "exec", fleet.container(device), "ls", "/var/lib/shardline/cache/blobs"
        ).stdout.split()
        stage = plan.stages[index]
        assert sorted(listed) == sorted([stage.graph.sha256, stage.weights.sha256])


def test_held_out_pictures_get_the_whole_models_answers(
    fleet: ContainerFleet, whole: dict[str, int]
) -> None:
    summary = fleet.infer(DIGITS / "held_out")
    assert summary["images"] == len(whole) == 400
    assert summary["ledger"]["lost"] == summary["ledger"]["dead"] == 0
    rows = fleet.folder / "clients" / "client" / "results" / "results.jsonl"
    assert top1(rows) == whole
    assert summary["correct"] / summary["labelled"] == pytest.approx(0.9925, abs=0.003)


def test_the_metrics_topic_tells_of_every_device(fleet: ContainerFleet) -> None:
    seen = fleet.observe("shardline/+/metrics/#", 24)  # one a second each, if none lags
    assert {m["device"] for m in seen if "device" in m} == set(DEVICES)
    assert all(m["shard"] == "ready" and m["rss_bytes"] > 0 for m in seen if "device" in m)


def test_a_stage_killed_in_mid_run_costs_no_batch(
    fleet: ContainerFleet,
    whole: dict[str, int],
    tmp_path: Path,
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    pictures = tmp_path / "pictures"
    for copy in range(COPIES):
        for digit in (DIGITS / "held_out").iterdir():
            target = pictures / digit.name
            target.mkdir(parents=True, exist_ok=True)
            for picture in digit.iterdir():
                shutil.copy(picture, target / f"{copy}-{picture.name}")
    for path in (tmp_path, pictures):
        path.chmod(0o755)
    before = restarts(fleet, "pi-1")
    summary: dict[str, Any] = {}
    feeding = threading.Thread(
        target=lambda: summary.update(
            fleet.infer(pictures, "--ready-timeout", "180", timeout_s=440)
        )
    )
    with fleet.watching("shardline/default/metrics/pi-1") as metrics:
        already = next(metrics)["batches_total"]
        feeding.start()
        for seen in metrics:  # one a second
            if seen["batches_total"] > already + 10:
                break
        assert feeding.is_alive()
        fleet.kill("pi-1")
    killed_at = time.monotonic()
    feeding.join(timeout=450)
    assert not feeding.is_alive()
    assert summary, "the client failed"
    record_testsuite_property("seconds from the kill to the end", time.monotonic() - killed_at)
    assert restarts(fleet, "pi-1") == before + 1
    assert summary["images"] == 400 * COPIES
    ledger = summary["ledger"]
    assert ledger["delivered"] == ledger["submitted"] == 400 * COPIES // 8
    assert ledger["lost"] == ledger["dead"] == 0
    # Whether batches came again from the broker or were retried, the new process did the rest.
    [after] = fleet.observe("shardline/default/metrics/pi-1", 1)
    assert 0 < after["batches_total"] < ledger["submitted"], "the kill was not in mid-run"
    assert summary["correct"] == COPIES * sum(
        name.partition("/")[0] == str(answer) for name, answer in whole.items()
    )


def restarts(fleet: ContainerFleet, machine: str) -> int:
    return int(fleet.inspect(fleet.container(machine), "{{.RestartCount}}"))


def test_no_key_is_in_a_log_or_in_the_containers_settings(fleet: ContainerFleet) -> None:
    secrets = secret_lines(fleet.folder)
    for machine, service in (("hub", "broker"), *((device, "stage") for device in DEVICES)):
        said = fleet.logs(machine, service)
        said += run("docker", "inspect", fleet.container(machine, service)).stdout
        assert not any(secret in said for secret in secrets)


def test_another_device_s_certificate_is_one_clear_line_and_the_stage_tries_again(
    fleet: ContainerFleet,
) -> None:
    files = [fleet.folder / "pi-2" / "secrets" / name for name in ("user.crt", "user.key")]
    right = [file.read_text() for file in files]
    try:
        for file, kind in zip(files, ("crt", "key"), strict=True):
            file.write_text((fleet.folder / "credentials" / f"pi-1.{kind}").read_text())
        fleet.compose("pi-2", "up", "-d", "--force-recreate")
        said = "is the certificate of 'pi-1', and the user shall be 'pi-2'"
        until(lambda: said in fleet.logs("pi-2"), "the refusal is told", 60)
        assert "Traceback" not in fleet.logs("pi-2")
    finally:
        for file, text in zip(files, right, strict=True):
            file.write_text(text)
        fleet.compose("pi-2", "up", "-d", "--force-recreate")


def test_the_broker_survives_a_restart_with_the_plan(fleet: ContainerFleet) -> None:
    fleet.compose("hub", "restart", "-t", "20", "broker")
    fleet.wait_healthy("hub", "broker")  # emulated, it takes seconds until it listens
    [plan] = fleet.observe("shardline/default/plan", 1)
    assert plan["name"] == "digits"
    summary = fleet.infer(DIGITS / "held_out", "--ready-timeout", "120")
    assert summary["images"] == 400


def test_a_stage_stops_in_order_when_asked(fleet: ContainerFleet) -> None:
    started = time.monotonic()
    fleet.compose("pi-0", "stop")
    assert time.monotonic() - started < 25
    container = fleet.container("pi-0")
    assert fleet.inspect(container, "{{.State.ExitCode}}") == "0"
    [status] = fleet.observe("shardline/default/device/pi-0/status", 1)
    assert status["state"] == "stopped"


def test_compose_v2_is_asked_too_where_it_is_installed(fleet: ContainerFleet) -> None:
    """Debian 12 has no `docker compose`; where a machine has it, it must read the same files."""
    there = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
    command = ["docker", "compose"] if there else ["docker-compose"]
    for machine in ("hub", "pi-0", "planner", "clients/client"):
        run(*command, "config", "-q", cwd=fleet.folder / machine, env=fleet.env)
