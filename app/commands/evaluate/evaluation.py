"""A whole evaluation in order: find the images, load the models, classify, compare."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app import __version__, models
from app.commands import training_images
from app.commands.bench.plan import headers
from app.commands.bench.target import Target
from app.commands.evaluate import local, metrics
from app.commands.evaluate.intervals import Interval, wilson
from app.commands.evaluate.journal import Journal
from app.commands.evaluate.local import Local
from app.commands.evaluate.metrics import AccuracyMetrics, Floats
from app.commands.evaluate.progress import EvaluationProgress
from app.commands.evaluate.read import Samples, find, match
from app.commands.evaluate.remote import Remote
from app.commands.evaluate.run import Answers, Watch, run
from app.commands.evaluate.source import Source
from app.commands.filenames import exact, printable
from app.errors import EvaluationError
from app.imagenet.labels import Label
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What to evaluate. ``compare`` is the precision of the reference; ``explain`` mistakes get a map."""

    images: Path
    url: str | None = None
    api_key: str | None = None
    compare: str | None = None
    explain: int = 0


class Guess(NamedTuple):
    """A class that the model predicts, and its score."""

    class_id: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The evaluated model and the reference, on the ``n`` images that both could read.

    ``top1`` and ``top5`` are (evaluated, reference). ``agreement`` is the share of images with the same best class;
    ``differ`` are the positions of the others.
    """

    facts: dict[str, Any]
    answers: Answers
    n: int
    agreement: float
    interval: Interval
    top1: tuple[float, float]
    top5: tuple[float, float]
    differ: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of an evaluation. ``facts`` describe the model.

    ``maps`` are class activation maps of predicted classes, float32 [rows, columns], by the position of the image.
    """

    source: Path
    started: datetime
    facts: dict[str, Any]
    labels: tuple[Label, ...]
    samples: Samples
    answers: Answers
    metrics: AccuracyMetrics
    comparison: Comparison | None = None
    trained_on: int = 0  # images that the model has seen in training
    maps: Mapping[int, Floats] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """Warnings and remarks that a reader needs to understand the figures."""
        found = [f"warning: {self.facts['warning']}"] if self.facts["warning"] else []
        if self.trained_on:
            found.append(
                f"warning: the model was trained on {self.trained_on:,} of these {len(self.samples.files):,} images;"
                " expect a lower accuracy on other images"
            )
        return [*found, *self.samples.notes]

    def name(self, i: int) -> str:
        """The file of an image, relative to the source."""
        root = self.source if self.source.is_dir() else self.source.parent
        file = self.samples.files[i]
        return printable(file.relative_to(root) if file.is_relative_to(root) else file)

    def truth(self, i: int) -> str:
        """The label of an image's true class."""
        return self.labels[int(self.samples.truth[i])].label

    def guess(self, i: int, answers: Answers | None = None, place: int = 0) -> Guess:
        """A prediction for an image: the best class by default."""
        answers = answers or self.answers
        class_id = int(answers.class_ids[i, place])
        return Guess(class_id, self.labels[class_id].label, float(answers.scores[i, place]))

    def mistakes(self) -> list[int]:
        """The wrongly classified images, highest score first."""
        wrong = np.flatnonzero(self.answers.answered & (self.answers.class_ids[:, 0] != self.samples.truth))
        return sorted(wrong.tolist(), key=lambda i: -float(self.answers.scores[i, 0]))

    def as_dict(self) -> dict[str, Any]:
        """The object that ``--json`` prints: metrics, model, unreadable images and duration."""
        return {
            **self.metrics.as_dict(),
            **self.facts,
            "source": exact(self.source),
            "started": self.started.isoformat(timespec="seconds"),
            "asked": self.answers.classified,
            "seconds": round(self.answers.seconds, 3),
            "unreadable": [
                {"file": exact(self.samples.files[i]), "code": why.code, "detail": why.detail}
                for i, why in sorted(self.answers.unreadable.items())
            ],
            "notes": self.notes,
            "compare": self._comparison_dict() if self.comparison else None,
        }

    def _comparison_dict(self) -> dict[str, Any]:
        assert self.comparison
        found = self.comparison
        return {
            **found.facts,
            "n": found.n,
            "agreement": found.agreement,
            "agreement_interval": found.interval,
            "top1": {"evaluated": found.top1[0], "reference": found.top1[1]},
            "top5": {"evaluated": found.top5[0], "reference": found.top5[1]},
            "differ": [
                {
                    "file": exact(self.samples.files[i]),
                    "truth": self.truth(i),
                    "evaluated": self.guess(i)._asdict(),
                    "reference": self.guess(i, found.answers)._asdict(),
                }
                for i in found.differ
            ],
        }


