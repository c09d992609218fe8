"""The server under load: its URLs, its description, and its count of batches."""

import re
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import orjson

from app.errors import LoadTestError

PREDICT = "/v1/predict"
_OPTIONAL = aiohttp.ClientTimeout(total=2)  # optional information must not delay the run
_BATCHES = re.compile(r"^topk_batch_size_(sum|count)(?:\{.*\})? (\S+)$", re.MULTILINE)


class Batches(NamedTuple):
    """Numbers of images and batches since the server started."""

    images: float
    batches: float


class Target:
    """``url`` takes images; ``base`` is the server's root, including a proxy's prefix. Raises LoadTestError."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise LoadTestError(f"not an http or https URL: {url!r}")
        path = PREDICT if parts.path in ("", "/") else parts.path
        self.url = urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
        prefix = path.removesuffix(PREDICT) if path.endswith(PREDICT) else ""
        self.base = urlunsplit((parts.scheme, parts.netloc, prefix, "", ""))

    async def info(self, session: aiohttp.ClientSession) -> dict[str, Any] | None:
        """The body of ``/v1/info``, or None if the server has no such route."""
        try:
            found = orjson.loads(await self._get(session, "/v1/info") or b"null")
        except orjson.JSONDecodeError:
            return None
        return found if isinstance(found, dict) else None

    async def batches(self, session: aiohttp.ClientSession) -> Batches | None:
        """The totals of ``topk_batch_size`` in ``/metrics``, or None if the server does not export it."""
        text = await self._get(session, "/metrics") or b""
        found = {"sum": 0.0, "count": 0.0}
        matches = _BATCHES.findall(text.decode("utf-8", "replace"))
        for name, value in matches:
            found[name] += float(value)
        return Batches(found["sum"], found["count"]) if matches else None

    async def _get(self, session: aiohttp.ClientSession, path: str) -> bytes | None:
        try:
            async with session.get(f"{self.base}{path}", timeout=_OPTIONAL) as response:
                return await response.read() if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
