"""The first directory of a TIFF file (TIFF 6.0, BigTIFF) or of an EXIF block, which has the same structure."""

import struct
from collections.abc import Iterable, Mapping, Sequence

from app.errors import UndecodableImage

_MAX_TAGS = 4096

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, SAMPLES = 256, 257, 258, 259, 262, 266, 277
STRIPS, ROWS_PER_STRIP, STRIP_BYTES = 273, 278, 279
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES = 322, 323, 324, 325
MAX_SAMPLE, PLANES, PREDICTOR, COLOUR_MAP, INKS, EXTRA_SAMPLES, SAMPLE_FORMAT = 281, 284, 317, 320, 332, 338, 339
_ORIENTATION = 0x0112

_ENTRY = ("HHL4s", "HHQ8s")  # TIFF 6.0, BigTIFF
_INTEGERS = {1: "B", 3: "H", 4: "L", 16: "Q"}  # by type: BYTE, SHORT, LONG, LONG8
_ANY_INTEGER = _INTEGERS | {6: "b", 8: "h", 9: "l", 17: "q"}  # and SBYTE, SSHORT, SLONG, SLONG8

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

    def file(self, entries: Iterable[Entry], numbers: Mapping[int, Sequence[int]]) -> bytes:
        """Return the file with another directory behind its data: these entries, and new ones of these integers."""
        data, order, big = self.data, self.order, self.big
        pointer, kind, inline = ("Q", 16, 8) if big else ("L", 4, 4)
        parts: list[bytes | memoryview] = [data[:inline], b"", memoryview(data)[2 * inline :], bytes(len(data) % 2)]
        packed = {entry[0]: struct.pack(order + _ENTRY[big], *entry) for entry in entries}
        end = len(data) + len(data) % 2
        for tag, values in numbers.items():
            value = struct.pack(f"{order}{len(values)}{pointer}", *values)
            if len(value) > inline:
                parts.append(value)
                end += len(value)
                value = struct.pack(order + pointer, end - len(value))
            packed[tag] = struct.pack(order + _ENTRY[big], tag, kind, len(values), value)
        parts[1] = struct.pack(order + pointer, end)
        parts.append(struct.pack(order + ("Q" if big else "H"), len(packed)))
        return b"".join((*parts, *[packed[tag] for tag in sorted(packed)], bytes(inline)))


def exif_orientation(exif: bytes) -> int:
    """Return the orientation tag of an EXIF block or a TIFF file, which may be an integer of any type.

    Returns 1 if the tag is missing or invalid.
    """
    try:
        for tag, kind, count, value in (directory := Directory(exif.removeprefix(b"Exif\0\0"))).entries:
            if tag == _ORIENTATION and kind in _ANY_INTEGER and count == 1:
                return int(struct.unpack_from(directory.order + _ANY_INTEGER[kind], value)[0])
    except (KeyError, OverflowError, struct.error, UndecodableImage):
        pass  # the image may be valid even if its EXIF block is not
    return 1
