"""What is evaluated, as a run sees it: bytes of an image in, its best classes out."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

from app.models.labels import Label


class Answer(NamedTuple):
    """An image's best classes, best first, at most five."""

    class_ids: tuple[int, ...]
    scores: tuple[float, ...]


class Unreadable(Exception):
    """This image has no answer, for the reason that the API would give."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


Ask = Callable[[bytes], Awaitable[Answer]]
"""Raises Unreadable; EvaluationError where going on is of no use."""


class Source(Protocol):
    """A model behind some path. ``facts`` has model, weights, digest, engine, device, precision and fast_decode."""

    labels: tuple[Label, ...]
    at_once: int

    @property
    def facts(self) -> dict[str, Any]: ...

    def opened(self) -> AbstractAsyncContextManager[Ask]: ...
