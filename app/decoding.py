"""The decoding of jobs: on the thread of a stream, on decode threads ahead of the queue, on a GPU, or in the sandbox.

On a CPU the thread of the stream that runs a batch also decodes it: threads that compete for the cores cost more than
they gain. Beside a GPU, and in the HTTP processes of several workers, decode threads work ahead of the queue. Either
passes an expensive picture to the sandbox, which puts the job back. If the device decodes JPEGs, a decode thread leaves
them to it, unless the device is so busy that the thread decodes the image before the device would take it.
"""

import math
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import structlog

from app import machine
from app.batching import CostCurve, Job, Put, fail
from app.engine.base import Jpeg
from app.errors import Internal, NotReady, TopkError
from app.images import Header, device
from app.images.decoder import Decoded, Decoder

log = structlog.get_logger(__name__)

_DEFECT = "the image could not be decoded"


def ahead_of_queue(device: str) -> bool:
    """Whether decode threads work ahead of the queue of this device."""
    return not device.startswith("cpu")


@dataclass(frozen=True, slots=True)
class JobDecoder:
    """Decodes jobs with one decoder. Thread-safe. ``jpeg_bytes``: the largest JPEG that it may leave to the device."""

    decoder: Decoder
    jpeg_bytes: float = math.inf

    def prepare(self, job: Job, put: Put, later_s: float | None = None) -> bool:
        """Replace a job's image file by its crop; False if the sandbox does it, which calls ``put`` afterwards.

        ``later_s``: how much later the device would take the job than the calling thread, if the device decodes JPEGs.

        Raises the errors of ``images``, Overloaded and Internal.
        """
        if not isinstance(job.image, bytes):
            return True
        try:
            return self._decode(job, job.image, put, later_s)
        except TopkError:
            raise
        except Exception:
            log.exception("decoding failed")
            raise Internal(_DEFECT) from None

    def _decode(self, job: Job, data: bytes, put: Put, later_s: float | None) -> bool:
        started = time.monotonic()
        header = self.decoder.read(data)
        if self.decoder.is_expensive(header):
            job.waiting_since = started
            seconds = self.decoder.seconds(header)
            job.pending = future = self.decoder.decode_in_sandbox(header, seconds, job.deadline)
            future.add_done_callback(partial(_put_back, job, put))
            return False
        if later_s is not None and later_s <= self.decoder.seconds(header) and self._device_takes(header):
            job.image = Jpeg(header.data, header.width, header.height, header.orientation)
        else:
            job.image, job.size = self.decoder.decode(header)
        job.decoded_at = time.monotonic()
        job.decode_s = job.decoded_at - started
        return True

    def _device_takes(self, header: Header) -> bool:
        return len(header.data) <= self.jpeg_bytes and device.takes(header)


def _put_back(job: Job, put: Put, future: "Future[Decoded]") -> None:
    """Continue the job with its crop, or settle it with its error. On a thread of the sandbox."""
    if future.cancelled():  # nobody waits for it
        return
    try:
        job.image, job.size, job.decode_s = future.result()
        job.decoded_at = time.monotonic()
        job.end_wait(job.decoded_at - job.decode_s)
        put(job)
    except TopkError as error:
        fail([job], error)
    except Exception:
        log.exception("decoding failed")
        fail([job], Internal(_DEFECT))


class DecodeThreads:
    """Threads that decode jobs ahead of the queue, and predict when they have finished the jobs they have."""

    def __init__(self, decoding: JobDecoder, threads: int) -> None:
        self.decoder = decoding.decoder
        self._decoding = decoding
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "topk-decode", machine.yield_cores, (machine.COMPUTING,))
        self._costs = CostCurve((1,))
        self._counting = threading.Lock()
        self._waiting = 0

    @property
    def waiting(self) -> int:
        """Jobs that are waiting or being decoded."""
        return self._waiting

    def seconds(self) -> float:
        """Predicted seconds until all jobs are decoded."""
        return self._waiting * self._costs.seconds(1) / self._threads

    def submit(self, job: Job, put: Put, device_s: float | None = None) -> None:
        """Decode a job, then ``put`` it. From any thread. Raises NotReady once the threads are closed.

        ``device_s``: the predicted seconds until the device takes the job, if the device decodes JPEGs.
        """
        job.waiting_since = time.monotonic()
        later_s = None if device_s is None else device_s - self.seconds()
        self._count(1)
        try:
            future = self._pool.submit(self._decode, job, put, later_s)
        except RuntimeError:
            self._count(-1)
            raise NotReady("shutting down") from None
        future.add_done_callback(lambda _: self._count(-1))
        if job.pending is None:  # else it is in the sandbox already
            job.pending = future

    def close(self, wait: bool = True) -> None:
        """Decode the waiting jobs, and end the threads. Blocks if ``wait`` is true."""
        self._pool.shutdown(wait)

    def _decode(self, job: Job, put: Put, later_s: float | None) -> None:
        try:
            job.end_wait(time.monotonic())
            if self._decoding.prepare(job, put, later_s):
                with self._counting:
                    self._costs.observe(1, job.decode_s)
                put(job)
        except TopkError as error:
            fail([job], error)

    def _count(self, change: int) -> None:
        with self._counting:
            self._waiting += change
