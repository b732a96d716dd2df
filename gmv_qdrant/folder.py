"""The folder of a workspace: making it, and holding its settings against its ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gmv_qdrant.errors import FingerprintMismatch, SettingsError
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.settings import Settings


def make(root: Path, wanted: Settings, **meta: Any) -> None:
    """Make a workspace: settings, and an empty ledger, with ``meta`` in it from its first moment."""
    names = _canonical(wanted)
    wanted.encoder, wanted.distance, wanted.quality = names["encoder"], names["distance"], names["quality"]
    wanted.encoder_weights = names["encoder_weights"]
    if wanted.encoder_weights and not Path(wanted.encoder_weights).is_file():
        raise SettingsError(f"encoder_weights = {wanted.encoder_weights!r} is not a file")
    ledger_file = root / "ledger.duckdb"
    try:
        root.mkdir(parents=True, exist_ok=True)
        ledger_file.unlink(missing_ok=True)  # of an init that was killed: gmv.toml comes last
        ledger = Ledger.create(ledger_file)
        with ledger.write() as con:
            ledger.set_meta(con, settings=wanted.evidence(), **meta)
        wanted.write(root)
    except OSError as error:
        raise SettingsError(f"a workspace can't be made at {root}: {error.strerror}") from error


def settings_of(root: Path, ledger: Ledger, overrides: dict[str, Any]) -> Settings:
    """The settings of this process; raises `FingerprintMismatch` where the evidence was made with others."""
    kept: dict[str, Any] = json.loads(ledger.meta()["settings"])
    given = {name: value for name, value in overrides.items() if value is not None}
    if kept["qdrant_url"] is None and "qdrant_url" not in given:
        given["qdrant_url"] = ""  # an embedded workspace stays so, whatever QDRANT_URL says
    settings = Settings.resolve(root, **given)
    settings.qdrant_url = settings.qdrant_url or None
    if kept["qdrant_url"] and settings.qdrant_url:
        kept["qdrant_url"] = settings.qdrant_url  # the same deployment may move to another address
    mine = settings.evidence()
    if mine != kept:  # names may be spelt shorter than the workspace keeps them
        mine = _canonical(settings)
    for name, value in kept.items():
        if mine[name] != value:
            raise FingerprintMismatch(
                f"the workspace {root} was made with {name} = {value!r}, not {mine[name]!r}: evidence of "
                "two kinds can't be added up, so make another workspace with 'gmv-qdrant init'"
            )
    return settings


def _canonical(settings: Settings) -> dict[str, Any]:
    """The evidence settings with names spelt out, as a workspace keeps them."""
    from gmv_qdrant.models.encoders import canonical_distance_name, canonical_encoder_name
    from gmv_qdrant.models.quality import canonical_quality_name

    weights = settings.encoder_weights
    return {
        **settings.evidence(),
        "encoder": canonical_encoder_name(settings.encoder),
        "distance": canonical_distance_name(settings.distance),
        "quality": canonical_quality_name(settings.quality),
        "encoder_weights": str(Path(weights).absolute()) if weights else None,
    }
