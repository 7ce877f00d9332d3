"""What the last stage makes of its logits: the next token of every sequence, and which ended."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from contract.decoder import Finish, Sampling
from stage.caches import Cache
from stage.sampling import choose, finish_of, limit_of


class Limits(NamedTuple):
    """What ends a sequence beside its own sampling."""

    end_tokens: tuple[int, ...]
    context_tokens: int


class NextTokens(NamedTuple):
    """int64 (rows, 1), and a :class:`contract.decoder.Finish` for each row, uint8 (rows,)."""

    ids: npt.NDArray[np.int64]
    finished: npt.NDArray[np.uint8]


def choose_next(
    cache: Cache,
    logits: npt.NDArray[Any],
    sampling: tuple[Sampling, ...],
    position: int,
    limits: Limits,
) -> NextTokens:
    """The tokens at ``position``, one for each row.

    Rows that ended before repeat their last token until all have.

    Args:
        cache: holds at least ``position`` tokens of each row; the ends of rows are noted in it.
        logits: float32 (rows, vocabulary).
        sampling: one for each row.
        position: of the tokens to be chosen.
        limits: of the plan.

    Raises:
        EngineError: a row's logits are not numbers.
    """
    ids = cache.tokens[:, position - 1 : position].copy()
    finished = np.zeros(len(ids), np.uint8)
    for row, how in enumerate(sampling):
        if cache.ended[row]:
            finished[row] = Finish.END_TOKEN
        elif limit_of(how, position, limits.context_tokens):
            finished[row] = Finish.MAX_POSITION
        else:
            token = choose(logits[row], cache.tokens[row, :position], how, position)
            ids[row, 0] = token
            finished[row] = finish_of(token, position, how, *limits)
            if finished[row] == Finish.END_TOKEN:
                cache.ended[row] = True
    return NextTokens(ids, finished)
