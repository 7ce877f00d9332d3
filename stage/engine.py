"""The seam to whatever executes a shard: one method, and a table from name to class.

Only the chosen engine is imported: a stage must not pay for torch when it runs onnxruntime.
"""

import importlib
from typing import Protocol, cast

from contract.errors import EngineError, SettingsError
from contract.tensor_spec import Tensors
from shards.reader import Shard

ENGINES = {
    "onnxruntime": "stage.engines.onnx_runtime:OnnxRuntimeEngine",
    "torch": "stage.engines.torch_eager:TorchEngine",
    "identity": "stage.engines.identity:IdentityEngine",
}


class Engine(Protocol):
    """Executes one shard. Made by its class with ``(shard, threads, prepack)``.

    The constructor raises :class:`EngineError` when it cannot load the shard. An engine owns what
    it loads until :meth:`close`, and is used by one thread.
    """

    name: str
    version: str

    def run(self, inputs: Tensors) -> Tensors:
        """Outputs by name, for inputs by name; shapes and dtypes are those of the plan.

        Must not change ``inputs`` (they are read-only views of a message) and must give the same
        answer each time: two attempts of one batch may both arrive.

        Raises:
            EngineError: this batch cannot be run; the engine stays usable.
        """
        ...

    def close(self) -> None:
        """Release the shard's memory."""
        ...


class EngineClass(Protocol):
    """What an entry of :data:`ENGINES` names."""

    def __call__(self, shard: Shard, threads: int, prepack: bool) -> Engine:
        """Load the shard."""
        ...


def load_engine(name: str, shard: Shard, threads: int, prepack: bool = True) -> Engine:
    """Import the engine called ``name`` and let it load ``shard``.

    Raises:
        SettingsError: no engine of that name.
        EngineError: its package is not installed, or it cannot load the shard.
    """
    return engine_class(name)(shard, threads, prepack)


def engine_class(name: str) -> EngineClass:
    """Import an engine by name.

    Raises:
        SettingsError: no engine of that name.
        EngineError: its package is not installed.
    """
    if name not in ENGINES:
        raise SettingsError(f"engine {name!r}: expected one of {', '.join(ENGINES)}")
    module, _, attribute = ENGINES[name].partition(":")
    try:
        return cast(EngineClass, getattr(importlib.import_module(module), attribute))
    except ImportError as error:
        raise EngineError(
            f"engine {name}: {error}; install its package on this device, "
            "or use --engine onnxruntime"
        ) from error
