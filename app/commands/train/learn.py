"""Images -> a trained network: read, compute features, hold out, fit the head, fine-tune if requested."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from app import models
from app.commands.evaluate.table import count
from app.commands.filenames import left_out, printable, shorten
from app.commands.train import examples, features, finetune, head, holdout, listing
from app.commands.train.examples import Example, TrainingSet
from app.commands.train.plan import TrainingPlan
from app.commands.train.progress import TrainingProgress
from app.errors import ModelError, TrainingError
from app.models import embedded
from app.models.model import Model
from app.models.names import ULTRALYTICS
from app.models.split import set_classes
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Sides:
    """The images to train on, and those held out."""

    learned: list[Example]
    held_out: list[Example]


@dataclass(frozen=True, slots=True)
class Learned:
    """A trained network with its own ``classes``. ``tuning`` is None unless it was fine-tuned."""

    classes: tuple[str, ...]
    parent: Model
    network: nn.Module
    sides: Sides
    head: head.Head
    tuning: finetune.Tuning | None
    warnings: list[str]


def learn(plan: TrainingPlan, settings: Settings, progress: TrainingProgress) -> Learned:
    """Train a network. Blocks. Raises TrainingError and ModelError."""
    head.require()
    found, val = _read(plan, progress)
    with progress.busy("resolving the model"):
        parent = models.resolve(settings)
        network, layer = _with_classes(parent, len(found.classes))
    rows = features.features([found, *filter(None, [val])], parent, _pinned(settings, parent), progress)
    sides = _hold_out(plan, found, val)
    linear = _fit(sides.learned, rows, plan.seed, progress)
    _put(linear, layer)
    tuning = None
    if plan.fine_tune:
        recipe = finetune.Recipe(plan.epochs, plan.batch_size, plan.seed)
        tuning = finetune.fine_tune(
            network, parent.preprocessing, sides.learned, sides.held_out, recipe, settings, progress
        )
    return Learned(found.classes, parent, network, sides, linear, tuning, _warnings(parent, found, val))


def _with_classes(parent: Model, classes: int) -> tuple[nn.Module, nn.Linear | nn.Conv2d]:
    """The network with a new last layer of ``classes`` outputs, and that layer. Raises ModelError."""
    if parent.architecture.startswith(ULTRALYTICS):
        raise ModelError(f"{parent.name} can only be trained with Ultralytics' own package; start from another model")
    network = parent.build()
    return network, set_classes(network, classes)


def _fit(
    learned: list[Example], rows: dict[bytes, features.Floats], seed: int, progress: TrainingProgress
) -> head.Head:
    x = np.stack([rows[example.digest] for example in learned])
    y = np.array([example.class_id for example in learned], np.int64)
    with progress.busy("the linear head") as status:
        return head.fit(x, y, seed, status.update)


def _put(linear: head.Head, layer: nn.Linear | nn.Conv2d) -> None:
    """Copy the head into the last layer of the network."""
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(linear.weight).view_as(layer.weight))
        assert layer.bias is not None
        layer.bias.copy_(torch.from_numpy(linear.bias))


def _read(plan: TrainingPlan, progress: TrainingProgress) -> tuple[TrainingSet, TrainingSet | None]:
    listed = listing.read(plan.folder)
    if len(listed.classes) < 2:
        only = f"{printable(plan.folder)} has only one class, {listed.classes[0]}: training needs two or more"
        raise TrainingError("; ".join([only, *left_out(listed.skipped)]))
    beside = listing.read(plan.val) if plan.val else None
    files = sum(map(len, listed.files.values())) + (sum(map(len, beside.files.values())) if beside else 0)
    with progress.bar("reading", files) as advance:
        found = examples.read(listed, listed.classes, advance)
        val = examples.read(beside, listed.classes, advance) if beside else None
    if val and (both := found.remove({example.digest for example in val.found})):
        found.warnings.append(f"ignored {count(both, 'training image')}, also in {printable(str(plan.val))}")
    examples.check(found, held_out=val is None)
    return found, val


def _hold_out(plan: TrainingPlan, found: TrainingSet, val: TrainingSet | None) -> Sides:
    """Split the readable images. Raises TrainingError."""
    examples.check(found, held_out=val is None)
    if val is None:
        class_ids = np.array([example.class_id for example in found.found], np.int64)
        learned, held_out = holdout.split(class_ids, plan.holdout, plan.seed)
        return Sides([found.found[i] for i in learned], [found.found[i] for i in held_out])
    if not val.found:
        raise TrainingError(f"{printable(str(plan.val))} has no readable image")
    there = {example.class_id for example in val.found}
    if unseen := [name for i, name in enumerate(found.classes) if i not in there]:
        val.warnings.append(f"not evaluated, because {printable(str(plan.val))} has no images of: {shorten(unseen)}")
    return Sides(found.found, val.found)


def _pinned(settings: Settings, parent: Model) -> Settings:
    """Settings that name the resolved model, because ``auto`` may be either of two."""
    if settings.model != "auto" or parent.openvino:  # a mounted folder
        return settings
    name = parent.architecture
    return settings.model_copy(update={"model": name if name == embedded.NAME else f"{name}:{parent.weights}"})


def _warnings(parent: Model, *sets: TrainingSet | None) -> list[str]:
    warnings = [parent.warning] if parent.warning else []
    for part in filter(None, sets):
        warnings += part.warnings + [text for text in [examples.unreadable(part)] if text]
    return warnings
