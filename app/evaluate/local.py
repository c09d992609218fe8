"""A model in this process, by the path that HTTP takes behind its door."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from app.classifier import Classifier
from app.engine import Want
from app.errors import BadImage, Internal
from app.evaluate.metrics import K
from app.evaluate.source import Answer, Ask, Unreadable
from app.models.model import Model
from app.settings import Settings

_PATIENCE_S = 600.0


class Local:
    """A loaded classifier. Close it."""

    at_once = 64

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.labels = classifier.model.labels

    @property
    def model(self) -> Model:
        return self.classifier.model

    @property
    def facts(self) -> dict[str, Any]:
        info = self.classifier.info()
        names = ("model", "weights", "digest", "engine", "device", "precision", "preprocessing")
        return {name: info[name] for name in names} | {"fast_decode": info["decode"]["fast"]}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Ask]:
        yield self._ask

    async def _ask(self, content: bytes) -> Answer:
        want = Want(k=min(K, len(self.labels)))
        try:
            result = await self.classifier.classify(content, want, time.monotonic() + _PATIENCE_S)
        except (BadImage, Internal) as error:
            raise Unreadable(error.code, error.detail) from error
        return Answer(tuple(result.row.class_ids.tolist()), tuple(result.row.scores.tolist()))


def reference(settings: Settings, precision: str) -> Settings:
    """The settings that answer as a plain torchvision loop does, in this precision."""
    return settings.model_copy(update={"engine": "torch", "precision": precision, "fast_decode": False})


def load(settings: Settings) -> Local:
    """Blocks. Raises ModelError."""
    classifier = Classifier(settings)
    classifier.load()
    return Local(classifier)
