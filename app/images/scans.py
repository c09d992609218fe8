"""Decodes a JPEG with Pillow's decoder, scan by scan, and refuses it if pixels are missing (ITU-T T.81, annex B).

libjpeg replaces missing pixels by grey and reports them in a warning, which Pillow discards. When libjpeg reaches the
marker behind a scan, it no longer asks for data. Therefore the decoder gets each scan without that marker, and padding
instead. At the end of a complete scan libjpeg reads ahead by at most ``_PADDING`` bytes. If it asks for more, pixels
are missing. The file needs no end-of-image marker.
"""

import re
from dataclasses import dataclass

from PIL import Image, ImageFile

from app.errors import UndecodableImage
from app.images import jpeg
from app.images.jpeg import Frame

# The marker behind the data of a scan, neither stuffing nor RSTn, with the fill bytes before it. The look-behind keeps
# the search linear; it follows the first byte because a search is fast only if its pattern begins with a literal.
_END = re.compile(rb"\xff(?<!\xff\xff)\xff*+(?:[^\x00\xd0-\xd7]|\Z)")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_START_OF_IMAGE, _END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
_PADDING = 7  # libjpeg fills a buffer of 64 bits, and at least one of them belongs to the scan
# libjpeg takes padding for pixels where data is missing. It must not end the last block before the padding ends.
_ZEROS = bytes(_PADDING)  # the first code of a table, if this code is a coefficient
_ALTERNATING = b"\xaa" * _PADDING  # never two zeros, if the code for the end of a block is two zeros or more
_ONES = b"\xff\0" * _PADDING  # no code: libjpeg takes 17 bits of them for the end of a block
_MIN_BITS = 2  # per block: a code for DC and a code for the end of the block
_COEFFICIENTS = 64  # per block
_MIN_FILLED = 16  # zeros at the end of a file without a marker: a download that stopped, not pixels


@dataclass(frozen=True, slots=True)
class _Scan:
    """A scan header (T.81, B.2.3), the bounds of the data behind it, and the restart interval in MCUs or 0.

    ``padding`` replaces the marker behind the data.
    """

    components: bytes
    first: int
    last: int
    low_bit: int
    begin: int
    end: int
    interval: int
    padding: bytes


def load(image: ImageFile.ImageFile, data: bytes) -> None:
    """Decode all pixels of an opened JPEG.

    Raises UndecodableImage if pixels are missing, and OSError if the data is corrupt.
    """
    frame, scans = _read(data)
    multi_scan = frame.progressive or len(scans[0].components) < len(frame.components)
    if not multi_scan:
        del scans[1:]
    complete = _sends_all(frame, scans) if multi_scan else _suffices(frame, scans[0])
    if not complete or any(_lacks_restarts(frame, scan, data) for scan in scans):
        raise _missing()
    image.load_prepare()
    decoder = _Decoder(image)
    try:
        _decode(decoder, memoryview(data), scans, multi_scan)
    finally:
        decoder.close()
    image.tile = []


def _read(data: bytes) -> tuple[Frame, list[_Scan]]:
    """Return the frame and its scans. Raises UndecodableImage."""
    frame: Frame | None = None
    scans: list[_Scan] = []
    paddings: dict[int, bytes] = {}
    interval, position, found = 0, 2, True
    while found:
        found = False
        for marker, start, stop in jpeg.segments(data, position):
            frame = frame or jpeg.read_frame(data, marker, start)
            if marker == jpeg.DRI:
                interval = int.from_bytes(data[start + 4 : start + 6], "big")
            if marker == jpeg.DHT:
                paddings |= _paddings(data[start + 4 : stop])
            if marker == jpeg.SOS:
                scans.append(_scan(data, start, stop, interval, paddings))
                position = scans[-1].end
                found = not data.startswith(_START_OF_IMAGE, position)  # of another image
                break
    if frame is None or not scans:
        raise UndecodableImage("the JPEG has no scan")
    return frame, scans


def _paddings(tables: bytes) -> dict[int, bytes]:
    """Return the padding for each Huffman table for AC, by the number of the table (T.81, B.2.4.2)."""
    found = {}
    position = 0
    while position + 17 < len(tables):
        if tables[position] >> 4:
            ends_block = tables[position + 17] & 15 == 0  # the first code, which is all zeros
            found[tables[position] & 15] = (_ONES if tables[position + 1] else _ALTERNATING) if ends_block else _ZEROS
        position += 17 + sum(tables[position + 1 : position + 17])
    return found


