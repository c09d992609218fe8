"""A row of the frozen backbone's features for each image: from the store, else through the served path."""

import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from app import engine, loading
from app.classifier import Classifier
from app.commands.train.examples import Advance, Example, Examples
from app.commands.train.progress import Bars
from app.commands.train.served import Rows
from app.commands.train.store import Store
from app.engine import Row, Want
from app.errors import Internal
from app.models.model import Model
from app.settings import Settings

Floats = npt.NDArray[np.float32]

_FORMAT = 1  # of what is stored


def features(examples: Sequence[Examples], model: Model, settings: Settings, bars: Bars) -> dict[bytes, Floats]:
    """Features by digest, of all that can be read; ``examples`` go on without the rest.

    ``settings`` name ``model``. The model is loaded only where features are missing. Raises ModelError.
    """
    wanted = {example.digest: example for part in examples for example in part.found}
    with Store(settings.cache_dir, key(model, settings)) as store:
        found = store.get(wanted)
        missing = [example for digest, example in wanted.items() if digest not in found]
        if missing:
            with bars.busy("loading the model"):
                classifier = Classifier(settings)
                loading.load(classifier)
            with bars.bar("features", len(missing)) as advance:
                unreadable = _compute(classifier, missing, store, found, advance)
            bad = {example.digest: unreadable[example.path] for example in missing if example.path in unreadable}
            for part in examples:
                part.leave_out({e.path: bad[e.digest] for e in part.found if e.digest in bad})
    return found


def key(model: Model, settings: Settings) -> str:
    """What features depend on beside the image, as a file's name."""
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


class _Stored(Rows):
    """Each row goes to the store as it comes: an interrupted run has it all the same."""

    def __init__(self, classifier: Classifier, missing: Sequence[Example], store: Store, advance: Advance) -> None:
        super().__init__(classifier, [example.path for example in missing], Want(features=True), advance)
        self.features: dict[bytes, Floats] = {}
        self._missing = missing
        self._store = store

    def took(self, position: int, row: Row) -> None:
        if row.features is None:
            raise Internal("no features came from the device")
        digest = self._missing[position].digest
        self.features[digest] = row.features.copy()
        self._store.add(digest, row.features)


def _compute(
    classifier: Classifier, missing: Sequence[Example], store: Store, found: dict[bytes, Floats], advance: Advance
) -> dict[Path, str]:
    try:
        rows = _Stored(classifier, missing, store, advance)
        rows.ask()
    finally:
        classifier.close()
    found |= rows.features
    return rows.unreadable
