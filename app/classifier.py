"""Bytes to a prediction: the one path that HTTP, the commands and Ray Serve share. On the event loop.

The classifier puts a job into the queue, waits for its outcome, and maps class ids to labels. ``loading`` builds the
parts that it needs.
"""

import asyncio
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from app.batching import Image, Job, Queue, Wait, fail
from app.decoding import DecodeThreads
from app.engine.base import Facts, Jpeg, Row, Want
from app.errors import (
    BadImage,
    DeadlineExceeded,
    DeviceLost,
    NotReady,
    Overloaded,
    TopkError,
    Unavailable,
    UndecodableImage,
)
from app.imagenet.taxonomy import Taxonomy
from app.images.decoder import Decoder
from app.images.sandbox import Sandbox
from app.models.model import Model
from app.readiness import LOADING, Readiness
from app.settings import Settings
from app.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that an image spent in each stage, and the size of its batch.

    ``queue`` is the sum of all ``waits``. The ``*_at`` fields are the ends of the stages, in seconds of
    ``time.monotonic``.
    """

    decode: float
    queue: float
    inference: float
    batch_size: int
    decoded_at: float
    taken_at: float
    computed_at: float
    waits: tuple[Wait, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """The outputs for one image, and how long it took."""

    row: Row
    timing: Timing


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of an image's top-k. ``score`` is its softmax probability."""

    class_id: int
    wnid: str | None
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class Served:
    """A model in memory, with its engine, decoder and queue.

    ``taxonomy`` is None if the model's classes are not in WordNet. ``ahead`` is None if the streams decode.
    """

    model: Model
    engine: Facts
    decoder: Decoder
    queue: Queue
    taxonomy: Taxonomy | None
    ahead: DecodeThreads | None

    def labels(self) -> dict[str, str]:
        """The labels of the metric ``topk_model_info``."""
        return {
            "model": self.model.name,
            "weights": self.model.weights,
            "engine": self.engine.name,
            "device": self.engine.device,
            "precision": self.engine.precision,
            "digest": self.model.digest,
        }

    def close(self) -> None:
        """Finish the waiting jobs, and end the threads. Blocks."""
        self.decoder.close()
        if self.ahead:
            self.ahead.close()
        self.queue.close()


