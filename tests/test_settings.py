"""A flag beats the environment, which beats gmv.toml, which beats the default; secrets stay out."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from gmv_qdrant import FingerprintMismatch, SettingsError, Workspace
from gmv_qdrant.settings import ABOUT, SettingOptions, Settings

SMALL = {"encoder": "pixels:8", "distance": "l2@8", "quality": "none"}


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.resolve(tmp_path).device == "auto"
    (tmp_path / "gmv.toml").write_text('device = "file"\nprecision = "bf16"\n')
    assert Settings.resolve(tmp_path).device == "file"
    monkeypatch.setenv("GMV_DEVICE", "environment")
    assert Settings.resolve(tmp_path).device == "environment"
    assert Settings.resolve(tmp_path, device="flag").device == "flag"
    assert Settings.resolve(tmp_path, device=None).precision == "bf16"


@pytest.mark.parametrize(("name", "near"), [("GMV_CANDIDATE", "GMV_CANDIDATES"), ("GMV_DEVIC", "GMV_DEVICE")])
def test_a_misspelt_variable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, near: str
) -> None:
    monkeypatch.setenv("GMV_SOMETHING_ELSE", "of another program")
    Settings.resolve(tmp_path)
    monkeypatch.setenv(name, "7")
    with pytest.raises(SettingsError, match=rf"{name}, which is no setting \(did you mean {near}\?\)"):
        Settings.resolve(tmp_path)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"candidates": 0}, "candidates = 0"),
        ({"quantization": "zip"}, "'zip'"),
        ({"colour": "red"}, "no setting 'colour'"),
        ({"collection": "a/b"}, "'a/b'"),
        ({"candidates": "2_00"}, "a whole number from 1 to 10000"),
        ({"candidates": True}, "a whole number"),
        ({"candidates": 1.5}, "a whole number"),
        ({"target_recall": 1.1}, "at most 1"),
        ({"qdrant_timeout": float("nan")}, "a number above 0"),
        ({"offline": "perhaps"}, "true or false"),
        ({"encoder": 7}, "encoder = 7 .* text"),
        ({"encoder": "a\x00b"}, "text"),
        ({"encoder": "caf\udce9"}, "text in UTF-8"),
        ({"filter": ["a"]}, "a filter, such as"),
        ({"filter": "customer=a"}, "a filter, such as"),
        ({"quantization": "pg"}, "did you mean 'pq'"),
        ({"value": {"kk": 1}}, "did you mean 'k'"),
        ({"value": {"k": 0}}, "k = 0"),
        ({"value": {"temperature": 1, "calibration": "default"}}, "not with both"),
        ({"payout": 1}, "a table with some of currency, minimum"),
    ],
)
def test_what_cannot_be_used_is_named(given: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        Settings.resolve(**given)


def test_every_setting_is_a_keyword_with_an_about() -> None:
    tables = {"value", "payout"}  # of gmv.toml alone
    assert list(SettingOptions.__annotations__) == [name for name in ABOUT if name not in tables]
    assert [field.name for field in fields(Settings)] == list(ABOUT)
    assert all(about.meaning for about in ABOUT.values())


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("GMV_CANDIDATES", " 50 ", 50),
        ("GMV_OFFLINE", "Yes", True),
        ("GMV_QDRANT_GRPC", "0", False),
        ("GMV_TARGET_RECALL", ".5", 0.5),
        ("GMV_CACHE_DIR", "/tmp/w", Path("/tmp/w")),
        ("GMV_FILTER", '{"customer": 7}', {"customer": 7}),
        ("QDRANT_URL", "http://host:6333", "http://host:6333"),
        ("GMV_DEVICE", "", "auto"),
    ],
)
def test_variables_are_text(monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object) -> None:
    monkeypatch.setenv(name, text)
    assert getattr(Settings.resolve(), name.lower().removeprefix("gmv_")) == value


def test_a_variable_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMV_CANDIDATES", "many")
    with pytest.raises(SettingsError, match="GMV_CANDIDATES = 'many'"):
        Settings.resolve()


def test_an_unknown_name_in_the_file_is_named_with_the_near_one(tmp_path: Path) -> None:
    (tmp_path / "gmv.toml").write_text('devise = "cpu"\n')
    with pytest.raises(SettingsError, match=r"'devise' \(did you mean 'device'\?\).*gmv\.toml"):
        Settings.resolve(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"k\xe9y", "isn't text in UTF-8"),
        (b"", "one line"),
        (b"one\ntwo", "one line"),
        (None, "can't be read"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    settings = Settings.resolve(qdrant_api_key_file=tmp_path / "key")
    with pytest.raises(SettingsError, match=says):
        _ = settings.api_key


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = 1\na = 2", b'device = "\x00"'])
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "gmv.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=r"gmv\.toml can't be read"):
        Settings.resolve(tmp_path)


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
    settings = Settings.resolve(
        **SMALL, candidates=50, filter={"must": [{"key": 'a "b" \x7f \n é', "match": {"any": [1, True]}}]}
    )
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
