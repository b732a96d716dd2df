"""Every input is accounted for: taken, known or quarantined, under each of its names; nobody stops a run."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import tiny_workspace
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.errors import SettingsError
from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.models.wrappers import RecallDistance
from gmv_qdrant.pipeline import embedding
from gmv_qdrant.pipeline.embedding import Embedded, Embedder, Loaded
from gmv_qdrant.pipeline.streams import NullProgress

FAILURES = [MemoryError(), ValueError("a bad number"), RuntimeError(), OverflowError("x" * 9), KeyError("k")]


@pytest.fixture
def root() -> Iterator[Path]:
    with tiny_workspace.scratch() as folder:
        yield folder


@pytest.fixture
def workspace(root: Path) -> Workspace:
    made = Workspace.init(root / "workspace", **tiny_workspace.SETTINGS)
    made.ingest(tiny_workspace.write(root / "a", range(8)), owner="ada")
    return made


def quarantined(workspace: Workspace) -> dict[str, str]:
    return {
        Path(uri).name: kind for uri, kind in workspace.sql("SELECT uri, kind FROM quarantine").fetchall()
    }


def adds_up(summary: dict[str, Any]) -> bool:
    names = ("new", "valued", "known", "quarantined")
    return summary["seen"] == sum(summary.get(name, 0) for name in names)


def test_equal_bytes_are_quarantined_under_each_name(workspace: Workspace, root: Path) -> None:
    folder = root / "g"
    tiny_workspace.write(folder, range(50, 54))
    for number in range(5):
        (folder / f"empty-{number}.png").write_bytes(b"")
    for number in range(3):
        (folder / f"cut-{number}.png").write_bytes(tiny_workspace.png(60)[:80])
    for verb in (workspace.value, workspace.ingest):
        summary = verb([folder])  # type: ignore[operator]
        assert summary["quarantined"] == 8
        assert adds_up(summary)
        assert len(quarantined(workspace)) == 8


def test_counts_of_every_kind_add_up(workspace: Workspace, root: Path) -> None:
    folder = root / "b"
    tiny_workspace.write(folder, [*range(4, 12)])  # four are known by their content
    (folder / "again.png").write_bytes(tiny_workspace.png(11))
    (folder / "cut.png").write_bytes(tiny_workspace.png(13)[:50])
    workspace.withdraw(ids=[str(tiny_workspace.point(4))])
    summary = workspace.ingest([folder, folder], owner="bo")
    assert adds_up(summary), summary
    assert (summary["new"], summary["quarantined"]) == (4, 4)  # a withdrawn and a cut one, each seen twice
    assert quarantined(workspace) == {"4.png": "withdrawn", "cut.png": "damaged"}


def test_generated_images_in_any_form_are_accounted_for(workspace: Workspace, root: Path) -> None:
    folder = root / "g"
    tiny_workspace.write(folder, range(50, 53))
    tifffile.imwrite(folder / "odd.tif", np.zeros((8, 8), np.complex64), photometric="minisblack")
    (folder / "metadata.csv").write_bytes(
        b"file_name,prompt\n50.png,a caf\xc3\xa9\n51.png,\xff\xfe\n52.png,x\n"
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as inner:
        inner.writestr("60.png", tiny_workspace.png(60))
    with zipfile.ZipFile(folder / "a.zip", "w") as outer:
        outer.writestr("61.final.png", tiny_workspace.png(61))
        outer.writestr("cut.png", tiny_workspace.png(62)[:60])
        outer.writestr("inner.zip", packed.getvalue())
    summary = workspace.value([folder], batch="b")
    assert (summary["valued"], summary["quarantined"], summary["seen"]) == (3, 3, 8)
    assert summary["not_images"] == {"archives or tables in an archive": 1, "descriptions": 1}
    reasons = dict(workspace.sql("SELECT uri, reason FROM quarantine").fetchall())
    assert {Path(uri).name for uri in reasons} == {"odd.tif", "a.zip#cut.png", "51.png"}
    assert "line 3 of " in next(reason for uri, reason in reasons.items() if uri.endswith("51.png"))


def test_images_without_an_owner_are_counted_and_said(workspace: Workspace, root: Path) -> None:
    said: list[str] = []

    class Told(NullProgress):
        def note(self, sentence: str) -> None:
            said.append(sentence)

    told = Workspace(workspace.path, progress=Told())
    tiny_workspace.write(root / "c", range(20, 23))
    assert told.ingest([root / "c"])["without_owner"] == 3
    assert "3 of 3 images have no owner" in said


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", ["read", "decode", "prepare", "encode", "score"])
def test_whatever_goes_wrong_with_one_image_is_its_own(step: str, error: Exception) -> None:
    networks = Networks(step, error)
    embedder = Embedder(networks, quality=True, batch_size=4)  # type: ignore[arg-type]
    records = [Record(f"{seed}.png", data=tiny_workspace.png(seed)) for seed in range(10)]
    bad = {3, 4, 9}
    with pytest.MonkeyPatch.context() as patch:
        if step == "read":
            read = Record.read
            patch.setattr(
                Record, "read", lambda self: networks.fail() if int(self.uri[:-4]) in bad else read(self)
            )
        elif step == "decode":
            decode = embedding.decode
            broken = {tiny_workspace.png(seed) for seed in bad}
            patch.setattr(
                embedding, "decode", lambda data: networks.fail() if data in broken else decode(data)
            )
        networks.bad = {tiny_workspace.pixels(seed).tobytes() for seed in bad}
        found = embedding.embed_records(records, embedder, lambda hashes: set())
    assert [isinstance(item, Unusable) for item in found] == [seed in bad for seed in range(10)]
    for seed, item in enumerate(found):
        if isinstance(item, Unusable):
            assert item.uri == f"{seed}.png"
            assert item.reason
            assert item.kind in ("unreadable", "damaged", "embedding", "quality", "memory")


def test_a_score_that_is_none_is_refused() -> None:
    for score in (1.7, -0.1, float("nan")):
        embedder = Embedder(Networks("", ValueError(), score), quality=True)  # type: ignore[arg-type]
        (found,) = embedder([Loaded.of(Record("x"), tiny_workspace.png(1))])
        assert isinstance(found, Unusable)
        assert found.kind == "quality"


def test_equal_contents_go_through_the_networks_once() -> None:
    networks = Networks("", ValueError())
    embedder = Embedder(networks, batch_size=64)  # type: ignore[arg-type]
    records = [Record(f"{n}", data=tiny_workspace.png(n % 3)) for n in range(9)]
    found = embedding.embed_records(records, embedder, lambda hashes: set())
    assert networks.encoded == 3
    assert all(isinstance(item, embedding.Content) and isinstance(item.image, Embedded) for item in found)


def test_a_refused_request_is_no_failed_run(workspace: Workspace) -> None:
    for refused in ({"owner": "adda"}, {"uri": "*/nowhere/*"}, {"ids": ["no such id"]}):
        for dry_run in (True, False):
            with pytest.raises(SettingsError, match=r"no training image (has|is called)|there is no "):
                workspace.withdraw(**refused, dry_run=dry_run)  # type: ignore[arg-type]
    assert workspace.sql("SELECT count(*) FROM runs WHERE status <> 'done'").fetchall() == [(0,)]
    assert workspace.check() == []


def test_retrying_keeps_the_worst_figure_and_adds_counts(workspace: Workspace, root: Path) -> None:
    for folder in ("g", "h"):
        tiny_workspace.write(root / folder, [50, 51] if folder == "g" else [52, 53])
        (root / folder / "late.png").write_bytes(b"?")
        workspace.value([root / folder], batch=folder)
        (root / folder / "late.png").write_bytes(tiny_workspace.png(70 if folder == "g" else 71))
    summary = workspace.value(retry_quarantined=True)
    assert summary["valued"] == 2
    assert summary["recall"] == 1.0
    assert summary["conservation_error"] < 1e-9


class Networks:
    """`Models` of pixels that fail for some images in one step."""

    device = "cpu"
    dim = 192
    identity = None

    def __init__(self, step: str, error: Exception, score: float = 0.5) -> None:
        self.step, self.error, self.bad, self.encoded = step, error, set[bytes](), 0
        self._score = score
        self.recall: Any = self
        self.rerank: Any = RecallDistance(self)  # type: ignore[arg-type]
        self.quality: Any = self
        self.storage = self.rerank.storage

    def fail(self) -> Any:
        raise self.error

    def _is_bad(self, step: str, data: np.ndarray) -> bool:
        return self.step == step and data.astype(np.uint8).tobytes() in self.bad

    def prepare(self, image: Image.Image) -> Any:
        import torch

        pixels = np.asarray(image)
        return self.fail() if self._is_bad("prepare", pixels) else torch.from_numpy(pixels.copy())

    def encode(self, batch: Any) -> np.ndarray:
        rows = batch.numpy()
        if any(self._is_bad("encode", row) for row in rows):
            self.fail()
        self.encoded += len(rows)
        flat = rows.reshape(len(rows), -1).astype(np.float32)
        return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True))

    def score(self, image: Image.Image) -> float:
        return self.fail() if self._is_bad("score", np.asarray(image)) else self._score  # type: ignore[no-any-return]
