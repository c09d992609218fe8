"""Decodes pictures on the calling thread or in the sandbox, by what their container says about the cost.

A picture is decoded on the calling thread only if its container bounds the cost tightly and predicts it to be low.
All others wait in a lane of their own for the sandbox, whose processes have a lower priority than cheap pictures.
"""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from app import images, machine
from app.errors import DeadlineExceeded, Overloaded
from app.images import Crop, Header, Preprocessing
from app.images.sandbox import Sandbox, Task

EXPENSIVE_S = 0.06  # twice what a 12-megapixel photograph takes with scaled decoding
EXPENSIVE_BYTES = 64 * 2**20  # a progressive photograph of 12 megapixels takes 45 MiB
_BYTES_PER_PIXEL = 20  # what a picture that is decoded whole takes on average over the formats
_MEMORY = 0.9  # what each further picture leaves of the measurements before it
_OUTLIER = 3.0  # a picture counts as at most so many times as slow as those before it
_LEAST_PROCESSOR_S = 1.0  # a picture may take that long, however small it is,
_SLACK = 10  # and so many times as long as predicted
_PATIENCE_S = 600.0  # of a command


class Decoded(NamedTuple):
    """A crop, uint8 RGB of shape [crop, crop, 3], and the seconds that its decode took."""

    crop: Crop
    seconds: float


def default_pixels() -> int:
    """Pixels that may be decoded at once in a quarter of this process's memory."""
    return machine.memory_bytes() // 4 // _BYTES_PER_PIXEL


def default_lanes() -> int:
    """Pictures that the sandboxes of a service decode at once."""
    return max(2, machine.cores() // 4)


class Decoder:
    """Decodes for one model. Thread-safe; call it off the event loop.

    ``max_pixels`` bounds one picture. ``decode_pixels`` bounds what is in the sandbox at once, by the memory that so
    many pixels take; ``lanes`` bounds the pictures.
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
        self.max_pixels = min(max_pixels, self.decode_pixels)
        self.fast = fast
        self._sandbox = sandbox
        self._lanes = lanes or default_lanes()
        self._lane = ThreadPoolExecutor(self._lanes, "topk-sandbox")
        self._free = threading.Condition()
        self._memory = self._memory_left = self.decode_pixels * _BYTES_PER_PIXEL
        self._backlog_s = 0.0
        self._backlog = 0  # pictures; their seconds do not add up to exactly 0 again
        self._predicted_s = self._measured_s = 0.0  # of recent pictures

    def read(self, data: bytes) -> Header:
        """Judge the header. Raises the errors of ``images``."""
        return images.read_header(data, self.max_pixels)

    def seconds(self, header: Header) -> float:
        """Predicted seconds of a decode on this machine's kind of core, if nothing else runs."""
        return images.decode_seconds(header, self.preprocessing, self.fast)

    def is_expensive(self, header: Header) -> bool:
        """Whether the picture belongs in the sandbox."""
        return not header.bounded or self.seconds(header) > EXPENSIVE_S or self._bytes(header) > EXPENSIVE_BYTES

    def decode(self, header: Header) -> Crop:
        """Decode on this thread. Raises the errors of ``images``."""
        return images.decode(header, self.preprocessing, self.fast)

    def decode_in_sandbox(self, header: Header, seconds: float, deadline: float) -> "Future[Decoded]":
        """Decode a picture of so many predicted ``seconds`` in the sandbox. ``deadline`` is by ``time.monotonic``.

        Raises Overloaded at once if the backlog would make it late. If the future is cancelled before it runs, the
        picture is not decoded.
        """
        with self._free:
            wait = self._backlog_s * self._slowness() / self._lanes
            late = time.monotonic() + wait + seconds - deadline
            if late > 0 and self._backlog:  # with an empty backlog it is tried, so that predictions stay measured
                raise Overloaded("too many expensive pictures are waiting to be decoded", retry_after_s=late)
            self._backlog_s += seconds
            self._backlog += 1
        future = self._lane.submit(self._decode_in_sandbox, header, seconds, deadline)
        future.add_done_callback(lambda _: self._left(seconds))
        return future

    def decode_now(self, data: bytes) -> Crop:
        """Decode here or in the sandbox, for commands. Blocks. Raises the errors of ``images``."""
        header = self.read(data)
        if self.is_expensive(header):
            return self.decode_in_sandbox(header, self.seconds(header), time.monotonic() + _PATIENCE_S).result().crop
        return self.decode(header)

    def close(self) -> None:
        """Finish what waits for the sandbox. Blocks."""
        self._lane.shutdown()

    def _bytes(self, header: Header) -> int:
        return images.decode_bytes(header, self.preprocessing, self.fast)

    def _left(self, seconds: float) -> None:
        with self._free:
            self._backlog -= 1
            self._backlog_s = self._backlog_s - seconds if self._backlog else 0.0

    def _slowness(self) -> float:
        """How much longer than predicted recent pictures took: the sandbox yields cores, and machines differ."""
        return max(1.0, self._measured_s / self._predicted_s) if self._predicted_s else 1.0

    def _decode_in_sandbox(self, header: Header, predicted_s: float, deadline: float) -> Decoded:
        memory = self._bytes(header)
        share = min(memory, self._memory)  # a picture that takes more than all is decoded alone
        with self._free:
            fits = self._free.wait_for(lambda: self._memory_left >= share, max(0.0, deadline - time.monotonic()))
            if not fits or time.monotonic() > deadline:
                raise DeadlineExceeded("the deadline passed while the image waited to be decoded")
            self._memory_left -= share
        try:
            processor_s = max(_LEAST_PROCESSOR_S, _SLACK * predicted_s)
            task = Task(header, self.preprocessing, self.fast, deadline, processor_s, memory)
            crop, seconds = self._sandbox.decode(task)
            with self._free:
                counted = min(seconds, _OUTLIER * self._slowness() * predicted_s)
                self._predicted_s = _MEMORY * self._predicted_s + predicted_s
                self._measured_s = _MEMORY * self._measured_s + counted
            return Decoded(crop, seconds)
        finally:
            with self._free:
                self._memory_left += share
                self._free.notify_all()
