"""The method in plain code, from the paper: exact search, the packages' own pairwise distances, no storage, no SQL.

Images are PNG files, and the answer is a matrix of contributions. Of the tool only the formula of the shares is used,
which `test_method` holds against its definition.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gmv_qdrant.method import shares


def rgb(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def timm_embeddings(paths: list[Path], model: str, weights: Path) -> np.ndarray:
    """float64 ``(n, dim)`` unit vectors by timm's own recipe."""
    import timm

    net = timm.create_model(
        model, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(weights)}
    )
    net = net.float().eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
    with torch.inference_mode():
        rows = [net(transform(rgb(path))[None])[0].double().numpy() for path in paths]
    return np.stack([row / np.linalg.norm(row) for row in rows])


def pixel_embeddings(paths: list[Path], size: int) -> np.ndarray:
    rows = [
        np.asarray(rgb(path).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64).ravel() / 255
        for path in paths
    ]
    return np.stack([row / np.linalg.norm(row) for row in rows])


class PairwiseLpips:
    """The published package's own call, two images at a time."""

    def __init__(self, net: str, size: int) -> None:
        import lpips

        self.model = lpips.LPIPS(net=net, verbose=False).eval()
        self.size = size

    def tensor(self, path: Path) -> torch.Tensor:
        small = rgb(path).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 127.5 - 1

    def __call__(self, one: Path, many: list[Path]) -> np.ndarray:
        a = self.tensor(one)[None]
        with torch.inference_mode():
            return np.array([float(self.model(a, self.tensor(path)[None])) for path in many])


class PairwiseRms:
    """``l2``: root-mean-square difference of pixels in [0,1]."""

    def __init__(self, size: int) -> None:
        self.size = size

    def pixels(self, path: Path) -> np.ndarray:
        return (
            np.asarray(rgb(path).resize((self.size, self.size), Image.Resampling.BICUBIC), dtype=np.float64)
            / 255
        )

    def __call__(self, one: Path, many: list[Path]) -> np.ndarray:
        a = self.pixels(one)
        return np.array([np.sqrt(((a - self.pixels(path)) ** 2).mean()) for path in many])


def candidates(training: np.ndarray, generated: np.ndarray, k: int) -> np.ndarray:
    """int ``(m, K)``: exact nearest training rows of each generated row."""
    similarity = generated @ training.T
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


def contributions(
    distances: np.ndarray, rows: np.ndarray, n: int, k: int, temperature: float, quality: np.ndarray
) -> np.ndarray:
    """Eq. 6 -> float64 ``(m, n)``: zero outside the k nearest of each image's candidates."""
    out = np.zeros((len(rows), n))
    np.put_along_axis(out, rows, quality[:, None] * shares(distances, k=k, temperature=temperature), axis=1)
    return out


def write_png(images: np.ndarray, folder: Path, prefix: str) -> list[Path]:
    """uint8 ``(n, h, w[, 3])`` as PNG files, each with its own bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, image in enumerate(images):
        path = folder / f"{prefix}{index:05d}.png"
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue())
        paths.append(path)
    return paths
