"""Perplexity of a whole model on a text: what quantised weights cost, against transformers' own.

exp of the mean negative log-likelihood of each token, given those before it in its window; windows
follow each other without overlap. Both models see the same windows, one block in memory at a time.
Without a tokenizer there is no text: random tokens show no more than that the two are alike.
"""

import importlib.resources
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from contract.decoder import Quantisation, TextVerification
from contract.errors import (
    EnvironmentMissingError,
    ModelError,
    SettingsError,
    VerificationError,
)
from contract.tensor_spec import TOKENS, TensorSpec
from planner.graph import SegmentedGraph
from planner.importers.transformers_directory import ImportedDecoder
from planner.language.reference import StreamedReference
from planner.language.run_shards import open_block
from planner.language.state import LAST_INDEX
from planner.onnx_graph import Array
from planner.progress import Progress, silent
from planner.split import StageGraph, take_stage

WINDOW_TOKENS = 128
MAX_WINDOWS = 16
MADE_UP_WINDOWS = 4
SEED = 20_002
MOST_WORSE: Mapping[Quantisation, float] = {"int8": 2.0, "int4": 10.0}
"""The perplexity may change by so many times, up or down: far more than quantisation costs, less
than a model that is another one."""
LOGITS_BYTES = 64 * 1024 * 1024
"""About as many bytes of logits are in memory at once; at least those of one window."""
TOKENIZER_JSON = "tokenizer.json"
_FIRST_AXIS = "shardline/first_axis"


def verify_on_text(
    imported: ImportedDecoder,
    graph: SegmentedGraph,
    text: str | None,
    threads: int,
    progress: Progress = silent,
) -> TextVerification:
    """The perplexity before and after, on a text, or on random tokens where none can be read.

    Args:
        imported: the model as it was.
        graph: its canonical form, quantised.
        text: None takes a part of this project's documentation, or random tokens where the model's
            folder has no tokenizer.
        threads: of the engine.
        progress: called as the work advances.

    Raises:
        SettingsError: the text is too short, or there is no tokenizer for it.
        ModelError: the tokenizer cannot be read or does not fit the model.
        VerificationError: see :func:`check_change`.
    """
    decoding = graph.model.decoding
    assert decoding is not None
    path, length = imported.folder / TOKENIZER_JSON, min(WINDOW_TOKENS, decoding.context_tokens)
    if text is not None:
        check_tokenizer(imported.folder)
    made_up = not path.is_file()
    if made_up:
        ids = made_up_tokens(imported.facts.vocabulary_size, MADE_UP_WINDOWS * length)
    else:
        ids = _encode(path, default_text() if text is None else text)
    if ids and max(ids) >= imported.facts.vocabulary_size:
        raise ModelError(
            f"{path}: gives token {max(ids)}, the model knows {imported.facts.vocabulary_size:,}; "
            "use the tokenizer that belongs to the model"
        )
    windows = windows_of(ids, length)
    progress("measuring the perplexity", 0.0)
    before = perplexity_of_reference(imported, windows)
    progress("measuring the perplexity", 0.5)
    after = perplexity_of_graph(graph, windows, threads)
    progress("measuring the perplexity", 1.0)
    check_change(imported.name, decoding.quantisation, before, after)
    return TextVerification(
        tokens=windows.size - len(windows),  # the first of a window is not predicted
        perplexity=before,
        perplexity_quantised=after,
        made_up=made_up,
    )


def check_tokenizer(folder: Path) -> None:
    """Whether a text can be turned into the model's tokens.

    Raises:
        SettingsError: the model's folder has no tokenizer.
    """
    if not (folder / TOKENIZER_JSON).is_file():
        raise SettingsError(
            f"--text: {folder} has no {TOKENIZER_JSON} to make tokens of it; put the model's own "
            "there, or leave --text away"
        )


def check_change(name: str, quantisation: Quantisation, before: float, after: float) -> None:
    """Whether the quantised model may be the same model. Pure.

    Raises:
        VerificationError: its perplexity is another one, or no number.
    """
    most = MOST_WORSE[quantisation]
    if not (before / most <= after <= before * most < math.inf):
        raise VerificationError(
            f"{name}: the perplexity in {quantisation} is {after:,.4g}, {before:,.4g} before; "
            f"expected at most {most:g} times as much or as little; nothing was written. Plan with "
            f"{'--quantise int8 or ' if quantisation == 'int4' else ''}--quantise none, and please "
            "report the model"
        )


