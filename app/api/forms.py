"""What a route takes as its body, and the images that come out of it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from app.errors import EmptyBody, MalformedRequest, PayloadTooLarge, TopkError

FIELDS = ("file", "image", "data")


@dataclass(frozen=True, slots=True)
class Form:
    """What a route takes as its body.

    ``several``: more than one image. ``fields``: which parts of a multipart body are images; without any the body is
    one document, whatever its Content-Type. ``documents``: a JSON body may hold several images even so.
    """

    several: bool = False
    fields: tuple[str, ...] = FIELDS
    documents: bool = False

    def kind(self, request: Request) -> str:
        """How a body carries its images: multipart, json or raw."""
        given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not self.fields or given == "application/json" or given.endswith("+json"):
            return "json"
        return "multipart" if given == "multipart/form-data" else "raw"

    @property
    def hint(self) -> str:
        """What to send."""
        if not self.fields:
            return "send a JSON body"
        return f"send an image: multipart field `{self.fields[0]}`, the raw body, or JSON"


ONE = Form()
SEVERAL = Form(several=True)


@dataclass(frozen=True, slots=True)
class Upload:
    """One image as it came: its bytes, or a tensor that is preprocessed already, or why there is neither."""

    content: bytes | npt.NDArray[np.float32] | TopkError
    filename: str | None = None


def bounded(content: bytes, most: int) -> bytes | TopkError:
    """The bytes of one image, or what is wrong with their number."""
    if len(content) > most:
        return too_many_bytes(most)
    return content or EmptyBody("the image is empty")


def too_many_bytes(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"an image of more than {most} bytes")


def only(uploads: list[Upload]) -> list[Upload]:
    """The one image of a request; raises what is wrong with it."""
    if len(uploads) > 1:
        raise MalformedRequest("one image a request; /v1/predict/batch takes several")
    if isinstance(uploads[0].content, TopkError):
        raise uploads[0].content
    return uploads
