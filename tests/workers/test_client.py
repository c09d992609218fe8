"""The queue that leads to the engine, with an engine played by the test."""

import asyncio
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from app.batching import CostCurve, Job, Outlook
from app.classifier import Waiter
from app.engine import Jpeg, Row, Want
from app.errors import DeadlineExceeded, NotReady, Overloaded
from app.workers import memory, wire
from app.workers.client import EngineQueue
from app.workers.http import RemoteFacts
from app.workers.memory import Board, Slots
from tests.batching.jobs import Numbered, answer, measured

CROP = 8
BUCKETS = (1, 2)
FACTS = RemoteFacts("none", "cpu", "a processor", "float32", 1, False, "compiled", BUCKETS, 3)


class Engine:
    """The other end: what has come, and answers by the test's word."""

    def __init__(self, slots: int = 2) -> None:
        ours, self.socket = socket.socketpair()
        self.socket.settimeout(10)
        self._frames = wire.Frames()
        self._came: list[tuple[int, bytes]] = []
        self._tasks: list[wire.ImageTask] = []
        memories = [memory.create(Slots.size(slots, CROP)), memory.create(Board.size(BUCKETS))]
        self.slots, self.board = Slots(memories[0], slots, CROP), Board(memories[1], BUCKETS)
        theirs = Slots(memories[0], slots, CROP), Board(memories[1], BUCKETS)
        for descriptor in memories:
            os.close(descriptor)
        self.queue = EngineQueue(ours, *theirs, FACTS, lambda: 0.0)
        self.costs = measured({1: 0.1, 2: 0.2})
        self.expect(0.0)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        self.queue.read()
        self.queue.fail()

    def expect(self, wait: float, patience: float = math.inf, lateness: float = 1.0) -> None:
        outlook = Outlook(time.monotonic(), wait, wait, 0, wait == 0, 0.1, patience, lateness)
        self.board.write(outlook, self.costs, CostCurve((1,)))

    def frame(self) -> tuple[int, bytes]:
        while not self._came:
            self._came += self._frames.feed(self.socket.recv(4096))
        return self._came.pop(0)

    def task(self) -> wire.ImageTask:
        if not self._tasks:
            kind, payload = self.frame()
            assert kind == wire.TASKS
            self._tasks += wire.read_tasks(payload)
        return self._tasks.pop(0)

    def answer(self, *tasks: wire.ImageTask) -> None:
        greys = [int(self.slots.view(task.slot, False)[0, 0, 0]) for task in tasks]
        rows = [Row(np.array([grey]), np.array([1], np.float32)) for grey in greys]
        answers = [
            wire.Answer(task.number, time.monotonic(), 0.5, 2, row) for task, row in zip(tasks, rows, strict=True)
        ]
        self.socket.sendall(wire.answers(answers))

    def end(self) -> None:
        self.socket.close()
        self._reader.join(10)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.end()


def put(engine: Engine, grey: int, crop: int = CROP, **fields: Any) -> Numbered:
    image = np.full((crop, crop, 3), grey, np.uint8)
    fields = {"deadline": time.monotonic() + 60} | fields
    job = Numbered(image, Want(k=1), completion=(waiter := Waiter(asyncio.get_running_loop())), **fields)
    job.future, job.decode_s = waiter.future, 0.25
    engine.queue.put(job)
    return job


def test_a_jpeg_goes_over_in_a_slot(engine: Engine) -> None:
    data = bytes(range(200))
    engine.queue.put(Job(Jpeg(data, 300, 200, 6), Want(k=1), math.inf))
    task = engine.task()
    assert task.file == (len(data), 300, 200, 6)
    assert bytes(engine.slots.file(task.slot, len(data))) == data


def leave(engine: Engine, job: Numbered) -> None:
    job.future.cancel()
    engine.queue.forget(job)


