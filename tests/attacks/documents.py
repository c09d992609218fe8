"""JSON documents that cost much for their size: shapes, outputs, base64 and numbers (rows 1, 2 and 8)."""

import base64
import functools
import json
from collections.abc import Callable
from typing import Any

from tests.attacks.clients import photograph, post, sent
from tests.attacks.service import Attack

INFER = "/v2/models/efficientnet_lite0/infer"
REFUSED = frozenset({"400"})
_COUNTED = frozenset({"400", "413"})
_NO_IMAGE = frozenset({"400", "415", "422", "503", "413"})
_LARGEST = 2**64 - 1  # of an integer that the JSON parser reads as one
_MIB = 2**20


def as_request(path: str, document: Any) -> bytes:
    return post(path, json.dumps(document, separators=(",", ":")).encode(), "application/json")


def shape(numbers: list[int], datatype: str = "BYTES") -> bytes:
    """A v2 request whose input has this shape, and one image."""
    image = {"name": "image", "datatype": datatype, "shape": numbers, "data": ["AAAA"]}
    return as_request(INFER, {"inputs": [image]})


def outputs(number: int, images: int = 32, **parameters: Any) -> bytes:
    """A v2 request for the same output again and again."""
    data = [base64.b64encode(photograph()).decode()] * images
    wanted = [{"name": "scores", **({"parameters": parameters} if parameters else {})}] * number
    document = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [images], "data": data}]}
    return as_request(INFER, document | {"outputs": wanted})


def base64_words(size: int = 26 * _MIB, word: str = "QQ ") -> bytes:
    """An image of base64 that is mostly white space between short words."""
    return as_request("/v1/predict", {"image": word * (size // len(word))})


def base64_plain(size: int = 62 * _MIB) -> bytes:
    """Three images of 15 MiB each, none of which is a picture."""
    each = "A" * (size // 3 // 4 * 4)
    return as_request("/v1/predict/batch", {"images": [each] * 3})


def floats(images: int = 12) -> bytes:
    """Preprocessed tensors as JSON numbers: 9 MB for 12 images."""
    numbers = [-0.5] * (images * 3 * 224 * 224)
    tensor = {"name": "image", "datatype": "FP32", "shape": [images, 3, 224, 224], "data": numbers}
    return as_request(INFER, {"inputs": [tensor]})


def nested(depth: int = 500) -> bytes:
    """Data nested so deep that flattening goes over it again at each depth."""
    data: Any = ["AAAA"] * 9000
    for _ in range(depth):
        data = [data]
    return as_request(INFER, {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [9000], "data": data}]})


def _attack(
    row: int, name: str, make: Callable[[], bytes], answers: frozenset[str], connections: int = 1, **more: Any
) -> Attack:
    return Attack(row, name, functools.partial(sent, make, connections, connections), answers, **more)


ATTACKS = [
    _attack(1, "v2 shape of 100000 huge integers", functools.partial(shape, [_LARGEST] * 100_000), REFUSED),
    _attack(
        1,
        "v2 shape of 20000 huge integers x 2",
        functools.partial(shape, [_LARGEST] * 20_000),
        REFUSED,
        2,
        variant=True,
    ),
    _attack(1, "v2 shape of 300 huge integers x 4", functools.partial(shape, [_LARGEST] * 300), REFUSED, 4),
    _attack(1, "v2 shape of 9 ones x 4", functools.partial(shape, [1] * 9), REFUSED, 4, variant=True),
    _attack(1, "v2 shape of one huge integer x 4", functools.partial(shape, [_LARGEST]), _COUNTED, 4, variant=True),
    _attack(
        1,
        "v2 shape of 100000 huge integers, FP32",
        functools.partial(shape, [_LARGEST] * 100_000, "FP32"),
        _COUNTED,
        variant=True,
    ),
    _attack(1, "v2 data nested 500 deep x 4", nested, _COUNTED, 4, variant=True),
    _attack(2, "v2 with 6000 outputs for 32 images", functools.partial(outputs, 6000), REFUSED, jpegs=100),
    _attack(
        2,
        "v2 with 6000 classifications",
        functools.partial(outputs, 6000, classification=1000),
        REFUSED,
        jpegs=100,
        variant=True,
    ),
    _attack(8, "base64 in two-character words, 26 MB x 3", base64_words, _NO_IMAGE, 3, jpegs=60),
    _attack(
        8,
        "base64 in lines of one character, 26 MB x 3",
        functools.partial(base64_words, word="Q\n"),
        _NO_IMAGE,
        3,
        jpegs=60,
        variant=True,
    ),
    _attack(8, "base64 plain, 62 MB x 8", base64_plain, frozenset({"200", "503"}), 8, jpegs=100, memory_mib=900),
    _attack(8, "v2 JSON floats, 9 MB x 4", floats, frozenset({"200", "400", "503", "504"}), 4, jpegs=200),
]
