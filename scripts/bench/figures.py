"""What is read from each benchmark's JSON document, its aim, and what is too bad on any machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

K = 200
"""The number of candidates of the paper's Table 1, which every aim is about."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One ratio of two sides of a run.

    read: from the document. aim: at most, or at least when ``least``. loose: what a ``--small`` run must keep,
    on a machine that does other things, too; None where a small run says nothing.
    """

    name: str
    read: Callable[[Mapping[str, Any]], float]
    aim: float | None = None
    least: bool = False
    loose: float | None = None

    def keeps(self, value: float, bound: float | None) -> bool | None:
        """None when there is no bound."""
        if bound is None:
            return None
        return value >= bound if self.least else value <= bound

    def worse(self, value: float, before: float) -> float:
        """By which factor ``value`` is worse than ``before``; below 1 it is better."""
        if before == value:
            return 1.0
        good, bad = (value, before) if self.least else (before, value)
        return bad / good if good else float("inf")


@dataclass(frozen=True, slots=True)
class Found:
    """A figure that a run gave."""

    bench: str
    figure: Figure
    value: float


def at(*path: str | int) -> Callable[[Mapping[str, Any]], float]:
    """The number at this path."""

    def read(document: Mapping[str, Any]) -> float:
        value: Any = document
        for name in path:
            value = value[name]
        return float(value)

    return read


def joined(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The document ``growth``: all n, and the forward passes of the networks that were measured."""
    if not {"scale", "million"} <= documents.keys():
        return {}
    scale = documents["scale"]
    forward = {"without": 0.0, "lite": scale.get("forward_ms")}
    if "paper" in documents:
        forward["paper"] = documents["paper"]["value"]["bare_ms"]["cpu"]
    return {"growth": {"n": scale["n"] | documents["million"]["n"], "forward_ms": forward}}


def growth(network: str, side: str) -> Callable[[Mapping[str, Any]], float]:
    """Milliseconds of a generated image at the largest n over those at the smallest, a forward pass in each."""

    def read(document: Mapping[str, Any]) -> float:
        forward = document["forward_ms"][network]
        of_size = [document["n"][str(n)][side][f"ms@{K}"] for n in sorted(map(int, document["n"]))]
        least, most = (row["recall"] + row["re-rank"] + forward for row in (of_size[0], of_size[-1]))
        return float(most / least)

    return read


def largest(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """All sides of ``scale.py`` at the largest n."""
    rows: Mapping[str, Any] = document["n"][max(document["n"], key=int)]
    return rows


def over_matmul(side: str, k: int = K) -> Callable[[Mapping[str, Any]], float]:
    """Processor time of a search over that of the exact matmul."""

    def read(document: Mapping[str, Any]) -> float:
        rows = largest(document)
        mine = rows[side].get(f"search@{k}") or rows[side][f"ms@{k}"]["search"]
        return float(mine["cpu_ms"] / rows["matmul"][f"search@{k}"]["cpu_ms"])

    return read


def of_codes(side: str) -> Callable[[Mapping[str, Any]], float]:
    def read(document: Mapping[str, Any]) -> float:
        rows = largest(document)[side]
        return float(rows["code_mb"] / rows["vector_mb"])

    return read


def of_recall(side: str, k: int = K) -> Callable[[Mapping[str, Any]], float]:
    return lambda document: float(largest(document)[side][f"recall@{k}"])


def _scale(*sides: str, aim: float | None) -> list[Figure]:
    found = []
    for side in sides:
        found += [
            Figure(f"{side}: search / float32 matmul, processor", over_matmul(side), aim, loose=40),
            Figure(f"{side}: recall@{K}", of_recall(side), 0.99, least=True, loose=0.98),
            Figure(f"{side}: codes / float32 vectors", of_codes(side), 1 / 8, loose=1 / 8),
        ]
    return found


def _throughput(aim: float | None) -> list[Figure]:
    return [
        Figure(
            f"{verb}: end to end / bare forward passes, {how}", at(verb, "times_the_bare_passes", clock), aim
        )
        for verb in ("ingest", "value")
        for clock, how in (("wall", "by the clock"), ("cpu", "processor"))
    ]


FIGURES: dict[str, list[Figure]] = {
    "paper": _throughput(1.10),
    "throughput": _throughput(None),
    "rerank": [
        Figure("times faster than pairwise calls, processor", at("times_faster_than", "pairwise", "cpu"), 150, True),
        Figure("times faster than batched pairs, processor", at("times_faster_than", "batched", "cpu"), 25, True),
        Figure("largest difference of a distance", at("largest_difference"), 1e-4),
    ],
    "authors": [Figure("times faster than the authors' way, processor", at("times_faster", "cpu"), 50, True)],
    "scale": [
        Figure(
            "recall and re-ranking, largest n / smallest", at("growth", "recall_and_rerank"), loose=10
        ),
        *_scale("pq", "turbo", aim=None),
    ],
    "million": [
        *_scale("pq", "turbo", aim=0.25),
        Figure("faiss: search / float32 matmul, processor", over_matmul("faiss")),
    ],
    "growth": [
        Figure(f"{side}: time of a generated image, largest n / smallest, {words}", growth(network, side), aim)
        for side in ("pq", "turbo")
        for network, words, aim in (
            ("without", "without networks", None),
            ("lite", "with EfficientNet-Lite0's pass", 1.5),
            ("paper", "with the paper's networks", 1.5),
        )
    ],
    "recall": [
        Figure(f"{kind}: recall@{K}", at("runs", -1, kind, "recall"), 0.99, least=True, loose=0.98)
        for kind in ("pq", "turbo", "scalar")
    ],
    "credits": [
        Figure(
            f"credits / bare GROUP BY, k = {k}, processor",
            at("seconds", f"k = {k}", "credits", "cpu_ratio"), 1.5, loose=20,
        )
        for k in (30, K)
    ],
    "ledger": [
        Figure(
            f"100M matches: credits / bare GROUP BY, k = {k}, processor",
            at("seconds", f"k = {k}", "credits", "cpu_ratio"), 1.5,
        )
        for k in (30, K)
    ],
    "bf16": [
        Figure("bf16: correlation of values", at("values_of_images", "correlation"), least=True),
        Figure("bf16: contributors kept", at("contributors_kept"), least=True),
    ],
    "update": [
        Figure(f"update after 1 % {change} / from scratch, processor", at(f"{verb} 1 %: share", "cpu_s"), 0.05)
        for verb, change in (("add", "more"), ("withdraw", "less"))
    ],
}  # fmt: skip


def read(bench: str, document: Mapping[str, Any]) -> list[Found]:
    """All figures of a document; those of sides that it doesn't have are left out."""
    found = []
    for figure in FIGURES.get(bench, []):
        try:
            found.append(Found(bench, figure, figure.read(document)))
        except (KeyError, IndexError, TypeError):
            continue
    return found
