"""API keys: ``Authorization: Bearer`` or ``X-API-Key``, compared in constant time. None configured, none asked for."""

import hashlib
import hmac
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from app.errors import ModelError, Unauthorized
from app.settings import Settings

_bearer = HTTPBearer(auto_error=False, description="Only where the server has API keys configured.")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="Only where the server has API keys configured.")


class Keys:
    """The accepted keys, kept as digests."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def of(cls, settings: Settings) -> "Keys":
        """The keys of the settings and of the keys' file, one a line, ``#`` for comments. Raises ModelError."""
        keys = [key.get_secret_value() for key in settings.api_keys]
        if settings.api_keys_file:
            try:
                lines = settings.api_keys_file.expanduser().read_text().splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ModelError(f"API keys cannot be read: {error}") from error
            keys += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
            if not keys:
                raise ModelError(f"{settings.api_keys_file} holds no API key")
        if not all(key.isascii() and key.isprintable() for key in keys):
            raise ModelError("API keys must be printable ASCII: no other can come in a header")
        return cls(keys)

    def check(self, *given: str | None) -> None:
        """Raise Unauthorized unless one of ``given`` is an accepted key, or none are configured."""
        if not self._digests:
            return
        digests = [_digest(key.strip()) for key in given if key]
        if not digests:
            raise Unauthorized("send an API key as Authorization: Bearer KEY or X-API-Key: KEY")
        # all of them, for constant time
        if not sum(hmac.compare_digest(digest, known) for digest in digests for known in self._digests):
            raise Unauthorized("the API key is not known")


async def require_key(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> None:
    """Route dependency: runs before anything of the body is read."""
    keys: Keys = request.app.state.keys
    keys.check(bearer.credentials if bearer else None, header)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
