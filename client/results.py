"""What a person gets: one row for each image, as JSON lines or CSV, in the order of the source."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from client.batch import BatchResult, DeadBatch, Ended
from contract.errors import SettingsError


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The answer for one image. ``top`` are (class index, score) pairs, best first."""

    batch_id: str
    image: str
    label: int | None
    top: tuple[tuple[int, float], ...]
    latency_ms: float

    @property
    def is_correct(self) -> bool | None:
        """Whether the best class is the label; None when the label is not known."""
        return None if self.label is None else self.top[0][0] == self.label


def image_results(result: BatchResult, top_k: int) -> list[ImageResult]:
    """One row for each image of a batch, from the model's first output."""
    logits = first_output(result)
    return [
        ImageResult(
            batch_id=str(result.batch_id),
            image=name,
            label=result.batch.labels[index] if result.batch.labels else None,
            top=top_classes(logits[index], top_k),
            latency_ms=round(result.latency_ms, 3),
        )
        for index, name in enumerate(result.batch.names)
    ]


def first_output(result: BatchResult) -> npt.NDArray[Any]:
    """The first output as (images, classes)."""
    output = next(iter(result.outputs.values()))
    return output.reshape(output.shape[0], -1)


def top_classes(logits: npt.NDArray[Any], top_k: int) -> tuple[tuple[int, float], ...]:
    """The ``top_k`` best classes with their softmax probability; (classes,) logits.

    Outputs that are probabilities already (a softmax at the model's end) are kept as they are.
    """
    values = logits.astype(np.float64)
    is_probability = values.min() >= 0 and abs(values.sum() - 1) < 1e-3
    if not is_probability:
        values = np.exp(values - values.max())
        values /= values.sum()
    order = np.argsort(-values, kind="stable")[:top_k]
    return tuple((int(index), round(float(values[index]), 6)) for index in order)


def in_order(ended: Iterable[Ended]) -> Iterator[Ended]:
    """Batches in the order of their numbers; holds back what overtook an open one.

    A pipeline bounds how many that can be (``client.sending.SPAN_IN_WINDOWS``).
    """
    waiting: dict[int, Ended] = {}
    expected = 0
    for end in ended:
        waiting[end.batch_id.seq] = end
        while expected in waiting:
            yield waiting.pop(expected)
            expected += 1
    yield from (waiting[seq] for seq in sorted(waiting))


class ResultWriter(Protocol):
    """Writes rows as they come."""

    def write(self, row: ImageResult) -> None:
        """One image."""
        ...

    def write_dead(self, dead: DeadBatch) -> None:
        """One batch that has no result."""
        ...


class JsonLinesWriter:
    """One JSON object a line."""

    def __init__(self, file: IO[str], labels: Sequence[str]) -> None:
        self._file, self._labels = file, labels

    def write(self, row: ImageResult) -> None:
        """See :class:`ResultWriter`."""
        document = {
            "batch_id": row.batch_id,
            "image": row.image,
            "label": name_of(row.label, self._labels),
            "top": [
                {"class": index, "label": name_of(index, self._labels), "score": score}
                for index, score in row.top
            ],
            "latency_ms": row.latency_ms,
        }
        self._file.write(json.dumps(document, ensure_ascii=False) + "\n")

    def write_dead(self, dead: DeadBatch) -> None:
        """See :class:`ResultWriter`."""
        for image in dead.batch.names:
            document = {
                "batch_id": str(dead.batch_id),
                "image": image,
                "error": f"{dead.reason}: {dead.detail}",
            }
            self._file.write(json.dumps(document, ensure_ascii=False) + "\n")


class CsvWriter:
    """One row an image; the columns of the best classes repeat as top1, score1, top2, …"""

    def __init__(self, file: IO[str], labels: Sequence[str], top_k: int) -> None:
        self._labels, self._top_k = labels, top_k
        self._writer = csv.writer(file)
        tops = [f"{kind}{i + 1}" for i in range(top_k) for kind in ("top", "score")]
        self._writer.writerow(["batch_id", "image", "label", *tops, "latency_ms", "error"])

    def write(self, row: ImageResult) -> None:
        """See :class:`ResultWriter`."""
        tops: list[object] = []
        for index, score in row.top:
            tops += [name_of(index, self._labels), score]
        tops += [""] * (2 * self._top_k - len(tops))
        label = "" if row.label is None else name_of(row.label, self._labels)
        self._writer.writerow([row.batch_id, row.image, label, *tops, row.latency_ms, ""])

    def write_dead(self, dead: DeadBatch) -> None:
        """See :class:`ResultWriter`."""
        for image in dead.batch.names:
            blank = [""] * (1 + 2 * self._top_k + 1)
            self._writer.writerow(
                [str(dead.batch_id), image, *blank, f"{dead.reason}: {dead.detail}"]
            )


def name_of(index: int | None, labels: Sequence[str]) -> str | None:
    """A class's name, or its number where the model has no names."""
    if index is None:
        return None
    return labels[index] if index < len(labels) else str(index)


def result_writer(path: Path, file: IO[str], labels: Sequence[str], top_k: int) -> ResultWriter:
    """The writer for a file name: `.csv`, or `.jsonl`, `.json` or `-` for JSON lines.

    Raises:
        SettingsError: another ending.
    """
    check_result_name(path)
    if path.suffix.lower() == ".csv":
        return CsvWriter(file, labels, top_k)
    return JsonLinesWriter(file, labels)


def check_result_name(path: Path) -> None:
    """Refuse a name whose ending says no format, before anything is overwritten.

    Raises:
        SettingsError: neither `.csv` nor `.jsonl` nor `.json` nor `-`.
    """
    if str(path) != "-" and path.suffix.lower() not in (".csv", ".jsonl", ".json"):
        raise SettingsError(
            f"--out {path}: expected a name that ends in .jsonl or .csv, or - for stdout"
        )
