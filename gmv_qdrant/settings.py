"""What a workspace is made with: a flag beats the environment, which beats ``gmv.toml``, which beats the default."""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

from gmv_qdrant import setting_values as parse
from gmv_qdrant.errors import SettingsError, did_you_mean
from gmv_qdrant.files import write_atomically

FILE = "gmv.toml"
T = TypeVar("T")

PRESETS: dict[str, dict[str, str]] = {
    "paper": {
        "encoder": "clip:ViT-B-32-quickgelu/openai",
        "distance": "dreamsim",
        "quality": "maniqa",
    },
    "light": {"encoder": "pixels:32", "distance": "l2@32", "quality": "none"},
}
"""What ``init --preset`` stands for: the paper's networks, or none at all. ``light`` takes images of any size and
form, down to one pixel; it scores no quality: metrics without weights fail on small images, and call flat ones bad."""


def with_preset(preset: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a preset stands for, where these don't say otherwise. Raises `SettingsError`."""
    if preset is not None and preset not in PRESETS:
        raise SettingsError(
            f"there is no preset {preset!r}{did_you_mean(preset, PRESETS)}: {', '.join(PRESETS)}"
        )
    given = {name: value for name, value in settings.items() if value is not None}
    return {**PRESETS.get(preset or "", {}), **given}


class SettingOptions(TypedDict, total=False):
    """The settings as keywords: None is "not given"."""

    encoder: str | None
    encoder_weights: str | Path | None
    distance: str | None
    quality: str | None
    candidates: int | None
    quantization: str | None
    views: str | None
    qdrant_url: str | None
    collection: str | None
    vector_name: str | None
    distance_vector: str | None
    filter: dict[str, Any] | None
    qdrant_api_key: str | None
    qdrant_api_key_file: str | Path | None
    qdrant_grpc: bool | None
    qdrant_grpc_port: int | None
    qdrant_timeout: float | None
    qdrant_patience: float | None
    device: str | None
    precision: str | None
    batch_size: int | None
    workers: int | None
    target_recall: float | None
    cache_dir: str | Path | None
    offline: bool | None
    trust: bool | None
    allow: Sequence[str] | None
    engine: str | None
    ray_workers: int | None


class About(NamedTuple):
    """What is known of a setting beside its default."""

    meaning: str
    parse: Callable[[Any], Any]
    fixed: bool
    """It decides what the evidence is, or where it is: written at ``init``, and stays."""
    variable: str | None
    """Its environment variable where that isn't ``GMV_`` and its name."""


def _setting(
    default: Any,
    parse: Callable[[Any], Any],
    meaning: str,
    *,
    fixed: bool = False,
    variable: str | None = None,
) -> Any:
    about = About(meaning, parse, fixed, variable)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata={"about": about})
    return dataclasses.field(default=default, metadata={"about": about})


