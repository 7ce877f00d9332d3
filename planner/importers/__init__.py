"""Imports a model from wherever it comes. Only the importer that is asked for is loaded.

torchvision:NAME    any classification model in torchvision's registry
FILE.onnx           an ONNX file, with or without external data
MODULE:CALLABLE     a function that returns a torch.nn.Module

Language models, hf:DIR, have an importer of their own: transformers_directory.py.
"""

from contract.errors import EnvironmentMissingError, ModelError
from planner.importers.imported_model import ImportedModel, ImportOptions
from planner.progress import Progress, silent

__all__ = ["ImportOptions", "ImportedModel", "import_model"]


def import_model(
    spec: str, options: ImportOptions | None = None, progress: Progress = silent
) -> ImportedModel:
    """Import the model that ``spec`` names, as ONNX with a dynamic batch dimension.

    Raises:
        ModelError: no such model, or it cannot be built, run at its input size, or exported.
        WeightsError: the weights cannot be had, read, or do not fit the model.
        EnvironmentMissingError: a package that the importer needs is not installed.
    """
    options = options or ImportOptions()
    scheme, colon, rest = spec.partition(":")
    try:
        if spec.endswith(".onnx"):
            from planner.importers.onnx_file import import_onnx_file

            return import_onnx_file(spec, options, progress)
        if scheme == "torchvision" and colon:
            from planner.importers.torchvision_models import import_torchvision_model

            return import_torchvision_model(rest, options, progress)
        if scheme == "hf":
            raise ModelError(
                f"{spec}: is a language model, which takes no images; plan it with `shardline plan "
                f"{spec}` and run it with `shardline generate`"
            )
        if colon and scheme and rest:
            from planner.importers.torch_callable import import_callable

            return import_callable(spec, options, progress)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in {"torch", "torchvision", "onnx", "onnxscript"}:
            raise
        raise EnvironmentMissingError(
            f"{spec}: the package {package} is not installed here; planning needs it "
            "(stages do not): pip install 'shardline[planner]'"
        ) from error
    raise ModelError(
        f"model {spec!r}: expected torchvision:NAME (such as torchvision:resnet18), a path ending "
        "in .onnx, or module:callable"
    )
