"""Where images are decoded: cheap ones at once, costly ones in a lane of their own, within bounds."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import decoding, images, machine
from app.decoding import Costly, Decoded, Decoder, ahead_of_queue
from app.errors import DeadlineExceeded, Overloaded, TooManyPixels, UndecodableImage
from app.images import Crop, Header, Preprocessing
from tests.hostile import encode, picture

PRESET = Preprocessing(256, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL = picture("PNG", (100, 100))
PATIENCE_S = 60


class Watch:
    """Decodes as ever, once its gate is open, and keeps count of what is being decoded."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.decoded: list[Header] = []
        self.peak_pixels = self.peak = 0
        self.niceness: int | None = None
        self._running: list[Header] = []
        self._changed = threading.Condition()
        self._decode = images.decode

    def __call__(self, header: Header, preprocessing: Preprocessing, fast: bool) -> Crop:
        with self._changed:
            self._running.append(header)
            self.peak = max(self.peak, len(self._running))
            self.peak_pixels = max(self.peak_pixels, sum(header.pixels for header in self._running))
            self.niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            self._changed.notify_all()
        assert self.gate.wait(PATIENCE_S)
        with self._changed:
            self.decoded.append(header)
            self._running.remove(header)
        return self._decode(header, preprocessing, fast)

    def wait_for(self, running: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._running) == running, PATIENCE_S)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    watch = Watch()
    monkeypatch.setattr(images, "decode", watch)
    yield watch
    watch.gate.set()


class Lanes(Decoder):
    """A decoder with as many lanes as the test wants, whatever the machine has."""

    def __init__(self, lanes: int = 1, decode_pixels: int = 10**8) -> None:
        super().__init__(PRESET, 50_000_000, decode_pixels, fast=True)
        self._lane.shutdown()
        self._lanes = lanes
        self._lane = ThreadPoolExecutor(lanes, initializer=machine.yield_cores, initargs=(10,))


def soon(seconds: float = PATIENCE_S) -> float:
    return time.monotonic() + seconds


def costly(data: bytes = SMALL, seconds: float = 0.1) -> Costly:
    return Costly(images.read_header(data, 50_000_000), seconds)


