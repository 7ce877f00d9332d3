"""The caches of the sequences that a stage works on: bounded, reused, the least recent one evicted.

Knows no engine: it asks for blocks of memory and says which sequences they belong to. Used by the
compute thread alone; :attr:`CachePool.usage` may be read by any.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from contract.errors import EngineError
from stage.dedup import AttemptKey
from stage.engine import CacheBlock


class CacheUsage(NamedTuple):
    """What a pool holds now: bytes of all blocks, sequences that have one; evictions since it
    was made."""

    size_bytes: int = 0
    sequences: int = 0
    evictions: int = 0


class Cache:
    """The memory of one attempt: a block of the engine, and the tokens that it stands for.

    ``tokens`` is int64 (rows, context_tokens), of which the first ``position`` columns count.
    ``feeder``: who sends the inputs, so that only they can make us forget it. ``ended`` bool
    (rows,): for which the last stage has chosen an end token.
    """

    def __init__(
        self, key: AttemptKey, feeder: str, block: CacheBlock, context_tokens: int
    ) -> None:
        self.key, self.feeder, self.block = key, feeder, block
        self.position = 0
        self.tokens: npt.NDArray[np.int64] = np.zeros((block.rows, context_tokens), np.int64)
        self.ended: npt.NDArray[np.bool_] = np.zeros(block.rows, np.bool_)

    def holds(self, tokens: npt.NDArray[Any], position: int) -> bool:
        """Whether it has these very tokens there already: a repeated message."""
        end = position + tokens.shape[1]
        return end <= self.position and np.array_equal(self.tokens[:, position:end], tokens)

    def extend(self, tokens: npt.NDArray[Any], position: int) -> None:
        """The block now has these tokens at ``position``, where it ended or had them before."""
        end = position + tokens.shape[1]
        self.tokens[:, position:end] = tokens
        self.position = max(self.position, end)


class CachePool:
    """At most ``max_rows`` sequences' worth of blocks, made when they are needed, then reused."""

    def __init__(
        self, allocate: Callable[[int], CacheBlock], max_rows: int, context_tokens: int
    ) -> None:
        self._allocate, self._max_rows, self._context_tokens = allocate, max_rows, context_tokens
        self._caches: OrderedDict[AttemptKey, Cache] = OrderedDict()  # the least recent one first
        self._free: list[CacheBlock] = []
        self._evictions = 0
        self.usage = CacheUsage()

    def get(self, key: AttemptKey) -> Cache | None:
        """The cache of an attempt, which is the most recent one from now on."""
        cache = self._caches.get(key)
        if cache is not None:
            self._caches.move_to_end(key)
        return cache

    def open(self, key: AttemptKey, feeder: str, rows: int) -> Cache:
        """An empty cache for ``rows`` sequences; others may be evicted.

        Raises:
            EngineError: there is not so much memory, or they are more than ``max_rows``.
        """
        self.free(key)
        cache = Cache(key, feeder, self._block(rows), self._context_tokens)
        self._caches[key] = cache
        self._count()
        return cache

    def _block(self, rows: int) -> CacheBlock:
        while True:
            for index, block in enumerate(self._free):
                if block.rows == rows:
                    return self._free.pop(index)
            held = [*self._free, *(cache.block for cache in self._caches.values())]
            if sum(block.rows for block in held) + rows <= self._max_rows:
                return self._allocate(rows)
            if self._free:
                self._free.pop(0)  # of another size
                continue
            if not self._caches:
                raise EngineError(
                    f"a cache for {rows} sequences, where there is room for {self._max_rows}"
                )
            self._evictions += 1
            self.free(next(iter(self._caches)))

    def free(self, key: AttemptKey) -> None:
        """Forget one attempt, if it is known; its block may be used again."""
        cache = self._caches.pop(key, None)
        if cache is not None:
            self._free.append(cache.block)
            self._count()

    def free_where(self, is_done_with: Callable[[Cache], bool]) -> None:
        """Forget all of which this is true."""
        for key in [key for key, cache in self._caches.items() if is_done_with(cache)]:
            self.free(key)

    def any_where(self, is_meant: Callable[[Cache], bool]) -> bool:
        """Whether this is true of any."""
        return any(map(is_meant, self._caches.values()))

    def retire(self, key: AttemptKey) -> None:
        """Its sequences have ended: it is the first to be evicted."""
        if key in self._caches:
            self._caches.move_to_end(key, last=False)

    def _count(self) -> None:
        used = [cache.block for cache in self._caches.values()]
        self.usage = CacheUsage(
            sum(block.size_bytes for block in (*used, *self._free)),
            sum(block.rows for block in used),
            self._evictions,
        )
