"""A running topk, over HTTP. It is asked again where it refuses, as late as it says."""

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
from app.commands.evaluate.source import Answer, Ask, Unreadable, facts
from app.errors import EvaluationError
from app.imagenet.labels import Label

_LATER = (408, 429, 502, 503, 504)
_NO_PICTURE = (400, 413, 415, 422, 500)
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_EXCHANGE_S = 60.0
_LARGE = 2**20  # from here on aiohttp wants a file: it writes bytes in one go


class Patience(NamedTuple):
    """Seconds after which a run is given up: with nothing but refusals, and with no answer of any kind."""

    refused: float = 120.0
    gone: float = 10.0


class Reply(NamedTuple):
    """``pause``: seconds after which the service wants to be asked again, if it says so."""

    status: int
    body: dict[str, Any]
    pause: float | None

    def __str__(self) -> str:
        detail = f": {self.body['detail']}" if "detail" in self.body else ""
        return f"answered {self.status} {responses.get(self.status, '')}{detail}"


class Remote:
    """A service, once ``meet`` has met it. ``facts`` also has its ``url``."""

    at_once = 32

    def __init__(self, target: Target, headers: dict[str, str], patience: Patience | None = None) -> None:
        self.target = target
        self.labels: tuple[Label, ...] = ()
        self.facts: dict[str, Any] = {}
        self._headers = {"User-Agent": f"topk-evaluate/{__version__}", **headers}
        self._patience = patience or Patience()
        self._heard = self._served = -math.inf  # when it last answered anything, and anything but a refusal

    async def meet(self) -> None:
        """Ask what it is and which classes it has. Raises EvaluationError."""
        self._served = asyncio.get_running_loop().time()
        async with client.session(self._headers) as session:
            reply = await self._reply(session, "GET", f"{self.target.base}/v1/info")
            if reply.status not in (200, 404):
                raise EvaluationError(f"{self.target.base}/v1/info {reply}")
            info = reply.body
            try:
                self.facts = facts(info) | {"url": self.target.base}
                classes, patience = info["classes"], info["limits"]["request_timeout_ms"]
            except (KeyError, TypeError):
                raise EvaluationError(f"{self.target.base} is no topk: it has no /v1/info") from None
            self._headers["X-Request-Timeout-Ms"] = str(patience)
            try:
                found = await self._predictions(session, _grey(), classes)
            except Unreadable as error:
                raise EvaluationError(f"{self.target.base} cannot classify a grey square: {error.detail}") from error
        found.sort(key=lambda prediction: int(prediction["class_id"]))
        self.labels = tuple(Label(prediction["label"], prediction["wnid"]) for prediction in found)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Ask]:
        async with client.session(self._headers) as session:
            self._heard = self._served = asyncio.get_running_loop().time()

            async def ask(content: bytes) -> Answer:
                found = await self._predictions(session, content, min(K, len(self.labels)))
                return Answer(tuple(p["class_id"] for p in found), tuple(p["score"] for p in found))

            yield ask

    async def _predictions(self, session: aiohttp.ClientSession, content: bytes, k: int) -> list[dict[str, Any]]:
        reply = await self._reply(session, "POST", f"{self.target.url}?top_k={k}", content)
        if reply.status in _NO_PICTURE:
            raise Unreadable(str(reply.body.get("code", reply.status)), str(reply.body.get("detail", reply)))
        if reply.status != 200 or len(reply.body.get("predictions", ())) != k:
            raise EvaluationError(f"{self.target.url} {reply}")
        if any(reply.body[name] != self.facts[name] for name in ("model", "weights")):
            raise EvaluationError(f"{self.target.base} has changed its model to {reply.body['model']} meanwhile")
        predictions: list[dict[str, Any]] = reply.body["predictions"]
        return predictions

    async def _reply(self, session: aiohttp.ClientSession, method: str, url: str, content: bytes = b"") -> Reply:
        """The first reply that is not to come again later. Raises EvaluationError where there is none for too long."""
        time = asyncio.get_running_loop().time
        while True:
            try:
                reply = await _exchange(session, method, url, content)
                self._heard = time()
                if reply.status not in _LATER:
                    self._served = self._heard
                    return reply
                said, pause, waited, most = str(reply), reply.pause, time() - self._served, self._patience.refused
            except (aiohttp.ClientError, TimeoutError, OSError):
                said, pause, waited, most = "gives no answer", None, time() - self._heard, self._patience.gone
            pause = min(pause or _PAUSE_S, _LONGEST_PAUSE_S)
            if waited + pause > most:
                raise EvaluationError(f"{url} {said}")
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
        return Reply(answer.status, body, _pause(body.get("retry_after_ms"), answer.headers.get("Retry-After", "")))


def _pause(milliseconds: Any, seconds: str) -> float | None:
    if isinstance(milliseconds, int):
        return milliseconds / 1000
    return float(seconds[:6]) if seconds.isascii() and seconds.isdigit() else None


def _grey() -> bytes:
    """An image that any service can read: from its answer come the classes."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()
