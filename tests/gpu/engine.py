"""Part 1: the engine's outputs and speed, through the same calls as in the service."""

import itertools
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from app.engine.base import Jpeg, Pixels, Rows, Want
from app.engine.torch import CreateJpegDecoder, TorchEngine
from app.images.decoder import Decoder
from app.images.sandbox import Sandbox
from tests.gpu import material
from tests.gpu.figures import Context, Report
from tests.gpu.machine import synchronize
from tests.gpu.material import Logits, Material

_BATCH = 16
_LARGE = 128
_LANES = (1, 2, 3)
_SIZES = (1, 2, 3, 5, 16, 33, 128)
_QUICK_SIZES = (1, 2)
_THREADS = 2
_MAX_PIXELS = 2**27
_ALL = Want(k=5, features=True, logits=True, probabilities=True)


def float32(context: Context, report: Report) -> None:
    """Compare float32 logits with the references."""
    _compare(context, report, "float32", "< 1e-3")


def bfloat16(context: Context, report: Report) -> None:
    """Compare bfloat16 logits with the references. Start-up and memory are those of a service."""
    _compare(context, report, "bfloat16", "< 1e-2")


def lanes(context: Context, report: Report) -> None:
    """Measure one, two and three lanes, each fed by a thread with large batches of crops."""
    found = material.find(context)
    batch = _repeated(crops(found), 1 if context.quick else _LARGE)
    rates = {}
    for count in _LANES[:2] if context.quick else _LANES:
        engine = loaded(found, context, streams=count, buckets=(len(batch),))
        rates[count] = _rate(engine, batch, count, 0.2 * context.seconds)
        report(f"{count} lanes, batch {len(batch)}", rates[count], "img/s", detail=True)
    best = max(rates, key=rates.__getitem__)
    report(f"best number of lanes: {best}", rates[best], "img/s", target=">= 15000")


def staging(context: Context, report: Report) -> None:
    """Overwrite the buffers of a lane between batches: the outputs must not change by a bit."""
    found = material.find(context)
    engine = loaded(found, context, streams=1)
    batches = _batches(crops(found), context)
    before = [_arrays(engine, batch) for batch in batches]
    wrong = 0
    for batch, expected in zip(batches, before, strict=True):
        _poison(engine, batch[0].shape[0])
        wrong += not _equal(_arrays(engine, batch), expected)
    report("batches with other outputs", wrong, expected="== 0")
    report("batches", len(batches))


def identical(context: Context, report: Report) -> None:
    """Compare the outputs of two threads with those of one, bit by bit, for most of the step's time."""
    _compare_threads(context, report, 0.7)


def soak(context: Context, report: Report) -> None:
    """Do the same for as long as a command may run."""
    _compare_threads(context, report, 0.9)


def _compare_threads(context: Context, report: Report, share: float) -> None:
    found = material.find(context)
    engine = loaded(found, context, streams=_THREADS)
    batches = _batches(crops(found), context)
    expected = [_arrays(engine, batch) for batch in batches]
    until = context.until(share)
    compared, wrong = [0] * _THREADS, [0] * _THREADS

    def compare(thread: int) -> None:
        order = random.Random(thread)
        while time.monotonic() < until:
            place = order.randrange(len(batches))
            wrong[thread] += not _equal(_arrays(engine, batches[place]), expected[place])
            compared[thread] += 1

    in_threads(compare, _THREADS)
    report("batches compared", sum(compared))
    report("batches with other outputs", sum(wrong), expected="== 0")


def loaded(
    found: Material,
    context: Context,
    precision: str = "",
    streams: int | None = None,
    buckets: tuple[int, ...] | None = None,
    create_jpegs: CreateJpegDecoder | None = None,
) -> TorchEngine:
    """A loaded engine; bfloat16 on a GPU unless stated. ``streams`` and ``buckets`` replace its own."""
    precision = precision or ("bfloat16" if context.cuda else "float32")
    engine = TorchEngine(found.model(), context.device, precision, create_jpegs)
    engine.streams = streams or engine.streams
    engine.buckets = buckets or engine.buckets
    engine.load()
    return engine


