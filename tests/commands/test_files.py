"""Many files at a time: how the work is spread, and how it ends."""

import asyncio
import os
from pathlib import Path

import pytest

from app.commands.files import for_each, read_file
from app.errors import EmptyBody, EvaluationError


async def _work(done: list[int], failures: dict[int, Exception]) -> None:
    may_end = asyncio.Event()

    async def work(number: int) -> None:
        if number in failures:
            raise failures[number]
        await may_end.wait()
        done.append(number)

    if not failures:
        may_end.set()
    await for_each(3, 3, work)


def test_all_are_done() -> None:
    done: list[int] = []
    asyncio.run(_work(done, {}))
    assert done == [0, 1, 2]


def test_no_more_are_in_progress_than_allowed() -> None:
    running: list[int] = []
    most: list[int] = []

    async def work(number: int) -> None:
        running.append(number)
        most.append(len(running))
        await asyncio.sleep(0)
        running.remove(number)

    asyncio.run(for_each(20, 4, work))
    assert (len(most), max(most)) == (20, 4)
    asyncio.run(for_each(0, 4, work))


def test_an_error_of_ours_is_raised_as_it_is_and_ends_the_others() -> None:
    done: list[int] = []
    with pytest.raises(EvaluationError, match="first"):
        asyncio.run(_work(done, {2: EvaluationError("first")}))
    assert done == []


def test_a_defect_is_not_hidden_behind_an_error_of_ours() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(_work([], {0: EvaluationError("ours"), 1: KeyError("defect")}))
    assert {type(error) for error in raised.value.exceptions} == {EvaluationError, KeyError}


def test_only_regular_files_with_content_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    assert asyncio.run(read_file(tmp_path / "file")) == b"content"
    with pytest.raises(EmptyBody):
        asyncio.run(read_file(tmp_path / "empty"))
    for name, words in (("pipe", "not a regular file"), ("none", "no such file"), (".", "not a regular file")):
        with pytest.raises(OSError, match=words):
            asyncio.run(read_file(tmp_path / name))
