"""TIFF header parser (TIFF 6.0, BigTIFF), also for EXIF blocks, which have the same structure.

The directory of a TIFF is replaced by a new one. The new directory has only the tags that the first page needs.
"""

import struct
from collections.abc import Callable

from app.errors import UndecodableImage
from app.images.header import Header

_MAX_TAGS = 4096
_MAX_STRIPS = 20_000  # or tiles
_MAX_SAMPLES = 32  # per pixel
_MAX_BITS = 64  # per sample

_ENTRY = ("HHL4s", "HHQ8s")  # TIFF 6.0, BigTIFF
_GREY = (0, 1)  # WhiteIsZero, BlackIsZero
_PHOTOMETRIC = 262
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ORIENTATION = 256, 257, 258, 259, 277, 0x0112
_STRIPS, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 273, 279, 322, 323, 324, 325
_JPEG = 7
# Tags that describe pixels: size, bits, colours, compression (CCITT, predictor, JPEG), strips, tiles, alpha
_KEPT = frozenset({256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325})
_KEPT |= {332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532, 50674}
_INTEGERS = {1: "B", 3: "H", 4: "L", 16: "Q"}  # by type: BYTE, SHORT, LONG, LONG8

Entry = tuple[int, int, int, bytes]
"""Tag, type, count, and the value or its offset."""


class Directory:
    """The first directory of a TIFF file or an EXIF block.

    Raises KeyError, OverflowError or struct.error if there is no directory, UndecodableImage for too many tags.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.order = {b"II": "<", b"MM": ">"}[data[:2]]
        self.big = struct.unpack_from(self.order + "H", data, 2)[0] == 43
        (start,) = struct.unpack_from(self.order + ("Q" if self.big else "L"), data, 8 if self.big else 4)
        (count,) = struct.unpack_from(self.order + ("Q" if self.big else "H"), data, start)
        if count > _MAX_TAGS:
            raise UndecodableImage(f"the TIFF has more than {_MAX_TAGS} tags")
        start += 8 if self.big else 2
        entry = struct.Struct(self.order + _ENTRY[self.big])
        whole = data[start : start + count * entry.size]
        self.entries: list[Entry] = list(entry.iter_unpack(whole[: len(whole) // entry.size * entry.size]))

    def numbers(self, tag: int, most: int = 1) -> list[int]:
        """Return up to ``most`` integers of the first entry of a tag. Empty if there is no such entry."""
        for found, kind, count, value in self.entries:
            if found == tag and kind in _INTEGERS:
                number = struct.Struct(self.order + _INTEGERS[kind])
                count = min(count, most)
                if count * number.size > len(value):
                    [at] = struct.unpack(self.order + ("Q" if self.big else "L"), value)
                    value = self.data[at : at + count * number.size]
                return [number.unpack_from(value, at)[0] for at in range(0, count * number.size, number.size)]
        return []

    def number(self, tag: int, default: int = 0) -> int:
        """Return the first integer of a tag."""
        return next(iter(self.numbers(tag)), default)


def parse(data: bytes) -> Header:
    """Parse the header of a TIFF file. Raises UndecodableImage, and the errors of ``Directory``."""
    directory = Directory(data)
    width, height = directory.number(_WIDTH), directory.number(_HEIGHT)
    across, down = directory.number(_TILE_WIDTH), directory.number(_TILE_HEIGHT)
    stored = width * height
    if across and down:  # a decoder holds whole tiles, even if the image is smaller
        stored = -(-width // across) * across * -(-height // down) * down
    samples = directory.number(_SAMPLES, 1)
    if samples > _MAX_SAMPLES:
        raise UndecodableImage(f"the TIFF has {samples} samples per pixel; the limit is {_MAX_SAMPLES}")
    bits = min(max(directory.numbers(_BITS, samples), default=1), _MAX_BITS)
    return Header(
        _with_own_directory(directory),
        "TIFF",
        width,
        height,
        bounded=False,
        orientation=exif_orientation(data),
        channels=1 if samples == 1 and bits == 8 and directory.number(_PHOTOMETRIC) in _GREY else 4,
        stored=stored,
        buffer=stored * samples * bits // 8,
    )


def check_streams(data: bytes, check: Callable[[bytes], None]) -> None:
    """Call ``check`` with each JPEG stream in the strips and tiles of a TIFF file. Raises the errors of ``check``."""
    directory = Directory(data)
    if directory.number(_COMPRESSION) != _JPEG:
        return
    for places, lengths in ((_STRIPS, _STRIP_BYTES), (_TILES, _TILE_BYTES)):
        starts, sizes = directory.numbers(places, _MAX_STRIPS), directory.numbers(lengths, _MAX_STRIPS)
        for start, size in zip(starts, sizes, strict=False):
            check(data[start : start + size])


def exif_orientation(exif: bytes) -> int:
    """Return the orientation tag of an EXIF block or a TIFF file. Returns 1 if the tag is missing or invalid."""
    try:
        for tag, kind, count, value in (directory := Directory(exif.removeprefix(b"Exif\0\0"))).entries:
            if tag == _ORIENTATION and kind in (3, 4) and count == 1:
                return int(struct.unpack_from(directory.order + _INTEGERS[kind], value)[0])
    except (KeyError, OverflowError, struct.error, UndecodableImage):
        pass  # the image may be valid even if its EXIF block is not
    return 1


def _with_own_directory(directory: Directory) -> bytes:
    data, order, big = directory.data, directory.order, directory.big
    kept: dict[int, bytes] = {}
    for tag, kind, count, value in directory.entries:
        if tag in _KEPT and tag not in kept:
            if count > _MAX_STRIPS:
                raise UndecodableImage(f"the TIFF has more than {_MAX_STRIPS} strips or tiles")
            kept[tag] = struct.pack(order + _ENTRY[big], tag, kind, count, value)
    padding = bytes(len(data) % 2)
    pointer, number = ("Q", "Q") if big else ("L", "H")
    head = (data[: 8 if big else 4], struct.pack(order + pointer, len(data) + len(padding)))
    tail = (padding, struct.pack(order + number, len(kept)), *kept.values(), struct.pack(order + pointer, 0))
    return b"".join((*head, memoryview(data)[16 if big else 8 :], *tail))
