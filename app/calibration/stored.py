"""``calibration.json`` in a model folder: a calibration for each precision, bound to what it was measured on."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.calibration.calibration import LEAST_IMAGES, LEAST_TEMPERATURE, MOST_TEMPERATURE, Calibration
from app.calibration.conformal import Regularisation
from app.errors import ModelError
from app.imagenet.labels import Label
from app.images import Preprocessing

FILE = "calibration.json"
FORMAT = 1

_OTHER = {  # by the member of ``Identity`` that differs
    "weights": "other weights",
    "labels": "other labels",
    "preprocessing": "other preprocessing",
    "network": "another network",
}
_Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Identity:
    """What a calibration belongs to, as SHA-256 digests. ``network`` is that of an int8 model's network, else None.

    The weights of an int8 model do not determine its network, which depends on the images it was quantised with.
    """

    weights: str
    labels: str
    preprocessing: str
    network: str | None = None

    @classmethod
    def of(
        cls, weights: str, labels: tuple[Label, ...], preprocessing: Preprocessing, network: str | None = None
    ) -> Self:
        """``weights`` and ``network`` are digests."""
        return cls(
            weights, _digest([[label.label, label.wnid] for label in labels]), _digest(asdict(preprocessing)), network
        )


class _Stored(BaseModel):
    """A ``Calibration``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    created: str
    temperature: float = Field(ge=LEAST_TEMPERATURE, le=MOST_TEMPERATURE)
    penalty: float = Field(ge=0, le=1)
    free: int = Field(ge=0)
    scores: list[_Finite] = Field(min_length=LEAST_IMAGES)
    energies: list[_Finite]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.scores) != len(self.energies):
            raise ValueError(f"{len(self.scores)} scores and {len(self.energies)} energies")
        if self.scores != sorted(self.scores) or self.energies != sorted(self.energies):
            raise ValueError("the scores and the energies must be ascending")
        return self

    @classmethod
    def of(cls, calibration: Calibration) -> Self:
        return cls(
            created=calibration.created,
            temperature=calibration.temperature,
            penalty=calibration.regularisation.penalty,
            free=calibration.regularisation.free,
            scores=calibration.scores.tolist(),
            energies=calibration.energies.tolist(),
        )

    def calibration(self) -> Calibration:
        return Calibration(
            self.created,
            self.temperature,
            Regularisation(self.penalty, self.free),
            np.array(self.scores),
            np.array(self.energies),
        )


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1]
    weights: str
    labels: str
    preprocessing: str
    network: str | None = None
    precisions: dict[str, _Stored] = Field(min_length=1)


def load(folder: Path, identity: Identity) -> dict[str, Calibration]:
    """The calibrations in a model folder, by precision; empty if it has none.

    Raises ModelError if the file is invalid or belongs to another model than ``identity``.
    """
    path = folder / FILE
    try:
        file = _File.model_validate(orjson.loads(path.read_bytes()))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise ModelError(
            f"{path} is not a calibration: {_reason(error)}; delete it, and run `topk calibrate` again"
        ) from error
    for name, mine in asdict(identity).items():
        if getattr(file, name) != mine:
            raise ModelError(
                f"{path} was measured with {_OTHER[name]} than this model's; delete the file, and run `topk calibrate`"
                " again"
            )
    return {precision: stored.calibration() for precision, stored in file.precisions.items()}


def write(folder: Path, identity: Identity, calibrations: Mapping[str, Calibration]) -> None:
    """Write the calibrations of a model into its folder, in place of an earlier file. Raises ModelError."""
    document = {
        "format": FORMAT,
        **asdict(identity),
        "precisions": {precision: _Stored.of(one).model_dump() for precision, one in calibrations.items()},
    }
    path = folder / FILE
    new = path.with_suffix(".new")
    try:
        new.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        new.replace(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be written: {error.strerror or error}") from error


def dump(calibration: Calibration) -> dict[str, Any]:
    """A calibration as JSON, for another process."""
    return _Stored.of(calibration).model_dump()


def restore(document: dict[str, Any]) -> Calibration:
    """The calibration that ``dump`` has written."""
    return _Stored.model_validate(document).calibration()


def _digest(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'][:3]))}: {first['msg']}"
