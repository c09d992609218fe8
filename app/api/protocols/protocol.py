"""What the modules of the protocols have in common: their descriptions, names, versions and error bodies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel

from app.api.service import ErrorBody, Service
from app.classifier import Classifier
from app.errors import NotFound, TopkError
from app.settings import Settings

VERSION = "1"

ModelName = Annotated[str, Path(description="The served model's name.")]
Version = Annotated[str, Path(description="Always `1`.", examples=[VERSION])]


@dataclass(frozen=True, slots=True)
class Protocol:
    """``prefix``: paths below it belong to the protocol. Without ``error_body``, errors are problem documents."""

    name: str
    routes: Callable[[Settings], APIRouter]
    prefix: str | None = None
    error_body: ErrorBody | None = None


class ErrorMessage(BaseModel):
    """An error in most protocols."""

    error: str


def error_message(error: TopkError) -> dict[str, object]:
    """The body of ``ErrorMessage``."""
    return {"error": error.detail}


def named(request: Request, model: str, version: str | None = None) -> Classifier:
    """The classifier, if the request names its model. Raises NotFound, NotReady."""
    classifier = Service.of(request).ready_classifier()
    if model != classifier.model.name:
        raise NotFound(f"model {model} is not served; use {classifier.model.name}")
    if version not in (None, VERSION):
        raise NotFound(f"model {model} has no version {version}; use {VERSION}")
    return classifier
