"""What a plan costs: time and memory of a stage on a device, the rate and latency of a whole plan.

Pure functions of :mod:`planner.problem`. The model, in one place:

- A device works on one batch at a time. Its processor receives, computes and sends; both directions
  of its link work beside it. The slowest of the three sets what the device can do.
- A device has a few batches in hand at once, so a far one cannot be kept busy.
- The replicas of a stage share its batches by their rates, so a stage's rate is their sum.
- The broker is one shared link: every edge of every batch crosses its card in and out.
- The client sends every input and receives every result.
- A token of a sequence can only follow the one before, so where a language model's sequences are
  few, a plan waits for them, however many devices it has.
- The slowest of all these is the bottleneck, and its rate is the plan's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.problem import ClientCosts, DeviceCosts, Problem, RelayCosts, StageChoice

RELAY_MS_PER_MESSAGE = 0.8
RELAY_MS_PER_BYTE = 5.5e-6
"""Processor time of a stage for a batch beyond its engine, where no device was asked: receive,
check, hand from thread to thread, send on. On the emulated cluster (bench/cluster; x86-64, one
core) 1.3 ms for MobileNetV2 in three stages with messages of 100 KB, 4 to 7 ms for ResNet50 with
803 KB. A bare relay takes 0.21 ms at 75 KB and 2.4 ms at 1.6 MB."""
RECEIVE_SHARE = 0.6
"""Receiving copies once more than sending: 2.4 ms against 0.8 ms at 1.6 MB, the same at 75 KB."""
REFERENCE_RELAY = RelayCosts(RELAY_MS_PER_MESSAGE, RELAY_MS_PER_BYTE)
REFERENCE_BROKER_RELAY = RelayCosts(0.14, 0.9e-6)
"""Mosquitto's processor time for a message to one receiver: 7,200 a second of 1 KB, and 0.6 to 1.1
seconds for a GB, without TLS, on one core of an x86-64 machine."""


def relay_ms(size_bytes: float, relay: RelayCosts = REFERENCE_RELAY) -> float:
    """Processor time, in ms, to receive a message of ``size_bytes`` and send one as large."""
    return relay.message_ms + relay.byte_ms * size_bytes


def receive_ms(size_bytes: float, relay: RelayCosts = REFERENCE_RELAY) -> float:
    """The part of :func:`relay_ms` spent on receiving."""
    return RECEIVE_SHARE * relay_ms(size_bytes, relay)


def send_ms(size_bytes: float, relay: RelayCosts = REFERENCE_RELAY) -> float:
    """The part of :func:`relay_ms` spent on sending."""
    return (1 - RECEIVE_SHARE) * relay_ms(size_bytes, relay)


@dataclass(frozen=True, slots=True)
class StageCosts:
    """One batch of a stage on a device, in ms, and the bytes of memory that it needs there.

    ``turnaround_ms`` is how often the device can have a batch at best when so few may be on their
    way to it or in its hands: its slot is free again when the message has come, the output has
    gone, and the acknowledgements of both are back, which is four times the link's latency.
    """

    compute_ms: float
    relay_ms: float
    down_ms: float
    up_ms: float
    memory_bytes: int
    prepack: bool
    turnaround_ms: float

    @property
    def processor_ms(self) -> float:
        """What the processor does for a batch, one thing after another."""
        return self.compute_ms + self.relay_ms

    @property
    def busy_ms(self) -> float:
        """Time between two batches at the device's best: whatever is slowest."""
        return max(self.processor_ms, self.down_ms, self.up_ms, self.turnaround_ms)


def memory_bytes(
    problem: Problem, device: DeviceCosts, first: int, end: int, prepack: bool = True
) -> int:
    """Peak memory of the process of a device that serves segments ``first`` to ``end``.

    The engine's base, the weights, each once (and a second, reordered copy when prepacked), what is
    kept between batches, the largest activations of any segment, and the inputs and outputs of the
    batches in hand.
    """
    weights = problem.weights(first, end)
    packed = weights * (device.packing_factor if prepack else 1.0)
    messages = problem.edge_bytes[first] + problem.edge_bytes[end]
    return round(
        device.base_bytes
        + packed
        + problem.state(first, end)
        + max(problem.activation_bytes[first:end])
        + problem.window_batches * messages
    )


def cut_ms(problem: Problem, device: DeviceCosts, first: int, end: int) -> float:
    """What the engine pays for beginning and ending where the whole model would go on."""
    return device.cut_byte_ms * problem.cut_bytes(first) + device.cut_byte_ms * problem.cut_bytes(
        end
    )


