"""`fleet.yaml`: which machines there are, who runs the broker, who may talk to it.

The models and their rules; deploy/fields.py has the single fields, deploy/planned.py those that
planning may use, deploy/fleet_file.py reads the file.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from pydantic import Field, model_validator

from contract.frozen import FrozenModel
from contract.kind import Kind
from contract.topics import DEFAULT_CLUSTER
from deploy.fields import PLACEHOLDER, Address, Login, Name, Place, UnixId, wrong_at
from deploy.kinds import KINDS
from deploy.link import Rates
from deploy.planned import PlannedDevice

HEALTH_USER = "health"
BROKER_USER = "broker"
"""Not a user: what the broker's own certificate is called."""
DEFAULT_LOGIN = "pi"
DEFAULT_UNIX_ID = 1000  # of the first user on Raspberry Pi OS
BROKER_SERVICE = "broker"
"""Name of the broker among the containers of its own machine (docker-compose.arm64.yml)."""
RESERVED_FOLDERS = frozenset(
    {"ansible", "authority", "clients", "credentials", "observers", "planner"}
)
"""Folders beside those of the machines: no machine may be called so."""


class Security(StrEnum):
    """How users show the broker who they are; the connection is TLS either way."""

    CERTIFICATES = "certificates"
    PASSWORDS = "passwords"


class Device(PlannedDevice):
    """A machine that runs a stage. ``uid`` and ``gid`` are those of ``user`` on it."""

    address: Address
    user: Login = DEFAULT_LOGIN
    uid: UnixId = DEFAULT_UNIX_ID
    gid: UnixId = DEFAULT_UNIX_ID


class Broker(FrozenModel):
    """Where Mosquitto runs: on a device, or elsewhere (then with ``address`` and so on).

    ``names``: further DNS names and IP addresses under which it, or an edge's broker with the same
    files, is reached. ``link`` is the machine's network card, for planning.
    """

    host: Name
    port: int = Field(default=8883, ge=1, le=65535)
    names: tuple[Address, ...] = ()
    address: Address | None = None
    kind: Kind | None = None
    user: Login | None = None
    uid: UnixId | None = None
    gid: UnixId | None = None
    link: Rates | None = None

    @property
    def own_fields(self) -> list[str]:
        """Fields given here that a device would already say of itself."""
        return [name for name in ("address", "kind", "user", "uid", "gid") if getattr(self, name)]


class Machine(NamedTuple):
    """A machine that folders are copied to: a device, the broker's host, or both at once."""

    name: str
    address: str
    user: str
    uid: int
    gid: int
    device: Device | None
    broker_memory: str | None

    @property
    def runs_broker(self) -> bool:
        """Whether Mosquitto runs there."""
        return self.broker_memory is not None


