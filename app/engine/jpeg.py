"""Decodes JPEG files to crops on a device: with a decoder of batches, then with the kernels of ``resize.cu``.

On the threads of the streams. On CUDA each of them has a stream of its own, which is the current one.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import structlog
import torch
from PIL import Image

from app import images
from app.engine.base import Jpeg
from app.images import Preprocessing
from app.images.geometry import resized_size

log = structlog.get_logger(__name__)

SOURCE = Path(__file__).with_name("resize.cu")

_RADIUS = {"bilinear": 1, "bicubic": 2}
_MIRRORED, _UPSIDE_DOWN, _TRANSPOSED = {2, 3, 7, 8}, {3, 4, 6, 7}, {5, 6, 7, 8}  # orientations (EXIF 2.3, 4.6.4)
_PIXELS = 2**26  # decoded at once: 192 MiB
_TOLERANCE = 2.0  # grey levels by which decoders may differ on average, for the picture of ``check``

Decode = Callable[[list[torch.Tensor]], list[torch.Tensor]]
"""Decodes files, each a uint8 tensor on the CPU, to RGB of shape [3, height, width] on the device, as they are stored.
Raises RuntimeError if it cannot decode one of them."""


class Kernels(Protocol):
    """The compiled kernels of ``resize.cu``."""

    def launch(self, name: str, items: int, *arguments: int) -> None:
        """Run a kernel over ``items``. Its arguments are integers and addresses of 64 bits."""


class JpegDecoder:
    """Decodes files to the crops of a model, as ``images.decode`` does without ``fast``."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device, decode: Decode, kernels: Kernels) -> None:
        self._preprocessing = preprocessing
        self._device = device
        self._decode = decode
        self._kernels = kernels
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)  # nobody writes to a file

    def decode(self, files: Sequence[Jpeg], places: Sequence[int], crops: torch.Tensor) -> list[int]:
        """Decode files to their places in ``crops``, which is uint8 of shape [n, crop, crop, 3] on the device.

        Returns the places of the files that the device cannot decode.
        """
        failed = []
        for part in _parts(files):
            found = [
                (image, file, place)
                for image, file, place in zip(self._decoded(files[part]), files[part], places[part], strict=True)
                if image is not None
            ]
            failed += sorted({*places[part]} - {place for _, _, place in found})
            if found:
                self._resize(found, crops)
        return failed

    def check(self) -> None:
        """Decode a picture, and raise RuntimeError if its crop is not that of ``images.decode``."""
        side = 2 * self._preprocessing.resize
        picture = Image.linear_gradient("L").resize((side, side)).convert("RGB")
        picture.paste((200, 100, 0), (0, 0, side // 2, side // 2))
        picture.save(file := io.BytesIO(), "JPEG", quality=95)
        expected = images.decode(images.read_header(file.getvalue(), side**2), self._preprocessing, fast=False)
        crops = torch.empty((1, *expected.shape), dtype=torch.uint8, device=self._device)
        failed = self.decode([Jpeg(file.getvalue(), side, side, 1)], [0], crops)
        difference = np.abs(crops.cpu().numpy()[0].astype(np.int16) - expected).mean()
        if failed or difference > _TOLERANCE:
            raise RuntimeError("it decodes a JPEG wrongly" if not failed else "it cannot decode a JPEG")

    def _decoded(self, files: Sequence[Jpeg]) -> list[torch.Tensor | None]:
        """Decode files at once, or one by one if that fails. An image that cannot be decoded is None.

        On Hopper nvJPEG writes its output as soon as it is called, before earlier work on the stream has read the
        memory that it gets (pytorch/torchcodec#1634). So that work is waited for.
        """
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        try:
            decoded = self._decode([torch.frombuffer(file.data, dtype=torch.uint8) for file in files])
        except (torch.AcceleratorError, torch.OutOfMemoryError):
            raise
        except RuntimeError:
            return [None] if len(files) == 1 else [self._decoded([file])[0] for file in files]
        shapes = [(3, file.height, file.width) for file in files]
        return [image if image.shape == shape else None for image, shape in zip(decoded, shapes, strict=True)]

    def _resize(self, found: Sequence[tuple[torch.Tensor, Jpeg, int]], crops: torch.Tensor) -> None:
        rows = [_row(*image, self._preprocessing) for image in found]
        table = torch.from_numpy(np.array(rows, np.int64))
        if self._device.type == "cuda":
            table = table.pin_memory().to(self._device, non_blocking=True)
        crop, radius = self._preprocessing.crop, _RADIUS[self._preprocessing.interpolation]
        length = 2 + max(_most_weights(row, radius) for row in rows)
        weights = torch.empty((len(rows), 2, crop, length), dtype=torch.int32, device=self._device)
        shared = table.data_ptr(), len(rows), crop
        self._kernels.launch("weights", weights[..., 0].numel(), *shared, radius, weights.data_ptr(), length)
        self._kernels.launch("resize", len(rows) * crop**2, *shared, weights.data_ptr(), length, crops.data_ptr())


def create(preprocessing: Preprocessing, device: torch.device) -> JpegDecoder | None:
    """A decoder that uses nvJPEG, by torchcodec. None if that is not installed or does not work; the log has a reason.

    It does not turn images upright, because the files that it gets contain no EXIF.
    """
    if device.type != "cuda":
        return None
    try:
        from torchcodec.decoders import decode_jpeg

        from app.engine.nvrtc import CudaKernels

        decode = partial(decode_jpeg, device=device)
        decoder = JpegDecoder(preprocessing, device, decode, CudaKernels(SOURCE.read_bytes(), device))
        decoder.check()
    except Exception as error:  # packages that do not fit each other or the driver raise various exceptions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning("the GPU decodes no JPEGs; install the extra gpu", reason=reason)
        return None
    log.info("the GPU decodes JPEGs")
    return decoder


def _parts(files: Sequence[Jpeg]) -> Iterator[slice]:
    """Divide files into parts of at most ``_PIXELS``, or of one file."""
    start, pixels = 0, 0
    for place, file in enumerate(files):
        pixels += file.width * file.height
        if pixels > _PIXELS and place > start:
            yield slice(start, place)
            start, pixels = place, file.width * file.height
    yield slice(start, len(files))


def _row(image: torch.Tensor, file: Jpeg, place: int, preprocessing: Preprocessing) -> tuple[int, ...]:
    """The fields of ``Image`` in ``resize.cu``. A mirrored image is read backwards."""
    pixels, width, height = image.data_ptr(), file.width, file.height
    plane, row, column = image.stride()
    if file.orientation in _MIRRORED:
        pixels, column = pixels + (width - 1) * column, -column
    if file.orientation in _UPSIDE_DOWN:
        pixels, row = pixels + (height - 1) * row, -row
    if file.orientation in _TRANSPOSED:
        column, row, width, height = row, column, height, width
    return pixels, column, row, plane, width, height, *resized_size(width, height, preprocessing), place


def _most_weights(row: tuple[int, ...], radius: int) -> int:
    """The largest number of source pixels that a pixel of the crop is computed from."""
    _, _, _, _, width, height, resized_width, resized_height, *_ = row
    return 2 * math.ceil(radius * max(1.0, width / resized_width, height / resized_height)) + 1
