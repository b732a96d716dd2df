"""What a stranger needs to recompute a payout: its document, its evidence as Parquet, and a manifest of both.

One folder for each recorded payout, kept in the workspace and copied out as it is. Names, URIs and hashes are in it;
pictures and vectors are not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gmv_qdrant.accounting.evidence import COLUMNS, Evidence
from gmv_qdrant.errors import LedgerError, SettingsError
from gmv_qdrant.files import sync_folder

DOCUMENT, MANIFEST = "payout.json", "manifest.json"
_README = """\
Payout {payout_id}, fingerprint {fingerprint}

payout.json      what was decided and what everybody is paid; its SHA-256 is the fingerprint above, which is
                 printed on every statement of this payout
*.parquet        the evidence that the amounts follow from
manifest.json    the SHA-256 of each file and of the whole

To recompute the amounts with nothing but Python, duckdb and pyarrow, take verify_payout.py of gmv-qdrant and run
    python verify_payout.py . --fingerprint {fingerprint}
with the fingerprint from a statement.
"""


def write_bundle(folder: Path, document: bytes, evidence: Evidence, facts: Mapping[str, Any]) -> str:
    """Make the folder, whole or not at all, over one that was there; returns the SHA-256 of its manifest.

    facts: more of what the manifest says: who recorded it, when and with what.
    Raises `SettingsError` when it can't be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    fingerprint = hashlib.sha256(document).hexdigest()
    readme = _README.format(payout_id=json.loads(document)["payout"], fingerprint=fingerprint)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / DOCUMENT).write_bytes(document)
        (partial / "README.txt").write_text(readme, encoding="utf-8")
        for name in COLUMNS:
            pq.write_table(evidence.table(name), partial / f"{name}.parquet", compression="zstd")
        files = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
        manifest: dict[str, Any] = {"fingerprint": fingerprint, "files": files, **facts}
        text = _manifest_text({**manifest, "whole": whole(manifest)})
        (partial / MANIFEST).write_bytes(text)
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(partial)
        shutil.rmtree(folder, ignore_errors=True)  # of a recording that didn't come to its end
        partial.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise SettingsError(f"the payout can't be kept in {folder}: {error.strerror}") from error
    return hashlib.sha256(text).hexdigest()


def whole(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of all that a manifest says, but for this: JSON with sorted names and no spaces."""
    rest = {name: value for name, value in manifest.items() if name != "whole"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_manifest(folder: Path, sha256: str) -> dict[str, Any]:
    """The manifest of a kept payout. Raises `LedgerError` when it, or a file that it names, isn't what was recorded."""
    try:
        text = (folder / MANIFEST).read_bytes()
        if hashlib.sha256(text).hexdigest() != sha256:
            raise LedgerError(f"{folder / MANIFEST} isn't the manifest that was recorded")
        manifest: dict[str, Any] = json.loads(text)
        there = {path.name for path in folder.iterdir()} - {MANIFEST}
        for name in sorted(there | manifest["files"].keys()):
            if name not in there:
                raise LedgerError(f"{folder / name} is missing")
            if name not in manifest["files"]:
                raise LedgerError(f"{folder / name} doesn't belong to the payout")
            if _sha256(folder / name) != manifest["files"][name]:
                raise LedgerError(f"{folder / name} isn't the file that was recorded")
    except OSError as error:
        raise LedgerError(f"the evidence kept in {folder} can't be read: {error.strerror}") from error
    return manifest


def read_evidence(folder: Path) -> Evidence:
    """The evidence of a kept payout."""
    try:
        tables = {name: pq.read_table(folder / f"{name}.parquet") for name in COLUMNS}
        return Evidence.of_tables(tables)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise LedgerError(f"the evidence kept in {folder} can't be read: {error}") from error


def copy_bundle(folder: Path, target: Path) -> list[Path]:
    """Copy a kept payout; returns the files. Raises `SettingsError` for a folder that holds something, or can't be
    written."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise SettingsError(f"{target} isn't empty: name a new folder for the payout")
        return [Path(shutil.copyfile(path, target / path.name)) for path in sorted(folder.iterdir())]
    except OSError as error:
        raise SettingsError(f"the payout can't be written to {target}: {error.strerror or error}") from error


def _manifest_text(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode("ascii")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
