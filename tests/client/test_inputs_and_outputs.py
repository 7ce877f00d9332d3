"""Pictures and arrays in, rows out, and the thread that reads ahead."""

import contextlib
import csv
import io
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.batch import Batch, BatchResult, DeadBatch, DeathReason, Ended
from client.images import image_suffixes, prepare_image, read_image
from client.prefetch import prefetch
from client.results import (
    CsvWriter,
    JsonLinesWriter,
    image_results,
    in_order,
    result_writer,
    top_classes,
)
from client.sources import Item, batches, dataset_source, find_images, open_source
from contract.activation import BatchId
from contract.errors import SettingsError, SourceError
from contract.plan import ImageInput, TensorInput
from contract.tensor_spec import TensorSpec
from tests.conftest import eventually

IMAGENET = ImageInput(
    channels=3,
    height=224,
    width=224,
    resize=256,
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
SMALL = IMAGENET.model_copy(update={"height": 8, "width": 8, "resize": 10})
PIXELS = TensorSpec(name="image", dtype="uint8", shape=("batch", 3, 8, 8))
NUMBERS = TensorSpec(name="x", dtype="float32", shape=("batch", 4))
LABELS = ("cat", "dog")


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(width * 10_000 + height)
    coarse = generator.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(scope="module")
def transforms() -> Any:
    from planner.importers.torchvision_models import import_models

    import_models()  # makes torchvision importable beside a CPU-only torch
    import torchvision.transforms

    return torchvision.transforms


@pytest.mark.parametrize(
    ("width", "height"),
    [
        (640, 480),
        (480, 640),
        (300, 300),
        (256, 256),
        (256, 400),
        (333, 257),
        (1000, 260),
        (200, 180),
        (31, 257),
    ],
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (299, 299), (225, 224)])
def test_a_picture_is_prepared_as_torchvision_s_presets_do(
    transforms: Any, width: int, height: int, interpolation: str, resize: int, crop: int
) -> None:
    image = photograph(width, height)
    spec = IMAGENET.model_copy(
        update={"resize": resize, "height": crop, "width": crop, "interpolation": interpolation}
    )
    theirs = transforms.Compose(
        [
            transforms.Resize(resize, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(crop),
        ]
    )(image)
    expected = np.asarray(theirs).transpose(2, 0, 1).astype(int)
    ours = prepare_image(image, spec)
    assert ours.shape == expected.shape == (3, crop, crop)
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "I", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_every_mode_are_taken(tmp_path: Path, mode: str, channels: int) -> None:
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I") else "x.png")
    photograph(20, 30).convert(mode).save(path)
    spec = SMALL.model_copy(update={"channels": channels})
    pixels = read_image(path, spec)
    assert pixels.shape == (channels, 8, 8)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"hello", b"\0" * 1000]
)
def test_a_file_that_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(SourceError, match=r"x\.png"):
        read_image(tmp_path / "x.png", SMALL)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it then refuses
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO"])
def test_a_damaged_picture_is_read_or_refused_and_nothing_else(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    photograph(32, 32).save(buffer, kind)
    good, path = buffer.getvalue(), tmp_path / f"x.{kind.lower()}"
    generator = random.Random(kind)
    for _ in range(150):
        data = bytearray(good)
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(min(len(data), 200))] = generator.randrange(256)
        if generator.random() < 0.5:
            del data[generator.randrange(len(data)) :]
        path.write_bytes(bytes(data))
        with contextlib.suppress(SourceError):
            assert read_image(path, SMALL).shape == (3, 8, 8)


def test_an_absurdly_large_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph(100, 100).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SourceError, match=r"x\.png"):
        read_image(tmp_path / "x.png", SMALL)


# Sources


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for folder in ("cat", "dog", "bird", "dog/puppies"):
        (tmp_path / "album" / folder).mkdir(parents=True)
        photograph(12, 12).save(tmp_path / "album" / folder / "1.png")
    photograph(12, 12).save(tmp_path / "album" / "2.JPG", "JPEG")
    (tmp_path / "album" / "notes.txt").write_text("no picture")
    (tmp_path / "album" / "cat" / "0broken.png").write_bytes(b"half")
    return tmp_path / "album"


def test_a_folder_gives_its_pictures_in_order_with_labels(album: Path) -> None:
    source = open_source(str(album), SMALL, PIXELS, LABELS)
    items = {item.name: item.label for item in source.items}
    assert items == {
        "2.JPG": None,
        "bird/1.png": None,
        "cat/1.png": 0,
        "dog/1.png": 1,
        "dog/puppies/1.png": None,
    }
    assert list(items) == sorted(items)
    assert source.total == 6
    assert len(source.skipped) == 1
    assert "0broken.png" in source.skipped[0]


def test_a_glob_and_a_single_file_are_taken(album: Path) -> None:
    assert [p.name for p in find_images(str(album / "*" / "1.png"))] == ["1.png"] * 3
    assert len(find_images(str(album / "**" / "*.png"))) == 5
    assert find_images(str(album / "2.JPG")) == [album / "2.JPG"]
    [item] = open_source(str(album / "2.JPG"), SMALL, PIXELS, LABELS).items
    assert item.tensor.shape == (3, 8, 8)


