"""Where images are decoded, decided in one place.

On a CPU the thread of the stream that runs a batch decodes it too: threads that fight over the cores cost more than
they bring. Beside a GPU decode threads work ahead of the queue. In both cases a picture whose header predicts a
costly decode goes to a lane of its own, at low priority, so that it never holds up the cheap ones behind it. So does
one whose header is no promise.
"""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from app import images, machine
from app.errors import DeadlineExceeded, Overloaded
from app.images import Crop, Header, Preprocessing

COSTLY_S = 0.06  # twice what a 12-megapixel photograph takes with scaled decoding
_BYTES_PER_PIXEL = 20  # peak while a WebP with alpha is decoded and converted: the worst format measured
_NICENESS = 2 * machine.COMPUTING
_MEMORY = 0.9  # what each further picture leaves of the measurements before it


@dataclass(frozen=True, slots=True)
class Decoded:
    """A crop (uint8 RGB, [crop, crop, 3]), the seconds it took, and when it was done by ``time.monotonic``."""

    crop: Crop
    seconds: float
    at: float = 0.0


class Costly(Exception):
    """The header predicts a decode that must not run among the cheap ones."""

    def __init__(self, header: Header, seconds: float) -> None:
        super().__init__()
        self.header = header
        self.seconds = seconds


def ahead_of_queue(device: str) -> bool:
    """Whether decode threads work ahead of the queue, rather than the streams' threads on what they take from it."""
    return not device.startswith("cpu")


def default_pixels() -> int:
    """Pixels that may be decoded at once in a quarter of this process's memory."""
    return machine.memory_bytes() // 4 // _BYTES_PER_PIXEL


class Decoder:
    """Decodes for one model. Thread-safe; call it off the event loop.

    ``max_pixels`` bounds one picture, ``decode_pixels`` the costly ones being decoded at once.
    """

    def __init__(self, preprocessing: Preprocessing, max_pixels: int, decode_pixels: int | None, fast: bool) -> None:
        self.preprocessing = preprocessing
        self.decode_pixels = decode_pixels or default_pixels()
        self.max_pixels = min(max_pixels, self.decode_pixels)
        self.fast = fast
        self._lanes = max(1, machine.cores() // 4)
        self._lane = ThreadPoolExecutor(self._lanes, "topk-costly", machine.yield_cores, (_NICENESS,))
        self._free = threading.Condition()
        self._pixels_left = self.decode_pixels
        self._backlog_s = 0.0
        self._predicted_s = self._measured_s = 0.0  # of what was decoded lately

    def decode(self, data: bytes) -> Decoded:
        """Judge the header, then decode on this thread. Raises the errors of ``images``, and Costly."""
        started = time.perf_counter()
        header = images.read_header(data, self.max_pixels)
        seconds = images.decode_seconds(header, self.preprocessing, self.fast)
        if seconds > COSTLY_S or images.pixels_at_most(header) > header.pixels:
            raise Costly(header, seconds)
        crop = images.decode(header, self.preprocessing, self.fast)
        return Decoded(crop, time.perf_counter() - started, time.monotonic())

    def decode_costly(self, costly: Costly, deadline: float) -> "Future[Decoded]":
        """Decode in the costly lane. ``deadline`` in seconds of ``time.monotonic``.

        Raises Overloaded at once where the lane's backlog would make it late; cancelling the future before it runs
        spares the work.
        """
        with self._free:
            wait = self._backlog_s * self._slowness() / self._lanes
            late = time.monotonic() + wait + costly.seconds - deadline
            if late > 0:
                raise Overloaded("too many costly pictures are waiting to be decoded", retry_after_s=late)
            self._backlog_s += costly.seconds
        future = self._lane.submit(self._decode_costly, costly, deadline)
        future.add_done_callback(lambda _: self._left(costly.seconds))
        return future

    def close(self) -> None:
        """Finish what the costly lane holds. Blocks."""
        self._lane.shutdown()

    def _left(self, seconds: float) -> None:
        with self._free:
            self._backlog_s -= seconds

    def _slowness(self) -> float:
        """How much longer than predicted: the lane yields to cheap pictures, and machines differ.

        It lengthens the backlog alone: were a picture refused where nothing waits, nothing would be measured again.
        """
        return max(1.0, self._measured_s / self._predicted_s) if self._predicted_s else 1.0

    def _decode_costly(self, costly: Costly, deadline: float) -> Decoded:
        header = costly.header
        pixels = min(images.pixels_at_most(header), self.decode_pixels)
        with self._free:
            self._free.wait_for(lambda: self._pixels_left >= pixels)
            self._pixels_left -= pixels
        try:
            if time.monotonic() > deadline:
                raise DeadlineExceeded("the deadline passed while the image waited to be decoded")
            started = time.perf_counter()
            crop = images.decode(header, self.preprocessing, self.fast)
            seconds = time.perf_counter() - started
            with self._free:
                self._predicted_s = _MEMORY * self._predicted_s + costly.seconds
                self._measured_s = _MEMORY * self._measured_s + seconds
            return Decoded(crop, seconds, time.monotonic())
        finally:
            with self._free:
                self._pixels_left += pixels
                self._free.notify_all()
