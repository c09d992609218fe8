"""Builds a ``Served`` for a device in this process or in another one.

Also loads in the background, and watches the device.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import structlog

from app import calibration, engine, machine, models
from app.batching import BatchQueue, CostCurve, DeferredQueue, Queue, Runner
from app.classifier import Classifier, Served
from app.decoding import DecodeThreads, JobDecoder, ahead_of_queue
from app.engine.base import Engine, Facts
from app.errors import DeviceLost, Internal, ModelError, NotConvertible
from app.imagenet import taxonomy
from app.images import MAX_PIXELS_UNSCALED
from app.images.decoder import Decoder, default_lanes, default_pixels
from app.images.sandbox import Sandbox
from app.models.model import Model
from app.settings import Settings
from app.telemetry.metrics import Metrics

log = structlog.get_logger("topk")

_USUALLY = {"openvino": "1 to 3 s", "torch": "3 to 20 s"}  # from the start of an engine until it is warm
_CHECKS = 4  # of the device within the limit: a hang is found a quarter of the limit late at most

Create = Callable[[Model, str, str, str, bool], Engine]


def load(classifier: Classifier, create: Create = engine.create) -> None:
    """Load the model of the classifier's settings and serve it. Blocks until it is warm. Raises ModelError.

    ``create`` creates the engine: see ``engine.create``.
    """
    load_model(classifier, *resolve(classifier.settings, create))


def load_model(classifier: Classifier, model: Model, device: Engine, ahead: bool | None = None) -> None:
    """Load a model on an engine that is not loaded yet, and serve it. See ``build``."""
    parts = classifier.settings, classifier.metrics, classifier.sandbox
    classifier.serve(build(model, device, *parts, ahead=ahead, lost=classifier.abandon))


def resolve(settings: Settings, create: Create = engine.create) -> tuple[Model, Engine]:
    """The model that the settings name, and an engine for it that is not loaded yet. Raises ModelError."""
    name = engine.choose(settings.engine, settings.device)
    try:
        model = models.resolve(settings, converted=name == "openvino")
    except NotConvertible as error:
        if settings.engine == name:
            raise
        log.warning("served by torch instead", reason=error.detail)
        name, model = "torch", models.resolve(settings)
    gpu_decode = settings.gpu_decode and settings.fast_decode
    return model, create(model, name, settings.device, settings.precision, gpu_decode)


def build(
    model: Model,
    device: Engine,
    settings: Settings,
    metrics: Metrics,
    sandbox: Sandbox,
    *,
    ahead: bool | None = None,
    changed: Callable[[], None] = lambda: None,
    lost: Callable[[DeviceLost], None],
) -> Served:
    """Bring a model onto a device in this process and warm it up. Blocks. Raises ModelError.

    ``ahead``: whether decode threads work ahead of the queue; None chooses by the device. ``changed`` is called when
    the state of the queue has changed, and ``lost`` when the device has failed: see ``BatchQueue``.
    """
    if not device.device.startswith("cuda"):  # where streams launch work and wait: if they are late, the GPU idles
        machine.yield_cores(machine.COMPUTING)  # this thread, and all threads that the engine and the queue start
    log.info("starting the engine and measuring its speed", engine=device.name, usually=_USUALLY.get(device.name))
    with _model_errors(model, device):
        device.load()
    decoding = JobDecoder(
        Decoder(model.preprocessing, settings.max_pixels, settings.decode_pixels, settings.fast_decode, sandbox)
    )
    ahead = ahead_of_queue(device.device) if ahead is None else ahead
    threads = DecodeThreads(decoding, machine.cores()) if ahead else None
    runner = Runner(device, model.preprocessing.crop)

    def observe(seconds: float, size: int) -> None:
        metrics.inference_seconds.observe(seconds)
        metrics.batch_size.observe(size)

    queue = BatchQueue(
        [runner.run] * device.streams,
        CostCurve(device.buckets, device.pads),
        run_alone=runner.run_alone if device.spreads else None,
        prepare=decoding.prepare,
        changed=changed,
        observe=observe,
        lost=lost,
        ahead_s=threads.seconds if threads else _nothing,
    )
    with _model_errors(model, device):
        queue.start(runner.warm_batch)
    if model.calibrations and device.precision not in model.calibrations:
        reason = calibration.missing(model.calibrations, device.precision)
        log.warning(f"coverage and unknown are refused: {model.name} {reason}")
    explanations = None
    if settings.explain and device.inexplicable is None:
        start = partial(_explaining, model, device, decoding, changed, observe, lost, queue.ahead_s)
        explanations = DeferredQueue(start, changed)
    _observe_queues(queue, explanations, device, metrics)
    return Served(model, device, decoding.decoder, queue, taxonomy.of(model.labels), threads, explanations)


def _explaining(
    model: Model,
    serving: Engine,
    decoding: JobDecoder,
    changed: Callable[[], None],
    observe: Callable[[float, int], None],
    lost: Callable[[DeviceLost], None],
    ahead_s: Callable[[], float],
) -> BatchQueue:
    """Load a second network that also computes class activation maps, and start its queue.

    Blocks. Raises Inexplicable, and the errors of a device that may pass.
    """
    log.info("loading the network for explanations", model=model.name)
    device = serving.explaining()
    if not device.device.startswith("cuda"):
        machine.yield_cores(machine.COMPUTING)
    runner = Runner(device, model.preprocessing.crop)
    try:
        device.load()
        queue = BatchQueue(
            [runner.run] * device.streams,
            CostCurve(device.buckets, device.pads),
            prepare=decoding.prepare,
            changed=changed,
            observe=observe,
            lost=lost,
            ahead_s=ahead_s,
        )
        queue.start(runner.warm_batch)
    except DeviceLost as error:
        lost(error)
        raise
    return queue


@contextmanager
def _model_errors(model: Model, device: Engine) -> Iterator[None]:
    """Convert the errors of a device that is loaded or warmed up to ModelError."""
    try:
        yield
    except Internal as error:
        raise ModelError(f"{model.name} with weights {model.weights}: {error.detail}") from error
    except MemoryError as error:
        raise ModelError(f"{device.device} has too little memory for {model.name}") from error
    except DeviceLost as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ModelError(f"{device.device} has failed while {model.name} was loaded: {reason}") from error


def decode_threads(model: Model, settings: Settings, sandbox: Sandbox, jpeg_bytes: int) -> DecodeThreads:
    """Threads of an HTTP process that decode for a device in another process: its share of cores and memory.

    ``jpeg_bytes``: the size of the largest JPEG that can be sent to the device.
    """
    workers = max(1, settings.workers)
    largest = min(settings.max_pixels, MAX_PIXELS_UNSCALED, default_pixels())
    pixels = settings.decode_pixels or max(default_pixels() // workers, largest)
    lanes = max(1, default_lanes() // workers)
    decoder = Decoder(model.preprocessing, settings.max_pixels, pixels, settings.fast_decode, sandbox, lanes)
    return DecodeThreads(JobDecoder(decoder, jpeg_bytes), max(1, machine.cores() // workers))


def build_remote(
    model: Model, facts: Facts, threads: DecodeThreads, queue: Queue, explanations: Queue | None
) -> Served:
    """Build a ``Served`` for a device in another process. The queues send the jobs to it."""
    return Served(model, facts, threads.decoder, queue, taxonomy.of(model.labels), threads, explanations)


def in_background(load: Callable[[], None], loaded: Callable[[ModelError | None], None]) -> None:
    """Call ``load`` on a thread that does not keep the process alive, then ``loaded`` on this event loop.

    ``loaded`` gets the reason if loading failed.
    """
    loop = asyncio.get_running_loop()

    def run() -> None:
        failure = None
        try:
            load()
        except ModelError as error:
            failure = error
        except Exception:
            log.exception("the model could not be loaded")
            failure = ModelError("the model could not be loaded; the log has the reason")
        loop.call_soon_threadsafe(loaded, failure)

    threading.Thread(target=run, name="topk-load", daemon=True).start()


async def hang(running_s: Callable[[], float], limit_s: float) -> DeviceLost:
    """Wait until a batch has run for longer than ``limit_s``; returns the error for the waiting callers.

    ``running_s()`` returns the seconds that the longest running batch has taken so far.
    """
    while running_s() <= limit_s:  # noqa: ASYNC110  # there is no event to wait for
        await asyncio.sleep(limit_s / _CHECKS)
    return DeviceLost(f"the device has not responded for {limit_s:g} s; the server restarts")


def _observe_queues(queue: BatchQueue, explanations: Queue | None, device: Engine, metrics: Metrics) -> None:
    """``topk_queue_images`` counts both queues; the other metrics are about that of predictions."""
    metrics.queue_images.set_function(lambda: len(queue) + (0 if explanations is None else len(explanations)))
    metrics.predicted_wait.set_function(queue.predicted_wait)
    metrics.patience.set_function(lambda: queue.outlook().patience)
    metrics.capacity.set_function(partial(_capacity, queue.costs, device.streams))
    for bucket in device.buckets:
        metrics.batch_cost.labels(bucket).set_function(partial(queue.costs.seconds, bucket))
    for kind in device.memory():
        metrics.device_memory.labels(kind).set_function(partial(_memory, device, kind))


def _capacity(costs: CostCurve, streams: int) -> float:
    return streams * costs.ceiling / costs.seconds(costs.ceiling)


def _memory(device: Engine, kind: str) -> float:
    return device.memory()[kind]


def _nothing() -> float:
    return 0.0
