"""Sequences of a language model: each input goes on where the cache of its sequences ends.

The last stage chooses the next tokens, and tells the client and the first stage at once. A cache is
found by client, route, batch and attempt; an input that does not begin where the cache ends (this
device has restarted, or has evicted it) is refused as `cache_lost`, and the client begins a new
attempt. A message may come twice: what the cache has behind it was computed, and its outputs are
with the broker or were refused, so it ends here. Sent again they would go round the ring a second
time, beside the first, for every token to come. Specification: docs/wire-format.md.
"""

import queue
from collections import OrderedDict
from collections.abc import Iterable
from typing import cast

from contract import topics
from contract.activation import Activation, Header
from contract.decoder import Step
from contract.errors import EngineError, TensorMismatchError, WireFormatError
from contract.nack import NackReason
from contract.plan import TokenInput
from contract.tensor_spec import check_tensors
from stage.caches import Cache, CachePool, CacheUsage
from stage.decoder_input import DecoderInput, InputReader
from stage.dedup import AttemptKey, Output
from stage.engine import DecoderEngine
from stage.next_tokens import Limits, choose_next
from stage.onward import Onward
from stage.work import Done, LoadedStage, RefusedError, Stopwatch

RELEASED_REMEMBERED = 256
_RELEASE = -1
"""Stands for the position in the key of a message that has none."""


