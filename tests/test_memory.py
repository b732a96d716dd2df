"""Memory: what a workspace needs of its own doesn't grow with the images that it holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = """
import sys
from pathlib import Path
from gmv_qdrant import Workspace

def own():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0])

root = Path(sys.argv[1])
workspace = Workspace.init(root / "ws", encoder="pixels:8", distance="l2@32", quality="none", candidates=20)
for name in ("first", "second"):  # from then on libraries have what they keep
    workspace.ingest([root / name])
    workspace.value([root / "first"])
before = own()
workspace.ingest([root / "third"])
workspace.value([root / "first"])
print(own() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_of_an_image_is_bounded(tmp_path: Path) -> None:
    """Pixels and vectors of the third 3,000 images would be 72 MB."""
    random = np.random.default_rng(0)
    for name, count in (("first", 200), ("second", 3_000), ("third", 3_000)):
        (tmp_path / name).mkdir()
        for i in range(count):
            pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.bmp")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) < 36_000
