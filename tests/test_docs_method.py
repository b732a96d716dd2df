"""The page about arrays runs as it is written, and finds what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs/how-to/embeddings-in-numpy.md"


def test_the_page_about_arrays_runs(capsys: Any) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    names: dict[str, Any] = {}
    exec(code, names)
    valued = names["valued"]
    assert valued.values.sum() == len(names["generated"]) or abs(valued.values.sum() - 20) < 1e-9
    assert set(valued.values.argsort()[::-1][:20].tolist()) == set(range(20))
    assert capsys.readouterr().out
