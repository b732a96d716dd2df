"""Small generators, dozens of them trained at once: each on its own subset of one set of images.

All parameters have a first axis for the models, so that a step of all of them is a few batched matrix products. Models
of one seed begin with the same weights and see the same noise: what differs is what they were trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from torch.nn.functional import silu

Parameters = list[Tensor]
AVERAGED = 0.25
"""The last part of the training over which weights are averaged: a model with less of the noise of single steps."""


class Family(Protocol):
    """A kind of generator; ``x`` is ``(models, batch, pixels)`` in [0,1], labels ``(models, batch)``."""

    steps: int
    batch: int
    rate: float

    def layers(self) -> list[tuple[int, int]]: ...
    def losses(self, p: Parameters, x: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        """``(models, batch)``: the loss of each image, with noise from ``random`` that all models share."""
        ...

    def sample(self, p: Parameters, labels: Tensor, random: torch.Generator) -> Tensor:
        """``(m, pixels)`` in [0,1], of the first model."""
        ...

    repeats: int
    """Draws of noise over which a loss is averaged when models are judged."""


def dense(p: Parameters, layer: int, x: Tensor) -> Tensor:
    return torch.baddbmm(p[2 * layer + 1], x, p[2 * layer])


def shared_noise(like: Tensor, random: torch.Generator, width: int | None = None) -> Tensor:
    """Standard normal noise, the same for all models."""
    _, batch, pixels = like.shape
    return torch.randn(1, batch, width or pixels, generator=random)


class Vae:
    """pixels-96-2x10 and back; the loss is minus the evidence lower bound in nats."""

    steps, batch, rate, repeats = 1000, 100, 2e-3, 32

    def __init__(self, pixels: int, hidden: int = 96, latent: int = 10) -> None:
        self.pixels, self.hidden, self.latent = pixels, hidden, latent

    def layers(self) -> list[tuple[int, int]]:
        return [(self.pixels, self.hidden), (self.hidden, 2 * self.latent),
                (self.latent, self.hidden), (self.hidden, self.pixels)]  # fmt: skip

    def decode(self, p: Parameters, z: Tensor) -> Tensor:
        return dense(p, 3, dense(p, 2, z).relu())

    def losses(self, p: Parameters, x: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        mean, log_variance = dense(p, 1, dense(p, 0, x).relu()).chunk(2, dim=2)
        z = mean + shared_noise(x, random, self.latent) * (log_variance / 2).exp()
        fit = cross_entropy(self.decode(p, z), x, reduction="none").sum(dim=2)
        return fit - (1 + log_variance - mean**2 - log_variance.exp()).sum(dim=2) / 2

    def sample(self, p: Parameters, labels: Tensor, random: torch.Generator) -> Tensor:
        z = torch.randn(1, len(labels), self.latent, generator=random)
        return self.decode([one[:1] for one in p], z)[0].sigmoid()


class Flow:
    """Flow matching with classes: an MLP says where a noised image moves; the loss is its mean squared error."""

    steps, batch, rate, repeats = 800, 128, 2e-3, 120
    classes, frequencies, walk, nearest = 10, 8, 40, 0.2

    def __init__(self, pixels: int, hidden: int = 256) -> None:
        self.pixels, self.hidden = pixels, hidden

    def layers(self) -> list[tuple[int, int]]:
        told = self.pixels + self.classes + 2 * self.frequencies
        return [(told, self.hidden), (self.hidden, self.hidden), (self.hidden, self.pixels)]

    def clean(self, p: Parameters, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The image that is expected behind x ``(models, batch, pixels)`` at t ``(1, batch, 1)``."""
        angle = t * np.pi * 2.0 ** torch.arange(self.frequencies) / 2
        told = [angle.sin().expand(len(x), -1, -1), angle.cos().expand(len(x), -1, -1)]
        classes = torch.nn.functional.one_hot(labels, self.classes).float().expand(len(x), -1, -1)
        h = torch.cat([x, classes, *told], dim=2)
        return dense(p, 2, silu(dense(p, 1, silu(dense(p, 0, h)))))

    def losses(self, p: Parameters, x: Tensor, labels: Tensor, random: torch.Generator) -> Tensor:
        x = 2 * x - 1
        t, noise = torch.rand(1, x.shape[1], 1, generator=random), shared_noise(x, random)
        found = self.clean(p, t * x + (1 - t) * noise, t, labels)
        weight = 1 / (1 - t).clamp(min=self.nearest)  # of a velocity, (clean - x) / (1 - t)
        return ((found - x) * weight).square().mean(dim=2)

    def sample(self, p: Parameters, labels: Tensor, random: torch.Generator) -> Tensor:
        first = [one[:1] for one in p]
        x = torch.randn(1, len(labels), self.pixels, generator=random)
        for step in range(self.walk):
            t = torch.full((1, len(labels), 1), step / self.walk)
            clean = self.clean(first, x, t, labels[None])
            x = x + (clean - x) / (self.walk - step)
        return ((x[0] + 1) / 2).clamp(0, 1)


