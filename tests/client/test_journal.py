"""The journal's file: what is in it after a death, whose results count, and what is refused."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from client.journal import Journal
from client.journal_reader import JournalReader
from client.journal_redrive import redrive
from contract.activation import BatchId
from contract.errors import JournalError
from contract.plan import Plan
from tests.client.journals import Written, result_message, rows
from tests.tiny import make_tiny_plan

ROOT = Path(__file__).parent.parent.parent
STATES = "SELECT seq, state FROM batches ORDER BY seq"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_tiny_plan(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


def test_what_was_committed_is_there_after_a_death_and_the_rest_is_not(
    path: Path, plan: Plan
) -> None:
    first = Written(path, plan)
    one, two, three = first.send(1, 2, 3)
    first.done(one)
    first.dead(two)
    first.journal.commit()
    first.done(three)
    first.send(4)
    first.close()
    assert rows(path, STATES) == [(0, "done"), (1, "dead"), (2, "sent")]
    again = Written(path, plan)
    counts = again.ledger.counts()
    assert (counts.submitted, counts.delivered, counts.dead, counts.in_flight) == (3, 1, 1, 1)
    [left] = [again.ledger.waiting()]
    assert left is not None
    assert (left.batch_id.seq, left.batch.names, left.attempt) == (2, ("3/0", "3/1"), 0)
    assert (again.journal.read_input(left)["image"] == 3).all()
    again.close()


def test_a_process_that_is_killed_leaves_the_same(path: Path, plan: Plan, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from contract.plan import load_plan; from tests.client.journals import Written\n"
        "written = Written(Path(sys.argv[1]), load_plan(Path(sys.argv[2])))\n"
        "one, two = written.send(1, 2); written.done(one); written.journal.commit()\n"
        "written.done(two); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    folder = tmp_path / "tiny"
    command = [sys.executable, "-c", code, path, folder]
    done = subprocess.run(command, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -9
    assert rows(path, STATES) == [(0, "done"), (1, "sent")]
    Written(path, plan).close()  # the lock died with it


def test_a_batch_keeps_its_number_and_every_start_has_an_epoch(path: Path, plan: Plan) -> None:
    epochs = []
    for start in range(3):
        written = Written(path, plan)
        epochs.append(written.ledger.epoch)
        [entry] = written.send(start)
        assert entry.batch_id == BatchId(epochs[-1], start)
        assert written.ledger.low == 0  # the first batch is open still
        written.journal.commit()
        written.close()
    assert len(set(epochs)) == 3
    assert rows(path, "SELECT epoch FROM starts ORDER BY number") == [
        (f"{e:016x}",) for e in epochs
    ]


def test_a_result_under_an_earlier_epoch_counts_once(path: Path, plan: Plan) -> None:
    first = Written(path, plan)
    [entry] = first.send(1)
    first.journal.commit()
    first.close()
    again = Written(path, plan)
    assert again.ledger.knows(entry.batch_id)
    found = again.ledger.deliver(entry.batch_id)
    assert found is not None
    assert found.batch_id.epoch == again.ledger.epoch
    again.journal.done(found, result_message(entry.batch_id, plan), 1.0)
    again.journal.commit()
    assert again.ledger.deliver(entry.batch_id) is None
    assert again.ledger.deliver(found.batch_id) is None
    counts = again.ledger.counts()
    assert (counts.delivered, counts.duplicates_dropped, counts.lost) == (1, 2, 0)
    assert again.ledger.waiting() is None
    again.close()


def test_a_number_that_was_never_written_down_answers_for_no_other_batch(
    path: Path, plan: Plan
) -> None:
    """The client died between sending and committing; its next start gave the number again."""
    first = Written(path, plan)
    first.send(1)
    first.journal.commit()
    [lost] = first.send(2)
    first.close()
    again = Written(path, plan)
    [other] = again.send(99)
    again.journal.commit()
    assert other.batch_id.seq == lost.batch_id.seq
    assert not again.ledger.knows(lost.batch_id)
    assert again.ledger.find(lost.batch_id) is None
    again.close()
    third = Written(path, plan)
    assert not third.ledger.knows(lost.batch_id)
    assert third.ledger.knows(other.batch_id)
    third.close()


def test_of_two_results_the_first_stays(path: Path, plan: Plan) -> None:
    written = Written(path, plan)
    [entry] = written.send(1)
    first, second = (result_message(entry.batch_id, plan, score) for score in (1.0, 2.0))
    written.journal.done(entry, first, 1.0)
    written.journal.commit()
    written.journal.done(entry, second, 2.0)
    written.journal.commit()
    assert rows(path, "SELECT latency_ms, message FROM results") == [(1.0, first)]
    written.close()


def test_an_input_is_kept_until_its_batch_has_a_result(path: Path, plan: Plan) -> None:
    written = Written(path, plan)
    one, two, three = written.send(1, 2, 3)
    written.done(one)
    written.dead(two)
    written.journal.commit()
    assert rows(path, "SELECT seq FROM inputs ORDER BY seq") == [(1,), (2,)]
    written.done(three)
    written.journal.commit()
    assert rows(path, "SELECT seq FROM inputs ORDER BY seq") == [(1,)]
    written.close()


def test_an_input_that_can_be_read_again_is_kept_as_its_positions(path: Path, plan: Plan) -> None:
    written = Written(path, plan, keep_input=False)
    written.send(1, positions=(0, 2))
    written.send(2, positions=(2, 5))  # one between could not be read
    written.journal.commit()
    assert rows(path, "SELECT * FROM inputs") == []
    assert written.journal.end_position() == 5
    written.close()
    again = Written(path, plan)
    left = again.ledger.waiting()
    assert left is not None
    assert left.batch.positions == (0, 2)
    with pytest.raises(JournalError, match="infer"):
        again.journal.read_input(left)
    again.close()


def test_attempts_and_strikes_are_counted_over_restarts(path: Path, plan: Plan) -> None:
    first = Written(path, plan)
    [entry] = first.send(1)
    entry.refusals.append("once")
    entry.deaths += 1
    first.attempt(entry)
    first.journal.commit()
    first.close()
    again = Written(path, plan)
    left = again.ledger.waiting()
    assert left is not None
    assert (left.attempt, left.strikes) == (1, 2)
    again.close()


# Dead batches


def test_a_redriven_batch_has_a_new_number_and_the_old_place(path: Path, plan: Plan) -> None:
    first = Written(path, plan)
    one, two, three = first.send(1, 2, 3)
    first.done(one)
    first.dead(two)
    first.done(three)
    first.journal.commit()
    first.close()
    assert redrive(path) == {1: 3}
    again = Written(path, plan)
    left = again.ledger.waiting()
    assert left is not None
    assert (left.batch_id.seq, left.batch.names) == (3, ("2/0", "2/1"))
    assert (left.attempt, left.strikes) == (-1, 0)
    assert again.ledger.low == 3  # above all that stages may have called stale
    counts = again.ledger.counts()
    assert (counts.submitted, counts.delivered, counts.dead, counts.in_flight) == (3, 2, 0, 1)
    again.ledger.admit(left, again_with_tensors(again), 0.0)
    again.attempt(left)
    again.done(left)
    again.journal.commit()
    again.close()
    with JournalReader(path) as reader:
        assert [end.batch.names[0] for end in reader.ended()] == ["1/0", "2/0", "3/0"]
        assert reader.counts().redriven == 1
        assert [(row.seq, row.redriven_as) for row in reader.dead()] == [(1, 3)]
    assert redrive(path) == {}


def again_with_tensors(written: Written):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    left = written.ledger.waiting()
    assert left is not None
    return replace(left.batch, tensors=written.journal.read_input(left))


def test_only_the_dead_can_be_redriven_and_only_once(path: Path, plan: Plan) -> None:
    written = Written(path, plan)
    one, two, three = written.send(1, 2, 3)
    written.done(one)
    written.dead(two)
    written.dead(three)
    written.journal.commit()
    written.close()
    with pytest.raises(JournalError, match="batch 0 is not dead"):
        redrive(path, [0])
    assert redrive(path, [2]) == {2: 3}
    with pytest.raises(JournalError, match=r"batch 2 is not dead.*dead are: 1"):
        redrive(path, [2])


def test_a_number_given_to_a_redriven_batch_is_not_answered_by_an_unwritten_one(
    path: Path, plan: Plan
) -> None:
    first = Written(path, plan)
    [dying] = first.send(1)
    first.dead(dying)
    first.journal.commit()
    [unwritten] = first.send(2)
    first.close()
    assert redrive(path) == {0: 1}
    again = Written(path, plan)
    assert unwritten.batch_id.seq == 1
    assert not again.ledger.knows(unwritten.batch_id)
    again.close()


# What it is of


def test_another_model_is_refused_and_another_plan_of_the_same_is_not(
    path: Path, plan: Plan, tmp_path: Path
) -> None:
    Written(path, plan).close()
    other = make_tiny_plan(tmp_path, seed=1, name="other")
    with Journal(path) as journal:
        journal.take_plan(plan.model_copy(update={"plan_id": "f" * 16}))
        with pytest.raises(JournalError, match=r"random seed 0.*random seed 1"):
            journal.take_plan(other)


def test_another_source_is_refused(path: Path) -> None:
    with Journal(path) as journal:
        journal.take_source("photos", "3 pictures, abc")
        journal.take_source("./photos", "3 pictures, abc")
        with pytest.raises(JournalError, match=r"photos.*abc.*4 pictures"):
            journal.take_source("photos", "4 pictures, def")
        with pytest.raises(JournalError, match="a program"):
            journal.take_source("", "")


def test_the_client_s_name_is_the_same_for_every_start(path: Path) -> None:
    with Journal(path) as journal:
        name = journal.client_name()
    with Journal(path) as journal:
        assert journal.client_name() == name
        assert journal.client_name("alice") == "alice"
    with Journal(path) as journal:
        assert journal.client_name() == "alice"


# What cannot be used


def test_a_second_process_is_refused_while_the_first_lives(path: Path, plan: Plan) -> None:
    written = Written(path, plan)
    code = "import sys; from pathlib import Path; from client.journal import Journal\n"
    code += "Journal(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "another process is using it" in done.stderr
    with JournalReader(path) as reader:  # reading is always allowed
        assert reader.counts().starts == 1
    written.close()
    Journal(path).close()


def a_text(path: Path) -> None:
    path.write_text("not a database, but longer than the header of one\n" * 100)


def another_database(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE batches (seq INTEGER)")
    database.close()


def a_later_format(path: Path) -> None:
    Journal(path).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 2")
    database.close()


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (a_text, "no journal"),
        (another_database, "not a journal of Shardline"),
        (a_later_format, "format 2, expected 1"),
        (a_folder, "cannot be opened"),
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_left_alone(
    path: Path, make: Callable[[Path], None], words: str
) -> None:
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(JournalError, match=words):
        Journal(path)
    assert before is None or path.read_bytes() == before
    if path.is_file():
        with pytest.raises(JournalError):
            JournalReader(path)


@pytest.mark.parametrize("folder", ["nowhere", "/proc"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, folder: str) -> None:
    with pytest.raises(JournalError, match="folder"):
        Journal(tmp_path / folder / "run.journal")


def test_an_empty_file_is_begun_and_a_missing_one_is_not_read(path: Path, plan: Plan) -> None:
    with pytest.raises(JournalError, match="no such file"):
        JournalReader(path)
    with pytest.raises(JournalError, match="no such file"):
        redrive(path)
    path.touch()
    Written(path, plan).close()


def test_damage_in_the_middle_is_told(path: Path, plan: Plan) -> None:
    written = Written(path, plan)
    for entry in written.send(*range(200)):
        written.done(entry)
    written.journal.commit()
    written.close()
    content = bytearray(path.read_bytes())
    for page in range(2, len(content) // 4096):
        content[page * 4096 : page * 4096 + 2000] = b"\xff" * 2000
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"run\.journal"), JournalReader(path) as reader:
        list(reader.ended())
    with Journal(path) as journal, pytest.raises(JournalError, match=r"run\.journal"):
        journal.begin(0.0)


def test_a_result_that_was_altered_on_the_disk_is_told(path: Path, plan: Plan) -> None:
    written = Written(path, plan)
    [entry] = written.send(1)
    written.done(entry)
    written.journal.commit()
    written.close()
    database = sqlite3.connect(path)
    [(message,)] = database.execute("SELECT message FROM results").fetchall()
    altered = message[:-1] + bytes([message[-1] ^ 1])
    database.execute("UPDATE results SET message = ?", (altered,))
    database.commit()
    database.close()
    with JournalReader(path) as reader, pytest.raises(JournalError, match="batch 0 is damaged"):
        list(reader.ended())


def test_a_full_disk_is_told_and_what_was_noted_can_still_be_written(
    path: Path, plan: Plan
) -> None:
    written = Written(path, plan)
    database = written.journal.database
    [one] = written.send(1)
    written.done(one)
    written.journal.commit()
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    for entry in written.send(*range(2, 100)):
        written.done(entry)
    with pytest.raises(JournalError, match="disk is full"):
        written.journal.commit()
    assert rows(path, STATES) == [(0, "done")]  # all of it or nothing
    assert written.journal.is_dirty
    database.execute("PRAGMA max_page_count = 100000")
    written.journal.commit()
    assert len(rows(path, STATES)) == 99
    written.close()


@pytest.mark.parametrize(("synchronous", "level"), [("normal", 1), ("full", 2)])
def test_how_much_a_commit_waits_for_the_disk_is_as_asked(
    path: Path, synchronous: str, level: int
) -> None:
    with Journal(path, synchronous) as journal:  # type: ignore[arg-type]
        journal.begin(0.0)
        assert journal.database.execute("PRAGMA synchronous").fetchone() == (level,)
        assert journal.database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
