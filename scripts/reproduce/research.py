"""Rules of credit that the tool doesn't have, on arrays, so that they can be held against those that it has.

- `two_parents` (B): which second image explains what the nearest leaves over?
- `hubs` (E): images that are near to everything.
- `like` (F): probes as blurred as the generated images.
- `patches` (H): which patches could each part of a generated image be from?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy.optimize import minimize
from scipy.special import expit, logit

from gmv_qdrant import method

SIDE = 16
SHIFTS = range(-2, 3)
"""Pixels of 32 by which a generated image may be shifted."""


def _pixels(image: Image.Image, side: int) -> np.ndarray:
    small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(small, dtype=np.float32) / 255


def thumbnails(images: Sequence[Image.Image]) -> np.ndarray:
    """float32 ``(n, 768)``: 16 x 16 pixels minus their mean, of length 1; 0 for a blank image."""
    flat = np.stack([_pixels(image, SIDE).ravel() for image in images])
    flat -= flat.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(lengths > 1e-6, lengths, 1.0)


# -- B: two parents ------------------------------------------------------------------------------------


def centred(images: Sequence[Image.Image]) -> np.ndarray:
    """float32 ``(n, 768)``: 16 x 16 pixels minus each channel's mean."""
    small = np.stack([_pixels(image, SIDE) for image in images])
    return (small - small.mean(axis=(1, 2), keepdims=True)).reshape(len(small), -1)


def shifted(image: Image.Image) -> np.ndarray:
    """float32 ``(25, 768)``: the same of an image shifted by up to two pixels of 32 each way."""
    wide = np.pad(_pixels(image, 32), ((2, 2), (2, 2), (0, 0)), mode="edge")
    moved = [wide[2 + y : 34 + y, 2 + x : 34 + x] for y in SHIFTS for x in SHIFTS]
    small = np.stack([one.reshape(SIDE, 2, SIDE, 2, 3).mean(axis=(1, 3)) for one in moved])
    return (small - small.mean(axis=(1, 2), keepdims=True)).reshape(len(small), -1)


@dataclass
class Pair:
    """The best explanation of one image by two: rows, their parts (sum 1), and what the images explain of it:
    r1 the first alone, r2 both, gain2 what the second-best second image would add."""

    rows: tuple[int, int]
    parts: tuple[float, float]
    r1: float
    r2: float
    gain2: float


def pair(x: np.ndarray, lengths: np.ndarray, views: np.ndarray, nearest: np.ndarray) -> Pair:
    """x: `centred` training images, lengths: their squared norms. views: `shifted` of the generated image.
    nearest: rows of the training images that may be the first parent."""
    best: Pair | None = None
    squares = (views**2).sum(axis=1)
    for f in nearest.tolist():
        along = views @ x[f]
        r1s = np.where(along > 0, along**2 / np.maximum(lengths[f] * squares, 1e-12), 0.0)
        view = int(r1s.argmax())
        y, energy, r1 = views[view], max(float(squares[view]), 1e-12), float(r1s[view])
        size = float(lengths[f] ** 0.5) or 1.0
        u = x[f] / size
        residual = y - (y @ u) * u
        with_u = x @ u
        explained = x @ residual
        room = lengths - with_u**2
        b = explained / np.maximum(room, 0.02 * np.maximum(lengths, 1e-12))
        gain = np.where(b > 0, (2 * b * explained - b**2 * room) / energy, 0.0)
        a = (float(y @ u) - b * with_u) / size
        gain[(a <= 0) | (np.arange(len(x)) == f)] = 0.0
        second, first = np.argpartition(gain, -2)[-2:][np.argsort(gain[np.argpartition(gain, -2)[-2:]])]
        r2 = r1 + float(gain[first])
        if best is None or r2 > best.r2:
            weights = np.array([a[first], b[first]]).clip(min=0)
            weights = weights / (weights.sum() or 1.0)
            best = Pair((f, int(first)), (float(weights[0]), float(weights[1])), r1, r2, float(gain[second]))
    assert best is not None
    return best


def pairs(training: Sequence[Image.Image], made: Sequence[Image.Image], nearest: np.ndarray) -> list[Pair]:
    """nearest: int ``(m, F)``, rows of candidates that may be the first parent."""
    x = centred(training)
    lengths = (x**2).sum(axis=1)
    return [pair(x, lengths, shifted(image), rows) for image, rows in zip(made, nearest, strict=True)]


def _features(found: Sequence[Pair]) -> np.ndarray:
    r1, r2, gain2 = (np.array([getattr(one, name) for one in found]) for name in ("r1", "r2", "gain2"))
    first, both = (logit(of.clip(1e-4, 1 - 1e-4)) for of in (r1, r2))
    others = np.log((1 - r1 - gain2).clip(min=1e-6) / (1 - r2).clip(min=1e-6))
    return np.column_stack([np.ones(len(found)), both, both - first, others])


