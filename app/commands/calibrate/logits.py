"""The logits of labelled photographs, by the same path as a request. What is computed survives an interruption."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.classifier import Classifier
from app.commands import inference
from app.commands.evaluate.journal import Stamp
from app.commands.evaluate.read import Samples
from app.commands.files import reason
from app.commands.inference import Outcome
from app.commands.train.feature_store import FeatureStore
from app.engine import Want
from app.errors import BadImage, EmptyBody, Internal, TopkError

Advance = Callable[[int], None]
"""Called with the number of finished photographs, including those of an earlier run."""


@dataclass(frozen=True, slots=True)
class LabelledLogits:
    """``values`` float32 [n, classes] and ``truth`` int64 [n] of the readable photographs; why the others are not."""

    values: npt.NDArray[np.float32]
    truth: npt.NDArray[np.int64]
    unreadable: dict[Path, str]


def logits(samples: Samples, classifier: Classifier, store: FeatureStore, advance: Advance) -> LabelledLogits:
    """The logits of all samples: stored ones, or computed now. Raises TopkError."""
    keys = [_key(file) for file in samples.files]
    found = store.get(key for key in keys if key)
    missing = [i for i, key in enumerate(keys) if key not in found]
    unreadable: dict[Path, str] = {}
    done = len(keys) - len(missing)
    advance(done)

    def finish(position: int, outcome: Outcome) -> None:
        nonlocal done
        i = missing[position]
        if (row := _row(outcome)) is None:
            unreadable[samples.files[i]] = _reason(outcome)
        elif key := keys[i]:
            found[key] = row
            store.add(key, row)
        done += 1
        advance(done)

    inference.classify_files(classifier, [samples.files[i] for i in missing], Want(logits=True), finish)
    known = [i for i, key in enumerate(keys) if key in found]
    classes = len(classifier.model.labels)
    values = np.stack([found[keys[i] or b""] for i in known]) if known else np.zeros((0, classes), np.float32)
    return LabelledLogits(values, samples.truth[known], unreadable)


def _key(file: Path) -> bytes | None:
    """The file as it is now; None if it cannot be read."""
    try:
        stamp = Stamp.of(file)
    except OSError:
        return None
    return hashlib.sha256(os.fsencode(os.path.abspath(file)) + repr(tuple(stamp)).encode()).digest()


def _row(outcome: Outcome) -> npt.NDArray[np.float32] | None:
    """The logits; None if the file has none. Raises the errors that are not of the file."""
    if isinstance(outcome, OSError | BadImage | EmptyBody):
        return None
    if isinstance(outcome, TopkError):
        raise outcome
    if outcome.logits is None:
        raise Internal("the engine returned no logits")
    return outcome.logits.copy()


def _reason(outcome: Outcome) -> str:
    return reason(outcome) if isinstance(outcome, OSError) else getattr(outcome, "detail", "")
