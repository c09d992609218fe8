"""Where images are decoded: cheap ones at once, all others in the sandbox, within bounds."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import images, machine
from app.decoding import ahead_of_queue
from app.errors import DeadlineExceeded, Overloaded, TooManyPixels, UndecodableImage, UnsupportedMediaType
from app.images import Crop, Preprocessing, Size, decoder
from app.images.decoder import Decoded, Decoder
from app.images.sandbox import Sandbox, Task
from tests.conftest import REPOSITORY
from tests.hostile import encode, picture

PRESET = Preprocessing(256, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL = picture("PNG", (100, 100))
PATIENCE_S = 60


class Watch(Sandbox):
    """A sandbox that decodes once its gate is open, and keeps count of what is being decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.decoded: list[Task] = []
        self.peak_memory = self.peak = 0
        self._held: list[Task] = []
        self._changed = threading.Condition()

    def decode(self, task: Task) -> tuple[Crop, Size, float]:
        with self._changed:
            self._held.append(task)
            self.peak = max(self.peak, len(self._held))
            self.peak_memory = max(self.peak_memory, sum(task.memory for task in self._held))
            self._changed.notify_all()
        assert self.gate.wait(PATIENCE_S)
        with self._changed:
            self.decoded.append(task)
            self._held.remove(task)
        return super().decode(task)

    def wait_for(self, running: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._held) == running, PATIENCE_S)


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    watch.gate.set()
    watch.close()


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox()
    yield sandbox
    sandbox.close()


def decoding(sandbox: Sandbox, lanes: int = 1, decode_pixels: int = 10**8) -> Decoder:
    return Decoder(PRESET, 50_000_000, decode_pixels, True, sandbox, lanes)


def soon(seconds: float = PATIENCE_S) -> float:
    return time.monotonic() + seconds


def expensive(data: bytes = SMALL, seconds: float = 0.1) -> tuple[images.Header, float]:
    """A picture that is predicted to take so long."""
    return images.read_header(data, 50_000_000), seconds


