"""Batches that went through three devices whose clocks are known, as a client tells of them."""

from contract.activation import Hop
from contract.trace import BatchTrace, ClockOffset

DEVICES = ("pi-0", "pi-1", "pi-2")
AHEAD_US = {"pi-0": 3_000_000, "pi-1": -7_000_000, "pi-2": 40}
T0 = 1_800_000_000_000_000
LENGTHS = (200, 1000, 300, 5000, 50, 1500, 0, 9000, 70, 800, 400, 4000, 60, 1200)
"""Microseconds of the fourteen parts of a batch, in order: all sums are known."""


def batch(seq: int = 0, begin_us: int = T0, lengths: tuple[int, ...] = LENGTHS) -> BatchTrace:
    """One batch whose parts have these lengths."""
    times = [begin_us]
    for length in lengths:
        times.append(times[-1] + length)
    hops = []
    for index, device in enumerate(DEVICES):
        own = times[2 + 4 * index : 6 + 4 * index]
        hops.append(Hop(*(time + AHEAD_US[device] for time in own)))
    return BatchTrace(
        epoch="00000000000000ab",
        seq=seq,
        attempt=0,
        images=8,
        queued_us=times[0],
        sent_us=times[1],
        received_us=times[-1],
        route=DEVICES,
        hops=tuple(hops),
        bytes_in=100,
        bytes_out=50,
    )


def stream(count: int) -> list[BatchTrace]:
    """Batches that follow each other so that the slowest device computes one after the other."""
    return [batch(seq, T0 + seq * 9000) for seq in range(count)]


def offsets(wrong_us: int = 0, round_trip_us: int = 200) -> list[ClockOffset]:
    """As a client would have measured them, wrong by so much."""
    return [
        ClockOffset(device=name, offset_us=ahead + wrong_us, round_trip_us=round_trip_us)
        for name, ahead in AHEAD_US.items()
    ]
