"""Plug-ins: what others' code does is our error, for one image if it can be; the guide's examples work as written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_workspace
import torch
from click.testing import CliRunner
from models_offline import add_tiny_clip, muted, save_alexnet, save_random
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.cli.main import cli
from gmv_qdrant.errors import ImageError, ModelError
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.registry import load_distance, load_encoder, load_quality
from gmv_qdrant.testing import check_distance, check_encoder, check_quality

CPU = Runtime(device="cpu")
GUIDE = Path(__file__).parents[1] / "docs/how-to/your-own-encoder.md"

MODULE = """
import numpy as np, torch
from gmv_qdrant.models.base import Identity, Storage

class Mean:
    dim, metric, storage = 3, {metric!r}, Storage()
    identity = Identity("mean", "none", "mean colour")
    def prepare(self, image):
        {prepare}
        return torch.tensor(np.asarray(image).mean(axis=(0, 1)))
    def encode(self, batch):
        vectors = (batch / batch.norm(dim=1, keepdim=True)).numpy().astype(np.float32)
        {encode}
        return vectors

class Brightness:
    identity = "brightness"
    def score(self, image):
        {score}
        return np.asarray(image).mean() / 255

def encoder(argument, runtime):
    {load}
    return Mean()

def metric(argument, runtime):
    return Brightness()
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """An installed package with an encoder, a distance and a metric called ``mine``, changed in some lines."""

    def install(**lines: str) -> None:
        filled = {"metric": "cosine", "prepare": "", "encode": "", "score": "", "load": "", **lines}
        (tmp_path / "mine_gmv.py").write_text(MODULE.format(**filled))
        info = tmp_path / "mine-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
        groups = {"encoders": "encoder", "distances": "encoder", "quality": "metric"}
        points = [f"[gmv_qdrant.{group}]\nmine = mine_gmv:{made}" for group, made in groups.items()]
        (info / "entry_points.txt").write_text("\n".join(points))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "mine_gmv", raising=False)

    return install


def image(width: int = 20, height: int = 10) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(1, 256, (height, width, 3), dtype=np.uint8))


def test_a_sound_plug_in_conforms(plugin: Callable[..., None]) -> None:
    plugin(metric="cosine", encode="vectors = np.nan_to_num(vectors)")
    check_encoder("mine", CPU)
    check_encoder("mine+thumb:4*2", CPU)
    check_quality("mine", CPU)
    plugin(metric="euclid", encode="vectors = np.nan_to_num(vectors)")
    check_distance("mine", CPU)


@pytest.mark.parametrize("name", ["pixels:8", "thumb:16", "timm:test_resnet", "clip:tiny-test-clip/none"])
def test_our_own_encoders_conform(name: str, tmp_path: Path) -> None:
    runtime = CPU
    if name.startswith("timm"):
        import timm

        save_random(timm.create_model("test_resnet"), tmp_path / "weights.pth")
        runtime = Runtime(device="cpu", weights=tmp_path / "weights.pth")
    elif name.startswith("clip"):
        with muted():
            import open_clip

            model = open_clip.create_model(add_tiny_clip(tmp_path))
        save_random(model, tmp_path / "weights.pth")
        runtime = Runtime(device="cpu", weights=tmp_path / "weights.pth")
    check_encoder(name, runtime)


@pytest.mark.parametrize("name", ["l2@8", "l2-norm@8", "thumb:16", "lpips:alex@32"])
def test_our_own_distances_conform(name: str, tmp_path: Path) -> None:
    save_alexnet(tmp_path / "torch/checkpoints/alexnet-owt-7be5be79.pth")
    check_distance(name, Runtime(device="cpu", cache_dir=tmp_path, offline=True))


