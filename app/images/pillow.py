"""Decodes a file to a crop with Pillow. Never on the event loop.

All Pillow errors are converted here. For very elongated images only the crop is resized, so that 10000x2 pixels do not
cost more memory than other images. Special cases:

- The EXIF orientation is applied; the XMP orientation is not.
- Animations and multi-page files are reduced to their first frame.
- Transparent images (alpha channel, palette or tRNS) are composited on white. A BMP whose alpha is 0 everywhere is
  opaque.
- 16-bit greyscale keeps its high byte. ``samples`` describes the samples of a TIFF.
- Pillow converts CMYK, YCbCr and LAB to RGB without colour management.
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
from PIL import Image, ImageFile, _imaging

from app.errors import BadImage, TooManyPixels, UndecodableImage
from app.images import jpeg, samples, scans, tiff
from app.images.directory import exif_orientation
from app.images.geometry import SWAPS_AXES, UPRIGHT, Preprocessing, jpeg_scale, reach, resized_size, stored_box
from app.images.header import Header

Crop = npt.NDArray[np.uint8]
Size = tuple[int, int]
"""Width and height in pixels."""

_IGNORE_PILLOW = ("ignore", None, Warning, re.compile(r"PIL\."), 0)

_UNINTENDED_ALPHA = ("BMP",)  # formats whose writers leave alpha 0 everywhere; for TIFF see ``samples``
_MAX_ASPECT = 8  # up to this aspect ratio the whole image is resized
_RESAMPLING = {"bilinear": (Image.Resampling.BILINEAR, 1), "bicubic": (Image.Resampling.BICUBIC, 2)}  # filter, radius


def decode(header: Header, preprocessing: Preprocessing, fast: bool) -> Crop:
    """Decode, turn upright, resize and crop.

    Returns uint8 RGB of shape [crop, crop, 3]. With ``fast`` only the crop is resized, and a large JPEG is decoded at
    1/2, 1/4 or 1/8 of its size, but at least at twice the resized size. Resizing only the crop may change values by
    one grey level.

    Raises UndecodableImage. Raises UnsupportedMediaType or TooManyPixels if the decoder finds what the header does not
    show.
    """
    return decode_sized(header, preprocessing, fast)[0]


def decode_sized(header: Header, preprocessing: Preprocessing, fast: bool) -> tuple[Crop, Size]:
    """``decode``, and the size of the upright picture, which the header of some formats does not show."""
    with _opened(header) as image:
        width, height = image.size
        scale, turn = _load(image, header, fast, preprocessing)
        crop = _crop(image, (width, height), scale, turn, fast, preprocessing)
        return crop, (height, width) if turn in SWAPS_AXES else (width, height)


def decode_whole(header: Header, preprocessing: Preprocessing) -> Crop:
    """Decode and turn upright without a crop. Returns uint8 RGB of shape [height, width, 3].

    A large JPEG is decoded at a reduced scale, as with the ``fast`` option of ``decode``. Raises UndecodableImage.
    """
    with _opened(header) as image:
        _, turn = _load(image, header, True, preprocessing)
        plain = _plain(image)
        return _on_white(plain if turn is None else plain.transpose(turn))


@contextmanager
def _opened(header: Header) -> Iterator[Image.Image]:
    """Open the file with Pillow. Raises UndecodableImage if Pillow finds more pixels than the header states."""
    if header.format == "TIFF":
        _silence_libtiff()
    with _pillow_errors():
        if header.format == "TIFF":
            tiff.check_streams(header.data, jpeg.check_processes)
        if header.variant == tiff.SAMPLES:
            yield samples.decode(header.data)
            return
        with _open(header) as image:
            if image.width * image.height > header.pixels:
                raise UndecodableImage(
                    f"the image is larger than the {header.width}x{header.height} pixels that its header states"
                )
            yield image


def _open(header: Header) -> ImageFile.ImageFile:
    """Open the file. A JPEG is not subject to Pillow's own limit on pixels; other formats stay below it."""
    if header.format == "JPEG":
        from PIL.JpegImagePlugin import JpegImageFile  # the import changes Pillow's registry of formats

        return JpegImageFile(io.BytesIO(header.data))
    return Image.open(io.BytesIO(header.data), formats=[header.format])


