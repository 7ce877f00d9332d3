"""A plan's stages as processes on a processor each, with a broker and clients beside them.

What the benchmarks of whole pipelines share. Broker and client are not pinned: on a machine that
has no more than the stages' processors they share them, and :func:`confine_to_two_cpus` makes every
machine one of that kind.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.processes import on_cpu
from bench.workers import pixels
from broker.connection import Connector
from broker.embedded import EmbeddedBroker
from client.batch import Batch, BatchResult
from client.pipeline import Pipeline
from client.settings import ClientSettings
from contract.errors import PlanError
from contract.plan import Plan, Replica, load_plan
from planner.build import build_plan
from planner.canonical import canonicalise
from planner.graph import segment_graph
from planner.importers import ImportOptions, import_model
from planner.publish import Publisher
from planner.request import PlanRequest
from shards.manifest import GRAPH_FILE

CNNS = ("mobilenet_v2", "resnet18", "resnet50", "vgg16", "alexnet", "inception_v3")
"""Those of the published system of the same kind."""
READY_TIMEOUT_S = 60.0
SHARDLINE = ("shardline",)
"""What `python -m` starts as a stage."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One model in two stages, and in one, with the folder in which both lie."""

    model: str
    pipeline: Plan
    whole: Plan
    folder: Path

    @property
    def batch(self) -> int:
        """Images in a batch."""
        return self.pipeline.batch_size

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return tuple(int(size) for size in self.pipeline.stages[0].inputs[0].shape[1:])

    @property
    def whole_graph(self) -> Path:
        """The graph of the one stage."""
        return self.folder / self.whole.name / self.whole.stages[0].folder / GRAPH_FILE

    def images(self) -> Batch:
        """A batch of the images that all sides compute."""
        (spec,) = self.pipeline.stages[0].inputs
        return Batch({spec.name: pixels(self.batch, self.shape)}, ("x",) * self.batch)


def models(value: str) -> list[str]:
    """Comma-separated models, for an option; «all» is the six CNNs."""
    return list(CNNS) if value == "all" else [part for part in value.split(",") if part]


def spec_of(model: str) -> str:
    """As `shardline plan` takes it; a bare name is torchvision's."""
    return model if ":" in model or model.endswith(".onnx") else f"torchvision:{model}"


def short_name(model: str) -> str:
    """As tables call it, and folders."""
    return model.rpartition(":")[2].rpartition("/")[2].removesuffix(".onnx")


def prepare(model: str, batch: int, folder: Path) -> Pair:
    """The model in two stages and, the same way, in one; built if it is not there yet."""
    short = short_name(model)
    names = [f"{short}-{batch}-{stages}" for stages in (2, 1)]
    if not all(_is_usable(folder / name) for name in names):
        folder.mkdir(parents=True, exist_ok=True)
        imported = import_model(spec_of(model), ImportOptions(weights="random"))
        graph = segment_graph(canonicalise(imported))
        for name, stages in zip(names, (2, 1), strict=True):
            devices = tuple(
                (Replica(device=f"{short}-{batch}-{index}".replace("_", "-").lower()),)
                for index in range(stages)
            )
            request = PlanRequest(
                name, folder, num_stages=stages, batch_size=batch, devices=devices
            )
            build_plan(imported, graph, request)
    pipeline, whole = (load_plan(folder / name) for name in names)
    return Pair(short, pipeline, whole, folder)


def _is_usable(folder: Path) -> bool:
    """Whether a plan lies there that this version reads."""
    try:
        load_plan(folder)
    except PlanError:
        return False
    return True


def start_stages(
    plan: Plan,
    folder: Path,
    broker: str,
    stack: ExitStack,
    cpus: Sequence[int] = (0, 1),
    program: Sequence[str] = SHARDLINE,
    cluster: str = "default",
    engine: str | None = None,
) -> list[psutil.Process]:
    """One stage process on each CPU, with one thread to compute; the stack ends them."""
    running = []
    for cpu, place in zip(cpus, plan.placement, strict=False):
        command = [sys.executable, "-m", *program, "stage", "--threads", "1"]
        command += ["--device", place.replicas[0].device, "--shards", str(folder / plan.name)]
        command += ["--broker", broker, "--cluster", cluster]
        command += [] if engine is None else ["--engine", engine]
        process = subprocess.Popen(on_cpu(cpu, command), stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        running.append(psutil.Process(process.pid))
    return running


class PinnedPipeline:
    """A broker, the stages of a plan, and the plan published. Use as a context manager."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        cpus: Sequence[int],
        *,
        program: Sequence[str] = SHARDLINE,
        cluster: str = "default",
        broker: EmbeddedBroker | None = None,
        engine: str | None = None,
    ) -> None:
        """``broker``: one that others use too; without it, one of our own."""
        self.plan, self._folder, self._cpus = plan, folder, cpus
        self._program, self._cluster, self._engine = program, cluster, engine
        self._broker = broker
        self._stack = ExitStack()

    def __enter__(self) -> "PinnedPipeline":
        try:
            self.broker = self._broker or self._stack.enter_context(EmbeddedBroker())
            self.connect = Connector(self.broker.address)
            self.stages = start_stages(
                self.plan,
                self._folder,
                str(self.broker.address),
                self._stack,
                self._cpus,
                self._program,
                self._cluster,
                self._engine,
            )
            with Publisher(self.connect, self._cluster, "planner") as publisher:
                publisher.publish(self.plan)
                publisher.wait_until_ready(
                    self.plan, READY_TIMEOUT_S, lambda _step, _fraction: None
                )
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    @property
    def pids(self) -> list[int]:
        """Of the stages."""
        return [stage.pid for stage in self.stages]

    @property
    def watched(self) -> dict[str, psutil.Process]:
        """Every process that takes part, by name; this one is the client."""
        found = {f"stage {index}": stage for index, stage in enumerate(self.stages)}
        return found | {"broker": psutil.Process(self.broker.pid), "client": psutil.Process()}

    def client(self, settings: ClientSettings) -> Pipeline:
        """A client that is ready to feed; closed with us."""
        pipeline = self._stack.enter_context(Pipeline(settings, self.connect))
        pipeline.open()
        return pipeline


def run_pipeline(
    pipeline: Pipeline, batch: Batch, seconds: float
) -> tuple[float, list[BatchResult]]:
    """Images per second over ``seconds`` of full window, the last results included; all results.

    Raises:
        RuntimeError: a batch was given up.
    """

    def work() -> Iterator[Batch]:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            yield batch

    started = time.perf_counter()
    ends = list(pipeline.run(work()))
    results = [end for end in ends if isinstance(end, BatchResult)]
    if len(results) < len(ends):
        raise RuntimeError(f"{len(ends) - len(results)} batches were given up")
    return len(results) * batch.images / (time.perf_counter() - started), results
