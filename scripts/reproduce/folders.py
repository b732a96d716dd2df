"""The paper's GPU experiments on folders of your own: ImageNet, CelebA, AFHQ, FFHQ, Naruto with Stable Diffusion.

    python scripts/reproduce/folders.py --preset imagenet --training imagenet/train --generated mdt-samples
    python scripts/reproduce/folders.py --preset celeba --training celeba/images --attributes list_attr_celeba.csv \
        --generated samples --generated-attributes samples.csv
    python scripts/reproduce/folders.py --preset naruto --training naruto --generated out --generate 100 \
        --model stable-diffusion-v1-5/stable-diffusion-v1-5 --lora naruto-lora --prompts prompts.txt

A preset holds the paper's settings: which criterion at which k, on how many generated images, for which distances;
recall by CLIP, K = 200, quality by MANIQA. Any flag overrides it. Classes are the names of the images' folders (or the
column `label`), the same on both sides. Attributes come from a metadata.csv in the folder, or from a table of file
names and attributes (CelebA's own .txt and .csv are read as they are), for training and generated images alike: the
paper doesn't say who labelled its generated ones. Samples of other generators than diffusers' are made beforehand.

Prints JSON: rho for each criterion, distance and k, with standard errors and chance, and seconds for each generated
image by phase (Tables 4, 15); draws the most significant contributors of some generated images (Figs. 4, 6).
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
from PIL import Image, ImageOps

from gmv_qdrant.errors import GmvError
from gmv_qdrant.images.decode import decode
from gmv_qdrant.images.records import Record
from gmv_qdrant.images.sources import open_sources, read_uri

Table = dict[str, dict[str, str]]
ALL_DISTANCES = ("none", "l2-norm@224", "lpips:alex@224", "dreamsim")


@dataclass(frozen=True)
class Preset:
    """Where the paper shows it, how many generated images, which k, and which attributes; no attributes: classes."""

    shown_in: str
    ks: tuple[int, ...]
    attributes: tuple[str, ...] = ()
    generated: int = 100
    distances: tuple[str, ...] = ALL_DISTANCES


PRESETS = {
    "imagenet": Preset("Table 2, C1, masked diffusion transformer", (30, 50, 100)),
    # 99: the figures of Tables 3 and 8 are multiples of 1 / (99 k)
    "celeba": Preset("Tables 3 and 8, Fig. 4, C2, Diffusion-StyleGAN", (5, 10, 15),
                     ("Wearing_Hat", "Male", "Eyeglasses"), 99),
    "afhq": Preset("Fig. 6, StyleGAN; classes cat, dog, wild", (5, 10, 15)),
    "ffhq": Preset("Fig. 6, StyleGAN; a picture, no ground truth", ()),
    "naruto": Preset("Tables 14 and 15, C2, Stable Diffusion with LoRA", (3, 4, 5), ("gender", "hat", "hair"),
                     distances=ALL_DISTANCES[1:]),
}  # fmt: skip


def read_table(file: Path) -> Table:
    """Attributes by file name. CSV with a header, file names in the first column; or CelebA's text file, whose first
    line is a count. -1, its "no", becomes 0."""
    with file.open(newline="", encoding="utf-8-sig") as lines:
        if file.suffix.lower() == ".txt":
            first = next(lines)
            names = next(lines).split() if first.strip().isdigit() else first.split()[1:]
            rows: Iterator[Sequence[str]] = (line.split() for line in lines)
        else:
            rows = csv.reader(lines)
            names = next(rows)[1:]  # type: ignore[call-overload]
        table = {}
        for row in rows:
            if not row:
                continue
            if len(row) != len(names) + 1:
                sys.exit(f"{file}: {row[0]} has {len(row) - 1} values, and there are {len(names)} attributes")
            table[row[0]] = {
                name: "0" if value == "-1" else value for name, value in zip(names, row[1:], strict=True)
            }
    return table


def gathered(source: Path, into: Path, table: Table | None, count: int | None) -> Path:
    """A folder of links to the images of ``source``, ``count`` of them evenly spaced, with their label and attributes
    in one metadata.csv; ``source`` itself when nothing is to be added or left out."""
    if table is None and count is None:
        return source
    records = [found for found in open_sources([str(source)]) if isinstance(found, Record)]
    picked = [records[row] for row in common.spaced(len(records), count)]
    into.mkdir(parents=True, exist_ok=True)
    rows, unknown = [], []
    for number, record in enumerate(picked):
        name = os.path.basename(record.uri)
        relative = os.path.relpath(record.uri, source)
        attributes = {} if table is None else table.get(relative, table.get(name, {}))
        if table is not None and not attributes:
            unknown.append(relative)
        link = into / f"{number:07d}-{name.rpartition('#')[2]}"
        if not link.exists():
            if os.path.isfile(record.uri):
                link.symlink_to(os.path.abspath(record.uri))
            else:  # in a table or an archive
                link.write_bytes(read_uri(record.uri, [str(source)]))
        columns = {**record.attributes, **attributes}
        rows.append(
            {
                "file_name": link.name,
                "label": record.label,
                "owner": ", ".join(record.owners) or None,
                **columns,
            }
        )
    if len(unknown) == len(picked):
        sys.exit(
            f"none of the {len(picked):,} images of {source} is in the table of attributes, such as {unknown[0]}"
        )
    if unknown:
        common.note(
            f"{len(unknown):,} of {len(picked):,} images of {source} have no attributes, such as {unknown[0]}"
        )
    with (into / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return into


def generate(given: argparse.Namespace) -> None:
    """Samples of a diffusers pipeline, for the prompts in turn, into the folder of generated images."""
    try:
        import torch
        from diffusers import DiffusionPipeline
    except ImportError:
        sys.exit("--generate needs diffusers: pip install diffusers transformers accelerate peft")
    if not given.model:
        sys.exit("--generate needs --model: a name on the hub or a folder of a diffusers pipeline")
    prompts = given.prompts.read_text().splitlines() if given.prompts else []
    prompts = [line.strip() for line in prompts if line.strip()]
    cuda = torch.cuda.is_available()
    pipeline = DiffusionPipeline.from_pretrained(given.model)
    pipeline = pipeline.to("cuda", torch.float16) if cuda else pipeline.to("cpu")
    if given.lora:
        pipeline.load_lora_weights(str(given.lora))
    given.generated.mkdir(parents=True, exist_ok=True)
    for number in range(given.generate):
        file = given.generated / f"sample-{number:06d}.png"
        if file.exists():
            continue
        seeded = torch.Generator("cpu").manual_seed(given.seed + number)
        prompt = {"prompt": prompts[number % len(prompts)]} if prompts else {}
        pipeline(**prompt, generator=seeded, num_inference_steps=given.steps).images[0].save(file)


def criteria(workspace: common.Workspace, given: argparse.Namespace) -> dict[str, Any]:
    """C2 where there are attributes, single and combined, else C1; nothing where the preset has no k."""
    if not given.ks:
        return {}
    ks = tuple(given.ks)
    if given.attribute_names:
        options = {
            "names": tuple(given.attribute_names),
            "combined": len(given.attribute_names) > 1,
            "ks": ks,
        }
        found = workspace.evaluate("attributes", options=options)
        if not any(row["chance"] for row in found["rows"]):
            sys.exit(f"no training image agrees with a generated one in any of {given.attribute_names}: do both tables "
                     "write their values alike?")  # fmt: skip
        return {"attributes": found["rows"], "left_out": found["left_out"]}
    found = workspace.evaluate("identical-class", options={"ks": ks})
    if not any(row["chance"] for row in found["rows"]):
        labels = ", ".join(row["value"] for row in found["by_value"][:5])
        sys.exit(
            f"no training image has a label of the generated ones ({labels}, ...): name the folders of both alike"
        )
    return {"identical_class": found["rows"], "left_out": found["left_out"]}


def picture(workspace: common.Workspace, rows: int, columns: int, side: int = 128) -> Image.Image:
    """A generated image on the left of each row, its most significant contributors beside it (Figs. 4, 6)."""
    found = workspace.sql(
        f"""SELECT g.uri, list(n.uri ORDER BY m.rank) FROM matches m JOIN generated g USING (generated_key)
        JOIN images n USING (training_key) WHERE m.rank <= {columns} GROUP BY g.uri ORDER BY g.uri"""
    ).fetchall()
    shown = [found[row] for row in common.spaced(len(found), rows)]
    sheet = Image.new("RGB", (side * (columns + 1) + side // 8, side * len(shown)), "white")
    for y, (made, contributors) in enumerate(shown):
        for x, uri in enumerate([made, *contributors]):
            tile = ImageOps.fit(decode(read_uri(uri, ["/"])), (side, side))
            sheet.paste(tile, (x * side + (side // 8 if x else 0), y * side))
    return sheet


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, required=True)
    add("--training", type=Path, required=True, help="folder (or Parquet, tar) of training images")
    add("--generated", type=Path, required=True, help="folder of generated images")
    add("--attributes", type=Path, help="table of file names and attributes of the training images")
    add("--generated-attributes", type=Path, help="the same of the generated images")
    add("--attribute-names", nargs="*", help="which attributes are judged  [the preset's]")
    add("--ks", nargs="*", type=int, help="[the preset's]")
    add("--distances", nargs="+", help="[the preset's]")
    add("--count", type=int, help="generated images that are judged, evenly spaced  [the preset's]")
    add("--encoder", default="clip:ViT-B-32-quickgelu/openai")
    add("--quality", default="maniqa")
    add("--candidates", type=int, default=200)
    add("--views", default="none", choices=("none", "flip"))
    add(
        "--work", type=Path, default=Path("reproduce-work"), help="links, workspaces, pictures  [%(default)s]"
    )
    add(
        "--remember",
        action="store_true",
        help="keep recall vectors for the next distance; seconds then say nothing",
    )
    add("--rows", type=int, default=8, help="generated images in the picture  [%(default)s]")
    add("--out", type=Path, help="also write the JSON there")
    add("--generate", type=int, default=0, metavar="N", help="first make N samples with diffusers")
    add("--model", help="a diffusers pipeline, by its name on the hub or its folder")
    add("--lora", help="LoRA weights for it")
    add("--prompts", type=Path, help="a prompt a line, taken in turn")
    add("--steps", type=int, default=50, help="of the diffusion  [%(default)s]")
    add("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    preset = PRESETS[given.preset]
    for name in ("ks", "distances"):
        if getattr(given, name) is None:
            setattr(given, name, list(getattr(preset, name)))
    given.attribute_names = (
        list(preset.attributes) if given.attribute_names is None else given.attribute_names
    )
    given.count = given.count or preset.generated
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    if given.generate:
        generate(given)
    work = given.work.resolve()
    if given.remember:
        common.remember_recall_vectors(work)
    tables = [read_table(file) if file else None for file in (given.attributes, given.generated_attributes)]
    training = gathered(given.training, work / f"{given.preset}-training", tables[0], None)
    generated = gathered(
        given.generated, work / f"{given.preset}-generated-{given.count}", tables[1], given.count
    )
    found: dict[str, Any] = {"preset": given.preset, "shown_in": PRESETS[given.preset].shown_in}
    for distance in given.distances:
        common.note(distance)
        path = work / common.slug(given.preset, given.encoder, distance, given.views)
        workspace = common.workspace(
            path, [training], encoder=given.encoder, distance=distance, quality=given.quality,
            candidates=given.candidates, views=given.views,
            allow=[str(given.training), str(given.generated)],  # where the links of `gathered` lead
        )  # fmt: skip
        started = time.perf_counter()
        spent = workspace.value([generated])
        status = workspace.status()
        count = status["generated"]["images"]
        found["training_images"], found["generated_images"] = status["training"]["images"], count
        mine = criteria(workspace, given)
        if spent.get("valued") == count:  # not one that goes on from an earlier run
            mine["seconds_per_generated_image"] = {
                "wall": (time.perf_counter() - started) / count,
                **{phase: seconds / count for phase, seconds in spent["seconds"].items()},
            }
        mine["effective_contributors"] = workspace.effective_contributors()
        if given.rows:
            picture(workspace, given.rows, max(given.ks or [5])).save(path.with_suffix(".png"))
            mine["picture"] = str(path.with_suffix(".png"))
        found[distance] = mine
        common.show(found, given.out, quiet=True)
    common.show(found, given.out)


if __name__ == "__main__":
    try:
        main()
    except GmvError as error:
        sys.exit(str(error))
