"""An HTTP process: uvicorn and the app, whose classifier decodes here and hands over to the engine process.

Neither torch nor OpenVINO is imported. Started by the supervisor, it ends with it.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import structlog

from app import loading
from app.api.service import Service
from app.classifier import Classifier, Served
from app.engine.base import Facts
from app.errors import Internal, ModelError, NotReady
from app.imagenet.labels import Label
from app.images import Preprocessing
from app.lifecycle import LOADING, Lifecycle
from app.main import create_app
from app.models.model import Model
from app.server.serving import Server, config
from app.settings import Settings
from app.workers import child, metrics, wire
from app.workers.client import EngineQueue
from app.workers.memory import Board, Slots

log = structlog.get_logger("topk")

SILENT = "the engine process does not answer"


class QuietServer(Server):
    """The server, drained by the supervisor's word instead of a signal."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._said = True  # once for all processes, by the supervisor

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpProcess(child.Child):
    """What the supervisor asks of this process, done on the control thread; engines come and go.

    It is ready while an engine is connected and, by the supervisor's word, answers.
    """

    def __init__(self, control: socket.socket, settings: Settings, delay_s: float) -> None:
        super().__init__(control)
        self._lifecycle = Lifecycle(on_ready=self._say_ready)
        # The limit on bytes in memory is one for all processes, but one body must always fit.
        share = max(settings.max_inflight_bytes // settings.workers, settings.max_body_bytes)
        settings = settings.model_copy(update={"max_inflight_bytes": min(settings.max_inflight_bytes, share)})
        self._app = create_app(settings, self._lifecycle, self._start, self._exposition)
        self._service: Service = self._app.state.service
        self._classifier = self._service.classifier
        self._server = QuietServer(config(self._app, settings), self._lifecycle, delay_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked: asyncio.Future[bytes] | None = None
        self._attaching = threading.Lock()
        self._served: Served | None = None  # by the engine that is connected
        self._engine_answers = True

    def run(self, listener: socket.socket) -> int:
        """Serve until told to drain; the exit code."""
        self._server.run([listener])
        return 0

    def _start(self, classifier: Classifier, lifecycle: Lifecycle) -> None:
        self._loop = asyncio.get_running_loop()
        self.listen(self._told)

    def _told(self, message: dict[str, Any], descriptor: int | None) -> None:
        match message["do"]:
            case "connect":
                assert descriptor is not None
                sock = socket.socket(fileno=descriptor)
                with self._attaching:
                    self._engine_answers = True  # a new engine, or we are new to it
                threading.Thread(target=self._connect, args=(sock,), name="topk-engine", daemon=True).start()
            case "samples":
                snapshot = metrics.snapshot(self._service.metrics.registry)
                self.tell({"do": "samples", "samples": snapshot})
            case "metrics":
                assert self._loop
                self._loop.call_soon_threadsafe(self._answered, message["text"].encode())
            case "suspend" | "resume":
                with self._attaching:
                    self._engine_answers = message["do"] == "resume"
                    self._judge()
            case "drain":
                self._server.handle_exit(signal.SIGTERM, None)
                self.tell({"do": "draining"})
            case "stop":
                self._server.stop()

    def _say_ready(self) -> None:
        with contextlib.suppress(NotReady):  # the engine has ended again already
            self.tell({"do": "ready", "info": self._classifier.info()})

    def _connect(self, sock: socket.socket) -> None:
        """The life of one engine, seen from here."""
        queue = served = None
        try:
            model, facts, slots, board = _welcomed(sock)
            threads = loading.decode_threads(model, self._classifier.settings, self._classifier.sandbox)
            queue = EngineQueue(sock, slots, board, facts, threads.seconds)
            served = loading.build_remote(model, facts, threads, queue)
            with self._attaching:
                self._classifier.serve(served)
                self._served = served
                self._judge()
            self._classifier.sandbox.start()
            queue.read()
        except (EOFError, OSError):
            log.debug("the engine ended before it was ready")
        except Exception:
            log.exception("the connection to the engine failed")
        finally:
            if queue and served:
                with self._attaching:
                    self._classifier.withdraw(served)
                    if self._served is served:
                        self._served = None
                        self._lifecycle.waiting_for = LOADING
                queue.fail()
                threads.close(wait=False)
            sock.close()

    def _judge(self) -> None:
        """Be ready if an engine is connected and answers. The caller holds the lock.

        While it does not answer nothing new is accepted; requests that wait for it may still be answered in time.
        """
        self._lifecycle.waiting_for = LOADING if self._engine_answers else SILENT
        self._classifier.ready = self._served is not None and self._engine_answers
        if self._classifier.ready:
            self._lifecycle.ready = True
            assert self._loop
            self._loop.call_soon_threadsafe(self._lifecycle.announce)

    async def _exposition(self) -> bytes:
        """The metrics of all processes, summed by the supervisor.

        It is asked once at a time, so that neither end's socket fills up while the other is stopped.
        """
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
            self.tell({"do": "metrics"})
        return await asyncio.shield(self._asked)

    def _answered(self, text: bytes) -> None:
        assert self._asked
        self._asked.set_result(text)
        self._asked = None


@dataclass(frozen=True, slots=True)
class RemoteFacts:
    """The ``Facts`` of an engine in another process, as they were when it had loaded."""

    name: str
    device: str
    precision: str
    streams: int
    spreads: bool
    compilation: str
    buckets: tuple[int, ...]
    dim: int


def _welcomed(sock: socket.socket) -> tuple[Model, Facts, Slots, Board]:
    """What the engine says first, once it is warm. Raises EOFError where it ends before."""
    messages = wire.Messages(sock)
    told: dict[str, Any] = {}
    descriptors: list[int] = []
    while "facts" not in told:
        for message, descriptor in messages.read():
            told |= message
            descriptors += [] if descriptor is None else [descriptor]
    facts = RemoteFacts(**told["facts"] | {"buckets": tuple(told["facts"]["buckets"])})
    preprocessing = told["model"]["preprocessing"]
    for name in ("mean", "std"):
        preprocessing[name] = tuple(preprocessing[name])
    model = Model(
        **told["model"]
        | {
            "preprocessing": Preprocessing(**preprocessing),
            "labels": tuple(Label(*label) for label in told["model"]["labels"]),
            "build": _elsewhere,
        }
    )
    slots = Slots(descriptors[0], told["slots"], model.preprocessing.crop)
    board = Board(descriptors[1], facts.buckets)
    for descriptor in descriptors:
        os.close(descriptor)
    return model, facts, slots, board


def _elsewhere() -> NoReturn:
    raise Internal("the network is in the engine process")


def main() -> int:
    control, settings = child.begin(sys.argv)
    listener = socket.socket(fileno=int(sys.argv[2]))
    try:
        process = HttpProcess(control, settings, float(sys.argv[3]))
    except ModelError as error:
        child.Child(control).tell({"do": "refused", "detail": error.detail})
        return 1
    return process.run(listener)


if __name__ == "__main__":
    sys.exit(main())
