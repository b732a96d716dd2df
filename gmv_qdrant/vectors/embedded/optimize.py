"""Quantize and index one embedded shard: run as a script, in a process of its own.

The engine holds the interpreter's lock for the whole time (22 s at 100,000 points, PQ x16), so the parent
closes the shard, runs ``python optimize.py SHARD`` and loads it again. It imports nothing but the
engine, so that it starts at once. Exit code 1 and one line on stderr when the engine fails.
"""

from __future__ import annotations

import ctypes
import signal
import sys


def main(shard_path: str) -> int:
    import qdrant_edge

    if sys.platform == "linux":  # when the parent is killed, leave the shard to whoever comes next
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    try:
        shard = qdrant_edge.EdgeShard.load(shard_path)
        built = shard.optimize()
        shard.flush()
        shard.close()
    except Exception as e:  # noqa: BLE001 - the engine raises bare Exceptions
        sys.stderr.write(" ".join(str(e).split()))
        return 1
    sys.stdout.write("built" if built else "nothing")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
