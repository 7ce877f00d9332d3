"""The six CNNs as chains of modules, with the weights that our plans have: what PyTorch cuts.

The published systems write a model's halves by hand; here, too, each architecture says how it is
a chain. Blocks stay whole, and a convolution stays with its BatchNorm.
"""

import importlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.rivals.tuning import Link
from contract.plan import ImageInput
from planner.importers import ImportOptions
from planner.importers.image_input import ImageDefaults, decide_image_input
from planner.importers.random_weights import enliven, initialise
from planner.importers.torch_module import sample_batch
from planner.importers.torchvision_models import image_defaults, import_models

LINK_RUNS = 3
OWN_INITIALISATION = ("vgg16", "inception_v3")
"""Their constructors spend seconds on weights that are replaced anyway; our importer skips it."""


@dataclass(frozen=True)
class Chain:
    """Links that, one after another, take uint8 images and give logits."""

    links: list[nn.Module]
    image: ImageInput

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image."""
        return self.image.channels, self.image.height, self.image.width

    def part(self, first: int, end: int, channels_last: bool) -> "Part":
        """A half-open range of links."""
        return Part(self.links[first:end], channels_last)


class Normalise(nn.Module):
    """uint8 images to normalised float32 ones, as stage 0 of our plans does it."""

    def __init__(self, image: ImageInput) -> None:
        super().__init__()
        mean = torch.tensor(image.mean).view(1, -1, 1, 1)
        std = torch.tensor(image.std).view(1, -1, 1, 1)
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def forward(self, images: Tensor) -> Tensor:
        """In place, on the one copy that a conversion to float makes."""
        return images.float().mul_(self.scale).add_(self.shift)


class Part(nn.Module):
    """Some links in a row; the activation between two parts lies in the ordinary order."""

    def __init__(self, links: list[nn.Module], channels_last: bool) -> None:
        super().__init__()
        self.links = nn.Sequential(*links)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.links.to(memory_format=self._format)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """(N, …) to (N, …)."""
        if x.dim() == 4:
            x = x.contiguous(memory_format=self._format)
        result: Tensor = self.links(x)
        return result.contiguous()


def build(model: str, fold: bool = False) -> Chain:
    """The chain of a torchvision model, or of ``module:callable``, which returns a Sequential.

    Args:
        model: one of the six, with or without ``torchvision:``.
        fold: fold each BatchNorm into the convolution before it, which plain eager PyTorch does
            not.

    Raises:
        ValueError: none of the six.
    """
    name = model.removeprefix("torchvision:")
    options = ImportOptions(weights="random")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(options.seed)
        module, split, image = (_callable if ":" in name else _torchvision)(name, options)
        module.eval().requires_grad_(False)
        enliven(module, sample_batch(image, options.seed))  # as our importer does, in its order
    links = split(module)
    if fold:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it imports is deprecated
            from torch.fx.experimental.optimization import fuse
        links = [fuse(link.eval()) for link in links]
    first = nn.Sequential(Normalise(image), links[0])
    return Chain([first.eval(), *links[1:]], image)


def _callable(name: str, options: ImportOptions) -> tuple[nn.Module, "Split", ImageInput]:
    module, _, function = name.partition(":")
    whole = getattr(importlib.import_module(module), function)()
    return whole, _children, decide_image_input(ImageDefaults(), options, name)


def _torchvision(name: str, options: ImportOptions) -> tuple[nn.Module, "Split", ImageInput]:
    if name not in CHAINS:
        raise ValueError(f"model {name!r}: no chain is written for it, only {', '.join(CHAINS)}")
    models = import_models()
    arguments = {"init_weights": False} if name in OWN_INITIALISATION else {}
    module = models.get_model(name, weights=None, **arguments)
    if arguments:
        initialise(module)
    image = decide_image_input(image_defaults(models, name), options, name)
    return module, CHAINS[name], image


def _mobilenet(model: nn.Module) -> list[nn.Module]:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return [*_children(model.features), pool, _module(model.classifier)]


def _resnet(model: nn.Module) -> list[nn.Module]:
    stem = nn.Sequential(*(_module(m) for m in (model.conv1, model.bn1, model.relu, model.maxpool)))
    layers = (model.layer1, model.layer2, model.layer3, model.layer4)
    blocks = [block for layer in layers for block in _children(layer)]
    return [stem, *blocks, nn.Sequential(_module(model.avgpool), nn.Flatten()), _module(model.fc)]


def _features_first(model: nn.Module) -> list[nn.Module]:
    pool = nn.Sequential(_module(model.avgpool), nn.Flatten())
    return [*_children(model.features), pool, *_children(model.classifier)]


def _inception(model: nn.Module) -> list[nn.Module]:
    skipped = ("AuxLogits", "avgpool", "dropout", "fc")
    blocks = [child for name, child in model.named_children() if name not in skipped]
    return [*blocks, nn.Sequential(_module(model.avgpool), nn.Flatten()), _module(model.fc)]


def _module(value: object) -> nn.Module:
    assert isinstance(value, nn.Module)
    return value


def _children(value: object) -> list[nn.Module]:
    return list(_module(value).children())


Split = Callable[[nn.Module], list[nn.Module]]
CHAINS: dict[str, Split] = {
    "mobilenet_v2": _mobilenet,
    "resnet18": _resnet,
    "resnet50": _resnet,
    "vgg16": _features_first,
    "alexnet": _features_first,
    "inception_v3": _inception,
}


@torch.inference_mode()
def time_links(chain: Chain, images: Tensor) -> list[Link]:
    """Median time of each link for these images, and the bytes it gives on."""
    found, x = [], images
    for link in chain.links:
        times = []
        for _ in range(LINK_RUNS):
            started = time.perf_counter()
            result = link(x.clone() if x.is_floating_point() else x)  # an in-place ReLU comes first
            times.append(time.perf_counter() - started)
        x = result
        found.append(Link(sorted(times)[LINK_RUNS // 2] * 1e3, x.nbytes))
    return found
