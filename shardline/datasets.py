"""Datasets by name, read by torchvision. The one file outside the planner that needs it."""

import importlib
from pathlib import Path

from client.sources import Source, dataset_source
from contract.errors import SourceError
from contract.plan import ImageInput, TensorInput

DEFAULT_FOLDER = Path("datasets")


def cifar10_source(text: str, spec: ImageInput | TensorInput) -> Source:
    """The 10,000 test pictures of CIFAR-10 for ``cifar10`` or ``cifar10:DIR``.

    Downloads them when the folder does not hold them yet.

    Raises:
        SourceError: the model takes no pictures, or the dataset is neither there nor to be had.
    """
    if not isinstance(spec, ImageInput):
        raise SourceError(f"{text}: this model does not take pictures")
    from planner.importers.torchvision_models import import_models

    import_models()  # makes torchvision importable beside a CPU-only torch
    datasets = importlib.import_module("torchvision.datasets")
    folder = Path(text.partition(":")[2] or DEFAULT_FOLDER)
    try:
        dataset = datasets.CIFAR10(root=folder, train=False, download=not _is_there(folder))
    except (RuntimeError, OSError) as error:
        raise SourceError(
            f"{text}: CIFAR-10 is not in {folder} and could not be downloaded ({error}); put the "
            f"folder cifar-10-batches-py of the Python version into {folder}"
        ) from error
    return dataset_source("cifar10", dataset, spec)


def _is_there(folder: Path) -> bool:
    return (folder / "cifar-10-batches-py" / "test_batch").is_file()
