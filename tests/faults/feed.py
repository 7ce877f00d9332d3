"""Feeds numbered batches into a pipeline under test, injects one fault meanwhile, and counts."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from client.batch import Batch, BatchResult, Ended
from tests.faults.known_answers import is_right, made_of, numbered_batches
from tests.faults.pipeline_under_test import Site
from tests.faults.row import Figures, Trial

BATCHES_AFTER = 20
"""Fed once the fault is over: the pipeline must work again, not only end what it had."""
MOST_BATCHES = 50_000


class HungError(Exception):
    """No result for as long as the setup's patience."""


class Feed:
    """One trial's run. The fault strikes from a thread of its own once some results are there."""

    def __init__(
        self,
        site: Site,
        trial: Trial,
        inject: Callable[[], None],
        *,
        stage_index: int | None = -1,
        from_heal: bool = False,
        batches: Iterable[Batch] | None = None,
        plan_seeds: tuple[int, ...] | None = None,
        begin_at_once: bool = False,
        may_die: Callable[[Batch], bool] = lambda _batch: False,
        give_up: Callable[[], str] = lambda: "",
    ) -> None:
        """Args:
        stage_index: the stage whose work shows that the pipeline has recovered; None: only a batch
            that was submitted after the fault does.
        from_heal: recovery counts from the end of ``inject``, not from its start.
        batches: instead of numbered ones.
        may_die: batches that end dead rather than with a result.
        give_up: a reason to stop feeding at once, if there is one.
        """
        self._site, self._trial, self._inject = site, trial, inject
        self._stage_index, self._from_heal = stage_index, from_heal
        self._seeds = plan_seeds or site.setup.plan_seeds
        self._batches = iter(batches or numbered_batches(trial.seed, self._seeds))
        self._may_die, self._give_up = may_die, give_up
        least = site.setup.least_batches
        self._strike_after = 0 if begin_at_once else trial.random.randint(least // 6, least // 2)
        self._pause_s = trial.random.uniform(0.0, 0.02)
        self._strike, self._over = threading.Event(), threading.Event()
        self._injected_at = self._healed_at = self._injected_wall = 0.0
        self._error: BaseException | None = None
        self._submitted: dict[str, Batch] = {}
        self._ends: Counter[str] = Counter()
        self.figures = Figures()
        self._last_result = time.monotonic()
        self.next_result_s: float | None = None
        self.in_flight_s: float | None = None
        self._in_flight: set[str] | None = None
        self.most_in_flight = 0
        self.order: list[Ended] = []

    def run(self) -> Figures:
        """Feed until the fault is over and everything has ended, or it has hung.

        Raises:
            Exception: the fault could not be injected.
        """
        site, figures, pipeline = self._site, self.figures, self._site.pipeline
        before, computed = pipeline.counts(), len(site.computes())
        injector = threading.Thread(target=self._run_injection, name="injector", daemon=True)
        injector.start()
        started = self._last_result = time.monotonic()
        pipeline.on_metrics = lambda _metrics: self._look()
        try:
            for end in pipeline.run(self._source()):
                self._take(end)
        except HungError as error:
            site.is_broken = True
            figures.problems.append(f"hung: {error}")
        finally:
            pipeline.on_metrics = lambda _metrics: None
            self._strike.set()
            injector.join(timeout=120)
        if self._error is not None:
            raise self._error
        counts = pipeline.counts()
        figures.seconds = time.monotonic() - started
        figures.batches = len(self._submitted)
        figures.missing = self._missing()
        figures.duplicates = sum(count - 1 for count in self._ends.values())
        figures.dropped = counts.duplicates_dropped - before.duplicates_dropped
        figures.retried = counts.retried - before.retried
        lines = site.computes()[computed:]
        figures.computed_twice = len(lines) - len(set(lines))
        figures.stage_bytes = max(child.peak_bytes for child in site.stages.values())
        figures.broker_bytes = site.broker.peak_bytes
        if not figures.injected:
            figures.error = "the fault did not strike"
        return figures

    def _missing(self) -> int:
        return len(self._submitted.keys() - self._ends.keys())

    def _source(self) -> Iterator[Batch]:
        least = self._site.setup.least_batches
        for number, batch in enumerate(islice(self._batches, MOST_BATCHES)):
            if number >= least and self._over.is_set():
                break
            self._submitted[batch.names[0]] = batch
            yield batch
            self.most_in_flight = max(self.most_in_flight, self._site.pipeline.counts().in_flight)
        for batch in islice(self._batches, BATCHES_AFTER):
            self._submitted[batch.names[0]] = batch
            yield batch

    def _take(self, end: Ended) -> None:
        now = time.monotonic()
        self._last_result = now
        name = end.batch.names[0]
        self._ends[name] += 1
        self.order.append(end)
        self._note_flight(name, now)
        if isinstance(end, BatchResult):
            self.figures.results += 1
            if self._submitted.get(name) is not end.batch or not is_right(end, self._seeds):
                self.figures.wrong += 1
                self.figures.note = (
                    f"{end.batch_id} by {end.route}, attempt {end.attempt}: "
                    f"{made_of(end, self._seeds)}"
                )
            self._note_recovery(end, now)
        else:
            self.figures.dead += 1
            if not self._may_die(end.batch):
                self.figures.problems.append(f"dead: {end.reason}: {end.detail:.80}")
        if len(self.order) >= self._strike_after:
            self._strike.set()

    def _note_flight(self, name: str, now: float) -> None:
        """The next result of all, and the last of those that were in flight at the fault."""
        if self._in_flight is None:
            return
        if self.next_result_s is None:
            self.next_result_s = now - self._injected_at
        self._in_flight.discard(name)
        if not self._in_flight and self.in_flight_s is None:
            self.in_flight_s = now - self._injected_at

    def _note_recovery(self, end: BatchResult, now: float) -> None:
        if self.figures.recovery_s is not None or not self._injected_at or not end.hops:
            return
        if self._from_heal and not self._healed_at:
            return
        since = self._healed_at if self._from_heal else self._injected_at
        if self._from_heal or self._is_new(end, now):
            self.figures.recovery_s = max(0.0, now - since)

    def _is_new(self, end: BatchResult, now: float) -> bool:
        """Whether this batch needed what had failed."""
        if self._stage_index is None:
            return now - end.latency_ms / 1000 >= self._injected_at
        return end.hops[self._stage_index].started_us / 1e6 >= self._injected_wall

    def _look(self) -> None:
        """Once a second, on the client's thread."""
        reason = self._give_up()
        if reason:
            raise HungError(reason)
        waited_s = time.monotonic() - self._last_result
        if waited_s > self._site.setup.patience_s and (
            self._over.is_set() or waited_s > 10 * self._site.setup.patience_s
        ):
            raise HungError(f"no result for {waited_s:.0f} s")

    def _run_injection(self) -> None:
        if self._strike_after:
            self._strike.wait()
        time.sleep(self._pause_s)
        try:
            self._inject()
        except BaseException as error:  # noqa: BLE001 told by the thread that runs the trial
            self._error = error
        self._healed_at = self._last_result = time.monotonic()
        self._over.set()

    def struck(self, count: int = 1) -> None:
        """The fault was injected (so many times)."""
        if not self.figures.injected:
            self._begin_to_count()
        self.figures.injected += count

    def _begin_to_count(self) -> None:
        """From here on, results tell of recovery."""
        in_flight = frozenset(list(self._submitted)).difference(list(self._ends))
        self._injected_wall, self._injected_at = time.time(), time.monotonic()
        self._in_flight = set(in_flight)
