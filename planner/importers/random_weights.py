"""Makes untrained weights answer with something, so that comparisons on them mean something.

As torchvision initialises them, the largest logit of mobilenet_v2 is 3e-9 and that of vit_b_16
exactly 0: equal answers would prove nothing. Here BatchNorm statistics are measured on a seeded
batch, and parameters that are one constant (zero heads, zero biases, unit scales, layer scales of
1e-6) get seeded values, so that a lost, swapped or misplaced one changes the answer.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

CONSTANT_NOISE = 0.02  # std: small beside a scale of 1, large beside the tolerance of a comparison


def initialise(module: nn.Module) -> None:
    """Give convolutions and linear layers He-normal weights and zero biases.

    For models whose own initialisation was skipped because it is slow. Uses torch's global
    generator: seed it first.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def enliven(module: nn.Module, images: Tensor) -> None:
    """Replace constant parameters and recalibrate BatchNorm; leaves ``module`` in eval mode.

    Args:
        module: changed in place. Uses torch's global generator: seed it first.
        images: a normalised batch of at least two, float32 (N, C, H, W).
    """
    module.eval()
    linear_weights = {
        id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear)
    }
    for parameter in module.parameters():
        if parameter.numel() < 2 or not parameter.is_floating_point():
            continue
        first = parameter.flatten()[0]
        if not bool((parameter == first).all()):
            continue
        if id(parameter) in linear_weights:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter), alpha=CONSTANT_NOISE)
    recalibrate(module, images)


@torch.no_grad()
def recalibrate(module: nn.Module, images: Tensor) -> None:
    """Set BatchNorm's running statistics to those of ``images``. Dropout stays off."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    if not layers:
        return
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over all batches seen
        layer.train()
    module(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
