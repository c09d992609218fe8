"""``/v1``: predict, embed, info. Order of a request: headers' limits, key, admission, and only then its body."""

import asyncio
import base64
import re
import time
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from app.api import schemas
from app.api.auth import require_key
from app.api.exchange import ClientGone, Exchange
from app.api.uploads import Upload, Uploads, check_limits
from app.classifier import Classifier, Result
from app.engine import Want
from app.errors import Internal, InvalidParameter, TopkError

router = APIRouter(
    prefix="/v1",
    dependencies=[Depends(check_limits), Depends(require_key)],
    responses=schemas.ERRORS,
    tags=["classify"],
)

TopK = Annotated[int, Query(ge=1, description="How many classes, 1 to the number of classes.")]
MinScore = Annotated[float, Query(ge=0, le=1, description="Leave out classes that score less.")]
Encoding = Annotated[
    Literal["float", "base64"], Query(description="`base64`: little-endian float32 instead of JSON numbers.")
]
Normalize = Annotated[bool, Query(description="Scale the features to a Euclidean length of 1; zeros stay zeros.")]
Outcome = Result | BaseException


@router.post(
    "/predict",
    summary="Classify an image",
    response_model=schemas.PredictAnswer,
    openapi_extra=schemas.image_body(several=False),
)
async def predict(request: Request, top_k: TopK = 5, min_score: MinScore = 0.0) -> Response:
    """The top-k classes of one image: multipart field `file`, the raw bytes, or base64 in JSON."""
    classifier = _classifier(request)
    [(_, result)] = await _classify(request, lambda: _want_top(classifier, top_k), several=False)
    if isinstance(result, TopkError):
        raise result
    return _json(_head(classifier) | {"predictions": classifier.predictions(result.row, min_score)})


@router.post(
    "/predict/batch",
    summary="Classify several images",
    response_model=schemas.BatchAnswer,
    openapi_extra=schemas.image_body(several=True),
)
async def predict_batch(request: Request, top_k: TopK = 5, min_score: MinScore = 0.0) -> Response:
    """The top-k classes of several images, in order; a bad image fails alone."""
    classifier = _classifier(request)
    results = [
        {"filename": upload.filename}
        | _failed_or(result, lambda r: {"predictions": classifier.predictions(r.row, min_score)})
        for upload, result in await _classify(request, lambda: _want_top(classifier, top_k), several=True)
    ]
    return _json(_head(classifier) | {"results": results})


@router.post(
    "/embed",
    summary="Embed an image",
    response_model=schemas.EmbedAnswer,
    openapi_extra=schemas.image_body(several=False),
)
async def embed(request: Request, encoding: Encoding = "float", normalize: Normalize = False) -> Response:
    """The features of one image: the input of the model's last classifying layer."""
    classifier = _classifier(request)
    [(_, result)] = await _classify(request, lambda: Want(features=True), several=False)
    if isinstance(result, TopkError):
        raise result
    return _json(_embed_head(classifier) | {"embedding": _embedding(result, encoding, normalize)})


@router.post(
    "/embed/batch",
    summary="Embed several images",
    response_model=schemas.EmbedBatchAnswer,
    openapi_extra=schemas.image_body(several=True),
)
async def embed_batch(request: Request, encoding: Encoding = "float", normalize: Normalize = False) -> Response:
    """The features of several images, in order; a bad image fails alone."""
    classifier = _classifier(request)
    results = [
        {"filename": upload.filename} | _failed_or(result, lambda r: {"embedding": _embedding(r, encoding, normalize)})
        for upload, result in await _classify(request, lambda: Want(features=True), several=True)
    ]
    return _json(_embed_head(classifier) | {"results": results})


@router.get("/info", summary="What is served")
async def info(request: Request) -> Response:
    """The model, its device, precision, preprocessing and digest, the measured costs, and the limits."""
    return _json(_classifier(request).info())


async def _classify(request: Request, want: Any, several: bool) -> list[tuple[Upload, Result | TopkError]]:
    """Every image of a request with its result, as admitted: all of them or none."""
    classifier = _classifier(request)
    uploads: Uploads = request.app.state.uploads
    exchange = Exchange.of(request.scope)
    patience = _patience(request, classifier.settings.request_timeout_ms)
    classifier.admit(1, time.monotonic() + patience)
    wanted = want()
    async with uploads.read(request, several) as images:
        deadline = time.monotonic() + patience
        exchange.images = len(images)
        await request.app.state.rate_limit.charge(exchange.caller, len(images) - 1)  # one was before its body came
        sound = [image.content for image in images if not isinstance(image.content, TopkError)]
        classifier.admit(len(sound), deadline)
        work = asyncio.gather(
            *(classifier.classify(image, wanted, deadline) for image in sound), return_exceptions=True
        )
        outcomes = iter(await _unless_gone(request, work))
        results = [
            (image, image.content if isinstance(image.content, TopkError) else _expected(next(outcomes)))
            for image in images
        ]
    exchange.took(result.timing for _, result in results if isinstance(result, Result))
    return results


async def _unless_gone(request: Request, work: "asyncio.Future[list[Outcome]]") -> list["Outcome"]:
    """The work's result; cancelled, and ClientGone raised, when the client closes its connection first."""
    gone: asyncio.Future[Any] = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            await asyncio.wait([work])
            if not work.cancelled():
                work.exception()  # looked at, or asyncio complains
            raise ClientGone
        return work.result()
    finally:
        gone.cancel()
        work.cancel()


def _expected(outcome: Outcome) -> Result | TopkError:
    if isinstance(outcome, Result | TopkError):
        return outcome
    raise outcome


def _failed_or(result: Result | TopkError, answer: Any) -> dict[str, Any]:
    if isinstance(result, TopkError):
        return {"error": {"code": result.code, "detail": result.detail}}
    answered: dict[str, Any] = answer(result)
    return answered


def _patience(request: Request, most_ms: int) -> float:
    """Seconds the client grants: its header, up to the server's own limit."""
    given = request.headers.get("x-request-timeout-ms")
    if given is None:
        return most_ms / 1000
    digits = given.strip().lstrip("0")
    if not re.fullmatch("[0-9]+", digits):
        raise InvalidParameter("X-Request-Timeout-Ms must be a positive whole number of milliseconds")
    return min(int(digits[:12]), most_ms) / 1000  # Python refuses to read numbers of thousands of digits


def _want_top(classifier: Classifier, top_k: int) -> Want:
    classes = len(classifier.model.labels)
    if top_k > classes:
        raise InvalidParameter(f"top_k: {top_k} is more than the model's {classes} classes")
    return Want(k=top_k)


def _embedding(result: Result, encoding: str, normalize: bool) -> Any:
    features = result.row.features
    if features is None:
        raise Internal("no features came from the device")
    if normalize:
        features = _of_length_one(features)
    return base64.b64encode(features.astype("<f4").tobytes()).decode() if encoding == "base64" else features


def _of_length_one(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """In double precision: squares of float32 may overflow, or vanish."""
    wide = features.astype(np.float64)
    length = float(np.linalg.norm(wide))
    return (wide / length).astype(np.float32) if length else features


def _head(classifier: Classifier) -> dict[str, Any]:
    return {"model": classifier.model.name, "weights": classifier.model.weights}


def _embed_head(classifier: Classifier) -> dict[str, Any]:
    return {"model": classifier.model.name, "dim": classifier.engine.dim}


def _classifier(request: Request) -> Classifier:
    classifier: Classifier = request.app.state.classifier
    return classifier


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
