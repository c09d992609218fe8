"""Run `topk serve` with a planted CUDA error: SIGUSR1 makes the next batches of the engine process fail.

``python -m tests.gpu.planted python -m app serve OPTIONS`` starts the service. The engine process runs this module too.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from app.engine.base import Jpeg, Pixels, Rows, Want
from app.processes import children
from app.workers import engine

_ENGINE = "app.workers.engine"
_start = children.start


def start(module: str, *arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
    """Start this module in place of the engine process's."""
    return _start("tests.gpu.planted" if module == _ENGINE else module, *arguments, **options)


def run_topk() -> None:
    """Run `topk serve`. Its own process does not import torch, as without the error."""
    from app.__main__ import main as topk

    children.start = start
    sys.argv = ["topk", *sys.argv[4:]]
    topk()


def run_engine() -> int:
    """Run the engine process. After SIGUSR1 its batches fail."""
    import torch

    from app.engine.lane import Lane

    planted = False
    run = Lane.run

    def plant(*_: object) -> None:
        nonlocal planted
        planted = True

    def run_or_fail(lane: Lane, images: Sequence[Jpeg | Pixels], wants: Sequence[Want]) -> Rows:
        """Run a batch after a kernel that fails. CUDA reports the error at the end of the batch, like a real one."""
        if planted:
            fail(lane._device)
        return run(lane, images, wants)

    def fail(device: torch.device) -> None:
        """Break the CUDA context with an index out of range, which a kernel asserts. On a CPU, raise such an error."""
        if device.type == "cpu":
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        torch.zeros(1, device=device)[torch.full((1,), 9, device=device)]

    signal.signal(signal.SIGUSR1, plant)
    Lane.run = run_or_fail  # type: ignore[method-assign]
    return engine.main()


def main() -> int:
    if sys.argv[1] != sys.executable:
        return run_engine()
    run_topk()
    return 0


if __name__ == "__main__":
    sys.exit(main())
