"""Publishes the state of one queue of the engine process to the HTTP processes."""

import asyncio
import threading
from typing import Protocol

from app.batching import Queue
from app.workers import memory
from app.workers.memory import Board, Slots

_COLLECT_S = 0.001  # the board is written once for all tasks that come within this time


class TaskConnection(Protocol):
    """The connection of an HTTP process to the queue. ``taken`` is the total number of tasks put into the queue."""

    slots: Slots
    taken: int


class Publisher:
    """A queue and its board. ``descriptor`` is the file descriptor of the board's memory; ``slots`` are per process."""

    def __init__(self, queue: Queue, buckets: tuple[int, ...], slots: int) -> None:
        self.queue = queue
        self.buckets = buckets
        self.slots = slots
        self.descriptor = memory.create(Board.size(buckets))
        self._board = Board(self.descriptor, buckets)
        self._connections: set[TaskConnection] = set()
        self._publishing = threading.Lock()
        self._scheduled = False

    def connect(self, connection: TaskConnection) -> None:
        """Tell an HTTP process, whenever the board is written, which of its tasks the board includes."""
        with self._publishing:
            self._connections.add(connection)

    def disconnect(self, connection: TaskConnection) -> None:
        with self._publishing:
            self._connections.discard(connection)

    def publish(self) -> None:
        """Write the state of the queue to the board. From any thread."""
        with self._publishing:
            taken = [(connection.slots, connection.taken) for connection in self._connections]
            self._board.write(self.queue.outlook(), self.queue.costs, self.queue.costs_alone)
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
