"""What could be bought for a cluster, each as the problem that it would make. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from planner.problem import DeviceCosts, Link, Problem

TIMES_QUICKER = 10
TIMES_MEMORY = 2


@dataclass(frozen=True, slots=True)
class Offer:
    """Something to buy, and the problem with it. ``devices`` more may then be used."""

    what: str
    problem: Problem
    devices: int = 0


def offers(problem: Problem) -> Iterator[Offer]:
    """What would change something: a limit that is not there is not lifted.

    Of devices that are of one kind the first stands for all.
    """
    devices = problem.devices
    if problem.broker.bytes_per_s < float("inf"):
        broker = replace(problem.broker, bytes_per_s=problem.broker.bytes_per_s * TIMES_QUICKER)
        yield Offer(f"a broker link {TIMES_QUICKER} x as fast", replace(problem, broker=broker))
    if _is_limited(problem.client.link):
        client = replace(problem.client, link=_quicker(problem.client.link))
        yield Offer(f"a client link {TIMES_QUICKER} x as fast", replace(problem, client=client))
    if any(device.memory_bytes is not None for device in devices):
        yield Offer(f"{TIMES_MEMORY} x the memory in every device", _for_all(problem, _with_memory))
    limited = [device for device in _kinds(problem) if _is_limited(device.link)]
    if limited and len(devices) > 1:
        yield Offer(
            f"links {TIMES_QUICKER} x as fast for all devices", _for_all(problem, _with_link)
        )
    for device in limited:
        others = tuple(_with_link(each) if each is device else each for each in devices)
        yield Offer(
            f"a link {TIMES_QUICKER} x as fast for {device.name}", replace(problem, devices=others)
        )
    for device in _kinds(problem):
        another = replace(device, name=_new_name(problem, device.name))
        yield Offer(
            f"one more device like {device.name}", replace(problem, devices=(*devices, another)), 1
        )


def _kinds(problem: Problem) -> list[DeviceCosts]:
    """The first device of each kind."""
    found: list[DeviceCosts] = []
    for device in problem.devices:
        if not any(device.same_kind(known) for known in found):
            found.append(device)
    return found


def _for_all(problem: Problem, change: Callable[[DeviceCosts], DeviceCosts]) -> Problem:
    return replace(problem, devices=tuple(map(change, problem.devices)))


def _with_memory(device: DeviceCosts) -> DeviceCosts:
    if device.memory_bytes is None:
        return device
    return replace(device, memory_bytes=device.memory_bytes * TIMES_MEMORY)


def _with_link(device: DeviceCosts) -> DeviceCosts:
    return replace(device, link=_quicker(device.link))


def _quicker(link: Link) -> Link:
    """More bytes a second; the latency stays."""
    return replace(
        link,
        up_bytes_per_s=link.up_bytes_per_s * TIMES_QUICKER,
        down_bytes_per_s=link.down_bytes_per_s * TIMES_QUICKER,
    )


def _is_limited(link: Link) -> bool:
    return min(link.up_bytes_per_s, link.down_bytes_per_s) < float("inf")


def _new_name(problem: Problem, like: str) -> str:
    taken = {device.name for device in problem.devices}
    number = 2
    while f"{like}-{number}" in taken:
        number += 1
    return f"{like}-{number}"