def _scan(data: bytes, start: int, begin: int, interval: int, paddings: dict[int, bytes]) -> _Scan:
    count = data[start + 4]
    if begin > len(data) or begin != start + 8 + 2 * count:
        raise UndecodableImage("the JPEG scan header is invalid")
    found = _END.search(data, begin)
    end = found.start() if found else len(data)
    if _RESTART.match(data, max(begin, end - 2), end):  # this marker also keeps libjpeg from asking for data
        end -= 2
    if not found and (stripped := data.rstrip(b"\0")) and end - len(stripped) >= _MIN_FILLED:
        end = max(begin, len(stripped))
    table, first, last, approximation = data[begin - 4 : begin]
    padding = paddings.get(table & 15, _ONES)  # the table of the last block
    return _Scan(data[start + 5 : begin - 3 : 2], first, last, approximation & 15, begin, end, interval, padding)


def _suffices(frame: Frame, scan: _Scan) -> bool:
    """Return whether the only scan may hold all blocks. This bounds the size of an image that a small file states."""
    return 8 * (scan.end - scan.begin) >= _MIN_BITS * frame.blocks(scan.components)


def _sends_all(frame: Frame, scans: list[_Scan]) -> bool:
    """Return whether the scans send each coefficient of each component down to its lowest bit."""
    sent = {component: [False] * _COEFFICIENTS for component in frame.components}
    for scan in scans:
        first, last = (scan.first, scan.last) if frame.progressive else (0, _COEFFICIENTS - 1)
        for component in set(scan.components) & sent.keys():
            for coefficient in range(first, min(last + 1, _COEFFICIENTS)):
                sent[component][coefficient] = scan.low_bit == 0
    return all(map(all, sent.values()))


def _lacks_restarts(frame: Frame, scan: _Scan, data: bytes) -> bool:
    """Return whether restart markers are missing. libjpeg fills the pixels up to the next marker with grey."""
    if not scan.interval:
        return False
    found = sum(data.count(bytes((0xFF, marker)), scan.begin, scan.end) for marker in range(0xD0, 0xD8))
    return found < -(-frame.mcus(scan.components) // scan.interval) - 1


def _decode(decoder: "_Decoder", data: memoryview, scans: list[_Scan], multi_scan: bool) -> None:
    position = 0
    for scan in scans:
        decoder.feed(data[position : scan.end])
        decoder.feed(scan.padding)
        if multi_scan and not decoder.skips():
            raise _missing()
        position = scan.end
    if multi_scan:
        decoder.feed(_END_OF_IMAGE)
    if not decoder.done:
        raise _missing()


def _missing() -> UndecodableImage:
    return UndecodableImage("the JPEG is truncated or corrupt: pixels are missing")


class _Decoder:
    """Pillow's decoder for an opened JPEG. ``done`` is true once it has decoded all pixels."""

    def __init__(self, image: ImageFile.ImageFile) -> None:
        [tile] = image.tile
        self.done = False
        self._rest = b""
        self._decoder = Image._getdecoder(image.mode, tile.codec_name, tile.args, image.decoderconfig)
        self._decoder.setimage(image.im, tile.extents)

    def feed(self, data: bytes | memoryview) -> int:
        """Decode more data. Returns the number of bytes that the decoder consumed. Raises OSError."""
        if self.done:
            return 0
        buffer = self._rest + data if self._rest else data
        consumed, error = self._decoder.decode(buffer)
        if error < 0:
            raise OSError("libjpeg refused the data")
        self.done = consumed < 0
        self._rest = b"" if self.done else bytes(buffer[consumed:])
        return max(0, consumed)

    def skips(self) -> bool:
        """Return whether the decoder has finished a scan: it skips other bytes then, up to the next marker.

        A scan that needs data cannot consume a single byte, because libjpeg fills its bit buffer at once or not at all.
        """
        return not self._rest and self.feed(b"\0") == 1

    def close(self) -> None:
        self._decoder.cleanup()
