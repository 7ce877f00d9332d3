"""Compose itself reads the file of the repository and every rendered one, without a warning."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.rendering import render_fleet
from tests.deploy.fleets import FLEET, SEPARATE_BROKER, WITH_PASSWORDS, write_fleet

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.arm64.yml"
EXAMPLE = (ROOT / ".env.example").read_text()
ARGUMENTS = ("config", "--quiet")


def compose(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("docker-compose")
    assert program, "docker-compose is missing; on Debian: sudo apt install docker-compose"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SHARDLINE_", "COMPOSE_"))}
    return subprocess.run(
        [program, *arguments],
        cwd=cwd,
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def accepted(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "", "a warning is a defect too"


def resolved(folder: Path, *arguments: str, **env: str) -> dict[str, Any]:
    done = compose(*arguments, "config", cwd=folder, **env)
    accepted(done)
    document = yaml.safe_load(done.stdout)
    assert isinstance(document, dict)
    return document


def test_compose_accepts_the_file_without_any_variable(tmp_path: Path) -> None:
    copy = tmp_path / COMPOSE_FILE.name
    copy.write_text(COMPOSE_FILE.read_text())
    accepted(compose("-f", copy.name, *ARGUMENTS, cwd=tmp_path))
    profiles = [
        word for p in ("broker", "planner", "client", "dashboard") for word in ("--profile", p)
    ]
    accepted(compose("-f", copy.name, *profiles, *ARGUMENTS, cwd=tmp_path))


def test_compose_accepts_the_file_with_the_example_s_variables(tmp_path: Path) -> None:
    copy = tmp_path / COMPOSE_FILE.name
    copy.write_text(COMPOSE_FILE.read_text())
    (tmp_path / ".env").write_text(re.sub(r"^#(?=SHARDLINE_)", "", EXAMPLE, flags=re.M))
    document = resolved(tmp_path, "-f", copy.name)
    assert document["services"]["stage"]["environment"]["SHARDLINE_DEVICE"] == "pi-0"
    assert document["services"]["broker"]["image"] == "shardline/broker:0.1.0"


@pytest.mark.parametrize(
    "text",
    [FLEET, SEPARATE_BROKER, WITH_PASSWORDS],
    ids=["on a Pi", "on its own", "with passwords"],
)
def test_compose_accepts_every_rendered_folder(tmp_path: Path, text: str) -> None:
    render_fleet(write_fleet(tmp_path, text), None, (1000, 1000))
    folders = [file.parent for file in tmp_path.rglob("docker-compose.yml")]
    assert len(folders) == (7 if text is SEPARATE_BROKER else 6)
    for folder in folders:
        accepted(compose(*ARGUMENTS, cwd=folder))


def test_a_rendered_device_is_what_its_fleet_says(tmp_path: Path) -> None:
    render_fleet(write_fleet(tmp_path), None, (1000, 1000))
    stage = resolved(tmp_path / "pi-1")["services"]["stage"]
    assert stage["user"] == "1001:1002"
    assert stage["mem_limit"] == stage["memswap_limit"] == "200m"
    assert stage["environment"]["SHARDLINE_DEVICE"] == "pi-1"
    assert stage["environment"]["SHARDLINE_BROKER"] == "192.168.1.20:8883"
    assert "build" not in stage
    [mount] = [m for m in stage["volumes"] if str(m).count("/run/secrets/shardline")]
    source = Path(mount["source"] if isinstance(mount, dict) else mount.partition(":")[0])
    key = (tmp_path / "credentials" / "pi-1.key").read_text()
    assert (source / "user.key").read_text() == key


def test_a_broken_file_is_not_accepted(tmp_path: Path) -> None:
    """The control of this file: Compose does look."""
    (tmp_path / "docker-compose.yml").write_text("services:\n  a:\n    imagee: x\n")
    assert compose(*ARGUMENTS, cwd=tmp_path).returncode != 0
