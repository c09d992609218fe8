"""The error tree: every error carries the HTTP status and the stable code its caller sees.

TopkError
├── BadRequest                 the request itself
│   ├── EmptyBody · InvalidParameter · MalformedRequest · UploadTimeout · PayloadTooLarge
│   └── Unauthorized · NotFound · MethodNotAllowed · RateLimited
├── BadImage                   bytes -> decoded
│   └── UnsupportedMediaType · UndecodableImage · TooManyPixels
├── Unavailable                decoded -> queued
│   └── Overloaded · DeadlineExceeded · NotReady
├── Internal                   queued -> predicted: a defect
├── ModelError                 start-up only: what was asked for cannot be served
│   └── NotConvertible
├── LoadTestError              `topk bench` only: what was asked for cannot be measured
├── EvaluationError            `topk evaluate` only: what was asked for cannot be evaluated
├── TrainingError              `topk train` only: what was asked for cannot be trained
└── ReportError                a report cannot be written

Foreign exceptions are converted where they arise: Pillow's in ``images``, the device's in ``batching``,
the framework's in ``api.problems``.
"""

import math
from typing import ClassVar


class TopkError(Exception):
    """Root of the tree. ``detail`` is shown to the caller: it never holds internals.

    ``retry_after_s``: seconds until a like request may be answered, where that is known.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s

    def at(self, place: str) -> "TopkError":
        """The same error, whose detail says where in the request it arose."""
        error = type(self).__new__(type(self))
        TopkError.__init__(error, f"{place}: {self.detail}", self.retry_after_s)
        return error

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to this error."""
        return {} if self.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}

    @property
    def members(self) -> dict[str, int]:
        """Members beside those of RFC 9457."""
        return {} if self.retry_after_s is None else {"retry_after_ms": max(1, math.ceil(self.retry_after_s * 1000))}


class BadRequest(TopkError):
    status, code, title = 400, "malformed_request", "Bad request"


class EmptyBody(BadRequest):
    status, code, title = 400, "empty_body", "Nothing was sent"


class InvalidParameter(BadRequest):
    status, code, title = 400, "invalid_parameter", "Invalid parameter"


class MalformedRequest(BadRequest):
    status, code, title = 400, "malformed_request", "Malformed request"


class Unauthorized(BadRequest):
    status, code, title = 401, "unauthorized", "API key missing or wrong"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class NotFound(BadRequest):
    status, code, title = 404, "not_found", "Not found"


class MethodNotAllowed(BadRequest):
    status, code, title = 405, "method_not_allowed", "Method not allowed"


class UploadTimeout(BadRequest):
    status, code, title = 408, "upload_timeout", "The upload took too long"


class PayloadTooLarge(BadRequest):
    status, code, title = 413, "payload_too_large", "Payload too large"


class RateLimited(BadRequest):
    status, code, title = 429, "rate_limited", "Too many requests"


class BadImage(TopkError):
    status, code, title = 422, "undecodable_image", "Bad image"


class UnsupportedMediaType(BadImage):
    status, code, title = 415, "unsupported_media_type", "Not an image format we decode"


class UndecodableImage(BadImage):
    status, code, title = 422, "undecodable_image", "The image cannot be decoded"


class TooManyPixels(BadImage):
    status, code, title = 422, "too_many_pixels", "The image has too many pixels"


class Unavailable(TopkError):
    status, code, title = 503, "not_ready", "Unavailable"


class Overloaded(Unavailable):
    """Refused at admission: the answer would come too late. When to come again is predicted from measured costs."""

    status, code, title = 503, "overloaded", "Overloaded"

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail, retry_after_s)


class DeadlineExceeded(Unavailable):
    status, code, title = 504, "deadline_exceeded", "The deadline passed"


class NotReady(Unavailable):
    status, code, title = 503, "not_ready", "Not ready"

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail, retry_after_s)


class Internal(TopkError):
    status, code, title = 500, "internal", "Internal error"


class ModelError(TopkError):
    """The model, its weights or a setting named at start cannot be served. Never reaches a client."""


class NotConvertible(ModelError):
    """OpenVINO does not take this network; torch serves it."""


class LoadTestError(TopkError):
    """The server or the images that `topk bench` is to use cannot be used. Never reaches a client."""


class EvaluationError(TopkError):
    """The images, their labels or the service that `topk evaluate` is to use cannot be used. Never reaches a client."""


class TrainingError(TopkError):
    """The folder that `topk train` is to learn from, or what is asked for, cannot be used. Never reaches a client."""


class ReportError(TopkError):
    """A report cannot be written. Never reaches a client."""
