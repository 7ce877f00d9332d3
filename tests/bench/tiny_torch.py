"""A torch model of four links for the benchmarks' own tests; imported as `tiny_torch:tiny`."""

from torch import nn


def tiny() -> nn.Sequential:
    """3x224x224 images to 10 logits, at hardly any cost."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 16, 4, stride=4), nn.BatchNorm2d(16), nn.ReLU(inplace=True)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(16, 10),
    )
