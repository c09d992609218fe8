"""The child process that converts a model for ``cache``, so that the serving process imports no torch.

``python -m app.models.conversion MODEL WEIGHTS FOLDER`` writes a model folder without its safetensors.
"""

import gc
import os
import shutil
import sys
import threading
import warnings
from pathlib import Path

from app import models
from app.errors import ModelError, NotConvertible
from app.models import folder
from app.models.cache import NOT_CONVERTIBLE, REFUSED
from app.processes import signals
from app.settings import Settings


def main(model: str, weights: str, target: str) -> int:
    """Resolve the model, convert it and write it. Return the exit code."""
    try:
        settings = Settings.model_construct(  # the parent has checked that a checkpoint is trusted
            model=model, weights=Path(weights) if weights else None, trust_checkpoint=True
        )
        folder.write(models.resolve(settings), Path(target), weights=False)
    except ModelError as error:
        print(error.detail)
        return NOT_CONVERTIBLE if isinstance(error, NotConvertible) else REFUSED
    return 0


def _end_with_parent(workspace: Path) -> None:
    """Remove the workspace and exit when the parent ends, which closes this process's standard input."""

    def wait() -> None:
        os.read(0, 1)  # not through sys.stdin: an exiting interpreter needs its lock
        shutil.rmtree(workspace, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    gc.disable()  # a process this short ends before garbage matters; torch's tracing is an eighth faster
    signals.leave_to_parent()
    _end_with_parent(Path(sys.argv[3]).parent)
    warnings.simplefilter("ignore")  # standard error is the log of a service
    sys.exit(main(*sys.argv[1:]))
