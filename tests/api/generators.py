"""What Schemathesis sends as images, and what no schema can say of a request: loaded by its command line as hooks."""

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import schemathesis
from hypothesis import strategies as st
from PIL import Image

_CROP = 224


def _file(kind: str) -> Callable[[tuple[int, int], tuple[int, int, int]], bytes]:
    def write(size: tuple[int, int], colour: tuple[int, int, int]) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", size, colour).save(file, kind)
        return file.getvalue()

    return write


def _images(kind: str) -> st.SearchStrategy[bytes]:
    side, byte = st.integers(1, 64), st.integers(0, 255)
    return st.builds(_file(kind), st.tuples(side, side), st.tuples(byte, byte, byte))


_JPEG, _PNG = _images("JPEG"), _images("PNG")
_ANY = _JPEG | _PNG
schemathesis.openapi.media_type("image/jpeg", _JPEG)
schemathesis.openapi.media_type("image/png", _PNG)
schemathesis.openapi.media_type("application/octet-stream", _ANY)
schemathesis.openapi.format("byte", _ANY.map(lambda content: base64.b64encode(content).decode()))


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Members of a valid request that depend on each other are made to agree; an invalid one is sent as it is."""
    # A deadline of a millisecond is valid, and rightly answered with 504: all wait long enough.
    patience = str(case.headers.get("X-Request-Timeout-Ms", "1"))
    if patience.isdecimal() and int(patience) > 0:
        case.headers["X-Request-Timeout-Ms"] = "60000"
    if not case.meta or case.meta.generation.mode.is_negative:
        return
    _combine(case)
    if case.path.endswith("/infer"):
        _agree(case)


def _combine(case: Any) -> None:
    """Options are given once, in the query or in the body; ``confidence`` needs ``taxonomy``."""
    options = case.body if isinstance(case.body, dict) else {}
    for name in options:
        case.query.pop(name, None)
    if case.query.get("confidence") is not None or options.get("confidence") is not None:
        case.query["taxonomy"] = "true"
        options.pop("taxonomy", None)


def _agree(case: Any) -> None:
    """Open Inference: the header is the length of the JSON, a shape is that of its data, outputs differ."""
    if not isinstance(case.body, dict):
        case.headers.pop("Inference-Header-Content-Length", None)
        return
    for tensor in case.body["inputs"]:
        tensor.pop("parameters", None)
        if tensor["datatype"] == "FP32":
            tensor["shape"], tensor["data"] = [1, 3, _CROP, _CROP], [0.5] * (3 * _CROP * _CROP)
        elif tensor["datatype"] == "UINT8":
            tensor["data"] = list(base64.b64decode(_PIXEL))
            tensor["shape"] = [1, len(tensor["data"])]
        else:
            tensor["data"] = [datum for datum in tensor["data"] if isinstance(datum, str)] or [_PIXEL]
            tensor["shape"] = [len(tensor["data"])]
    if outputs := case.body.get("outputs"):
        different = {
            (output.get("name", "scores"), "classification" in (output.get("parameters") or {})): output
            for output in outputs
        }
        case.body["outputs"] = list(different.values())
    if "Inference-Header-Content-Length" in case.headers:
        case.headers["Inference-Header-Content-Length"] = str(len(json.dumps(case.body)))


_PIXEL = base64.b64encode(_file("PNG")((1, 1), (0, 0, 0))).decode()