@pytest.mark.parametrize("text", ["nowhere", "album/*.gif", "album/empty"])
def test_a_place_without_pictures_is_told(album: Path, text: str) -> None:
    (album / "empty").mkdir()
    with pytest.raises(SourceError, match="no pictures"):
        open_source(str(album.parent / text), SMALL, PIXELS, LABELS)


def test_the_usual_formats_are_pictures() -> None:
    assert {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif"} <= image_suffixes()
    assert ".pdf" not in image_suffixes()


def test_pictures_are_refused_by_a_model_that_takes_none(album: Path) -> None:
    with pytest.raises(SourceError, match="not pictures"):
        open_source(str(album), TensorInput(), NUMBERS, ())


def test_rows_of_an_array_are_taken(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "a.npy", array)
    source = open_source(str(tmp_path / "a.npy"), TensorInput(), NUMBERS, ())
    items = list(source.items)
    assert source.total == 3
    assert [item.name for item in items] == ["a.npy[0]", "a.npy[1]", "a.npy[2]"]
    np.testing.assert_array_equal(np.stack([item.tensor for item in items]), array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 5), np.float32),
        np.zeros((3, 4), np.float64),
        np.zeros((3, 4, 1), np.float32),
        np.zeros((0, 4), np.float32),
        np.zeros(4, np.float32),
        np.float32(1),
        np.zeros((3, 4), "U1"),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_array_of_another_form_is_refused(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(SourceError, match=r"a\.npy: expected float32 \(batch, 4\)"):
        open_source(str(tmp_path / "a.npy"), TensorInput(), NUMBERS, ())


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was executed",))


def test_a_pickled_array_is_refused_and_not_executed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([Bomb()], object), allow_pickle=True)
    with pytest.raises(SourceError, match=r"a\.npy"):
        open_source(str(tmp_path / "a.npy"), TensorInput(), NUMBERS, ())


def test_a_damaged_array_is_refused_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((3, 4), np.float32))
    good = path.read_bytes()
    generator = random.Random(0)
    for index in range(300):
        data = bytearray(good)
        data[generator.randrange(128)] = generator.randrange(256)
        if index % 3 == 0:
            del data[generator.randrange(len(data)) :]
        path.write_bytes(bytes(data))
        with contextlib.suppress(SourceError):
            list(open_source(str(path), TensorInput(), NUMBERS, ()).items)


def test_dummy_inputs_are_the_same_every_time_and_fit(tmp_path: Path) -> None:
    for spec, kind in ((PIXELS, SMALL), (NUMBERS, TensorInput())):
        first, second = (list(open_source("dummy:5", kind, spec, ()).items) for _ in range(2))
        assert len(first) == 5
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one.tensor, other.tensor)
            assert spec.fits(one.tensor[None])
        assert not np.array_equal(first[0].tensor, first[1].tensor)


@pytest.mark.parametrize("count", ["", "0", "-1", "x", "1.5", "١"])
def test_a_dummy_count_that_is_none_is_refused(count: str) -> None:
    with pytest.raises(SourceError, match="dummy:N"):
        open_source(f"dummy:{count}", TensorInput(), NUMBERS, ())


def test_a_dataset_gives_pictures_with_labels() -> None:
    pairs = [(photograph(12, 12), 3), (photograph(14, 12), 1)]
    source = dataset_source("cifar10", pairs, SMALL)
    assert [(item.name, item.label) for item in source.items] == [
        ("cifar10/0", 3),
        ("cifar10/1", 1),
    ]
    assert source.total == 2


def items(count: int, labels: list[int | None] | None = None) -> list[Item]:
    return [
        Item(str(i), labels[i] if labels else None, np.full(4, i, np.float32)) for i in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (1, [1]), (3, [3]), (7, [3, 3, 1]), (9, [3] * 3)]
)
def test_batches_hold_all_items_in_order_with_a_smaller_last_one(
    count: int, sizes: list[int]
) -> None:
    made = list(batches(items(count), "x", 3))
    assert [batch.images for batch in made] == sizes
    assert [name for batch in made for name in batch.names] == [str(i) for i in range(count)]
    for batch in made:
        assert batch.tensors["x"].shape == (batch.images, 4)


def test_labels_of_a_batch_stay_with_their_images() -> None:
    [batch] = batches(items(3, [2, 0, 1]), "x", 3)
    assert batch.labels == (2, 0, 1)


# Rows


def ended(
    seq: int, names: tuple[str, ...] = ("a", "b"), labels: tuple[int, ...] = ()
) -> BatchResult:
    batch = Batch({"x": np.zeros((len(names), 1), np.float32)}, names, labels)
    logits = np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]], np.float32)[: len(names)]
    return BatchResult(BatchId(0xAB, seq), batch, {"logits": logits}, 12.3456789, 0)


def dead(seq: int) -> DeadBatch:
    batch = Batch({"x": np.zeros((2, 1), np.float32)}, ("c", 'd,"e'))
    return DeadBatch(BatchId(0xAB, seq), batch, DeathReason.POISON, "refused")


