"""A picture of each classified file: upright, with its class activation map and the frame of the crop."""

import asyncio
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from app import images
from app.api.explanation import Explanation
from app.commands.filenames import printable
from app.commands.predict.inputs import STDIN
from app.commands.reports import overlay
from app.errors import Internal, ModelError, ReportError
from app.images import Preprocessing, Size

EDGE = 1024
"""The longest edge of a picture in pixels."""


class Pictures:
    """Writes the pictures: see ``targets``. One is drawn at a time, because a photograph may take much memory.

    ``preprocessing`` and ``max_pixels`` are those of the classifier.
    """

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing, max_pixels: int) -> None:
        self._paths = paths
        self._preprocessing = preprocessing
        self._max_pixels = max_pixels
        self._alone = asyncio.Lock()

    async def write(self, position: int, content: bytes, size: Size, explanation: Explanation) -> None:
        """Write the picture of the file at this position. ``size`` is that of the upright photograph.

        Raises BadImage and ReportError.
        """
        async with self._alone:
            await asyncio.to_thread(self._write, self._paths[position], content, size, explanation)

    def _write(self, path: Path, content: bytes, size: Size, explanation: Explanation) -> None:
        header = images.read_header(content, self._max_pixels)
        upright = Image.fromarray(images.decode_whole(header, self._preprocessing))
        try:
            path.write_bytes(png(draw(upright, size, explanation)))
        except OSError as error:
            raise ReportError(f"{printable(path)} cannot be written: {error.strerror}") from error


def draw(upright: Image.Image, size: Size, explanation: Explanation) -> Image.Image:
    """The picture. ``upright`` may be smaller than the photograph, whose width and height are ``size``."""
    if explanation.box is None:
        raise Internal("the explanation has no box")
    picture = upright.copy()
    picture.thumbnail((EDGE, EDGE))
    left, top, right, bottom = explanation.box
    across, down = picture.width / size[0], picture.height / size[1]
    box = _within(picture, (left * across, top * down, right * across, bottom * down))
    overlay.tint(picture, np.array(explanation.grid, np.float32), box)
    overlay.frame(picture, box)
    return picture


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def targets(path: Path, files: Sequence[Path]) -> list[Path]:
    """The picture of each file: ``path`` itself, which ends with .png, or one for each file in the folder ``path``.

    Creates the folder. Raises ModelError for a path that does not fit the files, and ReportError.
    """
    if path.is_dir() or not path.suffix:
        _make(path)
        pictures = [path / name for name in _names(files)]
    elif path.suffix.lower() != ".png":
        raise ModelError(f"--explain must be a file that ends with .png or a folder, got {printable(path)}")
    elif len(files) > 1:
        raise ModelError(
            f"--explain {printable(path)} is one picture, but there are {len(files)} images; name a folder"
        )
    elif not path.parent.is_dir():
        raise ReportError(f"no such folder for the picture: {printable(path.parent)}")
    else:
        pictures = [path]
    _keep(files, pictures)
    return pictures


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ReportError(f"the folder {printable(folder)} cannot be made: {error.strerror}") from error


def _names(files: Iterable[Path]) -> Iterator[str]:
    """The name of each file with .png appended, and a number before that if it would occur twice."""
    used: set[str] = set()
    for file in files:
        name = "stdin" if file == STDIN else file.name
        numbered = (f"{name}.{n}.png" if n > 1 else f"{name}.png" for n in itertools.count(1))
        free = next(one for one in numbered if one.casefold() not in used)
        used.add(free.casefold())
        yield free


def _keep(files: Sequence[Path], pictures: Sequence[Path]) -> None:
    """Raise ModelError if a picture would replace one of the files."""
    own = {file.resolve() for file in files if file != STDIN}
    for picture in pictures:
        if picture.resolve() in own:
            raise ModelError(f"--explain would overwrite the image {printable(picture)}; name another file or folder")


def _within(picture: Image.Image, box: tuple[float, float, float, float]) -> overlay.Box:
    """The box in whole pixels, at least one, inside the picture."""
    left, top = min(round(box[0]), picture.width - 1), min(round(box[1]), picture.height - 1)
    right, bottom = min(round(box[2]), picture.width), min(round(box[3]), picture.height)
    return left, top, max(right, left + 1), max(bottom, top + 1)
