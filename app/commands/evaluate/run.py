"""Every image is asked for, many at once, and what comes is kept."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.commands.evaluate.journal import Journal, Outcome, Stamp
from app.commands.evaluate.metrics import Floats, Ints, K, Outcomes
from app.commands.evaluate.read import Samples
from app.commands.evaluate.source import Answer, Ask, Source, Unreadable
from app.commands.tasks import all_of
from app.errors import EvaluationError

Watch = Callable[[int], None]
"""Told how many images are done, those of an earlier run included."""


@dataclass(slots=True)
class Answers:
    """What a source said of all samples: ``class_ids`` and ``scores`` [samples, k], best first.

    ``class_ids`` are -1 where there is no answer; ``unreadable`` says by position why. This run has ``asked`` for so
    many of them, which took so many ``seconds``.
    """

    class_ids: Ints
    scores: Floats
    unreadable: dict[int, Unreadable] = field(default_factory=dict)
    asked: int = 0
    seconds: float = 0.0

    @property
    def answered(self) -> npt.NDArray[np.bool_]:
        """[samples] whether there is an answer."""
        return np.asarray(self.class_ids[:, 0] >= 0)

    def outcomes(self, samples: Samples) -> Outcomes:
        """The answers beside their truth. Raises EvaluationError where there are none."""
        there = self.answered
        if not there.any():
            first = self.unreadable[0]
            raise EvaluationError(
                f"none of {len(there)} images could be evaluated; {samples.files[0]}: {first.detail} ({first.code})"
            )
        return Outcomes(samples.truth[there], self.class_ids[there], self.scores[there])


def run(source: Source, samples: Samples, watch: Watch, journal: Journal | None = None) -> Answers:
    """Ask for what the journal does not tell. Raises EvaluationError; interrupted, the journal has what there was."""
    n, k = len(samples.files), min(K, len(source.labels))
    answers = Answers(np.full((n, k), -1, np.int64), np.zeros((n, k), np.float32))
    todo = [i for i, file in enumerate(samples.files) if not _known(answers, i, file, journal)]
    watch(n - len(todo))
    begun = time.perf_counter()
    asyncio.run(_Run(source, samples, watch, journal, answers, n - len(todo)).all(todo))
    answers.asked, answers.seconds = len(todo), time.perf_counter() - begun
    return answers


def _known(answers: Answers, i: int, file: Path, journal: Journal | None) -> bool:
    try:
        outcome = journal.get(file, Stamp.of(file)) if journal else None
    except OSError:
        return False
    if outcome:
        _keep(answers, i, outcome)
    return outcome is not None


def _keep(answers: Answers, i: int, outcome: Outcome) -> None:
    if isinstance(outcome, Answer):
        answers.class_ids[i], answers.scores[i] = outcome
    else:
        answers.unreadable[i] = outcome


@dataclass(slots=True)
class _Run:
    source: Source
    samples: Samples
    watch: Watch
    journal: Journal | None
    answers: Answers
    done: int

    async def all(self, todo: list[int]) -> None:
        waiting = iter(todo)
        async with self.source.opened() as ask:
            await all_of(self._work(ask, waiting) for _ in range(min(self.source.at_once, len(todo))))

    async def _work(self, ask: Ask, waiting: Iterator[int]) -> None:
        for i in waiting:
            file = self.samples.files[i]
            try:
                stamp, content = await asyncio.to_thread(_read, file)
            except OSError as error:
                _keep(self.answers, i, Unreadable("unreadable_file", error.strerror or str(error)))
            else:
                outcome = await _outcome(ask, content)
                if self.journal is not None:
                    self.journal.add(file, stamp, outcome)
                _keep(self.answers, i, outcome)
            self.done += 1
            self.watch(self.done)


async def _outcome(ask: Ask, content: bytes) -> Outcome:
    if not content:
        return Unreadable("empty_body", "the file is empty")
    try:
        return await ask(content)
    except Unreadable as error:
        return error


def _read(file: Path) -> tuple[Stamp, bytes]:
    """The stamp first: a file that changes meanwhile is read again another time. Raises OSError."""
    stamp = Stamp.of(file)
    if not file.is_file():  # a pipe may never end
        raise OSError("it is no file")
    return stamp, file.read_bytes()
