"""Devices for a language model, as a file describes them. Pure.

What is published of boards is how fast they see images, bound by arithmetic; decoding is bound by
memory. So a board's time is this machine's by the speed of its cores, and says that it is a guess.
"""

from contract.described import DescribedDevice, DescribedFleet
from contract.errors import SettingsError
from planner.cost_model import REFERENCE_RELAY
from planner.devices.board_estimates import speed_words
from planner.devices.boards import broker_costs, link_of
from planner.devices.published import BOARDS
from planner.formulate import Site
from planner.problem import DeviceCosts, RelayCosts
from planner.profiler import Profile


def check_fleet(fleet: DescribedFleet) -> None:
    """Whether the devices can be those of a language model.

    Raises:
        SettingsError: a device names a measured profile: those are of image models.
    """
    for device in fleet.devices:
        if device.profile is not None:
            raise SettingsError(
                f"device {device.name}: `profile` {device.profile}: `shardline profile` measures "
                "image models only; remove it, and describe the device by `kind` and `speed`"
            )


def decoder_site(fleet: DescribedFleet, profile: Profile, unpacked_ratio: float | None) -> Site:
    """The devices' costs from this machine's ``profile``.

    Args:
        fleet: as the file describes it, if :func:`check_fleet` has nothing against it.
        profile: of the model's blocks, one decoding step.
        unpacked_ratio: how many times as long a step takes with weights that are not prepacked.
    """
    devices = tuple(_costs(device, profile, unpacked_ratio) for device in fleet.devices)
    basis = "; ".join(dict.fromkeys(_basis(device) for device in fleet.devices))
    return Site(devices, basis, broker_costs(fleet))


def _costs(device: DescribedDevice, profile: Profile, unpacked_ratio: float | None) -> DeviceCosts:
    slower = 1 / (_core_speed(device) * device.speed)
    times = tuple(slower * ms for ms in profile.segment_ms)
    return DeviceCosts(
        name=device.name,
        segment_ms=times,
        relay=RelayCosts(slower * REFERENCE_RELAY.message_ms, slower * REFERENCE_RELAY.byte_ms),
        link=link_of(device),
        memory_bytes=device.memory_bytes,
        unpacked_ms=(
            None if unpacked_ratio is None else tuple(unpacked_ratio * ms for ms in times)
        ),
    )


def _core_speed(device: DescribedDevice) -> float:
    board = BOARDS.get(device.kind)
    return 1.0 if board is None else board.core_speed


def _basis(device: DescribedDevice) -> str:
    speed = _core_speed(device)
    words = "this machine's times"
    if speed != 1.0:
        words += f" at {speed:.2g} of its speed, a guess: nothing is published of decoding on it"
    return f"{device.kind}: {words}{speed_words(device)}"