def test_the_best_classes_come_with_their_softmax() -> None:
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [index for index, _ in top_classes(logits, 3)] == [1, 2, 0]
    for index, score in top_classes(logits, 3):
        assert score == pytest.approx(expected[index], abs=1e-6)
    assert len(top_classes(logits, 2)) == 2
    assert len(top_classes(logits, 9)) == 3


def test_probabilities_stay_what_they_are() -> None:
    assert top_classes(np.array([0.2, 0.5, 0.3], np.float32), 1) == ((1, 0.5),)


def test_huge_logits_do_not_overflow() -> None:
    assert top_classes(np.array([1e30, 0.0], np.float32), 1) == ((0, 1.0),)
    assert top_classes(np.array([-1e30, 0.0], np.float32), 1) == ((1, 1.0),)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8), st.integers(1, 10))
def test_scores_are_probabilities_best_first(logits: list[float], top_k: int) -> None:
    top = top_classes(np.array(logits, np.float32), top_k)
    scores = [score for _, score in top]
    assert len(top) == min(top_k, len(logits))
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert len({index for index, _ in top}) == len(top)
    assert logits[top[0][0]] == pytest.approx(max(logits), abs=1e-9)


def test_json_lines_hold_a_row_for_each_image() -> None:
    file = io.StringIO()
    writer = JsonLinesWriter(file, ["zero", "one", "zwei ü"])
    for row in image_results(ended(5, labels=(1, 2)), top_k=2):
        writer.write(row)
    writer.write_dead(dead(6))
    rows = [json.loads(line) for line in file.getvalue().splitlines()]
    assert rows[0]["batch_id"] == "00000000000000ab:5"
    assert (rows[0]["image"], rows[0]["label"], rows[0]["latency_ms"]) == ("a", "one", 12.346)
    assert [entry["label"] for entry in rows[0]["top"]] == ["one", "zwei ü"]
    assert rows[1]["label"] == "zwei ü"
    assert rows[2:] == [
        {"batch_id": "00000000000000ab:6", "image": name, "error": "poison: refused"}
        for name in ("c", 'd,"e')
    ]


def test_csv_holds_a_row_for_each_image() -> None:
    file = io.StringIO(newline="")
    writer = CsvWriter(file, ["zero"], top_k=4)
    for row in image_results(ended(5), top_k=4):
        writer.write(row)
    writer.write_dead(dead(6))
    rows = list(csv.DictReader(io.StringIO(file.getvalue(), newline="")))
    assert [row["image"] for row in rows] == ["a", "b", "c", 'd,"e']
    assert (rows[0]["top1"], rows[0]["top3"], rows[0]["top4"]) == ("1", "zero", "")
    assert rows[0]["label"] == ""
    assert rows[0]["error"] == ""
    assert (rows[3]["error"], rows[3]["top1"]) == ("poison: refused", "")
    assert all(None not in row and None not in row.values() for row in rows)


@pytest.mark.parametrize("name", ["x.txt", "x", "x.json.gz"])
def test_a_file_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        result_writer(Path(name), io.StringIO(), [], 1)


@pytest.mark.parametrize("name", ["x.jsonl", "x.JSON", "-"])
def test_json_lines_are_written_to_these(name: str) -> None:
    assert isinstance(result_writer(Path(name), io.StringIO(), [], 1), JsonLinesWriter)


@settings(deadline=None)
@given(st.permutations(range(12)))
def test_batches_are_put_in_order(order: list[int]) -> None:
    ends: list[Ended] = [dead(seq) if seq % 5 == 3 else ended(seq) for seq in order]
    assert [end.batch_id.seq for end in in_order(ends)] == list(range(12))


def test_a_batch_in_order_is_not_held_back() -> None:
    seen: list[int] = []

    def ends() -> Iterator[Ended]:
        for seq in range(3):
            seen.append(seq)
            yield ended(seq)

    ordered = in_order(ends())
    assert next(ordered).batch_id.seq == 0
    assert seen == [0]


# Reading ahead


def prefetching() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "prefetch" and t.is_alive()]


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_reading_ahead_keeps_the_order(depth: int) -> None:
    assert list(prefetch(range(50), depth)) == list(range(50))
    assert list(prefetch([], depth)) == []


def test_reading_ahead_is_bounded() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for index in range(1000):
            made.append(index)
            yield index

    ahead = prefetch(source(), 4)
    assert next(ahead) == 0
    eventually(lambda: len(made) >= 5, "it reads ahead")
    assert len(made) <= 7
    assert [next(ahead) for _ in range(10)] == list(range(1, 11))
    assert len(made) <= 17
    ahead.close()  # type: ignore[attr-defined]


def test_an_exception_comes_after_what_was_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("here")

    ahead = prefetch(source(), 10)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(LookupError, match="here"):
        next(ahead)
    assert prefetching() == []


def test_an_early_end_stops_the_thread() -> None:
    ahead = prefetch(iter(int, 1), 2)  # without end
    next(ahead)
    assert len(prefetching()) == 1
    ahead.close()  # type: ignore[attr-defined]
    assert prefetching() == []
