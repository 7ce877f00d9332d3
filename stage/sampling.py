"""Chooses the next token of each sequence from the logits. Pure numpy.

A choice depends on the logits, the sampling, the tokens that the sequence holds, and the position:
on no state, so that another attempt, on another device, chooses alike. The order is that of the
Transformers library: repetition penalty, temperature, top-k, top-p, then one draw.

Sources: repetition penalty, CTRL (arXiv:1909.05858, section 4.1); top-p or nucleus sampling
(arXiv:1904.09751, section 3.1); Philox, Salmon et al., «Parallel random numbers: as easy as 1, 2,
3» (SC11).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from contract.decoder import Finish, Sampling
from contract.errors import EngineError

_FIRST_GUESS = 256
"""Tokens that usually hold the nucleus: to find so many takes a tenth of sorting a vocabulary."""

_LARGEST, _SMALLEST = np.finfo(np.float32).max, float(np.finfo(np.float32).tiny)


def choose(
    logits: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    sampling: Sampling,
    position: int,
) -> int:
    """The token that a sequence has at ``position``.

    Args:
        logits: (vocabulary,), not changed.
        tokens: (position,), what the sequence holds so far.
        sampling: of this sequence.
        position: of the token to be chosen, from 0.

    Raises:
        EngineError: a logit is not a number, or the largest one is infinite.
    """
    best = int(logits.argmax())  # of the first one that is not a number, if any is none
    if not math.isfinite(logits[best]):
        raise EngineError(
            f"logits at position {position}: the largest is {logits[best]}, expected a finite "
            "number; the shard's weights are damaged, or the model overflows in float32"
        )
    if sampling.temperature == 0.0 and sampling.repetition_penalty == 1.0:
        return best
    if sampling.repetition_penalty != 1.0:
        logits = _penalised(logits, tokens, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    return _draw(logits, sampling, position)


def _penalised(
    logits: npt.NDArray[Any], tokens: npt.NDArray[Any], penalty: float
) -> npt.NDArray[Any]:
    penalised, held = logits.copy(), logits[tokens]
    by = np.float32(max(penalty, _SMALLEST))
    with np.errstate(over="ignore"):  # penalties that nobody means: the largest there is, then
        worse = np.where(held < 0, held * by, held / by)
    penalised[tokens] = np.clip(worse, -_LARGEST, _LARGEST)
    return penalised


def _draw(logits: npt.NDArray[Any], sampling: Sampling, position: int) -> int:
    """By the inverse of the distribution, in the order of token ids: near-ties swap nothing."""
    ids, weights = _candidates(logits, sampling)
    sums = weights.astype(np.float64).cumsum()  # half the time of cumsum(dtype=float64)
    at = sums.searchsorted(uniform(sampling.seed, position) * sums[-1], side="right")
    return int(ids[min(int(at), len(ids) - 1)])


def _candidates(
    logits: npt.NDArray[Any], sampling: Sampling
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Ids of the tokens that may be drawn, rising, and weights proportional to probabilities.

    Equals of the last of ``top_k`` stay, too.
    """
    ids, left = np.arange(len(logits)), logits
    if 0 < sampling.top_k < len(logits):
        ids = np.flatnonzero(logits >= np.partition(logits, -sampling.top_k)[-sampling.top_k])
        left = logits[ids]
    with np.errstate(over="ignore", under="ignore"):  # temperatures next to 0: the best one alone
        by = np.float32(max(sampling.temperature, _SMALLEST))
        weights = np.exp((left - logits.max()) / by)
    if sampling.top_p < 1.0:
        nucleus = _nucleus(weights, sampling.top_p)
        ids, weights = ids[nucleus], weights[nucleus]
    return ids, weights


def _nucleus(weights: npt.NDArray[Any], share: float) -> npt.NDArray[np.intp]:
    """Indices, rising, of the fewest weights that have ``share`` of the sum; one at least."""
    needed, count = share * weights.sum(dtype=np.float64), min(_FIRST_GUESS, len(weights))
    while True:
        best = np.argpartition(weights, len(weights) - count)[-count:]
        best = best[np.lexsort((best, -weights[best]))]  # of equals the lower index first
        sums = weights[best].cumsum(dtype=np.float64)
        if sums[-1] >= needed or count == len(weights):
            return np.sort(best[: int(sums.searchsorted(needed)) + 1])
        count = min(8 * count, len(weights))


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on both alone, the same on every machine and version.

    The raw output of Philox4x64-10 with the key (seed, position); the top 53 bits of 64.
    """
    key = np.array([seed, position], np.uint64)
    return (int(np.random.Philox(key=key).random_raw()) >> 11) * 2.0**-53


def finish_of(
    token: int, position: int, sampling: Sampling, end_tokens: tuple[int, ...], context_tokens: int
) -> Finish:
    """Whether a sequence ends with ``token`` at ``position``."""
    if token in end_tokens:
        return Finish.END_TOKEN
    return limit_of(sampling, position + 1, context_tokens)


def limit_of(sampling: Sampling, tokens: int, context_tokens: int) -> Finish:
    """Whether a sequence that has so many tokens may have no more."""
    limit = min(sampling.max_position or context_tokens, context_tokens)
    return Finish.MAX_POSITION if tokens >= limit else Finish.NOT_YET
