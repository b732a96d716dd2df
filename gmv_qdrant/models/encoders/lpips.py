"""LPIPS as one vector per image: its pairwise distance is the squared Euclidean distance of two vectors.

Zhang et al., CVPR 2018: per layer, the mean over positions of ``sum_c w_c (a_c - b_c)^2`` of unit-normalised
activations. With ``w >= 0`` (all published ones) that is ``|| sqrt(w / HW) a - sqrt(w / HW) b ||^2``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gmv_qdrant.errors import ModelError, did_you_mean, first_line
from gmv_qdrant.models.base import Encoder, Storage
from gmv_qdrant.models.checkpoints import load_state, quiet, state_hash
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.encoders.backbones import torchvision_file
from gmv_qdrant.models.encoders.pixels import canonical_size
from gmv_qdrant.models.weights import WeightFile, require

if TYPE_CHECKING:
    import torch

BACKBONES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""By network, torchvision's file of its weights."""


def canonical(argument: str) -> str:
    """``vgg@32``; ``""`` is ``alex@64``. Raises `ModelError` for another network or resolution."""
    net, _, size = argument.partition("@")
    net = net or "alex"
    if net not in BACKBONES:
        raise ModelError(
            f"LPIPS has no network {net!r}{did_you_mean(net, BACKBONES)}: {', '.join(BACKBONES)}"
        )
    return f"{net}@{canonical_size(size)}"


def files(argument: str, runtime: Runtime) -> list[WeightFile]:
    """The backbone of torchvision; the linear weights are part of the package."""
    file = BACKBONES[argument.partition("@")[0]]
    return [torchvision_file(f"https://download.pytorch.org/models/{file}", runtime)]


def load(argument: str, runtime: Runtime) -> Encoder:
    """``lpips:NET@SIZE``: float16 rows, error of a distance below 1e-4; metric ``sqeuclid``."""
    from gmv_qdrant.models.encoders.network import NetworkEncoder, Preprocessing

    net, _, size = argument.partition("@")
    path = require(f"lpips:{argument}", files(argument, runtime), runtime)[0]
    with quiet():  # the package builds its backbone by torchvision's old keywords
        import lpips

        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    _load_backbone(model.net, load_state(path), str(path))
    half = (0.5, 0.5, 0.5)  # [-1, 1], which the package expects and doesn't check
    features = _Features(model)
    return NetworkEncoder(
        f"lpips:{argument}",
        model,
        Preprocessing.squash(int(size), half, half, "in [-1,1]"),
        runtime,
        weights=state_hash(model.state_dict()),
        forward=features,
        metric="sqeuclid",
        storage=Storage("float16", features.scale),
    )


def _load_backbone(net: torch.nn.Module, state: dict[str, torch.Tensor], path: str) -> None:
    """The package numbers its layers as torchvision does: ``slice2.3`` is ``features.3``."""
    wanted = {name: "features." + name.split(".", 1)[1] for name in net.state_dict()}
    missing = sorted(set(wanted.values()) - set(state))
    if missing:
        raise ModelError(f"{path} lacks {missing[0]}: it holds no backbone that LPIPS can use")
    try:
        net.load_state_dict({name: state[source] for name, source in wanted.items()})
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit: {first_line(error)}") from error


class _Features:
    """[-1,1] ``(n, 3, r, r)`` -> ``(n, dim)``, channels of weight 0 left out."""

    def __init__(self, model: Any) -> None:
        import torch

        self._model = model
        self._weights = [lin.model[-1].weight.detach().flatten().clone() for lin in model.lins]
        if any(bool((weight < 0).any()) for weight in self._weights):
            raise ModelError("these LPIPS weights are negative somewhere, so their distance is not a metric")
        self._kept = [torch.nonzero(weight).flatten() for weight in self._weights]

    @property
    def scale(self) -> float:
        """A power of two that puts the largest possible entry near float16's top: small ones stay normal."""
        largest = max(float(weight.max()) for weight in self._weights)
        return 2.0 ** (math.ceil(math.log2(math.sqrt(largest))) - 15)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        import lpips
        import torch

        parts = []
        for layer, weight, kept in zip(
            self._model.net(self._model.scaling_layer(pixels)), self._weights, self._kept, strict=True
        ):
            unit = lpips.normalize_tensor(layer.float())
            area = layer.shape[2] * layer.shape[3]
            kept = kept.to(layer.device)
            root = (weight.to(layer.device)[kept] / area).sqrt().view(1, -1, 1, 1)
            parts.append((unit[:, kept] * root).flatten(1))
        return torch.cat(parts, dim=1)
