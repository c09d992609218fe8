"""The whole of it in order: read, compute features, hold out, fit, write, measure, move into place."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from app import models
from app.errors import ModelError, TrainingError
from app.evaluate.metrics import Metrics
from app.models import embedded, folder
from app.models.architecture import ULTRALYTICS
from app.models.model import Model
from app.models.split import set_classes
from app.settings import Settings
from app.train import examples, features, finetune, head, holdout, listing, result
from app.train.examples import Example, Examples
from app.train.plan import Plan
from app.train.progress import Bars


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of it. ``metrics`` are those of the held-out images, ``learned`` the number of the others."""

    classes: tuple[str, ...]
    learned: int
    metrics: Metrics
    head: head.Head
    tuning: finetune.Tuning | None
    warnings: list[str] = field(default_factory=list)

    def words(self) -> Iterator[str]:
        """What was done, a line each."""
        yield f"learned from {self.learned:,} images of {len(self.classes)} classes; {self.metrics.n:,} were held out"
        yield f"linear head: C = {self.head.c:.1g} by cross-validation (log loss {min(self.head.losses):.3f})"
        if self.tuning:
            last, best = len(self.tuning.scores) - 1, self.tuning.best
            kept = f"epoch {best}" if best else "the linear head, which was best"
            yield f"fine-tuned for {last} epochs; kept: {kept}"
            yield "the held-out images chose the epoch: what is measured on them is a little too good"


@dataclass(frozen=True, slots=True)
class _Sides:
    learned: list[Example]
    held_out: list[Example]


def run(plan: Plan, settings: Settings, bars: Bars) -> Trained:
    """Train. Raises TrainingError and ModelError; where it raises or is interrupted, nothing is written."""
    plan.check()
    head.require()
    found, val = _read(plan, bars)
    with bars.busy("resolving the model"):
        parent = models.resolve(settings)
        network, layer = _with_classes(parent, len(found.classes))
    rows = features.features([found, *filter(None, [val])], parent, _pinned(settings, parent), bars)
    sides = _sides(plan, found, val)
    x = np.stack([rows[example.digest] for example in sides.learned])
    y = np.array([example.class_id for example in sides.learned], np.int64)
    with bars.busy("the linear head") as status:
        linear = head.fit(x, y, plan.seed, status.update)
    put(linear, layer)
    tuning = None
    if plan.fine_tune:
        recipe = finetune.Recipe(plan.epochs, plan.batch_size, plan.seed)
        tuning = finetune.fine_tune(
            network, parent.preprocessing, sides.learned, sides.held_out, recipe, settings, bars
        )
    with result.beside(plan.out) as place:
        with bars.busy("writing the folder"):
            result.write(network, parent, found.classes, place)
        metrics = result.as_served(place, sides.held_out, settings, bars)
        folder.add_metrics(place, _kept(metrics))
    return Trained(found.classes, len(sides.learned), metrics, linear, tuning, _warnings(parent, found, val))


def _with_classes(parent: Model, classes: int) -> tuple[nn.Module, nn.Linear | nn.Conv2d]:
    """The network with a last layer of so many outputs, and that layer. Raises ModelError."""
    if parent.architecture.startswith(ULTRALYTICS):
        raise ModelError(f"{parent.name} is trained by Ultralytics' own package; choose another model to start from")
    network = parent.build()
    return network, set_classes(network, classes)


def put(linear: head.Head, layer: nn.Linear | nn.Conv2d) -> None:
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
        found.warnings.append(f"{both} files have the bytes of one in {plan.val}: not learned from")
    examples.check(found, held_out=val is None)
    return found, val


def _sides(plan: Plan, found: Examples, val: Examples | None) -> _Sides:
    """What is learned from and what is held out, now that it is known what can be read. Raises TrainingError."""
    examples.check(found, held_out=val is None)
    if val is None:
        class_ids = np.array([example.class_id for example in found.found], np.int64)
        learned, held_out = holdout.split(class_ids, plan.holdout, plan.seed)
        return _Sides([found.found[i] for i in learned], [found.found[i] for i in held_out])
    if not val.found:
        raise TrainingError(f"{plan.val} holds no image that can be read")
    return _Sides(found.found, val.found)


def _pinned(settings: Settings, parent: Model) -> Settings:
    """Settings that name what was resolved: ``auto`` may be two models."""
    if settings.model != "auto" or parent.openvino:  # a folder that is mounted
        return settings
    name = parent.architecture
    return settings.model_copy(update={"model": name if name == embedded.NAME else f"{name}:{parent.weights}"})


def _kept(metrics: Metrics) -> dict[str, Any]:
    """What stands in ``model.json``."""
    names = ("n", "classes", "k", "top1", "top1_interval", "top5", "top5_interval", "confidence", "ece")
    return {name: getattr(metrics, name) for name in names}


def _warnings(parent: Model, *read: Examples | None) -> list[str]:
    said = [parent.warning] if parent.warning else []
    for part in filter(None, read):
        said += part.warnings + [text for text in [examples.unreadable(part)] if text]
    return said
