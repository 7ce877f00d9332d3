"""Figures in few cells: what stands in a table of a narrow terminal."""

from shardline.figures import NONE


def short(count: float | None) -> str:
    """A number of bytes or batches in at most five cells: ``0``, ``812``, ``3.74M``, ``12.1G``."""
    if count is None:
        return NONE
    value = float(count)
    for unit in ("", "k", "M", "G"):
        if abs(value) < 999.5:
            return f"{value:.0f}" if not unit else f"{_three(value)}{unit}"
        value /= 1000
    return f"{value:.0f}T" if abs(value) < 9999 else ">999T"


def _three(value: float) -> str:
    return (
        f"{value:.2f}"
        if abs(value) < 9.995
        else f"{value:.1f}"
        if abs(value) < 99.95
        else f"{value:.0f}"
    )


def percent(share: float | None) -> str:
    """A share of 1 in four cells: ``97%``."""
    return NONE if share is None else f"{min(9.99, max(0.0, share)) * 100:.0f}%"


def age(seconds: float) -> str:
    """A time span in few cells: ``12s``, ``4m``, ``3h``, ``2d``."""
    for limit, unit_s, unit in ((100, 1, "s"), (6000, 60, "m"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.0f}{unit}"
    return f"{seconds / 86400:.0f}d"


def ms(value: float | None) -> str:
    """A time in at most seven cells: ``12.4 ms``, ``4.20 s``."""
    if value is None:
        return NONE
    if abs(value) < 999.5:
        return f"{_three(value)} ms"
    return f"{_three(min(value / 1e3, 9999))} s"
