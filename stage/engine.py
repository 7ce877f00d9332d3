"""The seam to whatever executes a shard: one method, and a table from name to class.

Only the chosen engine is imported: a stage must not pay for torch when it runs onnxruntime.
"""

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

from contract.decoder import CacheSpec, Decoding
from contract.errors import EngineError, SettingsError
from contract.tensor_spec import Tensors
from shards.reader import Shard

ENGINES = {
    "onnxruntime": "stage.engines.onnx_runtime:OnnxRuntimeEngine",
    "torch": "stage.engines.torch_eager:TorchEngine",
    "identity": "stage.engines.identity:IdentityEngine",
}
DECODERS = {
    "onnxruntime": "stage.engines.onnx_decoder:OnnxDecoderEngine",
}
"""Those that run shards of language models."""


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


class CacheBlock(Protocol):
    """Memory of an engine for the keys and values of so many sequences, of its stage's layers."""

    rows: int
    size_bytes: int


class DecoderEngine(Protocol):
    """Executes one shard of a language model. Used by one thread, as an :class:`Engine` is.

    Made by its class with ``(shard, cache, decoding, threads, prepack)``.
    """

    name: str
    version: str

    def allocate(self, rows: int) -> CacheBlock:
        """Memory for ``rows`` sequences; whoever lets it go frees it, and may use it again.

        Raises:
            EngineError: there is not so much memory.
        """
        ...

    def step(self, block: Any, inputs: Tensors, position: int) -> Tensors:
        """Compute the tokens of ``inputs`` behind the first ``position`` ones of ``block``.

        Args:
            block: from :meth:`allocate`, with as many rows as the inputs have.
            inputs: ``token_ids`` int64 (rows, tokens) or the hidden state float32 (rows, tokens,
                hidden), whichever the stage takes. They are not changed.
            position: how many tokens the block holds; what lay behind them is written over.

        Returns:
            The hidden state, or ``logits`` float32 (rows, vocabulary) of the last token. It may be
            the same memory at the next step.

        Raises:
            EngineError: this step cannot be run. The block holds ``position`` tokens as before.
        """
        ...

    def close(self) -> None:
        """Release the shard's memory."""
        ...


class DecoderClass(Protocol):
    """What an entry of :data:`DECODERS` names."""

    def __call__(
        self, shard: Shard, cache: CacheSpec, decoding: Decoding, threads: int, prepack: bool
    ) -> DecoderEngine:
        """Load the shard."""
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


def load_decoder(
    name: str,
    shard: Shard,
    cache: CacheSpec,
    decoding: Decoding,
    threads: int,
    prepack: bool = True,
) -> DecoderEngine:
    """The same for a shard of a language model, whose caches are as ``cache`` says.

    Raises:
        SettingsError: no engine of that name.
        EngineError: the engine runs no language models, its package is not installed, or it cannot
            load the shard.
    """
    if name in ENGINES and name not in DECODERS:
        raise EngineError(
            f"engine {name}: it runs no language models; start this device with --engine "
            f"{' or '.join(DECODERS)}"
        )
    return cast(DecoderClass, _import(name, DECODERS))(shard, cache, decoding, threads, prepack)


def engine_class(name: str) -> EngineClass:
    """Import an engine by name.

    Raises:
        SettingsError: no engine of that name.
        EngineError: its package is not installed.
    """
    return cast(EngineClass, _import(name, ENGINES))


def _import(name: str, table: Mapping[str, str]) -> Any:
    if name not in ENGINES:
        raise SettingsError(f"engine {name!r}: expected one of {', '.join(ENGINES)}")
    module, _, attribute = table[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise EngineError(
            f"engine {name}: {error}; install its package on this device, "
            "or use --engine onnxruntime"
        ) from error
