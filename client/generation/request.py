"""What is asked of a language model, and whether the plan has room for it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from client.batch import Batch
from client.settings import MAX_PROMPT_MESSAGES
from contract.decoder import IDS, SAMPLING, Decoding, Sampling, decode_sampling, encode_sampling
from contract.errors import PromptError, PromptTooLongError, WireFormatError
from contract.plan import Plan, TokenInput
from contract.tensor_spec import Tensors


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence that is wanted. ``sampling.max_position``: its tokens at most, prompt included.

    ``stop``: texts that end it; they are not part of the answer.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    stop: tuple[str, ...] = ()


def make_request(
    prompt: Sequence[int],
    sampling: Sampling,
    max_tokens: int | None,
    plan: Plan,
    stop: Sequence[str] = (),
) -> Request:
    """A request for at most ``max_tokens`` tokens, of as many as there is room for with None.

    Raises:
        PromptTooLongError: the prompt leaves no room for ``max_tokens``, or for one.
        PromptError: it is empty, has a token that the model does not know, or ``sampling`` is not
            what a message can say.
    """
    context = context_of(plan)
    room = context - len(prompt)
    if not prompt:
        raise PromptError("the prompt is empty: write at least a word")
    if room < (max_tokens or 1):
        raise PromptTooLongError(
            f"the prompt has {len(prompt):,} tokens and {max_tokens or 1:,} more are wanted, "
            f"together {len(prompt) + (max_tokens or 1):,}: this plan has room for "
            f"{context:,}; shorten the prompt, ask for fewer, or plan the model with "
            f"{_what_would_do(plan)}"
        )
    check_tokens(plan, min(prompt), max(prompt))
    total = len(prompt) + (room if max_tokens is None else max_tokens)
    return Request(tuple(prompt), _as_sent(sampling._replace(max_position=total)), tuple(stop))


def context_of(plan: Plan) -> int:
    """Tokens that a sequence may have, prompt included.

    Also no more than can be sent at once: another attempt begins with all that there are.
    """
    assert plan.decoding is not None
    decoding = plan.decoding
    return min(decoding.context_tokens, MAX_PROMPT_MESSAGES * decoding.chunk_tokens)


def _what_would_do(plan: Plan) -> str:
    assert plan.decoding is not None
    if context_of(plan) == plan.decoding.context_tokens:
        return "a longer context"
    return (
        f"a larger --chunk: {MAX_PROMPT_MESSAGES:,} messages of {plan.decoding.chunk_tokens:,} "
        "tokens are all that the broker keeps for a device"
    )


def _as_sent(sampling: Sampling) -> Sampling:
    """How the stages will read it: what they would refuse is refused here, where it harms nobody.

    Raises:
        PromptError: a value is out of its range.
    """
    try:
        (row,) = decode_sampling(encode_sampling((sampling,)))
    except (WireFormatError, OverflowError) as error:
        raise PromptError(f"a token cannot be chosen so: {error}") from error
    return row


def choose_group(
    lengths: Sequence[int], free_rows: int, batch_size: int, num_stages: int
) -> list[int]:
    """Which of the waiting requests make the next batch: indices, the oldest first.

    ``lengths``: tokens of their prompts. Rows of a batch are at the same position, so it holds
    prompts of one length. Those that wait together are shared out over as many batches as there are
    stages: each stage then has one to compute, where one large batch would leave the others idle.
    """
    if not lengths or free_rows < 1:
        return []
    alike = [index for index, length in enumerate(lengths) if length == lengths[0]]
    share = -(-len(alike) // num_stages)
    return alike[: max(1, min(share, free_rows, batch_size))]


def batch_of(requests: Sequence[Request], names: Sequence[str]) -> Batch:
    """Requests with prompts of one length as a batch, one row each."""
    return Batch(
        tensors={
            IDS: np.array([request.prompt for request in requests], np.int64),
            SAMPLING: encode_sampling(tuple(request.sampling for request in requests)),
        },
        names=tuple(names),
    )


def check_tokens(plan: Plan, lowest: int, highest: int) -> None:
    """Check that the model knows the tokens between these.

    Raises:
        PromptError: it does not.
    """
    assert isinstance(plan.model.input, TokenInput)
    size = plan.model.input.vocabulary_size
    if lowest < 0 or highest >= size:
        raise PromptError(
            f"token {lowest if lowest < 0 else highest}: this model knows 0 to {size - 1}; is the "
            "tokenizer another model's?"
        )


def check_sequences(plan: Plan, decoding: Decoding, tensors: Tensors) -> None:
    """Check that a plan has room for a batch's sequences, and knows their tokens.

    ``tensors`` are those of an input message, of the right dtypes and shapes.

    Raises:
        PromptError: it has not, or knows a token not.
        PromptTooLongError: a sequence may grow longer than it has room for.
        WireFormatError: a value of ``sampling`` is out of its range.
    """
    ids = tensors[IDS]
    check_tokens(plan, int(ids.min()), int(ids.max()))
    if len(ids) > decoding.sequences:
        raise PromptError(
            f"{len(ids)} sequences at once: the stages keep caches for {decoding.sequences}"
        )
    for row in decode_sampling(tensors[SAMPLING]):
        if not ids.shape[1] < row.max_position <= context_of(plan):
            raise PromptTooLongError(
                f"a prompt of {ids.shape[1]:,} tokens that may grow to {row.max_position:,}: "
                f"expected room for at least one token more, and at most {context_of(plan):,} in "
                f"all; plan the model with {_what_would_do(plan)}"
            )
