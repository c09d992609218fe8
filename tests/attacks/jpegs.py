"""Hostile JPEG files, built marker by marker (ITU-T T.81, annex B). Every function is pure and returns a whole file."""

import struct
from collections.abc import Callable, Iterable

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
BASELINE, PROGRESSIVE, LOSSLESS = 0xC0, 0xC2, 0xC3
HIERARCHICAL, ARITHMETIC, ARITHMETIC_PROGRESSIVE, ARITHMETIC_LOSSLESS = 0xC5, 0xC9, 0xCA, 0xCB
_COLOUR = (1, 2, 3)
_GREY = (1,)
# Eight grey blocks whose 63 AC coefficients are all 1, arithmetic-coded: a whole scan, and one without DC. They teach
# the decoder's statistics to read the zeros behind them as more such blocks, which is the most work for each.
_LEARNT = bytes.fromhex(
    "7bd57777777777777777777777777777777777777777777777777777777777749f26ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00"
    "ff00ff00faad43b6db6db6db6db6db6db365fd24924924924924924925d60e79e79e79e79e79e79dec7745d0ba1742e85d0ba1e94f2d0b42"
    "d0b42d0b454abfe284a1284a1285"
)
_LEARNT_AC = bytes.fromhex(
    "24b96eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeedef9fff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00"
    "ff00ff00fb6d6db6db6db6db6db6db6db9704924924924924924924910e7cf3cf3cf3cf3cf3cf3cf6d3342e85d0ba1742e85d097609f42d0"
    "b42d0b42d0563b033e284a1284a140"
)


