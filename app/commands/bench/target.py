"""The server under load: its URLs, what it says of itself, and its count of batches."""

import re
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import orjson

from app.errors import LoadTestError

PREDICT = "/v1/predict"
_ASIDE = aiohttp.ClientTimeout(total=2)  # what is nice to know must not hold the run up
_BATCHES = re.compile(r"^topk_batch_size_(sum|count)(?:\{.*\})? (\S+)$", re.MULTILINE)


class Batches(NamedTuple):
    """Images and batches since the server started."""

    images: float
    batches: float


class Target:
    """``url`` takes images; ``base`` is the root of the same server, a proxy's prefix included."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            sound = False
        if not sound:
            raise LoadTestError(f"{url!r} is no http or https URL")
        path = PREDICT if parts.path in ("", "/") else parts.path
        self.url = urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
        prefix = path.removesuffix(PREDICT) if path.endswith(PREDICT) else ""
        self.base = urlunsplit((parts.scheme, parts.netloc, prefix, "", ""))

    async def info(self, session: aiohttp.ClientSession) -> dict[str, Any] | None:
        """``/v1/info``, or None where there is no such thing."""
        try:
            found = orjson.loads(await self._get(session, "/v1/info") or b"null")
        except orjson.JSONDecodeError:
            return None
        return found if isinstance(found, dict) else None

    async def batches(self, session: aiohttp.ClientSession) -> Batches | None:
        """The histogram ``topk_batch_size`` of ``/metrics``, or None where there is none."""
        text = await self._get(session, "/metrics") or b""
        found = {"sum": 0.0, "count": 0.0}
        matches = _BATCHES.findall(text.decode("utf-8", "replace"))
        for name, value in matches:
            found[name] += float(value)
        return Batches(found["sum"], found["count"]) if matches else None

    async def _get(self, session: aiohttp.ClientSession, path: str) -> bytes | None:
        try:
            async with session.get(f"{self.base}{path}", timeout=_ASIDE) as answer:
                return await answer.read() if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
