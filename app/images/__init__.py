"""Bytes to a uint8 RGB crop.

    formats.py    which format a file has, judged by its first bytes
    header.py     what a container says about its picture
    containers.py reads the header by parsers of our own, before any decoder sees the file
    jpeg.py png.py gif.py bmp.py webp.py tiff.py heif.py   those parsers, one for each container
    cost.py       predicted processor time and memory of a decode
    geometry.py   torchvision's resize and crop
    pillow.py     the decode itself; every Pillow error ends there
    sandbox.py    decodes in child processes, within limits on memory and time
    sandboxed.py  the program that those processes run
    decoder.py    decides what is decoded where

Reading a header is safe on any thread: it runs none of Pillow's code and none of a codec's.
"""

from app.images.containers import read_header
from app.images.cost import decode_bytes, decode_seconds
from app.images.formats import heif_installed, sniff
from app.images.geometry import Preprocessing
from app.images.header import Header
from app.images.pillow import Crop, decode, decode_whole

__all__ = [
    "Crop",
    "Header",
    "Preprocessing",
    "decode",
    "decode_bytes",
    "decode_seconds",
    "decode_whole",
    "heif_installed",
    "read_header",
    "sniff",
]
