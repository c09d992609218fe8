"""A model in this process, by the path that HTTP takes behind its door."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from app import engine, loading, models
from app.classifier import Classifier
from app.commands.evaluate.metrics import K
from app.commands.evaluate.source import Answer, Ask, Unreadable, facts
from app.engine import Want
from app.errors import BadImage, EvaluationError, Internal
from app.settings import Settings

_PATIENCE_S = 600.0


class Local:
    """A classifier, loaded: close it."""

    at_once = 64

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.labels = classifier.model.labels

    @property
    def facts(self) -> dict[str, Any]:
        return facts(self.classifier.info())

    def close(self) -> None:
        """Blocks until the images under way are through."""
        self.classifier.close()

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


def load(settings: Settings) -> Local:
    """Blocks. Raises ModelError."""
    classifier = Classifier(settings)
    loading.load(classifier)
    return Local(classifier)


def load_reference(settings: Settings, precision: str, digest: str) -> Local:
    """What a plain torchvision loop answers in this precision: torch, and every pixel decoded.

    ``digest`` is that of the weights it is compared with. Blocks. Raises ModelError; EvaluationError for other weights.
    """
    settings = settings.model_copy(update={"engine": "torch", "precision": precision, "fast_decode": False})
    model = models.resolve(settings)
    if f"sha256:{model.digest}" != digest:
        raise EvaluationError(
            f"the reference is to have the weights {digest}, but --model and --weights name others here: {model.name}"
            f" with sha256:{model.digest}"
        )
    classifier = Classifier(settings)
    loading.load_model(classifier, model, engine.create(model, "torch", settings.device, precision))
    return Local(classifier)