def test_an_image_goes_over_and_its_answer_comes_back(engine: Engine) -> None:
    async def run() -> Job:
        entry = put(engine, 42)
        engine.answer(engine.task())
        return await entry.future

    done = asyncio.run(run())
    assert (done.batch_size, done.decode_s, done.inference_s) == (2, 0.25, 0.5)
    assert answer(done) == 42


def test_what_finds_no_slot_waits_until_one_is_given_back(engine: Engine) -> None:
    async def run() -> list[int]:
        entries = [put(engine, grey) for grey in (1, 2, 3)]
        first, second = engine.task(), engine.task()
        assert len(engine.queue) == 3
        assert {first.slot, second.slot} == {0, 1}
        engine.answer(second)
        third = engine.task()
        assert third.slot == second.slot
        engine.answer(first)
        engine.answer(third)
        return [answer(await entry.future) for entry in entries]

    assert asyncio.run(run()) == [1, 2, 3]
    assert len(engine.queue) == 0


def test_images_that_can_be_sent_at_the_same_time_go_over_in_one_frame(engine: Engine) -> None:
    async def run() -> list[int]:
        entries = [put(engine, grey) for grey in (1, 2, 3, 4)]
        first, second = engine.task(), engine.task()
        engine.answer(first, second)
        kind, payload = engine.frame()
        assert kind == wire.TASKS
        third, fourth = wire.read_tasks(payload)
        assert {third.slot, fourth.slot} == {0, 1}
        engine.answer(fourth, third)
        return [answer(await entry.future) for entry in entries]

    assert asyncio.run(run()) == [1, 2, 3, 4]


def test_a_client_that_leaves_is_told_and_its_slot_kept_until_the_engine_is_done(engine: Engine) -> None:
    async def run() -> None:
        left, other = put(engine, 1), put(engine, 2)
        first = engine.task()
        engine.task()
        leave(engine, left)
        kind, payload = engine.frame()
        assert (kind, wire.read_cancel(payload)) == (wire.CANCEL, [first.number])
        waiting = put(engine, 3)
        assert len(engine.queue) == 3
        engine.socket.sendall(wire.failure(first.number, None))
        third = engine.task()
        assert third.slot == first.slot
        engine.answer(third)
        assert answer(await waiting.future) == 3
        leave(engine, other)

    asyncio.run(run())


def test_a_client_that_leaves_before_there_was_a_slot_is_never_handed_over(engine: Engine) -> None:
    async def run() -> None:
        entries = [put(engine, grey) for grey in (1, 2, 3, 4)]
        first, second = engine.task(), engine.task()
        leave(engine, entries[2])
        engine.answer(first)
        fourth = engine.task()
        engine.answer(second)
        engine.answer(fourth)
        assert answer(await entries[3].future) == 4

    asyncio.run(run())


def test_a_task_carries_what_the_policy_needs(engine: Engine) -> None:
    async def run() -> None:
        entry = put(engine, 1, received_at=12.5, stated=True, caller=7)
        task = engine.task()
        assert (task.received_at, task.stated, task.caller, task.deadline) == (12.5, True, 7, entry.deadline)
        engine.answer(task)
        await entry.future

    asyncio.run(run())


def test_the_engine_learns_how_long_a_client_has_waited_that_leaves(engine: Engine) -> None:
    async def run() -> None:
        sent, waiting = put(engine, 1, received_at=12.5, caller=7), put(engine, 2)
        number = engine.task().number
        engine.task()
        leave(engine, sent)
        kind, payload = engine.frame()
        assert (kind, wire.read_left(payload)) == (wire.LEFT, [(12.5, 7)])
        kind, payload = engine.frame()
        assert (kind, wire.read_cancel(payload)) == (wire.CANCEL, [number])
        leave(engine, waiting)

    asyncio.run(run())


def test_a_client_that_leaves_before_its_image_is_decoded_is_learned_too(engine: Engine) -> None:
    engine.queue.forget(Job(b"", Want(), math.inf, received_at=12.5, caller=7))
    kind, payload = engine.frame()
    assert (kind, wire.read_left(payload)) == (wire.LEFT, [(12.5, 7)])


