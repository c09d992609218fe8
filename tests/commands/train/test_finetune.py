"""Training of the whole network, on small crops of made pictures."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from app import images
from app.commands.train import finetune
from app.commands.train.crops import Crops
from app.commands.train.examples import Example
from app.commands.train.finetune import Recipe, Score, fine_tune, rate
from app.images import Preprocessing
from app.models.split import set_classes
from tests.commands.train.conftest import PROGRESS, settings
from tests.conftest import CAT
from tests.models.seeded import seeded

SMALL = Preprocessing(64, 64, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
QUICK = Recipe(epochs=4, batch_size=8, learning_rate=0.02, patience=4)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Example], list[Example]]:
    """Reddish and bluish noise: some to learn from, some held out."""
    folder, random, found = tmp_path_factory.mktemp("tune"), np.random.default_rng(0), []
    for i in range(48):
        pixels = random.integers(0, 160, (80, 80, 3)) + (np.array([60, 0, 0]) if i % 2 else np.array([0, 0, 60]))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        found.append(Example(folder / f"{i}.png", i % 2, b""))
    return found[16:], found[:16]


def network() -> nn.Module:
    """A ResNet-18 of random weights, whose head answers nothing yet."""
    module = seeded(torchvision.models.resnet18)
    layer = set_classes(module, 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return module


def tuned(module: nn.Module, sides: tuple[list[Example], list[Example]], recipe: Recipe) -> finetune.Tuning:
    return fine_tune(module, SMALL, *sides, recipe, settings(device="cpu"), PROGRESS)


@pytest.mark.slow
def test_it_learns_and_keeps_the_best_epoch(sides: tuple[list[Example], list[Example]]) -> None:
    module = network()
    found = tuned(module, sides, QUICK)
    assert found.best > 0
    assert found.scores[found.best].loss < found.scores[0].loss == pytest.approx(np.log(2), abs=1e-6)
    assert not any(score.beats(found.scores[found.best]) for score in found.scores)
    untouched, seen = network().bn1, module.bn1
    assert torch.equal(seen.running_mean, untouched.running_mean)  # type: ignore[arg-type, union-attr]
    assert not torch.equal(seen.weight, untouched.weight)  # type: ignore[arg-type, union-attr]
    again = tuned(module, sides, replace(QUICK, epochs=1))
    assert again.scores[0] == found.scores[found.best]


@pytest.mark.slow
def test_what_does_not_help_ends_early_and_leaves_the_network_as_it_was(
    sides: tuple[list[Example], list[Example]],
) -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    found = tuned(module, sides, replace(QUICK, learning_rate=1e4, patience=2))
    assert found.best == 0
    assert len(found.scores) == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(sides: tuple[list[Example], list[Example]]) -> None:
    states = []
    for _ in range(2):
        module = network()
        tuned(module, sides, replace(QUICK, epochs=1))
        states.append(module.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_best_is_the_most_right_and_of_equals_the_surest() -> None:
    assert Score(0.9, 2.0).beats(Score(0.8, 0.1))
    assert Score(0.9, 0.1).beats(Score(0.9, 0.2))
    assert not Score(0.9, float("nan")).beats(Score(0.9, 0.2))
    assert not Score(0.9, 0.2).beats(Score(0.9, 0.2))


def test_the_learning_rate_rises_then_falls_along_a_cosine() -> None:
    rates = [rate(step, 100, 10) for step in range(100)]
    assert rates[:10] == pytest.approx(np.linspace(0.1, 1, 10).tolist())
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.gpu
def test_it_learns_on_a_gpu(sides: tuple[list[Example], list[Example]]) -> None:
    module = network()
    found = fine_tune(module, SMALL, *sides, QUICK, settings(device="cuda"), PROGRESS)
    assert found.best > 0
    assert next(module.parameters()).device.type == "cpu"


def test_held_out_images_are_cropped_as_they_are_served() -> None:
    crops = Crops([Example(CAT, 1, b"")], SMALL, 10**8, fast=True)
    pixels, class_id = crops[0]
    served = images.decode(images.read_header(CAT.read_bytes(), 10**8), SMALL, fast=True)
    assert class_id == 1
    assert torch.allclose(pixels, (torch.from_numpy(served.copy()).permute(2, 0, 1) / 255 - 0.5) / 0.25, atol=1e-6)


def test_a_random_crop_follows_from_seed_epoch_and_position() -> None:
    def crop(seed: int, epoch: int, position: int) -> torch.Tensor:
        crops = Crops([Example(CAT, 0, b"")] * 2, SMALL, 10**8, True, seed)
        crops.epoch = epoch
        return crops[position][0]

    before = torch.random.get_rng_state()
    first = crop(0, 1, 0)
    assert first.shape == (3, 64, 64)
    assert torch.equal(first, crop(0, 1, 0))
    for other in (crop(1, 1, 0), crop(0, 2, 0), crop(0, 1, 1)):
        assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_picture_is_turned_upright_for_crops_of_one_s_own(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(tmp_path / "turned.jpg", exif=exif)
    header = images.read_header((tmp_path / "turned.jpg").read_bytes(), 10**8)
    assert images.decode_whole(header, SMALL).shape == (40, 20, 3)
