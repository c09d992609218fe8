"""Names that people give to files, and folders that may not be read."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unicodedata import normalize

import pytest

NAMES = {
    "decomposed": normalize("NFD", "Crème brûlée"),
    "Korean, decomposed": normalize("NFD", "비빔밥"),
    "Vietnamese, decomposed": normalize("NFD", "Phở bò"),
    "Persian": "می\u200cروم",
    "Hindi": "क्\u200dष",
    "family emoji": "👨\u200d👩\u200d👧",
    "ideographic space": "東京\u3000タワー",
    "narrow space": "Screenshot 2024-05-01 at 9.41.00\u202fAM",
    "no-break space": "prix\u00a0net",
    "soft hyphen": "Donau\u00addampf\u00adschiff",
    "right-to-left mark": "תמונה\u200f 1",
    "newer than this Python": "\U000323af",
    "private use": "a\uf022b",
}
HUMAN = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
_NOBODY = 65534


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Run as a user whom permissions stop, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(_NOBODY)
    except PermissionError:
        pytest.skip("root, but not allowed to change the user")
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def forbidden(*folders: Path, mode: int = 0) -> Iterator[None]:
    """Run as a user to whom these folders have this mode."""
    for folder in folders:
        folder.chmod(mode)
    try:
        with as_nobody():
            yield
    finally:
        for folder in folders:
            folder.chmod(0o755)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user can reach: pytest's own belongs to one user alone."""
    folder = Path(tempfile.mkdtemp(prefix="topk-tests-")).resolve()
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
