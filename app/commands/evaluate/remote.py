"""A running topk, over HTTP. A refused request is retried after the time in ``Retry-After``."""

import asyncio
import io
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.client import responses
from typing import Any, NamedTuple

import aiohttp
import orjson
from PIL import Image

from app import __version__
from app.commands.bench import client
from app.commands.bench.target import Target
from app.commands.evaluate.metrics import K
from app.commands.evaluate.source import Classify, TopClasses, Unreadable, facts
from app.errors import EvaluationError
from app.imagenet.labels import Label

_RETRIED = (408, 429, 502, 503, 504)
_UNREADABLE = (400, 413, 415, 422, 500)
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_EXCHANGE_S = 60.0
_LARGE = 2**20  # aiohttp writes bytes in one go, so larger bodies are passed as files


class RetryLimits(NamedTuple):
    """Seconds until a run fails: while every request is refused, and while no response arrives at all."""

    refused: float = 120.0
    silent: float = 10.0


class Reply(NamedTuple):
    """A response. ``retry_after`` is in seconds, None if the service does not state it."""

    status: int
    body: dict[str, Any]
    retry_after: float | None

    def __str__(self) -> str:
        detail = f": {self.body['detail']}" if "detail" in self.body else ""
        return f"answered {self.status} {responses.get(self.status, '')}{detail}"


class Remote:
    """A running service. Call ``connect`` first. ``facts`` include its ``url``."""

    at_once = 32

    def __init__(self, target: Target, headers: dict[str, str], limits: RetryLimits | None = None) -> None:
        self.target = target
        self.labels: tuple[Label, ...] = ()
        self.facts: dict[str, Any] = {}
        self._headers = {"User-Agent": f"topk-evaluate/{__version__}", **headers}
        self._limits = limits or RetryLimits()
        self._responded = (
            self._accepted
        ) = -math.inf  # times of the last response, and of the last that was not a refusal

    async def connect(self) -> None:
        """Get the description of the service, and its classes from one prediction. Raises EvaluationError."""
        self._accepted = asyncio.get_running_loop().time()
        async with client.session(self._headers) as session:
            reply = await self._reply(session, "GET", f"{self.target.base}/v1/info")
            if reply.status not in (200, 404):
                raise EvaluationError(f"{self.target.base}/v1/info {reply}")
            info = reply.body
            try:
                self.facts = facts(info) | {"calibration": info.get("calibration"), "url": self.target.base}
                classes, timeout_ms = info["classes"], info["limits"]["request_timeout_ms"]
            except (KeyError, TypeError):
                raise EvaluationError(f"{self.target.base} is not a topk service: it has no /v1/info") from None
            self._headers["X-Request-Timeout-Ms"] = str(timeout_ms)
            try:
                found = await self._predictions(session, _grey(), classes)
            except Unreadable as error:
                raise EvaluationError(f"{self.target.base} cannot classify a test image: {error.detail}") from error
        found.sort(key=lambda prediction: int(prediction["class_id"]))
        self.labels = tuple(Label(prediction["label"], prediction["wnid"]) for prediction in found)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Classify]:
        async with client.session(self._headers) as session:
            self._responded = self._accepted = asyncio.get_running_loop().time()

            async def classify(content: bytes) -> TopClasses:
                found = await self._predictions(session, content, min(K, len(self.labels)))
                return TopClasses(tuple(p["class_id"] for p in found), tuple(p["score"] for p in found))

            yield classify

    async def _predictions(self, session: aiohttp.ClientSession, content: bytes, k: int) -> list[dict[str, Any]]:
        reply = await self._reply(session, "POST", f"{self.target.url}?top_k={k}", content)
        if reply.status in _UNREADABLE:
            raise Unreadable(str(reply.body.get("code", reply.status)), str(reply.body.get("detail", reply)))
        if reply.status != 200 or len(reply.body.get("predictions", ())) != k:
            raise EvaluationError(f"{self.target.url} {reply}")
        if any(reply.body[name] != self.facts[name] for name in ("model", "weights")):
            raise EvaluationError(
                f"{self.target.base} now serves another model, {reply.body['model']}; start the evaluation again"
            )
        predictions: list[dict[str, Any]] = reply.body["predictions"]
        return predictions

    async def _reply(self, session: aiohttp.ClientSession, method: str, url: str, content: bytes = b"") -> Reply:
        """Send a request and retry it while it is refused. Raises EvaluationError at the retry limits."""
        time = asyncio.get_running_loop().time
        while True:
            try:
                reply = await _exchange(session, method, url, content)
                self._responded = time()
                if reply.status not in _RETRIED:
                    self._accepted = self._responded
                    return reply
                failure, pause = str(reply), reply.retry_after
                waited, limit = time() - self._accepted, self._limits.refused
            except (aiohttp.ClientError, TimeoutError, OSError):
                failure, pause = "does not respond", None
                waited, limit = time() - self._responded, self._limits.silent
            pause = min(pause or _PAUSE_S, _LONGEST_PAUSE_S)
            if waited + pause > limit:
                raise EvaluationError(f"{url} {failure}")
            await asyncio.sleep(pause)


async def _exchange(session: aiohttp.ClientSession, method: str, url: str, content: bytes) -> Reply:
    data = io.BytesIO(content) if len(content) >= _LARGE else content or None
    headers = {"Content-Type": "application/octet-stream"} if content else {}
    async with (
        asyncio.timeout(_EXCHANGE_S),
        session.request(method, url, data=data, headers=headers, allow_redirects=False) as answer,
    ):
        content = await answer.read()
        try:
            body = orjson.loads(content)
        except orjson.JSONDecodeError:
            body = None
        body = body if isinstance(body, dict) else {}
        return Reply(
            answer.status, body, _retry_after(body.get("retry_after_ms"), answer.headers.get("Retry-After", ""))
        )


def _retry_after(milliseconds: Any, seconds: str) -> float | None:
    """Seconds, from ``retry_after_ms`` in the body or else from the header ``Retry-After``."""
    if isinstance(milliseconds, int):
        return milliseconds / 1000
    return float(seconds[:6]) if seconds.isascii() and seconds.isdigit() else None


def _grey() -> bytes:
    """A test image. The prediction for it lists all classes."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()
