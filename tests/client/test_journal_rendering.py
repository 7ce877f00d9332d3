"""A results file from a journal: every image once, in input order, whole, the same each time."""

import csv
import json
from pathlib import Path

import pytest

from client.journal_reader import JournalReader
from client.journal_redrive import redrive
from client.journal_rendering import render
from contract.errors import JournalError, SettingsError
from contract.plan import Plan
from tests.client.journals import Written
from tests.tiny import make_tiny_plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_tiny_plan(tmp_path)


@pytest.fixture
def path(tmp_path: Path, plan: Plan) -> Path:
    """Five batches: three done, out of order, one dead, one open."""
    path = tmp_path / "run.journal"
    written = Written(path, plan)
    entries = written.send(0, 1, 2, 3, 4)
    for number in (3, 0, 2):
        written.done(entries[number], score=float(number))
    written.dead(entries[1])
    written.journal.commit()
    written.close()
    return path


def test_rows_are_in_input_order_with_the_dead_where_they_stood(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with JournalReader(path) as reader:
        tally = render(reader, out, 2)
    written = [json.loads(line) for line in out.read_text().splitlines()]
    expected = [f"{number}/{i}" for number in (0, 1, 2, 3) for i in range(2)]
    assert [row["image"] for row in written] == expected
    assert [row["image"] for row in written if "error" in row] == ["1/0", "1/1"]
    assert all(len(row["top"]) == 2 for row in written if "top" in row)
    assert (tally.images, len(tally.dead), len(tally.latencies_ms)) == (6, 1, 3)


def test_rendering_again_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    texts = []
    for name in ("a.csv", "b.csv", "a.csv"):
        with JournalReader(path) as reader:
            render(reader, tmp_path / name, 5)
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1] == texts[2]
    with (tmp_path / "a.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 9


def test_only_the_dead_can_be_asked_for(path: Path, tmp_path: Path) -> None:
    with JournalReader(path) as reader:
        render(reader, tmp_path / "dead.jsonl", 5, only_dead=True)
    written = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert [row["image"] for row in written] == ["1/0", "1/1"]
    assert all("as the test wants it" in row["error"] for row in written)


def test_a_redriven_batch_stands_where_the_dead_one_stood(
    path: Path, plan: Plan, tmp_path: Path
) -> None:
    assert redrive(path) == {1: 5}
    with JournalReader(path) as reader:
        render(reader, tmp_path / "out.jsonl", 1)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"][0] for line in lines[::2]] == ["0", "2", "3"]  # open again
    again = Written(path, plan)
    while (entry := again.ledger.waiting()) is not None:
        again.done(entry)
    again.journal.commit()
    again.close()
    with JournalReader(path) as reader:
        render(reader, tmp_path / "out.jsonl", 1)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"][0] for line in lines[::2]] == ["0", "1", "2", "3", "4"]


def test_a_file_that_fails_half_way_leaves_the_old_one(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("the old one\n")
    with JournalReader(path) as reader:
        reader._database.close()
        with pytest.raises(JournalError):
            render(reader, out, 1)
    assert out.read_text() == "the old one\n"
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".part")] == []


@pytest.mark.parametrize("name", ["out.txt", "nowhere/out.csv"])
def test_a_name_that_cannot_be_written_is_told(path: Path, tmp_path: Path, name: str) -> None:
    with JournalReader(path) as reader, pytest.raises(SettingsError, match=name):
        render(reader, tmp_path / name, 1)


def test_counts_say_where_everything_is(path: Path) -> None:
    with JournalReader(path) as reader:
        counts = reader.counts()
        assert (counts.new, counts.sent, counts.done, counts.dead) == (0, 1, 3, 1)
        assert (counts.images, counts.images_done, counts.starts) == (10, 6, 1)
        assert counts.ledger().submitted == 5
        assert not reader.is_finished
        [dead] = reader.dead()
    assert (dead.seq, dead.reason, dead.attempts, dead.images) == (1, "poison", 1, ("1/0", "1/1"))
