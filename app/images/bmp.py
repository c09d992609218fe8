"""BMP header parser: Microsoft's BITMAPINFOHEADER and OS/2's BITMAPCOREHEADER."""

import struct

from app.images.header import Header

_CORE_HEADER = 12  # bytes
_RUN_LENGTH = (1, 2)  # RLE8 and RLE4, which Pillow decodes in Python
_COLOURS_PER_PART = 8  # Pillow reads a palette one colour at a time, and a header may state 65 536 colours


def parse(data: bytes) -> Header:
    """Parse the header of a BMP file. Raises struct.error if the header is truncated."""
    [size] = struct.unpack_from("<I", data, 14)
    if size == _CORE_HEADER:
        width, height = struct.unpack_from("<HH", data, 18)
        return Header(data, "BMP", width, height, orientation=1, channels=3)
    width, height, bits, compression = struct.unpack_from("<Ii2xHI", data, 18)
    [colours] = struct.unpack_from("<I", data, 46)
    run_length = compression in _RUN_LENGTH
    return Header(
        data,
        "BMP",
        width,
        abs(height),
        bounded=not run_length,
        orientation=1,
        parts=min(colours, 65_536) // _COLOURS_PER_PART,
        channels=4 if bits == 32 else 3,
        variant="run-length" if run_length else "",
    )
