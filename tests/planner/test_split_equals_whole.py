"""The shards, as written and read back, against the unsplit model in torch.

Compared here with plain numpy, not with the planner's own comparison, which is under test too.
"""

from pathlib import Path

import numpy as np
import pytest

from planner.verify import run_shards
from tests.planner.conftest import Cached

NAMED = ["mobilenet_v2", "resnet18", "resnet50", "vgg16", "alexnet", "inception_v3"]
UNNAMED = [
    "densenet121",
    "efficientnet_b0",
    "regnet_y_400mf",
    "shufflenet_v2_x1_0",
    "vit_b_16",
    "swin_t",
    "convnext_tiny",
    "googlenet",
]


def assert_same_answers(actual: np.ndarray, expected: np.ndarray) -> None:
    largest = np.abs(expected).max()
    # Otherwise the comparison would be one of nothing with nothing.
    assert largest >= 1e-3
    assert np.ptp(expected, axis=0).max() >= 1e-2 * largest
    assert np.abs(actual - expected).max() <= 1e-4 * largest
    assert (actual.argmax(axis=1) == expected.argmax(axis=1)).all()


def check(model: Cached, stages: int, folder: Path) -> None:
    plan = model.plan(folder, num_stages=stages)
    assert plan.num_stages == stages
    assert all(stage.weight_bytes < model.graph.model.weight_bytes for stage in plan.stages)
    actual = run_shards(folder / "m", plan, model.batch, threads=1, batch_size=3)
    assert_same_answers(actual["output"], model.expected["output"])
    assert plan.verification.conclusive


@pytest.mark.parametrize("stages", [2, 3, 5])
@pytest.mark.parametrize("torchvision_model", NAMED, indirect=True)
def test_stages_compute_what_the_whole_model_computes(
    torchvision_model: Cached, stages: int, tmp_path: Path
) -> None:
    check(torchvision_model, stages, tmp_path)


@pytest.mark.parametrize("torchvision_model", UNNAMED, indirect=True)
def test_models_that_no_code_names_split_as_well(torchvision_model: Cached, tmp_path: Path) -> None:
    check(torchvision_model, 3, tmp_path)