def segment(marker: int, data: bytes) -> bytes:
    """A marker with its length and data."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def frame(kind: int, width: int, height: int, components: Iterable[int] = _COLOUR, precision: int = 8) -> bytes:
    """A frame header without subsampling. ``kind`` is the marker's second byte, SOF0 to SOF15, or DHP."""
    described = b"".join(bytes([component, 0x11, 0]) for component in components)
    return segment(kind, struct.pack(">BHHB", precision, height, width, len(described) // 3) + described)


def scan(
    components: Iterable[int] = _COLOUR, first: int = 0, last: int = 63, approximation: int = 0, data: bytes = b""
) -> bytes:
    """A scan header and its entropy-coded data. A decoder that finds a marker at once reads zeros for ever."""
    selected = b"".join(bytes([component, 0]) for component in components)
    header = bytes([len(selected) // 2]) + selected + bytes([first, last, approximation])
    return segment(0xDA, header) + data


def quantization() -> bytes:
    return segment(0xDB, b"\0" + b"\1" * 64)


def huffman() -> bytes:
    """One code of one bit in both tables: no difference for DC, end of block for AC."""
    lengths = b"\1" + bytes(15)
    return segment(0xC4, b"\0" + lengths + b"\0" + b"\x10" + lengths + b"\0")


def jpeg(*parts: bytes) -> bytes:
    """A file of these parts behind a quantization table and Huffman tables."""
    return b"".join((SOI, quantization(), huffman(), *parts, EOI))


def arithmetic(width: int = 7000, height: int = 7000) -> bytes:
    """Sequential and arithmetic-coded, with eight blocks of data: padded to 512 bytes."""
    whole = jpeg(frame(ARITHMETIC, width, height), scan(data=_LEARNT))
    return whole[:2] + segment(0xFE, bytes(512 - len(whole) - 4)) + whole[2:]


def arithmetic_small() -> bytes:
    """Of ordinary size."""
    return arithmetic(2400, 2000)


def arithmetic_behind_junk(width: int = 7000, height: int = 7000) -> bytes:
    """Its frame header stands behind fill bytes, junk and a segment that holds another frame header."""
    decoy = segment(0xFE, frame(BASELINE, 8, 8, _GREY))
    return SOI + decoy + b"\0junk" + b"\xff" * 9 + jpeg(frame(ARITHMETIC, width, height), scan(data=_LEARNT))[2:]


def arithmetic_progressive(scans: int = 190, width: int = 7000, height: int = 7000) -> bytes:
    """Every scan goes over every block of a component."""
    return jpeg(frame(ARITHMETIC_PROGRESSIVE, width, height), *_scans(scans, _LEARNT_AC))


def arithmetic_lossless() -> bytes:
    return jpeg(frame(ARITHMETIC_LOSSLESS, 7000, 7000), scan(first=1, last=0))


def lossless() -> bytes:
    return jpeg(frame(LOSSLESS, 7000, 7000), scan(first=1, last=0))


def hierarchical() -> bytes:
    """DHP announces a pyramid of frames; the first is baseline."""
    return jpeg(frame(0xDE, 7000, 7000), frame(BASELINE, 64, 64), scan())


def differential() -> bytes:
    return jpeg(frame(HIERARCHICAL, 7000, 7000), scan())


def twelve_bits() -> bytes:
    return jpeg(frame(0xC1, 7000, 7000, precision=12), scan())


def dc_only(width: int = 7000, height: int = 3500) -> bytes:
    """Progressive, with one scan of DC coefficients alone. All coefficients are held: two bytes each."""
    whole = jpeg(frame(PROGRESSIVE, width, height), scan(last=0))
    return whole[:2] + segment(0xFE, bytes(260 - len(whole) - 4)) + whole[2:]


def progressive(scans: int = 190, width: int = 7000, height: int = 7000) -> bytes:
    return jpeg(frame(PROGRESSIVE, width, height), *_scans(scans))


def baseline_without_data() -> bytes:
    return jpeg(frame(BASELINE, 65500, 760), scan())


def baseline_scan_by_component() -> bytes:
    """Baseline in three scans: libjpeg holds it whole, as it does a progressive one."""
    return jpeg(frame(BASELINE, 7000, 3500), *(scan((component,)) for component in _COLOUR))


def segments(number: int = 60_000) -> bytes:
    return SOI + segment(0xFE, b"") * number + _small()


def fill_bytes(number: int = 8_000_000) -> bytes:
    """Any number of FF may stand before a marker (B.1.1.2)."""
    return SOI + b"\xff" * number + _small()


def fill_bytes_in_scan(number: int = 8_000_000) -> bytes:
    return jpeg(frame(BASELINE, 64, 64, _GREY), scan(_GREY, data=b"\x0f" + b"\xff" * number))


def stuffed_scan(number: int = 4_000_000) -> bytes:
    """Stuffed FF bytes behind the pixels of a small picture."""
    return jpeg(frame(BASELINE, 64, 64, _GREY), scan(_GREY, data=b"\xff\0" * number))


def number_of_lines() -> bytes:
    """No height in the frame; DNL gives it behind the first scan (B.2.5)."""
    return jpeg(frame(BASELINE, 7000, 0), scan(data=b"\0" * 64), segment(0xDC, struct.pack(">H", 7000)))


def restart_intervals(width: int = 4000, height: int = 4000) -> bytes:
    """A whole grey picture with a restart marker behind every block."""
    blocks = (width // 8) * (height // 8)
    data = b"".join(b"\x3f\xff" + bytes([0xD0 + number]) for number in range(8)) * (blocks // 8)
    return jpeg(frame(BASELINE, width, height, _GREY), segment(0xDD, b"\0\1"), scan(_GREY, data=data))


def restart_intervals_without_markers() -> bytes:
    """Restart intervals of one block whose markers are missing: the decoder resynchronizes for each."""
    return jpeg(frame(BASELINE, 7000, 7000), segment(0xDD, b"\0\1"), scan(data=b"\x3f\xff\xd5" * 10_000))


def _scans(number: int, data: bytes = b"") -> list[bytes]:
    """DC of all components, then AC of one component after another."""
    return [scan(last=0), *(scan((_COLOUR[at % 3],), first=1, data=data) for at in range(number - 1))]


def _small() -> bytes:
    """The markers of a whole grey picture of 64x64 behind SOI."""
    return jpeg(frame(BASELINE, 64, 64, _GREY), scan(_GREY, data=b"\0" * 15 + b"\0"))[2:]


REFUSED: dict[str, Callable[[], bytes]] = {
    "JPEG arithmetic 512 bytes": arithmetic,
    "JPEG arithmetic 2400x2000": arithmetic_small,
    "JPEG arithmetic behind junk": arithmetic_behind_junk,
    "JPEG arithmetic progressive, 190 scans": arithmetic_progressive,
    "JPEG arithmetic lossless": arithmetic_lossless,
    "JPEG lossless": lossless,
    "JPEG hierarchical": hierarchical,
    "JPEG differential": differential,
}
"""Kinds of JPEG whose decoding has no bound known from the container: 415 whatever else they hold."""

JPEGS: dict[str, Callable[[], bytes]] = REFUSED | {
    "JPEG 12 bits": twelve_bits,
    "JPEG DC-only progressive": dc_only,
    "JPEG progressive, 190 scans": progressive,
    "JPEG progressive, 250 scans": lambda: progressive(250),
    "JPEG baseline 65500x760 without data": baseline_without_data,
    "JPEG baseline, a scan for each component": baseline_scan_by_component,
    "JPEG of 60000 segments": segments,
    "JPEG with 8 million fill bytes": fill_bytes,
    "JPEG with 8 million fill bytes in a scan": fill_bytes_in_scan,
    "JPEG with 4 million stuffed bytes": stuffed_scan,
    "JPEG with DNL": number_of_lines,
    "JPEG with restart intervals of 1": restart_intervals,
    "JPEG with restart markers missing": restart_intervals_without_markers,
}
