"""How long steps report where they are; the command turns this into a progress bar."""

from typing import Protocol


class Progress(Protocol):
    """Called with a step in words and the share of it that is done, 0.0 to 1.0."""

    def __call__(self, step: str, fraction: float, /) -> None:
        """Report."""
        ...


def silent(step: str, fraction: float) -> None:
    """The default: report nothing."""
    del step, fraction
