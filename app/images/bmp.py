"""BMP header parser: Microsoft's BITMAPINFOHEADER and OS/2's BITMAPCOREHEADER."""

import struct

from app.images.header import Header

_CORE_HEADER = 12  # bytes
_INFO_HEADER, _INFO_HEADER_3 = 40, 56  # bytes; the latter is the former with four masks
_RUN_LENGTH = (1, 2)  # RLE8 and RLE4, which Pillow decodes in Python
_BIT_FIELDS, _ALPHA_BIT_FIELDS = 3, 6
_COLOURS_PER_PART = 8  # Pillow reads a palette one colour at a time, and a header may state 65 536 colours


def parse(data: bytes) -> Header:
    """Parse the header of a BMP file. Raises struct.error if the header is truncated."""
    [size] = struct.unpack_from("<I", data, 14)
    if size == _CORE_HEADER:
        width, height = struct.unpack_from("<HH", data, 18)
        return Header(data, "BMP", width, height, orientation=1, channels=3)
    width, height, bits, compression = struct.unpack_from("<Ii2xHI", data, 18)
    [colours] = struct.unpack_from("<I", data, 46)
    if compression == _ALPHA_BIT_FIELDS:
        data, compression = _with_bit_fields(data, size), _BIT_FIELDS
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


def _with_bit_fields(data: bytes, size: int) -> bytes:
    """Return the file with the compression BI_BITFIELDS, which Pillow knows, instead of BI_ALPHABITFIELDS."""
    size = _INFO_HEADER_3 if size == _INFO_HEADER else size
    return data[:14] + struct.pack("<I", size) + data[18:30] + struct.pack("<I", _BIT_FIELDS) + data[34:]
