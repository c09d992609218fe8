"""What processes share: memory without a name, which the system frees with the last process that maps it.

The engine process makes it and passes its descriptor on. Any thread may read and write; who owns a slot is agreed
over the wire.
"""

import math
import mmap
import os
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
_TRIES = 100


def create(size: int) -> int:
    """A descriptor of so many bytes, all zero. Pages are there once they are touched."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("topk", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


class Slots:
    """One HTTP process's images on their way to the engine. Unmapped when the last view of it is gone.

    A slot holds a uint8 crop [crop, crop, 3] or a float32 tensor [3, crop, crop].
    """

    def __init__(self, descriptor: int, count: int, crop: int) -> None:
        self.count = count
        self.crop = crop
        self._stride = _stride(crop)
        self._map = mmap.mmap(descriptor, self.size(count, crop))
        self._taken = np.frombuffer(self._map, np.int64, 1)

    @staticmethod
    def size(count: int, crop: int) -> int:
        return _HEADER + count * _stride(crop)

    @property
    def taken(self) -> int:
        """Tasks that the engine has put into its queue, ever."""
        return int(self._taken[0])

    @taken.setter
    def taken(self, count: int) -> None:
        self._taken[0] = count

    def view(self, slot: int, tensor: bool) -> npt.NDArray[Any]:
        """A slot's image, not copied. Raises IndexError where there is no such slot."""
        if not 0 <= slot < self.count:
            raise IndexError(f"no slot {slot}")
        at = _HEADER + slot * self._stride
        shape = (_CHANNELS, self.crop, self.crop) if tensor else (self.crop, self.crop, _CHANNELS)
        kind: Any = np.float32 if tensor else np.uint8
        return np.frombuffer(self._map, kind, math.prod(shape), at).reshape(shape)


class Board:
    """What is to be expected of the engine, written by it whenever that changes and read by all without asking."""

    _FIXED = 1 + len(Outlook._fields)  # sequence, outlook; then the cost of each bucket, and of an image alone

    def __init__(self, descriptor: int, buckets: Sequence[int]) -> None:
        self._buckets = tuple(buckets)
        self._map = mmap.mmap(descriptor, self.size(buckets))
        self._cells = np.frombuffer(self._map, np.float64)
        self._writing = threading.Lock()

    @staticmethod
    def size(buckets: Sequence[int]) -> int:
        return 8 * (Board._FIXED + len(buckets) + 1)

    def write(self, outlook: Outlook, costs: CostCurve, alone: CostCurve) -> None:
        """Publish a queue's outlook and its measured costs."""
        known, known_alone = costs.as_dict(), alone.as_dict()
        seconds = [known.get(bucket, math.nan) for bucket in self._buckets]
        with self._writing:
            self._cells[0] += 1  # odd: being written
            self._cells[1:] = [*outlook, *seconds, known_alone.get(1, math.nan)]
            self._cells[0] += 1

    def read(self) -> tuple[Outlook, tuple[float, ...]]:
        """The outlook, and the costs by bucket with that of an image alone last; NaN where none was measured."""
        for _ in range(_TRIES):
            cells = self._cells.tolist()
            if cells[0] % 2 == 0 and self._cells[0] == cells[0]:
                break
        # Torn after so many tries, the numbers are still ones that were written, a moment apart.
        now, wait, rest, waiting, idle, fastest = cells[1 : self._FIXED]
        return Outlook(now, wait, rest, int(waiting), bool(idle), fastest), tuple(cells[self._FIXED :])


def curve(buckets: Sequence[int], seconds: Sequence[float]) -> CostCurve:
    """Costs as another process measured them."""
    costs = CostCurve(buckets)
    for bucket, measured in zip(costs.buckets, seconds, strict=True):  # ascending: none changes another
        if not math.isnan(measured):
            costs.observe(bucket, measured)
    return costs


def _stride(crop: int) -> int:
    """Bytes of a slot, in whole pages: the float32 tensor is the larger one, a crop touches a quarter of it."""
    return -(-crop * crop * _CHANNELS * _FLOAT32 // mmap.PAGESIZE) * mmap.PAGESIZE
