"""A whole evaluation in order: find the images, load what is to answer, ask, compare."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app import __version__
from app.commands.bench import plan
from app.commands.bench.target import Target
from app.commands.evaluate import local, metrics, read
from app.commands.evaluate.intervals import Interval, wilson
from app.commands.evaluate.journal import Journal
from app.commands.evaluate.metrics import Metrics
from app.commands.evaluate.progress import Live
from app.commands.evaluate.read import Samples
from app.commands.evaluate.remote import Remote
from app.commands.evaluate.run import Answers, Watch, run
from app.commands.evaluate.source import Source
from app.commands.filenames import shown
from app.errors import EvaluationError
from app.imagenet.labels import Label
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line: ``compare`` is the precision of the reference."""

    images: Path
    url: str | None = None
    api_key: str | None = None
    compare: str | None = None


class Guess(NamedTuple):
    """An answer of the model: a class and its score."""

    class_id: int
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The reference beside what was evaluated, on the ``n`` images that both could read.

    ``top1`` and ``top5`` are (evaluated, reference); ``agreement`` is the share with the same first answer; ``differ``
    are the positions of the others.
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
    """What was found; ``facts`` is what answered."""

    source: Path
    started: datetime
    facts: dict[str, Any]
    labels: tuple[Label, ...]
    samples: Samples
    answers: Answers
    metrics: Metrics
    comparison: Comparison | None = None

    @property
    def notes(self) -> list[str]:
        """What a reader has to know beside the figures."""
        warning = self.facts["warning"]
        return [*([f"warning: {warning}"] if warning else []), *self.samples.notes]

    def name(self, i: int) -> str:
        """An image's file as it is found from the source."""
        root = self.source if self.source.is_dir() else self.source.parent
        file = self.samples.files[i]
        return shown(file.relative_to(root) if file.is_relative_to(root) else file)

    def truth(self, i: int) -> str:
        """The label of an image's true class."""
        return self.labels[int(self.samples.truth[i])].label

    def guess(self, i: int, answers: Answers | None = None, place: int = 0) -> Guess:
        """An answer to an image, the first one by default."""
        answers = answers or self.answers
        class_id = int(answers.class_ids[i, place])
        return Guess(class_id, self.labels[class_id].label, float(answers.scores[i, place]))

    def mistakes(self) -> list[int]:
        """The images that are answered wrongly, the surest first."""
        wrong = np.flatnonzero(self.answers.answered & (self.answers.class_ids[:, 0] != self.samples.truth))
        return sorted(wrong.tolist(), key=lambda i: -float(self.answers.scores[i, 0]))

    def as_dict(self) -> dict[str, Any]:
        """The object that ``--json`` prints: the metrics, what answered, what did not count, how long it took."""
        return {
            **self.metrics.as_dict(),
            **self.facts,
            "source": str(self.source),
            "started": self.started.isoformat(timespec="seconds"),
            "asked": self.answers.asked,
            "seconds": round(self.answers.seconds, 3),
            "unreadable": [
                {"file": shown(self.samples.files[i]), "code": why.code, "detail": why.detail}
                for i, why in sorted(self.answers.unreadable.items())
            ],
            "notes": self.notes,
            "compare": self._compared() if self.comparison else None,
        }

    def _compared(self) -> dict[str, Any]:
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
                    "file": shown(self.samples.files[i]),
                    "truth": self.truth(i),
                    "evaluated": self.guess(i)._asdict(),
                    "reference": self.guess(i, found.answers)._asdict(),
                }
                for i in found.differ
            ],
        }


@contextmanager
def evaluated(asked: Asked, settings: Settings, live: Live) -> Iterator[Evaluation]:
    """The evaluation; what was answered is on disk until the block ends. Raises EvaluationError and ModelError."""
    listing = read.listing(asked.images)
    with ExitStack() as stack:
        with live.loading():
            source = _source(asked, settings, stack)
            samples = read.understand(listing, source.labels)
            reference = _reference(asked, settings, source, stack)
        journals = [stack.enter_context(_journal(asked, one, settings)) for one in (source, reference) if one]
        with live:
            live.begin("evaluating", len(samples.files))
            found = measured(source, samples, live, journals[0])
            if reference:
                live.begin(f"reference, {asked.compare}", len(samples.files))
                theirs = run(reference, samples, live, journals[1])
                found = replace(found, comparison=compare(found.answers, theirs, samples, reference.facts))
        yield found


def measured(source: Source, samples: Samples, watch: Watch, journal: Journal | None = None) -> Evaluation:
    """Ask for all samples that the journal does not tell, and compare. Raises EvaluationError."""
    started = datetime.now(UTC)
    answers = run(source, samples, watch, journal)
    found = metrics.score(answers.outcomes(samples), source.labels)
    return Evaluation(samples.source, started, source.facts, source.labels, samples, answers, found)


def compare(ours: Answers, theirs: Answers, samples: Samples, facts: dict[str, Any]) -> Comparison:
    """Raises EvaluationError where there is no image that both could read."""
    both = ours.answered & theirs.answered
    if not both.any():
        raise EvaluationError("the reference could read none of these images")
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


def _source(asked: Asked, settings: Settings, stack: ExitStack) -> Source:
    if asked.url is None:
        return stack.enter_context(closing(local.load(settings)))
    remote = Remote(Target(asked.url), plan.headers((), asked.api_key))
    asyncio.run(remote.meet())
    return remote


def _reference(asked: Asked, settings: Settings, source: Source, stack: ExitStack) -> Source | None:
    if asked.compare is None:
        return None
    loaded = local.load_reference(settings, asked.compare, source.facts["digest"])
    reference = stack.enter_context(closing(loaded))
    if reference.labels != source.labels:
        raise EvaluationError("the reference has other labels than what it is to be compared with")
    if reference.facts == source.facts:
        raise EvaluationError("what is evaluated is the reference itself: there is nothing to compare")
    return reference


def _journal(asked: Asked, source: Source, settings: Settings) -> Journal:
    subject = {"topk": __version__, "source": str(asked.images.resolve()), **source.facts}
    return Journal(settings.cache_dir.expanduser() / "evaluate", subject)
