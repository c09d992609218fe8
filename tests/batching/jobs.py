"""Jobs whose images are numbers, and devices that double them."""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from app.batching import CostCurve, Job
from app.batching.attempts import Run
from app.classifier import Waiter
from app.engine import Row, Want

BUCKETS = (1, 2, 4)


class Numbered(Job):
    """A job, its number, and the future that its caller waits for."""

    number: Any
    future: "asyncio.Future[Job]"


def job(
    number: Any = 0, deadline: float = math.inf, loop: asyncio.AbstractEventLoop | None = None, **fields: Any
) -> Numbered:
    waiter = Waiter(loop or asyncio.get_running_loop())
    made = Numbered(b"", Want(), deadline, waiter, **fields)
    made.number, made.future = number, waiter.future
    return made


def answer(job: Job) -> Any:
    """The number that a job was answered with, or its error."""
    return job.error if job.row is None else int(job.row.class_ids[0])


def numbers(run: Callable[[Sequence[Any]], Sequence[Any]]) -> Run:
    """A device that runs numbers, as one that runs jobs."""

    def runs(jobs: Sequence[Job]) -> list[Row | Exception]:
        return [
            one if isinstance(one, Exception) else Row(np.array([one]), np.ones(1, np.float32))
            for one in run([each.number if isinstance(each, Numbered) else each for each in jobs])
        ]

    return runs


def measured(seconds: dict[int, float]) -> CostCurve:
    """A curve with exactly these costs."""
    costs = CostCurve(seconds)
    costs.restore(seconds)
    return costs
