"""The yardstick's generators and rules against what they stand for: one model by itself, loops, known pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.scripts
Script = Callable[[str], Any]


@pytest.mark.parametrize("name", ["vae", "flow"])
def test_models_trained_together_are_those_trained_alone(script: Script, name: str) -> None:
    retrained = script("retrained")
    family = retrained.FAMILIES[name](36)
    family.steps, family.repeats = 12, 3
    random = torch.Generator().manual_seed(0)
    x, labels = torch.rand(20, 36, generator=random), torch.arange(20) % 10
    subsets = np.random.default_rng(0).random((3, 20)) < 0.6
    together, path = retrained.train(family, x, labels, subsets, 1, checkpoints=2)
    alone, _ = retrained.train(family, x, labels, subsets[1:2], 1)
    assert len(path) == 2
    assert all(one.shape[0] == 3 for one in together)
    losses = retrained.judged(family, together, x[:4], labels[:4])
    assert losses.shape == (3, 4)
    assert np.isfinite(losses).all()
    assert np.ptp(losses, axis=0).min() > 0  # what they were trained on shows
    assert retrained.judged(family, alone, x[:4], labels[:4]).shape == (1, 4)
    made = family.sample(together, labels[:5], torch.Generator().manual_seed(1))
    assert made.shape == (5, 36)
    assert 0 <= float(made.min()) <= float(made.max()) <= 1


def test_gradients_are_those_of_one_image(script: Script) -> None:
    retrained = script("retrained")
    family = retrained.FAMILIES["vae"](16)
    x, labels = (
        torch.rand(3, 16, generator=torch.Generator().manual_seed(0)),
        torch.zeros(3, dtype=torch.long),
    )
    p = retrained.beginnings(family, 1, 0)
    found = retrained.gradients(family, p, x, labels, 5)

    def loss(flat: list[torch.Tensor]) -> torch.Tensor:
        noise = torch.Generator().manual_seed(77)
        return family.losses(flat, x[1].expand(1, 5, -1), labels[1].expand(1, 5), noise).mean()

    for layer, one in enumerate(p):
        moved = [q.clone() for q in p]
        moved[layer] = one + 1e-3
        slope = float(loss(moved) - loss([q - 1e-3 * (at == layer) for at, q in enumerate(p)])) / 2e-3
        start = sum(q.numel() for q in p[:layer])
        assert slope == pytest.approx(float(found[1, start : start + one.numel()].sum()), rel=0.05, abs=0.05)


def test_the_local_denoiser_is_a_loop_over_patches(script: Script) -> None:
    local = script("local_scores")
    random = torch.Generator().manual_seed(0)
    training, noised = torch.rand(5, 2, 4, 4, generator=random), torch.rand(2, 2, 4, 4, generator=random)
    kept = torch.tensor([[1.0, 1, 1, 1, 1], [1, 0, 1, 0, 1]])
    found = local.LocalScores(training, reach=1).denoised(noised, 0.6, 3, kept)
    wide, wide_noised = (
        torch.nn.functional.pad(of, (1, 1, 1, 1), mode="replicate") for of in (training, noised)
    )
    for subset, image, y, x in ((0, 0, 0, 0), (1, 1, 2, 3), (1, 0, 1, 1)):
        patch = wide_noised[image, :, y : y + 3, x : x + 3]
        weights, values = [], []
        for i in np.flatnonzero(kept[subset].numpy()):
            for v in range(max(0, y - 1), min(4, y + 2)):
                for u in range(max(0, x - 1), min(4, x + 2)):
                    gap = ((patch - 0.8 * wide[i, :, v : v + 3, u : u + 3]) ** 2).sum()
                    weights.append(float(torch.exp(-gap / (2 * 0.36))))
                    values.append(training[i, :, v, u])
        expected = (torch.tensor(weights)[:, None] * torch.stack(values)).sum(dim=0) / sum(weights)
        torch.testing.assert_close(found[subset, image, :, y, x], expected, rtol=1e-4, atol=1e-5)


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    small = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC) for one in small]


def test_two_parents_are_found_with_their_parts(script: Script) -> None:
    research = script("research")
    training = pictures(40)
    made = [Image.blend(training[3], training[9], 0.4), Image.blend(training[7], training[20], 0.5)]
    first, second = research.pairs(training, made, np.array([[3, 30], [20, 1]]))
    assert first.rows == (3, 9)
    assert first.parts == pytest.approx((0.6, 0.4), abs=0.1)
    assert set(second.rows) == {7, 20}
    assert first.r2 > 0.95 > first.r1


def test_patches_come_from_the_image_that_has_them(script: Script) -> None:
    research = script("research")
    training = pictures(6)
    pixels = np.asarray(training[2]).copy()
    pixels[:, 16:] = np.asarray(training[5])[:, 16:]
    found = research.patches(training, [Image.fromarray(pixels)], stride=4)[0]
    assert found.sum() == pytest.approx(1)
    assert set(np.argsort(-found)[:2]) == {2, 5}


def test_sets_with_known_parents_name_them(script: Script) -> None:
    sets = script("parent_sets")
    images = np.stack([np.asarray(image) for image in pictures(30)])
    task = sets.Task(images, np.arange(30) % 3, True)
    for regime, weights in (*sets.WEIGHTS.items(), ("one", (1.0,))):
        made, parents = sets.draw(task, np.arange(30), regime, 10)
        assert made.shape == (10, 32, 32, 3)
        assert all(one.weights == weights and len(set(one.parents)) == len(weights) for one in parents)
        assert len({task.labels[row] for one in parents[:1] for row in one.parents}) == 1
        assert (made == sets.draw(task, np.arange(30), regime, 10)[0]).all()
