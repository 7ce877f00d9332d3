"""CSV files that survive their writer, and that nobody's recording is lost in."""

import csv
import os
from pathlib import Path

import pytest

from client.records.csv_file import CsvLog, CsvTable
from contract.errors import SettingsError

COLUMNS = ("name", "time_ms", "note")


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.csv"


def test_rows_are_there_as_soon_as_they_are_written(file: Path) -> None:
    log = CsvLog(file, COLUMNS, append=False)
    assert rows_of(file) == [list(COLUMNS)]
    log.write([("pi-0", 1.5, None), ("pi-1", 2, 'a "quoted", thing\nand a line')])
    assert rows_of(file)[1:] == [
        ["pi-0", "1.5", ""],
        ["pi-1", "2", 'a "quoted", thing\nand a line'],
    ]
    log.close()


def test_a_file_that_is_there_is_never_written_over(file: Path) -> None:
    file.write_text("somebody's\n")
    with pytest.raises(SettingsError, match=r"is there already.*--append"):
        CsvLog(file, COLUMNS, append=False)
    with pytest.raises(SettingsError, match=r"is there already.*--append"):
        CsvTable(file, COLUMNS, append=False)
    for make in (CsvLog, CsvTable):
        with pytest.raises(SettingsError, match="begins with"):
            make(file, COLUMNS, append=True)
    assert file.read_text() == "somebody's\n"


def test_appending_goes_on_after_the_last_whole_row(file: Path) -> None:
    log = CsvLog(file, COLUMNS, append=False)
    log.write([("pi-0", 1, None)])
    log.close()
    whole = file.read_bytes()
    file.write_bytes(whole + b"pi-1,2")  # a writer that was killed in the middle of a row
    log = CsvLog(file, COLUMNS, append=True)
    log.write([("pi-2", 3, None)])
    log.close()
    assert file.read_bytes() == whole + b"pi-2,3,\n"


def test_a_last_row_longer_than_a_block_is_cut_off_whole(file: Path) -> None:
    CsvLog(file, COLUMNS, append=False).close()
    whole = file.read_bytes()
    file.write_bytes(whole + b"x" * 200_000)
    CsvLog(file, COLUMNS, append=True).close()
    assert file.read_bytes() == whole


def test_a_file_whose_writer_died_before_its_header_is_begun_anew(file: Path) -> None:
    file.write_bytes(b"nam")
    CsvLog(file, COLUMNS, append=True).close()
    assert rows_of(file) == [list(COLUMNS)]


def test_two_processes_do_not_record_into_one_file(file: Path) -> None:
    log = CsvLog(file, COLUMNS, append=False)
    with pytest.raises(SettingsError, match="another process is recording"):
        CsvLog(file, COLUMNS, append=True)
    log.close()
    CsvLog(file, COLUMNS, append=True).close()


def test_rows_that_the_disk_does_not_take_are_told_and_leave_no_half_row(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CsvLog(file, COLUMNS, append=False)
    log.write([("pi-0", 1, None)])
    whole, write = file.read_bytes(), os.pwrite
    left = [4]  # bytes of room on the disk

    def full(descriptor: int, text: bytes, offset: int) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        count, left[0] = left[0], 0
        return write(descriptor, text[:count], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(SettingsError, match="No space left on device"):
        log.write([("pi-1", 2, None)])
    assert file.read_bytes() == whole
    monkeypatch.undo()
    log.write([("pi-1", 2, None)])
    assert file.read_bytes() == whole + b"pi-1,2,\n"
    log.close()


def test_a_table_is_replaced_whole_and_earlier_recordings_stay(file: Path) -> None:
    table = CsvTable(file, COLUMNS, append=False)
    table.replace([("pi-0", 1, None)])
    table.replace([("pi-0", 2, None), ("pi-1", 3, None)])
    assert rows_of(file)[1:] == [["pi-0", "2", ""], ["pi-1", "3", ""]]
    later = CsvTable(file, COLUMNS, append=True)
    later.replace([("pi-0", 9, None)])
    later.replace([("pi-0", 10, None)])
    assert rows_of(file)[1:] == [["pi-0", "2", ""], ["pi-1", "3", ""], ["pi-0", "10", ""]]
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_a_reader_never_sees_half_a_table(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = CsvTable(file, COLUMNS, append=False)
    table.replace([("pi-0", 1, None)])
    before = file.read_bytes()

    def fail(self: Path, target: Path) -> Path:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(SettingsError, match="Input/output error"):
        table.replace([("pi-0", 2, None)])
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no/rows\.csv: cannot write it"):
        CsvLog(tmp_path / "no" / "rows.csv", COLUMNS, append=False)
