"""CIFAR-10 through torchvision's own reader, on ten pictures that the test makes."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from contract.errors import SourceError
from contract.plan import ImageInput, TensorInput
from planner.importers.torchvision_models import import_models
from shardline.datasets import cifar10_source

SPEC = ImageInput(
    channels=3,
    height=32,
    width=32,
    resize=32,
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


@pytest.fixture
def pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Ten pictures in the dataset's own format, with the sums that torchvision checks."""
    import_models()
    from torchvision.datasets import CIFAR10

    generator = np.random.default_rng(0)
    data = generator.integers(0, 256, (10, 3 * 32 * 32), dtype=np.uint8)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    batch = pickle.dumps({"data": data, "labels": list(range(10))})
    meta = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
    (folder / "test_batch").write_bytes(batch)
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", hashlib.md5(batch).hexdigest()]])
    names = {"filename": "batches.meta", "key": "label_names"}
    monkeypatch.setattr(CIFAR10, "meta", {**names, "md5": hashlib.md5(meta).hexdigest()})
    return data.reshape(10, 3, 32, 32)


def test_cifar10_pictures_come_with_their_labels(tmp_path: Path, pixels: np.ndarray) -> None:
    source = cifar10_source(f"cifar10:{tmp_path}", SPEC)
    items = list(source.items)
    assert source.total == 10
    assert [item.label for item in items] == list(range(10))
    assert items[0].name == "cifar10/0"
    np.testing.assert_array_equal(np.stack([item.tensor for item in items]), pixels)


def test_a_damaged_dataset_is_told(tmp_path: Path, pixels: np.ndarray) -> None:
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"half")
    with pytest.raises(SourceError, match="cifar-10-batches-py"):
        cifar10_source(f"cifar10:{tmp_path}", SPEC)


def test_a_model_without_pictures_cannot_take_cifar10(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="pictures"):
        cifar10_source(f"cifar10:{tmp_path}", TensorInput())
