"""``/livez``, ``/readyz``, ``/healthz`` and ``/metrics``: no API key, and independent of load."""

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, PlainTextResponse, Response

from app.api.schemas.document import Responses, response
from app.api.schemas.errors import errors
from app.api.service import Service
from app.errors import NotReady

TAG = "health"
router = APIRouter(tags=[TAG])

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_EXPOSITION = {
    "description": "Text format 0.0.4",
    "content": {"text/plain": {"schema": {"type": "string"}, "example": "topk_ready 1.0\n"}},
}


class Health(BaseModel):
    status: str


def _responses(status: str) -> Responses:
    return errors([503]) | {200: response(Health, {"status": status})}


@router.get("/livez", summary="Liveness", responses=_responses("alive"))
async def livez(request: Request) -> Response:
    """200 while the process works, also while it starts, drains or is overloaded."""
    check_alive(request)
    return JSONResponse({"status": "alive"})


@router.get("/readyz", summary="Readiness", responses=_responses("ready"))
async def readyz(request: Request) -> Response:
    """200 once the model is warm, 503 while starting or draining."""
    check_ready(request)
    return JSONResponse({"status": "ready"})


@router.get("/healthz", summary="Readiness, alias", responses=_responses("ready"))
async def healthz(request: Request) -> Response:
    """The same as `/readyz`."""
    return await readyz(request)


@router.get("/metrics", summary="Metrics", response_class=PlainTextResponse, responses={200: _EXPOSITION})
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(await Service.of(request).exposition(), media_type=_METRICS_TYPE)


def check_alive(request: Request) -> None:
    """Raises NotReady if the process has failed."""
    failure = Service.of(request).readiness.failure
    if failure:
        raise NotReady(failure.detail)


def check_ready(request: Request) -> None:
    """Raises NotReady if new requests should go to another process."""
    service = Service.of(request)
    if service.readiness.draining:
        raise NotReady("draining")
    service.ready_classifier()