class DecoderWork:
    """See :class:`stage.work.Work`."""

    answers_again = False

    def __init__(
        self, device: str, cluster: str, loaded: LoadedStage, earlier: "DecoderWork | None" = None
    ) -> None:
        """``earlier``: what served before; its caches are kept if its engine is the same."""
        plan, spec = loaded.plan, loaded.spec
        assert plan.decoding is not None
        self._loaded, self._decoding = loaded, plan.decoding
        self.engine = cast(DecoderEngine, loaded.engine)
        end_tokens = cast(TokenInput, plan.model.input).end_tokens
        self._limits = Limits(end_tokens, plan.decoding.context_tokens)
        self._where = f"stage {spec.stage_index} on {device}"
        self._inputs = InputReader(self._where, loaded)
        self._onward = Onward(device, cluster, loaded)
        self._released: OrderedDict[tuple[str, int, int], int] = OrderedDict()
        self._undelivered: queue.SimpleQueue[AttemptKey] = queue.SimpleQueue()
        self._caches = CachePool(
            self.engine.allocate, self._decoding.sequences, self._decoding.context_tokens
        )
        if earlier is not None and earlier.engine is self.engine:
            self._caches, self._released = earlier._caches, earlier._released

    @property
    def usage(self) -> CacheUsage:
        """Of the caches. Any thread may ask."""
        return self._caches.usage

    def key_of(self, header: Header) -> AttemptKey:
        """See :class:`stage.work.Work`."""
        step = Step.of(dict(header.scalars))
        if step.returned and (step.release or not step.wants or not step.position):
            raise WireFormatError(
                f"{self._where}, input: {step}: what comes back is a token behind others, after "
                "which another is wanted"
            )
        return AttemptKey.of(header, _RELEASE if step.release else step.position)

    def undelivered(self, key: AttemptKey, output: Output) -> None:
        """A client that does not listen any more needs no more tokens: see :meth:`run`."""
        if topics.parse_topic(output.topic).kind == "result":
            self._undelivered.put(key._replace(position=0))

    def run(self, activation: Activation, received_us: int) -> Done:
        """See :class:`stage.work.Work`."""
        header, step = activation.header, Step.of(dict(activation.header.scalars))
        feeder = header.route[header.stage_index - 1] if header.stage_index else header.client
        while not self._undelivered.empty():  # its next token finds no cache, and the ring ends
            self._caches.free(self._undelivered.get())
        self._forget_what_is_done(header)
        if step.release:
            return self._release(activation)
        given = self._inputs.read(header, step, activation.tensors, feeder)
        cache = self._cache_of(given)
        if cache.holds(given.ids, step.position):
            return Done((), {"duplicates": 1})
        watch = Stopwatch()
        outputs = self.engine.step(cache.block, given.tensors, step.position)
        answered = check_tensors(f"{self._where}, output", self._loaded.spec.outputs, outputs)
        if answered != len(given.ids):
            raise EngineError(
                f"{self._where}: {len(given.ids)} sequences went in, {answered} came out"
            )
        cache.extend(given.ids, step.position)
        messages: Iterable[Output] = ()
        if not self._loaded.is_last:
            watch.stop()
            hop = watch.hop(received_us, 0)
            messages = (self._onward.hidden(activation, hop, outputs, self._where),)
        elif step.wants:
            (logits,) = outputs.values()
            chosen = choose_next(cache, logits, given.sampling, given.end, self._limits)
            watch.stop()
            hop = watch.hop(received_us, 0)
            messages = self._onward.tokens(activation, hop, given.end, chosen.ids, chosen.finished)
            if chosen.finished.all():
                self._caches.retire(cache.key)
        else:
            watch.stop()
        counts = {"images": len(given.ids), "tokens": given.ids.size}
        return Done(messages, {**watch.counts(received_us), **counts})

    def _forget_what_is_done(self, header: Header) -> None:
        """The watermark is the sender's word: it reaches what came from this sender alone."""
        epoch, _ = header.batch_id
        self._caches.free_where(
            lambda cache: (
                cache.feeder == header.sender
                and (cache.key.client, cache.key.epoch) == (header.client, epoch)
                and cache.key.seq < header.low
            )
        )

    def _release(self, activation: Activation) -> Done:
        """Handed on: the next stage must not evict a living sequence for want of this one's room.

        As with the watermark, nobody frees what came by others.
        """
        header = activation.header
        batch = (header.client, *header.batch_id)
        if not header.stage_index:  # a token may still come back
            self._released[batch] = max(header.attempt, self._released.pop(batch, 0))
            while len(self._released) > RELEASED_REMEMBERED:
                self._released.popitem(last=False)
        self._caches.free_where(
            lambda cache: (
                cache.feeder == header.sender
                and cache.key.attempt <= header.attempt
                and _batch(cache.key) == batch
            )
        )
        return Done(() if self._loaded.is_last else (self._onward.release(activation),), {})

    def _cache_of(self, given: DecoderInput) -> Cache:
        """The cache that the input goes on, or a new one where it is a sequence's beginning."""
        header, position = given.header, given.step.position
        key = AttemptKey.of(header)
        if self._released.get(_batch(key), -1) >= key.attempt:
            raise RefusedError(NackReason.STALE, f"batch {header.batch_id} has been released")
        cache = self._caches.get(key)
        if cache is None:
            if position:
                raise _lost(f"there is no cache of batch {header.batch_id} on {self._where}")
            return self._begin(key, given)
        if cache.block.rows != len(given.ids):
            raise TensorMismatchError(
                f"{self._where}, input: {len(given.ids)} sequences, the batch began with "
                f"{cache.block.rows}"
            )
        if position != cache.position and not cache.holds(given.ids, position):
            raise _lost(
                f"the cache of batch {header.batch_id} on {self._where} holds {cache.position:,} "
                f"tokens, the input begins at {position:,}"
            )
        return cache

    def _begin(self, key: AttemptKey, given: DecoderInput) -> Cache:
        def is_of_this_batch(cache: Cache) -> bool:
            return cache.feeder == given.feeder and _batch(cache.key) == _batch(key)

        if self._caches.any_where(lambda c: is_of_this_batch(c) and c.key.attempt > key.attempt):
            raise RefusedError(
                NackReason.STALE, f"batch {given.header.batch_id}: a later attempt has begun"
            )
        self._caches.free_where(is_of_this_batch)
        return self._caches.open(key, given.feeder, len(given.ids))


def _batch(key: AttemptKey) -> tuple[str, int, int]:
    return key.client, key.epoch, key.seq


def _lost(detail: str) -> RefusedError:
    return RefusedError(NackReason.CACHE_LOST, f"{detail}; send the sequences anew")
