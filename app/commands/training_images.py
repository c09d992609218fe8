"""The images that a model was trained on, as digests in its model folder.

``evaluate`` reads them to warn about images that the model has seen in training.
"""

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from app.errors import ModelError

FILE = "training-images.sha256"
_PREFIX = 8  # bytes of each SHA-256: enough to tell images apart, and small


def write(folder: Path, digests: Iterable[bytes]) -> None:
    """Write the SHA-256 digests of the training images into a model folder. Raises OSError."""
    prefixes = sorted(digest[:_PREFIX].hex() for digest in digests)
    (folder / FILE).write_text("".join(f"{prefix}\n" for prefix in prefixes), encoding="ascii")


def copy(source: Path, target: Path) -> None:
    """Copy the digests of one model folder into another; do nothing if ``source`` has none. Raises ModelError."""
    if not (source / FILE).is_file():
        return
    try:
        shutil.copyfile(source / FILE, target / FILE)
    except OSError as error:
        raise ModelError(f"{source / FILE} cannot be copied to {target}: {error.strerror or error}") from error


def count(folder: Path, files: Iterable[Path]) -> int:
    """How many of these files the model in ``folder`` was trained on; 0 if the folder has no digests."""
    try:
        known = set((folder / FILE).read_text(encoding="ascii").split())
    except (OSError, UnicodeDecodeError):
        return 0
    return sum(_prefix(file) in known for file in files)


def _prefix(file: Path) -> str | None:
    try:
        if not file.is_file():
            return None
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").digest()[:_PREFIX].hex()
    except OSError:
        return None
