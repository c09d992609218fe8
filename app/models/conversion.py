"""The child process in which ``cache`` has a model converted, so that the one that serves imports no torch.

``python -m app.models.conversion MODEL WEIGHTS FOLDER`` writes a model folder without its safetensors.
"""

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
    """Resolve, convert and write; the exit code."""
    try:
        settings = Settings.model_construct(  # whether a checkpoint is trusted was asked before this process began
            model=model, weights=Path(weights) if weights else None, trust_checkpoint=True
        )
        folder.write(models.resolve(settings), Path(target), weights=False)
    except ModelError as error:
        print(error.detail)
        return NOT_CONVERTIBLE if isinstance(error, NotConvertible) else REFUSED
    return 0


def _end_with_parent(workplace: Path) -> None:
    """The parent holds our standard input open for as long as it lives, and clears up what is left; else we do."""

    def wait() -> None:
        os.read(0, 1)  # not through sys.stdin, whose lock an exiting interpreter wants
        shutil.rmtree(workplace, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    signals.leave_to_parent()
    _end_with_parent(Path(sys.argv[3]).parent)
    warnings.simplefilter("ignore")  # our standard error is a service's log
    sys.exit(main(*sys.argv[1:]))
