"""What every importer takes and gives: the options of an import, and the imported model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from contract.plan import ImageInput, TensorInput
from planner.scratch import ScratchFolder

Array = npt.NDArray[Any]
Reference = Callable[[Array], dict[str, Array]]
"""The unsplit model in its original framework: takes what stage 0 takes, gives outputs by name."""

DEFAULT_WEIGHTS = "DEFAULT"
RANDOM_WEIGHTS = "random"


@dataclass(frozen=True)
class ImportOptions:
    """How a model is to be imported. ``None`` means what the model or its weights file says.

    ``weights`` is ``DEFAULT`` (the model's own), ``random``, or a path. ``input_size`` is
    (height, width) in pixels. ``mean`` and ``std`` are of pixel values scaled to 0..1.
    ``model_args`` go to the model's builder as they are. ``preprocess``: ``image`` puts the
    normalisation into the graph, ``none`` feeds the tensor as it is, ``auto`` decides by the
    input's shape.
    """

    weights: str = DEFAULT_WEIGHTS
    seed: int = 0
    num_classes: int | None = None
    input_size: tuple[int, int] | None = None
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    model_args: Mapping[str, int | float | bool | str] = field(default_factory=dict)
    preprocess: Literal["auto", "image", "none"] = "auto"


@dataclass(frozen=True)
class ImportedModel:
    """A model as ONNX, before it is made canonical, with a reference to compare against.

    ``graph_path`` is a file in ``folder``, its weights beside it as external data: one input, its
    leading dimension the batch, without preprocessing. ``scopes`` says for tensor names which
    module of the original model computes them.
    """

    name: str
    weights: str
    folder: ScratchFolder
    graph_path: Path
    reference: Reference
    reference_name: str
    input: ImageInput | TensorInput
    labels: tuple[str, ...] = ()
    labels_mean_something: bool = True
    scopes: Mapping[str, str] = field(default_factory=dict)
