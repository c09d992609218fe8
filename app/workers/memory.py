"""Shared memory between processes. It is anonymous: the system frees it when the last process unmaps it.

The engine process creates the memory and passes the file descriptor on. Any thread may read and write. The frames of
``wire`` hand a slot from one process to the other.
"""

import math
import mmap
import os
import struct
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from app.batching import CostCurve, Outlook

_HEADER = mmap.PAGESIZE
_CHANNELS = 3
_FLOAT32 = 4
_NUMBERS = 8  # offset of a board's numbers, behind its sequence number
_TRIES = 100


def create(size: int) -> int:
    """Create ``size`` zero bytes and return their file descriptor. A page takes memory only once it is touched."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("topk", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


class Slots:
    """Shared memory for the images that one HTTP process sends to the engine. Unmapped with its last view.

    A slot holds a uint8 crop [crop, crop, 3], a float32 tensor [3, crop, crop], or a file of up to ``file_bytes``.
    """

    def __init__(self, descriptor: int, count: int, crop: int) -> None:
        self.count = count
        self.crop = crop
        memory = mmap.mmap(descriptor, self.size(count, crop))
        self._taken = np.frombuffer(memory, np.int64, 1)
        self.file_bytes = _stride(crop)
        self._files = np.frombuffer(memory, np.uint8, offset=_HEADER).reshape(count, self.file_bytes)
        pixels = crop * crop * _CHANNELS
        self._crops = self._files[:, :pixels].reshape(count, crop, crop, _CHANNELS)
        self._tensors = self._files.view(np.float32)[:, :pixels].reshape(count, _CHANNELS, crop, crop)

    @staticmethod
    def size(count: int, crop: int) -> int:
        return _HEADER + count * _stride(crop)

    @property
    def taken(self) -> int:
        """Total number of tasks that the engine has put into its queue."""
        return int(self._taken[0])

    @taken.setter
    def taken(self, count: int) -> None:
        self._taken[0] = count

    def view(self, slot: int, tensor: bool) -> npt.NDArray[Any]:
        """A view of a slot's image, without a copy. Raises IndexError for an invalid slot."""
        if not 0 <= slot < self.count:
            raise IndexError(f"slot must be between 0 and {self.count - 1}, got {slot}")
        slots: npt.NDArray[Any] = self._tensors if tensor else self._crops
        return slots[slot, ...]

    def file(self, slot: int, length: int) -> memoryview:
        """A view of the file in a slot, without a copy. Raises IndexError for an invalid slot or length."""
        if not (0 <= slot < self.count and 0 <= length <= self.file_bytes):
            raise IndexError(f"no slot {slot} holds a file of {length} bytes")
        return self._files[slot, :length].data


class Board:
    """The state of the engine's queue. The engine publishes every change; all processes read without a request."""

    def __init__(self, descriptor: int, buckets: Sequence[int]) -> None:
        self._buckets = tuple(buckets)
        self._map = mmap.mmap(descriptor, self.size(buckets))
        self._sequence = np.frombuffer(self._map, np.int64, 1)  # odd while the numbers are written
        self._numbers = struct.Struct(f"={len(Outlook._fields) + len(buckets) + 1}d")
        self._writing = threading.Lock()
        self._costs = b""
        self._seconds: tuple[float, ...] = ()

    @staticmethod
    def size(buckets: Sequence[int]) -> int:
        """Bytes of the sequence number, the outlook, and the costs per bucket and of a single image."""
        return 8 * (1 + len(Outlook._fields) + len(buckets) + 1)

    def write(self, outlook: Outlook, costs: CostCurve, alone: CostCurve) -> None:
        """Publish a queue's outlook and its measured costs."""
        known, known_alone = costs.as_dict(), alone.as_dict()
        seconds = [known.get(bucket, math.nan) for bucket in self._buckets]
        with self._writing:
            self._sequence[0] += 1
            self._numbers.pack_into(self._map, _NUMBERS, *outlook, *seconds, known_alone.get(1, math.nan))
            self._sequence[0] += 1

    def read(self) -> tuple[Outlook, tuple[float, ...]]:
        """The outlook, and the costs in seconds: one per bucket, then that of a single image. NaN if not measured.

        The same tuple of costs is returned until one of them changes. From one thread at a time.
        """
        for _ in range(_TRIES):
            sequence = self._sequence[0]
            written = self._map[_NUMBERS:]
            if sequence % 2 == 0 and self._sequence[0] == sequence:
                break
        # If every try met a write, the numbers are a mix of two writes a moment apart, which is good enough.
        numbers = self._numbers.unpack(written)
        fixed = len(Outlook._fields)
        now, wait, rest, waiting, idle, *times = numbers[:fixed]
        if (costs := written[8 * fixed :]) != self._costs:  # as bytes, because NaN differs from itself
            self._costs, self._seconds = costs, numbers[fixed:]
        return Outlook(now, wait, rest, int(waiting), bool(idle), *times), self._seconds


def curve(buckets: Sequence[int], seconds: Sequence[float]) -> CostCurve:
    """The cost curve that another process measured, from the seconds per bucket."""
    costs = CostCurve(buckets)
    measured = zip(costs.buckets, seconds, strict=True)
    costs.restore({bucket: cost for bucket, cost in measured if not math.isnan(cost)})
    return costs


def _stride(crop: int) -> int:
    """Bytes of a slot, in whole pages. A float32 tensor fills it; a uint8 crop touches a quarter of it."""
    return -(-crop * crop * _CHANNELS * _FLOAT32 // mmap.PAGESIZE) * mmap.PAGESIZE
