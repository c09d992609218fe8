"""The options of a request: in the query string, in form fields or as JSON members."""

import re
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError
from typing_extensions import TypeAliasType

from app.api.excerpts import shown
from app.api.forms import Contents
from app.errors import InvalidParameter
from app.imagenet.taxonomy import CONFIDENCE, MAX_CONFIDENCE, MIN_CONFIDENCE

DEFAULT_K = 5
_EXPLAINED = re.compile("true|false|[0-9]{1,9}|n[0-9]{8}", re.ASCII | re.IGNORECASE)
_SYNONYMS = {"k": "top_k", "limit": "top_k"}

T = TypeVar("T", bound="Options")


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # JSON Schema: 3.0 is an integer


TopK = TypeAliasType("TopK", Annotated[int, Field(ge=1, description="Number of classes."), BeforeValidator(_whole)])
"""A component of its own in the OpenAPI document, so that its maximum can be set once the model is loaded."""


class Options(BaseModel):
    """Options of a route. None means that an option was not given."""

    model_config = ConfigDict(frozen=True)


class TopKOptions(Options):
    top_k: TopK | None = Field(
        None, description=f"Number of classes. The default is {DEFAULT_K}, or all of a model that has fewer."
    )
    min_score: float | None = Field(None, ge=0, le=1, description="Omit classes with a lower score. The default is 0.")


def _explained(value: object) -> str:
    """The text of ``explain``, which may be a boolean, a class id or a wnid."""
    match value:
        case bool():
            return str(value).lower()
        case int() if value >= 0:
            return str(value)
        case float() if value.is_integer() and value >= 0:
            return f"{value:.0f}"
        case str() if _EXPLAINED.fullmatch(value):
            return value.lower()
    raise PydanticCustomError("requirement", "must be true, false, a class id or a wnid")


Explain = Annotated[
    str,
    BeforeValidator(_explained),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "boolean"},
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": "^(true|false|[0-9]{1,9}|n[0-9]{8})$"},
            ]
        }
    ),
]


class PredictOptions(TopKOptions):
    taxonomy: bool | None = Field(
        None, description="Add the image's place in WordNet, as `taxonomy` and `answer`. The default is false."
    )
    confidence: float | None = Field(
        None,
        gt=MIN_CONFIDENCE,
        le=MAX_CONFIDENCE,
        description=f"The score that `answer` must reach. The default is {CONFIDENCE}. Requires `taxonomy=true`.",
    )
    coverage: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Add `set`, which contains the true class with this probability, and `typicality`. With `taxonomy`,"
        " `answer` is then the most specific synset that contains the set. Needs a calibrated model.",
    )
    unknown: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Add `unknown`, true if `typicality` is at most this, and `typicality`. Needs a calibrated model.",
    )
    explain: Explain | None = Field(
        None,
        description="Add `explanation`, a map of what a class is based on: the best class (`true`) or a given one. `1`"
        " is class 1. The default is false.",
    )
    explain_png: bool | None = Field(
        None,
        description="Add `png` to `explanation`: base64 of an RGBA PNG of the map, one pixel per number. The default is"
        " false. Requires `explain`.",
    )


class EmbedOptions(Options):
    encoding: Literal["float", "base64"] | None = Field(
        None, description="`float` (default): JSON numbers. `base64`: little-endian float32."
    )
    normalize: bool | None = Field(
        None, description="Scale the embedding to a Euclidean length of 1; zeros stay zeros. The default is false."
    )


def query_options(request: Request, kind: type[T]) -> T:
    """The options in the query. Raises InvalidParameter if they are invalid or contradict each other.

    Other parameters are ignored, because gateways add their own.
    """
    return _merged(kind(), request.query_params.multi_items(), typed=False)


def checked_query_options(request: Request, kind: type[T]) -> T:
    """The options in the query. Raises InvalidParameter, also if the name of a parameter resembles an option."""
    for name in request.query_params:
        if (meant := _names(kind).get(_bare(name), name)) != name:
            raise InvalidParameter(f"unknown parameter {name}; use {meant}")
    return query_options(request, kind)


def combine(query: T, contents: Contents) -> T:
    """The options of the query and of the body. Raises InvalidParameter if they contradict each other.

    Names that are not options are ignored, and so are empty form fields, which web forms send for empty inputs.
    """
    given = contents.options if contents.typed else [(name, value) for name, value in contents.options if value != ""]
    return _merged(query, given, contents.typed)


def invalid(error: ErrorDetails) -> InvalidParameter:
    """pydantic's error about one parameter."""
    return InvalidParameter(f"{error['loc'][-1]} {_requirement(error)}, got {shown(error['input'])}")


def _merged(options: T, items: Iterable[tuple[str, object]], typed: bool) -> T:
    given = {name: value for name, value in options if value is not None}
    for name, value in items:
        if name not in type(options).model_fields or value is None:
            continue
        try:
            parsed = getattr(type(options).model_validate({name: value}, strict=typed), name)
        except ValidationError as error:
            raise invalid(error.errors()[0]) from None
        if given.setdefault(name, parsed) != parsed:
            raise InvalidParameter(f"{name} is given twice, as {shown(given[name])} and {shown(parsed)}; give it once")
    return options.model_copy(update=given)


def _requirement(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    match error["type"]:
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return "must be a whole number"
        case "float_parsing" | "float_type" | "finite_number":
            return "must be a number"
        case "bool_parsing" | "bool_type":
            return "must be true or false"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "greater_than":
            return f"must be more than {context['gt']:g}"
        case "less_than":
            return f"must be less than {context['lt']:g}"
        case "requirement":
            return error["msg"]
        case "less_than_equal":
            return f"must be at most {context['le']:g}"
        case "literal_error":
            return f"must be {context['expected']}"
    return f"is not valid: {error['msg']}"


@cache
def _names(kind: type[Options]) -> dict[str, str]:
    """The options by their bare names and their synonyms."""
    synonyms = {synonym: name for synonym, name in _SYNONYMS.items() if name in kind.model_fields}
    return {_bare(name): name for name in kind.model_fields} | synonyms


def _bare(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
