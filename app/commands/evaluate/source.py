"""The model under evaluation, as a run uses it: the bytes of an image in, its best classes out."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

from app.imagenet.labels import Label

_FACTS = ("model", "weights", "digest", "engine", "device", "precision", "preprocessing", "warning")


class TopClasses(NamedTuple):
    """The best classes of an image, at most five, highest score first."""

    class_ids: tuple[int, ...]
    scores: tuple[float, ...]


class Unreadable(Exception):
    """This image has no prediction. ``code`` and ``detail`` are those of the API's error."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


Classify = Callable[[bytes], Awaitable[TopClasses]]
"""Raises Unreadable; EvaluationError if the run cannot continue."""


class Source(Protocol):
    """A model, in this process or behind a URL. ``facts`` are everything its predictions depend on."""

    labels: tuple[Label, ...]
    at_once: int

    @property
    def facts(self) -> dict[str, Any]: ...

    def opened(self) -> AbstractAsyncContextManager[Classify]: ...


def facts(info: dict[str, Any]) -> dict[str, Any]:
    """The members of ``/v1/info`` that predictions depend on. Raises KeyError and TypeError for other documents."""
    return {name: info[name] for name in _FACTS} | {"fast_decode": info["decode"]["fast"]}
