"""The scripts of scripts/reproduce about known parents, membership, generators and folders, on a tiny kit.

What they should find is there to be found: parents, a half that was copied, classes and attributes.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_kit import disturbed, pictures, write_kit
from PIL import Image

pytestmark = pytest.mark.scripts

SMALL = ["--probes", "40"]
PIXELS = ["--encoder", "pixels:16", "--distances", "l2@16"]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kit(tmp_path_factory.mktemp("kit"))


# -- membership and generators ------------------------------------------------------------------------


def test_membership_sees_the_copies_only(kit: Path, run: Callable[..., Any]) -> None:
    found = run("membership", kit, *PIXELS, *SMALL, "--generated", "8")
    assert found["v2"] == 30
    mine = found["l2@16, views none"]
    assert mine["overfit, calibrated"]["credit"]["trained_share"] > 0.9
    assert abs(mine["generalises, calibrated"]["test"]["t"]) < 3
    assert mine["seeds of the overfit generator"][0]["first_rate"] == 1


def test_conditional_judges_what_it_trained(
    kit: Path, run: Callable[..., Any], script: Callable[[str], Any]
) -> None:
    """Three steps give noise, so no figure of the model is judged; the plain figures are, against brute force."""
    found = run(
        "conditional", kit, "--set", "cifar10", "--training", "40", "--samples", "6", "--steps", "3", "--width", "8",
        "--encoders", "pixels:16", "--distances", "l2@16", *SMALL,
    )  # fmt: skip
    assert (found["trained_on"], found["generated_images"]) == (20, 6)
    mine = found["pixels:16, l2@16"]
    assert [row["k"] for row in mine["rho"]] == [30]
    assert {"membership, paper", "membership, calibrated"} <= mine.keys()

    labels = np.arange(20) % 2
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    made, trained = images[:5] // 2 + images[5:10] // 2, np.arange(20) < 8
    plain = script("conditional").plain({"images": images, "labels": labels}, made, labels[:5], trained)
    nearest = [np.argmin(((images.astype(float) - one.astype(float)) ** 2).sum(axis=(1, 2))) for one in made]
    assert plain["nearest to the trained half"] == pytest.approx(np.mean(trained[nearest]))
    assert plain["trained on"] == pytest.approx(0.4)
    assert plain["rho by chance"] == pytest.approx(0.5)


def test_the_flow_learns_its_classes(script: Callable[[str], Any]) -> None:
    """Two flat greys: after a few hundred steps a sample has the grey of the class that it was asked for."""
    generators = script("generators")
    labels = np.arange(64) % 2
    images = np.where(labels[:, None, None] == 1, 200, 60).astype(np.uint8) * np.ones(
        (1, 8, 8), dtype=np.uint8
    )
    model = generators.train(
        images, labels, classes=2, steps=250, width=8, batch=32, note=lambda *words: None
    )
    asked = np.array([0, 1, 0, 1])
    made = generators.sample(model, asked, (8, 8), steps=20, guidance=1.0)
    assert made.shape == (4, 8, 8)
    assert (made == generators.sample(model, asked, (8, 8), steps=20, guidance=1.0)).all()
    greys = made.mean(axis=(1, 2))
    assert greys[asked == 0].max() < 130 < greys[asked == 1].min()
    colour = generators.as_tensor(np.zeros((2, 8, 8, 3), dtype=np.uint8))
    assert colour.shape == (2, 3, 8, 8)
    assert float(colour.max()) == -1


# -- folders ------------------------------------------------------------------------------------------


def faces(folder: Path, count: int, seed: int, *, like: np.ndarray | None = None) -> np.ndarray:
    """PNG files of images that differ by three yes-or-no attributes, in three parts of the picture."""
    bits = np.stack([np.arange(count) >> place & 1 for place in range(3)], axis=1)
    images = pictures(np.zeros(count, dtype=np.uint8), 16, 3, seed) // 4
    for place in range(3):
        images[:, :, 5 * place : 5 * place + 5] += (150 * bits[:, place, None, None, None]).astype(np.uint8)
    folder.mkdir(parents=True)
    for i, image in enumerate(disturbed(images, seed, 2)):
        Image.fromarray(image).save(folder / f"{seed}-{i:03d}.png")
    return bits


STAND_IN = [*PIXELS, "--quality", "none", "--candidates", "30"]


def test_celeba(tmp_path: Path, run: Callable[..., Any]) -> None:
    """Its own text file with a count and -1 on one side, a CSV with 0 on the other; combinations too."""
    names = ["Eyeglasses", "Male", "Wearing_Hat"]
    trained, made = faces(tmp_path / "faces", 64, 1), faces(tmp_path / "made", 12, 2)
    lines = [
        f"1-{i:03d}.png  {' '.join('1' if bit else '-1' for bit in bits)}" for i, bits in enumerate(trained)
    ]
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(["64", " ".join(names), *lines]) + "\n")
    rows = [f"2-{i:03d}.png,{','.join(str(bit) for bit in bits)}" for i, bits in enumerate(made)]
    (tmp_path / "made.csv").write_text("\n".join(["image_id," + ",".join(names), *rows]) + "\n")
    found = run(
        "folders", "--preset", "celeba", "--training", tmp_path / "faces", "--generated", tmp_path / "made",
        "--attributes", tmp_path / "list_attr_celeba.txt", "--generated-attributes", tmp_path / "made.csv", *STAND_IN,
        "--ks", "1", "5", "--count", "8", "--rows", "2",
    )  # fmt: skip
    assert (found["training_images"], found["generated_images"]) == (64, 8)
    rho = {(row["attribute"], row["k"]): row for row in found["l2@16"]["attributes"]}
    assert {name for name, _ in rho} == {
        "Wearing_Hat", "Male", "Eyeglasses", "Wearing_Hat & Male", "Wearing_Hat & Eyeglasses", "Male & Eyeglasses",
        "Wearing_Hat & Male & Eyeglasses",
    }  # fmt: skip
    for (name, k), row in rho.items():
        assert row["rho"] == 1, (name, k)
        assert row["chance"] == pytest.approx(0.5 ** (name.count("&") + 1))
    assert found["l2@16"]["seconds_per_generated_image"]["total"] > 0
    with Image.open(found["l2@16"]["picture"]) as sheet:
        assert sheet.size == (128 * 6 + 16, 2 * 128)


def test_imagenet(tmp_path: Path, run: Callable[..., Any]) -> None:
    """Classes are the names of folders, on both sides; the training folder is taken as it is."""
    labels = (np.arange(40) % 2).astype(np.uint8)
    for name, images in (
        ("train", pictures(labels, 16, 3, 1)),
        ("made", disturbed(pictures(labels, 16, 3, 1), 2)),
    ):
        for i, image in enumerate(images[: 40 if name == "train" else 6]):
            folder = tmp_path / name / f"n{labels[i]}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i:03d}.png")
    found = run(
        "folders", "--preset", "imagenet", "--training", tmp_path / "train", "--generated", tmp_path / "made",
        *STAND_IN, "--ks", "1", "5", "--rows", "0",
    )  # fmt: skip
    rows = found["l2@16"]["identical_class"]
    assert [row["k"] for row in rows] == [1, 5]
    assert rows[0]["rho"] == 1
    assert rows[1]["chance"] == pytest.approx(0.5)
    assert "picture" not in found["l2@16"]


def test_labels_that_never_meet_are_an_error(tmp_path: Path, run: Callable[..., Any]) -> None:
    faces(tmp_path / "train" / "n01", 40, 1)
    faces(tmp_path / "made" / "goldfish", 4, 2)
    with pytest.raises(SystemExit, match="no training image has a label of the generated ones"):
        run("folders", "--preset", "imagenet", "--training", tmp_path / "train", "--generated", tmp_path / "made",
            *STAND_IN, "--ks", "5")  # fmt: skip


def test_a_table_of_other_images_is_an_error(tmp_path: Path, script: Callable[[str], Any]) -> None:
    folders = script("folders")
    faces(tmp_path / "faces", 4, 1)
    with pytest.raises(SystemExit, match="none of the 4 images"):
        folders.gathered(tmp_path / "faces", tmp_path / "links", {"elsewhere.png": {"hat": "1"}}, None)
    (tmp_path / "short.csv").write_text("image_id,hat,hair\na.png,1\n")
    with pytest.raises(SystemExit, match="has 1 values, and there are 2 attributes"):
        folders.read_table(tmp_path / "short.csv")


def test_naruto_generates_by_a_pipeline(
    tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for diffusers: it is asked for the model, the LoRA weights, the prompts in turn, a seed an image."""
    asked: list[tuple[Any, ...]] = []

    class Pipeline:
        @classmethod
        def from_pretrained(cls, name: str, **options: Any) -> Pipeline:
            asked.append(("model", name))
            return cls()

        def to(self, device: str) -> Pipeline:
            return self

        def load_lora_weights(self, name: str) -> None:
            asked.append(("lora", name))

        def __call__(self, prompt: str, generator: Any, num_inference_steps: int) -> Any:
            asked.append(("prompt", prompt, generator.initial_seed(), num_inference_steps))
            noise = np.random.default_rng(generator.initial_seed()).integers(
                0, 256, (16, 16, 3), dtype=np.uint8
            )
            return types.SimpleNamespace(images=[Image.fromarray(noise)])

    monkeypatch.setitem(sys.modules, "diffusers", types.SimpleNamespace(DiffusionPipeline=Pipeline))
    bits = faces(tmp_path / "naruto", 40, 1)
    rows = [f"1-{i:03d}.png,{a},{b},{'black' if c else 'blond'}" for i, (a, b, c) in enumerate(bits)]
    (tmp_path / "naruto/metadata.csv").write_text("\n".join(["file_name,gender,hat,hair", *rows]) + "\n")
    made = [f"sample-{i:06d}.png,0,1,black" for i in range(3)]
    (tmp_path / "made.csv").write_text("\n".join(["file,gender,hat,hair", *made]) + "\n")
    (tmp_path / "prompts.txt").write_text("a ninja\n\na frog\n")
    found = run(
        "folders", "--preset", "naruto", "--training", tmp_path / "naruto", "--generated", tmp_path / "made",
        "--generated-attributes", tmp_path / "made.csv", "--generate", "3", "--model", "sd", "--lora", "weights",
        "--prompts", tmp_path / "prompts.txt", "--steps", "7", *STAND_IN,
    )  # fmt: skip
    assert asked == [("model", "sd"), ("lora", "weights"), ("prompt", "a ninja", 0, 7), ("prompt", "a frog", 1, 7),
                     ("prompt", "a ninja", 2, 7)]  # fmt: skip
    assert found["generated_images"] == 3
    hair = [row for row in found["l2@16"]["attributes"] if row["attribute"] == "hair"]
    assert [row["k"] for row in hair] == [3, 4, 5]
