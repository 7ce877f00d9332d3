"""What the trials of one row add up to. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.faults.row import Figures, Row


@dataclass
class Summary:
    """A row of the table. ``lacks``: why this machine could not run it."""

    row: Row
    trials: list[Figures] = field(default_factory=list)
    control: list[Figures] = field(default_factory=list)
    lacks: str = ""
    had_control: bool = True

    def total(self, name: str) -> int:
        return sum(int(getattr(figures, name)) for figures in self.trials)

    def peak_mb(self, name: str) -> float:
        return max((getattr(figures, name) for figures in self.trials), default=0) / 1e6

    @property
    def recoveries_s(self) -> list[float]:
        return sorted(f.recovery_s for f in self.trials if f.recovery_s is not None)

    @property
    def bites(self) -> int:
        """Trials of the control that did the harm that they should."""
        return sum(figures.shows(self.row.harm) for figures in self.control)

    @property
    def passes(self) -> bool:
        """Nothing missing, wrong or twice, no rule broken, and the control fails."""
        if self.lacks:
            return True
        held = bool(self.trials) and not any(figures.fails for figures in self.trials)
        return held and (not self.had_control or self.bites > 0)

    @property
    def trial_failures(self) -> list[str]:
        """What went wrong, in words, by trial."""
        found = []
        for number, figures in enumerate(self.trials):
            if figures.fails:
                told = [figures.error] if figures.error else list(figures.problems)
                counts = {k: getattr(figures, k) for k in ("missing", "wrong", "duplicates")}
                told += [f"{key} {value}" for key, value in counts.items() if value]
                found.append(f"row {self.row.number}, trial {number}: {'; '.join(told)}")
        return found

    @property
    def failures(self) -> list[str]:
        """The same, and whether the control did no harm."""
        found = self.trial_failures
        if self.had_control and not self.lacks and not self.bites:
            told = [figures.error or "all went well" for figures in self.control]
            found.append(f"row {self.row.number}: its control does not fail: {told}")
        return found

    def control_text(self) -> str:
        if self.lacks or not self.had_control:
            return "not run"
        if self.row.harm == "rule":
            told = next((f.problems[0] for f in self.control if f.problems), "nothing")
        else:
            count = sum(int(getattr(f, self.row.harm)) for f in self.control)
            told = f"{count} {WORDS[self.row.harm]}"
        return f"{self.bites} of {len(self.control)}: {told}"

    def recovery_text(self) -> str:
        times = self.recoveries_s
        return f"{statistics.median(times):.1f}, {times[-1]:.1f}" if times else "–"

    def cells(self) -> list[str]:
        """The table's columns after the number and the fault."""
        if self.lacks:
            return [self.lacks, *[""] * 10]
        return [
            str(len(self.trials)),
            *(str(self.total(name)) for name in ("injected", "batches", "results")),
            *(str(self.total(name)) for name in ("missing", "wrong", "duplicates")),
            str(self.total("computed_twice")),
            self.recovery_text(),
            f"{self.peak_mb('stage_bytes'):.0f}, {self.peak_mb('broker_bytes'):.0f}",
            self.control_text(),
        ]

    def to_json(self) -> dict[str, Any]:
        row = self.row
        return {
            "number": row.number,
            "fault": row.fault,
            "injected_by": row.injected_by,
            "covered_by": row.covered_by,
            "control_is": row.control,
            "stand_in": row.stand_in,
            "lacks": self.lacks,
            "passes": self.passes,
            "trials": [figures.to_json() for figures in self.trials],
            "control": [figures.to_json() for figures in self.control],
        }


WORDS = {"missing": "missing", "wrong": "wrong", "duplicates": "second results"}
HEADINGS: Sequence[str] = (
    *("#", "fault", "seeds", "injected", "batches", "results", "missing", "wrong"),
    *("second results", "computed twice", "recovery s: p50, worst"),
    *("peak MB: stage, broker", "control fails"),
)
