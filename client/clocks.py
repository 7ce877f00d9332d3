"""Asks the devices of a plan for the time, a few times at the start and then every ten seconds.

Asked from the pipeline's thread, answered on the network's: there is no thread of its own.
"""

import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from client.clock_filter import ClockFilter, sample
from contract.clock import ClockAnswer, ClockRequest, parse_clock
from contract.errors import WireFormatError
from contract.trace import ClockOffset

QUICK_ASKS = 4
"""Questions at the start: of several round trips one is short."""
QUICK_INTERVAL_S = 0.25
INTERVAL_S = 10.0


@dataclass(slots=True)
class _Device:
    """``number`` and ``asked_us`` are of the question that is open; None where none is."""

    next_at_s: float = 0.0
    asks: int = 0
    number: int | None = None
    asked_us: int = 0
    heard: ClockFilter = field(default_factory=ClockFilter)


class DeviceClocks:
    """How far each device's clock is ahead of ours. Bounded by the plan, whoever answers what."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        """``now_us``: the client's Unix clock, in microseconds."""
        self._now_us = now_us
        self._lock = threading.Lock()
        self._devices: dict[str, _Device] = {}
        self._next_at_s = 0.0

    def follow(self, devices: Iterable[str]) -> None:
        """Ask these from now on, and no others."""
        with self._lock:
            self._devices = {name: self._devices.get(name) or _Device() for name in devices}
            self._next_at_s = 0.0

    def ask(self, now_s: float, send: Callable[[str, bytes], None]) -> None:
        """Ask whoever is due.

        Args:
            now_s: monotonic time.
            send: takes a device and the request for it.
        """
        if now_s < self._next_at_s:
            return
        for name, device in list(self._devices.items()):
            if now_s >= device.next_at_s:
                request = self._question(device, now_s)
                send(name, request)
        self._next_at_s = min(
            (device.next_at_s for device in self._devices.values()), default=now_s + INTERVAL_S
        )

    def _question(self, device: _Device, now_s: float) -> bytes:
        # Nobody can answer in advance, and so pass off a short round trip, who cannot guess it.
        number = secrets.randbits(53)
        request = ClockRequest(number=number).model_dump_json().encode()
        device.asks += 1
        device.next_at_s = now_s + (QUICK_INTERVAL_S if device.asks < QUICK_ASKS else INTERVAL_S)
        with self._lock:
            device.number, device.asked_us = number, self._now_us()
        return request

    def hear(self, sender: str | None, payload: bytes, heard_us: int) -> bool:
        """Take an answer in, on a network thread; whether anything was asked that it may answer.

        One of another number, which comes late, and one of times that cannot be tell nothing.
        """
        with self._lock:
            device = self._devices.get(sender or "")
            if device is None or device.number is None:
                return False
            try:
                answer = parse_clock(payload)
            except WireFormatError:
                return False
            if not isinstance(answer, ClockAnswer):
                return False
            if answer.number != device.number:
                return True
            device.number = None
            told = sample(device.asked_us, answer.received_us, answer.sent_us, heard_us)
            if told is not None:
                device.heard.add(told)
            return True

    def offsets(self) -> tuple[ClockOffset, ...]:
        """Of every device that has answered lately, by name."""
        now_us = self._now_us()
        with self._lock:
            known = [(name, device.heard.best(now_us)) for name, device in self._devices.items()]
        return tuple(
            ClockOffset(device=name, offset_us=best[0], round_trip_us=best[1])
            for name, best in sorted(known, key=lambda pair: pair[0])
            if best is not None
        )
