"""Requests, how they are grouped, and what a plan has no room for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.generation.chunks import count_chunks, prompt_chunks, release_step
from client.generation.request import (
    batch_of,
    choose_group,
    make_request,
)
from client.generation.stop_strings import StopStrings
from contract.decoder import IDS, SAMPLING, Sampling, Step, decode_sampling
from contract.errors import PromptError, PromptTooLongError
from contract.tensor_spec import check_tensors
from tests.generation.fake_decoder import make_text_plan

PLAN = make_text_plan([["pi-0"], ["pi-1"]], "texts", context_tokens=20)


def test_a_request_knows_where_it_ends() -> None:
    assert make_request([1, 2, 3], Sampling(), 5, PLAN).sampling.max_position == 8
    assert make_request([1, 2, 3], Sampling(), None, PLAN).sampling.max_position == 20
    assert make_request([1] * 19, Sampling(), 1, PLAN).sampling.max_position == 20


def test_a_prompt_without_room_is_refused_with_both_numbers() -> None:
    with pytest.raises(PromptTooLongError, match=r"20 tokens.*21.*room for 20"):
        make_request([1] * 20, Sampling(), None, PLAN)
    with pytest.raises(PromptTooLongError, match=r"10 tokens and 11 more.*21.*20"):
        make_request([1] * 10, Sampling(), 11, PLAN)
    with pytest.raises(PromptError, match="empty"):
        make_request([], Sampling(), 1, PLAN)
    with pytest.raises(PromptError, match="token 257"):
        make_request([1, 257], Sampling(), 1, PLAN)


def test_a_prompt_of_more_messages_than_a_queue_holds_is_refused() -> None:
    plan = make_text_plan([["pi-0"], ["pi-1"]], "texts", context_tokens=2048, chunk_tokens=1)
    assert make_request([1] * 900, Sampling(), None, plan).sampling.max_position == 1000
    with pytest.raises(PromptTooLongError, match=r"1,300.*1,000; .*larger --chunk"):
        make_request([1] * 1200, Sampling(), 100, plan)
    wide = make_text_plan([["pi-0"], ["pi-1"]], "texts", context_tokens=2048, chunk_tokens=4)
    assert make_request([1] * 1200, Sampling(), None, wide).sampling.max_position == 2048


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_k": 10**17},
        {"top_k": 10**400},
        {"top_k": -1},
        {"temperature": float("nan")},
        {"repetition_penalty": 1e7},
        {"top_p": 0.0},
        {"seed": -1},
    ],
)
def test_sampling_that_no_message_can_say_is_refused(wrong: dict[str, float]) -> None:
    """The stages would refuse it, and the pipeline could not even send it."""
    with pytest.raises(PromptError, match="cannot be chosen so"):
        make_request([1], Sampling(**wrong), 1, PLAN)  # type: ignore[arg-type]


def test_a_group_has_prompts_of_one_length_and_leaves_work_for_every_stage() -> None:
    assert choose_group([5, 7, 5, 5, 5], 8, 4, 1) == [0, 2, 3, 4]
    assert choose_group([5, 7, 5, 5, 5], 8, 4, 2) == [0, 2]
    assert choose_group([5, 7, 5, 5, 5], 8, 2, 1) == [0, 2]
    assert choose_group([5, 7, 5, 5, 5], 1, 4, 1) == [0]
    assert choose_group([5, 5], 0, 4, 1) == []
    assert choose_group([], 4, 4, 1) == []


@given(st.lists(st.integers(1, 3), max_size=12), st.integers(1, 9), st.integers(1, 5))
def test_all_that_wait_are_begun_in_the_end(lengths: list[int], rows: int, stages: int) -> None:
    left, begun = list(lengths), []
    while left:
        group = choose_group(left, rows, 4, stages)
        assert 1 <= len(group) <= min(rows, 4)
        assert group[0] == 0, "the oldest goes first"
        begun += [left[index] for index in group]
        assert len({left[index] for index in group}) == 1
        left = [length for index, length in enumerate(left) if index not in group]
    assert sorted(begun) == sorted(lengths)


def test_a_batch_is_what_edge_0_carries() -> None:
    requests = [make_request([i, 2, 3], Sampling(seed=i), 4, PLAN) for i in range(3)]
    batch = batch_of(requests, ("a", "b", "c"))
    assert check_tensors("test", PLAN.edge_specs(0), batch.tensors) == batch.images == 3
    assert decode_sampling(batch.tensors[SAMPLING]) == tuple(r.sampling for r in requests)


@given(st.integers(1, 40), st.integers(1, 12))
def test_chunks_are_the_prompt(length: int, chunk: int) -> None:
    ids = np.arange(2 * length).reshape(2, length)
    pieces = list(prompt_chunks(ids, (Sampling(), Sampling()), chunk))
    assert len(pieces) == count_chunks(length, chunk)
    assert np.array_equal(np.concatenate([t[IDS] for _, t in pieces], axis=1), ids)
    assert all(t[IDS].shape[1] <= chunk for _, t in pieces)
    assert [step.wants for step, _ in pieces] == [False] * (len(pieces) - 1) + [True]
    begun = 0
    for step, tensors in pieces:
        assert (step.position, step.returned, step.release) == (begun, False, False)
        begun += tensors[IDS].shape[1]
        check_tensors("test", PLAN.edge_specs(0), tensors)


def test_a_release_has_the_form_of_every_input() -> None:
    step, tensors = release_step(9, (Sampling(), Sampling()))
    assert step == Step(9, release=True)
    assert check_tensors("test", PLAN.edge_specs(0), tensors) == 2


# Stop strings


def cut(pieces: list[str], *stops: str) -> tuple[str, bool]:
    filtered = StopStrings(stops)
    text = "".join(filtered.add(piece) for piece in pieces)
    hit = filtered.is_hit
    return text + filtered.finish(), hit


def test_a_stop_string_may_lie_across_tokens() -> None:
    assert cut(["one\n", "\nUs", "er", ": two"], "\n\nUser:") == ("one", True)
    assert cut(["aab", "aac"], "aac") == ("aab", True)
    assert cut(["ab"], "abc") == ("ab", False)
    assert cut(["a", "b", "c"], "zz", "b") == ("a", True)
    assert cut(["abc"]) == ("abc", False)


def test_nothing_is_shown_that_may_yet_belong_to_a_stop_string() -> None:
    filtered = StopStrings(["stop"])
    assert filtered.add("a st") == "a "
    assert filtered.add("ar") == "star"
    assert filtered.add("sto") == ""
    assert filtered.add("p and more") == ""
    assert filtered.is_hit
    assert filtered.add("more") == ""


@given(
    st.lists(st.text("ab", max_size=3), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_the_borders_of_tokens_change_nothing(pieces: list[str], stops: list[str]) -> None:
    whole = "".join(pieces)
    ends = [at for stop in stops if (at := whole.find(stop)) >= 0]
    text, hit = cut(pieces, *stops)
    assert hit == bool(ends)
    if ends:
        # A stop string that ends earlier cuts before one that begins earlier and ends later.
        assert whole.startswith(text)
        assert any(whole[len(text) :].startswith(stop) for stop in stops)
        assert not any(stop in text for stop in stops)
    else:
        assert text == whole
