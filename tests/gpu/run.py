"""Runs each step in a process of its own, so that neither a CUDA error nor a crash nor a hang reaches the next one.

The processes are forked from one that has imported torch but has not touched the device.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from tests.gpu.figures import DONE, FAILED, SKIPPED, UNFINISHED, Context, Figure, Outcome, Report
from tests.gpu.plan import Step

_LEAST_S = 3.0  # a step is not started with less
_ENDS_S = 10.0


class Steps:
    """Runs steps until ``deadline``, a time of ``time.monotonic``."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["torchvision", "app.loading", "app.engine.torch"])

    def run(self, step: Step, context: Context, limit: float, changed: Callable[[Outcome], None]) -> Outcome:
        """Run a step for at most ``limit`` seconds. ``changed`` gets its outcome so far after each figure."""
        outcome = Outcome(step.part, step.name, SKIPPED)
        left = self._deadline - time.monotonic()
        if step.cuda and not context.cuda:
            outcome.reason = "needs CUDA"
        elif left < _LEAST_S:
            outcome.reason = "no time left"
        else:
            self._run(step, context, min(limit, left), outcome, changed)
        return outcome

    def _run(
        self, step: Step, context: Context, limit: float, outcome: Outcome, changed: Callable[[Outcome], None]
    ) -> None:
        started = time.monotonic()
        receiver, sender = self._processes.Pipe(duplex=False)
        process = self._processes.Process(target=_child, args=(step.function, context, sender))
        process.start()
        sender.close()
        outcome.status, outcome.reason = UNFINISHED, f"exceeded its {limit:.0f} s and was stopped"
        try:
            while receiver.poll(max(0.0, started + limit - time.monotonic())):
                match receiver.recv():
                    case Figure() as figure:
                        outcome.figures.append(figure)
                    case str() as reason:
                        outcome.status, outcome.reason = (FAILED, reason) if reason else (DONE, "")
                outcome.seconds = time.monotonic() - started
                changed(outcome)
        except EOFError:
            process.join(_ENDS_S)
            if outcome.status == UNFINISHED:
                outcome.reason = f"its process ended with code {process.exitcode}"
        finally:
            outcome.seconds = time.monotonic() - started
            _end(process)


def _child(function: str, context: Context, pipe: Connection) -> None:
    """Run a step, and send its figures and then the reason of its failure, which is empty if there is none."""
    os.setpgrp()  # so that the servers that it starts end with it
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # only the table goes to standard output
    module, _, name = function.partition(":")
    reason = ""
    try:
        getattr(importlib.import_module(f"tests.gpu.{module}"), name)(context, Report(pipe.send, context.cuda))
    except BaseException as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    pipe.send(reason)
    os._exit(bool(reason))  # threads in native code may hold the interpreter


def _end(process: BaseProcess) -> None:
    """Kill the process and those that it has started."""
    assert process.pid
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, or has no group yet
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join(_ENDS_S)