@pytest.mark.parametrize("name", ["piqe", "entropy"])
def test_our_own_metrics_conform(name: str) -> None:
    check_quality(name, CPU)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("raise KeyError('size')", "mine cannot take an image of 20x10: KeyError: 'size'"),
        ("raise SystemError()", "mine cannot take an image of 20x10: SystemError"),
        ("raise MemoryError", "mine cannot take an image of 20x10: MemoryError"),
        ("return torch.zeros(4)", "mine makes 4 of float32 of an image of 20x10, not 3 of float64"),
        ("return 'pixels'", "mine cannot take an image of 20x10: AttributeError"),
    ],
)
def test_an_image_that_can_t_be_prepared_is_an_image_error(
    plugin: Callable[..., None], line: str, sentence: str
) -> None:
    plugin(prepare=f"if image.width == 20: {line}")
    encoder = load_encoder("mine", runtime=CPU)
    with pytest.raises(ImageError, match=re.escape(sentence)):
        encoder.prepare(image())
    assert encoder.encode(encoder.prepare(image(21))[None]).shape == (1, 3)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("raise ZeroDivisionError('by hand')", "mine cannot embed these images: ZeroDivisionError: by hand"),
        ("return vectors[:1]", "mine gives 1x3 of float32, not 2x3 of float32, for 2 images"),
        ("return vectors.astype(float)", "mine gives 2x3 of float64, not 2x3 of float32, for 2 images"),
        ("return torch.tensor(vectors)", "mine gives a Tensor, not an array, for 2 images"),
        ("return None", "mine gives a NoneType, not an array, for 2 images"),
    ],
)
def test_a_batch_that_can_t_be_embedded_is_an_image_error(
    plugin: Callable[..., None], line: str, sentence: str
) -> None:
    plugin(encode=f"if len(batch) == 2: {line}")
    encoder = load_encoder("mine", runtime=CPU)
    with pytest.raises(ImageError, match=re.escape(sentence)):
        encoder.encode(torch.stack([encoder.prepare(image())] * 2))


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ({"load": "raise OSError('no disk')"}, "mine cannot be loaded: OSError: no disk"),
        ({"load": "return None"}, "mine doesn't work on a blank image: AttributeError"),
        ({"load": "import nothing_at_all"}, "mine needs the package nothing_at_all"),
        ({"prepare": "1 / 0"}, "mine doesn't work on a blank image: ZeroDivisionError"),
        ({"encode": "return vectors[0]"}, "mine gives 3 of float32, not 1x3 of float32, for a blank image"),
        ({"encode": "vectors[:] = np.nan"}, "mine gives numbers that are not finite for a blank image"),
    ],
)
def test_a_plug_in_that_never_works_is_a_model_error(
    plugin: Callable[..., None], lines: dict[str, str], sentence: str
) -> None:
    plugin(**lines)
    for load in (load_encoder, load_distance):
        with pytest.raises(ModelError, match=re.escape(sentence)):
            load("mine", runtime=CPU)


def test_a_metric_without_an_identity_is_a_model_error(tmp_path: Path, plugin: Callable[..., None]) -> None:
    plugin()
    module = tmp_path / "mine_gmv.py"
    module.write_text(module.read_text().replace('identity = "brightness"', "pass"))
    with pytest.raises(ModelError, match="mine cannot be loaded: AttributeError"):
        load_quality("mine", runtime=CPU)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("return 1.7", "mine gives 1.7 for an image of 20x10, and a quality lies in [0, 1]"),
        ("return -0.1", "mine gives -0.1 for"),
        ("return float('nan')", "mine gives nan for"),
        ("return None", "mine cannot score an image of 20x10: TypeError"),
        ("return [1, 2]", "mine cannot score an image of 20x10: TypeError"),
        ("raise RecursionError('too deep')", "mine cannot score an image of 20x10: RecursionError: too deep"),
    ],
)
def test_a_score_beyond_its_range_is_an_image_error(
    plugin: Callable[..., None], line: str, sentence: str
) -> None:
    plugin(score=f"if image.width == 20: {line}")
    metric = load_quality("mine", runtime=CPU)
    assert metric is not None
    with pytest.raises(ImageError, match=re.escape(sentence)):
        metric.score(image())
    assert 0 < metric.score(image(21)) < 1


def test_the_conformance_tests_find_what_is_wrong(plugin: Callable[..., None]) -> None:
    sound = "vectors = np.nan_to_num(vectors)"
    for check, lines, sentence in (
        (check_encoder, {"metric": "euclid", "encode": sound}, "mine has the metric euclid"),
        (check_encoder, {"encode": f"{sound} * 2"}, "gives vectors of length 2"),
        (check_encoder, {"encode": f"{sound} + np.float32(len(batch) / 99)"}, "depends on its batch"),
        (check_encoder, {"encode": f"{sound} * 0 + np.float32(0.6)"}, "gives two images one vector"),
        (check_encoder, {}, "gives numbers that are not finite"),
        (
            check_quality,
            {"score": "self.n = getattr(self, 'n', 0) + 1; return 1 / self.n"},
            "depend on what was",
        ),
        (check_quality, {"score": "raise ValueError"}, "can score none"),
    ):
        plugin(**lines)
        with pytest.raises(AssertionError, match=re.escape(sentence)):
            check("mine", CPU)


