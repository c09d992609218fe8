"""What Schemathesis sends as images, and what no schema can say of a request: loaded by its command line as hooks."""

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.generation.meta import ComponentInfo

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
    _stay_valid(case)


def _stay_valid(case: Any) -> None:
    """Schemathesis takes a changed body with bytes for an invalid one, because it cannot check it."""
    meta = case.meta
    for location in meta.components:
        meta.components[location] = ComponentInfo(mode=GenerationMode.POSITIVE)
    meta.generation.mode = GenerationMode.POSITIVE


def _combine(case: Any) -> None:
    """Options are given once, in the query or in the body, and are what a model calibrated on 200 images supports."""
    options = case.body if isinstance(case.body, dict) else {}
    for name in options:
        case.query.pop(name, None)
    parameters = options.get("parameters")
    places = [place for place in (case.query, options, parameters) if isinstance(place, dict)]
    if any(place.get("coverage") is not None for place in places):
        for place in places:
            place.pop("confidence", None)
    if any(place.get("confidence") is not None for place in places):
        case.query["taxonomy"] = "true"
        options.pop("taxonomy", None)
    if any(place.get("explain_png") is not None for place in places):
        case.query["explain"] = "true"
        options.pop("explain", None)
    for place in places:
        _support(place)


def _support(options: Any) -> None:
    """``coverage`` and ``unknown`` are within the limits of 200 images, ``explain`` is one of 1000 classes."""
    for name, least, most in (("coverage", 0.0, 200 / 201), ("unknown", 1 / 201, 1.0)):
        if options.get(name) is not None:
            options[name] = min(max(float(options[name]), least), most)
    if options.get("explain") is not None:
        options["explain"] = _class(options["explain"])


def _class(explained: Any) -> Any:
    """A class of the model for a wnid or a number; booleans as they are."""
    if isinstance(explained, bool) or str(explained).lower() in ("true", "false"):
        return explained
    return "n02124075" if str(explained).startswith("n") else int(float(explained)) % 1000


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
