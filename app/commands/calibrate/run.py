"""A whole calibration in order: find the photographs, classify them in each precision, fit, write."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from app import __version__, engine, models
from app.calibration import Calibration, fit
from app.calibration.calibration import LEAST_TEMPERATURE, MOST_TEMPERATURE
from app.commands import inference
from app.commands.calibrate import figures
from app.commands.calibrate.figures import Figures, Ints
from app.commands.calibrate.logits import LabelledLogits, logits
from app.commands.calibrate.target import CalibrationFolder, seen_in_training
from app.commands.evaluate.local import logit_facts
from app.commands.evaluate.progress import EvaluationProgress
from app.commands.evaluate.read import Samples, find, match
from app.commands.filenames import printable
from app.commands.train.feature_store import FeatureStore
from app.errors import CalibrationError
from app.settings import Settings

_MOST_NAMED = 5  # unreadable files
_FEW = 99  # a coverage of 99 % needs as many photographs


@dataclass(frozen=True, slots=True)
class Measured:
    """One precision: its calibration, and the cross-fitted figures."""

    precision: str
    calibration: Calibration
    figures: Figures

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON."""
        found = self.calibration
        return {
            "precision": self.precision,
            "temperature": found.temperature,
            "penalty": found.regularisation.penalty,
            "free": found.regularisation.free,
            "most_coverage": found.most_coverage,
            "least_unknown": found.least_unknown,
            **self.figures.as_dict(),
        }


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The result: what was measured in each precision, remarks for the user, and the folder that was written."""

    measured: tuple[Measured, ...]
    notes: tuple[str, ...]
    out: Path


def run(images: Path, settings: Settings, out: Path | None, progress: EvaluationProgress) -> Calibrated:
    """Calibrate. Nothing is written before all is measured. Raises CalibrationError, EvaluationError and ModelError.

    The stored logits are deleted once the calibration is written. They stay if the run is interrupted or fails.
    """
    target = CalibrationFolder(settings, out, images)
    files = find(images, once=True)
    measured, stores = [], []
    for precision in precisions(settings):
        with progress.loading():
            chosen = settings.model_copy(update={"precision": precision})
            classifier = inference.load(chosen)
        with closing(classifier), progress:
            samples = match(files, classifier.model.labels)
            _check(samples.truth)
            progress.begin(precision, len(samples.files))
            with FeatureStore(settings.cache_dir, _key(logit_facts(classifier))) as store:
                found = logits(samples, classifier, store, progress)
        stores.append(store)
        with progress.fitting():
            measured.append(_measured(precision, found))
    notes = [*_notes(settings, samples, found), *(remark for one in measured for remark in remarks(one))]
    with progress.writing():
        target.write({one.precision: one.calibration for one in measured})
    for store in stores:
        store.delete()
    return Calibrated(tuple(measured), tuple(notes), target.out)


def precisions(settings: Settings) -> tuple[str, ...]:
    """The precisions to calibrate: the requested one, or all that this machine computes natively."""
    if settings.precision != "auto":
        return (settings.precision,)
    name = engine.choose(settings.engine, settings.device)
    return engine.precisions(models.resolve(settings, converted=name == "openvino"), name, settings.device)


def remarks(measured: Measured) -> Iterator[str]:
    """What a reader needs to know about the figures of a precision."""
    found = measured.calibration
    if not measured.figures.mistakes:
        yield (
            f"{measured.precision}: the model makes no mistake on these photographs, so the temperature stays at 1;"
            " calibrate with more photographs of the kind that the service receives"
        )
    elif found.temperature in (LEAST_TEMPERATURE, MOST_TEMPERATURE):
        yield f"{measured.precision}: the temperature is at its limit, {found.temperature:g}; check the labels"


def _check(truth: Ints) -> None:
    try:
        fit.check(truth)
    except ValueError as error:
        raise CalibrationError(str(error)) from None


def _measured(precision: str, found: LabelledLogits) -> Measured:
    _check(found.truth)  # some photographs may be unreadable
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Measured(precision, fit.fit(found.values, found.truth, created), figures.measure(found.values, found.truth))


def _notes(settings: Settings, samples: Samples, found: LabelledLogits) -> Iterator[str]:
    yield from samples.notes
    if trained := seen_in_training(settings, samples.files):
        yield (
            f"warning: the model was trained on {trained:,} of these {len(samples.files):,} photographs, so its"
            " promises are too optimistic; calibrate with others"
        )
    if found.unreadable:
        named = [f"{printable(path)} ({why})" for path, why in sorted(found.unreadable.items())[:_MOST_NAMED]]
        more = f" and {len(found.unreadable) - len(named):,} more" if len(found.unreadable) > len(named) else ""
        yield f"not readable, and left out: {', '.join(named)}{more}"
    if len(found.truth) < _FEW:
        yield f"{len(found.truth)} photographs are few: a coverage of 99 % needs at least {_FEW}"


def _key(subject: dict[str, Any]) -> str:
    """Everything that logits depend on, except the photograph, as a file name."""
    identity = orjson.dumps({"topk": __version__, "logits": 1, **subject}, option=orjson.OPT_SORT_KEYS)
    return f"logits-{hashlib.sha256(identity).hexdigest()[:32]}"
