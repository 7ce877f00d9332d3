"""A pipeline of a language model: yields each token once, as it comes, and each batch's end."""

from collections.abc import Iterable, Iterator
from concurrent.futures import wait

from broker.split import Elsewhere
from broker.transport import Connect
from client.batch import Batch, Ended, NothingYet, Stop, Tokens
from client.generation.receiving import TokenReceiver
from client.inbox import Heard
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract.errors import PlanError

RELEASE_S = 1.0
"""How long the broker may take, at the end, to hear which sequences nobody wants any more."""


class TokenPipeline(Pipeline):
    """A client of a running language model. Use as a context manager, from one thread.

    A batch is a few sequences at the same position; it lives from its prompt to its last token.
    """

    def __init__(
        self, settings: ClientSettings, connect: Connect, *, elsewhere: Elsewhere | None = None
    ) -> None:
        """See :class:`client.pipeline.Pipeline`; ``settings.window`` counts sequences."""
        super().__init__(settings, connect, elsewhere=elsewhere)
        self._tokens = TokenReceiver(
            settings.name, self._watch, self._ledger, self._settling, self._sender, self._reporter
        )

    def free_rows(self, tokens: int) -> int:
        """How many sequences more, with prompts of so many tokens, may be sent now: for a source
        that groups them."""
        return self._sender.free_rows(tokens) if self._sender.can_send() else 0

    @property
    def near_ties(self) -> int:
        """How often another attempt of a batch chose another token than the one that counts."""
        return self._watch.feed.meter.near_ties

    def stop(self, batch: Batch, rows: tuple[int, ...] | None = None) -> None:
        """Want no more tokens of these rows of a batch, or of all. From any thread.

        A batch that has not begun yet then ends without being sent.
        """
        self._inbox.note_stop(Stop(batch, rows))

    def wake(self) -> None:
        """Have the source asked again that had nothing. From any thread."""
        self._inbox.wake()

    def generate(self, batches: Iterable[Batch | NothingYet]) -> Iterator[Ended | Tokens]:
        """Feed batches, and yield each token of them once and each one's end.

        Args:
            batches: new ones (:func:`client.generation.request.batch_of`), or
                :data:`client.batch.NOTHING_YET` while there is none: it is asked again when
                something has happened, or after :meth:`wake`.

        Raises:
            PlanError: the plan is none of a language model, or a new one is of another model.
            PromptError: a batch that the plan has no room for; nothing of it was sent.
            NotAuthorisedError, NameTakenError, BrokerUnreachableError: see :meth:`Pipeline.run`.
        """
        if self.plan.decoding is None:
            raise PlanError(f"plan {self.plan.name} is no language model: use `shardline infer`")
        return self._events(batches, None)

    def close(self) -> None:
        """Disconnect; the stages are told first which sequences nobody wants any more."""
        if self._watch.is_known and self.plan.decoding is not None:
            self._tokens.release_all()
            wait(self._sender.releases, timeout=RELEASE_S)
        super().close()

    def _begin(self, batch: Batch) -> None:
        unwanted = self._tokens.stopped_early(batch)
        if len(unwanted) == batch.images:
            self._tokens.end_unsent(batch)
            return
        super()._begin(batch)
        if unwanted:
            self._tokens.on_stop(Stop(batch, unwanted))

    def _handle(self, item: Heard) -> None:
        if isinstance(item, Stop):
            self._tokens.on_stop(item)
        else:
            super()._handle(item)

    def _on_result(self, payload: bytes, sender: str | None) -> None:
        if self.plan.decoding is None:
            super()._on_result(payload, sender)
        else:
            self._tokens.on_result(payload, sender)
