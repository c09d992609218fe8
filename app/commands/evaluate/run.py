"""Classifies every image, many at a time, and collects the outcomes."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.commands.evaluate.journal import ImageOutcome, Journal, Stamp
from app.commands.evaluate.metrics import Floats, Ints, K, Outcomes
from app.commands.evaluate.read import Samples
from app.commands.evaluate.source import Classify, Source, TopClasses, Unreadable
from app.commands.filenames import printable
from app.commands.files import for_each, read_file, reason
from app.errors import EmptyBody, EvaluationError

Watch = Callable[[int], None]
"""Called with the number of finished images, including those of an earlier run."""


@dataclass(slots=True)
class Answers:
    """The predictions for all samples: ``class_ids`` and ``scores`` [samples, k], highest score first.

    ``class_ids`` are -1 without a prediction; ``unreadable`` has the reasons by position. ``classified`` counts the
    images of this run, which took ``seconds``.
    """

    class_ids: Ints
    scores: Floats
    unreadable: dict[int, Unreadable] = field(default_factory=dict)
    classified: int = 0
    seconds: float = 0.0

    @property
    def answered(self) -> npt.NDArray[np.bool_]:
        """[samples] whether there is a prediction."""
        return np.asarray(self.class_ids[:, 0] >= 0)

    def outcomes(self, samples: Samples) -> Outcomes:
        """The predictions and their truth. Raises EvaluationError if there are none."""
        there = self.answered
        if not there.any():
            file, first = printable(samples.files[0]), self.unreadable[0]
            raise EvaluationError(
                f"none of {len(there)} images could be evaluated; {file}: {first.detail} ({first.code})"
            )
        return Outcomes(samples.truth[there], self.class_ids[there], self.scores[there])

    def keep(self, position: int, outcome: ImageOutcome) -> None:
        """Add the outcome of one sample."""
        if isinstance(outcome, TopClasses):
            self.class_ids[position], self.scores[position] = outcome
        else:
            self.unreadable[position] = outcome


def run(source: Source, samples: Samples, watch: Watch, journal: Journal | None = None) -> Answers:
    """Classify the samples that are not in the journal. Raises EvaluationError.

    If interrupted, the journal has the outcomes so far.
    """
    n, k = len(samples.files), min(K, len(source.labels))
    answers = Answers(np.full((n, k), -1, np.int64), np.zeros((n, k), np.float32))
    todo = [i for i, file in enumerate(samples.files) if not _known(answers, i, file, journal)]
    watch(n - len(todo))
    begun = time.perf_counter()
    asyncio.run(_Run(source, samples, watch, journal, answers, n - len(todo)).all(todo))
    answers.classified, answers.seconds = len(todo), time.perf_counter() - begun
    return answers


def _known(answers: Answers, i: int, file: Path, journal: Journal | None) -> bool:
    try:
        outcome = journal.get(file, Stamp.of(file)) if journal else None
    except OSError:
        return False
    if outcome:
        answers.keep(i, outcome)
    return outcome is not None


@dataclass(slots=True)
class _Run:
    source: Source
    samples: Samples
    watch: Watch
    journal: Journal | None
    answers: Answers
    done: int

    async def all(self, todo: list[int]) -> None:
        async with self.source.opened() as classify:
            await for_each(len(todo), self.source.at_once, lambda i: self._one(classify, todo[i]))

    async def _one(self, classify: Classify, i: int) -> None:
        file = self.samples.files[i]
        try:
            stamp = Stamp.of(file)  # first: a file that changes meanwhile is read again by the next run
            outcome = await _outcome(classify, file)
        except OSError as error:
            self.answers.keep(i, Unreadable("unreadable_file", reason(error)))
        else:
            if self.journal is not None:
                self.journal.add(file, stamp, outcome)
            self.answers.keep(i, outcome)
        self.done += 1
        self.watch(self.done)


async def _outcome(classify: Classify, file: Path) -> ImageOutcome:
    """Raises OSError if the file cannot be read."""
    try:
        return await classify(await read_file(file))
    except EmptyBody as error:
        return Unreadable(error.code, error.detail)
    except Unreadable as error:
        return error
