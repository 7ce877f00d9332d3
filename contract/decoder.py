"""Words of a plan for a language model, and what its messages carry beside the hidden state.

A *sequence* is one prompt and its continuation. A batch is a group of sequences at the same
position: its rows are fed, computed and counted together, from the prompt to the last token. Each
stage keeps the *cache* (keys and values) of the layers that it owns; only hidden states travel.

    client ──prompt, in chunks──▶ stage 0 ──hidden──▶ … ──hidden──▶ last stage ──tokens──▶ client
                                     ▲                                   │
                                     └────────────── tokens ─────────────┘

The last stage samples, and sends each token to stage 0 and to the client at once. Every message
carries, beside the activation, the token ids that it stands for and how to sample: a stage holds
nothing about a sequence that the next attempt would miss, except its cache.

Pure: names, shapes and limits.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from contract.errors import WireFormatError
from contract.frozen import Count, FrozenModel
from contract.tensor_spec import BATCH, TOKENS, TensorSpec

MAX_CONTEXT_TOKENS = 1_048_576
MAX_SEQUENCES = 256
IDS = "token_ids"
"""int64 (batch, tokens): what the message's positions stand for; in a result the new tokens."""
SAMPLING = "sampling"
"""float64 (batch, 6): one row of :class:`Sampling` for each sequence."""
FINISHED = "finished"
"""uint8 (batch,), in results only: a :class:`Finish` for each sequence."""

Quantisation = Literal["none", "int8", "int4"]
"""How the weights of matrix multiplications are stored: float32, or whole numbers in blocks."""


class TokenInput(FrozenModel):
    """The model takes token ids. ``end_tokens``: any of them ends a sequence."""

    kind: Literal["tokens"] = "tokens"
    architecture: str
    vocabulary_size: int = Field(gt=0)
    end_tokens: tuple[Count, ...] = ()


class TextVerification(FrozenModel):
    """Perplexity of the whole model on the same text: with weights as they are, and as stored.

    ``tokens``: how many were predicted. ``made_up``: they are random, for want of a tokenizer, so
    that only the two numbers' ratio says something.
    """

    tokens: int
    perplexity: float
    perplexity_quantised: float
    made_up: bool = False


class QuantisedVerification(FrozenModel):
    """Quantised shards against the model's own code with the same rounded weights, at build time.

    ``relative_difference``: at the worst position, of the logits' difference to their spread, both
    as root mean squares about the mean; ``tolerance`` bounds it.
    """

    reference: str
    tolerance: float
    relative_difference: float
    top1_agreement: float


class Decoding(FrozenModel):
    """What a plan for a language model was made for.

    ``context_tokens``: positions of a sequence at most, prompt included; each cache has room for so
    many. ``sequences``: how many every stage keeps caches for. ``chunk_tokens``: a prompt travels
    in pieces of at most so many. ``tokenizer_sha256``: of the plan folder's
    ``tokenizer/tokenizer.json``; empty where the model's folder had none.
    """

    context_tokens: int = Field(gt=0, le=MAX_CONTEXT_TOKENS)
    sequences: int = Field(gt=0, le=MAX_SEQUENCES)
    chunk_tokens: int = Field(gt=0, le=MAX_CONTEXT_TOKENS)
    quantisation: Quantisation = "none"
    text: TextVerification | None = None
    tokenizer_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    def score_bytes(self, query_heads: int, rows: int) -> int:
        """Bytes that attention takes while it computes one layer, for ``rows`` sequences at once.

        onnxruntime 1.23.2's GroupQueryAttention writes float32 scores (query heads, new tokens,
        all tokens): at worst the last chunk of a full context, whose rows are computed one by one,
        the last step of all rows, or the first chunk of all rows, where it holds them twice.
        """
        chunk, context = self.chunk_tokens, self.context_tokens
        return 4 * query_heads * max(chunk * context, rows * context, 2 * rows * chunk * chunk)