class Fleet(FrozenModel):
    """The whole of fleet.yaml."""

    cluster: Name = DEFAULT_CLUSTER
    security: Security = Security.CERTIFICATES
    broker: Broker
    devices: tuple[Device, ...] = Field(min_length=1)
    planner: Name = "planner"
    clients: tuple[Name, ...] = ("client",)
    observers: tuple[Name, ...] = ("observer",)
    home_assistant: Name | None = None

    @model_validator(mode="after")
    def _users_are_unique(self) -> "Fleet":
        seen = {HEALTH_USER: "the broker's health check", BROKER_USER: "the broker itself"}
        for place, user in self._users_with_places():
            if user in seen:
                raise wrong_at(
                    place,
                    f"the name {user!r} is taken by {seen[user]}; every user of the broker needs a "
                    "name of its own, choose another",
                )
            seen[user] = ".".join(map(str, place))
        return self

    @model_validator(mode="after")
    def _machines_have_folders(self) -> "Fleet":
        names: list[tuple[Place, str]] = [
            (("devices", index, "name"), device.name) for index, device in enumerate(self.devices)
        ]
        for place, name in (*names, (("broker", "host"), self.broker.host)):
            if name in RESERVED_FOLDERS:
                raise wrong_at(
                    place,
                    f"no machine can be called {name!r}: a folder beside the machines' has that "
                    "name; choose another",
                )
        return self

    @model_validator(mode="after")
    def _broker_has_a_host(self) -> "Fleet":
        given = self.broker.own_fields
        if self._device(self.broker.host) is not None:
            if given:
                raise wrong_at(
                    ("broker", given[0]),
                    f"{self.broker.host!r} is a device, which says its own {' and '.join(given)}; "
                    f"remove {'it' if len(given) == 1 else 'them'} here",
                )
        elif self.broker.address is None:
            names = ", ".join(device.name for device in self.devices)
            raise wrong_at(
                ("broker", "host"),
                f"{self.broker.host!r} is none of the devices ({names}); name one of them, or add "
                "the `address` of that machine here",
            )
        if self.broker_address.lower().endswith(".local"):
            raise wrong_at(
                ("broker", "host"),
                f"the broker's address {self.broker_address!r} is one that containers cannot look "
                "up; give that machine's IP address or a DNS name",
            )
        return self

    def _users_with_places(self) -> Iterator[tuple[Place, str]]:
        for index, device in enumerate(self.devices):
            yield ("devices", index, "name"), device.name
        yield ("planner",), self.planner
        for index, name in enumerate(self.clients):
            yield ("clients", index), name
        for index, name in enumerate(self.observers):
            yield ("observers", index), name
        if self.home_assistant is not None:
            yield ("home_assistant",), self.home_assistant

    def _device(self, name: str) -> Device | None:
        return next((device for device in self.devices if device.name == name), None)

    @property
    def users(self) -> tuple[str, ...]:
        """Every user of the broker, the health check's included."""
        return (*(user for _, user in self._users_with_places()), HEALTH_USER)

    @property
    def announcers(self) -> tuple[str, ...]:
        """The user that tells Home Assistant of the fleet, if there is one."""
        return () if self.home_assistant is None else (self.home_assistant,)

    @property
    def broker_address(self) -> str:
        """Host part of the address that machines connect to."""
        device = self._device(self.broker.host)
        return device.address if device else self.broker.address or PLACEHOLDER

    @property
    def folders(self) -> dict[str, str]:
        """The folder of each user that has one, below that of the fleet."""
        return {
            **{device.name: device.name for device in self.devices},
            self.planner: "planner",
            **{name: f"clients/{name}" for name in self.clients},
            **{name: f"observers/{name}" for name in self.observers},
            **{name: f"observers/{name}" for name in self.announcers},
        }

    @property
    def broker_names(self) -> tuple[str, ...]:
        """DNS names and IP addresses that the broker's certificate is for."""
        here = (self.broker.host, BROKER_SERVICE, "localhost", "127.0.0.1", "::1")
        return tuple(dict.fromkeys((self.broker_address, *self.broker.names, *here)))

    @property
    def machines(self) -> tuple[Machine, ...]:
        """Every machine that gets a folder: the devices, and the broker's host if it is none."""
        broker = self.broker
        found = [
            Machine(
                name=device.name,
                address=device.address,
                user=device.user,
                uid=device.uid,
                gid=device.gid,
                device=device,
                broker_memory=device.facts.broker_memory if device.name == broker.host else None,
            )
            for device in self.devices
        ]
        if self._device(broker.host) is None:
            host = Machine(
                name=broker.host,
                address=self.broker_address,
                user=broker.user or DEFAULT_LOGIN,
                uid=broker.uid or DEFAULT_UNIX_ID,
                gid=broker.gid or DEFAULT_UNIX_ID,
                device=None,
                broker_memory=KINDS[broker.kind or Kind.OTHER_ARM64].broker_memory,
            )
            found.append(host)
        return tuple(found)


def host_and_port(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
