"""The stand-in server says what a real one said: the same status, the same shape, the same words of refusal."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import pytest
from loopback import Loopback
from served import Bucket

SCENES = Path(__file__).resolve().parents[3] / "shared" / "server" / "answers.jsonl"
pytestmark = pytest.mark.shared
KEYS = {
    "key: create": "root", "key: read-only": "reader", "jwt rw": "one-rw", "jwt: expired": "old", "jwt": "one",
    "key: wrong": "wrong",
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes() -> list[dict[str, Any]]:
    return [json.loads(line) for line in SCENES.read_text().splitlines()]


def ask(server: Loopback, scene: dict[str, Any]) -> httpx.Response:
    body = scene["body"]
    if isinstance(body, dict) and list(body) == ["bytes"]:
        body = " " * body["bytes"]
    headers = {}
    if scene["scene"].startswith(("key", "jwt")) and scene["headers"]:
        headers["api-key"] = next(key for start, key in KEYS.items() if scene["scene"].startswith(start))
    content = body if isinstance(body, str) else None if body is None else json.dumps(body)
    return httpx.request(
        scene["method"], server.url + scene["path"], content=content, headers=headers, timeout=60
    )


def shape(value: Any) -> Any:
    """Names and kinds; of a list, those of its items. Numbers may be null, and a number may be whole or not."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in sorted(value.items()) if name != "time"}
    if isinstance(value, list):
        kinds = [key for key, _ in groupby(sorted(json.dumps(shape(one)) for one in value))]
        return kinds[:1]
    return (
        "number"
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        else type(value).__name__
    )


def check(scene: dict[str, Any], answer: httpx.Response) -> None:
    name = f"{scene['scene']} ({scene['method']} {scene['path']})"
    assert answer.status_code == scene["status"], (name, answer.text)
    wanted = scene["answer"]
    if "text" in wanted:
        assert answer.text == wanted["text"], name
        return
    found = answer.json()
    if answer.status_code != 200:
        said, expected = found["status"]["error"], wanted["status"]["error"]
        start = "Format error in JSON body"
        assert (said[: len(start)] == start) if expected.startswith(start) else said == expected, name
        if "retry-after" in scene["answer_headers"]:
            assert answer.headers["retry-after"] == scene["answer_headers"]["retry-after"], name
        return
    assert shape(found) == shape(wanted), name
    counted = wanted.get("result")
    if isinstance(counted, dict) and "count" in counted:
        assert found["result"]["count"] == counted["count"], name


def test_every_recorded_answer(
    tmp_path: Path, scenes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bucket, "now", staticmethod(lambda: 0.0))  # recorded within seconds
    keyed = [scene for scene in scenes if scene["scene"].startswith(("key", "jwt"))]
    with Loopback(tmp_path / "open", version="1.19.0") as server:
        server.lenient = True
        for scene in scenes:
            if scene not in keyed:
                check(scene, ask(server, scene))
    with Loopback(tmp_path / "keyed", version="1.19.0", api_key="root") as server:
        server.read_only_key = "reader"
        server.tokens = {"one": {"k1": "r"}, "one-rw": {"k1": "rw"}, "old": {"!": ""}}
        for scene in keyed:
            check(scene, ask(server, scene))
    assert len(scenes) > 100
