"""CLIP's image tower by open_clip as a recall encoder (the paper's choice, section 3.1)."""

from __future__ import annotations

from typing import Any

from gmv_qdrant.errors import ModelError, did_you_mean, first_line
from gmv_qdrant.models.base import Encoder
from gmv_qdrant.models.checkpoints import LOAD_ERRORS, quiet, state_hash
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.weights import HubFile, WeightFile, require

DEFAULT = "ViT-B-32-quickgelu/openai"


def canonical(argument: str) -> str:
    """``MODEL/PRETRAINED``; ``""`` is the default. Raises `ModelError` when a half is missing."""
    argument = argument or DEFAULT
    model, slash, tag = argument.rpartition("/")
    if not (model and slash and tag):
        raise ModelError(
            f"clip:{argument} names no weights: write clip:MODEL/PRETRAINED, such as clip:{DEFAULT}"
        )
    return argument


def files(argument: str, runtime: Runtime) -> list[WeightFile]:
    """The published weights of ``MODEL/PRETRAINED``. Raises `ModelError` for unknown or disagreeing names."""
    if argument == DEFAULT:  # without the seconds that its package takes to import
        return [HubFile.of("timm/vit_base_patch32_clip_224.openai", ["open_clip_model.safetensors"], runtime)]
    import open_clip

    model, tag = _known(argument)
    config = open_clip.get_pretrained_cfg(model, tag)
    if not config:
        tags = open_clip.list_pretrained_tags_by_model(model)
        other = _twin(model)
        if tag in open_clip.list_pretrained_tags_by_model(other):
            raise ModelError(f"clip:{argument} does not exist: use clip:{other}/{tag}")
        raise ModelError(f"open_clip has no weights {tag!r} for {model}{did_you_mean(tag, tags)}")
    if not config.get("hf_hub"):
        raise ModelError(f"open_clip names no repository of {argument}: give its file by --encoder-weights")
    repo, _, name = config["hf_hub"].rpartition("/")
    # open_clip looks for the safe form of the same file first
    if not name:
        names = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    else:
        names = [f"{name[:-4]}.safetensors", name] if name.endswith((".bin", ".pth")) else [name]
    return [HubFile.of(repo, names, runtime)]


def load(argument: str, runtime: Runtime) -> Encoder:
    """``clip:MODEL/PRETRAINED``: the image embedding, unit length, with the tag's own preprocessing."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from gmv_qdrant.models.encoders.network import NetworkEncoder, Preprocessing

    model_name, tag = _known(argument)
    path = runtime.weights or require(f"clip:{argument}", files(argument, runtime), runtime)[0]
    try:
        with quiet():
            model = open_clip.create_model(
                model_name,
                pretrained=str(path),
                force_preprocess_cfg=open_clip.get_pretrained_cfg(model_name, tag) or None,
            )
    except LOAD_ERRORS as error:
        raise ModelError(f"{path} does not fit clip:{argument}: {first_line(error)}") from error
    config: dict[str, Any] = open_clip.get_model_preprocess_cfg(model)
    transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
    line = f"{config['size']} {config['resize_mode']} {config['interpolation']}"
    return NetworkEncoder(
        f"clip:{argument}",
        model,
        Preprocessing.of_transform(transform, line),
        runtime,
        weights=state_hash(model.visual.state_dict()),
        forward=model.encode_image,
        unit=True,
    )


def _known(argument: str) -> tuple[str, str]:
    """Model and tag, where the model exists and its activation is the one that the tag was trained with."""
    import open_clip

    model, _, tag = canonical(argument).rpartition("/")
    model_config = open_clip.get_model_config(model)
    if model_config is None:
        raise ModelError(f"open_clip has no model {model!r}{did_you_mean(model, open_clip.list_models())}")
    tag_config = open_clip.get_pretrained_cfg(model, tag)
    if tag_config and bool(tag_config.get("quick_gelu")) != bool(model_config.get("quick_gelu")):
        wanted = "QuickGELU" if tag_config.get("quick_gelu") else "GELU"
        twin = _twin(model)
        known = open_clip.get_model_config(twin) is not None
        way_out = f"use clip:{twin}/{tag}" if known else f"use other weights, such as clip:{DEFAULT}"
        raise ModelError(
            f"the weights {tag!r} were trained with {wanted}, which {model} does not have: {way_out}"
        )
    return model, tag


def _twin(model: str) -> str:
    """The same architecture with the other activation."""
    suffix = "-quickgelu"
    return model.removesuffix(suffix) if model.endswith(suffix) else model + suffix
