"""The folder of a workspace: made whole or not at all, told from other people's folders, used by one writer at a time.

Everything in the folder is the workspace's own, so nothing is made where something else is, and nothing outside
is ever removed. ``ledger.duckdb`` makes a folder a workspace; ``gmv.toml`` repeats what the ledger knows of the
settings, and is made again from it where it is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gmv_qdrant.errors import FingerprintMismatch, LedgerError, LedgerLocked, SettingsError
from gmv_qdrant.files import sync_folder
from gmv_qdrant.images.embedded import FOLDER as PAYLOAD_IMAGES
from gmv_qdrant.ledger.database import PUBLISHED, Ledger, Readable
from gmv_qdrant.settings import FILE, Settings, read_file

LEDGER = "ledger.duckdb"
LOCK = ".writing.lock"
_MAKING = ".ledger.making"
_CONTENTS = (PUBLISHED, "qdrant", "vectors")
"""What only a workspace that was used has."""
_HARMLESS = {FILE, LOCK, _MAKING, f"{_MAKING}.wal", ".DS_Store", "Thumbs.db", "desktop.ini", "lost+found"}
"""What an empty folder may hold."""
_PATIENCE = 10.0
"""Seconds that one `make` waits for another."""


def is_workspace(root: Path) -> bool:
    return (root / LEDGER).is_file()


def require_workspace(root: Path) -> None:
    """Raises `SettingsError` with the way out where there is no workspace."""
    if is_workspace(root):
        return
    refuse_lost_ledger(root)
    near = [child.name for child in _listed(root) if is_workspace(root / child.name)]
    hint = f"; there is one in it: -w {near[0]}" if near else ""
    raise SettingsError(f"{root} is not a workspace: make one with 'gmv-qdrant init {root}'{hint}")


def refuse_lost_ledger(root: Path) -> None:
    held = {child.name for child in _listed(root)}
    if FILE in held and held.intersection(_CONTENTS):
        way = f"copy {PUBLISHED} to it" if PUBLISHED in held else "put it back from a copy"
        raise LedgerError(f"the workspace {root} has lost its {LEDGER}: {way}; nothing here was changed")


def refuse_foreign(root: Path) -> None:
    """Raises `SettingsError` where the folder holds what isn't a workspace's, or can't be one."""
    if root.exists() and not root.is_dir():
        raise SettingsError(f"{root} is a file: name a folder for the workspace")
    refuse_lost_ledger(root)
    held = {child.name for child in _listed(root)}
    ours = {PUBLISHED, f"{PUBLISHED}.partial"} if _MAKING in held else set()  # of a `make` that was killed
    others = sorted(held - _HARMLESS - ours)
    if others:
        raise SettingsError(
            f"{root} holds other things ({', '.join(map(repr, others[:3]))}{', ...' if others[3:] else ''}), and a "
            f"workspace has a folder of its own: name a new one, such as {root / 'workspace'}"
        )


def _listed(root: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SettingsError(f"the folder {root} can't be read: {error.strerror}") from error


def make(root: Path, wanted: Settings, fill: Callable[[Ledger], None] = lambda _: None, **meta: Any) -> bool:
    """Make a workspace: settings, and a ledger with ``meta`` in it, which ``fill`` may fill, from its first moment.

    False when there is one already (another process may have been first). Raises `SettingsError` for a folder that
    holds something else.
    """
    if is_workspace(root):
        return False
    refuse_foreign(root)
    if wanted.encoder_weights and not Path(wanted.encoder_weights).is_file():
        raise SettingsError(f"encoder_weights = {wanted.encoder_weights!r} is not a file")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"a workspace can't be made at {root}: {error.strerror}") from error
    with alone(root, patience=_PATIENCE):
        if is_workspace(root):
            return False
        refuse_foreign(root)
        try:
            _make_ledger(root, fill, settings=wanted.evidence(), workspace_id=uuid.uuid4().hex, **meta)
            wanted.write(root)
        except OSError as error:
            raise SettingsError(f"a workspace can't be made at {root}: {error.strerror}") from error
    return True


