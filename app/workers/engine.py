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
from app.calibration import stored
from app.classifier import Served
from app.engine.base import Jpeg, Pixels, Want
from app.errors import DeviceLost, Internal, ModelError, NotReady, TopkError
from app.images.sandbox import Sandbox
from app.settings import Settings
from app.telemetry.metrics import Metrics
from app.workers import child, memory, metrics, wire
from app.workers.memory import Slots
from app.workers.publisher import Publisher

log = structlog.get_logger("topk")

SLOTS = 256
_EXPLANATION_SLOTS = 64


class Device:
    """The model on its device, and what publishes the state of its queues to the HTTP processes."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self._metrics = metrics
        self._served: Served | None = None
        self._publishers: list[Publisher] = []  # of the queue, then of the explanations, if there are any

    @property
    def served(self) -> Served:
        """The model and queue that ``load`` has built."""
        assert self._served
        return self._served

    @property
    def publisher(self) -> Publisher:
        """That of the queue."""
        return self._publishers[0]

    @property
    def explanations(self) -> Publisher | None:
        """That of the explanations' queue."""
        return self._publishers[1] if len(self._publishers) > 1 else None

    def load(self, lost: Callable[[DeviceLost], None]) -> None:
        """Load the model. Blocks until it is warm. Raises ModelError. ``lost``: see ``loading.build``."""
        model, device = loading.resolve(self.settings)
        self._served = served = loading.build(
            model, device, self.settings, self._metrics, Sandbox(), ahead=False, changed=self.publish, lost=lost
        )
        self._metrics.model.info(served.labels())
        publishers = [Publisher(served.queue, device.buckets, SLOTS)]
        if served.explanations is not None:  # an empty queue is false
            publishers.append(Publisher(served.explanations, served.explanations.costs.buckets, _EXPLANATION_SLOTS))
        self._publishers = publishers
        self.publish()

    def running_s(self) -> float:
        """Seconds that the device has taken so far for the longest running batch."""
        return max(queue.running_s() for queue in self.served.queues)

    def publish(self) -> None:
        """Write the state of the queues to their boards. From any thread."""
        for publisher in self._publishers:
            publisher.publish()

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
    """The connection of one HTTP process to a queue: its slots, and its tasks without a reply. On the event loop.

    ``taken`` is the total number of tasks that were put into the queue.
    """

    def __init__(self, publisher: Publisher, slots: Slots) -> None:
        self.slots = slots
        self.taken = 0
        self.claiming = threading.Lock()
        self._publisher = publisher
        self._frames = wire.Frames()
        self._loop = asyncio.get_running_loop()
        self._replies: dict[int, _Reply] = {}
        self._answers: list[wire.Answer] = []
        self._failures: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        self._publisher.connect(self)

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
            self._publisher.queue.forget(Job(b"", Want(), math.inf, received_at=received_at, caller=caller))
        self._publisher.publish_soon()

    def connection_lost(self, error: Exception | None) -> None:
        """Drop the tasks of a process that has ended. Its memory is freed after the last batch that uses it."""
        self._transport = None
        self._publisher.disconnect(self)
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
            self._publisher.queue.put(*jobs)
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
        self._on_lost(await loading.hang(self.device.running_s, limit_s))

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
        queues, theirs = [(self.device.publisher, sock)], None
        if self.device.explanations:
            ours, theirs = socket.socketpair()
            queues.append((self.device.explanations, ours))
        crop = self.device.served.model.preprocessing.crop
        descriptors = [memory.create(Slots.size(publisher.slots, crop)) for publisher, _ in queues]
        try:
            slots = [Slots(d, publisher.slots, crop) for d, (publisher, _) in zip(descriptors, queues, strict=True)]
            await asyncio.to_thread(self._describe, sock, descriptors, theirs)  # blocks while the process is stopped
        except OSError:  # the HTTP process has ended
            for _, end in queues:
                end.close()
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            if theirs:
                theirs.close()
        loop = asyncio.get_running_loop()
        for (publisher, end), one in zip(queues, slots, strict=True):
            await loop.create_connection(partial(HttpConnection, publisher, one), sock=end)

    def _describe(self, sock: socket.socket, slots: list[int], explanations: socket.socket | None) -> None:
        """Send what ``http.receive_welcome`` receives."""
        publisher, more = self.device.publisher, self.device.explanations
        if explanations and more:
            about = {"slots": more.slots, "buckets": more.buckets}
            wire.send_message(sock, {"explanations": about}, explanations.fileno())
            wire.send_message(sock, {"memory": "slots"}, slots[1])
            wire.send_message(sock, {"memory": "board"}, more.descriptor)
        wire.send_message(sock, {"slots": publisher.slots}, slots[0])
        wire.send_message(sock, {"model": self._model(), "facts": self._facts()}, publisher.descriptor)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _model(self) -> dict[str, Any]:
        model = self.device.served.model
        description = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        del description["build"], description["openvino"], description["training"]
        precision = self.device.served.engine.precision
        return description | {
            "calibrations": {p: stored.dump(one) for p, one in model.calibrations.items() if p == precision},
            "preprocessing": dataclasses.asdict(model.preprocessing),
            "labels": [[label.label, label.wnid] for label in model.labels],
        }

    def _facts(self) -> dict[str, Any]:
        engine = self.device.served.engine
        names = ("name", "device", "device_name", "precision", "streams", "spreads", "compilation", "buckets", "dim")
        return {name: getattr(engine, name) for name in (*names, "decodes_jpegs", "inexplicable")}


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
