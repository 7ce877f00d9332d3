"""Requests in, pieces of text out: groups requests into batches, and tells each its own tokens.

One thread runs the pipeline, in :meth:`Generator.run`; requests may come from any, and are told
what becomes of them on the pipeline's.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count

from client.batch import NOTHING_YET, Batch, BatchResult, DeadBatch, NothingYet, Tokens
from client.generation.job import FinishReason, Job, Piece, Tell
from client.generation.pipeline import TokenPipeline
from client.generation.request import Request, batch_of, choose_group
from client.generation.stop_strings import StopStrings
from client.outgoing import check_input
from client.tokenizer import TextStream, TextTokenizer
from contract.decoder import Finish
from contract.errors import ShardlineError
from contract.plan import Plan

log = logging.getLogger(__name__)


class Generator:
    """What feeds one language model with requests."""

    def __init__(self, pipeline: TokenPipeline, tokenizer: TextTokenizer) -> None:
        """``pipeline`` is open."""
        self._pipeline, self.tokenizer = pipeline, tokenizer
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._open: dict[str, Job] = {}
        self._names = count()
        self._closed = False

    @property
    def in_hand(self) -> int:
        """Requests that have not ended."""
        with self._lock:
            return len(self._waiting) + len(self._open)

    @property
    def plan(self) -> Plan:
        """The plan that is being fed: it may change while texts are being written."""
        return self._pipeline.plan

    def submit(self, request: Request, tell: Tell) -> Job:
        """Take a request in. From any thread."""
        [job] = self.submit_all([request], [tell])
        return job

    def submit_all(
        self, requests: Sequence[Request], tells: Sequence[Tell], limit: int | None = None
    ) -> list[Job]:
        """Take several requests in, each with who is told of it. From any thread.

        All or none: none, and an empty list, where more than ``limit`` would then be in hand.
        """
        jobs = [
            Job(
                request,
                tell,
                TextStream(self.tokenizer, request.prompt),
                StopStrings(request.stop),
                str(next(self._names)),
            )
            for request, tell in zip(requests, tells, strict=True)
        ]
        with self._lock:
            closed = self._closed
            in_hand = len(self._waiting) + len(self._open)
            if limit is not None and in_hand + len(jobs) > limit and not closed:
                return []
            if not closed:
                self._waiting.extend(jobs)
        if closed:
            for job in jobs:
                job.is_over = True
                job.tell(Piece("", FinishReason.FAILED, "no more requests are taken in"))
        self._pipeline.wake()
        return jobs

    def cancel(self, job: Job) -> None:
        """Want no more of a request; it is told nothing further. From any thread."""
        with self._lock:
            if job.is_over:
                return
            job.is_over = True
            self._open.pop(job.name, None)
            if job in self._waiting:
                self._waiting.remove(job)
        if job.batch is not None:
            self._pipeline.stop(job.batch, (job.row,))

    def close(self) -> None:
        """Take no more in: :meth:`run` returns when all that is there has ended."""
        with self._lock:
            self._closed = True
        self._pipeline.wake()

    def run(self) -> None:
        """Feed until :meth:`close` and the last request's end.

        Raises:
            ShardlineError: see :meth:`TokenPipeline.generate`.
        """
        for event in self._pipeline.generate(self._batches()):
            if isinstance(event, Tokens):
                for row, name in enumerate(event.batch.names):
                    job = self._open.get(name)
                    token = event.token_ids[row]
                    if job is not None and token is not None:
                        self._take(job, token, event.finish[row])
            else:
                self._end(event)

    def _batches(self) -> Iterator[Batch | NothingYet]:
        while True:
            batch = self._next_batch()
            if batch is None:
                return
            if isinstance(batch, NothingYet) or self._is_good(batch):
                yield batch

    def _next_batch(self) -> Batch | NothingYet | None:
        """Of those that wait; None when nothing more will come."""
        plan = self._pipeline.plan
        with self._lock:
            lengths = [len(job.request.prompt) for job in self._waiting]
            free_rows = self._pipeline.free_rows(lengths[0]) if lengths else 0
            chosen = choose_group(lengths, free_rows, plan.batch_size, plan.num_stages)
            jobs = [self._waiting[index] for index in chosen]
            if not jobs:
                return None if self._closed and not self._waiting else NOTHING_YET
            batch = batch_of([j.request for j in jobs], [j.name for j in jobs])
            for row, job in enumerate(jobs):
                self._waiting.remove(job)
                self._open[job.name] = job
                job.batch, job.row = batch, row
        return batch

    def _is_good(self, batch: Batch) -> bool:
        """Whether the pipeline will take it; if not, its requests end here, and no others.

        They were checked when they came, but the plan may have changed since then; what a pipeline
        refuses ends it, and with it everybody's texts.
        """
        try:
            check_input(self._pipeline.plan, batch)
        except ShardlineError as error:
            for job in self._jobs_of(batch):
                self._fail(job, str(error))
            return False
        return True

    def _jobs_of(self, batch: Batch) -> list[Job]:
        return [job for name in batch.names if (job := self._open.get(name)) is not None]

    def _fail(self, job: Job, why: str) -> None:
        self._close(job)
        job.tell(Piece("", FinishReason.FAILED, why))

    def _take(self, job: Job, token: int, finish: Finish) -> None:
        """One token more of a request that nobody has cancelled."""
        job.tokens += 1
        if job.first_token_at is None:
            job.first_token_at = time.monotonic()
        try:
            text = _text_of(job, token, finish)
        except Exception as error:  # a tokenizer's decoder is as the model's maker wrote it
            log.exception("a token could not become text")
            assert job.batch is not None
            self._pipeline.stop(job.batch, (job.row,))
            self._fail(job, f"a token could not become text: {error!r:.200}")
            return
        if job.stops.is_hit:
            self._close(job)
            if not finish:
                assert job.batch is not None
                self._pipeline.stop(job.batch, (job.row,))
            job.tell(Piece(text, FinishReason.STOP))
        elif finish:
            self._close(job)
            ended = FinishReason.STOP if finish is Finish.END_TOKEN else FinishReason.LENGTH
            job.tell(Piece(text + job.stops.finish(), ended))
        else:
            job.tell(Piece(text))

    def _close(self, job: Job) -> None:
        with self._lock:
            job.is_over = True
            self._open.pop(job.name, None)

    def _end(self, end: BatchResult | DeadBatch) -> None:
        why = f"{end.reason}: {end.detail}" if isinstance(end, DeadBatch) else "it was stopped"
        for job in self._jobs_of(end.batch):
            self._fail(job, why)

    def abort(self, detail: str) -> None:
        """Tell every request that is left that nothing more will come; from any thread.

        :meth:`run` then returns.
        """
        with self._lock:
            left = [*self._open.values(), *self._waiting]
            self._open.clear()
            self._waiting.clear()
            self._closed = True
            for job in left:
                job.is_over = True
        for job in left:
            if job.batch is not None:
                self._pipeline.stop(job.batch, (job.row,))
            job.tell(Piece("", FinishReason.FAILED, detail))
        self._pipeline.wake()


def _text_of(job: Job, token: int, finish: Finish) -> str:
    """What a token adds to a request's text."""
    text = "" if finish is Finish.END_TOKEN else job.stream.add(token)
    if finish:
        text += job.stream.finish()
    return job.stops.add(text)
