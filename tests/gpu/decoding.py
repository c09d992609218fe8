"""Part 2: JPEG decoding on the device. On a CPU, stand-ins run the same steps."""

import io
import itertools
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from app import images
from app.engine import jpeg
from app.engine.base import Jpeg, Want
from app.engine.jpeg import Decode, JpegDecoder
from app.engine.torch import TorchEngine
from app.images import Preprocessing
from app.images import device as policy
from tests.engine import kernels
from tests.gpu import engine, material
from tests.gpu.engine import in_threads
from tests.gpu.figures import Context, Report
from tests.gpu.material import Material

_BATCHES = (1, 4, 16, 64, 128, 256)
_THREADS = (1, 2, 4)
_QUICK_BATCHES, _QUICK_THREADS = (2,), (1, 2)
_CELL_S, _QUICK_CELL_S = 0.8, 0.1
_ORDER_TRIES = 50
_BUSY_CYCLES = 20_000_000  # of the GPU's clock: about 10 ms
_REPEATED_BATCH = 16
_GREY_LEVELS = 2.0
_MAX_PIXELS = 2**27


def speed(context: Context, report: Report) -> None:
    """Measure torchcodec, torchvision, and decoding to crops, by batch size and number of threads."""
    found = material.find(context)
    files = found.files
    tensors, jpegs = [_tensor(file) for file in files], [to_jpeg(file) for file in files]
    decoders: dict[str, Callable[[int], Callable[[list[int]], object]]] = {
        "to crops": partial(_to_crops, found, context, jpegs),
        "torchcodec": lambda _: _batches_of(torchcodec(context), tensors),
        "torchvision": lambda _: _batches_of(partial(decode_jpeg, device=context.device), tensors),
    }
    for name, create in decoders.items():
        best = 0.0
        for threads, batch in _cells(context):
            rate = _rate(create(batch), threads, batch, len(files), context)
            report(f"{name}, {threads} threads, batch {batch}", rate, "img/s", detail=True)
            best = max(best, rate)
        report(name, best, "img/s", target=">= 10000" if name == "to crops" else "")


def corruption(context: Context, report: Report) -> None:
    """Look for memory that a decode overwrites too early, with and without waiting, and for crops that change."""
    found = material.find(context)
    decode, device = torchcodec(context), torch.device(context.device)
    for wait in (False, True):
        tries = 1 if context.quick else _ORDER_TRIES
        wrong = sum(_overwrites(decode, found.files[turn % len(found.files)], device, wait) for turn in range(tries))
        name = "with the wait" if wait else "without the wait"
        report(f"overwritten {name}, of {tries}", wrong, expected="== 0" if wait else "")
    jpegs = [to_jpeg(file) for file in found.files]
    for threads in _QUICK_THREADS if context.quick else _THREADS:
        compared, wrong = _changes(found, context, jpegs, threads)
        report(f"crops compared, {threads} threads", compared, detail=True)
        report(f"crops that differ, {threads} threads", wrong, expected="== 0")


def kinds(context: Context, report: Report) -> None:
    """Decode other kinds of JPEG: which are left to the device, and how its crops differ from Pillow's."""
    found = material.find(context)
    preprocessing = found.model().preprocessing
    decode, decoder = torchcodec(context), create_decoder(preprocessing, torch.device(context.device))
    for name, (file, taken) in _kinds(found.files[0]).items():
        try:
            decode([_tensor(file)])
            outcome = "decoded"
        except RuntimeError as error:
            outcome = f"{type(error).__name__}: {error}".splitlines()[0][:80]
        report(f"{name}: torchcodec", outcome, detail=True)
        header = images.read_header(file, _MAX_PIXELS)
        report(f"{name}: left to the device", int(policy.takes(header)), expected=f"== {int(taken)}")
        if policy.takes(header):
            crops = _crops(decoder, [to_jpeg(file)], preprocessing.crop, context)
            expected = images.decode(header, preprocessing, fast=False)
            difference = float(np.abs(crops.cpu().numpy()[0].astype(np.int16) - expected).mean())
            report(f"{name}: difference", difference, "grey levels", f"<= {_GREY_LEVELS:g}")


