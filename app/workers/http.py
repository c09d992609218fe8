"""An HTTP process: uvicorn and the app. Its classifier decodes images and sends them to the engine process.

It imports neither torch nor OpenVINO. The supervisor starts it, and it exits with the supervisor.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import structlog

from app import loading
from app.api.info import describe
from app.api.service import Service
from app.calibration import stored
from app.classifier import Classifier, Served
from app.engine.base import Facts
from app.errors import Internal, ModelError
from app.imagenet.labels import Label
from app.images import Preprocessing
from app.main import create_app
from app.models.model import Model
from app.readiness import LOADING, Readiness
from app.server.serving import Server, config
from app.settings import Settings
from app.workers import child, metrics, wire
from app.workers.client import EngineQueue
from app.workers.memory import Board, Slots

log = structlog.get_logger("topk")

UNRESPONSIVE = "the engine process does not answer"


class QuietServer(Server):
    """The server, drained by a message from the supervisor instead of a signal."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._drain_logged = True  # the supervisor logs the drain, once for all processes

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpProcess(child.Child):
    """Serves HTTP, and handles the supervisor's messages on the control thread.

    Engine processes may end and be replaced. This process is ready while an engine is connected, unless the supervisor
    reports that the engine does not answer.
    """

    def __init__(self, control: socket.socket, settings: Settings, delay_s: float) -> None:
        super().__init__(control)
        self._readiness = Readiness(on_ready=self._report_ready)
        # All processes share the limit on bytes in memory, but one body must always fit.
        share = max(settings.max_inflight_bytes // settings.workers, settings.max_body_bytes)
        settings = settings.model_copy(update={"max_inflight_bytes": min(settings.max_inflight_bytes, share)})
        self._app = create_app(settings, self._readiness, self._start, self._exposition)
        self._service: Service = self._app.state.service
        self._classifier = self._service.classifier
        self._server = QuietServer(config(self._app, settings), self._readiness, delay_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._exposition_request: asyncio.Future[bytes] | None = None
        self._lock = threading.Lock()
        self._served: Served | None = None  # None while no engine is connected
        self._engine_answers = True

    def run(self, listener: socket.socket) -> int:
        """Serve until the supervisor sends drain or stop. Returns the exit code."""
        self._server.run([listener])
        return 0

    def _start(self, classifier: Classifier, readiness: Readiness) -> None:
        self._loop = asyncio.get_running_loop()
        self.listen(self._on_message)

    def _on_message(self, message: dict[str, Any], descriptor: int | None) -> None:
        match message["do"]:
            case "connect":
                assert descriptor is not None
                sock = socket.socket(fileno=descriptor)
                with self._lock:
                    self._engine_answers = True  # assumed of a newly connected engine
                threading.Thread(target=self._connect, args=(sock,), name="topk-engine", daemon=True).start()
            case "samples":
                snapshot = metrics.snapshot(self._service.metrics.registry)
                self.send({"do": "samples", "samples": snapshot})
            case "metrics":
                assert self._loop
                self._loop.call_soon_threadsafe(self._on_exposition, message["text"].encode())
            case "suspend" | "resume":
                with self._lock:
                    self._engine_answers = message["do"] == "resume"
                    self._update_ready()
            case "drain":
                self._server.handle_exit(signal.SIGTERM, None)
                self.send({"do": "draining"})
            case "stop":
                self._server.stop()

    def _report_ready(self) -> None:
        if self._classifier.ready:  # else the engine has ended again
            self.send({"do": "ready", "info": describe(self._classifier).model_dump()})

    def _connect(self, sock: socket.socket) -> None:
        """Serve with one engine, from its welcome until its connection closes. On a thread of its own."""
        queue = served = explanations = None
        try:
            welcome = receive_welcome(sock)
            settings, sandbox = self._classifier.settings, self._classifier.sandbox
            threads = loading.decode_threads(welcome.model, settings, sandbox, welcome.slots.file_bytes)
            queue = EngineQueue(sock, welcome.slots, welcome.board, welcome.facts, threads.seconds)
            explanations = welcome.explanations and EngineQueue(*welcome.explanations, threads.seconds)
            served = loading.build_remote(welcome.model, welcome.facts, threads, queue, explanations)
            if explanations is not None:
                threading.Thread(target=_read_beside, args=(explanations, queue), daemon=True).start()
            with self._lock:
                self._classifier.serve(served)
                self._served = served
                self._update_ready()
            self._classifier.sandbox.start()
            queue.read()
        except (EOFError, OSError):
            log.debug("the engine process ended before it was ready")
        except Exception:
            log.exception("the connection to the engine process failed")
        finally:
            if queue is not None and served:  # an empty queue is false
                with self._lock:
                    self._classifier.withdraw(served)
                    if self._served is served:
                        self._served = None
                queue.fail()
                if explanations is not None:
                    explanations.close()
                threads.close(wait=False)
            sock.close()

    def _update_ready(self) -> None:
        """Be ready if an engine is connected and answers. The caller holds the lock.

        While the engine does not answer, new requests are refused. Waiting requests may still succeed.
        """
        if self._served is None or not self._engine_answers:
            self._readiness.suspend(LOADING if self._engine_answers else UNRESPONSIVE)
            return
        self._readiness.serve()
        assert self._loop
        self._loop.call_soon_threadsafe(self._readiness.announce)

    async def _exposition(self) -> bytes:
        """The metrics of all processes, summed by the supervisor.

        One request to the supervisor is open at a time. So neither socket fills up while the other end is stopped.
        """
        if self._exposition_request is None:
            self._exposition_request = asyncio.get_running_loop().create_future()
            self.send({"do": "metrics"})
        return await asyncio.shield(self._exposition_request)

    def _on_exposition(self, text: bytes) -> None:
        assert self._exposition_request
        self._exposition_request.set_result(text)
        self._exposition_request = None


@dataclass(frozen=True, slots=True)
class RemoteFacts:
    """The ``Facts`` of an engine in another process, as of the end of loading."""

    name: str
    device: str
    device_name: str
    precision: str
    streams: int
    spreads: bool
    compilation: str
    buckets: tuple[int, ...]
    dim: int
    decodes_jpegs: bool = False
    inexplicable: str | None = None


class Welcome(NamedTuple):
    """What the engine sends once it is warm. ``explanations`` are the connection of that queue, if there is one."""

    model: Model
    facts: Facts
    slots: Slots
    board: Board
    explanations: tuple[socket.socket, Slots, Board, Facts] | None


def _read_beside(explanations: EngineQueue, queue: EngineQueue) -> None:
    """Read the answers to explanations until that connection closes, which ends the other one too."""
    explanations.read()
    explanations.fail()
    queue.close()


def receive_welcome(sock: socket.socket) -> Welcome:
    """Receive the engine's description and shared memory, which it sends once it is warm.

    Raises EOFError if the engine ends before that.
    """
    messages = wire.Messages(sock)
    received: dict[str, Any] = {}
    descriptors: list[int] = []
    while "facts" not in received:
        for message, descriptor in messages.read():
            received |= message
            descriptors += [] if descriptor is None else [descriptor]
    facts = RemoteFacts(**received["facts"] | {"buckets": tuple(received["facts"]["buckets"])})
    preprocessing = received["model"]["preprocessing"]
    for name in ("mean", "std"):
        preprocessing[name] = tuple(preprocessing[name])
    model = Model(
        **received["model"]
        | {
            "preprocessing": Preprocessing(**preprocessing),
            "labels": tuple(Label(*label) for label in received["model"]["labels"]),
            "calibrations": {p: stored.restore(one) for p, one in received["model"]["calibrations"].items()},
            "build": _cannot_build,
        }
    )
    crop, explanations = model.preprocessing.crop, None
    if about := received.get("explanations"):
        end = socket.socket(fileno=descriptors.pop(0))
        theirs = dataclasses.replace(facts, buckets=tuple(about["buckets"]), streams=1)
        explanations = (end, *_shared(descriptors[:2], about["slots"], crop, theirs.buckets), theirs)
    slots, board = _shared(descriptors[-2:], received["slots"], crop, facts.buckets)
    for descriptor in descriptors:
        os.close(descriptor)
    return Welcome(model, facts, slots, board, explanations)


def _shared(descriptors: list[int], slots: int, crop: int, buckets: tuple[int, ...]) -> tuple[Slots, Board]:
    return Slots(descriptors[0], slots, crop), Board(descriptors[1], buckets)


def _cannot_build() -> NoReturn:
    raise Internal("the model can only be built in the engine process")


def main() -> int:
    control, settings = child.begin(sys.argv)
    listener = socket.socket(fileno=int(sys.argv[2]))
    try:
        process = HttpProcess(control, settings, float(sys.argv[3]))
    except ModelError as error:
        child.Child(control).send({"do": "refused", "detail": error.detail})
        return 1
    return process.run(listener)


if __name__ == "__main__":
    sys.exit(main())