@pytest.mark.parametrize("fields", [{"stated": True}, {"deadline": 100.0}], ids=["stated", "late"])
def test_one_that_states_a_deadline_or_waits_until_it_says_nothing_about_patience(
    engine: Engine, fields: dict[str, Any]
) -> None:
    async def run() -> None:
        left = put(engine, 1, received_at=12.5, caller=7, **fields)
        number = engine.task().number
        leave(engine, left)
        kind, payload = engine.frame()
        assert (kind, wire.read_cancel(payload)) == (wire.CANCEL, [number])

    asyncio.run(run())


def test_errors_come_back_as_themselves(engine: Engine) -> None:
    async def run() -> None:
        entry = put(engine, 1)
        engine.socket.sendall(wire.failure(engine.task().number, DeadlineExceeded("late")))
        error = answer(await entry.future)
        assert isinstance(error, DeadlineExceeded)
        assert error.detail == "late"

    asyncio.run(run())


def test_when_the_engine_ends_all_that_wait_are_told_and_no_more_is_taken(engine: Engine) -> None:
    async def run() -> None:
        entries = [put(engine, grey) for grey in (1, 2, 3)]
        engine.socket.shutdown(socket.SHUT_RDWR)
        for entry in entries:
            assert isinstance(answer(await entry.future), NotReady)
        with pytest.raises(NotReady):
            put(engine, 4)

    asyncio.run(run())


def test_an_image_decoded_for_another_model_is_not_handed_over(engine: Engine) -> None:
    async def run() -> None:
        with pytest.raises(NotReady):
            put(engine, 1, CROP + 1)

    asyncio.run(run())


def test_admission_knows_what_the_engine_expects(engine: Engine) -> None:
    engine.queue.admit(1, time.monotonic() + 5)
    engine.expect(20.0)
    assert engine.queue.predicted_wait() == pytest.approx(20, abs=1)
    with pytest.raises(Overloaded):
        engine.queue.admit(1, time.monotonic() + 5)
    engine.expect(0.0)
    engine.queue.admit(1, time.monotonic() + 5)


def test_admission_knows_how_late_answers_of_the_engine_are(engine: Engine) -> None:
    engine.expect(20.0, lateness=1.2)
    engine.queue.admit(1, time.monotonic() + 30)
    with pytest.raises(Overloaded):
        engine.queue.admit(1, time.monotonic() + 22)
    engine.expect(20.0)
    engine.queue.admit(1, time.monotonic() + 22)


def test_admission_follows_the_patience_that_the_engine_has_learned(engine: Engine) -> None:
    for patience in (math.inf, 30.0):
        engine.expect(20.0, patience)
        engine.queue.admit(1, time.monotonic() + 60)
    engine.expect(20.0, patience=5.0)
    with pytest.raises(Overloaded) as refused:
        engine.queue.admit(1, time.monotonic() + 60)
    assert refused.value.retry_after_s == pytest.approx(15, abs=2)
    engine.queue.admit(1, time.monotonic() + 60, stated=True)
    with pytest.raises(Overloaded):
        engine.queue.admit(1, time.monotonic() + 5, stated=True)


def test_admission_counts_what_was_sent_and_not_seen_yet(engine: Engine) -> None:
    async def run() -> None:
        entries = [put(engine, 1) for _ in range(50)]
        assert engine.queue.predicted_wait() == pytest.approx(5)
        with pytest.raises(Overloaded):
            engine.queue.admit(1, time.monotonic() + 4)
        engine.slots.taken += 2
        assert engine.queue.predicted_wait() == pytest.approx(4.8)
        for entry in entries:
            leave(engine, entry)

    asyncio.run(run())


def test_costs_are_those_the_engine_measured(engine: Engine) -> None:
    assert engine.queue.costs.as_dict() == {1: 0.1, 2: 0.2}
    engine.costs.observe(2, 0.1)
    engine.expect(0.0)
    assert engine.queue.costs.as_dict() == engine.costs.as_dict()
