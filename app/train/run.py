"""The whole of it in order: learn, write, measure as it is served, move into place."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from app.evaluate.metrics import Metrics
from app.evaluate.table import count
from app.models import folder
from app.settings import Settings
from app.train import result
from app.train.learn import Learned, learn
from app.train.plan import Plan
from app.train.progress import Bars


@dataclass(frozen=True, slots=True)
class Trained:
    """What was learned, and the ``metrics`` of the images that were held out."""

    learned: Learned
    metrics: Metrics

    def words(self) -> Iterator[str]:
        """What was done, a line each."""
        learned, tuning = self.learned, self.learned.tuning
        images = len(learned.sides.learned)
        yield f"learned from {images:,} images of {len(learned.classes)} classes; {self.metrics.n:,} were held out"
        yield f"linear head: C = {learned.head.c:g} by cross-validation (log loss {min(learned.head.losses):.3f})"
        if tuning:
            kept = f"epoch {tuning.best}" if tuning.best else "the linear head, which was best"
            yield f"fine-tuned for {count(len(tuning.scores) - 1, 'epoch')}; kept: {kept}"
            yield "the held-out images chose the epoch: what is measured on them is a little too good"


def run(plan: Plan, settings: Settings, bars: Bars) -> Trained:
    """Train. Raises TrainingError and ModelError; where it raises or is interrupted, nothing is written."""
    plan.check()
    learned = learn(plan, settings, bars)
    with result.beside(plan.out) as place:
        with bars.busy("writing the folder"):
            result.write(learned.network, learned.parent, learned.classes, place)
        metrics = result.as_served(place, learned.sides.held_out, settings, bars)
        folder.add_metrics(place, _kept(metrics))
    return Trained(learned, metrics)


def _kept(metrics: Metrics) -> dict[str, Any]:
    """What stands in ``model.json``."""
    names = ("n", "classes", "k", "top1", "top1_interval", "top5", "top5_interval", "confidence", "ece")
    return {name: getattr(metrics, name) for name in names}
