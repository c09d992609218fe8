"""GIF header parser: the logical screen and the first frame (GIF89a specification)."""

import re
import struct

from app.errors import UndecodableImage
from app.images.header import Header

_SCREEN = 13  # bytes of header and logical screen descriptor
_BLOCK = re.compile(rb"[!,;]")  # extension, image, trailer; Pillow skips all other bytes one by one
_GRAPHIC_CONTROL = 0xF9
_MAX_BLOCKS = 8192  # extensions and their sub-blocks before the first frame, plus one for each 128 bytes of the file
_MAX_GAP = 65_536  # bytes to search for the next block
_MAX_EXTENSIONS = 1024  # bytes before the first frame; with fewer, the file is not copied


class _Blocks:
    """Skips extensions and counts their blocks. Raises UndecodableImage if there are too many, and IndexError."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.count = 0
        self._most = _MAX_BLOCKS + len(data) // 128

    def end(self, position: int) -> int:
        """Return the end of the extension whose sub-blocks start at ``position``."""
        self._count()
        while length := self.data[position]:
            position += 1 + length
            self._count()
        return position + 1

    def _count(self) -> None:
        self.count += 1
        if self.count > self._most:
            raise UndecodableImage(f"the GIF has more than {self._most} blocks before its first frame")


def parse(data: bytes) -> Header:
    """Parse the header of a GIF file.

    Raises UndecodableImage. Raises struct.error or IndexError if the header is truncated.
    """
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    head = position = _SCREEN + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    blocks, control = _Blocks(data), b""
    while match := _BLOCK.search(data, position, position + _MAX_GAP):
        start = match.start()
        if match[0] == b";":
            break
        if match[0] == b",":
            left, top, frame_width, frame_height = struct.unpack_from("<4H", data, start + 1)
            parts = blocks.count
            if start - head > _MAX_EXTENSIONS:
                data, parts = b"".join((data[:head], control, data[start:])), 1
            size = max(width, left + frame_width), max(height, top + frame_height)
            return Header(data, "GIF", *size, orientation=1, parts=parts, channels=4)
        position = blocks.end(start + 2)
        if data[start + 1] == _GRAPHIC_CONTROL:
            control = data[start:position]
    raise UndecodableImage("the GIF has no frames")
