"""Members of JSON documents, checked before they are used."""

from app.api.excerpts import json_type, shown
from app.errors import InvalidParameter, MalformedRequest

MOST = 2**31 - 1
"""The largest whole number that is read from JSON: numbers are compared, multiplied and shown."""


def whole_number(value: object, name: str) -> int:
    """A whole number from 1 to ``MOST``. Raises InvalidParameter."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON Schema: 3.0 is an integer
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
        raise InvalidParameter(f"{name} must be a whole number between 1 and {MOST}, got {shown(value)}")
    return value


def members(value: object, name: str) -> dict[str, object]:
    """An object; empty if it is absent. Raises MalformedRequest."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedRequest(f"{name} must be an object, got {json_type(value)}")
    return value


def json_object(value: object) -> dict[str, object]:
    """A document that is an object. Raises MalformedRequest."""
    if not isinstance(value, dict):
        raise MalformedRequest(f"the JSON body must be an object, got {json_type(value)}")
    return value
