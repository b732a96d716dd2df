"""Killing the process of ours that asks."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def kill_asker(port: int) -> None:
    """SIGKILL to the descendant of this process whose connection comes from this port."""
    connections = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = {parts[9] for parts in connections if int(parts[1].split(":")[1], 16) == port}
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if any(os.readlink(link) == f"socket:[{inode}]" for link in Path(f"/proc/{pid}/fd").iterdir()):
                os.kill(pid, signal.SIGKILL)
                return
    raise AssertionError(f"nobody of ours asks from port {port}")


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(
                int(stat.parent.name)
            )
    found, left = [], [pid]
    while left:
        mine = children.get(left.pop(), [])
        found += mine
        left += mine
    return found
