"""Writes TIFF files of any kind of samples (TIFF 6.0)."""

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.generic]


def tiff(
    values: Values,
    bits: int,
    photometric: int,
    order: str = "<",
    kind: str = "u",
    tile: tuple[int, int] | None = None,
    rows: int | None = None,
    *,
    deflate: bool = False,
    separate: bool = False,
    predictor: int = 1,
    tags: Mapping[int, Sequence[int]] | None = None,
) -> bytes:
    """A TIFF of these values of shape [height, width] or [height, width, samples], in strips or tiles (width, height).

    ``kind`` is u, i or f. ``tags`` are further tags of SHORTs.
    """
    cube = values.reshape(*values.shape[:2], -1)
    height, width, samples = cube.shape
    planes = [cube[..., [sample]] for sample in range(samples)] if separate else [cube]
    pieces = [piece for plane in planes for piece in _pieces(plane, tile, rows or height)]
    parts = [_packed(piece, bits, order, kind, predictor) for piece in pieces]
    parts = [zlib.compress(part) for part in parts] if deflate else parts
    starts = [8 + sum(map(len, parts[:at])) for at in range(len(parts))]
    sizes = [len(part) for part in parts]
    longs: dict[int, Sequence[int]] = {256: [width], 257: [height]}
    longs |= {322: [tile[0]], 323: [tile[1]], 324: starts, 325: sizes} if tile else {}
    longs |= {} if tile else {273: starts, 278: [rows or height], 279: sizes}
    shorts: dict[int, Sequence[int]] = {258: [bits] * samples, 259: [8 if deflate else 1], 262: [photometric]}
    shorts |= {277: [samples], 284: [1 + separate], 317: [predictor], 339: ["uif".index(kind) + 1] * samples}
    shorts |= tags or {}
    return _file(b"".join(parts), order, {**dict.fromkeys(longs, "I"), **dict.fromkeys(shorts, "H")}, longs | shorts)


def _pieces(plane: Values, tile: tuple[int, int] | None, rows: int) -> list[Values]:
    height, width = plane.shape[:2]
    if not tile:
        return [plane[top : top + rows] for top in range(0, height, rows)]
    across, down = tile
    padded = np.pad(plane, ((0, -height % down), (0, -width % across), (0, 0)))
    return [
        padded[top : top + down, left : left + across]
        for top in range(0, height, down)
        for left in range(0, width, across)
    ]


def _packed(piece: Values, bits: int, order: str, kind: str, predictor: int) -> bytes:
    size = bits // 8
    if predictor == 2:
        piece = np.diff(piece.astype(np.int64), axis=1, prepend=0)
    if predictor == 3:  # differences of bytes, those of equal weight together
        planes = piece.astype(f">f{size}").reshape(len(piece), -1, 1).view(np.uint8)
        together = np.moveaxis(planes, 2, 1).reshape(len(piece), -1, piece.shape[2])
        return np.diff(together, axis=1, prepend=0).astype(np.uint8).tobytes()
    if kind == "f":
        return piece.astype(f"{order}f{size}").tobytes()
    if bits in (8, 16, 32):
        return (piece.astype(np.int64) & (2**bits - 1)).astype(f"{order}u{size}").tobytes()
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((piece.reshape(len(piece), -1, 1) >> shifts & 1).reshape(len(piece), -1), axis=1).tobytes()


def _file(body: bytes, order: str, kinds: Mapping[int, str], tags: Mapping[int, Sequence[int]]) -> bytes:
    body += bytes(len(body) % 2)
    entries, arrays = b"", b""
    for tag, numbers in sorted(tags.items()):
        value = struct.pack(f"{order}{len(numbers)}{kinds[tag]}", *numbers)
        if len(value) > 4:
            arrays, value = arrays + value, struct.pack(order + "I", 8 + len(body) + len(arrays))
        entries += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[kinds[tag]], len(numbers)) + value.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    start = struct.pack(order + "I", 8 + len(body) + len(arrays))
    return b"".join((magic, start, body, arrays, struct.pack(order + "H", len(tags)), entries, bytes(4)))
