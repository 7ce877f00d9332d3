"""What the agent and its process of `stage.measure` say to each other.

Knows no engine: an agent of a board without onnxruntime imports this.
"""

from pydantic import ValidationError

from contract.command import Measure
from contract.errors import EngineError
from contract.frozen import FrozenModel


class Job(FrozenModel):
    """What to do. ``folder`` holds the graph; the first job in it writes the weights."""

    folder: str
    threads: int
    prepack: bool
    measure: Measure


class Outcome(FrozenModel):
    """What came of it; ``error`` instead of everything else. Fields as in the answer's timings."""

    whole_ms: float = 0.0
    kernels: tuple[tuple[str, float], ...] = ()
    base_bytes: int = 0
    load_peak_bytes: int = 0
    peak_bytes: int = 0
    sustained_share: float | None = None
    error: str | None = None


def read_outcome(returncode: int, output: bytes, errors: bytes) -> Outcome:
    """What a process of `stage.measure` left behind. Pure.

    Raises:
        EngineError: it failed, crashed, was killed, or wrote something else.
    """
    try:
        outcome = Outcome.model_validate_json(output)
    except ValidationError:
        last = errors.decode("utf-8", "replace").strip().splitlines()[-1:] or ["nothing on stderr"]
        if returncode == -9:
            why = "was killed, most likely for want of memory; give it more, or use a smaller batch"
        elif returncode < 0:
            why = f"crashed with signal {-returncode}"
        else:
            why = f"ended with {returncode}"
        raise EngineError(f"the process that measures {why} ({last[0]:.500})") from None
    if outcome.error is not None:
        raise EngineError(outcome.error)
    return outcome
