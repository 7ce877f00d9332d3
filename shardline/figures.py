"""Figures as people read them: the same digits in a table of the terminal and on the page."""

import math

from contract.prediction import Prediction
from contract.tensor_spec import TensorSpec

NONE = "—"
"""Stands where a plan holds no figure."""

_OPTIMAL_GAP = 5e-4
"""Below this a gap would read «0.0 %»: the solver stops at the accuracy of its figures."""

_ROUNDING = 1e-6
"""Less than this of a last digit is the computer's arithmetic, not a figure."""


def rate(images_per_s: float | None) -> str:
    """Images a second, to three digits or the unit: ``4.07``, ``51.3``, ``1,204``."""
    return NONE if images_per_s is None else _three_digits(images_per_s)


def ms(value: float | None) -> str:
    """A time with its unit: ``0.42 ms``, ``118 ms``, ``4.20 s`` from two seconds on."""
    if value is None:
        return NONE
    return f"{_three_digits(value / 1e3)} s" if value >= 2000 else f"{_three_digits(value)} ms"


def percent(share: float | None) -> str:
    """A share of 1: ``97 %``."""
    return NONE if share is None else f"{share * 100:.0f} %"


def signed_percent(share: float | None) -> str:
    """A difference as a share of 1, its sign always written: ``+3.1 %``, ``−12.0 %``."""
    if share is None:
        return NONE
    text = f"{abs(share) * 100:.1f}"
    sign = "±" if float(text) == 0 else "−" if share < 0 else "+"
    return f"{sign}{text} %"


def gap_phrase(prediction: Prediction) -> str:
    """How good the plan is against the proven bound: ``optimal`` or ``within 3.1 % of the bound``.

    The percentage is rounded up, so that what is said always holds.
    """
    if prediction.gap < _OPTIMAL_GAP:
        return "optimal"
    tenths = math.ceil(prediction.gap * 1000 - _ROUNDING)
    return f"within {tenths / 10:.1f} % of the bound"


def codec_word(codec: str, specs: tuple[TensorSpec, ...]) -> str:
    """How tensors travel: the codec, or their own dtype where they travel as they are."""
    if codec != "float32":
        return codec
    return ", ".join(dict.fromkeys(spec.dtype for spec in specs))


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    for limit, digits in ((0.9995, 3), (9.995, 2), (99.95, 1)):
        if value < limit:
            return f"{value:.{digits}f}"
    return f"{value:,.0f}"
