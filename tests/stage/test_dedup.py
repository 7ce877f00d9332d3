"""What clients make up, be it watermarks, epochs or names, harms nobody but themselves."""

from dataclasses import replace
from pathlib import Path

import pytest

from contract.activation import BatchId, Header
from stage.dedup import EPOCHS_REMEMBERED, SENDERS_REMEMBERED, AttemptKey, Output, SeenBatches
from tests.stage.harness import Bench, make_bench

HIGHEST = 2**63 - 1


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


@pytest.fixture
def seen() -> SeenBatches:
    return SeenBatches(outputs_kept=3)


def test_a_forged_watermark_of_another_client_makes_nothing_stale(
    seen: SeenBatches, bench: Bench
) -> None:
    """The enemy knows the epoch: it works as a device on the route as well."""
    honest = bench.header(5, low=5)
    assert not seen.is_stale(honest)
    forged = bench.header(batch_id=BatchId(honest.batch_id.epoch, HIGHEST), low=HIGHEST)
    assert not seen.is_stale(_of(forged, "enemy"))
    assert not seen.is_stale(bench.header(6, low=5))


def test_a_watermark_above_its_own_batch_is_none(seen: SeenBatches, bench: Bench) -> None:
    assert seen.is_stale(bench.header(5, low=HIGHEST))
    assert not seen.is_stale(bench.header(5, low=5))


def test_a_client_s_own_watermark_ends_only_its_own_epoch(seen: SeenBatches, bench: Bench) -> None:
    one, other = BatchId(1, HIGHEST), BatchId(2, 0)
    assert not seen.is_stale(bench.header(batch_id=one, low=HIGHEST))
    assert seen.is_stale(bench.header(batch_id=BatchId(1, 5), low=5))
    assert not seen.is_stale(bench.header(batch_id=other, low=0))


def test_a_flood_of_epochs_evicts_only_the_flooder_s(seen: SeenBatches, bench: Bench) -> None:
    assert not seen.is_stale(bench.header(5, low=5))
    for epoch in range(10 * EPOCHS_REMEMBERED):
        seen.is_stale(_of(bench.header(batch_id=BatchId(epoch, 0)), "enemy"))
    assert seen.is_stale(bench.header(4, low=0))
    assert len(seen._low["enemy"]) == EPOCHS_REMEMBERED


def test_senders_are_bounded_too_and_the_one_that_sends_stays(
    seen: SeenBatches, bench: Bench
) -> None:
    for index in range(10 * SENDERS_REMEMBERED):
        seen.is_stale(_of(bench.header(batch_id=BatchId(1, 0)), f"client-{index}"))
        seen.is_stale(bench.header(5, low=5))
    assert len(seen._low) == SENDERS_REMEMBERED
    assert seen.is_stale(bench.header(4, low=0))


def test_another_client_s_batch_of_the_same_number_is_computed_for_itself(bench: Bench) -> None:
    """Else the first one would swallow the second, or answer it with its own output."""
    bench.connection.automatic = False
    bench.process(bench.message(), label="enemy's")
    bench.process(bench.message(client="client-2"), label="mine")
    assert bench.engine.runs == 2
    assert len(bench.outputs) == 2


def test_outputs_and_work_are_kept_by_client() -> None:
    seen = SeenBatches(outputs_kept=3)
    mine, other = AttemptKey("a", ("pi-1",), 1, 2, 0), AttemptKey("b", ("pi-1",), 1, 2, 0)
    seen.begin(mine, None, Output("t", b"x"))  # type: ignore[arg-type]
    assert seen.outputs_of(other) is None
    assert not seen.join(other, None)  # type: ignore[arg-type]


def _of(header: Header, name: str) -> Header:
    """The same, from a client of this name by a device of this name."""
    return replace(header, client=name, route=(name, *header.route[1:]))
