"""C3 and cost beside IF4GAN, influence estimation for GANs (Fig. 5, lower half of Table 4).

    python scripts/reproduce/if4gan.py KIT [--training 10000] [--generated 100] [--epochs 15] [--check 0]

A small DCGAN (smooth activations, no batch normalisation) is trained by this script on digits of which 100 are noisy,
by adversarial SGD. IF4GAN (Terashita et al. 2021; influence.py) traces all steps back and gives each training image
the change of the inception score if it were left out; an image is worth what its removal would cost. Ours values the
same images by samples of that GAN. Both, raw nearest neighbours and random credit are judged by the same code.
IF4GAN's scores don't belong to single generated images, so they are imported as those of one; as ranks, which is all
that C3 asks for. ``--traced`` says how many of the last epochs are traced back (0: all; the authors take the last of
20 to clean a data set); ``--check N`` makes the first of these again without each of N training images and compares.

Seconds are of what has to be done anew for each generator: training it, and taking in the training images, count on
neither side.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import common
import influence
import numpy as np
import others
import torch
from PIL import Image
from scipy.stats import kendalltau, rankdata

from gmv_qdrant.ledger.selection import Selection

GROUP = {"group": Selection(attribute="corrupted")}
MOST_RANKS = 32_767
"""Ranks that a ledger can hold for one generated image."""


def c3(workspace: Any, k: int | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = workspace.evaluate("ood", k=k, options=GROUP)["rows"]
    return rows


def checked(
    gan: influence.Gan,
    x: torch.Tensor,
    traced: influence.Trajectory,
    effects: np.ndarray,
    metric: Any,
    chosen: np.ndarray,
) -> dict[str, float]:
    """Estimates beside what happened when the same steps were made again without an image."""
    now = float(metric(traced.states[-1]))
    true = [
        float(metric(influence.replay(gan, x, traced, without=j).states[-1])) - now for j in chosen.tolist()
    ]
    return {
        "images": len(chosen),
        "correlation": float(np.corrcoef(effects[chosen], true)[0, 1]),
        "kendall": float(kendalltau(effects[chosen], true)[0]),
        "mean_true_change": float(np.abs(true).mean()),
        "mean_error": float(np.abs(effects[chosen] - true).mean()),
    }


def sheet(images: np.ndarray, file: Path) -> None:
    """The first images, ten in a row."""
    rows = [np.concatenate(list(images[i : i + 10]), axis=1) for i in range(0, len(images) // 10 * 10, 10)]
    Image.fromarray(np.concatenate(rows[:6])).save(file)


def main() -> None:
    parser = common.arguments(
        __doc__, encoder="efficientnet", distances=("none", "l2@64", "lpips:alex@64"), noise="noisy05", training=10_000,
        generated=100, epochs=15, batch=50, width=16, latent=32, rate_g=0.1, rate_d=0.03, judged=500, traced=(1, 0),
        check=0, ks=(30, 200), seed=0,
    )  # fmt: skip
    parser.add_argument("--plots", type=Path, help="a folder for samples of the GAN")
    given = parser.parse_args()
    kit, work = common.Kit(given.kit), common.work_folder(given)
    clean, noisy = kit("mnist_train_10k_A", given.training), kit("mnist_noisy_ood")[given.noise]
    digits = np.concatenate([clean["images"], noisy])
    corrupted = np.arange(len(digits)) >= len(clean["images"])
    x = torch.from_numpy(digits).float().unsqueeze(1) / 127.5 - 1
    found: dict[str, Any] = {"training_images": len(x), "corrupted": int(corrupted.sum()), "settings": {
        name: getattr(given, name) for name in ("epochs", "batch", "width", "latent", "rate_g", "rate_d", "judged")
    }}  # fmt: skip

    common.note("training the classifier and the GAN")
    labels = torch.from_numpy(clean["labels"].astype(np.int64))
    judge = influence.classifier(x[: len(labels)], labels, 5, given.seed)
    torch.manual_seed(given.seed)
    nets = influence.convolutional(x.shape[-1], given.latent, given.width)
    gan = influence.Gan(*nets, given.latent, (given.rate_g, given.rate_d))
    z = torch.randn(given.judged, given.latent)

    def metric(state: influence.State) -> torch.Tensor:
        return influence.log_inception_score(judge, gan.generate(state, z))

    started = time.perf_counter()
    trajectory = influence.train(gan, x, given.batch, given.epochs, given.seed)
    found["seconds to train the GAN"] = time.perf_counter() - started
    now = float(np.exp(float(metric(trajectory.states[-1]))))
    found["GAN"] = {
        "parameters": sum(p.numel() for p in trajectory.states[0]), "steps": len(trajectory.batches),
        "inception_score": now, "before_training": float(np.exp(float(metric(trajectory.states[0])))),
        "real_images": float(influence.log_inception_score(judge, x[common.spaced(len(labels), given.judged)]).exp()),
    }  # fmt: skip
    with torch.inference_mode():
        fresh = torch.randn(given.generated, given.latent)
        sampled = gan.generate(trajectory.states[-1], fresh)[:, 0]
    images = ((sampled.numpy() + 1) * 127.5).round().astype(np.uint8)
    if given.plots:
        given.plots.mkdir(parents=True, exist_ok=True)
        sheet(images, given.plots / "if4gan-samples.png")

    seconds: dict[str, float] = {}
    effects: dict[str, np.ndarray] = {}
    per_epoch = len(trajectory.batches) // given.epochs
    chosen = np.random.default_rng(given.seed).permutation(len(x))[: given.check]
    for epochs in given.traced:
        name = (
            f"IF4GAN, last {epochs} of {given.epochs} epochs"
            if epochs
            else f"IF4GAN, all {given.epochs} epochs"
        )
        common.note(name)
        traced = trajectory.last(epochs * per_epoch)
        started = time.perf_counter()
        mine = effects[name] = influence.removal_effects(gan, traced, x, metric)
        seconds[name] = time.perf_counter() - started
        found[f"{name}, effects"] = {"mean": float(mine.mean()), "largest": float(np.abs(mine).max())}
        if given.check and epochs == given.traced[0]:
            common.note("making the steps again without single images")
            found[f"{name}, against retraining"] = checked(gan, x, traced, mine, metric, chosen)
        common.show(found, given.out, quiet=True)

    training = work / f"mnist-{given.training}-{given.noise}"
    tag = f"{given.epochs}-{given.width}-{given.training}-{given.seed}"
    paths = common.write_set(digits, training, corrupted=corrupted.astype(int))
    generated = work / f"if4gan-samples-{len(images)}-{tag}-{time.strftime('%H%M%S')}"
    made = common.write_set(images, generated)
    for distance in given.distances:
        common.note(distance)
        path = work / common.slug("if4gan", tag, given.encoder, distance)
        with common.remembering(work):
            workspace = common.workspace(path, [training], **kit.encoder(given.encoder), distance=distance)
        spent = workspace.value([generated], batch=generated.name)["seconds"]
        seconds[distance] = spent["total"]
        found[f"phases, {distance}"] = spent
        for k in given.ks:
            rows = workspace.evaluate("ood", k=min(k, len(x)), batch=generated.name, options=GROUP)["rows"]
            found[f"{distance}, k = {k}"] = rows
        common.show(found, given.out, quiet=True)

    most = min(len(x), MOST_RANKS)
    for name, mine in effects.items():
        worth = rankdata(-mine) / len(x)
        best = np.argsort(-worth, kind="stable")[None, :most]
        into = work / f"{name.replace(' ', '-').replace(',', '')}-{tag}"
        other = others.imported(workspace, into, made[:1], paths, (best, worth[best], "similarity"))
        found[name] = c3(other, None)
    count, file = max(given.ks), work / "recall-vectors.sqlite"
    embedded = [others.vectors(kit, given.encoder, both, file) for both in (paths, made)]
    for method, ranked in {
        "raw nearest neighbours": others.nearest(*embedded, min(count, len(x))),
        "random": others.drawn(len(x), len(made), min(count, len(x)), given.seed),
    }.items():
        other = others.imported(workspace, work / f"{method.replace(' ', '-')}-{tag}", made, paths, ranked)
        for k in given.ks:
            found[f"{method}, k = {k}"] = c3(other, min(k, len(x)))
    found["seconds"] = seconds
    found["times faster"] = {
        distance: {name: seconds[name] / seconds[distance] for name in effects}
        for distance in given.distances
    }
    common.show(found, given.out)


if __name__ == "__main__":
    main()
