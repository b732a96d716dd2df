"""From folders of images to credits per owner, through the command line, against the plain-code oracle."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import duckdb
import numpy as np
import oracle
import pytest

from gmv_qdrant import Workspace

K = 60
OWNERS = ("Ada", "Bay Street", "Camera club")


def gmv(*arguments: object, env: dict[str, str] | None = None, code: int = 0) -> str:
    """Run the command line as a user would; returns stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "gmv_qdrant", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        check=False,
    )
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def write_set(images: np.ndarray, labels: np.ndarray, folder: Path, *, owners: bool) -> list[Path]:
    paths = oracle.write_png(images, folder, folder.name + "-")
    columns = "file_name,label,owner" if owners else "file_name,label"
    lines = [
        f"{path.name},{label}" + (f",{OWNERS[i % 3]}" if owners else "")
        for i, (path, label) in enumerate(zip(paths, labels, strict=True))
    ]
    (folder / "metadata.csv").write_text("\n".join([columns, *lines]) + "\n")
    return paths


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> dict[str, list[Path]]:
    """304 MNIST digits of three owners, and 8 samples of a real GAN, as PNG files."""
    load = runpy.run_path(str(shared / "data" / "load.py"))["load"]
    folder = tmp_path_factory.mktemp("digits")
    training = load(shared / "data/images/mnist_train_10k_A.npz")
    generated = load(shared / "data/images/mnist_gen_gan.npz")
    return {
        "training": write_set(
            training["images"][::33], training["labels"][::33], folder / "training", owners=True
        ),
        "generated": write_set(
            generated["images"][:8], generated["labels"][:8], folder / "generated", owners=False
        ),
    }


def export(workspace: Path, target: Path, *options: object) -> dict[str, duckdb.DuckDBPyRelation]:
    gmv("-w", workspace, "export", target, *options)
    return {
        name: duckdb.read_parquet(str(target / f"{name}.parquet")) for name in ("values", "contributions")
    }


def matrix(
    tables: dict[str, duckdb.DuckDBPyRelation], training: list[Path], generated: list[Path]
) -> np.ndarray:
    """Exported contributions as float64 ``(m, n)``."""
    row = {str(path): i for i, path in enumerate(generated)}
    column = {str(path): i for i, path in enumerate(training)}
    out = np.zeros((len(generated), len(training)))
    for g, t, value in (
        tables["contributions"].project("generated_uri, training_uri, contribution").fetchall()
    ):
        out[row[g], column[t]] += value
    return out


@pytest.fixture(scope="module")
def answer(digits: dict[str, list[Path]], shared: Path) -> tuple[np.ndarray, dict[tuple[str, str], float]]:
    """What plain code says: contributions ``(m, n)``, and the distance of each candidate pair."""
    training, generated = digits["training"], digits["generated"]
    weights = shared / "data/weights/tf_efficientnet_lite0-fp16.pth"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the package calls torchvision in an old way
        patch.setenv("TORCH_HOME", str(shared / "data/weights/torch_home"))
        pairwise = oracle.PairwiseLpips("alex", 64)
    embedded = [
        oracle.timm_embeddings(paths, "tf_efficientnet_lite0", weights) for paths in (training, generated)
    ]
    rows = oracle.candidates(*embedded, K)
    distances = np.stack(
        [pairwise(p, [training[i] for i in who]) for p, who in zip(generated, rows, strict=True)]
    )
    pairs = {
        (str(path), str(training[i])): d
        for path, who, ds in zip(generated, rows, distances, strict=True)
        for i, d in zip(who, ds, strict=True)
    }
    return oracle.contributions(distances, rows, len(training), 30, 1.0, np.ones(len(generated))), pairs


@pytest.mark.shared
@pytest.mark.parametrize("quantization", ["none", "pq"])
def test_real_networks_agree_with_the_published_pairwise_code(
    digits: dict[str, list[Path]],
    answer: tuple[np.ndarray, dict[tuple[str, str], float]],
    tmp_path: Path,
    shared: Path,
    quantization: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(shared / "data/weights/torch_home"))
    weights = shared / "data/weights/tf_efficientnet_lite0-fp16.pth"
    workspace = Workspace.init(
        tmp_path / "ws", encoder="timm:tf_efficientnet_lite0", encoder_weights=str(weights),
        distance="lpips:alex@64", quality="none", candidates=K, quantization=quantization,
    )  # fmt: skip
    workspace.ingest([digits["training"][0].parent])
    workspace.value([digits["generated"][0].parent])
    assert workspace.status()["store"]["quantization"] == quantization
    tables = export(tmp_path / "ws", tmp_path / "out")

    expected, pairs = answer
    found = matrix(tables, digits["training"], digits["generated"])
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-9)
    correlation = np.corrcoef(found.sum(axis=0), expected.sum(axis=0))[0, 1]
    assert correlation > (0.999 if quantization == "none" else 0.99)
    if quantization == "none":
        np.testing.assert_allclose(found, expected, atol=1e-5)
    for g, t, distance in tables["contributions"].project("generated_uri, training_uri, distance").fetchall():
        assert distance == pytest.approx(pairs.get((g, t), distance), abs=1e-4)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Images made here, so that users without the real ones test the same way."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("shapes")
    sets = {}
    for name, count in (("training", 90), ("generated", 7)):
        base = random.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
        images = np.repeat(np.repeat(base, 4, axis=1), 4, axis=2)
        sets[name] = write_set(images, np.arange(count) % 5, folder / name, owners=name == "training")
    return sets


