"""Tokens by position: the first attempt to bring one counts, in order, and none of another text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.generation.transcript import Column, Transcript
from contract.decoder import Finish, Sampling

GO, END, FULL = Finish.NOT_YET, Finish.END_TOKEN, Finish.MAX_POSITION


def transcript(rows: int = 1) -> Transcript:
    made = Transcript(np.array([[1, 2, 3]] * rows), (Sampling(max_position=50),) * rows)
    made.begin(0)
    return made


def test_tokens_come_in_order() -> None:
    text = transcript()
    assert text.take(0, 3, (7,), (GO,)).columns == (Column(3, (7,), (GO,)),)
    assert text.take(0, 4, (8,), (GO,)).columns == (Column(4, (8,), (GO,)),)
    assert text.ids().tolist() == [[1, 2, 3, 7, 8]]
    assert text.length == 5


def test_what_has_overtaken_waits_for_what_is_before_it() -> None:
    text = transcript()
    ahead = text.take(0, 5, (9,), (GO,))
    assert ahead.is_ahead
    assert not ahead.columns
    assert text.take(0, 5, (9,), (GO,)).is_duplicate
    assert text.take(0, 4, (8,), (GO,)).is_ahead
    taken = text.take(0, 3, (7,), (GO,))
    assert [column.position for column in taken.columns] == [3, 4, 5]


def test_the_same_again_is_a_duplicate_and_no_near_tie() -> None:
    text = transcript()
    text.take(0, 3, (7,), (GO,))
    text.begin(1)
    text.take(0, 4, (8,), (GO,))
    again = text.take(0, 3, (7,), (GO,))
    assert (again.is_duplicate, again.columns) == (True, ())
    repeated = text.take(1, 4, (8,), (GO,))
    assert (repeated.is_duplicate, repeated.near_ties) == (True, 0)
    assert text.take(1, 5, (9,), (GO,)).columns
    assert text.near_ties == 0


def test_the_later_attempt_may_be_the_first_to_bring_a_token() -> None:
    text = transcript()
    text.take(0, 3, (7,), (GO,))
    text.begin(1)
    assert text.take(1, 4, (8,), (GO,)).columns
    assert text.take(0, 4, (8,), (GO,)).is_duplicate
    assert text.take(0, 5, (9,), (GO,)).columns


def test_an_attempt_that_has_chosen_otherwise_is_heard_no_more() -> None:
    text = transcript(rows=2)
    text.begin(1)
    text.take(0, 3, (7, 70), (GO, GO))
    assert text.take(1, 3, (6, 70), (GO, GO)).near_ties == 1
    assert text.is_diverged(1)
    assert not text.take(1, 4, (5, 50), (GO, GO)).columns
    assert text.take(1, 3, (6, 70), (GO, GO)).near_ties == 0
    assert text.near_ties == 1
    assert text.take(0, 4, (8, 80), (GO, GO)).columns


def test_no_token_counts_whose_own_past_is_unknown() -> None:
    """Attempt 0's token at 4 is lost, and another attempt has brought that position: what attempt 0
    brings at 5 may belong to another text."""
    text = transcript()
    text.take(0, 3, (7,), (GO,))
    text.begin(1)
    text.take(0, 5, (99,), (GO,))
    text.take(1, 4, (8,), (GO,))
    assert text.length == 5
    assert text.take(1, 5, (9,), (GO,)).columns == (Column(5, (9,), (GO,)),)


def test_a_row_that_has_ended_brings_no_more_tokens() -> None:
    text = transcript(rows=2)
    assert text.take(0, 3, (7, 0), (GO, END)).columns == (Column(3, (7, 0), (GO, END)),)
    assert text.take(0, 4, (8, 0), (FULL, END)).columns == (Column(4, (8, None), (FULL, GO)),)
    assert text.is_over


def test_rows_that_have_ended_are_not_compared() -> None:
    text = transcript(rows=2)
    text.begin(1)
    text.take(0, 3, (7, 0), (GO, END))
    text.take(0, 4, (8, 0), (GO, END))
    text.take(1, 3, (7, 0), (GO, END))
    assert text.take(1, 4, (8, 5), (GO, GO)).near_ties == 0


def test_a_stopped_row_ends_without_the_last_stage_s_knowledge() -> None:
    text = transcript(rows=2)
    text.take(0, 3, (7, 70), (GO, GO))
    text.stop((1,))
    assert text.take(0, 4, (8, 80), (GO, GO)).columns[0].token_ids == (8, None)
    assert not text.is_over
    text.stop()
    assert text.is_over


def test_another_attempt_goes_on_with_no_row_that_has_ended() -> None:
    text = transcript(rows=2)
    text.take(0, 3, (7, 0), (GO, END))
    assert [row.max_position for row in text.sampling()] == [50, 4]


@given(st.data())
def test_whatever_order_two_attempts_come_in_the_text_is_whole(data: st.DataObject) -> None:
    """Attempt 0 stops anywhere, attempt 1 begins where it was sent; messages are shuffled and
    repeated."""
    right = list(range(100, 120))
    text = Transcript(np.array([[1, 2, 3]]), (Sampling(max_position=23),))
    text.begin(0)
    stops = data.draw(st.integers(0, 20))
    first = data.draw(st.permutations([(0, 3 + i) for i in range(stops)]))
    cut = data.draw(st.integers(0, stops))
    got: list[int] = []

    def hear(attempt: int, position: int) -> None:
        finish = FULL if position == 22 else GO
        taken = text.take(attempt, position, (right[position - 3],), (finish,))
        assert not taken.near_ties
        got.extend(column.token_ids[0] for column in taken.columns)  # type: ignore[misc]

    for attempt, position in first[:cut]:
        hear(attempt, position)
    text.begin(1)
    rest = [(1, p) for p in range(text.length, 23)]
    left = data.draw(st.permutations([*first[cut:], *rest, *rest[:3]]))
    for attempt, position in left:
        hear(attempt, position)
    assert got == right
    assert text.is_over


@pytest.mark.parametrize("rows", [1, 3])
def test_the_prompt_is_what_a_first_attempt_sends(rows: int) -> None:
    text = transcript(rows)
    assert text.ids().shape == (rows, 3)
    assert text.ids().dtype == np.int64
