"""C1 and cost on a beta-VAE, beside VAE-TracIn (Tables 2 and 4), raw nearest neighbours and random credit, in one run.

    pip install captum && python scripts/reproduce/baselines.py KIT [--training 10000] [--generated 100] [--vae conv]
    [--epochs 20] [--checkpoints 4] [--sizes small wide] [--plots DIR]

A beta-VAE is trained on digits by this script; samples of its prior that a classifier (trained here, too) is sure of
are the generated images. VAE-TracIn (Kong & Chaudhuri 2021) sums over checkpoints the product of learning rate and of
the gradients of the loss for a generated and for a training image, over all parameters, by captum's TracInCP. Raw
nearest neighbours are exact, in pixels and in each encoder, without quantization or re-ranking. All are judged by the
same code, other methods through imported scores.

The cost of TracIn is given for one image at a time, as the paper measures it, and for all at once, which shares the
training images' gradients. ``--sizes`` adds its cost for other VAEs, by one checkpoint. Taking in the training images,
once for all generated ones, is on neither side and reported beside.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import common
import numpy as np
import others
import torch
import vae
from PIL import Image

KS = (30, 50, 100)


def tracin(
    model: vae.Vae, files: list[str], x: torch.Tensor, made: torch.Tensor, most: int, batch: int
) -> tuple[float, Any]:
    """Seconds, and indices and scores ``(m, most)`` of the training images with the highest scores."""
    from captum.influence import TracInCP

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum says which of its two ways it takes
        method = TracInCP(
            model, torch.utils.data.TensorDataset(x, x), files, vae.load_checkpoint, loss_fn=vae.Elbo(),
            batch_size=batch, sample_wise_grads_per_batch=True,
        )  # fmt: skip
        started = time.perf_counter()
        found = method.influence((made, made), k=most, proponents=True)
        return time.perf_counter() - started, found


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def rho(workspace: Any, batch: str | None, ks: tuple[int, ...]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = workspace.evaluate("identical-class", batch=batch, options={"ks": ks})[
        "rows"
    ]
    return rows


def main() -> None:
    parser = common.arguments(
        __doc__, encoders=("efficientnet", "alexnet"), distances=("none", "l2@64", "lpips:alex@64"), training=10_000,
        generated=100, vae="conv", epochs=20, checkpoints=4, batch=32, seed=0,
    )  # fmt: skip
    parser.add_argument(
        "--sizes", nargs="*", choices=vae.KINDS, default=[], help="VAEs to give TracIn's cost for"
    )
    parser.add_argument("--plots", type=Path, help="a folder for samples of the VAE")
    given = parser.parse_args()
    kit, work = common.Kit(given.kit), common.work_folder(given)
    torch.manual_seed(given.seed)
    digits = kit("mnist_train_10k_A", given.training)
    x = torch.from_numpy(digits["images"]).flatten(1).float() / 255
    common.note("training the VAE")
    started = time.perf_counter()
    model, files = vae.train(given.vae, x, given.epochs, given.checkpoints, work / "vae")
    found: dict[str, Any] = {
        "vae": given.vae, "parameters": parameters(model), "checkpoints": len(files),
        "seconds to train the VAE": time.perf_counter() - started,
    }  # fmt: skip
    images, labels = vae.samples(model, x.numpy(), digits["labels"], given.generated)
    if given.plots:
        given.plots.mkdir(parents=True, exist_ok=True)
        rows = [
            np.concatenate(list(images[i : i + 10]), axis=1) for i in range(0, len(images) // 10 * 10, 10)
        ]
        Image.fromarray(np.concatenate(rows[:6])).save(given.plots / f"vae-{given.vae}-samples.png")
    training = work / f"mnist_train_10k_A-{given.training}"
    generated = work / f"vae-{given.vae}-samples-{time.strftime('%H%M%S')}"  # fresh: nothing is valued yet
    paths = common.write_set(digits["images"], training, label=digits["labels"])
    made = common.write_set(images, generated, label=labels)
    ks = tuple(k for k in KS if k <= len(paths))
    found |= {"training_images": len(paths), "generated_images": len(made)}

    seconds: dict[str, float] = {}
    main_encoder = given.encoders[0]
    for distance in given.distances:
        common.note(distance)
        path = work / common.slug("baselines", str(given.training), main_encoder, distance)
        started = time.perf_counter()
        with common.remembering(work):
            workspace = common.workspace(path, [training], **kit.encoder(main_encoder), distance=distance)
        found[f"seconds to take in, {distance}"] = time.perf_counter() - started
        spent = workspace.value([generated], batch=generated.name)["seconds"]
        seconds[distance] = spent["total"] / len(made)
        found[f"phases, {distance}"] = spent
        found[distance] = rho(workspace, generated.name, ks)
        common.show(found, given.out, quiet=True)

    flat = torch.from_numpy(images).flatten(1).float() / 255
    most = min(200, len(x))
    common.note("VAE-TracIn, one image")
    cost, _ = tracin(model, files, x, flat[:1], most, given.batch)
    tracin_seconds = {f"{given.vae}, {len(files)} checkpoints": cost}
    common.note("VAE-TracIn, all images")
    cost, (rows, scores) = tracin(model, files, x, flat, most, given.batch)
    found["VAE-TracIn, seconds an image when all are done together"] = cost / len(made)
    ranked = {"VAE-TracIn": (rows.numpy(), scores.numpy(), "similarity")}
    ranked["random"] = others.drawn(len(paths), len(made), most, given.seed)
    ranked["raw-pixels"] = others.nearest(x.numpy(), flat.numpy(), most)
    file = work / "recall-vectors.sqlite"
    for encoder in given.encoders:
        common.note("raw nearest neighbours", encoder)
        embedded = [others.vectors(kit, encoder, both, file) for both in (paths, made)]
        ranked[f"raw-{common.slug(encoder)}"] = others.nearest(*embedded, most)
    for method, scored in ranked.items():
        other = others.imported(workspace, work / f"{generated.name}-{method}", made, paths, scored)
        found[method] = rho(other, None, ks)
    common.show(found, given.out, quiet=True)
    for kind in given.sizes:
        common.note("cost of VAE-TracIn", kind)
        other_model, kept = vae.train(kind, x, 1, 1, work / "vae-cost")
        cost, _ = tracin(other_model, kept, x, flat[:1], most, given.batch)
        tracin_seconds[f"{kind}, 1 checkpoint, {parameters(other_model):,} parameters"] = cost
    found["seconds an image"] = seconds
    found["VAE-TracIn, seconds an image, one at a time"] = tracin_seconds
    found["times faster than VAE-TracIn"] = {
        distance: {size: cost / mine for size, cost in tracin_seconds.items()}
        for distance, mine in seconds.items()
    }
    common.show(found, given.out)


if __name__ == "__main__":
    main()
