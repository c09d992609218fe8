"""Decodes images on the calling thread or in the sandbox, depending on the cost that the header predicts.

An image is decoded on the calling thread only if its header bounds the cost tightly and the predicted cost is low.
All other images wait in a separate queue for the sandbox. The sandbox processes run at a lower priority.
"""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from app import images, machine
from app.errors import DeadlineExceeded, Overloaded, TooManyPixels
from app.images import Crop, Header, Preprocessing, Size
from app.images.sandbox import Sandbox, Task

EXPENSIVE_S = 0.06  # twice the time of a 12-megapixel photograph with scaled decoding
EXPENSIVE_BYTES = 64 * 2**20  # a progressive photograph of 12 megapixels takes 45 MiB
_BYTES_PER_PIXEL = 20  # average over the formats for an image decoded at full size
_ALONE = 2  # an image of fewer pixels than the limit may need this multiple of the memory, if it is decoded alone
_DECAY = 0.9  # weight that earlier measurements keep after each image
_OUTLIER = 3.0  # a measurement counts as at most this multiple of the recent slowdown
_MIN_PROCESSOR_S = 1.0  # lower bound of the limit on processor time
_SLACK = 10  # the limit on processor time as a multiple of the prediction
_COMMAND_TIMEOUT_S = 600.0


class Decoded(NamedTuple):
    """A uint8 RGB crop of shape [crop, crop, 3], the size of the upright picture, and the seconds of the decode."""

    crop: Crop
    size: Size
    seconds: float


def default_pixels() -> int:
    """Return the number of pixels that can be decoded at once in a quarter of this process's memory."""
    return machine.memory_bytes() // 4 // _BYTES_PER_PIXEL


def default_lanes() -> int:
    """Return the number of images that the sandboxes of a service decode at once."""
    return max(2, machine.cores() // 4)


class Decoder:
    """Decodes images for one model. Thread-safe; call it off the event loop.

    ``max_pixels`` limits the size of one image. ``decode_pixels`` limits the total memory of the images in the sandbox,
    in pixels of ``_BYTES_PER_PIXEL``. ``lanes`` limits the number of images in the sandbox.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        max_pixels: int,
        decode_pixels: int | None,
        fast: bool,
        sandbox: Sandbox,
        lanes: int | None = None,
    ) -> None:
        self.preprocessing = preprocessing
        self.decode_pixels = decode_pixels or default_pixels()
        self.max_pixels = max_pixels
        self.fast = fast
        self._sandbox = sandbox
        self._lanes = lanes or default_lanes()
        self._lane = ThreadPoolExecutor(self._lanes, "topk-sandbox")
        self._free = threading.Condition()
        self._memory = self._memory_left = self.decode_pixels * _BYTES_PER_PIXEL
        self._backlog_s = 0.0
        self._backlog = 0  # images; rounding errors keep the sum of their seconds from returning to exactly 0
        self._predicted_s = self._measured_s = 0.0  # of recent images

    def read(self, data: bytes) -> Header:
        """Read and check the header.

        Raises the errors of ``read_header``, and TooManyPixels if the decode needs too much memory.
        """
        header = images.read_header(data, self.max_pixels)
        limit = self._memory if header.pixels > self.decode_pixels else max(_ALONE * self._memory, EXPENSIVE_BYTES)
        if (needed := self._bytes(header)) > limit:
            raise TooManyPixels(
                f"an image of {header.width}x{header.height} pixels takes {needed >> 20} MiB to decode, more than the"
                f" limit of {limit >> 20} MiB; resize it"
            )
        return header

    def seconds(self, header: Header) -> float:
        """Predict the seconds of a decode on an otherwise idle core."""
        return images.decode_seconds(header, self.preprocessing, self.fast)

    def is_expensive(self, header: Header) -> bool:
        """Return whether the image must be decoded in the sandbox."""
        return not header.bounded or self.seconds(header) > EXPENSIVE_S or self._bytes(header) > EXPENSIVE_BYTES

    def decode(self, header: Header) -> tuple[Crop, Size]:
        """Decode on the calling thread: the crop, and the size of the upright picture. Raises as ``images.decode``."""
        return images.decode_sized(header, self.preprocessing, self.fast)

    def decode_in_sandbox(self, header: Header, seconds: float, deadline: float) -> "Future[Decoded]":
        """Decode in the sandbox. ``seconds`` is the prediction; ``deadline`` is in seconds of ``time.monotonic``.

        Raises Overloaded immediately if the image would miss its deadline because of the backlog. If the future is
        cancelled before it runs, the image is not decoded.
        """
        with self._free:
            wait = self._backlog_s * self._slowdown() / self._lanes
            late = time.monotonic() + wait + seconds - deadline
            if late > 0 and self._backlog:  # with an empty backlog the image is tried, so that measurements continue
                raise Overloaded("too many expensive images are waiting to be decoded; retry later", retry_after_s=late)
            self._backlog_s += seconds
            self._backlog += 1
        future = self._lane.submit(self._decode_in_sandbox, header, seconds, deadline)
        future.add_done_callback(lambda _: self._remove_from_backlog(seconds))
        return future

    def decode_now(self, data: bytes) -> Crop:
        """Decode on the calling thread or in the sandbox, for commands. Blocks. Raises the errors of ``images``."""
        header = self.read(data)
        if self.is_expensive(header):
            deadline = time.monotonic() + _COMMAND_TIMEOUT_S
            return self.decode_in_sandbox(header, self.seconds(header), deadline).result().crop
        return self.decode(header)[0]

    def close(self) -> None:
        """Wait until the queue for the sandbox is empty. Blocks."""
        self._lane.shutdown()

    def _bytes(self, header: Header) -> int:
        return images.decode_bytes(header, self.preprocessing, self.fast)

    def _remove_from_backlog(self, seconds: float) -> None:
        with self._free:
            self._backlog -= 1
            self._backlog_s = self._backlog_s - seconds if self._backlog else 0.0

    def _slowdown(self) -> float:
        """The ratio of measured to predicted time of recent images, at least 1.

        The sandbox has a low priority, and machines differ in speed.
        """
        return max(1.0, self._measured_s / self._predicted_s) if self._predicted_s else 1.0

    def _decode_in_sandbox(self, header: Header, predicted_s: float, deadline: float) -> Decoded:
        memory = self._bytes(header)
        share = min(memory, self._memory)  # an image that needs more than the limit is decoded alone
        with self._free:
            fits = self._free.wait_for(lambda: self._memory_left >= share, max(0.0, deadline - time.monotonic()))
            if not fits or time.monotonic() > deadline:
                raise DeadlineExceeded("the deadline passed while the image was waiting to be decoded")
            self._memory_left -= share
        try:
            processor_s = max(_MIN_PROCESSOR_S, _SLACK * predicted_s)
            task = Task(header, self.preprocessing, self.fast, deadline, processor_s, memory)
            crop, size, seconds = self._sandbox.decode(task)
            with self._free:
                counted = min(seconds, _OUTLIER * self._slowdown() * predicted_s)
                self._predicted_s = _DECAY * self._predicted_s + predicted_s
                self._measured_s = _DECAY * self._measured_s + counted
            return Decoded(crop, size, seconds)
        finally:
            with self._free:
                self._memory_left += share
                self._free.notify_all()
