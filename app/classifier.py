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

import numpy as np
import numpy.typing as npt
import structlog

from app.batching import Image, Job, Queue, Wait, fail
from app.calibration import Calibration, Promise
from app.decoding import DecodeThreads
from app.drift import Observer
from app.engine.base import Facts, Floats, Jpeg, Row, Want
from app.errors import (
    DeadlineExceeded,
    DeviceLost,
    Internal,
    NotReady,
    Overloaded,
    TopkError,
    UndecodableImage,
)
from app.imagenet.predictions import Prediction, labelled
from app.imagenet.taxonomy import Taxonomy
from app.images.decoder import Decoder
from app.images.sandbox import Sandbox
from app.models.model import Model
from app.readiness import LOADING, Readiness
from app.settings import Settings
from app.telemetry.metrics import Metrics, outcome

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
    """The outputs for one image, and how long it took.

    ``size`` is the width and height of the upright picture in pixels; None for a preprocessed tensor, or if the device
    has decoded the file.
    """

    row: Row
    timing: Timing
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """A model in memory, with its engine, decoder and queue.

    ``taxonomy`` is None if the model's classes are not in WordNet. ``ahead`` is None if the streams decode.
    ``explanations`` is the queue of the images that want one, None if the model has none.
    """

    model: Model
    engine: Facts
    decoder: Decoder
    queue: Queue
    taxonomy: Taxonomy | None
    ahead: DecodeThreads | None
    explanations: Queue | None = None

    @property
    def calibration(self) -> Calibration | None:
        """That of the served precision, if it is calibrated."""
        return self.model.calibrations.get(self.engine.precision)

    def queue_for(self, explain: bool) -> Queue:
        """The queue of an image. Raises NotReady if a model without explanations has replaced one with them."""
        if not explain:
            return self.queue
        if self.explanations is None:
            raise NotReady("the model has changed")
        return self.explanations

    @property
    def inexplicable(self) -> str | None:
        """Why there are no explanations; None if there are."""
        if self.explanations is not None:
            return None
        return self.engine.inexplicable or "explanations are turned off; the operator can set TOPK_EXPLAIN=true"

    @property
    def queues(self) -> list[Queue]:
        return [self.queue] if self.explanations is None else [self.queue, self.explanations]

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
        for queue in self.queues:
            queue.close()


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

    ``readiness`` is shared with the process that the classifier serves in. ``observer`` observes all answers of a
    service; commands have none.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics | None = None,
        readiness: Readiness | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.readiness = readiness or Readiness()
        self.sandbox = Sandbox()
        self._observer = observer
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
            if self._observer:
                self._observer.close()

    def admit(self, count: int, deadline: float, stated: bool = False, explain: bool = False) -> None:
        """Raise Overloaded if so many images would miss the ``deadline``, in seconds of ``time.monotonic``.

        ``explain``: they are to be explained, which another queue does. Raises NotReady before there is a model, and
        InvalidParameter if the network cannot be explained. Images that are refused here are not decoded.
        """
        if not self.ready:
            raise NotReady(self.readiness.reason)
        if not count:
            return
        served = self.served
        try:
            ahead = served.ahead.waiting if served.ahead and not explain else 0  # most are for the other queue
            served.queue_for(explain).admit(ahead + count, deadline, stated)
        except Overloaded:
            self.metrics.images.labels("shed").inc(count)
            raise

    def running_s(self) -> float:
        """Seconds that the device has taken so far for the longest running batch."""
        return max(queue.running_s() for queue in self._served.queues) if self._served else 0.0

    def abandon(self, error: DeviceLost) -> None:
        """Fail for good: settle all images with ``error``, wherever they are, and accept no more. From any thread.

        Waits neither for the device nor for decoding. A server then exits, because only a new process helps.
        """
        self.readiness.fail(error)
        for queue in self.served.queues:
            queue.abandon(error)
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
        Raises the errors of ``images``, InvalidParameter if the image cannot be explained, Overloaded,
        DeadlineExceeded, NotReady and Internal.
        """
        try:
            job = Job(image, want, deadline, waiter := Waiter(), stated, zlib.crc32(caller.encode()))
            with self._flight(job):
                result = await self._result(job, waiter)
        except asyncio.CancelledError:
            self._count("abandoned")
            raise
        except TopkError as error:
            self._count(outcome(error))
            raise
        self._count("accepted")
        if self._observer:
            served = self.served
            self._observer.observe(image, result.row, served.model, served.taxonomy, served.calibration)
        self.metrics.decode_seconds.observe(result.timing.decode)
        self.metrics.queue_seconds.observe(result.timing.queue)
        return result

    def predictions(self, row: Row, min_score: float = 0.0) -> list[Prediction]:
        """The labels of a row's top-k, highest score first, without scores below ``min_score``."""
        return [one for one in self.labelled(row.class_ids, row.scores) if one.score >= min_score]

    def labelled(self, class_ids: npt.NDArray[np.int64], scores: Floats) -> list[Prediction]:
        """The labels of classes [n] with these scores [n]."""
        return labelled(self.model.labels, class_ids, scores)

    def prediction_set(self, row: Row, promise: Promise) -> list[Prediction] | None:
        """The prediction set of an image whose row has its probabilities; None if none is promised."""
        if promise.coverage is None:
            return None
        if row.probabilities is None:
            raise Internal("the device returned no probabilities")
        classes = promise.set(row.probabilities)
        self.metrics.set_size.observe(len(classes))
        return self.labelled(classes, row.probabilities[classes])

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
        await self._run(job, waiter, self.served.engine.decodes_jpegs and job.want.explain is None)
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
            job.size,
        )

    async def _run(self, job: Job, waiter: Waiter, device_decodes: bool) -> None:
        """Wait until the job has its outcome. Raises DeadlineExceeded and NotReady."""
        served = self.served
        queue = served.queue_for(job.want.explain is not None)
        job.received_at = time.monotonic()
        if served.ahead and isinstance(job.image, bytes):
            served.ahead.submit(job, queue.put, queue.predicted_wait() if device_decodes else None)
        else:
            queue.put(job)
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
                queue.forget(job)

    def _count(self, outcome: str) -> None:
        self.metrics.images.labels(outcome).inc()
