"""Convolutional encoder and decoder of images, for world models (DreamerV3, appendix B)."""

from __future__ import annotations

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from mbrl_dynamics.errors import UserError
from mbrl_dynamics.spec import Camera

SMALLEST = 4  # height and width where the convolutions end [px]


def stages(camera: Camera) -> int:
    """How many halvings lead from an image to the smallest one.

    Raises:
        UserError: the image is not square with a power of two from 16 on.
    """
    count = int(math.log2(camera.height / SMALLEST)) if camera.height >= 4 * SMALLEST else 0
    if camera.width != camera.height or SMALLEST << count != camera.height:
        raise UserError(
            f"camera '{camera.name}' has {camera.height} x {camera.width} pixels, but a world model wants "
            "square images of 16, 32, 64 or 128"
        )
    return count


class ImageEncoder(nn.Module):
    """Images, uint8 [..., S, S, 3], to embeddings [..., E]; each stage halves the size and doubles the depth.

    Args:
        camera: whose images.
        depth: channels after the first stage.
    """

    def __init__(self, camera: Camera, depth: int) -> None:
        super().__init__()
        channels = [3, *(depth << i for i in range(stages(camera)))]
        pairs = list(pairwise(channels))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1, bias=False) for a, b in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(1, b) for _, b in pairs)
        self.size = channels[-1] * SMALLEST**2  # E

    def forward(self, image: Tensor) -> Tensor:
        """The embedding."""
        x = image.flatten(0, -4).movedim(-1, 1).float() / 255.0 - 0.5
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.silu(norm(convolution(x)))
        return x.flatten(1).view(*image.shape[:-3], -1)


class ImageDecoder(nn.Module):
    """Features [..., Z] to images [..., S, S, 3], where 0 is black and 1 is white."""

    def __init__(self, camera: Camera, depth: int, features: int) -> None:
        super().__init__()
        channels = [*(depth << i for i in reversed(range(stages(camera)))), 3]
        pairs = list(pairwise(channels))
        self.channels = channels[0]
        self.dense = nn.Linear(features, channels[0] * SMALLEST**2)
        self.convolutions = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(1, a) for a, _ in pairs)

    def forward(self, feature: Tensor) -> Tensor:
        """The image."""
        x = self.dense(feature.reshape(-1, feature.shape[-1])).unflatten(
            -1, (self.channels, SMALLEST, SMALLEST)
        )
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = convolution(F.silu(norm(x)))
        return (x + 0.5).movedim(1, -1).unflatten(0, feature.shape[:-1])


def image_loss(guess: Tensor, image: Tensor) -> Tensor:
    """Squared error [...], summed over pixels, of images as decoded with those seen, uint8."""
    return (guess - image.float() / 255.0).square().sum((-3, -2, -1))


def as_uint8(guess: Tensor) -> Tensor:
    """A decoded image as uint8 pixels."""
    return (guess.clamp(0.0, 1.0) * 255.0).round().byte()
