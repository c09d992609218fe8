"""What a file says about its picture before anything is decoded."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Header:
    """A picture as its container describes it.

    ``data`` is the file without the metadata that decoding does not need. ``width`` and ``height`` are as stored, in
    pixels. ``bounded`` says whether these fields bound the cost of decoding tightly; where they do not, the file is
    decoded in the sandbox.

    Fields that some formats alone use:

    - ``orientation``: EXIF's, 1 to 8; 0 where only the opened file tells it.
    - ``scans`` and ``progressive``: a JPEG in several scans is held whole while it is decoded.
    - ``parts``: pieces of the file that Pillow handles one by one in Python (segments, chunks, blocks).
    - ``channels``: 1 for grey or a palette without transparency, 3 for colour, 4 for more.
    - ``stored``: pixels in whole tiles, where they are more than ``pixels``.
    - ``buffer``: bytes that the decoder allocates beside the picture: coefficients, tiles.
    - ``variant``: a compression within the format that has a cost of its own, ``""`` for the usual one.
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
