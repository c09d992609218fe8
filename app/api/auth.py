"""The accepted API keys, compared in constant time. Without configured keys, none is required."""

import hashlib
import hmac
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from app.errors import ModelError, Unauthorized
from app.settings import Settings

log = structlog.get_logger("topk")

_CHECK_S = 1.0  # between two checks of the file


class Keys:
    """Digests of the accepted keys, from the settings and from a file that is read again when it changes.

    Raises ModelError if the file cannot be read at first. If it cannot be read later, the previous keys stay valid.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._given = [key.get_secret_value() for key in settings.api_keys]
        self._file = settings.api_keys_file.expanduser() if settings.api_keys_file else None
        self._clock = clock
        self._checked_at = clock()
        self._version = _version(self._file)
        self._digests = self._read()

    def __len__(self) -> int:
        return len(self._digests)

    def check(self, *given: str | None) -> str | None:
        """The digest of the accepted key among ``given``, or None if no keys are configured.

        Raises Unauthorized if none of them is accepted.
        """
        if self._file and self._clock() - self._checked_at >= _CHECK_S:
            self._reload()
        if not self._digests:
            return None
        digests = [_digest(key.strip()) for key in given if key]
        if not digests:
            raise Unauthorized("the request has no API key; send it as Authorization: Bearer KEY or X-API-Key: KEY")
        # Compares with all keys, to take constant time.
        found = [digest for digest in digests for known in self._digests if hmac.compare_digest(digest, known)]
        if not found:
            raise Unauthorized("the API key is not valid")
        return found[0].hex()

    def _reload(self) -> None:
        self._checked_at = self._clock()
        version = _version(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            self._digests = self._read()
        except ModelError as error:
            log.error("the API keys were not reloaded; the previous keys stay valid", reason=error.detail)
        else:
            log.info("API keys reloaded", keys=len(self._digests))

    def _read(self) -> list[bytes]:
        keys = [*self._given, *(_keys_in(self._file) if self._file else [])]
        if not all(key.isascii() and key.isprintable() for key in keys):
            raise ModelError("API keys must be printable ASCII, because headers cannot carry other characters")
        return [_digest(key) for key in keys]


def _keys_in(file: Path) -> list[str]:
    """The keys in a file: one per line, ``#`` begins a comment. Raises ModelError."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"cannot read the API keys: {error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ModelError(f"{file} contains no API key")
    return keys


def _version(file: Path | None) -> tuple[int, int, int] | None:
    """A value that changes when the file is written, or replaced behind a link, as Kubernetes does."""
    try:
        stat = file.stat() if file else None
    except OSError:
        return None
    return (stat.st_mtime_ns, stat.st_ino, stat.st_size) if stat else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
