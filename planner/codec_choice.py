"""Chooses how each cut travels: what a codec saves, which to try, where a milder one will do.

Pure: what an assignment of codecs does to the rate is asked of callables. An assignment is one
codec for each cut, in order: those of the outputs of all stages but the last. Inputs and results
always travel as they are. What codecs do to the answers is measured in `planner/codec_check.py`.
"""

from collections.abc import Callable

from contract.codec import Codec
from planner.codec_check import Assignment
from planner.cost_model import RELAY_MS_PER_BYTE

BY_LOSS: tuple[Codec, ...] = ("float32", "float16", "int8-per-channel", "int8")
"""From the least lossy to the most."""
MIN_GAIN = 1.01
"""A codec is worth its loss only where it makes the plan faster by more than this."""

SIZE: dict[Codec, float] = {
    "float32": 1.0,
    "float16": 0.5,
    "int8-per-channel": 0.25,
    "int8": 0.25,
}
CODEC_MS_PER_MB: dict[Codec, float] = {
    "float32": 0.0,
    "float16": 0.50,
    "int8-per-channel": 0.43,
    "int8": 0.36,
}
"""Processor time of compress and expand together for a MB of float32, on one core of an x86-64
machine. From ``bench/codecs.py``: for 300 KB to 3.2 MB they take 2.3 to 2.5 (float16), 1.6 to 2.4
(int8-per-channel; 2.8 to 3.2 where a channel has 49 values) and 1.4 to 1.8 (int8) times as long as
encode and decode of the float32 message (docs/adr/0012). Two thirds of it are the sender's."""
CODEC_MS_PER_MESSAGE: dict[Codec, float] = {
    "float32": 0.0,
    "float16": 0.03,
    "int8-per-channel": 0.06,
    "int8": 0.03,
}
"""What a message costs beyond that, whatever its size. With it one of 75 KB is met within 15 %."""


def work_bytes(codec: Codec, float32_bytes: int) -> int:
    """As how many bytes of a relay an edge counts for the processors at its two ends together.

    What travels (without the scales, which are few) and the codec's own work: for
    :attr:`planner.problem.Problem.edge_work_bytes`. ``float32_bytes`` are those of the whole batch.
    A small message counts for more than its ``float32_bytes``: there a codec costs time.
    """
    codec_ms = CODEC_MS_PER_MESSAGE[codec] + CODEC_MS_PER_MB[codec] * float32_bytes / 1e6
    return round(SIZE[codec] * float32_bytes + codec_ms / RELAY_MS_PER_BYTE)


def codec_candidates(rate: Callable[[Codec], float]) -> list[Codec]:
    """Lossy codecs worth trying for all cuts alike, the most promising first.

    By predicted rate; of those within 1 % of the best that is left, the least lossy goes first.
    """
    rates = {codec: rate(codec) for codec in BY_LOSS}
    left = [codec for codec in BY_LOSS[1:] if rates[codec] > MIN_GAIN * rates["float32"]]
    ordered: list[Codec] = []
    while left:
        best = max(rates[codec] for codec in left)
        first = next(codec for codec in left if rates[codec] * MIN_GAIN >= best)
        ordered.append(first)
        left.remove(first)
    return ordered


def relax_codecs(assignment: Assignment, rate: Callable[[Assignment], float]) -> Assignment:
    """Give each cut the least lossy codec that keeps the plan's rate within 1 % of what it was.

    All cuts together stay within that 1 %: the rate is compared with that of ``assignment``.
    """
    lowest = rate(assignment) / MIN_GAIN
    for cut, codec in enumerate(assignment):
        for milder in BY_LOSS[: BY_LOSS.index(codec)]:
            changed = (*assignment[:cut], milder, *assignment[cut + 1 :])
            if rate(changed) >= lowest:
                assignment = changed
                break
    return assignment