@pytest.fixture(scope="module")
def small(shapes: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with pixel vectors, valued."""
    workspace = tmp_path_factory.mktemp("small") / "ws"
    gmv("init", workspace, "--encoder", "pixels:16", "--distance", "l2@16", "--quality", "piqe",
        "--candidates", K, "--quantization", "none")  # fmt: skip
    gmv("-w", workspace, "ingest", shapes["training"][0].parent)
    gmv("-w", workspace, "value", shapes["generated"][0].parent, "--batch", "first")
    return workspace


def expected_contributions(
    shapes: dict[str, list[Path]], k: int = 30, temperature: float = 1.0, quality: np.ndarray | None = None
) -> np.ndarray:
    training, generated = shapes["training"], shapes["generated"]
    rows = oracle.candidates(oracle.pixel_embeddings(training, 16), oracle.pixel_embeddings(generated, 16), K)
    rms = oracle.PairwiseRms(16)
    distances = np.stack(
        [rms(path, [training[i] for i in who]) for path, who in zip(generated, rows, strict=True)]
    )
    ones = np.ones(len(generated))
    return oracle.contributions(
        distances, rows, len(training), k, temperature, ones if quality is None else quality
    )


@pytest.mark.parametrize(("k", "temperature"), [(30, 1.0), (5, 1.0), (30, 0.01), (K, 0.003), (1, 1.0)])
def test_values_are_a_choice_of_the_question(
    shapes: dict[str, list[Path]], small: Path, tmp_path: Path, k: int, temperature: float
) -> None:
    expected = expected_contributions(shapes, k, temperature)
    tables = export(small, tmp_path, "-k", k, "--temperature", temperature, "--no-quality")
    tolerance = 1e-6 / min(
        1.0, temperature
    )  # distances are right to 1e-6, and 1 / T multiplies what they lack
    np.testing.assert_allclose(
        matrix(tables, shapes["training"], shapes["generated"]), expected, rtol=tolerance, atol=1e-12
    )


def test_credits_by_image_owner_and_label(shapes: dict[str, list[Path]], small: Path) -> None:
    quality = np.array(
        [
            row["quality"]
            for row in json.loads(gmv("-w", small, "sql", "FROM generated ORDER BY uri", "--json"))
        ]
    )
    assert ((quality >= 0) & (quality <= 1)).all()
    assert quality.std() > 0
    values = expected_contributions(shapes, quality=quality).sum(axis=0)
    training = [str(path) for path in shapes["training"]]

    by_image = json.loads(gmv("-w", small, "credits", "--by", "image", "--json"))
    assert len(by_image) == len(training)  # zeros included
    assert [row["value"] for row in by_image] == sorted((row["value"] for row in by_image), reverse=True)
    found = {row["uri"]: row["value"] for row in by_image}
    np.testing.assert_allclose([found[uri] for uri in training], values, rtol=1e-6, atol=1e-12)
    assert {"image", "uri", "value", "matches"} <= by_image[0].keys()

    for by, group in (("owner", lambda i: OWNERS[i % 3]), ("label", lambda i: str(i % 5))):
        rows = json.loads(gmv("-w", small, "credits", "--by", by, "--json"))
        totals = {row[by]: row["value"] for row in rows}
        for name in totals:
            mine = sum(values[i] for i in range(len(values)) if group(i) == name)
            assert totals[name] == pytest.approx(mine, rel=1e-6)
        assert sum(totals.values()) == pytest.approx(quality.sum(), rel=1e-9)
        assert sum(row["share"] for row in rows) == pytest.approx(1.0)


def test_valuing_again_changes_nothing(shapes: dict[str, list[Path]], small: Path) -> None:
    def evidence() -> str:
        return gmv("-w", small, "sql", "FROM matches ORDER BY ALL", "--json")

    before = evidence()
    summary = json.loads(
        gmv("-w", small, "value", shapes["generated"][0].parent, "--batch", "first", "--json")
    )
    assert summary["known"] == len(shapes["generated"])
    assert evidence() == before


def test_explain_both_ways(shapes: dict[str, list[Path]], small: Path) -> None:
    generated = shapes["generated"][0]
    forward = json.loads(gmv("-w", small, "explain", generated, "-k", 3, "--json"))
    assert forward["kind"] == "generated"
    assert [row["rank"] for row in forward["matches"]] == [1, 2, 3]
    best = forward["matches"][0]
    back = json.loads(gmv("-w", small, "explain", Path(best["uri"]).name, "-k", 3, "--json"))
    assert back["kind"] == "training"
    mine = [row for row in back["matches"] if row["uri"] == str(generated)]
    assert mine[0]["contribution"] == pytest.approx(best["contribution"])


def test_a_second_batch_is_counted_apart_and_together(
    shapes: dict[str, list[Path]], small: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "ws"
    subprocess.run(["cp", "-r", str(small), str(copy)], check=True)
    gmv("-w", copy, "value", shapes["generated"][0], shapes["generated"][1], "--batch", "second")

    def total(*options: str) -> float:
        return sum(
            row["value"] for row in json.loads(gmv("-w", copy, "credits", "--json", "--no-quality", *options))
        )

    assert total("--batch", "first") == pytest.approx(7)
    assert total("--batch", "second") == pytest.approx(2)
    assert total() == pytest.approx(9)
