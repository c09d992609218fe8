"""Decodes the samples of a TIFF that Pillow does not know or does not show as viewers do (TIFF 6.0).

Pillow, with libtiff, only unpacks the strips or tiles: it gets a directory that describes the rows as grey pixels of 8
bits. The rest is done here, some rows at a time: the predictor, the bits, and the meaning of the numbers.

- The range of unsigned integers is that of their bits, or ends at MaxSampleValue. Of more than 8 bits, 8 are kept.
- The range of signed integers starts at 0 if none is negative.
- The range of 32-bit integers is that of 16 bits if none reaches 2**24.
- The range of floating-point numbers is 0 to 1 if none exceeds ``_UNIT``, otherwise 0 to 255.
- Alpha is the first extra sample described as alpha. The only extra sample of grey or RGB, if it is not described, is
  alpha unless it is 0 everywhere. Other extra samples are ignored.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from app.errors import UndecodableImage
from app.images import directory as tags
from app.images import tiff
from app.images.directory import Directory
from app.images.tiff import CMYK, COLOURS, PALETTE, RGB, WHITE_IS_ZERO, Layout

Levels = npt.NDArray[np.uint8]
Values = npt.NDArray[np.generic]

_BAND = 2**18  # bytes of the rows that are converted at once
_UNIT = 2.0  # sharpening overshoots 1; a picture of the range 0 to 255 that stays below 2 is black
_ASSOCIATED, _UNASSOCIATED, _COREL = 1, 2, 999  # ExtraSamples; Corel Draw writes 999 for alpha
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by channels


@dataclass(frozen=True, slots=True)
class _Range:
    """The values of black and white."""

    black: int
    white: int

    def levels(self, values: Values) -> Levels:
        """Map values to 0..255."""
        steps = self.white - self.black + 1
        if values.dtype == np.uint8 and (self.black, self.white) == (0, 255):
            return values.astype(np.uint8, copy=False)
        if values.dtype.kind == "f" or steps < 256 or steps & (steps - 1):
            with np.errstate(invalid="ignore"):  # numpy warns of signalling NaNs
                scaled = (values.astype(np.float64) - self.black) * (255 / (self.white - self.black))
            rounded: Levels = np.rint(np.nan_to_num(scaled).clip(0, 255)).astype(np.uint8)
            return rounded
        offset = values.astype(np.int64).clip(self.black, self.white) - self.black
        levels: Levels = (offset >> (steps.bit_length() - 9)).astype(np.uint8)
        return levels


def decode(data: bytes) -> Image.Image:
    """Decode the page of a file that has the directory of ``tiff.parse``.

    Returns an image of mode L, RGB, RGBA or RGBa (premultiplied). Raises UndecodableImage and the errors of Pillow.
    """
    page = _Page(data)
    layout = page.layout
    colours = COLOURS[layout.photometric]
    alpha, premultiplied = _alpha(layout, colours)
    if alpha and alpha >= colours + len(layout.extra) and not page.extremes(alpha, alpha + 1)[1]:
        alpha = 0
    colour_range = _range(layout, page, 0, colours)
    alpha_range = _range(layout, page, alpha, alpha + 1)
    palette = _palette(page.directory, layout) if layout.photometric == PALETTE else None
    channels = 4 if alpha else 1 if layout.photometric in tiff.GREY else 3
    pixels = np.empty((page.height, page.width, channels), np.uint8)
    for top, values in page.bands():
        band = pixels[top : top + len(values)]
        if palette is None:
            levels = colour_range.levels(values[..., :colours])
        else:
            levels = palette[values[..., 0].astype(np.intp)]
        if alpha:
            band[..., 3:] = alpha_range.levels(values[..., alpha : alpha + 1])
            if premultiplied and layout.photometric != RGB:
                levels = _divided(levels, band[..., 3:])
        if layout.photometric == WHITE_IS_ZERO:
            levels = 255 - levels
        elif layout.photometric == CMYK:
            levels = np.asarray(Image.fromarray(levels, "CMYK").convert("RGB"))
        band[..., : min(channels, 3)] = levels
    mode = "RGBa" if alpha and premultiplied and layout.photometric == RGB else _MODES[channels]
    return Image.frombuffer(mode, (page.width, page.height), pixels, "raw", mode, 0, 1)


def _alpha(layout: Layout, colours: int) -> tuple[int, bool]:
    """Return the index of the alpha sample or 0, and whether the colours are premultiplied."""
    for index, meaning in enumerate(layout.extra):
        if meaning in (_ASSOCIATED, _UNASSOCIATED, _COREL) and colours + index < layout.samples:
            return colours + index, meaning == _ASSOCIATED and layout.photometric != PALETTE
    undescribed = not layout.extra and layout.samples == colours + 1 and colours in (1, 3)
    return (colours if undescribed else 0), False


def _range(layout: Layout, page: "_Page", first: int, stop: int) -> _Range:
    """Return the range of the values of some samples."""
    bits, largest = layout.bits, layout.largest
    if layout.format == "f":
        return _Range(0, 1 if page.extremes(first, stop)[1] <= _UNIT else 255)
    highest = 2 ** (bits - (layout.format == "i")) - 1
    if 0 < largest < highest and (bits > 8 or not largest & (largest + 1)):  # with 8 bits it is often a statistic
        return _Range(0, largest)
    if bits < 32 and layout.format == "u":
        return _Range(0, highest)
    low, high = page.extremes(first, stop)
    step = (highest + 1) >> 7 if layout.format == "i" else (highest + 1) >> 8
    if bits == 32 and max(-low, high) < 2**24:
        return _Range(0, 0xFFFF)
    return _Range(-highest - 1 if low <= -step else 0, highest)


def _palette(directory: Directory, layout: Layout) -> Levels:
    """Return the colours of the palette. Some writers store them with 8 bits instead of 16."""
    size = 2**layout.bits
    colours = np.array(directory.numbers(tags.COLOUR_MAP, 3 * size), np.uint16)
    if len(colours) < 3 * size:
        raise UndecodableImage(f"the colour map of the TIFF has less than {size} colours")
    return (colours if colours.max() < 256 else colours >> 8).astype(np.uint8).reshape(3, size).T


def _divided(levels: Levels, alpha: Levels) -> Levels:
    """Divide premultiplied colours by alpha."""
    return np.minimum(levels.astype(np.uint16) * 255 // np.maximum(alpha, 1), 255).astype(np.uint8)


class _Page:
    """The samples of a page."""

    def __init__(self, data: bytes) -> None:
        self.directory = Directory(data)
        self.layout = tiff.read_layout(self.directory)
        self.width, self.height = self.directory.number(tags.WIDTH), self.directory.number(tags.HEIGHT)
        self._samples = 1 if self.layout.separate else self.layout.samples  # of a plane
        self._unit = self.directory.number(tags.TILE_WIDTH) or self.width  # pixels per row of a tile or strip
        self._units = -(-self.width // self._unit)
        planes = self.layout.samples if self.layout.separate else 1
        self._planes = [self._unpacked(plane, planes) for plane in range(planes)]

    def bands(self) -> Iterator[tuple[int, Values]]:
        """Yield the first row and the values of shape [rows, width, samples] of each band."""
        rows = max(1, _BAND // self._planes[0].width)
        for top in range(0, self.height, rows):
            box = 0, top, self._planes[0].width, min(top + rows, self.height)
            values = [self._values(np.asarray(plane.crop(box))) for plane in self._planes]
            yield top, np.concatenate(values, axis=2) if len(values) > 1 else values[0]

    def extremes(self, first: int, stop: int) -> tuple[float, float]:
        """Return the lowest and the highest finite value of some samples."""
        low, high = 0.0, 0.0
        for _, values in self.bands():
            chosen = values[..., first:stop]
            if chosen.dtype.kind == "f":
                chosen = np.nan_to_num(chosen, nan=0, posinf=0, neginf=0).astype(np.float64)
            low, high = min(low, chosen.min().item()), max(high, chosen.max().item())
        return low, high

    def _unpacked(self, plane: int, planes: int) -> Image.Image:
        """Return the rows of a plane as an image of mode L whose pixels are bytes."""
        directory, row = self.directory, -(-self._unit * self._samples * self.layout.bits // 8)
        numbers = {
            tags.WIDTH: [row * self._units],
            tags.HEIGHT: [self.height],
            tags.BITS: [8],
            tags.COMPRESSION: [self.layout.compression],
            tags.PHOTOMETRIC: [tiff.BLACK_IS_ZERO],
            tags.FILL_ORDER: [directory.number(tags.FILL_ORDER, 1)],
            tags.SAMPLES: [1],
        }
        if directory.number(tags.TILE_WIDTH):
            numbers |= {tags.TILE_WIDTH: [row], tags.TILE_HEIGHT: [directory.number(tags.TILE_HEIGHT)]}
        else:
            numbers[tags.ROWS_PER_STRIP] = [directory.number(tags.ROWS_PER_STRIP, self.height)]
        for tag in (tags.STRIPS, tags.STRIP_BYTES, tags.TILES, tags.TILE_BYTES):
            if found := directory.numbers(tag, tiff.MAX_STRIPS):
                size = len(found) // planes
                numbers[tag] = found[plane * size : (plane + 1) * size]
        with Image.open(io.BytesIO(directory.file((), numbers)), formats=["TIFF"]) as image:
            image.load()
            return image

    def _values(self, rows: Levels) -> Values:
        """Return the values of shape [rows, width, samples] of rows of bytes."""
        layout, unit = self.layout, (len(rows), self._units, -1)
        numbers = self._floats(rows.reshape(unit)) if layout.predictor == 3 else self._integers(rows.reshape(unit))
        values = numbers.reshape(len(rows), self._units, self._unit, self._samples)
        if layout.predictor == 2:
            values = np.cumsum(values, axis=2, dtype=values.dtype)
        if layout.format != "u":
            values = values.view(f"{layout.format}{layout.bits // 8}")
        return values.reshape(len(rows), -1, self._samples)[:, : self.width]

    def _integers(self, rows: Levels) -> Values:
        """Return the unsigned integers in rows of bytes. Other sizes than whole bytes are packed, high bits first."""
        bits, count = self.layout.bits, self._unit * self._samples
        if bits in (8, 16, 32, 64):
            return rows.view(f"{self.directory.order}u{bits // 8}").astype(f"u{bits // 8}")
        if bits == 24 and self.directory.order == "<":
            rows = rows.reshape(*rows.shape[:2], count, 3)[..., ::-1].reshape(rows.shape)
        start = np.arange(count) * bits
        length = (bits + 14) // 8  # bytes that a value may touch
        number = np.zeros((*rows.shape[:2], count), np.uint64)
        for byte in range(length):
            number = number << 8 | rows[..., np.minimum((start >> 3) + byte, rows.shape[2] - 1)]
        return number >> (8 * length - bits - (start & 7)).astype(np.uint64) & np.uint64(2**bits - 1)

    def _floats(self, rows: Levels) -> Values:
        """Undo the floating-point predictor (Adobe's technical note 3): bytes of equal weight are stored together."""
        shape, size = rows.shape[:2], self.layout.bits // 8
        summed = np.cumsum(rows.reshape(*shape, -1, self._samples), axis=2, dtype=np.uint8)
        planes = summed.reshape(*shape, size, -1)
        return np.ascontiguousarray(np.moveaxis(planes, 2, 3)).view(f">u{size}")[..., 0].astype(f"u{size}")
