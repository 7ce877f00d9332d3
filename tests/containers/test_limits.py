"""ResNet50 on four devices of a quarter core and 256 MB each, and whole on one such device."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.containers.fleet import ROOT, ContainerFleet

DEVICES = ("pi-0", "pi-1", "pi-2", "pi-3")
LIMITS = {"services": {"stage": {"cpus": 0.25}}}
MB = 1_000_000
IMAGES = 60


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerFleet]:
    with ContainerFleet(
        tmp_path_factory.mktemp("limits"),
        DEVICES,
        kind="other-amd64",
        arch="amd64",
        inventory={device: {"memory": "256m"} for device in DEVICES},
        faults=dict.fromkeys(DEVICES, LIMITS),
    ) as fleet:
        fleet.start("hub", *DEVICES)
        yield fleet


def peak(fleet: ContainerFleet, device: str) -> dict[str, float]:
    """The stage process's memory, MB: resident now and at its peak, weights read from the disk
    included; and whether the kernel ever had to kill."""
    container = fleet.container(device)
    pid = fleet.inspect(container, "{{.State.Pid}}")
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert fleet.inspect(container, "{{.State.OOMKilled}} {{.RestartCount}}") == "false 0"
    return {
        "now": int(status["VmRSS"].split()[0]) * 1024 / MB,
        "peak": int(status["VmHWM"].split()[0]) * 1024 / MB,
    }


def answers(fleet: ContainerFleet) -> dict[str, list[tuple[int, float]]]:
    rows = fleet.folder / "clients" / "client" / "results" / "results.jsonl"
    found = {}
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        found[Path(row["image"]).name] = [(top["class"], top["score"]) for top in row["top"]]
    return found


def serve(fleet: ContainerFleet, stages: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plan, publish and feed; the answers to photographs, and the figures of a longer run."""
    name = f"resnet50-{stages}"
    fleet.planner(
        *("plan", "torchvision:resnet50", "--weights", "random", "--seed", "1"),
        *("--stages", str(stages), "--batch", "1", "--name", name),
    )
    devices = [f"--device={device}" for device in DEVICES[:stages]]
    fleet.planner("publish", f"shards/built/{name}", *devices)
    photographs = ROOT / "examples" / "photographs"
    fleet.infer(photographs)
    answered = answers(fleet)
    many = fleet.folder / f"many-{stages}"
    many.mkdir()
    pictures = sorted(photographs.glob("*.jpg"))
    for index in range(IMAGES):
        (many / f"{index}.jpg").write_bytes(pictures[index % len(pictures)].read_bytes())
    fleet.take_over()
    summary = fleet.infer(many, "--window", str(2 * stages))
    assert summary["ledger"]["delivered"] == IMAGES
    return answered, summary


def test_four_small_devices_run_what_one_runs_with_the_same_answers(
    fleet: ContainerFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    for device in DEVICES:
        container = fleet.container(device)
        limits = fleet.inspect(container, "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}}")
        assert limits == f"250000000 {256 * 1024**2}"
    split, fast = serve(fleet, 4)
    memory = {device: peak(fleet, device) for device in DEVICES}
    fleet.compose("pi-0", "up", "-d", "--force-recreate")  # so that its peak is the whole model's
    whole, slow = serve(fleet, 1)
    memory["whole"] = peak(fleet, "pi-0")
    assert split.keys() == whole.keys()
    for name in whole:
        assert [c for c, _ in split[name]] == [c for c, _ in whole[name]]
        for (_, ours), (_, theirs) in zip(split[name], whole[name], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-4)
    ratio = fast["images_per_s"] / slow["images_per_s"]
    lines = [
        "",
        "ResNet50, a quarter core and 256 MB for each stage",
        *(
            f"  {device:6} {figures['now']:6.0f} MB now {figures['peak']:6.0f} MB peak"
            for device, figures in memory.items()
        ),
        f"  four devices against one: {ratio:.2f} x the images/s",
    ]
    with capsys.disabled():  # stderr: what a worker of several writes to stdout is not shown
        sys.stderr.write("\n".join(lines) + "\n")
    assert max(memory[device]["peak"] for device in DEVICES) < memory["whole"]["peak"]
    assert all(figures["peak"] < 256 for figures in memory.values())
