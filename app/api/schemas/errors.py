"""Error responses: ``application/problem+json``, or the error body of a protocol."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, Field

from app.api.problems import MEDIA_TYPE, problem
from app.api.schemas.document import Responses, schema
from app.api.service import ErrorBody
from app.errors import (
    DeadlineExceeded,
    MalformedRequest,
    NotFound,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    TopkError,
    Unauthorized,
    UndecodableImage,
    UnsupportedMediaType,
    UploadTimeout,
)


class Problem(BaseModel):
    """RFC 9457."""

    type: str = Field(examples=["urn:topk:problem:unsupported_media_type"])
    title: str
    status: int = Field(examples=[415])
    detail: str
    code: str = Field(examples=["unsupported_media_type"])
    request_id: str
    retry_after_ms: int | None = Field(None, description="With `overloaded`, `rate_limited` and `not_ready`.")


_ERRORS: dict[int, tuple[str, TopkError]] = {
    400: (
        "`empty_body`, `invalid_parameter` or `malformed_request`",
        MalformedRequest("the image is not valid base64; send the bytes of the file in base64"),
    ),
    401: ("`unauthorized`, if the server has API keys", Unauthorized("the API key is not valid")),
    404: ("`not_found`, for another name than the served model's", NotFound("model x is not served; use resnet50")),
    408: ("`upload_timeout`", UploadTimeout("the body did not arrive in time")),
    413: ("`payload_too_large`", PayloadTooLarge("the image is larger than 20971520 bytes (TOPK_MAX_UPLOAD_BYTES)")),
    415: ("`unsupported_media_type`", UnsupportedMediaType("the file is not an image in a supported format")),
    422: ("`undecodable_image` or `too_many_pixels`", UndecodableImage("the image is truncated")),
    429: ("`rate_limited`", RateLimited("the rate limit of 600/minute is exceeded", 12.0)),
    503: ("`overloaded` or `not_ready`", Overloaded("the response would come too late", 1.4)),
    504: ("`deadline_exceeded`", DeadlineExceeded("the response did not come by the deadline")),
}
NAMED = tuple(_ERRORS)
"""The errors of an upload to a model by its name."""
UPLOAD = tuple(status for status in _ERRORS if status != 404)
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}


def errors(
    statuses: Iterable[int] = UPLOAD, kind: type[BaseModel] = Problem, error_body: ErrorBody | None = None
) -> Responses:
    """A route's error responses, for ``responses``: ``Problem``, or a protocol's ``error_body`` and its model."""
    media_type = "application/json" if error_body else MEDIA_TYPE
    return {status: _error(status, media_type, kind, error_body or _problem) for status in statuses}


def _error(status: int, media_type: str, kind: type[BaseModel], error_body: ErrorBody) -> dict[str, Any]:
    description, error = _ERRORS[status]
    content = {media_type: {"schema": _reference(kind), "example": error_body(error)}}
    return {"description": description, "content": content} | ({"headers": _RETRY_AFTER} if error.retry_after_s else {})


def _reference(kind: type[BaseModel]) -> dict[str, Any]:
    """A reference to the model as a component."""
    return {"$ref": f"#/components/schemas/{kind.__name__}", "$defs": {kind.__name__: schema(kind)}}


def _problem(error: TopkError) -> dict[str, object]:
    return problem(error, "0f8fad5bd9cb469fa16570867728950e")
