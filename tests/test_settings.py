"""A flag beats the environment, which beats gmv.toml, which beats the default; secrets stay out."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmv_qdrant import FingerprintMismatch, SettingsError, Workspace
from gmv_qdrant.settings import Settings

SMALL = {"encoder": "pixels:8", "distance": "l2@8", "quality": "none"}


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.resolve(tmp_path).device == "auto"
    (tmp_path / "gmv.toml").write_text('device = "file"\nprecision = "bf16"\n')
    assert Settings.resolve(tmp_path).device == "file"
    monkeypatch.setenv("GMV_DEVICE", "environment")
    assert Settings.resolve(tmp_path).device == "environment"
    assert Settings.resolve(tmp_path, device="flag").device == "flag"
    assert Settings.resolve(tmp_path, device=None).precision == "bf16"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"candidates": 0}, "candidates = 0"),
        ({"quantization": "zip"}, "'zip'"),
        ({"colour": "red"}, "no setting 'colour'"),
        ({"collection": "a/b"}, "'a/b'"),
    ],
)
def test_what_cannot_be_used_is_named(given: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        Settings.resolve(**given)


def test_a_file_that_does_not_parse_is_named(tmp_path: Path) -> None:
    (tmp_path / "gmv.toml").write_text("encoder = [")
    with pytest.raises(SettingsError, match=r"gmv\.toml can't be read"):
        Settings.resolve(tmp_path)


def test_no_message_and_no_file_repeats_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.resolve(qdrant_url="http://me:hunter2@host:6333")
    assert "hunter2" not in str(caught.value)
    (tmp_path / "gmv.toml").write_text('qdrant_apikey = "hunter2"\n')  # a misspelt name
    with pytest.raises(SettingsError) as caught:
        Settings.resolve(tmp_path)
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("QDRANT_API_KEY", "hunter2")
    settings = Settings.resolve(**SMALL)
    assert settings.api_key is not None
    assert "hunter2" not in repr(settings)
    (tmp_path / "gmv.toml").unlink()
    settings.write(tmp_path)
    assert "hunter2" not in (tmp_path / "gmv.toml").read_text()


def test_what_is_written_reads_the_same(tmp_path: Path) -> None:
    settings = Settings.resolve(**SMALL, candidates=50, tenant={"customer": 'a "b"'})
    settings.write(tmp_path)
    assert Settings.resolve(tmp_path).evidence() == settings.evidence()


def test_evidence_settings_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Workspace.init(tmp_path / "ws", **SMALL, candidates=50)
    assert (
        Workspace.init(tmp_path / "ws", **SMALL, candidates=50).settings.candidates == 50
    )  # again: no change
    with pytest.raises(FingerprintMismatch, match=r"candidates = 50, not 60"):
        Workspace.init(tmp_path / "ws", candidates=60)
    monkeypatch.setenv("GMV_DISTANCE", "l2-norm@8")
    with pytest.raises(FingerprintMismatch, match="l2-norm@8"):
        Workspace(tmp_path / "ws")
    monkeypatch.setenv("GMV_DISTANCE", "l2@8")
    monkeypatch.setenv(
        "QDRANT_URL", "http://somewhere:6333"
    )  # others' workspaces are on a server; this one isn't
    assert Workspace(tmp_path / "ws").settings.qdrant_url is None


def test_a_short_name_is_the_same_name(tmp_path: Path) -> None:
    Workspace.init(tmp_path / "ws", encoder="pixels:8", distance="l2@64", quality="none")
    assert Workspace(tmp_path / "ws", distance="l2").settings.distance in ("l2", "l2@64")


def test_no_workspace_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="gmv-qdrant init"):
        Workspace(tmp_path)