def agreement(context: Context, report: Report) -> None:
    """Compare the logits of photographs that the device decodes with the references."""
    found = material.find(context)
    taken = [file for file in found.files if policy.takes(images.read_header(file, _MAX_PIXELS))]
    report("left to the device", 100 * len(taken) / len(found.files), "%")
    pairs = zip(found.files, engine.crops(found), strict=True)
    files = [to_jpeg(file) if file in taken else crop for file, crop in pairs]
    logits = engine.logits(_engine(found, context), files)
    engine.report_agreement(logits, found.logits(), "", report)


def beside(context: Context, report: Report) -> None:
    """Measure the network and the decoder alone, both at the same time, and the engine that is fed with files."""
    found = material.find(context)
    batch = 2 if context.quick else 128
    jpegs = list(itertools.islice(itertools.cycle(map(to_jpeg, found.files)), batch))
    crops = list(itertools.islice(itertools.cycle(engine.crops(found)), batch))
    loaded = _engine(found, context)
    decode, places = _to_crops(found, context, jpegs, batch), list(range(batch))
    wants = [Want(k=5)] * batch
    work: dict[str, Callable[[], object]] = {
        "network": lambda: loaded.forward(crops, wants),
        "decoder": lambda: decode(places),
    }
    for name in work:
        report(f"{name} alone", _together({name: work[name]}, batch, context)[name], "img/s")
    for name, rate in _together(work, batch, context).items():
        report(f"{name} beside the other", rate, "img/s")
    rates = _together(dict.fromkeys(("first", "second"), lambda: loaded.forward(jpegs, wants)), batch, context)
    report("engine with files, 2 lanes", sum(rates.values()), "img/s", target=">= 10000")


def torchcodec(context: Context) -> Decode:
    """Its decoder for the device; Pillow on a CPU."""
    if not context.cuda:
        return kernels.cpu_decode
    from torchcodec.decoders import decode_jpeg

    return partial(decode_jpeg, device=context.device)


def create_decoder(preprocessing: Preprocessing, device: torch.device) -> JpegDecoder:
    """The decoder of the service; on a CPU, its kernels compiled for the CPU. Raises RuntimeError if there is none."""
    if device.type == "cpu":
        return JpegDecoder(preprocessing, device, kernels.cpu_decode, kernels.cpu_kernels())
    decoder = jpeg.create(preprocessing, device)
    if decoder is None:
        raise RuntimeError("there is no decoder on the device; the log above has the reason")
    return decoder


def to_jpeg(file: bytes) -> Jpeg:
    """The file as the service passes it to the device."""
    header = images.read_header(file, _MAX_PIXELS)
    return Jpeg(header.data, header.width, header.height, header.orientation)


def _engine(found: Material, context: Context) -> TorchEngine:
    """An engine that decodes."""
    return engine.loaded(found, context, create_jpegs=create_decoder, buckets=None if context.cuda else (1, 2))


def _cells(context: Context) -> list[tuple[int, int]]:
    if context.quick:
        return list(itertools.product(_QUICK_THREADS, _QUICK_BATCHES))
    return list(itertools.product(_THREADS, _BATCHES))


def _batches_of(decode: Decode, tensors: Sequence[torch.Tensor]) -> Callable[[list[int]], object]:
    """Decode the files with these numbers."""
    return lambda numbers: decode([tensors[number] for number in numbers])


def _to_crops(
    found: Material, context: Context, jpegs: Sequence[Jpeg], batch: int
) -> Callable[[list[int]], torch.Tensor]:
    """Decode the files with these numbers to crops, with one decoder for all threads."""
    preprocessing = found.model().preprocessing
    decoder = create_decoder(preprocessing, torch.device(context.device))
    return lambda numbers: _crops(decoder, [jpegs[number] for number in numbers], preprocessing.crop, context)


def _crops(decoder: JpegDecoder, files: Sequence[Jpeg], crop: int, context: Context) -> torch.Tensor:
    """The crops of files. Raises RuntimeError if one of them cannot be decoded."""
    crops = torch.empty((len(files), crop, crop, 3), dtype=torch.uint8, device=context.device)
    if failed := decoder.decode(files, range(len(files)), crops):
        raise RuntimeError(f"{len(failed)} of {len(files)} files were not decoded")
    return crops