FAMILIES: dict[str, Callable[[int], Family]] = {"vae": Vae, "flow": Flow}


def beginnings(family: Family, models: int, seed: int) -> Parameters:
    """Uniform He weights, the same for all models of a seed."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for inward, outward in family.layers():
        bound = (3 / inward) ** 0.5
        weight = (2 * torch.rand(1, inward, outward, generator=random) - 1) * bound
        made += [weight.repeat(models, 1, 1), torch.zeros(models, 1, outward)]
    return made


def train(
    family: Family, x: Tensor, labels: Tensor, trained_on: np.ndarray, seed: int, *, checkpoints: int = 0
) -> tuple[Parameters, list[Parameters]]:
    """Averaged weights of models trained on subsets, bool ``(models, n)``, and checkpoints on the way."""
    models = len(trained_on)
    sizes = torch.from_numpy(trained_on.sum(axis=1))
    rows = torch.zeros(models, int(sizes.max()), dtype=torch.long)
    for model, mask in enumerate(trained_on):
        rows[model, : sizes[model]] = torch.from_numpy(np.flatnonzero(mask))
    random = torch.Generator().manual_seed(seed)
    p = [one.requires_grad_() for one in beginnings(family, models, seed)]
    moments = [(torch.zeros_like(one), torch.zeros_like(one)) for one in p]
    average, kept, path = [torch.zeros_like(one) for one in p], 0, []
    first = int(family.steps * (1 - AVERAGED))
    marks = {round(family.steps * (i + 1) / checkpoints) for i in range(checkpoints)}
    for step in range(1, family.steps + 1):
        place = (torch.rand(family.batch, generator=random) * sizes[:, None]).long()
        picked = torch.gather(rows, 1, place)
        total = family.losses(p, x[picked], labels[picked], random).mean(dim=1).sum()
        rate = family.rate * min(1.0, 2 * (1 - step / family.steps) + 0.1)
        _adam(p, moments, torch.autograd.grad(total, p), step, rate)
        if step > first:
            kept += 1
            for mean, one in zip(average, p, strict=True):
                mean.add_((one.detach() - mean) / kept)
        if step in marks:
            path.append([one.detach().clone() for one in p])
    return average, path


@torch.no_grad()
def _adam(
    p: Parameters, moments: list[tuple[Tensor, Tensor]], grads: tuple[Tensor, ...], step: int, rate: float
) -> None:
    for one, (mean, square), grad in zip(p, moments, grads, strict=True):
        mean.mul_(0.9).add_(grad, alpha=0.1)
        square.mul_(0.999).addcmul_(grad, grad, value=0.001)
        scale = square.div(1 - 0.999**step).sqrt_().add_(1e-8)
        one.addcdiv_(mean, scale, value=-rate / (1 - 0.9**step))


@torch.no_grad()
def judged(family: Family, p: Parameters, x: Tensor, labels: Tensor) -> np.ndarray:
    """float64 ``(models, m)``: the loss of each image, averaged over noise that is the same for all models."""
    total = torch.zeros(len(p[0]), len(x), dtype=torch.float64)
    for repeat in range(family.repeats):
        random = torch.Generator().manual_seed(10_000 + repeat)
        wide = x.expand(len(p[0]), *x.shape)
        total += family.losses(p, wide, labels.expand(len(p[0]), -1), random)
    return (total / family.repeats).numpy()


# -- gradients, for TracIn and TRAK -----------------------------------------------------------------------------


def gradients(family: Family, p: Parameters, x: Tensor, labels: Tensor, draws: int) -> Tensor:
    """float32 ``(images, parameters)``: the gradient of each image's loss under the first model."""
    first = [one[:1].detach() for one in p]

    def loss(q: Parameters, image: Tensor, label: Tensor) -> Tensor:
        random = torch.Generator().manual_seed(77)
        many = image.expand(1, draws, -1)
        return family.losses(q, many, label.expand(1, draws), random).mean()

    found = []
    for image, label in zip(x, labels, strict=True):
        q = [one.clone().requires_grad_() for one in first]
        found.append(torch.cat([g.ravel() for g in torch.autograd.grad(loss(q, image, label), q)]))
    return torch.stack(found)


__all__ = ["FAMILIES", "Family", "Flow", "Vae", "gradients", "judged", "train"]
