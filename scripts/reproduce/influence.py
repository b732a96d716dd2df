"""Influence estimation for GANs (Terashita et al. 2021, "IF4GAN"): what removing one training image does to a metric.

A GAN is trained by adversarial SGD: both networks step at once, on the same state. The states, batches and latents of
all steps are kept. The effect of leaving out image j on a metric V of the final generator is, to first order,

    V(without j) - V = - sum over the steps t whose batch has j of  u(t+1) . d theta(t+1) / d w_j,
    u(T) = dV / d theta(T),   u(t) = u(t+1) . d theta(t+1) / d theta(t),

where w_j weighs j in the loss of the batch (1 to 0, divided by the same batch size: the authors' counterfactual SGD).
The products with the Jacobian of a step, cross terms of the two networks included, come from differentiating the step
itself; one pass back over a step gives u(t) and the part of all images of its batch. This is the authors' linear
estimator, and cheaper than taking each image's gradient in turn. They trace back the last epoch of 20 to clean a data
set, and the last 1, 5, 10, 20 or all of 50 epochs to judge the estimator: a first-order estimate grows without bound
over a long training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import softplus

State = list[torch.Tensor]


@dataclass
class Gan:
    """rates: learning rates of generator and discriminator."""

    generator: nn.Module
    discriminator: nn.Module
    latent: int
    rates: tuple[float, float]
    names: tuple[list[str], list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.names = tuple([name for name, _ in each.named_parameters()] for each in self._networks())  # type: ignore[assignment]

    def _networks(self) -> tuple[nn.Module, nn.Module]:
        return self.generator, self.discriminator

    def state(self) -> State:
        return [p.detach().clone() for each in self._networks() for p in each.parameters()]

    def split(self, state: State) -> tuple[State, State]:
        return state[: len(self.names[0])], state[len(self.names[0]) :]

    def generate(self, state: State, z: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = functional_call(
            self.generator, dict(zip(self.names[0], self.split(state)[0], strict=True)), (z,)
        )
        return made

    def judge(self, state: State, x: torch.Tensor) -> torch.Tensor:
        said: torch.Tensor = functional_call(
            self.discriminator, dict(zip(self.names[1], self.split(state)[1], strict=True)), (x,)
        )
        return said.flatten()

    def step(
        self, state: State, x: torch.Tensor, z: torch.Tensor, weights: torch.Tensor, *, graph: bool
    ) -> State:
        """Both networks step at once, non-saturating loss. weights: float ``(batch,)``, of the real images."""
        generator, discriminator = self.split(state)
        fake = self.generate(state, z)
        against = self.judge(state, fake)
        real = (weights * softplus(-self.judge(state, x))).sum() / len(x)
        down_d = torch.autograd.grad(
            real + softplus(against).mean(), discriminator, create_graph=graph, retain_graph=True
        )
        down_g = torch.autograd.grad(softplus(-against).mean(), generator, create_graph=graph)
        rate_g, rate_d = self.rates
        return [
            *(p - rate_g * down for p, down in zip(generator, down_g, strict=True)),
            *(p - rate_d * down for p, down in zip(discriminator, down_d, strict=True)),
        ]


@dataclass
class Trajectory:
    """states: before each step, and after the last. batches: int64 indices. latents: float ``(batch, latent)``."""

    states: list[State]
    batches: list[torch.Tensor]
    latents: list[torch.Tensor]

    def last(self, steps: int) -> Trajectory:
        """Its last steps; none is all."""
        first = len(self.batches) - steps if steps else 0
        return Trajectory(self.states[first:], self.batches[first:], self.latents[first:])


def train(gan: Gan, x: torch.Tensor, batch: int, epochs: int, seed: int) -> Trajectory:
    """Train from the networks' parameters, which stay as they are."""
    random = torch.Generator().manual_seed(seed)
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(x), generator=random).split(batch)]
    latents = [torch.randn(len(rows), gan.latent, generator=random) for rows in batches]
    return replay(gan, x, Trajectory([gan.state()], batches, latents))


