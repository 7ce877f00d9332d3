"""Reads the devices that a plan is made for, from fleet.yaml or from a file for planning alone.

The second kind needs no addresses and no users: there may be no such devices yet. A file is taken
for fleet.yaml when it has what only deployment needs, the broker's `host` or an `address`.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, model_validator

from contract.described import DescribedDevice, DescribedFleet
from contract.errors import SettingsError
from contract.frozen import FrozenModel
from contract.kind import Kind
from contract.topics import check_name
from deploy.fields import wrong_at
from deploy.fleet_file import fleet_document
from deploy.inventory import Fleet
from deploy.link import Rates
from deploy.planned import PlannedDevice
from deploy.yaml_document import parse_document, read_text

PAGE = "docs/planning.md"
MAX_COUNT = 1000


class DrawnDevice(PlannedDevice):
    """One device, or with ``count`` so many that are alike: NAME-0, NAME-1, …"""

    count: int | None = Field(default=None, ge=1, le=MAX_COUNT)

    @property
    def names(self) -> tuple[str, ...]:
        """Of each of them."""
        if self.count is None:
            return (self.name,)
        return tuple(f"{self.name}-{index}" for index in range(self.count))


class DrawnBroker(FrozenModel):
    """What planning may know of the broker's machine."""

    link: Rates | None = None
    kind: Kind | None = None


class Drawing(FrozenModel):
    """A file for planning alone."""

    devices: tuple[DrawnDevice, ...] = Field(min_length=1)
    broker: DrawnBroker = DrawnBroker()

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Drawing":
        seen: dict[str, int] = {}
        for index, device in enumerate(self.devices):
            place = ("devices", index, "name")
            for name in device.names:
                if name in seen:
                    raise wrong_at(
                        place,
                        f"the name {name!r} is taken by devices.{seen[name]}; choose another",
                    )
                try:
                    check_name("this", name)
                except SettingsError as error:
                    raise wrong_at(place, f"with `count`: {error}") from error
                seen[name] = index
        return self


def load_device_file(path: Path) -> DescribedFleet:
    """The devices that a file describes, and the broker's link.

    Raises:
        SettingsError: the file cannot be read, is no YAML, or describes no devices; with the line,
            the field, what was expected and what came.
    """
    text = read_text(path, f"{PAGE} has an example")
    return parse_device_file(text, str(path), path.parent)


def parse_device_file(text: str, where: str, folder: Path) -> DescribedFleet:
    """The same of a text; ``where`` is what errors call it, ``folder`` where paths begin.

    Raises:
        SettingsError: as :func:`load_device_file`.
    """
    document = parse_document(text, where, PAGE, f"see {PAGE} for an example")
    if _is_for_deployment(document.content):
        return describe_fleet(fleet_document(text, where).read_as(Fleet), folder)
    drawing = document.read_as(Drawing)
    return DescribedFleet(
        devices=tuple(_described(drawing.devices, folder)),
        broker_bytes_per_s=_slower(drawing.broker.link),
        broker_kind=drawing.broker.kind,
    )


def describe_fleet(fleet: Fleet, folder: Path) -> DescribedFleet:
    """What fleet.yaml says for planning.

    A broker on a device has that device's link, unless it is given one of its own.
    """
    host = next((device for device in fleet.devices if device.name == fleet.broker.host), None)
    link = fleet.broker.link or (host.link if host else None)
    return DescribedFleet(
        devices=tuple(device.describe(folder) for device in fleet.devices),
        broker_bytes_per_s=_slower(link),
        broker_kind=host.kind if host else fleet.broker.kind,
    )


def _slower(link: Rates | None) -> float | None:
    return None if link is None else link.slower_bytes_per_s


def _described(devices: tuple[DrawnDevice, ...], folder: Path) -> Iterator[DescribedDevice]:
    for device in devices:
        for name in device.names:
            yield device.describe(folder, name)


def _is_for_deployment(content: dict[object, object]) -> bool:
    broker, devices = content.get("broker"), content.get("devices")
    listed = devices if isinstance(devices, list) else []
    return (isinstance(broker, dict) and "host" in broker) or any(
        isinstance(device, dict) and "address" in device for device in listed
    )
