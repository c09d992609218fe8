"""A whole training run in order: train, write, evaluate as served, move into place."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from app import models
from app.commands.evaluate.evaluation import Evaluation
from app.commands.evaluate.metrics import AccuracyMetrics
from app.commands.evaluate.read import Samples
from app.commands.evaluate.table import count
from app.commands.filenames import exact
from app.commands.train import result
from app.commands.train.learn import Learned, learn
from app.commands.train.plan import TrainingPlan
from app.commands.train.progress import TrainingProgress
from app.models import folder
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model, and its ``evaluation`` on the held-out images."""

    plan: TrainingPlan
    learned: Learned
    evaluation: Evaluation

    def summary(self) -> Iterator[str]:
        """The steps of the training, one line each."""
        learned, tuning = self.learned, self.learned.tuning
        images = len(learned.sides.learned)
        yield (
            f"trained on {images:,} images of {len(learned.classes)} classes;"
            f" {self.evaluation.metrics.n:,} were held out"
        )
        yield f"linear head: C = {learned.head.c:g} by cross-validation (log loss {learned.head.loss:.3f})"
        if tuning:
            kept = f"epoch {tuning.best}" if tuning.best else "the linear head, because no epoch was better"
            yield f"fine-tuned for {count(len(tuning.scores) - 1, 'epoch')}; kept: {kept}"
            yield "the held-out images chose the epoch, so the accuracy measured on them is slightly optimistic"

    def as_dict(self) -> dict[str, Any]:
        """The object that ``--json`` prints: the evaluation of the held-out images, and ``training``."""
        learned, tuning = self.learned, self.learned.tuning
        training = {
            "out": exact(self.plan.out),
            "parent": f"sha256:{learned.parent.digest}",
            "seed": self.plan.seed,
            "learned": len(learned.sides.learned),
            "head": {"c": learned.head.c, "log_loss": {f"{c:g}": loss for c, loss in learned.head.losses.items()}},
            "fine_tuning": tuning and asdict(tuning),
        }
        return self.evaluation.as_dict() | {"training": training}


def run(plan: TrainingPlan, settings: Settings, progress: TrainingProgress) -> Trained:
    """Train. Raises TrainingError, ModelError and EvaluationError.

    If it raises or is interrupted, nothing is written.
    """
    plan.check()
    models.check(settings)  # before all images are read
    learned = learn(plan, settings, progress)
    with result.temporary(plan.out) as place:
        with progress.busy("writing the folder"):
            digests = [example.digest for example in learned.sides.learned]
            result.write(learned.network, learned.parent, learned.classes, digests, place)
        evaluation = result.as_served(place, _held_out(plan, learned), settings, progress)
        folder.add_metrics(place, _kept(evaluation.metrics))
    return Trained(plan, learned, evaluation)


def _held_out(plan: TrainingPlan, learned: Learned) -> Samples:
    examples = learned.sides.held_out
    truth = np.array([example.class_id for example in examples], np.int64)
    notes = tuple(f"warning: {text}" for text in learned.warnings)
    return Samples(plan.val or plan.folder, tuple(example.path for example in examples), truth, notes)


def _kept(metrics: AccuracyMetrics) -> dict[str, Any]:
    """The metrics to write to ``model.json``."""
    names = ("n", "classes", "k", "top1", "top1_interval", "top5", "top5_interval", "confidence", "ece")
    return {name: getattr(metrics, name) for name in names}
