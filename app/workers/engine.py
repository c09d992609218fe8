"""The engine process: it loads the model, owns the device, and batches the images of all HTTP processes.

Its event loop reads tasks and writes answers. Batches run on the queue's threads, as in the single-process service.
The supervisor starts it, and it exits with the supervisor.
"""

import asyncio
import dataclasses
import math
import os
import socket
import sys
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from app import loading
from app.batching import Job, fail
from app.classifier import Served
from app.engine.base import Want
from app.errors import Internal, ModelError, NotReady, TopkError
from app.images.sandbox import Sandbox
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.workers import child, memory, metrics, wire
from app.workers.memory import Board, Slots

log = structlog.get_logger("topk")

SLOTS = 256


class Device:
    """The model on its device, and the board that publishes the state of its queue to the HTTP processes."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self._metrics = metrics
        self._board: Board | None = None
        self._served: Served | None = None

    @property
    def served(self) -> Served:
        """The model and queue that ``load`` has built."""
        assert self._served
        return self._served

    def load(self) -> None:
        """Load the model. Blocks until it is warm. Raises ModelError."""
        model, device = loading.resolve(self.settings)
        self._served = loading.build(
            model, device, self.settings, self._metrics, Sandbox(), ahead=False, changed=self.publish
        )
        self._metrics.model.info(self._served.labels())

    def publish(self, board: Board | None = None) -> None:
        """Write the state of the queue to the board. From any thread."""
        self._board = board or self._board
        if self._board:
            queue = self.served.queue
            self._board.write(queue.outlook(), queue.costs, queue.costs_alone)

    def close(self) -> None:
        """Finish the waiting jobs. Blocks."""
        if self._served:
            self._served.close()


@dataclass(slots=True)
class _Reply:
    """Sends the outcome of a task to its HTTP process.

    The image of a task lies in a slot of shared memory. Once the device has claimed it, the slot is in use until the
    reply; before that, the task can be dropped.
    """

    connection: "HttpConnection"
    number: int
    loop: asyncio.AbstractEventLoop
    done: bool = False
    _claimed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def claim(self) -> bool:
        with self._lock:
            self._claimed = not self.done
            return self._claimed

    def drop(self) -> bool:
        """Note that nobody waits for the task. Returns False if the device has claimed it."""
        with self._lock:
            self.done = True
            return not self._claimed

    def resolve(self, job: Job) -> None:
        self.done = True
        self.connection.reply(self.number, job)


class HttpConnection(asyncio.Protocol):
    """The connection to one HTTP process: its slots, and its tasks without a reply. On the event loop."""

    def __init__(self, device: Device, slots: Slots) -> None:
        self._device = device
        self._slots = slots
        self._frames = wire.Frames()
        self._replies: dict[int, _Reply] = {}
        self._written: list[bytes] = []
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
        for received_at, caller in (wire.read_left(payload) for kind, payload in frames if kind == wire.LEFT):
            self._device.served.queue.forget(Job(b"", Want(), math.inf, received_at=received_at, caller=caller))
        self._device.publish()
        self._slots.taken += len(tasks)  # after the outlook includes them: for a moment counted twice, but never missed

    def connection_lost(self, error: Exception | None) -> None:
        """Drop the tasks of a process that has ended. Its memory is freed after the last batch that uses it."""
        self._transport = None
        for number in list(self._replies):
            self._drop(number)

    def reply(self, number: int, job: Job) -> None:
        """Send the outcome of a task, unless it has a reply already."""
        if self._replies.pop(number, None) is None:
            return
        if job.row is None:
            error = job.error if isinstance(job.error, TopkError) else Internal("the job has no result")
            self._write(wire.failure(number, error))
            return
        self._write(wire.answer(wire.Answer(number, job.taken_at, job.inference_s, job.batch_size, job.row)))

    def _take(self, task: wire.ImageTask, dropped: bool) -> None:
        if dropped:
            self._write(wire.failure(task.number, None))
            return
        reply = _Reply(self, task.number, asyncio.get_running_loop())
        self._replies[task.number] = reply
        image = self._slots.view(task.slot, task.tensor)
        job = Job(image, task.want, task.deadline, reply, task.stated, task.caller, received_at=task.received_at)
        try:
            self._device.served.queue.put(job)
        except NotReady as error:
            fail([job], error)

    def _drop(self, number: int) -> None:
        reply = self._replies.get(number)
        if reply and reply.drop():
            del self._replies[number]
            self._write(wire.failure(number, None))

    def _write(self, frame: bytes) -> None:
        """Write a frame. All frames of one turn of the event loop, such as those of a batch, go out in one call."""
        if not self._written:
            asyncio.get_running_loop().call_soon(self._flush)
        self._written.append(frame)

    def _flush(self) -> None:
        frames, self._written = self._written, []
        if self._transport:
            self._transport.write(b"".join(frames))


class EngineProcess(child.Child):
    """Runs the device, and handles the supervisor's messages on the event loop."""

    def __init__(self, control: socket.socket, settings: Settings) -> None:
        super().__init__(control)
        self.metrics = Metrics()
        self.device = Device(settings, self.metrics)
        self._waiting: list[socket.socket] = []
        self._stopping = asyncio.Event()
        self._loaded = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._code = 0

    async def run(self) -> int:
        """Serve until the supervisor sends stop. Returns the exit code."""
        loop = asyncio.get_running_loop()
        self.listen(lambda message, descriptor: loop.call_soon_threadsafe(self._on_message, message, descriptor))
        loading.in_background(self.device.load, self._on_loaded)
        await self._stopping.wait()
        if not self._loaded:
            self.exit_now(self._code)  # without waiting for the loading thread
        await asyncio.to_thread(self.device.close)
        return self._code

    async def _watch(self) -> None:
        """Exit if the device hangs: callers get an error at once, and the supervisor starts a new process."""
        error = await loading.hang(self.device.served.queue.running_s, self.device.settings.watchdog_ms / 1000)
        log.error(error.detail)
        self.exit_now(1)

    def _on_loaded(self, failure: ModelError | None) -> None:
        if failure:
            self.send({"do": "refused", "detail": failure.detail})
            self._code = 1
            self._stopping.set()
            return
        self._loaded = True
        self._watching = asyncio.get_running_loop().create_task(self._watch())
        self.metrics.ready.set(1)
        buckets = self.device.served.engine.buckets
        self._board = memory.create(Board.size(buckets))
        self.device.publish(Board(self._board, buckets))
        self.send({"do": "ready"})
        for sock in self._waiting:
            self._in_background(self._welcome(sock))

    def _on_message(self, message: dict[str, Any], descriptor: int | None) -> None:
        match message["do"]:
            case "connect":
                assert descriptor is not None
                sock = socket.socket(fileno=descriptor)
                if self._loaded:
                    self._in_background(self._welcome(sock))
                else:
                    self._waiting.append(sock)
            case "samples":
                self.send({"do": "samples", "samples": metrics.snapshot(self.metrics.registry)})
            case "stop":
                self._stopping.set()

    async def _welcome(self, sock: socket.socket) -> None:
        """Send an HTTP process the model's description and shared memory. Then accept its tasks."""
        crop = self.device.served.model.preprocessing.crop
        descriptor = memory.create(Slots.size(SLOTS, crop))
        try:
            slots = Slots(descriptor, SLOTS, crop)
            await asyncio.to_thread(self._describe, sock, descriptor)  # blocks while the HTTP process is stopped
        except OSError:  # the HTTP process has ended
            sock.close()
            return
        finally:
            os.close(descriptor)
        await asyncio.get_running_loop().create_connection(lambda: HttpConnection(self.device, slots), sock=sock)

    def _describe(self, sock: socket.socket, slots: int) -> None:
        wire.send_message(sock, {"slots": SLOTS}, slots)
        wire.send_message(sock, {"model": self._model(), "facts": self._facts()}, self._board)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _model(self) -> dict[str, Any]:
        model = self.device.served.model
        description = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        del description["build"], description["openvino"], description["training"]
        return description | {
            "preprocessing": dataclasses.asdict(model.preprocessing),
            "labels": [[label.label, label.wnid] for label in model.labels],
        }

    def _facts(self) -> dict[str, Any]:
        engine = self.device.served.engine
        names = ("name", "device", "device_name", "precision", "streams", "spreads", "compilation", "buckets", "dim")
        return {name: getattr(engine, name) for name in names}


def main() -> int:
    control, settings = child.begin(sys.argv)

    async def run() -> int:
        return await EngineProcess(control, settings).run()

    return asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
