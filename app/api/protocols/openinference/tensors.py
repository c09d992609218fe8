"""Input tensors of Open Inference v2, from JSON and the binary data after it."""

import math
import struct

import numpy as np
import numpy.typing as npt

from app.api.excerpts import shown
from app.api.forms import Upload
from app.api.protocols.members import MOST, members
from app.api.uploads import Uploads
from app.errors import InvalidParameter, MalformedRequest

LENGTH = struct.Struct("<I")
"""The length before every element of a binary BYTES tensor."""

DIMENSIONS = 8
_LARGEST = 1000.0  # preprocessed value: float16 overflows beyond, and no image comes near
_PIECE = 2**16  # numbers that are converted at once, while the interpreter is held


def images_of(inputs: object, tail: memoryview, uploads: Uploads, crop: int) -> list[Upload]:
    """The images of the only input: files as BYTES, or preprocessed tensors as FP32. Raises TopkError."""
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise MalformedRequest("inputs must be a list of one input")
    tensor: dict[str, object] = inputs[0]
    if not isinstance(tensor.get("name"), str):
        raise MalformedRequest("an input must have a name; any name is accepted")
    shape = _shape(tensor.get("shape"))
    size = members(tensor.get("parameters"), "the parameters of an input").get("binary_data_size")
    if ("data" in tensor) == (size is not None) or (size is None and tail):
        raise MalformedRequest("an input must have either data, or binary_data_size and as many bytes after the JSON")
    if size is not None and size != len(tail):
        raise MalformedRequest(
            f"binary_data_size must be {len(tail)}, the number of bytes after the JSON, got {shown(size)}"
        )
    match tensor.get("datatype"):
        case "BYTES":
            uploads.check_count(min(math.prod(shape), MOST))
            files = uploads.images(_flat(tensor["data"]), "data") if size is None else _files(tail, uploads)
            if len(files) != math.prod(shape):
                raise MalformedRequest(f"shape {shape} requires {math.prod(shape)} images, got {len(files)}")
            return files
        case "FP32":
            uploads.check_count(math.prod(shape[:1]))
            if shape[1:] != [3, crop, crop]:
                raise InvalidParameter(f"shape must be [n, 3, {crop}, {crop}] for FP32, got {shape}")
            rows = _numbers(tensor["data"], shape) if size is None else _floats(tail, shape)
            return [_tensor(values) for values in rows]
        case other:
            raise InvalidParameter(f"datatype must be BYTES for image files or FP32 for tensors, got {shown(other)}")


def _shape(given: object) -> list[int]:
    """A shape whose numbers can safely be multiplied and shown. Raises MalformedRequest."""
    if not isinstance(given, list) or len(given) > DIMENSIONS:
        raise MalformedRequest(f"shape must be a list of at most {DIMENSIONS} whole numbers")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= MOST for n in given):
        raise MalformedRequest(f"shape must be whole numbers between 1 and {MOST}")
    return given


def _files(tail: memoryview, uploads: Uploads) -> list[Upload]:
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
