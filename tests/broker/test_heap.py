"""The C library keeps the memory of messages: new ones cost no page faults."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from broker.embedded import EmbeddedBroker
from broker.heap import ENVIRONMENT

HERE = Path(__file__).parent.parent.parent
PAGES_A_MESSAGE = 1_600_000 // os.sysconf("SC_PAGE_SIZE")
MESSAGES = 100
# By the platform's own word: a product that wrongly says that it cannot must fail here.
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")


def faults(prepare: str) -> int:
    """Page faults of a process that makes and forgets large messages, two at a time."""
    code = (
        f"import resource\n{prepare}\n"
        "def message():\n    return len(bytearray(b'x') * 1_600_000 + bytearray(1_600_000))\n"
        "message()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        f"for _ in range({MESSAGES}): message()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@needs_glibc
def test_the_memory_of_a_message_serves_the_next() -> None:
    kept = faults("import broker.heap; assert broker.heap.keep_message_memory()")
    assert kept < MESSAGES * PAGES_A_MESSAGE / 4
    assert faults("") > MESSAGES * PAGES_A_MESSAGE / 2, "without it, this is no test"


def test_the_embedded_broker_keeps_it_too() -> None:
    with EmbeddedBroker() as broker:
        environment = Path(f"/proc/{broker.pid}/environ").read_bytes().split(b"\0")
    assert {f"{name}={value}".encode() for name, value in ENVIRONMENT.items()} <= set(environment)


def test_so_does_the_image_of_the_broker() -> None:
    dockerfile = (HERE / "images/broker/Dockerfile").read_text()
    for name, value in ENVIRONMENT.items():
        assert f"{name}={value}" in dockerfile