@functools.cache
def _silence_libtiff() -> None:
    """Turn off libtiff's messages on stderr.

    libtiff writes a line for each fax row that it cannot read: 6 GB for a file of 2 MB and 50 million rows.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _load(
    image: Image.Image, header: Header, fast: bool, preprocessing: Preprocessing
) -> tuple[int, Image.Transpose | None]:
    """Decode the pixels. Returns the divisor of the reduced scale, and the transpose that turns the image upright."""
    width, height = image.size
    scale = jpeg_scale(width, height, preprocessing) if fast and header.format == "JPEG" else 1
    if scale > 1:
        image.draft(image.mode, (width // scale, height // scale))
    if header.format == "JPEG":
        assert isinstance(image, ImageFile.ImageFile)
        scans.load(image, header.data)
    else:
        image.load()  # before the EXIF is read: in a PNG it may follow the pixels
    return scale, UPRIGHT.get(header.orientation or exif_orientation(image.info.get("exif") or b""))


def _crop(
    image: Image.Image,
    size: Size,
    scale: int,
    turn: Image.Transpose | None,
    fast: bool,
    preprocessing: Preprocessing,
) -> Crop:
    """The crop of loaded pixels: at 1/``scale`` of the stored ``size``, and not turned upright yet."""
    width, height = size
    if not fast and max(width, height) <= _MAX_ASPECT * min(width, height):
        return _on_white(_crop_of_whole(_plain(image), turn, preprocessing))
    box = stored_box(width, height, turn, preprocessing)
    if scale > 1:
        box = (box[0] / scale, box[1] / scale, min(box[2] / scale, image.width), min(box[3] / scale, image.height))
    upright = _resized(_plain(image), box, turn in SWAPS_AXES, preprocessing)
    if turn is not None:
        upright = upright.transpose(turn)
    return _on_white(upright)


def _crop_of_whole(image: Image.Image, turn: Image.Transpose | None, preprocessing: Preprocessing) -> Image.Image:
    """Turn and resize the whole image, then crop. The result is bit-exact with torchvision."""
    if turn is not None:
        image = image.transpose(turn)
    resized_w, resized_h, left, top = resized_size(*image.size, preprocessing)
    resized = image.resize((resized_w, resized_h), _RESAMPLING[preprocessing.interpolation][0])
    return resized.crop((left, top, left + preprocessing.crop, top + preprocessing.crop))


def _resized(
    image: Image.Image, box: tuple[float, float, float, float], swapped: bool, preprocessing: Preprocessing
) -> Image.Image:
    """Resize the box to a square: first the rows of the upright image, then its columns, as in a whole-image resize.

    By default Pillow 13 chooses the order by the sizes. The order affects the result because bicubic overshoots are
    clipped between the two passes.
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
    """Convert to L, RGB or RGBa (premultiplied alpha), which Pillow resizes channel by channel."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "RGBa":
        return image
    if image.format in _UNINTENDED_ALPHA and image.mode == "RGBA" and not image.getchannel("A").getextrema()[1]:
        return image.convert("RGB")
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
    """Convert the exceptions that Pillow or a codec raises on malformed files, and ignore Pillow's warnings.

    Python stores the text of every warning that it shows. Pillow's texts contain numbers from the file, so a client
    could make this store grow.
    """
    if _IGNORE_PILLOW not in warnings.filters:
        warnings.filterwarnings("ignore", module=_IGNORE_PILLOW[3].pattern)
    try:
        yield
    except BadImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels("the image has more pixels than the decoder accepts; resize it") from error
    except MemoryError as error:
        raise UndecodableImage("decoding the image exceeds the memory limit for an image of its size") from error
    except Exception as error:
        raise UndecodableImage("the image is truncated or corrupt") from error
