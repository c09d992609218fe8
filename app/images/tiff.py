"""TIFF header parser (TIFF 6.0, BigTIFF).

The directory of a TIFF is replaced by a new one. The new directory has only the tags that the first page needs. A kind
of TIFF that is not decoded is refused here, with the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass

from app.errors import UndecodableImage, UnsupportedMediaType
from app.images import directory as tags
from app.images.directory import Directory, Entry, exif_orientation
from app.images.header import Header

MAX_STRIPS = 20_000  # or tiles
_MAX_COLOURS = 3 * 65_536  # values of a colour map
_MAX_SAMPLES = 32  # per pixel
_MAX_BITS = 64  # per sample
_BYTES_PER_VALUE = 96  # of a row, while ``samples`` converts it

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, _YCBCR: 3, _LAB: 3}
"""Samples per pixel without the extra ones, by photometric interpretation."""
GREY = (WHITE_IS_ZERO, BLACK_IS_ZERO)
_COLOUR_SPACES = {
    4: "a transparency mask",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "a colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
SAMPLES = "samples"
"""The variant of a header whose samples Pillow does not show as viewers do."""

_JPEG = 7
_CCITT = (2, 3, 4)
_LOSSLESS = frozenset({1, 5, 8, 32773, 32946, 34925, 50000})  # none, LZW, deflate, PackBits, LZMA, Zstandard
_OF_PILLOW = frozenset({*_CCITT, 6, _JPEG, 32771, 32809, 50001})  # fax, JPEG, ThunderScan, WebP
_COMPRESSIONS = {
    **dict.fromkeys((33003, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((34676, 34677), "LogLuv"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
    34661: "JBIG",
    34887: "LERC",
    34892: "lossy JPEG",
    34933: "PNG",
    34934: "JPEG XR",
}
_FORMATS = {1: "u", 2: "i", 3: "f", 4: "u"}  # by SampleFormat; 4 is undefined
_BITS = {"u": range(1, 33), "i": (8, 16, 32), "f": (16, 32, 64)}
_PREDICTED = {1: range(1, _MAX_BITS + 1), 2: (8, 16, 32, 64), 3: (16, 32, 64)}  # bits, by Predictor
# Tags that describe pixels: size, bits, colours, compression (CCITT, predictor, JPEG), strips, tiles, alpha
_KEPT = frozenset({256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 281, 284, 292, 293, 317, 320, 322, 323, 324, 325})
_KEPT |= {332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532, 50674}


@dataclass(frozen=True, slots=True)
class Layout:
    """The samples of a page.

    ``bits`` is the size of a sample, ``format`` is u (unsigned), i (signed) or f (floating point). ``extra`` states the
    meaning of the samples behind the colours (ExtraSamples); the file may state fewer than it has. ``largest`` is
    MaxSampleValue, or 0. ``separate`` is true if each sample has its own plane.
    """

    samples: int
    bits: int
    format: str
    photometric: int
    extra: tuple[int, ...]
    compression: int
    predictor: int
    separate: bool
    largest: int

    @property
    def is_plain(self) -> bool:
        """Whether Pillow decodes these samples as viewers show them."""
        if self.compression not in _LOSSLESS or self.photometric in (_YCBCR, _LAB):
            return True
        one_bit = self.bits == 1 and self.photometric in GREY
        eight_bits = self.bits == 8 and self.photometric != PALETTE and not self.largest
        usual = self.format == "u" and self.samples == COLOURS[self.photometric] and not self.separate
        return usual and (one_bit or eight_bits)


def parse(data: bytes) -> Header:
    """Parse the header of a TIFF file.

    Raises UndecodableImage, UnsupportedMediaType, and the errors of ``Directory``.
    """
    directory = Directory(data)
    width, height = directory.number(tags.WIDTH), directory.number(tags.HEIGHT)
    across, down = directory.number(tags.TILE_WIDTH), directory.number(tags.TILE_HEIGHT)
    stored = width * height
    if across and down:  # a decoder holds whole tiles, even if the image is smaller
        stored = -(-width // across) * across * -(-height // down) * down
    samples = directory.number(tags.SAMPLES, 1)
    if samples > _MAX_SAMPLES:
        raise UndecodableImage(f"the TIFF has {samples} samples per pixel; the limit is {_MAX_SAMPLES}")
    layout = read_layout(directory)
    unpacked = stored * samples * layout.bits // 8
    if not layout.is_plain:
        unpacked = 2 * unpacked + width * samples * _BYTES_PER_VALUE
    grey = samples == 1 and layout.bits == 8 and layout.photometric in GREY
    return Header(
        _with_own_directory(directory),
        "TIFF",
        width,
        height,
        bounded=False,
        orientation=exif_orientation(data),
        channels=1 if grey else 4,
        stored=stored,
        buffer=unpacked,
        variant="" if layout.is_plain else SAMPLES,
    )


def read_layout(directory: Directory) -> Layout:
    """Read what the samples are.

    Raises UnsupportedMediaType if they are not decoded, and UndecodableImage if there are fewer samples than colours.
    """
    compression = directory.number(tags.COMPRESSION, 1)
    if compression not in _LOSSLESS | _OF_PILLOW:
        raise _unsupported(f"{_COMPRESSIONS.get(compression, f'unknown (number {compression})')} compression")
    samples = directory.number(tags.SAMPLES, 1)
    photometric = directory.number(tags.PHOTOMETRIC, _guess(compression, samples))
    if photometric not in COLOURS or directory.number(tags.INKS, 1) != 1:
        inks = "inks other than CMYK" if photometric == CMYK else f"an unknown colour space (number {photometric})"
        raise _unsupported(_COLOUR_SPACES.get(photometric, inks))
    if samples < COLOURS[photometric]:
        raise UndecodableImage(f"the TIFF has {samples} samples per pixel; its colours need {COLOURS[photometric]}")
    sizes = directory.numbers(tags.BITS, samples) or [1]
    formats = directory.numbers(tags.SAMPLE_FORMAT, samples) or [1]
    if len(set(sizes)) > 1 or len(set(formats)) > 1:
        raise _unsupported(f"samples of different kinds ({', '.join(map(str, sizes))} bits)")
    bits, format, predictor = sizes[0], _FORMATS.get(formats[0]), directory.number(tags.PREDICTOR, 1)
    if format is None or bits not in _BITS[format]:
        kind = {"u": "", "i": "signed ", "f": "floating-point ", None: "complex "}[format]
        raise _unsupported(f"{kind}samples of {bits} bits")
    if bits not in _PREDICTED.get(predictor, ()):
        raise _unsupported(f"predictor {predictor} for samples of {bits} bits")
    if photometric in (_YCBCR, _LAB) and (bits != 8 or format != "u" or samples > 3):
        raise _unsupported(f"{samples} samples of {bits} bits in YCbCr or L*a*b*")
    return Layout(
        samples,
        bits,
        format,
        photometric,
        tuple(directory.numbers(tags.EXTRA_SAMPLES, samples)),
        compression,
        predictor,
        directory.number(tags.PLANES, 1) == 2 and samples > 1,
        max(directory.numbers(tags.MAX_SAMPLE, samples), default=0),
    )


def check_streams(data: bytes, check: Callable[[bytes], None]) -> None:
    """Call ``check`` with each JPEG stream in the strips and tiles of a TIFF file. Raises the errors of ``check``."""
    directory = Directory(data)
    if directory.number(tags.COMPRESSION) != _JPEG:
        return
    for places, lengths in ((tags.STRIPS, tags.STRIP_BYTES), (tags.TILES, tags.TILE_BYTES)):
        starts, sizes = directory.numbers(places, MAX_STRIPS), directory.numbers(lengths, MAX_STRIPS)
        for start, size in zip(starts, sizes, strict=False):
            check(data[start : start + size])


def _guess(compression: int, samples: int) -> int:
    """Return the photometric interpretation of a file that states none, as libtiff guesses it."""
    if samples >= COLOURS[RGB]:
        return RGB
    return WHITE_IS_ZERO if compression in _CCITT else BLACK_IS_ZERO


def _unsupported(what: str) -> UnsupportedMediaType:
    return UnsupportedMediaType(f"TIFF with {what} is not supported; save it with 8 bits per sample, in grey or RGB")


def _with_own_directory(directory: Directory) -> bytes:
    kept: dict[int, Entry] = {}
    for entry in directory.entries:
        tag, _, count, _ = entry
        if tag in _KEPT and tag not in kept:
            if count > (_MAX_COLOURS if tag == tags.COLOUR_MAP else MAX_STRIPS):
                raise UndecodableImage(f"the TIFF has more than {MAX_STRIPS} strips or tiles")
            kept[tag] = entry
    guess = _guess(directory.number(tags.COMPRESSION, 1), directory.number(tags.SAMPLES, 1))
    return directory.file(kept.values(), {} if tags.PHOTOMETRIC in kept else {tags.PHOTOMETRIC: [guess]})
