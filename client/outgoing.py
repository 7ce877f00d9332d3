"""A batch as messages to its first stage, and the check before it. Pure but for the trace."""

import time
from dataclasses import replace

from client.batch import Batch
from client.generation.chunks import prompt_chunks, release_step
from client.generation.request import check_sequences
from client.ledger import Entry
from contract import topics
from contract.activation import Header, encode
from contract.decoder import Step
from contract.errors import DeliveryError
from contract.plan import Plan
from contract.tensor_spec import Tensors, check_tensors


def check_input(plan: Plan, batch: Batch) -> None:
    """Check that a batch fits a plan, before anything of it is sent.

    Raises:
        TensorMismatchError: not the tensors that the plan takes.
        DeliveryError: more images than the plan was made for.
        PromptError: a sequence that the plan has no room for, or a token that it does not know.
    """
    check_tensors(f"input of plan {plan.name}", plan.edge_specs(0), batch.tensors)
    if batch.images > plan.batch_size:
        raise DeliveryError(
            f"a batch of {batch.images} images: plan {plan.name} was made for at most "
            f"{plan.batch_size}; use --batch {plan.batch_size} or plan it again"
        )
    if plan.decoding is not None:
        check_sequences(plan, plan.decoding, batch.tensors)


def first_messages(
    entry: Entry, plan: Plan, client: str, cluster: str, low: int
) -> tuple[str, list[bytes]]:
    """Topic and payloads of a batch's latest attempt: one, or a language model's prompt in pieces.

    ``low``: the low-watermark of its epoch.
    """
    header = _header(entry, entry.attempt, plan, client, low)
    if entry.generation is None or plan.decoding is None:
        payloads = [encode(header, entry.batch.tensors)]
    else:
        transcript = entry.generation.transcript
        payloads = [
            _encode_step(header, step, tensors)
            for step, tensors in prompt_chunks(
                transcript.ids(), transcript.sampling(), plan.decoding.chunk_tokens
            )
        ]
    return topics.input_topic(cluster, entry.route[0], plan.plan_id, 0, client), payloads


def release_message(
    entry: Entry, attempt: int, plan: Plan, client: str, cluster: str, low: int
) -> tuple[str, bytes]:
    """Topic and payload that tell an attempt's first stage that nobody wants its tokens."""
    assert entry.generation is not None
    transcript = entry.generation.transcript
    header = _header(entry, attempt, plan, client, low)
    step, tensors = release_step(transcript.length, transcript.sampling())
    topic = topics.input_topic(cluster, header.route[0], plan.plan_id, 0, client)
    return topic, _encode_step(header, step, tensors)


def _encode_step(header: Header, step: Step, tensors: Tensors) -> bytes:
    return encode(replace(header, scalars=step.scalars()), tensors)


def _header(entry: Entry, attempt: int, plan: Plan, client: str, low: int) -> Header:
    return Header(
        plan_id=plan.plan_id,
        batch_id=entry.batch_id,
        attempt=attempt,
        low=low,
        stage_index=0,
        route=entry.attempts[attempt].route,
        client=client,
        sent_us=time.time_ns() // 1000,
    )
