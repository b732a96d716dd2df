"""Beta-VAEs for small grey images, at three sizes, and samples of their prior that have a clear class.

- ``small``: 784-256-2x16 and back, 0.4 million parameters at 28 px.
- ``conv``: four convolutions, two hidden layers of 256, 64 latents: 1.0 million.
- ``wide``: 784-1024-512-256-2x128 and back, 3.0 million; what Kong & Chaudhuri's published code trains on MNIST.

Convolutions of the decoder follow an upsampling instead of being transposed: captum takes the gradients of all images
of a batch at once for plain convolutions only.
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

BETA = 4.0
KINDS = ("small", "conv", "wide")


class Vae(nn.Module):
    """Images ``(n, size * size)`` in [0,1] -> one tensor: logits, mean and log-variance.

    Without noise the latent is the mean, so that a loss has one gradient.
    """

    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        pixels = size * size
        self.noise, self.pixels = False, pixels
        if kind == "conv":
            self.latent, quarter = 64, size // 4
            flat = 64 * quarter**2
            self.encode = nn.Sequential(
                nn.Unflatten(1, (1, size, size)), nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1),
                nn.ReLU(), nn.Flatten(), nn.Linear(flat, 128), nn.ReLU(), nn.Linear(128, 256), nn.ReLU(),
                nn.Linear(256, 2 * self.latent),
            )  # fmt: skip
            self.decode = nn.Sequential(
                nn.Linear(self.latent, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, flat),
                nn.ReLU(), nn.Unflatten(1, (64, quarter, quarter)), nn.Upsample(scale_factor=2),
                nn.Conv2d(64, 32, 3, 1, 1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(32, 1, 3, 1, 1),
                nn.Flatten(),
            )  # fmt: skip
        else:
            hidden, self.latent = {"small": ([256], 16), "wide": ([1024, 512, 256], 128)}[kind]
            self.encode = _layers([pixels, *hidden, 2 * self.latent])
            self.decode = _layers([self.latent, *reversed(hidden), pixels])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, log_variance = self.encode(x).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp() if self.noise else mean
        return torch.cat([self.decode(z), mean, log_variance], dim=1)


def _layers(sizes: list[int]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for a, b in pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class Elbo(nn.Module):
    """Minus the evidence lower bound with BETA times the KL term, summed over pixels and over the batch."""

    reduction = "sum"

    def forward(self, out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        pixels = target.shape[1]
        logits, latents = out[:, :pixels], out[:, pixels:]
        mean, log_variance = latents.chunk(2, dim=1)
        fit = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        return fit - BETA / 2 * (1 + log_variance - mean**2 - log_variance.exp()).sum()


def train(
    kind: str, x: torch.Tensor, epochs: int, checkpoints: int, folder: Path, rate: float = 1e-3
) -> tuple[Vae, list[str]]:
    """The VAE, and the files of evenly spaced checkpoints with their learning rate, the last one at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    model, loss = Vae(kind, int(x.shape[1] ** 0.5)), Elbo()
    model.noise = True
    optimizer = torch.optim.Adam(model.parameters(), rate)
    marks = {round(epochs * (i + 1) / checkpoints) for i in range(checkpoints)}
    kept = []
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            (loss(model(x[rows]), x[rows]) / len(rows)).backward()
            optimizer.step()
        if epoch in marks:
            kept.append(str(folder / f"{kind}-{epoch:03d}.pt"))
            torch.save({"state": model.state_dict(), "rate": rate}, kept[-1])
    model.noise = False
    return model.eval(), kept


def load_checkpoint(model: nn.Module, file: str) -> float:
    """Put a checkpoint into the model; returns its learning rate."""
    kept = torch.load(file, weights_only=True)
    model.load_state_dict(kept["state"])
    return float(kept["rate"])


def samples(
    model: Vae, x: np.ndarray, labels: np.ndarray, count: int, least: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """uint8 ``(count, size, size)`` samples of the prior that a classifier of the training images is sure of, and their
    labels; the surest where fewer are."""
    from sklearn.neural_network import MLPClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it could train for longer
        judge = MLPClassifier((128,), max_iter=15, random_state=0).fit(x, labels)
    with torch.inference_mode():
        drawn = model.decode(torch.randn(40 * count, model.latent)).sigmoid().numpy()
    sure = judge.predict_proba(drawn)
    best = sure.max(axis=1)
    rows = np.flatnonzero(best >= least)[:count]
    if len(rows) < count:
        rows = np.sort(np.argsort(-best, kind="stable")[:count])
    size = int(x.shape[1] ** 0.5)
    images = (drawn[rows] * 255).astype(np.uint8).reshape(-1, size, size)
    return images, judge.classes_[sure[rows].argmax(axis=1)]
