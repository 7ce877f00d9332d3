"""Small torch models that each hold one difficulty; imported as `small_models:NAME`."""

import torch
from torch import Tensor, nn


class Plain(nn.Module):
    """Three convolutions in a row, a pooling, a head: 3x32x32 images."""

    def __init__(self, num_classes: int = 10, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.third = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x))
        x = torch.relu(self.third(x))
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    """One linear layer used twice, with another between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.shared = nn.Linear(16, 16)
        self.between = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((2, 3))
        x = torch.tanh(self.shared(x))
        x = torch.tanh(self.between(x))
        return self.shared(x)


class ShapeCarrier(nn.Module):
    """Takes the batch size at the start and needs it again and again, far behind every cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = torch.relu(self.stem(x))  # (N, 16, 8, 8)
        x = x.view(batch, -1)
        x = torch.tanh(x)
        x = x.view(batch, 16, 64).mean(2)
        x = torch.tanh(x)
        x = torch.cat([self.token.expand(batch, -1, -1), x.unsqueeze(1)], 1)  # (N, 2, 16)
        x = torch.tanh(self.mix(x.reshape(batch * 2, 16)))
        x = x.view(batch, 2, 16) + torch.ones_like(x).view(x.shape[0] // 2, 2, 16)
        return self.head(x.reshape(x.shape[0], -1))


class TwoOutputs(nn.Module):
    """Gives a mapping of two answers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.classes = nn.Linear(16, 10)
        self.boxes = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.stem(x)).mean((2, 3))
        return {"classes": self.classes(x), "boxes": self.boxes(x)}


class Overwriting(nn.Module):
    """Reads a tensor again after an activation has worked on it in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.relu(x)
        return self.head((x + y).mean((2, 3)))


class DataDependent(nn.Module):
    """Cannot be exported: its path depends on the values of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))
        return self.head(pooled) if pooled.sum() > 0 else -self.head(pooled)


def not_a_module() -> int:
    return 3
