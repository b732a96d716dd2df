"""Criterion C1 and cost on a beta-VAE, beside VAE-TracIn (Tables 2 and 4), raw nearest neighbours and random credit.

    pip install captum && python scripts/reproduce/baselines.py KIT [--training 10000] [--generated 20] [--epochs 20]

A small beta-VAE is trained on MNIST digits by this script; samples of its prior that a classifier (trained
here, too) is sure of are the generated images. VAE-TracIn (Kong & Chaudhuri 2021) sums over checkpoints the
product of learning rate and the gradients of the loss for a generated and a training image, by captum's
TracInCP; its scores are imported into a workspace of their own, so all methods are judged by the same code. Raw
nearest neighbours are exact, without quantization or re-ranking. The cost of TracIn is given for one image at a
time, as the paper measures it, and for all at once.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import common
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

BETA = 4.0


class Vae(nn.Module):
    """784 -> 256 -> 2 x 16 -> 256 -> 784, as one tensor: logits, mean and log-variance; the latent is the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 32))
        self.decode = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 784))
        self.noise = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, log_variance = self.encode(x).chunk(2, dim=1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp() if self.noise else mean
        return torch.cat([self.decode(z), mean, log_variance], dim=1)


class Elbo(nn.Module):
    """Minus the evidence lower bound, KL weighted by BETA / 4 (pixels are sums), summed over the batch."""

    reduction = "sum"

    def forward(self, out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits, mean, log_variance = out.split([784, 16, 16], dim=1)
        fit = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        return fit - BETA / 2 * (1 + log_variance - mean**2 - log_variance.exp()).sum()


def train(x: torch.Tensor, epochs: int, checkpoints: int, folder: Path) -> tuple[Vae, list[str]]:
    """The VAE, and the files of evenly spaced checkpoints with their learning rate."""
    model, loss, rate = Vae(), Elbo(), 1e-3
    model.noise = True
    optimizer = torch.optim.Adam(model.parameters(), rate)
    kept = []
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            (loss(model(x[rows]), x[rows]) / len(rows)).backward()
            optimizer.step()
        if epoch % max(1, epochs // checkpoints) == 0:
            kept.append(str(folder / f"vae-{epoch:03d}.pt"))
            torch.save({"state": model.state_dict(), "rate": rate}, kept[-1])
    model.noise = False
    return model.eval(), kept


def samples(model: Vae, x: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 digits of the prior that a classifier is sure of (.9), and their labels."""
    from sklearn.neural_network import MLPClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it could train for longer
        judge = MLPClassifier((128,), max_iter=15, random_state=0).fit(x, labels)
    with torch.inference_mode():
        drawn = model.decode(torch.randn(40 * count, 16)).sigmoid().numpy()
    sure = judge.predict_proba(drawn)
    rows = np.flatnonzero(sure.max(axis=1) >= 0.9)[:count]
    return (drawn[rows] * 255).astype(np.uint8).reshape(-1, 28, 28), sure[rows].argmax(axis=1)


def load_checkpoint(model: nn.Module, file: str) -> float:
    kept = torch.load(file, weights_only=True)
    model.load_state_dict(kept["state"])
    return float(kept["rate"])


def tracin(
    model: Vae, files: list[str], x: torch.Tensor, made: torch.Tensor, most: int
) -> tuple[dict[str, float], Any]:
    """Seconds an image, one at a time and together; indices and scores ``(m, most)`` of the highest."""
    from captum.influence import TracInCP

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum says which of its two ways it takes
        method = TracInCP(
            model, torch.utils.data.TensorDataset(x, x), files, load_checkpoint, loss_fn=Elbo(), batch_size=128,
            sample_wise_grads_per_batch=True,
        )  # fmt: skip
        started = time.perf_counter()
        found = method.influence((made, made), k=most, proponents=True)
        together = time.perf_counter() - started
        started = time.perf_counter()
        method.influence((made[:1], made[:1]), k=most, proponents=True)
    return {"one at a time": time.perf_counter() - started, "together": together / len(made)}, found


def main() -> None:
    parser = common.arguments(
        __doc__, encoder="efficientnet", distances=("none", "l2@64", "lpips:alex@64"), training=10_000, generated=20,
        epochs=20, checkpoints=4, seed=0,
    )  # fmt: skip
    given = parser.parse_args()
    kit, work = common.Kit(given.kit), common.work_folder(given)
    torch.manual_seed(given.seed)
    digits = kit("mnist_train_10k_A", given.training)
    x = torch.from_numpy(digits["images"]).reshape(-1, 784).float() / 255
    (work / "vae").mkdir(parents=True, exist_ok=True)
    common.note("training the VAE")
    model, files = train(x, given.epochs, given.checkpoints, work / "vae")
    images, labels = samples(model, x.numpy(), digits["labels"], given.generated)
    training, generated = (
        work / f"mnist_train_10k_A-{given.training}",
        work / f"vae-samples-{len(images)}-{given.seed}",
    )
    paths = common.write_set(digits["images"], training, label=digits["labels"])
    made = common.write_set(images, generated, label=labels)
    found: dict[str, Any] = {
        "training_images": len(paths),
        "generated_images": len(made),
        "seconds_per_image": {},
    }

    seconds = found["seconds_per_image"]
    workspace = None
    for distance in given.distances:
        common.note(distance)
        path = work / common.slug("baselines", str(given.training), given.encoder, distance)
        workspace = common.workspace(path, [training], **kit.encoder(given.encoder), distance=distance)
        batch = generated.name
        spent = workspace.value([generated], batch=batch)
        if spent.get("valued"):
            phases = {phase: s / len(made) for phase, s in spent["seconds"].items()}
            seconds[distance] = phases.pop("total") - phases.pop("recover", 0.0)
            found[f"phases, {distance}"] = phases
        found[distance] = workspace.evaluate("identical-class", batch=batch)["rows"]
    assert workspace is not None

    common.note("VAE-TracIn")
    cost, (rows, scores) = tracin(
        model, files, x, torch.from_numpy(images).reshape(-1, 784).float() / 255, min(1000, len(x))
    )
    seconds.update({f"VAE-TracIn, {how}": s for how, s in cost.items()})
    ranked = {"VAE-TracIn": (rows.numpy(), scores.numpy())}
    ranked["raw nearest neighbours, pixels"] = nearest(x.numpy(), images.reshape(-1, 784) / 255.0, 200)
    random = np.random.default_rng(given.seed)
    picked = np.stack([random.permutation(len(paths))[:200] for _ in made])
    ranked["random"] = (picked, random.random(picked.shape))
    for method, (which, score) in ranked.items():
        file = work / f"{common.slug(method.replace(' ', '-').replace(',', ''))}.parquet"
        names = {"generated": np.repeat([str(p) for p in made], which.shape[1]),
                 "training": np.array([str(p) for p in paths])[which.ravel()], "score": score.ravel()}  # fmt: skip
        pq.write_table(pa.table(names), file)
        into = file.with_suffix("") / time.strftime("%H%M%S")
        workspace.import_scores(
            file, into, method=method.split(",")[0].replace(" ", "-"), scores_are="similarity"
        )
        found[method] = common.Workspace(into).evaluate("identical-class")["rows"]
    for distance in given.distances:
        if distance in seconds:
            found[f"times faster than VAE-TracIn, {distance}"] = {
                how: s / seconds[distance] for how, s in cost.items()
            }
    common.show(found, given.out)


def nearest(training: np.ndarray, generated: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and minus the distance of the exact nearest by pixels."""
    squares = (generated**2).sum(axis=1)[:, None] + (training**2).sum(axis=1) - 2 * generated @ training.T
    rows = np.argsort(squares, axis=1, kind="stable")[:, :count]
    return rows, -np.sqrt(np.take_along_axis(squares, rows, axis=1).clip(min=0))


if __name__ == "__main__":
    main()
