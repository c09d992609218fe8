"""Folders of made pictures, and a model that was trained on them."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from rich.console import Console

from app.commands.train.plan import TrainingPlan
from app.commands.train.progress import TrainingProgress
from app.commands.train.run import Trained, run
from app.settings import Settings
from tests.conftest import PHOTOGRAPHS

SHAPES: dict[str, Callable[..., None]] = {
    "disc": lambda draw, box, colour: draw.ellipse(box, fill=colour),
    "square": lambda draw, box, colour: draw.rectangle(box, fill=colour),
    "ring": lambda draw, box, colour: draw.ellipse(box, outline=colour, width=9),
}
# birds, dogs, food and vehicles of ../shared by the numbers of their wnids
RANGES = {"bird": (1530575, 1622779), "dog": (2085240, 2114548), "food": (7584110, 7880969)}
SCATTERED = {
    "bird": (1795545, 1806567, 1820546, 1843065, 1860187, 2007558, 2013706, 2027492, 2056570),
    "vehicle": (
        *(3095699, 3345487, 3393912, 3445924, 3496892, 3662601, 3785016, 3791053, 3796401, 3895866),
        *(4147183, 4310018, 4482393, 4509417, 4552348),
    ),
}

CONSOLE = Console(file=io.StringIO())
PROGRESS = TrainingProgress(CONSOLE)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """A network: with several, a busy machine keeps them waiting for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings(model: str | Path = "efficientnet_lite0", **options: object) -> Settings:
    return Settings(model=str(model), _env_file=None, **options)  # type: ignore[arg-type]


def shape(name: str, seed: int) -> Image.Image:
    """A shape on a background, both of some colour, somewhere."""
    random = np.random.default_rng([seed, *name.encode()])
    picture = Image.new("RGB", (96, 96), tuple(int(v) for v in random.integers(0, 100, 3)))
    x, y, size = (int(v) for v in (*random.integers(4, 40, 2), random.integers(36, 52)))
    colour = tuple(int(v) for v in random.integers(120, 256, 3))
    SHAPES[name](ImageDraw.Draw(picture), (x, y, x + size, y + size), colour)
    return picture


def make(folder: Path, count: int = 8, names: tuple[str, ...] = ("disc", "square")) -> Path:
    """So many pictures of each shape, in a folder named after it."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for seed in range(count):
            shape(name, seed).save(folder / name / f"{seed}.png")
    return folder


def coarse(folder: Path) -> Path:
    """Links to the photographs of ../shared that show a bird, a dog, food or a vehicle, by that."""
    for path in PHOTOGRAPHS:
        number = int(path.parent.name[1:])
        names = [name for name, (low, high) in RANGES.items() if low <= number < high]
        for name in names + [name for name, numbers in SCATTERED.items() if number in numbers]:
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / path.name).symlink_to(path)
    return folder


def description(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "model.json").read_text())
    return found


@pytest.fixture(scope="package")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight pictures. Not to be changed: make another one."""
    return make(tmp_path_factory.mktemp("shapes") / "shapes")


@pytest.fixture(scope="package")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    """What came of training on the shapes, and the model folder. Not to be changed: copy it."""
    out = tmp_path_factory.mktemp("trained") / "my-shapes"
    return run(TrainingPlan(shapes, out), settings(), PROGRESS), out
