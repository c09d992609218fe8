"""What a decode costs, predicted from the header: seconds of one core, and bytes of memory.

The constants are upper envelopes of measurements on one core of a 2025 server: flat colour, photographs and noise of
8.6 million pixels in every mode (alpha, palette, 16-bit).
"""

from app.images.geometry import Preprocessing, jpeg_scale
from app.images.header import Header

# Seconds a pixel and a byte of the file
_SECONDS = {
    "JPEG": (4.5e-9, 7e-9),
    "PNG": (10e-9, 15e-9),
    "WEBP": (15e-9, 25e-9),
    "AVIF": (12e-9, 62e-9),
    "HEIF": (14e-9, 88e-9),
    "GIF": (6e-9, 6e-9),
    "TIFF": (7e-9, 2e-9),
    "BMP": (5e-9, 0.0),
}
_SECONDS_A_FILE = 0.6e-3  # opening it, resizing the crop
_SECONDS_IN_SANDBOX = 3e-3  # there and back, and the memory that a child touches first
_SECONDS_A_PART = 8e-6
_SECONDS_A_ROW = 100e-9
_SECONDS_PER_PIXEL_AND_SCAN = 0.3e-9  # a progressive JPEG is scanned whole, at any scale
_SECONDS_PER_BYTE_PROGRESSIVE = 26e-9
_SECONDS_PER_BYTE_LOSSLESS = 12e-9
_SECONDS_PER_BYTE_BUFFERED = 1e-9  # of coefficients or tiles
_SECONDS_RUN_LENGTH = (50e-9, 250e-9)  # Pillow decodes run-length coded BMPs in Python

# Bytes a pixel at the peak, by channels: Pillow's picture, what it is converted to, and a copy turned upright
_BYTES = {1: 4, 3: 12, 4: 16}
_BYTES_DEEP = 12
_BYTES_A_ROW, _BYTES_A_COLUMN = 48, 16  # Pillow's rows begin at pointers of their own; codecs hold two rows
_BYTES_OF_CODEC = {"WEBP": 8, "AVIF": 16, "HEIF": 16}  # frames of the codec, and their way into Pillow
_BYTES_A_FILE = 4 * 2**20
_BYTES_OF_LIBRARY = {"HEIF": 16 * 2**20, "AVIF": 8 * 2**20}  # tables, and the stacks of its threads


def decode_seconds(header: Header, preprocessing: Preprocessing, fast: bool) -> float:
    """Predicted seconds of one core to turn the file into a crop."""
    per_pixel, per_byte = _SECONDS[header.format]
    if header.format == "JPEG":
        per_pixel /= _scale(header, preprocessing, fast)
        if header.progressive:
            per_pixel += header.scans * _SECONDS_PER_PIXEL_AND_SCAN
            per_byte = _SECONDS_PER_BYTE_PROGRESSIVE
    if header.format == "WEBP" and header.variant == "lossless":
        per_byte = _SECONDS_PER_BYTE_LOSSLESS
    if header.variant == "run-length":
        per_pixel, per_byte = _SECONDS_RUN_LENGTH
    fixed = (_SECONDS_A_FILE if header.bounded else _SECONDS_IN_SANDBOX) + header.parts * _SECONDS_A_PART
    buffered = header.buffer * _SECONDS_PER_BYTE_BUFFERED + header.height * _SECONDS_A_ROW
    return fixed + header.pixels * per_pixel + len(header.data) * per_byte + buffered


def decode_bytes(header: Header, preprocessing: Preprocessing, fast: bool) -> int:
    """Bytes of memory that the decode of this file may take at its peak, the file itself included."""
    a_pixel = _BYTES_DEEP if header.variant == "deep" else _BYTES.get(header.channels, _BYTES[4])
    pixels = header.pixels // _scale(header, preprocessing, fast) ** 2
    codec = header.pixels * _BYTES_OF_CODEC.get(header.format, 0) + _BYTES_OF_LIBRARY.get(header.format, 0)
    edges = header.height * _BYTES_A_ROW + header.width * _BYTES_A_COLUMN
    return _BYTES_A_FILE + 3 * len(header.data) + pixels * a_pixel + edges + header.buffer + codec


def _scale(header: Header, preprocessing: Preprocessing, fast: bool) -> int:
    return jpeg_scale(header.width, header.height, preprocessing) if fast and header.format == "JPEG" else 1
