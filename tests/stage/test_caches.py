"""The pool of caches: bounded whatever is asked, reused, the least recent one evicted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import EngineError
from stage.caches import Cache, CachePool
from stage.dedup import AttemptKey

CONTEXT = 16


class Block:
    def __init__(self, rows: int) -> None:
        self.rows, self.size_bytes = rows, 100 * rows


class Memory:
    """Counts what it gives; what nobody holds any more is gone."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.fails = False

    def allocate(self, rows: int) -> Block:
        if self.fails:
            raise EngineError("no memory")
        self.made.append(rows)
        return Block(rows)


def key(seq: int, attempt: int = 0, client: str = "c") -> AttemptKey:
    return AttemptKey(client, ("pi-0",), 1, seq, attempt)


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def pool(memory: Memory) -> CachePool:
    return CachePool(memory.allocate, max_rows=4, context_tokens=CONTEXT)


def known(pool: CachePool, *seqs: int) -> list[int]:
    return [seq for seq in seqs if any(k.seq == seq for k in pool._caches)]


def test_the_least_recently_used_one_goes_when_there_is_no_room(
    pool: CachePool, memory: Memory
) -> None:
    for seq in range(4):
        pool.open(key(seq), "c", 1)
    assert pool.get(key(0)) is not None
    pool.open(key(4), "c", 1)
    assert known(pool, 0, 1, 2, 3, 4) == [0, 2, 3, 4]
    assert pool.usage == (400, 4, 1)
    assert memory.made == [1] * 4, "its memory was used again"


def test_as_many_go_as_make_room(pool: CachePool) -> None:
    for seq in range(4):
        pool.open(key(seq), "c", 1)
    pool.open(key(4), "c", 3)
    assert known(pool, 0, 1, 2, 3, 4) == [3, 4]
    assert pool.usage == (400, 4, 3)


def test_memory_of_another_size_is_given_up_before_anybody_is_evicted(
    pool: CachePool, memory: Memory
) -> None:
    pool.open(key(0), "c", 1)
    pool.open(key(1), "c", 3)
    pool.free(key(1))
    assert pool.usage == (400, 1, 0)
    pool.open(key(2), "c", 2)
    assert known(pool, 0, 1, 2) == [0, 2]
    assert pool.usage == (300, 3, 0)
    assert memory.made == [1, 3, 2]


def test_memory_that_was_freed_is_used_again(pool: CachePool, memory: Memory) -> None:
    first = pool.open(key(0), "c", 2)
    pool.free(key(0))
    again = pool.open(key(1), "c", 2)
    assert again.block is first.block
    assert again.position == 0
    assert memory.made == [2]


def test_the_retired_one_goes_before_older_ones(pool: CachePool) -> None:
    for seq in range(4):
        pool.open(key(seq), "c", 1)
    pool.retire(key(2))
    pool.retire(key(99))
    pool.open(key(4), "c", 1)
    assert known(pool, 0, 1, 2, 3, 4) == [0, 1, 3, 4]


def test_an_attempt_that_begins_again_has_an_empty_cache(pool: CachePool) -> None:
    cache = pool.open(key(0), "c", 1)
    cache.extend(np.ones((1, 3), np.int64), 0)
    again = pool.open(key(0), "c", 1)
    assert again.position == 0
    assert pool.usage == (100, 1, 0)


def test_what_is_done_with_is_freed_by_what_is_true_of_it(pool: CachePool) -> None:
    for seq in range(4):
        pool.open(key(seq), "ab"[seq % 2], 1)
    pool.free_where(lambda cache: cache.feeder == "a")
    assert known(pool, 0, 1, 2, 3) == [1, 3]
    assert pool.any_where(lambda cache: cache.key.seq == 3)
    assert not pool.any_where(lambda cache: cache.key.seq == 2)
    assert pool.usage.evictions == 0


def test_without_memory_nothing_is_counted_that_is_not_there(
    pool: CachePool, memory: Memory
) -> None:
    pool.open(key(0), "c", 1)
    memory.fails = True
    with pytest.raises(EngineError):
        pool.open(key(1), "c", 2)
    assert pool.usage == (100, 1, 0)
    memory.fails = False
    pool.open(key(1), "c", 3)
    assert pool.usage == (400, 4, 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "free", "get", "retire"]),
            st.integers(0, 6),
            st.integers(1, 4),
        )
    )
)
def test_whatever_is_asked_the_bound_holds(steps: list[tuple[str, int, int]]) -> None:
    pool = CachePool(Memory().allocate, max_rows=4, context_tokens=CONTEXT)
    for what, seq, rows in steps:
        if what == "open":
            cache = pool.open(key(seq), "c", rows)
            assert cache.block.rows == rows
            assert pool.get(key(seq)) is cache
        else:
            getattr(pool, what)(key(seq))
        held = [*pool._free, *(cache.block for cache in pool._caches.values())]
        assert sum(block.rows for block in held) <= 4
        assert len({id(block) for block in held}) == len(held), "no block has two owners"
        assert pool.usage.size_bytes == sum(block.size_bytes for block in held)
        assert pool.usage.sequences == sum(c.block.rows for c in pool._caches.values())


def test_a_cache_knows_what_it_holds() -> None:
    cache = Cache(key(0), "c", Block(2), CONTEXT)
    tokens = np.arange(12).reshape(2, 6)
    cache.extend(tokens, 0)
    assert cache.position == 6
    assert cache.holds(tokens, 0)
    assert cache.holds(tokens[:, 2:4], 2)
    assert not cache.holds(tokens[:, 2:4], 3), "other tokens"
    assert not cache.holds(tokens[:, 4:] * 0, 4)
    assert not cache.holds(np.zeros((2, 2), np.int64), 5), "it ends before"
    cache.extend(tokens[:, 2:4], 2)
    assert cache.position == 6, "computed again: nothing is lost behind it"
