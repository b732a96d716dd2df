"""The method's formulas on arrays: no workspace, no files, no images.

    valued = value_embeddings(training, generated, k=30)
    valued.values          # what each training image is worth (Eq. 5)
    valued.contributions   # what each candidate contributed to each generated image (Eq. 6)

Arrays are numpy arrays or torch tensors; results are numpy arrays. A generated image's candidates are a row of
``distances``, ``(m, K)``; where an image has fewer than K, the rest is ``inf``. The pipeline computes its distances
here, and ``ledger/credits.sql`` has the same formulas for the stored evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gmv_qdrant.errors import SettingsError

if TYPE_CHECKING:
    import torch

Metric = Literal["cosine", "euclid", "sqeuclid"]

UNIT_RANK = 30
"""The rank whose distance is 1 in relative distances."""
FARTHEST = 1e6
"""Relative distances end here: where 30 candidates are exact copies, everything else is infinitely far."""
BLOCK = 256
"""Generated images that are compared with all training images at once."""
CPU_BYTES, GPU_BYTES = 2 << 20, 256 << 20
"""Vectors that are compared at once."""


# -- distances ---------------------------------------------------------------------------------------


def distances(metric: Metric, query: Any, rows: Any, device: str = "cpu") -> np.ndarray:
    """Distance of ``query`` ``(dim,)`` to each of ``rows`` ``(n, dim)`` -> float64 ``(n,)``, all >= 0.

    cosine: ``1 - cos``, clamped at 0. euclid: the 2-norm of the difference. sqeuclid: its square. Differences are
    taken before squares (never the Gram form), so equal vectors have distance 0 exactly. To 1e-6 relative; and a
    row's distance is the same to the bit whatever other rows it is computed with. On another ``device`` than the
    CPU, to 1e-6 of the vectors' size.
    """
    import torch

    q, r = _float_tensor(query).to(device), _float_tensor(rows).to(device)
    return pair_distances(metric, q[None], r, torch.zeros(len(r), dtype=torch.int64), torch.arange(len(r)))


def pair_distances(
    metric: Metric, a: torch.Tensor, b: torch.Tensor, of_a: torch.Tensor, of_b: torch.Tensor
) -> np.ndarray:
    """As `distances`, of row ``of_a[i]`` of ``a`` to row ``of_b[i]`` of ``b``: float64 ``(pairs,)``.

    a, b: float32 ``(n, dim)`` on one device. of_a, of_b: int64 ``(pairs,)``.
    """
    import torch

    dim, pairs = a.shape[1], len(of_a)
    if pairs == 1:  # torch splits the sum of a single row among its threads, and gives other bits then
        return pair_distances(metric, a, b, of_a.repeat(2), of_b.repeat(2))[:1]
    # pairs that stay in a processor's cache; a GPU takes many at once
    size = max(25, (CPU_BYTES if a.device.type == "cpu" else GPU_BYTES) // (4 * dim))
    x, y = a.new_empty(2, min(size, pairs), dim)
    wide = torch.float32 if a.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    if metric == "cosine":
        lengths = [torch.linalg.vector_norm(rows, dim=1).to(wide) for rows in (a, b)]
    found = torch.empty(pairs, dtype=wide, device=a.device)
    of_a, of_b = of_a.to(a.device), of_b.to(a.device)
    for start in range(0, pairs, size):
        start = min(start, pairs - 2)  # no pair is alone
        i, j = of_a[start : start + size], of_b[start : start + size]
        one = torch.index_select(a, 0, i, out=x[: len(i)])
        two = torch.index_select(b, 0, j, out=y[: len(i)])
        if metric == "cosine":
            dots = two.mul_(one).sum(dim=1, dtype=wide)
            found[start : start + len(i)] = 1.0 - dots / (lengths[1][j] * lengths[0][i])
        else:
            found[start : start + len(i)] = two.sub_(one).square_().sum(dim=1)
    if metric == "euclid":
        found = found.cpu().double().sqrt_()
    return np.asarray(found.clamp_(min=0.0).cpu().double())


def nearest(
    metric: Metric, training: Any, generated: Any, count: int, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The ``count`` nearest training rows of each generated one: int64 and float64, both ``(m, count)``.

    training ``(n, dim)``, generated ``(m, dim)``. Nearest first, ties by row. A matrix product picks a few more than
    are asked for, and `distances` orders them.
    """
    import torch

    t, g = _float_tensor(training).to(device), _float_tensor(generated).to(device)
    count = min(count, len(t))
    more = min(len(t), count + max(16, count // 4))
    lengths = torch.linalg.vector_norm(t, dim=1)
    rows, found = np.empty((len(g), count), np.int64), np.empty((len(g), count))
    for start in range(0, len(g), BLOCK):
        likeness = g[start : start + BLOCK] @ t.T
        likeness = likeness / lengths if metric == "cosine" else 2 * likeness - lengths.square()
        for i, picked in enumerate(torch.topk(likeness, more, dim=1).indices, start):
            d = distances(metric, g[i], t[picked], device)
            order = np.lexsort((picked.cpu().numpy(), d))[:count]
            rows[i], found[i] = picked.cpu().numpy()[order], d[order]
    return rows, found


def relative(distances: Any, rank: int = UNIT_RANK) -> np.ndarray:
    """Each row of distances ``(m, K)`` in units of its ``rank``-th smallest (of its largest, where there are fewer).

    How far an image is from everybody differs from image to image; how much nearer than the others its parents are
    differs less, so that one temperature and one null distance fit all.
    """
    d = _array(distances)
    ordered = np.sort(d, axis=1)
    last = np.isfinite(ordered).sum(axis=1).clip(min=1) - 1
    unit = ordered[np.arange(len(d)), np.minimum(rank - 1, last)]
    scaled = np.minimum(d / np.where(np.isfinite(unit), np.maximum(unit, 1e-300), 1.0)[:, None], FARTHEST)
    result: np.ndarray = np.where(np.isfinite(d), scaled, np.inf)
    return result


# -- shares: how the credit of one generated image is divided -----------------------------------------


def shares(
    distances: Any, *, k: int | None = 30, temperature: float = 1.0, null_distance: float | None = None
) -> np.ndarray:
    """Eq. 6 without the quality: float64 ``(m, K)``, exp(-d/T) over its sum in the k nearest; 0 beyond them.

    Rows sum to 1; with a ``null_distance`` the rest is nobody's, whose weight is exp(-null_distance/T). An image
    without candidates gives no credit. Ties at rank k go to the first. k: None is all candidates.
    """
    d = _nearest_k(_array(distances), k)
    _positive(temperature)
    nobody_at = np.inf if null_distance is None else null_distance
    best = _finite(d.min(axis=1, keepdims=True, initial=nobody_at))
    weight, nobody = np.exp(-(d - best) / temperature), np.exp(-(nobody_at - best) / temperature)
    total = weight.sum(axis=1, keepdims=True) + nobody
    result: np.ndarray = weight / np.where(total > 0, total, 1.0)
    return result


def owner_shapley(
    distances: Any,
    owners: Any,
    *,
    k: int | None = 30,
    temperature: float = 1.0,
    null_distance: float | None = None,
    count: int | None = None,
) -> np.ndarray:
    """Shapley values of v(S) = max of exp(-d/T) over the images of the owners in S: float64 ``(m, owners)``.

    owners: int ``(m, K)``, whose each candidate is. count: number of owners. Relative to the nearest image, so rows sum
    to 1; with a ``null_distance`` nobody is one more player, and gets the rest. A second image of an owner changes
    nothing unless it is nearer. An image of several owners stands once for each of them: cut to the k nearest images
    first, and say ``k=None``.
    """
    d, who = _nearest_k(_array(distances), k), _array(owners).astype(np.int64)
    count = int(who.max(initial=-1)) + 1 if count is None else count
    best = np.full((len(d), count), np.inf)
    there = np.isfinite(d)
    np.minimum.at(best, (np.nonzero(there)[0], who[there]), d[there])
    return _shapley(best, temperature, null_distance, most=1)


def knn_shapley(
    distances: Any, *, k: int | None = 30, temperature: float = 1.0, null_distance: float | None = None
) -> np.ndarray:
    """Shapley values of v(S) = sum of exp(-d/T) over the k images of S nearest: float64 ``(m, K)``, scaled to sum 1.

    What an image replaces counts, so all K candidates have value. With a ``null_distance`` nobody is one more player.
    """
    d = _array(distances)
    return _shapley(d, temperature, null_distance, most=d.shape[1] + 1 if k is None else k)


def _shapley(d: np.ndarray, temperature: float, null_distance: float | None, most: int) -> np.ndarray:
    """Shapley values of v(S) = sum of the ``most`` largest exp(-d/T) in S, in units of v(all players).

    Between two neighbouring weights only the ``place`` nearest players count, who are alike there: each gets 1/place
    of what min(most, place) of them bring.
    """
    _positive(temperature)
    players = d if null_distance is None else np.column_stack([d, np.full(len(d), null_distance)])
    order = np.argsort(players, axis=1, kind="stable")
    ascending = np.take_along_axis(players, order, axis=1)
    weight = np.exp(-(ascending - _finite(ascending[:, :1])) / temperature)
    rise = weight - np.column_stack([weight[:, 1:], np.zeros(len(d))])
    place = np.arange(1, players.shape[1] + 1)
    parts = np.cumsum((rise * np.minimum(most, place) / place)[:, ::-1], axis=1)[:, ::-1]
    total = parts.sum(axis=1, keepdims=True)
    result = np.empty_like(players)
    np.put_along_axis(result, order, parts / np.where(total > 0, total, 1.0), axis=1)
    return result[:, : d.shape[1]]


# -- values --------------------------------------------------------------------------------------------


def values(contributions: Any, candidates: Any, images: int) -> np.ndarray:
    """Eq. 5: float64 ``(images,)``, the sum of each training image's contributions, zeros included.

    contributions: ``(m, K)``. candidates: int ``(m, K)``, whose they are; what contributes 0 may be any row.
    """
    given, rows = _array(contributions).ravel(), _array(candidates).astype(np.int64).ravel()
    some = given != 0
    return np.bincount(rows[some], given[some], minlength=images)


def effective_contributors(contributions: Any) -> np.ndarray:
    """float64 ``(m,)``: exp of the entropy of each generated image's contributions; 0 where it gives no credit."""
    given = _array(contributions)
    total = given.sum(axis=1, keepdims=True)
    p = given / np.where(total > 0, total, 1.0)
    entropy = -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=1)
    result: np.ndarray = np.where(total[:, 0] > 0, np.exp(entropy), 0.0)
    return result


@dataclass(frozen=True, slots=True)
class Valued:
    """What `value_embeddings` returns.

    values: float64 ``(n,)``. candidates: int64 ``(m, K)``, training rows, nearest first. distances, contributions:
    float64 ``(m, K)``. nobody: float64 ``(m,)``, the credit that no training image gets.
    """

    values: np.ndarray
    candidates: np.ndarray
    distances: np.ndarray
    contributions: np.ndarray
    nobody: np.ndarray


def value_embeddings(
    training: Any,
    generated: Any,
    *,
    k: int | None = 30,
    temperature: float = 1.0,
    null_distance: float | None = None,
    quality: Any = None,
    candidates: int = 200,
    metric: Metric = "euclid",
    rerank: tuple[Any, Any] | None = None,
    rerank_metric: Metric = "sqeuclid",
    rule: Literal["shares", "knn-shapley"] = "shares",
    device: str = "cpu",
) -> Valued:
    """Value the rows of ``training`` ``(n, dim)`` by those of ``generated`` ``(m, dim)``.

    candidates: K, the nearest by ``metric`` that are looked at. rerank: the same images in another space, training
    and generated, in which ``rerank_metric`` orders the candidates. quality: ``(m,)``, weights of the generated images.
    Raises `SettingsError` for shapes that don't fit, empty sets and values that are not finite.
    """
    first, second = _rows(training, "training"), _rows(generated, "generated")
    if first.shape[1] != second.shape[1]:
        raise SettingsError(
            f"training vectors have {first.shape[1]} numbers and generated ones {second.shape[1]}: "
            "both must come from one encoder"
        )
    rows, d = nearest(metric, training, generated, candidates, device)
    if rerank is not None:
        x, y = _float_tensor(rerank[0]), _float_tensor(rerank[1])
        if (len(x), len(y)) != (len(first), len(second)):
            raise SettingsError(
                f"{len(x)} and {len(y)} vectors to re-rank were given for {len(first)} training and "
                f"{len(second)} generated images: one each is needed"
            )
        d = np.stack(
            [distances(rerank_metric, one, x[mine], device) for one, mine in zip(y, rows, strict=True)]
        )
        order = np.lexsort((rows, d), axis=1)
        rows, d = (np.take_along_axis(of, order, axis=1) for of in (rows, d))
    options: dict[str, Any] = {"k": k, "temperature": temperature, "null_distance": null_distance}
    share = (knn_shapley if rule == "knn-shapley" else shares)(d, **options)
    q = np.ones(len(d)) if quality is None else _array(quality)
    if q.shape != (len(d),):
        raise SettingsError(
            f"quality has the shape {q.shape}: one number for each of {len(d)} generated images is needed"
        )
    given = q[:, None] * share
    return Valued(values(given, rows, len(first)), rows, d, given, q - given.sum(axis=1))


# -- arrays --------------------------------------------------------------------------------------------


def _array(values: Any) -> np.ndarray:
    """float64, from numpy, lists or a tensor on any device."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)


def _float_tensor(array: Any) -> torch.Tensor:
    import torch

    if isinstance(array, torch.Tensor):
        return array.detach().to(torch.float32).contiguous()
    array = np.ascontiguousarray(array, dtype=np.float32)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _rows(vectors: Any, name: str) -> np.ndarray:
    found = _array(vectors)
    if found.ndim != 2 or not found.size:
        raise SettingsError(f"the {name} vectors have the shape {found.shape}: (images, numbers) is needed")
    if not np.isfinite(found).all():
        raise SettingsError(f"the {name} vectors have values that are not finite")
    return found


def _positive(temperature: float) -> None:
    if not temperature > 0:
        raise SettingsError(f"temperature = {temperature} can't be used: it must be above 0 (1 is the paper)")


def _nearest_k(d: np.ndarray, k: int | None) -> np.ndarray:
    """The distances, ``inf`` beyond the k smallest of each row."""
    if k is None or k >= d.shape[1]:
        return d
    if k < 1:
        raise SettingsError(f"k = {k} can't be used: at least one contributor is needed")
    ranks = np.argsort(np.argsort(d, axis=1, kind="stable"), axis=1, kind="stable")
    return np.where(ranks < k, d, np.inf)


def _finite(best: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(best), best, 0.0)