def stage_costs(problem: Problem, device: DeviceCosts, first: int, end: int) -> StageCosts | None:
    """Costs of segments ``first`` to ``end`` on a device, or None where they do not fit.

    Weights stay unpacked only where they would not fit otherwise: it costs speed.
    """
    for prepack, times in ((True, device.segment_ms), (False, device.unpacked_ms)):
        if times is None:
            continue
        needed = memory_bytes(problem, device, first, end, prepack)
        if device.memory_bytes is None or needed <= device.memory_bytes:
            compute_ms = sum(times[first:end]) + cut_ms(problem, device, first, end)
            receiving_ms = receive_ms(problem.work_bytes(first), device.relay)
            relay_ms = receiving_ms + send_ms(problem.work_bytes(end), device.relay)
            down_ms = device.link.down_ms(problem.edge_bytes[first])
            up_ms = device.link.up_ms(problem.edge_bytes[end])
            there_and_back_ms = down_ms + (compute_ms + relay_ms) + up_ms
            there_and_back_ms += 4 * device.link.latency_ms
            return StageCosts(
                compute_ms=compute_ms,
                relay_ms=relay_ms,
                down_ms=down_ms,
                up_ms=up_ms,
                memory_bytes=needed,
                prepack=prepack,
                turnaround_ms=there_and_back_ms / (problem.window_batches or math.inf),
            )
    return None


def stage_rate(problem: Problem, stage: StageChoice) -> float:
    """Batches a second of a stage: the sum over its replicas; 0 where one cannot hold it."""
    rate = 0.0
    for name in stage.devices:
        costs = stage_costs(problem, problem.device(name), stage.first, stage.end)
        if costs is None:
            return 0.0
        rate += 1e3 / max(costs.busy_ms, 1e-9)
    return rate


def cut_edges(stages: Sequence[StageChoice]) -> list[int]:
    """The edges that messages cross: the inputs, every cut, the results."""
    return [0, *(stage.end for stage in stages)]


def broker_rate(problem: Problem, edges: Sequence[int]) -> float:
    """Batches a second that the broker can carry when messages cross these edges."""
    busy_ms = sum(problem.broker.edge_ms(problem.edge_bytes[edge]) for edge in edges)
    return 1e3 / max(busy_ms, 1e-9)


def client_rate(problem: Problem) -> float:
    """Batches a second that the client can feed and take back, whatever the plan."""
    client, sent, got = problem.client, problem.edge_bytes[0], problem.edge_bytes[-1]
    processor = send_ms(sent, client.relay) + receive_ms(got, client.relay)
    busy_ms = max(processor, client.link.up_ms(sent), client.link.down_ms(got))
    return 1e3 / max(busy_ms, 1e-9)


def round_ms(problem: Problem, stages: Sequence[StageChoice]) -> float:
    """Time from one token of a sequence to the next in an idle pipeline: through all stages, and
    from the last by the broker back to the first. The client only hears of it.

    Infinite where a stage does not fit its device.
    """
    return latency_ms(replace(problem, client=ClientCosts()), stages)


def in_flight_rate(problem: Problem, stages: Sequence[StageChoice]) -> float:
    """Batches a second that so few in flight can make; infinite where there is no such bound."""
    if problem.batches_in_flight is None:
        return math.inf
    return problem.batches_in_flight * 1e3 / max(round_ms(problem, stages), 1e-9)


def batches_per_s(problem: Problem, stages: Sequence[StageChoice]) -> float:
    """The rate of a plan: that of its bottleneck; 0 where a stage does not fit its device."""
    return min(
        *(stage_rate(problem, stage) for stage in stages),
        broker_rate(problem, cut_edges(stages)),
        client_rate(problem),
        in_flight_rate(problem, stages),
    )


def bottleneck(problem: Problem, stages: Sequence[StageChoice]) -> str:
    """What sets the rate, in words."""
    rates = {
        f"stage {index} on {', '.join(stage.devices)}": stage_rate(problem, stage)
        for index, stage in enumerate(stages)
    }
    rates["the broker's link"] = broker_rate(problem, cut_edges(stages))
    rates["the client"] = client_rate(problem)
    few = f"the number of sequences (batches in flight: {problem.batches_in_flight})"
    rates[few] = in_flight_rate(problem, stages)
    return min(rates, key=lambda name: rates[name])


def transfer_ms(problem: Problem, edge: int, sender: str | None, receiver: str | None) -> float:
    """From sent to received on idle links, in ms. None stands for the client.

    The broker passes a message on when it has all of it: the two wires count one after the other.
    """
    size = problem.edge_bytes[edge]
    away = problem.client.link if sender is None else problem.device(sender).link
    home = problem.client.link if receiver is None else problem.device(receiver).link
    wires = away.up_ms(size) + home.down_ms(size)
    return wires + away.latency_ms + home.latency_ms + problem.broker.edge_ms(size)


def latency_ms(problem: Problem, stages: Sequence[StageChoice]) -> float:
    """Time of one batch alone in an idle pipeline, through the fastest device of every stage.

    Infinite where a stage does not fit its device.
    """
    total = send_ms(problem.work_bytes(0), problem.client.relay)
    sender: str | None = None
    for stage in stages:
        found: dict[str, StageCosts] = {}
        for name in stage.devices:
            costs = stage_costs(problem, problem.device(name), stage.first, stage.end)
            if costs is not None:
                found[name] = costs
        if not found:
            return float("inf")
        fastest = min(found, key=lambda name: found[name].busy_ms)  # as the client chooses
        total += transfer_ms(problem, stage.first, sender, fastest) + found[fastest].processor_ms
        sender = fastest
    total += transfer_ms(problem, stages[-1].end, sender, None)
    return total + receive_ms(problem.work_bytes(problem.num_segments), problem.client.relay)
