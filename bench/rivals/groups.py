"""The rivals' processes as seen from a benchmark: started, tuned, run in turn. Without torch.

Between their turns they are stopped: TensorPipe spins while it waits.
"""

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench.processes import awake, hold_still, wake
from bench.rivals.tuning import Setting, tune
from bench.workers import LineProcess

LOOPBACK = {"TP_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
TRANSPORTS: dict[str, tuple[list[str] | None, list[str] | None]] = {
    "tcp": (["uv"], ["basic"]),
    "shared memory": (None, None),
}
"""TensorPipe's ways, by name: what two machines have, and all it finds on one machine."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a rival computes, and on which processors its two stages do."""

    model: str
    batch: int
    cpus: tuple[int, int]
    fold: bool = False


class Group(ABC):
    """Some processes that make one pipeline. Use as a context manager; it is stopped when idle."""

    def __init__(self, module: str, job: Job, placement: Sequence[int | None], told: Any) -> None:
        """``placement``: the processor of each rank, None for both."""
        self.setting: Setting = {}
        self._stack = ExitStack()
        try:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="rival-"))
            common = {
                "store": str(Path(folder) / "store"),
                "model": job.model,
                "batch": job.batch,
                "fold": job.fold,
                **told,
            }
            self._ranks = [
                self._stack.enter_context(
                    LineProcess([module, json.dumps({**common, "rank": rank})], cpu, LOOPBACK)
                )
                for rank, cpu in enumerate(placement)
            ]
            self.pids = [rank.pid for rank in self._ranks]
            for rank in self._ranks:
                rank.hear()
            self.cuts: list[int] = self._profile()["cuts"]
        except BaseException:
            self._stack.close()
            raise
        hold_still(self.pids)

    @abstractmethod
    def _profile(self) -> dict[str, Any]: ...

    @abstractmethod
    def _use(self, setting: Setting) -> None: ...

    @abstractmethod
    def _rate(self, seconds: float) -> float: ...

    def images_per_s(self, seconds: float) -> float:
        """One turn."""
        with awake(self.pids):
            return self._rate(seconds)

    def use(self, setting: Setting) -> None:
        """From now on."""
        with awake(self.pids):
            self._use(setting)
        self.setting = setting

    def tune(self, start: Setting, choices: dict[str, Sequence[Any]], seconds: float) -> float:
        """Keep the best of these settings; its images a second."""

        def rate(setting: Setting) -> float:
            self.use(setting)
            return self.images_per_s(seconds)  # of a slow model a whole window, or a step

        best, reached = tune(start, {"cut": self.cuts, **choices}, rate)
        self.use(best)
        return reached

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        wake(self.pids)
        self._stack.close()

    def _ask(self, rank: LineProcess, do: str, **told: Any) -> dict[str, Any]:
        rank.tell(json.dumps({"do": do, **told}))
        answer: dict[str, Any] = json.loads(rank.hear())
        return answer

    def _ask_all(self, do: str, **told: Any) -> list[dict[str, Any]]:
        for rank in self._ranks:
            rank.tell(json.dumps({"do": do, **told}))
        return [json.loads(rank.hear()) for rank in self._ranks]


class RpcGroup(Group):
    """A master and two stages over PyTorch RPC."""

    def __init__(self, job: Job, transport: str) -> None:
        """Start it. ``transport``: one of :data:`TRANSPORTS`."""
        transports, channels = TRANSPORTS[transport]
        self.transport = transport
        told = {"transports": transports, "channels": channels}
        super().__init__("bench.rivals.rpc_process", job, (None, *job.cpus), told)

    def tune_all(self, seconds: float, windows: Sequence[int] = (4, 8, 16)) -> float:
        """Over layout, way, cut and window."""
        start = {"cut": self.cuts[0], "channels_last": False, "way": "push", "window": windows[1]}
        choices = {"channels_last": (True,), "way": ("pull",), "window": windows}
        return self.tune(start, choices, seconds)

    def logits(self) -> list[float]:
        """Of the first image."""
        with awake(self.pids):
            return list(self._ask(self._ranks[0], "answer")["logits"])

    def _profile(self) -> dict[str, Any]:
        return self._ask(self._ranks[0], "profile")

    def _use(self, setting: Setting) -> None:
        self._ask(self._ranks[0], "use", **setting)

    def _rate(self, seconds: float) -> float:
        return float(self._ask(self._ranks[0], "run", seconds=seconds)["images_per_s"])


class GlooGroup(Group):
    """Two ranks of `torch.distributed.pipelining`."""

    def __init__(self, job: Job) -> None:
        """Start it."""
        self._step_s: float | None = None
        super().__init__("bench.rivals.gloo_process", job, job.cpus, {})

    def tune_all(self, seconds: float, micro_batches: Sequence[int] = (4, 8, 16)) -> float:
        """Over layout, cut and micro-batches."""
        start = {"cut": self.cuts[0], "channels_last": False, "micro_batches": micro_batches[1]}
        choices = {"channels_last": (True,), "micro_batches": micro_batches}
        return self.tune(start, choices, seconds)

    def logits(self) -> list[float]:
        """Of the first image."""
        with awake(self.pids):
            return list(self._ask_all("answer")[-1]["logits"])

    def _profile(self) -> dict[str, Any]:
        return self._ask(self._ranks[0], "profile")

    def _use(self, setting: Setting) -> None:
        self._ask_all("use", **setting)
        self._step_s = None

    def _rate(self, seconds: float) -> float:
        if self._step_s is None:
            rate = self._run(1)
            if self._step_s is None or self._step_s > seconds / 2:
                return rate
        return self._run(max(1, round(seconds / self._step_s)))

    def _run(self, steps: int) -> float:
        ran = self._ask_all("run", steps=steps)
        slowest = max(one["seconds"] for one in ran)
        self._step_s = slowest / steps
        return float(ran[0]["images"] / slowest)
