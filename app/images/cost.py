"""Predicts the cost of a decode from the header: seconds on one core, and bytes of memory.

The constants are upper bounds of measurements on one core of a 2025 server. The test images had 8.6 million pixels of
flat colour, photographs and noise, in every mode (alpha, palette, 16-bit).
"""

from app.images.geometry import Preprocessing, jpeg_scale
from app.images.header import Header
from app.images.tiff import SAMPLES

# Seconds per pixel and seconds per byte of the file
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
_SECONDS_PER_FILE = 0.6e-3  # to open the file and resize the crop
_SECONDS_IN_SANDBOX = 3e-3  # the round trip, and the page faults of the child
_SECONDS_PER_PART = 8e-6
_SECONDS_PER_ROW = 100e-9
_SECONDS_PER_PIXEL_AND_SCAN = 0.3e-9  # every scan of a progressive JPEG covers all pixels, at any scale
_SECONDS_PER_BYTE_PROGRESSIVE = 26e-9
_SECONDS_PER_BYTE_LOSSLESS = 12e-9
_SECONDS_PER_BYTE_BUFFERED = 1e-9  # of coefficients or tiles; see Header.buffer
_SECONDS_OF_SAMPLES = (25e-9, 4e-9)  # per pixel and per byte of ``Header.buffer``: numpy converts them
_SECONDS_RUN_LENGTH = (50e-9, 250e-9)  # per pixel and per byte: Pillow decodes these BMPs in Python

# Peak bytes per pixel, by channels: Pillow's image, the converted image, and a copy turned upright
_BYTES = {1: 4, 3: 12, 4: 16}
_BYTES_DEEP = 12
_BYTES_PER_ROW, _BYTES_PER_COLUMN = 48, 16  # Pillow keeps a pointer per row; codecs hold two rows
_BYTES_OF_CODEC = {"WEBP": 8, "AVIF": 16, "HEIF": 16}  # the frames of the codec, and the copies for Pillow
_BYTES_PER_FILE = 4 * 2**20
_BYTES_OF_LIBRARY = {"HEIF": 16 * 2**20, "AVIF": 8 * 2**20}  # the tables and thread stacks of the library


def decode_seconds(header: Header, preprocessing: Preprocessing, fast: bool) -> float:
    """Predict the seconds that one core takes to decode the file to a crop."""
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
    buffered = header.buffer * _SECONDS_PER_BYTE_BUFFERED + header.height * _SECONDS_PER_ROW
    if header.variant == SAMPLES:
        per_pixel, buffered = _SECONDS_OF_SAMPLES[0], buffered + header.buffer * _SECONDS_OF_SAMPLES[1]
    fixed = (_SECONDS_PER_FILE if header.bounded else _SECONDS_IN_SANDBOX) + header.parts * _SECONDS_PER_PART
    return fixed + header.pixels * per_pixel + len(header.data) * per_byte + buffered


def decode_bytes(header: Header, preprocessing: Preprocessing, fast: bool) -> int:
    """Predict the peak memory of the decode in bytes, including the file itself."""
    per_pixel = _BYTES_DEEP if header.variant == "deep" else _BYTES.get(header.channels, _BYTES[4])
    pixels = header.pixels // _scale(header, preprocessing, fast) ** 2
    codec = header.pixels * _BYTES_OF_CODEC.get(header.format, 0) + _BYTES_OF_LIBRARY.get(header.format, 0)
    edges = header.height * _BYTES_PER_ROW + header.width * _BYTES_PER_COLUMN
    return _BYTES_PER_FILE + 3 * len(header.data) + pixels * per_pixel + edges + header.buffer + codec


def _scale(header: Header, preprocessing: Preprocessing, fast: bool) -> int:
    return jpeg_scale(header.width, header.height, preprocessing) if fast and header.format == "JPEG" else 1
