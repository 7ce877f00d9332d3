"""A journal as tables for people."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from client.journal_reader import DeadRow, JournalCounts
from client.journal_subject import Subject
from shardline.plan_table import new_table


def counts_table(path: Path, subject: Subject, counts: JournalCounts) -> Table:
    """What the journal is of, and how many batches are in each state."""
    table = Table(show_header=False, box=None, title=str(path), title_justify="left")
    model = "—" if subject.model is None else subject.model.name
    table.add_row("source", subject.source or "—")
    table.add_row("model", model)
    times = "once" if counts.starts == 1 else f"{counts.starts} times"
    table.add_row("client", f"{subject.client or '—'}, started {times}")
    redriven = f", {counts.redriven} more re-driven" if counts.redriven else ""
    table.add_row(
        "batches",
        f"{counts.new} new, {counts.sent} sent, {counts.done} done, {counts.dead} dead{redriven}",
    )
    table.add_row("images", f"{counts.images_done:,} of {counts.images:,} have a result")
    if not subject.is_exhausted:
        table.add_row("", "the source is not read to its end yet")
    return table


MAX_DEAD_SHOWN = 20


def dead_table(dead: Sequence[DeadRow]) -> Table:
    """The first batches that were given up, and why; `--json` has them all."""
    table = new_table("dead")
    for column in ("seq", "reason", "attempts", "images", "detail"):
        table.add_column(column)
    for row in dead[:MAX_DEAD_SHOWN]:
        more = f" and {len(row.images) - 1} more" if len(row.images) > 1 else ""
        again = "" if row.redriven_as is None else f" (re-driven as {row.redriven_as})"
        table.add_row(
            str(row.seq),
            row.reason,
            str(row.attempts),
            f"{row.images[0]}{more}",
            f"{row.detail}{again}",
        )
    if len(dead) > MAX_DEAD_SHOWN:
        table.add_row("…", "", "", f"{len(dead) - MAX_DEAD_SHOWN} more", "see --json")
    return table
