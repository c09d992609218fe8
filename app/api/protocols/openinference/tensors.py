"""Input tensors of Open Inference v2, from JSON and the binary data after it."""

import math
import re
import struct
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from app.api.excerpts import shown
from app.api.forms import Upload
from app.api.protocols.members import MOST, members
from app.api.uploads import Uploads
from app.errors import InvalidParameter, MalformedRequest
from app.images import sniff

LENGTH = struct.Struct("<I")
"""The length before every element of a binary BYTES tensor."""

DIMENSIONS = 8
_LARGEST = 1000.0  # preprocessed value: float16 overflows beyond, and no image comes near
_SIZE = re.compile("[0-9]{1,11}")
_HEAD = 512  # bytes that are enough to recognise a file
_PIECE = 2**16  # numbers that are converted at once, while the interpreter is held


def images_of(inputs: object, tail: memoryview, uploads: Uploads, crop: int) -> list[Upload]:
    """The images of the only input: files as BYTES or UINT8, or preprocessed tensors as FP32. Raises TopkError."""
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise MalformedRequest("inputs must be a list of one input, which may contain several images")
    tensor: dict[str, object] = inputs[0]
    if not isinstance(tensor.get("name"), str | None):
        raise MalformedRequest("the name of an input must be a string; any name is accepted")
    shape = _shape(tensor)
    sizes = _binary_sizes(tensor, tail, uploads.most_images)
    data = tail if sizes else tensor["data"]
    match tensor.get("datatype"):
        case "BYTES":
            return _files(data, shape, sizes, uploads)
        case "UINT8":
            return _rows(data, shape, uploads)
        case "FP32":
            return _preprocessed(data, shape, crop, uploads)
        case other:
            raise InvalidParameter(
                f"datatype must be BYTES or UINT8 for image files, or FP32 for tensors, got {shown(other)}"
            )


def _shape(tensor: dict[str, object]) -> list[int]:
    """A shape whose numbers can safely be multiplied and shown. Raises MalformedRequest."""
    given, data = tensor.get("shape"), tensor.get("data")
    if given == -1:  # KServe's samples for TorchServe: as many as there are
        return [len(data) or 1] if isinstance(data, list) else [1]
    if not isinstance(given, list) or len(given) > DIMENSIONS:
        raise MalformedRequest(f"shape must be a list of at most {DIMENSIONS} whole numbers")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= MOST for n in given):
        raise MalformedRequest(f"shape must be whole numbers between 1 and {MOST}")
    return given


def _binary_sizes(tensor: dict[str, object], tail: memoryview, most: int) -> list[int]:
    """The sizes that divide the binary data; empty if the data is in the JSON. Raises MalformedRequest."""
    in_json = tensor.get("data") is not None
    size = members(tensor.get("parameters"), "the parameters of an input").get("binary_data_size")
    if size is None and tail and not in_json:  # OpenVINO Model Server does not require the size of a single input
        return [len(tail)]
    if in_json == (size is not None) or (in_json and tail):
        raise MalformedRequest("an input must have either data, or binary_data_size and as many bytes after the JSON")
    if size is None:
        return []
    sizes = _sizes(size, most)
    if not sizes or sum(sizes) != len(tail):
        raise MalformedRequest(
            f"binary_data_size must be {len(tail)}, the number of bytes after the JSON, got {shown(size)}"
        )
    return sizes


def _sizes(given: object, most: int) -> list[int]:
    """One size, or one per image in a string, as OpenVINO Model Server 2022 has it. Empty if it is neither."""
    if isinstance(given, str):
        parts = given.split(",", most)
        return [int(part) for part in parts] if all(map(_SIZE.fullmatch, parts)) else []
    return [int(given)] if isinstance(given, int | float) and given == int(given) else []


def _files(data: object, shape: list[int], sizes: list[int], uploads: Uploads) -> list[Upload]:
    """The elements of a BYTES tensor, each of which is a file."""
    count = math.prod(shape)
    uploads.check_count(min(count, MOST))
    if isinstance(data, memoryview):
        files = _binary_files(data, count, sizes, uploads)
    else:
        values = [data] if isinstance(data, str) else _flat(data)  # MLServer and KServe: one string
        files = uploads.images([_base64(value) for value in values], "data")
    if len(files) != count:
        raise MalformedRequest(f"shape {shape} requires {count} images, got {len(files)}")
    return files


def _base64(value: object) -> object:
    return value["b64"] if isinstance(value, dict) and len(value) == 1 and "b64" in value else value


def _binary_files(tail: memoryview, count: int, sizes: list[int], uploads: Uploads) -> list[Upload]:
    """The files in binary data. OpenVINO Model Server 2022 has no lengths before them, and their sizes in the JSON."""
    if len(sizes) > 1:
        ends = list(accumulate(sizes))
        return [uploads.image(bytes(tail[end - size : end])) for end, size in zip(ends, sizes, strict=True)]
    if count == 1 and _is_file(tail):
        return [uploads.image(bytes(tail))]
    return _elements(tail, uploads)


