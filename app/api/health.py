"""``/livez``, ``/readyz``, ``/healthz`` and ``/metrics``: open to all, and never dependent on load."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from app.api import schemas
from app.classifier import Classifier
from app.errors import NotReady
from app.lifecycle import Lifecycle

router = APIRouter()
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_EXPOSITION = {
    "description": "In the text format 0.0.4",
    "content": {"text/plain": {"schema": {"type": "string"}, "example": "topk_ready 1.0\n"}},
}


def _told(status: str) -> schemas.Responses:
    return schemas.errors([503]) | {200: schemas.answer({"status": status})}


@router.get("/livez", tags=["health"], summary="Alive", responses=_told("alive"))
async def livez(request: Request) -> Response:
    """200 while the process works; starting, overloaded and draining are all alive."""
    check_alive(request)
    return JSONResponse({"status": "alive"})


@router.get("/readyz", tags=["health"], summary="Ready", responses=_told("ready"))
async def readyz(request: Request) -> Response:
    """200 once the model is warm, 503 while starting or draining."""
    check_ready(request)
    return JSONResponse({"status": "ready"})


@router.get("/healthz", tags=["health"], summary="Ready, by another name", responses=_told("ready"))
async def healthz(request: Request) -> Response:
    """The same as `/readyz`."""
    return await readyz(request)


@router.get(
    "/metrics", tags=["health"], summary="Metrics", response_class=PlainTextResponse, responses={200: _EXPOSITION}
)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(await request.app.state.exposition(), media_type=_METRICS_TYPE)


def check_alive(request: Request) -> None:
    """Raises NotReady where the process works no more."""
    lifecycle: Lifecycle = request.app.state.lifecycle
    if lifecycle.failure:
        raise NotReady(lifecycle.failure.detail)


def check_ready(request: Request) -> None:
    """Raises NotReady where requests had better go elsewhere."""
    lifecycle: Lifecycle = request.app.state.lifecycle
    classifier: Classifier = request.app.state.classifier
    if lifecycle.draining:
        raise NotReady("draining")
    if not classifier.ready:
        raise NotReady(lifecycle.failure.detail if lifecycle.failure else lifecycle.waiting_for)
