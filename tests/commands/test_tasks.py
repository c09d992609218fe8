"""Work that is done at once: how it ends."""

import asyncio

import pytest

from app.commands.tasks import all_of
from app.errors import EvaluationError


async def _works(done: list[int], fail: dict[int, Exception]) -> None:
    may_end = asyncio.Event()

    async def work(number: int) -> None:
        if number in fail:
            raise fail[number]
        await may_end.wait()
        done.append(number)

    if not fail:
        may_end.set()
    await all_of(work(number) for number in range(3))


def test_all_are_done() -> None:
    done: list[int] = []
    asyncio.run(_works(done, {}))
    assert done == [0, 1, 2]


def test_an_error_of_ours_comes_as_it_is_and_ends_the_others() -> None:
    done: list[int] = []
    with pytest.raises(EvaluationError, match="first"):
        asyncio.run(_works(done, {2: EvaluationError("first")}))
    assert done == []


def test_a_defect_is_not_hidden_behind_an_error_of_ours() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(_works([], {0: EvaluationError("ours"), 1: KeyError("defect")}))
    assert {type(error) for error in raised.value.exceptions} == {EvaluationError, KeyError}