@dataclasses.dataclass(frozen=True, slots=True)
class StandingValue:
    """``[value]`` of ``gmv.toml``: how this workspace's evidence becomes money.

    temperature or calibration: one of them, or neither: then the latest calibration ``default``, and the
    temperature 1 where there is none.
    """

    rule: Literal["owner-shapley", "shares"] = _setting(
        "owner-shapley",
        parse.one_of("owner-shapley", "shares"),
        "how the credit of one generated image is divided",
    )
    k: int | None = _setting(None, parse.integer(1), "candidates that count; by itself all")
    temperature: float | None = _setting(None, parse.number(1e9), "T in exp(-d/T)")
    calibration: str | None = _setting(None, parse.text, "a value function that `calibrate` kept")
    quality: bool = _setting(True, parse.flag, "weigh by the quality of generated images")

    def __post_init__(self) -> None:
        if self.temperature is not None and self.calibration is not None:
            raise ValueError(
                "a table with a temperature or a calibration, which has one of its own, not with both"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class StandingPayout:
    """``[payout]`` of ``gmv.toml``."""

    currency: str = _setting("XXX", parse.text, "ISO 4217")
    minimum: str = _setting("0", parse.text, "the least that is paid out")


def _table(kind: type[T]) -> Callable[[Any], T]:
    def parse(value: Any) -> T:
        if isinstance(value, kind):
            return value
        if not isinstance(value, dict):
            raise ValueError(f"a table with some of {', '.join(abouts(kind))}")
        return kind(**{name: _parsed(abouts(kind), name, held, name) for name, held in value.items()})

    return parse


@dataclasses.dataclass(slots=True)
class Settings:
    """Settings of one workspace.

    The first group decides what the evidence is and belongs to the ledger; the second only decides how fast it
    is made, and may differ from run to run.
    """

    encoder: str = _setting(PRESETS["paper"]["encoder"], parse.text, "recall encoder", fixed=True)
    encoder_weights: str | None = _setting(None, parse.text, "a local file with its weights", fixed=True)
    distance: str = _setting(PRESETS["paper"]["distance"], parse.text, "re-rank distance", fixed=True)
    quality: str = _setting(
        PRESETS["paper"]["quality"], parse.text, "quality metric of generated images", fixed=True
    )
    candidates: int = _setting(200, parse.integer(1, 10_000), "K, candidates of the recall phase", fixed=True)
    quantization: Literal["pq", "turbo", "scalar", "none"] = _setting(
        "pq",
        parse.one_of("pq", "turbo", "scalar", "none"),
        "of the recall vectors: `pq` (16 times smaller), `turbo`, `scalar`, `none`",
        fixed=True,
    )
    views: Literal["none", "flip"] = _setting(
        "none",
        parse.one_of("none", "flip"),
        "`flip`: a generated image is matched as it is and mirrored, and the smaller distance counts",
        fixed=True,
    )
    qdrant_url: str | None = _setting(
        None,
        parse.server,
        "a Qdrant server; without it the embedded store is used. The address may change later, the rest not",
        fixed=True,
        variable="QDRANT_URL",
    )
    collection: str = _setting("training", parse.collection, "name of the collection", fixed=True)
    vector_name: str = _setting(
        "recall",
        parse.text,
        "name of the vector in it; empty: an adopted collection's unnamed one",
        fixed=True,
    )
    distance_vector: str | None = _setting(
        None,
        parse.text,
        "name of the vector of an adopted collection that holds the distance's embeddings; without one they are "
        "computed from the images",
        fixed=True,
    )
    filter: dict[str, Any] = _setting(
        {},
        parse.point_filter,
        "of an adopted collection: which of its points are the training set, as Qdrant's own API takes it "
        '(`{ must = [{ key = "customer", match = { value = "a" } }] }`)',
        fixed=True,
    )

    qdrant_api_key: parse.Secret | None = _setting(
        None,
        parse.secret,
        "the server's key; from the environment only, never written anywhere",
        variable="QDRANT_API_KEY",
    )
    qdrant_api_key_file: Path | None = _setting(None, parse.path, "a file with the key")
    qdrant_grpc: bool = _setting(False, parse.flag, "gRPC instead of REST")
    qdrant_grpc_port: int | None = _setting(
        None, parse.integer(1, 65_535), "its port; by itself found by asking"
    )
    qdrant_timeout: float = _setting(60.0, parse.number(), "seconds for one request")
    qdrant_patience: float = _setting(
        120.0, parse.number(), "seconds that a server which is away or overloaded is waited for within a run"
    )
    device: str = _setting("auto", parse.text, "`cuda` where there is one, else `mps`, else `cpu`")
    precision: Literal["fp32", "bf16"] = _setting(
        "fp32",
        parse.one_of("fp32", "bf16"),
        "`bf16` casts the networks; it moves distances, so the first run decides for the workspace",
    )
    batch_size: int | None = _setting(
        None,
        parse.integer(1),
        "images in one forward pass; by itself up to 64 on a CPU and 256 on a GPU, and halved when there is no room",
    )
    workers: int | None = _setting(
        None, parse.integer(0), "threads that read and decode; by itself one for each core, at most 8"
    )
    target_recall: float = _setting(
        0.99,
        parse.number(1.0),
        "share of the exact K nearest that the search must find; measured, searched harder until met",
    )
    cache_dir: Path | None = _setting(
        None, parse.path, "where weights are kept; by itself each package's own folder"
    )
    offline: bool = _setting(False, parse.flag, "never ask the network for weights (also `HF_HUB_OFFLINE=1`)")
    trust: bool = _setting(
        False,
        parse.flag,
        "download weights whose SHA-256 nobody publishes as they come, and run code of model repositories",
    )
    allow: tuple[str, ...] = _setting(
        (),
        parse.places,
        "places that images may be read from beside the paths that are given: folders that links lead to, and how URLs "
        'begin (`["/data", "s3://bucket/"]`; in the environment a place on each line)',
    )
    engine: Literal["local", "ray"] = _setting(
        "local",
        parse.one_of("local", "ray"),
        "where images go through the networks: in this process, or on a `ray` cluster",
    )
    ray_workers: int | None = _setting(
        None, parse.integer(1), "worker processes of `engine = ray`; by itself one for each GPU"
    )
    value: StandingValue = _setting(StandingValue(), _table(StandingValue), "how evidence becomes money")
    payout: StandingPayout = _setting(StandingPayout(), _table(StandingPayout), "of all payouts")

    @classmethod
    def resolve(
        cls, workspace: Path | None = None, *, kept: dict[str, Any] | None = None, **flags: Any
    ) -> Settings:
        """Settings from flags (``None`` means not given), the environment and the workspace's file.

        kept: what stands in the place of defaults: the settings in a workspace's ledger.
        Raises `SettingsError` with the offending value.
        """
        file = workspace / FILE if workspace else None
        given = {name: (value, name) for name, value in (kept or {}).items() if value is not None}
        given |= {name: (value, f"{name} in {file}") for name, value in read_file(file).items()}
        _refuse_misspelt(os.environ)
        for name, about in ABOUT.items():
            variable = _variable(name, about)
            if value := os.environ.get(variable):
                given[name] = (value, variable)
        given |= {name: (value, name) for name, value in flags.items() if value is not None}
        return cls(**{name: _parsed(ABOUT, name, value, where) for name, (value, where) in given.items()})

    def replaced(self, **changes: Any) -> Settings:
        """A copy with other values."""
        return dataclasses.replace(self, **changes)

    def evidence(self) -> dict[str, Any]:
        """The settings that belong to the ledger."""
        return {name: getattr(self, name) for name in IMMUTABLE_SETTINGS}

    def write(self, workspace: Path) -> None:
        """Keep the evidence settings in the workspace's file, beside others that are in it; secrets never are."""
        lines = ["# What this workspace's evidence is made with; start another workspace to change it."]
        others = {n: v for n, v in read_file(workspace / FILE).items() if n not in IMMUTABLE_SETTINGS}
        for name, value in {**others, **self.evidence()}.items():
            if value is not None and value != {}:
                lines.append(f"{name} = {_toml(value)}")
        write_atomically(workspace / FILE, "\n".join(lines) + "\n")

    @property
    def api_key(self) -> parse.Secret | None:
        """The server's key, from ``QDRANT_API_KEY`` or the key file; never kept."""
        file = self.qdrant_api_key_file
        if self.qdrant_api_key is not None or file is None:
            return self.qdrant_api_key
        try:
            key = file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SettingsError(f"the key file {file} can't be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise SettingsError(
                f"the key file {file} isn't text in UTF-8: write the bare key into it"
            ) from None
        if not key or not key.isprintable() or not key.isascii():
            raise SettingsError(f"the key file {file} must hold one line, the bare key")
        return parse.Secret(key)


def abouts(kind: Any) -> dict[str, About]:
    """What is known of each field of `Settings`, or of a table in it."""
    return {field.name: field.metadata["about"] for field in dataclasses.fields(kind)}


ABOUT = abouts(Settings)
IMMUTABLE_SETTINGS = tuple(name for name, about in ABOUT.items() if about.fixed)
"""Settings that decide what the evidence is, and where it is; they are written at ``init`` and stay."""


def read_file(file: Path | None) -> dict[str, Any]:
    """The names and values in a ``gmv.toml``; none where there is no such file.

    Raises `SettingsError` for one that can't be read, and for a name that no setting has.
    """
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {}
    except OSError as error:
        raise SettingsError(f"{file} can't be read: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise SettingsError(
            f"{file} can't be read: {error}; take away the line, or the whole file: what the ledger knows is made again"
        ) from None
    for name in found:
        if name not in ABOUT:  # its value may be a secret under a misspelt name, so it isn't shown
            raise SettingsError(
                f"there is no setting {name!r}{did_you_mean(name, ABOUT)}: take it out of {file}"
            )
    return found


def _variable(name: str, about: About) -> str:
    return about.variable or f"GMV_{name.upper()}"


def _refuse_misspelt(environment: Mapping[str, str]) -> None:
    """A variable that is nearly one of ours would be passed over in silence. Raises `SettingsError`."""
    known = ["GMV_WORKSPACE", *(_variable(name, about) for name, about in ABOUT.items())]
    for name in environment:
        if name.startswith("GMV_") and name not in known:
            import difflib

            if near := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
                raise SettingsError(
                    f"the environment has {name}, which is no setting (did you mean {near[0]}?): rename or unset it"
                )


def _parsed(known: dict[str, About], name: str, value: Any, where: str) -> Any:
    if name not in known:
        raise SettingsError(f"there is no setting {name!r}{did_you_mean(name, known)}")
    try:
        return known[name].parse(value)
    except ValueError as error:
        shown = "..." if "api_key" in name else repr(value)
        raise SettingsError(f"{where} = {shown} can't be used: it must be {error}") from None


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
