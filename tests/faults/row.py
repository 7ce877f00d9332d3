"""What a row of the fault table is, and what one trial of it found. No process is touched here."""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.faults.pipeline_under_test import Setup, Site

TIMED_SEEDS, OTHER_SEEDS = 20, 5
CONTROL_SEEDS = 2


@dataclass
class Figures:
    """One trial. ``problems``: rules of the row that did not hold, beside the promise itself.

    ``error``: why the trial could not be run. ``recovery_s``: from the fault (or, where the row
    says so, from its end) to the first result that needed what had failed. ``dropped``: second
    results that the client threw away.
    """

    injected: int = 0
    batches: int = 0
    results: int = 0
    missing: int = 0
    wrong: int = 0
    duplicates: int = 0
    dead: int = 0
    dropped: int = 0
    retried: int = 0
    computed_twice: int = 0
    recovery_s: float | None = None
    stage_bytes: int = 0
    broker_bytes: int = 0
    seconds: float = 0.0
    note: str = ""
    error: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def fails(self) -> bool:
        """Whether the promise, or a rule of the row, was broken."""
        promise = self.missing or self.wrong or self.duplicates
        return bool(promise or self.problems or self.error)

    def shows(self, harm: str) -> bool:
        """Whether this harm was done: missing, wrong, duplicates, or a rule of the row broken."""
        return not self.error and bool(self.problems if harm == "rule" else getattr(self, harm))

    def require(self, holds: object, problem: str) -> None:
        """Note a rule that does not hold."""
        if not holds:
            self.problems.append(problem)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Trial:
    """One seed of a row, as it is or as its control."""

    seed: int
    is_control: bool
    random: random.Random

    @classmethod
    def of(cls, number: int, seed: int, is_control: bool) -> "Trial":
        return cls(seed, is_control, random.Random(f"{number}:{seed}"))


@dataclass(frozen=True)
class Row:
    """A fault, how it is injected, what covers it, and how it is shown that it bites.

    ``setup`` says what pipeline is built, for the row itself and for its control (``True``); the
    same processes serve all seeds as long as they pass. ``harm`` is what the control must show:
    batches missing, wrong, duplicates, or a rule of the row broken. ``stand_in``: what cannot be
    injected on any kernel that we have, and what is done instead. ``lacks``: why this machine
    cannot run the row at all; empty when it can. ``seconds``: about what a trial takes, to run the
    longest first.
    """

    number: int
    fault: str
    injected_by: str
    covered_by: str
    control: str
    setup: "Callable[[bool], Setup]"
    trial: "Callable[[Site, Trial], Figures]"
    harm: str = "missing"
    is_timed: bool = True
    recovers_from: str = "fault"
    stand_in: str = ""
    seconds: float = 3.0
    lacks: Callable[[], str] = lambda: ""

    @property
    def seeds(self) -> int:
        """How many seeds the full table takes."""
        return TIMED_SEEDS if self.is_timed else OTHER_SEEDS
