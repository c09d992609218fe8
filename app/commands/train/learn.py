"""From the images to a trained network: read, compute features, hold out, fit the head, train on where asked."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from app import models
from app.commands.evaluate.table import count
from app.commands.train import examples, features, finetune, head, holdout, listing
from app.commands.train.examples import Example, Examples
from app.commands.train.plan import Plan
from app.commands.train.progress import Bars
from app.errors import ModelError, TrainingError
from app.models import embedded
from app.models.model import Model
from app.models.names import ULTRALYTICS
from app.models.split import set_classes
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Sides:
    """What is learned from, and what is held out."""

    learned: list[Example]
    held_out: list[Example]


@dataclass(frozen=True, slots=True)
class Learned:
    """A network of ``classes``, made from ``parent``; ``tuning`` where all of it was trained."""

    classes: tuple[str, ...]
    parent: Model
    network: nn.Module
    sides: Sides
    head: head.Head
    tuning: finetune.Tuning | None
    warnings: list[str]


def learn(plan: Plan, settings: Settings, bars: Bars) -> Learned:
    """Blocks. Raises TrainingError and ModelError."""
    head.require()
    found, val = _read(plan, bars)
    with bars.busy("resolving the model"):
        parent = models.resolve(settings)
        network, layer = _with_classes(parent, len(found.classes))
    rows = features.features([found, *filter(None, [val])], parent, _pinned(settings, parent), bars)
    sides = _hold_out(plan, found, val)
    linear = _fit(sides.learned, rows, plan.seed, bars)
    _put(linear, layer)
    tuning = None
    if plan.fine_tune:
        recipe = finetune.Recipe(plan.epochs, plan.batch_size, plan.seed)
        tuning = finetune.fine_tune(
            network, parent.preprocessing, sides.learned, sides.held_out, recipe, settings, bars
        )
    return Learned(found.classes, parent, network, sides, linear, tuning, _warnings(parent, found, val))


def _with_classes(parent: Model, classes: int) -> tuple[nn.Module, nn.Linear | nn.Conv2d]:
    """The network with a last layer of so many outputs, and that layer. Raises ModelError."""
    if parent.architecture.startswith(ULTRALYTICS):
        raise ModelError(f"{parent.name} is trained by Ultralytics' own package; choose another model to start from")
    network = parent.build()
    return network, set_classes(network, classes)


def _fit(learned: list[Example], rows: dict[bytes, features.Floats], seed: int, bars: Bars) -> head.Head:
    x = np.stack([rows[example.digest] for example in learned])
    y = np.array([example.class_id for example in learned], np.int64)
    with bars.busy("the linear head") as status:
        return head.fit(x, y, seed, status.update)


def _put(linear: head.Head, layer: nn.Linear | nn.Conv2d) -> None:
    """The head as a network's last layer."""
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(linear.weight).view_as(layer.weight))
        assert layer.bias is not None
        layer.bias.copy_(torch.from_numpy(linear.bias))


def _read(plan: Plan, bars: Bars) -> tuple[Examples, Examples | None]:
    listed = listing.read(plan.folder)
    if len(listed.classes) < 2:
        raise TrainingError(f"{plan.folder} holds one class, {listed.classes[0]}: to tell classes apart takes two")
    beside = listing.read(plan.val) if plan.val else None
    files = sum(map(len, listed.files.values())) + (sum(map(len, beside.files.values())) if beside else 0)
    with bars.bar("reading", files) as advance:
        found = examples.read(listed, listed.classes, advance)
        val = examples.read(beside, listed.classes, advance) if beside else None
    if val and (both := found.without({example.digest for example in val.found})):
        found.warnings.append(f"not learned from: {count(both, 'file')} with the bytes of one in {plan.val}")
    examples.check(found, held_out=val is None)
    return found, val


def _hold_out(plan: Plan, found: Examples, val: Examples | None) -> Sides:
    """What is learned from and what is held out, now that it is known what can be read. Raises TrainingError."""
    examples.check(found, held_out=val is None)
    if val is None:
        class_ids = np.array([example.class_id for example in found.found], np.int64)
        learned, held_out = holdout.split(class_ids, plan.holdout, plan.seed)
        return Sides([found.found[i] for i in learned], [found.found[i] for i in held_out])
    if not val.found:
        raise TrainingError(f"{plan.val} holds no image that can be read")
    there = {example.class_id for example in val.found}
    if unseen := [name for i, name in enumerate(found.classes) if i not in there]:
        val.warnings.append(f"not measured, for {plan.val} has no image of it: {listing.named(unseen)}")
    return Sides(found.found, val.found)


def _pinned(settings: Settings, parent: Model) -> Settings:
    """Settings that name what was resolved: ``auto`` may be two models."""
    if settings.model != "auto" or parent.openvino:  # a folder that is mounted
        return settings
    name = parent.architecture
    return settings.model_copy(update={"model": name if name == embedded.NAME else f"{name}:{parent.weights}"})


def _warnings(parent: Model, *read: Examples | None) -> list[str]:
    said = [parent.warning] if parent.warning else []
    for part in filter(None, read):
        said += part.warnings + [text for text in [examples.unreadable(part)] if text]
    return said
