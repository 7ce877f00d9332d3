"""Imports `torchvision:NAME`: every classification model in torchvision's registry."""

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from contract.errors import EnvironmentMissingError, ModelError, WeightsError
from planner.export import quiet
from planner.importers.image_input import ImageDefaults, decide_image_input
from planner.importers.imported_model import (
    DEFAULT_WEIGHTS,
    RANDOM_WEIGHTS,
    ImportedModel,
    ImportOptions,
)
from planner.importers.random_weights import initialise
from planner.importers.torch_module import finish_import
from planner.importers.torch_weights import load_weights, open_weights
from planner.progress import Progress

_libraries: list[torch.library.Library] = []  # a definition lasts only as long as its Library


def import_torchvision_model(
    model_name: str, options: ImportOptions, progress: Progress
) -> ImportedModel:
    """See :func:`planner.importers.import_model`."""
    models = import_models()
    name = f"torchvision:{model_name}"
    check_known(model_name, models)
    progress(f"building {model_name}", 0.0)
    weights_file = None
    if options.weights not in (DEFAULT_WEIGHTS, RANDOM_WEIGHTS):
        weights_file = open_weights(options)
        options = weights_file.options
    trained = _trained_weights(models, model_name)
    image = decide_image_input(image_defaults(models, model_name), options, name)
    builder_args: dict[str, Any] = dict(options.model_args)
    if options.num_classes is not None:
        builder_args["num_classes"] = options.num_classes
    builder = models.get_model_builder(model_name)
    class_parameters = _class_parameters(builder)
    if options.input_size is not None and "image_size" in class_parameters:
        # Its position embedding is made for one size.
        builder_args.setdefault("image_size", image.height)

    random = options.weights == RANDOM_WEIGHTS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        if options.weights == DEFAULT_WEIGHTS:
            module = _download(models, model_name, trained, builder_args)
            weights = f"torchvision {trained}"
        else:
            # Some constructors spend seconds on an initialisation that we replace anyway.
            own_initialisation = "init_weights" in class_parameters
            if own_initialisation:
                builder_args.setdefault("init_weights", False)
            module = _build(models, model_name, builder_args)
            if random and own_initialisation:
                initialise(module)
            weights = f"random, seed {options.seed}"
        if weights_file is not None:
            load_weights(module, weights_file.path)
            weights = weights_file.provenance
        labels: tuple[str, ...] = weights_file.labels if weights_file else ()
        if options.weights == DEFAULT_WEIGHTS and trained is not None:
            labels = tuple(trained.meta.get("categories", ()))
        return finish_import(
            module,
            name,
            weights,
            image,
            progress,
            seed=options.seed,
            calibrate=random,
            labels=labels,
        )


def import_models() -> Any:
    """``torchvision.models``, also beside a torch that torchvision was not compiled for.

    The torchvision wheel of the default package index links against CUDA. Beside a CPU-only torch
    its operators stay unregistered, and the import fails on ``torchvision::nms``. No
    classification model calls them, so declaring their signatures is enough.

    Raises:
        EnvironmentMissingError: torchvision does not fit this torch.
    """
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise EnvironmentMissingError(
                f"torchvision cannot be imported beside torch {torch.__version__} ({error}); "
                "install the pair that pyproject.toml names"
            ) from error
    if not _libraries:
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
        _libraries.append(library)
    return importlib.import_module("torchvision.models")


def list_models() -> list[str]:
    """The names of all classification models."""
    models = import_models()
    return sorted(models.list_models(module=models))


def check_known(model_name: str, models: Any) -> None:
    """Raise ModelError with near matches unless torchvision has this classification model."""
    known = sorted(models.list_models(module=models))
    if model_name in known:
        return
    near = difflib.get_close_matches(model_name, known, n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    raise ModelError(
        f"torchvision:{model_name}: no such classification model; {hint}torchvision has "
        f"{len(known)}; list them with "
        "`python -c 'from planner.importers.torchvision_models import list_models; "
        "print(*list_models())'`"
    )


def _trained_weights(models: Any, model_name: str) -> Any:
    """The registry's default entry of trained weights, or None."""
    try:
        return models.get_model_weights(model_name).DEFAULT
    except (ValueError, AttributeError):
        return None


def image_defaults(models: Any, model_name: str) -> ImageDefaults:
    """Read the evaluation transform of the registry's trained weights; needs no download."""
    trained = _trained_weights(models, model_name)
    if trained is None:
        return ImageDefaults()
    transform = trained.transforms()
    (crop,), (resize,) = transform.crop_size, transform.resize_size
    return ImageDefaults(
        crop,
        crop,
        resize,
        str(transform.interpolation.value),
        tuple(transform.mean),
        tuple(transform.std),
    )


def _class_parameters(builder: Any) -> Mapping[str, inspect.Parameter]:
    """Parameters of the constructor of the class that ``builder`` says it returns."""
    returned = inspect.signature(builder).return_annotation
    if not isinstance(returned, type):
        return {}
    return inspect.signature(returned.__init__).parameters  # type: ignore[misc]


def _build(models: Any, model_name: str, builder_args: Mapping[str, Any]) -> nn.Module:
    try:
        with quiet():
            module: nn.Module = models.get_model(model_name, weights=None, **builder_args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"torchvision:{model_name}: cannot be built with {dict(builder_args)}: {error}; check "
            "--model-arg, --num-classes and --input"
        ) from error
    return module


def _download(
    models: Any, model_name: str, trained: Any, builder_args: Mapping[str, Any]
) -> nn.Module:
    remedy = "give the weights as a file with --weights FILE, or use --weights random"
    if trained is None:
        raise WeightsError(f"torchvision:{model_name}: torchvision has no weights; {remedy}")
    try:
        with quiet():
            module: nn.Module = models.get_model(
                model_name, weights="DEFAULT", progress=False, **builder_args
            )
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"torchvision:{model_name}: the weights {trained} cannot be used with "
            f"{dict(builder_args)}: {error}; {remedy}"
        ) from error
    except (OSError, RuntimeError) as error:  # no network; a broken download; no room
        raise WeightsError(
            f"torchvision:{model_name}: cannot download {trained} from {trained.url} ({error}); "
            f"{remedy}"
        ) from error
    return module