def test_a_plug_in_that_can_t_be_imported_is_named(tmp_path: Path, plugin: Callable[..., None]) -> None:
    plugin()
    (tmp_path / "mine_gmv.py").write_text("raise RuntimeError('not today')")
    for load in (load_encoder, load_distance, load_quality):
        with pytest.raises(
            ModelError, match=r"the plug-in 'mine' \(mine_gmv:\w+\) cannot be imported: not today"
        ):
            load("mine", runtime=CPU)


# --- the guide ----------------------------------------------------------------------------------------------


@pytest.fixture
def palette(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The guide's package, as installed: its files as they stand in the page."""
    project, module, test = re.findall(
        r"^```(?:toml|python)\n(.+?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE
    )
    (tmp_path / "palette.py").write_text(module)
    (tmp_path / "test_palette.py").write_text(test)
    described = tomllib.loads(project)["project"]
    info = tmp_path / f"{described['name']}-{described['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {described['name']}\nVersion: {described['version']}\n"
    )
    points = [
        f"[{group}]\n" + "\n".join(f"{name} = {made}" for name, made in entries.items())
        for group, entries in described["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(points))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_guide_s_own_test_passes(palette: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(palette),
            "test_palette.py",
        ],
        cwd=palette,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(palette), str(Path(__file__).parents[1])])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_guide_s_models_value_images(palette: Path) -> None:
    """And one image that they can't take is a quarantine row, while the rest goes in."""
    tiny_workspace.write(palette / "training", range(6))
    tiny_workspace.write(palette / "generated", (2, 50))
    [command] = re.findall(r"gmv-qdrant (init ws .*--quality contrast)", GUIDE.read_text())

    def call(*words: str) -> str:
        result = CliRunner().invoke(cli, ["-w", str(palette / "ws"), *words])
        assert result.exit_code == 0, result.output
        return result.stdout

    call(*command.replace("ws", str(palette / "ws"), 1).split())
    call("ingest", str(palette / "training"))
    call("value", str(palette / "generated"))
    credits_ = json.loads(call("credits", "--by", "image", "--json"))
    assert sum(row["value"] for row in credits_) > 0
    listed = json.loads(call("models", "list", "--json"))
    assert {"kind": "encoder", "name": "palette", "about": "a plug-in"} in listed
    status = json.loads(call("models", "status", "--json"))
    assert [(one["name"], one["ready"]) for one in status] == [
        ("palette:4+thumb:16*0.5", True),
        ("l2@32", True),
        ("contrast", True),
    ]


# --- through the pipeline -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (
            {"prepare": "if image.width == 20: raise KeyError('size')"},
            "cannot take an image of 20x10: KeyError",
        ),
        ({"encode": "if (batch[:, 0] > 250).any(): 1 / 0"}, "cannot embed this image: ZeroDivisionError"),
        (
            {"encode": "if (batch[:, 0] > 250).any(): return vectors.astype(float)"},
            "of float64, not 1x3 of float32",
        ),
        ({"encode": "vectors[(batch[:, 0] > 250).numpy()] = np.nan"}, "not finite"),
        ({"score": "if image.width == 20: return 1.7"}, "gives 1.7"),
        (
            {"score": "if image.width == 20: raise SystemError('no')"},
            "cannot score an image of 20x10: SystemError: no",
        ),
    ],
)
def test_one_image_that_a_plug_in_fails_on_stops_no_run(
    plugin: Callable[..., None], folder: Path, lines: dict[str, str], sentence: str
) -> None:
    """It is quarantined by name with the reason; the others of its batch go in."""
    plugin(**lines)
    for kind in ("training", "generated"):
        tiny_workspace.write(folder / kind, range(5))
        Image.new("RGB", (20, 10), (253, 9, 9)).save(folder / kind / "odd.png")
    workspace = Workspace.init(
        folder / "ws", encoder="mine", distance="mine", quality="mine", quantization="none"
    )
    workspace.ingest([folder / "training"])
    workspace.value([folder / "generated"])
    rows = workspace.sql("SELECT uri, reason FROM quarantine").fetchall()
    assert {Path(uri).name for uri, _ in rows} == {"odd.png"}
    assert sentence in rows[-1][1]
    assert workspace.sql("SELECT count(*) FROM generated").fetchall() == [(5,)]
    assert workspace.sql("SELECT count(*) FROM training").fetchall()[0][0] == (6 if "score" in lines else 5)
