"""Images as text: base64, ``data:`` URLs, and the forms that send them."""

import re

from app.api.documents import Body, from_base64, percent_decoded
from app.api.excerpts import json_type
from app.api.forms import bounded, too_many_bytes
from app.errors import MalformedRequest, TopkError
from app.images import sniff_base64

_PREFIX = 64  # characters that are enough to recognise a value
_DATA_HEAD = 1024  # characters before the comma of a data: URL
_MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"  # the byte-order mark
_URL = re.compile(rb"(\xef\xbb\xbf)?\s*(data|https?|ftp|file|s3|gs)(:|%3a)", re.IGNORECASE)
_ENCODED_HEAD = re.compile(r"\s*data(%3a|:[^,]*%2c)", re.IGNORECASE)
_BASE64_HEAD = re.compile(r"; *base64\s*", re.IGNORECASE)
_URLS = ("http:", "https:", "ftp:", "file:", "s3:", "gs:")


def is_text(content: Body) -> bool:
    """Whether the content of a raw body or of a part is an image in base64, or a URL."""
    head = bytes(content[:_DATA_HEAD])
    return bool(_URL.match(head)) or sniff_base64(head) is not None


def from_text(value: object, most: int) -> bytes | TopkError:
    """The bytes of an image in base64 or in a ``data:`` URL, at most ``most``, or the error of this image."""
    if isinstance(value, bytes | bytearray):
        value = value.decode("utf-8", "replace").removeprefix(_MARK)
    if not isinstance(value, str):
        return MalformedRequest(f"an image must be a base64 string or a data: URL, got {json_type(value)}")
    if value[:_PREFIX].lstrip().lower().startswith(_URLS):
        return MalformedRequest("image URLs are not fetched: the server makes no outgoing requests; send the bytes")
    try:
        return _decoded(value, most)
    except ValueError:
        return MalformedRequest("the image is not valid base64; send the bytes of the file in base64")


def longest_base64(size: int) -> int:
    """The most bytes that so many bytes have as base64 in lines of 76 characters."""
    return size * 4 * 78 // (3 * 76) + 4


def _decoded(value: str, most: int) -> bytes | TopkError:
    """The bytes of base64 or of a ``data:`` URL, either of which may be percent-encoded. Raises ValueError."""
    if _ENCODED_HEAD.match(value[:_DATA_HEAD]):
        value = percent_decoded(value).decode()
    if value[:_PREFIX].lstrip().lower().startswith("data:"):
        comma = value.find(",", 0, _DATA_HEAD)
        parameters = value[: max(comma, 0)].rpartition(";")
        value = value[comma + 1 :]
        if not _BASE64_HEAD.fullmatch("".join(parameters[1:])):
            if "%" not in value:
                return MalformedRequest("the data: URL is not base64; send the bytes of the file in base64")
            return bounded(percent_decoded(value), most)
    if "%" in value:
        value = percent_decoded(value).decode("ascii")
    if len(value) > longest_base64(most):
        return too_many_bytes(most)
    return bounded(from_base64(value), most)