def made_up_tokens(vocabulary_size: int, count: int) -> list[int]:
    """Random tokens, the same every time."""
    ids: list[int] = np.random.default_rng(SEED).integers(0, vocabulary_size, count).tolist()
    return ids


def default_text() -> str:
    """What ships with this package."""
    return importlib.resources.files("planner.language").joinpath("text.txt").read_text()


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        SettingsError: it cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--text {path}: cannot be read as UTF-8 text ({error})") from error


def windows_of(ids: list[int], length: int) -> Array:
    """Token ids in windows, int64 (windows, length).

    Raises:
        SettingsError: there are not enough for one window.
    """
    count = min(len(ids) // length, MAX_WINDOWS)
    if not count or length < 2:
        raise SettingsError(
            f"--text: {len(ids)} tokens, expected at least {max(length, 2)}; give a longer text"
        )
    return np.array(ids[: count * length], np.int64).reshape(count, length)


def losses_of(logits: Array, targets: Array) -> Array:
    """Negative log-likelihoods, float64 (n,), of logits (n, vocabulary) and tokens (n,). Pure."""
    largest = logits.max(-1, keepdims=True)
    total = np.exp(logits - largest).sum(-1, dtype=np.float64)
    chosen = np.take_along_axis(logits, targets[:, None], -1)[:, 0]
    result: Array = np.log(total) + largest[:, 0] - chosen
    return result


def perplexity(losses: Iterator[Array]) -> float:
    """Of all tokens together."""
    return float(np.exp(np.concatenate(list(losses)).mean()))


def perplexity_of_reference(imported: ImportedDecoder, windows: Array) -> float:
    """Of transformers' own model, in float32, on token ids (windows, length)."""
    return perplexity(_reference_losses(StreamedReference(imported), windows))


def perplexity_of_graph(graph: SegmentedGraph, windows: Array, threads: int) -> float:
    """Of the canonical model, on token ids (windows, length).

    Raises:
        EngineError: onnxruntime cannot run it.
    """
    return perplexity(_losses(graph, windows, threads))


def _encode(path: Path, text: str) -> list[int]:
    try:
        import tokenizers
    except ImportError as error:
        raise EnvironmentMissingError(
            "the package tokenizers is not installed here; measuring perplexity needs it: "
            "pip install 'shardline[planner]'"
        ) from error
    try:
        tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{path}: not a tokenizer of the tokenizers library ({error})") from error
    ids: list[int] = tokenizer.encode(text).ids
    return ids


def _reference_losses(reference: StreamedReference, windows: Array) -> Iterator[Array]:
    length = windows.shape[1]
    rows = max(1, LOGITS_BYTES // (length * reference.vocabulary_size * 4))
    for start in range(0, len(windows), rows):
        some = windows[start : start + rows]
        logits = reference.logits(some, range(length - 1))
        yield losses_of(logits.reshape(-1, logits.shape[-1]), some[:, 1:].reshape(-1))


def _losses(graph: SegmentedGraph, windows: Array, threads: int) -> Iterator[Array]:
    flows = [window[None] for window in windows]
    for index in range(graph.num_segments):
        block = take_stage(graph, index, index + 1)
        last = index + 1 == graph.num_segments
        runner = open_block(graph, all_positions(block) if last else block, threads)
        for row, window in enumerate(windows):
            flows[row] = runner.step(runner.new_caches(1), flows[row], 0)
            if last:
                yield losses_of(flows[row][:-1], window[1:])
                flows[row] = windows[:0]  # logits are large
        runner.close()


def all_positions(block: StageGraph) -> StageGraph:
    """The last stage with logits (tokens, vocabulary) of all positions of one sequence."""
    nodes: list[NodeProto] = []
    for node in block.nodes:
        if LAST_INDEX in node.input:
            nodes.append(helper.make_node("Squeeze", [node.input[0], _FIRST_AXIS], node.output[:1]))
        else:
            nodes.append(node)
    (logits,) = block.outputs
    outputs = (TensorSpec(name=logits.name, dtype="float32", shape=(TOKENS, *logits.shape[1:])),)
    axes = numpy_helper.from_array(np.array([0], np.int64), _FIRST_AXIS)
    return replace(block, nodes=tuple(nodes), inline=(*block.inline, axes), outputs=outputs)
