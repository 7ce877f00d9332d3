"""Chooses how each cut travels: what a codec saves, which to try, and what it does to the answers.

Pure: what an assignment of codecs does to the rate and to the answers is asked of callables. An
assignment is one codec for each cut, in order: those of the outputs of all stages but the last.
Inputs and results always travel as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from contract.codec import Codec
from contract.errors import WireFormatError
from contract.plan import StageSpec
from planner.codec_check import Assignment, CodecCheck
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


@dataclass(frozen=True, slots=True)
class CodecChoice:
    """The codec of each cut, the check that it passed (None: all float32, nothing was checked).

    ``rejected`` says in one sentence each why others were not taken.
    """

    codecs: Assignment
    check: CodecCheck | None
    rejected: tuple[str, ...] = ()


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


def choose_codecs(
    num_cuts: int,
    rate: Callable[[Assignment], float],
    check: Callable[[Assignment], CodecCheck],
    max_drop_points: float,
) -> CodecChoice:
    """The codecs that make the plan fastest and its answers worse by at most ``max_drop_points``.

    Args:
        num_cuts: how many edges there are between stages.
        rate: the predicted rate of the plan with a codec for each cut.
        check: what the codecs do to the answers, such as
            :func:`planner.codec_check.check_codecs`; called at most
            four times. May raise WireFormatError: a value cannot be carried.
        max_drop_points: see ``CodecCheck.accuracy_drop_points``.
    """
    rejected: list[str] = []

    def accepted(codecs: Assignment) -> CodecCheck | None:
        try:
            checked = check(codecs)
        except WireFormatError as error:
            rejected.append(f"{_names(codecs)}: {error}")
            return None
        if checked.accuracy_drop_points <= max_drop_points:
            return checked
        rejected.append(
            f"{_names(codecs)}: accuracy falls by {checked.accuracy_drop_points:.2f} points on "
            f"{checked.images} images, at most {max_drop_points:g} are allowed"
        )
        return None

    for codec in codec_candidates(lambda codec: rate((codec,) * num_cuts)) if num_cuts else ():
        uniform = (codec,) * num_cuts
        checked = accepted(uniform)
        if checked is None:
            continue
        relaxed = relax_codecs(uniform, rate)
        if relaxed != uniform:
            again = accepted(relaxed)
            if again is not None:
                return CodecChoice(relaxed, again, tuple(rejected))
        return CodecChoice(uniform, checked, tuple(rejected))
    as_they_are: Assignment = (BY_LOSS[0],) * num_cuts
    return CodecChoice(as_they_are, None, tuple(rejected))


def with_codecs(stages: Sequence[StageSpec], codecs: Sequence[Codec]) -> tuple[StageSpec, ...]:
    """The same stages with these codecs at the cuts; their ``plan_id`` is another one then."""
    every: tuple[Codec, ...] = (*codecs, "float32")
    return tuple(
        stage.model_copy(update={"codec": codec})
        for stage, codec in zip(stages, every, strict=True)
    )


def _names(codecs: Assignment) -> str:
    """One codec for all cuts by its name, others one after another."""
    return codecs[0] if len(set(codecs)) == 1 else ", ".join(codecs)
