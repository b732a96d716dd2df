"""A class-conditional generator that a CPU trains in minutes: guided flow matching by a small U-Net.

The straight path of Lipman et al. 2023 (rectified flow) between noise and image, on 2 x 2 patches, so that a 28 px
image is a 14 px map of 4 or 12 channels; classifier-free guidance after Ho & Salimans 2022, as in the paper's
class-conditional diffusion model. Sides must be multiples of 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

UNLABELLED = 0.1
"""Share of the labels that training hides, so that the model also knows the flow without a class."""


class Block(nn.Module):
    """Two convolutions with the conditions in between, and a way past them."""

    def __init__(self, inputs: int, outputs: int, conditions: int) -> None:
        super().__init__()
        self.before = nn.Sequential(
            nn.GroupNorm(8, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.condition = nn.Linear(conditions, 2 * outputs)
        self.norm = nn.GroupNorm(8, outputs)
        self.after = nn.Sequential(nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.past = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        scale, shift = self.condition(condition)[..., None, None].chunk(2, dim=1)
        return self.past(x) + self.after(self.norm(self.before(x)) * (1 + scale) + shift)


class Flow(nn.Module):
    """The velocity at ``x`` (float ``(b, c, h, w)`` in [-1, 1] and beyond), time in [0, 1] and class.

    The class after the last is "none".
    """

    def __init__(self, channels: int, classes: int, width: int = 48) -> None:
        super().__init__()
        self.classes, conditions, patch = classes, 4 * width, 4 * channels
        self.time = nn.Sequential(nn.Linear(32, conditions), nn.SiLU(), nn.Linear(conditions, conditions))
        self.label = nn.Embedding(classes + 1, conditions)
        self.into = nn.Conv2d(patch, width, 3, padding=1)
        self.first = Block(width, width, conditions)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(Block(2 * width, 2 * width, conditions) for _ in range(3))
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.last = Block(2 * width, width, conditions)
        self.out = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, patch, 3, padding=1))

    def forward(self, x: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        waves = time[:, None] * torch.exp(torch.linspace(0, math.log(1000), 16))
        condition = functional.silu(
            self.time(torch.cat([waves.sin(), waves.cos()], dim=1)) + self.label(label)
        )
        fine = self.first(self.into(functional.pixel_unshuffle(x, 2)), condition)
        coarse = self.down(fine)
        for block in self.middle:
            coarse = block(coarse, condition)
        back = self.up(functional.interpolate(coarse, size=fine.shape[-2:]))
        return functional.pixel_shuffle(self.out(self.last(torch.cat([fine, back], dim=1), condition)), 2)


def train(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    steps: int,
    width: int = 48,
    batch: int = 64,
    seed: int = 0,
    note: Callable[..., None] = print,
) -> Flow:
    """The averaged model after ``steps`` batches of these uint8 images."""
    torch.manual_seed(seed)
    x = as_tensor(images)
    y = torch.from_numpy(labels.astype(np.int64))
    model = Flow(x.shape[1], classes, width)
    kept = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(1 - min(0.1, 10 / steps))
    )
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    total = 0.0
    for step in range(1, steps + 1):
        rows = torch.randint(len(x), (batch,))
        noise, time = torch.randn_like(x[rows]), torch.rand(batch)
        hidden = torch.rand(batch) < UNLABELLED
        label = torch.where(hidden, classes, y[rows])
        at = time[:, None, None, None]
        found = model((1 - at) * noise + at * x[rows], time, label)
        loss = functional.mse_loss(found, x[rows] - noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        kept.update_parameters(model)
        total += loss.item()
        if step % max(1, steps // 10) == 0:
            note("step", step, "loss", round(total / max(1, steps // 10), 4))
            total = 0.0
    averaged: Flow = kept.module
    return averaged.eval()


@torch.inference_mode()
def sample(
    model: Flow,
    labels: np.ndarray,
    shape: tuple[int, ...],
    *,
    steps: int = 40,
    guidance: float = 1.5,
    seed: int = 0,
) -> np.ndarray:
    """uint8 images of ``shape`` ``(h, w[, 3])``, one for each label; guidance 1 is the bare conditional flow."""
    torch.manual_seed(seed)
    height, width, channels = *shape[:2], (shape[2:] or (1,))[0]
    y = torch.from_numpy(labels.astype(np.int64))
    made = []
    for label in y.split(250):
        x = torch.randn(len(label), channels, height, width)
        nobody = torch.full_like(label, model.classes)
        for step in range(steps):
            time = torch.full((len(label),), (step + 0.5) / steps)
            velocity = model(x, time, label)
            if guidance != 1:
                without = model(x, time, nobody)
                velocity = without + guidance * (velocity - without)
            x = x + velocity / steps
        made.append(x)
    drawn = ((torch.cat(made).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return drawn if len(shape) == 3 else drawn[..., 0]


def as_tensor(images: np.ndarray) -> torch.Tensor:
    """float32 ``(n, c, h, w)`` in [-1, 1] of uint8 ``(n, h, w[, 3])``."""
    x = torch.from_numpy(images).float() / 127.5 - 1
    return x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2).contiguous()
