"""Decides which JPEGs may be decoded by a GPU. Reads the header only, and is as cheap as that.

A GPU's decoder may fill missing pixels without an error, and may take colours for others. So it gets only files of the
most common kind that seem complete. ``scans`` finds more: see docs/security.md.
"""

from app.images import jpeg
from app.images.header import Header

MAX_PIXELS = 2**25  # 96 MiB on the device

_BASELINE, _EXTENDED, _ADOBE = 0xC0, 0xC1, 0xEE
_YCBCR = 1  # Adobe's code of the transform (T.872, 6.5.3); a file without its segment is YCbCr, too
_COMPONENTS = b"\1\2\3"  # other identifiers may mean RGB
_CHROMA = [(1, 1), (1, 1)]
_LUMA = ((1, 1), (2, 1), (1, 2), (2, 2))
_END_OF_IMAGE = b"\xff\xd9"
_MIN_BITS = 2  # per block; see ``scans``


def takes(header: Header) -> bool:
    """Return whether a GPU may decode the file: a baseline JPEG of a single scan, in greyscale or YCbCr.

    The file must end with the marker for the end of the image, and hold the fewest bytes that its pixels can take.
    Files with restart markers are excluded, because a missing marker hides missing pixels.
    """
    data = header.data
    if header.format != "JPEG" or header.progressive or header.pixels > MAX_PIXELS or data[-2:] != _END_OF_IMAGE:
        return False
    frame = None
    for marker, start, stop in jpeg.segments(data):
        if marker == _BASELINE:
            frame = jpeg.read_frame(data, marker, start)
        if marker in (_EXTENDED, jpeg.DRI) or (marker == _ADOBE and data[start + 15] != _YCBCR):
            return False
        if marker == jpeg.SOS:
            return frame is not None and _is_common(frame) and _suffices(frame, len(data) - stop)
    return False


def _suffices(frame: jpeg.Frame, size: int) -> bool:
    return 8 * size >= _MIN_BITS * frame.blocks(frame.components)


def _is_common(frame: jpeg.Frame) -> bool:
    first, *others = frame.sampling
    return (not others and first == (1, 1)) or (
        frame.components == _COMPONENTS and first in _LUMA and others == _CHROMA
    )
