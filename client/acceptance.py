"""Whether a result or a refusal may count: of this run, of this plan, from who had the batch. Pure.

The sender is the one that the topic names: that is what the broker's access control guards, while
anybody can write any route into a message. Each stage has looked whether its input came from the
one before it on the message's route. So a message that carries the very route which this attempt
was sent by came that way, and a device can answer or refuse no batch but those sent through it.
"""

from client.feed import Feed
from client.ledger import Entry, Ledger
from contract.activation import Activation, BatchId, decode
from contract.errors import WireFormatError
from contract.nack import Nack
from contract.tensor_spec import check_tensors


def accept_result(
    payload: bytes, sender: str | None, client: str, feed: Feed, ledger: Ledger
) -> Activation:
    """Decode and check a result.

    Raises:
        WireFormatError: malformed, of another run, plan or client, from a device that does not
            serve the last stage, by another route than it was sent, or not the answer to this
            batch.
    """
    activation = decode(payload, feed.max_message_bytes)
    header, plan = activation.header, feed.plan
    if (header.stage_index, header.client) != (plan.num_stages, client):
        raise WireFormatError(f"not a result for {client}")
    if not ledger.knows(header.batch_id) or header.plan_id != plan.plan_id:
        raise WireFormatError(f"a result of another run: batch {header.batch_id}")
    entry = ledger.find(header.batch_id)
    # Who serves the last stage now, or did when this batch was sent: a plan may be placed anew.
    answerers = [replica.device for replica in plan.placement[-1].replicas]
    answerers += entry.route[-1:] if entry is not None else ()
    if header.route[-1] != sender or sender not in answerers:
        raise WireFormatError(f"{sender} does not serve the last stage of batch {header.batch_id}")
    if entry is not None:
        _check_route(entry, header.batch_id, header.attempt, header.route)
    if header.codec != "float32":
        raise WireFormatError(f"a result in the codec {header.codec}, expected float32")
    images = check_tensors("result", plan.edge_specs(plan.num_stages), activation.tensors)
    if entry is not None and images != entry.batch.images:
        raise WireFormatError(f"{images} answers for {entry.batch.images} images")
    return activation


def check_nack(nack: Nack, ledger: Ledger) -> None:
    """Check that a refusal comes from a device that had the batch.

    Raises:
        WireFormatError: the device is not on the route of the attempt that it refuses, or what it
            refuses came to it by another one.
    """
    entry = ledger.find(nack.batch_id)
    if entry is None:
        return
    if nack.device not in nack.route:
        raise WireFormatError(f"{nack.device} is not on the route of batch {nack.batch_id}")
    _check_route(entry, nack.batch_id, nack.attempt, nack.route)


def _check_route(entry: Entry, batch_id: BatchId, attempt: int, route: tuple[str, ...]) -> None:
    """Raises where a message says that an attempt went another way than it was sent."""
    if batch_id != entry.batch_id:
        return  # of an earlier start of this client, whose routes nobody knows any more
    known = entry.attempts.get(attempt)
    if known is None:
        raise WireFormatError(f"batch {entry.batch_id}: attempt {attempt} was never sent")
    sent = known.route
    if route != sent:
        raise WireFormatError(
            f"batch {entry.batch_id}, attempt {attempt}: sent by {', '.join(sent)}, this message "
            f"claims {', '.join(route)!r:.200}"
        )
