"""The properties of an image that its container header states."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Header:
    """An image as its container header describes it.

    ``data`` is the file without the metadata that decoding does not need. ``width`` and ``height`` are the stored size
    in pixels, before the EXIF orientation is applied. ``bounded`` is true if these fields bound the cost of decoding
    tightly; otherwise the file is decoded in the sandbox.

    Some formats use these fields:

    - ``orientation``: the EXIF orientation, 1 to 8; 0 if it is known only after the file is opened.
    - ``scans``: the number of scans of a JPEG.
    - ``progressive``: whether a JPEG has several scans. The decoder then holds all coefficients in memory.
    - ``parts``: pieces of the file that Pillow handles one by one in Python (segments, chunks, blocks).
    - ``channels``: 1 for opaque greyscale, 3 for opaque colour, 4 for all other images.
    - ``stored``: pixels including the padding of tiles, if the format has tiles; otherwise 0.
    - ``buffer``: bytes that the decoder allocates beside the image, for coefficients or tiles.
    - ``variant``: a compression method with a different cost; ``""`` for the usual method of the format.
    """

    data: bytes
    format: str
    width: int
    height: int
    bounded: bool = True
    orientation: int = 0
    scans: int = 1
    progressive: bool = False
    parts: int = 0
    channels: int = 4
    stored: int = 0
    buffer: int = 0
    variant: str = ""

    @property
    def pixels(self) -> int:
        return self.width * self.height
