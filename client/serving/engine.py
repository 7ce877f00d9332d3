"""The pipeline's thread behind the HTTP interface: opens it, runs it, opens it again after a fault.

Requests come from the web server's thread, and are told there what becomes of them.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from client.generation.generator import Generator
from client.generation.job import Job, Piece
from client.generation.pipeline import TokenPipeline
from client.generation.request import Request
from client.serving.errors import busy, unavailable
from client.tokenizer import TextTokenizer
from contract.errors import ShardlineError
from contract.plan import Plan

LOOKING = "the model is being looked for"
REOPEN_S = 1.0
"""Between a fault and the next try."""
STOP_S = 10.0
MAX_IN_HAND = 256
"""Texts that are being written or wait; more are refused: each would wait for all before it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """A model that can be asked."""

    tokenizer: TextTokenizer
    generator: Generator

    @property
    def plan(self) -> Plan:
        """The plan that runs now: another one of the same model may have been published."""
        return self.generator.plan


class Answers:
    """What comes of the texts of one HTTP request, for the task that writes the response."""

    def __init__(self, ready: Ready, requests: Sequence[Request]) -> None:
        """Nothing is asked for before :meth:`submit`."""
        self._ready, self._requests = ready, tuple(requests)
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self.jobs: list[Job] = []

    def __len__(self) -> int:
        return len(self._requests)

    def submit(self) -> None:
        """Ask for all of them. Whoever does cancels them in the end.

        Raises:
            ApiError: too many are in hand.
        """
        tells = [partial(self._tell, index) for index in range(len(self._requests))]
        self.jobs = self._ready.generator.submit_all(self._requests, tells, MAX_IN_HAND)
        if not self.jobs:
            raise busy(
                f"{len(self._requests)} texts are wanted: with those that are being written or "
                f"wait already there may be {MAX_IN_HAND}"
            )

    def _tell(self, index: int, piece: Piece) -> None:
        with suppress(RuntimeError):  # the server has ended meanwhile
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, piece))

    async def next(self) -> tuple[int, Piece]:
        """The next piece of any of the texts, and of which one."""
        return await self._queue.get()

    def cancel(self) -> None:
        """Nobody reads any more."""
        for job in self.jobs:
            self._ready.generator.cancel(job)


class Engine:
    """Use as a context manager."""

    def __init__(
        self,
        make_pipeline: Callable[[], TokenPipeline],
        open_tokenizer: Callable[[Plan], TextTokenizer],
    ) -> None:
        """``make_pipeline`` connects; the pipeline is opened and closed here."""
        self._make_pipeline, self._open_tokenizer = make_pipeline, open_tokenizer
        self._stopping = threading.Event()
        self._ready: Ready | None = None
        self._why = LOOKING
        self._waiting_for = ""
        self._thread = threading.Thread(target=self._run, name="pipeline", daemon=True)

    def __enter__(self) -> "Engine":
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
        self._thread.join(timeout=STOP_S)

    def stop(self) -> None:
        """End every text, and the thread."""
        self._stopping.set()
        ready = self._ready
        if ready is not None:
            ready.generator.abort("the server ends")

    def ready(self) -> Ready:
        """The model, if it can be asked now.

        Raises:
            ApiError: it cannot.
        """
        ready = self._ready
        if ready is None:
            raise unavailable(f"no model can be asked now: {self._why}")
        if self._waiting_for:
            raise unavailable(f"the pipeline waits: {self._waiting_for}")
        return ready

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._make_pipeline() as pipeline:
                    self._serve(pipeline)
            except ShardlineError as error:
                if str(error) != self._why:
                    log.warning("%s: %s", type(error).__name__, error)
                self._why = str(error)
            except BaseException as error:  # a fault of ours, or a tokenizer's panic, which is no
                # Exception: the server is better up than down
                log.exception("the pipeline has failed")
                self._why = f"the pipeline has failed: {error!r:.200}"
            self._stopping.wait(REOPEN_S)

    def _serve(self, pipeline: TokenPipeline) -> None:
        plan = pipeline.open()
        generator = Generator(pipeline, self._open_tokenizer(plan))

        def look(_metrics: object) -> None:
            self._waiting_for = pipeline.waiting_for()

        pipeline.on_metrics = look
        self._waiting_for = ""
        self._why = LOOKING  # what there was before is over: the same once more is news
        self._ready = Ready(generator.tokenizer, generator)
        if self._stopping.is_set():  # it was told to end before it was ready
            generator.abort("the server ends")
        log.info("plan %s of %s can be asked", plan.name, plan.model.name)
        try:
            generator.run()
        except ShardlineError as error:
            generator.abort(str(error))
            raise
        except BaseException:
            generator.abort("the pipeline has failed")
            raise
        finally:
            self._ready = None