def _is_file(tail: memoryview) -> bool:
    """Whether the data is an image file, not an element with its length before it."""
    is_element = len(tail) >= LENGTH.size and LENGTH.unpack_from(tail)[0] == len(tail) - LENGTH.size
    return not is_element and sniff(bytes(tail[:_HEAD])) is not None


def _elements(tail: memoryview, uploads: Uploads) -> list[Upload]:
    """The elements of a binary BYTES tensor, each of which is a length and as many bytes."""
    files, at = [], 0
    while at < len(tail):
        if at + LENGTH.size > len(tail):
            raise MalformedRequest("the binary data is truncated within a length")
        [length] = LENGTH.unpack_from(tail, at)
        at += LENGTH.size
        if at + length > len(tail):
            raise MalformedRequest(f"the binary data is truncated within an element of {length} bytes")
        files.append(uploads.image(bytes(tail[at : at + length])))
        uploads.check_count(len(files))
        at += length
    return files


def _rows(data: object, shape: list[int], uploads: Uploads) -> list[Upload]:
    """The rows of a UINT8 tensor, each of which is a file. Clients pad shorter files with zeros."""
    if not 1 <= len(shape) <= 2:
        raise InvalidParameter(
            f"shape must be [bytes] or [images, bytes] for UINT8, the bytes of image files, got {shape};"
            " send pixels as FP32, preprocessed"
        )
    count, size = [1, *shape][-2:]
    uploads.check_count(count)
    content = data if isinstance(data, memoryview) else memoryview(_octets(data, count * size))
    if len(content) != count * size:
        raise MalformedRequest(f"shape {shape} requires {count * size} bytes as UINT8, got {len(content)}")
    return [uploads.image(bytes(content[start : start + size])) for start in range(0, count * size, size)]


def _octets(data: object, size: int) -> bytes:
    """Bytes from numbers in JSON, converted in pieces."""
    values, content = _flat(data), bytearray()
    if len(values) != size:
        raise MalformedRequest(f"data must have {size} numbers, got {len(values)} values")
    for start in range(0, size, _PIECE):
        piece: list[Any] = values[start : start + _PIECE]
        if not set(map(type, piece)) <= {int} or min(piece) < 0 or max(piece) > 255:
            raise MalformedRequest("data must be whole numbers between 0 and 255 for UINT8")
        content += bytes(piece)
    return bytes(content)


def _preprocessed(data: object, shape: list[int], crop: int, uploads: Uploads) -> list[Upload]:
    """The images of an FP32 tensor."""
    if shape == [3, crop, crop]:  # Triton's models without a batch dimension
        shape = [1, *shape]
    uploads.check_count(math.prod(shape[:1]))
    if shape[1:] != [3, crop, crop]:
        raise InvalidParameter(f"shape must be [n, 3, {crop}, {crop}] for FP32, got {shape}")
    rows = _floats(data, shape) if isinstance(data, memoryview) else _numbers(data, shape)
    return [_tensor(values) for values in rows]


def _flat(data: object) -> list[object]:
    """The values of nested lists, row by row."""
    depth = 1
    while isinstance(data, list) and data and all(isinstance(row, list) for row in data):
        depth += 1
        if depth > DIMENSIONS:
            raise MalformedRequest(f"data must be nested at most {DIMENSIONS} levels deep")
        data = [value for row in data for value in row]
    if not isinstance(data, list):
        raise MalformedRequest("data must be a list")
    return data


def _numbers(data: object, shape: list[int]) -> npt.NDArray[np.float32]:
    """A float32 array of this shape from JSON, converted in pieces."""
    values, size = _flat(data), math.prod(shape)
    if len(values) != size:
        raise MalformedRequest(f"data must have {size} numbers, got {len(values)} values")
    numbers = np.empty(size, np.float32)
    for start in range(0, size, _PIECE):
        piece = values[start : start + _PIECE]
        if not set(map(type, piece)) <= {int, float}:
            raise MalformedRequest("data must be numbers; null, booleans and strings are not numbers")
        with np.errstate(over="ignore"):
            numbers[start : start + _PIECE] = np.array(piece, np.float32)
    return numbers.reshape(shape)


def _floats(tail: memoryview, shape: list[int]) -> npt.NDArray[np.float32]:
    """A float32 array of this shape from binary data."""
    if len(tail) != 4 * math.prod(shape):
        raise MalformedRequest(f"shape {shape} requires {4 * math.prod(shape)} bytes as FP32, got {len(tail)}")
    return np.frombuffer(tail, "<f4").astype(np.float32).reshape(shape)


def _tensor(values: npt.NDArray[np.float32]) -> Upload:
    if max(values.max(), -values.min()) <= _LARGEST:  # false for NaN
        return Upload(values)
    return Upload(InvalidParameter(f"preprocessed values must be finite, between -{_LARGEST:g} and {_LARGEST:g}"))
