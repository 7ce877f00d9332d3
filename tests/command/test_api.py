"""`from shardline import …`: the names are there, and a stage does not load them."""

import subprocess
import sys

import pytest

import shardline


@pytest.mark.parametrize("name", shardline.__all__)
def test_each_name_of_the_api_can_be_had(name: str) -> None:
    assert getattr(shardline, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = shardline.nothing_of_the_kind


def test_a_stage_loads_nothing_of_the_client() -> None:
    """Each module that a stage loads is time until it serves again after a power cut."""
    code = "import sys, shardline.commands.stage, stage.agent; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [name for name in done.stdout.split() if name.partition(".")[0] == "client"]
