"""Timed batches as a Chrome trace: opens in Perfetto and in chrome://tracing. Pure.

By the Trace Event Format, to which perfetto.dev's page "Visualizing external trace formats" leads:
a process for each device and for the client, a thread for each kind of part. Slices (``X``) of one
thread must not overlap, and those of several batches do: each kind has as many threads as it needs.
An arrow (flow events ``s``, ``t``, ``f`` of one id) leads along each batch; each of its points lies
at the beginning of a slice, which comes before it in the file.
"""

from collections.abc import Sequence
from typing import Any

from client.trace_parts import Part, PartKind, TimedBatch

Event = dict[str, Any]

_KINDS = tuple(PartKind)
_MAX_LANES = 1000
"""Threads that a kind may have: their numbers must not meet those of the next kind."""


class _Processes:
    """Numbers of processes and threads, and the events that name them."""

    def __init__(self, client: str) -> None:
        self._client = client
        self._pids: dict[str | None, int] = {}
        self._lanes: dict[tuple[int, PartKind], list[int]] = {}
        self.names: list[Event] = []

    def place(self, part: Part) -> tuple[int, int]:
        """The process and thread of a part. Parts must come in the order in which they begin."""
        pid = self._pid(part)
        lanes = self._lanes.setdefault((pid, part.kind), [])
        free = (i for i, end_us in enumerate(lanes) if end_us <= part.begin_us)
        lane = next(free, len(lanes))
        if lane == len(lanes):
            lanes.append(part.end_us)
            self._name_thread(pid, part.kind, lane)
        lanes[lane] = part.end_us
        return pid, self._tid(pid, part.kind, lane)

    @staticmethod
    def _tid(pid: int, kind: PartKind, lane: int) -> int:
        """One of its own in the whole file: not every reader keeps those of two processes apart."""
        return (pid * len(_KINDS) + _KINDS.index(kind)) * _MAX_LANES + lane + 1

    def _pid(self, part: Part) -> int:
        if part.device not in self._pids:
            pid = self._pids[part.device] = len(self._pids) + 1
            name = f"client {self._client}"
            order = -1
            if part.device is not None:
                name, order = f"stage {part.stage_index}: {part.device}", part.stage_index or 0
            self._name(pid, 0, "process_name", {"name": name})
            self._name(pid, 0, "process_sort_index", {"sort_index": order})
        return self._pids[part.device]

    def _name_thread(self, pid: int, kind: PartKind, lane: int) -> None:
        tid = self._tid(pid, kind, lane)
        name = f"{kind}{f' {lane + 1}' if lane else ''}"
        self._name(pid, tid, "thread_name", {"name": name})
        self._name(pid, tid, "thread_sort_index", {"sort_index": tid})

    def _name(self, pid: int, tid: int, what: str, args: dict[str, Any]) -> None:
        self.names.append({"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": args})


def chrome_trace(batches: Sequence[TimedBatch], client: str) -> dict[str, Any]:
    """The whole document, for :func:`json.dumps`. Times count from the first batch, in µs.

    ``otherData`` says when that was, by the client's Unix clock.
    """
    zero_us = min((batch.trace.queued_us for batch in batches), default=0)
    processes = _Processes(client)
    timed = sorted(
        ((part, number) for number, batch in enumerate(batches) for part in batch.parts),
        key=lambda pair: (pair[0].begin_us, pair[1]),
    )
    slices: list[Event] = []
    points: dict[int, dict[int, Event]] = {number: {} for number in range(len(batches))}
    for part, number in timed:
        if not part.length_us:
            continue  # a slice without a length has no place for an arrow, and cannot be seen
        pid, tid = processes.place(part)
        event = _slice(part, batches[number], pid, tid, zero_us)
        slices.append(event)
        # One point in each process: the longest slice. The client has two, its first and its last.
        place = pid if part.kind is not PartKind.TRANSFER or part.device is not None else 0
        before = points[number].get(place)
        if before is None or event["dur"] > before["dur"]:
            points[number][place] = event
    arrows = [
        event
        for number in range(len(batches))
        for event in _arrow(number + 1, list(points[number].values()))
    ]
    # At one moment slices come first: an arrow's point is bound to the slice that is open then.
    events = sorted([*slices, *arrows], key=lambda e: (e["ts"], e["ph"] != "X"))
    return {
        "traceEvents": [*processes.names, *events],
        "displayTimeUnit": "ms",
        "otherData": {"client": client, "begin_unix_us": str(zero_us)},
    }


def _slice(part: Part, batch: TimedBatch, pid: int, tid: int, zero_us: int) -> Event:
    trace = batch.trace
    args: dict[str, Any] = {"batch": f"{trace.epoch}:{trace.seq}", "images": trace.images}
    if part.uncertainty_us:
        args["uncertainty_us"] = part.uncertainty_us
    return {
        "ph": "X",
        "name": f"{part.kind} {trace.seq}",
        "cat": str(part.kind),
        "pid": pid,
        "tid": tid,
        "ts": part.begin_us - zero_us,
        "dur": part.length_us,
        "args": args,
    }


def _arrow(flow: int, slices: Sequence[Event]) -> list[Event]:
    """Flow events through these slices, in the order of time.

    ``flow`` is unique in the file. A number: Perfetto takes no other word for an id.
    """
    if len(slices) < 2:
        return []
    ordered = sorted(slices, key=lambda event: event["ts"])
    events = []
    for index, event in enumerate(ordered):
        phase = "s" if index == 0 else "f" if index + 1 == len(ordered) else "t"
        point: Event = {
            "ph": phase,
            "name": "batch",
            "cat": "batch",
            "id": flow,
            "pid": event["pid"],
            "tid": event["tid"],
            "ts": event["ts"],
        }
        if phase == "f":
            point["bp"] = "e"  # bound to the slice around it, not to the next one
        events.append(point)
    return events
