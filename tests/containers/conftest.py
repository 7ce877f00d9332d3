"""What the container tests share. They need a Docker engine and the images: `make test-containers`
sees to both. What is missing is a failure here, never a skip."""

import subprocess

import pytest

from tests.containers.fleet import VERSION

NEEDED = ("stage:{v}-arm64", "broker:{v}-arm64", "stage:{v}-amd64", "broker:{v}-amd64")


@pytest.fixture(scope="session", autouse=True)
def images() -> None:
    for name in (*NEEDED, "planner:{v}", "client:{v}"):
        image = f"shardline/{name.format(v=VERSION)}"
        done = subprocess.run(["docker", "image", "inspect", image], capture_output=True)
        if done.returncode != 0:
            pytest.fail(
                f"{image} is not here; run `make test-containers`, which builds what is missing "
                f"({done.stderr.decode().strip()})"
            )
