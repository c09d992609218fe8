"""An answer as text: a table of its classes, a line about its prediction set, a tree of its path in WordNet."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text
from rich.tree import Tree

from app.api.options import PredictOptions
from app.commands.console import err, out, print_line
from app.commands.filenames import printable
from app.commands.predict.answers import Answer
from app.imagenet.predictions import Prediction

_ROWS = 20  # of a prediction set


def print_answer(answer: Answer, options: PredictOptions) -> None:
    """Print one file's answer, or its error to stderr."""
    if "error" in answer:
        print_line(err, f"{printable(answer['file'])}: {answer['error']['detail']}")
        return
    out.print(_table(answer))
    for line in _remarks(answer, options):
        out.print(line)
    if "taxonomy" in answer:
        out.print(_tree(answer))


def _table(answer: Answer) -> Table:
    """The predictions and the first classes of the prediction set, which are marked."""
    title = printable(answer["file"])
    marked = {one.class_id for one in answer.get("set", ())}
    mark = [Column("set", justify="center")] if "set" in answer else []
    table = Table(Column("score", justify="right"), *mark, "label", "wnid", title=title, title_justify="left")
    for one in _classes(answer):
        cells = ["*" if one.class_id in marked else ""] if mark else []
        table.add_row(f"{one.score:.4f}", *cells, one.label, one.wnid or "")
    return table


def _classes(answer: Answer) -> list[Prediction]:
    """Both lists are the first classes by score, so that they have the shorter one in common."""
    predictions: list[Prediction] = answer["predictions"]
    return max(predictions, answer.get("set", [])[:_ROWS], key=len)


def _remarks(answer: Answer, options: PredictOptions) -> Iterator[Text]:
    """What the calibration tells about the image."""
    if "typicality" not in answer:
        return
    found = f"{100 * (options.coverage or 0):g} % set: {_count(answer)}; " if "set" in answer else ""
    yield Text(f"{found}typicality {answer['typicality']:.3g}")
    if answer.get("unknown"):
        yield Text(f"unknown: the typicality is at most {options.unknown:g}", style="bold yellow")


def _count(answer: Answer) -> str:
    count, shown = len(answer["set"]), len(_classes(answer))
    return f"{count} class{'es' * (count != 1)}" + f", the first {shown} of them shown" * (count > shown)


def _tree(answer: Answer) -> Group:
    """The path from WordNet's root to the best class, and the answer, which is usually on it."""
    confident = answer["answer"]

    def line(node: dict[str, Any]) -> Text:
        return Text(f"{node['label']} {node['score']:.4f}", style="bold green" if node == confident else "")

    root, *below = answer["taxonomy"]
    tree = branch = Tree(line(root), guide_style="dim")
    tree.ASCII_GUIDES = ("  ", "| ", "+ ", "` ")  # narrow, because a path may have 18 steps
    tree.TREE_GUIDES = [("  ", "│ ", "├ ", "└ ")] * 3
    for node in below:
        branch = branch.add(line(node))
    return Group(tree, Text.assemble("answer: ", line(confident), f" {confident['wnid']}\n"))
