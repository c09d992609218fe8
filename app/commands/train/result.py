"""A trained network and its labels -> a model folder, which is evaluated as it is served, then moved into place."""

import copy
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import safetensors.torch
from torch import nn

from app.commands import training_images
from app.commands.evaluate import local
from app.commands.evaluate.evaluation import Evaluation, measured
from app.commands.evaluate.read import Samples
from app.commands.train.progress import TrainingProgress
from app.errors import ModelError
from app.imagenet.labels import Label
from app.models import download, folder
from app.models.model import Model, Training
from app.settings import Settings

WEIGHTS = "trained"
"""The ``weights`` of a trained model in API responses."""


@contextmanager
def temporary(out: Path) -> Iterator[Path]:
    """A temporary folder next to ``out``. At the end of the block it is moved to ``out``, or deleted after an error.

    Raises ModelError.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-", ignore_cleanup_errors=True) as made:
            place = Path(made) / out.name
            yield place
            place.rename(out)
    except OSError as error:
        raise ModelError(f"{out} cannot be written: {error.strerror or error}") from error


def write(network: nn.Module, parent: Model, classes: Sequence[str], digests: Iterable[bytes], place: Path) -> None:
    """Write a model folder. ``digests`` are those of the training images. Raises ModelError and OSError."""
    network = network.cpu().float().eval()
    digest = _digest(network, place.parent)
    labels = tuple(Label(name) for name in classes)
    model = replace(
        parent,
        weights=WEIGHTS,
        digest=digest,
        labels=labels,
        build=lambda: copy.deepcopy(network),  # because the conversion modifies it
        precision="auto",
        openvino=None,
        training=Training(parent.digest, {}),
    )
    folder.write(model, place)
    training_images.write(place, digests)


def as_served(place: Path, held_out: Samples, settings: Settings, progress: TrainingProgress) -> Evaluation:
    """Evaluate the folder on the held-out images, as it is served. Raises ModelError and EvaluationError."""
    settings = settings.model_copy(update={"model": str(place), "weights": None, "model_name": None})
    with progress.busy("loading the trained model"):
        source = local.load(settings)
    with closing(source), progress.count("held-out images", len(held_out.files)) as watch:
        return measured(source, held_out, watch)


def _digest(network: nn.Module, folder: Path) -> str:
    path = folder / "weights.safetensors"
    safetensors.torch.save_model(network, str(path))
    try:
        return download.sha256(path)
    finally:
        path.unlink()
