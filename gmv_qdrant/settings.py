"""What a workspace is made with: a flag beats the environment, which beats ``gmv.toml``, which beats the default."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any, Literal, TypedDict

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from gmv_qdrant.errors import SettingsError, did_you_mean

FILE = "gmv.toml"

IMMUTABLE_SETTINGS = (
    "encoder",
    "encoder_weights",
    "distance",
    "quality",
    "candidates",
    "quantization",
    "views",
    "qdrant_url",
    "collection",
    "vector_name",
    "tenant",
)
"""Settings that decide what the evidence is, and where it is; they are written at ``init`` and stay."""


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
    tenant: dict[str, str | int | bool] | None
    qdrant_api_key: str | None
    qdrant_api_key_file: str | Path | None
    qdrant_grpc: bool | None
    qdrant_timeout: float | None
    device: str | None
    precision: str | None
    batch_size: int | None
    workers: int | None
    target_recall: float | None
    cache_dir: str | Path | None
    offline: bool | None
    engine: str | None
    ray_workers: int | None


class StandingValue(BaseModel):
    """``[value]`` of ``gmv.toml``: how this workspace's evidence becomes money.

    k: candidates that count, None for all. temperature or calibration: one of them, or neither: then the latest
    calibration ``default``, and the temperature 1 where there is none. quality: whether to weigh by it.
    """

    model_config = ConfigDict(extra="forbid")

    rule: Literal["owner-shapley", "shares"] = "owner-shapley"
    k: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=1e-9, le=1e9)
    calibration: str | None = None
    quality: bool = True

    @model_validator(mode="after")
    def _one_of_two(self) -> StandingValue:
        if self.temperature is not None and self.calibration is not None:
            raise ValueError("give a temperature or a calibration, which has one of its own")
        return self


class StandingPayout(BaseModel):
    """``[payout]`` of ``gmv.toml``: the currency (ISO 4217), and the least that is paid out."""

    model_config = ConfigDict(extra="forbid")

    currency: str = "XXX"
    minimum: str = "0"


class Settings(BaseSettings):
    """Settings of one workspace.

    The first group decides what the evidence is and belongs to the ledger; the second only decides how fast it
    is made, and may differ from run to run.
    """

    model_config = SettingsConfigDict(
        env_prefix="GMV_", extra="forbid", populate_by_name=True, validate_default=True
    )

    encoder: str = "clip:ViT-B-32-quickgelu/openai"
    encoder_weights: str | None = None
    distance: str = "dreamsim"
    quality: str = "maniqa"
    candidates: int = Field(200, ge=1, le=10_000)
    quantization: Literal["pq", "turbo", "scalar", "none"] = "pq"
    views: Literal["none", "flip"] = "none"
    qdrant_url: str | None = Field(None, validation_alias=AliasChoices("qdrant_url", "QDRANT_URL"))
    collection: str = Field("training", pattern=r"^[^/\\\x00<>:\"|?*]{1,255}$")
    vector_name: str = "recall"
    tenant: dict[str, str | int | bool] = Field(default_factory=dict)

    qdrant_api_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices("qdrant_api_key", "QDRANT_API_KEY"), exclude=True
    )
    qdrant_api_key_file: Path | None = None
    qdrant_grpc: bool = False
    qdrant_timeout: float = Field(60.0, gt=0)
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    batch_size: int | None = Field(None, ge=1)
    workers: int | None = Field(None, ge=0)
    target_recall: float = Field(0.99, gt=0, le=1)
    cache_dir: Path | None = None
    offline: bool = False
    engine: Literal["local", "ray"] = "local"
    ray_workers: int | None = Field(None, ge=1)
    value: StandingValue = StandingValue()
    payout: StandingPayout = StandingPayout()

    @field_validator("qdrant_url")
    @classmethod
    def _without_secrets(cls, url: str | None) -> str | None:
        """The URL is kept in the workspace and shown, so nothing secret may be in it."""
        if url and ("@" in url or "?" in url):
            raise SettingsError(
                "the URL of the Qdrant server carries a user, a password or a query, and it would be kept in the "
                "workspace: give its bare address, and the API key as QDRANT_API_KEY"
            )
        return url

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        return (*sources, TomlConfigSettingsSource(cls)) if cls.model_config.get("toml_file") else sources

    @classmethod
    def resolve(cls, workspace: Path | None = None, **flags: Any) -> Settings:
        """Settings from flags (``None`` means not given), the environment and the workspace's file.

        Raises `SettingsError` with the offending value.
        """
        file = workspace / FILE if workspace else None
        made = type("Settings", (cls,), {"model_config": {**cls.model_config, "toml_file": file}})
        given = {name: str(v) if isinstance(v, Path) else v for name, v in flags.items() if v is not None}
        try:
            settings = made(**given)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])) or "settings"
            if first["type"] == "extra_forbidden":  # its value may be a secret under a misspelt name
                raise SettingsError(
                    f"there is no setting {name!r}{did_you_mean(name, cls.model_fields)}: see docs/settings.md for "
                    "those there are"
                ) from None
            value = "..." if "api_key" in name.lower() else repr(first["input"])
            raise SettingsError(f"{name} = {value} can't be used: {first['msg']}") from None
        except ValueError as error:  # TOML that doesn't parse
            raise SettingsError(f"{file} can't be read: {error}") from None
        return cls.model_construct(**{name: getattr(settings, name) for name in cls.model_fields})

    def evidence(self) -> dict[str, Any]:
        """The settings that belong to the ledger."""
        return {name: getattr(self, name) for name in IMMUTABLE_SETTINGS}

    def write(self, workspace: Path) -> None:
        """Keep the evidence settings in the workspace's file, beside others that are in it; secrets never are."""
        lines = ["# What this workspace's evidence is made with; start another workspace to change it."]
        kept = {**_others(workspace / FILE), **self.evidence()}
        for name, value in kept.items():
            if value is not None and value != {}:
                lines.append(f"{name} = {_toml(value)}")
        partial = workspace / (FILE + ".partial")
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(partial, workspace / FILE)

    @property
    def api_key(self) -> SecretStr | None:
        """The server's key, from ``QDRANT_API_KEY`` or the key file; never kept."""
        if self.qdrant_api_key is not None or self.qdrant_api_key_file is None:
            return self.qdrant_api_key
        try:
            return SecretStr(self.qdrant_api_key_file.read_text(encoding="utf-8").strip())
        except OSError as error:
            raise SettingsError(
                f"the key file {self.qdrant_api_key_file} can't be read: {error.strerror}"
            ) from None


def _others(file: Path) -> dict[str, Any]:
    """What people added to the file: settings that only say how fast a run is made."""
    if not file.is_file():
        return {}
    there = tomllib.loads(file.read_text(encoding="utf-8"))
    return {name: value for name, value in there.items() if name not in IMMUTABLE_SETTINGS}


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
