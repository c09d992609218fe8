"""The engine process: it loads the model, owns the device, and forms batches of what all HTTP processes hand over.

Its event loop reads tasks and writes answers; batches run on the queue's threads, as in one process. Started by the
supervisor, it ends with it.
"""

import asyncio
import dataclasses
import os
import socket
import sys
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from app.batching import BatchQueue, Done, Entry
from app.classifier import Answer, Classifier, Job
from app.errors import DeadlineExceeded, Internal, ModelError, NotReady, TopkError
from app.images.decoder import Decoded
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.watchdog import hang, hung
from app.workers import child, memory, metrics, wire
from app.workers.memory import Board, Slots

log = structlog.get_logger("topk")

SLOTS = 256


@dataclass(slots=True, eq=False)
class _Task(Job):
    """A job whose image lies in shared memory: once it is ``dropped``, its slot is no longer ours."""

    running: bool = False
    dropped: bool = False


class Device(Classifier):
    """The classifier, of jobs that other processes hand over."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        super().__init__(settings, metrics, decode_ahead=False)
        self._taking = threading.Lock()
        self._board: Board | None = None

    def publish(self, board: Board | None = None) -> None:
        """Write on the board what is to be expected of the queue."""
        self._board = board or self._board
        if self._board:
            assert isinstance(self.queue, BatchQueue)
            self._board.write(self.queue.outlook(), self.queue.costs, self.queue.costs_alone)

    def drop(self, task: _Task) -> bool:
        """Take a task back; False where it is on the device, and its slot in use until it has its answer."""
        with self._taking:
            task.dropped = not task.running
            return task.dropped

    def _finished(self) -> None:
        self.publish()  # a stream is free

    def _run(self, jobs: Any, alone: bool = False) -> list[Any]:
        self.publish()  # the queue has just become shorter
        return super()._run(jobs, alone)

    def _prepare(self, job: Job) -> None:
        if isinstance(job, _Task):
            with self._taking:
                if job.dropped:
                    raise DeadlineExceeded("nobody waits for it")
                job.running = True
        super()._prepare(job)


class Connection(asyncio.Protocol):
    """One HTTP process: its slots, and its tasks that have no answer yet. On the event loop."""

    def __init__(self, device: Device, slots: Slots) -> None:
        self._device = device
        self._slots = slots
        self._frames = wire.Frames()
        self._entries: dict[int, Entry] = {}
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        frames = list(self._frames.feed(data))
        dropped = {wire.read_cancel(payload) for kind, payload in frames if kind == wire.CANCEL}
        tasks = [wire.read_task(payload) for kind, payload in frames if kind == wire.TASK]
        for task in tasks:
            self._take(task, task.number in dropped)
        for number in dropped:
            self._drop(number)
        self._device.publish()
        self._slots.taken += len(tasks)  # after the outlook counts them: never missed, for a moment counted twice

    def connection_lost(self, error: Exception | None) -> None:
        """Its process has ended: what it waited for is dropped, and its memory freed with the last batch using it."""
        self._transport = None
        for number in list(self._entries):
            self._drop(number)

    def _take(self, task: wire.Task, dropped: bool) -> None:
        if dropped:
            self._write(wire.failure(task.number, None))
            return
        job = _Task(Decoded(self._slots.view(task.slot, task.tensor), 0.0), task.want)
        entry = self._device.queue.entry(job, task.deadline)
        self._entries[task.number] = entry
        entry.future.add_done_callback(partial(self._answer, task.number))
        try:
            self._device.queue.put(entry)
        except NotReady as error:
            entry.future.set_exception(error)

    def _drop(self, number: int) -> None:
        entry = self._entries.get(number)
        if entry and self._device.drop(entry.item):
            entry.future.cancel()

    def _answer(self, number: int, future: "asyncio.Future[Done]") -> None:
        del self._entries[number]
        if future.cancelled():
            frame = wire.failure(number, None)
        elif error := future.exception():
            frame = wire.failure(number, error if isinstance(error, TopkError) else Internal("no answer"))
        else:
            done = future.result()
            answer: Answer = done.answer
            frame = wire.answer(wire.Answer(number, done.started, answer.inference_s, done.batch_size, answer.row))
        self._write(frame)

    def _write(self, frame: bytes) -> None:
        if self._transport:
            self._transport.write(frame)


class EngineProcess(child.Child):
    """What the supervisor asks of this process, answered on the event loop."""

    def __init__(self, control: socket.socket, settings: Settings) -> None:
        super().__init__(control)
        self.metrics = Metrics()
        self.device = Device(settings, self.metrics)
        self._waiting: list[socket.socket] = []
        self._ended = asyncio.Event()
        self._loaded = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._code = 0

    async def run(self) -> int:
        """Serve until told to stop; the exit code."""
        loop = asyncio.get_running_loop()
        self.listen(lambda message, descriptor: loop.call_soon_threadsafe(self._told, message, descriptor))
        threading.Thread(target=self._load, args=(loop,), name="topk-load", daemon=True).start()
        await self._ended.wait()
        if not self._loaded:
            self.leave(self._code)  # the thread that loads is not waited for
        await asyncio.to_thread(self.device.close)
        return self._code

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self.device.load()
        except ModelError as error:
            refused = error.detail
        except Exception:
            log.exception("the model could not be loaded")
            refused = "the model could not be loaded; the log says why"
        else:
            loop.call_soon_threadsafe(self._on_loaded)
            return
        self.tell({"do": "refused", "detail": refused})
        self._code = 1
        loop.call_soon_threadsafe(self._ended.set)

    async def _watch(self) -> None:
        """Where the device hangs, end: callers are answered at once, and the supervisor starts another process."""
        limit_s = self.device.settings.watchdog_ms / 1000
        await hang(self.device.running_s, limit_s)
        log.error(hung(limit_s).detail)
        self.leave(1)

    def _on_loaded(self) -> None:
        self._loaded = True
        self._watching = asyncio.get_running_loop().create_task(self._watch())
        self.metrics.ready.set(1)
        buckets = self.device.engine.buckets
        self._board = memory.create(Board.size(buckets))
        self.device.publish(Board(self._board, buckets))
        self.tell({"do": "ready"})
        for sock in self._waiting:
            self._do(self._welcome(sock))

    def _told(self, message: dict[str, Any], descriptor: int | None) -> None:
        match message["do"]:
            case "connect":
                assert descriptor is not None
                sock = socket.socket(fileno=descriptor)
                if self._loaded:
                    self._do(self._welcome(sock))
                else:
                    self._waiting.append(sock)
            case "samples":
                self.tell({"do": "samples", "samples": metrics.snapshot(self.metrics.registry)})
            case "stop":
                self._ended.set()

    async def _welcome(self, sock: socket.socket) -> None:
        """Describe the model to an HTTP process and share memory with it; then it may hand over tasks."""
        crop = self.device.model.preprocessing.crop
        descriptor = memory.create(Slots.size(SLOTS, crop))
        try:
            slots = Slots(descriptor, SLOTS, crop)
            await asyncio.to_thread(self._describe, sock, descriptor)  # blocks while a stopped process reads nothing
        except OSError:  # it has ended meanwhile
            sock.close()
            return
        finally:
            os.close(descriptor)
        await asyncio.get_running_loop().create_connection(lambda: Connection(self.device, slots), sock=sock)

    def _describe(self, sock: socket.socket, slots: int) -> None:
        wire.send_message(sock, {"slots": SLOTS}, slots)
        wire.send_message(sock, {"model": self._described(), "facts": self._facts()}, self._board)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _described(self) -> dict[str, Any]:
        model = self.device.model
        told = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        del told["build"], told["openvino"], told["training"]
        return told | {
            "preprocessing": dataclasses.asdict(model.preprocessing),
            "labels": [[label.label, label.wnid] for label in model.labels],
        }

    def _facts(self) -> dict[str, Any]:
        engine = self.device.engine
        names = ("name", "device", "precision", "streams", "spreads", "compilation", "buckets", "dim")
        return {name: getattr(engine, name) for name in names}


def main() -> int:
    control, settings = child.begin(sys.argv)

    async def run() -> int:
        return await EngineProcess(control, settings).run()

    return asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
