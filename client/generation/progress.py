"""How far a language model's batch has come, and how long it may take to come further. Pure."""

from collections import deque
from dataclasses import dataclass

from client.generation.transcript import Transcript
from client.retry import (
    ACTIVE_STEP_S,
    MAX_DEADLINE_S,
    P99_FACTOR,
    AttemptTimes,
    attempt_deadline_s,
)

GAP_PATIENCE_S = 0.5
"""A token that has overtaken another tells that the other is late, or lost."""
PREFILLS_KEPT = 100
MAX_DOUBLINGS = 5
"""Of a first token's deadline: with nothing learned it is a quarter of an hour then."""


@dataclass(slots=True)
class Generation:
    """``idle_attempts``: sent since the latest attempt brought a token.

    ``late_prefills`` and ``late_tokens`` count the attempts that were replaced because their first
    token, or a later one, did not come in time; since one of that kind came. ``heard_at``: what the
    clock of deadlines showed when the last token came, ``told_at`` when that was (monotonic).
    """

    transcript: Transcript
    idle_attempts: int = 0
    late_prefills: int = 0
    late_tokens: int = 0
    heard_at: float = 0.0
    told_at: float = 0.0

    def begin(self, attempt: int) -> None:
        """An attempt goes out with all that there is."""
        self.transcript.begin(attempt)
        self.idle_attempts += 1

    def note_late(self) -> None:
        """The latest attempt has had its time."""
        if self.is_prefilling:
            self.late_prefills += 1
        else:
            self.late_tokens += 1

    def silent_s(self, active_s: float, now: float) -> float:
        """Time since the last token, as :meth:`client.ledger.Attempt.taken_s` counts it."""
        return min(now - self.told_at, active_s - self.heard_at + ACTIVE_STEP_S)

    @property
    def is_prefilling(self) -> bool:
        """Whether its latest attempt may still be at the prompt: it has brought no token."""
        return self.idle_attempts > 0


class PrefillTimes:
    """What recent attempts took until their first token, and how long that lets the next take."""

    def __init__(self, chunk_tokens: int) -> None:
        """``chunk_tokens``: shorter prompts take as long as one of so many."""
        self._chunk_tokens = chunk_tokens
        self._per_token = AttemptTimes()
        self._recent_s: deque[float] = deque(maxlen=PREFILLS_KEPT)

    def add(self, time_s: float, tokens: int) -> None:
        """Count an attempt of so many tokens a sequence."""
        self._per_token.add(time_s / max(tokens, self._chunk_tokens))
        self._recent_s.append(time_s)

    def deadline_s(self, tokens: int, late: int) -> float:
        """How long an attempt may take until its first token, after ``late`` that were too late.

        At least as long as any batch may: other prompts may stand before this one, and an attempt
        that is given up too early makes the work more, not less. No more than the longest suggests:
        a short prompt that stood behind others says little of what a token takes.
        """
        time_s = (self._per_token.p99_s or 0.0) * max(tokens, self._chunk_tokens)
        time_s = min(time_s, max(self._recent_s, default=0.0))
        return float(max(MAX_DEADLINE_S, P99_FACTOR * time_s) * 2 ** min(late, MAX_DOUBLINGS))


def token_deadline_s(p99_s: float | None, late: int) -> float:
    """How long the next token may take, after ``late`` that were too late."""
    return attempt_deadline_s(p99_s, late)
