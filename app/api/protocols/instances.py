"""The image and the key of an instance. Its other members are ignored.

tensorflow/serving's ``api_rest.md``; Vertex AI's batch predictions and AutoML's containers, for the key.
"""

from app.api.excerpts import json_type
from app.errors import InvalidParameter, MalformedRequest

Key = str | int | float | None
KEY_CHARACTERS = 1024
_NAMES = ("image", "image_bytes", "bytes_inputs", "content", "data")
"""Members that are the image if there are several: of TensorFlow Serving, AutoML, Keras, Vertex AI and TorchServe."""
_BINARY = "_bytes"
"""The end of the name of binary values in TensorFlow Serving."""
_OPTIONS = ("top_k", "min_score")


def encoded(value: object, place: str) -> object:
    """The base64 in ``{"b64": ...}``, ``{"any name": ...}`` or one in the other, beside other members.

    Raises MalformedRequest, InvalidParameter.
    """
    for _ in range(2):
        if isinstance(value, dict):
            names = image_members(value)
            if len(names) != 1:
                raise MalformedRequest(
                    f'{place}: an object must have one member such as {{"b64": "<base64>"}}, got {len(names)};'
                    " name the image `image`"
                )
            _check_options(value, place)
            value = value[names[0]]
    return value


def image_members(members: dict[str, object]) -> list[str]:
    """The names of the members that may be the image: one, unless it cannot be determined."""
    if "b64" in members:
        return ["b64"]
    candidates = [name for name in members if name != "key" or len(members) == 1]
    candidates = [name for name in candidates if _is_binary(members[name])] or candidates
    if len(candidates) == 1:
        return candidates
    named = [name for name in _NAMES if name in candidates][:1]
    return named or [name for name in candidates if name.endswith(_BINARY)] or candidates


def key(value: object, place: str) -> Key:
    """The key beside an image, if there is one. Raises MalformedRequest."""
    given = value.get("key") if isinstance(value, dict) and len(value) > 1 else None
    return checked(given, place)


def checked(given: object, place: str) -> Key:
    """A key, which is a number or a short string. Raises MalformedRequest."""
    if isinstance(given, str) and len(given) > KEY_CHARACTERS:
        raise MalformedRequest(f"{place}: key must have at most {KEY_CHARACTERS} characters, got {len(given)}")
    if isinstance(given, bool) or not isinstance(given, str | int | float | None):
        raise MalformedRequest(f"{place}: key must be a string or a number, got {json_type(given)}")
    return given


def _is_binary(value: object) -> bool:
    """Whether a value is ``{"b64": ...}``, or a column of them."""
    value = value[0] if isinstance(value, list) and value else value
    return isinstance(value, dict) and "b64" in value


def _check_options(members: dict[str, object], place: str) -> None:
    for name in _OPTIONS:
        if name in members:
            raise InvalidParameter(f"{place}: {name} is an option of the request; send it in parameters")
