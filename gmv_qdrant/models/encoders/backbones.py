"""Image networks of timm and torchvision as recall encoders: penultimate features, or the last feature maps averaged,
unit length."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from gmv_qdrant.errors import ModelError, did_you_mean, first_line
from gmv_qdrant.models.base import Encoder
from gmv_qdrant.models.checkpoints import LOAD_ERRORS, load_state, state_hash
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.weights import HubFile, UrlFile, WeightFile, require, torch_cache

if TYPE_CHECKING:
    import torch


def model_name(argument: str) -> str:
    """The argument as it is. Raises `ModelError` when there is none."""
    if not argument:
        raise ModelError("which model? Write timm:MODEL or torchvision:MODEL")
    return argument


# --- timm ---------------------------------------------------------------------------------------------------


def _check_timm(argument: str) -> str:
    """``MODEL[.TAG]`` -> ``MODEL``, when timm has it."""
    import timm

    model = argument.split(".", 1)[0]
    if not timm.is_model(model):
        raise ModelError(f"timm has no model {model!r}{did_you_mean(model, timm.list_models())}")
    return model


def timm_files(argument: str, runtime: Runtime) -> list[WeightFile]:
    """The published weights of a timm model. Raises `ModelError` for unknown ones, or when there are none."""
    import timm

    model = _check_timm(argument)
    if "." in argument and argument not in timm.list_pretrained():
        tagged = timm.list_pretrained(f"{model}.*")
        raise ModelError(f"timm has no weights {argument!r}{did_you_mean(argument, tagged)}")
    config = timm.get_pretrained_cfg(argument)
    if config is not None and config.hf_hub_id:
        file = config.hf_hub_filename
        repo, _, revision = config.hf_hub_id.partition("@")
        return [
            HubFile.of(
                repo,
                [file] if file else ["model.safetensors", "pytorch_model.bin"],
                runtime,
                revision or None,
            )
        ]
    if config is not None and isinstance(config.url, str) and config.url:
        return [UrlFile(config.url, torch_cache(runtime) / "checkpoints")]
    raise ModelError(f"timm publishes no weights for {argument!r}: give a file by --encoder-weights")


def load_timm(argument: str, runtime: Runtime) -> Encoder:
    """``timm:MODEL[.TAG]``, with timm's own data configuration and evaluation transform."""
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    from gmv_qdrant.models.encoders.network import NetworkEncoder, Preprocessing

    _check_timm(argument)
    path = runtime.weights or require(f"timm:{argument}", timm_files(argument, runtime), runtime)[0]
    overlay: dict[str, Any] = {"file": str(path)}
    if runtime.weights:
        overlay["custom_load"] = path.suffix == ".npz"
    watch = _MissingKeys()
    try:
        with watch:
            model = timm.create_model(
                argument, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay
            ).float()
    except LOAD_ERRORS as error:
        raise ModelError(f"{path} does not fit timm:{argument}: {first_line(error)}") from error
    if watch.message:
        raise ModelError(f"{path} does not fit timm:{argument}: {watch.message[:120]}")
    config: dict[str, Any] = resolve_data_config({}, model=model)  # type: ignore[no-untyped-call]
    height, width = config["input_size"][1:]
    line = f"{width}x{height} {config['crop_mode']} {config['crop_pct']:g} {config['interpolation']}"
    preprocessing = Preprocessing.of_transform(create_transform(**config, is_training=False), line)
    digest = state_hash(model.state_dict())
    return NetworkEncoder(f"timm:{argument}", model, preprocessing, runtime, weights=digest, unit=True)


