"""What the runner shares with whatever is run: a stage in memory, and what came of one input."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from contract.activation import Activation, Header, Hop
from contract.errors import ShardlineError
from contract.nack import NackReason
from contract.plan import Plan, StageSpec
from stage.dedup import AttemptKey, Output
from stage.engine import DecoderEngine, Engine


@dataclass(frozen=True, slots=True)
class LoadedStage:
    """A stage of a plan with its shard in memory, its weights prepacked if the plan says so.

    ``earlier_feeders``: devices of the stage before, as this plan was placed earlier. Batches of
    theirs may still be on their way.
    """

    plan: Plan
    spec: StageSpec
    engine: Engine | DecoderEngine
    max_message_bytes: int
    prepack: bool = True
    earlier_feeders: frozenset[str] = frozenset()

    @property
    def feeders(self) -> frozenset[str]:
        """Devices that inputs come from; none for the first stage, which clients feed.

        A language model's last stage feeds the first one, with tokens.
        """
        index = self.spec.stage_index
        if index or self.plan.decoding is not None:
            before = self.plan.placement[index - 1 :][:1]
        else:
            before = ()
        now = frozenset(replica.device for place in before for replica in place.replicas)
        return self.earlier_feeders | now

    @property
    def is_last(self) -> bool:
        """Whether the output is the result."""
        return self.spec.stage_index + 1 == self.plan.num_stages


class Done(NamedTuple):
    """What came of an input: messages to be published, and what is to be counted.

    ``outputs`` may be made one after another, as they are taken: once, then.
    """

    outputs: Iterable[Output]
    counts: Mapping[str, float]


class Work(Protocol):
    """Turns the inputs of one stage into outputs; images or sequences. One thread calls it."""

    answers_again: bool
    """Whether an input that comes again after it was acknowledged gets the same outputs again."""

    def key_of(self, header: Header) -> AttemptKey:
        """What a repeated message is known by.

        Raises:
            WireFormatError: the header lacks something.
        """
        ...

    def run(self, activation: Activation, received_us: int) -> Done:
        """Check, compute, check, and say what is to be sent.

        Raises:
            WireFormatError: these are not the tensors, or the limits, of the plan.
            EngineError: the engine failed, or answered nonsense.
            RefusedError: anything else for which the client must be told no.
        """
        ...

    def undelivered(self, key: AttemptKey, output: Output) -> None:
        """Nobody listens where an output was sent. Called on the network thread."""
        ...


class RefusedError(ShardlineError):
    """An input that this stage cannot take now; the client is told why."""

    def __init__(self, reason: NackReason, detail: str) -> None:
        self.reason = reason
        super().__init__(detail)


class Stopwatch:
    """When the engine began with an input, and how long it took."""

    def __init__(self) -> None:
        self.started_us, self._started = now_us(), time.perf_counter()
        self.finished_us, self.compute_s = self.started_us, 0.0

    def stop(self) -> None:
        """The answer is there, and checked."""
        self.finished_us, self.compute_s = now_us(), time.perf_counter() - self._started

    def hop(self, received_us: int, sent_us: int) -> Hop:
        """The stage's entry in the trace."""
        return Hop(received_us, self.started_us, self.finished_us, sent_us)

    def counts(self, received_us: int) -> dict[str, float]:
        """A batch computed, and how long it took and waited."""
        wait_s = max(0, self.started_us - received_us) / 1e6
        return {"batches": 1, "compute_s": self.compute_s, "wait_s": wait_s}


def now_us() -> int:
    """This device's Unix time in microseconds, for traces only: no decision rests on it."""
    return time.time_ns() // 1000
