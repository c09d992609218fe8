"""GIF files: the screen and the first frame (GIF89a specification)."""

import re
import struct
from dataclasses import dataclass, field

from app.errors import UndecodableImage
from app.images.header import Header

_SCREEN = 13  # bytes of header and logical screen descriptor
_BLOCK = re.compile(rb"[!,;]")  # extension, image, trailer; Pillow skips everything else byte by byte
_GRAPHIC_CONTROL = 0xF9
_MAX_BLOCKS = 65_535
_MAX_EXTENSIONS = 1024  # bytes before the first frame that are not worth a copy of the file


@dataclass(slots=True)
class _Blocks:
    """Reads sub-blocks, up to a number of them in all."""

    data: bytes
    left: int = field(default=_MAX_BLOCKS)

    def end(self, position: int) -> int:
        """Where the sub-blocks that start here end. Raises UndecodableImage, IndexError."""
        while length := self.data[position]:
            position += 1 + length
            self.left -= 1
            if self.left < 0:
                raise UndecodableImage(f"the GIF has more than {_MAX_BLOCKS} blocks before its first frame")
        return position + 1


def parse(data: bytes) -> Header:
    """The header of a GIF. Raises UndecodableImage; struct.error and IndexError for a file that ends within it."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    head = position = _SCREEN + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    blocks, control = _Blocks(data), b""
    while match := _BLOCK.search(data, position):
        start = match.start()
        if match[0] == b";":
            break
        if match[0] == b",":
            left, top, frame_width, frame_height = struct.unpack_from("<4H", data, start + 1)
            if start - head > _MAX_EXTENSIONS:
                data = b"".join((data[:head], control, data[start:]))
            size = max(width, left + frame_width), max(height, top + frame_height)
            return Header(data, "GIF", *size, orientation=1, parts=_MAX_BLOCKS - blocks.left, channels=4)
        position = blocks.end(start + 2)
        if data[start + 1] == _GRAPHIC_CONTROL:
            control = data[start:position]
    raise UndecodableImage("the GIF has no frame")
