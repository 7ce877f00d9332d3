"""Which batch killed a stage is known at its next start, and is refused before it kills again."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.errors import EngineError
from contract.nack import POISONOUS, NackReason
from stage.crash_marker import SUSPECTS, Batch, CrashMarker
from stage.runner import MAX_DEATHS
from tests.stage.harness import Bench, make_bench

KILLER, OTHER = Batch(1, 0xDEAD, 7), Batch(3, 0xBEEF, 8)


def die_computing(path: Path, batch: Batch, times: int = 1) -> None:
    for _ in range(times):
        CrashMarker(path).begin(batch)  # and is never heard of again


def test_a_batch_in_work_at_a_death_is_counted_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "pi-1.computing"
    die_computing(path, KILLER, times=2)
    marker = CrashMarker(path)
    assert marker.deaths(KILLER) == 2
    assert marker.deaths(OTHER) == 0
    assert CrashMarker(path).deaths(KILLER) == 2  # a start without a death counts nothing


def test_a_batch_that_was_survived_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "computing"
    die_computing(path, KILLER)
    marker = CrashMarker(path)
    marker.begin(KILLER)
    marker.end(KILLER)
    assert marker.deaths(KILLER) == 0
    assert CrashMarker(path).deaths(KILLER) == 0


def test_others_between_two_deaths_do_not_hide_the_killer(tmp_path: Path) -> None:
    """After a restart another batch may come first: the client has sent the killer elsewhere."""
    path = tmp_path / "computing"
    die_computing(path, KILLER)
    marker = CrashMarker(path)
    for seq in range(1000):
        marker.begin(Batch(1, 0xDEAD, 1000 + seq))
        marker.end(Batch(1, 0xDEAD, 1000 + seq))
    die_computing(path, KILLER)
    assert CrashMarker(path).deaths(KILLER) == 2


def test_only_the_latest_suspects_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "computing"
    batches = [Batch(1, 5, seq) for seq in range(SUSPECTS + 4)]
    for batch in batches:
        die_computing(path, batch)
    marker = CrashMarker(path)
    assert [marker.deaths(batch) for batch in batches] == [0] * 4 + [1] * SUSPECTS
    assert path.stat().st_size == 32 + 40 * SUSPECTS


@pytest.mark.parametrize(("deaths", "position", "left"), [(1, 6, 1), (1, 7, 0), (2, 6, 2)])
def test_a_sequence_is_cleared_only_where_it_has_killed(
    tmp_path: Path, deaths: int, position: int, left: int
) -> None:
    """Of a language model a batch comes in many messages, from its beginning after each death."""
    path = tmp_path / "computing"
    for _ in range(deaths):
        marker = CrashMarker(path)
        marker.begin(KILLER, 7)
        marker.close()
    marker = CrashMarker(path)
    marker.begin(KILLER, position)
    marker.end(KILLER, position)
    assert marker.deaths(KILLER) == left
    marker.close()
    assert CrashMarker(path).deaths(KILLER) == left


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"short", b"\0" * 24, b"x" * (24 + 32 * SUSPECTS), b"x" * 100_000]
)
def test_a_file_of_any_content_is_taken_over(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "computing"
    path.write_bytes(content)
    die_computing(path, KILLER)
    assert CrashMarker(path).deaths(KILLER) == 1


def test_a_folder_that_cannot_be_made_is_told_once_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    marker = CrashMarker(tmp_path / "file" / "computing")
    for _ in range(3):
        marker.begin(KILLER)
        assert marker.deaths(KILLER) == 0
        marker.end(KILLER)
    assert len(caplog.records) == 1
    assert "--cache" in caplog.text


def test_a_disk_that_fails_later_is_told_once_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker = CrashMarker(tmp_path / "computing")
    assert marker._file is not None
    os.close(marker._file)
    read_only = os.open(tmp_path / "computing", os.O_RDONLY)
    assert read_only == marker._file  # the lowest free number
    for _ in range(3):
        marker.begin(KILLER)
        marker.end(KILLER)
    assert len(caplog.records) == 1


def test_a_process_that_is_killed_leaves_its_batch_behind(tmp_path: Path) -> None:
    path = tmp_path / "computing"
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from stage.crash_marker import Batch, CrashMarker\n"
        f"CrashMarker(Path(sys.argv[1])).begin(Batch{tuple(KILLER)!r})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, str(path)], timeout=60, check=False)
        assert done.returncode == -9
    assert CrashMarker(path).deaths(KILLER) == 2


def test_the_cost_of_a_batch_is_two_small_writes(tmp_path: Path) -> None:
    """Beside an engine's milliseconds. Measured against itself, not against a clock of ours."""
    marker, path = CrashMarker(tmp_path / "computing"), tmp_path / "other"
    file = os.open(path, os.O_RDWR | os.O_CREAT)

    def mark() -> None:
        marker.begin(KILLER)
        marker.end(KILLER)

    def write() -> None:
        os.pwrite(file, b"x" * 32, 0)
        os.pwrite(file, b"x" * 32, 0)

    def take_s(work: Callable[[], None]) -> float:
        started = time.perf_counter()
        for _ in range(1000):
            work()
        return time.perf_counter() - started

    rounds = [(take_s(mark), take_s(write)) for _ in range(5)]  # others may disturb some of them
    os.close(file)
    marked_s, written_s = map(min, zip(*rounds, strict=True))
    assert marked_s < 10 * written_s + 0.02


