"""Bytes to a uint8 RGB crop.

    formats.py    detects the format of a file by its first bytes
    mistaken.py   recognises what clients send in place of an image file
    header.py     the image properties that a container header states
    containers.py reads and checks the header before any decoder sees the file
    jpeg.py png.py gif.py bmp.py webp.py tiff.py heif.py   the header parsers, one per container
    directory.py  the directory of a TIFF or an EXIF block
    cost.py       predicts the processor time and memory of a decode
    geometry.py   torchvision's resize and crop
    scans.py      decodes the scans of a JPEG and detects missing pixels
    samples.py    decodes TIFF samples that Pillow does not know
    pillow.py     decodes with Pillow and converts Pillow's errors
    sandbox.py    decodes in child processes with limits on memory and time
    sandboxed.py  the program that the child processes run
    decoder.py    chooses where an image is decoded
    device.py     decides which JPEGs may be decoded by a GPU
    heatmap.py    colours a class activation map

Reading a header is safe on any thread: it runs no code of Pillow or of a codec.
"""

from app.images.containers import MAX_PIXELS_UNSCALED, read_header
from app.images.cost import decode_bytes, decode_seconds
from app.images.formats import heif_installed, sniff
from app.images.geometry import Preprocessing
from app.images.header import Header
from app.images.mistaken import sniff_base64
from app.images.pillow import Crop, Size, decode, decode_sized, decode_whole

__all__ = [
    "MAX_PIXELS_UNSCALED",
    "Crop",
    "Header",
    "Preprocessing",
    "Size",
    "decode",
    "decode_bytes",
    "decode_seconds",
    "decode_sized",
    "decode_whole",
    "heif_installed",
    "read_header",
    "sniff",
    "sniff_base64",
]
