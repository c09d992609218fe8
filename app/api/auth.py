"""API keys: ``Authorization: Bearer`` or ``X-API-Key``, compared in constant time. None configured, none asked for."""

import hashlib
import hmac
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import structlog
from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from app.api import address
from app.api.exchange import Exchange
from app.errors import ModelError, Unauthorized
from app.settings import Settings

log = structlog.get_logger("topk")

_LOOK_S = 1.0  # between two looks at the file

_bearer = HTTPBearer(auto_error=False, description="Only where the server has API keys configured.")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="Only where the server has API keys configured.")


class Keys:
    """The accepted keys, kept as digests: those of the settings, and of a file that is read again when it changes.

    Raises ModelError where the file cannot be read at first; later on, the keys that were read last stay accepted.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._given = [key.get_secret_value() for key in settings.api_keys]
        self._file = settings.api_keys_file.expanduser() if settings.api_keys_file else None
        self._clock = clock
        self._looked_at = clock()
        self._version = _version(self._file)
        self._digests = self._read()

    def __len__(self) -> int:
        return len(self._digests)

    def check(self, *given: str | None) -> str | None:
        """The digest of the accepted key among ``given``, or None where no keys are configured.

        Raises Unauthorized where none of them is accepted.
        """
        if self._file and self._clock() - self._looked_at >= _LOOK_S:
            self._look()
        if not self._digests:
            return None
        digests = [_digest(key.strip()) for key in given if key]
        if not digests:
            raise Unauthorized("send an API key as Authorization: Bearer KEY or X-API-Key: KEY")
        # all of them, for constant time
        found = [digest for digest in digests for known in self._digests if hmac.compare_digest(digest, known)]
        if not found:
            raise Unauthorized("the API key is not known")
        return found[0].hex()

    def _look(self) -> None:
        self._looked_at = self._clock()
        version = _version(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            self._digests = self._read()
        except ModelError as error:
            log.error("the API keys read before stay accepted", reason=error.detail)
        else:
            log.info("API keys read again", keys=len(self._digests))

    def _read(self) -> list[bytes]:
        keys = [*self._given, *(_keys_in(self._file) if self._file else [])]
        if not all(key.isascii() and key.isprintable() for key in keys):
            raise ModelError("API keys must be printable ASCII: no other can come in a header")
        return [_digest(key) for key in keys]


async def require_key(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> None:
    """Route dependency: runs before anything of the body is read, and notes who calls."""
    keys: Keys = request.app.state.keys
    key = keys.check(bearer.credentials if bearer else None, header)
    Exchange.of(request.scope).caller = key or address.caller(request.scope)


def _keys_in(file: Path) -> list[str]:
    """One key a line, ``#`` for comments. Raises ModelError."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"API keys cannot be read: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ModelError(f"{file} holds no API key")
    return keys


def _version(file: Path | None) -> tuple[int, int, int] | None:
    """What changes when a file is written, or replaced as Kubernetes does it: by another one behind a link."""
    try:
        stat = file.stat() if file else None
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_ino, stat.st_size) if stat else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
