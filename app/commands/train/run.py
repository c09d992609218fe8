"""The whole of it in order: learn, write, measure as it is served, move into place."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from app.commands.evaluate.evaluation import Evaluation
from app.commands.evaluate.metrics import Metrics
from app.commands.evaluate.read import Samples
from app.commands.evaluate.table import count
from app.commands.train import result
from app.commands.train.learn import Learned, learn
from app.commands.train.plan import Plan
from app.commands.train.progress import Bars
from app.models import folder
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Trained:
    """What was learned, and the ``evaluation`` of the images that were held out."""

    plan: Plan
    learned: Learned
    evaluation: Evaluation

    def words(self) -> Iterator[str]:
        """What was done, a line each."""
        learned, tuning = self.learned, self.learned.tuning
        images = len(learned.sides.learned)
        yield (
            f"learned from {images:,} images of {len(learned.classes)} classes;"
            f" {self.evaluation.metrics.n:,} were held out"
        )
        yield f"linear head: C = {learned.head.c:g} by cross-validation (log loss {learned.head.loss:.3f})"
        if tuning:
            kept = f"epoch {tuning.best}" if tuning.best else "the linear head, which was best"
            yield f"fine-tuned for {count(len(tuning.scores) - 1, 'epoch')}; kept: {kept}"
            yield "the held-out images chose the epoch: what is measured on them is a little too good"

    def as_dict(self) -> dict[str, Any]:
        """The object that ``--json`` prints: the evaluation of what was held out, and ``training``."""
        learned, tuning = self.learned, self.learned.tuning
        training = {
            "out": str(self.plan.out),
            "parent": f"sha256:{learned.parent.digest}",
            "seed": self.plan.seed,
            "learned": len(learned.sides.learned),
            "head": {"c": learned.head.c, "log_loss": {f"{c:g}": loss for c, loss in learned.head.losses.items()}},
            "fine_tuning": tuning and asdict(tuning),
        }
        return self.evaluation.as_dict() | {"training": training}


def run(plan: Plan, settings: Settings, bars: Bars) -> Trained:
    """Train. Raises TrainingError, ModelError and EvaluationError.

    Where it raises or is interrupted, nothing is written.
    """
    plan.check()
    learned = learn(plan, settings, bars)
    with result.beside(plan.out) as place:
        with bars.busy("writing the folder"):
            result.write(learned.network, learned.parent, learned.classes, place)
        evaluation = result.as_served(place, _held_out(plan, learned), settings, bars)
        folder.add_metrics(place, _kept(evaluation.metrics))
    return Trained(plan, learned, evaluation)


def _held_out(plan: Plan, learned: Learned) -> Samples:
    examples = learned.sides.held_out
    truth = np.array([example.class_id for example in examples], np.int64)
    notes = tuple(f"warning: {text}" for text in learned.warnings)
    return Samples(plan.val or plan.folder, tuple(example.path for example in examples), truth, notes)


def _kept(metrics: Metrics) -> dict[str, Any]:
    """What stands in ``model.json``."""
    names = ("n", "classes", "k", "top1", "top1_interval", "top5", "top5_interval", "confidence", "ece")
    return {name: getattr(metrics, name) for name in names}
