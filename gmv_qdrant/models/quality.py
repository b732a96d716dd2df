"""No-reference metrics of pyiqa, each mapped to [0,1] with higher better.

pyiqa is licensed for non-commercial use; a metric of one's own is an entry point of `gmv_qdrant.quality`.

The mapping of a metric with the range [low, high] is ``(score - low) / (high - low)``, turned round where
lower is better, and clipped to [0,1]. Ranges and directions are pyiqa's own, but for `RANGES`.
"""

from __future__ import annotations

import math
import os
import runpy
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from gmv_qdrant.errors import ModelError, did_you_mean, first_line
from gmv_qdrant.models.checkpoints import load_state, quiet, state_hash, swapped
from gmv_qdrant.models.devices import Runtime, exact_inference, resolve_device
from gmv_qdrant.models.weights import UrlFile, WeightFile, is_offline, reach, require, torch_cache

if TYPE_CHECKING:
    import torch

LARGEST = 2**26
"""Pixels that MANIQA may enlarge an image to: 800 MB of float32."""
RANGES: dict[str, tuple[float, float]] = {"pi": (0.0, 10.0)}
"""Where pyiqa names no finite range: the perceptual index is the mean of NIQE and 10 - NRQM."""

NOT_PER_IMAGE = {
    "clipscore": "it compares an image with a caption",
    "fid": "it compares sets of images",
    "sfid": "it compares sets of images",
    "fid_dinov2": "it compares sets of images",
    "inception_score": "it compares sets of images",
}

_MANIQA = "https://github.com/IIGROUP/MANIQA/releases/download"
_PYIQA = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main"
MANIQA_FILES = {
    "maniqa": f"{_MANIQA}/Koniq10k/ckpt_koniq10k.pt",
    "maniqa-kadid": f"{_PYIQA}/ckpt_kadid10k.pt",
    "maniqa-pipal": f"{_PYIQA}/MANIQA_PIPAL-ae6d356b.pth",
}


@dataclass(frozen=True, slots=True)
class Mapping:
    """How a raw score becomes q."""

    low: float
    high: float
    lower_better: bool

    def __call__(self, score: float) -> float:
        share = (score - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, 1.0 - share if self.lower_better else share))

    def __str__(self) -> str:
        share = f"(s - {self.low:g}) / {self.high - self.low:g}" if self.low else f"s / {self.high:g}"
        return f"q = 1 - {share}" if self.lower_better else f"q = {share}"


@cache
def _configs() -> dict[str, dict[str, Any]]:
    """pyiqa's table of its no-reference metrics, read without importing pyiqa, which takes seconds."""
    package = find_spec("pyiqa")
    if package is None or not package.submodule_search_locations:
        raise ModelError("quality metrics need the package pyiqa: install it, or use the quality 'none'")
    table = runpy.run_path(str(Path(package.submodule_search_locations[0]) / "default_model_configs.py"))
    configs: dict[str, dict[str, Any]] = table["DEFAULT_CONFIGS"]
    return {name: config for name, config in configs.items() if config["metric_mode"] == "NR"}


def mapping(name: str) -> Mapping:
    """The mapping of a pyiqa metric. Raises `ModelError` for an unknown one, or one without it."""
    known = _configs()
    if name not in known:
        raise ModelError(f"unknown quality metric {name!r}{did_you_mean(name, [*known, 'none'])}")
    if name in NOT_PER_IMAGE:
        raise ModelError(f"{name} gives no quality of one image: {NOT_PER_IMAGE[name]}")
    config = known[name]
    low, high = RANGES.get(name) or _parse_range(config.get("score_range", ""))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ModelError(f"{name} has no finite range ({config.get('score_range')}), so no mapping to [0,1]")
    return Mapping(low, high, bool(config.get("lower_better", False)))


def mappings() -> dict[str, Mapping]:
    """Every metric that can be used here, with its mapping."""
    found = {}
    for name in _configs():
        try:
            found[name] = mapping(name)
        except ModelError:
            continue
    return found


def files(name: str, runtime: Runtime) -> list[WeightFile]:
    """The checkpoint of MANIQA; the other metrics say what they need only while loading."""
    if name not in MANIQA_FILES:
        return []
    return [UrlFile(MANIQA_FILES[name], torch_cache(runtime) / "pyiqa")]


def load(name: str, runtime: Runtime) -> PyiqaMetric:
    """The metric ``name``, always in float32. Raises `ModelError` when its weights cannot be had."""
    how = mapping(name)
    device = resolve_device(runtime.device)
    if name in MANIQA_FILES:
        network = _maniqa(name, require(name, files(name, runtime), runtime)[0])
    else:
        network = _create(name, runtime)
    return PyiqaMetric(name, how, network.to(device), device)


class PyiqaMetric:
    """One image at a time, so the score depends on nothing else; random crops get one seed."""

    def __init__(self, name: str, how: Mapping, network: torch.nn.Module, device: str) -> None:
        self._name, self._mapping, self._device = name, how, device
        self._network = network.eval().requires_grad_(False)
        state = self._network.state_dict()
        self.identity = f"{name}: {how}, clipped; weights {state_hash(state) if state else 'none'}"

    def score(self, image: Image.Image) -> float:
        """RGB image -> quality in [0,1]; raises whatever the metric raises for an image that it cannot take."""
        if self._name == "piqe" and not image.getbbox():
            return 0.0  # PIQE divides by the brightest pixel; other flat images get its worst score, 100
        pixels = _to_unit(image).to(self._device)
        with exact_inference(), _fixed_seed():
            score = float(self._network(pixels))
        return self._mapping(score) if math.isfinite(score) else score


