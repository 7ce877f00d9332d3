"""What a client sends of its own: prompts in pieces, and the word that it wants no more. Pure."""

from collections.abc import Iterator, Sequence

import numpy as np

from client.generation.transcript import Ids
from contract.decoder import IDS, SAMPLING, Sampling, Step, encode_sampling
from contract.tensor_spec import Tensors


def prompt_chunks(
    ids: Ids, sampling: Sequence[Sampling], chunk_tokens: int
) -> Iterator[tuple[Step, Tensors]]:
    """``ids``, int64 (rows, tokens), in pieces; the last one asks for a token."""
    total = ids.shape[1]
    rows = encode_sampling(tuple(sampling))
    for begin in range(0, total, chunk_tokens):
        end = min(begin + chunk_tokens, total)
        yield (
            Step(begin, wants=end == total),
            {IDS: np.ascontiguousarray(ids[:, begin:end]), SAMPLING: rows},
        )


def count_chunks(tokens: int, chunk_tokens: int) -> int:
    """How many messages a prompt of so many tokens is."""
    return -(-tokens // chunk_tokens)


def release_step(length: int, sampling: Sequence[Sampling]) -> tuple[Step, Tensors]:
    """What frees the sequences' caches: a step without any work, in the form of every other."""
    nothing = np.zeros((len(sampling), 1), np.int64)
    return (
        Step(length, release=True),
        {IDS: nothing, SAMPLING: encode_sampling(tuple(sampling))},
    )
