"""Converted models on this machine: what OpenVINO serves is converted once, in a child process, and kept as a folder.

The serving process needs no torch then. An entry is named after what was converted and the versions that did it.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import structlog

from app.errors import ModelError, NotConvertible
from app.models import download, folder
from app.models.architecture import TIMM, is_checkpoint, name_of
from app.models.model import Model

log = structlog.get_logger(__name__)

REFUSED, NOT_CONVERTIBLE = 3, 4  # exit codes of ``convert``; the reason stands on its stdout


def converted(spec: str, weights: Path | None, cache: Path) -> Model:
    """The model that ``spec`` and ``weights`` name, converted for OpenVINO; from ``cache`` where it is there.

    Blocks: a conversion takes some seconds, and may download first. Raises ModelError, NotConvertible among them.
    """
    entry = cache.expanduser() / _key(spec, weights)
    if not folder.is_folder(entry):
        _convert(spec, weights, entry)
    try:
        model = folder.load(entry)
    except ModelError as error:
        log.warning("the converted model is converted again", reason=error.detail)
        _convert(spec, weights, entry)
        model = folder.load(entry)
    return replace(model, name=name_of(spec))


def _key(spec: str, weights: Path | None) -> str:
    parts, makers, file = [spec], ["torchvision", "openvino"], weights
    if is_checkpoint(spec):
        parts, file = [], Path(spec)
        makers.append("ultralytics")
    elif spec.startswith(TIMM):
        makers.append("timm")
    if file:
        parts += [file.stem, download.sha256(file)]
    parts += [str(folder.FORMAT), *(importlib.metadata.version(name) for name in makers)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    shown = Path(spec).stem if is_checkpoint(spec) else spec
    return f"{''.join(c if c.isalnum() else '-' for c in shown)}-{digest[:16]}"


def _convert(spec: str, weights: Path | None, entry: Path) -> None:
    """Convert beside the entry's place, then move it there whole: others may be looking, or doing the same."""
    log.info("converting the model, once on this machine", model=spec, into=str(entry))
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".converting-") as made:
            target = Path(made) / entry.name
            _run_child(spec, weights, target)
            with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".old-") as old:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(entry, Path(old) / entry.name)
                os.rename(target, entry)
    except OSError as error:
        raise ModelError(f"the converted model cannot be kept in {entry.parent}: {error.strerror or error}") from error


def _run_child(spec: str, weights: Path | None, target: Path) -> None:
    """The child ends when this process does: its standard input is ours to close."""
    command = [sys.executable, "-m", "app.models.convert", spec, str(weights or ""), str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
        assert child.stdout
        said = child.stdout.read().strip()
        code = child.wait()
    if code == NOT_CONVERTIBLE:
        raise NotConvertible(said)
    if code == REFUSED:
        raise ModelError(said)
    if code:
        raise ModelError(f"{spec} could not be converted for OpenVINO (exit code {code})")