@contextmanager
def evaluated(plan: EvaluationPlan, settings: Settings, progress: EvaluationProgress) -> Iterator[Evaluation]:
    """Evaluate. The journal is kept until the block ends. Raises EvaluationError and ModelError."""
    target = Target(plan.url) if plan.url else None
    if plan.compare or not target:
        models.check(settings)
    files = find(plan.images)
    with ExitStack() as stack:
        with progress.loading():
            source = _source(plan, target, settings, stack)
            samples = match(files, source.labels)
            reference = _reference(plan, settings, source, stack)
            trained_on = 0 if target else training_images.count(Path(models.check(settings)), samples.files)
        journals = [stack.enter_context(_journal(plan, one, settings)) for one in (source, reference) if one]
        with progress:
            progress.begin("evaluating", len(samples.files))
            found = replace(measured(source, samples, progress, journals[0]), trained_on=trained_on)
            if reference:
                progress.begin(f"reference, {plan.compare}", len(samples.files))
                theirs = run(reference, samples, progress, journals[1])
                found = replace(found, comparison=compare(found.answers, theirs, samples, reference.facts))
            found = replace(found, maps=_maps(found, source, plan.explain, progress))
        yield found


def measured(source: Source, samples: Samples, watch: Watch, journal: Journal | None = None) -> Evaluation:
    """Classify the samples that are not in the journal, and compute the metrics. Raises EvaluationError."""
    started = datetime.now(UTC)
    answers = run(source, samples, watch, journal)
    found = metrics.score(answers.outcomes(samples), source.labels)
    return Evaluation(samples.source, started, source.facts, source.labels, samples, answers, found)


def compare(ours: Answers, theirs: Answers, samples: Samples, facts: dict[str, Any]) -> Comparison:
    """Compare with the reference. Raises EvaluationError if no image could be read by both."""
    both = ours.answered & theirs.answered
    if not both.any():
        raise EvaluationError("the reference could not read any of these images")
    same = ours.class_ids[:, 0] == theirs.class_ids[:, 0]
    first = [float((one.class_ids[both, 0] == samples.truth[both]).mean()) for one in (ours, theirs)]
    five = [float((one.class_ids[both] == samples.truth[both, None]).any(axis=1).mean()) for one in (ours, theirs)]
    return Comparison(
        facts,
        theirs,
        n=int(both.sum()),
        agreement=float(same[both].mean()),
        interval=wilson(int(same[both].sum()), int(both.sum())),
        top1=(first[0], first[1]),
        top5=(five[0], five[1]),
        differ=tuple(np.flatnonzero(both & ~same).tolist()),
    )


def _maps(found: Evaluation, source: Source, most: int, progress: EvaluationProgress) -> dict[int, Floats]:
    """The maps of the first mistakes, of a model in this process."""
    mistakes = found.mistakes()[:most]
    if not mistakes or not isinstance(source, Local):
        return {}
    progress.begin("explaining", len(mistakes))
    files = [found.samples.files[i] for i in mistakes]
    maps = source.explain(files, [found.guess(i).class_id for i in mistakes], progress)
    return {mistakes[place]: activation for place, activation in maps.items()}


def _source(plan: EvaluationPlan, target: Target | None, settings: Settings, stack: ExitStack) -> Source:
    if target is None:
        return stack.enter_context(closing(local.load(settings)))
    remote = Remote(target, headers((), plan.api_key))
    asyncio.run(remote.connect())
    return remote


def _reference(plan: EvaluationPlan, settings: Settings, source: Source, stack: ExitStack) -> Source | None:
    if plan.compare is None:
        return None
    loaded = local.load_reference(settings, plan.compare, source.facts["digest"])
    reference = stack.enter_context(closing(loaded))
    if reference.labels != source.labels:
        raise EvaluationError("the labels of the reference differ from those of the evaluated model")
    if reference.facts == source.facts:
        raise EvaluationError("the evaluated model is the reference itself: there is nothing to compare")
    return reference


def _journal(plan: EvaluationPlan, source: Source, settings: Settings) -> Journal:
    subject = {"topk": __version__, "source": str(plan.images.resolve()), **source.facts}
    return Journal(settings.cache_dir.expanduser() / "evaluate", subject)
