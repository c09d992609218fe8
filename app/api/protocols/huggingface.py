"""Hugging Face's image classification, as its endpoints and ``InferenceClient`` have it (``@huggingface/tasks``)."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from app.api import schemas
from app.api.classify import DEFAULT_K, as_json, gate
from app.api.forms import Form, Upload
from app.api.protocols.asked import MOST, SAID, Asked, One, answer_any, count, members, named, said
from app.api.uploads import Uploads
from app.classifier import Classifier, Result
from app.engine import Want
from app.errors import Internal, InvalidParameter
from app.settings import Settings

NAME = "huggingface"
_FORM = Form(documents=True)
_FUNCTIONS = ("softmax", "sigmoid", "none")

problem = said
Model = Annotated[str, Path(description="The served model's name.")]


@dataclass(frozen=True, slots=True)
class Inputs:
    """One image in JSON, with its parameters. ``k`` beyond the classes means all of them."""

    images: list[Upload]
    k: int
    function: str
    place: str = ""

    def want(self, classifier: Classifier) -> Want:
        return Want(min(self.k, len(classifier.model.labels)), logits=self.function != "softmax")

    def answer(self, classifier: Classifier, results: list[Result]) -> Response:
        [result] = results
        return as_json(_entries(classifier, result, _scores(result, self.function)))


def inputs(document: dict[str, Any], uploads: Uploads) -> Asked:
    """``{"inputs": "<base64>", "parameters": {...}}``. Raises MalformedRequest, InvalidParameter, PayloadTooLarge."""
    parameters = members(document.get("parameters"), "parameters")
    k = parameters.get("top_k")
    function = parameters.get("function_to_apply")
    function = "softmax" if function is None else function
    if function not in _FUNCTIONS:
        raise InvalidParameter(f"function_to_apply must be one of {', '.join(_FUNCTIONS)}")
    return Inputs(uploads.images([document["inputs"]]), DEFAULT_K if k is None else count(k, "top_k"), function)


def _entries(classifier: Classifier, result: Result, scores: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    labels = classifier.model.labels
    return [
        {"label": labels[class_id].label, "score": score}
        for class_id, score in zip(result.row.class_ids.tolist(), scores.tolist(), strict=True)
    ]


def _scores(result: Result, function: str) -> npt.NDArray[np.float32]:
    """The best classes' scores; all three functions rank them alike."""
    if function == "softmax":
        return result.row.scores
    if result.row.logits is None:
        raise Internal("no logits came from the device")
    logits: npt.NDArray[np.float32] = result.row.logits[result.row.class_ids]
    return logits if function == "none" else np.float32(0.5) * (1 + np.tanh(logits / 2))


async def model_root(request: Request, model: Model) -> Response:
    """The best classes of one image: its bytes, or base64 in JSON with parameters."""
    named(request, model)
    return await root(request)


async def root(request: Request) -> Response:
    """The best classes of one image, as dedicated endpoints answer."""
    return await answer_any(request, _FORM, One(lambda c, result: _entries(c, result, result.row.scores)))


def routes(settings: Settings) -> APIRouter:
    """Its routes."""
    router = APIRouter(tags=[NAME])
    for path, endpoint, summary, statuses in (
        ("/models/{model:path}", model_root, "Image classification by a model's name", schemas.NAMING),
        ("/", root, "Image classification", schemas.UPLOADING),
    ):
        router.post(
            path,
            summary=summary,
            dependencies=gate(_FORM),
            responses=schemas.errors(statuses, said, SAID)
            | {200: schemas.answer([{"label": "Egyptian cat", "score": 0.3864}])},
            openapi_extra=_BODY,
        )(endpoint)
    return router


_BODY = schemas.image_body(
    several=False,
    json={
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "inputs": schemas.ONE_BASE64,
            "parameters": {
                "type": ["object", "null"],
                "properties": {
                    "top_k": {"type": ["integer", "null"], "minimum": 1, "maximum": MOST},
                    "function_to_apply": {"enum": [*_FUNCTIONS, None]},
                },
            },
        },
    },
    example={"inputs": schemas.CAT, "parameters": {"top_k": 5, "function_to_apply": "softmax"}},
)