def _rate(decode: Callable[[list[int]], object], threads: int, batch: int, files: int, context: Context) -> float:
    """Images per second of threads, each with a CUDA stream of its own."""
    until = [0.0]
    counts = [0] * threads

    def run(thread: int) -> None:
        order = random.Random(thread)
        with _own_stream(context):
            decode([order.randrange(files) for _ in range(batch)])
            _finish(context)
            until[0] = until[0] or time.monotonic() + (_QUICK_CELL_S if context.quick else _CELL_S)
            while time.monotonic() < until[0]:
                decode([order.randrange(files) for _ in range(batch)])
                _finish(context)
                counts[thread] += batch

    in_threads(run, threads)
    return sum(counts) / (time.monotonic() - until[0] + (_QUICK_CELL_S if context.quick else _CELL_S))


def _overwrites(decode: Decode, file: bytes, device: torch.device, wait: bool) -> bool:
    """Whether a decode overwrites memory that earlier work on the same stream has still to read.

    The memory of a freed tensor is used again at once on the same stream, which is safe for kernels.
    """
    header = images.read_header(file, _MAX_PIXELS)
    with torch.cuda.stream(torch.cuda.Stream(device) if device.type == "cuda" else None):
        earlier = torch.full((3, header.height, header.width), 7, dtype=torch.uint8, device=device)
        copied = torch.empty_like(earlier)
        if device.type == "cuda":
            torch.cuda._sleep(_BUSY_CYCLES)
        copied.copy_(earlier)
        del earlier
        if wait and device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        decoded = decode([_tensor(file)])
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        del decoded
        return bool((copied != 7).any())


def _changes(found: Material, context: Context, jpegs: Sequence[Jpeg], threads: int) -> tuple[int, int]:
    """How many crops of random batches were compared with the first ones, and how many differ."""
    decode = _to_crops(found, context, jpegs, _REPEATED_BATCH)
    numbers = list(range(len(jpegs)))
    expected = torch.cat([decode(numbers[i : i + _REPEATED_BATCH]) for i in range(0, len(jpegs), _REPEATED_BATCH)])
    _finish(context)
    until = context.until(0.2)
    compared, wrong = [0] * threads, [0] * threads

    def run(thread: int) -> None:
        order = random.Random(thread)
        with _own_stream(context):
            while time.monotonic() < until or not compared[thread]:
                numbers = [order.randrange(len(jpegs)) for _ in range(_REPEATED_BATCH)]
                wrong[thread] += int((decode(numbers) != expected[numbers]).flatten(1).any(1).sum())
                compared[thread] += len(numbers)

    in_threads(run, threads)
    return sum(compared), sum(wrong)


def _together(work: dict[str, Callable[[], object]], batch: int, context: Context) -> dict[str, float]:
    """Images per second of pieces of work, each repeated by a thread of its own at the same time."""
    names, rates = list(work), dict[str, float]()
    seconds = 0.15 * context.seconds

    def run(place: int) -> None:
        with _own_stream(context):
            work[names[place]]()
            _finish(context)
            started, count = time.monotonic(), 0
            while (now := time.monotonic()) < started + seconds or not count:
                work[names[place]]()
                _finish(context)
                count += batch
            rates[names[place]] = count / (now - started)

    in_threads(run, len(names))
    return rates


def _kinds(file: bytes) -> dict[str, tuple[bytes, bool]]:
    """Files made from a photograph, and whether they are left to the device."""
    with Image.open(io.BytesIO(file)) as opened:
        picture = opened.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    return {
        "baseline": (_saved(picture), True),
        "4:4:4": (_saved(picture, subsampling=0), True),
        "grey": (_saved(picture.convert("L")), True),
        "EXIF orientation 6": (_saved(picture, exif=exif), True),
        "progressive": (_saved(picture, progressive=True), False),
        "CMYK": (_saved(picture.convert("CMYK")), False),
        "truncated": (_saved(picture)[: len(_saved(picture)) // 2], False),
    }


def _saved(picture: Image.Image, **options: Any) -> bytes:
    picture.save(file := io.BytesIO(), "JPEG", quality=90, **options)
    return file.getvalue()


def _tensor(file: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(file), dtype=torch.uint8)


def _own_stream(context: Context) -> AbstractContextManager[Any]:
    return torch.cuda.stream(torch.cuda.Stream(context.device) if context.cuda else None)


def _finish(context: Context) -> None:
    """Wait for the current stream."""
    if context.cuda:
        torch.cuda.current_stream(context.device).synchronize()
