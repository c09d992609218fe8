"""What is evaluated, as a run sees it: bytes of an image in, its best classes out."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

from app.imagenet.labels import Label

_FACTS = ("model", "weights", "digest", "engine", "device", "precision", "preprocessing", "warning")


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
    """A model behind some path, whose ``facts`` answers depend on."""

    labels: tuple[Label, ...]
    at_once: int

    @property
    def facts(self) -> dict[str, Any]: ...

    def opened(self) -> AbstractAsyncContextManager[Ask]: ...


def facts(info: dict[str, Any]) -> dict[str, Any]:
    """What answers depend on, of ``/v1/info``. Raises KeyError and TypeError where that is something else."""
    return {name: info[name] for name in _FACTS} | {"fast_decode": info["decode"]["fast"]}
