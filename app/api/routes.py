"""``/v1``: predict, embed, WordNet, info."""

import base64
import inspect
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Depends, Path, Query, Request
from starlette.responses import Response

from app.api import schemas
from app.api.answers import build
from app.api.auth import require_key
from app.api.classify import MinScore, TopK, as_json, classify, gate, served, top
from app.api.forms import ONE, SEVERAL, Upload
from app.classifier import Classifier, Result
from app.engine import Want
from app.errors import Internal, InvalidParameter, NotFound, TopkError
from app.imagenet.taxonomy import CONFIDENCE

router = APIRouter(prefix="/v1", tags=["classify"])

InWordNet = Annotated[bool, Query(description="Add the image's place in WordNet: `taxonomy` and `answer`.")]
Confidence = Annotated[
    float | None,
    Query(gt=0, le=1, description=f"What the score of `answer` reaches, {CONFIDENCE} by default; with `taxonomy`."),
]
Encoding = Annotated[
    Literal["float", "base64"], Query(description="`base64`: little-endian float32 instead of JSON numbers.")
]
Normalize = Annotated[bool, Query(description="Scale the features to a Euclidean length of 1; zeros stay zeros.")]
Wnid = Annotated[str, Path(description="WordNet id.", examples=["n02084071"])]


class Predicting:
    """What a request to predict asks of each of its images.

    Raises NotReady, and InvalidParameter for what the served model cannot answer.
    """

    def __init__(
        self,
        request: Request,
        top_k: TopK = None,
        min_score: MinScore = 0.0,
        taxonomy: InWordNet = False,
        confidence: Confidence = None,
    ) -> None:
        self.classifier = served(request)
        self.min_score = min_score
        self.sure = _sure(self.classifier, taxonomy, confidence)
        self.want = top(self.classifier, top_k, probabilities=taxonomy)

    def answer(self, result: Result) -> dict[str, Any]:
        """One image's part of the answer."""
        answer: dict[str, Any] = {"predictions": self.classifier.predictions(result.row, self.min_score)}
        if self.sure is None:
            return answer
        if self.classifier.taxonomy is None or result.row.probabilities is None:
            raise Internal("no probabilities came from the device")
        return answer | asdict(self.classifier.taxonomy.placing(result.row.probabilities, self.sure))


class Embedding:
    """How the features of an image are to be written. Raises NotReady."""

    def __init__(self, request: Request, encoding: Encoding = "float", normalize: Normalize = False) -> None:
        self.classifier = served(request)
        self.encoding = encoding
        self.normalize = normalize
        self.want = Want(features=True)

    def answer(self, result: Result) -> dict[str, Any]:
        """One image's part of the answer."""
        features = result.row.features
        if features is None:
            raise Internal("no features came from the device")
        if self.normalize:
            features = _of_length_one(features)
        packed = self.encoding == "base64"
        return {"embedding": base64.b64encode(features.astype("<f4").tobytes()).decode() if packed else features}


def _spelled(asked: type[Predicting | Embedding]) -> Any:
    """Refuse what is one of these parameters but for case, ``_`` and ``-``; others are let be: gateways add theirs."""
    known = {_bare(name): name for name in inspect.signature(asked).parameters if name != "request"}

    async def check(request: Request) -> None:
        for name in request.query_params:
            if (meant := known.get(_bare(name), name)) != name:
                raise InvalidParameter(f"{name}: there is no such parameter; {meant} is meant")

    return Depends(check)


