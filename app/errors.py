"""The error tree. Every error has the HTTP status and the stable code that its response shows.

TopkError
├── BadRequest                 the request itself
│   ├── EmptyBody · InvalidParameter · MalformedRequest · UploadTimeout · PayloadTooLarge
│   └── Unauthorized · NotFound · MethodNotAllowed · RateLimited
├── BadImage                   bytes -> decoded
│   └── UnsupportedMediaType · UndecodableImage · TooManyPixels
├── Unavailable                decoded -> queued
│   ├── Overloaded · DeadlineExceeded
│   └── NotReady
│       └── DeviceLost
├── Internal                   queued -> predicted: a defect
└── CommandError               a command cannot do its work; never sent to a client
    ├── ModelError             the model or a setting cannot be served
    │   └── NotConvertible · Inexplicable
    ├── LoadTestError · EvaluationError · CalibrationError · TrainingError
    └── ReportError            a report cannot be written

Foreign exceptions are converted at one place each: Pillow's in ``images``, the device's in ``engine.base``, the
web framework's in ``api.problems``.
"""

import math
from typing import ClassVar


class TopkError(Exception):
    """Root of the tree. The response shows ``detail``, so it never contains internals.

    ``retry_after_s`` is the number of seconds after which a retry may succeed, if known.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s

    def at(self, place: str) -> "TopkError":
        """The same error with its place in the request in front of the detail."""
        error = type(self).__new__(type(self))
        TopkError.__init__(error, f"{place}: {self.detail}", self.retry_after_s)
        return error

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to this error."""
        return {} if self.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}

    @property
    def members(self) -> dict[str, int]:
        """Members of the response in addition to those of RFC 9457."""
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
    """Refused because the response would be late. ``retry_after_s`` is predicted from measured costs."""

    status, code, title = 503, "overloaded", "Overloaded"

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail, retry_after_s)


class DeadlineExceeded(Unavailable):
    status, code, title = 504, "deadline_exceeded", "The deadline passed"


class NotReady(Unavailable):
    status, code, title = 503, "not_ready", "Not ready"

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail, retry_after_s)


class DeviceLost(NotReady):
    """The device has failed or hangs. Only a new process can use it again."""


class Internal(TopkError):
    status, code, title = 500, "internal", "Internal error"


class CommandError(TopkError):
    """A command cannot do its work. It prints ``detail`` and exits with code 1. Never sent to a client."""


class ModelError(CommandError):
    """The model, its weights or a setting is invalid."""


class NotConvertible(ModelError):
    """OpenVINO cannot run this network; torch can."""


class Inexplicable(ModelError):
    """The network has no class activation maps that explain its logits. Clients that want them get the reason."""


class LoadTestError(CommandError):
    """`topk bench` cannot use the server or the images."""


class EvaluationError(CommandError):
    """`topk evaluate` cannot use the images, their labels or the service."""


class CalibrationError(CommandError):
    """`topk calibrate` cannot use the photographs or the options."""


class TrainingError(CommandError):
    """`topk train` cannot use the folder or the options."""


class ReportError(CommandError):
    """A report cannot be written."""
