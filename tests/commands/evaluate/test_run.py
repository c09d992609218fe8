"""What is asked for, of files of all kinds."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from app.commands.evaluate.read import Samples
from app.commands.evaluate.run import run
from app.commands.evaluate.source import Classify, TopClasses
from app.imagenet.labels import Label


class Always:
    """The first class, surely."""

    labels = (Label("cat"), Label("dog"))
    at_once = 2

    @property
    def facts(self) -> dict[str, Any]:
        return {}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Classify]:
        async def ask(content: bytes) -> TopClasses:
            return TopClasses((0, 1), (1.0, 0.0))

        yield ask


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    files = tuple(tmp_path / name for name in ("image", "pipe", "folder", "nothing"))
    files[0].write_bytes(b"an image")
    os.mkfifo(files[1])
    files[2].mkdir()
    found = run(Always(), Samples(tmp_path, files, np.zeros(4, np.int64)), lambda _: None)
    assert found.answered.tolist() == [True, False, False, False]
    assert {i: why.detail for i, why in found.unreadable.items()} == {
        1: "not a regular file",
        2: "not a regular file",
        3: "No such file or directory",
    }
