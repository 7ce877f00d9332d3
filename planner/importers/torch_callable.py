"""Imports `module:callable`: any function, or class, that returns a torch.nn.Module."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from contract.errors import ModelError
from planner.importers.image_input import ImageDefaults, decide_image_input
from planner.importers.imported_model import (
    DEFAULT_WEIGHTS,
    RANDOM_WEIGHTS,
    ImportedModel,
    ImportOptions,
)
from planner.importers.torch_module import finish_import
from planner.importers.torch_weights import load_weights, open_weights
from planner.importers.torchvision_models import import_models
from planner.progress import Progress

T = TypeVar("T")


def import_callable(spec: str, options: ImportOptions, progress: Progress) -> ImportedModel:
    """See :func:`planner.importers.import_model`. The module is looked for in the working folder
    first; ``--weights DEFAULT`` keeps the weights that the callable gives it.
    """
    progress(f"building {spec}", 0.0)
    weights_file = None
    if options.weights not in (DEFAULT_WEIGHTS, RANDOM_WEIGHTS):
        weights_file = open_weights(options)
        options = weights_file.options
    if options.preprocess == "none":
        raise ModelError(
            f"{spec}: preprocess none is for ONNX files; a torch model takes images here"
        )
    image = decide_image_input(ImageDefaults(), options, spec)
    model_args = dict(options.model_args)
    if options.num_classes is not None:
        model_args["num_classes"] = options.num_classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        module = _call(spec, model_args)
        weights = f"as {spec} makes them"
        if weights_file is not None:
            load_weights(module, weights_file.path)
            weights = weights_file.provenance
        elif options.weights == RANDOM_WEIGHTS:
            weights = f"random, seed {options.seed}"
        return finish_import(
            module,
            spec,
            weights,
            image,
            progress,
            seed=options.seed,
            calibrate=options.weights == RANDOM_WEIGHTS,
            labels=weights_file.labels if weights_file else (),
        )


def _beside_torchvision(act: Callable[[], T]) -> T:
    """Run the user's code, which may import torchvision beside a torch it was not built for."""
    try:
        return act()
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import_models()
        return act()


def _call(spec: str, model_args: dict[str, int | float | bool | str]) -> nn.Module:
    module_name, _, attribute = spec.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        imported = _beside_torchvision(lambda: importlib.import_module(module_name))
    except ImportError as error:
        raise ModelError(
            f"{spec}: cannot import module {module_name!r} ({error}); it is looked for in the "
            "working folder and among the installed packages"
        ) from error
    except Exception as error:  # the module is the user's code, anything can happen in it
        raise ModelError(
            f"{spec}: importing module {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(here)
    function = getattr(imported, attribute, None)
    if not callable(function):
        raise ModelError(f"{spec}: module {module_name!r} has no callable {attribute!r}")
    try:
        module = _beside_torchvision(lambda: function(**model_args))
    except Exception as error:  # the user's code again
        raise ModelError(
            f"{spec}: calling it with {model_args} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{spec}: returned {type(module).__name__}, expected a torch.nn.Module")
    return module
