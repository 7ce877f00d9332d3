"""Runs the seeds of one row, or of its control, on as few pipelines as the faults allow.

    python -m tests.faults.run_row NUMBER row|control FIRST COUNT

prints one JSON object a trial: `make faults` runs each row in a process of its own, since the
client's patches change that process.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.faults.pipeline_under_test import Site
from tests.faults.row import Figures, Row, Trial
from tests.faults.rows import ROWS

Told = Callable[[Figures], None]


def run_row(row: Row, seeds: Iterable[int], is_control: bool) -> Iterator[Figures]:
    """One trial after the other; a pipeline that a trial has harmed is built anew."""
    with ExitStack() as stack:
        site: Site | None = None
        for seed in seeds:
            try:
                if site is None:
                    folder = stack.enter_context(
                        tempfile.TemporaryDirectory(
                            prefix="shardline-faults-", ignore_cleanup_errors=True
                        )
                    )
                    Path(folder).chmod(0o755)
                    site = stack.enter_context(Site(row.setup(is_control), Path(folder)))
                else:
                    site.prepare()
                figures = row.trial(site, Trial.of(row.number, seed, is_control))
            except Exception as error:  # noqa: BLE001 the row has failed, the table goes on
                figures = Figures(error=f"{type(error).__name__}: {str(error)[:400]}")
            if figures.fails or site is None or site.is_broken:
                if site is not None:
                    site.is_broken = True
                stack.close()
                site = None
            yield figures


def main() -> None:
    number, which, first, count = sys.argv[1:]
    seeds = range(int(first), int(first) + int(count))
    for figures in run_row(ROWS[int(number)], seeds, which == "control"):
        print(json.dumps(figures.to_json()), flush=True)  # noqa: T201 the parent reads it


if __name__ == "__main__":
    main()
