"""What a file system must be told before a name is safe, and where small pictures are kept."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

PAYOUTS = "payouts"
"""Folder of a workspace with the evidence of recorded payouts: names, URIs and hashes, no pictures, no vectors."""
THUMBNAILS = "thumbnails"
"""Folder of a workspace that is a cache: it can be removed at any time."""


def sync_folder(folder: Path) -> None:
    """Return when the names in this folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(file: Path, content: bytes | str) -> None:
    """Write a file that is there as a whole, or as it was before, whatever happens; it survives a power cut."""
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as opened:
            opened.write(content.encode() if isinstance(content, str) else content)
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(file.parent)


def thumbnail_stem(root: Path, content_hash: str | None, point_id: str) -> Path:
    """Where the pictures of an image are cached in a workspace: what follows is ``-SIZE.jpg``."""
    name = hashlib.sha256(f"{content_hash}\n{point_id}".encode()).hexdigest()
    return root / THUMBNAILS / name[:2] / name[2:32]


def remove_thumbnails(root: Path, images: Iterable[tuple[str | None, str]]) -> None:
    """Remove what is cached of these images: content hash and point id of each."""
    for content_hash, point_id in images:
        stem = thumbnail_stem(root, content_hash, point_id)
        for file in stem.parent.glob(f"{stem.name}-*"):
            file.unlink(missing_ok=True)
