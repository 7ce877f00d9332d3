"""Behind `shardline metrics`: listens until it is told to stop, and prints, records or serves."""

import json
import queue
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from broker.transport import Connect, Delivery
from client.home_assistant.announcer import Announcer, Told
from client.records.recorder import MAX_WAITING, Recorded, Recorder
from client.watch.kept import BROKER_TOPICS
from client.watch.observer import Observer
from client.watch.view import ClusterView
from contract import topics
from contract.errors import EnvironmentMissingError
from shardline.console import err, print_json
from shardline.metrics_line import line_of

SECOND_S = 1.0
_LOOK_S = 0.25
"""Between two looks at whether to stop."""
_SHOWN = ("metrics", "pipeline_metrics", "trace")

GoesOn = Callable[[], bool]


class Wanted(NamedTuple):
    """What `shardline metrics` is to do with what it hears."""

    folder: Path | None = None
    profile: Path | None = None
    append: bool = False
    prometheus: str | None = None
    as_json: bool = False
    seconds: float | None = None


@contextmanager
def until_told(seconds: float | None) -> Iterator[GoesOn]:
    """Whether to go on: until SIGTERM, Ctrl-C, or the time is up."""
    told: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        told.append(number)

    ends = None if seconds is None else time.monotonic() + seconds
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: not told and (ends is None or time.monotonic() < ends)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(line: str) -> None:
    """At once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class _JsonLines:
    """Prints every message of metrics as it comes, with its topic."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Delivery] = queue.Queue(MAX_WAITING)

    def hear(self, delivery: Delivery) -> None:
        if delivery.topic in BROKER_TOPICS:
            return
        if topics.parse_topic(delivery.topic).kind in _SHOWN:
            with suppress(queue.Full):  # whoever reads our output is slower than the cluster
                self._waiting.put_nowait(delivery)

    def work(self, timeout_s: float) -> None:
        try:
            heard = self._waiting.get(timeout=timeout_s)
        except queue.Empty:
            return
        # Written anew, with escapes: a terminal must not obey what is in a message.
        _write(json.dumps({"topic": heard.topic, "message": json.loads(heard.payload)}))


class _Lines:
    """Prints one line a second."""

    def __init__(self) -> None:
        self._next = time.monotonic() + SECOND_S

    def show(self, view: ClusterView) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = max(self._next + SECOND_S, now)
            _write(line_of(view, time.strftime("%H:%M:%S")))


def watch(connect: Connect, cluster: str, name: str, wanted: Wanted) -> None:
    """Listen to a cluster as an observer, until told to stop.

    Raises:
        SettingsError: a file or an address cannot be used.
        EnvironmentMissingError: Prometheus' library is not installed.
        BrokerUnreachableError, NotAuthorisedError: no connection at first.
    """
    with ExitStack() as stack:
        if wanted.folder is not None or wanted.profile is not None:
            _record(stack, connect, cluster, name, wanted)
            return
        as_it_comes = _JsonLines() if wanted.as_json and wanted.prometheus is None else None
        hear = None if as_it_comes is None else as_it_comes.hear
        observer = stack.enter_context(Observer(connect, cluster, name, on_heard=hear))
        lines = _Lines() if as_it_comes is None and wanted.prometheus is None else None
        _serve(stack, wanted.prometheus, observer)
        goes_on = stack.enter_context(until_told(wanted.seconds))
        while goes_on():
            if as_it_comes is not None:
                as_it_comes.work(_LOOK_S)
            else:
                time.sleep(_LOOK_S)
            view = observer.view()
            if lines is not None:
                lines.show(view)


def _record(stack: ExitStack, connect: Connect, cluster: str, name: str, wanted: Wanted) -> None:
    recorder = stack.enter_context(
        Recorder(cluster, folder=wanted.folder, profile=wanted.profile, append=wanted.append)
    )
    observer = stack.enter_context(Observer(connect, cluster, name, on_heard=recorder.hear))
    _serve(stack, wanted.prometheus, observer)
    recorder.open()  # not before: without a broker there is nothing to record
    goes_on = stack.enter_context(until_told(wanted.seconds))
    places = ", ".join(str(place) for place in (wanted.folder, wanted.profile) if place)
    err.print(f"recording to {places}; stop it with Ctrl-C", markup=False, soft_wrap=True)
    try:
        while goes_on():
            recorder.work(_LOOK_S)
            observer.view()  # raises what trying again does not mend
    finally:
        recorded = recorder.finish()
    if wanted.as_json:
        print_json(recorded._asdict())
    else:
        _write(summary(recorded))


def summary(recorded: Recorded) -> str:
    """A recording in a sentence."""
    lost = f"; {recorded.unrecorded} could not be recorded" if recorded.unrecorded else ""
    return (
        f"recorded {recorded.seconds:.0f} s: {recorded.batches:,} batches, "
        f"{recorded.pipeline_rows:,} rows of the pipeline, {recorded.devices} devices, "
        f"{recorded.plans} plans{lost}"
    )


def _serve(stack: ExitStack, listen: str | None, observer: Observer) -> None:
    if listen is None:
        return
    try:
        from client.records.exposition import serving
    except ImportError as error:
        if error.name != "prometheus_client":
            raise
        raise EnvironmentMissingError(
            "prometheus_client is not installed: --prometheus needs it, nothing else does; "
            "pip install 'shardline[watch]'"
        ) from error
    address = stack.enter_context(serving(listen, observer.view))
    err.print(f"Prometheus finds metrics at {address}", markup=False, soft_wrap=True)


def announce(connect: Connect, cluster: str, name: str, seconds: float | None) -> None:
    """Tell Home Assistant of a cluster, and of what is new in it, until told to stop.

    Raises:
        BrokerUnreachableError: no connection at first.
        NotAuthorisedError: no connection, or the user may not write discovery messages.
    """
    with Announcer(connect, cluster, name) as announcer, until_told(seconds) as goes_on:
        while goes_on():
            time.sleep(_LOOK_S)
            if announcer.has_settled():
                _tell(announcer.announce())


def withdraw(connect: Connect, cluster: str, name: str) -> None:
    """Take back all that Home Assistant was told of a cluster.

    Raises:
        BrokerUnreachableError: no connection.
        NotAuthorisedError: no connection, or the user may not write discovery messages.
    """
    with Announcer(connect, cluster, name) as announcer:
        while not announcer.has_settled():
            time.sleep(_LOOK_S)
        _tell(announcer.withdraw())


def _tell(told: Told) -> None:
    for word, found in (("announced", told.announced), ("removed", told.cleared)):
        if found:
            _write(f"{word}: {', '.join(topic.split('/')[-2] for topic in found)}")
