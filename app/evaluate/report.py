from pathlib import Path

from app.evaluate.evaluation import Evaluation


def write(e: Evaluation, path: Path) -> None: ...
