"""Converted models on this machine: what OpenVINO serves is converted once, in a child process, and kept as a folder.

The serving process needs no torch then. An entry is named after what was converted and the versions that did it.
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
from app.models.architecture import TIMM, is_checkpoint, name_of
from app.models.model import Model
from app.processes import children

log = structlog.get_logger(__name__)

REFUSED, NOT_CONVERTIBLE = 3, 4  # exit codes of ``conversion``; the reason stands on its stdout
_WORKPLACE = ".converting-"
_CHECKSUM = "model.json.sha256"


def converted(spec: str, weights: Path | None, cache: Path) -> Model:
    """The model that ``spec`` and ``weights`` name, converted for OpenVINO; from ``cache`` where it is there.

    Blocks: a conversion takes some seconds, and may download first. Raises ModelError, NotConvertible among them.
    """
    file = Path(spec) if is_checkpoint(spec) else weights
    digest = download.sha256(file) if file else None
    entry = cache.expanduser() / _key(spec, weights, digest)
    if not folder.is_folder(entry):
        _convert(spec, weights, entry)
    try:
        model = _load(entry, digest)
    except ModelError as error:
        log.warning("the converted model is converted again", reason=error.detail)
        _convert(spec, weights, entry)
        model = _load(entry, digest)
    return replace(model, name=name_of(spec))


def _load(entry: Path, digest: str | None) -> Model:
    """The model of an entry. Raises ModelError unless all of it is as it was written.

    The description has the digests of the other files, and a file beside it has its own. ``digest`` is that of the
    weights that were converted, where they are a file of the user's: the model's must be the same.
    """
    try:
        written = (entry / _CHECKSUM).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{entry / _CHECKSUM} cannot be read: {error}") from error
    if download.sha256(entry / folder.DESCRIPTION) != written:
        raise ModelError(f"{entry / folder.DESCRIPTION} is not what was written: its SHA-256 is not in {_CHECKSUM}")
    model = folder.load(entry)
    if digest and model.digest != digest:
        raise ModelError(f"{entry} was made of weights with the SHA-256 {model.digest}, not {digest}")
    if not model.openvino:
        raise ModelError(f"{entry} has no network for OpenVINO")
    return model


def _key(spec: str, weights: Path | None, weights_digest: str | None) -> str:
    parts, makers, file = [spec], ["torchvision", "openvino"], weights
    if is_checkpoint(spec):
        parts, file = [], Path(spec)
        makers.append("ultralytics")
    elif spec.startswith(TIMM):
        makers.append("timm")
    if file and weights_digest:
        parts += [file.stem, weights_digest]
    parts += [str(folder.FORMAT), *(importlib.metadata.version(name) for name in makers)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    shown = Path(spec).stem if is_checkpoint(spec) else spec
    return f"{''.join(c if c.isalnum() else '-' for c in shown)}-{digest[:16]}"


def _convert(spec: str, weights: Path | None, entry: Path) -> None:
    """Convert beside the entry's place, then move it there whole: others may be looking, or doing the same."""
    log.info("converting the model, once on this machine", model=spec, into=str(entry))
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _workplace(entry.parent) as (workplace, lock):
            target = workplace / "new"
            _run_child(spec, weights, target, lock)
            (target / _CHECKSUM).write_text(download.sha256(target / folder.DESCRIPTION))
            with contextlib.suppress(FileNotFoundError):
                os.rename(entry, workplace / "old")
            os.rename(target, entry)
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror or error
        raise ModelError(f"the converted model cannot be kept in {entry.parent}: {reason}") from error


@contextlib.contextmanager
def _workplace(cache: Path) -> Iterator[tuple[Path, int]]:
    """A folder to convert in, and the lock that tells for as long as we or our child live that it is in use."""
    with contextlib.ExitStack() as stack:
        with _lock(cache):  # so that nobody finds the folder before it is locked itself
            _sweep(cache)
            made = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=cache, prefix=_WORKPLACE)))
            lock = stack.enter_context(_lock(made))
        yield made, lock


def _sweep(cache: Path) -> None:
    """Remove the folders of those who were killed while they converted. Where there are no locks, nobody can tell."""
    for left in cache.glob(f"{_WORKPLACE}*"):
        with contextlib.suppress(OSError), _opened(left) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Held until all have closed its descriptor; not every network's file system has locks."""
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
    """The child ends when this process does: its standard input is ours to close."""
    arguments = (spec, str(weights or ""), str(target))
    with children.start("app.models.conversion", *arguments, descriptors=[lock], stdout=subprocess.PIPE) as child:
        assert child.stdout
        try:
            said = child.stdout.read().decode().strip()
            code = child.wait()
        except BaseException:  # Ctrl-C
            child.kill()
            raise
    if code == NOT_CONVERTIBLE:
        raise NotConvertible(said)
    if code == REFUSED:
        raise ModelError(said)
    if code:
        raise ModelError(f"{spec} could not be converted for OpenVINO (exit code {code})")
