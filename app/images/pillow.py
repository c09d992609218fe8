"""Decodes a file with Pillow, down to the crop. Never on the event loop.

Every error of Pillow ends here. Of a very long picture only the crop is resized, so that 10000x2 pixels cost no more
memory than any others. One answer for each oddity:

- EXIF orientation is applied (not that of XMP); animations and multi-page files give their first frame;
- transparency (alpha channel, palette or tRNS) is laid on white;
- 16-bit grey is cut to its high byte, 32-bit integer grey is read as 16-bit, floating-point grey as 0..255;
- CMYK, YCbCr and LAB are converted to RGB by Pillow, without colour management.
"""

import contextlib
import ctypes
import functools
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import Image, _imaging

from app.errors import BadImage, TooManyPixels, UndecodableImage
from app.images import jpeg, tiff
from app.images.geometry import SWAPS_AXES, UPRIGHT, Preprocessing, jpeg_scale, reach, resized_size, stored_box
from app.images.header import Header

Crop = npt.NDArray[np.uint8]

_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

_WHOLE = 8  # a picture up to this many times as long as wide is resized whole
_RESAMPLING = {"bilinear": (Image.Resampling.BILINEAR, 1), "bicubic": (Image.Resampling.BICUBIC, 2)}  # and its radius


def decode(header: Header, preprocessing: Preprocessing, fast: bool) -> Crop:
    """Decode, turn upright, resize and crop.

    Returns uint8 RGB of shape [crop, crop, 3]. With ``fast`` only the crop is resized, which may differ by a grey
    level, and a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, never below twice the size resized to. Raises
    UndecodableImage; UnsupportedMediaType and TooManyPixels for what only the decoder finds.
    """
    with _opened(header) as image:
        return _crop(image, header.orientation, fast, preprocessing)


def decode_whole(header: Header, preprocessing: Preprocessing) -> Crop:
    """Decode and turn upright, for crops of one's own: uint8 RGB of shape [height, width, 3].

    A large JPEG is decoded at a reduced scale as with ``decode``'s ``fast``. Raises UndecodableImage.
    """
    with _opened(header) as image:
        _, turn = _load(image, header.orientation, True, preprocessing)
        plain = _plain(image)
        return _on_white(plain if turn is None else plain.transpose(turn))


@contextmanager
def _opened(header: Header) -> Iterator[Image.Image]:
    """The file opened by Pillow, which must not find more pixels than the header states."""
    if header.format == "TIFF":
        _silence_libtiff()
    with _pillow_errors():
        if header.format == "TIFF":
            tiff.check_streams(header.data, jpeg.check_processes)
        with Image.open(io.BytesIO(header.data), formats=[header.format]) as image:
            if image.width * image.height > header.pixels:
                raise UndecodableImage(f"the picture is larger than the {header.width}x{header.height} pixels stated")
            yield image


@functools.cache
def _silence_libtiff() -> None:
    """It writes a line to stderr for each row of a fax it cannot read: 6 GB for a file of 2 MB and 50 million rows."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _load(
    image: Image.Image, orientation: int, fast: bool, preprocessing: Preprocessing
) -> tuple[int, Image.Transpose | None]:
    """Decode the pixels: the fraction of its size that they are, and how they are turned upright."""
    width, height = image.size
    scale = jpeg_scale(width, height, preprocessing) if fast and image.format in ("JPEG", "MPO") else 1
    if scale > 1:
        image.draft(image.mode, (width // scale, height // scale))
    image.load()  # before its EXIF is asked for: that of a PNG may stand at its end
    return scale, UPRIGHT.get(orientation or tiff.exif_orientation(image.info.get("exif") or b""))


def _crop(image: Image.Image, orientation: int, fast: bool, preprocessing: Preprocessing) -> Crop:
    width, height = image.size
    scale, turn = _load(image, orientation, fast, preprocessing)
    if not fast and max(width, height) <= _WHOLE * min(width, height):
        return _on_white(_crop_of_whole(_plain(image), turn, preprocessing))
    box = stored_box(width, height, turn, preprocessing)
    if scale > 1:
        box = (box[0] / scale, box[1] / scale, min(box[2] / scale, image.width), min(box[3] / scale, image.height))
    upright = _resized(_plain(image), box, turn in SWAPS_AXES, preprocessing)
    if turn is not None:
        upright = upright.transpose(turn)
    return _on_white(upright)


def _crop_of_whole(image: Image.Image, turn: Image.Transpose | None, preprocessing: Preprocessing) -> Image.Image:
    """The crop to the last bit as torchvision takes it: the whole picture turned, resized, and only then cropped."""
    if turn is not None:
        image = image.transpose(turn)
    resized_w, resized_h, left, top = resized_size(*image.size, preprocessing)
    resized = image.resize((resized_w, resized_h), _RESAMPLING[preprocessing.interpolation][0])
    return resized.crop((left, top, left + preprocessing.crop, top + preprocessing.crop))


def _resized(
    image: Image.Image, box: tuple[float, float, float, float], swapped: bool, preprocessing: Preprocessing
) -> Image.Image:
    """The box as a square, its upright rows resized before its upright columns, as in a picture resized whole.

    Left alone, Pillow 13 chooses the order by the sizes: bicubic overshoots are clipped in between, so that it shows.
    """
    resample, support = _RESAMPLING[preprocessing.interpolation]
    size = preprocessing.crop
    x0, y0, x1, y1 = box
    if swapped:
        left, right = reach(x0, x1, size, image.width, support)
        columns = image.resize((right - left, size), resample, (left, y0, right, y1))
        return columns.resize((size, size), resample, (x0 - left, 0, x1 - left, size))
    top, bottom = reach(y0, y1, size, image.height, support)
    rows = image.resize((size, bottom - top), resample, (x0, top, x1, bottom))
    return rows.resize((size, size), resample, (0, y0 - top, size, y1 - top))


def _plain(image: Image.Image) -> Image.Image:
    """One of L, RGB or RGBa (premultiplied), which Pillow resizes channel by channel."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "I":
        return image.point(lambda value: value * (1 / 256)).convert("L")
    if image.mode == "F":
        return image.convert("L")
    if image.has_transparency_data:
        return (image if image.mode == "RGBA" else image.convert("RGBA")).convert("RGBa")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _on_white(image: Image.Image) -> Crop:
    if image.mode == "RGBa":
        pixels = np.asarray(image).astype(np.uint16)
        crop: Crop = np.minimum(pixels[..., :3] + (255 - pixels[..., 3:]), 255).astype(np.uint8)
        return crop
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Convert whatever Pillow or a codec raises on hostile bytes, and silence its warnings.

    Python remembers every text it has shown as a warning, and these hold numbers that the client chooses.
    """
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=_QUIET[3].pattern)
    try:
        yield
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels("the file holds more pixels than are decoded") from error
    except MemoryError as error:
        raise UndecodableImage("the image takes more memory than a picture of its size needs") from error
    except Exception as error:
        raise UndecodableImage("the image is truncated or corrupt") from error
