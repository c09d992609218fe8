"""BMP files: the information header (Microsoft's BITMAPINFOHEADER, OS/2's BITMAPCOREHEADER)."""

import struct

from app.images.header import Header

_CORE_HEADER = 12  # bytes
_RUN_LENGTH = (1, 2)  # RLE8, RLE4: Pillow decodes them in Python


def parse(data: bytes) -> Header:
    """The header of a BMP. Raises struct.error for a file that ends within it."""
    [size] = struct.unpack_from("<I", data, 14)
    if size == _CORE_HEADER:
        width, height = struct.unpack_from("<HH", data, 18)
        return Header(data, "BMP", width, height, orientation=1, channels=3)
    width, height, bits, compression = struct.unpack_from("<Ii2xHI", data, 18)
    variant = "run-length" if compression in _RUN_LENGTH else ""
    return Header(data, "BMP", width, abs(height), orientation=1, channels=4 if bits == 32 else 3, variant=variant)