def settle(future: "Future[Decoded]") -> None:
    """Wait for the future and for what is called when it is done."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(PATIENCE_S)


def test_cheap_picture_is_decoded_at_once() -> None:
    decoded = Lanes().decode(SMALL)
    assert (decoded.crop.shape, decoded.crop.dtype) == ((224, 224, 3), np.uint8)
    assert decoded.seconds > 0


def test_costly_picture_is_not_decoded_at_once(watch: Watch) -> None:
    with pytest.raises(Costly) as caught:
        Lanes().decode(encode(Image.new("RGB", (4000, 4000)), "PNG", compress_level=1))
    assert caught.value.seconds > decoding.COSTLY_S
    assert caught.value.header.pixels == 16_000_000
    assert not watch.decoded


def test_photograph_of_12_megapixels_is_cheap() -> None:
    data = encode(Image.effect_noise((504, 378), 40).convert("RGB").resize((4032, 3024)), "JPEG", quality=90)
    assert Lanes().decode(data).crop.shape == (224, 224, 3)


def test_picture_whose_header_is_no_promise_is_costly() -> None:
    with pytest.raises(Costly) as caught:
        Lanes().decode(picture("AVIF"))
    assert caught.value.seconds < decoding.COSTLY_S


def test_costly_lane_decodes() -> None:
    work = costly(picture("WEBP", (900, 700)))
    decoded = Lanes().decode_costly(work, soon()).result(PATIENCE_S)
    assert np.array_equal(decoded.crop, images.decode(work.header, PRESET, True))
    assert decoded.seconds > 0


def test_errors_of_images_pass_through() -> None:
    with pytest.raises(UndecodableImage):
        Lanes().decode(SMALL[:200])


def test_picture_larger_than_all_that_may_be_decoded_is_refused() -> None:
    with pytest.raises(TooManyPixels):
        Lanes(decode_pixels=9_999).decode(SMALL)


def test_pixels_decoded_at_once_are_bounded(watch: Watch) -> None:
    decoder = Lanes(lanes=4, decode_pixels=25_000)
    futures = [decoder.decode_costly(costly(), soon()) for _ in range(8)]
    watch.wait_for(2)
    watch.gate.set()
    for future in futures:
        future.result(PATIENCE_S)
    assert watch.peak_pixels == 20_000


def test_pictures_whose_header_is_no_promise_take_all_pixels(watch: Watch) -> None:
    decoder = Lanes(lanes=4, decode_pixels=25_000)
    futures = [decoder.decode_costly(costly(picture("AVIF")), soon()) for _ in range(4)]
    watch.wait_for(1)
    watch.gate.set()
    for future in futures:
        future.result(PATIENCE_S)
    assert (watch.peak, len(watch.decoded)) == (1, 4)


def test_backlog_beyond_the_deadline_is_refused(watch: Watch) -> None:
    decoder = Lanes()
    held = decoder.decode_costly(costly(seconds=30), soon())
    with pytest.raises(Overloaded) as refused:
        decoder.decode_costly(costly(seconds=5), soon(10))
    assert 24 < refused.value.retry_after_s < 30
    watch.gate.set()
    held.result(PATIENCE_S)
    assert watch.decoded == [costly().header]


def test_backlog_is_shared_by_the_lanes(watch: Watch) -> None:
    decoder = Lanes(lanes=2)
    held = [decoder.decode_costly(costly(seconds=10), soon()) for _ in range(2)]
    with pytest.raises(Overloaded):
        decoder.decode_costly(costly(seconds=5), soon(14))
    held.append(decoder.decode_costly(costly(seconds=5), soon(16)))
    watch.gate.set()
    assert all(future.result(PATIENCE_S) for future in held)


def test_backlog_grows_with_measured_slowness(watch: Watch) -> None:
    decoder = Lanes()
    watch.gate.set()
    settle(decoder.decode_costly(costly(seconds=1e-9), soon()))  # a million times slower than predicted
    watch.gate.clear()
    held = decoder.decode_costly(costly(seconds=1), soon())
    with pytest.raises(Overloaded):
        decoder.decode_costly(costly(), soon())
    watch.gate.set()
    assert held.result(PATIENCE_S)


def test_picture_too_costly_for_its_deadline_is_refused_though_nothing_waits() -> None:
    with pytest.raises(Overloaded):
        Lanes().decode_costly(costly(seconds=2), soon(1))


def test_cancelled_picture_is_spared(watch: Watch) -> None:
    decoder = Lanes()
    held = decoder.decode_costly(costly(), soon())
    watch.wait_for(1)
    waiting = decoder.decode_costly(costly(picture("GIF", mode="P"), seconds=30), soon())
    assert waiting.cancel()
    last = decoder.decode_costly(costly(), soon(10))  # the backlog of the cancelled one is gone
    watch.gate.set()
    assert held.result(PATIENCE_S)
    assert last.result(PATIENCE_S)
    assert [header.format for header in watch.decoded] == ["PNG", "PNG"]


def test_deadline_that_passed_while_waiting_ends_the_wait(watch: Watch) -> None:
    decoder = Lanes()
    held = decoder.decode_costly(costly(seconds=0), soon())
    watch.wait_for(1)
    deadline = soon(0.05)
    late = decoder.decode_costly(costly(seconds=0), deadline)
    while time.monotonic() <= deadline:
        pass
    watch.gate.set()
    with pytest.raises(DeadlineExceeded):
        late.result(PATIENCE_S)
    assert held.result(PATIENCE_S)
    assert len(watch.decoded) == 1


def test_failure_gives_back_pixels_and_backlog() -> None:
    decoder = Lanes(decode_pixels=10_000)
    failing = decoder.decode_costly(Costly(images.read_header(SMALL[:200], 10_000), 30), soon())
    settle(failing)
    assert isinstance(failing.exception(), UndecodableImage)
    assert decoder.decode_costly(costly(seconds=5), soon(10)).result(PATIENCE_S)


def test_costly_lane_runs_at_low_priority(watch: Watch) -> None:
    watch.gate.set()
    Lanes().decode_costly(costly(), soon()).result(PATIENCE_S)
    assert watch.niceness == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)


def test_closing_finishes_what_waits(watch: Watch) -> None:
    decoder = Lanes()
    futures = [decoder.decode_costly(costly(), soon()) for _ in range(3)]
    watch.gate.set()
    decoder.close()
    assert all(future.done() and future.result() for future in futures)


def test_predicted_seconds_are_those_of_the_images_module() -> None:
    data = encode(Image.new("RGB", (4000, 4000)), "BMP")
    with pytest.raises(Costly) as caught:
        Lanes().decode(data)
    assert caught.value.seconds == images.decode_seconds(images.read_header(data, 10**8), PRESET, True)


@pytest.mark.parametrize(("device", "ahead"), [("cpu", False), ("cuda:0", True), ("mps", True)])
def test_decoding_runs_ahead_of_the_queue_beside_a_gpu(device: str, ahead: bool) -> None:
    assert ahead_of_queue(device) is ahead


def test_default_bound_follows_from_memory() -> None:
    assert 0 < decoding.default_pixels() * 16 <= machine.memory_bytes() // 4
    assert Decoder(PRESET, 10**12, None, True).max_pixels == decoding.default_pixels()


STORM = """
import threading, time
from PIL import Image
from app import images
from app.decoding import Costly, Decoder
from app.images import Preprocessing
from tests.hostile import HUGE, encode, picture

preset = Preprocessing(256, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
decoder = Decoder(preset, 50_000_000, None, True)
cheap = picture("JPEG", (500, 375))
huge = encode(Image.new("RGB", (HUGE, HUGE), (30, 90, 200)), "WEBP", lossless=True, quality=0, method=0)
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here

def submit():
    try:
        return decoder.decode(huge)
    except Costly as costly:
        return decoder.decode_costly(costly, time.monotonic() + 600)

futures = [submit() for _ in range(20)]
for _ in range(200):
    decoder.decode(cheap)
waiting = sum(not future.done() for future in futures)
assert all(future.result().crop[0, 0].tolist() == [30, 90, 200] for future in futures)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak) // 1024, waiting)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux")
def test_twenty_huge_pictures_stay_within_memory_and_let_cheap_ones_pass() -> None:
    repository = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", STORM], cwd=repository, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    peak_mb, waiting = map(int, run.stdout.split())
    print(f"peak of 20 pictures of 49 million pixels: {peak_mb} MB; waiting when 200 cheap ones were done: {waiting}")
    assert peak_mb < 2500
    assert waiting > 10
