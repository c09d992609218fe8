"""The figures as a short table: the expectation beside the value."""

from tests.gpu.figures import DONE, Figure, Outcome

_HEAD = ("part", "step", "figure", "value", "expected", "")


def text(outcomes: list[Outcome]) -> str:
    """One line for each figure that is not a detail, and for each step that is not done."""
    rows = [_HEAD]
    for outcome in outcomes:
        place = (str(outcome.part), outcome.step)
        rows += [(*place, *_cells(figure)) for figure in outcome.figures if not figure.detail]
        if outcome.status != DONE:
            rows.append((*place, f"{outcome.status}: {outcome.reason}", "", "", ""))
    widths = [max(len(row[column]) for row in rows if row[3] or column < 2) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths).rstrip(), *lines[1:]])


def _cells(figure: Figure) -> tuple[str, str, str, str]:
    value = f"{figure.value:,}" if isinstance(figure.value, int | float) else str(figure.value)
    verdict = {None: "", True: "ok", False: "MISSED"}[figure.met]
    return figure.name, f"{value} {figure.unit}".rstrip(), figure.expected, verdict