@dataclass(slots=True)
class Waiter:
    """The completion of a job that a coroutine awaits: ``future`` resolves to the job."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    future: "asyncio.Future[Job]" = field(init=False)

    def __post_init__(self) -> None:
        self.future = self.loop.create_future()

    @property
    def done(self) -> bool:
        return self.future.done()

    def claim(self) -> bool:
        return not self.future.done()

    def resolve(self, job: Job) -> None:
        if not self.future.done():
            self.future.set_result(job)


class Classifier:
    """Classifies images with the served model, if any. For one event loop; other threads only where stated.

    ``readiness`` is shared with the process that the classifier serves in.
    """

    def __init__(self, settings: Settings, metrics: Metrics | None = None, readiness: Readiness | None = None) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.readiness = readiness or Readiness()
        self.sandbox = Sandbox()
        self._served: Served | None = None
        self._closing = threading.Lock()
        self._settled = threading.Condition()  # notified when an image has its outcome
        self._in_flight: set[Job] = set()
        self._last_deadline = 0.0

    @property
    def ready(self) -> bool:
        """Whether images are accepted: False while no model is served, and once the classifier closes."""
        return self.readiness.serving

    @property
    def served(self) -> Served:
        """The model and its parts. Raises NotReady before there is one."""
        if self._served is None:
            raise NotReady(LOADING)
        return self._served

    @property
    def model(self) -> Model:
        """The served model. Raises NotReady before there is one."""
        return self.served.model

    @property
    def engine(self) -> Facts:
        """The engine of the served model. Raises NotReady before there is one."""
        return self.served.engine

    @property
    def taxonomy(self) -> Taxonomy | None:
        """The served model's classes in WordNet. Raises NotReady before there is a model."""
        return self.served.taxonomy

    def serve(self, served: Served) -> None:
        """Serve this model from now on. From any thread."""
        self.metrics.model.info(served.labels())
        with self._settled:
            self._served = served
            self.readiness.serve()

    def withdraw(self, served: Served) -> None:
        """Stop serving this model, unless another one has replaced it. Not ready until ``serve``. From any thread."""
        with self._settled:
            if self._served is served:
                self.readiness.suspend()

    def close(self) -> None:
        """Finish what was accepted, then stop the threads and the sandbox. Waits for nothing if no model is served.

        Blocks, so it must not be called on the event loop whose images it waits for.
        """
        with self._closing:
            if self.ready:
                with self._settled:
                    self.readiness.suspend()
                    # Expensive pictures enter the queue twice, so it stays open until the last one has its outcome. The
                    # deadlines end the wait if an event loop has died with its images.
                    patience = min(self._last_deadline - time.monotonic(), threading.TIMEOUT_MAX)
                    self._settled.wait_for(lambda: not self._in_flight, patience)
                self.served.close()
            self.sandbox.close()

    def admit(self, count: int, deadline: float, stated: bool = False) -> None:
        """Raise Overloaded if so many images would miss the ``deadline``, in seconds of ``time.monotonic``.

        Raises NotReady before there is a model. Images that are refused here are not decoded.
        """
        if not self.ready:
            raise NotReady(self.readiness.reason)
        if not count:
            return
        served = self.served
        try:
            served.queue.admit((served.ahead.waiting if served.ahead else 0) + count, deadline, stated)
        except Overloaded:
            self.metrics.images.labels("shed").inc(count)
            raise

    def running_s(self) -> float:
        """Seconds that the device has taken so far for the longest running batch."""
        return self._served.queue.running_s() if self._served else 0.0

    def abandon(self, error: DeviceLost) -> None:
        """Fail for good: settle all images with ``error``, wherever they are, and accept no more. From any thread.

        Waits neither for the device nor for decoding. A server then exits, because only a new process helps.
        """
        self.readiness.fail(error)
        self.served.queue.abandon(error)
        with self._settled:
            fail(self._in_flight, error)

    def predicted_wait(self) -> float:
        """Seconds that a new image would wait for the device; 0 before there is a model."""
        return self.served.queue.predicted_wait() if self.ready else 0.0

    async def classify(
        self, image: Image, want: Want, deadline: float, stated: bool = False, caller: str = ""
    ) -> Result:
        """Classify one admitted image by ``deadline`` (seconds of ``time.monotonic``).

        ``stated``: the client stated the deadline itself. ``caller``: its key or address.

        If the call is cancelled, the image is abandoned: it does not reach the device unless it is there already.
        Raises the errors of ``images``, Overloaded, DeadlineExceeded, NotReady and Internal.
        """
        try:
            job = Job(image, want, deadline, waiter := Waiter(), stated, zlib.crc32(caller.encode()))
            with self._flight(job):
                result = await self._result(job, waiter)
        except asyncio.CancelledError:
            self._count("abandoned")
            raise
        except TopkError as error:
            self._count(_outcome(error))
            raise
        self._count("accepted")
        self.metrics.decode_seconds.observe(result.timing.decode)
        self.metrics.queue_seconds.observe(result.timing.queue)
        return result

    def predictions(self, row: Row, min_score: float = 0.0) -> list[Prediction]:
        """The labels of a row's top-k, highest score first, without scores below ``min_score``."""
        labels = self.model.labels
        return [
            Prediction(class_id, labels[class_id].wnid, labels[class_id].label, score)
            for class_id, score in zip(row.class_ids.tolist(), row.scores.tolist(), strict=True)
            if score >= min_score
        ]

    @contextmanager
    def _flight(self, job: Job) -> Iterator[None]:
        """Keep an image in progress: ``close`` waits for it, ``abandon`` settles it."""
        with self._settled:
            if not self.ready:
                raise self.readiness.failure or NotReady("shutting down")
            self._in_flight.add(job)
            self._last_deadline = max(self._last_deadline, job.deadline)
        try:
            yield
        finally:
            with self._settled:
                self._in_flight.remove(job)
                self._settled.notify_all()

    async def _result(self, job: Job, waiter: Waiter) -> Result:
        file = job.image
        await self._run(job, waiter, self.served.engine.decodes_jpegs)
        if isinstance(job.error, UndecodableImage) and isinstance(job.image, Jpeg):  # the device's decoder refused it
            job.image, job.error, job.pending = file, None, None
            job.completion = waiter = Waiter()
            await self._run(job, waiter, device_decodes=False)
        if job.error:
            raise job.error
        assert job.row is not None
        return Result(
            job.row,
            Timing(
                job.decode_s,
                job.queue_s,
                job.inference_s,
                job.batch_size,
                job.decoded_at,
                job.taken_at,
                job.computed_at,
                tuple(job.waits),
            ),
        )

    async def _run(self, job: Job, waiter: Waiter, device_decodes: bool) -> None:
        """Wait until the job has its outcome. Raises DeadlineExceeded and NotReady."""
        served = self.served
        job.received_at = time.monotonic()
        if served.ahead and isinstance(job.image, bytes):
            served.ahead.submit(job, served.queue.put, served.queue.predicted_wait() if device_decodes else None)
        else:
            served.queue.put(job)
        try:
            async with asyncio.timeout(job.deadline - job.received_at):
                await waiter.future
        except TimeoutError:
            raise DeadlineExceeded("no answer by the deadline") from None
        finally:
            if job.row is None and job.error is None:
                waiter.future.cancel()
                if job.pending:
                    job.pending.cancel()
                served.queue.forget(job)

    def _count(self, outcome: str) -> None:
        self.metrics.images.labels(outcome).inc()


def _outcome(error: TopkError) -> str:
    match error:
        case BadImage():
            return "rejected"
        case DeadlineExceeded():
            return "expired"
        case Unavailable():
            return "shed"
    return "failed"