class CacheSpec(FrozenModel):
    """The caches of one stage: for each of its ``layers`` keys and values of float32.

    One sequence of one layer is (kv_heads, context_tokens, head_size), once for keys and once for
    values. In the stage's graph they are the inputs ``past_key.N`` and ``past_value.N`` and the
    outputs ``present_key.N`` and ``present_value.N``, N from 0, all (batch, kv_heads,
    context_tokens, head_size): the same memory is bound to both (GroupQueryAttention writes the new
    positions in place). Two further inputs say where: ``seqlens_k``, int32 (batch,), the index of
    the last position after this step, and ``total_sequence_length``, an int32 scalar, one more.
    """

    layers: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_size: int = Field(gt=0)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one position of one sequence."""
        return 2 * self.layers * self.kv_heads * self.head_size * 4

    def bytes_of(self, decoding: Decoding) -> int:
        """Bytes of all caches of the stage when they are full."""
        return self.bytes_per_token * decoding.context_tokens * decoding.sequences


class Sampling(NamedTuple):
    """How the tokens of one sequence are chosen.

    ``temperature`` 0 takes the best one. ``top_k`` 0 and ``top_p`` 1 leave all. The
    ``repetition_penalty`` divides positive and multiplies negative logits of tokens that the
    sequence holds (CTRL, arXiv:1909.05858, section 4.1; 1 leaves them). The choice at a position
    depends on ``seed`` and position alone, so another attempt chooses alike. ``max_position``: the
    sequence ends when it has so many tokens, prompt included.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_position: int = 0


SAMPLING_SPEC = TensorSpec(name=SAMPLING, dtype="float64", shape=(BATCH, len(Sampling._fields)))
IDS_SPEC = TensorSpec(name=IDS, dtype="int64", shape=(BATCH, TOKENS))
FINISHED_SPEC = TensorSpec(name=FINISHED, dtype="uint8", shape=(BATCH,))
RESULT_SPECS = (IDS_SPEC, FINISHED_SPEC)
"""What the last stage tells the client of every step."""
MAX_SEED = 2**53
"""Beyond it not every whole number is a float64."""


class Finish(IntEnum):
    """Why a sequence ended, as it stands in ``finished``."""

    NOT_YET = 0
    END_TOKEN = 1
    MAX_POSITION = 2


class Step(NamedTuple):
    """The scalars of a language model's messages: where in its sequences a message stands.

    ``position``: how many tokens of each sequence the caches hold before this message; in a result,
    the position of the token that it brings. ``wants``: whether the last stage must choose a token
    after it (all chunks of a prompt but the last do not). ``returned``: whether it came from the
    last stage, and not from the client. ``release``: nothing is to be computed, the client is done
    with these sequences; each stage tells the next.
    """

    position: int
    wants: bool = False
    returned: bool = False
    release: bool = False

    def scalars(self) -> tuple[tuple[str, int], ...]:
        """As they stand in a message's header."""
        return tuple((name, int(value)) for name, value in zip(self._fields, self, strict=True))

    @classmethod
    def of(cls, scalars: Mapping[str, int]) -> "Step":
        """Read them from a header.

        Raises:
            WireFormatError: one is missing, unknown, or no truth value where one is expected.
        """
        if scalars.keys() != set(cls._fields):
            raise WireFormatError(
                f"message header: scalars {sorted(scalars)!r:.200}, a language model's messages "
                f"have {sorted(cls._fields)}"
            )
        position, *flags = (scalars[name] for name in cls._fields)
        if max(flags) > 1:
            raise WireFormatError("message header: `wants`, `returned` and `release` are 0 or 1")
        return cls(position, *map(bool, flags))


def encode_sampling(rows: tuple[Sampling, ...]) -> npt.NDArray[np.float64]:
    """The tensor ``sampling``, float64 (batch, 6)."""
    return np.array(rows, np.float64)


def decode_sampling(tensor: npt.NDArray[Any]) -> tuple[Sampling, ...]:
    """Inverse of :func:`encode_sampling`.

    Raises:
        WireFormatError: a value is out of its range.
    """
    rows = []
    for row in tensor.tolist():
        temperature, top_k, top_p, penalty, seed, max_position = row
        whole = (top_k, seed, max_position)
        if not (
            0 <= temperature < 1e6
            and 0 < top_p <= 1
            and 0 < penalty < 1e6
            and all(0 <= n <= MAX_SEED and n == int(n) for n in whole)
        ):
            raise WireFormatError(
                f"tensor `{SAMPLING}`: {row!r:.200}; expected temperature >= 0, whole top_k >= 0, "
                "top_p in (0, 1], repetition_penalty > 0, whole seed and max_position >= 0"
            )
        rows.append(Sampling(temperature, int(top_k), top_p, penalty, int(seed), int(max_position)))
    return tuple(rows)
