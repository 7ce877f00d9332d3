"""The page: what the template shows of a plan, and writing it to a file."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from contract.errors import SettingsError
from contract.plan import Plan
from contract.prediction import Prediction
from contract.version import SHARDLINE_VERSION
from shardline import figures
from shardline.comparison import Compared, compare
from shardline.console import size
from shardline.plan_table import shape, verification_line
from shardline.report.curve import draw_curve, has_curve
from shardline.report.pipeline_drawing import draw_across, draw_down
from shardline.report.pipeline_view import PipelineView, others_than_predicted, view_pipeline
from shardline.report.svg import clean
from shardline.verdict_table import marks


def write_page(plan: Plan, file: Path) -> None:
    """Write the page of a plan to ``file``, UTF-8, and replace what is there.

    Raises:
        SettingsError: the file cannot be written.
    """
    text = render_page(plan)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"--html {file}: cannot be written ({error.strerror}); expected a file in a folder "
            "that exists, for example report.html"
        ) from error


def render_page(plan: Plan) -> str:
    """The page of a plan as one HTML document; the same plan gives the same text."""
    view = view_pipeline(plan)
    expected, measured = plan.prediction, plan.measurement
    context = {
        "plan": plan,
        "view": view,
        "expected": expected,
        "measured": measured,
        "measured_at": None if measured is None else _utc(measured.time_unix_s),
        "verdict": plan.verdict,
        "marks": marks,
        "devices": sum(len(stage.devices) for stage in view.stages),
        "gap": None if expected is None else figures.gap_phrase(expected),
        "others": others_than_predicted(plan),
        "pipeline": _pipeline(view),
        "curve": _curve(plan, view) if has_curve(plan) else None,
        "memory_scale": _memory_scale(plan),
        "rss": {} if measured is None else {d.device: d.rss_bytes for d in measured.devices},
        "fastest": max((p.images_per_s for p in _possible(plan)), default=0.0),
        "compared": _by_subject(compare(plan)),
        "widest_error": max((abs(row.error or 0) for row in compare(plan)), default=0) or 1,
        "verification": verification_line(plan),
        "version": SHARDLINE_VERSION,
    }
    return _environment().get_template("page.html").render(context)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("shardline.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters |= {
        "rate": figures.rate,
        "ms": figures.ms,
        "share": figures.percent,
        "error": figures.signed_percent,
        "size": size,
        "shape": shape,
        "codec": figures.codec_word,
    }
    return environment


def _printable(value: object) -> object:
    """Texts of the plan without control characters; what is marked as safe stays as it is."""
    return clean(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _pipeline(view: PipelineView) -> dict[str, str]:
    """The drawing for a wide page and for a phone."""
    return {
        "wide": draw_across(view, "pipeline-wide"),
        "narrow": draw_down(view, "pipeline-narrow"),
    }


def _curve(plan: Plan, view: PipelineView) -> dict[str, str]:
    """The same, for the curve."""
    widths = {"wide": 1000, "narrow": 360}
    return {name: draw_curve(plan, view, f"curve-{name}", width) for name, width in widths.items()}


def _possible(plan: Plan) -> Iterator[Prediction]:
    alternatives = () if plan.verdict is None else plan.verdict.alternatives
    return (a.prediction for a in alternatives if a.prediction is not None)


def _memory_scale(plan: Plan) -> int:
    """The most that any bar of memory has to show, in bytes."""
    devices = () if plan.prediction is None else plan.prediction.devices
    return max([1, *(max(d.memory_bytes, d.memory_limit_bytes or 0) for d in devices)])


def _by_subject(rows: Iterable[Compared]) -> list[tuple[str, list[Compared]]]:
    return [(subject, list(group)) for subject, group in groupby(rows, lambda row: row.subject)]


def _utc(time_unix_s: float) -> str:
    try:
        return datetime.fromtimestamp(time_unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, OSError, ValueError):
        return "at an unknown time"
