"""The model's answer to each file, as the object that ``--json`` prints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from rich.progress import Progress

from app.api.excerpts import shown
from app.api.options import PredictOptions, invalid
from app.api.predicting import Predicting
from app.classifier import Classifier
from app.commands import inference
from app.commands.console import err, warn
from app.commands.filenames import exact
from app.commands.predict.inputs import read
from app.commands.predict.pictures import Pictures
from app.errors import Internal, InvalidParameter, ModelError, TopkError
from app.imagenet.labels import Label
from app.imagenet.taxonomy import answer_confidence
from app.settings import Settings
from app.telemetry.logging import configure_logging

Answer = dict[str, Any]

BEST_CLASS = "true"
"""The option ``explain`` for the best class."""


def options(**given: Any) -> PredictOptions:
    """The options of a prediction, as the API has them. Raises ModelError if they are invalid for any model."""
    try:
        answer_confidence(bool(given["taxonomy"]), given["confidence"])
        found = PredictOptions(**given)
    except ValidationError as error:
        raise ModelError(_invalid(error.errors()[0])) from error
    except ValueError as error:
        raise ModelError(f"--{error}") from error
    if found.coverage is not None and found.confidence is not None:
        raise ModelError(
            "--confidence and --coverage exclude each other: with --coverage, the answer contains the whole set"
        )
    return found


def _invalid(error: ErrorDetails) -> str:
    """The message for one invalid option."""
    if error["loc"] == ("explain",):
        return f"--explain-class must be a class id or a wnid, got {shown(error['input'])}"
    return f"--{invalid(error).detail}"


def answer_files(
    files: Sequence[Path], pictures: Sequence[Path], options: PredictOptions, settings: Settings
) -> list[Answer]:
    """The answers, in the order of the files. Blocks. Raises ModelError, DeviceLost and ReportError.

    ``pictures`` has the path of each file's picture if ``options`` want an explanation.
    """
    configure_logging(settings.log_format, "warning")
    with err.status("loading the model"):
        classifier = inference.load(settings)
    try:
        predicting = _predicting(classifier, options)
        if classifier.model.warning:
            warn(classifier.model.warning)
        drawn = Pictures(pictures, classifier.model.preprocessing, settings.max_pixels) if pictures else None
        return _answers(files, _Answering(classifier, predicting, drawn))
    finally:
        classifier.close()


class _Answering:
    """Answers a file's content, and writes its picture if ``pictures`` are wanted."""

    def __init__(self, classifier: Classifier, predicting: Predicting, pictures: Pictures | None) -> None:
        self._classifier = classifier
        self._predicting = predicting
        self._pictures = pictures

    async def answer(self, position: int, content: bytes) -> Answer:
        """Raises TopkError."""
        result = await inference.classify(self._classifier, content, self._predicting.want)
        members: Answer = self._predicting.head() | self._predicting.write(result)
        if self._pictures:
            if result.size is None:
                raise Internal("the size of the photograph is not known")
            await self._pictures.write(position, content, result.size, self._predicting.explanation(result))
        return members


def _answers(files: Sequence[Path], answering: _Answering) -> list[Answer]:
    found: dict[int, Answer] = {}
    with Progress(console=err, transient=True, disable=len(files) < 2 or not err.is_terminal) as progress:
        task = progress.add_task("classifying", total=len(files))

        def done(position: int, outcome: Answer | TopkError | OSError) -> None:
            members = outcome if isinstance(outcome, dict) else {"error": _error(outcome)}
            found[position] = {"file": exact(files[position])} | members
            progress.advance(task)

        inference.for_files(files, answering.answer, done, read)
    return [found[position] for position in range(len(files))]


def _error(error: TopkError | OSError) -> dict[str, str]:
    if isinstance(error, TopkError):
        return {"code": error.code, "detail": error.detail}
    return {"code": "unreadable_file", "detail": error.strerror or str(error)}


def _predicting(classifier: Classifier, options: PredictOptions) -> Predicting:
    """What to compute, and how it is written. Raises ModelError for options that the model does not support."""
    labels, explained = classifier.model.labels, options.explain
    if options.top_k and options.top_k > len(labels):
        raise ModelError(f"--top-k {options.top_k} is more than the model's {len(labels)} classes")
    if options.taxonomy and classifier.taxonomy is None:
        raise ModelError("--taxonomy: the model's classes are not in WordNet")
    if explained not in (None, BEST_CLASS) and not _is_class(explained, labels):
        raise ModelError(
            f"--explain-class must be a class id between 0 and {len(labels) - 1} or the wnid of a class, got"
            f" {shown(explained)}"
        )
    try:
        return Predicting(classifier, options)
    except InvalidParameter as error:
        raise ModelError(f"--{error.detail}") from error


def _is_class(text: str, labels: Sequence[Label]) -> bool:
    return int(text) < len(labels) if text.isdigit() else any(label.wnid == text for label in labels)
