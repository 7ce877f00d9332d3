"""A Raspberry Pi's word on its voltage and speed comes into the metrics as words, or as None."""

from pathlib import Path

import pytest

import stage.throttling
from stage.counters import StageCounters
from stage.metrics import DeviceMeter
from stage.throttling import Throttling, throttling_words

FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"


def board(root: Path, word: str) -> Path:
    file = root / FIRMWARE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(word)
    return file


@pytest.mark.parametrize(
    ("word", "words"),
    [
        (0, ()),
        (0x1, ("under_voltage",)),
        (0x2, ("frequency_capped",)),
        (0x4, ("throttled",)),
        (0x8, ("soft_temperature_limit",)),
        (0x10000, ("under_voltage_earlier",)),
        (0x20000, ("frequency_capped_earlier",)),
        (0x40000, ("throttled_earlier",)),
        (0x80000, ("soft_temperature_limit_earlier",)),
        (0x50005, ("under_voltage", "throttled")),  # what is so now need not have been earlier
        (0x50001, ("under_voltage", "throttled_earlier")),
        (0xFFF0FFF0, ()),
    ],
)
def test_each_bit_has_its_word(word: int, words: tuple[str, ...]) -> None:
    assert throttling_words(word) == words


def test_a_board_without_the_file_tells_nothing(tmp_path: Path) -> None:
    assert Throttling(tmp_path).words() is None


def test_the_file_is_read_at_most_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 10.0
    monkeypatch.setattr(stage.throttling.time, "monotonic", lambda: now)
    file = board(tmp_path, "5\n")
    reader = Throttling(tmp_path)
    assert reader.words() == ("under_voltage", "throttled")
    file.write_text("0\n")
    now = 10.9
    assert reader.words() == ("under_voltage", "throttled")
    now = 11.0
    assert reader.words() == ()


@pytest.mark.parametrize("text", ["", "?", "0x", "\xff"])
def test_a_file_of_nonsense_or_one_that_goes_away_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    now = 10.0
    monkeypatch.setattr(stage.throttling.time, "monotonic", lambda: now)
    file = board(tmp_path, text)
    reader = Throttling(tmp_path)
    assert reader.words() is None
    file.unlink()
    now = 20.0
    assert reader.words() is None


def test_the_metrics_carry_it(tmp_path: Path) -> None:
    meter = DeviceMeter("pi-0", StageCounters())
    board(tmp_path, "40000\n")
    meter._throttling = Throttling(tmp_path)
    told = meter.measure(plan_id=None, stage_index=None, shard="idle", queue_depth=0, reconnects=0)
    assert told.throttled == ("throttled_earlier",)
    assert b'"throttled":["throttled_earlier"]' in told.model_dump_json().encode()