def replay(
    gan: Gan, x: torch.Tensor, past: Trajectory, *, without: int | None = None, weight: float = 0.0
) -> Trajectory:
    """The same steps from the same first state, with the same batches and latents.

    without: an image that has ``weight`` only.
    """
    states = past.states[:1]
    for rows, z in zip(past.batches, past.latents, strict=True):
        weights = torch.ones(len(rows))
        if without is not None:
            weights[rows == without] = weight
        now = [p.detach().requires_grad_() for p in states[-1]]
        states.append([p.detach() for p in gan.step(now, x[rows], z, weights, graph=False)])
    return Trajectory(states, past.batches, past.latents)


def removal_effects(
    gan: Gan, trajectory: Trajectory, x: torch.Tensor, metric: Callable[[State], torch.Tensor]
) -> np.ndarray:
    """float64 ``(n,)``: estimate of metric(trained without image j) - metric(trained), for each training image.

    Of the last steps of a training run: without image j in these steps.
    """
    last = [p.detach().requires_grad_() for p in trajectory.states[-1]]
    found = torch.autograd.grad(metric(last), last, allow_unused=True)
    u = [torch.zeros_like(p) if g is None else g for p, g in zip(last, found, strict=True)]
    effects = torch.zeros(len(x), dtype=torch.float64)
    for state, rows, z in zip(
        reversed(trajectory.states[:-1]),
        reversed(trajectory.batches),
        reversed(trajectory.latents),
        strict=True,
    ):
        now = [p.detach().requires_grad_() for p in state]
        weights = torch.ones(len(rows), requires_grad=True)
        after = gan.step(now, x[rows], z, weights, graph=True)
        along = torch.stack([(a * b).sum() for a, b in zip(after, u, strict=True)]).sum()
        *u, of_weights = torch.autograd.grad(along, [*now, weights])
        effects[rows] -= of_weights.double()
    return effects.numpy()


# -- metrics of a generator ----------------------------------------------------------------------------------


def log_inception_score(classifier: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Log of the inception score, with a classifier of the same data: the entropy of the mean prediction minus the
    mean entropy."""
    logits = classifier(images)
    log_p = logits.log_softmax(dim=1)
    p = log_p.exp()
    mean = p.mean(dim=0)
    return (p * log_p).sum(dim=1).mean() - (mean * mean.clamp_min(1e-12).log()).sum()


def average_log_likelihood(x: torch.Tensor, made: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """Mean log density of real points under a Gaussian kernel density of generated ones, up to a constant."""
    squares = torch.cdist(x, made).square()
    return torch.logsumexp(-squares / (2 * bandwidth**2), dim=1).mean()


# -- networks for small images -------------------------------------------------------------------------------


def convolutional(size: int, latent: int, width: int) -> tuple[nn.Module, nn.Module]:
    """A DCGAN for grey images of ``size`` (a multiple of 4) in [-1, 1]. Smooth activations, so that a step can be
    differentiated; each generated image is normalised by itself, for plain SGD stalls without, and by a batch an image
    would also act through the others."""
    quarter = size // 4
    generator = nn.Sequential(
        nn.Linear(latent, 2 * width * quarter**2), nn.Unflatten(1, (2 * width, quarter, quarter)),
        nn.GroupNorm(1, 2 * width), nn.ELU(), nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.GroupNorm(1, width),
        nn.ELU(), nn.ConvTranspose2d(width, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    discriminator = nn.Sequential(
        nn.Conv2d(1, width, 4, 2, 1), nn.ELU(), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.ELU(), nn.Flatten(),
        nn.Linear(2 * width * quarter**2, 1),
    )  # fmt: skip
    return generator, discriminator


def classifier(x: torch.Tensor, labels: torch.Tensor, epochs: int, seed: int) -> nn.Module:
    """A small network that tells the classes of images ``(n, 1, s, s)``; for the inception score."""
    torch.manual_seed(seed)
    quarter = x.shape[-1] // 4
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.ELU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, 1, 1), nn.ELU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * quarter**2, int(labels.max()) + 1),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), labels[rows]).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)
