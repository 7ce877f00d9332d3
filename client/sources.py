"""Where batches come from: picture files, a labelled dataset, a `.npy` file, or made-up numbers.

A source can be read from any position. It counts what it had to skip and says why, and never stops
for one bad picture.
"""

import glob
import hashlib
import logging
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from client.batch import Batch
from client.images import Pixels, image_suffixes, prepare_image, read_image
from contract.errors import PlanError, SourceError
from contract.plan import ImageInput, ModelInfo, Plan, TensorInput, TokenInput
from contract.tensor_spec import TensorSpec

log = logging.getLogger(__name__)


@dataclass
class Source:
    """Items one by one from any position on, with the number expected and what was skipped so far.

    ``identity`` tells sources with other content apart, as far as a look at names and sizes can.
    """

    read: Callable[[int], Iterator["Item"]]
    total: int
    identity: str
    skipped: list[str] = field(default_factory=list)

    @property
    def items(self) -> Iterator["Item"]:
        """All of them."""
        return self.read(0)


@dataclass(frozen=True, slots=True)
class Item:
    """One image or row: its name, its class index when known, its tensor without batch.

    ``position`` is where it is in its source, those that cannot be read included.
    """

    name: str
    label: int | None
    tensor: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
    position: int = 0


class Dataset(Protocol):
    """What torchvision's datasets offer: pictures with class indices."""

    def __len__(self) -> int:
        """How many pictures."""
        ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """One picture and its class index."""
        ...


def open_source(
    text: str, input_spec: ImageInput | TensorInput, tensor: TensorSpec, labels: Sequence[str]
) -> Source:
    """The source that ``text`` names: a folder, a glob, a file, ``FILE.npy`` or ``dummy:N``.

    ``labels`` are the model's class names, by which sub-folders of a folder become labels.

    Raises:
        SourceError: nothing there, or nothing that this model can take.
    """
    if text.startswith("dummy:"):
        return dummy_source(text.removeprefix("dummy:"), tensor)
    if text.endswith(".npy"):
        return numpy_source(Path(text), tensor)
    if not isinstance(input_spec, ImageInput):
        raise SourceError(
            f"{text}: this model takes {tensor.describe()}, not pictures; "
            "use a .npy file or dummy:N"
        )
    return image_source(find_images(text), Path(text), input_spec, labels)


def fed_input(model: ModelInfo) -> ImageInput | TensorInput:
    """What a model takes that sources feed.

    Raises:
        PlanError: it is a language model: it takes prompts.
    """
    if isinstance(model.input, TokenInput):
        raise PlanError(
            f"{model.name} is a language model, it takes prompts: use `shardline generate`"
        )
    return model.input


def find_images(text: str) -> list[Path]:
    """Picture files under a folder (sub-folders too), matching a glob, or the one file, sorted.

    Raises:
        SourceError: there is none.
    """
    path, suffixes = Path(text), image_suffixes()
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file()]
    elif path.is_file():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(text, recursive=True)]  # noqa: PTH207 any pattern
        found = [p for p in found if p.is_file()]
    if not found:
        raise SourceError(
            f"{text}: no pictures there; expected a folder, a glob such as 'photos/*.jpg', "
            "a .npy file, cifar10[:DIR] or dummy:N"
        )
    return sorted(found)


def image_source(
    paths: Sequence[Path], root: Path, spec: ImageInput, labels: Sequence[str]
) -> Source:
    """Pictures; one that cannot be read is skipped and listed."""
    names = [str(path.relative_to(root)) if root in path.parents else str(path) for path in paths]
    skipped: list[str] = []

    def read(first: int) -> Iterator[Item]:
        for position in range(first, len(paths)):
            path = paths[position]
            try:
                pixels = read_image(path, spec)
            except SourceError as error:
                log.info("skipped: %s", error)  # the command lists them at the end
                if str(error) not in skipped:
                    skipped.append(str(error))
                continue
            yield Item(names[position], _folder_label(path, root, labels), pixels, position)

    return Source(read, len(paths), _identity_of_files(paths, names), skipped)


