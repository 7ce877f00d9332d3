"""docs/records.md names every column, every metric, and every field of the profile."""

import re
from pathlib import Path

import pytest

from client.records.device_summary import DEVICE_COLUMNS
from client.records.profile_file import PlanRecord, ProfileDocument
from client.records.prometheus import FAMILIES
from client.records.rows import BATCH_COLUMNS, PIPELINE_COLUMNS
from client.records.stage_summary import STAGE_COLUMNS

PAGE = (Path(__file__).parents[2] / "docs" / "records.md").read_text()


def section(title: str) -> str:
    """What is below a heading, down to the next one."""
    text = PAGE.split(f"# {title}\n", 1)[1]
    return re.split(r"^#+ ", text, maxsplit=1, flags=re.M)[0]


@pytest.mark.parametrize(
    ("file", "columns"),
    [
        ("batches.csv", BATCH_COLUMNS),
        ("devices.csv", DEVICE_COLUMNS),
        ("stages.csv", STAGE_COLUMNS),
        ("pipeline.csv", PIPELINE_COLUMNS),
    ],
)
def test_every_column_is_described_and_no_other_one(file: str, columns: tuple[str, ...]) -> None:
    first = re.findall(r"^\| ([^|]*) \|", section(file), flags=re.M)
    described = re.findall(r"`(\w+)`", " ".join(first))
    assert sorted(described) == sorted(columns)
    assert len(set(columns)) == len(columns)


def test_every_metric_is_described_with_its_labels_and_no_other_one() -> None:
    rows = re.findall(r"^\| (`shardline_[^|]*)\|([^|]*)\|", section("Prometheus"), flags=re.M)
    described = {
        name: set(re.findall(r"`(\w+)`", labels))
        for names, labels in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    assert described == {family.name: set(family.labels) for family in FAMILIES}


def test_the_profile_is_described() -> None:
    text = section("The profile")
    for name in ("format_version", "cluster", "plans", "plan_id", "name", "model", "digest"):
        assert f"`{name}`" in text
    assert {"format_version", "cluster", "plans"} == set(ProfileDocument.model_fields)
    assert {"plan_id", "name", "model", "digest", "prediction"} <= set(PlanRecord.model_fields)
