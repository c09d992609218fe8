"""Runs a batch: in halves if the device is out of memory, job by job if the batch fails."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from app.batching.job import Job
from app.engine.base import Row
from app.errors import DeviceLost, Internal, Overloaded

log = structlog.get_logger(__name__)

Run = Callable[[Sequence[Job]], Sequence[Row | Exception]]
"""Runs prepared jobs as one batch; returns a row or an error for each, in order."""

_DEFECT = "the image could not be classified"


class Attempt(NamedTuple):
    """The rows or errors of a batch, in order.

    ``measured``: the time it took is the cost of such a batch. ``too_large``: the smallest number of jobs that the
    device had no memory for, if any.
    """

    rows: list[Row | Exception]
    measured: bool = True
    too_large: int | None = None


def attempt(run: Run, batch: list[Job]) -> Attempt:
    """Run a batch until each job has a row or an error.

    A batch that the device has no memory for is run in halves. It takes so long that its size seldom pays any more.
    Raises DeviceLost, after which nothing can run.
    """
    try:
        return Attempt(checked(run, batch))
    except MemoryError:
        log.warning("out of memory; the batch is halved", size=len(batch))
    except DeviceLost:
        raise
    except BaseException:  # a stream that ends would leave its callers waiting
        log.exception("batch failed", size=len(batch))
        return Attempt(_one_by_one(run, batch), measured=False)
    # Not within the handler, where the error's traceback holds on to the memory.
    if len(batch) == 1:
        return Attempt([Overloaded("the device is out of memory", retry_after_s=1)], measured=False, too_large=1)
    middle = len(batch) // 2
    halves = attempt(run, batch[:middle]), attempt(run, batch[middle:])
    too_large = min((half.too_large for half in halves if half.too_large), default=len(batch))
    return Attempt([row for half in halves for row in half.rows], too_large=too_large)


def checked(run: Run, batch: Sequence[Job]) -> list[Row | Exception]:
    """Run a batch. Raises RuntimeError unless there is one result for each job."""
    rows = list(run(batch))
    if len(rows) != len(batch):
        raise RuntimeError(f"{len(rows)} results for {len(batch)} jobs")
    return rows


def _one_by_one(run: Run, batch: list[Job]) -> list[Row | Exception]:
    """Retry the jobs of a failed batch one by one, so that only the bad one fails. A batch of one is not retried."""
    if len(batch) == 1:
        return [Internal(_DEFECT)]
    return [Internal(_DEFECT) if job.gone else _alone(run, job) for job in batch]


def _alone(run: Run, job: Job) -> Row | Exception:
    try:
        return checked(run, [job])[0]
    except DeviceLost:
        raise
    except BaseException:
        log.exception("image failed")
        return Internal(_DEFECT)