def _identity_of_files(paths: Sequence[Path], names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path, name in zip(paths, names, strict=True):
        try:
            size_bytes = path.stat().st_size
        except OSError:  # it is skipped when its turn comes
            size_bytes = -1
        digest.update(f"{name}\0{size_bytes}\0".encode("utf-8", "surrogateescape"))
    return f"{len(paths)} pictures, {digest.hexdigest()[:16]}"


def _folder_label(path: Path, root: Path, labels: Sequence[str]) -> int | None:
    """A sub-folder named as a class is the label of its pictures (torchvision's ImageFolder)."""
    folder = path.parent
    if not root.is_dir() or folder == root:
        return None
    if folder.name in labels:
        return list(labels).index(folder.name)
    return None


def dataset_source(name: str, dataset: Dataset, spec: ImageInput) -> Source:
    """A dataset of (picture, class index), such as torchvision's CIFAR10."""

    def read(first: int) -> Iterator[Item]:
        for index in range(first, len(dataset)):
            image, label = dataset[index]
            yield Item(f"{name}/{index}", label, prepare_image(image, spec), index)

    return Source(read, len(dataset), f"{len(dataset)} pictures of {name}")


def numpy_source(path: Path, tensor: TensorSpec) -> Source:
    """Rows of an array file, memory-mapped: shape (N, …) with the model's dtype and shape.

    Raises:
        SourceError: not an array, or one of another dtype or shape.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        # numpy evaluates the header as a Python literal, and a damaged one fails in many ways
        raise SourceError(f"{path}: cannot read this array: {error}") from error
    if array.ndim and not len(array):
        raise SourceError(f"{path}: expected {tensor.describe()}, got an array without rows")
    if not tensor.fits(array):
        raise SourceError(f"{path}: expected {tensor.describe()}, got {array.dtype} {array.shape}")

    def read(first: int) -> Iterator[Item]:
        for index in range(first, len(array)):
            yield Item(f"{path.name}[{index}]", None, np.asarray(array[index]), index)

    # The ends of it: an array may be larger than what anybody wants to read twice.
    digest = hashlib.sha256(array[0].tobytes() + array[-1].tobytes()).hexdigest()[:16]
    return Source(read, len(array), f"{array.dtype} {array.shape} of {path.name}, {digest}")


def dummy_source(count: str, tensor: TensorSpec, seed: int = 0) -> Source:
    """``count`` made-up inputs: random bytes for uint8, N(0, 1) for floats.

    Raises:
        SourceError: ``count`` is not a positive number.
    """
    if not count.isascii() or not count.isdigit() or int(count) < 1:
        raise SourceError(f"dummy:{count}: expected dummy:N with N from 1, for example dummy:100")
    shape = [int(size) for size in tensor.shape[1:]]

    def read(first: int) -> Iterator[Item]:
        for index in range(first, int(count)):
            generator = np.random.default_rng((seed, index))  # any of them without those before
            if tensor.dtype == "uint8":
                row = generator.integers(0, 256, shape, dtype=np.uint8)
            else:
                row = generator.standard_normal(shape).astype(tensor.dtype)
            yield Item(f"dummy/{index}", None, row, index)

    return Source(read, int(count), f"{count} made-up inputs")


def batches(items: Iterable[Item], tensor_name: str, batch_size: int) -> Iterator[Batch]:
    """Groups of ``batch_size`` items (the last may be smaller) as batches."""
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == batch_size:
            yield _batch(group, tensor_name)
            group = []
    if group:
        yield _batch(group, tensor_name)


def _batch(group: Sequence[Item], tensor_name: str) -> Batch:
    return Batch(
        tensors={tensor_name: np.stack([item.tensor for item in group])},
        names=tuple(item.name for item in group),
        labels=tuple(item.label for item in group),
        positions=(group[0].position, group[-1].position + 1),
    )


def source_of_plan(text: str, plan: Plan) -> Source:
    """:func:`open_source` for what a plan's first stage takes.

    Raises:
        PlanError: see :func:`fed_input`. SourceError: see :func:`open_source`.
    """
    return open_source(text, fed_input(plan.model), plan.stages[0].inputs[0], plan.model.labels)


__all__ = [
    "Dataset",
    "Item",
    "Pixels",
    "Source",
    "batches",
    "dataset_source",
    "dummy_source",
    "fed_input",
    "find_images",
    "image_source",
    "numpy_source",
    "open_source",
    "source_of_plan",
]
