"""The fault table: every row, every seed, every control.

    python -m tests.faults [--rows 1,5,12] [--seeds N] [--json FILE] [--no-controls] [--write]

Rows run two at a time, each in a process of its own. Ends with 1 if a row fails, or if a control
does not.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.faults.processes import ROOT
from tests.faults.report import write_page
from tests.faults.row import CONTROL_SEEDS, Figures, Row
from tests.faults.rows import ROWS
from tests.faults.summary import HEADINGS, Summary

SILENCE_LIMIT_S = 300.0
"""A row's process that says nothing for so long is ended: a trial takes seconds."""
AT_A_TIME = 2
PAGE = ROOT / "docs" / "faults.md"


def run_apart(row: Row, which: str, count: int, progress: Progress, bar: int) -> list[Figures]:
    """The trials of a row, in a process of its own."""
    command = [sys.executable, "-m", "tests.faults.run_row", str(row.number), which, "0"]
    process = subprocess.Popen(
        [*command, str(count)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    said: list[str] = []
    assert process.stdout is not None
    assert process.stderr is not None
    listening = threading.Thread(target=lambda: said.append(process.stderr.read()), daemon=True)
    listening.start()
    watchdog = threading.Timer(SILENCE_LIMIT_S, process.kill)
    watchdog.start()
    trials = []
    for line in process.stdout:
        watchdog.cancel()
        watchdog = threading.Timer(SILENCE_LIMIT_S, process.kill)
        watchdog.start()
        trials.append(Figures(**json.loads(line)))
        progress.advance(bar)
    process.wait()
    watchdog.cancel()
    listening.join(timeout=10)
    if len(trials) < count:
        trials.append(Figures(error=f"its process ended: {''.join(said)[-400:]}"))
    return trials


def chosen_rows(text: str | None) -> list[Row]:
    numbers = sorted(ROWS) if text is None else [int(part) for part in text.split(",")]
    return [ROWS[number] for number in numbers]


def run_table(
    rows: list[Row], seeds: int | None, controls: bool, console: Console
) -> list[Summary]:
    """Everything, the longest first."""
    summaries = {row.number: Summary(row, lacks=row.lacks(), had_control=controls) for row in rows}
    tasks = [
        (row, which, seeds or (row.seeds if which == "row" else 0) or CONTROL_SEEDS)
        for row in rows
        if not summaries[row.number].lacks
        for which in (("row", "control") if controls else ("row",))
    ]
    tasks = [
        (row, which, min(count, CONTROL_SEEDS) if which == "control" else count)
        for row, which, count in tasks
    ]
    tasks.sort(key=lambda task: -task[0].seconds * task[2])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
        ThreadPoolExecutor(AT_A_TIME) as pool,
    ):
        bar = progress.add_task("trials", total=sum(count for *_, count in tasks))
        running = {
            pool.submit(run_apart, row, which, count, progress, bar): (row, which)
            for row, which, count in tasks
        }
        for done in as_completed(running):
            row, which = running[done]
            summary = summaries[row.number]
            setattr(summary, "trials" if which == "row" else "control", done.result())
            for failure in summary.trial_failures if which == "row" else ():
                progress.console.print(f"[red]{failure}[/]", soft_wrap=True)
    return [summaries[row.number] for row in rows]


def print_table(summaries: list[Summary], console: Console) -> None:
    table = Table(*HEADINGS, title="faults survived, messages lost")
    for summary in summaries:
        style = "" if summary.passes else "red"
        cells = [str(summary.row.number), summary.row.fault, *summary.cells()]
        table.add_row(*cells, style=style)
    console.print(table)
    for summary in summaries:
        for failure in summary.failures:
            console.print(f"[red]{failure}[/]", soft_wrap=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", help="numbers, separated by commas; default: all")
    parser.add_argument("--seeds", type=int, help="for every row; default: 20 or 5")
    parser.add_argument("--json", type=Path, help="write every trial here")
    parser.add_argument("--no-controls", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    console, started = Console(width=None if sys.stdout.isatty() else 200), time.monotonic()
    summaries = run_table(
        chosen_rows(arguments.rows), arguments.seeds, not arguments.no_controls, console
    )
    minutes = (time.monotonic() - started) / 60
    print_table(summaries, console)
    console.print(f"{minutes:.1f} minutes")
    if arguments.json:
        document = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "minutes": round(minutes, 1),
            "rows": [summary.to_json() for summary in summaries],
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    if arguments.write:
        write_page(PAGE, summaries, minutes)
    return 0 if all(summary.passes for summary in summaries) else 1


if __name__ == "__main__":
    sys.exit(main())
