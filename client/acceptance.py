"""Whether a result or a refusal may count: of this run, of this plan, from who had the batch. Pure.

The sender is the one that the topic names: that is what the broker's access control guards, while
anybody can write any route into a message.
"""

from client.feed import Feed
from client.ledger import Ledger
from contract.activation import Activation, decode
from contract.errors import WireFormatError
from contract.nack import Nack
from contract.tensor_spec import check_tensors


def accept_result(
    payload: bytes, sender: str | None, client: str, feed: Feed, ledger: Ledger
) -> Activation:
    """Decode and check a result.

    Raises:
        WireFormatError: malformed, of another run, plan or client, from a device that does not
            serve the last stage, or not the answer to this batch.
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
    if header.codec != "float32":
        raise WireFormatError(f"a result in the codec {header.codec}, expected float32")
    images = check_tensors("result", plan.stages[-1].outputs, activation.tensors)
    if entry is not None and images != entry.batch.images:
        raise WireFormatError(f"{images} answers for {entry.batch.images} images")
    return activation


def check_nack(nack: Nack, ledger: Ledger) -> None:
    """Check that a refusal comes from a device that had the batch.

    Raises:
        WireFormatError: the device is not on the route of the attempt that it refuses.
    """
    entry = ledger.find(nack.batch_id)
    if entry is None or not entry.is_at(nack.batch_id, nack.attempt):
        return  # of an attempt that another has replaced: it counts nowhere
    if nack.device not in entry.route:
        raise WireFormatError(f"{nack.device} is not on the route of batch {nack.batch_id}")
