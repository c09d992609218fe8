"""Download of official weights into torch's cache: progress, resumed retries, hash check, atomic rename."""

import hashlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import httpx2
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from app.errors import ModelError

log = logging.getLogger(__name__)  # not structlog, which prints to stdout in processes that configure no logging

GIVE_UP_S = 10.0  # without a byte
_RETRY_S = 0.5
_MAX_REFUSALS = 3  # failed connections before the first byte, after which there is no network
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")  # torch's convention: NAME-<first digits of the SHA-256>.pth


class _PermanentError(Exception):
    """A retry cannot succeed."""


def cache_folder() -> Path:
    """Where ``torch.hub`` keeps weights: ``$TORCH_HOME/hub/checkpoints``, by default below ``~/.cache/torch``."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")
    return Path(os.path.expanduser(home)) / "hub" / "checkpoints"  # Path.expanduser raises if there is no home


def cached(url: str) -> Path | None:
    """The weights file, if it is in the cache."""
    path = cache_folder() / url.rsplit("/", 1)[-1]
    return path if os.path.isfile(path) else None  # Path.is_file raises if the folder may not be searched


def fetch(url: str, give_up_s: float = GIVE_UP_S) -> Path:
    """Path of the weights at ``url``, downloaded unless they are in the cache.

    An interrupted transfer is resumed until ``give_up_s`` seconds pass without a new byte. The file's SHA-256 must
    begin with the digits in its name. Raises ModelError.
    """
    if found := cached(url):
        return found
    target = cache_folder() / url.rsplit("/", 1)[-1]
    announce(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as partial:
            try:
                _receive(url, partial, give_up_s)
                _check_hash(target.name, Path(partial.name))
                os.chmod(partial.name, 0o644)
                os.replace(partial.name, target)
            except BaseException:
                os.unlink(partial.name)
                raise
    except (OSError, _PermanentError) as error:
        raise ModelError(f"the weights at {url} cannot be downloaded: {error}") from error
    return target


def announce(url: str) -> None:
    """Log that a download starts."""
    log.info("downloading %s, once on this machine; this usually takes less than a minute", url)


def _receive(url: str, partial: IO[bytes], give_up_s: float) -> None:
    """Fill ``partial``, resuming after each interruption."""
    last_byte, furthest, refused = time.monotonic(), 0, 0
    with _progress() as progress, _client(give_up_s) as client:
        task = progress.add_task(url.rsplit("/", 1)[-1], total=None)
        while True:
            try:
                for length, total in _chunks(client, url, partial):
                    if length > furthest:
                        last_byte, furthest = time.monotonic(), length
                    progress.update(task, completed=length, total=total)
                return
            except httpx2.HTTPError as error:
                refused += isinstance(error, httpx2.ConnectError)
                reason = str(error) or type(error).__name__
                if refused == _MAX_REFUSALS and not furthest:
                    raise _PermanentError(f"no connection ({reason})") from error
                if time.monotonic() - last_byte + _RETRY_S >= give_up_s:
                    raise _PermanentError(f"no data for {give_up_s:g} s ({reason})") from error
                time.sleep(_RETRY_S)


def _client(timeout: float) -> httpx2.Client:
    try:
        return httpx2.Client(follow_redirects=True, timeout=timeout)
    except (ImportError, ValueError, httpx2.InvalidURL) as error:  # for example a SOCKS proxy
        raise _PermanentError(f"the proxy set in the environment cannot be used: {error}") from error


def _chunks(client: httpx2.Client, url: str, partial: IO[bytes]) -> Iterator[tuple[int, int | None]]:
    """Append the missing bytes. Yields (bytes so far, total bytes)."""
    have = partial.seek(0, os.SEEK_END)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 200 and have:  # the server ignores ranges: start again
            have = partial.seek(0)
            partial.truncate()
        if 400 <= response.status_code < 500:
            raise _PermanentError(f"the server responded with status {response.status_code}")
        response.raise_for_status()
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        for chunk in response.iter_raw():
            have += partial.write(chunk)
            yield have, total
    partial.flush()
    if total is not None and have < total:
        raise httpx2.ReadError(f"received {have} of {total} bytes")


def _check_hash(name: str, path: Path) -> None:
    expected = _HASH_IN_NAME.search(name)
    digest = sha256(path)
    if expected and not digest.startswith(expected[1]):
        raise _PermanentError(f"the file's SHA-256 begins with {digest[: len(expected[1])]}, not {expected[1]}")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a regular file. Raises ModelError if it cannot be read."""
    check_file(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error


def check_file(path: Path) -> None:
    """Raise ModelError unless ``path`` is a regular file: reading a pipe or a device might never end."""
    if not os.path.exists(path):
        raise ModelError(f"{path} does not exist")
    if not os.path.isfile(path):
        raise ModelError(f"{path} is not a regular file")


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