def settle(future: "Future[Decoded]") -> None:
    """Wait for the future and for what is called when it is done."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(PATIENCE_S)


def test_cheap_picture_is_decoded_at_once(watch: Watch) -> None:
    header = (pictures := decoding(watch)).read(SMALL)
    assert not pictures.is_expensive(header)
    crop, size = pictures.decode(header)
    assert (crop.shape, crop.dtype) == ((224, 224, 3), np.uint8)
    assert size == (header.width, header.height)
    assert not watch.peak


def test_expensive_picture_is_for_the_sandbox(watch: Watch) -> None:
    pictures = decoding(watch)
    header = pictures.read(encode(Image.new("RGB", (4000, 4000)), "PNG", compress_level=1))
    assert pictures.is_expensive(header)
    assert pictures.seconds(header) > decoder.EXPENSIVE_S
    assert header.pixels == 16_000_000


def test_photograph_of_12_megapixels_is_cheap(sandbox: Sandbox) -> None:
    data = encode(Image.effect_noise((504, 378), 40).convert("RGB").resize((4032, 3024)), "JPEG", quality=90)
    pictures = decoding(sandbox)
    header = pictures.read(data)
    assert not pictures.is_expensive(header)
    assert pictures.decode(header)[0].shape == (224, 224, 3)


@pytest.mark.parametrize("data", [picture("AVIF"), picture("TIFF"), picture("WEBP", lossless=True)])
def test_picture_whose_container_does_not_bound_its_cost_is_for_the_sandbox(data: bytes, sandbox: Sandbox) -> None:
    pictures = decoding(sandbox)
    header = pictures.read(data)
    assert pictures.is_expensive(header)
    assert pictures.seconds(header) < decoder.EXPENSIVE_S


def test_cheap_picture_that_takes_much_memory_is_for_the_sandbox(sandbox: Sandbox) -> None:
    pictures = decoding(sandbox)
    header = pictures.read(encode(Image.new("RGB", (7000, 3500)), "JPEG", progressive=True))
    assert pictures.is_expensive(header)
    assert images.decode_bytes(header, PRESET, True) > decoder.EXPENSIVE_BYTES


def test_error_of_a_picture_in_the_sandbox_is_its_own(sandbox: Sandbox) -> None:
    whole = picture("TIFF", compression="jpeg")
    frame = whole.index(b"\xff\xc0")
    arithmetic = expensive(whole[:frame] + b"\xff\xc9" + whole[frame + 2 :])
    with pytest.raises(UnsupportedMediaType, match="arithmetic"):
        decoding(sandbox).decode_in_sandbox(*arithmetic, soon()).result(PATIENCE_S)


def test_sandbox_decodes(sandbox: Sandbox) -> None:
    work = expensive(picture("WEBP", (900, 700)))
    decoded = decoding(sandbox).decode_in_sandbox(*work, soon()).result(PATIENCE_S)
    assert np.array_equal(decoded.crop, images.decode(work[0], PRESET, True))
    assert decoded.seconds > 0


def test_errors_of_images_pass_through(sandbox: Sandbox) -> None:
    with pytest.raises(UndecodableImage):
        decoding(sandbox).decode_now(SMALL[:200])


def test_picture_larger_than_all_that_may_be_decoded_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(TooManyPixels):
        decoding(sandbox, decode_pixels=9_999).read(SMALL)


def test_memory_of_what_is_decoded_at_once_is_bounded(watch: Watch) -> None:
    one = images.decode_bytes(expensive()[0], PRESET, True)
    pictures = decoding(watch, lanes=4, decode_pixels=5 * one // 2 // 20)
    futures = [pictures.decode_in_sandbox(*expensive(), soon()) for _ in range(8)]
    watch.wait_for(2)
    watch.gate.set()
    for future in futures:
        future.result(PATIENCE_S)
    assert watch.peak_memory == 2 * one


def test_backlog_beyond_the_deadline_is_refused(watch: Watch) -> None:
    lane = decoding(watch)
    held = lane.decode_in_sandbox(*expensive(seconds=30), soon())
    with pytest.raises(Overloaded) as refused:
        lane.decode_in_sandbox(*expensive(seconds=5), soon(10))
    assert 24 < refused.value.retry_after_s < 30
    watch.gate.set()
    held.result(PATIENCE_S)
    assert [task.header for task in watch.decoded] == [expensive()[0]]


def test_backlog_is_shared_by_the_lanes(watch: Watch) -> None:
    lane = decoding(watch, lanes=2)
    held = [lane.decode_in_sandbox(*expensive(seconds=10), soon()) for _ in range(2)]
    with pytest.raises(Overloaded):
        lane.decode_in_sandbox(*expensive(seconds=5), soon(14))
    held.append(lane.decode_in_sandbox(*expensive(seconds=5), soon(16)))
    watch.gate.set()
    assert all(future.result(PATIENCE_S) for future in held)


def test_backlog_grows_with_measured_slowness(watch: Watch) -> None:
    lane = decoding(watch)
    watch.gate.set()
    for _ in range(40):
        settle(lane.decode_in_sandbox(*expensive(seconds=1e-9), soon()))  # a million times slower than predicted
    watch.gate.clear()
    held = lane.decode_in_sandbox(*expensive(seconds=1), soon())
    with pytest.raises(Overloaded):
        lane.decode_in_sandbox(*expensive(), soon())
    watch.gate.set()
    assert held.result(PATIENCE_S)


def test_picture_that_nothing_delays_is_tried_whatever_is_predicted(watch: Watch) -> None:
    watch.gate.set()
    assert decoding(watch).decode_in_sandbox(*expensive(seconds=100), soon(50)).result(PATIENCE_S)


def test_one_outlier_does_not_lengthen_the_backlog_much(watch: Watch) -> None:
    watch.gate.set()
    lane = decoding(watch)
    settle(lane.decode_in_sandbox(*expensive(seconds=1e-9), soon()))
    watch.gate.clear()
    held = [lane.decode_in_sandbox(*expensive(seconds=seconds), soon()) for seconds in (1, 0.1)]
    watch.gate.set()
    assert all(future.result(PATIENCE_S) for future in held)


def test_rounding_leaves_no_backlog(watch: Watch) -> None:
    watch.gate.set()
    lane = decoding(watch, lanes=2)
    for future in [lane.decode_in_sandbox(*expensive(seconds=seconds), soon()) for seconds in (0.1, 0.2)]:
        settle(future)
    assert lane.decode_in_sandbox(*expensive(seconds=2), soon(1)).result(PATIENCE_S)


def test_cancelled_picture_is_spared(watch: Watch) -> None:
    lane = decoding(watch)
    held = lane.decode_in_sandbox(*expensive(), soon())
    watch.wait_for(1)
    waiting = lane.decode_in_sandbox(*expensive(picture("GIF", mode="P"), seconds=30), soon())
    assert waiting.cancel()
    last = lane.decode_in_sandbox(*expensive(), soon(10))  # the backlog of the cancelled one is gone
    watch.gate.set()
    assert held.result(PATIENCE_S)
    assert last.result(PATIENCE_S)
    assert [task.header.format for task in watch.decoded] == ["PNG", "PNG"]


def test_deadline_that_passed_while_waiting_ends_the_wait(watch: Watch) -> None:
    lane = decoding(watch)
    held = lane.decode_in_sandbox(*expensive(seconds=0), soon())
    watch.wait_for(1)
    deadline = soon(0.05)
    late = lane.decode_in_sandbox(*expensive(seconds=0), deadline)
    while time.monotonic() <= deadline:
        pass
    watch.gate.set()
    with pytest.raises(DeadlineExceeded):
        late.result(PATIENCE_S)
    assert held.result(PATIENCE_S)
    assert len(watch.decoded) == 1


def test_failure_gives_back_memory_and_backlog(sandbox: Sandbox) -> None:
    lane = decoding(sandbox, decode_pixels=10_000)
    failing = lane.decode_in_sandbox(images.read_header(SMALL[:200], 10_000), 30, soon())
    settle(failing)
    assert isinstance(failing.exception(), UndecodableImage)
    assert lane.decode_in_sandbox(*expensive(seconds=5), soon(10)).result(PATIENCE_S)


def test_closing_finishes_what_waits(watch: Watch) -> None:
    lane = decoding(watch)
    futures = [lane.decode_in_sandbox(*expensive(), soon()) for _ in range(3)]
    watch.gate.set()
    lane.close()
    assert all(future.done() and future.result() for future in futures)


def test_predicted_seconds_are_those_of_the_images_module(sandbox: Sandbox) -> None:
    data = encode(Image.new("RGB", (4000, 4000)), "BMP")
    pictures = decoding(sandbox)
    assert pictures.seconds(pictures.read(data)) == images.decode_seconds(images.read_header(data, 10**8), PRESET, True)


@pytest.mark.parametrize(("device", "ahead"), [("cpu", False), ("cuda:0", True), ("mps", True)])
def test_decoding_runs_ahead_of_the_queue_beside_a_gpu(device: str, ahead: bool) -> None:
    assert ahead_of_queue(device) is ahead


def test_default_bound_follows_from_memory() -> None:
    assert 0 < decoder.default_pixels() * 16 <= machine.memory_bytes() // 4
    assert Decoder(PRESET, 10**12, None, True, Sandbox()).decode_pixels == decoder.default_pixels()


STORM = """
import os, threading, time
from PIL import Image
from app import images
from app.images import Preprocessing
from app.images.decoder import Decoder
from app.images.sandbox import Sandbox
from tests.hostile import HUGE, encode, picture

preset = Preprocessing(256, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
sandbox = Sandbox()
decoder = Decoder(preset, 50_000_000, None, True, sandbox)
cheap = picture("JPEG", (500, 375))
huge = encode(Image.new("RGB", (HUGE, HUGE), (30, 90, 200)), "WEBP", lossless=True, quality=0, method=0)
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here

def submit():
    header = decoder.read(huge)
    assert decoder.is_expensive(header)
    return decoder.decode_in_sandbox(header, decoder.seconds(header), time.monotonic() + 600)

futures = [submit() for _ in range(8)]
for _ in range(50):
    decoder.decode(decoder.read(cheap))
waiting = sum(not future.done() for future in futures)
assert all(future.result().crop[0, 0].tolist() == [30, 90, 200] for future in futures)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak) // 1024, waiting)
sandbox.close()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux")
def test_huge_pictures_take_no_memory_here_and_let_cheap_ones_pass() -> None:
    run = subprocess.run([sys.executable, "-c", STORM], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    peak_mb, waiting = map(int, run.stdout.split())
    print(f"peak beside 8 pictures of 49 million pixels: {peak_mb} MB; waiting when 50 cheap ones were done: {waiting}")
    assert peak_mb < 300
    assert waiting > 3
