"""The second half of every torch importer: a built module becomes an ImportedModel."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from contract.errors import ModelError
from contract.plan import ImageInput, TensorInput
from planner.export import export_module, name_outputs, quiet
from planner.importers.imported_model import Array, ImportedModel
from planner.importers.random_weights import enliven
from planner.progress import Progress
from planner.sample_inputs import sample_images
from planner.scratch import ScratchFolder

CALIBRATION_IMAGES = 4


class TorchReference:
    """The module in eager torch, normalisation included: what every plan is verified against."""

    def __init__(
        self, module: nn.Module, output_names: Sequence[str], model_input: ImageInput | TensorInput
    ) -> None:
        self.module, self._names, self._input = module, tuple(output_names), model_input

    @torch.inference_mode()
    def __call__(self, array: Array) -> dict[str, Array]:
        """Outputs by name, for what stage 0 takes: uint8 (N, C, H, W) images, or the raw tensor."""
        tensor = torch.from_numpy(array)
        if isinstance(self._input, ImageInput):
            tensor = normalise(tensor, self._input)
        outputs = name_outputs(self.module(tensor))
        return {name: outputs[name].numpy() for name in self._names}


def work_out_of_place(module: nn.Module, images: Tensor) -> None:
    """Make activations write to new tensors: exporting an in-place one takes twice as long.

    Undone if it changes the answer, as it does where a model reads what it has overwritten.
    """
    before = name_outputs(module(images))
    changed = [layer for layer in module.modules() if getattr(layer, "inplace", False) is True]
    for layer in changed:
        setattr(layer, "inplace", False)  # noqa: B010  (nn.Module types every attribute as a tensor)
    after = name_outputs(module(images))
    if not all(torch.equal(before[name], after[name]) for name in before):
        for layer in changed:
            setattr(layer, "inplace", True)  # noqa: B010


def normalise(images: Tensor, image: ImageInput) -> Tensor:
    """uint8 (N, C, H, W) to normalised float32 of the same shape."""
    mean = torch.tensor(image.mean).view(1, -1, 1, 1)
    std = torch.tensor(image.std).view(1, -1, 1, 1)
    return (images.float() / 255 - mean) / std


def sample_batch(image: ImageInput, seed: int, count: int = CALIBRATION_IMAGES) -> Tensor:
    """Seeded normalised images, float32 (count, C, H, W)."""
    images = sample_images(count, image.channels, image.height, image.width, seed)
    return normalise(torch.from_numpy(images), image)


def finish_import(
    module: nn.Module,
    name: str,
    weights: str,
    image: ImageInput,
    progress: Progress,
    *,
    seed: int,
    calibrate: bool,
    labels: Sequence[str] = (),
) -> ImportedModel:
    """Try the module at its input size, calibrate random weights, export.

    Raises:
        ModelError: it cannot run at that size, or cannot be exported.
        EnvironmentMissingError: there is no room for it in the folder of temporary files.
    """
    module.eval().requires_grad_(False)
    batch = sample_batch(image, seed)
    with quiet(), torch.no_grad():
        try:
            if calibrate:
                progress("calibrating random weights", 0.1)
                enliven(module, batch)
            result = module(batch[:2])
            work_out_of_place(module, batch[:2])
        except Exception as error:  # a forward pass can fail in any way
            raise ModelError(
                f"{name}: cannot run on a {image.channels}x{image.height}x{image.width} input: "
                f"{str(error)[:300] or type(error).__name__}; choose another size with --input HxW"
            ) from error
    output_names = list(name_outputs(result))
    if "logits" in output_names:
        output_names = ["logits"]  # a training-time head beside it answers nothing
    folder = ScratchFolder()
    progress("exporting to ONNX", 0.3)
    with torch.no_grad():
        graph_path, scopes = export_module(module, batch[:2], output_names, folder)
    progress("exporting to ONNX", 1.0)
    return ImportedModel(
        name=name,
        weights=weights,
        folder=folder,
        graph_path=graph_path,
        reference=TorchReference(module, output_names, image),
        reference_name=f"torch {torch.__version__}",
        input=image,
        labels=tuple(labels),
        labels_mean_something=not calibrate,
        scopes=scopes,
    )
