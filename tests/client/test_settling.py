"""Nothing is acknowledged, and nothing has ended, before the commit that holds it."""

from pathlib import Path

import pytest

from broker.transport import AckToken, Delivery
from client.batch import DeadBatch, DeathReason, Ended
from client.journal import COMMIT_INTERVAL_S
from client.record import MAX_WAITING_DELIVERIES, SENT_INTERVALS, NoRecord, Settling
from contract.errors import JournalError
from tests.client.journals import Written, batch, rows
from tests.tiny import make_tiny_plan


class Broker:
    """Notes what is acknowledged, and what the journal held at that moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.acknowledged: list[int] = []
        self.held: list[set[object]] = []

    def delivery(self, number: int) -> Delivery:
        def ack() -> None:
            self.acknowledged.append(number)
            self.held.append({seq for (seq,) in rows(self.path, "SELECT seq FROM results")})

        return Delivery("result", b"", 1, False, AckToken(ack))


@pytest.fixture
def written(tmp_path: Path):  # type: ignore[no-untyped-def]
    written = Written(tmp_path / "run.journal", make_tiny_plan(tmp_path))
    yield written
    written.close()


def ended(number: int) -> Ended:
    return DeadBatch(written_id(number), batch(number), DeathReason.POISON, "")  # any end serves


def written_id(number: int):  # type: ignore[no-untyped-def]
    from contract.activation import BatchId

    return BatchId(1, number)


def test_an_acknowledgement_goes_out_after_the_commit_of_its_result(written: Written) -> None:
    broker, settling = Broker(written.journal.path), Settling(written.journal)
    entries = written.send(0, 1, 2)
    assert settling.settle(10.0) == []
    for number, entry in enumerate(entries):
        written.done(entry)
        settling.hold(broker.delivery(number))
        settling.end(ended(number))
        assert settling.settle(10.0) == []
    assert broker.acknowledged == []
    assert rows(written.journal.path, "SELECT seq FROM results") == []
    out = settling.settle(10.001 + COMMIT_INTERVAL_S)
    assert len(out) == 3
    assert broker.acknowledged == [0, 1, 2]
    assert broker.held == [{0, 1, 2}] * 3  # one commit for all of them
    assert settling.settle(11.0) == []


def test_a_commit_that_is_due_is_not_slept_over(written: Written) -> None:
    settling = Settling(written.journal)
    assert settling.wait_s(10.0, 0.05) == 0.05
    written.send(0)
    settling.settle(10.0)
    assert settling.wait_s(10.0, 5.0) == pytest.approx(SENT_INTERVALS * COMMIT_INTERVAL_S)
    settling.end(ended(0))
    assert settling.wait_s(10.0, 0.05) == pytest.approx(COMMIT_INTERVAL_S)
    assert settling.wait_s(10.004, 0.05) == pytest.approx(COMMIT_INTERVAL_S - 0.004)
    assert settling.wait_s(12.0, 0.05) == 0
    settling.settle(12.0)
    assert settling.wait_s(12.0, 0.05) == 0.05


def test_the_broker_is_never_kept_waiting_for_room(written: Written) -> None:
    """It sends no more than its receive maximum, whatever the clock says."""
    broker, settling = Broker(written.journal.path), Settling(written.journal)
    for number, entry in enumerate(written.send(*range(MAX_WAITING_DELIVERIES))):
        written.done(entry)
        settling.hold(broker.delivery(number))
    settling.settle(10.0)
    assert len(broker.acknowledged) == MAX_WAITING_DELIVERIES


def test_on_a_full_disk_nothing_is_acknowledged_and_nothing_has_ended(written: Written) -> None:
    broker, settling = Broker(written.journal.path), Settling(written.journal)
    database = written.journal.database
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    for number, entry in enumerate(written.send(*range(100))):
        written.done(entry)
        settling.hold(broker.delivery(number))
        settling.end(ended(number))
    for _ in range(2):
        with pytest.raises(JournalError, match="disk is full"):
            settling.settle(10.0)
    assert broker.acknowledged == []
    assert rows(written.journal.path, "SELECT * FROM results") == []
    database.execute("PRAGMA max_page_count = 100000")
    assert len(settling.settle(10.0)) == 100
    assert len(broker.acknowledged) == 100


def test_without_a_journal_nothing_waits(tmp_path: Path) -> None:
    settling = Settling(NoRecord())
    acknowledged: list[int] = []
    settling.hold(Delivery("t", b"", 1, False, AckToken(lambda: acknowledged.append(1))))
    settling.end(ended(0))
    assert len(settling.settle(0.0)) == 1
    assert acknowledged == [1]
    assert settling.wait_s(0.0, 0.05) == 0.05