def _bare(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


@router.post(
    "/predict",
    dependencies=[*gate(ONE), _spelled(Predicting)],
    summary="Classify an image",
    response_model=schemas.PredictAnswer,
    responses=schemas.errors() | schemas.shown(schemas.PREDICTED),
    openapi_extra=schemas.image_body(several=False),
)
async def predict(request: Request, asked: Annotated[Predicting, Depends()]) -> Response:
    """The top-k classes of one image: multipart field `file`, the raw bytes, or base64 in JSON."""
    [(_, result)] = await classify(request, ONE, lambda: asked.want)
    if isinstance(result, TopkError):
        raise result
    return await build(request, lambda: as_json(_head(asked.classifier) | asked.answer(result)))


@router.post(
    "/predict/batch",
    dependencies=[*gate(SEVERAL), _spelled(Predicting)],
    summary="Classify several images",
    response_model=schemas.BatchAnswer,
    responses=schemas.errors() | schemas.shown(schemas.BATCH),
    openapi_extra=schemas.image_body(several=True),
)
async def predict_batch(request: Request, asked: Annotated[Predicting, Depends()]) -> Response:
    """The top-k classes of several images, in order; a bad image fails alone."""
    outcomes = await classify(request, SEVERAL, lambda: asked.want)
    return await build(request, lambda: as_json(_head(asked.classifier) | _results(outcomes, asked.answer)))


@router.post(
    "/embed",
    dependencies=[*gate(ONE), _spelled(Embedding)],
    summary="Embed an image",
    response_model=schemas.EmbedAnswer,
    responses=schemas.errors() | schemas.shown(schemas.EMBEDDED),
    openapi_extra=schemas.image_body(several=False),
)
async def embed(request: Request, asked: Annotated[Embedding, Depends()]) -> Response:
    """The features of one image: the input of the model's last classifying layer."""
    [(_, result)] = await classify(request, ONE, lambda: asked.want)
    if isinstance(result, TopkError):
        raise result
    return await build(request, lambda: as_json(_embed_head(asked.classifier) | asked.answer(result)))


@router.post(
    "/embed/batch",
    dependencies=[*gate(SEVERAL), _spelled(Embedding)],
    summary="Embed several images",
    response_model=schemas.EmbedBatchAnswer,
    responses=schemas.errors() | schemas.shown(schemas.EMBEDDED_BATCH),
    openapi_extra=schemas.image_body(several=True),
)
async def embed_batch(request: Request, asked: Annotated[Embedding, Depends()]) -> Response:
    """The features of several images, in order; a bad image fails alone."""
    outcomes = await classify(request, SEVERAL, lambda: asked.want)
    return await build(request, lambda: as_json(_embed_head(asked.classifier) | _results(outcomes, asked.answer)))


@router.get(
    "/taxonomy/{wnid}",
    summary="A node of WordNet",
    response_model=schemas.Synset,
    responses=schemas.errors([401, 404, 503]) | schemas.shown(schemas.SYNSET),
    dependencies=[Depends(require_key)],
)
async def synset(request: Request, wnid: Wnid) -> Response:
    """A class of the model, or what is above its classes in WordNet: what it is, and what is above and below it."""
    tree = served(request).taxonomy
    if tree is None:
        raise NotFound("the model's classes have no place in WordNet")
    if wnid not in tree.index:
        raise NotFound("neither a class of the model nor anything above its classes in WordNet has this wnid")
    return as_json(tree.describe(wnid))


@router.get(
    "/info",
    summary="What is served",
    response_model=schemas.Info,
    responses=schemas.errors([401, 503]) | schemas.shown(schemas.INFO),
    dependencies=[Depends(require_key)],
)
async def info(request: Request) -> Response:
    """The model, its device, precision, preprocessing and digest, the measured costs, and the limits."""
    return as_json(served(request).info())


def _results(outcomes: Sequence[tuple[Upload, Result | TopkError]], answer: Any) -> dict[str, Any]:
    """The images' parts of a batch's answer, in order."""
    return {"results": [{"filename": upload.filename} | _failed_or(result, answer) for upload, result in outcomes]}


def _failed_or(result: Result | TopkError, answer: Any) -> dict[str, Any]:
    if isinstance(result, TopkError):
        return {"error": {"code": result.code, "detail": result.detail}}
    answered: dict[str, Any] = answer(result)
    return answered


def _sure(classifier: Classifier, taxonomy: bool, confidence: float | None) -> float | None:
    """What the answer from WordNet has to reach; None where none is asked for."""
    if confidence is not None and not taxonomy:
        raise InvalidParameter("confidence: it is that of the answer from WordNet, which taxonomy=true asks for")
    if taxonomy and classifier.taxonomy is None:
        raise InvalidParameter("taxonomy: the model's classes have no place in WordNet")
    return (CONFIDENCE if confidence is None else confidence) if taxonomy else None


def _of_length_one(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """In double precision: squares of float32 may overflow, or vanish."""
    wide = features.astype(np.float64)
    length = float(np.linalg.norm(wide))
    return (wide / length).astype(np.float32) if length else features


def _head(classifier: Classifier) -> dict[str, Any]:
    return {"model": classifier.model.name, "weights": classifier.model.weights}


def _embed_head(classifier: Classifier) -> dict[str, Any]:
    return {"model": classifier.model.name, "dim": classifier.engine.dim}