def _make_ledger(root: Path, fill: Callable[[Ledger], None], **meta: Any) -> None:
    """Under another name first, so that a ledger is whole or not there."""
    making = root / _MAKING
    for left in (making, root / f"{_MAKING}.wal"):  # by one that was killed
        left.unlink(missing_ok=True)
    fill(Ledger.create(making, publish=False, **meta))
    Ledger(making).publish()  # before there is a ledger, so that whoever sees one can ask it
    with making.open("rb") as file:
        os.fsync(file.fileno())
    making.replace(root / LEDGER)
    sync_folder(root)


def unmake(root: Path) -> None:
    """Take back what `make` and a first run put into a folder that was empty."""
    for name in (LEDGER, f"{LEDGER}.wal", PUBLISHED, FILE, LOCK):
        (root / name).unlink(missing_ok=True)
    for name in ("vectors", PAYLOAD_IMAGES):
        shutil.rmtree(root / name, ignore_errors=True)
    with contextlib.suppress(OSError):  # what else was there stays, and the folder with it
        root.rmdir()


@contextlib.contextmanager
def alone(root: Path, patience: float = 0) -> Iterator[None]:
    """As the only writer of a workspace. Raises `LedgerLocked` when there is another."""
    from filelock import FileLock, Timeout  # whoever only asks needs none

    lock = FileLock(root / LOCK)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise LedgerLocked(
            f"another process is working on the workspace {root}: wait for it, or stop it; "
            "reading (credits, sql, status, export) goes on meanwhile"
        ) from None
    except OSError as error:
        raise SettingsError(f"the workspace {root} can't be written to: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def settings_of(root: Path, ledger: Readable, overrides: dict[str, Any]) -> Settings:
    """The settings of this process; raises `FingerprintMismatch` where the evidence was made with others."""
    kept: dict[str, Any] = json.loads(ledger.meta()["settings"])
    given = {name: value for name, value in overrides.items() if value is not None}
    kept["qdrant_url"] = _own_address(root, kept["qdrant_url"], given.get("qdrant_url"))
    settings = Settings.resolve(root, kept=kept, **{**given, "qdrant_url": kept["qdrant_url"] or ""})
    mine = settings.evidence()
    if mine != kept:  # names may be spelt shorter than the workspace keeps them
        mine = canonical(settings).evidence()
    for name, value in kept.items():
        if mine[name] != value:
            raise FingerprintMismatch(
                f"the workspace {root} was made with {name} = {value!r}, not {mine[name]!r}: evidence of "
                "two kinds can't be added up, so make another workspace with 'gmv-qdrant init'"
            )
    return settings


def _own_address(root: Path, kept: str | None, flag: str | None) -> str | None:
    """The server that the workspace's file names; None for the embedded store.

    Raises `SettingsError` where a flag, or the environment of a workspace on a server, names another one.
    """
    file = read_file(root / FILE)
    own: str | None = file.get("qdrant_url") if "encoder" in file else kept
    other = flag or (os.environ.get("QDRANT_URL") if own else None)
    if not other or (own and _normal(own) == _normal(other)):
        return own
    said = "--qdrant-url" if flag else "QDRANT_URL in the environment"
    raise SettingsError(
        f"the workspace {root} keeps its vectors {f'at {own}' if own else 'in its own folder'}, and {said} says "
        f"{Settings.resolve(qdrant_url=other).qdrant_url}: leave that out for this workspace, or, if its server has "
        f"moved there, change qdrant_url in {root / FILE}"
    )


def _normal(url: str) -> tuple[str, str | None, int, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or 6333, parts.path.rstrip("/")


def restore_settings(root: Path, settings: Settings) -> None:
    """Write ``gmv.toml`` again where it was lost, or emptied by a power cut."""
    if "encoder" not in read_file(root / FILE):
        settings.write(root)


def canonical(settings: Settings) -> Settings:
    """With the names of models spelt out, as a workspace keeps them."""
    from gmv_qdrant.models.catalogue import names_of

    weights = settings.encoder_weights
    return settings.replaced(
        **names_of(settings),
        encoder_weights=str(Path(weights).absolute()) if weights else None,
    )