# In the runner


def bench_after(folder: Path, deaths: int) -> Bench:
    """A stage whose process has died so often computing batch 7."""
    bench = make_bench(folder)
    batch = Batch.of(bench.header(7))
    die_computing(folder / "computing", batch, times=deaths)
    bench.runner._marker = CrashMarker(folder / "computing")
    return bench


def test_a_batch_that_killed_the_stage_once_is_tried_again(tmp_path: Path) -> None:
    bench = bench_after(tmp_path, deaths=1)
    bench.answers_a_good_batch(7)
    assert CrashMarker(tmp_path / "computing").deaths(Batch.of(bench.header(7))) == 0


@pytest.mark.parametrize("attempt", [0, 1, 5])
def test_a_batch_that_killed_the_stage_twice_is_refused_whatever_the_attempt(
    tmp_path: Path, attempt: int
) -> None:
    assert MAX_DEATHS == 2
    bench = bench_after(tmp_path, deaths=2)
    bench.process(bench.message(7, attempt=attempt), label="killer")
    [nack] = bench.nacks
    assert nack.reason is NackReason.POISON
    assert nack.reason in POISONOUS
    assert (nack.batch_id.seq, nack.attempt) == (7, attempt)
    assert "died 2 times" in nack.detail
    assert bench.acked == ["killer"]
    assert bench.engine.runs == 0
    bench.answers_a_good_batch(8)


def test_the_same_number_of_another_client_is_another_batch(tmp_path: Path) -> None:
    bench = bench_after(tmp_path, deaths=2)
    bench.process(bench.message(7, client="client-2"))
    assert bench.nacks == []
    assert bench.engine.runs == 1


def test_the_batch_is_marked_while_the_engine_runs_and_at_no_other_time(tmp_path: Path) -> None:
    bench = bench_after(tmp_path, deaths=0)
    path = tmp_path / "computing"
    seen: list[bytes] = []
    run = bench.engine.run

    def watched(inputs: dict[str, object]) -> object:
        seen.append(path.read_bytes()[:32])
        return run(inputs)

    bench.engine.run = watched  # type: ignore[method-assign, assignment]
    bench.process(bench.message(7))
    bench.engine.fails = EngineError("as the test wants it")
    bench.process(bench.message(8))
    assert len(set(seen)) == 2
    assert bytes(32) not in seen
    assert path.read_bytes()[:32] == bytes(32)


def test_an_engine_that_raises_anything_has_not_died(tmp_path: Path) -> None:
    bench = bench_after(tmp_path, deaths=0)
    bench.engine.fails = ZeroDivisionError("a bug")  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        bench.process(bench.message(7))
    assert CrashMarker(tmp_path / "computing").deaths(Batch.of(bench.header(7))) == 0
