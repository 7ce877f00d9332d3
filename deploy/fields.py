"""The fields of a device file one by one: what a name, an address, an amount of memory may be.

Links are in deploy/link.py; what the fields must be together is in deploy/inventory.py and
deploy/device_file.py, which raise :func:`wrong_at`.
"""

import re
from ipaddress import ip_address
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from contract.errors import SettingsError
from contract.topics import check_name

PLACEHOLDER = "change-me"
AT_PLACE = "at_place"
"""Type of the errors that carry their place in their context."""
Place = tuple[str | int, ...]
"""Where in a document something is: names of fields, positions in lists."""

_HOST = re.compile(r"(?!-)[A-Za-z0-9.-]{1,253}(?<![.-])")
_MEMORY = re.compile(r"([1-9][0-9]{0,5})([mg])")
_UNITS = {"m": 1024**2, "g": 1024**3}
_LOGIN = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


def wrong_at(place: Place, message: str) -> PydanticCustomError:
    """An error of a whole document that belongs to one place of it."""
    return PydanticCustomError(AT_PLACE, "{message}", {"message": message, "place": list(place)})


def _name(text: str) -> str:
    try:
        return check_name("this", text)
    except SettingsError as error:
        raise ValueError(str(error)) from error


def _address(text: str) -> str:
    if text == PLACEHOLDER:
        raise ValueError(
            f"{PLACEHOLDER!r} is still what `shardline deploy init` wrote; "
            "put the machine's IP address or DNS name here"
        )
    try:
        if "%" in text:  # what follows it would go into files and commands as it is
            raise ValueError("an address with a zone")
        return str(ip_address(text))
    except ValueError:
        if not _HOST.fullmatch(text):
            raise ValueError(
                f"{text!r} is no address; expected an IP address or a DNS name, as 192.168.1.20"
            ) from None
    return text


def _memory(text: str) -> str:
    if not _MEMORY.fullmatch(text):
        raise ValueError(f"{text!r} is no amount of memory; expected for example 512m or 2g")
    return text


def _login(text: str) -> str:
    if not _LOGIN.fullmatch(text):
        raise ValueError(f"{text!r} is no user of Linux; expected for example pi")
    return text


Name = Annotated[str, AfterValidator(_name)]
Address = Annotated[str, AfterValidator(_address)]
Memory = Annotated[str, AfterValidator(_memory)]
Login = Annotated[str, AfterValidator(_login)]
UnixId = Annotated[int, Field(ge=1, le=2**31 - 1)]  # 0: containers do not run as root


def memory_bytes(text: str) -> int:
    """``512m`` in bytes."""
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise SettingsError(f"memory {text!r}: expected for example 512m or 2g")
    return int(match[1]) * _UNITS[match[2]]
