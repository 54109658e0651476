"""ResNet-18 and ResNet-50 for images of any bands (He et al., "Deep Residual Learning for Image Recognition", 2016).

The names of the weights are torchvision's, so that weights of its kind fit. Of 120 x 120 pixels the stem (stride 4)
leaves 30 x 30, the last stage 4 x 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pgearth.pyfuncs.errors import INVALID_BINARY_REPRESENTATION, PgearthError

WIDTH = 64
"""Channels of the first stage, as published; each of the three stages that follow has twice as many."""


class BasicBlock(nn.Module):
    """Two convolutions of 3 x 3 beside a shortcut (He et al., figure 5 left)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(channels, width, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Map (n, channels, height, width) to (n, width, height / stride, width / stride)."""
        result = self.bn1(self.conv1(features)).relu()
        return (self.bn2(self.conv2(result)) + self.downsample(features)).relu()


class Bottleneck(nn.Module):
    """Convolutions of 1 x 1, 3 x 3 and 1 x 1 beside a shortcut (He et al., figure 5 right).

    The stride is that of the 3 x 3 convolution, which is more accurate than the publication's and usual today.
    """

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = shortcut(channels, width * self.expansion, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Map (n, channels, height, width) to (n, 4 width, height / stride, width / stride)."""
        result = self.bn1(self.conv1(features)).relu()
        result = self.bn2(self.conv2(result)).relu()
        return (self.bn3(self.conv3(result)) + self.downsample(features)).relu()


def shortcut(channels: int, out: int, stride: int) -> nn.Module:
    """The identity where shapes allow it, else a projection (He et al., section 3.3, option B)."""
    if stride == 1 and channels == out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


ARCHITECTURES: Mapping[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}
"""Kind and number of the blocks of each stage (He et al., table 1)."""


class ResNet(nn.Module):
    """An encoder: images (n, bands, height, width) of digital numbers, NaN where there are none, to vectors (n, d).

    Each band is normalised by `mean` and `std`, and what is no data becomes 0, the mean. The vector is the last stage's
    mean over the image, before any classifier: `dimension` is 8 times the width, of resnet50 32 times.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: str, mean: Sequence[float], std: Sequence[float], width: int = WIDTH) -> None:
        super().__init__()
        block, depths = ARCHITECTURES[architecture]
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None], persistent=False)
        self.conv1 = nn.Conv2d(len(mean), width, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        channels, stages = width, []
        for number, depth in enumerate(depths):
            blocks = []
            for stride in (2 if number else 1, *(1,) * (depth - 1)):
                blocks.append(block(channels, width * 2**number, stride))
                channels = width * 2**number * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dimension = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # He et al., "Delving Deep into Rectifiers", ICCV 2015, equation 14.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Encode images into vectors (n, dimension)."""
        features = (images - self.mean) / self.std
        features = features.masked_fill(features.isnan(), 0)
        features = self.maxpool(self.bn1(self.conv1(features)).relu())
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
        return features.mean((2, 3))


def learned(model: nn.Module) -> dict[str, Tensor]:
    """Weights and running statistics of a network by name, as they lie in it.

    Without the counters of batches, which BatchNorm2d uses only where its momentum is None.
    """
    return {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    """What a network has learned, copied to the CPU."""
    return {name: value.detach().cpu().numpy().copy() for name, value in learned(model).items()}


def load_weights(model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Give a network what `weights_of` took from one of the same shape. Raises PgearthError for any other weights."""
    state = {name: torch.tensor(value) for name, value in weights.items()}
    counters = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    try:
        model.load_state_dict({**counters, **state})
    except RuntimeError as error:
        raise PgearthError(
            f"the weights do not fit the network: {error}",
            sqlstate=INVALID_BINARY_REPRESENTATION,
            hint="Register weights of this architecture as a new version.",
        ) from error
