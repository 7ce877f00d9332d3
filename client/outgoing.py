"""A batch as a message to its first stage, and the check before it. Pure but for the trace."""

import time

from client.batch import Batch
from client.ledger import Entry
from contract import topics
from contract.activation import Header, encode
from contract.errors import DeliveryError
from contract.plan import Plan
from contract.tensor_spec import check_tensors


def check_input(plan: Plan, batch: Batch) -> None:
    """Check that a batch fits a plan, before anything of it is sent.

    Raises:
        TensorMismatchError: not the tensors that the plan takes.
        DeliveryError: more images than the plan was made for.
    """
    check_tensors(f"input of plan {plan.name}", plan.stages[0].inputs, batch.tensors)
    if batch.images > plan.batch_size:
        raise DeliveryError(
            f"a batch of {batch.images} images: plan {plan.name} was made for at most "
            f"{plan.batch_size}; use --batch {plan.batch_size} or plan it again"
        )


def first_message(
    entry: Entry, plan: Plan, client: str, cluster: str, low: int
) -> tuple[str, bytes]:
    """Topic and payload of a batch's latest attempt. ``low``: the low-watermark of its epoch."""
    header = Header(
        plan_id=plan.plan_id,
        batch_id=entry.batch_id,
        attempt=entry.attempt,
        low=low,
        stage_index=0,
        route=entry.route,
        client=client,
        sent_us=time.time_ns() // 1000,
    )
    topic = topics.input_topic(cluster, entry.route[0], plan.plan_id, 0, client)
    return topic, encode(header, entry.batch.tensors)
