"""docs/faults.md: the table as it came out, and how each row was made."""

# ruff: noqa: E501  the page's paragraphs are one line each

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.faults import scaled
from tests.faults.summary import HEADINGS, Summary

HEAD = """# Faults survived, messages lost

Written by `make faults`; do not edit. The promise: no batch is lost as long as the client's disk survives and the broker comes back; compute may happen more than once; every batch ends with exactly one recorded result, or with a recorded reason why it has none.

Each trial runs a real pipeline (Mosquitto {broker}, three `shardline stage` processes, a client) with numbered batches whose answers are known, and injects one fault at a random moment that its seed decides. **Missing**, **wrong** and **second results** must be 0 in every row. A stage that dies computes some batches again: **computed twice**, which is allowed. **Recovery** is the time from the fault to the first result that needed what had failed; from the end of the fault in rows {healed}. **Control**: the same fault with the mechanism that covers it switched off by the harness; it must fail, or the fault would not bite. The product has no switches for any of this: `tests/faults` wraps its functions in processes of its own ([ADR 0029](adr/0029-the-fault-table.md)).

Times are scaled by {factor:g}: a keepalive of {keepalive} s instead of 15, cuts of {cut:g} s instead of 60, hangs of {hang:g} s instead of 120. The soak ([bench/README.md](../bench/README.md)) has both at full length.

This run: {date}, {trials} trials and {controls} controls in {minutes:.0f} minutes, {machine}, Python {python}.

"""


def write_page(file: Path, summaries: Sequence[Summary], minutes: float) -> None:
    """Write the page."""
    lines = [
        _row(HEADINGS),
        _row("---" for _ in HEADINGS),
        *(_row([str(s.row.number), s.row.fault, *s.cells()]) for s in summaries),
    ]
    text = _head(summaries, minutes) + "\n".join(lines) + "\n\n## How each was made\n\n"
    headings = ("#", "injected by", "covered by", "the control", "stands in for what is missing")
    lines = [_row(headings), _row("---" for _ in headings)]
    for summary in summaries:
        row = summary.row
        cells = (row.injected_by, row.covered_by, row.control, row.stand_in)
        lines.append(_row((str(row.number), *cells)))
    text += "\n".join(lines) + "\n"
    failures = [failure for summary in summaries for failure in summary.failures]
    if failures:
        text += "\n## What failed in this run\n\n"
        text += "".join(f"- {failure}\n" for failure in failures)
    file.write_text(text)


def _head(summaries: Sequence[Summary], minutes: float) -> str:
    import subprocess

    from broker.embedded import find_mosquitto

    said = subprocess.run([find_mosquitto(), "-h"], capture_output=True, text=True, check=False)
    healed = [str(s.row.number) for s in summaries if s.row.recovers_from == "heal"]
    return HEAD.format(
        broker=said.stdout.split()[2],
        healed=", ".join(healed),
        factor=scaled.FACTOR,
        keepalive=scaled.KEEPALIVE_S,
        cut=scaled.CUT_S,
        hang=scaled.HANG_S,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        trials=sum(len(s.trials) for s in summaries),
        controls=sum(len(s.control) for s in summaries),
        minutes=minutes,
        machine=f"{platform.machine()}, Linux {platform.release()}",
        python=platform.python_version(),
    )


def _row(cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"  # type: ignore[attr-defined]
