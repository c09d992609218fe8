"""Bytes to a prediction: the one path that HTTP and the command line both call.

On the event loop: hand an image to the queue, wait for its row, put labels to it. On the streams' threads:
``_prepare``, which decodes what is not decoded yet, and ``_run``, which calls the engine.
"""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import structlog

from app import engine, images, machine, models
from app.batching import BatchQueue, CostCurve, Done, Entry
from app.engine import Row, Want
from app.errors import (
    BadImage,
    DeadlineExceeded,
    Internal,
    ModelError,
    NotConvertible,
    NotReady,
    Overloaded,
    TopkError,
    Unavailable,
)
from app.imagenet import taxonomy
from app.imagenet.taxonomy import Taxonomy
from app.images.decoder import Costly, Decoded, Decoder, ahead_of_queue, default_lanes, default_pixels
from app.images.sandbox import Sandbox
from app.models.model import Model
from app.settings import Settings
from app.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

Image = bytes | npt.NDArray[np.float32]
"""An image file, or an already preprocessed float32 tensor of shape [3, crop, crop]."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds an image spent in each stage, and the size of its batch.

    ``*_at`` is when a stage was over, in seconds of ``time.monotonic``.
    """

    decode: float
    queue: float
    inference: float
    batch_size: int
    decoded_at: float
    taken_at: float
    computed_at: float


@dataclass(frozen=True, slots=True)
class Result:
    """What the device said of one image."""

    row: Row
    timing: Timing


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of an image's top-k. ``score`` is its softmax probability."""

    class_id: int
    wnid: str | None
    label: str
    score: float


@dataclass(slots=True)
class Job:
    """One item on its way through the queue: what is to be classified, and what is wanted of it."""

    image: Image | Decoded
    want: Want


@dataclass(frozen=True, slots=True)
class Answer:
    """What ``run`` answers for one job. Durations in seconds, ``*_at`` in seconds of ``time.monotonic``."""

    row: Row
    decode_s: float
    inference_s: float
    decoded_at: float
    computed_at: float


class Queue(Protocol):
    """What the classifier asks of a queue: a ``BatchQueue``, or one that leads to another process."""

    @property
    def costs(self) -> CostCurve: ...
    @property
    def costs_alone(self) -> CostCurve: ...
    def __len__(self) -> int: ...
    def predicted_wait(self) -> float: ...
    def admit(self, n: int, deadline: float) -> None: ...
    def entry(self, item: Any, deadline: float) -> Entry: ...
    def put(self, entry: Entry) -> None: ...
    def settle(self, entry: Entry, error: Exception) -> None: ...
    def close(self) -> None: ...


