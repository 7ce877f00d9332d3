"""Train the digits example: a narrow MobileNetV2 that reads handwritten digits.

The data are the 1,797 8x8 images of scikit-learn's ``load_digits``, scaled up to 32x32, split
once by seed and stratified by label. The network learns from the training part, and the epoch
to keep is chosen on the validation part. The held-out part is used only for the accuracy
reported at the end, measured on ``held_out/<label>/<index>.png`` as written, where the index is
the image's position in ``load_digits``. The weights go to ``weights.safetensors``.
"""

import argparse
import copy
import importlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import save
from sklearn import datasets, model_selection  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor, nn
from torch.nn import functional

SIZE = 32
MEAN, STD = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
MODEL_ARGS = {"num_classes": 10, "width_mult": 0.35}
HELD_OUT, VALIDATION = 400, 200  # images; the others are for training
BATCH = 64
REQUIRED_ACCURACY = 0.96
TRAINED_ON = "scikit-learn digits (UCI optical recognition of handwritten digits, CC BY 4.0)"

Part = tuple[Tensor, Tensor]  # images and labels
_libraries: list[torch.library.Library] = []  # a definition lasts only as long as its Library


def import_torchvision() -> Any:
    """Import torchvision, also where its compiled operators cannot be loaded.

    The torchvision wheel that pip installs by default links against CUDA. Beside a CPU-only
    torch its operators stay unregistered and the import fails on ``torchvision::nms``. The model
    used here does not call these operators, so declaring their signatures is enough.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        signature = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(signature)  # type: ignore[no-untyped-call]
    _libraries.append(library)
    return importlib.import_module("torchvision")


def enlarge(digit: npt.NDArray[np.float64]) -> Image.Image:
    """Turn one 8x8 digit with values 0..16 into a 32x32 8-bit grey image."""
    grey = np.rint(digit * 255 / 16).astype(np.uint8)
    return Image.fromarray(grey).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def to_tensor(image: Image.Image) -> Tensor:
    """Turn an image into the network's normalised 3xHxW float input."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.uint8)).permute(2, 0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def augment(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by up to 8 degrees, scale by up to 5 % and shift by up to 1.5 pixels, at random."""

    def uniform(limit: float) -> Tensor:
        return (torch.rand(len(batch), generator=generator) * 2 - 1) * limit

    angle, scale = uniform(math.radians(8)), 1 + uniform(0.05)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift_x, shift_y = uniform(2 * 1.5 / SIZE), uniform(2 * 1.5 / SIZE)  # in half widths
    rows = [torch.stack([cos, -sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(batch.shape), align_corners=False)
    # The background is black, which is -1 after normalisation, while grid_sample pads with 0.
    return functional.grid_sample(batch + 1, grid, align_corners=False) - 1


def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[int, float]:
    """Return the number of correct answers and the mean cross-entropy."""
    model.eval()
    with torch.inference_mode():
        logits: Tensor = model(images)
    correct = int((logits.argmax(1) == labels).sum())
    return correct, functional.cross_entropy(logits, labels).item()


def train(model: nn.Module, fit: Part, check: Part, epochs: int) -> int:
    """Train on ``fit``, load the epoch that does best on ``check`` and return its number."""
    images, labels = fit
    generator = torch.Generator().manual_seed(torch.initial_seed())
    steps = len(images) // BATCH  # a short last batch would disturb batch normalisation
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=epochs * steps)
    best, best_state = (-1, 0.0, 0), model.state_dict()
    for epoch in range(1, epochs + 1):
        model.train()
        order = torch.randperm(len(images), generator=generator)
        for chosen in torch.split(order[: steps * BATCH], BATCH):
            logits = model(augment(images[chosen], generator))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        correct, check_loss = evaluate(model, *check)
        if (correct, -check_loss, epoch) > best:
            best, best_state = (correct, -check_loss, epoch), copy.deepcopy(model.state_dict())
        if epoch % 10 == 0:
            print(f"epoch {epoch}: validation {correct}/{len(check[1])}, loss {check_loss:.4f}")
    model.load_state_dict(best_state)
    return best[2]


def write_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file whose bytes depend only on its content.

    The safetensors library writes metadata in an order that changes from run to run, so the
    header is rewritten here with its metadata sorted.
    """
    data = save(state, metadata)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length]) | {"__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors must start at a multiple of eight bytes
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def write_held_out(folder: Path, images: dict[int, Image.Image], labels: npt.NDArray[Any]) -> None:
    """Replace the PNG files in ``folder`` by the given held-out images."""
    for old in folder.glob("[0-9]/[0-9][0-9][0-9][0-9].png"):
        old.unlink()
    for index, image in images.items():
        path = folder / str(labels[index]) / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, optimize=True)


def main() -> int:
    """Train, measure, write the files and return the exit code."""
    parser = argparse.ArgumentParser(description="Train the digits example.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums in another order would give slightly different weights

    digits = datasets.load_digits()
    pictures = [enlarge(digit) for digit in digits.images]
    images = torch.stack([to_tensor(picture) for picture in pictures])
    labels = torch.from_numpy(digits.target)
    rest, held_out = model_selection.train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, random_state=options.seed, stratify=labels
    )
    fit, check = model_selection.train_test_split(
        rest, test_size=VALIDATION, random_state=options.seed, stratify=labels[rest]
    )
    print(f"images: {len(fit)} training, {len(check)} validation, {len(held_out)} held out")
    folder = options.out / "held_out"
    write_held_out(folder, {i: pictures[i] for i in held_out}, digits.target)

    model = import_torchvision().models.mobilenet_v2(**MODEL_ARGS)
    start = time.monotonic()
    epoch = train(model, (images[fit], labels[fit]), (images[check], labels[check]), options.epochs)
    print(f"kept epoch {epoch} of {options.epochs}, trained in {time.monotonic() - start:.0f} s")

    files = sorted(folder.glob("*/*.png"))
    read = torch.stack([to_tensor(Image.open(file)) for file in files])
    correct, _ = evaluate(model, read, torch.tensor([int(file.parent.name) for file in files]))
    accuracy = correct / len(files)
    metadata = {
        "model": "torchvision:mobilenet_v2",
        "model_args": json.dumps(MODEL_ARGS),
        "input": f"{SIZE}x{SIZE}",
        "mean": json.dumps(MEAN),
        "std": json.dumps(STD),
        "labels": json.dumps([str(label) for label in range(10)]),
        "license": "Apache-2.0",
        "trained_on": TRAINED_ON,
        "held_out_accuracy": f"{accuracy:.4f}",
    }
    write_weights(options.out / "weights.safetensors", model.state_dict(), metadata)
    print(f"held-out accuracy: {correct}/{len(files)} = {accuracy:.4f}")
    return 0 if accuracy > REQUIRED_ACCURACY else 1


if __name__ == "__main__":
    sys.exit(main())
