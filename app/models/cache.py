"""The cache of converted models: each model is converted for OpenVINO once, in a child process, and kept as a folder.

The serving process then needs no torch. An entry's name derives from the model and the versions of the packages that
converted it.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import structlog

from app.errors import ModelError, NotConvertible
from app.models import download, folder
from app.models.model import Model
from app.models.names import TIMM, is_checkpoint, name_of
from app.processes import children

log = structlog.get_logger(__name__)

REFUSED, NOT_CONVERTIBLE = 3, 4  # exit codes of ``conversion``, which prints the reason to its stdout
_WORKSPACE = ".converting-"
_CHECKSUM = "model.json.sha256"


def converted(spec: str, weights: Path | None, cache: Path) -> Model:
    """The model that ``spec`` and ``weights`` name, converted for OpenVINO: from ``cache``, or converted now.

    Blocks: a conversion takes several seconds and may download weights first. Raises ModelError and NotConvertible.
    """
    file = Path(spec) if is_checkpoint(spec) else weights
    digest = download.sha256(file) if file else None
    entry = cache.expanduser() / _key(spec, weights, digest)
    if not folder.is_folder(entry):
        _convert(spec, weights, entry)
    try:
        model = _load(entry, digest)
    except ModelError as error:
        log.warning("the cached model is damaged and is converted again", reason=error.detail)
        _convert(spec, weights, entry)
        model = _load(entry, digest)
    return replace(model, name=name_of(spec))


def _load(entry: Path, digest: str | None) -> Model:
    """The model of a cache entry. Raises ModelError if any of its files has changed.

    The description contains the digests of the other files, and a separate file contains the description's digest.
    ``digest`` is the digest of the user's weights file, if any; it must be the one that was converted.
    """
    try:
        written = (entry / _CHECKSUM).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{entry / _CHECKSUM} cannot be read: {error}") from error
    if download.sha256(entry / folder.DESCRIPTION) != written:
        raise ModelError(f"{entry / folder.DESCRIPTION} has changed: its SHA-256 is not the one in {_CHECKSUM}")
    model = folder.load(entry)
    if digest and model.digest != digest:
        raise ModelError(f"{entry} was converted from weights with the SHA-256 {model.digest}, not {digest}")
    if not model.openvino:
        raise ModelError(f"{entry} has no network for OpenVINO")
    return model


def _key(spec: str, weights: Path | None, weights_digest: str | None) -> str:
    parts, packages, file = [spec], ["torchvision", "openvino"], weights
    if is_checkpoint(spec):
        parts, file = [], Path(spec)
        packages.append("ultralytics")
    elif spec.startswith(TIMM):
        packages.append("timm")
    if file and weights_digest:
        parts += [file.stem, weights_digest]
    parts += [str(folder.FORMAT), *(importlib.metadata.version(name) for name in packages)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    readable = Path(spec).stem if is_checkpoint(spec) else spec
    return f"{''.join(c if c.isalnum() else '-' for c in readable)}-{digest[:16]}"


def _convert(spec: str, weights: Path | None, entry: Path) -> None:
    """Convert in a workspace beside the entry, then rename: other processes may read or write the same entry."""
    log.info(
        "converting the model, once on this machine", model=spec, usually="5 to 30 s after a download", into=str(entry)
    )
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _workspace(entry.parent) as (workspace, lock):
            target = workspace / "new"
            _run_child(spec, weights, target, lock)
            (target / _CHECKSUM).write_text(download.sha256(target / folder.DESCRIPTION))
            with contextlib.suppress(FileNotFoundError):
                os.rename(entry, workspace / "old")
            os.rename(target, entry)
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror or error
        raise ModelError(f"the converted model cannot be written to {entry.parent}: {reason}") from error


@contextlib.contextmanager
def _workspace(cache: Path) -> Iterator[tuple[Path, int]]:
    """A temporary folder, and the descriptor of the lock that marks it as used while this process or its child runs."""
    with contextlib.ExitStack() as stack:
        with _lock(cache):  # no other process may sweep the folder before its own lock is held
            _sweep(cache)
            created = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=cache, prefix=_WORKSPACE)))
            lock = stack.enter_context(_lock(created))
        yield created, lock


def _sweep(cache: Path) -> None:
    """Remove the workspaces of processes that were killed. On a file system without locks, remove nothing."""
    for left in cache.glob(f"{_WORKSPACE}*"):
        with contextlib.suppress(OSError), _opened(left) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Lock a folder until every copy of the yielded descriptor is closed. Some network file systems have no locks."""
    with _opened(folder) as descriptor:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _run_child(spec: str, weights: Path | None, target: Path, lock: int) -> None:
    """Run the conversion. The child ends with this process, because this process holds its standard input open."""
    arguments = (spec, str(weights or ""), str(target))
    with children.start("app.models.conversion", *arguments, descriptors=[lock], stdout=subprocess.PIPE) as child:
        assert child.stdout
        try:
            reason = child.stdout.read().decode().strip()
            code = child.wait()
        except BaseException:  # Ctrl-C
            child.kill()
            raise
    if code == NOT_CONVERTIBLE:
        raise NotConvertible(reason)
    if code == REFUSED:
        raise ModelError(reason)
    if code:
        raise ModelError(f"{spec} could not be converted for OpenVINO (exit code {code})")