def add_pairs(credit: np.ndarray, found: Sequence[Pair], z: np.ndarray) -> np.ndarray:
    """Credit ``(m, n)`` of the nearest, mixed with the parts of each pair by how well that explains the image."""
    share = expit(_features(found) @ z)[:, None]
    parts = np.zeros_like(credit)
    for i, one in enumerate(found):
        for row, part in zip(one.rows, one.parts, strict=True):
            parts[i, row] += part
    mixed: np.ndarray = (1 - share) * credit + share * parts
    return mixed


def fit_pairs(credit: np.ndarray, found: Sequence[Pair], truth: np.ndarray) -> np.ndarray:
    """The four weights of `add_pairs` that make the probes' true parents ``(p, n)`` likeliest."""

    def negative(z: np.ndarray) -> float:
        mixed = add_pairs(credit, found, z)
        lost = 1e-3 / credit.shape[1]
        return -float((truth * np.log(mixed + lost)).sum() / len(truth)) + 1e-3 * float((z**2).sum())

    return np.asarray(minimize(negative, np.array([-2.0, 1.0, 1.0, 1.0]), method="Nelder-Mead").x)


# -- E: hubs --------------------------------------------------------------------------------------------


def hubs(
    training: np.ndarray,
    probes: np.ndarray,
    parents: Sequence[Sequence[int]],
    metric: method.Metric,
    count: int = 10,
) -> np.ndarray:
    """float64 ``(n,)``: mean of each training image's nearest distances to probes that weren't made from it."""
    d = np.stack([method.distances(metric, probe, training) for probe in probes], axis=1)
    for i, rows in enumerate(parents):
        d[list(rows), i] = np.inf
    return np.partition(d, count - 1, axis=1)[:, :count].mean(axis=1)


# -- F: probes like the generated images ----------------------------------------------------------------


def sharpness(image: Image.Image) -> float:
    """Log of high over low spectral energy, cut at .2 cycles a pixel."""
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    energy = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
    y, x = (np.abs(np.fft.fftfreq(side)) for side in grey.shape)
    high = np.hypot(y[:, None], x) > 0.2
    return float(np.log((energy[high].sum() + 1e-9) / (energy[~high].sum() + 1e-9)))


def like(made: Sequence[Image.Image], probes: Sequence[Image.Image]) -> list[Image.Image]:
    """Probes, each blurred until it is as sharp as the generated image of the same rank of sharpness."""
    wanted = np.sort([sharpness(image) for image in made])
    mine = np.array([sharpness(image) for image in probes])
    ranks = np.argsort(np.argsort(mine, kind="stable"))
    goals = np.quantile(wanted, (ranks + 0.5) / len(probes))
    radii = np.concatenate([[0.0], np.geomspace(0.2, 4.0, 16)])
    found = []
    for image, goal in zip(probes, goals, strict=True):
        blurred = [
            image.filter(ImageFilter.GaussianBlur(float(radius))) if radius else image for radius in radii
        ]
        found.append(next((one for one in blurred if sharpness(one) <= goal), blurred[-1]))
    return found


# -- H: patches -------------------------------------------------------------------------------------------

SCALES = ((5, 0.3), (9, 0.5))
"""Side of a patch, and noise level sigma."""


def patches(
    training: Sequence[Image.Image],
    made: Sequence[Image.Image],
    rows: np.ndarray | None = None,
    stride: int = 1,
) -> np.ndarray:
    """float64 ``(m, n)``: the share of each generated image's patches that each training image could have given.

    A patch is from (i, q) with the weight exp(-|x_p - s y_q|^2 / (2 sigma^2)), s^2 = 1 - sigma^2, of the generated
    image noised to sigma, over all places q of all i. rows: int ``(m, K)``, the candidates; None is all.
    """
    x, g = (
        torch.from_numpy(np.stack([np.asarray(one.convert("RGB"), np.float32) / 127.5 - 1 for one in of]))
        for of in (training, made)
    )
    x, g = x.permute(0, 3, 1, 2), g.permute(0, 3, 1, 2)
    out = np.zeros((len(made), len(training)))
    random = torch.Generator().manual_seed(0)
    for side, sigma in SCALES:
        kept = torch.nn.functional.unfold(x, side, stride=stride).transpose(1, 2) * (1 - sigma**2) ** 0.5
        noised = (1 - sigma**2) ** 0.5 * g + sigma * torch.randn(g.shape, generator=random)
        mine = torch.nn.functional.unfold(noised, side, stride=stride).transpose(1, 2)
        for j, places in enumerate(mine):
            some = np.arange(len(training)) if rows is None else rows[j]
            keys = kept[torch.from_numpy(some)]
            near = (places @ keys.flatten(0, 1).T - keys.square().sum(dim=2).flatten() / 2) / sigma**2
            share = near.softmax(dim=1).reshape(len(places), len(some), -1).sum(dim=(0, 2)) / len(places)
            out[j, some] += share.double().numpy() / len(SCALES)
    return out
