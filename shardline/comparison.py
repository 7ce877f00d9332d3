"""What a plan was expected to do beside what it did: pure, for the terminal and for the page."""

from collections.abc import Callable
from dataclasses import dataclass

from contract.plan import Plan
from shardline import figures
from shardline.console import size


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure, predicted and measured; either is None where the plan does not hold it.

    ``subject`` is what it is a figure of (the plan, a device, an edge), ``quantity`` which one;
    ``text`` writes such a figure with its unit.
    """

    subject: str
    quantity: str
    predicted: float | None
    measured: float | None
    text: Callable[[float], str]

    @property
    def error(self) -> float | None:
        """By what share of the measured figure the predicted one is too large; -0.1: too small."""
        if self.predicted is None or not self.measured:
            return None
        return self.predicted / self.measured - 1

    @property
    def predicted_text(self) -> str:
        """The predicted figure with its unit, or a dash."""
        return figures.NONE if self.predicted is None else self.text(self.predicted)

    @property
    def measured_text(self) -> str:
        """The measured figure with its unit, or a dash."""
        return figures.NONE if self.measured is None else self.text(self.measured)


def compare(plan: Plan) -> tuple[Compared, ...]:
    """Every figure that the plan's measurement holds, beside its prediction; empty without one."""
    if plan.measurement is None:
        return ()
    return (*_whole(plan), *_devices(plan), *_edges(plan))


def _whole(plan: Plan) -> tuple[Compared, ...]:
    expected, measured = plan.prediction, plan.measurement
    assert measured is not None
    loaded = f"latency, {measured.window} in flight"
    return (
        Compared(
            "plan",
            "images/s",
            None if expected is None else expected.images_per_s,
            measured.images_per_s,
            figures.rate,
        ),
        Compared(
            "plan",
            "latency, alone",
            None if expected is None else expected.latency_ms,
            measured.latency_ms,
            figures.ms,
        ),
        Compared(
            "plan",
            loaded,
            None
            if expected is None or expected.window != measured.window
            else expected.loaded_latency_ms,
            measured.loaded_latency_ms,
            figures.ms,
        ),
    )


def _devices(plan: Plan) -> list[Compared]:
    assert plan.measurement is not None
    predictions = {} if plan.prediction is None else {d.device: d for d in plan.prediction.devices}
    found = []
    for device in plan.measurement.devices:
        expected = predictions.get(device.device)
        subject = f"stage {device.stage_index} on {device.device}"
        same = expected is not None and expected.stage_index == device.stage_index
        rows = (
            ("compute", expected.compute_ms if expected else None, device.compute_ms, figures.ms),
            (
                "utilisation",
                expected.utilisation if expected else None,
                device.utilisation,
                figures.percent,
            ),
            ("memory", expected.memory_bytes if expected else None, device.rss_bytes, size),
        )
        found += [
            Compared(subject, quantity, predicted if same else None, measured, text)
            for quantity, predicted, measured, text in rows
        ]
    return found


def _edges(plan: Plan) -> list[Compared]:
    assert plan.measurement is not None
    predictions = {} if plan.prediction is None else {e.edge: e for e in plan.prediction.edges}
    found = []
    for edge in plan.measurement.edges:
        expected = predictions.get(edge.edge)
        subject = f"edge {edge.edge}"
        found += [
            Compared(
                subject,
                "transfer",
                None if expected is None else expected.transfer_ms,
                edge.transfer_ms,
                figures.ms,
            ),
            Compared(
                subject,
                "bytes a batch",
                None if expected is None else expected.bytes_per_batch,
                edge.bytes_per_batch,
                size,
            ),
        ]
    return found
