"""Where a file is decoded: on the threads, in the sandbox, or on a device that decodes JPEGs, played by this CPU."""

import asyncio
import io
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app import loading, models
from app.batching import Job
from app.classifier import Classifier, Result
from app.decoding import DecodeThreads, JobDecoder
from app.engine import Jpeg, Want
from app.engine.jpeg import JpegDecoder
from app.engine.torch import TorchEngine
from app.errors import UndecodableImage
from app.images.decoder import Decoder
from app.images.sandbox import Sandbox
from app.settings import Settings
from tests.conftest import CAT, PHOTOGRAPHS, RESNET50
from tests.engine.kernels import cpu_decode, cpu_kernels
from tests.engine.test_jpeg import PRESET, exif, photo

PHOTO = CAT.read_bytes()
SETTINGS = Settings(model="efficientnet_lite0", precision="float32", device="cpu", _env_file=None)
WANT = Want(k=5)


# --- the decision ---


def image_of(data: bytes, later_s: float | None, jpeg_bytes: float = math.inf) -> object:
    """The image of a job that a decode thread has prepared."""
    decoder = Decoder(PRESET, 10**8, None, True, Sandbox())
    job = Job(data, WANT, math.inf)
    assert JobDecoder(decoder, jpeg_bytes).prepare(job, lambda *_: None, later_s)
    decoder.close()
    return job.image


def test_a_free_device_gets_the_file_without_its_metadata() -> None:
    data = photo(exif=exif(6))
    image = image_of(data, later_s=0.0)
    assert isinstance(image, Jpeg)
    assert (image.width, image.height, image.orientation) == (301, 402, 6)
    assert b"Exif" in data
    assert b"Exif" not in image.data


@pytest.mark.parametrize("later_s", [None, 0.5], ids=["a device that does not decode", "a busy device"])
def test_otherwise_the_thread_decodes(later_s: float | None) -> None:
    assert isinstance(image_of(PHOTO, later_s), np.ndarray)


def test_the_thread_decodes_what_is_not_for_the_device() -> None:
    assert isinstance(image_of(photo(progressive=True), later_s=0.0), np.ndarray)
    assert isinstance(image_of(PHOTO, later_s=0.0, jpeg_bytes=len(PHOTO) // 2), np.ndarray)


def test_work_overflows_to_the_threads_while_the_device_is_busier_than_they_are() -> None:
    decoder = Decoder(PRESET, 10**8, None, True, Sandbox())
    threads = DecodeThreads(JobDecoder(decoder), 1)
    done: dict[str, Job] = {}
    changed = threading.Condition()

    def submit(name: str, device_s: float) -> None:
        def put(job: Job) -> None:
            with changed:
                done[name] = job
                changed.notify()

        threads.submit(Job(PHOTO, WANT, math.inf), put, device_s)

    for name, device_s in (("idle", 0.0), ("busy", 60.0), ("idle again", 0.0)):
        submit(name, device_s)
        with changed:
            assert changed.wait_for(lambda name=name: name in done, 60)
    threads.close()
    decoder.close()
    assert [isinstance(job.image, Jpeg) for job in done.values()] == [True, False, True]


# --- the whole path ---


class Device:
    """Decodes for an engine. Counts the files that it gets, and refuses greyscale."""

    def __init__(self) -> None:
        self.files = 0

    def create(self, preprocessing: object, device: torch.device) -> JpegDecoder:
        return JpegDecoder(preprocessing, device, self.decode, cpu_kernels())  # type: ignore[arg-type]

    def decode(self, files: list[torch.Tensor]) -> list[torch.Tensor]:
        self.files += len(files)
        for file in files:
            with Image.open(io.BytesIO(file.numpy().tobytes())) as image:
                if image.mode == "L":
                    raise RuntimeError("greyscale is not supported")
        return cpu_decode(files)


Serve = Callable[[], tuple[Classifier, Device]]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Classifier, Device]]:
    device, classifier = Device(), Classifier(SETTINGS)
    model = models.resolve(SETTINGS)
    loading.load_model(classifier, model, TorchEngine(model, "cpu", "float32", device.create), ahead=True)
    yield classifier, device
    classifier.close()


@pytest.fixture(scope="module")
def reference() -> Iterator[Classifier]:
    """The same network on crops of Pillow."""
    classifier = Classifier(SETTINGS.model_copy(update={"engine": "torch", "fast_decode": False}))
    loading.load(classifier)
    yield classifier
    classifier.close()


def classify(classifier: Classifier, *files: bytes) -> list[Result | BaseException]:
    async def go() -> list[Result | BaseException]:
        tasks = [classifier.classify(file, WANT, math.inf) for file in files]
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(go())


def test_files_that_the_device_decodes_score_as_those_of_pillow(
    served: tuple[Classifier, Device], reference: Classifier
) -> None:
    classifier, device = served
    files = [PHOTO, photo(exif=exif(6)), photo((640, 480))]
    before = device.files
    for file in files:  # one by one: the device is free for each
        [found], [wanted] = classify(classifier, file), classify(reference, file)
        assert isinstance(found, Result)
        assert isinstance(wanted, Result)
        assert found.row.class_ids.tolist() == wanted.row.class_ids.tolist()
        assert np.allclose(found.row.scores, wanted.row.scores, atol=1e-5)
    assert device.files == before + len(files)


def test_pillow_decodes_what_the_device_refuses(served: tuple[Classifier, Device], reference: Classifier) -> None:
    classifier, device = served
    grey, before = photo(mode="L"), device.files
    [found], [wanted] = classify(classifier, grey), classify(reference, grey)
    assert device.files == before + 1
    assert isinstance(found, Result)
    assert isinstance(wanted, Result)
    assert found.row.class_ids.tolist() == wanted.row.class_ids.tolist()


def test_a_bad_file_is_an_error_of_its_own(served: tuple[Classifier, Device]) -> None:
    classifier, device = served
    tables = PHOTO.index(b"\xff\xdb")
    bad, before = PHOTO[:tables] + b"\xff\xe5" + PHOTO[tables + 2 :], device.files  # without its quantisation tables
    [error] = classify(classifier, bad)
    assert device.files > before
    assert isinstance(error, UndecodableImage)
    first, second, third = classify(classifier, PHOTO, bad, PHOTO)
    assert isinstance(second, UndecodableImage)
    assert isinstance(first, Result)
    assert isinstance(third, Result)


@pytest.mark.slow
@pytest.mark.shared
def test_the_best_class_of_photographs_is_that_of_the_reference() -> None:
    settings = SETTINGS.model_copy(update={"model": "resnet50", "weights": RESNET50, "fast_decode": False})
    model = models.resolve(settings)
    engine = TorchEngine(model, "cpu", "float32", lambda *terms: JpegDecoder(*terms, cpu_decode, cpu_kernels()))
    engine.load()
    decoder = Decoder(model.preprocessing, 10**8, None, False, Sandbox())
    agreed = 0
    for path in PHOTOGRAPHS:
        header = decoder.read(Path(path).read_bytes())
        file = Jpeg(header.data, header.width, header.height, header.orientation)
        found = engine.forward([file, decoder.decode(header)[0]], [WANT, WANT])
        agreed += found.undecodable == [] and found.class_ids[0, 0] == found.class_ids[1, 0]
    assert agreed >= 0.99 * len(PHOTOGRAPHS)
