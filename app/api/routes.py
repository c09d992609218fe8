"""The API's own routes, ``/v1``: predict, embed, WordNet, info."""

import base64
from collections.abc import Callable
from typing import Annotated

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from app.api.answers import as_json, build
from app.api.classify import classify, receive
from app.api.forms import ONE, SEVERAL, Upload
from app.api.gate import gate, require_key
from app.api.info import describe
from app.api.options import EmbedOptions, PredictOptions, checked_query_options, combine
from app.api.predicting import Members, Predicting, check
from app.api.schemas import errors, requests, responses
from app.api.service import Service
from app.classifier import Classifier, Result
from app.engine import Want
from app.errors import Internal, NotFound, TopkError

router = APIRouter(prefix="/v1")

CLASSIFY, EMBED, WORDNET, INFO = "classify", "embed", "wordnet", "info"
"""The routes' tags, in the order of ``/docs``."""

Wnid = Annotated[str, Path(description="WordNet id.", examples=["n02084071"])]


class Embedding:
    """What an embedding computes, and how it is written."""

    want = Want(features=True)

    def __init__(self, classifier: Classifier, options: EmbedOptions) -> None:
        self._classifier = classifier
        self._packed = options.encoding == "base64"
        self._normalize = bool(options.normalize)

    def head(self) -> Members:
        """The members that come before the images'."""
        return {"model": self._classifier.model.name, "dim": self._classifier.engine.dim}

    def write(self, result: Result) -> Members:
        """One image's members."""
        features = result.row.features
        if features is None:
            raise Internal("the device returned no features")
        if self._normalize:
            features = unit_length(features)
        return {"embedding": base64.b64encode(features.astype("<f4").tobytes()).decode() if self._packed else features}


@router.post(
    "/predict",
    tags=[CLASSIFY],
    dependencies=gate(ONE),
    summary="Classify an image",
    response_model=responses.PredictAnswer,
    responses=errors.errors() | responses.example(responses.PREDICTED),
    openapi_extra=requests.image_body(requests.PredictRequest, PredictOptions),
)
async def predict(request: Request) -> Response:
    """The top-k classes of one image: multipart field `file`, the raw bytes, or base64 in JSON."""
    query = checked_query_options(request, PredictOptions)
    service = Service.of(request)
    classifier = service.ready_classifier()
    explain = check(classifier, query).explain is not None
    async with receive(request, ONE, service.uploads.one, explain) as received:
        predicting = Predicting(classifier, combine(query, received.body))
        [result] = await classify(request, received, received.body.images, predicting.want, predicting.sets)
    return await _one(request, predicting, result)


@router.post(
    "/predict/batch",
    tags=[CLASSIFY],
    dependencies=gate(SEVERAL),
    summary="Classify several images",
    response_model=responses.BatchAnswer,
    responses=errors.errors() | responses.example(responses.BATCH),
    openapi_extra=requests.image_body(requests.BatchRequest, PredictOptions),
)
async def predict_batch(request: Request) -> Response:
    """The top-k classes of several images, in order. A bad image fails alone."""
    query = checked_query_options(request, PredictOptions)
    service = Service.of(request)
    classifier = service.ready_classifier()
    explain = check(classifier, query).explain is not None
    async with receive(request, SEVERAL, service.uploads.several, explain) as received:
        predicting = Predicting(classifier, combine(query, received.body))
        images = received.body.images
        results = await classify(request, received, images, predicting.want, predicting.sets)
    return await _several(request, predicting, images, results)


@router.post(
    "/embed",
    tags=[EMBED],
    dependencies=gate(ONE),
    summary="Embed an image",
    response_model=responses.EmbedAnswer,
    responses=errors.errors() | responses.example(responses.EMBEDDED),
    openapi_extra=requests.image_body(requests.EmbedRequest, EmbedOptions),
)
async def embed(request: Request) -> Response:
    """The embedding of one image: the input of the model's last classification layer."""
    query = checked_query_options(request, EmbedOptions)
    service = Service.of(request)
    classifier = service.ready_classifier()
    async with receive(request, ONE, service.uploads.one) as received:
        embedding = Embedding(classifier, combine(query, received.body))
        [result] = await classify(request, received, received.body.images, embedding.want)
    return await _one(request, embedding, result)


@router.post(
    "/embed/batch",
    tags=[EMBED],
    dependencies=gate(SEVERAL),
    summary="Embed several images",
    response_model=responses.EmbedBatchAnswer,
    responses=errors.errors() | responses.example(responses.EMBEDDED_BATCH),
    openapi_extra=requests.image_body(requests.EmbedBatchRequest, EmbedOptions),
)
async def embed_batch(request: Request) -> Response:
    """The embeddings of several images, in order. A bad image fails alone."""
    query = checked_query_options(request, EmbedOptions)
    service = Service.of(request)
    classifier = service.ready_classifier()
    async with receive(request, SEVERAL, service.uploads.several) as received:
        embedding = Embedding(classifier, combine(query, received.body))
        images = received.body.images
        results = await classify(request, received, images, embedding.want)
    return await _several(request, embedding, images, results)


@router.get(
    "/taxonomy/{wnid}",
    tags=[WORDNET],
    summary="A node of WordNet",
    response_model=responses.TaxonomyNode,
    responses=errors.errors([401, 404, 503]) | responses.example(responses.NODE),
    dependencies=[Depends(require_key)],
)
async def node(request: Request, wnid: Wnid) -> Response:
    """One of the model's classes, or a synset above them in WordNet, with its parents, children and classes."""
    tree = Service.of(request).ready_classifier().taxonomy
    if tree is None:
        raise NotFound("the model's classes are not in WordNet")
    if wnid not in tree.index:
        raise NotFound("no class of the model, and no synset above them, has this wnid")
    return as_json(tree.describe(wnid))


@router.get(
    "/info",
    tags=[INFO],
    summary="The served model",
    response_model=responses.Info,
    responses=errors.errors([401, 503]) | responses.example(responses.INFO),
    dependencies=[Depends(require_key)],
)
async def info(request: Request) -> Response:
    """The model, its device, precision, preprocessing and digest, the measured costs, and the limits."""
    return as_json(describe(Service.of(request).ready_classifier()).model_dump())


async def _one(request: Request, writer: Predicting | Embedding, result: Result | TopkError) -> Response:
    """The response for one image. Raises the image's error."""
    if isinstance(result, TopkError):
        raise result
    return await build(request, lambda: as_json(writer.head() | writer.write(result)))


async def _several(
    request: Request, writer: Predicting | Embedding, images: list[Upload], results: list[Result | TopkError]
) -> Response:
    """The response for a batch, in order."""

    def write() -> Response:
        items = [
            {"filename": image.filename} | _item(writer.write, result)
            for image, result in zip(images, results, strict=True)
        ]
        return as_json(writer.head() | {"results": items})

    return await build(request, write)


def _item(write: Callable[[Result], Members], result: Result | TopkError) -> Members:
    if isinstance(result, TopkError):
        return {"error": {"code": result.code, "detail": result.detail}}
    return write(result)


def unit_length(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Features scaled to length 1, in double precision: squares of float32 may overflow or vanish."""
    wide = features.astype(np.float64)
    length = float(np.linalg.norm(wide))
    return (wide / length).astype(np.float32) if length else features
