"""Stores the least certain images with their answers, in the layout that ``topk train`` and ``topk evaluate`` read.

Each image is ``CLASS/SHA-256.SUFFIX`` in the folder of the class that the model predicts. Its answer is a line of
``answers.jsonl``. A thread writes; the event loop only decides which images are stored.
"""

import contextlib
import hashlib
import os
import queue
import re
import tempfile
import threading
import time
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import orjson
import structlog

from app.engine.base import Row
from app.errors import ModelError
from app.imagenet.labels import Label
from app.imagenet.predictions import Prediction, labelled
from app.images import sniff
from app.models.model import Model
from app.settings import Settings
from app.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

ANSWERS = "answers.jsonl"

_WINDOW = 1000  # recent images among which one is uncertain
_WAITING = 8  # images that wait to be written: each may have TOPK_MAX_UPLOAD_BYTES, which no other limit counts
_PATIENCE_S = 5.0  # at shutdown: enough to write the images that wait; a network volume that hangs never responds
_K = 5
_WNID = re.compile("n[0-9]{8}")
_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif", "HEIF": "heic"}


class UncertainImage(NamedTuple):
    """An image file and its best classes, highest score first."""

    data: bytes
    model: Model
    predictions: list[Prediction]


class Certainties:
    """The top scores of the last 1000 images. An image is uncertain if its score is in the lowest ``rate`` of them.

    A tied score counts as the highest of its equals, so that no more than ``rate`` are uncertain. A positive rate below
    1 / 1000 has the effect of 1 / 1000. No image is uncertain before there are 1 / ``rate`` scores.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def is_uncertain(self, score: float) -> bool:
        """Add the score of an image. Whether it is uncertain."""
        if len(self._recent) == _WINDOW:
            self._sorted.pop(bisect_left(self._sorted, self._recent.popleft()))
        self._recent.append(score)
        insort(self._sorted, score)
        lowest = self._rate * len(self._sorted)
        if len(self._sorted) == _WINDOW and self._rate > 0:
            lowest = max(lowest, 1)
        return bisect_right(self._sorted, score) <= lowest


class SampleStore:
    """A folder of at most ``most`` bytes. Several processes may share it. Raises ModelError if it cannot be written.

    ``patience`` is the number of seconds that ``close`` waits.
    """

    def __init__(self, folder: Path, rate: float, most: int, metrics: Metrics, patience: float = _PATIENCE_S) -> None:
        self._folder = folder
        self._most = most
        self._metrics = metrics
        self._patience = patience
        self._certainties = Certainties(rate)
        self._queue: queue.Queue[UncertainImage | None] = queue.Queue(_WAITING)
        self._told: set[str] = set()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _open_answers(folder).close()
            self._bytes = total_bytes(_files(folder))
        except OSError as error:
            raise ModelError(f"TOPK_SAMPLE_DIR: {folder} cannot be written: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._write_all, name="topk-samples", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, settings: Settings, metrics: Metrics) -> Self | None:
        """None unless the operator wants samples."""
        if settings.sample_dir is None:
            return None
        return cls(settings.sample_dir.expanduser(), settings.sample_rate, settings.sample_bytes, metrics)

    def offer(self, data: bytes, score: float, row: Row, model: Model) -> None:
        """Store an image if it is uncertain. It is dropped if many wait. On the event loop."""
        if not self._certainties.is_uncertain(score):
            return
        predictions = labelled(model.labels, row.class_ids[:_K], row.scores[:_K])
        try:
            self._queue.put_nowait(UncertainImage(data, model, predictions))
        except queue.Full:
            self._count("dropped")

    def close(self) -> None:
        """Write the images that wait. Blocks, but no longer than the patience."""
        until = time.monotonic() + self._patience
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=self._patience)
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():  # a daemon, so it does not keep the process
            self._tell("samples were not stored: the folder does not respond", folder=str(self._folder))

    def _write_all(self) -> None:
        for sample in iter(self._queue.get, None):
            try:
                self._count(self._write(sample))
            except Exception as error:  # one sample must not end the thread
                self._count("dropped")
                self._tell("a sample could not be stored", reason=getattr(error, "strerror", None) or str(error))

    def _write(self, sample: UncertainImage) -> str:
        """Store a sample, unless it is there already or there is no room. Returns the outcome. Raises OSError."""
        name = f"{hashlib.sha256(sample.data).hexdigest()}.{suffix(sample.data)}"
        path = self._folder / class_folder(sample.predictions[0], sample.model.labels) / name
        line = _answer(path.relative_to(self._folder), sample)
        if path.exists():
            return "known"
        if self._bytes + len(sample.data) + len(line) > self._most:
            self._tell("no more samples are stored: TOPK_SAMPLE_BYTES is reached", folder=str(self._folder))
            return "dropped"
        for folder in (self._folder, path.parent):  # the operator may have deleted them
            folder.mkdir(mode=0o700, exist_ok=True)
        _write_new(path, sample.data)
        with _open_answers(self._folder) as answers:
            answers.write(line)
        self._bytes += len(sample.data) + len(line)
        return "stored"

    def _tell(self, event: str, **about: str) -> None:
        """Log a warning, each event once."""
        if event not in self._told:
            self._told.add(event)
            log.warning(event, **about)

    def _count(self, outcome: str) -> None:
        self._metrics.samples.labels(outcome).inc()


def class_folder(prediction: Prediction, labels: Sequence[Label]) -> str:
    """The folder of a class: its wnid if all classes have one, else its number.

    ``topk evaluate`` reads either, but not both in one folder. Other labels may not be the name of a folder.
    """
    wnids = all(_WNID.fullmatch(label.wnid or "") for label in labels)
    return prediction.wnid if wnids and prediction.wnid else str(prediction.class_id)


def total_bytes(files: Iterable[str]) -> int:
    """The sizes of files in total. A file that has been renamed or deleted since it was listed counts nothing."""
    total = 0
    for file in files:
        with contextlib.suppress(OSError):
            total += os.stat(file).st_size
    return total


def _files(folder: Path) -> Iterator[str]:
    """All files below a folder. ``os.walk`` skips folders that are deleted meanwhile."""
    for parent, _, names in os.walk(folder):
        yield from (os.path.join(parent, name) for name in names)


def suffix(data: bytes) -> str:
    """The usual suffix of an image file's format."""
    format = sniff(data) or "bin"
    return _SUFFIXES.get(format, format.lower())


def _answer(path: Path, sample: UncertainImage) -> bytes:
    """A line of ``answers.jsonl``. It is appended in one call, so that lines of several processes do not mix."""
    return orjson.dumps(
        {
            "file": str(path),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": sample.model.name,
            "predictions": [asdict(prediction) for prediction in sample.predictions],
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def _open_answers(folder: Path) -> BinaryIO:
    """The file of answers, unbuffered, to append to. Only its owner can read a new one."""
    return open(folder / ANSWERS, "ab", buffering=0, opener=lambda path, flags: os.open(path, flags, 0o600))


def _write_new(path: Path, data: bytes) -> None:
    """Write a file, with mode 0600, under another name first, so that nobody reads a part of it. Raises OSError."""
    handle, new = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.rename(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
