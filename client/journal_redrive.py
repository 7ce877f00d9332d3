"""Lets dead batches be sent again: each gets a new number and the place of the old one."""

from collections.abc import Sequence
from pathlib import Path

from client.journal import Journal
from client.journal_schema import naming_the_file, transaction
from contract.errors import JournalError


def redrive(path: Path, seqs: Sequence[int] | None = None) -> dict[int, int]:
    """Let the next run of a journal send dead batches again.

    Under a new number, since stages drop what lies below the low-watermark of an epoch; the old
    row stays, with its reason, and is not counted any more.

    Args:
        path: the journal; no run may be using it.
        seqs: which; None means all that are dead and were not re-driven yet.

    Returns:
        The new number of each.

    Raises:
        JournalError: one of them is not dead, or was re-driven; or the file cannot be used.
    """
    if not path.is_file():
        raise JournalError(
            f"journal {path}: no such file; expected what `shardline infer --journal` wrote"
        )
    with Journal(path) as journal:
        return _redrive(journal, seqs)


def _redrive(journal: Journal, seqs: Sequence[int] | None) -> dict[int, int]:
    database, path = journal.database, journal.path
    with naming_the_file(path, "cannot be read"):
        rows = database.execute(
            "SELECT seq, place, names, labels, images, first, end FROM batches "
            "WHERE state = 'dead' AND redriven_as IS NULL ORDER BY place"
        ).fetchall()
    dead = {row[0] for row in rows}
    wanted = dead if seqs is None else set(seqs)
    if not wanted <= dead:
        raise JournalError(
            f"journal {path}: batch {min(wanted - dead)} is not dead, or was re-driven already; "
            f"dead are: {', '.join(map(str, sorted(dead))) or 'none'}"
        )
    if not wanted:
        return {}
    # A start of its own: what the last run sent and never wrote down may have had these numbers.
    journal.new_start()
    renamed: dict[int, int] = {}
    with transaction(database, path):
        chosen = (row for row in rows if row[0] in wanted)
        for new, (old, *kept) in enumerate(chosen, start=journal.next_seq()):
            database.execute(
                "INSERT INTO batches (seq, born, state, attempt, strikes, place, names, labels, "
                "images, first, end) VALUES (?, ?, 'new', -1, 0, ?, ?, ?, ?, ?, ?)",
                (new, journal.start, *kept),
            )
            database.execute("UPDATE batches SET redriven_as = ? WHERE seq = ?", (new, old))
            database.execute("UPDATE inputs SET seq = ? WHERE seq = ?", (new, old))
            renamed[old] = new
    return renamed