def _to_unit(image: Image.Image) -> torch.Tensor:
    """RGB image -> float32 ``(1, 3, h, w)`` in [0,1], as pyiqa reads files."""
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.permute(2, 0, 1).unsqueeze(0).float().div(255.0)


def _parse_range(text: str) -> tuple[float, float]:
    """``"~0, ~100"`` -> ``(0, 100)``; an end without a number is infinite."""
    low, _, high = text.partition(",")
    numbers = []
    for end in (low, high):
        try:
            numbers.append(float(end.strip().lstrip("~")))
        except ValueError:
            numbers.append(math.inf)
    return numbers[0], numbers[1]


@contextmanager
def _fixed_seed() -> Iterator[None]:
    """Some metrics crop at random, by numpy's or torch's global generator."""
    import numpy as np
    import torch

    before = np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            np.random.set_state(before)


# --- loading ------------------------------------------------------------------------------------------------


def _create(name: str, runtime: Runtime) -> Any:
    """pyiqa's own construction, with our downloader and weights-only unpickling."""
    import torch
    from huggingface_hub import constants

    def download(url: str, path: str, *_: Any, **__: Any) -> None:
        target = Path(path)
        require(name, [UrlFile(url, target.parent, target.name)], runtime)

    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    with quiet(), ExitStack() as stack:
        import pyiqa
        from pyiqa.utils import download_util

        stack.enter_context(swapped(download_util, "download_url_to_file", download))
        stack.enter_context(swapped(download_util, "DEFAULT_CACHE_DIR", str(torch_cache(runtime) / "pyiqa")))
        stack.enter_context(swapped(torch.hub, "download_url_to_file", download))
        if is_offline(runtime) or not runtime.trust or not _reachable(constants.ENDPOINT):
            stack.enter_context(swapped(constants, "HF_HUB_OFFLINE", True))
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
        try:
            return pyiqa.create_metric(name, device="cpu").net
        except ModelError:
            raise
        except ImportError as error:
            older = "setuptools<81" if error.name == "pkg_resources" else error.name
            raise ModelError(f"{name} needs the package {older}: pip install '{older}'") from error
        except Exception as error:  # sixty architectures, each with its own ways to fail
            hint = f"; try 'gmv-qdrant models fetch --trust {name}'" if constants.HF_HUB_OFFLINE else ""
            raise ModelError(f"pyiqa cannot load {name}: {first_line(error)}{hint}") from error
        finally:
            if before is None:
                del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
            else:
                os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _reachable(endpoint: str) -> bool:
    try:
        reach(endpoint)
    except ModelError:
        return False
    return True


def _maniqa(name: str, path: Path) -> Any:
    """pyiqa's MANIQA from its checkpoint, weights-only, without the timm download that it would overwrite."""
    with quiet():
        import timm
        from pyiqa.archs import maniqa_arch

    def untrained(model: str, **_: Any) -> Any:
        return timm.create_model(model, pretrained=False)

    options = {key: value for key, value in _configs()[name]["metric_opts"].items() if key != "type"}
    state = load_state(path)
    with quiet(), swapped(maniqa_arch, "timm", types.SimpleNamespace(create_model=untrained)):
        network = maniqa_arch.MANIQA(**options, pretrained=False)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit {name}: {first_line(error)}") from error
    return score_distinct_crops(network)


def score_distinct_crops(network: Any) -> Any:
    """MANIQA whose forward skips repeated crops.

    pyiqa takes 20 uniform crops, and where a side is up to 227 px many or all are the same. The score is a
    weighted mean over all patches of all crops, where each distinct crop comes equally often (1, 4, 5 or 20
    times), so the distinct crops give the same score.
    """
    from pyiqa.archs import maniqa_arch

    original = type(network).forward
    scope = {**maniqa_arch.__dict__, "uniform_crop": distinct_crops}
    network.forward = types.MethodType(types.FunctionType(original.__code__, scope), network)
    return network


def distinct_crops(image: torch.Tensor, crop_size: int, crop_num: int) -> torch.Tensor:
    """``(1, 3, h, w)`` -> pyiqa's ``uniform_crop``, each position once: ``(crops, 3, size, size)``."""
    import torch

    shorter = min(image.shape[2:])
    if shorter <= crop_size:
        factor = (crop_size + 1) / shorter
        if factor**2 * image.shape[2] * image.shape[3] > LARGEST:
            raise ValueError(
                f"its shorter side would be enlarged to {crop_size + 1} pixels, and the longer likewise"
            )
        image = torch.nn.functional.interpolate(image, scale_factor=factor, mode="bilinear")
    height, width = image.shape[2:]
    steps = int(math.sqrt(crop_num))
    down, right = (height - crop_size) // steps, (width - crop_size) // steps
    side = math.ceil(math.sqrt(crop_num))
    grid = [(row * down, column * right) for row in range(side) for column in range(side)][:crop_num]
    return torch.cat([image[..., y : y + crop_size, x : x + crop_size] for y, x in dict.fromkeys(grid)])