def crops(found: Material) -> list[Pixels]:
    """The photographs, decoded and resized exactly as torchvision's preset does."""
    decoder = Decoder(found.model().preprocessing, _MAX_PIXELS, None, False, Sandbox())
    return [decoder.decode_now(file) for file in found.files]


def logits(engine: TorchEngine, images: Sequence[Jpeg | Pixels]) -> Logits:
    """The logits of images, in batches."""
    rows: list[Logits] = []
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        outputs = engine.forward(batch, [Want(k=5, logits=True)] * len(batch))
        rows += [outputs.logits[place] for place in range(len(batch))]
    return np.stack(rows)


def report_agreement(found: Logits, expected: Logits, bound: str, report: Report) -> None:
    """Report how much logits differ from the expected ones."""
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    report("relative error, worst photograph", float(errors.max()), expected=bound)
    report("same top-1", 100 * float((found.argmax(1) == expected.argmax(1)).mean()), "%", ">= 99")


def _compare(context: Context, report: Report, precision: str, bound: str) -> None:
    found = material.find(context)
    started = time.monotonic()
    engine = loaded(found, context, precision)
    report("start of the engine", time.monotonic() - started, "s", target="< 15")
    for phase, seconds in engine.start_s.items():
        report(f"start, {phase}", seconds, "s", detail=True)
    report("compilation", engine.compilation, detail=True)
    for kind, size in engine.memory().items():
        report(f"memory {kind}", size / 2**30, "GiB", detail=True)
    report_agreement(logits(engine, crops(found)), found.logits(), bound, report)


def _rate(engine: TorchEngine, batch: Sequence[Pixels], threads: int, seconds: float) -> float:
    """Images per second of so many threads."""
    wants, counts = [Want(k=5)] * len(batch), [0] * threads
    engine.forward(batch, wants)
    until = time.monotonic() + seconds
    ended = [0.0] * threads

    def run(thread: int) -> None:
        while time.monotonic() < until:
            engine.forward(batch, wants)
            counts[thread] += len(batch)
        ended[thread] = time.monotonic()

    in_threads(run, threads)
    return sum(counts) / (max(ended) - until + seconds)


def _batches(images: Sequence[Pixels], context: Context) -> list[list[Pixels]]:
    """Batches of several sizes, each with other images."""
    sizes, turn = _QUICK_SIZES if context.quick else _SIZES, itertools.cycle(images)
    return [[next(turn) for _ in range(size)] for size in sizes]


def _repeated(images: Sequence[Pixels], count: int) -> list[Pixels]:
    return list(itertools.islice(itertools.cycle(images), count))


@torch.inference_mode()
def _poison(engine: TorchEngine, crop: int) -> None:
    """Leave NaN and the largest values in all buffers of the only lane."""
    engine.forward([np.full((3, crop, crop), np.nan, np.float32)], [Want(k=5)])
    lane = engine._lanes.get()
    for buffer in (lane._staging, lane._pixels):
        buffer.fill_(255)
    lane._scores.fill_(np.nan)
    lane._class_ids.fill_(-1)
    lane._finite.fill_(False)
    synchronize(torch.device(engine.device))
    engine._lanes.put(lane)


def _arrays(engine: TorchEngine, batch: Sequence[Pixels]) -> list[npt.NDArray[np.generic]]:
    """All outputs for a batch."""
    rows: Rows = engine.forward(batch, [_ALL] * len(batch))
    whole = (rows.features, rows.logits, rows.probabilities)
    return [rows.class_ids, rows.scores, rows.finite, *(array for outputs in whole for array in outputs.values())]


def _equal(found: Sequence[npt.NDArray[np.generic]], expected: Sequence[npt.NDArray[np.generic]]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Run ``work(0)``, ``work(1)``, ... in threads, and raise the first error of any of them."""
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))
