"""The request bodies that a route accepts, and the images in them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from app.errors import EmptyBody, MalformedRequest, PayloadTooLarge, TopkError

FIELDS = ("file", "image", "data")
_INDEX = re.compile(r"\[\d*\]$")
_PLURALS = {"files": "file", "images": "image"}


@dataclass(frozen=True, slots=True)
class Form:
    """The request bodies that a route accepts.

    ``several``: more than one image. ``fields``: the multipart fields that hold images; without any, the body is one
    JSON document, whatever its Content-Type. ``documents``: a JSON body may hold several images even if ``several`` is
    false.
    """

    several: bool = False
    fields: tuple[str, ...] = FIELDS
    documents: bool = False

    def kind(self, request: Request) -> str:
        """How the body carries its images: ``multipart``, ``json`` or ``raw``."""
        kind = media_type(request)
        if not self.fields or kind == "application/json" or kind.endswith("+json"):
            return "json"
        return "multipart" if kind.startswith("multipart/") else "raw"  # unknown ones are like mixed: RFC 2046, 5.1.7

    def holds_image(self, field: str) -> bool:
        """Whether a field of a form holds an image: ``file``, also as ``files``, ``file[]`` or ``files[0]``."""
        name = _INDEX.sub("", field)
        return _PLURALS.get(name, name) in self.fields

    @property
    def hint(self) -> str:
        """What to send, for error messages."""
        if not self.fields:
            return "send a JSON body"
        return f"send an image: multipart field `{self.fields[0]}`, the raw body, or JSON"


ONE = Form()
SEVERAL = Form(several=True)


@dataclass(frozen=True, slots=True)
class Upload:
    """One image of a request: its bytes, a preprocessed tensor, or the error that it fails with."""

    content: bytes | npt.NDArray[np.float32] | TopkError
    filename: str | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """The images of a body, and the names and values that came beside them.

    ``typed``: the values are JSON values; otherwise they are the text of form fields.
    """

    images: list[Upload]
    options: Sequence[tuple[str, object]] = ()
    typed: bool = False


def media_type(request: Request) -> str:
    """The media type of the body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def bounded(content: bytes, most: int) -> bytes | TopkError:
    """The bytes of one image, or the error if it is empty or larger than ``most`` bytes."""
    if len(content) > most:
        return too_many_bytes(most)
    return content or EmptyBody("the image is empty")


def too_many_bytes(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the image is larger than {most} bytes (TOPK_MAX_UPLOAD_BYTES)")


def only(uploads: list[Upload]) -> list[Upload]:
    """The uploads, if they are one valid image. Raises MalformedRequest, or the image's own error."""
    if len(uploads) > 1:
        raise several_images()
    if isinstance(uploads[0].content, TopkError):
        raise uploads[0].content
    return uploads


def several_images() -> MalformedRequest:
    return MalformedRequest("the request has more than one image; send one, or use /v1/predict/batch")
