"""The playbook, run by the real Ansible; each machine is a folder here, reached without ssh."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.fleet import ROOT, UID, VERSION, ContainerFleet, run, secret_lines

MACHINES = ("hub", "pi-0", "pi-1")


class Control:
    """Whoever types `ansible-playbook`."""

    def __init__(self, fleet: ContainerFleet, remote: Path) -> None:
        self.fleet, self.remote = fleet, remote

    def folder(self, machine: str) -> Path:
        """Named after the fleet: Compose names containers after it, and all run on one machine."""
        return self.remote / f"{self.fleet.id}-{machine}"

    def play(self, *arguments: str) -> str:
        """What it says at its most talkative, in which no key may be."""
        done = subprocess.run(
            [
                *(ROOT / ".venv/bin/ansible-playbook", "-i", "inventory.ini", "playbook.yml"),
                *("-e", "ansible_connection=local"),
                *("-e", f"ansible_python_interpreter={sys.executable}"),
                *("-e", f"remote_folder={self.folder('{{ inventory_hostname }}')}"),
                *("-vv", "--diff"),
                *arguments,
            ],
            cwd=self.fleet.folder / "ansible",
            env={
                **self.fleet.env,
                "LC_ALL": "C.UTF-8",  # Ansible accepts no other encoding
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_HOME": str(self.remote),
                "ANSIBLE_REMOTE_TEMP": str(self.remote / "tmp"),
            },
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        self.assert_no_key(done.stdout + done.stderr)
        return done.stdout

    def assert_no_key(self, said: str) -> None:
        assert "PRIVATE KEY" not in said
        for line in secret_lines(self.fleet.folder):
            assert line not in said

    def compose(self, machine: str, *arguments: str) -> str:
        return run(
            "docker-compose", *arguments, cwd=self.folder(machine), env=self.fleet.env, check=False
        ).stdout


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    folder = tmp_path_factory.mktemp("ansible")
    remote = folder / "remote"
    remote.mkdir()
    with ContainerFleet(folder, MACHINES[1:], kind="other-amd64", arch="amd64") as fleet:
        control = Control(fleet, remote)
        try:
            yield control
        finally:
            for machine in MACHINES:
                if control.folder(machine).is_dir():
                    control.compose(machine, "down", "-v", "-t", "5")


def test_it_copies_each_folder_and_nothing_of_another(control: Control) -> None:
    said = control.play("--tags", "copy")
    assert said.count("TASK [Copy") >= 1, said  # every file is new: the most there is to print
    for machine in MACHINES:
        there = control.folder(machine)
        source = control.fleet.folder / machine
        names = {str(path.relative_to(source)) for path in source.rglob("*")}
        assert names == {str(path.relative_to(there)) for path in there.rglob("*")}
        secret = there / ("broker/broker.key" if machine == "hub" else "secrets/user.key")
        assert secret.stat().st_mode & 0o777 == 0o600
        # Over ssh they would belong to the login user, whom the containers run as.
        for path in (there, *there.rglob("*")):
            os.chown(path, UID, UID)


def test_it_loads_the_image_and_waits_until_all_are_healthy(
    control: Control, tmp_path: Path
) -> None:
    archive = tmp_path / "shardline-broker.tar"
    run("docker", "save", "-o", str(archive), f"shardline/broker:{VERSION}-amd64")
    said = control.play("-e", f"broker_image_tar={archive}")
    for machine in MACHINES:
        [container] = control.compose(machine, "ps", "-q").split()
        assert control.fleet.inspect(container, "{{.State.Health.Status}}") == "healthy"
    loads = said.split("TASK [Load it]")[1].split("TASK")[0]
    assert "hub" in loads
    assert "pi-" not in loads


def test_run_again_it_changes_nothing(control: Control) -> None:
    before = {machine: control.compose(machine, "ps", "-q") for machine in MACHINES}
    said = control.play()
    assert said.count("changed=0") == len(MACHINES), said
    assert {machine: control.compose(machine, "ps", "-q") for machine in MACHINES} == before
