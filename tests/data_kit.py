"""A tiny data kit, as the scripts of scripts/reproduce take it: the sets' names and columns, small synthetic images.

Images of a class share a smooth pattern, each has its own besides, and generated ones are noisy copies or blends
of training images, so what a script should find is there to be found.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

LOAD = '"""load(path) -> dict of arrays."""\nimport numpy as np\ndef load(path):\n    return dict(np.load(path))\n'
CLASSES = 2


def pictures(labels: np.ndarray, size: int, channels: int, seed: int) -> np.ndarray:
    """uint8 ``(n, size, size[, channels])``: the class's pattern and the image's own, both smooth."""
    grain = 4
    per_class = np.random.default_rng(0).integers(30, 226, (int(labels.max()) + 1, grain, grain, channels))
    own = np.random.default_rng(seed).integers(-60, 61, (len(labels), grain, grain, channels))
    small = (per_class[labels] + own).clip(0, 255).astype(np.uint8)
    large = [
        np.asarray(
            Image.fromarray(one if channels == 3 else one[..., 0]).resize(
                (size, size), Image.Resampling.BICUBIC
            )
        )
        for one in small
    ]
    return np.stack(large)


def disturbed(images: np.ndarray, seed: int, sigma: float = 6.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, images.shape)
    return (images + noise).round().clip(0, 255).astype(np.uint8)


def write_kit(folder: Path, *, training: int = 60, generated: int = 8, size: int = 16) -> Path:
    """A kit of ``training`` images a set and ``generated`` a generator, two classes by turns, in ``folder``.

    ``index`` isn't the row: rows of the full sets are ``3 i + 7``. Returns ``folder``.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    (folder / "weights/torch_home").mkdir(parents=True, exist_ok=True)
    (folder / "load.py").write_text(LOAD)
    labels = (np.arange(training) % CLASSES).astype(np.uint8)
    rows = np.arange(generated) * (training // generated)
    other = (rows + CLASSES) % training  # of the same class
    index = (3 * np.arange(training) + 7).astype(np.int32)
    numbers = np.arange(generated, dtype=np.int32)

    def save(name: str, **columns: np.ndarray) -> None:
        np.savez(images / f"{name}.npz", **columns)

    def blend(real: np.ndarray, share: float) -> np.ndarray:
        return (share * real[rows] + (1 - share) * real[other]).astype(np.uint8)

    sure = np.linspace(0.5, 1, generated).astype(np.float32)
    for seed, name in enumerate(("mnist", "fashion"), start=1):
        real = pictures(labels, size, 1, seed)
        save(f"{name}_train_10k_A", images=real, labels=labels, index=index)
        if name == "mnist":
            for made in ("gan", "vae"):
                save(f"mnist_gen_{made}", images=disturbed(real[rows], seed), labels=labels[rows], confidence=sure,
                     gen_index=numbers)  # fmt: skip
            save("mnist_gen_vae_posterior", images=disturbed(real[rows], seed), labels=labels[rows], confidence=sure,
                 seed_index=index[rows], gen_index=numbers)  # fmt: skip
            save("mnist_noisy_ood", noisy05=disturbed(real[rows], 5, 90), mild02=disturbed(real[rows], 6, 30),
                 pure=disturbed(np.full_like(real[rows], 127), 7, 90), src=rows)  # fmt: skip
        else:
            for made in ("pcaflow", "cvae_weak"):
                save(f"fashion_gen_{made}", images=disturbed(real[rows], seed), labels=labels[rows],
                     gen_index=numbers)  # fmt: skip
    real = pictures(labels, size, 3, 3)
    save("cifar10_train_10k_A", images=real, labels=labels, index=index)
    save("cifar10_gen_vae", images=blend(real, 0.5), labels=labels[rows], seed_i=index[rows].astype(np.int64),
         seed_j=index[other].astype(np.int64), gen_index=numbers)  # fmt: skip
    save("cifar10_gen_pcaflow_weak", images=disturbed(real[other], 8), labels=labels[rows], gen_index=numbers)
    flipped = numbers % 2 == 1
    mixed = blend(real, 0.75)
    mixed[flipped] = mixed[flipped][:, :, ::-1]
    save("cifar10_known_parents_A", images=disturbed(mixed, 9, 2), labels=labels[rows], flipped=flipped,
         parents=np.stack([index[rows], index[other]], axis=1).astype(np.int32))  # fmt: skip
    planes = pictures(np.zeros(training, dtype=np.uint8), size, 3, 4)
    is_v2 = np.arange(training) % 2 == 0
    half = planes[is_v2]
    seeds = np.arange(generated) % len(half)
    save("airplane_v1v2", images=planes, is_v2=is_v2, index=index)
    save("airplane_gen_vae", images=disturbed(half[seeds], 10, 2), labels=np.zeros(generated, dtype=np.uint8),
         seed_i=seeds, seed_j=(seeds + 1) % len(half), gen_index=numbers)  # fmt: skip
    unknown_points = pictures(np.zeros(generated, dtype=np.uint8), size, 3, 11)
    save(
        "airplane_gen_unetflow",
        images=unknown_points,
        labels=np.zeros(generated, dtype=np.uint8),
        gen_index=numbers,
    )
    return folder
