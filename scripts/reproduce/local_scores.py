"""A generator without parameters: the optimal denoiser that looks at patches only.

Kamb & Ganguli, "An analytic theory of creativity in convolutional diffusion models". At noise level sigma, a noised
image is x = s y + sigma e with s^2 + sigma^2 = 1. Each pixel's patch is compared with the patches of all training
images around the same place (a pixel to each side: a convolution doesn't know exactly where it is), and the pixel
becomes the mean of their centres, weighted by exp(-|patch - s patch'|^2 / (2 sigma^2)). What it makes of a noised
image without some of the training images is known exactly: their weights are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, unfold

LEVELS = ((0.95, 11), (0.8, 9), (0.6, 7), (0.4, 5), (0.2, 3))
"""Noise level sigma, and side of the patches that are looked at there."""
REACH = 1
"""Pixels to each side of a place from which training patches are taken."""
WALK = 20
"""Steps from noise to an image."""


def patches(images: Tensor, side: int) -> Tensor:
    """``(n, c, h, w)`` -> ``(h * w, n, c * side * side)``, edges repeated."""
    half = side // 2
    wide = pad(images, (half, half, half, half), mode="replicate")
    return unfold(wide, side).permute(2, 0, 1).contiguous()


def neighbours(place: int, height: int, width: int, reach: int) -> list[int]:
    """Places around one, itself included."""
    y, x = divmod(place, width)
    rows = range(max(0, y - reach), min(height, y + reach + 1))
    columns = range(max(0, x - reach), min(width, x + reach + 1))
    return [row * width + column for row in rows for column in columns]


class LocalScores:
    """training: float32 ``(n, c, h, w)`` in [-1, 1]."""

    def __init__(
        self, training: Tensor, levels: Sequence[tuple[float, int]] = LEVELS, reach: int = REACH
    ) -> None:
        self.training, self.levels, self.reach = training, levels, reach
        self.shape = training.shape[1:]

    @torch.no_grad()
    def denoised(self, noised: Tensor, sigma: float, side: int, kept: Tensor | None = None) -> Tensor:
        """The clean image that is expected behind each of ``(m, c, h, w)``, for each subset of the training images.

        kept: float ``(subsets, n)`` of 0 and 1. Returns ``(subsets, m, c, h, w)``; without ``kept`` one subset, all.
        """
        n, m = len(self.training), len(noised)
        kept = torch.ones(1, n) if kept is None else kept
        channels, height, width = self.shape
        theirs, mine = patches(self.training, side) * (1 - sigma**2) ** 0.5, patches(noised, side)
        lengths = theirs.square().sum(dim=2)
        values = self.training.reshape(n, channels, -1)
        out = torch.empty(len(kept), m, channels, height * width)
        for place in range(height * width):
            around = neighbours(place, height, width, self.reach)
            weight = torch.stack([mine[place] @ theirs[at].T - lengths[at] / 2 for at in around]) / sigma**2
            weight = (weight - weight.amax(dim=(0, 2), keepdim=True)).exp_()  # (around, m, n)
            total = weight.sum(dim=0) @ kept.T + 1e-30
            for channel in range(channels):
                sums = (weight * values[:, channel, around].T[:, None]).sum(dim=0)
                out[:, :, channel, place] = ((sums @ kept.T) / total).T
        return out.reshape(len(kept), m, *self.shape)

    def sample(self, count: int, seed: int) -> Tensor:
        """``(count, c, h, w)`` in [-1, 1]: from noise to images, always towards what is expected."""
        random = torch.Generator().manual_seed(seed)
        x = torch.randn(count, *self.shape, generator=random)
        sigmas = np.linspace(0.99, 0.0, WALK + 1)
        for now, then in itertools.pairwise(sigmas.tolist()):
            side = min((abs(level - now), side) for level, side in self.levels)[1]
            clean = self.denoised(x, now, side)[0]
            noise = (x - (1 - now**2) ** 0.5 * clean) / now
            x = (1 - then**2) ** 0.5 * clean + then * noise
        return x.clamp(-1, 1)

    def losses(self, images: Tensor, kept: Tensor, repeats: int) -> np.ndarray:
        """float64 ``(subsets, m)``: mean squared error of each subset's denoiser, over levels and noise."""
        total = np.zeros((len(kept), len(images)))
        for number, (sigma, side) in enumerate(self.levels):
            random = torch.Generator().manual_seed(number)
            for _ in range(repeats):
                noise = torch.randn(images.shape, generator=random)
                noised = (1 - sigma**2) ** 0.5 * images + sigma * noise
                found = self.denoised(noised, sigma, side, kept)
                total += (found - images).square().flatten(2).mean(dim=2).double().numpy()
        return total / (len(self.levels) * repeats)
