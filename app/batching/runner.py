"""Runs batches of prepared jobs on an engine. On the threads of the streams."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.batching.job import Job
from app.engine.base import Engine, Jpeg, Pixels, Row, Want
from app.errors import Internal, UndecodableImage


@dataclass(frozen=True, slots=True)
class Runner:
    """``crop``: the side in pixels of the images that the engine takes."""

    engine: Engine
    crop: int

    def run(self, jobs: Sequence[Job]) -> list[Row | Exception]:
        """Run jobs as one batch.

        A row that is not finite becomes Internal. A file that the device cannot decode becomes UndecodableImage.
        """
        return self._run(jobs, alone=False)

    def run_alone(self, jobs: Sequence[Job]) -> list[Row | Exception]:
        """Run a job that has the device to itself."""
        return self._run(jobs, alone=True)

    def warm_batch(self, size: int) -> list[Job]:
        """Jobs with grey crops of the served size."""
        grey = np.full((self.crop, self.crop, 3), 128, np.uint8)
        return [Job(grey, Want(k=5), deadline=float("inf")) for _ in range(size)]

    def _run(self, jobs: Sequence[Job], alone: bool) -> list[Row | Exception]:
        started = time.monotonic()
        rows = self.engine.forward([_pixels(job) for job in jobs], [job.want for job in jobs], alone)
        ended = time.monotonic()
        for job in jobs:
            job.inference_s, job.computed_at = ended - started, ended
        results: list[Row | Exception] = [
            rows.row(place, job.want.k) if finite else Internal("the model computes no finite scores")
            for place, (job, finite) in enumerate(zip(jobs, rows.finite.tolist(), strict=True))
        ]
        for place in rows.undecodable:
            results[place] = UndecodableImage("the device cannot decode the JPEG")
        return results


def _pixels(job: Job) -> Jpeg | Pixels:
    if isinstance(job.image, bytes):
        raise TypeError("the image of a job must be decoded before it runs")
    return job.image
