"""Opens a graph in onnxruntime the same way everywhere: in a stage, and where a plan is measured.

The weights file is the graph's external data, so onnxruntime maps it; no byte is copied in Python.
"""

from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime

from contract.errors import EngineError

Session = onnxruntime.InferenceSession
"""A graph that is loaded."""


def engine_version() -> str:
    """Of onnxruntime."""
    return str(onnxruntime.__version__)


def session_options(threads: int, prepack: bool = True) -> onnxruntime.SessionOptions:
    """Options for one inference at a time on ``threads`` threads that sleep when idle.

    ``prepack=False`` keeps one copy of the weights instead of two, at a cost in speed.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # A spinning pool takes the core that the network thread, or another stage, needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # One allocation for each weight instead of an arena that doubles: a quarter less memory.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def open_session(
    graph: Path | bytes, threads: int, prepack: bool = True
) -> onnxruntime.InferenceSession:
    """A session for a graph file (with its external data beside it) or for a graph in memory.

    Raises:
        EngineError: onnxruntime cannot load the graph.
    """
    return open_with(graph, session_options(threads, prepack))


def open_with(
    graph: Path | bytes, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    """The same with options of one's own.

    Raises:
        EngineError: onnxruntime cannot load the graph.
    """
    source = str(graph) if isinstance(graph, Path) else graph
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no base below Exception
        name = graph if isinstance(graph, Path) else "graph in memory"
        raise EngineError(
            f"{name}: onnxruntime {onnxruntime.__version__} cannot load it: {error!s:.500}"
        ) from error


def run_session(
    session: onnxruntime.InferenceSession, inputs: dict[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Run once; tensors by name in and out.

    Raises:
        EngineError: onnxruntime refuses the inputs or fails inside a node.
    """
    names = [output.name for output in session.get_outputs()]
    try:
        values = session.run(names, inputs)
    except Exception as error:
        raise EngineError(f"onnxruntime failed to run: {error!s:.500}") from error
    return dict(zip(names, values, strict=True))
