"""Reads a file of torch weights (.safetensors, .pth, .pt) and loads it into a module."""

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from contract.errors import WeightsError
from planner.importers.imported_model import ImportOptions
from shards.weights_file import read_metadata

T = TypeVar("T")
SHOWN = 3  # mismatching names in an error: enough to recognise the pattern


class WeightsFile(NamedTuple):
    """A file of weights, and what it says of the model: options with its defaults filled in."""

    path: Path
    options: ImportOptions
    labels: tuple[str, ...]

    @property
    def provenance(self) -> str:
        """The file's name and the beginning of its hash, as the plan records it."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{self.path.name} (sha256 {digest[:16]})"


def open_weights(options: ImportOptions) -> WeightsFile:
    """Check that ``options.weights`` is a weights file and read what its metadata says.

    A .safetensors file may carry ``model_args`` (JSON object), ``input`` (``32x32``), ``mean``,
    ``std`` and ``labels`` (JSON lists); options that are set go before them.

    Raises:
        WeightsError: no such file, another kind of file, or metadata that cannot be read.
    """
    path = Path(options.weights)
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such weights file; expected DEFAULT, random, or a path to a .safetensors "
            "or .pth file"
        )
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise WeightsError(
            f"{path}: expected a file ending in .safetensors, .pth or .pt, got {path.suffix!r}"
        )
    metadata = read_metadata(path) if path.suffix == ".safetensors" else {}
    model_args = _parse(path, metadata, "model_args", _object) or {}
    return WeightsFile(
        path,
        replace(
            options,
            model_args={**model_args, **options.model_args},
            input_size=options.input_size or _parse(path, metadata, "input", _size),
            mean=options.mean or _parse(path, metadata, "mean", _floats),
            std=options.std or _parse(path, metadata, "std", _floats),
        ),
        _parse(path, metadata, "labels", _strings) or (),
    )


def load_weights(module: nn.Module, path: Path) -> None:
    """Load ``path`` into ``module``; every name and shape must agree.

    Raises:
        WeightsError: the file cannot be read, or holds other tensors than the model has.
    """
    state = _read(path)
    expected = module.state_dict()
    optional = {name for name in expected if name.endswith(".num_batches_tracked")}
    missing = [name for name in expected if name not in state and name not in optional]
    unknown = [name for name in state if name not in expected]
    wrong = [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {kind} ({'; '.join(names[:SHOWN])}{'; …' if len(names) > SHOWN else ''})"
        for kind, names in (
            ("tensors missing", missing),
            ("tensors unknown to the model", unknown),
            ("tensors of another shape", wrong),
        )
        if names
    ]
    if problems:
        remedy = "use the weights of this very model"
        if wrong and not missing and not unknown:
            remedy = (
                "if the model was trained for another number of classes, say --num-classes N; "
                "for another width or depth, --model-arg NAME=VALUE"
            )
        raise WeightsError(f"{path}: does not fit the model: {', '.join(problems)}; {remedy}")
    module.load_state_dict(state, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # weights_only: a checkpoint must not be able to run code here.
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: not a file of weights alone, or corrupt ({_first_line(error)}); save it "
            "again with `torch.save(model.state_dict(), FILE)`"
        ) from error
    except Exception as error:  # torch and safetensors raise a dozen kinds for a broken file
        raise WeightsError(
            f"{path}: cannot be read, it is corrupt or truncated ({_first_line(error)}); copy or "
            "download it again"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # the customary wrapper of training scripts
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(
            f"{path}: expected a state dict (names to tensors), got {type(state).__name__}; save "
            "it again with `torch.save(model.state_dict(), FILE)`"
        )
    return {str(name): value for name, value in state.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _parse(path: Path, metadata: Mapping[str, str], key: str, read: Callable[[str], T]) -> T | None:
    if key not in metadata:
        return None
    try:
        return read(metadata[key])
    except (ValueError, TypeError) as error:
        raise WeightsError(
            f"{path}: its metadata says {key}={metadata[key]!r:.80}, which cannot be read ({error})"
        ) from error


def _object(text: str) -> dict[str, int | float | bool | str]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError("expected a JSON object")
    return value


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(value) for value in json.loads(text))


def _strings(text: str) -> tuple[str, ...]:
    return tuple(str(value) for value in json.loads(text))


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width)
