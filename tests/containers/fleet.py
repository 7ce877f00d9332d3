"""A fleet of containers on a private network of this machine: rendered folders, as on real Pis.

Each machine of the fleet is a folder that `shardline deploy render` wrote, run by its own
docker-compose project. What differs from a drawer of Pis is added from outside, in an override file
in each folder: all projects join one network of the test's own, without a way out.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from contract.version import SHARDLINE_VERSION

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
WEIGHTS_IN_PLANNER = "/opt/shardline/app/examples/digits/weights.safetensors"
VERSION = SHARDLINE_VERSION
UID = 1000  # who owns the files on a Pi, and who the containers run as, if nothing else is said


def run(
    *command: str, timeout_s: float = 120, check: bool = True, **more: Any
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, **more
    )
    if check and done.returncode != 0:
        pytest.fail(
            f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-4000:]}\n"
            f"{done.stderr[-4000:]}"
        )
    return done


def shardline(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """The command on this machine, outside any container."""
    return run(sys.executable, "-m", "shardline", *arguments, cwd=ROOT, **more)


def secret_lines(folder: Path) -> list[str]:
    """Every line of every private key and password of a fleet."""
    files = [*folder.glob("credentials/*"), *folder.glob("authority/*.key")]
    lines = [
        line
        for file in files
        if file.suffix != ".crt"
        for line in file.read_text().splitlines()
        if not line.startswith("-----")
    ]
    assert len(lines) >= 6
    return lines


def until(condition: Callable[[], object], what: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.5)


class ContainerFleet:
    """Use as a context manager; everything that it made is gone at the end."""

    def __init__(
        self,
        folder: Path,
        devices: Sequence[str],
        *,
        kind: str,
        arch: str,
        inventory: Mapping[str, Mapping[str, object]] | None = None,
        faults: Mapping[str, Mapping[str, Any]] | None = None,
        stage_image: str | None = None,
        uid: int = UID,
    ) -> None:
        """``inventory`` adds to a device in fleet.yaml, ``faults`` to its folder's override."""
        self.folder, self.devices = folder / "fleet", tuple(devices)
        self.id = f"sl-{secrets.token_hex(3)}"
        self.uid = uid
        self._kind, self._inventory, self._faults = kind, inventory or {}, faults or {}
        self.env = {
            **os.environ,
            "SHARDLINE_UID": str(uid),
            "SHARDLINE_GID": str(uid),
            "SHARDLINE_STAGE_IMAGE": stage_image or f"shardline/stage:{VERSION}-{arch}",
            "SHARDLINE_BROKER_IMAGE": f"shardline/broker:{VERSION}-{arch}",
            "SHARDLINE_THREADS": "1",
        }

    def __enter__(self) -> "ContainerFleet":
        run("docker", "network", "create", "--internal", self.id)
        try:
            self._render()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _render(self) -> None:
        file = self.folder / "fleet.yaml"
        named = [f"--device={name}=10.77.0.{n}" for n, name in enumerate(self.devices, 10)]
        init = ["init", "--fleet", str(file), "--kind", self._kind, "--broker-host", "hub=broker"]
        shardline("deploy", *init, *named)
        text = yaml.safe_load(file.read_text())
        for device in text["devices"]:
            device.update(self._inventory.get(device["name"], {}))
        file.write_text(yaml.safe_dump(text))
        shardline("deploy", "render", "--fleet", str(file))
        for name in (*self.devices, "hub", "planner", "clients/client"):
            override = {
                "networks": {"default": {"external": True, "name": self.id}},
                **self._faults.get(name, {}),
            }
            target = self.folder / name / "docker-compose.override.yml"
            target.write_text(yaml.safe_dump(override))
        self.take_over()

    def take_over(self) -> None:
        """As `scp` to a Pi does it: the files belong to the user there."""
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, self.uid, self.uid)
        self.folder.parent.chmod(0o755)

    def compose(self, machine: str, *arguments: str, **more: Any) -> Any:
        """docker-compose in one machine's folder."""
        environment = {**self.env, **more.pop("env", {})}
        return run(
            "docker-compose",
            *("-p", f"{self.id}-{machine.replace('/', '-')}"),
            *arguments,
            cwd=self.folder / machine,
            env=environment,
            **more,
        )

    def from_the_root(self, *arguments: str, **more: Any) -> Any:
        """docker-compose as beside a checkout's ``fleet/``, with the file that lies there.

        Nothing of its environment fits the fleet: only fleet.yaml does.
        """
        root = self.folder.parent
        shutil.copy(ROOT / "docker-compose.arm64.yml", root)
        network = root / "network.yml"
        external = {"networks": {"default": {"external": True, "name": self.id}}}
        network.write_text(yaml.safe_dump(external))
        return run(
            *("docker-compose", "-p", f"{self.id}-root"),
            *("-f", str(root / "docker-compose.arm64.yml"), "-f", str(network)),
            *arguments,
            cwd=root,
            env={**self.env, "SHARDLINE_BROKER": "127.0.0.1:9"},
            **more,
        )

    def start(self, *machines: str) -> None:
        for machine in machines:
            self.compose(machine, "up", "-d")

    def container(self, machine: str, service: str = "stage") -> str:
        found = self.compose(machine, "ps", "-q", service).stdout.strip()
        assert found, f"{service} of {machine} has no container"
        return str(found)

    def inspect(self, container: str, template: str) -> str:
        return run("docker", "inspect", "-f", template, container).stdout.strip()

    def wait_healthy(self, machine: str, service: str, timeout_s: float = 120) -> None:
        container = self.container(machine, service)
        until(
            lambda: self.inspect(container, "{{.State.Health.Status}}") == "healthy",
            f"{service} of {machine} is healthy; "
            + run("docker", "logs", "--tail", "20", container, check=False).stderr,
            timeout_s,
        )

    def planner(self, *arguments: str, timeout_s: float = 400) -> str:
        return str(
            self.compose(
                "planner", "run", "--rm", "-T", "planner", *arguments, timeout_s=timeout_s
            ).stdout
        )

    def infer(self, pictures: Path, *arguments: str, timeout_s: float = 400) -> Any:
        """The client's summary, from its own container."""
        done = self.compose(
            "clients/client",
            *("run", "--rm", "-T", "client", "infer", "/pictures", "--json", *arguments),
            timeout_s=timeout_s,
            env={"SHARDLINE_PICTURES": str(pictures)},
        )
        return json.loads(done.stdout)

    def _observer(self, topic: str, *arguments: str) -> list[str]:
        """`mosquitto_sub` in a container of its own, with the observer's credential."""
        user = self.folder / "observers" / "observer"
        return [
            *("docker", "run", "--rm", "--network", self.id, "--user", f"{self.uid}:{self.uid}"),
            *("-v", f"{user}:/observer:ro", "-w", "/observer", "-e", "XDG_CONFIG_HOME=/observer"),
            *("--entrypoint", "mosquitto_sub", self.env["SHARDLINE_BROKER_IMAGE"]),
            *("-t", topic, *arguments),
        ]

    def observe(self, topic: str, count: int, timeout_s: int = 60) -> list[dict[str, Any]]:
        """The next messages on a topic."""
        command = self._observer(topic, "-C", str(count), "-W", str(timeout_s))
        text = run(*command, timeout_s=timeout_s + 30).stdout
        found, at, decoder = [], 0, json.JSONDecoder()
        while at < len(text):  # the plan is JSON of many lines
            document, end = decoder.raw_decode(text, at)
            found.append(document)
            at = end + 1
        return found

    @contextmanager
    def watching(self, topic: str) -> Iterator[Iterator[dict[str, Any]]]:
        """The messages on a topic as they come, one line each."""
        with subprocess.Popen(self._observer(topic), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield (json.loads(line) for line in process.stdout)
            finally:
                process.terminate()

    def logs(self, machine: str, service: str = "stage") -> str:
        done = run("docker", "logs", self.container(machine, service), check=False)
        return done.stdout + done.stderr

    def kill(self, machine: str, service: str = "stage") -> None:
        """SIGKILL to the process itself: for Docker it has crashed, so it is started again."""
        pid = self.inspect(self.container(machine, service), "{{.State.Pid}}")
        run("kill", "-KILL", pid)

    def close(self) -> None:
        for name in (*self.devices, "hub", "planner", "clients/client"):
            if (self.folder / name).is_dir():
                self.compose(name, "down", "-v", "-t", "5", "--remove-orphans", check=False)
        if self.folder.is_dir():
            self.from_the_root("down", "-v", check=False)
        run("docker", "network", "rm", self.id, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
