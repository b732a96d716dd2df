"""What a file system must be told before a name is safe."""

import os
from pathlib import Path


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
