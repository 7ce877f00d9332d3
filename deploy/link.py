"""Links as a device file writes them: rates and latencies with their units.

The texts are kept as they were written; the functions say what they are in bytes and ms.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, model_validator

from contract.errors import SettingsError
from contract.frozen import FrozenModel

_QUANTITY = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?([A-Za-z/]+)")
_RATES = {
    "bit/s": 1 / 8,
    "kbit/s": 1e3 / 8,
    "Mbit/s": 1e6 / 8,
    "Gbit/s": 1e9 / 8,
    "B/s": 1.0,
    "kB/s": 1e3,
    "MB/s": 1e6,
    "GB/s": 1e9,
}
"""Bytes a second. Decimal, as networks are sold; «Mb/s» is refused, it could be either."""
_TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def rate_bytes_per_s(text: str) -> float:
    """``100 Mbit/s`` in bytes a second.

    Raises:
        SettingsError: not such a text, or a rate of 0.
    """
    rate = _in_units(text, _RATES)
    if not rate:
        raise SettingsError(
            f"{text!r} is no rate; expected for example 100 Mbit/s or 11 MB/s, above 0 "
            f"({', '.join(_RATES)})"
        )
    return rate


def delay_ms(text: str) -> float:
    """``0.4 ms`` in ms.

    Raises:
        SettingsError: not such a text.
    """
    delay = _in_units(text, _TIMES)
    if delay is None:
        raise SettingsError(
            f"{text!r} is no latency; expected for example 0.4 ms ({', '.join(_TIMES)})"
        )
    return delay


def _in_units(text: str, units: dict[str, float]) -> float | None:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        return None
    return float(match[1]) * units[match[2]]


def _rate(text: str) -> str:
    try:
        rate_bytes_per_s(text)
    except SettingsError as error:
        raise ValueError(str(error)) from error
    return text


def _delay(text: str) -> str:
    try:
        delay_ms(text)
    except SettingsError as error:
        raise ValueError(str(error)) from error
    return text


Rate = Annotated[str, AfterValidator(_rate)]
Delay = Annotated[str, AfterValidator(_delay)]


class Rates(FrozenModel):
    """How fast a machine sends (``up``) and receives (``down``); one text stands for both."""

    up: Rate | None = None
    down: Rate | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_text_is_both(cls, written: Any) -> Any:
        if isinstance(written, str):
            _rate(written)  # here, not in `up`: the file has no such field
            return {"up": written, "down": written}
        if not isinstance(written, (dict, cls)):
            raise ValueError(
                f"expected a rate such as 100 Mbit/s, or fields ({', '.join(cls.model_fields)}), "
                f"got {written!r:.60}; correct it"
            )
        return written

    @property
    def up_bytes_per_s(self) -> float | None:
        """From the machine; None where the file does not say."""
        return None if self.up is None else rate_bytes_per_s(self.up)

    @property
    def down_bytes_per_s(self) -> float | None:
        """To the machine; None where the file does not say."""
        return None if self.down is None else rate_bytes_per_s(self.down)

    @property
    def slower_bytes_per_s(self) -> float | None:
        """The slower of the directions that the file gives."""
        given = [r for r in (self.up_bytes_per_s, self.down_bytes_per_s) if r is not None]
        return min(given, default=None)


class Link(Rates):
    """A device's way to the broker. ``latency`` is one way."""

    latency: Delay | None = None

    @property
    def latency_ms(self) -> float | None:
        """None where the file does not say."""
        return None if self.latency is None else delay_ms(self.latency)
