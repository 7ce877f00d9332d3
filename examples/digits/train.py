"""Train the digits example: a narrow MobileNetV2 that reads handwritten digits.

The data are the 1,797 8x8 images of scikit-learn's ``load_digits``, scaled up to 32x32. The
script writes ``weights.safetensors`` and ``held_out/<label>/<index>.png``, where the index is
the image's position in ``load_digits``. The images are split once, by seed and stratified by
label: the network learns from the training part, the epoch to keep is chosen on the validation
part, and the held-out part is used only for the accuracy reported at the end, which is measured
on the PNG files as they were written.
"""

import argparse
import copy
import importlib
import json
import math
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import save
from sklearn.datasets import load_digits  # type: ignore[import-untyped, unused-ignore]
from sklearn.model_selection import (  # type: ignore[import-untyped, unused-ignore]
    train_test_split,
)
from torch import Tensor, nn
from torch.nn import functional

SIZE = 32
MEAN = [0.5, 0.5, 0.5]
STD = [0.5, 0.5, 0.5]
MODEL_ARGS = {"num_classes": 10, "width_mult": 0.35}
HELD_OUT = 400
VALIDATION = 200
BATCH = 64
REQUIRED_ACCURACY = 0.96

_libraries: list[torch.library.Library] = []  # a definition lasts only as long as its Library


def import_torchvision() -> Any:
    """Import torchvision, also where its compiled operators cannot be loaded.

    The torchvision wheel that pip installs by default links against CUDA. Beside a CPU-only
    torch its operators stay unregistered and the import fails on ``torchvision::nms``. No model
    used here calls these operators, so declaring their signatures is enough.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
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
    """Rotate by up to 12 degrees, scale by up to 10 % and shift by up to 2 pixels, at random."""

    def uniform(limit: float) -> Tensor:
        return (torch.rand(len(batch), generator=generator) * 2 - 1) * limit

    angle, scale = uniform(math.radians(12)), 1 + uniform(0.1)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift_x, shift_y = uniform(2 * 2 / SIZE), uniform(2 * 2 / SIZE)
    rows = [torch.stack([cos, -sin, shift_x], 1), torch.stack([sin, cos, shift_y], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(batch.shape), align_corners=False)
    # The background is black, which is -1 after normalisation, while grid_sample pads with 0.
    return functional.grid_sample(batch + 1, grid, align_corners=False) - 1


def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[int, float]:
    """Return the number of correct answers and the mean cross-entropy."""
    model.eval()
    with torch.inference_mode():
        logits: Tensor = model(images)
    loss = functional.cross_entropy(logits, labels).item()
    return int((logits.argmax(1) == labels).sum()), loss


def train(
    model: nn.Module, fit: tuple[Tensor, Tensor], check: tuple[Tensor, Tensor], epochs: int, seed: int
) -> int:
    """Train on ``fit``, load the epoch that does best on ``check`` and return its number."""
    images, labels = fit
    generator = torch.Generator().manual_seed(seed)
    steps = len(images) // BATCH  # a short last batch would disturb batch normalisation
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=epochs * steps)
    best_score, best_epoch, best_state = (-1, 0.0), 0, model.state_dict()
    for epoch in range(1, epochs + 1):
        model.train()
        order = torch.randperm(len(images), generator=generator)
        for step in range(steps):
            chosen = order[step * BATCH : (step + 1) * BATCH]
            logits = model(augment(images[chosen], generator))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            optimiser.step()
            schedule.step()
        correct, check_loss = evaluate(model, *check)
        if (correct, -check_loss) > best_score:
            best_score, best_epoch = (correct, -check_loss), epoch
            best_state = copy.deepcopy(model.state_dict())
        if epoch % 10 == 0:
            print(f"epoch {epoch}: validation {correct}/{len(check[1])}, loss {check_loss:.4f}")
    model.load_state_dict(best_state)
    return best_epoch


def write_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file whose bytes depend only on its content.

    The safetensors library writes metadata in an order that changes from run to run, so the
    header is rewritten here with its metadata sorted.
    """
    data = save(state, metadata)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors must start at a multiple of eight bytes
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def write_held_out(folder: Path, images: dict[int, Image.Image], labels: npt.NDArray[Any]) -> None:
    """Replace the PNG files in ``folder`` by the given held-out images."""
    for old in folder.glob("[0-9]/[0-9][0-9][0-9][0-9].png"):
        old.unlink()
    for index, image in images.items():
        path = folder / str(labels[index]) / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Train the digits example.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="output folder")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums in another order would give slightly different weights

    digits = load_digits()
    pictures = [enlarge(digit) for digit in digits.images]
    images = torch.stack([to_tensor(picture) for picture in pictures])
    labels = torch.from_numpy(digits.target)
    rest, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, random_state=options.seed, stratify=labels
    )
    fit, check = train_test_split(
        rest, test_size=VALIDATION, random_state=options.seed, stratify=labels[rest]
    )
    write_held_out(
        options.out / "held_out", {i: pictures[i] for i in sorted(held_out)}, digits.target
    )

    model = import_torchvision().models.mobilenet_v2(**MODEL_ARGS)
    start = time.perf_counter()
    epoch = train(
        model, (images[fit], labels[fit]), (images[check], labels[check]), options.epochs, options.seed
    )
    seconds = time.perf_counter() - start

    files = sorted((options.out / "held_out").glob("*/*.png"))
    read = torch.stack([to_tensor(Image.open(file)) for file in files])
    truth = torch.tensor([int(file.parent.name) for file in files])
    correct, _ = evaluate(model, read, truth)
    accuracy = correct / len(files)
    metadata = {
        "model": "torchvision:mobilenet_v2",
        "model_args": json.dumps(MODEL_ARGS),
        "input": f"{SIZE}x{SIZE}",
        "mean": json.dumps(MEAN),
        "std": json.dumps(STD),
        "labels": json.dumps([str(label) for label in range(10)]),
        "license": "Apache-2.0",
        "trained_on": "scikit-learn digits "
        "(UCI optical recognition of handwritten digits, CC BY 4.0)",
        "held_out_accuracy": f"{accuracy:.4f}",
    }
    write_weights(options.out / "weights.safetensors", model.state_dict(), metadata)
    print(f"images: {len(fit)} training, {len(check)} validation, {len(files)} held out")
    print(f"trained {options.epochs} epochs in {seconds:.0f} s, kept epoch {epoch}")
    print(f"held-out accuracy: {correct}/{len(files)} = {accuracy:.4f}")
    return 0 if accuracy > REQUIRED_ACCURACY else 1


if __name__ == "__main__":
    sys.exit(main())
