"""A bounded number of hostile inputs for each target; `make fuzz` is the long run."""

from collections.abc import Iterator
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.activation import decode
from contract.errors import ShardlineError
from contract.plan import parse_plan
from shards.external_data import check_external_data
from tests.fuzz import targets
from tests.fuzz.corpus import CORPUS, built
from tests.fuzz.mutators import MUTATORS, NASTY, bytes_of, json_of
from tests.fuzz.targets import TARGETS, HarmError, run_measured

EXAMPLES = 300


@pytest.fixture(scope="module", autouse=True)
def clean() -> Iterator[None]:
    yield
    targets.clean_up()


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_passes(name: str) -> None:
    """The control of this file: what is good is not refused by a target's own mistake."""
    for data in CORPUS[name]():
        run_measured(TARGETS[name], data)
    assert decode(CORPUS["activation"]()[-1]).header.codec == "int8"
    assert parse_plan(CORPUS["plan"]()[0], "corpus") == built().plan


@pytest.mark.parametrize("name", TARGETS)
@given(seed=st.integers(0, 2**64 - 1))
@settings(max_examples=EXAMPLES, deadline=None)
def test_inputs_that_fit_at_first_sight_do_no_harm(name: str, seed: int) -> None:
    dice = Random(seed)
    data = dice.choice(CORPUS[name]())
    for _ in range(dice.choice((1, 1, 2, 3))):
        data = MUTATORS[name](data, dice)
    run_measured(TARGETS[name], data)


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.binary(max_size=500))
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_bytes_do_no_harm(name: str, data: bytes) -> None:
    run_measured(TARGETS[name], data)


@pytest.mark.parametrize("name", TARGETS)
def test_mutators_get_past_the_first_check(name: str) -> None:
    """Else all of this would try the first line of each parser."""
    dice, passed = Random(1), 0
    accepted = {
        "activation": lambda data: decode(data),
        "plan": lambda data: parse_plan(data, "mutated"),
    }
    if name not in accepted:
        pytest.skip("these have no checksum to get past")
    for _ in range(400):
        data = MUTATORS[name](dice.choice(CORPUS[name]()), dice)
        with suppress(ShardlineError):
            accepted[name](data)
            passed += 1
    assert passed > 10


def test_the_same_seed_gives_the_same_input() -> None:
    for name, mutate in MUTATORS.items():
        first, second = (mutate(CORPUS[name]()[0], Random(7)) for _ in range(2))
        assert first == second
    assert bytes_of(b"abc", Random(3)) == bytes_of(b"abc", Random(3))


def test_a_mutator_leaves_the_values_that_it_puts_in_as_they_are() -> None:
    """Else one example changes the next, until a document holds itself."""
    before = repr(NASTY)
    for seed in range(2000):
        json_of({"a": [1, {"b": "c"}], "d": {"e": []}}, Random(seed))
    assert repr(NASTY) == before


def test_a_target_that_takes_too_much_memory_is_noticed() -> None:
    with pytest.raises(HarmError, match="bytes of memory"):
        run_measured(lambda _data: bytearray(targets.BASE_BYTES + 2**20) and None, b"x")


def test_a_graph_that_names_another_file_is_noticed_by_the_target_s_oracle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With our own check out of the way, ONNX's reader tells."""
    graph = built().files["graph.onnx"]
    evil = b"\2" + graph.replace(b"weights.safetensors", b"../../../etc/passwd")
    targets.shard(evil)
    assert check_external_data is targets.check_external_data
    monkeypatch.setattr(targets, "check_external_data", lambda _path, _size: None)
    with pytest.raises(HarmError, match="etc/passwd"):
        targets.shard(evil)
