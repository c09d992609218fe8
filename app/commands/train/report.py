"""A training run as one HTML page: how the model was made, then the evaluation of the held-out images."""

from collections.abc import Iterator
from pathlib import Path

from app.commands.evaluate import report
from app.commands.evaluate.table import count
from app.commands.filenames import printable
from app.commands.reports import page as html
from app.commands.train.run import Trained


def write(trained: Trained, path: Path, max_pixels: int) -> None:
    """Write the page. Raises ReportError."""
    html.write(page(trained, max_pixels), path)


def page(trained: Trained, max_pixels: int) -> str:
    """The page as HTML. Images of more than ``max_pixels`` get no thumbnail."""
    return report.page(trained.evaluation, max_pixels, "topk train", _made(trained))


def _made(trained: Trained) -> str:
    from app.commands.train import chart  # here, because importing matplotlib takes half a second

    learned = trained.learned
    made = (
        f"<section class=pair><div><h2>Training</h2>{html.pairs(_facts(trained))}</div>"
        "<div><h2>Regularisation</h2>"
        "<p>Cross-validated log loss. The C with the lowest loss was chosen.</p>"
        f"{chart.regularisation(learned.head)}</div></section>"
    )
    if not learned.tuning:
        return made
    return (
        f"{made}<section><h2>Epochs <small>held-out images</small></h2>"
        "<p class=about>The best epoch on these images was kept, so the figures are slightly optimistic.</p>"
        f"{chart.epochs(learned.tuning)}</section>"
    )


def _facts(trained: Trained) -> Iterator[tuple[str, str]]:
    learned, plan = trained.learned, trained.plan
    parent, tuning = learned.parent, learned.tuning
    yield "parent", f"{parent.name} ({parent.weights})"
    yield "digest", parent.digest[:16]
    yield "trained on", f"{count(len(learned.sides.learned), 'image')} of {len(learned.classes)} classes"
    yield (
        "held out",
        f"{count(len(learned.sides.held_out), 'image')} in {printable(plan.val)}"
        if plan.val
        else (f"{count(len(learned.sides.held_out), 'image')}, {100 * plan.holdout:g} % of each class"),
    )
    yield "linear head", f"C = {learned.head.c:g}, log loss {learned.head.loss:.3f}"
    if tuning:
        yield "fine-tuned", f"{count(len(tuning.scores) - 1, 'epoch')}; kept: {tuning.best or 'the linear head'}"
    yield "seed", str(plan.seed)
