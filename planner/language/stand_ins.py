"""Builds transformers models without their weights: every parameter is a stand-in of four bytes.

A parameter is moved to torch's meta device as soon as a module registers it, so that building takes
the memory of one. Buffers (rotary frequencies) are computed as always.
"""

import contextlib
import copy
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from contract.errors import ModelError
from planner.export import quiet
from planner.importers.torchvision_models import import_models


def import_transformers() -> Any:
    """The library; a torchvision that does not fit torch must not break it.

    Raises:
        EnvironmentMissingError: torchvision is there and does not fit this torch.
    """
    with contextlib.suppress(ImportError):
        import_models()
    with quiet():
        library = importlib.import_module("transformers")
        library.utils.logging.set_verbosity_error()
    return library


def build_without_weights(config: Any, attention: str) -> nn.Module:
    """A causal language model of ``config``, in float32, its parameters on the meta device.

    Args:
        config: of transformers.
        attention: a name registered with transformers' AttentionInterface.

    Raises:
        ModelError: transformers has no causal language model for it, or cannot build it.
    """
    library = import_transformers()
    try:
        with quiet(), _parameters_on_meta():
            model = library.AutoModelForCausalLM.from_config(
                copy.deepcopy(config), attn_implementation=attention, dtype=torch.float32
            )
    except Exception as error:  # whatever its classes raise about a configuration
        raise ModelError(
            f"transformers {library.__version__} cannot build a {config.model_type!r} model: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else error!r:.300}; "
            "expected a decoder such as GPT-2, Llama, Qwen or Mistral"
        ) from error
    assert isinstance(model, nn.Module)
    return model.eval()


def names_of_parameters(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Each parameter's first name, and all names that it goes by (tied weights have several)."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {each[0]: tuple(each) for each in names.values()}


def make_exportable(model: nn.Module) -> None:
    """Replace meta parameters by zeros of stride 0 on the CPU: four bytes each, ties kept."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            if id(parameter) not in made:
                zeros = torch.zeros(1).expand(parameter.shape)
                made[id(parameter)] = nn.Parameter(zeros, requires_grad=False)
            module._parameters[name] = made[id(parameter)]


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    def move(_module: nn.Module, _name: str, parameter: Tensor | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None  # as it is: a tied parameter must stay the same object
        return nn.Parameter(parameter.to("meta"), requires_grad=False)

    # torch's annotation says that the hook returns nothing; its documentation and code differ.
    handle = register_module_parameter_registration_hook(move)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()
