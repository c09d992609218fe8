"""What is asked for, checked before anything is read."""

from dataclasses import dataclass
from pathlib import Path

from app.errors import TrainingError
from app.models.folder import check_target


@dataclass(frozen=True, slots=True)
class Plan:
    """Train from ``folder`` into ``out``. The images of ``val``, else a share ``holdout`` of each class, are held out.

    With ``fine_tune`` the whole network is trained, ``epochs`` at the most.
    """

    folder: Path
    out: Path
    val: Path | None = None
    holdout: float = 0.2
    seed: int = 0
    fine_tune: bool = False
    epochs: int = 20
    batch_size: int = 32

    def check(self) -> None:
        """Raise TrainingError or ModelError where that cannot be done."""
        for folder in filter(None, (self.folder, self.val)):
            if not folder.is_dir():
                raise TrainingError(f"there is no folder {folder}")
        if not 0 < self.holdout < 1:
            raise TrainingError("--holdout is a share of the images, above 0 and below 1")
        if self.val and (_within(self.val, self.folder) or _within(self.folder, self.val)):
            raise TrainingError(f"--val {self.val} and {self.folder} lie one in the other: its images are to be others")
        for folder in filter(None, (self.folder, self.val)):
            if _within(self.out, folder):
                raise TrainingError(f"--out {self.out} lies in {folder}, where it would be taken for a class")
        check_target(self.out)


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
