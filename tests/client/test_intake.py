"""Batches are begun as far as there is room, and a source that is empty is found to be so."""

from collections.abc import Iterable, Iterator

from client.batch import NOTHING_YET, Batch, NothingYet
from client.intake import Intake


class Room:
    """What of a sender an intake asks."""

    def __init__(self, rows: int, is_idle: bool = True) -> None:
        self.rows, self.is_idle = rows, is_idle
        self.begun: list[Batch] = []

    def has_room(self) -> bool:
        return self.rows > 0

    def fits(self, batch: Batch) -> bool:
        return batch.images <= self.rows

    def begin(self, batch: Batch) -> None:
        self.begun.append(batch)
        self.rows -= batch.images
        self.is_idle = False


def intake_of(batches: Iterable[Batch | NothingYet], room: Room) -> Intake:
    return Intake(batches, room, room.begin)  # type: ignore[arg-type]


def batch(rows: int) -> Batch:
    return Batch({}, tuple(map(str, range(rows))))


def test_batches_are_begun_while_there_is_room() -> None:
    room, batches = Room(5), [batch(2), batch(2), batch(2)]
    intake = intake_of(batches, room)
    intake.fill()
    assert room.begun == batches[:2]
    room.rows += 2
    intake.fill()
    intake.fill()
    assert room.begun == batches
    assert intake.is_exhausted


def test_a_batch_that_waits_for_room_is_not_overtaken_and_not_lost() -> None:
    room, batches = Room(3), [batch(2), batch(3), batch(1)]
    intake = intake_of(batches, room)
    intake.fill()
    intake.fill()
    assert room.begun == batches[:1]
    assert not intake.is_exhausted
    room.rows = 9
    intake.fill()
    assert room.begun == batches
    assert intake.is_exhausted


def test_an_empty_source_is_found_to_be_empty_though_nothing_could_be_sent() -> None:
    intake = intake_of([], Room(0))
    intake.fill()
    assert intake.is_exhausted


def test_what_cannot_be_sent_yet_is_kept() -> None:
    room = Room(0)
    intake = intake_of([batch(1)], room)
    intake.fill()
    assert (room.begun, intake.is_exhausted) == ([], False)
    room.rows = 1
    intake.fill()
    assert len(room.begun) == 1


def test_a_source_is_not_read_ahead_of_the_window() -> None:
    read: list[int] = []

    def source() -> Iterator[Batch | NothingYet]:
        for number in range(3):
            read.append(number)
            yield batch(1)

    intake = intake_of(source(), Room(0, is_idle=False))
    intake.fill()
    assert read == []


def test_a_source_that_has_nothing_yet_is_asked_again() -> None:
    room = Room(4)
    intake = intake_of([NOTHING_YET, batch(1)], room)
    intake.fill()
    assert room.begun == []
    intake.fill()
    assert len(room.begun) == 1
