"""A model in this process, through the same code path as an HTTP request."""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from app import engine, loading, models
from app.api.info import describe
from app.classifier import Classifier
from app.commands import inference
from app.commands.evaluate.metrics import Floats, K
from app.commands.evaluate.run import Watch
from app.commands.evaluate.source import Classify, TopClasses, Unreadable, facts
from app.engine import Row, Want
from app.errors import BadImage, EvaluationError, Internal, TopkError
from app.models import folder
from app.settings import Settings


class Local:
    """A loaded classifier. Close it after use."""

    at_once = inference.AT_ONCE

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.labels = classifier.model.labels
        calibration = describe(classifier).calibration  # changes the scores
        self.facts = logit_facts(classifier) | {"calibration": calibration and calibration.model_dump()}

    def close(self) -> None:
        """Wait for the images in progress, then close the classifier. Blocks."""
        self.classifier.close()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Classify]:
        yield self._classify

    async def _classify(self, content: bytes) -> TopClasses:
        want = Want(k=min(K, len(self.labels)))
        try:
            row = (await inference.classify(self.classifier, content, want)).row
        except (BadImage, Internal) as error:
            raise Unreadable(error.code, error.detail) from error
        return TopClasses(tuple(row.class_ids.tolist()), tuple(row.scores.tolist()))

    def explain(self, files: Sequence[Path], class_ids: Sequence[int], watch: Watch) -> dict[int, Floats]:
        """The class activation map of each file for its class, float32 [rows, columns], by position.

        Empty if the network has no maps. A file that fails is left out, and so are all that follow a failed device.
        Blocks.
        """
        found: dict[int, Floats] = {}
        if self.classifier.served.inexplicable:
            return found
        finished = itertools.count(1)

        async def work(i: int, content: bytes) -> Row:
            return (await inference.classify(self.classifier, content, Want(explain=class_ids[i]))).row

        def done(i: int, outcome: inference.Outcome) -> None:
            if isinstance(outcome, Row) and outcome.activation is not None:
                found[i] = outcome.activation
            watch(next(finished))

        with suppress(TopkError):
            inference.for_files(files, work, done)
        return found


def logit_facts(classifier: Classifier) -> dict[str, Any]:
    """Everything that the logits of a model in this process depend on. Raises ModelError.

    ``network`` is the digest of an int8 network, which the digest of the weights does not determine; else None.
    """
    path = classifier.model.openvino if classifier.engine.precision == "int8" else None
    network = folder.identity(path.parent).network if path else None
    return facts(describe(classifier).model_dump()) | {"network": network}


def load(settings: Settings) -> Local:
    """Load the model that ``settings`` name. Blocks. Raises ModelError."""
    return Local(inference.load(settings))


def load_reference(settings: Settings, precision: str, digest: str) -> Local:
    """Load the reference: torch in this precision, every pixel decoded, as in a plain torchvision loop.

    ``digest`` is that of the weights under evaluation. Blocks. Raises ModelError; EvaluationError for other weights.
    """
    settings = settings.model_copy(update={"engine": "torch", "precision": precision, "fast_decode": False})
    model = models.resolve(settings)
    if f"sha256:{model.digest}" != digest:
        raise EvaluationError(
            f"the reference must have the weights {digest}, but --model and --weights name {model.name} with"
            f" sha256:{model.digest}; name the evaluated model"
        )
    classifier = Classifier(settings)
    loading.load_model(classifier, model, engine.create(model, "torch", settings.device, precision))
    return Local(classifier)