class _MissingKeys(logging.Handler):
    """timm only logs parameters that a file lacks, and leaves them random; here that is an error.

    Without a classifier (``num_classes=0``) it loads non-strictly, so another architecture's file would pass.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.message = ""
        self._logger = logging.getLogger("timm.models._builder")

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("Missing keys"):
            self.message = record.getMessage()

    def __enter__(self) -> None:
        self._before = self._logger.level, self._logger.propagate
        self._logger.addHandler(self)
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False

    def __exit__(self, *exception: object) -> None:
        self._logger.removeHandler(self)
        self._logger.level, self._logger.propagate = self._before


# --- torchvision --------------------------------------------------------------------------------------------

POOLED = "@features"
"""End of a torchvision name: the last feature maps, averaged over all places, and no classifier."""


def _torchvision_weights(argument: str) -> Any:
    """The weights enum member of ``MODEL`` or ``MODEL/WEIGHTS``, with or without ``@features``."""
    from torchvision import models

    name, _, wanted = argument.removesuffix(POOLED).partition("/")
    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(f"torchvision has no classifier {name!r}{did_you_mean(name, known)}")
    published = models.get_model_weights(name)
    if wanted and wanted not in published.__members__:
        raise ModelError(f"{name} has no weights {wanted!r}{did_you_mean(wanted, published.__members__)}")
    return published[wanted] if wanted else published.DEFAULT


def torchvision_file(url: str, runtime: Runtime) -> UrlFile:
    """Where torchvision itself would keep it."""
    return UrlFile(url, torch_cache(runtime) / "checkpoints")


def torchvision_files(argument: str, runtime: Runtime) -> list[WeightFile]:
    return [torchvision_file(_torchvision_weights(argument).url, runtime)]


def load_torchvision(argument: str, runtime: Runtime) -> Encoder:
    """``torchvision:MODEL[/WEIGHTS]``: the last layer's input (Table 9: AlexNet, DenseNet).

    ``torchvision:MODEL[/WEIGHTS]@features``: the last feature maps, averaged over all places: 256 numbers of AlexNet,
    in place of the 4,096 that its two hidden layers make of them.
    """
    from torchvision import models
    from torchvision.transforms import functional

    from gmv_qdrant.models.encoders.network import NetworkEncoder, Preprocessing, middle, triple, words

    published = _torchvision_weights(argument)
    name = f"torchvision:{argument}"
    path = runtime.weights or require(name, torchvision_files(argument, runtime), runtime)[0]
    architecture = argument.removesuffix(POOLED).partition("/")[0]
    model = models.get_model(architecture, weights=None, **_build_options(published))
    state = {_modern_key(name): tensor for name, tensor in load_state(path).items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{path} does not fit torchvision:{argument}: {first_line(error)}") from error
    if argument.endswith(POOLED):
        model = _pooled(model, architecture)
    else:
        _cut_head(model)
    preset = published.transforms()

    def crop(image: Any) -> Any:
        image = functional.resize(
            middle(image), preset.resize_size, interpolation=preset.interpolation, antialias=preset.antialias
        )
        return functional.center_crop(image, preset.crop_size)

    mean, std = triple(preset.mean), triple(preset.std)
    line = f"resize {preset.resize_size[0]} {preset.interpolation.value} centre {preset.crop_size[0]}"
    preprocessing = Preprocessing(crop, mean, std, f"{line} mean {words(mean)} std {words(std)}")
    digest = state_hash(model.state_dict())
    return NetworkEncoder(f"torchvision:{argument}", model, preprocessing, runtime, weights=digest, unit=True)


def _build_options(published: Any) -> dict[str, Any]:
    """What torchvision's builders set when they are given weights."""
    name = type(published).__name__.lower()
    if name.startswith("googlenet"):
        return {"transform_input": True, "aux_logits": True, "init_weights": False}
    if name.startswith("inception"):
        return {"transform_input": True, "init_weights": False}
    return {}


def _modern_key(name: str) -> str:
    """DenseNet's published files say ``norm.1`` where the model says ``norm1``."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d)", r"\1\2", name)


def _cut_head(model: torch.nn.Module) -> None:
    """Replace the last layer that has the 1000 classes by nothing."""
    import torch

    classes = 1000
    heads = [
        name
        for name, module in model.named_modules()
        if classes in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
    ]
    parent, _, child = heads[-1].rpartition(".")
    setattr(model.get_submodule(parent), child, torch.nn.Identity())


def _pooled(model: torch.nn.Module, name: str) -> torch.nn.Module:
    """The feature maps before pooling and classifier, averaged. Raises `ModelError` when the model has no such part."""
    import torch

    maps = getattr(model, "features", None)
    if not isinstance(maps, torch.nn.Module):
        raise ModelError(
            f"torchvision's {name} has no part called features: torchvision:{name} gives its averaged maps already"
        )
    return torch.nn.Sequential(maps, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
