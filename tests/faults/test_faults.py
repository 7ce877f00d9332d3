"""One seed of every row of the fault table; `make faults` runs them all, with their controls."""

import pytest

from tests.faults.row import Figures, Row
from tests.faults.rows import ROWS
from tests.faults.run_row import run_row
from tests.faults.summary import Summary

SEED = 0


@pytest.mark.parametrize(
    "row",
    [
        # Who makes namespaces removes those of dead makers, whichever test it is that waits there.
        pytest.param(row, marks=pytest.mark.xdist_group("namespaces")) if number == 8 else row
        for number, row in ROWS.items()
    ],
    ids=[f"row-{number}" for number in ROWS],
)
def test_a_fault_loses_nothing(row: Row) -> None:
    lacks = row.lacks()
    if lacks:
        pytest.skip(lacks)
    summary = Summary(row, had_control=False)
    summary.trials = list(run_row(row, [SEED], is_control=False))
    assert not summary.failures


def test_the_table_has_all_rows() -> None:
    assert sorted(ROWS) == list(range(1, 33))


def test_a_row_fails_by_each_of_its_promises() -> None:
    row = ROWS[1]
    good = Figures(injected=1, batches=3, results=3)
    bad = [Figures(missing=1), Figures(wrong=1), Figures(duplicates=1), Figures(error="none")]
    bad.append(Figures(problems=["a rule"]))
    assert Summary(row, [good], [bad[0]]).passes
    assert not any(Summary(row, [good, figures], [bad[0]]).passes for figures in bad)


def test_a_control_that_goes_well_fails_its_row() -> None:
    good = Figures(injected=1, batches=3, results=3)
    assert not Summary(ROWS[1], [good], [good]).passes
    assert not Summary(ROWS[1], [good], [Figures(error="could not be run")]).passes
    assert Summary(ROWS[1], [good], [], had_control=False).passes