class Classifier:
    """A model in memory behind a batch queue. ``load`` blocks until it is warm; the rest is for one event loop."""

    queue: Queue
    taxonomy: Taxonomy | None  # None where the model's classes have no place in WordNet

    def __init__(self, settings: Settings, metrics: Metrics | None = None, decode_ahead: bool | None = None) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.ready = False
        self._warm = False
        self._decode_ahead = decode_ahead
        self._sandbox = Sandbox()
        self._ahead: ThreadPoolExecutor | None = None
        self._ahead_threads = machine.cores()
        self._ahead_waiting = 0
        self._ahead_costs = CostCurve((1,))
        self._counting = threading.Lock()  # for what decode threads count
        self._closing = threading.Lock()
        self._settled = threading.Condition()  # told whenever an image has its answer
        self._in_flight = 0
        self._last_deadline = 0.0

    def load(self) -> None:
        """Resolve the model, bring it onto the device and warm it up at the served size, every bucket.

        Blocks. Raises ModelError.
        """
        settings = self.settings
        name = engine.choose(settings.engine, settings.device)
        try:
            model = models.resolve(settings, converted=name == "openvino")
        except NotConvertible as error:
            if settings.engine == name:
                raise
            log.warning("served by torch instead", reason=error.detail)
            name, model = "torch", models.resolve(settings)
        self.load_model(model, engine.create(model, name, settings.device, settings.precision))

    def load_model(self, model: Model, device: engine.Engine) -> None:
        """``load`` for a model and an engine already chosen."""
        machine.yield_cores(machine.COMPUTING)  # and all the threads that the engine and the queue start
        device.load()
        self.model, self.engine, self.taxonomy = model, device, taxonomy.of(model.labels)
        limits = (self.settings.max_pixels, self.settings.decode_pixels)
        self.decoder = Decoder(model.preprocessing, *limits, self.settings.fast_decode, self._sandbox)
        ahead = ahead_of_queue(device.device) if self._decode_ahead is None else self._decode_ahead
        if ahead:
            self._ahead = self._decode_threads()
        self.queue = queue = BatchQueue(
            [self._run] * device.streams,
            CostCurve(device.buckets),
            run_alone=partial(self._run, alone=True) if device.spreads else None,
            prepare=self._prepare,
            finished=self._finished,
            ahead_s=self.ahead_s,
        )
        try:
            queue.start(self._warm_batch)
        except Internal as error:
            raise ModelError(f"{model.name} with weights {model.weights}: {error.detail}") from error
        except MemoryError as error:
            raise ModelError(f"{model.name} has no memory to run in on {device.device}") from error
        self._observe_queue()
        self._tell_model(model, device)
        self.ready = True

    def attach(self, model: Model, facts: engine.Facts, queue: Queue) -> None:
        """``load`` where another process has the device: images are decoded here, and ``queue`` hands them over.

        Once more after ``detach``. From any thread.
        """
        workers = max(1, self.settings.workers)
        most = self.settings.max_pixels
        pixels = self.settings.decode_pixels or max(default_pixels() // workers, min(most, default_pixels()))
        lanes = max(1, default_lanes() // workers)
        decoder = Decoder(model.preprocessing, most, pixels, self.settings.fast_decode, self._sandbox, lanes)
        if self._ahead is None:
            self._ahead_threads = max(1, machine.cores() // workers)
            self._ahead = self._decode_threads()
        self._tell_model(model, facts)
        tree = taxonomy.of(model.labels)
        with self._settled:
            self.model, self.engine, self.decoder = model, cast(engine.Engine, facts), decoder
            self.taxonomy = tree
            self.queue = queue
            self.ready = True

    def detach(self, queue: Queue) -> None:
        """Not ready until attached again, if it is this queue that was attached last. From any thread."""
        with self._settled:
            if getattr(self, "queue", None) is queue:
                self.ready = False

    def close(self) -> None:
        """Finish what was accepted, then stop the threads. Harmless where nothing was loaded.

        Blocks, so it is not for the event loop whose images it waits for.
        """
        with self._closing:
            with self._settled:
                if not self.ready:
                    return
                self.ready = False
                # Costly pictures come to the queue twice: it must stay open until the last one has its answer. The
                # deadlines end the wait where an event loop has died with its images.
                patience = min(self._last_deadline - time.monotonic(), threading.TIMEOUT_MAX)
                self._settled.wait_for(lambda: not self._in_flight, patience)
            self.decoder.close()
            self._sandbox.close()
            if self._ahead:
                self._ahead.shutdown()
            self.queue.close()

    def start_sandbox(self) -> None:
        """Start what decodes costly pictures, before the first one comes. Returns while it loads."""
        self._sandbox.start()

    def admit(self, count: int, deadline: float) -> None:
        """Refuse now what would be answered too late: Overloaded; NotReady before ``load``.

        ``deadline`` in seconds of ``time.monotonic``. Nothing has been decoded for what is refused here.
        """
        if not self.ready:
            raise NotReady("the model is being loaded")
        if not count:
            return
        try:
            self.queue.admit(self._ahead_waiting + count, deadline)
        except Overloaded:
            self.metrics.images.labels("shed").inc(count)
            raise

    def running_s(self) -> float:
        """Seconds that the device has taken so far for the longest running batch."""
        return self.queue.running_s() if isinstance(self.queue, BatchQueue) else 0.0

    def abandon(self, error: TopkError) -> None:
        """Answer all images with ``error``, take no more, and leave the device to itself. From any thread."""
        self.ready = False
        assert isinstance(self.queue, BatchQueue)
        self.queue.abandon(error)
        self.queue.close()

    def predicted_wait(self) -> float:
        """Seconds an image that came now would wait for the device; 0 before ``load``."""
        return self.queue.predicted_wait() if self.ready else 0.0

    async def classify(self, image: Image, want: Want, deadline: float) -> Result:
        """Classify one admitted image by ``deadline`` (seconds of ``time.monotonic``).

        Cancelling the call abandons the image: it never reaches the device if it has not yet. Raises the errors of
        ``images``, Overloaded, DeadlineExceeded, NotReady and Internal.
        """
        try:
            with self._flight(deadline):
                done, answer = await self._within(deadline, self._answer(Job(image, want), deadline))
        except asyncio.CancelledError:
            self._count("abandoned")
            raise
        except TopkError as error:
            self._count(_outcome(error))
            raise
        self._count("accepted")
        self.metrics.decode_seconds.observe(answer.decode_s)
        self.metrics.queue_seconds.observe(done.queue_s)
        stages = (answer.decode_s, done.queue_s, answer.inference_s)
        ends = (answer.decoded_at, done.started, answer.computed_at)
        return Result(answer.row, Timing(*stages, done.batch_size, *ends))

    def predictions(self, row: Row, min_score: float = 0.0) -> list[Prediction]:
        """Labels put to a row's top-k, highest first, without the scores below ``min_score``."""
        labels = self.model.labels
        return [
            Prediction(class_id, labels[class_id].wnid, labels[class_id].label, score)
            for class_id, score in zip(row.class_ids.tolist(), row.scores.tolist(), strict=True)
            if score >= min_score
        ]

    def info(self) -> dict[str, Any]:
        """What is served and how, for ``/v1/info``. Raises NotReady before ``load``."""
        if not self.ready:
            raise NotReady("the model is being loaded")
        model, settings = self.model, self.settings
        return {
            "model": model.name,
            "architecture": model.architecture,
            "weights": model.weights,
            "digest": f"sha256:{model.digest}",
            "classes": len(model.labels),
            "taxonomy": self.taxonomy is not None,
            "dim": self.engine.dim,
            "engine": self.engine.name,
            "device": self.engine.device,
            "precision": self.engine.precision,
            "compilation": self.engine.compilation,
            "preprocessing": dataclasses.asdict(model.preprocessing),
            "decode": {
                "fast": settings.fast_decode,
                "ahead_of_queue": self._ahead is not None,
                "heic": images.heif_installed(),
            },
            "batching": {
                "streams": self.engine.streams,
                "ceiling": self.queue.costs.ceiling,
                "cost_ms": {str(n): round(s * 1000, 2) for n, s in self.queue.costs.as_dict().items()},
                "alone_ms": next((round(s * 1000, 2) for s in self.queue.costs_alone.as_dict().values()), None),
            },
            "limits": {
                "max_upload_bytes": settings.max_upload_bytes,
                "max_body_bytes": settings.max_body_bytes,
                "max_batch_images": settings.max_batch_images,
                "max_inflight_bytes": settings.max_inflight_bytes,
                "max_pixels": self.decoder.max_pixels,
                "decode_pixels": self.decoder.decode_pixels,
                "request_timeout_ms": settings.request_timeout_ms,
            },
            "warning": model.warning,
        }

    @contextmanager
    def _flight(self, deadline: float) -> Iterator[None]:
        """Counted in here is what ``close`` waits for."""
        with self._settled:
            if not self.ready:
                raise NotReady("shutting down")
            self._in_flight += 1
            self._last_deadline = max(self._last_deadline, deadline)
        try:
            yield
        finally:
            with self._settled:
                self._in_flight -= 1
                self._settled.notify_all()

    async def _within(self, deadline: float, answer: Any) -> tuple[Done, Answer]:
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                done: Done = await answer
        except TimeoutError:
            raise DeadlineExceeded("no answer by the deadline") from None
        return done, done.answer

    async def _answer(self, job: Job, deadline: float) -> Done:
        try:
            return await self._queued(job, deadline)
        except Costly as costly:
            job.image = await asyncio.wrap_future(self.decoder.decode_costly(costly, deadline))
            return await self._queued(job, deadline)

    async def _queued(self, job: Job, deadline: float) -> Done:
        entry = self.queue.entry(job, deadline)
        if self._ahead and isinstance(job.image, bytes):
            self._count_ahead(1)
            decoding = self._ahead.submit(self._decode_and_put, entry)
            decoding.add_done_callback(lambda _: self._count_ahead(-1))
            entry.future.add_done_callback(lambda _: decoding.cancel())
        else:
            self.queue.put(entry)
        return await entry.future

    def _decode_threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._ahead_threads, "topk-decode", machine.yield_cores, (machine.COMPUTING,))

    def _count_ahead(self, change: int) -> None:
        with self._counting:
            self._ahead_waiting += change

    def ahead_s(self) -> float:
        """Predicted seconds until the decode threads are through with what they have."""
        return self._ahead_waiting * self._ahead_costs.seconds(1) / self._ahead_threads

    def _decode_and_put(self, entry: Entry) -> None:
        """On a decode thread: the image becomes a crop, and waits for the device from here on."""
        job: Job = entry.item
        try:
            job.image = decoded = self.decoder.decode(job.image)  # type: ignore[arg-type]
            with self._counting:
                self._ahead_costs.observe(1, decoded.seconds)
            self.queue.put(entry)
        except (TopkError, Costly) as error:
            self.queue.settle(entry, error)
        except Exception:
            log.exception("decoding failed")
            self.queue.settle(entry, Internal("the image could not be decoded"))

    def _prepare(self, job: Job) -> None:
        """On a stream's thread: decode an image that is not decoded yet. Raises TopkError, and Costly."""
        if isinstance(job.image, bytes):
            try:
                job.image = self.decoder.decode(job.image)
            except (TopkError, Costly):
                raise
            except Exception:
                log.exception("decoding failed")
                raise Internal("the image could not be decoded") from None
        elif not isinstance(job.image, Decoded):
            job.image = Decoded(job.image, 0.0)  # type: ignore[arg-type]

    def _finished(self) -> None:
        """On a stream's thread: a batch is over."""

    def _run(self, jobs: Sequence[Job], alone: bool = False) -> list[Answer | Exception]:
        """On a stream's thread: run decoded images as one batch."""
        decoded = [cast(Decoded, job.image) for job in jobs]
        started = time.perf_counter()
        rows = self.engine.forward([image.crop for image in decoded], [job.want for job in jobs], alone)
        seconds, ended = time.perf_counter() - started, time.monotonic()
        if self._warm:
            self.metrics.inference_seconds.observe(seconds)
            self.metrics.batch_size.observe(len(jobs))
        return [
            Answer(row, image.seconds, seconds, image.at, ended) if _finite(row) else _not_finite()
            for image, row in zip(decoded, rows, strict=True)
        ]

    def _warm_batch(self, size: int) -> list[Job]:
        """Grey crops at the served size."""
        crop = self.model.preprocessing.crop
        grey = Decoded(np.full((crop, crop, 3), 128, np.uint8), 0.0)
        return [Job(grey, Want(k=5))] * size

    def _tell_model(self, model: Model, facts: engine.Facts | engine.Engine) -> None:
        self.metrics.model.info(
            {
                "model": model.name,
                "weights": model.weights,
                "engine": facts.name,
                "device": facts.device,
                "precision": facts.precision,
                "digest": model.digest,
            }
        )

    def _observe_queue(self) -> None:
        """What is measured from here on is of use; the warm-up was not."""
        self._warm = True
        self.metrics.queue_images.set_function(lambda: len(self.queue))
        self.metrics.predicted_wait.set_function(self.predicted_wait)
        for bucket in self.engine.buckets:
            self.metrics.batch_cost.labels(bucket).set_function(partial(self.queue.costs.seconds, bucket))
        for kind in self.engine.memory():
            self.metrics.device_memory.labels(kind).set_function(partial(self._device_memory, kind))

    def _device_memory(self, kind: str) -> float:
        return self.engine.memory()[kind]

    def _count(self, outcome: str) -> None:
        self.metrics.images.labels(outcome).inc()


def _not_finite() -> Internal:
    return Internal("the model computes no finite scores")


def _finite(row: Row) -> bool:
    parts = (row.scores, row.features, row.logits, row.probabilities)
    return all(part is None or bool(np.isfinite(part).all()) for part in parts)


def _outcome(error: TopkError) -> str:
    match error:
        case BadImage():
            return "rejected"
        case DeadlineExceeded():
            return "expired"
        case Unavailable():
            return "shed"
    return "failed"
