"""What to train, validated before any file is read."""

from dataclasses import dataclass
from pathlib import Path

from app.errors import TrainingError
from app.models.folder import check_target


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """Train from ``folder`` into ``out``. Holds out the images of ``val``, or else a share of each class.

    With ``fine_tune`` the whole network is trained, for at most ``epochs`` epochs.
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
        """Raise TrainingError or ModelError if the plan cannot work."""
        for folder in filter(None, (self.folder, self.val)):
            if not folder.is_dir():
                raise TrainingError(f"no such folder: {folder}")
        if not 0 < self.holdout < 1:
            raise TrainingError(f"--holdout must be more than 0 and less than 1, got {self.holdout:g}")
        if self.val and (_within(self.val, self.folder) or _within(self.folder, self.val)):
            raise TrainingError(f"--val {self.val} and {self.folder} overlap: --val needs a folder of other images")
        for folder in filter(None, (self.folder, self.val)):
            if _within(self.out, folder):
                raise TrainingError(
                    f"--out {self.out} is inside {folder}, where it would become a class; choose another folder"
                )
        check_target(self.out)


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
