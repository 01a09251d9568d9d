"""ResNet-18 encoder with the tensor names of torchvision's (He et al. 2016, arXiv 1512.03385, Table 1).

Shapes: B images, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = (1, 2, 4, 8)
"""Channels of the four stages in units of the first one's."""


class _Block(nn.Module):
    """Two 3x3 convolutions around a shortcut; a projection where size or channels change."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x_BCHW)))
        return F.relu(self.bn2(self.conv2(x)) + self.downsample(x_BCHW))


class ResNet18(nn.Module):
    """Encoder of single frames: the mean over positions of the last stage, (B, 8 x channels).

    Batch norm sees all frames of a batch of clips together, as the projector's does. The publication's
    variant is unknown (facts §11); this is the standard one without its classifier.

    Args:
        image_size: pixels per side; only checked.
        channels: of the first stage; 64 is the standard one, of 11.2 M parameters.
    """

    def __init__(self, image_size: int, channels: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.width = channels * STAGES[-1]
        self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        before = channels
        for number, times in enumerate(STAGES, 1):
            after = channels * times
            blocks = [_Block(before, after, 1 if number == 1 else 2), _Block(after, after, 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            before = after
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, width) of normalised float images (B, 3, image_size, image_size).

        Raises:
            ValueError: the images have another size.
        """
        height, width = images_BCHW.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"frames are {height}x{width} px, the model takes {self.image_size}x{self.image_size}"
            )
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images_BCHW))), 3, stride=2, padding=1)
        for number in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return torch.flatten(x, 2).mean(dim=2)
