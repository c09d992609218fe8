"""JPEG header parser (ITU-T T.81): reads coding process, size and scans, and removes the metadata.

The decoder supports 8-bit Huffman-coded baseline, extended sequential and progressive files. Arithmetic coding is
refused because its decoder reads zeros past the end of the file: a few bytes cost as much as a whole image.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from app.errors import UndecodableImage, UnsupportedMediaType
from app.images.directory import exif_orientation
from app.images.header import Header

_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")  # all markers except TEM, RSTn and SOI, which have no segment
_MAX_SEGMENTS = 4096  # encoders write a few dozen
_MAX_SCANS = 200  # encoders write about 10; even a scan of 80 bytes covers every pixel
_MAX_JUNK = 1024  # total bytes between segments before the file is rewritten; Pillow skips them one by one in Python
_MAX_GAP = 65_536  # total bytes between segments before the file is refused
_MAX_TABLES = 65_536  # bytes of quantisation and Huffman tables in the header; encoders write about a thousand

_EOI, DHT, SOS, DRI, _APP1 = 0xD9, 0xC4, 0xDA, 0xDD, 0xE1
_TABLES = frozenset({DHT, 0xDB})
_KEPT = frozenset({0xC0, 0xC1, 0xC2, DRI, 0xE0, 0xEE}) | _TABLES  # APP0 and APP14 state the colour space
_SEQUENTIAL, _PROGRESSIVE = frozenset({0xC0, 0xC1}), 0xC2
_REFUSED = {
    0xC3: "lossless",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xDE, 0xDF), "hierarchical"),
    0xC8: "reserved",
    **dict.fromkeys((0xC9, 0xCA), "arithmetic"),
    0xCB: "lossless arithmetic",
    **dict.fromkeys((0xCD, 0xCE, 0xCF), "hierarchical arithmetic"),
}
_BLOCK = 64 * 2  # bytes per block of coefficients

Segment = tuple[int, int, int]
"""The second byte of a marker, the start of the marker, and the end of its segment."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame header (T.81, B.2.2).

    ``components`` holds the identifiers, ``sampling`` the horizontal and vertical factors of each component.
    """

    progressive: bool
    width: int
    height: int
    components: bytes
    sampling: tuple[tuple[int, int], ...]

    def mcus(self, components: bytes) -> int:
        """The number of MCUs in a scan of these components (T.81, A.2)."""
        widest, highest = self._largest
        if len(components) > 1:
            return -(-self.width // (8 * widest)) * -(-self.height // (8 * highest))
        h, v = self._factors(components)[0]
        return -(-self.width * h // (8 * widest)) * -(-self.height * v // (8 * highest))

    def blocks(self, components: bytes) -> int:
        """The number of blocks in a scan of these components."""
        per_mcu = sum(h * v for h, v in self._factors(components)) if len(components) > 1 else 1
        return self.mcus(components) * per_mcu

    @property
    def _largest(self) -> tuple[int, int]:
        return max(h for h, _ in self.sampling), max(v for _, v in self.sampling)

    def _factors(self, components: bytes) -> list[tuple[int, int]]:
        """Raises KeyError for an unknown component."""
        known = dict(zip(self.components, self.sampling, strict=True))
        return [known[component] for component in components]

    @property
    def coefficients(self) -> int:
        """Bytes of all coefficients. The decoder holds them in memory if there are several scans."""
        widest, highest = self._largest
        across, down = -(-self.width // (8 * widest)), -(-self.height // (8 * highest))
        return sum(across * h * down * v * _BLOCK for h, v in self.sampling)


def parse(data: bytes) -> Header:
    """Parse the header of a JPEG file.

    Raises UndecodableImage, and UnsupportedMediaType for an unsupported coding process or precision.
    """
    frame, exif, kept, parts, junk, tables, end = None, b"", [], 0, 0, 0, 2
    for marker, start, stop in segments(data):
        junk += start - end
        if marker == SOS:
            break
        end = stop
        parts += 1
        if read := read_frame(data, marker, start):
            if frame:
                raise UndecodableImage("the JPEG has more than one frame")
            frame = read
        if marker == _APP1 and not exif and data[start + 4 : start + 10] == b"Exif\0\0":
            exif = data[start + 10 : stop]
        if marker in _KEPT:
            kept.append((start, stop))
        tables += stop - start if marker in _TABLES else 0
        if junk > _MAX_GAP or tables > _MAX_TABLES:
            raise UndecodableImage(
                f"the JPEG header has more than {_MAX_GAP} bytes between segments or {_MAX_TABLES} bytes of tables"
            )
    else:
        raise UndecodableImage("the JPEG has no scan")
    if frame is None:
        raise UndecodableImage("the JPEG has no frame before its first scan")
    multi_scan = frame.progressive or data[start + 4] < len(frame.sampling)
    finish = _end_of_image(data, start) if multi_scan else len(data)
    scans = _count_scans(data, start, finish) if multi_scan else 1
    if len(kept) < parts or junk > _MAX_JUNK or finish < len(data):
        data = b"".join((data[:2], *(data[begin:stop] for begin, stop in kept), data[start:finish]))
    return Header(
        data,
        "JPEG",
        frame.width,
        frame.height,
        orientation=exif_orientation(exif),
        scans=scans,
        progressive=multi_scan,
        parts=len(kept),
        channels=len(frame.sampling),
        buffer=frame.coefficients if multi_scan else 0,
    )


def check_processes(data: bytes) -> None:
    """Check the coding process and the scans of a JPEG stream inside another file. Raises the errors of ``parse``."""
    for marker, start, _ in segments(data):
        read_frame(data, marker, start)
        if marker == SOS:
            _count_scans(data, start, len(data))
            return


def _end_of_image(data: bytes, start: int) -> int:
    """Return the end of the first image. The file is cut there, so that later bytes cannot count as scans."""
    found = data.find(b"\xff\xd9", start)
    return len(data) if found < 0 else found + 2


def _count_scans(data: bytes, start: int, end: int) -> int:
    """Return an upper bound of the number of scans: every SOS byte pair counts. libjpeg stops at a second frame."""
    scans = data.count(b"\xff\xda", start, end)
    if scans > _MAX_SCANS:
        raise UndecodableImage(f"the JPEG has more than {_MAX_SCANS} scans")
    return scans


def segments(data: bytes, end: int = 2) -> Iterator[Segment]:
    """Yield the segments from ``end`` to the first scan. Other bytes may lie between them (T.81, annex B)."""
    for _ in range(_MAX_SEGMENTS):
        match = _MARKER.search(data, end, end + _MAX_GAP)
        if match is None or match[1][0] == _EOI:
            return
        end = match.end() + max(2, int.from_bytes(data[match.end() : match.end() + 2], "big"))
        yield match[1][0], match.start(), end
    raise UndecodableImage(f"the JPEG has more than {_MAX_SEGMENTS} segments")


def read_frame(data: bytes, marker: int, start: int) -> Frame | None:
    """Return the frame header whose marker is at ``start``, or None for any other segment."""
    if marker in _REFUSED:
        raise UnsupportedMediaType(f"JPEG with {_REFUSED[marker]} coding is not supported; save it as a baseline JPEG")
    if marker not in _SEQUENTIAL and marker != _PROGRESSIVE:
        return None
    precision, components = data[start + 4], data[start + 9]
    if precision != 8:
        raise UnsupportedMediaType(f"JPEG with {precision} bits per sample is not supported; save it with 8 bits")
    factors = data[start + 11 : start + 10 + 3 * components : 3]
    sampling = tuple((factor >> 4, factor & 15) for factor in factors)
    length = int.from_bytes(data[start + 2 : start + 4], "big")
    valid = length == 8 + 3 * components and all(1 <= f <= 4 for pair in sampling for f in pair)
    if not sampling or len(sampling) != components or not valid:
        raise UndecodableImage("the JPEG frame header is invalid")
    height, width = (int.from_bytes(data[at : at + 2], "big") for at in (start + 5, start + 7))
    identifiers = data[start + 10 : start + 10 + 3 * components : 3]
    return Frame(marker == _PROGRESSIVE, width, height, identifiers, sampling)
