"""Exports a torch module to ONNX with a dynamic batch dimension, quietly.

The graph and its weights become two files, so that nothing after this needs a copy in memory.
"""

import ast
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from contract.errors import EnvironmentMissingError, ModelError
from contract.tensor_spec import BATCH
from planner.scratch import ScratchFolder

OPSET = 20
INPUT_NAME = "input"
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


class SelectedOutputs(nn.Module):
    """The module with its outputs as a plain tuple in a fixed order, whatever it returns."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)

    def forward(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Every output by the order of ``names``."""
        outputs = name_outputs(self.module(tensor))
        return tuple(outputs[name] for name in self.names)


def name_outputs(result: Any) -> dict[str, Tensor]:
    """Name what a module returned: a tensor is ``output``, a tuple ``output_0``, …

    Raises:
        ModelError: it returned something that is not made of tensors.
    """
    if isinstance(result, Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        outputs = {str(name): value for name, value in result.items() if value is not None}
    elif isinstance(result, tuple) and hasattr(result, "_fields"):
        fields = zip(result._fields, result, strict=True)
        outputs = {name: value for name, value in fields if value is not None}
    elif isinstance(result, tuple | list):
        outputs = {f"output_{index}": value for index, value in enumerate(result)}
    else:
        outputs = {}
    if not outputs or not all(isinstance(value, Tensor) for value in outputs.values()):
        raise ModelError(
            f"the model returns {type(result).__name__}, expected a tensor, or a tuple or mapping "
            "of tensors"
        )
    return outputs


def export_module(
    module: nn.Module, example: Tensor, output_names: Sequence[str], folder: ScratchFolder
) -> tuple[Path, dict[str, str]]:
    """Write ``module`` as ONNX, with the weights beside it as external data.

    Args:
        module: in eval mode, takes one tensor.
        example: a tensor it takes, of at least two images (a batch of one would be baked in).
        output_names: as :func:`name_outputs` gives them.
        folder: to write it in.

    Returns:
        The graph's file, and for each tensor of the graph the dotted name of the module that
        computes it.

    Raises:
        ModelError: the exporter cannot handle the model.
        EnvironmentMissingError: there is no room for it in the folder of temporary files.
    """
    path = folder.path / "exported.onnx"
    plain = tuple(output_names) == ("output",) and isinstance(module(example[:1]), Tensor)
    exported = module if plain else SelectedOutputs(module, output_names)
    weights = (*module.parameters(), *module.buffers())
    try:
        with quiet():
            program = torch.onnx.export(
                exported,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=list(output_names),
                verbose=False,
            )
            if program is None:
                raise RuntimeError("the exporter returned nothing")
            with folder.writing(sum(tensor.nbytes for tensor in weights)):
                program.save(str(path), external_data=True)
    except EnvironmentMissingError:
        raise
    except Exception as error:  # the exporter raises its own and torch's errors, any of them
        reason = str(error.__cause__ or error).strip().splitlines()
        raise ModelError(
            f"torch {torch.__version__} cannot export the model to ONNX with a dynamic batch: "
            f"{(reason or [type(error).__name__])[0][:300]}; the forward pass must not depend on "
            "values of the data or on one batch size"
        ) from error
    return path, read_scopes(path)


def read_scopes(path: Path) -> dict[str, str]:
    """The module that computes each tensor, as the exporter noted it in the graph's metadata."""
    return scopes_of(onnx.load(path, load_external_data=False), "module")


def scopes_of(model: onnx.ModelProto, wrapper: str) -> dict[str, str]:
    """The same of a graph in memory; ``wrapper`` is our own module's name for the model in it."""
    scopes = {}
    for node in model.graph.node:
        for entry in node.metadata_props:
            if entry.key == _SCOPES_KEY:
                # ['', 'layer1', 'layer1.0', 'layer1.0.relu', 'relu_1']: modules, then the operator
                *modules, _ = ast.literal_eval(entry.value)
                scope = modules[-1] if modules else ""
                scope = "" if scope == wrapper else scope.removeprefix(f"{wrapper}.")
                scopes.update(dict.fromkeys(node.output, scope))
    return scopes


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Contain what torch and onnxscript print, log and warn of while they build or export."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # The warnings are about torch's own deprecated internals; a user can do nothing about them.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
