"""`shardline journal`: what a run has written down: `list`, `export` and `redrive`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardline import options
from shardline.options import option

if TYPE_CHECKING:
    from client.journal_reader import JournalReader

app = typer.Typer(help="What a run with `infer --journal` has written down.", no_args_is_help=True)

JournalFile = Annotated[Path, typer.Argument(help="The file that `infer --journal` wrote.")]


@app.command(name="list")
def list_(file: JournalFile, as_json: options.Json = False) -> None:
    """Say how many batches are in each state, and which are dead, and why."""
    from client.journal_reader import JournalReader
    from shardline.console import out, print_json
    from shardline.journal_table import counts_table, dead_table

    with JournalReader(file) as reader:
        if as_json:
            print_json(_document(file, reader))
            return
        dead = reader.dead()
        out.print(counts_table(file, reader.subject, reader.counts()))
        if dead:
            out.print(dead_table(dead))
        if any(row.redriven_as is None for row in dead):
            out.print(f"send them again: shardline journal redrive {file}", markup=False)


def _document(file: Path, reader: "JournalReader") -> dict[str, Any]:
    counts, subject = reader.counts(), reader.subject
    return {
        "journal": str(file),
        "client": subject.client,
        "source": subject.source,
        "model": None if subject.model is None else subject.model.name,
        "finished": reader.is_finished,
        "states": {state: getattr(counts, state) for state in ("new", "sent", "done", "dead")},
        "redriven": counts.redriven,
        "images": counts.images,
        "images_done": counts.images_done,
        "starts": counts.starts,
        "dead": [
            {
                "seq": row.seq,
                "reason": row.reason,
                "detail": row.detail,
                "attempts": row.attempts,
                "images": list(row.images),
                "redriven_as": row.redriven_as,
            }
            for row in reader.dead()
        ],
    }


@app.command()
def export(
    file: JournalFile,
    out_path: Annotated[
        Path,
        option("--out", "Rows go here: .jsonl, .csv, or - for stdout.", variable="RESULTS"),
    ] = Path("-"),
    dead: Annotated[bool, option("--dead", "Only the images that have no result.")] = False,
    top_k: options.TopK = 5,
) -> None:
    """Write one row for each image that has ended so far, in input order."""
    from client.journal_reader import JournalReader
    from client.journal_rendering import render
    from shardline.console import err

    with JournalReader(file) as reader:
        tally = render(reader, out_path, top_k, only_dead=dead)
        left = reader.counts().open
    if left:
        err.print(f"{left} batches have not ended yet: the run goes on, or has to be run again")
    if str(out_path) != "-":
        count = sum(death.batch.images for death in tally.dead) + (0 if dead else tally.images)
        err.print(f"{count} rows are in {out_path}", markup=False)


@app.command()
def redrive(
    file: JournalFile,
    batch: Annotated[
        list[int] | None,
        option(
            "--seq", "Number of a dead batch, as `list` shows it; repeatable. Default: all dead."
        ),
    ] = None,
) -> None:
    """Let the next run of `infer --journal` send dead batches again."""
    from client.journal_redrive import redrive as redrive_batches
    from shardline.console import out

    renamed = redrive_batches(file, batch or None)
    for old, new in renamed.items():
        out.print(f"batch {old} will be sent again as batch {new}")
    if not renamed:
        out.print("no batch is dead")
    else:
        out.print("run the same `shardline infer … --journal` again")
