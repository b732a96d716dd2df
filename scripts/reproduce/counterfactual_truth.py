"""What generators lose without some of their images: trained (or asked) again on random halves, and without each owner.

Kept in a file for each generator, part by part, so that an interrupted run goes on, and credit can be held against it
again in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import local_scores
import numpy as np
import retrained
import torch
from PIL import Image

LABELS = 10


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    images: int = 1000
    made: int = 60
    halves: int = 128
    owners: int = 50
    half_seeds: int = 2
    owner_seeds: int = 2
    together: int = 32


SIZES = {
    "full": {
        "vae": Size(),
        "flow": Size(halves=64),
        "local": Size(images=600, half_seeds=1, owner_seeds=1),
    },
    "small": {
        "vae": Size(300, 20, 32, 10, 2, 2, 16),
        "flow": Size(300, 20, 32, 10, 2, 2, 16),
        "local": Size(100, 12, 32, 10, 1, 1),
    },
}


@dataclass
class Truth:
    """images, made: uint8 ``(n, h, w[, 3])`` and ``(m, h, w[, 3])``. halves: bool ``(S, n)``, what each model was
    trained on. owners: int ``(n,)``. half_losses, owner_losses: float ``(S or owners, seeds, m)``."""

    images: np.ndarray
    labels: np.ndarray
    made: np.ndarray
    made_labels: np.ndarray
    halves: np.ndarray
    owners: np.ndarray
    half_losses: np.ndarray
    owner_losses: np.ndarray

    @property
    def without_owner(self) -> np.ndarray:
        """bool ``(owners, n)``: what each model without an owner was trained on."""
        return np.arange(self.owners.max() + 1)[:, None] != self.owners


def digits(kit: common.Kit, count: int) -> tuple[np.ndarray, np.ndarray]:
    """MNIST at 14 x 14."""
    found = kit("mnist_train_10k_A", count)
    small = found["images"].reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))
    return small.round().astype(np.uint8), found["labels"].astype(np.int64)


def two_classes(kit: common.Kit, count: int) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10's automobiles and horses at 16 x 16, in colour."""
    found = kit("cifar10_train_10k_A")
    rows = np.flatnonzero(np.isin(found["labels"], (1, 7)))
    rows = rows[common.spaced(len(rows), count)]
    small = [
        np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BICUBIC))
        for image in found["images"][rows]
    ]
    return np.stack(small), found["labels"][rows].astype(np.int64)


def owners_of(labels: np.ndarray, owners: int, seed: int) -> np.ndarray:
    """Each owner has images of one class, as many as the others, drawn at random."""
    order = np.lexsort((np.random.default_rng(seed).random(len(labels)), labels))
    found = np.empty(len(labels), np.int64)
    found[order] = np.arange(len(labels)) * owners // len(labels)
    return found


def random_halves(n: int, count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([random.permutation(n) < n // 2 for _ in range(count)])


def bytes_of(x: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """[0,1] -> uint8: a generated image is what a PNG file of it holds."""
    return (x * 255).round().to(torch.uint8).numpy().reshape(shape)


def pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.reshape(len(images), -1)).float() / 255


def full_model(name: str, images: np.ndarray, labels: np.ndarray, seed: int) -> tuple[Any, Any, Any]:
    """Family, weights and three checkpoints of a model of all images."""
    x = pixels(images)
    family = retrained.FAMILIES[name](x.shape[1])
    everything = np.ones((1, len(x)), bool)
    return family, *retrained.train(family, x, torch.from_numpy(labels), everything, seed, checkpoints=3)


def truth(kit: common.Kit, name: str, size: Size, folder: Path) -> Truth:
    """The truth about one generator; what is in the folder already isn't made again."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = (two_classes if name == "local" else digits)(kit, size.images)
    halves = random_halves(len(images), size.halves, 1)
    owners = owners_of(labels, size.owners, 2)
    without = np.arange(size.owners)[:, None] != owners
    if name == "local":
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        machine = local_scores.LocalScores(x)
        made = _kept(
            folder / "made.npy",
            lambda: (
                ((machine.sample(size.made, 5).permute(0, 2, 3, 1) + 1) * 127.5)
                .round()
                .to(torch.uint8)
                .numpy()
            ),
        )
        of = np.zeros(len(made), np.int64)
        both = torch.from_numpy(np.concatenate([halves, without])).float()
        losses = _kept(folder / "losses.npy", lambda: machine.losses(
            torch.from_numpy(made).permute(0, 3, 1, 2).float() / 127.5 - 1, both, 2))  # fmt: skip
        found = losses[: len(halves), None], losses[len(halves) :, None]
    else:
        of = np.arange(size.made) % LABELS
        family = retrained.FAMILIES[name](images[0].size)

        def sample() -> np.ndarray:
            _, p, _ = full_model(name, images, labels, 0)
            drawn = family.sample(p, torch.from_numpy(of), torch.Generator().manual_seed(5))
            return bytes_of(drawn, (size.made, *images.shape[1:]))

        made = _kept(folder / "made.npy", sample)
        data = pixels(images), torch.from_numpy(labels), pixels(made), torch.from_numpy(of)
        found = tuple(
            _losses(family, data, subsets, seeds, size.together, folder / kind)
            for kind, subsets, seeds in (
                ("halves", halves, size.half_seeds),
                ("owners", without, size.owner_seeds),
            )
        )
    return Truth(images, labels, made, of, halves, owners, *found)


def _losses(
    family: Any, data: Any, subsets: np.ndarray, seeds: int, together: int, folder: Path
) -> np.ndarray:
    """float64 ``(subsets, seeds, m)``; a file for each group of models."""
    folder.mkdir(exist_ok=True)
    out = np.empty((len(subsets), seeds, len(data[2])))
    for seed in range(seeds):
        for start in range(0, len(subsets), together):
            some = subsets[start : start + together]

            def train_and_judge(some: np.ndarray = some, seed: int = seed) -> np.ndarray:
                p, _ = retrained.train(family, data[0], data[1], some, 1 + seed)
                return retrained.judged(family, p, data[2], data[3])

            out[start : start + len(some), seed] = _kept(folder / f"{seed}-{start:04d}.npy", train_and_judge)
        common.note(folder.parent.name, folder.name, "seed", seed + 1, "of", seeds)
    return out


def _kept(file: Path, make: Any) -> np.ndarray:
    if not file.exists():
        partial = file.with_name("partial-" + file.name)
        np.save(partial, make())
        partial.rename(file)
    kept: np.ndarray = np.load(file)
    return kept
