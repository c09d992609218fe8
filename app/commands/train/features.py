"""The features of each image from the frozen backbone: stored ones, or computed on the same path as a request."""

import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from app import engine
from app.classifier import Classifier
from app.commands import inference
from app.commands.files import reason
from app.commands.inference import Outcome
from app.commands.train.examples import Advance, Example, TrainingSet
from app.commands.train.feature_store import FeatureStore
from app.commands.train.progress import TrainingProgress
from app.engine import Want
from app.errors import BadImage, EmptyBody, Internal, TopkError
from app.models.model import Model
from app.settings import Settings

Floats = npt.NDArray[np.float32]

_FORMAT = 2  # of the store


def features(
    examples: Sequence[TrainingSet], model: Model, settings: Settings, progress: TrainingProgress
) -> dict[bytes, Floats]:
    """Features by digest. Images that cannot be read are removed from ``examples``.

    ``settings`` name ``model``. The model is loaded only if features are missing. Raises ModelError.
    """
    wanted = {example.digest: example for part in examples for example in part.found}
    with FeatureStore(settings.cache_dir, key(model, settings)) as store:
        found = store.get(wanted)
        missing = [example for digest, example in wanted.items() if digest not in found]
        if missing:
            with progress.busy("loading the model"):
                classifier = inference.load(settings)
            with progress.bar("features", len(missing)) as advance:
                unreadable = _compute(classifier, missing, store, found, advance)
            bad = {example.digest: unreadable[example.path] for example in missing if example.path in unreadable}
            for part in examples:
                part.leave_out({e.path: bad[e.digest] for e in part.found if e.digest in bad})
    return found


def key(model: Model, settings: Settings) -> str:
    """Everything that features depend on, except the image, as a file name."""
    name = engine.choose(settings.engine, settings.device)
    precision = engine.create(model, name, settings.device, settings.precision).precision
    libraries = ("pillow", "openvino" if name == "openvino" else "torch")
    facts = {
        "format": _FORMAT,
        "digest": model.digest,
        "architecture": model.architecture,
        "preprocessing": asdict(model.preprocessing),
        "fast_decode": settings.fast_decode,
        "engine": name,
        "precision": precision,
        "versions": [importlib.metadata.version(library) for library in libraries],
    }
    digest = hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return f"{''.join(c if c.isalnum() else '-' for c in model.architecture)}-{digest[:16]}"


def _compute(
    classifier: Classifier,
    missing: Sequence[Example],
    store: FeatureStore,
    found: dict[bytes, Floats],
    advance: Advance,
) -> dict[Path, str]:
    """Add the missing features to ``store`` and ``found``. Returns the reasons of unreadable files."""
    unreadable: dict[Path, str] = {}

    def done(position: int, outcome: Outcome) -> None:
        example = missing[position]
        match outcome:
            case OSError():
                unreadable[example.path] = reason(outcome)
            case BadImage() | EmptyBody():
                unreadable[example.path] = outcome.detail
            case TopkError():
                raise outcome
            case _:
                if outcome.features is None:
                    raise Internal("the engine returned no features")
                found[example.digest] = outcome.features.copy()
                store.add(example.digest, outcome.features)
        advance()

    try:
        inference.classify_files(classifier, [example.path for example in missing], Want(features=True), done)
    finally:
        classifier.close()
    return unreadable
