"""Counts what a stage does: network and compute thread both add, the metrics thread reads."""

import threading
from dataclasses import dataclass, field, fields


@dataclass
class Counts:
    """Totals since the start. Times in seconds, summed over batches."""

    batches: int = 0
    images: int = 0
    tokens: int = 0
    compute_s: float = 0.0
    wait_s: float = 0.0
    publish_s: float = 0.0
    published: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    rejected: int = 0
    nacks: int = 0
    duplicates: int = 0

    def minus(self, earlier: "Counts") -> "Counts":
        """What was added since ``earlier``."""
        return Counts(
            **{f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)}
        )


@dataclass
class StageCounters:
    """A guarded :class:`Counts`."""

    _counts: Counts = field(default_factory=Counts)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **amounts: float) -> None:
        """Add to counters by name."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self._counts, name, getattr(self._counts, name) + amount)

    def snapshot(self) -> Counts:
        """A copy of all totals at one moment."""
        with self._lock:
            return Counts(**{f.name: getattr(self._counts, f.name) for f in fields(Counts)})
