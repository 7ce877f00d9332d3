"""The emulated network: one switch, and every host on a cable of its own with a rate.

A bridge in a namespace of its own is the switch. The broker, the client and each device live in
namespaces, joined to it by pairs of virtual cards whose rate is limited at both ends (tc tbf), so
that every cable has its rate in each direction. Nothing leaves the machine, and no address of it is
used. Names begin with the process that made them: what a process left behind when it was killed is
found, and removed, by the next one.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PREFIX = "slc"
HUB, BROKER, CLIENT = "hub", "broker", "client"
CLONE_NEWNET = 0x40000000
BURST_S = 0.002
"""What a card may send at once. Long enough for the kernel's timers to keep the rate at 1 Gbit/s
(0.25 ms gave 0.4 of it), short enough for a message to feel the rate."""
LEAST_BURST_BYTES = 65_536
"""The largest packet that a virtual card hands over; below it, tbf cuts packets and loses rate."""
QUEUE_S = 0.05
_MADE = re.compile(rf"{PREFIX}([0-9]+)-[A-Za-z0-9.-]+")


@dataclass(frozen=True, slots=True)
class Host:
    """A host on the switch: its namespace, address, and the rate of its cable in each direction."""

    name: str
    namespace: str
    address: str
    rate_mbit: float

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The same command, run on this host."""
        return ["ip", "netns", "exec", self.namespace, *arguments]


def burst_bytes(rate_mbit: float) -> int:
    """The token bucket of a cable of this rate."""
    return max(LEAST_BURST_BYTES, round(rate_mbit * 1e6 / 8 * BURST_S))


def tool(*arguments: object) -> str:
    """Run a command of the set-up; its output.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    command = [str(argument) for argument in arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def network(rates_mbit: Mapping[str, float]) -> Iterator[dict[str, Host]]:
    """Make a switch with a host for each name; :data:`BROKER` and :data:`CLIENT` are among them.

    The broker's address ends in 1, the client's in 2, those of the devices in 10 and more.

    Raises:
        RuntimeError: not root, or the kernel lacks namespaces, bridges or tbf.
    """
    mine = f"{PREFIX}{os.getpid()}"
    hub = f"{mine}-{HUB}"
    fixed = {BROKER: 1, CLIENT: 2}
    devices = [name for name in rates_mbit if name not in fixed]
    numbers = fixed | {name: 10 + index for index, name in enumerate(devices)}
    hosts = {
        name: Host(name, f"{mine}-{name}", f"10.99.0.{numbers[name]}", rate)
        for name, rate in rates_mbit.items()
    }
    remove_left_behind()
    try:
        tool("ip", "netns", "add", hub)
        tool("ip", "-n", hub, "link", "add", "switch", "type", "bridge")
        tool("ip", "-n", hub, "link", "set", "switch", "up")
        for host in hosts.values():
            _plug_in(hub, host)
        yield hosts
    finally:
        for namespace in (*(host.namespace for host in hosts.values()), hub):
            _remove(namespace)


def _plug_in(hub: str, host: Host) -> None:
    port = f"to{host.address.rpartition('.')[2]}"
    tool("ip", "netns", "add", host.namespace)
    tool("ip", "-n", host.namespace, "link", "set", "lo", "up")
    tool(
        *("ip", "link", "add", port, "netns", hub, "type", "veth"),
        *("peer", "name", "eth0", "netns", host.namespace),
    )
    tool("ip", "-n", hub, "link", "set", port, "master", "switch", "up")
    tool("ip", "-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
    tool("ip", "-n", host.namespace, "link", "set", "eth0", "up")
    for namespace, card in ((hub, port), (host.namespace, "eth0")):
        tool(
            *("tc", "-n", namespace, "qdisc", "add", "dev", card, "root", "tbf"),
            *("rate", f"{round(host.rate_mbit * 1e6)}bit"),
            *("burst", burst_bytes(host.rate_mbit), "latency", f"{round(QUEUE_S * 1e3)}ms"),
        )


@contextlib.contextmanager
def inside(host: Host) -> Iterator[None]:
    """Let this thread, and those that it starts, use the network of ``host``.

    Raises:
        OSError: not root, or there is no such namespace.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/run/netns/{host.namespace}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(libc, there)
        try:
            yield
        finally:
            _enter(libc, here)
    finally:
        os.close(here)
        os.close(there)


def _enter(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"cannot enter a network namespace: {os.strerror(number)}")


def maker_of(name: str) -> int | None:
    """The process that made a namespace (or control group) of this name, if it is one of ours."""
    match = _MADE.fullmatch(name)
    return int(match[1]) if match else None


def remove_left_behind() -> list[str]:
    """Remove the namespaces, and end the processes in them, of rigs whose process has ended."""
    removed = []
    for name in _namespaces():
        maker = maker_of(name)
        if maker is not None and not Path(f"/proc/{maker}").exists():
            _remove(name)
            removed.append(name)
    return removed


def _namespaces() -> list[str]:
    folder = Path("/run/netns")
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _remove(namespace: str) -> None:
    """End whatever still runs in a namespace of ours and delete it; harmless when it is gone."""
    if namespace not in _namespaces():
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            running = [int(pid) for pid in tool("ip", "netns", "pids", namespace).split()]
        except RuntimeError:
            if namespace in _namespaces():
                raise
            return  # another rig that was started just now has removed it
        for pid in running:
            if pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        if not running:
            break
        time.sleep(0.2)
    with contextlib.suppress(RuntimeError):
        tool("ip", "netns", "del", namespace)
