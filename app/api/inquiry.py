"""What the body of another protocol asks for, and how its response is made."""

from collections.abc import Callable
from typing import Protocol

from starlette.responses import Response

from app.api.forms import Upload
from app.api.uploads import Uploads
from app.classifier import Classifier, Result
from app.engine import Want


class Inquiry(Protocol):
    """Images, the values wanted of each, and the response made of their results.

    ``place`` names the list of images in error messages.
    """

    @property
    def images(self) -> list[Upload]: ...
    @property
    def place(self) -> str: ...
    @property
    def sets(self) -> bool:
        """Whether the response has a prediction set of each image."""

    def want(self, classifier: Classifier) -> Want: ...
    def answer(self, classifier: Classifier, results: list[Result]) -> Response: ...


Document = Callable[[dict[str, object], Uploads], Inquiry]
"""Reads a JSON document."""
