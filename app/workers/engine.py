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
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import structlog

from app import loading
from app.batching import Job, fail
from app.classifier import Served
from app.engine.base import Jpeg, Pixels, Want
from app.errors import DeviceLost, Internal, ModelError, NotReady, TopkError
from app.images.sandbox import Sandbox
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.workers import child, memory, metrics, wire
from app.workers.memory import Board, Slots

log = structlog.get_logger("topk")

SLOTS = 256
_COLLECT_S = 0.001  # the board is written once for all tasks that come within this time


class Device:
    """The model on its device, and the board that publishes the state of its queue to the HTTP processes."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.board: Board | None = None
        self._metrics = metrics
        self._served: Served | None = None
        self._connections: set[HttpConnection] = set()
        self._publishing = threading.Lock()
        self._scheduled = False

    @property
    def served(self) -> Served:
        """The model and queue that ``load`` has built."""
        assert self._served
        return self._served

    def load(self, lost: Callable[[DeviceLost], None]) -> None:
        """Load the model. Blocks until it is warm. Raises ModelError. ``lost``: see ``loading.build``."""
        model, device = loading.resolve(self.settings)
        self._served = loading.build(
            model, device, self.settings, self._metrics, Sandbox(), ahead=False, changed=self.publish, lost=lost
        )
        self._metrics.model.info(self._served.labels())

    def connect(self, connection: "HttpConnection") -> None:
        """Tell an HTTP process, whenever the board is written, which of its tasks the board includes."""
        with self._publishing:
            self._connections.add(connection)

    def disconnect(self, connection: "HttpConnection") -> None:
        with self._publishing:
            self._connections.discard(connection)

    def publish(self) -> None:
        """Write the state of the queue to the board. From any thread."""
        with self._publishing:
            if self.board is None:
                return
            taken = [(connection.slots, connection.taken) for connection in self._connections]
            queue = self.served.queue
            self.board.write(queue.outlook(), queue.costs, queue.costs_alone)
            for slots, count in taken:  # the outlook includes them: for a moment counted twice, but never missed
                slots.taken = count

    def publish_soon(self) -> None:
        """Write the board after ``_COLLECT_S``, once for all calls until then. On the event loop."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_later(_COLLECT_S, self._publish_collected)

    def _publish_collected(self) -> None:
        self._scheduled = False
        self.publish()

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

    def claim(self) -> bool:
        with self.connection.claiming:
            self._claimed = not self.done
            return self._claimed

    def drop(self) -> bool:
        """Note that nobody waits for the task. Returns False if the device has claimed it."""
        with self.connection.claiming:
            self.done = True
            return not self._claimed

    def resolve(self, job: Job) -> None:
        self.done = True
        self.connection.reply(self.number, job)


class HttpConnection(asyncio.Protocol):
    """The connection to one HTTP process: its slots, and its tasks without a reply. On the event loop.

    ``taken`` is the total number of tasks that were put into the queue.
    """

    def __init__(self, device: Device, slots: Slots) -> None:
        self.slots = slots
        self.taken = 0
        self.claiming = threading.Lock()
        self._device = device
        self._frames = wire.Frames()
        self._loop = asyncio.get_running_loop()
        self._replies: dict[int, _Reply] = {}
        self._answers: list[wire.Answer] = []
        self._failures: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        self._device.connect(self)

    def data_received(self, data: bytes) -> None:
        tasks: list[wire.ImageTask] = []
        cancelled: list[int] = []
        left: list[tuple[float, int]] = []
        for kind, payload in self._frames.feed(data):
            match kind:
                case wire.TASKS:
                    tasks += wire.read_tasks(payload)
                case wire.CANCEL:
                    cancelled += wire.read_cancel(payload)
                case wire.LEFT:
                    left += wire.read_left(payload)
        jobs = [self._job(task) for task in tasks]
        for number in cancelled:
            self._drop(number)
        self._put([job for job in jobs if not job.gone])
        self.taken += len(jobs)
        for received_at, caller in left:
            self._device.served.queue.forget(Job(b"", Want(), math.inf, received_at=received_at, caller=caller))
        self._device.publish_soon()

    def connection_lost(self, error: Exception | None) -> None:
        """Drop the tasks of a process that has ended. Its memory is freed after the last batch that uses it."""
        self._transport = None
        self._device.disconnect(self)
        for number in list(self._replies):
            self._drop(number)

    def reply(self, number: int, job: Job) -> None:
        """Send the outcome of a task, unless it has a reply already."""
        if self._replies.pop(number, None) is None:
            return
        self._flush_later()
        if job.row is None:
            error = job.error if isinstance(job.error, TopkError) else Internal("the job has no result")
            self._failures.append(wire.failure(number, error))
        else:
            self._answers.append(wire.Answer(number, job.taken_at, job.inference_s, job.batch_size, job.row))

    def _job(self, task: wire.ImageTask) -> Job:
        reply = self._replies[task.number] = _Reply(self, task.number, self._loop)
        image: Jpeg | Pixels = self.slots.view(task.slot, task.tensor)
        if task.file.length:
            image = Jpeg(self.slots.file(task.slot, task.file.length), *task.file[1:])
        return Job(image, task.want, task.deadline, reply, task.stated, task.caller, received_at=task.received_at)

    def _put(self, jobs: list[Job]) -> None:
        try:
            self._device.served.queue.put(*jobs)
        except NotReady as error:
            fail(jobs, error)

    def _drop(self, number: int) -> None:
        reply = self._replies.get(number)
        if reply and reply.drop():
            del self._replies[number]
            self._flush_later()
            self._failures.append(wire.failure(number, None))

    def _flush_later(self) -> None:
        """Let all replies of one turn of the event loop, such as those of a batch, go out in one call."""
        if not self._answers and not self._failures:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        frames, self._failures = self._failures, []
        if self._answers:
            frames.append(wire.answers(self._answers))
            self._answers = []
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
        loading.in_background(partial(self.device.load, self._on_lost), self._on_loaded)
        await self._stopping.wait()
        if not self._loaded:
            self.exit_now(self._code)  # without waiting for the loading thread
        await asyncio.to_thread(self.device.close)
        return self._code

    async def _watch(self) -> None:
        """Treat a device that hangs as lost."""
        limit_s = self.device.settings.watchdog_ms / 1000
        self._on_lost(await loading.hang(self.device.served.queue.running_s, limit_s))

    def _on_lost(self, error: DeviceLost) -> None:
        """Exit: callers get an error at once, and the supervisor starts a new process. From any thread."""
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
        self.device.board = Board(self._board, buckets)
        self.device.publish()
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
        names = ("name", "device", "precision", "streams", "spreads", "compilation", "buckets", "dim", "decodes_jpegs")
        return {name: getattr(engine, name) for name in names}


def main() -> int:
    control, settings = child.begin(sys.argv)

    async def run() -> int:
        return await EngineProcess(control, settings).run()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(run())


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, which takes less time per frame, if it is installed."""
    try:
        import uvloop
    except ImportError:  # Windows, PyPy
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(main())
